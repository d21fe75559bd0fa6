//! Tests of Redis Sentinel: the primary is found, followed through failovers, and never taken for
//! the old one.

use crate::common::admin::read_metric;
use crate::common::client::{Client, Reply};
use crate::common::freshness::{max_propagation, max_topology_delay, wait_until_cached, wait_until_tracking};
use crate::common::resp::RespClient;
use crate::common::sentinel::{MASTER, Sentinels, Setup};
use crate::common::{Proxy, Redis, stable_port, start_scripted_redis, wait_for};
use crate::support::{
    INTERVAL, check_outage, is_outage, max_delay, wait_until_all_track, wait_until_served, wait_within,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// Time between a promotion and its announcement by the sentinels. Nothing can know of it earlier.
/// (0.9 to 1.2 s measured)
const ANNOUNCEMENT: Duration = Duration::from_millis(1500);

/// Returns settings with one replica, so that the promoted server is known.
fn one_replica() -> Setup {
    Setup { replicas: 1, ..Setup::default() }
}

/// Requests `a` for some time over both protocols. Each reply must have the value.
fn check_stays(proxy: &Proxy, value: &str, time: Duration) {
    let mut clients = Client::connect_mixed(proxy.address, 2);
    let began = Instant::now();
    while began.elapsed() < time {
        for client in &mut clients {
            assert_eq!(client.get("a"), Reply::Value(value.into()), "after {:?}", began.elapsed());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Requests `a` until it has the new value, which must be within `limit` since `start`. Before
/// that, replies must be the old value or outages.
fn wait_for_change(proxy: &Proxy, (old, new): (&str, &str), start: Instant, limit: Duration) {
    let mut clients = Client::connect_mixed(proxy.address, 2);
    wait_within("the new primary is read", start, limit, || {
        let mut is_new = true;
        for client in &mut clients {
            let reply = client.get("a");
            let is_known = reply == Reply::Value(old.into()) || is_outage(&reply, client.is_http());
            assert!(is_known || reply == Reply::Value(new.into()), "{reply:?}");
            is_new &= !is_known;
        }
        is_new.then_some(())
    });
}

/// The primary is found by its name, read and tracked, by each worker. Replicas are not read.
#[test]
fn primary_is_found_and_tracked() {
    let all = Sentinels::start();
    all.set(0, "a", "1");
    let proxy = all.start_tracking_proxy(&[INTERVAL, ("WORKERS", "2")]);
    wait_until_all_track(&proxy);
    let mut client = proxy.connect();
    wait_until_cached(&mut client, "/raw/a", "1");
    all.set(0, "a", "2");
    let set = Instant::now();
    wait_within("the change", set, max_propagation(), || (client.get("/raw/a").text() == "2").then_some(()));
    assert_eq!(read_metric(&proxy, "segment_redis_nodes"), 1.0);
    assert!((1..3).all(|replica| all.servers[replica].count_calls("getrange") == 0), "a replica was read");
    let polls = read_metric(&proxy, "segment_redis_topology_requests_total");
    wait_for("the sentinels are polled", || {
        (read_metric(&proxy, "segment_redis_topology_requests_total") >= polls + 3.0).then_some(())
    });
}

/// After `SENTINEL FAILOVER` the new value is seen soon, although the old primary goes on serving
/// for ten seconds.
#[test]
fn failover_is_followed() {
    let all = Sentinels::start_with(one_replica());
    all.set(0, "a", "1");
    all.wait_until_replicated(0);
    let proxy = all.start_tracking_proxy(&[INTERVAL]);
    wait_until_cached(&mut proxy.connect(), "/raw/a", "1");
    let (promoted, seen) = all.failover();
    all.set(promoted, "a", "2");
    wait_for_change(&proxy, ("1", "2"), seen, ANNOUNCEMENT + max_delay());
    println!("the old primary still is one: {}", all.is_primary(0));
    check_stays(&proxy, "2", Duration::from_secs(3));
    wait_until_all_track(&proxy);
    wait_until_cached(&mut proxy.connect(), "/raw/a", "2");
    all.set(promoted, "a", "3");
    let set = Instant::now();
    wait_for_change(&proxy, ("2", "3"), set, max_propagation());
    assert!(read_metric(&proxy, "segment_redis_topology_changes_total") >= 1.0);
}

/// Without tracking, a failover drops the entries.
#[test]
fn failover_flushes_without_tracking() {
    let all = Sentinels::start_with(one_replica());
    all.set(0, "a", "1");
    all.wait_until_replicated(0);
    let proxy = all.start_proxy(&[INTERVAL, ("CACHE_TTL", "600")]);
    wait_until_cached(&mut proxy.connect(), "/raw/a", "1");
    let (promoted, seen) = all.failover();
    all.set(promoted, "a", "2");
    // The old value is a hit until the failover is announced.
    wait_for_change(&proxy, ("1", "2"), seen, ANNOUNCEMENT + max_delay());
    check_stays(&proxy, "2", Duration::from_secs(1));
}

/// No announcement of a failover arrives, because the sentinels deny the subscription. The next
/// poll finds the new primary.
#[test]
fn lost_announcement_is_found_by_polling() {
    let all = Sentinels::start_with(one_replica());
    all.set(0, "a", "1");
    all.wait_until_replicated(0);
    for index in 0..3 {
        let _: String = all.query_sentinel(index, &["ACL", "SETUSER", "default", "-subscribe"]).expect("ACL works");
    }
    let interval = Duration::from_secs(1);
    let proxy = all.start_tracking_proxy(&[("REDIS_TOPOLOGY_INTERVAL", "1000")]);
    wait_until_cached(&mut proxy.connect(), "/raw/a", "1");
    let (promoted, seen) = all.failover();
    all.set(promoted, "a", "2");
    wait_for_change(&proxy, ("1", "2"), seen, ANNOUNCEMENT + max_topology_delay(interval));
    check_stays(&proxy, "2", Duration::from_secs(1));
}

/// The announcement of a failover is followed at once, however long the interval of the polls is.
#[test]
fn announcement_needs_no_poll() {
    let all = Sentinels::start_with(one_replica());
    all.set(0, "a", "1");
    all.wait_until_replicated(0);
    let proxy = all.start_tracking_proxy(&[("REDIS_TOPOLOGY_INTERVAL", "60000")]);
    wait_until_cached(&mut proxy.connect(), "/raw/a", "1");
    let (promoted, seen) = all.failover();
    all.set(promoted, "a", "2");
    wait_for_change(&proxy, ("1", "2"), seen, ANNOUNCEMENT + max_delay());
    wait_until_all_track(&proxy);
}

/// A killed primary: the key fails until the failover, then it is new. The old primary comes back
/// as one for a moment, and is not read.
#[test]
fn killed_primary_is_replaced() {
    let mut all = Sentinels::start_with(one_replica());
    all.set(0, "a", "1");
    all.wait_until_replicated(0);
    let proxy = all.start_tracking_proxy(&[INTERVAL]);
    wait_until_cached(&mut proxy.connect(), "/raw/a", "1");
    all.kill(0);
    let (promoted, seen) = all.wait_for_promotion(0);
    all.set(promoted, "a", "2");
    wait_for_change(&proxy, ("1", "2"), seen, ANNOUNCEMENT + max_delay());
    all.restart(0);
    check_stays(&proxy, "2", Duration::from_secs(3));
    wait_until_all_track(&proxy);
}

/// A killed primary with `STALE_IF_ERROR`: the old value is served until the failover.
#[test]
fn stale_value_bridges_a_failover() {
    let mut all = Sentinels::start_with(one_replica());
    all.set(0, "a", "1");
    all.wait_until_replicated(0);
    let proxy = all.start_tracking_proxy(&[INTERVAL, ("STALE_IF_ERROR", "600")]);
    wait_until_cached(&mut proxy.connect(), "/raw/a", "1");
    all.kill(0);
    check_stays(&proxy, "1", Duration::from_millis(500));
    let (promoted, seen) = all.wait_for_promotion(0);
    all.set(promoted, "a", "2");
    let mut clients = Client::connect_mixed(proxy.address, 2);
    wait_within("the new primary is read", seen, ANNOUNCEMENT + max_delay(), || {
        let mut replies = clients.iter_mut().map(|client| client.get("a"));
        replies
            .all(|reply| {
                assert!(matches!(reply, Reply::Value(_)), "{reply:?}");
                reply == Reply::Value("2".into())
            })
            .then_some(())
    });
}

/// A primary that is stopped and continued after the failover serves old values for ten seconds.
/// None of them reaches a client.
#[test]
fn continued_primary_gives_nothing_old() {
    let mut all = Sentinels::start_with(one_replica());
    all.set(0, "a", "1");
    all.wait_until_replicated(0);
    let proxy = all.start_tracking_proxy(&[INTERVAL, ("REDIS_TIMEOUT", "800")]);
    wait_until_cached(&mut proxy.connect(), "/raw/a", "1");
    all.freeze(0);
    let (promoted, seen) = all.wait_for_promotion(0);
    all.set(promoted, "a", "2");
    wait_for_change(&proxy, ("1", "2"), seen, ANNOUNCEMENT + max_delay());
    all.thaw(0);
    println!("the old primary still is one: {}", all.is_primary(0));
    check_stays(&proxy, "2", Duration::from_secs(5));
}

/// Sentinels that are dead, first or later, are not needed. A failover is still followed.
#[test]
fn dead_sentinels_are_skipped() {
    let mut all = Sentinels::start_with(one_replica());
    all.set(0, "a", "1");
    all.wait_until_replicated(0);
    let mut ports = vec![stable_port()];
    ports.extend(all.sentinels.iter().map(|sentinel| sentinel.port));
    let url = all.url_of(&ports);
    let proxy = all.start_tracking_proxy(&[INTERVAL, ("REDIS_URL", &url), ("REDIS_TIMEOUT", "1000")]);
    wait_until_cached(&mut proxy.connect(), "/raw/a", "1");
    all.kill_sentinel(0);
    let (promoted, seen) = all.failover();
    all.set(promoted, "a", "2");
    wait_for_change(&proxy, ("1", "2"), seen, ANNOUNCEMENT + max_delay());
}

/// Without any sentinel for 5 s a failover could go unnoticed: tracking counts as lost, and the
/// primary is still read.
#[test]
fn lost_sentinels_end_tracking() {
    let mut all = Sentinels::start_with(one_replica());
    all.set(0, "a", "1");
    let proxy = all.start_tracking_proxy(&[INTERVAL]);
    wait_until_cached(&mut proxy.connect(), "/raw/a", "1");
    // Two dead sentinels are no reason.
    all.kill_sentinel(0);
    all.kill_sentinel(1);
    check_stays(&proxy, "1", Duration::from_secs(1));
    let lost = Instant::now();
    all.kill_sentinel(2);
    wait_within("tracking is lost", lost, Duration::from_secs(5) + max_delay(), || {
        proxy.log().contains("(tracking inactive: ").then_some(())
    });
    assert!(lost.elapsed() > Duration::from_secs(4), "lost after {:?}", lost.elapsed());
    check_stays(&proxy, "1", Duration::from_millis(200));
    all.set(0, "a", "2");
    (0..3).for_each(|index| all.restart_sentinel(index));
    wait_until_tracking(&proxy, 2);
    wait_until_cached(&mut proxy.connect(), "/raw/a", "2");
}

/// All sentinels are dead at the start of the proxy. It serves once one is there.
#[test]
fn proxy_starts_without_sentinels() {
    let mut all = Sentinels::start_with(one_replica());
    all.set(0, "a", "1");
    (0..3).for_each(|index| all.kill_sentinel(index));
    let proxy = all.start_proxy(&[INTERVAL, ("REDIS_TIMEOUT", "1000")]);
    check_outage(&proxy, "a");
    all.restart_sentinel(1);
    wait_until_served(&proxy, "a", "1");
}

/// A name that no sentinel knows is reported, with the variable to change.
#[test]
fn unknown_master_is_named() {
    let all = Sentinels::start_with(one_replica());
    all.set(0, "a", "1");
    let proxy = all.start_proxy(&[INTERVAL, ("REDIS_MASTER", "other"), ("REDIS_TIMEOUT", "1000")]);
    proxy.wait_for_log("REDIS_MASTER");
    assert!(proxy.log().contains("other"), "{}", proxy.log());
    check_outage(&proxy, "a");
}

/// Passwords of the servers and of the sentinels are separate. A wrong one is named and not shown.
#[test]
fn passwords_are_separate() {
    let all =
        Sentinels::start_with(Setup { password: Some("word"), sentinel_password: Some("guard"), ..one_replica() });
    all.set(0, "a", "1");
    all.wait_until_replicated(0);
    let proxy = all.start_tracking_proxy(&[INTERVAL, ("REDIS_SENTINEL_USERNAME", "default")]);
    wait_until_cached(&mut proxy.connect(), "/raw/a", "1");
    let (promoted, seen) = all.failover();
    all.set(promoted, "a", "2");
    wait_for_change(&proxy, ("1", "2"), seen, ANNOUNCEMENT + max_delay());
    let proxy = all.start_proxy(&[INTERVAL, ("REDIS_SENTINEL_PASSWORD", "secret"), ("REDIS_TIMEOUT", "1000")]);
    proxy.wait_for_log("REDIS_SENTINEL_PASSWORD");
    let response = proxy.get("/raw/a");
    assert!(matches!(response.status, 502..=504), "{response:?}");
    assert!(!proxy.log().contains("secret") && !response.text().contains("secret"), "the password is shown");
    let wrong = all.url().replace(":word@", ":secret@");
    let proxy = all.start_proxy(&[INTERVAL, ("REDIS_URL", &wrong), ("REDIS_TIMEOUT", "1000")]);
    proxy.wait_for_log("check the user and the password");
    assert!(!proxy.log().contains("secret"), "the password is shown");
}

/// Sentinels and servers are reached over TLS, by address or with `REDIS_TLS_NAME`.
#[test]
fn tls_reaches_sentinels_and_servers() {
    for (names, variables) in [("IP:127.0.0.1", &[][..]), ("DNS:redis.test", &[("REDIS_TLS_NAME", "redis.test")])] {
        let all = Sentinels::start_with(Setup { tls_names: Some(names), ..one_replica() });
        all.set(0, "a", "1");
        all.wait_until_replicated(0);
        let proxy = all.start_tracking_proxy(&[&[INTERVAL], variables].concat());
        wait_until_cached(&mut proxy.connect(), "/raw/a", "1");
        let (promoted, seen) = all.failover();
        all.set(promoted, "a", "2");
        wait_for_change(&proxy, ("1", "2"), seen, ANNOUNCEMENT + max_delay());
    }
}

/// A sentinel that names a replica, because it is behind, is not believed: the role must be that of
/// a primary.
#[test]
fn named_replica_is_not_read() {
    let (primary, replica) = (Redis::start(), Redis::start());
    replica.run(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
    primary.set("a", "1");
    let named = Arc::new(AtomicU16::new(replica.port));
    let named_port = Arc::clone(&named);
    let (port, _) = start_scripted_redis(move |words| {
        let bulk = |text: &str| format!("${}\r\n{text}\r\n", text.len());
        Some(match words[0].as_str() {
            "SENTINEL" if words[1] == "GET-MASTER-ADDR-BY-NAME" => {
                format!("*2\r\n{}{}", bulk("127.0.0.1"), bulk(&named_port.load(Ordering::Relaxed).to_string()))
            }
            "PING" => "+PONG\r\n".into(),
            "SUBSCRIBE" | "PSUBSCRIBE" => {
                format!("*3\r\n{}{}:1\r\n", bulk(&words[0].to_lowercase()), bulk("+switch-master"))
            }
            _ => "-ERR unknown command\r\n".into(),
        })
    });
    let url = format!("redis://127.0.0.1:{port}");
    let variables = [("REDIS_MODE", "sentinel"), ("REDIS_URL", url.as_str()), ("REDIS_MASTER", MASTER), INTERVAL];
    let proxy = Proxy::start_on_redis_port(0, &[&variables[..], &[("REDIS_TIMEOUT", "1000")]].concat());
    check_outage(&proxy, "a");
    assert_eq!(replica.count_calls("getrange"), 0, "a replica was read");
    named.store(primary.port, Ordering::Relaxed);
    wait_until_served(&proxy, "a", "1");
    let reply = RespClient::connect(proxy.address).call_text("GET a");
    assert_eq!(reply, "$1\r\n1\r\n");
}
