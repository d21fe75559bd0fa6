//! Decoder of the RESP commands of one connection.
//!
//! Most commands are short and are decoded once they are complete, up to [`MAX_COMMAND_BYTES`]. Two
//! kinds are decoded as they arrive, so a long command costs no memory and no second scan.
//!
//! - `MGET` and `EXISTS` are split into their keys, with one event for each.
//! - A command that will be refused is skipped: an unknown one, a long one, or one with a wrong
//!   number of arguments. Its error follows at its end. So a client that sends a `SET` of a
//!   megabyte can read the reason.
//!
//! Before authentication a decoder is restricted, as Redis is: only the commands that authenticate
//! reach the caller, in short forms. All others are skipped, `MGET` and `EXISTS` too.
//!
//! The events do not depend on how the bytes are split.

use super::super::Decoded;
use super::commands::{self, CommandSpec};
use super::frame::{Arguments, MAX_BULK_BYTES, MAX_PRINTED_BYTES, Printable, ProtocolError};
use super::frame::{parse_argument_count, parse_bulk_body, parse_bulk_length, parse_get, skip_empty_line};
use super::inline;
use crate::types::MAX_KEY_BYTES;
use std::fmt;

/// Limit on the arguments of a command that is decoded as a whole: the longest key, and some more.
const MAX_COMMAND_BYTES: usize = MAX_KEY_BYTES + 4096;

/// Limit on the number of arguments of such a command. `HELLO` takes up to six, `COMMAND DOCS` any
/// number of names.
pub const MAX_ARGS: i64 = 64;

/// Limit on the keys of one command. Until the reply is complete, each takes up to 16 bytes and its
/// value.
const MAX_KEYS: i64 = 64 * 1024;

/// Limits of Redis on the number of arguments and on the length of one, before authentication.
const MAX_UNAUTHENTICATED_ARGS: i64 = 10;
const MAX_UNAUTHENTICATED_BYTES: usize = 16 * 1024;

/// Limit on all arguments of one command together: the limit of Redis for a single one.
const MAX_TOTAL_BYTES: usize = MAX_BULK_BYTES as usize;

/// Event that the decoder found in the input.
#[derive(Debug, PartialEq, Eq)]
pub enum DecodeEvent<'a> {
    /// Bytes that need no reply: an empty line, an empty command, or a part of a skipped command.
    Skipped,
    /// A complete command with a valid number of arguments.
    Command(&'static CommandSpec, Arguments<'a>),
    /// Start of a command for this number of keys. Each key follows as an event.
    MultiStart(&'static CommandSpec, u32),
    /// The next key of that command.
    Key(&'a [u8]),
    /// End of a refused command. An `MGET` or `EXISTS` may have started before.
    Refuse(RespRefusal),
}

/// Reason why a command is refused. The connection stays open. The text is the error reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RespRefusal {
    /// Unknown command. Holds the start of its name.
    Unknown(Box<[u8]>),
    /// Wrong number of arguments for the command of this name.
    WrongNumber(&'static str),
    /// More arguments for the command of this name than this limit.
    TooMany(&'static str, i64),
    /// Arguments above the limit on their length, for the command of this name.
    TooLong(&'static str),
    /// Argument that is not an integer, for the command of this name.
    NotANumber(&'static str),
    /// The command of this name requires authentication.
    NoAuth(&'static str),
}

impl RespRefusal {
    /// Returns the name of the refused command, for the access log. The name of an unknown command
    /// is cut and has the bytes that the client sent.
    pub fn command(&self) -> &[u8] {
        match self {
            RespRefusal::Unknown(name) => name,
            RespRefusal::WrongNumber(name) | RespRefusal::TooMany(name, _) => name.as_bytes(),
            RespRefusal::TooLong(name) | RespRefusal::NotANumber(name) | RespRefusal::NoAuth(name) => name.as_bytes(),
        }
    }
}

impl fmt::Display for RespRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RespRefusal::Unknown(name) => {
                let is_transaction = TRANSACTION_COMMANDS.iter().any(|word| word.as_bytes().eq_ignore_ascii_case(name));
                let hint = match is_transaction {
                    true => "transactions are not supported; use a pipeline without one (redis-py: transaction=False)",
                    false => READ_ONLY,
                };
                write!(f, "ERR unknown command '{}': {hint}", Printable(name))
            }
            RespRefusal::WrongNumber(name) => f.write_str(&wrong_arity(name)),
            RespRefusal::TooMany(name, max) => {
                write!(f, "ERR too many arguments for '{name}' command; the limit is {max}")
            }
            RespRefusal::TooLong(_) => {
                write!(f, "ERR argument too long; the limit is {MAX_KEY_BYTES} bytes")
            }
            RespRefusal::NotANumber(_) => f.write_str("ERR value is not an integer or out of range"),
            RespRefusal::NoAuth(_) => f.write_str("NOAUTH Authentication required."),
        }
    }
}

/// Hint in the errors for unsupported commands.
pub const READ_ONLY: &str = "this proxy is read-only; COMMAND DOCS lists the supported commands";

/// Returns the error for a wrong number of arguments of a command or subcommand, as in Redis.
pub fn wrong_arity(command: &str) -> String {
    format!("ERR wrong number of arguments for '{command}' command")
}

/// Commands that client libraries put around a pipeline, some of them by default.
const TRANSACTION_COMMANDS: [&str; 5] = ["multi", "exec", "discard", "watch", "unwatch"];

/// Decoder of one connection, with its position in the current command.
#[derive(Debug, Default)]
pub struct Decoder {
    state: DecodeState,
    /// The client is not authenticated, and must be.
    is_restricted: bool,
}

/// Position of the next byte.
#[derive(Debug, Default)]
enum DecodeState {
    /// Start of a command.
    #[default]
    Start,
    /// Start of a key of the command `name`. `left` keys follow, and `total` bytes of keys were
    /// decoded.
    Keys { name: &'static str, left: u32, total: usize },
    /// Within a command that is skipped.
    Skipping(Box<SkippedCommand>),
}

/// Rest of a command that is skipped.
#[derive(Debug)]
struct SkippedCommand {
    /// Missing bytes of the current argument.
    bytes: usize,
    /// Missing bytes of the CR and LF after it.
    end: usize,
    /// Number of arguments after it.
    left: i64,
    /// Bytes of all arguments so far, including the current one.
    total: usize,
    /// Limit on the length of one.
    max_bytes: usize,
    refusal: RespRefusal,
}

/// Unwraps a complete result, or returns an incomplete or invalid one to the caller.
macro_rules! take {
    ($decoded:expr) => {
        match $decoded {
            Decoded::Complete(value, consumed) => (value, consumed),
            Decoded::Incomplete => return Decoded::Incomplete,
            Decoded::Invalid(error) => return Decoded::Invalid(error),
        }
    };
}

impl Decoder {
    /// Creates a decoder for a client that must authenticate first, if `is_restricted` is true.
    pub fn new(is_restricted: bool) -> Decoder {
        Decoder { state: DecodeState::Start, is_restricted }
    }

    /// Returns true if the client is not authenticated, and must be.
    pub fn is_restricted(&self) -> bool {
        self.is_restricted
    }

    /// Accepts all commands from now on. Called between two commands.
    pub fn lift_restriction(&mut self) {
        self.is_restricted = false;
    }

    /// Returns the number of keys that follow for the present command, 0 between two commands.
    /// `None` if no key may be looked up, or the present command is skipped.
    pub fn keys_left(&self) -> Option<u32> {
        match self.state {
            DecodeState::Start if !self.is_restricted => Some(0),
            DecodeState::Keys { left, .. } => Some(left),
            DecodeState::Start | DecodeState::Skipping(_) => None,
        }
    }

    /// Decodes the event at the start of `input`, the bytes that are not consumed. No event follows
    /// [`Decoded::Invalid`].
    pub fn decode<'a>(&mut self, input: &'a [u8]) -> Decoded<DecodeEvent<'a>, ProtocolError> {
        match &mut self.state {
            DecodeState::Start => self.decode_command(input),
            &mut DecodeState::Keys { name, left, total } => self.decode_key(input, name, left, total),
            DecodeState::Skipping(skipped) => {
                let (is_complete, consumed) = take!(skipped.skip(input));
                if !is_complete {
                    return Decoded::Complete(DecodeEvent::Skipped, consumed);
                }
                let refusal = skipped.refusal.clone();
                self.state = DecodeState::Start;
                Decoded::Complete(DecodeEvent::Refuse(refusal), consumed)
            }
        }
    }

    /// Returns true if a part of an incomplete command is consumed.
    pub fn in_command(&self) -> bool {
        !matches!(self.state, DecodeState::Start)
    }

    fn decode_command<'a>(&mut self, input: &'a [u8]) -> Decoded<DecodeEvent<'a>, ProtocolError> {
        // Fast path for the most frequent command. The code after it has the same result.
        if !self.is_restricted
            && let Some((key, consumed)) = parse_get(input).filter(|(key, _)| key.len() <= MAX_KEY_BYTES)
        {
            return Decoded::Complete(DecodeEvent::Command(commands::get(), Arguments::single(key)), consumed);
        }
        if matches!(input.first(), Some(b'\r' | b'\n')) {
            let ((), consumed) = take!(skip_empty_line(input));
            return Decoded::Complete(DecodeEvent::Skipped, consumed);
        }
        if !matches!(input.first(), None | Some(b'*')) {
            return match inline::decode(input) {
                Decoded::Complete(Ok((spec, _)), consumed) if self.rejects(spec) => {
                    Decoded::Complete(DecodeEvent::Refuse(RespRefusal::NoAuth(spec.text)), consumed)
                }
                Decoded::Complete(Ok((spec, words)), consumed) => {
                    Decoded::Complete(DecodeEvent::Command(spec, words), consumed)
                }
                Decoded::Complete(Err(refusal), consumed) => Decoded::Complete(DecodeEvent::Refuse(refusal), consumed),
                Decoded::Incomplete => Decoded::Incomplete,
                Decoded::Invalid(error) => Decoded::Invalid(error),
            };
        }
        let (count, head) = take!(parse_argument_count(input));
        if count <= 0 {
            return Decoded::Complete(DecodeEvent::Skipped, head);
        }
        if self.is_restricted && count > MAX_UNAUTHENTICATED_ARGS {
            return Decoded::Invalid(ProtocolError::UnauthenticatedArgumentCount);
        }
        let name_frame = &input[head..];
        let (length, header) = take!(parse_bulk_length(name_frame));
        if length > self.max_bytes() {
            return Decoded::Invalid(ProtocolError::UnauthenticatedBulkLength);
        }
        if length > MAX_PRINTED_BYTES {
            let printed_end = header + MAX_PRINTED_BYTES;
            let Some(printed) = name_frame.get(header..printed_end) else { return Decoded::Incomplete };
            self.state = DecodeState::Skipping(Box::new(SkippedCommand {
                bytes: length - MAX_PRINTED_BYTES,
                end: 2,
                left: count - 1,
                total: length,
                max_bytes: self.max_bytes(),
                refusal: RespRefusal::Unknown(printed.into()),
            }));
            return Decoded::Complete(DecodeEvent::Skipped, head + printed_end);
        }
        let (name, name_length) = take!(parse_bulk_body(name_frame, length, header));
        let name_end = head + name_length;
        let left = count - 1;
        let Some(spec) = commands::find(name) else {
            return self.skip_rest(left, RespRefusal::Unknown(name.into()), name_end);
        };
        if !spec.accepts_arity(count) {
            return self.skip_rest(left, RespRefusal::WrongNumber(spec.text), name_end);
        }
        if self.rejects(spec) {
            return self.skip_rest(left, RespRefusal::NoAuth(spec.text), name_end);
        }
        let max = if spec.is_multi_key() { MAX_KEYS } else { MAX_ARGS };
        if left > max {
            return self.skip_rest(left, RespRefusal::TooMany(spec.text, max), name_end);
        }
        if spec.is_multi_key() {
            self.state = DecodeState::Keys { name: spec.text, left: left as u32, total: 0 };
            return Decoded::Complete(DecodeEvent::MultiStart(spec, left as u32), name_end);
        }
        let frames = &input[name_end..];
        let mut at = 0;
        for _ in 0..left {
            let (length, header) = take!(parse_bulk_length(&frames[at..]));
            if length > self.max_bytes() {
                return Decoded::Invalid(ProtocolError::UnauthenticatedBulkLength);
            }
            if length > MAX_KEY_BYTES || at + header + length > MAX_COMMAND_BYTES {
                return self.skip_rest(left, RespRefusal::TooLong(spec.text), name_end);
            }
            at += take!(parse_bulk_body(&frames[at..], length, header)).1;
        }
        Decoded::Complete(DecodeEvent::Command(spec, Arguments::new(&frames[..at])), name_end + at)
    }

    fn decode_key<'a>(
        &mut self,
        input: &'a [u8],
        name: &'static str,
        left: u32,
        total: usize,
    ) -> Decoded<DecodeEvent<'a>, ProtocolError> {
        let (length, header) = take!(parse_bulk_length(input));
        let (left, total) = (left - 1, total + length);
        if total > MAX_TOTAL_BYTES {
            return Decoded::Invalid(ProtocolError::BulkLength);
        }
        if length > MAX_KEY_BYTES {
            let left = i64::from(left);
            self.state = DecodeState::Skipping(Box::new(SkippedCommand {
                bytes: length,
                end: 2,
                left,
                total,
                max_bytes: self.max_bytes(),
                refusal: RespRefusal::TooLong(name),
            }));
            return Decoded::Complete(DecodeEvent::Skipped, header);
        }
        let (key, consumed) = take!(parse_bulk_body(input, length, header));
        self.state = if left == 0 { DecodeState::Start } else { DecodeState::Keys { name, left, total } };
        Decoded::Complete(DecodeEvent::Key(key), consumed)
    }

    /// Starts to skip the `left` arguments of a refused command. Its first `consumed` bytes are
    /// decoded.
    fn skip_rest<'a>(
        &mut self,
        left: i64,
        refusal: RespRefusal,
        consumed: usize,
    ) -> Decoded<DecodeEvent<'a>, ProtocolError> {
        if left == 0 {
            return Decoded::Complete(DecodeEvent::Refuse(refusal), consumed);
        }
        let max_bytes = self.max_bytes();
        let skipped = SkippedCommand { bytes: 0, end: 0, left, total: 0, max_bytes, refusal };
        self.state = DecodeState::Skipping(Box::new(skipped));
        Decoded::Complete(DecodeEvent::Skipped, consumed)
    }

    /// Returns true if the client must authenticate before this command.
    fn rejects(&self, spec: &CommandSpec) -> bool {
        self.is_restricted && !spec.runs_unauthenticated()
    }

    /// Returns the limit on the length of an argument.
    fn max_bytes(&self) -> usize {
        if self.is_restricted { MAX_UNAUTHENTICATED_BYTES } else { MAX_TOTAL_BYTES }
    }
}

impl SkippedCommand {
    /// Skips the bytes of `input`. Returns true if the command ends in them.
    fn skip(&mut self, input: &[u8]) -> Decoded<bool, ProtocolError> {
        let mut at = 0;
        loop {
            let step = self.bytes.min(input.len() - at);
            (self.bytes, at) = (self.bytes - step, at + step);
            while self.bytes == 0 && self.end > 0 && at < input.len() {
                if input[at] != if self.end == 2 { b'\r' } else { b'\n' } {
                    return Decoded::Invalid(ProtocolError::BulkEnd);
                }
                (self.end, at) = (self.end - 1, at + 1);
            }
            if self.bytes > 0 || self.end > 0 {
                break;
            }
            if self.left == 0 {
                return Decoded::Complete(true, at);
            }
            match parse_bulk_length(&input[at..]) {
                Decoded::Incomplete => break,
                Decoded::Invalid(error) => return Decoded::Invalid(error),
                Decoded::Complete(length, header) => {
                    if length > self.max_bytes {
                        return Decoded::Invalid(ProtocolError::UnauthenticatedBulkLength);
                    }
                    self.total += length;
                    if self.total > MAX_TOTAL_BYTES {
                        return Decoded::Invalid(ProtocolError::BulkLength);
                    }
                    (self.bytes, self.end, self.left) = (length, 2, self.left - 1);
                    at += header;
                }
            }
        }
        if at == 0 { Decoded::Incomplete } else { Decoded::Complete(false, at) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encodes a command.
    fn command(words: &[&[u8]]) -> Vec<u8> {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend(format!("${}\r\n", word.len()).bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes
    }

    /// Decodes all pieces and returns the events as text. Adds a piece when the decoder needs
    /// bytes.
    fn decode(pieces: &[&[u8]]) -> Vec<String> {
        let (mut decoder, mut input, mut at, mut events) = (Decoder::default(), Vec::new(), 0, Vec::new());
        for piece in pieces {
            input.extend_from_slice(piece);
            loop {
                match decoder.decode(&input[at..]) {
                    Decoded::Incomplete => break,
                    Decoded::Invalid(error) => {
                        events.push(error.to_string());
                        return events;
                    }
                    Decoded::Complete(event, consumed) => {
                        assert!(consumed > 0, "{event:?} without a byte");
                        at += consumed;
                        match event {
                            DecodeEvent::Skipped => {}
                            DecodeEvent::Command(spec, arguments) => {
                                let words: Vec<_> = arguments.map(|word| word.escape_ascii().to_string()).collect();
                                events.push(format!("{} {}", spec.text, words.join(" ")));
                            }
                            DecodeEvent::MultiStart(spec, keys) => events.push(format!("{} of {keys}", spec.text)),
                            DecodeEvent::Key(key) => events.push(format!("key {}", key.escape_ascii())),
                            DecodeEvent::Refuse(refusal) => events.push(refusal.to_string()),
                        }
                    }
                }
            }
        }
        events
    }

    /// Checks the events of `bytes`: whole, split at every byte, byte by byte, and with trailing
    /// bytes.
    fn check(bytes: &[u8], expected: &[&str]) {
        assert_eq!(decode(&[bytes]), expected);
        for cut in 0..bytes.len().min(300) {
            assert_eq!(decode(&[&bytes[..cut], &bytes[cut..]]), expected, "split at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).take(70_000).collect();
        if single.len() == bytes.len() {
            assert_eq!(decode(&single), expected, "byte by byte");
        }
        // Trailing bytes belong to the next command.
        let trailing = [bytes, b"*1\r\n$4\r\nPING\r\n*"].concat();
        let mut more = expected.to_vec();
        if !expected.last().is_some_and(|last| last.starts_with("expected") || last.starts_with("invalid")) {
            more.push("ping ");
        }
        assert_eq!(decode(&[&trailing]), more);
    }

    /// A command is one event, but each key of `MGET` and `EXISTS` is an event.
    #[test]
    fn multi_key_commands_are_split() {
        check(&command(&[b"GET", b"a"]), &["get a"]);
        check(&command(&[b"gEt", b""]), &["get "]);
        check(&command(&[b"GET", b"\r\n$1\r\n\0\xff"]), &[r"get \r\n$1\r\n\x00\xff"]);
        check(
            &[command(&[b"GETRANGE", b"a", b"0", b"-1"]), command(&[b"PING"])].concat(),
            &["getrange a 0 -1", "ping "],
        );
        check(&command(&[b"MGET", b"a", b"b", b"a"]), &["mget of 3", "key a", "key b", "key a"]);
        check(&command(&[b"EXISTS", b"a"]), &["exists of 1", "key a"]);
        check(b"*0\r\n*-1\r\n\r\n*0\r\n", &[]);
    }

    /// A refused command is skipped up to its end, and then gets its error.
    #[test]
    fn refused_command_is_skipped() {
        let unknown = |name| {
            format!("ERR unknown command '{name}': this proxy is read-only; COMMAND DOCS lists the supported commands")
        };
        check(&command(&[b"SET", b"a", b"*1\r\n$4\r\nQUIT\r\n"]), &[&unknown("SET")]);
        check(&command(&[b"FLUSHALL"]), &[&unknown("FLUSHALL")]);
        let transaction = decode(&[&command(&[b"Multi"])]);
        assert!(transaction[0].starts_with("ERR unknown command 'Multi': transactions are not supported"));
        check(&command(&[b""]), &[&unknown("")]);
        check(&command(&[b"a\r\nb'"]), &[&unknown(r"a\r\nb'")]);
        let (long_name, printed) = (b"x".repeat(200), unknown(&"x".repeat(64)));
        check(&command(&[&long_name, b"a"]), &[&printed]);
        check(&command(&[&long_name[..65]]), &[&printed]);
        let number = |name| format!("ERR wrong number of arguments for '{name}' command");
        check(&command(&[b"GET"]), &[&number("get")]);
        check(&command(&[b"GET", b"a", b"b"]), &[&number("get")]);
        check(&command(&[b"MGET"]), &[&number("mget")]);
        check(&command(&[b"DBSIZE", b"a"]), &[&number("dbsize")]);
        let many: Vec<&[u8]> = std::iter::repeat_n(&b"PING"[..], 66).collect();
        check(&command(&many), &["ERR too many arguments for 'ping' command; the limit is 64"]);
    }

    /// A key of `MAX_KEY_BYTES` is accepted, and a longer one is refused.
    #[test]
    fn key_length_is_limited() {
        let long = vec![b'k'; MAX_KEY_BYTES];
        let longer = vec![b'k'; MAX_KEY_BYTES + 1];
        let too_long = RespRefusal::TooLong("get").to_string();
        let key = String::from_utf8_lossy(&long).into_owned();
        check(&command(&[b"GET", &long]), &[&format!("get {key}")]);
        check(&command(&[b"GET", &longer]), &[&too_long]);
        check(&command(&[b"MGET", b"a", &long]), &["mget of 2", "key a", &format!("key {key}")]);
        check(&command(&[b"MGET", b"a", &longer, b"b"]), &["mget of 3", "key a", &too_long]);
        check(&command(&[b"HELLO", b"3", b"AUTH", &long, &long]), &[&too_long]);
    }

    /// A command with more than `MAX_KEYS` keys is skipped.
    #[test]
    fn too_many_keys_are_skipped() {
        let keys: Vec<&[u8]> = std::iter::repeat_n(&b"MGET"[..], MAX_KEYS as usize + 2).collect();
        assert_eq!(decode(&[&command(&keys)]), ["ERR too many arguments for 'mget' command; the limit is 65536"]);
        assert_eq!(decode(&[&command(&keys[1..])]).len(), MAX_KEYS as usize + 1);
    }

    /// Invalid input gets the error text of Redis, however it is split.
    #[test]
    fn invalid_input_gets_redis_errors() {
        for (bytes, expected) in [
            (&b"GET a\r\n"[..], &["expected '*', got 'G'"][..]),
            (
                b"PING\r\n*1\r\n$4\r\nPING\r\nAUTH a b\nSET a b\n",
                &["ping ", "ping ", "auth a b", "expected '*', got 'S'"],
            ),
            (b"HELLO 3\r\nCLIENT \"a\r\n", &["hello 3", "unbalanced quotes in request"]),
            (b"SELECT\r\nQUIT\r\n", &["ERR wrong number of arguments for 'select' command", "quit "]),
            (b"*3000000000\r\n", &["invalid multibulk length"]),
            (b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\nfooz\r\n", &["expected '$', got 'f'"]),
            (b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$-10\r\n", &["invalid bulk length"]),
            (b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$2000000000\r\n", &["invalid bulk length"]),
            (b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$blabla\r\n", &["invalid bulk length"]),
            (b"*1\r\nfoo\r\n", &["expected '$', got 'f'"]),
            (b"*2\r\n$3\r\nGET\r\n*1\r\n$1\r\na\r\n", &["expected '$', got '*'"]),
            (b"*2\r\n$4\r\nMGET\r\n:1\r\n", &["mget of 1", "expected '$', got ':'"]),
            (b"*1\r\n$4\r\nPING\r\n\r\r", &["ping ", r"expected '*', got '\r'"]),
            (b"*2\r\n$3\r\nGET\r\n$1\r\nab\r\n", &["expected CR and LF after a bulk string"]),
            (b"*2\r\n$3\r\nSET\r\n$1\r\nab\r\n", &["expected CR and LF after a bulk string"]),
            (b"*3\r\n$3\r\nSET\r\n$536870912\r\n", &[]),
        ] {
            assert_eq!(decode(&[bytes]), expected);
            assert_eq!(decode(&bytes.chunks(1).collect::<Vec<_>>()), expected);
        }
    }

    /// The arguments of a skipped command are limited together.
    #[test]
    fn total_argument_bytes_are_limited() {
        let mut decoder = Decoder::default();
        let chunk = vec![0; 1024 * 1024];
        let header: [&[u8]; 2] = [b"*3\r\n$3\r\nSET\r\n", b"$536870912\r\n"];
        for bytes in header.into_iter().chain(std::iter::repeat_n(chunk.as_slice(), 512)) {
            assert_eq!(decoder.decode(bytes), Decoded::Complete(DecodeEvent::Skipped, bytes.len()));
        }
        assert_eq!(decoder.decode(b"\r\n$1\r\n"), Decoded::Invalid(ProtocolError::BulkLength));
    }
}
