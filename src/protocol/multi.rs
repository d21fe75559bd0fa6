//! Replies to `MGET`, `EXISTS` and `/keys`, built from cache hits and from fetches that finish
//! later.
//!
//! Short values are encoded as they arrive, into segments. Consecutive ones share a part of 16
//! bytes. A key that is being fetched and a long value have one each. If one key of a RESP command
//! cannot be read, the whole reply is an error, because RESP clients expect nothing else. The parts
//! before it are dropped, and later results are ignored.
//!
//! A long reply must not delay other clients of the worker. The buffer therefore grows by segments
//! that never move. A complete reply is rendered in pieces, as the socket accepts them.

mod json;
mod render;
#[cfg(test)]
mod tests;

use super::http::HttpReplyFormat;
use super::output_budget::OutputBudget;
use super::pinned::{PinnedValue, can_pin};
use super::resp::WaitingPushes;
use super::resp::commands::{CommandName, CommandSpec};
use super::resp::encode::error_of;
use super::resp::writer::{RespVersion, RespWriter};
use crate::types::{Access, Failure, KeyResult, Push, Reply};
use crate::value::{Payload, SHARED_VALUE_BYTES, Value};
use json::JsonReply;
use std::sync::Arc;

/// Limit on the bytes of all values of one reply. A single value may exceed it.
const MAX_MULTI_REPLY_BYTES: usize = 64 * 1024 * 1024;

/// Bytes of the parts and short values of all multi-key replies of the process.
///
/// The first segment of a reply does not count, and `pinned` limits the long values. Without this
/// limit, clients that do not finish their commands, or do not read, could exhaust memory.
static MULTI_BUDGET: OutputBudget = OutputBudget::new(256 * 1024 * 1024);

/// Initial size of the first segment: some short values. It grows by doubling.
const FIRST_SEGMENT_BYTES: usize = 2 * 1024;

/// Bytes of the first segment for each key in JSON: the key, its value and the names of the fields.
const ELEMENT_BYTES: usize = 128;

/// Maximum of bytes that are encoded beside a short value: type, length and two line ends.
const MAX_HEAD_BYTES: usize = 10;

/// Size up to which the first segment grows; nearly four of the longest short values fit into it.
const SEGMENT_BYTES: usize = 4 * SHARED_VALUE_BYTES;

/// Size of the largest segment. Each segment after the first is twice as long as the one before.
///
/// jemalloc reuses freed pieces much smaller than the whole reply only seconds later (with segments
/// of 64 KiB, one client took 700 MB).
const MAX_SEGMENT_BYTES: usize = 1024 * 1024;

/// Reply for several keys that is being built or rendered.
#[derive(Debug)]
pub struct MultiReply {
    form: Form,
    /// Keys of the command.
    keys: u32,
    /// Keys of the command that are not decoded.
    keys_left: u32,
    /// Keys that exist. Counted for `EXISTS` only.
    existing: u32,
    parts: Vec<Part>,
    /// Number of parts that are [`Part::Pending`].
    pending: usize,
    /// Encoded short values. No value spans two segments.
    segments: Vec<Segment>,
    /// Bytes of all values, as [`MAX_MULTI_REPLY_BYTES`] limits them.
    value_bytes: usize,
    /// Bytes of all parts that are not rendered: short values as encoded, long ones without a head.
    part_bytes: usize,
    /// Capacity of the segments after the first.
    segment_bytes: usize,
    /// Bytes that [`MULTI_BUDGET`] counts for this reply.
    charged_bytes: usize,
    /// Number of parts that are rendered.
    rendered: usize,
    /// Reason for which an error replaces the whole reply.
    failed: Option<MultiFailure>,
    /// Invalidations to be sent behind the reply.
    pushes: WaitingPushes,
}

/// Form of a reply.
#[derive(Debug)]
enum Form {
    /// `MGET`: the values.
    Values(RespVersion),
    /// `EXISTS`: the number of keys.
    Count(RespVersion),
    /// `/keys`.
    Json(JsonReply),
}

/// Reason for which an error replaces a whole reply.
#[derive(Debug)]
enum MultiFailure {
    /// A key of a RESP command could not be read, with this error.
    Key(String),
    /// The reply would be longer than [`MAX_MULTI_REPLY_BYTES`].
    TooLong,
    /// The reply exceeds [`MULTI_BUDGET`].
    MemoryFull,
}

/// Buffer for encoded values.
#[derive(Debug, Default)]
struct Segment {
    bytes: Vec<u8>,
    /// Number of bytes in it that are not rendered.
    unrendered: usize,
}

// The index of every segment fits into `Part::Encoded`.
const _: () = assert!(MAX_MULTI_REPLY_BYTES / SEGMENT_BYTES * 2 <= u16::MAX as usize && size_of::<Part>() == 16);

/// Results of consecutive keys, from the one with the index `key`.
#[derive(Debug)]
enum Part {
    /// One key, which is being fetched.
    Pending { key: u32 },
    /// Encoded short values and nulls of one or more keys: a range of bytes in a segment. Empty for
    /// `EXISTS`.
    Encoded { segment: u16, key: u32, from: u32, end: u32 },
    /// Long value of one key, by reference. In JSON with the rest of its element.
    Long { key: u32, from_cache: bool, value: PinnedValue },
}

impl Part {
    /// Creates a part that adds nothing to the reply.
    fn empty(key: u32) -> Part {
        Part::Encoded { segment: 0, key, from: 0, end: 0 }
    }

    /// Returns the index of the first key.
    fn key(&self) -> u32 {
        match *self {
            Part::Pending { key } | Part::Encoded { key, .. } | Part::Long { key, .. } => key,
        }
    }
}

impl MultiReply {
    /// Creates the reply to a RESP command for `keys` keys.
    pub fn new(spec: &CommandSpec, keys: u32, version: RespVersion) -> MultiReply {
        let counts = spec.name == CommandName::Exists;
        MultiReply::with_form(if counts { Form::Count(version) } else { Form::Values(version) }, keys)
    }

    /// Creates the response to an HTTP request for `keys` keys.
    pub fn new_json(format: HttpReplyFormat, keys: u32) -> MultiReply {
        MultiReply::with_form(Form::Json(JsonReply::new(format)), keys)
    }

    fn with_form(form: Form, keys: u32) -> MultiReply {
        MultiReply {
            form,
            keys,
            keys_left: keys,
            existing: 0,
            parts: Vec::new(),
            pending: 0,
            segments: Vec::new(),
            value_bytes: 0,
            part_bytes: 0,
            segment_bytes: 0,
            charged_bytes: 0,
            rendered: 0,
            failed: None,
            pushes: WaitingPushes::default(),
        }
    }

    /// Adds an invalidation, which leaves behind the reply.
    pub fn push_invalidation(&mut self, push: Push<'_>) {
        self.pushes.add(push);
    }

    /// Takes the invalidations to be sent behind the reply.
    pub fn take_pushes(&mut self) -> WaitingPushes {
        std::mem::take(&mut self.pushes)
    }

    /// Returns true if the request has keys that are not decoded.
    pub fn expects_keys(&self) -> bool {
        self.keys_left > 0
    }

    /// Returns true if the client has not sent all keys.
    pub fn expects_input(&self) -> bool {
        self.keys_left > 0 && !self.is_http()
    }

    /// Returns true for the response to an HTTP request.
    pub fn is_http(&self) -> bool {
        matches!(self.form, Form::Json(_))
    }

    /// Returns the use of the cache that the request allows, if it is an HTTP request.
    pub fn http_access(&self) -> Option<Access> {
        match &self.form {
            Form::Json(json) => Some(json.format.access),
            Form::Values(_) | Form::Count(_) => None,
        }
    }

    /// Returns true if the client does not get what it asked for: the whole reply is an error, or
    /// the element of a key that Redis could not serve.
    pub fn has_failed_key(&self) -> bool {
        self.has_failed() || matches!(&self.form, Form::Json(json) if json.has_failed_key)
    }

    /// Returns true if the reply is an error already, so further keys need no lookup.
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Returns the bytes of values and parts that are not rendered, and of the request.
    pub fn memory_bytes(&self) -> usize {
        let request_bytes = if let Form::Json(json) = &self.form { json.format.held_bytes() } else { 0 };
        let push_bytes = self.pushes.bytes().len();
        self.part_bytes + (self.parts.len() - self.rendered) * size_of::<Part>() + request_bytes + push_bytes
    }

    /// Returns the bytes of all parts that are not rendered.
    pub fn part_bytes(&self) -> usize {
        self.part_bytes
    }

    /// Returns true if the result of every key has arrived.
    pub fn is_complete(&self) -> bool {
        self.keys_left == 0 && self.pending == 0
    }

    /// Returns the index of the next key.
    pub fn next_key(&self) -> u32 {
        self.keys - self.keys_left
    }

    /// Prepares the reply for the result of the next key. Called before the key is looked up.
    pub fn begin_key(&mut self, key: &[u8]) {
        if self.is_http() {
            self.push_element_start(key);
        }
    }

    /// Skips the lookup of the next key. Called after the reply has failed.
    pub fn skip_key(&mut self) {
        self.keys_left -= 1;
    }

    /// Adds the next key as pending.
    pub fn push_pending(&mut self) {
        self.parts.push(Part::Pending { key: self.next_key() });
        self.keys_left -= 1;
        self.pending += 1;
        self.charge();
    }

    /// Adds the next key with its result.
    pub fn push(&mut self, reply: &Reply<'_>) {
        let key = self.next_key();
        self.keys_left -= 1;
        if let Some(part) = self.store(key, reply) {
            self.push_part(part);
        }
    }

    fn push_part(&mut self, part: Part) {
        if let Part::Encoded { segment, from, end, .. } = part
            && let Some(Part::Encoded { segment: last_segment, end: last_end, .. }) = self.parts.last_mut()
            && (segment, from) == (*last_segment, *last_end)
        {
            // The usual result extends the part before it, and needs no new segment.
            *last_end = end;
            return;
        }
        self.parts.push(part);
        self.charge();
    }

    /// Stores the result of a pending key. Returns false if the key is not pending.
    pub fn complete_key(&mut self, key: u32, reply: &Reply<'_>) -> bool {
        // The start of the key's element may be a part before it, with the same index.
        let Some(index) = self.parts.partition_point(|part| part.key() <= key).checked_sub(1) else { return false };
        if !matches!(self.parts[index], Part::Pending { key: pending } if pending == key) {
            return false;
        }
        self.pending -= 1;
        if let Some(part) = self.store(key, reply) {
            self.parts[index] = part;
            self.charge();
        }
        true
    }

    /// Stores the result of a key and returns its part. Returns `None` if the reply fails.
    fn store(&mut self, key: u32, reply: &Reply<'_>) -> Option<Part> {
        let version = match self.form {
            Form::Json(_) => return self.store_element(key, reply),
            Form::Count(_) => return self.store_count(key, reply),
            Form::Values(version) => version,
        };
        match reply.result {
            KeyResult::Failed(failure) if !self.is_answer(failure) => {
                self.fail(MultiFailure::Key(error_of(failure)));
                None
            }
            KeyResult::Value(payload) => self.store_value(key, payload, version),
            // `MGET` does not read other types. RESP commands always permit to read Redis.
            KeyResult::Missing | KeyResult::NotCached | KeyResult::Failed(_) => {
                Some(self.encode_part(key, MAX_HEAD_BYTES, |out| RespWriter::new(out, version).null()))
            }
        }
    }

    /// Counts a key of `EXISTS`, if it exists. Returns its part, `None` if the reply fails.
    fn store_count(&mut self, key: u32, reply: &Reply<'_>) -> Option<Part> {
        match reply.result {
            KeyResult::Failed(failure) if !self.is_answer(failure) => {
                self.fail(MultiFailure::Key(error_of(failure)));
                return None;
            }
            // A key of another type, or with a value above MAX_VALUE_BYTES, exists.
            KeyResult::Value(_) | KeyResult::Failed(_) => self.existing += 1,
            KeyResult::Missing | KeyResult::NotCached => {}
        }
        Some(Part::empty(key))
    }

    /// Returns true if a failure to read a key answers the command for that key.
    fn is_answer(&self, failure: &Failure) -> bool {
        match failure {
            Failure::WrongType => true,
            Failure::TooLong => matches!(self.form, Form::Count(_)),
            _ => false,
        }
    }

    /// Updates the charge to [`MULTI_BUDGET`]. Fails the reply if the budget is exceeded.
    fn charge(&mut self) {
        let held_bytes = self.segment_bytes + (self.parts.len() - self.rendered) * size_of::<Part>();
        // Whole segments only: nearly every key leaves the counter untouched that workers share.
        let charge = held_bytes / SEGMENT_BYTES * SEGMENT_BYTES;
        if !MULTI_BUDGET.update_charge(std::mem::replace(&mut self.charged_bytes, charge), charge) {
            self.fail(MultiFailure::MemoryFull);
        }
    }

    /// Counts the bytes of a value. Fails the reply if it would be too long.
    fn count_value(&mut self, bytes: usize) -> Option<()> {
        if self.value_bytes > 0 && self.value_bytes + bytes > MAX_MULTI_REPLY_BYTES {
            self.fail(MultiFailure::TooLong);
            return None;
        }
        self.value_bytes += bytes;
        Some(())
    }

    fn store_value(&mut self, key: u32, payload: Payload<'_>, version: RespVersion) -> Option<Part> {
        let bytes = payload.bytes();
        self.count_value(bytes.len())?;
        match shared_value(payload) {
            Some(value) if !can_pin(value) => {
                self.fail(MultiFailure::Key(error_of(&Failure::OutputMemoryFull)));
                None
            }
            Some(value) => {
                self.part_bytes += bytes.len();
                Some(Part::Long { key, from_cache: false, value: PinnedValue::new(value) })
            }
            // A short value is copied: a reference costs more here, and again in `writev`.
            None => {
                let max_bytes = bytes.len() + MAX_HEAD_BYTES;
                Some(self.encode_part(key, max_bytes, |out| RespWriter::new(out, version).bulk(bytes)))
            }
        }
    }

    /// Encodes up to `max_bytes` bytes with `encode`.
    fn encode_part(&mut self, key: u32, max_bytes: usize, encode: impl FnOnce(&mut Vec<u8>)) -> Part {
        if self.segments.is_empty() && max_bytes > SEGMENT_BYTES {
            // The first segment has a limit, because it is not charged. Escapes may exceed it.
            self.segments.push(Segment::default());
        }
        let fits = |last: &Segment| last.bytes.len() + max_bytes <= last.bytes.capacity().max(SEGMENT_BYTES);
        if !self.segments.last().is_some_and(fits) {
            self.add_segment();
        }
        let index = self.segments.len() - 1;
        let segment = &mut self.segments[index];
        let from = segment.bytes.len();
        if from + max_bytes > segment.bytes.capacity() {
            // Only the first segment grows, and not beyond its limit: it is not charged.
            let doubled = (2 * segment.bytes.capacity()).min(SEGMENT_BYTES);
            segment.bytes.reserve_exact(doubled.max(from + max_bytes) - from);
        }
        encode(&mut segment.bytes);
        let end = segment.bytes.len();
        segment.unrendered += end - from;
        self.part_bytes += end - from;
        Part::Encoded { segment: index as u16, key, from: from as u32, end: end as u32 }
    }

    fn add_segment(&mut self) {
        let capacity = match self.segments.len() {
            // A request for few keys waits in a pipeline with many like it.
            0 if self.is_http() => FIRST_SEGMENT_BYTES.min(ELEMENT_BYTES * self.keys as usize),
            0 => FIRST_SEGMENT_BYTES,
            index => {
                let capacity = (SEGMENT_BYTES << index.min(16)).min(MAX_SEGMENT_BYTES);
                self.segment_bytes += capacity;
                capacity
            }
        };
        self.segments.push(Segment { bytes: Vec::with_capacity(capacity), unrendered: 0 });
    }

    /// Replaces the whole reply by an error.
    fn fail(&mut self, failure: MultiFailure) {
        self.failed = Some(failure);
        (self.parts, self.pending, self.segments, self.part_bytes) = (Vec::new(), 0, Vec::new(), 0);
        (self.segment_bytes, self.rendered) = (0, 0);
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
