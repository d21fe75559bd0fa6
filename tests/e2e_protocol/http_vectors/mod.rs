//! Table of HTTP requests and of what the RFCs say comes back for each.
//!
//! ```text
//!     request_line.rs   methods, versions, white space, other protocols
//!     target.rs         the four forms of a request target, percent-encoding
//!     fields.rs         names and values of fields, line ends, folding, limits
//!     host.rs           Host: missing, twice, empty, malformed
//!     framing.rs        Content-Length and Transfer-Encoding
//!     chunks.rs         the chunked coding
//!     connection.rs     Connection, Expect, pipelining
//! ```
//!
//! Each vector is sent on a connection of its own with a probe behind it, a request that the client
//! never meant to be part of the vector. The probe is answered exactly if the connection stays
//! open, so an answer too many or too few shows. What stands behind a refused request must not even
//! be looked up: [`BEHIND`] is in Redis, and must not be in the cache in the end.
//!
//! Where an RFC leaves a choice ("MAY", "SHOULD"), README.md makes it: what goes beyond the letter
//! of the standard is refused with 400, and the connection is closed. A vector that the proxy does
//! not answer as the RFCs say is a [`Vector::differing`] one: it has both results, and fails as
//! soon as the proxy does what is right.

mod chunks;
mod connection;
mod fields;
mod framing;
mod host;
mod request_line;
mod target;

use crate::common::{Proxy, Redis};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

/// Key of the probe behind a vector that leaves the connection open.
const PROBE: &str = "probe";

/// Key of the probe behind a vector that ends the connection, and of requests hidden in bodies.
/// Never to be looked up.
const BEHIND: &str = "behind";

/// Request hidden in bodies.
const HIDDEN: &str = "GET /raw/behind HTTP/1.1\r\nHost: test\r\n\r\n";

/// Input and the answers to it.
pub struct Vector {
    name: &'static str,
    input: Vec<u8>,
    statuses: Vec<u16>,
    stays_open: bool,
    /// Today's result where that is not right: statuses, and whether the connection
    /// stays open.
    instead: Option<(Vec<u16>, bool)>,
    /// Leading answers without a body.
    heads: usize,
    /// True if the client's end of the connection cuts a body short.
    is_cut: bool,
}

impl Vector {
    /// A vector behind which the connection serves further requests.
    pub fn open(name: &'static str, input: impl AsRef<[u8]>, statuses: &[u16]) -> Vector {
        Vector {
            name,
            input: input.as_ref().to_vec(),
            statuses: statuses.to_vec(),
            stays_open: true,
            instead: None,
            heads: 0,
            is_cut: false,
        }
    }

    /// A vector behind which the connection is closed, with nothing more answered.
    pub fn closed(name: &'static str, input: impl AsRef<[u8]>, statuses: &[u16]) -> Vector {
        Vector { stays_open: false, ..Vector::open(name, input, statuses) }
    }

    /// The most frequent kind: refused with 400, and closed.
    pub fn bad(name: &'static str, input: impl AsRef<[u8]>) -> Vector {
        Vector::closed(name, input, &[400])
    }

    /// Says that the first `heads` answers are to HEAD and have no body.
    pub fn with_heads(self, heads: usize) -> Vector {
        Vector { heads, ..self }
    }

    /// Says what the proxy answers instead of what is right, and whether it leaves the connection
    /// open. The section of the RFC stands beside the vector.
    pub fn differing(self, statuses: &[u16], stays_open: bool) -> Vector {
        Vector { instead: Some((statuses.to_vec(), stays_open)), ..self }
    }

    /// Says that the body never comes whole. The answer may precede it, and does not tell of the
    /// end then.
    pub fn cut_short(self) -> Vector {
        Vector { is_cut: true, ..self }
    }

    /// Returns the proxy's present result, right or not: statuses, and whether the connection stays open.
    fn today(&self) -> (&[u16], bool) {
        self.instead.as_ref().map_or((&self.statuses, self.stays_open), |(statuses, open)| (statuses, *open))
    }
}

/// A request with that request line.
pub fn line(line: &str) -> String {
    format!("{line}\r\nHost: test\r\n\r\n")
}

/// A request for that target.
pub fn target(target: &str) -> String {
    line(&format!("GET {target} HTTP/1.1"))
}

/// A request with further lines behind Host.
pub fn with(lines: &str) -> String {
    format!("GET /raw/a HTTP/1.1\r\nHost: test\r\n{lines}\r\n\r\n")
}

/// A request with further lines and a body.
pub fn with_body(lines: &str, body: &str) -> String {
    with(lines) + body
}

/// One whole response.
struct Answer {
    status: u16,
    closes: bool,
    body: String,
}

/// Sends a vector and its probe, and returns all answers.
fn answers(proxy: &Proxy, vector: &Vector) -> Vec<Answer> {
    let key = if vector.today().1 { PROBE } else { BEHIND };
    let probe = format!("GET /raw/{key} HTTP/1.1\r\nHost: test\r\n\r\n");
    let mut stream = TcpStream::connect(proxy.address).expect("the proxy takes connections");
    stream.set_read_timeout(Some(crate::common::TEST_TIMEOUT)).expect("a time-out can be set");
    // The proxy may have closed before all is sent. What arrives behind its last answer is reset then,
    // and what came before counts.
    let _ = stream.write_all(&[&vector.input[..], probe.as_bytes()].concat());
    let _ = stream.shutdown(Shutdown::Write);
    let mut all = Vec::new();
    if let Err(error) = stream.read_to_end(&mut all) {
        let may_be_reset = error.kind() == ErrorKind::ConnectionReset && !vector.today().1;
        assert!(may_be_reset, "{}: {error}", vector.name);
    }
    let mut rest = String::from_utf8(all).expect("answers are text here");
    let mut answers = Vec::new();
    while !rest.is_empty() {
        let (head, behind) = rest.split_once("\r\n\r\n").expect("a whole head");
        let status =
            head.strip_prefix("HTTP/1.1 ").and_then(|line| line.get(..3)?.parse().ok()).expect("a status line");
        let field = |name: &str| head.split("\r\n").find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let length: usize = field("Content-Length").and_then(|length| length.parse().ok()).expect("a length");
        let length = if answers.len() < vector.heads { 0 } else { length };
        let (body, behind) = behind.split_at_checked(length).expect("a whole body");
        answers.push(Answer { status, closes: field("Connection") == Some("close"), body: body.to_owned() });
        rest = behind.to_owned();
    }
    answers
}

/// Sends one vector and compares. Returns what is wrong.
fn check(proxy: &Proxy, vector: &Vector) -> Result<(), String> {
    let mut answers = answers(proxy, vector);
    let got: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    let (statuses, stays_open) = vector.today();
    let expected = [statuses, if stays_open { &[200] } else { &[] }].concat();
    if got != expected {
        return Err(match vector.instead {
            Some(_) if got.starts_with(&vector.statuses) => "it is right now: take differing() away".to_owned(),
            _ => format!("expected {expected:?}, got {got:?}"),
        });
    }
    if let Some(answer) = answers.iter().find(|answer| answer.body == BEHIND) {
        return Err(format!("what stands behind or inside it was answered, with {}", answer.status));
    }
    if stays_open && answers.pop().is_none_or(|answer| answer.body != PROBE) {
        return Err("the last answer is not the probe's".to_owned());
    }
    // An answer that refuses the rest of the connection says so (RFC 9112, section 9.6).
    match answers.split_last() {
        Some((last, before)) if last.closes != stays_open && before.iter().all(|answer| !answer.closes) => Ok(()),
        Some((last, _)) if vector.is_cut && !last.closes => Ok(()),
        None => Ok(()),
        _ => Err("Connection: close is not where the connection ends".to_owned()),
    }
}

/// Sends all vectors of a group, and reports all that fail.
#[track_caller]
fn check_all(group: &str, least: usize, vectors: &[Vector]) {
    let redis = Redis::start();
    for key in ["a", "b", PROBE, BEHIND] {
        redis.set(key, key);
    }
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
    assert!(vectors.len() >= least, "{group}: {} vectors are too few", vectors.len());
    for (at, vector) in vectors.iter().enumerate() {
        assert!(vectors[..at].iter().all(|other| other.name != vector.name), "{group}: {} twice", vector.name);
    }
    let report = |vector: &Vector| {
        let failure = check(&proxy, vector).err()?;
        Some(format!("{}: {failure}\n    {:?}", vector.name, String::from_utf8_lossy(&vector.input)))
    };
    let failures: Vec<String> = vectors.iter().filter_map(report).collect();
    assert!(failures.is_empty(), "{group}: {} of {} fail\n{}", failures.len(), vectors.len(), failures.join("\n"));
    assert!(!is_cached(&proxy, BEHIND), "{group}: what stands behind a refused request was looked up");
    // So that the line before can fail.
    assert_eq!(proxy.get("/raw/behind").text(), BEHIND);
    assert!(is_cached(&proxy, BEHIND), "a value is cached");
}

/// Returns true if the proxy has a copy of the key, asked over the Redis protocol, which reads
/// nothing from Redis.
fn is_cached(proxy: &Proxy, key: &str) -> bool {
    let url = format!("redis://{}/", proxy.address);
    let mut connection = redis::Client::open(url).and_then(|client| client.get_connection()).expect("it connects");
    let left: i64 = redis::cmd("PTTL").arg(key).query(&mut connection).expect("PTTL works");
    left != -2
}
