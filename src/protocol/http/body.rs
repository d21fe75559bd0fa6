//! Request bodies. No request that this program answers needs one, so they are skipped: exactly, because a byte too
//! few or too many would make a request out of what a client only sent as data (RFC 9112, section 11.2).

use super::{HttpRefusal, Status, bad_request};

/// Most bytes of one body that are skipped; a longer one ends the connection. No request needs a body at all.
const MAX_SKIPPED_BYTES: u64 = 1024 * 1024;

/// Longest extensions of a chunk, and longest trailer section, that are read over, in bytes.
const MAX_LINE_BYTES: u16 = 4096;

/// Most hexadecimal digits of a chunk's size, with leading zeros: what 64 bits hold.
const MAX_SIZE_DIGITS: u8 = 16;

/// What is left of the current request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing.
    Done,
    /// That many bytes (`Content-Length`).
    Length(u64),
    /// Chunks (RFC 9112, section 7.1), and how many bytes of them have been skipped.
    Chunked(ChunkState, u64),
}

/// Where in the chunked coding the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkState {
    /// In a chunk's size: digits so far, and their value.
    Size(u8, u64),
    /// In a chunk extension, with the chunk's size and how long the extensions are.
    Extension(u64, u16, Extension),
    /// At the line feed that ends a chunk-size line.
    SizeEnd(u64),
    /// In a chunk, that many bytes before its end.
    Data(u64),
    /// At the carriage return behind a chunk's data.
    DataEnd,
    /// At the line feed behind it.
    DataLineFeed,
    /// In the trailer section, and how long it is so far.
    Trailer(u16, Trailer),
    /// At the line feed of a trailer line; true for the empty line that ends the message.
    TrailerLineFeed(u16, bool),
}

/// Where in a chunk extension: `;name`, `;name=token` or `;name="quoted"` (RFC 9112, section 7.1.1), without the white space
/// that is only there to be understood in two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// At the first byte of a name.
    NameBegins,
    Name,
    /// Behind the equals sign.
    ValueBegins,
    Value,
    Quoted,
    /// Behind a backslash.
    Escaped,
    QuotedEnds,
}

/// Where in a line of the trailer section, which has the form of a header field's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trailer {
    LineBegins,
    Name,
    Value,
}

/// Why a body cannot be skipped. Where it ends is not known, so that the connection must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// It breaks the rules of the chunked coding.
    Malformed,
    /// It is longer than what is skipped.
    TooLong,
}

impl BodyError {
    /// What to tell the client.
    pub fn refusal(self) -> HttpRefusal {
        match self {
            BodyError::Malformed => bad_request("malformed chunked request body (RFC 9112, section 7.1)"),
            BodyError::TooLong => HttpRefusal {
                status: Status::ContentTooLarge,
                message: "request body too long; no request to this proxy needs a body",
            },
        }
    }
}

impl Body {
    /// A chunked body that has still to begin.
    pub const CHUNKED: Body = Body::Chunked(ChunkState::Size(0, 0), 0);

    /// Whether the body will be skipped, as far as can be told before it came.
    pub fn is_skippable(&self) -> bool {
        !matches!(self, Body::Length(length) if *length > MAX_SKIPPED_BYTES)
    }

    /// Skips what of the body stands at the beginning of `input`; says how many bytes that was. Either the body is
    /// [`ValueBody::Done`] afterwards, or all of `input` belonged to it.
    pub fn skip(&mut self, input: &[u8]) -> Result<usize, BodyError> {
        match self {
            Body::Done => Ok(0),
            Body::Length(left) => {
                let step = (*left).min(input.len() as u64);
                *left -= step;
                if *left == 0 {
                    *self = Body::Done;
                }
                Ok(step as usize)
            }
            Body::Chunked(place, skipped) => {
                // Where it becomes too long does not depend on how it is cut: `skipped` is never over the bound here.
                let room = (MAX_SKIPPED_BYTES + 1 - *skipped) as usize;
                let (consumed, ended) = place.skip(&input[..input.len().min(room)])?;
                *skipped += consumed as u64;
                if *skipped > MAX_SKIPPED_BYTES {
                    return Err(BodyError::TooLong);
                }
                if ended {
                    *self = Body::Done;
                }
                Ok(consumed)
            }
        }
    }
}

impl ChunkState {
    /// Bytes that belong to the body, and whether it ended with them.
    fn skip(&mut self, input: &[u8]) -> Result<(usize, bool), BodyError> {
        let mut at = 0;
        while at < input.len() {
            if let ChunkState::Data(left) = *self {
                let step = left.min((input.len() - at) as u64);
                at += step as usize;
                *self = if left == step { ChunkState::DataEnd } else { ChunkState::Data(left - step) };
                continue;
            }
            match self.step(input[at])? {
                Some(next) => *self = next,
                None => return Ok((at + 1, true)),
            }
            at += 1;
        }
        Ok((at, false))
    }

    /// Where the byte behind `byte` stands; `None` where `byte` was the last of the body.
    fn step(self, byte: u8) -> Result<Option<ChunkState>, BodyError> {
        let next = match (self, byte) {
            (ChunkState::Size(digits, size), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if digits < MAX_SIZE_DIGITS => {
                let digit = char::from(byte).to_digit(16).ok_or(BodyError::Malformed)?;
                ChunkState::Size(digits + 1, size * 16 + u64::from(digit))
            }
            (ChunkState::Size(1.., size), b'\r' | b';') if size > MAX_SKIPPED_BYTES => return Err(BodyError::TooLong),
            (ChunkState::Size(1.., size), b'\r') => ChunkState::SizeEnd(size),
            (ChunkState::Size(1.., size), b';') => ChunkState::Extension(size, 0, Extension::NameBegins),
            (ChunkState::Extension(size, _, extension), b'\r') if extension.may_end() => ChunkState::SizeEnd(size),
            (ChunkState::Extension(_, MAX_LINE_BYTES.., _), _) => return Err(BodyError::TooLong),
            (ChunkState::Extension(size, length, extension), _) => {
                ChunkState::Extension(size, length + 1, extension.step(byte).ok_or(BodyError::Malformed)?)
            }
            (ChunkState::SizeEnd(0), b'\n') => ChunkState::Trailer(0, Trailer::LineBegins),
            (ChunkState::SizeEnd(size), b'\n') => ChunkState::Data(size),
            (ChunkState::DataEnd, b'\r') => ChunkState::DataLineFeed,
            (ChunkState::DataLineFeed, b'\n') => ChunkState::Size(0, 0),
            (ChunkState::Trailer(length, Trailer::LineBegins), b'\r') => ChunkState::TrailerLineFeed(length, true),
            (ChunkState::Trailer(length, Trailer::Value), b'\r') => ChunkState::TrailerLineFeed(length, false),
            (ChunkState::Trailer(MAX_LINE_BYTES.., _), _) => return Err(BodyError::TooLong),
            (ChunkState::Trailer(length, trailer), _) => {
                ChunkState::Trailer(length + 1, trailer.step(byte).ok_or(BodyError::Malformed)?)
            }
            (ChunkState::TrailerLineFeed(_, true), b'\n') => return Ok(None),
            (ChunkState::TrailerLineFeed(length, false), b'\n') => ChunkState::Trailer(length, Trailer::LineBegins),
            _ => return Err(BodyError::Malformed),
        };
        Ok(Some(next))
    }
}

/// What a name, or a value that is not quoted, consists of (RFC 9110, section 5.6.2).
fn is_in_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What may stand in text: no control byte but the tabulator.
fn is_text(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

impl Extension {
    /// Whether the line may end here.
    fn may_end(self) -> bool {
        matches!(self, Extension::Name | Extension::Value | Extension::QuotedEnds)
    }

    fn step(self, byte: u8) -> Option<Extension> {
        Some(match (self, byte) {
            (Extension::NameBegins | Extension::Name, _) if is_in_token(byte) => Extension::Name,
            (Extension::Name, b'=') => Extension::ValueBegins,
            (Extension::ValueBegins, b'"') => Extension::Quoted,
            (Extension::ValueBegins | Extension::Value, _) if is_in_token(byte) => Extension::Value,
            (Extension::Quoted, b'"') => Extension::QuotedEnds,
            (Extension::Quoted, b'\\') => Extension::Escaped,
            (Extension::Quoted | Extension::Escaped, _) if is_text(byte) => Extension::Quoted,
            (Extension::Name | Extension::Value | Extension::QuotedEnds, b';') => Extension::NameBegins,
            _ => return None,
        })
    }
}

impl Trailer {
    fn step(self, byte: u8) -> Option<Trailer> {
        Some(match (self, byte) {
            (Trailer::LineBegins | Trailer::Name, _) if is_in_token(byte) => Trailer::Name,
            (Trailer::Name, b':') => Trailer::Value,
            (Trailer::Value, _) if is_text(byte) => Trailer::Value,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Skips `input` in pieces of `step` bytes; says where the body ended.
    fn skip(mut body: Body, input: &[u8], step: usize) -> Result<Option<usize>, BodyError> {
        let mut at = 0;
        while at < input.len() && body != Body::Done {
            at += body.skip(&input[at..(at + step).min(input.len())])?;
        }
        Ok((body == Body::Done).then_some(at))
    }

    #[test]
    fn the_end_of_a_body_is_found_to_the_byte_wherever_it_is_cut() {
        let follows = b"GET /key/a HTTP/1.1\r\n\r\n";
        let bodies: [(Body, &[u8]); 6] = [
            (Body::Length(5), b"hello"),
            (Body::CHUNKED, b"0\r\n\r\n"),
            (Body::CHUNKED, b"5\r\nhello\r\n0\r\n\r\n"),
            (Body::CHUNKED, b"00a\r\n0123456789\r\n1;a=\"b \\\" \xe9\";c;d=e\r\nx\r\n0000000000000000\r\n\r\n"),
            (Body::CHUNKED, b"0;last\r\nTrailer: yes\r\nOther:\xc3\xa9 : \r\nEmpty:\r\n\r\n"),
            (Body::CHUNKED, b"2\r\n\r\n\r\n0\r\n\r\n"),
        ];
        for (body, bytes) in bodies {
            let all = [bytes, follows].concat();
            for step in 1..=all.len() {
                let end = skip(body, &all, step);
                assert_eq!(end, Ok(Some(bytes.len())), "{:?} by {step}", String::from_utf8_lossy(bytes));
            }
            assert_eq!(skip(body, &bytes[..bytes.len() - 1], 3), Ok(None));
        }
    }

    #[test]
    fn a_chunk_size_that_could_be_read_in_two_ways_ends_the_connection() {
        let malformed: [&[u8]; 34] = [
            b"5 ;x\r\nhello",
            b"\r\n",
            b";x\r\n",
            b" 5\r\nhello",
            b"-5\r\n",
            b"+5\r\n",
            b"0x5\r\n",
            b"5\nhello",
            b"5\rhello",
            b"5\r\nhelloX",
            b"5\r\nhello\n",
            b"00000000000000000\r\n",
            b"0;\r\n",
            b"0;;a\r\n",
            b"0; a\r\n",
            b"0;a b\r\n",
            b"0;a=\r\n",
            b"0;a=b=c\r\n",
            b"0;a=\"b\r\n",
            b"0;a=\"b\"c\r\n",
            b"0;a\"b\"\r\n",
            b"0;\xff\r\n",
            b"0;a=\"\x7f\"\r\n",
            b"0;a\nb\r\n",
            b"0\r\nnothing\r\n",
            b"0\r\n folded: a\r\n",
            b"0\r\nA: b\r\n c\r\n",
            b"0\r\n: b\r\n",
            b"0\r\nA : b\r\n",
            b"0\r\nA: b\n\r\n",
            b"0\r\nGET /raw/a HTTP/1.1\r\n",
            b"g\r\n",
            b"0\r\nA\x00: b\r\n",
            b"5;a\x00b\r\n",
        ];
        for bytes in malformed {
            for step in 1..=bytes.len() {
                assert_eq!(
                    skip(Body::CHUNKED, bytes, step),
                    Err(BodyError::Malformed),
                    "{:?}",
                    String::from_utf8_lossy(bytes)
                );
            }
        }
    }

    #[test]
    fn a_body_has_a_longest_length() {
        assert!(Body::Length(MAX_SKIPPED_BYTES).is_skippable());
        assert!(!Body::Length(MAX_SKIPPED_BYTES + 1).is_skippable());
        let chunk = [b"ffff\r\n".as_slice(), &[b'x'; 0xffff], b"\r\n"].concat();
        assert_eq!(skip(Body::CHUNKED, &chunk.repeat(20), 1000), Err(BodyError::TooLong));
        assert_eq!(
            skip(Body::CHUNKED, &[b"0\r\n".as_slice(), &b"a: b\r\n".repeat(2000)].concat(), 10),
            Err(BodyError::TooLong)
        );
        assert_eq!(skip(Body::CHUNKED, &[b"0;".as_slice(), &b"a".repeat(5000)].concat(), 10), Err(BodyError::TooLong));
        for size in [&b"100001\r\n"[..], b"100001;a\r\n", b"ffffffffffffffff\r\n"] {
            assert_eq!(skip(Body::CHUNKED, size, 3), Err(BodyError::TooLong));
        }
    }
}
