//! Tests of HTTP caches in front of the proxy: the real Varnish, nginx and Squid at their defaults,
//! the real binary, a real Redis.
//!
//! No cache may serve a response that the proxy itself no longer serves. A cache invents a lifetime
//! for a response without one (RFC 9111, section 4.2.2).
//!
//! Each test is one procedure, run with every cache of [`KINDS`] at the same time. A procedure
//! requests the key from the proxy until that has the new response, and then from the cache. The
//! proxy's own expiry is the bound, and no time is measured.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod cache;
#[path = "../common/mod.rs"]
mod common;
mod writes;

use cache::{HttpCache, KINDS, Kind};
use common::admin::parse_sample;
use common::freshness::wait_until_tracking;
use common::resp::RespClient;
use common::{Proxy, Redis, Response, wait_for};
use std::thread;

/// Number of keys that are read at different times of a second, for caches that count whole
/// seconds.
const KEYS: usize = 6;

/// One cache with proxy and Redis behind it. Fields are dropped in this order.
struct Chain {
    cache: HttpCache,
    proxy: Proxy,
    redis: Redis,
}

impl Chain {
    fn start(kind: &'static Kind, variables: &[(&str, &str)]) -> Chain {
        let redis = Redis::start();
        let proxy = Proxy::start(&redis, variables);
        let cache = HttpCache::start(kind, &proxy);
        Chain { cache, proxy, redis }
    }

    /// Returns how many HTTP requests for keys have reached the proxy.
    fn key_requests(&self) -> f64 {
        let metrics = self.proxy.get("/metrics").text();
        let total = |outcome| {
            parse_sample(&metrics, &format!("segment_requests_total{{protocol=\"http\",outcome=\"{outcome}\"}}"))
        };
        ["hit", "stale", "miss", "collapsed", "missing", "failed"].map(total).iter().sum()
    }

    /// Reads `path` through the cache. The second part is true if the proxy received no request.
    fn read(&self, path: &str) -> (Response, bool) {
        let before = self.key_requests();
        let response = self.cache.get(path);
        (response, self.key_requests() == before)
    }

    /// Reads some keys that hold "old" into the proxy and through the cache, and checks that the
    /// cache keeps them.
    fn keep_old_values(&self) -> Vec<Stored> {
        let mut kept_count = 0;
        let read = |number: usize| {
            let key = format!("key-{number}");
            let path = format!("/{}/{key}", ["raw", "key"][number % 2]);
            self.redis.set(&key, "old");
            assert_response(&self.proxy.get(&path), 200, "old");
            self.wait_for_half_second(&key);
            let first = self.cache.get(&path);
            let (second, is_kept) = self.read(&path);
            assert_response(&first, 200, "old");
            assert_response(&second, 200, "old");
            kept_count += usize::from(is_kept);
            Stored { key, path, first }
        };
        let all = (0..KEYS).map(read).collect();
        assert!(kept_count > 0, "{} asked the proxy for each value again", self.cache.kind.name);
        all
    }

    /// Waits until the remaining lifetime of the proxy's entry is about half way between two whole
    /// seconds. `max-age` is rounded down, so the time of transit cannot change the result.
    fn wait_for_half_second(&self, key: &str) {
        let mut client = RespClient::connect(self.proxy.address);
        wait_for("the lifetime is half way between two seconds", || {
            let left = client.call_text(&format!("PTTL {key}"));
            let left: i64 = left.trim_start_matches(':').trim_end().parse().expect("a number");
            (left < 0 || (300..=700).contains(&(left % 1000))).then_some(())
        });
    }

    /// Waits until the proxy itself responds to `path` with this status and text.
    fn wait_for_proxy_response(&self, path: &str, status: u16, text: &str) {
        let mut client = self.proxy.connect();
        wait_for(&format!("the proxy responds to {path} with {status} {text:?}"), || {
            matches(&client.get(path), status, text).then_some(())
        });
    }

    /// Asserts that the cache responds like the proxy, now that the proxy no longer serves the old
    /// value.
    fn assert_cache_follows(&self, stored: &Stored, status: u16, text: &str) {
        wait_for("the cache responds like the proxy", || {
            let response = self.cache.get(&stored.path);
            if matches(&response, status, text) {
                return Some(());
            }
            let is_last_second = self.cache.kind.keeps_last_second && stored.is_in_last_second(&response);
            assert!(is_last_second, "{} serves {response:?} instead of {text:?}", self.cache.kind.name);
            None
        });
    }
}

/// Value that a cache has stored, with its first response.
struct Stored {
    key: String,
    path: String,
    first: Response,
}

impl Stored {
    /// Returns true if a response left the cache within the last second of the stored lifetime, by
    /// the clock of the cache.
    fn is_in_last_second(&self, response: &Response) -> bool {
        let directives = self.first.header("cache-control").split(", ");
        let lifetime = directives.filter_map(|directive| directive.strip_prefix("max-age=")).next();
        let lifetime: u64 = lifetime.and_then(|seconds| seconds.parse().ok()).expect("a lifetime");
        let [first, last] = [&self.first, response].map(|response| {
            let date = httpdate::parse_http_date(response.header("date")).expect("a date");
            date.duration_since(std::time::UNIX_EPOCH).expect("a date after 1970").as_secs()
        });
        last <= first + lifetime
    }
}

/// Returns true if a response has this status, and this text in its body.
fn matches(response: &Response, status: u16, text: &str) -> bool {
    response.status == status && response.text().contains(text)
}

fn assert_response(response: &Response, status: u16, text: &str) {
    assert!(matches(response, status, text), "{response:?} instead of {status} {text:?}");
}

/// Runs a procedure with every cache. The name of the thread is that of the cache.
fn with_each_cache(variables: &[(&str, &str)], procedure: impl Fn(&mut Chain) + Sync) {
    thread::scope(|scope| {
        for kind in &KINDS {
            let run = || procedure(&mut Chain::start(kind, variables));
            thread::Builder::new().name(kind.name.to_owned()).spawn_scoped(scope, run).expect("a thread");
        }
    });
}

/// A cache stores a value no longer than the proxy: both serve the new one after the expiry.
#[test]
fn changed_value_is_served_after_expiry() {
    with_each_cache(&[("CACHE_TTL", "3")], |chain| {
        let all = chain.keep_old_values();
        all.iter().for_each(|stored| chain.redis.set(&stored.key, "new"));
        for stored in &all {
            chain.wait_for_proxy_response(&stored.path, 200, "new");
            chain.assert_cache_follows(stored, 200, "new");
        }
    });
}

/// During an outage a cache serves the error of the proxy instead of an expired value.
#[test]
fn expired_value_during_outage_not_served() {
    with_each_cache(&[("CACHE_TTL", "3")], |chain| {
        let all = chain.keep_old_values();
        chain.redis.kill();
        for stored in &all {
            chain.wait_for_proxy_response(&stored.path, 503, "error");
            chain.assert_cache_follows(stored, 503, "error");
        }
    });
}

/// A cache serves a fresh value without a request to the proxy (`max-age`).
#[test]
fn fresh_value_needs_no_second_request() {
    with_each_cache(&[("CACHE_TTL", "600")], |chain| {
        for path in ["/raw/a", "/key/a"] {
            chain.redis.set("a", "value");
            assert_response(&chain.cache.get(path), 200, "value");
            let (response, is_kept) = chain.read(path);
            assert_response(&response, 200, "value");
            assert!(is_kept, "{} asked the proxy again: {response:?}", chain.cache.kind.name);
        }
    });
}

/// A cache does not store the response that a key is missing.
#[test]
fn missing_key_is_not_stored() {
    with_each_cache(&[], |chain| {
        for path in ["/raw/a", "/key/b"] {
            assert_eq!(chain.cache.get(path).status, 404);
        }
        chain.redis.run(&["MSET", "a", "value", "b", "value"]);
        for path in ["/raw/a", "/key/b"] {
            assert_response(&chain.cache.get(path), 200, "value");
        }
    });
}

/// With tracking, a change is visible through the cache as soon as the proxy serves it.
#[test]
fn tracked_change_is_visible_at_once() {
    with_each_cache(&[("REDIS_TRACKING", "on"), ("CACHE_TTL", "600")], |chain| {
        wait_until_tracking(&chain.proxy, 1);
        for path in ["/raw/a", "/key/a"] {
            chain.redis.set("a", "old");
            chain.wait_for_proxy_response(path, 200, "old");
            // The first response may come from Redis. Later ones come from memory.
            for _ in 0..3 {
                assert_response(&chain.cache.get(path), 200, "old");
            }
            chain.redis.set("a", "new");
            chain.wait_for_proxy_response(path, 200, "new");
            assert_response(&chain.cache.get(path), 200, "new");
        }
    });
}

/// A cache does not store an error, and serves the value once the proxy does.
#[test]
fn redis_error_is_not_stored() {
    with_each_cache(&[], |chain| {
        chain.redis.kill();
        for path in ["/raw/a", "/key/a"] {
            assert_response(&chain.cache.get(path), 503, "error");
        }
        chain.redis.restart();
        chain.redis.set("a", "value");
        for path in ["/raw/a", "/key/a"] {
            chain.wait_for_proxy_response(path, 200, "value");
            assert_response(&chain.cache.get(path), 200, "value");
        }
    });
}

/// A cache does not store a stale value that the proxy serves in an outage (`STALE_IF_ERROR`).
#[test]
fn stale_value_is_not_stored() {
    with_each_cache(&[("CACHE_TTL", "1"), ("STALE_IF_ERROR", "600")], |chain| {
        chain.redis.set("a", "old");
        assert_response(&chain.proxy.get("/raw/a"), 200, "old");
        chain.redis.kill();
        wait_for("the value is stale", || {
            chain.proxy.get("/raw/a").header("cache-status").contains("fwd=stale").then_some(())
        });
        for _ in 0..3 {
            assert_response(&chain.cache.get("/raw/a"), 200, "old");
        }
        chain.redis.restart();
        chain.redis.set("a", "new");
        chain.wait_for_proxy_response("/raw/a", 200, "new");
        assert_response(&chain.cache.get("/raw/a"), 200, "new");
    });
}

/// A response to a request with `Authorization` is not reused for a request without (RFC 9111,
/// section 3.5). A gateway in front of the proxy may require that field.
#[test]
fn authorised_response_is_not_shared() {
    with_each_cache(&[("CACHE_TTL", "600")], |chain| {
        chain.redis.set("a", "value");
        let before = chain.key_requests();
        assert_response(&chain.cache.get_with("/raw/a", "Authorization: Basic dTpw\r\n"), 200, "value");
        assert_response(&chain.cache.get("/raw/a"), 200, "value");
        // nginx stores the response: its documentation recommends `proxy_cache_bypass` for that.
        let expected = if chain.cache.kind.keeps_last_second { 1.0 } else { 2.0 };
        assert!(chain.key_requests() - before >= expected, "{} reused the response", chain.cache.kind.name);
    });
}

/// With `CLIENT_PASSWORD` no cache serves a value to a client without the password, and 401 is not
/// stored.
#[test]
fn password_protects_values_behind_cache() {
    with_each_cache(&[("CACHE_TTL", "600"), ("CLIENT_PASSWORD", "word")], |chain| {
        chain.redis.set("a", "the value");
        for _ in 0..3 {
            assert_response(&chain.cache.get("/raw/a"), 401, "authentication required");
            assert_response(&chain.cache.get_with("/raw/a", "Authorization: Bearer wrong\r\n"), 401, "authentication");
            let response = chain.cache.get_with("/raw/a", "Authorization: Bearer word\r\n");
            // An accelerator of Squid removes the field, unless its peer has login=PASSTHRU.
            if chain.cache.kind.name != "Squid, accelerator" {
                assert_response(&response, 200, "the value");
            }
        }
    });
}
