//! A great many entries of one size, from Redis into a proxy's memory.

use super::asking::{Answer, Client, ask_all};
use super::{Proxy, Redis};
use std::time::{SystemTime, UNIX_EPOCH};

/// Length of each value; a key has 16 bytes.
const VALUE_BYTES: usize = 100;

/// Keys asked for at once: fewer than the proxy lets wait for Redis.
const AT_ONCE: usize = 2000;

/// For so many keys, each with this value, that expire at this moment.
const SEED: &str =
    "for n = 1, ARGV[1] do redis.call('SET', string.format('entry-%010d', n), ARGV[2], 'PXAT', ARGV[3]) end";

/// Gives Redis so many of them, which all expire at `end`. A script: Redis alone is at it then.
pub fn seed(redis: &Redis, count: usize, end: SystemTime) {
    let end = end.duration_since(UNIX_EPOCH).expect("it is after 1970").as_millis();
    redis.run(&["EVAL", SEED, "0", &count.to_string(), &"x".repeat(VALUE_BYTES), &end.to_string()]);
}

/// Has the proxy read so many of them.
pub fn read(proxy: &Proxy, count: usize) {
    let mut clients: Vec<Client> = (0..4).map(|_| Client::resp(proxy.address)).collect();
    for first in (1..=count).step_by(AT_ONCE) {
        let keys: Vec<String> = (first..=count).take(AT_ONCE).map(|number| format!("entry-{number:010}")).collect();
        ask_all(&mut clients, &keys, |key, answer, _, _| {
            assert!(matches!(&answer, Answer::Value(value) if value.len() == VALUE_BYTES), "{key}: {answer:?}");
        });
    }
}
