//! RESP side of a simulated client: encodes commands and parses replies.

use crate::client::{Content, KeyReply, Kind, PASSWORD, Response};
use crate::local_cache::Push;
use crate::versions::NAMES;

fn encode_words(words: &[String]) -> String {
    let arguments: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
    format!("*{}\r\n{arguments}", words.len())
}

fn encode_keys(name: &str, keys: &[usize]) -> String {
    let words = std::iter::once(name.to_owned()).chain(keys.iter().map(|&key| NAMES[key].to_owned()));
    encode_words(&words.collect::<Vec<_>>())
}

/// Encodes a command.
pub fn encode(kind: &Kind) -> String {
    match kind {
        Kind::Value(key) => encode_keys("GET", &[*key]),
        Kind::Length(key) => encode_keys("STRLEN", &[*key]),
        Kind::Range(key, start, end) => {
            encode_words(&["GETRANGE".into(), NAMES[*key].into(), start.to_string(), end.to_string()])
        }
        Kind::Ttl(key) => encode_keys("PTTL", &[*key]),
        Kind::Values(keys) => encode_keys("MGET", keys),
        Kind::Count(keys) => encode_keys("EXISTS", keys),
        Kind::Hello => encode_words(&["HELLO".into(), "3".into()]),
        Kind::Unsupported(bytes) => encode_words(&["SET".into(), "k1".into(), "x".repeat(*bytes)]),
        Kind::WithoutKey => encode_words(&["PING".into()]),
        Kind::Quit => encode_words(&["QUIT".into()]),
        Kind::Login => encode_words(&["AUTH".into(), PASSWORD.into()]),
        Kind::Reset => encode_words(&["RESET".into()]),
        Kind::Track { opt_in: false } => encode_words(&["CLIENT", "TRACKING", "ON"].map(String::from)),
        Kind::Track { opt_in: true } => encode_words(&["CLIENT", "TRACKING", "ON", "OPTIN"].map(String::from)),
        Kind::Untrack => encode_words(&["CLIENT", "TRACKING", "OFF"].map(String::from)),
        Kind::Caching => encode_words(&["CLIENT", "CACHING", "YES"].map(String::from)),
        Kind::Denied(kind) => encode(kind),
        Kind::MalformedMget(keys) => {
            let (complete, longer) = (format!("*{}", keys.len() + 1), format!("*{}", keys.len() + 3));
            encode_keys("MGET", keys).replacen(&complete, &longer, 1) + "fooz\r\n"
        }
        _ => "*1\r\nfooz\r\n".to_owned(),
    }
}

/// Parsed reply.
#[derive(Debug, PartialEq)]
enum Reply {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(String),
    Null,
    /// Array, or a map with its keys and values in turn.
    Aggregate(Vec<Reply>),
}

/// Parses the reply at the start of `bytes`. Returns it with its length, or `None` if it is
/// incomplete.
fn parse_reply(bytes: &[u8]) -> Result<Option<(Reply, usize)>, String> {
    let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") else { return Ok(None) };
    let line = String::from_utf8_lossy(&bytes[1..end]).into_owned();
    let number = || line.parse::<i64>().map_err(|_| format!("not a number: {line:?}"));
    let end = end + 2;
    let reply = match bytes[0] {
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
                return Err("a bulk string with a wrong length".into());
            }
            return Ok(Some((Reply::Bulk(String::from_utf8_lossy(&bytes[end..last]).into_owned()), last + 2)));
        }
        kind @ (b'*' | b'%' | b'>') => {
            let (mut replies, mut at) = (Vec::new(), end);
            for _ in 0..number()? * if kind == b'%' { 2 } else { 1 } {
                let Some((next, length)) = (if at < bytes.len() { parse_reply(&bytes[at..])? } else { None }) else {
                    return Ok(None);
                };
                replies.push(next);
                at += length;
            }
            return Ok(Some((Reply::Aggregate(replies), at)));
        }
        other => return Err(format!("unknown type of reply: {:?}", char::from(other))),
    };
    Ok(Some((reply, end)))
}

/// Parses the invalidation at the start of `bytes`, if there is one. Returns it with its length, or
/// `None` if it is incomplete.
pub fn parse_push(bytes: &[u8]) -> Result<Option<(Push, usize)>, String> {
    let Some((Reply::Aggregate(parts), length)) = parse_reply(bytes)? else { return Ok(None) };
    let push = match &parts[..] {
        [Reply::Bulk(kind), Reply::Null] if kind == "invalidate" => None,
        [Reply::Bulk(kind), Reply::Aggregate(keys)] if kind == "invalidate" => {
            let [Reply::Bulk(name)] = &keys[..] else { return Err(format!("not one key: {keys:?}")) };
            Some(NAMES.iter().position(|known| known == name).ok_or("the invalidation of an unknown key")?)
        }
        parts => return Err(format!("not an invalidation: {parts:?}")),
    };
    Ok(Some((push, length)))
}

/// Parses the response at the start of `bytes`. Returns it with its length, or `None` if it is
/// incomplete.
pub fn parse(bytes: &[u8], kind: &Kind) -> Result<Option<(Response, usize)>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let Some((reply, length)) = parse_reply(bytes)? else { return Ok(None) };
    let value = |reply| match reply {
        Reply::Bulk(text) => Ok(KeyReply::Value(text)),
        Reply::Null => Ok(KeyReply::Missing),
        other => Err(format!("not a value: {other:?}")),
    };
    let content = match (kind, reply) {
        (Kind::Malformed | Kind::MalformedMget(_), Reply::Error(text))
            if text.starts_with("ERR Protocol error: expected") =>
        {
            Content::Malformed
        }
        (Kind::Unsupported(_), Reply::Error(text)) if text.starts_with("ERR unknown command 'SET'") => Content::Fixed,
        (Kind::WithoutKey, Reply::Simple(text)) if text == "PONG" => Content::Fixed,
        (Kind::Track { .. } | Kind::Untrack | Kind::Caching, Reply::Simple(text)) if text == "OK" => Content::Fixed,
        (Kind::Quit | Kind::Login, Reply::Simple(text)) if text == "OK" => Content::Fixed,
        (Kind::Reset, Reply::Simple(text)) if text == "RESET" => Content::Fixed,
        (Kind::Denied(_), Reply::Error(text)) if text.starts_with("NOAUTH ") => Content::Fixed,
        (Kind::Denied(_), reply) => return Err(format!("{reply:?} without the password")),
        (Kind::Hello, Reply::Aggregate(pairs)) if pairs.len() == 14 => Content::Fixed,
        (_, Reply::Error(text)) if ["LOADING ", "TRYAGAIN ", "ERR "].iter().any(|code| text.starts_with(code)) => {
            Content::Error { timed_out: text.contains("REDIS_TIMEOUT") }
        }
        (Kind::Value(_), reply) => Content::Keys(vec![value(reply)?]),
        (Kind::Length(_), Reply::Integer(length)) => Content::Keys(vec![KeyReply::Length(length as usize)]),
        (Kind::Range(..), Reply::Bulk(text)) => Content::Keys(vec![KeyReply::Part(text)]),
        (Kind::Ttl(_), Reply::Integer(time)) => Content::Ttl(time),
        (Kind::Count(_), Reply::Integer(count)) => Content::Count(count as usize),
        (Kind::Values(_), Reply::Aggregate(values)) => {
            Content::Keys(values.into_iter().map(value).collect::<Result<_, _>>()?)
        }
        (kind, reply) => return Err(format!("{reply:?} to {kind:?}")),
    };
    let closes = matches!(content, Content::Malformed) || *kind == Kind::Quit;
    Ok(Some((Response { content, status: None, closes }, length)))
}
