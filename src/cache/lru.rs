//! LRU list: doubly linked through the nodes by entry id, so that it owns and moves no memory.

use super::paged_vec::PagedVec;
use super::{NIL, Node};

/// Both ends of the list. The links are the fields `newer` and `older` of the nodes, [`NIL`] at the
/// ends.
#[derive(Debug)]
pub(super) struct LruList {
    newest: u32,
    oldest: u32,
}

impl LruList {
    pub(super) fn new() -> LruList {
        LruList { newest: NIL, oldest: NIL }
    }

    /// Returns the least recently used entry, which is the next to be evicted.
    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != NIL).then_some(self.oldest)
    }

    /// Adds entry `id` as the most recently used. It must not be in the list.
    pub(super) fn push_newest(&mut self, nodes: &mut PagedVec<Node>, id: u32) {
        nodes[id as usize].newer = NIL;
        nodes[id as usize].older = self.newest;
        match self.newest {
            NIL => self.oldest = id,
            previous => nodes[previous as usize].newer = id,
        }
        self.newest = id;
    }

    /// Adds entry `id` directly behind `newer`, so that it is evicted just before that entry. It
    /// must not be in the list.
    pub(super) fn push_behind(&mut self, nodes: &mut PagedVec<Node>, id: u32, newer: u32) {
        let older = nodes[newer as usize].older;
        nodes[id as usize].newer = newer;
        nodes[id as usize].older = older;
        nodes[newer as usize].older = id;
        match older {
            NIL => self.oldest = id,
            older => nodes[older as usize].newer = id,
        }
    }

    /// Removes entry `id`.
    pub(super) fn remove(&mut self, nodes: &mut PagedVec<Node>, id: u32) {
        let (newer, older) = (nodes[id as usize].newer, nodes[id as usize].older);
        match newer {
            NIL => self.newest = older,
            newer => nodes[newer as usize].older = older,
        }
        match older {
            NIL => self.oldest = newer,
            older => nodes[older as usize].newer = newer,
        }
    }

    /// Makes entry `id` the most recently used.
    pub(super) fn touch(&mut self, nodes: &mut PagedVec<Node>, id: u32) {
        if self.newest != id {
            self.remove(nodes, id);
            self.push_newest(nodes, id);
        }
    }

    /// Checks that both directions agree and that the list has `len` members. Walks the whole list.
    #[cfg(any(test, debug_assertions, feature = "validate"))]
    pub(super) fn validate(&self, nodes: &PagedVec<Node>, len: usize) -> Result<(), String> {
        let (mut id, mut newer, mut count) = (self.newest, NIL, 0);
        while id != NIL {
            let node = &nodes[id as usize];
            if node.newer != newer {
                return Err(format!("entry {id} has newer {} instead of {newer}", node.newer));
            }
            count += 1;
            if count > len {
                return Err(format!("the LRU list has more than {len} members"));
            }
            (newer, id) = (id, node.older);
        }
        if newer != self.oldest {
            return Err(format!("the LRU list ends at entry {newer}, but its oldest is {}", self.oldest));
        }
        if count != len { Err(format!("the LRU list has {count} members instead of {len}")) } else { Ok(()) }
    }
}
