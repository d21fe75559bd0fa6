//! Redis serialization protocol, versions 2 and 3 (RESP2, RESP3): decodes commands, encodes
//! replies.
//!
//! | module | purpose |
//! |---|---|
//! | `frame` | lengths and arguments of commands, protocol errors |
//! | `commands` | table of supported commands, replies to `COMMAND` |
//! | `docs` | arguments and subcommands, as `COMMAND DOCS` describes them |
//! | `decode` | splits bytes into commands, `MGET` and `EXISTS` into keys; skips refused commands |
//! | `inline` | inline commands, which some clients send first |
//! | `session` | state of one connection, commands that it answers, operation of all others |
//! | `stateless` | commands that need no state, such as `PING` and `COMMAND` |
//! | `encode` | replies to commands about keys and metrics |
//! | `tracking` | client-side caching of one connection |
//! | `push` | push messages: invalidations for such clients |
//! | `upcoming` | finds keys before they are decoded |
//! | `writer` | data types of both versions |
//! | `sections` | sections of `INFO` |

pub(super) mod commands;
mod decode;
mod docs;
pub(super) mod encode;
mod frame;
mod inline;
mod push;
mod sections;
mod session;
mod stateless;
mod tracking;
mod upcoming;
pub(super) mod writer;

pub use commands::CommandSpec;
pub use decode::{DecodeEvent, RespRefusal};
pub use encode::{
    encode_admin_port, encode_number, encode_protocol_error, encode_refusal, encode_reply, encode_text,
    encode_tls_required, encode_too_many_clients, encode_ttl,
};
pub use frame::{Arguments, ProtocolError, parse_command_name};
pub use inline::is_resp;
pub use push::{WaitingPushes, encode_push};
pub use sections::InfoSections;
pub use session::{AfterReply, RespOperation, Session, Verify};
pub use writer::RespVersion;

/// Format of a reply: protocol version and kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RespReplyFormat {
    /// Protocol version at the time of the command.
    pub version: RespVersion,
    /// Property of the key or of the proxy that the reply holds.
    pub kind: ReplyKind,
}

/// Property of a key or of the proxy that a command asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyKind {
    /// `GET`: the value.
    Value,
    /// `STRLEN`: its length.
    Length,
    /// `GETRANGE`: the bytes from one index to another, both included. Negative ones count from the
    /// end.
    Range(i64, i64),
    /// `TTL`: seconds until the cached copy expires.
    Seconds,
    /// `PTTL`: milliseconds until the cached copy expires.
    Milliseconds,
    /// `DBSIZE`: number of cached keys.
    Entries,
    /// `INFO`: metrics of the proxy.
    Info(InfoSections),
}
