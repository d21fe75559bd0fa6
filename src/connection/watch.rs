//! Request that waits for changes of keys: an event stream, or a long poll. It takes a slot in the
//! queue of replies, and begins once that slot is the first.
//!
//! A stream never completes, so its connection takes no further request. Events are appended only
//! to an empty send buffer. A client that has not taken its last events gets the present state once
//! it has, and not what was in between.

use super::{Connection, ReplyContext};
use crate::metrics::RequestOutcome;
use crate::protocol::http::event_stream::{self, EventId, HEARTBEAT};
use crate::protocol::http::{self, Body, HttpRefusal, HttpReplyFormat, KeyList, ResponseDate, Status, View};
use crate::protocol::{ReplyFormat, ReplySummary, SendBuffer, encode_reply};
use crate::types::{Delivery, Failure, KeyResult, KeyState, Millis, Reply, RequestId, Source, WatchEvent};
use std::collections::VecDeque;

/// Maximum number of keys that one stream watches.
pub const MAX_WATCHED_KEYS: usize = 128;

/// Time after which a silent stream gets a comment. Proxies in front close a silent connection
/// after 30 to 60 s.
const HEARTBEAT_INTERVAL: Millis = 15_000;

/// Shortest time after which the client of an ended stream reconnects.
const MIN_RETRY: Millis = 1000;

/// Refusal of a request beyond `MAX_WATCHERS`.
const TOO_MANY_WATCHERS: HttpRefusal = HttpRefusal {
    status: Status::ServiceUnavailable,
    message: "too many watchers: event streams and long polls watch MAX_WATCHERS keys already; retry later, or raise it",
};

/// Refusal of a stream about more than [`MAX_WATCHED_KEYS`] keys.
const TOO_MANY_KEYS: HttpRefusal =
    HttpRefusal { status: Status::BadRequest, message: "a stream watches at most 128 keys; use several streams" };

/// Unsent bytes beyond which a stream takes no further event of the same tick. Its client gets the
/// present state of the other keys later.
const MAX_STREAM_BYTES: usize = 64 * 1024;

/// Request that waits for changes of keys.
#[derive(Debug)]
pub(super) struct Watch {
    kind: WatchKind,
    format: HttpReplyFormat,
    keys: KeyList,
    /// Id of each watched key, empty before the request begins.
    ids: Vec<usize>,
    /// Keys whose present state the client lacks, in the order in which it gets them.
    behind: VecDeque<u32>,
    /// The stream must end, because there was no memory for a value.
    is_failed: bool,
}

#[derive(Debug)]
enum WatchKind {
    Stream(Stream),
    Poll(Poll),
}

/// Event stream.
#[derive(Debug)]
struct Stream {
    /// Events name their key.
    is_named: bool,
    /// Last event that the client received on an earlier connection.
    last_event: Option<EventId>,
    /// Time of the last bytes of the stream.
    appended_at: Millis,
    /// Bytes of the body so far.
    bytes: usize,
}

/// Long poll.
#[derive(Debug)]
struct Poll {
    wait: Millis,
    /// End of the wait.
    deadline: Millis,
    /// Digest of the present value, which the client has, and true if it is tracked.
    unchanged: Option<(u64, bool)>,
}

impl Stream {
    /// Appends with `encode`, and returns its result.
    fn append<T>(&mut self, now: Millis, out: &mut SendBuffer, encode: impl FnOnce(&mut SendBuffer) -> T) -> T {
        let before = out.unsent_bytes();
        let result = encode(out);
        self.appended_at = now;
        self.bytes += out.unsent_bytes() - before;
        result
    }
}

impl Watch {
    /// Creates a stream about these keys. With `is_named` its events name their key.
    pub(super) fn stream(keys: KeyList, is_named: bool, format: HttpReplyFormat) -> Watch {
        let last_event = format.push_fields().last_event;
        Watch::new(WatchKind::Stream(Stream { is_named, last_event, appended_at: 0, bytes: 0 }), keys, format)
    }

    /// Creates a long poll of a key that waits for this number of seconds.
    pub(super) fn poll(key: &[u8], seconds: u16, format: HttpReplyFormat) -> Watch {
        let wait = Millis::from(seconds) * 1000;
        Watch::new(WatchKind::Poll(Poll { wait, deadline: 0, unchanged: None }), KeyList::one(key), format)
    }

    fn new(kind: WatchKind, keys: KeyList, format: HttpReplyFormat) -> Watch {
        Watch { kind, format, keys, ids: Vec::new(), behind: VecDeque::new(), is_failed: false }
    }

    /// Returns the bytes that the request holds beside its fixed size.
    pub(super) fn held_bytes(&self) -> usize {
        self.keys.held_bytes() + self.format.held_bytes()
    }

    /// Returns the summary of an open stream for the access log.
    pub(super) fn stream_summary(&self) -> Option<ReplySummary> {
        match &self.kind {
            WatchKind::Stream(stream) if self.has_begun() => {
                Some(ReplySummary { status: Status::Ok, bytes: stream.bytes })
            }
            _ => None,
        }
    }

    fn has_begun(&self) -> bool {
        !self.ids.is_empty()
    }

    /// Returns the time of the next heartbeat, or of the end of a long poll.
    fn deadline(&self) -> Millis {
        match &self.kind {
            WatchKind::Stream(stream) => stream.appended_at + HEARTBEAT_INTERVAL,
            WatchKind::Poll(poll) => poll.deadline,
        }
    }

    /// Returns true if an event may be appended at `now`: to an empty buffer, or behind others of
    /// this tick.
    fn can_append(&self, out: &SendBuffer, now: Millis) -> bool {
        match &self.kind {
            WatchKind::Stream(Stream { appended_at, .. }) => {
                out.is_empty() || (*appended_at == now && out.unsent_bytes() <= MAX_STREAM_BYTES)
            }
            WatchKind::Poll(_) => true,
        }
    }

    /// Begins the request: appends the head of a stream, and when its client reconnects.
    fn begin(&mut self, (tracked, retry): (bool, Millis), now: Millis, date: &ResponseDate, out: &mut SendBuffer) {
        match &mut self.kind {
            WatchKind::Stream(stream) => {
                event_stream::encode_head(&self.format, tracked, date, out);
                stream.append(now, out, |out| event_stream::encode_retry(retry, out));
            }
            WatchKind::Poll(poll) => poll.deadline = now + poll.wait,
        }
        self.behind.extend(0..self.keys.len() as u32);
    }

    /// Appends an event to a stream, unless its client is behind.
    fn take_event(&mut self, part: u32, event: &WatchEvent<'_>, now: Millis, out: &mut SendBuffer) -> Delivery {
        let can_append = self.can_append(out, now);
        let WatchKind::Stream(stream) = &mut self.kind else { return Delivery::Ended };
        if can_append {
            let key = stream.is_named.then(|| self.keys.get(part as usize));
            if stream.append(now, out, |out| event_stream::encode_event(event, key, out)) {
                return Delivery::Taken;
            }
            self.is_failed = true;
        }
        if !self.behind.contains(&part) {
            self.behind.push_back(part);
        }
        Delivery::Behind
    }
}

impl Connection {
    /// Adds a request that waits for changes of a key, if `format` asks for that: as an event
    /// stream, or as a long poll. Returns false if the request is another one.
    pub(super) fn push_watch(
        &mut self,
        key: &[u8],
        body: Body,
        format: &mut HttpReplyFormat,
        context: &mut ReplyContext<'_>,
    ) -> bool {
        if format.view == View::Json && format.push_fields().accepts_events {
            self.push_stream(KeyList::one(key), false, body, std::mem::take(format), context);
            return true;
        }
        let Some(seconds) = format.wait_seconds() else { return false };
        let format = std::mem::take(format);
        self.begin_body(body, format.keep_alive);
        self.replies.push_watch(Watch::poll(key, seconds, format), context.recorder);
        true
    }

    /// Adds a request for the changes of the keys that a query names.
    pub(super) fn push_watch_query(
        &mut self,
        query: &[u8],
        body: Body,
        format: HttpReplyFormat,
        context: &mut ReplyContext<'_>,
    ) {
        let keys = KeyList::parse(query).map(KeyList::without_repetitions);
        match keys.and_then(|keys| if keys.len() <= MAX_WATCHED_KEYS { Ok(keys) } else { Err(TOO_MANY_KEYS) }) {
            Ok(keys) => self.push_stream(keys, true, body, format, context),
            Err(refusal) => {
                self.begin_body(body, format.keep_alive);
                self.refuse_http(refusal, format, context);
            }
        }
    }

    /// Adds a stream. The connection closes after it.
    fn push_stream(
        &mut self,
        keys: KeyList,
        is_named: bool,
        body: Body,
        format: HttpReplyFormat,
        context: &mut ReplyContext<'_>,
    ) {
        let format = HttpReplyFormat { keep_alive: false, ..format };
        self.begin_body(body, false);
        self.replies.push_watch(Watch::stream(keys, is_named, format), context.recorder);
    }

    /// Returns true if the first request without a reply waits for changes of keys.
    #[inline]
    pub fn has_watch(&self) -> bool {
        self.replies.first_watch().is_some()
    }

    /// Returns true if that request is a long poll.
    pub fn has_poll(&self) -> bool {
        self.replies.first_watch().is_some_and(|watch| matches!(watch.kind, WatchKind::Poll(_)))
    }

    /// Returns true if that request has begun.
    pub fn is_watching(&self) -> bool {
        self.replies.first_watch().is_some_and(Watch::has_begun)
    }

    /// Returns the time at which that request is due: for a heartbeat, or for its end.
    pub fn watch_deadline(&self) -> Option<Millis> {
        self.replies.first_watch().filter(|watch| watch.has_begun()).map(Watch::deadline)
    }

    /// Returns the number of keys of the request that waits for changes.
    pub fn watched_key_count(&self) -> usize {
        self.replies.first_watch().map_or(0, |watch| watch.keys.len())
    }

    /// Sends the head of a stream, and ends it, if its request is `HEAD`. Returns false otherwise.
    pub fn reply_stream_head(&mut self, tracked: bool, context: &mut ReplyContext<'_>) -> bool {
        let is_head = |watch: &Watch| watch.format.head_only && matches!(watch.kind, WatchKind::Stream(_));
        if !self.replies.first_watch().is_some_and(is_head) {
            return false;
        }
        self.replies.end_watch(context, RequestOutcome::Other, |watch, date, out| {
            event_stream::encode_head(&watch.format, tracked, date, out);
            ReplySummary { status: Status::Ok, bytes: 0 }
        });
        true
    }

    /// Refuses the request that waits for changes, because it exceeds `MAX_WATCHERS`.
    pub fn refuse_watch(&mut self, context: &mut ReplyContext<'_>) {
        self.replies.end_watch(context, RequestOutcome::Refused, |watch, date, out| {
            http::encode_refusal(TOO_MANY_WATCHERS, &watch.format, date, out)
        });
    }

    /// Begins the request that waits for changes. `tracked` is true while they arrive as
    /// invalidations. Clients of ended streams reconnect within `retry_spread` ms and a second. The
    /// caller then adds each key with [`Connection::add_watch_id`].
    pub fn begin_watch(&mut self, tracked: bool, retry_spread: Millis, now: Millis, context: &mut ReplyContext<'_>) {
        let retry = self.retry_delay(retry_spread);
        if let Some((watch, out)) = self.replies.first_watch_mut() {
            watch.begin((tracked, retry), now, context.date, out);
        }
    }

    /// Returns a key of the request that waits for changes, its address, and the state that the
    /// client has.
    pub fn watched_key(&self, slot: usize, part: u32) -> Option<(&[u8], RequestId, Option<KeyState>)> {
        let watch = self.replies.first_watch()?;
        let key = watch.keys.get(part as usize);
        let has = match &watch.kind {
            WatchKind::Stream(Stream { is_named, last_event, .. }) => {
                last_event.and_then(|event| event.state_of(key, *is_named))
            }
            WatchKind::Poll(_) => None,
        };
        Some((key, self.watch_address(slot, part), has))
    }

    /// Stores the id under which the next key is watched.
    pub fn add_watch_id(&mut self, id: usize) {
        if let Some((watch, _)) = self.replies.first_watch_mut() {
            watch.ids.push(id);
        }
    }

    /// Returns the id and the address of each key that is watched for this client.
    pub fn watchers(&self, slot: usize) -> Vec<(usize, RequestId)> {
        let ids = self.replies.first_watch().map_or(&[][..], |watch| &watch.ids);
        ids.iter().zip(0..).map(|(&id, part)| (id, self.watch_address(slot, part))).collect()
    }

    fn watch_address(&self, slot: usize, part: u32) -> RequestId {
        RequestId { slot, connection_id: self.id, sequence: self.replies.first_sequence(), part }
    }

    /// Removes the next key whose present state the client lacks, if it can take an event now.
    /// Returns its id and address.
    pub fn take_behind(&mut self, slot: usize, now: Millis) -> Option<(usize, RequestId)> {
        let (watch, out) = self.replies.first_watch_mut()?;
        if watch.is_failed || !watch.can_append(out, now) {
            return None;
        }
        let part = watch.behind.pop_front()?;
        let id = *watch.ids.get(part as usize)?;
        Some((id, self.watch_address(slot, part)))
    }

    /// Delivers an event to the request that waits for it.
    pub fn deliver_event(
        &mut self,
        request_id: RequestId,
        event: &WatchEvent<'_>,
        now: Millis,
        context: &mut ReplyContext<'_>,
    ) -> Delivery {
        if self.watch_address(request_id.slot, request_id.part) != request_id {
            return Delivery::Ended;
        }
        let Some((watch, out)) = self.replies.first_watch_mut() else { return Delivery::Ended };
        let WatchKind::Poll(poll) = &mut watch.kind else {
            return watch.take_event(request_id.part, event, now, out);
        };
        if let (Some(KeyState::Value(digest)), KeyResult::Value(payload)) = (event.state, event.reply.result)
            && watch.format.is_not_modified(digest, payload.bytes().len())
        {
            poll.unchanged = Some((digest, event.reply.tracked));
            return Delivery::Unchanged;
        }
        self.end_poll(&event.reply, context);
        Delivery::Ended
    }

    /// Replies to a long poll.
    fn end_poll(&mut self, reply: &Reply<'_>, context: &mut ReplyContext<'_>) {
        let outcome = match reply.result {
            KeyResult::Failed(failure) => {
                context.recorder.record_failure(failure);
                RequestOutcome::Failed
            }
            _ => RequestOutcome::Watched,
        };
        self.replies.end_watch(context, outcome, |watch, date, out| {
            encode_reply(reply, &ReplyFormat::Http(watch.format), date, out)
        });
    }

    /// Returns true if the request that waits for changes must end at `now`: its wait is over, or
    /// there was no memory for a value.
    pub fn must_end_watch(&self, now: Millis) -> bool {
        self.replies.first_watch().filter(|watch| watch.has_begun()).is_some_and(|watch| {
            watch.is_failed || (matches!(watch.kind, WatchKind::Poll(_)) && watch.deadline() <= now)
        })
    }

    /// Returns true if the request that waits for changes may end before its time. A long poll may
    /// not before its first read: its client would get an error instead of the value.
    pub fn can_end_watch(&self) -> bool {
        self.replies.first_watch().filter(|watch| watch.has_begun()).is_some_and(|watch| match &watch.kind {
            WatchKind::Stream(_) => true,
            WatchKind::Poll(poll) => poll.unchanged.is_some(),
        })
    }

    /// Ends the request that waits for changes. A stream tells its client when to reconnect. A long
    /// poll without a change is 304. The caller has removed its watchers.
    pub fn end_watch(&mut self, retry_spread: Millis, context: &mut ReplyContext<'_>) {
        let retry = self.retry_delay(retry_spread);
        match self.replies.first_watch().map(|watch| &watch.kind) {
            Some(WatchKind::Poll(Poll { unchanged: None, .. })) => {
                // No read has ended.
                let source = Source::Redis { collapsed: true, stored: None };
                let result = KeyResult::Failed(&Failure::Timeout);
                self.end_poll(&Reply { result, source, tracked: false }, context);
            }
            Some(&WatchKind::Poll(Poll { unchanged: Some((digest, tracked)), .. })) => {
                self.replies.end_watch(context, RequestOutcome::Watched, |watch, date, out| {
                    http::encode_unchanged(digest, tracked, &watch.format, date, out)
                });
            }
            Some(WatchKind::Stream(_)) => {
                self.replies.end_watch(context, RequestOutcome::Watched, |mut watch, _, out| {
                    if let WatchKind::Stream(stream) = &mut watch.kind {
                        stream.append(stream.appended_at, out, |out| event_stream::encode_retry(retry, out));
                    }
                    watch.stream_summary().unwrap_or(ReplySummary { status: Status::Ok, bytes: 0 })
                });
            }
            None => {}
        }
    }

    /// Appends a heartbeat to a stream that is due for one.
    pub fn append_heartbeat(&mut self, now: Millis) {
        if let Some((watch, out)) = self.replies.first_watch_mut()
            && watch.has_begun()
            && watch.deadline() <= now
            && watch.can_append(out, now)
            && let WatchKind::Stream(stream) = &mut watch.kind
        {
            stream.append(now, out, |out| out.tail().extend_from_slice(HEARTBEAT));
        }
    }

    /// Returns the time after which the client of a stream reconnects. Spreads the clients of many
    /// streams that end together.
    fn retry_delay(&self, spread: Millis) -> Millis {
        // The high bits of the product are well mixed (Knuth, multiplicative hashing).
        let mixed = self.id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        MIN_RETRY + mixed % spread.max(1)
    }
}
