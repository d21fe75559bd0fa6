//! The Redis serialization protocol, versions 2 and 3 (RESP2, RESP3): commands in, replies out.
//!
//! ```text
//!     frame         lengths and arguments, and why bytes are refused
//!     commands      what is answered here, and what COMMAND tells of it
//!     docs          arguments and subcommands, as COMMAND DOCS describes them
//!     decode        a connection's bytes, cut into commands; of MGET and EXISTS into single keys; what is too long or
//!                   not known is read over without being kept
//!     inline        commands that are words on a line, with which some clients begin
//!     session       what a connection has chosen, the commands about that, and what the others ask for
//!     encode        replies
//!     write         the types of both versions
//!     sections      which parts of INFO are asked for
//! ```

pub(super) mod commands;
mod decode;
mod docs;
pub(super) mod encode;
mod frame;
mod inline;
mod sections;
mod session;
pub(super) mod writer;

pub use commands::CommandSpec;
pub use decode::{DecodeEvent, RespRefusal};
pub use encode::{
    encode_number, encode_refusal, encode_remaining, encode_reply, encode_text, encode_too_many_clients,
    encode_violation,
};
pub use frame::{Arguments, ProtocolError};
pub use inline::is_resp;
pub use sections::InfoSections;
pub use session::{AfterReply, RespOperation, Session};
pub use writer::RespVersion;

/// What of a command its reply depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RespReplyFormat {
    /// The version of the protocol when it was asked.
    pub version: RespVersion,
    /// What is told of the key, or of the proxy.
    pub kind: ReplyKind,
}

/// What a command is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyKind {
    /// `GET`: the value.
    Value,
    /// `STRLEN`: its length.
    Length,
    /// `GETRANGE`: what of it lies between these positions, both included; from the end where they are negative.
    Range(i64, i64),
    /// `TTL`.
    Seconds,
    /// `PTTL`.
    Milliseconds,
    /// `DBSIZE`.
    Entries,
    /// `INFO`.
    Info(InfoSections),
}
