//! Request heads. `httparse` finds the parts; what they mean is decided here, strictly: a head that two programs could
//! read in two ways is refused (RFC 9112, section 11).

use super::super::Decoded;
use super::{Body, Refusal, Shape, Status, View};
use crate::request::MAX_KEY_BYTES;
use std::mem::MaybeUninit;

/// Longest request head, in bytes. What nginx and HAProxy take by default.
pub const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Most header fields of a request. A browser sends some 20, proxies in front add a few.
pub const MAX_HEADERS: usize = 100;

// A key comes out of a head, so that the longest head is the longest key too.
const _: () = assert!(MAX_HEAD_BYTES <= MAX_KEY_BYTES);

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// The value of this key.
    Get(&'a [u8]),
    /// Nothing that could be given.
    Refuse(Refusal),
}

/// A request head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// What it wants.
    pub command: Command<'a>,
    /// How to answer.
    pub shape: Shape,
    /// What follows it and must be skipped before the next head.
    pub body: Body,
}

const fn bad_request(message: &'static str) -> Refusal {
    Refusal { status: Status::BadRequest, message }
}

/// Decodes the request head at the beginning of `input`. A key with percent-escapes is decoded into `key_scratch`,
/// any other is borrowed from `input`. An `Err` means that where the next request begins is not known: the
/// connection must end.
pub fn decode<'a>(input: &'a [u8], key_scratch: &'a mut Vec<u8>) -> Decoded<Head<'a>, Refusal> {
    const TOO_LARGE: Refusal = Refusal {
        status: Status::HeaderFieldsTooLarge,
        message: "the request head is too large; at most 16 KiB and 100 header fields are taken",
    };
    let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(input, &mut headers) {
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD_BYTES => length,
        Ok(httparse::Status::Partial) if input.len() <= MAX_HEAD_BYTES => return Decoded::Incomplete,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Decoded::Invalid(TOO_LARGE),
        Err(httparse::Error::Version) => {
            return Decoded::Invalid(Refusal {
                status: Status::VersionNotSupported,
                message: "only HTTP/1.1 and HTTP/1.0 are spoken here",
            });
        }
        Err(_) => return Decoded::Invalid(bad_request("the request does not parse as HTTP/1.1")),
    };
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Decoded::Invalid(bad_request("the request does not parse as HTTP/1.1"));
    };
    let fields = match Fields::read(request.headers, version == 0) {
        Ok(fields) => fields,
        Err(refusal) => return Decoded::Invalid(refusal),
    };
    let (view, command) = interpret(method, target, key_scratch);
    let shape = Shape { view, head_only: method == "HEAD", version_1_0: version == 0, keep_alive: fields.keep_alive };
    Decoded::Complete(Head { command, shape, body: fields.body }, length)
}

/// What the header fields say about the message and the connection.
struct Fields {
    keep_alive: bool,
    body: Body,
}

impl Fields {
    fn read(headers: &[httparse::Header<'_>], version_1_0: bool) -> Result<Fields, Refusal> {
        let (mut close, mut keep_alive, mut expects, mut chunked) = (false, false, false, false);
        let (mut hosts, mut lengths, mut length) = (0, 0, 0);
        for header in headers {
            // The length tells most fields apart from these before any letter is compared.
            match header.name.len() {
                4 if header.name.eq_ignore_ascii_case("host") => hosts += 1,
                6 if header.name.eq_ignore_ascii_case("expect") => expects = true,
                10 if header.name.eq_ignore_ascii_case("connection") => {
                    for option in header.value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                        close |= option.eq_ignore_ascii_case(b"close");
                        keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                    }
                }
                14 if header.name.eq_ignore_ascii_case("content-length") => {
                    lengths += 1;
                    length = parse_length(header.value)?;
                }
                17 if header.name.eq_ignore_ascii_case("transfer-encoding") => {
                    if chunked || !header.value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Refusal {
                            status: Status::NotImplemented,
                            message: "of transfer codings only chunked is known here",
                        });
                    }
                    chunked = true;
                }
                _ => {}
            }
        }
        if hosts > 1 || (hosts == 0 && !version_1_0) {
            return Err(bad_request("a request must have one Host field (RFC 9112, section 3.2)"));
        }
        if lengths > 1 {
            return Err(bad_request("Content-Length is there twice"));
        }
        if chunked && (lengths > 0 || version_1_0) {
            return Err(bad_request("Transfer-Encoding is for HTTP/1.1, and never beside Content-Length"));
        }
        let body = match length {
            _ if chunked => Body::CHUNKED,
            0 => Body::Done,
            length => Body::Length(length),
        };
        // A client that awaits "100 Continue" may or may not send its body after another answer, so that only closing
        // makes sure where the next request begins (RFC 9110, section 10.1.1).
        let certain = body == Body::Done || (body.is_skippable() && !expects);
        Ok(Fields { keep_alive: !close && (keep_alive || !version_1_0) && certain, body })
    }
}

/// Digits and nothing else (RFC 9110, section 8.6). 18 of them always fit.
fn parse_length(value: &[u8]) -> Result<u64, Refusal> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(bad_request("Content-Length is not a number of bytes"));
    }
    Ok(value.iter().fold(0, |sum, &digit| sum * 10 + u64::from(digit - b'0')))
}

/// Finds what a method and a target ask for.
fn interpret<'a>(method: &str, target: &'a str, key_scratch: &'a mut Vec<u8>) -> (View, Command<'a>) {
    let (view, encoded) = match path_of(target) {
        None => {
            return (View::Json, Command::Refuse(bad_request("the request target must be a path or an http URL")));
        }
        Some(path) => match (path.strip_prefix("/key/"), path.strip_prefix("/raw/")) {
            (Some(key), _) => (View::Json, key),
            (_, Some(key)) => (View::Raw, key),
            _ => {
                let message = "no such path; ask for /key/{key} or /raw/{key}";
                return (View::Json, Command::Refuse(Refusal { status: Status::NotFound, message }));
            }
        },
    };
    if method != "GET" && method != "HEAD" {
        let message = "keys can only be read here; use GET or HEAD";
        return (view, Command::Refuse(Refusal { status: Status::MethodNotAllowed, message }));
    }
    match decode_percent(encoded.as_bytes(), key_scratch) {
        Some(key) => (view, Command::Get(key)),
        None => (view, Command::Refuse(bad_request("a % in the key must be followed by two hexadecimal digits"))),
    }
}

/// The path of an origin-form or absolute-form target (RFC 9112, section 3.2), without its query.
fn path_of(target: &str) -> Option<&str> {
    let path = match target.as_bytes().first() {
        Some(b'/') => target,
        _ => {
            let (scheme, rest) = target.split_once("://")?;
            if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
                return None;
            }
            // The authority ends at any of these; without a path behind it the path is "/".
            rest.find(['/', '?', '#']).map_or("/", |end| &rest[end..])
        }
    };
    path.split('?').next()
}

/// Decodes percent-escapes (RFC 3986, section 2.1). A plus is a plus. `None` where an escape is malformed, because
/// guessing would make two names for one key.
fn decode_percent<'a>(encoded: &'a [u8], scratch: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    if !encoded.contains(&b'%') {
        return Some(encoded);
    }
    scratch.clear();
    let mut bytes = encoded.iter();
    while let Some(&byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(*bytes.next()?).to_digit(16)?;
            let low = char::from(*bytes.next()?).to_digit(16)?;
            scratch.push((high * 16 + low) as u8);
        } else {
            scratch.push(byte);
        }
    }
    Some(scratch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_of(input: &[u8]) -> Status {
        match decode(input, &mut Vec::new()) {
            Decoded::Complete(Head { command: Command::Get(_), .. }, _) => Status::Ok,
            Decoded::Complete(Head { command: Command::Refuse(refusal), .. }, _) => refusal.status,
            Decoded::Invalid(refusal) => refusal.status,
            Decoded::Incomplete => panic!("{:?} is incomplete", String::from_utf8_lossy(input)),
        }
    }

    fn key_of(target: &str) -> Option<(View, Vec<u8>)> {
        let head = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        match decode(head.as_bytes(), &mut Vec::new()) {
            Decoded::Complete(Head { command: Command::Get(key), shape, .. }, _) => Some((shape.view, key.to_vec())),
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
            assert_eq!(decode(&head[..end], &mut Vec::new()), Decoded::Incomplete, "{end}");
        }
        for follows in [&b""[..], b"abc", b"GET / HTTP/1.1\r\n\r\n", b"\x00\xff"] {
            let mut scratch = Vec::new();
            let all = [head, follows].concat();
            let Decoded::Complete(found, length) = decode(&all, &mut scratch) else { panic!("not complete") };
            assert_eq!((found.command, found.body, length), (Command::Get(b"Abc"), Body::Length(3), head.len()));
            assert!(!found.shape.keep_alive);
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
        ] {
            let head = format!("GET /key/a HTTP/{version}\r\nHost: x\r\n{field}\r\n");
            let mut scratch = Vec::new();
            let Decoded::Complete(head, _) = decode(head.as_bytes(), &mut scratch) else { panic!("{field}") };
            assert_eq!(head.shape.keep_alive, keep_alive, "{version} {field}");
        }
    }

    #[test]
    fn what_does_not_parse_or_could_be_read_in_two_ways_is_refused() {
        let cases: [(&str, Status); 26] = [
            ("GET /key/a HTTP/1.1\r\n", Status::BadRequest),
            ("GET /key/a HTTP/1.1\r\nHost: a\r\nHost: b\r\n", Status::BadRequest),
            ("GET /key/a HTTP/2.0\r\nHost: a\r\n", Status::VersionNotSupported),
            ("GET /key/a\r\n", Status::BadRequest),
            ("hello\r\n", Status::BadRequest),
            ("\x16\x03\x01\r\n", Status::BadRequest),
            ("GET /key/a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n", Status::BadRequest),
            ("GET /key/a HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n", Status::BadRequest),
            ("GET /key/a HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n", Status::BadRequest),
            ("GET /key/a HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n", Status::BadRequest),
            ("GET /key/a HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n", Status::BadRequest),
            ("GET /key/a HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999999999999\r\n", Status::BadRequest),
            (
                "GET /key/a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
                Status::BadRequest,
            ),
            ("GET /key/a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n", Status::BadRequest),
            ("GET /key/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n", Status::NotImplemented),
            (
                "GET /key/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                Status::NotImplemented,
            ),
            ("GET /key/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \r\n", Status::NotImplemented),
            ("GET /key/%4 HTTP/1.1\r\nHost: a\r\n", Status::BadRequest),
            ("GET /key/%zz HTTP/1.1\r\nHost: a\r\n", Status::BadRequest),
            ("GET * HTTP/1.1\r\nHost: a\r\n", Status::BadRequest),
            ("GET / HTTP/1.1\r\nHost: a\r\n", Status::NotFound),
            ("GET /key HTTP/1.1\r\nHost: a\r\n", Status::NotFound),
            ("GET http://host?x/key/a HTTP/1.1\r\nHost: a\r\n", Status::NotFound),
            ("GET http://host HTTP/1.1\r\nHost: a\r\n", Status::NotFound),
            ("POST /nothing HTTP/1.1\r\nHost: a\r\n", Status::NotFound),
            ("DELETE /key/a HTTP/1.1\r\nHost: a\r\n", Status::MethodNotAllowed),
        ];
        for (head, status) in cases {
            assert_eq!(status_of(format!("{head}\r\n").as_bytes()), status, "{head:?}");
        }
    }

    #[test]
    fn a_head_has_a_longest_length_whole_or_in_pieces() {
        let long = format!("GET /key/a HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD_BYTES));
        assert_eq!(status_of(long.as_bytes()), Status::HeaderFieldsTooLarge);
        assert_eq!(status_of(&long.as_bytes()[..MAX_HEAD_BYTES + 1]), Status::HeaderFieldsTooLarge);
        assert_eq!(decode(&long.as_bytes()[..MAX_HEAD_BYTES], &mut Vec::new()), Decoded::Incomplete);
        let many = format!("GET /key/a HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(status_of(many.as_bytes()), Status::HeaderFieldsTooLarge);
    }
}
