//! Decoder of request heads.
//!
//! `httparse` splits a head into its parts, unless `header_cache` has its fields. This file,
//! `fields` and `target` decide what the parts mean. They refuse a head that two programs could
//! read in two ways (RFC 9112, section 11).
//!
//! `httparse` is lenient where RFC 9112 permits it. It accepts a bare line feed as the end of a
//! line, empty lines before the request line, and almost any byte in a target. The decoder refuses
//! all of that, except for one empty line (section 2.2).

use super::super::Decoded;
use super::fields::Fields;
use super::header_cache::{self, HeaderCache, HeaderCacheHit};
use super::target::{self, RequestTarget, is_known_method};
use super::version::{VERSION_BYTES, is_later_minor, is_version, version_of};
use super::{
    AdminEndpoint, Authorization, Body, CacheDirectives, HttpRefusal, HttpReplyFormat, Policy, Status, View,
    bad_request,
};
use crate::types::{Access, MAX_KEY_BYTES, UpcomingKeys};
use std::mem::MaybeUninit;

/// Maximum length of a request head. Browsers send up to about 4 KiB; HAProxy's buffer for a head
/// has the same length.
pub const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Maximum length of a request target. RFC 9112, section 3, asks all servers for about as much, and
/// nginx accepts as much.
pub const MAX_TARGET_BYTES: usize = 8 * 1024;

/// Maximum number of header fields of a request. A browser sends about 20, and proxies in front add
/// a few.
pub const MAX_HEADERS: usize = 100;

// A key is a part of a target, so the target bounds it.
const _: () = assert!(MAX_TARGET_BYTES <= MAX_KEY_BYTES);

/// Operation that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpOperation<'a> {
    /// Read the value of this key.
    Get(&'a [u8]),
    /// Read the keys that this query names. It is not decoded.
    GetMany(&'a [u8]),
    /// Send the changes of the keys that this query names. It is not decoded.
    Watch(&'a [u8]),
    /// Render an admin endpoint.
    Admin(AdminEndpoint),
    /// List the supported methods (RFC 9110, section 9.3.7).
    Options,
    /// Send an error response.
    Refuse(HttpRefusal),
}

/// Decoded request head.
#[derive(Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// Operation that the request asks for.
    pub operation: HttpOperation<'a>,
    /// Properties of the response.
    pub format: HttpReplyFormat,
    /// Body that must be skipped before the next head.
    pub body: Body,
    /// True if the client waits for a response before it sends the body (RFC 9110, section 10.1.1).
    pub expects_continue: bool,
    /// Directives of `Cache-Control`. The decoder does not apply them.
    pub cache_directives: CacheDirectives,
    /// Credentials of the client. The decoder does not check them.
    pub authorization: Authorization<'a>,
    /// Request line, without CR and LF.
    pub request_line: &'a [u8],
}

/// Buffers that decoding reuses. The result never depends on earlier heads.
#[derive(Debug)]
pub struct HeadDecoder {
    /// Scratch buffer for a percent-decoded key.
    pub key_scratch: Vec<u8>,
    /// The heads arrive over TLS: `https` URLs are served (RFC 9110, section 7.4).
    pub is_secure: bool,
    /// Recently decoded header fields.
    pub(super) header_cache: HeaderCache,
}

impl HeadDecoder {
    /// Creates a decoder without cached fields.
    #[allow(clippy::new_without_default, reason = "one constructor is enough")]
    pub fn new() -> HeadDecoder {
        HeadDecoder { key_scratch: Vec::new(), is_secure: false, header_cache: HeaderCache::new() }
    }

    /// Adds the keys that the requests at the start of `input` will look up, up to the first
    /// request with other fields than recent ones, or with a body. Returns the end of the last one.
    /// Decodes nothing.
    pub fn find_upcoming_keys<'a>(&self, input: &'a [u8], keys: &mut UpcomingKeys<'a>) -> usize {
        let mut end = 0;
        while !keys.is_full()
            && let Some((target, length)) = self.header_cache.peek_target(&input[end..])
            && let Some(key) = target::plain_key(target)
        {
            keys.push(key);
            end += length;
        }
        end
    }
}

/// Decodes the request head at the start of `input`.
///
/// A key with percent-escapes is decoded into `heads`; any other is borrowed from `input`.
/// `Invalid` means that the start of the next request is unknown, so the connection must close. The
/// result does not depend on how much input follows the head.
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
    // Input beyond the maximum length of a head must not change the result.
    let input = &input[..input.len().min(MAX_HEAD_BYTES)];
    if let Some(HeaderCacheHit { target, fields, length }) = heads.header_cache.find(input)
        && target.len() <= MAX_TARGET_BYTES
        && let Some(parsed) = RequestTarget::parse(header_cache::METHOD, target, heads.is_secure)
    {
        let line = request_line(input, header_cache::METHOD, target);
        return Decoded::Complete(
            interpret(header_cache::METHOD, &parsed, line, (fields, false), policy, &mut heads.key_scratch),
            empty_line + length,
        );
    }
    let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(input, &mut headers) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if input.len() < MAX_HEAD_BYTES => return Decoded::Incomplete,
        Ok(httparse::Status::Partial) => return Decoded::Invalid(refuse_oversized(&request)),
        Err(httparse::Error::Version) if is_later_minor(version_of(&request, input)) => {
            return decode_later_minor(input, empty_line, &request, policy, heads);
        }
        Err(httparse::Error::Version)
            if is_version(version_of(&request, input)).is_none() && input.len() < MAX_HEAD_BYTES =>
        {
            return Decoded::Incomplete;
        }
        Err(error) => return Decoded::Invalid(refuse_malformed(error, &request, input)),
    };
    decoded(parse_head(&input[..length], &request, policy, heads), empty_line + length)
}

/// Decodes a head of version 1.2 to 1.9. `httparse` stops at such a version, so this function
/// parses the fields.
fn decode_later_minor<'a>(
    input: &'a [u8],
    empty_line: usize,
    request: &httparse::Request<'_, 'a>,
    policy: &Policy,
    heads: &'a mut HeadDecoder,
) -> Decoded<Head<'a>, HttpRefusal> {
    let after_version = &version_of(request, input)[VERSION_BYTES..];
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let found = match after_version {
        [] | [b'\r'] => Ok(httparse::Status::Partial),
        [b'\r', b'\n', fields @ ..] => httparse::parse_headers(fields, &mut headers),
        _ => Err(httparse::Error::NewLine),
    };
    let (fields_len, count) = match found {
        Ok(httparse::Status::Complete((length, found))) => (length, found.len()),
        Ok(httparse::Status::Partial) if input.len() < MAX_HEAD_BYTES => return Decoded::Incomplete,
        Ok(httparse::Status::Partial) => return Decoded::Invalid(refuse_oversized(request)),
        Err(error) => return Decoded::Invalid(refuse_malformed(error, request, input)),
    };
    let length = input.len() - after_version.len() + "\r\n".len() + fields_len;
    let (method, path) = (request.method, request.path);
    let request = httparse::Request { method, path, version: Some(1), headers: &mut headers[..count] };
    decoded(parse_head(&input[..length], &request, policy, heads), empty_line + length)
}

/// Converts a parsed head of `length` bytes, or its refusal, to the result of [`decode`].
fn decoded(head: Result<Head<'_>, HttpRefusal>, length: usize) -> Decoded<Head<'_>, HttpRefusal> {
    match head {
        Ok(head) => Decoded::Complete(head, length),
        Err(refusal) => Decoded::Invalid(refusal),
    }
}

/// Returns the request line at the start of `head`, without CR and LF.
fn request_line<'a>(head: &'a [u8], method: &str, target: &[u8]) -> &'a [u8] {
    &head[..method.len() + 1 + target.len() + " HTTP/1.1".len()]
}

/// Interprets a head that `httparse` has split, and caches its fields.
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
    if !has_crlf_line_ends(head, request.headers) {
        return Err(bad_request("malformed request: a line must end with CR and LF"));
    }
    let Some(parsed) = RequestTarget::parse(method, target.as_bytes(), heads.is_secure) else {
        return Err(bad_request("malformed request target; use a path or an http URL, in ASCII and percent-encoded"));
    };
    let version_1_0 = version == 0;
    let fields = Fields::read(request.headers, version_1_0)?;
    let line = request_line(head, method, target.as_bytes());
    if method == header_cache::METHOD && !version_1_0 {
        heads.header_cache.insert(&head[line.len() + "\r\n".len()..], &fields);
    }
    Ok(interpret(method, &parsed, line, (fields, version_1_0), policy, &mut heads.key_scratch))
}

/// Builds a head from its parsed parts under `policy`.
fn interpret<'a>(
    method: &str,
    target: &RequestTarget<'a>,
    line: &'a [u8],
    (fields, version_1_0): (Fields<'a>, bool),
    policy: &Policy,
    key_scratch: &'a mut Vec<u8>,
) -> Head<'a> {
    // An unknown method may be the rest of another message, so the connection closes.
    let keep_alive = fields.keep_alive && is_known_method(method) && method != "CONNECT";
    let (view, operation) =
        if policy.allowed_hosts.allows(target.host.unwrap_or(fields.host)) || target.is_health_check() {
            target.interpret(method, policy.resources, key_scratch)
        } else {
            (View::Json, HttpOperation::Refuse(HOST_NOT_ALLOWED))
        };
    let format = HttpReplyFormat {
        view,
        head_only: method == "HEAD",
        version_1_0,
        keep_alive,
        conditions: fields.conditions,
        access: Access::NORMAL,
        is_private: false,
        omits_entity_tag: policy.omits_entity_tags,
    };
    let Fields { body, expects_continue, cache_directives, authorization, .. } = fields;
    Head { operation, format, body, expects_continue, cache_directives, authorization, request_line: line }
}

/// Returns true if each line of a head ends with CR and LF. No search is needed: a field name or
/// the final empty line follows each line.
fn has_crlf_line_ends(head: &[u8], headers: &[httparse::Header<'_>]) -> bool {
    let follows_crlf = |name: &str| {
        let offset = name.as_ptr() as usize - head.as_ptr() as usize;
        head[..offset].ends_with(b"\r\n")
    };
    headers.iter().all(|header| follows_crlf(header.name)) && head.ends_with(b"\r\n\r\n")
}

/// Refusal of a host that `ALLOWED_HOSTS` does not list (RFC 9110, section 15.5.20).
const HOST_NOT_ALLOWED: HttpRefusal = HttpRefusal {
    status: Status::MisdirectedRequest,
    message: "host not allowed; allowed hosts are set with ALLOWED_HOSTS",
};

/// Refusal of a target longer than [`MAX_TARGET_BYTES`].
const TARGET_TOO_LONG: HttpRefusal =
    HttpRefusal { status: Status::UriTooLong, message: "request target too long; the limit is 8 KiB" };

/// Returns the refusal of a head that is incomplete after [`MAX_HEAD_BYTES`].
fn refuse_oversized(request: &httparse::Request<'_, '_>) -> HttpRefusal {
    if request.method.is_some() && request.path.is_none_or(|target| target.len() > MAX_TARGET_BYTES) {
        return TARGET_TOO_LONG;
    }
    HEAD_TOO_LARGE
}

/// Refusal of a head beyond [`MAX_HEAD_BYTES`] or [`MAX_HEADERS`].
const HEAD_TOO_LARGE: HttpRefusal = HttpRefusal {
    status: Status::HeaderFieldsTooLarge,
    message: "request head too large; the limit is 16 KiB and 100 header fields",
};

/// Returns the refusal of a head that `httparse` does not accept.
fn refuse_malformed(error: httparse::Error, request: &httparse::Request<'_, '_>, input: &[u8]) -> HttpRefusal {
    match error {
        httparse::Error::TooManyHeaders => HEAD_TOO_LARGE,
        // `httparse` reports any other version, and text that is no version, in the same way.
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
                Head {
                    operation:
                        HttpOperation::Get(_)
                        | HttpOperation::GetMany(_)
                        | HttpOperation::Watch(_)
                        | HttpOperation::Options
                        | HttpOperation::Admin(_),
                    ..
                },
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
            Decoded::Complete(Head { operation: HttpOperation::Get(key), format, .. }, _) => {
                Some((format.view, key.to_vec()))
            }
            _ => None,
        }
    }

    /// The key is the percent-decoded path after `/key/` or `/raw/`, without the query.
    #[test]
    fn key_is_path_after_prefix() {
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

    /// A head is complete with its last byte and consumes none of the following bytes.
    #[test]
    fn head_completes_at_last_byte() {
        let head = b"GET /key/%41bc HTTP/1.1\r\nHost: example\r\nContent-Length: 3\r\nConnection: close\r\n\r\n";
        for end in 0..head.len() {
            assert_eq!(decode(&head[..end], &mut HeadDecoder::new()), Decoded::Incomplete, "{end}");
        }
        for follows in [&b""[..], b"abc", b"GET / HTTP/1.1\r\n\r\n", b"\x00\xff"] {
            let mut heads = HeadDecoder::new();
            let all = [head, follows].concat();
            let Decoded::Complete(found, length) = decode(&all, &mut heads) else { panic!("not complete") };
            assert_eq!(
                (found.operation, found.body, length),
                (HttpOperation::Get(b"Abc"), Body::Length(3), head.len())
            );
            assert!(!found.format.keep_alive);
        }
    }

    /// The version, `Connection`, `Expect` and the body decide if the connection stays open.
    #[test]
    fn keep_alive_follows_version_and_fields() {
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
            let mut heads = HeadDecoder::new();
            let Decoded::Complete(head, _) = decode(head.as_bytes(), &mut heads) else { panic!("{field}") };
            assert_eq!(head.format.keep_alive, keep_alive, "{version} {field}");
        }
    }

    /// Asserts the status of a `GET` of HTTP/1.1 with each of `lines` as its header fields.
    #[track_caller]
    fn assert_status(lines: &[&str], status: Status) {
        for line in lines {
            let head = format!("GET /key/a HTTP/1.1\r\n{line}\r\n\r\n");
            assert_eq!(status_of(head.as_bytes()), status, "{line:?}");
        }
    }

    /// Fields that two programs could read in two ways are refused.
    #[test]
    fn ambiguous_fields_are_refused() {
        // No Host field, or one that two programs would read as two hosts.
        assert_status(
            &["A: b", "Host: a\r\nHost: a", "host: a\r\nHOST: b", "Host: a b", "Host: a@b", "Host: a, b"],
            Status::BadRequest,
        );
        assert_status(&["Host: a:b", "Host: a/b", "Host: [::1", "Host: :80", "Host: http://a"], Status::BadRequest);
        assert_status(&["Host:", "Host: ", "Host: a:80", "hOST:\ta \t"], Status::Ok);
        for length in
            ["", "+1", "-1", "0x1", "1 1", "1, 1", "1,1", "1;", "1.0", "1e1", "\"1\"", "9999999999999999999", "１"]
        {
            assert_status(&[&format!("Host: a\r\nContent-Length: {length}")], Status::BadRequest);
        }
        assert_status(&["Host: a\r\nContent-Length: 1\r\nContent-Length: 1"], Status::BadRequest);
        assert_status(&["Host: a\r\nContent-Length: 1\r\nX: y\r\ncontent-length: 2"], Status::BadRequest);
        assert_status(&["Host: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked"], Status::BadRequest);
        assert_status(&["Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1"], Status::BadRequest);
        assert_status(&["Host: a\r\nTransfer-Encoding: x\r\nContent-Length: 0"], Status::BadRequest);
        assert_status(&["Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked"], Status::BadRequest);
        assert_status(&["Host: a\r\nTransfer-Encoding:"], Status::BadRequest);
        for coding in ["gzip, chunked", "chunked, chunked", "chunked,", ",chunked"] {
            assert_status(&[&format!("Host: a\r\nTransfer-Encoding: {coding}")], Status::NotImplemented);
        }
        for coding in ["identity", "gzip", "xchunked", "chunked x", "chunked;q=1", "chunked, gzip", ",", "\"chunked\""]
        {
            assert_status(&[&format!("Host: a\r\nTransfer-Encoding: {coding}")], Status::BadRequest);
        }
        assert_status(&["Host: a\r\nTransfer-Encoding: Chunked", "Host: a\r\ntransfer-encoding:chunked\t"], Status::Ok);
        assert_status(
            &["Host: a\r\nExpect: something", "Host: a\r\nExpect: 100-continue, x"],
            Status::ExpectationFailed,
        );
        assert_status(&["Host: a\r\nExpect: 100-continue\r\nExpect: x"], Status::ExpectationFailed);
        let repeated = "Host: a\r\nExpect: 100-continue\r\nExpect: 100-Continue";
        assert_status(&["Host: a\r\nExpect:", "Host: a\r\nExpect: , ,100-continue,", repeated], Status::Ok);
        for coding in ["chunked", "gzip"] {
            let head = format!("GET /key/a HTTP/1.0\r\nTransfer-Encoding: {coding}\r\n\r\n");
            assert_eq!(status_of(head.as_bytes()), Status::BadRequest, "{head:?}");
        }
    }

    /// Request lines and field lines that violate the grammar are refused.
    #[test]
    fn malformed_lines_are_refused() {
        assert_status(
            &["Host : a", "Host\t: a", " Host: a", "Host: a\r\n folded", "Host: a\r\n\tfolded"],
            Status::BadRequest,
        );
        assert_status(
            &["Host: a\r\n: b", "Host: a\r\nnothing", "Host: a\r\nX\0: b", "Host: a\r\nX: \0"],
            Status::BadRequest,
        );
        assert_status(
            &["Host: a\r\nX: a\rb", "Host: a\r\nX: \x01", "Host: a\r\nX: \x7f", "Host: a\r\nX\x0b: a"],
            Status::BadRequest,
        );
        assert_status(&["Host: a\nX: b", "Host: a\r\nX: b\n", "Host: a\n", "Host: a\r\nX:\nY: z"], Status::BadRequest);
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
        // Some clients send one empty line after a request.
        assert_eq!(status_of(b"\r\nGET /key/a HTTP/1.1\r\nHost: a\r\n\r\n"), Status::Ok);
    }

    /// Versions 1.2 to 1.9 are processed as 1.1.
    #[test]
    fn later_minor_version_read_as_1_1() {
        let head = |version: &str| format!("GET /key/%41 {version}\r\nHost: x\r\nConnection: keep-alive\r\n\r\n");
        for minor in 2..=9 {
            let version = format!("HTTP/1.{minor}");
            let (bytes, mut heads) = (head(&version), HeadDecoder::new());
            for end in 0..bytes.len() {
                let partial = decode(&bytes.as_bytes()[..end], &mut heads);
                assert_eq!(partial, Decoded::Incomplete, "{version} to {end}");
            }
            let Decoded::Complete(found, length) = decode(bytes.as_bytes(), &mut heads) else { panic!("{version}") };
            assert_eq!((found.operation, length), (HttpOperation::Get(b"A"), bytes.len()));
            assert!(found.format.keep_alive && !found.format.version_1_0);
            assert_eq!(found.request_line, format!("GET /key/%41 {version}").as_bytes());
        }
        // As in 1.1, a Host field is required, and chunked coding excludes a Content-Length.
        assert_eq!(status_of(b"GET /key/a HTTP/1.2\r\n\r\n"), Status::BadRequest);
        let both = b"GET /key/a HTTP/1.9\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(status_of(both), Status::BadRequest);
        for version in ["HTTP/1.10", "HTTP/1.2 ", "HTTP/1.2\n", "HTTP/1.a"] {
            assert_ne!(status_of(head(version).as_bytes()), Status::Ok, "{version:?}");
        }
    }

    /// A head beyond a limit is refused with the same status, whole or in pieces.
    #[test]
    fn oversized_head_is_refused() {
        let with_target = |length: usize| {
            format!("GET /key/{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(length - "/key/".len())).into_bytes()
        };
        assert_eq!(status_of(&with_target(MAX_TARGET_BYTES)), Status::Ok);
        let with_field =
            |length: usize| format!("GET /key/a HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(length)).into_bytes();
        let empty_field_len = with_field(0).len();
        assert_eq!(status_of(&with_field(MAX_HEAD_BYTES - empty_field_len)), Status::Ok);
        let many_fields = format!("GET /key/a HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MAX_HEADERS + 1)).into_bytes();
        let invalid_after_limit = [with_field(MAX_HEAD_BYTES - empty_field_len + 1), b"\0\0\0".to_vec()].concat();
        for (head, status) in [
            (with_target(MAX_TARGET_BYTES + 1), Status::UriTooLong),
            (with_target(MAX_HEAD_BYTES), Status::UriTooLong),
            (with_target(MAX_HEAD_BYTES * 5), Status::UriTooLong),
            (with_field(MAX_HEAD_BYTES - empty_field_len + 1), Status::HeaderFieldsTooLarge),
            (with_field(MAX_HEAD_BYTES * 5), Status::HeaderFieldsTooLarge),
            (invalid_after_limit, Status::HeaderFieldsTooLarge),
            (vec![b'x'; MAX_HEAD_BYTES * 2], Status::HeaderFieldsTooLarge),
            (many_fields, Status::HeaderFieldsTooLarge),
        ] {
            assert_eq!(status_of(&head), status, "{}", head.len());
            let first =
                (1..=head.len()).find(|&end| decode(&head[..end], &mut HeadDecoder::new()) != Decoded::Incomplete);
            let first = first.expect("a refusal in pieces too");
            assert_eq!(status_of(&head[..first]), status, "{}, in pieces", head.len());
            assert!(first <= MAX_HEAD_BYTES);
        }
    }
}
