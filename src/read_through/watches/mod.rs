//! Watched keys: which requests wait for changes of a key, and when it is read again.
//!
//! All watchers of a key share one read at a time, and one event for its result. A read begins when
//! the key may have changed, but at most once in `WATCH_INTERVAL`: after an invalidation, and when
//! the last value is no longer fresh. So without tracking a key is read once in `CACHE_TTL`.
//!
//! Only the results of these reads are events, and each of them begins after the last one ended. So
//! a watcher never gets an older value after a newer one. A key holds the digest of its value, not
//! the value: a watcher that asks later gets it from the cache, or from another read.
//!
//! | file | contents |
//! |---|---|
//! | `mod.rs` | watchers of each key, and what they have |
//! | `reads.rs` | when a key is read, and what the result changes |
//! | `round.rs` | delivery of one event to all watchers of a key |
//! | `limit.rs` | limit on the watchers of all workers |

mod limit;
mod reads;
mod round;
#[cfg(test)]
mod tests;

use crate::cache::{Cache, DeadlineHeap};
use crate::types::{Delivery, KeyResult, KeyState, Millis, RenderedEvent, Reply, RequestId, Source, WatchEvent};
pub use limit::WatcherLimit;
pub use reads::Freshness;
pub use round::ReadResult;
use round::{Event, Round};
use slab::Slab;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// Longest time until a read begins for a watcher that has nothing, also if `WATCH_INTERVAL` is
/// longer: a stream sends the present value first, and a long poll must have one before it ends.
const MAX_FIRST_READ_DELAY: Millis = 500;

/// Function that delivers an event to a watcher.
pub type Deliver<'a> = dyn FnMut(RequestId, &WatchEvent<'_>) -> Delivery + 'a;

/// Settings of watching.
#[derive(Clone, Debug)]
pub struct WatchSettings {
    /// `WATCH_INTERVAL`: shortest time between the starts of two reads of a key.
    pub interval: Millis,
    /// Limit on the watchers of all workers.
    pub limit: WatcherLimit,
}

impl Default for WatchSettings {
    fn default() -> WatchSettings {
        WatchSettings { interval: 50, limit: WatcherLimit::new(usize::MAX) }
    }
}

/// Watched keys of one worker.
#[derive(Debug)]
pub struct Watches {
    keys: Slab<WatchedKey>,
    ids: HashMap<Arc<[u8]>, usize>,
    /// Keys that are read at a time.
    due: DeadlineHeap,
    /// Keys with an event that not all watchers have. A key may be gone, and its id reused.
    rounds: VecDeque<usize>,
    /// Reads in flight that watches have started or joined.
    reads_in_flight: usize,
    /// Next key to mark as outdated, after an event that may have changed any key.
    outdated_from: Option<usize>,
    settings: WatchSettings,
    counters: WatchCounters,
}

/// Events since the start, and the number of watchers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchCounters {
    /// Watchers now.
    pub watchers: usize,
    /// Events delivered to watchers.
    pub events: u64,
    /// Changes that needed no read of their own, because one was due already.
    pub merged: u64,
}

/// A key with at least one watcher.
#[derive(Debug)]
struct WatchedKey {
    key: Arc<[u8]>,
    /// State that each watcher has, in the order of delivery.
    watchers: BTreeMap<RequestId, Seen>,
    /// Result of the last read that succeeded.
    state: Option<KeyState>,
    /// Start of the last read.
    last_begin: Option<Millis>,
    /// End of the last read that succeeded, or of the one that a cached value stands for.
    last_end: Option<Millis>,
    /// Read in flight.
    fetch_id: Option<usize>,
    /// The read in flight began before the last one ended. Another one follows it.
    ignores_read: bool,
    /// The key may have changed since the last read began.
    is_outdated: bool,
    /// A watcher waits for the next read, even if it shows no change.
    awaits_read: bool,
    round: Option<Round>,
    /// Position in the heap of due reads.
    due_position: Option<u32>,
}

/// State that a watcher has received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Nothing,
    /// The key could not be read.
    Failure,
    State(KeyState),
}

impl Watches {
    /// Creates the state without watched keys.
    pub fn new(settings: WatchSettings) -> Watches {
        Watches {
            keys: Slab::new(),
            ids: HashMap::new(),
            due: DeadlineHeap::new(),
            rounds: VecDeque::new(),
            reads_in_flight: 0,
            outdated_from: None,
            settings,
            counters: WatchCounters::default(),
        }
    }

    /// Returns the number of watched keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Returns true if no key is watched.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns the events so far, and the number of watchers.
    pub fn counters(&self) -> WatchCounters {
        self.counters
    }

    /// Reserves places for `count` watchers. Returns false if the limit does not allow it.
    pub fn reserve(&self, count: usize) -> bool {
        self.settings.limit.reserve(count)
    }

    /// Adds a watcher, for which a place was reserved. `has` is the state that its client has
    /// already. Returns the id of the watched key. The caller continues with
    /// [`Watches::catch_up`].
    pub fn watch(&mut self, key: &[u8], request_id: RequestId, has: Option<KeyState>) -> usize {
        let id = match self.ids.get(key) {
            Some(&id) => id,
            None => self.add_key(key.into()),
        };
        self.counters.watchers += 1;
        let WatchedKey { watchers, round, .. } = &mut self.keys[id];
        watchers.insert(request_id, has.map_or(Seen::Nothing, Seen::State));
        if let Some(round) = round {
            round.extend();
        }
        id
    }

    fn add_key(&mut self, key: Arc<[u8]>) -> usize {
        let id = self.keys.insert(WatchedKey {
            key: Arc::clone(&key),
            watchers: BTreeMap::new(),
            state: None,
            last_begin: None,
            last_end: None,
            fetch_id: None,
            ignores_read: false,
            is_outdated: false,
            awaits_read: false,
            round: None,
            due_position: None,
        });
        self.ids.insert(key, id);
        id
    }

    /// Removes a watcher. Does nothing if it is removed already.
    pub fn unwatch(&mut self, id: usize, request_id: RequestId) {
        let Some(watched) = self.keys.get_mut(id) else { return };
        if watched.watchers.remove(&request_id).is_some() {
            self.counters.watchers -= 1;
            self.settings.limit.release(1);
            self.remove_unwatched(id);
        }
    }

    /// Removes a key without watchers. Its read in flight goes on for others.
    fn remove_unwatched(&mut self, id: usize) {
        if self.keys.get(id).is_some_and(|watched| watched.watchers.is_empty()) {
            self.cancel_read(id);
            let watched = self.keys.remove(id);
            self.reads_in_flight -= usize::from(watched.fetch_id.is_some());
            self.ids.remove(&watched.key);
            if self.keys.is_empty() {
                (self.keys, self.ids) = (Slab::new(), HashMap::new());
                (self.rounds, self.outdated_from) = (VecDeque::new(), None);
            }
        }
    }

    /// Delivers the present state to a watcher that lacks it: from the cache, or later by a read.
    pub fn catch_up(
        &mut self,
        (id, request_id): (usize, RequestId),
        cache: &mut Cache,
        (tracked, now): (bool, Millis),
        deliver: &mut Deliver<'_>,
    ) {
        let Some(watched) = self.keys.get_mut(id) else { return };
        let Some(&seen) = watched.watchers.get(&request_id) else { return };
        if watched.state.is_none() && watched.fetch_id.is_none() {
            self.adopt_cached(id, cache, now);
        }
        let watched = &mut self.keys[id];
        let Some(state) = watched.state else { return self.await_read(id, seen, now) };
        if seen == Seen::State(state) {
            return;
        }
        if watched.round.as_ref().is_some_and(|round| round.event.state == Some(state)) {
            return self.deliver_to(id, request_id, deliver);
        }
        let delivery = match state {
            KeyState::Value(digest) => {
                let hit = cache.peek(&watched.key, now).filter(|hit| hit.payload.digest() == digest);
                let Some(hit) = hit else { return self.await_read(id, seen, now) };
                let (result, source) = (KeyResult::Value(hit.payload), Source::Cache { ttl: hit.ttl });
                let (reply, rendered) = (Reply { result, source, tracked }, &RenderedEvent::default());
                deliver(request_id, &WatchEvent { state: Some(state), reply, rendered })
            }
            _ => Event::without_value(state, tracked).deliver(request_id, deliver),
        };
        self.apply(id, request_id, Seen::State(state), delivery);
    }

    /// Takes a fresh entry of the cache as the result of a first read.
    fn adopt_cached(&mut self, id: usize, cache: &mut Cache, now: Millis) {
        let watched = &mut self.keys[id];
        if let Some(hit) = cache.peek(&watched.key, now) {
            watched.state = Some(KeyState::Value(hit.payload.digest()));
            watched.last_end = Some(now);
            let expires_at = now + hit.ttl;
            self.schedule(id, expires_at);
        }
    }

    /// Makes a watcher wait for the next read, which begins as soon as it may.
    fn await_read(&mut self, id: usize, seen: Seen, now: Millis) {
        let mut earliest = self.earliest_read(id, now);
        if seen == Seen::Nothing {
            let last_begin = self.keys[id].last_begin.unwrap_or(0);
            earliest = earliest.min(now.max(last_begin + MAX_FIRST_READ_DELAY));
        }
        let watched = &mut self.keys[id];
        watched.awaits_read = true;
        if watched.fetch_id.is_none() {
            self.schedule(id, earliest);
        }
    }

    /// Delivers the event of the current round to one watcher.
    fn deliver_to(&mut self, id: usize, request_id: RequestId, deliver: &mut Deliver<'_>) {
        let watched = &self.keys[id];
        if let Some(Round { event, .. }) = &watched.round {
            let (delivery, seen) = (event.deliver(request_id, deliver), event.seen());
            self.apply(id, request_id, seen, delivery);
        }
    }

    /// Applies the result of a delivery to the watcher.
    fn apply(&mut self, id: usize, request_id: RequestId, seen: Seen, delivery: Delivery) {
        match delivery {
            Delivery::Taken | Delivery::Unchanged => {
                self.counters.events += u64::from(delivery == Delivery::Taken && seen != Seen::Failure);
                if let Some(watcher) = self.keys[id].watchers.get_mut(&request_id) {
                    *watcher = seen;
                }
            }
            Delivery::Behind => {}
            Delivery::Ended => {
                self.counters.events += u64::from(seen != Seen::Failure);
                self.unwatch(id, request_id);
            }
        }
    }

    /// Marks a key as possibly changed, if it is watched.
    pub fn on_change(&mut self, key: &[u8], now: Millis) {
        if let Some(&id) = self.ids.get(key) {
            self.mark_outdated(id, now);
        }
    }

    /// Marks all keys as possibly changed. [`Watches::begin_reads`] reaches them step by step.
    pub fn on_change_of_all(&mut self) {
        self.outdated_from = (!self.is_empty()).then_some(0);
    }

    /// Checks the heap, the index and the counts. Walks all watchers.
    #[cfg(any(test, debug_assertions, feature = "validate"))]
    pub fn validate(&self) -> Result<(), String> {
        let position = |id: u32| self.keys.get(id as usize).and_then(|watched| watched.due_position);
        self.due.validate(|id| position(id).unwrap_or(u32::MAX))?;
        let watchers: usize = self.keys.iter().map(|(_, watched)| watched.watchers.len()).sum();
        let in_flight = self.keys.iter().filter(|(_, watched)| watched.fetch_id.is_some()).count();
        if (watchers, in_flight, self.ids.len()) != (self.counters.watchers, self.reads_in_flight, self.keys.len()) {
            return Err("the counts of watchers, of their reads or of watched keys are wrong".into());
        }
        for (id, watched) in &self.keys {
            let WatchedKey { key, watchers, fetch_id, due_position, .. } = watched;
            if watchers.is_empty() || self.ids.get(key) != Some(&id) {
                return Err(format!("key {key:?} has no watcher, or is not in the index"));
            }
            let needs_read = watched.state.is_some() || watched.awaits_read || watched.is_outdated;
            let reads = usize::from(fetch_id.is_some()) + usize::from(due_position.is_some());
            if reads > 1 || (needs_read && reads == 0) {
                return Err(format!("key {key:?} must either be read, or be due"));
            }
        }
        Ok(())
    }
}
