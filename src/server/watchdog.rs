//! Looking after the process, once a second, from a thread that is no loop's: whether the loops turn, and what the system
//! knows of the process. Reading that is file I/O, which no loop does.

use super::WorkerHandle;
use crate::metrics::{MetricsRegistry, ProcessStats};
use rlimit::Resource;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How often to look.
pub const WATCHDOG_INTERVAL: Duration = Duration::from_secs(1);

/// A loop that was called and has not turned for so long does not turn. Ticks take milliseconds; a machine that is too busy
/// for a tick in five seconds serves nobody.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// A Redis that was asked and has answered nothing at all for so long is away.
const REDIS_SILENT_AFTER: Duration = Duration::from_secs(3);

/// The kernel counts processor time in hundredths of a second, whatever its own clock (`USER_HZ`, proc(5)).
const TICKS_PER_SECOND: f64 = 100.0;

/// See the top of the file.
pub struct Watchdog {
    registry: Arc<MetricsRegistry>,
    handles: Vec<WorkerHandle>,
    /// When each loop was last called.
    pinged_at: Vec<Instant>,
    started: f64,
}

impl Watchdog {
    /// Reads the figures of the process, so that they are known before a loop serves clients.
    /// Watches no loop yet.
    pub fn new(register: Arc<MetricsRegistry>) -> Watchdog {
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let watch = Watchdog { registry: register, handles: Vec::new(), pinged_at: Vec::new(), started };
        watch.publish_process(0);
        watch
    }

    /// Adds a loop. The order is that of the register.
    pub fn push_loop(&mut self, stopper: WorkerHandle) {
        self.handles.push(stopper);
        self.pinged_at.push(Instant::now());
    }

    /// Looks once. `dropped_lines` is what the log has lost.
    pub fn check(&mut self, dropped_lines: u64) {
        self.ping_workers(Instant::now());
        self.check_redis(Instant::now());
        self.publish_process(dropped_lines);
    }

    /// Publishes the figures of the process. `INFO` shows them also with `ADMIN=off`.
    fn publish_process(&self, dropped_lines: u64) {
        self.registry.set_process(ProcessStats { started: self.started, dropped_lines, ..read_process_stats() });
    }

    /// A Redis that takes its time is away, also where clients would wait for it for longer (`REDIS_TIMEOUT`).
    fn check_redis(&self, now: Instant) {
        for worker_slot in self.registry.slots() {
            let mut redis = worker_slot.redis();
            let late =
                redis.unanswered_since.is_some_and(|asked| now.saturating_duration_since(asked) >= REDIS_SILENT_AFTER);
            if late && redis.unavailable.is_none() {
                redis.unavailable = Some(format!("no reply from Redis for {} s", REDIS_SILENT_AFTER.as_secs()));
            }
        }
    }

    fn ping_workers(&mut self, now: Instant) {
        for (number, ((worker_slot, stopper), called)) in
            self.registry.slots().iter().zip(&self.handles).zip(&mut self.pinged_at).enumerate()
        {
            if !worker_slot.has_responded() {
                if now.saturating_duration_since(*called) >= STUCK_AFTER && worker_slot.set_stuck(true) {
                    log::error!(
                        "event loop {number} is stuck (no tick for {} s): its clients get no replies; restart the proxy and \
                         please report this",
                        STUCK_AFTER.as_secs()
                    );
                }
                continue;
            }
            if worker_slot.set_stuck(false) {
                log::warn!("event loop {number} is no longer stuck");
            }
            *called = now;
            worker_slot.ping();
            stopper.wake();
        }
    }
}

/// What the system knows of the process. What cannot be read is 0.
fn read_process_stats() -> ProcessStats {
    let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let status = read("status");
    let bytes_of = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kibibytes.unwrap_or_default() * 1024
    };
    // Behind the name, which is in brackets and may hold anything: user and system time are the 12th and 13th fields.
    let stat = read("stat");
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let mut seconds = fields.skip(11).map(|ticks| ticks.parse::<u64>().unwrap_or_default() as f64 / TICKS_PER_SECOND);
    let (user, system) = (seconds.next().unwrap_or_default(), seconds.next().unwrap_or_default());
    // Since Linux 6.2 the folder's size is the number of its files; counting thousands would take milliseconds.
    let open_files = match fs::metadata("/proc/self/fd").map_or(0, |metadata| metadata.len()) {
        0 => fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64),
        count => count,
    };
    ProcessStats {
        resident_bytes: bytes_of("VmRSS"),
        peak_resident_bytes: bytes_of("VmHWM"),
        open_files,
        max_open_files: Resource::NOFILE.get_soft().unwrap_or_default(),
        cpu_seconds: user + system,
        system_cpu_seconds: system,
        ..ProcessStats::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{InstanceInfo, WorkerMetrics};
    use mio::{Poll, Token, Waker};

    #[test]
    fn a_loop_that_does_not_answer_for_a_while_is_stuck_until_it_does() {
        let register = Arc::new(MetricsRegistry::new(InstanceInfo::default(), 2));
        let poll = Poll::new().expect("a poll");
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).expect("a waker"));
        let stopper = WorkerHandle::new(waker);
        let mut watch = Watchdog::new(Arc::clone(&register));
        [stopper.clone(), stopper].into_iter().for_each(|stopper| watch.push_loop(stopper));
        let begin = Instant::now();
        let mut look = |after: Duration, answering: &[usize]| {
            watch.ping_workers(begin + after);
            answering.iter().for_each(|&number| register.slots()[number].publish(&WorkerMetrics::default()));
            register.snapshot().stuck_workers
        };
        assert_eq!(look(Duration::ZERO, &[0]), 0);
        assert_eq!(look(WATCHDOG_INTERVAL, &[0]), 0);
        assert_eq!(look(STUCK_AFTER - WATCHDOG_INTERVAL / 2, &[0]), 0);
        assert_eq!(look(STUCK_AFTER, &[0]), 1);
        assert_eq!(look(2 * STUCK_AFTER, &[0, 1]), 1);
        assert_eq!(look(2 * STUCK_AFTER + WATCHDOG_INTERVAL, &[0, 1]), 0);
    }

    #[test]
    fn a_redis_that_answers_nothing_for_a_while_is_away() {
        let register = Arc::new(MetricsRegistry::new(InstanceInfo::default(), 1));
        let watch = Watchdog::new(Arc::clone(&register));
        let asked = Instant::now();
        let away_after = |time: Duration| {
            watch.check_redis(asked + time);
            register.snapshot().redis.unavailable
        };
        assert_eq!(away_after(2 * REDIS_SILENT_AFTER), None);
        register.slots()[0].redis().unanswered_since = Some(asked);
        assert_eq!(away_after(REDIS_SILENT_AFTER / 2), None);
        assert_eq!(away_after(REDIS_SILENT_AFTER).as_deref(), Some("no reply from Redis for 3 s"));
    }

    #[test]
    fn the_system_knows_the_process() {
        let process = read_process_stats();
        assert!(process.resident_bytes > 1_000_000 && process.open_files >= 3, "{process:?}");
        assert!(process.max_open_files >= process.open_files, "{process:?}");
        assert!(process.peak_resident_bytes >= process.resident_bytes, "{process:?}");
        assert!(process.cpu_seconds >= process.system_cpu_seconds, "{process:?}");
    }

    /// `INFO` shows the figures from the first client on, and also with `ADMIN=off`.
    #[test]
    fn process_figures_need_no_admin() {
        let register = Arc::new(MetricsRegistry::default());
        let mut watch = Watchdog::new(Arc::clone(&register));
        assert!(register.process().resident_bytes > 0 && register.process().started > 0.0);
        watch.check(7);
        assert_eq!((register.settings.admin, register.process().dropped_lines), (false, 7));
    }
}
