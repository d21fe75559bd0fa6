//! What clients say in the Redis protocol, and what its replies tell.

use crate::client::{Content, Kind, Response, Told};

fn command(words: &[String]) -> String {
    let arguments: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
    format!("*{}\r\n{arguments}", words.len())
}

fn about(name: &str, keys: &[usize]) -> String {
    let words = std::iter::once(name.to_owned()).chain(keys.iter().map(|key| format!("k{key}")));
    command(&words.collect::<Vec<_>>())
}

/// A command.
pub fn text(kind: &Kind) -> String {
    match kind {
        Kind::Value(key) => about("GET", &[*key]),
        Kind::Length(key) => about("STRLEN", &[*key]),
        Kind::Range(key, start, end) => {
            command(&["GETRANGE".into(), format!("k{key}"), start.to_string(), end.to_string()])
        }
        Kind::Remaining(key) => about("PTTL", &[*key]),
        Kind::Values(keys) => about("MGET", keys),
        Kind::Count(keys) => about("EXISTS", keys),
        Kind::Hello => command(&["HELLO".into(), "3".into()]),
        Kind::Unknown(bytes) => command(&["SET".into(), "k1".into(), "x".repeat(*bytes)]),
        Kind::Nothing => command(&["PING".into()]),
        Kind::Quit => command(&["QUIT".into()]),
        Kind::Broken(keys) => {
            let (whole, longer) = (format!("*{}", keys.len() + 1), format!("*{}", keys.len() + 3));
            about("MGET", keys).replacen(&whole, &longer, 1) + "fooz\r\n"
        }
        _ => "*1\r\nfooz\r\n".to_owned(),
    }
}

/// A reply, taken apart.
#[derive(Debug, PartialEq)]
enum Reply {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(String),
    Null,
    Many(Vec<Reply>),
}

/// The reply at the beginning of `bytes` and its length, if it is whole.
fn reply(bytes: &[u8]) -> Result<Option<(Reply, usize)>, String> {
    let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") else { return Ok(None) };
    let line = String::from_utf8_lossy(&bytes[1..end]).into_owned();
    let number = || line.parse::<i64>().map_err(|_| format!("no number: {line:?}"));
    let end = end + 2;
    let whole = match bytes[0] {
        b'+' => Reply::Simple(line),
        b'-' => Reply::Error(line),
        b':' => Reply::Integer(number()?),
        b'_' => Reply::Null,
        b'$' if number()? == -1 => Reply::Null,
        b'$' => {
            let last = end + number()? as usize;
            if bytes.len() < last + 2 {
                return Ok(None);
            }
            if &bytes[last..last + 2] != b"\r\n" {
                return Err("a bulk string of another length".into());
            }
            return Ok(Some((Reply::Bulk(String::from_utf8_lossy(&bytes[end..last]).into_owned()), last + 2)));
        }
        kind @ (b'*' | b'%') => {
            let (mut replies, mut at) = (Vec::new(), end);
            for _ in 0..number()? * if kind == b'%' { 2 } else { 1 } {
                let Some((next, length)) = (if at < bytes.len() { reply(&bytes[at..])? } else { None }) else {
                    return Ok(None);
                };
                replies.push(next);
                at += length;
            }
            return Ok(Some((Reply::Many(replies), at)));
        }
        other => return Err(format!("no type of a reply: {:?}", char::from(other))),
    };
    Ok(Some((whole, end)))
}

/// The response at the beginning of `bytes` and its length, if it is whole.
pub fn parse(bytes: &[u8], kind: &Kind) -> Result<Option<(Response, usize)>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let Some((reply, length)) = reply(bytes)? else { return Ok(None) };
    let value = |reply| match reply {
        Reply::Bulk(text) => Ok(Told::Value(text)),
        Reply::Null => Ok(Told::Absent),
        other => Err(format!("no value: {other:?}")),
    };
    let content = match (kind, reply) {
        (Kind::Garbage | Kind::Broken(_), Reply::Error(text)) if text.starts_with("ERR Protocol error: expected") => {
            Content::Violation
        }
        (Kind::Unknown(_), Reply::Error(text)) if text.starts_with("ERR unknown command 'SET'") => Content::Other,
        (Kind::Nothing, Reply::Simple(text)) if text == "PONG" => Content::Other,
        (Kind::Quit, Reply::Simple(text)) if text == "OK" => Content::Other,
        (Kind::Hello, Reply::Many(pairs)) if pairs.len() == 14 => Content::Other,
        (_, Reply::Error(text)) if ["LOADING ", "TRYAGAIN ", "ERR "].iter().any(|code| text.starts_with(code)) => {
            Content::Error { timed_out: text.contains("REDIS_TIMEOUT") }
        }
        (Kind::Value(_), reply) => Content::Keys(vec![value(reply)?]),
        (Kind::Length(_), Reply::Integer(length)) => Content::Keys(vec![Told::Length(length as usize)]),
        (Kind::Range(..), Reply::Bulk(text)) => Content::Keys(vec![Told::Part(text)]),
        (Kind::Remaining(_), Reply::Integer(time)) => Content::Remaining(time),
        (Kind::Count(_), Reply::Integer(count)) => Content::Count(count as usize),
        (Kind::Values(_), Reply::Many(values)) => {
            Content::Keys(values.into_iter().map(value).collect::<Result<_, _>>()?)
        }
        (kind, reply) => return Err(format!("{reply:?} to {kind:?}")),
    };
    let closes = matches!(content, Content::Violation) || *kind == Kind::Quit;
    Ok(Some((Response { content, status: None, closes }, length)))
}
