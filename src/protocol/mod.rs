//! Wire formats, without sockets, cache or time: bytes in, bytes out.
//!
//! The first line of a connection tells which protocol it speaks ([`resp::is_resp`]): `*` begins a command of the Redis protocol,
//! and so do a few words without a version of HTTP behind them.
//!
//! A decoder is handed all bytes of a connection that it has not consumed yet. That the rest of a message has still to
//! come is a normal outcome, not an error.

pub mod http;
mod multi;
mod output_budget;
mod pinned;
pub mod resp;
mod send_buffer;

pub use multi::MultiReply;
pub use pinned::set_pinned_limit;
pub use send_buffer::{MAX_IOVECS, SendBuffer};

use crate::types::{Failure, KeyResult, Reply};
use crate::value::{Payload, SHARED_VALUE_BYTES, Value};

/// What a reply was, for the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplySummary {
    /// Its status; over the Redis protocol the one that it would have over HTTP.
    pub status: http::Status,
    /// Bytes of its body; over the Redis protocol of all of it.
    pub bytes: usize,
}

/// How to reply to a request for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyFormat {
    /// As an HTTP response.
    Http(http::HttpReplyFormat),
    /// As a reply of the Redis protocol.
    Resp(resp::RespReplyFormat),
}

impl ReplyFormat {
    /// Whether so much of a shared value is sent that it is held until then.
    fn pins(self, value: &Value) -> bool {
        match self {
            ReplyFormat::Http(shape) => !shape.head_only && shape.unmet_precondition.is_none(),
            ReplyFormat::Resp(shape) => shape.holds(value.bytes.len()),
        }
    }
}

/// Appends the reply to a request for a key. Where there is no room for a value that would be held, a short one is copied, and a
/// long one becomes a failure.
pub fn encode_reply(
    reply: &Reply<'_>,
    shape: ReplyFormat,
    date: &http::ResponseDate,
    out: &mut SendBuffer,
) -> ReplySummary {
    let without_room;
    let reply = match reply.outcome {
        KeyResult::Value(Payload::Shared(value)) if shape.pins(value) && !pinned::can_pin(value) => {
            let outcome = match value.bytes.len() {
                0..=SHARED_VALUE_BYTES => KeyResult::Value(Payload::Inline { bytes: &value.bytes, form: value.form }),
                _ => KeyResult::Failed(&Failure::OutputMemoryFull),
            };
            without_room = Reply { outcome, ..*reply };
            &without_room
        }
        _ => reply,
    };
    match shape {
        ReplyFormat::Http(shape) => http::encode_reply(reply, shape, date, out),
        ReplyFormat::Resp(shape) => {
            let before = out.unsent_bytes();
            resp::encode_reply(reply, shape, out);
            ReplySummary { status: http::status_of(reply.outcome), bytes: out.unsent_bytes() - before }
        }
    }
}

/// What a decoder made of the bytes it was shown.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded<T, E> {
    /// A whole message, and how many bytes it took.
    Complete(T, usize),
    /// No whole message yet.
    Incomplete,
    /// No message will ever begin like this.
    Invalid(E),
}
