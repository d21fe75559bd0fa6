//! What the loops of the process show each other, and what is known of the process as a whole.
//!
//! Locks are held to copy figures, never while a thread does I/O. Each loop writes its own seat, once a tick; whoever is
//! asked for figures reads all seats.

use super::{RedisStatus, WorkerMetrics};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One loop's place in the register.
#[derive(Debug, Default)]
pub struct WorkerSlot {
    metrics: Mutex<WorkerMetrics>,
    redis: Mutex<RedisStatus>,
    /// How often the loop was called, and the last call that it has answered.
    pings: AtomicU64,
    acked_pings: AtomicU64,
    /// It has not answered for too long.
    is_stuck: AtomicBool,
}

impl WorkerSlot {
    /// Shows the loop's figures as they stand, and that it turns.
    pub fn publish(&self, metrics: &WorkerMetrics) {
        lock(&self.metrics).clone_from(metrics);
        let called = self.pings.load(Ordering::Relaxed);
        self.acked_pings.store(called, Ordering::Relaxed);
    }

    /// The figures of the loop's helpers, to be written or read.
    pub fn redis(&self) -> MutexGuard<'_, RedisStatus> {
        lock(&self.redis)
    }

    /// Whether the last call was answered.
    pub fn has_responded(&self) -> bool {
        self.acked_pings.load(Ordering::Relaxed) == self.pings.load(Ordering::Relaxed)
    }

    /// Calls the loop, which is to be woken then.
    pub fn ping(&self) {
        self.pings.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes whether the loop has not answered for too long. Says whether that is news.
    pub fn set_stuck(&self, stuck: bool) -> bool {
        self.is_stuck.swap(stuck, Ordering::Relaxed) != stuck
    }
}

/// What the system knows of the process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProcessStats {
    /// Bytes of memory that it has.
    pub resident_bytes: u64,
    /// The most that it has ever had.
    pub peak_resident_bytes: u64,
    /// Files and sockets that are open.
    pub open_files: u64,
    /// How many may be.
    pub max_open_files: u64,
    /// Processor time that it has taken, in seconds.
    pub cpu_seconds: f64,
    /// The part of it that the kernel took on behalf of the process.
    pub system_cpu_seconds: f64,
    /// When it was started, in seconds since 1970.
    pub started: f64,
    /// Lines that the log had no room for.
    pub dropped_lines: u64,
}

/// What does not change as long as the process runs.
#[derive(Clone, Debug, Default)]
pub struct InstanceInfo {
    /// Whether figures are shown to clients.
    pub admin: bool,
    /// Keys that may be cached, by all loops.
    pub capacity: usize,
    /// Bytes of keys and values that may be cached, by all loops; 0 for no bound.
    pub capacity_bytes: usize,
    /// Clients that may be connected.
    pub max_connections: usize,
    /// The process, the port it listens on, and the number of the database that is read.
    pub process_id: u32,
    /// See above.
    pub port: u16,
    /// See above.
    pub database: u32,
    /// Each variable and what it is set to, but no secrets.
    pub configuration: Vec<(&'static str, String)>,
}

/// See the top of the file.
#[derive(Debug, Default)]
pub struct MetricsRegistry {
    /// What does not change.
    pub settings: InstanceInfo,
    slots: Vec<Arc<WorkerSlot>>,
    process: Mutex<ProcessStats>,
    stopping: AtomicBool,
}

/// All there is to tell of the proxy.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Of all loops together.
    pub metrics: WorkerMetrics,
    /// Of all their helpers together.
    pub redis: RedisStatus,
    /// Of the process.
    pub process: ProcessStats,
    /// How many loops there are.
    pub workers: usize,
    /// Those whose Redis is to tell of changes, and those of them whose does.
    pub tracking_wanted: usize,
    /// See above.
    pub tracking: usize,
    /// Those that do not turn.
    pub is_stuck: usize,
    /// Whether no more clients are let in.
    pub stopping: bool,
}

impl MetricsRegistry {
    /// A register of so many loops.
    pub fn new(settings: InstanceInfo, workers: usize) -> MetricsRegistry {
        MetricsRegistry {
            settings,
            slots: (0..workers).map(|_| Arc::default()).collect(),
            ..MetricsRegistry::default()
        }
    }

    /// The places of the loops.
    pub fn slots(&self) -> &[Arc<WorkerSlot>] {
        &self.slots
    }

    /// What is known of the process.
    pub fn set_process(&self, process: ProcessStats) {
        *lock(&self.process) = process;
    }

    /// Returns what is known of the process.
    pub fn process(&self) -> ProcessStats {
        lock(&self.process).clone()
    }

    /// No more clients are let in.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// All of it, added up.
    pub fn snapshot(&self) -> Snapshot {
        let mut all = Snapshot { process: self.process(), workers: self.slots.len(), ..Snapshot::default() };
        for worker_slot in &self.slots {
            all.metrics.add(&lock(&worker_slot.metrics));
            let redis = worker_slot.redis();
            all.tracking_wanted += usize::from(redis.tracking != super::TrackingState::Off);
            all.tracking += usize::from(redis.tracking == super::TrackingState::On);
            all.redis.add(&redis);
            all.is_stuck += usize::from(worker_slot.is_stuck.load(Ordering::Relaxed));
        }
        all.stopping = self.stopping.load(Ordering::Relaxed);
        all
    }
}

/// A panic of another thread leaves what is locked usable: it is plain data, written as a whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_has_all_loops_and_a_loop_that_shows_itself_has_answered() {
        let register = MetricsRegistry::new(InstanceInfo::default(), 2);
        for (number, worker_slot) in register.slots().iter().enumerate() {
            assert!(worker_slot.has_responded());
            worker_slot.ping();
            assert!(!worker_slot.has_responded());
            worker_slot.publish(&WorkerMetrics { entries: 1 + number, ..WorkerMetrics::default() });
            assert!(worker_slot.has_responded());
            worker_slot.redis().queued = 2;
        }
        register.slots()[1].redis().unavailable = Some("gone".into());
        assert!(register.slots()[0].set_stuck(true) && !register.slots()[0].set_stuck(true));
        let all = register.snapshot();
        assert_eq!((all.workers, all.is_stuck, all.metrics.entries, all.redis.queued), (2, 1, 3, 4));
        assert_eq!((all.redis.unavailable.as_deref(), all.stopping), (Some("gone"), false));
        register.set_stopping();
        assert!(register.snapshot().stopping);
    }
}
