//! The recency list: a doubly linked list whose links are entry ids, so that it owns no memory and moves no data.

use super::paged_vec::PagedVec;
use super::{NIL, Node};

/// Both ends of the list. The links live in the nodes: `newer` and `older`, [`NIL`] at the ends.
#[derive(Debug)]
pub(super) struct LruList {
    newest: u32,
    oldest: u32,
}

impl LruList {
    pub(super) fn new() -> LruList {
        LruList { newest: NIL, oldest: NIL }
    }

    /// The entry that was used longest ago: the next to be evicted.
    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != NIL).then_some(self.oldest)
    }

    /// Puts entry `id`, which must not be in the list, at its new end.
    pub(super) fn push_newest(&mut self, nodes: &mut PagedVec<Node>, id: u32) {
        nodes[id as usize].newer = NIL;
        nodes[id as usize].older = self.newest;
        match self.newest {
            NIL => self.oldest = id,
            before => nodes[before as usize].newer = id,
        }
        self.newest = id;
    }

    /// Takes entry `id` out.
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

    /// Marks entry `id` as just used.
    pub(super) fn touch(&mut self, nodes: &mut PagedVec<Node>, id: u32) {
        if self.newest != id {
            self.remove(nodes, id);
            self.push_newest(nodes, id);
        }
    }

    /// Checks that both directions agree and that the list has `len` members. For tests; walks everything.
    #[cfg(any(test, debug_assertions, feature = "validate"))]
    pub(super) fn validate(&self, nodes: &PagedVec<Node>, len: usize) -> Result<(), String> {
        let (mut id, mut newer, mut count) = (self.newest, NIL, 0);
        while id != NIL {
            let node = &nodes[id as usize];
            if node.newer != newer {
                return Err(format!("entry {id} has newer {}, came from {newer}", node.newer));
            }
            count += 1;
            if count > len {
                return Err(format!("the list is longer than its {len} entries"));
            }
            (newer, id) = (id, node.older);
        }
        if newer != self.oldest {
            return Err(format!("the list ends at {newer}, its oldest is {}", self.oldest));
        }
        if count != len { Err(format!("the list has {count} members, the cache {len}")) } else { Ok(()) }
    }
}
