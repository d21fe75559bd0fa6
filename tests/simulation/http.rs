//! What clients say over HTTP, and what its responses tell.

use crate::client::{Content, Kind, Response, Told};

/// A request. `last` asks for the end of the connection.
pub fn text(kind: &Kind, last: bool) -> String {
    let rest = if last { "Host: x\r\nConnection: close\r\n\r\n" } else { "Host: x\r\n\r\n" };
    match kind {
        Kind::Value(key) => format!("GET /raw/k{key} HTTP/1.1\r\n{rest}"),
        Kind::Json(key) => format!("GET /key/%6B{key} HTTP/1.1\r\n{rest}"),
        Kind::Head(key) => format!("HEAD /raw/k{key} HTTP/1.1\r\n{rest}"),
        Kind::Nothing => format!("GET /other HTTP/1.1\r\n{rest}"),
        _ => "\0\0\r\n\r\n".to_owned(),
    }
}

/// The response at the beginning of `bytes` and its length, if it is whole.
pub fn parse(bytes: &[u8], kind: &Kind) -> Result<Option<(Response, usize)>, String> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4) else { return Ok(None) };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let field = |name: &str| head.split("\r\n").find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let status = head.get(9..12).filter(|_| head.starts_with("HTTP/1.1 ")).and_then(|status| status.parse().ok());
    let length = field("Content-Length: ").parse::<usize>().ok();
    let (Some(status), Some(length)) = (status, length) else { return Err(format!("no head of a response: {head:?}")) };
    let whole = if matches!(kind, Kind::Head(_)) { end } else { end + length };
    if bytes.len() < whole {
        return Ok(None);
    }
    let cache_status = field("Cache-Status: segment-redis-proxy; ").to_owned();
    let body = String::from_utf8_lossy(&bytes[end..whole]).into_owned();
    let told = match (status, kind) {
        (200, Kind::Head(_)) => Told::Present,
        (200, Kind::Json(_)) => Told::Value(json_value(&body, !cache_status.starts_with("fwd=miss"))?),
        (200, _) => Told::Value(body),
        _ => Told::Absent,
    };
    let content = match status {
        400 => Content::Violation,
        404 if *kind == Kind::Nothing && cache_status.is_empty() => Content::Other,
        200 | 404 => Content::Keys(vec![told]),
        502..=504 => Content::Error { timed_out: status == 504 },
        _ => return Err("a status that should not be".into()),
    };
    Ok(Some((Response { content, status: Some(cache_status), closes: field("Connection: ") == "close" }, whole)))
}

/// The value of a JSON reply, which says rightly where it comes from.
fn json_value(body: &str, from_cache: bool) -> Result<String, String> {
    let end = format!("\",\"fromCache\":{from_cache}}}");
    let value = body.strip_prefix("{\"value\":\"").and_then(|rest| rest.strip_suffix(&end));
    value.map(str::to_owned).ok_or_else(|| "no JSON, or it lies about where it is from".into())
}
