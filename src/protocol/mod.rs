//! Wire formats, without sockets, cache or time: bytes in, bytes out.
//!
//! The first line of a connection tells which protocol it speaks ([`resp::is_resp`]): `*` begins a command of the Redis protocol,
//! and so do a few words without a version of HTTP behind them.
//!
//! A decoder is handed all bytes of a connection that it has not consumed yet. That the rest of a message has still to
//! come is a normal outcome, not an error.

mod held;
pub mod http;
mod outgoing;
pub mod resp;

pub use held::bound_held_values;
pub use outgoing::{Outgoing, WRITE_SLICES};

use crate::request::{Failure, Outcome, Payload, Reply, SHARED_VALUE_BYTES, Value};

/// What a reply was, for the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its status; over the Redis protocol the one that it would have over HTTP.
    pub status: http::Status,
    /// Bytes of its body; over the Redis protocol of all of it.
    pub bytes: usize,
}

/// How to reply to a request for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// As an HTTP response.
    Http(http::Shape),
    /// As a reply of the Redis protocol.
    Resp(resp::Shape),
}

impl Shape {
    /// Whether so much of a shared value is sent that it is held until then.
    fn holds(self, value: &Value) -> bool {
        match self {
            Shape::Http(shape) => !shape.head_only && shape.unmet.is_none(),
            Shape::Resp(shape) => shape.holds(value.bytes.len()),
        }
    }
}

/// Appends the reply to a request for a key. Where there is no room for a value that would be held, a short one is copied, and a
/// long one becomes a failure.
pub fn encode_reply(reply: &Reply<'_>, shape: Shape, date: &http::Date, out: &mut Outgoing) -> Sent {
    let without_room;
    let reply = match reply.outcome {
        Outcome::Value(Payload::Shared(value)) if shape.holds(value) && !held::has_room_for(value) => {
            let outcome = match value.bytes.len() {
                0..=SHARED_VALUE_BYTES => Outcome::Value(Payload::Inline { bytes: &value.bytes, form: value.form }),
                _ => Outcome::Failed(&Failure::TooMuchHeld),
            };
            without_room = Reply { outcome, ..*reply };
            &without_room
        }
        _ => reply,
    };
    match shape {
        Shape::Http(shape) => http::encode_reply(reply, shape, date, out),
        Shape::Resp(shape) => {
            let before = out.unsent();
            resp::encode_reply(reply, shape, out);
            Sent { status: http::status_of(reply.outcome), bytes: out.unsent() - before }
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
