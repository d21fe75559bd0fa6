//! Tests of shutdown: requests in flight are answered, new connections are refused, and a rolling
//! restart loses no request.

use crate::common::resp::{RespClient, encode_command};
use crate::common::{HttpClient, Proxy, Redis, wait_for};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Starts a proxy with one client whose request waits for a frozen Redis.
fn start_with_waiting_client(variables: &[(&str, &str)]) -> (Redis, Proxy, HttpClient) {
    let redis = Redis::start();
    redis.set("a", "value");
    let proxy = Proxy::start(&redis, &[&[("REDIS_TIMEOUT", "60000")], variables].concat());
    assert_eq!(proxy.get("/key/none").status, 404);
    let waiting = connect_waiting_client(&redis, &proxy);
    (redis, proxy, waiting)
}

/// Freezes Redis and connects a client that requests a key that is not cached.
fn connect_waiting_client(redis: &Redis, proxy: &Proxy) -> HttpClient {
    redis.freeze();
    let mut waiting = proxy.connect();
    waiting.send_get("/raw/a");
    wait_until_inflight(proxy);
    waiting
}

/// Waits until one key is in flight.
fn wait_until_inflight(proxy: &Proxy) {
    wait_for("the key is in flight", || {
        proxy.get("/metrics").text().contains("\nsegment_inflight_keys 1\n").then_some(())
    });
}

/// Shutdown answers requests in flight and refuses new connections.
#[test]
fn inflight_requests_complete_new_ones_refused() {
    let (redis, proxy, mut waiting) = start_with_waiting_client(&[]);
    // A client that has sent a part of its request does not count as idle.
    let mut asking = proxy.connect();
    asking.send("GET /readyz HTTP/1.1\r\n");
    proxy.signal("TERM");
    wait_until_refusing(&proxy);
    asking.send("Host: x\r\n\r\n");
    let ready = asking.read_response();
    assert_eq!((ready.status, ready.header("connection")), (503, "close"));
    assert!(ready.text().contains("\"the proxy is shutting down\""), "{}", ready.text());
    assert!(asking.reads_eof());
    redis.thaw();
    let response = waiting.read_response();
    assert_eq!((response.status, response.text()), (200, "value".into()));
    assert!(waiting.reads_eof());
    assert_eq!(proxy.wait_for_exit(), Some(0));
}

/// Starts a proxy that is shutting down, with one client that is unaware of it.
///
/// The client has sent a part of its request, so it does not count as idle. Redis is frozen and
/// another client waits for it, so the proxy does not exit.
fn start_shutting_down(value: &str) -> (Proxy, HttpClient, (Redis, HttpClient)) {
    let redis = Redis::start();
    redis.set("b", value);
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "60000"), ("CACHE_TTL", "600"), ("CLIENT_TIMEOUT", "60")]);
    let mut client = proxy.connect();
    // A small receive buffer leaves most of a long response to the proxy's kernel.
    let socket = socket2::SockRef::from(client.stream().get_ref());
    socket.set_recv_buffer_size(32 * 1024).expect("an option can be set");
    assert_eq!(proxy.get("/raw/b").status, 200);
    let waiting = connect_waiting_client(&redis, &proxy);
    client.send(PARTIAL_GET);
    proxy.signal("TERM");
    wait_until_refusing(&proxy);
    (proxy, client, (redis, waiting))
}

/// Request for the value without the empty line that ends the head.
const PARTIAL_GET: &str = "GET /raw/b HTTP/1.1\r\nHost: x\r\n";

/// Waits until the proxy refuses connections.
fn wait_until_refusing(proxy: &Proxy) {
    let connect = || TcpStream::connect_timeout(&proxy.address, Duration::from_secs(2));
    wait_for("the proxy refuses connections", || connect().is_err().then_some(()));
}

/// Input that follows the last request does not cut off the last response.
///
/// A socket that is closed with unread input makes the kernel discard its unsent output.
#[test]
fn pipelined_input_keeps_last_response() {
    // More than the receive buffer of the client holds, less than the proxy's kernel takes at once.
    let value = "x".repeat(200_000);
    let receives_response = || {
        let (_proxy, mut client, _held) = start_shutting_down(&value);
        client.send("\r\n");
        // The client is unaware of the shutdown. It sends further requests for a while before it
        // reads.
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(5));
            if client.stream().get_mut().write_all(format!("{PARTIAL_GET}\r\n").as_bytes()).is_err() {
                break;
            }
        }
        let mut all = String::new();
        let result = client.stream().read_to_string(&mut all);
        assert!(all.starts_with("HTTP/1.1 200 OK\r\n"), "{all}");
        result.is_ok() && all.contains("\r\nConnection: close\r\n") && all.ends_with(&format!("\r\n\r\n{value}"))
    };
    // The proxy lingers for a bounded time, and on a busy machine a client may be too late.
    assert!((0..3).any(|_| receives_response()), "the response was cut off");
}

/// The response to a request with a body announces the close, too.
#[test]
fn request_with_body_learns_of_close() {
    for body in ["Content-Length: 2\r\n\r\nxx", "Transfer-Encoding: chunked\r\n\r\n2\r\nxx\r\n0\r\n\r\n"] {
        let (_proxy, mut client, _held) = start_shutting_down("value");
        client.send(body);
        let response = client.read_response();
        assert_eq!((response.text(), response.header("connection")), ("value".into(), "close"), "{body}");
        assert!(client.reads_eof());
    }
    // Of pipelined requests, only the last response announces the close.
    let (_proxy, mut client, _held) = start_shutting_down("value");
    client.send(format!("Content-Length: 2\r\n\r\nxx{PARTIAL_GET}\r\n{PARTIAL_GET}\r\n"));
    let announced =
        [(); 3].map(|()| client.read_response()).map(|response| response.headers.contains_key("connection"));
    assert_eq!(announced, [false, false, true]);
}

/// Returns true if a socket listens on this port of 127.0.0.1. A connection would wake the event
/// loop, so this reads `/proc/net/tcp`.
fn is_listening(port: u16) -> bool {
    const LISTEN: &str = "0A";
    let sockets = std::fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp can be read");
    let address = format!("0100007F:{port:04X}");
    sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|fields| {
        fields.get(1).is_some_and(|local| *local == address) && fields.get(3).is_some_and(|state| *state == LISTEN)
    })
}

/// Connections after the signal are refused, so that clients reach another proxy or the next one.
#[test]
fn port_is_free_after_signal() {
    let closes_soon = || {
        let (_redis, proxy, _waiting) = start_with_waiting_client(&[("WORKERS", "2")]);
        assert!(is_listening(proxy.address.port()));
        proxy.signal("TERM");
        let started = Instant::now();
        wait_for("the port is free", || (!is_listening(proxy.address.port())).then_some(()));
        // Otherwise the port would be free when idle clients are closed, a second later.
        started.elapsed() < Duration::from_millis(800)
    };
    // A busy machine may take as long once or twice.
    assert!((0..5).any(|_| closes_soon()));
}

/// Clients in the accept queue at the signal are answered, although the proxy has not accepted
/// them.
#[test]
fn queued_connections_are_answered() {
    let redis = Redis::start();
    redis.set("a", "value");
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
    assert_eq!(proxy.get("/raw/a").status, 200);
    proxy.freeze();
    let mut clients: Vec<HttpClient> = (0..1000).map(|_| proxy.connect()).collect();
    clients.iter_mut().for_each(|client| client.send_get("/raw/a"));
    proxy.signal("TERM");
    proxy.thaw();
    for client in &mut clients {
        assert_eq!(client.read_response().text(), "value");
    }
    assert_eq!(proxy.wait_for_exit(), Some(0));
}

/// Idle clients of both protocols are closed well before `SHUTDOWN_GRACE`.
#[test]
fn idle_clients_do_not_delay_shutdown() {
    let redis = Redis::start();
    redis.set("a", "value");
    let proxy = Proxy::start(&redis, &[("SHUTDOWN_GRACE", "60"), ("WORKERS", "2")]);
    let mut silent = proxy.connect();
    let mut idle = proxy.connect();
    assert_eq!(idle.get("/raw/a").text(), "value");
    let mut resp = RespClient::connect(proxy.address);
    resp.send(encode_command(&["GET", "a"]));
    let mut reply = [0; 11];
    resp.stream.read_exact(&mut reply).expect("a reply");
    let started = Instant::now();
    assert_eq!(proxy.stop("INT"), Some(0));
    assert!(started.elapsed() < Duration::from_secs(50), "{:?}", started.elapsed());
    assert!(silent.reads_eof() && idle.reads_eof());
    assert_eq!(resp.read_to_close(), "");
}

/// Shutdown ends when `SHUTDOWN_GRACE` expires, or earlier at a second signal.
#[test]
fn grace_or_second_signal_ends_shutdown() {
    let (_redis, proxy, waiting) = start_with_waiting_client(&[("SHUTDOWN_GRACE", "0.7")]);
    proxy.signal("TERM");
    wait_for("the expiry is logged", || {
        proxy.log().contains("SHUTDOWN_GRACE expired: closing 1 open client connections").then_some(())
    });
    assert_eq!(proxy.wait_for_exit(), Some(0));
    drop(waiting);

    let (_redis, proxy, _waiting) = start_with_waiting_client(&[("SHUTDOWN_GRACE", "3600")]);
    proxy.signal("TERM");
    wait_for("the shutdown is logged", || {
        proxy.log().contains("received signal 15: shutting down within 3600 s").then_some(())
    });
    assert_eq!(proxy.stop("INT"), Some(128 + 2));

    let (_redis, proxy, _waiting) = start_with_waiting_client(&[("SHUTDOWN_GRACE", "0")]);
    assert_eq!(proxy.stop("TERM"), Some(0));
}

/// A busy RESP client does not delay shutdown.
///
/// RESP cannot announce the last reply, so the client sees EOF between two commands.
#[test]
fn busy_resp_client_sees_eof() {
    let redis = Redis::start();
    redis.set("a", "value");
    let proxy = Proxy::start(&redis, &[("SHUTDOWN_GRACE", "60")]);
    let mut resp = RespClient::connect(proxy.address);
    let (reply_sender, replies) = std::sync::mpsc::channel();
    let client = std::thread::spawn(move || {
        let mut reply = [0; 11];
        loop {
            let sent = resp.stream.write_all(&encode_command(&["GET", "a"]));
            // EOF before the first byte of a reply is the expected end.
            match resp.stream.read(&mut reply[..1]) {
                Ok(0) => return,
                result => assert!(sent.is_ok() && result.is_ok(), "{sent:?} {result:?}"),
            }
            resp.stream.read_exact(&mut reply[1..]).expect("the remaining bytes");
            assert_eq!(&reply, b"$5\r\nvalue\r\n");
            let _ = reply_sender.send(());
        }
    });
    replies.recv().expect("a first reply");
    let started = Instant::now();
    assert_eq!(proxy.stop("TERM"), Some(0));
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    client.join().expect("the client has seen EOF");
}

/// A worker that exits before the others is not reported as stuck.
#[test]
fn exited_worker_is_not_stuck() {
    let (_redis, proxy, waiting) = start_with_waiting_client(&[("SHUTDOWN_GRACE", "8"), ("WORKERS", "2")]);
    proxy.signal("TERM");
    wait_for("the grace expires", || proxy.log().contains("SHUTDOWN_GRACE expired").then_some(()));
    let log = proxy.log();
    assert_eq!(proxy.wait_for_exit(), Some(0));
    assert!(!log.contains("is stuck"), "{log}");
    drop(waiting);
}

/// Shell script that executes its argument without CAP_NET_ADMIN. Only root has this capability.
const DROP_NET_ADMIN: &str =
    r#"[ "$(id -u)" = 0 ] && exec setpriv --bounding-set=-net_admin --inh-caps=-net_admin "$0"; exec "$0""#;

/// Starts a proxy that shares its port, has no privilege, and is frozen during shutdown. Returns
/// `None` if it has stopped listening before.
fn freeze_while_listening() -> Option<(Proxy, Redis, HttpClient)> {
    let redis = Redis::start();
    redis.set("b", "value");
    let mut command = Command::new("sh");
    command.args(["-c", DROP_NET_ADMIN, env!("CARGO_BIN_EXE_segment-redis-proxy")]);
    let variables = [("SHARE_PORT", "on"), ("REDIS_TIMEOUT", "60000"), ("CACHE_TTL", "600")];
    let proxy = Proxy::start_command(command, redis.port, &variables);
    assert_eq!(proxy.get("/raw/b").status, 200);
    let waiting = connect_waiting_client(&redis, &proxy);
    proxy.signal("TERM");
    wait_for("the shutdown is logged", || proxy.log().contains("shutting down within").then_some(()));
    proxy.freeze();
    is_listening(proxy.address.port()).then_some((proxy, redis, waiting))
}

/// A client that connects just before a shared port stops listening is answered.
#[test]
fn late_connection_to_shared_port_answered() {
    // On a busy machine the proxy may stop listening before it is frozen.
    let (proxy, _redis, _waiting) = wait_for("the proxy is frozen while it listens", freeze_while_listening);
    // Some kernels refuse these connections even without a privilege.
    let connect = |_| TcpStream::connect_timeout(&proxy.address, Duration::from_millis(300));
    let Ok(mut clients) = (0..20).map(connect).collect::<Result<Vec<_>, _>>() else { return };
    clients
        .iter_mut()
        .for_each(|client| client.write_all(format!("{PARTIAL_GET}\r\n").as_bytes()).expect("the connection is open"));
    // Longer than ACCEPT_GRACE: that time has passed when the proxy resumes.
    std::thread::sleep(Duration::from_millis(700));
    proxy.thaw();
    for client in &mut clients {
        let mut text = String::new();
        client.read_to_string(&mut text).expect("a response and EOF");
        assert!(text.ends_with("\r\n\r\nvalue"), "{text}");
    }
}

/// Counts that the client threads share.
#[derive(Default)]
struct ClientCounts {
    answered: AtomicU64,
    failed: AtomicU64,
    /// Failed requests that were the first on their connection.
    failed_first: AtomicU64,
    stop: AtomicBool,
}

/// Sends requests until `stop` is set. A connection ends after `max_requests` responses, or with a
/// response that announces the close.
fn run_client(address: SocketAddr, max_requests: u32, counts: &ClientCounts) {
    let request = b"GET /raw/a HTTP/1.1\r\nHost: x\r\n\r\n";
    while !counts.stop.load(Ordering::Relaxed) {
        let (mut last_response, mut idle_for, mut is_first) = (Instant::now(), Duration::ZERO, true);
        let result = (|| -> std::io::Result<()> {
            let mut stream = BufReader::new(TcpStream::connect(address)?);
            stream.get_ref().set_nodelay(true)?;
            last_response = Instant::now();
            for _ in 0..max_requests {
                idle_for = last_response.elapsed();
                stream.get_mut().write_all(request)?;
                let (mut line, mut announces_close, mut status) = (String::new(), false, String::new());
                while line != "\r\n" {
                    line.clear();
                    if stream.read_line(&mut line)? == 0 {
                        return Err(std::io::ErrorKind::UnexpectedEof.into());
                    }
                    announces_close |= line == "Connection: close\r\n";
                    if status.is_empty() {
                        status.clone_from(&line);
                    }
                }
                let mut body = [0; 5];
                stream.read_exact(&mut body)?;
                if &body != b"value" || status != "HTTP/1.1 200 OK\r\n" {
                    return Err(std::io::Error::other(format!("{status} {body:?}")));
                }
                (last_response, is_first) = (Instant::now(), false);
                counts.answered.fetch_add(1, Ordering::Relaxed);
                if announces_close || counts.stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            Ok(())
        })();
        // A busy machine may suspend this client for most of a second, which makes its connection
        // idle. The proxy may close an idle connection at any time, and a client retries on another
        // (RFC 9112, section 9.3.1).
        let was_idle = idle_for > Duration::from_millis(800);
        if let Err(error) = result.or_else(|error| if was_idle { Ok(()) } else { Err(error) }) {
            println!("a request failed: {error}");
            counts.failed.fetch_add(1, Ordering::Relaxed);
            counts.failed_first.fetch_add(u64::from(is_first), Ordering::Relaxed);
        }
    }
}

/// Two proxies share a port and are replaced in turn under load. Every request is answered, on new
/// and on kept connections.
#[test]
fn rolling_restart_loses_no_request() {
    const REQUESTS: u64 = 100_000;
    const RESTARTS: u64 = 6;
    let redis = Redis::start();
    redis.set("a", "value");
    let first = Proxy::start(&redis, &[("SHARE_PORT", "on")]);
    let (address, port) = (first.address, first.address.port().to_string());
    let start = || Proxy::start(&redis, &[("SHARE_PORT", "on"), ("PROXY_PORT", &port)]);
    let mut proxies = [first, start()];
    let counts = Arc::new(ClientCounts::default());
    let clients: Vec<_> = [1, 1, 7, 1000, u32::MAX, u32::MAX, u32::MAX, u32::MAX]
        .map(|max_requests| {
            let counts = Arc::clone(&counts);
            std::thread::spawn(move || run_client(address, max_requests, &counts))
        })
        .into();
    for restart in 0..RESTARTS {
        let old = std::mem::replace(&mut proxies[restart as usize % 2], start());
        assert_eq!(old.stop("TERM"), Some(0));
        wait_for("clients send further requests", || {
            let wanted = REQUESTS * (restart + 1) / RESTARTS;
            (counts.answered.load(Ordering::Relaxed) >= wanted).then_some(())
        });
    }
    counts.stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("no panic");
    }
    let [answered, failed, first] =
        [&counts.answered, &counts.failed, &counts.failed_first].map(|count| count.load(Ordering::Relaxed));
    println!("{RESTARTS} restarts, {answered} requests answered, {failed} failed, {first} of them on a new connection");
    // The proxy logs at its start if the kernel offers no means against such resets.
    let excused = if proxies[0].log().contains("the kernel may reset new client connections") { first } else { 0 };
    assert_eq!(failed, excused, "of {answered}");
}
