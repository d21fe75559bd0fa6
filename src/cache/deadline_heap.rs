//! A min-heap of deadlines from which any member can be taken out: one slot for each live member, never more.
//!
//! Used for cache entries, for fetches in flight and for the server's connections. Members are known by an id that
//! their owner chooses; the owner keeps each member's position, which the heap reports whenever it moves one.
//!
//! Four children for each parent instead of two: half the levels, and the four lie in one cache line of 9-byte slots.
//! With one TTL for all, a new deadline is the latest, so that pushing one costs a single comparison.

use super::paged_vec::PagedVec;
use crate::types::Millis;

/// Children of each slot.
const ARITY: usize = 4;

/// The latest deadline that can be kept, 34 years after the start. A later one is kept as this: an entry may always
/// go early.
const MAX_DEADLINE: Millis = (1 << 40) - 1;

/// Deadline, in 40 bits, and member. Packed to 9 bytes: with 64 bits and padding a million slots would take 7 MB more.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
struct HeapSlot {
    low: u32,
    high: u8,
    id: u32,
}

impl HeapSlot {
    fn new(deadline: Millis, id: u32) -> HeapSlot {
        let deadline = deadline.min(MAX_DEADLINE);
        HeapSlot { low: deadline as u32, high: (deadline >> 32) as u8, id }
    }

    fn deadline(self) -> Millis {
        Millis::from(self.high) << 32 | Millis::from(self.low)
    }
}

/// The heap. See the top of the file. Every method that moves members calls `moved(id, position)` for each of them.
#[derive(Debug)]
pub struct DeadlineHeap {
    slots: PagedVec<HeapSlot>,
}

impl DeadlineHeap {
    /// An empty heap. Takes no memory.
    #[allow(clippy::new_without_default)]
    pub fn new() -> DeadlineHeap {
        DeadlineHeap { slots: PagedVec::new() }
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.len() == 0
    }

    /// The earliest deadline and whose it is.
    pub fn first(&self) -> Option<(Millis, u32)> {
        (!self.is_empty()).then(|| (self.slots[0].deadline(), self.slots[0].id))
    }

    /// The deadline at a position that the heap reported.
    pub fn deadline_at(&self, position: u32) -> Millis {
        self.slots[position as usize].deadline()
    }

    /// Adds a member. O(1) for the latest deadline of all, O(log n) otherwise.
    pub fn push(&mut self, deadline: Millis, id: u32, moved: impl FnMut(u32, u32)) {
        self.slots.push(HeapSlot::new(deadline, id));
        self.sift_up(self.slots.len() - 1, moved);
    }

    /// Takes out the member at `position`. O(log n).
    pub fn remove(&mut self, position: u32, moved: impl FnMut(u32, u32)) {
        let position = position as usize;
        let removed = self.slots[position];
        if let Some(last) = self.slots.pop()
            && position < self.slots.len()
        {
            self.slots[position] = last;
            if last.deadline() < removed.deadline() {
                self.sift_up(position, moved);
            } else {
                self.sift_down(position, moved);
            }
        }
    }

    fn sift_up(&mut self, mut position: usize, mut moved: impl FnMut(u32, u32)) {
        let slot = self.slots[position];
        while position > 0 {
            let parent = self.slots[(position - 1) / ARITY];
            if parent.deadline() <= slot.deadline() {
                break;
            }
            self.slots[position] = parent;
            moved(parent.id, position as u32);
            position = (position - 1) / ARITY;
        }
        self.slots[position] = slot;
        moved(slot.id, position as u32);
    }

    fn sift_down(&mut self, mut position: usize, mut moved: impl FnMut(u32, u32)) {
        let slot = self.slots[position];
        loop {
            let first_child = position * ARITY + 1;
            let end = (first_child + ARITY).min(self.slots.len());
            let Some(least) = (first_child..end).min_by_key(|&child| self.slots[child].deadline()) else { break };
            let child = self.slots[least];
            if child.deadline() >= slot.deadline() {
                break;
            }
            self.slots[position] = child;
            moved(child.id, position as u32);
            position = least;
        }
        self.slots[position] = slot;
        moved(slot.id, position as u32);
    }

    /// Drops the last page of slots, of a heap that is not needed any more: nobody is told.
    pub(super) fn drop_page(&mut self) {
        self.slots.drop_page();
    }

    /// Checks the heap's order and that every member's owner knows its position. For tests; walks everything.
    #[cfg(any(test, debug_assertions, feature = "validate"))]
    pub fn validate(&self, position_of: impl Fn(u32) -> u32) -> Result<(), String> {
        for (position, &slot) in self.slots.iter().enumerate() {
            let (deadline, id) = (slot.deadline(), slot.id);
            let parent = self.slots[position.saturating_sub(1) / ARITY].deadline();
            if parent > deadline {
                return Err(format!("slot {position} is due at {deadline}, before its parent at {parent}"));
            }
            if position_of(id) != position as u32 {
                return Err(format!("member {id} is at {position}, its owner says {}", position_of(id)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn deadlines_are_kept_exactly_up_to_the_latest() {
        let mut heap = DeadlineHeap::new();
        for (id, deadline) in
            [MAX_DEADLINE + 1, MAX_DEADLINE, MAX_DEADLINE - 1, 1 << 32, (1 << 32) - 1, 0].into_iter().enumerate()
        {
            heap.push(deadline, id as u32, |_, _| ());
            assert_eq!(heap.first(), Some((deadline.min(MAX_DEADLINE), if id == 1 { 0 } else { id as u32 })));
        }
    }

    /// Pushes and removes in a fixed mixture, against a sorted map.
    #[test]
    fn any_member_can_be_taken_out_and_the_first_is_always_the_earliest() {
        let mut heap = DeadlineHeap::new();
        let mut model: BTreeMap<u32, Millis> = BTreeMap::new();
        let mut positions = vec![None; 500];
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for step in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let id = (random >> 33) as u32 % 500;
            if model.remove(&id).is_some() {
                let position = positions[id as usize].take().expect("a member has a position");
                heap.remove(position, |id, position| positions[id as usize] = Some(position));
            } else {
                let deadline = (random >> 50) % 1000;
                model.insert(id, deadline);
                heap.push(deadline, id, |id, position| positions[id as usize] = Some(position));
            }
            assert_eq!(heap.len(), model.len());
            assert_eq!(heap.first().map(|(deadline, _)| deadline), model.values().min().copied());
            if step % 50 == 0 {
                assert_eq!(heap.validate(|id| positions[id as usize].unwrap_or(u32::MAX)), Ok(()));
            }
        }
    }
}
