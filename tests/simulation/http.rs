//! HTTP side of a simulated client: encodes requests and parses responses.

use crate::client::{Content, KeyReply, Kind, PASSWORD, Response};
use crate::versions::NAMES;
use segment_redis_proxy::value::digest_of;

/// Returns the name of a key as a path has it.
pub fn escape(key: usize) -> String {
    NAMES[key].replace('{', "%7B").replace('}', "%7D")
}

/// Encodes a request. With `is_last` it asks the proxy to close the connection.
pub fn encode(kind: &Kind, is_last: bool, with_password: bool) -> String {
    let close = if is_last { "Connection: close\r\n" } else { "" };
    let password = if with_password { format!("Authorization: Bearer {PASSWORD}\r\n") } else { String::new() };
    let rest = format!("Host: x\r\n{close}{password}\r\n");
    match kind {
        Kind::Denied(kind) => encode(kind, is_last, false),
        Kind::Value(key) => format!("GET /raw/{} HTTP/1.1\r\n{rest}", escape(*key)),
        Kind::Json(key) => format!("GET /key/{} HTTP/1.1\r\n{rest}", escape(*key).replacen('k', "%6B", 1)),
        Kind::Head(key) => format!("HEAD /raw/{} HTTP/1.1\r\n{rest}", escape(*key)),
        Kind::Validate(key, text) => {
            let tag = digest_of(text.as_bytes());
            format!("GET /raw/{} HTTP/1.1\r\nIf-None-Match: \"a\", \"{tag:016x}\"\r\n{rest}", escape(*key))
        }
        Kind::Reload(key) => format!("GET /raw/{} HTTP/1.1\r\nCache-Control: no-cache\r\n{rest}", escape(*key)),
        Kind::IfCached(key) => {
            format!("GET /raw/{} HTTP/1.1\r\nCache-Control: only-if-cached\r\n{rest}", escape(*key))
        }
        Kind::List(keys) => {
            let keys: Vec<String> = keys.iter().map(|&key| format!("key={}", escape(key))).collect();
            format!("GET /keys?{} HTTP/1.1\r\n{rest}", keys.join("&"))
        }
        Kind::WithoutKey => format!("GET /other HTTP/1.1\r\n{rest}"),
        _ => "\0\0\r\n\r\n".to_owned(),
    }
}

/// Parses the response at the start of `bytes`. Returns it with its length, or `None` if it is
/// incomplete.
pub fn parse(bytes: &[u8], kind: &Kind) -> Result<Option<(Response, usize)>, String> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4) else { return Ok(None) };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let field = |name: &str| head.split("\r\n").find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let status = head.get(9..12).filter(|_| head.starts_with("HTTP/1.1 ")).and_then(|status| status.parse().ok());
    let length = field("Content-Length: ").parse::<usize>().ok().or((status == Some(304)).then_some(0));
    let (Some(status), Some(length)) = (status, length) else { return Err(format!("not a response head: {head:?}")) };
    let (kind, is_denied) = if let Kind::Denied(kind) = kind { (&**kind, true) } else { (kind, false) };
    let whole = if matches!(kind, Kind::Head(_)) { end } else { end + length };
    if bytes.len() < whole {
        return Ok(None);
    }
    let cache_status = field("Cache-Status: segment-redis-proxy; ");
    // A forced read is a miss, and no other request has one.
    let cache_status = match cache_status.strip_prefix("fwd=request") {
        Some(rest) if matches!(kind, Kind::Reload(_)) => format!("fwd=miss{rest}"),
        _ => cache_status.to_owned(),
    };
    let body = String::from_utf8_lossy(&bytes[end..whole]).into_owned();
    let reply = match (status, kind) {
        (200, Kind::Head(_)) => KeyReply::Present,
        (200, Kind::Json(_)) => KeyReply::Value(parse_json(&body, !cache_status.starts_with("fwd=miss"))?),
        (304, Kind::Validate(_, text)) => KeyReply::Value(text.clone()),
        (200, Kind::Validate(_, text)) if *text == body => return Err("a value that the client has".into()),
        (200, _) => KeyReply::Value(body.clone()),
        _ => KeyReply::Missing,
    };
    let content = match status {
        401 if is_denied => Content::Fixed,
        _ if is_denied => return Err(format!("status {status} without the password")),
        400 => Content::Malformed,
        404 if *kind == Kind::WithoutKey && cache_status.is_empty() => Content::Fixed,
        504 if cache_status == "detail=only-if-cached" => Content::NotCached,
        200 if matches!(kind, Kind::List(_)) => Content::Elements(parse_elements(&body)?),
        304 if !matches!(kind, Kind::Validate(..)) => return Err("unexpected status".into()),
        200 | 304 | 404 => Content::Keys(vec![reply]),
        502..=504 => Content::Error { timed_out: status == 504 },
        _ => return Err("unexpected status".into()),
    };
    Ok(Some((Response { content, status: Some(cache_status), closes: field("Connection: ") == "close" }, whole)))
}

/// Returns the replies for the keys of a list. The values have no escapes.
fn parse_elements(body: &str) -> Result<Vec<Option<KeyReply>>, String> {
    let list = body.strip_prefix("{\"values\":[{\"key\":\"").and_then(|rest| rest.strip_suffix("}]}"));
    let elements = list.ok_or("not a list of values")?.split("},{\"key\":\"");
    let parse = |element: &str| {
        let (_, rest) = element.split_once("\",\"").ok_or("an element without a key")?;
        let value = rest.strip_prefix("value\":\"").and_then(|rest| rest.split_once("\",\"fromCache\":"));
        match (rest, value) {
            ("value\":null", _) => Ok(Some(KeyReply::Missing)),
            (_, Some((value, _))) => Ok(Some(KeyReply::Value(value.to_owned()))),
            _ if rest.starts_with("error\":\"") => Ok(None),
            _ => Err(format!("an element without a value: {element}")),
        }
    };
    elements.map(parse).collect()
}

/// Returns the value in a JSON body, which must report correctly whether it comes from the cache.
fn parse_json(body: &str, from_cache: bool) -> Result<String, String> {
    let end = format!("\",\"fromCache\":{from_cache}}}");
    let value = body.strip_prefix("{\"value\":\"").and_then(|rest| rest.strip_suffix(&end));
    value.map(str::to_owned).ok_or_else(|| "not the expected JSON, or fromCache contradicts Cache-Status".into())
}
