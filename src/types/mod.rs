//! Types that modules exchange: replies, jobs and completions, invalidations, failures, ids.
//!
//! They are independent of any wire format. A protocol decodes bytes into a key and encodes a
//! [`Reply`] into bytes.

mod watch;

use crate::value::{Payload, Value};
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
pub use watch::{Delivery, KeyState, RenderedEvent, WatchEvent};

/// Milliseconds of monotonic time since the worker started, and durations in milliseconds. The
/// event loop reads the clock once a tick and passes the time in.
pub type Millis = u64;

/// Maximum length of a key. The head of an HTTP request has a much lower limit. A record of the
/// cache has 17 bits for the length.
pub const MAX_KEY_BYTES: usize = 64 * 1024;

/// Maximum number of keys whose lookups are prepared together. With more, the processor overlaps no
/// more loads, and the first lines would leave its cache before they are used.
pub const MAX_UPCOMING_KEYS: usize = 16;

/// Keys that the next requests will probably look up, in their order.
#[derive(Debug)]
pub struct UpcomingKeys<'a> {
    keys: [&'a [u8]; MAX_UPCOMING_KEYS],
    len: usize,
}

impl<'a> UpcomingKeys<'a> {
    /// Creates an empty list.
    #[allow(clippy::new_without_default, reason = "one constructor is enough")]
    pub fn new() -> UpcomingKeys<'a> {
        UpcomingKeys { keys: [&[]; MAX_UPCOMING_KEYS], len: 0 }
    }

    /// Adds a key. A full list stays as it is.
    pub fn push(&mut self, key: &'a [u8]) {
        if let Some(next) = self.keys.get_mut(self.len) {
            *next = key;
            self.len += 1;
        }
    }

    /// Returns true if the list takes no further key.
    pub fn is_full(&self) -> bool {
        self.len == MAX_UPCOMING_KEYS
    }

    /// Returns the keys.
    pub fn as_slice(&self) -> &[&'a [u8]] {
        &self.keys[..self.len]
    }
}

/// Use of the cache and of Redis that a request allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// A fresh entry may be the reply. False for `Cache-Control: no-cache`.
    pub uses_cache: bool,
    /// The entry becomes the most recently used one. False after `CLIENT NO-TOUCH`.
    pub updates_recency: bool,
    /// The client may cache the result, and receives invalidations (`CLIENT TRACKING`).
    pub client_caches: bool,
    /// Redis may be read. False for `Cache-Control: only-if-cached`.
    pub reads_redis: bool,
}

impl Access {
    /// Access of a request without restrictions.
    pub const NORMAL: Access =
        Access { uses_cache: true, updates_recency: true, client_caches: false, reads_redis: true };
}

impl Default for Access {
    fn default() -> Access {
        Access::NORMAL
    }
}

/// Value that a fetch read, and its lifetime in Redis.
#[derive(Debug, PartialEq, Eq)]
pub struct FetchedValue {
    /// The value.
    pub value: Value,
    /// Time until the key expires in Redis, counted from before the fetcher sent its request.
    /// `None` if the key does not expire, or if Redis cannot be asked for its lifetime.
    pub ttl: Option<Millis>,
}

/// Origin of a reply. Clients see it as `fromCache` and `Cache-Status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A fresh entry of the cache.
    Cache {
        /// Time until the entry expires.
        ttl: Millis,
    },
    /// An expired entry of the cache, served during an outage.
    Stale {
        /// Time since the entry expired.
        expired_for: Millis,
        /// Kind of the outage.
        outage: Outage,
    },
    /// Redis.
    Redis {
        /// True if the request joined a fetch that another request had started.
        collapsed: bool,
        /// Time until the new entry expires. `None` if the value was not cached.
        stored: Option<Millis>,
    },
    /// Neither: the request does not permit them ([`Access`]).
    Neither,
}

/// Kind of outage. During any of them expired entries are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// No fetcher has a connection, or Redis refuses it.
    Unreachable,
    /// Redis did not reply in time.
    TimedOut,
    /// Redis replies that it cannot serve now.
    NotReady,
}

/// Result of a request for one key.
#[derive(Clone, Copy, Debug)]
pub enum KeyResult<'a> {
    /// Value of the key.
    Value(Payload<'a>),
    /// Redis has no such key. Never cached.
    Missing,
    /// The key could not be read.
    Failed(&'a Failure),
    /// The request permits no fresh entry, or there is none, and it does not permit to read Redis.
    NotCached,
}

/// Reply to a request for one key, independent of the protocol.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// Value, missing key or failure.
    pub result: KeyResult<'a>,
    /// Origin of the result.
    pub source: Source,
    /// True while the cache receives invalidations from Redis (`REDIS_TRACKING`).
    pub tracked: bool,
}

/// Reply to a request that waited for a fetch.
#[derive(Clone, Copy, Debug)]
pub struct DeferredReply<'a> {
    /// The reply.
    pub reply: Reply<'a>,
    /// Key that the client may cache, although no invalidation of this result would follow. The
    /// invalidation is then sent right behind the reply. A hit has none here, so that it stays
    /// small.
    pub unreported_key: Option<&'a [u8]>,
}

impl<'a> Deref for DeferredReply<'a> {
    type Target = Reply<'a>;

    fn deref(&self) -> &Reply<'a> {
        &self.reply
    }
}

/// Reason for which a key could not be read. Never cached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The job queue is full.
    QueueFull,
    /// Unsent long values fill the memory that `CLIENT_BYTES` allows them.
    OutputMemoryFull,
    /// No connection to Redis. The log has the cause.
    Unavailable,
    /// Redis did not reply within `REDIS_TIMEOUT`.
    Timeout,
    /// Redis replies that it cannot serve now: it loads its data, lost its master, or runs a
    /// script.
    NotReady(String),
    /// Redis refuses the connection with this error, such as a wrong password or too many clients.
    Refused(String),
    /// The value is longer than `MAX_VALUE_BYTES`.
    TooLong,
    /// The key holds a list, a hash or another type that is not a string.
    WrongType,
    /// Redis replied with this error.
    Redis(String),
    /// A fetcher panicked. A bug in the proxy.
    Internal,
}

/// Cause and remedy, as clients read them.
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
    /// Returns the kind of outage that the failure shows. `None` if Redis serves other keys.
    pub fn outage(&self) -> Option<Outage> {
        match self {
            Failure::Unavailable | Failure::Refused(_) => Some(Outage::Unreachable),
            Failure::Timeout => Some(Outage::TimedOut),
            Failure::NotReady(_) => Some(Outage::NotReady),
            Failure::QueueFull | Failure::OutputMemoryFull | Failure::TooLong | Failure::WrongType => None,
            Failure::Redis(_) | Failure::Internal => None,
        }
    }

    /// Names of all kinds in metrics, indexed by [`Failure::kind`].
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

    /// Returns the index into [`Failure::KINDS`].
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

    /// Returns true if the key now holds nothing that the proxy can serve. A cached older value
    /// must be removed.
    pub fn invalidates_entry(&self) -> bool {
        matches!(self, Failure::WrongType | Failure::TooLong)
    }
}

/// A key to read from Redis. Each job that the backend accepts ends in exactly one [`Completion`].
#[derive(Debug)]
pub struct Job {
    /// Fetch in `inflight` that the job belongs to.
    pub fetch_id: usize,
    /// The key, shared with the fetch.
    pub key: Arc<[u8]>,
}

/// Result of a [`Job`].
#[derive(Debug)]
pub struct Completion {
    /// Fetch that the job belongs to.
    pub fetch_id: usize,
    /// Value in Redis, `None` if the key is missing, or the reason for which it could not be read.
    pub result: Result<Option<FetchedValue>, Failure>,
    /// True if the value may be cached. False if no invalidation of it would arrive, although
    /// tracking is active.
    pub may_cache: bool,
}

/// A change in Redis, or of the stream of changes. The worker applies them in order of arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalidation {
    /// A key was written, deleted or expired.
    Key(Vec<u8>),
    /// Any key may have changed. Redis was flushed, the inbox overflowed, or other nodes serve the
    /// keys from now on.
    All,
    /// Any key may have changed. From now on all changes arrive as invalidations.
    TrackingStarted,
    /// Changes may be missed, until the next [`Invalidation::TrackingStarted`].
    TrackingLost,
}

impl Invalidation {
    /// Returns the length of the key.
    pub fn bytes(&self) -> usize {
        match self {
            Invalidation::Key(key) => key.len(),
            Invalidation::All | Invalidation::TrackingStarted | Invalidation::TrackingLost => 0,
        }
    }
}

/// Address of a client. The connection id distinguishes it from a later one in the same slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientId {
    /// Index of the client in the worker's slab.
    pub slot: usize,
    /// Number of the connection, never reused.
    pub connection_id: u64,
}

/// Invalidation for a client that caches values (`CLIENT TRACKING`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Push<'a> {
    /// The value of this key may have changed.
    Key(&'a [u8]),
    /// Any value may have changed.
    Everything,
}

/// Result of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushResult {
    /// The client gets it.
    Queued,
    /// Too much is unsent. The client gets an invalidation of all keys instead.
    QueuedEverything,
    /// The client is gone or does not track any more.
    NotTracking,
}

/// Address of a waiter. The connection id distinguishes the client from a later one in the same
/// slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId {
    /// Index of the client in the worker's slab.
    pub slot: usize,
    /// Number of the connection, never reused.
    pub connection_id: u64,
    /// Number of the request on its connection.
    pub sequence: u64,
    /// Index of the key in a multi reply, otherwise 0.
    pub part: u32,
}

impl RequestId {
    /// Returns the address of the client.
    pub fn client_id(self) -> ClientId {
        ClientId { slot: self.slot, connection_id: self.connection_id }
    }
}
