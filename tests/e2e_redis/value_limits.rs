//! What Redis does not allow is done without, and what is too long is not done at all.

use crate::common::admin::read_metric;
use crate::common::freshness::{is_hit, start_tracking_proxy, wait_until_cached, wait_until_text};
use crate::common::relay::Relay;
use crate::common::resp::RespClient;
use crate::common::{HttpClient, Proxy, Redis, Response, wait_for};
use std::net::TcpListener;
use std::time::Duration;

/// Step by step down to what the user may do, told once.
#[test]
fn what_redis_does_not_allow_is_done_without() {
    let redis = Redis::start();
    redis.run(&["SET", "short", "v", "PX", "60000"]);
    redis.run(&["RPUSH", "list", "1"]);
    redis.run(&["SETRANGE", "long", "99999", "x"]);
    let mut proxies = Vec::new();
    for (number, (policy, expires, told)) in [
        (&["+@all", "&*"][..], true, &["at once (tracking active); Redis expirations honoured"][..]),
        // No channels, so no messages about changes.
        (&["+@all", "resetchannels"], true, &["tracking inactive", "expirations honoured"]),
        (&["+@all", "-client"], true, &["tracking inactive", "expirations honoured"]),
        (&["+@all", "-client", "-pttl"], false, &["tracking inactive", "expirations not honoured", "pttl"]),
        (&["+get"], false, &["tracking inactive", "expirations not honoured", "getrange"]),
        (&["+@all", "&*", "-ping"], true, &["at once (tracking active)"]),
        (&["+@all", "&*", "-multi", "-exec"], true, &["at once (tracking active)", "expirations honoured"]),
        (&["+get", "+getrange", "+pttl", "+strlen"], true, &["tracking inactive", "expirations honoured"]),
        (&["+@all", "&*", "-strlen"], true, &["at once (tracking active)", "expirations honoured"]),
        (&["+@all", "&*", "-info"], true, &["at once (tracking active)"]),
        (&["+@all", "&*", "-getrange"], false, &["at once (tracking active)", "expirations not honoured", "getrange"]),
    ]
    .into_iter()
    .enumerate()
    {
        let user = format!("reader{number}");
        redis.run(&[&["ACL", "SETUSER", &user, "reset", "on", ">word", "~*"], policy].concat());
        let variables = [("REDIS_USERNAME", user.as_str()), ("REDIS_PASSWORD", "word"), ("REDIS_TRACKING", "on")];
        let proxy = Proxy::start(&redis, &[&variables[..], &[("CACHE_TTL", "600")]].concat());
        let mut client = proxy.connect();
        let tracking = if policy.contains(&"&*") { "at once (tracking active)" } else { "tracking inactive" };
        wait_for("the log tells", || proxy.log().contains(tracking).then_some(()));
        let response = client.get("/raw/short");
        let told_ttl = response.header("cache-status").strip_prefix("segment-redis-proxy; fwd=miss; stored; ttl=");
        let ttl: u64 = told_ttl.and_then(|ttl| ttl.parse().ok()).expect("it is stored");
        assert_eq!((response.status, ttl < 60, ttl == 600), (200, expires, !expires), "{policy:?}: {ttl}");
        assert!(ttl >= 30, "{policy:?}: {ttl}");
        assert!(is_hit(&client.get("/raw/short")));
        assert_eq!(client.get("/raw/missing").status, 404, "{policy:?}");
        assert_eq!(client.get("/raw/list").status, 409, "{policy:?}");
        (0..20).for_each(|number| assert_eq!(client.get(&format!("/raw/none{number}")).status, 404));
        assert_eq!(client.get("/raw/long").body.len(), 100_000, "{policy:?}");
        proxies.push((proxy, client, policy, told));
    }
    // All of them at once: long enough for what is done now and then, such as asking a silent Redis whether it is there.
    std::thread::sleep(Duration::from_millis(2500));
    for (proxy, mut client, policy, told) in proxies {
        assert!(is_hit(&client.get("/raw/short")), "{policy:?} does not last: {}", proxy.log());
        let log = proxy.log();
        assert!(told.iter().all(|part| log.contains(part)), "{policy:?} is not told: {log}");
        assert!(log.matches("freshness:").count() <= 2, "{policy:?} is told again and again: {log}");
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
        ["/raw/open", "/raw/secret", "/raw/open2", "/raw/open"].iter().for_each(|path| client.send_get(path));
        let responses: Vec<Response> = (0..4).map(|_| client.read_response()).collect();
        assert_eq!(responses.iter().map(|response| response.status).collect::<Vec<_>>(), [200, 502, 404, 200]);
        assert!(responses[1].text().contains("NOPERM"), "{responses:?}");
    }
    assert!(!proxy.log().contains("not honoured"), "one key took the promise from all: {}", proxy.log());
}

/// Without the right to ask how long keys have left, values that are too long are refused unread all the same.
#[test]
fn a_long_value_is_not_read_by_a_plain_get_either() {
    let redis = Redis::start();
    redis.run(&["ACL", "SETUSER", "reader", "on", ">word", "~*", "+@all", "-pttl"]);
    redis.run(&["SETRANGE", "long", "67108863", "x"]);
    let proxy = Proxy::start(&redis, &[("REDIS_USERNAME", "reader"), ("REDIS_PASSWORD", "word")]);
    assert_eq!(proxy.get("/raw/none").status, 404);
    let before = proxy.memory_kib("VmRSS");
    (0..5).for_each(|_| assert_eq!(proxy.get("/raw/long").status, 502));
    let grown = proxy.memory_kib("VmHWM") - before;
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
    let before = proxy.memory_kib("VmRSS");
    for _ in 0..20 {
        let refused = proxy.get("/raw/64%20MiB");
        assert_eq!(refused.status, 502, "{refused:?}");
        assert!(refused.text().contains("MAX_VALUE_BYTES"), "{refused:?}");
        assert_eq!(refused.header("cache-status"), "segment-redis-proxy; fwd=miss");
    }
    let grown = proxy.memory_kib("VmHWM") - before;
    println!("peak memory after 20 refusals of 64 MiB: {grown} KiB more");
    assert!(grown < 32 * 1024, "{grown} KiB for a value that is refused");
    assert_eq!(proxy.get("/raw/one%20more").status, 502);
    assert_eq!(proxy.get("/raw/most").body.len(), 8 << 20);
    let grown = proxy.memory_kib("VmHWM") - before;
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
    assert_eq!(client.get("/raw/longer").header("cache-status"), "segment-redis-proxy; fwd=miss");
    assert!(is_hit(&client.get("/raw/k000")), "evicted for what was not even stored");
}

/// Long values that are on their way hold a bounded part of memory, however many clients ask for different ones and read none.
#[test]
fn what_waits_for_slow_readers_is_bounded() {
    const LENGTH: usize = 8 << 20;
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("CLIENT_BYTES", "40000000"), ("CACHE_SIZE", "1"), ("REDIS_TIMEOUT", "60000")]);
    redis.set("short", "enough for all");
    for number in 0..8 {
        redis.run(&["SETRANGE", &format!("k{number}"), &(LENGTH - 1).to_string(), "x"]);
    }
    assert_eq!(proxy.get("/raw/k0").body.len(), LENGTH);
    let ask = |number: usize| {
        let mut client = proxy.connect();
        let socket = socket2::SockRef::from(client.stream().get_ref());
        socket.set_recv_buffer_size(64 * 1024).expect("an option can be set");
        client.send_get(&format!("/raw/k{number}"));
        wait_for("an answer begins", || client.has_input().then_some(()));
        client
    };
    // The same value for all is one value.
    let same: Vec<HttpClient> = (0..10).map(|_| ask(0)).collect();
    drop(same);
    let mut clients: Vec<HttpClient> = (0..8).map(ask).collect();
    // It is one book for both protocols, and for values that are gathered. What is not sent needs no room, nor what is short.
    let mut resp = RespClient::connect(proxy.address);
    for refused in ["GET k7", "MGET short k7", "GETRANGE k7 1 -1"] {
        let reply = resp.call_text(refused);
        assert!(reply.starts_with("-TRYAGAIN") && reply.contains("CLIENT_BYTES"), "{refused}: {reply}");
    }
    for (command, reply) in [("STRLEN k7", ":8388608"), ("GETRANGE k7 -2 -1", "$2\r\n\0x"), ("EXISTS k7", ":1")] {
        assert_eq!(resp.call_text(command), format!("{reply}\r\n"), "{command}");
    }
    let mut head = proxy.connect();
    head.send("HEAD /raw/k7 HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(head.read_response_to("HEAD").status, 200);
    assert_eq!(proxy.get("/raw/short").text(), "enough for all");
    // A value of a megabyte finds room where one of eight does not.
    redis.run(&["SETRANGE", "middle", "999999", "x"]);
    assert_eq!(resp.call_text("MGET middle short").len(), "*2\r\n$1000000\r\n\r\n$14\r\n\r\n".len() + 1_000_014);
    let mut statuses = Vec::new();
    for client in clients.iter_mut() {
        let response = client.read_response();
        assert!(response.status == 200 || response.text().contains("CLIENT_BYTES"), "{response:?}");
        statuses.push(response.status);
    }
    // Each may have half of what is left of 40 MB: the first three of 8 MiB.
    assert_eq!(statuses, [200, 200, 200, 503, 503, 503, 503, 503]);
    // Three over the Redis protocol, five over HTTP.
    assert_eq!(read_metric(&proxy, "segment_errors_total{kind=\"too_much_held\"}"), 8.0);
    // All is taken: there is room again.
    assert_eq!(proxy.get("/raw/k7").body.len(), LENGTH);
    assert_eq!(proxy.get("/raw/k0").body.len(), LENGTH);
    // Where there is room for nothing, one alone goes all the same, and what is not long is copied, from Redis and from memory.
    let proxy = Proxy::start(&redis, &[("CLIENT_BYTES", "1"), ("CACHE_TTL", "600")]);
    let mut slow = proxy.connect();
    slow.send_get("/raw/k0");
    wait_for("an answer begins", || slow.has_input().then_some(()));
    for length in [2000, 16 * 1024, 16 * 1024 + 1] {
        redis.set(length, "x".repeat(length));
        for _ in 0..2 {
            let served = if length > 16 * 1024 { 503 } else { 200 };
            assert_eq!(proxy.get(&format!("/raw/{length}")).status, served, "{length}");
        }
    }
    assert_eq!(slow.read_response().body.len(), LENGTH);
}

/// The name of a key that was written comes in one message, however long it is. No memory stays with it, nothing that is
/// cached is lost, and no change is missed while another connection takes over.
#[test]
fn long_key_names_release_memory() {
    const KEYS: usize = 2000;
    let redis = Redis::start();
    let names: Vec<String> = (0..KEYS).map(|number| format!("k{number}")).collect();
    let size = (KEYS + 10).to_string();
    let proxy = start_tracking_proxy(redis.port, &[("CACHE_SIZE", &size), ("REDIS_CONNECTIONS", "1")]);
    redis.set("kept", "v");
    let set_all = |value: &str| {
        let mut pipeline = redis::pipe();
        names.iter().for_each(|name| _ = pipeline.cmd("SET").arg(name).arg(value).ignore());
        pipeline
    };
    set_all("old").exec(&mut redis.connect()).expect("SET works");
    let mut client = RespClient::connect(proxy.address);
    let mut values = || {
        let reply = client.call_text(&format!("MGET kept {}", names.join(" ")));
        reply.split("\r\n").skip(2).step_by(2).map(str::to_owned).collect::<Vec<_>>()
    };
    wait_for("all are cached", || {
        let before = redis.count_reads();
        (values().iter().filter(|value| *value == "old").count() == KEYS && redis.count_reads() == before).then_some(())
    });
    let (before, tracked) = (proxy.memory_kib("VmRSS"), listeners(&redis));
    let mut pipeline = redis::pipe();
    pipeline.cmd("SET").arg(vec![b'k'; 20 << 20]).arg("1").ignore();
    let mut writer = redis.connect();
    pipeline.exec(&mut writer).expect("SET works");
    // These are on their way while the connection is replaced.
    set_all("new").exec(&mut writer).expect("SET works");
    wait_for("every change is seen", || (values()[1..].iter().all(|value| value == "new")).then_some(()));
    wait_for("another connection has taken over", || (listeners(&redis) != tracked).then_some(()));
    assert!(is_hit(&proxy.get("/raw/kept")), "the cache was flushed");
    redis.set("kept", "changed");
    wait_for("changes are heard of", || (proxy.get("/raw/kept").text() == "changed").then_some(()));
    wait_for("memory is given back", || (proxy.memory_kib("VmRSS") < before + 16 * 1024).then_some(()));
    assert!(!proxy.log().contains("tracking inactive"), "{}", proxy.log());
}

/// Changes are received while a successor hangs in connecting.
#[test]
fn hung_takeover_delays_no_change() {
    let redis = Redis::start();
    let relay = Relay::start(redis.port);
    let proxy = start_tracking_proxy(relay.port, &[("REDIS_TIMEOUT", "600000"), ("REDIS_CONNECTIONS", "1")]);
    redis.set("a", "old");
    let mut client = proxy.connect();
    wait_until_cached(&mut client, "/raw/a", "old");
    let mute = TcpListener::bind("127.0.0.1:0").expect("a free port");
    relay.set_target(mute.local_addr().expect("an address").port());
    redis.run(&["SET", &"k".repeat(2 << 20), "1"]);
    let _successor = mute.accept().expect("a successor connects");
    for value in ["new", "newer"] {
        redis.set("a", value);
        wait_until_text(&mut client, "/raw/a", value);
        wait_until_cached(&mut client, "/raw/a", value);
    }
    assert!(!proxy.log().contains("tracking inactive"), "{}", proxy.log());
}

/// Returns the ids of the connections that hear of changes.
fn listeners(redis: &Redis) -> Vec<String> {
    let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut redis.connect()).expect("CLIENT LIST works");
    let listening = list.lines().filter(|line| line.contains(" sub=1 "));
    listening.filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
}
