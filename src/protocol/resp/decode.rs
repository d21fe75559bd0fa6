//! A connection's bytes, cut into commands.
//!
//! Most commands are short: one is decoded once it is there whole, up to [`MAX_COMMAND_BYTES`]. Two kinds are not waited
//! for, so that their length costs no memory and no second look:
//!
//! - `MGET` and `EXISTS` come apart into their keys, one event for each.
//! - What will be refused (not known, too long, a wrong number of arguments) is read over, and refused at its end, where
//!   the next command begins. A client that sends `SET` with a megabyte gets to read why it may not.
//!
//! What is decoded does not depend on how the bytes are cut.

use super::super::Decoded;
use super::commands::{self, CommandSpec};
use super::frame::{Arguments, MAX_BULK_BYTES, MAX_PRINTED_BYTES, Printable, ProtocolError};
use super::frame::{argument_count, bulk_body, bulk_length, empty_line, whole_get};
use super::inline;
use crate::types::MAX_KEY_BYTES;
use std::fmt;

/// Longest command that is kept until it is whole, without its name: one argument of the greatest length, and some more.
const MAX_COMMAND_BYTES: usize = MAX_KEY_BYTES + 4096;

/// Most arguments of such a command. `HELLO` with all it can have takes six; names for `COMMAND DOCS` may be more.
pub const MAX_ARGS: i64 = 64;

/// Most keys of one command. What is kept of them until the reply is whole is 16 bytes for each, and its value.
const MAX_KEYS: i64 = 64 * 1024;

/// All arguments of a command together: what Redis takes for one.
const MAX_TOTAL_BYTES: usize = MAX_BULK_BYTES as usize;

/// What the bytes of a connection hold.
#[derive(Debug, PartialEq, Eq)]
pub enum DecodeEvent<'a> {
    /// Nothing that asks for an answer.
    Skipped,
    /// A command that may have these arguments, as far as their number goes.
    Command(&'static CommandSpec, Arguments<'a>),
    /// The beginning of a command about so many keys. Each of them is an event of its own.
    MultiStart(&'static CommandSpec, u32),
    /// The next of these keys.
    Key(&'a [u8]),
    /// The end of a command that must not be carried out. If it is one about many keys, it has begun already.
    Refuse(RespRefusal),
}

/// Why a command is not carried out. The connection goes on. As text: the reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RespRefusal {
    /// There is no such command here. The beginning of its name.
    Unknown(Box<[u8]>),
    /// The command of this name takes another number of arguments.
    WrongNumber(&'static str),
    /// The command of this name takes at most so many.
    TooMany(&'static str, i64),
    /// Its arguments are longer than what is taken.
    TooLong,
    /// An argument should be a number.
    NotANumber,
}

impl fmt::Display for RespRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RespRefusal::Unknown(name) => {
                let is_transaction = TRANSACTIONS.iter().any(|word| word.as_bytes().eq_ignore_ascii_case(name));
                let hint = match is_transaction {
                    true => "transactions are not supported; use a pipeline without one (redis-py: transaction=False)",
                    false => READ_ONLY,
                };
                write!(f, "ERR unknown command '{}': {hint}", Printable(name))
            }
            RespRefusal::WrongNumber(name) => f.write_str(&wrong_arity(name)),
            RespRefusal::TooMany(name, most) => {
                write!(f, "ERR too many arguments for '{name}' command; the limit is {most}")
            }
            RespRefusal::TooLong => {
                write!(f, "ERR argument too long; the limit is {MAX_KEY_BYTES} bytes")
            }
            RespRefusal::NotANumber => f.write_str("ERR value is not an integer or out of range"),
        }
    }
}

/// What is said of whatever is not answered here.
pub const READ_ONLY: &str = "this proxy is read-only; COMMAND DOCS lists the supported commands";

/// Redis' error for a command, or a subcommand, that takes another number of arguments.
pub fn wrong_arity(command: &str) -> String {
    format!("ERR wrong number of arguments for '{command}' command")
}

/// Commands that client libraries put around a pipeline, some of them unasked.
const TRANSACTIONS: [&str; 5] = ["multi", "exec", "discard", "watch", "unwatch"];

/// See the top of the file.
#[derive(Debug, Default)]
pub struct Decoder {
    state: DecodeState,
}

/// Where the next byte stands.
#[derive(Debug, Default)]
enum DecodeState {
    /// At the beginning of a command.
    #[default]
    Start,
    /// At a key; so many keys are to come, and so many bytes have come.
    Keys { left: u32, total: usize },
    /// In what is read over.
    Over(Box<SkippedCommand>),
}

/// The rest of a command that is read over.
#[derive(Debug)]
struct SkippedCommand {
    /// Bytes of the present argument that are to come.
    bytes: usize,
    /// How much of the CR and LF behind them is to come.
    end: usize,
    /// Arguments behind it.
    left: i64,
    /// Bytes of all arguments, as far as known.
    total: usize,
    refusal: RespRefusal,
}

/// Hands on what a frame has, unless there is nothing yet.
macro_rules! take {
    ($decoded:expr) => {
        match $decoded {
            Decoded::Complete(what, consumed) => (what, consumed),
            Decoded::Incomplete => return Decoded::Incomplete,
            Decoded::Invalid(violation) => return Decoded::Invalid(violation),
        }
    };
}

impl Decoder {
    /// The event at the beginning of all bytes that are not consumed. [`Decoded::Invalid`] means that there will
    /// never be another.
    pub fn decode<'a>(&mut self, input: &'a [u8]) -> Decoded<DecodeEvent<'a>, ProtocolError> {
        match &mut self.state {
            DecodeState::Start => self.command(input),
            &mut DecodeState::Keys { left, total } => self.key(input, left, total),
            DecodeState::Over(over) => {
                let (ended, consumed) = take!(over.read(input));
                if !ended {
                    return Decoded::Complete(DecodeEvent::Skipped, consumed);
                }
                let refusal = over.refusal.clone();
                self.state = DecodeState::Start;
                Decoded::Complete(DecodeEvent::Refuse(refusal), consumed)
            }
        }
    }

    /// Whether a command has begun and not come whole, beside what is not consumed.
    pub fn in_command(&self) -> bool {
        !matches!(self.state, DecodeState::Start)
    }

    fn command<'a>(&mut self, input: &'a [u8]) -> Decoded<DecodeEvent<'a>, ProtocolError> {
        // The usual one at a glance. It is what would be found below.
        if let Some((key, consumed)) = whole_get(input).filter(|(key, _)| key.len() <= MAX_KEY_BYTES) {
            return Decoded::Complete(DecodeEvent::Command(commands::get(), Arguments::one(key)), consumed);
        }
        if matches!(input.first(), Some(b'\r' | b'\n')) {
            let ((), consumed) = take!(empty_line(input));
            return Decoded::Complete(DecodeEvent::Skipped, consumed);
        }
        if !matches!(input.first(), None | Some(b'*')) {
            return match inline::decode(input) {
                Decoded::Complete(Ok((known, words)), consumed) => {
                    Decoded::Complete(DecodeEvent::Command(known, words), consumed)
                }
                Decoded::Complete(Err(refusal), consumed) => Decoded::Complete(DecodeEvent::Refuse(refusal), consumed),
                Decoded::Incomplete => Decoded::Incomplete,
                Decoded::Invalid(violation) => Decoded::Invalid(violation),
            };
        }
        let (count, head) = take!(argument_count(input));
        if count <= 0 {
            return Decoded::Complete(DecodeEvent::Skipped, head);
        }
        let name_frame = &input[head..];
        let (length, header) = take!(bulk_length(name_frame));
        if length > MAX_PRINTED_BYTES {
            let shown_end = header + MAX_PRINTED_BYTES;
            let Some(shown) = name_frame.get(header..shown_end) else { return Decoded::Incomplete };
            self.state = DecodeState::Over(Box::new(SkippedCommand {
                bytes: length - MAX_PRINTED_BYTES,
                end: 2,
                left: count - 1,
                total: length,
                refusal: RespRefusal::Unknown(shown.into()),
            }));
            return Decoded::Complete(DecodeEvent::Skipped, head + shown_end);
        }
        let (name, name_length) = take!(bulk_body(name_frame, length, header));
        let begun = head + name_length;
        let left = count - 1;
        let Some(known) = commands::find(name) else {
            return self.skip_rest(left, RespRefusal::Unknown(name.into()), begun);
        };
        if !known.accepts_arity(count) {
            return self.skip_rest(left, RespRefusal::WrongNumber(known.text), begun);
        }
        let most = if known.is_multi_key() { MAX_KEYS } else { MAX_ARGS };
        if left > most {
            return self.skip_rest(left, RespRefusal::TooMany(known.text, most), begun);
        }
        if known.is_multi_key() {
            self.state = DecodeState::Keys { left: left as u32, total: 0 };
            return Decoded::Complete(DecodeEvent::MultiStart(known, left as u32), begun);
        }
        let frames = &input[begun..];
        let mut at = 0;
        for _ in 0..left {
            let (length, header) = take!(bulk_length(&frames[at..]));
            if length > MAX_KEY_BYTES || at + header + length > MAX_COMMAND_BYTES {
                return self.skip_rest(left, RespRefusal::TooLong, begun);
            }
            at += take!(bulk_body(&frames[at..], length, header)).1;
        }
        Decoded::Complete(DecodeEvent::Command(known, Arguments::new(&frames[..at])), begun + at)
    }

    fn key<'a>(&mut self, input: &'a [u8], left: u32, total: usize) -> Decoded<DecodeEvent<'a>, ProtocolError> {
        let (length, header) = take!(bulk_length(input));
        let (left, total) = (left - 1, total + length);
        if total > MAX_TOTAL_BYTES {
            return Decoded::Invalid(ProtocolError::BulkLength);
        }
        if length > MAX_KEY_BYTES {
            let left = i64::from(left);
            self.state = DecodeState::Over(Box::new(SkippedCommand {
                bytes: length,
                end: 2,
                left,
                total,
                refusal: RespRefusal::TooLong,
            }));
            return Decoded::Complete(DecodeEvent::Skipped, header);
        }
        let (key, consumed) = take!(bulk_body(input, length, header));
        self.state = if left == 0 { DecodeState::Start } else { DecodeState::Keys { left, total } };
        Decoded::Complete(DecodeEvent::Key(key), consumed)
    }

    /// Reads over the rest of a command, `left` arguments, of which `consumed` bytes are decoded.
    fn skip_rest<'a>(
        &mut self,
        left: i64,
        refusal: RespRefusal,
        consumed: usize,
    ) -> Decoded<DecodeEvent<'a>, ProtocolError> {
        if left == 0 {
            return Decoded::Complete(DecodeEvent::Refuse(refusal), consumed);
        }
        self.state = DecodeState::Over(Box::new(SkippedCommand { bytes: 0, end: 0, left, total: 0, refusal }));
        Decoded::Complete(DecodeEvent::Skipped, consumed)
    }
}

impl SkippedCommand {
    /// Reads over what there is. Says whether that was all of the command.
    fn read(&mut self, input: &[u8]) -> Decoded<bool, ProtocolError> {
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
            match bulk_length(&input[at..]) {
                Decoded::Incomplete => break,
                Decoded::Invalid(violation) => return Decoded::Invalid(violation),
                Decoded::Complete(length, header) => {
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

    /// A command's bytes.
    fn command(words: &[&[u8]]) -> Vec<u8> {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend(format!("${}\r\n", word.len()).bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes
    }

    /// All that the pieces hold, as text; a piece is added whenever nothing can go on.
    fn decode(pieces: &[&[u8]]) -> Vec<String> {
        let (mut decoder, mut input, mut at, mut seen) = (Decoder::default(), Vec::new(), 0, Vec::new());
        for piece in pieces {
            input.extend_from_slice(piece);
            loop {
                match decoder.decode(&input[at..]) {
                    Decoded::Incomplete => break,
                    Decoded::Invalid(violation) => {
                        seen.push(violation.to_string());
                        return seen;
                    }
                    Decoded::Complete(event, consumed) => {
                        assert!(consumed > 0, "{event:?} out of nothing");
                        at += consumed;
                        match event {
                            DecodeEvent::Skipped => {}
                            DecodeEvent::Command(known, arguments) => {
                                let words: Vec<_> = arguments.map(|word| word.escape_ascii().to_string()).collect();
                                seen.push(format!("{} {}", known.text, words.join(" ")));
                            }
                            DecodeEvent::MultiStart(known, keys) => seen.push(format!("{} of {keys}", known.text)),
                            DecodeEvent::Key(key) => seen.push(format!("key {}", key.escape_ascii())),
                            DecodeEvent::Refuse(refusal) => seen.push(refusal.to_string()),
                        }
                    }
                }
            }
        }
        seen
    }

    fn check(bytes: &[u8], expected: &[&str]) {
        assert_eq!(decode(&[bytes]), expected);
        for cut in 0..bytes.len().min(300) {
            assert_eq!(decode(&[&bytes[..cut], &bytes[cut..]]), expected, "cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).take(70_000).collect();
        if single.len() == bytes.len() {
            assert_eq!(decode(&single), expected, "byte by byte");
        }
        // What comes behind belongs to the next command.
        let trailing = [bytes, b"*1\r\n$4\r\nPING\r\n*"].concat();
        let mut more = expected.to_vec();
        if !expected.last().is_some_and(|last| last.starts_with("expected") || last.starts_with("invalid")) {
            more.push("ping ");
        }
        assert_eq!(decode(&[&trailing]), more);
    }

    #[test]
    fn commands_are_whole_keys_come_one_by_one() {
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

    #[test]
    fn what_is_refused_is_read_over_to_its_end() {
        let unknown = |name| {
            format!("ERR unknown command '{name}': this proxy is read-only; COMMAND DOCS lists the supported commands")
        };
        check(&command(&[b"SET", b"a", b"*1\r\n$4\r\nQUIT\r\n"]), &[&unknown("SET")]);
        check(&command(&[b"FLUSHALL"]), &[&unknown("FLUSHALL")]);
        let transaction = decode(&[&command(&[b"Multi"])]);
        assert!(transaction[0].starts_with("ERR unknown command 'Multi': transactions are not supported"));
        check(&command(&[b""]), &[&unknown("")]);
        check(&command(&[b"a\r\nb'"]), &[&unknown(r"a\r\nb'")]);
        let (long_name, shown) = (b"x".repeat(200), unknown(&"x".repeat(64)));
        check(&command(&[&long_name, b"a"]), &[&shown]);
        check(&command(&[&long_name[..65]]), &[&shown]);
        let number = |name| format!("ERR wrong number of arguments for '{name}' command");
        check(&command(&[b"GET"]), &[&number("get")]);
        check(&command(&[b"GET", b"a", b"b"]), &[&number("get")]);
        check(&command(&[b"MGET"]), &[&number("mget")]);
        check(&command(&[b"DBSIZE", b"a"]), &[&number("dbsize")]);
        let many: Vec<&[u8]> = std::iter::repeat_n(&b"PING"[..], 66).collect();
        check(&command(&many), &["ERR too many arguments for 'ping' command; the limit is 64"]);
    }

    #[test]
    fn a_key_may_be_as_long_as_http_cannot_make_it_but_no_longer() {
        let long = vec![b'k'; MAX_KEY_BYTES];
        let longer = vec![b'k'; MAX_KEY_BYTES + 1];
        let too_long = RespRefusal::TooLong.to_string();
        let shown = String::from_utf8_lossy(&long).into_owned();
        check(&command(&[b"GET", &long]), &[&format!("get {shown}")]);
        check(&command(&[b"GET", &longer]), &[&too_long]);
        check(&command(&[b"MGET", b"a", &long]), &["mget of 2", "key a", &format!("key {shown}")]);
        check(&command(&[b"MGET", b"a", &longer, b"b"]), &["mget of 3", "key a", &too_long]);
        check(&command(&[b"HELLO", b"3", b"AUTH", &long, &long]), &[&too_long]);
    }

    #[test]
    fn too_many_keys_are_read_over() {
        let keys: Vec<&[u8]> = std::iter::repeat_n(&b"MGET"[..], MAX_KEYS as usize + 2).collect();
        assert_eq!(decode(&[&command(&keys)]), ["ERR too many arguments for 'mget' command; the limit is 65536"]);
        assert_eq!(decode(&[&command(&keys[1..])]).len(), MAX_KEYS as usize + 1);
    }

    #[test]
    fn what_is_no_command_is_told_in_redis_own_words() {
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

    #[test]
    fn all_arguments_of_a_command_together_are_bounded() {
        let mut decoder = Decoder::default();
        let chunk = vec![0; 1024 * 1024];
        let begin: [&[u8]; 2] = [b"*3\r\n$3\r\nSET\r\n", b"$536870912\r\n"];
        for bytes in begin.into_iter().chain(std::iter::repeat_n(chunk.as_slice(), 512)) {
            assert_eq!(decoder.decode(bytes), Decoded::Complete(DecodeEvent::Skipped, bytes.len()));
        }
        assert_eq!(decoder.decode(b"\r\n$1\r\n"), Decoded::Invalid(ProtocolError::BulkLength));
    }
}
