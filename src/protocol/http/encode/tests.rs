//! Tests of responses.

use super::super::conditions::Conditions;
use super::*;
use crate::types::{Access, Outage};
use crate::value::{JsonForm, Value};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const KEEP_ALIVE: HttpReplyFormat = HttpReplyFormat {
    view: View::Json,
    head_only: false,
    version_1_0: false,
    keep_alive: true,
    conditions: None,
    access: Access::NORMAL,
    is_private: false,
    omits_entity_tag: false,
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
        text_of(|date, out| _ = encode_reply(&reply, &HttpReplyFormat { view, ..KEEP_ALIVE }, date, out))
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
        text_of(|date, out| _ = encode_reply(&reply, &KEEP_ALIVE, date, out)),
        "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Type: application/json\r\n\
         X-Content-Type-Options: nosniff\r\nContent-Length: 28\r\nETag: W/\"65cd25028f98f158\"\r\n\
         Cache-Status: segment-redis-proxy; hit; ttl=14\r\n\
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
        let text = text_of(|date, out| _ = encode_reply(&reply, &format, date, out));
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
        let response = text_of(|date, out| _ = encode_reply(&reply, &KEEP_ALIVE, date, out));
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
        let response = text_of(|date, out| _ = encode_reply(&reply, &KEEP_ALIVE, date, out));
        let fields: Vec<&str> = response.split("\r\n").filter(|line| line.starts_with("Cache-Control: ")).collect();
        assert_eq!(fields, [format!("Cache-Control: {control}")], "{reply:?}");
    }
}

/// Conditions replace a 200, and no other status.
#[test]
fn conditions_replace_200_only() {
    let value = KeyResult::Value(Payload::Inline { bytes: b"1", form: JsonForm::Integer });
    let reply = |result| Reply { result, source: HIT, tracked: true };
    let format = |add: fn(&mut Conditions)| {
        let mut conditions = Conditions::default();
        add(&mut conditions);
        HttpReplyFormat { conditions: Some(Box::new(conditions)), view: View::Raw, ..KEEP_ALIVE }
    };
    let encode =
        |result, format: &HttpReplyFormat| text_of(|date, out| _ = encode_reply(&reply(result), format, date, out));
    let has_any = format(|conditions| conditions.add_if_none_match(b"*"));
    let start = |line| format!("HTTP/1.1 {line}\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n");
    let end = "ETag: \"65cd25028f98f158\"\r\nCache-Status: segment-redis-proxy; hit; ttl=14\r\n\
               Cache-Control: no-cache\r\n\r\n";
    assert_eq!(encode(value, &has_any), start("304 Not Modified") + end);
    let has_other = format(|conditions| conditions.add_if_match(b"\"other\""));
    let failed = encode(value, &has_other);
    assert!(failed.starts_with("HTTP/1.1 412 ") && failed.contains("no-store") && failed.ends_with("}"), "{failed}");
    let second = format(|conditions| conditions.add_range(b"bytes=1-1"));
    let type_fields = "Content-Type: application/octet-stream\r\nAccept-Ranges: bytes\r\n\
                       X-Content-Type-Options: nosniff\r\nContent-Length: 1\r\n";
    let two = Payload::Inline { bytes: b"12", form: JsonForm::Integer };
    let part = encode(KeyResult::Value(two), &second);
    let begin = start("206 Partial Content") + type_fields + "Content-Range: bytes 1-1/2\r\nETag: \"";
    assert!(part.starts_with(&begin) && part.ends_with("\r\n\r\n2"), "{part}");
    let outside = encode(value, &second);
    assert!(outside.starts_with("HTTP/1.1 416 ") && outside.contains("\r\nContent-Range: bytes */1\r\n"), "{outside}");
    for format in [has_any, has_other, second] {
        assert!(encode(KeyResult::Missing, &format).starts_with("HTTP/1.1 404 "));
        assert!(encode(KeyResult::Failed(&Failure::Timeout), &format).starts_with("HTTP/1.1 504 "));
    }
}

/// A page has no entity tag: `*` matches it, and nothing else. Ranges do not apply to it.
#[test]
fn page_has_no_entity_tag() {
    for (add, status) in
        [(Conditions::add_if_none_match as fn(&mut Conditions, &[u8]), "304"), (Conditions::add_if_match, "200")]
    {
        for (line, status) in [(&b"*"[..], status), (b"\"a\"", if status == "304" { "200" } else { "412" })] {
            let mut conditions = Conditions::default();
            add(&mut conditions, line);
            conditions.add_range(b"bytes=100-");
            let format = HttpReplyFormat { conditions: Some(Box::new(conditions)), ..KEEP_ALIVE };
            let mut document = AdminResponse {
                status: Status::Ok,
                content_type: "text/html",
                content_security_policy: "",
                body: String::new(),
            };
            let mut encode = |status| {
                document.status = status;
                text_of(|date, out| _ = encode_admin(&document, &format, date, out))
            };
            assert!(encode(Status::Ok).starts_with(&format!("HTTP/1.1 {status} ")), "{line:?}");
            assert!(encode(Status::ServiceUnavailable).starts_with("HTTP/1.1 503 "));
        }
    }
}

/// Long values are sent in part by reference, and short parts are copied.
#[test]
fn part_of_long_value_is_shared() {
    let value = Arc::new(Value::new((0..100_000u32).map(|at| (at % 251) as u8).collect()));
    let reply = Reply { result: KeyResult::Value(Payload::Shared(&value)), source: HIT, tracked: false };
    for (field, part, holders) in [("bytes=5-99998", 5..99_999, 2), ("bytes=16384-32767", 16_384..32_768, 1)] {
        let mut conditions = Conditions::default();
        conditions.add_range(field.as_bytes());
        let format = HttpReplyFormat { conditions: Some(Box::new(conditions)), view: View::Raw, ..KEEP_ALIVE };
        assert_eq!(format.pins(&value), holders == 2);
        let mut out = SendBuffer::default();
        let sent = encode_reply(&reply, &format, &ResponseDate::at(SystemTime::UNIX_EPOCH), &mut out);
        assert_eq!(sent, ReplySummary { status: Status::PartialContent, bytes: part.len() });
        assert_eq!(Arc::strong_count(&value), holders, "{field}");
        assert!(out.drain(usize::MAX).ends_with(&value.bytes[part]), "{field}");
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
        let response = text_of(|date, out| _ = encode_reply(&reply, &KEEP_ALIVE, date, out));
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
        let sent = encode_admin(&document, &KEEP_ALIVE, date, out);
        assert_eq!(sent, ReplySummary { status: Status::Ok, bytes: 5 });
    });
    let policy = "\r\nCache-Control: no-store\r\nContent-Security-Policy: default-src 'none'\r\nReferrer-Policy: ";
    assert!(page.contains(policy) && page.contains("Length: 5\r\n") && page.ends_with("\r\n\r\n<p>é"), "{page}");
    (document.status, document.content_security_policy) = (Status::ServiceUnavailable, "");
    let head = text_of(|date, out| {
        let sent = encode_admin(&document, &HttpReplyFormat { head_only: true, ..KEEP_ALIVE }, date, out);
        assert_eq!(sent.bytes, 0);
    });
    assert!(head.starts_with("HTTP/1.1 503 ") && head.ends_with("Cache-Control: no-store\r\n\r\n"), "{head}");
}

/// A response to `HEAD` has no body; `Connection` says `close`, or `keep-alive` for HTTP/1.0.
#[test]
fn head_response_omits_body() {
    let reply = Reply { result: KeyResult::Missing, source: HIT, tracked: false };
    let format = HttpReplyFormat { head_only: true, keep_alive: false, ..KEEP_ALIVE };
    let response = text_of(|date, out| _ = encode_reply(&reply, &format, date, out));
    assert!(response.ends_with("Connection: close\r\n\r\n"), "{response}");
    assert!(response.contains("\r\nContent-Length: 25\r\n"), "{response}");
    let refusal = HttpRefusal { status: Status::MethodNotAllowed, message: "no" };
    let format = HttpReplyFormat { version_1_0: true, ..KEEP_ALIVE };
    let response = text_of(|date, out| _ = encode_refusal(refusal, &format, date, out));
    assert!(
        response.contains("\r\nAllow: GET, HEAD, OPTIONS\r\nConnection: keep-alive\r\n\r\n{\"error\":\"no\"}"),
        "{response}"
    );
}
