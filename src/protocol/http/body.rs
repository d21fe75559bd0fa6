//! Decoder that skips request bodies.
//!
//! No supported request needs a body. The decoder finds its end to the byte: one byte too few or
//! too many would turn data of the client into a request (RFC 9112, section 11.2).

use super::{HttpRefusal, Status, bad_request};

/// Maximum length of a body that is skipped. A longer one closes the connection. No request needs a
/// body at all.
const MAX_SKIPPED_BYTES: u64 = 1024 * 1024;

/// Maximum length of the extensions of one chunk.
const MAX_EXTENSION_BYTES: u16 = 4096;

/// Maximum length of the trailer section.
const MAX_TRAILER_BYTES: u16 = 4096;

/// Maximum number of hexadecimal digits of a chunk size, leading zeros included: 64 bits hold 16.
const MAX_CHUNK_SIZE_DIGITS: u8 = 16;

/// Unread rest of the current request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// The body is complete, or the request has none.
    Done,
    /// Number of bytes left (`Content-Length`).
    Length(u64),
    /// Chunked coding (RFC 9112, section 7.1): state, and number of bytes skipped so far.
    Chunked(ChunkState, u64),
}

/// Position of the next byte in the chunked coding (RFC 9112, section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkState {
    /// `chunk-size`: number of digits so far, and their value.
    Size(u8, u64),
    /// `chunk-ext`: size of the chunk, length of its extensions so far, and state.
    Extension(u64, u16, ExtensionState),
    /// Line feed after the chunk size and extensions, with the size of the chunk.
    SizeLineFeed(u64),
    /// `chunk-data`: number of bytes left.
    Data(u64),
    /// Carriage return after the data of a chunk.
    DataCarriageReturn,
    /// Line feed after that carriage return.
    DataLineFeed,
    /// `trailer-section`: its length so far, and state.
    Trailer(u16, TrailerState),
    /// Line feed of a trailer line; true for the empty line that ends the message.
    TrailerLineFeed(u16, bool),
}

/// Position of the next byte in a chunk extension (RFC 9112, section 7.1.1).
///
/// Accepts `;name`, `;name=token` and `;name="quoted"`. White space around the parts (`BWS`) is
/// refused because lenient parsers disagree about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtensionState {
    /// First byte of `chunk-ext-name`.
    NameStart,
    /// Later byte of `chunk-ext-name`, or its end.
    Name,
    /// First byte of `chunk-ext-val`.
    ValueStart,
    /// Later byte of a value that is a token, or its end.
    Value,
    /// Inside of a `quoted-string` (RFC 9110, section 5.6.4).
    QuotedString,
    /// Byte after a backslash in a quoted string (`quoted-pair`).
    QuotedPair,
    /// Byte after the closing quote.
    QuotedStringEnd,
}

/// Position of the next byte in a line of the trailer section, which has the syntax of a header
/// field (RFC 9112, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrailerState {
    /// First byte of a line.
    LineStart,
    /// Later byte of `field-name`, or the colon.
    FieldName,
    /// Byte of `field-value`, or its end.
    FieldValue,
}

/// Reason why a body cannot be skipped. Its end is unknown, so the connection must close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// The body violates the grammar of the chunked coding.
    Malformed,
    /// The body exceeds a limit.
    TooLong,
}

impl BodyError {
    /// Returns the error response for the client.
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
    /// Chunked body at its first byte.
    pub const CHUNKED: Body = Body::Chunked(ChunkState::Size(0, 0), 0);

    /// Returns true unless the announced length exceeds the limit. A chunked body may still turn
    /// out to be too long.
    pub fn is_skippable(&self) -> bool {
        !matches!(self, Body::Length(length) if *length > MAX_SKIPPED_BYTES)
    }

    /// Skips the bytes of the body at the start of `input` and returns their number.
    ///
    /// Afterwards the body is [`Body::Done`], or all of `input` belonged to it.
    pub fn skip(&mut self, input: &[u8]) -> Result<usize, BodyError> {
        match self {
            Body::Done => Ok(0),
            Body::Length(left) => {
                let skipped = (*left).min(input.len() as u64);
                *left -= skipped;
                if *left == 0 {
                    *self = Body::Done;
                }
                Ok(skipped as usize)
            }
            Body::Chunked(state, skipped) => {
                // One byte beyond the limit is an error, however the input is split. `skipped` is
                // at most the limit here.
                let max_input = (MAX_SKIPPED_BYTES + 1 - *skipped) as usize;
                let (consumed, ended) = state.skip(&input[..input.len().min(max_input)])?;
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
    /// Returns the number of bytes that belong to the body, and true if the body ends with them.
    fn skip(&mut self, input: &[u8]) -> Result<(usize, bool), BodyError> {
        let mut consumed = 0;
        while consumed < input.len() {
            if let ChunkState::Data(left) = *self {
                let skipped = left.min((input.len() - consumed) as u64);
                consumed += skipped as usize;
                *self = if left == skipped { ChunkState::DataCarriageReturn } else { ChunkState::Data(left - skipped) };
                continue;
            }
            match self.advance(input[consumed])? {
                Some(next) => *self = next,
                None => return Ok((consumed + 1, true)),
            }
            consumed += 1;
        }
        Ok((consumed, false))
    }

    /// Returns the state after `byte`, or `None` if `byte` ends the body.
    fn advance(self, byte: u8) -> Result<Option<ChunkState>, BodyError> {
        let next = match (self, byte) {
            (ChunkState::Size(digits, size), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F')
                if digits < MAX_CHUNK_SIZE_DIGITS =>
            {
                let digit = char::from(byte).to_digit(16).ok_or(BodyError::Malformed)?;
                ChunkState::Size(digits + 1, size * 16 + u64::from(digit))
            }
            (ChunkState::Size(1.., size), b'\r' | b';') if size > MAX_SKIPPED_BYTES => return Err(BodyError::TooLong),
            (ChunkState::Size(1.., size), b'\r') => ChunkState::SizeLineFeed(size),
            (ChunkState::Size(1.., size), b';') => ChunkState::Extension(size, 0, ExtensionState::NameStart),
            (ChunkState::Extension(size, _, extension), b'\r') if extension.can_end() => ChunkState::SizeLineFeed(size),
            (ChunkState::Extension(_, MAX_EXTENSION_BYTES.., _), _) => return Err(BodyError::TooLong),
            (ChunkState::Extension(size, length, extension), _) => {
                ChunkState::Extension(size, length + 1, extension.advance(byte).ok_or(BodyError::Malformed)?)
            }
            (ChunkState::SizeLineFeed(0), b'\n') => ChunkState::Trailer(0, TrailerState::LineStart),
            (ChunkState::SizeLineFeed(size), b'\n') => ChunkState::Data(size),
            (ChunkState::DataCarriageReturn, b'\r') => ChunkState::DataLineFeed,
            (ChunkState::DataLineFeed, b'\n') => ChunkState::Size(0, 0),
            (ChunkState::Trailer(length, TrailerState::LineStart), b'\r') => ChunkState::TrailerLineFeed(length, true),
            (ChunkState::Trailer(length, TrailerState::FieldValue), b'\r') => {
                ChunkState::TrailerLineFeed(length, false)
            }
            (ChunkState::Trailer(MAX_TRAILER_BYTES.., _), _) => return Err(BodyError::TooLong),
            (ChunkState::Trailer(length, trailer), _) => {
                ChunkState::Trailer(length + 1, trailer.advance(byte).ok_or(BodyError::Malformed)?)
            }
            (ChunkState::TrailerLineFeed(_, true), b'\n') => return Ok(None),
            (ChunkState::TrailerLineFeed(length, false), b'\n') => ChunkState::Trailer(length, TrailerState::LineStart),
            _ => return Err(BodyError::Malformed),
        };
        Ok(Some(next))
    }
}

/// Returns true for a byte of a token (`tchar`, RFC 9110, section 5.6.2).
fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Returns true for a byte of a field value or quoted string: no control byte except the tab (RFC
/// 9110, sections 5.5 and 5.6.4).
fn is_text(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

impl ExtensionState {
    /// Returns true if the line may end in this state.
    fn can_end(self) -> bool {
        matches!(self, ExtensionState::Name | ExtensionState::Value | ExtensionState::QuotedStringEnd)
    }

    /// Returns the state after `byte`, or `None` if the grammar does not allow it.
    fn advance(self, byte: u8) -> Option<ExtensionState> {
        Some(match (self, byte) {
            (ExtensionState::NameStart | ExtensionState::Name, _) if is_tchar(byte) => ExtensionState::Name,
            (ExtensionState::Name, b'=') => ExtensionState::ValueStart,
            (ExtensionState::ValueStart, b'"') => ExtensionState::QuotedString,
            (ExtensionState::ValueStart | ExtensionState::Value, _) if is_tchar(byte) => ExtensionState::Value,
            (ExtensionState::QuotedString, b'"') => ExtensionState::QuotedStringEnd,
            (ExtensionState::QuotedString, b'\\') => ExtensionState::QuotedPair,
            (ExtensionState::QuotedString | ExtensionState::QuotedPair, _) if is_text(byte) => {
                ExtensionState::QuotedString
            }
            (ExtensionState::Name | ExtensionState::Value | ExtensionState::QuotedStringEnd, b';') => {
                ExtensionState::NameStart
            }
            _ => return None,
        })
    }
}

impl TrailerState {
    /// Returns the state after `byte`, or `None` if the grammar does not allow it.
    fn advance(self, byte: u8) -> Option<TrailerState> {
        Some(match (self, byte) {
            (TrailerState::LineStart | TrailerState::FieldName, _) if is_tchar(byte) => TrailerState::FieldName,
            (TrailerState::FieldName, b':') => TrailerState::FieldValue,
            (TrailerState::FieldValue, _) if is_text(byte) => TrailerState::FieldValue,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Skips `input` in pieces of `piece_len` bytes. Returns the end of the body, or `None` if it
    /// is incomplete.
    fn skip(mut body: Body, input: &[u8], piece_len: usize) -> Result<Option<usize>, BodyError> {
        let mut consumed = 0;
        while consumed < input.len() && body != Body::Done {
            consumed += body.skip(&input[consumed..(consumed + piece_len).min(input.len())])?;
        }
        Ok((body == Body::Done).then_some(consumed))
    }

    /// The end of a body is found to the byte, however the input is split.
    #[test]
    fn skip_finds_end_at_any_split() {
        let next_request = b"GET /key/a HTTP/1.1\r\n\r\n";
        let bodies: [(Body, &[u8]); 6] = [
            (Body::Length(5), b"hello"),
            (Body::CHUNKED, b"0\r\n\r\n"),
            (Body::CHUNKED, b"5\r\nhello\r\n0\r\n\r\n"),
            (Body::CHUNKED, b"00a\r\n0123456789\r\n1;a=\"b \\\" \xe9\";c;d=e\r\nx\r\n0000000000000000\r\n\r\n"),
            (Body::CHUNKED, b"0;last\r\nTrailer: yes\r\nOther:\xc3\xa9 : \r\nEmpty:\r\n\r\n"),
            (Body::CHUNKED, b"2\r\n\r\n\r\n0\r\n\r\n"),
        ];
        for (body, bytes) in bodies {
            let all = [bytes, next_request].concat();
            for piece_len in 1..=all.len() {
                let end = skip(body, &all, piece_len);
                assert_eq!(end, Ok(Some(bytes.len())), "{:?} in pieces of {piece_len}", String::from_utf8_lossy(bytes));
            }
            assert_eq!(skip(body, &bytes[..bytes.len() - 1], 3), Ok(None));
        }
    }

    /// Chunked coding that two programs could read in two ways is refused, however it is split.
    #[test]
    fn ambiguous_chunked_coding_is_refused() {
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
            for piece_len in 1..=bytes.len() {
                assert_eq!(
                    skip(Body::CHUNKED, bytes, piece_len),
                    Err(BodyError::Malformed),
                    "{:?}",
                    String::from_utf8_lossy(bytes)
                );
            }
        }
    }

    /// A body, its trailer section or the extensions of a chunk beyond their limit are refused.
    #[test]
    fn oversized_body_is_refused() {
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
