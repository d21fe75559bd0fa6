//! Fuzz check of the Redis protocol: the result does not depend on how the input is split, words
//! are decoded as sent, incomplete commands occupy little memory, and nothing runs before the
//! password if one is required.

use super::choices::{Choices, expand};
use segment_redis_proxy::client_auth::Verdict;
use segment_redis_proxy::protocol::Decoded;
use segment_redis_proxy::protocol::resp::{AfterReply, DecodeEvent, RespOperation, Session};
use segment_redis_proxy::types::MAX_KEY_BYTES;

/// Maximum of input bytes: a few times the longest incomplete command.
const MAX_BYTES: usize = 400 * 1024;

/// Maximum of bytes stored of an incomplete command: one argument of maximum length, with a margin.
const MAX_UNPARSED: usize = MAX_KEY_BYTES + 8 * 1024;

/// Password of the client, and the commands that run before it.
const PASSWORD: &[u8] = b"word";
const UNAUTHENTICATED: [&[u8]; 4] = [b"auth", b"hello", b"quit", b"reset"];

/// Result of decoding a whole input.
#[derive(Debug, Default, PartialEq)]
struct Decoding {
    /// Words of each command; empty for a refused command.
    commands: Vec<Vec<Vec<u8>>>,
    /// Result of each command, and the reason for the end.
    results: Vec<String>,
}

/// Checks one input.
pub fn check(input: &[u8]) {
    let (mut choices, wire) = Choices::split(input);
    let times = [1, 1, 1, 2, 50][usize::from(choices.bytes[3] % 5)];
    let wire = expand(wire, times, MAX_BYTES);
    let requires_auth = choices.bytes[2] & 1 != 0;
    let whole = Decoder::new(requires_auth).decode_all(&[&wire]);
    let mut pieces = Vec::new();
    let mut at = 0;
    choices.for_each_piece(&wire, |piece| {
        pieces.push(&wire[at..at + piece.len()]);
        at += piece.len();
        true
    });
    assert_eq!(Decoder::new(requires_auth).decode_all(&pieces), whole, "in pieces and at once");
    if requires_auth && !wire.windows(PASSWORD.len()).any(|window| window == PASSWORD) {
        let runs = |words: &Vec<Vec<u8>>| !words.is_empty() && !UNAUTHENTICATED.contains(&&*words[0]);
        assert!(!whole.commands.iter().any(runs), "a command runs before authentication: {whole:?}");
    }
    for (decoded, sent) in whole.commands.iter().zip(parse_commands(&wire)) {
        assert!(decoded.is_empty() || is_same(decoded, &sent), "{decoded:?} was decoded from {sent:?}");
    }
}

/// Returns true if the words are equal, apart from the case of the command name.
fn is_same(decoded: &[Vec<u8>], sent: &[&[u8]]) -> bool {
    decoded[0].eq_ignore_ascii_case(sent[0]) && decoded[1..].iter().eq(sent[1..].iter())
}

/// Decoder of one connection, with its results.
struct Decoder {
    session: Session,
    decoding: Decoding,
}

impl Decoder {
    fn new(requires_auth: bool) -> Decoder {
        Decoder { session: Session::new(7, 0, requires_auth), decoding: Decoding::default() }
    }

    /// Decodes all pieces.
    fn decode_all(mut self, pieces: &[&[u8]]) -> Decoding {
        let mut unparsed = Vec::new();
        for piece in pieces {
            unparsed.extend_from_slice(piece);
            let mut at = 0;
            while let Some(consumed) = self.step(&unparsed[at..]) {
                at += consumed;
            }
            if self.decoding.results.last().is_some_and(|last| last.starts_with("END")) {
                break;
            }
            unparsed.drain(..at);
            assert!(unparsed.len() <= MAX_UNPARSED, "{} unparsed bytes", unparsed.len());
        }
        self.decoding
    }

    /// Decodes one event and returns its length, or `None` at the end.
    fn step(&mut self, input: &[u8]) -> Option<usize> {
        let (event, consumed) = match self.session.decode(input) {
            Decoded::Incomplete => return None,
            Decoded::Complete(event, consumed) => (event, consumed),
            Decoded::Invalid(violation) => {
                self.decoding.results.push(format!("END: {violation}"));
                return None;
            }
        };
        assert!((1..=input.len()).contains(&consumed), "{consumed} bytes out of {}", input.len());
        match event {
            DecodeEvent::Skipped => {}
            DecodeEvent::MultiStart(known, keys) => {
                self.decoding.results.push(format!("{} of {keys}", known.text));
                self.decoding.commands.push(vec![known.text.into()]);
            }
            DecodeEvent::Key(key) => self.decoding.commands.last_mut()?.push(key.into()),
            DecodeEvent::Refuse(refusal) => {
                self.decoding.results.push(refusal.to_string());
                // A command with several keys is already in the list.
                let open = self.decoding.commands.last_mut().filter(|last| is_open(last, &self.decoding.results));
                match open {
                    Some(open) => open.clear(),
                    None => self.decoding.commands.push(Vec::new()),
                }
            }
            DecodeEvent::Command(known, arguments) => {
                let words = std::iter::once(known.text.as_bytes()).chain(arguments).map(<[u8]>::to_vec);
                self.decoding.commands.push(words.collect());
                let meaning = self.session.operation_of(known, arguments);
                let RespOperation::Local = meaning else {
                    self.decoding.results.push(format!("{meaning:?}"));
                    return Some(consumed);
                };
                let mut out = Vec::new();
                let mut verify = |_: &[u8], password: &[u8]| match password {
                    PASSWORD => Verdict::Accepted,
                    _ => Verdict::Wrong,
                };
                let after = self.session.run_local(known, arguments, &mut verify, &mut out);
                let end = if after == AfterReply::Close { "END: " } else { "" };
                self.decoding.results.push(format!("{end}{}", out.escape_ascii()));
                return (after == AfterReply::Continue).then_some(consumed);
            }
        }
        Some(consumed)
    }
}

/// Returns true if the last command has several keys and some are missing. `results` ends with the
/// number of keys and the refusal.
fn is_open(command: &[Vec<u8>], results: &[String]) -> bool {
    let [.., many, _] = results else { return false };
    let keys = many.strip_prefix("mget of ").or_else(|| many.strip_prefix("exists of "));
    keys.and_then(|keys| keys.parse().ok()).is_some_and(|keys: usize| command.len() <= keys)
}

/// Returns the words of the well-formed commands at the start. Simple and slow.
fn parse_commands(wire: &[u8]) -> Vec<Vec<&[u8]>> {
    let (mut commands, mut rest) = (Vec::new(), wire);
    loop {
        if let Some((words, behind)) = parse_inline(rest) {
            commands.push(words);
            rest = behind;
            continue;
        }
        let Some((count, mut frames)) = parse_number(b'*', rest) else { return commands };
        let mut words = Vec::new();
        for _ in 0..count {
            let Some((length, bytes)) = parse_number(b'$', frames) else { return commands };
            let Some(word) = bytes.get(..length).filter(|_| bytes[length..].starts_with(b"\r\n")) else {
                return commands;
            };
            words.push(word);
            frames = &bytes[length + 2..];
        }
        rest = frames;
        if count > 0 {
            commands.push(words);
        }
    }
}

/// Returns the words of an inline command without quotes, and the bytes after its line.
fn parse_inline(bytes: &[u8]) -> Option<(Vec<&[u8]>, &[u8])> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    let (line, behind) = (&bytes[..end], &bytes[end + 1..]);
    if line.first().is_none_or(|byte| !byte.is_ascii_alphabetic()) || line.contains(&b'"') || line.contains(&b'\'') {
        return None;
    }
    let words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect();
    Some((words, behind))
}

/// Returns the number after a type byte, and the bytes after its line.
fn parse_number(kind: u8, bytes: &[u8]) -> Option<(usize, &[u8])> {
    let end = bytes.iter().position(|&byte| byte == b'\r').filter(|_| bytes[0] == kind)?;
    let text = std::str::from_utf8(&bytes[1..end]).ok()?;
    // Without a plus sign and leading zeros.
    let number = text.parse::<usize>().ok().filter(|number| number.to_string() == text)?;
    Some((number, bytes.get(end + 1..)?.strip_prefix(b"\n")?))
}
