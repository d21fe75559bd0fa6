//! Table of HTTP requests with the responses that the RFCs demand.
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
//! Each vector is sent on a new connection and followed by a probe, a request that is not part of
//! the vector. The proxy must answer the probe if and only if the connection stays open, so one
//! response too many or too few fails the test. A request that follows a refused one must not even
//! be looked up. [`HIDDEN_KEY`] is in Redis and must not be in the cache after the vectors.
//!
//! docs/http-api.md makes the choices that an RFC leaves open ("MAY", "SHOULD"): deviations from
//! the grammar are refused with 400, and the connection is closed. A [`Vector::differing`] is one
//! where the proxy deviates from the RFCs. It holds both results and fails once the proxy follows
//! the RFCs.

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

/// Key of the probe after a vector that leaves the connection open.
const PROBE: &str = "probe";

/// Key of the probe after a vector that closes the connection, and of requests hidden in bodies.
/// Must never be looked up.
const HIDDEN_KEY: &str = "hidden";

/// Request hidden in bodies.
const HIDDEN: &str = "GET /raw/hidden HTTP/1.1\r\nHost: test\r\n\r\n";

/// Input and the expected responses.
pub struct Vector {
    name: &'static str,
    input: Vec<u8>,
    statuses: Vec<u16>,
    stays_open: bool,
    /// Result of the proxy where it deviates from the RFCs: statuses, and true if the connection
    /// stays open.
    deviation: Option<(Vec<u16>, bool)>,
    /// Number of leading responses without a body.
    heads: usize,
    /// True if the client closes its side before the end of the body.
    is_cut: bool,
}

impl Vector {
    /// Creates a vector after which the connection serves further requests.
    pub fn open(name: &'static str, input: impl AsRef<[u8]>, statuses: &[u16]) -> Vector {
        Vector {
            name,
            input: input.as_ref().to_vec(),
            statuses: statuses.to_vec(),
            stays_open: true,
            deviation: None,
            heads: 0,
            is_cut: false,
        }
    }

    /// Creates a vector after which the proxy closes the connection without further responses.
    pub fn closed(name: &'static str, input: impl AsRef<[u8]>, statuses: &[u16]) -> Vector {
        Vector { stays_open: false, ..Vector::open(name, input, statuses) }
    }

    /// Creates a vector that the proxy refuses with 400 before it closes the connection.
    pub fn bad(name: &'static str, input: impl AsRef<[u8]>) -> Vector {
        Vector::closed(name, input, &[400])
    }

    /// Declares that the first `heads` responses are to HEAD and have no body.
    pub fn with_heads(self, heads: usize) -> Vector {
        Vector { heads, ..self }
    }

    /// Declares that the proxy deviates from the RFCs, with its statuses and true if the connection
    /// stays open. A comment at the vector names the section of the RFC.
    pub fn differing(self, statuses: &[u16], stays_open: bool) -> Vector {
        Vector { deviation: Some((statuses.to_vec(), stays_open)), ..self }
    }

    /// Declares that the body is incomplete. The response may precede the body, without
    /// `Connection: close`.
    pub fn cut_short(self) -> Vector {
        Vector { is_cut: true, ..self }
    }

    /// Returns the present result of the proxy: statuses, and true if the connection stays open.
    fn present_result(&self) -> (&[u16], bool) {
        self.deviation.as_ref().map_or((&self.statuses, self.stays_open), |(statuses, open)| (statuses, *open))
    }
}

/// Returns a request with this request line.
pub fn line(line: &str) -> String {
    format!("{line}\r\nHost: test\r\n\r\n")
}

/// Returns a request for this target.
pub fn target(target: &str) -> String {
    line(&format!("GET {target} HTTP/1.1"))
}

/// Returns a request with further field lines after Host.
pub fn with(lines: &str) -> String {
    format!("GET /raw/a HTTP/1.1\r\nHost: test\r\n{lines}\r\n\r\n")
}

/// Returns a request with further field lines and a body.
pub fn with_body(lines: &str, body: &str) -> String {
    with(lines) + body
}

/// One complete response.
struct ReceivedResponse {
    status: u16,
    closes: bool,
    body: String,
}

/// Sends a vector and its probe, and returns all responses.
fn exchange(proxy: &Proxy, vector: &Vector) -> Vec<ReceivedResponse> {
    let key = if vector.present_result().1 { PROBE } else { HIDDEN_KEY };
    let probe = format!("GET /raw/{key} HTTP/1.1\r\nHost: test\r\n\r\n");
    let mut stream = TcpStream::connect(proxy.address).expect("the proxy accepts connections");
    stream.set_read_timeout(Some(crate::common::TEST_TIMEOUT)).expect("a time-out can be set");
    // The proxy may close before all bytes are sent. The kernel then resets the connection, and the
    // bytes received before count.
    let _ = stream.write_all(&[&vector.input[..], probe.as_bytes()].concat());
    let _ = stream.shutdown(Shutdown::Write);
    let mut all = Vec::new();
    if let Err(error) = stream.read_to_end(&mut all) {
        let may_be_reset = error.kind() == ErrorKind::ConnectionReset && !vector.present_result().1;
        assert!(may_be_reset, "{}: {error}", vector.name);
    }
    let mut rest = String::from_utf8(all).expect("responses are text");
    let mut responses = Vec::new();
    while !rest.is_empty() {
        let (head, after) = rest.split_once("\r\n\r\n").expect("a whole head");
        let status =
            head.strip_prefix("HTTP/1.1 ").and_then(|line| line.get(..3)?.parse().ok()).expect("a status line");
        let field = |name: &str| head.split("\r\n").find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let length: usize = field("Content-Length").and_then(|length| length.parse().ok()).expect("a length");
        let length = if responses.len() < vector.heads { 0 } else { length };
        let (body, after) = after.split_at_checked(length).expect("a whole body");
        responses.push(ReceivedResponse {
            status,
            closes: field("Connection") == Some("close"),
            body: body.to_owned(),
        });
        rest = after.to_owned();
    }
    responses
}

/// Sends one vector and compares the responses. Returns a description of the failure.
fn check(proxy: &Proxy, vector: &Vector) -> Result<(), String> {
    let mut responses = exchange(proxy, vector);
    let got: Vec<u16> = responses.iter().map(|response| response.status).collect();
    let (statuses, stays_open) = vector.present_result();
    let expected = [statuses, if stays_open { &[200] } else { &[] }].concat();
    if got != expected {
        return Err(match vector.deviation {
            Some(_) if got.starts_with(&vector.statuses) => "the proxy follows the RFCs: remove differing()".to_owned(),
            _ => format!("expected {expected:?}, got {got:?}"),
        });
    }
    if let Some(response) = responses.iter().find(|response| response.body == HIDDEN_KEY) {
        return Err(format!("a hidden or following request was answered with {}", response.status));
    }
    if stays_open && responses.pop().is_none_or(|response| response.body != PROBE) {
        return Err("the last response is not the response to the probe".to_owned());
    }
    // The last response before a close must announce it (RFC 9112, section 9.6).
    match responses.split_last() {
        Some((last, before)) if last.closes != stays_open && before.iter().all(|response| !response.closes) => Ok(()),
        Some((last, _)) if vector.is_cut && !last.closes => Ok(()),
        None => Ok(()),
        _ => Err("Connection: close is not in the last response".to_owned()),
    }
}

/// Sends all vectors of a group and reports all failures. There must be at least `min_vectors`.
#[track_caller]
fn check_all(group: &str, min_vectors: usize, vectors: &[Vector]) {
    let redis = Redis::start();
    for key in ["a", "b", PROBE, HIDDEN_KEY] {
        redis.set(key, key);
    }
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
    assert!(vectors.len() >= min_vectors, "{group}: {} vectors are too few", vectors.len());
    for (at, vector) in vectors.iter().enumerate() {
        assert!(vectors[..at].iter().all(|other| other.name != vector.name), "{group}: {} twice", vector.name);
    }
    let report = |vector: &Vector| {
        let failure = check(&proxy, vector).err()?;
        Some(format!("{}: {failure}\n    {:?}", vector.name, String::from_utf8_lossy(&vector.input)))
    };
    let failures: Vec<String> = vectors.iter().filter_map(report).collect();
    assert!(failures.is_empty(), "{group}: {} of {} fail\n{}", failures.len(), vectors.len(), failures.join("\n"));
    assert!(!is_cached(&proxy, HIDDEN_KEY), "{group}: a request after a refused one was looked up");
    // Shows that the previous assertion can fail.
    assert_eq!(proxy.get("/raw/hidden").text(), HIDDEN_KEY);
    assert!(is_cached(&proxy, HIDDEN_KEY), "a requested value is cached");
}

/// Returns true if the key is in the cache. `PTTL` to the proxy does not read from Redis.
fn is_cached(proxy: &Proxy, key: &str) -> bool {
    let url = format!("redis://{}/", proxy.address);
    let mut connection = redis::Client::open(url).and_then(|client| client.get_connection()).expect("it connects");
    let left: i64 = redis::cmd("PTTL").arg(key).query(&mut connection).expect("PTTL works");
    left != -2
}
