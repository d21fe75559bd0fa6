//! Tests of a turn, with real sockets.

use super::*;
use crate::cache;
use crate::client_auth::ClientAuth;
use crate::connection::{DecodeContext, ReplyContext};
use crate::dispatch::MAX_STEPS_PER_TURN;
use crate::metrics::{MetricsRegistry, Recorder, WorkerSlot};
use crate::protocol::http::{HeadDecoder, Policy, ResponseDate};
use crate::read_through::{Lookup, ReadThrough};
use crate::types::{Access, Completion, FetchedValue, RequestId};
use crate::value::Value;
use mio::net::TcpStream;
use socket2::SockRef;
use std::io::Write;
use std::time::SystemTime;

const TIMEOUTS: TimeoutConfig = TimeoutConfig { request: 10, idle: 1_000_000, write: 1_000_000, linger: 1_000_000 };

/// Client that has sent all its bytes, and the state that its turns use.
struct Fixture {
    client: Client,
    peer: std::net::TcpStream,
    read_through: ReadThrough,
    scratch: Scratch,
}

impl Fixture {
    fn new(bytes: &[u8]) -> Fixture {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        SockRef::from(&listener).set_recv_buffer_size(1 << 20).expect("a receive buffer of 1 MiB");
        let mut peer = std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("a listener");
        let (stream, _) = listener.accept().expect("a connection");
        peer.write_all(bytes).expect("space in the socket buffers");
        // Waits until all bytes arrived, or as many as the window of this system admits: more
        // than a turn reads.
        let (mut arrived, started) = (vec![0; bytes.len()], std::time::Instant::now());
        while stream.peek(&mut arrived).expect("a connection") < bytes.len() && started.elapsed().as_millis() < 300 {}
        stream.set_nonblocking(true).expect("non-blocking mode");
        let mut client = Client::new(
            ClientStream::Tcp(TcpStream::from_std(stream)),
            Endpoint::Main,
            Connection::new(1, 0),
            false,
            0,
        );
        client.readable = true;
        let mut read_through =
            ReadThrough::new(cache::Limits { entries: 1, bytes: usize::MAX, stale: 0 }, 1_000_000, 1000);
        // The key "a" is cached.
        let request_id = RequestId { slot: 0, connection_id: 0, sequence: 0, part: 0 };
        let Lookup::Fetch(job) = read_through.get(b"a", Access::NORMAL, request_id, 0) else {
            panic!("the key is already cached")
        };
        let fetched = FetchedValue { value: Value::new(vec![b'x']), ttl: None };
        read_through.complete(
            Completion { fetch_id: job.fetch_id, result: Ok(Some(fetched)), may_cache: true },
            0,
            |_, _| (),
        );
        Fixture { client, peer, read_through, scratch: Scratch::new() }
    }

    fn turn(&mut self, now: Millis) -> TurnResult {
        self.turn_with(now, None)
    }

    /// Reads ahead, and returns the input.
    fn read_ahead(&mut self) -> Vec<u8> {
        let mut segment = vec![0; SEGMENT_BYTES];
        let length = self.client.read_ahead(&mut segment);
        segment.truncate(length);
        segment
    }

    /// Runs a turn with input that was read ahead.
    fn turn_with(&mut self, now: Millis, input: Option<&[u8]>) -> TurnResult {
        let date = ResponseDate::at(SystemTime::UNIX_EPOCH);
        let reply = ReplyContext { date: &date, recorder: &mut Recorder::default() };
        let dispatcher = Dispatcher {
            read_through: &mut self.read_through,
            jobs: &mut Vec::new(),
            context: DecodeContext {
                policy: &Policy::default(),
                head_decoder: &mut HeadDecoder::new(),
                auth: &mut ClientAuth::default(),
                offers_tracking: false,
                reply,
            },
            registry: &MetricsRegistry::default(),
            worker_slot: &WorkerSlot::default(),
            now,
        };
        let (scratch, timeouts) = (&mut self.scratch, TIMEOUTS);
        self.client.turn(0, &mut TurnContext { dispatcher, scratch, input, timeouts, closes_idle: false, tls: None })
    }
}

/// A turn is bounded however much a client has sent, and the client is requeued until all is
/// done.
#[test]
fn turn_is_bounded_and_requeues() {
    const PINGS: u64 = 20_000;
    let mut fixture = Fixture::new(&b"*1\r\n$4\r\nPING\r\n".repeat(PINGS as usize));
    let mut turns = 0;
    loop {
        let requests_before = fixture.client.connection.request_count();
        let result = fixture.turn(0);
        let processed = fixture.client.connection.request_count() - requests_before;
        assert!(processed <= MAX_STEPS_PER_TURN as u64, "{processed} requests in one turn");
        assert!(turns > 0 || result == TurnResult::Requeue, "{result:?} with more to read");
        turns += 1;
        match result {
            TurnResult::Requeue => {}
            TurnResult::Wait if fixture.client.connection.request_count() == PINGS => break,
            // The rest is in transit: the kernel would report it.
            TurnResult::Wait => fixture.client.readable = true,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fixture.client.activity(), Activity::Idle(PINGS));
}

/// A complete request that waits for further turns does not time out. An incomplete one does.
#[test]
fn complete_request_does_not_time_out() {
    let keys = "$1\r\na\r\n".repeat(5000);
    let command = |count: usize| format!("*{count}\r\n$6\r\nEXISTS\r\n{keys}");
    let chunked = "GET /raw/a HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n";
    let body = format!("3e8\r\n{}\r\n", "x".repeat(1000)).repeat(180);
    for (bytes, is_complete) in [
        (command(5001), true),
        (command(5002), false),
        (format!("{chunked}{body}0\r\n\r\n"), true),
        (format!("{chunked}{body}"), false),
    ] {
        let mut fixture = Fixture::new(bytes.as_bytes());
        let (mut now, mut turns) = (0, 0);
        // Each turn runs at the client's deadline. The first one only discovers the input.
        let timed_out = loop {
            let result = fixture.turn(now);
            now += TIMEOUTS.request;
            fixture.client.begin_timeout_check();
            turns += 1;
            assert!(turns < 100, "still busy after 100 turns");
            if fixture.client.connection.is_closing() {
                break true;
            }
            if result == TurnResult::Wait && turns > 20 {
                break false;
            }
        };
        assert_eq!(timed_out, !is_complete, "{:?} after {turns} turns", &bytes[..20]);
        drop(fixture.peer);
    }
}

const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

/// A client is read ahead only if its turn would begin with a read. Otherwise nothing is read.
#[test]
fn read_ahead_leaves_other_clients_alone() {
    let mut fixture = Fixture::new(PING);
    type Change = fn(&mut Client);
    let makes_busy: [(&str, Change); 6] = [
        ("no input", |client| client.readable = false),
        ("decoding is paused", |client| client.decode_paused = true),
        ("lingers", |client| client.linger_bytes_left = Some(1)),
        ("TLS is possible", |client| client.transport = Transport::Detecting),
        ("output is unsent", |client| client.connection.send_buffer().tail().push(b'x')),
        ("input is stored", |client| client.connection.store_unparsed(b"*1".to_vec())),
    ];
    for (reason, make_busy) in makes_busy {
        make_busy(&mut fixture.client);
        assert_eq!(fixture.read_ahead(), b"", "{reason}");
        let client = &mut fixture.client;
        (client.readable, client.decode_paused, client.linger_bytes_left) = (true, false, None);
        client.transport = Transport::Plain;
        client.connection.send_buffer().drain(usize::MAX);
        client.connection.take_unparsed();
    }
    assert_eq!(fixture.read_ahead(), PING);
    assert_eq!(fixture.turn_with(0, Some(PING)), TurnResult::Wait);
    assert_eq!(fixture.client.connection.request_count(), 1);
}

/// Only the first of several long pipelines is cut. After a short one the client is read ahead
/// again.
#[test]
fn long_pipelines_are_read_alone() {
    let long = PING.repeat(400);
    let mut fixture = Fixture::new(&long);
    let first = fixture.read_ahead();
    assert_eq!(first.len(), SEGMENT_BYTES);
    fixture.turn_with(0, Some(&first));
    assert_eq!(fixture.read_ahead(), b"");
    let mut expected = 0;
    for pipeline in [b"", &long[..], &long, PING] {
        fixture.peer.write_all(pipeline).expect("space in the socket buffers");
        expected += pipeline.len() / PING.len();
        // The bytes may arrive in pieces, each after an event.
        while fixture.client.connection.request_count() < 400 + expected as u64 {
            fixture.client.readable = true;
            assert_eq!(fixture.read_ahead(), b"");
            fixture.turn(0);
        }
    }
    fixture.peer.write_all(PING).expect("space in the socket buffers");
    assert_eq!(wait_for_input(&mut fixture), PING);
}

/// Repeats a read ahead until input arrives.
fn wait_for_input(fixture: &mut Fixture) -> Vec<u8> {
    loop {
        fixture.client.readable = true;
        let input = fixture.read_ahead();
        if !input.is_empty() {
            return input;
        }
    }
}

/// A reset that is found by reading ahead closes the client, also if a reply is pending.
#[test]
fn reset_found_by_read_ahead_closes_client() {
    let mut fixture = Fixture::new(b"*2\r\n$3\r\nGET\r\n$7\r\nmissing\r\n");
    assert_eq!(fixture.turn(0), TurnResult::Wait);
    SockRef::from(&fixture.peer).set_linger(Some(std::time::Duration::ZERO)).expect("an option can be set");
    drop(std::mem::replace(&mut fixture.peer, Fixture::new(PING).peer));
    while !fixture.client.read_failed {
        fixture.client.readable = true;
        assert_eq!(fixture.read_ahead(), b"");
    }
    assert_eq!(fixture.turn(0), TurnResult::Close);
}
