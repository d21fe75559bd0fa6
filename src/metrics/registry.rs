//! Registry of the metrics of all workers, and of figures of the process as a whole.
//!
//! Each worker writes to its own slot, when the watchdog pings it or a client asks. A worker that
//! renders metrics reads all slots. Locks are held only to copy figures, never during I/O.

use super::{RedisStatus, WorkerMetrics};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Slot of one worker in the registry.
#[derive(Debug, Default)]
pub struct WorkerSlot {
    metrics: Mutex<WorkerMetrics>,
    redis: Mutex<RedisStatus>,
    /// Pings sent by the watchdog.
    pings: AtomicU64,
    /// Value of `pings` when the worker last published.
    acked_pings: AtomicU64,
    /// Set by the watchdog when a ping was not answered in time.
    is_stuck: AtomicBool,
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

    /// Marks the worker as stuck or not. Returns true if that changed.
    pub fn set_stuck(&self, stuck: bool) -> bool {
        self.is_stuck.swap(stuck, Ordering::Relaxed) != stuck
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
}

/// Constants of the running process.
#[derive(Clone, Debug, Default)]
pub struct InstanceInfo {
    /// True if `/`, `/metrics` and `/stats` are served.
    pub admin: bool,
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
    /// Name and value of each variable, without secrets.
    pub configuration: Vec<(&'static str, String)>,
}

/// Metrics of all workers and of the process. Shared by all threads.
#[derive(Debug, Default)]
pub struct MetricsRegistry {
    /// Constants of the process.
    pub settings: InstanceInfo,
    slots: Vec<Arc<WorkerSlot>>,
    process: Mutex<ProcessStats>,
    stopping: AtomicBool,
}

/// Sum of the metrics of all workers at one time.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Metrics of all workers together.
    pub metrics: WorkerMetrics,
    /// Status of Redis for all workers together.
    pub redis: RedisStatus,
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
    /// Number of workers with a cache that is too small.
    pub cache_too_small: usize,
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

    /// Adds up the slots of all workers.
    pub fn snapshot(&self) -> Snapshot {
        let mut all = Snapshot { process: self.process(), workers: self.slots.len(), ..Snapshot::default() };
        for slot in &self.slots {
            let metrics = lock(&slot.metrics);
            all.metrics.add(&metrics);
            all.cache_too_small += usize::from(metrics.suggested_entries > 0 || metrics.suggested_bytes > 0);
            drop(metrics);
            let redis = slot.redis();
            all.tracking_wanted += usize::from(redis.tracking != super::TrackingState::Off);
            all.tracking_active += usize::from(redis.tracking == super::TrackingState::On);
            all.redis.add(&redis);
            all.stuck_workers += usize::from(slot.is_stuck.load(Ordering::Relaxed));
        }
        all.stopping = self.stopping.load(Ordering::Relaxed);
        all
    }
}

/// Locks `mutex`, also after a panic of another thread: the data is plain and written as a whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            slot.redis().queued = 2;
        }
        registry.slots()[1].redis().unavailable = Some("gone".into());
        assert!(registry.slots()[0].set_stuck(true) && !registry.slots()[0].set_stuck(true));
        let all = registry.snapshot();
        assert_eq!((all.workers, all.stuck_workers, all.metrics.entries, all.redis.queued), (2, 1, 3, 4));
        assert_eq!((all.redis.unavailable.as_deref(), all.stopping), (Some("gone"), false));
        registry.set_stopping();
        assert!(registry.snapshot().stopping);
    }
}
