//! Tests of a connection without a socket, over both protocols.

use super::*;
use crate::client_auth::{ClientAuth, ClientPasswords, SharedPasswords};
use crate::metrics::Recorder;
use crate::protocol::MultiReply;
use crate::protocol::http::{HeadDecoder, Policy, ResponseDate};
use crate::types::{DeferredReply, Failure, KeyResult, Source};
use crate::value::{JsonForm, Payload, Value};
use std::sync::Arc;
use std::time::SystemTime;

/// Connection with a trivial cache: a key that begins with "hit" is its own value, any other key is
/// a miss. Requests for the same key are not collapsed: the test completes each of them.
struct Client {
    connection: Connection,
    date: ResponseDate,
    recorder: Recorder,
    /// Requests that were deferred, with their keys.
    pending: Vec<(RequestId, String)>,
}

impl Client {
    fn new() -> Client {
        let (date, recorder) = (ResponseDate::at(SystemTime::UNIX_EPOCH), Recorder::default());
        Client { connection: Connection::new(1, 0), date, recorder, pending: Vec::new() }
    }

    fn receive(&mut self, bytes: impl AsRef<[u8]>) {
        let (mut input, mut at) = (self.connection.take_unparsed(), 0);
        input.extend_from_slice(bytes.as_ref());
        let reply = ReplyContext { date: &self.date, recorder: &mut self.recorder };
        let (policy, mut head_decoder, mut auth) = (Policy::default(), HeadDecoder::new(), ClientAuth::default());
        let mut context = DecodeContext {
            policy: &policy,
            head_decoder: &mut head_decoder,
            auth: &mut auth,
            offers_tracking: true,
            reply,
        };
        loop {
            match self.connection.decode(&input[at..], &mut context) {
                DecodeStep::Blocked => break,
                DecodeStep::Consumed(consumed) => at += consumed,
                DecodeStep::Get { key, format, consumed, .. } => {
                    at += consumed;
                    let key = key.to_vec();
                    if key.starts_with(b"hit") {
                        let hit = Reply { source: Source::Cache { ttl: 1000 }, ..reply_of_redis(value(&key)) };
                        self.connection.reply_now(&format, &hit, &mut context.reply);
                    } else {
                        let key = String::from_utf8_lossy(&key).into_owned();
                        self.pending.push((self.connection.request_id(0), key));
                        self.connection.defer(format, &mut context.reply);
                    }
                }
                DecodeStep::Keys => {
                    let (input, limits) = (&input[at..], KeyAmount { keys: usize::MAX, copied: usize::MAX });
                    let pending = &mut self.pending;
                    let look_up = |key: &[u8], _, request_id, multi: &mut MultiReply| {
                        if key.starts_with(b"hit") {
                            multi.push(&Reply { source: Source::Cache { ttl: 1000 }, ..reply_of_redis(value(key)) });
                            return Some(key.len());
                        }
                        pending.push((request_id, String::from_utf8_lossy(key).into_owned()));
                        multi.push_pending();
                        None
                    };
                    match self.connection.decode_keys(0, input, limits, &mut context.reply, look_up) {
                        (_, 0) => break,
                        (_, consumed) => at += consumed,
                    }
                }
                other => panic!("{other:?} is not a request for a key"),
            }
        }
        self.connection.store_unparsed(input.split_off(at));
    }

    fn reply_later(&mut self, request_id: RequestId, result: KeyResult<'_>) -> bool {
        let mut context = ReplyContext { date: &self.date, recorder: &mut self.recorder };
        let reply = DeferredReply { reply: reply_of_redis(result), unreported_key: None };
        self.connection.reply_later(request_id, &reply, &mut context)
    }

    /// Completes the deferred request at `index`.
    fn complete(&mut self, index: usize, result: KeyResult<'_>) -> bool {
        self.reply_later(self.pending[index].0, result)
    }

    /// Completes the request with this sequence number. A reply for another connection has no
    /// effect.
    fn complete_request(&mut self, sequence: u64, text: &str) {
        let request_id = RequestId { slot: 0, connection_id: 1, sequence, part: 0 };
        let other_connection = RequestId { connection_id: 2, ..request_id };
        assert!(!self.reply_later(other_connection, text_value("for another connection")));
        self.reply_later(request_id, text_value(text));
    }

    /// Returns the sequence numbers and keys of the deferred requests.
    fn pending(&self) -> Vec<(u64, &str)> {
        self.pending.iter().map(|(request_id, key)| (request_id.sequence, key.as_str())).collect()
    }

    /// Takes the bytes that can be sent.
    fn take_sent(&mut self) -> String {
        String::from_utf8(self.connection.send_buffer().drain(usize::MAX)).expect("UTF-8")
    }

    /// Takes the bodies of the HTTP responses that can be sent.
    fn take_bodies(&mut self) -> Vec<String> {
        let body = |response: &str| response.split_once("\r\n\r\n").expect("a response head").1.to_owned();
        self.take_sent().split("HTTP/1.1 ").skip(1).map(body).collect()
    }
}

fn value(bytes: &[u8]) -> KeyResult<'_> {
    KeyResult::Value(Payload::Inline { bytes, form: JsonForm::Plain })
}

fn text_value(text: &str) -> KeyResult<'_> {
    value(text.as_bytes())
}

fn reply_of_redis(result: KeyResult<'_>) -> Reply<'_> {
    Reply { result, source: Source::Redis { collapsed: false, stored: None }, tracked: false }
}

fn command(words: &[&str]) -> String {
    let words: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
    format!("*{}\r\n{words}", words.matches('$').count())
}

fn get(key: &str) -> Vec<u8> {
    format!("GET /raw/{key} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes()
}

/// Replies leave in request order, in whatever order the fetches finish.
#[test]
fn replies_leave_in_request_order() {
    let mut client = Client::new();
    client.receive([get("a"), get("hit1"), get("b"), get("hit2"), get("c")].concat());
    assert_eq!(client.pending(), [(0, "a"), (2, "b"), (4, "c")]);
    assert!(client.take_bodies().is_empty(), "a hit was sent before an earlier miss");
    client.complete_request(4, "C");
    client.complete_request(2, "B");
    assert!(client.take_bodies().is_empty());
    client.complete_request(0, "A");
    assert_eq!(client.take_bodies(), ["A", "hit1", "B", "hit2", "C"]);
    assert!(client.connection.is_flushed());
    client.receive(get("d"));
    assert_eq!(client.pending()[3], (5, "d"));
    client.complete_request(4, "second reply");
    client.complete_request(99, "no such request");
    assert!(client.take_bodies().is_empty());
    client.complete_request(5, "D");
    assert_eq!(client.take_bodies(), ["D"]);
}

/// Decoding stops at the limit of pending replies, and resumes when one is complete.
#[test]
fn decoding_stops_at_max_pending_replies() {
    let mut client = Client::new();
    let all: Vec<u8> = (0..MAX_PENDING_REPLIES + 50).flat_map(|number| get(&number.to_string())).collect();
    client.receive(&all);
    assert_eq!(client.pending.len(), MAX_PENDING_REPLIES);
    assert!(!client.connection.can_take_request() && client.connection.has_unparsed());
    client.complete_request(0, "first");
    client.receive(b"");
    assert_eq!(client.pending.len(), MAX_PENDING_REPLIES + 1);
    for sequence in 1..MAX_PENDING_REPLIES as u64 + 1 {
        client.complete_request(sequence, "more");
    }
    client.receive(b"");
    assert_eq!(client.pending.len(), MAX_PENDING_REPLIES + 50);
    assert!(!client.connection.has_unparsed());
}

/// Decoding stops at the limit of unsent bytes, and resumes once they are sent.
#[test]
fn decoding_stops_at_max_unsent_bytes() {
    let mut client = Client::new();
    let mut requests = 0;
    while client.connection.can_take_request() {
        client.receive(get(&format!("hit{}", "x".repeat(1000))));
        requests += 1;
        assert!(requests < 1000, "unsent bytes are not bounded");
    }
    client.receive(get("hit-next"));
    assert!(client.connection.has_unparsed());
    assert_eq!(client.take_bodies().len(), requests);
    client.receive(b"");
    assert_eq!(client.take_bodies(), ["hit-next"]);
}

/// Complete replies that share a buffer leave in order, each once, whichever fetch finishes first.
#[test]
fn adjacent_replies_leave_once_in_order() {
    let commands = ["a", "hit1", "hit2", "b", "hit3", "c", "hit4", "hit5"].map(get).concat();
    for completions in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut client = Client::new();
        client.receive(&commands);
        let mut sent = Vec::new();
        for index in completions {
            let key = client.pending[index].1.clone();
            assert!(client.complete(index, text_value(&key)));
            sent.extend(client.take_bodies());
        }
        assert_eq!(sent, ["a", "hit1", "hit2", "b", "hit3", "c", "hit4", "hit5"], "{completions:?}");
        assert!(client.connection.is_flushed());
        // The buffer of several replies was counted once, and is not counted any more.
        assert_eq!(client.connection.replies.unsent_bytes(), 0);
    }
}

/// Hits that are queued behind a miss count as unsent bytes.
#[test]
fn hits_behind_miss_count_as_unsent() {
    let mut client = Client::new();
    client.receive(get("a"));
    let hit = get(&format!("hit{}", "x".repeat(8000)));
    (0..MAX_PENDING_REPLIES / 2).for_each(|_| client.receive(&hit));
    assert!(client.connection.has_unparsed(), "the hits behind a miss are not bounded");
    client.complete_request(0, "A");
    let mut replies = client.take_bodies().len();
    assert!((20..40).contains(&replies), "{replies}");
    while client.connection.has_unparsed() {
        client.receive(b"");
        replies += client.take_bodies().len();
    }
    assert_eq!(replies, 1 + MAX_PENDING_REPLIES / 2);
}

/// The replies do not depend on how the input is split.
#[test]
fn split_input_gives_same_replies() {
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
    let expected = whole.take_bodies();
    assert_eq!(expected.len(), 5, "{expected:?}");
    assert!(whole.connection.is_closing() && whole.connection.needs_linger());
    for split in 1..all.len() {
        let mut client = Client::new();
        client.receive(&all[..split]);
        client.receive(&all[split..]);
        assert_eq!(client.take_bodies(), expected, "split at {split}");
    }
    let mut client = Client::new();
    all.iter().for_each(|byte| client.receive([*byte]));
    assert_eq!(client.take_bodies(), expected, "byte by byte");
}

/// An incomplete request keeps its number from its first byte to its last: timeouts rely on it.
#[test]
fn partial_request_keeps_its_number() {
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
                client.receive([*byte]);
            }
            // The last byte arrives together with the first of the next request.
            client.receive(format!("{}{}", &message[message.len() - 1..], &message[..starts]).as_bytes());
        }
        assert_eq!(client.connection.partial_request(), Some(3), "{message:?}");
    }
}

/// After the last request nothing is taken. Closing lingers only if the client may still be
/// sending.
#[test]
fn closing_connection_takes_no_request() {
    let mut client = Client::new();
    client.receive(b"GET /raw/hit HTTP/1.0\r\n\r\n");
    assert_eq!(client.take_bodies(), ["hit"]);
    assert!(client.connection.is_closing() && !client.connection.needs_linger());
    let mut client = Client::new();
    client.receive(b"GET /raw/hit HTTP/1.0\r\n\r\nGET /raw/hit HTTP/1.0\r\n\r\n");
    assert_eq!(client.take_bodies(), ["hit"]);
    assert!(client.connection.needs_linger());
    let mut client = Client::new();
    client.receive(b"GET /raw/hit HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n");
    assert_eq!(client.take_bodies(), ["hit"]);
    assert!(client.connection.needs_linger());
}

/// A reply for several keys leaves whole, and in request order.
#[test]
fn multi_reply_leaves_whole_in_order() {
    let mut client = Client::new();
    client.receive(command(&["MGET", "hit1", "a", "hit2", "a", "b"]));
    client.receive(command(&["PING"]) + &command(&["GET", "c"]) + &command(&["MGET", "hit3"]));
    let pending: Vec<_> = client.pending.iter().map(|(id, key)| (id.sequence, id.part, key.as_str())).collect();
    assert_eq!(pending, [(0, 1, "a"), (0, 3, "a"), (0, 4, "b"), (2, 0, "c")]);
    assert!(client.complete(3, text_value("C")) && client.complete(2, KeyResult::Missing));
    assert!(
        client.complete(0, text_value("A")) && client.take_sent().is_empty(),
        "the reply left before it was complete"
    );
    assert!(!client.complete(0, text_value("twice")) && !client.connection.is_flushed());
    assert!(client.complete(1, text_value("")));
    let mget = "*5\r\n$4\r\nhit1\r\n$1\r\nA\r\n$4\r\nhit2\r\n$0\r\n\r\n$-1\r\n";
    assert_eq!(client.take_sent(), format!("{mget}+PONG\r\n$1\r\nC\r\n*1\r\n$4\r\nhit3\r\n"));
    assert!(client.connection.is_flushed());
    client.receive(command(&["EXISTS", "hit", "d", "hit", "e"]));
    assert!(client.complete(4, KeyResult::Failed(&Failure::WrongType)) && client.complete(5, KeyResult::Missing));
    assert_eq!(client.take_sent(), ":3\r\n");
}

/// A key that cannot be read makes the whole reply an error.
#[test]
fn failed_key_fails_multi_reply() {
    let mut client = Client::new();
    client.receive(command(&["MGET", "a", "b", "hit"]) + &command(&["PING"]));
    assert!(client.complete(0, text_value("A")) && client.complete(1, KeyResult::Failed(&Failure::Unavailable)));
    let error = client.take_sent();
    assert!(error.starts_with("-LOADING Redis is unreachable") && error.ends_with("\r\n+PONG\r\n"), "{error}");
    // The remaining keys of the command are decoded, and not looked up.
    client.receive("*4\r\n$4\r\nMGET\r\n$1\r\na\r\n");
    client.complete(2, KeyResult::Failed(&Failure::TooLong));
    client.receive("$1\r\nb\r\n");
    assert!(client.take_sent().is_empty());
    client.receive("$1\r\nc\r\n".to_owned() + &command(&["PING"]));
    assert_eq!(client.pending.len(), 3);
    let error = client.take_sent();
    assert!(error.contains("MAX_VALUE_BYTES") && error.ends_with("\r\n+PONG\r\n"), "{error}");
    // A key of another type has no value, as in Redis.
    client.receive(command(&["MGET", "a"]));
    client.complete(3, KeyResult::Failed(&Failure::WrongType));
    assert_eq!(client.take_sent(), "*1\r\n$-1\r\n");
}

/// A command with an error in its middle gets one reply.
#[test]
fn broken_command_is_answered_once() {
    let mut client = Client::new();
    client.receive("*4\r\n$4\r\nMGET\r\n$1\r\na\r\n$3\r\nhit\r\n");
    assert!(client.connection.is_flushed(), "an incomplete command has a reply");
    client.receive("fooz\r\n");
    assert_eq!(client.take_sent(), "-ERR Protocol error: expected '$', got 'f'\r\n");
    assert!(client.connection.is_closing() && client.connection.is_flushed() && client.connection.needs_linger());
    assert!(!client.complete(0, text_value("late")));
    assert!(client.take_sent().is_empty());

    let mut client = Client::new();
    client.receive(command(&["GET", "a"]) + "*2\r\n$4\r\nMGET\r\n" + "$70000\r\n");
    client.receive("x".repeat(70_000) + "\r\n" + &command(&["PING"]));
    assert!(client.take_sent().is_empty());
    client.complete(0, text_value("A"));
    let sent = client.take_sent();
    assert!(sent.starts_with("$1\r\nA\r\n-ERR argument too long") && sent.ends_with("\r\n+PONG\r\n"), "{sent}");
}

/// The keys of one command are fetched a bounded number at a time.
#[test]
fn multi_command_stops_at_max_pending_keys() {
    let mut client = Client::new();
    let keys: Vec<String> = (0..MAX_PENDING_KEYS + 500).map(|number| number.to_string()).collect();
    let words: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
    client.receive(command(&words) + &command(&["QUIT"]));
    assert_eq!(client.pending.len(), MAX_PENDING_KEYS);
    assert!(!client.connection.can_take_request() && client.connection.has_unparsed());
    for index in 0..MAX_PENDING_KEYS + 500 {
        let text = client.pending[index].1.clone();
        assert!(client.complete(index, text_value(&text)));
        client.receive("");
        assert!(client.pending.len() - index <= MAX_PENDING_KEYS + 1);
    }
    let values: String = keys.iter().map(|key| format!("${}\r\n{key}\r\n", key.len())).collect();
    assert_eq!(client.take_sent(), format!("*{}\r\n{values}+OK\r\n", keys.len()));
    assert!(client.connection.is_closing() && !client.connection.needs_linger());
}

/// The latency of a command runs from its last byte to its last key. The time before is the
/// client's.
#[test]
fn multi_latency_starts_at_last_byte() {
    let mut client = Client::new();
    client.recorder.set_now(1000);
    client.receive("*3\r\n$4\r\nMGET\r\n$1\r\na\r\n");
    client.recorder.set_now(5000);
    client.receive("$1\r\nb\r\n");
    for (index, now) in [(1, 5200), (0, 5300)] {
        client.recorder.set_now(now);
        client.complete(index, KeyResult::Missing);
    }
    assert_eq!(
        (client.recorder.metrics.miss_latency.sum(), client.recorder.metrics.miss_latency.counts().sum::<u64>()),
        (300, 1)
    );
}

/// Keys of a discarded reply count as pending until they are fetched. Otherwise one client could
/// fill the job queue with broken commands.
#[test]
fn discarded_keys_stay_pending() {
    let mut client = Client::new();
    let keys: Vec<String> = (0..MAX_PENDING_KEYS - 1).map(|number| number.to_string()).collect();
    let words: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
    let mget = command(&words).replacen("*1024\r\n", "*1025\r\n", 1);
    client.receive(mget + "$70000\r\n" + &"x".repeat(70_000) + "\r\n");
    assert!(client.take_sent().starts_with("-ERR argument too long") && client.connection.is_flushed());
    client.receive(command(&["GET", "a"]) + &command(&["GET", "b"]));
    assert_eq!(client.pending.len(), MAX_PENDING_KEYS);
    assert!(!client.complete(0, text_value("discarded")));
    client.receive("");
    assert_eq!(client.pending.len(), MAX_PENDING_KEYS + 1);
}

/// The bytes of a multi-key reply are bounded, except for a single value of any length.
#[test]
fn multi_reply_bytes_are_bounded() {
    let value = Arc::new(Value::new(vec![b'x'; 40 * 1024 * 1024]));
    let long = || KeyResult::Value(Payload::Shared(&value));
    let mut client = Client::new();
    client.receive(command(&["MGET", "a", "b"]) + &command(&["MGET", "c", "hit"]) + &command(&["MGET", "d", "e"]));
    assert!(client.complete(0, long()) && client.complete(1, long()));
    assert_eq!(Arc::strong_count(&value), 1, "a failed reply holds values");
    assert!(client.take_sent().starts_with("-ERR the reply would be longer than 67108864 bytes"));
    assert!(client.complete(2, long()));
    assert_eq!(client.take_sent().len(), "*2\r\n$41943040\r\n\r\n$3\r\nhit\r\n".len() + value.bytes.len());
    let longest = Arc::new(Value::new(vec![b'x'; 65 * 1024 * 1024]));
    client.receive(command(&["MGET", "alone"]));
    client.complete(5, KeyResult::Value(Payload::Shared(&longest)));
    // The values of an incomplete reply count as unsent.
    assert!(client.complete(3, long()) && !client.connection.can_take_request());
    client.complete(4, KeyResult::Missing);
    assert!(client.take_sent().ends_with("x\r\n"), "the longest value was not sent");
    assert!(client.connection.can_take_request() && client.connection.is_flushed());
    assert_eq!(Arc::strong_count(&value), 1);
}

/// Conditions of pending requests count as unsent, so they do not accumulate without bound.
#[test]
fn conditions_of_pending_requests_count() {
    let tags = "\"0123456789abcdef\",".repeat(700);
    let request = |key: &str| format!("GET /raw/{key} HTTP/1.1\r\nHost: x\r\nIf-None-Match: {tags}\r\n\r\n");
    let mut client = Client::new();
    let mut requests = 0;
    while client.connection.can_take_request() && requests < 100 {
        client.receive(request("miss"));
        requests += 1;
    }
    assert!((10..50).contains(&requests), "{requests} requests with 700 tags each are pending");
    (0..requests).for_each(|index| assert!(client.complete(index, text_value("x"))));
    assert!(client.connection.can_take_request());
    client.take_sent();
    client.receive(request("hit"));
    assert!(client.take_sent().starts_with("HTTP/1.1 200 "));
    assert!(client.connection.is_flushed() && client.connection.replies.unsent_bytes() == 0);
}

/// Before authentication no key is found that a request would look up, over either protocol.
#[test]
fn unauthenticated_client_has_no_upcoming_keys() {
    let passwords = || ClientPasswords::parse("secret").expect("a valid password");
    let required = || ClientAuth::required(Arc::new(SharedPasswords::new(passwords())));
    let http = "GET /key/a HTTP/1.1\r\nHost: x\r\n\r\n";
    for input in [http, "*2\r\n$3\r\nGET\r\n$1\r\na\r\n"] {
        for (mut auth, expected) in [(ClientAuth::default(), 1), (required(), 0)] {
            let mut client = Client::new();
            let (policy, mut head_decoder) = (Policy::default(), HeadDecoder::new());
            let reply = ReplyContext { date: &client.date, recorder: &mut client.recorder };
            let mut context = DecodeContext {
                policy: &policy,
                head_decoder: &mut head_decoder,
                auth: &mut auth,
                offers_tracking: true,
                reply,
            };
            // The protocol and the header fields are known afterwards.
            assert_ne!(client.connection.decode(input.as_bytes(), &mut context), DecodeStep::Blocked);
            let mut keys = UpcomingKeys::new();
            client.connection.find_upcoming_keys(input.as_bytes(), &head_decoder, &auth, &mut keys);
            assert_eq!(keys.as_slice().len(), expected, "{input}");
        }
    }
}
