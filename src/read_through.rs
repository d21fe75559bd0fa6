//! The decisions: a request becomes a reply, a wait or a fetch; a completion becomes an entry and replies.
//!
//! No sockets, threads or clock: who waits is a [`Waiter`], the time comes in, jobs go out. What holds here can be
//! tested step by step.

use crate::cache::{Cache, Limits};
use crate::inflight::{FinishedFetch, Inflight, Join, Waiter};
use crate::metrics::WorkerMetrics;
use crate::types::{Completion, Failure, FetchedValue, Invalidation, Job, KeyResult, Millis, Reply, RequestId, Source};
use crate::value::{Payload, SHARED_VALUE_BYTES, Value};
use std::sync::Arc;

/// A fetched value up to this long is copied for everyone who waits for it. A longer one is shared: a client may have
/// a hundred replies waiting behind one that is slow, and escaping makes six bytes of one.
const MAX_COPIED_BYTES: usize = 1024;

/// What to do with a request.
#[derive(Debug)]
pub enum Lookup<'a> {
    /// Reply now: it was in memory.
    Reply(Reply<'a>),
    /// Wait: the key is being read.
    Wait,
    /// Wait, and have this job done. A job that cannot be accepted must come back through [`ReadThrough::complete`].
    Fetch(Job),
}

/// Cache and flights of one loop.
#[derive(Debug)]
pub struct ReadThrough {
    cache: Cache,
    inflight: Inflight,
    ttl: Millis,
    wait_timeout: Millis,
    /// True while the tracking connection brings every change in Redis.
    tracked: bool,
    counts: Counters,
}

/// What has happened since the start. [`WorkerMetrics`] says what each of them means.
#[derive(Debug, Default)]
struct Counters {
    hits: u64,
    misses: u64,
    collapsed: u64,
    invalidated: u64,
    epochs: u64,
}

impl ReadThrough {
    /// A cache within `limits`, each entry fresh for `ttl`; a client waits for Redis no longer than `patience`.
    pub fn new(limits: Limits, ttl: Millis, timer: Millis) -> ReadThrough {
        let (cache, inflight, counts) = (Cache::new(limits), Inflight::new(), Counters::default());
        ReadThrough { cache, inflight, ttl, wait_timeout: timer, tracked: false, counts }
    }

    /// The cache, for its figures.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Decides on a request for `key`, which becomes recently used by it if it is to be `touch`ed. `waiter` says whom to
    /// answer if the reply has to wait.
    pub fn get(&mut self, key: &[u8], touch: bool, waiter: RequestId, now: Millis) -> Lookup<'_> {
        let found = if touch { self.cache.get(key, now) } else { self.cache.peek(key, now) };
        if let Some(hit) = found {
            self.counts.hits += 1;
            let source = Source::Cache { ttl: hit.remaining };
            return Lookup::Reply(Reply { outcome: KeyResult::Value(hit.payload), source, tracked: self.tracked });
        }
        self.counts.misses += 1;
        match self.inflight.join_or_start(key, waiter, now, now + self.wait_timeout) {
            Join::Joined => {
                self.counts.collapsed += 1;
                Lookup::Wait
            }
            Join::Started(fetch, key) => Lookup::Fetch(Job { fetch_id: fetch, key }),
        }
    }

    /// How long `key` will be served from memory, if it is there. Nobody is asked, and nothing becomes recently used.
    pub fn remaining_ttl(&mut self, key: &[u8], now: Millis) -> Option<Millis> {
        self.cache.peek(key, now).map(|hit| hit.remaining)
    }

    /// Takes what became of a job: stores a value, and answers all who wait for it. Whether they are still there is
    /// the business of `answer`; the value is stored all the same.
    pub fn complete(&mut self, completion: Completion, now: Millis, mut answer: impl FnMut(RequestId, &Reply<'_>)) {
        let Some(finished) = self.inflight.finish(completion.fetch_id) else {
            log::error!("a fetch completed twice: second result dropped; please report this");
            return;
        };
        let waiters = &finished.waiters;
        match completion.result {
            Ok(Some(FetchedValue { value, ttl: remaining })) => {
                let value = Arc::new(value);
                let stored = self.store(&finished, &value, remaining, now);
                self.reply_all(waiters, KeyResult::Value(payload_of(MAX_COPIED_BYTES, &value)), stored, &mut answer);
            }
            Ok(None) => {
                self.remove_missing(&finished);
                self.reply_all(waiters, KeyResult::Missing, None, &mut answer);
            }
            Err(failure) => {
                if failure.invalidates_entry() {
                    self.remove_missing(&finished);
                }
                self.fail_or_serve_stale(&finished.key, waiters, &failure, now, &mut answer);
            }
        }
    }

    /// Stores what a flight brought, if it still may be. Says how long it will live.
    fn store(
        &mut self,
        finished: &FinishedFetch,
        value: &Arc<Value>,
        remaining: Option<Millis>,
        now: Millis,
    ) -> Option<Millis> {
        if !finished.current {
            return None;
        }
        // What Redis says the key has left counts from before it was asked: the answer was on its way for a while.
        let ends = remaining.map_or(Millis::MAX, |remaining| finished.started_at + remaining);
        let deadline = ends.min(now + self.ttl);
        if deadline <= now {
            self.remove_missing(finished);
            return None;
        }
        let stored = self.cache.insert(&finished.key, payload_of(SHARED_VALUE_BYTES, value), deadline, ends);
        stored.then_some(deadline - now)
    }

    /// Redis holds nothing at this key that is cached: what is kept of it must not come back when Redis is away. A
    /// flight that is not current knows less than the cache may have learnt since.
    fn remove_missing(&mut self, finished: &FinishedFetch) {
        if finished.current {
            self.cache.remove(&finished.key);
        }
    }

    /// Answers with a failure, or with what is cached: an expired value is better than none while Redis is away.
    fn fail_or_serve_stale(
        &mut self,
        key: &[u8],
        waiters: &[Waiter],
        failure: &Failure,
        now: Millis,
        answer: &mut impl FnMut(RequestId, &Reply<'_>),
    ) {
        let kept = failure.outage().and_then(|outage| Some((outage, self.cache.get_allow_stale(key, now)?)));
        let Some((outage, kept)) = kept else {
            return self.reply_all(waiters, KeyResult::Failed(failure), None, answer);
        };
        let source = match kept.remaining {
            0 => Source::Stale { expired_for: kept.expired_for, outage },
            // Another fetch has come back since.
            remaining => Source::Cache { ttl: remaining },
        };
        let reply = Reply { outcome: KeyResult::Value(kept.payload), source, tracked: self.tracked };
        waiters.iter().for_each(|waiter| answer(waiter.waiter, &reply));
    }

    /// Answers all clients of a fetch that Redis has answered, or that has failed.
    fn reply_all(
        &self,
        waiters: &[Waiter],
        outcome: KeyResult<'_>,
        stored: Option<Millis>,
        answer: &mut impl FnMut(RequestId, &Reply<'_>),
    ) {
        for waiter in waiters {
            let source = Source::Redis { collapsed: waiter.collapsed, stored };
            answer(waiter.waiter, &Reply { outcome, source, tracked: self.tracked });
        }
    }

    /// Takes news of a change in Redis. What was cached of it goes, what is being fetched will not be stored, and who
    /// asks from now on is answered with something newer.
    pub fn invalidate(&mut self, change: &Invalidation, now: Millis) {
        match change {
            Invalidation::Key(key) => {
                self.counts.invalidated += u64::from(self.cache.remove(key));
                self.inflight.detach(key);
            }
            Invalidation::All => {
                self.counts.epochs += 1;
                self.counts.invalidated += self.cache.len() as u64;
                self.cache.clear();
                self.inflight.detach_all();
                self.tracked = true;
            }
            // What is stored from now on has only its ttl. What is there relied on more than that.
            Invalidation::TrackingLost => {
                self.counts.epochs += 1;
                self.cache.expire_all(now);
                self.inflight.detach_all();
                self.tracked = false;
            }
        }
    }

    /// Does what is due: answers those who have waited too long, removes expired entries, up to `budget` of each. Says
    /// whether more is due already.
    pub fn tick(&mut self, now: Millis, budget: usize, mut answer: impl FnMut(RequestId, &Reply<'_>)) -> bool {
        let mut flights = 0;
        while flights < budget
            && let Some((key, waiters)) = self.inflight.take_timed_out(now)
        {
            self.fail_or_serve_stale(&key, &waiters, &Failure::Timeout, now, &mut answer);
            flights += 1;
        }
        let more_expired = self.cache.sweep(now, budget);
        flights == budget || more_expired
    }

    /// Writes its own figures among those of the loop.
    pub fn export_metrics(&self, metrics: &mut WorkerMetrics) {
        let Counters { hits, misses, collapsed, invalidated, epochs } = self.counts;
        let (entries, expired, evicted) = (self.cache.len(), self.cache.expired(), self.cache.evicted());
        (metrics.bytes, metrics.inflight_keys) = (self.cache.bytes(), self.inflight.count());
        (metrics.hits, metrics.misses, metrics.collapsed) = (hits, misses, collapsed);
        (metrics.entries, metrics.expired, metrics.evicted) = (entries, expired, evicted);
        (metrics.invalidated, metrics.flushes) = (invalidated, epochs);
    }

    /// Checks cache and flights. For tests; walks everything.
    #[cfg(any(test, debug_assertions, feature = "validate"))]
    pub fn validate(&self) -> Result<(), String> {
        self.cache.validate()?;
        self.inflight.validate()
    }

    /// When [`ReadThrough::tick`] is due next.
    pub fn next_deadline(&self) -> Option<Millis> {
        match (self.cache.next_deadline(), self.inflight.next_deadline()) {
            (Some(expiry), Some(late)) => Some(expiry.min(late)),
            (expiry, late) => expiry.or(late),
        }
    }
}

/// A fetched value, to be copied up to `limit` and shared above it.
fn payload_of(limit: usize, value: &Arc<Value>) -> Payload<'_> {
    match value.bytes.len() {
        length if length > limit => Payload::Shared(value),
        _ => Payload::Inline { bytes: &value.bytes, form: value.form },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { entries: 3, bytes: usize::MAX, stale: 0 };

    fn waiter(slot: usize) -> RequestId {
        RequestId { slot, connection_id: slot as u64, sequence: 0, part: 0 }
    }

    fn fetch(read_through: &mut ReadThrough, key: &[u8], slot: usize, now: Millis) -> Job {
        match read_through.get(key, true, waiter(slot), now) {
            Lookup::Fetch(job) => job,
            other => panic!("{other:?} instead of a fetch"),
        }
    }

    fn complete(
        read_through: &mut ReadThrough,
        job: &Job,
        result: Result<Option<&str>, Failure>,
        now: Millis,
    ) -> Vec<String> {
        let result = result.map(|value| value.map(|value| fetched(value, None)));
        land(read_through, job, result, now)
    }

    fn fetched(value: &str, remaining: Option<Millis>) -> FetchedValue {
        FetchedValue { value: Value::new(value.into()), ttl: remaining }
    }

    fn land(
        read_through: &mut ReadThrough,
        job: &Job,
        result: Result<Option<FetchedValue>, Failure>,
        now: Millis,
    ) -> Vec<String> {
        let mut answers = Vec::new();
        read_through.complete(Completion { fetch_id: job.fetch_id, result }, now, |request_id, reply| {
            answers.push(describe(request_id, reply));
        });
        assert_eq!(read_through.validate(), Ok(()));
        answers
    }

    fn describe(waiter: RequestId, reply: &Reply<'_>) -> String {
        let outcome = match reply.outcome {
            KeyResult::Value(Payload::Inline { bytes, .. }) => String::from_utf8_lossy(bytes).into_owned(),
            KeyResult::Value(Payload::Shared(value)) => format!("{} shared", value.bytes.len()),
            KeyResult::Missing => "missing".into(),
            KeyResult::Failed(failure) => format!("{failure:?}"),
        };
        format!("{}: {outcome}, {:?}", waiter.slot, reply.source)
    }

    fn hit(read_through: &mut ReadThrough, key: &[u8], now: Millis) -> Option<String> {
        match read_through.get(key, true, waiter(99), now) {
            Lookup::Reply(reply) => Some(describe(waiter(99), &reply)),
            _ => None,
        }
    }

    #[test]
    fn a_miss_is_fetched_once_and_then_answered_from_memory_until_its_deadline() {
        let mut read_through = ReadThrough::new(LIMITS, 1000, 500);
        let job = fetch(&mut read_through, b"a", 1, 0);
        assert!(matches!(read_through.get(b"a", true, waiter(2), 5), Lookup::Wait));
        assert_eq!(
            complete(&mut read_through, &job, Ok(Some("1")), 10),
            [
                "1: 1, Redis { collapsed: false, stored: Some(1000) }",
                "2: 1, Redis { collapsed: true, stored: Some(1000) }",
            ]
        );
        assert_eq!(hit(&mut read_through, b"a", 10).as_deref(), Some("99: 1, Cache { ttl: 1000 }"));
        assert_eq!(hit(&mut read_through, b"a", 1009).as_deref(), Some("99: 1, Cache { ttl: 1 }"));
        fetch(&mut read_through, b"a", 1, 1010);
    }

    #[test]
    fn missing_keys_and_failures_are_not_stored_and_the_empty_string_is() {
        let mut read_through = ReadThrough::new(LIMITS, 1000, 500);
        for (result, text) in [
            (Ok(None), "missing"),
            (Err(Failure::Unavailable), "Unavailable"),
            (Err(Failure::WrongType), "WrongType"),
            (Err(Failure::Redis("ERR no".into())), "Redis(\"ERR no\")"),
        ] {
            let job = fetch(&mut read_through, b"a", 1, 0);
            let expected = format!("1: {text}, Redis {{ collapsed: false, stored: None }}");
            assert_eq!(complete(&mut read_through, &job, result, 0), [expected]);
        }
        let job = fetch(&mut read_through, b"a", 1, 0);
        complete(&mut read_through, &job, Ok(Some("")), 0);
        assert_eq!(hit(&mut read_through, b"a", 0).as_deref(), Some("99: , Cache { ttl: 1000 }"));
    }

    #[test]
    fn who_waits_too_long_is_told_and_the_value_is_stored_when_it_comes() {
        let mut read_through = ReadThrough::new(LIMITS, 1000, 500);
        let job = fetch(&mut read_through, b"a", 1, 0);
        assert_eq!(read_through.next_deadline(), Some(500));
        let mut answers = Vec::new();
        assert!(!read_through.tick(499, 10, |request_id, reply| answers.push(describe(request_id, reply))));
        assert!(answers.is_empty());
        read_through.tick(500, 10, |request_id, reply| answers.push(describe(request_id, reply)));
        assert_eq!(answers, ["1: Timeout, Redis { collapsed: false, stored: None }"]);
        assert!(complete(&mut read_through, &job, Ok(Some("late")), 600).is_empty(), "answered twice");
        assert_eq!(hit(&mut read_through, b"a", 600).as_deref(), Some("99: late, Cache { ttl: 1000 }"));
    }

    #[test]
    fn a_tick_does_bounded_work_and_says_when_there_is_more() {
        let mut read_through = ReadThrough::new(Limits { entries: 100, ..LIMITS }, 1000, 500);
        for number in 0..100u8 {
            let job = fetch(&mut read_through, &[number], 1, 0);
            complete(&mut read_through, &job, Ok(Some("1")), 0);
        }
        for remaining in (0..10).rev() {
            assert_eq!(read_through.cache.len(), 10 * (remaining + 1));
            read_through.tick(1000, 10, |_, _| panic!("nobody waits"));
        }
        assert!(!read_through.tick(1000, 10, |_, _| panic!("nobody waits")));
        assert_eq!(read_through.next_deadline(), None);
    }

    #[test]
    fn a_long_value_is_shared_by_the_cache_and_all_who_wait() {
        let mut read_through = ReadThrough::new(LIMITS, 1000, 500);
        let job = fetch(&mut read_through, b"a", 1, 0);
        read_through.get(b"a", true, waiter(2), 0);
        let mut addresses = Vec::new();
        let value = Value::new(vec![b'x'; SHARED_VALUE_BYTES + 1]);
        let result = Ok(Some(FetchedValue { value, ttl: None }));
        read_through.complete(Completion { fetch_id: job.fetch_id, result }, 0, |_, reply| match reply.outcome {
            KeyResult::Value(Payload::Shared(value)) => addresses.push(Arc::as_ptr(value)),
            other => panic!("{other:?}"),
        });
        let Lookup::Reply(Reply { outcome: KeyResult::Value(Payload::Shared(value)), .. }) =
            read_through.get(b"a", true, waiter(3), 0)
        else {
            panic!("not shared")
        };
        assert_eq!(addresses, [Arc::as_ptr(value); 2]);
    }

    /// Read before it was changed, delivered after the change was heard of: this is what would stay for ever.
    #[test]
    fn a_fetch_that_a_change_has_overtaken_answers_who_asked_before_and_is_not_stored() {
        for change in [Invalidation::Key(b"a".to_vec()), Invalidation::All, Invalidation::TrackingLost] {
            let mut read_through = ReadThrough::new(LIMITS, 1000, 500);
            let old = fetch(&mut read_through, b"a", 1, 0);
            read_through.get(b"a", true, waiter(2), 1);
            read_through.invalidate(&change, 2);
            let new = fetch(&mut read_through, b"a", 3, 3);
            assert_eq!(
                complete(&mut read_through, &old, Ok(Some("old")), 4),
                ["1: old, Redis { collapsed: false, stored: None }", "2: old, Redis { collapsed: true, stored: None }"],
                "{change:?}"
            );
            assert!(
                matches!(read_through.get(b"a", true, waiter(4), 5), Lookup::Wait),
                "the old value is in the cache: {change:?}"
            );
            assert_eq!(complete(&mut read_through, &new, Ok(Some("new")), 6).len(), 2);
            assert_eq!(hit(&mut read_through, b"a", 6).as_deref(), Some("99: new, Cache { ttl: 1000 }"));
            read_through.invalidate(&change, 7);
            assert_eq!(hit(&mut read_through, b"a", 7), None, "{change:?}");
        }
    }

    #[test]
    fn a_change_of_another_key_changes_nothing() {
        let mut read_through = ReadThrough::new(LIMITS, 1000, 500);
        let job = fetch(&mut read_through, b"a", 1, 0);
        read_through.invalidate(&Invalidation::Key(b"b".to_vec()), 0);
        complete(&mut read_through, &job, Ok(Some("1")), 1);
        read_through.invalidate(&Invalidation::Key(b"b".to_vec()), 1);
        assert_eq!(hit(&mut read_through, b"a", 1).as_deref(), Some("99: 1, Cache { ttl: 1000 }"));
    }

    #[test]
    fn an_entry_goes_when_redis_lets_it_expire_counted_from_before_the_question() {
        let mut read_through = ReadThrough::new(LIMITS, 1000, 500);
        let job = fetch(&mut read_through, b"a", 1, 100);
        let answers = land(&mut read_through, &job, Ok(Some(fetched("1", Some(300)))), 150);
        assert_eq!(answers, ["1: 1, Redis { collapsed: false, stored: Some(250) }"]);
        assert!(hit(&mut read_through, b"a", 399).is_some());
        let job = fetch(&mut read_through, b"a", 1, 400);
        let answers = land(&mut read_through, &job, Ok(Some(fetched("2", Some(50)))), 450);
        assert_eq!(answers, ["1: 2, Redis { collapsed: false, stored: None }"], "it had expired on its way");
        let job = fetch(&mut read_through, b"a", 1, 450);
        let answers = land(&mut read_through, &job, Ok(Some(fetched("3", Some(5000)))), 460);
        assert_eq!(answers, ["1: 3, Redis { collapsed: false, stored: Some(1000) }"]);
    }

    /// A proxy that keeps what has expired for 600 ms, with "a" expired since 1000 and kept until 1600.
    fn with_stale(change: Option<Invalidation>) -> ReadThrough {
        let mut read_through = ReadThrough::new(Limits { stale: 600, ..LIMITS }, 1000, 500);
        let job = fetch(&mut read_through, b"a", 1, 0);
        complete(&mut read_through, &job, Ok(Some("old")), 0);
        if let Some(change) = change {
            read_through.invalidate(&change, 1000);
        }
        read_through.tick(1000, 10, |_, _| panic!("nobody waits"));
        read_through
    }

    #[test]
    fn what_has_expired_is_served_while_redis_is_away_and_only_then() {
        for (failure, text) in [
            (Failure::Unavailable, "old, Stale { expired_for: 200, outage: Unreachable }"),
            (Failure::Timeout, "old, Stale { expired_for: 200, outage: TimedOut }"),
            (Failure::Refused("NOAUTH".into()), "old, Stale { expired_for: 200, outage: Unreachable }"),
            (Failure::NotReady("LOADING".into()), "old, Stale { expired_for: 200, outage: NotReady }"),
            (Failure::QueueFull, "QueueFull, Redis { collapsed: false, stored: None }"),
            (Failure::Redis("ERR".into()), "Redis(\"ERR\"), Redis { collapsed: false, stored: None }"),
        ] {
            // Whether it expired by itself or with everything else when changes were not heard of any more.
            for change in [None, Some(Invalidation::TrackingLost)] {
                let mut read_through = with_stale(change);
                let job = fetch(&mut read_through, b"a", 1, 1100);
                assert_eq!(complete(&mut read_through, &job, Err(failure.clone()), 1200), [format!("1: {text}")]);
                let job = fetch(&mut read_through, b"a", 1, 1300);
                assert_eq!(complete(&mut read_through, &job, Ok(Some("new")), 1300).len(), 1);
                assert_eq!(hit(&mut read_through, b"a", 1300).as_deref(), Some("99: new, Cache { ttl: 1000 }"));
            }
        }
        let mut read_through = with_stale(None);
        let job = fetch(&mut read_through, b"a", 1, 1050);
        let mut answers = Vec::new();
        read_through.tick(1599, 10, |request_id, reply| answers.push(describe(request_id, reply)));
        assert_eq!(answers, ["1: old, Stale { expired_for: 599, outage: TimedOut }"]);
        assert!(complete(&mut read_through, &job, Err(Failure::Timeout), 1600).is_empty());
        let job = fetch(&mut read_through, b"a", 1, 1600);
        assert!(
            complete(&mut read_through, &job, Err(Failure::Timeout), 1600)[0].contains("Timeout"),
            "kept for too long"
        );
    }

    #[test]
    fn what_has_changed_or_is_gone_is_never_served_stale() {
        let gone: [fn(&mut ReadThrough); 5] = [
            |read_through| read_through.invalidate(&Invalidation::Key(b"a".to_vec()), 1000),
            |read_through| read_through.invalidate(&Invalidation::All, 1000),
            |read_through| {
                let job = fetch(read_through, b"a", 1, 1000);
                complete(read_through, &job, Ok(None), 1000);
            },
            |read_through| {
                let job = fetch(read_through, b"a", 1, 1000);
                complete(read_through, &job, Err(Failure::TooLong), 1000);
            },
            |read_through| {
                let job = fetch(read_through, b"a", 1, 1000);
                land(read_through, &job, Ok(Some(fetched("short-lived", Some(0)))), 1000);
            },
        ];
        for (number, go) in gone.iter().enumerate() {
            let mut read_through = with_stale(None);
            go(&mut read_through);
            let job = fetch(&mut read_through, b"a", 1, 1100);
            let answers = complete(&mut read_through, &job, Err(Failure::Unavailable), 1100);
            assert!(answers[0].contains("Unavailable"), "{number}: {answers:?}");
        }
    }

    #[test]
    fn nothing_is_kept_beyond_what_redis_gave_it() {
        // Of the 300 ms that are left at least half are used.
        let mut read_through = ReadThrough::new(Limits { stale: 1000, ..LIMITS }, 1000, 500);
        let job = fetch(&mut read_through, b"a", 1, 0);
        land(&mut read_through, &job, Ok(Some(fetched("old", Some(1300)))), 0);
        assert_eq!(hit(&mut read_through, b"a", 999).as_deref(), Some("99: old, Cache { ttl: 1 }"));
        assert_eq!(read_through.cache.get_allow_stale(b"a", 1150).map(|kept| kept.expired_for), Some(150));
        assert!(read_through.cache.get_allow_stale(b"a", 1300).is_none());
    }

    /// Who asked before a change, and whose fetch fails after it, gets what others have fetched since.
    #[test]
    fn a_fetch_that_fails_is_answered_from_the_cache_where_that_knows_better() {
        let mut read_through = ReadThrough::new(LIMITS, 1000, 500);
        let old = fetch(&mut read_through, b"a", 1, 0);
        read_through.invalidate(&Invalidation::Key(b"a".to_vec()), 1);
        let new = fetch(&mut read_through, b"a", 2, 2);
        complete(&mut read_through, &new, Ok(Some("new")), 3);
        let answers = complete(&mut read_through, &old, Err(Failure::Timeout), 4);
        assert_eq!(answers, ["1: new, Cache { ttl: 999 }"]);
    }

    #[test]
    fn what_happens_is_counted() {
        let mut read_through = ReadThrough::new(LIMITS, 1000, 500);
        for key in [&b"a"[..], b"b", b"c", b"d"] {
            let job = fetch(&mut read_through, key, 1, 0);
            assert!(matches!(read_through.get(key, true, waiter(2), 0), Lookup::Wait));
            complete(&mut read_through, &job, Ok(Some("value")), 0);
        }
        assert!(hit(&mut read_through, b"d", 0).is_some());
        read_through.invalidate(&Invalidation::Key(b"d".to_vec()), 0);
        read_through.invalidate(&Invalidation::Key(b"d".to_vec()), 0);
        let mut metrics = WorkerMetrics::default();
        read_through.export_metrics(&mut metrics);
        let expected = WorkerMetrics {
            hits: 1,
            misses: 8,
            collapsed: 4,
            evicted: 1,
            entries: 2,
            bytes: 12,
            invalidated: 1,
            ..WorkerMetrics::default()
        };
        assert_eq!(metrics, expected);
        read_through.tick(1000, 1, |_, _| ());
        // The sweep has removed one, asking for it the other.
        let jobs = [&b"b"[..], b"c"].map(|key| fetch(&mut read_through, key, 1, 1000));
        read_through.export_metrics(&mut metrics);
        assert_eq!((metrics.expired, metrics.entries, metrics.inflight_keys, metrics.flushes), (2, 0, 2, 0));
        complete(&mut read_through, &jobs[0], Ok(Some("value")), 1000);
        read_through.invalidate(&Invalidation::All, 1000);
        read_through.export_metrics(&mut metrics);
        assert_eq!((metrics.invalidated, metrics.entries, metrics.inflight_keys, metrics.flushes), (2, 0, 1, 1));
    }

    /// What a change has overtaken knows less than the cache: that the key was not there then takes nothing out of it.
    #[test]
    fn a_fetch_that_was_overtaken_takes_nothing_out_of_the_cache() {
        for result in [Ok(None), Err(Failure::WrongType)] {
            let mut read_through = ReadThrough::new(LIMITS, 1000, 500);
            let old = fetch(&mut read_through, b"a", 1, 0);
            read_through.invalidate(&Invalidation::Key(b"a".to_vec()), 1);
            let new = fetch(&mut read_through, b"a", 2, 2);
            complete(&mut read_through, &new, Ok(Some("new")), 3);
            complete(&mut read_through, &old, result, 4);
            assert!(hit(&mut read_through, b"a", 4).is_some());
        }
    }
}
