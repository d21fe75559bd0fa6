//! Wire formats, without sockets, cache or time: bytes in, bytes out.
//!
//! A decoder is handed all bytes of a connection that it has not consumed yet. That the rest of a message has still to
//! come is a normal outcome, not an error.

pub mod http;
mod outgoing;

pub use outgoing::{Outgoing, WRITE_SLICES};

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
