//! Encoder of the caching fields of a response: `Cache-Status` reports what this cache did, and
//! `Cache-Control` limits what caches in front of it may do.

use crate::types::{Outage, Reply, Source};

/// `Cache-Control` of each response without a fresh value. Errors and missing keys can end at any
/// time.
pub const NO_STORE: &[u8] = b"Cache-Control: no-store\r\n";

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
/// in `source`, `Cache-Control` is `no-store`. With `is_private` only the cache of a client may
/// store a value: nginx ignores that the request had `Authorization`.
pub fn write_cache_fields(source: Source, control: CacheControl, is_private: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(b"Cache-Status: segment-redis-proxy; ");
    let ttl = match source {
        Source::Cache { ttl } => {
            out.extend_from_slice(b"hit; ttl=");
            Some(ttl)
        }
        Source::Redis { collapsed, stored } => {
            out.extend_from_slice(if collapsed { b"fwd=miss; collapsed" } else { b"fwd=miss" });
            if stored.is_some() {
                out.extend_from_slice(b"; stored; ttl=");
            }
            stored
        }
        Source::Stale { expired_for, outage } => {
            out.extend_from_slice(match outage {
                Outage::Unreachable => b"fwd=stale; detail=redis-unreachable",
                Outage::TimedOut => b"fwd=stale; detail=redis-timed-out",
                Outage::NotReady => b"fwd=stale; detail=redis-not-ready",
            });
            out.extend_from_slice(if expired_for == 0 { b"; ttl=" } else { b"; ttl=-" });
            out.extend_from_slice(itoa::Buffer::new().format(expired_for.div_ceil(1000)).as_bytes());
            None
        }
    };
    let mut buffer = itoa::Buffer::new();
    let seconds = ttl.map_or("", |ttl| buffer.format(ttl / 1000)).as_bytes();
    out.extend_from_slice(seconds);
    out.extend_from_slice(b"\r\n");
    match control {
        CacheControl::MaxAge if ttl.is_some() => {
            out.extend_from_slice(match is_private {
                true => b"Cache-Control: private, max-age=",
                false => b"Cache-Control: max-age=",
            });
            out.extend_from_slice(seconds);
            out.extend_from_slice(b", proxy-revalidate, stale-while-revalidate=0\r\n");
        }
        CacheControl::NoCache if ttl.is_some() && is_private => {
            out.extend_from_slice(b"Cache-Control: private, no-cache\r\n");
        }
        CacheControl::NoCache if ttl.is_some() => out.extend_from_slice(b"Cache-Control: no-cache\r\n"),
        _ => out.extend_from_slice(NO_STORE),
    }
}
