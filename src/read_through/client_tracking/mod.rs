//! Client-side caching (`CLIENT TRACKING` of RESP clients): the keys that each client has read, and
//! the invalidations that it is due.
//!
//! As in Redis, an invalidation of a key is sent once to each client that has read it, and then
//! forgotten: a client that reads the key again is recorded again. Beyond a bound all keys of a
//! client are invalidated at once.
//!
//! An invalidation only detaches the key here. [`ClientTracking::deliver`] passes it on, a bounded
//! number of clients at a time. So a key that ten thousand clients hold does not block the event
//! loop. A client that reads the key meanwhile gets the new value, and then an invalidation that
//! it does not need.
//!
//! This type performs no I/O and knows no replies. The caller sends an invalidation behind the
//! replies that it may concern.

mod copies;
#[cfg(test)]
mod tests;

use crate::cache::{NIL, hash_key};
use crate::types::{ClientId, Push, PushResult};
use copies::{Copies, CopyList};
use slab::Slab;
use std::collections::VecDeque;
use std::hash::RandomState;

/// Limits of the copies that are remembered.
#[derive(Clone, Copy, Debug)]
pub struct TrackingLimits {
    /// Maximum of copies of one client.
    pub client_copies: usize,
    /// Maximum of copies of all clients.
    pub copies: usize,
    /// Maximum of bytes of the names of keys that are to be invalidated.
    pub due_bytes: usize,
}

impl TrackingLimits {
    /// Limits of a worker.
    pub const DEFAULT: TrackingLimits = TrackingLimits {
        // Several times what client libraries cache by default (redis-py and Jedis: 10,000 keys).
        // So a client with its default never loses its whole cache to the limit.
        client_copies: 64 * 1024,
        // As many as Redis remembers keys by default (`tracking-table-max-keys`): about 60 MiB.
        copies: 1024 * 1024,
        // As many as the inbox holds: names of a burst of changes.
        due_bytes: 8 * 1024 * 1024,
    };
}

/// Copies released for each copy that is added, so that those of closed clients never accumulate.
const RELEASED_PER_ADD: usize = 2;

/// Maximum number of copies released in one call without an invalidation that is due (about 0.2 us
/// each).
const MAX_RELEASED: usize = 1024;

/// Bytes of a name that cost as much as one more invalidation. So few long names wait in buffers of
/// clients at a time.
const NAME_BYTES_PER_PUSH: usize = 256;

/// Clients among which the one with the most copies loses them at the limit of all copies. Each
/// time they are the next ones in turn. The largest client of all would take a heap to find.
const COMPARED_CLIENTS: usize = 8;

/// Bytes that a key to be invalidated takes beside its name.
const DUE_KEY_BYTES: usize = size_of::<DueKey>();

/// Keys to be invalidated for which an empty queue retains its memory.
const RETAINED_DUE_KEYS: usize = 1024;

/// Copies of one client, until all of them are invalidated at once.
#[derive(Debug)]
struct Holder {
    client: ClientId,
    copies: CopyList,
    /// False if its copies are only to be released.
    is_live: bool,
    /// The client is in `due_clients`.
    is_due: bool,
}

/// Key to be invalidated, which is detached from the others.
#[derive(Debug)]
struct DueKey {
    id: u32,
    name: Box<[u8]>,
}

/// Clients that track, and their copies.
#[derive(Debug)]
pub struct ClientTracking {
    limits: TrackingLimits,
    hasher: RandomState,
    copies: Copies,
    holders: Slab<Holder>,
    /// Holder of the client in each slot, [`NIL`] without one.
    by_slot: Vec<u32>,
    live_holders: usize,
    /// Holders that are not live, with copies to be released.
    retired: Vec<u32>,
    retired_copies: usize,
    due_keys: VecDeque<DueKey>,
    due_bytes: usize,
    /// Clients to be sent an invalidation of all keys.
    due_clients: VecDeque<ClientId>,
    /// Next holder to be sent one, while all holders are, and the end of the holders.
    flush_at: usize,
    flush_end: usize,
    /// Holders left, in turn, until all have been sent one.
    flush_left: usize,
    /// Holder from which on clients are compared at the limit of all copies.
    compare_at: usize,
    /// Invalidations passed on so far.
    pushes: u64,
}

impl ClientTracking {
    pub fn new(limits: TrackingLimits) -> ClientTracking {
        ClientTracking {
            limits,
            hasher: RandomState::new(),
            copies: Copies::new(),
            holders: Slab::new(),
            by_slot: Vec::new(),
            live_holders: 0,
            retired: Vec::new(),
            retired_copies: 0,
            due_keys: VecDeque::new(),
            due_bytes: 0,
            due_clients: VecDeque::new(),
            flush_at: 0,
            flush_end: 0,
            flush_left: 0,
            compare_at: 0,
            pushes: 0,
        }
    }

    /// Returns the number of clients that track.
    pub fn client_count(&self) -> usize {
        self.live_holders
    }

    /// Returns the number of keys that clients may have cached, counted for each of them.
    pub fn copy_count(&self) -> usize {
        self.copies.len() - self.retired_copies
    }

    /// Returns the number of invalidations passed on so far.
    pub fn push_count(&self) -> u64 {
        self.pushes
    }

    /// Adds a client without copies, unless it is there.
    pub fn start(&mut self, client: ClientId) {
        if self.holder_of(client).is_none() {
            if self.by_slot.len() <= client.slot {
                self.by_slot.resize(client.slot + 1, NIL);
            }
            self.retire_slot(client.slot);
            self.add_holder(client, false);
        }
    }

    /// Removes a client with its copies, if it is there.
    pub fn stop(&mut self, client: ClientId) {
        if self.holder_of(client).is_some() {
            self.retire_slot(client.slot);
        }
    }

    /// Returns the holder of a client that tracks.
    fn holder_of(&self, client: ClientId) -> Option<u32> {
        let &id = self.by_slot.get(client.slot)?;
        (id != NIL && self.holders.get(id as usize).is_some_and(|holder| holder.client == client)).then_some(id)
    }

    fn add_holder(&mut self, client: ClientId, is_due: bool) {
        let holder = Holder { client, copies: CopyList::EMPTY, is_live: true, is_due };
        self.by_slot[client.slot] = self.holders.insert(holder) as u32;
        self.live_holders += 1;
    }

    /// Removes the holder in a slot, if there is one. Its copies are released later.
    fn retire_slot(&mut self, slot: usize) {
        let id = std::mem::replace(&mut self.by_slot[slot], NIL);
        let Some(holder) = self.holders.get_mut(id as usize) else { return };
        holder.is_live = false;
        self.live_holders -= 1;
        match holder.copies.len() {
            0 => _ = self.holders.remove(id as usize),
            count => {
                self.retired_copies += count;
                self.retired.push(id);
            }
        }
    }

    /// Forgets all copies of a client that tracks.
    fn forget_copies(&mut self, client: ClientId, is_due: bool) {
        self.retire_slot(client.slot);
        self.add_holder(client, is_due);
    }

    /// Forgets all copies of a client that tracks, and invalidates them there.
    fn invalidate_client(&mut self, holder: u32) {
        let Holder { client, is_due, .. } = self.holders[holder as usize];
        self.forget_copies(client, true);
        if !is_due {
            self.due_clients.push_back(client);
        }
    }

    /// Records that a client reads a key, and may cache it. Ignores a client that does not track.
    /// At a limit, all keys of this client or of another one are invalidated instead.
    #[inline(never)]
    pub fn record(&mut self, client: ClientId, key: &[u8]) {
        let Some(holder) = self.holder_of(client) else { return };
        let hash = hash_key(&self.hasher, key);
        if self.copies.contains(hash, holder) {
            return;
        }
        self.release(RELEASED_PER_ADD);
        if self.holders[holder as usize].copies.len() >= self.limits.client_copies {
            return self.invalidate_client(holder);
        }
        if self.copies.len() >= self.limits.copies {
            let victim = self.largest_client(holder);
            self.invalidate_client(victim);
            self.release(RELEASED_PER_ADD);
            if victim == holder {
                // The invalidation, which follows the reply, covers this key too.
                return;
            }
        }
        self.copies.add(hash, holder, &mut self.holders[holder as usize].copies);
    }

    /// Returns the holder with the most copies, of some holders in turn and of `reader`.
    fn largest_client(&mut self, reader: u32) -> u32 {
        let (capacity, mut largest) = (self.holders.capacity().max(1), reader);
        for _ in 0..COMPARED_CLIENTS {
            self.compare_at = (self.compare_at + 1) % capacity;
            if let Some(holder) = self.holders.get(self.compare_at).filter(|holder| holder.is_live)
                && holder.copies.len() > self.holders[largest as usize].copies.len()
            {
                largest = self.compare_at as u32;
            }
        }
        largest
    }

    /// Releases up to `count` copies of holders that are not live.
    fn release(&mut self, count: usize) -> usize {
        for released in 0..count {
            let Some(&id) = self.retired.last() else { return released };
            self.release_copy(id);
        }
        count
    }

    /// Releases a copy of a retired holder.
    fn release_copy(&mut self, id: u32) {
        if let Some(copy) = self.holders[id as usize].copies.first() {
            self.remove_copy(copy, id);
        }
        while let Some(&last) = self.retired.last()
            && self.holders[last as usize].copies.first().is_none()
        {
            self.holders.remove(last as usize);
            self.retired.pop();
        }
    }

    fn remove_copy(&mut self, copy: u32, holder: u32) {
        let holder = &mut self.holders[holder as usize];
        self.retired_copies -= usize::from(!holder.is_live);
        self.copies.remove(copy, &mut holder.copies);
    }

    /// Invalidates the copies of a key that has changed.
    pub fn invalidate(&mut self, key: &[u8]) {
        if self.copies.len() == 0 {
            return;
        }
        let hash = hash_key(&self.hasher, key);
        if self.due_bytes + DUE_KEY_BYTES + key.len() > self.limits.due_bytes {
            if self.copies.has_key(hash) {
                self.invalidate_all();
            }
            return;
        }
        if let Some(id) = self.copies.detach_key(hash) {
            self.due_bytes += DUE_KEY_BYTES + key.len();
            self.due_keys.push_back(DueKey { id, name: key.into() });
        }
    }

    /// Invalidates all copies: any key may have changed.
    pub fn invalidate_all(&mut self) {
        // Clients that were notified already may have read new values since: they are notified
        // again. The round goes on from where it is. From the start each time, it would never
        // reach the last clients if such changes are frequent.
        self.flush_end = self.holders.capacity();
        self.flush_left = self.flush_end;
    }

    /// Returns true if [`ClientTracking::deliver`] has work to do.
    pub fn has_due(&self) -> bool {
        !self.due_keys.is_empty()
            || !self.due_clients.is_empty()
            || self.flush_left > 0
            || !self.retired.is_empty()
            || self.copies.has_retired()
    }

    /// Passes on up to `budget` invalidations, fewer if names are long. Without one that is due,
    /// releases copies instead.
    pub fn deliver(&mut self, budget: usize, mut push: impl FnMut(ClientId, Push<'_>) -> PushResult) {
        let mut left = budget;
        while left > 0 {
            // Keys come last: an invalidation of everything concerns them too.
            let cost = match self.push_to_next_client(&mut push) || self.flush_next() {
                true => 1,
                false => self.push_next_key(&mut push),
            };
            if cost == 0 {
                self.copies.free_page();
                self.release(left.min(MAX_RELEASED));
                return;
            }
            left = left.saturating_sub(cost);
        }
    }

    /// Sends an invalidation of all keys to the next client that is due one.
    fn push_to_next_client(&mut self, push: &mut impl FnMut(ClientId, Push<'_>) -> PushResult) -> bool {
        let Some(client) = self.due_clients.pop_front() else { return false };
        if let Some(holder) = self.holder_of(client) {
            self.holders[holder as usize].is_due = false;
            self.on_pushed(client, push(client, Push::Everything));
        }
        true
    }

    /// Sends the invalidation of the first key that is due to its next holder. Returns the part of
    /// the budget that this took, 0 if no key is due.
    fn push_next_key(&mut self, push: &mut impl FnMut(ClientId, Push<'_>) -> PushResult) -> usize {
        let Some(DueKey { id, name }) = self.due_keys.front() else { return 0 };
        let Some((copy, holder)) = self.copies.copy_of(*id) else {
            self.copies.end_key(*id);
            self.due_bytes -= DUE_KEY_BYTES + name.len();
            self.due_keys.pop_front();
            if self.due_keys.is_empty() {
                self.due_keys.shrink_to(RETAINED_DUE_KEYS);
            }
            return 1;
        };
        let cost = 1 + name.len() / NAME_BYTES_PER_PUSH;
        let Holder { client, is_live, .. } = self.holders[holder as usize];
        let result = is_live.then(|| push(client, Push::Key(name)));
        // The holder of a released copy leaves with its last one.
        self.remove_copy(copy, holder);
        if let Some(result) = result {
            self.on_pushed(client, result);
        }
        cost
    }

    /// Invalidates all copies of the next holder, if all holders are due.
    fn flush_next(&mut self) -> bool {
        if self.flush_left == 0 {
            return false;
        }
        let at = self.flush_at;
        self.flush_left -= 1;
        self.flush_at = if at + 1 < self.flush_end { at + 1 } else { 0 };
        if self.holders.get(at).is_some_and(|holder| holder.is_live && holder.copies.len() > 0) {
            self.invalidate_client(at as u32);
        }
        true
    }

    fn on_pushed(&mut self, client: ClientId, result: PushResult) {
        match result {
            PushResult::Queued => self.pushes += 1,
            PushResult::QueuedEverything => {
                self.pushes += 1;
                if let Some(holder) = self.holder_of(client) {
                    self.forget_copies(client, self.holders[holder as usize].is_due);
                }
            }
            PushResult::NotTracking => self.stop(client),
        }
    }

    /// Checks all links and counts. Walks everything.
    #[cfg(any(test, debug_assertions, feature = "validate"))]
    pub fn validate(&self) -> Result<(), String> {
        self.copies.validate(self.holders.iter().map(|(id, holder)| (id as u32, holder.copies)))?;
        let live = self.holders.iter().filter(|(_, holder)| holder.is_live);
        let is_found = |(id, holder): (usize, &Holder)| self.holder_of(holder.client) == Some(id as u32);
        if live.clone().count() != self.live_holders || !live.clone().all(is_found) {
            return Err("a client that tracks is not found or not counted".into());
        }
        let retired: usize = self.retired.iter().map(|&id| self.holders[id as usize].copies.len()).sum();
        if retired != self.retired_copies || self.retired.len() + self.live_holders != self.holders.len() {
            return Err(format!("{retired} copies to be released, {} counted", self.retired_copies));
        }
        let within_limits = |(_, holder): (usize, &Holder)| holder.copies.len() <= self.limits.client_copies;
        if !live.clone().all(within_limits) || self.copies.len() > self.limits.copies {
            return Err(format!("{} copies exceed a limit", self.copies.len()));
        }
        let due_bytes: usize = self.due_keys.iter().map(|due| DUE_KEY_BYTES + due.name.len()).sum();
        if due_bytes != self.due_bytes {
            Err(format!("{due_bytes} bytes due, {} counted", self.due_bytes))
        } else {
            Ok(())
        }
    }
}
