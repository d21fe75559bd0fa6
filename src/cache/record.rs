//! Record of a cache entry: key, value, JSON form and a tag of the cache.
//!
//! A record with a short value is one allocation.

use crate::types::MAX_KEY_BYTES;
use crate::value::{JsonForm, Payload, Value};
use std::hint::black_box;
use std::sync::Arc;

/// Length of the header of an inline record. Its 24 bits are the length of the key, the tag and the
/// JSON form. Three bytes instead of four or eight suit the allocator's steps of 16. A 16-byte key
/// with a 100-byte value fits a chunk of 128.
const HEADER_BYTES: usize = 3;

/// Bits of a tag. The form takes two more, which leaves 17 for the length of the key.
pub(super) const TAG_BITS: u32 = 5;

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// First bytes of a record that look-ahead loads. The processor loads further lines by itself while
/// the first ones are read.
const LOADED_BYTES: usize = 256;

const _: () = assert!(MAX_KEY_BYTES << (TAG_BITS + 2) < 1 << (8 * HEADER_BYTES));

/// Key, value and tag of an entry. Takes 16 bytes besides its allocations.
#[derive(Debug)]
pub(super) enum Record {
    /// Header, key and value. Empty for a free id.
    Inline(Box<[u8]>),
    /// A long value, shared with replies.
    Shared(Box<SharedRecord>),
}

/// Key, value and tag of an entry with a long value.
#[derive(Debug)]
pub(super) struct SharedRecord {
    key: Box<[u8]>,
    value: Arc<Value>,
    tag: u8,
}

const _: () = assert!(size_of::<Record>() == 16);

impl Record {
    /// Creates the record of a free id. Allocates nothing.
    pub(super) fn vacant() -> Record {
        Record::Inline(Box::default())
    }

    /// Creates a record. `tag` has at most [`TAG_BITS`] bits.
    pub(super) fn new(key: &[u8], value: Payload<'_>, tag: u8) -> Record {
        match value {
            Payload::Inline { bytes, form } => {
                let mut record = Vec::with_capacity(HEADER_BYTES + key.len() + bytes.len());
                let header = ((key.len() as u32) << TAG_BITS | u32::from(tag)) << 2 | form as u32;
                record.extend_from_slice(&header.to_le_bytes()[..HEADER_BYTES]);
                record.extend_from_slice(key);
                record.extend_from_slice(bytes);
                Record::Inline(record.into_boxed_slice())
            }
            Payload::Shared(value) => {
                Record::Shared(Box::new(SharedRecord { key: key.into(), value: Arc::clone(value), tag }))
            }
        }
    }

    /// Returns key length, tag and form of an inline record, which must not be vacant.
    fn parse_header(record: &[u8]) -> (usize, u8, JsonForm) {
        let header = u32::from_le_bytes([record[0], record[1], record[2], 0]);
        let form = match header & 3 {
            0 => JsonForm::Integer,
            1 => JsonForm::Plain,
            2 => JsonForm::Escaped,
            _ => JsonForm::Binary,
        };
        ((header >> (TAG_BITS + 2)) as usize, (header >> 2) as u8 & ((1 << TAG_BITS) - 1), form)
    }

    /// Returns the tag that the record was created with.
    pub(super) fn tag(&self) -> u8 {
        match self {
            Record::Inline(record) => Record::parse_header(record).1,
            Record::Shared(record) => record.tag,
        }
    }

    /// Returns the length of key and value together.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Record::Inline(record) => record.len() - HEADER_BYTES,
            Record::Shared(record) => record.key.len() + record.value.bytes.len(),
        }
    }

    pub(super) fn key(&self) -> &[u8] {
        match self {
            Record::Inline(record) => &record[HEADER_BYTES..HEADER_BYTES + Record::parse_header(record).0],
            Record::Shared(record) => &record.key,
        }
    }

    pub(super) fn payload(&self) -> Payload<'_> {
        match self {
            Record::Inline(record) => {
                let (key_bytes, _, form) = Record::parse_header(record);
                Payload::Inline { bytes: &record[HEADER_BYTES + key_bytes..], form }
            }
            Record::Shared(record) => Payload::Shared(&record.value),
        }
    }

    /// Returns true if key and value are in one allocation. Reads nothing beyond the record itself.
    pub(super) fn is_inline(&self) -> bool {
        matches!(self, Record::Inline(_))
    }

    /// Loads the cache lines of key and value that a reply reads first.
    pub(super) fn load(&self) {
        match self {
            Record::Inline(record) => load_lines(record),
            Record::Shared(record) => {
                load_lines(&record.key);
                load_lines(&record.value.bytes);
            }
        }
    }

    /// Checks that no long value is inline.
    #[cfg(any(test, debug_assertions, feature = "validate"))]
    pub(super) fn validate(&self) -> Result<(), String> {
        match self.payload() {
            Payload::Inline { bytes, .. } if bytes.len() > crate::value::SHARED_VALUE_BYTES => {
                Err(format!("a value of {} bytes is inline", bytes.len()))
            }
            _ => Ok(()),
        }
    }
}

/// Loads the first cache lines of `bytes`, and the last one.
fn load_lines(bytes: &[u8]) {
    let lines = bytes[..bytes.len().min(LOADED_BYTES)].iter().step_by(LINE_BYTES);
    black_box(lines.chain(bytes.last()).fold(0, |sum, byte| sum ^ byte));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record returns the key, value, form and tag that it was created with.
    #[test]
    fn record_inline_returns_all_parts() {
        for form in [JsonForm::Integer, JsonForm::Plain, JsonForm::Escaped, JsonForm::Binary] {
            for key in [&b""[..], b"k", &[0; 255], &vec![7; MAX_KEY_BYTES]] {
                for (value, tag) in [(&b""[..], 0), (b"12", 0b1_0101), (b"", 0b1_1111)] {
                    let record = Record::new(key, Payload::Inline { bytes: value, form }, tag);
                    assert_eq!((record.key(), record.tag(), record.bytes()), (key, tag, key.len() + value.len()));
                    let Payload::Inline { bytes, form: found } = record.payload() else { panic!("not inline") };
                    assert_eq!((bytes, found), (value, form));
                }
            }
        }
    }
}
