//! Tests of HTTP responses: values, errors, keys, connections, bodies, pipelines.

use crate::common::{Proxy, Redis};

fn start() -> (Redis, Proxy) {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    (redis, proxy)
}

/// A value is returned as JSON or raw bytes, first from Redis and then from the cache.
#[test]
fn value_is_json_or_raw_bytes() {
    let (redis, proxy) = start();
    redis.set("a", 1);
    let mut client = proxy.connect();
    let miss = client.get("/key/a");
    assert_eq!((miss.status, miss.text().as_str()), (200, "{\"value\":1,\"fromCache\":false}"));
    assert_eq!(miss.header("cache-status"), "segment-redis-proxy; fwd=miss; stored; ttl=15");
    let hit = client.get("/key/a");
    assert_eq!((hit.status, hit.text().as_str()), (200, "{\"value\":1,\"fromCache\":true}"));
    assert!(hit.header("cache-status").starts_with("segment-redis-proxy; hit; ttl="), "{hit:?}");
    assert_eq!(hit.header("content-type"), "application/json");
    assert_eq!(hit.header("x-content-type-options"), "nosniff");
    assert!(hit.header("date").ends_with(" GMT"), "{hit:?}");
    let raw = client.get("/raw/a");
    assert_eq!((raw.text().as_str(), raw.header("content-type")), ("1", "application/octet-stream"));
    assert_eq!(redis.count_reads(), 1);
}

/// Text, binary and integer values reach the client without loss.
#[test]
fn values_keep_every_byte() {
    let (redis, proxy) = start();
    let every: Vec<u8> = (0..=255).collect();
    redis.set("text", "a\"b\\c\n\u{1}é");
    redis.set("binary", &every);
    redis.set("large", i64::MAX);
    for _ in 0..2 {
        assert!(proxy.get("/key/text").text().starts_with("{\"value\":\"a\\\"b\\\\c\\n\\u0001é\",\"fromCache\":"));
        let binary = proxy.get("/key/binary").text();
        assert!(binary.starts_with("{\"value\":\"AAECAwQFBgcICQ"), "{binary}");
        assert!(binary.contains("+/w==\",\"encoding\":\"base64\",\"fromCache\":"), "{binary}");
        assert!(proxy.get("/key/large").text().starts_with("{\"value\":\"9223372036854775807\","));
        assert_eq!(proxy.get("/raw/binary").body, every);
    }
}

/// A missing key differs from an empty string, and is not cached.
#[test]
fn missing_key_differs_from_empty_value() {
    let (redis, proxy) = start();
    redis.set("empty", "");
    let missing = proxy.get("/key/late");
    assert_eq!((missing.status, missing.text().as_str()), (404, "{\"error\":\"key not found\"}"));
    redis.set("late", "now");
    assert_eq!(proxy.get("/key/late").text(), "{\"value\":\"now\",\"fromCache\":false}");
    assert_eq!(proxy.get("/key/empty").text(), "{\"value\":\"\",\"fromCache\":false}");
    assert_eq!(proxy.get("/key/empty").text(), "{\"value\":\"\",\"fromCache\":true}");
    assert_eq!(proxy.get("/raw/empty").body, b"");
    redis.run(&["RPUSH", "list", "1"]);
    let list = proxy.get("/key/list");
    assert_eq!(list.status, 409);
    assert!(list.text().contains("does not hold a string"), "{list:?}");
    redis.run(&["DEL", "list"]);
    redis.set("list", "no longer");
    assert_eq!(proxy.get("/raw/list").text(), "no longer");
}

/// A key may contain any byte.
#[test]
fn key_may_contain_any_byte() {
    let (redis, proxy) = start();
    let long: Vec<u8> = (0..2048u32).map(|number| (number % 256) as u8).collect();
    let keys: [&[u8]; 6] = [b"nul\0nul", b"cr\r\nlf", b"a/b//c/", b"100%", &[0xff, 0xfe], &long];
    for key in keys {
        let encoded: String = key.iter().map(|byte| format!("%{byte:02x}")).collect();
        redis.set(key, key);
        for from_cache in ["fwd=miss", "hit"] {
            let response = proxy.get(&format!("/raw/{encoded}"));
            assert_eq!((response.status, response.body.as_slice()), (200, key));
            assert!(response.header("cache-status").contains(from_cache), "{response:?}");
        }
    }
    assert_eq!(proxy.get("/raw/a/b//c/?query").body, b"a/b//c/");
    assert_eq!(proxy.get("/raw/a/b//c/?query").header("cache-status").split("; ").nth(1), Some("hit"));
    redis.set("", "the empty key");
    assert_eq!(proxy.get("/raw/").text(), "the empty key");
}

/// The response to HEAD is that to GET without the body.
#[test]
fn head_is_get_without_body() {
    let (redis, proxy) = start();
    redis.set("a", "value");
    let mut client = proxy.connect();
    for (path, status, length) in
        [("/key/a", 200, "35"), ("/raw/a", 200, "5"), ("/key/none", 404, "25"), ("/nothing", 404, "99")]
    {
        client.send(format!("HEAD {path} HTTP/1.1\r\nHost: test\r\n\r\n"));
        let response = client.read_response_to("HEAD");
        assert_eq!((response.status, response.header("content-length")), (status, length), "{path}");
    }
    assert_eq!(client.get("/raw/a").text(), "value");
}

/// Unknown paths, methods and malformed requests get the status that fits.
#[test]
fn invalid_requests_get_matching_status() {
    let (_redis, proxy) = start();
    let mut client = proxy.connect();
    for (head, status) in [
        ("GET /nothing HTTP/1.1", 404),
        ("GET /keys/a HTTP/1.1", 404),
        ("POST /key/a HTTP/1.1", 405),
        ("DELETE /raw/a HTTP/1.1", 405),
        ("GET /key/%zz HTTP/1.1", 400),
    ] {
        client.send(format!("{head}\r\nHost: test\r\n\r\n"));
        let response = client.read_response();
        assert_eq!(response.status, status, "{head}");
        assert!(response.text().starts_with("{\"error\":\"") && response.text().ends_with("\"}"), "{response:?}");
        assert_eq!(response.header("allow"), if status == 405 { "GET, HEAD, OPTIONS" } else { "" });
    }
    for head in ["nonsense", "GET /key/a HTTP/1.1\r\nHost: a\r\nHost: b", "GET /key/a HTTP/1.1"] {
        let mut client = proxy.connect();
        client.send(format!("{head}\r\n\r\n"));
        let response = client.read_response();
        assert_eq!((response.status, response.header("connection")), (400, "close"), "{head}");
        assert!(client.reads_eof());
    }
}

/// HTTP version and `Connection` decide if the connection stays open.
#[test]
fn persistence_follows_version_and_header() {
    let (redis, proxy) = start();
    redis.set("a", 1);
    for (head, stays_open, connection) in [
        ("GET /raw/a HTTP/1.1\r\nHost: test", true, ""),
        ("GET /raw/a HTTP/1.1\r\nHost: test\r\nConnection: close", false, "close"),
        ("GET /raw/a HTTP/1.0", false, "close"),
        ("GET /raw/a HTTP/1.0\r\nConnection: keep-alive", true, "keep-alive"),
    ] {
        let mut client = proxy.connect();
        client.send(format!("{head}\r\n\r\n"));
        let response = client.read_response();
        assert_eq!((response.text().as_str(), response.header("connection")), ("1", connection), "{head}");
        if stays_open {
            assert_eq!(client.get("/raw/a").text(), "1", "{head}");
        } else {
            assert!(client.reads_eof(), "{head}");
        }
    }
}

/// A client that has closed its sending side still receives its responses.
#[test]
fn half_closed_client_receives_responses() {
    let (redis, proxy) = start();
    redis.set("a", 1);
    let mut client = proxy.connect();
    client.send_get("/key/a");
    client.send_get("/raw/a");
    client.stream().get_ref().shutdown(std::net::Shutdown::Write).expect("the sending side can be closed");
    assert_eq!(client.read_response().text(), "{\"value\":1,\"fromCache\":false}");
    assert_eq!(client.read_response().text(), "1");
    assert!(client.reads_eof());
}

/// A body that looks like a request is skipped, and the connection stays usable.
#[test]
fn body_is_never_parsed_as_request() {
    let (redis, proxy) = start();
    redis.set("a", 1);
    redis.set("b", 2);
    let smuggled = "GET /raw/smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let length = smuggled.len();
    let bodies = [
        format!("Content-Length: {length}\r\n\r\n{smuggled}"),
        format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{smuggled}\r\n0\r\n\r\n"),
        format!("Transfer-Encoding: chunked\r\n\r\n{length:x};a=b\r\n{smuggled}\r\n0\r\nTrailer: x\r\n\r\n"),
    ];
    for method in ["GET", "HEAD", "POST", "DELETE"] {
        for body in &bodies {
            let mut client = proxy.connect();
            client.send(format!("{method} /raw/a HTTP/1.1\r\nHost: x\r\n{body}GET /raw/b HTTP/1.1\r\nHost: x\r\n\r\n"));
            let status = if method == "GET" || method == "HEAD" { 200 } else { 405 };
            assert_eq!(client.read_response_to(method).status, status, "{method} {body}");
            assert_eq!(client.read_response().text(), "2", "{method} {body}");
            assert!(!client.has_input());
        }
    }
    for (fields, status) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
        ("Content-Length: 5\r\nContent-Length: 5", 400),
        ("Content-Length: 5, 5", 400),
        ("Transfer-Encoding: identity", 400),
        ("Content-Length: 10000000000", 200),
        ("Content-Length: 5\r\nExpect: 100-continue", 200),
    ] {
        let mut client = proxy.connect();
        client.send(format!("GET /raw/a HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n{smuggled}"));
        let response = client.read_response();
        assert_eq!((response.status, response.header("connection")), (status, "close"), "{fields}");
        assert!(client.reads_eof(), "{fields}");
    }
    assert_eq!(redis.count_reads(), 2, "a body was executed as a request");
}

/// A pipeline is answered in order, sent at once or byte by byte.
#[test]
fn pipelined_requests_are_answered_in_order() {
    let (redis, proxy) = start();
    let count = 3000;
    let mut pairs = redis::cmd("MSET");
    (0..count).for_each(|number| {
        pairs.arg(format!("k{number}")).arg(number);
    });
    pairs.exec(&mut redis.connect()).expect("MSET works");
    let mut client = proxy.connect();
    let all: String = (0..count).map(|number| format!("GET /raw/k{number} HTTP/1.1\r\nHost: x\r\n\r\n")).collect();
    for _ in 0..2 {
        let mut writer = client.stream().get_ref().try_clone().expect("a stream can be cloned");
        let bytes = all.clone();
        let sending = std::thread::spawn(move || std::io::Write::write_all(&mut writer, bytes.as_bytes()));
        for number in 0..count {
            assert_eq!(client.read_response().text(), number.to_string());
        }
        sending.join().expect("no panic").expect("the proxy reads all bytes");
    }
    let few = &all.as_bytes()[..200];
    few.iter().for_each(|byte| client.send([*byte]));
    let whole = few.windows(4).filter(|window| window == b"\r\n\r\n").count();
    (0..whole).for_each(|number| assert_eq!(client.read_response().text(), number.to_string()));
}
