//! Values as JSON (RFC 8259): strings with what must be escaped, base64 for what is not UTF-8.

use crate::types::{escaped_len, needs_escape};
use base64::prelude::*;

/// How the bytes of a value are rendered on their way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As they are.
    Raw,
    /// As the inside of a JSON string.
    Escaped,
    /// As base64 (RFC 4648, section 4), padded.
    Base64,
}

/// How many bytes [`render`] makes of `bytes`.
pub fn rendered_len(bytes: &[u8], encoding: Encoding) -> usize {
    match encoding {
        Encoding::Raw => bytes.len(),
        Encoding::Escaped => bytes.iter().map(|&byte| escaped_len(byte)).sum(),
        Encoding::Base64 => bytes.len().div_ceil(3) * 4,
    }
}

/// Appends `bytes` to `out`. May be called for one piece after another: where the pieces are cut matters only to
/// base64, whose pieces but the last must be of a multiple of three bytes.
pub fn render(bytes: &[u8], encoding: Encoding, out: &mut Vec<u8>) {
    match encoding {
        Encoding::Raw => out.extend_from_slice(bytes),
        Encoding::Escaped => escape(bytes, out),
        Encoding::Base64 => {
            let start = out.len();
            out.resize(start + rendered_len(bytes, encoding), 0);
            // The slice was made as long as the text will be, so that this cannot fail.
            let written = BASE64_STANDARD.encode_slice(bytes, &mut out[start..]);
            debug_assert_eq!(written, Ok(out.len() - start));
        }
    }
}

/// Appends the inside of a JSON string: runs that need nothing are copied whole.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_known_before_the_text() {
        let every: Vec<u8> = (0..=255).collect();
        for encoding in [Encoding::Raw, Encoding::Escaped, Encoding::Base64] {
            for length in 0..every.len() {
                let mut out = b"before".to_vec();
                render(&every[..length], encoding, &mut out);
                assert_eq!(out.len() - 6, rendered_len(&every[..length], encoding), "{encoding:?} of {length}");
            }
        }
    }

    #[test]
    fn control_characters_quotes_and_backslashes_are_escaped() {
        let mut out = Vec::new();
        escape(b"a\"b\\c\nd\re\tf\x00g\x1fh\x7f/\xc3\xa9", &mut out);
        assert_eq!(out, b"a\\\"b\\\\c\\nd\\re\\tf\\u0000g\\u001fh\x7f/\xc3\xa9");
    }
}
