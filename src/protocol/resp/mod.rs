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
//!     gather        MGET and EXISTS: one reply out of many
//!     encode        replies
//!     write         the types of both versions
//!     sections      which parts of INFO are asked for
//! ```

mod commands;
mod decode;
mod docs;
mod encode;
mod frame;
mod gather;
mod inline;
mod sections;
mod session;
mod write;

pub use commands::Known;
pub use decode::{Event, Refusal};
pub use encode::{
    encode_number, encode_refusal, encode_remaining, encode_reply, encode_text, encode_too_many_clients,
    encode_violation,
};
pub use frame::{Arguments, Violation};
pub use gather::Gather;
pub use inline::is_resp;
pub use sections::Sections;
pub use session::{After, Meaning, Session};
pub use write::Version;

/// What of a command its reply depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The version of the protocol when it was asked.
    pub version: Version,
    /// What is told of the key, or of the proxy.
    pub form: Form,
}

/// What a command is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
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
    Info(Sections),
}
