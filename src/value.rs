//! Values: the bytes that Redis holds for a key, their JSON form and their way into a reply.
//!
//! The cache and the backend pass values on and never look into them. The protocols render them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use twox_hash::XxHash3_64;

/// Maximum length of a value that is copied into the cache and into replies. The cache and all
/// replies share a longer one behind an [`Arc`]. A copy of this size costs less than an allocation
/// and a second `iovec`.
pub const SHARED_VALUE_BYTES: usize = 16 * 1024;

/// Rendering that a value needs in JSON. Determined once, when the value arrives, because it takes
/// a scan of all bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonForm {
    /// A canonical decimal integer within +-(2^53 - 1): a JSON number with the same digits.
    Integer,
    /// UTF-8 in which no byte needs escaping: a JSON string without changes.
    Plain,
    /// UTF-8 with quotes, backslashes or control characters: a JSON string with escapes.
    Escaped,
    /// Not UTF-8: base64 in a JSON string.
    Binary,
}

/// Largest integer that every JSON reader represents exactly (RFC 8259, section 6).
const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// Bytes of a value that are examined at a time: two vectors of SSE2.
const SCAN_BYTES: usize = 32;

impl JsonForm {
    /// Determines the form of a value. Scans all bytes.
    pub fn of(bytes: &[u8]) -> JsonForm {
        if is_safe_integer(bytes) {
            JsonForm::Integer
        } else if std::str::from_utf8(bytes).is_err() {
            JsonForm::Binary
        } else if has_escape(bytes) {
            JsonForm::Escaped
        } else {
            JsonForm::Plain
        }
    }
}

/// Returns true if a byte must be escaped in a JSON string (RFC 8259, section 7).
pub fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Returns true if a byte of a value must be escaped. Examines [`SCAN_BYTES`] at a time without a
/// branch for each, so that the compiler uses vector instructions.
fn has_escape(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<SCAN_BYTES>();
    let any = |bytes: &[u8]| bytes.iter().fold(false, |found, &byte| found | needs_escape(byte));
    chunks.iter().any(|chunk| any(chunk)) || any(rest)
}

/// Returns the length of one byte in a JSON string: 1, or that of a short escape or of `\u00xx`.
pub fn escaped_len(byte: u8) -> usize {
    match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 2,
        _ if needs_escape(byte) => 6,
        _ => 1,
    }
}

/// Returns true for "0", and for an optional minus and digits that start with 1 to 9, up to
/// [`MAX_SAFE_INTEGER`].
///
/// "-0", "007" and "+1" are strings: as numbers they would not come back as the bytes that Redis
/// holds.
fn is_safe_integer(bytes: &[u8]) -> bool {
    let digits = bytes.strip_prefix(b"-").unwrap_or(bytes);
    // 2^53 - 1 has 16 digits. Longer texts are out of range and would overflow `magnitude`.
    if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_digit) {
        return false;
    }
    if digits[0] == b'0' {
        return bytes == b"0";
    }
    let magnitude = digits.iter().fold(0u64, |value, &digit| value * 10 + u64::from(digit - b'0'));
    magnitude <= MAX_SAFE_INTEGER
}

/// A value from Redis with its JSON form. Built by fetchers, so that a scan of 64 MiB does not
/// block the event loop.
#[derive(Debug, PartialEq, Eq)]
pub struct Value {
    /// Bytes as Redis sent them.
    pub bytes: Vec<u8>,
    /// Rendering in JSON.
    pub form: JsonForm,
    /// Length in a JSON string if `form` is [`JsonForm::Escaped`], otherwise the length of `bytes`.
    pub escaped_bytes: usize,
    /// Digest of the bytes, see [`digest_of`].
    pub digest: u64,
    /// Number of unsent replies that hold the value.
    pub pins: PinCount,
}

/// Number of unsent replies that hold a value. Values with equal bytes are equal at any count.
#[derive(Debug, Default)]
pub struct PinCount(AtomicU32);

impl PinCount {
    /// Returns the number of holders.
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds a holder. Returns true for the first.
    pub fn add(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// Removes a holder. Returns true for the last.
    pub fn remove(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

impl PartialEq for PinCount {
    fn eq(&self, _: &PinCount) -> bool {
        true
    }
}

impl Eq for PinCount {}

impl Value {
    /// Creates a value and determines its form and digest. Scans all bytes.
    pub fn new(bytes: Vec<u8>) -> Value {
        let form = JsonForm::of(&bytes);
        let escaped_bytes = match form {
            JsonForm::Escaped => bytes.iter().map(|&byte| escaped_len(byte)).sum(),
            _ => bytes.len(),
        };
        let digest = digest_of(&bytes);
        Value { bytes, form, escaped_bytes, digest, pins: PinCount::default() }
    }
}

/// Returns the digest of a value, by which clients recognise it: XXH3 with 64 bits (xxHash 0.8).
///
/// The same bytes have the same digest in each process and each version. It is not cryptographic:
/// different values with the same digest can be constructed.
pub fn digest_of(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// A value to be put into a reply or into the cache.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// A short value, which the recipient copies.
    Inline {
        /// Bytes of the value.
        bytes: &'a [u8],
        /// Rendering in JSON.
        form: JsonForm,
    },
    /// A long value, which the recipient holds by reference. Waiters share fetched values from a
    /// lower limit on than [`SHARED_VALUE_BYTES`].
    Shared(&'a Arc<Value>),
}

impl Payload<'_> {
    /// Returns the bytes of the value.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Payload::Inline { bytes, .. } => bytes,
            Payload::Shared(value) => &value.bytes,
        }
    }

    /// Returns the rendering of the value in JSON.
    pub fn form(&self) -> JsonForm {
        match self {
            Payload::Inline { form, .. } => *form,
            Payload::Shared(value) => value.form,
        }
    }

    /// Returns the digest of the value. Scans a short one.
    pub fn digest(&self) -> u64 {
        match self {
            Payload::Inline { bytes, .. } => digest_of(bytes),
            Payload::Shared(value) => value.digest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients store digests, so they must not change between versions. The expected ones are from
    /// the reference implementation, for each of its ways to process an input by length.
    #[test]
    fn digest_is_xxh3() {
        for (length, digest) in [
            (0, 0x2d06_8005_38d3_94c2),
            (1, 0xc44b_dff4_074e_ecdb),
            (4, 0x48b2_c926_16fc_193d),
            (9, 0x3449_9569_f039_1857),
            (17, 0xc291_5ca0_df7a_d4c1),
            (129, 0x37f7_943e_b2f5_1359),
            (241, 0x5c5b_5d5d_40c5_9ce3),
            (5000, 0x9592_9931_b75a_6d9f),
        ] {
            assert_eq!(digest_of(&vec![0; length]), digest, "{length} zero bytes");
        }
    }

    /// A text is a JSON number only if the number renders as the same text.
    #[test]
    fn json_form_canonical_integer_is_number() {
        for text in ["0", "1", "-1", "12", "9007199254740991", "-9007199254740991"] {
            assert_eq!(JsonForm::of(text.as_bytes()), JsonForm::Integer, "{text}");
        }
        for text in [
            "",
            "-",
            "-0",
            "00",
            "007",
            "+1",
            " 1",
            "1 ",
            "1.0",
            "1e3",
            "0x1",
            "9007199254740992",
            "-9007199254740992",
            "99999999999999999999",
            "١",
        ] {
            assert_eq!(JsonForm::of(text.as_bytes()), JsonForm::Plain, "{text}");
        }
    }

    /// A text is escaped only if JSON requires it, and is base64 if it is not UTF-8.
    #[test]
    fn json_form_text_escapes_only_if_required() {
        for text in ["a\"b", "a\\b", "a\nb", "\u{0}", "\u{1f}"] {
            assert_eq!(JsonForm::of(text.as_bytes()), JsonForm::Escaped, "{text:?}");
        }
        for text in ["", "abc", "é", "\u{7f}", "/", "\u{2028}"] {
            assert_eq!(JsonForm::of(text.as_bytes()), JsonForm::Plain, "{text:?}");
        }
        assert_eq!(JsonForm::of(b"\xff"), JsonForm::Binary);
        assert_eq!(JsonForm::of(b"a\"\xc3"), JsonForm::Binary);
    }

    /// A byte that needs escaping is found at each position of a value that takes several scans.
    #[test]
    fn json_form_finds_escape_anywhere() {
        let plain = [b'x'; 2 * SCAN_BYTES + 7];
        assert_eq!(JsonForm::of(&plain), JsonForm::Plain);
        for at in 0..plain.len() {
            let mut text = plain;
            text[at] = b'"';
            assert_eq!(JsonForm::of(&text), JsonForm::Escaped, "byte {at}");
        }
    }
}
