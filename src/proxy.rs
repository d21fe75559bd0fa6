//! The decisions: a request becomes a reply, a wait or a fetch; a completion becomes an entry and replies.
//!
//! No sockets, threads or clock: who waits is a [`Waiter`], the time comes in, jobs go out. What holds here can be
//! tested step by step.

use crate::cache::Cache;
use crate::inflight::{Boarding, Inflight, Passenger};
use crate::request::{Completion, Failure, Job, Millis, Outcome, Payload, Reply, SHARED_VALUE_BYTES, Source, Waiter};
use std::sync::Arc;

/// A fetched value up to this long is copied for everyone who waits for it. A longer one is shared: a client may have
/// a hundred replies waiting behind one that is slow, and escaping makes six bytes of one.
const COPIED_BYTES: usize = 1024;

/// What to do with a request.
#[derive(Debug)]
pub enum Decision<'a> {
    /// Reply now: it was in memory.
    Reply(Reply<'a>),
    /// Wait: the key is being read.
    Wait,
    /// Wait, and have this job done. A job that cannot be accepted must come back through [`Proxy::complete`].
    Fetch(Job),
}

/// Cache and flights of one loop.
#[derive(Debug)]
pub struct Proxy {
    cache: Cache,
    inflight: Inflight,
    ttl: Millis,
    patience: Millis,
}

impl Proxy {
    /// `capacity` entries, each for `ttl`; a client waits for Redis no longer than `patience`.
    pub fn new(capacity: usize, ttl: Millis, patience: Millis) -> Proxy {
        Proxy { cache: Cache::new(capacity), inflight: Inflight::new(), ttl, patience }
    }

    /// Decides on a request for `key`. `waiter` says whom to answer if the reply has to wait.
    pub fn get(&mut self, key: &[u8], waiter: Waiter, now: Millis) -> Decision<'_> {
        if let Some(hit) = self.cache.get(key, now) {
            let source = Source::Cache { remaining: hit.remaining };
            return Decision::Reply(Reply { outcome: Outcome::Value(hit.payload), source });
        }
        match self.inflight.board(key, waiter, now + self.patience) {
            Boarding::Joined => Decision::Wait,
            Boarding::Began(flight, key) => Decision::Fetch(Job { flight, key }),
        }
    }

    /// Takes what became of a job: stores a value, and answers all who wait for it. Whether they are still there is
    /// the business of `answer`; the value is stored all the same.
    pub fn complete(&mut self, completion: Completion, now: Millis, mut answer: impl FnMut(Waiter, &Reply<'_>)) {
        let Some((key, passengers)) = self.inflight.land(completion.flight) else {
            log::error!("a fetch came back twice; please report this");
            return;
        };
        match completion.result {
            Ok(Some(value)) => {
                let value = Arc::new(value);
                let shared_above = |limit| match value.bytes.len() {
                    length if length > limit => Payload::Shared(&value),
                    _ => Payload::Inline { bytes: &value.bytes, form: value.form },
                };
                self.cache.insert(&key, shared_above(SHARED_VALUE_BYTES), now + self.ttl);
                answer_all(&passengers, Outcome::Value(shared_above(COPIED_BYTES)), Some(self.ttl), &mut answer);
            }
            Ok(None) => answer_all(&passengers, Outcome::Missing, None, &mut answer),
            Err(failure) => answer_all(&passengers, Outcome::Failed(&failure), None, &mut answer),
        }
    }

    /// Does what is due: answers those who have waited too long, removes expired entries, up to `budget` of each. Says
    /// whether more is due already.
    pub fn tick(&mut self, now: Millis, budget: usize, mut answer: impl FnMut(Waiter, &Reply<'_>)) -> bool {
        let mut flights = 0;
        while flights < budget
            && let Some(passengers) = self.inflight.overdue(now)
        {
            answer_all(&passengers, Outcome::Failed(&Failure::Timeout), None, &mut answer);
            flights += 1;
        }
        let more_expired = self.cache.sweep(now, budget);
        flights == budget || more_expired
    }

    /// When [`Proxy::tick`] is due next.
    pub fn next_deadline(&self) -> Option<Millis> {
        [self.cache.next_deadline(), self.inflight.next_deadline()].into_iter().flatten().min()
    }
}

fn answer_all(
    passengers: &[Passenger],
    outcome: Outcome<'_>,
    stored: Option<Millis>,
    answer: &mut impl FnMut(Waiter, &Reply<'_>),
) {
    for passenger in passengers {
        let source = Source::Redis { collapsed: passenger.collapsed, stored };
        answer(passenger.waiter, &Reply { outcome, source });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Value;

    fn waiter(slot: usize) -> Waiter {
        Waiter { slot, generation: slot as u64, sequence: 0 }
    }

    fn fetch(proxy: &mut Proxy, key: &[u8], slot: usize, now: Millis) -> Job {
        match proxy.get(key, waiter(slot), now) {
            Decision::Fetch(job) => job,
            other => panic!("{other:?} instead of a fetch"),
        }
    }

    fn complete(proxy: &mut Proxy, job: &Job, result: Result<Option<&str>, Failure>, now: Millis) -> Vec<String> {
        let mut answers = Vec::new();
        let result = result.map(|value| value.map(|value| Value::new(value.into())));
        proxy.complete(Completion { flight: job.flight, result }, now, |waiter, reply| {
            answers.push(describe(waiter, reply));
        });
        answers
    }

    fn describe(waiter: Waiter, reply: &Reply<'_>) -> String {
        let outcome = match reply.outcome {
            Outcome::Value(Payload::Inline { bytes, .. }) => String::from_utf8_lossy(bytes).into_owned(),
            Outcome::Value(Payload::Shared(value)) => format!("{} shared", value.bytes.len()),
            Outcome::Missing => "missing".into(),
            Outcome::Failed(failure) => format!("{failure:?}"),
        };
        format!("{}: {outcome}, {:?}", waiter.slot, reply.source)
    }

    fn hit(proxy: &mut Proxy, key: &[u8], now: Millis) -> Option<String> {
        match proxy.get(key, waiter(99), now) {
            Decision::Reply(reply) => Some(describe(waiter(99), &reply)),
            _ => None,
        }
    }

    #[test]
    fn a_miss_is_fetched_once_and_then_answered_from_memory_until_its_deadline() {
        let mut proxy = Proxy::new(3, 1000, 500);
        let job = fetch(&mut proxy, b"a", 1, 0);
        assert!(matches!(proxy.get(b"a", waiter(2), 5), Decision::Wait));
        assert_eq!(
            complete(&mut proxy, &job, Ok(Some("1")), 10),
            [
                "1: 1, Redis { collapsed: false, stored: Some(1000) }",
                "2: 1, Redis { collapsed: true, stored: Some(1000) }",
            ]
        );
        assert_eq!(hit(&mut proxy, b"a", 10).as_deref(), Some("99: 1, Cache { remaining: 1000 }"));
        assert_eq!(hit(&mut proxy, b"a", 1009).as_deref(), Some("99: 1, Cache { remaining: 1 }"));
        fetch(&mut proxy, b"a", 1, 1010);
    }

    #[test]
    fn missing_keys_and_failures_are_not_stored_and_the_empty_string_is() {
        let mut proxy = Proxy::new(3, 1000, 500);
        for (result, text) in [
            (Ok(None), "missing"),
            (Err(Failure::Unavailable), "Unavailable"),
            (Err(Failure::WrongType), "WrongType"),
            (Err(Failure::Redis("ERR no".into())), "Redis(\"ERR no\")"),
        ] {
            let job = fetch(&mut proxy, b"a", 1, 0);
            let expected = format!("1: {text}, Redis {{ collapsed: false, stored: None }}");
            assert_eq!(complete(&mut proxy, &job, result, 0), [expected]);
        }
        let job = fetch(&mut proxy, b"a", 1, 0);
        complete(&mut proxy, &job, Ok(Some("")), 0);
        assert_eq!(hit(&mut proxy, b"a", 0).as_deref(), Some("99: , Cache { remaining: 1000 }"));
    }

    #[test]
    fn who_waits_too_long_is_told_and_the_value_is_stored_when_it_comes() {
        let mut proxy = Proxy::new(3, 1000, 500);
        let job = fetch(&mut proxy, b"a", 1, 0);
        assert_eq!(proxy.next_deadline(), Some(500));
        let mut answers = Vec::new();
        assert!(!proxy.tick(499, 10, |waiter, reply| answers.push(describe(waiter, reply))));
        assert!(answers.is_empty());
        proxy.tick(500, 10, |waiter, reply| answers.push(describe(waiter, reply)));
        assert_eq!(answers, ["1: Timeout, Redis { collapsed: false, stored: None }"]);
        assert!(complete(&mut proxy, &job, Ok(Some("late")), 600).is_empty(), "answered twice");
        assert_eq!(hit(&mut proxy, b"a", 600).as_deref(), Some("99: late, Cache { remaining: 1000 }"));
    }

    #[test]
    fn a_tick_does_bounded_work_and_says_when_there_is_more() {
        let mut proxy = Proxy::new(100, 1000, 500);
        for number in 0..100u8 {
            let job = fetch(&mut proxy, &[number], 1, 0);
            complete(&mut proxy, &job, Ok(Some("1")), 0);
        }
        for remaining in (0..10).rev() {
            assert_eq!(proxy.cache.len(), 10 * (remaining + 1));
            proxy.tick(1000, 10, |_, _| panic!("nobody waits"));
        }
        assert!(!proxy.tick(1000, 10, |_, _| panic!("nobody waits")));
        assert_eq!(proxy.next_deadline(), None);
    }

    #[test]
    fn a_long_value_is_shared_by_the_cache_and_all_who_wait() {
        let mut proxy = Proxy::new(3, 1000, 500);
        let job = fetch(&mut proxy, b"a", 1, 0);
        proxy.get(b"a", waiter(2), 0);
        let mut addresses = Vec::new();
        let result = Ok(Some(Value::new(vec![b'x'; SHARED_VALUE_BYTES + 1])));
        proxy.complete(Completion { flight: job.flight, result }, 0, |_, reply| match reply.outcome {
            Outcome::Value(Payload::Shared(value)) => addresses.push(Arc::as_ptr(value)),
            other => panic!("{other:?}"),
        });
        let Decision::Reply(Reply { outcome: Outcome::Value(Payload::Shared(value)), .. }) =
            proxy.get(b"a", waiter(3), 0)
        else {
            panic!("not shared")
        };
        assert_eq!(addresses, [Arc::as_ptr(value); 2]);
    }
}
