//! World of one seed: the real read-through cache, connections and set of nodes, with simulated
//! clients, nodes and links around them.

use crate::check::{AgeLimits, Fetches};
use crate::client::{Cause, Client, PASSWORD, has_received_all};
use crate::cluster::{Cluster, Mode};
use crate::counts::EventCounts;
use crate::events::random_topology_weights;
use crate::floors::Floors;
use crate::link::Link;
use crate::random::Random;
use crate::topology::Topology;
use crate::tracker::{Delays, Tracker};
use crate::turns::deliver_reply;
use crate::versions::KEYS;
use crate::watchers::Watcher;
use segment_redis_proxy::backend::{NodeId, NodeSet};
use segment_redis_proxy::cache::Limits;
use segment_redis_proxy::client_auth::{ClientAuth, ClientPasswords, SharedPasswords};
use segment_redis_proxy::connection::{MAX_PENDING_REPLIES, MAX_UNSENT_BYTES};
use segment_redis_proxy::log_format::LogFormat;
use segment_redis_proxy::metrics::Recorder;
use segment_redis_proxy::protocol::http::{HeadDecoder, ResponseDate};
use segment_redis_proxy::read_through::{ReadThrough, WatchSettings};
use segment_redis_proxy::types::{Invalidation, Millis};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

/// Number of events so far, which orders events within a millisecond.
pub type Moment = u64;

pub const CLIENTS: usize = 5;

/// Longest entry: a value of 20,000 bytes with its name, and its key.
const MAX_ENTRY_BYTES: usize = 20_020;

/// Longest reply, a value with the head of its response.
const MAX_REPLY_BYTES: usize = 21_000;

/// Longest time until all clients have their replies after the last random event.
const MAX_SETTLE_MS: Millis = 60_000;

/// State of one simulation.
pub struct World {
    pub random: Random,
    pub now: Millis,
    pub moment: Moment,
    pub date: ResponseDate,
    pub head_decoder: HeadDecoder,
    pub recorder: Recorder,
    pub read_through: ReadThrough,
    limits: Limits,
    pub age_limits: AgeLimits,
    pub cluster: Cluster,
    /// Share of the random events that change the topology or its trackers.
    pub topology_event_percent: u64,
    /// Weights of these events.
    pub topology_weights: Vec<u64>,
    /// Nodes as the proxy knows them.
    pub set: NodeSet,
    /// Node of each id, with those of removed nodes.
    pub known_nodes: Vec<(NodeId, usize)>,
    pub has_tracking: bool,
    pub delays: Delays,
    pub trackers: Vec<Tracker>,
    pub topology: Topology,
    pub link: Link,
    /// Invalidations that the event loop has not taken yet.
    pub inbox: VecDeque<Invalidation>,
    pub clients: Vec<Client>,
    /// Clients that wait for changes, in slots behind those of the others.
    pub watchers: Vec<Watcher>,
    /// Passwords of clients, which are required in some seeds.
    pub auth: ClientAuth,
    pub needs_password: bool,
    pub last_connection_id: u64,
    /// Key that is read and written more often than others.
    pub favourite: Option<usize>,
    /// Slot that an event has changed last.
    pub last_slot: usize,
    /// Time at which the last change of the owner of this slot is undone.
    pub planned_undo: Option<(Millis, usize)>,
    pub floors: Floors,
    pub fetches: Fetches,
    /// Moment at which the last invalidation of each key has arrived.
    pub invalidated_at: [Moment; KEYS],
    /// Time at which all entries last expired at once, because tracking was lost.
    pub tracking_lost_at: Millis,
    is_verbose: bool,
    pub counts: EventCounts,
    /// Hash of all events.
    pub event_hash: u64,
}

impl World {
    pub fn new(seed: u64, is_verbose: bool) -> World {
        let mut random = Random::new(seed);
        let mode = match random.below(100) {
            0..40 => Mode::Single,
            40..52 => Mode::Sentinel,
            _ => Mode::Cluster,
        };
        let (limits, ttl) = random_cache_limits(mode, &mut random);
        let wait_timeout = random.one_of(&[10, 50, 200]);
        let has_tracking = random.percent(if mode == Mode::Cluster { 75 } else { 60 });
        let needs_password = random.percent(30);
        let auth = match ClientPasswords::parse(PASSWORD) {
            Ok(passwords) if needs_password => ClientAuth::required(Arc::new(SharedPasswords::new(passwords))),
            _ => ClientAuth::default(),
        };
        let favourite = random.percent(40).then(|| random.below(KEYS as u64) as usize);
        let mut last_connection_id = 0;
        let clients = std::array::from_fn::<_, CLIENTS, _>(|_| {
            last_connection_id += 1;
            Client::new(last_connection_id, needs_password, has_tracking, favourite, &mut random)
        });
        let mut watchers = Vec::new();
        for _ in 0..random.one_of(&[0, 0, 1, 4]) {
            last_connection_id += 1;
            watchers.push(Watcher::new(last_connection_id, needs_password, &mut random));
        }
        let watching = WatchSettings { interval: random.one_of(&[1, 20, 50]), ..WatchSettings::default() };
        let now = random.below(1000);
        let cluster = Cluster::new(mode, &mut random);
        let delays = Delays {
            connect: random.one_of(&[0, 10, 60, 200, 300]),
            message: random.one_of(&[0, 0, 1, 5, 40]),
            silence: random.one_of(&[0, 0, 10, 60]),
        };
        let topology = Topology::new(mode, now, &mut random);
        World {
            now,
            moment: 0,
            date: ResponseDate::at(SystemTime::UNIX_EPOCH),
            head_decoder: HeadDecoder::new(),
            recorder: Recorder::new(Some(LogFormat::Text)),
            read_through: ReadThrough::new(limits, ttl, wait_timeout).with_watch_settings(watching),
            limits,
            age_limits: AgeLimits { ttl, stale: limits.stale, wait_timeout },
            cluster,
            topology_weights: random_topology_weights(mode, &mut random),
            topology_event_percent: random.one_of(&[1, 5, 15]),
            set: NodeSet::new("no map yet".into()),
            known_nodes: Vec::new(),
            has_tracking,
            delays,
            trackers: Vec::new(),
            floors: Floors::new(delays.notice_ms(), topology.bound_ms(), topology.unknown_bound_ms()),
            topology,
            link: Link { reads: Vec::new(), timeout: wait_timeout, is_faulty: true },
            inbox: VecDeque::new(),
            clients: clients.into(),
            watchers,
            auth,
            needs_password,
            last_connection_id,
            favourite,
            last_slot: 0,
            planned_undo: None,
            fetches: Fetches::default(),
            invalidated_at: [0; KEYS],
            tracking_lost_at: 0,
            is_verbose,
            counts: EventCounts::default(),
            event_hash: 0,
            random,
        }
    }

    /// Records an event, and prints it if verbose.
    pub fn record(&mut self, event: std::fmt::Arguments<'_>) {
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
        self.produce_event()?;
        self.send_input(None)?;
        self.run_due()?;
        self.run_watchers(None)?;
        self.receive_output(None)?;
        self.check_bounds()
    }

    /// Runs without new events until every client has all its replies, and every job is completed.
    pub fn settle(&mut self) -> Result<(), String> {
        self.end_outages();
        self.topology.has_outage = false;
        let end = self.now + MAX_SETTLE_MS;
        while !self.link.reads.is_empty() || self.clients.iter().any(|client| !has_all_replies(client)) {
            let before = (self.now, self.counts.replies);
            self.send_input(Some(usize::MAX))?;
            let next = self.next_event_time().unwrap_or(self.now);
            self.advance_to(next.max(self.now))?;
            self.run_due()?;
            self.run_watchers(Some(usize::MAX))?;
            self.receive_output(Some(usize::MAX))?;
            self.check_bounds()?;
            let is_stuck = before == (self.now, self.counts.replies) && self.next_event_time().is_none();
            if (is_stuck || self.now > end) && self.clients.iter().any(|client| !has_all_replies(client)) {
                return Err("a client waits, although nothing is pending".into());
            }
        }
        self.settle_watchers()
    }

    /// Returns the time of the next event outside the proxy, or of its backend.
    fn next_upstream_event(&self) -> Option<Millis> {
        let times = [self.link.next_event(), self.topology.next_event(), self.cluster.next_event()];
        times.into_iter().flatten().chain(self.trackers.iter().filter_map(Tracker::next_event)).min()
    }

    pub fn next_event_time(&self) -> Option<Millis> {
        self.next_upstream_event().into_iter().chain(self.read_through.next_deadline()).min()
    }

    /// Advances the time, with all events outside the loop until then, in order.
    pub fn advance_to(&mut self, end: Millis) -> Result<(), String> {
        loop {
            self.run_upstream()?;
            match self.next_upstream_event().filter(|&next| next <= end) {
                Some(next) => self.now = self.now.max(next),
                None => break,
            }
        }
        self.now = end;
        Ok(())
    }

    /// Runs what is due: arrivals, timeouts of waiters and the sweep.
    pub fn run_due(&mut self) -> Result<(), String> {
        self.run_upstream()?;
        let World { read_through, clients, date, recorder, counts, random, .. } = self;
        let time = (self.now, self.moment);
        while read_through.tick(self.now, random.between(1, 4) as usize, |request_id, reply| {
            deliver_reply(clients, request_id, reply, Cause::WaitTimeout, (date, recorder), time, counts);
        }) {}
        self.deliver_pushes();
        Ok(())
    }

    /// Checks the local caches of clients that have received everything.
    fn check_local_caches(&mut self) -> Result<(), String> {
        if self.read_through.has_pushes() {
            return Ok(());
        }
        let (is_tracked, versions) = (self.floors.is_tracked, &self.cluster.versions);
        for (slot, client) in self.clients.iter_mut().enumerate().filter(|(_, client)| client.local_cache.len() > 0) {
            if has_received_all(client) {
                self.counts.local_values += client.local_cache.len() as u64;
                let checked = client.local_cache.check(versions, &self.invalidated_at, is_tracked);
                checked.map_err(|error| format!("client {slot} at {}: {error}", self.now))?;
            }
        }
        Ok(())
    }

    pub fn check_bounds(&mut self) -> Result<(), String> {
        self.read_through.validate()?;
        self.check_local_caches()?;
        let cached_bytes = self.read_through.cache().bytes();
        if cached_bytes > self.limits.bytes.saturating_add(MAX_ENTRY_BYTES) {
            return Err(format!("{cached_bytes} bytes are cached"));
        }
        let metrics = &mut self.recorder.metrics;
        self.read_through.export_metrics(metrics);
        // Every accepted job completes exactly once.
        if metrics.inflight_keys != self.link.reads.len() {
            return Err(format!("{} fetches for {} jobs", metrics.inflight_keys, self.link.reads.len()));
        }
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

/// Returns the limits of the cache, and the longest lifetime of its entries. Seeds with one node
/// try all limits. In clusters most entries stay until they are invalidated.
fn random_cache_limits(mode: Mode, random: &mut Random) -> (Limits, Millis) {
    let stale = random.one_of(&[0, 0, 40, 300]);
    if mode == Mode::Cluster && random.percent(70) {
        return (Limits { entries: KEYS + 1, bytes: usize::MAX, stale }, random.one_of(&[40, 1000, 1000]));
    }
    let bytes = random.one_of(&[usize::MAX, usize::MAX, 40, 300, 3000, 25_000]);
    let entries = random.between(1, KEYS as u64 + 1) as usize;
    (Limits { entries, bytes, stale }, random.one_of(&[1, 20, 100, 1000]))
}

/// Returns true if a client has received a reply to each of its requests.
fn has_all_replies(client: &Client) -> bool {
    client.reply_count == client.requests.len()
}
