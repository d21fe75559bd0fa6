//! Frames of commands: `*3\r\n`, then each argument as `$5\r\nhello\r\n` (Redis serialization
//! protocol, "Sending commands to a Redis server").
//!
//! Commands are flat: every argument must be a bulk string. A length is rejected at its first
//! invalid byte. So the error does not depend on how the bytes are split. Lines need no limit of
//! their own, because a number in range is short.

use super::super::Decoded;
use super::inline::next_word;
use std::fmt;

/// Maximum number of arguments, the name included. The limit of Redis for 14 years.
pub const MAX_MULTIBULK_LENGTH: i64 = 1024 * 1024;

/// Maximum length of an argument: `proto-max-bulk-len` of Redis. Such an argument is skipped, not
/// stored.
pub const MAX_BULK_BYTES: i64 = 512 * 1024 * 1024;

/// Violation of the protocol by a client.
///
/// The start of the next command is then unknown, so the connection must close. The texts are those
/// of Redis if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// A command starts with this byte.
    NoCommand(u8),
    /// An argument starts with this byte.
    NoBulk(u8),
    /// The number of arguments is malformed or too large.
    ArgumentCount,
    /// A length is malformed or too large, or makes the command too large.
    BulkLength,
    /// An unauthenticated client sends too many arguments.
    UnauthenticatedArgumentCount,
    /// An unauthenticated client sends a too long argument.
    UnauthenticatedBulkLength,
    /// An argument does not end at its length.
    BulkEnd,
    /// An inline command is too long.
    LineLength,
    /// A quote of an inline command is not closed, or does not enclose a whole word.
    Quotes,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtocolError::NoCommand(byte) => write!(f, "expected '*', got '{}'", Printable(&[*byte])),
            ProtocolError::NoBulk(byte) => write!(f, "expected '$', got '{}'", Printable(&[*byte])),
            ProtocolError::ArgumentCount => f.write_str("invalid multibulk length"),
            ProtocolError::BulkLength => f.write_str("invalid bulk length"),
            ProtocolError::UnauthenticatedArgumentCount => f.write_str("unauthenticated multibulk length"),
            ProtocolError::UnauthenticatedBulkLength => f.write_str("unauthenticated bulk length"),
            ProtocolError::BulkEnd => f.write_str("expected CR and LF after a bulk string"),
            ProtocolError::LineLength => f.write_str("too big inline request"),
            ProtocolError::Quotes => f.write_str("unbalanced quotes in request"),
        }
    }
}

/// Client bytes for an error text: shortened, and escaped unless printable ASCII.
pub struct Printable<'a>(pub &'a [u8]);

/// Maximum number of client bytes in an error text.
pub const MAX_PRINTED_BYTES: usize = 64;

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(MAX_PRINTED_BYTES).try_for_each(|&byte| match byte {
            b' '..=b'~' => write!(f, "{}", char::from(byte)),
            _ => write!(f, "{}", byte.escape_ascii()),
        })
    }
}

/// Skips an empty line at the start of a command, as Redis does.
pub fn skip_empty_line(input: &[u8]) -> Decoded<(), ProtocolError> {
    match input {
        [b'\r'] => Decoded::Incomplete,
        [b'\r', b'\n', ..] => Decoded::Complete((), 2),
        [b'\n', ..] => Decoded::Complete((), 1),
        [other, ..] => Decoded::Invalid(ProtocolError::NoCommand(*other)),
        [] => Decoded::Incomplete,
    }
}

/// Parses the number of arguments at the start of a command. As in Redis, zero and less mean no
/// command.
pub fn parse_argument_count(input: &[u8]) -> Decoded<i64, ProtocolError> {
    match input.first() {
        None => Decoded::Incomplete,
        Some(b'*') => match parse_number(&input[1..], MAX_MULTIBULK_LENGTH) {
            Decoded::Complete(count, length) => Decoded::Complete(count, 1 + length),
            Decoded::Incomplete => Decoded::Incomplete,
            Decoded::Invalid(()) => Decoded::Invalid(ProtocolError::ArgumentCount),
        },
        Some(&other) => Decoded::Invalid(ProtocolError::NoCommand(other)),
    }
}

/// Parses the length of the argument at the start of `input`.
#[inline]
pub fn parse_bulk_length(input: &[u8]) -> Decoded<usize, ProtocolError> {
    match input.first() {
        None => Decoded::Incomplete,
        Some(b'$') => match parse_number(&input[1..], MAX_BULK_BYTES) {
            Decoded::Complete(bytes @ 0.., length) => Decoded::Complete(bytes as usize, 1 + length),
            Decoded::Incomplete => Decoded::Incomplete,
            Decoded::Complete(..) | Decoded::Invalid(()) => Decoded::Invalid(ProtocolError::BulkLength),
        },
        Some(&other) => Decoded::Invalid(ProtocolError::NoBulk(other)),
    }
}

/// Returns the key of the `GET` at the start of `input` and its length in bytes, if that is
/// complete.
#[inline]
pub fn parse_get(input: &[u8]) -> Option<(&[u8], usize)> {
    let [name @ .., b'\r', b'\n'] = input.strip_prefix(b"*2\r\n$3\r\n")?.first_chunk::<5>()? else { return None };
    let prefix_len = b"*2\r\n$3\r\nGET\r\n".len();
    let (key, consumed) = parse_argument(&input[prefix_len..])?;
    name.eq_ignore_ascii_case(b"GET").then_some((key, prefix_len + consumed))
}

/// Returns the name of the command at the start of `input`, also if its arguments are incomplete or
/// malformed. `None` if the name is.
///
/// For clients that are rejected. The decoder itself would lose its only caller, and with it the
/// place where the compiler inlines it (1.4 % of a pipelined hit).
pub fn parse_command_name(input: &[u8]) -> Option<&[u8]> {
    let input = input.trim_ascii_start();
    let Some(count) = input.strip_prefix(b"*") else {
        let end = input.iter().position(|byte| !byte.is_ascii_alphabetic())?;
        return Some(&input[..end]).filter(|name| !name.is_empty());
    };
    let Decoded::Complete(1.., consumed) = parse_number(count, MAX_MULTIBULK_LENGTH) else { return None };
    parse_argument(&count[consumed..]).map(|(name, _)| name)
}

/// Returns the argument at the start of `input` and the length of its frame, if the frame is
/// complete and valid.
#[inline]
pub fn parse_argument(input: &[u8]) -> Option<(&[u8], usize)> {
    let Decoded::Complete(bytes, header) = parse_bulk_length(input) else { return None };
    let Decoded::Complete(argument, consumed) = parse_bulk_body(input, bytes, header) else { return None };
    Some((argument, consumed))
}

/// Returns the argument of `bytes` bytes at the start of `input`, after `header` bytes of `$`,
/// digits, CR and LF.
pub fn parse_bulk_body(input: &[u8], bytes: usize, header: usize) -> Decoded<&[u8], ProtocolError> {
    let end = header + bytes;
    match input.get(end..) {
        Some([b'\r', b'\n', ..]) => Decoded::Complete(&input[header..end], end + 2),
        None | Some([] | [b'\r']) => Decoded::Incomplete,
        Some(_) => Decoded::Invalid(ProtocolError::BulkEnd),
    }
}

/// Parses a decimal number up to `max`, without plus, leading zeros or spaces, and its CR and LF.
///
/// Handles the usual one or two digits itself.
#[inline]
fn parse_number(input: &[u8], max: i64) -> Decoded<i64, ()> {
    debug_assert!(max >= 99, "numbers of two digits are in range");
    match input {
        [ones @ b'0'..=b'9', b'\r', b'\n', ..] => Decoded::Complete(i64::from(ones - b'0'), 3),
        [tens @ b'1'..=b'9', ones @ b'0'..=b'9', b'\r', b'\n', ..] => {
            Decoded::Complete(i64::from(tens - b'0') * 10 + i64::from(ones - b'0'), 4)
        }
        _ => parse_long_number(input, max),
    }
}

/// Parses a number of any length, as [`parse_number`] does.
fn parse_long_number(input: &[u8], max: i64) -> Decoded<i64, ()> {
    let first_digit = usize::from(input.first() == Some(&b'-'));
    let mut value = 0;
    for (at, &byte) in input.iter().enumerate().skip(first_digit) {
        match byte {
            b'0'..=b'9' if at == first_digit || value > 0 => value = value * 10 + i64::from(byte - b'0'),
            b'\r' if at > first_digit => {
                return match input.get(at + 1) {
                    None => Decoded::Incomplete,
                    Some(b'\n') => Decoded::Complete(if first_digit == 1 { -value } else { value }, at + 2),
                    Some(_) => Decoded::Invalid(()),
                };
            }
            _ => return Decoded::Invalid(()),
        }
        // Numbers below zero all mean "none", so the same limit serves them. Rejects -0, too.
        if value > max || (value == 0 && first_digit == 1) {
            return Decoded::Invalid(());
        }
    }
    Decoded::Incomplete
}

/// Arguments of a complete and valid command.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a> {
    /// Next argument, if it is parsed already.
    next: Option<&'a [u8]>,
    rest: Remaining<'a>,
}

/// Arguments that are not parsed.
#[derive(Clone, Copy, Debug)]
enum Remaining<'a> {
    /// Frames of bulk strings.
    Frames(&'a [u8]),
    /// Words of an inline command.
    Inline(&'a [u8]),
}

impl<'a> Arguments<'a> {
    /// Creates the arguments of `frames`, which must be complete and valid.
    pub fn new(frames: &'a [u8]) -> Arguments<'a> {
        Arguments { next: None, rest: Remaining::Frames(frames) }
    }

    /// Creates the arguments of an inline command from the valid text after its name.
    pub fn inline(words: &'a [u8]) -> Arguments<'a> {
        Arguments { next: None, rest: Remaining::Inline(words) }
    }

    /// Creates a single argument.
    pub fn single(argument: &'a [u8]) -> Arguments<'a> {
        Arguments { next: Some(argument), rest: Remaining::Frames(b"") }
    }
}

impl PartialEq for Arguments<'_> {
    /// Compares the arguments; frames and words may be equal.
    fn eq(&self, other: &Arguments<'_>) -> bool {
        Iterator::eq(*self, *other)
    }
}

impl Eq for Arguments<'_> {}

impl<'a> Iterator for Arguments<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.next.is_some() {
            return self.next.take();
        }
        match &mut self.rest {
            Remaining::Frames(frames) => {
                let (argument, consumed) = parse_argument(frames)?;
                *frames = &frames[consumed..];
                Some(argument)
            }
            Remaining::Inline(line) => {
                let next = next_word(line)?.ok()?;
                *line = next.rest;
                Some(next.text)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name of a command is found without its arguments, in both forms of a command.
    #[test]
    fn command_name_needs_no_arguments() {
        for (input, name) in [
            (&b"*2\r\n$4\r\nAUTH\r\n$6\r\nsec"[..], Some(&b"AUTH"[..])),
            (b"*1\r\n$4\r\nPING\r\n", Some(b"PING")),
            (b"\r\n*1\r\n$4\r\nPING\r\n", Some(b"PING")),
            (b"AUTH secret\r\n", Some(b"AUTH")),
            (b"*2\r\n$4\r\nAUT", None),
            (b"*0\r\n", None),
            (b"*-1\r\n", None),
            (b"*x", None),
            (b"*1\r\n:4\r\n", None),
            (b"PIN", None),
            (b"", None),
        ] {
            assert_eq!(parse_command_name(input), name, "{}", input.escape_ascii());
        }
    }

    /// A length is digits and an end of line. Everything else is invalid at the first wrong byte.
    #[test]
    fn length_is_digits_and_line_end() {
        for (text, count) in
            [("*1\r\n", 1), ("*0\r\n", 0), ("*-1\r\n", -1), ("*-10\r\n", -10), ("*1048576\r\n", 1_048_576)]
        {
            assert_eq!(parse_argument_count(text.as_bytes()), Decoded::Complete(count, text.len()), "{text:?}");
            for cut in 0..text.len() {
                assert_eq!(parse_argument_count(&text.as_bytes()[..cut]), Decoded::Incomplete, "{:?}", &text[..cut]);
            }
        }
        for text in ["*\r", "*a", "*1a", "*+1", "* 1", "*1 ", "*01", "*00", "*-0", "*--1", "*-\r", "*1\n", "*1\r\r"] {
            assert_eq!(
                parse_argument_count(text.as_bytes()),
                Decoded::Invalid(ProtocolError::ArgumentCount),
                "{text:?}"
            );
        }
        for text in ["*1048577", "*3000000000", "*99999999999999999999999", "*-99999999999999999999999", "*\0"] {
            assert_eq!(
                parse_argument_count(text.as_bytes()),
                Decoded::Invalid(ProtocolError::ArgumentCount),
                "{text:?}"
            );
        }
        assert_eq!(parse_argument_count(b"GET a\r\n"), Decoded::Invalid(ProtocolError::NoCommand(b'G')));
        assert_eq!(
            (skip_empty_line(b"\r\n*"), skip_empty_line(b"\r")),
            (Decoded::Complete((), 2), Decoded::Incomplete)
        );
        assert_eq!(skip_empty_line(b"\r*"), Decoded::Invalid(ProtocolError::NoCommand(b'\r')));
        assert_eq!(skip_empty_line(b"\n*"), Decoded::Complete((), 1));
        assert_eq!(parse_bulk_length(b"$536870912\r\n"), Decoded::Complete(536_870_912, 12));
        for text in ["$536870913", "$-1\r\n", "$-10\r\n", "$blabla", "$\r", "$1\n"] {
            assert_eq!(parse_bulk_length(text.as_bytes()), Decoded::Invalid(ProtocolError::BulkLength), "{text:?}");
        }
        assert_eq!(parse_bulk_length(b"*1\r\n"), Decoded::Invalid(ProtocolError::NoBulk(b'*')));
    }

    /// An argument ends at its length, with CR and LF after it.
    #[test]
    fn argument_ends_at_its_length() {
        let whole = b"$3\r\na\r\n\r\nmore";
        assert_eq!(parse_bulk_body(whole, 3, 4), Decoded::Complete(&b"a\r\n"[..], 9));
        for cut in 4..9 {
            assert_eq!(parse_bulk_body(&whole[..cut], 3, 4), Decoded::Incomplete);
        }
        for text in [&b"$1\r\nabc"[..], b"$1\r\na\n", b"$1\r\na\rb", b"$0\r\nx"] {
            let Decoded::Complete(bytes, header) = parse_bulk_length(text) else { panic!("no valid length") };
            assert_eq!(parse_bulk_body(text, bytes, header), Decoded::Invalid(ProtocolError::BulkEnd));
        }
        assert_eq!(Arguments::new(b"$1\r\na\r\n$0\r\n\r\n").collect::<Vec<_>>(), [&b"a"[..], b""]);
    }
}
