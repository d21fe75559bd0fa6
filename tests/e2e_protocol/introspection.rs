//! Tests of `COMMAND` and `INFO` against the replies of Redis and with redis-cli.

use crate::common::resp::RespClient;
use crate::common::{Proxy, Redis, wait_for};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

/// Returns a connection to Redis and one to the proxy, both with RESP `version`.
fn connect_both(redis: &Redis, proxy: &Proxy, version: &str) -> [RespClient; 2] {
    [SocketAddr::from(([127, 0, 0, 1], redis.port)), proxy.address].map(|address| {
        let mut client = RespClient::connect(address);
        client.call_text(&format!("HELLO {version}"));
        client
    })
}

/// Returns the elements of a reply that is an array of bulk strings.
fn array_elements(reply: &str) -> Vec<String> {
    reply.split("\r\n").skip(2).step_by(2).map(str::to_owned).collect()
}

/// `COMMAND GETKEYS` gets the reply of Redis.
#[test]
fn command_getkeys_equals_redis() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    let lines = [
        "get a",
        "GeT a",
        "get a b",
        "mget a b c a",
        "exists a b",
        "strlen a",
        "getrange a 0 1",
        "substr a 0",
        "ttl a",
        "pttl a",
        "get",
        "no-such-command a",
        "ping a",
        "echo a",
        "info memory",
        "hello 3",
        "client setname a",
        "client no-such-subcommand",
        "client|setname a",
        "config get a",
        "command getkeys get a",
    ];
    for version in ["2", "3"] {
        let [mut to_redis, mut to_proxy] = connect_both(&redis, &proxy, version);
        for subcommand in ["GETKEYS", "getkeysandflags"] {
            let alone = format!("COMMAND {subcommand}");
            for command in lines.iter().map(|line| format!("{alone} {line}")).chain([alone.clone()]) {
                assert_eq!(
                    to_proxy.call_text(&command),
                    to_redis.call_text(&command),
                    "{command} in version {version}"
                );
            }
        }
        assert_eq!(to_proxy.call_text("COMMAND GETKEYS mget a b"), "*2\r\n$1\r\na\r\n$1\r\nb\r\n");
        // Redis supports SET, the proxy does not.
        assert_eq!(to_proxy.call_text("COMMAND GETKEYS set a b"), "-ERR Invalid command specified\r\n");
    }
}

/// `COMMAND DOCS` reports the arguments that Redis reports. The proxy has summaries of its own.
#[test]
fn command_docs_arguments_equal_redis() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    // Redis 7.0 lacks the first two. The others take fewer arguments in the proxy.
    let deviating = ["client|no-touch", "client|setinfo", "client|tracking", "command|list"];
    for version in ["2", "3"] {
        let [mut to_redis, mut to_proxy] = connect_both(&redis, &proxy, version);
        let all = array_elements(&to_proxy.call_text("COMMAND LIST"));
        assert!(all.len() > 30, "{all:?}");
        for name in &all {
            let docs = format!("COMMAND DOCS {}", name.to_uppercase());
            let (expected, found) = (to_redis.call_text(&docs), to_proxy.call_text(&docs));
            let is_container = all.iter().any(|other| other.starts_with(&format!("{name}|")));
            assert_eq!(found.contains("$11\r\nsubcommands\r\n"), is_container, "{name}");
            assert!(found.contains(&format!("${}\r\n{name}\r\n", name.len())), "{found}");
            if !is_container && !deviating.contains(&name.as_str()) {
                let arguments = |reply: &str| reply.split_once("$9\r\narguments\r\n").map(|(_, rest)| rest.to_owned());
                assert_eq!(arguments(&found), arguments(&expected), "{name} in version {version}");
            }
        }
        let none = if version == "3" { "%0\r\n" } else { "*0\r\n" };
        assert_eq!(to_proxy.call_text("COMMAND DOCS no-such-command client|no-such get|x get|"), none);
        assert_eq!(to_proxy.call_text("COMMAND LIST FILTERBY"), "-ERR COMMAND LIST FILTERBY is not supported\r\n");
    }
}

/// `COMMAND INFO` reports the key specifications that Redis reports.
#[test]
fn command_info_key_specifications_equal_redis() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    for version in ["2", "3"] {
        let [mut to_redis, mut to_proxy] = connect_both(&redis, &proxy, version);
        for name in ["get", "mget", "exists", "strlen", "getrange", "substr", "ttl", "pttl"] {
            let info = format!("COMMAND INFO {name}");
            let specifications = |reply: String| reply.split_once("$5\r\nflags\r\n").map(|(_, rest)| rest.to_owned());
            let found = specifications(to_proxy.call_text(&info));
            assert!(found.is_some() && found == specifications(to_redis.call_text(&info)), "{name}: {found:?}");
        }
    }
}

/// redis-cli shows the syntax of commands from `COMMAND DOCS`.
#[test]
fn redis_cli_help_shows_syntax() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    for (command, syntax) in [
        ("GET", "key"),
        ("MGET", "key [key ...]"),
        ("GETRANGE", "key start end"),
        ("PING", "[message]"),
        ("HELLO", "[protover [AUTH username password] [SETNAME clientname]]"),
        ("AUTH", "[username] password"),
        ("DBSIZE", ""),
        ("CLIENT NO-TOUCH", "ON|OFF"),
        ("CLIENT TRACKING", "ON|OFF [OPTIN] [NOLOOP]"),
        ("CLIENT SETINFO", "LIB-NAME libname|LIB-VER libver"),
        ("COMMAND DOCS", "[command-name [command-name ...]]"),
        ("CONFIG GET", "parameter [parameter ...]"),
    ] {
        let mut redis_cli = Command::new("redis-cli");
        redis_cli.args(["-p", &proxy.address.port().to_string(), "help"]);
        let output = redis_cli.args(command.to_lowercase().split(' ')).output().expect("redis-cli is installed");
        let text = String::from_utf8(output.stdout).expect("text");
        // The name is bold, the syntax grey.
        let line = format!("  \x1b[1m{command}\x1b[0m \x1b[90m{syntax}\x1b[0m\r\n");
        assert!(text.contains(&line) && output.stderr.is_empty(), "{command}: {text:?}");
    }
}

/// `redis-cli --stat` shows numbers from `INFO`.
#[test]
fn redis_cli_stat_shows_numbers() {
    let redis = Redis::start();
    redis.set("a", "1");
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
    RespClient::connect(proxy.address).call_text("GET a");
    wait_for("the other client is disconnected", || {
        let info = RespClient::connect(proxy.address).call_text("INFO clients");
        info.contains("\r\nconnected_clients:1\r\n").then_some(())
    });
    let mut redis_cli = Command::new("redis-cli");
    redis_cli.args(["-p", &proxy.address.port().to_string(), "--stat", "-i", "0.001"]);
    let mut child = redis_cli.stdout(Stdio::piped()).spawn().expect("redis-cli is installed");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    // redis-cli prints without end. The first lines may still count the previous client.
    let lines: Vec<String> = lines.take(40).map(|line| line.expect("text")).collect();
    child.kill().expect("redis-cli runs");
    child.wait().expect("a child can be waited for");
    assert!(lines.len() == 40 && lines[1].starts_with("keys       mem      clients blocked"), "{lines:#?}");
    for line in lines.iter().skip(2).filter(|line| !line.starts_with(['-', 'k'])) {
        // Columns: keys, memory, clients, blocked clients, requests, new requests, connections. The
        // child column is empty.
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [keys, memory, clients, blocked, requests, _, connections] = fields[..] else { panic!("{line}") };
        assert_eq!((keys, blocked), ("1", "0"), "{line}");
        assert!(["1", "2"].contains(&clients), "{line}");
        let mebibytes: f64 = memory.strip_suffix('M').and_then(|number| number.parse().ok()).expect("mebibytes");
        assert!(mebibytes > 1.0, "{line}");
        for count in [requests, connections] {
            assert!(count.parse::<u64>().expect("a count") > 2, "{line}");
        }
    }
}

/// `INFO` reports the memory that the kernel reports, also with `ADMIN=off`.
///
/// `ADMIN=off` only hides HTTP pages.
#[test]
fn info_memory_matches_kernel_without_admin() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("ADMIN", "off")]);
    let mut client = RespClient::connect(proxy.address);
    let info = client.call_text("INFO memory cpu");
    let field = |name: &str| {
        let line = info.split("\r\n").find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.expect("a field").parse::<f64>().expect("a number")
    };
    let (used, peak) = (field("used_memory") / 1024.0, field("used_memory_peak") / 1024.0);
    assert!((1024.0..=proxy.memory_kib("VmHWM") as f64).contains(&used), "{info}");
    assert!((used..=proxy.memory_kib("VmHWM") as f64).contains(&peak), "{info}");
    assert!(field("used_cpu_user") >= 0.0 && field("used_cpu_sys") >= 0.0, "{info}");
}
