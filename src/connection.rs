//! One client, without its socket: bytes that are not parsed yet, replies in the order of their requests, bytes that
//! are not sent yet, and when it is over.
//!
//! Every request gets the next sequence number. A reply that is there at once, with none before it missing, goes
//! straight to the outgoing bytes and leaves no trace: that is the hit. Otherwise the request takes a slot, and the
//! slots leave in order as they are filled, whatever order the fetches finish in.
//!
//! Backpressure: with [`MAX_OPEN_REPLIES`] slots open or more than [`MAX_UNSENT_BYTES`] waiting, no further request is
//! decoded. What has been read stays here, nothing more is read, and the caller tries again after every change.

use crate::protocol::http::{self, Body, Command, Date, Head, Refusal, Shape, View};
use crate::protocol::{Decoded, Outgoing};
use crate::request::{Reply, Waiter};
use std::collections::VecDeque;

/// Most replies of a connection that are not complete. Enough to keep a pipelining client's fetches together in one
/// round trip; with the longest heads it bounds what one client can make the proxy hold.
pub const MAX_OPEN_REPLIES: usize = 128;

/// Beyond that many unsent bytes no further request is decoded. Twice a usual socket buffer's worth. Replies to requests
/// that are taken already may go over it: what they add are heads, and references to values that are not copied.
pub const MAX_UNSENT_BYTES: usize = 256 * 1024;

/// One client. See the top of the file.
#[derive(Debug)]
pub struct Connection {
    /// Counts connections, never reused: tells this one from others that had or will have its place.
    pub generation: u64,
    unparsed: Vec<u8>,
    body: Body,
    /// Sequence number of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    /// Bytes in the slots that are ready.
    held_bytes: usize,
    outgoing: Outgoing,
    phase: Phase,
}

/// A request whose reply cannot leave yet.
#[derive(Debug)]
enum Slot {
    Waiting(Shape),
    Ready(Outgoing),
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
        /// How to answer.
        shape: Shape,
        /// Bytes that it took.
        consumed: usize,
    },
    /// Something that needs no look at a key, and is dealt with. Bytes that it took.
    Passed(usize),
    /// Nothing that can go on now: more bytes must come, or replies must leave, or it is over.
    Stop,
}

impl Connection {
    /// A connection that has just been accepted.
    pub fn new(generation: u64) -> Connection {
        Connection {
            generation,
            unparsed: Vec::new(),
            body: Body::Done,
            first: 0,
            slots: VecDeque::new(),
            held_bytes: 0,
            outgoing: Outgoing::default(),
            phase: Phase::Open,
        }
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

    /// Whether a further request would be taken now.
    pub fn takes_requests(&self) -> bool {
        self.phase == Phase::Open
            && self.slots.len() < MAX_OPEN_REPLIES
            && self.outgoing.unsent() + self.held_bytes <= MAX_UNSENT_BYTES
    }

    /// Looks at the beginning of all bytes that are not consumed. Refusals are answered here; they go the way of every
    /// other reply.
    pub fn decode<'a>(&mut self, input: &'a [u8], key_scratch: &'a mut Vec<u8>, date: &Date) -> Step<'a> {
        if !self.takes_requests() || input.is_empty() {
            return Step::Stop;
        }
        if self.body != Body::Done {
            return match self.body.skip(input) {
                Ok(consumed) => Step::Passed(consumed),
                Err(http::Endless) => {
                    // The request that the body belongs to has its reply; a second one would answer nobody.
                    self.phase = Phase::Last { unread: true };
                    Step::Passed(input.len())
                }
            };
        }
        match http::decode(input, key_scratch) {
            Decoded::Incomplete => Step::Stop,
            Decoded::Complete(head, consumed) => self.begin(head, consumed, date),
            Decoded::Invalid(refusal) => {
                self.phase = Phase::Last { unread: true };
                let shape = Shape { view: View::Json, head_only: false, version_1_0: false, keep_alive: false };
                self.refuse(refusal, shape, date);
                Step::Passed(input.len())
            }
        }
    }

    /// Takes up a request.
    fn begin<'a>(&mut self, head: Head<'a>, consumed: usize, date: &Date) -> Step<'a> {
        if head.shape.keep_alive {
            self.body = head.body;
        } else {
            self.phase = Phase::Last { unread: head.body != Body::Done };
        }
        match head.command {
            Command::Get(key) => Step::Get { key, shape: head.shape, consumed },
            Command::Refuse(refusal) => {
                self.refuse(refusal, head.shape, date);
                Step::Passed(consumed)
            }
        }
    }

    fn refuse(&mut self, refusal: Refusal, shape: Shape, date: &Date) {
        self.answer(|out| http::encode_refusal(refusal, shape, date, out));
    }

    /// The sequence number that the request just decoded has, until it is replied to or noted.
    pub fn sequence(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    /// Replies to the request just decoded.
    pub fn reply_now(&mut self, shape: Shape, reply: &Reply<'_>, date: &Date) {
        self.answer(|out| http::encode_reply(reply, shape, date, out));
    }

    /// Notes that the request just decoded will be replied to later.
    pub fn wait(&mut self, shape: Shape) {
        self.slots.push_back(Slot::Waiting(shape));
    }

    /// Puts the reply to the request just decoded where it belongs: out, or behind those that wait.
    fn answer(&mut self, encode: impl FnOnce(&mut Outgoing)) {
        if self.slots.is_empty() {
            encode(&mut self.outgoing);
            self.first += 1;
        } else {
            let ready = self.hold(encode);
            self.slots.push_back(ready);
        }
    }

    /// A reply that has to wait for those before it.
    fn hold(&mut self, encode: impl FnOnce(&mut Outgoing)) -> Slot {
        let mut outgoing = Outgoing::default();
        encode(&mut outgoing);
        self.held_bytes += outgoing.unsent();
        Slot::Ready(outgoing)
    }

    /// Replies to an earlier request, if it is one of this connection and was not replied to before. Says whether it was.
    pub fn reply_later(&mut self, waiter: Waiter, reply: &Reply<'_>, date: &Date) -> bool {
        if waiter.generation != self.generation {
            return false;
        }
        let Some(place) = waiter.sequence.checked_sub(self.first) else { return false };
        let Some(&Slot::Waiting(shape)) = self.slots.get(place as usize) else { return false };
        if place == 0 {
            http::encode_reply(reply, shape, date, &mut self.outgoing);
            self.slots.pop_front();
            self.first += 1;
            self.release_ready();
        } else {
            let ready = self.hold(|out| http::encode_reply(reply, shape, date, out));
            self.slots[place as usize] = ready;
        }
        true
    }

    /// Sends off all replies that have none missing before them.
    fn release_ready(&mut self) {
        while let Some(Slot::Ready(outgoing)) = self.slots.front_mut() {
            self.held_bytes -= outgoing.unsent();
            self.outgoing.append(std::mem::take(outgoing));
            self.slots.pop_front();
            self.first += 1;
        }
        if self.slots.is_empty() {
            self.slots = VecDeque::new();
        }
    }

    /// The bytes to send.
    pub fn outgoing(&mut self) -> &mut Outgoing {
        &mut self.outgoing
    }

    /// Whether every reply that is due has been sent.
    pub fn is_settled(&self) -> bool {
        self.slots.is_empty() && self.outgoing.is_empty()
    }

    /// Whether no further request will be taken, whatever comes.
    pub fn has_ended(&self) -> bool {
        self.phase != Phase::Open
    }

    /// Whether the client may still be sending what nobody will read, so that closing has to wait for it.
    pub fn leaves_unread(&self) -> bool {
        matches!(self.phase, Phase::Last { unread: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Form, Outcome, Payload, Source};
    use std::io::IoSlice;
    use std::time::SystemTime;

    fn value(bytes: &[u8]) -> Reply<'_> {
        let payload = Payload::Inline { bytes, form: Form::Plain };
        Reply { outcome: Outcome::Value(payload), source: Source::Cache { remaining: 1000 } }
    }

    /// A connection whose requests wait, except for keys that begin with "hit".
    struct Client {
        connection: Connection,
        date: Date,
        asked: Vec<(u64, String)>,
    }

    impl Client {
        fn new() -> Client {
            Client { connection: Connection::new(1), date: Date::at(SystemTime::UNIX_EPOCH), asked: Vec::new() }
        }

        fn receive(&mut self, bytes: &[u8]) {
            let mut input = self.connection.take_unparsed();
            input.extend_from_slice(bytes);
            let (mut at, mut scratch) = (0, Vec::new());
            loop {
                match self.connection.decode(&input[at..], &mut scratch, &self.date) {
                    Step::Stop => break,
                    Step::Passed(consumed) => at += consumed,
                    Step::Get { key, shape, consumed } => {
                        at += consumed;
                        let key = String::from_utf8_lossy(key).into_owned();
                        if key.starts_with("hit") {
                            self.connection.reply_now(shape, &value(key.as_bytes()), &self.date);
                        } else {
                            self.asked.push((self.connection.sequence(), key));
                            self.connection.wait(shape);
                        }
                    }
                }
            }
            self.connection.keep(input.split_off(at));
        }

        fn complete(&mut self, sequence: u64, bytes: &str) {
            let waiter = Waiter { slot: 0, generation: 1, sequence };
            let stranger = Waiter { generation: 2, ..waiter };
            assert!(!self.connection.reply_later(stranger, &value(b"for another"), &self.date));
            self.connection.reply_later(waiter, &value(bytes.as_bytes()), &self.date);
        }

        /// Bodies of the responses that can be sent.
        fn sent(&mut self) -> Vec<String> {
            let mut sent = Vec::new();
            loop {
                let mut slices = [IoSlice::new(&[]); crate::protocol::WRITE_SLICES];
                let count = self.connection.outgoing().slices(&mut slices);
                if count == 0 {
                    break;
                }
                let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
                self.connection.outgoing().advance(bytes.len());
                sent.extend(bytes);
            }
            let text = String::from_utf8(sent).expect("text");
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
        let hit = get(&format!("hit{}", "x".repeat(10_000)));
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
