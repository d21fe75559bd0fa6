//! Tests of TLS connections over their life: long values, slow readers, ends, the shutdown.

use crate::certificates::{Certificates, TlsClient};
use crate::common::resp::encode_words;
use crate::common::{Redis, wait_for};
use std::io::{Read, Write};
use std::time::Duration;

/// A long value arrives whole over TLS, raw and as JSON, beside short ones.
#[test]
fn long_values_arrive_whole() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    let long: String = (0..1_000_000).map(|number| format!("{number:07}\"")).collect();
    redis.set("long", &long);
    redis.set("short", "value");
    let proxy = certificates.start_proxy(redis.port, &[]);
    let mut client = certificates.connect(proxy.address);
    for _ in 0..2 {
        assert!(client.get_text("/raw/long") == long, "another value");
        assert_eq!(client.get_text("/raw/short"), "value");
        let json = client.get_text("/key/long");
        assert!(json.contains(&long[..7]) && json.len() > long.len() + 1_000_000, "{} bytes", json.len());
    }
}

/// Clients that do not read a long value hold a piece of it each, not a copy.
#[test]
fn slow_readers_hold_no_copies() {
    const READERS: usize = 40;
    let (certificates, redis) = (Certificates::make(), Redis::start());
    redis.set("long", "x".repeat(7_000_000));
    let proxy = certificates.start_proxy(redis.port, &[("CACHE_TTL", "600")]);
    let mut client = certificates.connect(proxy.address);
    assert_eq!(client.get_text("/raw/long").len(), 7_000_000);
    let before = proxy.memory_kib("VmRSS");
    let mut readers: Vec<TlsClient> = (0..READERS).map(|_| certificates.connect(proxy.address)).collect();
    for reader in &mut readers {
        reader.stream.write_all(b"GET /raw/long HTTP/1.1\r\nHost: test\r\n\r\n").expect("the proxy reads");
        reader.stream.read_exact(&mut [0; 100]).expect("the beginning of the response");
    }
    let grown = proxy.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < READERS as u64 * 7000 / 8, "{grown} KiB more for {READERS} readers");
    drop(readers);
    assert_eq!(client.get_text("/raw/long").len(), 7_000_000);
}

/// An end is announced: to an idle client during a shutdown, and after the last response. A request
/// in flight is answered.
#[test]
fn shutdown_announces_ends() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    redis.set("a", "value");
    let proxy = certificates.start_proxy(redis.port, &[]);
    let (mut idle, mut busy) = (certificates.connect(proxy.address), certificates.connect(proxy.address));
    assert_eq!((idle.get_text("/raw/a"), busy.get_text("/raw/a")), ("value".into(), "value".into()));
    redis.freeze();
    busy.stream.write_all(b"GET /raw/b HTTP/1.1\r\nHost: test\r\n\r\n").expect("the proxy reads");
    certificates.wait_for_metric(&proxy, "segment_inflight_keys 1");
    proxy.signal("TERM");
    assert!(idle.reads_announced_end(), "the end of an idle connection was not announced");
    redis.thaw();
    let (head, body) = busy.read_response().expect("a response");
    assert!(head.starts_with("HTTP/1.1 404"), "{head} {body:?}");
    assert!(busy.reads_announced_end());
    assert_eq!(proxy.wait_for_exit(), Some(0));
}

/// A client that asks for the close gets it announced. One that ends without an announcement, or
/// sends one, gets its reply.
#[test]
fn ends_of_clients_are_tolerated() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    redis.set("a", "value");
    let proxy = certificates.start_proxy(redis.port, &[]);
    let mut asking = certificates.connect(proxy.address);
    asking.stream.write_all(b"GET /raw/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("the proxy reads");
    assert_eq!(asking.read_response().expect("a response").1, b"value");
    assert!(asking.reads_announced_end());
    for announces in [true, false] {
        let mut client = certificates.connect(proxy.address);
        client.stream.write_all(b"GET /raw/a HTTP/1.1\r\nHost: x\r\n\r\n").expect("the proxy reads");
        if announces {
            client.stream.conn.send_close_notify();
        }
        client.stream.flush().expect("the proxy reads");
        client.stream.sock.shutdown(std::net::Shutdown::Write).expect("an open socket");
        assert_eq!(client.read_response().expect("a response").1, b"value", "announces: {announces}");
        assert!(client.reads_announced_end());
    }
}

/// Requests that arrive in one read with the end of a TLS client are all answered, whatever limit
/// pauses their decoding.
#[test]
fn pipeline_before_close_notify_is_answered() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    redis.set("a", "value");
    let proxy = certificates.start_proxy(redis.port, &[("CACHE_TTL", "600")]);
    let words = |words: String| encode_words(&words);
    let keys = |count: usize| (0..count).map(|number| format!(" {number:04}")).collect::<String>();
    for (name, requests, replies) in [
        // More than `MAX_STEPS_PER_TURN`.
        ("PING", words("PING".into()).repeat(2000), "+PONG\r\n".repeat(2000)),
        // More than `MAX_PENDING_REPLIES`.
        ("GET", (0..300).flat_map(|key| words(format!("GET {key}"))).collect(), "$-1\r\n".repeat(300)),
        // More than a turn takes, with and without fetches (`MAX_PENDING_KEYS`).
        ("MGET of a hit", words(format!("MGET{}", " a".repeat(2999))), mget_reply("$5\r\nvalue\r\n", 2999)),
        ("MGET of misses", words(format!("MGET{}", keys(2999))), mget_reply("$-1\r\n", 2999)),
    ] {
        let mut client = certificates.connect(proxy.address);
        client.stream.write_all(&words("GET a".into())).expect("the proxy reads");
        client.stream.read_exact(&mut [0; 11]).expect("a reply");
        client.stream.conn.writer().write_all(&requests).expect("memory");
        client.stream.conn.send_close_notify();
        // The proxy must find all of it in one read.
        proxy.freeze();
        client.stream.flush().expect("space in the socket buffer");
        proxy.thaw();
        let mut received = String::new();
        client.stream.read_to_string(&mut received).expect("replies, and an announced end");
        assert!(received == replies, "{name}: {} bytes instead of {}", received.len(), replies.len());
    }
}

/// Returns the reply to `MGET` for `count` equal values.
fn mget_reply(value: &str, count: usize) -> String {
    format!("*{count}\r\n{}", value.repeat(count))
}

/// A client without requests is closed after `CLIENT_IDLE_TIMEOUT`, with an announcement.
#[test]
fn idle_timeout_announces_end() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    let proxy = certificates.start_proxy(redis.port, &[("CLIENT_IDLE_TIMEOUT", "300ms")]);
    let mut client = certificates.connect(proxy.address);
    client.get("/healthz").expect("a response");
    assert!(client.reads_announced_end());
}

/// An incomplete request over TLS times out with a response.
#[test]
fn incomplete_request_gets_response() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    let proxy = certificates.start_proxy(redis.port, &[("CLIENT_TIMEOUT", "300ms")]);
    let mut client = certificates.connect(proxy.address);
    client.stream.write_all(b"GET /raw/a HTTP/1.1\r\n").expect("the proxy reads");
    let (head, _) = client.read_response().expect("a response");
    assert!(head.starts_with("HTTP/1.1 408"), "{head}");
    assert!(client.reads_announced_end());
    // So does an incomplete record.
    let mut client = certificates.connect(proxy.address);
    client.get("/healthz").expect("a response");
    client.stream.sock.write_all(&[0x17, 3, 3, 0, 100, 1, 2, 3]).expect("the proxy reads");
    let (head, _) = client.read_response().expect("a response");
    assert!(head.starts_with("HTTP/1.1 408"), "{head}");
}

/// A thousand idle connections take little memory, and give it back.
#[test]
fn idle_connections_take_little_memory() {
    const CLIENTS: u64 = 1000;
    /// Keys and state of rustls take about 4 KiB, the kernel's buffers do not count.
    const MAX_KIB: u64 = 8;
    let (certificates, redis) = (Certificates::make(), Redis::start());
    let proxy = certificates.start_proxy(redis.port, &[("CLIENT_IDLE_TIMEOUT", "1h")]);
    let connect = || {
        let mut client = certificates.connect(proxy.address);
        client.get("/healthz").expect("a response");
        client
    };
    let _first: Vec<TlsClient> = (0..50).map(|_| connect()).collect();
    let before = proxy.memory_kib("VmRSS");
    let clients: Vec<TlsClient> = (0..CLIENTS).map(|_| connect()).collect();
    let grown = proxy.memory_kib("VmRSS").saturating_sub(before);
    println!("{grown} KiB for {CLIENTS} idle clients");
    assert!(grown < CLIENTS * MAX_KIB, "{grown} KiB for {CLIENTS} idle clients");
    drop(clients);
    wait_for("the connections are closed", || {
        std::thread::sleep(Duration::from_millis(20));
        (proxy.count_descriptors() < 200).then_some(())
    });
}
