//! Backend: reads keys from Redis and receives its invalidations. The only module that uses
//! `redis`.
//!
//! The event loop submits jobs to a bounded queue. Fetcher threads, each with one blocking
//! connection, take them, and a tracking thread receives invalidations. Both put their results into
//! the `Inbox`, which wakes the loop.
//!
//! A fetcher takes all queued jobs, up to [`MAX_BATCH`], and reads them in one round trip; long
//! values take more. So batches grow under load, and an idle proxy adds no delay. Each accepted job
//! completes exactly once, also if the fetcher panics (job-completes-once). Locks are held only to
//! move jobs and inbox items, never during I/O (loop-never-blocks).

mod access;
mod availability;
mod batch;
mod check;
mod connect;
mod fetcher;
mod freshness;
mod handshake;
mod inbox;
mod node_set;
mod reader;
mod role_watch;
mod slot_map;
mod stream;
mod subscription;
mod task;
#[cfg(not(feature = "tls"))]
#[path = "tls/absent.rs"]
mod tls;
#[cfg(feature = "tls")]
mod tls;
mod tracking;
mod wire;

use crate::log_throttle::LogThrottle;
use crate::metrics::{BATCH_SIZE_BUCKETS, RedisStatus, TrackingState, WorkerSlot};
use crate::types::{Completion, Invalidation, Job};
pub use access::RedisAccess;
pub use check::{CheckStep, Verdict, check_redis};
use fetcher::Fetcher;
use freshness::{Freshness, FreshnessUpdate};
use inbox::{Inbox, MAX_PENDING_INVALIDATIONS};
pub use node_set::{Installation, NodeId, NodeSet};
pub use reader::Reading;
pub use slot_map::{Primary, SLOTS, SlotMap, slot_of};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use task::{ConnectOutcome, Task};
use tracking::Tracker;

/// Most queued jobs: one for each of 10,000 client connections. Further jobs fail at once, because
/// they would wait longer than their clients do.
pub const QUEUE_LIMIT: usize = 10_000;

/// Most keys read in one round trip. Beyond about a hundred, a larger batch saves little and leaves
/// other fetchers idle.
pub const MAX_BATCH: usize = 128;

// The histogram of batch sizes ends with the largest batch.
const _: () = assert!(BATCH_SIZE_BUCKETS[BATCH_SIZE_BUCKETS.len() - 1] == MAX_BATCH as u64);

/// Invalidations added to the inbox under one lock (some 10 us).
const INVALIDATIONS_PER_LOCK: usize = 1024;

/// Interval of probes while no keys are read, so that readiness and metrics stay current.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Delay until `PTTL` is tried again after Redis denied it. An operator may have granted the
/// permission.
const TTL_RETRY_DELAY: Duration = Duration::from_secs(30);

/// Access to Redis, and limits.
#[derive(Clone)]
pub struct BackendConfig {
    /// Address, credentials and TLS settings.
    pub access: Arc<RedisAccess>,
    /// Number of fetcher threads, each with one connection.
    pub connections: usize,
    /// Bounds connecting, the handshake and each round trip.
    pub timeout: Duration,
    /// Lifetime of a cache entry, stated in the freshness guarantee.
    pub cache_ttl: Duration,
    /// True to receive invalidations (`CLIENT TRACKING`).
    pub tracking: bool,
    /// Longest value that is read, in bytes.
    pub max_value_bytes: usize,
}

/// Handle of the event loop to its fetchers. Dropping it ends each fetcher after its present task.
pub struct Pool {
    shared: Arc<PoolShared>,
    timeout: Duration,
}

/// Job in the queue, with the time at which its first client times out.
struct QueuedJob {
    job: Job,
    expires_at: Instant,
}

/// State and signals shared by the event loop, the fetchers and the tracking thread.
struct PoolShared {
    state: Mutex<PoolState>,
    /// Signals connected fetchers: a job is queued, or the pool closes.
    job_ready: Condvar,
    /// Signals unconnected fetchers: a job is queued and no connected fetcher is idle, or the pool
    /// closes.
    all_busy: Condvar,
    /// Signals fetchers that back off while others are connected: the last connection is lost, or
    /// the pool closes. These fetchers must not take a job only to fail it.
    none_connected: Condvar,
    inbox: Mutex<Inbox>,
    /// True if the inbox may have items. Changed only under the lock of `inbox`.
    inbox_ready: AtomicBool,
    /// Slot of the worker, where the status of Redis is published.
    slot: Arc<WorkerSlot>,
    /// Start of the time that is passed to the log throttle.
    started_at: Instant,
    wake: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct PoolState {
    queue: VecDeque<QueuedJob>,
    /// Number of connected fetchers.
    connected: usize,
    /// Number of connected fetchers that wait for a job.
    idle: usize,
    /// Outcome of connecting that was logged last, so that only a change is logged.
    logged_outcome: Option<ConnectOutcome>,
    freshness: Freshness,
    /// Run id of the server that the last connected fetcher reads from. Reset when a tracking
    /// connection ends, unless it ended because the server differs.
    read_run_id: Option<String>,
    /// Run id of the server that sends invalidations.
    tracking_run_id: Option<String>,
    /// Number of times that a server was left. Connections of an earlier number are replaced.
    generation: u64,
    /// Time of the last batch or probe. `None` makes the next probe due at once.
    last_request: Option<Instant>,
    /// End of the time in which keys are read without `PTTL`.
    skip_ttl_until: Option<Instant>,
    /// Throttle for the log lines about lost connections. Without it each failed read would log
    /// one.
    loss_log: LogThrottle,
    /// Throttle for the log line about redirections to other nodes of a cluster.
    redirection_log: LogThrottle,
    closed: bool,
}

impl Pool {
    /// Starts the fetchers and, with tracking, the tracking thread. They publish the status of
    /// Redis in `worker_slot`. They call `wake` when the loop must drain its inbox; `wake` must not
    /// block.
    pub fn start(
        settings: &BackendConfig,
        worker_slot: Arc<WorkerSlot>,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Pool> {
        let pool = Pool { shared: Arc::new(PoolShared::new(worker_slot, wake)), timeout: settings.timeout };
        let freshness = Freshness { cache_ttl: settings.cache_ttl, ..Freshness::default() };
        pool.shared.update_status(|redis| {
            redis.set_unavailable(Some("not connected to Redis yet"), Instant::now());
            redis.freshness = freshness.to_string();
            let tracking = if settings.tracking { TrackingState::Lost } else { TrackingState::Off };
            redis.set_tracking(tracking, Instant::now());
        });
        pool.shared.state().last_request = Some(Instant::now());
        pool.shared.state().freshness = freshness.clone();
        for number in 0..settings.connections {
            // While no fetcher is connected, the first one keeps trying.
            let mut fetcher = Fetcher::new(settings, Arc::clone(&pool.shared), number == 0);
            std::thread::Builder::new().name(format!("redis-{number}")).spawn(move || {
                // The first fetcher connects at start, so that the log shows whether Redis is
                // reachable.
                if number == 0 {
                    fetcher.preconnect();
                }
                fetcher.run();
            })?;
        }
        if settings.tracking {
            let mut tracker = Tracker::new(settings, Arc::clone(&pool.shared));
            std::thread::Builder::new().name("redis-tracking".into()).spawn(move || tracker.run())?;
        } else {
            freshness.log();
        }
        Ok(pool)
    }

    /// Moves jobs from `jobs` to the queue. Jobs that exceed [`QUEUE_LIMIT`] stay in `jobs`.
    pub fn submit(&self, jobs: &mut Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        let expires_at = Instant::now() + self.timeout;
        let mut state = self.shared.state();
        let accepted = jobs.len().min(QUEUE_LIMIT.saturating_sub(state.queue.len()));
        state.queue.extend(jobs.drain(..accepted).map(|job| QueuedJob { job, expires_at }));
        self.shared.update_status(|redis| redis.queued = state.queue.len());
        self.shared.wake_fetcher(state);
    }

    /// Moves all completions into `completions`, and up to `max` invalidations into
    /// `invalidations`. Returns true if some remain. The loop must then call again without waiting
    /// for a wakeup.
    pub fn drain_inbox(
        &self,
        completions: &mut Vec<Completion>,
        invalidations: &mut Vec<Invalidation>,
        max: usize,
    ) -> bool {
        // In most ticks the inbox is empty, and this check avoids the lock.
        if !self.shared.inbox_ready.load(Ordering::Acquire) {
            return false;
        }
        let mut inbox = self.shared.inbox();
        let more = inbox.drain(completions, invalidations, max);
        self.shared.inbox_ready.store(more, Ordering::Relaxed);
        more
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.job_ready.notify_all();
        self.shared.all_busy.notify_all();
        self.shared.none_connected.notify_all();
    }
}

impl PoolShared {
    fn new(worker_slot: Arc<WorkerSlot>, wake: impl Fn() + Send + Sync + 'static) -> PoolShared {
        PoolShared {
            state: Mutex::default(),
            job_ready: Condvar::new(),
            all_busy: Condvar::new(),
            none_connected: Condvar::new(),
            inbox: Mutex::default(),
            inbox_ready: AtomicBool::new(false),
            slot: worker_slot,
            started_at: Instant::now(),
            wake: Box::new(wake),
        }
    }

    /// Locks the state. A poisoned lock is usable, because each change is a single move.
    fn state(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the published status of Redis.
    fn update_status(&self, change: impl FnOnce(&mut RedisStatus)) {
        change(&mut self.slot.redis());
    }

    /// Makes another connected fetcher probe at once. Called when a fetcher lost its connection and
    /// cannot reconnect, because other connections may be dead too. Each dead one makes the next
    /// fetcher probe.
    fn probe_now(&self) {
        self.state().last_request = None;
        self.job_ready.notify_one();
    }

    /// Records the server that a fetcher has connected to; `None` if it is unknown.
    fn set_read_run_id(&self, run_id: Option<String>) {
        self.state().read_run_id = run_id;
    }

    /// Records the server that sends invalidations; `None` if it is unknown, or if none does.
    fn set_tracking_run_id(&self, run_id: Option<String>) {
        self.state().tracking_run_id = run_id;
    }

    /// Makes the fetchers replace their connections before they read again.
    fn leave_server(&self) {
        self.state().generation += 1;
    }

    /// Returns the number to compare with [`PoolShared::is_outdated`].
    fn generation(&self) -> u64 {
        self.state().generation
    }

    /// Returns true if a connection of `generation` to the server `run_id` must be replaced. The
    /// server was left, or another one is known to send the invalidations.
    fn is_outdated(&self, generation: u64, run_id: Option<&str>) -> bool {
        let state = self.state();
        state.generation != generation || run_id.is_some_and(|id| is_known_and_differs(&state.tracking_run_id, id))
    }

    /// Returns true if fetchers are known to read from another server than `run_id`.
    fn reading_mismatch(&self, run_id: Option<&str>) -> bool {
        run_id.is_some_and(|id| is_known_and_differs(&self.state().read_run_id, id))
    }

    /// Returns true if fetchers send `PTTL` with each read.
    fn reads_ttl(&self) -> bool {
        self.state().skip_ttl_until.is_none_or(|until| until <= Instant::now())
    }

    /// Records that Redis replies to `PTTL`, or the reason why it denies it.
    fn set_ttl_support(&self, result: Result<(), String>) {
        self.update_freshness(|state| {
            state.skip_ttl_until = result.is_err().then(|| Instant::now() + TTL_RETRY_DELAY);
            state.freshness.expiry.update(result)
        });
    }

    /// Records that invalidations are received, or the reason why not.
    fn set_tracking(&self, result: Result<(), String>) {
        self.update_freshness(|state| state.freshness.tracking.update(result));
    }

    /// Publishes and logs the freshness if `change` has changed it. Logs without the lock, because
    /// the event loop takes the same lock and must not wait for the log.
    fn update_freshness(&self, change: impl FnOnce(&mut PoolState) -> FreshnessUpdate) {
        let mut state = self.state();
        let update = change(&mut state);
        if update != FreshnessUpdate::Unchanged {
            self.update_status(|redis| state.freshness.publish(redis, Instant::now()));
        }
        let changed = (update == FreshnessUpdate::Changed).then(|| state.freshness.clone());
        drop(state);
        if let Some(freshness) = changed {
            freshness.log();
        }
    }

    /// Sleeps until `until`, if it is set. Returns false if the pool has closed.
    fn sleep_until(&self, until: Option<Instant>) -> bool {
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

    fn is_closed(&self) -> bool {
        self.state().closed
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self, completions: Vec<Completion>) {
        let mut inbox = self.inbox();
        let needs_wakeup = inbox.push_completions(completions);
        self.notify_loop(inbox, needs_wakeup);
    }

    /// Makes added items visible to the loop. Releases the inbox and wakes the loop if it must.
    fn notify_loop(&self, inbox: MutexGuard<'_, Inbox>, needs_wakeup: bool) {
        self.inbox_ready.store(true, Ordering::Release);
        drop(inbox);
        if needs_wakeup {
            (self.wake)();
        }
    }

    /// Adds invalidations to the inbox. More than fit become one [`Invalidation::All`].
    fn push_invalidations(&self, mut invalidations: Vec<Invalidation>) {
        let mut overflowed = invalidations.len() > MAX_PENDING_INVALIDATIONS;
        if overflowed {
            invalidations = vec![Invalidation::All];
        }
        let mut invalidations = invalidations.into_iter();
        while invalidations.len() > 0 {
            let mut inbox = self.inbox();
            // The loop may wait for this lock, so each hold is short and logs nothing.
            invalidations
                .by_ref()
                .take(INVALIDATIONS_PER_LOCK)
                .for_each(|invalidation| overflowed |= inbox.push_invalidation(invalidation));
            let needs_wakeup = inbox.needs_wakeup();
            self.notify_loop(inbox, needs_wakeup);
        }
        if overflowed {
            log::warn!("invalidation backlog overflow: cache flushed");
        }
    }
}

/// Returns the time left until `until`. Zero if it has passed, or is `None`.
fn time_until(until: Option<Instant>) -> Duration {
    until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
}

/// Returns true if `known` is set and differs from `run_id`.
fn is_known_and_differs(known: &Option<String>, run_id: &str) -> bool {
    known.as_ref().is_some_and(|known| known != run_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Failure;
    use freshness::Guarantee;
    use std::sync::atomic::AtomicUsize;
    use std::thread::JoinHandle;

    /// Returns a pool without fetchers: jobs stay in its queue.
    pub(super) fn pool_without_fetchers(wakeups: Arc<AtomicUsize>) -> Pool {
        let wake = move || {
            wakeups.fetch_add(1, Ordering::Relaxed);
        };
        Pool { shared: Arc::new(PoolShared::new(Arc::default(), wake)), timeout: Duration::from_secs(1) }
    }

    pub(super) fn job(fetch_id: usize) -> Job {
        Job { fetch_id, key: b"k"[..].into() }
    }

    fn completion(fetch_id: usize) -> Completion {
        Completion { fetch_id, result: Err(Failure::Timeout), may_cache: true }
    }

    /// Several deliveries between two drains wake the loop once.
    #[test]
    fn deliveries_before_drain_wake_once() {
        let wakeups = Arc::new(AtomicUsize::new(0));
        let pool = pool_without_fetchers(Arc::clone(&wakeups));
        let mut taken = Vec::new();
        for round in 1..=3 {
            pool.shared.deliver(vec![completion(1), completion(2)]);
            pool.shared.deliver(vec![completion(3)]);
            assert_eq!(wakeups.load(Ordering::Relaxed), round);
            assert!(!pool.drain_inbox(&mut taken, &mut Vec::new(), 1));
            assert_eq!(taken.len(), round * 3);
        }
    }

    /// Jobs above the limit of the queue stay with the caller, and fit after a fetcher took a
    /// batch.
    #[test]
    fn full_queue_returns_excess_jobs() {
        let pool = pool_without_fetchers(Arc::default());
        let mut jobs: Vec<Job> = (0..QUEUE_LIMIT + 3).map(job).collect();
        pool.submit(&mut jobs);
        assert_eq!(
            jobs.iter().map(|job| job.fetch_id).collect::<Vec<_>>(),
            [QUEUE_LIMIT, QUEUE_LIMIT + 1, QUEUE_LIMIT + 2]
        );
        let Task::Fetch(batch) = pool.shared.next_task(true, None, None) else {
            panic!("no batch although jobs are queued")
        };
        assert!(batch.iter().map(|queued| queued.job.fetch_id).eq(0..MAX_BATCH));
        pool.submit(&mut jobs);
        assert!(jobs.is_empty());
    }

    /// Gives threads time to start waiting. A slower thread weakens the test but does not fail it.
    pub(super) fn let_threads_wait() {
        std::thread::sleep(Duration::from_millis(100));
    }

    /// Returns the result of a thread. Fails with `message` if the thread does not end within 10 s.
    pub(super) fn join_in_time<T>(thread: JoinHandle<T>, message: &str) -> T {
        wait_until(message, || thread.is_finished());
        thread.join().expect("the thread panicked")
    }

    /// Waits until `is_done` returns true. Fails with `message` after 10 s.
    pub(super) fn wait_until(message: &str, is_done: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_done() {
            assert!(Instant::now() < deadline, "{message}");
            std::thread::yield_now();
        }
    }

    /// After Redis denied `PTTL`, keys are read without it until the retry delay has passed.
    #[test]
    fn denied_ttl_is_retried_after_delay() {
        let shared = PoolShared::new(Arc::default(), || ());
        assert!(shared.reads_ttl());
        shared.set_ttl_support(Err("NOPERM".into()));
        assert!(!shared.reads_ttl());
        assert!(matches!(shared.state().freshness.expiry, Guarantee::Inactive { .. }));
        let until = shared.state().skip_ttl_until.replace(Instant::now()).expect("no time of the next try");
        assert!(until > Instant::now() + TTL_RETRY_DELAY / 2);
        assert!(shared.reads_ttl());
        shared.set_ttl_support(Ok(()));
        assert!(shared.reads_ttl());
        assert_eq!(shared.state().freshness.expiry, Guarantee::Active);
    }

    /// Dropping the pool ends the sleep of a thread that waits to connect.
    #[test]
    fn sleep_ends_when_pool_closes() {
        let pool = pool_without_fetchers(Arc::default());
        assert!(pool.shared.sleep_until(None) && pool.shared.sleep_until(Some(Instant::now())));
        let shared = Arc::clone(&pool.shared);
        let later = Instant::now() + Duration::from_secs(3600);
        let sleeping = std::thread::spawn(move || shared.sleep_until(Some(later)));
        let_threads_wait();
        drop(pool);
        assert!(!join_in_time(sleeping, "the thread sleeps although the pool has closed"));
    }
}
