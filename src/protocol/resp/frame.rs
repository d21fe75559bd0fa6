//! The frames of commands: `*3\r\n`, then each argument as `$5\r\nhello\r\n` (Redis serialization protocol, "Sending
//! commands to a Redis server"). Commands are flat: an argument that is anything but a bulk string is refused.
//!
//! A length is looked at byte by byte and refused at the first byte that cannot belong to it, so that what is refused, and
//! why, does not depend on how the bytes are cut; and no line needs a limit of its own, because a number that is still in
//! range is short.

use super::super::Decoded;
use super::inline::next_word;
use std::fmt;

/// Most arguments of a command, its name included. What Redis took for 14 years.
pub const MAX_ARGUMENTS: i64 = 1024 * 1024;

/// Longest argument: Redis' `proto-max-bulk-len`. Arguments of that length are skipped, not kept.
pub const MAX_BULK_BYTES: i64 = 512 * 1024 * 1024;

/// Why what a client sends is not the Redis protocol. Where the next command begins is not known then: the connection
/// must end. The texts are Redis' own, where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// A command that begins with this byte.
    NoCommand(u8),
    /// An argument that begins with this byte.
    NoBulk(u8),
    /// A number of arguments that is none, or is too large.
    ArgumentCount,
    /// A length that is none, or is too large, or makes the command too large.
    BulkLength,
    /// An argument that does not end where its length says.
    BulkEnd,
    /// An inline command that is too long.
    LineLength,
    /// An inline command with a quote that does not end, or does not end its word.
    Quotes,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtocolError::NoCommand(byte) => write!(f, "expected '*', got '{}'", Printable(&[*byte])),
            ProtocolError::NoBulk(byte) => write!(f, "expected '$', got '{}'", Printable(&[*byte])),
            ProtocolError::ArgumentCount => f.write_str("invalid multibulk length"),
            ProtocolError::BulkLength => f.write_str("invalid bulk length"),
            ProtocolError::BulkEnd => f.write_str("expected CR and LF after a bulk string"),
            ProtocolError::LineLength => f.write_str("too big inline request"),
            ProtocolError::Quotes => f.write_str("unbalanced quotes in request"),
        }
    }
}

/// A client's bytes in an error text: as many as fit there, and none that would break the line.
pub struct Printable<'a>(pub &'a [u8]);

/// Most bytes of a word that are told back.
pub const MAX_PRINTED_BYTES: usize = 64;

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(MAX_PRINTED_BYTES).try_for_each(|&byte| match byte {
            b' '..=b'~' => write!(f, "{}", char::from(byte)),
            _ => write!(f, "{}", byte.escape_ascii()),
        })
    }
}

/// Reads over an empty line, which Redis takes for no command. Only where one could begin.
pub fn empty_line(input: &[u8]) -> Decoded<(), ProtocolError> {
    match input {
        [b'\r'] => Decoded::Incomplete,
        [b'\r', b'\n', ..] => Decoded::Complete((), 2),
        [b'\n', ..] => Decoded::Complete((), 1),
        [other, ..] => Decoded::Invalid(ProtocolError::NoCommand(*other)),
        [] => Decoded::Incomplete,
    }
}

/// The number of arguments at the beginning of a command. Zero and less mean that there is none, as in Redis.
pub fn argument_count(input: &[u8]) -> Decoded<i64, ProtocolError> {
    match input.first() {
        None => Decoded::Incomplete,
        Some(b'*') => match number(&input[1..], MAX_ARGUMENTS) {
            Decoded::Complete(count, length) => Decoded::Complete(count, 1 + length),
            Decoded::Incomplete => Decoded::Incomplete,
            Decoded::Invalid(()) => Decoded::Invalid(ProtocolError::ArgumentCount),
        },
        Some(&other) => Decoded::Invalid(ProtocolError::NoCommand(other)),
    }
}

/// The length of the argument at the beginning of `input`.
#[inline]
pub fn bulk_length(input: &[u8]) -> Decoded<usize, ProtocolError> {
    match input.first() {
        None => Decoded::Incomplete,
        Some(b'$') => match number(&input[1..], MAX_BULK_BYTES) {
            Decoded::Complete(bytes @ 0.., length) => Decoded::Complete(bytes as usize, 1 + length),
            Decoded::Incomplete => Decoded::Incomplete,
            Decoded::Complete(..) | Decoded::Invalid(()) => Decoded::Invalid(ProtocolError::BulkLength),
        },
        Some(&other) => Decoded::Invalid(ProtocolError::NoBulk(other)),
    }
}

/// The key of the `GET` at the beginning of `input`, and how many bytes that takes, if it is one and there whole.
#[inline]
pub fn whole_get(input: &[u8]) -> Option<(&[u8], usize)> {
    let [name @ .., b'\r', b'\n'] = input.strip_prefix(b"*2\r\n$3\r\n")?.first_chunk::<5>()? else { return None };
    let begun = b"*2\r\n$3\r\nGET\r\n".len();
    let Decoded::Complete(length, header) = bulk_length(&input[begun..]) else { return None };
    let Decoded::Complete(key, consumed) = bulk_body(&input[begun..], length, header) else { return None };
    name.eq_ignore_ascii_case(b"GET").then_some((key, begun + consumed))
}

/// The argument at the beginning of `input`, its length known: `header` bytes of `$`, digits, CR and LF.
pub fn bulk_body(input: &[u8], bytes: usize, header: usize) -> Decoded<&[u8], ProtocolError> {
    let end = header + bytes;
    match input.get(end..) {
        Some([b'\r', b'\n', ..]) => Decoded::Complete(&input[header..end], end + 2),
        None | Some([] | [b'\r']) => Decoded::Incomplete,
        Some(_) => Decoded::Invalid(ProtocolError::BulkEnd),
    }
}

/// A decimal number up to `most`, and the CR and LF behind it: no plus, no leading zeros, no space. Most are short.
#[inline]
fn number(input: &[u8], most: i64) -> Decoded<i64, ()> {
    debug_assert!(most >= 99, "none of these is out of range");
    match input {
        [ones @ b'0'..=b'9', b'\r', b'\n', ..] => Decoded::Complete(i64::from(ones - b'0'), 3),
        [tens @ b'1'..=b'9', ones @ b'0'..=b'9', b'\r', b'\n', ..] => {
            Decoded::Complete(i64::from(tens - b'0') * 10 + i64::from(ones - b'0'), 4)
        }
        _ => any_number(input, most),
    }
}

/// The same, of any length.
fn any_number(input: &[u8], most: i64) -> Decoded<i64, ()> {
    let digits_from = usize::from(input.first() == Some(&b'-'));
    let mut value = 0;
    for (at, &byte) in input.iter().enumerate().skip(digits_from) {
        match byte {
            b'0'..=b'9' if at == digits_from || value > 0 => value = value * 10 + i64::from(byte - b'0'),
            b'\r' if at > digits_from => {
                return match input.get(at + 1) {
                    None => Decoded::Incomplete,
                    Some(b'\n') => Decoded::Complete(if digits_from == 1 { -value } else { value }, at + 2),
                    Some(_) => Decoded::Invalid(()),
                };
            }
            _ => return Decoded::Invalid(()),
        }
        // Numbers below zero mean nothing but "none", so that they need no range of their own.
        if value > most || (value == 0 && digits_from == 1) {
            return Decoded::Invalid(());
        }
    }
    Decoded::Incomplete
}

/// The arguments of a command that is there whole, and was checked.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a> {
    /// The next one, where it was found already.
    next: Option<&'a [u8]>,
    rest: Rest<'a>,
}

/// Those that are left behind it.
#[derive(Clone, Copy, Debug)]
enum Rest<'a> {
    /// As frames.
    Frames(&'a [u8]),
    /// As words of an inline command.
    Line(&'a [u8]),
}

impl<'a> Arguments<'a> {
    /// `frames` holds whole arguments and nothing else.
    pub fn new(frames: &'a [u8]) -> Arguments<'a> {
        Arguments { next: None, rest: Rest::Frames(frames) }
    }

    /// `words` is what follows the name of an inline command that was checked.
    pub fn line(words: &'a [u8]) -> Arguments<'a> {
        Arguments { next: None, rest: Rest::Line(words) }
    }

    /// One argument and no more.
    pub fn one(argument: &'a [u8]) -> Arguments<'a> {
        Arguments { next: Some(argument), rest: Rest::Frames(b"") }
    }
}

impl PartialEq for Arguments<'_> {
    /// Whether they are the same, however they were found.
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
            Rest::Frames(frames) => {
                let Decoded::Complete(bytes, header) = bulk_length(frames) else { return None };
                let Decoded::Complete(argument, consumed) = bulk_body(frames, bytes, header) else { return None };
                *frames = &frames[consumed..];
                Some(argument)
            }
            Rest::Line(line) => {
                let next = next_word(line)?.ok()?;
                *line = next.behind;
                Some(next.word)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_digits_and_an_end_of_line_and_nothing_else() {
        for (text, count) in
            [("*1\r\n", 1), ("*0\r\n", 0), ("*-1\r\n", -1), ("*-10\r\n", -10), ("*1048576\r\n", 1_048_576)]
        {
            assert_eq!(argument_count(text.as_bytes()), Decoded::Complete(count, text.len()), "{text:?}");
            for cut in 0..text.len() {
                assert_eq!(argument_count(&text.as_bytes()[..cut]), Decoded::Incomplete, "{:?}", &text[..cut]);
            }
        }
        for text in ["*\r", "*a", "*1a", "*+1", "* 1", "*1 ", "*01", "*00", "*-0", "*--1", "*-\r", "*1\n", "*1\r\r"] {
            assert_eq!(argument_count(text.as_bytes()), Decoded::Invalid(ProtocolError::ArgumentCount), "{text:?}");
        }
        for text in ["*1048577", "*3000000000", "*99999999999999999999999", "*-99999999999999999999999", "*\0"] {
            assert_eq!(argument_count(text.as_bytes()), Decoded::Invalid(ProtocolError::ArgumentCount), "{text:?}");
        }
        assert_eq!(argument_count(b"GET a\r\n"), Decoded::Invalid(ProtocolError::NoCommand(b'G')));
        assert_eq!((empty_line(b"\r\n*"), empty_line(b"\r")), (Decoded::Complete((), 2), Decoded::Incomplete));
        assert_eq!(empty_line(b"\r*"), Decoded::Invalid(ProtocolError::NoCommand(b'\r')));
        assert_eq!(empty_line(b"\n*"), Decoded::Complete((), 1));
        assert_eq!(bulk_length(b"$536870912\r\n"), Decoded::Complete(536_870_912, 12));
        for text in ["$536870913", "$-1\r\n", "$-10\r\n", "$blabla", "$\r", "$1\n"] {
            assert_eq!(bulk_length(text.as_bytes()), Decoded::Invalid(ProtocolError::BulkLength), "{text:?}");
        }
        assert_eq!(bulk_length(b"*1\r\n"), Decoded::Invalid(ProtocolError::NoBulk(b'*')));
    }

    #[test]
    fn an_argument_ends_where_its_length_says() {
        let whole = b"$3\r\na\r\n\r\nmore";
        assert_eq!(bulk_body(whole, 3, 4), Decoded::Complete(&b"a\r\n"[..], 9));
        for cut in 4..9 {
            assert_eq!(bulk_body(&whole[..cut], 3, 4), Decoded::Incomplete);
        }
        for text in [&b"$1\r\nabc"[..], b"$1\r\na\n", b"$1\r\na\rb", b"$0\r\nx"] {
            let Decoded::Complete(bytes, header) = bulk_length(text) else { panic!("no length") };
            assert_eq!(bulk_body(text, bytes, header), Decoded::Invalid(ProtocolError::BulkEnd));
        }
        assert_eq!(Arguments::new(b"$1\r\na\r\n$0\r\n\r\n").collect::<Vec<_>>(), [&b"a"[..], b""]);
    }
}
