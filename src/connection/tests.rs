//! Tests of a connection without a socket, over both protocols.

use super::*;
use crate::protocol::http::{HeadDecoder, Policy, ResponseDate};
use crate::value::{JsonForm, Payload, Value};
use std::sync::Arc;
use std::time::SystemTime;

/// Connection whose lookups all miss, except for keys that begin with "hit", which are their own
/// values. Unlike the read-through cache it does not coalesce: each key is completed by itself.
struct Client {
    connection: Connection,
    date: ResponseDate,
    recorder: Recorder,
    /// Requests that wait, with their keys.
    asked: Vec<(RequestId, String)>,
}

impl Client {
    fn new() -> Client {
        let (date, recorder) = (ResponseDate::at(SystemTime::UNIX_EPOCH), Recorder::default());
        Client { connection: Connection::new(1, 0), date, recorder, asked: Vec::new() }
    }

    fn receive(&mut self, bytes: impl AsRef<[u8]>) {
        let (mut input, mut at) = (self.connection.take_unparsed(), 0);
        input.extend_from_slice(bytes.as_ref());
        let reply = ReplyContext { date: &self.date, recorder: &mut self.recorder };
        let mut context = DecodeContext { policy: &Policy::default(), head_decoder: &mut HeadDecoder::new(), reply };
        loop {
            match self.connection.decode(&input[at..], &mut context) {
                DecodeStep::Blocked => break,
                DecodeStep::Consumed(consumed) => at += consumed,
                DecodeStep::Get { key, mode, consumed, .. } => {
                    at += consumed;
                    let key = key.to_vec();
                    if key.starts_with(b"hit") {
                        let hit = Reply { source: Source::Cache { ttl: 1000 }, ..from_redis(value(&key)) };
                        self.connection.reply_now(mode, &hit, &mut context.reply);
                    } else {
                        let key = String::from_utf8_lossy(&key).into_owned();
                        self.asked.push((self.connection.request_id(0), key));
                        self.connection.defer(mode, context.reply.recorder);
                    }
                }
                other => panic!("{other:?} is not about a key"),
            }
        }
        self.connection.store_unparsed(input.split_off(at));
    }

    fn reply_later(&mut self, request_id: RequestId, outcome: KeyResult<'_>) -> bool {
        let mut context = ReplyContext { date: &self.date, recorder: &mut self.recorder };
        self.connection.reply_later(request_id, &from_redis(outcome), &mut context)
    }

    /// Completes the key that was asked for after `number` others.
    fn complete(&mut self, number: usize, outcome: KeyResult<'_>) -> bool {
        self.reply_later(self.asked[number].0, outcome)
    }

    /// Completes the request with this sequence number.
    fn complete_request(&mut self, sequence: u64, text: &str) {
        let request_id = RequestId { slot: 0, connection_id: 1, sequence, part: 0 };
        let stranger = RequestId { connection_id: 2, ..request_id };
        assert!(!self.reply_later(stranger, short("for another")));
        self.reply_later(request_id, short(text));
    }

    /// Returns the sequence numbers and keys of the requests that waited.
    fn asked(&self) -> Vec<(u64, &str)> {
        self.asked.iter().map(|(request_id, key)| (request_id.sequence, key.as_str())).collect()
    }

    /// Takes the bytes that can be sent.
    fn sent(&mut self) -> String {
        String::from_utf8(self.connection.send_buffer().drain(usize::MAX)).expect("text")
    }

    /// Takes the bodies of the HTTP responses that can be sent.
    fn bodies(&mut self) -> Vec<String> {
        let body = |response: &str| response.split_once("\r\n\r\n").expect("a head").1.to_owned();
        self.sent().split("HTTP/1.1 ").skip(1).map(body).collect()
    }
}

fn value(bytes: &[u8]) -> KeyResult<'_> {
    KeyResult::Value(Payload::Inline { bytes, form: JsonForm::Plain })
}

fn short(text: &str) -> KeyResult<'_> {
    value(text.as_bytes())
}

fn from_redis(outcome: KeyResult<'_>) -> Reply<'_> {
    Reply { outcome, source: Source::Redis { collapsed: false, stored: None }, tracked: false }
}

fn command(words: &[&str]) -> String {
    let words: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
    format!("*{}\r\n{words}", words.matches('$').count())
}

fn get(key: &str) -> Vec<u8> {
    format!("GET /raw/{key} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes()
}

#[test]
fn replies_leave_in_request_order_however_fetches_finish() {
    let mut client = Client::new();
    client.receive([get("a"), get("hit1"), get("b"), get("hit2"), get("c")].concat());
    assert_eq!(client.asked(), [(0, "a"), (2, "b"), (4, "c")]);
    assert!(client.bodies().is_empty(), "a hit overtook a miss");
    client.complete_request(4, "C");
    client.complete_request(2, "B");
    assert!(client.bodies().is_empty());
    client.complete_request(0, "A");
    assert_eq!(client.bodies(), ["A", "hit1", "B", "hit2", "C"]);
    assert!(client.connection.is_flushed());
    client.receive(get("d"));
    assert_eq!(client.asked()[3], (5, "d"));
    client.complete_request(4, "late, twice");
    client.complete_request(99, "never asked");
    assert!(client.bodies().is_empty());
    client.complete_request(5, "D");
    assert_eq!(client.bodies(), ["D"]);
}

#[test]
fn at_the_bound_of_open_replies_it_stops_and_goes_on_afterwards() {
    let mut client = Client::new();
    let all: Vec<u8> = (0..MAX_PENDING_REPLIES + 50).flat_map(|number| get(&number.to_string())).collect();
    client.receive(&all);
    assert_eq!(client.asked.len(), MAX_PENDING_REPLIES);
    assert!(!client.connection.can_take_request() && client.connection.has_unparsed());
    client.complete_request(0, "first");
    client.receive(b"");
    assert_eq!(client.asked.len(), MAX_PENDING_REPLIES + 1);
    for sequence in 1..MAX_PENDING_REPLIES as u64 + 1 {
        client.complete_request(sequence, "more");
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
        client.receive(get(&format!("hit{}", "x".repeat(1000))));
        requests += 1;
        assert!(requests < 1000, "nothing bounds the unsent bytes");
    }
    client.receive(get("hit-next"));
    assert!(client.connection.has_unparsed());
    assert_eq!(client.bodies().len(), requests);
    client.receive(b"");
    assert_eq!(client.bodies(), ["hit-next"]);
}

#[test]
fn hits_that_wait_behind_a_miss_count_as_unsent() {
    let mut client = Client::new();
    client.receive(get("a"));
    let hit = get(&format!("hit{}", "x".repeat(8000)));
    (0..MAX_PENDING_REPLIES / 2).for_each(|_| client.receive(&hit));
    assert!(client.connection.has_unparsed(), "hits pile up behind a miss");
    client.complete_request(0, "A");
    let mut replies = client.bodies().len();
    assert!((20..40).contains(&replies), "{replies}");
    while client.connection.has_unparsed() {
        client.receive(b"");
        replies += client.bodies().len();
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
    let expected = whole.bodies();
    assert_eq!(expected.len(), 5, "{expected:?}");
    assert!(whole.connection.is_closing() && whole.connection.needs_linger());
    for split in 1..all.len() {
        let mut client = Client::new();
        client.receive(&all[..split]);
        client.receive(&all[split..]);
        assert_eq!(client.bodies(), expected, "split at {split}");
    }
    let mut client = Client::new();
    all.iter().for_each(|byte| client.receive([*byte]));
    assert_eq!(client.bodies(), expected, "byte by byte");
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
                client.receive([*byte]);
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
    assert_eq!(client.bodies(), ["hit"]);
    assert!(client.connection.is_closing() && !client.connection.needs_linger());
    let mut client = Client::new();
    client.receive(b"GET /raw/hit HTTP/1.0\r\n\r\nGET /raw/hit HTTP/1.0\r\n\r\n");
    assert_eq!(client.bodies(), ["hit"]);
    assert!(client.connection.needs_linger());
    let mut client = Client::new();
    client.receive(b"GET /raw/hit HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n");
    assert_eq!(client.bodies(), ["hit"]);
    assert!(client.connection.needs_linger());
}
#[test]
fn a_reply_out_of_several_keys_leaves_whole_and_in_its_turn() {
    let mut client = Client::new();
    client.receive(command(&["MGET", "hit1", "a", "hit2", "a", "b"]));
    client.receive(command(&["PING"]) + &command(&["GET", "c"]) + &command(&["MGET", "hit3"]));
    let asked: Vec<_> = client.asked.iter().map(|(waiter, key)| (waiter.sequence, waiter.part, key.as_str())).collect();
    assert_eq!(asked, [(0, 1, "a"), (0, 3, "a"), (0, 4, "b"), (2, 0, "c")]);
    assert!(client.complete(3, short("C")) && client.complete(2, KeyResult::Missing));
    assert!(client.complete(0, short("A")) && client.sent().is_empty(), "it left before it was whole");
    assert!(!client.complete(0, short("twice")) && !client.connection.is_flushed());
    assert!(client.complete(1, short("")));
    let mget = "*5\r\n$4\r\nhit1\r\n$1\r\nA\r\n$4\r\nhit2\r\n$0\r\n\r\n$-1\r\n";
    assert_eq!(client.sent(), format!("{mget}+PONG\r\n$1\r\nC\r\n*1\r\n$4\r\nhit3\r\n"));
    assert!(client.connection.is_flushed());
    client.receive(command(&["EXISTS", "hit", "d", "hit", "e"]));
    assert!(client.complete(4, KeyResult::Failed(&Failure::WrongType)) && client.complete(5, KeyResult::Missing));
    assert_eq!(client.sent(), ":3\r\n");
}

#[test]
fn a_key_that_cannot_be_read_makes_the_whole_reply_an_error() {
    let mut client = Client::new();
    client.receive(command(&["MGET", "a", "b", "hit"]) + &command(&["PING"]));
    assert!(client.complete(0, short("A")) && client.complete(1, KeyResult::Failed(&Failure::Unavailable)));
    let error = client.sent();
    assert!(error.starts_with("-LOADING Redis is unreachable") && error.ends_with("\r\n+PONG\r\n"), "{error}");
    // The rest of a command is read, and not looked up.
    client.receive("*4\r\n$4\r\nMGET\r\n$1\r\na\r\n");
    client.complete(2, KeyResult::Failed(&Failure::TooLong));
    client.receive("$1\r\nb\r\n");
    assert!(client.sent().is_empty());
    client.receive("$1\r\nc\r\n".to_owned() + &command(&["PING"]));
    assert_eq!(client.asked.len(), 3);
    let error = client.sent();
    assert!(error.contains("MAX_VALUE_BYTES") && error.ends_with("\r\n+PONG\r\n"), "{error}");
    // Another type is no value, as in Redis.
    client.receive(command(&["MGET", "a"]));
    client.complete(3, KeyResult::Failed(&Failure::WrongType));
    assert_eq!(client.sent(), "*1\r\n$-1\r\n");
}

#[test]
fn a_command_that_breaks_off_is_answered_once() {
    let mut client = Client::new();
    client.receive("*4\r\n$4\r\nMGET\r\n$1\r\na\r\n$3\r\nhit\r\n");
    assert!(client.connection.is_flushed(), "nothing is due before it is whole");
    client.receive("fooz\r\n");
    assert_eq!(client.sent(), "-ERR Protocol error: expected '$', got 'f'\r\n");
    assert!(client.connection.is_closing() && client.connection.is_flushed() && client.connection.needs_linger());
    assert!(!client.complete(0, short("late")));
    assert!(client.sent().is_empty());

    let mut client = Client::new();
    client.receive(command(&["GET", "a"]) + "*2\r\n$4\r\nMGET\r\n" + "$70000\r\n");
    client.receive("x".repeat(70_000) + "\r\n" + &command(&["PING"]));
    assert!(client.sent().is_empty());
    client.complete(0, short("A"));
    let sent = client.sent();
    assert!(sent.starts_with("$1\r\nA\r\n-ERR argument too long") && sent.ends_with("\r\n+PONG\r\n"), "{sent}");
}

#[test]
fn keys_of_one_command_are_read_a_bounded_number_at_a_time() {
    let mut client = Client::new();
    let keys: Vec<String> = (0..MAX_PENDING_KEYS + 500).map(|number| number.to_string()).collect();
    let words: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
    client.receive(command(&words) + &command(&["QUIT"]));
    assert_eq!(client.asked.len(), MAX_PENDING_KEYS);
    assert!(!client.connection.can_take_request() && client.connection.has_unparsed());
    for number in 0..MAX_PENDING_KEYS + 500 {
        let text = client.asked[number].1.clone();
        assert!(client.complete(number, short(&text)));
        client.receive("");
        assert!(client.asked.len() - number <= MAX_PENDING_KEYS + 1);
    }
    let values: String = keys.iter().map(|key| format!("${}\r\n{key}\r\n", key.len())).collect();
    assert_eq!(client.sent(), format!("*{}\r\n{values}+OK\r\n", keys.len()));
    assert!(client.connection.is_closing() && !client.connection.needs_linger());
}

/// Its client takes the time that it takes to say which keys; the rest is the proxy's.
#[test]
fn a_command_takes_from_its_end_to_its_last_key() {
    let mut client = Client::new();
    client.recorder.set_now(1000);
    client.receive("*3\r\n$4\r\nMGET\r\n$1\r\na\r\n");
    client.recorder.set_now(5000);
    client.receive("$1\r\nb\r\n");
    for (number, now) in [(1, 5200), (0, 5300)] {
        client.recorder.set_now(now);
        client.complete(number, KeyResult::Missing);
    }
    assert_eq!(
        (client.recorder.metrics.miss_latency.sum(), client.recorder.metrics.miss_latency.counts().sum::<u64>()),
        (300, 1)
    );
}

/// Or one client could fill the queue to Redis with commands that it breaks off.
#[test]
fn keys_that_nobody_needs_any_more_count_as_long_as_they_are_read() {
    let mut client = Client::new();
    let keys: Vec<String> = (0..MAX_PENDING_KEYS - 1).map(|number| number.to_string()).collect();
    let words: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
    let mget = command(&words).replacen("*1024\r\n", "*1025\r\n", 1);
    client.receive(mget + "$70000\r\n" + &"x".repeat(70_000) + "\r\n");
    assert!(client.sent().starts_with("-ERR argument too long") && client.connection.is_flushed());
    client.receive(command(&["GET", "a"]) + &command(&["GET", "b"]));
    assert_eq!(client.asked.len(), MAX_PENDING_KEYS);
    assert!(!client.complete(0, short("of no use")));
    client.receive("");
    assert_eq!(client.asked.len(), MAX_PENDING_KEYS + 1);
}

#[test]
fn what_a_reply_may_hold_is_bounded_but_one_value_always_fits() {
    let value = Arc::new(Value::new(vec![b'x'; 40 * 1024 * 1024]));
    let long = || KeyResult::Value(Payload::Shared(&value));
    let mut client = Client::new();
    client.receive(command(&["MGET", "a", "b"]) + &command(&["MGET", "c", "hit"]) + &command(&["MGET", "d", "e"]));
    assert!(client.complete(0, long()) && client.complete(1, long()));
    assert_eq!(Arc::strong_count(&value), 1, "a reply that failed holds values");
    assert!(client.sent().starts_with("-ERR the reply would be longer than 67108864 bytes"));
    assert!(client.complete(2, long()));
    assert_eq!(client.sent().len(), "*2\r\n$41943040\r\n\r\n$3\r\nhit\r\n".len() + value.bytes.len());
    let longest = Arc::new(Value::new(vec![b'x'; 65 * 1024 * 1024]));
    client.receive(command(&["MGET", "alone"]));
    client.complete(5, KeyResult::Value(Payload::Shared(&longest)));
    // What one that is not complete holds counts as unsent.
    assert!(client.complete(3, long()) && !client.connection.can_take_request());
    client.complete(4, KeyResult::Missing);
    assert!(client.sent().ends_with("x\r\n"), "the longest was not sent");
    assert!(client.connection.can_take_request() && client.connection.is_flushed());
    assert_eq!(Arc::strong_count(&value), 1);
}
