//! Vectors of the chunked coding: RFC 9112, section 7.1.
//!
//! The length of a malformed body is uncertain, so it is refused with 400 (section 6.3).

use super::{HIDDEN, Vector, check_all, with_body};

/// Returns a request with this chunked body.
fn chunked(body: &str) -> String {
    with_body("Transfer-Encoding: chunked", body)
}

/// Returns a request with a chunk of five bytes and this size line.
fn size(line: &str) -> String {
    chunked(&format!("{line}\r\nhello\r\n0\r\n\r\n"))
}

/// Chunk sizes: `chunk-size = 1*HEXDIG`. Large ones must not overflow (section 7.1).
fn sizes() -> Vec<Vector> {
    let valid = [("size", "5"), ("size with a leading zero", "05"), ("size of sixteen digits", "0000000000000005")];
    let mut vectors: Vec<Vector> = valid.map(|(name, line)| Vector::open(name, size(line), &[200])).into();
    vectors.extend([
        Vector::open("size in lower case", chunked("a\r\n0123456789\r\n0\r\n\r\n"), &[200]),
        Vector::open("size in upper case", chunked("A\r\n0123456789\r\n0\r\n\r\n"), &[200]),
        Vector::open("no chunk but the last", chunked("0\r\n\r\n"), &[200]),
        Vector::open("last chunk of several zeros", chunked("000\r\n\r\n"), &[200]),
        Vector::open("chunks of one byte", chunked("1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n"), &[200]),
        Vector::open("chunk of line ends", chunked("4\r\n\r\n\r\n\r\n0\r\n\r\n"), &[200]),
        Vector::open("chunk that looks like the last", chunked("5\r\n0\r\n\r\n\r\n0\r\n\r\n"), &[200]),
        Vector::open(
            "chunk with a request in it",
            chunked(&format!("{:X}\r\n{HIDDEN}\r\n0\r\n\r\n", HIDDEN.len())),
            &[200],
        ),
        // Exceeds the limit of a body in docs/http-api.md (RFC 9110, section 15.5.14).
        Vector::closed("size of 4 GiB", chunked(&format!("FFFFFFFF\r\n{}", "x".repeat(2 * 1024 * 1024))), &[413]),
    ]);
    let invalid = [
        ("empty size", ""),
        ("size after 0x", "0x5"),
        ("size before h", "5h"),
        ("size with an underscore", "0_5"),
        ("size with plus", "+5"),
        ("size with minus", "-5"),
        ("size with a dot", "5.0"),
        ("size with a comma", "5,5"),
        ("size with a letter that is no digit", "5g"),
        ("size after a space", " 5"),
        ("size after a tab", "\t5"),
        ("size before a space", "5 "),
        ("size before a tab", "5\t"),
        ("size before vertical tab", "5\x0b"),
        ("size before NUL", "5\0"),
        ("size with a space within", "0 5"),
        ("size in quotes", "\"5\""),
        ("size in full-width digits", "\u{ff15}"),
        ("size of 2^64 and 5", "10000000000000005"),
        ("size of 2^68 less 11", "ffffffffffffffff5"),
        ("size after a line end", "\r\n5"),
    ];
    vectors.extend(invalid.map(|(name, line)| Vector::bad(name, size(line))));
    vectors
}

/// Line ends: lines and data end with CR LF only (section 7.1).
fn ends() -> Vec<Vector> {
    let hidden = format!("5\r\nhelloXX2d\r\n0\r\n\r\n{HIDDEN}");
    vec![
        Vector::bad("bare LF after a size", chunked("5\nhello\r\n0\r\n\r\n")),
        Vector::bad("bare CR after a size", chunked("5\rhello\r\n0\r\n\r\n")),
        Vector::bad("CR CR LF after a size", chunked("5\r\r\nhello\r\n0\r\n\r\n")),
        Vector::bad("LF CR after a size", chunked("5\n\rhello\r\n0\r\n\r\n")),
        Vector::bad("bare LF after data", chunked("5\r\nhello\n0\r\n\r\n")),
        Vector::bad("bare CR after data", chunked("5\r\nhello\r0\r\n\r\n")),
        Vector::bad("nothing after data", chunked("5\r\nhello0\r\n\r\n")),
        Vector::bad("other bytes after data", chunked(&hidden)),
        Vector::bad("data longer than its size", chunked("4\r\nhello\r\n0\r\n\r\n")),
        Vector::bad("data shorter than its size", chunked("6\r\nhello\r\n0\r\n\r\n")),
        Vector::bad("two line ends after data", chunked("5\r\nhello\r\n\r\n0\r\n\r\n")),
        Vector::bad("bare LF after the last size", chunked("0\n\r\n")),
        Vector::bad("bare LF at the end", chunked("0\r\n\n")),
        Vector::bad("bare CR at the end", chunked("0\r\n\rX")),
        Vector::bad("bare LFs everywhere", chunked("5\nhello\n0\n\n")),
        // The request line of the probe then takes the place of a trailer field.
        Vector::bad("no empty line at the end", chunked("0\r\n")),
        Vector::closed("no last chunk", chunked("ffff\r\nhello\r\n"), &[]),
    ]
}

/// Extensions: `;name`, `;name=token` or `;name="quoted"`.
///
/// Unknown ones are ignored (section 7.1.1). White space around them is bad white space, which
/// recipients must remove (RFC 9110, section 5.6.3).
fn extensions() -> Vec<Vector> {
    let valid = [
        ("extension", "5;a"),
        ("extension with a value", "5;a=b"),
        ("extension with a quoted value", "5;a=\"b c\""),
        ("extension with an empty quoted value", "5;a=\"\""),
        ("extension with an escaped quote", "5;a=\"b\\\"c\""),
        ("extension with a quoted semicolon", "5;a=\"b;c\""),
        ("extension with a quoted size", "5;a=\"0\";b"),
        ("several extensions", "5;a;b=c;d=\"e\""),
    ];
    let invalid = [
        ("extension without a name", "5;"),
        ("extension with a value alone", "5;=b"),
        ("extension without a value", "5;a="),
        ("extension with an open quote", "5;a=\"b"),
        ("extension with text after the quote", "5;a=\"b\"c"),
        ("extension with a quoted name", "5;\"a\"=b"),
        ("two semicolons", "5;;a"),
        ("comma for a semicolon", "5,a"),
        ("extension with NUL", "5;a\0"),
        ("extension with a control", "5;a=\x01"),
        ("extension with bare CR", "5;a\rb"),
        ("extension with bare LF", "5;a\nb"),
        ("extension with a quoted bare LF", "5;a=\"\nb\""),
        ("extension with an escaped LF", "5;a=\"\\\nb\""),
        ("extension of UTF-8", "5;é"),
    ];
    let spaced = [
        ("space before the semicolon", "5 ;a"),
        ("space after the semicolon", "5; a"),
        ("tabs around the equals sign", "5;a\t=\tb"),
    ];
    let mut vectors: Vec<Vector> = valid.map(|(name, line)| Vector::open(name, size(line), &[200])).into();
    vectors.extend(invalid.map(|(name, line)| Vector::bad(name, size(line))));
    // By docs/http-api.md the proxy refuses input that two programs could parse differently, as
    // here.
    vectors.extend(spaced.map(|(name, line)| Vector::open(name, size(line), &[200]).differing(&[400], false)));
    vectors.push(Vector::open("extension of the last chunk", chunked("0;a=\"b\"\r\n\r\n"), &[200]));
    vectors
}

/// Trailer fields: field lines that the proxy ignores (section 7.1.2; RFC 9110, section 6.5.1).
///
/// None of them affects the message.
fn trailers() -> Vec<Vector> {
    let trailer = |lines: &str| chunked(&format!("5\r\nhello\r\n0\r\n{lines}\r\n\r\n"));
    let valid = [
        ("trailer field", "A: b"),
        ("trailer field without a value", "A:"),
        ("two trailer fields", "A: b\r\nC: d"),
        ("length as a trailer field", "Content-Length: 500"),
        ("coding as a trailer field", "Transfer-Encoding: chunked"),
        ("Host as a trailer field", "Host: a b"),
        ("Connection as a trailer field", "Connection: close"),
        ("Expect as a trailer field", "Expect: miracles"),
    ];
    let invalid = [
        ("trailer line without a colon", "nothing"),
        ("trailer field without a name", ": b"),
        ("trailer field with a space before the colon", "A : b"),
        ("trailer field after a space", " A: b"),
        ("trailer field, folded", "A: b\r\n c"),
        ("trailer field with NUL", "A: b\0"),
        ("trailer field with bare CR", "A: b\rc"),
        ("trailer field with bare LF", "A: b\nC: d"),
        ("trailer name with bare LF", "A\n: b"),
        ("request line for a trailer field", "GET /raw/hidden HTTP/1.1"),
        ("chunk after the last one", "5\r\nhello"),
    ];
    let mut vectors: Vec<Vector> = valid.map(|(name, lines)| Vector::open(name, trailer(lines), &[200])).into();
    vectors.extend(invalid.map(|(name, lines)| Vector::bad(name, trailer(lines))));
    vectors
}

/// Chunked bodies are decoded or refused by RFC 9112, section 7.1.
#[test]
fn chunked_bodies_follow_rfc_9112() {
    let groups = [sizes(), ends(), extensions(), trailers()];
    check_all("chunks", 85, &groups.into_iter().flatten().collect::<Vec<_>>());
}
