//! Encoder of responses. Each response has a known length, so that the connection can stay open.

use super::caching::{CacheControl, NO_STORE, write_cache_fields};
use super::json::{self, Encoding};
use super::{HttpRefusal, HttpReplyFormat, Status, View};
use crate::protocol::{ReplySummary, SendBuffer};
use crate::types::{Failure, KeyResult, Reply, Source};
use crate::value::{JsonForm, Payload};
use std::time::SystemTime;

/// `Retry-After` of a 503 (RFC 9110, section 10.2.3): Redis is unavailable or the queue is full.
/// Reconnecting also starts within a second. A 429 ends within one, too.
const RETRY_AFTER: &str = "Retry-After: 1\r\n";

/// Challenges of a 401 (RFC 9110, section 11.6.1): Basic for browsers and tools (RFC 7617), Bearer
/// for programs (RFC 6750). One field for each, because some clients read only the first of a list.
const CHALLENGES: &str =
    "WWW-Authenticate: Basic realm=\"segment\", charset=\"UTF-8\"\r\nWWW-Authenticate: Bearer realm=\"segment\"\r\n";

/// Message of a 412: no value can meet an `If-Match` that lists entity tags.
const IF_MATCH_FAILED: &str = "If-Match failed: values have no entity tags";

/// `Allow` field (RFC 9110, section 10.2.1): methods that each resource supports.
const ALLOW: &str = "Allow: GET, HEAD, OPTIONS\r\n";

/// Prerendered parts of response heads that depend on the time.
///
/// These are the value of the `Date` field (RFC 9110, section 6.6.1), and the response head for a
/// value up to its length. The worker renders them once a second, not once for each response.
#[derive(Clone, Debug)]
pub struct ResponseDate {
    text: String,
    /// Response head for a value up to the number in `Content-Length`, indexed by [`View`].
    before_length: [Vec<u8>; 2],
}

impl ResponseDate {
    /// Renders `time`.
    pub fn at(time: SystemTime) -> ResponseDate {
        let text = httpdate::fmt_http_date(time);
        let before_length = ["application/json", "application/octet-stream"].map(|content_type| {
            let mut head = Vec::new();
            begin_head(Status::Ok, content_type, &text, &mut head);
            head
        });
        ResponseDate { text, before_length }
    }
}

/// Response of an admin endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminResponse {
    /// Status code.
    pub status: Status,
    /// Media type of the body.
    pub content_type: &'static str,
    /// `Content-Security-Policy` of a page; empty for any other document.
    pub content_security_policy: &'static str,
    /// Body text.
    pub body: String,
}

/// Body of a response with a value: the rendered value between fixed texts.
struct ValueBody<'a> {
    prefix: &'static str,
    payload: Payload<'a>,
    encoding: Encoding,
    suffix: &'static str,
    closing: &'static str,
}

impl<'a> ValueBody<'a> {
    /// Creates the body of `payload` in the representation `view`.
    fn new(payload: Payload<'a>, view: View, from_cache: bool) -> ValueBody<'a> {
        let form = match payload {
            Payload::Inline { form, .. } => form,
            Payload::Shared(value) => value.form,
        };
        let (prefix, encoding, suffix) = match (view, form) {
            (View::Raw, _) => ("", Encoding::Raw, ""),
            (View::Json, JsonForm::Integer) => ("{\"value\":", Encoding::Raw, ""),
            (View::Json, JsonForm::Plain) => ("{\"value\":\"", Encoding::Raw, "\""),
            (View::Json, JsonForm::Escaped) => ("{\"value\":\"", Encoding::Escaped, "\""),
            (View::Json, JsonForm::Binary) => ("{\"value\":\"", Encoding::Base64, "\",\"encoding\":\"base64\""),
        };
        let closing = match (view, from_cache) {
            (View::Raw, _) => "",
            (View::Json, true) => ",\"fromCache\":true}",
            (View::Json, false) => ",\"fromCache\":false}",
        };
        ValueBody { prefix, payload, encoding, suffix, closing }
    }

    /// Returns the length in bytes.
    fn len(&self) -> usize {
        let rendered = match (self.payload, self.encoding) {
            // A scan of a long value would stall the event loop, so the fetcher has counted its
            // bytes.
            (Payload::Shared(value), Encoding::Escaped) => value.escaped_bytes,
            (Payload::Shared(value), encoding) => json::rendered_len(&value.bytes, encoding),
            (Payload::Inline { bytes, .. }, encoding) => json::rendered_len(bytes, encoding),
        };
        self.prefix.len() + rendered + self.suffix.len() + self.closing.len()
    }

    /// Appends the body.
    fn write(&self, out: &mut SendBuffer) {
        out.tail().extend_from_slice(self.prefix.as_bytes());
        match self.payload {
            Payload::Inline { bytes, .. } => json::render(bytes, self.encoding, out.tail()),
            Payload::Shared(value) => out.push_value(value, self.encoding),
        }
        out.tail().extend_from_slice(self.suffix.as_bytes());
        out.tail().extend_from_slice(self.closing.as_bytes());
    }
}

/// Appends the response to a request for a key.
pub fn encode_reply(
    reply: &Reply<'_>,
    format: HttpReplyFormat,
    date: &ResponseDate,
    out: &mut SendBuffer,
) -> ReplySummary {
    let status = status_of(reply.result);
    match (reply.result, format.unmet_precondition) {
        (KeyResult::Value(_), Some(Status::NotModified)) => encode_not_modified(Some(reply), format, date, out),
        (KeyResult::Value(_), Some(status)) => {
            encode_error(status, IF_MATCH_FAILED, Some(reply.source), "", format, date, out)
        }
        (KeyResult::Value(payload), None) => {
            let from_cache = !matches!(reply.source, Source::Redis { .. });
            let body = ValueBody::new(payload, format.view, from_cache);
            let head = out.tail();
            let bytes = body.len();
            head.extend_from_slice(&date.before_length[format.view as usize]);
            write_length(bytes, head);
            write_cache_fields(reply.source, CacheControl::for_value(reply), format.is_private, head);
            end_head(format, head);
            if format.head_only {
                return ReplySummary { status, bytes: 0 };
            }
            body.write(out);
            ReplySummary { status, bytes }
        }
        (KeyResult::Missing, _) => encode_error(status, "key not found", Some(reply.source), "", format, date, out),
        (KeyResult::Failed(failure), _) => {
            let extra_fields = if status == Status::ServiceUnavailable { RETRY_AFTER } else { "" };
            encode_error(status, &failure.to_string(), Some(reply.source), extra_fields, format, date, out)
        }
    }
}

/// Appends a 304 without a body, with the fields that the 200 would have (RFC 9110, section
/// 15.4.5).
fn encode_not_modified(
    reply: Option<&Reply<'_>>,
    format: HttpReplyFormat,
    date: &ResponseDate,
    out: &mut SendBuffer,
) -> ReplySummary {
    let status = Status::NotModified;
    let out = out.tail();
    for part in ["HTTP/1.1 ", status.line(), "\r\nDate: ", &date.text, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    match reply {
        Some(reply) => write_cache_fields(reply.source, CacheControl::for_value(reply), format.is_private, out),
        None => out.extend_from_slice(NO_STORE),
    }
    end_head(format, out);
    ReplySummary { status, bytes: 0 }
}

/// Returns the status of a response about a key.
pub fn status_of(result: KeyResult<'_>) -> Status {
    let failure = match result {
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

/// Appends the error response to a refused request.
pub fn encode_refusal(
    refusal: HttpRefusal,
    format: HttpReplyFormat,
    date: &ResponseDate,
    out: &mut SendBuffer,
) -> ReplySummary {
    let extra_fields = match refusal.status {
        Status::MethodNotAllowed => ALLOW,
        Status::ServiceUnavailable | Status::TooManyRequests => RETRY_AFTER,
        Status::Unauthorized => CHALLENGES,
        _ => "",
    };
    encode_error(refusal.status, refusal.message, None, extra_fields, format, date, out)
}

/// Appends the response of an admin endpoint. No cache may store it because it describes the
/// current state.
pub fn encode_admin(
    response: &AdminResponse,
    format: HttpReplyFormat,
    date: &ResponseDate,
    out: &mut SendBuffer,
) -> ReplySummary {
    let AdminResponse { status, content_type, content_security_policy: policy, body } = response;
    match format.unmet_precondition.filter(|_| *status == Status::Ok) {
        None => {}
        Some(Status::NotModified) => return encode_not_modified(None, format, date, out),
        Some(status) => return encode_error(status, IF_MATCH_FAILED, None, "", format, date, out),
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
    end_head(format, out);
    if format.head_only {
        return ReplySummary { status: *status, bytes: 0 };
    }
    out.extend_from_slice(body.as_bytes());
    ReplySummary { status: *status, bytes: body.len() }
}

/// Appends the response to `OPTIONS` (RFC 9110, section 9.3.7). It has no CORS fields, because
/// scripts of other origins must not read values.
pub fn encode_options(format: HttpReplyFormat, date: &ResponseDate, out: &mut SendBuffer) -> ReplySummary {
    let out = out.tail();
    for part in ["HTTP/1.1 ", Status::Ok.line(), "\r\nDate: ", &date.text, "\r\n", ALLOW, "Content-Length: 0\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    end_head(format, out);
    ReplySummary { status: Status::Ok, bytes: 0 }
}

/// Appends an error response with a JSON body. `source` is set for a request for a key.
fn encode_error(
    status: Status,
    message: &str,
    source: Option<Source>,
    extra_fields: &str,
    format: HttpReplyFormat,
    date: &ResponseDate,
    out: &mut SendBuffer,
) -> ReplySummary {
    const ERROR_BODY_START: &str = "{\"error\":\"";
    const ERROR_BODY_END: &str = "\"}";
    let length =
        ERROR_BODY_START.len() + json::rendered_len(message.as_bytes(), Encoding::Escaped) + ERROR_BODY_END.len();
    let out = out.tail();
    begin_head(status, "application/json", &date.text, out);
    write_length(length, out);
    match source {
        Some(source) => write_cache_fields(source, CacheControl::NoStore, format.is_private, out),
        None => out.extend_from_slice(NO_STORE),
    }
    out.extend_from_slice(extra_fields.as_bytes());
    end_head(format, out);
    if format.head_only {
        return ReplySummary { status, bytes: 0 };
    }
    out.extend_from_slice(ERROR_BODY_START.as_bytes());
    json::escape(message.as_bytes(), out);
    out.extend_from_slice(ERROR_BODY_END.as_bytes());
    ReplySummary { status, bytes: length }
}

/// Appends a head up to the number in `Content-Length`.
fn begin_head(status: Status, content_type: &str, date: &str, out: &mut Vec<u8>) {
    for part in ["HTTP/1.1 ", status.line(), "\r\nDate: ", date, "\r\nContent-Type: ", content_type] {
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(b"\r\nX-Content-Type-Options: nosniff\r\nContent-Length: ");
}

/// Appends the number in `Content-Length` and ends the field line.
fn write_length(length: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Appends `Connection` if the client needs it, and the empty line that ends the head (RFC 9112,
/// section 9.3).
fn end_head(format: HttpReplyFormat, out: &mut Vec<u8>) {
    let connection: &[u8] = match (format.keep_alive, format.version_1_0) {
        (true, false) => b"\r\n",
        (true, true) => b"Connection: keep-alive\r\n\r\n",
        (false, _) => b"Connection: close\r\n\r\n",
    };
    out.extend_from_slice(connection);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Outage;
    use crate::value::Value;
    use std::sync::Arc;
    use std::time::Duration;

    const KEEP_ALIVE: HttpReplyFormat = HttpReplyFormat {
        view: View::Json,
        head_only: false,
        version_1_0: false,
        keep_alive: true,
        unmet_precondition: None,
        is_private: false,
    };
    const HIT: Source = Source::Cache { ttl: 14_999 };

    /// Returns the text that `encode` appends.
    fn text_of(encode: impl FnOnce(&ResponseDate, &mut SendBuffer)) -> String {
        let mut out = SendBuffer::default();
        encode(&ResponseDate::at(SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777)), &mut out);
        String::from_utf8(out.drain(usize::MAX)).expect("a response in UTF-8")
    }

    /// Returns the body of a value, which must not depend on how the value is stored.
    fn body_of(bytes: &[u8], view: View, source: Source) -> String {
        let value = Arc::new(Value::new(bytes.to_vec()));
        let [inline, shared] = [Payload::Inline { bytes, form: value.form }, Payload::Shared(&value)].map(|payload| {
            let reply = Reply { result: KeyResult::Value(payload), source, tracked: false };
            text_of(|date, out| _ = encode_reply(&reply, HttpReplyFormat { view, ..KEEP_ALIVE }, date, out))
        });
        assert_eq!(inline, shared, "inline and shared values differ");
        let (head, body) = inline.split_once("\r\n\r\n").expect("an empty line after the head");
        assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{head} has a wrong length");
        body.to_owned()
    }

    /// The response to a hit has exactly these bytes.
    #[test]
    fn hit_has_exact_bytes() {
        let reply = Reply {
            result: KeyResult::Value(Payload::Inline { bytes: b"1", form: JsonForm::Integer }),
            source: HIT,
            tracked: false,
        };
        assert_eq!(
            text_of(|date, out| _ = encode_reply(&reply, KEEP_ALIVE, date, out)),
            "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Type: application/json\r\n\
             X-Content-Type-Options: nosniff\r\nContent-Length: 28\r\nCache-Status: segment-redis-proxy; hit; ttl=14\r\n\
             Cache-Control: max-age=14, proxy-revalidate, stale-while-revalidate=0\r\n\r\n{\"value\":1,\"fromCache\":true}"
        );
    }

    /// A value that needed a password is private to the client, and no-store stays as it is.
    #[test]
    fn authorised_value_is_private() {
        let payload = Payload::Inline { bytes: b"1", form: JsonForm::Integer };
        let format = HttpReplyFormat { is_private: true, ..KEEP_ALIVE };
        for (source, tracked, expected) in [
            (HIT, false, "private, max-age=14, proxy-revalidate, stale-while-revalidate=0"),
            (HIT, true, "private, no-cache"),
            (Source::Redis { collapsed: false, stored: None }, false, "no-store"),
        ] {
            let reply = Reply { result: KeyResult::Value(payload), source, tracked };
            let text = text_of(|date, out| _ = encode_reply(&reply, format, date, out));
            assert!(text.contains(&format!("\r\nCache-Control: {expected}\r\n")), "{text}");
        }
    }

    /// A value becomes a number, a string or base64 by its JSON form.
    #[test]
    fn value_body_follows_json_form() {
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

    /// `Cache-Status` distinguishes hit, miss, collapsed and stale.
    #[test]
    fn cache_status_names_source() {
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
            let reply = Reply { result: KeyResult::Missing, source, tracked: false };
            let response = text_of(|date, out| _ = encode_reply(&reply, KEEP_ALIVE, date, out));
            assert!(response.contains(&format!("\r\nCache-Status: segment-redis-proxy; {text}\r\n")), "{response}");
        }
    }

    /// `Cache-Control` lets caches store fresh values only.
    #[test]
    fn cache_control_permits_fresh_values_only() {
        let value = KeyResult::Value(Payload::Inline { bytes: b"1", form: JsonForm::Integer });
        let stored = |stored| Source::Redis { collapsed: false, stored };
        let stale = Source::Stale { expired_for: 1, outage: Outage::Unreachable };
        let max_age = "proxy-revalidate, stale-while-revalidate=0";
        for (result, source, tracked, control) in [
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
            let reply = Reply { result, source, tracked };
            let response = text_of(|date, out| _ = encode_reply(&reply, KEEP_ALIVE, date, out));
            let fields: Vec<&str> = response.split("\r\n").filter(|line| line.starts_with("Cache-Control: ")).collect();
            assert_eq!(fields, [format!("Cache-Control: {control}")], "{reply:?}");
        }
    }

    /// A precondition that is not met replaces 200, and no other status.
    #[test]
    fn unmet_precondition_replaces_200_only() {
        let value = KeyResult::Value(Payload::Inline { bytes: b"1", form: JsonForm::Integer });
        let reply = |result| Reply { result, source: HIT, tracked: true };
        let encode_unmet = |result, unmet| {
            let format = HttpReplyFormat { unmet_precondition: Some(unmet), ..KEEP_ALIVE };
            text_of(|date, out| _ = encode_reply(&reply(result), format, date, out))
        };
        assert_eq!(
            encode_unmet(value, Status::NotModified),
            "HTTP/1.1 304 Not Modified\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
             Cache-Status: segment-redis-proxy; hit; ttl=14\r\nCache-Control: no-cache\r\n\r\n"
        );
        let failed = encode_unmet(value, Status::PreconditionFailed);
        assert!(
            failed.starts_with("HTTP/1.1 412 ") && failed.contains("no-store") && failed.ends_with("}"),
            "{failed}"
        );
        for unmet in [Status::NotModified, Status::PreconditionFailed] {
            assert!(encode_unmet(KeyResult::Missing, unmet).starts_with("HTTP/1.1 404 "));
            assert!(encode_unmet(KeyResult::Failed(&Failure::Timeout), unmet).starts_with("HTTP/1.1 504 "));
            let mut document = AdminResponse {
                status: Status::Ok,
                content_type: "text/html",
                content_security_policy: "",
                body: String::new(),
            };
            let format = HttpReplyFormat { unmet_precondition: Some(unmet), ..KEEP_ALIVE };
            let mut encode_admin = |status| {
                document.status = status;
                text_of(|date, out| _ = encode_admin(&document, format, date, out))
            };
            assert!(encode_admin(Status::Ok).starts_with(&format!("HTTP/1.1 {}\r\n", unmet.line())));
            assert!(encode_admin(Status::ServiceUnavailable).starts_with("HTTP/1.1 503 "));
        }
    }

    /// A failure selects the status, `Retry-After` and the message.
    #[test]
    fn failure_selects_status_and_fields() {
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
            let reply = Reply { result: KeyResult::Failed(&failure), source, tracked: false };
            let response = text_of(|date, out| _ = encode_reply(&reply, KEEP_ALIVE, date, out));
            assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{response}");
            assert_eq!(response.contains("\r\nRetry-After: 1\r\n"), status == "503 ", "{response}");
            let has_text = matches!(failure, Failure::Redis(_) | Failure::NotReady(_) | Failure::Refused(_));
            assert_eq!(response.contains(r#" \"quoted\"\n""#), has_text, "{response}");
            assert_eq!(response.contains("MAX_VALUE_BYTES"), failure == Failure::TooLong, "{response}");
        }
    }

    /// An admin response must not be stored; a page has a Content Security Policy.
    #[test]
    fn admin_response_is_not_stored() {
        let mut document = AdminResponse {
            status: Status::Ok,
            content_type: "text/html",
            content_security_policy: "default-src 'none'",
            body: "<p>é".into(),
        };
        let page = text_of(|date, out| {
            let sent = encode_admin(&document, KEEP_ALIVE, date, out);
            assert_eq!(sent, ReplySummary { status: Status::Ok, bytes: 5 });
        });
        let policy = "\r\nCache-Control: no-store\r\nContent-Security-Policy: default-src 'none'\r\nReferrer-Policy: ";
        assert!(page.contains(policy) && page.contains("Length: 5\r\n") && page.ends_with("\r\n\r\n<p>é"), "{page}");
        (document.status, document.content_security_policy) = (Status::ServiceUnavailable, "");
        let head = text_of(|date, out| {
            let sent = encode_admin(&document, HttpReplyFormat { head_only: true, ..KEEP_ALIVE }, date, out);
            assert_eq!(sent.bytes, 0);
        });
        assert!(head.starts_with("HTTP/1.1 503 ") && head.ends_with("Cache-Control: no-store\r\n\r\n"), "{head}");
    }

    /// A response to `HEAD` has no body; `Connection` says `close`, or `keep-alive` for HTTP/1.0.
    #[test]
    fn head_response_omits_body() {
        let reply = Reply { result: KeyResult::Missing, source: HIT, tracked: false };
        let format = HttpReplyFormat { head_only: true, keep_alive: false, ..KEEP_ALIVE };
        let response = text_of(|date, out| _ = encode_reply(&reply, format, date, out));
        assert!(response.ends_with("Connection: close\r\n\r\n"), "{response}");
        assert!(response.contains("\r\nContent-Length: 25\r\n"), "{response}");
        let refusal = HttpRefusal { status: Status::MethodNotAllowed, message: "no" };
        let format = HttpReplyFormat { version_1_0: true, ..KEEP_ALIVE };
        let response = text_of(|date, out| _ = encode_refusal(refusal, format, date, out));
        assert!(
            response.contains("\r\nAllow: GET, HEAD, OPTIONS\r\nConnection: keep-alive\r\n\r\n{\"error\":\"no\"}"),
            "{response}"
        );
    }
}
