//! World of one seed: the real read-through cache and connections, with simulated clients, Redis
//! and link around them.

use crate::check::{AgeLimits, History, check};
use crate::client::{Cause, Client, Content, Kind, PASSWORD, Request};
use crate::link::{Link, Read, ReadResult, Step, Tracking};
use crate::random::Random;
use crate::redis::{KEYS, Redis, Version};
use segment_redis_proxy::backend::Reading;
use segment_redis_proxy::cache::Limits;
use segment_redis_proxy::client_auth::{ClientAuth, ClientPasswords, SharedPasswords};
use segment_redis_proxy::connection::{DecodeContext, MAX_PENDING_REPLIES, MAX_UNSENT_BYTES, ReplyContext};
use segment_redis_proxy::dispatch::Dispatcher;
use segment_redis_proxy::log_format::LogFormat;
use segment_redis_proxy::metrics::{MetricsRegistry, Recorder, WorkerSlot};
use segment_redis_proxy::protocol::http::{HeadDecoder, Policy, ResponseDate};
use segment_redis_proxy::read_through::ReadThrough;
use segment_redis_proxy::types::{Completion, Failure, Invalidation, Job, KeyResult, Millis, Reply, RequestId, Source};
use std::sync::Arc;
use std::time::SystemTime;

/// Number of events so far, which orders events within a millisecond.
pub type Moment = u64;

const CLIENTS: usize = 5;

/// Capacity of the job queue. Further jobs fail.
const QUEUE: usize = 12;

/// Longest entry: a value of 20,000 bytes with its name, and its key.
const MAX_ENTRY_BYTES: usize = 20_020;

/// Longest reply, a value with the head of its response.
const MAX_REPLY_BYTES: usize = 21_000;

/// Number of events of each kind that the simulation is meant to produce.
#[derive(Clone, Debug, Default)]
pub struct EventCounts {
    pub replies: u64,
    pub hits: u64,
    pub stale: u64,
    pub collapsed: u64,
    pub errors: u64,
    pub wait_timeouts: u64,
    /// Replies to clients that were reset.
    pub orphans: u64,
    /// Results of reads in transit when an invalidation of their key arrived.
    pub overtaken: u64,
    pub resets: u64,
    pub invalidations: u64,
    pub cuts: u64,
    /// Replies for several keys, with hits and keys that had to wait.
    pub partly_deferred: u64,
    /// Values read before a write and combined with the lifetime after it.
    pub mixed_reads: u64,
    /// Empty values, which a second read tells from missing keys.
    pub empty: u64,
    /// Requests without the password that they need.
    pub denied: u64,
}

impl EventCounts {
    fn all(&mut self) -> [&mut u64; 15] {
        let EventCounts { replies, hits, stale, collapsed, errors, wait_timeouts, orphans, .. } = self;
        let EventCounts { overtaken, resets, invalidations, cuts, partly_deferred, mixed_reads, empty, denied, .. } =
            self;
        [
            replies,
            hits,
            stale,
            collapsed,
            errors,
            wait_timeouts,
            orphans,
            overtaken,
            resets,
            invalidations,
            cuts,
            partly_deferred,
            mixed_reads,
            empty,
            denied,
        ]
    }

    pub fn add(&mut self, other: &EventCounts) {
        self.all().into_iter().zip(other.clone().all()).for_each(|(sum, count)| *sum += *count);
    }

    fn count_reply(&mut self, request: &Request, content: &Content) {
        let is_error = matches!(content, Content::Error { .. });
        self.replies += 1;
        self.errors += u64::from(is_error);
        self.denied += u64::from(matches!(request.kind, Kind::Denied(_)));
        for part in &request.parts {
            let status = part.status();
            self.hits += u64::from(status.starts_with("hit"));
            self.stale += u64::from(status.starts_with("fwd=stale"));
            self.collapsed += u64::from(status.contains("collapsed"));
            self.wait_timeouts += u64::from(part.cause == Some(Cause::WaitTimeout));
        }
        let deferred = request.parts.iter().filter(|part| part.cause.is_some()).count();
        self.partly_deferred += u64::from(deferred > 0 && deferred < request.parts.len() && !is_error);
    }

    /// Panics unless each kind of event occurred more than 100 times.
    pub fn assert_all_occurred(&self) {
        assert!(self.clone().all().iter().all(|count| **count > 100), "an event hardly ever occurs: {self:?}");
    }
}

/// State of one simulation.
pub struct World {
    random: Random,
    now: Millis,
    moment: Moment,
    date: ResponseDate,
    head_decoder: HeadDecoder,
    recorder: Recorder,
    read_through: ReadThrough,
    limits: Limits,
    age_limits: AgeLimits,
    redis: Redis,
    link: Link,
    clients: Vec<Client>,
    /// Passwords of clients, which are required in some seeds.
    auth: ClientAuth,
    needs_password: bool,
    last_connection_id: u64,
    /// For each key, versions that had ended by this moment must not be sent from now on.
    floors: [Moment; KEYS],
    /// The same for stale replies.
    stale_floors: [Moment; KEYS],
    /// Time at which all entries last expired at once, because tracking was lost.
    tracking_lost_at: Millis,
    /// Time of the last fetch of each version of each key.
    fetched_at: [Vec<Option<Millis>>; KEYS],
    is_verbose: bool,
    pub counts: EventCounts,
    /// Hash of all events.
    pub event_hash: u64,
}

impl World {
    pub fn new(seed: u64, is_verbose: bool) -> World {
        let mut random = Random::new(seed);
        let stale = random.one_of(&[0, 0, 40, 300]);
        let bytes = random.one_of(&[usize::MAX, usize::MAX, 40, 300, 3000, 25_000]);
        let limits = Limits { entries: random.between(1, KEYS as u64 + 1) as usize, bytes, stale };
        let (ttl, wait_timeout) = (random.one_of(&[1, 20, 100, 1000]), random.one_of(&[10, 50, 200]));
        let (tracking, needs_password) = (random.percent(60), random.percent(30));
        let auth = match ClientPasswords::parse(PASSWORD) {
            Ok(passwords) if needs_password => ClientAuth::required(Arc::new(SharedPasswords::new(passwords))),
            _ => ClientAuth::default(),
        };
        let mut last_connection_id = 0;
        let clients = std::array::from_fn::<_, CLIENTS, _>(|_| {
            last_connection_id += 1;
            Client::new(last_connection_id, needs_password, &mut random)
        });
        World {
            now: random.below(1000),
            moment: 0,
            date: ResponseDate::at(SystemTime::UNIX_EPOCH),
            head_decoder: HeadDecoder::new(),
            recorder: Recorder::new(Some(LogFormat::Text)),
            read_through: ReadThrough::new(limits, ttl, wait_timeout),
            limits,
            age_limits: AgeLimits { ttl, stale, wait_timeout },
            redis: Redis::new(),
            link: Link::new(tracking, wait_timeout, &mut random),
            clients: clients.into(),
            auth,
            needs_password,
            last_connection_id,
            floors: [0; KEYS],
            stale_floors: [0; KEYS],
            tracking_lost_at: 0,
            fetched_at: Default::default(),
            is_verbose,
            counts: EventCounts::default(),
            event_hash: 0,
            random,
        }
    }

    /// Records an event, and prints it if verbose.
    fn record(&mut self, event: std::fmt::Arguments<'_>) {
        let text = std::fmt::format(event);
        self.moment += 1;
        self.event_hash =
            text.bytes().fold(self.event_hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        if self.is_verbose {
            println!("{:>6} {text}", self.now);
        }
    }

    /// Produces one random event, runs everything that is due, and checks all replies and bounds.
    pub fn step(&mut self) -> Result<(), String> {
        let client = self.random.below(CLIENTS as u64) as usize;
        let key = self.random.below(KEYS as u64) as usize;
        match self.random.below(100) {
            0..25 => self.clients[client].send_requests(&mut self.random),
            25..30 => self.reset_client(client),
            30..45 => self.write_key(key),
            45..47 => self.flush_redis(),
            47..49 => {
                self.record(format_args!("cut of the tracking connection"));
                self.counts.cuts += u64::from(self.link.tracking == Tracking::Up);
                self.link.cut_tracking(self.now, &mut self.random);
            }
            49..55 => {
                self.record(format_args!("start of tracking"));
                self.link.start_tracking(self.now, &mut self.random);
            }
            55 => self.start_outage(),
            56..62 => self.link.has_outage = false,
            62..64 => self.link.invalidate(invalidation_of(key), self.now, &mut self.random),
            _ => {
                let time = match self.random.below(4) {
                    0 => 0,
                    1 => self.random.below(5),
                    2 => self.random.below(60),
                    // Exactly until the next event.
                    _ => self.next_event_time().map_or(0, |time| time.saturating_sub(self.now)),
                };
                self.advance_to(self.now + time);
            }
        }
        self.send_input(None)?;
        self.run_due();
        self.receive_output(None)?;
        self.check_bounds()
    }

    /// Runs without new events until every client has all its replies.
    pub fn settle(&mut self) -> Result<(), String> {
        self.link.has_outage = false;
        while !self.link.reads.is_empty() || self.clients.iter().any(|client| !has_all_replies(client)) {
            let before = (self.now, self.counts.replies);
            self.send_input(Some(usize::MAX))?;
            let next = self.next_event_time().unwrap_or(self.now);
            self.advance_to(next.max(self.now));
            self.run_due();
            self.receive_output(Some(usize::MAX))?;
            self.check_bounds()?;
            let is_stuck = before == (self.now, self.counts.replies) && self.next_event_time().is_none();
            if is_stuck && self.clients.iter().any(|client| !has_all_replies(client)) {
                return Err("a client waits, although nothing is pending".into());
            }
        }
        Ok(())
    }

    fn next_event_time(&self) -> Option<Millis> {
        let times = [self.link.next_arrival(), self.read_through.next_deadline(), self.redis.next_expiry()];
        times.into_iter().flatten().min()
    }

    /// Advances the time, with all events of Redis and the link until then, in order.
    fn advance_to(&mut self, end: Millis) {
        loop {
            self.run_redis_and_link();
            let next = [self.link.next_arrival(), self.redis.next_expiry()].into_iter().flatten().min();
            match next.filter(|&next| next <= end) {
                Some(next) => self.now = self.now.max(next),
                None => break,
            }
        }
        self.now = end;
    }

    /// Runs the events of Redis and the link that are due.
    fn run_redis_and_link(&mut self) {
        // An expiry has its own moment, so that no version ends at the moment at which it started.
        self.moment += 1;
        for key in self.redis.expire(self.now, self.moment) {
            // Redis invalidates a key when it removes it, perhaps later. The proxy must not depend
            // on the invalidation.
            self.record(format_args!("k{key} expires"));
            if self.random.percent(50) {
                self.link.invalidate(invalidation_of(key), self.now, &mut self.random);
            }
        }
        let mut index = 0;
        while index < self.link.reads.len() {
            if self.link.reads[index].due > self.now {
                index += 1;
                continue;
            }
            let read = self.link.reads.swap_remove(index);
            match self.advance_read(&read) {
                Some((step, due)) => self.link.reads.push(Read { step, due, ..read }),
                None => {
                    if let Step::Arrive(result) = read.step {
                        self.complete_read(&read.job, read.key, read.started_at, result);
                    }
                }
            }
        }
        while let Some(invalidation) = self.link.take_invalidation(self.now) {
            self.apply_invalidation(&invalidation);
        }
    }

    /// Executes the command of a read that is due. Returns the next step, or `None` if the result
    /// has arrived.
    fn advance_read(&mut self, read: &Read) -> Option<(Step, Millis)> {
        let key = read.key;
        match &read.step {
            &Step::Value { by_get } => {
                let (version, Version { value, .. }) = self.redis.current(key);
                let step = Step::Ttl { by_get, version, value: value.clone() };
                let due = self.link.next_command(self.now, &mut self.random);
                // A write between the two commands.
                if self.random.percent(10) {
                    self.write_key(key);
                }
                Some((step, due))
            }
            Step::Ttl { by_get, version, value } => {
                // `GETRANGE` returns an empty value for a missing key, `GET` does not.
                let bytes = value.as_ref().map(|value| value.clone().into_bytes());
                let bytes = if *by_get { bytes } else { bytes.or(Some(Vec::new())) };
                let (current, _) = self.redis.current(key);
                let (version, fetched) = match Reading::of(bytes, self.redis.ttl(key, self.now), usize::MAX) {
                    Reading::Empty(_) if !by_get => {
                        self.counts.empty += 1;
                        return Some((Step::Value { by_get: true }, self.now));
                    }
                    Reading::Empty(fetched) | Reading::Value(fetched) => (*version, Some(fetched)),
                    Reading::Missing if value.is_some() => (current, None),
                    Reading::Missing => (*version, None),
                    Reading::Truncated => return None,
                };
                if fetched.is_some() && current > version {
                    self.counts.mixed_reads += 1;
                    self.extend_expiry(key, version, current);
                }
                Some(self.link.last_step(ReadResult::Read(version, fetched), self.now, &mut self.random))
            }
            Step::Arrive(_) => None,
        }
    }

    /// Records that a read combined an older value with the lifetime of a newer version. The proxy
    /// may serve the value for as long as the newer version.
    fn extend_expiry(&mut self, key: usize, version: usize, newer: usize) {
        let versions = &mut self.redis.keys[key];
        versions[version].newer_expires = versions[version].newer_expires.max(versions[newer].expires);
    }

    fn complete_read(&mut self, job: &Job, key: usize, started_at: Moment, read_result: ReadResult) {
        let (result, cause) = match read_result {
            ReadResult::Read(number, fetched) => {
                let versions = &mut self.fetched_at[key];
                versions.resize(versions.len().max(number + 1), None);
                versions[number] = Some(self.now);
                // Later replies must not be older than this version. An overtaken fetch proves
                // nothing: a newer version may have arrived since.
                if self.floors[key] <= started_at {
                    let from = self.redis.keys[key][number].from;
                    self.floors[key] = self.floors[key].max(from);
                    self.stale_floors[key] = self.stale_floors[key].max(from);
                }
                (Ok(fetched), Cause::Fetched)
            }
            ReadResult::Unavailable => (Err(Failure::Unavailable), Cause::Outage),
            ReadResult::TimedOut => (Err(Failure::Timeout), Cause::Outage),
            ReadResult::Error => (Err(Failure::Redis("ERR of some kind".into())), Cause::Failed),
        };
        self.record(format_args!("fetch {} of k{key} completes: {cause:?}", job.fetch_id));
        self.complete_fetch(Completion { fetch_id: job.fetch_id, result, may_cache: true }, cause);
    }

    fn complete_fetch(&mut self, completion: Completion, cause: Cause) {
        let World { read_through, clients, date, recorder, counts, .. } = self;
        let time = (self.now, self.moment);
        read_through.complete(completion, self.now, |request_id, reply| {
            deliver_reply(clients, request_id, reply, cause, (date, recorder), time, counts);
        });
    }

    fn apply_invalidation(&mut self, invalidation: &Invalidation) {
        self.record(format_args!("invalidation {invalidation:?} arrives"));
        self.counts.invalidations += 1;
        let is_tracking_lost = *invalidation == Invalidation::TrackingLost;
        if is_tracking_lost {
            self.tracking_lost_at = self.now;
        }
        for key in 0..KEYS {
            let is_of_key = *invalidation == invalidation_of(key);
            if is_of_key || !is_tracking_lost && !matches!(invalidation, Invalidation::Key(_)) {
                (self.floors[key], self.stale_floors[key]) = (self.moment, self.moment);
            } else if is_tracking_lost {
                self.floors[key] = self.moment;
            }
            let reads = self.link.reads.iter().filter(|read| read.key == key && matches!(read.step, Step::Arrive(_)));
            self.counts.overtaken += if is_of_key { reads.count() as u64 } else { 0 };
        }
        self.read_through.invalidate(invalidation, self.now);
    }

    fn write_key(&mut self, key: usize) {
        self.record(format_args!("k{key} changes"));
        if self.random.percent(20) {
            self.redis.delete(key, self.moment);
        } else {
            self.redis.write(key, self.now, self.moment, &mut self.random);
        }
        self.link.invalidate(invalidation_of(key), self.now, &mut self.random);
    }

    fn flush_redis(&mut self) {
        self.record(format_args!("flush of Redis"));
        (0..KEYS).for_each(|key| self.redis.delete(key, self.moment));
        self.link.invalidate(Invalidation::All, self.now, &mut self.random);
    }

    fn start_outage(&mut self) {
        self.record(format_args!("outage of Redis"));
        self.link.has_outage = true;
        self.counts.cuts += u64::from(self.link.tracking == Tracking::Up);
        self.link.cut_tracking(self.now, &mut self.random);
    }

    /// Replaces a client by a new one, as after a reset of its connection.
    fn reset_client(&mut self, slot: usize) {
        self.record(format_args!("client {slot} is reset"));
        self.counts.resets += 1;
        self.replace_client(slot);
    }

    fn replace_client(&mut self, slot: usize) {
        self.last_connection_id += 1;
        self.clients[slot] = Client::new(self.last_connection_id, self.needs_password, &mut self.random);
    }

    /// Passes up to `max_bytes` of each client's input to the proxy, or a random number of bytes.
    fn send_input(&mut self, max_bytes: Option<usize>) -> Result<(), String> {
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
        for job in jobs {
            let text = String::from_utf8_lossy(&job.key).into_owned();
            let Some(key) = text.strip_prefix('k').and_then(|key| key.parse().ok()) else {
                return Err(format!("a fetch of {text:?}, which no client has requested"));
            };
            if self.link.reads.len() < QUEUE {
                self.record(format_args!("fetch {} of k{key} starts", job.fetch_id));
                self.link.start_read(job, key, (self.now, self.moment), &mut self.random);
            } else {
                self.record(format_args!("fetch {} of k{key} is refused", job.fetch_id));
                let completion =
                    Completion { fetch_id: job.fetch_id, result: Err(Failure::QueueFull), may_cache: true };
                self.complete_fetch(completion, Cause::Failed);
            }
        }
        Ok(())
    }

    /// Records the requests that the proxy has decoded since request number `first`, and their
    /// keys.
    fn record_decoded(&mut self, slot: usize, first: usize) {
        let time = (self.now, self.moment);
        let client = &mut self.clients[slot];
        let next = client.connection.request_id(slot);
        let (floors, stale_floors) = (&self.floors, &self.stale_floors);
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
                (part.floor, part.stale_floor) = (floors[part.key], stale_floors[part.key]);
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

    /// Runs what is due: arrivals, timeouts of waiters and the sweep.
    fn run_due(&mut self) {
        self.run_redis_and_link();
        let World { read_through, clients, date, recorder, counts, random, .. } = self;
        let time = (self.now, self.moment);
        while read_through.tick(self.now, random.between(1, 4) as usize, |request_id, reply| {
            deliver_reply(clients, request_id, reply, Cause::WaitTimeout, (date, recorder), time, counts);
        }) {}
    }

    /// Reads up to `max_bytes` of the output for each client, or a random number of bytes, and
    /// checks the complete replies. Clients with stored input then go on, and closed ones are
    /// replaced.
    fn receive_output(&mut self, max_bytes: Option<usize>) -> Result<(), String> {
        for slot in 0..CLIENTS {
            let max_bytes = max_bytes.unwrap_or_else(|| self.random.one_of(&[0, 10, 500, 1 << 20]));
            let replies = self.clients[slot].receive(max_bytes).map_err(|error| format!("client {slot}: {error}"))?;
            for (request, response) in replies {
                self.record(format_args!("client {slot} receives {:?} {:?}", response.content, response.status));
                let history = History {
                    redis: &self.redis,
                    fetched_at: &self.fetched_at,
                    tracking_lost_at: self.tracking_lost_at,
                };
                check(&request, &response, &history, &self.age_limits).map_err(|error| {
                    format!(
                        "client {slot} at {}: {error}\n{request:?}\n{response:?}\nfloors {:?}",
                        self.now, self.floors
                    )
                })?;
                self.counts.count_reply(&request, &response.content);
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

    fn check_bounds(&mut self) -> Result<(), String> {
        self.read_through.validate()?;
        let cached_bytes = self.read_through.cache().bytes();
        if cached_bytes > self.limits.bytes.saturating_add(MAX_ENTRY_BYTES) {
            return Err(format!("{cached_bytes} bytes are cached"));
        }
        let metrics = &mut self.recorder.metrics;
        self.read_through.export_metrics(metrics);
        if metrics.early_evictions > metrics.evicted {
            return Err(format!("{} of {} evictions are early", metrics.early_evictions, metrics.evicted));
        }
        for (slot, client) in self.clients.iter_mut().enumerate() {
            let unsent = client.connection.send_buffer().unsent_bytes();
            if unsent > MAX_UNSENT_BYTES + MAX_PENDING_REPLIES * MAX_REPLY_BYTES {
                return Err(format!("client {slot} has {unsent} bytes unsent"));
            }
            // Without unsent bytes, all pending requests wait for their values.
            let times = client.pending_requests().filter_map(|request| request.decoded_at);
            let waits_since = times.min().filter(|_| unsent == 0);
            if waits_since.is_some_and(|decoded_at| decoded_at + self.age_limits.wait_timeout <= self.now) {
                return Err(format!("client {slot} still waits at {} for a request of {waits_since:?}", self.now));
            }
            let pending = client.pending_requests().count();
            if unsent == 0 && pending > MAX_PENDING_REPLIES {
                return Err(format!("client {slot} has {pending} pending replies"));
            }
        }
        Ok(())
    }
}

fn invalidation_of(key: usize) -> Invalidation {
    Invalidation::Key(format!("k{key}").into_bytes())
}

/// Returns true if a client has received a reply to each of its requests.
fn has_all_replies(client: &Client) -> bool {
    client.reply_count == client.requests.len()
}

/// Delivers a reply to its connection, as the worker does.
fn deliver_reply(
    clients: &mut [Client],
    request_id: RequestId,
    reply: &Reply<'_>,
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
    // A reply that has failed does not take values for its other keys. Neither does a malformed
    // `MGET`.
    let is_decided = request.parts.iter().any(|part| part.has_failed) || matches!(request.kind, Kind::MalformedMget(_));
    let part = &mut request.parts[request_id.part as usize];
    assert_eq!(part.cause, None, "second reply for one key");
    assert!(is_taken || is_decided, "the connection did not take a reply");
    let is_hit = matches!(reply.source, Source::Cache { .. });
    assert!(!is_hit || [Cause::Outage, Cause::WaitTimeout].contains(&cause), "a hit for a waiter");
    (part.replied_at, part.cause, part.source) = (time, Some(cause), Some(reply.source));
    part.has_failed = is_taken && matches!(reply.result, KeyResult::Failed(_));
}
