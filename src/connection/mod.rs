//! One client connection without its socket: unparsed input, pending replies, unsent output.
//!
//! This type performs no I/O. The first line of the input selects the protocol.
//!
//! Backpressure: no further request is decoded while [`MAX_PENDING_REPLIES`] replies or
//! [`MAX_PENDING_KEYS`] keys are pending, or more than [`MAX_UNSENT_BYTES`] are unsent. Input that
//! was read stays here, the caller reads no more, and decoding resumes after a reply is complete or
//! sent.

mod authentication;
mod close;
mod context;
mod http_conn;
mod keys;
mod reply_queue;
mod resp_conn;
#[cfg(test)]
mod tests;
#[cfg(feature = "tls")]
mod tls;
#[cfg(not(feature = "tls"))]
#[path = "tls/absent.rs"]
mod tls;
mod watch;

use crate::client_auth::{ClientAddress, ClientAuth, Peer};
use crate::metrics::RequestOutcome;
use crate::protocol::http::{self, AdminEndpoint, AdminResponse, HeadDecoder};
use crate::protocol::resp::{self, Session};
use crate::protocol::{ReplyFormat, SendBuffer};
use crate::types::{Access, ClientId, DeferredReply, Millis, Push, PushResult, Reply, RequestId, UpcomingKeys};
pub use context::{DecodeContext, ReplyContext};
use http_conn::HttpState;
pub use keys::KeyAmount;
use reply_queue::ReplyQueue;
pub use tls::{TlsConfig, TlsSession};

/// Maximum number of replies of a connection that are incomplete or follow one. The fetches of a
/// pipelining client fit in one round trip. With the longest request heads, this bounds what one
/// client makes the proxy hold.
pub const MAX_PENDING_REPLIES: usize = 128;

/// Maximum number of keys that are being fetched for a connection, including those of discarded
/// replies. A few round trips, so that the fetchers share the keys. A tenth of the job queue, so
/// that one client does not fill it.
pub const MAX_PENDING_KEYS: usize = 1024;

/// Unsent bytes beyond which no further request is decoded: twice a usual socket buffer. Replies to
/// earlier requests may exceed it: they add heads, and references to values that are not copied.
pub const MAX_UNSENT_BYTES: usize = 256 * 1024;

/// State of one client connection.
#[derive(Debug)]
pub struct Connection {
    /// Number of the connection, never reused. Replies to an earlier client of the slot have
    /// another.
    pub id: u64,
    /// The only database that RESP clients can select.
    database: u32,
    /// Address that failed authentications count for, and if the last one succeeded.
    peer: Peer,
    /// The same as text for the access log; empty without one.
    address: Box<str>,
    unparsed: Vec<u8>,
    protocol: ProtocolState,
    replies: ReplyQueue,
    /// Keys that are being fetched for this connection.
    pending_keys: usize,
    /// Requests before the one that is being decoded.
    requests_before: u64,
    phase: Phase,
}

/// Protocol of a connection, with the decoder's state.
#[derive(Debug)]
enum ProtocolState {
    /// The first line is incomplete.
    Detecting,
    /// The first line is incomplete, and the connection is only to be refused.
    Rejecting {
        rejection: Rejection,
        /// TLS is required and missing: of the admin endpoints only health is answered.
        health_only: bool,
    },
    Http(HttpState),
    Resp(Session),
}

/// Reason to refuse a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rejection {
    /// The connection is above the connection limit.
    ConnectionLimit,
    /// The connection is plain, and TLS is required.
    TlsRequired,
}

/// Phase of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Requests are taken.
    Open,
    /// The last request was taken.
    Closing {
        /// The client may be sending input that is not read. If the proxy closes at once, the
        /// client's kernel discards the reply (RFC 9112, section 9.6).
        unread: bool,
    },
}

/// Result of [`Connection::decode`].
#[derive(Debug, PartialEq, Eq)]
pub enum DecodeStep<'a> {
    /// A request for a key. The caller continues with [`Connection::reply_now`] or
    /// [`Connection::defer`].
    Get {
        /// Requested key.
        key: &'a [u8],
        /// Use of the cache that the request allows.
        access: Access,
        /// Format of the reply.
        format: ReplyFormat,
        /// Bytes of input consumed.
        consumed: usize,
    },
    /// Keys of a request for several follow. The caller continues with
    /// [`Connection::decode_keys`].
    Keys,
    /// A request for the remaining time to live of a cached key. The caller continues with
    /// [`Connection::reply_ttl`].
    Ttl {
        /// Requested key.
        key: &'a [u8],
        /// Use of the cache that the request allows.
        access: Access,
        /// Format of the reply.
        format: resp::RespReplyFormat,
        /// Bytes of input consumed.
        consumed: usize,
    },
    /// A RESP client has turned tracking on or off, and has the reply.
    Tracking {
        /// True if invalidations are to be sent from now on.
        is_on: bool,
        /// Bytes of input consumed.
        consumed: usize,
    },
    /// An HTTP request for an admin endpoint. The caller continues with
    /// [`Connection::reply_admin`].
    Admin {
        /// Requested endpoint.
        endpoint: AdminEndpoint,
        /// Format of the response.
        format: http::HttpReplyFormat,
        /// Bytes of input consumed.
        consumed: usize,
    },
    /// A RESP command for metrics of the proxy. The caller continues with
    /// [`Connection::reply_number`] or [`Connection::reply_text`].
    Info {
        /// Format of the reply.
        format: resp::RespReplyFormat,
        /// Bytes of input consumed.
        consumed: usize,
    },
    /// Number of input bytes consumed. The caller has nothing to look up.
    Consumed(usize),
    /// No progress: input is missing, a limit is reached, or the connection is closing.
    Blocked,
}

impl Connection {
    /// Creates a connection for an accepted client. `database` is the one that is served.
    pub fn new(id: u64, database: u32) -> Connection {
        Connection {
            id,
            database,
            peer: Peer::default(),
            address: Box::default(),
            unparsed: Vec::new(),
            protocol: ProtocolState::Detecting,
            replies: ReplyQueue::default(),
            pending_keys: 0,
            requests_before: 0,
            phase: Phase::Open,
        }
    }

    /// Sets the client address that failed authentications count for.
    pub fn set_peer(&mut self, peer: ClientAddress) {
        self.peer = Peer::new(peer);
    }

    /// Returns the client address that failed authentications count for.
    pub fn peer(&self) -> ClientAddress {
        self.peer.address
    }

    /// Sets the client address for the access log.
    pub fn set_address(&mut self, address: String) {
        self.address = address.into();
    }

    /// Takes the bytes stored by [`Connection::store_unparsed`].
    pub fn take_unparsed(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.unparsed)
    }

    /// Stores bytes that were read and not consumed. After the last request they are dropped.
    pub fn store_unparsed(&mut self, bytes: Vec<u8>) {
        match &mut self.phase {
            Phase::Open => self.unparsed = bytes,
            Phase::Closing { unread } => *unread |= !bytes.is_empty(),
        }
    }

    /// Returns true if bytes are stored that were read and not consumed.
    pub fn has_unparsed(&self) -> bool {
        !self.unparsed.is_empty()
    }

    /// Returns true if another request, or another key of the present one, can be decoded.
    pub fn can_take_request(&self) -> bool {
        if self.pending_keys >= MAX_PENDING_KEYS {
            return false;
        }
        // A multi-key reply has bounds of its own. Without its remaining keys it could never
        // complete.
        self.replies.open_multi().is_some()
            || (self.phase == Phase::Open
                && self.replies.len() < MAX_PENDING_REPLIES
                && self.replies.unsent_bytes() <= MAX_UNSENT_BYTES)
    }

    /// Decodes the next step from `input`, which holds all unconsumed bytes. Replies to requests
    /// that need no lookup.
    pub fn decode<'a>(&mut self, input: &'a [u8], context: &'a mut DecodeContext<'_>) -> DecodeStep<'a> {
        if !self.can_take_request() {
            return DecodeStep::Blocked;
        }
        if self.has_listed_keys() {
            return DecodeStep::Keys;
        }
        if input.is_empty() {
            return DecodeStep::Blocked;
        }
        if !self.in_request() {
            self.requests_before = self.request_count();
        }
        match self.protocol {
            ProtocolState::Resp(ref session) if session.expects_keys() => DecodeStep::Keys,
            ProtocolState::Resp(_) => self.decode_resp(input, context),
            ProtocolState::Http(_) => self.decode_http(input, context),
            ProtocolState::Rejecting { rejection, health_only } => self.reject(rejection, health_only, input, context),
            ProtocolState::Detecting => match resp::is_resp(input) {
                Some(true) if context.policy.resources == http::Resources::Admin => {
                    self.refuse_resp(input, &mut context.reply, resp::encode_admin_port)
                }
                Some(true) => {
                    let session = Session::new(self.id, self.database, context.auth.is_required());
                    self.protocol = ProtocolState::Resp(session.offer_tracking(context.offers_tracking));
                    self.decode_resp(input, context)
                }
                Some(false) => {
                    self.protocol = ProtocolState::Http(HttpState::BETWEEN_REQUESTS);
                    self.decode_http(input, context)
                }
                None => DecodeStep::Blocked,
            },
        }
    }

    /// Adds the keys that the requests at the start of `input` will look up, and returns the end of
    /// the last one. Decodes nothing. Finds none before authentication, and none in a body.
    pub fn find_upcoming_keys<'a>(
        &self,
        input: &'a [u8],
        head_decoder: &HeadDecoder,
        auth: &ClientAuth,
        keys: &mut UpcomingKeys<'a>,
    ) -> usize {
        match &self.protocol {
            ProtocolState::Resp(session) => session.find_upcoming_keys(input, keys),
            ProtocolState::Http(state) if !state.in_request() && !auth.is_required() => {
                head_decoder.find_upcoming_keys(input, keys)
            }
            _ => 0,
        }
    }

    /// Returns the number of requests taken so far.
    pub fn request_count(&self) -> u64 {
        self.replies.next_sequence()
    }

    /// Returns the id by which the request just decoded, or the next key of a request for several,
    /// can be answered later. `slot` is the slot of the client.
    pub fn request_id(&self, slot: usize) -> RequestId {
        let (connection_id, next) = (self.id, self.replies.next_sequence());
        match self.replies.open_multi() {
            Some(multi) => RequestId { slot, connection_id, sequence: next - 1, part: multi.next_key() },
            None => RequestId { slot, connection_id, sequence: next, part: 0 },
        }
    }

    /// Returns the address of the client in `slot`.
    pub fn client_id(&self, slot: usize) -> ClientId {
        ClientId { slot, connection_id: self.id }
    }

    /// Sends an invalidation, behind all replies that may hold an older value, if the client
    /// caches values.
    pub fn push_invalidation(&mut self, push: Push<'_>) -> PushResult {
        match &self.protocol {
            ProtocolState::Resp(session) if session.is_tracking() && self.phase == Phase::Open => {
                match self.replies.push_invalidation(push) {
                    true => PushResult::Queued,
                    false => PushResult::QueuedEverything,
                }
            }
            _ => PushResult::NotTracking,
        }
    }

    /// Replies to the request for a key that was just decoded.
    pub fn reply_now(&mut self, format: &ReplyFormat, reply: &Reply<'_>, context: &mut ReplyContext<'_>) {
        self.replies.push_reply(reply, format, context);
    }

    /// Marks the request for a key that was just decoded as pending.
    pub fn defer(&mut self, format: ReplyFormat, context: &mut ReplyContext<'_>) {
        self.pending_keys += 1;
        self.replies.push_pending(format, context.recorder);
    }

    /// Replies with the remaining time to live of a cached key, `None` if it is not cached.
    pub fn reply_ttl(&mut self, format: resp::RespReplyFormat, ttl: Option<Millis>, context: &mut ReplyContext<'_>) {
        self.replies.push_resp(RequestOutcome::Other, context, |out| resp::encode_ttl(ttl, format, out));
    }

    /// Replies with a number.
    pub fn reply_number(&mut self, format: resp::RespReplyFormat, number: usize, context: &mut ReplyContext<'_>) {
        self.replies.push_resp(RequestOutcome::Other, context, |out| resp::encode_number(number, format, out));
    }

    /// Replies with a text.
    pub fn reply_text(&mut self, format: resp::RespReplyFormat, text: &str, context: &mut ReplyContext<'_>) {
        self.replies.push_resp(RequestOutcome::Other, context, |out| resp::encode_text(text, format, out));
    }

    /// Replies with the response of an admin endpoint.
    pub fn reply_admin(
        &mut self,
        format: http::HttpReplyFormat,
        response: &AdminResponse,
        context: &mut ReplyContext<'_>,
    ) {
        self.replies
            .push_http(RequestOutcome::Other, context, |date, out| http::encode_admin(response, &format, date, out));
    }

    /// Replies to an earlier request. Returns false if it is not of this connection, or waits for
    /// no reply.
    pub fn reply_later(&mut self, id: RequestId, reply: &DeferredReply<'_>, context: &mut ReplyContext<'_>) -> bool {
        if id.connection_id != self.id {
            return false;
        }
        // Each pending key is answered once, even if its reply was discarded.
        self.pending_keys = self.pending_keys.saturating_sub(1);
        self.replies.reply_later(id, reply, context)
    }

    /// Returns the buffer of bytes to send.
    pub fn send_buffer(&mut self) -> &mut SendBuffer {
        &mut self.replies.send_buffer
    }
}
