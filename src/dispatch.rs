//! What comes in from one client: decoded, looked up, answered or noted. No socket, no clock: the server feeds it what it
//! reads, the simulation what it makes up.

use crate::admin;
use crate::connection::{Connection, DecodeStep, MAX_UNSENT_BYTES, ReplyMode};
use crate::metrics::{MetricsRegistry, Recorder};
use crate::protocol::http::{HeadDecoder, Policy, ResponseDate};
use crate::protocol::resp;
use crate::read_through::{Lookup, ReadThrough};
use crate::types::{Job, KeyResult, Millis, Payload, Reply};

/// Requests, or keys of one, that are dealt with before other clients have their turn: a hundred microseconds of work or two.
/// One read may bring ten thousand.
pub const MAX_STEPS_PER_TURN: usize = 512;

/// What telling the figures costs beside other requests: about twenty microseconds, and more where those of several loops are
/// added up.
const ADMIN_STEP_COST: usize = 80;
const ADMIN_STEP_COST_PER_WORKER: usize = 2;

/// Bytes that are copied meanwhile into a reply about several keys, beyond which others have their turn too.
const MAX_COPIED_PER_TURN: usize = MAX_UNSENT_BYTES;

/// What requests are served with.
pub struct Dispatcher<'a> {
    /// Cache and flights.
    pub read_through: &'a mut ReadThrough,
    /// Takes the fetches that have to be begun.
    pub jobs: &'a mut Vec<Job>,
    /// What request heads are decoded with.
    pub head_decoder: &'a mut HeadDecoder,
    /// What HTTP requests are taken.
    pub policy: &'a Policy,
    /// The `ResponseDate` of replies.
    pub date: &'a ResponseDate,
    /// The loop's books. Requests are counted here; what the proxy knows is added when a client asks.
    pub recorder: &'a mut Recorder,
    /// The figures of all loops, and this loop's number among them.
    pub registry: &'a MetricsRegistry,
    /// See above.
    pub worker_index: usize,
    /// The time.
    pub now: Millis,
}

impl Dispatcher<'_> {
    /// Takes what has just been read from the client in `slot`. Keeps only what cannot be used yet. Says whether that is
    /// because too much is open or was done, rather than because bytes are missing: then [`Dispatcher::resume`] goes on.
    pub fn on_input(&mut self, connection: &mut Connection, slot: usize, input: &[u8]) -> bool {
        if connection.has_unparsed() {
            let mut all = connection.take_unparsed();
            all.extend_from_slice(input);
            return self.consume_owned(connection, slot, all);
        }
        let (consumed, held_up) = self.consume(connection, slot, input);
        connection.store_unparsed(input[consumed..].to_vec());
        held_up
    }

    /// Goes on with what was kept.
    pub fn resume_input(&mut self, connection: &mut Connection, slot: usize) -> bool {
        let input = connection.take_unparsed();
        self.consume_owned(connection, slot, input)
    }

    fn consume_owned(&mut self, connection: &mut Connection, slot: usize, mut input: Vec<u8>) -> bool {
        let (consumed, held_up) = self.consume(connection, slot, &input);
        input.drain(..consumed);
        input.shrink_to_fit();
        connection.store_unparsed(input);
        held_up
    }

    /// Takes requests from the beginning of `input` until there are no more or were enough. Says how many bytes that took,
    /// and whether there are more.
    fn consume(&mut self, connection: &mut Connection, slot: usize, input: &[u8]) -> (usize, bool) {
        let (mut at, before) = (0, connection.request_count());
        let (mut steps, mut copied) = (0, 0);
        let enough = loop {
            if steps >= MAX_STEPS_PER_TURN || copied > MAX_COPIED_PER_TURN {
                break true;
            }
            steps += 1;
            match connection.decode(&input[at..], self.policy, self.head_decoder, self.date, self.recorder) {
                DecodeStep::Blocked => break !connection.can_take_request(),
                DecodeStep::Consumed(consumed) => at += consumed,
                DecodeStep::Get { key, touch, answer, consumed } => {
                    at += consumed;
                    match self.read_through.get(key, touch, connection.request_id(slot), self.now) {
                        Lookup::Reply(reply) => {
                            copied += copied_bytes(answer, &reply);
                            connection.reply_now(answer, &reply, self.date, self.recorder);
                        }
                        Lookup::Wait => connection.defer(answer, self.recorder),
                        Lookup::Fetch(job) => {
                            self.jobs.push(job);
                            connection.defer(answer, self.recorder);
                        }
                    }
                }
                DecodeStep::Ttl { key, format: shape, consumed } => {
                    at += consumed;
                    connection.reply_ttl(shape, self.read_through.remaining_ttl(key, self.now), self.recorder);
                }
                DecodeStep::Info { format: shape, consumed } => {
                    at += consumed;
                    steps += ADMIN_STEP_COST;
                    sync_metrics(self.recorder, self.read_through, self.now);
                    let metrics = &self.recorder.metrics;
                    match shape.form {
                        resp::ReplyKind::Info(sections) => {
                            let MetricsRegistry { settings, .. } = self.registry;
                            let text = admin::info(metrics, &self.registry.process(), settings, sections);
                            connection.reply_text(shape, &text, self.recorder);
                        }
                        _ => connection.reply_number(shape, metrics.entries, self.recorder),
                    }
                }
                DecodeStep::Admin { topic, format: shape, consumed } => {
                    at += consumed;
                    steps += ADMIN_STEP_COST + ADMIN_STEP_COST_PER_WORKER * self.registry.slots().len();
                    sync_metrics(self.recorder, self.read_through, self.now);
                    // What others see of this loop is as old as its last tick.
                    if let Some(worker_slot) = self.registry.slots().get(self.worker_index) {
                        worker_slot.publish(&self.recorder.metrics);
                    }
                    let document = admin::render(topic, &self.registry.snapshot(), &self.registry.settings);
                    connection.reply_admin(shape, &document, self.date, self.recorder);
                }
            }
        };
        self.recorder.metrics.requests += connection.request_count() - before;
        (at, at < input.len() && enough && !connection.is_closing())
    }
}

/// Brings a loop's figures up to date with what its proxy knows. Whoever shows them does so before.
pub fn sync_metrics(recorder: &mut Recorder, read_through: &ReadThrough, now: Millis) {
    recorder.metrics.uptime = now;
    read_through.export_metrics(&mut recorder.metrics);
}

/// Bytes that are copied into a reply about several keys. Other replies are bounded by what may be unsent.
fn copied_bytes(answer: ReplyMode, reply: &Reply<'_>) -> usize {
    match (answer, reply.outcome) {
        (ReplyMode::Part, KeyResult::Value(Payload::Inline { bytes, .. })) => bytes.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Limits;
    use crate::metrics::{Protocol, RequestOutcome};
    use crate::types::{Completion, FetchedValue, Value};
    use std::time::SystemTime;

    /// One client must not keep the loop from the others: it gets a part of what it wants, and is told to come again.
    #[test]
    fn what_is_done_at_once_is_bounded_by_keys_and_by_bytes() {
        let limits = Limits { entries: 10, bytes: usize::MAX, stale: 0 };
        let (mut read_through, mut jobs) = (ReadThrough::new(limits, 1000, 1000), Vec::new());
        let (mut recorder, mut heads, date) =
            (Recorder::default(), HeadDecoder::new(), ResponseDate::at(SystemTime::UNIX_EPOCH));
        let (policy, register) = (Policy::default(), MetricsRegistry::default());
        let mut connection = Connection::new(1, 0);
        let mut serve = |connection: &mut Connection, input: Option<&[u8]>| {
            let (read_through, jobs, heads, recorder) = (&mut read_through, &mut jobs, &mut heads, &mut recorder);
            let (policy, register, date) = (&policy, &register, &date);
            let mut service = Dispatcher {
                read_through,
                jobs,
                head_decoder: heads,
                policy,
                date,
                recorder,
                registry: register,
                worker_index: 0,
                now: 0,
            };
            let held_up = match input {
                Some(input) => service.on_input(connection, 0, input),
                None => service.resume_input(connection, 0),
            };
            for job in std::mem::take(service.jobs) {
                let bytes = vec![b'x'; if &*job.key == b"b" { 16 * 1024 } else { 1 }];
                let fetched = FetchedValue { value: Value::new(bytes), ttl: None };
                let completion = Completion { fetch_id: job.fetch_id, result: Ok(Some(fetched)) };
                service.read_through.complete(completion, 0, |request_id, reply| {
                    assert!(connection.reply_later(request_id, reply, date, service.recorder));
                });
            }
            held_up
        };
        let key_frames = |key: &str, count: usize| format!("$1\r\n{key}\r\n").repeat(count);
        for (key, keys, at_once) in [("a", 5000, MAX_STEPS_PER_TURN), ("b", 100, MAX_COPIED_PER_TURN / (16 * 1024) + 1)]
        {
            // The first time it is fetched.
            serve(&mut connection, Some(format!("*2\r\n$3\r\nGET\r\n{}", key_frames(key, 1)).as_bytes()));
            connection.send_buffer().drain(usize::MAX);
            let mget = format!("*{}\r\n$4\r\nMGET\r\n{}", keys + 1, key_frames(key, keys));
            let mut held_up = serve(&mut connection, Some(mget.as_bytes()));
            let mut rounds = 1;
            while held_up {
                assert!(connection.can_take_request() && connection.has_unparsed());
                held_up = serve(&mut connection, None);
                rounds += 1;
            }
            assert_eq!(rounds, (keys + 1).div_ceil(at_once), "{key}");
            assert!(connection.send_buffer().unsent_bytes() > keys && !connection.has_unparsed());
            connection.send_buffer().drain(usize::MAX);
        }
        assert_eq!((recorder.metrics.requests, connection.request_count()), (4, 4));
        let many = recorder.metrics.requests_by_outcome[Protocol::Resp as usize][RequestOutcome::Many as usize];
        assert_eq!((many, recorder.metrics.requests_by_outcome.as_flattened().iter().sum::<u64>()), (2, 4));
    }
}
