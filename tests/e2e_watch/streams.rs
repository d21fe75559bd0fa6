//! Event streams: what they send, and when.

use crate::common::event_stream::{Event, EventStream, put};
use crate::common::freshness::start_tracking_proxy;
use crate::common::{HttpClient, Proxy, Redis, wait_for, wait_until_idle};
use std::io::Write;
use std::time::Duration;

const GONE: &str = "{\"value\":null}";

fn event(name: &str, id: &str, data: &str) -> Event {
    Event { name: name.into(), id: id.into(), data: data.into() }
}

/// A stream sends the present value and each change, of whatever kind, and nothing without a
/// change.
#[test]
fn stream_sends_each_change() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[("WATCH_INTERVAL", "1")]);
    redis.set("a", "1");
    let mut stream = EventStream::open(proxy.address, "/key/a");
    for field in [
        "Content-Type: text/event-stream\r\n",
        "Cache-Control: no-store\r\n",
        "X-Accel-Buffering: no\r\n",
        "Cache-Status: segment-redis-proxy; detail=tracked\r\n",
        "Connection: close\r\n",
    ] {
        assert!(stream.head.contains(field), "{}", stream.head);
    }
    let first = event("put", "W/\"65cd25028f98f158\"", "{\"value\":1,\"fromCache\":false}");
    assert_eq!(stream.next_event(), Some(first));
    assert!(matches!(stream.retries[..], [1000..3000]), "{:?}", stream.retries);
    let long = "x".repeat(100_000);
    let changes: [(&[&str], &str, &str); 9] = [
        (&["SET", "a", "text \"2\""], "put", "{\"value\":\"text \\\"2\\\"\",\"fromCache\":false}"),
        (&["APPEND", "a", "\n"], "put", "{\"value\":\"text \\\"2\\\"\\n\",\"fromCache\":false}"),
        (&["SET", "a", &long], "put", &put(&long)),
        (&["DEL", "a"], "gone", GONE),
        (&["RPUSH", "a", "1"], "gone", "{\"error\":\"the key does not hold a string; the proxy reads only strings\"}"),
        (&["DEL", "a"], "gone", GONE),
        (&["SET", "a", ""], "put", &put("")),
        (&["SET", "a", "x", "PX", "200"], "put", &put("x")),
        // Redis expires the key.
        (&["PING"], "gone", GONE),
    ];
    for (command, name, data) in changes {
        redis.run(command);
        let event = stream.next_event().expect("an event");
        assert_eq!((event.name.as_str(), event.data.as_str()), (name, data), "{command:?}");
    }
    redis.set("a", "2");
    assert_eq!(stream.next_data(), "{\"value\":2,\"fromCache\":false}");
    // Writes of the same value, and of other keys, are no changes.
    (0..5).for_each(|_| redis.set("a", "2"));
    redis.set("b", "2");
    wait_until_idle(&redis, &proxy);
    assert!(stream.is_silent_for(Duration::from_millis(100)));
    redis.set("a", "3");
    assert_eq!(stream.next_data(), "{\"value\":3,\"fromCache\":false}");
}

/// A stream for several keys names them, each once.
#[test]
fn several_keys_share_one_stream() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    redis.set("a", "1");
    let mut stream = EventStream::open(proxy.address, "/watch?key=a&key=%62%22&key=a&other=1&key=%ff");
    let mut first: Vec<String> = (0..3).map(|_| stream.next_data()).collect();
    first.sort();
    assert_eq!(
        first,
        [
            "{\"key\":\"/w==\",\"keyEncoding\":\"base64\",\"value\":null}",
            "{\"key\":\"a\",\"value\":1,\"fromCache\":false}",
            "{\"key\":\"b\\\"\",\"value\":null}",
        ]
    );
    redis.set("b\"", "2");
    let event = stream.next_event().expect("an event");
    assert_eq!(event.data, "{\"key\":\"b\\\"\",\"value\":2,\"fromCache\":false}");
    assert!(event.id.starts_with("W/\"") && event.id.len() == 37, "{}", event.id);
    redis.run(&["DEL", "a"]);
    assert_eq!(stream.next_data(), "{\"key\":\"a\",\"value\":null}");
}

/// A client that reconnects gets no event that it has, but each change in between.
#[test]
fn last_event_id_skips_known_state() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    let reconnect =
        |target: &str, id: &str| EventStream::open_with(proxy.address, target, &format!("Last-Event-ID: {id}\r\n"));
    for target in ["/key/a", "/watch?key=a&key=b"] {
        redis.run(&["DEL", "b"]);
        redis.set("a", "1");
        let mut stream = EventStream::open(proxy.address, target);
        let mut events: Vec<Event> =
            (0..if target == "/key/a" { 1 } else { 2 }).map(|_| stream.next_event().expect("an event")).collect();
        let id = events.iter().position(|event| event.name == "put").map(|at| events.remove(at).id).expect("an id");
        drop(stream);
        let mut again = reconnect(target, &id);
        // The other key is not what the id names.
        (0..events.len()).for_each(|_| assert_eq!(again.next_event().expect("an event").name, "gone"));
        wait_until_idle(&redis, &proxy);
        assert!(again.is_silent_for(Duration::from_millis(50)), "{target}");
        drop(again);
        redis.run(&["DEL", "a"]);
        let mut again = reconnect(target, &id);
        let gone: Vec<Event> = (0..=events.len()).map(|_| again.next_event().expect("an event")).collect();
        assert!(gone.iter().all(|event| event.name == "gone"), "{gone:?}");
        let id = &gone.iter().find(|event| !event.data.contains("\"b\"")).expect("an event of a").id;
        redis.set("a", "1");
        let mut again = reconnect(target, id);
        assert!(again.read_until_name("put").data.contains("\"value\":1"));
    }
    // An id of another server is unknown.
    assert_eq!(reconnect("/key/a", "42").next_event().expect("an event").name, "put");
}

/// Any number of watchers cause one read for each change.
#[test]
fn change_causes_one_read() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    redis.set("a", "0");
    let mut streams: Vec<EventStream> = (0..50).map(|_| EventStream::open(proxy.address, "/key/a")).collect();
    streams.iter_mut().for_each(|stream| _ = stream.next_event());
    let before = redis.count_reads();
    for number in 1..=20 {
        let value = format!("v{number}");
        redis.set("a", &value);
        streams.iter_mut().for_each(|stream| assert_eq!(stream.next_data(), put(&value)));
    }
    assert!(redis.count_reads() - before <= 20, "{} reads for 20 changes", redis.count_reads() - before);
    // A request for the key is a hit now.
    assert!(proxy.get("/raw/a").header("cache-status").contains("; hit"));
}

/// Without tracking, changes are found by one read in `CACHE_TTL`, and the response says so.
#[test]
fn untracked_changes_are_polled() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "300ms")]);
    redis.set("a", "0");
    let mut streams: Vec<EventStream> = (0..10).map(|_| EventStream::open(proxy.address, "/key/a")).collect();
    streams.iter_mut().for_each(|stream| _ = stream.next_event());
    assert!(streams[0].head.contains("Cache-Status: segment-redis-proxy; detail=polled\r\n"));
    let (before, start) = (redis.count_reads(), std::time::Instant::now());
    for value in ["x", "y", "z"] {
        redis.set("a", value);
        streams.iter_mut().for_each(|stream| assert_eq!(stream.next_data(), put(value)));
    }
    let most = start.elapsed().as_millis() as u64 / 300 + 2;
    assert!(redis.count_reads() - before <= most, "{} reads, not {most}", redis.count_reads() - before);
}

/// A stream follows the responses to the requests before it, and is the last of its connection.
#[test]
fn stream_follows_earlier_responses() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    redis.run(&["MSET", "a", "1", "b", "2"]);
    let mut client = proxy.connect();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let watch = get("/watch?key=b");
    client.send([get("/raw/a"), get("/raw/b"), watch, get("/raw/a")].concat());
    assert_eq!((client.read_response().text(), client.read_response().text()), ("1".into(), "2".into()));
    let stream = client.into_stream();
    let mut stream = EventStream::read(stream);
    assert!(stream.head.starts_with("HTTP/1.1 200"), "{}", stream.head);
    assert!(stream.next_data().starts_with("{\"key\":\"b\",\"value\":2,"));
    redis.set("b", "3");
    assert_eq!(stream.next_data(), "{\"key\":\"b\",\"value\":3,\"fromCache\":false}");
}

/// Only a request that names the media type gets a stream. `HEAD` gets its head.
#[test]
fn stream_needs_named_media_type() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    redis.set("a", "1");
    let mut client = proxy.connect();
    for accept in ["*/*", "text/*", "application/json", "text/event-stream;q=0"] {
        client.send(format!("GET /key/a HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n"));
        let response = client.read_response();
        assert_eq!((response.header("content-type"), response.header("vary")), ("application/json", "Accept"));
    }
    client.send("GET /raw/a HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n");
    assert_eq!(client.read_response().header("content-type"), "application/octet-stream");
    let tracking = start_tracking_proxy(redis.port, &[]);
    for (target, proxy, detail) in
        [("/key/a", &proxy, "polled"), ("/watch?key=a", &proxy, "polled"), ("/key/a", &tracking, "tracked")]
    {
        let mut client = proxy.connect();
        client.send(format!("HEAD {target} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"));
        let response = client.read_response_to("HEAD");
        assert_eq!(response.header("content-type"), "text/event-stream");
        assert_eq!(response.header("cache-status"), format!("segment-redis-proxy; detail={detail}"));
        assert!(client.reads_eof());
    }
    let mut old = proxy.connect();
    old.send("GET /watch?key=a HTTP/1.0\r\n\r\n");
    assert!(EventStream::read(old.into_stream()).next_data().contains("\"value\":1"));
}

/// Requests without a key, or with too many, are refused.
#[test]
fn watch_needs_one_to_128_keys() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    let query = |keys: usize| (0..keys).map(|key| format!("key=k{key}")).collect::<Vec<_>>().join("&");
    let mut client: HttpClient = proxy.connect();
    for target in ["/watch".to_owned(), "/watch?keys=a".into(), "/watch?key=%".into(), format!("/watch?{}", query(129))]
    {
        assert_eq!(client.get(&target).status, 400, "{target}");
    }
    let mut stream = EventStream::open(proxy.address, &format!("/watch?{}", query(128)));
    (0..128).for_each(|_| assert_eq!(stream.next_event().expect("an event").name, "gone"));
}

/// While Redis is down, a new stream says so, and the value follows.
#[test]
fn stream_waits_for_redis() {
    let mut redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    redis.set("a", "1");
    let mut old = EventStream::open(proxy.address, "/key/a");
    old.next_event();
    redis.kill();
    wait_for("the proxy notices", || (proxy.get("/readyz").status == 503).then_some(()));
    let mut new = EventStream::open(proxy.address, "/key/b");
    redis.restart();
    redis.run(&["MSET", "a", "2", "b", "3"]);
    assert_eq!(
        old.read_until("{\"value\":2,\"fromCache\":false}").iter().filter(|event| event.name == "put").count(),
        0
    );
    assert!(new.read_until("{\"value\":3,\"fromCache\":false}").iter().all(|event| event.name == "gone"));
    assert!(new.comments.iter().any(|text| text.contains("Redis is unreachable")), "{:?}", new.comments);
}

/// A request with a body may be answered by a stream. What follows is not read.
#[test]
fn stream_ignores_body() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    let mut client = proxy.connect();
    client.send("GET /watch?key=a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n");
    let mut stream = client.into_stream();
    stream.get_mut().write_all(b"abcde").expect("the proxy reads");
    assert_eq!(EventStream::read(stream).next_event().expect("an event").name, "gone");
}
