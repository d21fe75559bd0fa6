//! Inline commands: words on a line instead of frames (Redis serialization protocol, "Inline
//! commands").
//!
//! Some clients start with them: Erlang's eredis with `AUTH` and `SELECT`, fred with `HELLO`,
//! health checks with `PING`. Only the commands for such a start are accepted. The first line of a
//! connection may also be an HTTP request line. That ends with a version, which no browser omits.

use super::super::Decoded;
use super::commands::{self, CommandSpec};
use super::decode::{MAX_ARGS, RespRefusal};
use super::frame::{Arguments, ProtocolError};

/// Accepted commands. No HTTP method starts with one of them.
const INLINE_COMMANDS: [&[u8]; 6] = [b"AUTH", b"CLIENT", b"HELLO", b"PING", b"QUIT", b"SELECT"];

/// Maximum length of a line, as for an HTTP request head, which the first line may turn out to be.
const MAX_LINE_BYTES: usize = 16 * 1024;

/// Returns true if a connection that starts with `input` speaks RESP, and `None` if it takes more
/// bytes to decide.
pub fn is_resp(input: &[u8]) -> Option<bool> {
    if input.first() == Some(&b'*') {
        return Some(true);
    }
    match find_line(input) {
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

/// Decodes the inline command at the start of `input`, and returns its length in bytes.
pub fn decode(input: &[u8]) -> Decoded<Result<(&'static CommandSpec, Arguments<'_>), RespRefusal>, ProtocolError> {
    let (line, consumed) = match find_line(input) {
        Decoded::Complete(line, consumed) => (line, consumed),
        Decoded::Incomplete => return Decoded::Incomplete,
        Decoded::Invalid(error) => return Decoded::Invalid(error),
    };
    let (name, words) = line.split_at(first_word_end(line));
    let Some(spec) = commands::find(name) else { return Decoded::Invalid(ProtocolError::NoCommand(line[0])) };
    let (mut count, mut rest) = (1_i64, words);
    while let Some(next) = next_word(rest) {
        match next {
            Ok(word) => (count, rest) = (count + 1, word.rest),
            Err(error) => return Decoded::Invalid(error),
        }
    }
    Decoded::Complete(
        match spec.accepts_arity(count) {
            _ if count - 1 > MAX_ARGS => Err(RespRefusal::TooMany(spec.text, MAX_ARGS)),
            false => Err(RespRefusal::WrongNumber(spec.text)),
            true => Ok((spec, Arguments::inline(words))),
        },
        consumed,
    )
}

/// Returns the first line of `input` without its LF, if it starts with an accepted command.
fn find_line(input: &[u8]) -> Decoded<&[u8], ProtocolError> {
    let Some(&first) = input.first() else { return Decoded::Incomplete };
    let word = &input[..first_word_end(input)];
    let is_whole = word.len() < input.len();
    let may_be = |command: &&[u8]| match is_whole {
        true => command.eq_ignore_ascii_case(word),
        false => command.get(..word.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(word)),
    };
    if !INLINE_COMMANDS.iter().any(may_be) {
        return Decoded::Invalid(ProtocolError::NoCommand(first));
    }
    let longest = &input[..input.len().min(MAX_LINE_BYTES)];
    match longest.iter().position(|&byte| byte == b'\n') {
        Some(end) => Decoded::Complete(&input[..end], end + 1),
        None if input.len() < MAX_LINE_BYTES => Decoded::Incomplete,
        None => Decoded::Invalid(ProtocolError::LineLength),
    }
}

/// Returns the index at which the first word ends.
fn first_word_end(input: &[u8]) -> usize {
    input.iter().position(|byte| matches!(byte, b' ' | b'\r' | b'\n')).unwrap_or(input.len())
}

/// Word of a line, without its quotes, and the rest of the line.
pub struct Word<'a> {
    pub text: &'a [u8],
    pub rest: &'a [u8],
}

/// Returns the first word of a line. Quotes enclose whole words only, and an unclosed quote is an
/// error. Escapes in quotes are not decoded.
pub fn next_word(line: &[u8]) -> Option<Result<Word<'_>, ProtocolError>> {
    let line = line.trim_ascii_start();
    let quote = match line.first()? {
        quote @ (b'"' | b'\'') => *quote,
        _ => {
            let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
            let (text, rest) = line.split_at(end);
            let has_inner_quote = text.iter().any(|byte| matches!(byte, b'"' | b'\''));
            return Some(if has_inner_quote { Err(ProtocolError::Quotes) } else { Ok(Word { text, rest }) });
        }
    };
    let mut is_escaped = false;
    for (at, &byte) in line.iter().enumerate().skip(1) {
        if byte == quote && !is_escaped {
            let (text, rest) = (&line[1..at], &line[at + 1..]);
            return Some(match rest.first() {
                Some(byte) if !byte.is_ascii_whitespace() => Err(ProtocolError::Quotes),
                _ => Ok(Word { text, rest }),
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
            Decoded::Invalid(error) => error.to_string(),
            Decoded::Complete(Err(refusal), _) => refusal.to_string(),
            Decoded::Complete(Ok((spec, arguments)), consumed) => {
                let words: Vec<_> = arguments.map(|word| word.escape_ascii().to_string()).collect();
                format!("{} [{}] {consumed}", spec.text, words.join("|"))
            }
        }
    }

    /// White space separates words, quotes enclose whole ones, and the length is limited.
    #[test]
    fn line_is_split_into_words() {
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

    /// The first line selects the protocol, and a shorter prefix never selects another one.
    #[test]
    fn first_line_selects_protocol() {
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
            assert!(cuts.into_iter().all(|early| early.is_none() || early == expected), "{input:?}, a prefix");
        }
    }
}
