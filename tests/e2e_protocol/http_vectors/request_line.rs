//! Vectors of request lines: RFC 9112, sections 2.2, 2.3 and 3; methods of RFC 9110, section 9.

use super::{HIDDEN, Vector, check_all, line};

/// Methods: case-sensitive tokens (RFC 9110, section 9.1).
///
/// A known method that is not allowed gets 405 (section 15.5.6), an unknown one 501 (section
/// 15.6.2). By docs/http-api.md the proxy closes the connection after an unknown one.
fn methods() -> Vec<Vector> {
    let known = ["POST", "PUT", "DELETE", "PATCH", "TRACE"];
    let unknown =
        ["PURGE", "MKCOL", "M-SEARCH", "QUERY", "SOURCE", "PROPFIND", "get", "Get", "GETS", "GE", "G", "!", "123"];
    let mut vectors = vec![
        Vector::open("method GET", line("GET /raw/a HTTP/1.1"), &[200]),
        Vector::open("method HEAD", line("HEAD /raw/a HTTP/1.1"), &[200]).with_heads(1),
        Vector::open("method HEAD, missing key", line("HEAD /raw/none HTTP/1.1"), &[404]).with_heads(1),
        Vector::open("method HEAD, no such path", line("HEAD /none HTTP/1.1"), &[404]).with_heads(1),
        Vector::open("method OPTIONS", line("OPTIONS /raw/a HTTP/1.1"), &[200]),
        Vector::open(
            "method POST with a body",
            format!("POST /raw/a HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n{HIDDEN}", HIDDEN.len()),
            &[405],
        ),
    ];
    vectors.extend(known.map(|method| Vector::open(method, line(&format!("{method} /raw/a HTTP/1.1")), &[405])));
    vectors.extend(unknown.map(|method| Vector::closed(method, line(&format!("{method} /raw/a HTTP/1.1")), &[501])));
    vectors
}

/// Invalid methods: bytes outside of tokens (RFC 9110, section 5.6.2), or no method.
fn not_methods() -> Vec<Vector> {
    vec![
        Vector::bad("no method", line(" /raw/a HTTP/1.1")),
        Vector::bad("target first", line("/raw/a HTTP/1.1")),
        Vector::bad("method with a colon", line("GET: /raw/a HTTP/1.1")),
        Vector::bad("method with a slash", line("GE/T /raw/a HTTP/1.1")),
        Vector::bad("method with brackets", line("GET[] /raw/a HTTP/1.1")),
        Vector::bad("method in quotes", line("\"GET\" /raw/a HTTP/1.1")),
        Vector::bad("method with NUL", line("GE\0T /raw/a HTTP/1.1")),
        Vector::bad("method after NUL", line("\0GET /raw/a HTTP/1.1")),
        Vector::bad("method with DEL", line("GET\x7f /raw/a HTTP/1.1")),
        Vector::bad("method of UTF-8", line("GÉT /raw/a HTTP/1.1")),
        Vector::bad("method after a byte order mark", line("\u{feff}GET /raw/a HTTP/1.1")),
        Vector::bad("line of a single word", line("GET")),
    ]
}

/// White space: single spaces separate the three parts (RFC 9112, section 3).
///
/// Lenient parsing is a "MAY" that docs/http-api.md declines.
fn white_space() -> Vec<Vector> {
    vec![
        Vector::bad("space before the method", line(" GET /raw/a HTTP/1.1")),
        Vector::bad("tab before the method", line("\tGET /raw/a HTTP/1.1")),
        Vector::bad("two spaces before the target", line("GET  /raw/a HTTP/1.1")),
        Vector::bad("two spaces after the target", line("GET /raw/a  HTTP/1.1")),
        Vector::bad("tab before the target", line("GET\t/raw/a HTTP/1.1")),
        Vector::bad("tab after the target", line("GET /raw/a\tHTTP/1.1")),
        Vector::bad("vertical tab as a separator", line("GET\x0b/raw/a HTTP/1.1")),
        Vector::bad("form feed as a separator", line("GET /raw/a\x0cHTTP/1.1")),
        Vector::bad("bare CR as a separator", line("GET /raw/a\rHTTP/1.1")),
        Vector::bad("no space after the method", line("GET/raw/a HTTP/1.1")),
        Vector::bad("space after the version", line("GET /raw/a HTTP/1.1 ")),
        Vector::bad("word after the version", line("GET /raw/a HTTP/1.1 x")),
        Vector::bad("space within the target", line("GET /raw/a b HTTP/1.1")),
        Vector::bad("two request lines in one", line("GET /raw/a HTTP/1.1 GET /raw/hidden HTTP/1.1")),
    ]
}

/// Line ends: one empty line before a request is ignored (RFC 9112, section 2.2, "at least one").
///
/// A bare CR is invalid there. A bare LF as a line end is a "MAY" that docs/http-api.md declines.
fn line_ends() -> Vec<Vector> {
    let good = line("GET /raw/a HTTP/1.1");
    vec![
        Vector::open("one empty line before", format!("\r\n{good}"), &[200]),
        Vector::open("an empty line before each", format!("\r\n{good}\r\n{good}"), &[200, 200]),
        Vector::open(
            "an empty line after a body",
            format!("POST /raw/a HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\na=b\r\n{good}"),
            &[405, 200],
        ),
        Vector::bad("empty line with a bare LF before", format!("\n{good}")),
        Vector::bad("empty line with a bare CR before", format!("\r{good}")),
        Vector::bad("CR CR LF before", format!("\r\r\n{good}")),
        Vector::bad("bare LF after the request line", "GET /raw/a HTTP/1.1\nHost: test\r\n\r\n"),
        Vector::bad("bare CR after the request line", "GET /raw/a HTTP/1.1\rHost: test\r\n\r\n"),
        Vector::bad("LF CR after the request line", "GET /raw/a HTTP/1.1\n\rHost: test\r\n\r\n"),
        Vector::bad("CR CR LF after the request line", "GET /raw/a HTTP/1.1\r\r\nHost: test\r\n\r\n"),
        Vector::bad("bare LF everywhere", "GET /raw/a HTTP/1.1\nHost: test\n\n"),
        Vector::bad("bare CR everywhere", "GET /raw/a HTTP/1.1\rHost: test\r\r"),
    ]
}

/// Versions: case-sensitive, with one digit on either side of the dot (RFC 9112, section 2.3).
///
/// A malformed version makes the request line invalid (section 3: 400). Another major version gets
/// 505 (RFC 9110, section 15.6.6).
fn versions() -> Vec<Vector> {
    let closed = |name, version: &str, status| Vector::closed(name, line(&format!("GET /raw/a {version}")), &[status]);
    vec![
        closed("version 1.0", "HTTP/1.0", 200),
        closed("version 2.0", "HTTP/2.0", 505),
        closed("version 3.0", "HTTP/3.0", 505),
        closed("version 9.9", "HTTP/9.9", 505),
        closed("version 0.9, written", "HTTP/0.9", 505),
        closed("version in lower case", "http/1.1", 400),
        closed("version in mixed case", "Http/1.1", 400),
        closed("name of another protocol", "HTTPS/1.1", 400),
        closed("name of a streaming protocol", "RTSP/1.0", 400),
        closed("name of a radio protocol", "ICE/1.0", 400),
        closed("name cut short", "HTP/1.1", 400),
        closed("name and a backslash", "HTTP\\1.1", 400),
        closed("version without a name", "1.1", 400),
        closed("name without a version", "HTTP", 400),
        // No HTTP-version of RFC 9112, section 2.3, so section 3 demands 400.
        closed("version without a dot", "HTTP/11", 400),
        closed("space in the version", "HTTP/ 1.1", 400),
        closed("version with a comma", "HTTP/1,1", 400),
        closed("version without a digit", "HTTP/", 400),
        closed("version of letters", "HTTP/x.y", 400),
        closed("version with a sign", "HTTP/+1.1", 400),
        closed("version with two digits", "HTTP/01.1", 400),
    ]
}

/// Other protocols on the same port.
///
/// A request without a version (HTTP/0.9) has an invalid request line (RFC 9112, section 3). The
/// preface of HTTP/2 (RFC 9113, section 3.4) is a request of another major version. No frame after
/// it is parsed as a request.
fn other_protocols() -> Vec<Vector> {
    vec![
        Vector::bad("HTTP/0.9", "GET /raw/a\r\n"),
        Vector::bad("HTTP/0.9 with fields", "GET /raw/a\r\nHost: test\r\n\r\n"),
        Vector::bad("HTTP/0.9 with a space", "GET /raw/a \r\n"),
        Vector::closed("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", &[505]),
        Vector::bad("status line", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        Vector::bad("TLS record", b"\x16\x03\x03\x00\x05hello"),
        Vector::bad("SMTP greeting", "EHLO test\r\n"),
        Vector::bad("SSH greeting", "SSH-2.0-test\r\n"),
        Vector::bad("PROXY protocol, version 1", format!("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n{HIDDEN}")),
        Vector::bad("PROXY protocol, version 2", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"),
    ]
}

/// Request lines are parsed or refused by RFC 9112, section 3.
#[test]
fn request_lines_follow_rfc_9112() {
    let groups = [methods(), not_methods(), white_space(), line_ends(), versions(), other_protocols()];
    check_all("request lines", 75, &groups.into_iter().flatten().collect::<Vec<_>>());
}
