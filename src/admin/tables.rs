//! Tables of the page: text of each cell. The page has them as HTML, `/stats` as JSON for its
//! script.

use crate::metrics::{InstanceInfo, NodeRow, RedisSummary, Setting, Snapshot, TrackingState, WorkerRow};

/// Rows of one table. The first cell of a row is its head.
pub type Rows = Vec<Vec<String>>;

/// Returns the name and the rows of each table.
pub fn tables(now: &Snapshot, settings: &InstanceInfo) -> [(&'static str, Rows); 4] {
    let figures = figures(now, settings).into_iter().map(|(name, value)| vec![name.to_owned(), value]);
    let workers = now.per_worker.iter().enumerate().map(|(number, worker)| worker_cells(number, worker));
    [
        ("figures", figures.collect()),
        ("limits", limits(now, settings)),
        ("per-worker", workers.collect()),
        ("configuration", settings.configuration.iter().map(setting_cells).collect()),
    ]
}

/// Returns name and text of each current value.
pub fn figures(now: &Snapshot, settings: &InstanceInfo) -> Vec<(&'static str, String)> {
    let Snapshot { metrics, redis, process, .. } = now;
    let of = |count: usize, max: usize| format!("{} of {}", with_thousands(count as u64), with_thousands(max as u64));
    let total = |counts: &[u64]| with_thousands(counts.iter().sum());
    let requests: u64 = metrics.requests_by_outcome.as_flattened().iter().sum();
    vec![
        ("Version", env!("CARGO_PKG_VERSION").into()),
        ("Uptime", duration(metrics.uptime / 1000)),
        ("Workers", with_thousands(now.workers as u64)),
        ("HTTP requests", total(&metrics.requests_by_outcome[0])),
        ("RESP requests", total(&metrics.requests_by_outcome[1])),
        (
            "Requests for this page, metrics and health",
            with_thousands(requests - metrics.key_traffic().iter().sum::<u64>()),
        ),
        ("Hit ratio", hit_ratio(metrics.hits, metrics.misses)),
        ("Hits", with_thousands(metrics.hits)),
        ("Misses", with_thousands(metrics.misses)),
        ("Collapsed misses", with_thousands(metrics.collapsed)),
        ("Entries", of(metrics.entries, settings.capacity)),
        ("Cached bytes (keys and values)", with_thousands(metrics.bytes as u64)),
        ("Evicted", with_thousands(metrics.evicted)),
        ("Evicted within a tenth of CACHE_TTL", with_thousands(metrics.early_evictions)),
        ("Expired", with_thousands(metrics.expired)),
        ("Invalidated", with_thousands(metrics.invalidated)),
        ("Redis", redis.unavailable.clone().unwrap_or("available".into())),
        ("Redis nodes", nodes(redis)),
        ("Freshness guarantee", redis.freshness.clone()),
        ("Redis connections", with_thousands(redis.counters.connections as u64)),
        ("Redis round trips", with_thousands(redis.counters.round_trips)),
        ("Keys in flight", with_thousands(metrics.inflight_keys as u64)),
        ("Queued keys", with_thousands(redis.counters.queued as u64)),
        ("Failed key reads", total(&metrics.failures)),
        ("Client connections", of(metrics.connected_clients, settings.max_connections)),
        ("Rejected connections", with_thousands(metrics.rejected)),
        ("Client timeouts", total(&metrics.timeouts)),
        ("Watchers", with_thousands(metrics.watchers as u64)),
        ("Watched keys", with_thousands(metrics.watched_keys as u64)),
        ("Events to watchers", with_thousands(metrics.watch_events)),
        ("Merged changes", with_thousands(metrics.watch_changes_merged)),
        ("Failed authentications", total(metrics.auth_failures.as_flattened())),
        ("Lost log lines", with_thousands(process.dropped_lines)),
        ("Resident memory", mebibytes(process.resident_bytes)),
        ("Peak of resident memory", mebibytes(process.peak_resident_bytes)),
        ("Open files", of(process.open_files as usize, process.max_open_files as usize)),
        ("CPU time", format!("{:.1} s", process.cpu_seconds)),
    ]
}

/// Returns the addresses of the nodes, with their problems.
fn nodes(redis: &RedisSummary) -> String {
    let node = |node: &NodeRow| match &node.unavailable {
        Some(_) => format!("{} (unavailable)", node.address),
        None => node.address.clone(),
    };
    match &redis.nodes[..] {
        [] => "-".into(),
        nodes => nodes.iter().map(node).collect::<Vec<_>>().join(", "),
    }
}

/// Returns present value, peak and limit of each figure that has a limit.
fn limits(now: &Snapshot, settings: &InstanceInfo) -> Rows {
    let Snapshot { metrics, redis, process, peaks, .. } = now;
    let row = |name: &str, current: u64, peak: u64, limit: u64| {
        let limits = match limit {
            0 | u64::MAX => ["no limit".into(), "-".into()],
            _ => [with_thousands(limit), percent(current, limit)],
        };
        [name.to_owned(), with_thousands(current), with_thousands(peak)].into_iter().chain(limits).collect()
    };
    vec![
        row(
            "Client connections",
            metrics.connected_clients as u64,
            peaks.connections as u64,
            settings.max_connections as u64,
        ),
        row("Entries", metrics.entries as u64, peaks.entries as u64, settings.capacity as u64),
        row("Cached bytes", metrics.bytes as u64, peaks.bytes as u64, settings.capacity_bytes as u64),
        row(
            "Queued keys",
            redis.counters.queued as u64,
            peaks.queued as u64,
            (settings.queue_limit * redis.nodes.len().max(1)) as u64,
        ),
        row("Open files", process.open_files, peaks.open_files, process.max_open_files),
    ]
}

fn worker_cells(number: usize, worker: &WorkerRow) -> Vec<String> {
    let redis = match (worker.has_redis, worker.tracking) {
        (false, _) => "unavailable",
        (true, TrackingState::Lost) => "tracking lost",
        (true, _) => "available",
    };
    vec![
        number.to_string(),
        with_thousands(worker.connections as u64),
        with_thousands(worker.requests),
        with_thousands(worker.hits),
        hit_ratio(worker.hits, worker.misses),
        with_thousands(worker.entries as u64),
        with_thousands(worker.evicted),
        if worker.is_stuck { "stuck" } else { "running" }.into(),
        redis.into(),
    ]
}

/// Returns name, value with unit, and the mark of a changed value.
fn setting_cells(setting: &Setting) -> Vec<String> {
    let Setting { name, value, unit, is_changed } = setting;
    // A value such as `60s` has its unit already.
    let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let shown = if is_number && !unit.is_empty() { format!("{value} {unit}") } else { value.clone() };
    vec![(*name).to_owned(), shown, if *is_changed { "changed" } else { "" }.into()]
}

fn hit_ratio(hits: u64, misses: u64) -> String {
    if hits + misses == 0 { "-".into() } else { percent(hits, hits + misses) }
}

/// Formats a share in percent, rounded down: 100 % means all.
fn percent(part: u64, whole: u64) -> String {
    let permille = u128::from(part) * 1000 / u128::from(whole);
    format!("{}.{} %", permille / 10, permille % 10)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    format!("{days} d {hours:02}:{minutes:02}:{:02}", seconds % 60)
}

/// Formats a number with commas between thousands.
fn with_thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(now: &Snapshot, settings: &InstanceInfo, name: &str) -> Rows {
        tables(now, settings).into_iter().find(|(table, _)| *table == name).expect("a table").1
    }

    /// Durations show days, numbers show commas, and ratios are rounded down.
    #[test]
    fn numbers_are_readable() {
        assert_eq!(duration(90_061), "1 d 01:01:01");
        assert_eq!([0, 999, 1000, 1_234_567].map(with_thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [(1, 3), (99_999, 100_000), (5, 5)].map(|(part, whole)| percent(part, whole)),
            ["33.3 %", "99.9 %", "100.0 %"]
        );
    }

    /// Each limit has its present value, its peak and the share in use. No limit has no share.
    #[test]
    fn limits_show_peak_and_share() {
        let mut now = Snapshot::default();
        (now.metrics.connected_clients, now.peaks.connections) = (900, 1000);
        let settings = InstanceInfo { max_connections: 1200, ..InstanceInfo::default() };
        let rows = rows(&now, &settings, "limits");
        assert_eq!(rows[0], ["Client connections", "900", "1,000", "1,200", "75.0 %"]);
        assert_eq!(rows[2], ["Cached bytes", "0", "0", "no limit", "-"]);
    }

    /// Each worker has a row with its own state.
    #[test]
    fn workers_have_rows() {
        let busy = WorkerRow { requests: 1234, hits: 3, misses: 1, has_redis: true, ..WorkerRow::default() };
        let lost = WorkerRow { tracking: TrackingState::Lost, has_redis: true, ..WorkerRow::default() };
        let now = Snapshot {
            per_worker: vec![busy, lost, WorkerRow { is_stuck: true, ..WorkerRow::default() }],
            ..Snapshot::default()
        };
        let rows = rows(&now, &InstanceInfo::default(), "per-worker");
        assert_eq!(rows[0], ["0", "0", "1,234", "3", "75.0 %", "0", "0", "running", "available"]);
        assert_eq!(rows[1][7..], ["running", "tracking lost"]);
        assert_eq!(rows[2][7..], ["stuck", "unavailable"]);
    }

    /// A bare number shows its unit, and a value that differs from the default is marked.
    #[test]
    fn settings_show_unit_and_change() {
        let setting = |value: &str, unit, is_changed| Setting { name: "NAME", value: value.into(), unit, is_changed };
        assert_eq!(setting_cells(&setting("0.5", "s", true)), ["NAME", "0.5 s", "changed"]);
        assert_eq!(setting_cells(&setting("60s", "s", false)), ["NAME", "60s", ""]);
        assert_eq!(setting_cells(&setting("on", "", true)), ["NAME", "on", "changed"]);
    }
}
