//! Fields about caching: `Cache-Status`, what this cache did, and `Cache-Control`, what those in front
//! may do.

use crate::types::{Outage, Reply, Source};

/// Nothing but a fresh value may be kept: an error or a missing key can be over at any time.
pub const NO_STORE: &[u8] = b"Cache-Control: no-store\r\n";

/// Permission for caches in front to keep a response (RFC 9111, section 5.2.2). Without one caches
/// invent a lifetime.
#[derive(Clone, Copy)]
pub enum Keeping {
    /// For the whole seconds that the entry has left. Varnish serves what has expired for ten seconds
    /// more unless `stale-while-revalidate=0` (RFC 5861) forbids it, and Squid where the proxy answers
    /// 503 unless `proxy-revalidate` does. `must-revalidate` would forbid it too, and let a shared cache
    /// serve the answer to an authorised request to everyone (RFC 9111, section 3.5).
    WhileFresh,
    /// Not without asking: with tracking a value can change at any time.
    Revalidated,
    /// Never: an error, a missing key or a value that is not cached here can be over at any time.
    Never,
}

impl Keeping {
    /// Returns how long a value may be kept that is cached here.
    pub fn of(reply: &Reply<'_>) -> Keeping {
        if reply.tracked { Keeping::Revalidated } else { Keeping::WhileFresh }
    }
}

/// Writes `Cache-Status` (RFC 9211): a hit, or forwarded for a miss, or for an expired entry that had to do; the ttl in whole
/// seconds, rounded down, and so negative where the entry has expired (section 2.4). And `Cache-Control`.
pub fn write_cache_fields(source: Source, keeping: Keeping, out: &mut Vec<u8>) {
    out.extend_from_slice(b"Cache-Status: segment-redis-proxy; ");
    let ttl = match source {
        Source::Cache { ttl: remaining } => {
            out.extend_from_slice(b"hit; ttl=");
            Some(remaining)
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
    match keeping {
        Keeping::WhileFresh if ttl.is_some() => {
            out.extend_from_slice(b"Cache-Control: max-age=");
            out.extend_from_slice(seconds);
            out.extend_from_slice(b", proxy-revalidate, stale-while-revalidate=0\r\n");
        }
        Keeping::Revalidated if ttl.is_some() => out.extend_from_slice(b"Cache-Control: no-cache\r\n"),
        _ => out.extend_from_slice(NO_STORE),
    }
}
