//! Vectors of request targets: RFC 9112, section 3.2; RFC 3986, sections 2 and 3; RFC 9110, section
//! 4.2.

use super::{Vector, check_all, line, target};

/// Origin form: a path and an optional query (RFC 9112, section 3.2.1).
fn origin_form() -> Vec<Vector> {
    vec![
        Vector::open("path", target("/raw/a"), &[200]),
        Vector::open("path and query", target("/raw/a?b=c&d"), &[200]),
        Vector::open("path and empty query", target("/raw/a?"), &[200]),
        Vector::open("two question marks", target("/raw/a?b?c"), &[200]),
        Vector::open("URL within the query", target("/raw/a?u=http://other/raw/b"), &[200]),
        Vector::open("path that begins with two slashes", target("//raw/a"), &[404]),
        Vector::open("two slashes and a name", target("//test/raw/a"), &[404]),
        Vector::open("path without a key's prefix", target("/raw"), &[404]),
        Vector::open("path in another case", target("/RAW/a"), &[404]),
        Vector::open("path with a parameter", target("/raw;v=1/a"), &[404]),
        Vector::open("all that a path may have", target("/raw/-._~!$&'()*+,;=:@"), &[404]),
        Vector::bad("path without a slash", target("raw/a")),
        Vector::bad("query alone", target("?a")),
        Vector::bad("dot segment alone", target("./raw/a")),
        Vector::bad("fragment", target("/raw/a#b")),
        Vector::bad("fragment after a query", target("/raw/a?b#c")),
        Vector::bad("empty target", line("GET  HTTP/1.1")),
    ]
}

/// Escapes: two hexadecimal digits of either case (RFC 3986, section 2.1), decoded once (section
/// 2.4).
///
/// A decoded byte is part of the key, never of the syntax.
fn percent_encoding() -> Vec<Vector> {
    vec![
        Vector::open("escaped letter", target("/raw/%61"), &[200]),
        Vector::open("escaped question mark", target("/raw/a%3fb"), &[404]),
        Vector::open("escaped slash", target("/raw/%2Fa"), &[404]),
        Vector::open("escaped twice", target("/raw/%2561"), &[404]),
        Vector::open("escaped NUL", target("/raw/a%00"), &[404]),
        Vector::open("escaped line end", target("/raw/a%0d%0aX:%20y"), &[404]),
        Vector::open("escaped request", target("/raw/a%20HTTP/1.1%0d%0a%0d%0aGET%20/raw/hidden"), &[404]),
        Vector::open("escaped byte that is no UTF-8", target("/raw/%ff%C0%80"), &[404]),
        Vector::open("plus is a plus", target("/raw/+"), &[404]),
        Vector::open("escape within the query", target("/raw/a?%zz"), &[200]),
        Vector::open("percent at the end", target("/raw/%"), &[400]),
        Vector::open("one digit", target("/raw/%6"), &[400]),
        Vector::open("one digit and a letter", target("/raw/%6g"), &[400]),
        Vector::open("escape with a sign", target("/raw/%+1"), &[400]),
        Vector::open("escape with a space", target("/raw/%%20"), &[400]),
        Vector::open("escape as of JavaScript", target("/raw/%u0061"), &[400]),
    ]
}

/// Bytes that are invalid in a URI: not ASCII, or not graphic (RFC 3986, section 2).
fn invalid_bytes() -> Vec<Vector> {
    let bytes = |byte: u8| [b"GET /raw/a", &[byte][..], b" HTTP/1.1\r\nHost: test\r\n\r\n"].concat();
    vec![
        Vector::bad("target with NUL", bytes(0)),
        Vector::bad("target with a control", bytes(1)),
        Vector::bad("target with ESC", bytes(0x1b)),
        Vector::bad("target with DEL", bytes(0x7f)),
        Vector::bad("target with Latin-1", bytes(0xe9)),
        Vector::bad("target with 0xff", bytes(0xff)),
        Vector::bad("target with UTF-8", target("/raw/é")),
        Vector::bad("target with a full-width slash", target("\u{ff0f}raw/a")),
        Vector::bad("target with bare LF", target("/raw/a\nb")),
        Vector::bad("target with bare CR", target("/raw/a\rb")),
        Vector::bad("target with a line end", target("/raw/a\r\nX: y")),
    ]
}

/// Absolute form: a server must accept URLs and then ignore Host (RFC 9112, section 3.2.2).
///
/// RFC 9110 forbids an empty host (section 4.2.1) and a user (section 4.2.4). An https URL over
/// plain TCP is misdirected (section 7.4).
fn absolute_form() -> Vec<Vector> {
    vec![
        Vector::open("URL with the same host", target("http://test/raw/a"), &[200]),
        Vector::open("URL with another host", target("http://other.example/raw/a"), &[200]),
        Vector::open("URL with a port", target("http://test:8080/raw/a"), &[200]),
        Vector::open("URL with an empty port", target("http://test:/raw/a"), &[200]),
        Vector::open("URL with an IPv4 address", target("http://127.0.0.1/raw/a"), &[200]),
        Vector::open("URL with an IPv6 address", target("http://[::1]:8080/raw/a"), &[200]),
        Vector::open("URL, scheme and host in upper case", target("HTTP://TEST/raw/a"), &[200]),
        Vector::open("URL with a query", target("http://test/raw/a?b"), &[200]),
        Vector::open("URL without a path", line("OPTIONS http://test HTTP/1.1"), &[200]),
        Vector::open("URL with a query and no path", line("OPTIONS http://test?x HTTP/1.1"), &[200]),
        Vector::open("URL with two slashes in its path", target("http://test//raw/a"), &[404]),
        Vector::open("URL of https", target("https://test/raw/a"), &[421]),
        Vector::bad("URL without a host", target("http:///raw/a")),
        Vector::bad("URL with a port alone", target("http://:80/raw/a")),
        Vector::bad("URL with a user", target("http://user@test/raw/a")),
        Vector::bad("URL with user and password", target("http://user:secret@test/raw/a")),
        Vector::bad("URL with a name as a port", target("http://test:http/raw/a")),
        Vector::bad("URL with two ports", target("http://test:80:80/raw/a")),
        Vector::bad("URL with an open bracket", target("http://[::1/raw/a")),
        Vector::bad("URL with an address without brackets", target("http://::1/raw/a")),
        Vector::bad("URL with a broken escape in its host", target("http://te%zzst/raw/a")),
        Vector::bad("URL with a backslash", target("http:\\\\test\\raw\\a")),
        Vector::bad("URL with one slash", target("http:/test/raw/a")),
        Vector::bad("URL without slashes", target("http:raw/a")),
        Vector::bad("URL with a fragment", target("http://test/raw/a#b")),
        Vector::bad("URL after a space", target(" http://test/raw/a")),
        // HTTP/1.1 requires Host with any target (RFC 9112, section 3.2).
        Vector::bad("URL and no Host", "GET http://test/raw/a HTTP/1.1\r\n\r\n"),
        Vector::bad("URL and a malformed Host", "GET http://test/raw/a HTTP/1.1\r\nHost: a/b\r\n\r\n"),
        Vector::bad("URL and two Hosts", "GET http://test/raw/a HTTP/1.1\r\nHost: test\r\nHost: test\r\n\r\n"),
    ]
}

/// Other forms: `host:port` is only for CONNECT (RFC 9112, section 3.2.3).
///
/// `*` is only for OPTIONS (section 3.2.4).
fn other_forms() -> Vec<Vector> {
    vec![
        Vector::open("OPTIONS of the server", line("OPTIONS * HTTP/1.1"), &[200]),
        Vector::bad("GET of the server", line("GET * HTTP/1.1")),
        Vector::bad("HEAD of the server", line("HEAD * HTTP/1.1")).with_heads(1),
        Vector::bad("POST of the server", line("POST * HTTP/1.1")),
        Vector::bad("two asterisks", line("OPTIONS ** HTTP/1.1")),
        Vector::bad("GET of an authority", line("GET test:80 HTTP/1.1")),
        Vector::bad("GET of a name", line("GET test HTTP/1.1")),
        Vector::bad("OPTIONS of an authority", line("OPTIONS test:80 HTTP/1.1")),
        Vector::bad("CONNECT to a path", line("CONNECT /raw/a HTTP/1.1")),
        Vector::bad("CONNECT to a URL", line("CONNECT http://test/ HTTP/1.1")),
        Vector::bad("CONNECT to a port alone", line("CONNECT :80 HTTP/1.1")),
    ]
}

/// Request targets are parsed or refused by RFC 9112, section 3.2, and RFC 3986.
#[test]
fn request_targets_follow_rfc_3986() {
    let groups = [origin_form(), percent_encoding(), invalid_bytes(), absolute_form(), other_forms()];
    check_all("request targets", 75, &groups.into_iter().flatten().collect::<Vec<_>>());
}
