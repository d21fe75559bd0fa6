//! JSON form of a reply for several keys: the body of `/keys`.
//!
//! `{"values":[{"key":"a","value":1,"fromCache":true},{"key":"b","value":null}]}`
//!
//! A key that cannot be read has an `error` instead of a value, so it does not fail the others. The
//! start of each element is encoded before its key is looked up, because the result of a fetch does
//! not name the key.

use super::{Form, MultiFailure, MultiReply, Part};
use crate::protocol::http::json;
use crate::protocol::http::{self, HttpReplyFormat, ResponseDate, Status, ValueBody};
use crate::protocol::pinned::{PinnedValue, can_pin};
use crate::protocol::{ReplySummary, SendBuffer};
use crate::types::{Failure, KeyResult, Millis, Reply, Source};
use crate::value::{JsonForm, Payload, SHARED_VALUE_BYTES, Value};
use std::sync::Arc;

const BODY_START: &[u8] = b"{\"values\":[";
const BODY_END: &[u8] = b"]}";

/// Properties of a reply in JSON.
#[derive(Debug)]
pub(super) struct JsonReply {
    pub(super) format: HttpReplyFormat,
    /// Length of all elements so far.
    elements_bytes: usize,
    /// Origin of the value that is trusted least, `None` before the first one.
    origin: Option<Source>,
    /// True if a key could not be read.
    pub(super) has_failed_key: bool,
    /// Number of values without memory for a reference, which were not counted as failures yet.
    memory_failures: usize,
}

impl JsonReply {
    pub(super) fn new(format: HttpReplyFormat) -> JsonReply {
        JsonReply { format, elements_bytes: 0, origin: None, has_failed_key: false, memory_failures: 0 }
    }

    /// Stores the origin of an element, if it is trusted less than the others.
    fn add_origin(&mut self, source: Source) {
        let trust = |source: Source| match source {
            Source::Stale { expired_for, .. } => (0, Millis::MAX - expired_for),
            Source::Redis { .. } => (1, 0),
            Source::Neither => (2, 0),
            Source::Cache { ttl } => (3, ttl),
        };
        if self.origin.is_none_or(|origin| trust(source) < trust(origin)) {
            self.origin = Some(source);
        }
    }
}

impl MultiReply {
    /// Encodes the start of the next element: its key. Called before the key is looked up.
    pub(super) fn push_element_start(&mut self, key: &[u8]) {
        let start: &[u8] = if self.next_key() == 0 { b"{" } else { b",{" };
        let part = self.encode_element_part(self.next_key(), start.len() + json::key_len(key), |out| {
            out.extend_from_slice(start);
            json::write_key(key, out);
        });
        self.push_part(part);
    }

    /// Stores the result of a key, which ends its element. Returns its part, `None` if the whole
    /// reply fails.
    pub(super) fn store_element(&mut self, key: u32, reply: &Reply<'_>) -> Option<Part> {
        let from_cache = !matches!(reply.source, Source::Redis { .. });
        if let Form::Json(json) = &mut self.form {
            json.add_origin(reply.source);
        }
        match reply.result {
            KeyResult::Value(Payload::Shared(value)) if self.is_held(value) => {
                self.store_held_value(key, value, from_cache)
            }
            KeyResult::Value(payload) if payload.bytes().len() > SHARED_VALUE_BYTES => {
                if let Form::Json(json) = &mut self.form {
                    json.memory_failures += 1;
                    json.has_failed_key = true;
                }
                Some(self.encode_error(key, &Failure::OutputMemoryFull.to_string()))
            }
            KeyResult::Value(payload) => {
                let (bytes, form) = (payload.bytes(), payload.form());
                let body = ValueBody::element(Payload::Inline { bytes, form }, from_cache);
                self.count_value(body.len())?;
                Some(self.encode_element_part(key, body.len(), |out| body.write_inline(bytes, out)))
            }
            KeyResult::Missing => {
                let missing = json::MISSING_VALUE;
                Some(self.encode_element_part(key, missing.len(), |out| out.extend_from_slice(missing)))
            }
            KeyResult::NotCached => Some(self.encode_error(key, http::NOT_CACHED)),
            KeyResult::Failed(failure) => {
                if let Form::Json(json) = &mut self.form {
                    json.has_failed_key |= !matches!(failure, Failure::WrongType | Failure::TooLong);
                }
                Some(self.encode_error(key, &failure.to_string()))
            }
        }
    }

    /// Returns true if a value is held by reference and rendered in pieces: a long one, and a
    /// shorter one that needs an encoding, which may take six bytes for one. A response to `HEAD`
    /// holds none.
    fn is_held(&self, value: &Value) -> bool {
        let needs_encoding = matches!(value.form, JsonForm::Escaped | JsonForm::Binary);
        let is_long = needs_encoding || value.bytes.len() > SHARED_VALUE_BYTES;
        is_long && (self.is_head_only() || can_pin(value))
    }

    fn store_held_value(&mut self, key: u32, value: &Arc<Value>, from_cache: bool) -> Option<Part> {
        let length = ValueBody::element(Payload::Shared(value), from_cache).len();
        self.count_value(length)?;
        self.count_element_bytes(length);
        if self.is_head_only() {
            return Some(Part::empty(key));
        }
        self.part_bytes += value.bytes.len();
        Some(Part::Long { key, from_cache, value: PinnedValue::new(value) })
    }

    fn is_head_only(&self) -> bool {
        matches!(&self.form, Form::Json(json) if json.format.head_only)
    }

    /// Returns the number of values since the last call that had no memory for a reference.
    pub fn take_memory_failures(&mut self) -> usize {
        match &mut self.form {
            Form::Json(json) => std::mem::take(&mut json.memory_failures),
            Form::Values(_) | Form::Count(_) => 0,
        }
    }

    /// Encodes the end of an element whose key could not be read.
    fn encode_error(&mut self, key: u32, message: &str) -> Part {
        self.encode_element_part(key, json::error_len(message), |out| json::write_error(message, out))
    }

    /// Encodes exactly `length` bytes with `encode`. For `HEAD` the length is enough.
    fn encode_element_part(&mut self, key: u32, length: usize, encode: impl FnOnce(&mut Vec<u8>)) -> Part {
        self.count_element_bytes(length);
        if self.is_head_only() { Part::empty(key) } else { self.encode_part(key, length, encode) }
    }

    fn count_element_bytes(&mut self, length: usize) {
        if let Form::Json(json) = &mut self.form {
            json.elements_bytes += length;
        }
    }

    /// Appends the response, which must be complete. A long one is queued and rendered later.
    pub(super) fn encode_response(
        mut self: Box<MultiReply>,
        date: &ResponseDate,
        out: &mut SendBuffer,
    ) -> ReplySummary {
        let Form::Json(json) = &mut self.form else { return ReplySummary { status: Status::Ok, bytes: 0 } };
        // What is queued holds the elements only.
        let format = std::mem::take(&mut json.format);
        let bytes = BODY_START.len() + json.elements_bytes + BODY_END.len();
        let origin = json.origin.unwrap_or(Source::Neither);
        if let Some(failure) = &self.failed {
            let refusal = match failure {
                MultiFailure::TooLong => http::KEYS_TOO_LONG,
                MultiFailure::MemoryFull | MultiFailure::Key(_) => http::KEYS_MEMORY_FULL,
            };
            return http::encode_refusal(refusal, &format, date, out);
        }
        let (sent, has_body) = http::encode_keys_head(bytes, origin, &format, date, out);
        if has_body {
            out.tail().extend_from_slice(BODY_START);
            out.push_multi(self);
            out.tail().extend_from_slice(BODY_END);
        }
        sent
    }
}

/// Appends the end of an element with a long value.
pub(super) fn render_long_value(value: &Arc<Value>, from_cache: bool, out: &mut SendBuffer) {
    ValueBody::element(Payload::Shared(value), from_cache).write(out);
}
