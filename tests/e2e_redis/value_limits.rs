//! Tests of commands that the Redis user may not run, and of values and key names that are long.

use crate::common::admin::read_metric;
use crate::common::freshness::{is_hit, start_tracking_proxy, wait_until_cached, wait_until_text};
use crate::common::relay::Relay;
use crate::common::resp::RespClient;
use crate::common::{HttpClient, Proxy, Redis, Response, wait_for};
use std::net::TcpListener;
use std::time::Duration;

/// The proxy works without the commands that the user may not run, and logs the consequence once.
#[test]
fn denied_commands_degrade_and_log_once() {
    let redis = Redis::start();
    redis.run(&["SET", "short", "v", "PX", "60000"]);
    redis.run(&["RPUSH", "list", "1"]);
    redis.run(&["SETRANGE", "long", "99999", "x"]);
    let mut proxies = Vec::new();
    for (number, (policy, expires, logged)) in [
        (&["+@all", "&*"][..], true, &["at once (tracking active); Redis expirations honoured"][..]),
        // In RESP3 Redis sends invalidations without the channel too.
        (&["+@all", "resetchannels"], true, &["at once (tracking active)", "expirations honoured"]),
        (&["+@all", "&*", "-role"], true, &["at once (tracking active)", "denies ROLE"]),
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
        let tracking = if logged[0].starts_with("at once") { "at once (tracking active)" } else { "tracking inactive" };
        wait_for("the log has the guarantee", || proxy.log().contains(tracking).then_some(()));
        let response = client.get("/raw/short");
        let stored_ttl = response.header("cache-status").strip_prefix("segment-redis-proxy; fwd=miss; stored; ttl=");
        let ttl: u64 = stored_ttl.and_then(|ttl| ttl.parse().ok()).expect("the value is stored");
        assert_eq!((response.status, ttl < 60, ttl == 600), (200, expires, !expires), "{policy:?}: {ttl}");
        assert!(ttl >= 30, "{policy:?}: {ttl}");
        assert!(is_hit(&client.get("/raw/short")));
        assert_eq!(client.get("/raw/missing").status, 404, "{policy:?}");
        assert_eq!(client.get("/raw/list").status, 409, "{policy:?}");
        (0..20).for_each(|number| assert_eq!(client.get(&format!("/raw/none{number}")).status, 404));
        assert_eq!(client.get("/raw/long").body.len(), 100_000, "{policy:?}");
        proxies.push((proxy, client, policy, logged));
    }
    // All proxies run at once, long enough for periodic work, such as probing a silent Redis.
    std::thread::sleep(Duration::from_millis(2500));
    for (proxy, mut client, policy, logged) in proxies {
        assert!(is_hit(&client.get("/raw/short")), "{policy:?} does not last: {}", proxy.log());
        let log = proxy.log();
        assert!(logged.iter().all(|part| log.contains(part)), "{policy:?} is not logged: {log}");
        assert!(log.matches("freshness:").count() <= 2, "{policy:?} is logged repeatedly: {log}");
    }
}

/// A forbidden key fails alone: other keys in the same round trip are served.
#[test]
fn forbidden_key_fails_alone() {
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
    assert!(!proxy.log().contains("not honoured"), "one key changed the guarantee for all: {}", proxy.log());
}

/// Without permission for `PTTL`, a value over the limit is refused without reading it, too.
#[test]
fn plain_get_reads_no_oversized_value() {
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

/// A value over the limit is never read, however often it is requested.
#[test]
fn oversized_value_is_never_read() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "60000")]);
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
    // Lengths around the limit of the first read.
    for length in [65_535, 65_536, 65_537, 70_000] {
        let value: Vec<u8> = (0..length).map(|at| b'a' + (at % 23) as u8).collect();
        redis.set("middle", &value);
        let limit = length.to_string();
        assert!(Proxy::start(&redis, &[("MAX_VALUE_BYTES", &limit)]).get("/raw/middle").body == value, "{length}");
        let limit = (length - 1).to_string();
        assert_eq!(Proxy::start(&redis, &[("MAX_VALUE_BYTES", &limit)]).get("/raw/middle").status, 502, "{length}");
    }
}

/// The cache holds at most `CACHE_BYTES`, and a longer value evicts nothing.
#[test]
fn cache_bytes_limits_entries() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("CACHE_BYTES", "10000"), ("CACHE_TTL", "600")]);
    let mut client = proxy.connect();
    let value = "x".repeat(996);
    for number in 0..20 {
        redis.set(format!("k{number:03}"), &value);
        client.get(&format!("/raw/k{number:03}"));
    }
    let cached = (0..20).rev().filter(|number| is_hit(&client.get(&format!("/raw/k{number:03}")))).count();
    assert_eq!(cached, 10, "entries of 1000 bytes fit in 10000");
    redis.set("longer", "x".repeat(10_000));
    assert_eq!(client.get("/raw/longer").header("cache-status"), "segment-redis-proxy; fwd=miss");
    assert!(is_hit(&client.get("/raw/k000")), "evicted for a value that was not cached");
}

/// Long values in transit take bounded memory, however many clients request them and do not read.
#[test]
fn client_bytes_limits_unread_values() {
    const LENGTH: usize = 8 << 20;
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("CLIENT_BYTES", "40000000"), ("CACHE_SIZE", "1"), ("REDIS_TIMEOUT", "60000")]);
    redis.set("short", "enough for all");
    for number in 0..8 {
        redis.run(&["SETRANGE", &format!("k{number}"), &(LENGTH - 1).to_string(), "x"]);
    }
    assert_eq!(proxy.get("/raw/k0").body.len(), LENGTH);
    let start_reader = |number: usize| {
        let mut client = proxy.connect();
        let socket = socket2::SockRef::from(client.stream().get_ref());
        socket.set_recv_buffer_size(64 * 1024).expect("an option can be set");
        client.send_get(&format!("/raw/k{number}"));
        wait_for("a response starts", || client.has_input().then_some(()));
        client
    };
    // Clients of the same value share it.
    let same: Vec<HttpClient> = (0..10).map(|_| start_reader(0)).collect();
    drop(same);
    let mut clients: Vec<HttpClient> = (0..8).map(start_reader).collect();
    // Both protocols and multi-key replies share the limit. A value that is not sent, or is short,
    // does not count.
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
    // A value of 1 MB fits where one of 8 MiB does not.
    redis.run(&["SETRANGE", "middle", "999999", "x"]);
    assert_eq!(resp.call_text("MGET middle short").len(), "*2\r\n$1000000\r\n\r\n$14\r\n\r\n".len() + 1_000_014);
    let mut statuses = Vec::new();
    for client in clients.iter_mut() {
        let response = client.read_response();
        assert!(response.status == 200 || response.text().contains("CLIENT_BYTES"), "{response:?}");
        statuses.push(response.status);
    }
    // Each value may take half of what is left of 40 MB, so the first three of 8 MiB fit.
    assert_eq!(statuses, [200, 200, 200, 503, 503, 503, 503, 503]);
    // Three over RESP, five over HTTP.
    assert_eq!(read_metric(&proxy, "segment_errors_total{kind=\"too_much_held\"}"), 8.0);
    // All values are sent, so the limit is free again.
    assert_eq!(proxy.get("/raw/k7").body.len(), LENGTH);
    assert_eq!(proxy.get("/raw/k0").body.len(), LENGTH);
    // With a limit of one byte a single long value is still sent. Short values are copied, from
    // Redis and from the cache.
    let proxy = Proxy::start(&redis, &[("CLIENT_BYTES", "1"), ("CACHE_TTL", "600")]);
    let mut slow = proxy.connect();
    slow.send_get("/raw/k0");
    wait_for("a response starts", || slow.has_input().then_some(()));
    for length in [2000, 16 * 1024, 16 * 1024 + 1] {
        redis.set(length, "x".repeat(length));
        for _ in 0..2 {
            let served = if length > 16 * 1024 { 503 } else { 200 };
            assert_eq!(proxy.get(&format!("/raw/{length}")).status, served, "{length}");
        }
    }
    assert_eq!(slow.read_response().body.len(), LENGTH);
}

/// A key name of 20 MiB in an invalidation costs neither memory nor freshness.
///
/// Redis sends the name in one message. No memory stays with the connection, nothing cached is
/// lost, and no invalidation is missed while another connection takes over.
#[test]
fn long_key_names_release_memory() {
    const KEYS: usize = 2000;
    let redis = Redis::start();
    let names: Vec<String> = (0..KEYS).map(|number| format!("k{number}")).collect();
    let size = (KEYS + 10).to_string();
    let variables = [("CACHE_SIZE", size.as_str()), ("REDIS_CONNECTIONS", "1"), ("REDIS_TIMEOUT", "60000")];
    let proxy = start_tracking_proxy(redis.port, &variables);
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
    let (before, tracked) = (proxy.memory_kib("VmRSS"), list_tracking_connections(&redis));
    let mut pipeline = redis::pipe();
    pipeline.cmd("SET").arg(vec![b'k'; 20 << 20]).arg("1").ignore();
    let mut writer = redis.connect();
    pipeline.exec(&mut writer).expect("SET works");
    // These invalidations are in transit while the connection is replaced.
    set_all("new").exec(&mut writer).expect("SET works");
    wait_for("every invalidation is applied", || (values()[1..].iter().all(|value| value == "new")).then_some(()));
    wait_for("another connection has taken over", || (list_tracking_connections(&redis) != tracked).then_some(()));
    assert!(is_hit(&proxy.get("/raw/kept")), "the cache was flushed");
    redis.set("kept", "changed");
    wait_for("invalidations arrive", || (proxy.get("/raw/kept").text() == "changed").then_some(()));
    wait_for("memory returns to the kernel", || (proxy.memory_kib("VmRSS") < before + 16 * 1024).then_some(()));
    assert!(!proxy.log().contains("tracking inactive"), "{}", proxy.log());
}

/// Invalidations arrive while the next tracking connection hangs in its handshake.
#[test]
fn hung_takeover_delays_no_invalidation() {
    let redis = Redis::start();
    let relay = Relay::start(redis.port);
    let proxy = start_tracking_proxy(relay.port, &[("REDIS_TIMEOUT", "600000"), ("REDIS_CONNECTIONS", "1")]);
    redis.set("a", "old");
    let mut client = proxy.connect();
    wait_until_cached(&mut client, "/raw/a", "old");
    let silent_listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    relay.set_target(silent_listener.local_addr().expect("an address").port());
    redis.run(&["SET", &"k".repeat(2 << 20), "1"]);
    let _successor = silent_listener.accept().expect("the next connection arrives");
    for value in ["new", "newer"] {
        redis.set("a", value);
        wait_until_text(&mut client, "/raw/a", value);
        wait_until_cached(&mut client, "/raw/a", value);
    }
    assert!(!proxy.log().contains("tracking inactive"), "{}", proxy.log());
}

/// Returns the ids of the tracking connections.
fn list_tracking_connections(redis: &Redis) -> Vec<String> {
    let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut redis.connect()).expect("CLIENT LIST works");
    let listening = list.lines().filter(|line| line.contains(" sub=1 "));
    listening.filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
}
