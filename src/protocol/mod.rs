//! Wire formats of HTTP and RESP: from bytes to requests, from replies to bytes.
//!
//! This module performs no I/O, and uses neither the cache nor the clock. The first line of a
//! connection selects its protocol ([`resp::is_resp`]). `*` starts a RESP command. So do a few
//! inline commands, unless their line ends with an HTTP version.
//!
//! A decoder receives all bytes of the connection that it has not consumed. An incomplete message
//! is a normal result, not an error.

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

/// Status and size of a reply, for metrics and the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplySummary {
    /// HTTP status; for a RESP reply, the status that HTTP would have.
    pub status: http::Status,
    /// Bytes of the HTTP body, or of the whole RESP reply.
    pub bytes: usize,
}

/// Format of the reply to a request for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyFormat {
    /// HTTP response.
    Http(http::HttpReplyFormat),
    /// RESP reply.
    Resp(resp::RespReplyFormat),
}

impl ReplyFormat {
    /// Returns true if the reply pins a shared value until it is sent.
    fn pins(&self, value: &Value) -> bool {
        match self {
            ReplyFormat::Http(format) => format.pins(value),
            ReplyFormat::Resp(format) => format.pins(value.bytes.len()),
        }
    }
}

/// Appends the reply to a request for a key.
///
/// If the budget has no memory left to pin the value, a short value is copied and a long one
/// becomes a failure.
pub fn encode_reply(
    reply: &Reply<'_>,
    format: &ReplyFormat,
    date: &http::ResponseDate,
    out: &mut SendBuffer,
) -> ReplySummary {
    let unpinned;
    let reply = match reply.result {
        KeyResult::Value(Payload::Shared(value)) if format.pins(value) && !pinned::can_pin(value) => {
            let result = match value.bytes.len() {
                0..=SHARED_VALUE_BYTES => KeyResult::Value(Payload::Inline { bytes: &value.bytes, form: value.form }),
                _ => KeyResult::Failed(&Failure::OutputMemoryFull),
            };
            unpinned = Reply { result, ..*reply };
            &unpinned
        }
        _ => reply,
    };
    match format {
        ReplyFormat::Http(format) => http::encode_reply(reply, format, date, out),
        ReplyFormat::Resp(format) => {
            let before = out.unsent_bytes();
            resp::encode_reply(reply, *format, out);
            ReplySummary { status: http::status_of(reply.result), bytes: out.unsent_bytes() - before }
        }
    }
}

/// Result of decoding the first bytes of the input.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded<T, E> {
    /// A complete message, and its length in bytes.
    Complete(T, usize),
    /// More bytes are needed.
    Incomplete,
    /// No message starts like this, whatever follows.
    Invalid(E),
}
