//! Tests of the place of invalidations among the replies of a client that caches values.
//!
//! A client caches a value when it reads the reply. So the invalidation of a value must arrive
//! behind the reply that holds it. The real connection, dispatcher and read-through cache are
//! driven without sockets.

use segment_redis_proxy::cache::Limits;
use segment_redis_proxy::client_auth::ClientAuth;
use segment_redis_proxy::connection::{Connection, DecodeContext, ReplyContext};
use segment_redis_proxy::dispatch::Dispatcher;
use segment_redis_proxy::metrics::{MetricsRegistry, Recorder, WorkerSlot};
use segment_redis_proxy::protocol::MAX_IOVECS;
use segment_redis_proxy::protocol::http::{HeadDecoder, Policy, ResponseDate};
use segment_redis_proxy::read_through::ReadThrough;
use segment_redis_proxy::types::{Completion, Failure, FetchedValue, Invalidation, Job, Millis};
use segment_redis_proxy::value::Value;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::SystemTime;

const TTL: Millis = 1000;

/// Worker with one client, which tracks over RESP3.
struct World {
    read_through: ReadThrough,
    connection: Connection,
    recorder: Recorder,
    jobs: VecDeque<Job>,
    now: Millis,
}

impl World {
    /// Creates a world with a client that has turned tracking on with these options. The tracking
    /// of Redis is active.
    fn new(options: &str) -> World {
        let limits = Limits { entries: 100, bytes: usize::MAX, stale: 10 * TTL };
        let mut world = World {
            read_through: ReadThrough::new(limits, TTL, 500),
            connection: Connection::new(1, 0),
            recorder: Recorder::default(),
            jobs: VecDeque::new(),
            now: 0,
        };
        world.invalidate(&Invalidation::TrackingStarted);
        world.send("HELLO 3");
        world.send(format!("CLIENT TRACKING ON {options}").trim_end());
        world.take_output();
        world
    }

    fn send(&mut self, command: &str) {
        let words: String = command.split(' ').map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
        self.send_bytes(&format!("*{}\r\n{words}", command.split(' ').count()));
    }

    fn send_bytes(&mut self, bytes: &str) {
        let mut jobs = Vec::new();
        let date = ResponseDate::at(SystemTime::UNIX_EPOCH);
        let mut dispatcher = Dispatcher {
            read_through: &mut self.read_through,
            jobs: &mut jobs,
            context: DecodeContext {
                policy: &Policy::default(),
                head_decoder: &mut HeadDecoder::new(),
                auth: &mut ClientAuth::default(),
                offers_tracking: true,
                reply: ReplyContext { date: &date, recorder: &mut self.recorder },
            },
            registry: &MetricsRegistry::default(),
            worker_slot: &WorkerSlot::default(),
            now: self.now,
        };
        dispatcher.on_input(&mut self.connection, 0, bytes.as_bytes());
        self.jobs.extend(jobs);
    }

    /// Completes the fetch that started first.
    fn complete(&mut self, result: Result<Option<&str>, Failure>, may_cache: bool) {
        let job = self.jobs.pop_front().expect("a fetch");
        let fetched = |text: &str| FetchedValue { value: Value::new(text.into()), ttl: None };
        let result = result.map(|text| text.map(fetched));
        let date = ResponseDate::at(SystemTime::UNIX_EPOCH);
        let World { read_through, connection, recorder, now, .. } = self;
        let completion = Completion { fetch_id: job.fetch_id, result, may_cache };
        read_through.complete(completion, *now, |id, reply| {
            connection.reply_later(id, reply, &mut ReplyContext { date: &date, recorder });
        });
    }

    fn complete_with(&mut self, text: &str) {
        self.complete(Ok(Some(text)), true);
    }

    /// Applies an invalidation, and passes it on as the worker does.
    fn invalidate(&mut self, invalidation: &Invalidation) {
        self.read_through.invalidate(invalidation, self.now);
        let World { read_through, connection, .. } = self;
        read_through.deliver_pushes(usize::MAX, |_, push| connection.push_invalidation(push));
        assert_eq!(read_through.validate(), Ok(()));
    }

    fn change(&mut self, key: &str) {
        self.invalidate(&Invalidation::Key(key.into()));
    }

    /// Takes up to `max_bytes` bytes that can be sent.
    fn take_bytes(&mut self, max_bytes: usize) -> Vec<u8> {
        let mut taken = Vec::new();
        loop {
            let mut slices = [IoSlice::new(&[]); MAX_IOVECS];
            let count = self.connection.send_buffer().io_slices(&mut slices, max_bytes - taken.len());
            let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
            if bytes.is_empty() {
                return taken;
            }
            self.connection.send_buffer().advance(bytes.len());
            taken.extend(bytes);
        }
    }

    /// Takes what the client receives: values, and invalidated keys after an exclamation mark.
    fn take_output(&mut self) -> Vec<String> {
        let text = String::from_utf8(self.take_bytes(usize::MAX)).expect("text");
        let text = text.replace(">2\r\n$10\r\ninvalidate\r\n_\r\n", "!*\r\n");
        let text = text.replace(">2\r\n$10\r\ninvalidate\r\n*1\r\n", "!");
        let lines = text.split_terminator("\r\n").collect::<Vec<_>>();
        let (mut output, mut at) = (Vec::new(), 0);
        while at < lines.len() {
            let is_length = lines[at].trim_start_matches('!').starts_with('$');
            let mark = if lines[at].starts_with('!') && is_length { "!" } else { "" };
            at += usize::from(is_length);
            output.push(format!("{mark}{}", lines[at]));
            at += 1;
        }
        output
    }
}

/// A hit is invalidated after its reply, once.
#[test]
fn invalidation_follows_hit() {
    let mut world = World::new("");
    world.send("GET a");
    world.complete_with("1");
    world.send("GET a");
    world.change("a");
    world.change("a");
    assert_eq!(world.take_output(), ["1", "1", "!a"]);
}

/// A fetch that an invalidation overtook is followed by another one, because the client caches
/// what it brings.
#[test]
fn overtaken_value_is_invalidated_behind_its_reply() {
    let mut world = World::new("");
    world.send("GET a");
    world.change("a");
    assert_eq!(world.take_output(), [""; 0], "nothing is cached yet");
    world.complete_with("old");
    assert_eq!(world.take_output(), ["old", "!a"]);
    // The same for a key that was missing.
    world.send("GET a");
    world.invalidate(&Invalidation::All);
    world.complete(Ok(None), true);
    assert_eq!(world.take_output(), ["_", "!a"]);
    world.change("a");
    assert_eq!(world.take_output(), [""; 0], "a value that was invalidated already is recorded");
}

/// A value that no invalidation would follow is invalidated at once: one that may not be cached,
/// a stale one, and every one while tracking is lost.
#[test]
fn unreported_value_is_invalidated_behind_its_reply() {
    let mut world = World::new("");
    world.send("GET a");
    world.complete(Ok(Some("by ASK")), false);
    assert_eq!(world.take_output(), ["by ASK", "!a"]);
    world.send("GET a");
    world.complete_with("1");
    assert_eq!(world.take_output(), ["1"]);
    world.invalidate(&Invalidation::TrackingLost);
    assert_eq!(world.take_output(), ["!*"]);
    world.send("GET a");
    world.complete(Err(Failure::Unavailable), true);
    assert_eq!(world.take_output(), ["1", "!a"], "stale");
    world.send("GET a");
    world.complete_with("2");
    world.send("GET a");
    world.send("MGET a b");
    world.complete(Ok(None), true);
    world.send("TTL a");
    assert_eq!(world.take_output(), ["2", "!a", "2", "!a", "*2", "2", "_", "!a", "!b", ":1", "!a"]);
    world.invalidate(&Invalidation::TrackingStarted);
    world.send("GET a");
    world.complete(Err(Failure::Unavailable), true);
    let output = world.take_output();
    assert!(output.len() == 1 && output[0].starts_with("-LOADING "), "{output:?}");
}

/// `TTL` records its key, as in Redis.
#[test]
fn ttl_is_invalidated() {
    let mut world = World::new("");
    world.send("TTL a");
    world.change("a");
    assert_eq!(world.take_output(), [":-2", "!a"]);
}

/// Replies that wait behind a fetch are followed by the invalidations of what they hold. Those of
/// earlier replies do not wait for the fetch.
#[test]
fn invalidation_follows_waiting_hit() {
    let mut world = World::new("");
    world.send("GET a");
    world.complete_with("1");
    world.take_output();
    world.send("GET slow");
    world.send("GET a");
    world.change("a");
    world.send("GET later");
    assert_eq!(world.take_output(), ["!a"], "the reply before may not wait");
    world.complete_with("slow");
    assert_eq!(world.take_output(), ["slow", "1", "!a"]);
    world.complete_with("later");
    assert_eq!(world.take_output(), ["later"]);
    // Behind a reply that is complete, but not behind one that will get the new value.
    world.send("GET a");
    world.complete_with("2");
    world.send("GET slow2");
    world.change("a");
    world.send("GET a");
    assert_eq!(world.take_output(), ["2", "!a"]);
    world.complete_with("slow2");
    world.complete_with("3");
    assert_eq!(world.take_output(), ["slow2", "3"]);
}

/// No invalidation overtakes the replies to `HELLO 3` and `CLIENT TRACKING`.
#[test]
fn invalidation_follows_start_of_tracking() {
    let mut world = World::new("");
    world.send("GET a");
    world.complete_with("1");
    world.send("RESET");
    world.take_output();
    for command in ["GET slow", "HELLO 3", "CLIENT TRACKING ON", "GET a"] {
        world.send(command);
    }
    world.change("a");
    assert_eq!(world.take_output(), [""; 0]);
    world.complete_with("slow");
    let output = world.take_output();
    assert_eq!((&*output[0], &output[output.len() - 3..]), ("slow", &["+OK".into(), "1".into(), "!a".into()][..]));
}

/// A part of `MGET` that was found before the invalidation makes the whole reply older than it.
#[test]
fn invalidation_follows_multi_key_reply() {
    for is_cut in [false, true] {
        let mut world = World::new("");
        world.send("GET a");
        world.complete_with("1");
        world.take_output();
        if is_cut {
            // The client sends its last key later.
            world.send_bytes("*3\r\n$4\r\nMGET\r\n$1\r\na\r\n");
            world.change("a");
            world.send_bytes("$4\r\nslow\r\n");
        } else {
            world.send("MGET a slow");
            world.change("a");
        }
        assert_eq!(world.take_output(), ["!a"]);
        world.complete_with("slow");
        assert_eq!(world.take_output(), ["*2", "1", "slow", "!a"], "{is_cut}");
        world.send("GET a");
        world.complete_with("2");
        world.change("a");
        assert_eq!(world.take_output(), ["2", "!a"]);
    }
}

/// Each fetch of `MGET` that an invalidation overtook is followed by one, behind the whole reply.
#[test]
fn overtaken_part_is_invalidated_behind_multi_key_reply() {
    let mut world = World::new("");
    world.send("MGET a b c");
    world.change("b");
    world.complete_with("1");
    world.complete_with("2");
    world.change("a");
    assert_eq!(world.take_output(), ["!a"]);
    world.complete_with("3");
    assert_eq!(world.take_output(), ["*3", "1", "2", "3", "!b", "!a"]);
    world.change("c");
    assert_eq!(world.take_output(), ["!c"]);
}

/// A command that the client has not sent completely delays no invalidation of earlier replies.
#[test]
fn incomplete_command_delays_no_invalidation() {
    for earlier in ["GET a", "MGET a slow"] {
        let mut world = World::new("");
        world.send("GET a");
        world.complete_with("1");
        world.take_output();
        world.send("GET slow");
        world.send(earlier);
        world.send_bytes("*3\r\n$4\r\nMGET\r\n$1\r\na\r\n");
        world.change("a");
        assert_eq!(world.take_output(), ["!a"]);
        world.complete_with("slow");
        assert_eq!(world.take_output().last().map(String::as_str), Some("!a"), "{earlier}");
        world.send_bytes("$4\r\nslow\r\n");
        assert_eq!(world.take_output(), ["*2", "1", "slow", "!a"]);
    }
}

/// A refused `MGET` does not take the invalidations of earlier replies with it.
#[test]
fn refused_multi_key_command_keeps_invalidations() {
    let mut world = World::new("");
    world.send("GET a");
    world.complete_with("1");
    world.send("GET slow");
    world.send("GET a");
    world.send_bytes("*3\r\n$4\r\nMGET\r\n$1\r\nb\r\n");
    world.change("a");
    world.send_bytes(&format!("$70000\r\n{}\r\n", "x".repeat(70_000)));
    assert_eq!(world.take_output(), ["1", "!a"]);
    world.complete_with("slow");
    let output = world.take_output();
    assert_eq!(output[..3], ["slow", "1", "!a"], "the older value is not invalidated");
    assert!(output[3].starts_with("-ERR argument too long"), "{output:?}");
}

/// A long value is not interrupted.
#[test]
fn invalidation_follows_long_value() {
    let mut world = World::new("");
    let long = "x".repeat(100_000);
    world.send("GET a");
    world.complete_with(&long);
    world.send("GET a");
    let first = world.take_bytes(50_000);
    world.change("a");
    let rest = world.take_bytes(usize::MAX);
    let text = String::from_utf8([first, rest].concat()).expect("text");
    let value = format!("$100000\r\n{long}\r\n");
    assert_eq!(text, format!("{value}{value}>2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\na\r\n"));
}

/// In OPTIN mode only what follows `CLIENT CACHING YES` is invalidated.
#[test]
fn optin_invalidates_chosen_reads() {
    let mut world = World::new("OPTIN");
    world.send("GET a");
    world.complete_with("1");
    world.send("CLIENT CACHING YES");
    world.send("MGET b c");
    world.complete_with("2");
    world.complete_with("3");
    world.send("GET c");
    ["a", "b", "c"].iter().for_each(|key| world.change(key));
    assert_eq!(world.take_output(), ["1", "+OK", "*2", "2", "3", "3", "!b", "!c"]);
    // The client chose before the reply came.
    world.send("CLIENT CACHING YES");
    world.send("GET d");
    world.send("GET e");
    ["d", "e"].iter().for_each(|key| world.change(key));
    world.complete_with("4");
    world.complete_with("5");
    assert_eq!(world.take_output(), ["+OK", "4", "!d", "5"]);
}

/// A client that stops tracking receives no invalidation of what it has read.
#[test]
fn stopped_tracking_sends_nothing() {
    for end in ["CLIENT TRACKING OFF", "RESET", "HELLO 2", "QUIT"] {
        let mut world = World::new("");
        world.send("GET a");
        world.complete_with("1");
        world.send(end);
        world.take_output();
        world.change("a");
        assert_eq!(world.take_output(), [""; 0], "{end}");
    }
}

/// A client that does not read gets one invalidation of everything instead of many.
#[test]
fn slow_reader_loses_everything() {
    let mut world = World::new("");
    let key = |number: usize| format!("{number:0>1000}");
    for number in 0..300 {
        world.send(&format!("GET {}", key(number)));
        world.complete_with(&"x".repeat(700));
    }
    world.send("GET long");
    world.complete_with(&"x".repeat(300_000));
    let before = world.connection.send_buffer().unsent_bytes();
    (0..300).for_each(|number| world.change(&key(number)));
    let pushed = world.connection.send_buffer().unsent_bytes() - before;
    assert!((60_000..70_000).contains(&pushed), "{pushed} bytes of invalidations");
    assert_eq!(world.take_output().last().map(String::as_str), Some("!*"));
    world.send("GET a");
    world.complete_with("1");
    world.change("a");
    assert_eq!(world.take_output(), ["1", "!a"]);
}

/// Invalidations that wait behind the reply to `CLIENT TRACKING` are bounded in the same way.
#[test]
fn waiting_invalidations_are_bounded() {
    let mut world = World::new("");
    let key = |number: usize| format!("{number:0>1000}");
    for number in 0..100 {
        world.send(&format!("GET {}", key(number)));
        world.complete_with(&"x".repeat(3000));
        world.take_output();
    }
    world.send("RESET");
    world.take_output();
    ["GET slow", "HELLO 3", "CLIENT TRACKING ON"].iter().for_each(|command| world.send(command));
    (0..100).for_each(|number| world.send(&format!("GET {}", key(number))));
    (0..100).for_each(|number| world.change(&key(number)));
    world.complete_with("slow");
    let output = world.take_output();
    let pushes: usize = output.iter().filter(|line| line.starts_with('!')).map(String::len).sum();
    assert!((60_000..70_000).contains(&pushes), "{pushes} bytes of invalidations");
    assert_eq!(output.last().map(String::as_str), Some("!*"));
}
