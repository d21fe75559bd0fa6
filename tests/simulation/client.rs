//! One client: what it has asked and when, the bytes that are on their way, and whether each reply is one that may be.

use crate::random::Random;
use crate::redis::{KEYS, Redis};
use crate::world::Moment;
use segment_redis_proxy::connection::Connection;
use segment_redis_proxy::protocol::WRITE_SLICES;
use segment_redis_proxy::request::Millis;
use std::collections::VecDeque;
use std::io::IoSlice;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Raw(usize),
    Json(usize),
    Head(usize),
    /// A path that does not exist.
    Nothing,
    /// Not HTTP.
    Garbage,
}

impl Kind {
    pub fn key(self) -> Option<usize> {
        match self {
            Kind::Raw(key) | Kind::Json(key) | Kind::Head(key) => Some(key),
            Kind::Nothing | Kind::Garbage => None,
        }
    }
}

/// Why a reply that waited came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Redis has answered.
    Answered,
    /// Redis cannot be reached, or the helper has waited long enough.
    Outage,
    /// The client has waited long enough.
    Overdue,
    /// Something else went wrong.
    Failed,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub kind: Kind,
    pub last: bool,
    /// When the proxy took it up.
    pub asked: Option<(Millis, Moment)>,
    /// What has ended before is too old to be the answer, and too old even when Redis is away.
    pub floor: Moment,
    pub hard_floor: Moment,
    /// When the proxy decided on the reply: at once, unless there is a cause.
    pub answered: (Millis, Moment),
    pub cause: Option<Cause>,
}

/// A reply, taken apart.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub cache_status: String,
    pub closes: bool,
    pub body: String,
}

/// See the top of the file.
pub struct Client {
    pub connection: Connection,
    pub held_up: bool,
    /// Bytes that the client has sent and the proxy not read.
    pub sent: VecDeque<u8>,
    pub requests: Vec<Request>,
    received: Vec<u8>,
    /// Replies that have come.
    pub replies: usize,
}

impl Client {
    pub fn new(generation: u64) -> Client {
        Client {
            connection: Connection::new(generation, 0),
            held_up: false,
            sent: VecDeque::new(),
            requests: Vec::new(),
            received: Vec::new(),
            replies: 0,
        }
    }

    /// Sends some requests, if the last one is not sent already.
    pub fn ask(&mut self, random: &mut Random) {
        let count = if random.percent(2) { random.between(20, 150) } else { random.between(1, 4) };
        for _ in 0..count {
            if self.requests.last().is_some_and(|request| request.last) {
                return;
            }
            let key = random.below(KEYS as u64) as usize;
            let kind = match random.below(1000) {
                0..550 => Kind::Raw(key),
                550..850 => Kind::Json(key),
                850..950 => Kind::Head(key),
                950..997 => Kind::Nothing,
                _ => Kind::Garbage,
            };
            let closes = random.below(200) == 0;
            let rest = if closes { "Host: x\r\nConnection: close\r\n\r\n" } else { "Host: x\r\n\r\n" };
            let text = match kind {
                Kind::Raw(key) => format!("GET /raw/k{key} HTTP/1.1\r\n{rest}"),
                Kind::Json(key) => format!("GET /key/%6B{key} HTTP/1.1\r\n{rest}"),
                Kind::Head(key) => format!("HEAD /raw/k{key} HTTP/1.1\r\n{rest}"),
                Kind::Nothing => format!("GET /other HTTP/1.1\r\n{rest}"),
                Kind::Garbage => "\0\0\r\n\r\n".to_owned(),
            };
            self.sent.extend(text.bytes());
            let last = closes || kind == Kind::Garbage;
            let (asked, answered, cause) = (None, (0, 0), None);
            self.requests.push(Request { kind, last, asked, floor: 0, hard_floor: 0, answered, cause });
        }
    }

    /// The next piece of what was sent, of up to `most` bytes.
    pub fn piece(&mut self, most: usize) -> Vec<u8> {
        let length = most.min(self.sent.len());
        self.sent.drain(..length).collect()
    }

    /// Requests that the proxy has taken up and whose replies have not come.
    pub fn open(&self) -> impl Iterator<Item = &Request> {
        self.requests[self.replies..].iter().filter(|request| request.asked.is_some())
    }

    /// Reads up to `most` bytes of what the proxy has to send, and gives back what replies are complete.
    pub fn receive(&mut self, most: usize) -> Result<Vec<(Request, Response)>, String> {
        let mut left = most;
        while left > 0 {
            let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
            let count = self.connection.outgoing().slices(&mut slices);
            let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).take(left).collect();
            if bytes.is_empty() {
                break;
            }
            self.connection.outgoing().advance(bytes.len());
            left -= bytes.len();
            self.received.extend(bytes);
        }
        let mut replies = Vec::new();
        while let Some(request) = self.requests.get(self.replies).cloned() {
            let Some((response, length)) = parse(&self.received, matches!(request.kind, Kind::Head(_)))? else { break };
            self.received.drain(..length);
            self.replies += 1;
            replies.push((request, response));
        }
        if self.replies == self.requests.len() && !self.received.is_empty() {
            return Err(format!("a reply to nothing: {:?}", String::from_utf8_lossy(&self.received)));
        }
        Ok(replies)
    }
}

/// The response at the beginning of `bytes` and its length, if it is whole.
fn parse(bytes: &[u8], head_only: bool) -> Result<Option<(Response, usize)>, String> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4) else { return Ok(None) };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let field = |name: &str| head.split("\r\n").find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let status = head.get(9..12).filter(|_| head.starts_with("HTTP/1.1 ")).and_then(|status| status.parse().ok());
    let length = field("Content-Length: ").parse::<usize>().ok();
    let (Some(status), Some(length)) = (status, length) else { return Err(format!("no head of a response: {head:?}")) };
    let whole = if head_only { end } else { end + length };
    if bytes.len() < whole {
        return Ok(None);
    }
    let cache_status = field("Cache-Status: segment-redis-proxy; ").to_owned();
    let body = String::from_utf8_lossy(&bytes[end..whole]).into_owned();
    Ok(Some((Response { status, cache_status, closes: field("Connection: ") == "close", body }, whole)))
}

/// How old a reply may be.
pub struct Rules {
    pub ttl: Millis,
    pub stale: Millis,
    pub patience: Millis,
}

/// What has happened.
pub struct History<'a> {
    pub redis: &'a Redis,
    /// When a fetch last brought each version of each key.
    pub brought: &'a [Vec<Option<Millis>>; KEYS],
    /// When all entries last expired at once.
    pub unwatched: Millis,
}

/// Whether a response is one that its request may have.
pub fn check(request: &Request, response: &Response, history: &History<'_>, rules: &Rules) -> Result<(), String> {
    let redis = history.redis;
    let Some((asked, asked_moment)) = request.asked else {
        return Err("replied to a request that was not taken up".into());
    };
    let (answered, answered_moment) = request.answered;
    if response.closes != request.last {
        return Err("says wrongly whether more may follow".into());
    }
    let (key, body) = match request.kind {
        Kind::Garbage => return expect(response.status == 400, "garbage was taken for a request"),
        Kind::Nothing => return expect(response.status == 404 && response.cache_status.is_empty(), "a wrong reply"),
        Kind::Raw(key) => (key, Some(response.body.as_str())),
        Kind::Json(key) => (key, json_value(response)?),
        Kind::Head(key) => (key, None),
    };
    match response.status {
        200 => {}
        404 => {
            expect(response.cache_status.starts_with("fwd=miss"), "the absence of a key was cached")?;
            // Who comes in between asks after the read has begun, perhaps after it was carried out.
            let collapsed = response.cache_status.contains("collapsed");
            let since = if collapsed { request.floor } else { request.floor.max(asked_moment) };
            let absent = |version: &crate::redis::Version| {
                version.value.is_none() && version.from <= answered_moment && version.until > since
            };
            return expect(redis.keys[key].iter().any(absent), "the key was there all the time");
        }
        502..=504 => {
            let fits = match response.status {
                504 => [Some(Cause::Outage), Some(Cause::Overdue)].contains(&request.cause),
                _ => request.cause.is_some_and(|cause| cause != Cause::Answered && cause != Cause::Overdue),
            };
            return expect(fits, "an error out of nothing");
        }
        _ => return Err("a status that should not be".into()),
    }
    let Some(body) = body else { return Ok(()) };
    let Some((found, number)) = redis.identify(body) else { return Err("a value that never was".into()) };
    expect(found == key, "another key's value")?;
    let version = &redis.keys[key][number];
    // When a fetch last brought it: from then on it may be in the cache.
    let Some(brought) = history.brought[key].get(number).copied().flatten() else {
        return Err("a value that nobody has fetched".into());
    };
    let status = response.cache_status.as_str();
    if status.starts_with("hit") {
        let at_last = [Some(Cause::Outage), Some(Cause::Overdue)].contains(&request.cause);
        expect(request.cause.is_none() || at_last, "a hit that had to wait")?;
        expect(answered < brought + rules.ttl, "a hit that is older than CACHE_TTL")?;
        expect(answered < version.expires, "a hit that Redis has let expire")?;
        expect(version.until > request.floor, "a hit of what was known to have changed")
    } else if status.starts_with("fwd=stale") {
        let by_cause = match request.cause {
            Some(Cause::Overdue) => answered >= asked + rules.patience && status.contains("redis-timed-out"),
            cause => cause == Some(Cause::Outage),
        };
        expect(by_cause, "an expired value although Redis is there")?;
        expect(answered < brought + rules.ttl + rules.stale, "a value that expired too long ago")?;
        // One that came at the same time may be of before or after.
        let outdated = brought < history.unwatched && history.unwatched <= answered;
        expect(
            !outdated || answered < history.unwatched + rules.stale,
            "a value that expired with all others too long ago",
        )?;
        expect(answered < version.expires, "an expired value that Redis itself has let expire")?;
        expect(version.until > request.hard_floor, "an expired value of what was known to have changed")
    } else {
        expect(request.cause == Some(Cause::Answered), "a value without a fetch")?;
        let collapsed = status.contains("collapsed");
        let since = if collapsed { request.floor } else { request.floor.max(asked_moment) };
        expect(version.until > since && version.from <= answered_moment, "an old value as the answer to a new question")
    }
}

fn expect(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

/// The value of a JSON reply, which says rightly where it comes from.
fn json_value(response: &Response) -> Result<Option<&str>, String> {
    if response.status != 200 {
        return Ok(None);
    }
    let from_cache = !response.cache_status.starts_with("fwd=miss");
    let end = format!("\",\"fromCache\":{from_cache}}}");
    let value = response.body.strip_prefix("{\"value\":\"").and_then(|rest| rest.strip_suffix(&end));
    value.map(Some).ok_or_else(|| "no JSON, or it lies about where it is from".into())
}
