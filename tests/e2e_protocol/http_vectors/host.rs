//! Vectors of Host: RFC 9110, section 7.2; RFC 9112, section 3.2; RFC 3986, section 3.2.
//!
//! HTTP/1.1 demands exactly one Host with a valid value, otherwise 400.
//! The grammar of a value is `uri-host [":" port]`.

use super::{Vector, check_all};

/// Returns a request with these lines instead of Host.
fn lines(lines: &str) -> String {
    format!("GET /raw/a HTTP/1.1\r\n{lines}\r\n")
}

fn host(value: &str) -> String {
    lines(&format!("Host: {value}\r\n"))
}

fn presence() -> Vec<Vector> {
    vec![
        Vector::bad("no Host", lines("")),
        Vector::bad("no Host, other fields", lines("Accept: */*\r\nX-Forwarded-Host: test\r\n")),
        Vector::bad("Host twice, the same", lines("Host: test\r\nHost: test\r\n")),
        Vector::bad("Host twice, different", lines("Host: test\r\nHost: other\r\n")),
        Vector::bad("Host twice, in different case", lines("Host: test\r\nA: b\r\nhost: test\r\n")),
        Vector::bad("Host twice, the second empty", lines("Host: test\r\nHost:\r\n")),
        Vector::bad("Host twice in HTTP/1.0", "GET /raw/a HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"),
        Vector::bad("malformed Host in HTTP/1.0", "GET /raw/a HTTP/1.0\r\nHost: a b\r\n\r\n"),
        Vector::closed("no Host in HTTP/1.0", "GET /raw/a HTTP/1.0\r\n\r\n", &[200]),
        Vector::open("Host in upper case", lines("HOST: test\r\n"), &[200]),
        Vector::open("Host as the last field", lines("A: b\r\nC: d\r\nHost: test\r\n"), &[200]),
        Vector::open("Host within another name", lines("X-Host: other\r\nHost: test\r\nHostX: a b\r\n"), &[200]),
    ]
}

fn valid_values() -> Vec<Vector> {
    let values = [
        ("empty", ""),
        ("white space alone", " \t "),
        ("name", "test.example"),
        ("full name with its dot", "test.example."),
        ("name and port", "test:8080"),
        ("name and empty port", "test:"),
        ("name with an underscore", "under_score"),
        ("name with sub-delimiters", "a!$&'()*+,;=b"),
        ("name with an escape", "a%20b"),
        ("IPv4 address", "192.0.2.1"),
        ("IPv4 address and port", "192.0.2.1:65535"),
        ("IPv6 address", "[2001:db8::1]"),
        ("IPv6 address and port", "[2001:db8::1]:80"),
        ("IPv6 address that ends as IPv4", "[::ffff:192.0.2.1]"),
        ("white space around", "\t test \t"),
    ];
    values.map(|(name, value)| Vector::open(name, host(value), &[200])).into()
}

fn invalid_values() -> Vec<Vector> {
    let values = [
        ("list of two", "a, b"),
        ("two names", "a b"),
        ("tab within", "a\tb"),
        ("user", "user@test"),
        ("empty user", "@test"),
        ("user and password", "user:secret@test"),
        ("path", "test/raw/b"),
        ("slash at the end", "test/"),
        ("query", "test?a"),
        ("fragment", "test#a"),
        ("URL", "http://test"),
        ("backslash", "test\\a"),
        ("name as a port", "test:http"),
        ("two ports", "test:80:80"),
        ("negative port", "test:-1"),
        ("port with a sign", "test:+80"),
        ("port with a space before", "test: 80"),
        ("space before the port", "test :80"),
        ("IPv6 address without brackets", "::1"),
        ("open bracket", "[::1"),
        ("closed bracket", "::1]"),
        ("brackets around nothing", "[]"),
        ("brackets around a name", "[test]"),
        ("brackets in brackets", "[[::1]]"),
        ("text after the bracket", "[::1]x"),
        ("address with other letters", "[2001:dg8::1]"),
        ("broken escape", "a%2"),
        ("escape of other letters", "a%zz"),
        ("quotes", "\"test\""),
        ("angle brackets", "<test>"),
        ("braces", "{test}"),
        ("UTF-8", "tést"),
        ("NUL", "te\0st"),
        ("control", "te\x01st"),
        ("DEL", "te\x7fst"),
        ("vertical tab at the end", "test\x0b"),
        ("bare CR", "te\rst"),
        ("bare LF", "te\nst"),
        ("folded", "te\r\n st"),
    ];
    values.map(|(name, value)| Vector::bad(name, host(value))).into()
}

/// Brackets enclose an IPv6 address or an IPvFuture (RFC 3986, section 3.2.2).
fn bracketed_values() -> Vec<Vector> {
    vec![
        Vector::bad("colons alone in brackets", host("[:::]")),
        Vector::bad("address of nine groups", host("[1:2:3:4:5:6:7:8:9]")),
        Vector::bad("address with a group of five digits", host("[12345::1]")),
        Vector::bad("address with two gaps", host("[1::2::3]")),
        Vector::open("address of a future version", host("[v1.a:b]"), &[200]),
    ]
}

/// Host is accepted or refused by RFC 9112, section 3.2.
#[test]
fn host_follows_rfc_9112() {
    let groups = [presence(), valid_values(), invalid_values(), bracketed_values()];
    check_all("Host", 65, &groups.into_iter().flatten().collect::<Vec<_>>());
}
