//! Insertion of entries, and the evictions that make space for them.

use super::record::Record;
use super::{Cache, EVICTIONS_PER_INSERT, GRACE_BITS, MAX_GRACE_STEP, NIL, Node, grace_millis, longest_grace_step};
use crate::types::Millis;
use crate::value::Payload;

impl Cache {
    /// Stores a value that is fresh until `deadline`. Replaces the entry of `key`, and evicts the
    /// least recently used entries if the cache is full.
    ///
    /// The cache does not retain the entry beyond `redis_expiry`, which must not be before
    /// `deadline`. Returns false without storing if key and value exceed the limit of bytes. The
    /// same applies if the cache would still exceed it after the evictions that one insertion may
    /// make.
    pub fn insert(&mut self, key: &[u8], value: Payload<'_>, deadline: Millis, redis_expiry: Millis) -> bool {
        let hash = self.hash(key);
        if let Some(replaced) = self.find(hash, key) {
            self.release(replaced);
        }
        let record = self.record_of(key, value, deadline, redis_expiry);
        self.insertions.add(hash, record.bytes());
        if !self.evict_for(record.bytes()) {
            self.capacity_losses.not_stored += 1;
            return false;
        }
        self.add(hash, record, deadline, NIL);
        true
    }

    /// Stores a value like [`Cache::insert`], but for no request, so that this counts as no use. An
    /// entry that it replaces keeps its position in the LRU order. A new entry becomes the least
    /// recently used one. Evicts nothing: returns false without storing if the cache is full.
    pub fn insert_unused(&mut self, key: &[u8], value: Payload<'_>, deadline: Millis, redis_expiry: Millis) -> bool {
        let hash = self.hash(key);
        let newer = match self.find(hash, key) {
            Some(replaced) => {
                let newer = self.nodes[replaced as usize].newer;
                self.release(replaced);
                newer
            }
            None => self.lru.oldest().unwrap_or(NIL),
        };
        let record = self.record_of(key, value, deadline, redis_expiry);
        if self.len() >= self.limits.entries || self.bytes.saturating_add(record.bytes()) > self.limits.bytes {
            return false;
        }
        self.add(hash, record, deadline, newer);
        true
    }

    /// Returns the record of an entry with these times.
    fn record_of(&self, key: &[u8], value: Payload<'_>, deadline: Millis, redis_expiry: Millis) -> Record {
        let step = longest_grace_step(self.limits.stale, redis_expiry.saturating_sub(deadline));
        Record::new(key, value, self.generation << GRACE_BITS | step)
    }

    /// Adds an entry to the table, the heap and the LRU list: directly behind `newer`, or as the
    /// most recently used one if that is [`NIL`].
    fn add(&mut self, hash: u32, record: Record, deadline: Millis, newer: u32) {
        let grace = grace_millis(record.tag() & MAX_GRACE_STEP, self.limits.stale);
        self.bytes += record.bytes();
        let id = self.allocate(hash, record);
        self.table.insert(&mut self.nodes, id);
        match newer {
            NIL => self.lru.push_newest(&mut self.nodes, id),
            newer => self.lru.push_behind(&mut self.nodes, id, newer),
        }
        let nodes = &mut self.nodes;
        let retain_until = deadline.saturating_add(grace);
        self.deadlines.push(retain_until, id, |id, position| nodes[id as usize].heap_position = position);
    }

    /// Returns an id for a new entry: a free one, or a new one.
    fn allocate(&mut self, hash: u32, record: Record) -> u32 {
        let node = Node { next: NIL, hash, newer: NIL, older: NIL, heap_position: NIL };
        match self.first_free {
            NIL => {
                self.nodes.push(node);
                self.records.push(record);
                (self.nodes.len() - 1) as u32
            }
            id => {
                self.first_free = self.nodes[id as usize].next;
                self.nodes[id as usize] = node;
                self.records[id as usize] = record;
                id
            }
        }
    }

    /// Evicts for a new entry of `size` bytes. Returns true if the entry may be stored.
    fn evict_for(&mut self, size: usize) -> bool {
        if size > self.limits.bytes {
            return false;
        }
        if self.len() >= self.limits.entries {
            let is_early = self.evict();
            self.capacity_losses.by_entries += u64::from(is_early);
        }
        self.evict_to(self.limits.bytes - size, EVICTIONS_PER_INSERT);
        self.bytes <= self.limits.bytes
    }

    /// Evicts up to `budget` entries, until at most `bytes` are left.
    pub(super) fn evict_to(&mut self, bytes: usize, budget: usize) {
        for _ in 0..budget {
            if self.bytes <= bytes {
                return;
            }
            let is_early = self.evict();
            self.capacity_losses.by_bytes += u64::from(is_early);
        }
    }

    /// Evicts the least recently used entry. Returns true if that is early.
    fn evict(&mut self) -> bool {
        let Some(victim) = self.lru.oldest() else { return false };
        let retain_until = self.deadlines.deadline_at(self.nodes[victim as usize].heap_position);
        let is_early = self.fresh_until(victim, retain_until) >= self.early_deadline;
        self.evicted += 1;
        self.release(victim);
        is_early
    }
}
