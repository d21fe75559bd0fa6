//! What the loops of the process show each other, and what is known of the process as a whole.
//!
//! Locks are held to copy figures, never while a thread does I/O. Each loop writes its own seat, once a tick; whoever is
//! asked for figures reads all seats.

use super::{Figures, RedisFigures};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One loop's place in the register.
#[derive(Debug, Default)]
pub struct Seat {
    figures: Mutex<Figures>,
    redis: Mutex<RedisFigures>,
    /// How often the loop was called, and the last call that it has answered.
    called: AtomicU64,
    heard: AtomicU64,
    /// It has not answered for too long.
    stuck: AtomicBool,
}

impl Seat {
    /// Shows the loop's figures as they stand, and that it turns.
    pub fn show(&self, figures: &Figures) {
        lock(&self.figures).clone_from(figures);
        let called = self.called.load(Ordering::Relaxed);
        self.heard.store(called, Ordering::Relaxed);
    }

    /// The figures of the loop's helpers, to be written or read.
    pub fn redis(&self) -> MutexGuard<'_, RedisFigures> {
        lock(&self.redis)
    }

    /// Whether the last call was answered.
    pub fn has_answered(&self) -> bool {
        self.heard.load(Ordering::Relaxed) == self.called.load(Ordering::Relaxed)
    }

    /// Calls the loop, which is to be woken then.
    pub fn call(&self) {
        self.called.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes whether the loop has not answered for too long. Says whether that is news.
    pub fn set_stuck(&self, stuck: bool) -> bool {
        self.stuck.swap(stuck, Ordering::Relaxed) != stuck
    }
}

/// What the system knows of the process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Process {
    /// Bytes of memory that it has.
    pub resident_bytes: u64,
    /// The most that it has ever had.
    pub peak_resident_bytes: u64,
    /// Files and sockets that are open.
    pub open_files: u64,
    /// How many may be.
    pub most_files: u64,
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
pub struct Settings {
    /// Whether figures are shown to clients.
    pub admin: bool,
    /// Keys that may be cached, by all loops.
    pub capacity: usize,
    /// Bytes of keys and values that may be cached, by all loops; 0 for no bound.
    pub capacity_bytes: usize,
    /// Clients that may be connected.
    pub most_clients: usize,
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
pub struct Register {
    /// What does not change.
    pub settings: Settings,
    seats: Vec<Arc<Seat>>,
    process: Mutex<Process>,
    stopping: AtomicBool,
}

/// All there is to tell of the proxy.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Of all loops together.
    pub figures: Figures,
    /// Of all their helpers together.
    pub redis: RedisFigures,
    /// Of the process.
    pub process: Process,
    /// How many loops there are.
    pub workers: usize,
    /// Those whose Redis is to tell of changes, and those of them whose does.
    pub tracking_wanted: usize,
    /// See above.
    pub tracking: usize,
    /// Those that do not turn.
    pub stuck: usize,
    /// Whether no more clients are let in.
    pub stopping: bool,
}

impl Register {
    /// A register of so many loops.
    pub fn new(settings: Settings, workers: usize) -> Register {
        Register { settings, seats: (0..workers).map(|_| Arc::default()).collect(), ..Register::default() }
    }

    /// The places of the loops.
    pub fn seats(&self) -> &[Arc<Seat>] {
        &self.seats
    }

    /// What is known of the process.
    pub fn set_process(&self, process: Process) {
        *lock(&self.process) = process;
    }

    /// Returns what is known of the process.
    pub fn process(&self) -> Process {
        lock(&self.process).clone()
    }

    /// No more clients are let in.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// All of it, added up.
    pub fn snapshot(&self) -> Snapshot {
        let mut all = Snapshot { process: self.process(), workers: self.seats.len(), ..Snapshot::default() };
        for seat in &self.seats {
            all.figures.add(&lock(&seat.figures));
            let redis = seat.redis();
            all.tracking_wanted += usize::from(redis.tracking != super::Tracking::Off);
            all.tracking += usize::from(redis.tracking == super::Tracking::On);
            all.redis.add(&redis);
            all.stuck += usize::from(seat.stuck.load(Ordering::Relaxed));
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
        let register = Register::new(Settings::default(), 2);
        for (number, seat) in register.seats().iter().enumerate() {
            assert!(seat.has_answered());
            seat.call();
            assert!(!seat.has_answered());
            seat.show(&Figures { entries: 1 + number, ..Figures::default() });
            assert!(seat.has_answered());
            seat.redis().queued = 2;
        }
        register.seats()[1].redis().away = Some("gone".into());
        assert!(register.seats()[0].set_stuck(true) && !register.seats()[0].set_stuck(true));
        let all = register.snapshot();
        assert_eq!((all.workers, all.stuck, all.figures.entries, all.redis.queued), (2, 1, 3, 4));
        assert_eq!((all.redis.away.as_deref(), all.stopping), (Some("gone"), false));
        register.set_stopping();
        assert!(register.snapshot().stopping);
    }
}
