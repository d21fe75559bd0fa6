//! Rendering of a complete reply for several keys, in pieces.

use super::{Form, MAX_MULTI_REPLY_BYTES, MultiFailure, MultiReply, Part, json};
use crate::protocol::http::{ResponseDate, Status};
use crate::protocol::resp::encode::{encode_error, encode_part};
use crate::protocol::resp::writer::RespWriter;
use crate::protocol::{ReplySummary, SendBuffer};
use crate::value::Payload;
use std::ops::Range;

/// Error reply if a reply would exceed `MULTI_BUDGET`.
const MULTI_MEMORY_FULL: &str =
    "TRYAGAIN the memory limit for multi-key replies is reached; retry, or request fewer keys at once";

impl MultiReply {
    /// Appends the reply, which must be complete. A long one is queued and rendered later.
    pub fn encode(self: Box<MultiReply>, date: &ResponseDate, out: &mut SendBuffer) -> ReplySummary {
        let (before, status) =
            (out.unsent_bytes(), if self.has_failed() { Status::ServiceUnavailable } else { Status::Ok });
        match (&self.failed, &self.form) {
            (_, Form::Json(_)) => return self.encode_response(date, out),
            (Some(MultiFailure::Key(error)), _) => encode_error(error, out),
            (Some(MultiFailure::MemoryFull), _) => encode_error(MULTI_MEMORY_FULL, out),
            (Some(MultiFailure::TooLong), _) => encode_error(
                &format!(
                    "ERR the reply would be longer than {MAX_MULTI_REPLY_BYTES} bytes; request fewer keys at once"
                ),
                out,
            ),
            (None, Form::Count(version)) => RespWriter::new(out.tail(), *version).integer(i64::from(self.existing)),
            (None, Form::Values(version)) => {
                RespWriter::new(out.tail(), *version).array(self.keys as usize);
                out.push_multi(self);
            }
        }
        ReplySummary { status, bytes: out.unsent_bytes() - before }
    }

    /// Returns true if all parts are rendered.
    pub fn is_rendered(&self) -> bool {
        self.rendered == self.parts.len()
    }

    /// Renders the next parts into `out`, until it holds at least `bytes` bytes, and frees them.
    pub fn render(&mut self, bytes: usize, out: &mut SendBuffer) {
        while self.rendered < self.parts.len()
            && let space = bytes.saturating_sub(out.unsent_bytes())
            && space > 0
        {
            match std::mem::replace(&mut self.parts[self.rendered], Part::empty(0)) {
                Part::Encoded { segment, key, from, end } => {
                    let cut = from + space.min((end - from) as usize) as u32;
                    self.render_encoded(usize::from(segment), from as usize..cut as usize, out);
                    if cut < end {
                        self.parts[self.rendered] = Part::Encoded { segment, key, from: cut, end };
                        continue;
                    }
                }
                Part::Long { value, from_cache, .. } => {
                    let length = value.bytes.len();
                    self.part_bytes -= length;
                    match self.form {
                        Form::Json(_) => json::render_long_value(&value, from_cache, out),
                        Form::Values(version) | Form::Count(version) => {
                            encode_part(Payload::Shared(&value), 0..length, version, out);
                        }
                    }
                }
                // A complete reply has none.
                Part::Pending { .. } => {}
            }
            self.rendered += 1;
        }
        self.charge();
    }

    /// Copies a range of a segment, and frees the segment after its last byte.
    fn render_encoded(&mut self, index: usize, range: Range<usize>, out: &mut SendBuffer) {
        let Some(segment) = self.segments.get_mut(index).filter(|_| !range.is_empty()) else { return };
        self.part_bytes -= range.len();
        segment.unrendered -= range.len();
        out.tail().extend_from_slice(&segment.bytes[range]);
        if segment.unrendered == 0 {
            self.segment_bytes -= if index > 0 { segment.bytes.capacity() } else { 0 };
            segment.bytes = Vec::new();
        }
    }
}
