//! Tests of RESP with redis-cli, redis-benchmark and raw sockets.
//!
//! Replies that imitate Redis must equal those of a real Redis byte for byte.

use crate::common::resp::{RespClient, encode_command, encode_words};
use crate::common::{Proxy, Redis, wait_for};
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

fn address_of(redis: &Redis) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], redis.port))
}

/// Starts a Redis with values of several kinds.
fn start_filled_redis() -> Redis {
    let redis = Redis::start();
    redis.set("a", "1");
    redis.set("text", "hello, world");
    redis.set("empty", "");
    redis.set(b"\0\xff\r\n", b"\r\n\0\xfe");
    redis.set("long", "0123456789".repeat(10_000));
    redis.run(&["RPUSH", "list", "x"]);
    redis
}

fn redis_cli(port: u16, arguments: &[&str]) -> String {
    let output = Command::new("redis-cli").args(["-p", &port.to_string()]).args(arguments).output();
    let output = output.expect("redis-cli is installed");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
}

/// redis-cli and HTTP clients share one cache.
#[test]
fn redis_cli_and_http_share_cache() {
    let redis = start_filled_redis();
    let proxy = Proxy::start(&redis, &[]);
    let port = proxy.address.port();
    assert_eq!(redis_cli(port, &["GET", "a"]), "1");
    assert_eq!(proxy.get("/key/a").text(), r#"{"value":1,"fromCache":true}"#);
    assert_eq!(proxy.get("/raw/text").text(), "hello, world");
    assert_eq!(redis_cli(port, &["-3", "GET", "text"]), "hello, world");
    assert_eq!(redis_cli(port, &["-3", "MGET", "a", "nothing", "text"]), "1\n\nhello, world");
    assert_eq!(redis_cli(port, &["-n", "0", "PING"]), "PONG");
    assert_eq!(redis.count_reads(), 3, "a key was read twice");
    let refused = redis_cli(port, &["SET", "a", "2"]);
    assert!(refused.starts_with("ERR unknown command 'SET': this proxy is read-only"), "{refused}");
    let refused_multi = redis_cli(port, &["MULTI"]);
    assert!(refused_multi.contains("transactions are not supported; use a pipeline"), "{refused_multi}");
    assert!(redis_cli(port, &["COMMAND", "DOCS", "GET"]).contains("Returns the value of a key."));
}

/// All missing keys of one MGET are read in one round trip.
#[test]
fn mget_misses_use_one_round_trip() {
    let redis = start_filled_redis();
    let proxy = Proxy::start(&redis, &[]);
    let mut client = RespClient::connect(proxy.address);
    client.call_text("GET a");
    // Number of socket reads by Redis. Querying it adds a few reads itself.
    let reads = || {
        let info: String = redis::cmd("INFO").arg("stats").query(&mut redis.connect()).expect("INFO works");
        let line = info.lines().find_map(|line| line.strip_prefix("total_reads_processed:"));
        line.and_then(|reads| reads.parse::<u64>().ok()).expect("a number of reads")
    };
    let (first, second) = (reads(), reads());
    let keys: Vec<String> = (0..100).map(|number| format!("key{number}")).collect();
    let words: Vec<&str> = ["MGET", "a"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    assert_eq!(
        client.call(encode_command(&words)),
        format!("*101\r\n$1\r\n1\r\n{}", "$-1\r\n".repeat(100)).into_bytes()
    );
    let round_trips = reads() - second - (second - first);
    assert!((1..=3).contains(&round_trips), "{round_trips} round trips for 100 keys");
    assert_eq!(redis.count_reads(), 101);
}

/// `redis-cli --pipe` works, which sends an empty line before its final command.
#[test]
fn redis_cli_pipe_works() {
    let redis = start_filled_redis();
    let proxy = Proxy::start(&redis, &[]);
    let mut pipe = Command::new("redis-cli");
    pipe.args(["-p", &proxy.address.port().to_string(), "--pipe"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = pipe.spawn().expect("redis-cli is installed");
    let commands = encode_words("GET a").repeat(1000);
    child.stdin.take().expect("a pipe").write_all(&commands).expect("redis-cli reads");
    let output = child.wait_with_output().expect("redis-cli exits");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("errors: 0, replies: 1000"), "{text}");
}

/// redis-benchmark runs without errors and warnings.
#[test]
fn redis_benchmark_runs_clean() {
    let redis = start_filled_redis();
    redis.set("key:__rand_int__", "xxx");
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
    let port = proxy.address.port().to_string();
    for arguments in [&["-P", "1"][..], &["-P", "16"], &["-P", "16", "-3"], &["-P", "16", "-r", "1000"]] {
        let mut benchmark = Command::new("redis-benchmark");
        benchmark.args(["-p", &port, "-t", "get", "-n", "20000", "--csv"]).args(arguments);
        let output = benchmark.output().expect("redis-benchmark is installed");
        let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && errors.is_empty(), "{arguments:?}: {text} {errors}");
        assert!(text.contains("\n\"GET\",") && !text.contains("WARNING"), "{arguments:?}: {text}");
    }
}

/// Commands with the exact replies of Redis, in RESP2 and RESP3.
const IDENTICAL_COMMANDS: &[&str] = &[
    "GET a",
    "get text",
    "GeT nothing",
    "GET empty",
    "GET long",
    "GET list",
    "GET",
    "GET a b",
    "MGET a nothing text a list empty long nothing",
    "MGET list",
    "mget",
    "EXISTS a",
    "EXISTS a a nothing list long",
    "EXISTS",
    "STRLEN text",
    "STRLEN nothing",
    "STRLEN empty",
    "STRLEN long",
    "STRLEN list",
    "GETRANGE text 0 4",
    "GETRANGE text -5 -1",
    "GETRANGE text -100 -100",
    "GETRANGE text 0 -100",
    "GETRANGE text -1 -5",
    "GETRANGE text -100 -200",
    "GETRANGE text 5 2",
    "GETRANGE text 3 100",
    "GETRANGE text 12 12",
    "GETRANGE text 11 11",
    "GETRANGE text 0 9223372036854775807",
    "GETRANGE text -9223372036854775808 -9223372036854775808",
    "GETRANGE text -9223372036854775808 9223372036854775807",
    "GETRANGE text 9223372036854775807 9223372036854775807",
    "GETRANGE text 9223372036854775808 1",
    "GETRANGE text a 1",
    "GETRANGE text 1 01",
    "GETRANGE text +1 2",
    "GETRANGE text -0 2",
    "GETRANGE empty 0 -1",
    "GETRANGE nothing 0 -1",
    "GETRANGE list 0 -1",
    "GETRANGE long 99990 -1",
    "GETRANGE long 49999 50001",
    "SUBSTR long -20000 -10001",
    "SUBSTR text 1 3",
    "GETRANGE text 1",
    "PING",
    "PING text",
    "PING a b",
    "ECHO text",
    "ECHO",
    "SELECT 0",
    "SELECT x",
    "SELECT",
    "AUTH default whatever",
    "AUTH a b c",
    "HELLO 1",
    "HELLO 4",
    "HELLO x",
    "HELLO 9999999999999999999",
    "HELLO 3 AUTH",
    "HELLO 3 AUTH default",
    "HELLO 3 SETNAME",
    "HELLO 3 NONSENSE",
    "CLIENT GETNAME",
    "CLIENT SETNAME me",
    "CLIENT GETNAME",
    "CLIENT NO-EVICT ON",
    "CLIENT NO-EVICT off",
    "CLIENT NO-EVICT maybe",
    "CLIENT SETNAME",
    "CLIENT ID x",
    "CLIENT",
    "CONFIG GET no-such-setting",
    "CONFIG GET appendonly",
    "CONFIG GET save SAVE no-such-setting",
    "COMMAND INFO no-such-command",
    "COMMAND COUNT x",
    "RESET",
    "CLIENT GETNAME",
    "QUIT",
];

/// Supported commands get the exact replies of Redis, in RESP2 and RESP3.
#[test]
fn replies_equal_redis_byte_for_byte() {
    let redis = start_filled_redis();
    let proxy = Proxy::start(&redis, &[]);
    for version in ["2", "3"] {
        let (mut to_redis, mut to_proxy) =
            (RespClient::connect(address_of(&redis)), RespClient::connect(proxy.address));
        for client in [&mut to_redis, &mut to_proxy] {
            client.call_text(&format!("HELLO {version}"));
        }
        for command in IDENTICAL_COMMANDS {
            // The first call reads from Redis, the second from the cache. RESET resets the
            // connection.
            for _ in 0..2 {
                if *command == "QUIT" {
                    continue;
                }
                let (expected, found) = (to_redis.call_text(command), to_proxy.call_text(command));
                assert_eq!(found, expected, "{command} in version {version}");
            }
            if *command == "RESET" {
                for client in [&mut to_redis, &mut to_proxy] {
                    client.call_text(&format!("HELLO {version}"));
                }
            }
        }
        for client in [&mut to_redis, &mut to_proxy] {
            client.send(encode_words("QUIT"));
            assert_eq!(client.read_to_close(), "+OK\r\n");
        }
    }
}

/// Keys and values may contain any byte, and a key may have 65,536 bytes.
#[test]
fn keys_and_values_are_binary_safe() {
    let redis = start_filled_redis();
    let proxy = Proxy::start(&redis, &[]);
    let mut client = RespClient::connect(proxy.address);
    let key: &[u8] = b"\0\xff\r\n";
    for _ in 0..2 {
        assert_eq!(client.call(encode_command(&[b"GET", key])), b"$4\r\n\r\n\0\xfe\r\n");
        assert_eq!(
            client.call(encode_command(&[b"MGET", key, b"a", key])),
            b"*3\r\n$4\r\n\r\n\0\xfe\r\n$1\r\n1\r\n$4\r\n\r\n\0\xfe\r\n"
        );
    }
    let long = vec![0xfe; 64 * 1024];
    redis.set(&long[..], "of a long key");
    assert_eq!(client.call(encode_command(&[b"GET", &long[..]])), b"$13\r\nof a long key\r\n");
    let longer = client.call(encode_command(&[b"GET", &[&long[..], b"x"].concat()[..]]));
    assert!(longer.starts_with(b"-ERR argument too long; the limit is 65536 bytes\r\n"));
    assert_eq!(client.call_text("PING"), "+PONG\r\n", "the connection stays usable");
}

/// Returns a pipeline of hits, misses, errors and connection commands.
fn mixed_pipeline() -> Vec<u8> {
    let mut bytes = Vec::new();
    for command in [
        "GET a",
        "GET nothing",
        "MGET text a nothing a",
        "EXISTS a list a",
        "SET a 1",
        "GETRANGE text 0 3",
        "PING",
        "HELLO 2",
        "GET",
        "GET list",
        "CLIENT SETNAME me",
        "CLIENT GETNAME",
        "STRLEN text",
        "NOTHING AT ALL",
        "SELECT 7",
    ] {
        bytes.extend(encode_words(command));
    }
    bytes.extend_from_slice(b"*0\r\n*-1\r\n");
    bytes.extend(encode_words("ECHO x"));
    bytes
}

/// Replies do not depend on the boundaries between received segments.
#[test]
fn segment_boundaries_do_not_change_replies() {
    let redis = start_filled_redis();
    let proxy = Proxy::start(&redis, &[]);
    let bytes = mixed_pipeline();
    // HELLO reports the connection id, which differs.
    let without_id = |reply: Vec<u8>| {
        let text = String::from_utf8_lossy(&reply).into_owned();
        let (before, rest) = text.split_once("$2\r\nid\r\n:").expect("an id");
        format!("{before}{}", rest.split_once("\r\n").expect("the end of the id").1)
    };
    let expected = without_id(RespClient::connect(proxy.address).call(&bytes));
    assert!(expected.ends_with("$1\r\nx\r\n") && expected.contains("this proxy is read-only"), "{expected}");
    for cut in 1..bytes.len() {
        let mut client = RespClient::connect(proxy.address);
        client.send(&bytes[..cut]);
        // Makes it less likely that the proxy reads both pieces at once.
        std::thread::yield_now();
        assert_eq!(without_id(client.call(&bytes[cut..])), expected, "cut at {cut}");
    }
    let mut client = RespClient::connect(proxy.address);
    bytes.iter().for_each(|byte| client.send([*byte]));
    assert_eq!(without_id(client.read_replies()), expected, "byte by byte");
}

/// Malformed RESP gets a protocol error, and the connection is closed.
#[test]
fn malformed_resp_is_refused_and_closed() {
    let redis = start_filled_redis();
    let proxy = Proxy::start(&redis, &[]);
    let ping = encode_words("PING");
    // Commands before the malformed bytes are answered. The third field is true if Redis sends the
    // same error.
    let cases: [(&[u8], &str, bool); 16] = [
        (b"*3000000000\r\n", "invalid multibulk length", true),
        (b"*1048577\r\n", "invalid multibulk length", false),
        (b"*x\r\n", "invalid multibulk length", true),
        (b"*+1\r\n", "invalid multibulk length", true),
        (b"*01\r\n", "invalid multibulk length", true),
        (b"*1\n$4\nPING\n", "invalid multibulk length", false),
        (b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\nfooz\r\n", "expected '$', got 'f'", true),
        (b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$-10\r\n", "invalid bulk length", true),
        (b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$2000000000\r\n", "invalid bulk length", true),
        (b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$blabla\r\n", "invalid bulk length", true),
        (b"*3\r\n$3\r\nGET\r\n$536870913\r\n", "invalid bulk length", true),
        (b"*1\r\nfoo\r\n", "expected '$', got 'f'", true),
        (b"*2\r\n$3\r\nGET\r\n*1\r\n$1\r\na\r\n", "expected '$', got '*'", true),
        (b"*2\r\n$4\r\nMGET\r\n:1\r\n", "expected '$', got ':'", true),
        (b"*2\r\n$3\r\nGET\r\n$1\r\nab\r\n*1\r\n$4\r\nPING\r\n", "expected CR and LF after a bulk string", false),
        (b"GET a\r\n", "expected '*', got 'G'", false),
    ];
    for (bytes, text, is_of_redis) in cases {
        let sent = [&ping, bytes].concat();
        let mut client = RespClient::connect(proxy.address);
        client.send(&sent);
        assert_eq!(client.read_to_close(), format!("+PONG\r\n-ERR Protocol error: {text}\r\n"));
        if is_of_redis {
            let mut client = RespClient::connect(address_of(&redis));
            client.send(&sent);
            assert_eq!(client.read_to_close(), format!("+PONG\r\n-ERR Protocol error: {text}\r\n"), "reply of Redis");
        }
    }
    // Floods without a line end, as in the tests of Redis.
    for start in [&b"*"[..], b"*1\r\n$", b"*\0", b"*1\r\n$4\r\nPING"] {
        let mut client = RespClient::connect(proxy.address);
        client.send([start, &[b'0'; 70_000]].concat());
        let text = client.read_to_close();
        assert!(text.starts_with("-ERR Protocol error: ") && text.ends_with("\r\n"), "{text:?}");
    }
    // Not RESP from the first byte: the connection is HTTP and gets an HTTP error.
    for bytes in [&b"GET a\r\n\r\n"[..], b"$4\r\nPING\r\n\r\n", b"\0*1\r\n"] {
        let mut client = RespClient::connect(proxy.address);
        client.send(bytes);
        assert!(client.read_to_close().starts_with("HTTP/1.1 400 "));
    }
    assert_eq!(proxy.get("/key/a").status, 200);
}

/// TTL, DBSIZE, CLIENT ID and INFO report the state of the proxy.
#[test]
fn state_commands_report_proxy() {
    let redis = start_filled_redis();
    let proxy = Proxy::start(&redis, &[("REDIS_DB", "0"), ("CACHE_SIZE", "2")]);
    let mut client = RespClient::connect(proxy.address);
    let ttl = |reply: &str| reply[1..].trim_end().parse::<i64>().expect("a number");
    assert_eq!(client.call_text("TTL a"), ":-2\r\n");
    assert_eq!(redis.count_reads(), 0, "TTL reads from Redis");
    client.call_text("MGET a text");
    assert!((14..=15).contains(&ttl(&client.call_text("TTL a"))));
    assert!((10_000..=15_000).contains(&ttl(&client.call_text("PTTL text"))));
    assert_eq!(client.call_text("DBSIZE"), ":2\r\n");
    client.call_text("GET empty");
    client.call_text("GET empty");
    client.call_text("GET nothing");
    let mut second = RespClient::connect(proxy.address);
    let id = |client: &mut RespClient| ttl(&client.call_text("CLIENT ID"));
    assert!(id(&mut second) > id(&mut client) && id(&mut client) > 0);
    assert_eq!(proxy.get("/key/nothing").status, 404);
    // The event loop must notice that the HTTP client has disconnected.
    let info = wait_for("two clients are connected", || {
        Some(second.call_text("INFO")).filter(|info| info.contains("\r\nconnected_clients:2\r\n"))
    });
    for line in [
        "server_name:segment-redis-proxy",
        &format!("process_id:{}", proxy.pid()),
        &format!("tcp_port:{}", proxy.address.port()),
        "total_connections_received:3",
        "keyspace_hits:1",
        "keyspace_misses:5",
        "evicted_keys:1",
        "role:master",
        "db0:keys=2,expires=2",
    ] {
        assert!(info.contains(&format!("\r\n{line}\r\n")), "no {line} in {info}");
    }
    let stats = second.call_text("INFO STATS nonsense");
    assert!(stats.contains("# Stats\r\n") && !stats.contains("# Server") && !stats.contains("# Keyspace"), "{stats}");
    assert_eq!(second.call_text("INFO nonsense"), "$0\r\n\r\n");
    assert!(second.call_text("HELLO 3").starts_with("%7\r\n$6\r\nserver\r\n$19\r\nsegment-redis-proxy\r\n"));
    assert!(
        second.call_text("INFO clients").starts_with("=93\r\ntxt:# Clients\r\n"),
        "{}",
        second.call_text("INFO clients")
    );
}

/// AUTH always succeeds: the proxy does not authenticate clients.
///
/// Clients often send the password or a user of the Redis behind the proxy.
#[test]
fn auth_always_succeeds() {
    let redis = start_filled_redis();
    let proxy = Proxy::start(&redis, &[]);
    let mut client = RespClient::connect(proxy.address);
    assert_eq!(client.call_text("AUTH secret"), "+OK\r\n");
    assert_eq!(client.call_text("AUTH somebody secret"), "+OK\r\n");
    assert!(client.call_text("HELLO 3 AUTH somebody x SETNAME me").starts_with("%7\r\n"));
    assert_eq!(client.call_text("CLIENT GETNAME"), "$2\r\nme\r\n");
    let long_name = "x".repeat(257);
    assert!(
        client
            .call_text(&format!("HELLO 2 SETNAME {long_name}"))
            .starts_with("-ERR Client name too long; the limit is 256")
    );
    assert_eq!(client.call_text("GET nothing"), "_\r\n", "the RESP version changed");
    assert_eq!(client.call_text(&format!("CLIENT SETNAME {}", &long_name[1..])), "+OK\r\n");
}

/// SELECT of another database gets an error that names `REDIS_DB`.
#[test]
fn select_of_other_database_fails() {
    let redis = start_filled_redis();
    redis.connect_to(&format!("redis://127.0.0.1:{}/2", redis.port));
    let proxy = Proxy::start(&redis, &[("REDIS_DB", "2")]);
    let mut client = RespClient::connect(proxy.address);
    assert_eq!(client.call_text("SELECT 2"), "+OK\r\n");
    assert!(client.call_text("SELECT 0").starts_with("-ERR this proxy serves only database 2; set its REDIS_DB"));
    assert_eq!(client.call_text("GET a"), "$-1\r\n");
}

/// With CLIENT NO-TOUCH a read does not protect the key from eviction.
#[test]
fn no_touch_reads_keep_eviction_order() {
    let redis = start_filled_redis();
    let proxy = Proxy::start(&redis, &[("CACHE_SIZE", "2")]);
    let mut client = RespClient::connect(proxy.address);
    for (switch, survivor) in [("ON", "text"), ("OFF", "a")] {
        client.call_text("CLIENT NO-TOUCH off");
        client.call_text("GET a");
        client.call_text("GET text");
        assert_eq!(client.call_text(&format!("CLIENT NO-TOUCH {switch}")), "+OK\r\n");
        client.call_text("GET a");
        client.call_text("GET empty");
        assert!(client.call_text(&format!("TTL {survivor}")) != ":-2\r\n", "NO-TOUCH {switch}");
    }
}

/// Errors of Redis reach the client with their error code.
#[test]
fn redis_errors_keep_their_code() {
    let redis = start_filled_redis();
    redis.run(&["ACL", "SETUSER", "limited", "on", ">secret", "~a*", "+@all"]);
    let proxy = Proxy::start(&redis, &[("REDIS_USERNAME", "limited"), ("REDIS_PASSWORD", "secret")]);
    let mut client = RespClient::connect(proxy.address);
    assert_eq!(client.call_text("GET a"), "$1\r\n1\r\n");
    assert!(client.call_text("GET text").starts_with("-NOPERM "), "{}", client.call_text("GET text"));
    assert!(client.call_text("MGET a text a").starts_with("-NOPERM "));
    assert!(client.call_text("EXISTS text").starts_with("-NOPERM "));
    assert_eq!(client.call_text("GET a"), "$1\r\n1\r\n");
}

/// While Redis is unreachable, uncached keys get `-LOADING`, which clients retry.
#[test]
fn unreachable_redis_yields_loading_error() {
    let mut redis = start_filled_redis();
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "300")]);
    let mut client = RespClient::connect(proxy.address);
    assert_eq!(client.call_text("GET a"), "$1\r\n1\r\n");
    redis.freeze();
    for command in ["GET text", "MGET a text", "EXISTS text a", "STRLEN text", "GETRANGE text 0 1"] {
        let reply = client.call_text(command);
        assert!(reply.starts_with("-LOADING Redis did not reply within REDIS_TIMEOUT"), "{command}: {reply}");
    }
    assert_eq!(client.call_text("MGET a a"), "*2\r\n$1\r\n1\r\n$1\r\n1\r\n");
    redis.thaw();
    wait_for("the proxy reads from Redis again", || (client.call_text("STRLEN text") == ":12\r\n").then_some(()));
    redis.kill();
    let reply = client.call_text("MGET a empty");
    assert!(reply.starts_with("-LOADING Redis is unreachable"), "{reply}");
    assert_eq!(client.call_text("PING"), "+PONG\r\n");
}

/// EXISTS counts a value longer than `MAX_VALUE_BYTES`, and reads of it fail.
#[test]
fn oversized_value_exists_but_is_unreadable() {
    let redis = start_filled_redis();
    let proxy = Proxy::start(&redis, &[("MAX_VALUE_BYTES", "1000")]);
    let mut client = RespClient::connect(proxy.address);
    assert_eq!(client.call_text("EXISTS long a nothing"), ":2\r\n");
    for command in ["GET long", "STRLEN long", "GETRANGE long 0 1", "MGET a long"] {
        let reply = client.call_text(command);
        assert!(reply.starts_with("-ERR the value is longer than MAX_VALUE_BYTES of the proxy"), "{command}: {reply}");
    }
}

/// If Redis rejects the proxy, clients get `-ERR` instead of `-NOAUTH`, as they cannot help it.
#[test]
fn rejected_proxy_reports_plain_error() {
    let redis = Redis::start_with(&["--requirepass", "secret"]);
    let proxy = Proxy::start(&redis, &[]);
    let reply = RespClient::connect(proxy.address).call_text("GET a");
    assert!(reply.starts_with("-ERR Redis rejected the proxy's connection") && reply.contains("NOAUTH"), "{reply}");
    let wrong_password = Proxy::start(&redis, &[("REDIS_PASSWORD", "wrong")]);
    let reply = RespClient::connect(wrong_password.address).call_text("GET a");
    assert!(reply.starts_with("-ERR Redis rejected the proxy's connection") && reply.contains("WRONGPASS"), "{reply}");
}
