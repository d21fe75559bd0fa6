//! Fetches in flight: which key is being read, and who waits for it. One fetch for each key, however many ask.
//!
//! A flight lives from the job's acceptance to its completion, which comes exactly once; so its place in the slab
//! names it unmistakably. Its deadline is for those who wait, not for the fetch: when it passes they are answered and
//! leave, the flight stays until the helper comes back, and whoever asks meanwhile joins it with a deadline of its own.
//! A hung Redis is therefore asked for a key once, not again for each time-out.
//!
//! A change of the key in Redis can overtake the reply that was on its way: they come on different connections. So a
//! change detaches the key's flight: it answers those who are aboard, who asked before the change was heard of, but it
//! is not current any more. What it brings must not be stored, and who asks from then on begins a new flight. Done
//! without that, the old value would stay, and nobody would ever tell of the change again.

use crate::cache::DeadlineHeap;
use crate::types::{Millis, RequestId};
use slab::Slab;
use std::collections::HashMap;
use std::sync::Arc;

/// All flights. See the top of the file.
#[derive(Debug)]
pub struct Inflight {
    fetches: Slab<Fetch>,
    /// The flights that can be joined. Keyed by random, as the cache is (std's SipHash-1-3).
    by_key: HashMap<Arc<[u8]>, usize>,
    deadlines: DeadlineHeap,
}

#[derive(Debug)]
struct Fetch {
    key: Arc<[u8]>,
    started_at: Millis,
    /// In the order in which they asked, so that of their deadlines too.
    waiters: Vec<Waiter>,
    /// Where the first one's deadline is in the heap, while somebody waits.
    position: Option<u32>,
}

/// Who waits, and whether the fetch had begun for somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// Whom to answer.
    pub waiter: RequestId,
    /// Whether the fetch had begun before it asked.
    pub collapsed: bool,
    /// When it has waited long enough.
    deadline: Millis,
}

/// A flight that has ended.
#[derive(Debug)]
pub struct FinishedFetch {
    /// What was read.
    pub key: Arc<[u8]>,
    /// Who still waits.
    pub waiters: Vec<Waiter>,
    /// When it was decided on: before Redis was asked.
    pub started_at: Millis,
    /// Whether no change of the key has been heard of since. Only then may what it brought be stored.
    pub current: bool,
}

/// A request's way into a flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Join {
    /// The key is being read already.
    Joined,
    /// The key has to be read: the new flight, and the key to read.
    Started(usize, Arc<[u8]>),
}

impl Inflight {
    /// No flights.
    #[allow(clippy::new_without_default, reason = "one way to make one is enough")]
    pub fn new() -> Inflight {
        Inflight { fetches: Slab::new(), by_key: HashMap::new(), deadlines: DeadlineHeap::new() }
    }

    /// Keys that are being read.
    pub fn count(&self) -> usize {
        self.fetches.len()
    }

    /// Makes `waiter` wait for `key`, until `deadline` at the latest.
    pub fn join_or_start(&mut self, key: &[u8], waiter: RequestId, now: Millis, deadline: Millis) -> Join {
        if let Some(&fetch) = self.by_key.get(key) {
            self.fetches[fetch].waiters.push(Waiter { waiter, collapsed: true, deadline });
            self.arm_deadline(fetch);
            return Join::Joined;
        }
        let key: Arc<[u8]> = key.into();
        let waiters = vec![Waiter { waiter, collapsed: false, deadline }];
        let fetch = self.fetches.insert(Fetch { key: Arc::clone(&key), started_at: now, waiters, position: None });
        self.by_key.insert(Arc::clone(&key), fetch);
        self.arm_deadline(fetch);
        Join::Started(fetch, key)
    }

    /// Puts a flight with waiters into the heap, if it is not there.
    fn arm_deadline(&mut self, fetch: usize) {
        let flights = &mut self.fetches;
        if let Fetch { position: None, waiters, .. } = &flights[fetch]
            && let Some(deadline) = waiters.first().map(|first| first.deadline)
        {
            self.deadlines.push(deadline, fetch as u32, |id, position| flights[id as usize].position = Some(position));
        }
    }

    /// Ends a flight whose job has come back.
    pub fn finish(&mut self, fetch: usize) -> Option<FinishedFetch> {
        self.clear_deadline(fetch);
        let Fetch { key, started_at: began, waiters, .. } = self.fetches.try_remove(fetch)?;
        let joined = self.by_key.remove(&key);
        let current = joined == Some(fetch);
        if let Some(newer) = joined.filter(|_| !current) {
            self.by_key.insert(Arc::clone(&key), newer);
        }
        Some(FinishedFetch { key, waiters, started_at: began, current })
    }

    /// The key has changed in Redis: its flight, if there is one, takes nobody aboard any more.
    pub fn detach(&mut self, key: &[u8]) {
        self.by_key.remove(key);
    }

    /// Any key may have changed.
    pub fn detach_all(&mut self) {
        self.by_key.clear();
    }

    /// Those who have waited until `now`, of one flight, and its key. The flight goes on without them.
    pub fn take_timed_out(&mut self, now: Millis) -> Option<(Arc<[u8]>, Vec<Waiter>)> {
        let (_, fetch) = self.deadlines.first().filter(|&(deadline, _)| deadline <= now)?;
        let fetch = fetch as usize;
        self.clear_deadline(fetch);
        let Fetch { key, waiters, .. } = &mut self.fetches[fetch];
        let key = Arc::clone(key);
        let patient = waiters.iter().position(|waiter| waiter.deadline > now).unwrap_or(waiters.len());
        let overdue = waiters.drain(..patient).collect();
        self.arm_deadline(fetch);
        Some((key, overdue))
    }

    fn clear_deadline(&mut self, fetch: usize) {
        let flights = &mut self.fetches;
        if let Some(position) = flights.get_mut(fetch).and_then(|fetch| fetch.position.take()) {
            self.deadlines.remove(position, |id, position| flights[id as usize].position = Some(position));
        }
    }

    /// Checks that every flight with waiters has its deadline in the heap, and that only flights can be joined. For
    /// tests; walks everything.
    #[cfg(any(test, debug_assertions, feature = "validate"))]
    pub fn validate(&self) -> Result<(), String> {
        let position = |id: u32| self.fetches.get(id as usize).and_then(|fetch| fetch.position).unwrap_or(u32::MAX);
        self.deadlines.validate(position)?;
        for (fetch, Fetch { key, waiters, position, .. }) in &self.fetches {
            let first = waiters.iter().map(|waiter| waiter.deadline).min();
            if position.map(|position| self.deadlines.deadline_at(position)) != first {
                return Err(format!("flight {fetch} for {key:?} is not due when its first waiter is"));
            }
        }
        match self.by_key.iter().find(|&(key, &fetch)| self.fetches.get(fetch).is_none_or(|found| found.key != *key)) {
            Some((key, fetch)) => Err(format!("flight {fetch} for {key:?} can be joined and is not there")),
            None => Ok(()),
        }
    }

    /// When the next of those who wait have waited long enough.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.deadlines.first().map(|(deadline, _)| deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiter(slot: usize) -> RequestId {
        RequestId { slot, connection_id: 7, sequence: 1, part: 0 }
    }

    fn slots(waiters: &[Waiter]) -> Vec<(usize, bool)> {
        waiters.iter().map(|waiter| (waiter.waiter.slot, waiter.collapsed)).collect()
    }

    #[test]
    fn one_flight_for_each_key_and_each_waiter_leaves_once() {
        let mut inflight = Inflight::new();
        let Join::Started(a, _) = inflight.join_or_start(b"a", waiter(1), 7, 100) else { panic!("no flight for a") };
        let Join::Started(b, _) = inflight.join_or_start(b"b", waiter(2), 7, 100) else { panic!("no flight for b") };
        assert_eq!(inflight.join_or_start(b"a", waiter(3), 7, 150), Join::Joined);
        let finished = inflight.finish(a).expect("a is in flight");
        assert_eq!((&*finished.key, slots(&finished.waiters)), (&b"a"[..], vec![(1, false), (3, true)]));
        assert_eq!((finished.started_at, finished.current), (7, true));
        assert!(inflight.finish(a).is_none());
        assert!(matches!(inflight.join_or_start(b"a", waiter(4), 7, 200), Join::Started(..)));
        assert_eq!(slots(&inflight.finish(b).expect("b is in flight").waiters), [(2, false)]);
    }

    #[test]
    fn a_change_detaches_the_flight_and_who_asks_then_begins_a_new_one() {
        let mut inflight = Inflight::new();
        let Join::Started(old, _) = inflight.join_or_start(b"a", waiter(1), 0, 100) else { panic!("no flight") };
        let Join::Started(other, _) = inflight.join_or_start(b"b", waiter(2), 0, 100) else { panic!("no flight") };
        inflight.detach(b"a");
        inflight.detach(b"nobody asked for it");
        let Join::Started(new, _) = inflight.join_or_start(b"a", waiter(3), 5, 105) else {
            panic!("joined what is old")
        };
        assert_eq!(inflight.join_or_start(b"a", waiter(4), 6, 106), Join::Joined);
        assert_eq!(inflight.validate(), Ok(()));
        let finished = inflight.finish(old).expect("it is in flight");
        assert_eq!((finished.current, slots(&finished.waiters)), (false, vec![(1, false)]));
        assert_eq!(
            inflight.join_or_start(b"a", waiter(5), 7, 107),
            Join::Joined,
            "the old one took the new one's place"
        );
        let finished = inflight.finish(new).expect("it is in flight");
        assert_eq!((finished.current, finished.started_at), (true, 5));
        assert_eq!(slots(&finished.waiters), [(3, false), (4, true), (5, true)]);
        inflight.detach_all();
        assert_eq!(inflight.finish(other).map(|finished| finished.current), Some(false));
        assert_eq!(inflight.validate(), Ok(()));
    }

    #[test]
    fn those_who_waited_long_enough_leave_and_the_flight_goes_on() {
        let mut inflight = Inflight::new();
        let Join::Started(a, _) = inflight.join_or_start(b"a", waiter(1), 7, 100) else { panic!("no flight") };
        inflight.join_or_start(b"a", waiter(2), 7, 180);
        inflight.join_or_start(b"b", waiter(3), 7, 120);
        assert!(inflight.take_timed_out(99).is_none());
        assert_eq!(slots(&inflight.take_timed_out(100).expect("a is overdue").1), [(1, false)]);
        assert!(inflight.take_timed_out(100).is_none(), "told before it has waited long enough");
        assert_eq!(inflight.next_deadline(), Some(120));
        assert_eq!(inflight.join_or_start(b"a", waiter(4), 7, 300), Join::Joined, "a hung key is asked for once more");
        assert_eq!(slots(&inflight.take_timed_out(120).expect("b is overdue").1), [(3, false)]);
        assert_eq!(inflight.next_deadline(), Some(180));
        assert_eq!(slots(&inflight.take_timed_out(180).expect("a is overdue again").1), [(2, true)]);
        assert_eq!(inflight.next_deadline(), Some(300));
        assert_eq!(slots(&inflight.finish(a).expect("a is in flight").waiters), [(4, true)]);
        assert_eq!(inflight.next_deadline(), None);
        assert_eq!(inflight.fetches.len(), 1);
    }
}
