//! Storage of a cleared cache, freed in small pieces.

use super::record::Record;
use super::{DeadlineHeap, Node, PagedVec};

/// Memory of a cleared cache, which sweeps drop piece by piece. Dropping it at once would block the
/// event loop (20 ms for ten million entries).
#[derive(Debug)]
pub(super) struct RetiredStorage {
    pub(super) nodes: PagedVec<Node>,
    pub(super) records: PagedVec<Record>,
    pub(super) heads: PagedVec<u32>,
    pub(super) deadlines: DeadlineHeap,
}

impl RetiredStorage {
    /// Drops one page of each other array and up to `budget` records. Returns true if anything is
    /// left.
    pub(super) fn drop_some(&mut self, budget: usize) -> bool {
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
