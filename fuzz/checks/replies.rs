//! What a connection has sent, cut into replies, without what depends on when a key was looked up: whether it was in
//! memory, was fetched, or was being fetched for another.

/// Bytes in which the text of `INFO` has begun, with a title. Long values are not searched.
const FIRST_LINE: usize = 16;

/// How far replies are comparable.
#[derive(Clone, Copy)]
pub struct Comparing {
    pub resp: bool,
    /// Fetched values are stored, so that what numbers tell (`TTL`, `DBSIZE`) depends on when it was asked.
    pub stores: bool,
}

impl Comparing {
    /// The replies, all of them whole: anything else is no output of a connection that has nothing more to say.
    pub fn replies(self, sent: &[u8]) -> Vec<Vec<u8>> {
        let (mut replies, mut rest) = (Vec::new(), sent);
        while !rest.is_empty() {
            let (reply, length) = match if self.resp { self.resp_reply(rest) } else { http_reply(rest) } {
                Some(found) => found,
                None => panic!("no reply: {}", rest[..rest.len().min(300)].escape_ascii()),
            };
            replies.push(reply);
            rest = &rest[length..];
        }
        replies
    }

    fn resp_reply(self, bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
        let length = resp_length(bytes)?;
        let reply = &bytes[..length];
        let begins = &reply[..length.min(FIRST_LINE)];
        // As a text of RESP3 nothing else is told.
        let is_info = reply[0] == b'=' || (reply[0] == b'$' && begins.windows(4).any(|window| window == b"\r\n# "));
        let comparable = match reply[0] {
            _ if is_info => b"INFO".to_vec(),
            b':' if self.stores => b"a number".to_vec(),
            _ => reply.to_vec(),
        };
        Some((comparable, length))
    }
}

/// The length of the reply at the beginning, elements included.
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

/// A response, and its length. That to `HEAD_PREFIX` has no body: then the next response follows its head, and no value begins
/// like one.
fn http_reply(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    const JSON_FROM_CACHE: &[u8] = b"\"fromCache\":true}";
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).ok().filter(|head| head.starts_with("HTTP/1.1 "))?;
    let field = |name: &str| head.split("\r\n").find_map(|line| line.strip_prefix(name));
    let length: usize = field("Content-Length: ")?.parse().ok()?;
    let rest = &bytes[end..];
    let body = if rest.is_empty() || rest.starts_with(b"HTTP/1.1 ") { rest.get(..0)? } else { rest.get(..length)? };
    let is_hit = field("Cache-Status: ").is_some_and(|status| !status.contains("fwd=miss"));
    let is_value = head.starts_with("HTTP/1.1 200") && field("Content-Type: ") == Some("application/json");
    let longer = usize::from(is_hit && is_value);
    let told = |line: &&str| !line.starts_with("Cache-Status: ") && !line.starts_with("Content-Length: ");
    let lines: Vec<&str> = head.split("\r\n").filter(told).collect();
    let mut comparable = format!("{} {}: ", lines.join("|"), length + longer).into_bytes();
    match body.strip_suffix(JSON_FROM_CACHE) {
        Some(before) => {
            assert!(is_hit, "it lies about where it is from");
            comparable.extend_from_slice(before);
            comparable.extend_from_slice(b"\"fromCache\":false}");
        }
        None => comparable.extend_from_slice(body),
    }
    Some((comparable, end + body.len()))
}
