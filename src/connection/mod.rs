//! One client, without its socket: bytes that are not parsed yet, replies in the order of their requests, bytes that
//! are not sent yet, and when it is over. The first line says which protocol it speaks.
//!
//! Backpressure: with [`MAX_OPEN_REPLIES`] requests or [`MAX_OPEN_KEYS`] keys waiting, or more than [`MAX_UNSENT_BYTES`]
//! unsent, no further request is decoded. What has been read stays here, nothing more is read, and the caller tries again
//! after every change.

mod ending;
mod over_http;
mod over_resp;
mod replies;

use crate::figures::{Ending, Ledger, Protocol as Wire};
use crate::protocol::http::{self, Date, Document, Heads, Rules, Status, Topic};
use crate::protocol::resp::{self, Gather, Session};
use crate::protocol::{Outgoing, Sent, Shape, encode_reply};
use crate::request::{Failure, Millis, Outcome, Reply, Source, Waiter};
use over_http::Between;
use replies::Replies;

/// Most replies of a connection that are not complete. Enough to keep a pipelining client's fetches together in one
/// round trip; with the longest heads it bounds what one client can make the proxy hold.
pub const MAX_OPEN_REPLIES: usize = 128;

/// Most keys that are being read for a connection, also for replies that are of no use any more. A few round trips' worth,
/// so that the helpers share them, and a tenth of the queue, so that one client does not fill it.
pub const MAX_OPEN_KEYS: usize = 1024;

/// Beyond that many unsent bytes no further request is decoded. Twice a usual socket buffer's worth. Replies to requests
/// that are taken already may go over it: what they add are heads, and references to values that are not copied.
pub const MAX_UNSENT_BYTES: usize = 256 * 1024;

/// One client. See the top of the file.
#[derive(Debug)]
pub struct Connection {
    /// Counts connections, never reused: tells this one from others that had or will have its place.
    pub generation: u64,
    /// The database that the Redis protocol can choose.
    database: u32,
    /// Its address, as the access log has it; empty where nobody wants to know.
    address: Box<str>,
    unparsed: Vec<u8>,
    protocol: Protocol,
    replies: Replies,
    /// Keys that are being read for it.
    awaited: usize,
    /// Requests that were taken up before the present one began.
    before: u64,
    phase: Phase,
}

/// What a connection speaks.
#[derive(Debug)]
enum Protocol {
    /// Its first line has not come whole.
    Unknown,
    /// Its first line has not come whole, and whatever it is, the connection is one too many.
    OneTooMany,
    /// HTTP.
    Http(Between),
    /// The Redis protocol.
    Resp(Session),
}

/// How the connection's end has come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Requests are taken.
    Open,
    /// The last request is taken; its reply says so.
    Last {
        /// Whether the client may still be sending what nobody will read: closing at once would make its kernel throw
        /// the reply away (RFC 9112, section 9.6).
        unread: bool,
    },
}

/// What [`Connection::decode`] found at the beginning of the bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A request for a key. To be answered with `reply_now`, or noted with `wait`.
    Get {
        /// The key.
        key: &'a [u8],
        /// Whether it becomes recently used thereby.
        touch: bool,
        /// How to answer.
        answer: Answer,
        /// Bytes that it took.
        consumed: usize,
    },
    /// A question for how long a key will be served from memory. To be answered with `reply_remaining`.
    Remaining {
        /// The key.
        key: &'a [u8],
        /// How to answer.
        shape: resp::Shape,
        /// Bytes that it took.
        consumed: usize,
    },
    /// A question about the proxy itself, over HTTP. To be answered with `reply_document`.
    About {
        /// What about.
        topic: Topic,
        /// How to answer.
        shape: http::Shape,
        /// Bytes that it took.
        consumed: usize,
    },
    /// A question for the proxy's figures, over the Redis protocol. To be answered with `reply_number` or `reply_text`.
    Figures {
        /// How to answer.
        shape: resp::Shape,
        /// Bytes that it took.
        consumed: usize,
    },
    /// Something that needs no look at a key, and is dealt with. Bytes that it took.
    Passed(usize),
    /// Nothing that can go on now: more bytes must come, or replies must leave, or it is over.
    Stop,
}

/// How a request is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// By a reply of its own.
    Alone(Shape),
    /// As a part of a reply about several keys.
    Part,
}

impl Connection {
    /// A connection that has just been accepted. `database` is the one that is served.
    pub fn new(generation: u64, database: u32) -> Connection {
        Connection {
            generation,
            database,
            address: Box::default(),
            unparsed: Vec::new(),
            protocol: Protocol::Unknown,
            replies: Replies::default(),
            awaited: 0,
            before: 0,
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
    pub fn keep(&mut self, bytes: Vec<u8>) {
        match &mut self.phase {
            Phase::Open => self.unparsed = bytes,
            Phase::Last { unread } => *unread |= !bytes.is_empty(),
        }
    }

    /// Whether bytes were read and not consumed.
    pub fn has_unparsed(&self) -> bool {
        !self.unparsed.is_empty()
    }

    /// Whether a further request, or a further key of the present one, would be taken now.
    pub fn takes_requests(&self) -> bool {
        if self.phase != Phase::Open || self.awaited >= MAX_OPEN_KEYS {
            return false;
        }
        // What has begun must be able to end, whatever it holds: it has bounds of its own.
        self.replies.gathering().is_some()
            || (self.replies.open() < MAX_OPEN_REPLIES && self.replies.unsent() <= MAX_UNSENT_BYTES)
    }

    /// Looks at the beginning of all bytes that are not consumed. What needs no look at a key is answered here; it goes the
    /// way of every other reply.
    pub fn decode<'a>(
        &mut self,
        input: &'a [u8],
        rules: &Rules,
        heads: &'a mut Heads,
        date: &Date,
        ledger: &mut Ledger,
    ) -> Step<'a> {
        if !self.takes_requests() || input.is_empty() {
            return Step::Stop;
        }
        if !self.is_amid() {
            self.before = self.requests();
        }
        match self.protocol {
            Protocol::Resp(_) => self.decode_resp(input, ledger),
            Protocol::Http(_) => self.decode_http(input, rules, heads, date, ledger),
            Protocol::OneTooMany => self.turn_away(input, rules, heads, date, ledger),
            Protocol::Unknown => match resp::is_resp(input) {
                Some(true) => {
                    self.protocol = Protocol::Resp(Session::new(self.generation, self.database));
                    self.decode_resp(input, ledger)
                }
                Some(false) => {
                    self.protocol = Protocol::Http(Between::NOTHING);
                    self.decode_http(input, rules, heads, date, ledger)
                }
                None => Step::Stop,
            },
        }
    }

    /// How many requests it has taken up so far.
    pub fn requests(&self) -> u64 {
        self.replies.next_sequence()
    }

    /// Whom to answer if the reply to the request just decoded has to wait. `slot` is the connection's place.
    pub fn waiter(&self, slot: usize) -> Waiter {
        let (generation, next) = (self.generation, self.replies.next_sequence());
        match self.replies.gathering() {
            Some(gather) => Waiter { slot, generation, sequence: next - 1, part: gather.next_part() },
            None => Waiter { slot, generation, sequence: next, part: 0 },
        }
    }

    /// Replies to the request just decoded, which is for a key.
    pub fn reply_now(&mut self, answer: Answer, reply: &Reply<'_>, date: &Date, ledger: &mut Ledger) {
        match answer {
            Answer::Alone(shape) => {
                let sent = self.replies.answer(|out| encode_reply(reply, shape, date, out));
                let ending = ending_of(reply, sent, ledger);
                ledger.answered(wire_of(shape), ending, sent);
            }
            Answer::Part => self.replies.gather(ledger, |gather| gather.add(reply)),
        }
    }

    /// Notes that the request just decoded will be replied to later.
    pub fn wait(&mut self, answer: Answer, ledger: &mut Ledger) {
        self.awaited += 1;
        match answer {
            Answer::Alone(shape) => self.replies.wait(shape, ledger.note()),
            Answer::Part => self.replies.gather(ledger, Gather::wait),
        }
    }

    /// Tells how long a key will be served from memory.
    pub fn reply_remaining(&mut self, shape: resp::Shape, remaining: Option<Millis>, ledger: &mut Ledger) {
        self.replies.answer_resp(Ending::Other, ledger, |out| resp::encode_remaining(remaining, shape, out));
    }

    /// Tells a figure of the proxy.
    pub fn reply_number(&mut self, shape: resp::Shape, number: usize, ledger: &mut Ledger) {
        self.replies.answer_resp(Ending::Other, ledger, |out| resp::encode_number(number, shape, out));
    }

    /// Tells of the proxy.
    pub fn reply_text(&mut self, shape: resp::Shape, text: &str, ledger: &mut Ledger) {
        self.replies.answer_resp(Ending::Other, ledger, |out| resp::encode_text(text, shape, out));
    }

    /// Tells of the proxy, over HTTP.
    pub fn reply_document(&mut self, shape: http::Shape, document: &Document, date: &Date, ledger: &mut Ledger) {
        let sent = self.replies.answer(|out| http::encode_document(document, shape, date, out));
        ledger.answered(Wire::Http, Ending::Other, sent);
    }

    /// Replies to an earlier request, if it is one of this connection and was not replied to before. Says whether it was.
    pub fn reply_later(&mut self, waiter: Waiter, reply: &Reply<'_>, date: &Date, ledger: &mut Ledger) -> bool {
        if waiter.generation != self.generation {
            return false;
        }
        // Each of them is answered once, whether or not it is still of use.
        self.awaited = self.awaited.saturating_sub(1);
        self.replies.reply_later(waiter, reply, date, ledger)
    }

    /// The bytes to send.
    pub fn outgoing(&mut self) -> &mut Outgoing {
        &mut self.replies.outgoing
    }
}

fn wire_of(shape: Shape) -> Wire {
    match shape {
        Shape::Http(_) => Wire::Http,
        Shape::Resp(_) => Wire::Resp,
    }
}

/// What became of a request for one key, of which this was sent.
fn ending_of(reply: &Reply<'_>, sent: Sent, ledger: &mut Ledger) -> Ending {
    match (reply.outcome, reply.source) {
        (Outcome::Missing, _) => Ending::Missing,
        (Outcome::Failed(_), _) => Ending::Failed,
        (Outcome::Value(_), _) if sent.status == Status::ServiceUnavailable => {
            // There was no room for it on its way.
            ledger.failed(&Failure::TooMuchHeld);
            Ending::Failed
        }
        (_, Source::Cache { .. }) => Ending::Hit,
        (_, Source::Stale { .. }) => Ending::Stale,
        (_, Source::Redis { collapsed: true, .. }) => Ending::Collapsed,
        (_, Source::Redis { collapsed: false, .. }) => Ending::Miss,
    }
}

#[cfg(test)]
impl Connection {
    /// Takes bytes in as [`crate::serve`] does, for a proxy whose keys have to be waited for, but for those that begin with
    /// "hit", which are their own values. Gives back who waits for which. For the tests of this room.
    fn receive(&mut self, bytes: &[u8], ledger: &mut Ledger) -> Vec<(Waiter, String)> {
        use crate::request::{Form, Payload};
        let (date, rules) = (Date::at(std::time::SystemTime::UNIX_EPOCH), Rules::default());
        let mut input = self.take_unparsed();
        input.extend_from_slice(bytes);
        let (mut at, mut heads, mut asked) = (0, Heads::new(), Vec::new());
        loop {
            match self.decode(&input[at..], &rules, &mut heads, &date, ledger) {
                Step::Stop => break,
                Step::Passed(consumed) => at += consumed,
                Step::Get { key, answer, consumed, .. } => {
                    at += consumed;
                    if key.starts_with(b"hit") {
                        let outcome = Outcome::Value(Payload::Inline { bytes: key, form: Form::Plain });
                        let reply = Reply { outcome, source: Source::Cache { remaining: 1000 }, tracked: false };
                        self.reply_now(answer, &reply, &date, ledger);
                    } else {
                        asked.push((self.waiter(0), String::from_utf8_lossy(key).into_owned()));
                        self.wait(answer, ledger);
                    }
                }
                other => panic!("{other:?} is about the proxy"),
            }
        }
        self.keep(input.split_off(at));
        asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Form, Outcome, Payload, Source};
    use std::time::SystemTime;

    fn value(bytes: &[u8]) -> Reply<'_> {
        let payload = Payload::Inline { bytes, form: Form::Plain };
        Reply { outcome: Outcome::Value(payload), source: Source::Cache { remaining: 1000 }, tracked: false }
    }

    /// A connection whose requests wait, except for keys that begin with "hit".
    struct Client {
        connection: Connection,
        date: Date,
        asked: Vec<(u64, String)>,
    }

    impl Client {
        fn new() -> Client {
            Client { connection: Connection::new(1, 0), date: Date::at(SystemTime::UNIX_EPOCH), asked: Vec::new() }
        }

        fn receive(&mut self, bytes: &[u8]) {
            let asked = self.connection.receive(bytes, &mut Ledger::default());
            self.asked.extend(asked.into_iter().map(|(waiter, key)| (waiter.sequence, key)));
        }

        fn complete(&mut self, sequence: u64, bytes: &str) {
            let waiter = Waiter { slot: 0, generation: 1, sequence, part: 0 };
            let stranger = Waiter { generation: 2, ..waiter };
            let ledger = &mut Ledger::default();
            assert!(!self.connection.reply_later(stranger, &value(b"for another"), &self.date, ledger));
            self.connection.reply_later(waiter, &value(bytes.as_bytes()), &self.date, ledger);
        }

        /// Bodies of the responses that can be sent.
        fn sent(&mut self) -> Vec<String> {
            let text = String::from_utf8(self.connection.outgoing().drain(usize::MAX)).expect("text");
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
        assert!(client.connection.is_settled());
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
        let all: Vec<u8> = (0..MAX_OPEN_REPLIES + 50).flat_map(|number| get(&number.to_string())).collect();
        client.receive(&all);
        assert_eq!(client.asked.len(), MAX_OPEN_REPLIES);
        assert!(!client.connection.takes_requests() && client.connection.has_unparsed());
        client.complete(0, "first");
        client.receive(b"");
        assert_eq!(client.asked.len(), MAX_OPEN_REPLIES + 1);
        for sequence in 1..MAX_OPEN_REPLIES as u64 + 1 {
            client.complete(sequence, "more");
        }
        client.receive(b"");
        assert_eq!(client.asked.len(), MAX_OPEN_REPLIES + 50);
        assert!(!client.connection.has_unparsed());
    }

    #[test]
    fn with_much_unsent_it_stops_decoding() {
        let mut client = Client::new();
        let mut requests = 0;
        while client.connection.takes_requests() {
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
        (0..MAX_OPEN_REPLIES / 2).for_each(|_| client.receive(&hit));
        assert!(client.connection.has_unparsed(), "hits pile up behind a miss");
        client.complete(0, "A");
        let mut replies = client.sent().len();
        assert!((20..40).contains(&replies), "{replies}");
        while client.connection.has_unparsed() {
            client.receive(b"");
            replies += client.sent().len();
        }
        assert_eq!(replies, 1 + MAX_OPEN_REPLIES / 2);
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
        assert!(whole.connection.has_ended() && whole.connection.leaves_unread());
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
                    assert_eq!(client.connection.begun_request(), Some(number), "{message:?}");
                    client.receive(&[*byte]);
                }
                // The last byte comes with the first of the next.
                client.receive(format!("{}{}", &message[message.len() - 1..], &message[..starts]).as_bytes());
            }
            assert_eq!(client.connection.begun_request(), Some(3), "{message:?}");
        }
    }

    #[test]
    fn after_the_last_request_nothing_is_taken() {
        let mut client = Client::new();
        client.receive(b"GET /raw/hit HTTP/1.0\r\n\r\n");
        assert_eq!(client.sent(), ["hit"]);
        assert!(client.connection.has_ended() && !client.connection.leaves_unread());
        let mut client = Client::new();
        client.receive(b"GET /raw/hit HTTP/1.0\r\n\r\nGET /raw/hit HTTP/1.0\r\n\r\n");
        assert_eq!(client.sent(), ["hit"]);
        assert!(client.connection.leaves_unread());
        let mut client = Client::new();
        client.receive(b"GET /raw/hit HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n");
        assert_eq!(client.sent(), ["hit"]);
        assert!(client.connection.leaves_unread());
    }
}
