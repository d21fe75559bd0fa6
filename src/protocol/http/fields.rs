//! What the header fields of a request say about the message and the connection. Everything that two programs could read in
//! two ways is refused, because one of them may stand in front of this one (RFC 9112, section 11.2).

use super::host::parse_authority;
use super::{Body, HttpRefusal, Status, bad_request};

/// See the top of the file.
pub struct Fields<'a> {
    /// Whether another request may follow.
    pub keep_alive: bool,
    /// What follows the head.
    pub body: Body,
    /// Whether the client waits with the body for an answer.
    pub expects_answer: bool,
    /// The host that the request is addressed to; empty where it says none.
    pub host: &'a [u8],
    /// The status instead of 200, where a precondition is not met.
    pub unmet: Option<Status>,
}

impl<'a> Fields<'a> {
    /// Reads them all. An `Err` means that where the request ends, or whom it is for, is not certain.
    pub fn read(headers: &[httparse::Header<'a>], version_1_0: bool) -> Result<Fields<'a>, HttpRefusal> {
        let (mut close, mut keep_alive, mut expects) = (false, false, false);
        let (mut host, mut length, mut coding) = (None, None, None);
        let mut conditions = Conditions::default();
        for header in headers {
            // The length tells most fields apart from these before any letter is compared.
            match header.name.len() {
                4 if header.name.eq_ignore_ascii_case("host") => once(&mut host, header.value)?,
                6 if header.name.eq_ignore_ascii_case("expect") => {
                    expects |= !version_1_0 && expectation(header.value)?
                }
                8 if header.name.eq_ignore_ascii_case("if-match") => conditions.add_match(header.value),
                10 if header.name.eq_ignore_ascii_case("connection") => {
                    for option in header.value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                        close |= option.eq_ignore_ascii_case(b"close");
                        keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                    }
                }
                13 if header.name.eq_ignore_ascii_case("if-none-match") => conditions.add_none_match(header.value),
                14 if header.name.eq_ignore_ascii_case("content-length") => once(&mut length, header.value)?,
                17 if header.name.eq_ignore_ascii_case("transfer-encoding") => once(&mut coding, header.value)?,
                _ => {}
            }
        }
        let body = framing(length, coding, version_1_0)?;
        let host = match host.map(parse_authority) {
            Some(Some(host)) => host,
            None if version_1_0 => b"",
            _ => {
                return Err(bad_request(
                    "a request must have exactly one Host field: a host name and an optional port",
                ));
            }
        };
        // A client that awaits "100 Continue" may or may not send its body after another answer, so that only closing
        // makes sure where the next request begins (RFC 9110, section 10.1.1).
        let certain = body == Body::Done || (body.is_skippable() && !expects);
        let keep_alive = !close && (keep_alive || !version_1_0) && certain;
        Ok(Fields { keep_alive, body, expects_answer: expects, host, unmet: conditions.unmet() })
    }
}

/// Takes note of a field that may be there only once. Two that agree are refused too: others may take either.
fn once<'a>(field: &mut Option<&'a [u8]>, value: &'a [u8]) -> Result<(), HttpRefusal> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(bad_request("Host, Content-Length and Transfer-Encoding must not be repeated")),
    }
}

/// How long the body is (RFC 9112, section 6.3).
fn framing(length: Option<&[u8]>, coding: Option<&[u8]>, version_1_0: bool) -> Result<Body, HttpRefusal> {
    match (length, coding) {
        (None, None) => Ok(Body::Done),
        (Some(length), None) => match parse_length(length)? {
            0 => Ok(Body::Done),
            length => Ok(Body::Length(length)),
        },
        (Some(_), Some(_)) => Err(bad_request("a request must not have both Transfer-Encoding and Content-Length")),
        (None, Some(_)) if version_1_0 => Err(bad_request("Transfer-Encoding is not allowed in HTTP/1.0")),
        (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Body::CHUNKED),
        (None, Some(coding)) if !ends_chunked(coding) => {
            Err(bad_request("Transfer-Encoding must end with chunked, otherwise the end of the body is unknown"))
        }
        (None, Some(_)) => Err(HttpRefusal {
            status: Status::NotImplemented,
            message: "transfer coding not supported; only chunked is supported",
        }),
    }
}

/// Returns true if the last of a list of codings is chunked. Without it the length of a request's
/// body is not known (RFC 9112, section 6.3).
fn ends_chunked(codings: &[u8]) -> bool {
    let mut codings = codings.rsplit(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    codings.find(|coding| !coding.is_empty()).is_some_and(|last| last.eq_ignore_ascii_case(b"chunked"))
}

/// Digits and nothing else (RFC 9110, section 8.6). 18 of them always fit.
fn parse_length(value: &[u8]) -> Result<u64, HttpRefusal> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(bad_request("Content-Length must be a number of bytes"));
    }
    Ok(value.iter().fold(0, |sum, &digit| sum * 10 + u64::from(digit - b'0')))
}

/// Reads a list of expectations, which may be empty (RFC 9110, sections 5.6.1 and 10.1.1). Returns true if 100-continue, the only
/// one there is, is in it.
fn expectation(value: &[u8]) -> Result<bool, HttpRefusal> {
    let mut expects = false;
    for expected in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|expected| !expected.is_empty()) {
        if !expected.eq_ignore_ascii_case(b"100-continue") {
            let message = "expectation not supported; only 100-continue is supported";
            return Err(HttpRefusal { status: Status::ExpectationFailed, message });
        }
        expects = true;
    }
    Ok(expects)
}

/// Preconditions about entity tags (RFC 9110, sections 13.1.1 and 13.1.2). Responses have none, so that a list of tags matches
/// nothing, and `*` any value that there is. Dates are not compared: responses have no `Last-Modified`.
#[derive(Default)]
struct Conditions {
    /// True with an `If-Match`.
    requires_match: bool,
    /// True if that is `*`.
    matches_any: bool,
    /// True with an `If-None-Match: *`.
    rejects_any: bool,
}

impl Conditions {
    fn add_match(&mut self, value: &[u8]) {
        self.requires_match = true;
        self.matches_any |= value == b"*";
    }

    fn add_none_match(&mut self, value: &[u8]) {
        self.rejects_any |= value == b"*";
    }

    /// Returns the status of a request for a value that there is, in the order of section 13.2.2.
    fn unmet(&self) -> Option<Status> {
        if self.requires_match && !self.matches_any {
            return Some(Status::PreconditionFailed);
        }
        self.rejects_any.then_some(Status::NotModified)
    }
}
