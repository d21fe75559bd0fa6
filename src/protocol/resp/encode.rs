//! Replies to requests for keys, and for figures.

use super::decode::RespRefusal;
use super::frame::ProtocolError;
use super::writer::{RespVersion, RespWriter};
use super::{ReplyKind, RespReplyFormat};
use crate::protocol::SendBuffer;
use crate::types::{Failure, KeyResult, Millis, Reply};
use crate::value::{Payload, SHARED_VALUE_BYTES};
use std::ops::Range;

/// What Redis says where it holds another type.
const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";

impl RespReplyFormat {
    /// Whether a shared value of `length` bytes is held until the reply has been sent.
    pub fn holds(self, length: usize) -> bool {
        match self.kind {
            ReplyKind::Value => true,
            ReplyKind::Range(start, end) => !is_copied(range_of(start, end, length).len(), length),
            _ => false,
        }
    }
}

/// Appends the reply to a command about a key.
pub fn encode_reply(reply: &Reply<'_>, shape: RespReplyFormat, out: &mut SendBuffer) {
    match (reply.outcome, shape.kind) {
        (KeyResult::Failed(failure), _) => encode_error(&error_of(failure), out),
        (KeyResult::Missing, ReplyKind::Length) => writer(shape, out).integer(0),
        (KeyResult::Missing, ReplyKind::Range(..)) => writer(shape, out).bulk(b""),
        (KeyResult::Missing, _) => writer(shape, out).null(),
        (KeyResult::Value(payload), ReplyKind::Length) => writer(shape, out).integer(payload.bytes().len() as i64),
        (KeyResult::Value(payload), ReplyKind::Range(start, end)) => {
            encode_part(payload, range_of(start, end, payload.bytes().len()), shape.version, out);
        }
        (KeyResult::Value(payload), _) => encode_part(payload, 0..payload.bytes().len(), shape.version, out),
    }
}

/// Appends a part of a value as a bulk string.
#[inline]
pub fn encode_part(payload: Payload<'_>, part: Range<usize>, version: RespVersion, out: &mut SendBuffer) {
    match payload {
        Payload::Inline { bytes, .. } => RespWriter::new(out.tail(), version).bulk(&bytes[part]),
        Payload::Shared(value) if is_copied(part.len(), value.bytes.len()) => {
            RespWriter::new(out.tail(), version).bulk(&value.bytes[part]);
        }
        Payload::Shared(value) => {
            RespWriter::new(out.tail(), version).bulk_head(part.len());
            out.push_raw_range(value, part);
            RespWriter::new(out.tail(), version).bulk_end();
        }
    }
}

/// Whether so many bytes of a shared value of `length` are copied: a byte of it shall not keep a long one in memory.
fn is_copied(part: usize, length: usize) -> bool {
    part < length && part <= SHARED_VALUE_BYTES
}

/// What `GETRANGE` means by its two positions in a value of `length` bytes: both included, counted from the end where
/// they are negative, cut to what there is.
fn range_of(start: i64, end: i64, length: usize) -> Range<usize> {
    let length = length as i64;
    let position = |given: i64| if given < 0 { given.saturating_add(length).max(0) } else { given };
    let (first, past) = (position(start), position(end).saturating_add(1).min(length));
    // Of two positions before the beginning Redis makes nothing, of one the first byte.
    let backwards = start < 0 && end < 0 && start > end;
    if first >= past || backwards { 0..0 } else { first as usize..past as usize }
}

/// Appends an error, which is the same in both versions.
pub fn encode_error(text: &str, out: &mut SendBuffer) {
    RespWriter::new(out.tail(), RespVersion::Resp2).error(text);
}

/// The error that a failure is.
pub fn error_of(failure: &Failure) -> String {
    match failure {
        Failure::WrongType => WRONG_TYPE.into(),
        // It is the proxy that has to authenticate, not its client.
        Failure::Redis(text) if text.starts_with("NOAUTH") => format!("ERR {failure}"),
        // What came was no error of Redis but nonsense, and what is told of it begins with no code.
        Failure::Redis(text) if !begins_with_code(text) => format!("ERR {failure}"),
        // The client is to try again, and Redis' own word for it (too many clients) tells no library so.
        Failure::NotReady(text) if text.starts_with("ERR ") => format!("LOADING {failure}"),
        Failure::Redis(text) | Failure::NotReady(text) => text.clone(),
        // Of the codes that client libraries try again after, LOADING is the one that most of them know, and redis-py takes
        // it for what it would have met without the proxy, a lost connection. It reconnects then; so where the proxy has
        // too much to do already, it is TRYAGAIN.
        Failure::Unavailable | Failure::Timeout => format!("LOADING {failure}"),
        Failure::QueueFull | Failure::OutputMemoryFull => format!("TRYAGAIN {failure}"),
        Failure::Refused(_) | Failure::TooLong | Failure::Internal => format!("ERR {failure}"),
    }
}

/// Whether a text begins with a word in capitals, by which client libraries tell errors apart.
fn begins_with_code(text: &str) -> bool {
    let word = text.split(' ').next().unwrap_or_default();
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

/// Appends the reply to `TTL` or `PTTL`: the time that is left, rounded to seconds as Redis rounds, or -2 for nothing.
pub fn encode_remaining(remaining: Option<Millis>, shape: RespReplyFormat, out: &mut SendBuffer) {
    let time = |remaining: Millis| match shape.kind {
        ReplyKind::Seconds => remaining.saturating_add(500) / 1000,
        _ => remaining,
    };
    writer(shape, out).integer(remaining.map_or(-2, |remaining| time(remaining) as i64));
}

/// Appends a number, the reply to `DBSIZE`.
pub fn encode_number(number: usize, shape: RespReplyFormat, out: &mut SendBuffer) {
    writer(shape, out).integer(number as i64);
}

/// Appends a text for people, the reply to `INFO`.
pub fn encode_text(text: &str, shape: RespReplyFormat, out: &mut SendBuffer) {
    writer(shape, out).verbatim(text);
}

/// Appends the reply to a command that is not carried out.
pub fn encode_refusal(refusal: &RespRefusal, out: &mut SendBuffer) {
    encode_error(&refusal.to_string(), out);
}

/// Appends the only reply to a client that is one too many, in Redis' words.
pub fn encode_too_many_clients(out: &mut SendBuffer) {
    encode_error("ERR max number of clients reached", out);
}

/// Appends the last reply to a client that does not speak the protocol.
pub fn encode_violation(violation: ProtocolError, out: &mut SendBuffer) {
    encode_error(&format!("ERR Protocol error: {violation}"), out);
}

fn writer(shape: RespReplyFormat, out: &mut SendBuffer) -> RespWriter<'_> {
    RespWriter::new(out.tail(), shape.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_begins_with_a_code() {
        for (text, expected) in [
            ("NOPERM no way", "NOPERM no way"),
            ("NOAUTH Authentication required.", "ERR Redis replied with an error: NOAUTH Authentication required."),
            ("Parse error at 1", "ERR Redis replied with an error: Parse error at 1"),
            ("", "ERR Redis replied with an error: "),
        ] {
            assert_eq!(error_of(&Failure::Redis(text.into())), expected);
        }
    }

    #[test]
    fn positions_count_from_either_end_and_are_cut_to_what_there_is() {
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
            assert_eq!(range_of(start, end, 10), expected, "{start} {end}");
            assert_eq!(range_of(start, end, 0), 0..0, "{start} {end} of nothing");
        }
    }

    #[test]
    fn the_time_that_is_left_is_rounded_as_redis_rounds_it() {
        for (remaining, form, expected) in [
            (Some(1499), ReplyKind::Seconds, ":1\r\n"),
            (Some(1500), ReplyKind::Seconds, ":2\r\n"),
            (Some(1), ReplyKind::Seconds, ":0\r\n"),
            (Some(1499), ReplyKind::Milliseconds, ":1499\r\n"),
            (None, ReplyKind::Seconds, ":-2\r\n"),
        ] {
            let mut out = SendBuffer::default();
            encode_remaining(remaining, RespReplyFormat { version: RespVersion::Resp2, kind: form }, &mut out);
            assert_eq!(out.drain(usize::MAX), expected.as_bytes());
        }
    }
}
