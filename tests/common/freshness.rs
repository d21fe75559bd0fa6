//! Helpers for tests of freshness: tracking, cache hits, and the time a change may take.

use super::{HttpClient, Proxy, Response, wait_for};
use std::time::Duration;

/// Returns the number in an environment variable, or `default` if it is not set.
pub fn env_number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |number| number.parse().expect("a number"))
}

/// Returns the longest time between the acknowledgement of a write and its effect in the proxy.
///
/// The time covers one network hop and the scheduling of two threads. An idle machine needs less
/// than 50 ms (`FRESHNESS_HOP=50`). The default of 500 ms allows for other tests that run in
/// parallel.
pub fn max_propagation() -> Duration {
    Duration::from_millis(env_number("FRESHNESS_HOP", 500))
}

/// Returns the longest time between a change of the topology and its effect in the proxy.
///
/// Promised are 500 ms more than `interval` (`REDIS_TOPOLOGY_INTERVAL`), which an idle machine
/// keeps (`FRESHNESS_TOPOLOGY=500`). The default of 2 s allows for other tests that run in
/// parallel.
pub fn max_topology_delay(interval: Duration) -> Duration {
    interval + Duration::from_millis(env_number("FRESHNESS_TOPOLOGY", 2000))
}

/// Starts a proxy with tracking and waits until its log reports that tracking is active.
pub fn start_tracking_proxy(redis_port: u16, variables: &[(&str, &str)]) -> Proxy {
    let base = [("REDIS_TRACKING", "on"), ("CACHE_TTL", "600")];
    let proxy = Proxy::start_on_redis_port(redis_port, &[&base, variables].concat());
    wait_until_tracking(&proxy, 1);
    proxy
}

/// Waits until the log has reported `count` times that tracking is active.
pub fn wait_until_tracking(proxy: &Proxy, count: usize) {
    wait_for("tracking is active", || {
        (proxy.log().matches("at once (tracking active)").count() >= count).then_some(())
    });
}

/// Returns true if the response came from the cache.
pub fn is_hit(response: &Response) -> bool {
    response.header("cache-status").starts_with("segment-redis-proxy; hit")
}

/// Requests `path` until the response is `value`, served from the cache.
pub fn wait_until_cached(client: &mut HttpClient, path: &str, value: &str) {
    wait_for("the value is cached", || {
        let response = client.get(path);
        (response.text() == value && is_hit(&response)).then_some(())
    });
}

/// Requests `path` until the response is `text`.
pub fn wait_until_text(client: &mut HttpClient, path: &str, text: &str) {
    wait_for(&format!("{path} is {text:?}"), || (client.get(path).text() == text).then_some(()));
}
