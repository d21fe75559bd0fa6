//! Tests of HTTP semantics in RFC 9110 and RFC 9112: methods, targets, expectations, hosts, limits.
//!
//! A refused client must be able to read the reason.

use crate::common::{HttpClient, Proxy, Redis, Response};

fn start(variables: &[(&str, &str)]) -> (Redis, Proxy) {
    let redis = Redis::start();
    redis.set("a", "value");
    let proxy = Proxy::start(&redis, variables);
    (redis, proxy)
}

/// Sends bytes on a new connection and returns the response, which must close the connection.
fn last_response(proxy: &Proxy, bytes: impl AsRef<[u8]>) -> Response {
    let mut client = proxy.connect();
    client.send(bytes);
    let response = client.read_response();
    assert_eq!(response.header("connection"), "close", "{response:?}");
    assert!(client.reads_eof(), "the connection stays open after {response:?}");
    response
}

/// Sends a request with this request line, without version, and returns the response.
fn send_line(client: &mut HttpClient, line: &str) -> Response {
    client.send(format!("{line} HTTP/1.1\r\nHost: test\r\n\r\n"));
    client.read_response()
}

/// Each method gets the status and the `Allow` of RFC 9110.
#[test]
fn methods_get_status_of_rfc_9110() {
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
        let response = send_line(&mut client, line);
        assert_eq!(response.status, status, "{line}");
        assert_eq!(response.header("allow"), if allow { "GET, HEAD, OPTIONS" } else { "" }, "{line}");
        assert_eq!(response.body.is_empty(), status == 200, "{response:?}");
        assert!(response.headers.keys().all(|name| !name.starts_with("access-control")), "{response:?}");
    }
    // An unknown method may be the rest of a malformed message, and any bytes may follow CONNECT.
    for (line, status) in [("BREW /key/a", 501), ("get /key/a", 501), ("0GET /raw/a", 501), ("CONNECT other:443", 405)]
    {
        let head = format!("{line} HTTP/1.1\r\nHost: test\r\n\r\n");
        assert_eq!(last_response(&proxy, format!("{head}GET /raw/a HTTP/1.1\r\nHost: test\r\n\r\n")).status, status);
    }
    // The proxy does not reflect a TRACE request.
    client.send("TRACE /raw/a HTTP/1.1\r\nHost: test\r\nCookie: secret\r\n\r\n");
    let traced = client.read_response();
    assert!(!traced.text().contains("secret") && !traced.headers.values().any(|value| value.contains("secret")));
    // No response permits a page of another origin to read it.
    client.send(
        "OPTIONS /key/a HTTP/1.1\r\nHost: test\r\nOrigin: http://other\r\nAccess-Control-Request-Method: GET\r\n\r\n",
    );
    assert!(client.read_response().headers.keys().all(|name| !name.starts_with("access-control")));
    client.send("GET /raw/a HTTP/1.1\r\nHost: test\r\nOrigin: http://other\r\n\r\n");
    let response = client.read_response();
    assert!(response.text() == "value" && response.headers.keys().all(|name| !name.starts_with("access-control")));
    assert_eq!(redis.count_reads(), 1);
}

/// A target may be a URL and must consist of ASCII characters.
#[test]
fn targets_may_be_ascii_urls() {
    let (_redis, proxy) = start(&[]);
    let mut client = proxy.connect();
    for target in ["http://other/raw/a", "HTTP://[::1]:80/raw/a?query", "/raw/a?query", "/raw/%61"] {
        assert_eq!(send_line(&mut client, &format!("GET {target}")).text(), "value", "{target}");
    }
    assert_eq!(send_line(&mut client, "GET http://other").header("content-type"), "text/html; charset=utf-8");
    assert_eq!(send_line(&mut client, "GET https://other/raw/a").status, 421);
    for target in ["*", "raw/a", "/raw/a#b", "/raw/é", "http:///raw/a", "http://user@other/raw/a", "ftp://other/raw/a"]
    {
        let refused = last_response(&proxy, format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n"));
        assert_eq!(refused.status, 400, "{target}");
    }
}

/// A target that is too long gets 414, a head that is too large 431.
#[test]
fn oversized_parts_get_own_status() {
    let (_redis, proxy) = start(&[]);
    let long = "x".repeat(9000);
    let fields = "A: b\r\n".repeat(100);
    let huge = "x".repeat(100_000);
    for (bytes, status) in [
        (format!("GET /raw/{long} HTTP/1.1\r\nHost: test\r\n\r\n"), 414),
        (format!("GET /raw/{huge}"), 414),
        (format!("GET /raw/a HTTP/1.1\r\nHost: test\r\n{fields}\r\n"), 431),
        (format!("GET /raw/a HTTP/1.1\r\nHost: test\r\nX: {long}\r\nY: {long}\r\n\r\n"), 431),
        (format!("GET /raw/a HTTP/1.1\r\nHost: test\r\nX: {huge}"), 431),
    ] {
        assert_eq!(last_response(&proxy, bytes).status, status);
    }
    let mut client = proxy.connect();
    assert_eq!(send_line(&mut client, &format!("GET /raw/{}", "x".repeat(8192 - 5))).status, 404);
    assert_eq!(proxy.get("/raw/a").text(), "value");
}

/// TLS, HTTP/2, HTTP/3, HTTP/0.9 and SSH get an HTTP error.
#[test]
fn other_protocols_get_http_error() {
    let (_redis, proxy) = start(&[]);
    let hello = b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03".repeat(20);
    assert_eq!(last_response(&proxy, hello).status, 400);
    assert_eq!(last_response(&proxy, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").status, 505);
    assert_eq!(last_response(&proxy, "GET /raw/a HTTP/3.0\r\n\r\n").status, 505);
    assert_eq!(last_response(&proxy, "GET /raw/a\r\n\r\n").status, 400);
    assert_eq!(last_response(&proxy, "SSH-2.0-OpenSSH_9.2\r\n").status, 400);
    // The error response to HEAD has no body.
    let mut client = proxy.connect();
    client.send("HEAD /raw/a HTTP/1.1\r\n\r\n");
    assert_eq!(client.read_response_to("HEAD").status, 400);
    assert!(client.reads_eof(), "the response has a body");
}

/// A client that sends `Expect` always gets a final response.
#[test]
fn expectation_never_hangs() {
    let (_redis, proxy) = start(&[]);
    for framing in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
        let head = format!("GET /raw/a HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\n{framing}\r\n\r\n");
        let response = last_response(&proxy, head);
        assert_eq!(response.text(), "value", "{framing}");
    }
    let refused = last_response(&proxy, "GET /raw/a HTTP/1.1\r\nHost: test\r\nExpect: miracles\r\n\r\n");
    assert_eq!(refused.status, 417);
    // Without a body the expectation has no effect.
    let mut client = proxy.connect();
    client.send("GET /raw/a HTTP/1.1\r\nHost: test\r\nExpect: 100-Continue\r\n\r\n");
    assert_eq!(client.read_response().text(), "value");
    assert_eq!(client.get("/raw/a").text(), "value");
}

/// `*` matches every existing value, and a list of tags matches none (RFC 9110, section 13.1).
///
/// `*` matches each existing value, and the tag of another server matches none.
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
    // The first request for each key is a miss, all others are hits.
    for path in ["/raw/a", "/key/a", "/raw/long", "/key/long"] {
        for method in ["GET", "HEAD"] {
            let (code, control) = status(method, path, "If-None-Match: *");
            assert!(code == 304 && control.starts_with("max-age="), "{method} {path}: {code} {control}");
            assert_eq!(status(method, path, "If-Match: \"tag\""), (412, "no-store".into()), "{method} {path}");
            assert_eq!(status(method, path, "If-Match: *").0, 200, "{method} {path}");
            assert_eq!(status(method, path, "If-None-Match: \"tag\"").0, 200, "{method} {path}");
        }
    }
    // None of these requests failed: 2 misses and 30 hits.
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

/// Versions 1.2 to 1.9 are served as 1.1 (RFC 9110, section 2.5).
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

/// `Expect` is a list that may be empty and may span several fields (RFC 9110, section 5.6.1).
#[test]
fn expectations_form_a_list() {
    let (_redis, proxy) = start(&[]);
    let mut client = proxy.connect();
    for field in ["Expect:", "Expect: 100-continue\r\nExpect: 100-continue", "Expect: ,100-continue"] {
        client.send(format!("GET /raw/a HTTP/1.1\r\nHost: test\r\n{field}\r\n\r\n"));
        assert_eq!(client.read_response().text(), "value", "{field}");
    }
    let mixed = "GET /raw/a HTTP/1.1\r\nHost: test\r\nExpect: 100-continue, more\r\n\r\n";
    assert_eq!(last_response(&proxy, mixed).status, 417);
}

/// A request with a malformed chunked body is refused, and its key is not looked up.
#[test]
fn malformed_chunked_body_is_refused() {
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
    assert_eq!(redis.count_reads(), 0, "the key was looked up before the body was complete");
    let mut client = proxy.connect();
    client.send(format!("{head}5\r\nhello\r\n"));
    client.send("0\r\n\r\n");
    assert_eq!(client.read_response().text(), "value");
    client.send(format!("{}0\r\n\r\n", head.replace("Host", "Connection: close\r\nHost")));
    assert_eq!(client.read_response().header("connection"), "close");
    assert!(client.reads_eof());
}

/// Valid requests before a malformed one are answered.
#[test]
fn valid_requests_before_malformed_are_answered() {
    let (_redis, proxy) = start(&[]);
    let mut client = proxy.connect();
    let valid = "GET /raw/a HTTP/1.1\r\nHost: test\r\n\r\n";
    client.send(format!("{valid}{valid}GET /raw/a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n{valid}"));
    assert_eq!([client.read_response().text(), client.read_response().text()], ["value", "value"]);
    let refused = client.read_response();
    assert_eq!((refused.status, refused.header("connection")), (400, "close"));
    assert!(client.reads_eof(), "a request after the malformed one was answered");
}

/// A client that is refused during an upload receives the response instead of a reset.
#[test]
fn refusal_reaches_uploading_client() {
    let (_redis, proxy) = start(&[]);
    let chunk = vec![b'x'; 64 * 1024];
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
        (0..300).for_each(|_| client.send(&chunk));
        let response = client.read_response();
        assert_eq!((response.status, response.header("connection")), (status, "close"), "{line} {fields}");
        assert!(client.reads_eof());
    }
}

/// A request for a host outside of `ALLOWED_HOSTS` is refused before a lookup.
#[test]
fn foreign_hosts_are_refused_before_lookup() {
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
    // The host in the target takes precedence over Host (RFC 9112, section 3.2.2).
    assert_eq!(with_host("cache.example", "http://evil.example/raw/a").status, 421);
    assert_eq!(redis.count_reads(), 0, "a key for a foreign host was looked up");
    for host in ["cache.example", "CACHE.example.", "cache.example:8080", "[::1]:1", "localhost"] {
        assert_eq!(with_host(host, "/raw/a").text(), "value", "{host}");
    }
    assert_eq!(with_host("evil.example", "http://cache.example:1/raw/a").text(), "value");
    assert_eq!(last_response(&proxy, "GET /raw/a HTTP/1.0\r\n\r\n").status, 421);
    assert_eq!(last_response(&proxy, "GET /raw/a HTTP/1.0\r\nHost: localhost\r\n\r\n").text(), "value");
}
