//! What an entry holds: its key, its value, the value's JSON form and a mark for the cache's own use, in one
//! allocation where the value is short.

use crate::types::MAX_KEY_BYTES;
use crate::value::{JsonForm, Payload, Value};
use std::sync::Arc;

/// Length of a short record's head: the key's length, the mark and the form in 24 bits. Three bytes, not four or eight,
/// because malloc hands out steps of 16: a 16-byte key with a 100-byte value still fits a chunk of 128.
const HEADER_BYTES: usize = 3;

/// Bits of a mark. With two for the form they leave 17 for the key's length.
pub(super) const TAG_BITS: u32 = 5;

const _: () = assert!(MAX_KEY_BYTES << (TAG_BITS + 2) < 1 << (8 * HEADER_BYTES));

/// Key and value of one entry. 16 bytes, beside what it points to.
#[derive(Debug)]
pub(super) enum Record {
    /// Head, key, value. Empty for a vacant entry.
    Inline(Box<[u8]>),
    /// A value that is shared with the sockets' queues.
    Shared(Box<SharedRecord>),
}

/// Key and value of an entry with a long value.
#[derive(Debug)]
pub(super) struct SharedRecord {
    key: Box<[u8]>,
    value: Arc<Value>,
    tag: u8,
}

const _: () = assert!(size_of::<Record>() == 16);

impl Record {
    /// A record for an entry that is not in use. Allocates nothing.
    pub(super) fn vacant() -> Record {
        Record::Inline(Box::default())
    }

    /// `mark` has [`TAG_BITS`] bits.
    pub(super) fn new(key: &[u8], value: Payload<'_>, mark: u8) -> Record {
        match value {
            Payload::Inline { bytes, form } => {
                let mut record = Vec::with_capacity(HEADER_BYTES + key.len() + bytes.len());
                let head = ((key.len() as u32) << TAG_BITS | u32::from(mark)) << 2 | form as u32;
                record.extend_from_slice(&head.to_le_bytes()[..HEADER_BYTES]);
                record.extend_from_slice(key);
                record.extend_from_slice(bytes);
                Record::Inline(record.into_boxed_slice())
            }
            Payload::Shared(value) => {
                Record::Shared(Box::new(SharedRecord { key: key.into(), value: Arc::clone(value), tag: mark }))
            }
        }
    }

    /// Key length, mark and form of a short record. A vacant record has none and is never asked.
    fn head(record: &[u8]) -> (usize, u8, JsonForm) {
        let head = u32::from_le_bytes([record[0], record[1], record[2], 0]);
        let form = match head & 3 {
            0 => JsonForm::Integer,
            1 => JsonForm::Plain,
            2 => JsonForm::Escaped,
            _ => JsonForm::Binary,
        };
        ((head >> (TAG_BITS + 2)) as usize, (head >> 2) as u8 & ((1 << TAG_BITS) - 1), form)
    }

    /// The mark it was made with.
    pub(super) fn tag(&self) -> u8 {
        match self {
            Record::Inline(record) => Record::head(record).1,
            Record::Shared(record) => record.tag,
        }
    }

    /// Length of key and value.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Record::Inline(record) => record.len() - HEADER_BYTES,
            Record::Shared(record) => record.key.len() + record.value.bytes.len(),
        }
    }

    pub(super) fn key(&self) -> &[u8] {
        match self {
            Record::Inline(record) => &record[HEADER_BYTES..HEADER_BYTES + Record::head(record).0],
            Record::Shared(record) => &record.key,
        }
    }

    pub(super) fn payload(&self) -> Payload<'_> {
        match self {
            Record::Inline(record) => {
                let (key_bytes, _, form) = Record::head(record);
                Payload::Inline { bytes: &record[HEADER_BYTES + key_bytes..], form }
            }
            Record::Shared(record) => Payload::Shared(&record.value),
        }
    }

    /// Whether the record is of the kind that its value's length calls for.
    #[cfg(any(test, debug_assertions, feature = "validate"))]
    pub(super) fn validate(&self) -> Result<(), String> {
        match self.payload() {
            Payload::Inline { bytes, .. } if bytes.len() > crate::value::SHARED_VALUE_BYTES => {
                Err(format!("a value of {} bytes is not shared", bytes.len()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_gives_back_key_value_form_and_mark() {
        for form in [JsonForm::Integer, JsonForm::Plain, JsonForm::Escaped, JsonForm::Binary] {
            for key in [&b""[..], b"k", &[0; 255], &vec![7; MAX_KEY_BYTES]] {
                for (value, mark) in [(&b""[..], 0), (b"12", 0b1_0101), (b"", 0b1_1111)] {
                    let record = Record::new(key, Payload::Inline { bytes: value, form }, mark);
                    assert_eq!((record.key(), record.tag(), record.bytes()), (key, mark, key.len() + value.len()));
                    let Payload::Inline { bytes, form: found } = record.payload() else { panic!("not inline") };
                    assert_eq!((bytes, found), (value, form));
                }
            }
        }
    }
}
