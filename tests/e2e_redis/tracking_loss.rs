//! Tests of an invalidation stream that is lost, silent, refused or misdirected, and of stale
//! values while Redis is unavailable.

use crate::common::admin::read_metric;
use crate::common::freshness::{is_hit, start_tracking_proxy, wait_until_cached, wait_until_text, wait_until_tracking};
use crate::common::relay::{Purpose, Relay};
use crate::common::{HttpClient, Proxy, Redis, start_scripted_redis, wait_for};
use std::io::Write;
use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Each loss of the tracking connection flushes the cache, and is logged.
///
/// A value that is read meanwhile does not stay cached either.
#[test]
fn lost_tracking_flushes_and_logs() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    let mut client = proxy.connect();
    for round in 1..4 {
        redis.set("a", round);
        wait_until_cached(&mut client, "/raw/a", &round.to_string());
        redis.run(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        // No invalidation arrives for this write.
        redis.set("a", "not invalidated");
        wait_until_text(&mut client, "/raw/a", "not invalidated");
        wait_until_tracking(&proxy, 1 + round);
    }
    let log = proxy.log();
    assert_eq!(log.matches("(tracking inactive: ").count(), 3, "{log}");
}

/// A log pipe that is not read delays neither hits nor misses (loop-never-blocks).
///
/// The proxy holds no lock that the event loop takes while it writes to the log.
#[test]
fn blocked_log_delays_no_request() {
    let redis = Redis::start();
    let (mut log, mut end) = std::io::pipe().expect("a pipe");
    let mut command = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"));
    command.stderr(end.try_clone().expect("a descriptor"));
    let variables = [("REDIS_TRACKING", "on"), ("CACHE_TTL", "600"), ("REDIS_TIMEOUT", "20000")];
    let proxy = Proxy::start_with_log_pipe(command, redis.port, &variables, &mut log);
    let mut client = proxy.connect();
    redis.set("a", 1);
    wait_until_cached(&mut client, "/raw/a", "1");
    // Fills the pipe and blocks until the test closes the other end.
    let written_bytes = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&written_bytes);
    std::thread::spawn(move || {
        while end.write_all(b"x").is_ok() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    wait_for("the pipe is full", || {
        let before = written_bytes.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(50));
        (before > 0 && before == written_bytes.load(Ordering::Relaxed)).then_some(())
    });
    redis.run(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    for round in 0..20 {
        assert_eq!(client.get("/raw/a").text(), "1");
        assert_eq!(client.get(&format!("/raw/missing{round}")).status, 404);
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(log);
}

/// If fetchers read from another Redis behind the same name, tracking moves to it.
#[test]
fn tracking_follows_fetchers_to_new_redis() {
    let (one, other) = (Redis::start(), Redis::start());
    let relay = Relay::start(one.port);
    let proxy = start_tracking_proxy(relay.port, &[]);
    let mut client = proxy.connect();
    one.set("a", "in one");
    other.set("a", "in the other");
    wait_until_cached(&mut client, "/raw/a", "in one");
    relay.set_target(other.port);
    one.run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    wait_for("a fetcher reconnects", || {
        client.get("/raw/missing");
        (other.count_calls("info") > 1).then_some(())
    });
    wait_until_text(&mut client, "/raw/a", "in the other");
    wait_until_tracking(&proxy, 2);
    wait_until_cached(&mut client, "/raw/a", "in the other");
    other.set("a", "changed");
    wait_until_text(&mut client, "/raw/a", "changed");
    assert!(proxy.log().contains("another Redis"), "{}", proxy.log());
}

/// Starts two Redis servers and a proxy that reads from the first and has cached its value.
fn start_with_two_redis() -> ([Redis; 2], Relay, Proxy, HttpClient) {
    let (one, other) = (Redis::start(), Redis::start());
    let relay = Relay::start(one.port);
    let proxy = start_tracking_proxy(relay.port, &[("REDIS_CONNECTIONS", "1")]);
    let mut client = proxy.connect();
    one.set("a", "in one");
    other.set("a", "in the other");
    wait_until_cached(&mut client, "/raw/a", "in one");
    ([one, other], relay, proxy, client)
}

/// If tracking moves to another Redis, the fetchers move to it before they read again.
#[test]
fn fetchers_follow_tracking_to_new_redis() {
    let ([_one, other], relay, proxy, mut client) = start_with_two_redis();
    relay.set_target(other.port);
    relay.disconnect(&[Purpose::Tracking]);
    wait_until_tracking(&proxy, 2);
    wait_until_cached(&mut client, "/raw/a", "in the other");
    other.set("a", "changed");
    wait_until_text(&mut client, "/raw/a", "changed");
}

/// A value of another server than the one that sends the invalidations is not cached.
#[test]
fn untracked_server_is_not_cached() {
    let ([one, other], relay, proxy, mut client) = start_with_two_redis();
    relay.set_target(other.port);
    relay.disconnect(&[Purpose::Tracking]);
    wait_until_tracking(&proxy, 2);
    relay.set_target(one.port);
    // The fetcher looks for the present server, and a load balancer leads it to the old one.
    assert_eq!(client.get("/raw/a").text(), "in one");
    assert!(!is_hit(&client.get("/raw/a")), "{}", proxy.log());
}

/// If a load balancer led the fetchers and the tracking connection to two servers, the fetchers do
/// not stay at theirs for as long as their connections are open.
#[test]
fn fetchers_leave_server_that_balancer_left() {
    let ([one, other], relay, proxy, mut client) = start_with_two_redis();
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
    relay.set_target(closed);
    relay.disconnect(&[Purpose::Tracking, Purpose::Fetching]);
    wait_for("tracking is lost", || proxy.log().contains("tracking inactive").then_some(()));
    // The tracking connection rarely comes between, because it backs off.
    relay.set_target(one.port);
    wait_for("a fetcher reconnects", || (client.get("/raw/missing").status == 404).then_some(()));
    relay.set_target(other.port);
    // Without reads, a probe finds the present server.
    wait_until_tracking(&proxy, 2);
    relay.disconnect(&[Purpose::Tracking]);
    wait_until_cached(&mut client, "/raw/a", "in the other");
}

/// If Redis was busy and could not report its run id to a fetcher, the fetcher asks again later.
#[test]
fn busy_redis_is_identified_later() {
    let ([one, other], relay, _proxy, mut client) = start_with_two_redis();
    one.run(&["CONFIG", "SET", "busy-reply-threshold", "10"]);
    let mut script = one.connect();
    let running = std::thread::spawn(move || redis::cmd("EVAL").arg("while true do end").arg(0).exec(&mut script));
    wait_for("a script runs", || {
        let pong = redis::cmd("PING").exec(&mut one.connect());
        pong.is_err_and(|error| error.code() == Some("BUSY")).then_some(())
    });
    relay.disconnect(&[Purpose::Fetching]);
    let response = client.get("/raw/b");
    assert!(response.status == 503 && response.text().contains("BUSY"), "{response:?}");
    one.run(&["SCRIPT", "KILL"]);
    assert!(running.join().expect("no panic").is_err(), "the script ended by itself");
    wait_for("keys are read", || (client.get("/raw/b").status == 404).then_some(()));
    relay.set_target(other.port);
    relay.disconnect(&[Purpose::Tracking]);
    wait_until_cached(&mut client, "/raw/a", "in the other");
    other.set("a", "changed");
    wait_until_text(&mut client, "/raw/a", "changed");
}

/// A restarted Redis has another run id: tracking resumes without waiting for a read.
#[test]
fn tracking_resumes_after_redis_restart() {
    let mut redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    let mut client = proxy.connect();
    redis.set("a", "1");
    wait_until_cached(&mut client, "/raw/a", "1");
    redis.kill();
    redis.restart();
    wait_until_tracking(&proxy, 2);
    // Without reads, the fetchers keep their connections to the old process.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(proxy.log().matches("at once (tracking active)").count(), 2, "{}", proxy.log());
    assert_eq!(client.get("/raw/a").status, 404);
    redis.set("a", "2");
    wait_until_text(&mut client, "/raw/a", "2");
    wait_until_cached(&mut client, "/raw/a", "2");
    redis.set("a", "3");
    wait_until_text(&mut client, "/raw/a", "3");
    assert_eq!(proxy.log().matches("at once (tracking active)").count(), 2, "{}", proxy.log());
}

/// A Redis that is loading counts as unavailable: stale values are still served.
#[test]
fn loading_redis_counts_as_unavailable() {
    let mut redis = Redis::start();
    let relay = Relay::start(redis.port);
    // Replies of a real Redis that is loading: it accepts connections and the handshake, and fails
    // reads and `PING`.
    let (loading, _) = start_scripted_redis(|words| {
        Some(match words[0].as_str() {
            "INFO" => "$10\r\nrun_id:new\r\n".into(),
            "CLIENT" if words[1] == "ID" => ":1\r\n".into(),
            "SUBSCRIBE" => format!("*3\r\n$9\r\nsubscribe\r\n$20\r\n{}\r\n:1\r\n", words[1].to_lowercase()),
            "CLIENT" => "+OK\r\n".into(),
            _ => "-LOADING Redis is loading the dataset in memory\r\n".into(),
        })
    });
    // Set before tracking starts: its invalidation must not arrive later.
    redis.set("a", "cached");
    let proxy = start_tracking_proxy(relay.port, &[("STALE_IF_ERROR", "600")]);
    let mut client = proxy.connect();
    wait_until_cached(&mut client, "/raw/a", "cached");
    relay.set_target(loading);
    redis.kill();
    relay.disconnect(&[Purpose::Fetching, Purpose::Tracking]);
    wait_for("tracking is lost", || proxy.log().contains("tracking inactive").then_some(()));
    let until = Instant::now() + Duration::from_millis(500);
    while Instant::now() < until {
        let response = client.get("/raw/a");
        assert_eq!((response.status, response.text().as_str()), (200, "cached"), "{response:?}");
        assert!(response.header("cache-status").contains("fwd=stale"), "{response:?}");
        let nothing = client.get("/raw/nothing");
        assert_eq!(nothing.status, 503, "{nothing:?}");
    }
}

/// A Redis that repeatedly ends the subscription at once is not contacted without pause.
#[test]
fn short_lived_tracking_backs_off() {
    let (port, attempts) = start_scripted_redis(|words| match words[0].as_str() {
        "INFO" => Some("$0\r\n\r\n".into()),
        "CLIENT" if words[1] == "ID" => Some(":1\r\n".into()),
        // The bytes after the reply are not a message.
        "SUBSCRIBE" => Some("*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n?\r\n".into()),
        _ => Some("+OK\r\n".into()),
    });
    let proxy = Proxy::start_on_redis_port(port, &[("REDIS_TRACKING", "on")]);
    wait_for("tracking was tried", || proxy.log().contains("tracking inactive").then_some(()));
    let before = attempts.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_secs(1));
    let attempts = attempts.load(Ordering::Relaxed) - before;
    assert!(attempts < 20, "{attempts} attempts in a second");
}

/// A Redis that rejects the connection counts as unavailable: stale values are served.
#[test]
fn rejected_connection_serves_stale() {
    let redis = Redis::start_with(&["--requirepass", "word"]);
    let variables = [("REDIS_PASSWORD", "word"), ("STALE_IF_ERROR", "600"), ("CACHE_TTL", "0.05")];
    let proxy = Proxy::start(&redis, &variables);
    let mut client = proxy.connect();
    let mut admin = redis.connect_to(&format!("redis://:word@127.0.0.1:{}/", redis.port));
    redis::cmd("SET").arg("a").arg("cached").exec(&mut admin).expect("SET works");
    wait_until_text(&mut client, "/raw/a", "cached");
    redis::cmd("CONFIG").arg(&["SET", "requirepass", "another"]).exec(&mut admin).expect("CONFIG works");
    redis::cmd("CLIENT").arg(&["KILL", "TYPE", "normal"]).exec(&mut admin).expect("CLIENT KILL works");
    wait_for("the stale value is served", || {
        let response = client.get("/raw/a");
        assert_eq!((response.status, response.text().as_str()), (200, "cached"), "{response:?}");
        response.header("cache-status").contains("fwd=stale; detail=redis-unreachable").then_some(())
    });
    let nothing = client.get("/raw/nothing");
    assert!(nothing.status == 502 && nothing.text().contains("rejected the proxy's connection"), "{nothing:?}");
}

/// A silent network is detected: the tracking connection sends `PING` after a second without input.
///
/// No value is served as fresh that may have changed.
#[test]
fn silent_network_ends_tracking() {
    let redis = Redis::start();
    let relay = Relay::start(redis.port);
    let proxy = start_tracking_proxy(relay.port, &[("REDIS_TIMEOUT", "300")]);
    let mut client = proxy.connect();
    redis.set("a", "1");
    wait_until_cached(&mut client, "/raw/a", "1");
    relay.hold_replies(Purpose::Tracking);
    redis.set("a", "2");
    wait_until_text(&mut client, "/raw/a", "2");
    wait_for("the loss is logged", || proxy.log().contains("tracking inactive").then_some(()));
    relay.release();
    wait_until_tracking(&proxy, 2);
    wait_until_cached(&mut client, "/raw/a", "2");
    redis.set("a", "3");
    wait_until_text(&mut client, "/raw/a", "3");
    wait_for("one connection is left", || (relay.count_open(Purpose::Tracking) == 1).then_some(()));
}

/// Redis closes idle connections and slow subscribers. Neither costs freshness.
#[test]
fn redis_client_limits_keep_freshness() {
    let redis = Redis::start_with(&["--timeout", "1"]);
    let proxy = start_tracking_proxy(redis.port, &[]);
    let mut client = proxy.connect();
    redis.set("a", "1");
    wait_until_cached(&mut client, "/raw/a", "1");
    let idle = || {
        let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut redis.connect()).expect("CLIENT LIST works");
        list.lines().filter(|line| line.contains("lib-name=segment") || line.contains("cmd=pttl")).count()
    };
    wait_for("idle fetcher connections are closed", || (idle() == 0).then_some(()));
    redis.set("a", "2");
    wait_until_text(&mut client, "/raw/a", "2");
    assert!(!proxy.log().contains("tracking inactive"), "the idle tracking connection was closed: {}", proxy.log());
    // One message over the limit: Redis delivers neither this message nor later ones.
    redis.run(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 1000 1000 1"]);
    wait_until_cached(&mut client, "/raw/a", "2");
    let many: Vec<String> = (0..2000).flat_map(|number| [format!("key-{number}"), "v".into()]).collect();
    let mut command = vec!["MSET", "a", "3"];
    command.extend(many.iter().map(String::as_str));
    redis.run(&command);
    wait_until_text(&mut client, "/raw/a", "3");
    wait_for("the loss is logged", || proxy.log().contains("tracking inactive").then_some(()));
    wait_until_tracking(&proxy, 2);
}

/// While Redis is unavailable, an expired value is served instead of an error, and marked as stale.
#[test]
fn redis_outage_serves_marked_stale_value() {
    let mut redis = Redis::start();
    let variables = [("STALE_IF_ERROR", "600"), ("CACHE_TTL", "0.05"), ("REDIS_TIMEOUT", "200")];
    for tracking in ["off", "on"] {
        redis.run(&["FLUSHALL"]);
        redis.set("a", "1");
        redis.set("changed", "1");
        let proxy = Proxy::start(&redis, &[&variables[..], &[("REDIS_TRACKING", tracking)]].concat());
        let mut client = proxy.connect();
        if tracking == "on" {
            wait_until_tracking(&proxy, 1);
        }
        let wait_until_stale = |client: &mut HttpClient, detail: &str| {
            wait_for(detail, || {
                let response = client.get("/key/a");
                let status = response.header("cache-status").to_owned();
                let expected = format!("segment-redis-proxy; fwd=stale; detail={detail}; ttl=-");
                let served = status.starts_with(&expected);
                assert!(served || is_hit(&response) || response.status == 200, "{response:?}");
                served.then(|| assert_eq!(response.text(), "{\"value\":1,\"fromCache\":true}"))
            });
        };
        client.get("/key/a");
        wait_until_text(&mut client, "/raw/changed", "1");
        redis.run(&["DEL", "changed"]);
        wait_until_text(&mut client, "/raw/changed", "{\"error\":\"key not found\"}");
        redis.freeze();
        wait_until_stale(&mut client, "redis-timed-out");
        redis.thaw();
        redis.kill();
        wait_until_stale(&mut client, "redis-unreachable");
        assert!(read_metric(&proxy, "segment_requests_total{protocol=\"http\",outcome=\"stale\"}") >= 2.0);
        assert_eq!(client.get("/raw/changed").status, 503, "a deleted key was served");
        assert_eq!(client.get("/raw/never").status, 503);
        redis.restart();
        wait_for("Redis is back", || (client.get("/raw/a").status == 404).then_some(()));
    }
}
