//! JSON rendering of values (RFC 8259): escaped strings, and base64 for bytes that are not UTF-8.

use crate::value::{JsonForm, escaped_len, needs_escape};
use base64::prelude::*;

/// Encoding of a value's bytes in a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// The unchanged bytes.
    Raw,
    /// Content of a JSON string, without the quotes.
    Escaped,
    /// Base64 with padding (RFC 4648, section 4).
    Base64,
}

/// Returns the number of bytes that [`render`] appends for `bytes`.
pub fn rendered_len(bytes: &[u8], encoding: Encoding) -> usize {
    match encoding {
        Encoding::Raw => bytes.len(),
        Encoding::Escaped => bytes.iter().map(|&byte| escaped_len(byte)).sum(),
        Encoding::Base64 => bytes.len().div_ceil(3) * 4,
    }
}

/// Appends the encoded `bytes` to `out`. A value may be rendered piece by piece. For base64, each
/// piece but the last must be a multiple of three bytes long.
pub fn render(bytes: &[u8], encoding: Encoding, out: &mut Vec<u8>) {
    match encoding {
        Encoding::Raw => out.extend_from_slice(bytes),
        Encoding::Escaped => escape(bytes, out),
        Encoding::Base64 => {
            let start = out.len();
            out.resize(start + rendered_len(bytes, encoding), 0);
            // Cannot fail: the slice has the exact length of the text.
            let written = BASE64_STANDARD.encode_slice(bytes, &mut out[start..]);
            debug_assert_eq!(written, Ok(out.len() - start));
        }
    }
}

/// Appends `bytes` as the content of a JSON string. Copies runs without escapes in one step.
pub fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    let mut rest = bytes;
    while let Some(plain) = rest.iter().position(|&byte| needs_escape(byte)) {
        out.extend_from_slice(&rest[..plain]);
        match rest[plain] {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            byte @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', byte]),
            control => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(control >> 4)], HEX[usize::from(control & 15)]]);
            }
        }
        rest = &rest[plain + 1..];
    }
    out.extend_from_slice(rest);
}

/// Member of an object that says why there is no value, around its message.
const ERROR_START: &[u8] = b"\"error\":\"";
const ERROR_END: &[u8] = b"\"}";

/// Returns the number of bytes that [`write_error`] appends.
pub fn error_len(message: &str) -> usize {
    ERROR_START.len() + rendered_len(message.as_bytes(), Encoding::Escaped) + ERROR_END.len()
}

/// Appends the last member of an object, its error, and the end of the object.
pub fn write_error(message: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(ERROR_START);
    escape(message.as_bytes(), out);
    out.extend_from_slice(ERROR_END);
}

/// Last member of an object for a key that is missing, and the end of the object.
pub const MISSING_VALUE: &[u8] = b"\"value\":null}";

/// Member of an object that names a key, around the key.
const KEY_START: &[u8] = b"\"key\":\"";
const KEY_END: &[u8] = b"\",";
const BINARY_KEY_END: &[u8] = b"\",\"keyEncoding\":\"base64\",";

/// Returns the encoding of a key in a JSON string, and the end of its member.
fn key_encoding(key: &[u8]) -> (Encoding, &'static [u8]) {
    match JsonForm::of(key) {
        JsonForm::Integer | JsonForm::Plain => (Encoding::Raw, KEY_END),
        JsonForm::Escaped => (Encoding::Escaped, KEY_END),
        JsonForm::Binary => (Encoding::Base64, BINARY_KEY_END),
    }
}

/// Returns the number of bytes that [`write_key`] appends.
pub fn key_len(key: &[u8]) -> usize {
    let (encoding, end) = key_encoding(key);
    KEY_START.len() + rendered_len(key, encoding) + end.len()
}

/// Appends the first members of an object, which name a key. Others must follow.
pub fn write_key(key: &[u8], out: &mut Vec<u8>) {
    let (encoding, end) = key_encoding(key);
    out.extend_from_slice(KEY_START);
    render(key, encoding, out);
    out.extend_from_slice(end);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `rendered_len` returns the length that `render` appends, for every encoding.
    #[test]
    fn rendered_len_matches_render() {
        let all_bytes: Vec<u8> = (0..=255).collect();
        for encoding in [Encoding::Raw, Encoding::Escaped, Encoding::Base64] {
            for length in 0..all_bytes.len() {
                let mut out = b"before".to_vec();
                render(&all_bytes[..length], encoding, &mut out);
                assert_eq!(out.len() - 6, rendered_len(&all_bytes[..length], encoding), "{encoding:?} of {length}");
            }
        }
    }

    /// Control characters, quotes and backslashes are escaped; all other bytes are copied.
    #[test]
    fn escape_changes_special_bytes_only() {
        let mut out = Vec::new();
        escape(b"a\"b\\c\nd\re\tf\x00g\x1fh\x7f/\xc3\xa9", &mut out);
        assert_eq!(out, b"a\\\"b\\\\c\\nd\\re\\tf\\u0000g\\u001fh\x7f/\xc3\xa9");
    }
}
