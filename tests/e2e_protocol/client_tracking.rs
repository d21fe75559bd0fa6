//! Tests of client-side caching (`CLIENT TRACKING`) against the replies of Redis, and with the
//! cache of redis-py.

use crate::common::freshness::start_tracking_proxy;
use crate::common::resp::RespClient;
use crate::common::{Proxy, Redis};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

/// Commands with the exact replies of Redis, in their order on one connection in RESP3.
const IDENTICAL_COMMANDS: &[&str] = &[
    "CLIENT TRACKINGINFO",
    "CLIENT GETREDIR",
    "CLIENT CACHING YES",
    "CLIENT CACHING NO",
    "CLIENT CACHING maybe",
    "CLIENT TRACKING OFF",
    "CLIENT TRACKING ON",
    "CLIENT TRACKINGINFO",
    "CLIENT GETREDIR",
    "CLIENT CACHING YES",
    "CLIENT CACHING NO",
    "CLIENT CACHING maybe",
    "client tracking on noloop",
    "CLIENT TRACKINGINFO",
    "CLIENT TRACKING ON OPTIN",
    "CLIENT TRACKINGINFO",
    "CLIENT CACHING NO",
    "CLIENT CACHING yes",
    "CLIENT TRACKINGINFO",
    "CLIENT GETNAME",
    "CLIENT TRACKINGINFO",
    "PING",
    "CLIENT TRACKINGINFO",
    "CLIENT CACHING YES",
    "MGET a b",
    "CLIENT TRACKINGINFO",
    "CLIENT CACHING YES",
    "GET",
    "CLIENT TRACKINGINFO",
    "CLIENT CACHING YES",
    "CLIENT CACHING",
    "CLIENT CACHING NO",
    "CLIENT TRACKINGINFO",
    "CLIENT",
    "CLIENT TRACKINGINFO",
    "CLIENT CACHING YES",
    "CLIENT TRACKING ON OPTIN NOLOOP",
    "CLIENT TRACKINGINFO",
    "CLIENT TRACKING OFF",
    "CLIENT TRACKINGINFO",
    "CLIENT TRACKING",
    "CLIENT TRACKING maybe",
    "CLIENT TRACKING ON maybe",
    "CLIENT TRACKING ON REDIRECT",
    "CLIENT TRACKING ON PREFIX",
    "CLIENT TRACKINGINFO x",
    "CLIENT GETREDIR x",
    "CLIENT CACHING",
    "CLIENT CACHING YES x",
    "CLIENT TRACKING ON",
    "RESET",
    "HELLO 3 SETNAME",
    "CLIENT TRACKINGINFO",
];

/// Connects to a server in RESP3.
fn connect(address: impl Into<SocketAddr>) -> RespClient {
    let mut client = RespClient::connect(address);
    assert!(client.ask("HELLO 3").starts_with('%'));
    client
}

fn address_of(redis: &Redis) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], redis.port))
}

/// The commands of client-side caching get the replies of Redis.
#[test]
fn tracking_replies_equal_redis() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    let [mut to_redis, mut to_proxy] = [address_of(&redis), proxy.address].map(connect);
    for command in IDENTICAL_COMMANDS {
        assert_eq!(to_proxy.ask(command), to_redis.ask(command), "{command}");
    }
}

/// A subcommand of `CLIENT` that Redis does not know ends `CLIENT CACHING`, and no other does. The
/// replies may differ.
#[test]
fn unknown_subcommand_ends_caching_as_in_redis() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    let [mut to_redis, mut to_proxy] = [address_of(&redis), proxy.address].map(connect);
    let known = ["HELP", "INFO", "KILL", "LIST", "PAUSE", "REPLY", "UNBLOCK", "UNPAUSE", "ID", "ID x", "CACHING x"];
    let unknown = ["NOPE", "NOPE x", "LISTS"];
    for (subcommand, is_known) in known.map(|name| (name, true)).into_iter().chain(unknown.map(|name| (name, false))) {
        let command = format!("CLIENT {subcommand}");
        let info = [&mut to_redis, &mut to_proxy].map(|client| {
            ["CLIENT TRACKING ON OPTIN", "CLIENT CACHING YES", &command].iter().for_each(|line| _ = client.ask(line));
            client.ask("CLIENT TRACKINGINFO")
        });
        assert_eq!(info[1], info[0], "{command}");
        assert_eq!(info[0].contains("caching-yes"), is_known, "{command}");
    }
}

/// Step of a dialogue with a server.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The client sends a command and reads its reply.
    Ask(&'static str),
    /// Another client writes, and the client reads this number of invalidations.
    Write(&'static [&'static str], usize),
}

/// Dialogue in which Redis and the proxy send the same bytes.
const DIALOGUE: &[Step] = &[
    Step::Ask("CLIENT TRACKING ON"),
    Step::Ask("GET a"),
    Step::Write(&["SET", "a", "2"], 1),
    // Once for each read.
    Step::Write(&["SET", "a", "3"], 0),
    Step::Ask("GET a"),
    Step::Ask("GET a"),
    Step::Write(&["DEL", "a"], 1),
    // A missing key is tracked as well.
    Step::Ask("GET a"),
    Step::Write(&["SET", "a", "4"], 1),
    Step::Ask("STRLEN a"),
    Step::Write(&["APPEND", "a", "x"], 1),
    Step::Ask("GETRANGE a 0 0"),
    Step::Write(&["SET", "a", "5"], 1),
    Step::Ask("EXISTS a b"),
    Step::Write(&["SET", "b", "1"], 1),
    Step::Write(&["SET", "a", "6"], 1),
    Step::Ask("MGET a b list"),
    Step::Write(&["RPUSH", "list", "x"], 1),
    Step::Write(&["EXPIRE", "b", "1000"], 1),
    Step::Write(&["SET", "other", "1"], 0),
    Step::Ask("GET list"),
    Step::Ask("MGET list"),
    Step::Write(&["DEL", "list"], 1),
    Step::Ask("MGET a b"),
    Step::Write(&["FLUSHALL"], 1),
    Step::Ask("GET a"),
    Step::Ask("CLIENT TRACKING OFF"),
    Step::Write(&["SET", "a", "7"], 0),
    Step::Ask("CLIENT TRACKING ON OPTIN"),
    Step::Ask("GET a"),
    Step::Ask("CLIENT CACHING YES"),
    Step::Ask("MGET b c"),
    Step::Ask("GET d"),
    Step::Write(&["MSET", "a", "8", "d", "8"], 0),
    Step::Write(&["SET", "c", "8"], 1),
    Step::Write(&["SET", "b", "8"], 1),
    Step::Ask("CLIENT CACHING YES"),
    Step::Ask("CLIENT ID"),
    Step::Ask("GET a"),
    Step::Write(&["SET", "a", "9"], 1),
    Step::Ask("CLIENT TRACKING ON"),
    Step::Ask("TTL a"),
    Step::Write(&["SET", "a", "10"], 1),
    Step::Ask("GET a"),
    Step::Ask("RESET"),
    Step::Write(&["SET", "a", "11"], 0),
];

/// Waits until the server at `address` has applied all changes so far. The invalidation of a later
/// change, which another client receives, arrives behind theirs.
fn wait_until_applied(redis: &Redis, address: SocketAddr) {
    let mut observer = connect(address);
    observer.ask("CLIENT TRACKING ON");
    observer.ask("GET observed");
    redis.set("observed", "1");
    assert!(observer.read_message().contains("observed"));
}

/// Runs the dialogue with the server at `address`. Returns all messages. Replies that differ are
/// replaced.
fn run_dialogue(redis: &Redis, address: SocketAddr) -> Vec<String> {
    let mut client = connect(address);
    let mut messages = Vec::new();
    for step in DIALOGUE {
        match step {
            Step::Ask(command @ ("TTL a" | "CLIENT ID")) => {
                assert!(client.ask(command).starts_with(':'));
            }
            Step::Ask(command) => messages.push(client.ask(command)),
            Step::Write(command, pushes) => {
                redis.run(command);
                if *pushes == 0 {
                    wait_until_applied(redis, address);
                }
                messages.extend((0..*pushes).map(|_| format!("{command:?}: {}", client.read_message())));
            }
        }
    }
    messages
}

/// Reads and invalidations have the bytes of Redis, in its order.
#[test]
fn invalidations_equal_redis() {
    let redis = Redis::start();
    redis.set("a", "1");
    let expected = run_dialogue(&redis, address_of(&redis));
    // Before the proxy starts, so that it receives no invalidation of these changes.
    redis.run(&["FLUSHALL"]);
    redis.set("a", "1");
    let proxy = start_tracking_proxy(redis.port, &[]);
    assert_eq!(run_dialogue(&redis, proxy.address), expected);
    assert_eq!(expected[2], "[\"SET\", \"a\", \"2\"]: >2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\na\r\n");
}

/// Without the invalidations of Redis, or over RESP2, tracking is refused with the remedy. Options
/// that the proxy lacks are refused by name.
#[test]
fn impossible_tracking_is_refused() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    let mut client = connect(proxy.address);
    let reply = client.ask("CLIENT TRACKING ON");
    assert!(reply.starts_with("-ERR CLIENT TRACKING needs REDIS_TRACKING=on"), "{reply}");
    assert!(RespClient::connect(proxy.address).ask("HELLO 3").contains("segment-redis-proxy"));
    let proxy = start_tracking_proxy(redis.port, &[]);
    for (version, command, text) in [
        ("2", "CLIENT TRACKING ON", "send HELLO 3"),
        ("2", "CLIENT TRACKING ON REDIRECT 1", "REDIRECT is not supported"),
        ("3", "CLIENT TRACKING ON REDIRECT 1", "REDIRECT is not supported"),
        ("3", "CLIENT TRACKING ON BCAST", "BCAST and PREFIX are not supported"),
        ("3", "CLIENT TRACKING ON BCAST PREFIX x", "BCAST and PREFIX are not supported"),
        ("3", "CLIENT TRACKING ON OPTOUT", "OPTOUT is not supported"),
    ] {
        let mut client = RespClient::connect(proxy.address);
        client.ask(&format!("HELLO {version}"));
        let reply = client.ask(command);
        assert!(reply.starts_with("-ERR ") && reply.contains(text), "{command}: {reply}");
        assert!(client.ask("CLIENT TRACKINGINFO").contains("$3\r\noff\r\n"), "{command}");
    }
}

/// `HELLO 2` ends tracking, because RESP2 has no push messages.
#[test]
fn hello_2_ends_tracking() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    let mut client = connect(proxy.address);
    client.ask("CLIENT TRACKING ON");
    client.ask("GET a");
    assert!(client.ask("HELLO 2").starts_with('*'));
    redis.set("a", "1");
    assert!(client.ask("HELLO 3").starts_with('%'));
    assert!(client.ask("CLIENT TRACKINGINFO").contains("$3\r\noff\r\n"));
}

/// The cache of redis-py sees every change that is made in Redis.
#[test]
fn redis_py_cache_sees_changes() {
    let python = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("python").join("bin/python");
    assert!(python.exists(), "redis-py is missing: scripts/test.sh installs it into Cargo's target directory");
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e_protocol/client_cache.py");
    let ports = [proxy.address.port(), redis.port].map(|port| port.to_string());
    let output = Command::new(&python).arg(script).args(&ports).output().expect("python starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "{error}");
}
