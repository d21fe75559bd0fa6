//! One client: what it has asked and when, and the bytes that are on their way.

use crate::random::Random;
use crate::redis::KEYS;
use crate::world::Moment;
use crate::{http, resp};
use segment_redis_proxy::connection::Connection;
use segment_redis_proxy::protocol::MAX_IOVECS;
use segment_redis_proxy::types::{Millis, Source};
use std::collections::VecDeque;
use std::fmt;
use std::io::IoSlice;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Value(usize),
    Json(usize),
    Head(usize),
    Length(usize),
    Range(usize, i64, i64),
    /// How long it is cached: nobody waits for that.
    Remaining(usize),
    Values(Vec<usize>),
    Count(Vec<usize>),
    Hello,
    /// A command that is not answered here, with so many bytes.
    Unknown(usize),
    /// Something that needs no key.
    Nothing,
    Quit,
    /// Not the protocol.
    Garbage,
    /// Not the protocol any more, after some keys.
    Broken(Vec<usize>),
}

impl Kind {
    /// The keys that have to be looked up.
    pub fn keys(&self) -> &[usize] {
        match self {
            Kind::Value(key) | Kind::Json(key) | Kind::Head(key) | Kind::Length(key) | Kind::Range(key, ..) => {
                std::slice::from_ref(key)
            }
            Kind::Values(keys) | Kind::Count(keys) | Kind::Broken(keys) => keys,
            Kind::Remaining(_) | Kind::Hello | Kind::Unknown(_) | Kind::Nothing | Kind::Quit | Kind::Garbage => &[],
        }
    }

    /// Whether nothing is answered after it.
    fn ends(&self) -> bool {
        matches!(self, Kind::Quit | Kind::Garbage | Kind::Broken(_))
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
    /// When the proxy had taken up all of it.
    pub asked: Option<Millis>,
    pub parts: Vec<Part>,
}

/// One of the keys of a request.
#[derive(Clone, Debug, Default)]
pub struct Part {
    pub key: usize,
    /// When the proxy took it up.
    pub asked: Option<(Millis, Moment)>,
    /// What has ended before is too old to be the answer, and too old even when Redis is away.
    pub floor: Moment,
    pub hard_floor: Moment,
    /// When the proxy decided on the reply: at once, unless there is a cause.
    pub answered: (Millis, Moment),
    pub cause: Option<Cause>,
    /// Where the reply came from, if there is a cause, and whether it was a failure.
    pub source: Option<Source>,
    pub failed: bool,
}

/// What a response tells.
#[derive(Debug)]
pub enum Content {
    /// Of each key that was asked for.
    Keys(Vec<Told>),
    /// How many of the keys there are.
    Count(usize),
    /// How long the key is cached.
    Remaining(i64),
    /// That something cannot be found out.
    Error { timed_out: bool },
    /// That the client does not speak the protocol.
    Violation,
    /// What it had to, about nothing that can change.
    Other,
}

/// What is told of one key.
#[derive(Clone, PartialEq, Eq)]
pub enum Told {
    Absent,
    Present,
    Value(String),
    Length(usize),
    /// A part of the value; nothing of it may mean that there is none.
    Part(String),
}

/// Values may be long; what matters of them stands at the beginning.
impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Told::Absent => f.write_str("absent"),
            Told::Present => f.write_str("present"),
            Told::Length(length) => write!(f, "{length} bytes"),
            Told::Value(text) | Told::Part(text) => write!(f, "{:?}", &text[..text.len().min(10)]),
        }
    }
}

/// A response, taken apart.
#[derive(Debug)]
pub struct Response {
    pub content: Content,
    /// Its `Cache-Status`, where the protocol has one.
    pub status: Option<String>,
    pub closes: bool,
}

/// See the top of the file.
pub struct Client {
    pub connection: Connection,
    speaks_resp: bool,
    pub held_up: bool,
    /// Bytes that the client has sent and the proxy not read.
    pub sent: VecDeque<u8>,
    pub requests: Vec<Request>,
    received: Vec<u8>,
    /// Replies that have come.
    pub replies: usize,
}

impl Client {
    pub fn new(generation: u64, random: &mut Random) -> Client {
        Client {
            connection: Connection::new(generation, 0),
            speaks_resp: random.percent(50),
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
            let kind = if self.speaks_resp { some_command(random) } else { some_request(random) };
            let last = kind.ends() || (!self.speaks_resp && random.below(200) == 0);
            let text = if self.speaks_resp { resp::text(&kind) } else { http::text(&kind, last) };
            self.sent.extend(text.bytes());
            let parts = kind.keys().iter().map(|&key| Part { key, ..Part::default() }).collect();
            self.requests.push(Request { kind, last, asked: None, parts });
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
        while let Some(request) = self.requests.get(self.replies) {
            let parse = if self.speaks_resp { resp::parse } else { http::parse };
            let Some((response, length)) = parse(&self.received[at..], &request.kind)? else { break };
            at += length;
            self.replies += 1;
            replies.push((request.clone(), response));
        }
        self.received.drain(..at);
        if self.replies == self.requests.len() && !self.received.is_empty() {
            return Err(format!("a reply to nothing: {:?}", String::from_utf8_lossy(&self.received)));
        }
        Ok(replies)
    }
}

fn some_key(random: &mut Random) -> usize {
    random.below(KEYS as u64) as usize
}

fn some_request(random: &mut Random) -> Kind {
    let key = some_key(random);
    match random.below(1000) {
        0..550 => Kind::Value(key),
        550..850 => Kind::Json(key),
        850..950 => Kind::Head(key),
        950..997 => Kind::Nothing,
        _ => Kind::Garbage,
    }
}

fn some_keys(random: &mut Random) -> Vec<usize> {
    let count = if random.percent(3) { random.between(20, 60) } else { random.between(1, 6) };
    (0..count).map(|_| some_key(random)).collect()
}

fn some_command(random: &mut Random) -> Kind {
    let key = some_key(random);
    match random.below(1000) {
        0..300 => Kind::Value(key),
        300..500 => Kind::Values(some_keys(random)),
        500..600 => Kind::Count(some_keys(random)),
        600..700 => Kind::Length(key),
        700..800 => Kind::Range(key, random.between(0, 60) as i64 - 30, random.between(0, 60) as i64 - 30),
        800..850 => Kind::Remaining(key),
        850..900 => Kind::Hello,
        900..940 => Kind::Unknown(random.one_of(&[0, 10, 3000])),
        940..990 => Kind::Nothing,
        990..994 => Kind::Quit,
        994..997 => Kind::Broken(some_keys(random)),
        _ => Kind::Garbage,
    }
}
