//! Dispatcher of one client's requests: decodes them, looks keys up, and replies or starts fetches.
//!
//! This module performs no I/O and reads no clock. The event loop passes in the bytes that it
//! received; the simulation passes in generated ones.

use crate::admin;
use crate::connection::{Connection, DecodeContext, DecodeStep, KeyAmount, MAX_UNSENT_BYTES};
use crate::metrics::{MetricsRegistry, Recorder, WorkerSlot};
use crate::protocol::{MultiReply, resp};
use crate::read_through::{Lookup, ReadThrough};
use crate::types::{Job, KeyResult, Millis, Push, Reply, UpcomingKeys};
use crate::value::Payload;

/// Maximum number of requests, or keys of one request, processed in one turn (100 to 200 us). A
/// single read can bring ten thousand.
pub const MAX_STEPS_PER_TURN: usize = 512;

/// Steps that `INFO` counts as (about 20 us).
const INFO_STEP_COST: usize = 80;

/// Steps that a request for metrics or the page counts as (about 80 us), and the steps added for
/// each worker (about 2 us).
const ADMIN_STEP_COST: usize = 240;
const ADMIN_STEP_COST_PER_WORKER: usize = 8;

/// Maximum number of bytes copied into a client's multi-key replies in one turn, as encoded. The
/// limit of unsent bytes bounds what other replies copy.
const MAX_COPIED_PER_TURN: usize = MAX_UNSENT_BYTES;

/// Number of requests in a row without a key to look ahead for, after which a turn looks ahead no
/// more. Clients begin pipelines with a few other commands, such as `SELECT`.
const MAX_FAILED_LOOK_AHEADS: usize = 4;

/// Look-ahead of one turn.
struct Prepared {
    /// End of the input whose lookups are prepared.
    end: usize,
    /// Attempts to find further keys until the turn gives up, 0 if the cache gains nothing.
    attempts_left: usize,
}

/// Processes the requests of one client at a time, with the state of its event loop.
pub struct Dispatcher<'a> {
    /// Cache and fetches in flight.
    pub read_through: &'a mut ReadThrough,
    /// Receives the fetches to start.
    pub jobs: &'a mut Vec<Job>,
    /// Context in which connections decode and reply.
    pub context: DecodeContext<'a>,
    /// Metrics of all workers, for requests that ask for them.
    pub registry: &'a MetricsRegistry,
    /// Metrics that this worker publishes.
    pub worker_slot: &'a WorkerSlot,
    /// Time of the present tick.
    pub now: Millis,
}

impl Dispatcher<'_> {
    /// Processes bytes that were read from the client in `slot`, and stores those that cannot be
    /// used yet. Returns true if a limit ended it, not missing bytes. [`Dispatcher::resume_input`]
    /// continues then.
    pub fn on_input(&mut self, connection: &mut Connection, slot: usize, input: &[u8]) -> bool {
        if connection.has_unparsed() {
            let mut all = connection.take_unparsed();
            all.extend_from_slice(input);
            return self.process_owned(connection, slot, all);
        }
        let (consumed, is_paused) = self.process(connection, slot, input);
        connection.store_unparsed(input[consumed..].to_vec());
        is_paused
    }

    /// Continues with the stored bytes.
    pub fn resume_input(&mut self, connection: &mut Connection, slot: usize) -> bool {
        let input = connection.take_unparsed();
        self.process_owned(connection, slot, input)
    }

    fn process_owned(&mut self, connection: &mut Connection, slot: usize, mut input: Vec<u8>) -> bool {
        let (consumed, is_paused) = self.process(connection, slot, &input);
        input.drain(..consumed);
        input.shrink_to_fit();
        connection.store_unparsed(input);
        is_paused
    }

    /// Processes requests from the start of `input` until bytes are missing or a limit is reached.
    /// Returns the bytes consumed, and true if a limit left some of the rest unprocessed.
    fn process(&mut self, connection: &mut Connection, slot: usize, input: &[u8]) -> (usize, bool) {
        let (mut at, requests_before) = (0, connection.request_count());
        let (mut steps, mut copied) = (0, 0);
        let benefits = self.read_through.benefits_from_look_ahead();
        let mut prepared = Prepared { end: 0, attempts_left: if benefits { MAX_FAILED_LOOK_AHEADS } else { 0 } };
        let limit_reached = loop {
            if steps >= MAX_STEPS_PER_TURN || copied > MAX_COPIED_PER_TURN {
                break true;
            }
            steps += 1;
            if at >= prepared.end && prepared.attempts_left > 0 && !connection.has_listed_keys() {
                self.look_ahead(connection, input, at, &mut prepared);
            }
            match connection.decode(&input[at..], &mut self.context) {
                DecodeStep::Blocked => break !connection.can_take_request(),
                DecodeStep::Consumed(consumed) => at += consumed,
                DecodeStep::Get { key, access, format, consumed } => {
                    at += consumed;
                    match self.read_through.get(key, access, connection.request_id(slot), self.now) {
                        Lookup::Reply(reply) => connection.reply_now(&format, &reply, &mut self.context.reply),
                        Lookup::Wait => connection.defer(format, &mut self.context.reply),
                        Lookup::Fetch(job) => {
                            self.jobs.push(job);
                            connection.defer(format, &mut self.context.reply);
                        }
                        Lookup::UnreportedReply(reply) => {
                            let key = copy_key(key);
                            connection.reply_now(&format, &reply, &mut self.context.reply);
                            connection.push_invalidation(Push::Key(&key));
                        }
                    }
                }
                DecodeStep::Keys => {
                    // This step counts as the first key.
                    let mut limits =
                        KeyAmount { keys: MAX_STEPS_PER_TURN + 1 - steps, copied: MAX_COPIED_PER_TURN - copied };
                    if benefits && connection.has_listed_keys() {
                        limits.keys = limits.keys.min(self.look_ahead_listed(connection));
                    }
                    let keys = &input[at..if prepared.end > at { prepared.end } else { input.len() }];
                    let (decoded, consumed) = self.look_up_keys(connection, slot, keys, limits);
                    if (decoded.keys, consumed) == (0, 0) {
                        break !connection.can_take_request();
                    }
                    steps += decoded.keys.saturating_sub(1);
                    copied += decoded.copied;
                    at += consumed;
                }
                DecodeStep::Ttl { key, access, format, consumed } => {
                    at += consumed;
                    let ttl = self.read_through.remaining_ttl(key, self.now);
                    let is_reported =
                        !access.client_caches || self.read_through.record_read(connection.client_id(slot), key);
                    let unreported_key: Option<Box<[u8]>> = if is_reported { None } else { Some(copy_key(key)) };
                    connection.reply_ttl(format, ttl, &mut self.context.reply);
                    if let Some(key) = unreported_key {
                        connection.push_invalidation(Push::Key(&key));
                    }
                }
                DecodeStep::Tracking { is_on, consumed } => {
                    at += consumed;
                    self.read_through.set_client_tracking(connection.client_id(slot), is_on);
                }
                DecodeStep::Info { format, consumed } => {
                    at += consumed;
                    steps += INFO_STEP_COST;
                    self.reply_info(connection, format);
                }
                DecodeStep::Admin { endpoint, format, consumed } => {
                    at += consumed;
                    steps += ADMIN_STEP_COST + ADMIN_STEP_COST_PER_WORKER * self.registry.slots().len();
                    // The published copy of this worker's metrics is as old as its last tick.
                    sync_metrics(self.context.reply.recorder, self.read_through, self.now);
                    self.worker_slot.publish(&self.context.reply.recorder.metrics);
                    let response = admin::render(endpoint, &self.registry.snapshot(), &self.registry.settings);
                    connection.reply_admin(format, &response, &mut self.context.reply);
                }
            }
        };
        self.context.reply.recorder.metrics.requests += connection.request_count() - requests_before;
        let has_rest = connection.has_listed_keys() || (at < input.len() && !connection.is_closing());
        (at, limit_reached && has_rest)
    }

    /// Serves the first request of a client, which waits for changes of keys: begins it, appends
    /// the present state of keys that the client lacks, and ends it if its time is over. `closes`
    /// ends it too. Returns true if that gave the client bytes to send.
    pub fn serve_watch(&mut self, connection: &mut Connection, slot: usize, closes: bool) -> bool {
        let unsent = connection.send_buffer().unsent_bytes();
        if !connection.is_watching() {
            self.begin_watch(connection, slot);
        }
        let Dispatcher { read_through, context, now, .. } = self;
        while let Some(watcher) = connection.take_behind(slot, *now) {
            read_through.catch_up(watcher, *now, &mut |request_id, event| {
                connection.deliver_event(request_id, event, *now, &mut context.reply)
            });
        }
        let closes = (closes || context.policy.announce_close) && connection.can_end_watch();
        if closes || connection.must_end_watch(*now) {
            self.end_watch(connection, slot);
        } else {
            connection.append_heartbeat(*now);
        }
        connection.send_buffer().unsent_bytes() > unsent
    }

    fn begin_watch(&mut self, connection: &mut Connection, slot: usize) {
        let Dispatcher { read_through, context, now, .. } = self;
        if connection.reply_stream_head(read_through.is_tracked(), &mut context.reply) {
            return;
        }
        let count = connection.watched_key_count();
        if !read_through.reserve_watchers(count) {
            return connection.refuse_watch(&mut context.reply);
        }
        let retry_spread = context.policy.retry_spread;
        connection.begin_watch(read_through.is_tracked(), retry_spread, *now, &mut context.reply);
        for part in 0..count as u32 {
            if let Some((key, request_id, has)) = connection.watched_key(slot, part) {
                let id = read_through.watch(key, request_id, has);
                connection.add_watch_id(id);
            }
        }
    }

    /// Removes the watchers of a client, and ends its request that waits for changes.
    fn end_watch(&mut self, connection: &mut Connection, slot: usize) {
        self.read_through.unwatch(connection.watchers(slot));
        connection.end_watch(self.context.policy.retry_spread, &mut self.context.reply);
    }

    /// Looks up keys of a request for several. Returns their count, and the bytes of input
    /// consumed.
    fn look_up_keys(
        &mut self,
        connection: &mut Connection,
        slot: usize,
        input: &[u8],
        limits: KeyAmount,
    ) -> (KeyAmount, usize) {
        let Dispatcher { read_through, jobs, context, now, .. } = self;
        connection.decode_keys(slot, input, limits, &mut context.reply, |key, access, request_id, multi| {
            match read_through.get(key, access, request_id, *now) {
                Lookup::Reply(reply) => return Some(push_part(multi, &reply)),
                Lookup::UnreportedReply(reply) => {
                    let copied = push_part(multi, &reply);
                    multi.push_invalidation(Push::Key(key));
                    return Some(copied);
                }
                Lookup::Wait => {}
                Lookup::Fetch(job) => jobs.push(job),
            }
            multi.push_pending();
            None
        })
    }

    /// Prepares the lookups of the next keys in `input` from `at`.
    fn look_ahead(&mut self, connection: &Connection, input: &[u8], at: usize, prepared: &mut Prepared) {
        let (mut keys, DecodeContext { head_decoder, auth, .. }) = (UpcomingKeys::new(), &self.context);
        match connection.find_upcoming_keys(&input[at..], head_decoder, auth, &mut keys) {
            0 => prepared.attempts_left -= 1,
            length => {
                self.read_through.look_ahead(&keys);
                *prepared = Prepared { end: at + length, attempts_left: MAX_FAILED_LOOK_AHEADS };
            }
        }
    }

    /// Prepares the lookups of the next keys of an HTTP request for several. Returns their number.
    fn look_ahead_listed(&mut self, connection: &Connection) -> usize {
        let mut keys = UpcomingKeys::new();
        connection.find_listed_keys(&mut keys);
        self.read_through.look_ahead(&keys);
        keys.as_slice().len()
    }

    /// Answers `INFO` and `DBSIZE`.
    fn reply_info(&mut self, connection: &mut Connection, format: resp::RespReplyFormat) {
        let context = &mut self.context.reply;
        sync_metrics(context.recorder, self.read_through, self.now);
        match format.kind {
            resp::ReplyKind::Info(sections) => {
                let MetricsRegistry { settings, .. } = self.registry;
                let text = admin::info(&context.recorder.metrics, &self.registry.process(), settings, sections);
                connection.reply_text(format, &text, context);
            }
            _ => connection.reply_number(format, context.recorder.metrics.entries, context),
        }
    }
}

/// Returns a copy of a key, which outlives the use of the context. Only for clients that track.
#[cold]
fn copy_key(key: &[u8]) -> Box<[u8]> {
    key.into()
}

/// Adds the result of the next key. Returns the bytes that were copied.
fn push_part(multi: &mut MultiReply, reply: &Reply<'_>) -> usize {
    let before = multi.part_bytes();
    multi.push(reply);
    let is_copied = matches!(reply.result, KeyResult::Value(Payload::Inline { .. }));
    if is_copied { multi.part_bytes().saturating_sub(before) } else { 0 }
}

/// Copies into the metrics what the cache and the fetches in flight count themselves. Called before
/// the metrics are shown or published.
pub fn sync_metrics(recorder: &mut Recorder, read_through: &ReadThrough, now: Millis) {
    recorder.metrics.uptime = now;
    read_through.export_metrics(&mut recorder.metrics);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Limits;
    use crate::client_auth::ClientAuth;
    use crate::connection::ReplyContext;
    use crate::metrics::{Protocol, RequestOutcome};
    use crate::protocol::http::{HeadDecoder, Policy, ResponseDate};
    use crate::types::{Completion, FetchedValue};
    use crate::value::Value;
    use std::time::SystemTime;

    /// A turn processes a bounded number of keys and copied bytes. Decoding resumes in the next
    /// turn.
    #[test]
    fn turn_is_bounded_by_keys_and_bytes() {
        let limits = Limits { entries: 10, bytes: usize::MAX, stale: 0 };
        let (mut read_through, mut jobs) = (ReadThrough::new(limits, 1000, 1000), Vec::new());
        let (mut recorder, mut head_decoder) = (Recorder::default(), HeadDecoder::new());
        let date = ResponseDate::at(SystemTime::UNIX_EPOCH);
        let mut connection = Connection::new(1, 0);
        let mut run_turn = |connection: &mut Connection, input: Option<&[u8]>| {
            let reply = ReplyContext { date: &date, recorder: &mut recorder };
            let mut dispatcher = Dispatcher {
                read_through: &mut read_through,
                jobs: &mut jobs,
                context: DecodeContext {
                    policy: &Policy::default(),
                    head_decoder: &mut head_decoder,
                    auth: &mut ClientAuth::default(),
                    offers_tracking: false,
                    reply,
                },
                registry: &MetricsRegistry::default(),
                worker_slot: &WorkerSlot::default(),
                now: 0,
            };
            let is_paused = match input {
                Some(input) => dispatcher.on_input(connection, 0, input),
                None => dispatcher.resume_input(connection, 0),
            };
            for job in std::mem::take(dispatcher.jobs) {
                let bytes = match &*job.key {
                    b"b" => vec![b'x'; 16 * 1024],
                    b"c" => vec![b'\n'; 16 * 1024],
                    _ => vec![b'x'],
                };
                let fetched = FetchedValue { value: Value::new(bytes), ttl: None };
                let completion = Completion { fetch_id: job.fetch_id, result: Ok(Some(fetched)), may_cache: true };
                dispatcher.read_through.complete(completion, 0, |request_id, reply| {
                    assert!(connection.reply_later(request_id, reply, &mut dispatcher.context.reply));
                });
            }
            is_paused
        };
        let key_frames = |key: &str, count: usize| format!("$1\r\n{key}\r\n").repeat(count);
        let mut http = Connection::new(2, 0);
        for (key, keys, max_keys_per_turn) in [
            ("a", 5000, MAX_STEPS_PER_TURN),
            ("b", 100, MAX_COPIED_PER_TURN / (16 * 1024)),
            // Each of its bytes needs an escape in JSON.
            ("c", 100, MAX_COPIED_PER_TURN / (32 * 1024)),
        ] {
            let is_http = key == "c";
            let connection = if is_http { &mut http } else { &mut connection };
            // Fetches the key, so that the keys of the request for several are hits.
            let get = match is_http {
                true => "GET /raw/c HTTP/1.1\r\nHost: x\r\n\r\n".into(),
                false => format!("*2\r\n$3\r\nGET\r\n{}", key_frames(key, 1)),
            };
            run_turn(connection, Some(get.as_bytes()));
            connection.send_buffer().drain(usize::MAX);
            let many = match is_http {
                true => format!("GET /keys?{} HTTP/1.1\r\nHost: x\r\n\r\n", "key=c&".repeat(keys)),
                false => format!("*{}\r\n$4\r\nMGET\r\n{}", keys + 1, key_frames(key, keys)),
            };
            let mut is_paused = run_turn(connection, Some(many.as_bytes()));
            let mut turns = 1;
            while is_paused {
                assert!(connection.can_take_request() && (connection.has_unparsed() || connection.has_listed_keys()));
                is_paused = run_turn(connection, None);
                turns += 1;
            }
            // The start of a RESP command is a step, and so is the head of an HTTP request.
            assert_eq!(turns, (keys + usize::from(!is_http)).div_ceil(max_keys_per_turn), "{key}");
            assert!(connection.send_buffer().unsent_bytes() > keys && !connection.has_unparsed());
            connection.send_buffer().drain(usize::MAX);
        }
        assert_eq!((recorder.metrics.requests, connection.request_count(), http.request_count()), (6, 4, 2));
        let many = recorder.metrics.requests_by_outcome[Protocol::Resp as usize][RequestOutcome::Many as usize];
        assert_eq!((many, recorder.metrics.requests_by_outcome.as_flattened().iter().sum::<u64>()), (2, 6));
    }
}
