//! Copies of keys that clients hold: finds all copies of a key, all copies of a holder, and the
//! copy that one holder has of one key.
//!
//! A copy is in a list of its key and in a list of its holder, and in a table from both to the
//! copy. All operations take constant time, and nothing moves in bulk: the arrays grow by pages,
//! the tables by single buckets. A copy takes 32 bytes, its key 20 bytes and the tables a few more.
//!
//! Only the hash of a key is stored, 64 bits with random keys. So a long key takes no more memory
//! than a short one, and adding a copy allocates nothing for it. Two keys with the same hash are
//! one key here: after a change of one, the copies of both are forgotten, under the name of one.
//! Among a million keys the odds of such a pair are 1 to 30 million, and no client can find one.

use crate::cache::{Chained, NIL, PagedVec, Table};

/// Number of copies up to which an empty store retains its memory.
const MIN_RETAINED_COPIES: usize = 1024;

/// Odd multiplier without a pattern (from the golden ratio), which spreads holders over buckets.
const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

/// Copies of one holder: the head of its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyList {
    first: u32,
    len: u32,
}

impl CopyList {
    pub const EMPTY: CopyList = CopyList { first: NIL, len: 0 };

    /// Returns the number of copies.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Returns the copy that was added last.
    pub fn first(&self) -> Option<u32> {
        (self.first != NIL).then_some(self.first)
    }
}

/// Copy that one holder has of one key. A free one is in the free list, linked by `next`.
#[derive(Clone, Copy, Debug)]
struct Copy {
    /// Next copy of the bucket.
    next: u32,
    /// Hash of the key and the holder.
    hash: u32,
    key: u32,
    holder: u32,
    next_of_key: u32,
    previous_of_key: u32,
    next_of_holder: u32,
    previous_of_holder: u32,
}

/// Key with copies. A free one is in the free list, linked by `next`.
#[derive(Clone, Copy, Debug)]
struct Key {
    /// Next key of the bucket.
    next: u32,
    /// Half of the hash of the key, which selects the bucket.
    hash: u32,
    /// The other half.
    other_hash: u32,
    first: u32,
    /// The key is not in the table: a later copy belongs to a new one.
    is_detached: bool,
}

impl Chained for Copy {
    fn hash(&self) -> u32 {
        self.hash
    }

    fn next(&self) -> u32 {
        self.next
    }

    fn set_next(&mut self, id: u32) {
        self.next = id;
    }
}

impl Chained for Key {
    fn hash(&self) -> u32 {
        self.hash
    }

    fn next(&self) -> u32 {
        self.next
    }

    fn set_next(&mut self, id: u32) {
        self.next = id;
    }
}

/// Copies of all holders.
#[derive(Debug)]
pub struct Copies {
    copies: PagedVec<Copy>,
    keys: PagedVec<Key>,
    free_copy: u32,
    free_key: u32,
    by_key: Table,
    by_key_and_holder: Table,
    len: usize,
    /// Keys that are in use, attached or detached.
    key_count: usize,
    retired: Option<Retired>,
}

/// Memory of a store that became empty. Its pages are freed one by one, because freeing all of a
/// million copies at once takes milliseconds.
#[derive(Debug)]
struct Retired {
    copies: PagedVec<Copy>,
    keys: PagedVec<Key>,
}

impl Copies {
    pub fn new() -> Copies {
        Copies {
            copies: PagedVec::new(),
            keys: PagedVec::new(),
            free_copy: NIL,
            free_key: NIL,
            by_key: Table::new(),
            by_key_and_holder: Table::new(),
            len: 0,
            key_count: 0,
            retired: None,
        }
    }

    /// Returns the number of copies.
    pub fn len(&self) -> usize {
        self.len
    }

    fn find_key(&self, key_hash: u64) -> Option<u32> {
        let (hash, other_hash) = (key_hash as u32, (key_hash >> 32) as u32);
        self.by_key.find(&self.keys, hash, |id| self.keys[id as usize].other_hash == other_hash)
    }

    fn find_copy(&self, key: u32, hash: u32, holder: u32) -> Option<u32> {
        self.by_key_and_holder.find(&self.copies, hash, |id| {
            let copy = &self.copies[id as usize];
            (copy.key, copy.holder) == (key, holder)
        })
    }

    /// Returns true if a holder has a copy of the key.
    pub fn has_key(&self, key_hash: u64) -> bool {
        self.find_key(key_hash).is_some()
    }

    /// Returns true if the holder has a copy of the key.
    pub fn contains(&self, key_hash: u64, holder: u32) -> bool {
        let hash = copy_hash(key_hash, holder);
        self.find_key(key_hash).is_some_and(|key| self.find_copy(key, hash, holder).is_some())
    }

    /// Adds a copy, which the holder must not have. `list` has the copies of the holder.
    pub fn add(&mut self, key_hash: u64, holder: u32, list: &mut CopyList) {
        let key = self.find_key(key_hash).unwrap_or_else(|| self.add_key(key_hash));
        let next_of_key = self.keys[key as usize].first;
        let copy = Copy {
            next: NIL,
            hash: copy_hash(key_hash, holder),
            key,
            holder,
            next_of_key,
            previous_of_key: NIL,
            next_of_holder: list.first,
            previous_of_holder: NIL,
        };
        let id = take_free(&mut self.copies, &mut self.free_copy, copy);
        self.by_key_and_holder.insert(&mut self.copies, id);
        self.keys[key as usize].first = id;
        if next_of_key != NIL {
            self.copies[next_of_key as usize].previous_of_key = id;
        }
        if list.first != NIL {
            self.copies[list.first as usize].previous_of_holder = id;
        }
        (list.first, list.len) = (id, list.len + 1);
        self.len += 1;
    }

    fn add_key(&mut self, key_hash: u64) -> u32 {
        let (hash, other_hash) = (key_hash as u32, (key_hash >> 32) as u32);
        let key = Key { next: NIL, hash, other_hash, first: NIL, is_detached: false };
        let id = take_free(&mut self.keys, &mut self.free_key, key);
        self.by_key.insert(&mut self.keys, id);
        self.key_count += 1;
        id
    }

    /// Detaches a key with its copies: later copies belong to a new key. Returns its id, which the
    /// caller must pass to [`Copies::end_key`]. Returns `None` if no holder has a copy.
    pub fn detach_key(&mut self, key_hash: u64) -> Option<u32> {
        let id = self.find_key(key_hash)?;
        self.by_key.remove(&mut self.keys, id);
        self.keys[id as usize].is_detached = true;
        Some(id)
    }

    /// Returns a copy of a detached key, and its holder.
    pub fn copy_of(&self, key: u32) -> Option<(u32, u32)> {
        let first = self.keys[key as usize].first;
        (first != NIL).then(|| (first, self.copies[first as usize].holder))
    }

    /// Frees the id of a detached key without copies.
    pub fn end_key(&mut self, key: u32) {
        self.keys[key as usize].next = std::mem::replace(&mut self.free_key, key);
        self.key_count -= 1;
        self.free_if_empty();
    }

    /// Removes a copy. `list` has the copies of its holder.
    pub fn remove(&mut self, id: u32, list: &mut CopyList) {
        self.by_key_and_holder.remove(&mut self.copies, id);
        let copy = self.copies[id as usize];
        match copy.previous_of_holder {
            NIL => list.first = copy.next_of_holder,
            previous => self.copies[previous as usize].next_of_holder = copy.next_of_holder,
        }
        if copy.next_of_holder != NIL {
            self.copies[copy.next_of_holder as usize].previous_of_holder = copy.previous_of_holder;
        }
        match copy.previous_of_key {
            NIL => self.keys[copy.key as usize].first = copy.next_of_key,
            previous => self.copies[previous as usize].next_of_key = copy.next_of_key,
        }
        if copy.next_of_key != NIL {
            self.copies[copy.next_of_key as usize].previous_of_key = copy.previous_of_key;
        }
        self.copies[id as usize].next = std::mem::replace(&mut self.free_copy, id);
        (list.len, self.len) = (list.len - 1, self.len - 1);
        let key = self.keys[copy.key as usize];
        if key.first == NIL && !key.is_detached {
            self.by_key.remove(&mut self.keys, copy.key);
            self.end_key(copy.key);
        }
    }

    /// Retires the memory of an empty store, unless it is small.
    fn free_if_empty(&mut self) {
        if self.key_count == 0 && self.copies.len() > MIN_RETAINED_COPIES && self.retired.is_none() {
            let Copies { copies, keys, .. } = std::mem::replace(self, Copies::new());
            self.retired = Some(Retired { copies, keys });
        }
    }

    /// Returns true if [`Copies::free_page`] has memory to free.
    pub fn has_retired(&self) -> bool {
        self.retired.is_some()
    }

    /// Frees a page of retired memory.
    pub fn free_page(&mut self) {
        let Some(retired) = &mut self.retired else { return };
        retired.copies.drop_page();
        retired.keys.drop_page();
        if (retired.copies.len(), retired.keys.len()) == (0, 0) {
            self.retired = None;
        }
    }

    /// Checks the tables, and that each copy is in both of its lists. `lists` has the list of each
    /// holder. Walks everything.
    #[cfg(any(test, debug_assertions, feature = "validate"))]
    pub fn validate(&self, lists: impl Iterator<Item = (u32, CopyList)>) -> Result<(), String> {
        self.by_key.validate(&self.keys)?;
        self.by_key_and_holder.validate(&self.copies)?;
        let mut count = 0;
        for (holder, list) in lists {
            let (mut id, mut previous, mut len) = (list.first, NIL, 0);
            while id != NIL {
                let copy = &self.copies[id as usize];
                let key = &self.keys[copy.key as usize];
                if (copy.holder, copy.previous_of_holder) != (holder, previous) {
                    return Err(format!("copy {id} is not linked to holder {holder}"));
                }
                if self.find_copy(copy.key, copy.hash, holder) != Some(id) {
                    return Err(format!("copy {id} is not found by its key and holder"));
                }
                let is_linked = match copy.previous_of_key {
                    NIL => key.first == id,
                    previous => self.copies[previous as usize].next_of_key == id,
                };
                if !is_linked {
                    return Err(format!("copy {id} is not in the list of its key"));
                }
                (previous, id, len) = (id, copy.next_of_holder, len + 1);
            }
            if len != list.len {
                return Err(format!("holder {holder} has {len} copies, {} counted", list.len));
            }
            count += list.len();
        }
        if count != self.len { Err(format!("{count} copies in lists, {} counted", self.len)) } else { Ok(()) }
    }
}

/// Returns the hash of a key and a holder.
fn copy_hash(key_hash: u64, holder: u32) -> u32 {
    ((key_hash ^ u64::from(holder).wrapping_mul(MULTIPLIER)).wrapping_mul(MULTIPLIER) >> 32) as u32
}

/// Stores a node under a free id.
fn take_free<N: Chained>(nodes: &mut PagedVec<N>, free: &mut u32, node: N) -> u32 {
    match *free {
        NIL => {
            nodes.push(node);
            (nodes.len() - 1) as u32
        }
        id => {
            *free = nodes[id as usize].next();
            nodes[id as usize] = node;
            id
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random additions, removals and detached keys leave all links intact, as a naive set of
    /// pairs shows.
    #[test]
    fn copies_match_naive_set() {
        const HOLDERS: usize = 7;
        let (mut copies, mut lists) = (Copies::new(), [CopyList::EMPTY; HOLDERS]);
        let (mut pairs, mut random) = (std::collections::BTreeSet::new(), 1_u64);
        for step in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (holder, key) = ((random >> 33) as usize % HOLDERS, (random >> 40) % 300);
            // Keys that differ in one half of their hash only.
            let hash = if key % 2 == 0 { key } else { key << 32 };
            assert_eq!(copies.contains(hash, holder as u32), pairs.contains(&(hash, holder)), "step {step}");
            if copies.contains(hash, holder as u32) {
                let key = copies.detach_key(hash).expect("a key with a copy");
                assert!(!copies.contains(hash, holder as u32), "a detached key is found");
                while let Some((copy, holder)) = copies.copy_of(key) {
                    copies.remove(copy, &mut lists[holder as usize]);
                    assert!(pairs.remove(&(hash, holder as usize)));
                }
                copies.end_key(key);
            } else if random % 5 == 0 {
                while let Some(copy) = lists[holder].first() {
                    copies.remove(copy, &mut lists[holder]);
                }
                pairs.retain(|&(_, other)| other != holder);
            } else {
                copies.add(hash, holder as u32, &mut lists[holder]);
                pairs.insert((hash, holder));
            }
            assert_eq!(copies.len(), pairs.len());
            if step % 100 == 0 {
                assert_eq!(copies.validate((0..).zip(lists)), Ok(()));
            }
        }
    }

    /// A large store that becomes empty frees its memory, and a small one keeps it.
    #[test]
    fn empty_store_frees_memory() {
        let (mut copies, mut list) = (Copies::new(), CopyList::EMPTY);
        for count in [10, MIN_RETAINED_COPIES + 1] {
            (0..count as u64).for_each(|hash| copies.add(hash, 1, &mut list));
            while let Some(copy) = list.first() {
                copies.remove(copy, &mut list);
            }
            assert_eq!(copies.copies.len(), if count == 10 { 10 } else { 0 });
        }
        assert!(copies.has_retired());
        copies.free_page();
        assert!(!copies.has_retired());
    }
}
