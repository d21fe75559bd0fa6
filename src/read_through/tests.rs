//! Tests of the read-through logic without clients and Redis.

use super::*;

const LIMITS: Limits = Limits { entries: 3, bytes: usize::MAX, stale: 0 };

fn request_id(slot: usize) -> RequestId {
    RequestId { slot, connection_id: slot as u64, sequence: 0, part: 0 }
}

/// Looks up a key that must start a fetch. Returns the job.
fn fetch(read_through: &mut ReadThrough, key: &[u8], slot: usize, now: Millis) -> Job {
    match read_through.get(key, Access::NORMAL, request_id(slot), now) {
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
    read_through.complete(Completion { fetch_id: job.fetch_id, result, may_cache: true }, now, |request_id, reply| {
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
        KeyResult::NotCached => "not cached".into(),
    };
    format!("{}: {result}, {:?}", request_id.slot, reply.source)
}

/// Returns the reply of a hit, `None` for a miss.
fn hit(read_through: &mut ReadThrough, key: &[u8], now: Millis) -> Option<String> {
    match read_through.get(key, Access::NORMAL, request_id(99), now) {
        Lookup::Reply(reply) => Some(describe(request_id(99), &reply)),
        _ => None,
    }
}

/// A miss starts one fetch, and its value is a hit until its deadline.
#[test]
fn miss_starts_one_fetch_then_hits() {
    let mut read_through = ReadThrough::new(LIMITS, 1000, 500);
    let job = fetch(&mut read_through, b"a", 1, 0);
    assert!(matches!(read_through.get(b"a", Access::NORMAL, request_id(2), 5), Lookup::Wait));
    assert_eq!(
        complete(&mut read_through, &job, Ok(Some("1")), 10),
        ["1: 1, Redis { collapsed: false, stored: Some(1000) }", "2: 1, Redis { collapsed: true, stored: Some(1000) }",]
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
    read_through.get(b"a", Access::NORMAL, request_id(2), 0);
    let mut addresses = Vec::new();
    let value = Value::new(vec![b'x'; SHARED_VALUE_BYTES + 1]);
    let result = Ok(Some(FetchedValue { value, ttl: None }));
    read_through.complete(Completion { fetch_id: job.fetch_id, result, may_cache: true }, 0, |_, reply| {
        match reply.result {
            KeyResult::Value(Payload::Shared(value)) => addresses.push(Arc::as_ptr(value)),
            other => panic!("{other:?}"),
        }
    });
    let Lookup::Reply(Reply { result: KeyResult::Value(Payload::Shared(value)), .. }) =
        read_through.get(b"a", Access::NORMAL, request_id(3), 0)
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
        read_through.get(b"a", Access::NORMAL, request_id(2), 1);
        read_through.invalidate(&invalidation, 2);
        let new = fetch(&mut read_through, b"a", 3, 3);
        assert_eq!(
            complete(&mut read_through, &old, Ok(Some("old")), 4),
            ["1: old, Redis { collapsed: false, stored: None }", "2: old, Redis { collapsed: true, stored: None }"],
            "{invalidation:?}"
        );
        assert!(
            matches!(read_through.get(b"a", Access::NORMAL, request_id(4), 5), Lookup::Wait),
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
    let changes: [fn(&mut ReadThrough); 6] = [
        |read_through| read_through.invalidate(&Invalidation::Key(b"a".to_vec()), 1000),
        |read_through| read_through.invalidate(&Invalidation::All, 1000),
        |read_through| {
            let job = fetch(read_through, b"a", 1, 1000);
            let result = Ok(Some(fetched("not to be cached", None)));
            let completion = Completion { fetch_id: job.fetch_id, result, may_cache: false };
            read_through.complete(completion, 1000, |_, reply| {
                assert!(matches!(reply.source, Source::Redis { stored: None, .. }), "cached: {reply:?}");
            });
        },
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
    // Redis allows 300 ms of grace. The entry gets the longest step within, which is at least half.
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
        assert!(matches!(read_through.get(key, Access::NORMAL, request_id(2), 0), Lookup::Wait));
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
        early_evictions: 1,
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

/// An invalidation of all keys flushes, and changes nothing about tracking.
#[test]
fn flush_keeps_tracking_state() {
    let mut read_through = ReadThrough::new(LIMITS, 1000, 500);
    use Invalidation::{All, TrackingLost, TrackingStarted};
    for (invalidation, is_tracked) in
        [(All, false), (TrackingStarted, true), (All, true), (TrackingLost, false), (All, false)]
    {
        read_through.invalidate(&invalidation, 0);
        assert_eq!(read_through.tracked, is_tracked, "{invalidation:?}");
    }
}
