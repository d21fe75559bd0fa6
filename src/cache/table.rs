//! Hash table from key to entry id: linear hashing (Litwin, 1980) over chains of entry ids.
//!
//! A table that doubles moves every entry at once, which blocks the event loop (most of a second at
//! ten million entries). This table grows by one bucket at a time. The new bucket takes its entries
//! from one older bucket, and nothing else moves. So an insertion costs at most one short chain.
//!
//! With `n` buckets, `mask` covers the next power of two, and a hash selects bucket `hash & mask`.
//! If that bucket does not exist yet, its entries are in the bucket that it will be split from. The
//! number of that bucket lacks the highest bit of the mask.
//!
//! The table owns only the heads of its chains, 4 bytes a bucket. Links and hashes are in the
//! nodes.

use super::NIL;
use super::paged_vec::PagedVec;

/// Buckets of an empty table. Their heads take one cache line.
const INITIAL_BUCKETS: usize = 16;

/// Maximum average of entries per bucket. At 2 a hit walks two nodes on average, and the heads cost
/// an entry 2 bytes. Nodes hold the full hash, so the walk reads almost no key but the wanted one.
const MAX_ENTRIES_PER_BUCKET: usize = 2;

/// Node of an entry in a [`Table`].
pub trait Chained {
    /// Returns the hash of the entry.
    fn hash(&self) -> u32;

    /// Returns the next entry of the bucket, [`NIL`] after the last one.
    fn next(&self) -> u32;

    /// Sets the next entry of the bucket.
    fn set_next(&mut self, id: u32);
}

/// Heads of the chains, and the number of entries in them.
#[derive(Debug)]
pub struct Table {
    heads: PagedVec<u32>,
    len: usize,
}

impl Table {
    /// Creates an empty table.
    #[allow(clippy::new_without_default, reason = "one constructor is enough")]
    pub fn new() -> Table {
        let mut heads = PagedVec::new();
        for _ in 0..INITIAL_BUCKETS {
            heads.push(NIL);
        }
        Table { heads, len: 0 }
    }

    /// Returns the memory of a table that is no longer needed.
    pub(super) fn into_heads(self) -> PagedVec<u32> {
        self.heads
    }

    /// Returns the bucket of a hash.
    fn bucket_of(&self, hash: u32) -> usize {
        let mask = self.heads.len().next_power_of_two() - 1;
        let bucket = hash as usize & mask;
        if bucket < self.heads.len() { bucket } else { bucket & (mask >> 1) }
    }

    /// Returns the first entry in the bucket of a hash, [`NIL`] if it is empty.
    pub(super) fn first_in_bucket(&self, hash: u32) -> u32 {
        self.heads[self.bucket_of(hash)]
    }

    /// Returns the first entry with this hash that `matches` accepts.
    pub fn find<N: Chained>(
        &self,
        nodes: &PagedVec<N>,
        hash: u32,
        mut matches: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        let mut id = self.first_in_bucket(hash);
        while id != NIL {
            let node = &nodes[id as usize];
            if node.hash() == hash && matches(id) {
                return Some(id);
            }
            id = node.next();
        }
        None
    }

    /// Adds entry `id`. Its node must hold its hash, and its key must not be in the table.
    pub fn insert<N: Chained>(&mut self, nodes: &mut PagedVec<N>, id: u32) {
        let bucket = self.bucket_of(nodes[id as usize].hash());
        nodes[id as usize].set_next(self.heads[bucket]);
        self.heads[bucket] = id;
        self.len += 1;
        if self.len > self.heads.len() * MAX_ENTRIES_PER_BUCKET {
            self.split_bucket(nodes);
        }
    }

    /// Removes entry `id`.
    pub fn remove<N: Chained>(&mut self, nodes: &mut PagedVec<N>, id: u32) {
        let bucket = self.bucket_of(nodes[id as usize].hash());
        let next = nodes[id as usize].next();
        if self.heads[bucket] == id {
            self.heads[bucket] = next;
        } else {
            let mut previous = self.heads[bucket] as usize;
            while nodes[previous].next() != id {
                previous = nodes[previous].next() as usize;
            }
            nodes[previous].set_next(next);
        }
        self.len -= 1;
    }

    /// Adds a bucket and moves its entries there, from the one bucket that held them.
    fn split_bucket<N: Chained>(&mut self, nodes: &mut PagedVec<N>) {
        let new = self.heads.len();
        let highest_bit = 1 << new.ilog2();
        let mask = highest_bit * 2 - 1;
        self.heads.push(NIL);
        let old = new - highest_bit;
        let mut id = std::mem::replace(&mut self.heads[old], NIL);
        while id != NIL {
            let node = &mut nodes[id as usize];
            let bucket = if node.hash() as usize & mask == new { new } else { old };
            let next = node.next();
            node.set_next(self.heads[bucket]);
            self.heads[bucket] = id;
            id = next;
        }
    }

    /// Checks that every entry is in the chain of its bucket, and in it once. Walks all chains.
    #[cfg(any(test, debug_assertions, feature = "validate"))]
    pub fn validate<N: Chained>(&self, nodes: &PagedVec<N>) -> Result<(), String> {
        let mut seen = vec![false; nodes.len()];
        let mut count = 0;
        for (bucket, &head) in self.heads.iter().enumerate() {
            let mut id = head;
            while id != NIL {
                let node = &nodes[id as usize];
                if std::mem::replace(&mut seen[id as usize], true) {
                    return Err(format!("entry {id} is in a chain twice"));
                }
                if self.bucket_of(node.hash()) != bucket {
                    return Err(format!("entry {id} is in bucket {bucket} instead of {}", self.bucket_of(node.hash())));
                }
                count += 1;
                id = node.next();
            }
        }
        if count != self.len { Err(format!("{count} entries are in chains, {} counted", self.len)) } else { Ok(()) }
    }
}
