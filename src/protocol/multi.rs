//! Replies to `MGET` and `EXISTS`, built from cache hits and from fetches that finish later.
//!
//! Each key takes a part of 16 bytes: a position in a buffer, or a reference. If one key cannot be
//! read, the whole reply is an error, because RESP clients expect nothing else. The parts before it
//! are dropped, and later results are ignored.
//!
//! A long reply must not delay other clients of the worker. The buffer therefore grows by segments
//! that never move. A complete reply is rendered in pieces, as the socket accepts them.

use super::SendBuffer;
use super::output_budget::OutputBudget;
use super::pinned::{PinnedValue, can_pin};
use super::resp::commands::{CommandName, CommandSpec};
use super::resp::encode::{encode_error, encode_part, error_of};
use super::resp::writer::{RespVersion, RespWriter};
use crate::types::{Failure, KeyResult, Reply};
use crate::value::{Payload, SHARED_VALUE_BYTES, Value};
use std::sync::Arc;

/// Limit on the bytes of all values of one reply. A single value may exceed it.
const MAX_MULTI_REPLY_BYTES: usize = 64 * 1024 * 1024;

/// Bytes of the parts and short values of all multi-key replies of the process.
///
/// The first segment of a reply does not count, and `pinned` limits the long values. Without this
/// limit, clients that do not finish their commands, or do not read, could exhaust memory.
static MULTI_BUDGET: OutputBudget = OutputBudget::new(256 * 1024 * 1024);

/// Error reply if a reply would exceed [`MULTI_BUDGET`].
const MULTI_MEMORY_FULL: &str =
    "TRYAGAIN the memory limit for multi-key replies is reached; retry, or request fewer keys at once";

/// Size up to which the first segment grows; at least four short values fit into it.
const SEGMENT_BYTES: usize = 4 * SHARED_VALUE_BYTES;

/// Size of the largest segment. Each segment after the first is twice as long as the one before.
///
/// jemalloc reuses freed pieces much smaller than the whole reply only seconds later (with segments
/// of 64 KiB, one client took 700 MB).
const MAX_SEGMENT_BYTES: usize = 1024 * 1024;

/// Reply for several keys that is being built or rendered.
#[derive(Debug)]
pub struct MultiReply {
    /// True for `EXISTS`, which replies with the number of keys.
    count_only: bool,
    version: RespVersion,
    /// Keys of the command that are not decoded.
    keys_left: u32,
    parts: Vec<Part>,
    /// Number of parts that are [`Part::Pending`].
    pending: usize,
    /// Bytes of the short values. No value spans two segments.
    segments: Vec<Segment>,
    /// Bytes of all values, short and long, that are not rendered.
    value_bytes: usize,
    /// Capacity of the segments after the first.
    segment_bytes: usize,
    /// Bytes that [`MULTI_BUDGET`] counts for this reply.
    charged_bytes: usize,
    /// Number of parts that are rendered.
    rendered: usize,
    /// Error that replaces the whole reply.
    failed: Option<String>,
}

/// Buffer for short values.
#[derive(Debug, Default)]
struct Segment {
    bytes: Vec<u8>,
    /// Number of values in it that are not rendered.
    unrendered: usize,
}

// The length of a short value and the index of every segment fit into `Part::Short`.
const _: () = assert!(SHARED_VALUE_BYTES <= u16::MAX as usize);
const _: () = assert!(MAX_MULTI_REPLY_BYTES / SEGMENT_BYTES * 2 <= u16::MAX as usize && size_of::<Part>() == 16);

/// Result for one key.
#[derive(Debug)]
enum Part {
    /// The key is being fetched.
    Pending,
    /// The key does not exist, or `MGET` does not read its type.
    Absent,
    /// Short value: `length` bytes at `from` in a segment.
    Short { segment: u16, length: u16, from: u32 },
    /// Long value, by reference.
    Long(PinnedValue),
    /// The key exists, and only the count matters.
    Counted,
}

impl MultiReply {
    /// Creates the reply to a command for `keys` keys.
    pub fn new(spec: &CommandSpec, keys: u32, version: RespVersion) -> MultiReply {
        MultiReply {
            count_only: spec.name == CommandName::Exists,
            version,
            keys_left: keys,
            parts: Vec::new(),
            pending: 0,
            segments: Vec::new(),
            value_bytes: 0,
            segment_bytes: 0,
            charged_bytes: 0,
            rendered: 0,
            failed: None,
        }
    }

    /// Returns true if the command has keys that are not decoded.
    pub fn expects_keys(&self) -> bool {
        self.keys_left > 0
    }

    /// Returns true if the reply is an error already, so further keys need no lookup.
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Returns the bytes of values and parts that are not rendered.
    pub fn memory_bytes(&self) -> usize {
        self.value_bytes + (self.parts.len() - self.rendered) * size_of::<Part>()
    }

    /// Returns true if the result of every key has arrived.
    pub fn is_complete(&self) -> bool {
        self.keys_left == 0 && self.pending == 0
    }

    /// Returns the index of the next key.
    pub fn next_part(&self) -> u32 {
        self.parts.len() as u32
    }

    /// Skips the lookup of the next key. Called after the reply has failed.
    pub fn skip_key(&mut self) {
        self.keys_left -= 1;
    }

    /// Adds the next key as pending.
    pub fn push_pending(&mut self) {
        self.keys_left -= 1;
        self.pending += 1;
        self.parts.push(Part::Pending);
        self.charge();
    }

    /// Adds the next key with its result.
    pub fn push(&mut self, reply: &Reply<'_>) {
        let part = self.next_part();
        self.push_pending();
        self.complete_part(part, reply);
    }

    /// Stores the result of a pending key. Returns false if the key is not pending.
    pub fn complete_part(&mut self, part: u32, reply: &Reply<'_>) -> bool {
        let Some(Part::Pending) = self.parts.get(part as usize) else { return false };
        self.pending -= 1;
        self.parts[part as usize] = match reply.result {
            KeyResult::Missing => Part::Absent,
            KeyResult::Failed(Failure::WrongType) if !self.count_only => Part::Absent,
            // A key of another type, or with a value above MAX_VALUE_BYTES, exists.
            KeyResult::Failed(Failure::WrongType | Failure::TooLong) if self.count_only => Part::Counted,
            KeyResult::Failed(failure) => {
                self.fail(error_of(failure));
                return true;
            }
            KeyResult::Value(_) if self.count_only => Part::Counted,
            KeyResult::Value(payload) => {
                let length = payload.bytes().len();
                if self.value_bytes > 0 && self.value_bytes + length > MAX_MULTI_REPLY_BYTES {
                    self.fail(format!(
                        "ERR the reply would be longer than {MAX_MULTI_REPLY_BYTES} bytes; request fewer keys at once"
                    ));
                    return true;
                }
                if shared_value(payload).is_some_and(|value| !can_pin(value)) {
                    self.fail(error_of(&Failure::OutputMemoryFull));
                    return true;
                }
                self.value_bytes += length;
                self.store(payload)
            }
        };
        self.charge();
        true
    }

    /// Updates the charge to [`MULTI_BUDGET`]. Fails the reply if the budget is exceeded.
    fn charge(&mut self) {
        let held_bytes = self.segment_bytes + (self.parts.len() - self.rendered) * size_of::<Part>();
        // Whole segments only: nearly every key leaves the counter untouched that workers share.
        let charge = held_bytes / SEGMENT_BYTES * SEGMENT_BYTES;
        if !MULTI_BUDGET.update_charge(std::mem::replace(&mut self.charged_bytes, charge), charge) {
            self.fail(MULTI_MEMORY_FULL.into());
        }
    }

    fn store(&mut self, payload: Payload<'_>) -> Part {
        if let Some(value) = shared_value(payload) {
            return Part::Long(PinnedValue::new(value));
        }
        // A short value is copied: a reference costs more here, and again in `writev`.
        let bytes = payload.bytes();
        let fits = |last: &Segment| last.bytes.len() + bytes.len() <= last.bytes.capacity().max(SEGMENT_BYTES);
        if !self.segments.last().is_some_and(fits) {
            self.add_segment();
        }
        let index = self.segments.len() - 1;
        let segment = &mut self.segments[index];
        let from = segment.bytes.len() as u32;
        segment.bytes.extend_from_slice(bytes);
        segment.unrendered += 1;
        Part::Short { segment: index as u16, length: bytes.len() as u16, from }
    }

    fn add_segment(&mut self) {
        let capacity = match self.segments.len() {
            0 => 0,
            index => (SEGMENT_BYTES << index.min(16)).min(MAX_SEGMENT_BYTES),
        };
        self.segment_bytes += capacity;
        self.segments.push(Segment { bytes: Vec::with_capacity(capacity), unrendered: 0 });
    }

    fn fail(&mut self, error: String) {
        self.failed = Some(error);
        (self.parts, self.pending, self.segments, self.value_bytes) = (Vec::new(), 0, Vec::new(), 0);
        (self.segment_bytes, self.rendered) = (0, 0);
        self.charge();
    }

    /// Appends the reply, which must be complete. A long one is queued and rendered later.
    pub fn encode(self: Box<MultiReply>, out: &mut SendBuffer) {
        if let Some(error) = &self.failed {
            return encode_error(error, out);
        }
        if self.count_only {
            let count = self.parts.iter().filter(|part| matches!(part, Part::Counted)).count();
            return RespWriter::new(out.tail(), self.version).integer(count as i64);
        }
        RespWriter::new(out.tail(), self.version).array(self.parts.len());
        out.push_multi(self);
    }

    /// Returns true if all parts are rendered.
    pub fn is_rendered(&self) -> bool {
        self.rendered == self.parts.len()
    }

    /// Renders the next parts into `out`, until it holds at least `bytes` bytes, and frees them.
    pub fn render(&mut self, bytes: usize, out: &mut SendBuffer) {
        while out.unsent_bytes() < bytes && self.rendered < self.parts.len() {
            let part = std::mem::replace(&mut self.parts[self.rendered], Part::Absent);
            self.rendered += 1;
            match part {
                Part::Short { segment, length, from } => {
                    let (from, length, index) = (from as usize, usize::from(length), usize::from(segment));
                    let segment = &mut self.segments[index];
                    RespWriter::new(out.tail(), self.version).bulk(&segment.bytes[from..from + length]);
                    self.value_bytes -= length;
                    segment.unrendered -= 1;
                    if segment.unrendered == 0 {
                        self.segment_bytes -= if index > 0 { segment.bytes.capacity() } else { 0 };
                        segment.bytes = Vec::new();
                    }
                }
                Part::Long(value) => {
                    let length = value.bytes.len();
                    self.value_bytes -= length;
                    encode_part(Payload::Shared(&value), 0..length, self.version, out);
                }
                _ => RespWriter::new(out.tail(), self.version).null(),
            }
        }
        self.charge();
    }
}

/// Returns the value if it is too long to be copied.
fn shared_value(payload: Payload<'_>) -> Option<&Arc<Value>> {
    match payload {
        Payload::Shared(value) if value.bytes.len() > SHARED_VALUE_BYTES => Some(value),
        _ => None,
    }
}

impl Drop for MultiReply {
    fn drop(&mut self) {
        MULTI_BUDGET.update_charge(self.charged_bytes, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::resp::commands;
    use crate::types::Source;
    use crate::value::JsonForm;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn reply(result: KeyResult<'_>) -> Reply<'_> {
        Reply { result, source: Source::Cache { ttl: 1 }, tracked: false }
    }

    /// A reply is charged for its memory until that is rendered or dropped.
    ///
    /// Looks at the charge of each reply: the budget also counts the replies of other tests.
    #[test]
    fn charge_follows_memory_of_reply() {
        let mget = commands::find(b"mget").expect("a supported command");
        let long = Arc::new(Value::new(vec![b'l'; 1_000_000]));
        let text = vec![b's'; 16_000];
        let add = |multi: &mut MultiReply, result| multi.push(&reply(result));
        let short = || KeyResult::Value(Payload::Inline { bytes: &text, form: JsonForm::Plain });

        let mut absent = MultiReply::new(mget, 10_000, RespVersion::Resp2);
        (0..5000).for_each(|_| add(&mut absent, KeyResult::Missing));
        (0..5000).for_each(|_| absent.push_pending());
        assert_eq!((absent.charged_bytes, absent.memory_bytes()), (160_000 / SEGMENT_BYTES * SEGMENT_BYTES, 160_000));

        let mut multi = MultiReply::new(mget, 1000, RespVersion::Resp2);
        (0..4).for_each(|_| add(&mut multi, short()));
        add(&mut multi, KeyResult::Value(Payload::Shared(&long)));
        assert_eq!(multi.charged_bytes, 0, "the first segment and long values are not charged");
        (0..200).for_each(|_| add(&mut multi, short()));
        let capacities: Vec<usize> =
            multi.segments.iter().map(|segment| segment.bytes.capacity() / SEGMENT_BYTES).collect();
        assert_eq!(capacities[1..], [2, 4, 8, 16, 16, 16], "jemalloc must reuse freed segments");
        add(&mut multi, KeyResult::Value(Payload::Shared(&long)));
        let held_bytes = 62 * SEGMENT_BYTES + 206 * 16;
        assert_eq!(multi.charged_bytes, held_bytes / SEGMENT_BYTES * SEGMENT_BYTES);
        // Rendering frees memory.
        multi.keys_left = 0;
        let mut out = SendBuffer::default();
        let mut charges = Vec::new();
        while !multi.is_rendered() {
            multi.render(500_000, &mut out);
            out.drain(usize::MAX);
            charges.push(multi.charged_bytes);
        }
        assert!(charges.is_sorted_by(|one, next| one >= next) && charges.len() > 5, "{charges:?}");
        assert_eq!((charges.last(), multi.segment_bytes, multi.memory_bytes()), (Some(&0), 0, 0));
        assert!(multi.segments.iter().all(|segment| segment.bytes.capacity() == 0));
        assert_eq!(Arc::strong_count(&long), 1);

        let mut two = MultiReply::new(mget, 2, RespVersion::Resp2);
        (0..2).for_each(|_| add(&mut two, KeyResult::Value(Payload::Shared(&long))));
        assert_eq!(long.pins.get(), 2, "each of two parts pins the value");
        let mut out = SendBuffer::default();
        two.render(1, &mut out);
        assert_eq!(long.pins.get(), 2);
        drop((two, out));
        assert_eq!(long.pins.get(), 0);

        absent.complete_part(5000, &reply(KeyResult::Failed(&Failure::Internal)));
        assert_eq!((absent.charged_bytes, absent.memory_bytes(), absent.has_failed()), (0, 0, true));
    }

    proptest! {
        /// Parts that complete in any order leave in key order, and the reply keeps no memory.
        #[test]
        fn parts_in_any_order_leave_sorted(
            parts in vec((0..6u8, 0..4usize), 1..120),
            order in any::<u64>(),
            step in prop_oneof![1..100usize, 10_000..200_000usize],
        ) {
            let mget = commands::find(b"mget").expect("a supported command");
            let long = Arc::new(Value::new(vec![b'l'; 20_000]));
            let lengths = [0, 10, 3000, 16_384];
            let (mut multi, mut late) = (MultiReply::new(mget, parts.len() as u32, RespVersion::Resp2), Vec::new());
            let mut expected = format!("*{}\r\n", parts.len()).into_bytes();
            for (number, &(kind, length)) in parts.iter().enumerate() {
                let text = vec![b'a' + number as u8 % 26; lengths[length]];
                let result = match kind {
                    0 => KeyResult::Missing,
                    1 => KeyResult::Value(Payload::Shared(&long)),
                    _ => KeyResult::Value(Payload::Inline { bytes: &text, form: JsonForm::Plain }),
                };
                match result {
                    KeyResult::Value(payload) => {
                        let bytes = payload.bytes();
                        expected.extend([format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat());
                    }
                    _ => expected.extend(b"$-1\r\n"),
                }
                if kind < 5 {
                    multi.push(&reply(result));
                } else {
                    multi.push_pending();
                    late.push((number as u32, text));
                }
            }
            // The pending keys complete in some order, each of them twice.
            late.sort_by_key(|(part, _)| u64::from(*part).wrapping_mul(order | 1) >> 7);
            for (part, text) in &late {
                let result = KeyResult::Value(Payload::Inline { bytes: text, form: JsonForm::Plain });
                prop_assert!(multi.complete_part(*part, &reply(result)) && !multi.complete_part(*part, &reply(result)));
            }
            prop_assert!(multi.is_complete());
            let mut out = SendBuffer::default();
            Box::new(multi).encode(&mut out);
            prop_assert_eq!(out.drain(step), expected);
            prop_assert_eq!((out.unsent_bytes(), Arc::strong_count(&long)), (0, 1));
        }
    }

    /// A long reply is rendered in pieces, and leaves complete, in order with other replies.
    #[test]
    fn long_reply_is_rendered_in_pieces() {
        let long = Arc::new(Value::new(vec![b'l'; 100_000]));
        let mget = commands::find(b"mget").expect("a supported command");
        for version in [RespVersion::Resp2, RespVersion::Resp3] {
            let lengths = [0, 1, 16_384, 100, 16_384, 16_383, 5000, 16_384, 16_384, 3, 70];
            let keys = 5 * lengths.len() as u32;
            let (mut multi, mut expected) = (MultiReply::new(mget, keys, version), format!("*{keys}\r\n").into_bytes());
            let mut late = Vec::new();
            for part in 0..keys {
                let text = vec![b'a' + (part % 26) as u8; lengths[part as usize % lengths.len()]];
                let result = KeyResult::Value(Payload::Inline { bytes: &text, form: JsonForm::Plain });
                assert_eq!(multi.next_part(), part);
                match part % 5 {
                    0 => multi.push(&reply(KeyResult::Missing)),
                    1 => multi.push(&reply(KeyResult::Value(Payload::Shared(&long)))),
                    2 => {
                        late.push((part, text.clone()));
                        multi.push_pending();
                    }
                    _ => multi.push(&reply(result)),
                }
                let null: &[u8] = if version == RespVersion::Resp3 { b"_\r\n" } else { b"$-1\r\n" };
                match part % 5 {
                    0 => expected.extend_from_slice(null),
                    1 => expected.extend([b"$100000\r\n", &long.bytes[..], b"\r\n"].concat()),
                    _ => expected.extend([format!("${}\r\n", text.len()).as_bytes(), &text, b"\r\n"].concat()),
                }
            }
            assert!(!multi.expects_keys() && !multi.is_complete() && multi.pending == late.len());
            for (part, text) in late.iter().rev() {
                let result = KeyResult::Value(Payload::Inline { bytes: text, form: JsonForm::Plain });
                assert!(
                    multi.complete_part(*part, &reply(result))
                        && !multi.complete_part(*part, &reply(KeyResult::Missing))
                );
            }
            assert!(multi.is_complete());
            let queued = multi.memory_bytes();
            let mut out = SendBuffer::default();
            out.tail().extend_from_slice(b"before");
            Box::new(multi).encode(&mut out);
            // Neither short replies nor another reply for several keys overtake it.
            let other = vec![b'o'; 16_384];
            let mut next = MultiReply::new(mget, 4, version);
            (0..4).for_each(|_| {
                next.push(&reply(KeyResult::Value(Payload::Inline { bytes: &other, form: JsonForm::Plain })));
            });
            out.tail().extend_from_slice(b"between");
            let queued = queued + next.memory_bytes();
            Box::new(next).encode(&mut out);
            out.tail().extend_from_slice(b"after");
            expected.extend([b"between*4\r\n", &[b"$16384\r\n", &other[..], b"\r\n"].concat().repeat(4)[..]].concat());
            let short = b"before*55\r\nbetween*4\r\nafter".len();
            assert_eq!(out.unsent_bytes(), queued + short, "the reply was rendered at once");
            let step = if version == RespVersion::Resp3 { 1000 } else { usize::MAX };
            assert_eq!(out.drain(step), [b"before", &expected[..], b"after"].concat());
        }
        assert_eq!(Arc::strong_count(&long), 1);
    }
}
