//! Encoder of event streams: server-sent events about keys (HTML, section 9.2).
//!
//! A stream for one key has the body of `/key` as its data. A stream for several keys names the key
//! in its data and in its ids, so that its last id tells which of the keys the client has.

use super::entity_tag::{EntityTag, parse_hex, to_hex};
use super::head::{ResponseDate, begin_bare_head, end_head};
use super::json::{self, key_len, write_key};
use super::value_body::ValueBody;
use super::{HttpReplyFormat, Status, View};
use crate::protocol::SendBuffer;
use crate::protocol::pinned::can_pin;
use crate::types::{KeyResult, KeyState, Millis, Source, WatchEvent};
use crate::value::{Payload, SHARED_VALUE_BYTES, digest_of};

/// Fields of the head. The stream ends with the connection. nginx buffers a response without
/// `X-Accel-Buffering`.
const STREAM_FIELDS: &[u8] = b"Content-Type: text/event-stream\r\nX-Content-Type-Options: nosniff\r\n\
    Cache-Control: no-store\r\nX-Accel-Buffering: no\r\n";

/// Comment that keeps a silent stream open.
pub const HEARTBEAT: &[u8] = b":\n\n";

/// Names in ids of the states without a value.
const STATE_NAMES: [(KeyState, &[u8]); 3] =
    [(KeyState::Missing, b"gone"), (KeyState::WrongType, b"wrong-type"), (KeyState::TooLong, b"too-long")];

/// Id of an event: the state of a key, and in a stream for several keys also the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventId {
    state: KeyState,
    /// Digest of the key, `None` in a stream for one key.
    key: Option<u64>,
}

impl EventId {
    /// Returns the id of an event. `key` is set in a stream for several keys.
    fn new(state: KeyState, key: Option<&[u8]>) -> EventId {
        EventId { state, key: key.map(digest_of) }
    }

    /// Parses `Last-Event-ID`. Returns `None` for an id of another server.
    pub fn parse(text: &[u8]) -> Option<EventId> {
        let (state, key) = match text.iter().position(|&byte| byte == b' ') {
            Some(at) => (&text[..at], Some(parse_hex(&text[at + 1..])?)),
            None => (text, None),
        };
        let named = STATE_NAMES.iter().find(|(_, name)| *name == state).map(|(state, _)| *state);
        let state = named.or_else(|| EntityTag::parse(state).map(|tag| KeyState::Value(tag.digest())))?;
        Some(EventId { state, key })
    }

    /// Returns the state that the client has of `key`. `is_named` is true in a stream for several
    /// keys.
    pub fn state_of(self, key: &[u8], is_named: bool) -> Option<KeyState> {
        let is_of_key = match self.key {
            Some(digest) => is_named && digest == digest_of(key),
            None => !is_named,
        };
        is_of_key.then_some(self.state)
    }

    fn write(self, out: &mut Vec<u8>) {
        match self.state {
            KeyState::Value(digest) => EntityTag::new(digest, View::Json).write(out),
            state => STATE_NAMES.iter().filter(|(named, _)| *named == state).for_each(|(_, name)| out.extend(*name)),
        }
        if let Some(key) = self.key {
            out.push(b' ');
            out.extend_from_slice(&to_hex(key));
        }
    }
}

/// Appends the head of a stream. `tracked` tells in `Cache-Status` if changes arrive at once or are
/// found by reads.
pub fn encode_head(format: &HttpReplyFormat, tracked: bool, date: &ResponseDate, out: &mut SendBuffer) {
    let out = out.tail();
    begin_bare_head(Status::Ok, &date.text, out);
    out.extend_from_slice(STREAM_FIELDS);
    out.extend_from_slice(match tracked {
        true => b"Cache-Status: segment-redis-proxy; detail=tracked\r\n",
        false => b"Cache-Status: segment-redis-proxy; detail=polled\r\n",
    });
    end_head(format, out);
}

/// Appends a comment, which clients ignore.
pub fn encode_comment(text: &str, out: &mut SendBuffer) {
    let out = out.tail();
    out.extend_from_slice(b": ");
    // Text from Redis may contain line ends, which would begin a field.
    out.extend(text.bytes().map(|byte| if byte < b' ' { b' ' } else { byte }));
    out.extend_from_slice(b"\n\n");
}

/// Appends the time after which the client reconnects.
pub fn encode_retry(retry: Millis, out: &mut SendBuffer) {
    out.tail().extend_from_slice(format!("retry: {retry}\n\n").as_bytes());
}

/// Appends an event. `key` is set in a stream for several keys. Returns false if `CLIENT_BYTES`
/// does not allow to hold the value until it is sent.
pub fn encode_event(event: &WatchEvent<'_>, key: Option<&[u8]>, out: &mut SendBuffer) -> bool {
    let Some(state) = event.state else {
        if let KeyResult::Failed(failure) = event.reply.result {
            encode_comment(&failure.to_string(), out);
        }
        return true;
    };
    let from_cache = !matches!(event.reply.source, Source::Redis { .. });
    if let KeyResult::Value(payload @ Payload::Shared(value)) = event.reply.result
        && value.bytes.len() > SHARED_VALUE_BYTES
    {
        if !can_pin(value) {
            return false;
        }
        begin_event(state, key, out.tail());
        ValueBody::element(payload, from_cache).write(out);
        out.tail().extend_from_slice(b"\n\n");
        return true;
    }
    let rendered = if key.is_some() { &event.rendered.named } else { &event.rendered.unnamed };
    let text = rendered.get_or_init(|| render_short(state, event, key, from_cache).into());
    out.tail().extend_from_slice(text);
    true
}

/// Renders an event with a short value or without one.
fn render_short(state: KeyState, event: &WatchEvent<'_>, key: Option<&[u8]>, from_cache: bool) -> Vec<u8> {
    let mut text = Vec::with_capacity(128 + key.map_or(0, key_len));
    begin_event(state, key, &mut text);
    match event.reply.result {
        KeyResult::Value(payload) => {
            let (bytes, form) = (payload.bytes(), payload.form());
            ValueBody::element(Payload::Inline { bytes, form }, from_cache).write_inline(bytes, &mut text);
        }
        KeyResult::Failed(failure) => json::write_error(&failure.to_string(), &mut text),
        KeyResult::Missing | KeyResult::NotCached => text.extend_from_slice(json::MISSING_VALUE),
    }
    text.extend_from_slice(b"\n\n");
    text
}

/// Appends an event up to the first member of its data, or up to the member behind the key.
fn begin_event(state: KeyState, key: Option<&[u8]>, out: &mut Vec<u8>) {
    out.extend_from_slice(match state {
        KeyState::Value(_) => b"event: put\nid: ",
        _ => &b"event: gone\nid: "[..],
    });
    EventId::new(state, key).write(out);
    out.extend_from_slice(b"\ndata: {");
    if let Some(key) = key {
        write_key(key, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Failure, RenderedEvent, Reply};
    use crate::value::Value;
    use std::sync::Arc;

    fn event_text(result: KeyResult<'_>, key: Option<&[u8]>) -> String {
        let reply = Reply { result, source: Source::Cache { ttl: 1 }, tracked: true };
        let rendered = RenderedEvent::default();
        let state = match result {
            KeyResult::Value(payload) => Some(KeyState::Value(payload.digest())),
            KeyResult::Failed(failure) => KeyState::of_failure(failure),
            KeyResult::Missing | KeyResult::NotCached => Some(KeyState::Missing),
        };
        let event = WatchEvent { state, reply, rendered: &rendered };
        let mut out = SendBuffer::default();
        // The second watcher gets the rendering of the first.
        assert!(encode_event(&event, key, &mut out) && encode_event(&event, key, &mut out));
        let text = String::from_utf8(out.drain(usize::MAX)).expect("UTF-8");
        let (first, second) = text.split_at(text.len() / 2);
        assert_eq!(first, second);
        first.to_owned()
    }

    /// Each state has its event. The data is the body of `/key`, and may name the key.
    #[test]
    fn events_show_state_of_key() {
        let value = |bytes: &[u8]| Arc::new(Value::new(bytes.to_vec()));
        let one = value(b"1");
        let inline = KeyResult::Value(Payload::Inline { bytes: &one.bytes, form: one.form });
        assert_eq!(
            event_text(inline, None),
            "event: put\nid: W/\"65cd25028f98f158\"\ndata: {\"value\":1,\"fromCache\":true}\n\n"
        );
        assert_eq!(
            event_text(inline, Some(b"a\"")),
            format!(
                "event: put\nid: W/\"65cd25028f98f158\" {:016x}\ndata: {{\"key\":\"a\\\"\",\"value\":1,\"fromCache\":true}}\n\n",
                digest_of(b"a\"")
            )
        );
        let long = value(&b"x\n".repeat(SHARED_VALUE_BYTES));
        let text = event_text(KeyResult::Value(Payload::Shared(&long)), None);
        assert!(text.ends_with("x\\n\",\"fromCache\":true}\n\n") && text.len() > 3 * SHARED_VALUE_BYTES);
        assert_eq!(event_text(KeyResult::Missing, None), "event: gone\nid: gone\ndata: {\"value\":null}\n\n");
        assert!(
            event_text(KeyResult::Failed(&Failure::WrongType), None)
                .starts_with("event: gone\nid: wrong-type\ndata: {\"error\":\"the key")
        );
        assert_eq!(
            event_text(KeyResult::Failed(&Failure::Redis("a\nb".into())), None),
            ": Redis replied with an error: a b\n\n"
        );
    }

    /// An id names the state that the client has, only of its own key and kind of stream.
    #[test]
    fn event_id_round_trips() {
        for state in
            [KeyState::Value(7), KeyState::Value(u64::MAX), KeyState::Missing, KeyState::WrongType, KeyState::TooLong]
        {
            for key in [None, Some(&b"a"[..])] {
                let (id, mut text) = (EventId::new(state, key), Vec::new());
                id.write(&mut text);
                assert_eq!(EventId::parse(&text), Some(id));
                assert_eq!(id.state_of(b"a", key.is_some()), Some(state));
                assert_eq!((id.state_of(b"a", key.is_none()), id.state_of(b"b", true)), (None, None));
            }
        }
        for text in ["", " ", "gone ", "gone x", "gone 0123456789ABCDEF", "W/\"1\"", "1", "gone 0123456789abcdef0"] {
            assert_eq!(EventId::parse(text.as_bytes()), None, "{text}");
        }
    }
}
