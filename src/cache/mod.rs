//! LRU cache with a deadline for each entry. Performs no I/O and takes the time as an argument.
//!
//! Four parts refer to each other by entry id, which is an index into `nodes` and `records`:
//!
//! | part | holds | links |
//! |---|---|---|
//! | `table` | key to id | `nodes[id].next` |
//! | `lru` | order of use | `nodes[id].newer`, `nodes[id].older` |
//! | `deadlines` | expiry order | heap slot at `nodes[id].heap_position` |
//! | `records` | key and value | `records[id]` |
//!
//! A free id is in the free list, linked by `next`, and has no heap slot. Eviction, expiry, removal
//! and replacement all end an entry in `Cache::release`, which removes it from all four parts.
//!
//! An entry is fresh until its deadline. With [`Limits::stale`] the cache retains it longer, for
//! use during an outage. The heap holds the time until which an entry is retained; without
//! [`Limits::stale`] that is the deadline.
//!
//! Nodes and records are separate arrays. Following a chain or updating the LRU list touches only
//! nodes, and neither array needs padding.

mod deadline_heap;
mod insert;
mod insertions;
mod look_ahead;
mod lru;
mod paged_vec;
mod record;
mod retired;
mod table;

pub use deadline_heap::DeadlineHeap;
pub use insertions::{CapacityLosses, InsertionSample};
pub use paged_vec::PagedVec;
pub use table::{Chained, Table};

use crate::types::Millis;
use crate::value::Payload;
use look_ahead::LookAhead;
use lru::LruList;
use record::Record;
use retired::RetiredStorage;
use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};

/// Link to no entry.
pub const NIL: u32 = u32::MAX;

/// Maximum of entries in a cache. Ids have 32 bits, and one value of them is no id.
pub const MAX_CAPACITY: usize = 2_000_000_000;

/// Number of ids up to which an empty cache retains its memory. With more it frees all of it, so
/// that an idle proxy holds no memory of a million expired entries.
const MIN_RETAINED_IDS: usize = 1024;

/// Records of retired storage that the sweep drops instead of one removal. A drop updates no other
/// part, and often frees nothing.
const DROPS_PER_REMOVAL: usize = 16;

/// Maximum of entries that one insertion evicts, which takes some ten microseconds. A long value
/// may need the memory of a million short ones. The sweep evicts the rest within its own budget.
const EVICTIONS_PER_INSERT: usize = 64;

/// Bits of a grace step, in the tag of an entry. The generation takes the remaining bit.
///
/// The grace of an entry is the time for which it is retained after its deadline. Step 0 is no
/// grace. Each further step is twice as long as the one before, and the last one is
/// [`Limits::stale`]. If Redis expires the key earlier, the entry gets the longest step that ends
/// before. That is at least half of the time that Redis allows, unless even the shortest step is
/// too long. A second deadline instead of a step would cost 5 bytes an entry.
const GRACE_BITS: u32 = record::TAG_BITS - 1;

/// Longest grace step.
const MAX_GRACE_STEP: u8 = (1 << GRACE_BITS) - 1;

/// Links and hash of an entry. Takes 20 bytes.
#[derive(Clone, Copy, Debug)]
struct Node {
    /// Next entry of the bucket, or next free id.
    next: u32,
    /// Hash of the key, so that splitting a bucket and following a chain read no keys.
    hash: u32,
    /// More recently used neighbour in the LRU list.
    newer: u32,
    /// Less recently used neighbour in the LRU list.
    older: u32,
    /// Position of the entry in the deadline heap, [`NIL`] for a free id.
    heap_position: u32,
}

impl Chained for Node {
    #[inline]
    fn hash(&self) -> u32 {
        self.hash
    }

    #[inline]
    fn next(&self) -> u32 {
        self.next
    }

    #[inline]
    fn set_next(&mut self, id: u32) {
        self.next = id;
    }
}

/// Limits of a cache.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum of entries, 1 to [`MAX_CAPACITY`].
    pub entries: usize,
    /// Maximum of bytes of all keys and values, `usize::MAX` for no limit. The overhead of an entry
    /// does not count.
    pub bytes: usize,
    /// Longest time for which an expired entry is retained for [`Cache::get_allow_stale`], 0 for
    /// not at all.
    pub stale: Millis,
}

/// A fresh entry.
#[derive(Clone, Copy, Debug)]
pub struct Hit<'a> {
    /// Value of the entry.
    pub payload: Payload<'a>,
    /// Time until the entry expires. Never 0.
    pub ttl: Millis,
}

/// A fresh or retained entry.
#[derive(Clone, Copy, Debug)]
pub struct MaybeStale<'a> {
    /// Value of the entry.
    pub payload: Payload<'a>,
    /// Time until the entry expires, 0 if it is expired.
    pub ttl: Millis,
    /// Time since the entry expired, 0 if it is fresh.
    pub expired_for: Millis,
}

/// LRU cache with a deadline for each entry. Each worker has its own.
#[derive(Debug)]
pub struct Cache {
    limits: Limits,
    /// Bytes of all keys and values.
    bytes: usize,
    /// Generation of new entries, 0 or 1. All entries of the other generation are expired.
    generation: u8,
    /// Time at which the other generation expired. `None` if it has no entries.
    previous_expired_at: Option<Millis>,
    /// Hashes with random keys, so that clients cannot choose keys that collide (SipHash-1-3).
    hasher: RandomState,
    nodes: PagedVec<Node>,
    records: PagedVec<Record>,
    retired: VecDeque<RetiredStorage>,
    /// Head of the free list.
    first_free: u32,
    table: Table,
    lru: LruList,
    deadlines: DeadlineHeap,
    look_ahead: LookAhead,
    /// Entries removed after their expiry since the start.
    expired: u64,
    /// Entries evicted since the start.
    evicted: u64,
    /// Evicted entries that were fresh until this time or later count as early.
    early_deadline: Millis,
    capacity_losses: CapacityLosses,
    insertions: InsertionSample,
}

impl Cache {
    /// Creates an empty cache. Its memory grows with the entries.
    pub fn new(limits: Limits) -> Cache {
        let entries = limits.entries;
        assert!((1..=MAX_CAPACITY).contains(&entries), "a cache has 1 to {MAX_CAPACITY} entries, not {entries}");
        Cache {
            limits,
            bytes: 0,
            generation: 0,
            previous_expired_at: None,
            hasher: RandomState::new(),
            nodes: PagedVec::new(),
            records: PagedVec::new(),
            retired: VecDeque::new(),
            first_free: NIL,
            table: Table::new(),
            lru: LruList::new(),
            deadlines: DeadlineHeap::new(),
            look_ahead: LookAhead::new(),
            expired: 0,
            evicted: 0,
            early_deadline: Millis::MAX,
            capacity_losses: CapacityLosses::default(),
            insertions: InsertionSample::new(),
        }
    }

    /// Returns the number of entries removed after their expiry since the start.
    pub fn expired(&self) -> u64 {
        self.expired
    }

    /// Returns the number of entries evicted since the start.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Returns the number of entries in memory, including expired ones.
    pub fn len(&self) -> usize {
        self.deadlines.len()
    }

    /// Returns true if no entry is in memory.
    pub fn is_empty(&self) -> bool {
        self.deadlines.is_empty()
    }

    /// Returns the bytes of all keys and values in memory. They may exceed the limit until the next
    /// sweeps, by one value at most.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Looks up `key` and makes its entry the most recently used.
    ///
    /// An expired entry is never a hit, swept or not. It is removed unless the cache retains it.
    /// O(1) for a hit, O(log n) for a removal.
    pub fn get(&mut self, key: &[u8], now: Millis) -> Option<Hit<'_>> {
        let found = self.get_allow_stale(key, now)?;
        (found.ttl > 0).then_some(Hit { payload: found.payload, ttl: found.ttl })
    }

    /// Looks up `key` without making its entry the most recently used.
    pub fn peek(&mut self, key: &[u8], now: Millis) -> Option<Hit<'_>> {
        let (id, retain_until) = self.find_retained(key, now)?;
        let ttl = self.fresh_until(id, retain_until).saturating_sub(now);
        (ttl > 0).then(|| Hit { payload: self.records[id as usize].payload(), ttl })
    }

    /// Looks up `key` among fresh and retained entries, and makes its entry the most recently used.
    pub fn get_allow_stale(&mut self, key: &[u8], now: Millis) -> Option<MaybeStale<'_>> {
        let (id, retain_until) = self.find_retained(key, now)?;
        let fresh_until = self.fresh_until(id, retain_until);
        let (ttl, expired_for) = (fresh_until.saturating_sub(now), now.saturating_sub(fresh_until));
        if ttl == 0 && expired_for >= self.limits.stale {
            return None;
        }
        self.lru.touch(&mut self.nodes, id);
        Some(MaybeStale { payload: self.records[id as usize].payload(), ttl, expired_for })
    }

    /// Removes the entry of `key`. Returns true if there was one.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        let found = self.find(self.hash(key), key);
        if let Some(id) = found {
            self.release(id);
        }
        found.is_some()
    }

    /// Removes all entries. O(1): sweeps free the memory.
    pub fn clear(&mut self) {
        self.bytes = 0;
        self.previous_expired_at = None;
        self.first_free = NIL;
        self.lru = LruList::new();
        if self.nodes.len() == 0 {
            return;
        }
        self.retired.push_back(RetiredStorage {
            nodes: std::mem::replace(&mut self.nodes, PagedVec::new()),
            records: std::mem::replace(&mut self.records, PagedVec::new()),
            heads: std::mem::replace(&mut self.table, Table::new()).into_heads(),
            deadlines: std::mem::replace(&mut self.deadlines, DeadlineHeap::new()),
        });
    }

    /// Makes all fresh entries expire now. [`Cache::get_allow_stale`] still finds retained ones.
    /// O(1).
    pub fn expire_all(&mut self, now: Millis) {
        // Without grace nothing is retained. Entries of the previous generation, if any are left,
        // would be fresh again in the new one.
        if self.limits.stale == 0 || self.previous_expired_at.is_some() {
            return self.clear();
        }
        self.generation ^= 1;
        self.previous_expired_at = Some(now);
    }

    /// Removes up to `budget` entries that are no longer retained, earliest first, and evicts up to
    /// `budget` entries beyond the limit of bytes. Returns true if more may be due.
    pub fn sweep(&mut self, now: Millis, budget: usize) -> bool {
        if let Some(retired) = self.retired.front_mut()
            && !retired.drop_some(budget * DROPS_PER_REMOVAL)
        {
            self.retired.pop_front();
        }
        self.evict_to(self.limits.bytes, budget);
        for _ in 0..budget {
            match self.deadlines.first() {
                Some((deadline, id)) if deadline <= now => self.expire(id),
                _ => return !self.retired.is_empty() || self.bytes > self.limits.bytes,
            }
        }
        true
    }

    /// Returns the time at which the next entry must be swept.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.deadlines.first().map(|(deadline, _)| deadline)
    }

    /// Returns the fresh or retained entry of `key`, and the time until which it is retained.
    /// Removes an entry that is no longer retained.
    fn find_retained(&mut self, key: &[u8], now: Millis) -> Option<(u32, Millis)> {
        let hint = self.look_ahead.take_hint(key);
        let id = if self.is_entry_of(hint, key) { hint } else { self.find(self.hash(key), key)? };
        let retain_until = self.deadlines.deadline_at(self.nodes[id as usize].heap_position);
        if retain_until <= now {
            self.expire(id);
            return None;
        }
        Some((id, retain_until))
    }

    fn expire(&mut self, id: u32) {
        self.expired += 1;
        self.release(id);
    }

    /// Returns the time until which entry `id` is fresh, from the time until which it is retained.
    fn fresh_until(&self, id: u32, retain_until: Millis) -> Millis {
        if self.limits.stale == 0 {
            return retain_until;
        }
        let tag = self.records[id as usize].tag();
        let deadline = retain_until - grace_millis(tag & MAX_GRACE_STEP, self.limits.stale);
        match self.previous_expired_at {
            Some(time) if tag >> GRACE_BITS != self.generation => deadline.min(time),
            _ => deadline,
        }
    }

    fn hash(&self, key: &[u8]) -> u32 {
        table_hash(&self.hasher, key)
    }

    /// Returns true if `id` is the entry of `key`. Accepts any id.
    fn is_entry_of(&self, id: u32, key: &[u8]) -> bool {
        self.nodes.get(id as usize).is_some_and(|node| node.heap_position != NIL)
            && self.records[id as usize].key() == key
    }

    /// Returns the entry of `key`, which has this hash.
    fn find(&self, hash: u32, key: &[u8]) -> Option<u32> {
        self.table.find(&self.nodes, hash, |id| self.records[id as usize].key() == key)
    }

    /// Removes entry `id` from the table, the LRU list and the heap, drops its record and frees its
    /// id.
    fn release(&mut self, id: u32) {
        self.table.remove(&mut self.nodes, id);
        self.lru.remove(&mut self.nodes, id);
        let nodes = &mut self.nodes;
        let position = nodes[id as usize].heap_position;
        self.deadlines.remove(position, |id, position| nodes[id as usize].heap_position = position);
        self.bytes -= self.records[id as usize].bytes();
        self.records[id as usize] = Record::vacant();
        self.nodes[id as usize].heap_position = NIL;
        self.nodes[id as usize].next = self.first_free;
        self.first_free = id;
        if self.is_empty() && self.nodes.len() > MIN_RETAINED_IDS {
            self.clear();
        }
    }

    /// Checks all links, heap slots, ids and records against each other. Walks the whole cache.
    #[cfg(any(test, debug_assertions, feature = "validate"))]
    pub fn validate(&self) -> Result<(), String> {
        let len = self.len();
        let capacity = self.limits.entries;
        if len > capacity {
            return Err(format!("{len} entries exceed the limit of {capacity}"));
        }
        if self.nodes.len() != self.records.len() || self.nodes.len() > capacity {
            return Err(format!(
                "{} nodes and {} records for at most {capacity} entries",
                self.nodes.len(),
                self.records.len()
            ));
        }
        self.table.validate(&self.nodes)?;
        self.lru.validate(&self.nodes, len)?;
        self.deadlines.validate(|id| self.nodes[id as usize].heap_position)?;
        let mut free_count = 0;
        let mut id = self.first_free;
        while id != NIL {
            if self.nodes[id as usize].heap_position != NIL {
                return Err(format!("id {id} is free and has a heap slot"));
            }
            free_count += 1;
            if free_count > self.nodes.len() {
                return Err("the free list is circular".into());
            }
            id = self.nodes[id as usize].next;
        }
        if free_count + len != self.nodes.len() {
            return Err(format!("{len} entries and {free_count} free ids, but {} nodes", self.nodes.len()));
        }
        let mut bytes = 0;
        for (id, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.heap_position != NIL) {
            self.records[id].validate()?;
            bytes += self.records[id].bytes();
            if self.hash(self.records[id].key()) != node.hash {
                return Err(format!("entry {id} has a wrong hash"));
            }
            if self.find(node.hash, self.records[id].key()) != Some(id as u32) {
                return Err(format!("entry {id} is not found by its key"));
            }
        }
        if bytes != self.bytes { Err(format!("records have {bytes} bytes, {} counted", self.bytes)) } else { Ok(()) }
    }
}

/// Returns the hash of a key with the random keys of a hasher (SipHash-1-3).
pub fn hash_key(hasher: &RandomState, key: &[u8]) -> u64 {
    // Only the bytes, without their length: nothing else is hashed with them.
    let mut hasher = hasher.build_hasher();
    hasher.write(key);
    hasher.finish()
}

/// Returns the half of the hash that the table uses.
fn table_hash(hasher: &RandomState, key: &[u8]) -> u32 {
    (hash_key(hasher, key) >> 32) as u32
}

/// Returns the longest grace step of at most `max_grace` milliseconds.
fn longest_grace_step(stale: Millis, max_grace: Millis) -> u8 {
    (1..=MAX_GRACE_STEP).rev().find(|&step| grace_millis(step, stale) <= max_grace).unwrap_or(0)
}

/// Returns the length of a grace step.
fn grace_millis(step: u8, stale: Millis) -> Millis {
    if step == 0 { 0 } else { stale >> (MAX_GRACE_STEP - step) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two caches hash with different random keys.
    #[test]
    fn cache_hashes_with_random_keys() {
        let limits = Limits { entries: 1, bytes: usize::MAX, stale: 0 };
        let [one, other] = [Cache::new(limits), Cache::new(limits)];
        let keys = [b"a", b"b", b"c", b"d"];
        assert!(keys.iter().any(|key| one.hash(*key) != other.hash(*key)));
    }
}
