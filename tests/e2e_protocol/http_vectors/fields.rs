//! Vectors of field lines: RFC 9110, section 5; RFC 9112, sections 2.2 and 5.

use super::{Vector, check_all, with};

/// Field names: tokens (RFC 9110, section 5.1).
///
/// White space before the colon must be refused with 400 (RFC 9112, section 5.1).
fn names() -> Vec<Vector> {
    vec![
        Vector::open("name with all that a token may have", with("!#$%&'*+-.^_`|~09azAZ: b"), &[200]),
        Vector::open("name of a digit", with("1: b"), &[200]),
        Vector::open("name of 1000 letters", with(&format!("{}: b", "x".repeat(1000))), &[200]),
        Vector::bad("space before the colon", with("A : b")),
        Vector::bad("tab before the colon", with("A\t: b")),
        Vector::bad("no name", with(": b")),
        Vector::bad("space for a name", with(" : b")),
        Vector::bad("no colon", with("nothing")),
        Vector::bad("no colon, in the last line", with("A: b\r\nGET /raw/hidden HTTP/1.1")),
        Vector::bad("name of two words", with("A b: c")),
        Vector::bad("name in quotes", with("\"A\": b")),
        Vector::bad("name with a slash", with("A/b: c")),
        Vector::bad("name in brackets", with("[A]: b")),
        Vector::bad("name in parentheses", with("A(b): c")),
        Vector::bad("name with an at sign", with("A@b: c")),
        Vector::bad("name with an equals sign", with("A=b: c")),
        Vector::bad("name with a semicolon", with("A;b: c")),
        Vector::bad("name with a comma", with("A,b: c")),
        Vector::bad("name with a backslash", with("A\\b: c")),
        Vector::bad("name with a question mark", with("A?: c")),
        Vector::bad("name with NUL", with("A\0b: c")),
        Vector::bad("name with a control", with("A\x01: b")),
        Vector::bad("name with DEL", with("A\x7f: b")),
        Vector::bad("name of UTF-8", with("É: b")),
        Vector::bad("name with vertical tab at its end", with("A\x0b: b")),
        Vector::bad("name with a soft hyphen", with("Content\u{ad}Length: 5")),
    ]
}

/// Field values: visible characters, blanks and bytes beyond ASCII (RFC 9110, section 5.5).
///
/// White space around a value is not part of it. CR, LF and NUL must be refused or replaced. Other
/// controls are invalid, and the proxy refuses them by docs/http-api.md.
fn values() -> Vec<Vector> {
    let with_bytes = |value: &[u8]| [b"GET /raw/a HTTP/1.1\r\nHost: test\r\nA: ", value, b"\r\n\r\n"].concat();
    let mut vectors = vec![
        Vector::open("empty value", with("A:"), &[200]),
        Vector::open("value of white space", with("A: \t "), &[200]),
        Vector::open("value without a space before", with("A:b"), &[200]),
        Vector::open("value with white space around", with("A:\t  b \t"), &[200]),
        Vector::open("value with a tab within", with("A: b\tc"), &[200]),
        Vector::open("value of colons", with("A:::::"), &[200]),
        Vector::open("value with quotes that stay open", with("A: \"b"), &[200]),
        Vector::open("value that looks like a field", with("A: Content-Length: 5"), &[200]),
        Vector::open("value of Latin-1", with_bytes(b"caf\xe9"), &[200]),
        Vector::open("value of bytes that are no UTF-8", with_bytes(b"\x80\xff\xc0"), &[200]),
        Vector::open("value of a byte order mark", with("A: \u{feff}"), &[200]),
        Vector::bad("bare CR in a value", with("A: b\rContent-Length: 5")),
        Vector::bad("bare CR at the end of a value", with("A: b\r")),
        Vector::bad("bare CR before a value", with("A: \rb")),
        Vector::bad("bare LF in a value", with("A: b\nContent-Length: 5")),
        Vector::bad("bare LF before a value", with("A: \nb: c")),
        Vector::bad("LF CR in a value", with("A: b\n\rc")),
    ];
    let controls = [
        ("NUL", 0),
        ("SOH", 1),
        ("backspace", 8),
        ("vertical tab", 0x0b),
        ("form feed", 0x0c),
        ("SO", 0x0e),
        ("ESC", 0x1b),
        ("unit separator", 0x1f),
        ("DEL", 0x7f),
    ];
    vectors.extend(controls.map(|(name, byte)| Vector::bad(name, with_bytes(&[b'b', byte, b'c']))));
    vectors
}

/// Folded lines: must be refused with 400 or unfolded (RFC 9112, section 5.2).
///
/// The same holds for a line of white space before the first field (section 2.2). The proxy refuses
/// both by docs/http-api.md.
fn folding() -> Vec<Vector> {
    let first = |lines: &str| format!("GET /raw/a HTTP/1.1\r\n{lines}\r\n\r\n");
    vec![
        Vector::bad("folded by a space", with("A: b\r\n c")),
        Vector::bad("folded by a tab", with("A: b\r\n\tc")),
        Vector::bad("folded twice", with("A: b\r\n c\r\n d")),
        Vector::bad("folded before its value", with("A:\r\n b")),
        Vector::bad("folded into white space", with("A: b\r\n \r\nC: d")),
        Vector::bad("folded into a field", with("A: b\r\n Content-Length: 5")),
        Vector::bad("folded with a colon after", with("A\r\n : b")),
        Vector::bad("folded by bare LF", with("A: b\n c")),
        Vector::bad("first field after a space", first(" Host: test")),
        Vector::bad("first field after a tab", first("\tHost: test")),
        Vector::bad("line of a space before the fields", first(" \r\nHost: test")),
        Vector::bad("field after a space before the first", first(" X: y\r\nHost: test")),
    ]
}

/// Line ends: each line ends with CR LF and the head with an empty line (RFC 9112, section 2.1).
///
/// By docs/http-api.md the proxy does not accept a bare LF.
fn ends() -> Vec<Vector> {
    let head = "GET /raw/a HTTP/1.1\r\nHost: test";
    vec![
        Vector::bad("bare LF after a field", format!("{head}\nA: b\r\n\r\n")),
        Vector::bad("bare LF at the end", format!("{head}\r\n\n")),
        Vector::bad("two bare LFs at the end", format!("{head}\n\n")),
        Vector::bad("bare CRs at the end", format!("{head}\r\r")),
        Vector::bad("CR CR LF after a field", format!("{head}\r\r\nA: b\r\n\r\n")),
        Vector::bad("CR CR LF at the end", format!("{head}\r\n\r\r\n")),
        Vector::bad("space in the empty line", format!("{head}\r\n \r\n")),
        Vector::bad("NUL in the empty line", format!("{head}\r\n\0\r\n")),
    ]
}

/// Limits in docs/http-api.md: 100 fields and a head of 16 KiB. Larger heads get 431 (RFC 6585,
/// section 5).
fn limits() -> Vec<Vector> {
    let many = |count: usize| vec!["A: b"; count].join("\r\n");
    vec![
        Vector::open("99 fields and Host", with(&many(99)), &[200]),
        Vector::closed("100 fields and Host", with(&many(100)), &[431]),
        Vector::open("value of 15 KiB", with(&format!("A: {}", "b".repeat(15 * 1024))), &[200]),
        Vector::closed("value of 16 KiB", with(&format!("A: {}", "b".repeat(16 * 1024))), &[431]),
        Vector::closed("name of 16 KiB", with(&format!("{}: b", "A".repeat(16 * 1024))), &[431]),
    ]
}

/// Field lines are parsed or refused by RFC 9110, section 5.
#[test]
fn field_lines_follow_rfc_9110() {
    let groups = [names(), values(), folding(), ends(), limits()];
    check_all("field lines", 75, &groups.into_iter().flatten().collect::<Vec<_>>());
}
