//! CLOCK cache of decoded header fields.
//!
//! A client mostly repeats its header fields byte for byte; only the target differs. The cache maps
//! the bytes after a request line to their meaning (`fields`), so that they are not decoded again.
//!
//! A lookup compares all bytes. A head that differs by one byte after its request line is decoded
//! as if the cache were empty, and so is a request line that is not a plain `GET` of HTTP/1.1. So
//! the cache changes the cost of a head, never its meaning. The last fields stay in memory whatever
//! a client sent in them, as the last input does. Fields with credentials (`Authorization`) are
//! never stored, so a hit is a request without any. Neither are conditions, such as
//! `If-None-Match`: each key has another entity tag.

use super::fields::Fields;
use super::{Authorization, Body, CacheDirectives};
use std::ops::Range;

/// Maximum number of entries: a few kinds of clients. If every request has unique fields, lookups
/// and insertions are wasted (a seventh of the cost of decoding).
const MAX_ENTRIES: usize = 4;

/// Maximum length of the fields of one entry: those of a browser, and some that proxies in front
/// add.
const MAX_CACHED_BYTES: usize = 1024;

/// Method of a cacheable head.
pub const METHOD: &str = "GET";

/// End of the request line of a cacheable head.
const REQUEST_LINE_END: &[u8] = b" HTTP/1.1\r\n";

/// Cache of at most `MAX_ENTRIES` decoded header sections.
#[derive(Debug)]
pub struct HeaderCache {
    entries: Vec<CachedHeaders>,
    /// Hand of the CLOCK algorithm: index of the last entry that was replaced.
    hand: usize,
}

/// Bytes between the request line and the body, and their meaning.
#[derive(Debug)]
struct CachedHeaders {
    bytes: Vec<u8>,
    /// Position of the host in `bytes`.
    host: Range<usize>,
    keep_alive: bool,
    body: Body,
    expects_continue: bool,
    cache_directives: CacheDirectives,
    /// True if the entry had a hit since the hand last passed it.
    referenced: bool,
}

/// Head with cached fields.
pub struct HeaderCacheHit<'a> {
    /// Bytes between the method and the version; they may be malformed.
    pub target: &'a [u8],
    /// Meaning of the cached fields.
    pub fields: Fields<'a>,
    /// Length of the head.
    pub length: usize,
}

impl HeaderCache {
    /// Creates an empty cache.
    pub fn new() -> HeaderCache {
        HeaderCache { entries: Vec::with_capacity(MAX_ENTRIES), hand: 0 }
    }

    /// Returns the head at the start of `input` if it is cacheable and its fields are in the cache.
    /// The target may be any bytes.
    pub fn find<'a>(&mut self, input: &'a [u8]) -> Option<HeaderCacheHit<'a>> {
        let (target, rest) = split_request_line(input)?;
        let entry = self.entries.iter_mut().find(|entry| rest.starts_with(&entry.bytes))?;
        entry.referenced = true;
        let CachedHeaders { keep_alive, body, expects_continue, cache_directives, .. } = *entry;
        let (host, conditions, authorization) = (&rest[entry.host.clone()], None, Authorization::Absent);
        let fields = Fields { keep_alive, body, expects_continue, host, conditions, cache_directives, authorization };
        Some(HeaderCacheHit { target, fields, length: input.len() - rest.len() + entry.bytes.len() })
    }

    /// Returns the target and the length of the head at the start of `input`, if [`Self::find`]
    /// would find its fields, and no body follows.
    pub fn peek_target<'a>(&self, input: &'a [u8]) -> Option<(&'a [u8], usize)> {
        let (target, rest) = split_request_line(input)?;
        let entry = self.entries.iter().find(|entry| rest.starts_with(&entry.bytes))?;
        (entry.body == Body::Done).then(|| (target, input.len() - rest.len() + entry.bytes.len()))
    }

    /// Stores the meaning of the fields of a cacheable head, unless they hold credentials or
    /// conditions. `bytes` is the head after its request line.
    pub fn insert(&mut self, bytes: &[u8], fields: &Fields<'_>) {
        // An empty host may point outside of `bytes`.
        let begin = (fields.host.as_ptr() as usize).wrapping_sub(bytes.as_ptr() as usize);
        let host = begin..begin.wrapping_add(fields.host.len());
        let is_plain = fields.authorization == Authorization::Absent && fields.conditions.is_none();
        if !is_plain || bytes.len() > MAX_CACHED_BYTES || bytes.get(host.clone()) != Some(fields.host) {
            return;
        }
        let Fields { keep_alive, body, expects_continue, cache_directives, .. } = *fields;
        let entry = self.evict();
        let mut buffer = std::mem::take(&mut entry.bytes);
        buffer.clear();
        buffer.extend_from_slice(bytes);
        *entry = CachedHeaders {
            bytes: buffer,
            host,
            keep_alive,
            body,
            expects_continue,
            cache_directives,
            referenced: false,
        };
    }

    /// Returns the entry to overwrite: a new one, or the next one without a recent hit.
    fn evict(&mut self) -> &mut CachedHeaders {
        if self.entries.len() < MAX_ENTRIES {
            self.hand = self.entries.len();
            self.entries.push(CachedHeaders {
                bytes: Vec::with_capacity(MAX_CACHED_BYTES),
                host: 0..0,
                keep_alive: false,
                body: Body::Done,
                expects_continue: false,
                cache_directives: CacheDirectives::default(),
                referenced: false,
            });
        } else {
            loop {
                self.hand = (self.hand + 1) % MAX_ENTRIES;
                if !std::mem::take(&mut self.entries[self.hand].referenced) {
                    break;
                }
            }
        }
        &mut self.entries[self.hand]
    }
}

/// Splits a cacheable head into its target and the bytes after its request line.
#[inline]
fn split_request_line(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let after_method = input.strip_prefix(METHOD.as_bytes())?.strip_prefix(b" ")?;
    let (target, after_target) = after_method.split_at(after_method.iter().position(|&byte| byte == b' ')?);
    Some((target, after_target.strip_prefix(REQUEST_LINE_END)?))
}

#[cfg(test)]
mod tests {
    use super::super::{HeadDecoder, Policy, decode};
    use super::*;
    use crate::protocol::Decoded;
    use crate::types::UpcomingKeys;

    const HEAD: &[u8] =
        b"GET /key/a HTTP/1.1\r\nHost: x:80\r\nAccept: */*\r\nCache-Control: no-cache\r\nContent-Length: 3\r\n\r\n";

    fn fields(number: usize) -> Vec<u8> {
        format!("Host: x\r\nX: {number}\r\n\r\n").into_bytes()
    }

    /// Inserts fields as if a head with them had been decoded.
    fn insert(cache: &mut HeaderCache, bytes: &[u8]) {
        let host = &bytes[b"Host: ".len()..][..1];
        let fields = Fields {
            keep_alive: true,
            body: Body::Done,
            expects_continue: false,
            host,
            conditions: None,
            cache_directives: CacheDirectives::default(),
            authorization: Authorization::Absent,
        };
        cache.insert(bytes, &fields);
    }

    fn contains(cache: &mut HeaderCache, bytes: &[u8]) -> bool {
        cache.find(&[b"GET / HTTP/1.1\r\n", bytes].concat()).is_some()
    }

    /// A head decodes to the same result with a cold and a warm cache, whatever byte differs.
    #[test]
    fn warm_cache_decodes_like_cold() {
        let mut heads = HeadDecoder::new();
        assert!(matches!(decode(HEAD, &Policy::default(), &mut heads), Decoded::Complete(..)));
        let mut inputs: Vec<Vec<u8>> = (0..HEAD.len()).map(|end| HEAD[..end].to_vec()).collect();
        for at in 0..HEAD.len() {
            for byte in (0..=255).filter(|byte| at < 30 || byte % 16 == 10) {
                let mut other = HEAD.to_vec();
                other[at] = byte;
                inputs.extend([other.clone(), [HEAD, b"GET"].concat(), [b"\r\n", &other[..]].concat()]);
            }
        }
        for target in [8191, 8192, 8193, 20_000].map(|length| "/".repeat(length)) {
            inputs.push(String::from_utf8_lossy(HEAD).replace("/key/a", &target).into_bytes());
        }
        let mut hits = 0;
        for input in inputs {
            // Other inputs may have evicted the entry.
            decode(HEAD, &Policy::default(), &mut heads);
            let printable = input.escape_ascii();
            hits += usize::from(heads.header_cache.find(&input).is_some());
            let (policy, mut cold) = (Policy::default(), HeadDecoder::new());
            assert_eq!(decode(&input, &policy, &mut heads), decode(&input, &policy, &mut cold), "{printable}");
        }
        assert!(hits > 1000, "only {hits} inputs hit the cache");
    }

    /// Fields with repeated hits stay cached; fields without a hit are evicted.
    #[test]
    fn evict_keeps_referenced_entries() {
        let mut cache = HeaderCache::new();
        let (first, second) = (fields(0), fields(1));
        insert(&mut cache, &first);
        insert(&mut cache, &second);
        for number in 2..100 {
            assert!(contains(&mut cache, &first) && contains(&mut cache, &second), "before {number}");
            insert(&mut cache, &fields(number));
        }
        assert!(
            cache.entries.len() == MAX_ENTRIES
                && contains(&mut cache, &fields(99))
                && contains(&mut cache, &fields(98))
        );
        // Unknown fields and prefixes of known fields do not hit.
        assert!(!contains(&mut cache, &fields(100)) && !contains(&mut cache, &first[..first.len() - 2]));
        let long = format!("Host: x\r\nX: {}\r\n\r\n", "x".repeat(MAX_CACHED_BYTES)).into_bytes();
        insert(&mut cache, &long);
        assert!(!contains(&mut cache, &long), "fields over the limit are cached");
    }

    /// Keys are found before they are decoded, up to the first head that is not plain and known.
    #[test]
    fn upcoming_keys_need_plain_known_heads() {
        let request = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        let mut heads = HeadDecoder::new();
        let find = |heads: &HeadDecoder, input: &str| {
            let mut keys = UpcomingKeys::new();
            let end = heads.find_upcoming_keys(input.as_bytes(), &mut keys);
            (keys.as_slice().iter().map(|key| key.escape_ascii().to_string()).collect::<Vec<_>>(), end)
        };
        let first = request("/key/a");
        assert_eq!(find(&heads, &first), (vec![], 0), "fields that no request had");
        assert!(matches!(decode(first.as_bytes(), &Policy::default(), &mut heads), Decoded::Complete(..)));
        let body = "GET /raw/c HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n";
        assert!(matches!(decode(body.as_bytes(), &Policy::default(), &mut heads), Decoded::Complete(..)));
        let two = [request("/key/a"), request("/raw/b:1")].concat();
        assert_eq!(find(&heads, &two), (vec!["a".into(), "b:1".into()], two.len()));
        let others = ["/key/%61", "/key/a?b", "/", "http://x/key/a", "/stats"].map(request);
        let cut = first[..first.len() - 1].to_string();
        let unknown = "GET /key/a HTTP/1.1\r\nHost: y\r\n\r\n".to_string();
        for other in others.into_iter().chain([cut, unknown, body.into(), first.replace("GET", "HEAD")]) {
            let input = [&first, &other, &first].map(String::as_str).concat();
            assert_eq!(find(&heads, &input), (vec!["a".into()], first.len()), "{other}");
        }
    }

    /// Fields with credentials or conditions are not stored, whatever their case and their place.
    #[test]
    fn credentials_and_conditions_are_not_cached() {
        for field in [
            "Authorization: Bearer word",
            "AUTHORIZATION: Basic YTpi",
            "authorization:",
            "Authorization: x",
            "If-None-Match: *",
            "if-match: \"a\"",
            "RANGE: bytes=0-1",
            "If-Range: x",
        ] {
            for fields in [format!("Host: x\r\n{field}\r\n\r\n"), format!("{field}\r\nHost: x\r\n\r\n")] {
                let mut heads = HeadDecoder::new();
                let head = format!("GET / HTTP/1.1\r\n{fields}");
                assert!(matches!(decode(head.as_bytes(), &Policy::default(), &mut heads), Decoded::Complete(..)));
                assert!(heads.header_cache.entries.is_empty(), "{field} is cached");
            }
        }
    }
}
