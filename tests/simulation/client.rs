//! One client: its requests with their times, and the bytes in transit to and from the proxy.

use crate::floors::Floor;
use crate::local_cache::LocalCache;
use crate::random::Random;
use crate::versions::KEYS;
use crate::world::Moment;
use crate::{http, resp};
use segment_redis_proxy::connection::Connection;
use segment_redis_proxy::protocol::MAX_IOVECS;
use segment_redis_proxy::types::{Millis, Source};
use std::collections::VecDeque;
use std::fmt;
use std::io::IoSlice;

/// Password of the proxy, in the seeds in which it requires one.
pub const PASSWORD: &str = "secret";

/// Kind of a request, with its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Value(usize),
    Json(usize),
    Head(usize),
    /// Condition that the value has changed since the client received this text.
    Validate(usize, String),
    /// Request for a value that is read now (`no-cache`), with the password.
    Reload(usize),
    /// Request for a cached value only (`only-if-cached`).
    IfCached(usize),
    /// Request for several values over HTTP.
    List(Vec<usize>),
    Length(usize),
    Range(usize, i64, i64),
    /// Remaining lifetime in the cache, which never waits for a fetch.
    Ttl(usize),
    Values(Vec<usize>),
    Count(Vec<usize>),
    Hello,
    /// Write command with this number of value bytes, which the proxy refuses.
    Unsupported(usize),
    /// Request that needs no key.
    WithoutKey,
    Quit,
    /// Bytes that are not of the protocol.
    Malformed,
    /// `MGET` with some keys and then a malformed argument.
    MalformedMget(Vec<usize>),
    /// `AUTH` with the right password.
    Login,
    /// `RESET`, which ends the authentication.
    Reset,
    /// `CLIENT TRACKING ON`.
    Track {
        opt_in: bool,
    },
    /// `CLIENT TRACKING OFF`.
    Untrack,
    /// `CLIENT CACHING YES`.
    Caching,
    /// Request without the password that it needs. The proxy looks up none of its keys.
    Denied(Box<Kind>),
}

impl Kind {
    /// Returns the keys that the proxy has to look up.
    pub fn keys(&self) -> &[usize] {
        match self {
            Kind::Value(key) | Kind::Json(key) | Kind::Head(key) | Kind::Length(key) | Kind::Range(key, ..) => {
                std::slice::from_ref(key)
            }
            Kind::Validate(key, _) | Kind::Reload(key) | Kind::IfCached(key) => std::slice::from_ref(key),
            Kind::Values(keys) | Kind::Count(keys) | Kind::List(keys) | Kind::MalformedMget(keys) => keys,
            Kind::Ttl(_) | Kind::Hello | Kind::Unsupported(_) | Kind::WithoutKey | Kind::Quit | Kind::Malformed => &[],
            Kind::Login | Kind::Reset | Kind::Denied(_) => &[],
            Kind::Track { .. } | Kind::Untrack | Kind::Caching => &[],
        }
    }

    /// Returns true if the proxy closes the connection after its reply.
    fn closes(&self) -> bool {
        matches!(self, Kind::Quit | Kind::Malformed | Kind::MalformedMget(_))
    }
}

/// Reason for a deferred reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Redis replied.
    Fetched,
    /// Redis cannot be reached, or the fetcher timed out.
    Outage,
    /// The waiter timed out.
    WaitTimeout,
    /// Any other failure.
    Failed,
}

/// Request of a client.
#[derive(Clone, Debug)]
pub struct Request {
    pub kind: Kind,
    /// True if the proxy closes the connection after its reply.
    pub is_last: bool,
    /// Time at which the proxy had decoded all of it.
    pub decoded_at: Option<Millis>,
    pub parts: Vec<Part>,
    /// True if the client caches the values that it receives.
    pub is_cached: bool,
}

/// One key of a request.
#[derive(Clone, Debug, Default)]
pub struct Part {
    pub key: usize,
    /// Time at which the proxy decoded the key.
    pub decoded_at: Option<(Millis, Moment)>,
    /// Versions that were too old for a reply when the proxy decoded the key.
    pub floor: Floor,
    /// Time at which the proxy chose the reply: `decoded_at`, unless there is a cause.
    pub replied_at: (Millis, Moment),
    /// `None` for an immediate reply.
    pub cause: Option<Cause>,
    /// Source of a deferred reply.
    pub source: Option<Source>,
    /// True if the deferred reply is a failure.
    pub has_failed: bool,
}

/// Content of a response.
#[derive(Debug)]
pub enum Content {
    /// Reply for each requested key.
    Keys(Vec<KeyReply>),
    /// Reply for each key of a list, `None` for an error.
    Elements(Vec<Option<KeyReply>>),
    /// The key is not cached, and the request does not permit to read it.
    NotCached,
    /// Number of keys that exist.
    Count(usize),
    /// Remaining lifetime in the cache, in milliseconds.
    Ttl(i64),
    /// A key could not be read.
    Error { timed_out: bool },
    /// The request was malformed.
    Malformed,
    /// The only correct reply to a request without keys.
    Fixed,
}

/// Reply for one key.
#[derive(Clone, PartialEq, Eq)]
pub enum KeyReply {
    Missing,
    Present,
    Value(String),
    Length(usize),
    /// Part of the value. An empty part may stand for a missing key.
    Part(String),
}

/// Prints the first bytes of a value, which name its version.
impl fmt::Debug for KeyReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyReply::Missing => f.write_str("missing"),
            KeyReply::Present => f.write_str("present"),
            KeyReply::Length(length) => write!(f, "{length} bytes"),
            KeyReply::Value(text) | KeyReply::Part(text) => write!(f, "{:?}", &text[..text.len().min(10)]),
        }
    }
}

/// Parsed response.
#[derive(Debug)]
pub struct Response {
    pub content: Content,
    /// `Cache-Status` of an HTTP response.
    pub status: Option<String>,
    pub closes: bool,
}

/// Client with its connection in the proxy.
pub struct Client {
    pub connection: Connection,
    is_resp: bool,
    /// True if the proxy requires a password.
    needs_password: bool,
    /// Key that the client requests more often than others.
    favourite: Option<usize>,
    /// Last value that an HTTP client received, with its key.
    last_value: Option<(usize, String)>,
    /// True if a RESP client has sent the password, before what it sends next.
    is_logged_in: bool,
    /// True if the proxy has stored input that it has not decoded yet.
    pub is_paused: bool,
    /// Bytes that the client has sent and the proxy has not read.
    unread: VecDeque<u8>,
    pub requests: Vec<Request>,
    received: Vec<u8>,
    /// Number of complete replies.
    pub reply_count: usize,
    pub local_cache: LocalCache,
    /// Number of invalidations received.
    pub push_count: u64,
}

impl Client {
    pub fn new(
        connection_id: u64,
        needs_password: bool,
        has_tracking: bool,
        favourite: Option<usize>,
        random: &mut Random,
    ) -> Client {
        Client {
            connection: Connection::new(connection_id, 0),
            is_resp: random.percent(50),
            needs_password,
            favourite,
            last_value: None,
            is_logged_in: false,
            is_paused: false,
            unread: VecDeque::new(),
            requests: Vec::new(),
            received: Vec::new(),
            reply_count: 0,
            local_cache: LocalCache::new(has_tracking),
            push_count: 0,
        }
    }

    /// Sends some requests, until one that closes the connection.
    pub fn send_requests(&mut self, random: &mut Random) {
        let count = if random.percent(2) { random.between(20, 150) } else { random.between(1, 4) };
        for _ in 0..count {
            if self.requests.last().is_some_and(|request| request.is_last) {
                return;
            }
            let kind = self.random_kind(random);
            let is_last = kind.closes() || (!self.is_resp && random.below(200) == 0);
            let text =
                if self.is_resp { resp::encode(&kind) } else { http::encode(&kind, is_last, self.needs_password) };
            self.unread.extend(text.bytes());
            let is_cached = self.local_cache.on_send(&kind);
            let parts = kind.keys().iter().map(|&key| Part { key, ..Part::default() }).collect();
            self.requests.push(Request { kind, is_last, decoded_at: None, parts, is_cached });
        }
    }

    /// Returns a random request. If the proxy requires a password, some requests are sent without
    /// it.
    fn random_kind(&mut self, random: &mut Random) -> Kind {
        let may_run = self.is_resp && (self.is_logged_in || !self.needs_password);
        if may_run
            && random.percent(8)
            && let Some(kind) = self.local_cache.random_command(random)
        {
            return kind;
        }
        let kind = if self.is_resp { random_command(self.favourite, random) } else { self.random_request(random) };
        if !self.needs_password {
            return kind;
        }
        if !self.is_resp {
            let is_denied = kind != Kind::Malformed && random.percent(30);
            return if is_denied { Kind::Denied(Box::new(kind)) } else { kind };
        }
        if random.percent(20) {
            self.is_logged_in = random.percent(70);
            return if self.is_logged_in { Kind::Login } else { Kind::Reset };
        }
        match kind {
            kind if self.is_logged_in => kind,
            // Redis and the proxy end connections that send long commands before they authenticate.
            Kind::Values(keys) | Kind::Count(keys) | Kind::MalformedMget(keys) if keys.len() > 5 => {
                Kind::Denied(Box::new(Kind::Value(keys[0])))
            }
            Kind::Quit | Kind::Malformed | Kind::MalformedMget(_) | Kind::Unsupported(_) => kind,
            kind => Kind::Denied(Box::new(kind)),
        }
    }

    fn random_request(&self, random: &mut Random) -> Kind {
        let key = random_key(self.favourite, random);
        match (random.below(1000), &self.last_value) {
            (0..150, Some((key, text))) => Kind::Validate(*key, text.clone()),
            (0..500, _) => Kind::Value(key),
            (500..700, _) => Kind::Json(key),
            (700..770, _) => Kind::Head(key),
            (770..830, _) if self.needs_password => Kind::Reload(key),
            (770..870, _) => Kind::IfCached(key),
            (870..950, _) => Kind::List(random_keys(random)),
            (950..997, _) => Kind::WithoutKey,
            _ => Kind::Malformed,
        }
    }

    /// Takes up to `max_bytes` of the unread bytes.
    pub fn take_piece(&mut self, max_bytes: usize) -> Vec<u8> {
        let length = max_bytes.min(self.unread.len());
        self.unread.drain(..length).collect()
    }

    /// Returns the requests that the proxy has decoded, without those that have a complete reply.
    pub fn pending_requests(&self) -> impl Iterator<Item = &Request> {
        self.requests[self.reply_count..].iter().filter(|request| request.decoded_at.is_some())
    }

    /// Reads up to `max_bytes` of the proxy's output. Returns the responses that are now complete,
    /// each with its request.
    pub fn receive(&mut self, max_bytes: usize) -> Result<Vec<(Request, Response)>, String> {
        let mut left = max_bytes;
        while left > 0 {
            let mut slices = [IoSlice::new(&[]); MAX_IOVECS];
            let count = self.connection.send_buffer().io_slices(&mut slices, usize::MAX);
            let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).take(left).collect();
            if bytes.is_empty() {
                break;
            }
            self.connection.send_buffer().advance(bytes.len());
            left -= bytes.len();
            self.received.extend(bytes);
        }
        let (mut replies, mut at) = (Vec::new(), 0);
        loop {
            if self.is_resp && self.received.get(at) == Some(&b'>') {
                let Some((push, length)) = resp::parse_push(&self.received[at..])? else { break };
                self.local_cache.on_push(push)?;
                self.push_count += 1;
                at += length;
                continue;
            }
            let Some(request) = self.requests.get(self.reply_count) else { break };
            let parse = if self.is_resp { resp::parse } else { http::parse };
            let Some((response, length)) = parse(&self.received[at..], &request.kind)? else { break };
            at += length;
            self.reply_count += 1;
            self.local_cache.on_reply(request, &response.content);
            if let (Content::Keys(found), [key]) = (&response.content, request.kind.keys())
                && let [KeyReply::Value(text)] = &found[..]
            {
                self.last_value = Some((*key, text.clone()));
            }
            replies.push((request.clone(), response));
        }
        self.received.drain(..at);
        let is_push = self.is_resp && self.received.first() == Some(&b'>');
        if self.reply_count == self.requests.len() && !self.received.is_empty() && !is_push {
            return Err(format!("a reply without a request: {:?}", String::from_utf8_lossy(&self.received)));
        }
        Ok(replies)
    }
}

/// Returns true if a client has received everything that the proxy has for it.
pub fn has_received_all(client: &mut Client) -> bool {
    client.connection.send_buffer().is_empty()
        && client.received.is_empty()
        && client.requests[client.reply_count..].iter().all(|request| request.decoded_at.is_none())
        && client.connection.is_flushed()
}

/// Returns a random key, often the favourite.
pub fn random_key(favourite: Option<usize>, random: &mut Random) -> usize {
    favourite.filter(|_| random.percent(60)).unwrap_or_else(|| random.below(KEYS as u64) as usize)
}

fn random_keys(random: &mut Random) -> Vec<usize> {
    let count = if random.percent(3) { random.between(20, 60) } else { random.between(1, 6) };
    (0..count).map(|_| random_key(None, random)).collect()
}

fn random_command(favourite: Option<usize>, random: &mut Random) -> Kind {
    let key = random_key(favourite, random);
    match random.below(1000) {
        0..300 => Kind::Value(key),
        300..500 => Kind::Values(random_keys(random)),
        500..600 => Kind::Count(random_keys(random)),
        600..700 => Kind::Length(key),
        700..800 => Kind::Range(key, random.between(0, 60) as i64 - 30, random.between(0, 60) as i64 - 30),
        800..850 => Kind::Ttl(key),
        850..900 => Kind::Hello,
        900..940 => Kind::Unsupported(random.one_of(&[0, 10, 3000])),
        940..990 => Kind::WithoutKey,
        990..994 => Kind::Quit,
        994..997 => Kind::MalformedMget(random_keys(random)),
        _ => Kind::Malformed,
    }
}
