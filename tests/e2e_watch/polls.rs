//! Long polls: requests that wait until a value differs from the one that the client has.

use crate::common::admin::read_metric;
use crate::common::freshness::{start_tracking_proxy, wait_until_cached};
use crate::common::{HttpClient, Proxy, Redis, Response, wait_until_idle};
use std::time::{Duration, Instant};

/// Sends a long poll with the tag of a value, and these further fields.
fn send_poll(client: &mut HttpClient, path: &str, tag: &str, wait: &str) {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\nIf-None-Match: {tag}\r\nPrefer: {wait}\r\n\r\n"));
}

fn poll(client: &mut HttpClient, path: &str, tag: &str, wait: &str) -> Response {
    send_poll(client, path, tag, wait);
    client.read_response()
}

fn tag_of(client: &mut HttpClient, path: &str) -> String {
    client.get(path).header("etag").to_owned()
}

/// A poll ends with the new value, or with 304 when its time is over.
#[test]
fn poll_ends_with_change_or_time() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    redis.set("a", "1");
    let mut client = proxy.connect();
    for path in ["/key/a", "/raw/a"] {
        let tag = tag_of(&mut client, path);
        let start = Instant::now();
        let response = poll(&mut client, path, &tag, "wait=1");
        assert_eq!((response.status, response.header("etag")), (304, tag.as_str()));
        assert_eq!(response.header("preference-applied"), "wait=1");
        assert_eq!(response.header("cache-control"), "no-cache");
        assert!(start.elapsed() >= Duration::from_millis(900));
        // Writes of the same value are no changes.
        send_poll(&mut client, path, &tag, "respond-async, wait=60");
        redis.set("a", "1");
        wait_until_idle(&redis, &proxy);
        assert!(!client.has_input());
        redis.set("a", "2");
        let response = client.read_response();
        assert_eq!((response.status, response.header("preference-applied")), (200, "wait=60"));
        assert!(response.text().contains('2') && response.header("etag") != tag);
        redis.set("a", "1");
        send_poll(&mut client, path, response.header("etag"), "wait=60");
        let response = client.read_response();
        assert_eq!((response.status, response.header("etag")), (200, tag.as_str()));
    }
}

/// A poll for another value than the present one, or for a missing key, does not wait.
#[test]
fn poll_with_old_tag_returns_at_once() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    let mut client = proxy.connect();
    redis.set("a", "1");
    for (tag, wait, status) in [
        ("\"0123456789abcdef\"", "wait=300", 200),
        ("\"0123456789abcdef\"", "wait=1000000", 200),
        ("W/\"65cd25028f98f158\"", "wait=0", 304),
        ("W/\"65cd25028f98f158\"", "wait", 304),
        ("W/\"65cd25028f98f158\"", "respond-async", 304),
    ] {
        assert_eq!(poll(&mut client, "/key/a", tag, wait).status, status, "{tag} {wait}");
    }
    assert_eq!(poll(&mut client, "/key/missing", "*", "wait=300").status, 404);
    redis.run(&["RPUSH", "list", "1"]);
    assert_eq!(poll(&mut client, "/key/list", "*", "wait=300").status, 409);
    // Without a tag there is nothing to wait for.
    client.send("GET /key/a HTTP/1.1\r\nHost: x\r\nPrefer: wait=300\r\n\r\n");
    let response = client.read_response();
    assert_eq!((response.status, response.header("preference-applied")), (200, ""));
    // A key that is deleted ends the poll.
    send_poll(&mut client, "/key/a", "*", "wait=300");
    redis.run(&["DEL", "a"]);
    assert_eq!(client.read_response().status, 404);
}

/// Metrics count a poll by its response: an error is a failure, and a 304 is no event.
#[test]
fn polls_count_by_their_response() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    redis.set("a", "1");
    redis.run(&["RPUSH", "list", "1"]);
    let mut client = proxy.connect();
    let tag = tag_of(&mut client, "/key/a");
    for (path, tag, status, counts) in [
        ("/key/list", "*", 409, [1.0, 0.0, 1.0]),
        ("/key/a", tag.as_str(), 304, [1.0, 1.0, 1.0]),
        ("/key/a", "\"1\"", 200, [1.0, 2.0, 2.0]),
    ] {
        assert_eq!(poll(&mut client, path, tag, "wait=1").status, status);
        let outcome = |name| format!("segment_requests_total{{protocol=\"http\",outcome=\"{name}\"}}");
        let names = [outcome("failed"), outcome("watched"), "segment_watch_events_total".into()];
        assert_eq!(names.map(|name| read_metric(&proxy, &name)), counts, "{path} {tag}");
    }
}

/// Responses keep the order of their requests, and the connection stays open.
#[test]
fn pipelined_requests_wait_for_poll() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    redis.run(&["MSET", "a", "1", "b", "2"]);
    let mut client = proxy.connect();
    let tags = ["/key/a", "/key/b"].map(|path| tag_of(&mut client, path));
    send_poll(&mut client, "/key/a", &tags[0], "wait=60");
    send_poll(&mut client, "/key/b", &tags[1], "wait=60");
    client.send("GET /raw/b HTTP/1.1\r\nHost: x\r\n\r\n");
    wait_until_idle(&redis, &proxy);
    redis.set("b", "3");
    wait_until_idle(&redis, &proxy);
    assert!(!client.has_input());
    redis.set("a", "4");
    assert_eq!(client.read_response().text(), "{\"value\":4,\"fromCache\":false}");
    assert!(client.read_response().text().starts_with("{\"value\":3,"));
    assert_eq!(client.read_response().text(), "2", "it was read before the change");
    assert_eq!(client.get("/raw/b").text(), "3");
}

/// A poll that follows one that ends at once waits for its own key.
#[test]
fn poll_after_ended_poll_waits() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    redis.run(&["MSET", "a", "1", "b", "2"]);
    let mut client = proxy.connect();
    let tags = ["/key/a", "/key/b"].map(|path| tag_of(&mut client, path));
    wait_until_cached(&mut client, "/raw/a", "1");
    let requests = [("a", &tags[1]), ("b", &tags[1]), ("a", &tags[0])];
    let request =
        |(key, tag)| format!("GET /key/{key} HTTP/1.1\r\nHost: x\r\nIf-None-Match: {tag}\r\nPrefer: wait=60\r\n\r\n");
    client.send(requests.map(request).concat());
    assert_eq!(client.read_response().text(), "{\"value\":1,\"fromCache\":true}");
    wait_until_idle(&redis, &proxy);
    assert!(!client.has_input());
    redis.set("b", "3");
    assert_eq!(client.read_response().text(), "{\"value\":3,\"fromCache\":false}");
    redis.set("a", "4");
    assert_eq!(client.read_response().text(), "{\"value\":4,\"fromCache\":false}");
}

/// `HEAD` polls too. A poll that may not read Redis does not wait.
#[test]
fn other_requests_poll_alike() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "100ms")]);
    redis.set("a", "1");
    let mut client = proxy.connect();
    let tag = tag_of(&mut client, "/key/a");
    let fields = format!("Host: x\r\nIf-None-Match: {tag}\r\nPrefer: wait=60\r\n");
    client.send(format!("HEAD /key/a HTTP/1.1\r\n{fields}\r\n"));
    redis.set("a", "2");
    let response = client.read_response_to("HEAD");
    assert_eq!((response.status, response.header("content-length")), (200, "29"));
    client.send(format!("GET /key/b HTTP/1.1\r\n{fields}Cache-Control: only-if-cached\r\n\r\n"));
    assert_eq!(client.read_response().status, 504);
    client.send(format!("GET /keys?key=a HTTP/1.1\r\n{fields}\r\n"));
    assert_eq!(client.read_response().status, 200);
    let chunked = format!("GET /key/a HTTP/1.1\r\n{fields}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    client.send(chunked);
    let response = client.read_response();
    assert_eq!((response.status, response.header("preference-applied")), (200, ""));
}
