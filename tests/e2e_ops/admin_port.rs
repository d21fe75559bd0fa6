//! Tests of `ADMIN_PORT`: each listener serves its own paths, and monitors are served when the
//! connection limit is reached.

use crate::common::admin::{run_healthcheck, wait_until_ready};
use crate::common::resp::{RespClient, encode_words};
use crate::common::unix::{SocketDirectory, UnixClient};
use crate::common::{HttpClient, Proxy, Redis, wait_for};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;

/// Connections to `ADMIN_PORT` beyond `MAX_CONNECTIONS`.
const MAX_ADMIN_CONNECTIONS: usize = 64;

/// The admin port serves the page, metrics and health. The other listeners serve keys and health.
#[test]
fn each_listener_serves_its_paths() {
    let (redis, directory) = (Redis::start(), SocketDirectory::new("matrix"));
    redis.set("a", "1");
    let path = directory.path_of("proxy.sock");
    let variables = [("ADMIN_PORT", "0"), ("ADMIN_HOST", "127.0.0.2"), ("WORKERS", "2"), ("PROXY_SOCKET", &path)];
    let proxy = Proxy::start(&redis, &variables);
    let admin = proxy.admin_address();
    assert_eq!(admin.ip(), Ipv4Addr::new(127, 0, 0, 2));
    for (target, of_main, of_admin) in [
        ("/", 404, 200),
        ("/metrics", 404, 200),
        ("/stats", 404, 200),
        ("/healthz", 200, 200),
        ("/readyz", 200, 200),
        ("/key/a", 200, 404),
        ("/raw/a", 200, 404),
        ("/raw/%61", 200, 404),
        ("/nothing", 404, 404),
    ] {
        // Each worker listens at the port.
        for _ in 0..8 {
            assert_eq!(proxy.get(target).status, of_main, "{target}");
            assert_eq!(HttpClient::connect(admin).get(target).status, of_admin, "{target}");
            assert_eq!(UnixClient::connect(&path).get(target).0, of_main, "{target}");
        }
    }
    // A kept connection stays with its listener, also if the fields of a request are known already.
    let mut client = HttpClient::connect(admin);
    for _ in 0..3 {
        assert_eq!(client.get("/metrics").status, 200);
        let refused = client.get("/raw/a");
        assert_eq!(refused.status, 404);
        assert!(refused.text().contains("PROXY_PORT"), "{}", refused.text());
    }
    for method in ["HEAD", "OPTIONS", "POST"] {
        client.send(format!("{method} /key/a HTTP/1.1\r\nHost: test\r\n\r\n"));
        assert_eq!(client.read_response_to(method).status, 404, "{method}");
    }
    let mut main = RespClient::connect(proxy.address);
    let info = main.call_text("INFO server");
    assert!(info.contains(&format!("\r\ntcp_port:{}\r\n", proxy.address.port())), "{info}");
}

/// The log and `check` warn about each port that other machines may reach, and say what it serves.
#[test]
fn exposed_ports_are_reported() {
    let redis = Redis::start();
    let port = redis.port.to_string();
    let (main, admin) = ("can read all keys; ", "can read metrics and the configuration, but no keys; ");
    let plain = "passwords and metrics travel in plain text: each machine on the way to 0.0.0.0:";
    for (variables, expected) in [
        (&[("ADMIN_PORT", "0")][..], &[][..]),
        (&[("ADMIN_PORT", "0"), ("ADMIN_HOST", "0.0.0.0")], &[admin]),
        (&[("ADMIN_PORT", "0"), ("PROXY_HOST", "0.0.0.0")], &[main, admin]),
        (&[("ADMIN_PORT", "0"), ("PROXY_HOST", "0.0.0.0"), ("ADMIN_HOST", "127.0.0.1")], &[main]),
        (&[("ADMIN_PORT", "0"), ("ADMIN_HOST", "0.0.0.0"), ("CLIENT_PASSWORD", "word")], &[plain]),
    ] {
        let proxy = Proxy::start(&redis, variables);
        for warning in expected {
            proxy.wait_for_log(warning);
        }
        let output = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"))
            .arg("check")
            .env_clear()
            .envs([
                ("PROXY_HOST", "127.0.0.1"),
                ("PROXY_PORT", "0"),
                ("REDIS_HOST", "127.0.0.1"),
                ("REDIS_PORT", &port),
            ])
            .envs(variables.iter().copied())
            .output()
            .expect("the binary runs");
        let checked = String::from_utf8_lossy(&output.stdout).into_owned();
        for warning in [main, admin, plain] {
            let count = usize::from(expected.contains(&warning));
            assert_eq!(checked.matches(warning).count(), count, "{variables:?}: {checked}");
            assert_eq!(proxy.log().matches(warning).count(), count, "{variables:?}: {}", proxy.log());
        }
    }
}

/// A RESP client of the admin port gets one error, and none of its commands runs.
#[test]
fn resp_on_admin_port_is_refused() {
    let redis = Redis::start();
    redis.set("a", "secret");
    let proxy = Proxy::start(&redis, &[("ADMIN_PORT", "0"), ("ACCESS_LOG", "on")]);
    for bytes in [encode_words("GET a"), encode_words("AUTH word"), b"PING\r\n".to_vec(), b"*1\r\n$4\r\n".to_vec()] {
        let mut client = RespClient::connect(proxy.admin_address());
        client.send([&bytes[..], &encode_words("GET a")].concat());
        let reply = client.read_to_close();
        assert!(reply.starts_with("-ERR this port (ADMIN_PORT) serves only HTTP; "), "{reply}");
        assert_eq!(reply.lines().count(), 1, "{reply}");
    }
    assert_eq!(redis.count_calls("get"), 0);
}

/// Clients of the admin port are served when `MAX_CONNECTIONS` is reached. They have a limit of
/// their own, and do not count as client connections.
#[test]
fn admin_clients_served_at_limit() {
    let redis = Redis::start();
    redis.set("a", "1");
    let variables = [("MAX_CONNECTIONS", "2"), ("ADMIN_PORT", "0"), ("CLIENT_TIMEOUT", "60")];
    let proxy = Proxy::start(&redis, &variables);
    let mut clients = [proxy.connect(), proxy.connect()];
    clients.iter_mut().for_each(|client| assert_eq!(client.get("/raw/a").status, 200));
    assert_eq!(proxy.get("/raw/a").status, 503);
    assert_eq!(proxy.get("/healthz").status, 200);
    assert_eq!(proxy.get("/metrics").status, 503, "metrics of the main port");
    let mut monitors: Vec<_> = (0..MAX_ADMIN_CONNECTIONS).map(|_| HttpClient::connect(proxy.admin_address())).collect();
    for monitor in &mut monitors {
        let metrics = monitor.get("/metrics");
        assert_eq!((metrics.status, metrics.header("connection")), (200, ""));
        assert!(metrics.text().contains("\nsegment_connections 2\n"), "{}", metrics.text());
    }
    // A further one is answered and closed.
    let mut excess = HttpClient::connect(proxy.admin_address());
    let response = excess.get("/healthz");
    assert_eq!((response.status, response.header("connection")), (200, "close"));
    assert!(excess.reads_eof());
    // Admin clients take no place of other clients.
    drop(clients);
    wait_for("a place is free", || (proxy.get("/raw/a").status == 200).then_some(()));
    drop(monitors);
    wait_for("a monitor is not closed", || {
        HttpClient::connect(proxy.admin_address()).get("/healthz").header("connection").is_empty().then_some(())
    });
}

/// During a shutdown the admin port closes like the main one, and reports that the proxy is not
/// ready.
#[test]
fn shutdown_shows_on_admin_port() {
    let redis = Redis::start();
    redis.set("a", "1");
    let proxy = Proxy::start(&redis, &[("ADMIN_PORT", "0"), ("REDIS_TIMEOUT", "60000")]);
    let admin = proxy.admin_address();
    let mut monitor = HttpClient::connect(admin);
    wait_until_ready(&proxy);
    assert_eq!(monitor.get("/readyz").status, 200);
    redis.freeze();
    let mut waiting = proxy.connect();
    waiting.send_get("/raw/a");
    wait_for("the key is in flight", || {
        monitor.get("/metrics").text().contains("\nsegment_inflight_keys 1\n").then_some(())
    });
    monitor.send("GET /readyz HTTP/1.1\r\n");
    proxy.signal("TERM");
    wait_for("the admin port refuses connections", || TcpStream::connect(admin).is_err().then_some(()));
    monitor.send("Host: x\r\n\r\n");
    let ready = monitor.read_response();
    assert_eq!((ready.status, ready.header("connection")), (503, "close"));
    redis.thaw();
    assert_eq!(waiting.read_response().text(), "1");
    assert_eq!(proxy.wait_for_exit(), Some(0));
}

/// Another proxy shares the admin port with `SHARE_PORT`, and is refused without it, also beside
/// several workers.
#[test]
fn admin_port_is_shared_or_refused() {
    let redis = Redis::start();
    let first = Proxy::start(&redis, &[("SHARE_PORT", "on"), ("ADMIN_PORT", "0")]);
    let admin = first.admin_address();
    let (port, admin_port) = (first.address.port().to_string(), admin.port().to_string());
    for workers in ["1", "2"] {
        let (redis_port, host) = (redis.port.to_string(), "127.0.0.1");
        let variables = [("REDIS_PORT", redis_port.as_str()), ("PROXY_PORT", "0"), ("WORKERS", workers)];
        let output = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"))
            .env_clear()
            .envs([("REDIS_HOST", host), ("PROXY_HOST", host), ("ADMIN_PORT", &admin_port)])
            .envs(variables)
            .output()
            .expect("the binary runs");
        let text = String::from_utf8_lossy(&output.stderr);
        let remedy = format!("check PROXY_HOST=127.0.0.1 and ADMIN_PORT={admin_port}");
        assert!(output.status.code() == Some(1) && text.contains(&remedy), "{text}");
    }
    let second = Proxy::start(&redis, &[("SHARE_PORT", "on"), ("PROXY_PORT", &port), ("ADMIN_PORT", &admin_port)]);
    assert_eq!(first.stop("TERM"), Some(0));
    assert_eq!(HttpClient::connect(admin).get("/metrics").status, 200);
    assert_eq!(second.stop("TERM"), Some(0));
}

/// `healthcheck` finds the proxy with each combination of listeners.
#[test]
fn healthcheck_finds_any_listener() {
    let (redis, directory) = (Redis::start(), SocketDirectory::new("healthcheck"));
    let path = directory.path_of("proxy.sock");
    let proxy = Proxy::start(&redis, &[("PROXY_SOCKET", &path), ("ADMIN_PORT", "0")]);
    let (port, admin) = (proxy.address.port().to_string(), proxy.admin_address().port().to_string());
    let host = ("PROXY_HOST", "127.0.0.1");
    for (variables, code) in [
        (&[host, ("PROXY_PORT", &port), ("ADMIN_PORT", &admin)][..], 0),
        (&[("PROXY_PORT", "off"), ("PROXY_SOCKET", &path)][..], 0),
        (&[("PROXY_PORT", "0"), ("PROXY_SOCKET", &path)][..], 0),
        (&[host, ("PROXY_PORT", "0"), ("ADMIN_PORT", &admin)][..], 0),
        (&[("PROXY_PORT", "0"), ("ADMIN_HOST", "127.0.0.1"), ("ADMIN_PORT", &admin)][..], 0),
        (&[host, ("PROXY_PORT", "0"), ("ADMIN_PORT", "0")][..], 1),
        (&[("PROXY_PORT", "off"), ("PROXY_SOCKET", &directory.path_of("none"))][..], 1),
    ] {
        let (found, text) = run_healthcheck(variables);
        assert_eq!(found, Some(code), "{variables:?}: {text}");
    }
    proxy.freeze();
    let (code, text) = run_healthcheck(&[("PROXY_PORT", "off"), ("PROXY_SOCKET", &path)]);
    assert!(code == Some(1) && text.contains(&format!("no response from the proxy at {path} within 2 s")), "{text}");
}
