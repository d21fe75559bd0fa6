//! Vectors of Content-Length and Transfer-Encoding: RFC 9110, section 8.6; RFC 9112, section 6.
//!
//! RFC 9112, sections 6.1 to 6.3, defines the end of a body. Many bodies contain a request, which
//! the proxy answers if it finds another end than the client.

use super::{HIDDEN, Vector, check_all, with, with_body};

const CHUNKED: &str = "5\r\nhello\r\n0\r\n\r\n";

fn length(value: &str, body: &str) -> String {
    with_body(&format!("Content-Length: {value}"), body)
}

/// Single lengths: `Content-Length = 1*DIGIT`. Large ones must not overflow (RFC 9110, section
/// 8.6).
///
/// Invalid ones get 400, and the connection is closed (RFC 9112, section 6.3, item 5).
fn lengths() -> Vec<Vector> {
    let hidden = HIDDEN.len().to_string();
    let mut vectors = vec![
        Vector::open("length of the body", length("5", "hello"), &[200]),
        Vector::open("length zero", length("0", ""), &[200]),
        Vector::open("length with leading zeros", length("0005", "hello"), &[200]),
        Vector::open("length with white space around", length("\t 5 \t", "hello"), &[200]),
        Vector::open("length in lower case", with_body("content-length:5", "hello"), &[200]),
        Vector::open("length of a hidden request", length(&hidden, HIDDEN), &[200]),
        Vector::open("length of an empty line", length("2", "\r\n"), &[200]),
        // The body is incomplete (RFC 9112, section 8). The part received is not a request.
        Vector::closed("length of more than what comes", length("500", HIDDEN), &[200]).cut_short(),
        // The response precedes the body, which the proxy does not read (RFC 9112, section 9.6).
        Vector::closed("length of 2^32 and 5", length("4294967301", HIDDEN), &[200]),
    ];
    let invalid = [
        ("length of 2^64", "18446744073709551616"),
        ("length of 2^64 and 5", "18446744073709551621"),
        ("length of 2^128 and 5", "340282366920938463463374607431768211461"),
        ("length of 400 digits", &"1".repeat(400)),
        ("empty length", ""),
        ("length with plus", "+5"),
        ("length with minus", "-5"),
        ("length minus zero", "-0"),
        ("length in hexadecimal", "0x5"),
        ("length in octal of Python", "0o5"),
        ("length with an underscore", "1_0"),
        ("length with a thousands separator", "1'000"),
        ("length with a dot", "5.0"),
        ("length with an exponent", "5e0"),
        ("length with a space within", "1 0"),
        ("length with a semicolon", "5;"),
        ("length with a comment", "5 (five)"),
        ("length in quotes", "\"5\""),
        ("length with a vertical tab", "\x0b5"),
        ("length with NUL after", "5\0"),
        ("length in Arabic digits", "\u{665}"),
        ("length in words", "five"),
        ("list of different lengths", "5, 6"),
    ];
    vectors.extend(invalid.map(|(name, value)| Vector::bad(name, length(value, "hello"))));
    vectors
}

/// Several lengths: different ones must be refused, equal ones may be (RFC 9110, section 8.6).
///
/// By docs/http-api.md the proxy refuses both.
fn several_lengths() -> Vec<Vector> {
    let two = |first: &str, second: &str| with_body(&format!("{first}\r\n{second}"), "hello");
    vec![
        Vector::bad("two lengths, different", two("Content-Length: 5", "Content-Length: 0")),
        Vector::bad("two lengths, the other way round", two("Content-Length: 0", "Content-Length: 5")),
        Vector::bad("two lengths, the same", two("Content-Length: 5", "Content-Length: 5")),
        Vector::bad("two lengths, the same number", two("Content-Length: 5", "content-length: 05")),
        Vector::bad("two lengths, the second empty", two("Content-Length: 5", "Content-Length:")),
        Vector::bad("list of equal lengths", length("5, 5", "hello")),
        Vector::bad("list that ends with a comma", length("5,", "hello")),
    ]
}

/// Names similar to Content-Length: ignored, so the bytes after the head are the next request.
fn other_names() -> Vec<Vector> {
    let next = "GET /raw/b HTTP/1.1\r\nHost: test\r\n\r\n";
    let names = ["Content_Length", "ContentLength", "X-Content-Length", "Content-Length-", "Content-Lengt"];
    let mut vectors: Vec<Vector> =
        names.map(|name| Vector::open(name, with_body(&format!("{name}: {}", next.len()), next), &[200, 200])).into();
    vectors.extend([
        Vector::bad("Content-Length and a space", with_body("Content-Length : 5", "hello")),
        Vector::bad("Content-Length in two lines", with_body("Content-Length\r\n: 5", "hello")),
        Vector::bad("Content-Length after a space", with_body(" Content-Length: 5", "hello")),
        Vector::bad("Content-Length, folded", with_body("Content-Length:\r\n 5", "hello")),
        Vector::bad("Content-Length continued by folding", with_body("Content-Length: 5\r\n 0", "hello")),
    ]);
    vectors
}

/// Content-Length with Transfer-Encoding: may be refused, and the connection must be closed.
///
/// RFC 9112, section 6.3, item 3, and section 11.2.
fn both() -> Vec<Vector> {
    let (length, coding) = ("Content-Length: 5", "Transfer-Encoding: chunked");
    let after_chunks = format!("0\r\n\r\n{HIDDEN}");
    let whole = format!("Content-Length: {}\r\n{coding}", after_chunks.len());
    vec![
        Vector::bad("length, then chunked", with_body(&format!("{length}\r\n{coding}"), CHUNKED)),
        Vector::bad("chunked, then length", with_body(&format!("{coding}\r\n{length}"), CHUNKED)),
        Vector::bad("chunked and length zero", with_body(&format!("{coding}\r\nContent-Length: 0"), CHUNKED)),
        Vector::bad("length over a request after chunks", with_body(&whole, &after_chunks)),
        Vector::bad("chunked and an invalid length", with_body(&format!("{coding}\r\nContent-Length: x"), CHUNKED)),
        Vector::bad("length and identity", with_body(&format!("{length}\r\nTransfer-Encoding: identity"), "hello")),
        Vector::bad("length and an unknown coding", with_body(&format!("Transfer-Encoding: x\r\n{length}"), "hello")),
        Vector::bad(
            "length and a coding in HTTP/1.0",
            with_body(&format!("{length}\r\n{coding}"), CHUNKED).replace("1.1", "1.0"),
        ),
    ]
}

/// Transfer codings: case-insensitive names (RFC 9112, section 7).
///
/// An unknown coding followed by chunked gets 501. In HTTP/1.0 the framing is faulty (section 6.1).
fn codings() -> Vec<Vector> {
    let coded = |value: &str| with_body(&format!("Transfer-Encoding: {value}"), CHUNKED);
    vec![
        Vector::open("chunked", coded("chunked"), &[200]),
        Vector::open("chunked in mixed case", coded("cHunKED"), &[200]),
        Vector::open("chunked after a tab", coded("\tchunked"), &[200]),
        Vector::open("chunked before white space", coded("chunked \t "), &[200]),
        Vector::open("chunked and no space", with_body("TRANSFER-ENCODING:chunked", CHUNKED), &[200]),
        Vector::open("request in a chunk", with_body("Transfer-Encoding: chunked", &chunk(HIDDEN)), &[200]),
        Vector::closed("gzip, then chunked", coded("gzip, chunked"), &[501]),
        Vector::closed("unknown, then chunked", coded("x-unknown,chunked"), &[501]),
        Vector::closed("two codings, then chunked", coded("deflate, gzip, chunked"), &[501]),
        Vector::bad("no coding", coded("")),
        Vector::bad("chunked in HTTP/1.0", coded("chunked").replace("1.1", "1.0")),
        Vector::bad(
            "chunked in HTTP/1.0 with keep-alive",
            coded("chunked\r\nConnection: keep-alive").replace("1.1", "1.0"),
        ),
    ]
}

/// Last codings other than chunked: refused with 400 (RFC 9112, section 6.3, item 4).
///
/// This holds for known and unknown codings. Some programs accept these variants as chunked.
fn not_chunked() -> Vec<Vector> {
    let coded = |value: &str| with_body(&format!("Transfer-Encoding: {value}"), CHUNKED);
    let last = [
        ("identity", "identity"),
        ("gzip alone", "gzip"),
        ("chunked, then identity", "chunked, identity"),
        ("chunked, then gzip", "chunked, gzip"),
        ("letter before chunked", "xchunked"),
        ("letter after chunked", "chunkedx"),
        ("chunked cut short", "chunke"),
        ("chunked with a space within", "chunk ed"),
        ("two words", "chunked foo"),
        ("chunked in quotes", "\"chunked\""),
        ("chunked in single quotes", "'chunked'"),
        ("chunked in brackets", "[chunked]"),
        ("colon before chunked", ": chunked"),
        ("chunked with a no-break space", "chunked\u{a0}"),
        ("chunked with a Kelvin sign", "chun\u{212a}ed"),
    ];
    last.map(|(name, value)| Vector::bad(name, coded(value))).into()
}

/// Malformed field lines around Transfer-Encoding (RFC 9112, section 5).
fn obfuscated() -> Vec<Vector> {
    let lines = [
        ("coding after vertical tab", "Transfer-Encoding: \x0bchunked"),
        ("coding before vertical tab", "Transfer-Encoding: chunked\x0b"),
        ("coding before form feed", "Transfer-Encoding: chunked\x0c"),
        ("coding before NUL", "Transfer-Encoding: chunked\0"),
        ("coding before DEL", "Transfer-Encoding: chunked\x7f"),
        ("coding before bare CR", "Transfer-Encoding: chunked\r"),
        ("coding after bare LF", "Transfer-Encoding:\nchunked"),
        ("coding after a folded line", "Transfer-Encoding:\r\n chunked"),
        ("coding continued by folding", "Transfer-Encoding: chunked\r\n , identity"),
        ("name and a space", "Transfer-Encoding : chunked"),
        ("name and a tab", "Transfer-Encoding\t: chunked"),
        ("name and NUL", "Transfer-Encoding\0: chunked"),
        ("name and bare CR", "Transfer-Encoding\r: chunked"),
        ("name and bare LF", "Transfer-Encoding\n: chunked"),
        ("name and a line end", "Transfer-Encoding\r\n: chunked"),
        ("name in two words", "Transfer Encoding: chunked"),
        ("name after a space", " Transfer-Encoding: chunked"),
        ("name after vertical tab", "\x0bTransfer-Encoding: chunked"),
        ("name after bare CR", "X: y\r\n\rTransfer-Encoding: chunked"),
        ("name after bare LF", "X: y\nTransfer-Encoding: chunked"),
        ("name after bare CR in a value", "X: y\rTransfer-Encoding: chunked"),
        ("name after NUL in a value", "X: y\0\r\nTransfer-Encoding: chunked"),
    ];
    let mut vectors: Vec<Vector> = lines.map(|(name, lines)| Vector::bad(name, with_body(lines, CHUNKED))).into();
    // Valid fields without effect on the body.
    vectors.extend([
        Vector::open("name with an underscore", with("Transfer_Encoding: chunked"), &[200]),
        Vector::open("name of a prefix", with("Transfer: chunked\r\nTransfer-Encodin: chunked"), &[200]),
        Vector::open("name of the field for accepted codings", with("TE: chunked, trailers"), &[200]),
        Vector::open("content coding", with("Content-Encoding: chunked"), &[200]),
    ]);
    vectors
}

fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n0\r\n\r\n", data.len())
}

/// The end of each body is found or refused by RFC 9112, section 6.
#[test]
fn body_lengths_follow_rfc_9112() {
    let groups = [lengths(), several_lengths(), other_names(), both(), codings(), not_chunked(), obfuscated()];
    check_all("framing", 100, &groups.into_iter().flatten().collect::<Vec<_>>());
}
