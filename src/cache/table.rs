//! The index from key to entry: linear hashing (Litwin, 1980) over chains of entry ids.
//!
//! A table that doubles must at some moment move every entry; at ten million entries that stops the loop for most of a
//! second. This one grows by a single bucket at a time: the new bucket takes over what its hash bits call for from one
//! older bucket, and nothing else moves. No insertion is ever more than one short chain's work.
//!
//! With `n` buckets, `mask` covers the next power of two. A hash picks `hash & mask`; where that bucket does not exist
//! yet, the bucket that it will be split from holds its entries: the same bits without the highest.
//!
//! The table owns only the heads of its chains, four bytes a bucket. The links and the hashes live in the nodes.

use super::paged_vec::PagedVec;
use super::{NIL, Node};

/// Buckets of an empty table: one cache line of heads.
const INITIAL_BUCKETS: usize = 16;

/// Entries for each bucket, at most. At 2 a hit walks two nodes on average and a bucket costs an entry two bytes. Nodes
/// hold the full hash, so that the walk touches no key but the one that is meant.
const MAX_ENTRIES_PER_BUCKET: usize = 2;

/// Heads of the chains. See the top of the file.
#[derive(Debug)]
pub(super) struct Table {
    heads: PagedVec<u32>,
    len: usize,
}

impl Table {
    pub(super) fn new() -> Table {
        let mut heads = PagedVec::new();
        for _ in 0..INITIAL_BUCKETS {
            heads.push(NIL);
        }
        Table { heads, len: 0 }
    }

    /// What is left of it when it is not needed any more.
    pub(super) fn into_heads(self) -> PagedVec<u32> {
        self.heads
    }

    /// Bucket of `hash`.
    fn bucket(&self, hash: u32) -> usize {
        let mask = self.heads.len().next_power_of_two() - 1;
        let bucket = hash as usize & mask;
        if bucket < self.heads.len() { bucket } else { bucket & (mask >> 1) }
    }

    /// The first entry with this hash for which `is_it` holds.
    pub(super) fn find(&self, nodes: &PagedVec<Node>, hash: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut id = self.heads[self.bucket(hash)];
        while id != NIL {
            let node = &nodes[id as usize];
            if node.hash == hash && is_it(id) {
                return Some(id);
            }
            id = node.chain;
        }
        None
    }

    /// Adds entry `id`, whose node holds its hash. The key must not be in the table.
    pub(super) fn insert(&mut self, nodes: &mut PagedVec<Node>, id: u32) {
        let bucket = self.bucket(nodes[id as usize].hash);
        nodes[id as usize].chain = self.heads[bucket];
        self.heads[bucket] = id;
        self.len += 1;
        if self.len > self.heads.len() * MAX_ENTRIES_PER_BUCKET {
            self.split(nodes);
        }
    }

    /// Takes entry `id` out.
    pub(super) fn remove(&mut self, nodes: &mut PagedVec<Node>, id: u32) {
        let bucket = self.bucket(nodes[id as usize].hash);
        let after = nodes[id as usize].chain;
        if self.heads[bucket] == id {
            self.heads[bucket] = after;
        } else {
            let mut before = self.heads[bucket] as usize;
            while nodes[before].chain != id {
                before = nodes[before].chain as usize;
            }
            nodes[before].chain = after;
        }
        self.len -= 1;
    }

    /// Adds one bucket and moves to it what it has a claim to.
    fn split(&mut self, nodes: &mut PagedVec<Node>) {
        let new = self.heads.len();
        let highest_bit = 1 << new.ilog2();
        let mask = highest_bit * 2 - 1;
        self.heads.push(NIL);
        let old = new - highest_bit;
        let mut id = std::mem::replace(&mut self.heads[old], NIL);
        while id != NIL {
            let node = &mut nodes[id as usize];
            let bucket = if node.hash as usize & mask == new { new } else { old };
            let next = std::mem::replace(&mut node.chain, self.heads[bucket]);
            self.heads[bucket] = id;
            id = next;
        }
    }

    /// Checks that every entry is in the chain of its bucket, once. For tests; walks everything.
    #[cfg(any(test, debug_assertions, feature = "validate"))]
    pub(super) fn validate(&self, nodes: &PagedVec<Node>) -> Result<(), String> {
        let mut seen = vec![false; nodes.len()];
        let mut count = 0;
        for (bucket, &head) in self.heads.iter().enumerate() {
            let mut id = head;
            while id != NIL {
                let node = &nodes[id as usize];
                if std::mem::replace(&mut seen[id as usize], true) {
                    return Err(format!("entry {id} is chained twice"));
                }
                if self.bucket(node.hash) != bucket {
                    return Err(format!("entry {id} is in bucket {bucket}, its hash says {}", self.bucket(node.hash)));
                }
                count += 1;
                id = node.chain;
            }
        }
        if count != self.len { Err(format!("{count} entries are chained, {} counted", self.len)) } else { Ok(()) }
    }
}
