//! Commands of the Redis protocol: what they come to does not depend on how the bytes are cut, the words are those that were
//! sent, and little is kept of what is not whole.

use super::choices::{Choices, expand};
use segment_redis_proxy::protocol::Decoded;
use segment_redis_proxy::protocol::resp::{AfterReply, DecodeEvent, RespOperation, Session};
use segment_redis_proxy::types::MAX_KEY_BYTES;

/// Longest wire: more than the longest command that is kept, a few times.
const MOST_BYTES: usize = 400 * 1024;

/// Most that may wait for the rest of a command: one argument of the greatest length, and some more.
const MOST_KEPT: usize = MAX_KEY_BYTES + 8 * 1024;

/// What a connection was understood to say.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    /// The words of each command; none of one that was refused.
    commands: Vec<Vec<Vec<u8>>>,
    /// What they came to, and why it ended.
    comes_to: Vec<String>,
}

/// See the top of the file.
pub fn check(input: &[u8]) {
    let (mut choices, wire) = Choices::split(input);
    let times = [1, 1, 1, 2, 50][usize::from(choices.bytes[3] % 5)];
    let wire = expand(wire, times, MOST_BYTES);
    let whole = Listener::default().hear(&[&wire]);
    let mut pieces = Vec::new();
    let mut at = 0;
    choices.cut(&wire, |piece| {
        pieces.push(&wire[at..at + piece.len()]);
        at += piece.len();
        true
    });
    assert_eq!(Listener::default().hear(&pieces), whole, "in pieces and whole");
    for (heard, sent) in whole.commands.iter().zip(commands_of(&wire)) {
        assert!(heard.is_empty() || is_alike(heard, &sent), "{heard:?} was heard of {sent:?}");
    }
}

/// A name may be in any case, the rest is told as it is.
fn is_alike(heard: &[Vec<u8>], sent: &[&[u8]]) -> bool {
    heard[0].eq_ignore_ascii_case(sent[0]) && heard[1..].iter().eq(sent[1..].iter())
}

/// One side of a connection.
struct Listener {
    session: Session,
    heard: Heard,
}

impl Default for Listener {
    fn default() -> Listener {
        Listener { session: Session::new(7, 0), heard: Heard::default() }
    }
}

impl Listener {
    /// All that the pieces say.
    fn hear(mut self, pieces: &[&[u8]]) -> Heard {
        let mut kept = Vec::new();
        for piece in pieces {
            kept.extend_from_slice(piece);
            let mut at = 0;
            while let Some(consumed) = self.step(&kept[at..]) {
                at += consumed;
            }
            if self.heard.comes_to.last().is_some_and(|last| last.starts_with("END")) {
                break;
            }
            kept.drain(..at);
            assert!(kept.len() <= MOST_KEPT, "{} bytes are kept", kept.len());
        }
        self.heard
    }

    /// The bytes of one event, unless there is none.
    fn step(&mut self, input: &[u8]) -> Option<usize> {
        let (event, consumed) = match self.session.decode(input) {
            Decoded::Incomplete => return None,
            Decoded::Complete(event, consumed) => (event, consumed),
            Decoded::Invalid(violation) => {
                self.heard.comes_to.push(format!("END: {violation}"));
                return None;
            }
        };
        assert!((1..=input.len()).contains(&consumed), "{consumed} bytes out of {}", input.len());
        match event {
            DecodeEvent::Skipped => {}
            DecodeEvent::MultiStart(known, keys) => {
                self.heard.comes_to.push(format!("{} of {keys}", known.text));
                self.heard.commands.push(vec![known.text.into()]);
            }
            DecodeEvent::Key(key) => self.heard.commands.last_mut()?.push(key.into()),
            DecodeEvent::Refuse(refusal) => {
                self.heard.comes_to.push(refusal.to_string());
                // One about several keys has begun already.
                let begun = self.heard.commands.last_mut().filter(|last| is_open(last, &self.heard.comes_to));
                match begun {
                    Some(begun) => begun.clear(),
                    None => self.heard.commands.push(Vec::new()),
                }
            }
            DecodeEvent::Command(known, arguments) => {
                let words = std::iter::once(known.text.as_bytes()).chain(arguments).map(<[u8]>::to_vec);
                self.heard.commands.push(words.collect());
                let meaning = self.session.operation_of(known, arguments);
                let RespOperation::Local = meaning else {
                    self.heard.comes_to.push(format!("{meaning:?}"));
                    return Some(consumed);
                };
                let mut out = Vec::new();
                let after = self.session.run_local(known, arguments, &mut out);
                let end = if after == AfterReply::Close { "END: " } else { "" };
                self.heard.comes_to.push(format!("{end}{}", out.escape_ascii()));
                return (after == AfterReply::Continue).then_some(consumed);
            }
        }
        Some(consumed)
    }
}

/// Whether the last command is about several keys, of which some are to come. `comes_to` ends with a refusal, and has before
/// that how many there are.
fn is_open(command: &[Vec<u8>], comes_to: &[String]) -> bool {
    let [.., many, _] = comes_to else { return false };
    let keys = many.strip_prefix("mget of ").or_else(|| many.strip_prefix("exists of "));
    keys.and_then(|keys| keys.parse().ok()).is_some_and(|keys: usize| command.len() <= keys)
}

/// The words of the well-formed commands at the beginning. Simple and slow.
fn commands_of(wire: &[u8]) -> Vec<Vec<&[u8]>> {
    let (mut commands, mut rest) = (Vec::new(), wire);
    loop {
        if let Some((words, behind)) = inline_words(rest) {
            commands.push(words);
            rest = behind;
            continue;
        }
        let Some((count, mut frames)) = number_behind(b'*', rest) else { return commands };
        let mut words = Vec::new();
        for _ in 0..count {
            let Some((length, bytes)) = number_behind(b'$', frames) else { return commands };
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

/// The words of an inline command without quotes, and what follows its line.
fn inline_words(bytes: &[u8]) -> Option<(Vec<&[u8]>, &[u8])> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    let (line, behind) = (&bytes[..end], &bytes[end + 1..]);
    if line.first().is_none_or(|byte| !byte.is_ascii_alphabetic()) || line.contains(&b'"') || line.contains(&b'\'') {
        return None;
    }
    let words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect();
    Some((words, behind))
}

/// A number, behind the byte that tells of which kind, and what follows its line.
fn number_behind(kind: u8, bytes: &[u8]) -> Option<(usize, &[u8])> {
    let end = bytes.iter().position(|&byte| byte == b'\r').filter(|_| bytes[0] == kind)?;
    let text = std::str::from_utf8(&bytes[1..end]).ok()?;
    // No plus and no leading zeros.
    let number = text.parse::<usize>().ok().filter(|number| number.to_string() == text)?;
    Some((number, bytes.get(end + 1..)?.strip_prefix(b"\n")?))
}
