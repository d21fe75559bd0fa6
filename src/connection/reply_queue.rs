//! The replies of one connection, in the order of their requests.
//!
//! Every request gets the next sequence number. A reply that is there at once, with none before it missing, goes
//! straight to the outgoing bytes and leaves no trace: that is the hit. Otherwise the request takes a slot, and the
//! slots leave in order as they are filled, whatever order the fetches finish in. A request about several keys has one slot,
//! in which its parts come together.

use super::{ReplyContext, outcome_of, protocol_of};
use crate::metrics::{Protocol as Wire, Recorder, RequestInfo, RequestOutcome};
use crate::protocol::http::Status;
use crate::protocol::{MultiReply, ReplyFormat, ReplySummary, SendBuffer, encode_reply};
use crate::types::{Failure, KeyResult, Reply, RequestId};
use std::collections::VecDeque;

/// See the top of the file.
#[derive(Debug, Default)]
pub(super) struct ReplyQueue {
    /// Sequence number of the first slot.
    first_sequence: u64,
    slots: VecDeque<ReplySlot>,
    /// Bytes in the slots.
    queued_bytes: usize,
    pub(super) send_buffer: SendBuffer,
}

/// A request whose reply cannot leave yet.
#[derive(Debug)]
enum ReplySlot {
    Pending(ReplyFormat, RequestInfo),
    Multi(Box<MultiReply>, RequestInfo),
    Ready(SendBuffer),
}

impl ReplyQueue {
    /// The sequence number that the next request will have.
    pub(super) fn next_sequence(&self) -> u64 {
        self.first_sequence + self.slots.len() as u64
    }

    /// Requests whose replies are not complete.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Bytes that wait to be sent, or for others to be sent before them.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.send_buffer.unsent_bytes() + self.queued_bytes
    }

    /// Whether all is sent that ever will be, unless another request comes or the last one goes on.
    pub(super) fn is_settled(&self) -> bool {
        self.send_buffer.is_empty() && self.slots.len() == usize::from(self.open_multi().is_some())
    }

    /// Puts the reply to the next request where it belongs: out, or behind those that wait.
    pub(super) fn push<T>(&mut self, encode: impl FnOnce(&mut SendBuffer) -> T) -> T {
        if self.slots.is_empty() {
            self.first_sequence += 1;
            return encode(&mut self.send_buffer);
        }
        let mut send_buffer = SendBuffer::default();
        let result = encode(&mut send_buffer);
        self.queued_bytes += send_buffer.unsent_bytes();
        self.slots.push_back(ReplySlot::Ready(send_buffer));
        result
    }

    /// Replies over the Redis protocol to a request that asks for no key.
    pub(super) fn push_resp<T>(
        &mut self,
        ending: RequestOutcome,
        recorder: &mut Recorder,
        encode: impl FnOnce(&mut SendBuffer) -> T,
    ) -> T {
        let (result, bytes, is_error) = self.push(|out| {
            let at = out.tail().len();
            let (result, bytes) = measured(out, encode);
            (result, bytes, out.tail().get(at) == Some(&b'-'))
        });
        let ending = if is_error { RequestOutcome::Refused } else { ending };
        let status = if ending == RequestOutcome::Refused { Status::BadRequest } else { Status::Ok };
        recorder.record_reply(Wire::Resp, ending, ReplySummary { status, bytes });
        result
    }

    /// Notes that the next request will be replied to later.
    pub(super) fn push_pending(&mut self, shape: ReplyFormat, note: RequestInfo) {
        self.slots.push_back(ReplySlot::Pending(shape, note));
    }

    /// Notes that the next request is one whose reply is put together.
    pub(super) fn push_multi(&mut self, multi: MultiReply, note: RequestInfo) {
        self.slots.push_back(ReplySlot::Multi(Box::new(multi), note));
    }

    /// The last request's reply, as long as keys for it are to come.
    pub(super) fn open_multi(&self) -> Option<&MultiReply> {
        match self.slots.back() {
            Some(ReplySlot::Multi(multi, _)) if multi.expects_keys() => Some(multi),
            _ => None,
        }
    }

    /// Does something to the reply that is put together last, while keys for it are to come.
    pub(super) fn update_open_multi(&mut self, recorder: &mut Recorder, change: impl FnOnce(&mut MultiReply)) {
        if self.open_multi().is_some() {
            self.update_multi(self.slots.len() - 1, recorder, None, |multi| {
                change(multi);
                true
            });
        }
    }

    /// Forgets the request whose keys were still to come. Gives back what was noted of it.
    pub(super) fn discard_open_multi(&mut self) -> Option<RequestInfo> {
        self.queued_bytes -= self.open_multi()?.memory_bytes();
        let slot = self.slots.pop_back();
        self.free_if_empty();
        match slot {
            Some(ReplySlot::Multi(_, note)) => Some(note),
            _ => None,
        }
    }

    /// Replies to an earlier request, or to a part of it, if it is there and was not replied to before. Says whether it
    /// was.
    pub(super) fn reply_later(&mut self, waiter: RequestId, reply: &Reply<'_>, context: &mut ReplyContext<'_>) -> bool {
        let Some(place) = waiter.sequence.checked_sub(self.first_sequence) else { return false };
        let (place, recorder) = (place as usize, &mut *context.recorder);
        match self.slots.get_mut(place) {
            Some(ReplySlot::Pending(shape, note)) => {
                let (shape, note) = (*shape, std::mem::take(note));
                let sent = self.fill_slot(place, |out| encode_reply(reply, shape, context.date, out));
                if let Some(failure) = failure_of(reply) {
                    recorder.record_failure(failure);
                }
                let ending = outcome_of(reply, sent, recorder);
                recorder.record_deferred_reply(&note, protocol_of(shape), ending, sent);
                true
            }
            Some(ReplySlot::Multi(..)) => {
                self.update_multi(place, recorder, failure_of(reply), |multi| multi.complete_part(waiter.part, reply))
            }
            Some(ReplySlot::Ready(_)) | None => false,
        }
    }

    /// The client is gone: nobody takes the replies that are missing.
    pub(super) fn abort(&mut self, recorder: &mut Recorder) {
        for slot in self.slots.drain(..) {
            match slot {
                ReplySlot::Pending(shape, note) => recorder.record_aborted(&note, protocol_of(shape)),
                ReplySlot::Multi(_, note) => recorder.record_aborted(&note, Wire::Resp),
                ReplySlot::Ready(_) => {}
            }
        }
    }

    /// Does something to the reply that is put together at `place`, and lets it leave if it is complete then. `failure` is why there is
    /// no value, if there is none.
    fn update_multi(
        &mut self,
        place: usize,
        recorder: &mut Recorder,
        failure: Option<&Failure>,
        change: impl FnOnce(&mut MultiReply) -> bool,
    ) -> bool {
        let Some(ReplySlot::Multi(multi, note)) = self.slots.get_mut(place) else { return false };
        self.queued_bytes -= multi.memory_bytes();
        let (was_open, had_failed) = (multi.expects_keys(), multi.has_failed());
        let changed = change(multi);
        // Not every failure of a key is one of the reply: another type is no value to some commands.
        if multi.has_failed() && !had_failed {
            recorder.record_failure(failure.unwrap_or(&Failure::OutputMemoryFull));
        }
        if was_open {
            // Its client takes the time that it takes to say which keys.
            recorder.restart_timer(note);
        }
        if !multi.is_complete() {
            self.queued_bytes += multi.memory_bytes();
            return changed;
        }
        if let ReplySlot::Multi(multi, note) =
            std::mem::replace(&mut self.slots[place], ReplySlot::Ready(SendBuffer::default()))
        {
            let (ending, status) = match multi.has_failed() {
                true => (RequestOutcome::Failed, Status::ServiceUnavailable),
                false => (RequestOutcome::Many, Status::Ok),
            };
            let ((), bytes) = self.fill_slot(place, |out| measured(out, |out| multi.encode(out)));
            recorder.record_deferred_reply(&note, Wire::Resp, ending, ReplySummary { status, bytes });
        }
        changed
    }

    /// The reply at `place` is there: it goes out, with those behind it that have waited for nothing else, or is kept.
    fn fill_slot<T>(&mut self, place: usize, encode: impl FnOnce(&mut SendBuffer) -> T) -> T {
        if place == 0 {
            let result = encode(&mut self.send_buffer);
            self.slots.pop_front();
            self.first_sequence += 1;
            self.flush_ready();
            return result;
        }
        let mut send_buffer = SendBuffer::default();
        let result = encode(&mut send_buffer);
        self.queued_bytes += send_buffer.unsent_bytes();
        self.slots[place] = ReplySlot::Ready(send_buffer);
        result
    }

    /// Sends off all replies that have none missing before them.
    fn flush_ready(&mut self) {
        while let Some(ReplySlot::Ready(send_buffer)) = self.slots.front_mut() {
            self.queued_bytes -= send_buffer.unsent_bytes();
            self.send_buffer.append(std::mem::take(send_buffer));
            self.slots.pop_front();
            self.first_sequence += 1;
        }
        self.free_if_empty();
    }

    /// An idle connection owns no buffer.
    fn free_if_empty(&mut self) {
        if self.slots.is_empty() {
            self.slots = VecDeque::new();
        }
    }
}

/// Why there is no value in it.
fn failure_of<'a>(reply: &Reply<'a>) -> Option<&'a Failure> {
    match reply.outcome {
        KeyResult::Failed(failure) => Some(failure),
        KeyResult::Missing | KeyResult::Value(_) => None,
    }
}

/// Encodes, and says how many bytes that has made.
fn measured<T>(out: &mut SendBuffer, encode: impl FnOnce(&mut SendBuffer) -> T) -> (T, usize) {
    let before = out.unsent_bytes();
    let result = encode(out);
    (result, out.unsent_bytes() - before)
}
