//! Tests of states in which Redis refuses writes, and of errors that a real Redis sends.
//!
//! Refused writes must not affect the proxy: each read is compared with the reply of Redis itself,
//! and tracking continues. docs/reliability.md has the table.

use crate::common::freshness::{is_hit, start_tracking_proxy, wait_until_cached, wait_until_text};
use crate::common::relay::Relay;
use crate::common::resolver::Resolver;
use crate::common::resp::{RespClient, encode_command};
use crate::common::{Proxy, Redis, start_scripted_redis, wait_for};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Reads over RESP: a value, an empty value, a missing key, a long value, a list, and several keys.
const READS: [&str; 9] = [
    "GET value",
    "GET empty",
    "GET missing",
    "GET long",
    "GET list",
    "MGET value empty missing list",
    "EXISTS value empty missing list",
    "STRLEN long",
    "GETRANGE value 1 2",
];

/// Writes the keys of [`READS`] and one for the cache.
fn fill_keys(redis: &Redis) {
    for command in [
        &["SET", "cached", "1"][..],
        &["SET", "value", "text"],
        &["SET", "empty", "", "PX", "600000"],
        &["SETRANGE", "long", "99999", "x"],
        &["RPUSH", "list", "1"],
    ] {
        redis.run(command);
    }
}

/// Returns the error code that Redis replies with, or an empty string.
fn error_code(redis: &Redis, command: &[&str]) -> String {
    let result = redis::cmd(command[0]).arg(&command[1..]).exec(&mut redis.connect());
    result.err().and_then(|error| error.code().map(str::to_owned)).unwrap_or_default()
}

/// Compares uncached reads of the proxy with those of Redis, over both protocols.
fn check_reads_match_redis(state: &str, redis: &Redis, proxy: &Proxy) {
    let mut redis_client = RespClient::connect(SocketAddr::from(([127, 0, 0, 1], redis.port)));
    for read in READS {
        let mut proxy_client = RespClient::connect(proxy.address);
        assert_eq!(proxy_client.call_text(read), redis_client.call_text(read), "{state}: {read}");
    }
    let statuses = ["value", "empty", "missing", "long", "list"].map(|key| proxy.get(&format!("/raw/{key}")).status);
    assert_eq!(statuses, [200, 200, 404, 200, 409], "{state}");
}

/// Waits until Redis has counted so many `PING`s, including refused ones, that the tracking
/// connection sent one.
fn wait_until_probed(redis: &Redis) {
    let count = || {
        let info: String = redis::cmd("INFO").arg("commandstats").query(&mut redis.connect()).expect("INFO works");
        let line = info.lines().find_map(|line| line.strip_prefix("cmdstat_ping:")).unwrap_or_default().to_owned();
        let counts = line.split(',').filter_map(|part| part.split_once('='));
        let calls = counts.filter(|(name, _)| ["calls", "rejected_calls"].contains(name));
        calls.filter_map(|(_, count)| count.parse::<u64>().ok()).sum::<u64>()
    };
    // One a second from the fetchers, and one a second from the tracking connection.
    let before = count();
    wait_for("Redis is probed", || (count() >= before + 6).then_some(()));
}

/// State of Redis in which writes fail: the commands that start and end it, and the error code of a
/// write.
struct State {
    code: &'static str,
    begin: &'static [&'static [&'static str]],
    end: &'static [&'static [&'static str]],
}

const STATES: [State; 3] = [
    State { code: "OOM", begin: &[&["CONFIG", "SET", "maxmemory", "1"]], end: &[&["CONFIG", "SET", "maxmemory", "0"]] },
    State {
        code: "NOREPLICAS",
        begin: &[&["CONFIG", "SET", "min-replicas-to-write", "1"]],
        end: &[&["CONFIG", "SET", "min-replicas-to-write", "0"]],
    },
    // The folder is removed, so saving fails.
    State {
        code: "MISCONF",
        begin: &[&["CONFIG", "SET", "save", "900 1"], &["BGSAVE"]],
        end: &[&["CONFIG", "SET", "save", ""]],
    },
];

/// Reads and tracking continue while Redis refuses writes with OOM, NOREPLICAS or MISCONF.
#[test]
fn reads_continue_while_writes_fail() {
    for State { code: error, begin, end } in STATES {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{error}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let redis = Redis::start_with(&["--dir", folder.to_str().expect("text")]);
        std::fs::remove_dir(&folder).expect("the folder is empty");
        fill_keys(&redis);
        let proxy = start_tracking_proxy(redis.port, &[]);
        let mut client = proxy.connect();
        wait_until_cached(&mut client, "/raw/cached", "1");
        begin.iter().for_each(|command| redis.run(command));
        wait_for("writes fail", || (error_code(&redis, &["SET", "other", "1"]) == error).then_some(()));
        check_reads_match_redis(error, &redis, &proxy);
        wait_until_probed(&redis);
        assert!(is_hit(&client.get("/raw/cached")), "{error}: the cache was flushed");
        assert!(!proxy.log().contains("tracking inactive"), "{error}: {}", proxy.log());
        assert_eq!(proxy.get("/readyz").status, 200, "{error}");
        end.iter().for_each(|command| redis.run(command));
        wait_for("writes work", || error_code(&redis, &["SET", "cached", "2"]).is_empty().then_some(()));
        wait_until_text(&mut client, "/raw/cached", "2");
    }
}

/// A proxy in front of a replica reads and tracks like one in front of the primary.
#[test]
fn replica_reads_match_redis() {
    let primary = Redis::start();
    fill_keys(&primary);
    // The replica loads the data of the primary without a file.
    let replica = Redis::start_with(&["--repl-diskless-load", "swapdb"]);
    replica.run(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
    let has_list = || redis::cmd("EXISTS").arg("list").query(&mut replica.connect());
    wait_for("the replica has all keys", || (has_list() == Ok(1)).then_some(()));
    assert_eq!(error_code(&replica, &["SET", "other", "1"]), "READONLY");
    let proxy = start_tracking_proxy(replica.port, &[]);
    check_reads_match_redis("READONLY", &replica, &proxy);
    let mut client = proxy.connect();
    wait_until_cached(&mut client, "/raw/cached", "1");
    primary.set("cached", "2");
    wait_until_text(&mut client, "/raw/cached", "2");
}

/// Writes between the commands of one read of the key `A`, and the expected response.
struct Split {
    before: &'static [&'static str],
    /// Command of the read after which the writes run.
    behind: &'static str,
    writes: &'static [&'static [&'static str]],
    /// Expected status and value.
    answer: &'static str,
    /// Lifetime of the entry in seconds: CACHE_TTL, less, or empty if nothing is cached.
    ttl: &'static str,
}

#[rustfmt::skip]
const SPLITS: [Split; 14] = [
    // An old value gets the lifetime of the new one.
    Split { before: &["SET", "A", "old", "PX", "60000"], behind: "GETRANGE", writes: &[&["SET", "A", "new"]], answer: "200 old", ttl: "600" },
    Split { before: &["SET", "A", "old"], behind: "GETRANGE", writes: &[&["SET", "A", "new", "PX", "60000"]], answer: "200 old", ttl: "less" },
    Split { before: &["SET", "A", "old"], behind: "GETRANGE", writes: &[&["DEL", "A"]], answer: "404", ttl: "" },
    Split { before: &["SET", "A", "old"], behind: "GETRANGE", writes: &[&["DEL", "A"], &["RPUSH", "A", "1"]], answer: "200 old", ttl: "600" },
    // `GETRANGE` returns nothing, so `GET` decides.
    Split { before: &["DEL", "A"], behind: "GETRANGE", writes: &[&["SET", "A", "new", "PX", "60000"]], answer: "200 new", ttl: "less" },
    Split { before: &["DEL", "A"], behind: "GETRANGE", writes: &[&["SET", "A", ""]], answer: "200 ", ttl: "600" },
    Split { before: &["DEL", "A"], behind: "GETRANGE", writes: &[&["RPUSH", "A", "1"]], answer: "409", ttl: "" },
    Split { before: &["DEL", "A"], behind: "", writes: &[], answer: "404", ttl: "" },
    Split { before: &["SET", "A", "", "PX", "60000"], behind: "", writes: &[], answer: "200 ", ttl: "less" },
    Split { before: &["SET", "A", ""], behind: "GETRANGE", writes: &[&["DEL", "A"]], answer: "404", ttl: "" },
    Split { before: &["SET", "A", ""], behind: "GET", writes: &[&["DEL", "A"]], answer: "404", ttl: "" },
    Split { before: &["SET", "A", ""], behind: "GET", writes: &[&["SET", "A", "new", "PX", "60000"]], answer: "200 ", ttl: "less" },
    // A long value takes three round trips, and may be short or gone in the last one.
    Split { before: &["SETRANGE", "A", "99999", "x"], behind: "STRLEN", writes: &[&["SET", "A", ""]], answer: "200 ", ttl: "600" },
    Split { before: &["SETRANGE", "A", "99999", "x"], behind: "STRLEN", writes: &[&["DEL", "A"]], answer: "404", ttl: "" },
];

/// A write between the commands of a read causes only the listed results.
#[test]
fn writes_between_commands_are_bounded() {
    for split in SPLITS {
        let Split { before, behind, writes, answer, ttl } = split;
        let redis = Redis::start();
        redis.run(before);
        let proxy = Proxy::start_on_redis_port(start_writing_relay(&redis, behind, writes), &[("CACHE_TTL", "600")]);
        let response = proxy.get("/raw/A");
        let text = if response.status == 200 { format!(" {}", response.text()) } else { String::new() };
        assert_eq!(format!("{}{text}", response.status), answer, "{before:?} {behind} {writes:?}");
        let stored_ttl = match response.header("cache-status").rsplit_once("ttl=") {
            Some((_, "600")) => "600",
            Some(_) => "less",
            None => "",
        };
        assert_eq!(stored_ttl, ttl, "{before:?} {behind} {writes:?}: {response:?}");
    }
}

/// Starts a server that forwards each command to Redis, and runs the writes after the first command
/// named `behind`.
fn start_writing_relay(redis: &Redis, behind: &'static str, writes: &'static [&'static [&'static str]]) -> u16 {
    let address = SocketAddr::from(([127, 0, 0, 1], redis.port));
    let done = AtomicBool::new(false);
    let (port, _) = start_scripted_redis(move |words| {
        let reply = RespClient::connect(address).call(encode_command(words));
        if words[0] == behind && !done.swap(true, Ordering::Relaxed) {
            let mut writer = RespClient::connect(address);
            writes.iter().for_each(|write| _ = writer.call(encode_command(write)));
        }
        Some(String::from_utf8(reply).expect("text"))
    });
    port
}

/// A Redis at `maxclients` names the reason and closes. The client and the log get that reason.
#[test]
fn full_redis_reason_reaches_clients() {
    let redis = Redis::start();
    let mut admin = redis.connect();
    redis::cmd("CONFIG").arg(&["SET", "maxclients", "1"]).exec(&mut admin).expect("CONFIG works");
    for variables in [&[][..], &[("REDIS_PASSWORD", "word")], &[("REDIS_DB", "1")]] {
        let proxy = Proxy::start_on_redis_port(redis.port, variables);
        let response = proxy.get("/raw/a");
        assert_eq!((response.status, response.header("retry-after")), (503, "1"), "{variables:?}: {response:?}");
        assert!(response.text().contains("ERR max number of clients reached"), "{variables:?}: {response:?}");
        let error = RespClient::connect(proxy.address).call_text("GET a");
        assert!(error.starts_with("-LOADING ") && error.contains("max number of clients"), "{variables:?}: {error}");
        let remedy = "max number of clients reached; raise maxclients in Redis";
        wait_for("the log has the remedy", || proxy.log().contains(remedy).then_some(()));
        let ready = proxy.get("/readyz");
        assert!(ready.status == 503 && ready.text().contains("max number of clients"), "{variables:?}: {ready:?}");
    }
    redis::cmd("CONFIG").arg(&["SET", "maxclients", "100"]).exec(&mut admin).expect("CONFIG works");
}

/// Redis quotes the arguments of an unknown command, and the proxy never shows a quoted password.
#[test]
fn quoted_password_is_never_shown() {
    let redis = Redis::start_with(&["--rename-command", "AUTH", ""]);
    for variables in
        [&[("REDIS_PASSWORD", "topsecret")][..], &[("REDIS_USERNAME", "me"), ("REDIS_PASSWORD", "topsecret")]]
    {
        let proxy = Proxy::start(&redis, &[variables, &[("REDIS_TRACKING", "on")]].concat());
        let response = proxy.get("/raw/a");
        assert!(response.status == 502 && response.text().contains("rejected AUTH"), "{response:?}");
        wait_for("the log has the remedy", || {
            proxy.log().contains("check the user and the password of Redis").then_some(())
        });
        let shown = [
            response.text(),
            RespClient::connect(proxy.address).call_text("GET a"),
            proxy.get("/readyz").text(),
            proxy.get("/").text(),
            proxy.get("/stats").text(),
            proxy.log(),
        ];
        assert!(shown.iter().all(|text| !text.contains("topsecret")), "{shown:?}");
    }
}

/// An address whose Redis is full is skipped if the name has another one.
#[test]
fn full_address_is_skipped() {
    let full = Redis::start();
    let mut only_client = full.connect();
    redis::cmd("CONFIG").arg(&["SET", "maxclients", "1"]).exec(&mut only_client).expect("CONFIG works");
    let resolver = Resolver::start("127.0.0.1");
    resolver.set_result(0, "127.0.0.1,127.0.0.2");
    let other = Redis::start();
    other.set("a", "value");
    let _relay = Relay::start_at(("127.0.0.2", full.port), other.port);
    let proxy = Proxy::start(&full, &resolver.env());
    assert_eq!(proxy.get("/raw/a").text(), "value");
}

/// Errors of `PING` on a tracking connection end tracking only if Redis does not serve reads.
#[test]
fn outage_ping_error_ends_tracking() {
    for (error, is_kept) in [
        ("MISCONF Redis is configured to save RDB snapshots", true),
        ("NOPERM this user has no permissions to run the 'ping' command", true),
        ("LOADING Redis is loading the dataset in memory", false),
        ("MASTERDOWN Link with MASTER is down", false),
        ("NOAUTH Authentication required.", false),
    ] {
        let (answers, pings) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let (works, counted) = (Arc::clone(&answers), Arc::clone(&pings));
        let (port, _) = start_scripted_redis(move |words| {
            Some(match words[0].as_str() {
                "PING" if works.load(Ordering::Relaxed) => "+PONG\r\n".into(),
                "PING" => {
                    counted.fetch_add(1, Ordering::Relaxed);
                    format!("-{error}\r\n")
                }
                "INFO" => "$10\r\nrun_id:one\r\n".into(),
                "CLIENT" if words[1] == "ID" => ":1\r\n".into(),
                "SUBSCRIBE" => "*3\r\n$9\r\nsubscribe\r\n$20\r\n__redis__:invalidate\r\n:1\r\n".into(),
                "GETRANGE" => "$1\r\nv\r\n".into(),
                "PTTL" => ":-1\r\n".into(),
                _ => "+OK\r\n".into(),
            })
        });
        let proxy = start_tracking_proxy(port, &[]);
        answers.store(false, Ordering::Relaxed);
        if is_kept {
            // One a second from the fetchers, and one a second from the tracking connection.
            wait_for("PING is refused", || (pings.load(Ordering::Relaxed) >= 6).then_some(()));
            assert!(!proxy.log().contains("tracking inactive"), "{error}: {}", proxy.log());
        } else {
            wait_for(&format!("tracking ends for {error}"), || proxy.log().contains("tracking inactive").then_some(()));
        }
    }
}

/// Redis quotes a client's key in an error for an unknown command. Neither log nor health shows it.
#[test]
fn quoted_key_is_never_shown() {
    let redis = Redis::start_with(&["--rename-command", "PTTL", ""]);
    let proxy = Proxy::start(&redis, &[]);
    assert_eq!(proxy.get("/key/sec%1b%5b31mret").status, 404);
    wait_for("the log has the error", || proxy.log().contains("unknown command 'PTTL'").then_some(()));
    for text in [proxy.log(), proxy.get("/readyz").text(), proxy.get("/stats").text()] {
        assert!(!text.contains("31mret") && !text.contains('\u{1b}') && !text.contains("u001b"), "{text:?}");
    }
}

/// A missing password is reported first, whatever command is refused for it.
#[test]
fn missing_password_is_named_first() {
    let redis = Redis::start_with(&["--requirepass", "word"]);
    let proxy = Proxy::start(&redis, &[("REDIS_DB", "1")]);
    assert!(proxy.get("/raw/a").text().contains("NOAUTH"));
    wait_for("the log has the remedy", || proxy.log().contains("set REDIS_PASSWORD").then_some(()));
    assert!(!proxy.log().contains("check REDIS_DB"), "{}", proxy.log());
}
