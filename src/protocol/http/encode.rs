//! Responses. Every one has a known length, so that the connection can stay open.

use super::caching::{Keeping, NO_STORE, write_cache_fields};
use super::json::{self, Encoding};
use super::{HttpRefusal, HttpReplyFormat, Status, View};
use crate::protocol::{ReplySummary, SendBuffer};
use crate::types::{Failure, JsonForm, KeyResult, Payload, Reply, Source};
use std::time::SystemTime;

/// Seconds after which a client may try again when Redis is away or the queue is full. Reconnecting starts within
/// a second too.
const RETRY_AFTER: &str = "Retry-After: 1\r\n";

/// Text of 412: an `If-Match` that no value can meet.
const UNMET: &str = "If-Match failed: values have no entity tags";

/// What may be done with a key.
const ALLOW: &str = "Allow: GET, HEAD, OPTIONS\r\n";

/// What the heads of responses have of the time: the `ResponseDate` field's value (RFC 9110, section 6.6.1), and all that stands
/// before the length of a value. Rendered once for each second, not once for each response.
#[derive(Clone, Debug)]
pub struct ResponseDate {
    text: String,
    /// By [`View`].
    before_length: [Vec<u8>; 2],
}

impl ResponseDate {
    /// Renders a time.
    pub fn at(time: SystemTime) -> ResponseDate {
        let text = httpdate::fmt_http_date(time);
        let before_length = ["application/json", "application/octet-stream"].map(|content_type| {
            let mut head = Vec::new();
            begin_head(Status::Ok, content_type, &text, &mut head);
            head
        });
        ResponseDate { text, before_length }
    }

    /// As the Common Log Format has it: `06/Nov/1994:08:49:37 +0000`.
    pub fn clf(&self) -> String {
        // "Sun, 06 Nov 1994 08:49:37 GMT"
        let mut parts = self.text.split(' ').skip(1);
        let mut next = || parts.next().unwrap_or_default();
        format!("{}/{}/{}:{} +0000", next(), next(), next(), next())
    }
}

/// Something of the proxy itself, as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminResponse {
    /// The status.
    pub status: Status,
    /// The media type.
    pub content_type: &'static str,
    /// What a browser may do with it (Content Security Policy); empty for what is no page.
    pub policy: &'static str,
    /// The body.
    pub body: String,
}

/// A value's body: its parts and how the middle one is rendered.
struct ValueBody<'a> {
    before: &'static str,
    payload: Payload<'a>,
    encoding: Encoding,
    after: &'static str,
    end: &'static str,
}

impl<'a> ValueBody<'a> {
    fn new(payload: Payload<'a>, view: View, from_cache: bool) -> ValueBody<'a> {
        let form = match payload {
            Payload::Inline { form, .. } => form,
            Payload::Shared(value) => value.form,
        };
        let (before, encoding, after) = match (view, form) {
            (View::Raw, _) => ("", Encoding::Raw, ""),
            (View::Json, JsonForm::Integer) => ("{\"value\":", Encoding::Raw, ""),
            (View::Json, JsonForm::Plain) => ("{\"value\":\"", Encoding::Raw, "\""),
            (View::Json, JsonForm::Escaped) => ("{\"value\":\"", Encoding::Escaped, "\""),
            (View::Json, JsonForm::Binary) => ("{\"value\":\"", Encoding::Base64, "\",\"encoding\":\"base64\""),
        };
        let end = match (view, from_cache) {
            (View::Raw, _) => "",
            (View::Json, true) => ",\"fromCache\":true}",
            (View::Json, false) => ",\"fromCache\":false}",
        };
        ValueBody { before, payload, encoding, after, end }
    }

    fn len(&self) -> usize {
        let rendered = match (self.payload, self.encoding) {
            // A look at every byte of a long value would stall the loop: its helper thread has counted them.
            (Payload::Shared(value), Encoding::Escaped) => value.escaped_bytes,
            (Payload::Shared(value), encoding) => json::rendered_len(&value.bytes, encoding),
            (Payload::Inline { bytes, .. }, encoding) => json::rendered_len(bytes, encoding),
        };
        self.before.len() + rendered + self.after.len() + self.end.len()
    }

    fn write(&self, out: &mut SendBuffer) {
        out.tail().extend_from_slice(self.before.as_bytes());
        match self.payload {
            Payload::Inline { bytes, .. } => json::render(bytes, self.encoding, out.tail()),
            Payload::Shared(value) => out.push_value(value, self.encoding),
        }
        out.tail().extend_from_slice(self.after.as_bytes());
        out.tail().extend_from_slice(self.end.as_bytes());
    }
}

/// Appends the response to a request for a key.
pub fn encode_reply(
    reply: &Reply<'_>,
    shape: HttpReplyFormat,
    date: &ResponseDate,
    out: &mut SendBuffer,
) -> ReplySummary {
    let status = status_of(reply.outcome);
    match (reply.outcome, shape.unmet) {
        (KeyResult::Value(_), Some(Status::NotModified)) => encode_not_modified(Some(reply), shape, date, out),
        (KeyResult::Value(_), Some(status)) => encode_error(status, UNMET, Some(reply.source), "", shape, date, out),
        (KeyResult::Value(payload), None) => {
            let from_cache = !matches!(reply.source, Source::Redis { .. });
            let body = ValueBody::new(payload, shape.view, from_cache);
            let head = out.tail();
            let bytes = body.len();
            head.extend_from_slice(&date.before_length[shape.view as usize]);
            write_length(bytes, head);
            write_cache_fields(reply.source, Keeping::of(reply), head);
            end_head(shape, head);
            if shape.head_only {
                return ReplySummary { status, bytes: 0 };
            }
            body.write(out);
            ReplySummary { status, bytes }
        }
        (KeyResult::Missing, _) => encode_error(status, "key not found", Some(reply.source), "", shape, date, out),
        (KeyResult::Failed(failure), _) => {
            let extra = if status == Status::ServiceUnavailable { RETRY_AFTER } else { "" };
            encode_error(status, &failure.to_string(), Some(reply.source), extra, shape, date, out)
        }
    }
}

/// Appends 304, without a body, with the fields of the response that it stands for (RFC 9110, section 15.4.5).
fn encode_not_modified(
    reply: Option<&Reply<'_>>,
    shape: HttpReplyFormat,
    date: &ResponseDate,
    out: &mut SendBuffer,
) -> ReplySummary {
    let status = Status::NotModified;
    let out = out.tail();
    for part in ["HTTP/1.1 ", status.line(), "\r\nDate: ", &date.text, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    match reply {
        Some(reply) => write_cache_fields(reply.source, Keeping::of(reply), out),
        None => out.extend_from_slice(NO_STORE),
    }
    end_head(shape, out);
    ReplySummary { status, bytes: 0 }
}

/// What there is to say about a key, to an HTTP client.
pub fn status_of(outcome: KeyResult<'_>) -> Status {
    let failure = match outcome {
        KeyResult::Value(_) => return Status::Ok,
        KeyResult::Missing => return Status::NotFound,
        KeyResult::Failed(failure) => failure,
    };
    match failure {
        Failure::QueueFull | Failure::OutputMemoryFull => Status::ServiceUnavailable,
        Failure::Unavailable | Failure::NotReady(_) => Status::ServiceUnavailable,
        Failure::Timeout => Status::GatewayTimeout,
        Failure::Refused(_) | Failure::TooLong | Failure::Redis(_) => Status::BadGateway,
        Failure::WrongType => Status::Conflict,
        Failure::Internal => Status::InternalServerError,
    }
}

/// Appends the response to a request that asks for no key.
pub fn encode_refusal(
    refusal: HttpRefusal,
    shape: HttpReplyFormat,
    date: &ResponseDate,
    out: &mut SendBuffer,
) -> ReplySummary {
    let extra = match refusal.status {
        Status::MethodNotAllowed => ALLOW,
        Status::ServiceUnavailable => RETRY_AFTER,
        _ => "",
    };
    encode_error(refusal.status, refusal.message, None, extra, shape, date, out)
}

/// Appends something of the proxy itself. Nobody is to keep it: it is of this moment.
pub fn encode_document(
    document: &AdminResponse,
    shape: HttpReplyFormat,
    date: &ResponseDate,
    out: &mut SendBuffer,
) -> ReplySummary {
    let AdminResponse { status, content_type, policy, body } = document;
    match shape.unmet.filter(|_| *status == Status::Ok) {
        None => {}
        Some(Status::NotModified) => return encode_not_modified(None, shape, date, out),
        Some(status) => return encode_error(status, UNMET, None, "", shape, date, out),
    }
    let out = out.tail();
    begin_head(*status, content_type, &date.text, out);
    write_length(body.len(), out);
    out.extend_from_slice(NO_STORE);
    if !policy.is_empty() {
        for part in ["Content-Security-Policy: ", policy, "\r\nReferrer-Policy: no-referrer\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    end_head(shape, out);
    if shape.head_only {
        return ReplySummary { status: *status, bytes: 0 };
    }
    out.extend_from_slice(body.as_bytes());
    ReplySummary { status: *status, bytes: body.len() }
}

/// Appends the response to `OPTIONS` (RFC 9110, section 9.3.7). Nothing about other origins: what is here is not for the
/// scripts of strangers' pages.
pub fn encode_options(shape: HttpReplyFormat, date: &ResponseDate, out: &mut SendBuffer) -> ReplySummary {
    let out = out.tail();
    for part in ["HTTP/1.1 ", Status::Ok.line(), "\r\nDate: ", &date.text, "\r\n", ALLOW, "Content-Length: 0\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    end_head(shape, out);
    ReplySummary { status: Status::Ok, bytes: 0 }
}

fn encode_error(
    status: Status,
    message: &str,
    source: Option<Source>,
    extra: &str,
    shape: HttpReplyFormat,
    date: &ResponseDate,
    out: &mut SendBuffer,
) -> ReplySummary {
    const BEFORE: &str = "{\"error\":\"";
    const AFTER: &str = "\"}";
    let length = BEFORE.len() + json::rendered_len(message.as_bytes(), Encoding::Escaped) + AFTER.len();
    let out = out.tail();
    begin_head(status, "application/json", &date.text, out);
    write_length(length, out);
    match source {
        Some(source) => write_cache_fields(source, Keeping::Never, out),
        None => out.extend_from_slice(NO_STORE),
    }
    out.extend_from_slice(extra.as_bytes());
    end_head(shape, out);
    if shape.head_only {
        return ReplySummary { status, bytes: 0 };
    }
    out.extend_from_slice(BEFORE.as_bytes());
    json::escape(message.as_bytes(), out);
    out.extend_from_slice(AFTER.as_bytes());
    ReplySummary { status, bytes: length }
}

/// All that stands before the length of the body.
fn begin_head(status: Status, content_type: &str, date: &str, out: &mut Vec<u8>) {
    for part in ["HTTP/1.1 ", status.line(), "\r\nDate: ", date, "\r\nContent-Type: ", content_type] {
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(b"\r\nX-Content-Type-Options: nosniff\r\nContent-Length: ");
}

fn write_length(length: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn end_head(shape: HttpReplyFormat, out: &mut Vec<u8>) {
    let connection: &[u8] = match (shape.keep_alive, shape.version_1_0) {
        (true, false) => b"\r\n",
        (true, true) => b"Connection: keep-alive\r\n\r\n",
        (false, _) => b"Connection: close\r\n\r\n",
    };
    out.extend_from_slice(connection);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Outage, Value};
    use std::sync::Arc;
    use std::time::Duration;

    const OPEN: HttpReplyFormat =
        HttpReplyFormat { view: View::Json, head_only: false, version_1_0: false, keep_alive: true, unmet: None };
    const HIT: Source = Source::Cache { ttl: 14_999 };

    fn text_of(encode: impl FnOnce(&ResponseDate, &mut SendBuffer)) -> String {
        let mut out = SendBuffer::default();
        encode(&ResponseDate::at(SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777)), &mut out);
        String::from_utf8(out.drain(usize::MAX)).expect("a response is text here")
    }

    fn body_of(bytes: &[u8], view: View, source: Source) -> String {
        let value = Arc::new(Value::new(bytes.to_vec()));
        let [inline, shared] = [Payload::Inline { bytes, form: value.form }, Payload::Shared(&value)].map(|payload| {
            let reply = Reply { outcome: KeyResult::Value(payload), source, tracked: false };
            text_of(|date, out| _ = encode_reply(&reply, HttpReplyFormat { view, ..OPEN }, date, out))
        });
        assert_eq!(inline, shared, "a shared value looks different");
        let (head, body) = inline.split_once("\r\n\r\n").expect("a head ends");
        assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{head} has another length");
        body.to_owned()
    }

    #[test]
    fn a_hit_to_the_byte() {
        let reply = Reply {
            outcome: KeyResult::Value(Payload::Inline { bytes: b"1", form: JsonForm::Integer }),
            source: HIT,
            tracked: false,
        };
        assert_eq!(
            text_of(|date, out| _ = encode_reply(&reply, OPEN, date, out)),
            "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Type: application/json\r\n\
             X-Content-Type-Options: nosniff\r\nContent-Length: 28\r\nCache-Status: segment-redis-proxy; hit; ttl=14\r\n\
             Cache-Control: max-age=14, proxy-revalidate, stale-while-revalidate=0\r\n\r\n{\"value\":1,\"fromCache\":true}"
        );
    }

    #[test]
    fn a_value_takes_its_json_form() {
        let miss = Source::Redis { collapsed: false, stored: Some(15_000) };
        assert_eq!(body_of(b"-12", View::Json, miss), r#"{"value":-12,"fromCache":false}"#);
        assert_eq!(body_of(b"", View::Json, HIT), r#"{"value":"","fromCache":true}"#);
        assert_eq!(body_of("é/".as_bytes(), View::Json, HIT), r#"{"value":"é/","fromCache":true}"#);
        assert_eq!(body_of(b"a\"\n\x01", View::Json, miss), r#"{"value":"a\"\n\u0001","fromCache":false}"#);
        let binary = r#"{"value":"/wAB","encoding":"base64","fromCache":true}"#;
        assert_eq!(body_of(b"\xff\x00\x01", View::Json, HIT), binary);
        let stale = Source::Stale { expired_for: 1, outage: Outage::Unreachable };
        assert_eq!(body_of(b"1", View::Json, stale), r#"{"value":1,"fromCache":true}"#);
        assert_eq!(body_of(b"a\"\n\x01", View::Raw, HIT), "a\"\n\u{1}");
    }

    #[test]
    fn the_cache_status_tells_hit_miss_collapsed_and_stale() {
        for (source, text) in [
            (HIT, "hit; ttl=14"),
            (Source::Redis { collapsed: false, stored: Some(15_000) }, "fwd=miss; stored; ttl=15"),
            (Source::Redis { collapsed: true, stored: Some(999) }, "fwd=miss; collapsed; stored; ttl=0"),
            (Source::Redis { collapsed: false, stored: None }, "fwd=miss"),
            (Source::Stale { expired_for: 0, outage: Outage::TimedOut }, "fwd=stale; detail=redis-timed-out; ttl=0"),
            (Source::Stale { expired_for: 1, outage: Outage::NotReady }, "fwd=stale; detail=redis-not-ready; ttl=-1"),
            (
                Source::Stale { expired_for: 2001, outage: Outage::Unreachable },
                "fwd=stale; detail=redis-unreachable; ttl=-3",
            ),
        ] {
            let reply = Reply { outcome: KeyResult::Missing, source, tracked: false };
            let response = text_of(|date, out| _ = encode_reply(&reply, OPEN, date, out));
            assert!(response.contains(&format!("\r\nCache-Status: segment-redis-proxy; {text}\r\n")), "{response}");
        }
    }

    #[test]
    fn caches_may_keep_fresh_values_only() {
        let value = KeyResult::Value(Payload::Inline { bytes: b"1", form: JsonForm::Integer });
        let stored = |stored| Source::Redis { collapsed: false, stored };
        let stale = Source::Stale { expired_for: 1, outage: Outage::Unreachable };
        let max_age = "proxy-revalidate, stale-while-revalidate=0";
        for (outcome, source, tracked, control) in [
            (value, HIT, false, format!("max-age=14, {max_age}")),
            (value, Source::Cache { ttl: 999 }, false, format!("max-age=0, {max_age}")),
            (value, stored(Some(2000)), false, format!("max-age=2, {max_age}")),
            (value, HIT, true, "no-cache".into()),
            (value, stored(Some(2000)), true, "no-cache".into()),
            (value, stored(None), false, "no-store".into()),
            (value, stored(None), true, "no-store".into()),
            (value, stale, false, "no-store".into()),
            (KeyResult::Missing, stored(None), true, "no-store".into()),
            (KeyResult::Failed(&Failure::Timeout), stored(None), false, "no-store".into()),
        ] {
            let reply = Reply { outcome, source, tracked };
            let response = text_of(|date, out| _ = encode_reply(&reply, OPEN, date, out));
            let fields: Vec<&str> = response.split("\r\n").filter(|line| line.starts_with("Cache-Control: ")).collect();
            assert_eq!(fields, [format!("Cache-Control: {control}")], "{reply:?}");
        }
    }

    #[test]
    fn unmet_preconditions_change_successes_only() {
        let value = KeyResult::Value(Payload::Inline { bytes: b"1", form: JsonForm::Integer });
        let reply = |outcome| Reply { outcome, source: HIT, tracked: true };
        let asked = |outcome, unmet| {
            let shape = HttpReplyFormat { unmet: Some(unmet), ..OPEN };
            text_of(|date, out| _ = encode_reply(&reply(outcome), shape, date, out))
        };
        assert_eq!(
            asked(value, Status::NotModified),
            "HTTP/1.1 304 Not Modified\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
             Cache-Status: segment-redis-proxy; hit; ttl=14\r\nCache-Control: no-cache\r\n\r\n"
        );
        let failed = asked(value, Status::PreconditionFailed);
        assert!(
            failed.starts_with("HTTP/1.1 412 ") && failed.contains("no-store") && failed.ends_with("}"),
            "{failed}"
        );
        for unmet in [Status::NotModified, Status::PreconditionFailed] {
            assert!(asked(KeyResult::Missing, unmet).starts_with("HTTP/1.1 404 "));
            assert!(asked(KeyResult::Failed(&Failure::Timeout), unmet).starts_with("HTTP/1.1 504 "));
            let mut document =
                AdminResponse { status: Status::Ok, content_type: "text/html", policy: "", body: String::new() };
            let shape = HttpReplyFormat { unmet: Some(unmet), ..OPEN };
            let mut told = |status| {
                document.status = status;
                text_of(|date, out| _ = encode_document(&document, shape, date, out))
            };
            assert!(told(Status::Ok).starts_with(&format!("HTTP/1.1 {}\r\n", unmet.line())));
            assert!(told(Status::ServiceUnavailable).starts_with("HTTP/1.1 503 "));
        }
    }

    #[test]
    fn failures_say_what_to_do() {
        for (failure, status) in [
            (Failure::QueueFull, "503 "),
            (Failure::OutputMemoryFull, "503 "),
            (Failure::Unavailable, "503 "),
            (Failure::Timeout, "504 "),
            (Failure::WrongType, "409 "),
            (Failure::Redis("ERR \"quoted\"\n".into()), "502 "),
            (Failure::NotReady("LOADING \"quoted\"\n".into()), "503 "),
            (Failure::Refused("NOAUTH \"quoted\"\n".into()), "502 "),
            (Failure::TooLong, "502 "),
            (Failure::Internal, "500 "),
        ] {
            let source = Source::Redis { collapsed: false, stored: None };
            let reply = Reply { outcome: KeyResult::Failed(&failure), source, tracked: false };
            let response = text_of(|date, out| _ = encode_reply(&reply, OPEN, date, out));
            assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{response}");
            assert_eq!(response.contains("\r\nRetry-After: 1\r\n"), status == "503 ", "{response}");
            let has_text = matches!(failure, Failure::Redis(_) | Failure::NotReady(_) | Failure::Refused(_));
            assert_eq!(response.contains(r#" \"quoted\"\n""#), has_text, "{response}");
            assert_eq!(response.contains("MAX_VALUE_BYTES"), failure == Failure::TooLong, "{response}");
        }
    }

    #[test]
    fn a_document_is_not_kept_and_a_page_does_nothing_that_it_does_not_say() {
        let mut document = AdminResponse {
            status: Status::Ok,
            content_type: "text/html",
            policy: "default-src 'none'",
            body: "<p>é".into(),
        };
        let page = text_of(|date, out| {
            let sent = encode_document(&document, OPEN, date, out);
            assert_eq!(sent, ReplySummary { status: Status::Ok, bytes: 5 });
        });
        let policy = "\r\nCache-Control: no-store\r\nContent-Security-Policy: default-src 'none'\r\nReferrer-Policy: ";
        assert!(page.contains(policy) && page.contains("Length: 5\r\n") && page.ends_with("\r\n\r\n<p>é"), "{page}");
        (document.status, document.policy) = (Status::ServiceUnavailable, "");
        let head = text_of(|date, out| {
            let sent = encode_document(&document, HttpReplyFormat { head_only: true, ..OPEN }, date, out);
            assert_eq!(sent.bytes, 0);
        });
        assert!(head.starts_with("HTTP/1.1 503 ") && head.ends_with("Cache-Control: no-store\r\n\r\n"), "{head}");
    }

    #[test]
    fn the_log_has_the_date_in_its_own_form() {
        let date = ResponseDate::at(SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777));
        assert_eq!(date.clf(), "06/Nov/1994:08:49:37 +0000");
    }

    #[test]
    fn a_head_request_gets_the_head_alone_and_closing_is_said() {
        let reply = Reply { outcome: KeyResult::Missing, source: HIT, tracked: false };
        let shape = HttpReplyFormat { head_only: true, keep_alive: false, ..OPEN };
        let response = text_of(|date, out| _ = encode_reply(&reply, shape, date, out));
        assert!(response.ends_with("Connection: close\r\n\r\n"), "{response}");
        assert!(response.contains("\r\nContent-Length: 25\r\n"), "{response}");
        let refusal = HttpRefusal { status: Status::MethodNotAllowed, message: "no" };
        let shape = HttpReplyFormat { version_1_0: true, ..OPEN };
        let response = text_of(|date, out| _ = encode_refusal(refusal, shape, date, out));
        assert!(
            response.contains("\r\nAllow: GET, HEAD, OPTIONS\r\nConnection: keep-alive\r\n\r\n{\"error\":\"no\"}"),
            "{response}"
        );
    }
}
