//! Freshness on bad days: tracking that is lost, silent, refused or misled, and what is served while Redis is away.

use crate::common::admin::read_metric;
use crate::common::freshness::{is_hit, start_tracking_proxy, wait_until_cached, wait_until_text, wait_until_tracking};
use crate::common::relay::{Purpose, Relay};
use crate::common::{HttpClient, Proxy, Redis, start_scripted_redis, wait_for};
use std::io::Write;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Lost connections, one after the other: what was cached goes, and what is read meanwhile does not stay either.
#[test]
fn when_tracking_is_lost_everything_is_read_anew_and_the_log_tells() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    let mut client = proxy.connect();
    for round in 1..4 {
        redis.set("a", round);
        wait_until_cached(&mut client, "/raw/a", &round.to_string());
        redis.run(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        // Nobody tells of this one.
        redis.set("a", "unheard of");
        wait_until_text(&mut client, "/raw/a", "unheard of");
        wait_until_tracking(&proxy, 1 + round);
    }
    let log = proxy.log();
    assert_eq!(log.matches("(tracking inactive: ").count(), 3, "{log}");
}

/// Rule 1: whoever reads the log may stop reading it. No lock that the loop takes is held while something is logged.
#[test]
fn a_log_that_nobody_reads_stops_neither_hits_nor_misses() {
    let redis = Redis::start();
    let (mut log, mut end) = std::io::pipe().expect("a pipe");
    let mut command = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"));
    command.stderr(end.try_clone().expect("a descriptor"));
    let variables = [("REDIS_TRACKING", "on"), ("CACHE_TTL", "600"), ("REDIS_TIMEOUT", "20000")];
    let proxy = Proxy::start_with_log_pipe(command, redis.port, &variables, &mut log);
    let mut client = proxy.connect();
    redis.set("a", 1);
    wait_until_cached(&mut client, "/raw/a", "1");
    // Fills the pipe and then waits, until the test is over and the pipe's other end closed.
    let full = Arc::new(AtomicU64::new(0));
    let written = Arc::clone(&full);
    std::thread::spawn(move || {
        while end.write_all(b"x").is_ok() {
            written.fetch_add(1, Ordering::Relaxed);
        }
    });
    wait_for("the pipe is full", || {
        let before = full.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(50));
        (before > 0 && before == full.load(Ordering::Relaxed)).then_some(())
    });
    redis.run(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    for round in 0..20 {
        assert_eq!(client.get("/raw/a").text(), "1");
        assert_eq!(client.get(&format!("/raw/missing{round}")).status, 404);
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(log);
}

/// Another Redis behind the same name: what is read comes from there, so changes must be heard of from there.
#[test]
fn the_redis_that_tells_is_the_one_that_is_read() {
    let (one, other) = (Redis::start(), Redis::start());
    let relay = Relay::start(one.port);
    let proxy = start_tracking_proxy(relay.port, &[]);
    let mut client = proxy.connect();
    one.set("a", "in one");
    other.set("a", "in the other");
    wait_until_cached(&mut client, "/raw/a", "in one");
    relay.set_target(other.port);
    one.run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    wait_for("a helper connects anew", || {
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

/// A proxy in front of one of two, with one reader, which has cached what that one holds.
fn before_one_of_two() -> ([Redis; 2], Relay, Proxy, HttpClient) {
    let (one, other) = (Redis::start(), Redis::start());
    let relay = Relay::start(one.port);
    let proxy = start_tracking_proxy(relay.port, &[("REDIS_CONNECTIONS", "1")]);
    let mut client = proxy.connect();
    one.set("a", "in one");
    other.set("a", "in the other");
    wait_until_cached(&mut client, "/raw/a", "in one");
    ([one, other], relay, proxy, client)
}

/// The other way round: what tells of changes has moved on, and who reads moves on with it before reading again.
#[test]
fn the_redis_that_is_read_is_the_one_that_tells() {
    let ([_one, other], relay, proxy, mut client) = before_one_of_two();
    relay.set_target(other.port);
    relay.disconnect(&[Purpose::Tracking]);
    wait_until_tracking(&proxy, 2);
    wait_until_cached(&mut client, "/raw/a", "in the other");
    other.set("a", "changed");
    wait_until_text(&mut client, "/raw/a", "changed");
}

/// The same, where Redis could not say who it is when the one that reads connected: it is asked again.
#[test]
fn a_redis_that_was_busy_is_known_afterwards() {
    let ([one, other], relay, _proxy, mut client) = before_one_of_two();
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
    assert!(running.join().expect("no panic").is_err(), "it has ended by itself");
    wait_for("keys are read", || (client.get("/raw/b").status == 404).then_some(()));
    relay.set_target(other.port);
    relay.disconnect(&[Purpose::Tracking]);
    wait_until_cached(&mut client, "/raw/a", "in the other");
    other.set("a", "changed");
    wait_until_text(&mut client, "/raw/a", "changed");
}

/// The same Redis started anew is another one by its id: tracking goes on, without waiting for anybody who reads.
#[test]
fn tracking_goes_on_when_redis_has_started_anew() {
    let mut redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    let mut client = proxy.connect();
    redis.set("a", "1");
    wait_until_cached(&mut client, "/raw/a", "1");
    redis.kill();
    redis.restart();
    wait_until_tracking(&proxy, 2);
    // As long as nobody reads, the helpers' connections are those to the Redis that was.
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

/// A Redis that is there and does not serve yet is no reason to forget what can be served until then.
#[test]
fn a_redis_that_loads_its_data_is_still_away() {
    let mut redis = Redis::start();
    let relay = Relay::start(redis.port);
    // As a real one while it loads: connections are taken and prepared, but nothing is read, and PING says why.
    let (loading, _) = start_scripted_redis(|words| {
        Some(match words[0].as_str() {
            "INFO" => "$10\r\nrun_id:new\r\n".into(),
            "CLIENT" if words[1] == "ID" => ":1\r\n".into(),
            "SUBSCRIBE" => format!("*3\r\n$9\r\nsubscribe\r\n$20\r\n{}\r\n:1\r\n", words[1].to_lowercase()),
            "CLIENT" => "+OK\r\n".into(),
            _ => "-LOADING Redis is loading the dataset in memory\r\n".into(),
        })
    });
    let proxy = start_tracking_proxy(relay.port, &[("STALE_IF_ERROR", "600")]);
    let mut client = proxy.connect();
    redis.set("a", "kept");
    wait_until_cached(&mut client, "/raw/a", "kept");
    relay.set_target(loading);
    redis.kill();
    relay.disconnect(&[Purpose::Fetching, Purpose::Tracking]);
    wait_for("changes are not heard of", || proxy.log().contains("tracking inactive").then_some(()));
    let until = Instant::now() + Duration::from_millis(500);
    while Instant::now() < until {
        let response = client.get("/raw/a");
        assert_eq!((response.status, response.text().as_str()), (200, "kept"), "{response:?}");
        assert!(response.header("cache-status").contains("fwd=stale"), "{response:?}");
        let nothing = client.get("/raw/nothing");
        assert_eq!(nothing.status, 503, "{nothing:?}");
    }
}

/// A Redis that takes the subscription and ends it at once, again and again, is not asked again and again.
#[test]
fn tracking_that_does_not_last_is_not_begun_without_end() {
    let (port, attempts) = start_scripted_redis(|words| match words[0].as_str() {
        "INFO" => Some("$0\r\n\r\n".into()),
        "CLIENT" if words[1] == "ID" => Some(":1\r\n".into()),
        // What follows the answer is no message.
        "SUBSCRIBE" => Some("*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n?\r\n".into()),
        _ => Some("+OK\r\n".into()),
    });
    let proxy = Proxy::start_on_redis_port(port, &[("REDIS_TRACKING", "on")]);
    wait_for("it has been tried", || proxy.log().contains("tracking inactive").then_some(()));
    let before = attempts.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_secs(1));
    let attempts = attempts.load(Ordering::Relaxed) - before;
    assert!(attempts < 20, "{attempts} attempts in a second");
}

/// Who is not let in any more has no Redis either.
#[test]
fn a_redis_that_refuses_the_connection_is_away() {
    let redis = Redis::start_with(&["--requirepass", "word"]);
    let variables = [("REDIS_PASSWORD", "word"), ("STALE_IF_ERROR", "600"), ("CACHE_TTL", "0.05")];
    let proxy = Proxy::start(&redis, &variables);
    let mut client = proxy.connect();
    let mut admin = redis.connect_to(&format!("redis://:word@127.0.0.1:{}/", redis.port));
    redis::cmd("SET").arg("a").arg("kept").exec(&mut admin).expect("SET works");
    wait_until_text(&mut client, "/raw/a", "kept");
    redis::cmd("CONFIG").arg(&["SET", "requirepass", "another"]).exec(&mut admin).expect("CONFIG works");
    redis::cmd("CLIENT").arg(&["KILL", "TYPE", "normal"]).exec(&mut admin).expect("CLIENT KILL works");
    wait_for("it is served stale", || {
        let response = client.get("/raw/a");
        assert_eq!((response.status, response.text().as_str()), (200, "kept"), "{response:?}");
        response.header("cache-status").contains("fwd=stale; detail=redis-unreachable").then_some(())
    });
    let nothing = client.get("/raw/nothing");
    assert!(nothing.status == 502 && nothing.text().contains("rejected the proxy's connection"), "{nothing:?}");
}

/// A network that goes silent closes nothing. After a second without a word Redis is asked, and nothing is served that
/// may have changed.
#[test]
fn a_silent_network_is_noticed() {
    let redis = Redis::start();
    let relay = Relay::start(redis.port);
    let proxy = start_tracking_proxy(relay.port, &[("REDIS_TIMEOUT", "300")]);
    let mut client = proxy.connect();
    redis.set("a", "1");
    wait_until_cached(&mut client, "/raw/a", "1");
    relay.hold_replies(Purpose::Tracking);
    redis.set("a", "2");
    wait_until_text(&mut client, "/raw/a", "2");
    wait_for("it is told", || proxy.log().contains("tracking inactive").then_some(()));
    relay.release();
    wait_until_tracking(&proxy, 2);
    wait_until_cached(&mut client, "/raw/a", "2");
    redis.set("a", "3");
    wait_until_text(&mut client, "/raw/a", "3");
    wait_for("one connection is left", || (relay.count_open(Purpose::Tracking) == 1).then_some(()));
}

/// Redis closes idle connections, and cuts off subscribers that it has too much to tell.
#[test]
fn redis_own_limits_cost_no_freshness() {
    let redis = Redis::start_with(&["--timeout", "1"]);
    let proxy = start_tracking_proxy(redis.port, &[]);
    let mut client = proxy.connect();
    redis.set("a", "1");
    wait_until_cached(&mut client, "/raw/a", "1");
    let idle = || {
        let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut redis.connect()).expect("CLIENT LIST works");
        list.lines().filter(|line| line.contains("lib-name=segment") || line.contains("cmd=pttl")).count()
    };
    wait_for("helpers are closed for being idle", || (idle() == 0).then_some(()));
    redis.set("a", "2");
    wait_until_text(&mut client, "/raw/a", "2");
    assert!(!proxy.log().contains("tracking inactive"), "an idle listener was closed: {}", proxy.log());
    // One message over the limit: it is never seen, and neither is what follows.
    redis.run(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 1000 1000 1"]);
    wait_until_cached(&mut client, "/raw/a", "2");
    let many: Vec<String> = (0..2000).flat_map(|number| [format!("key-{number}"), "v".into()]).collect();
    let mut command = vec!["MSET", "a", "3"];
    command.extend(many.iter().map(String::as_str));
    redis.run(&command);
    wait_until_text(&mut client, "/raw/a", "3");
    wait_for("it is told", || proxy.log().contains("tracking inactive").then_some(()));
    wait_until_tracking(&proxy, 2);
}

/// An expired value is served instead of an error, as long as Redis is away, and marked.
#[test]
fn stale_rather_than_nothing() {
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
        let stale = |client: &mut HttpClient, detail: &str| {
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
        stale(&mut client, "redis-timed-out");
        redis.thaw();
        redis.kill();
        stale(&mut client, "redis-unreachable");
        assert!(read_metric(&proxy, "segment_requests_total{protocol=\"http\",outcome=\"stale\"}") >= 2.0);
        assert_eq!(client.get("/raw/changed").status, 503, "what is gone has come back");
        assert_eq!(client.get("/raw/never").status, 503);
        redis.restart();
        wait_for("Redis is back", || (client.get("/raw/a").status == 404).then_some(()));
    }
}
