//! Node: one server that a worker reads from, with its queue, its fetchers and its tracker.
//!
//! A hung or lost node delays only its own keys, because nodes share no queue and no fetcher.
//! `task.rs` has the schedule of the fetchers.

use super::QUEUE_LIMIT;
use super::fetcher::Fetcher;
use super::node_set::NodeId;
use super::shared::PoolShared;
use super::slot_map::Primary;
use super::task::ConnectOutcome;
use super::timed_throttle::TimedThrottle;
use super::tracking::Tracker;
use crate::metrics::NodeStatus;
use crate::types::Job;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Job in the queue of a node.
pub(super) struct QueuedJob {
    pub(super) job: Job,
    /// Time at which the first client of the job times out.
    pub(super) expires_at: Instant,
    /// Number of redirections so far.
    pub(super) hops: u8,
    /// True after `ASK`: each command of this job follows an `ASKING`.
    pub(super) is_asking: bool,
}

impl QueuedJob {
    pub(super) fn new(job: Job, expires_at: Instant) -> QueuedJob {
        QueuedJob { job, expires_at, hops: 0, is_asking: false }
    }
}

/// State and signals of one node, shared by its fetchers, its tracker and the event loop.
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) primary: Primary,
    pub(super) pool: Arc<PoolShared>,
    state: Mutex<NodeState>,
    /// Signals connected fetchers: a job is queued, or the node closes.
    pub(super) job_ready: Condvar,
    /// Signals unconnected fetchers: a job is queued and no connected fetcher is idle, or the node
    /// closes.
    pub(super) all_busy: Condvar,
    /// Signals fetchers that back off while others are connected: the last connection is lost, or
    /// the node closes. These fetchers must not take a job only to fail it.
    pub(super) none_connected: Condvar,
}

#[derive(Default)]
pub(super) struct NodeState {
    pub(super) queue: VecDeque<QueuedJob>,
    /// Number of connected fetchers.
    pub(super) connected: usize,
    /// Number of connected fetchers that wait for a job.
    pub(super) idle: usize,
    /// Outcome of connecting that was logged last, so that only a change is logged.
    pub(super) logged_outcome: Option<ConnectOutcome>,
    /// Run id of the server that the last connected fetcher reads from. Reset when a tracking
    /// connection ends, unless it ended because the server differs.
    read_run_id: Option<String>,
    /// Run id of the server that sends invalidations.
    tracking_run_id: Option<String>,
    /// Number of times that a server was left. Connections of an earlier number are replaced.
    generation: u64,
    /// Time of the last batch or probe. `None` makes the next probe due at once.
    pub(super) last_request: Option<Instant>,
    /// Throttle for the log lines about lost connections. Without it each failed read would log
    /// one.
    pub(super) loss_log: TimedThrottle,
    pub(super) closed: bool,
}

impl Node {
    pub(super) fn new(id: NodeId, primary: Primary, pool: Arc<PoolShared>) -> Node {
        let state = NodeState { last_request: Some(Instant::now()), ..NodeState::default() };
        Node {
            id,
            primary,
            pool,
            state: Mutex::new(state),
            job_ready: Condvar::new(),
            all_busy: Condvar::new(),
            none_connected: Condvar::new(),
        }
    }

    /// Starts the fetchers and, with tracking, the tracker. Those that have started end when the
    /// node is closed.
    pub(super) fn start(self: &Arc<Node>) -> io::Result<()> {
        self.pool.add_node_status(self.id, &self.primary.address);
        for number in 0..self.pool.settings.connections {
            // While no fetcher is connected, the first one keeps trying.
            let mut fetcher = Fetcher::new(Arc::clone(self), number == 0);
            std::thread::Builder::new().name(format!("redis-{number}")).spawn(move || {
                // The first fetcher connects at start, so that the log shows whether Redis is
                // reachable.
                if number == 0 {
                    fetcher.preconnect();
                }
                fetcher.run();
            })?;
        }
        if self.pool.settings.tracking {
            let mut tracker = Tracker::new(Arc::clone(self));
            std::thread::Builder::new().name("redis-tracking".into()).spawn(move || tracker.run())?;
        }
        Ok(())
    }

    /// Ends each thread after its present task. Returns the jobs in the queue.
    pub(super) fn close(&self) -> VecDeque<QueuedJob> {
        let mut state = self.state();
        state.closed = true;
        let jobs = std::mem::take(&mut state.queue);
        drop(state);
        self.job_ready.notify_all();
        self.all_busy.notify_all();
        self.none_connected.notify_all();
        jobs
    }

    /// Locks the state. A poisoned lock is usable, because each change is a single move.
    pub(super) fn state(&self) -> MutexGuard<'_, NodeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the published status of the node.
    pub(super) fn update_status(&self, change: impl FnOnce(&mut NodeStatus)) {
        self.pool.update_node_status(self.id, change);
    }

    /// Adds jobs to the end of the queue, up to [`QUEUE_LIMIT`]. Others stay in `jobs`.
    pub(super) fn submit(&self, jobs: &mut Vec<Job>, expires_at: Instant) {
        let mut state = self.state();
        let accepted = jobs.len().min(QUEUE_LIMIT.saturating_sub(state.queue.len()));
        state.queue.extend(jobs.drain(..accepted).map(|job| QueuedJob::new(job, expires_at)));
        self.publish_queued(&state);
        self.wake_fetcher(state);
    }

    /// Publishes the length of the queue.
    pub(super) fn publish_queued(&self, state: &NodeState) {
        self.update_status(|node| node.counters.queued = state.queue.len());
    }

    /// Adds jobs that another node had accepted. There are at most as many as its queue holds.
    pub(super) fn accept(&self, jobs: Vec<QueuedJob>) {
        let mut state = self.state();
        state.queue.extend(jobs);
        self.publish_queued(&state);
        self.wake_fetcher(state);
    }

    /// Adds a redirected job to the end of the queue. Returns it if the queue is full.
    #[must_use = "a job must complete"]
    pub(super) fn push_back(&self, queued: QueuedJob) -> Option<QueuedJob> {
        let mut state = self.state();
        if state.queue.len() >= QUEUE_LIMIT {
            return Some(queued);
        }
        state.queue.push_back(queued);
        self.publish_queued(&state);
        self.wake_fetcher(state);
        None
    }

    /// Makes another connected fetcher probe at once. Called when a fetcher lost its connection and
    /// cannot reconnect, because other connections may be dead too. Each dead one makes the next
    /// fetcher probe.
    pub(super) fn probe_now(&self) {
        self.state().last_request = None;
        self.job_ready.notify_one();
    }

    /// Records the server that a fetcher has connected to; `None` if it is unknown.
    pub(super) fn set_read_run_id(&self, run_id: Option<String>) {
        self.state().read_run_id = run_id;
    }

    /// Records the server that sends invalidations; `None` if it is unknown, or if none does.
    pub(super) fn set_tracking_run_id(&self, run_id: Option<String>) {
        self.state().tracking_run_id = run_id;
    }

    /// Makes the fetchers replace their connections before they read again.
    pub(super) fn leave_server(&self) {
        self.state().generation += 1;
    }

    /// Returns the number to compare with [`Node::is_outdated`].
    pub(super) fn generation(&self) -> u64 {
        self.state().generation
    }

    /// Returns true if a connection of `generation` to the server `run_id` must be replaced. The
    /// server was left, or another one is known to send the invalidations.
    pub(super) fn is_outdated(&self, generation: u64, run_id: Option<&str>) -> bool {
        let state = self.state();
        state.generation != generation || run_id.is_some_and(|id| is_known_and_differs(&state.tracking_run_id, id))
    }

    /// Returns true if fetchers are known to read from another server than `run_id`.
    pub(super) fn reading_mismatch(&self, run_id: Option<&str>) -> bool {
        run_id.is_some_and(|id| is_known_and_differs(&self.state().read_run_id, id))
    }

    /// Sleeps until `until`, if it is set. Returns false if the node has closed.
    pub(super) fn sleep_until(&self, until: Option<Instant>) -> bool {
        let mut state = self.state();
        while !state.closed {
            let left = time_until(until);
            if left.is_zero() {
                return true;
            }
            state = self.none_connected.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }
}

/// Returns the time left until `until`. Zero if it has passed, or is `None`.
pub(super) fn time_until(until: Option<Instant>) -> Duration {
    until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
}

/// Returns true if `known` is set and differs from `run_id`.
fn is_known_and_differs(known: &Option<String>, run_id: &str) -> bool {
    known.as_ref().is_some_and(|known| known != run_id)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::backend::slot_map::SlotMap;
    use crate::backend::tests::{job, pool_shared};
    use crate::backend::{MAX_BATCH, task::Task};
    use crate::upstream::UpstreamAddress;
    use std::thread::JoinHandle;

    /// Returns a node without threads: jobs stay in its queue.
    pub(in crate::backend) fn node_without_threads() -> Arc<Node> {
        let address = UpstreamAddress::Tcp("h".into(), 1);
        let pool = pool_shared(Arc::default());
        let map = SlotMap::of_one(Primary { address, id: None });
        let (id, primary) = pool.nodes().set.prepare(&map).remove(0);
        Arc::new(Node::new(id, primary, pool))
    }

    /// Returns a job as it is queued.
    pub(in crate::backend) fn queued(fetch_id: usize) -> QueuedJob {
        QueuedJob::new(job(fetch_id), Instant::now() + Duration::from_secs(1))
    }

    /// Gives threads time to start waiting. A slower thread weakens the test but does not fail it.
    pub(in crate::backend) fn let_threads_wait() {
        std::thread::sleep(Duration::from_millis(100));
    }

    /// Returns the result of a thread. Fails with `message` if the thread does not end within 10 s.
    pub(in crate::backend) fn join_in_time<T>(thread: JoinHandle<T>, message: &str) -> T {
        wait_until(message, || thread.is_finished());
        thread.join().expect("the thread panicked")
    }

    /// Waits until `is_done` returns true. Fails with `message` after 10 s.
    pub(in crate::backend) fn wait_until(message: &str, is_done: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_done() {
            assert!(Instant::now() < deadline, "{message}");
            std::thread::yield_now();
        }
    }

    /// Jobs above the limit of the queue stay with the caller, and fit after a fetcher took a
    /// batch.
    #[test]
    fn full_queue_returns_excess_jobs() {
        let node = node_without_threads();
        let mut jobs: Vec<Job> = (0..QUEUE_LIMIT + 3).map(job).collect();
        node.submit(&mut jobs, Instant::now());
        let ids: Vec<usize> = jobs.iter().map(|job| job.fetch_id).collect();
        assert_eq!(ids, [QUEUE_LIMIT, QUEUE_LIMIT + 1, QUEUE_LIMIT + 2]);
        let Task::Fetch(batch) = node.next_task(true, None, None) else { panic!("no batch although jobs are queued") };
        assert!(batch.iter().map(|queued| queued.job.fetch_id).eq(0..MAX_BATCH));
        node.submit(&mut jobs, Instant::now());
        assert!(jobs.is_empty());
    }

    /// Closing a node ends the sleep of a thread that waits to connect, and returns its jobs.
    #[test]
    fn sleep_ends_when_node_closes() {
        let node = node_without_threads();
        assert!(node.sleep_until(None) && node.sleep_until(Some(Instant::now())));
        let sleeper = Arc::clone(&node);
        let later = Instant::now() + Duration::from_secs(3600);
        let sleeping = std::thread::spawn(move || sleeper.sleep_until(Some(later)));
        let_threads_wait();
        node.submit(&mut vec![job(7)], Instant::now());
        assert_eq!(node.close().iter().map(|queued| queued.job.fetch_id).collect::<Vec<_>>(), [7]);
        assert!(!join_in_time(sleeping, "the thread sleeps although the node has closed"));
    }
}
