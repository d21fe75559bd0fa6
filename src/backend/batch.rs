//! Batch of jobs that one fetcher reads. Completes each job exactly once, also when the fetcher
//! panics (job-completes-once).

use super::connect::is_cluster_redirection;
use super::{PoolShared, QueuedJob};
use crate::types::{Completion, Failure, FetchedValue};
use std::sync::Arc;
use std::time::Instant;

/// Result of reading one key: `None` if Redis has no such key.
pub(super) type FetchResult = Result<Option<FetchedValue>, Failure>;

/// Index of a job in its batch, and the key to read.
pub(super) type BatchKey = (usize, Arc<[u8]>);

/// Jobs of a batch. Jobs that are pending when the batch is dropped, for example after a panic,
/// fail with [`Failure::Internal`].
pub(super) struct Batch {
    shared: Arc<PoolShared>,
    /// `None` once the job is completed.
    jobs: Vec<Option<QueuedJob>>,
    /// Completions not delivered to the event loop yet.
    completed: Vec<Completion>,
    /// Last error that says why Redis cannot serve now.
    not_ready: Option<String>,
    /// True if a cluster node redirected a key to another node.
    is_redirected: bool,
}

impl Batch {
    pub(super) fn new(shared: Arc<PoolShared>, batch: Vec<QueuedJob>) -> Batch {
        Batch {
            shared,
            jobs: batch.into_iter().map(Some).collect(),
            completed: Vec::new(),
            not_ready: None,
            is_redirected: false,
        }
    }

    /// Returns the indexes and keys of the pending jobs, in the order of submission.
    pub(super) fn pending(&self) -> Vec<BatchKey> {
        let pending =
            |(index, queued): (usize, &Option<QueuedJob>)| Some((index, Arc::clone(&queued.as_ref()?.job.key)));
        self.jobs.iter().enumerate().filter_map(pending).collect()
    }

    /// Returns the number of pending jobs.
    pub(super) fn pending_count(&self) -> usize {
        self.jobs.iter().flatten().count()
    }

    /// Completes the job at `index`, unless it is completed already.
    pub(super) fn complete(&mut self, index: usize, result: FetchResult) {
        if let Some(queued) = self.jobs.get_mut(index).and_then(Option::take) {
            if let Err(Failure::NotReady(text)) = &result {
                self.not_ready = Some(text.clone());
            }
            self.is_redirected |= result.as_ref().is_err_and(is_cluster_redirection);
            self.completed.push(Completion { fetch_id: queued.job.fetch_id, result, may_cache: true });
        }
    }

    /// Returns the last error that says why Redis cannot serve now.
    pub(super) fn not_ready(&self) -> Option<&str> {
        self.not_ready.as_deref()
    }

    /// Returns true if a cluster node redirected a key to another node.
    pub(super) fn is_redirected(&self) -> bool {
        self.is_redirected
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
        pending.iter().for_each(|&(index, _)| self.complete(index, Err(failure.clone())));
        pending.len()
    }

    /// Returns pending jobs to the queue, if other fetchers are connected and can read them.
    /// Returns true if it did.
    pub(super) fn requeue(&mut self) -> bool {
        let mut state = self.shared.state();
        let others_connected = state.connected > 0;
        if others_connected {
            // These jobs go to the front of the queue, because they have waited longest.
            self.jobs.drain(..).rev().flatten().for_each(|queued| state.queue.push_front(queued));
            self.shared.wake_fetcher(state);
        }
        others_connected
    }

    /// Passes the completed jobs to the event loop.
    pub(super) fn deliver(&mut self) {
        if !self.completed.is_empty() {
            self.shared.deliver(std::mem::take(&mut self.completed));
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
    use super::*;
    use crate::types::Job;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Duration;

    fn queued_jobs(count: usize) -> Vec<QueuedJob> {
        let expires_at = Instant::now() + Duration::from_secs(1);
        let queued = |fetch_id| QueuedJob { job: Job { fetch_id, key: b"k"[..].into() }, expires_at };
        (0..count).map(queued).collect()
    }

    fn delivered(shared: &PoolShared) -> Vec<(usize, FetchResult)> {
        let mut completions = Vec::new();
        shared.inbox().drain(&mut completions, &mut Vec::new(), 0);
        completions.into_iter().map(|completion| (completion.fetch_id, completion.result)).collect()
    }

    /// Each job completes exactly once, also when the fetcher panics before it has read all.
    #[test]
    fn fetcher_panic_completes_each_job_once() {
        let shared = Arc::new(PoolShared::new(Arc::default(), || ()));
        let mut batch = Batch::new(Arc::clone(&shared), queued_jobs(3));
        batch.complete(1, Ok(None));
        batch.complete(1, Err(Failure::Timeout));
        assert!(delivered(&shared).is_empty());
        batch.deliver();
        assert_eq!(delivered(&shared), [(1, Ok(None))]);
        let fetcher = catch_unwind(AssertUnwindSafe(move || {
            batch.complete(2, Ok(None));
            assert_eq!(batch.pending().len(), 7, "deliberate panic");
        }));
        assert!(fetcher.is_err());
        assert_eq!(delivered(&shared), [(2, Ok(None)), (0, Err(Failure::Internal))]);
    }

    /// Pending jobs return to the front of the queue if another fetcher is connected.
    #[test]
    fn requeue_puts_pending_jobs_first() {
        let shared = Arc::new(PoolShared::new(Arc::default(), || ()));
        let mut batch = Batch::new(Arc::clone(&shared), queued_jobs(4));
        assert!(!batch.requeue(), "no fetcher is connected");
        shared.state().queue.extend(queued_jobs(10).split_off(9));
        shared.record_connect(true);
        batch.complete(1, Ok(None));
        assert!(batch.requeue());
        drop(batch);
        assert_eq!(delivered(&shared), [(1, Ok(None))]);
        let fetches: Vec<usize> = shared.state().queue.iter().map(|queued| queued.job.fetch_id).collect();
        assert_eq!(fetches, [0, 2, 3, 9]);
    }

    /// A job that outlived its client's timeout in the queue is not read.
    #[test]
    fn expired_job_fails_with_timeout() {
        let shared = Arc::new(PoolShared::new(Arc::default(), || ()));
        let mut jobs = queued_jobs(3);
        let now = Instant::now();
        jobs[1].expires_at = now;
        let mut batch = Batch::new(Arc::clone(&shared), jobs);
        batch.fail_expired(now);
        assert_eq!(batch.pending().iter().map(|&(index, _)| index).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(batch.fail_pending(&Failure::Unavailable), 2);
        drop(batch);
        let failed = |fetch_id, failure| (fetch_id, Err(failure));
        let expected = [failed(1, Failure::Timeout), failed(0, Failure::Unavailable), failed(2, Failure::Unavailable)];
        assert_eq!(delivered(&shared), expected);
    }
}
