//! Replies of one connection, in the order of their requests.
//!
//! Each request gets the next sequence number. A hit is encoded straight into the send buffer and
//! takes no slot, unless an earlier reply is pending. Any other request takes a slot. Slots leave
//! from the front once they are filled, in whatever order the fetches finish. A request for several
//! keys has one slot, which collects its parts.

use super::watch::Watch;
use super::{MAX_UNSENT_BYTES, ReplyContext};
use crate::metrics::{Protocol, Recorder, RequestInfo, RequestOutcome};
use crate::protocol::http::{ResponseDate, Status};
use crate::protocol::resp::encode_push;
use crate::protocol::{MultiReply, ReplyFormat, ReplySummary, SendBuffer, encode_reply};
use crate::types::{DeferredReply, Failure, KeyResult, Push, Reply, RequestId, Source};
use std::collections::VecDeque;

/// First capacity of a buffer for replies that wait: an HTTP head and a short value. A buffer that
/// starts empty grows five times for such a reply.
const SLOT_CAPACITY: usize = 448;

/// Bytes of invalidations that a client which does not read enough may leave unsent: some thousand
/// keys.
const MAX_PUSHED_BYTES: u32 = 64 * 1024;

/// Queue of replies that cannot be sent yet, and the send buffer behind it.
#[derive(Debug, Default)]
pub(super) struct ReplyQueue {
    /// Sequence number of the first slot.
    first_sequence: u64,
    slots: VecDeque<ReplySlot>,
    /// Bytes held by the slots.
    queued_bytes: usize,
    /// Bytes of invalidations since the client had received everything.
    pushed_bytes: u32,
    /// Sequence number of the first request for which the client can take invalidations.
    pushes_from: u64,
    pub(super) send_buffer: SendBuffer,
}

/// Slot of a request with an incomplete reply, or with an incomplete reply before it.
#[derive(Debug)]
enum ReplySlot {
    Pending(ReplyFormat, RequestInfo),
    Multi(Box<MultiReply>, RequestInfo),
    Watch(Box<Watch>, RequestInfo),
    Ready(SendBuffer),
}

impl ReplyQueue {
    /// Returns the sequence number of the next request.
    pub(super) fn next_sequence(&self) -> u64 {
        self.first_sequence + self.slots.len() as u64
    }

    /// Returns the sequence number of the first request in a slot.
    pub(super) fn first_sequence(&self) -> u64 {
        self.first_sequence
    }

    /// Returns the number of requests in slots.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns the number of bytes in the send buffer and in the slots.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.send_buffer.unsent_bytes() + self.queued_bytes
    }

    /// Returns true if every reply to a complete request was sent.
    pub(super) fn is_flushed(&self) -> bool {
        let expects_input = self.open_multi().is_some_and(MultiReply::expects_input);
        self.send_buffer.is_empty() && self.slots.len() == usize::from(expects_input)
    }

    /// Replies to the next request, which is for one key.
    pub(super) fn push_reply(&mut self, reply: &Reply<'_>, format: &ReplyFormat, context: &mut ReplyContext<'_>) {
        let ReplyContext { date, recorder } = context;
        let sent = self.push(|out| encode_reply(reply, format, date, out));
        let outcome = record_outcome(reply, sent, recorder);
        recorder.record_reply(protocol_of(format), outcome, sent);
    }

    /// Replies over HTTP to the next request, which is for no key.
    pub(super) fn push_http(
        &mut self,
        outcome: RequestOutcome,
        context: &mut ReplyContext<'_>,
        encode: impl FnOnce(&ResponseDate, &mut SendBuffer) -> ReplySummary,
    ) {
        let sent = self.push(|out| encode(context.date, out));
        context.recorder.record_reply(Protocol::Http, outcome, sent);
    }

    /// Replies over RESP to the next request, which is for no key. An error counts as refused.
    pub(super) fn push_resp<T>(
        &mut self,
        outcome: RequestOutcome,
        context: &mut ReplyContext<'_>,
        encode: impl FnOnce(&mut SendBuffer) -> T,
    ) -> T {
        let (result, bytes, is_error) = self.push(|out| {
            let start = out.tail().len();
            let (result, bytes) = measured(out, encode);
            (result, bytes, out.tail().get(start) == Some(&b'-'))
        });
        let outcome = if is_error { RequestOutcome::Refused } else { outcome };
        let status = if outcome == RequestOutcome::Refused { Status::BadRequest } else { Status::Ok };
        context.recorder.record_reply(Protocol::Resp, outcome, ReplySummary { status, bytes });
        result
    }

    /// Adds a slot for the next request, which is for one key.
    pub(super) fn push_pending(&mut self, format: ReplyFormat, recorder: &Recorder) {
        self.queued_bytes += held_bytes(&format);
        self.slots.push_back(ReplySlot::Pending(format, recorder.request_info()));
    }

    /// Adds a slot for the next request, which is for several keys.
    pub(super) fn push_multi(&mut self, multi: MultiReply, recorder: &Recorder) {
        self.queued_bytes += multi.memory_bytes();
        self.slots.push_back(ReplySlot::Multi(Box::new(multi), recorder.request_info()));
    }

    /// Returns the reply to the last request if that request is for several keys, and not all of
    /// them have arrived.
    pub(super) fn open_multi(&self) -> Option<&MultiReply> {
        match self.slots.back() {
            Some(ReplySlot::Multi(multi, _)) if multi.expects_keys() => Some(multi),
            _ => None,
        }
    }

    /// Updates the reply that [`ReplyQueue::open_multi`] returns, if there is one. Encodes it if it
    /// is complete then.
    pub(super) fn update_open_multi(&mut self, context: &mut ReplyContext<'_>, update: impl FnOnce(&mut MultiReply)) {
        if self.open_multi().is_some() {
            self.update_multi(self.slots.len() - 1, context, None, |multi| {
                update(multi);
                true
            });
        }
    }

    /// Removes the last request if keys of it are missing. Returns its info for the access log.
    pub(super) fn discard_open_multi(&mut self) -> Option<RequestInfo> {
        self.queued_bytes -= self.open_multi()?.memory_bytes();
        let Some(ReplySlot::Multi(_, info)) = self.slots.pop_back() else { return None };
        self.free_if_empty();
        Some(info)
    }

    /// Lets the client take invalidations, behind the replies so far. The last one is that to
    /// `CLIENT TRACKING`; one before it may switch to RESP3.
    pub(super) fn start_pushes(&mut self) {
        self.pushes_from = self.next_sequence();
    }

    /// Sends an invalidation to a client that caches values. If it reads too slowly, everything is
    /// invalidated instead. Returns false then.
    ///
    /// The invalidation leaves at once, behind all replies in the send buffer. Replies in slots may
    /// hold an older value of the key: those that are encoded, and those for several keys with a
    /// part of them. So it leaves once more behind the last one of these. A reply that waits for a
    /// single key gets its value later.
    ///
    /// The client may take any time to send the rest of a command. So replies before that command
    /// do not wait for its reply: the invalidation leaves behind the last one of them, and behind
    /// that reply too.
    pub(super) fn push_invalidation(&mut self, push: Push<'_>) -> bool {
        if self.send_buffer.is_empty() && self.slots.is_empty() {
            self.pushed_bytes = 0;
        }
        let is_slow = self.pushed_bytes > MAX_PUSHED_BYTES && self.unsent_bytes() > MAX_UNSENT_BYTES;
        let push = if is_slow { Push::Everything } else { push };
        let encode = |out: &mut SendBuffer| measured(out, |out| encode_push(push, out.tail())).1;
        let mut pushed = 0;
        if self.first_sequence >= self.pushes_from {
            pushed += encode(&mut self.send_buffer);
        }
        let open = self.slots.len() - usize::from(self.open_multi().is_some());
        let last =
            self.slots.range(..open).rposition(|slot| !matches!(slot, ReplySlot::Pending(..) | ReplySlot::Watch(..)));
        for index in last.into_iter().chain(open..self.slots.len()) {
            match &mut self.slots[index] {
                ReplySlot::Ready(buffer) => {
                    let bytes = encode(buffer);
                    self.queued_bytes += bytes;
                    pushed += bytes;
                }
                ReplySlot::Multi(multi, _) => {
                    let before = multi.memory_bytes();
                    multi.push_invalidation(push);
                    self.queued_bytes = self.queued_bytes - before + multi.memory_bytes();
                }
                ReplySlot::Pending(..) | ReplySlot::Watch(..) => {}
            }
        }
        self.pushed_bytes = self.pushed_bytes.saturating_add(pushed as u32);
        !is_slow
    }

    /// Replies to an earlier request, or to one key of it. Returns false if it waits for no reply.
    pub(super) fn reply_later(
        &mut self,
        id: RequestId,
        reply: &DeferredReply<'_>,
        context: &mut ReplyContext<'_>,
    ) -> bool {
        let Some(index) = id.sequence.checked_sub(self.first_sequence) else { return false };
        let index = index as usize;
        match self.slots.get_mut(index) {
            Some(slot @ ReplySlot::Pending(..)) => {
                let ReplySlot::Pending(format, info) = std::mem::replace(slot, ReplySlot::Ready(SendBuffer::default()))
                else {
                    return false;
                };
                let ReplyContext { date, recorder } = context;
                self.queued_bytes -= held_bytes(&format);
                let sent = self.fill_slot(index, |out| {
                    let sent = encode_reply(reply, &format, date, out);
                    if let Some(key) = reply.unreported_key {
                        encode_push(Push::Key(key), out.tail());
                    }
                    sent
                });
                let outcome = record_outcome(reply, sent, recorder);
                recorder.record_deferred_reply(&info, protocol_of(&format), outcome, sent);
                true
            }
            Some(ReplySlot::Multi(..)) => {
                let failure = match reply.result {
                    KeyResult::Failed(failure) => Some(failure),
                    KeyResult::Missing | KeyResult::NotCached | KeyResult::Value(_) => None,
                };
                self.update_multi(index, context, failure, |multi| {
                    let is_taken = multi.complete_key(id.part, reply);
                    if let Some(key) = reply.unreported_key.filter(|_| is_taken) {
                        multi.push_invalidation(Push::Key(key));
                    }
                    is_taken
                })
            }
            Some(ReplySlot::Ready(_) | ReplySlot::Watch(..)) | None => false,
        }
    }

    /// Adds a slot for the next request, which waits for changes of keys.
    pub(super) fn push_watch(&mut self, watch: Watch, recorder: &Recorder) {
        self.queued_bytes += watch.held_bytes();
        self.slots.push_back(ReplySlot::Watch(Box::new(watch), recorder.request_info()));
    }

    /// Returns the first request, if it waits for changes of keys.
    #[inline]
    pub(super) fn first_watch(&self) -> Option<&Watch> {
        match self.slots.front() {
            Some(ReplySlot::Watch(watch, _)) => Some(watch),
            _ => None,
        }
    }

    /// Returns the same request, and the buffer for its events.
    pub(super) fn first_watch_mut(&mut self) -> Option<(&mut Watch, &mut SendBuffer)> {
        match self.slots.front_mut() {
            Some(ReplySlot::Watch(watch, _)) => Some((watch, &mut self.send_buffer)),
            _ => None,
        }
    }

    /// Ends the first request, if it waits for changes of keys: encodes its reply, or the end of
    /// its stream.
    pub(super) fn end_watch(
        &mut self,
        context: &mut ReplyContext<'_>,
        outcome: RequestOutcome,
        encode: impl FnOnce(Watch, &ResponseDate, &mut SendBuffer) -> ReplySummary,
    ) {
        let Some(slot @ ReplySlot::Watch(..)) = self.slots.front_mut() else { return };
        if let ReplySlot::Watch(watch, info) = std::mem::replace(slot, ReplySlot::Ready(SendBuffer::default())) {
            self.queued_bytes -= watch.held_bytes();
            let sent = self.fill_slot(0, |out| encode(*watch, context.date, out));
            context.recorder.record_watched(&info, outcome, sent);
        }
    }

    /// Records the unanswered requests as aborted, and removes all slots.
    pub(super) fn abort(&mut self, recorder: &mut Recorder) {
        for slot in self.slots.drain(..) {
            match slot {
                ReplySlot::Pending(format, info) => recorder.record_aborted(&info, protocol_of(&format)),
                ReplySlot::Multi(multi, info) => recorder.record_aborted(&info, protocol_of_multi(&multi)),
                // A stream ends when its client leaves.
                ReplySlot::Watch(watch, info) => match watch.stream_summary() {
                    Some(sent) => recorder.record_watched(&info, RequestOutcome::Watched, sent),
                    None => recorder.record_aborted(&info, Protocol::Http),
                },
                ReplySlot::Ready(_) => {}
            }
        }
    }

    /// Updates the multi reply at `index`, and encodes it if it is complete then. `failure` is why
    /// the key that `update` adds has no value, if it has none. Returns the result of `update`.
    fn update_multi(
        &mut self,
        index: usize,
        context: &mut ReplyContext<'_>,
        failure: Option<&Failure>,
        update: impl FnOnce(&mut MultiReply) -> bool,
    ) -> bool {
        let ReplyContext { date, recorder } = context;
        let Some(ReplySlot::Multi(multi, info)) = self.slots.get_mut(index) else { return false };
        self.queued_bytes -= multi.memory_bytes();
        let (expected_input, had_failed) = (multi.expects_input(), multi.has_failed());
        let is_updated = update(multi);
        // A key of a RESP command may fail without the reply: for MGET a key of another type has no
        // value. In JSON each key has its own error.
        if multi.has_failed() && !had_failed {
            recorder.record_failure(failure.unwrap_or(&Failure::OutputMemoryFull));
        } else if let Some(failure) = failure.filter(|_| multi.is_http() && !had_failed) {
            recorder.record_failure(failure);
        }
        for _ in 0..multi.take_memory_failures() {
            recorder.record_failure(&Failure::OutputMemoryFull);
        }
        if expected_input {
            // The time that the client takes to send the keys does not count as latency.
            recorder.restart_timer(info);
        }
        if !multi.is_complete() {
            self.queued_bytes += multi.memory_bytes();
            return is_updated;
        }
        if let ReplySlot::Multi(mut multi, info) =
            std::mem::replace(&mut self.slots[index], ReplySlot::Ready(SendBuffer::default()))
        {
            let (protocol, has_failed) = (protocol_of_multi(&multi), multi.has_failed_key());
            let pushes = multi.take_pushes();
            let sent = self.fill_slot(index, |out| {
                let sent = multi.encode(date, out);
                out.tail().extend_from_slice(pushes.bytes());
                sent
            });
            let outcome = if has_failed { RequestOutcome::Failed } else { RequestOutcome::Many };
            recorder.record_deferred_reply(&info, protocol, outcome, sent);
        }
        is_updated
    }

    /// Encodes the reply to the next request: into the send buffer, or into a slot if earlier
    /// replies are incomplete.
    fn push<T>(&mut self, encode: impl FnOnce(&mut SendBuffer) -> T) -> T {
        if self.slots.is_empty() {
            self.first_sequence += 1;
            return encode(&mut self.send_buffer);
        }
        // Adjacent complete replies leave together, so they share the buffer of the last one. This
        // spares most hits behind a miss an allocation.
        let mut send_buffer = match self.slots.back_mut() {
            Some(ReplySlot::Ready(last)) => std::mem::take(last),
            _ => SendBuffer::with_capacity(SLOT_CAPACITY),
        };
        let (result, bytes) = measured(&mut send_buffer, encode);
        self.queued_bytes += bytes;
        self.slots.push_back(ReplySlot::Ready(send_buffer));
        result
    }

    /// Encodes the reply of the slot at `index`. In the first slot it moves to the send buffer, and
    /// so do the complete replies behind it.
    fn fill_slot<T>(&mut self, index: usize, encode: impl FnOnce(&mut SendBuffer) -> T) -> T {
        if index == 0 {
            self.send_buffer.reserve_tail(SLOT_CAPACITY);
            let result = encode(&mut self.send_buffer);
            self.slots.pop_front();
            self.first_sequence += 1;
            self.flush_ready();
            return result;
        }
        let mut send_buffer = SendBuffer::with_capacity(SLOT_CAPACITY);
        let result = encode(&mut send_buffer);
        self.queued_bytes += send_buffer.unsent_bytes();
        self.slots[index] = ReplySlot::Ready(send_buffer);
        result
    }

    /// Moves the complete replies at the front to the send buffer.
    fn flush_ready(&mut self) {
        while let Some(ReplySlot::Ready(send_buffer)) = self.slots.front_mut() {
            self.queued_bytes -= send_buffer.unsent_bytes();
            self.send_buffer.append(std::mem::take(send_buffer));
            self.slots.pop_front();
            self.first_sequence += 1;
        }
        self.free_if_empty();
    }

    /// Frees the memory of an empty queue: an idle connection owns no buffer.
    fn free_if_empty(&mut self) {
        if self.slots.is_empty() {
            self.slots = VecDeque::new();
        }
    }
}

fn protocol_of(format: &ReplyFormat) -> Protocol {
    match format {
        ReplyFormat::Http(_) => Protocol::Http,
        ReplyFormat::Resp(_) => Protocol::Resp,
    }
}

/// Returns the bytes that a pending reply holds of its request.
fn held_bytes(format: &ReplyFormat) -> usize {
    match format {
        ReplyFormat::Http(format) => format.held_bytes(),
        ReplyFormat::Resp(_) => 0,
    }
}

fn protocol_of_multi(multi: &MultiReply) -> Protocol {
    if multi.is_http() { Protocol::Http } else { Protocol::Resp }
}

/// Returns the outcome of a request for one key, which was answered with `sent`. Records the reason
/// of a failure.
fn record_outcome(reply: &Reply<'_>, sent: ReplySummary, recorder: &mut Recorder) -> RequestOutcome {
    match (reply.result, reply.source) {
        (KeyResult::Missing, _) => RequestOutcome::Missing,
        (KeyResult::NotCached, _) | (_, Source::Neither) => RequestOutcome::Refused,
        (KeyResult::Failed(failure), _) => {
            recorder.record_failure(failure);
            RequestOutcome::Failed
        }
        (KeyResult::Value(_), _) if sent.status == Status::ServiceUnavailable => {
            recorder.record_failure(&Failure::OutputMemoryFull);
            RequestOutcome::Failed
        }
        (_, Source::Cache { .. }) => RequestOutcome::Hit,
        (_, Source::Stale { .. }) => RequestOutcome::Stale,
        (_, Source::Redis { collapsed: true, .. }) => RequestOutcome::Collapsed,
        (_, Source::Redis { collapsed: false, .. }) => RequestOutcome::Miss,
    }
}

/// Encodes with `encode`. Returns its result and the number of bytes added to `out`.
fn measured<T>(out: &mut SendBuffer, encode: impl FnOnce(&mut SendBuffer) -> T) -> (T, usize) {
    let before = out.unsent_bytes();
    let result = encode(out);
    (result, out.unsent_bytes() - before)
}
