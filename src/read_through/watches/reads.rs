//! Reads of watched keys: when one begins, and what its result changes.

use super::round::{Event, ReadResult};
use super::{WatchedKey, Watches};
use crate::inflight::{Inflight, UnwaitedFetch};
use crate::types::{Job, Millis};
use std::sync::Arc;

/// Maximum number of reads in flight for watches: as many as one client may have, so that they do
/// not fill the job queue. A fetcher takes a few batches of them.
pub(super) const MAX_WATCH_READS: usize = 1024;

/// Number of keys marked as outdated in one tick, after an event that may have changed any key
/// (some 10 us).
const MARKS_PER_TICK: usize = 256;

/// Time until a key is read again that could not be read. Reconnecting to Redis starts as soon.
const RETRY_DELAY: Millis = 1000;

/// Freshness of the result of a read.
#[derive(Clone, Copy, Debug)]
pub struct Freshness {
    /// Time from which on the result is no longer fresh.
    pub fresh_until: Millis,
    /// Time until the value in the cache expires, `None` if it is not cached.
    pub stored: Option<Millis>,
    /// True while changes arrive as invalidations.
    pub tracked: bool,
}

impl Watches {
    /// Returns the earliest time at which the next read of a key may begin.
    pub(super) fn earliest_read(&self, id: usize, now: Millis) -> Millis {
        let next = self.keys[id].last_begin.map_or(0, |last| last + self.settings.interval);
        next.max(now)
    }

    /// Plans the next read of a key at a time, unless an earlier one is planned.
    pub(super) fn schedule(&mut self, id: usize, at: Millis) {
        if let Some(position) = self.keys[id].due_position {
            if self.due.deadline_at(position) <= at {
                return;
            }
            self.cancel_read(id);
        }
        let keys = &mut self.keys;
        self.due.push(at, id as u32, |id, position| keys[id as usize].due_position = Some(position));
    }

    /// Cancels the planned read of a key.
    pub(super) fn cancel_read(&mut self, id: usize) {
        let keys = &mut self.keys;
        if let Some(position) = keys[id].due_position.take() {
            self.due.remove(position, |id, position| keys[id as usize].due_position = Some(position));
        }
    }

    /// Marks a key as possibly changed, and plans a read.
    pub(super) fn mark_outdated(&mut self, id: usize, now: Millis) {
        let earliest = self.earliest_read(id, now);
        let watched = &mut self.keys[id];
        if std::mem::replace(&mut watched.is_outdated, true) {
            self.counters.merged += 1;
        } else if watched.fetch_id.is_none() {
            self.schedule(id, earliest);
        }
    }

    /// Returns the time at which [`Watches::begin_reads`] is due next.
    pub fn next_deadline(&self) -> Option<Millis> {
        match self.due.first() {
            _ if self.outdated_from.is_some() || !self.rounds.is_empty() => Some(0),
            Some((at, _)) if self.reads_in_flight < MAX_WATCH_READS => Some(at),
            _ => None,
        }
    }

    /// Begins up to `budget` reads that are due. Adds their jobs to `jobs`. Returns true if more
    /// may be due.
    pub fn begin_reads(
        &mut self,
        now: Millis,
        mut budget: usize,
        inflight: &mut Inflight,
        jobs: &mut Vec<Job>,
    ) -> bool {
        self.mark_some_outdated(now);
        while budget > 0
            && self.reads_in_flight < MAX_WATCH_READS
            && let Some((_, id)) = self.due.first().filter(|&(at, _)| at <= now)
        {
            budget -= 1;
            self.cancel_read(id as usize);
            self.begin_read(id as usize, now, inflight, jobs);
        }
        budget == 0 || self.outdated_from.is_some()
    }

    /// Marks the next keys as outdated, if all of them are to be.
    fn mark_some_outdated(&mut self, now: Millis) {
        let Some(from) = self.outdated_from.take() else { return };
        // The ids of a slab are dense, so this visits few vacant ones.
        let end = from + MARKS_PER_TICK;
        for id in from..end.min(self.keys.capacity()) {
            if self.keys.contains(id) {
                self.mark_outdated(id, now);
            }
        }
        self.outdated_from = (end < self.keys.capacity()).then_some(end);
    }

    fn begin_read(&mut self, id: usize, now: Millis, inflight: &mut Inflight, jobs: &mut Vec<Job>) {
        let watched = &mut self.keys[id];
        let UnwaitedFetch { fetch_id, started_at, is_new } = inflight.join_or_start_unwaited(&watched.key, now);
        // Its value may be older than that of the last read. Its end is awaited, because two reads
        // of a key in flight could leave the older value in the cache.
        watched.ignores_read = !is_new && watched.last_end.is_some_and(|last| started_at <= last);
        (watched.fetch_id, watched.last_begin, watched.is_outdated) = (Some(fetch_id), Some(now), false);
        self.reads_in_flight += 1;
        if is_new {
            jobs.push(Job { fetch_id, key: Arc::clone(&watched.key) });
        }
    }

    /// Returns the id of the watched key that a fetch reads.
    pub fn find_read(&self, key: &[u8], fetch_id: usize) -> Option<usize> {
        let id = *self.ids.get(key)?;
        (self.keys[id].fetch_id == Some(fetch_id)).then_some(id)
    }

    /// Applies the result of the read of a watched key.
    pub fn on_read(&mut self, id: usize, result: ReadResult, freshness: Freshness, now: Millis) {
        let Freshness { fresh_until, stored, tracked } = freshness;
        let watched = &mut self.keys[id];
        watched.fetch_id = None;
        self.reads_in_flight -= 1;
        if std::mem::take(&mut watched.ignores_read) {
            return self.schedule(id, now);
        }
        let event = Event::new(result, stored, tracked);
        if event.state.is_some() {
            watched.last_end = Some(now);
        }
        let (has_failed, is_outdated) = (event.state.is_none(), watched.is_outdated);
        let earliest = self.earliest_read(id, now);
        self.schedule(
            id,
            match (has_failed, is_outdated) {
                (true, _) => earliest.max(now + RETRY_DELAY),
                (_, true) => earliest,
                _ => earliest.max(fresh_until),
            },
        );
        self.show(id, event);
    }

    /// Starts a round of events, if the result of a read is new to a watcher.
    fn show(&mut self, id: usize, event: Event) {
        let WatchedKey { state, awaits_read, .. } = &mut self.keys[id];
        // A failure replaces no event with a state: nothing awaits a read while that is delivered.
        let is_new = *awaits_read || (event.state.is_some() && *state != event.state);
        if event.state.is_some() {
            (*state, *awaits_read) = (event.state, false);
        }
        if is_new {
            self.start_round(id, event);
        }
    }
}
