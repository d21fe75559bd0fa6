//! Request heads. `httparse` finds the parts, of those that are not `known`; what they mean is decided here, in `fields` and in
//! `target`, strictly: a head that two programs could read in two ways is refused (RFC 9112, section 11).
//!
//! `httparse` is lenient where RFC 9112 lets a server be: it takes a bare line feed for the end of a line, empty lines before the
//! request, and almost any byte in a target. All of that is refused; one empty line is not (section 2.2).

use super::super::Decoded;
use super::fields::Fields;
use super::header_cache::{self, HeaderCache, HeaderCacheHit};
use super::target::{RequestTarget, is_known_method};
use super::version::{VERSION_BYTES, is_later_minor, is_version, version_of};
use super::{AdminEndpoint, Body, HttpRefusal, HttpReplyFormat, Policy, Status, View, bad_request};
use crate::types::MAX_KEY_BYTES;
use std::mem::MaybeUninit;

/// Longest request head, in bytes. Browsers send up to some 4 KiB; the buffer that HAProxy has for one is as long.
pub const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Longest request target, in bytes: what RFC 9112, section 3, asks of all servers, and what nginx takes.
pub const MAX_TARGET_BYTES: usize = 8 * 1024;

/// Most header fields of a request. A browser sends some 20, proxies in front add a few.
pub const MAX_HEADERS: usize = 100;

// A key comes out of a target, so that the longest target is the longest key too.
const _: () = assert!(MAX_TARGET_BYTES <= MAX_KEY_BYTES);

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpOperation<'a> {
    /// The value of this key.
    Get(&'a [u8]),
    /// Something of the proxy itself.
    Admin(AdminEndpoint),
    /// What may be asked for.
    Options,
    /// Nothing that could be given.
    Refuse(HttpRefusal),
}

/// A request head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// What it wants.
    pub operation: HttpOperation<'a>,
    /// How to answer.
    pub format: HttpReplyFormat,
    /// What follows it and must be skipped before the next head.
    pub body: Body,
    /// Whether the client waits for an answer before it sends the body.
    pub expects_continue: bool,
    /// The request line.
    pub request_line: &'a [u8],
}

/// What heads are decoded with, beside their bytes. Nothing that is decoded depends on what was decoded before.
#[derive(Debug)]
pub struct HeadDecoder {
    /// Room for a key that has to be unescaped.
    pub key: Vec<u8>,
    pub(super) known: HeaderCache,
}

impl HeadDecoder {
    /// Nothing was decoded yet.
    #[allow(clippy::new_without_default, reason = "one way to make one is enough")]
    pub fn new() -> HeadDecoder {
        HeadDecoder { key: Vec::new(), known: HeaderCache::new() }
    }
}

/// Decodes the request head at the beginning of `input`. A key with percent-escapes is decoded into `heads`,
/// any other is borrowed from `input`. An `Err` means that where the next request begins is not known: the
/// connection must end. Whether and how a head is refused does not depend on how much of what follows is there.
pub fn decode<'a>(input: &'a [u8], policy: &Policy, heads: &'a mut HeadDecoder) -> Decoded<Head<'a>, HttpRefusal> {
    let empty_line = match input {
        [b'\r'] => return Decoded::Incomplete,
        [b'\r', b'\n', ..] => 2,
        _ => 0,
    };
    let input = &input[empty_line..];
    if matches!(input.first(), Some(b'\r' | b'\n')) {
        return Decoded::Invalid(bad_request("malformed request: empty lines before the method"));
    }
    // What is behind the longest head does not make a difference.
    let input = &input[..input.len().min(MAX_HEAD_BYTES)];
    if let Some(HeaderCacheHit { target, fields, length }) = heads.known.find(input)
        && target.len() <= MAX_TARGET_BYTES
        && let Some(parsed) = RequestTarget::parse(header_cache::METHOD, target)
    {
        let line = request_line(input, header_cache::METHOD, target);
        return Decoded::Complete(
            interpret(header_cache::METHOD, &parsed, line, (fields, false), policy, &mut heads.key),
            empty_line + length,
        );
    }
    let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(input, &mut headers) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if input.len() < MAX_HEAD_BYTES => return Decoded::Incomplete,
        Ok(httparse::Status::Partial) => return Decoded::Invalid(too_large(&request)),
        Err(httparse::Error::Version) if is_later_minor(version_of(&request, input)) => {
            return decode_later_minor(input, empty_line, &request, policy, heads);
        }
        Err(httparse::Error::Version)
            if is_version(version_of(&request, input)).is_none() && input.len() < MAX_HEAD_BYTES =>
        {
            return Decoded::Incomplete;
        }
        Err(error) => return Decoded::Invalid(malformed(error, &request, input)),
    };
    decoded(parse_head(&input[..length], &request, policy, heads), empty_line + length)
}

/// Decodes a head of version 1.2 to 1.9, behind whose target `httparse` reads no further.
fn decode_later_minor<'a>(
    input: &'a [u8],
    empty_line: usize,
    request: &httparse::Request<'_, 'a>,
    policy: &Policy,
    heads: &'a mut HeadDecoder,
) -> Decoded<Head<'a>, HttpRefusal> {
    let behind_version = &version_of(request, input)[VERSION_BYTES..];
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let found = match behind_version {
        [] | [b'\r'] => Ok(httparse::Status::Partial),
        [b'\r', b'\n', fields @ ..] => httparse::parse_headers(fields, &mut headers),
        _ => Err(httparse::Error::NewLine),
    };
    let (behind_line, count) = match found {
        Ok(httparse::Status::Complete((length, found))) => (length, found.len()),
        Ok(httparse::Status::Partial) if input.len() < MAX_HEAD_BYTES => return Decoded::Incomplete,
        Ok(httparse::Status::Partial) => return Decoded::Invalid(too_large(request)),
        Err(error) => return Decoded::Invalid(malformed(error, request, input)),
    };
    let length = input.len() - behind_version.len() + "\r\n".len() + behind_line;
    let (method, path) = (request.method, request.path);
    let request = httparse::Request { method, path, version: Some(1), headers: &mut headers[..count] };
    decoded(parse_head(&input[..length], &request, policy, heads), empty_line + length)
}

/// Returns a head that took so many bytes, or its refusal.
fn decoded(head: Result<Head<'_>, HttpRefusal>, length: usize) -> Decoded<Head<'_>, HttpRefusal> {
    match head {
        Ok(head) => Decoded::Complete(head, length),
        Err(refusal) => Decoded::Invalid(refusal),
    }
}

/// The request line, without its end, at the beginning of `head`.
fn request_line<'a>(head: &'a [u8], method: &str, target: &[u8]) -> &'a [u8] {
    &head[..method.len() + 1 + target.len() + " HTTP/1.1".len()]
}

/// Reads a head whose parts are found.
fn parse_head<'a>(
    head: &'a [u8],
    request: &httparse::Request<'_, 'a>,
    policy: &Policy,
    heads: &'a mut HeadDecoder,
) -> Result<Head<'a>, HttpRefusal> {
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(bad_request("malformed request: not valid HTTP/1.1"));
    };
    if target.len() > MAX_TARGET_BYTES {
        return Err(TARGET_TOO_LONG);
    }
    if !has_whole_line_ends(head, request.headers) {
        return Err(bad_request("malformed request: a line must end with CR and LF"));
    }
    let Some(parsed) = RequestTarget::parse(method, target.as_bytes()) else {
        return Err(bad_request("malformed request target; use a path or an http URL, in ASCII and percent-encoded"));
    };
    let version_1_0 = version == 0;
    let fields = Fields::read(request.headers, version_1_0)?;
    let line = request_line(head, method, target.as_bytes());
    if method == header_cache::METHOD && !version_1_0 {
        heads.known.insert(&head[line.len() + "\r\n".len()..], &fields);
    }
    Ok(interpret(method, &parsed, line, (fields, version_1_0), policy, &mut heads.key))
}

/// What a head means whose parts are read.
fn interpret<'a>(
    method: &str,
    target: &RequestTarget<'a>,
    line: &'a [u8],
    (fields, version_1_0): (Fields<'a>, bool),
    policy: &Policy,
    key_scratch: &'a mut Vec<u8>,
) -> Head<'a> {
    // What is no method that is known may be what is left of something else.
    let keep_alive = fields.keep_alive && is_known_method(method) && method != "CONNECT";
    let (view, command) = if policy.allowed_hosts.allow(target.host.unwrap_or(fields.host)) || target.is_health_check()
    {
        target.interpret(method, policy.admin, key_scratch)
    } else {
        (View::Json, HttpOperation::Refuse(MISDIRECTED))
    };
    let shape = HttpReplyFormat { view, head_only: method == "HEAD", version_1_0, keep_alive, unmet: fields.unmet };
    Head {
        operation: command,
        format: shape,
        body: fields.body,
        expects_continue: fields.expects_answer,
        request_line: line,
    }
}

/// Whether each line of a head ends with a carriage return and a line feed. A line is followed by a field's name, or by the
/// empty line at the end, so that nothing has to be searched.
fn has_whole_line_ends(head: &[u8], headers: &[httparse::Header<'_>]) -> bool {
    let before = |name: &str| {
        let at = name.as_ptr() as usize - head.as_ptr() as usize;
        head[..at].ends_with(b"\r\n")
    };
    headers.iter().all(|header| before(header.name)) && head.ends_with(b"\r\n\r\n")
}

const MISDIRECTED: HttpRefusal = HttpRefusal {
    status: Status::MisdirectedRequest,
    message: "host not allowed; allowed hosts are set with ALLOWED_HOSTS",
};

const TARGET_TOO_LONG: HttpRefusal =
    HttpRefusal { status: Status::UriTooLong, message: "request target too long; the limit is 8 KiB" };

/// Of a head that has not ended where the longest does.
fn too_large(request: &httparse::Request<'_, '_>) -> HttpRefusal {
    if request.method.is_some() && request.path.is_none_or(|target| target.len() > MAX_TARGET_BYTES) {
        return TARGET_TOO_LONG;
    }
    TOO_LARGE
}

const TOO_LARGE: HttpRefusal = HttpRefusal {
    status: Status::HeaderFieldsTooLarge,
    message: "request head too large; the limit is 16 KiB and 100 header fields",
};

/// Of a head with a byte that cannot stand where it stands.
fn malformed(error: httparse::Error, request: &httparse::Request<'_, '_>, input: &[u8]) -> HttpRefusal {
    match error {
        httparse::Error::TooManyHeaders => TOO_LARGE,
        // A request of another version, or none at all.
        httparse::Error::Version if is_version(version_of(request, input)) == Some(true) => HttpRefusal {
            status: Status::VersionNotSupported,
            message: "HTTP version not supported; use HTTP/1.0 or HTTP/1.1",
        },
        _ => bad_request("malformed request: not valid HTTP/1.1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode<'a>(input: &'a [u8], heads: &'a mut HeadDecoder) -> Decoded<Head<'a>, HttpRefusal> {
        super::decode(input, &Policy::default(), heads)
    }

    fn status_of(input: &[u8]) -> Status {
        match decode(input, &mut HeadDecoder::new()) {
            Decoded::Complete(
                Head { operation: HttpOperation::Get(_) | HttpOperation::Options | HttpOperation::Admin(_), .. },
                _,
            ) => Status::Ok,
            Decoded::Complete(Head { operation: HttpOperation::Refuse(refusal), .. }, _) => refusal.status,
            Decoded::Invalid(refusal) => refusal.status,
            Decoded::Incomplete => panic!("{:?} is incomplete", String::from_utf8_lossy(input)),
        }
    }

    fn key_of(target: &str) -> Option<(View, Vec<u8>)> {
        let head = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        match decode(head.as_bytes(), &mut HeadDecoder::new()) {
            Decoded::Complete(Head { operation: HttpOperation::Get(key), format: shape, .. }, _) => {
                Some((shape.view, key.to_vec()))
            }
            _ => None,
        }
    }

    #[test]
    fn the_key_is_all_behind_the_prefix_percent_decoded() {
        let keys: [(&str, View, &[u8]); 10] = [
            ("/key/a", View::Json, b"a"),
            ("/raw/a", View::Raw, b"a"),
            ("/key/", View::Json, b""),
            ("/key/a/b//c", View::Json, b"a/b//c"),
            ("/key/a?b=c?d", View::Json, b"a"),
            ("/key/a+b", View::Json, b"a+b"),
            ("/key/%00%0d%0A%2f%25%3F%ff", View::Json, b"\x00\r\n/%?\xff"),
            ("/key/key/x", View::Json, b"key/x"),
            ("http://host:80/raw/x?y", View::Raw, b"x"),
            ("HTTP://host/key/%61", View::Json, b"a"),
        ];
        for (target, view, key) in keys {
            assert_eq!(key_of(target), Some((view, key.to_vec())), "{target}");
        }
    }

    #[test]
    fn a_head_is_complete_only_with_its_last_byte_and_takes_nothing_of_what_follows() {
        let head = b"GET /key/%41bc HTTP/1.1\r\nHost: example\r\nContent-Length: 3\r\nConnection: close\r\n\r\n";
        for end in 0..head.len() {
            assert_eq!(decode(&head[..end], &mut HeadDecoder::new()), Decoded::Incomplete, "{end}");
        }
        for follows in [&b""[..], b"abc", b"GET / HTTP/1.1\r\n\r\n", b"\x00\xff"] {
            let mut scratch = HeadDecoder::new();
            let all = [head, follows].concat();
            let Decoded::Complete(found, length) = decode(&all, &mut scratch) else { panic!("not complete") };
            assert_eq!(
                (found.operation, found.body, length),
                (HttpOperation::Get(b"Abc"), Body::Length(3), head.len())
            );
            assert!(!found.format.keep_alive);
        }
    }

    #[test]
    fn staying_open_follows_the_version_and_what_the_client_says() {
        for (version, field, keep_alive) in [
            ("1.1", "", true),
            ("1.0", "", false),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "connection: Upgrade , CLOSE\r\n", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: keep-alive, close\r\n", false),
            ("1.1", "Content-Length: 10\r\n", true),
            ("1.1", "Content-Length: 10\r\nExpect: 100-continue\r\n", false),
            ("1.1", "Content-Length: 99999999\r\n", false),
            ("1.1", "Expect: 100-continue\r\n", true),
            ("1.0", "Connection: keep-alive\r\nExpect: 100-continue\r\nContent-Length: 10\r\n", true),
        ] {
            let head = format!("GET /key/a HTTP/{version}\r\nHost: x\r\n{field}\r\n");
            let mut scratch = HeadDecoder::new();
            let Decoded::Complete(head, _) = decode(head.as_bytes(), &mut scratch) else { panic!("{field}") };
            assert_eq!(head.format.keep_alive, keep_alive, "{version} {field}");
        }
    }

    /// The status of a request for a key with these lines behind the request line, which is a GET of HTTP/1.1.
    #[track_caller]
    fn refused(lines: &[&str], status: Status) {
        for line in lines {
            let head = format!("GET /key/a HTTP/1.1\r\n{line}\r\n\r\n");
            assert_eq!(status_of(head.as_bytes()), status, "{line:?}");
        }
    }

    #[test]
    fn fields_that_could_be_read_in_two_ways_are_refused() {
        // Without a Host field, or with one that two programs would take for two names.
        refused(
            &["A: b", "Host: a\r\nHost: a", "host: a\r\nHOST: b", "Host: a b", "Host: a@b", "Host: a, b"],
            Status::BadRequest,
        );
        refused(&["Host: a:b", "Host: a/b", "Host: [::1", "Host: :80", "Host: http://a"], Status::BadRequest);
        refused(&["Host:", "Host: ", "Host: a:80", "hOST:\ta \t"], Status::Ok);
        for length in
            ["", "+1", "-1", "0x1", "1 1", "1, 1", "1,1", "1;", "1.0", "1e1", "\"1\"", "9999999999999999999", "１"]
        {
            refused(&[&format!("Host: a\r\nContent-Length: {length}")], Status::BadRequest);
        }
        refused(&["Host: a\r\nContent-Length: 1\r\nContent-Length: 1"], Status::BadRequest);
        refused(&["Host: a\r\nContent-Length: 1\r\nX: y\r\ncontent-length: 2"], Status::BadRequest);
        refused(&["Host: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked"], Status::BadRequest);
        refused(&["Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1"], Status::BadRequest);
        refused(&["Host: a\r\nTransfer-Encoding: x\r\nContent-Length: 0"], Status::BadRequest);
        refused(&["Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked"], Status::BadRequest);
        refused(&["Host: a\r\nTransfer-Encoding:"], Status::BadRequest);
        for coding in ["gzip, chunked", "chunked, chunked", "chunked,", ",chunked"] {
            refused(&[&format!("Host: a\r\nTransfer-Encoding: {coding}")], Status::NotImplemented);
        }
        for coding in ["identity", "gzip", "xchunked", "chunked x", "chunked;q=1", "chunked, gzip", ",", "\"chunked\""]
        {
            refused(&[&format!("Host: a\r\nTransfer-Encoding: {coding}")], Status::BadRequest);
        }
        refused(&["Host: a\r\nTransfer-Encoding: Chunked", "Host: a\r\ntransfer-encoding:chunked\t"], Status::Ok);
        refused(&["Host: a\r\nExpect: something", "Host: a\r\nExpect: 100-continue, x"], Status::ExpectationFailed);
        refused(&["Host: a\r\nExpect: 100-continue\r\nExpect: x"], Status::ExpectationFailed);
        let repeated = "Host: a\r\nExpect: 100-continue\r\nExpect: 100-Continue";
        refused(&["Host: a\r\nExpect:", "Host: a\r\nExpect: , ,100-continue,", repeated], Status::Ok);
        for version in ["chunked", "gzip"] {
            let head = format!("GET /key/a HTTP/1.0\r\nTransfer-Encoding: {version}\r\n\r\n");
            assert_eq!(status_of(head.as_bytes()), Status::BadRequest, "{head:?}");
        }
    }

    #[test]
    fn lines_that_are_not_quite_lines_are_refused() {
        refused(
            &["Host : a", "Host\t: a", " Host: a", "Host: a\r\n folded", "Host: a\r\n\tfolded"],
            Status::BadRequest,
        );
        refused(&["Host: a\r\n: b", "Host: a\r\nnothing", "Host: a\r\nX\0: b", "Host: a\r\nX: \0"], Status::BadRequest);
        refused(
            &["Host: a\r\nX: a\rb", "Host: a\r\nX: \x01", "Host: a\r\nX: \x7f", "Host: a\r\nX\x0b: a"],
            Status::BadRequest,
        );
        refused(&["Host: a\nX: b", "Host: a\r\nX: b\n", "Host: a\n", "Host: a\r\nX:\nY: z"], Status::BadRequest);
        for head in [
            "GET /key/a HTTP/1.1\nHost: a\r\n\r\n",
            "GET /key/a HTTP/1.1\r\nHost: a\r\n\n",
            "GET /key/a HTTP/1.1\rHost: a\r\n\r\n",
            "GET  /key/a HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /key/a  HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET\t/key/a HTTP/1.1\r\nHost: a\r\n\r\n",
            " GET /key/a HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /key/a HTTP/1.1 \r\nHost: a\r\n\r\n",
            "GET /key/a\r\n\r\n",
            "G(T /key/a HTTP/1.1\r\nHost: a\r\n\r\n",
            "\nGET /key/a HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\n\r\nGET /key/a HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\n\nGET /key/a HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r GET /key/a HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /key/a http/1.1\r\nHost: a\r\n\r\n",
            "GET /key/a HTTPS/1.1\r\nHost: a\r\n\r\n",
            "hello\r\n",
            "\x16\x03\x01\x02\0",
        ] {
            assert_eq!(status_of(head.as_bytes()), Status::BadRequest, "{head:?}");
        }
        for version in ["HTTP/11", "HTTP/1,1", "HTTP/", "HTTP/x.y", "HTTP/+1.1", "HTTP/01.1", "HTTP/ 1.1", "HTTP/2x"] {
            let head = format!("GET /key/a {version}\r\nHost: a\r\n\r\n");
            assert_eq!(status_of(head.as_bytes()), Status::BadRequest, "{head:?}");
        }
        assert_eq!(decode(b"GET /key/a HTTP/2", &mut HeadDecoder::new()), Decoded::Incomplete);
        for version in ["HTTP/2.0", "HTTP/0.9", "HTTP/3.1"] {
            let head = format!("GET /key/a {version}\r\nHost: a\r\n\r\n");
            assert_eq!(status_of(head.as_bytes()), Status::VersionNotSupported, "{head:?}");
        }
        assert_eq!(status_of(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Status::VersionNotSupported);
        // One empty line may be what is left of a client's last request.
        assert_eq!(status_of(b"\r\nGET /key/a HTTP/1.1\r\nHost: a\r\n\r\n"), Status::Ok);
    }

    #[test]
    fn later_minor_versions_are_read_as_1_1() {
        let head = |version: &str| format!("GET /key/%41 {version}\r\nHost: x\r\nConnection: keep-alive\r\n\r\n");
        for minor in 2..=9 {
            let version = format!("HTTP/1.{minor}");
            let (bytes, mut heads) = (head(&version), HeadDecoder::new());
            for end in 0..bytes.len() {
                let begun = decode(&bytes.as_bytes()[..end], &mut heads);
                assert_eq!(begun, Decoded::Incomplete, "{version} to {end}");
            }
            let Decoded::Complete(found, length) = decode(bytes.as_bytes(), &mut heads) else { panic!("{version}") };
            assert_eq!((found.operation, length), (HttpOperation::Get(b"A"), bytes.len()));
            assert!(found.format.keep_alive && !found.format.version_1_0);
            assert_eq!(found.request_line, format!("GET /key/%41 {version}").as_bytes());
        }
        // Chunked bodies are those of 1.1, and a Host field is as necessary.
        assert_eq!(status_of(b"GET /key/a HTTP/1.2\r\n\r\n"), Status::BadRequest);
        let both = b"GET /key/a HTTP/1.9\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(status_of(both), Status::BadRequest);
        for version in ["HTTP/1.10", "HTTP/1.2 ", "HTTP/1.2\n", "HTTP/1.a"] {
            assert_ne!(status_of(head(version).as_bytes()), Status::Ok, "{version:?}");
        }
    }

    #[test]
    fn preconditions_are_found() {
        for (fields, unmet) in [
            ("", None),
            ("If-None-Match: *\r\n", Some(Status::NotModified)),
            ("if-none-match:\t* \r\n", Some(Status::NotModified)),
            ("If-None-Match: \"a\", W/\"b\"\r\n", None),
            ("If-Match: *\r\n", None),
            ("If-Match: \"a\"\r\n", Some(Status::PreconditionFailed)),
            ("If-Match: \"*\"\r\n", Some(Status::PreconditionFailed)),
            ("If-None-Match: *\r\nIf-Match: \"a\"\r\n", Some(Status::PreconditionFailed)),
            ("If-Match: *\r\nIf-None-Match: *\r\n", Some(Status::NotModified)),
            ("If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n", None),
        ] {
            let head = format!("GET /key/a HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
            let mut heads = HeadDecoder::new();
            let Decoded::Complete(head, _) = decode(head.as_bytes(), &mut heads) else { panic!("{fields}") };
            assert_eq!(head.format.unmet, unmet, "{fields}");
        }
    }

    #[test]
    fn a_head_has_a_longest_length_whole_or_in_pieces() {
        let with_target = |length: usize| {
            format!("GET /key/{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(length - "/key/".len())).into_bytes()
        };
        assert_eq!(status_of(&with_target(MAX_TARGET_BYTES)), Status::Ok);
        let with_field =
            |length: usize| format!("GET /key/a HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(length)).into_bytes();
        let around = with_field(0).len();
        assert_eq!(status_of(&with_field(MAX_HEAD_BYTES - around)), Status::Ok);
        let many = format!("GET /key/a HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MAX_HEADERS + 1)).into_bytes();
        let late = [with_field(MAX_HEAD_BYTES - around + 1), b"\0\0\0".to_vec()].concat();
        for (head, status) in [
            (with_target(MAX_TARGET_BYTES + 1), Status::UriTooLong),
            (with_target(MAX_HEAD_BYTES), Status::UriTooLong),
            (with_target(MAX_HEAD_BYTES * 5), Status::UriTooLong),
            (with_field(MAX_HEAD_BYTES - around + 1), Status::HeaderFieldsTooLarge),
            (with_field(MAX_HEAD_BYTES * 5), Status::HeaderFieldsTooLarge),
            (late, Status::HeaderFieldsTooLarge),
            (vec![b'x'; MAX_HEAD_BYTES * 2], Status::HeaderFieldsTooLarge),
            (many, Status::HeaderFieldsTooLarge),
        ] {
            assert_eq!(status_of(&head), status, "{}", head.len());
            let first =
                (1..=head.len()).find(|&end| decode(&head[..end], &mut HeadDecoder::new()) != Decoded::Incomplete);
            let first = first.expect("it is refused in pieces too");
            assert_eq!(status_of(&head[..first]), status, "{}, in pieces", head.len());
            assert!(first <= MAX_HEAD_BYTES);
        }
    }
}
