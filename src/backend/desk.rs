//! A batch on its way through a helper: every job in it is completed exactly once, whatever happens to the helper.

use super::{Queued, Shared};
use crate::request::{Completion, Failure, Fetched};
use std::sync::Arc;
use std::time::Instant;

/// What became of one key.
pub(super) type Outcome = Result<Option<Fetched>, Failure>;

/// A job's place on the desk, and its key.
pub(super) type Placed = (usize, Arc<[u8]>);

/// The jobs of a batch. Those that are open when it is dropped, because somebody forgot them or a panic came between,
/// are failed.
pub(super) struct Desk {
    shared: Arc<Shared>,
    /// `None` where the job is done.
    jobs: Vec<Option<Queued>>,
    /// Not delivered yet.
    done: Vec<Completion>,
    /// What Redis said last of why it cannot serve.
    not_ready: Option<String>,
}

impl Desk {
    pub(super) fn new(shared: Arc<Shared>, batch: Vec<Queued>) -> Desk {
        Desk { shared, jobs: batch.into_iter().map(Some).collect(), done: Vec::new(), not_ready: None }
    }

    /// Places and keys of the jobs that are open, in the order in which they came.
    pub(super) fn open(&self) -> Vec<Placed> {
        let open = |(place, queued): (usize, &Option<Queued>)| Some((place, Arc::clone(&queued.as_ref()?.job.key)));
        self.jobs.iter().enumerate().filter_map(open).collect()
    }

    /// How many jobs are open.
    pub(super) fn count_open(&self) -> usize {
        self.jobs.iter().flatten().count()
    }

    /// Completes the job at `place`; if it is done already, nothing happens.
    pub(super) fn complete(&mut self, place: usize, result: Outcome) {
        if let Some(queued) = self.jobs.get_mut(place).and_then(Option::take) {
            if let Err(Failure::NotReady(text)) = &result {
                self.not_ready = Some(text.clone());
            }
            self.done.push(Completion { flight: queued.job.flight, result });
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
    pub(super) fn fail_open(&mut self, failure: &Failure) -> usize {
        let open = self.open();
        open.iter().for_each(|&(place, _)| self.complete(place, Err(failure.clone())));
        open.len()
    }

    /// Puts the jobs that are open back where they came from, if helpers are connected who can serve them. Says whether it has.
    pub(super) fn hand_back(&mut self) -> bool {
        let mut state = self.shared.state();
        let others = state.connected > 0;
        if others {
            // They go first: they have waited longest.
            self.jobs.drain(..).rev().flatten().for_each(|queued| state.queue.push_front(queued));
            self.shared.call_for_help(state);
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

impl Drop for Desk {
    fn drop(&mut self) {
        let forgotten = self.fail_open(&Failure::Internal);
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
    use crate::request::Job;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Duration;

    fn batch(count: usize) -> Vec<Queued> {
        let expires = Instant::now() + Duration::from_secs(1);
        (0..count).map(|flight| Queued { job: Job { flight, key: b"k"[..].into() }, expires }).collect()
    }

    fn delivered(shared: &Shared) -> Vec<(usize, Outcome)> {
        let mut completions = Vec::new();
        shared.news().take(&mut completions, &mut Vec::new(), 0);
        completions.into_iter().map(|completion| (completion.flight, completion.result)).collect()
    }

    #[test]
    fn every_job_is_completed_once_even_when_the_helper_panics() {
        let shared = Arc::new(Shared::new(Arc::default(), || ()));
        let mut desk = Desk::new(Arc::clone(&shared), batch(3));
        desk.complete(1, Ok(None));
        desk.complete(1, Err(Failure::Timeout));
        assert!(delivered(&shared).is_empty());
        desk.deliver();
        assert_eq!(delivered(&shared), [(1, Ok(None))]);
        let helper = catch_unwind(AssertUnwindSafe(move || {
            desk.complete(2, Ok(None));
            assert_eq!(desk.open().len(), 7, "on purpose");
        }));
        assert!(helper.is_err());
        assert_eq!(delivered(&shared), [(2, Ok(None)), (0, Err(Failure::Internal))]);
    }

    #[test]
    fn jobs_go_back_to_the_front_of_the_queue_while_others_can_serve_them() {
        let shared = Arc::new(Shared::new(Arc::default(), || ()));
        let mut desk = Desk::new(Arc::clone(&shared), batch(4));
        assert!(!desk.hand_back(), "nobody is there to take them");
        shared.state().queue.extend(batch(10).split_off(9));
        shared.note_attempt(true);
        desk.complete(1, Ok(None));
        assert!(desk.hand_back());
        drop(desk);
        assert_eq!(delivered(&shared), [(1, Ok(None))]);
        let flights: Vec<usize> = shared.state().queue.iter().map(|queued| queued.job.flight).collect();
        assert_eq!(flights, [0, 2, 3, 9]);
    }

    #[test]
    fn who_has_waited_long_enough_is_not_asked_for() {
        let shared = Arc::new(Shared::new(Arc::default(), || ()));
        let mut jobs = batch(3);
        let now = Instant::now();
        jobs[1].expires = now;
        let mut desk = Desk::new(Arc::clone(&shared), jobs);
        desk.fail_expired(now);
        assert_eq!(desk.open().iter().map(|&(place, _)| place).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(desk.fail_open(&Failure::Unavailable), 2);
        drop(desk);
        let failed = |flight, failure| (flight, Err(failure));
        let expected = [failed(1, Failure::Timeout), failed(0, Failure::Unavailable), failed(2, Failure::Unavailable)];
        assert_eq!(delivered(&shared), expected);
    }
}
