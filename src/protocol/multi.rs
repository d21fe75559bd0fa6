//! `MGET` and `EXISTS`: one reply out of many keys, of which some are in memory and others are on their way.
//!
//! Parts are kept short: a place in a buffer, or a reference. If one key cannot be read, the whole reply is an error, as
//! clients know no other kind of it; what came before is dropped, what comes later is of no use.
//!
//! A reply may be long, and the loop has others to serve. So nothing here is done at once for all of it: the buffer grows by
//! segments that never move, and a complete reply is rendered piece by piece, as the socket has room for it.

use super::SendBuffer;
use super::output_budget::OutputBudget;
use super::pinned::{PinnedValue, can_pin};
use super::resp::commands::{CommandName, CommandSpec};
use super::resp::encode::{encode_error, encode_part, error_of};
use super::resp::writer::{RespVersion, RespWriter};
use crate::types::{Failure, KeyResult, Reply};
use crate::value::{Payload, SHARED_VALUE_BYTES, Value};
use std::sync::Arc;

/// Most bytes of values that one reply may hold. A first value may be longer.
const MAX_MULTI_REPLY_BYTES: usize = 64 * 1024 * 1024;

/// Bytes of all multi-key replies of the process, except for a first segment each and for long
/// values, which `pinned` bounds. Without this limit, clients that leave commands unfinished or do not read
/// could fill the memory.
static MULTI_BUDGET: OutputBudget = OutputBudget::new(256 * 1024 * 1024);

/// What a client is told whose reply would make it more.
const MULTI_MEMORY_FULL: &str =
    "TRYAGAIN the memory limit for multi-key replies is reached; retry, or request fewer keys at once";

/// The first segment for short values grows up to this; at least four of them fit. Every other one is twice as long as the
/// one before, up to [`MAX_SEGMENT_BYTES`]: what is freed in pieces much smaller than the whole, jemalloc does not use
/// again for pieces before it has given it back, seconds later.
const SEGMENT_BYTES: usize = 4 * SHARED_VALUE_BYTES;
const MAX_SEGMENT_BYTES: usize = 1024 * 1024;

/// A reply that is put together.
#[derive(Debug)]
pub struct MultiReply {
    /// Whether only the number of keys is told.
    count_only: bool,
    version: RespVersion,
    /// Keys that have not been asked for.
    keys_left: u32,
    parts: Vec<Part>,
    /// How many of them are [`Part::Pending`].
    pending: usize,
    /// The short values, one after the other, each within one segment.
    segments: Vec<Segment>,
    /// Bytes of all values that are not rendered.
    value_bytes: usize,
    /// Room in the segments behind the first.
    segment_bytes: usize,
    /// Bytes that [`MULTI_BUDGET`] counts for this reply.
    charged_bytes: usize,
    /// Parts that are rendered.
    rendered: usize,
    /// The error that it has become instead.
    failed: Option<String>,
}

/// Room for short values, and how many in it are not rendered.
#[derive(Debug, Default)]
struct Segment {
    bytes: Vec<u8>,
    value_bytes: usize,
}

// A short value's length fits, and so does the number of any segment.
const _: () = assert!(SHARED_VALUE_BYTES <= u16::MAX as usize);
const _: () = assert!(MAX_MULTI_REPLY_BYTES / SEGMENT_BYTES * 2 <= u16::MAX as usize && size_of::<Part>() == 16);

/// What is known of a key.
#[derive(Debug)]
enum Part {
    /// It is being read.
    Pending,
    /// There is none, or none of a kind that `MGET` reads.
    Absent,
    /// A short value, and where it is.
    Short {
        segment: u16,
        length: u16,
        from: u32,
    },
    Long(PinnedValue),
    /// A key that is there and needs only to be counted.
    Counted,
}

impl MultiReply {
    /// A reply to `known` about so many keys.
    pub fn new(known: &CommandSpec, keys: u32, version: RespVersion) -> MultiReply {
        MultiReply {
            count_only: known.name == CommandName::Exists,
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

    /// Whether keys are still to come.
    pub fn expects_keys(&self) -> bool {
        self.keys_left > 0
    }

    /// Whether it is of no use to ask for more keys.
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Bytes that it holds.
    pub fn memory_bytes(&self) -> usize {
        self.value_bytes + (self.parts.len() - self.rendered) * size_of::<Part>()
    }

    /// Whether all of it is there.
    pub fn is_complete(&self) -> bool {
        self.keys_left == 0 && self.pending == 0
    }

    /// The number of the key that comes next.
    pub fn next_part(&self) -> u32 {
        self.parts.len() as u32
    }

    /// The next key is not asked for, because the reply has failed.
    pub fn skip_key(&mut self) {
        self.keys_left -= 1;
    }

    /// The next key is being read.
    pub fn push_pending(&mut self) {
        self.keys_left -= 1;
        self.pending += 1;
        self.parts.push(Part::Pending);
        self.charge();
    }

    /// The next key was in memory.
    pub fn push(&mut self, reply: &Reply<'_>) {
        let part = self.next_part();
        self.push_pending();
        self.complete_part(part, reply);
    }

    /// What has become of a key that was being read. Says whether it was.
    pub fn complete_part(&mut self, part: u32, reply: &Reply<'_>) -> bool {
        let Some(Part::Pending) = self.parts.get(part as usize) else { return false };
        self.pending -= 1;
        self.parts[part as usize] = match reply.outcome {
            KeyResult::Missing => Part::Absent,
            KeyResult::Failed(Failure::WrongType) if !self.count_only => Part::Absent,
            // Too long or of another type: it is there.
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
                if long(payload).is_some_and(|value| !can_pin(value)) {
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

    /// Notes what it holds among what all hold. If that is too much, it has failed.
    fn charge(&mut self) {
        let holds = self.segment_bytes + (self.parts.len() - self.rendered) * size_of::<Part>();
        // In whole segments: other loops count there too.
        let charge = holds / SEGMENT_BYTES * SEGMENT_BYTES;
        if !MULTI_BUDGET.update_charge(std::mem::replace(&mut self.charged_bytes, charge), charge) {
            self.fail(MULTI_MEMORY_FULL.into());
        }
    }

    fn store(&mut self, payload: Payload<'_>) -> Part {
        if let Some(value) = long(payload) {
            // Perhaps the cache holds it too; perhaps it has been evicted.
            return Part::Long(PinnedValue::new(value));
        }
        // A reference to a short value would cost more than a copy, on its way out too.
        let bytes = payload.bytes();
        let fits = |last: &Segment| last.bytes.len() + bytes.len() <= last.bytes.capacity().max(SEGMENT_BYTES);
        if !self.segments.last().is_some_and(fits) {
            self.add_segment();
        }
        let number = self.segments.len() - 1;
        let segment = &mut self.segments[number];
        let from = segment.bytes.len() as u32;
        segment.bytes.extend_from_slice(bytes);
        segment.value_bytes += 1;
        Part::Short { segment: number as u16, length: bytes.len() as u16, from }
    }

    fn add_segment(&mut self) {
        let room = match self.segments.len() {
            0 => 0,
            number => (SEGMENT_BYTES << number.min(16)).min(MAX_SEGMENT_BYTES),
        };
        self.segment_bytes += room;
        self.segments.push(Segment { bytes: Vec::with_capacity(room), value_bytes: 0 });
    }

    fn fail(&mut self, error: String) {
        self.failed = Some(error);
        (self.parts, self.pending, self.segments, self.value_bytes) = (Vec::new(), 0, Vec::new(), 0);
        (self.segment_bytes, self.rendered) = (0, 0);
        self.charge();
    }

    /// Appends the reply. Only when it is complete. A long one is rendered later.
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

    /// Whether all parts are rendered.
    pub fn is_rendered(&self) -> bool {
        self.rendered == self.parts.len()
    }

    /// Appends the next parts to `out`, which is empty, until they are `bytes`. What is rendered is held no longer.
    pub fn render(&mut self, bytes: usize, out: &mut SendBuffer) {
        while out.unsent_bytes() < bytes && self.rendered < self.parts.len() {
            let part = std::mem::replace(&mut self.parts[self.rendered], Part::Absent);
            self.rendered += 1;
            match part {
                Part::Short { segment, length, from } => {
                    let (from, length, number) = (from as usize, usize::from(length), usize::from(segment));
                    let segment = &mut self.segments[number];
                    RespWriter::new(out.tail(), self.version).bulk(&segment.bytes[from..from + length]);
                    self.value_bytes -= length;
                    segment.value_bytes -= 1;
                    if segment.value_bytes == 0 {
                        self.segment_bytes -= if number > 0 { segment.bytes.capacity() } else { 0 };
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

/// The value, where it is one that is not copied.
fn long(payload: Payload<'_>) -> Option<&Arc<Value>> {
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

    fn reply(outcome: KeyResult<'_>) -> Reply<'_> {
        Reply { outcome, source: Source::Cache { ttl: 1 }, tracked: false }
    }

    /// By its own books, as other tests' replies are in those of the process.
    #[test]
    fn what_a_reply_holds_is_charged_to_it_as_long_as_it_holds_it() {
        let mget = commands::find(b"mget").expect("it is there");
        let long = Arc::new(Value::new(vec![b'l'; 1_000_000]));
        let text = vec![b's'; 16_000];
        let add = |multi: &mut MultiReply, outcome| multi.push(&reply(outcome));
        let short = || KeyResult::Value(Payload::Inline { bytes: &text, form: JsonForm::Plain });

        let mut absent = MultiReply::new(mget, 10_000, RespVersion::Resp2);
        (0..5000).for_each(|_| add(&mut absent, KeyResult::Missing));
        (0..5000).for_each(|_| absent.push_pending());
        assert_eq!((absent.charged_bytes, absent.memory_bytes()), (160_000 / SEGMENT_BYTES * SEGMENT_BYTES, 160_000));

        let mut multi = MultiReply::new(mget, 1000, RespVersion::Resp2);
        (0..4).for_each(|_| add(&mut multi, short()));
        add(&mut multi, KeyResult::Value(Payload::Shared(&long)));
        assert_eq!(multi.charged_bytes, 0, "a segment is free, and long values are in another book");
        (0..200).for_each(|_| add(&mut multi, short()));
        let rooms: Vec<usize> = multi.segments.iter().map(|segment| segment.bytes.capacity() / SEGMENT_BYTES).collect();
        assert_eq!(rooms[1..], [2, 4, 8, 16, 16, 16], "freed, the pieces must be long enough to be used again");
        add(&mut multi, KeyResult::Value(Payload::Shared(&long)));
        let holds = 62 * SEGMENT_BYTES + 206 * 16;
        assert_eq!(multi.charged_bytes, holds / SEGMENT_BYTES * SEGMENT_BYTES);
        // What is rendered is not held.
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
        assert_eq!(long.pins.get(), 2, "it is not known who holds it");
        let mut out = SendBuffer::default();
        two.render(1, &mut out);
        assert_eq!(long.pins.get(), 2);
        drop((two, out));
        assert_eq!(long.pins.get(), 0);

        absent.complete_part(5000, &reply(KeyResult::Failed(&Failure::Internal)));
        assert_eq!((absent.charged_bytes, absent.memory_bytes(), absent.has_failed()), (0, 0, true));
    }

    proptest! {
        /// Whatever comes in whatever order, and however it is taken, leaves as it should, and nothing stays charged.
        #[test]
        fn whatever_it_is_made_of_leaves_in_order_and_nothing_is_kept(
            parts in vec((0..6u8, 0..4usize), 1..120),
            order in any::<u64>(),
            step in prop_oneof![1..100usize, 10_000..200_000usize],
        ) {
            let mget = commands::find(b"mget").expect("it is there");
            let long = Arc::new(Value::new(vec![b'l'; 20_000]));
            let lengths = [0, 10, 3000, 16_384];
            let (mut multi, mut late) = (MultiReply::new(mget, parts.len() as u32, RespVersion::Resp2), Vec::new());
            let mut expected = format!("*{}\r\n", parts.len()).into_bytes();
            for (number, &(kind, length)) in parts.iter().enumerate() {
                let text = vec![b'a' + number as u8 % 26; lengths[length]];
                let outcome = match kind {
                    0 => KeyResult::Missing,
                    1 => KeyResult::Value(Payload::Shared(&long)),
                    _ => KeyResult::Value(Payload::Inline { bytes: &text, form: JsonForm::Plain }),
                };
                match outcome {
                    KeyResult::Value(payload) => {
                        let bytes = payload.bytes();
                        expected.extend([format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat());
                    }
                    _ => expected.extend(b"$-1\r\n"),
                }
                if kind < 5 {
                    multi.push(&reply(outcome));
                } else {
                    multi.push_pending();
                    late.push((number as u32, text));
                }
            }
            // Some order of those that come late, and one of them twice.
            late.sort_by_key(|(part, _)| u64::from(*part).wrapping_mul(order | 1) >> 7);
            for (part, text) in &late {
                let outcome = KeyResult::Value(Payload::Inline { bytes: text, form: JsonForm::Plain });
                prop_assert!(multi.complete_part(*part, &reply(outcome)) && !multi.complete_part(*part, &reply(outcome)));
            }
            prop_assert!(multi.is_complete());
            let mut out = SendBuffer::default();
            Box::new(multi).encode(&mut out);
            prop_assert_eq!(out.drain(step), expected);
            prop_assert_eq!((out.unsent_bytes(), Arc::strong_count(&long)), (0, 1));
        }
    }

    #[test]
    fn a_long_reply_is_rendered_piece_by_piece_and_leaves_whole() {
        let long = Arc::new(Value::new(vec![b'l'; 100_000]));
        let mget = commands::find(b"mget").expect("it is there");
        for version in [RespVersion::Resp2, RespVersion::Resp3] {
            let lengths = [0, 1, 16_384, 100, 16_384, 16_383, 5000, 16_384, 16_384, 3, 70];
            let keys = 5 * lengths.len() as u32;
            let (mut multi, mut expected) = (MultiReply::new(mget, keys, version), format!("*{keys}\r\n").into_bytes());
            let mut late = Vec::new();
            for part in 0..keys {
                let text = vec![b'a' + (part % 26) as u8; lengths[part as usize % lengths.len()]];
                let outcome = KeyResult::Value(Payload::Inline { bytes: &text, form: JsonForm::Plain });
                assert_eq!(multi.next_part(), part);
                match part % 5 {
                    0 => multi.push(&reply(KeyResult::Missing)),
                    1 => multi.push(&reply(KeyResult::Value(Payload::Shared(&long)))),
                    2 => {
                        late.push((part, text.clone()));
                        multi.push_pending();
                    }
                    _ => multi.push(&reply(outcome)),
                }
                let nothing: &[u8] = if version == RespVersion::Resp3 { b"_\r\n" } else { b"$-1\r\n" };
                match part % 5 {
                    0 => expected.extend_from_slice(nothing),
                    1 => expected.extend([b"$100000\r\n", &long.bytes[..], b"\r\n"].concat()),
                    _ => expected.extend([format!("${}\r\n", text.len()).as_bytes(), &text, b"\r\n"].concat()),
                }
            }
            assert!(!multi.expects_keys() && !multi.is_complete() && multi.pending == late.len());
            for (part, text) in late.iter().rev() {
                let outcome = KeyResult::Value(Payload::Inline { bytes: text, form: JsonForm::Plain });
                assert!(
                    multi.complete_part(*part, &reply(outcome))
                        && !multi.complete_part(*part, &reply(KeyResult::Missing))
                );
            }
            assert!(multi.is_complete());
            let held = multi.memory_bytes();
            let mut out = SendBuffer::default();
            out.tail().extend_from_slice(b"before");
            Box::new(multi).encode(&mut out);
            // Nothing overtakes it, be it short or another one of its kind.
            let other = vec![b'o'; 16_384];
            let mut next = MultiReply::new(mget, 4, version);
            (0..4).for_each(|_| {
                next.push(&reply(KeyResult::Value(Payload::Inline { bytes: &other, form: JsonForm::Plain })));
            });
            out.tail().extend_from_slice(b"between");
            let held = held + next.memory_bytes();
            Box::new(next).encode(&mut out);
            out.tail().extend_from_slice(b"behind");
            expected.extend([b"between*4\r\n", &[b"$16384\r\n", &other[..], b"\r\n"].concat().repeat(4)[..]].concat());
            let short = b"before*55\r\nbetween*4\r\nbehind".len();
            assert_eq!(out.unsent_bytes(), held + short, "it was rendered at once");
            let step = if version == RespVersion::Resp3 { 1000 } else { usize::MAX };
            assert_eq!(out.drain(step), [b"before", &expected[..], b"behind"].concat());
        }
        assert_eq!(Arc::strong_count(&long), 1);
    }
}
