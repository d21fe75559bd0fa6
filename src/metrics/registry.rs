//! Registry of the metrics of all workers, and of figures of the process as a whole.
//!
//! Each worker writes to its own slot, when the watchdog pings it or a client asks. A worker that
//! renders metrics reads all slots. Locks are held only to copy figures, never during I/O.

use super::{RedisStatus, RedisSummary, TlsStatus, TrackingState, WorkerMetrics};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Slot of one worker in the registry.
#[derive(Debug, Default)]
pub struct WorkerSlot {
    metrics: Mutex<WorkerMetrics>,
    redis: Mutex<RedisStatus>,
    /// Pings sent by the watchdog.
    pings: AtomicU64,
    /// Value of `pings` when the worker last published.
    acked_pings: AtomicU64,
    /// Time of the unanswered ping, set by the watchdog while the worker is stuck.
    stuck_since: Mutex<Option<Instant>>,
}

impl WorkerSlot {
    /// Publishes a copy of the metrics of the worker, and acknowledges all pings.
    pub fn publish(&self, metrics: &WorkerMetrics) {
        lock(&self.metrics).clone_from(metrics);
        let pings = self.pings.load(Ordering::Relaxed);
        self.acked_pings.store(pings, Ordering::Relaxed);
    }

    /// Locks the status of Redis, which the fetchers of the worker write.
    pub fn redis(&self) -> MutexGuard<'_, RedisStatus> {
        lock(&self.redis)
    }

    /// Returns true if the worker has published since the last ping.
    pub fn has_responded(&self) -> bool {
        self.acked_pings.load(Ordering::Relaxed) == self.pings.load(Ordering::Relaxed)
    }

    /// Asks the worker to publish. The caller must also wake its event loop.
    pub fn ping(&self) {
        self.pings.fetch_add(1, Ordering::Relaxed);
    }

    /// Marks the worker as stuck since a time, or as not stuck. Returns true if that changed.
    pub fn set_stuck(&self, since: Option<Instant>) -> bool {
        let mut stuck_since = lock(&self.stuck_since);
        std::mem::replace(&mut *stuck_since, since).is_some() != since.is_some()
    }
}

/// Figures of the process, as the kernel reports them, and lost log lines.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProcessStats {
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// Peak of the resident memory in bytes.
    pub peak_resident_bytes: u64,
    /// Open file descriptors.
    pub open_files: u64,
    /// Limit of open file descriptors.
    pub max_open_files: u64,
    /// User and system CPU time in seconds.
    pub cpu_seconds: f64,
    /// System CPU time in seconds.
    pub system_cpu_seconds: f64,
    /// Start time in seconds since the Unix epoch.
    pub started: f64,
    /// Log lines lost because the log buffer was full or a write failed.
    pub dropped_lines: u64,
    /// Time of the first lost line, if lines were lost recently.
    pub dropping_since: Option<Instant>,
    /// Time of these figures on the monotonic clock, and in seconds since the Unix epoch.
    pub read_at: Option<(Instant, f64)>,
}

impl ProcessStats {
    /// Returns `time` in whole seconds since the Unix epoch.
    pub fn unix_time(&self, time: Instant) -> Option<u64> {
        let (read_at, unix_time) = self.read_at?;
        let before = read_at.saturating_duration_since(time).as_secs_f64();
        let after = time.saturating_duration_since(read_at).as_secs_f64();
        Some((unix_time - before + after) as u64)
    }
}

/// Value of a variable as the operator may see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// Name of the variable.
    pub name: &'static str,
    /// Value in force, without a secret.
    pub value: String,
    /// Unit of a bare number; empty for none.
    pub unit: &'static str,
    /// True if the value differs from the default.
    pub is_changed: bool,
}

/// Constants of the running process.
#[derive(Clone, Debug, Default)]
pub struct InstanceInfo {
    /// True if `/`, `/metrics` and `/stats` are served.
    pub admin: bool,
    /// True if the listener of the page serves keys, and event streams may watch some.
    pub can_watch_keys: bool,
    /// Cache capacity in keys, of all workers together.
    pub capacity: usize,
    /// Cache capacity in bytes of keys and values, of all workers together; 0 for no limit.
    pub capacity_bytes: usize,
    /// Connection limit of all workers together.
    pub max_connections: usize,
    /// Process id.
    pub process_id: u32,
    /// TCP port that the proxy listens on.
    pub port: u16,
    /// Number of the Redis database.
    pub database: u32,
    /// Limit of keys that wait for a fetcher, of all workers together.
    pub queue_limit: usize,
    /// All variables.
    pub configuration: Vec<Setting>,
    /// Certificate for clients, `None` without TLS.
    pub tls: Option<Arc<TlsStatus>>,
}

/// Metrics of all workers and of the process. Shared by all threads.
#[derive(Debug, Default)]
pub struct MetricsRegistry {
    /// Constants of the process.
    pub settings: InstanceInfo,
    slots: Vec<Arc<WorkerSlot>>,
    process: Mutex<ProcessStats>,
    peaks: Mutex<Peaks>,
    stopping: AtomicBool,
}

/// Largest values of the figures that have a limit, each of all workers together. A worker
/// publishes once a second, so a shorter peak may be missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peaks {
    /// Open client connections.
    pub connections: usize,
    /// Keys in the cache.
    pub entries: usize,
    /// Bytes of the cached keys and values.
    pub bytes: usize,
    /// Keys in the queue, waiting for a fetcher.
    pub queued: usize,
    /// Open file descriptors.
    pub open_files: u64,
}

impl Peaks {
    /// Raises each peak to the present value.
    fn raise(&mut self, now: &Snapshot) {
        self.connections = self.connections.max(now.metrics.connected_clients);
        self.entries = self.entries.max(now.metrics.entries);
        self.bytes = self.bytes.max(now.metrics.bytes);
        self.queued = self.queued.max(now.redis.counters.queued);
        self.open_files = self.open_files.max(now.process.open_files);
    }
}

/// Figures of one worker, for the table of workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerRow {
    /// Open client connections.
    pub connections: usize,
    /// Completed requests, without those for admin endpoints.
    pub requests: u64,
    /// Requested keys found in the cache.
    pub hits: u64,
    /// Requested keys not found in the cache.
    pub misses: u64,
    /// Keys in the cache.
    pub entries: usize,
    /// Entries evicted to stay within the capacity.
    pub evicted: u64,
    /// True if the event loop is stuck.
    pub is_stuck: bool,
    /// True if Redis is available to this worker.
    pub has_redis: bool,
    /// State of the invalidation stream.
    pub tracking: TrackingState,
}

impl WorkerRow {
    fn new(metrics: &WorkerMetrics, redis: &RedisStatus, is_stuck: bool) -> WorkerRow {
        WorkerRow {
            connections: metrics.connected_clients,
            requests: metrics.key_traffic().iter().sum(),
            hits: metrics.hits,
            misses: metrics.misses,
            entries: metrics.entries,
            evicted: metrics.evicted,
            is_stuck,
            has_redis: redis.outage().is_none(),
            tracking: redis.tracking,
        }
    }
}

/// Sum of the metrics of all workers at one time.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Metrics of all workers together.
    pub metrics: WorkerMetrics,
    /// Status of Redis for all workers together.
    pub redis: RedisSummary,
    /// Figures of the process.
    pub process: ProcessStats,
    /// Number of workers.
    pub workers: usize,
    /// Number of workers configured for tracking.
    pub tracking_wanted: usize,
    /// Number of workers that receive invalidations.
    pub tracking_active: usize,
    /// Number of workers that are stuck.
    pub stuck_workers: usize,
    /// Time since which the first of them is stuck.
    pub stuck_since: Option<Instant>,
    /// Number of workers that found their cache too small.
    pub cache_too_small: usize,
    /// Figures of each worker, in their order.
    pub per_worker: Vec<WorkerRow>,
    /// Peaks of the figures that have a limit.
    pub peaks: Peaks,
    /// True once the shutdown has begun.
    pub stopping: bool,
}

impl MetricsRegistry {
    /// Creates a registry with `workers` slots.
    pub fn new(settings: InstanceInfo, workers: usize) -> MetricsRegistry {
        MetricsRegistry {
            settings,
            slots: (0..workers).map(|_| Arc::default()).collect(),
            ..MetricsRegistry::default()
        }
    }

    /// Returns the slots, in the order of the workers.
    pub fn slots(&self) -> &[Arc<WorkerSlot>] {
        &self.slots
    }

    /// Replaces the figures of the process.
    pub fn set_process(&self, process: ProcessStats) {
        *lock(&self.process) = process;
    }

    /// Returns the figures of the process.
    pub fn process(&self) -> ProcessStats {
        lock(&self.process).clone()
    }

    /// Marks the shutdown as begun.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Raises the peaks. The watchdog calls it once a second, so that they need no reader.
    pub fn record_peaks(&self) {
        drop(self.snapshot());
    }

    /// Adds up the slots of all workers.
    pub fn snapshot(&self) -> Snapshot {
        let mut all = Snapshot { process: self.process(), workers: self.slots.len(), ..Snapshot::default() };
        all.per_worker.reserve_exact(self.slots.len());
        for slot in &self.slots {
            all.add(slot);
        }
        let mut peaks = lock(&self.peaks);
        peaks.raise(&all);
        all.peaks = *peaks;
        all.stopping = self.stopping.load(Ordering::Relaxed);
        all
    }
}

impl Snapshot {
    /// Adds the figures of one worker.
    fn add(&mut self, slot: &WorkerSlot) {
        let stuck_since = *lock(&slot.stuck_since);
        let (metrics, redis) = (lock(&slot.metrics), slot.redis());
        self.per_worker.push(WorkerRow::new(&metrics, &redis, stuck_since.is_some()));
        self.metrics.add(&metrics);
        self.cache_too_small += usize::from(metrics.is_cache_too_small());
        self.tracking_wanted += usize::from(redis.tracking != TrackingState::Off);
        self.tracking_active += usize::from(redis.tracking == TrackingState::On);
        self.redis.add(&redis);
        self.stuck_workers += usize::from(stuck_since.is_some());
        self.stuck_since = super::earlier(self.stuck_since, stuck_since);
    }
}

/// Locks `mutex`, also after a panic of another thread: the data is plain and written as a whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{NodeCounters, NodeStatus};

    /// A snapshot adds up all workers. A worker that publishes has answered its pings.
    #[test]
    fn snapshot_adds_up_workers() {
        let registry = MetricsRegistry::new(InstanceInfo::default(), 2);
        for (number, slot) in registry.slots().iter().enumerate() {
            assert!(slot.has_responded());
            slot.ping();
            assert!(!slot.has_responded());
            slot.publish(&WorkerMetrics { entries: 1 + number, ..WorkerMetrics::default() });
            assert!(slot.has_responded());
            let counters = NodeCounters { queued: 2, ..NodeCounters::default() };
            slot.redis().add_node(0, NodeStatus { counters, ..NodeStatus::default() });
        }
        let start = Instant::now();
        registry.slots()[1].redis().nodes().for_each(|node| node.set_unavailable(Some("gone"), start));
        assert!(registry.slots()[0].set_stuck(Some(start)) && !registry.slots()[0].set_stuck(Some(start)));
        let all = registry.snapshot();
        let rows = all.per_worker.iter().map(|row| (row.entries, row.is_stuck, row.has_redis));
        assert_eq!(rows.collect::<Vec<_>>(), [(1, true, true), (2, false, false)]);
        assert_eq!((all.stuck_since, all.redis.unavailable_since), (Some(start), Some(start)));
        assert_eq!((all.workers, all.stuck_workers, all.metrics.entries, all.redis.counters.queued), (2, 1, 3, 4));
        assert_eq!((all.redis.unavailable.as_deref(), all.stopping), (Some("gone"), false));
        registry.set_stopping();
        assert!(registry.snapshot().stopping);
    }

    /// A peak stays when the figure falls. It is that of all workers together.
    #[test]
    fn peaks_outlast_present_values() {
        let registry = MetricsRegistry::new(InstanceInfo::default(), 2);
        let publish = |worker: usize, connected_clients| {
            registry.slots()[worker].publish(&WorkerMetrics { connected_clients, ..WorkerMetrics::default() });
            registry.record_peaks();
        };
        [(0, 5), (0, 1), (1, 6), (1, 2)].into_iter().for_each(|(worker, clients)| publish(worker, clients));
        let all = registry.snapshot();
        assert_eq!((all.metrics.connected_clients, all.peaks.connections), (3, 7));
    }

    /// A worker that suggests a capacity counts as one with a small cache.
    #[test]
    fn small_caches_are_counted() {
        let registry = MetricsRegistry::new(InstanceInfo::default(), 3);
        registry.slots()[0].publish(&WorkerMetrics { suggested_entries: 5, ..WorkerMetrics::default() });
        registry.slots()[2].publish(&WorkerMetrics { suggested_bytes: 7, ..WorkerMetrics::default() });
        assert_eq!(registry.snapshot().cache_too_small, 2);
    }

    /// Times of the monotonic clock are shown as times of the day.
    #[test]
    fn monotonic_time_becomes_unix_time() {
        let read_at = Instant::now() + std::time::Duration::from_secs(100);
        let process = ProcessStats { read_at: Some((read_at, 1000.5)), ..ProcessStats::default() };
        let at = |seconds| {
            process.unix_time(read_at - std::time::Duration::from_secs(60) + std::time::Duration::from_secs(seconds))
        };
        assert_eq!((at(0), at(70), ProcessStats::default().unix_time(read_at)), (Some(940), Some(1010), None));
    }
}
