//! Tests of clients that start with an inline command, on the port that also serves HTTP.

use crate::common::resp::{RespClient, encode_words};
use crate::common::{Proxy, Redis, wait_for};
use std::net::SocketAddr;

/// Lines with the same reply from Redis and the proxy. AUTH differs, as this Redis has no password.
const LINES: [&str; 10] = [
    "PING\n\nPING\r\n\r\nPING\r\n",
    "PING\r\n",
    "ping\n",
    "PING \"a b\"\r\n",
    "PING 'x' y\r\n",
    "SELECT 0\r\n",
    "SELECT zero\r\n",
    "CLIENT SETNAME name\r\nCLIENT GETNAME\r\n",
    "HELLO 4\r\n",
    "SELECT\r\n",
];

/// A connection that starts with an inline command then speaks RESP.
///
/// Covers the first commands of eredis, fred and health checks.
#[test]
fn inline_command_starts_resp_connection() {
    let redis = Redis::start();
    redis.set("a", "value");
    let proxy = Proxy::start(&redis, &[]);
    for start in ["AUTH word\r\n", "AUTH user word\r\nSELECT 0\r\n", "PING\r\nCLIENT SETNAME me\r\n"] {
        let mut client = RespClient::connect(proxy.address);
        let replies = client.call(start);
        assert!(replies.starts_with(b"+") && !replies.contains(&b'-'), "{start:?}: {}", replies.escape_ascii());
        assert_eq!(client.call_text("GET a"), "$5\r\nvalue\r\n", "{start:?}");
        assert_eq!(client.call("PING\r\n"), b"+PONG\r\n", "{start:?}");
    }
    let mut client = RespClient::connect(proxy.address);
    let hello = String::from_utf8(client.call("HELLO 3\r\n")).expect("text");
    assert!(hello.starts_with("%7\r\n") && hello.contains("$5\r\nproto\r\n:3\r\n"), "{hello}");
    assert_eq!(client.call_text("GET nothing"), "_\r\n");
    let mut client = RespClient::connect(proxy.address);
    client.send("QUIT\r\n");
    assert_eq!(client.read_to_close(), "+OK\r\n");
}

/// Inline commands get the replies of Redis, sent at once or byte by byte.
#[test]
fn inline_replies_equal_redis() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    let redis_address = SocketAddr::from(([127, 0, 0, 1], redis.port));
    for line in LINES {
        let expected = RespClient::connect(redis_address).call(line);
        let mut whole = RespClient::connect(proxy.address);
        assert_eq!(whole.call(line).escape_ascii().to_string(), expected.escape_ascii().to_string(), "{line:?}");
        let mut pieces = RespClient::connect(proxy.address);
        line.bytes().for_each(|byte| pieces.send([byte]));
        assert_eq!(pieces.read_replies().escape_ascii().to_string(), expected.escape_ascii().to_string(), "{line:?}");
    }
    for line in ["PING \"a\r\n", "PING \"a\"b\r\n"] {
        let [mut to_proxy, mut to_redis] = [RespClient::connect(proxy.address), RespClient::connect(redis_address)];
        to_proxy.send(line);
        to_redis.send(line);
        assert_eq!(to_proxy.read_to_close(), to_redis.read_to_close(), "{line:?}");
    }
}

/// A browser cannot execute inline commands.
///
/// A page of another origin controls method, path and body, but no bytes before the request line.
#[test]
fn browser_cannot_start_inline() {
    let redis = Redis::start();
    redis.set("a", "value");
    let proxy = Proxy::start(&redis, &[]);
    let commands = "AUTH x\r\nPING\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\nQUIT\r\n";
    let length = commands.len();
    let chunks = format!("{length:x}\r\n{commands}\r\n0\r\n\r\n");
    for method in ["POST", "PUT", "GET", "AUTH", "PING", "HELLO", "SELECT", "CLIENT", "QUIT"] {
        for path in ["/key/nothing", "/healthz", "/AUTH%20x"] {
            for body in [
                format!("Content-Length: {length}\r\n\r\n{commands}"),
                format!("Transfer-Encoding: chunked\r\n\r\n{chunks}"),
                format!("Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n{commands}"),
                format!("\r\n{commands}"),
            ] {
                let mut client = RespClient::connect(proxy.address);
                client.send(format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n{body}"));
                client.shutdown_write();
                let reply = client.read_to_close();
                assert!(reply.starts_with("HTTP/1.1 "), "{method} {path} {body:?}: {reply:?}");
                let is_reply = |line: &str| line.starts_with(['+', '$', '-', '*']);
                assert!(!reply.lines().any(is_reply), "{method} {path} {body:?}: {reply:?}");
            }
        }
    }
    assert_eq!(redis.count_reads(), 4, "only GET /key/nothing may be read");
}

/// Any other first line starts an HTTP connection, which keeps its protocol.
#[test]
fn other_first_lines_start_http() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    for (line, status) in [
        ("GET a\r\n\r\n", "400"),
        ("SET a b\r\n", "400"),
        ("PINGS\r\n", "400"),
        ("INFO\r\n\r\n", "400"),
        ("PING / HTTP/1.1\r\nHost: x\r\n\r\n", "501"),
        ("GET /raw/a HTTP/1.1\r\nHost: x\r\n\r\nPING\r\n", "404"),
    ] {
        let mut client = RespClient::connect(proxy.address);
        client.send(line);
        client.shutdown_write();
        let reply = client.read_to_close();
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")) && !reply.contains("+PONG"), "{line:?}: {reply}");
    }
    // An incomplete line times out with 408 like any slow request.
    let slow = Proxy::start(&redis, &[("CLIENT_TIMEOUT", "0.1")]);
    let mut client = RespClient::connect(slow.address);
    client.send("PING");
    assert!(client.read_to_close().starts_with("HTTP/1.1 408 "));
}

/// A client over `MAX_CONNECTIONS` that sends an inline command gets a RESP error.
#[test]
fn excess_client_is_refused_inline() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("MAX_CONNECTIONS", "1")]);
    let mut first = RespClient::connect(proxy.address);
    assert_eq!(first.call_text("PING"), "+PONG\r\n");
    wait_for("a second client is refused", || {
        let mut second = RespClient::connect(proxy.address);
        second.send("PING\r\n");
        (second.read_to_close() == "-ERR max number of clients reached\r\n").then_some(())
    });
    assert_eq!(first.call(encode_words("PING")), b"+PONG\r\n");
}
