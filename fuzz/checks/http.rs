//! Request heads and bodies: what is decoded does not depend on how the bytes are cut, and bodies end where RFC 9112 says.

use super::choices::Choices;
use segment_redis_proxy::protocol::Decoded;
use segment_redis_proxy::protocol::http::{
    self, AllowedHosts, Body, Head, HeadDecoder, HttpOperation, HttpRefusal, MAX_HEAD_BYTES, Policy,
};

/// The empty line that may stand before a head.
pub const EMPTY_LINE_BYTES: usize = 2;

/// Longest chunk-size line's extension and longest trailer section, as the decoder has them.
const MAX_LINE_BYTES: usize = 4096;

/// More than a chunk here can have.
const MOST_BYTES: usize = 1024 * 1024;

/// Up to here every prefix is decoded; beyond, as many as the choices cut.
const ALL_PREFIXES: usize = 200;

/// See the top of the file.
pub fn check(input: &[u8]) {
    let (mut choices, wire) = Choices::split(input);
    check_head(wire, &mut choices);
    check_chunks(wire, &mut choices);
}

/// The one place that knows how heads are decoded. Requests for any other host than `x` are refused.
fn decode<'a>(wire: &'a [u8], heads: &'a mut HeadDecoder) -> Decoded<Head<'a>, HttpRefusal> {
    let policy =
        Policy { allowed_hosts: AllowedHosts::parse("x").unwrap_or_default(), admin: true, ..Policy::default() };
    http::decode(wire, &policy, heads)
}

fn check_head(wire: &[u8], choices: &mut Choices) {
    let mut heads = HeadDecoder::new();
    let whole = decode(wire, &mut heads);
    let mut ends: Vec<usize> = (0..=wire.len().min(ALL_PREFIXES)).collect();
    if let Decoded::Complete(head, length) = &whole {
        assert!((1..=wire.len().min(MAX_HEAD_BYTES + EMPTY_LINE_BYTES)).contains(length), "a head of {length} bytes");
        if let HttpOperation::Get(key) = head.operation {
            assert!(key.len() < *length, "a key that is longer than its head");
        }
        check_length(head.body, &wire[*length..], choices);
        ends.extend([*length - 1, *length]);
    }
    let mut at = 0;
    choices.cut(wire, |piece| {
        at += piece.len();
        ends.push(at);
        true
    });
    ends.sort_unstable();
    check_prefixes(wire, &ends, &whole);
}

/// Nothing can be said of a prefix, until what is said is what is said of the whole.
fn check_prefixes(wire: &[u8], ends: &[usize], whole: &Decoded<Head<'_>, HttpRefusal>) {
    // What other heads have left there makes no difference, nor that the fields of this one are known already.
    let mut heads = HeadDecoder::new();
    assert_eq!(decode(wire, &mut heads), *whole, "decoded anew");
    heads.key = b"left over".to_vec();
    assert_eq!(decode(wire, &mut heads), *whole, "decoded again");
    let mut decided = false;
    for &end in ends {
        let found = decode(&wire[..end], &mut heads);
        match (&found, whole) {
            (Decoded::Incomplete, Decoded::Complete(_, length)) => assert!(end < *length, "incomplete at {end}"),
            (Decoded::Incomplete, _) => assert!(!decided, "incomplete again at {end}"),
            (Decoded::Complete(_, length), _) if end < *length => panic!("complete at {end}, with {length} bytes"),
            _ => assert_eq!(found, *whole, "at {end}"),
        }
        assert!(
            found != Decoded::Incomplete || end < MAX_HEAD_BYTES + EMPTY_LINE_BYTES,
            "{end} bytes, and still not decided"
        );
        decided |= found != Decoded::Incomplete;
    }
}

/// A body whose length was told ends there.
fn check_length(body: Body, rest: &[u8], choices: &mut Choices) {
    match body {
        Body::Done => {}
        Body::Length(length) => {
            let end = usize::try_from(length).ok().filter(|&end| end <= rest.len());
            check_body(body, rest, end, choices);
        }
        Body::Chunked(..) => check_chunks(rest, choices),
    }
}

fn check_chunks(wire: &[u8], choices: &mut Choices) {
    check_body(Body::CHUNKED, wire, end_of_chunks(wire), choices);
}

/// Skips it whole and in pieces: it ends at `end`, if it ends.
fn check_body(body: Body, wire: &[u8], end: Option<usize>, choices: &mut Choices) {
    let (mut whole, mut pieces, mut at) = (body, body, 0);
    let skipped = whole.skip(wire);
    assert_eq!(skipped.ok().filter(|_| whole == Body::Done), end, "where it ends");
    let mut failed = false;
    choices.cut(wire, |piece| {
        match pieces.skip(piece) {
            Ok(consumed) => {
                assert!(consumed == piece.len() || (consumed < piece.len() && pieces == Body::Done));
                at += consumed;
            }
            Err(_) => failed = true,
        }
        !failed && pieces != Body::Done
    });
    assert_eq!(skipped.is_err(), failed, "whole and in pieces");
    assert!(failed || (skipped == Ok(at) && whole == pieces), "{skipped:?} whole, {at} in pieces");
}

/// Where a chunked body ends, if it is well-formed and there whole. To be read beside RFC 9112, section 7.1.
fn end_of_chunks(wire: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = line_at(wire, at)?;
        at += line.len() + 2;
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (size, extensions) = line.split_at(digits);
        if !(1..=16).contains(&digits) || !are_extensions(extensions) {
            return None;
        }
        let size = usize::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok().filter(|&size| size < MOST_BYTES)?;
        if size == 0 {
            break;
        }
        if wire.get(at + size..at + size + 2)? != b"\r\n" {
            return None;
        }
        at += size + 2;
    }
    let mut trailers = 0;
    loop {
        let line = line_at(wire, at)?;
        at += line.len() + 2;
        if line.is_empty() {
            return Some(at);
        }
        trailers += line.len();
        let (name, value) = line.split_at(line.iter().position(|&byte| byte == b':')?);
        if !is_token(name) || !is_text(value) || trailers > MAX_LINE_BYTES {
            return None;
        }
    }
}

/// `;name`, `;name=token` and `;name="quoted"`, any number of them.
fn are_extensions(text: &[u8]) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let Some(named) = rest.strip_prefix(b";") else { return false };
        let name = token(named);
        rest = &named[name.len()..];
        if name.is_empty() {
            return false;
        }
        let Some(valued) = rest.strip_prefix(b"=") else { continue };
        rest = match valued.strip_prefix(b"\"") {
            None => {
                let value = token(valued);
                if value.is_empty() {
                    return false;
                }
                &valued[value.len()..]
            }
            Some(quoted) => match end_of_quoted(quoted) {
                Some(end) => &quoted[end..],
                None => return false,
            },
        };
    }
    text.len() <= 1 + MAX_LINE_BYTES
}

/// Where a quoted text ends, behind its quotation mark.
fn end_of_quoted(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' if is_text(text.get(at + 1..at + 2)?) => at += 2,
            byte if is_text(&[byte]) => at += 1,
            _ => return None,
        }
    }
}

/// The token at the beginning.
fn token(text: &[u8]) -> &[u8] {
    let end = text.iter().position(|byte| !byte.is_ascii_alphanumeric() && !b"!#$%&'*+-.^_`|~".contains(byte));
    &text[..end.unwrap_or(text.len())]
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && token(text).len() == text.len()
}

/// What stands before the next CR and LF.
fn line_at(wire: &[u8], at: usize) -> Option<&[u8]> {
    let rest = wire.get(at..)?;
    let end = rest.iter().position(|&byte| byte == b'\r')?;
    (rest.get(end + 1) == Some(&b'\n')).then_some(&rest[..end])
}

fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f))
}
