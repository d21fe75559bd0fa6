//! `/stats`: all metrics as one JSON object, for the dashboard and for scripts.
//!
//! Counters start at 0 with the process, and times are in seconds. `figures` has the texts of the
//! dashboard's current values, `tables` the cells of all its tables, and `problems` its problems.
//! `traffic` counts requests without those for admin endpoints.

use super::diagnosis::{Problem, problems};
use super::health::not_ready_reason;
use super::json::{array, object, quote, quote_or_null};
use super::tables::{Rows, figures, tables};
use crate::log_format::rfc3339_seconds;
use crate::metrics::{
    AuthFailure, BATCH_SIZE_BUCKETS, Histogram, InstanceInfo, LATENCY_BUCKETS_US, NodeRow, Protocol, RequestOutcome,
    Snapshot, TimeoutKind, TlsHandshakeResult, TrackingState,
};
use crate::protocol::http::Status;
use crate::types::Failure;

/// Keys of `figures` that differ from the labels of their rows. Labels may be reworded; keys stay,
/// because scripts read them.
const FIGURE_KEYS: [(&str, &str); 12] = [
    ("HTTP requests", "Requests over HTTP"),
    ("RESP requests", "Requests over RESP"),
    ("Cached bytes (keys and values)", "Bytes of keys and values"),
    ("Freshness guarantee", "Freshness"),
    ("Redis connections", "Connections to Redis"),
    ("Redis round trips", "Round trips to Redis"),
    ("Queued keys", "Keys in the queue"),
    ("Failed key reads", "Keys that could not be read"),
    ("Client connections", "Clients"),
    ("Rejected connections", "Clients without a place"),
    ("Client timeouts", "Clients that took too long"),
    ("CPU time", "Processor time"),
];

/// Microseconds in a second.
const MICROS_PER_SECOND: f64 = 1e6;

/// Renders all metrics.
pub fn json(now: &Snapshot, settings: &InstanceInfo) -> String {
    let Snapshot { metrics, redis, process, .. } = now;
    let outcomes =
        |protocol: usize| object(RequestOutcome::NAMES.into_iter().zip(metrics.requests_by_outcome[protocol]));
    let responses = Status::ALL.into_iter().zip(metrics.responses).filter(|&(_, count)| count > 0);
    let latency = [
        ("bounds", array(LATENCY_BUCKETS_US.map(|bound| bound as f64 / MICROS_PER_SECOND))),
        ("hit", histogram(&metrics.hit_latency, MICROS_PER_SECOND)),
        ("miss", histogram(&metrics.miss_latency, MICROS_PER_SECOND)),
        ("tick", histogram(&metrics.tick_duration, MICROS_PER_SECOND)),
        ("round_trip", histogram(&redis.counters.round_trip_durations, MICROS_PER_SECOND)),
    ];
    let cache = [
        ("entries", metrics.entries as u64),
        ("bytes", metrics.bytes as u64),
        ("capacity", settings.capacity as u64),
        ("capacity_bytes", settings.capacity_bytes as u64),
        ("evicted", metrics.evicted),
        ("evicted_early", metrics.early_evictions),
        ("expired", metrics.expired),
        ("invalidated", metrics.invalidated),
    ];
    let clients = [
        ("connected", metrics.connected_clients.to_string()),
        ("most", settings.max_connections.to_string()),
        ("accepted", metrics.accepted.to_string()),
        ("rejected", metrics.rejected.to_string()),
        ("tracking", metrics.tracking_clients.to_string()),
        ("tracked_keys", metrics.tracked_keys.to_string()),
        ("tracking_pushes", metrics.tracking_pushes.to_string()),
        ("timed_out", object(TimeoutKind::NAMES.into_iter().zip(metrics.timeouts))),
        ("auth_failures", object(Protocol::NAMES.into_iter().zip(metrics.auth_failures.map(auth_failures)))),
        ("tls_handshakes", object(TlsHandshakeResult::NAMES.into_iter().zip(metrics.tls_handshakes))),
    ];
    let watching = [
        ("watchers", metrics.watchers as u64),
        ("keys", metrics.watched_keys as u64),
        ("events", metrics.watch_events),
        ("changes_merged", metrics.watch_changes_merged),
    ];
    let tracking = match redis.tracking {
        TrackingState::Off => "off",
        TrackingState::On => "on",
        TrackingState::Lost => "lost",
    };
    let redis = [
        ("answers", redis.unavailable.is_none().to_string()),
        ("reason", quote_or_null(redis.unavailable.as_deref())),
        ("freshness", quote(&redis.freshness)),
        ("tracking", quote(tracking)),
        ("epochs", metrics.flushes.to_string()),
        ("nodes", array(redis.nodes.iter().map(node))),
        ("redirections", object(["moved", "ask"].into_iter().zip(redis.counters.redirections))),
        ("topology_requests", redis.topology_requests.to_string()),
        ("topology_changes", redis.topology_changes.to_string()),
        ("connections", redis.counters.connections.to_string()),
        ("in_flight", metrics.inflight_keys.to_string()),
        ("queued", redis.counters.queued.to_string()),
        ("round_trips", redis.counters.round_trips.to_string()),
    ];
    let batches = [("bounds", array(BATCH_SIZE_BUCKETS)), ("reads", histogram(&now.redis.counters.batch_sizes, 1.0))];
    let system = [
        ("resident_bytes", process.resident_bytes.to_string()),
        ("open_files", process.open_files.to_string()),
        ("most_files", process.max_open_files.to_string()),
        ("cpu_seconds", process.cpu_seconds.to_string()),
    ];
    let figures = figures(now, settings);
    let all = [
        ("version", quote(env!("CARGO_PKG_VERSION"))),
        ("uptime_seconds", (metrics.uptime as f64 / 1e3).to_string()),
        ("workers", now.workers.to_string()),
        ("stuck", now.stuck_workers.to_string()),
        ("ready", not_ready_reason(now).is_none().to_string()),
        ("reason", quote_or_null(not_ready_reason(now))),
        ("requests", object(Protocol::NAMES.into_iter().zip([outcomes(0), outcomes(1)]))),
        ("responses", object(responses.map(|(status, count)| (status.code(), count)))),
        ("keys", object([("hits", metrics.hits), ("misses", metrics.misses), ("collapsed", metrics.collapsed)])),
        ("cache", object(cache)),
        ("clients", object(clients)),
        ("watching", object(watching)),
        ("redis", object(redis)),
        ("errors", object(Failure::KINDS.into_iter().zip(metrics.failures))),
        ("latency", object(latency)),
        ("batches", object(batches)),
        ("process", object(system)),
        ("log_lines_dropped", process.dropped_lines.to_string()),
        ("figures", object(figures.iter().map(|(label, value)| (figure_key(label), quote(value))))),
        ("configuration", object(settings.configuration.iter().map(|setting| (setting.name, quote(&setting.value))))),
        ("problems", array(problems(now, settings).iter().map(problem))),
        ("traffic", object(Protocol::NAMES.into_iter().zip(metrics.key_traffic()))),
        ("tables", object(tables(now, settings).iter().map(|(name, rows)| (*name, cells(rows))))),
    ];
    object(all) + "\n"
}

fn auth_failures(counts: [u64; AuthFailure::NAMES.len()]) -> String {
    object(AuthFailure::NAMES.into_iter().zip(counts))
}

fn problem(problem: &Problem) -> String {
    object([
        ("severity", quote(problem.severity.name())),
        ("title", quote(problem.title)),
        ("text", quote(&problem.text)),
        ("since", quote_or_null(problem.since.map(rfc3339_seconds).as_deref())),
    ])
}

fn cells(rows: &Rows) -> String {
    array(rows.iter().map(|row| array(row.iter().map(|cell| quote(cell)))))
}

/// Renders one node of Redis.
fn node(node: &NodeRow) -> String {
    object([
        ("address", quote(&node.address)),
        ("reason", quote_or_null(node.unavailable.as_deref())),
        ("connections", node.connections.to_string()),
        ("queued", node.queued.to_string()),
    ])
}

/// Returns the key in `figures` of the row with this label.
fn figure_key(label: &'static str) -> &'static str {
    FIGURE_KEYS.iter().find(|(reworded, _)| *reworded == label).map_or(label, |(_, key)| key)
}

fn histogram<const N: usize>(histogram: &Histogram<N>, unit: f64) -> String {
    object([("counts", array(histogram.counts())), ("sum", (histogram.sum() as f64 / unit).to_string())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Setting, WorkerMetrics};

    /// All metrics are one JSON object, and its strings are escaped.
    #[test]
    fn stats_are_json() {
        let mut now = Snapshot { workers: 2, ..Snapshot::default() };
        now.metrics = WorkerMetrics { uptime: 1500, hits: 3, ..WorkerMetrics::default() };
        now.metrics.hit_latency.observe(15, 2);
        now.metrics.responses[Status::NotFound as usize] = 4;
        now.redis.unavailable = Some("a \"reason\"".into());
        let setting = Setting { name: "REDIS_HOST", value: "a\nb".into(), ..Setting::default() };
        let settings = InstanceInfo { configuration: vec![setting], ..InstanceInfo::default() };
        let text = json(&now, &settings);
        for part in [
            r#""uptime_seconds":1.5,"workers":2,"stuck":0,"ready":false,"reason":"a \"reason\"","requests":{"http":{"hit":0,"#,
            r#""responses":{"404":4},"keys":{"hits":3,"misses":0,"collapsed":0}"#,
            r#""redis":{"answers":false,"reason":"a \"reason\"","#,
            r#""latency":{"bounds":[0.00001,0.00002,"#,
            r#""hit":{"counts":[0,2,0,"#,
            r#"],"sum":0.00003},"miss""#,
            r#""figures":{"Version":""#,
            r#""configuration":{"REDIS_HOST":"a\nb"}"#,
            r#""problems":[{"severity":"critical","title":"Redis unavailable","text":"a \"reason\"."#,
            r#""since":null}],"traffic":{"http":0,"resp":0},"tables":{"figures":[["Version",""#,
            r#""configuration":[["REDIS_HOST","a\nb",""]]}}"#,
        ] {
            assert!(text.contains(part), "no {part} in {text}");
        }
    }

    /// A reworded label keeps its key.
    #[test]
    fn figure_keys_match_labels() {
        let (now, settings) = (Snapshot::default(), InstanceInfo::default());
        let rows = figures(&now, &settings);
        for (label, key) in FIGURE_KEYS {
            assert!(rows.iter().any(|(shown, _)| *shown == label), "no row {label}");
            assert!(json(&now, &settings).contains(&format!("\"{key}\":")), "no key {key}");
        }
    }
}
