//! Fetches in flight: the keys being read from Redis, and the requests that wait for each.
//!
//! One fetch reads a key for all requests. It exists from the acceptance of its job to the
//! completion, which comes exactly once. So its slab index identifies it.
//!
//! Deadlines belong to waiters, not to fetches. A waiter gets its reply at its own deadline. The
//! fetch goes on until its fetcher completes it, and later requests join it. So a hung Redis is
//! asked once for a key, and not again after each timeout.
//!
//! The invalidation of a key may overtake the value that a fetch has read, because they arrive on
//! different connections. So it detaches the fetch of that key. Current waiters, which asked before
//! the invalidation, receive the value. It is not cached, and later requests start a new fetch.
//! Otherwise the old value would stay in the cache, and no further invalidation would remove it.

use crate::cache::{DeadlineHeap, hash_key};
use crate::types::{Access, Millis, RequestId};
use slab::Slab;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// All fetches in flight of one worker.
#[derive(Debug)]
pub struct Inflight {
    fetches: Slab<Fetch>,
    /// Hashes with random keys, as the cache does (SipHash-1-3).
    hasher: RandomState,
    /// Fetches that requests can join, by the hash of their key: all that are not detached. A fetch
    /// of a key whose hash is taken by another one starts detached.
    joinable: HashMap<u64, usize, BuildHasherDefault<HashedKey>>,
    deadlines: DeadlineHeap,
}

/// Hasher of numbers that are hashes already.
#[derive(Debug, Default)]
struct HashedKey(u64);

impl Hasher for HashedKey {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = self.0 << 8 | u64::from(byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A read of one key, shared by its waiters.
#[derive(Debug)]
struct Fetch {
    key: Arc<[u8]>,
    hash: u64,
    started_at: Millis,
    waiters: Waiters,
    /// Heap position of the first waiter's deadline. `None` without waiters.
    heap_position: Option<u32>,
}

/// A request that waits for a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// Address of the reply.
    pub request_id: RequestId,
    /// True if the request joined a fetch that another request had started.
    pub collapsed: bool,
    /// True if the client may cache the result ([`Access::client_caches`]).
    pub client_caches: bool,
    /// Time at which the request gets a reply without the fetch.
    deadline: Millis,
}

/// Waiters of a fetch, in order of arrival, which is also the order of their deadlines. The first
/// one takes no allocation: most fetches have no other.
#[derive(Debug, Default)]
pub struct Waiters {
    first: Option<Waiter>,
    /// Empty without a first waiter.
    later: Vec<Waiter>,
}

impl Waiters {
    fn push(&mut self, waiter: Waiter) {
        match self.first {
            None => self.first = Some(waiter),
            Some(_) => self.later.push(waiter),
        }
    }

    /// Returns true if there is no waiter.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Returns the waiters in order.
    pub fn iter(&self) -> impl Iterator<Item = &Waiter> {
        self.first.iter().chain(&self.later)
    }

    /// Removes and returns the waiters with deadlines until `now`.
    fn take_timed_out(&mut self, now: Millis) -> Waiters {
        if self.first.is_none_or(|first| first.deadline > now) {
            return Waiters::default();
        }
        let in_time = self.later.iter().position(|waiter| waiter.deadline > now).unwrap_or(self.later.len());
        let mut rest = self.later.split_off(in_time).into_iter();
        let rest = Waiters { first: rest.next(), later: rest.collect() };
        std::mem::replace(self, rest)
    }
}

/// A completed fetch.
#[derive(Debug)]
pub struct FinishedFetch {
    /// Key that was read.
    pub key: Arc<[u8]>,
    /// Waiters without a reply.
    pub waiters: Waiters,
    /// Time of the first request, before Redis was asked.
    pub started_at: Millis,
    /// True if an invalidation of the key has arrived since the start. The value must not be
    /// cached.
    pub is_detached: bool,
}

/// Result of [`Inflight::join_or_start`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Join {
    /// The request waits for a fetch that was already in flight.
    Joined,
    /// The request started a fetch. The caller must submit a job with this fetch id and key.
    Started(usize, Arc<[u8]>),
}

/// Result of [`Inflight::join_or_start_unwaited`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnwaitedFetch {
    /// Id of the fetch.
    pub fetch_id: usize,
    /// Start of the fetch, before Redis was asked.
    pub started_at: Millis,
    /// True if the caller must submit a job with this id.
    pub is_new: bool,
}

impl Inflight {
    /// Creates the state without fetches.
    #[allow(clippy::new_without_default, reason = "one constructor is enough")]
    pub fn new() -> Inflight {
        Inflight {
            fetches: Slab::new(),
            hasher: RandomState::new(),
            joinable: HashMap::default(),
            deadlines: DeadlineHeap::new(),
        }
    }

    /// Returns the number of fetches in flight, including detached ones.
    pub fn count(&self) -> usize {
        self.fetches.len()
    }

    /// Adds a waiter for `key` with this deadline. Starts a fetch if there is none to join.
    pub fn join_or_start(
        &mut self,
        key: &[u8],
        access: Access,
        request_id: RequestId,
        now: Millis,
        deadline: Millis,
    ) -> Join {
        let waiter = Waiter { request_id, collapsed: false, client_caches: access.client_caches, deadline };
        self.join_or_start_hashed(hash_key(&self.hasher, key), key, waiter, now)
    }

    /// Joins or starts the fetch of `key`, which has this hash.
    fn join_or_start_hashed(&mut self, hash: u64, key: &[u8], waiter: Waiter, now: Millis) -> Join {
        if let Some(fetch_id) = self.find_joinable(hash, key) {
            self.fetches[fetch_id].waiters.push(Waiter { collapsed: true, ..waiter });
            self.arm_deadline(fetch_id);
            return Join::Joined;
        }
        let key: Arc<[u8]> = key.into();
        let waiters = Waiters { first: Some(waiter), later: Vec::new() };
        let fetch_id = self.start(hash, Arc::clone(&key), waiters, now);
        self.joinable.entry(hash).or_insert(fetch_id);
        self.arm_deadline(fetch_id);
        Join::Started(fetch_id, key)
    }

    /// Returns the fetch of `key` that requests join now, and starts it if there is none. The
    /// caller is no waiter.
    pub fn join_or_start_unwaited(&mut self, key: &Arc<[u8]>, now: Millis) -> UnwaitedFetch {
        let hash = hash_key(&self.hasher, key);
        if let Some(fetch_id) = self.find_joinable(hash, key) {
            return UnwaitedFetch { fetch_id, started_at: self.fetches[fetch_id].started_at, is_new: false };
        }
        let fetch_id = self.start(hash, Arc::clone(key), Waiters::default(), now);
        self.joinable.entry(hash).or_insert(fetch_id);
        UnwaitedFetch { fetch_id, started_at: now, is_new: true }
    }

    /// Returns the fetch of `key`, which has this hash, if requests can join it.
    fn find_joinable(&self, hash: u64, key: &[u8]) -> Option<usize> {
        let fetch_id = *self.joinable.get(&hash)?;
        self.fetches.get(fetch_id).is_some_and(|fetch| *fetch.key == *key).then_some(fetch_id)
    }

    fn start(&mut self, hash: u64, key: Arc<[u8]>, waiters: Waiters, now: Millis) -> usize {
        self.fetches.insert(Fetch { key, hash, started_at: now, waiters, heap_position: None })
    }

    /// Adds a fetch with waiters to the heap, unless it is already there.
    fn arm_deadline(&mut self, fetch_id: usize) {
        let fetches = &mut self.fetches;
        if let Fetch { heap_position: None, waiters, .. } = &fetches[fetch_id]
            && let Some(deadline) = waiters.first.map(|first| first.deadline)
        {
            self.deadlines.push(deadline, fetch_id as u32, |id, position| {
                fetches[id as usize].heap_position = Some(position);
            });
        }
    }

    /// Removes the fetch of a completed job. Returns `None` if there is no such fetch.
    pub fn finish(&mut self, fetch_id: usize) -> Option<FinishedFetch> {
        self.clear_deadline(fetch_id);
        let Fetch { key, hash, started_at, waiters, .. } = self.fetches.try_remove(fetch_id)?;
        let is_detached = self.joinable.get(&hash) != Some(&fetch_id);
        if !is_detached {
            self.joinable.remove(&hash);
        }
        Some(FinishedFetch { key, waiters, started_at, is_detached })
    }

    /// Detaches the fetch of a key that changed in Redis. Later requests start a new fetch.
    pub fn detach(&mut self, key: &[u8]) {
        let hash = hash_key(&self.hasher, key);
        if self.find_joinable(hash, key).is_some() {
            self.joinable.remove(&hash);
        }
    }

    /// Detaches all fetches, because any key may have changed.
    pub fn detach_all(&mut self) {
        self.joinable.clear();
    }

    /// Removes the timed-out waiters of one fetch, and returns its key and them. The fetch stays in
    /// flight. Returns `None` if no waiter has timed out.
    pub fn take_timed_out(&mut self, now: Millis) -> Option<(Arc<[u8]>, Waiters)> {
        let (_, fetch_id) = self.deadlines.first().filter(|&(deadline, _)| deadline <= now)?;
        let fetch_id = fetch_id as usize;
        self.clear_deadline(fetch_id);
        let Fetch { key, waiters, .. } = &mut self.fetches[fetch_id];
        let (key, timed_out) = (Arc::clone(key), waiters.take_timed_out(now));
        self.arm_deadline(fetch_id);
        Some((key, timed_out))
    }

    /// Removes a fetch from the heap, if it is there.
    fn clear_deadline(&mut self, fetch_id: usize) {
        let fetches = &mut self.fetches;
        if let Some(position) = fetches.get_mut(fetch_id).and_then(|fetch| fetch.heap_position.take()) {
            self.deadlines.remove(position, |id, position| fetches[id as usize].heap_position = Some(position));
        }
    }

    /// Checks that the heap has the deadline of every fetch with waiters, and that every joinable
    /// fetch is in flight. Walks all fetches.
    #[cfg(any(test, debug_assertions, feature = "validate"))]
    pub fn validate(&self) -> Result<(), String> {
        let position = |id: u32| self.fetches.get(id as usize).and_then(|fetch| fetch.heap_position);
        self.deadlines.validate(|id| position(id).unwrap_or(u32::MAX))?;
        for (fetch_id, Fetch { key, waiters, heap_position, .. }) in &self.fetches {
            let first = waiters.iter().map(|waiter| waiter.deadline).min();
            if heap_position.map(|position| self.deadlines.deadline_at(position)) != first {
                return Err(format!("fetch {fetch_id} of {key:?} does not have the deadline of its first waiter"));
            }
        }
        let is_in_flight = |hash: u64, id: usize| self.fetches.get(id).is_some_and(|fetch| fetch.hash == hash);
        match self.joinable.iter().find(|&(&hash, &fetch_id)| !is_in_flight(hash, fetch_id)) {
            Some((_, fetch_id)) => Err(format!("fetch {fetch_id} is joinable but not in flight")),
            None => Ok(()),
        }
    }

    /// Returns the earliest deadline of a waiter.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.deadlines.first().map(|(deadline, _)| deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request_id(slot: usize) -> RequestId {
        RequestId { slot, connection_id: 7, sequence: 1, part: 0 }
    }

    /// Starts a fetch and returns its id.
    fn start(inflight: &mut Inflight, key: &[u8], slot: usize, now: Millis, deadline: Millis) -> usize {
        match inflight.join_or_start(key, Access::NORMAL, request_id(slot), now, deadline) {
            Join::Started(fetch_id, _) => fetch_id,
            Join::Joined => panic!("joined a fetch instead of starting one"),
        }
    }

    /// Returns the slot of each waiter, and true if it joined a fetch of another request.
    fn summary_of(waiters: &Waiters) -> Vec<(usize, bool)> {
        waiters.iter().map(|waiter| (waiter.request_id.slot, waiter.collapsed)).collect()
    }

    /// A key has one fetch at a time, and each waiter leaves it once.
    #[test]
    fn fetch_finished_returns_each_waiter_once() {
        let mut inflight = Inflight::new();
        let a = start(&mut inflight, b"a", 1, 7, 100);
        let b = start(&mut inflight, b"b", 2, 7, 100);
        assert_eq!(inflight.join_or_start(b"a", Access::NORMAL, request_id(3), 7, 150), Join::Joined);
        let finished = inflight.finish(a).expect("a fetch of a");
        assert_eq!((&*finished.key, summary_of(&finished.waiters)), (&b"a"[..], vec![(1, false), (3, true)]));
        assert_eq!((finished.started_at, finished.is_detached), (7, false));
        assert!(inflight.finish(a).is_none());
        assert!(matches!(inflight.join_or_start(b"a", Access::NORMAL, request_id(4), 7, 200), Join::Started(..)));
        assert_eq!(summary_of(&inflight.finish(b).expect("a fetch of b").waiters), [(2, false)]);
    }

    /// After an invalidation requests start a new fetch, and the detached one keeps its waiters.
    #[test]
    fn invalidated_fetch_is_not_joined() {
        let mut inflight = Inflight::new();
        let old = start(&mut inflight, b"a", 1, 0, 100);
        let other = start(&mut inflight, b"b", 2, 0, 100);
        inflight.detach(b"a");
        inflight.detach(b"a key without a fetch");
        let new = start(&mut inflight, b"a", 3, 5, 105);
        assert_eq!(inflight.join_or_start(b"a", Access::NORMAL, request_id(4), 6, 106), Join::Joined);
        assert_eq!(inflight.validate(), Ok(()));
        let finished = inflight.finish(old).expect("the detached fetch");
        assert_eq!((finished.is_detached, summary_of(&finished.waiters)), (true, vec![(1, false)]));
        assert_eq!(
            inflight.join_or_start(b"a", Access::NORMAL, request_id(5), 7, 107),
            Join::Joined,
            "the end of the detached fetch removed the new one"
        );
        let finished = inflight.finish(new).expect("the new fetch");
        assert_eq!((finished.is_detached, finished.started_at), (false, 5));
        assert_eq!(summary_of(&finished.waiters), [(3, false), (4, true), (5, true)]);
        inflight.detach_all();
        assert_eq!(inflight.finish(other).map(|finished| finished.is_detached), Some(true));
        assert_eq!(inflight.validate(), Ok(()));
    }

    /// A fetch of a key with the hash of another one is not joined and not cached. It leaves the
    /// other one joinable.
    #[test]
    fn colliding_keys_have_separate_fetches() {
        let mut inflight = Inflight::new();
        let waiter = Waiter { request_id: request_id(1), collapsed: false, client_caches: false, deadline: 100 };
        let start = |inflight: &mut Inflight, key: &[u8]| match inflight.join_or_start_hashed(7, key, waiter, 0) {
            Join::Started(fetch_id, _) => Some(fetch_id),
            Join::Joined => None,
        };
        let a = start(&mut inflight, b"a").expect("a fetch of a");
        let b = start(&mut inflight, b"b").expect("b joined the fetch of a");
        assert_eq!(start(&mut inflight, b"a"), None);
        assert_eq!(inflight.validate(), Ok(()));
        let finished = inflight.finish(b).expect("the fetch of b");
        assert_eq!((&*finished.key, finished.is_detached), (&b"b"[..], true));
        assert_eq!(start(&mut inflight, b"a"), None, "the end of the fetch of b detached that of a");
        assert!(inflight.finish(a).is_some_and(|finished| !finished.is_detached));
    }

    /// A waiter leaves at its own deadline, and later requests join the fetch that goes on.
    #[test]
    fn timed_out_waiter_leaves_fetch_running() {
        let mut inflight = Inflight::new();
        let a = start(&mut inflight, b"a", 1, 7, 100);
        inflight.join_or_start(b"a", Access::NORMAL, request_id(2), 7, 180);
        inflight.join_or_start(b"b", Access::NORMAL, request_id(3), 7, 120);
        assert!(inflight.take_timed_out(99).is_none());
        assert_eq!(summary_of(&inflight.take_timed_out(100).expect("a waiter of a").1), [(1, false)]);
        assert!(inflight.take_timed_out(100).is_none(), "a waiter left before its deadline");
        assert_eq!(inflight.next_deadline(), Some(120));
        assert_eq!(
            inflight.join_or_start(b"a", Access::NORMAL, request_id(4), 7, 300),
            Join::Joined,
            "a hung key is fetched again"
        );
        assert_eq!(summary_of(&inflight.take_timed_out(120).expect("the waiter of b").1), [(3, false)]);
        assert_eq!(inflight.next_deadline(), Some(180));
        assert_eq!(summary_of(&inflight.take_timed_out(180).expect("the next waiter of a").1), [(2, true)]);
        assert_eq!(inflight.next_deadline(), Some(300));
        assert_eq!(summary_of(&inflight.finish(a).expect("a fetch of a").waiters), [(4, true)]);
        assert_eq!(inflight.next_deadline(), None);
        assert_eq!(inflight.fetches.len(), 1);
    }

    /// Waiters with deadlines until now leave together and in order, and the next one is the first.
    #[test]
    fn timed_out_waiters_leave_in_order() {
        let mut inflight = Inflight::new();
        let a = start(&mut inflight, b"a", 1, 0, 100);
        for (slot, deadline) in [(2, 100), (3, 110), (4, 120), (5, 130)] {
            inflight.join_or_start(b"a", Access::NORMAL, request_id(slot), 0, deadline);
        }
        let (_, timed_out) = inflight.take_timed_out(110).expect("waiters of a");
        assert_eq!(summary_of(&timed_out), [(1, false), (2, true), (3, true)]);
        assert_eq!((inflight.next_deadline(), inflight.validate()), (Some(120), Ok(())));
        assert_eq!(summary_of(&inflight.finish(a).expect("a fetch of a").waiters), [(4, true), (5, true)]);
    }
}
