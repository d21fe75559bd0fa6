//! What RFC 9110 and RFC 9112 ask of a server beside values: methods, targets, expectations, hosts, limits, and that who is refused
//! gets to read why.

use crate::common::{HttpClient, Proxy, Redis, Response};

fn start(variables: &[(&str, &str)]) -> (Redis, Proxy) {
    let redis = Redis::start();
    redis.set("a", "value");
    let proxy = Proxy::start(&redis, variables);
    (redis, proxy)
}

/// The response to these bytes on a connection of their own, which is closed behind it.
fn last_response(proxy: &Proxy, bytes: impl AsRef<[u8]>) -> Response {
    let mut client = proxy.connect();
    client.send(bytes);
    let response = client.read_response();
    assert_eq!(response.header("connection"), "close", "{response:?}");
    assert!(client.reads_eof(), "it stays open after {response:?}");
    response
}

fn ask(client: &mut HttpClient, line: &str) -> Response {
    client.send(format!("{line} HTTP/1.1\r\nHost: test\r\n\r\n"));
    client.read_response()
}

#[test]
fn methods_are_answered_as_the_standard_says() {
    let (redis, proxy) = start(&[]);
    let mut client = proxy.connect();
    for (line, status, allow) in [
        ("OPTIONS *", 200, true),
        ("OPTIONS /key/a", 200, true),
        ("OPTIONS /raw/none", 200, true),
        ("OPTIONS /nothing", 404, false),
        ("POST /key/a", 405, true),
        ("PUT /raw/a", 405, true),
        ("PATCH /raw/a", 405, true),
        ("DELETE /raw/a", 405, true),
        ("TRACE /raw/a", 405, true),
    ] {
        let response = ask(&mut client, line);
        assert_eq!(response.status, status, "{line}");
        assert_eq!(response.header("allow"), if allow { "GET, HEAD, OPTIONS" } else { "" }, "{line}");
        assert_eq!(response.body.is_empty(), status == 200, "{response:?}");
        assert!(response.headers.keys().all(|name| !name.starts_with("access-control")), "{response:?}");
    }
    // What is no method that is known may be the rest of something else, and behind CONNECT anything may come.
    for (line, status) in [("BREW /key/a", 501), ("get /key/a", 501), ("0GET /raw/a", 501), ("CONNECT other:443", 405)]
    {
        let head = format!("{line} HTTP/1.1\r\nHost: test\r\n\r\n");
        assert_eq!(last_response(&proxy, format!("{head}GET /raw/a HTTP/1.1\r\nHost: test\r\n\r\n")).status, status);
    }
    // What a client asks a server to reflect stays where it is.
    client.send("TRACE /raw/a HTTP/1.1\r\nHost: test\r\nCookie: secret\r\n\r\n");
    let traced = client.read_response();
    assert!(!traced.text().contains("secret") && !traced.headers.values().any(|value| value.contains("secret")));
    // Nor is a page of another origin told that it may read here.
    client.send(
        "OPTIONS /key/a HTTP/1.1\r\nHost: test\r\nOrigin: http://other\r\nAccess-Control-Request-Method: GET\r\n\r\n",
    );
    assert!(client.read_response().headers.keys().all(|name| !name.starts_with("access-control")));
    client.send("GET /raw/a HTTP/1.1\r\nHost: test\r\nOrigin: http://other\r\n\r\n");
    let response = client.read_response();
    assert!(response.text() == "value" && response.headers.keys().all(|name| !name.starts_with("access-control")));
    assert_eq!(redis.count_reads(), 1);
}

#[test]
fn targets_may_be_urls_and_must_be_ascii() {
    let (_redis, proxy) = start(&[]);
    let mut client = proxy.connect();
    for target in ["http://other/raw/a", "HTTP://[::1]:80/raw/a?query", "/raw/a?query", "/raw/%61"] {
        assert_eq!(ask(&mut client, &format!("GET {target}")).text(), "value", "{target}");
    }
    assert_eq!(ask(&mut client, "GET http://other").header("content-type"), "text/html; charset=utf-8");
    assert_eq!(ask(&mut client, "GET https://other/raw/a").status, 421);
    for target in ["*", "raw/a", "/raw/a#b", "/raw/é", "http:///raw/a", "http://user@other/raw/a", "ftp://other/raw/a"]
    {
        let refused = last_response(&proxy, format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n"));
        assert_eq!(refused.status, 400, "{target}");
    }
}

#[test]
fn what_is_too_large_is_told_which() {
    let (_redis, proxy) = start(&[]);
    let long = "x".repeat(9000);
    let fields = "A: b\r\n".repeat(100);
    let endless = "x".repeat(100_000);
    for (bytes, status) in [
        (format!("GET /raw/{long} HTTP/1.1\r\nHost: test\r\n\r\n"), 414),
        (format!("GET /raw/{endless}"), 414),
        (format!("GET /raw/a HTTP/1.1\r\nHost: test\r\n{fields}\r\n"), 431),
        (format!("GET /raw/a HTTP/1.1\r\nHost: test\r\nX: {long}\r\nY: {long}\r\n\r\n"), 431),
        (format!("GET /raw/a HTTP/1.1\r\nHost: test\r\nX: {endless}"), 431),
    ] {
        assert_eq!(last_response(&proxy, bytes).status, status);
    }
    let mut client = proxy.connect();
    assert_eq!(ask(&mut client, &format!("GET /raw/{}", "x".repeat(8192 - 5))).status, 404);
    assert_eq!(proxy.get("/raw/a").text(), "value");
}

#[test]
fn other_protocols_are_told_so() {
    let (_redis, proxy) = start(&[]);
    let hello = b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03".repeat(20);
    assert_eq!(last_response(&proxy, hello).status, 400);
    assert_eq!(last_response(&proxy, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").status, 505);
    assert_eq!(last_response(&proxy, "GET /raw/a HTTP/3.0\r\n\r\n").status, 505);
    assert_eq!(last_response(&proxy, "GET /raw/a\r\n\r\n").status, 400);
    assert_eq!(last_response(&proxy, "SSH-2.0-OpenSSH_9.2\r\n").status, 400);
    // Who asks for a head alone gets no more, also where it is wrong.
    let mut client = proxy.connect();
    client.send("HEAD /raw/a HTTP/1.1\r\n\r\n");
    assert_eq!(client.read_response_to("HEAD").status, 400);
    assert!(client.reads_eof(), "a body came");
}

#[test]
fn an_expectation_never_hangs() {
    let (_redis, proxy) = start(&[]);
    for framing in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
        let head = format!("GET /raw/a HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\n{framing}\r\n\r\n");
        let response = last_response(&proxy, head);
        assert_eq!(response.text(), "value", "{framing}");
    }
    let refused = last_response(&proxy, "GET /raw/a HTTP/1.1\r\nHost: test\r\nExpect: miracles\r\n\r\n");
    assert_eq!(refused.status, 417);
    // Without a body there is nothing to wait for.
    let mut client = proxy.connect();
    client.send("GET /raw/a HTTP/1.1\r\nHost: test\r\nExpect: 100-Continue\r\n\r\n");
    assert_eq!(client.read_response().text(), "value");
    assert_eq!(client.get("/raw/a").text(), "value");
}

/// Values have no entity tag: `*` matches each that there is, and a list of tags none (RFC 9110, section 13.1).
#[test]
fn preconditions_apply_to_existing_values() {
    let (redis, proxy) = start(&[("CACHE_TTL", "600")]);
    redis.set("long", "x".repeat(50_000));
    let mut client = proxy.connect();
    let mut status = |method: &str, path: &str, field: &str| {
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: test\r\n{field}\r\n\r\n"));
        let response = client.read_response_to(method);
        assert!(response.status == 200 || response.body.len() < 200, "{response:?}");
        (response.status, response.header("cache-control").to_owned())
    };
    // The first of each key is a miss, all others are hits.
    for path in ["/raw/a", "/key/a", "/raw/long", "/key/long"] {
        for method in ["GET", "HEAD"] {
            let (code, control) = status(method, path, "If-None-Match: *");
            assert!(code == 304 && control.starts_with("max-age="), "{method} {path}: {code} {control}");
            assert_eq!(status(method, path, "If-Match: \"tag\""), (412, "no-store".into()), "{method} {path}");
            assert_eq!(status(method, path, "If-Match: *").0, 200, "{method} {path}");
            assert_eq!(status(method, path, "If-None-Match: \"tag\"").0, 200, "{method} {path}");
        }
    }
    // None of these is a failure: 2 misses, and 30 hits.
    let metrics = proxy.get("/metrics").text();
    for (outcome, count) in [("hit", 30), ("miss", 2), ("failed", 0)] {
        let sample = format!("segment_requests_total{{protocol=\"http\",outcome=\"{outcome}\"}} {count}\n");
        assert!(metrics.contains(&sample), "{outcome}: {metrics}");
    }
    assert!(metrics.contains("segment_errors_total{kind=\"too_much_held\"} 0\n"), "{metrics}");
    for field in ["If-None-Match: *", "If-Match: \"tag\"", "If-Match: *"] {
        assert_eq!(status("GET", "/raw/missing", field), (404, "no-store".into()), "{field}");
    }
}

/// Versions 1.2 to 1.9 are read as 1.1 (RFC 9110, section 2.5): the connection stays open, and chunks are chunks.
#[test]
fn later_minor_versions_are_served() {
    let (_redis, proxy) = start(&[]);
    let mut client = proxy.connect();
    for minor in 2..=9 {
        client.send(format!("GET /raw/a HTTP/1.{minor}\r\nHost: test\r\n\r\n"));
        assert_eq!(client.read_response().text(), "value", "1.{minor}");
        let chunks = "Transfer-Encoding: chunked\r\n\r\n4\r\nGET \r\n0\r\n\r\n";
        client.send(format!("GET /raw/a HTTP/1.{minor}\r\nHost: test\r\n{chunks}"));
        assert_eq!(client.read_response().text(), "value", "1.{minor}");
    }
    assert_eq!(last_response(&proxy, "GET /raw/a HTTP/1.10\r\nHost: test\r\n\r\n").status, 400);
}

/// A list may be empty, and may come in several fields (RFC 9110, section 5.6.1).
#[test]
fn expectations_are_a_list() {
    let (_redis, proxy) = start(&[]);
    let mut client = proxy.connect();
    for field in ["Expect:", "Expect: 100-continue\r\nExpect: 100-continue", "Expect: ,100-continue"] {
        client.send(format!("GET /raw/a HTTP/1.1\r\nHost: test\r\n{field}\r\n\r\n"));
        assert_eq!(client.read_response().text(), "value", "{field}");
    }
    let mixed = "GET /raw/a HTTP/1.1\r\nHost: test\r\nExpect: 100-continue, more\r\n\r\n";
    assert_eq!(last_response(&proxy, mixed).status, 417);
}

/// A request whose body is broken has not been one: it is not looked up either.
#[test]
fn a_chunked_body_must_be_right_to_its_end() {
    let (redis, proxy) = start(&[]);
    let head = "GET /raw/a HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in [
        "\r\n\r\n",
        "0x5\r\nhello",
        "-1\r\n",
        "5\nhello",
        "5 \r\nhello",
        "5;\x01\r\n",
        "12345678901234567\r\n",
        "0\r\nno field\r\n",
    ] {
        assert_eq!(last_response(&proxy, format!("{head}{body}")).status, 400, "{body:?}");
    }
    let long = format!("ffff\r\n{}\r\n", "x".repeat(0xffff)).repeat(17);
    assert_eq!(last_response(&proxy, format!("{head}{long}")).status, 413);
    assert_eq!(redis.count_reads(), 0, "it was looked up before it was whole");
    let mut client = proxy.connect();
    client.send(format!("{head}5\r\nhello\r\n"));
    client.send("0\r\n\r\n");
    assert_eq!(client.read_response().text(), "value");
    client.send(format!("{}0\r\n\r\n", head.replace("Host", "Connection: close\r\nHost")));
    assert_eq!(client.read_response().header("connection"), "close");
    assert!(client.reads_eof());
}

#[test]
fn the_good_ones_before_a_bad_one_are_answered() {
    let (_redis, proxy) = start(&[]);
    let mut client = proxy.connect();
    let good = "GET /raw/a HTTP/1.1\r\nHost: test\r\n\r\n";
    client.send(format!("{good}{good}GET /raw/a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n{good}"));
    assert_eq!([client.read_response().text(), client.read_response().text()], ["value", "value"]);
    let bad = client.read_response();
    assert_eq!((bad.status, bad.header("connection")), (400, "close"));
    assert!(client.reads_eof(), "what stands behind it was answered");
}

/// Refused while it uploads, a client reads why: it is not reset, however much it has under way.
#[test]
fn a_refusal_reaches_who_uploads() {
    let (_redis, proxy) = start(&[]);
    let kib = vec![b'x'; 64 * 1024];
    let length = "Content-Length: 20000000";
    for (line, fields, status) in [
        ("POST /key/a", length, 405),
        ("BREW /key/a", length, 501),
        ("POST /nothing", length, 404),
        ("GET /raw/a", length, 200),
        ("GET /raw/a", "Transfer-Encoding: gzip", 400),
        ("GET /raw/a", "Transfer-Encoding: gzip, chunked", 501),
        ("GET /raw/a", "Content-Length: 20000000\r\nContent-Length: 20000000", 400),
    ] {
        let mut client = proxy.connect();
        client.send(format!("{line} HTTP/1.1\r\nHost: test\r\n{fields}\r\n\r\n"));
        (0..300).for_each(|_| client.send(&kib));
        let response = client.read_response();
        assert_eq!((response.status, response.header("connection")), (status, "close"), "{line} {fields}");
        assert!(client.reads_eof());
    }
}

#[test]
fn requests_for_other_hosts_are_turned_down_before_any_lookup() {
    let (redis, proxy) = start(&[("ALLOWED_HOSTS", "cache.example, [::1],localhost")]);
    let mut client = proxy.connect();
    let mut with_host = |host: &str, target: &str| {
        client.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        client.read_response()
    };
    for host in ["evil.example", "", "cache.example.evil.example", "127.0.0.1", "localhost.evil:8080"] {
        let refused = with_host(host, "/raw/a");
        assert_eq!(refused.status, 421, "{host}");
        assert!(refused.text().contains("ALLOWED_HOSTS"), "{refused:?}");
        assert_eq!(with_host(host, "/nothing").status, 421, "{host}");
    }
    // The host in the target goes before the other (RFC 9112, section 3.2.2).
    assert_eq!(with_host("cache.example", "http://evil.example/raw/a").status, 421);
    assert_eq!(redis.count_reads(), 0, "a foreign host's key was looked up");
    for host in ["cache.example", "CACHE.example.", "cache.example:8080", "[::1]:1", "localhost"] {
        assert_eq!(with_host(host, "/raw/a").text(), "value", "{host}");
    }
    assert_eq!(with_host("evil.example", "http://cache.example:1/raw/a").text(), "value");
    assert_eq!(last_response(&proxy, "GET /raw/a HTTP/1.0\r\n\r\n").status, 421);
    assert_eq!(last_response(&proxy, "GET /raw/a HTTP/1.0\r\nHost: localhost\r\n\r\n").text(), "value");
}
