//! Clients that wait for changes of keys: event streams and long polls.
//!
//! A stream never has an older version after a newer one, and no event twice in a row. A client
//! ends with the last version, however slowly it reads and however often it reconnects. Its next
//! request may find an older version, as any request may after a lost stream of invalidations.

use crate::client::PASSWORD;
use crate::cluster::Mode;
use crate::http::escape;
use crate::random::Random;
use crate::versions::{KEYS, NAMES};
use crate::world::{CLIENTS, World};
use segment_redis_proxy::connection::{Connection, DecodeContext, ReplyContext};
use segment_redis_proxy::dispatch::Dispatcher;
use segment_redis_proxy::metrics::{MetricsRegistry, WorkerSlot};
use segment_redis_proxy::protocol::MAX_IOVECS;
use segment_redis_proxy::protocol::http::Policy;
use segment_redis_proxy::types::{Delivery, Millis};
use std::io::IoSlice;

/// Longest time between the end of the last disturbance and the last event, beside `CACHE_TTL`: a
/// read is repeated a second after it failed, and a hung node or a lost stream may come first.
const SETTLE_MS: Millis = 4000;

/// Time until a client repeats a long poll that brought no value.
const RETRY_MS: Millis = 30;

/// Bytes of a stream that may be unsent: the events of one tick, and a value in each.
const MAX_STREAM_BYTES: usize = 64 * 1024 + 21_000;

/// Client that waits for changes.
pub struct Watcher {
    pub connection: Connection,
    keys: Vec<usize>,
    is_poll: bool,
    needs_password: bool,
    received: Vec<u8>,
    /// Version of each key that the present request has brought, at least.
    has: [usize; KEYS],
    /// Text of the last event of each key on this connection, `None` for a missing key.
    last: [Option<Option<String>>; KEYS],
    /// Value of each key that the client has.
    value: [Option<Option<String>>; KEYS],
    /// Id of the last event, or the tag of a long poll.
    last_id: String,
    /// Time at which the present long poll ends.
    poll_until: Millis,
    /// Time at which the next request is sent, `None` while one is in progress.
    sends_at: Option<Millis>,
}

impl Watcher {
    pub fn new(connection_id: u64, needs_password: bool, random: &mut Random) -> Watcher {
        let count = if random.percent(50) { 1 } else { random.between(2, KEYS as u64) as usize };
        let first = random.below(KEYS as u64) as usize;
        Watcher {
            connection: Connection::new(connection_id, 0),
            keys: (0..count).map(|offset| (first + offset) % KEYS).collect(),
            is_poll: count == 1 && random.percent(40),
            needs_password,
            received: Vec::new(),
            has: [0; KEYS],
            last: std::array::from_fn(|_| None),
            value: std::array::from_fn(|_| None),
            last_id: String::new(),
            poll_until: 0,
            sends_at: Some(0),
        }
    }

    /// Returns the next request, and stores the end of its wait.
    fn request(&mut self, now: Millis, random: &mut Random) -> String {
        let password =
            if self.needs_password { format!("Authorization: Bearer {PASSWORD}\r\n") } else { String::new() };
        let target = match self.keys[..] {
            [key] => format!("/key/{}", escape(key)),
            _ => {
                let keys: Vec<String> = self.keys.iter().map(|&key| format!("key={}", escape(key))).collect();
                format!("/watch?{}", keys.join("&"))
            }
        };
        let fields = if self.is_poll {
            let seconds = random.between(1, 3);
            self.poll_until = now + seconds * 1000;
            format!("If-None-Match: \"a\", {}\r\nPrefer: wait={seconds}\r\n", self.last_id)
        } else if self.last_id.is_empty() {
            "Accept: text/event-stream\r\n".into()
        } else {
            format!("Accept: text/event-stream\r\nLast-Event-ID: {}\r\n", self.last_id)
        };
        format!("GET {target} HTTP/1.1\r\nHost: x\r\n{fields}{password}\r\n")
    }

    /// Takes up to `max_bytes` of the unsent bytes.
    fn receive(&mut self, max_bytes: usize) {
        let mut left = max_bytes;
        while left > 0 {
            let mut slices = [IoSlice::new(&[]); MAX_IOVECS];
            let count = self.connection.send_buffer().io_slices(&mut slices, left);
            let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
            if bytes.is_empty() {
                return;
            }
            self.connection.send_buffer().advance(bytes.len());
            left -= bytes.len();
            self.received.extend(bytes);
        }
    }

    /// Removes the next complete message. A response of a long poll has its head.
    fn take_message(&mut self) -> Option<String> {
        let text = std::str::from_utf8(&self.received).ok()?;
        let end = text.find(if self.is_poll { "\r\n\r\n" } else { "\n\n" })? + if self.is_poll { 4 } else { 2 };
        let is_head = text.starts_with("HTTP/1.1");
        let length = if self.is_poll && is_head { field(text, "Content-Length: ").parse().unwrap_or(0) } else { 0 };
        // The head of a stream ends with an empty line, too, but not with two line feeds.
        let message = text.get(..end + length)?.to_owned();
        self.received.drain(..message.len());
        Some(message)
    }
}

/// Returns the value of a field in a head or an event, or an empty text.
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default()
}

/// Returns the value in a JSON text of the proxy, `None` for a missing key.
fn value_of(data: &str) -> Option<String> {
    let (_, rest) = data.split_once("\"value\":\"")?;
    Some(rest.split_once('"')?.0.to_owned())
}

impl World {
    /// Returns the slot of a watcher, behind those of the clients.
    fn slot_of(index: usize) -> usize {
        CLIENTS + index
    }

    /// Delivers events, begins reads, and lets each watcher take up to `max_bytes`, or a random
    /// number of bytes.
    pub fn run_watchers(&mut self, max_bytes: Option<usize>) -> Result<(), String> {
        self.deliver_events()?;
        for index in 0..self.watchers.len() {
            if self.random.percent(1) && max_bytes.is_none() {
                self.reconnect_watcher(index);
            }
            let bytes = max_bytes.unwrap_or_else(|| self.random.one_of(&[0, 0, 10, 500, 1 << 20]));
            self.send_request(index);
            self.serve_watcher(index, bytes);
            while let Some(message) = self.watchers[index].take_message() {
                self.on_watch_message(index, &message)?;
                self.send_request(index);
                self.serve_watcher(index, bytes);
            }
            let unsent = self.watchers[index].connection.send_buffer().unsent_bytes();
            if unsent > MAX_STREAM_BYTES {
                return Err(format!("watcher {index} has {unsent} bytes unsent"));
            }
        }
        Ok(())
    }

    fn deliver_events(&mut self) -> Result<(), String> {
        loop {
            let World { read_through, watchers, date, recorder, random, now, .. } = self;
            let (mut jobs, budget) = (Vec::new(), random.between(1, 8) as usize);
            let has_more = read_through.run_watches(*now, budget, &mut jobs, &mut |request_id, event| match watchers
                .get_mut(request_id.slot - CLIENTS)
            {
                Some(watcher) => {
                    let mut context = ReplyContext { date, recorder };
                    watcher.connection.deliver_event(request_id, event, *now, &mut context)
                }
                None => Delivery::Ended,
            });
            jobs.into_iter().try_for_each(|job| self.submit(job))?;
            if !has_more || self.random.percent(30) {
                return Ok(());
            }
        }
    }

    fn with_dispatcher<T>(&mut self, index: usize, act: impl FnOnce(&mut Dispatcher<'_>, &mut Connection) -> T) -> T {
        let mut jobs = Vec::new();
        let mut dispatcher = Dispatcher {
            read_through: &mut self.read_through,
            jobs: &mut jobs,
            context: DecodeContext {
                policy: &Policy::default(),
                offers_tracking: false,
                head_decoder: &mut self.head_decoder,
                auth: &mut self.auth,
                reply: ReplyContext { date: &self.date, recorder: &mut self.recorder },
            },
            registry: &MetricsRegistry::default(),
            worker_slot: &WorkerSlot::default(),
            now: self.now,
        };
        let result = act(&mut dispatcher, &mut self.watchers[index].connection);
        assert!(jobs.is_empty(), "a watcher reads by itself");
        result
    }

    /// Sends the next request of a watcher, if it is time for one.
    fn send_request(&mut self, index: usize) {
        if self.watchers[index].sends_at.take_if(|at| *at <= self.now).is_none() {
            return;
        }
        let request = self.watchers[index].request(self.now, &mut self.random);
        self.watchers[index].has = [0; KEYS];
        let slot = World::slot_of(index);
        self.record(format_args!("watcher {index} sends {:?}", request.lines().next()));
        self.with_dispatcher(index, |dispatcher, connection| {
            dispatcher.on_input(connection, slot, request.as_bytes());
        });
    }

    /// Lets a watcher take bytes, and serves it as the event loop does.
    fn serve_watcher(&mut self, index: usize, max_bytes: usize) {
        let slot = World::slot_of(index);
        loop {
            self.watchers[index].receive(max_bytes);
            let has_output = self.watchers[index].connection.has_watch()
                && self
                    .with_dispatcher(index, |dispatcher, connection| dispatcher.serve_watch(connection, slot, false));
            if !has_output {
                return;
            }
        }
    }

    /// Replaces the connection of a watcher. Its client remembers the last id.
    fn reconnect_watcher(&mut self, index: usize) {
        self.record(format_args!("watcher {index} reconnects"));
        self.read_through.unwatch(self.watchers[index].connection.watchers(World::slot_of(index)));
        self.last_connection_id += 1;
        let watcher = &mut self.watchers[index];
        watcher.connection.abort(&mut self.recorder);
        watcher.connection = Connection::new(self.last_connection_id, 0);
        watcher.received.clear();
        watcher.sends_at = Some(self.now);
        watcher.last = std::array::from_fn(|_| None);
        self.counts.watcher_resets += 1;
    }

    fn on_watch_message(&mut self, index: usize, message: &str) -> Result<(), String> {
        let shown = &message[..message.len().min(300)];
        self.record(format_args!("watcher {index} receives {shown:?}"));
        if self.watchers[index].is_poll {
            return self.on_poll_response(index, message);
        }
        if message.starts_with(':') || message.starts_with("HTTP/1.1 200") || message.starts_with("retry: ") {
            return Ok(());
        }
        let (data, id) = (field(message, "data: "), field(message, "id: "));
        let named = (0..KEYS).find(|&key| data.starts_with(&format!("{{\"key\":\"{}\",", NAMES[key])));
        let watcher = &mut self.watchers[index];
        let Some(key) = (if watcher.keys.len() == 1 { Some(watcher.keys[0]) } else { named }) else {
            return Err(format!("an event of no key: {shown:?}"));
        };
        let value = value_of(data);
        if watcher.last[key].replace(value.clone()) == Some(value.clone()) {
            return Err(format!("watcher {index} gets the same state of k{key} twice: {shown:?}"));
        }
        watcher.last_id = id.to_owned();
        self.counts.events += 1;
        self.on_watched_value(index, key, value)
    }

    /// Checks the response to a long poll, and sends the next request.
    fn on_poll_response(&mut self, index: usize, message: &str) -> Result<(), String> {
        let now = self.now;
        let watcher = &mut self.watchers[index];
        watcher.sends_at = Some(now);
        let (key, tag) = (watcher.keys[0], field(message, "ETag: ").to_owned());
        match message.get(9..12).unwrap_or_default() {
            "304" => {
                let is_early = now < watcher.poll_until;
                if is_early || watcher.last_id != tag {
                    return Err(format!("watcher {index} gets 304 until {}: {message:?}", watcher.poll_until));
                }
                self.counts.unchanged_polls += 1;
            }
            "200" => {
                if watcher.last_id == tag {
                    return Err(format!("watcher {index} gets 200 for the value that it has"));
                }
                watcher.last_id = tag;
                let (_, body) = message.split_once("\r\n\r\n").unwrap_or_default();
                self.counts.events += 1;
                self.on_watched_value(index, key, value_of(body))?;
            }
            "404" => {
                watcher.last_id = "\"none\"".into();
                watcher.sends_at = Some(now + RETRY_MS);
                self.on_watched_value(index, key, None)?;
            }
            "503" | "504" | "502" => watcher.sends_at = Some(now + RETRY_MS),
            _ => return Err(format!("watcher {index} gets {message:?}")),
        }
        Ok(())
    }

    /// Checks that a value is no older than the last one of its key, where Redis itself does not go
    /// back.
    fn on_watched_value(&mut self, index: usize, key: usize, value: Option<String>) -> Result<(), String> {
        let watcher = &mut self.watchers[index];
        watcher.value[key] = Some(value.clone());
        if self.cluster.mode != Mode::Single {
            return Ok(());
        }
        let versions = &self.cluster.versions.keys[key];
        let newer = (watcher.has[key]..versions.len()).find(|&number| versions[number].value == value);
        let Some(number) = newer else {
            return Err(format!("watcher {index} gets an older state of k{key} after version {}", watcher.has[key]));
        };
        watcher.has[key] = number;
        Ok(())
    }

    /// Runs until each watcher must have the last state of its keys, and checks that.
    pub fn settle_watchers(&mut self) -> Result<(), String> {
        if self.cluster.mode != Mode::Single {
            // The last map may be one that leads nowhere.
            return Ok(());
        }
        self.link.is_faulty = false;
        let end = self.now + self.age_limits.ttl + SETTLE_MS;
        while self.now < end && !self.watchers.is_empty() {
            let sends = self.watchers.iter().filter_map(|watcher| watcher.sends_at);
            let next = self.next_event_time().into_iter().chain(sends).min();
            let next = next.unwrap_or(end).clamp(self.now, end);
            let before = self.now;
            self.advance_to(next)?;
            self.run_due()?;
            self.run_watchers(Some(usize::MAX))?;
            self.check_bounds()?;
            self.now += Millis::from(self.now == before);
        }
        for (index, watcher) in self.watchers.iter().enumerate() {
            for &key in &watcher.keys {
                let holder = self.cluster.holder_of(key);
                let present = self.cluster.nodes[holder].contents[key];
                let present = present.and_then(|number| self.cluster.versions.keys[key][number].value.clone());
                if watcher.value[key].as_ref() != Some(&present) {
                    let shown = |value: Option<String>| value.map(|text| text[..text.len().min(12)].to_owned());
                    let has = watcher.value[key].clone().map(shown);
                    return Err(format!("watcher {index} has {has:?} of k{key}, not {:?}", shown(present)));
                }
            }
        }
        Ok(())
    }
}
