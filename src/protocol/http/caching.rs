//! Caching fields. `Cache-Control` of a request limits what this cache may do. `Cache-Status` of a
//! response reports what it did, and `Cache-Control` limits what caches in front may do.

use super::HttpReplyFormat;
use crate::types::{Outage, Reply, Source};

/// `Cache-Control` of each response without a fresh value. Errors and missing keys can end at any
/// time.
pub const NO_STORE: &[u8] = b"Cache-Control: no-store\r\n";

/// Directives of `Cache-Control` in a request (RFC 9111, section 5.2.1).
///
/// All others have no effect. The age of a response is less than `CACHE_TTL`, and its freshness is
/// that of Redis at that time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheDirectives {
    /// The client accepts no response from this cache.
    pub no_cache: bool,
    /// The client accepts only a response from this cache.
    pub only_if_cached: bool,
}

impl CacheDirectives {
    /// Adds a field line.
    pub fn add_line(&mut self, line: &[u8]) {
        // A comma in a quoted string separates nothing (RFC 9110, section 5.6.4).
        let (mut in_quotes, mut is_escaped) = (false, false);
        let ends_directive = |&byte: &u8| {
            in_quotes ^= byte == b'"' && !is_escaped;
            is_escaped = in_quotes && byte == b'\\' && !is_escaped;
            byte == b',' && !in_quotes
        };
        for directive in line.split(ends_directive).map(<[u8]>::trim_ascii) {
            self.no_cache |= directive.eq_ignore_ascii_case(b"no-cache");
            self.only_if_cached |= directive.eq_ignore_ascii_case(b"only-if-cached");
        }
    }
}

/// Directive for caches in front that may store a response (RFC 9111, section 5.2.2). Without one,
/// caches choose a lifetime themselves (section 4.2.2).
#[derive(Clone, Copy)]
pub enum CacheControl {
    /// Reuse for the whole seconds of lifetime that the entry has left.
    ///
    /// `stale-while-revalidate=0` (RFC 5861) stops Varnish from serving an expired response for ten
    /// more seconds. `proxy-revalidate` stops Squid from serving one while the proxy sends 503.
    /// `must-revalidate` would too, but lets a shared cache serve the response to an authorised
    /// request to every client (RFC 9111, section 3.5).
    MaxAge,
    /// Reuse after revalidation only: with tracking, a value can change at any time.
    NoCache,
    /// No storage: an error, a missing key or a value that is not cached here can change at any
    /// time.
    NoStore,
}

impl CacheControl {
    /// Returns the directive for a value that is cached here.
    pub fn for_value(reply: &Reply<'_>) -> CacheControl {
        if reply.tracked { CacheControl::NoCache } else { CacheControl::MaxAge }
    }
}

/// Appends `Cache-Status` (RFC 9211) and `Cache-Control`.
///
/// `Cache-Status` reports a hit, a miss, or an expired entry served during an outage. Its ttl is in
/// whole seconds, rounded down, and so negative for an expired entry (section 2.4). Without a ttl
/// in `source`, `Cache-Control` is `no-store`. If the client had to authenticate, only its own
/// cache may store a value: nginx ignores that the request had `Authorization`.
pub fn write_cache_fields(source: Source, control: CacheControl, format: &HttpReplyFormat, out: &mut Vec<u8>) {
    let is_private = format.is_private;
    // A call for each constant costs a hit more than copying its bytes, so it has few of them.
    let ttl = match source {
        Source::Cache { ttl } => {
            out.extend_from_slice(b"Cache-Status: segment-redis-proxy; hit; ttl=");
            Some(ttl)
        }
        Source::Redis { collapsed, stored } => {
            out.extend_from_slice(match format.access.uses_cache {
                true => b"Cache-Status: segment-redis-proxy; fwd=miss",
                false => &b"Cache-Status: segment-redis-proxy; fwd=request"[..],
            });
            out.extend_from_slice(if collapsed { &b"; collapsed"[..] } else { b"" });
            if stored.is_some() {
                out.extend_from_slice(b"; stored; ttl=");
            }
            stored
        }
        Source::Stale { expired_for, outage } => {
            out.extend_from_slice(b"Cache-Status: segment-redis-proxy; fwd=stale; detail=redis-");
            out.extend_from_slice(match outage {
                Outage::Unreachable => b"unreachable",
                Outage::TimedOut => &b"timed-out"[..],
                Outage::NotReady => b"not-ready",
            });
            out.extend_from_slice(if expired_for == 0 { b"; ttl=" } else { b"; ttl=-" });
            out.extend_from_slice(itoa::Buffer::new().format(expired_for.div_ceil(1000)).as_bytes());
            None
        }
        Source::Neither => {
            out.extend_from_slice(b"Cache-Status: segment-redis-proxy; detail=only-if-cached");
            None
        }
    };
    let mut buffer = itoa::Buffer::new();
    let seconds = ttl.map_or("", |ttl| buffer.format(ttl / 1000)).as_bytes();
    out.extend_from_slice(seconds);
    let control = if ttl.is_some() { control } else { CacheControl::NoStore };
    out.extend_from_slice(match (control, is_private) {
        (CacheControl::MaxAge, true) => &b"\r\nCache-Control: private, max-age="[..],
        (CacheControl::MaxAge, false) => b"\r\nCache-Control: max-age=",
        (CacheControl::NoCache, true) => b"\r\nCache-Control: private, no-cache\r\n",
        (CacheControl::NoCache, false) => b"\r\nCache-Control: no-cache\r\n",
        (CacheControl::NoStore, _) => b"\r\nCache-Control: no-store\r\n",
    });
    if matches!(control, CacheControl::MaxAge) {
        out.extend_from_slice(seconds);
        out.extend_from_slice(b", proxy-revalidate, stale-while-revalidate=0\r\n");
    }
}
