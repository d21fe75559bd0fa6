//! Driver of one connection without a socket: passes it input, sends its output, completes fetches.
//!
//! The input chooses the order of these steps. Whatever it chooses, the bounds hold and the
//! connection reaches an end. This type performs no I/O.

use super::choices::Choices;
use super::replies::Comparing;
use segment_redis_proxy::cache::Limits;
use segment_redis_proxy::client_auth::{ClientAuth, ClientPasswords, SharedPasswords};
use segment_redis_proxy::connection::{
    Connection, DecodeContext, MAX_PENDING_KEYS, MAX_PENDING_REPLIES, MAX_UNSENT_BYTES, ReplyContext,
};
use segment_redis_proxy::dispatch::Dispatcher;
use segment_redis_proxy::log_format::LogFormat;
use segment_redis_proxy::metrics::{MetricsRegistry, Recorder, WorkerSlot};
use segment_redis_proxy::protocol::MAX_IOVECS;
use segment_redis_proxy::protocol::http::{HeadDecoder, Policy, ResponseDate};
use segment_redis_proxy::read_through::ReadThrough;
use segment_redis_proxy::types::{Completion, Failure, FetchedValue, Job, Millis};
use segment_redis_proxy::value::Value;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::SystemTime;

/// Time stands still: the simulation covers time.
const NOW: Millis = 0;
const TTL: Millis = 10_000;

/// Capacity of the cache: more than the keys of any input.
const ENTRIES: usize = 100_000;

/// Keys that are cached from the start.
const HITS: [&[u8]; 5] = [b"h", b"hit", b"hl", b"hq", b"hc"];

/// Lengths just above those that the cache copies, and that the send buffer renders at a time.
const SHARED_BYTES: usize = 17 * 1024;
const RENDERED_BYTES: usize = 50 * 1024;

/// Maximum length of a reply about one key, or about none (`COMMAND`).
const MAX_REPLY_BYTES: usize = 2 * RENDERED_BYTES + 1024;

/// Writes that may be as short as a byte. The socket accepts more bytes after that.
const SHORT_WRITES: usize = 2000;

/// Values and failures of Redis. They depend on the key alone, so that the order of fetches changes
/// no reply.
pub struct World {
    pub comparing: Comparing,
    pub failure: Failure,
    /// True if values may be long, which takes too much time with many keys.
    pub long_values: bool,
    /// Password that clients must send, if any.
    pub password: Option<&'static str>,
    /// True if the input cannot hold that password, so that nothing may be looked up.
    pub is_locked: bool,
    /// Maximum of keys in one command.
    pub max_keys: usize,
    /// Maximum of bytes stored of an incomplete request.
    pub max_unparsed: usize,
}

impl World {
    fn value(&self, key: &[u8]) -> Vec<u8> {
        let (shared, rendered) = if self.long_values { (SHARED_BYTES, RENDERED_BYTES) } else { (40, 50) };
        match key.last() {
            Some(b'l') => vec![b'v'; shared],
            Some(b'q') => b"\"\n".repeat(rendered / 2),
            Some(b'b') => vec![0x80; rendered],
            Some(b'c') => vec![b'c'; 2000],
            Some(b'0'..=b'9') => b"42".to_vec(),
            // With a prefix: a key might start like a response.
            _ => [b"=", key].concat(),
        }
    }

    /// Returns the result of a fetch.
    fn fetch(&self, key: &[u8]) -> Result<Option<FetchedValue>, Failure> {
        match key.first() {
            Some(b'm') => Ok(None),
            Some(b'f') => Err(self.failure.clone()),
            _ => {
                let remaining = if self.comparing.stores { None } else { Some(0) };
                Ok(Some(FetchedValue { value: Value::new(self.value(key)), ttl: remaining }))
            }
        }
    }
}

/// Connection with its side of the worker.
pub struct Driver<'a> {
    world: &'a World,
    wire: &'a [u8],
    /// Number of bytes read from `wire`.
    at: usize,
    read_through: ReadThrough,
    connection: Connection,
    is_paused: bool,
    jobs: Vec<Job>,
    head_decoder: HeadDecoder,
    policy: Policy,
    auth: ClientAuth,
    /// Buffer that the send buffer borrows while the connection decodes, as from the worker.
    write_scratch: Vec<u8>,
    date: ResponseDate,
    recorder: Recorder,
    registry: MetricsRegistry,
    worker_slot: WorkerSlot,
    /// Keys with a completed fetch, including those of the other client.
    completed_keys: u64,
    /// Keys of the other client.
    cached_keys: u64,
    writes: usize,
    sent: Vec<u8>,
}

/// Step that the driver can take.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The connection decodes new input, or resumes decoding.
    Receive,
    Send,
    Complete,
}

impl<'a> Driver<'a> {
    pub fn new(world: &'a World, wire: &'a [u8]) -> Driver<'a> {
        let limits = Limits { entries: ENTRIES, bytes: usize::MAX, stale: 0 };
        let mut driver = Driver {
            world,
            wire,
            at: 0,
            read_through: ReadThrough::new(limits, TTL, TTL),
            connection: Connection::new(1, 0),
            is_paused: false,
            jobs: Vec::new(),
            head_decoder: HeadDecoder::new(),
            policy: Policy::default(),
            auth: ClientAuth::default(),
            write_scratch: Vec::with_capacity(1024),
            date: ResponseDate::at(SystemTime::UNIX_EPOCH),
            recorder: Recorder::new(Some(LogFormat::Text)),
            registry: MetricsRegistry::default(),
            worker_slot: WorkerSlot::default(),
            completed_keys: 0,
            cached_keys: 0,
            writes: 0,
            sent: Vec::new(),
        };
        driver.fill_cache();
        driver.cached_keys = driver.completed_keys;
        if let Some(passwords) = world.password.and_then(|password| ClientPasswords::parse(password).ok()) {
            driver.auth = ClientAuth::required(Arc::new(SharedPasswords::new(passwords)));
        }
        driver
    }

    /// Caches the keys of [`HITS`] that can occur in the input, through another client. Not all of
    /// them: long values take time.
    fn fill_cache(&mut self) {
        let mut other = Connection::new(2, 0);
        for key in HITS.into_iter().filter(|key| key.iter().all(|byte| self.wire.contains(byte))) {
            let get = format!("*2\r\n$3\r\nGET\r\n${}\r\n{}\r\n", key.len(), key.escape_ascii());
            dispatcher(self).on_input(&mut other, 1, get.as_bytes());
            let Some(job) = self.jobs.pop() else { panic!("the key is already cached") };
            let fetched = FetchedValue { value: Value::new(self.world.value(key)), ttl: None };
            self.read_through.complete(
                Completion { fetch_id: job.fetch_id, result: Ok(Some(fetched)), may_cache: true },
                NOW,
                |_, _| (),
            );
            self.completed_keys += 1;
        }
        self.recorder = Recorder::new(Some(LogFormat::Text));
    }

    /// Runs with the whole input and output at once, and completes every fetch immediately.
    pub fn run_whole(mut self) -> Vec<Vec<u8>> {
        while self.can(Step::Receive) || self.can(Step::Send) || self.can(Step::Complete) {
            if self.can(Step::Complete) {
                self.complete(0);
            } else if self.can(Step::Send) {
                self.send(usize::MAX);
            } else {
                self.receive(usize::MAX);
            }
        }
        self.finish()
    }

    /// Runs with the pieces and the order of the choices.
    pub fn run(mut self, choices: &mut Choices) -> Vec<Vec<u8>> {
        let [_, order, write, _] = choices.bytes;
        // A lazy step is taken only if no other is possible.
        let (lazy, stalls) = ([Step::Complete, Step::Send], [order % 3 == 0, write % 3 == 0]);
        let is_lazy = |step: Step| lazy.iter().zip(stalls).any(|(&one, stalls)| one == step && stalls);
        let mut stalled = false;
        loop {
            let possible: Vec<Step> =
                [Step::Receive, Step::Send, Step::Complete].into_iter().filter(|&step| self.can(step)).collect();
            if possible.is_empty() {
                return self.finish();
            }
            if possible == [Step::Complete] && !std::mem::replace(&mut stalled, true) {
                self.check_pending_replies();
            }
            let eager: Vec<Step> = possible.iter().copied().filter(|&step| !is_lazy(step)).collect();
            match choices.random.one_of(if eager.is_empty() { &possible } else { &eager }) {
                Step::Receive => self.receive(choices.next_piece((self.wire.len() - self.at).max(1))),
                Step::Send => {
                    let style = if self.writes > SHORT_WRITES { 0 } else { write / 3 };
                    let max = choices.size(style, self.connection.send_buffer().unsent_bytes().max(1));
                    self.send(max.max(1));
                }
                Step::Complete => {
                    let last = self.jobs.len() - 1;
                    let index = [0, last, choices.random.between(0, last as u64) as usize][usize::from(order / 3 % 3)];
                    self.complete(index);
                }
            }
        }
    }

    /// Returns true if a step is possible, by the policy of the worker (`server/client.rs`).
    fn can(&mut self, step: Step) -> bool {
        match step {
            Step::Receive => self.connection.can_take_request() && (self.is_paused || self.at < self.wire.len()),
            Step::Send => !self.connection.send_buffer().is_empty(),
            Step::Complete => !self.jobs.is_empty(),
        }
    }

    fn receive(&mut self, max: usize) {
        let unsent = self.connection.send_buffer().unsent_bytes();
        let mut write_scratch = std::mem::take(&mut self.write_scratch);
        self.connection.send_buffer().lend_tail(&mut write_scratch);
        let mut connection = std::mem::replace(&mut self.connection, Connection::new(0, 0));
        self.is_paused = if self.is_paused {
            dispatcher(self).resume_input(&mut connection, 0)
        } else {
            let piece = &self.wire[self.at..self.at.saturating_add(max).min(self.wire.len())];
            self.at += piece.len();
            dispatcher(self).on_input(&mut connection, 0, piece)
        };
        self.connection = connection;
        self.connection.send_buffer().reclaim_tail(&mut write_scratch);
        self.write_scratch = write_scratch;
        self.check_bounds(unsent);
    }

    fn send(&mut self, max: usize) {
        self.writes += 1;
        let mut slices = [IoSlice::new(&[]); MAX_IOVECS];
        let count = self.connection.send_buffer().io_slices(&mut slices, usize::MAX);
        let before = self.sent.len();
        for slice in &slices[..count] {
            let left = max - (self.sent.len() - before);
            self.sent.extend_from_slice(&slice[..slice.len().min(left)]);
        }
        let taken = self.sent.len() - before;
        assert!(taken > 0, "output is pending and none can be sent");
        self.connection.send_buffer().advance(taken);
    }

    fn complete(&mut self, index: usize) {
        let job = self.jobs.remove(index);
        let completion = Completion { fetch_id: job.fetch_id, result: self.world.fetch(&job.key), may_cache: true };
        let Driver { read_through, connection, date, recorder, completed_keys, .. } = self;
        read_through.complete(completion, NOW, |request_id, reply| {
            *completed_keys += 1;
            connection.reply_later(request_id, reply, &mut ReplyContext { date, recorder });
        });
    }

    /// Checks the limits of what a client can make the proxy hold.
    fn check_bounds(&mut self, unsent_before: usize) {
        let unparsed = self.connection.take_unparsed();
        let max_unparsed = if self.is_paused { self.wire.len() } else { self.world.max_unparsed };
        assert!(unparsed.len() <= max_unparsed, "{} unparsed bytes", unparsed.len());
        self.connection.store_unparsed(unparsed);
        self.read_through.export_metrics(&mut self.recorder.metrics);
        let pending = self.recorder.metrics.misses - self.completed_keys;
        assert!(pending <= MAX_PENDING_KEYS as u64, "{pending} pending keys");
        // One reply may exceed the limit, by the values of all its keys.
        let max_reply = MAX_REPLY_BYTES * self.world.max_keys;
        let unsent = self.connection.send_buffer().unsent_bytes();
        assert!(unsent <= unsent_before.max(MAX_UNSENT_BYTES) + max_reply, "{unsent} unsent bytes");
    }

    /// Checks the number of pending replies. Called when everything is sent and only fetches are
    /// left.
    fn check_pending_replies(&self) {
        let pending = self.connection.request_count() - self.world.comparing.replies(&self.sent).len() as u64;
        assert!(pending <= MAX_PENDING_REPLIES as u64, "{pending} pending replies");
    }

    /// Checks that all work is done, and returns the replies. Called when no step is possible.
    fn finish(mut self) -> Vec<Vec<u8>> {
        assert!(self.connection.is_closing() || self.connection.can_take_request(), "the connection is stuck");
        assert!(self.connection.is_closing() || self.at == self.wire.len(), "the connection stopped reading");
        let replies = self.world.comparing.replies(&self.sent);
        self.check_no_wakeup_was_lost();
        assert!(self.connection.is_flushed(), "the connection waits for an event that never comes");
        assert_eq!(self.read_through.validate(), Ok(()));
        // The last command with several keys may be incomplete.
        let requests = self.connection.request_count();
        let metrics = &self.recorder.metrics;
        assert_eq!(metrics.requests, requests, "requests that the metrics do not count");
        let outcomes: u64 = metrics.requests_by_outcome.as_flattened().iter().sum();
        assert_eq!(outcomes, replies.len() as u64, "replies that the metrics do not count");
        if self.world.is_locked {
            self.check_locked(&replies);
        }
        self.check_lines(outcomes);
        let unfinished = requests - replies.len() as u64;
        assert!(unfinished <= u64::from(self.world.comparing.resp), "{unfinished} requests have no reply");
        replies
    }

    /// Checks that a client without the password caused no lookup, and learned nothing.
    fn check_locked(&mut self, replies: &[Vec<u8>]) {
        self.read_through.export_metrics(&mut self.recorder.metrics);
        let metrics = &self.recorder.metrics;
        assert_eq!(metrics.hits + metrics.misses, self.cached_keys, "lookups before authentication");
        let is_harmless = |reply: &[u8]| match self.world.comparing.resp {
            true => reply.starts_with(b"-") || reply == b"+OK\r\n" || reply == b"+RESET\r\n",
            // Only the health endpoints answer, without a key.
            false => !reply.starts_with(b"HTTP/1.1 200") || reply.windows(9).any(|window| window == b"{\"status\""),
        };
        for reply in replies {
            assert!(is_harmless(reply), "a reply before authentication: {}", reply.escape_ascii());
        }
    }

    /// Checks that each reply has one line in the access log, with printable characters only.
    fn check_lines(&mut self, outcomes: u64) {
        self.recorder.end_turns(0);
        let lines = self.recorder.access_log_lines().map(std::mem::take).unwrap_or_default();
        assert!(lines.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\n')), "{}", lines.escape_ascii());
        let lines: Vec<&[u8]> = lines.split_inclusive(|&byte| byte == b'\n').collect();
        assert_eq!(lines.len() as u64, outcomes, "lines of the access log");
        let quotes = |line: &[u8]| line.iter().filter(|&&byte| byte == b'"').count();
        assert!(lines.iter().all(|line| quotes(line) == 2), "a forged line");
    }

    /// Checks that decoding needs no further call: resuming once more finds no work.
    fn check_no_wakeup_was_lost(&mut self) {
        let requests = self.connection.request_count();
        let mut connection = std::mem::replace(&mut self.connection, Connection::new(0, 0));
        assert!(!dispatcher(self).resume_input(&mut connection, 0), "decoding is paused without a reason");
        self.connection = connection;
        assert!(
            self.connection.request_count() == requests && self.jobs.is_empty() && !self.can(Step::Send),
            "work was left without a wakeup"
        );
    }
}

/// Returns the dispatcher. The only function that knows its fields.
fn dispatcher<'a>(driver: &'a mut Driver<'_>) -> Dispatcher<'a> {
    let Driver { read_through, jobs, head_decoder, policy, auth, date, recorder, registry, worker_slot, .. } = driver;
    let context =
        DecodeContext { policy, head_decoder, auth, offers_tracking: true, reply: ReplyContext { date, recorder } };
    Dispatcher { read_through, jobs, context, registry, worker_slot, now: NOW }
}
