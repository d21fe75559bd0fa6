//! Redis, and the only place that knows it: a bounded queue of jobs, a few helper threads with a blocking connection
//! each, perhaps one more thread that hears of changes, and a list of news that wakes the loop.
//!
//! A helper takes all jobs that wait, up to [`MAX_BATCH`], and reads them in one round trip, but for long values; so under
//! load the batches grow by themselves, and an idle proxy has no delay added. Every accepted job is completed exactly
//! once, whatever happens to the helper. Locks are held only to move jobs and news, never while a thread does I/O.

mod availability;
mod batch;
mod connect;
mod fetcher;
mod freshness;
mod handshake;
mod inbox;
mod reader;
mod task;
mod tracking;
mod wire;

use crate::log_throttle::LogThrottle;
use crate::metrics::{RedisStatus, TrackingState, WorkerSlot};
use crate::types::{Completion, Invalidation, Job};
use fetcher::Fetcher;
use freshness::{Freshness, FreshnessUpdate};
use inbox::{Inbox, MAX_PENDING_INVALIDATIONS};
pub use reader::Reading;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use task::{ConnectOutcome, Task};
use tracking::Tracker;

/// Most jobs that wait for a helper. One for each of the 10,000 connections that a loop takes; what goes beyond it is
/// refused at once, because it would wait longer than its client does.
pub const QUEUE_LIMIT: usize = 10_000;

/// Most keys of one round trip. Beyond some hundred the cost of a round trip is spread thin enough, and a long batch
/// only keeps the other helpers idle.
pub const MAX_BATCH: usize = 128;

/// Changes that are added under one lock: some ten microseconds.
const INVALIDATIONS_PER_LOCK: usize = 1024;

/// Where nothing is read, Redis is asked so often whether it is still there, so that whoever asks the proxy is told what is so.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Where Redis refuses to tell how long keys have left, it is asked again after so long: permissions may be mended.
const TTL_RETRY_DELAY: Duration = Duration::from_secs(30);

/// Where Redis is, and how to talk to it.
#[derive(Clone)]
pub struct BackendConfig {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// ACL user, for `AUTH`.
    pub username: Option<String>,
    /// Password, for `AUTH`.
    pub password: Option<String>,
    /// Database number, for `SELECT`.
    pub database: i64,
    /// Helper threads, each with one connection.
    pub connections: usize,
    /// Bounds connecting, the handshake and each round trip.
    pub timeout: Duration,
    /// Lifetime of a cache entry, stated in the freshness guarantee.
    pub cache_ttl: Duration,
    /// Whether to hear of changes (`CLIENT TRACKING`).
    pub tracking: bool,
    /// Longer values are not read.
    pub max_value_bytes: usize,
}

/// The helpers and what they share with the loop. Dropping it ends them once they are done with what they are at.
pub struct Pool {
    shared: Arc<PoolShared>,
    timeout: Duration,
}

/// A job, and when the client that it was begun for waits no longer.
struct QueuedJob {
    job: Job,
    expires: Instant,
}

struct PoolShared {
    state: Mutex<PoolState>,
    /// A job waits, or the pool closes. Helpers that are connected wait here.
    job_ready: Condvar,
    /// A job waits and no connected helper is idle, or the pool closes. Helpers that are not connected wait here.
    all_busy: Condvar,
    /// The last connection is gone, or the pool closes. Helpers wait here that may not connect yet while others can
    /// serve: they must not take a job only to fail it.
    none_connected: Condvar,
    inbox: Mutex<Inbox>,
    /// Whether there are any. Changed under their lock.
    inbox_ready: AtomicBool,
    /// Where others see how things are.
    slot: Arc<WorkerSlot>,
    /// Start of the time that log throttles are passed.
    started_at: Instant,
    wake: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct PoolState {
    queue: VecDeque<QueuedJob>,
    /// Helpers that have a connection, and how many of them wait for work.
    connected: usize,
    idle: usize,
    /// What the log says of connecting, so that it says it once.
    logged_outcome: Option<ConnectOutcome>,
    freshness: Freshness,
    /// Which Redis the helper that has connected last reads from. Forgotten with each tracking connection, unless it was
    /// given up for not leading there.
    read_run_id: Option<String>,
    /// Which Redis tells of changes.
    tracking_run_id: Option<String>,
    /// When Redis was last asked anything.
    last_request: Option<Instant>,
    /// Until when keys are read without asking how long they have left.
    skip_ttl_until: Option<Instant>,
    /// Throttle for the log lines about lost connections: without it each failed read logs one.
    loss_log: LogThrottle,
    closed: bool,
}

impl Pool {
    /// Starts the helpers, which show in `seat` how things are. `wake` is called when there is news and the loop does not know of
    /// any; it must not block.
    pub fn start(
        settings: &BackendConfig,
        worker_slot: Arc<WorkerSlot>,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Pool> {
        let pool = Pool { shared: Arc::new(PoolShared::new(worker_slot, wake)), timeout: settings.timeout };
        let freshness = Freshness { cache_ttl: settings.cache_ttl, ..Freshness::default() };
        pool.shared.update_status(|redis| {
            redis.unavailable = Some("not connected to Redis yet".into());
            redis.freshness = freshness.to_string();
            redis.tracking = if settings.tracking { TrackingState::Lost } else { TrackingState::Off };
        });
        pool.shared.state().last_request = Some(Instant::now());
        pool.shared.state().freshness = freshness.clone();
        for number in 0..settings.connections {
            // Where nobody is connected, one goes on trying.
            let mut fetcher = Fetcher::new(settings, Arc::clone(&pool.shared), number == 0);
            std::thread::Builder::new().name(format!("redis-{number}")).spawn(move || {
                // One connects ahead, so that the log tells at start whether Redis is there.
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

    /// Hands jobs over, taking them out of `jobs`. Those that find the queue full stay in it.
    pub fn submit(&self, jobs: &mut Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        let expires = Instant::now() + self.timeout;
        let mut state = self.shared.state();
        let accepted = jobs.len().min(QUEUE_LIMIT.saturating_sub(state.queue.len()));
        state.queue.extend(jobs.drain(..accepted).map(|job| QueuedJob { job, expires }));
        self.shared.update_status(|redis| redis.queued = state.queue.len());
        self.shared.wake_fetcher(state);
    }

    /// Moves all completions that have come since the last call into `completions`, and up to `most` changes into
    /// `changes`. Says whether there is more: then the loop must come again without being woken.
    pub fn drain_inbox(&self, completions: &mut Vec<Completion>, changes: &mut Vec<Invalidation>, most: usize) -> bool {
        // The usual answer, of each tick, takes no lock.
        if !self.shared.inbox_ready.load(Ordering::Acquire) {
            return false;
        }
        let mut news = self.shared.inbox();
        let more = news.drain(completions, changes, most);
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

    /// The state. A panic of another thread leaves it usable: it is changed by single moves only.
    fn state(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows others how things are.
    fn update_status(&self, change: impl FnOnce(&mut RedisStatus)) {
        change(&mut self.slot.redis());
    }

    /// A helper has found its connection dead, and gets no other. What others hold may be dead as well: one of them is to look at
    /// once, and so on, until one is found that lives or none is left.
    fn probe_now(&self) {
        self.state().last_request = None;
        self.job_ready.notify_one();
    }

    /// Notes which Redis a helper has connected to; `None` when that is not known, or not any more.
    fn set_read_run_id(&self, run_id: Option<String>) {
        self.state().read_run_id = run_id;
    }

    /// Notes which Redis tells of changes; `None` when that is not known, or none does.
    fn set_tracking_run_id(&self, run_id: Option<String>) {
        self.state().tracking_run_id = run_id;
    }

    /// Whether another Redis than this one is known to tell of changes.
    fn tracking_mismatch(&self, run_id: Option<&str>) -> bool {
        run_id.is_some_and(|this| is_another(this, &self.state().tracking_run_id))
    }

    /// Whether helpers are known to read from another Redis than this one.
    fn reading_mismatch(&self, run_id: Option<&str>) -> bool {
        run_id.is_some_and(|this| is_another(this, &self.state().read_run_id))
    }

    /// Whether helpers may ask how long keys have left.
    fn reads_ttl(&self) -> bool {
        self.state().skip_ttl_until.is_none_or(|until| until <= Instant::now())
    }

    /// Notes that Redis tells how long keys have left, or why it refuses.
    fn set_ttl_support(&self, holds: Result<(), String>) {
        self.update_freshness(|state| {
            state.skip_ttl_until = holds.is_err().then(|| Instant::now() + TTL_RETRY_DELAY);
            state.freshness.expiry.update(holds)
        });
    }

    /// Notes whether changes are heard of, or why not.
    fn set_tracking(&self, holds: Result<(), String>) {
        self.update_freshness(|state| state.freshness.tracking.update(holds));
    }

    /// Tells the promise if `note` says that it is another one; without the lock, which the loop takes too and must not
    /// wait for whoever reads the log.
    fn update_freshness(&self, note: impl FnOnce(&mut PoolState) -> FreshnessUpdate) {
        let mut state = self.state();
        let update = note(&mut state);
        if update != FreshnessUpdate::Unchanged {
            self.update_status(|redis| state.freshness.publish(redis));
        }
        let news = (update == FreshnessUpdate::Changed).then(|| state.freshness.clone());
        drop(state);
        if let Some(freshness) = news {
            freshness.log();
        }
    }

    /// Waits until then, or not at all. Says whether to go on; not when the pool closes.
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
        let mut news = self.inbox();
        let wake = news.push_completions(completions);
        self.notify_loop(news, wake);
    }

    /// Has the loop see what was added to the news.
    fn notify_loop(&self, news: MutexGuard<'_, Inbox>, wake: bool) {
        self.inbox_ready.store(true, Ordering::Release);
        drop(news);
        if wake {
            (self.wake)();
        }
    }

    /// Adds changes to the news; more than can wait are one that stands for all.
    fn push_invalidations(&self, mut changes: Vec<Invalidation>) {
        let mut overflowed = changes.len() > MAX_PENDING_INVALIDATIONS;
        if overflowed {
            changes = vec![Invalidation::All];
        }
        let mut changes = changes.into_iter();
        while changes.len() > 0 {
            let mut news = self.inbox();
            // The loop waits for this lock: a few at a time, and nothing is logged as long as it is held.
            changes
                .by_ref()
                .take(INVALIDATIONS_PER_LOCK)
                .for_each(|change| overflowed |= news.push_invalidation(change));
            let wake = news.needs_wakeup();
            self.notify_loop(news, wake);
        }
        if overflowed {
            log::warn!("invalidation backlog overflow: cache flushed");
        }
    }
}

/// How long it is until then; no time at all where there is no then.
fn time_until(then: Option<Instant>) -> Duration {
    then.map_or(Duration::ZERO, |then| then.saturating_duration_since(Instant::now()))
}

/// Whether `other` is known, and not `this`.
fn is_another(this: &str, other: &Option<String>) -> bool {
    other.as_ref().is_some_and(|other| other != this)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Failure;
    use freshness::Guarantee;
    use std::sync::atomic::AtomicUsize;
    use std::thread::JoinHandle;

    /// A pool whose helpers were never started: jobs stay in its queue.
    pub(super) fn idle_pool(wakes: Arc<AtomicUsize>) -> Pool {
        let wake = move || {
            wakes.fetch_add(1, Ordering::Relaxed);
        };
        Pool { shared: Arc::new(PoolShared::new(Arc::default(), wake)), timeout: Duration::from_secs(1) }
    }

    pub(super) fn job(fetch: usize) -> Job {
        Job { fetch_id: fetch, key: b"k"[..].into() }
    }

    fn completion(fetch: usize) -> Completion {
        Completion { fetch_id: fetch, result: Err(Failure::Timeout) }
    }

    #[test]
    fn the_loop_is_woken_once_for_all_completions_that_it_has_not_taken() {
        let wakes = Arc::new(AtomicUsize::new(0));
        let pool = idle_pool(Arc::clone(&wakes));
        let mut taken = Vec::new();
        for round in 1..=3 {
            pool.shared.deliver(vec![completion(1), completion(2)]);
            pool.shared.deliver(vec![completion(3)]);
            assert_eq!(wakes.load(Ordering::Relaxed), round);
            assert!(!pool.drain_inbox(&mut taken, &mut Vec::new(), 1));
            assert_eq!(taken.len(), round * 3);
        }
    }

    #[test]
    fn the_queue_takes_what_it_holds_and_gives_the_rest_back() {
        let pool = idle_pool(Arc::default());
        let mut jobs: Vec<Job> = (0..QUEUE_LIMIT + 3).map(job).collect();
        pool.submit(&mut jobs);
        assert_eq!(
            jobs.iter().map(|job| job.fetch_id).collect::<Vec<_>>(),
            [QUEUE_LIMIT, QUEUE_LIMIT + 1, QUEUE_LIMIT + 2]
        );
        let Task::Fetch(batch) = pool.shared.next_task(true, None, None) else { panic!("jobs wait") };
        assert!(batch.iter().map(|queued| queued.job.fetch_id).eq(0..MAX_BATCH));
        pool.submit(&mut jobs);
        assert!(jobs.is_empty());
    }

    /// Gives threads the time to begin waiting. One that has not begun makes the test prove less, not fail.
    pub(super) fn let_them_wait() {
        std::thread::sleep(Duration::from_millis(100));
    }

    /// What a thread returns, if it does in time.
    pub(super) fn finished<T>(thread: JoinHandle<T>, otherwise: &str) -> T {
        until(otherwise, || thread.is_finished());
        thread.join().expect("no panic")
    }

    pub(super) fn until(otherwise: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !done() {
            assert!(Instant::now() < deadline, "{otherwise}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_redis_refuses_to_tell_is_asked_for_again_after_a_while() {
        let shared = PoolShared::new(Arc::default(), || ());
        assert!(shared.reads_ttl());
        shared.set_ttl_support(Err("NOPERM".into()));
        assert!(!shared.reads_ttl());
        assert!(matches!(shared.state().freshness.expiry, Guarantee::Inactive { .. }));
        let until = shared.state().skip_ttl_until.replace(Instant::now()).expect("it is known until when");
        assert!(until > Instant::now() + TTL_RETRY_DELAY / 2);
        assert!(shared.reads_ttl());
        shared.set_ttl_support(Ok(()));
        assert!(shared.reads_ttl());
        assert_eq!(shared.state().freshness.expiry, Guarantee::Active);
    }

    #[test]
    fn a_pause_ends_with_the_pool() {
        let pool = idle_pool(Arc::default());
        assert!(pool.shared.sleep_until(None) && pool.shared.sleep_until(Some(Instant::now())));
        let shared = Arc::clone(&pool.shared);
        let later = Instant::now() + Duration::from_secs(3600);
        let pausing = std::thread::spawn(move || shared.sleep_until(Some(later)));
        let_them_wait();
        drop(pool);
        assert!(!finished(pausing, "the pool is gone and somebody waits to connect"));
    }
}
