//! Authentication over HTTP (`CLIENT_PASSWORD`): RFC 9110, section 11; RFC 7617; RFC 6750.

use crate::common::resp::RespClient;
use crate::common::{HttpClient, Proxy, Redis, Response, wait_for};
use std::process::Command;

const BEARER: &str = "Authorization: Bearer word\r\n";

/// `app:secret`.
const BASIC: &str = "Authorization: Basic YXBwOnNlY3JldA==\r\n";

/// Starts a Redis with the key `a`, and a proxy that requires a password.
fn start() -> (Redis, Proxy) {
    let redis = Redis::start();
    redis.set("a", "the value");
    let proxy = Proxy::start(&redis, &[("CLIENT_PASSWORD", "word\napp:secret"), ("CACHE_TTL", "600")]);
    (redis, proxy)
}

fn send(client: &mut HttpClient, line: &str, fields: &str) -> Response {
    client.send(format!("{line} HTTP/1.1\r\nHost: x\r\n{fields}\r\n"));
    client.read_response_to(line.split(' ').next().unwrap_or_default())
}

/// Without credentials each path and method gets 401 before any lookup, except the health
/// endpoints.
#[test]
fn only_health_needs_no_password() {
    let (_redis, proxy) = start();
    assert_eq!(send(&mut proxy.connect(), "GET /raw/a", BEARER).text(), "the value");
    for line in [
        "GET /raw/a",
        "HEAD /raw/a",
        "GET /key/a",
        "GET /key/missing",
        "GET /key/%",
        "GET /",
        "GET /?x",
        "GET /metrics",
        "HEAD /metrics",
        "GET /stats",
        "GET /stats?/healthz",
        "OPTIONS /raw/a",
        "OPTIONS *",
        "OPTIONS /healthz",
        "POST /healthz",
        "PUT /readyz",
        "DELETE /raw/a",
        "TRACE /healthz",
        "PATCH /nothing",
        "GET /nothing",
        "GET /healthz/",
        "GET //healthz",
        "GET /HEALTHZ",
        "GET /%68ealthz",
        "GET /healthz%00",
        "GET /healthz;x",
        "GET /healthz/../stats",
        "GET /healthz%2f..%2fstats",
        "GET /./healthz",
        "GET http://x/raw/a",
        "GET http://x/stats",
        "GET http://healthz/",
        "GET https://x/healthz",
    ] {
        let mut client = proxy.connect();
        for _ in 0..2 {
            let response = send(&mut client, line, "");
            assert_eq!(response.status, 401, "{line}: {response:?}");
            assert_eq!(response.header("cache-control"), "no-store", "{line}");
            assert_eq!(response.header("cache-status"), "", "{line}");
            assert!(!response.text().contains("the value"), "{line}");
        }
        // The connection stays open, and a password makes the same request work as without
        // CLIENT_PASSWORD.
        assert_ne!(send(&mut client, line, BEARER).status, 401, "{line}");
    }
    for line in ["CONNECT x:80", "BREW /healthz", "get /healthz"] {
        let response = send(&mut proxy.connect(), line, "");
        assert_eq!((response.status, response.header("connection")), (401, "close"), "{line}");
    }
    for line in ["GET /healthz", "HEAD /healthz", "GET /readyz", "GET /healthz?x", "GET http://x/readyz"] {
        let response = send(&mut proxy.connect(), line, "");
        assert!(response.status == 200 && !response.text().contains("word"), "{line}: {response:?}");
        let response = send(&mut proxy.connect(), line, "Authorization: Bearer wrong\r\n");
        assert_eq!(response.status, 200, "{line} with a wrong password");
    }
    // The misses are those of `a` and of `missing` with a password.
    let sample = "segment_misses_total 2\n";
    let metrics = send(&mut proxy.connect(), "GET /metrics", BASIC).text();
    assert!(metrics.contains(sample), "a request without a password was looked up: {metrics}");
}

/// A 401 has both challenges, each in a field of its own.
#[test]
fn response_401_has_both_challenges() {
    let (_redis, proxy) = start();
    let mut client = RespClient::connect(proxy.address);
    client.send("GET /raw/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let text = client.read_to_close();
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{head}");
    let challenges: Vec<&str> = head.lines().filter_map(|line| line.strip_prefix("WWW-Authenticate: ")).collect();
    assert_eq!(challenges, ["Basic realm=\"segment\", charset=\"UTF-8\"", "Bearer realm=\"segment\""]);
    assert!(body.starts_with("{\"error\":\"authentication required; "), "{body}");
}

/// Only one well-formed field with a valid password is accepted.
#[test]
fn credentials_are_accepted_or_refused() {
    let (_redis, proxy) = start();
    let cases = [
        ("Authorization: Bearer word\r\n", 200),
        ("authorization:bearer word\r\n", 200),
        ("Authorization: Basic OndvcmQ=\r\n", 200),
        ("Authorization: Basic YW55b25lOndvcmQ=\r\n", 200),
        (BASIC, 200),
        ("Authorization: Bearer secret\r\n", 401),
        ("Authorization: Bearer app:secret\r\n", 401),
        ("Authorization: Bearer wor\r\n", 401),
        ("Authorization: Bearer words\r\n", 401),
        ("Authorization: Bearer Word\r\n", 401),
        ("Authorization: Bearer\r\n", 401),
        ("Authorization: Bearer \r\n", 401),
        ("Authorization: word\r\n", 401),
        ("Authorization:\r\n", 401),
        ("Authorization: Basic word\r\n", 401),
        ("Authorization: Basic YXBwOg==\r\n", 401),
        ("Authorization: Basic YXBw\r\n", 401),
        ("Authorization: Bearer word, Bearer word\r\n", 401),
        ("Authorization: Bearer word\r\nAuthorization: Bearer word\r\n", 401),
        ("Authorization: Bearer wrong\r\nAuthorization: Bearer word\r\n", 401),
        ("Authorization: Bearer word\r\nX: y\r\nAUTHORIZATION: x\r\n", 401),
        ("Proxy-Authorization: Bearer word\r\n", 401),
        ("X-Authorization: Bearer word\r\n", 401),
        ("Cookie: Authorization=Bearer word\r\n", 401),
        ("Authorization : Bearer word\r\n", 400),
        ("Authorization: Bearer word\r\n folded\r\n", 400),
        ("Authorization: Bearer word\n", 400),
        ("Host: y\r\nAuthorization: Bearer word\r\n", 400),
    ];
    // Wrong passwords count for the address, so each case has its own.
    for (host, (fields, status)) in (1..).zip(cases) {
        assert_eq!(send(&mut proxy.connect_from(host), "GET /raw/a", fields).status, status, "{fields:?}");
        assert_eq!(
            send(&mut proxy.connect_from(host), "GET /raw/a", BEARER).status,
            200,
            "{fields:?} throttles the address"
        );
    }
}

/// Neither the header cache nor an earlier request of the connection authorises another request.
#[test]
fn authorisation_ends_with_its_request() {
    let (_redis, proxy) = start();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    let wrong = "Authorization: Bearer wrod\r\n";
    // 18 wrong passwords: after 20 the address is throttled.
    for _ in 0..9 {
        for client in [&mut one, &mut other] {
            for (fields, status) in [(BEARER, 200), ("", 401), (BEARER, 200), (wrong, 401), ("", 401), (BASIC, 200)] {
                let response = send(client, "GET /raw/a", fields);
                assert_eq!(response.status, status, "{fields}");
                assert_eq!(response.text() == "the value", status == 200, "{fields}");
            }
        }
    }
    // Pipelined requests are judged one by one.
    let head = |fields: &str| format!("GET /raw/a HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
    one.send([head(BEARER), head(""), head(BEARER), head("")].concat());
    assert_eq!([(); 4].map(|()| one.read_response().status), [200, 401, 200, 401]);
}

/// A refused request loses its body, and nothing in the body runs.
#[test]
fn body_of_refused_request_is_skipped() {
    let (_redis, proxy) = start();
    let hidden = format!("GET /raw/a HTTP/1.1\r\nHost: x\r\n{BEARER}\r\n");
    let chunked = format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
    for method in ["POST", "GET", "PUT"] {
        let mut client = proxy.connect();
        let length = hidden.len();
        for (fields, body) in [
            (format!("Content-Length: {length}\r\n"), &hidden),
            ("Transfer-Encoding: chunked\r\n".to_owned(), &chunked),
        ] {
            client.send(format!("{method} /raw/a HTTP/1.1\r\nHost: x\r\n{fields}\r\n{body}"));
            assert_eq!(client.read_response().status, 401, "{method} {fields}");
            assert_eq!(send(&mut client, "GET /healthz", "").status, 200, "{method} {fields}");
        }
        // A field in the trailer section is no credential.
        client.send(format!(
            "{method} /raw/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{BEARER}\r\n"
        ));
        assert_eq!(client.read_response().status, 401, "{method}");
        assert_eq!(send(&mut client, "GET /raw/a", BEARER).text(), "the value", "{method}");
    }
    // A chunked request runs after its body, and was authorised before it.
    let mut client = proxy.connect();
    client.send(format!("GET /raw/a HTTP/1.1\r\nHost: x\r\n{BEARER}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"));
    assert_eq!(client.read_response().text(), "the value");
    let response = send(&mut client, "POST /raw/a", "Expect: 100-continue\r\nContent-Length: 3\r\n");
    assert_eq!((response.status, response.header("connection")), (401, "close"));
}

/// Above the connection limit a client without the password sees health only.
#[test]
fn rejected_client_needs_password_too() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("CLIENT_PASSWORD", "word"), ("MAX_CONNECTIONS", "1")]);
    let mut first = proxy.connect();
    assert_eq!(send(&mut first, "GET /metrics", BEARER).status, 200);
    for path in ["/metrics", "/stats", "/"] {
        for (fields, status) in [("", 503), ("Authorization: Bearer wrong\r\n", 503), (BEARER, 200)] {
            assert_eq!(send(&mut proxy.connect(), &format!("GET {path}"), fields).status, status, "{path} {fields}");
        }
    }
    assert_eq!(send(&mut proxy.connect(), "GET /healthz", "").status, 200);
}

/// curl sends both schemes, and follows no challenge by itself.
#[test]
fn curl_authenticates() {
    let (_redis, proxy) = start();
    let url = format!("http://{}/raw/a", proxy.address);
    for (arguments, expected) in [
        (&["-u", "app:secret"][..], "the value200"),
        (&["-u", ":word"], "the value200"),
        (&["--anyauth", "-u", "me:word"], "the value200"),
        (&["-H", "Authorization: Bearer word"], "the value200"),
        (&["--oauth2-bearer", "word"], "the value200"),
        (&["-u", "app:word"], "the value200"),
        (&["-f", "-u", "app:wrong"], "401"),
        (&["-f"], "401"),
    ] {
        let output = Command::new("curl").args(["-s", "-w", "%{http_code}"]).args(arguments).arg(&url).output();
        let text = String::from_utf8_lossy(&output.expect("curl is installed").stdout).into_owned();
        assert_eq!(text, expected, "{arguments:?}");
    }
}

/// After 20 wrong passwords an address gets 429 and an error over RESP, also for the right one on
/// new connections. A connection whose last password was right goes on, over both protocols.
#[test]
fn wrong_passwords_throttle_address() {
    let (_redis, proxy) = start();
    let mut authenticated = RespClient::connect(proxy.address);
    assert_eq!(authenticated.call_text("AUTH word"), "+OK\r\n");
    let (mut kept, mut client, mut resp) = (proxy.connect(), proxy.connect(), RespClient::connect(proxy.address));
    assert_eq!(send(&mut kept, "GET /raw/a", BEARER).status, 200);
    let too_many = "-ERR too many failed authentications from this address; retry in a second\r\n";
    let wrong = "Authorization: Bearer wrong\r\n";
    let mut refused = 0;
    let response = loop {
        let response = send(&mut client, "GET /raw/a", wrong);
        if response.status != 401 {
            break response;
        }
        refused += 1;
    };
    assert!(refused >= 20, "only {refused} attempts");
    assert_eq!((response.status, response.header("retry-after")), (429, "1"));
    assert_eq!(response.header("cache-control"), "no-store");
    assert!(response.text().contains("too many failed authentications from this address"), "{response:?}");
    // One attempt is checked each 200 ms. A wrong one may use it up first.
    wait_for("a right password is refused unchecked", || {
        send(&mut client, "GET /raw/a", wrong);
        resp.send(b"*2\r\n$4\r\nAUTH\r\n$5\r\nwrong\r\n");
        resp.send(b"*2\r\n$4\r\nAUTH\r\n$4\r\nword\r\n*1\r\n$5\r\nRESET\r\n");
        resp.send(b"*1\r\n$4\r\nPING\r\n");
        let mut text = String::new();
        while !text.ends_with("-NOAUTH Authentication required.\r\n") {
            let mut buffer = [0; 1024];
            let length = std::io::Read::read(&mut resp.stream, &mut buffer).expect("replies");
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        (text == format!("{too_many}{too_many}+RESET\r\n-NOAUTH Authentication required.\r\n")).then_some(())
    });
    for _ in 0..200 {
        send(&mut client, "GET /raw/a", wrong);
        assert_eq!(send(&mut kept, "GET /raw/a", BEARER).status, 200);
        assert_eq!(authenticated.call_text("GET a"), "$9\r\nthe value\r\n");
        assert_eq!(authenticated.call_text("AUTH word"), "+OK\r\n");
    }
    // Its first wrong password is checked, and makes it like any other connection.
    assert_eq!(send(&mut kept, "GET /raw/a", wrong).status, 401);
    wait_for("the connection is throttled", || {
        send(&mut client, "GET /raw/a", wrong);
        (send(&mut kept, "GET /raw/a", wrong).status == 429).then_some(())
    });
    // Without credentials nothing is an attempt.
    assert_eq!(send(&mut client, "GET /raw/a", "").status, 401);
    wait_for("a right password is checked", || (send(&mut client, "GET /raw/a", BEARER).status == 200).then_some(()));
    let metrics = send(&mut client, "GET /metrics", BEARER).text();
    let sample = |labels: &str| {
        let name = format!("segment_client_auth_failures_total{{{labels}}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&name)).expect("a sample");
        line.parse::<u64>().expect("a number")
    };
    assert!(sample("protocol=\"http\",reason=\"wrong\"") >= 21);
    assert!(sample("protocol=\"http\",reason=\"throttled\"") >= 2);
    assert!(sample("protocol=\"resp\",reason=\"throttled\"") >= 2);
}
