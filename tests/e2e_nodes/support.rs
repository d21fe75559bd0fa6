//! Helpers of the tests in this directory.

use crate::common::admin::read_metric;
use crate::common::client::{Client, Reply};
use crate::common::cluster::ClusterClient;
use crate::common::freshness::{max_topology_delay, wait_until_cached};
use crate::common::{Proxy, wait_for};
use std::time::{Duration, Instant};

/// Topology interval of these tests. The default of a second would only make them longer.
pub const INTERVAL: (&str, &str) = ("REDIS_TOPOLOGY_INTERVAL", "200");

/// Returns the longest time until a change of the topology has its effect, with [`INTERVAL`].
pub fn max_delay() -> Duration {
    max_topology_delay(Duration::from_millis(200))
}

/// Calls `poll` until it returns a value. Fails if that took longer than `limit` since `start`.
pub fn wait_within<T>(what: &str, start: Instant, limit: Duration, poll: impl FnMut() -> Option<T>) -> T {
    let value = wait_for(what, poll);
    let elapsed = start.elapsed();
    println!("{what}: after {elapsed:?} of at most {limit:?}");
    assert!(elapsed <= limit, "{what}: after {elapsed:?}, more than {limit:?}");
    value
}

/// Returns the path of the raw value of a key.
pub fn path_of(key: &str) -> String {
    format!("/raw/{key}")
}

/// Writes a value to all keys.
pub fn set_all(client: &mut ClusterClient, keys: &[String], value: &str) {
    keys.iter().for_each(|key| client.set(key, value));
}

/// Requests keys until each is served from the cache with a value.
pub fn cache_all(proxy: &Proxy, keys: &[String], value: &str) {
    let mut client = proxy.connect();
    keys.iter().for_each(|key| wait_until_cached(&mut client, &path_of(key), value));
}

/// Waits until all workers have active tracking.
pub fn wait_until_all_track(proxy: &Proxy) {
    wait_for("tracking is active", || {
        let wanted = read_metric(proxy, "segment_tracking_wanted");
        (wanted > 0.0 && read_metric(proxy, "segment_tracking_active") == wanted).then_some(())
    });
}

/// Returns the number of redirections of a kind (`moved`, `ask`) that the proxy followed.
pub fn count_redirections(proxy: &Proxy, kind: &str) -> f64 {
    read_metric(proxy, &format!("segment_redis_redirections_total{{kind=\"{kind}\"}}"))
}

/// Returns true if a reply is the error of an outage, which no client takes for a redirection.
pub fn is_outage(reply: &Reply, is_http: bool) -> bool {
    match reply {
        Reply::Error(text) if is_http => text.starts_with("503 ") || text.starts_with("504 "),
        Reply::Error(text) => text.starts_with("LOADING "),
        Reply::Value(_) => false,
    }
}

/// Requests a key over both protocols. Both replies must be outages.
pub fn check_outage(proxy: &Proxy, key: &str) {
    for mut client in Client::connect_mixed(proxy.address, 2) {
        let reply = client.get(key);
        assert!(is_outage(&reply, client.is_http()), "{key}: {reply:?}");
    }
}

/// Requests a key over both protocols until both replies are outages.
pub fn wait_until_outage(proxy: &Proxy, key: &str) {
    let mut clients = Client::connect_mixed(proxy.address, 2);
    wait_for(&format!("{key} is not served"), || {
        clients.iter_mut().all(|client| is_outage(&client.get(key), client.is_http())).then_some(())
    });
}

/// Requests a key over both protocols until both replies have a value. Replies before that must be
/// outages.
pub fn wait_until_served(proxy: &Proxy, key: &str, value: &str) {
    let mut clients = Client::connect_mixed(proxy.address, 2);
    wait_for(&format!("{key} is {value}"), || {
        let is_served = |client: &mut Client| {
            let reply = client.get(key);
            assert!(reply == Reply::Value(value.into()) || is_outage(&reply, client.is_http()), "{key}: {reply:?}");
            matches!(reply, Reply::Value(_))
        };
        clients.iter_mut().all(is_served).then_some(())
    });
}
