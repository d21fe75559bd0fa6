//! The words that all rooms share: what a client asks for, what it is answered, what is asked of Redis.
//!
//! Nothing here knows a wire format. A protocol turns bytes into a key and a [`Reply`] into bytes; the cache and
//! the backend hand [`Value`]s on without looking into them.

use crate::value::{Payload, Value};
use std::fmt;
use std::sync::Arc;

/// Milliseconds of monotonic time since the loop started. Taken once for each tick and handed down.
pub type Millis = u64;

/// Longest key that is accepted, in bytes. A request head is bounded far below it; the cache's records rely on it.
pub const MAX_KEY_BYTES: usize = 64 * 1024;

/// A value as a fetch brings it.
#[derive(Debug, PartialEq, Eq)]
pub struct FetchedValue {
    /// The value.
    pub value: Value,
    /// Milliseconds after which Redis itself lets the key expire, counted from before it was asked; `None` where it
    /// does not, or could not be asked.
    pub ttl: Option<Millis>,
}

/// Where an answer came from. Clients see it as `fromCache` and `Cache-Status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From memory; the entry lives that much longer.
    Cache {
        /// Milliseconds until the entry expires.
        ttl: Millis,
    },
    /// From memory although the entry has expired, because Redis is away.
    Stale {
        /// Milliseconds since the entry expired.
        expired_for: Millis,
        /// What is the matter with Redis.
        outage: Outage,
    },
    /// From Redis.
    Redis {
        /// Whether this client waited for a fetch that another one had begun.
        collapsed: bool,
        /// Milliseconds the new entry will live, where one was stored.
        stored: Option<Millis>,
    },
}

/// In what way Redis is away, so that an expired value is better than none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// There is no connection to it, or it refuses one.
    Unreachable,
    /// It was asked and did not answer in time.
    TimedOut,
    /// It answers that it cannot serve now.
    NotReady,
}

/// What there is to say about a key.
#[derive(Clone, Copy, Debug)]
pub enum KeyResult<'a> {
    /// Redis holds it.
    Value(Payload<'a>),
    /// Redis has no such key. Never stored.
    Missing,
    /// It could not be found out.
    Failed(&'a Failure),
}

/// The answer to one request, in no protocol's terms yet.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// What there is to say.
    pub outcome: KeyResult<'a>,
    /// Where it came from.
    pub source: Source,
    /// True while changes in Redis reach the cache at once (`REDIS_TRACKING`).
    pub tracked: bool,
}

/// Why a key could not be read. Not stored, and never the answer to another key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// More keys wait for Redis than the queue holds.
    QueueFull,
    /// Long values that wait for clients to take them hold all that they may.
    OutputMemoryFull,
    /// There is no connection to Redis. The log says why.
    Unavailable,
    /// Redis was asked and did not answer within `REDIS_TIMEOUT`.
    Timeout,
    /// Redis answers, but cannot serve now: it is loading its data, has lost its master, or runs a script.
    NotReady(String),
    /// Redis refuses the connection with this error: a wrong password, too many clients.
    Refused(String),
    /// The value is longer than `MAX_VALUE_BYTES`.
    TooLong,
    /// The key holds a list, a hash or another type that `GET` does not read.
    WrongType,
    /// Redis answered with this error.
    Redis(String),
    /// A helper thread broke. A bug in this program.
    Internal,
}

/// What is the matter, and what whoever asked can do about it.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Failure::QueueFull => "too many keys are waiting for Redis; retry in 1 s",
            Failure::OutputMemoryFull => {
                "long values that slow clients have not read yet exceed CLIENT_BYTES; retry in 1 s, or raise CLIENT_BYTES"
            }
            Failure::Unavailable => "Redis is unreachable; retry in 1 s, the proxy's log has the cause",
            Failure::Timeout => "Redis did not reply within REDIS_TIMEOUT; retry",
            Failure::NotReady(_) => "Redis cannot serve reads now; retry in 1 s: ",
            Failure::Refused(_) => "Redis rejected the proxy's connection; the proxy's log has the remedy: ",
            Failure::TooLong => {
                "the value is longer than MAX_VALUE_BYTES of the proxy; raise it, or read the key from Redis directly"
            }
            Failure::WrongType => "the key does not hold a string; the proxy reads only strings",
            Failure::Redis(_) => "Redis replied with an error: ",
            Failure::Internal => "internal error while reading the key; retry, the proxy's log has the cause",
        })?;
        match self {
            Failure::NotReady(text) | Failure::Refused(text) | Failure::Redis(text) => f.write_str(text),
            _ => Ok(()),
        }
    }
}

impl Failure {
    /// In what way Redis is away, if that is what it says.
    pub fn outage(&self) -> Option<Outage> {
        match self {
            Failure::Unavailable | Failure::Refused(_) => Some(Outage::Unreachable),
            Failure::Timeout => Some(Outage::TimedOut),
            Failure::NotReady(_) => Some(Outage::NotReady),
            Failure::QueueFull | Failure::OutputMemoryFull | Failure::TooLong | Failure::WrongType => None,
            Failure::Redis(_) | Failure::Internal => None,
        }
    }

    /// All kinds, in the order of [`Failure::kind`], as operators know them.
    pub const KINDS: [&'static str; 10] = [
        "queue_full",
        "too_much_held",
        "unavailable",
        "timeout",
        "not_ready",
        "refused",
        "too_long",
        "wrong_type",
        "redis",
        "internal",
    ];

    /// Which of [`Failure::KINDS`] it is.
    pub fn kind(&self) -> usize {
        match self {
            Failure::QueueFull => 0,
            Failure::OutputMemoryFull => 1,
            Failure::Unavailable => 2,
            Failure::Timeout => 3,
            Failure::NotReady(_) => 4,
            Failure::Refused(_) => 5,
            Failure::TooLong => 6,
            Failure::WrongType => 7,
            Failure::Redis(_) => 8,
            Failure::Internal => 9,
        }
    }

    /// Whether Redis has told that the key holds nothing that could be served, so that an older value must go.
    pub fn invalidates_entry(&self) -> bool {
        matches!(self, Failure::WrongType | Failure::TooLong)
    }
}

/// One key to be read from Redis. Every job that the backend accepts comes back as one [`Completion`].
#[derive(Debug)]
pub struct Job {
    /// Which flight of `inflight` it belongs to.
    pub fetch_id: usize,
    /// The key, shared with the flight.
    pub key: Arc<[u8]>,
}

/// What became of a [`Job`].
#[derive(Debug)]
pub struct Completion {
    /// The job's flight.
    pub fetch_id: usize,
    /// What Redis holds, `None` where it has no such key, or why it could not be read.
    pub result: Result<Option<FetchedValue>, Failure>,
}

/// What the backend hears of changes in Redis, in the order in which it hears it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalidation {
    /// This key was written, deleted or has expired.
    Key(Vec<u8>),
    /// Everything may have changed: a flush, more changes than could be kept, or the begin of tracking.
    All,
    /// From here on changes are not heard of.
    TrackingLost,
}

impl Invalidation {
    /// Returns how many bytes its key has.
    pub fn bytes(&self) -> usize {
        match self {
            Invalidation::Key(key) => key.len(),
            Invalidation::All | Invalidation::TrackingLost => 0,
        }
    }
}

/// Who waits for a reply. The generation tells a new connection in a reused slot from the one that asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    /// The connection's place in the server's slab.
    pub slot: usize,
    /// Counts connections; never reused.
    pub connection_id: u64,
    /// Counts the requests of that connection.
    pub sequence: u64,
    /// Which key of that request, where it is about several.
    pub part: u32,
}
