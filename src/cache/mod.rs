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
//!
//! An entry is fresh until its deadline, and then perhaps kept for a while, for the case that nothing better can be had.
//! The heap has the moment at which it need not be kept any longer; without [`TimeoutConfig::stale`] the two are the same.
//!
//! Nodes and records are two arrays: a walk along a chain or a change of the recency list touches nodes only, and
//! side by side they need no padding.

mod deadline_heap;
mod lru;
mod paged_vec;
mod record;
mod table;

pub use deadline_heap::DeadlineHeap;

use crate::types::Millis;
use crate::value::Payload;
use lru::LruList;
use paged_vec::PagedVec;
use record::Record;
use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use table::Table;

/// "No entry", in every link.
const NIL: u32 = u32::MAX;

/// Most entries a cache can have. Ids are 32 bits wide and `NIL` is not one of them.
pub const MAX_CAPACITY: usize = 2_000_000_000;

/// Ids that a cache keeps room for when its last entry goes. With more it gives all of it back: an idle proxy whose
/// million entries have expired holds none of their memory.
const MIN_RETAINED_IDS: usize = 1024;

/// Removals that dropping a record of a discarded cache compares to: it takes out nothing, and often frees nothing.
const DROPS_PER_REMOVAL: usize = 16;

/// Most entries that one insertion evicts: some ten microseconds of work. A long value may need the room of a million
/// short ones; what is left to evict then is the sweep's, which has a budget too.
const EVICTIONS_PER_INSERT: usize = 64;

/// How much longer than it is fresh an entry is kept, its grace: 0, or a step each twice as long as the one before, of
/// which the longest makes all of [`TimeoutConfig::stale`]. An entry that Redis lets expire meanwhile gets the longest step that
/// is over by then: half of the time at least, unless that is short of the shortest step. The step is kept in the entry's
/// mark, together with its generation, because a second deadline would cost five bytes an entry.
const GRACE_BITS: u32 = record::TAG_BITS - 1;
const MAX_GRACE: u8 = (1 << GRACE_BITS) - 1;

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

/// What bounds a cache.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most entries (1 to [`MAX_CAPACITY`]).
    pub entries: usize,
    /// Most bytes of keys and values together; `usize::MAX` for no bound. What an entry takes beside them does not count.
    pub bytes: usize,
    /// How long an entry is kept after it has expired, for [`Cache::kept`]; 0 for not at all.
    pub stale: Millis,
}

/// A live entry, as [`Cache::get`] finds it.
#[derive(Clone, Copy, Debug)]
pub struct Hit<'a> {
    /// The value.
    pub payload: Payload<'a>,
    /// How much longer the entry lives. Never 0.
    pub remaining: Millis,
}

/// An entry that is kept, as [`Cache::kept`] finds it.
#[derive(Clone, Copy, Debug)]
pub struct MaybeStale<'a> {
    /// The value.
    pub payload: Payload<'a>,
    /// How much longer it is fresh; 0 when it has expired.
    pub remaining: Millis,
    /// How long ago it expired; 0 while it is fresh.
    pub expired_for: Millis,
}

/// What is left of a cache that was emptied. Dropped piece by piece: all at once it held the loop up for 20 ms after
/// ten million entries.
#[derive(Debug)]
struct RetiredStorage {
    nodes: PagedVec<Node>,
    records: PagedVec<Record>,
    heads: PagedVec<u32>,
    deadlines: DeadlineHeap,
}

impl RetiredStorage {
    /// Drops a page of what owns no memory, and up to `budget` records. Says whether anything is left.
    fn drop_some(&mut self, budget: usize) -> bool {
        self.nodes.drop_page();
        self.heads.drop_page();
        self.deadlines.drop_page();
        for _ in 0..budget {
            if self.records.pop().is_none() {
                break;
            }
        }
        self.nodes.len() + self.records.len() + self.heads.len() + self.deadlines.len() > 0
    }
}

/// The cache. See the top of the file.
#[derive(Debug)]
pub struct Cache {
    limits: Limits,
    /// Bytes of all keys and values.
    bytes: usize,
    /// The generation that new entries get, 0 or 1. Those of the other one, if there are any, have all expired.
    generation: u8,
    /// When they did; `None` where there can be none.
    previous_expired_at: Option<Millis>,
    /// Keyed by random, so that no client can choose keys that collide (std's SipHash-1-3).
    hasher: RandomState,
    nodes: PagedVec<Node>,
    records: PagedVec<Record>,
    retired: VecDeque<RetiredStorage>,
    free: u32,
    table: Table,
    recency: LruList,
    deadlines: DeadlineHeap,
    /// Entries that were removed because their time was over, and those that made room.
    expired: u64,
    evicted: u64,
}

impl Cache {
    /// An empty cache. Memory grows with the entries.
    pub fn new(limits: Limits) -> Cache {
        let entries = limits.entries;
        assert!((1..=MAX_CAPACITY).contains(&entries), "a cache holds 1 to {MAX_CAPACITY} entries, not {entries}");
        Cache {
            limits,
            bytes: 0,
            generation: 0,
            previous_expired_at: None,
            hasher: RandomState::new(),
            nodes: PagedVec::new(),
            records: PagedVec::new(),
            retired: VecDeque::new(),
            free: NIL,
            table: Table::new(),
            recency: LruList::new(),
            deadlines: DeadlineHeap::new(),
            expired: 0,
            evicted: 0,
        }
    }

    /// Entries that were removed because their time was over, since the start.
    pub fn expired(&self) -> u64 {
        self.expired
    }

    /// Entries that were removed to make room, since the start.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Entries in memory, those included that have expired.
    pub fn len(&self) -> usize {
        self.deadlines.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.deadlines.is_empty()
    }

    /// Bytes of all keys and values in memory. Over the limit only until the next sweeps, and by one value at most.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Looks `key` up and marks it as just used. An entry whose deadline has come is not returned, whether or not the
    /// sweep has reached it, and removed if it need not be kept. O(1) for a hit; O(log n) when it removes.
    pub fn get(&mut self, key: &[u8], now: Millis) -> Option<Hit<'_>> {
        let kept = self.get_allow_stale(key, now)?;
        (kept.remaining > 0).then_some(Hit { payload: kept.payload, remaining: kept.remaining })
    }

    /// Looks `key` up as [`Cache::get`] does, but leaves it as recently used as it was.
    pub fn peek(&mut self, key: &[u8], now: Millis) -> Option<Hit<'_>> {
        let (id, kept_until) = self.find_retained(key, now)?;
        let remaining = self.fresh_until(id, kept_until).saturating_sub(now);
        (remaining > 0).then(|| Hit { payload: self.records[id as usize].payload(), remaining })
    }

    /// Looks `key` up among all that is kept, expired or not, and marks it as just used.
    pub fn get_allow_stale(&mut self, key: &[u8], now: Millis) -> Option<MaybeStale<'_>> {
        let (id, kept_until) = self.find_retained(key, now)?;
        let fresh_until = self.fresh_until(id, kept_until);
        let (remaining, expired_for) = (fresh_until.saturating_sub(now), now.saturating_sub(fresh_until));
        if remaining == 0 && expired_for >= self.limits.stale {
            return None;
        }
        self.recency.touch(&mut self.nodes, id);
        Some(MaybeStale { payload: self.records[id as usize].payload(), remaining, expired_for })
    }

    /// Stores `value` until `deadline`, replacing what `key` had and evicting the least recently used entries of a full
    /// cache. A value that must be stored has its deadline in the future; one that has passed is never served. After
    /// `ends`, which is not before `deadline`, the entry is not kept either. Says whether it was stored: a value that
    /// is too long for the limit is not, nor one that would make a cache still larger that is over its limit already.
    pub fn insert(&mut self, key: &[u8], value: Payload<'_>, deadline: Millis, ends: Millis) -> bool {
        let hash = self.hash(key);
        if let Some(replaced) = self.find(hash, key) {
            self.release(replaced);
        }
        let grace = grace_within(self.limits.stale, ends.saturating_sub(deadline));
        let record = Record::new(key, value, self.generation << GRACE_BITS | grace);
        if !self.evict_for(record.bytes()) {
            return false;
        }
        self.bytes += record.bytes();
        let id = self.allocate(hash, record);
        self.table.insert(&mut self.nodes, id);
        self.recency.push_newest(&mut self.nodes, id);
        let (nodes, kept_until) = (&mut self.nodes, deadline.saturating_add(grace_millis(grace, self.limits.stale)));
        self.deadlines.push(kept_until, id, |id, position| nodes[id as usize].position = position);
        true
    }

    /// Forgets `key`. Says whether it was there.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        let found = self.find(self.hash(key), key);
        if let Some(id) = found {
            self.release(id);
        }
        found.is_some()
    }

    /// Forgets everything. O(1); the sweep frees the memory.
    pub fn clear(&mut self) {
        self.bytes = 0;
        self.previous_expired_at = None;
        self.free = NIL;
        self.recency = LruList::new();
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

    /// Makes everything expire now, for [`Cache::kept`] to find what may be kept longer. O(1).
    pub fn expire_all(&mut self, now: Millis) {
        // With two generations, none may be left of those that had expired so before: they would be fresh again.
        if self.limits.stale == 0 || self.previous_expired_at.is_some() {
            return self.clear();
        }
        self.generation ^= 1;
        self.previous_expired_at = Some(now);
    }

    /// Removes up to `budget` entries that are kept no longer, the earliest first, and as many that are too much for
    /// the limit of bytes. Says whether there may be more to do.
    pub fn sweep(&mut self, now: Millis, budget: usize) -> bool {
        if let Some(discarded) = self.retired.front_mut()
            && !discarded.drop_some(budget * DROPS_PER_REMOVAL)
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

    /// When the next entry goes: the moment by which a sweep is due.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.deadlines.first().map(|(deadline, _)| deadline)
    }

    /// The entry of `key`, fresh or kept, and until when it is kept. One that need not be kept any longer goes.
    fn find_retained(&mut self, key: &[u8], now: Millis) -> Option<(u32, Millis)> {
        let id = self.find(self.hash(key), key)?;
        let kept_until = self.deadlines.deadline_at(self.nodes[id as usize].position);
        if kept_until <= now {
            self.expire(id);
            return None;
        }
        Some((id, kept_until))
    }

    fn expire(&mut self, id: u32) {
        self.expired += 1;
        self.release(id);
    }

    /// Until when entry `id` is fresh. The heap has until when it is kept.
    fn fresh_until(&self, id: u32, kept_until: Millis) -> Millis {
        if self.limits.stale == 0 {
            return kept_until;
        }
        let mark = self.records[id as usize].tag();
        let deadline = kept_until - grace_millis(mark & MAX_GRACE, self.limits.stale);
        match self.previous_expired_at {
            Some(time) if mark >> GRACE_BITS != self.generation => deadline.min(time),
            _ => deadline,
        }
    }

    /// Evicts for an entry of `size` bytes, and says whether it may be stored.
    fn evict_for(&mut self, size: usize) -> bool {
        if size > self.limits.bytes {
            return false;
        }
        if self.len() >= self.limits.entries {
            self.evict();
        }
        self.evict_to(self.limits.bytes - size, EVICTIONS_PER_INSERT);
        self.bytes <= self.limits.bytes
    }

    /// Evicts until there are at most `bytes`, but no more than `budget` entries.
    fn evict_to(&mut self, bytes: usize, budget: usize) {
        for _ in 0..budget {
            if self.bytes <= bytes {
                return;
            }
            self.evict();
        }
    }

    fn evict(&mut self) {
        if let Some(victim) = self.recency.oldest() {
            self.evicted += 1;
            self.release(victim);
        }
    }

    fn hash(&self, key: &[u8]) -> u32 {
        // The key's bytes and nothing else: no other word is hashed that its length would have to be told from.
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key);
        (hasher.finish() >> 32) as u32
    }

    /// The entry of `key`, whose hash is `hash`.
    fn find(&self, hash: u32, key: &[u8]) -> Option<u32> {
        self.table.find(&self.nodes, hash, |id| self.records[id as usize].key() == key)
    }

    /// An id for a new entry: a free one, or one more.
    fn allocate(&mut self, hash: u32, record: Record) -> u32 {
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
        self.bytes -= self.records[id as usize].bytes();
        self.records[id as usize] = Record::vacant();
        self.nodes[id as usize].position = NIL;
        self.nodes[id as usize].chain = self.free;
        self.free = id;
        if self.is_empty() && self.nodes.len() > MIN_RETAINED_IDS {
            self.clear();
        }
    }

    /// Checks every link, heap slot, index and record against each other. For tests; walks everything.
    #[cfg(any(test, debug_assertions, feature = "validate"))]
    pub fn validate(&self) -> Result<(), String> {
        let len = self.len();
        let capacity = self.limits.entries;
        if len > capacity {
            return Err(format!("{len} entries in a cache for {capacity}"));
        }
        if self.nodes.len() != self.records.len() || self.nodes.len() > capacity {
            return Err(format!("{} nodes and {} records for {capacity}", self.nodes.len(), self.records.len()));
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
        let mut bytes = 0;
        for (id, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.position != NIL) {
            self.records[id].validate()?;
            bytes += self.records[id].bytes();
            if self.hash(self.records[id].key()) != node.hash {
                return Err(format!("entry {id} has another hash than its key"));
            }
            if self.find(node.hash, self.records[id].key()) != Some(id as u32) {
                return Err(format!("entry {id} is not found by its key"));
            }
        }
        if bytes != self.bytes { Err(format!("{bytes} bytes are held, {} counted", self.bytes)) } else { Ok(()) }
    }
}

/// The longest grace that is over after `room` milliseconds.
fn grace_within(stale: Millis, room: Millis) -> u8 {
    (1..=MAX_GRACE).rev().find(|&grace| grace_millis(grace, stale) <= room).unwrap_or(0)
}

/// A grace in milliseconds.
fn grace_millis(grace: u8, stale: Millis) -> Millis {
    if grace == 0 { 0 } else { stale >> (MAX_GRACE - grace) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rule 14: who knows how one process places its keys knows nothing of another.
    #[test]
    fn every_cache_hashes_by_a_key_of_its_own() {
        let limits = Limits { entries: 1, bytes: usize::MAX, stale: 0 };
        let [one, other] = [Cache::new(limits), Cache::new(limits)];
        let keys = [b"a", b"b", b"c", b"d"];
        assert!(keys.iter().any(|key| one.hash(*key) != other.hash(*key)));
    }
}
