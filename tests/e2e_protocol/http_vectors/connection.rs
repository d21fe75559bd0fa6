//! Vectors of connection persistence: RFC 9110, sections 7.6.1, 7.8 and 10.1.1; RFC 9112, section
//! 9.

use super::{HIDDEN, Vector, check_all, line, with, with_body};

fn http_1_0(lines: &str) -> String {
    with(lines).replace("1.1", "1.0")
}

/// Options of `Connection`: a list of case-insensitive tokens.
///
/// The list may span several lines and have empty elements (RFC 9110, section 5.6.1). `close` takes
/// precedence (RFC 9112, section 9.3).
fn options() -> Vec<Vector> {
    let open = [
        ("keep-alive", "Connection: keep-alive"),
        ("empty list", "Connection:"),
        ("list of commas", "Connection: ,, ,"),
        ("unknown option", "Connection: x-unknown"),
        ("letters after close", "Connection: closed"),
        ("letters before close", "Connection: xclose"),
        ("close in quotes", "Connection: \"close\""),
        ("close with a value", "Connection: close=1"),
        ("two words", "Connection: close now"),
        ("close for another proxy", "Proxy-Connection: close"),
        ("close in a field that is listed", "Connection: X-A\r\nX-A: close"),
        ("Host listed", "Connection: Host"),
        ("keep-alive parameters", "Keep-Alive: timeout=0, max=0"),
    ];
    let closed = [
        ("close", "Connection: close"),
        ("close in mixed case", "cOnNeCtIoN: ClOsE"),
        ("close, no space", "Connection:close"),
        ("close and white space", "Connection: \t close\t "),
        ("close, then keep-alive", "Connection: close, keep-alive"),
        ("keep-alive, then close", "Connection: keep-alive,close"),
        ("close among others", "Connection: TE, close, x"),
        ("close between empty elements", "Connection: , close,,"),
        ("close in the second line", "Connection: keep-alive\r\nConnection: close"),
        ("close in the first line", "Connection: close\r\nConnection: keep-alive"),
    ];
    let mut vectors: Vec<Vector> = open.map(|(name, lines)| Vector::open(name, with(lines), &[200])).into();
    vectors.extend(closed.map(|(name, lines)| Vector::closed(name, with(lines), &[200])));
    vectors
}

/// HTTP/1.0: the connection closes unless the client sends `keep-alive` (RFC 9112, section 9.3).
fn version_1_0() -> Vec<Vector> {
    vec![
        Vector::closed("1.0", http_1_0("A: b"), &[200]),
        Vector::open("1.0, keep-alive", http_1_0("Connection: keep-alive"), &[200]),
        Vector::open("1.0, keep-alive in mixed case", http_1_0("Connection: Keep-Alive"), &[200]),
        Vector::closed("1.0, keep-alive and close", http_1_0("Connection: keep-alive, close"), &[200]),
        Vector::closed("1.0, keep-alive in another field", http_1_0("Keep-Alive: 300"), &[200]),
        Vector::closed("1.0, keep-alive for another proxy", http_1_0("Proxy-Connection: keep-alive"), &[200]),
        Vector::open(
            "1.0, keep-alive and a body",
            http_1_0("Connection: keep-alive\r\nContent-Length: 5") + "hello",
            &[200],
        ),
        Vector::closed("1.0, missing key", http_1_0("A: b").replace("/raw/a", "/raw/none"), &[404]),
    ]
}

/// Upgrades: a server may ignore them (RFC 9110, section 7.8), and the proxy supports none.
fn upgrades() -> Vec<Vector> {
    vec![
        Vector::open("upgrade to WebSocket", with("Connection: Upgrade\r\nUpgrade: websocket"), &[200]),
        Vector::open(
            "upgrade to HTTP/2",
            with("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ"),
            &[200],
        ),
        Vector::open("upgrade without Connection", with("Upgrade: h2c"), &[200]),
        Vector::closed("upgrade and close", with("Connection: close, upgrade\r\nUpgrade: websocket"), &[200]),
        Vector::open(
            "upgrade with a request for a body",
            with_body(&format!("Connection: upgrade\r\nUpgrade: x\r\nContent-Length: {}", HIDDEN.len()), HIDDEN),
            &[200],
        ),
    ]
}

/// Expectations: `100-continue` is case-insensitive, and HTTP/1.0 has none.
///
/// Unknown expectations may get 417 (RFC 9110, section 10.1.1), and do by docs/http-api.md.
fn expectations() -> Vec<Vector> {
    vec![
        Vector::open("expectation without a body", with("Expect: 100-continue"), &[200]),
        Vector::open("expectation in mixed case", with("Expect: 100-Continue"), &[200]),
        // After a final response the client may omit the body, so the next bytes are ambiguous.
        Vector::closed(
            "expectation of a body",
            with_body("Expect: 100-continue\r\nContent-Length: 41", HIDDEN),
            &[200],
        ),
        Vector::closed("unknown expectation", with("Expect: miracles"), &[417]),
        Vector::open("empty expectation", with("Expect:"), &[200]),
        Vector::closed("expectation with a parameter", with("Expect: 100-continue;q=1"), &[417]),
        Vector::closed("two expectations", with("Expect: 100-continue\r\nExpect: 200-ok"), &[417]),
        Vector::closed("expectation in HTTP/1.0", http_1_0("Expect: 100-continue"), &[200]),
        Vector::open(
            "expectation of a body in HTTP/1.0",
            http_1_0("Expect: 100-continue\r\nConnection: keep-alive\r\nContent-Length: 5") + "hello",
            &[200],
        ),
        Vector::closed("unknown expectation in HTTP/1.0", http_1_0("Expect: miracles"), &[200]),
    ]
}

/// Pipelines: the proxy responds in request order and answers nothing after a response that closes.
///
/// RFC 9112, sections 9.3.2 and 9.6.
fn pipelines() -> Vec<Vector> {
    let good = line("GET /raw/a HTTP/1.1");
    let missing = line("GET /raw/none HTTP/1.1");
    let head = line("HEAD /raw/a HTTP/1.1");
    let post = "POST /raw/a HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello";
    let chunked = with_body("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n");
    let closing = with("Connection: close");
    let bad = with("A : b");
    vec![
        Vector::open("three requests", good.repeat(3), &[200; 3]),
        Vector::open("a hundred requests", good.repeat(100), &[200; 100]),
        Vector::open("requests of several kinds", format!("{head}{good}{missing}{post}"), &[200, 200, 404, 405])
            .with_heads(1),
        Vector::open("bodies between requests", format!("{post}{chunked}{post}{good}"), &[405, 200, 405, 200]),
        Vector::open("chunked bodies in a row", chunked.repeat(5), &[200; 5]),
        Vector::open(
            "empty chunked body, then a request",
            with_body("Transfer-Encoding: chunked", "0\r\n\r\n") + &good,
            &[200; 2],
        ),
        Vector::open("URL, then a path", format!("{}{good}", line("GET http://other/raw/b HTTP/1.1")), &[200; 2]),
        Vector::closed("close in the second of three", format!("{good}{closing}{HIDDEN}"), &[200; 2]),
        Vector::closed(
            "close and a body",
            with_body("Connection: close\r\nContent-Length: 5", "hello") + HIDDEN,
            &[200],
        ),
        Vector::closed("HTTP/1.0 in the second of three", format!("{good}{}{HIDDEN}", http_1_0("A: b")), &[200; 2]),
        Vector::closed("malformed in the third of four", format!("{good}{missing}{bad}{HIDDEN}"), &[200, 404, 400]),
        Vector::closed(
            "malformed body in the second of three",
            {
                let malformed = with_body("Transfer-Encoding: chunked", "x\r\n");
                format!("{good}{malformed}{HIDDEN}")
            },
            &[200, 400],
        ),
        Vector::closed(
            "unknown method in the second of three",
            format!("{good}{}{HIDDEN}", line("BREW / HTTP/1.1")),
            &[200, 501],
        ),
    ]
}

/// Connections stay open or close by RFC 9112, section 9.
#[test]
fn connections_follow_rfc_9112() {
    let groups = [options(), version_1_0(), upgrades(), expectations(), pipelines()];
    check_all("connections", 55, &groups.into_iter().flatten().collect::<Vec<_>>());
}
