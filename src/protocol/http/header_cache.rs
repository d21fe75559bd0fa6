//! The fields of heads that were decoded lately. Behind the request line a client says mostly the same in all its requests, byte
//! for byte; what that means is the same too (`fields`), and need not be found out again.
//!
//! Nothing follows from what is known for any other bytes: a head that differs by one byte behind its request line is decoded as
//! if nothing were known, and so is every line that is not plain. So whether fields are known changes what a head costs, never
//! what it means. What was known last stays in memory, as what was read last does, whatever a client has sent in it.

use super::fields::Fields;
use super::{Body, Status};
use std::ops::Range;

/// How many are known: a few kinds of clients. Where each request has fields of its own, looking for them in vain, and remembering
/// them in vain, costs a seventh of decoding them.
const MAX_ENTRIES: usize = 4;

/// Longest fields that are remembered, in bytes: a browser's, with room for what proxies in front of this one add.
const MAX_CACHED_BYTES: usize = 1024;

/// What a usual request line begins and ends with: a head that is known has this method, and is of this version.
pub const METHOD: &str = "GET";
const LINE_END: &[u8] = b" HTTP/1.1\r\n";

/// See the top of the file.
#[derive(Debug)]
pub struct HeaderCache {
    known: Vec<CachedHeaders>,
    /// Which one is looked at first for its place.
    next: usize,
}

/// Everything between a request line of HTTP/1.1 and a body, and what it means.
#[derive(Debug)]
struct CachedHeaders {
    bytes: Vec<u8>,
    /// Where in them the host is.
    host: Range<usize>,
    keep_alive: bool,
    body: Body,
    expects_answer: bool,
    unmet: Option<Status>,
    /// Whether it was met since its place was last wanted for another one.
    referenced: bool,
}

/// A head whose fields are known.
pub struct HeaderCacheHit<'a> {
    pub target: &'a [u8],
    pub fields: Fields<'a>,
    /// Of all of it.
    pub length: usize,
}

impl HeaderCache {
    /// Nothing is known.
    pub fn new() -> HeaderCache {
        HeaderCache { known: Vec::with_capacity(MAX_ENTRIES), next: 0 }
    }

    /// The head at the beginning of `input`, if it is a usual one and its fields are known. The target may be any bytes.
    pub fn find<'a>(&mut self, input: &'a [u8]) -> Option<HeaderCacheHit<'a>> {
        let behind_method = input.strip_prefix(METHOD.as_bytes())?.strip_prefix(b" ")?;
        let (target, behind_target) = behind_method.split_at(behind_method.iter().position(|&byte| byte == b' ')?);
        let rest = behind_target.strip_prefix(LINE_END)?;
        let known = self.known.iter_mut().find(|known| rest.starts_with(&known.bytes))?;
        known.referenced = true;
        let CachedHeaders { keep_alive, body, expects_answer, unmet, .. } = *known;
        let fields = Fields { keep_alive, body, expects_answer, host: &rest[known.host.clone()], unmet };
        Some(HeaderCacheHit { target, fields, length: input.len() - rest.len() + known.bytes.len() })
    }

    /// Remembers what the fields of a usual head mean: `bytes` is all of it behind its request line.
    pub fn insert(&mut self, bytes: &[u8], fields: &Fields<'_>) {
        // Where there is no host, it may be anywhere.
        let begin = (fields.host.as_ptr() as usize).wrapping_sub(bytes.as_ptr() as usize);
        let host = begin..begin.wrapping_add(fields.host.len());
        if bytes.len() > MAX_CACHED_BYTES || bytes.get(host.clone()) != Some(fields.host) {
            return;
        }
        let Fields { keep_alive, body, expects_answer, unmet, .. } = *fields;
        let place = self.evict();
        let mut own = std::mem::take(&mut place.bytes);
        own.clear();
        own.extend_from_slice(bytes);
        *place = CachedHeaders { bytes: own, host, keep_alive, body, expects_answer, unmet, referenced: false };
    }

    /// A place for another one: that of one that was not met lately.
    fn evict(&mut self) -> &mut CachedHeaders {
        if self.known.len() < MAX_ENTRIES {
            self.next = self.known.len();
            let bytes = Vec::with_capacity(MAX_CACHED_BYTES);
            let (keep_alive, body, expects_answer, unmet, met) = (false, Body::Done, false, None, false);
            self.known.push(CachedHeaders {
                bytes,
                host: 0..0,
                keep_alive,
                body,
                expects_answer,
                unmet,
                referenced: met,
            });
        } else {
            loop {
                self.next = (self.next + 1) % MAX_ENTRIES;
                if !std::mem::take(&mut self.known[self.next].referenced) {
                    break;
                }
            }
        }
        &mut self.known[self.next]
    }
}

#[cfg(test)]
mod tests {
    use super::super::{HeadDecoder, Policy, decode};
    use super::*;
    use crate::protocol::Decoded;

    const HEAD: &[u8] =
        b"GET /key/a HTTP/1.1\r\nHost: x:80\r\nAccept: */*\r\nIf-None-Match: *\r\nContent-Length: 3\r\n\r\n";

    fn fields(number: usize) -> Vec<u8> {
        format!("Host: x\r\nX: {number}\r\n\r\n").into_bytes()
    }

    /// Notes fields as if a head with them had been decoded.
    fn insert(known: &mut HeaderCache, bytes: &[u8]) {
        let host = &bytes[b"Host: ".len()..][..1];
        let (body, unmet) = (Body::Done, None);
        known.insert(bytes, &Fields { keep_alive: true, body, expects_answer: false, host, unmet });
    }

    fn knows(known: &mut HeaderCache, bytes: &[u8]) -> bool {
        known.find(&[b"GET / HTTP/1.1\r\n", bytes].concat()).is_some()
    }

    #[test]
    fn what_is_known_makes_no_difference() {
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
        let mut found = 0;
        for input in inputs {
            // Others may have been decoded meanwhile.
            decode(HEAD, &Policy::default(), &mut heads);
            let shown = input.escape_ascii();
            found += usize::from(heads.known.find(&input).is_some());
            let (policy, mut new) = (Policy::default(), HeadDecoder::new());
            assert_eq!(decode(&input, &policy, &mut heads), decode(&input, &policy, &mut new), "{shown}");
        }
        assert!(found > 1000, "{found} of them were known");
    }

    #[test]
    fn fields_that_are_met_again_stay_and_those_met_once_make_room() {
        let mut known = HeaderCache::new();
        let (first, second) = (fields(0), fields(1));
        insert(&mut known, &first);
        insert(&mut known, &second);
        for number in 2..100 {
            assert!(knows(&mut known, &first) && knows(&mut known, &second), "before {number}");
            insert(&mut known, &fields(number));
        }
        assert!(known.known.len() == MAX_ENTRIES && knows(&mut known, &fields(99)) && knows(&mut known, &fields(98)));
        // Of those that are not, nothing is taken for known.
        assert!(!knows(&mut known, &fields(100)) && !knows(&mut known, &first[..first.len() - 2]));
        let long = format!("Host: x\r\nX: {}\r\n\r\n", "x".repeat(MAX_CACHED_BYTES)).into_bytes();
        insert(&mut known, &long);
        assert!(!knows(&mut known, &long), "too much is kept");
    }
}
