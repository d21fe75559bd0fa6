//! Scheduler of the fetchers: decides whether a fetcher reads a batch, connects, probes or exits.
//!
//! Jobs go to connected fetchers. The others wait separately and are woken only when all connected
//! fetchers are busy. One of them then connects, and takes jobs once it is connected. If no fetcher
//! is connected, an unconnected one takes jobs too, so that the clients get an error.
//!
//! A fetcher checks the queue before it waits. One that leaves jobs in the queue wakes another.

use super::MAX_BATCH;
use super::node::{Node, NodeState, QueuedJob, time_until};
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Outcome of an attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectOutcome {
    Connected,
    /// Failed, while other fetchers are connected.
    Degraded,
    /// Failed, and no fetcher is connected.
    Down,
}

/// Next task of a fetcher.
pub(super) enum Task {
    /// Read these jobs.
    Fetch(Vec<QueuedJob>),
    /// Connect, because all connected fetchers are busy. They get the jobs until then.
    Connect,
    /// Check that Redis answers, because no keys were read for a while.
    Probe,
    /// End the thread, because the node closes.
    Exit,
}

impl Node {
    /// Waits for the next task of a fetcher. Takes up to [`MAX_BATCH`] jobs.
    ///
    /// An unconnected fetcher leaves the jobs to connected ones. When these are all busy it
    /// connects, but not before `blocked_until`. With a `probe_interval` it probes once there was
    /// no request for so long.
    pub(super) fn next_task(
        &self,
        connected: bool,
        blocked_until: Option<Instant>,
        probe_interval: Option<Duration>,
    ) -> Task {
        let mut state = self.state();
        loop {
            if state.closed {
                return Task::Exit;
            }
            let only_others_connected = !connected && state.connected > 0;
            let is_needed = !state.queue.is_empty() && (!only_others_connected || state.idle == 0);
            let blocked_for = if only_others_connected { time_until(blocked_until) } else { Duration::ZERO };
            if !blocked_for.is_zero() {
                // This fetcher may have consumed the signal. Pass it on to one that may connect.
                if is_needed {
                    self.all_busy.notify_one();
                }
                state = self.none_connected.wait_timeout(state, blocked_for).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            if is_needed && only_others_connected {
                if state.queue.len() > MAX_BATCH {
                    self.wake_fetcher(state);
                }
                return Task::Connect;
            }
            if is_needed {
                break;
            }
            // A connected fetcher probes. An unconnected one probes only if no fetcher is
            // connected.
            let probe_in = match probe_interval.filter(|_| connected || state.connected == 0) {
                // A fetcher that backs off must not connect, so it cannot probe earlier.
                Some(interval) => state
                    .last_request
                    .map_or(Duration::ZERO, |requested_at| interval.saturating_sub(requested_at.elapsed()))
                    .max(if connected { Duration::ZERO } else { time_until(blocked_until) }),
                None => Duration::MAX,
            };
            if probe_in.is_zero() {
                state.last_request = Some(Instant::now());
                return Task::Probe;
            }
            state.idle += usize::from(connected);
            let signal = if connected { &self.job_ready } else { &self.all_busy };
            state = signal.wait_timeout(state, probe_in).unwrap_or_else(PoisonError::into_inner).0;
            state.idle -= usize::from(connected);
        }
        state.last_request = Some(Instant::now());
        let count = state.queue.len().min(MAX_BATCH);
        let batch = state.queue.drain(..count).collect();
        self.publish_queued(&state);
        self.wake_fetcher(state);
        Task::Fetch(batch)
    }

    /// Wakes a waiting fetcher if jobs are queued. A busy fetcher needs no signal, because it
    /// checks the queue before it waits.
    pub(super) fn wake_fetcher(&self, state: MutexGuard<'_, NodeState>) {
        let (has_jobs, has_idle) = (!state.queue.is_empty(), state.idle > 0);
        drop(state);
        if has_jobs {
            if has_idle { &self.job_ready } else { &self.all_busy }.notify_one();
        }
    }

    /// Records the result of an attempt to connect. Returns the outcome if it differs from the one
    /// that was logged last.
    pub(super) fn record_connect(&self, connected: bool) -> Option<ConnectOutcome> {
        let mut state = self.state();
        let outcome = match (connected, state.connected) {
            (true, _) => ConnectOutcome::Connected,
            (false, 0) => ConnectOutcome::Down,
            (false, _) => ConnectOutcome::Degraded,
        };
        state.connected += usize::from(connected);
        self.update_status(|node| {
            node.counters.connections = state.connected;
            node.counters.connect_attempts[usize::from(!connected)] += 1;
        });
        (state.logged_outcome.replace(outcome) != Some(outcome)).then_some(outcome)
    }

    /// Returns the number of losses suppressed since the last log line, if a line may be logged
    /// now.
    pub(super) fn should_log_loss(&self) -> Option<u64> {
        self.state().loss_log.admit()
    }

    /// Records that a fetcher has lost its connection.
    pub(super) fn record_disconnect(&self) {
        let mut state = self.state();
        state.connected -= 1;
        self.update_status(|node| {
            node.counters.connections = state.connected;
            node.counters.disconnects += 1;
        });
        if state.connected == 0 {
            self.none_connected.notify_all();
            // One of the unconnected fetchers keeps trying to connect from now on.
            self.all_busy.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::node::tests::{join_in_time, let_threads_wait, node_without_threads, wait_until};
    use super::super::tests::job;
    use super::*;
    use std::sync::Arc;
    use std::thread::JoinHandle;

    /// Returns the fetch ids of a task's jobs, or `None` if it is another task.
    fn fetch_ids(task: Task) -> Option<Vec<usize>> {
        match task {
            Task::Fetch(batch) => Some(batch.iter().map(|queued| queued.job.fetch_id).collect()),
            Task::Connect | Task::Probe | Task::Exit => None,
        }
    }

    fn submit(node: &Node, fetch_ids: impl IntoIterator<Item = usize>) {
        node.submit(&mut fetch_ids.into_iter().map(job).collect(), Instant::now());
    }

    /// Starts a fetcher that waits for its next task.
    fn spawn_fetcher(node: &Arc<Node>, connected: bool, blocked_until: Option<Instant>) -> JoinHandle<Task> {
        let shared = Arc::clone(node);
        std::thread::spawn(move || shared.next_task(connected, blocked_until, None))
    }

    /// When the last connection is lost, an unconnected fetcher starts to probe.
    #[test]
    fn last_lost_connection_starts_probing() {
        let node = node_without_threads();
        node.record_connect(true);
        let shared = Arc::clone(&node);
        let fetcher = std::thread::spawn(move || shared.next_task(false, None, Some(Duration::ZERO)));
        let_threads_wait();
        assert!(!fetcher.is_finished(), "a connected fetcher probes, not this one");
        node.record_disconnect();
        assert!(matches!(join_in_time(fetcher, "no fetcher tries to connect"), Task::Probe));
    }

    /// A connected fetcher probes Redis after an interval without reads, or at once on request.
    #[test]
    fn connected_fetcher_probes_idle_redis() {
        let node = node_without_threads();
        node.record_connect(true);
        let interval = Duration::from_millis(20);
        let next = || node.next_task(true, None, Some(interval));
        assert!(matches!(next(), Task::Probe));
        let started_at = Instant::now();
        assert!(matches!(next(), Task::Probe) && started_at.elapsed() >= interval);
        submit(&node, [1]);
        assert_eq!(fetch_ids(next()), Some(vec![1]));
        // Another fetcher lost its connection, so this one probes at once.
        let task = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| node.next_task(true, None, Some(Duration::from_secs(3600))));
            let_threads_wait();
            node.probe_now();
            waiting.join().expect("the fetcher panicked")
        });
        assert!(matches!(task, Task::Probe));
    }

    /// More jobs than fit into one batch wake a second fetcher.
    #[test]
    fn excess_jobs_wake_second_fetcher() {
        let node = node_without_threads();
        let fetchers = [(); 2].map(|()| spawn_fetcher(&node, true, None));
        let_threads_wait();
        submit(&node, 0..MAX_BATCH + 1);
        for fetcher in fetchers {
            assert!(fetch_ids(join_in_time(fetcher, "no fetcher was woken for the second batch")).is_some());
        }
    }

    /// A fetcher that backs off leaves jobs to connected ones, and takes them when none is left.
    #[test]
    fn fetcher_in_backoff_takes_no_jobs() {
        let node = node_without_threads();
        submit(&node, [1]);
        let outcomes = [true, true, false, false, true, false].map(|connected| node.record_connect(connected));
        let (connected, degraded) = (Some(ConnectOutcome::Connected), Some(ConnectOutcome::Degraded));
        assert_eq!(outcomes, [connected, None, degraded, None, connected, degraded]);
        let blocked = spawn_fetcher(&node, false, Some(Instant::now() + Duration::from_secs(3600)));
        // A fetcher that may connect does so first.
        assert!(matches!(node.next_task(false, None, None), Task::Connect));
        assert!(matches!(node.next_task(false, Some(Instant::now()), None), Task::Connect));
        assert_eq!(fetch_ids(node.next_task(true, None, None)), Some(vec![1]));
        submit(&node, [2, 3]);
        let_threads_wait();
        // All connections are lost, so the clients must get an error.
        (0..3).for_each(|_| node.record_disconnect());
        assert_eq!(node.record_connect(false), Some(ConnectOutcome::Down));
        assert_eq!(fetch_ids(join_in_time(blocked, "no fetcher takes the jobs")), Some(vec![2, 3]));
    }

    /// A signal that wakes a fetcher in backoff is passed on to one that may connect.
    #[test]
    fn signal_reaches_fetcher_that_may_connect() {
        let node = node_without_threads();
        // No fetcher is connected, so all wait for jobs. Those in backoff wait longest and are
        // woken first.
        let later = Some(Instant::now() + Duration::from_secs(3600));
        let blocked = [(); 2].map(|()| spawn_fetcher(&node, false, later));
        let_threads_wait();
        let free = spawn_fetcher(&node, false, None);
        let_threads_wait();
        // Another fetcher has connected, and is busy.
        node.record_connect(true);
        submit(&node, [1]);
        assert!(matches!(join_in_time(free, "a fetcher in backoff consumed the signal"), Task::Connect));
        drop(node.close());
        for blocked in blocked {
            assert!(matches!(join_in_time(blocked, "a fetcher waits although the node has closed"), Task::Exit));
        }
    }

    /// A job wakes a connected fetcher. Only if all of these are busy, an unconnected one connects.
    #[test]
    fn job_wakes_connected_fetcher_first() {
        let node = node_without_threads();
        node.record_connect(true);
        let others = [(); 3].map(|()| spawn_fetcher(&node, false, None));
        let connected = spawn_fetcher(&node, true, None);
        let_threads_wait();
        submit(&node, [1]);
        assert_eq!(fetch_ids(join_in_time(connected, "the connected fetcher was not woken")), Some(vec![1]));
        let_threads_wait();
        let mut others = Vec::from(others);
        assert!(others.iter().all(|other| !other.is_finished()), "a fetcher connects although no job is queued");
        submit(&node, [2]);
        wait_until("no unconnected fetcher was woken", || others.iter().any(JoinHandle::is_finished));
        let woken = others.iter().position(JoinHandle::is_finished).expect("no fetcher has ended");
        assert!(matches!(join_in_time(others.swap_remove(woken), "the fetcher has not ended"), Task::Connect));
        drop(node.close());
        for other in others {
            assert_eq!(fetch_ids(join_in_time(other, "a fetcher waits although the node has closed")), None);
        }
    }
}
