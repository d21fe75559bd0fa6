//! Turns of the clients: their bytes to the real connections, and the replies from there.

use crate::check::{History, check};
use crate::client::{Cause, Client, Kind};
use crate::cluster::Mode;
use crate::counts::EventCounts;
use crate::versions::NAMES;
use crate::world::{CLIENTS, Moment, World};
use segment_redis_proxy::connection::{DecodeContext, ReplyContext};
use segment_redis_proxy::dispatch::Dispatcher;
use segment_redis_proxy::metrics::{MetricsRegistry, Recorder, WorkerSlot};
use segment_redis_proxy::protocol::http::{Policy, ResponseDate};
use segment_redis_proxy::types::{
    Completion, DeferredReply, Failure, Job, KeyResult, Millis, PushResult, RequestId, Source,
};

/// Capacity of the job queues of all nodes. Further jobs fail.
const QUEUE: usize = 12;

impl World {
    /// Passes up to `max_bytes` of each client's input to the proxy, or a random number of bytes.
    pub fn send_input(&mut self, max_bytes: Option<usize>) -> Result<(), String> {
        for slot in 0..CLIENTS {
            let max_bytes = max_bytes.unwrap_or_else(|| self.random.one_of(&[0, 1, 7, 60, 1000, 100_000]));
            let client = &mut self.clients[slot];
            // The proxy does not read from a client at its limit.
            if !client.connection.can_take_request() || client.is_paused {
                continue;
            }
            let piece = client.take_piece(max_bytes);
            if !piece.is_empty() {
                self.dispatch(slot, Some(&piece))?;
            }
        }
        Ok(())
    }

    /// Passes input to a connection, or resumes decoding of stored input without a piece.
    fn dispatch(&mut self, slot: usize, piece: Option<&[u8]>) -> Result<(), String> {
        let mut jobs = Vec::new();
        let client = &mut self.clients[slot];
        let first = client.connection.request_id(slot).sequence as usize;
        let mut dispatcher = Dispatcher {
            read_through: &mut self.read_through,
            jobs: &mut jobs,
            context: DecodeContext {
                policy: &Policy::default(),
                head_decoder: &mut self.head_decoder,
                auth: &mut self.auth,
                offers_tracking: self.has_tracking,
                reply: ReplyContext { date: &self.date, recorder: &mut self.recorder },
            },
            registry: &MetricsRegistry::default(),
            worker_slot: &WorkerSlot::default(),
            now: self.now,
        };
        client.is_paused = match piece {
            Some(piece) => dispatcher.on_input(&mut client.connection, slot, piece),
            None => dispatcher.resume_input(&mut client.connection, slot),
        };
        self.record_decoded(slot, first);
        jobs.into_iter().try_for_each(|job| self.submit(job))
    }

    /// Passes on invalidations to clients that cache values, all of them or some.
    pub fn deliver_pushes(&mut self) {
        let World { read_through, clients, random, .. } = self;
        read_through.deliver_pushes(random.one_of(&[1, 3, usize::MAX]), |id, push| {
            let connection = &mut clients[id.slot].connection;
            if connection.id == id.connection_id { connection.push_invalidation(push) } else { PushResult::NotTracking }
        });
    }

    /// Hands a job to the node of its key.
    pub fn submit(&mut self, job: Job) -> Result<(), String> {
        let Some(key) = NAMES.iter().position(|name| name.as_bytes() == &*job.key) else {
            return Err(format!("a fetch of {:?}, which no client has requested", job.key.escape_ascii().to_string()));
        };
        if self.link.reads.len() < QUEUE {
            self.record(format_args!("fetch {} of k{key} starts", job.fetch_id));
            let node = self.set.route(&job.key);
            self.counts.parked += u64::from(node.is_none());
            self.link.start_read(job, key, node, (self.now, self.moment), &mut self.random);
        } else {
            self.record(format_args!("fetch {} of k{key} is refused", job.fetch_id));
            let completion = Completion { fetch_id: job.fetch_id, result: Err(Failure::QueueFull), may_cache: true };
            self.complete_fetch(completion, Cause::Failed);
        }
        Ok(())
    }

    /// Records the requests that the proxy has decoded since request number `first`, and their
    /// keys.
    fn record_decoded(&mut self, slot: usize, first: usize) {
        let time = (self.now, self.moment);
        let client = &mut self.clients[slot];
        let next = client.connection.request_id(slot);
        let mut kinds = Vec::new();
        for (number, request) in client.requests.iter_mut().enumerate().skip(first) {
            // The proxy may have decoded some keys of an incomplete request.
            let is_complete = number < next.sequence as usize;
            let keys = match next.part {
                _ if is_complete => request.parts.len(),
                part if number == next.sequence as usize => part as usize,
                _ => break,
            };
            for part in request.parts[..keys].iter_mut().filter(|part| part.decoded_at.is_none()) {
                (part.decoded_at, part.replied_at) = (Some(time), time);
                part.floor = self.floors.of(part.key, self.now);
            }
            if is_complete {
                request.decoded_at = request.decoded_at.or(Some(self.now));
                kinds.push(request.kind.clone());
            }
        }
        if !kinds.is_empty() {
            self.record(format_args!("client {slot} requests {kinds:?}"));
        }
    }

    /// Reads up to `max_bytes` of the output for each client, or a random number of bytes, and
    /// checks the complete replies. Clients with stored input then go on, and closed ones are
    /// replaced.
    pub fn receive_output(&mut self, max_bytes: Option<usize>) -> Result<(), String> {
        for slot in 0..CLIENTS {
            let max_bytes = max_bytes.unwrap_or_else(|| self.random.one_of(&[0, 10, 500, 1 << 20]));
            let pushes = self.clients[slot].push_count;
            let replies = self.clients[slot].receive(max_bytes).map_err(|error| format!("client {slot}: {error}"))?;
            self.counts.pushes += self.clients[slot].push_count - pushes;
            for (request, response) in replies {
                self.record(format_args!("client {slot} receives {:?} {:?}", response.content, response.status));
                let history = History {
                    versions: &self.cluster.versions,
                    fetches: &self.fetches,
                    tracking_lost_at: self.tracking_lost_at,
                };
                check(&request, &response, &history, &self.age_limits)
                    .map_err(|error| format!("client {slot} at {}: {error}\n{request:?}\n{response:?}", self.now))?;
                self.counts.count_reply(&request, &response.content, self.cluster.mode == Mode::Cluster);
            }
            while self.clients[slot].is_paused && self.clients[slot].connection.can_take_request() {
                self.dispatch(slot, None)?;
            }
            let client = &mut self.clients[slot];
            if client.connection.is_closing() && client.connection.is_flushed() {
                if client.reply_count == 0 || !client.requests[client.reply_count - 1].is_last {
                    return Err(format!("client {slot} was closed before its last request"));
                }
                self.replace_client(slot);
            }
        }
        Ok(())
    }
}

/// Delivers a reply to its connection, as the worker does.
pub fn deliver_reply(
    clients: &mut [Client],
    request_id: RequestId,
    reply: &DeferredReply<'_>,
    cause: Cause,
    (date, recorder): (&ResponseDate, &mut Recorder),
    time: (Millis, Moment),
    counts: &mut EventCounts,
) {
    let client = &mut clients[request_id.slot];
    let is_same_connection = client.connection.id == request_id.connection_id;
    let is_taken = client.connection.reply_later(request_id, reply, &mut ReplyContext { date, recorder });
    if !is_same_connection {
        assert!(!is_taken, "a new connection took a reply for an earlier one");
        counts.orphans += 1;
        return;
    }
    let request = &mut client.requests[request_id.sequence as usize];
    // A RESP reply that has failed does not take values for its other keys. Neither does a
    // malformed `MGET`.
    let has_failed = request.parts.iter().any(|part| part.has_failed) && !matches!(request.kind, Kind::List(_));
    let is_decided = has_failed || matches!(request.kind, Kind::MalformedMget(_));
    let part = &mut request.parts[request_id.part as usize];
    assert_eq!(part.cause, None, "second reply for one key");
    assert!(is_taken || is_decided, "the connection did not take a reply");
    let is_hit = matches!(reply.source, Source::Cache { .. });
    assert!(!is_hit || [Cause::Outage, Cause::WaitTimeout].contains(&cause), "a hit for a waiter");
    (part.replied_at, part.cause, part.source) = (time, Some(cause), Some(reply.source));
    part.has_failed = is_taken && matches!(reply.result, KeyResult::Failed(_));
}
