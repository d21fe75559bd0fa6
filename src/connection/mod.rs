//! One client, without its socket: bytes that are not parsed yet, replies in the order of their requests, bytes that
//! are not sent yet, and when it is over. The first line says which protocol it speaks.
//!
//! Backpressure: with [`MAX_PENDING_REPLIES`] requests or [`MAX_PENDING_KEYS`] keys waiting, or more than [`MAX_UNSENT_BYTES`]
//! unsent, no further request is decoded. What has been read stays here, nothing more is read, and the caller tries again
//! after every change.

mod close;
mod context;
mod http_conn;
mod reply_queue;
mod resp_conn;
#[cfg(test)]
mod tests;

use crate::metrics::{Protocol as Wire, Recorder, RequestOutcome};
use crate::protocol::http::{self, AdminEndpoint, AdminResponse, Status};
use crate::protocol::resp::{self, Session};
use crate::protocol::{MultiReply, ReplyFormat, ReplySummary, SendBuffer, encode_reply};
use crate::types::{Failure, KeyResult, Millis, Reply, RequestId, Source};
pub use context::{DecodeContext, ReplyContext};
use http_conn::HttpState;
use reply_queue::ReplyQueue;

/// Most replies of a connection that are not complete. Enough to keep a pipelining client's fetches together in one
/// round trip; with the longest heads it bounds what one client can make the proxy hold.
pub const MAX_PENDING_REPLIES: usize = 128;

/// Most keys that are being read for a connection, also for replies that are of no use any more. A few round trips' worth,
/// so that the helpers share them, and a tenth of the queue, so that one client does not fill it.
pub const MAX_PENDING_KEYS: usize = 1024;

/// Beyond that many unsent bytes no further request is decoded. Twice a usual socket buffer's worth. Replies to requests
/// that are taken already may go over it: what they add are heads, and references to values that are not copied.
pub const MAX_UNSENT_BYTES: usize = 256 * 1024;

/// One client. See the top of the file.
#[derive(Debug)]
pub struct Connection {
    /// Counts connections, never reused: tells this one from others that had or will have its place.
    pub id: u64,
    /// The database that the Redis protocol can choose.
    database: u32,
    /// Its address, as the access log has it; empty where nobody wants to know.
    address: Box<str>,
    unparsed: Vec<u8>,
    protocol: ProtocolState,
    replies: ReplyQueue,
    /// Keys that are being read for it.
    pending_keys: usize,
    /// Requests that were taken up before the present one began.
    requests_before: u64,
    phase: Phase,
}

/// What a connection speaks.
#[derive(Debug)]
enum ProtocolState {
    /// Its first line has not come whole.
    Detecting,
    /// Its first line has not come whole, and whatever it is, the connection is one too many.
    Rejecting,
    /// HTTP.
    Http(HttpState),
    /// The Redis protocol.
    Resp(Session),
}

/// How the connection's end has come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Requests are taken.
    Open,
    /// The last request is taken; its reply says so.
    Closing {
        /// Whether the client may still be sending what nobody will read: closing at once would make its kernel throw
        /// the reply away (RFC 9112, section 9.6).
        unread: bool,
    },
}

/// What [`Connection::decode`] found at the beginning of the bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum DecodeStep<'a> {
    /// A request for a key. To be answered with `reply_now`, or noted with `wait`.
    Get {
        /// The key.
        key: &'a [u8],
        /// Whether it becomes recently used thereby.
        touch: bool,
        /// How to answer.
        mode: ReplyMode,
        /// Bytes that it took.
        consumed: usize,
    },
    /// A question for how long a key will be served from memory. To be answered with `reply_ttl`.
    Ttl {
        /// The key.
        key: &'a [u8],
        /// How to answer.
        format: resp::RespReplyFormat,
        /// Bytes that it took.
        consumed: usize,
    },
    /// A question about the proxy itself, over HTTP. To be answered with `reply_admin`.
    Admin {
        /// What about.
        endpoint: AdminEndpoint,
        /// How to answer.
        format: http::HttpReplyFormat,
        /// Bytes that it took.
        consumed: usize,
    },
    /// A question for the proxy's figures, over the Redis protocol. To be answered with `reply_number` or `reply_text`.
    Info {
        /// How to answer.
        format: resp::RespReplyFormat,
        /// Bytes that it took.
        consumed: usize,
    },
    /// Something that needs no look at a key, and is dealt with. Bytes that it took.
    Consumed(usize),
    /// Nothing that can go on now: more bytes must come, or replies must leave, or it is over.
    Blocked,
}

/// How a request is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyMode {
    /// By a reply of its own.
    Single(ReplyFormat),
    /// As a part of a reply about several keys.
    Part,
}

impl Connection {
    /// A connection that has just been accepted. `database` is the one that is served.
    pub fn new(generation: u64, database: u32) -> Connection {
        Connection {
            id: generation,
            database,
            address: Box::default(),
            unparsed: Vec::new(),
            protocol: ProtocolState::Detecting,
            replies: ReplyQueue::default(),
            pending_keys: 0,
            requests_before: 0,
            phase: Phase::Open,
        }
    }

    /// Has it known by its address in the access log.
    pub fn set_address(&mut self, address: String) {
        self.address = address.into();
    }

    /// Takes out the bytes that were kept by [`Connection::keep`].
    pub fn take_unparsed(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.unparsed)
    }

    /// Keeps bytes that were read and not consumed. After the last request there is nothing they could be.
    pub fn store_unparsed(&mut self, bytes: Vec<u8>) {
        match &mut self.phase {
            Phase::Open => self.unparsed = bytes,
            Phase::Closing { unread } => *unread |= !bytes.is_empty(),
        }
    }

    /// Whether bytes were read and not consumed.
    pub fn has_unparsed(&self) -> bool {
        !self.unparsed.is_empty()
    }

    /// Whether a further request, or a further key of the present one, would be taken now.
    pub fn can_take_request(&self) -> bool {
        if self.phase != Phase::Open || self.pending_keys >= MAX_PENDING_KEYS {
            return false;
        }
        // What has begun must be able to end, whatever it holds: it has bounds of its own.
        self.replies.open_multi().is_some()
            || (self.replies.len() < MAX_PENDING_REPLIES && self.replies.unsent_bytes() <= MAX_UNSENT_BYTES)
    }

    /// Looks at the beginning of all bytes that are not consumed. What needs no look at a key is answered here; it goes the
    /// way of every other reply.
    pub fn decode<'a>(&mut self, input: &'a [u8], context: &'a mut DecodeContext<'_>) -> DecodeStep<'a> {
        if !self.can_take_request() || input.is_empty() {
            return DecodeStep::Blocked;
        }
        if !self.in_request() {
            self.requests_before = self.request_count();
        }
        match self.protocol {
            ProtocolState::Resp(_) => self.decode_resp(input, context.reply.recorder),
            ProtocolState::Http(_) => self.decode_http(input, context),
            ProtocolState::Rejecting => self.reject(input, context),
            ProtocolState::Detecting => match resp::is_resp(input) {
                Some(true) => {
                    self.protocol = ProtocolState::Resp(Session::new(self.id, self.database));
                    self.decode_resp(input, context.reply.recorder)
                }
                Some(false) => {
                    self.protocol = ProtocolState::Http(HttpState::BETWEEN_REQUESTS);
                    self.decode_http(input, context)
                }
                None => DecodeStep::Blocked,
            },
        }
    }

    /// How many requests it has taken up so far.
    pub fn request_count(&self) -> u64 {
        self.replies.next_sequence()
    }

    /// Whom to answer if the reply to the request just decoded has to wait. `slot` is the connection's place.
    pub fn request_id(&self, slot: usize) -> RequestId {
        let (generation, next) = (self.id, self.replies.next_sequence());
        match self.replies.open_multi() {
            Some(multi) => RequestId { slot, connection_id: generation, sequence: next - 1, part: multi.next_part() },
            None => RequestId { slot, connection_id: generation, sequence: next, part: 0 },
        }
    }

    /// Replies to the request just decoded, which is for a key.
    pub fn reply_now(&mut self, mode: ReplyMode, reply: &Reply<'_>, context: &mut ReplyContext<'_>) {
        let ReplyContext { date, recorder } = context;
        match mode {
            ReplyMode::Single(shape) => {
                let sent = self.replies.push(|out| encode_reply(reply, shape, date, out));
                let ending = outcome_of(reply, sent, recorder);
                recorder.record_reply(protocol_of(shape), ending, sent);
            }
            ReplyMode::Part => self.replies.update_open_multi(recorder, |multi| multi.push(reply)),
        }
    }

    /// Notes that the request just decoded will be replied to later.
    pub fn defer(&mut self, mode: ReplyMode, recorder: &mut Recorder) {
        self.pending_keys += 1;
        match mode {
            ReplyMode::Single(shape) => self.replies.push_pending(shape, recorder.request_info()),
            ReplyMode::Part => self.replies.update_open_multi(recorder, MultiReply::push_pending),
        }
    }

    /// Tells how long a key will be served from memory.
    pub fn reply_ttl(&mut self, shape: resp::RespReplyFormat, remaining: Option<Millis>, recorder: &mut Recorder) {
        self.replies.push_resp(RequestOutcome::Other, recorder, |out| resp::encode_ttl(remaining, shape, out));
    }

    /// Tells a figure of the proxy.
    pub fn reply_number(&mut self, shape: resp::RespReplyFormat, number: usize, recorder: &mut Recorder) {
        self.replies.push_resp(RequestOutcome::Other, recorder, |out| resp::encode_number(number, shape, out));
    }

    /// Tells of the proxy.
    pub fn reply_text(&mut self, shape: resp::RespReplyFormat, text: &str, recorder: &mut Recorder) {
        self.replies.push_resp(RequestOutcome::Other, recorder, |out| resp::encode_text(text, shape, out));
    }

    /// Tells of the proxy, over HTTP.
    pub fn reply_admin(
        &mut self,
        shape: http::HttpReplyFormat,
        document: &AdminResponse,
        context: &mut ReplyContext<'_>,
    ) {
        let sent = self.replies.push(|out| http::encode_admin(document, shape, context.date, out));
        context.recorder.record_reply(Wire::Http, RequestOutcome::Other, sent);
    }

    /// Replies to an earlier request, if it is one of this connection and was not replied to before. Says whether it was.
    pub fn reply_later(&mut self, waiter: RequestId, reply: &Reply<'_>, context: &mut ReplyContext<'_>) -> bool {
        if waiter.connection_id != self.id {
            return false;
        }
        // Each of them is answered once, whether or not it is still of use.
        self.pending_keys = self.pending_keys.saturating_sub(1);
        self.replies.reply_later(waiter, reply, context)
    }

    /// The bytes to send.
    pub fn send_buffer(&mut self) -> &mut SendBuffer {
        &mut self.replies.send_buffer
    }
}

fn protocol_of(shape: ReplyFormat) -> Wire {
    match shape {
        ReplyFormat::Http(_) => Wire::Http,
        ReplyFormat::Resp(_) => Wire::Resp,
    }
}

/// What became of a request for one key, of which this was sent.
fn outcome_of(reply: &Reply<'_>, sent: ReplySummary, recorder: &mut Recorder) -> RequestOutcome {
    match (reply.outcome, reply.source) {
        (KeyResult::Missing, _) => RequestOutcome::Missing,
        (KeyResult::Failed(_), _) => RequestOutcome::Failed,
        (KeyResult::Value(_), _) if sent.status == Status::ServiceUnavailable => {
            // There was no room for it on its way.
            recorder.record_failure(&Failure::OutputMemoryFull);
            RequestOutcome::Failed
        }
        (_, Source::Cache { .. }) => RequestOutcome::Hit,
        (_, Source::Stale { .. }) => RequestOutcome::Stale,
        (_, Source::Redis { collapsed: true, .. }) => RequestOutcome::Collapsed,
        (_, Source::Redis { collapsed: false, .. }) => RequestOutcome::Miss,
    }
}
