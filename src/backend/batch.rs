//! A batch on its way through a helper: every job in it is completed exactly once, whatever happens to the helper.

use super::{PoolShared, QueuedJob};
use crate::types::{Completion, Failure, FetchedValue};
use std::sync::Arc;
use std::time::Instant;

/// What became of one key.
pub(super) type FetchResult = Result<Option<FetchedValue>, Failure>;

/// A job's place on the desk, and its key.
pub(super) type BatchKey = (usize, Arc<[u8]>);

/// The jobs of a batch. Those that are open when it is dropped, because somebody forgot them or a panic came between,
/// are failed.
pub(super) struct Batch {
    shared: Arc<PoolShared>,
    /// `None` where the job is done.
    jobs: Vec<Option<QueuedJob>>,
    /// Not delivered yet.
    done: Vec<Completion>,
    /// What Redis said last of why it cannot serve.
    not_ready: Option<String>,
}

impl Batch {
    pub(super) fn new(shared: Arc<PoolShared>, batch: Vec<QueuedJob>) -> Batch {
        Batch { shared, jobs: batch.into_iter().map(Some).collect(), done: Vec::new(), not_ready: None }
    }

    /// Places and keys of the jobs that are open, in the order in which they came.
    pub(super) fn pending(&self) -> Vec<BatchKey> {
        let open = |(place, queued): (usize, &Option<QueuedJob>)| Some((place, Arc::clone(&queued.as_ref()?.job.key)));
        self.jobs.iter().enumerate().filter_map(open).collect()
    }

    /// How many jobs are open.
    pub(super) fn pending_count(&self) -> usize {
        self.jobs.iter().flatten().count()
    }

    /// Completes the job at `place`; if it is done already, nothing happens.
    pub(super) fn complete(&mut self, place: usize, result: FetchResult) {
        if let Some(queued) = self.jobs.get_mut(place).and_then(Option::take) {
            if let Err(Failure::NotReady(text)) = &result {
                self.not_ready = Some(text.clone());
            }
            self.done.push(Completion { fetch_id: queued.job.fetch_id, result });
        }
    }

    /// What Redis has said of why it cannot serve.
    pub(super) fn not_ready(&self) -> Option<&str> {
        self.not_ready.as_deref()
    }

    /// Fails those that have waited for a helper as long as their first client waits.
    pub(super) fn fail_expired(&mut self, now: Instant) {
        for place in 0..self.jobs.len() {
            if self.jobs[place].as_ref().is_some_and(|queued| queued.expires <= now) {
                self.complete(place, Err(Failure::Timeout));
            }
        }
    }

    /// Fails all that are open. Says how many they were.
    pub(super) fn fail_pending(&mut self, failure: &Failure) -> usize {
        let open = self.pending();
        open.iter().for_each(|&(place, _)| self.complete(place, Err(failure.clone())));
        open.len()
    }

    /// Puts the jobs that are open back where they came from, if helpers are connected who can serve them. Says whether it has.
    pub(super) fn requeue(&mut self) -> bool {
        let mut state = self.shared.state();
        let others = state.connected > 0;
        if others {
            // They go first: they have waited longest.
            self.jobs.drain(..).rev().flatten().for_each(|queued| state.queue.push_front(queued));
            self.shared.wake_fetcher(state);
        }
        others
    }

    /// Delivers what is done.
    pub(super) fn deliver(&mut self) {
        if !self.done.is_empty() {
            self.shared.deliver(std::mem::take(&mut self.done));
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let forgotten = self.fail_pending(&Failure::Internal);
        if forgotten > 0 {
            log::error!(
                "a fetcher panicked: {forgotten} keys not read, their clients get an error; please report this"
            );
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
        let expires = Instant::now() + Duration::from_secs(1);
        (0..count).map(|fetch| QueuedJob { job: Job { fetch_id: fetch, key: b"k"[..].into() }, expires }).collect()
    }

    fn delivered(shared: &PoolShared) -> Vec<(usize, FetchResult)> {
        let mut completions = Vec::new();
        shared.inbox().drain(&mut completions, &mut Vec::new(), 0);
        completions.into_iter().map(|completion| (completion.fetch_id, completion.result)).collect()
    }

    #[test]
    fn every_job_is_completed_once_even_when_the_helper_panics() {
        let shared = Arc::new(PoolShared::new(Arc::default(), || ()));
        let mut batch = Batch::new(Arc::clone(&shared), queued_jobs(3));
        batch.complete(1, Ok(None));
        batch.complete(1, Err(Failure::Timeout));
        assert!(delivered(&shared).is_empty());
        batch.deliver();
        assert_eq!(delivered(&shared), [(1, Ok(None))]);
        let fetcher = catch_unwind(AssertUnwindSafe(move || {
            batch.complete(2, Ok(None));
            assert_eq!(batch.pending().len(), 7, "on purpose");
        }));
        assert!(fetcher.is_err());
        assert_eq!(delivered(&shared), [(2, Ok(None)), (0, Err(Failure::Internal))]);
    }

    #[test]
    fn jobs_go_back_to_the_front_of_the_queue_while_others_can_serve_them() {
        let shared = Arc::new(PoolShared::new(Arc::default(), || ()));
        let mut batch = Batch::new(Arc::clone(&shared), queued_jobs(4));
        assert!(!batch.requeue(), "nobody is there to take them");
        shared.state().queue.extend(queued_jobs(10).split_off(9));
        shared.record_connect(true);
        batch.complete(1, Ok(None));
        assert!(batch.requeue());
        drop(batch);
        assert_eq!(delivered(&shared), [(1, Ok(None))]);
        let flights: Vec<usize> = shared.state().queue.iter().map(|queued| queued.job.fetch_id).collect();
        assert_eq!(flights, [0, 2, 3, 9]);
    }

    #[test]
    fn who_has_waited_long_enough_is_not_asked_for() {
        let shared = Arc::new(PoolShared::new(Arc::default(), || ()));
        let mut jobs = queued_jobs(3);
        let now = Instant::now();
        jobs[1].expires = now;
        let mut batch = Batch::new(Arc::clone(&shared), jobs);
        batch.fail_expired(now);
        assert_eq!(batch.pending().iter().map(|&(place, _)| place).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(batch.fail_pending(&Failure::Unavailable), 2);
        drop(batch);
        let failed = |fetch, failure| (fetch, Err(failure));
        let expected = [failed(1, Failure::Timeout), failed(0, Failure::Unavailable), failed(2, Failure::Unavailable)];
        assert_eq!(delivered(&shared), expected);
    }
}
