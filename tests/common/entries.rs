//! Helpers that load a large number of equally sized entries from Redis into a proxy's cache.

use super::client::{Client, Reply, get_all};
use super::{Proxy, Redis};
use std::time::{SystemTime, UNIX_EPOCH};

/// Length of each value. Each key has 16 bytes.
const VALUE_BYTES: usize = 100;

/// Keys requested at once. Must stay below the number of keys that may wait for Redis.
const KEYS_PER_BATCH: usize = 2000;

/// Keys written by one script. Redis replies to no client while a script runs.
const KEYS_PER_SCRIPT: usize = 1_000_000;

/// Lua script that sets the keys `ARGV[1]` to `ARGV[2]` to the value `ARGV[3]`, to expire at
/// `ARGV[4]` (Unix milliseconds).
const FILL_SCRIPT: &str =
    "for n = ARGV[1], ARGV[2] do redis.call('SET', string.format('entry-%010d', n), ARGV[3], 'PXAT', ARGV[4]) end";

/// Writes `count` entries to Redis that all expire at `end`.
///
/// Scripts write them, so that the load is on Redis alone.
pub fn fill_redis(redis: &Redis, count: usize, end: SystemTime) {
    let end = end.duration_since(UNIX_EPOCH).expect("a time after 1970").as_millis().to_string();
    let value = "x".repeat(VALUE_BYTES);
    for first in (1..=count).step_by(KEYS_PER_SCRIPT) {
        let last = count.min(first + KEYS_PER_SCRIPT - 1);
        redis.run(&["EVAL", FILL_SCRIPT, "0", &first.to_string(), &last.to_string(), &value, &end]);
    }
}

/// Requests `count` entries through the proxy, which caches them.
pub fn read_through_proxy(proxy: &Proxy, count: usize) {
    let mut clients: Vec<Client> = (0..4).map(|_| Client::connect_resp(proxy.address)).collect();
    for first in (1..=count).step_by(KEYS_PER_BATCH) {
        let keys: Vec<String> =
            (first..=count).take(KEYS_PER_BATCH).map(|number| format!("entry-{number:010}")).collect();
        get_all(&mut clients, &keys, |key, reply, _, _| {
            assert!(matches!(&reply, Reply::Value(value) if value.len() == VALUE_BYTES), "{key}: {reply:?}");
        });
    }
}
