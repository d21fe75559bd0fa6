//! What each helper is to do: serve jobs, connect, or end.
//!
//! Jobs go to helpers that are connected. Those that are not wait apart, and are called only when all others are busy: then one
//! of them connects, and takes jobs once it is connected. Only where nobody is connected does it take them before, so that
//! somebody tells the clients. Helpers look at the queue before they wait, and whoever leaves jobs behind calls another.

use super::{MAX_BATCH, PoolShared, PoolState, QueuedJob, time_until};
use crate::types::Millis;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How an attempt to connect has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectOutcome {
    Connected,
    /// Others are connected and go on.
    Degraded,
    /// Nobody is connected.
    Down,
}

/// What a helper is to do next.
pub(super) enum Task {
    Fetch(Vec<QueuedJob>),
    /// There is work for one more, but others are connected: they get the jobs until it is, too.
    Connect,
    /// Nothing was read for a while: it is to find out whether Redis is there.
    Probe,
    /// The pool closes.
    Exit,
}

impl PoolShared {
    /// Waits for jobs and takes them, up to [`MAX_BATCH`]; where there is a `watch`, no longer than until nothing was read for that
    /// time. A helper that has no connection leaves them to those that have one: when all of these are busy it connects, but not
    /// before `blocked_until`.
    pub(super) fn next_task(&self, connected: bool, blocked_until: Option<Instant>, watch: Option<Duration>) -> Task {
        let mut state = self.state();
        loop {
            if state.closed {
                return Task::Exit;
            }
            let others_serve = !connected && state.connected > 0;
            let wanted = !state.queue.is_empty() && (!others_serve || state.idle == 0);
            let blocked = if others_serve { time_until(blocked_until) } else { Duration::ZERO };
            if !blocked.is_zero() {
                // The call may have come to this helper: one that may connect has to hear it.
                if wanted {
                    self.all_busy.notify_one();
                }
                state = self.none_connected.wait_timeout(state, blocked).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            if wanted && others_serve {
                if state.queue.len() > MAX_BATCH {
                    self.wake_fetcher(state);
                }
                return Task::Connect;
            }
            if wanted {
                break;
            }
            // Whoever is connected looks whether Redis is there; without a connection, one does where nobody has any.
            let quiet = match watch.filter(|_| connected || state.connected == 0) {
                // Whoever may not connect yet has nothing to find out.
                Some(watch) => state
                    .last_request
                    .map_or(Duration::ZERO, |asked| watch.saturating_sub(asked.elapsed()))
                    .max(if connected { Duration::ZERO } else { time_until(blocked_until) }),
                None => Duration::MAX,
            };
            if quiet.is_zero() {
                state.last_request = Some(Instant::now());
                return Task::Probe;
            }
            state.idle += usize::from(connected);
            let event = if connected { &self.job_ready } else { &self.all_busy };
            state = event.wait_timeout(state, quiet).unwrap_or_else(PoisonError::into_inner).0;
            state.idle -= usize::from(connected);
        }
        state.last_request = Some(Instant::now());
        let count = state.queue.len().min(MAX_BATCH);
        let batch = state.queue.drain(..count).collect();
        self.update_status(|redis| redis.queued = state.queue.len());
        self.wake_fetcher(state);
        Task::Fetch(batch)
    }

    /// Wakes somebody for the jobs that wait, if there are any. Helpers look at the queue before they wait: one that is busy needs
    /// no call.
    pub(super) fn wake_fetcher(&self, state: MutexGuard<'_, PoolState>) {
        let (waiting, idle) = (!state.queue.is_empty(), state.idle > 0);
        drop(state);
        if waiting {
            if idle { &self.job_ready } else { &self.all_busy }.notify_one();
        }
    }

    /// Notes whether an attempt to connect has succeeded. Says what that means if it is news.
    pub(super) fn record_connect(&self, connected: bool) -> Option<ConnectOutcome> {
        let mut state = self.state();
        let attempt = match (connected, state.connected) {
            (true, _) => ConnectOutcome::Connected,
            (false, 0) => ConnectOutcome::Down,
            (false, _) => ConnectOutcome::Degraded,
        };
        state.connected += usize::from(connected);
        self.update_status(|redis| {
            redis.connections = state.connected;
            redis.connect_attempts[usize::from(!connected)] += 1;
        });
        (state.logged_outcome.replace(attempt) != Some(attempt)).then_some(attempt)
    }

    /// Returns how many losses were not logged since the last one, if a lost connection is to be
    /// logged now.
    pub(super) fn should_log_loss(&self) -> Option<u64> {
        let now = self.started_at.elapsed().as_millis() as Millis;
        self.state().loss_log.admit(now)
    }

    /// Notes that a helper has lost its connection.
    pub(super) fn record_disconnect(&self) {
        let mut state = self.state();
        state.connected -= 1;
        self.update_status(|redis| {
            redis.connections = state.connected;
            redis.disconnects += 1;
        });
        if state.connected == 0 {
            self.none_connected.notify_all();
            // One of those without a connection is to try again and again from now on.
            self.all_busy.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Pool;
    use super::super::tests::{finished, idle_pool, job, let_them_wait, until};
    use super::*;
    use std::sync::Arc;
    use std::thread::JoinHandle;

    /// Which jobs a helper is to serve.
    fn flights(task: Task) -> Option<Vec<usize>> {
        match task {
            Task::Fetch(batch) => Some(batch.iter().map(|queued| queued.job.fetch_id).collect()),
            Task::Connect | Task::Probe | Task::Exit => None,
        }
    }

    /// A helper that waits for its next task.
    fn waiting(pool: &Pool, connected: bool, blocked_until: Option<Instant>) -> JoinHandle<Task> {
        let shared = Arc::clone(&pool.shared);
        std::thread::spawn(move || shared.next_task(connected, blocked_until, None))
    }

    #[test]
    fn where_the_last_connection_is_lost_somebody_goes_on_trying() {
        let pool = idle_pool(Arc::default());
        pool.shared.record_connect(true);
        let shared = Arc::clone(&pool.shared);
        let trying = std::thread::spawn(move || shared.next_task(false, None, Some(Duration::ZERO)));
        let_them_wait();
        assert!(!trying.is_finished(), "others are connected, and look after it");
        pool.shared.record_disconnect();
        assert!(matches!(finished(trying, "nobody tries"), Task::Probe));
    }

    #[test]
    fn who_is_connected_looks_after_redis_where_nothing_is_read() {
        let pool = idle_pool(Arc::default());
        pool.shared.record_connect(true);
        let watch = Duration::from_millis(20);
        let next = || pool.shared.next_task(true, None, Some(watch));
        assert!(matches!(next(), Task::Probe));
        let begun = Instant::now();
        assert!(matches!(next(), Task::Probe) && begun.elapsed() >= watch);
        pool.submit(&mut vec![job(1)]);
        assert_eq!(flights(next()), Some(vec![1]));
        // One has found its connection dead: the next one looks at once.
        let waiting = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| pool.shared.next_task(true, None, Some(Duration::from_secs(3600))));
            let_them_wait();
            pool.shared.probe_now();
            waiting.join().expect("no panic")
        });
        assert!(matches!(waiting, Task::Probe));
    }

    #[test]
    fn more_jobs_than_a_batch_wake_more_than_one_helper() {
        let pool = idle_pool(Arc::default());
        let fetchers = [(); 2].map(|()| waiting(&pool, true, None));
        let_them_wait();
        pool.submit(&mut (0..MAX_BATCH + 1).map(job).collect());
        for fetcher in fetchers {
            assert!(flights(finished(fetcher, "a job waits and nobody was woken for it")).is_some());
        }
    }

    #[test]
    fn a_helper_that_may_not_connect_leaves_jobs_to_one_that_is_connected() {
        let pool = idle_pool(Arc::default());
        pool.submit(&mut vec![job(1)]);
        let attempts = [true, true, false, false, true, false].map(|connected| pool.shared.record_connect(connected));
        let (connected, no_more) = (Some(ConnectOutcome::Connected), Some(ConnectOutcome::Degraded));
        assert_eq!(attempts, [connected, None, no_more, None, connected, no_more]);
        let blocked = waiting(&pool, false, Some(Instant::now() + Duration::from_secs(3600)));
        // One that may connect does so first.
        assert!(matches!(pool.shared.next_task(false, None, None), Task::Connect));
        assert!(matches!(pool.shared.next_task(false, Some(Instant::now()), None), Task::Connect));
        assert_eq!(flights(pool.shared.next_task(true, None, None)), Some(vec![1]));
        pool.submit(&mut vec![job(2), job(3)]);
        let_them_wait();
        // The connected one is lost too: somebody has to tell the clients.
        (0..3).for_each(|_| pool.shared.record_disconnect());
        assert_eq!(pool.shared.record_connect(false), Some(ConnectOutcome::Down));
        assert_eq!(flights(finished(blocked, "clients wait and nobody tells them")), Some(vec![2, 3]));
    }

    #[test]
    fn a_call_reaches_one_that_may_connect() {
        let pool = idle_pool(Arc::default());
        // Nobody is connected: all wait for work. Those who may not connect are the first to be woken.
        let later = Some(Instant::now() + Duration::from_secs(3600));
        let blocked = [(); 2].map(|()| waiting(&pool, false, later));
        let_them_wait();
        let free = waiting(&pool, false, None);
        let_them_wait();
        // Another one has connected, and is busy.
        pool.shared.record_connect(true);
        pool.submit(&mut vec![job(1)]);
        assert!(matches!(finished(free, "the call is lost on who may not connect"), Task::Connect));
        drop(pool);
        for blocked in blocked {
            assert!(matches!(finished(blocked, "the pool is gone and somebody waits to connect"), Task::Exit));
        }
    }

    #[test]
    fn a_job_wakes_who_is_connected_and_only_if_all_are_busy_another() {
        let pool = idle_pool(Arc::default());
        pool.shared.record_connect(true);
        let (others, connected) = ([(); 3].map(|()| waiting(&pool, false, None)), waiting(&pool, true, None));
        let_them_wait();
        pool.submit(&mut vec![job(1)]);
        assert_eq!(flights(finished(connected, "nobody was woken for the job who can serve it")), Some(vec![1]));
        let_them_wait();
        let mut others = Vec::from(others);
        assert!(others.iter().all(|other| !other.is_finished()), "somebody connects although nothing waits");
        pool.submit(&mut vec![job(2)]);
        until("nobody comes to help", || others.iter().any(JoinHandle::is_finished));
        let helping = others.iter().position(JoinHandle::is_finished).expect("one has come");
        assert!(matches!(finished(others.swap_remove(helping), "it has come"), Task::Connect));
        drop(pool);
        for other in others {
            assert_eq!(flights(finished(other, "the pool is gone and somebody waits for work")), None);
        }
    }
}
