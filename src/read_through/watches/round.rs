//! Delivery of one event to all watchers of a key, some in each tick.

use super::{Deliver, Seen, WatchedKey, Watches};
use crate::types::{
    Delivery, Failure, KeyResult, KeyState, Millis, RenderedEvent, Reply, RequestId, Source, WatchEvent,
};
use crate::value::{Payload, SHARED_VALUE_BYTES, Value};
use std::ops::Bound;
use std::sync::Arc;

/// Watchers of a key that are visited before other keys have their turn. A key with many watchers
/// may change again before all of them have its event.
const VISITS_PER_TURN: usize = 8;

/// Result of a read of a watched key.
#[derive(Debug)]
pub enum ReadResult {
    /// The value.
    Value(Arc<Value>),
    /// Redis has no such key.
    Missing,
    /// The key could not be read.
    Failed(Failure),
}

impl ReadResult {
    fn as_key_result(&self) -> KeyResult<'_> {
        match self {
            ReadResult::Value(value) if value.bytes.len() > SHARED_VALUE_BYTES => {
                KeyResult::Value(Payload::Shared(value))
            }
            ReadResult::Value(value) => KeyResult::Value(Payload::Inline { bytes: &value.bytes, form: value.form }),
            ReadResult::Missing => KeyResult::Missing,
            ReadResult::Failed(failure) => KeyResult::Failed(failure),
        }
    }

    /// Returns the state of the key, `None` if it could not be read. Scans no value.
    pub(super) fn state(&self) -> Option<KeyState> {
        match self {
            ReadResult::Value(value) => Some(KeyState::Value(value.digest)),
            ReadResult::Missing => Some(KeyState::Missing),
            ReadResult::Failed(failure) => KeyState::of_failure(failure),
        }
    }
}

/// Result of a read, held until all watchers have it.
#[derive(Debug)]
pub(super) struct Event {
    /// `None` if the key could not be read.
    pub(super) state: Option<KeyState>,
    result: ReadResult,
    /// Time until the value in the cache expires, `None` if it was not cached.
    stored: Option<Millis>,
    tracked: bool,
    rendered: RenderedEvent,
}

impl Event {
    pub(super) fn new(result: ReadResult, stored: Option<Millis>, tracked: bool) -> Event {
        Event { state: result.state(), result, stored, tracked, rendered: RenderedEvent::default() }
    }

    /// Returns the event of a key without a value.
    pub(super) fn without_value(state: KeyState, tracked: bool) -> Event {
        Event::new(state.failure().map_or(ReadResult::Missing, ReadResult::Failed), None, tracked)
    }

    /// Returns the state that a watcher has after the event.
    pub(super) fn seen(&self) -> Seen {
        self.state.map_or(Seen::Failure, Seen::State)
    }

    /// Returns true if a watcher lacks the event. A failure concerns only those that have nothing.
    fn concerns(&self, seen: Seen) -> bool {
        match self.state {
            Some(state) => seen != Seen::State(state),
            None => seen == Seen::Nothing,
        }
    }

    pub(super) fn deliver(&self, request_id: RequestId, deliver: &mut Deliver<'_>) -> Delivery {
        // The read was started for all watchers.
        let source = Source::Redis { collapsed: true, stored: self.stored };
        let reply = Reply { result: self.result.as_key_result(), source, tracked: self.tracked };
        deliver(request_id, &WatchEvent { state: self.state, reply, rendered: &self.rendered })
    }
}

/// Delivery of an event in progress.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) event: Event,
    /// Watcher that was visited last. The next one follows in the order of ids.
    after: Option<RequestId>,
    /// Watchers to visit until all were.
    visits_left: usize,
}

impl Round {
    /// Adds a visit, because a watcher was added that may come before others.
    pub(super) fn extend(&mut self) {
        self.visits_left += 1;
    }
}

impl Watches {
    /// Starts to deliver an event to all watchers of a key. Replaces an event that not all have:
    /// they get this one only. The round goes on where it is, so that each watcher has its turn.
    pub(super) fn start_round(&mut self, id: usize, event: Event) {
        let WatchedKey { round, watchers, .. } = &mut self.keys[id];
        // A round in progress keeps its place in the queue.
        let is_listed = round.is_some();
        let after = round.take().and_then(|round| round.after);
        *round = Some(Round { event, after, visits_left: watchers.len() });
        if !is_listed {
            self.rounds.push_back(id);
        }
    }

    /// Delivers events to up to `budget` watchers, some of each key in turn. Returns true if more
    /// are left.
    pub fn deliver_events(&mut self, mut budget: usize, deliver: &mut Deliver<'_>) -> bool {
        while budget > 0
            && let Some(id) = self.rounds.pop_front()
        {
            let visits = budget.min(VISITS_PER_TURN);
            budget -= self.visit_some(id, visits, deliver);
            if self.keys.get(id).is_some_and(|watched| watched.round.is_some()) {
                self.rounds.push_back(id);
            }
        }
        !self.rounds.is_empty()
    }

    /// Delivers the event of a key to up to `max_visits` watchers. Returns the number of visits.
    fn visit_some(&mut self, id: usize, max_visits: usize, deliver: &mut Deliver<'_>) -> usize {
        for visits in 0..max_visits {
            let Some((request_id, is_concerned)) = self.next_visit(id) else { return visits };
            if is_concerned {
                self.deliver_to(id, request_id, deliver);
            }
        }
        max_visits
    }

    /// Advances the round of a key. Returns the next watcher, and true if it lacks the event.
    /// `None` ends the round.
    fn next_visit(&mut self, id: usize) -> Option<(RequestId, bool)> {
        let WatchedKey { round, watchers, .. } = self.keys.get_mut(id)?;
        let Round { event, after, visits_left } = round.as_mut()?;
        if *visits_left == 0 {
            *round = None;
            return None;
        }
        *visits_left -= 1;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let next = watchers.range((start, Bound::Unbounded)).next().or_else(|| watchers.first_key_value());
        let (&request_id, &seen) = next?;
        *after = Some(request_id);
        Some((request_id, event.concerns(seen)))
    }
}
