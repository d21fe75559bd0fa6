//! What the server does for one connection, without a socket: takes in pieces, sends what there is, completes fetches. The
//! input chooses what comes next; whatever it chooses, the bounds hold and the end is reached.

use super::choices::Choices;
use super::replies::Comparing;
use segment_redis_proxy::cache::Limits;
use segment_redis_proxy::connection::{Connection, MAX_PENDING_KEYS, MAX_PENDING_REPLIES, MAX_UNSENT_BYTES};
use segment_redis_proxy::dispatch::Dispatcher;
use segment_redis_proxy::metrics::{MetricsRegistry, Recorder};
use segment_redis_proxy::protocol::MAX_IOVECS;
use segment_redis_proxy::protocol::http::{HeadDecoder, Policy, ResponseDate};
use segment_redis_proxy::read_through::ReadThrough;
use segment_redis_proxy::types::{Completion, Failure, FetchedValue, Job, Millis, Value};
use std::io::IoSlice;
use std::time::SystemTime;

/// Everything happens at once: time is the simulation's business.
const NOW: Millis = 0;
const TTL: Millis = 10_000;

/// More than any input names.
const ENTRIES: usize = 100_000;

/// Keys that are in memory from the beginning.
const HITS: [&[u8]; 5] = [b"h", b"hit", b"hl", b"hq", b"hc"];

/// Just longer than what is copied into the cache, and than what is rendered at a time.
const SHARED_BYTES: usize = 17 * 1024;
const RENDERED_BYTES: usize = 50 * 1024;

/// Longest reply about one key, and longest of those that are about none (`COMMAND`).
const LONGEST_REPLY: usize = 2 * RENDERED_BYTES + 1024;

/// Writes that may be as short as a byte; what the socket takes is more after that.
const SHORT_WRITES: usize = 2000;

/// What Redis holds and how it fails. Depends on the key alone, so that the order of fetches changes no reply.
pub struct World {
    pub comparing: Comparing,
    pub failure: Failure,
    /// Long values are worth their time only as long as there are few.
    pub long_values: bool,
    /// Most keys that one command can name.
    pub most_keys: usize,
    /// Most bytes that may wait for the rest of a request.
    pub most_kept: usize,
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
            // Not the key alone: that might begin like a response.
            _ => [b"=", key].concat(),
        }
    }

    /// What comes of a key that is asked for.
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

/// See the top of the file.
pub struct Driver<'a> {
    world: &'a World,
    wire: &'a [u8],
    /// Bytes of the wire that were read.
    at: usize,
    proxy: ReadThrough,
    connection: Connection,
    held_up: bool,
    jobs: Vec<Job>,
    heads: HeadDecoder,
    policy: Policy,
    lent: Vec<u8>,
    date: ResponseDate,
    recorder: Recorder,
    register: MetricsRegistry,
    /// Keys that were waited for and have come, those of the other client too.
    answered: u64,
    writes: usize,
    sent: Vec<u8>,
}

/// What can come next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The connection takes in what has come, or goes on with it.
    TakeIn,
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
            proxy: ReadThrough::new(limits, TTL, TTL),
            connection: Connection::new(1, 0),
            held_up: false,
            jobs: Vec::new(),
            heads: HeadDecoder::new(),
            policy: Policy::default(),
            lent: Vec::with_capacity(1024),
            date: ResponseDate::at(SystemTime::UNIX_EPOCH),
            recorder: Recorder::new(true),
            register: MetricsRegistry::default(),
            answered: 0,
            writes: 0,
            sent: Vec::new(),
        };
        driver.remember_hits();
        driver
    }

    /// Another client has asked before for those that may be asked for again; long values take their time.
    fn remember_hits(&mut self) {
        let mut other = Connection::new(2, 0);
        for key in HITS.into_iter().filter(|key| key.iter().all(|byte| self.wire.contains(byte))) {
            let get = format!("*2\r\n$3\r\nGET\r\n${}\r\n{}\r\n", key.len(), key.escape_ascii());
            serve(self).on_input(&mut other, 1, get.as_bytes());
            let Some(job) = self.jobs.pop() else { panic!("a hit that was there before") };
            let fetched = FetchedValue { value: Value::new(self.world.value(key)), ttl: None };
            self.proxy.complete(Completion { fetch_id: job.fetch_id, result: Ok(Some(fetched)) }, NOW, |_, _| ());
            self.answered += 1;
        }
        self.recorder = Recorder::new(true);
    }

    /// Whole, at once, and every fetch comes back before anything else happens.
    pub fn run_whole(mut self) -> Vec<Vec<u8>> {
        while self.can(Next::TakeIn) || self.can(Next::Send) || self.can(Next::Complete) {
            if self.can(Next::Complete) {
                self.complete(0);
            } else if self.can(Next::Send) {
                self.send(usize::MAX);
            } else {
                self.take_in(usize::MAX);
            }
        }
        self.finish()
    }

    /// In the pieces and the order that are chosen.
    pub fn run(mut self, choices: &mut Choices) -> Vec<Vec<u8>> {
        let [_, order, write, _] = choices.bytes;
        // What is lazy is done only when nothing else can be.
        let (lazy, stalls) = ([Next::Complete, Next::Send], [order % 3 == 0, write % 3 == 0]);
        let is_lazy = |next: Next| lazy.iter().zip(stalls).any(|(&one, stalls)| one == next && stalls);
        let mut stalled = false;
        loop {
            let able: Vec<Next> =
                [Next::TakeIn, Next::Send, Next::Complete].into_iter().filter(|&next| self.can(next)).collect();
            if able.is_empty() {
                return self.finish();
            }
            if able == [Next::Complete] && !std::mem::replace(&mut stalled, true) {
                self.check_open_replies();
            }
            let eager: Vec<Next> = able.iter().copied().filter(|&next| !is_lazy(next)).collect();
            match choices.random.one_of(if eager.is_empty() { &able } else { &eager }) {
                Next::TakeIn => self.take_in(choices.piece((self.wire.len() - self.at).max(1))),
                Next::Send => {
                    let style = if self.writes > SHORT_WRITES { 0 } else { write / 3 };
                    let most = choices.size(style, self.connection.send_buffer().unsent_bytes().max(1));
                    self.send(most.max(1));
                }
                Next::Complete => {
                    let last = self.jobs.len() - 1;
                    let place = [0, last, choices.random.between(0, last as u64) as usize][usize::from(order / 3 % 3)];
                    self.complete(place);
                }
            }
        }
    }

    /// As the server decides (`server/client.rs`).
    fn can(&mut self, next: Next) -> bool {
        match next {
            Next::TakeIn => self.connection.can_take_request() && (self.held_up || self.at < self.wire.len()),
            Next::Send => !self.connection.send_buffer().is_empty(),
            Next::Complete => !self.jobs.is_empty(),
        }
    }

    fn take_in(&mut self, most: usize) {
        let unsent = self.connection.send_buffer().unsent_bytes();
        let mut lent = std::mem::take(&mut self.lent);
        self.connection.send_buffer().lend_tail(&mut lent);
        let mut connection = std::mem::replace(&mut self.connection, Connection::new(0, 0));
        self.held_up = if self.held_up {
            serve(self).resume_input(&mut connection, 0)
        } else {
            let piece = &self.wire[self.at..self.at.saturating_add(most).min(self.wire.len())];
            self.at += piece.len();
            serve(self).on_input(&mut connection, 0, piece)
        };
        self.connection = connection;
        self.connection.send_buffer().reclaim_tail(&mut lent);
        self.lent = lent;
        self.check_bounds(unsent);
    }

    fn send(&mut self, most: usize) {
        self.writes += 1;
        let mut slices = [IoSlice::new(&[]); MAX_IOVECS];
        let count = self.connection.send_buffer().io_slices(&mut slices, usize::MAX);
        let before = self.sent.len();
        for slice in &slices[..count] {
            let room = most - (self.sent.len() - before);
            self.sent.extend_from_slice(&slice[..slice.len().min(room)]);
        }
        let taken = self.sent.len() - before;
        assert!(taken > 0, "something waits and nothing can be sent");
        self.connection.send_buffer().advance(taken);
    }

    fn complete(&mut self, place: usize) {
        let job = self.jobs.remove(place);
        let completion = Completion { fetch_id: job.fetch_id, result: self.world.fetch(&job.key) };
        let Driver { proxy, connection, date, recorder, answered, .. } = self;
        proxy.complete(completion, NOW, |waiter, reply| {
            *answered += 1;
            connection.reply_later(waiter, reply, date, recorder);
        });
    }

    /// What a client can make the proxy hold.
    fn check_bounds(&mut self, unsent_before: usize) {
        let kept = self.connection.take_unparsed();
        let may_keep = if self.held_up { self.wire.len() } else { self.world.most_kept };
        assert!(kept.len() <= may_keep, "{} bytes are kept", kept.len());
        self.connection.store_unparsed(kept);
        self.proxy.export_metrics(&mut self.recorder.metrics);
        let open = self.recorder.metrics.misses - self.answered;
        assert!(open <= MAX_PENDING_KEYS as u64, "{open} keys are waited for");
        // One reply may go over it, which is as long as its keys' values.
        let longest = LONGEST_REPLY * self.world.most_keys;
        let unsent = self.connection.send_buffer().unsent_bytes();
        assert!(unsent <= unsent_before.max(MAX_UNSENT_BYTES) + longest, "{unsent} bytes are unsent");
    }

    /// Everything is sent that can be, and no fetch has come back.
    fn check_open_replies(&self) {
        let open = self.connection.request_count() - self.world.comparing.replies(&self.sent).len() as u64;
        assert!(open <= MAX_PENDING_REPLIES as u64, "{open} replies are waited for");
    }

    /// Nothing can come next. Then nothing may be left to do.
    fn finish(mut self) -> Vec<Vec<u8>> {
        assert!(self.connection.is_closing() || self.connection.can_take_request(), "it is stuck");
        assert!(self.connection.is_closing() || self.at == self.wire.len(), "it has stopped reading");
        let replies = self.world.comparing.replies(&self.sent);
        self.check_nothing_was_forgotten();
        assert!(self.connection.is_flushed(), "it waits for something that never comes");
        assert_eq!(self.proxy.validate(), Ok(()));
        // One about several keys may not be whole.
        let requests = self.connection.request_count();
        let metrics = &self.recorder.metrics;
        assert_eq!(metrics.requests, requests, "requests that are not counted");
        let answers: u64 = metrics.requests_by_outcome.as_flattened().iter().sum();
        assert_eq!(answers, replies.len() as u64, "replies that are not counted");
        self.check_lines(answers);
        let unfinished = requests - replies.len() as u64;
        assert!(unfinished <= u64::from(self.world.comparing.resp), "{unfinished} requests have no reply");
        replies
    }

    /// Each reply leaves a line in the access log, of printable characters.
    fn check_lines(&mut self, answers: u64) {
        self.recorder.end_turns(0);
        let lines = self.recorder.access_log_lines().map(std::mem::take).unwrap_or_default();
        assert!(lines.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\n')), "{}", lines.escape_ascii());
        let lines: Vec<&[u8]> = lines.split_inclusive(|&byte| byte == b'\n').collect();
        assert_eq!(lines.len() as u64, answers, "lines");
        let quotes = |line: &[u8]| line.iter().filter(|&&byte| byte == b'"').count();
        assert!(lines.iter().all(|line| quotes(line) == 2), "a line that is forged");
    }

    /// Going on without having been told to finds nothing to go on with.
    fn check_nothing_was_forgotten(&mut self) {
        let requests = self.connection.request_count();
        let mut connection = std::mem::replace(&mut self.connection, Connection::new(0, 0));
        assert!(!serve(self).resume_input(&mut connection, 0), "it is held up by nothing");
        self.connection = connection;
        assert!(
            self.connection.request_count() == requests && self.jobs.is_empty() && !self.can(Next::Send),
            "there was more to do, and nobody was told"
        );
    }
}

/// The one place that knows what a service is made of.
fn serve<'a>(driver: &'a mut Driver<'_>) -> Dispatcher<'a> {
    let Driver { proxy, jobs, heads, policy, date, recorder, register, .. } = driver;
    Dispatcher {
        read_through: proxy,
        jobs,
        head_decoder: heads,
        policy,
        date,
        recorder,
        registry: register,
        worker_index: 0,
        now: NOW,
    }
}
