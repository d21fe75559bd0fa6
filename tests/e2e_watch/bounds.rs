//! Limits on watchers, slow clients, timeouts, and the end of streams.

use crate::common::admin::read_metric;
use crate::common::event_stream::{EventStream, put};
use crate::common::freshness::start_tracking_proxy;
use crate::common::{Proxy, Redis, wait_for, wait_until_idle};
use std::io::BufRead;
use std::net::Shutdown;
use std::time::{Duration, Instant};

fn wait_for_watchers(proxy: &Proxy, count: usize) {
    wait_for("watchers are counted", || (read_metric(proxy, "segment_watchers") == count as f64).then_some(()));
}

/// Watchers are limited over all workers. A client that leaves frees its places.
#[test]
fn watchers_are_limited() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[("MAX_WATCHERS", "5"), ("WORKERS", "2")]);
    redis.set("a", "1");
    let mut first = EventStream::open(proxy.address, "/watch?key=a&key=b&key=c&key=d");
    (0..4).for_each(|_| _ = first.next_event());
    wait_for_watchers(&proxy, 4);
    assert!(
        read_metric(&proxy, "segment_watched_keys") == 4.0 && read_metric(&proxy, "segment_watch_events_total") == 4.0
    );
    let refused = EventStream::request(proxy.address, "/watch?key=a&key=b", "");
    assert!(
        refused.head.starts_with("HTTP/1.1 503") && refused.head.contains("Retry-After: 1\r\n"),
        "{}",
        refused.head
    );
    let mut second = EventStream::open(proxy.address, "/key/a");
    assert!(second.next_data().starts_with("{\"value\":1,"));
    let mut client = proxy.connect();
    let tag = client.get("/key/a").header("etag").to_owned();
    client.send(format!("GET /key/a HTTP/1.1\r\nHost: x\r\nIf-None-Match: {tag}\r\nPrefer: wait=60\r\n\r\n"));
    assert_eq!(client.read_response().status, 503);
    drop(first);
    wait_for_watchers(&proxy, 1);
    assert_eq!(read_metric(&proxy, "segment_watched_keys"), 1.0);
    client.send(format!("GET /key/a HTTP/1.1\r\nHost: x\r\nIf-None-Match: {tag}\r\nPrefer: wait=60\r\n\r\n"));
    wait_for_watchers(&proxy, 2);
    redis.set("a", "2");
    assert_eq!(client.read_response().status, 200);
    assert_eq!(second.next_data(), "{\"value\":2,\"fromCache\":false}");
    drop(second);
    wait_for_watchers(&proxy, 0);
    let off = Proxy::start(&redis, &[("MAX_WATCHERS", "0")]);
    assert!(EventStream::request(off.address, "/key/a", "").head.starts_with("HTTP/1.1 503"));
    assert_eq!(off.get("/key/a").status, 200);
}

/// A stream ends when its client sends an end of input: it is gone, or will soon be.
#[test]
fn half_closed_client_is_closed() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    redis.set("a", "1");
    let mut stream = EventStream::open(proxy.address, "/key/a");
    assert!(stream.next_data().contains("\"value\":1"));
    stream.end_input();
    assert_eq!(stream.next_event(), None);
    wait_for_watchers(&proxy, 0);
}

/// The kernel queues few events for a client that does not read.
#[test]
fn stalled_client_gets_few_old_events() {
    const CHANGES: usize = 400;
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[("WATCH_INTERVAL", "1")]);
    let value = |number: usize| format!("{number:_>5000}");
    redis.set("a", value(0));
    let mut stalled = EventStream::open(proxy.address, "/key/a");
    let mut fast = EventStream::open(proxy.address, "/key/a");
    fast.read_until(&value(0));
    for number in 1..=CHANGES {
        redis.set("a", value(number));
        fast.read_until(&value(number));
    }
    let events = stalled.read_until(&value(CHANGES)).len();
    assert!(events < CHANGES / 4, "{events} events were queued");
}

/// A poll of a client that sends no more is answered as soon as the key was read.
#[test]
fn half_closed_poll_is_answered() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    redis.set("a", "1");
    redis.set("b", "2");
    let tag = proxy.get("/key/a").header("etag").to_owned();
    for (key, status) in [("a", 304), ("b", 200), ("nothing", 404)] {
        for connection in ["keep-alive", "close"] {
            let mut client = proxy.connect();
            client.send(format!(
                "GET /key/{key} HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\nIf-None-Match: {tag}\r\n\
                 Prefer: wait=60\r\n\r\n"
            ));
            let mut stream = client.into_stream();
            stream.get_ref().shutdown(Shutdown::Write).expect("a connected stream");
            let mut line = String::new();
            stream.read_line(&mut line).expect("a status line");
            assert!(line.starts_with(&format!("HTTP/1.1 {status} ")), "{key} {connection}: {line:?}");
        }
    }
    wait_for_watchers(&proxy, 0);
}

/// A client that reads slowly gets the newest value only, and delays no other.
#[test]
fn slow_client_gets_newest_value() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[("WATCH_INTERVAL", "1")]);
    let value = |number: usize| format!("{number:_>50000}");
    redis.set("a", value(0));
    let mut slow = EventStream::open(proxy.address, "/key/a");
    let mut fast = EventStream::open(proxy.address, "/key/a");
    const CHANGES: usize = 1000;
    fast.read_until(&value(0));
    for number in 1..=CHANGES {
        redis.set("a", value(number));
        fast.read_until(&value(number));
    }
    wait_until_idle(&redis, &proxy);
    // The sockets of both sides hold some megabytes.
    let events = slow.read_until(&value(CHANGES));
    assert!(events.len() < CHANGES / 2, "{} events were queued", events.len());
    assert!(proxy.memory_kib("VmHWM") < 100_000);
    redis.set("a", "last");
    assert_eq!(slow.next_data(), put("last"));
}

/// A burst of writes is limited to one event in `WATCH_INTERVAL`, and the last value arrives.
#[test]
fn burst_of_writes_is_merged() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[("WATCH_INTERVAL", "200ms")]);
    redis.set("a", "0");
    let mut stream = EventStream::open(proxy.address, "/key/a");
    stream.next_event();
    let (before, start) = (redis.count_reads(), Instant::now());
    (0..2000).for_each(|number| redis.set("a", number.to_string()));
    redis.set("a", "last");
    let events = stream.read_until("last").len() as u64 + 1;
    let most = start.elapsed().as_millis() as u64 / 200 + 2;
    assert!(events <= most && redis.count_reads() - before <= most, "{events} events, {most} intervals");
    assert!(read_metric(&proxy, "segment_watch_changes_merged_total") > 1000.0);
}

/// A stream is no idle client. Silent ones get a comment, and long polls none.
#[test]
fn silent_stream_outlives_timeouts() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[("CLIENT_IDLE_TIMEOUT", "1"), ("CLIENT_TIMEOUT", "1")]);
    redis.set("a", "1");
    let mut stream = EventStream::open(proxy.address, "/key/a");
    stream.next_event();
    let mut client = proxy.connect();
    let tag = client.get("/key/a").header("etag").to_owned();
    client.send(format!("GET /key/a HTTP/1.1\r\nHost: x\r\nIf-None-Match: {tag}\r\nPrefer: wait=20\r\n\r\n"));
    let start = Instant::now();
    let response = client.read_response();
    // The proxy counts whole milliseconds.
    assert!(start.elapsed() >= Duration::from_millis(19_990), "{response:?} after {:?}", start.elapsed());
    assert_eq!(response.status, 304);
    redis.set("a", "2");
    assert_eq!(stream.next_data(), "{\"value\":2,\"fromCache\":false}");
    assert_eq!(stream.comments, [""], "one heartbeat in 20 s");
}

/// SIGTERM ends streams and polls in order, and tells when to reconnect.
#[test]
fn shutdown_ends_streams() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[("SHUTDOWN_GRACE", "30")]);
    redis.set("a", "1");
    let mut streams: Vec<EventStream> = (0..20).map(|_| EventStream::open(proxy.address, "/key/a")).collect();
    streams.iter_mut().for_each(|stream| _ = stream.next_event());
    let mut client = proxy.connect();
    let tag = client.get("/key/a").header("etag").to_owned();
    client.send(format!("GET /key/a HTTP/1.1\r\nHost: x\r\nIf-None-Match: {tag}\r\nPrefer: wait=60\r\n\r\n"));
    wait_for_watchers(&proxy, 21);
    let start = Instant::now();
    proxy.signal("TERM");
    for stream in &mut streams {
        assert_eq!(stream.next_event(), None);
        assert!(matches!(stream.retries[..], [_, 1000..31_000]), "{:?}", stream.retries);
    }
    let spread = streams.iter().map(|stream| stream.retries[1]);
    assert!(spread.clone().max() > spread.min().map(|least| least + 10_000), "all reconnect at once");
    let response = client.read_response();
    assert_eq!((response.status, response.header("connection")), (304, ""));
    assert_eq!(proxy.wait_for_exit(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(20), "the shutdown waited for streams");
}

/// A stream that a client opens during a shutdown has the present value and its end.
#[test]
fn stream_during_shutdown_has_value() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[("SHUTDOWN_GRACE", "30")]);
    redis.set("a", "1");
    assert_eq!(proxy.get("/key/a").status, 200);
    let mut client = proxy.connect();
    assert_eq!(client.get("/raw/a").text(), "1");
    proxy.signal("TERM");
    wait_for("the shutdown begins", || proxy.log().contains("shutting down").then_some(()));
    client.send("GET /key/a HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n");
    let mut stream = EventStream::read(client.into_stream());
    assert_eq!(stream.next_data(), "{\"value\":1,\"fromCache\":true}");
    assert_eq!((stream.next_event(), stream.retries.len()), (None, 2));
}

/// A poll that waits for its first read when the shutdown begins gets the result of it.
#[test]
fn poll_during_shutdown_is_answered() {
    for (tag, status) in [("W/\"65cd25028f98f158\"", 304), ("\"0123456789abcdef\"", 200)] {
        let redis = Redis::start();
        let proxy = start_tracking_proxy(redis.port, &[("SHUTDOWN_GRACE", "30")]);
        redis.set("a", "1");
        let mut client = proxy.connect();
        redis.freeze();
        client.send(format!("GET /key/a HTTP/1.1\r\nHost: x\r\nIf-None-Match: {tag}\r\nPrefer: wait=60\r\n\r\n"));
        wait_for_watchers(&proxy, 1);
        proxy.signal("TERM");
        wait_for("the shutdown begins", || proxy.log().contains("shutting down").then_some(()));
        // Idle clients are closed after a second, and this one is not idle.
        std::thread::sleep(Duration::from_millis(1200));
        redis.thaw();
        assert_eq!(client.read_response().status, status);
        assert_eq!(proxy.wait_for_exit(), Some(0));
    }
}
