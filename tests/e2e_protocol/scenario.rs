//! The scenario of the original project, end to end: twelve keys, a cache for three.
//!
//! Runs against a Redis and a proxy of its own, or, in the compose file, against those that
//! `SCENARIO_REDIS` and `SCENARIO_PROXY` (host:port) name, started with CACHE_SIZE=3 and `SCENARIO_TTL` seconds.

use crate::common::{HttpClient, Proxy, Redis, wait_for};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

const KEYS: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];

fn address(host_and_port: &str) -> SocketAddr {
    wait_for("the name resolves", || host_and_port.to_socket_addrs().ok()?.next())
}

#[test]
fn twelve_keys_through_a_cache_for_three() {
    match (std::env::var("SCENARIO_REDIS"), std::env::var("SCENARIO_PROXY")) {
        (Ok(redis), Ok(proxy)) => {
            let ttl = std::env::var("SCENARIO_TTL").ok().and_then(|ttl| ttl.parse().ok()).unwrap_or(15.0);
            play(&format!("redis://{redis}/"), address(&proxy), Duration::from_secs_f64(ttl));
        }
        _ => {
            let redis = Redis::start();
            let proxy = Proxy::start(&redis, &[("CACHE_SIZE", "3"), ("CACHE_TTL", "2.5")]);
            play(&format!("redis://127.0.0.1:{}/", redis.port), proxy.address, Duration::from_millis(2500));
        }
    }
}

fn play(redis: &str, proxy: SocketAddr, ttl: Duration) {
    let mut redis = redis::Client::open(redis).and_then(|client| client.get_connection()).expect("Redis is there");
    for (key, value) in KEYS.iter().zip(1..) {
        redis::cmd("SET").arg(key).arg(value).exec(&mut redis).expect("SET works");
    }
    let mut client = HttpClient::connect(proxy);
    let mut read = |key: &str| client.get(&format!("/key/{key}")).text();
    let answer = |value: usize, from_cache: bool| format!("{{\"value\":{value},\"fromCache\":{from_cache}}}");

    // Whatever an earlier run has left in memory makes room for these.
    KEYS[9..].iter().for_each(|key| drop(read(key)));
    for (number, key) in KEYS.iter().enumerate() {
        assert_eq!(read(key), answer(number + 1, false), "{key} the first time");
    }
    for (number, key) in KEYS[..3].iter().enumerate() {
        assert_eq!(read(key), answer(number + 1, false), "{key} was evicted by those after it");
    }
    let stored = Instant::now();
    for (number, key) in KEYS[..3].iter().enumerate() {
        assert_eq!(read(key), answer(number + 1, true), "{key} is in memory now");
    }
    // Time has to pass here: that is what is tested. The entries are a little older than `stored`.
    std::thread::sleep((stored + ttl).saturating_duration_since(Instant::now()));
    for (number, key) in KEYS[..3].iter().enumerate() {
        assert_eq!(read(key), answer(number + 1, false), "{key} is past its time");
    }
}
