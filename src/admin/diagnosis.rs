//! Diagnosis: finds what is wrong with the proxy, and names the consequence and the remedy.
//!
//! A pure function of the metrics. The page, `/stats` and screen readers show its texts. A screen
//! reader repeats a text that changes, so no text has a figure that changes every second.

use crate::metrics::{InstanceInfo, NodeRow, Snapshot};
use std::time::Instant;

/// Share of a limit in percent from which it counts as nearly reached. It leaves an operator time
/// to raise the limit.
const NEAR_LIMIT_PERCENT: u64 = 90;

/// Urgency of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Clients get errors, or no replies.
    Critical,
    /// Clients are served, but slower, with older values, or not for long.
    Warning,
}

impl Severity {
    /// Returns the name, as in `/stats`.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Critical => "critical",
            Severity::Warning => "warning",
        }
    }
}

/// One problem of the running proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Urgency.
    pub severity: Severity,
    /// Event in two or three words.
    pub title: &'static str,
    /// Event, consequence and remedy.
    pub text: String,
    /// Begin of the problem in seconds since the Unix epoch, if it is known.
    pub since: Option<u64>,
}

/// Returns all present problems, the critical ones first.
pub fn problems(now: &Snapshot, settings: &InstanceInfo) -> Vec<Problem> {
    let found = [
        stuck_loop(now),
        redis_unavailable(now),
        redis_node_unavailable(now),
        connection_limit(now, settings),
        file_limit(now),
        shutting_down(now),
        tracking_lost(now),
        cache_too_small(now, settings),
        lost_log_lines(now),
    ];
    let mut problems: Vec<Problem> = found.into_iter().flatten().collect();
    // A stable sort: the order within a severity is that of the array.
    problems.sort_by_key(|problem| problem.severity == Severity::Warning);
    problems
}

fn stuck_loop(now: &Snapshot) -> Option<Problem> {
    let event = match (now.stuck_workers, now.workers) {
        (0, _) => return None,
        (_, 1) => "The event loop makes no progress".into(),
        (stuck, all) => format!("{stuck} of {all} event loops make no progress"),
    };
    let text = format!(
        "{event}, and its clients get no replies. Restart the proxy, and please report this with the log of the last \
         minutes."
    );
    Some(Problem { since: time(now, now.stuck_since), ..critical("Event loop stuck", text) })
}

fn redis_unavailable(now: &Snapshot) -> Option<Problem> {
    let reason = now.redis.unavailable.as_deref()?;
    let affected = match now.per_worker.iter().filter(|worker| !worker.has_redis).count() {
        affected if affected < now.workers => format!(" This concerns {affected} of {} workers.", now.workers),
        _ => String::new(),
    };
    let text = format!(
        "{reason}.{affected} Requests for keys that are not cached fail; with STALE_IF_ERROR, expired values are \
         served for that long. Check that Redis runs, that REDIS_HOST and REDIS_PORT, or REDIS_URL, lead to it, and its \
         log."
    );
    Some(Problem { since: time(now, now.redis.unavailable_since), ..critical("Redis unavailable", text) })
}

fn redis_node_unavailable(now: &Snapshot) -> Option<Problem> {
    if now.redis.unavailable.is_some() {
        return None;
    }
    let unavailable: Vec<&NodeRow> = now.redis.unavailable_nodes().collect();
    let first = unavailable.first()?;
    let text = format!(
        "{} of {} nodes of Redis are unavailable ({}: {}). Requests for their keys that are not cached fail; with \
         STALE_IF_ERROR, expired values are served for that long. Keys of the other nodes are served. Check those \
         nodes, and whether the cluster has promoted a replica.",
        unavailable.len(),
        now.redis.nodes.len(),
        first.address,
        first.unavailable.as_deref().unwrap_or_default()
    );
    let since = unavailable.iter().filter_map(|node| node.unavailable_since).min();
    Some(Problem { since: time(now, since), ..critical("Redis node unavailable", text) })
}

fn connection_limit(now: &Snapshot, settings: &InstanceInfo) -> Option<Problem> {
    let (open, limit) = (now.metrics.connected_clients, settings.max_connections);
    let remedy = "Raise MAX_CONNECTIONS and the limit of open files, or look for clients that open a connection for \
                  each request.";
    if !is_near(open as u64, limit as u64) {
        None
    } else if open >= limit {
        let text = format!("All {limit} client connections are in use, and further clients are rejected. {remedy}");
        Some(critical("Connection limit reached", text))
    } else {
        let text = format!(
            "At least {NEAR_LIMIT_PERCENT}% of {limit} client connections are in use. At the limit, further clients \
             are rejected. {remedy}"
        );
        Some(warning("Connections near the limit", text))
    }
}

fn file_limit(now: &Snapshot) -> Option<Problem> {
    let limit = now.process.max_open_files;
    is_near(now.process.open_files, limit).then(|| {
        let text = format!(
            "At least {NEAR_LIMIT_PERCENT}% of {limit} open files are in use. At the limit, the proxy can neither \
             accept clients nor reconnect to Redis. Raise the limit (LimitNOFILE= in systemd, or ulimit -Hn), or lower \
             MAX_CONNECTIONS."
        );
        warning("Open files near the limit", text)
    })
}

fn shutting_down(now: &Snapshot) -> Option<Problem> {
    let text = "The proxy received a signal to end. It finishes requests in flight and exits within SHUTDOWN_GRACE. \
                Start it again if this is not intended.";
    now.stopping.then(|| warning("Shutting down", text.into()))
}

fn tracking_lost(now: &Snapshot) -> Option<Problem> {
    let lost = now.tracking_wanted.saturating_sub(now.tracking_active);
    let affected = match now.workers {
        _ if lost == 0 => return None,
        1 => "No invalidations arrive from Redis".into(),
        all => format!("No invalidations arrive from Redis for {lost} of {all} workers"),
    };
    let text = format!(
        "{affected}. In force: {}. If Redis is available, check that it is version 6 or later, and that the user \
         may run CLIENT TRACKING. With several nodes, all must send invalidations.",
        now.redis.freshness
    );
    Some(Problem { since: time(now, now.redis.tracking_lost_since), ..warning("Tracking lost", text) })
}

fn cache_too_small(now: &Snapshot, settings: &InstanceInfo) -> Option<Problem> {
    let workers = now.workers.max(1);
    let advice = |variable: &str, suggested: usize, capacity: usize| {
        (suggested > 0).then(|| format!("{variable} to {suggested} or more (it is {})", capacity / workers))
    };
    let advice = [
        advice("CACHE_SIZE", now.metrics.suggested_entries, settings.capacity),
        advice("CACHE_BYTES", now.metrics.suggested_bytes, settings.capacity_bytes),
    ];
    let affected = match workers {
        _ if now.cache_too_small == 0 => return None,
        1 => "Entries are evicted, or do not fit,".into(),
        all => format!("In {} of {all} workers, entries are evicted, or do not fit,", now.cache_too_small),
    };
    let advice = advice.into_iter().flatten().collect::<Vec<_>>().join(", and ");
    let text = format!("{affected} before they are requested again, so most requests go to Redis. Set {advice}.");
    Some(warning("Cache too small", text))
}

fn lost_log_lines(now: &Snapshot) -> Option<Problem> {
    let since = now.process.dropping_since?;
    let text = "Log lines were lost, because the log buffer was full or a write failed. The log is incomplete. Check the \
                free space and the speed of the disk of LOG_FILE, or the program that reads standard error and output.";
    Some(Problem { since: time(now, Some(since)), ..warning("Log lines lost", text.into()) })
}

fn critical(title: &'static str, text: String) -> Problem {
    Problem { severity: Severity::Critical, title, text, since: None }
}

fn warning(title: &'static str, text: String) -> Problem {
    Problem { severity: Severity::Warning, title, text, since: None }
}

fn time(now: &Snapshot, instant: Option<Instant>) -> Option<u64> {
    now.process.unix_time(instant?)
}

/// Returns true if `used` has nearly reached `limit`; 0 is no limit.
fn is_near(used: u64, limit: u64) -> bool {
    limit > 0 && u128::from(used) * 100 >= u128::from(limit) * u128::from(NEAR_LIMIT_PERCENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{ProcessStats, WorkerRow};
    use std::time::Duration;

    const MIB: usize = 1024 * 1024;

    /// Healthy proxy with two workers, and its settings.
    fn healthy() -> (Snapshot, InstanceInfo) {
        let read_at = Some((Instant::now(), 1_000_000.5));
        let process = ProcessStats { read_at, open_files: 20, max_open_files: 1000, ..ProcessStats::default() };
        let per_worker = vec![WorkerRow { has_redis: true, ..WorkerRow::default() }; 2];
        let now = Snapshot { workers: 2, process, per_worker, ..Snapshot::default() };
        let settings =
            InstanceInfo { capacity: 6, capacity_bytes: 2 * MIB, max_connections: 100, ..InstanceInfo::default() };
        (now, settings)
    }

    /// Returns the time of the figures in [`healthy`], less some seconds.
    fn ago(now: &Snapshot, seconds: u64) -> Option<Instant> {
        now.process.read_at.and_then(|(read_at, _)| read_at.checked_sub(Duration::from_secs(seconds)))
    }

    /// Returns the only problem after a change of the healthy proxy.
    fn only_problem(change: impl FnOnce(&mut Snapshot)) -> Problem {
        let (mut now, settings) = healthy();
        change(&mut now);
        let found = problems(&now, &settings);
        assert_eq!(found.len(), 1, "{found:?}");
        found.into_iter().next().expect("one problem")
    }

    fn assert_names(problem: &Problem, severity: Severity, title: &str, parts: &[&str]) {
        assert_eq!((problem.severity, problem.title), (severity, title));
        for part in parts {
            assert!(problem.text.contains(part), "no {part} in {}", problem.text);
        }
    }

    /// A healthy proxy has no problem, and neither has one without any figures.
    #[test]
    fn healthy_proxy_has_no_problem() {
        let (now, settings) = healthy();
        assert_eq!(problems(&now, &settings), []);
        assert_eq!(problems(&Snapshot::default(), &InstanceInfo::default()), []);
    }

    /// A stuck event loop is critical, with its number and its time.
    #[test]
    fn stuck_loop_is_critical() {
        let problem = only_problem(|now| (now.stuck_workers, now.stuck_since) = (1, ago(now, 30)));
        assert_names(&problem, Severity::Critical, "Event loop stuck", &["1 of 2 event loops", "Restart"]);
        assert_eq!(problem.since, Some(999_970));
    }

    /// An outage of Redis has its reason, its time, and the number of workers unless all have it.
    #[test]
    fn outage_shows_reason_and_time() {
        let fail = |now: &mut Snapshot, workers: usize| {
            now.redis.unavailable = Some("cannot connect to Redis at x:1".into());
            now.redis.unavailable_since = ago(now, 60);
            now.per_worker[..workers].iter_mut().for_each(|worker| worker.has_redis = false);
        };
        let problem = only_problem(|now| fail(now, 1));
        let parts = ["cannot connect to Redis at x:1. This concerns 1 of 2 workers", "REDIS_HOST", "not cached fail"];
        assert_names(&problem, Severity::Critical, "Redis unavailable", &parts);
        assert_eq!(problem.since, Some(999_940));
        assert!(!only_problem(|now| fail(now, 2)).text.contains("of 2 workers"));
    }

    /// A node that is unavailable is a problem of its keys only. If all are, Redis is.
    #[test]
    fn node_outage_shows_address_and_reason() {
        let fail = |now: &mut Snapshot| {
            let node = |address: &str, unavailable: Option<&str>| NodeRow {
                address: address.into(),
                unavailable: unavailable.map(str::to_owned),
                unavailable_since: unavailable.and_then(|_| ago(now, 60)),
                ..NodeRow::default()
            };
            now.redis.nodes = vec![node("a:1", None), node("b:1", Some("no reply")), node("c:1", None)];
        };
        let problem = only_problem(fail);
        let parts = ["1 of 3 nodes of Redis", "b:1: no reply", "other nodes"];
        assert_names(&problem, Severity::Critical, "Redis node unavailable", &parts);
        assert_eq!(problem.since, Some(999_940));
        let all = only_problem(|now| {
            fail(now);
            now.redis.unavailable = Some("gone".into());
        });
        assert_eq!(all.title, "Redis unavailable");
    }

    /// Connections are a problem from 90 % of their limit, and critical at the limit.
    #[test]
    fn connections_are_shown_near_limit() {
        let (mut now, settings) = healthy();
        now.metrics.connected_clients = 89;
        assert_eq!(problems(&now, &settings), []);
        let problem = only_problem(|now| now.metrics.connected_clients = 90);
        assert_names(&problem, Severity::Warning, "Connections near the limit", &["90% of 100", "MAX_CONNECTIONS"]);
        let problem = only_problem(|now| now.metrics.connected_clients = 100);
        assert_names(&problem, Severity::Critical, "Connection limit reached", &["All 100", "rejected"]);
    }

    /// Open files are a problem from 90 % of their limit. A limit that is unknown is none.
    #[test]
    fn files_are_shown_near_limit() {
        let (mut now, settings) = healthy();
        for (open, limit) in [(899, 1000), (5, 0), (1_000_000, u64::MAX)] {
            (now.process.open_files, now.process.max_open_files) = (open, limit);
            assert_eq!(problems(&now, &settings), []);
        }
        let problem = only_problem(|now| now.process.open_files = 900);
        assert_names(&problem, Severity::Warning, "Open files near the limit", &["90% of 1000", "LimitNOFILE="]);
    }

    /// The shutdown is shown.
    #[test]
    fn shutdown_is_shown() {
        let problem = only_problem(|now| now.stopping = true);
        assert_names(&problem, Severity::Warning, "Shutting down", &["SHUTDOWN_GRACE"]);
    }

    /// Lost tracking shows the freshness in force. Tracking that was never wanted is no problem.
    #[test]
    fn lost_tracking_shows_freshness() {
        let problem = only_problem(|now| {
            (now.tracking_wanted, now.tracking_active) = (2, 1);
            now.redis.freshness = "changes visible within CACHE_TTL=15 s".into();
            now.redis.tracking_lost_since = ago(now, 5);
        });
        let parts = ["for 1 of 2 workers", "within CACHE_TTL=15 s", "CLIENT TRACKING"];
        assert_names(&problem, Severity::Warning, "Tracking lost", &parts);
        assert_eq!(problem.since, Some(999_995));
        let (mut now, settings) = healthy();
        (now.tracking_wanted, now.tracking_active) = (2, 2);
        assert_eq!(problems(&now, &settings), []);
    }

    /// A cache that is too small shows the variable, its value and a better one, for one worker.
    #[test]
    fn small_cache_names_better_value() {
        let problem = only_problem(|now| (now.cache_too_small, now.metrics.suggested_entries) = (1, 5000));
        let parts = ["In 1 of 2 workers", "Set CACHE_SIZE to 5000 or more (it is 3)."];
        assert_names(&problem, Severity::Warning, "Cache too small", &parts);
        let problem = only_problem(|now| {
            (now.workers, now.cache_too_small) = (1, 1);
            (now.metrics.suggested_entries, now.metrics.suggested_bytes) = (7, 8 * MIB);
        });
        let parts =
            ["Entries are evicted, or do not fit, before", "to 7 or more (it is 6), and CACHE_BYTES to 8388608"];
        assert_names(&problem, Severity::Warning, "Cache too small", &parts);
    }

    /// Lost log lines are shown while the loss is recent.
    #[test]
    fn lost_lines_are_shown_while_recent() {
        let problem = only_problem(|now| (now.process.dropped_lines, now.process.dropping_since) = (7, ago(now, 1)));
        assert_names(&problem, Severity::Warning, "Log lines lost", &["LOG_FILE"]);
        assert_eq!(problem.since, Some(999_999));
        let (mut now, settings) = healthy();
        now.process.dropped_lines = 7;
        assert_eq!(problems(&now, &settings), [], "the loss is long ago");
    }

    /// Critical problems come first.
    #[test]
    fn critical_problems_come_first() {
        let (mut now, settings) = healthy();
        (now.cache_too_small, now.metrics.suggested_entries, now.stopping) = (1, 9, true);
        (now.metrics.connected_clients, now.process.open_files) = (100, 950);
        let titles: Vec<&str> = problems(&now, &settings).iter().map(|problem| problem.title).collect();
        assert_eq!(
            titles,
            ["Connection limit reached", "Open files near the limit", "Shutting down", "Cache too small"]
        );
    }
}
