//! Watchdog of the process: detects stuck event loops, a silent Redis and a small cache, and reads
//! process statistics.
//!
//! The main thread runs it once a second. Reading the statistics is file I/O, which event loops
//! avoid.

use super::WorkerHandle;
use crate::metrics::{MetricsRegistry, ProcessStats};
use rlimit::Resource;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Interval of the checks.
pub const WATCHDOG_INTERVAL: Duration = Duration::from_secs(1);

/// Time without a response to a ping after which an event loop is reported as stuck. Ticks take
/// milliseconds; a machine too busy for one tick in five seconds serves no client.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// Time without any reply after which Redis is reported as unavailable.
const REDIS_SILENT_AFTER: Duration = Duration::from_secs(3);

/// Shortest time between two warnings about a cache that is too small. Only an operator can change
/// it, so a reminder is enough.
const CAPACITY_WARNING_INTERVAL: Duration = Duration::from_secs(600);
/// Time for which the loss of a log line is shown as a problem. After an alert an operator
/// looks within minutes.
const LOSS_IS_RECENT: Duration = Duration::from_secs(600);

/// Unit of CPU time in `/proc`: hundredths of a second on any kernel (`USER_HZ`, proc(5)).
const CPU_TICKS_PER_SECOND: f64 = 100.0;

/// Watchdog of the event loops, of Redis and of the process.
pub struct Watchdog {
    registry: Arc<MetricsRegistry>,
    handles: Vec<WorkerHandle>,
    /// Time of the last ping of each event loop.
    pinged_at: Vec<Instant>,
    /// Time from which the next warning about a small cache may be logged.
    capacity_warning_from: Instant,
    /// Start of the process in seconds since the Unix epoch.
    started: f64,
    lost_lines: LostLines,
}

/// Recent losses of log lines.
#[derive(Debug, Default)]
struct LostLines {
    /// Number of lost lines at the last check.
    count: u64,
    /// Times of the first and the last check that found new losses.
    period: Option<(Instant, Instant)>,
}

impl LostLines {
    /// Returns the time of the first loss, if the last one is recent. `count` is the number of
    /// lines lost so far.
    fn check(&mut self, count: u64, now: Instant) -> Option<Instant> {
        self.period = self.period.filter(|&(_, last)| now.saturating_duration_since(last) < LOSS_IS_RECENT);
        if count > self.count {
            self.count = count;
            self.period = Some((self.period.map_or(now, |(first, _)| first), now));
        }
        self.period.map(|(first, _)| first)
    }
}

impl Watchdog {
    /// Creates a watchdog without event loops. Publishes the process statistics, so that they are
    /// available before an event loop serves clients.
    pub fn new(registry: Arc<MetricsRegistry>) -> Watchdog {
        let (handles, pinged_at, capacity_warning_from) = (Vec::new(), Vec::new(), Instant::now());
        let (started, lost_lines) = (unix_time(), LostLines::default());
        let mut watchdog = Watchdog { registry, handles, pinged_at, capacity_warning_from, started, lost_lines };
        watchdog.publish_process_stats(0);
        watchdog
    }

    /// Adds an event loop. The order is that of the slots of the registry.
    pub fn push_worker(&mut self, handle: WorkerHandle) {
        self.handles.push(handle);
        self.pinged_at.push(Instant::now());
    }

    /// Runs all checks once. `dropped_lines` is the number of lost log lines.
    pub fn check(&mut self, dropped_lines: u64) {
        self.ping_workers(Instant::now());
        self.check_redis(Instant::now());
        if let Some(warning) = self.check_capacity(Instant::now()) {
            log::warn!("{warning}");
        }
        self.publish_process_stats(dropped_lines);
        self.registry.record_peaks();
    }

    /// Publishes the process statistics. `INFO` shows them even with `ADMIN=off`.
    fn publish_process_stats(&mut self, dropped_lines: u64) {
        let now = Instant::now();
        self.registry.set_process(ProcessStats {
            started: self.started,
            dropped_lines,
            dropping_since: self.lost_lines.check(dropped_lines, now),
            read_at: Some((now, unix_time())),
            ..read_process_stats()
        });
    }

    /// Marks Redis as unavailable if it is silent, even if `REDIS_TIMEOUT` lets clients wait for
    /// longer.
    fn check_redis(&self, now: Instant) {
        for worker_slot in self.registry.slots() {
            let is_silent = |since: &Instant| now.saturating_duration_since(*since) >= REDIS_SILENT_AFTER;
            for node in worker_slot.redis().nodes() {
                if let (Some(since), None) = (node.unanswered_since.filter(is_silent), &node.unavailable) {
                    let reason = format!("no reply from Redis for {} s", REDIS_SILENT_AFTER.as_secs());
                    node.set_unavailable(Some(&reason), since);
                }
            }
        }
    }

    /// Returns a warning if the cache of a worker is too small, once in
    /// [`CAPACITY_WARNING_INTERVAL`].
    fn check_capacity(&mut self, now: Instant) -> Option<String> {
        if now < self.capacity_warning_from {
            return None;
        }
        let problem = self.registry.snapshot().metrics.capacity_problem()?;
        self.capacity_warning_from = now + CAPACITY_WARNING_INTERVAL;
        Some(problem)
    }

    /// Pings the event loops that responded to their last ping, and reports those that did not in
    /// time.
    fn ping_workers(&mut self, now: Instant) {
        for (number, ((worker_slot, handle), pinged_at)) in
            self.registry.slots().iter().zip(&self.handles).zip(&mut self.pinged_at).enumerate()
        {
            if !worker_slot.has_responded() {
                let is_stuck = now.saturating_duration_since(*pinged_at) >= STUCK_AFTER;
                if is_stuck && worker_slot.set_stuck(Some(*pinged_at)) {
                    log::error!(
                        "event loop {number} is stuck (no tick for {} s): its clients get no replies; restart the proxy and \
                         please report this",
                        STUCK_AFTER.as_secs()
                    );
                }
                continue;
            }
            if worker_slot.set_stuck(None) {
                log::warn!("event loop {number} is no longer stuck");
            }
            *pinged_at = now;
            worker_slot.ping();
            handle.wake();
        }
    }
}

/// Returns the time of the day in seconds since the Unix epoch.
fn unix_time() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Reads the process statistics. A value that cannot be read is 0.
fn read_process_stats() -> ProcessStats {
    let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let status = read("status");
    let bytes_of = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kibibytes.unwrap_or_default() * 1024
    };
    // The name is in parentheses and may hold any byte. User and system time are the 12th and 13th
    // fields behind it.
    let stat = read("stat");
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let mut seconds =
        fields.skip(11).map(|ticks| ticks.parse::<u64>().unwrap_or_default() as f64 / CPU_TICKS_PER_SECOND);
    let (user, system) = (seconds.next().unwrap_or_default(), seconds.next().unwrap_or_default());
    // Since Linux 6.2 the size of the directory is its number of files. Counting thousands takes
    // milliseconds.
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
    use crate::metrics::NodeStatus;
    use crate::metrics::{InstanceInfo, WorkerMetrics};
    use mio::{Poll, Token, Waker};

    /// An event loop that does not respond to a ping is stuck until it responds.
    #[test]
    fn silent_worker_is_stuck() {
        let registry = Arc::new(MetricsRegistry::new(InstanceInfo::default(), 2));
        let poll = Poll::new().expect("an epoll instance");
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).expect("a waker"));
        let handle = WorkerHandle::new(waker);
        let mut watchdog = Watchdog::new(Arc::clone(&registry));
        [handle.clone(), handle].into_iter().for_each(|handle| watchdog.push_worker(handle));
        let start = Instant::now();
        let mut stuck_at = |after: Duration, responding: &[usize]| {
            watchdog.ping_workers(start + after);
            responding.iter().for_each(|&number| registry.slots()[number].publish(&WorkerMetrics::default()));
            registry.snapshot().stuck_workers
        };
        assert_eq!(stuck_at(Duration::ZERO, &[0]), 0);
        assert_eq!(stuck_at(WATCHDOG_INTERVAL, &[0]), 0);
        assert_eq!(stuck_at(STUCK_AFTER - WATCHDOG_INTERVAL / 2, &[0]), 0);
        assert_eq!(stuck_at(STUCK_AFTER, &[0]), 1);
        assert_eq!(stuck_at(2 * STUCK_AFTER, &[0, 1]), 1);
        assert_eq!(stuck_at(2 * STUCK_AFTER + WATCHDOG_INTERVAL, &[0, 1]), 0);
    }

    /// A Redis that sends no reply for 3 s is unavailable.
    #[test]
    fn silent_redis_is_unavailable() {
        let registry = Arc::new(MetricsRegistry::new(InstanceInfo::default(), 1));
        let watchdog = Watchdog::new(Arc::clone(&registry));
        let start = Instant::now();
        let unavailable_after = |time: Duration| {
            watchdog.check_redis(start + time);
            registry.snapshot().redis.unavailable
        };
        assert_eq!(unavailable_after(2 * REDIS_SILENT_AFTER), None);
        registry.slots()[0].redis().add_node(0, NodeStatus { unanswered_since: Some(start), ..NodeStatus::default() });
        assert_eq!(unavailable_after(REDIS_SILENT_AFTER / 2), None);
        assert_eq!(unavailable_after(REDIS_SILENT_AFTER).as_deref(), Some("no reply from Redis for 3 s"));
    }

    /// A cache that is too small gives one warning in ten minutes.
    #[test]
    fn small_cache_warns_once_in_interval() {
        let registry = Arc::new(MetricsRegistry::new(InstanceInfo::default(), 2));
        let mut watchdog = Watchdog::new(Arc::clone(&registry));
        let start = Instant::now();
        assert_eq!(watchdog.check_capacity(start), None);
        registry.slots()[1].publish(&WorkerMetrics { suggested_entries: 2500, ..WorkerMetrics::default() });
        assert!(watchdog.check_capacity(start).is_some_and(|text| text.contains("set CACHE_SIZE=2500 or more")));
        assert_eq!(watchdog.check_capacity(start + CAPACITY_WARNING_INTERVAL / 2), None);
        registry.slots()[1].publish(&WorkerMetrics { suggested_bytes: 4_000_000, ..WorkerMetrics::default() });
        let later = watchdog.check_capacity(start + CAPACITY_WARNING_INTERVAL);
        assert!(later.is_some_and(|text| text.contains("set CACHE_BYTES=4000000 or more")));
    }

    /// A loss of log lines is a problem from its first line until ten minutes after its last.
    #[test]
    fn lost_lines_are_recent_for_minutes() {
        let (mut lost, start) = (LostLines::default(), Instant::now());
        let mut first_loss = |count, seconds| {
            let first = lost.check(count, start + Duration::from_secs(seconds));
            first.map(|first| (first - start).as_secs())
        };
        assert_eq!([first_loss(0, 0), first_loss(2, 1), first_loss(2, 500)], [None, Some(1), Some(1)]);
        assert_eq!([first_loss(3, 600), first_loss(3, 1199), first_loss(3, 1200)], [Some(1), Some(1), None]);
        assert_eq!(first_loss(4, 1300), Some(1300));
    }

    /// The process statistics are read from the system.
    #[test]
    fn process_stats_are_plausible() {
        let process = read_process_stats();
        assert!(process.resident_bytes > 1_000_000 && process.open_files >= 3, "{process:?}");
        assert!(process.max_open_files >= process.open_files, "{process:?}");
        assert!(process.peak_resident_bytes >= process.resident_bytes, "{process:?}");
        assert!(process.cpu_seconds >= process.system_cpu_seconds, "{process:?}");
    }

    /// `INFO` shows process statistics to the first client already, and with `ADMIN=off`.
    #[test]
    fn process_stats_need_no_admin() {
        let registry = Arc::new(MetricsRegistry::default());
        let mut watchdog = Watchdog::new(Arc::clone(&registry));
        assert!(registry.process().resident_bytes > 0 && registry.process().started > 0.0);
        watchdog.check(7);
        assert_eq!((registry.settings.admin, registry.process().dropped_lines), (false, 7));
    }
}
