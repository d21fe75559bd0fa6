//! `/metrics`: the text format of Prometheus, version 0.0.4.
//!
//! Names follow the conventions of Prometheus: base units, and `_total` for counters. Names and
//! labels are stable, because dashboards and alerts depend on them.

use crate::metrics::{
    AuthFailure, Histogram, InstanceInfo, Protocol, RequestOutcome, Snapshot, TimeoutKind, TlsHandshakeResult,
};
use crate::protocol::http::Status;
use crate::types::Failure;
use std::fmt::{Display, Write};

/// Microseconds in a second.
const MICROS_PER_SECOND: f64 = 1e6;

/// Text of the response, built metric by metric.
struct Exposition(String);

impl Exposition {
    /// Begins a metric. `help` must have no line feed and no backslash.
    fn begin(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a String cannot fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    /// Adds a metric of one sample: a counter if the name ends in `_total`, else a gauge.
    fn metric(&mut self, name: &str, value: impl Display, help: &str) {
        self.begin(name, if name.ends_with("_total") { "counter" } else { "gauge" }, help);
        self.sample(name, "", value);
    }

    /// Adds a counter with one sample for each value of a label.
    fn labelled_counter<'a>(
        &mut self,
        name: &str,
        label: &str,
        help: &str,
        samples: impl IntoIterator<Item = (&'a str, u64)>,
    ) {
        self.begin(name, "counter", help);
        for (value, count) in samples {
            self.sample(name, &format!("{{{label}=\"{value}\"}}"), count);
        }
    }

    /// Adds a histogram. Its values are divided by `unit`.
    fn histogram<const N: usize>(&mut self, name: &str, histogram: &Histogram<N>, unit: f64, help: &str) {
        self.begin(name, "histogram", help);
        let bounds = histogram.bounds().iter().map(|&bound| (bound as f64 / unit).to_string());
        let mut total = 0;
        for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(histogram.counts()) {
            total += count;
            self.sample(&format!("{name}_bucket"), &format!("{{le=\"{bound}\"}}"), total);
        }
        self.sample(&format!("{name}_sum"), "", histogram.sum() as f64 / unit);
        self.sample(&format!("{name}_count"), "", total);
    }
}

/// Renders all metrics.
pub fn text(now: &Snapshot, settings: &InstanceInfo) -> String {
    let mut text = Exposition(String::with_capacity(16 * 1024));
    requests(&mut text, now);
    cache(&mut text, now, settings);
    clients(&mut text, now, settings);
    redis(&mut text, now);
    process(&mut text, now);
    text.0
}

fn requests(text: &mut Exposition, now: &Snapshot) {
    let metrics = &now.metrics;
    let name = "segment_requests_total";
    text.begin(name, "counter", "Completed requests, by protocol and outcome.");
    for (protocol, counts) in Protocol::NAMES.into_iter().zip(metrics.requests_by_outcome) {
        for (outcome, count) in RequestOutcome::NAMES.into_iter().zip(counts) {
            text.sample(name, &format!("{{protocol=\"{protocol}\",outcome=\"{outcome}\"}}"), count);
        }
    }
    let responses = Status::ALL.into_iter().map(Status::code).zip(metrics.responses);
    text.labelled_counter("segment_http_responses_total", "code", "HTTP responses, by status code.", responses);
    let failures = Failure::KINDS.into_iter().zip(metrics.failures);
    text.labelled_counter("segment_errors_total", "kind", "Failed key reads, by kind of error.", failures);
    text.histogram(
        "segment_hit_seconds",
        &metrics.hit_latency,
        MICROS_PER_SECOND,
        "Time from receiving a request to the end of the event loop turn that answered it from the cache.",
    );
    text.histogram(
        "segment_miss_seconds",
        &metrics.miss_latency,
        MICROS_PER_SECOND,
        "Time from receiving a request to its reply, for requests that waited for Redis.",
    );
    text.histogram(
        "segment_tick_seconds",
        &metrics.tick_duration,
        MICROS_PER_SECOND,
        "Working time of an event loop tick; other clients of the loop wait meanwhile.",
    );
}

fn cache(text: &mut Exposition, now: &Snapshot, settings: &InstanceInfo) {
    let metrics = &now.metrics;
    text.metric("segment_hits_total", metrics.hits, "Requested keys found in the cache.");
    text.metric("segment_misses_total", metrics.misses, "Requested keys not found in the cache.");
    text.metric("segment_collapsed_total", metrics.collapsed, "Misses that joined a fetch in flight.");
    text.metric("segment_evictions_total", metrics.evicted, "Entries evicted to stay within the capacity.");
    text.metric(
        "segment_early_evictions_total",
        metrics.early_evictions,
        "Evicted entries that were in the first tenth of CACHE_TTL.",
    );
    text.metric(
        "segment_cache_too_small",
        now.cache_too_small,
        "Workers with more early evictions and values that did not fit than hits within 10 s.",
    );
    text.metric(
        "segment_cache_suggested_entries",
        metrics.suggested_entries,
        "CACHE_SIZE that would be large enough, 0 if the present one is no problem.",
    );
    text.metric(
        "segment_cache_suggested_bytes",
        metrics.suggested_bytes,
        "CACHE_BYTES that would be large enough, 0 if the present one is no problem.",
    );
    text.metric("segment_expirations_total", metrics.expired, "Entries removed because they expired.");
    text.metric("segment_invalidations_total", metrics.invalidated, "Entries removed by an invalidation from Redis.");
    text.metric("segment_cache_entries", metrics.entries, "Keys in the cache.");
    text.metric("segment_cache_bytes", metrics.bytes, "Bytes of keys and values in the cache.");
    text.metric("segment_cache_capacity_entries", settings.capacity, "Cache capacity in keys, of all workers.");
    text.metric("segment_inflight_keys", metrics.inflight_keys, "Keys with a fetch from Redis in flight.");
}

fn clients(text: &mut Exposition, now: &Snapshot, settings: &InstanceInfo) {
    let metrics = &now.metrics;
    text.metric("segment_connections", metrics.connected_clients, "Open client connections.");
    text.metric("segment_connections_limit", settings.max_connections, "Limit of client connections.");
    text.metric("segment_connections_accepted_total", metrics.accepted, "Accepted client connections.");
    text.metric("segment_connections_rejected_total", metrics.rejected, "Client connections rejected at the limit.");
    text.metric("segment_watchers", metrics.watchers, "Keys that event streams and long polls watch.");
    text.metric(
        "segment_watched_keys",
        metrics.watched_keys,
        "Different keys that are watched, added up over workers.",
    );
    text.metric("segment_watch_events_total", metrics.watch_events, "Events sent to watchers.");
    text.metric(
        "segment_watch_changes_merged_total",
        metrics.watch_changes_merged,
        "Changes of watched keys that shared a read with an earlier change.",
    );
    text.metric(
        "segment_client_tracking_clients",
        metrics.tracking_clients,
        "Open client connections with CLIENT TRACKING, which cache values themselves.",
    );
    text.metric(
        "segment_client_tracking_keys",
        metrics.tracked_keys,
        "Keys that these clients may have cached, counted for each of them.",
    );
    text.metric(
        "segment_client_tracking_pushes_total",
        metrics.tracking_pushes,
        "Invalidations sent to these clients because Redis reported a change, or at a limit.",
    );
    text.labelled_counter(
        "segment_client_timeouts_total",
        "kind",
        "Client connections closed by a timeout: incomplete request (request), no request (idle) or replies not read \
         (reply).",
        TimeoutKind::NAMES.into_iter().zip(metrics.timeouts),
    );
    let name = "segment_client_auth_failures_total";
    text.begin(
        name,
        "counter",
        "Refused credentials of clients: not valid (wrong), or not checked after too many (throttled).",
    );
    for (protocol, counts) in Protocol::NAMES.into_iter().zip(metrics.auth_failures) {
        for (reason, count) in AuthFailure::NAMES.into_iter().zip(counts) {
            text.sample(name, &format!("{{protocol=\"{protocol}\",reason=\"{reason}\"}}"), count);
        }
    }
    text.labelled_counter(
        "segment_tls_handshakes_total",
        "result",
        "TLS handshakes with clients: new session (full), resumed session (resumed) or not completed (failed).",
        TlsHandshakeResult::NAMES.into_iter().zip(metrics.tls_handshakes),
    );
    if let Some(tls) = &settings.tls {
        text.labelled_counter(
            "segment_tls_certificate_loads_total",
            "result",
            "Loads of TLS_CERT and TLS_KEY that changed them, by result.",
            ["ok", "failed"].into_iter().zip(tls.loads()),
        );
        if let Some(not_after) = tls.not_after() {
            text.metric(
                "segment_tls_certificate_expiry_timestamp_seconds",
                not_after,
                "End of the validity of TLS_CERT in seconds since the Unix epoch.",
            );
        }
    }
}

fn redis(text: &mut Exposition, now: &Snapshot) {
    let Snapshot { metrics, redis, .. } = now;
    text.metric(
        "segment_redis_up",
        u8::from(redis.unavailable.is_none()),
        "1 if Redis is available to all workers, else 0.",
    );
    text.metric("segment_redis_nodes", redis.nodes.len(), "Nodes of Redis that keys are read from.");
    text.metric(
        "segment_redis_nodes_unavailable",
        redis.unavailable_nodes().count(),
        "Nodes of Redis that are unavailable to some worker.",
    );
    let redirections = ["moved", "ask"].into_iter().zip(redis.counters.redirections);
    text.labelled_counter(
        "segment_redis_redirections_total",
        "kind",
        "Keys that a node of Redis Cluster redirected to another node, by kind of redirection.",
        redirections,
    );
    text.metric(
        "segment_redis_topology_requests_total",
        redis.topology_requests,
        "Searches for the nodes of Redis (REDIS_MODE=sentinel, cluster).",
    );
    text.metric(
        "segment_redis_topology_changes_total",
        redis.topology_changes,
        "Changes of the nodes of Redis or of their keys, the first included.",
    );
    text.metric("segment_redis_connections", redis.counters.connections, "Open connections of fetchers to Redis.");
    let connects = ["ok", "failed"].into_iter().zip(redis.counters.connect_attempts);
    text.labelled_counter(
        "segment_redis_connects_total",
        "result",
        "Attempts of fetchers to connect to Redis, by result.",
        connects,
    );
    text.metric(
        "segment_redis_connections_lost_total",
        redis.counters.disconnects,
        "Connections of fetchers to Redis that were closed.",
    );
    text.metric(
        "segment_redis_round_trips_total",
        redis.counters.round_trips,
        "Round trips to Redis; a pipeline of commands counts once.",
    );
    text.histogram(
        "segment_redis_round_trip_seconds",
        &redis.counters.round_trip_durations,
        MICROS_PER_SECOND,
        "Time from sending commands to Redis to the first reply; a failed round trip has none.",
    );
    text.histogram("segment_redis_batch_keys", &redis.counters.batch_sizes, 1.0, "Keys read from Redis in one batch.");
    text.metric("segment_queue_length", redis.counters.queued, "Keys in the queue, waiting for a fetcher.");
    text.metric("segment_tracking_wanted", now.tracking_wanted, "Workers configured for tracking (REDIS_TRACKING=on).");
    text.metric(
        "segment_tracking_active",
        now.tracking_active,
        "Workers with active tracking, which receive invalidations from Redis.",
    );
    text.metric(
        "segment_tracking_epochs_total",
        metrics.flushes,
        "Times that the whole cache was flushed or expired, because any key may have changed.",
    );
}

fn process(text: &mut Exposition, now: &Snapshot) {
    let Snapshot { metrics, process, .. } = now;
    text.begin("segment_build_info", "gauge", "Version of the proxy.");
    text.sample("segment_build_info", concat!("{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1);
    text.metric("segment_workers", now.workers, "Event loops (workers).");
    text.metric("segment_workers_stuck", now.stuck_workers, "Event loops that are stuck.");
    text.metric("segment_uptime_seconds", metrics.uptime as f64 / 1e3, "Time since the start of the proxy.");
    text.metric(
        "segment_log_lines_dropped_total",
        process.dropped_lines,
        "Log lines lost because the log buffer was full or a write failed.",
    );
    text.metric("process_resident_memory_bytes", process.resident_bytes, "Resident memory.");
    text.metric("process_open_fds", process.open_files, "Open file descriptors.");
    text.metric("process_max_fds", process.max_open_files, "Limit of open file descriptors.");
    text.metric("process_cpu_seconds_total", process.cpu_seconds, "User and system CPU time.");
    text.metric("process_start_time_seconds", process.started, "Start time in seconds since the Unix epoch.");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Histogram buckets are cumulative and in seconds.
    #[test]
    fn histogram_is_cumulative_and_in_seconds() {
        let mut now = Snapshot::default();
        now.metrics.hit_latency.observe(15, 2);
        now.metrics.hit_latency.observe(20_000_000, 1);
        let text = text(&now, &InstanceInfo::default());
        for line in [
            "# TYPE segment_hit_seconds histogram",
            "segment_hit_seconds_bucket{le=\"0.00001\"} 0",
            "segment_hit_seconds_bucket{le=\"0.00002\"} 2",
            "segment_hit_seconds_bucket{le=\"10\"} 2",
            "segment_hit_seconds_bucket{le=\"+Inf\"} 3",
            "segment_hit_seconds_sum 20.00003",
            "segment_hit_seconds_count 3",
            "segment_requests_total{protocol=\"resp\",outcome=\"other\"} 0",
            "# TYPE segment_hits_total counter",
            "# TYPE segment_cache_entries gauge",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in {text}");
        }
    }

    /// Each metric has one type and one help text.
    #[test]
    fn metric_names_are_unique() {
        let text = text(&Snapshot::default(), &InstanceInfo::default());
        let mut names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!((names.len(), text.matches("# HELP ").count()), (count, count));
    }
}
