//! Watchers through restarts, killed connections and lost tracking: no final value is lost.
//!
//! `WATCH_CHANGES` sets the number of changes of each test.

use crate::common::freshness::{start_tracking_proxy, wait_until_tracking};
use crate::common::relay::{Purpose, Relay};
use crate::common::rounds::{Access, MAX_ROUNDS, Rounds, names, size};
use crate::common::watchers::{Report, Watchers};
use crate::common::{Proxy, Redis, stable_port, wait_for};

/// Settings of proxies with and without tracking.
const TRACKED: [(&str, &str); 2] = [("REDIS_TRACKING", "on"), ("CACHE_TTL", "600")];
const UNTRACKED: [(&str, &str); 1] = [("CACHE_TTL", "100ms")];

/// Settings with which proxies replace each other.
const SHARED: [(&str, &str); 2] = [("SHARE_PORT", "on"), ("SHUTDOWN_GRACE", "5")];

/// Starts a redis-server that can restart at its port.
fn start_redis() -> Redis {
    wait_for("a port is free", || Redis::try_start(stable_port(), Vec::new()))
}

/// Starts a proxy that replaces another one.
fn start_proxy(redis_port: u16, variables: &[(&str, &str)], port: u16) -> Proxy {
    let port = port.to_string();
    Proxy::start_on_redis_port(redis_port, &[variables, &SHARED, &[("PROXY_PORT", &port)]].concat())
}

/// Replaces a proxy by a new one at the same port.
fn replace_proxy(proxy: &mut Proxy, redis_port: u16, variables: &[(&str, &str)]) {
    let new = start_proxy(redis_port, variables, proxy.address.port());
    let old = std::mem::replace(proxy, new);
    assert_eq!(old.stop("TERM"), Some(0));
}

/// Closes connections to Redis: those that read, those that receive invalidations, or both.
fn kill_redis_connections(port: u16, round: u64) {
    let mut connection =
        redis::Client::open(format!("redis://127.0.0.1:{port}/")).and_then(|client| client.get_connection());
    let connection = connection.as_mut().expect("Redis accepts connections");
    for kind in [&["normal"][..], &["pubsub"], &["normal", "pubsub"]][round as usize % 3] {
        redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg(kind).exec(connection).expect("CLIENT KILL works");
    }
}

/// Runs rounds of changes at one Redis, each with a disturbance.
fn run_rounds(name: &str, port: u16, proxy: &mut Proxy, mut disturb: impl FnMut(u64, &mut Proxy, &Watchers)) -> Report {
    let (rounds, changes) = size(MAX_ROUNDS);
    let mut all = Rounds::start(proxy.address, &names(), true);
    let (mut writer, mut reader) = (Access::new(port), Access::new(port));
    for round in 0..rounds {
        let set = |key: &str, version: u64| writer.set(key, version);
        all.run(changes, set, |watchers| disturb(round, proxy, watchers), |key| reader.get(key));
    }
    all.finish(name)
}

/// Proxies replace each other. Each stream ends with a `retry:`, and no poll fails.
#[test]
fn rolling_restart_loses_no_change() {
    let redis = Redis::start();
    let mut proxy = start_proxy(redis.port, &TRACKED, 0);
    let report = run_rounds("rolling restart", redis.port, &mut proxy, |_, proxy, _| {
        replace_proxy(proxy, redis.port, &TRACKED);
    });
    assert_eq!((report.other_ends, report.failed_polls), (0, 0), "{report:?}");
    // A stream may have ended before it connected to the next proxy.
    assert!(report.announced_ends >= size(MAX_ROUNDS).0 * 5, "{report:?}");
}

/// The connections of all watchers are killed.
#[test]
fn killed_watchers_lose_no_change() {
    let redis = Redis::start();
    let mut proxy = start_tracking_proxy(redis.port, &[("WORKERS", "2")]);
    let report =
        run_rounds("killed watchers", redis.port, &mut proxy, |_, _, watchers: &Watchers| watchers.disconnect());
    assert!(report.reconnections > 0 && report.failed_polls == 0, "{report:?}");
}

/// The connections of the proxy to Redis are killed. Watchers stay connected.
#[test]
fn killed_redis_connections_lose_no_change() {
    let redis = Redis::start();
    let mut proxy = start_tracking_proxy(redis.port, &[("WORKERS", "2")]);
    let report = run_rounds("killed connections to Redis", redis.port, &mut proxy, |round, _, _| {
        kill_redis_connections(redis.port, round);
    });
    assert_eq!((report.reconnections, report.failed_polls), (0, 0), "{report:?}");
}

/// Invalidations are lost together with the connection that they were sent on.
#[test]
fn lost_invalidations_lose_no_change() {
    let redis = Redis::start();
    let relay = Relay::start(redis.port);
    let proxy = start_tracking_proxy(relay.port, &[]);
    let (rounds, changes) = size(MAX_ROUNDS);
    let mut all = Rounds::start(proxy.address, &names(), true);
    let (mut writer, mut reader) = (Access::new(redis.port), Access::new(redis.port));
    for round in 0..rounds as usize {
        relay.hold_replies(Purpose::Tracking);
        let lose_held = || {
            relay.wait_until_held();
            relay.disconnect(&[Purpose::Tracking]);
            relay.release();
            wait_until_tracking(&proxy, round + 2);
        };
        all.run(changes, |key, version| writer.set(key, version), |_| lose_held(), |key| reader.get(key));
    }
    let report = all.finish("lost invalidations");
    assert_eq!((report.reconnections, report.failed_polls), (0, 0), "{report:?}");
}

/// Redis restarts without its data. A key that is not written again is gone.
#[test]
fn redis_restart_loses_no_change() {
    let mut redis = start_redis();
    let mut proxy = start_tracking_proxy(redis.port, &[]);
    let report = run_rounds("Redis restart", redis.port, &mut proxy, |_, _, _| {
        redis.kill();
        redis.restart();
    });
    assert_eq!(report.reconnections, 0, "{report:?}");
}

/// Without tracking, all of these lose no change either.
#[test]
fn untracked_watchers_lose_no_change() {
    let mut redis = start_redis();
    let port = redis.port;
    let mut proxy = start_proxy(port, &UNTRACKED, 0);
    run_rounds("untracked", port, &mut proxy, |round, proxy, watchers| match round % 4 {
        0 => replace_proxy(proxy, port, &UNTRACKED),
        1 => watchers.disconnect(),
        2 => kill_redis_connections(port, 2),
        _ => {
            redis.kill();
            redis.restart();
        }
    });
}
