//! Parser that splits the output of a connection into replies, without the parts that depend on
//! timing.
//!
//! These parts say how a key was found: in the cache, by a fetch, or by joining a fetch.

/// Bytes that contain the first title of `INFO`. Long values are not searched further.
const INFO_PREFIX_BYTES: usize = 16;

/// Rules that make replies comparable.
#[derive(Clone, Copy)]
pub struct Comparing {
    pub resp: bool,
    /// True if fetched values are cached. Numbers (`TTL`, `DBSIZE`) then depend on the time of the
    /// request.
    pub stores: bool,
}

impl Comparing {
    /// Returns all replies. Panics at an incomplete one: the connection has nothing more to send.
    pub fn replies(self, sent: &[u8]) -> Vec<Vec<u8>> {
        let (mut replies, mut rest) = (Vec::new(), sent);
        while !rest.is_empty() {
            let (reply, length) = match if self.resp { self.resp_reply(rest) } else { http_reply(rest) } {
                Some(found) => found,
                None => panic!("not a reply: {}", rest[..rest.len().min(300)].escape_ascii()),
            };
            replies.push(reply);
            rest = &rest[length..];
        }
        replies
    }

    fn resp_reply(self, bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
        let length = resp_length(bytes)?;
        let reply = &bytes[..length];
        let prefix = &reply[..length.min(INFO_PREFIX_BYTES)];
        // INFO is the only verbatim string of RESP3.
        let is_info = reply[0] == b'=' || (reply[0] == b'$' && prefix.windows(4).any(|window| window == b"\r\n# "));
        let comparable = match reply[0] {
            _ if is_info => b"INFO".to_vec(),
            b':' if self.stores => b"a number".to_vec(),
            _ => reply.to_vec(),
        };
        Some((comparable, length))
    }
}

/// Returns the length of the first reply, with its elements.
fn resp_length(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|window| window == b"\r\n")?;
    let mut end = line + 2;
    let number = || std::str::from_utf8(&bytes[1..line]).ok()?.parse::<i64>().ok();
    match *bytes.first()? {
        b'+' | b'-' | b'_' | b'#' => {}
        b':' => _ = number()?,
        b'$' | b'=' => {
            let length = number()?;
            if length >= 0 {
                end += length as usize + 2;
                bytes.get(end - 2..end).filter(|last| last == b"\r\n")?;
            }
        }
        kind @ (b'*' | b'~' | b'%') => {
            for _ in 0..number()? * if kind == b'%' { 2 } else { 1 } {
                end += resp_length(&bytes[end..])?;
            }
        }
        _ => return None,
    }
    Some(end)
}

/// Returns the first response and its length.
///
/// A response to `HEAD` has no body: the next response follows its head. No value starts like a
/// response.
fn http_reply(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).ok().filter(|head| head.starts_with("HTTP/1.1 "))?;
    let field = |name: &str| head.split("\r\n").find_map(|line| line.strip_prefix(name));
    let length: usize = match field("Content-Length: ") {
        Some(length) => length.parse().ok()?,
        None => head.starts_with("HTTP/1.1 304 ").then_some(0)?,
    };
    let rest = &bytes[end..];
    let body = if rest.is_empty() || rest.starts_with(b"HTTP/1.1 ") { rest.get(..0)? } else { rest.get(..length)? };
    let is_hit = field("Cache-Status: ").is_some_and(|status| !status.contains("fwd="));
    let is_json = head.starts_with("HTTP/1.1 200") && field("Content-Type: ") == Some("application/json");
    // Each value from the cache makes the body a byte shorter. The head alone does not tell how
    // many of several keys are.
    let length = match (is_json && field("Cache-Status: ").is_some(), field("ETag: ")) {
        (true, None) => "of several keys".into(),
        (true, Some(_)) if is_hit => (length + 1).to_string(),
        _ => length.to_string(),
    };
    let is_stable = |line: &&str| !line.starts_with("Cache-Status: ") && !line.starts_with("Content-Length: ");
    let lines: Vec<&str> = head.split("\r\n").filter(is_stable).collect();
    let mut comparable = format!("{} {length}: ", lines.join("|")).into_bytes();
    comparable.extend_from_slice(&without_origin(body, is_hit && is_json));
    Some((comparable, end + body.len()))
}

/// Returns a body with `fromCache` false for each value. `is_hit` is true if all must be from the
/// cache.
fn without_origin(body: &[u8], is_hit: bool) -> Vec<u8> {
    const ORIGINS: [&[u8]; 2] = [b",\"fromCache\":true}", b",\"fromCache\":false}"];
    let (mut comparable, mut at) = (Vec::new(), 0);
    while at < body.len() {
        match ORIGINS.iter().position(|origin| body[at..].starts_with(origin)) {
            Some(index) => {
                assert!(!is_hit || index == 0, "fromCache contradicts Cache-Status");
                comparable.extend_from_slice(ORIGINS[1]);
                at += ORIGINS[index].len();
            }
            None => {
                comparable.push(body[at]);
                at += 1;
            }
        }
    }
    comparable
}
