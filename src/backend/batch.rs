//! Batch of jobs that one fetcher reads. Completes each job exactly once, also when the fetcher
//! panics (job-completes-once).

use super::connect::{is_cluster_redirection, is_command_denied, read_failure};
use super::node::{Node, QueuedJob};
use super::slot_map::Redirection;
use crate::types::{Completion, Failure, FetchedValue};
use redis::{RedisError, ServerError};
use std::sync::Arc;
use std::time::Instant;

/// Result of reading one key: `None` if Redis has no such key.
pub(super) type FetchResult = Result<Option<FetchedValue>, Failure>;

/// Pending job of a batch.
#[derive(Clone)]
pub(super) struct BatchKey {
    /// Index of the job in its batch.
    pub(super) index: usize,
    /// Key to read.
    pub(super) key: Arc<[u8]>,
    /// True if each command for the key follows an `ASKING`.
    pub(super) is_asking: bool,
}

/// Jobs of a batch. Jobs that are pending when the batch is dropped, for example after a panic,
/// fail with [`Failure::Internal`].
pub(super) struct Batch {
    node: Arc<Node>,
    /// `None` once the job is completed or redirected.
    jobs: Vec<Option<QueuedJob>>,
    /// Completions not delivered to the event loop yet.
    completed: Vec<Completion>,
    /// Jobs not passed to other nodes yet.
    redirected: Vec<(QueuedJob, Redirection)>,
    /// True if values may be cached: of keys of the node, of keys that it is asked for.
    may_cache: [bool; 2],
    /// Last error that says why Redis cannot serve now.
    not_ready: Option<String>,
    /// True if a cluster node redirected a key to another node, and the proxy reads one Redis.
    is_misdirected: bool,
    /// True if the node denies `ASKING`.
    denies_asking: bool,
}

impl Batch {
    pub(super) fn new(node: Arc<Node>, batch: Vec<QueuedJob>) -> Batch {
        Batch {
            node,
            completed: Vec::with_capacity(batch.len()),
            jobs: batch.into_iter().map(Some).collect(),
            redirected: Vec::new(),
            may_cache: [false; 2],
            not_ready: None,
            is_misdirected: false,
            denies_asking: false,
        }
    }

    /// Returns the pending jobs, in the order of submission.
    pub(super) fn pending(&self) -> Vec<BatchKey> {
        let pending = |(index, queued): (usize, &Option<QueuedJob>)| {
            let QueuedJob { job, is_asking, .. } = queued.as_ref()?;
            Some(BatchKey { index, key: Arc::clone(&job.key), is_asking: *is_asking })
        };
        self.jobs.iter().enumerate().filter_map(pending).collect()
    }

    /// Returns the number of pending jobs.
    pub(super) fn pending_count(&self) -> usize {
        self.jobs.iter().flatten().count()
    }

    /// Records whether values that are requested from now on may be cached: of keys of the node, of
    /// keys that it is asked for (`ASK`).
    pub(super) fn set_may_cache(&mut self, may_cache: [bool; 2]) {
        self.may_cache = may_cache;
    }

    /// Completes the job at `index`, unless it is completed already.
    pub(super) fn complete(&mut self, index: usize, result: FetchResult) {
        if let Some(queued) = self.jobs.get_mut(index).and_then(Option::take) {
            if let Err(Failure::NotReady(text)) = &result {
                self.not_ready = Some(text.clone());
            }
            self.is_misdirected |= result.as_ref().is_err_and(is_cluster_redirection);
            let may_cache = self.may_cache[usize::from(queued.is_asking)];
            self.completed.push(Completion { fetch_id: queued.job.fetch_id, result, may_cache });
        }
    }

    /// Ends the job at `index` with an error reply. In a cluster, a redirection passes it on.
    pub(super) fn complete_error(&mut self, index: usize, error: ServerError) {
        let redirection =
            self.node.pool.settings.access.is_cluster().then(|| {
                Redirection::parse(error.code(), error.details().unwrap_or_default(), &self.node.primary.address)
            });
        match redirection.flatten() {
            Some(redirection) => {
                let queued = self.jobs.get_mut(index).and_then(Option::take);
                self.redirected.extend(queued.map(|queued| (queued, redirection)));
            }
            None => {
                let error = RedisError::from(error);
                let is_asking = self.jobs.get(index).and_then(Option::as_ref).is_some_and(|queued| queued.is_asking);
                self.denies_asking |= is_asking && is_command_denied(&error);
                self.complete(index, Err(read_failure(&error)));
            }
        }
    }

    /// Returns the last error that says why Redis cannot serve now.
    pub(super) fn not_ready(&self) -> Option<&str> {
        self.not_ready.as_deref()
    }

    /// Returns true if a cluster node redirected a key to another node, and the proxy reads one
    /// Redis.
    pub(super) fn is_misdirected(&self) -> bool {
        self.is_misdirected
    }

    /// Returns true if the node denies `ASKING`.
    pub(super) fn denies_asking(&self) -> bool {
        self.denies_asking
    }

    /// Fails the jobs that were queued for longer than their first client waits.
    pub(super) fn fail_expired(&mut self, now: Instant) {
        for index in 0..self.jobs.len() {
            if self.jobs[index].as_ref().is_some_and(|queued| queued.expires_at <= now) {
                self.complete(index, Err(Failure::Timeout));
            }
        }
    }

    /// Fails all pending jobs and returns their number.
    pub(super) fn fail_pending(&mut self, failure: &Failure) -> usize {
        let pending = self.pending();
        pending.iter().for_each(|pending| self.complete(pending.index, Err(failure.clone())));
        pending.len()
    }

    /// Returns pending jobs to the queue, if other fetchers are connected and can read them. Those
    /// of a node that was closed go to other nodes. Returns true if it did.
    pub(super) fn requeue(&mut self) -> bool {
        let mut state = self.node.state();
        if state.closed {
            drop(state);
            self.node.pool.reroute(self.jobs.drain(..).flatten());
            return true;
        }
        let others_connected = state.connected > 0;
        if others_connected {
            // They have waited longest.
            self.jobs.drain(..).rev().flatten().for_each(|queued| state.queue.push_front(queued));
            self.node.wake_fetcher(state);
        }
        others_connected
    }

    /// Passes the completed jobs to the event loop, and the redirected ones to their nodes.
    pub(super) fn deliver(&mut self) {
        if !self.completed.is_empty() {
            self.node.pool.deliver(std::mem::take(&mut self.completed));
        }
        if !self.redirected.is_empty() {
            let redirected = std::mem::take(&mut self.redirected);
            self.node.update_status(|node| {
                redirected.iter().for_each(|(_, to)| node.counters.redirections[usize::from(to.is_ask)] += 1);
            });
            self.node.pool.redirect(&self.node.primary, redirected);
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let lost = self.fail_pending(&Failure::Internal);
        if lost > 0 {
            log::error!("a fetcher panicked: {lost} keys not read, their clients get an error; please report this");
        }
        self.deliver();
    }
}

#[cfg(test)]
mod tests {
    use super::super::node::tests::{node_without_threads, queued};
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn queued_jobs(count: usize) -> Vec<QueuedJob> {
        (0..count).map(queued).collect()
    }

    fn delivered(node: &Node) -> Vec<(usize, FetchResult)> {
        let mut completions = Vec::new();
        node.pool.inbox().drain(&mut completions, &mut Vec::new(), 0);
        completions.into_iter().map(|completion| (completion.fetch_id, completion.result)).collect()
    }

    /// Each job completes exactly once, also when the fetcher panics before it has read all.
    #[test]
    fn fetcher_panic_completes_each_job_once() {
        let node = node_without_threads();
        let mut batch = Batch::new(Arc::clone(&node), queued_jobs(3));
        batch.complete(1, Ok(None));
        batch.complete(1, Err(Failure::Timeout));
        assert!(delivered(&node).is_empty());
        batch.deliver();
        assert_eq!(delivered(&node), [(1, Ok(None))]);
        let fetcher = catch_unwind(AssertUnwindSafe(move || {
            batch.complete(2, Ok(None));
            assert_eq!(batch.pending().len(), 7, "deliberate panic");
        }));
        assert!(fetcher.is_err());
        assert_eq!(delivered(&node), [(2, Ok(None)), (0, Err(Failure::Internal))]);
    }

    /// Pending jobs return to the front of the queue if another fetcher is connected.
    #[test]
    fn requeue_puts_pending_jobs_first() {
        let node = node_without_threads();
        let mut batch = Batch::new(Arc::clone(&node), queued_jobs(4));
        assert!(!batch.requeue(), "no fetcher is connected");
        node.state().queue.extend(queued_jobs(10).split_off(9));
        node.record_connect(true);
        batch.complete(1, Ok(None));
        assert!(batch.requeue());
        drop(batch);
        assert_eq!(delivered(&node), [(1, Ok(None))]);
        let fetches: Vec<usize> = node.state().queue.iter().map(|queued| queued.job.fetch_id).collect();
        assert_eq!(fetches, [0, 2, 3, 9]);
    }

    /// A job that outlived its client's timeout in the queue is not read.
    #[test]
    fn expired_job_fails_with_timeout() {
        let node = node_without_threads();
        let mut jobs = queued_jobs(3);
        let now = Instant::now();
        jobs[1].expires_at = now;
        let mut batch = Batch::new(Arc::clone(&node), jobs);
        batch.fail_expired(now);
        assert_eq!(batch.pending().iter().map(|pending| pending.index).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(batch.fail_pending(&Failure::Unavailable), 2);
        drop(batch);
        let failed = |fetch_id, failure| (fetch_id, Err(failure));
        let expected = [failed(1, Failure::Timeout), failed(0, Failure::Unavailable), failed(2, Failure::Unavailable)];
        assert_eq!(delivered(&node), expected);
    }
}
