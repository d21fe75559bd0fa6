//! The cache: least recently used out first, no entry beyond its deadline. Time comes in as an argument.
//!
//! Four parts, tied together by entry ids (indices into `nodes` and `records`):
//!
//! ```text
//!     table      key -> id         chains through nodes[id].chain
//!     recency    who goes next     links through nodes[id].newer and .older
//!     deadlines  who expires next  heap slot at nodes[id].position
//!     records    key and value     records[id]
//! ```
//!
//! An id that is not in use hangs in the free list (through `chain`) and has no heap slot. Whatever ends an entry,
//! be it eviction, expiry, removal or replacement, goes through `release`, which takes it out of all four.
//! Nodes and records are two arrays: a walk along a chain or a change of the recency list touches nodes only, and
//! side by side they need no padding.

mod deadlines;
mod lru;
mod pages;
mod record;
mod table;

pub use deadlines::Deadlines;

use crate::request::{Millis, Payload};
use lru::Recency;
use pages::Pages;
use record::Record;
use std::hash::{BuildHasher, RandomState};
use table::Table;

/// "No entry", in every link.
const NIL: u32 = u32::MAX;

/// Most entries a cache can have. Ids are 32 bits wide and [`NIL`] is not one of them.
pub const MAX_CAPACITY: usize = 2_000_000_000;

/// Ids that a cache keeps room for when its last entry goes. With more it gives all of it back: an idle proxy whose
/// million entries have expired holds none of their memory.
const KEPT_IDS: usize = 1024;

/// Everything about an entry but its key and value. 20 bytes.
#[derive(Clone, Copy, Debug)]
struct Node {
    /// Next entry of the same bucket; for a free id the next free one.
    chain: u32,
    /// The key's hash, so that growing and walking a chain look at no key.
    hash: u32,
    /// Neighbours in the recency list.
    newer: u32,
    older: u32,
    /// Where the entry's deadline is in the heap; [`NIL`] for a free id.
    position: u32,
}

/// A live entry, as [`Cache::get`] finds it.
#[derive(Clone, Copy, Debug)]
pub struct Hit<'a> {
    /// The value.
    pub payload: Payload<'a>,
    /// How much longer the entry lives. Never 0.
    pub remaining: Millis,
}

/// What is left of a cache that was emptied. Dropped page by page: all at once it held the loop up for 20 ms after ten
/// million entries.
#[derive(Debug)]
struct Discarded {
    nodes: Pages<Node>,
    records: Pages<Record>,
    heads: Pages<u32>,
}

impl Discarded {
    fn is_empty(&self) -> bool {
        self.nodes.len() + self.records.len() + self.heads.len() == 0
    }

    fn drop_page(&mut self) {
        self.nodes.drop_page();
        self.records.drop_page();
        self.heads.drop_page();
    }
}

/// The cache. See the top of the file.
#[derive(Debug)]
pub struct Cache {
    capacity: usize,
    /// Keyed by random, so that no client can choose keys that collide (std's SipHash-1-3).
    hasher: RandomState,
    nodes: Pages<Node>,
    records: Pages<Record>,
    discarded: Discarded,
    free: u32,
    table: Table,
    recency: Recency,
    deadlines: Deadlines,
}

impl Cache {
    /// An empty cache for up to `capacity` entries (1 to [`MAX_CAPACITY`]). Memory grows with the entries.
    pub fn new(capacity: usize) -> Cache {
        assert!((1..=MAX_CAPACITY).contains(&capacity), "a cache holds 1 to {MAX_CAPACITY} entries, not {capacity}");
        Cache {
            capacity,
            hasher: RandomState::new(),
            nodes: Pages::new(),
            records: Pages::new(),
            discarded: Discarded { nodes: Pages::new(), records: Pages::new(), heads: Pages::new() },
            free: NIL,
            table: Table::new(),
            recency: Recency::new(),
            deadlines: Deadlines::new(),
        }
    }

    /// Entries in memory, those included that have expired and wait for the sweep.
    pub fn len(&self) -> usize {
        self.deadlines.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.deadlines.is_empty()
    }

    /// Looks `key` up and marks it as just used. An entry whose deadline has come is removed and not returned, whether
    /// or not the sweep has reached it. O(1) for a hit; O(log n) when it removes.
    pub fn get(&mut self, key: &[u8], now: Millis) -> Option<Hit<'_>> {
        let id = self.find(self.hash(key), key)?;
        let deadline = self.deadlines.deadline_at(self.nodes[id as usize].position);
        if deadline <= now {
            self.release(id);
            return None;
        }
        self.recency.touch(&mut self.nodes, id);
        Some(Hit { payload: self.records[id as usize].payload(), remaining: deadline - now })
    }

    /// Stores `value` until `deadline`, replacing what `key` had and evicting the least recently used entry of a full
    /// cache. A value that must be stored has its deadline in the future; one that has passed is never served.
    pub fn insert(&mut self, key: &[u8], value: Payload<'_>, deadline: Millis) {
        let hash = self.hash(key);
        if let Some(replaced) = self.find(hash, key) {
            self.release(replaced);
        }
        if self.len() >= self.capacity
            && let Some(victim) = self.recency.oldest()
        {
            self.release(victim);
        }
        let id = self.claim(hash, Record::new(key, value));
        self.table.insert(&mut self.nodes, id);
        self.recency.push_newest(&mut self.nodes, id);
        let nodes = &mut self.nodes;
        self.deadlines.push(deadline, id, |id, position| nodes[id as usize].position = position);
    }

    /// Forgets `key`. Says whether it was there.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        let found = self.find(self.hash(key), key);
        if let Some(id) = found {
            self.release(id);
        }
        found.is_some()
    }

    /// Removes up to `budget` entries whose deadline has come, the earliest first. Says whether there may be more to do.
    pub fn sweep(&mut self, now: Millis, budget: usize) -> bool {
        self.discarded.drop_page();
        for _ in 0..budget {
            match self.deadlines.first() {
                Some((deadline, id)) if deadline <= now => self.release(id),
                _ => return !self.discarded.is_empty(),
            }
        }
        true
    }

    /// When the next entry expires: the moment by which a sweep is due.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.deadlines.first().map(|(deadline, _)| deadline)
    }

    fn hash(&self, key: &[u8]) -> u32 {
        (self.hasher.hash_one(key) >> 32) as u32
    }

    /// The entry of `key`, whose hash is `hash`.
    fn find(&self, hash: u32, key: &[u8]) -> Option<u32> {
        self.table.find(&self.nodes, hash, |id| self.records[id as usize].key() == key)
    }

    /// An id for a new entry: a free one, or one more.
    fn claim(&mut self, hash: u32, record: Record) -> u32 {
        let node = Node { chain: NIL, hash, newer: NIL, older: NIL, position: NIL };
        match self.free {
            NIL => {
                self.nodes.push(node);
                self.records.push(record);
                (self.nodes.len() - 1) as u32
            }
            id => {
                self.free = self.nodes[id as usize].chain;
                self.nodes[id as usize] = node;
                self.records[id as usize] = record;
                id
            }
        }
    }

    /// Ends entry `id`: out of the table, the recency list and the heap, its record freed, its id free.
    fn release(&mut self, id: u32) {
        self.table.remove(&mut self.nodes, id);
        self.recency.remove(&mut self.nodes, id);
        let nodes = &mut self.nodes;
        let position = nodes[id as usize].position;
        self.deadlines.remove(position, |id, position| nodes[id as usize].position = position);
        self.records[id as usize] = Record::vacant();
        self.nodes[id as usize].position = NIL;
        self.nodes[id as usize].chain = self.free;
        self.free = id;
        if self.is_empty() && self.nodes.len() > KEPT_IDS && self.discarded.is_empty() {
            self.discarded = Discarded {
                nodes: std::mem::replace(&mut self.nodes, Pages::new()),
                records: std::mem::replace(&mut self.records, Pages::new()),
                heads: std::mem::replace(&mut self.table, Table::new()).into_heads(),
            };
            self.free = NIL;
        }
    }

    /// Checks every link, heap slot, index and record against each other. For tests; walks everything.
    pub fn validate(&self) -> Result<(), String> {
        let len = self.len();
        if len > self.capacity {
            return Err(format!("{len} entries in a cache for {}", self.capacity));
        }
        if self.nodes.len() != self.records.len() || self.nodes.len() > self.capacity {
            return Err(format!("{} nodes and {} records for {}", self.nodes.len(), self.records.len(), self.capacity));
        }
        self.table.validate(&self.nodes)?;
        self.recency.validate(&self.nodes, len)?;
        self.deadlines.validate(|id| self.nodes[id as usize].position)?;
        let mut free = 0;
        let mut id = self.free;
        while id != NIL {
            if self.nodes[id as usize].position != NIL {
                return Err(format!("entry {id} is free and has a heap slot"));
            }
            free += 1;
            if free > self.nodes.len() {
                return Err("the free list runs in a circle".into());
            }
            id = self.nodes[id as usize].chain;
        }
        if free + len != self.nodes.len() {
            return Err(format!("{len} entries and {free} free ids, but {} nodes", self.nodes.len()));
        }
        for (id, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.position != NIL) {
            self.records[id].validate()?;
            if self.hash(self.records[id].key()) != node.hash {
                return Err(format!("entry {id} has another hash than its key"));
            }
            if self.find(node.hash, self.records[id].key()) != Some(id as u32) {
                return Err(format!("entry {id} is not found by its key"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rule 14: who knows how one process places its keys knows nothing of another.
    #[test]
    fn every_cache_hashes_by_a_key_of_its_own() {
        let [one, other] = [Cache::new(1), Cache::new(1)];
        let keys = [b"a", b"b", b"c", b"d"];
        assert!(keys.iter().any(|key| one.hash(*key) != other.hash(*key)));
    }
}
