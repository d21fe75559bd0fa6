//! One client, without its socket: bytes that are not parsed yet, replies in the order of their requests, bytes that
//! are not sent yet, and when it is over. The first line says which protocol it speaks.
//!
//! Backpressure: with [`MAX_PENDING_REPLIES`] requests or [`MAX_PENDING_KEYS`] keys waiting, or more than [`MAX_UNSENT_BYTES`]
//! unsent, no further request is decoded. What has been read stays here, nothing more is read, and the caller tries again
//! after every change.

mod close;
mod http_conn;
mod reply_queue;
mod resp_conn;

use crate::metrics::{Protocol as Wire, Recorder, RequestOutcome};
use crate::protocol::http::{self, AdminEndpoint, AdminResponse, HeadDecoder, Policy, ResponseDate, Status};
use crate::protocol::resp::{self, Session};
use crate::protocol::{MultiReply, ReplyFormat, ReplySummary, SendBuffer, encode_reply};
use crate::types::{Failure, KeyResult, Millis, Reply, RequestId, Source};
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
        answer: ReplyMode,
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
        topic: AdminEndpoint,
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
    pub fn decode<'a>(
        &mut self,
        input: &'a [u8],
        policy: &Policy,
        heads: &'a mut HeadDecoder,
        date: &ResponseDate,
        recorder: &mut Recorder,
    ) -> DecodeStep<'a> {
        if !self.can_take_request() || input.is_empty() {
            return DecodeStep::Blocked;
        }
        if !self.in_request() {
            self.requests_before = self.request_count();
        }
        match self.protocol {
            ProtocolState::Resp(_) => self.decode_resp(input, recorder),
            ProtocolState::Http(_) => self.decode_http(input, policy, heads, date, recorder),
            ProtocolState::Rejecting => self.reject(input, policy, heads, date, recorder),
            ProtocolState::Detecting => match resp::is_resp(input) {
                Some(true) => {
                    self.protocol = ProtocolState::Resp(Session::new(self.id, self.database));
                    self.decode_resp(input, recorder)
                }
                Some(false) => {
                    self.protocol = ProtocolState::Http(HttpState::BETWEEN_REQUESTS);
                    self.decode_http(input, policy, heads, date, recorder)
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
    pub fn reply_now(&mut self, answer: ReplyMode, reply: &Reply<'_>, date: &ResponseDate, recorder: &mut Recorder) {
        match answer {
            ReplyMode::Single(shape) => {
                let sent = self.replies.push(|out| encode_reply(reply, shape, date, out));
                let ending = outcome_of(reply, sent, recorder);
                recorder.record_reply(protocol_of(shape), ending, sent);
            }
            ReplyMode::Part => self.replies.update_open_multi(recorder, |multi| multi.push(reply)),
        }
    }

    /// Notes that the request just decoded will be replied to later.
    pub fn defer(&mut self, answer: ReplyMode, recorder: &mut Recorder) {
        self.pending_keys += 1;
        match answer {
            ReplyMode::Single(shape) => self.replies.push_pending(shape, recorder.request_info()),
            ReplyMode::Part => self.replies.update_open_multi(recorder, MultiReply::push_pending),
        }
    }

    /// Tells how long a key will be served from memory.
    pub fn reply_ttl(&mut self, shape: resp::RespReplyFormat, remaining: Option<Millis>, recorder: &mut Recorder) {
        self.replies.push_resp(RequestOutcome::Other, recorder, |out| resp::encode_remaining(remaining, shape, out));
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
        date: &ResponseDate,
        recorder: &mut Recorder,
    ) {
        let sent = self.replies.push(|out| http::encode_document(document, shape, date, out));
        recorder.record_reply(Wire::Http, RequestOutcome::Other, sent);
    }

    /// Replies to an earlier request, if it is one of this connection and was not replied to before. Says whether it was.
    pub fn reply_later(
        &mut self,
        waiter: RequestId,
        reply: &Reply<'_>,
        date: &ResponseDate,
        recorder: &mut Recorder,
    ) -> bool {
        if waiter.connection_id != self.id {
            return false;
        }
        // Each of them is answered once, whether or not it is still of use.
        self.pending_keys = self.pending_keys.saturating_sub(1);
        self.replies.reply_later(waiter, reply, date, recorder)
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

#[cfg(test)]
impl Connection {
    /// Takes bytes in as [`crate::dispatch`] does, for a proxy whose keys have to be waited for, but for those that begin with
    /// "hit", which are their own values. Gives back who waits for which. For the tests of this room.
    fn receive(&mut self, bytes: &[u8], recorder: &mut Recorder) -> Vec<(RequestId, String)> {
        use crate::types::{JsonForm, Payload};
        let (date, policy) = (ResponseDate::at(std::time::SystemTime::UNIX_EPOCH), Policy::default());
        let mut input = self.take_unparsed();
        input.extend_from_slice(bytes);
        let (mut at, mut heads, mut asked) = (0, HeadDecoder::new(), Vec::new());
        loop {
            match self.decode(&input[at..], &policy, &mut heads, &date, recorder) {
                DecodeStep::Blocked => break,
                DecodeStep::Consumed(consumed) => at += consumed,
                DecodeStep::Get { key, answer, consumed, .. } => {
                    at += consumed;
                    if key.starts_with(b"hit") {
                        let outcome = KeyResult::Value(Payload::Inline { bytes: key, form: JsonForm::Plain });
                        let reply = Reply { outcome, source: Source::Cache { ttl: 1000 }, tracked: false };
                        self.reply_now(answer, &reply, &date, recorder);
                    } else {
                        asked.push((self.request_id(0), String::from_utf8_lossy(key).into_owned()));
                        self.defer(answer, recorder);
                    }
                }
                other => panic!("{other:?} is about the proxy"),
            }
        }
        self.store_unparsed(input.split_off(at));
        asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{JsonForm, KeyResult, Payload, Source};
    use std::time::SystemTime;

    fn value(bytes: &[u8]) -> Reply<'_> {
        let payload = Payload::Inline { bytes, form: JsonForm::Plain };
        Reply { outcome: KeyResult::Value(payload), source: Source::Cache { ttl: 1000 }, tracked: false }
    }

    /// A connection whose requests wait, except for keys that begin with "hit".
    struct Client {
        connection: Connection,
        date: ResponseDate,
        asked: Vec<(u64, String)>,
    }

    impl Client {
        fn new() -> Client {
            Client {
                connection: Connection::new(1, 0),
                date: ResponseDate::at(SystemTime::UNIX_EPOCH),
                asked: Vec::new(),
            }
        }

        fn receive(&mut self, bytes: &[u8]) {
            let asked = self.connection.receive(bytes, &mut Recorder::default());
            self.asked.extend(asked.into_iter().map(|(waiter, key)| (waiter.sequence, key)));
        }

        fn complete(&mut self, sequence: u64, bytes: &str) {
            let waiter = RequestId { slot: 0, connection_id: 1, sequence, part: 0 };
            let stranger = RequestId { connection_id: 2, ..waiter };
            let recorder = &mut Recorder::default();
            assert!(!self.connection.reply_later(stranger, &value(b"for another"), &self.date, recorder));
            self.connection.reply_later(waiter, &value(bytes.as_bytes()), &self.date, recorder);
        }

        /// Bodies of the responses that can be sent.
        fn sent(&mut self) -> Vec<String> {
            let text = String::from_utf8(self.connection.send_buffer().drain(usize::MAX)).expect("text");
            text.split("HTTP/1.1 ")
                .skip(1)
                .map(|one| one.split_once("\r\n\r\n").expect("a head").1.to_owned())
                .collect()
        }
    }

    fn get(key: &str) -> Vec<u8> {
        format!("GET /raw/{key} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes()
    }

    #[test]
    fn replies_leave_in_request_order_however_fetches_finish() {
        let mut client = Client::new();
        client.receive(&[get("a"), get("hit1"), get("b"), get("hit2"), get("c")].concat());
        assert_eq!(client.asked, [(0, "a".into()), (2, "b".into()), (4, "c".into())]);
        assert!(client.sent().is_empty(), "a hit overtook a miss");
        client.complete(4, "C");
        client.complete(2, "B");
        assert!(client.sent().is_empty());
        client.complete(0, "A");
        assert_eq!(client.sent(), ["A", "hit1", "B", "hit2", "C"]);
        assert!(client.connection.is_flushed());
        client.receive(&get("d"));
        assert_eq!(client.asked[3], (5, "d".into()));
        client.complete(4, "late, twice");
        client.complete(99, "never asked");
        assert!(client.sent().is_empty());
        client.complete(5, "D");
        assert_eq!(client.sent(), ["D"]);
    }

    #[test]
    fn at_the_bound_of_open_replies_it_stops_and_goes_on_afterwards() {
        let mut client = Client::new();
        let all: Vec<u8> = (0..MAX_PENDING_REPLIES + 50).flat_map(|number| get(&number.to_string())).collect();
        client.receive(&all);
        assert_eq!(client.asked.len(), MAX_PENDING_REPLIES);
        assert!(!client.connection.can_take_request() && client.connection.has_unparsed());
        client.complete(0, "first");
        client.receive(b"");
        assert_eq!(client.asked.len(), MAX_PENDING_REPLIES + 1);
        for sequence in 1..MAX_PENDING_REPLIES as u64 + 1 {
            client.complete(sequence, "more");
        }
        client.receive(b"");
        assert_eq!(client.asked.len(), MAX_PENDING_REPLIES + 50);
        assert!(!client.connection.has_unparsed());
    }

    #[test]
    fn with_much_unsent_it_stops_decoding() {
        let mut client = Client::new();
        let mut requests = 0;
        while client.connection.can_take_request() {
            client.receive(&get(&format!("hit{}", "x".repeat(1000))));
            requests += 1;
            assert!(requests < 1000, "nothing bounds the unsent bytes");
        }
        client.receive(&get("hit-next"));
        assert!(client.connection.has_unparsed());
        assert_eq!(client.sent().len(), requests);
        client.receive(b"");
        assert_eq!(client.sent(), ["hit-next"]);
    }

    #[test]
    fn hits_that_wait_behind_a_miss_count_as_unsent() {
        let mut client = Client::new();
        client.receive(&get("a"));
        let hit = get(&format!("hit{}", "x".repeat(8000)));
        (0..MAX_PENDING_REPLIES / 2).for_each(|_| client.receive(&hit));
        assert!(client.connection.has_unparsed(), "hits pile up behind a miss");
        client.complete(0, "A");
        let mut replies = client.sent().len();
        assert!((20..40).contains(&replies), "{replies}");
        while client.connection.has_unparsed() {
            client.receive(b"");
            replies += client.sent().len();
        }
        assert_eq!(replies, 1 + MAX_PENDING_REPLIES / 2);
    }

    #[test]
    fn any_split_gives_the_same_replies() {
        let all = [
            get("hit1"),
            b"POST /raw/x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nGET /raw/".to_vec(),
            b"PUT /raw/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nGET\r\n0\r\n\r\n".to_vec(),
            get("hit2"),
            b"nonsense\r\n\r\n".to_vec(),
            get("hit3"),
        ]
        .concat();
        let mut whole = Client::new();
        whole.receive(&all);
        let expected = whole.sent();
        assert_eq!(expected.len(), 5, "{expected:?}");
        assert!(whole.connection.is_closing() && whole.connection.needs_linger());
        for split in 1..all.len() {
            let mut client = Client::new();
            client.receive(&all[..split]);
            client.receive(&all[split..]);
            assert_eq!(client.sent(), expected, "split at {split}");
        }
        let mut client = Client::new();
        all.iter().for_each(|byte| client.receive(&[*byte]));
        assert_eq!(client.sent(), expected, "byte by byte");
    }

    /// The time that a client takes for a request is told by this number.
    #[test]
    fn a_request_has_one_number_from_its_first_byte_to_its_last() {
        let head = "GET /raw/hit HTTP/1.1\r\nHost: x\r\n";
        for message in [
            format!("{head}\r\n"),
            format!("\r\n{head}Content-Length: 10\r\n\r\n0123456789"),
            format!("{head}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n"),
            format!("{}Content-Length: 5\r\n\r\n01234", head.replace("GET", "POST")),
            "*4\r\n$4\r\nMGET\r\n$4\r\nhit1\r\n$4\r\nhit2\r\n$4\r\nhit3\r\n".to_owned(),
            "*2\r\n$3\r\nGET\r\n$3\r\nhit\r\n".to_owned(),
            "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n".to_owned(),
        ] {
            let mut client = Client::new();
            let starts = if message.starts_with("\r\n") { 3 } else { 1 };
            client.receive(&message.as_bytes()[..starts]);
            for number in 0..3 {
                for byte in &message.as_bytes()[starts..message.len() - 1] {
                    assert_eq!(client.connection.partial_request(), Some(number), "{message:?}");
                    client.receive(&[*byte]);
                }
                // The last byte comes with the first of the next.
                client.receive(format!("{}{}", &message[message.len() - 1..], &message[..starts]).as_bytes());
            }
            assert_eq!(client.connection.partial_request(), Some(3), "{message:?}");
        }
    }

    #[test]
    fn after_the_last_request_nothing_is_taken() {
        let mut client = Client::new();
        client.receive(b"GET /raw/hit HTTP/1.0\r\n\r\n");
        assert_eq!(client.sent(), ["hit"]);
        assert!(client.connection.is_closing() && !client.connection.needs_linger());
        let mut client = Client::new();
        client.receive(b"GET /raw/hit HTTP/1.0\r\n\r\nGET /raw/hit HTTP/1.0\r\n\r\n");
        assert_eq!(client.sent(), ["hit"]);
        assert!(client.connection.needs_linger());
        let mut client = Client::new();
        client.receive(b"GET /raw/hit HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n");
        assert_eq!(client.sent(), ["hit"]);
        assert!(client.connection.needs_linger());
    }
}
