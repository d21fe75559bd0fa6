//! Look-ahead: loads the memory that the next lookups will read, for all of them at once.
//!
//! A lookup among millions of entries touches about ten cache lines, and four or five of these
//! loads depend on each other. Lookups one after the other wait for memory most of the time. A
//! look-ahead goes through a batch of keys in stages. Each stage is a loop over loads that do not
//! depend on each other, so the processor overlaps them (14 instead of 183 ns each).
//!
//! A look-ahead changes no entry and decides nothing. It leaves the ids that it found as hints,
//! which the lookup verifies by the key. A stale or missing hint costs time only.

use super::record::Record;
use super::table::Table;
use super::{Cache, DeadlineHeap, NIL, Node, PagedVec, table_hash};
use crate::types::{MAX_UPCOMING_KEYS, UpcomingKeys};
use std::hint::black_box;

/// Number of ids from which look-ahead saves time. With fewer, most of what a lookup reads is in
/// the second-level cache of the processor. Tests use both ways with few entries.
const MIN_LOOK_AHEAD_IDS: usize = if cfg!(debug_assertions) { 4 } else { 4096 };

/// Maximum number of entries of a bucket that a look-ahead follows. A bucket has two on average.
const MAX_CHAIN_STEPS: usize = 4;

/// Upcoming lookup of a key.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Address of the key, by which the lookup finds its place.
    address: usize,
    hash: u32,
    /// Entry that may have the key, [`NIL`] if none has.
    id: u32,
}

/// Hints for upcoming lookups, in their order.
#[derive(Debug)]
pub(super) struct LookAhead {
    places: [Place; MAX_UPCOMING_KEYS],
    /// Places before this one are used up.
    next: usize,
    len: usize,
}

impl LookAhead {
    pub(super) fn new() -> LookAhead {
        LookAhead { places: [Place { address: 0, hash: 0, id: NIL }; MAX_UPCOMING_KEYS], next: 0, len: 0 }
    }

    /// Returns true if there are places for these keys, so that nothing is left to do. Skips the
    /// places before them: their keys were not looked up.
    pub(super) fn covers(&mut self, keys: &[&[u8]]) -> bool {
        let mut runs = self.places[self.next..self.len].windows(keys.len().max(1));
        let are_for_keys =
            |run: &[Place]| run.iter().zip(keys).all(|(place, key)| place.address == key.as_ptr() as usize);
        let skipped = runs.position(are_for_keys);
        self.next += skipped.unwrap_or(0);
        skipped.is_some()
    }

    /// Replaces all hints by places for these keys.
    pub(super) fn set_keys(&mut self, keys: &[&[u8]], hash: impl Fn(&[u8]) -> u32) {
        (self.next, self.len) = (0, keys.len());
        for (place, key) in self.places.iter_mut().zip(keys) {
            *place = Place { address: key.as_ptr() as usize, hash: hash(key), id: NIL };
        }
    }

    /// Finds the entry of each place: the first one in its bucket with its hash.
    pub(super) fn find_entries(&mut self, table: &Table, nodes: &PagedVec<Node>) {
        let places = &mut self.places[..self.len];
        for place in places.iter_mut() {
            place.id = table.first_in_bucket(place.hash);
        }
        for _ in 0..MAX_CHAIN_STEPS {
            let mut has_moved = false;
            for place in places.iter_mut() {
                if let Some(node) = nodes.get(place.id as usize) {
                    // Selected without a branch: a wrong prediction would end the overlap.
                    let next = if node.hash == place.hash { place.id } else { node.next };
                    has_moved |= next != place.id;
                    place.id = next;
                }
            }
            if !has_moved {
                return;
            }
        }
    }

    /// Loads what a hit reads and writes of each entry: heap slot, LRU neighbours, record, value.
    pub(super) fn load_entries(&self, nodes: &PagedVec<Node>, deadlines: &DeadlineHeap, records: &PagedVec<Record>) {
        let entries =
            || self.places[..self.len].iter().filter_map(|place| Some((nodes.get(place.id as usize)?, place.id)));
        for (node, id) in entries() {
            black_box(deadlines.deadline_at(node.heap_position));
            black_box(nodes.get(node.newer as usize).map(|newer| newer.hash));
            black_box(nodes.get(node.older as usize).map(|older| older.hash));
            black_box(records[id as usize].is_inline());
        }
        for (_, id) in entries() {
            records[id as usize].load();
        }
    }

    /// Returns the entry that was found for `key`, [`NIL`] for none. The caller must verify it:
    /// another key may have had this address, and the entry may have ended.
    pub(super) fn take_hint(&mut self, key: &[u8]) -> u32 {
        let address = key.as_ptr() as usize;
        match self.places[self.next..self.len].iter().position(|place| place.address == address) {
            Some(skipped) => {
                let place = self.next + skipped;
                self.next = place + 1;
                self.places[place].id
            }
            None => NIL,
        }
    }
}

impl Cache {
    /// Returns true if [`Cache::look_ahead`] saves time.
    pub fn benefits_from_look_ahead(&self) -> bool {
        self.nodes.len() >= MIN_LOOK_AHEAD_IDS
    }

    /// Loads the memory that lookups of these keys will read, for all of them at once. Later
    /// lookups of the same slices are faster. Changes the result of no operation. Repeating it
    /// costs little.
    pub fn look_ahead(&mut self, keys: &UpcomingKeys<'_>) {
        let Cache { look_ahead, hasher, table, nodes, deadlines, records, .. } = self;
        if look_ahead.covers(keys.as_slice()) {
            return;
        }
        look_ahead.set_keys(keys.as_slice(), |key| table_hash(hasher, key));
        look_ahead.find_entries(table, nodes);
        look_ahead.load_entries(nodes, deadlines, records);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Limits;
    use super::*;
    use crate::types::Millis;
    use crate::value::{JsonForm, Payload};

    /// Each key gets the id of its entry, in whatever place of its bucket that is. Each hint is
    /// taken once.
    #[test]
    fn hint_is_id_of_entry() {
        let mut cache = Cache::new(Limits { entries: 10_000, bytes: usize::MAX, stale: 0 });
        let keys: Vec<[u8; 4]> = (0..10_000u32).map(u32::to_le_bytes).collect();
        for key in &keys {
            cache.insert(key, Payload::Inline { bytes: key, form: JsonForm::Plain }, 1000, Millis::MAX);
        }
        let mut found = 0;
        for batch in keys.chunks(MAX_UPCOMING_KEYS) {
            let mut upcoming = UpcomingKeys::new();
            batch.iter().for_each(|key| upcoming.push(key));
            cache.look_ahead(&upcoming);
            // A key that is not in the list takes no hint away.
            assert_eq!(cache.look_ahead.take_hint(b"other"), NIL);
            for key in batch.iter().skip(1) {
                let hint = cache.look_ahead.take_hint(key);
                found += usize::from(cache.is_entry_of(hint, key));
                assert_eq!(cache.look_ahead.take_hint(key), NIL, "a hint was taken twice");
            }
            assert_eq!(cache.look_ahead.take_hint(&batch[0]), NIL, "a hint before a used one was kept");
        }
        // The longest chains are not followed to their end.
        assert!(found > 9_000, "only {found} of 9,375 hints are right");
    }
}
