//! What the proxy counts of itself, as plain data. Each loop counts for itself, without locks or atomics, and shows the others
//! a copy at the end of each tick; who is asked adds all of them up.
//!
//! ```text
//!     histogram     how often something took how long
//!     ledger        one loop's books: what it writes while it serves, and lines for the access log
//!     register      all loops' copies, and what is known of the process
//! ```

mod histogram;
mod recorder;
mod registry;

pub use histogram::{BATCH_SIZE_BUCKETS, BatchSizeHistogram, Histogram, LATENCY_BUCKETS_US, LatencyHistogram};
pub use recorder::{Recorder, RequestInfo, push_escaped};
pub use registry::{InstanceInfo, MetricsRegistry, ProcessStats, Snapshot, WorkerSlot};

use crate::protocol::http::Status;
use crate::types::{Failure, Millis};
use std::sync::Arc;
use std::time::Instant;

/// Microseconds since the loop started.
pub type Micros = u64;

/// What a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP.
    Http,
    /// The Redis protocol.
    Resp,
}

impl Protocol {
    /// All of them, in order, as operators know them.
    pub const NAMES: [&'static str; 2] = ["http", "resp"];
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    /// It was answered from memory.
    Hit,
    /// It was answered by Redis.
    Miss,
    /// It was answered by Redis, which another one had asked.
    Collapsed,
    /// It was answered with an expired value, because Redis is away.
    Stale,
    /// Redis has no such key.
    Missing,
    /// It could not be answered.
    Failed,
    /// It was about several keys, and answered.
    Many,
    /// It was not understood, or not allowed.
    Refused,
    /// Its client was gone before there was an answer.
    Aborted,
    /// It was about no key.
    Other,
}

impl RequestOutcome {
    /// All of them, in order, as operators know them.
    pub const NAMES: [&'static str; 10] =
        ["hit", "miss", "collapsed", "stale", "missing", "failed", "many", "refused", "aborted", "other"];

    /// As operators know it.
    pub fn name(self) -> &'static str {
        RequestOutcome::NAMES[self as usize]
    }
}

/// Why a client was closed that took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutKind {
    /// Its request did not come whole.
    Request,
    /// It asked nothing.
    Idle,
    /// It did not take its replies.
    Reply,
}

impl TimeoutKind {
    /// All of them, in order, as operators know them.
    pub const NAMES: [&'static str; 3] = ["request", "idle", "reply"];
}

/// What one loop knows of itself. Counts are since its start. Plain: to be copied once a tick.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerMetrics {
    /// Milliseconds since the start.
    pub uptime: Millis,
    /// Clients that are connected.
    pub connected_clients: usize,
    /// Clients that have ever been connected.
    pub accepted: u64,
    /// Clients for whom there was no place.
    pub rejected: u64,
    /// Clients that took too long, by [`TimeoutKind`].
    pub timeouts: [u64; TimeoutKind::NAMES.len()],
    /// Requests of all protocols that were taken up, whatever became of them.
    pub requests: u64,
    /// Requests that have come to an end, by [`ProtocolState`] and [`RequestOutcome`].
    pub requests_by_outcome: [[u64; RequestOutcome::NAMES.len()]; Protocol::NAMES.len()],
    /// Responses over HTTP, by [`Status`].
    pub responses: [u64; Status::ALL.len()],
    /// Keys that could not be read, by [`Failure::kind`].
    pub failures: [u64; Failure::KINDS.len()],
    /// Keys that are cached.
    pub entries: usize,
    /// Bytes of these keys and their values.
    pub bytes: usize,
    /// Keys that are being read from Redis.
    pub inflight_keys: usize,
    /// Keys that were asked for and found in memory.
    pub hits: u64,
    /// Keys that were asked for and not found there.
    pub misses: u64,
    /// Those among them that were being read already.
    pub collapsed: u64,
    /// Entries whose time was over.
    pub expired: u64,
    /// Entries that made room for others.
    pub evicted: u64,
    /// Entries that were dropped because of changes in Redis.
    pub invalidated: u64,
    /// How often all that was cached was dropped or made to expire, because all may have changed.
    pub flushes: u64,
    /// How long it took from the loop's hearing of requests to the end of the turn that answered them from memory, or of three more.
    pub hit_latency: LatencyHistogram,
    /// How long it took from the loop's hearing of a request to its having the answer, where it had to wait for one.
    pub miss_latency: LatencyHistogram,
    /// How long ticks took that had something to do: nobody else is served meanwhile.
    pub tick_duration: LatencyHistogram,
}

impl WorkerMetrics {
    /// Adds those of another loop.
    pub fn add(&mut self, other: &WorkerMetrics) {
        self.uptime = self.uptime.max(other.uptime);
        self.connected_clients += other.connected_clients;
        self.entries += other.entries;
        self.bytes += other.bytes;
        self.inflight_keys += other.inflight_keys;
        self.counters().zip(other.clone().counters()).for_each(|(sum, count)| *sum += *count);
        self.hit_latency.merge(&other.hit_latency);
        self.miss_latency.merge(&other.miss_latency);
        self.tick_duration.merge(&other.tick_duration);
    }

    /// All that only ever grows, but for the histograms.
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
            &mut self.invalidated,
            &mut self.flushes,
        ];
        let answers = self.requests_by_outcome.as_flattened_mut();
        single.into_iter().chain(&mut self.timeouts).chain(answers).chain(&mut self.responses).chain(&mut self.failures)
    }
}

/// Whether Redis tells of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrackingState {
    /// It is not to.
    #[default]
    Off,
    /// It does.
    On,
    /// It is to, and does not.
    Lost,
}

/// What the helpers of one loop know of Redis. Counts are since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisStatus {
    /// Connections that keys are read over.
    pub accepted: usize,
    /// Attempts to connect that succeeded, and that failed.
    pub connect_attempts: [u64; 2],
    /// Connections that have ended.
    pub disconnects: u64,
    /// Keys that wait for a helper.
    pub queued: usize,
    /// Questions that were sent, each with all its commands.
    pub round_trips: u64,
    /// How many keys were read together.
    pub batch_sizes: BatchSizeHistogram,
    /// What is the matter where Redis does not answer.
    pub unavailable: Option<String>,
    /// Since when Redis is asked for what it has not answered, if it has answered nothing else since.
    pub unanswered_since: Option<Instant>,
    /// When keys were last read.
    pub last_read: Option<Instant>,
    /// When it was last found that one could not be, and which; `None` if others were read since.
    pub last_failed_read: Option<(Instant, Arc<[u8]>)>,
    /// How fresh what is served is.
    pub freshness: String,
    /// How many parts of that promise do not hold although they should.
    pub unmet_guarantees: usize,
    /// Whether Redis tells of changes.
    pub tracking: TrackingState,
}

impl RedisStatus {
    /// Adds those of another loop. The worse promise, and what is the matter with one of them, hold for both.
    pub fn add(&mut self, other: &RedisStatus) {
        self.accepted += other.accepted;
        self.connect_attempts.iter_mut().zip(other.connect_attempts).for_each(|(sum, count)| *sum += count);
        self.disconnects += other.disconnects;
        self.queued += other.queued;
        self.round_trips += other.round_trips;
        self.batch_sizes.merge(&other.batch_sizes);
        if self.unavailable.is_none() {
            self.unavailable.clone_from(&other.unavailable);
        }
        if self.freshness.is_empty() || other.unmet_guarantees > self.unmet_guarantees {
            self.freshness.clone_from(&other.freshness);
            self.unmet_guarantees = other.unmet_guarantees;
        }
        if self.tracking != TrackingState::Lost {
            self.tracking = other.tracking;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_loops_are_added_and_the_worse_state_of_redis_holds() {
        let mut one = WorkerMetrics {
            uptime: 5,
            connected_clients: 1,
            entries: 2,
            bytes: 3,
            inflight_keys: 4,
            ..WorkerMetrics::default()
        };
        one.counters().enumerate().for_each(|(place, count)| *count = place as u64);
        one.hit_latency.observe(7, 3);
        let mut sum = WorkerMetrics { uptime: 3, ..one.clone() };
        sum.add(&one);
        assert_eq!((sum.uptime, sum.connected_clients, sum.entries, sum.bytes, sum.inflight_keys), (5, 2, 4, 6, 8));
        assert!(sum.counters().enumerate().all(|(place, count)| *count == 2 * place as u64));
        assert_eq!((sum.hit_latency.sum(), sum.hit_latency.counts().next()), (42, Some(6)));

        let freshness = |tracking, freshness: &str| RedisStatus {
            tracking,
            freshness: freshness.into(),
            unmet_guarantees: usize::from(tracking == TrackingState::Lost),
            ..Default::default()
        };
        let mut sum = RedisStatus::default();
        for metrics in [
            freshness(TrackingState::On, "at once"),
            freshness(TrackingState::Lost, "later"),
            freshness(TrackingState::On, "at once"),
        ] {
            sum.add(&metrics);
        }
        assert_eq!(sum, freshness(TrackingState::Lost, "later"));
        sum.add(&RedisStatus {
            unavailable: Some("gone".into()),
            accepted: 1,
            ..freshness(TrackingState::On, "at once")
        });
        sum.add(&RedisStatus {
            unavailable: Some("slow".into()),
            accepted: 2,
            ..freshness(TrackingState::On, "at once")
        });
        assert_eq!((sum.unavailable.as_deref(), sum.accepted), (Some("gone"), 3));
    }

    #[test]
    fn every_name_stands_for_its_place() {
        assert_eq!(
            (RequestOutcome::Other as usize, RequestOutcome::Other.name()),
            (RequestOutcome::NAMES.len() - 1, "other")
        );
        assert_eq!(TimeoutKind::Reply as usize, TimeoutKind::NAMES.len() - 1);
        assert_eq!(Protocol::Resp as usize, Protocol::NAMES.len() - 1);
        assert!(Status::ALL.iter().enumerate().all(|(place, status)| *status as usize == place));
    }
}
