//! HTTP caches in front of the proxy: the real Varnish, nginx and Squid at their defaults, the real
//! binary, a real Redis. No cache may serve what the proxy itself no longer serves (RFC 9111,
//! section 4.2.2: without a lifetime it invents one).
//!
//! Each test is one procedure, run with every cache of [`KINDS`] at the same time. A procedure asks
//! the proxy itself until that has the new answer, and the cache then: the proxy's own expiry is
//! the bound, and no time is measured.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may stop at what it did not expect")]

mod cache;
#[path = "../common/mod.rs"]
mod common;

use cache::{HttpCache, KINDS, Kind};
use common::admin::parse_sample;
use common::freshness::wait_until_tracking;
use common::resp::RespClient;
use common::{Proxy, Redis, Response, wait_for};
use std::thread;

/// Keys that are read at different moments of a second, for caches that count in whole ones.
const KEYS: usize = 6;

/// One cache with everything behind it. Fields are dropped in this order.
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

    /// Reads `path` through the cache. Returns true as the second part if the proxy was not asked
    /// for it.
    fn read(&self, path: &str) -> (Response, bool) {
        let before = self.key_requests();
        let response = self.cache.get(path);
        (response, self.key_requests() == before)
    }

    /// Reads some keys that hold "old" into the proxy and through the cache, and checks that the
    /// cache keeps them.
    fn keep_old_values(&self) -> Vec<Kept> {
        let mut kept_count = 0;
        let read = |number: usize| {
            let key = format!("key-{number}");
            let path = format!("/{}/{key}", ["raw", "key"][number % 2]);
            self.redis.set(&key, "old");
            assert_is(&self.proxy.get(&path), 200, "old");
            self.until_part_of_second_left(&key);
            let first = self.cache.get(&path);
            let (second, is_kept) = self.read(&path);
            assert_is(&first, 200, "old");
            assert_is(&second, 200, "old");
            kept_count += usize::from(is_kept);
            Kept { key, path, first }
        };
        let all = (0..KEYS).map(read).collect();
        assert!(kept_count > 0, "{} asked the proxy for each value again", self.cache.kind.name);
        all
    }

    /// Waits until the proxy's entry for `key` has a broken number of seconds left, about half way
    /// between two whole ones. Rounding down gives that part away, so that the time a response is
    /// on its way cannot matter.
    fn until_part_of_second_left(&self, key: &str) {
        let mut client = RespClient::connect(self.proxy.address);
        wait_for("a part of a second is left", || {
            let left = client.call_text(&format!("PTTL {key}"));
            let left: i64 = left.trim_start_matches(':').trim_end().parse().expect("a number");
            (left < 0 || (300..=700).contains(&(left % 1000))).then_some(())
        });
    }

    /// Waits until the proxy itself answers `path` like this.
    fn until_proxy_answers(&self, path: &str, status: u16, text: &str) {
        let mut client = self.proxy.connect();
        wait_for(&format!("the proxy answers {path} with {status} {text:?}"), || {
            is(&client.get(path), status, text).then_some(())
        });
    }

    /// Asserts that the cache answers like the proxy, now that the proxy no longer answers what the
    /// cache has kept.
    fn assert_passes_on(&self, kept: &Kept, status: u16, text: &str) {
        wait_for("the cache answers like the proxy", || {
            let response = self.cache.get(&kept.path);
            if is(&response, status, text) {
                return Some(());
            }
            let is_last_second = self.cache.kind.keeps_last_second && kept.is_in_last_second(&response);
            assert!(is_last_second, "{} serves {response:?} instead of {text:?}", self.cache.kind.name);
            None
        });
    }
}

/// Value that a cache keeps, with its first answer.
struct Kept {
    key: String,
    path: String,
    first: Response,
}

impl Kept {
    /// Returns true if a response left the cache within the second in which the lifetime of what it
    /// kept ends, both by the cache's own clock.
    fn is_in_last_second(&self, response: &Response) -> bool {
        let directives = self.first.header("cache-control").split(", ");
        let lifetime = directives.filter_map(|directive| directive.strip_prefix("max-age=")).next();
        let lifetime: u64 = lifetime.and_then(|seconds| seconds.parse().ok()).expect("a lifetime");
        let [first, last] = [&self.first, response].map(|response| {
            let date = httpdate::parse_http_date(response.header("date")).expect("a date");
            date.duration_since(std::time::UNIX_EPOCH).expect("it is after 1970").as_secs()
        });
        last <= first + lifetime
    }
}

/// Returns true if a response has this status, and this text in its body.
fn is(response: &Response, status: u16, text: &str) -> bool {
    response.status == status && response.text().contains(text)
}

fn assert_is(response: &Response, status: u16, text: &str) {
    assert!(is(response, status, text), "{response:?} instead of {status} {text:?}");
}

/// Runs a procedure with every cache. A thread's name tells which one fails.
fn with_each_cache(variables: &[(&str, &str)], procedure: impl Fn(&mut Chain) + Sync) {
    thread::scope(|scope| {
        for kind in &KINDS {
            let run = || procedure(&mut Chain::start(kind, variables));
            thread::Builder::new().name(kind.name.to_owned()).spawn_scoped(scope, run).expect("a thread");
        }
    });
}

/// A value is kept no longer than the proxy keeps it: once that answers with the new one, so does
/// the cache.
#[test]
fn expired_value_changed_key_not_served() {
    with_each_cache(&[("CACHE_TTL", "3")], |chain| {
        let all = chain.keep_old_values();
        all.iter().for_each(|kept| chain.redis.set(&kept.key, "new"));
        for kept in &all {
            chain.until_proxy_answers(&kept.path, 200, "new");
            chain.assert_passes_on(kept, 200, "new");
        }
    });
}

/// A value that has expired is not served in an outage either: the proxy's error is.
#[test]
fn expired_value_during_outage_not_served() {
    with_each_cache(&[("CACHE_TTL", "3")], |chain| {
        let all = chain.keep_old_values();
        chain.redis.kill();
        for kept in &all {
            chain.until_proxy_answers(&kept.path, 503, "error");
            chain.assert_passes_on(kept, 503, "error");
        }
    });
}

/// A cache does serve a value by itself as long as it may: `max-age` saves requests.
#[test]
fn fresh_value_asked_twice_served_alone() {
    with_each_cache(&[("CACHE_TTL", "600")], |chain| {
        for path in ["/raw/a", "/key/a"] {
            chain.redis.set("a", "value");
            assert_is(&chain.cache.get(path), 200, "value");
            let (response, is_kept) = chain.read(path);
            assert_is(&response, 200, "value");
            assert!(is_kept, "{} asked the proxy again: {response:?}", chain.cache.kind.name);
        }
    });
}

/// The answer that a key is missing is not kept.
#[test]
fn missing_key_then_set_is_found() {
    with_each_cache(&[], |chain| {
        for path in ["/raw/a", "/key/b"] {
            assert_eq!(chain.cache.get(path).status, 404);
        }
        chain.redis.run(&["MSET", "a", "value", "b", "value"]);
        for path in ["/raw/a", "/key/b"] {
            assert_is(&chain.cache.get(path), 200, "value");
        }
    });
}

/// With tracking, a change that the proxy has received is seen through the cache at once.
#[test]
fn tracked_key_changed_new_value_served() {
    with_each_cache(&[("REDIS_TRACKING", "on"), ("CACHE_TTL", "600")], |chain| {
        wait_until_tracking(&chain.proxy, 1);
        for path in ["/raw/a", "/key/a"] {
            chain.redis.set("a", "old");
            chain.until_proxy_answers(path, 200, "old");
            // The first answer is from Redis or from memory, those after it are from memory.
            for _ in 0..3 {
                assert_is(&chain.cache.get(path), 200, "old");
            }
            chain.redis.set("a", "new");
            chain.until_proxy_answers(path, 200, "new");
            assert_is(&chain.cache.get(path), 200, "new");
        }
    });
}

/// An error is not kept: once the proxy answers with the value, so does the cache.
#[test]
fn redis_error_after_recovery_not_kept() {
    with_each_cache(&[], |chain| {
        chain.redis.kill();
        for path in ["/raw/a", "/key/a"] {
            assert_is(&chain.cache.get(path), 503, "error");
        }
        chain.redis.restart();
        chain.redis.set("a", "value");
        for path in ["/raw/a", "/key/a"] {
            chain.until_proxy_answers(path, 200, "value");
            assert_is(&chain.cache.get(path), 200, "value");
        }
    });
}

/// A stale value that the proxy serves in an outage (`STALE_IF_ERROR`) is not kept.
#[test]
fn stale_value_after_recovery_not_kept() {
    with_each_cache(&[("CACHE_TTL", "1"), ("STALE_IF_ERROR", "600")], |chain| {
        chain.redis.set("a", "old");
        assert_is(&chain.proxy.get("/raw/a"), 200, "old");
        chain.redis.kill();
        wait_for("the value is stale", || {
            chain.proxy.get("/raw/a").header("cache-status").contains("fwd=stale").then_some(())
        });
        for _ in 0..3 {
            assert_is(&chain.cache.get("/raw/a"), 200, "old");
        }
        chain.redis.restart();
        chain.redis.set("a", "new");
        chain.until_proxy_answers("/raw/a", 200, "new");
        assert_is(&chain.cache.get("/raw/a"), 200, "new");
    });
}

/// The answer to a request with `Authorization`, which a gateway in front of the proxy may ask for,
/// is not reused for a request without (RFC 9111, section 3.5).
#[test]
fn authorised_answer_is_not_shared() {
    with_each_cache(&[("CACHE_TTL", "600")], |chain| {
        chain.redis.set("a", "value");
        let before = chain.key_requests();
        assert_is(&chain.cache.get_with("/raw/a", "Authorization: Basic dTpw\r\n"), 200, "value");
        assert_is(&chain.cache.get("/raw/a"), 200, "value");
        // nginx keeps it all the same: its own documentation asks for `proxy_cache_bypass` there.
        let asked = if chain.cache.kind.keeps_last_second { 1.0 } else { 2.0 };
        assert!(chain.key_requests() - before >= asked, "{} reused the answer", chain.cache.kind.name);
    });
}
