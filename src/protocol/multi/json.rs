//! JSON form of a reply for several keys: the body of `/keys`.
//!
//! `{"values":[{"key":"a","value":1,"fromCache":true},{"key":"b","value":null}]}`
//!
//! A key that cannot be read has an `error` instead of a value, so it does not fail the others. The
//! start of each element is encoded before its key is looked up, because the result of a fetch does
//! not name the key.

use super::{Form, MultiFailure, MultiReply, Part, shared_value};
use crate::protocol::http::json::{self, Encoding};
use crate::protocol::http::{self, HttpReplyFormat, ResponseDate, Status, ValueBody};
use crate::protocol::pinned::{PinnedValue, can_pin};
use crate::protocol::{ReplySummary, SendBuffer};
use crate::types::{Failure, KeyResult, Reply, Source};
use crate::value::{JsonForm, Payload, Value};
use std::sync::Arc;

const BODY_START: &[u8] = b"{\"values\":[";
const BODY_END: &[u8] = b"]}";
const ERROR_START: &[u8] = b"\"error\":\"";
const ERROR_END: &[u8] = b"\"}";

/// Properties of a reply in JSON.
#[derive(Debug)]
pub(super) struct JsonReply {
    pub(super) format: HttpReplyFormat,
    /// Length of all elements so far.
    elements_bytes: usize,
    /// True if all values so far are from the cache.
    is_hit: bool,
    /// True if a key could not be read.
    has_failed_key: bool,
}

impl JsonReply {
    pub(super) fn new(format: HttpReplyFormat) -> JsonReply {
        JsonReply { format, elements_bytes: 0, is_hit: true, has_failed_key: false }
    }

    /// Returns true if a key could not be read.
    pub(super) fn has_failed_key(&self) -> bool {
        self.has_failed_key
    }
}

/// Returns the encoding of a key in a JSON string.
fn encoding_of(key: &[u8]) -> Encoding {
    match JsonForm::of(key) {
        JsonForm::Integer | JsonForm::Plain => Encoding::Raw,
        JsonForm::Escaped => Encoding::Escaped,
        JsonForm::Binary => Encoding::Base64,
    }
}

impl MultiReply {
    /// Encodes the start of the next element: its key. Called before the key is looked up.
    pub(super) fn push_element_start(&mut self, key: &[u8]) {
        let start: &[u8] = if self.next_key() == 0 { b"{\"key\":\"" } else { b",{\"key\":\"" };
        let encoding = encoding_of(key);
        let end: &[u8] = match encoding {
            Encoding::Base64 => b"\",\"keyEncoding\":\"base64\",",
            Encoding::Raw | Encoding::Escaped => b"\",",
        };
        let length = start.len() + json::rendered_len(key, encoding) + end.len();
        let part = self.encode_element_part(self.next_key(), length, |out| {
            out.extend_from_slice(start);
            json::render(key, encoding, out);
            out.extend_from_slice(end);
        });
        self.push_part(part);
    }

    /// Stores the result of a key, which ends its element. Returns its part, `None` if the whole
    /// reply fails.
    pub(super) fn store_element(&mut self, key: u32, reply: &Reply<'_>) -> Option<Part> {
        let from_cache = !matches!(reply.source, Source::Redis { .. });
        if let Form::Json(json) = &mut self.form {
            json.is_hit &= matches!(reply.source, Source::Cache { .. });
        }
        match reply.result {
            KeyResult::Value(payload) => match shared_value(payload) {
                Some(value) if !can_pin(value) => Some(self.encode_error(key, &Failure::OutputMemoryFull.to_string())),
                Some(value) => self.store_long_value(key, value, from_cache),
                None => {
                    let (bytes, form) = (payload.bytes(), payload.form());
                    let body = ValueBody::element(Payload::Inline { bytes, form }, from_cache);
                    self.count_value(body.len())?;
                    Some(self.encode_element_part(key, body.len(), |out| body.write_inline(bytes, out)))
                }
            },
            KeyResult::Missing => {
                const MISSING: &[u8] = b"\"value\":null}";
                Some(self.encode_element_part(key, MISSING.len(), |out| out.extend_from_slice(MISSING)))
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

    fn store_long_value(&mut self, key: u32, value: &Arc<Value>, from_cache: bool) -> Option<Part> {
        let length = ValueBody::element(Payload::Shared(value), from_cache).len();
        self.count_value(length)?;
        self.count_element_bytes(length);
        self.part_bytes += value.bytes.len();
        Some(Part::Long { key, from_cache, value: PinnedValue::new(value) })
    }

    /// Encodes the end of an element whose key could not be read.
    fn encode_error(&mut self, key: u32, message: &str) -> Part {
        let text = message.as_bytes();
        let length = ERROR_START.len() + json::rendered_len(text, Encoding::Escaped) + ERROR_END.len();
        self.encode_element_part(key, length, |out| {
            out.extend_from_slice(ERROR_START);
            json::escape(text, out);
            out.extend_from_slice(ERROR_END);
        })
    }

    /// Encodes exactly `length` bytes with `encode`.
    fn encode_element_part(&mut self, key: u32, length: usize, encode: impl FnOnce(&mut Vec<u8>)) -> Part {
        self.count_element_bytes(length);
        self.encode_part(key, length, encode)
    }

    fn count_element_bytes(&mut self, length: usize) {
        if let Form::Json(json) = &mut self.form {
            json.elements_bytes += length;
        }
    }

    /// Appends the response, which must be complete. A long one is queued and rendered later.
    pub(super) fn encode_response(self: Box<MultiReply>, date: &ResponseDate, out: &mut SendBuffer) -> ReplySummary {
        let Form::Json(json) = &self.form else { return ReplySummary { status: Status::Ok, bytes: 0 } };
        if let Some(failure) = &self.failed {
            let refusal = match failure {
                MultiFailure::TooLong => http::KEYS_TOO_LONG,
                MultiFailure::MemoryFull | MultiFailure::Key(_) => http::KEYS_MEMORY_FULL,
            };
            return http::encode_refusal(refusal, &json.format, date, out);
        }
        let bytes = BODY_START.len() + json.elements_bytes + BODY_END.len();
        let (sent, has_body) = http::encode_keys_head(bytes, json.is_hit, &json.format, date, out);
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
