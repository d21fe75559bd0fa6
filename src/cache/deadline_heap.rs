//! Min-heap of deadlines that can remove any member, so that it has exactly one slot per live
//! member.
//!
//! It serves cache entries, fetches in flight and client timers. The owner of a heap chooses an id
//! for each member and stores the member's position. The heap reports every change of a position
//! through the callback `on_move(id, position)`.
//!
//! A parent has four children instead of two. That halves the levels, and four 9-byte slots fit one
//! cache line. With the same TTL for all members a new deadline is the latest. Pushing it costs a
//! single comparison.

use super::paged_vec::PagedVec;
use crate::types::Millis;

/// Maximum of children of a slot.
const ARITY: usize = 4;

/// Latest deadline that a slot can hold, 34 years after the start. The heap stores later ones as
/// this one, because an entry may always be removed early.
const MAX_DEADLINE: Millis = (1 << 40) - 1;

/// Deadline of 40 bits, and a member's id. Packed to 9 bytes (64 bits and padding would take 7 MB
/// more for a million slots).
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
struct HeapSlot {
    deadline_low: u32,
    deadline_high: u8,
    id: u32,
}

impl HeapSlot {
    fn new(deadline: Millis, id: u32) -> HeapSlot {
        let deadline = deadline.min(MAX_DEADLINE);
        HeapSlot { deadline_low: deadline as u32, deadline_high: (deadline >> 32) as u8, id }
    }

    fn deadline(self) -> Millis {
        Millis::from(self.deadline_high) << 32 | Millis::from(self.deadline_low)
    }
}

/// Min-heap of deadlines. Methods that move members call `on_move(id, position)` for each of them.
#[derive(Debug)]
pub struct DeadlineHeap {
    slots: PagedVec<HeapSlot>,
}

impl DeadlineHeap {
    /// Creates an empty heap. Allocates nothing.
    #[allow(clippy::new_without_default)]
    pub fn new() -> DeadlineHeap {
        DeadlineHeap { slots: PagedVec::new() }
    }

    /// Returns the number of members.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns true if the heap has no members.
    pub fn is_empty(&self) -> bool {
        self.slots.len() == 0
    }

    /// Returns the earliest deadline and the id of its member.
    pub fn first(&self) -> Option<(Millis, u32)> {
        (!self.is_empty()).then(|| (self.slots[0].deadline(), self.slots[0].id))
    }

    /// Returns the deadline at a position that the heap reported.
    pub fn deadline_at(&self, position: u32) -> Millis {
        self.slots[position as usize].deadline()
    }

    /// Adds a member. O(1) if its deadline is the latest, otherwise O(log n).
    pub fn push(&mut self, deadline: Millis, id: u32, on_move: impl FnMut(u32, u32)) {
        self.slots.push(HeapSlot::new(deadline, id));
        self.sift_up(self.slots.len() - 1, on_move);
    }

    /// Removes the member at `position`. O(log n).
    pub fn remove(&mut self, position: u32, on_move: impl FnMut(u32, u32)) {
        let position = position as usize;
        let removed = self.slots[position];
        if let Some(last) = self.slots.pop()
            && position < self.slots.len()
        {
            self.slots[position] = last;
            if last.deadline() < removed.deadline() {
                self.sift_up(position, on_move);
            } else {
                self.sift_down(position, on_move);
            }
        }
    }

    fn sift_up(&mut self, mut position: usize, mut on_move: impl FnMut(u32, u32)) {
        let slot = self.slots[position];
        while position > 0 {
            let parent = self.slots[(position - 1) / ARITY];
            if parent.deadline() <= slot.deadline() {
                break;
            }
            self.slots[position] = parent;
            on_move(parent.id, position as u32);
            position = (position - 1) / ARITY;
        }
        self.slots[position] = slot;
        on_move(slot.id, position as u32);
    }

    fn sift_down(&mut self, mut position: usize, mut on_move: impl FnMut(u32, u32)) {
        let slot = self.slots[position];
        loop {
            let first_child = position * ARITY + 1;
            let end = (first_child + ARITY).min(self.slots.len());
            let Some(earliest) = (first_child..end).min_by_key(|&child| self.slots[child].deadline()) else { break };
            let child = self.slots[earliest];
            if child.deadline() >= slot.deadline() {
                break;
            }
            self.slots[position] = child;
            on_move(child.id, position as u32);
            position = earliest;
        }
        self.slots[position] = slot;
        on_move(slot.id, position as u32);
    }

    /// Drops the last page of slots of a heap that is no longer needed. Reports no positions.
    pub(super) fn drop_page(&mut self) {
        self.slots.drop_page();
    }

    /// Checks the order of the heap, and that the owner knows the position of each member. Walks
    /// all slots.
    #[cfg(any(test, debug_assertions, feature = "validate"))]
    pub fn validate(&self, position_of: impl Fn(u32) -> u32) -> Result<(), String> {
        for (position, &slot) in self.slots.iter().enumerate() {
            let (deadline, id) = (slot.deadline(), slot.id);
            let parent = self.slots[position.saturating_sub(1) / ARITY].deadline();
            if parent > deadline {
                return Err(format!("slot {position} has deadline {deadline}, before that of its parent ({parent})"));
            }
            if position_of(id) != position as u32 {
                return Err(format!("member {id} is at position {position}, but its owner has {}", position_of(id)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Deadlines are exact up to the maximum, and later ones become the maximum.
    #[test]
    fn heap_late_deadline_becomes_the_maximum() {
        let mut heap = DeadlineHeap::new();
        for (id, deadline) in
            [MAX_DEADLINE + 1, MAX_DEADLINE, MAX_DEADLINE - 1, 1 << 32, (1 << 32) - 1, 0].into_iter().enumerate()
        {
            heap.push(deadline, id as u32, |_, _| ());
            assert_eq!(heap.first(), Some((deadline.min(MAX_DEADLINE), if id == 1 { 0 } else { id as u32 })));
        }
    }

    /// After any pushes and removals the first member is the earliest, as in a sorted map.
    #[test]
    fn heap_random_removals_keep_the_order() {
        let mut heap = DeadlineHeap::new();
        let mut model: BTreeMap<u32, Millis> = BTreeMap::new();
        let mut positions = vec![None; 500];
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for step in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let id = (random >> 33) as u32 % 500;
            if model.remove(&id).is_some() {
                let position = positions[id as usize].take().expect("a reported position");
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
