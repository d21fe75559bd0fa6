//! Encodes RESP replies to commands about keys and metrics, and RESP errors.

use super::decode::RespRefusal;
use super::frame::ProtocolError;
use super::writer::{RespVersion, RespWriter};
use super::{ReplyKind, RespReplyFormat};
use crate::protocol::SendBuffer;
use crate::types::{Failure, KeyResult, Millis, Reply};
use crate::value::{Payload, SHARED_VALUE_BYTES};
use std::ops::Range;

/// Error that Redis returns for a key of another type.
const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";

/// Error for a key that may not be read. RESP commands always permit it.
const NOT_CACHED: &str = "ERR the key is not cached";

impl RespReplyFormat {
    /// Returns true if the reply pins a shared value of `length` bytes until it is sent.
    pub fn pins(self, length: usize) -> bool {
        match self.kind {
            ReplyKind::Value => true,
            ReplyKind::Range(start, end) => !should_copy(resolve_range(start, end, length).len(), length),
            _ => false,
        }
    }
}

/// Appends the reply to a command about a key.
pub fn encode_reply(reply: &Reply<'_>, format: RespReplyFormat, out: &mut SendBuffer) {
    match (reply.result, format.kind) {
        (KeyResult::Failed(failure), _) => encode_error(&error_of(failure), out),
        (KeyResult::NotCached, _) => encode_error(NOT_CACHED, out),
        (KeyResult::Missing, ReplyKind::Length) => writer(format, out).integer(0),
        (KeyResult::Missing, ReplyKind::Range(..)) => writer(format, out).bulk(b""),
        (KeyResult::Missing, _) => writer(format, out).null(),
        (KeyResult::Value(payload), ReplyKind::Length) => writer(format, out).integer(payload.bytes().len() as i64),
        (KeyResult::Value(payload), ReplyKind::Range(start, end)) => {
            encode_part(payload, resolve_range(start, end, payload.bytes().len()), format.version, out);
        }
        (KeyResult::Value(payload), _) => encode_part(payload, 0..payload.bytes().len(), format.version, out),
    }
}

/// Appends a part of a value as a bulk string.
#[inline]
pub fn encode_part(payload: Payload<'_>, part: Range<usize>, version: RespVersion, out: &mut SendBuffer) {
    match payload {
        Payload::Inline { bytes, .. } => RespWriter::new(out.tail(), version).bulk(&bytes[part]),
        Payload::Shared(value) if should_copy(part.len(), value.bytes.len()) => {
            RespWriter::new(out.tail(), version).bulk(&value.bytes[part]);
        }
        Payload::Shared(value) => {
            RespWriter::new(out.tail(), version).bulk_head(part.len());
            out.push_raw_range(value, part);
            RespWriter::new(out.tail(), version).bulk_end();
        }
    }
}

/// Returns true if `part` bytes of a shared value of `length` bytes are copied.
///
/// A short part must not keep a long value in memory.
fn should_copy(part: usize, length: usize) -> bool {
    part < length && part <= SHARED_VALUE_BYTES
}

/// Returns the bytes of a value of `length` bytes that `GETRANGE` selects.
///
/// Both indexes are included. Negative ones count from the end, and both are clamped to the value.
fn resolve_range(start: i64, end: i64, length: usize) -> Range<usize> {
    let length = length as i64;
    let position = |index: i64| if index < 0 { index.saturating_add(length).max(0) } else { index };
    let (first, limit) = (position(start), position(end).saturating_add(1).min(length));
    // As in Redis, two negative indexes in reverse order select nothing, even if clamping makes
    // them equal.
    let is_reversed = start < 0 && end < 0 && start > end;
    if first >= limit || is_reversed { 0..0 } else { first as usize..limit as usize }
}

/// Appends an error, which both versions encode alike.
pub fn encode_error(text: &str, out: &mut SendBuffer) {
    RespWriter::new(out.tail(), RespVersion::Resp2).error(text);
}

/// Codes of errors of a Redis that recovers by itself, as client libraries know them.
const RETRIED_CODES: [&str; 3] = ["LOADING ", "MASTERDOWN ", "BUSY "];

/// Returns the text of the error for `failure`. It starts with an error code.
pub fn error_of(failure: &Failure) -> String {
    match failure {
        Failure::WrongType => WRONG_TYPE.into(),
        // The proxy has to authenticate, so the client must not receive NOAUTH.
        Failure::Redis(text) if text.starts_with("NOAUTH") => format!("ERR {failure}"),
        // Without a code, the text describes a malformed reply instead of an error from Redis.
        Failure::Redis(text) if !has_error_code(text) => format!("ERR {failure}"),
        // Redis reports too many clients as ERR, after which no client library retries. The errors
        // of a cluster (CLUSTERDOWN, TRYAGAIN) make libraries look for its nodes.
        Failure::NotReady(text) if !RETRIED_CODES.iter().any(|code| text.starts_with(code)) => {
            format!("LOADING {failure}")
        }
        Failure::Redis(text) | Failure::NotReady(text) => text.clone(),
        // Most client libraries retry after LOADING. redis-py treats it as a lost connection, which
        // it would see without the proxy, and reconnects. An overloaded proxy therefore replies
        // TRYAGAIN.
        Failure::Unavailable | Failure::Timeout => format!("LOADING {failure}"),
        Failure::QueueFull | Failure::OutputMemoryFull => format!("TRYAGAIN {failure}"),
        Failure::Refused(_) | Failure::TooLong | Failure::Internal => format!("ERR {failure}"),
    }
}

/// Returns true if `text` starts with a word in capitals, by which client libraries distinguish
/// errors.
fn has_error_code(text: &str) -> bool {
    let word = text.split(' ').next().unwrap_or_default();
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

/// Appends the reply to `TTL` or `PTTL`, -2 if the key is not cached. Rounds to seconds as Redis
/// does.
pub fn encode_ttl(ttl: Option<Millis>, format: RespReplyFormat, out: &mut SendBuffer) {
    let time = |ttl: Millis| match format.kind {
        ReplyKind::Seconds => ttl.saturating_add(500) / 1000,
        _ => ttl,
    };
    writer(format, out).integer(ttl.map_or(-2, |ttl| time(ttl) as i64));
}

/// Appends the reply to `DBSIZE`.
pub fn encode_number(number: usize, format: RespReplyFormat, out: &mut SendBuffer) {
    writer(format, out).integer(number as i64);
}

/// Appends the reply to `INFO`.
pub fn encode_text(text: &str, format: RespReplyFormat, out: &mut SendBuffer) {
    writer(format, out).verbatim(text);
}

/// Appends the error for a refused command.
pub fn encode_refusal(refusal: &RespRefusal, out: &mut SendBuffer) {
    encode_error(&refusal.to_string(), out);
}

/// Appends the error for a client above the connection limit, with the text that Redis uses.
pub fn encode_too_many_clients(out: &mut SendBuffer) {
    encode_error("ERR max number of clients reached", out);
}

/// Appends the error for a client of the admin port, which serves no commands. The connection
/// closes after it.
pub fn encode_admin_port(out: &mut SendBuffer) {
    encode_error("ERR this port (ADMIN_PORT) serves only HTTP; send commands to PROXY_PORT or PROXY_SOCKET", out);
}

/// Appends the error for a client without TLS where TLS is required.
pub fn encode_tls_required(out: &mut SendBuffer) {
    encode_error("ERR TLS is required: connect with TLS (redis-cli --tls), or set TLS_REQUIRED=off", out);
}

/// Appends the error for invalid input. The connection closes after it.
pub fn encode_protocol_error(error: ProtocolError, out: &mut SendBuffer) {
    encode_error(&format!("ERR Protocol error: {error}"), out);
}

fn writer(format: RespReplyFormat, out: &mut SendBuffer) -> RespWriter<'_> {
    RespWriter::new(out.tail(), format.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error from Redis keeps its code, or gets one. NOAUTH does not reach the client.
    #[test]
    fn error_starts_with_code() {
        for (text, expected) in [
            ("NOPERM no way", "NOPERM no way"),
            ("NOAUTH Authentication required.", "ERR Redis replied with an error: NOAUTH Authentication required."),
            ("Parse error at 1", "ERR Redis replied with an error: Parse error at 1"),
            ("", "ERR Redis replied with an error: "),
        ] {
            assert_eq!(error_of(&Failure::Redis(text.into())), expected);
        }
    }

    /// Indexes count from either end and are clamped to the value.
    #[test]
    fn range_is_clamped_to_value() {
        for (start, end, expected) in [
            (0, -1, 0..10),
            (3, 3, 3..4),
            (-3, -2, 7..9),
            (8, 100, 8..10),
            (10, 11, 0..0),
            (4, 3, 0..0),
            (-100, 0, 0..1),
            (0, -100, 0..1),
            (-100, -200, 0..0),
            (i64::MIN, i64::MAX, 0..10),
            (i64::MAX, i64::MAX, 0..0),
        ] {
            assert_eq!(resolve_range(start, end, 10), expected, "{start} {end}");
            assert_eq!(resolve_range(start, end, 0), 0..0, "{start} {end} of an empty value");
        }
    }

    /// `TTL` rounds half a second up, as Redis does.
    #[test]
    fn ttl_is_rounded_to_seconds() {
        for (ttl, form, expected) in [
            (Some(1499), ReplyKind::Seconds, ":1\r\n"),
            (Some(1500), ReplyKind::Seconds, ":2\r\n"),
            (Some(1), ReplyKind::Seconds, ":0\r\n"),
            (Some(1499), ReplyKind::Milliseconds, ":1499\r\n"),
            (None, ReplyKind::Seconds, ":-2\r\n"),
        ] {
            let mut out = SendBuffer::default();
            encode_ttl(ttl, RespReplyFormat { version: RespVersion::Resp2, kind: form }, &mut out);
            assert_eq!(out.drain(usize::MAX), expected.as_bytes());
        }
    }
}
