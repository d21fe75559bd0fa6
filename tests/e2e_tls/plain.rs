//! Tests of plain connections to a port with TLS.

use crate::certificates::Certificates;
use crate::common::admin::run_healthcheck;
use crate::common::resp::RespClient;
use crate::common::{HttpClient, Redis, Response, wait_for};
use std::io::{Read, Write};
use std::net::TcpStream;

/// Plain requests are refused in their protocol, before any lookup, and the connection closes.
#[test]
fn plain_requests_are_refused() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    redis.set("a", "value");
    let proxy = certificates.start_proxy(redis.port, &[]);
    let reads = redis.count_reads();
    for path in ["/raw/a", "/key/a", "/", "/metrics", "/stats", "/healthz/", "/healthzz", "/raw/healthz"] {
        let mut client = proxy.connect();
        let response = client.get(path);
        assert_eq!(response.status, 400, "{path}");
        assert_eq!(response.header("connection"), "close");
        assert!(response.text().contains("this port requires TLS; use https://"), "{response:?}");
        assert!(client.reads_eof(), "{path}: the connection stays open");
    }
    let mut head = proxy.connect();
    head.send("HEAD /raw/a HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(head.read_response_to("HEAD").status, 400);
    assert!(head.reads_eof());
    for command in ["*2\r\n$3\r\nGET\r\n$1\r\na\r\n", "PING\r\n", "*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n"]
    {
        let mut stream = TcpStream::connect(proxy.address).expect("the proxy accepts connections");
        stream.write_all(command.as_bytes()).expect("the proxy reads");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("an error, and an end");
        assert!(reply.starts_with("-ERR TLS is required: connect with TLS (redis-cli --tls)"), "{reply}");
        assert_eq!(reply.lines().count(), 1, "{reply}");
    }
    // A request after a refused or an allowed one is not answered.
    let mut stream = TcpStream::connect(proxy.address).expect("the proxy accepts connections");
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all([request("/healthz"), request("/raw/a")].concat().as_bytes()).expect("the proxy reads");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("a response, and an end");
    assert!(reply.starts_with("HTTP/1.1 200 OK") && reply.matches("HTTP/1.1").count() == 1, "{reply}");
    assert_eq!(redis.count_reads(), reads, "a refused request reads from Redis");
}

/// The health endpoints are answered in plain text, so that probes and `healthcheck` work.
#[test]
fn health_is_plain() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    let proxy = certificates.start_proxy(redis.port, &[]);
    assert_eq!(proxy.get("/healthz").status, 200);
    wait_for("the proxy is ready", || (proxy.get("/readyz").status == 200).then_some(()));
    let port = proxy.address.port().to_string();
    let (code, text) = run_healthcheck(&[("PROXY_HOST", "127.0.0.1"), ("PROXY_PORT", &port)]);
    assert_eq!((code, text.contains("\"status\":\"ok\"")), (Some(0), true), "{text}");
}

/// With `TLS_REQUIRED=off` both kinds of clients are served on one port.
#[test]
fn plain_requests_are_served_if_allowed() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    redis.set("a", "value");
    let proxy = certificates.start_proxy(redis.port, &[("TLS_REQUIRED", "off")]);
    let Response { status, body, .. } = proxy.get("/raw/a");
    assert_eq!((status, body), (200, b"value".to_vec()));
    assert_eq!(RespClient::connect(proxy.address).call_text("GET a"), "$5\r\nvalue\r\n");
    assert_eq!(certificates.connect(proxy.address).get_text("/raw/a"), "value");
}

/// Without `TLS_CERT` a TLS handshake is a malformed request, as before.
#[test]
fn handshake_without_certificate_is_malformed() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    let proxy = crate::common::Proxy::start(&redis, &[]);
    let text = certificates.s_client(&proxy, "", &[]);
    assert!(text.contains("wrong version number") || text.contains("packet length too long"), "{text}");
    assert_eq!(proxy.get("/healthz").status, 200);
}

/// A TLS client above the connection limit gets an alert.
#[test]
fn excess_client_gets_alert() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    let proxy = certificates.start_proxy(redis.port, &[("MAX_CONNECTIONS", "1")]);
    let mut first = certificates.connect(proxy.address);
    assert_eq!(first.get("/healthz").map(|(head, _)| head.starts_with("HTTP/1.1 200")).ok(), Some(true));
    let error = certificates.connect(proxy.address).get("/healthz").expect_err("a second client is served");
    assert!(error.to_string().contains("InternalError"), "{error}");
    let text = proxy.get("/raw/a").text();
    assert!(text.contains("connection limit reached"), "{text}");
    assert_eq!(first.get("/healthz").map(|(head, _)| head.starts_with("HTTP/1.1 200")).ok(), Some(true));
}

/// Above a connection limit a required TLS still holds: a plain client gets health and nothing
/// else, on both ports.
#[test]
fn excess_plain_client_gets_only_health() {
    /// Clients that `ADMIN_PORT` serves at a time.
    const ADMIN_CLIENTS: usize = 64;
    let (certificates, redis) = (Certificates::make(), Redis::start());
    let ca = certificates.path("ca.pem");
    let limits = [("MAX_CONNECTIONS", "1"), ("CLIENT_IDLE_TIMEOUT", "1h"), ("CLIENT_TIMEOUT", "1h")];
    for (ports, clients) in [(&[][..], 1), (&[("ADMIN_PORT", "0")], ADMIN_CLIENTS)] {
        let proxy = certificates.start_proxy(redis.port, &[&limits[..], &[("TLS_CLIENT_CA", &ca)], ports].concat());
        let address = if ports.is_empty() { proxy.address } else { proxy.admin_address() };
        let _idle: Vec<HttpClient> = (0..clients).map(|_| HttpClient::connect(address)).collect();
        for path in ["/", "/stats", "/metrics", "/raw/a"] {
            let response = HttpClient::connect(address).get(path);
            assert_eq!(response.status, 503, "{path} {ports:?}: {}", response.text());
            assert!(response.text().contains("connection limit reached"), "{path} {ports:?}: {}", response.text());
        }
        assert_eq!(HttpClient::connect(address).get("/healthz").status, 200, "{ports:?}");
    }
}

/// Passwords in refused plain requests are not checked: wrong ones do not throttle TLS clients of
/// the same address.
#[test]
fn plain_passwords_are_not_checked() {
    /// More than the wrong passwords of an address that are checked at once, and in a second.
    const REQUESTS: usize = 100;
    let (certificates, redis) = (Certificates::make(), Redis::start());
    let proxy = certificates.start_proxy(redis.port, &[("CLIENT_PASSWORD", "word")]);
    let request = |path: &str, word: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {word}\r\nConnection: close\r\n\r\n")
    };
    for path in ["/raw/a", "/stats"] {
        for _ in 0..REQUESTS {
            let mut client = proxy.connect();
            client.send(request(path, "wrong"));
            assert_eq!(client.read_response().status, 400, "{path}");
        }
    }
    let mut client = certificates.connect(proxy.address);
    client.stream.write_all(request("/stats", "word").as_bytes()).expect("the proxy reads");
    let (head, _) = client.read_response().expect("a response");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let mut client = certificates.connect(proxy.address);
    client.stream.write_all(request("/stats", "wrong").as_bytes()).expect("the proxy reads");
    let (head, _) = client.read_response().expect("a response");
    assert!(head.starts_with("HTTP/1.1 401"), "{head}");
}
