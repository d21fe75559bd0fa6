//! The proxy and its clients' connections, the model Redis and what lies between, and what happens to them.

use crate::check::{History, Rules, check};
use crate::client::{Cause, Client, Content, Kind, Request};
use crate::link::{Answer, Link, Read, Step, Tracking};
use crate::random::Random;
use crate::redis::{KEYS, Redis, Version};
use segment_redis_proxy::backend::Reading;
use segment_redis_proxy::cache::Limits;
use segment_redis_proxy::connection::{DecodeContext, MAX_PENDING_REPLIES, MAX_UNSENT_BYTES, ReplyContext};
use segment_redis_proxy::dispatch::Dispatcher;
use segment_redis_proxy::metrics::{MetricsRegistry, Recorder, WorkerSlot};
use segment_redis_proxy::protocol::http::{HeadDecoder, Policy, ResponseDate};
use segment_redis_proxy::read_through::ReadThrough;
use segment_redis_proxy::types::{Completion, Failure, Invalidation, Job, KeyResult, Millis, Reply, RequestId, Source};
use std::time::SystemTime;

/// Counts what happens: within a millisecond too there is a before and an after.
pub type Moment = u64;

const CLIENTS: usize = 5;

/// Jobs that the helpers take; more are refused.
const QUEUE: usize = 12;

/// How often things happened that the simulation is there for.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub replies: u64,
    pub hits: u64,
    pub stale: u64,
    pub collapsed: u64,
    pub errors: u64,
    pub overdue: u64,
    /// Completions for clients that were gone.
    pub orphans: u64,
    /// Fetches that a change has overtaken.
    pub overtaken: u64,
    pub resets: u64,
    pub changes: u64,
    pub cuts: u64,
    /// Replies about several keys, not all of which were there at once.
    pub copied: u64,
    /// Values that were read before a write, and their lifetime after it.
    pub split: u64,
    /// Empty values, which may be missing keys.
    pub empty: u64,
}

impl Seen {
    fn all(&mut self) -> [&mut u64; 14] {
        let Seen { replies, hits, stale, collapsed, errors, overdue, orphans, .. } = self;
        let Seen { overtaken, resets, changes, cuts, copied, split, empty, .. } = self;
        [
            replies, hits, stale, collapsed, errors, overdue, orphans, overtaken, resets, changes, cuts, copied, split,
            empty,
        ]
    }

    pub fn add(&mut self, other: &Seen) {
        self.all().into_iter().zip(other.clone().all()).for_each(|(sum, count)| *sum += *count);
    }

    fn count(&mut self, request: &Request, content: &Content) {
        let some = |part: bool| u64::from(part);
        self.replies += 1;
        self.errors += some(matches!(content, Content::Error { .. }));
        for part in &request.parts {
            let status = part.status();
            self.hits += some(status.starts_with("hit"));
            self.stale += some(status.starts_with("fwd=stale"));
            self.collapsed += some(status.contains("collapsed"));
            self.overdue += some(part.cause == Some(Cause::Overdue));
        }
        let waited = request.parts.iter().filter(|part| part.cause.is_some()).count();
        self.copied += some(waited > 0 && waited < request.parts.len() && !matches!(content, Content::Error { .. }));
    }

    pub fn assert_everything_was_seen(&self) {
        assert!(self.clone().all().iter().all(|count| **count > 100), "some of it hardly ever happens: {self:?}");
    }
}

/// See the top of the file.
pub struct World {
    random: Random,
    now: Millis,
    moment: Moment,
    date: ResponseDate,
    heads: HeadDecoder,
    recorder: Recorder,
    proxy: ReadThrough,
    limits: Limits,
    policy: Rules,
    redis: Redis,
    link: Link,
    clients: Vec<Client>,
    generation: u64,
    /// What has ended before this must not be the answer to what is asked from now on, for each key; and not even when
    /// Redis is away.
    floors: [Moment; KEYS],
    hard_floors: [Moment; KEYS],
    /// When all entries last expired at once, because changes were not heard of any more.
    unwatched: Millis,
    /// When a fetch last brought each version.
    brought: [Vec<Option<Millis>>; KEYS],
    tell: bool,
    pub seen: Seen,
    /// Changes with everything that happens.
    pub trace: u64,
}

impl World {
    pub fn new(seed: u64, tell: bool) -> World {
        let mut random = Random::new(seed);
        let stale = random.one_of(&[0, 0, 40, 300]);
        let bytes = random.one_of(&[usize::MAX, usize::MAX, 40, 300, 3000, 25_000]);
        let limits = Limits { entries: random.between(1, KEYS as u64 + 1) as usize, bytes, stale };
        let policy = Rules { ttl: random.one_of(&[1, 20, 100, 1000]), stale, timer: random.one_of(&[10, 50, 200]) };
        let tracking = random.percent(60);
        let mut generation = 0;
        let clients = std::array::from_fn::<_, CLIENTS, _>(|_| {
            generation += 1;
            Client::new(generation, &mut random)
        });
        World {
            now: random.below(1000),
            moment: 0,
            date: ResponseDate::at(SystemTime::UNIX_EPOCH),
            heads: HeadDecoder::new(),
            recorder: Recorder::new(true),
            proxy: ReadThrough::new(limits, policy.ttl, policy.timer),
            limits,
            redis: Redis::new(),
            link: Link::new(tracking, policy.timer, &mut random),
            policy,
            clients: clients.into(),
            generation,
            floors: [0; KEYS],
            hard_floors: [0; KEYS],
            unwatched: 0,
            brought: Default::default(),
            tell,
            seen: Seen::default(),
            trace: 0,
            random,
        }
    }

    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let text = std::fmt::format(what);
        self.moment += 1;
        self.trace = text.bytes().fold(self.trace, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        if self.tell {
            println!("{:>6} {text}", self.now);
        }
    }

    /// Something happens; then all that is due is done and everything is checked.
    pub fn step(&mut self) -> Result<(), String> {
        let client = self.random.below(CLIENTS as u64) as usize;
        let key = self.random.below(KEYS as u64) as usize;
        match self.random.below(100) {
            0..25 => self.clients[client].ask(&mut self.random),
            25..30 => self.reset(client),
            30..45 => self.write(key),
            45..47 => self.flush(),
            47..49 => {
                self.note(format_args!("the tracking connection is cut"));
                self.seen.cuts += u64::from(self.link.tracking == Tracking::Up);
                self.link.cut(self.now, &mut self.random);
            }
            49..55 => {
                self.note(format_args!("tracking may begin"));
                self.link.join(self.now, &mut self.random);
            }
            55 => self.begin_outage(),
            56..62 => self.link.outage = false,
            62..64 => self.link.tell(key_change(key), self.now, &mut self.random),
            _ => {
                let time = match self.random.below(4) {
                    0 => 0,
                    1 => self.random.below(5),
                    2 => self.random.below(60),
                    // To the very moment of something.
                    _ => self.next_moment().map_or(0, |moment| moment.saturating_sub(self.now)),
                };
                self.advance(self.now + time);
            }
        }
        self.let_clients_send(None)?;
        self.do_what_is_due();
        self.let_clients_receive(None)?;
        self.check()
    }

    /// Nothing new happens. Everybody gets what is due, and then there is nothing left.
    pub fn settle(&mut self) -> Result<(), String> {
        self.link.outage = false;
        while !self.link.reads.is_empty() || self.clients.iter().any(|client| !is_served(client)) {
            let before = (self.now, self.seen.replies);
            self.let_clients_send(Some(usize::MAX))?;
            let next = self.next_moment().unwrap_or(self.now);
            self.advance(next.max(self.now));
            self.do_what_is_due();
            self.let_clients_receive(Some(usize::MAX))?;
            self.check()?;
            let stuck = before == (self.now, self.seen.replies) && self.next_moment().is_none();
            if stuck && self.clients.iter().any(|client| !is_served(client)) {
                return Err("somebody waits for ever".into());
            }
        }
        Ok(())
    }

    fn next_moment(&self) -> Option<Millis> {
        [self.link.next_arrival(), self.proxy.next_deadline(), self.redis.next_expiry()].into_iter().flatten().min()
    }

    /// Lets time pass, with all that Redis and the link do meanwhile, in order.
    fn advance(&mut self, until: Millis) {
        loop {
            self.let_things_arrive();
            let next = [self.link.next_arrival(), self.redis.next_expiry()].into_iter().flatten().min();
            match next.filter(|&next| next <= until) {
                Some(next) => self.now = self.now.max(next),
                None => break,
            }
        }
        self.now = until;
    }

    fn let_things_arrive(&mut self) {
        // An expiry has a moment of its own: a version that ended when it began would be one that no client could read.
        self.moment += 1;
        for key in self.redis.expire(self.now, self.moment) {
            // Redis tells when it removes the key, which may be later: the proxy must not wait for that.
            self.note(format_args!("k{key} expires"));
            if self.random.percent(50) {
                self.link.tell(key_change(key), self.now, &mut self.random);
            }
        }
        let mut number = 0;
        while number < self.link.reads.len() {
            if self.link.reads[number].due > self.now {
                number += 1;
                continue;
            }
            let read = self.link.reads.swap_remove(number);
            match self.advance_read(&read) {
                Some((step, due)) => self.link.reads.push(Read { step, due, ..read }),
                None => {
                    if let Step::Arrive(answer) = read.step {
                        self.complete(&read.job, read.key, read.began, answer);
                    }
                }
            }
        }
        while let Some(change) = self.link.hear(self.now) {
            self.hear(&change);
        }
    }

    /// Executes the command of a read that is due. Returns its next step, or none where its answer has arrived.
    fn advance_read(&mut self, read: &Read) -> Option<(Step, Millis)> {
        let key = read.key;
        match &read.step {
            &Step::Value { by_get } => {
                let (version, Version { value, .. }) = self.redis.current(key);
                let step = Step::Ttl { by_get, version, value: value.clone() };
                let due = self.link.next_command(self.now, &mut self.random);
                // A write between the two commands, at the latest moment at which it makes a difference.
                if self.random.percent(10) {
                    self.write(key);
                }
                Some((step, due))
            }
            Step::Ttl { by_get, version, value } => {
                // Only `GET` tells a missing key from an empty value.
                let bytes = value.as_ref().map(|value| value.clone().into_bytes());
                let bytes = if *by_get { bytes } else { bytes.or(Some(Vec::new())) };
                let (current, _) = self.redis.current(key);
                let (version, fetched) = match Reading::of(bytes, self.redis.ttl(key, self.now), usize::MAX) {
                    Reading::Empty(_) if !by_get => {
                        self.seen.empty += 1;
                        return Some((Step::Value { by_get: true }, self.now));
                    }
                    Reading::Empty(fetched) | Reading::Value(fetched) => (*version, Some(fetched)),
                    Reading::Missing if value.is_some() => (current, None),
                    Reading::Missing => (*version, None),
                    Reading::Truncated => return None,
                };
                if fetched.is_some() && current > version {
                    self.seen.split += 1;
                    self.lend_lifetime(key, version, current);
                }
                Some(self.link.answer(Answer::Read(version, fetched), self.now, &mut self.random))
            }
            Step::Arrive(_) => None,
        }
    }

    /// Notes that a value was read before a write and its lifetime after it: it may be served as long as the newer one.
    fn lend_lifetime(&mut self, key: usize, version: usize, newer: usize) {
        let versions = &mut self.redis.keys[key];
        versions[version].lent = versions[version].lent.max(versions[newer].expires);
    }

    fn complete(&mut self, job: &Job, key: usize, began: Moment, answer: Answer) {
        let (result, cause) = match answer {
            Answer::Read(number, fetched) => {
                let versions = &mut self.brought[key];
                versions.resize(versions.len().max(number + 1), None);
                versions[number] = Some(self.now);
                // Who has read it cannot get anything older afterwards. A fetch that was overtaken proves nothing: what
                // has come since may be newer.
                if self.floors[key] <= began {
                    let from = self.redis.keys[key][number].from;
                    self.floors[key] = self.floors[key].max(from);
                    self.hard_floors[key] = self.hard_floors[key].max(from);
                }
                (Ok(fetched), Cause::Answered)
            }
            Answer::Unavailable => (Err(Failure::Unavailable), Cause::Outage),
            Answer::TimedOut => (Err(Failure::Timeout), Cause::Outage),
            Answer::Error => (Err(Failure::Redis("ERR of some kind".into())), Cause::Failed),
        };
        self.note(format_args!("flight {} for k{key} comes back: {cause:?}", job.fetch_id));
        self.finish(Completion { fetch_id: job.fetch_id, result }, cause);
    }

    fn finish(&mut self, completion: Completion, cause: Cause) {
        let World { proxy, clients, date, recorder, seen, .. } = self;
        let time = (self.now, self.moment);
        proxy.complete(completion, self.now, |waiter, reply| {
            answer(clients, waiter, reply, cause, (date, recorder), time, seen);
        });
    }

    fn hear(&mut self, change: &Invalidation) {
        self.note(format_args!("heard of {change:?}"));
        self.seen.changes += 1;
        if *change == Invalidation::TrackingLost {
            self.unwatched = self.now;
        }
        let concerned = |key: usize| *change == key_change(key);
        for key in 0..KEYS {
            if concerned(key) || *change != Invalidation::TrackingLost && !matches!(change, Invalidation::Key(_)) {
                (self.floors[key], self.hard_floors[key]) = (self.moment, self.moment);
            } else if *change == Invalidation::TrackingLost {
                self.floors[key] = self.moment;
            }
            let reads = self.link.reads.iter().filter(|read| read.key == key && matches!(read.step, Step::Arrive(_)));
            self.seen.overtaken += if concerned(key) { reads.count() as u64 } else { 0 };
        }
        self.proxy.invalidate(change, self.now);
    }

    fn write(&mut self, key: usize) {
        self.note(format_args!("k{key} changes"));
        if self.random.percent(20) {
            self.redis.delete(key, self.moment);
        } else {
            self.redis.write(key, self.now, self.moment, &mut self.random);
        }
        self.link.tell(key_change(key), self.now, &mut self.random);
    }

    fn flush(&mut self) {
        self.note(format_args!("flush"));
        (0..KEYS).for_each(|key| self.redis.delete(key, self.moment));
        self.link.tell(Invalidation::All, self.now, &mut self.random);
    }

    fn begin_outage(&mut self) {
        self.note(format_args!("Redis is away"));
        self.link.outage = true;
        self.seen.cuts += u64::from(self.link.tracking == Tracking::Up);
        self.link.cut(self.now, &mut self.random);
    }

    /// A client goes without a word, and another one takes its place.
    fn reset(&mut self, client: usize) {
        self.note(format_args!("client {client} is reset"));
        self.seen.resets += 1;
        self.generation += 1;
        self.clients[client] = Client::new(self.generation, &mut self.random);
    }

    fn let_clients_send(&mut self, most: Option<usize>) -> Result<(), String> {
        for slot in 0..CLIENTS {
            let most = most.unwrap_or_else(|| self.random.one_of(&[0, 1, 7, 60, 1000, 100_000]));
            let client = &mut self.clients[slot];
            // Who may not ask more is not read.
            if !client.connection.can_take_request() || client.held_up {
                continue;
            }
            let piece = client.piece(most);
            if !piece.is_empty() {
                self.serve(slot, Some(&piece))?;
            }
        }
        Ok(())
    }

    /// Feeds a connection, or lets it go on with what it has kept.
    fn serve(&mut self, slot: usize, piece: Option<&[u8]>) -> Result<(), String> {
        let mut jobs = Vec::new();
        let client = &mut self.clients[slot];
        let first = client.connection.request_id(slot).sequence as usize;
        let mut service = Dispatcher {
            read_through: &mut self.proxy,
            jobs: &mut jobs,
            context: DecodeContext {
                policy: &Policy::default(),
                head_decoder: &mut self.heads,
                reply: ReplyContext { date: &self.date, recorder: &mut self.recorder },
            },
            registry: &MetricsRegistry::default(),
            worker_slot: &WorkerSlot::default(),
            now: self.now,
        };
        client.held_up = match piece {
            Some(piece) => service.on_input(&mut client.connection, slot, piece),
            None => service.resume_input(&mut client.connection, slot),
        };
        self.note_what_was_asked(slot, first);
        for job in jobs {
            let text = String::from_utf8_lossy(&job.key).into_owned();
            let Some(key) = text.strip_prefix('k').and_then(|key| key.parse().ok()) else {
                return Err(format!("a fetch for {text:?}, which nobody has asked for"));
            };
            if self.link.reads.len() < QUEUE {
                self.note(format_args!("flight {} for k{key} begins", job.fetch_id));
                self.link.begin(job, key, (self.now, self.moment), &mut self.random);
            } else {
                self.note(format_args!("flight {} for k{key} is refused", job.fetch_id));
                self.finish(Completion { fetch_id: job.fetch_id, result: Err(Failure::QueueFull) }, Cause::Failed);
            }
        }
        Ok(())
    }

    /// Notes which requests, from `first` on, the proxy has taken up, and which of their keys.
    fn note_what_was_asked(&mut self, slot: usize, first: usize) {
        let time = (self.now, self.moment);
        let client = &mut self.clients[slot];
        let next = client.connection.request_id(slot);
        let (floors, hard_floors) = (&self.floors, &self.hard_floors);
        let mut kinds = Vec::new();
        for (number, request) in client.requests.iter_mut().enumerate().skip(first) {
            // The one after those that are whole may have some keys of its own already.
            let whole = number < next.sequence as usize;
            let keys = match next.part {
                _ if whole => request.parts.len(),
                part if number == next.sequence as usize => part as usize,
                _ => break,
            };
            for part in request.parts[..keys].iter_mut().filter(|part| part.asked.is_none()) {
                (part.asked, part.answered) = (Some(time), time);
                (part.floor, part.hard_floor) = (floors[part.key], hard_floors[part.key]);
            }
            if whole {
                request.asked = request.asked.or(Some(self.now));
                kinds.push(request.kind.clone());
            }
        }
        if !kinds.is_empty() {
            self.note(format_args!("client {slot} asks {kinds:?}"));
        }
    }

    fn do_what_is_due(&mut self) {
        self.let_things_arrive();
        let World { proxy, clients, date, recorder, seen, random, .. } = self;
        let time = (self.now, self.moment);
        while proxy.tick(self.now, random.between(1, 4) as usize, |waiter, reply| {
            answer(clients, waiter, reply, Cause::Overdue, (date, recorder), time, seen);
        }) {}
    }

    fn let_clients_receive(&mut self, most: Option<usize>) -> Result<(), String> {
        for slot in 0..CLIENTS {
            let most = most.unwrap_or_else(|| self.random.one_of(&[0, 10, 500, 1 << 20]));
            let replies = self.clients[slot].receive(most).map_err(|what| format!("client {slot}: {what}"))?;
            for (request, response) in replies {
                self.note(format_args!("client {slot} gets {:?} {:?}", response.content, response.status));
                let history = History { redis: &self.redis, brought: &self.brought, unwatched: self.unwatched };
                check(&request, &response, &history, &self.policy).map_err(|what| {
                    format!(
                        "client {slot} at {}: {what}\n{request:?}\n{response:?}\nfloors {:?}",
                        self.now, self.floors
                    )
                })?;
                self.seen.count(&request, &response.content);
            }
            while self.clients[slot].held_up && self.clients[slot].connection.can_take_request() {
                self.serve(slot, None)?;
            }
            let client = &mut self.clients[slot];
            if client.connection.is_closing() && client.connection.is_flushed() {
                if client.replies == 0 || !client.requests[client.replies - 1].last {
                    return Err(format!("client {slot} was cut off before its last request"));
                }
                self.generation += 1;
                self.clients[slot] = Client::new(self.generation, &mut self.random);
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), String> {
        self.proxy.validate()?;
        // Values of 20,000 bytes are the longest, with their key.
        if self.proxy.cache().bytes() > self.limits.bytes.saturating_add(20_020) {
            return Err(format!("{} bytes are cached", self.proxy.cache().bytes()));
        }
        for (slot, client) in self.clients.iter_mut().enumerate() {
            let unsent = client.connection.send_buffer().unsent_bytes();
            if unsent > MAX_UNSENT_BYTES + MAX_PENDING_REPLIES * 21_000 {
                return Err(format!("client {slot} has {unsent} bytes unsent"));
            }
            // Of who has read all there is, what is missing is waited for.
            let waits_since = client.open().filter_map(|request| request.asked).min().filter(|_| unsent == 0);
            if waits_since.is_some_and(|asked| asked + self.policy.timer <= self.now) {
                return Err(format!("client {slot} still waits at {} for what it asked at {waits_since:?}", self.now));
            }
            let open = client.open().count();
            if unsent == 0 && open > MAX_PENDING_REPLIES {
                return Err(format!("client {slot} has {open} open replies"));
            }
        }
        Ok(())
    }
}

fn key_change(key: usize) -> Invalidation {
    Invalidation::Key(format!("k{key}").into_bytes())
}

/// Whether a client has got all that it has asked for.
fn is_served(client: &Client) -> bool {
    client.replies == client.requests.len()
}

/// Hands a reply to whom it is for, as the server does.
fn answer(
    clients: &mut [Client],
    waiter: RequestId,
    reply: &Reply<'_>,
    cause: Cause,
    (date, recorder): (&ResponseDate, &mut Recorder),
    time: (Millis, Moment),
    seen: &mut Seen,
) {
    let client = &mut clients[waiter.slot];
    let is_its_own = client.connection.id == waiter.connection_id;
    let taken = client.connection.reply_later(waiter, reply, &mut ReplyContext { date, recorder });
    if !is_its_own {
        assert!(!taken, "a reply for one client was given to another");
        seen.orphans += 1;
        return;
    }
    let request = &mut client.requests[waiter.sequence as usize];
    // A reply that has failed, or a command that broke off, has no use for the rest of its keys.
    let is_over = request.parts.iter().any(|part| part.failed) || matches!(request.kind, Kind::Broken(_));
    let part = &mut request.parts[waiter.part as usize];
    assert_eq!(part.cause, None, "answered twice");
    assert!(taken || is_over, "a reply was not taken");
    let was_cached = matches!(reply.source, Source::Cache { .. });
    assert!(!was_cached || [Cause::Outage, Cause::Overdue].contains(&cause), "a hit for somebody who waits");
    (part.answered, part.cause, part.source) = (time, Some(cause), Some(reply.source));
    part.failed = taken && matches!(reply.result, KeyResult::Failed(_));
}
