//! Value: the bytes that Redis holds for a key, and what JSON makes of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Values longer than this are held behind an [`Arc`] and shared with every client that reads them; shorter ones are
/// copied, because a copy of that size costs less than an allocation and a second `iovec`.
pub const SHARED_VALUE_BYTES: usize = 16 * 1024;

/// What a value needs to become JSON. Found once, when the value arrives, because it takes a look at every byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonForm {
    /// A canonical decimal integer within +-(2^53 - 1): a JSON number, digit for digit.
    Integer,
    /// UTF-8 in which no byte needs escaping: a JSON string as it stands.
    Plain,
    /// UTF-8 with quotes, backslashes or control characters.
    Escaped,
    /// Not UTF-8: base64.
    Binary,
}

/// The largest integer that every JSON reader holds exactly (RFC 8259, section 6).
const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

impl JsonForm {
    /// Looks at every byte of `bytes` and says which form it takes.
    pub fn of(bytes: &[u8]) -> JsonForm {
        if is_safe_integer(bytes) {
            JsonForm::Integer
        } else if std::str::from_utf8(bytes).is_err() {
            JsonForm::Binary
        } else if bytes.iter().any(|&byte| needs_escape(byte)) {
            JsonForm::Escaped
        } else {
            JsonForm::Plain
        }
    }
}

/// Whether a byte of a JSON string must be escaped (RFC 8259, section 7).
pub fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Bytes that one byte takes inside a JSON string: itself, a short escape, or `\u00xx`.
pub fn escaped_len(byte: u8) -> usize {
    match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 2,
        _ if needs_escape(byte) => 6,
        _ => 1,
    }
}

/// "0", or an optional minus and digits that start with 1 to 9, within the range that JSON readers keep exactly.
/// "-0", "007" and "+1" are strings: as numbers they would not come back as the bytes that Redis holds.
fn is_safe_integer(bytes: &[u8]) -> bool {
    let digits = bytes.strip_prefix(b"-").unwrap_or(bytes);
    // 2^53 - 1 has 16 digits; a longer text cannot be in range and shall not overflow the sum below.
    if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_digit) {
        return false;
    }
    if digits[0] == b'0' {
        return bytes == b"0";
    }
    let magnitude = digits.iter().fold(0u64, |sum, &digit| sum * 10 + u64::from(digit - b'0'));
    magnitude <= MAX_SAFE_INTEGER
}

/// A value as Redis gave it, with its JSON form. Built on the helper threads, so that a look at 64 MiB stalls no loop.
#[derive(Debug, PartialEq, Eq)]
pub struct Value {
    /// The bytes, exactly.
    pub bytes: Vec<u8>,
    /// What JSON makes of them.
    pub form: JsonForm,
    /// How long they are inside a JSON string, where `form` is [`Form::Escaped`]; otherwise their own length.
    pub escaped_bytes: usize,
    /// How many replies hold it on their way to clients.
    pub pins: PinCount,
}

/// Counts those who hold a value. Not a part of what it is.
#[derive(Debug, Default)]
pub struct PinCount(AtomicU32);

impl PinCount {
    /// How many there are.
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// One more. Says whether it is the first.
    pub fn add(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// One less. Says whether it was the last.
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
    /// Takes the bytes and finds their form.
    pub fn new(bytes: Vec<u8>) -> Value {
        let form = JsonForm::of(&bytes);
        let escaped_bytes = match form {
            JsonForm::Escaped => bytes.iter().map(|&byte| escaped_len(byte)).sum(),
            _ => bytes.len(),
        };
        Value { bytes, form, escaped_bytes, pins: PinCount::default() }
    }
}

/// A value on its way to a client: borrowed from the cache for the length of one call, or shared.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// At most [`SHARED_VALUE_BYTES`]: will be copied.
    Inline {
        /// The value's bytes.
        bytes: &'a [u8],
        /// Their JSON form.
        form: JsonForm,
    },
    /// A long value: the socket's queue holds a reference to it, not a copy.
    Shared(&'a Arc<Value>),
}

impl Payload<'_> {
    /// The value's bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Payload::Inline { bytes, .. } => bytes,
            Payload::Shared(value) => &value.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_numbers_only_when_they_come_back_unchanged() {
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

    #[test]
    fn text_is_escaped_only_where_json_asks_for_it() {
        for text in ["a\"b", "a\\b", "a\nb", "\u{0}", "\u{1f}"] {
            assert_eq!(JsonForm::of(text.as_bytes()), JsonForm::Escaped, "{text:?}");
        }
        for text in ["", "abc", "é", "\u{7f}", "/", "\u{2028}"] {
            assert_eq!(JsonForm::of(text.as_bytes()), JsonForm::Plain, "{text:?}");
        }
        assert_eq!(JsonForm::of(b"\xff"), JsonForm::Binary);
        assert_eq!(JsonForm::of(b"a\"\xc3"), JsonForm::Binary);
    }
}
