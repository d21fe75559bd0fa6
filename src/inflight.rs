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

use crate::cache::Deadlines;
use crate::request::{Millis, Waiter};
use slab::Slab;
use std::collections::HashMap;
use std::sync::Arc;

/// All flights. See the top of the file.
#[derive(Debug)]
pub struct Inflight {
    flights: Slab<Flight>,
    /// The flights that can be joined. Keyed by random, as the cache is (std's SipHash-1-3).
    by_key: HashMap<Arc<[u8]>, usize>,
    deadlines: Deadlines,
}

#[derive(Debug)]
struct Flight {
    key: Arc<[u8]>,
    began: Millis,
    /// In the order in which they asked, so that of their deadlines too.
    waiters: Vec<Passenger>,
    /// Where the first one's deadline is in the heap, while somebody waits.
    position: Option<u32>,
}

/// Who waits, and whether the fetch had begun for somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passenger {
    /// Whom to answer.
    pub waiter: Waiter,
    /// Whether the fetch had begun before it asked.
    pub collapsed: bool,
    /// When it has waited long enough.
    deadline: Millis,
}

/// A flight that has ended.
#[derive(Debug)]
pub struct Landed {
    /// What was read.
    pub key: Arc<[u8]>,
    /// Who still waits.
    pub passengers: Vec<Passenger>,
    /// When it was decided on: before Redis was asked.
    pub began: Millis,
    /// Whether no change of the key has been heard of since. Only then may what it brought be stored.
    pub current: bool,
}

/// A request's way into a flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boarding {
    /// The key is being read already.
    Joined,
    /// The key has to be read: the new flight, and the key to read.
    Began(usize, Arc<[u8]>),
}

impl Inflight {
    /// No flights.
    #[allow(clippy::new_without_default, reason = "one way to make one is enough")]
    pub fn new() -> Inflight {
        Inflight { flights: Slab::new(), by_key: HashMap::new(), deadlines: Deadlines::new() }
    }

    /// Keys that are being read.
    pub fn count(&self) -> usize {
        self.flights.len()
    }

    /// Makes `waiter` wait for `key`, until `deadline` at the latest.
    pub fn board(&mut self, key: &[u8], waiter: Waiter, now: Millis, deadline: Millis) -> Boarding {
        if let Some(&flight) = self.by_key.get(key) {
            self.flights[flight].waiters.push(Passenger { waiter, collapsed: true, deadline });
            self.await_first(flight);
            return Boarding::Joined;
        }
        let key: Arc<[u8]> = key.into();
        let waiters = vec![Passenger { waiter, collapsed: false, deadline }];
        let flight = self.flights.insert(Flight { key: Arc::clone(&key), began: now, waiters, position: None });
        self.by_key.insert(Arc::clone(&key), flight);
        self.await_first(flight);
        Boarding::Began(flight, key)
    }

    /// Puts a flight with waiters into the heap, if it is not there.
    fn await_first(&mut self, flight: usize) {
        let flights = &mut self.flights;
        if let Flight { position: None, waiters, .. } = &flights[flight]
            && let Some(deadline) = waiters.first().map(|first| first.deadline)
        {
            self.deadlines.push(deadline, flight as u32, |id, position| flights[id as usize].position = Some(position));
        }
    }

    /// Ends a flight whose job has come back.
    pub fn land(&mut self, flight: usize) -> Option<Landed> {
        self.clear_deadline(flight);
        let Flight { key, began, waiters: passengers, .. } = self.flights.try_remove(flight)?;
        let joined = self.by_key.remove(&key);
        let current = joined == Some(flight);
        if let Some(newer) = joined.filter(|_| !current) {
            self.by_key.insert(Arc::clone(&key), newer);
        }
        Some(Landed { key, passengers, began, current })
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
    pub fn overdue(&mut self, now: Millis) -> Option<(Arc<[u8]>, Vec<Passenger>)> {
        let (_, flight) = self.deadlines.first().filter(|&(deadline, _)| deadline <= now)?;
        let flight = flight as usize;
        self.clear_deadline(flight);
        let Flight { key, waiters, .. } = &mut self.flights[flight];
        let key = Arc::clone(key);
        let patient = waiters.iter().position(|passenger| passenger.deadline > now).unwrap_or(waiters.len());
        let overdue = waiters.drain(..patient).collect();
        self.await_first(flight);
        Some((key, overdue))
    }

    fn clear_deadline(&mut self, flight: usize) {
        let flights = &mut self.flights;
        if let Some(position) = flights.get_mut(flight).and_then(|flight| flight.position.take()) {
            self.deadlines.remove(position, |id, position| flights[id as usize].position = Some(position));
        }
    }

    /// Checks that every flight with waiters has its deadline in the heap, and that only flights can be joined. For
    /// tests; walks everything.
    pub fn validate(&self) -> Result<(), String> {
        let position = |id: u32| self.flights.get(id as usize).and_then(|flight| flight.position).unwrap_or(u32::MAX);
        self.deadlines.validate(position)?;
        for (flight, Flight { key, waiters, position, .. }) in &self.flights {
            let first = waiters.iter().map(|passenger| passenger.deadline).min();
            if position.map(|position| self.deadlines.deadline_at(position)) != first {
                return Err(format!("flight {flight} for {key:?} is not due when its first waiter is"));
            }
        }
        match self.by_key.iter().find(|&(key, &flight)| self.flights.get(flight).is_none_or(|found| found.key != *key))
        {
            Some((key, flight)) => Err(format!("flight {flight} for {key:?} can be joined and is not there")),
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

    fn waiter(slot: usize) -> Waiter {
        Waiter { slot, generation: 7, sequence: 1, part: 0 }
    }

    fn slots(passengers: &[Passenger]) -> Vec<(usize, bool)> {
        passengers.iter().map(|passenger| (passenger.waiter.slot, passenger.collapsed)).collect()
    }

    #[test]
    fn one_flight_for_each_key_and_each_waiter_leaves_once() {
        let mut inflight = Inflight::new();
        let Boarding::Began(a, _) = inflight.board(b"a", waiter(1), 7, 100) else { panic!("no flight for a") };
        let Boarding::Began(b, _) = inflight.board(b"b", waiter(2), 7, 100) else { panic!("no flight for b") };
        assert_eq!(inflight.board(b"a", waiter(3), 7, 150), Boarding::Joined);
        let landed = inflight.land(a).expect("a is in flight");
        assert_eq!((&*landed.key, slots(&landed.passengers)), (&b"a"[..], vec![(1, false), (3, true)]));
        assert_eq!((landed.began, landed.current), (7, true));
        assert!(inflight.land(a).is_none());
        assert!(matches!(inflight.board(b"a", waiter(4), 7, 200), Boarding::Began(..)));
        assert_eq!(slots(&inflight.land(b).expect("b is in flight").passengers), [(2, false)]);
    }

    #[test]
    fn a_change_detaches_the_flight_and_who_asks_then_begins_a_new_one() {
        let mut inflight = Inflight::new();
        let Boarding::Began(old, _) = inflight.board(b"a", waiter(1), 0, 100) else { panic!("no flight") };
        let Boarding::Began(other, _) = inflight.board(b"b", waiter(2), 0, 100) else { panic!("no flight") };
        inflight.detach(b"a");
        inflight.detach(b"nobody asked for it");
        let Boarding::Began(new, _) = inflight.board(b"a", waiter(3), 5, 105) else { panic!("joined what is old") };
        assert_eq!(inflight.board(b"a", waiter(4), 6, 106), Boarding::Joined);
        assert_eq!(inflight.validate(), Ok(()));
        let landed = inflight.land(old).expect("it is in flight");
        assert_eq!((landed.current, slots(&landed.passengers)), (false, vec![(1, false)]));
        assert_eq!(inflight.board(b"a", waiter(5), 7, 107), Boarding::Joined, "the old one took the new one's place");
        let landed = inflight.land(new).expect("it is in flight");
        assert_eq!((landed.current, landed.began), (true, 5));
        assert_eq!(slots(&landed.passengers), [(3, false), (4, true), (5, true)]);
        inflight.detach_all();
        assert_eq!(inflight.land(other).map(|landed| landed.current), Some(false));
        assert_eq!(inflight.validate(), Ok(()));
    }

    #[test]
    fn those_who_waited_long_enough_leave_and_the_flight_goes_on() {
        let mut inflight = Inflight::new();
        let Boarding::Began(a, _) = inflight.board(b"a", waiter(1), 7, 100) else { panic!("no flight") };
        inflight.board(b"a", waiter(2), 7, 180);
        inflight.board(b"b", waiter(3), 7, 120);
        assert!(inflight.overdue(99).is_none());
        assert_eq!(slots(&inflight.overdue(100).expect("a is overdue").1), [(1, false)]);
        assert!(inflight.overdue(100).is_none(), "told before it has waited long enough");
        assert_eq!(inflight.next_deadline(), Some(120));
        assert_eq!(inflight.board(b"a", waiter(4), 7, 300), Boarding::Joined, "a hung key is asked for once more");
        assert_eq!(slots(&inflight.overdue(120).expect("b is overdue").1), [(3, false)]);
        assert_eq!(inflight.next_deadline(), Some(180));
        assert_eq!(slots(&inflight.overdue(180).expect("a is overdue again").1), [(2, true)]);
        assert_eq!(inflight.next_deadline(), Some(300));
        assert_eq!(slots(&inflight.land(a).expect("a is in flight").passengers), [(4, true)]);
        assert_eq!(inflight.next_deadline(), None);
        assert_eq!(inflight.flights.len(), 1);
    }
}
