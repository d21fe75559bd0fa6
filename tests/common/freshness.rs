//! What the tests of freshness share.

use super::{HttpClient, Proxy, Response, wait_for};
use std::time::Duration;

/// A number from the environment.
pub fn env_number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |number| number.parse().expect("a number"))
}

/// How long after a write is acknowledged it may still be unknown to the proxy: a network hop, and two threads that have
/// to be scheduled. 50 ms are plenty on a machine that has nothing else to do (`FRESHNESS_HOP=50`); here other tests run.
pub fn max_propagation() -> Duration {
    Duration::from_millis(env_number("FRESHNESS_HOP", 500))
}

/// A proxy with tracking that has told that it tracks.
pub fn start_tracking_proxy(redis_port: u16, variables: &[(&str, &str)]) -> Proxy {
    let base = [("REDIS_TRACKING", "on"), ("CACHE_TTL", "600")];
    let proxy = Proxy::start_on_redis_port(redis_port, &[&base, variables].concat());
    wait_until_tracking(&proxy, 1);
    proxy
}

/// Waits until the log tells for the `count`th time that changes are heard of.
pub fn wait_until_tracking(proxy: &Proxy, count: usize) {
    wait_for("changes are heard of", || {
        (proxy.log().matches("at once (tracking active)").count() >= count).then_some(())
    });
}

pub fn is_hit(response: &Response) -> bool {
    response.header("cache-status").starts_with("segment-redis-proxy; hit")
}

/// Reads until a value is there and cached.
pub fn wait_until_cached(client: &mut HttpClient, path: &str, value: &str) {
    wait_for("it is cached", || {
        let response = client.get(path);
        (response.text() == value && is_hit(&response)).then_some(())
    });
}

/// Reads until it is something else.
pub fn wait_until_text(client: &mut HttpClient, path: &str, text: &str) {
    wait_for(&format!("{path} is {text:?}"), || (client.get(path).text() == text).then_some(()));
}
