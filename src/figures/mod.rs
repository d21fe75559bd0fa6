//! What the proxy counts of itself, as plain data. Each loop counts for itself, without locks or atomics, and shows the others
//! a copy at the end of each tick; who is asked adds all of them up.
//!
//! ```text
//!     histogram     how often something took how long
//!     ledger        one loop's books: what it writes while it serves, and lines for the access log
//!     register      all loops' copies, and what is known of the process
//! ```

mod histogram;
mod ledger;
mod register;

pub use histogram::{BATCH_BOUNDS, Batches, Histogram, TIME_BOUNDS, Times};
pub use ledger::{Ledger, Note, escape_into};
pub use register::{Process, Register, Seat, Settings, Snapshot};

use crate::protocol::http::Status;
use crate::request::{Failure, Millis};
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
pub enum Ending {
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

impl Ending {
    /// All of them, in order, as operators know them.
    pub const NAMES: [&'static str; 10] =
        ["hit", "miss", "collapsed", "stale", "missing", "failed", "many", "refused", "aborted", "other"];

    /// As operators know it.
    pub fn name(self) -> &'static str {
        Ending::NAMES[self as usize]
    }
}

/// Why a client was closed that took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimedOut {
    /// Its request did not come whole.
    Request,
    /// It asked nothing.
    Idle,
    /// It did not take its replies.
    Reply,
}

impl TimedOut {
    /// All of them, in order, as operators know them.
    pub const NAMES: [&'static str; 3] = ["request", "idle", "reply"];
}

/// What one loop knows of itself. Counts are since its start. Plain: to be copied once a tick.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Milliseconds since the start.
    pub uptime: Millis,
    /// Clients that are connected.
    pub clients: usize,
    /// Clients that have ever been connected.
    pub connections: u64,
    /// Clients for whom there was no place.
    pub rejected: u64,
    /// Clients that took too long, by [`TimedOut`].
    pub timed_out: [u64; TimedOut::NAMES.len()],
    /// Requests of all protocols that were taken up, whatever became of them.
    pub requests: u64,
    /// Requests that have come to an end, by [`Protocol`] and [`Ending`].
    pub answers: [[u64; Ending::NAMES.len()]; Protocol::NAMES.len()],
    /// Responses over HTTP, by [`Status`].
    pub responses: [u64; Status::ALL.len()],
    /// Keys that could not be read, by [`Failure::kind`].
    pub failures: [u64; Failure::KINDS.len()],
    /// Keys that are cached.
    pub entries: usize,
    /// Bytes of these keys and their values.
    pub bytes: usize,
    /// Keys that are being read from Redis.
    pub in_flight: usize,
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
    pub epochs: u64,
    /// How long it took from the loop's hearing of requests to the end of the turn that answered them from memory, or of three more.
    pub hit_times: Times,
    /// How long it took from the loop's hearing of a request to its having the answer, where it had to wait for one.
    pub miss_times: Times,
    /// How long ticks took that had something to do: nobody else is served meanwhile.
    pub tick_times: Times,
}

impl Figures {
    /// Adds those of another loop.
    pub fn add(&mut self, other: &Figures) {
        self.uptime = self.uptime.max(other.uptime);
        self.clients += other.clients;
        self.entries += other.entries;
        self.bytes += other.bytes;
        self.in_flight += other.in_flight;
        self.counts().zip(other.clone().counts()).for_each(|(sum, count)| *sum += *count);
        self.hit_times.add(&other.hit_times);
        self.miss_times.add(&other.miss_times);
        self.tick_times.add(&other.tick_times);
    }

    /// All that only ever grows, but for the histograms.
    fn counts(&mut self) -> impl Iterator<Item = &mut u64> {
        let single = [
            &mut self.connections,
            &mut self.rejected,
            &mut self.requests,
            &mut self.hits,
            &mut self.misses,
            &mut self.collapsed,
            &mut self.expired,
            &mut self.evicted,
            &mut self.invalidated,
            &mut self.epochs,
        ];
        let answers = self.answers.as_flattened_mut();
        single
            .into_iter()
            .chain(&mut self.timed_out)
            .chain(answers)
            .chain(&mut self.responses)
            .chain(&mut self.failures)
    }
}

/// Whether Redis tells of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tracking {
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
pub struct RedisFigures {
    /// Connections that keys are read over.
    pub connections: usize,
    /// Attempts to connect that succeeded, and that failed.
    pub connects: [u64; 2],
    /// Connections that have ended.
    pub lost: u64,
    /// Keys that wait for a helper.
    pub queued: usize,
    /// Questions that were sent, each with all its commands.
    pub round_trips: u64,
    /// How many keys were read together.
    pub batches: Batches,
    /// What is the matter where Redis does not answer.
    pub away: Option<String>,
    /// Since when Redis is asked for what it has not answered, if it has answered nothing else since.
    pub asked: Option<Instant>,
    /// When keys were last read.
    pub read: Option<Instant>,
    /// When it was last found that one could not be, and which; `None` if others were read since.
    pub unread: Option<(Instant, Arc<[u8]>)>,
    /// How fresh what is served is.
    pub promise: String,
    /// How many parts of that promise do not hold although they should.
    pub broken: usize,
    /// Whether Redis tells of changes.
    pub tracking: Tracking,
}

impl RedisFigures {
    /// Adds those of another loop. The worse promise, and what is the matter with one of them, hold for both.
    pub fn add(&mut self, other: &RedisFigures) {
        self.connections += other.connections;
        self.connects.iter_mut().zip(other.connects).for_each(|(sum, count)| *sum += count);
        self.lost += other.lost;
        self.queued += other.queued;
        self.round_trips += other.round_trips;
        self.batches.add(&other.batches);
        if self.away.is_none() {
            self.away.clone_from(&other.away);
        }
        if self.promise.is_empty() || other.broken > self.broken {
            self.promise.clone_from(&other.promise);
            self.broken = other.broken;
        }
        if self.tracking != Tracking::Lost {
            self.tracking = other.tracking;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_loops_are_added_and_the_worse_state_of_redis_holds() {
        let mut one = Figures { uptime: 5, clients: 1, entries: 2, bytes: 3, in_flight: 4, ..Figures::default() };
        one.counts().enumerate().for_each(|(place, count)| *count = place as u64);
        one.hit_times.observe(7, 3);
        let mut sum = Figures { uptime: 3, ..one.clone() };
        sum.add(&one);
        assert_eq!((sum.uptime, sum.clients, sum.entries, sum.bytes, sum.in_flight), (5, 2, 4, 6, 8));
        assert!(sum.counts().enumerate().all(|(place, count)| *count == 2 * place as u64));
        assert_eq!((sum.hit_times.sum(), sum.hit_times.counts().next()), (42, Some(6)));

        let promise = |tracking, promise: &str| RedisFigures {
            tracking,
            promise: promise.into(),
            broken: usize::from(tracking == Tracking::Lost),
            ..Default::default()
        };
        let mut sum = RedisFigures::default();
        for figures in
            [promise(Tracking::On, "at once"), promise(Tracking::Lost, "later"), promise(Tracking::On, "at once")]
        {
            sum.add(&figures);
        }
        assert_eq!(sum, promise(Tracking::Lost, "later"));
        sum.add(&RedisFigures { away: Some("gone".into()), connections: 1, ..promise(Tracking::On, "at once") });
        sum.add(&RedisFigures { away: Some("slow".into()), connections: 2, ..promise(Tracking::On, "at once") });
        assert_eq!((sum.away.as_deref(), sum.connections), (Some("gone"), 3));
    }

    #[test]
    fn every_name_stands_for_its_place() {
        assert_eq!((Ending::Other as usize, Ending::Other.name()), (Ending::NAMES.len() - 1, "other"));
        assert_eq!(TimedOut::Reply as usize, TimedOut::NAMES.len() - 1);
        assert_eq!(Protocol::Resp as usize, Protocol::NAMES.len() - 1);
        assert!(Status::ALL.iter().enumerate().all(|(place, status)| *status as usize == place));
    }
}
