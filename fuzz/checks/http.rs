//! Fuzz check of request heads and bodies: the result does not depend on how the input is split,
//! and bodies end where RFC 9112 says.

use super::choices::Choices;
use segment_redis_proxy::protocol::Decoded;
use segment_redis_proxy::protocol::http::{
    self, AllowedHosts, Body, Head, HeadDecoder, HttpOperation, HttpRefusal, MAX_HEAD_BYTES, Policy, Resources,
};

/// Length of the empty line that may precede a head.
pub const EMPTY_LINE_BYTES: usize = 2;

/// Maximum length of chunk extensions and of a trailer section, as in the decoder.
const MAX_LINE_BYTES: usize = 4096;

/// Limit for the size of a chunk: more than any input has.
const MAX_CHUNK_BYTES: usize = 1024 * 1024;

/// Length up to which every prefix is decoded. Of longer prefixes only those at the chosen splits
/// are.
const ALL_PREFIXES: usize = 200;

/// Checks one input.
pub fn check(input: &[u8]) {
    let (mut choices, wire) = Choices::split(input);
    check_head(wire, &mut choices);
    check_chunks(wire, &mut choices);
}

/// Decodes a head. The only function that knows the decoder. It refuses hosts other than `x`.
fn decode<'a>(wire: &'a [u8], decoder: &'a mut HeadDecoder) -> Decoded<Head<'a>, HttpRefusal> {
    let policy = Policy {
        allowed_hosts: AllowedHosts::parse("x").unwrap_or_default(),
        resources: Resources::All,
        ..Policy::default()
    };
    http::decode(wire, &policy, decoder)
}

fn check_head(wire: &[u8], choices: &mut Choices) {
    let mut decoder = HeadDecoder::new();
    let whole = decode(wire, &mut decoder);
    let mut ends: Vec<usize> = (0..=wire.len().min(ALL_PREFIXES)).collect();
    if let Decoded::Complete(head, length) = &whole {
        assert!((1..=wire.len().min(MAX_HEAD_BYTES + EMPTY_LINE_BYTES)).contains(length), "a head of {length} bytes");
        if let HttpOperation::Get(key) = head.operation {
            assert!(key.len() < *length, "the key is longer than its head");
        }
        check_length(head.body, &wire[*length..], choices);
        ends.extend([*length - 1, *length]);
    }
    let mut at = 0;
    choices.for_each_piece(wire, |piece| {
        at += piece.len();
        ends.push(at);
        true
    });
    ends.sort_unstable();
    check_prefixes(wire, &ends, &whole);
}

/// Checks that each prefix is incomplete, or decodes to the same result as the whole input.
fn check_prefixes(wire: &[u8], ends: &[usize], whole: &Decoded<Head<'_>, HttpRefusal>) {
    // Neither leftovers of other heads nor cached fields may change the result.
    let mut decoder = HeadDecoder::new();
    assert_eq!(decode(wire, &mut decoder), *whole, "second decode");
    decoder.key_scratch = b"left over".to_vec();
    assert_eq!(decode(wire, &mut decoder), *whole, "third decode");
    let mut decided = false;
    for &end in ends {
        let found = decode(&wire[..end], &mut decoder);
        match (&found, whole) {
            (Decoded::Incomplete, Decoded::Complete(_, length)) => assert!(end < *length, "incomplete at {end}"),
            (Decoded::Incomplete, _) => assert!(!decided, "incomplete again at {end}"),
            (Decoded::Complete(_, length), _) if end < *length => panic!("complete at {end}, with {length} bytes"),
            _ => assert_eq!(found, *whole, "at {end}"),
        }
        assert!(
            found != Decoded::Incomplete || end < MAX_HEAD_BYTES + EMPTY_LINE_BYTES,
            "{end} bytes are still incomplete"
        );
        decided |= found != Decoded::Incomplete;
    }
}

/// Checks that a body ends at its declared length.
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

/// Skips a body at once and in pieces, and checks that it ends at `end`, if at all.
fn check_body(body: Body, wire: &[u8], end: Option<usize>, choices: &mut Choices) {
    let (mut whole, mut pieces, mut at) = (body, body, 0);
    let skipped = whole.skip(wire);
    assert_eq!(skipped.ok().filter(|_| whole == Body::Done), end, "end of the body");
    let mut failed = false;
    choices.for_each_piece(wire, |piece| {
        match pieces.skip(piece) {
            Ok(consumed) => {
                assert!(consumed == piece.len() || (consumed < piece.len() && pieces == Body::Done));
                at += consumed;
            }
            Err(_) => failed = true,
        }
        !failed && pieces != Body::Done
    });
    assert_eq!(skipped.is_err(), failed, "at once and in pieces");
    assert!(failed || (skipped == Ok(at) && whole == pieces), "{skipped:?} at once, {at} in pieces");
}

/// Returns the end of a chunked body, if it is well-formed and complete (RFC 9112, section 7.1).
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
        let size =
            usize::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok().filter(|&size| size < MAX_CHUNK_BYTES)?;
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

/// Returns true for any number of `;name`, `;name=token` and `;name="quoted"`.
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

/// Returns the index behind the closing quotation mark.
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

/// Returns the token at the start.
fn token(text: &[u8]) -> &[u8] {
    let end = text.iter().position(|byte| !byte.is_ascii_alphanumeric() && !b"!#$%&'*+-.^_`|~".contains(byte));
    &text[..end.unwrap_or(text.len())]
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && token(text).len() == text.len()
}

/// Returns the line that ends with the next CR and LF.
fn line_at(wire: &[u8], at: usize) -> Option<&[u8]> {
    let rest = wire.get(at..)?;
    let end = rest.iter().position(|&byte| byte == b'\r')?;
    (rest.get(end + 1) == Some(&b'\n')).then_some(&rest[..end])
}

fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f))
}
