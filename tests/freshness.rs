//! What each promise of freshness is worth: how old a value may be, with a real Redis and the real binary.

#![allow(clippy::expect_used, reason = "a test may stop at what it did not expect")]

mod common;

use common::relay::{Purpose, Relay};
use common::{Http, Proxy, Redis, Response, scripted_redis, until};
use std::io::Write;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |number| number.parse().expect("a number"))
}

/// How long after a write is acknowledged it may still be unknown to the proxy: a network hop, and two threads that have
/// to be scheduled. 50 ms are plenty on a machine that has nothing else to do (`FRESHNESS_HOP=50`); here other tests run.
fn hop() -> Duration {
    Duration::from_millis(setting("FRESHNESS_HOP", 500))
}

/// A proxy with tracking that has told that it tracks.
fn tracking(redis_port: u16, variables: &[(&str, &str)]) -> Proxy {
    let base = [("REDIS_TRACKING", "on"), ("CACHE_TTL", "600")];
    let proxy = Proxy::start_before(redis_port, &[&base, variables].concat());
    until_tracking(&proxy, 1);
    proxy
}

/// Waits until the log tells for the `count`th time that changes are heard of.
fn until_tracking(proxy: &Proxy, count: usize) {
    until("changes are heard of", || (proxy.log().matches("at once (tracking)").count() >= count).then_some(()));
}

fn is_hit(response: &Response) -> bool {
    response.field("cache-status").starts_with("segment-redis-proxy; hit")
}

/// Reads until a value is there and cached.
fn cached(client: &mut Http, path: &str, value: &str) {
    until("it is cached", || {
        let response = client.get(path);
        (response.text() == value && is_hit(&response)).then_some(())
    });
}

/// Reads until it is something else.
fn until_text(client: &mut Http, path: &str, text: &str) {
    until(&format!("{path} is {text:?}"), || (client.get(path).text() == text).then_some(()));
}

#[test]
fn an_entry_does_not_outlive_its_key_in_redis() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "15")]);
    let mut client = proxy.connect();
    redis.run(&["SET", "forever", "v"]);
    assert_eq!(client.get("/raw/forever").field("cache-status"), "segment-redis-proxy; fwd=miss; stored; ttl=15");
    redis.run(&["SET", "long", "v", "EX", "1000"]);
    assert_eq!(client.get("/raw/long").field("cache-status"), "segment-redis-proxy; fwd=miss; stored; ttl=15");
    redis.run(&["SET", "short", "v", "PX", "300"]);
    // From here on it cannot last longer than 300 ms.
    let set = Instant::now();
    assert_eq!(client.get("/raw/short").field("cache-status"), "segment-redis-proxy; fwd=miss; stored; ttl=0");
    let mut hits = 0;
    loop {
        let asked = Instant::now();
        let response = client.get("/raw/short");
        if response.status == 404 {
            break;
        }
        if is_hit(&response) {
            // Both sides count whole milliseconds.
            assert!(asked - set < Duration::from_millis(301), "a hit {:?} after it was set", asked - set);
            hits += 1;
        }
    }
    assert!(hits > 0, "it was not cached at all");
    assert!(is_hit(&client.get("/raw/forever")), "everything is gone");
}

#[test]
fn an_empty_value_and_a_missing_key_are_told_apart() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    redis.set("empty", "");
    assert_eq!((proxy.get("/raw/empty").status, proxy.get("/raw/missing").status), (200, 404));
    assert!(is_hit(&proxy.get("/raw/empty")));
}

#[test]
fn every_way_of_changing_a_key_reaches_the_cache() {
    let redis = Redis::start();
    let proxy = tracking(redis.port, &[]);
    let mut client = proxy.connect();
    let changes: [(&[&str], &str); 9] = [
        (&["SET", "a", "2"], "2"),
        (&["APPEND", "a", "1"], "11"),
        (&["INCR", "a"], "2"),
        // Redis tells of several keys at once, in order of their names.
        (&["MSET", "A", "1", "a", "3", "z", "1"], "3"),
        (&["EVAL", "redis.call('SET', KEYS[1], '4')", "1", "a"], "4"),
        (&["RENAME", "b", "a"], "b"),
        (&["DEL", "a"], "{\"error\":\"key not found\"}"),
        (&["FLUSHALL"], "{\"error\":\"key not found\"}"),
        (&["FLUSHDB", "ASYNC"], "{\"error\":\"key not found\"}"),
    ];
    for (command, after) in changes {
        redis.run(&["MSET", "a", "1", "b", "b"]);
        until_text(&mut client, "/raw/a", "1");
        cached(&mut client, "/raw/a", "1");
        redis.run(command);
        until_text(&mut client, "/raw/a", after);
    }
    // A key that expires: Redis tells when it removes it, the proxy does not wait for that.
    redis.run(&["SET", "a", "1"]);
    cached(&mut client, "/raw/a", "1");
    redis.run(&["PEXPIRE", "a", "100"]);
    until_text(&mut client, "/raw/a", "{\"error\":\"key not found\"}");
}

/// What Redis does not tell, or tells too much of: databases are swapped without a word, and their numbers not told apart.
#[test]
fn databases_are_not_told_apart_and_swapping_them_is_not_told() {
    let redis = Redis::start();
    let proxy = tracking(redis.port, &[("CACHE_TTL", "1")]);
    let mut client = proxy.connect();
    let mut other = redis.connect_to(&format!("redis://127.0.0.1:{}/1", redis.port));
    redis.set("a", "in 0");
    until("a change in another database drops the entry too", || {
        cached(&mut client, "/raw/a", "in 0");
        redis::cmd("SET").arg("a").arg("in 1").exec(&mut other).expect("SET works");
        // Until it is heard of, or until the entry expires, which is not what is looked for.
        let deadline = Instant::now() + Duration::from_millis(300);
        while Instant::now() < deadline {
            let response = client.get("/raw/a");
            assert_eq!(response.text(), "in 0", "another database's value");
            if !is_hit(&response) {
                return Some(());
            }
        }
        None
    });
    cached(&mut client, "/raw/a", "in 0");
    redis.run(&["SWAPDB", "0", "1"]);
    // CACHE_TTL bounds it.
    until_text(&mut client, "/raw/a", "in 1");
}

/// The forced race: a value is read, changed, and the change is heard of before the value has arrived. Naively stored it
/// would stay for ever.
#[test]
fn a_value_that_its_change_has_overtaken_is_not_kept() {
    let redis = Redis::start();
    let relay = Relay::to(redis.port);
    let proxy = tracking(relay.port, &[("REDIS_TIMEOUT", "20000"), ("REDIS_CONNECTIONS", "2")]);
    let (mut early, mut late) = (proxy.connect(), proxy.connect());
    let mut writer = redis.connect();
    let mut write = |value: String| redis::cmd("SET").arg("raced").arg(value).exec(&mut writer).expect("SET works");
    for round in 0..60 {
        write(format!("old {round}"));
        // The connections of both helpers are known by what they have read.
        (0..4).for_each(|number| assert_eq!(early.get(&format!("/raw/none{number}")).status, 404));
        redis.set("marker", round);
        cached(&mut late, "/raw/marker", &round.to_string());
        relay.hold(Purpose::Fetching);
        early.ask("/raw/raced");
        relay.until_held();
        write(format!("new {round}"));
        // Changes are heard of in order: when this one has taken the marker away, so has the other.
        redis.set("marker", "gone");
        let mut probes = Vec::new();
        until("the change is heard of", || {
            let mut probe = proxy.connect();
            probe.ask("/raw/marker");
            (0..2).for_each(|_| assert_eq!(late.get("/").status, 404));
            let waits = !probe.has_input();
            probes.push(probe);
            waits.then_some(())
        });
        late.ask("/raw/raced");
        relay.release();
        assert_eq!(early.response().text(), format!("old {round}"));
        assert_eq!(late.response().text(), format!("new {round}"), "answered by what the change has overtaken");
        assert_eq!(late.get("/raw/raced").text(), format!("new {round}"), "what the change has overtaken was stored");
    }
}

/// Lost connections, one after the other: what was cached goes, and what is read meanwhile does not stay either.
#[test]
fn when_tracking_is_lost_everything_is_read_anew_and_the_log_tells() {
    let redis = Redis::start();
    let proxy = tracking(redis.port, &[]);
    let mut client = proxy.connect();
    for round in 1..4 {
        redis.set("a", round);
        cached(&mut client, "/raw/a", &round.to_string());
        redis.run(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        // Nobody tells of this one.
        redis.set("a", "unheard of");
        until_text(&mut client, "/raw/a", "unheard of");
        until_tracking(&proxy, 1 + round);
    }
    let log = proxy.log();
    assert_eq!(log.matches("after CACHE_TTL only, no tracking").count(), 3, "{log}");
}

/// More changes at once than one tick follows: what is left over is followed without anybody asking, and what comes
/// meanwhile is not forgotten either.
#[test]
fn a_burst_of_changes_leaves_nothing_stale() {
    let redis = Redis::start();
    let proxy = tracking(redis.port, &[]);
    let mut client = proxy.connect();
    let many = |prefix: &str, count: usize| {
        let mut command = redis::cmd("MSET");
        (0..count).for_each(|number| _ = command.arg(format!("{prefix}{number}")).arg("v"));
        command
    };
    let (most, more) = (many("a", 50_000), many("b", 6000));
    let mut connection = redis.connect();
    for round in 0..6 {
        redis.set("target", format!("old {round}"));
        cached(&mut client, "/raw/target", &format!("old {round}"));
        most.exec(&mut connection).expect("MSET works");
        std::thread::sleep(Duration::from_millis(round * 2));
        more.clone().arg("target").arg(format!("new {round}")).exec(&mut connection).expect("MSET works");
        // Nobody asks for anything: no socket wakes the loop.
        std::thread::sleep(hop());
        assert_eq!(client.get("/raw/target").text(), format!("new {round}"));
    }
    assert!(!proxy.log().contains("no tracking") && !proxy.log().contains("than can be followed"), "{}", proxy.log());
}

/// Rule 1: whoever reads the log may stop reading it. No lock that the loop takes is held while something is logged.
#[test]
fn a_log_that_nobody_reads_stops_neither_hits_nor_misses() {
    let redis = Redis::start();
    let (mut log, mut end) = std::io::pipe().expect("a pipe");
    let mut command = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"));
    command.stderr(end.try_clone().expect("a descriptor"));
    let variables = [("REDIS_TRACKING", "on"), ("CACHE_TTL", "600"), ("REDIS_TIMEOUT", "20000")];
    let proxy = Proxy::start_logging_to(command, redis.port, &variables, &mut log);
    let mut client = proxy.connect();
    redis.set("a", 1);
    cached(&mut client, "/raw/a", "1");
    // Fills the pipe and then waits, until the test is over and the pipe's other end closed.
    let full = Arc::new(AtomicU64::new(0));
    let written = Arc::clone(&full);
    std::thread::spawn(move || {
        while end.write_all(b"x").is_ok() {
            written.fetch_add(1, Ordering::Relaxed);
        }
    });
    until("the pipe is full", || {
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
    let relay = Relay::to(one.port);
    let proxy = tracking(relay.port, &[]);
    let mut client = proxy.connect();
    one.set("a", "in one");
    other.set("a", "in the other");
    cached(&mut client, "/raw/a", "in one");
    relay.lead_to(other.port);
    one.run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    until("a helper connects anew", || {
        client.get("/raw/missing");
        (other.calls("info") > 1).then_some(())
    });
    until_text(&mut client, "/raw/a", "in the other");
    until_tracking(&proxy, 2);
    cached(&mut client, "/raw/a", "in the other");
    other.set("a", "changed");
    until_text(&mut client, "/raw/a", "changed");
    assert!(proxy.log().contains("another Redis"), "{}", proxy.log());
}

/// A Redis that is there and does not serve yet is no reason to forget what can be served until then.
#[test]
fn a_redis_that_loads_its_data_is_still_away() {
    let mut redis = Redis::start();
    let relay = Relay::to(redis.port);
    // As a real one while it loads: connections are taken and prepared, but nothing is read, and PING says why.
    let (loading, _) = scripted_redis(|words| {
        Some(match words[0].as_str() {
            "INFO" => "$10\r\nrun_id:new\r\n".into(),
            "CLIENT" if words[1] == "ID" => ":1\r\n".into(),
            "SUBSCRIBE" => format!("*3\r\n$9\r\nsubscribe\r\n$20\r\n{}\r\n:1\r\n", words[1].to_lowercase()),
            "CLIENT" | "MULTI" => "+OK\r\n".into(),
            "EXEC" => "-EXECABORT Transaction discarded because of previous errors.\r\n".into(),
            _ => "-LOADING Redis is loading the dataset in memory\r\n".into(),
        })
    });
    let proxy = tracking(relay.port, &[("STALE_IF_ERROR", "600")]);
    let mut client = proxy.connect();
    redis.set("a", "kept");
    cached(&mut client, "/raw/a", "kept");
    relay.lead_to(loading);
    redis.kill();
    relay.cut();
    until("changes are not heard of", || proxy.log().contains("no tracking").then_some(()));
    let until = Instant::now() + Duration::from_millis(500);
    while Instant::now() < until {
        let response = client.get("/raw/a");
        assert_eq!((response.status, response.text().as_str()), (200, "kept"), "{response:?}");
        assert!(response.field("cache-status").contains("fwd=stale"), "{response:?}");
        let nothing = client.get("/raw/nothing");
        assert_eq!(nothing.status, 503, "{nothing:?}");
    }
}

/// A Redis that takes the subscription and ends it at once, again and again, is not asked again and again.
#[test]
fn tracking_that_does_not_last_is_not_begun_without_end() {
    let (port, attempts) = scripted_redis(|words| match words[0].as_str() {
        "INFO" => Some("$0\r\n\r\n".into()),
        "CLIENT" if words[1] == "ID" => Some(":1\r\n".into()),
        // What follows the answer is no message.
        "SUBSCRIBE" => Some("*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n?\r\n".into()),
        _ => Some("+OK\r\n".into()),
    });
    let proxy = Proxy::start_before(port, &[("REDIS_TRACKING", "on")]);
    until("it has been tried", || proxy.log().contains("no tracking").then_some(()));
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
    until_text(&mut client, "/raw/a", "kept");
    redis::cmd("CONFIG").arg(&["SET", "requirepass", "another"]).exec(&mut admin).expect("CONFIG works");
    redis::cmd("CLIENT").arg(&["KILL", "TYPE", "normal"]).exec(&mut admin).expect("CLIENT KILL works");
    until("it is served stale", || {
        let response = client.get("/raw/a");
        assert_eq!((response.status, response.text().as_str()), (200, "kept"), "{response:?}");
        response.field("cache-status").contains("fwd=stale; detail=redis-unreachable").then_some(())
    });
    let nothing = client.get("/raw/nothing");
    assert!(nothing.status == 502 && nothing.text().contains("refuses the connection"), "{nothing:?}");
}

/// A network that goes silent closes nothing. After a second without a word Redis is asked, and nothing is served that
/// may have changed.
#[test]
fn a_silent_network_is_noticed() {
    let redis = Redis::start();
    let relay = Relay::to(redis.port);
    let proxy = tracking(relay.port, &[("REDIS_TIMEOUT", "300")]);
    let mut client = proxy.connect();
    redis.set("a", "1");
    cached(&mut client, "/raw/a", "1");
    relay.hold(Purpose::Tracking);
    redis.set("a", "2");
    until_text(&mut client, "/raw/a", "2");
    until("it is told", || proxy.log().contains("no tracking").then_some(()));
    relay.release();
    until_tracking(&proxy, 2);
    cached(&mut client, "/raw/a", "2");
    redis.set("a", "3");
    until_text(&mut client, "/raw/a", "3");
    until("one connection is left", || (relay.count(Purpose::Tracking) == 1).then_some(()));
}

/// Redis closes idle connections, and cuts off subscribers that it has too much to tell.
#[test]
fn redis_own_limits_cost_no_freshness() {
    let redis = Redis::start_with(&["--timeout", "1"]);
    let proxy = tracking(redis.port, &[]);
    let mut client = proxy.connect();
    redis.set("a", "1");
    cached(&mut client, "/raw/a", "1");
    let idle = || {
        let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut redis.connect()).expect("CLIENT LIST works");
        list.lines().filter(|line| line.contains("lib-name=segment") || line.contains("cmd=exec")).count()
    };
    until("helpers are closed for being idle", || (idle() == 0).then_some(()));
    redis.set("a", "2");
    until_text(&mut client, "/raw/a", "2");
    assert!(!proxy.log().contains("no tracking"), "an idle listener was closed: {}", proxy.log());
    // One message over the limit: it is never seen, and neither is what follows.
    redis.run(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 1000 1000 1"]);
    cached(&mut client, "/raw/a", "2");
    let many: Vec<String> = (0..2000).flat_map(|number| [format!("key-{number}"), "v".into()]).collect();
    let mut command = vec!["MSET", "a", "3"];
    command.extend(many.iter().map(String::as_str));
    redis.run(&command);
    until_text(&mut client, "/raw/a", "3");
    until("it is told", || proxy.log().contains("no tracking").then_some(()));
    until_tracking(&proxy, 2);
}

/// Step by step down to what the user may do, told once.
#[test]
fn what_redis_does_not_allow_is_done_without() {
    let redis = Redis::start();
    redis.run(&["SET", "short", "v", "PX", "60000"]);
    redis.run(&["RPUSH", "list", "1"]);
    redis.run(&["SETRANGE", "long", "99999", "x"]);
    let mut proxies = Vec::new();
    for (number, (rules, ttl, told)) in [
        (&["+@all", "&*"][..], "59", &["at once (tracking); a key that Redis lets expire is gone with it"][..]),
        // No channels, so no messages about changes.
        (&["+@all", "resetchannels"], "59", &["no tracking", "is gone with it"]),
        (&["+@all", "-client"], "59", &["no tracking", "is gone with it"]),
        (&["+@all", "-client", "-pttl"], "600", &["no tracking", "may stay for CACHE_TTL", "pttl"]),
        (&["+get"], "600", &["no tracking", "may stay for CACHE_TTL", "multi"]),
        (&["+@all", "&*", "-ping"], "59", &["at once (tracking)"]),
        (&["+@all", "&*", "-exec"], "600", &["at once (tracking)", "may stay for CACHE_TTL", "exec"]),
        (&["+@all", "&*", "-strlen"], "59", &["at once (tracking)", "is gone with it"]),
        (&["+@all", "&*", "-info"], "59", &["at once (tracking)"]),
        (&["+@all", "&*", "-getrange"], "600", &["at once (tracking)", "may stay for CACHE_TTL", "getrange"]),
    ]
    .into_iter()
    .enumerate()
    {
        let user = format!("reader{number}");
        redis.run(&[&["ACL", "SETUSER", &user, "reset", "on", ">word", "~*"], rules].concat());
        let variables = [("REDIS_USERNAME", user.as_str()), ("REDIS_PASSWORD", "word"), ("REDIS_TRACKING", "on")];
        let proxy = Proxy::start(&redis, &[&variables[..], &[("CACHE_TTL", "600")]].concat());
        let mut client = proxy.connect();
        let tracking = if rules.contains(&"&*") { "at once (tracking)" } else { "no tracking" };
        until("the log tells", || proxy.log().contains(tracking).then_some(()));
        let response = client.get("/raw/short");
        let expected = format!("segment-redis-proxy; fwd=miss; stored; ttl={ttl}");
        assert_eq!((response.status, response.field("cache-status")), (200, expected.as_str()), "{rules:?}");
        assert!(is_hit(&client.get("/raw/short")));
        assert_eq!(client.get("/raw/missing").status, 404, "{rules:?}");
        assert_eq!(client.get("/raw/list").status, 409, "{rules:?}");
        (0..20).for_each(|number| assert_eq!(client.get(&format!("/raw/none{number}")).status, 404));
        assert_eq!(client.get("/raw/long").body.len(), 100_000, "{rules:?}");
        proxies.push((proxy, client, rules, told));
    }
    // All of them at once: long enough for what is done now and then, such as asking a silent Redis whether it is there.
    std::thread::sleep(Duration::from_millis(2500));
    for (proxy, mut client, rules, told) in proxies {
        assert!(is_hit(&client.get("/raw/short")), "{rules:?} does not last: {}", proxy.log());
        let log = proxy.log();
        assert!(told.iter().all(|part| log.contains(part)), "{rules:?} is not told: {log}");
        assert!(log.matches("freshness:").count() <= 2, "{rules:?} is told again and again: {log}");
    }
}

/// A key that the user may not read is its own client's trouble, not that of others in the same round trip.
#[test]
fn a_forbidden_key_fails_alone() {
    let redis = Redis::start();
    redis.run(&["ACL", "SETUSER", "reader", "on", ">word", "~open*", "+@all"]);
    redis.set("open", "to all");
    redis.set("secret", "to none");
    let proxy =
        Proxy::start(&redis, &[("REDIS_USERNAME", "reader"), ("REDIS_PASSWORD", "word"), ("CACHE_TTL", "0.001")]);
    let mut client = proxy.connect();
    for _ in 0..20 {
        ["/raw/open", "/raw/secret", "/raw/open2", "/raw/open"].iter().for_each(|path| client.ask(path));
        let responses: Vec<Response> = (0..4).map(|_| client.response()).collect();
        assert_eq!(responses.iter().map(|response| response.status).collect::<Vec<_>>(), [200, 502, 404, 200]);
        assert!(responses[1].text().contains("NOPERM"), "{responses:?}");
    }
    assert!(!proxy.log().contains("may stay"), "one key took the promise from all: {}", proxy.log());
}

/// Without the right to ask how long keys have left, values that are too long are refused unread all the same.
#[test]
fn a_long_value_is_not_read_by_a_plain_get_either() {
    let redis = Redis::start();
    redis.run(&["ACL", "SETUSER", "reader", "on", ">word", "~*", "+@all", "-pttl"]);
    redis.run(&["SETRANGE", "long", "67108863", "x"]);
    let proxy = Proxy::start(&redis, &[("REDIS_USERNAME", "reader"), ("REDIS_PASSWORD", "word")]);
    assert_eq!(proxy.get("/raw/none").status, 404);
    let before = proxy.memory("VmRSS");
    (0..5).for_each(|_| assert_eq!(proxy.get("/raw/long").status, 502));
    let grown = proxy.memory("VmHWM") - before;
    assert!(grown < 32 * 1024, "{grown} KiB for a value that is refused");
}

/// A value that is too long is never read, whoever asks for it how often.
#[test]
fn a_value_over_the_limit_is_refused_and_never_read() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    let mut admin = redis.connect();
    for (key, length) in [("64 MiB", 64 << 20), ("most", 8 << 20), ("one more", (8 << 20) + 1)] {
        redis::cmd("SETRANGE").arg(key).arg(length - 1).arg("x").exec(&mut admin).expect("SETRANGE works");
    }
    assert_eq!(proxy.get("/raw/none").status, 404);
    let before = proxy.memory("VmRSS");
    for _ in 0..20 {
        let refused = proxy.get("/raw/64%20MiB");
        assert_eq!(refused.status, 502, "{refused:?}");
        assert!(refused.text().contains("MAX_VALUE_BYTES"), "{refused:?}");
        assert_eq!(refused.field("cache-status"), "segment-redis-proxy; fwd=miss");
    }
    let grown = proxy.memory("VmHWM") - before;
    println!("peak memory after 20 refusals of 64 MiB: {grown} KiB more");
    assert!(grown < 32 * 1024, "{grown} KiB for a value that is refused");
    assert_eq!(proxy.get("/raw/one%20more").status, 502);
    assert_eq!(proxy.get("/raw/most").body.len(), 8 << 20);
    let grown = proxy.memory("VmHWM") - before;
    assert!(grown < 64 * 1024, "{grown} KiB for a value of 8 MiB");
    // Lengths around the one that is read in one go.
    for length in [65_535, 65_536, 65_537, 70_000] {
        let value: Vec<u8> = (0..length).map(|at| b'a' + (at % 23) as u8).collect();
        redis.set("middle", &value);
        let limit = length.to_string();
        assert!(Proxy::start(&redis, &[("MAX_VALUE_BYTES", &limit)]).get("/raw/middle").body == value, "{length}");
        let limit = (length - 1).to_string();
        assert_eq!(Proxy::start(&redis, &[("MAX_VALUE_BYTES", &limit)]).get("/raw/middle").status, 502, "{length}");
    }
}

#[test]
fn the_cache_is_bounded_in_bytes() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("CACHE_BYTES", "10000"), ("CACHE_TTL", "600")]);
    let mut client = proxy.connect();
    let value = "x".repeat(996);
    for number in 0..20 {
        redis.set(format!("k{number:03}"), &value);
        client.get(&format!("/raw/k{number:03}"));
    }
    let cached = (0..20).rev().filter(|number| is_hit(&client.get(&format!("/raw/k{number:03}")))).count();
    assert_eq!(cached, 10, "entries of 1000 bytes in 10000");
    redis.set("longer", "x".repeat(10_000));
    assert_eq!(client.get("/raw/longer").field("cache-status"), "segment-redis-proxy; fwd=miss");
    assert!(is_hit(&client.get("/raw/k000")), "evicted for what was not even stored");
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
            until_tracking(&proxy, 1);
        }
        let stale = |client: &mut Http, detail: &str| {
            until(detail, || {
                let response = client.get("/key/a");
                let status = response.field("cache-status").to_owned();
                let expected = format!("segment-redis-proxy; fwd=stale; detail={detail}; ttl=-");
                let served = status.starts_with(&expected);
                assert!(served || is_hit(&response) || response.status == 200, "{response:?}");
                served.then(|| assert_eq!(response.text(), "{\"value\":1,\"fromCache\":true}"))
            });
        };
        client.get("/key/a");
        until_text(&mut client, "/raw/changed", "1");
        redis.run(&["DEL", "changed"]);
        until_text(&mut client, "/raw/changed", "{\"error\":\"key not found\"}");
        redis.freeze();
        stale(&mut client, "redis-timed-out");
        redis.thaw();
        redis.kill();
        stale(&mut client, "redis-unreachable");
        assert_eq!(client.get("/raw/changed").status, 503, "what is gone has come back");
        assert_eq!(client.get("/raw/never").status, 503);
        redis.restart();
        until("Redis is back", || (client.get("/raw/a").status == 404).then_some(()));
    }
}

/// One writer, many readers, and now and then everything that the proxy has to Redis is cut: once a write is
/// acknowledged and a hop has passed, nobody gets what was before.
fn no_stale_reads(cuts: bool) {
    const KEYS: usize = 20;
    let (seconds, hop) = (setting("FRESHNESS_SECONDS", 5), hop());
    let redis = Redis::start();
    for key in 0..KEYS {
        redis.set(format!("k{key}"), 0);
    }
    let proxy = tracking(redis.port, &[]);
    // The value of each key that was acknowledged at least a hop ago.
    let settled: Arc<Vec<AtomicU64>> = Arc::new((0..KEYS).map(|_| AtomicU64::new(0)).collect());
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..8)
        .map(|number| {
            let (settled, stop, mut client) = (Arc::clone(&settled), Arc::clone(&stop), proxy.connect());
            std::thread::spawn(move || {
                let (mut reads, mut hits, mut stale) = (0u64, 0u64, 0u64);
                for key in (number..).step_by(7) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = key % KEYS;
                    let least = settled[key].load(Ordering::Acquire);
                    let response = client.get(&format!("/raw/k{key}"));
                    // Cut off while it was read: no answer is no stale one.
                    if response.status == 200 {
                        let value: u64 = response.text().parse().expect("a number");
                        reads += 1;
                        hits += u64::from(is_hit(&response));
                        stale += u64::from(value < least);
                    }
                }
                (reads, hits, stale)
            })
        })
        .collect();
    let mut writer = redis.connect();
    let mut client = proxy.connect();
    let (began, mut last_cut, mut value) = (Instant::now(), Instant::now(), 0u64);
    let mut delays = Vec::new();
    let mut acknowledged = std::collections::VecDeque::new();
    while began.elapsed() < Duration::from_secs(seconds) {
        value += 1;
        let key = value as usize % KEYS;
        redis::cmd("SET").arg(format!("k{key}")).arg(value).exec(&mut writer).expect("SET works");
        let set = Instant::now();
        acknowledged.push_back((set, key, value));
        while let Some(&(time, key, value)) = acknowledged.front()
            && time.elapsed() >= hop
        {
            settled[key].store(value, Ordering::Release);
            acknowledged.pop_front();
        }
        // How soon a reader sees it, for some.
        if value % 16 == 0 {
            until("the write is seen", || {
                (client.get(&format!("/raw/k{key}")).text() == value.to_string()).then_some(())
            });
            delays.push(set.elapsed());
        }
        if cuts && last_cut.elapsed() >= Duration::from_secs(1) {
            last_cut = Instant::now();
            redis.run(&["CLIENT", "KILL", "TYPE", "pubsub"]);
            redis.run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
            writer = redis.connect();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    stop.store(true, Ordering::Relaxed);
    let sums = readers.into_iter().map(|reader| reader.join().expect("no panic"));
    let (reads, hits, stale) = sums.fold((0, 0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2));
    delays.sort_unstable();
    println!(
        "{seconds} s{}: {reads} reads, {hits} hits, {stale} stale; {value} writes, seen after {:?} (median), {:?} (longest)",
        if cuts { ", all connections cut each second" } else { "" },
        delays[delays.len() / 2],
        delays[delays.len() - 1]
    );
    assert_eq!(stale, 0, "of {reads} reads");
    assert!(hits > reads / 4, "{hits} hits in {reads} reads: nothing was cached that could be stale");
}

#[test]
fn with_tracking_no_read_is_stale() {
    no_stale_reads(false);
}

#[test]
fn with_tracking_no_read_is_stale_although_connections_are_cut() {
    no_stale_reads(true);
}
