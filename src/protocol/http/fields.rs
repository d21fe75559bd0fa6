//! Parser of the header fields of a request that matter to the proxy.
//!
//! It refuses each field that two programs could read in two ways, because another program may be
//! in front of the proxy (RFC 9112, section 11.2).

use super::authorization::Authorization;
use super::conditions::Conditions;
use super::event_stream::EventId;
use super::host::parse_authority;
use super::push_fields::accepts_event_stream;
use super::{Body, CacheDirectives, HttpRefusal, Status, bad_request};

/// Meaning of the header fields of a request.
pub struct Fields<'a> {
    /// True if the connection stays open after the response.
    pub keep_alive: bool,
    /// Body that follows the head.
    pub body: Body,
    /// True if the client waits for a response before it sends the body.
    pub expects_continue: bool,
    /// Host that the request is addressed to, or empty.
    pub host: &'a [u8],
    /// Preconditions, range and preferences, `None` without any.
    pub conditions: Option<Box<Conditions>>,
    /// Directives of `Cache-Control`.
    pub cache_directives: CacheDirectives,
    /// Credentials of the client.
    pub authorization: Authorization<'a>,
}

impl<'a> Fields<'a> {
    /// Parses all fields. An `Err` means that the end of the request, or its host, is uncertain.
    pub fn read(headers: &[httparse::Header<'a>], version_1_0: bool) -> Result<Fields<'a>, HttpRefusal> {
        let (mut close, mut keep_alive, mut expects_continue) = (false, false, false);
        let (mut host, mut length, mut coding) = (None, None, None);
        let mut conditions: Option<Box<Conditions>> = None;
        let mut cache_directives = CacheDirectives::default();
        let mut authorization = Authorization::default();
        for header in headers {
            // The length rules out most other fields before any letter is compared.
            match header.name.len() {
                4 if header.name.eq_ignore_ascii_case("host") => set_once(&mut host, header.value)?,
                6 if header.name.eq_ignore_ascii_case("expect") => {
                    expects_continue |= !version_1_0 && parse_expect(header.value)?
                }
                5 if header.name.eq_ignore_ascii_case("range") => {
                    conditions.get_or_insert_default().add_range(header.value)
                }
                6 if header.name.eq_ignore_ascii_case("accept") && accepts_event_stream(header.value) => {
                    conditions.get_or_insert_default().push.accepts_events = true
                }
                6 if header.name.eq_ignore_ascii_case("prefer") => {
                    conditions.get_or_insert_default().push.add_prefer(header.value)
                }
                13 if header.name.eq_ignore_ascii_case("last-event-id") => {
                    conditions.get_or_insert_default().push.last_event = EventId::parse(header.value)
                }
                8 if header.name.eq_ignore_ascii_case("if-match") => {
                    conditions.get_or_insert_default().add_if_match(header.value)
                }
                8 if header.name.eq_ignore_ascii_case("if-range") => {
                    conditions.get_or_insert_default().add_if_range(header.value)
                }
                10 if header.name.eq_ignore_ascii_case("connection") => {
                    for option in header.value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                        close |= option.eq_ignore_ascii_case(b"close");
                        keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                    }
                }
                13 if header.name.eq_ignore_ascii_case("authorization") => authorization.push(header.value),
                13 if header.name.eq_ignore_ascii_case("cache-control") => cache_directives.add_line(header.value),
                13 if header.name.eq_ignore_ascii_case("if-none-match") => {
                    conditions.get_or_insert_default().add_if_none_match(header.value)
                }
                14 if header.name.eq_ignore_ascii_case("content-length") => set_once(&mut length, header.value)?,
                17 if header.name.eq_ignore_ascii_case("transfer-encoding") => set_once(&mut coding, header.value)?,
                _ => {}
            }
        }
        let body = body_framing(length, coding, version_1_0)?;
        let host = match host.map(parse_authority) {
            Some(Some(host)) => host,
            None if version_1_0 => b"",
            _ => {
                return Err(bad_request(
                    "a request must have exactly one Host field: a host name and an optional port",
                ));
            }
        };
        // A client that expects "100 Continue" may or may not send its body after another response.
        // The start of its next request is unknown, so the connection closes (RFC 9110, section
        // 10.1.1).
        let has_certain_end = body == Body::Done || (body.is_skippable() && !expects_continue);
        let keep_alive = !close && (keep_alive || !version_1_0) && has_certain_end;
        Ok(Fields { keep_alive, body, expects_continue, host, conditions, cache_directives, authorization })
    }
}

/// Stores the value of a field that must not be repeated. Refuses equal values too, because other
/// programs may take either.
fn set_once<'a>(field: &mut Option<&'a [u8]>, value: &'a [u8]) -> Result<(), HttpRefusal> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(bad_request("Host, Content-Length and Transfer-Encoding must not be repeated")),
    }
}

/// Returns the body that the fields announce (RFC 9112, section 6.3).
fn body_framing(length: Option<&[u8]>, coding: Option<&[u8]>, version_1_0: bool) -> Result<Body, HttpRefusal> {
    match (length, coding) {
        (None, None) => Ok(Body::Done),
        (Some(length), None) => match parse_length(length)? {
            0 => Ok(Body::Done),
            length => Ok(Body::Length(length)),
        },
        (Some(_), Some(_)) => Err(bad_request("a request must not have both Transfer-Encoding and Content-Length")),
        (None, Some(_)) if version_1_0 => Err(bad_request("Transfer-Encoding is not allowed in HTTP/1.0")),
        (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Body::CHUNKED),
        (None, Some(coding)) if !ends_with_chunked(coding) => {
            Err(bad_request("Transfer-Encoding must end with chunked, otherwise the end of the body is unknown"))
        }
        (None, Some(_)) => Err(HttpRefusal {
            status: Status::NotImplemented,
            message: "transfer coding not supported; only chunked is supported",
        }),
    }
}

/// Returns true if the last transfer coding is chunked. Otherwise the length of a request's body is
/// unknown (RFC 9112, section 6.3).
fn ends_with_chunked(codings: &[u8]) -> bool {
    let mut codings = codings.rsplit(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    codings.find(|coding| !coding.is_empty()).is_some_and(|last| last.eq_ignore_ascii_case(b"chunked"))
}

/// Maximum number of digits of `Content-Length`. That many always fit into 64 bits.
const MAX_LENGTH_DIGITS: usize = 18;

/// Parses `Content-Length`, which has only digits (RFC 9110, section 8.6).
fn parse_length(value: &[u8]) -> Result<u64, HttpRefusal> {
    if value.is_empty() || value.len() > MAX_LENGTH_DIGITS || !value.iter().all(u8::is_ascii_digit) {
        return Err(bad_request("Content-Length must be a number of bytes"));
    }
    Ok(value.iter().fold(0, |sum, &digit| sum * 10 + u64::from(digit - b'0')))
}

/// Parses a list of expectations, which may be empty (RFC 9110, sections 5.6.1 and 10.1.1). Returns
/// true if it contains 100-continue, the only one that is defined.
fn parse_expect(value: &[u8]) -> Result<bool, HttpRefusal> {
    let mut expects_continue = false;
    let members = value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    for expectation in members.filter(|member| !member.is_empty()) {
        if !expectation.eq_ignore_ascii_case(b"100-continue") {
            let message = "expectation not supported; only 100-continue is supported";
            return Err(HttpRefusal { status: Status::ExpectationFailed, message });
        }
        expects_continue = true;
    }
    Ok(expects_continue)
}
