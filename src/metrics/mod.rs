//! Metrics of the proxy as plain data.
//!
//! Each event loop counts in a [`WorkerMetrics`] of its own, without locks or atomics. It publishes
//! a copy when the watchdog pings it, once a second, and when one of its clients asks for metrics.
//! A reader adds up the copies of all workers.
//!
//! | file | contents |
//! |---|---|
//! | `histogram.rs` | latencies and batch sizes |
//! | `recorder.rs` | the counting of one event loop while it serves |
//! | `access_log.rs` | the lines of its access log |
//! | `redis_status.rs` | the state of Redis and its nodes |
//! | `registry.rs` | the copies of all workers, and figures of the process |
//! | `tls.rs` | the certificate in use, and loads of certificates |

mod access_log;
mod histogram;
mod recorder;
mod redis_status;
mod registry;
mod tls;

pub use access_log::push_escaped;
pub use histogram::{BATCH_SIZE_BUCKETS, BatchSizeHistogram, Histogram, LATENCY_BUCKETS_US, LatencyHistogram};
pub use recorder::{Recorder, RequestInfo};
pub use redis_status::{NodeCounters, NodeRow, NodeStatus, RedisStatus, RedisSummary, TrackingState};
pub use registry::{InstanceInfo, MetricsRegistry, Peaks, ProcessStats, Setting, Snapshot, WorkerRow, WorkerSlot};
pub use tls::TlsStatus;

use crate::protocol::http::Status;
use crate::types::{Failure, Millis};
use std::time::Instant;

/// Microseconds since the event loop started.
pub type Micros = u64;

/// Protocol of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP.
    Http,
    /// The Redis protocol.
    Resp,
}

impl Protocol {
    /// Label values of the metrics, in the order of the variants.
    pub const NAMES: [&'static str; 2] = ["http", "resp"];
}

/// Result of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    /// The cache had the value.
    Hit,
    /// A fetch from Redis brought the value.
    Miss,
    /// A fetch that another request had started brought the value.
    Collapsed,
    /// Redis was unavailable, and the reply had an expired value.
    Stale,
    /// Redis has no such key.
    Missing,
    /// The key could not be read.
    Failed,
    /// A request for several keys, answered.
    Many,
    /// A request that waited for changes of keys, ended by the client or the proxy.
    Watched,
    /// The request was malformed or not allowed.
    Refused,
    /// The client disconnected before the reply.
    Aborted,
    /// A request without a key, answered.
    Other,
}

impl RequestOutcome {
    /// Label values of the metrics, in the order of the variants.
    pub const NAMES: [&'static str; 11] =
        ["hit", "miss", "collapsed", "stale", "missing", "failed", "many", "watched", "refused", "aborted", "other"];

    /// Returns the label value.
    pub fn name(self) -> &'static str {
        RequestOutcome::NAMES[self as usize]
    }
}

/// Timeout that closed a client connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutKind {
    /// The client did not send the whole request in time.
    Request,
    /// The client sent no request.
    Idle,
    /// The client did not read its replies.
    Reply,
}

impl TimeoutKind {
    /// Label values of the metrics, in the order of the variants.
    pub const NAMES: [&'static str; 3] = ["request", "idle", "reply"];
}

/// Reason why the credentials of a client were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthFailure {
    /// They are not valid.
    Wrong,
    /// They were not checked, because the address sent too many wrong ones.
    Throttled,
}

impl AuthFailure {
    /// Label values of the metrics, in the order of the variants.
    pub const NAMES: [&'static str; 2] = ["wrong", "throttled"];
}

/// Result of a TLS handshake with a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsHandshakeResult {
    /// A new session.
    Full,
    /// An earlier session was resumed.
    Resumed,
    /// The handshake was not completed.
    Failed,
}

impl TlsHandshakeResult {
    /// Label values of the metrics, in the order of the variants.
    pub const NAMES: [&'static str; 3] = ["full", "resumed", "failed"];
}

/// Metrics of one worker. Counters start at 0 with the worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerMetrics {
    /// Milliseconds since the start of the worker.
    pub uptime: Millis,
    /// Open client connections, without those being rejected.
    pub connected_clients: usize,
    /// Client connections accepted so far.
    pub accepted: u64,
    /// Client connections rejected because of the connection limit.
    pub rejected: u64,
    /// Client connections closed by a timeout, by [`TimeoutKind`].
    pub timeouts: [u64; TimeoutKind::NAMES.len()],
    /// Refused credentials of clients, by [`Protocol`] and [`AuthFailure`].
    pub auth_failures: [[u64; AuthFailure::NAMES.len()]; Protocol::NAMES.len()],
    /// TLS handshakes with clients, by [`TlsHandshakeResult`].
    pub tls_handshakes: [u64; TlsHandshakeResult::NAMES.len()],
    /// Requests decoded so far, of all protocols and outcomes.
    pub requests: u64,
    /// Completed requests, by [`Protocol`] and [`RequestOutcome`].
    pub requests_by_outcome: [[u64; RequestOutcome::NAMES.len()]; Protocol::NAMES.len()],
    /// HTTP responses, by [`Status`].
    pub responses: [u64; Status::ALL.len()],
    /// Failed key reads, by [`Failure::kind`].
    pub failures: [u64; Failure::KINDS.len()],
    /// Keys in the cache.
    pub entries: usize,
    /// Bytes of the cached keys and values.
    pub bytes: usize,
    /// Keys with a fetch from Redis in flight.
    pub inflight_keys: usize,
    /// Requested keys found in the cache.
    pub hits: u64,
    /// Requested keys not found in the cache.
    pub misses: u64,
    /// Misses that joined a fetch in flight.
    pub collapsed: u64,
    /// Entries removed because they expired.
    pub expired: u64,
    /// Entries evicted to stay within the capacity.
    pub evicted: u64,
    /// Evicted entries that were in the first tenth of their lifetime.
    pub early_evictions: u64,
    /// Suggested capacity in keys, 0 if the present one is no problem.
    pub suggested_entries: usize,
    /// The same in bytes of keys and values.
    pub suggested_bytes: usize,
    /// Entries removed by an invalidation from Redis.
    pub invalidated: u64,
    /// Clients that cache values themselves (`CLIENT TRACKING`).
    pub tracking_clients: usize,
    /// Keys that these clients may have cached, counted for each of them.
    pub tracked_keys: usize,
    /// Invalidations sent to these clients because Redis reported a change, or at a limit.
    pub tracking_pushes: u64,
    /// Times that everything cached was dropped or expired, because any key may have changed.
    pub flushes: u64,
    /// Watchers: each is one key that a client watches.
    pub watchers: usize,
    /// Keys with a watcher.
    pub watched_keys: usize,
    /// Events sent to watchers.
    pub watch_events: u64,
    /// Changes of watched keys that shared a read with another change.
    pub watch_changes_merged: u64,
    /// Time of hits, from the start of the tick to the end of the group of turns that replied.
    pub hit_latency: LatencyHistogram,
    /// Time of requests that waited for Redis, from the tick that received them to the tick of the
    /// reply.
    pub miss_latency: LatencyHistogram,
    /// Working time of a tick. Other clients of the worker wait meanwhile.
    pub tick_duration: LatencyHistogram,
}

impl WorkerMetrics {
    /// Adds the metrics of another worker.
    pub fn add(&mut self, other: &WorkerMetrics) {
        self.uptime = self.uptime.max(other.uptime);
        self.connected_clients += other.connected_clients;
        self.entries += other.entries;
        self.bytes += other.bytes;
        self.inflight_keys += other.inflight_keys;
        self.watchers += other.watchers;
        self.watched_keys += other.watched_keys;
        self.tracking_clients += other.tracking_clients;
        self.tracked_keys += other.tracked_keys;
        // A capacity applies to each worker, so the worker with the greatest need decides.
        self.suggested_entries = self.suggested_entries.max(other.suggested_entries);
        self.suggested_bytes = self.suggested_bytes.max(other.suggested_bytes);
        self.counters().zip(other.clone().counters()).for_each(|(sum, count)| *sum += *count);
        self.hit_latency.merge(&other.hit_latency);
        self.miss_latency.merge(&other.miss_latency);
        self.tick_duration.merge(&other.tick_duration);
    }

    /// Returns what to do about a cache that is too small, `None` if it is large enough.
    pub fn capacity_problem(&self) -> Option<String> {
        let (variable, value) = match (self.suggested_entries, self.suggested_bytes) {
            (0, 0) => return None,
            (0, bytes) => ("CACHE_BYTES", bytes),
            (entries, _) => ("CACHE_SIZE", entries),
        };
        Some(format!(
            "the cache is too small to be of use: within 10 s more entries were evicted in the first tenth of CACHE_TTL, or \
             did not fit, than keys were found; set {variable}={value} or more"
        ))
    }

    /// Returns the number of completed requests of each protocol, without HTTP requests that name
    /// no key: those for `/`, `/stats` and the other admin endpoints, and `OPTIONS`.
    pub fn key_traffic(&self) -> [u64; Protocol::NAMES.len()] {
        let [http, resp] = self.requests_by_outcome;
        [http.iter().sum::<u64>() - http[RequestOutcome::Other as usize], resp.iter().sum()]
    }

    /// Returns true if the worker has found its cache too small, and suggests a capacity.
    pub fn is_cache_too_small(&self) -> bool {
        self.suggested_entries > 0 || self.suggested_bytes > 0
    }

    /// Returns all counters except the histograms.
    fn counters(&mut self) -> impl Iterator<Item = &mut u64> {
        let single = [
            &mut self.accepted,
            &mut self.rejected,
            &mut self.requests,
            &mut self.hits,
            &mut self.misses,
            &mut self.collapsed,
            &mut self.expired,
            &mut self.evicted,
            &mut self.early_evictions,
            &mut self.invalidated,
            &mut self.tracking_pushes,
            &mut self.flushes,
            &mut self.watch_events,
            &mut self.watch_changes_merged,
        ];
        let outcomes = self.requests_by_outcome.as_flattened_mut();
        single
            .into_iter()
            .chain(&mut self.timeouts)
            .chain(self.auth_failures.as_flattened_mut())
            .chain(&mut self.tls_handshakes)
            .chain(outcomes)
            .chain(&mut self.responses)
            .chain(&mut self.failures)
    }
}

/// Returns the earlier of two times, or the one that there is.
fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    [one, other].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Metrics of workers are added up.
    #[test]
    fn worker_metrics_add_up() {
        let mut one = WorkerMetrics {
            uptime: 5,
            connected_clients: 1,
            entries: 2,
            bytes: 3,
            inflight_keys: 4,
            tracking_clients: 5,
            tracked_keys: 6,
            ..WorkerMetrics::default()
        };
        one.counters().enumerate().for_each(|(index, count)| *count = index as u64);
        one.hit_latency.observe(7, 3);
        let mut sum = WorkerMetrics { uptime: 3, ..one.clone() };
        sum.add(&one);
        assert_eq!((sum.uptime, sum.connected_clients, sum.entries, sum.bytes, sum.inflight_keys), (5, 2, 4, 6, 8));
        assert_eq!((sum.tracking_clients, sum.tracked_keys), (10, 12));
        assert!(sum.counters().enumerate().all(|(index, count)| *count == 2 * index as u64));
        assert_eq!((sum.hit_latency.sum(), sum.hit_latency.counts().next()), (42, Some(6)));
    }

    /// The worker with the largest need decides the suggested capacity of all caches.
    #[test]
    fn suggested_capacity_is_largest() {
        let suggests = |entries, bytes| WorkerMetrics {
            suggested_entries: entries,
            suggested_bytes: bytes,
            ..WorkerMetrics::default()
        };
        let mut sum = WorkerMetrics::default();
        assert!(!sum.is_cache_too_small());
        for other in [suggests(0, 7), suggests(5, 0), suggests(3, 2)] {
            sum.add(&other);
        }
        assert_eq!((sum.suggested_entries, sum.suggested_bytes, sum.is_cache_too_small()), (5, 7, true));
    }

    /// Requests for the page and for its data are no traffic.
    #[test]
    fn traffic_excludes_admin_requests() {
        let mut metrics = WorkerMetrics::default();
        for (protocol, outcome, count) in [
            (Protocol::Http, RequestOutcome::Hit, 3),
            (Protocol::Http, RequestOutcome::Other, 100),
            (Protocol::Resp, RequestOutcome::Miss, 4),
            (Protocol::Resp, RequestOutcome::Other, 5),
        ] {
            metrics.requests_by_outcome[protocol as usize][outcome as usize] = count;
        }
        assert_eq!(metrics.key_traffic(), [3, 9]);
    }

    /// The names of an enum are in the order of its variants.
    #[test]
    fn names_match_variant_order() {
        assert_eq!(
            (RequestOutcome::Other as usize, RequestOutcome::Other.name()),
            (RequestOutcome::NAMES.len() - 1, "other")
        );
        assert_eq!(TimeoutKind::Reply as usize, TimeoutKind::NAMES.len() - 1);
        assert_eq!(TlsHandshakeResult::Failed as usize, TlsHandshakeResult::NAMES.len() - 1);
        assert_eq!(Protocol::Resp as usize, Protocol::NAMES.len() - 1);
        assert!(Status::ALL.iter().enumerate().all(|(index, status)| *status as usize == index));
    }
}
