//! Request smuggling tests: thousands of mutated body lengths, with requests hidden in and after
//! bodies.
//!
//! The responses must equal those of a model. The model implements only the grammar of RFC 9110 and
//! RFC 9112 and accepts nothing beyond it.

use crate::common::{Proxy, Redis};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

/// Expected or received response to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Value(String),
    Refused,
}

/// Length of a body as the model parses it.
enum Framing {
    Length(usize),
    Chunked,
}

/// Returns the responses of a strict server to `input`. Each value equals its key.
fn run_model(mut input: &[u8]) -> Vec<Outcome> {
    let mut responses = Vec::new();
    while !input.is_empty() {
        let Some((response, rest)) = parse_request(input) else { break };
        let refused = response == Outcome::Refused;
        responses.push(response);
        match rest {
            Some(rest) if !refused => input = rest,
            _ => break,
        }
    }
    responses
}

/// Parses one request and returns its response, and the input after it if the connection stays
/// open.
///
/// Returns `None` if the request is incomplete.
fn parse_request(input: &[u8]) -> Option<(Outcome, Option<&[u8]>)> {
    // One empty line before the request is the only tolerated deviation.
    let input = input.strip_prefix(b"\r\n").unwrap_or(input);
    // An incomplete head gets no response. The input is all that the client sends.
    let head = &input[..input.windows(4).position(|window| window == b"\r\n\r\n")?];
    let body = &input[head.len() + 4..];
    let Some((key, framing, stays_open)) = parse_head(head) else { return Some((Outcome::Refused, None)) };
    let value = Outcome::Value(key);
    match framing {
        Framing::Length(length) => Some((value, body.get(length..).filter(|_| stays_open))),
        Framing::Chunked => match find_chunked_end(body) {
            Ok(Some(end)) => Some((value, stays_open.then(|| &body[end..]))),
            Ok(None) => None,
            Err(()) => Some((Outcome::Refused, None)),
        },
    }
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

/// Parses a head. Returns the key, the framing, and true if the connection stays open.
fn parse_head(head: &[u8]) -> Option<(String, Framing, bool)> {
    let text = String::from_utf8(head.to_vec()).ok()?;
    if text.chars().any(|c| c.is_control() && !"\r\n\t".contains(c)) {
        return None;
    }
    let mut lines = text.split("\r\n");
    let (target, version) = lines.next()?.strip_prefix("GET ")?.split_once(' ')?;
    let key = target.strip_prefix("/raw/")?.to_owned();
    if version != "HTTP/1.1" && version != "HTTP/1.0" {
        return None;
    }
    let (mut hosts, mut lengths, mut codings) = (Vec::new(), Vec::new(), Vec::new());
    for line in lines {
        if line.contains(['\r', '\n']) {
            return None;
        }
        let (name, value) = line.split_once(':')?;
        if !is_token(name.as_bytes()) {
            return None;
        }
        let value = value.trim_matches([' ', '\t']).to_owned();
        match name.to_ascii_lowercase().as_str() {
            "host" => hosts.push(value),
            "content-length" => lengths.push(value),
            "transfer-encoding" => codings.push(value.to_ascii_lowercase()),
            _ => {}
        }
    }
    let framing = match (&lengths[..], &codings[..]) {
        ([], []) => Framing::Length(0),
        ([length], []) if !length.is_empty() && length.len() <= 18 && length.bytes().all(|b| b.is_ascii_digit()) => {
            Framing::Length(length.parse().ok()?)
        }
        ([], [coding]) if coding == "chunked" && version == "HTTP/1.1" => Framing::Chunked,
        _ => return None,
    };
    let long = matches!(framing, Framing::Length(length) if length > 1024 * 1024);
    (hosts.len() == 1).then_some((key, framing, version == "HTTP/1.1" && !long))
}

/// Returns the end of a chunked body, `None` if it is incomplete, or an error if it is malformed.
fn find_chunked_end(body: &[u8]) -> Result<Option<usize>, ()> {
    let mut at = 0;
    // A line ends with CR LF. A bare CR or LF is an error.
    let line_at = |at: usize| -> Result<Option<&[u8]>, ()> {
        let Some(end) = body[at..].iter().position(|byte| b"\r\n".contains(byte)) else { return Ok(None) };
        let line = &body[at..at + end];
        if body[at + end..].starts_with(b"\r\n") { Ok(Some(line)) } else { Err(()) }
    };
    loop {
        let Some(line) = line_at(at)? else { return Ok(None) };
        let mut parts = line.split(|&byte| byte == b';');
        let size = parts.next().unwrap_or_default();
        let is_size = (1..=16).contains(&size.len()) && size.iter().all(u8::is_ascii_hexdigit);
        // No quoted value in this test contains a semicolon.
        if !is_size || !parts.all(is_extension) {
            return Err(());
        }
        let size = u64::from_str_radix(&String::from_utf8_lossy(size), 16).map_err(|_| ())?;
        if size > 1024 * 1024 {
            return Err(());
        }
        at += line.len() + 2;
        if size == 0 {
            break;
        }
        let end = at + size as usize;
        match body.get(end..end + 2) {
            Some(b"\r\n") => at = end + 2,
            Some(_) => return Err(()),
            None => return Ok(None),
        }
    }
    loop {
        let Some(line) = line_at(at)? else { return Ok(None) };
        at += line.len() + 2;
        let colon = line.iter().position(|&byte| byte == b':');
        match colon {
            _ if line.is_empty() => return Ok(Some(at)),
            Some(colon) if is_token(&line[..colon]) && is_text(&line[colon..]) => {}
            _ => return Err(()),
        }
    }
}

fn is_extension(text: &[u8]) -> bool {
    let mut parts = text.splitn(2, |&byte| byte == b'=');
    let name = parts.next().unwrap_or_default();
    let is_value = |value: &[u8]| match value {
        [b'"', inside @ .., b'"'] => is_text(inside) && !inside.contains(&b'"') && !inside.contains(&b'\\'),
        value => is_token(value),
    };
    is_token(name) && parts.next().is_none_or(is_value)
}

fn is_text(text: &[u8]) -> bool {
    text.iter().all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f))
}

/// Returns field lines that declare the length of the body, valid or nearly so. `{n}` is the
/// length.
fn mutations() -> Vec<String> {
    const LENGTHS: [&str; 26] = [
        "{n}",
        "0{n}",
        "0000000000000000000{n}",
        "+{n}",
        "-{n}",
        "-0",
        "+0",
        "0",
        "",
        " ",
        "0x{n}",
        "{n}h",
        "{n}.0",
        "{n},",
        ",{n}",
        "{n},{n}",
        "{n}, {n}",
        "{n} {n}",
        "{n};",
        "\"{n}\"",
        "'{n}'",
        "{n}e0",
        "1e1",
        "９",
        "99999999",
        "999999999999999999999",
    ];
    const CODINGS: [&str; 28] = [
        "chunked",
        "Chunked",
        "CHUNKED",
        "cHuNkEd",
        "chunKed",
        "chunked,",
        ",chunked",
        "chunked, chunked",
        "identity",
        "gzip",
        "chunked, identity",
        "identity, chunked",
        "gzip, chunked",
        "chunked;",
        "chunked;q=1",
        "xchunked",
        "chunkedx",
        "chunke",
        "chunk ed",
        "\"chunked\"",
        "'chunked'",
        "",
        " ",
        "0",
        "chunked chunked",
        "chünked",
        "ch\u{212a}ed",
        "false",
    ];
    const ODD: [&str; 14] =
        ["", " ", "  ", "\t", "\x0b", "\x0c", "\0", "\x01", "\x08", "\x1b", "\x7f", "\r", "\n", "\u{a0}"];
    let mut lines: Vec<String> = Vec::new();
    for (name, values) in [("Content-Length", &LENGTHS[..]), ("Transfer-Encoding", &CODINGS[..])] {
        let upper = name.to_ascii_uppercase();
        let lower = name.to_ascii_lowercase();
        let plain = values[0];
        for value in values {
            lines.extend([format!("{name}: {value}"), format!("{lower}:{value}"), format!("{upper}:\t{value} \t")]);
        }
        for odd in ODD {
            lines.extend([
                format!("{odd}{name}: {plain}"),
                format!("{name}{odd}: {plain}"),
                format!("{name}:{odd}{plain}"),
                format!("{name}: {plain}{odd}"),
                format!("{}{odd}{}: {plain}", &name[..7], &name[7..]),
                format!("X: y{odd}{name}: {plain}"),
                format!("X: y\r\n{odd}{name}: {plain}"),
                format!("X: y{odd}\r\n{name}: {plain}"),
            ]);
        }
        let parts = name.replace('-', "_");
        lines.extend(
            [parts, name.replace('-', ""), format!("X-{name}"), format!("{name}X"), format!("\"{name}\"")]
                .map(|name| format!("{name}: {plain}")),
        );
        lines.extend([
            name.to_owned(),
            format!("{name} {plain}"),
            format!("{name};{plain}"),
            format!(": {plain}"),
            format!("{name}:: {plain}"),
        ]);
    }
    // Two lines, in both orders, with several line ends.
    let pairs = [
        "Content-Length: {n}",
        "content-length: {n}",
        "Content-Length: 0",
        "Transfer-Encoding: chunked",
        "transfer-encoding: Chunked",
        "Transfer-Encoding: identity",
        "Transfer-Encoding : chunked",
        "Content-Length : {n}",
    ];
    for first in pairs {
        for second in pairs {
            for end in ["\r\n", "\n", "\r", "\n\r", "\r\n ", "\r\n\t", "\r\nX: y\r\n", "\r\n\r\n"] {
                lines.push(format!("{first}{end}{second}"));
            }
        }
    }
    lines
}

/// Chunked bodies, valid and malformed.
const CHUNKED_BODIES: [&str; 58] = [
    "0\r\n\r\n",
    "5\r\nhello\r\n0\r\n\r\n",
    "5;a=b\r\nhello\r\n0\r\n\r\n",
    "05\r\nhello\r\n0\r\n\r\n",
    "\r\n\r\n",
    "0\n\n",
    "0\r\n\n",
    "0\n\r\n",
    " 0\r\n\r\n",
    "0 \r\n\r\n",
    "+0\r\n\r\n",
    "-0\r\n\r\n",
    "0x0\r\n\r\n",
    "-1\r\n\r\n",
    "00000000000000000\r\n\r\n",
    "5\r\nhelloX\r\n0\r\n\r\n",
    "5\r\nhello0\r\n\r\n",
    "5\nhello\r\n0\r\n\r\n",
    "5;\0\r\nhello\r\n0\r\n\r\n",
    "5;a\nb\r\nhello\r\n0\r\n\r\n",
    "g\r\n\r\n",
    ";a\r\n\r\n",
    "ffffffffffffffff5\r\nhello\r\n0\r\n\r\n",
    "100000005\r\nhello\r\n0\r\n\r\n",
    "0000000000000005\r\nhello\r\n0\r\n\r\n",
    "00000000000000005\r\nhello\r\n0\r\n\r\n",
    "8000000000000000\r\nhello\r\n0\r\n\r\n",
    "0;a;b=c;d=\"e f\"\r\n\r\n",
    "0;\r\n\r\n",
    "0;;a\r\n\r\n",
    "0; a\r\n\r\n",
    "0;a \r\n\r\n",
    "0;a=\r\n\r\n",
    "0;a=\"b\r\n\r\n",
    "0;a=\"b\"c\r\n\r\n",
    "0;\"a\"\r\n\r\n",
    "0;a=b=c\r\n\r\n",
    "0;\u{e9}\r\n\r\n",
    "0;a=\"\u{e9}\t\"\r\n\r\n",
    "0;a\rb\r\n\r\n",
    "0\r\nA: b\r\n\r\n",
    "0\r\nA:\r\nB: \u{e9}\r\n\r\n",
    "0\r\nContent-Length: 5\r\n\r\n",
    "0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "0\r\nnothing\r\n\r\n",
    "0\r\n: b\r\n\r\n",
    "0\r\nA : b\r\n\r\n",
    "0\r\n A: b\r\n\r\n",
    "0\r\nA: b\r\n c\r\n\r\n",
    "0\r\nA: b\n\r\n",
    "0\r\nA: b\r\r\n\r\n",
    "0\r\nA: \0\r\n\r\n",
    "0\r\nA: b\r\n\n",
    "0\r\n\r",
    "0\r\n",
    "5\r\nhello\r\n",
    "5\r\nhello\r\n0\r\nA: b\r\nC: d\r\n\r\n",
    "5;a=\"b\"\r\nhello\r\n0;c\r\nA: b\r\n\r\n",
];

const SMUGGLED: &str = "GET /raw/smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
const LAST: &str = "GET /raw/last HTTP/1.1\r\nHost: x\r\n\r\n";

/// Returns a request with this field line and body, and a second request after it.
fn build_conversation(line: &str, version: &str, body: &str) -> Vec<u8> {
    let line = line.replace("{n}", &body.len().to_string());
    format!("GET /raw/first HTTP/{version}\r\nHost: x\r\n{line}\r\n\r\n{body}{LAST}").into_bytes()
}

/// Sends `input` and returns all responses.
fn exchange(proxy: &Proxy, input: &[u8]) -> Vec<Outcome> {
    let mut stream = TcpStream::connect(proxy.address).expect("the proxy accepts connections");
    stream.set_read_timeout(Some(crate::common::TEST_TIMEOUT)).expect("a time-out can be set");
    // The proxy may close before all bytes are sent.
    let _ = stream.write_all(input);
    let _ = stream.shutdown(Shutdown::Write);
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("the proxy closes without a reset");
    let mut text = String::from_utf8(all).expect("text");
    let mut responses = Vec::new();
    while !text.is_empty() {
        let (head, rest) = text.split_once("\r\n\r\n").expect("a whole head");
        assert!(!head.contains("Access-Control"), "{head}");
        let length = head.split_once("Content-Length: ").expect("a length").1;
        let length: usize = length.split("\r\n").next().expect("a line").parse().expect("a number");
        let (body, rest) = rest.split_at(length);
        responses.push(match head.starts_with("HTTP/1.1 200") {
            true => Outcome::Value(body.to_owned()),
            false => Outcome::Refused,
        });
        text = rest.to_owned();
    }
    responses
}

/// The proxy gives exactly the responses of the strict model.
#[test]
fn smuggling_mutations_match_strict_model() {
    let redis = Redis::start();
    ["first", "smuggled", "last"].iter().for_each(|key| redis.set(*key, *key));
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
    let in_chunk = format!("{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len());
    let after_chunk = format!("0\r\n\r\n{SMUGGLED}");
    let mut conversations = Vec::new();
    for line in mutations() {
        for version in ["1.1", "1.0"] {
            for body in [SMUGGLED, &in_chunk, &after_chunk, ""] {
                conversations.push(build_conversation(&line, version, body));
            }
        }
    }
    for body in CHUNKED_BODIES {
        for rest in ["", SMUGGLED] {
            conversations.push(build_conversation("Transfer-Encoding: chunked", "1.1", &format!("{body}{rest}")));
        }
    }
    let (mut refused, mut both, mut smuggled) = (0, 0, 0);
    for input in &conversations {
        let expected = run_model(input);
        let shown = String::from_utf8_lossy(input);
        assert_eq!(exchange(&proxy, input), expected, "{shown:?}");
        refused += usize::from(expected == [Outcome::Refused]);
        both += usize::from(expected.last() == Some(&Outcome::Value("last".into())));
        smuggled += usize::from(expected.contains(&Outcome::Value("smuggled".into())));
    }
    println!(
        "{} conversations: {refused} refused, {both} read to the end, {smuggled} with a request after a complete body",
        conversations.len()
    );
    assert!(conversations.len() > 5000 && refused > 1000 && both > 100, "too few conversations of a kind");
}
