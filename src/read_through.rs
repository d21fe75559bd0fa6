//! Read-through logic: a request becomes a hit, a wait or a fetch; a completion becomes a cache
//! entry and replies.
//!
//! The logic performs no I/O and reads no clock. A [`RequestId`] identifies a client, times are
//! arguments, and jobs are return values. So unit tests, the simulation and the fuzz targets drive
//! it step by step.

use crate::cache::{Cache, Limits};
use crate::inflight::{FinishedFetch, Inflight, Join, Waiter};
use crate::metrics::WorkerMetrics;
use crate::types::{Completion, Failure, FetchedValue, Invalidation, Job, KeyResult, Millis, Reply, RequestId, Source};
use crate::value::{Payload, SHARED_VALUE_BYTES, Value};
use std::sync::Arc;

/// Maximum length of a fetched value that is copied for each waiter. Waiters share a longer one: a
/// client may have a hundred replies queued behind a slow one, and escaping may need six bytes for
/// one.
const MAX_COPIED_BYTES: usize = 1024;

/// Result of a lookup.
#[derive(Debug)]
pub enum Lookup<'a> {
    /// Hit: the reply.
    Reply(Reply<'a>),
    /// Miss: the request joined a fetch in flight.
    Wait,
    /// Miss: the request started a fetch. The caller must submit this job. If the backend does not
    /// accept it, the caller must pass its failure to [`ReadThrough::complete`].
    Fetch(Job),
}

/// Cache and fetches in flight of one worker.
#[derive(Debug)]
pub struct ReadThrough {
    cache: Cache,
    inflight: Inflight,
    ttl: Millis,
    wait_timeout: Millis,
    /// True while the tracking connection receives every change in Redis.
    tracked: bool,
    counters: Counters,
}

/// Events since the start, under their names in [`WorkerMetrics`].
#[derive(Debug, Default)]
struct Counters {
    hits: u64,
    misses: u64,
    collapsed: u64,
    invalidated: u64,
    flushes: u64,
}

impl ReadThrough {
    /// Creates an empty cache with these limits. Entries are fresh for `ttl` at most, and requests
    /// wait for Redis for `wait_timeout` at most.
    pub fn new(limits: Limits, ttl: Millis, wait_timeout: Millis) -> ReadThrough {
        let (cache, inflight, counters) = (Cache::new(limits), Inflight::new(), Counters::default());
        ReadThrough { cache, inflight, ttl, wait_timeout, tracked: false, counters }
    }

    /// Returns the cache, for tests and benchmarks.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Looks up a key. A miss joins or starts a fetch, and `request_id` gets its reply. With
    /// `touch` a hit makes its entry the most recently used.
    pub fn get(&mut self, key: &[u8], touch: bool, request_id: RequestId, now: Millis) -> Lookup<'_> {
        let found = if touch { self.cache.get(key, now) } else { self.cache.peek(key, now) };
        if let Some(hit) = found {
            self.counters.hits += 1;
            let source = Source::Cache { ttl: hit.ttl };
            return Lookup::Reply(Reply { result: KeyResult::Value(hit.payload), source, tracked: self.tracked });
        }
        self.counters.misses += 1;
        match self.inflight.join_or_start(key, request_id, now, now + self.wait_timeout) {
            Join::Joined => {
                self.counters.collapsed += 1;
                Lookup::Wait
            }
            Join::Started(fetch_id, key) => Lookup::Fetch(Job { fetch_id, key }),
        }
    }

    /// Returns the time until the cache entry of `key` expires. Does not read Redis and does not
    /// change the LRU order.
    pub fn remaining_ttl(&mut self, key: &[u8], now: Millis) -> Option<Millis> {
        self.cache.peek(key, now).map(|hit| hit.ttl)
    }

    /// Applies the result of a job: caches a value and passes a reply for each waiter to `deliver`.
    /// Caching does not depend on whether the waiters are still connected.
    pub fn complete(&mut self, completion: Completion, now: Millis, mut deliver: impl FnMut(RequestId, &Reply<'_>)) {
        let Some(finished) = self.inflight.finish(completion.fetch_id) else {
            log::error!("a fetch completed twice: second result dropped; please report this");
            return;
        };
        let waiters = &finished.waiters;
        match completion.result {
            Ok(Some(FetchedValue { value, ttl })) => {
                let value = Arc::new(value);
                let stored = self.store(&finished, &value, ttl, now);
                self.reply_all(waiters, KeyResult::Value(payload_of(MAX_COPIED_BYTES, &value)), stored, &mut deliver);
            }
            Ok(None) => {
                self.remove_missing(&finished);
                self.reply_all(waiters, KeyResult::Missing, None, &mut deliver);
            }
            Err(failure) => {
                if failure.invalidates_entry() {
                    self.remove_missing(&finished);
                }
                self.fail_or_serve_stale(&finished.key, waiters, &failure, now, &mut deliver);
            }
        }
    }

    /// Caches a fetched value, unless its fetch is detached or the value has expired since. Returns
    /// the time until the new entry expires.
    fn store(
        &mut self,
        finished: &FinishedFetch,
        value: &Arc<Value>,
        redis_ttl: Option<Millis>,
        now: Millis,
    ) -> Option<Millis> {
        if finished.is_detached {
            return None;
        }
        // Counted from before Redis was asked: the lifetime went on while its reply travelled.
        let redis_expiry = redis_ttl.map_or(Millis::MAX, |ttl| finished.started_at + ttl);
        let deadline = redis_expiry.min(now + self.ttl);
        if deadline <= now {
            self.remove_missing(finished);
            return None;
        }
        let stored = self.cache.insert(&finished.key, payload_of(SHARED_VALUE_BYTES, value), deadline, redis_expiry);
        stored.then_some(deadline - now)
    }

    /// Removes the entry of a key for which Redis has nothing to cache, so that it is not served
    /// stale during an outage. A detached fetch removes nothing: the entry may be newer than its
    /// result.
    fn remove_missing(&mut self, finished: &FinishedFetch) {
        if !finished.is_detached {
            self.cache.remove(&finished.key);
        }
    }

    /// Replies to waiters with a failure. During an outage replies with the cached value instead,
    /// fresh or expired, if there is one.
    fn fail_or_serve_stale(
        &mut self,
        key: &[u8],
        waiters: &[Waiter],
        failure: &Failure,
        now: Millis,
        deliver: &mut impl FnMut(RequestId, &Reply<'_>),
    ) {
        let found = failure.outage().and_then(|outage| Some((outage, self.cache.get_allow_stale(key, now)?)));
        let Some((outage, cached)) = found else {
            return self.reply_all(waiters, KeyResult::Failed(failure), None, deliver);
        };
        let source = match cached.ttl {
            0 => Source::Stale { expired_for: cached.expired_for, outage },
            // A later fetch has cached a fresh value.
            ttl => Source::Cache { ttl },
        };
        let reply = Reply { result: KeyResult::Value(cached.payload), source, tracked: self.tracked };
        waiters.iter().for_each(|waiter| deliver(waiter.request_id, &reply));
    }

    /// Replies to all waiters with the result of their fetch.
    fn reply_all(
        &self,
        waiters: &[Waiter],
        result: KeyResult<'_>,
        stored: Option<Millis>,
        deliver: &mut impl FnMut(RequestId, &Reply<'_>),
    ) {
        for waiter in waiters {
            let source = Source::Redis { collapsed: waiter.collapsed, stored };
            deliver(waiter.request_id, &Reply { result, source, tracked: self.tracked });
        }
    }

    /// Applies an invalidation: removes the entries that it covers and detaches their fetches.
    /// Later requests get a newer value.
    pub fn invalidate(&mut self, invalidation: &Invalidation, now: Millis) {
        match invalidation {
            Invalidation::Key(key) => {
                self.counters.invalidated += u64::from(self.cache.remove(key));
                self.inflight.detach(key);
            }
            Invalidation::All => {
                self.counters.flushes += 1;
                self.counters.invalidated += self.cache.len() as u64;
                self.cache.clear();
                self.inflight.detach_all();
                self.tracked = true;
            }
            // Cached entries relied on invalidations. Later ones rely on their TTL alone.
            Invalidation::TrackingLost => {
                self.counters.flushes += 1;
                self.cache.expire_all(now);
                self.inflight.detach_all();
                self.tracked = false;
            }
        }
    }

    /// Replies to timed-out waiters of up to `budget` fetches, and removes up to `budget` expired
    /// entries. Returns true if more may be due.
    pub fn tick(&mut self, now: Millis, budget: usize, mut deliver: impl FnMut(RequestId, &Reply<'_>)) -> bool {
        let mut timed_out = 0;
        while timed_out < budget
            && let Some((key, waiters)) = self.inflight.take_timed_out(now)
        {
            self.fail_or_serve_stale(&key, &waiters, &Failure::Timeout, now, &mut deliver);
            timed_out += 1;
        }
        let more_expired = self.cache.sweep(now, budget);
        timed_out == budget || more_expired
    }

    /// Writes counters and gauges into the metrics of the worker.
    pub fn export_metrics(&self, metrics: &mut WorkerMetrics) {
        let Counters { hits, misses, collapsed, invalidated, flushes } = self.counters;
        let (entries, expired, evicted) = (self.cache.len(), self.cache.expired(), self.cache.evicted());
        (metrics.bytes, metrics.inflight_keys) = (self.cache.bytes(), self.inflight.count());
        (metrics.hits, metrics.misses, metrics.collapsed) = (hits, misses, collapsed);
        (metrics.entries, metrics.expired, metrics.evicted) = (entries, expired, evicted);
        (metrics.invalidated, metrics.flushes) = (invalidated, flushes);
    }

    /// Checks the cache and the fetches in flight. Walks all of both.
    #[cfg(any(test, debug_assertions, feature = "validate"))]
    pub fn validate(&self) -> Result<(), String> {
        self.cache.validate()?;
        self.inflight.validate()
    }

    /// Returns the time at which [`ReadThrough::tick`] is due next.
    pub fn next_deadline(&self) -> Option<Millis> {
        match (self.cache.next_deadline(), self.inflight.next_deadline()) {
            (Some(expiry), Some(timeout)) => Some(expiry.min(timeout)),
            (expiry, timeout) => expiry.or(timeout),
        }
    }
}

/// Returns a payload to copy for a value of at most `max_copied` bytes, otherwise to share.
fn payload_of(max_copied: usize, value: &Arc<Value>) -> Payload<'_> {
    match value.bytes.len() {
        length if length > max_copied => Payload::Shared(value),
        _ => Payload::Inline { bytes: &value.bytes, form: value.form },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { entries: 3, bytes: usize::MAX, stale: 0 };

    fn request_id(slot: usize) -> RequestId {
        RequestId { slot, connection_id: slot as u64, sequence: 0, part: 0 }
    }

    /// Looks up a key that must start a fetch. Returns the job.
    fn fetch(read_through: &mut ReadThrough, key: &[u8], slot: usize, now: Millis) -> Job {
        match read_through.get(key, true, request_id(slot), now) {
            Lookup::Fetch(job) => job,
            other => panic!("a fetch expected, not {other:?}"),
        }
    }

    /// Completes a job with a text, without a lifetime in Redis. Returns the replies.
    fn complete(
        read_through: &mut ReadThrough,
        job: &Job,
        result: Result<Option<&str>, Failure>,
        now: Millis,
    ) -> Vec<String> {
        let result = result.map(|value| value.map(|value| fetched(value, None)));
        complete_with(read_through, job, result, now)
    }

    fn fetched(value: &str, ttl: Option<Millis>) -> FetchedValue {
        FetchedValue { value: Value::new(value.into()), ttl }
    }

    /// Completes a job, checks all links, and returns the replies.
    fn complete_with(
        read_through: &mut ReadThrough,
        job: &Job,
        result: Result<Option<FetchedValue>, Failure>,
        now: Millis,
    ) -> Vec<String> {
        let mut replies = Vec::new();
        read_through.complete(Completion { fetch_id: job.fetch_id, result }, now, |request_id, reply| {
            replies.push(describe(request_id, reply));
        });
        assert_eq!(read_through.validate(), Ok(()));
        replies
    }

    /// Returns slot, result and source of a reply.
    fn describe(request_id: RequestId, reply: &Reply<'_>) -> String {
        let result = match reply.result {
            KeyResult::Value(Payload::Inline { bytes, .. }) => String::from_utf8_lossy(bytes).into_owned(),
            KeyResult::Value(Payload::Shared(value)) => format!("{} shared", value.bytes.len()),
            KeyResult::Missing => "missing".into(),
            KeyResult::Failed(failure) => format!("{failure:?}"),
        };
        format!("{}: {result}, {:?}", request_id.slot, reply.source)
    }

    /// Returns the reply of a hit, `None` for a miss.
    fn hit(read_through: &mut ReadThrough, key: &[u8], now: Millis) -> Option<String> {
        match read_through.get(key, true, request_id(99), now) {
            Lookup::Reply(reply) => Some(describe(request_id(99), &reply)),
            _ => None,
        }
    }

    /// A miss starts one fetch, and its value is a hit until its deadline.
    #[test]
    fn miss_starts_one_fetch_then_hits() {
        let mut read_through = ReadThrough::new(LIMITS, 1000, 500);
        let job = fetch(&mut read_through, b"a", 1, 0);
        assert!(matches!(read_through.get(b"a", true, request_id(2), 5), Lookup::Wait));
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

    /// Missing keys and failures are not cached; the empty string is.
    #[test]
    fn missing_key_and_failure_not_cached() {
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

    /// A waiter gets a timeout at its deadline, and the late value is cached without another reply.
    #[test]
    fn timed_out_fetch_caches_late_value() {
        let mut read_through = ReadThrough::new(LIMITS, 1000, 500);
        let job = fetch(&mut read_through, b"a", 1, 0);
        assert_eq!(read_through.next_deadline(), Some(500));
        let mut replies = Vec::new();
        assert!(!read_through.tick(499, 10, |request_id, reply| replies.push(describe(request_id, reply))));
        assert!(replies.is_empty());
        read_through.tick(500, 10, |request_id, reply| replies.push(describe(request_id, reply)));
        assert_eq!(replies, ["1: Timeout, Redis { collapsed: false, stored: None }"]);
        assert!(complete(&mut read_through, &job, Ok(Some("late")), 600).is_empty(), "a waiter got two replies");
        assert_eq!(hit(&mut read_through, b"a", 600).as_deref(), Some("99: late, Cache { ttl: 1000 }"));
    }

    /// A tick removes at most its budget of expired entries, and reports more.
    #[test]
    fn tick_sweeps_only_its_budget() {
        let mut read_through = ReadThrough::new(Limits { entries: 100, ..LIMITS }, 1000, 500);
        for number in 0..100u8 {
            let job = fetch(&mut read_through, &[number], 1, 0);
            complete(&mut read_through, &job, Ok(Some("1")), 0);
        }
        for left in (0..10).rev() {
            assert_eq!(read_through.cache.len(), 10 * (left + 1));
            read_through.tick(1000, 10, |_, _| panic!("a reply without a waiter"));
        }
        assert!(!read_through.tick(1000, 10, |_, _| panic!("a reply without a waiter")));
        assert_eq!(read_through.next_deadline(), None);
    }

    /// The cache and all waiters hold the same copy of a long value.
    #[test]
    fn long_value_is_shared_by_waiters() {
        let mut read_through = ReadThrough::new(LIMITS, 1000, 500);
        let job = fetch(&mut read_through, b"a", 1, 0);
        read_through.get(b"a", true, request_id(2), 0);
        let mut addresses = Vec::new();
        let value = Value::new(vec![b'x'; SHARED_VALUE_BYTES + 1]);
        let result = Ok(Some(FetchedValue { value, ttl: None }));
        read_through.complete(Completion { fetch_id: job.fetch_id, result }, 0, |_, reply| match reply.result {
            KeyResult::Value(Payload::Shared(value)) => addresses.push(Arc::as_ptr(value)),
            other => panic!("{other:?}"),
        });
        let Lookup::Reply(Reply { result: KeyResult::Value(Payload::Shared(value)), .. }) =
            read_through.get(b"a", true, request_id(3), 0)
        else {
            panic!("a shared value expected")
        };
        assert_eq!(addresses, [Arc::as_ptr(value); 2]);
    }

    /// A value that an invalidation overtook goes to current waiters and is not cached.
    #[test]
    fn detached_fetch_replies_without_caching() {
        for invalidation in [Invalidation::Key(b"a".to_vec()), Invalidation::All, Invalidation::TrackingLost] {
            let mut read_through = ReadThrough::new(LIMITS, 1000, 500);
            let old = fetch(&mut read_through, b"a", 1, 0);
            read_through.get(b"a", true, request_id(2), 1);
            read_through.invalidate(&invalidation, 2);
            let new = fetch(&mut read_through, b"a", 3, 3);
            assert_eq!(
                complete(&mut read_through, &old, Ok(Some("old")), 4),
                ["1: old, Redis { collapsed: false, stored: None }", "2: old, Redis { collapsed: true, stored: None }"],
                "{invalidation:?}"
            );
            assert!(
                matches!(read_through.get(b"a", true, request_id(4), 5), Lookup::Wait),
                "the old value was cached: {invalidation:?}"
            );
            assert_eq!(complete(&mut read_through, &new, Ok(Some("new")), 6).len(), 2);
            assert_eq!(hit(&mut read_through, b"a", 6).as_deref(), Some("99: new, Cache { ttl: 1000 }"));
            read_through.invalidate(&invalidation, 7);
            assert_eq!(hit(&mut read_through, b"a", 7), None, "{invalidation:?}");
        }
    }

    /// An invalidation of another key affects neither the fetch nor the entry.
    #[test]
    fn invalidation_spares_other_keys() {
        let mut read_through = ReadThrough::new(LIMITS, 1000, 500);
        let job = fetch(&mut read_through, b"a", 1, 0);
        read_through.invalidate(&Invalidation::Key(b"b".to_vec()), 0);
        complete(&mut read_through, &job, Ok(Some("1")), 1);
        read_through.invalidate(&Invalidation::Key(b"b".to_vec()), 1);
        assert_eq!(hit(&mut read_through, b"a", 1).as_deref(), Some("99: 1, Cache { ttl: 1000 }"));
    }

    /// An entry expires with its key in Redis, counted from before Redis was asked.
    #[test]
    fn entry_expires_with_redis_key() {
        let mut read_through = ReadThrough::new(LIMITS, 1000, 500);
        let job = fetch(&mut read_through, b"a", 1, 100);
        let replies = complete_with(&mut read_through, &job, Ok(Some(fetched("1", Some(300)))), 150);
        assert_eq!(replies, ["1: 1, Redis { collapsed: false, stored: Some(250) }"]);
        assert!(hit(&mut read_through, b"a", 399).is_some());
        let job = fetch(&mut read_through, b"a", 1, 400);
        let replies = complete_with(&mut read_through, &job, Ok(Some(fetched("2", Some(50)))), 450);
        assert_eq!(replies, ["1: 2, Redis { collapsed: false, stored: None }"], "an expired value was cached");
        let job = fetch(&mut read_through, b"a", 1, 450);
        let replies = complete_with(&mut read_through, &job, Ok(Some(fetched("3", Some(5000)))), 460);
        assert_eq!(replies, ["1: 3, Redis { collapsed: false, stored: Some(1000) }"]);
    }

    /// Creates a cache with a grace of 600 ms. Its entry "a" expires at 1000 and is retained until
    /// 1600.
    fn with_stale(invalidation: Option<Invalidation>) -> ReadThrough {
        let mut read_through = ReadThrough::new(Limits { stale: 600, ..LIMITS }, 1000, 500);
        let job = fetch(&mut read_through, b"a", 1, 0);
        complete(&mut read_through, &job, Ok(Some("old")), 0);
        if let Some(invalidation) = invalidation {
            read_through.invalidate(&invalidation, 1000);
        }
        read_through.tick(1000, 10, |_, _| panic!("a reply without a waiter"));
        read_through
    }

    /// An expired entry is served stale during an outage, and only then.
    #[test]
    fn stale_value_served_only_during_outage() {
        for (failure, text) in [
            (Failure::Unavailable, "old, Stale { expired_for: 200, outage: Unreachable }"),
            (Failure::Timeout, "old, Stale { expired_for: 200, outage: TimedOut }"),
            (Failure::Refused("NOAUTH".into()), "old, Stale { expired_for: 200, outage: Unreachable }"),
            (Failure::NotReady("LOADING".into()), "old, Stale { expired_for: 200, outage: NotReady }"),
            (Failure::QueueFull, "QueueFull, Redis { collapsed: false, stored: None }"),
            (Failure::Redis("ERR".into()), "Redis(\"ERR\"), Redis { collapsed: false, stored: None }"),
        ] {
            // The entry expires by its TTL, or with all others when tracking is lost.
            for invalidation in [None, Some(Invalidation::TrackingLost)] {
                let mut read_through = with_stale(invalidation);
                let job = fetch(&mut read_through, b"a", 1, 1100);
                assert_eq!(complete(&mut read_through, &job, Err(failure.clone()), 1200), [format!("1: {text}")]);
                let job = fetch(&mut read_through, b"a", 1, 1300);
                assert_eq!(complete(&mut read_through, &job, Ok(Some("new")), 1300).len(), 1);
                assert_eq!(hit(&mut read_through, b"a", 1300).as_deref(), Some("99: new, Cache { ttl: 1000 }"));
            }
        }
        let mut read_through = with_stale(None);
        let job = fetch(&mut read_through, b"a", 1, 1050);
        let mut replies = Vec::new();
        read_through.tick(1599, 10, |request_id, reply| replies.push(describe(request_id, reply)));
        assert_eq!(replies, ["1: old, Stale { expired_for: 599, outage: TimedOut }"]);
        assert!(complete(&mut read_through, &job, Err(Failure::Timeout), 1600).is_empty());
        let job = fetch(&mut read_through, b"a", 1, 1600);
        assert!(
            complete(&mut read_through, &job, Err(Failure::Timeout), 1600)[0].contains("Timeout"),
            "retained for too long"
        );
    }

    /// An entry is not served stale after its key changed or disappeared in Redis.
    #[test]
    fn changed_key_is_never_served_stale() {
        let changes: [fn(&mut ReadThrough); 5] = [
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
                complete_with(read_through, &job, Ok(Some(fetched("short-lived", Some(0)))), 1000);
            },
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut read_through = with_stale(None);
            change(&mut read_through);
            let job = fetch(&mut read_through, b"a", 1, 1100);
            let replies = complete(&mut read_through, &job, Err(Failure::Unavailable), 1100);
            assert!(replies[0].contains("Unavailable"), "{number}: {replies:?}");
        }
    }

    /// An entry is not retained beyond its lifetime in Redis.
    #[test]
    fn retained_entry_ends_with_redis_lifetime() {
        // Redis allows 300 ms of grace. The entry gets the longest step within, which is at least
        // half.
        let mut read_through = ReadThrough::new(Limits { stale: 1000, ..LIMITS }, 1000, 500);
        let job = fetch(&mut read_through, b"a", 1, 0);
        complete_with(&mut read_through, &job, Ok(Some(fetched("old", Some(1300)))), 0);
        assert_eq!(hit(&mut read_through, b"a", 999).as_deref(), Some("99: old, Cache { ttl: 1 }"));
        assert_eq!(read_through.cache.get_allow_stale(b"a", 1150).map(|found| found.expired_for), Some(150));
        assert!(read_through.cache.get_allow_stale(b"a", 1300).is_none());
    }

    /// Waiters of a detached fetch that fails get the value of a later fetch.
    #[test]
    fn failed_detached_fetch_serves_newer_entry() {
        let mut read_through = ReadThrough::new(LIMITS, 1000, 500);
        let old = fetch(&mut read_through, b"a", 1, 0);
        read_through.invalidate(&Invalidation::Key(b"a".to_vec()), 1);
        let new = fetch(&mut read_through, b"a", 2, 2);
        complete(&mut read_through, &new, Ok(Some("new")), 3);
        let replies = complete(&mut read_through, &old, Err(Failure::Timeout), 4);
        assert_eq!(replies, ["1: new, Cache { ttl: 999 }"]);
    }

    /// Hits, misses, evictions, expirations and invalidations are counted.
    #[test]
    fn metrics_count_cache_events() {
        let mut read_through = ReadThrough::new(LIMITS, 1000, 500);
        for key in [&b"a"[..], b"b", b"c", b"d"] {
            let job = fetch(&mut read_through, key, 1, 0);
            assert!(matches!(read_through.get(key, true, request_id(2), 0), Lookup::Wait));
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
        // The sweep removed one entry, and a lookup the other.
        let jobs = [&b"b"[..], b"c"].map(|key| fetch(&mut read_through, key, 1, 1000));
        read_through.export_metrics(&mut metrics);
        assert_eq!((metrics.expired, metrics.entries, metrics.inflight_keys, metrics.flushes), (2, 0, 2, 0));
        complete(&mut read_through, &jobs[0], Ok(Some("value")), 1000);
        read_through.invalidate(&Invalidation::All, 1000);
        read_through.export_metrics(&mut metrics);
        assert_eq!((metrics.invalidated, metrics.entries, metrics.inflight_keys, metrics.flushes), (2, 0, 1, 1));
    }

    /// A detached fetch without a value does not remove a newer entry.
    #[test]
    fn detached_fetch_removes_no_entry() {
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
