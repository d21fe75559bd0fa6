//! Scenario of the original project: twelve keys are read through a cache for three.
//!
//! Runs against a Redis and a proxy of its own. In the compose file it runs against
//! `SCENARIO_REDIS` and `SCENARIO_PROXY` (host:port), with CACHE_SIZE=3 and a CACHE_TTL of
//! `SCENARIO_TTL` seconds.

use crate::common::{HttpClient, Proxy, Redis, wait_for};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

const KEYS: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];

fn resolve(host_and_port: &str) -> SocketAddr {
    wait_for("the name resolves", || host_and_port.to_socket_addrs().ok()?.next())
}

/// Keys are cached, evicted and expire as the scenario demands.
#[test]
fn cache_of_three_evicts_and_expires() {
    match (std::env::var("SCENARIO_REDIS"), std::env::var("SCENARIO_PROXY")) {
        (Ok(redis), Ok(proxy)) => {
            let ttl = std::env::var("SCENARIO_TTL").ok().and_then(|ttl| ttl.parse().ok()).unwrap_or(15.0);
            run_scenario(&format!("redis://{redis}/"), resolve(&proxy), Duration::from_secs_f64(ttl));
        }
        _ => {
            let redis = Redis::start();
            let proxy = Proxy::start(&redis, &[("CACHE_SIZE", "3"), ("CACHE_TTL", "2.5")]);
            run_scenario(&format!("redis://127.0.0.1:{}/", redis.port), proxy.address, Duration::from_millis(2500));
        }
    }
}

fn run_scenario(redis: &str, proxy: SocketAddr, ttl: Duration) {
    let mut redis =
        redis::Client::open(redis).and_then(|client| client.get_connection()).expect("Redis accepts connections");
    for (key, value) in KEYS.iter().zip(1..) {
        redis::cmd("SET").arg(key).arg(value).exec(&mut redis).expect("SET works");
    }
    let mut client = HttpClient::connect(proxy);
    let mut read = |key: &str| client.get(&format!("/key/{key}")).text();
    let body = |value: usize, from_cache: bool| format!("{{\"value\":{value},\"fromCache\":{from_cache}}}");

    // These reads evict the entries of earlier runs.
    KEYS[9..].iter().for_each(|key| drop(read(key)));
    for (number, key) in KEYS.iter().enumerate() {
        assert_eq!(read(key), body(number + 1, false), "{key} in the first round");
    }
    for (number, key) in KEYS[..3].iter().enumerate() {
        assert_eq!(read(key), body(number + 1, false), "{key} was evicted by later keys");
    }
    let stored = Instant::now();
    for (number, key) in KEYS[..3].iter().enumerate() {
        assert_eq!(read(key), body(number + 1, true), "{key} is cached now");
    }
    // The test sleeps because it tests expiry. The entries are slightly older than `stored`.
    std::thread::sleep((stored + ttl).saturating_duration_since(Instant::now()));
    for (number, key) in KEYS[..3].iter().enumerate() {
        assert_eq!(read(key), body(number + 1, false), "{key} has expired");
    }
}
