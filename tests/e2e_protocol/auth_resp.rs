//! Authentication over the Redis protocol (`CLIENT_PASSWORD`), compared with Redis byte for byte.

use crate::common::resp::{RespClient, encode_command, encode_words};
use crate::common::{Proxy, Redis, connect_from};
use std::path::Path;
use std::process::Command;

const PASSWORD: &str = "word";

/// Starts a Redis with the password [`PASSWORD`], and a proxy that requires the same of clients.
fn start() -> (Redis, Proxy) {
    let redis = Redis::start_with(&["--requirepass", PASSWORD]);
    let mut connection = redis.connect_to(&format!("redis://:{PASSWORD}@127.0.0.1:{}/", redis.port));
    for key in ["a", "b"] {
        redis::cmd("SET").arg(key).arg(format!("value of {key}")).exec(&mut connection).expect("SET works");
    }
    let proxy = Proxy::start(&redis, &[("REDIS_PASSWORD", PASSWORD), ("CLIENT_PASSWORD", PASSWORD)]);
    (redis, proxy)
}

/// Sends bytes and `QUIT` to a server from 127.0.0.`host`. Returns all replies, up to the end of
/// the connection.
fn run(port: u16, host: u8, bytes: &[u8]) -> String {
    let mut client = RespClient::new(connect_from(([127, 0, 0, 1], port).into(), host));
    client.send(bytes);
    // After a protocol error the server has closed the connection.
    let _ = std::io::Write::write_all(&mut client.stream, &encode_words("QUIT"));
    client.read_to_close()
}

/// Replaces the reply to a successful `HELLO`, which names the server.
fn without_server(reply: &str) -> String {
    let Some(at) = reply.find("$6\r\nserver\r\n") else { return reply.to_owned() };
    let (_, rest) = reply.split_once("modules\r\n*0\r\n").expect("the last entry of HELLO");
    format!("{}HELLO\r\n{}", &reply[..at], without_server(rest))
}

/// Each form of authentication, and each command before it, gets the reply of Redis 7.0.
#[test]
fn auth_replies_match_redis() {
    let (redis, proxy) = start();
    let words = |commands: &[&str]| commands.iter().flat_map(|words| encode_words(words)).collect::<Vec<u8>>();
    let mut cases = [
        &["GET a"][..],
        &["GET"],
        &["PING"],
        &["PING a b"],
        &["ECHO a"],
        &["CLIENT ID"],
        &["CLIENT"],
        &["SELECT 0"],
        &["INFO"],
        &["DBSIZE"],
        &["TTL a"],
        &["MGET a b"],
        &["EXISTS a b", "GET a"],
        &["MGET a a a a a a a a a"],
        &["MGET a a a a a a a a a a"],
        &["AUTH"],
        &["AUTH no"],
        &["AUTH default no", "GET a"],
        &["AUTH a b c"],
        &["AUTH nobody word"],
        &["AUTH word", "GET a", "MGET a b"],
        &["auth default word", "GET a"],
        &["AUTH word", "AUTH no", "GET a"],
        &["AUTH word", "RESET", "GET a"],
        &["AUTH word", "RESET", "AUTH word", "GET a"],
        &["RESET"],
        &["QUIT", "GET a"],
        &["HELLO"],
        &["HELLO 2"],
        &["HELLO 3"],
        &["HELLO 9"],
        &["HELLO x"],
        &["HELLO 3 SETNAME n"],
        &["HELLO 3 SETNAME \u{7f}"],
        &["HELLO 3 AUTH default"],
        &["HELLO 3 AUTH default no", "GET missing"],
        &["HELLO 3 AUTH default no FOO"],
        &["HELLO 3 AUTH default word", "GET missing"],
        &["HELLO 2 AUTH default word SETNAME n", "CLIENT GETNAME"],
        &["HELLO 3 SETNAME n AUTH default word", "GET missing"],
        &["HELLO 3 AUTH default word FOO", "GET missing"],
        &["HELLO 3 AUTH default word AUTH default no", "GET missing"],
        &["AUTH word", "HELLO 3 AUTH default no", "GET missing"],
        &["AUTH word", "HELLO 3", "GET missing", "RESET", "GET a"],
    ]
    .map(words)
    .to_vec();
    let echo = |length: usize| encode_command(&["ECHO", &"x".repeat(length)]);
    let from = |text: &str| text.as_bytes().to_vec();
    cases.extend([
        echo(16 * 1024),
        echo(16 * 1024 + 1),
        [words(&["AUTH word"]), echo(16 * 1024 + 1)].concat(),
        encode_command(&["AUTH", &"x".repeat(16 * 1024)]),
        encode_command(&["AUTH", &"x".repeat(16 * 1024 + 1)]),
        encode_command(&["AUTH", ""]),
        encode_command(&["AUTH", "", PASSWORD]),
        from("*11\r\n"),
        from("*2\r\n$16385\r\n"),
        from("*3\r\n$4\r\nMGET\r\n$1\r\na\r\n$16385\r\n"),
        from("*2\r\n$4\r\nAUTH\r\n$-1\r\n"),
        from("*-1\r\n*1\r\n$4\r\nPING\r\n"),
        from("PING\r\n"),
        from("AUTH no\r\n"),
        from("AUTH word\r\nPING\r\n"),
        from("AUTH default word\r\nSELECT 0\r\n"),
        from("AUTH\r\n"),
        from("AUTH a b c\r\n"),
        from("SELECT\r\n"),
        from("CLIENT SETNAME x\r\n"),
        from("HELLO 3\r\n"),
        from("HELLO 3 AUTH default no\r\n"),
        from("HELLO 3 AUTH default word SETNAME x\r\nPING\r\n"),
        from("QUIT\r\n"),
    ]);
    // Wrong passwords count for the address, so each case has its own.
    for (host, case) in (1..).zip(&cases) {
        let expected = without_server(&run(redis.port, host, case));
        let found = without_server(&run(proxy.address.port(), host, case));
        let shown = case[..case.len().min(200)].escape_ascii();
        // INFO and DBSIZE are never answered here, and keys have equal values.
        assert_eq!(found, expected, "{shown}");
        assert!(run(proxy.address.port(), host, &encode_words("AUTH word")).starts_with("+OK"), "after {shown}");
    }
}

/// Commands before authentication read no key: not from the cache, not from Redis, however they
/// are split.
#[test]
fn commands_before_auth_read_nothing() {
    let (_redis, proxy) = start();
    let mut reader = RespClient::connect(proxy.address);
    assert_eq!(reader.call_text("AUTH word"), "+OK\r\n");
    assert_eq!(reader.call_text("GET a"), "$10\r\nvalue of a\r\n");
    let misses = |reader: &mut RespClient| {
        let info = reader.call_text("INFO stats");
        info.lines().find_map(|line| line.strip_prefix("keyspace_misses:").map(str::to_owned)).expect("a figure")
    };
    let before = misses(&mut reader);
    let all: Vec<u8> = ["GET a", "MGET a b", "EXISTS a b", "STRLEN a", "GETRANGE a 0 -1", "TTL a", "INFO", "COMMAND"]
        .iter()
        .flat_map(|words| encode_words(words))
        .collect();
    let no_auth = "-NOAUTH Authentication required.\r\n".repeat(8) + "+OK\r\n";
    for piece in [1, 2, 7, 64, all.len()] {
        let mut client = RespClient::connect(proxy.address);
        all.chunks(piece).for_each(|bytes| client.send(bytes));
        client.send(encode_words("QUIT"));
        assert_eq!(client.read_to_close(), no_auth, "in pieces of {piece} bytes");
    }
    // A password in the middle of a pipeline counts for what follows.
    let mut client = RespClient::connect(proxy.address);
    client.send([encode_words("MGET a b"), encode_words("AUTH word"), encode_words("MGET a")].concat());
    let expected = "-NOAUTH Authentication required.\r\n+OK\r\n*1\r\n$10\r\nvalue of a\r\n";
    assert_eq!(String::from_utf8_lossy(&client.read_replies()), expected);
    assert_eq!(misses(&mut reader), before, "b was looked up");
}

/// One connection has one protocol: neither carries a password into the other.
#[test]
fn protocols_share_no_authentication() {
    let (_redis, proxy) = start();
    let mut client = RespClient::connect(proxy.address);
    client.send([encode_words("AUTH word"), b"GET /raw/a HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()].concat());
    assert_eq!(client.read_to_close(), "+OK\r\n-ERR Protocol error: expected '*', got 'G'\r\n");
    let mut client = RespClient::connect(proxy.address);
    let request = b"GET /raw/a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer word\r\n\r\n".to_vec();
    client.send([request, encode_words("GET a")].concat());
    let text = client.read_to_close();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("HTTP/1.1 400 Bad Request\r\n"), "{text}");
    assert_eq!(text.matches("value of a").count(), 1, "{text}");
}

/// Without CLIENT_PASSWORD any password is right, and none is needed.
#[test]
fn auth_without_password_accepts_anything() {
    let redis = Redis::start();
    redis.set("a", "1");
    let proxy = Proxy::start(&redis, &[("CLIENT_PASSWORD", "")]);
    for case in ["AUTH x", "AUTH x y", "HELLO 2 AUTH x y", "PING"] {
        let mut client = RespClient::connect(proxy.address);
        assert!(!client.call_text(case).starts_with('-'), "{case}");
        assert_eq!(client.call_text("GET a"), "$1\r\n1\r\n", "{case}");
    }
}

/// redis-cli authenticates by its options, its variable and its URL.
#[test]
fn redis_cli_authenticates() {
    let (redis, _) = start();
    let variables = [("REDIS_PASSWORD", PASSWORD), ("CLIENT_PASSWORD", "word\nold:colons:in:it\n\ndefault:pass:word")];
    let proxy = Proxy::start(&redis, &variables);
    let port = proxy.address.port().to_string();
    let url = format!("redis://old:colons%3Ain%3Ait@127.0.0.1:{port}/0");
    for (arguments, variable, expected) in [
        (&["-p", &port, "-a", "word"][..], "", "value of a\n"),
        (&["-p", &port, "-a", "pass:word"], "", "value of a\n"),
        (&["-p", &port], "word", "value of a\n"),
        (&["-p", &port, "-3", "--user", "old", "--pass", "colons:in:it"], "", "value of a\n"),
        (&["-u", &url], "", "value of a\n"),
        (&["-p", &port], "", "NOAUTH Authentication required."),
        (&["-p", &port, "-a", "wrong"], "", "NOAUTH Authentication required."),
        (&["-p", &port, "--user", "old", "--pass", "word"], "", "NOAUTH Authentication required."),
    ] {
        let mut command = Command::new("redis-cli");
        command.args(["--no-auth-warning"]).args(arguments).args(["GET", "a"]).env_remove("REDISCLI_AUTH");
        if !variable.is_empty() {
            command.env("REDISCLI_AUTH", variable);
        }
        let output = command.output().expect("redis-cli is installed");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.starts_with(expected), "{arguments:?} {variable}: {text}");
    }
}

/// The `redis` crate authenticates in both versions of the protocol.
#[test]
fn redis_crate_authenticates() {
    let (_redis, proxy) = start();
    for version in ["resp2", "resp3"] {
        let get = |credentials: &str| -> redis::RedisResult<String> {
            let url = format!("redis://{credentials}{}/0?protocol={version}", proxy.address);
            redis::cmd("GET").arg("a").query(&mut redis::Client::open(url)?.get_connection()?)
        };
        assert_eq!(get(":word@").expect("the right password"), "value of a", "{version}");
        assert_eq!(get("default:word@").expect("the right user"), "value of a", "{version}");
        assert!(get(":wrong@").is_err() && get("").is_err() && get("someone:word@").is_err(), "{version}");
    }
}

/// redis-py authenticates in both versions of the protocol, and recognises the errors.
#[test]
fn redis_py_authenticates() {
    const SCRIPT: &str = "
import redis, sys
def get(**options):
    client = redis.Redis(port=int(sys.argv[1]), protocol=int(sys.argv[2]), **options)
    return client.get('a')
assert get(password='word') == b'value of a'
assert get(username='default', password='word') == b'value of a'
for options in [{}, {'password': 'wrong'}, {'username': 'someone', 'password': 'word'}]:
    try:
        get(**options)
    except redis.exceptions.AuthenticationError:
        continue
    raise AssertionError(f'{options} was accepted')
print('ok')
";
    let python = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("python").join("bin/python");
    assert!(python.exists(), "redis-py is missing: scripts/test.sh installs it into Cargo's target directory");
    let (_redis, proxy) = start();
    for version in ["2", "3"] {
        let port = proxy.address.port().to_string();
        let output = Command::new(&python).args(["-c", SCRIPT, &port, version]).output().expect("python starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "RESP{version}: {error}");
    }
}
