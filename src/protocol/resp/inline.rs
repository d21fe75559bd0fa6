//! Inline commands: words on a line instead of frames (Redis serialization protocol, "Inline commands").
//!
//! Some clients begin with one: Erlang's eredis with `AUTH` and `SELECT`, fred with `HELLO`, health
//! checks with `PING`. Only the commands that such a beginning needs are accepted. The first line of
//! a connection may also be a request line of HTTP, which ends with a version: a browser cannot send
//! one without.

use super::super::Decoded;
use super::commands::{self, CommandSpec};
use super::decode::{MAX_ARGS, RespRefusal};
use super::frame::{Arguments, ProtocolError};

/// The commands, by which no method of HTTP begins.
const COMMANDS: [&[u8]; 6] = [b"AUTH", b"CLIENT", b"HELLO", b"PING", b"QUIT", b"SELECT"];

/// Longest line, in bytes. The first one may turn out to be a head of HTTP, which is bounded alike.
const MAX_LINE_BYTES: usize = 16 * 1024;

/// Returns true if a connection that begins with `input` speaks the Redis protocol, and nothing where more bytes decide.
pub fn is_resp(input: &[u8]) -> Option<bool> {
    if input.first() == Some(&b'*') {
        return Some(true);
    }
    match line(input) {
        Decoded::Complete(line, _) => Some(!ends_with_http_version(line)),
        Decoded::Incomplete => None,
        Decoded::Invalid(_) => Some(false),
    }
}

fn ends_with_http_version(line: &[u8]) -> bool {
    let last = line.trim_ascii_end().rsplit(u8::is_ascii_whitespace).next().unwrap_or_default();
    let [name @ .., b'/', major, b'.', minor] = last else { return false };
    name.eq_ignore_ascii_case(b"HTTP") && major.is_ascii_digit() && minor.is_ascii_digit()
}

/// Decodes the inline command at the beginning of `input`, and how many bytes it took.
pub fn decode(input: &[u8]) -> Decoded<Result<(&'static CommandSpec, Arguments<'_>), RespRefusal>, ProtocolError> {
    let (line, consumed) = match line(input) {
        Decoded::Complete(line, consumed) => (line, consumed),
        Decoded::Incomplete => return Decoded::Incomplete,
        Decoded::Invalid(violation) => return Decoded::Invalid(violation),
    };
    let (name, words) = line.split_at(word_end(line));
    let Some(known) = commands::find(name) else { return Decoded::Invalid(ProtocolError::NoCommand(line[0])) };
    let (mut count, mut rest) = (1_i64, words);
    while let Some(next) = next_word(rest) {
        match next {
            Ok(Word { behind, .. }) => (count, rest) = (count + 1, behind),
            Err(violation) => return Decoded::Invalid(violation),
        }
    }
    Decoded::Complete(
        match known.accepts_arity(count) {
            _ if count - 1 > MAX_ARGS => Err(RespRefusal::TooMany(known.text, MAX_ARGS)),
            false => Err(RespRefusal::WrongNumber(known.text)),
            true => Ok((known, Arguments::line(words))),
        },
        consumed,
    )
}

/// Finds the line that begins with one of the commands, without its end.
fn line(input: &[u8]) -> Decoded<&[u8], ProtocolError> {
    let Some(&first) = input.first() else { return Decoded::Incomplete };
    let word = &input[..word_end(input)];
    let is_whole = word.len() < input.len();
    let may_be = |command: &&[u8]| match is_whole {
        true => command.eq_ignore_ascii_case(word),
        false => command.get(..word.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(word)),
    };
    if !COMMANDS.iter().any(may_be) {
        return Decoded::Invalid(ProtocolError::NoCommand(first));
    }
    let longest = &input[..input.len().min(MAX_LINE_BYTES)];
    match longest.iter().position(|&byte| byte == b'\n') {
        Some(end) => Decoded::Complete(&input[..end], end + 1),
        None if input.len() < MAX_LINE_BYTES => Decoded::Incomplete,
        None => Decoded::Invalid(ProtocolError::LineLength),
    }
}

/// Returns where the first word ends.
fn word_end(input: &[u8]) -> usize {
    input.iter().position(|byte| matches!(byte, b' ' | b'\r' | b'\n')).unwrap_or(input.len())
}

/// A word of a line, without its quotes, and what stands behind it.
pub struct Word<'a> {
    pub word: &'a [u8],
    pub behind: &'a [u8],
}

/// Finds the first word of a line. Quotes enclose whole words only, and a quote without its end is
/// an error. Escapes in quotes are left as they are.
pub fn next_word(line: &[u8]) -> Option<Result<Word<'_>, ProtocolError>> {
    let line = line.trim_ascii_start();
    let quote = match line.first()? {
        quote @ (b'"' | b'\'') => *quote,
        _ => {
            let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
            let (word, behind) = line.split_at(end);
            let is_quoted_within = word.iter().any(|byte| matches!(byte, b'"' | b'\''));
            return Some(if is_quoted_within { Err(ProtocolError::Quotes) } else { Ok(Word { word, behind }) });
        }
    };
    let mut is_escaped = false;
    for (at, &byte) in line.iter().enumerate().skip(1) {
        if byte == quote && !is_escaped {
            let (word, behind) = (&line[1..at], &line[at + 1..]);
            return Some(match behind.first() {
                Some(byte) if !byte.is_ascii_whitespace() => Err(ProtocolError::Quotes),
                _ => Ok(Word { word, behind }),
            });
        }
        is_escaped = byte == b'\\' && !is_escaped;
    }
    Some(Err(ProtocolError::Quotes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(input: &str) -> String {
        match decode(input.as_bytes()) {
            Decoded::Incomplete => "incomplete".into(),
            Decoded::Invalid(violation) => violation.to_string(),
            Decoded::Complete(Err(refusal), _) => refusal.to_string(),
            Decoded::Complete(Ok((known, arguments)), consumed) => {
                let words: Vec<_> = arguments.map(|word| word.escape_ascii().to_string()).collect();
                format!("{} [{}] {consumed}", known.text, words.join("|"))
            }
        }
    }

    #[test]
    fn words_are_split_at_white_space() {
        for (line, expected) in [
            ("PING\r\n", "ping [] 6"),
            ("ping\n", "ping [] 5"),
            ("AUTH secret\r\nGET", "auth [secret] 13"),
            ("Hello 3 AUTH  user\tword \r\n", "hello [3|AUTH|user|word] 26"),
            ("PING \"a b\" \r\n", "ping [a b] 13"),
            ("PING 'it\\'s'\r\n", "ping [it\\\\\\'s] 14"),
            ("PING \"\"\r\n", "ping [] 9"),
            ("PING a\rb\r\n", "ping [a|b] 10"),
            ("SELECT\r\n", "ERR wrong number of arguments for 'select' command"),
            ("PING \"a\r\n", "unbalanced quotes in request"),
            ("PING \"a\"b\r\n", "unbalanced quotes in request"),
            ("PING a\"b\"\r\n", "unbalanced quotes in request"),
            ("GET a\r\n", "expected '*', got 'G'"),
            ("PINGS\r\n", "expected '*', got 'P'"),
            ("PI", "incomplete"),
            ("PING a", "incomplete"),
        ] {
            assert_eq!(decoded(line), expected, "{line:?}");
        }
        assert_eq!(
            decoded(&format!("CLIENT {}\r\n", "a ".repeat(65))),
            "ERR too many arguments for 'client' command; the limit is 64"
        );
        let at_most = "x".repeat(MAX_LINE_BYTES - "PING \n".len());
        assert!(decoded(&format!("PING {at_most}\n")).starts_with("ping [xxx"));
        assert_eq!(decoded(&format!("PING {at_most}x\n")), "too big inline request");
    }

    /// A first line of HTTP stays one, and how it is cut changes nothing.
    #[test]
    fn first_line_tells_protocol_once() {
        let long = format!("PING {}", "x".repeat(MAX_LINE_BYTES));
        for (input, expected) in [
            ("*1\r\n", Some(true)),
            ("AUTH word\r\n", Some(true)),
            ("select 0\n", Some(true)),
            ("CLIENT SETNAME a\r\nHTTP/1.1", Some(true)),
            ("PING /key/a HTTP/1.1\r\n", Some(false)),
            ("PING / http/1.1 \r\n", Some(false)),
            ("AUTH HTTP/abc\r\n", Some(true)),
            ("PING \"a HTTP/1.1\"\r\n", Some(true)),
            ("CLIENT SETNAME HTTP/1.1 x\r\n", Some(true)),
            ("QUIT\tx\r\n", Some(false)),
            ("POST / HTTP/1.1\r\n", Some(false)),
            ("GET a\r\n", Some(false)),
            ("SET a b\r\n", Some(false)),
            ("\r\nPING\r\n", Some(false)),
            (long.as_str(), Some(false)),
            ("", None),
            ("HE", None),
            ("HELLO 3\r", None),
        ] {
            assert_eq!(is_resp(input.as_bytes()), expected, "{input:?}");
            let cuts = (0..input.len()).map(|cut| is_resp(&input.as_bytes()[..cut]));
            assert!(cuts.into_iter().all(|early| early.is_none() || early == expected), "{input:?}, in pieces");
        }
    }
}
