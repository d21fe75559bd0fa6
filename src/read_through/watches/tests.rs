//! Tests of watched keys through the read-through logic, with a scripted Redis.

use super::super::{Lookup, ReadThrough, WatchSettings, WatcherLimit};
use crate::cache::Limits;
use crate::types::{
    Access, Completion, Delivery, Failure, FetchedValue, Invalidation, Job, KeyResult, KeyState, Millis, RequestId,
};
use crate::value::Value;
use std::collections::{BTreeMap, BTreeSet};

const TTL: Millis = 1000;
const INTERVAL: Millis = 50;

/// Read-through logic with watchers, one in each slot. An event is the text of its value.
struct Fixture {
    read_through: ReadThrough,
    now: Millis,
    jobs: Vec<Job>,
    /// Watched keys by slot.
    ids: BTreeMap<usize, usize>,
    /// Slots whose client takes no event.
    behind: BTreeSet<usize>,
    /// Events since they were last taken.
    events: Vec<(usize, String)>,
    limit: WatcherLimit,
}

fn request_id(slot: usize) -> RequestId {
    RequestId { slot, connection_id: slot as u64, sequence: 0, part: 0 }
}

fn text_of(result: KeyResult<'_>) -> String {
    match result {
        KeyResult::Value(payload) => String::from_utf8_lossy(payload.bytes()).into_owned(),
        KeyResult::Missing => "gone".into(),
        KeyResult::Failed(failure) => format!("failed: {}", Failure::KINDS[failure.kind()]),
        KeyResult::NotCached => "not cached".into(),
    }
}

impl Fixture {
    fn new(entries: usize, tracked: bool) -> Fixture {
        let (limit, limits) = (WatcherLimit::new(1000), Limits { entries, bytes: usize::MAX, stale: 0 });
        let settings = WatchSettings { interval: INTERVAL, limit: limit.clone() };
        let mut read_through = ReadThrough::new(limits, TTL, 500).with_watch_settings(settings);
        if tracked {
            read_through.invalidate(&Invalidation::TrackingStarted, 0);
        }
        let (ids, behind, events) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        Fixture { read_through, now: 0, jobs: Vec::new(), ids, behind, events, limit }
    }

    fn watch(&mut self, slot: usize, key: &str) {
        assert!(self.read_through.reserve_watchers(1));
        let id = self.read_through.watch(key.as_bytes(), request_id(slot), None);
        self.ids.insert(slot, id);
        self.catch_up(slot);
    }

    fn unwatch(&mut self, slot: usize) {
        let id = self.ids.remove(&slot).expect("a watcher");
        self.read_through.unwatch([(id, request_id(slot))]);
        self.check();
    }

    fn catch_up(&mut self, slot: usize) {
        let Fixture { read_through, behind, events, .. } = self;
        read_through.catch_up((self.ids[&slot], request_id(slot)), self.now, &mut |id, event| {
            deliver(behind, events, id, event.reply.result)
        });
        self.check();
    }

    /// Runs a tick with this budget. Returns true if more is due.
    fn tick(&mut self, budget: usize) -> bool {
        let Fixture { read_through, jobs, behind, events, now, .. } = self;
        while read_through.tick(*now, 100, |_, _| {}) {}
        let has_more = read_through
            .run_watches(*now, budget, jobs, &mut |id, event| deliver(behind, events, id, event.reply.result));
        self.check();
        has_more
    }

    fn advance(&mut self, time: Millis) {
        self.now += time;
        while self.tick(100) {}
    }

    fn complete(&mut self, job: Job, result: Result<Option<FetchedValue>, Failure>) {
        let completion = Completion { fetch_id: job.fetch_id, result, may_cache: true };
        self.read_through.complete(completion, self.now, |_, _| {});
        while self.tick(100) {}
    }

    /// Completes the only read in flight with a value, or with none.
    fn answer(&mut self, value: Option<&str>) {
        assert_eq!(self.jobs.len(), 1, "reads in flight");
        let job = self.jobs.remove(0);
        self.complete(job, Ok(value.map(|text| fetched(text, None))));
    }

    fn change(&mut self, key: &str) {
        self.read_through.invalidate(&Invalidation::Key(key.into()), self.now);
        while self.tick(100) {}
    }

    fn take_events(&mut self) -> Vec<(usize, String)> {
        std::mem::take(&mut self.events)
    }

    fn check(&self) {
        assert_eq!(self.read_through.validate(), Ok(()));
    }
}

fn deliver(
    behind: &BTreeSet<usize>,
    events: &mut Vec<(usize, String)>,
    id: RequestId,
    result: KeyResult<'_>,
) -> Delivery {
    if behind.contains(&id.slot) {
        return Delivery::Behind;
    }
    events.push((id.slot, text_of(result)));
    Delivery::Taken
}

fn fetched(text: &str, ttl: Option<Millis>) -> FetchedValue {
    FetchedValue { value: Value::new(text.as_bytes().to_vec()), ttl }
}

fn events(expected: &[(usize, &str)]) -> Vec<(usize, String)> {
    expected.iter().map(|&(slot, text)| (slot, text.to_owned())).collect()
}

/// All watchers share one read for each change, and get no event for the same value.
#[test]
fn watchers_share_one_read() {
    let mut fixture = Fixture::new(10, true);
    (0..3).for_each(|slot| fixture.watch(slot, "a"));
    fixture.advance(0);
    fixture.answer(Some("1"));
    assert_eq!(fixture.take_events(), events(&[(0, "1"), (1, "1"), (2, "1")]));
    fixture.watch(3, "a");
    assert_eq!(fixture.take_events(), events(&[(3, "1")]), "the value is cached");
    fixture.advance(INTERVAL);
    fixture.change("a");
    fixture.answer(Some("1"));
    assert_eq!(fixture.take_events(), events(&[]), "an event without a change");
    fixture.advance(INTERVAL);
    fixture.change("a");
    fixture.answer(None);
    assert_eq!(fixture.take_events(), events(&[(0, "gone"), (1, "gone"), (2, "gone"), (3, "gone")]));
    assert!(fixture.jobs.is_empty());
}

/// A burst of changes is one read in each interval, and the last value arrives.
#[test]
fn burst_is_limited_by_interval() {
    let mut fixture = Fixture::new(10, true);
    fixture.watch(0, "a");
    fixture.advance(0);
    fixture.answer(Some("0"));
    let mut reads = 0;
    for number in 0..200 {
        fixture.advance(1);
        fixture.change("a");
        if !fixture.jobs.is_empty() {
            fixture.answer(Some(&number.to_string()));
            reads += 1;
        }
    }
    assert_eq!(reads, 200 / INTERVAL);
    fixture.advance(INTERVAL);
    fixture.answer(Some("last"));
    assert_eq!(fixture.take_events().last(), events(&[(0, "last")]).last());
    assert!(fixture.read_through.watches.counters().merged > 150);
}

/// Without tracking a key is read once in `CACHE_TTL`, or when Redis expires it.
#[test]
fn untracked_key_is_read_after_ttl() {
    let mut fixture = Fixture::new(10, false);
    fixture.watch(0, "a");
    fixture.watch(1, "a");
    fixture.advance(0);
    fixture.answer(Some("1"));
    fixture.advance(TTL - 1);
    assert!(fixture.jobs.is_empty());
    fixture.advance(1);
    let job = fixture.jobs.remove(0);
    fixture.complete(job, Ok(Some(fetched("2", Some(300)))));
    fixture.advance(299);
    assert!(fixture.jobs.is_empty());
    fixture.advance(1);
    fixture.answer(None);
    assert_eq!(fixture.take_events().last(), events(&[(1, "gone")]).last());
    fixture.advance(TTL - 1);
    assert!(fixture.jobs.is_empty(), "a missing key is read after CACHE_TTL");
    fixture.advance(1);
    fixture.answer(None);
    assert_eq!(fixture.read_through.watches.counters().merged, 0);
}

/// A read that began before the last one ended is not joined: its value may be older.
#[test]
fn earlier_read_is_not_joined() {
    let mut fixture = Fixture::new(10, true);
    fixture.watch(0, "a");
    fixture.advance(INTERVAL);
    let first = fixture.jobs.remove(0);
    // The invalidation detaches the first read. A request starts another one, which Redis answers
    // before the first.
    fixture.now += 1;
    fixture.read_through.invalidate(&Invalidation::Key(b"a".to_vec()), fixture.now);
    let Lookup::Fetch(other) = fixture.read_through.get(b"a", Access::NORMAL, request_id(9), fixture.now) else {
        panic!("no fetch for a request");
    };
    fixture.now += 1;
    fixture.complete(first, Ok(Some(fetched("new", None))));
    fixture.advance(INTERVAL);
    assert!(fixture.jobs.is_empty(), "the outdated key is read again after the other fetch");
    fixture.complete(other, Ok(Some(fetched("old", None))));
    fixture.answer(Some("newer"));
    assert_eq!(fixture.take_events(), events(&[(0, "new"), (0, "newer")]));
}

/// A later read of a request is joined, so that a change causes one read.
#[test]
fn later_read_is_joined() {
    let mut fixture = Fixture::new(10, true);
    fixture.watch(0, "a");
    fixture.advance(0);
    fixture.answer(Some("1"));
    fixture.now += 1;
    fixture.read_through.invalidate(&Invalidation::Key(b"a".to_vec()), fixture.now);
    let Lookup::Fetch(job) = fixture.read_through.get(b"a", Access::NORMAL, request_id(9), fixture.now) else {
        panic!("no fetch for a request");
    };
    fixture.advance(INTERVAL);
    assert!(fixture.jobs.is_empty());
    fixture.complete(job, Ok(Some(fetched("2", None))));
    assert_eq!(fixture.take_events(), events(&[(0, "1"), (0, "2")]));
}

/// A slow client gets the newest value only, from the cache or by another read.
#[test]
fn slow_watcher_gets_newest_value() {
    for entries in [10, 1] {
        let mut fixture = Fixture::new(entries, true);
        (0..2).for_each(|slot| fixture.watch(slot, "a"));
        fixture.behind.insert(0);
        for value in ["1", "2", "3"] {
            fixture.change("a");
            fixture.advance(INTERVAL);
            fixture.answer(Some(value));
        }
        assert_eq!(fixture.take_events(), events(&[(1, "1"), (1, "2"), (1, "3")]));
        if entries == 1 {
            // Another key takes the place of the value in the cache.
            let Lookup::Fetch(job) = fixture.read_through.get(b"b", Access::NORMAL, request_id(9), fixture.now) else {
                panic!("no fetch for a request");
            };
            fixture.complete(job, Ok(Some(fetched("b", None))));
        }
        fixture.behind.clear();
        fixture.catch_up(0);
        fixture.advance(INTERVAL);
        if entries == 1 {
            assert_eq!(fixture.take_events(), events(&[]));
            fixture.answer(Some("3"));
        }
        assert_eq!(fixture.take_events(), events(&[(0, "3")]));
    }
}

/// An event reaches all watchers in steps, also those that come and go meanwhile. A newer event
/// replaces it for those that lack it.
#[test]
fn event_reaches_all_in_steps() {
    let mut fixture = Fixture::new(10, true);
    (10..20).for_each(|slot| fixture.watch(slot, "a"));
    fixture.advance(0);
    fixture.answer(Some("1"));
    fixture.take_events();
    fixture.now += INTERVAL;
    fixture.read_through.invalidate(&Invalidation::Key(b"a".to_vec()), fixture.now);
    fixture.tick(3);
    let job = fixture.jobs.remove(0);
    let completion = Completion { fetch_id: job.fetch_id, result: Ok(Some(fetched("2", None))), may_cache: true };
    fixture.read_through.complete(completion, fixture.now, |_, _| {});
    assert!(fixture.tick(3));
    assert_eq!(fixture.take_events(), events(&[(10, "2"), (11, "2"), (12, "2")]));
    fixture.unwatch(10);
    fixture.unwatch(13);
    (14..24).filter(|slot| *slot >= 20).chain([1]).for_each(|slot| fixture.watch(slot, "a"));
    assert_eq!(fixture.take_events().len(), 5, "the event in progress has the present value");
    assert!(fixture.tick(3));
    assert_eq!(fixture.take_events(), events(&[(14, "2"), (15, "2"), (16, "2")]));
    while fixture.tick(3) {}
    assert_eq!(fixture.take_events(), events(&[(17, "2"), (18, "2"), (19, "2")]));
    fixture.advance(INTERVAL);
    fixture.change("a");
    let job = fixture.jobs.remove(0);
    let completion = Completion { fetch_id: job.fetch_id, result: Ok(Some(fetched("3", None))), may_cache: true };
    fixture.read_through.complete(completion, fixture.now, |_, _| {});
    while fixture.tick(1) {}
    assert_eq!(fixture.take_events().len(), 13);
}

/// Watchers that come while an event is delivered take no turn of others.
#[test]
fn new_watchers_take_no_turns() {
    let mut fixture = Fixture::new(10, true);
    (10..20).for_each(|number| fixture.watch(2 * number, "a"));
    fixture.advance(0);
    fixture.answer(Some("1"));
    fixture.take_events();
    fixture.now += INTERVAL;
    fixture.read_through.invalidate(&Invalidation::Key(b"a".to_vec()), fixture.now);
    fixture.tick(1);
    let job = fixture.jobs.remove(0);
    let completion = Completion { fetch_id: job.fetch_id, result: Ok(Some(fetched("2", None))), may_cache: true };
    fixture.read_through.complete(completion, fixture.now, |_, _| {});
    assert!(fixture.tick(1));
    (10..20).for_each(|number| fixture.watch(2 * number + 1, "a"));
    while fixture.tick(1) {}
    assert_eq!(fixture.take_events().len(), 20);
}

/// A watcher that has nothing waits for a read, not for the end of a long `WATCH_INTERVAL`.
#[test]
fn new_watcher_ignores_long_interval() {
    let mut fixture = Fixture::new(10, false);
    let settings = WatchSettings { interval: 60 * TTL, limit: fixture.limit.clone() };
    fixture.read_through =
        ReadThrough::new(Limits { entries: 10, bytes: usize::MAX, stale: 0 }, TTL, 500).with_watch_settings(settings);
    fixture.watch(1, "a");
    fixture.advance(0);
    fixture.answer(Some("1"));
    assert_eq!(fixture.take_events(), events(&[(1, "1")]));
    // The value is no longer fresh, so the cache has none for the next watcher.
    fixture.advance(2 * TTL);
    assert!(fixture.jobs.is_empty());
    fixture.watch(2, "a");
    fixture.advance(0);
    fixture.answer(Some("2"));
    assert_eq!(fixture.take_events(), events(&[(1, "2"), (2, "2")]));
    fixture.change("a");
    fixture.watch(3, "a");
    fixture.advance(super::MAX_FIRST_READ_DELAY - 1);
    assert!(fixture.jobs.is_empty(), "new watchers force a read each");
    fixture.advance(1);
    assert_eq!(fixture.jobs.len(), 1);
}

/// A key that changes again before all of its watchers have the event delays no other key.
#[test]
fn hot_key_starves_no_other() {
    let mut fixture = Fixture::new(10, true);
    (0..200).for_each(|slot| fixture.watch(slot, "hot"));
    fixture.watch(500, "other");
    fixture.advance(0);
    let is_hot = |job: &Job| *job.key == b"hot"[..];
    let answer = |fixture: &mut Fixture, version: u64| {
        for job in std::mem::take(&mut fixture.jobs) {
            let text = if is_hot(&job) { version.to_string() } else { "other".into() };
            let completion =
                Completion { fetch_id: job.fetch_id, result: Ok(Some(fetched(&text, None))), may_cache: true };
            fixture.read_through.complete(completion, fixture.now, |_, _| {});
        }
    };
    answer(&mut fixture, 0);
    let mut counts = BTreeMap::<usize, usize>::new();
    for version in 1..=10 {
        fixture.now += INTERVAL;
        fixture.read_through.invalidate(&Invalidation::Key(b"hot".to_vec()), fixture.now);
        fixture.tick(64);
        answer(&mut fixture, version);
        fixture.take_events().into_iter().for_each(|(slot, _)| *counts.entry(slot).or_default() += 1);
    }
    assert_eq!(counts.get(&500), Some(&1), "the other key waits for the end of the hot one");
    assert!((0..200).all(|slot| counts.get(&slot).is_some_and(|&count| count >= 2)), "{counts:?}");
    assert_eq!(fixture.read_through.watches.rounds.len(), 1);
    while fixture.tick(64) {}
    assert!(fixture.take_events().into_iter().all(|(slot, text)| slot < 200 && text == "10"));
}

/// A failure is shown to watchers that have nothing, and ends no event in progress.
#[test]
fn failure_reaches_new_watchers_only() {
    let mut fixture = Fixture::new(10, true);
    fixture.watch(0, "a");
    fixture.advance(0);
    let job = fixture.jobs.remove(0);
    fixture.complete(job, Err(Failure::Unavailable));
    assert_eq!(fixture.take_events(), events(&[(0, "failed: unavailable")]));
    fixture.advance(999);
    assert!(fixture.jobs.is_empty());
    fixture.advance(1);
    fixture.answer(Some("1"));
    fixture.advance(INTERVAL);
    fixture.change("a");
    fixture.watch(1, "a");
    let job = fixture.jobs.remove(0);
    fixture.complete(job, Err(Failure::Timeout));
    assert_eq!(fixture.take_events(), events(&[(0, "1"), (1, "failed: timeout")]));
    fixture.advance(1000);
    let job = fixture.jobs.remove(0);
    fixture.complete(job, Err(Failure::WrongType));
    assert_eq!(fixture.take_events(), events(&[(0, "failed: wrong_type"), (1, "failed: wrong_type")]));
    assert_eq!(fixture.read_through.watches.keys[0].state, Some(KeyState::WrongType));
}

/// After an event that may have changed any key, all watched keys are read again, step by step.
#[test]
fn lost_tracking_reads_all_keys() {
    for invalidation in [Invalidation::All, Invalidation::TrackingLost, Invalidation::TrackingStarted] {
        let mut fixture = Fixture::new(5000, true);
        (0..3000).for_each(|slot| {
            fixture.ids.insert(slot, fixture.read_through.watch(format!("k{slot}").as_bytes(), request_id(slot), None));
        });
        (0..3000).for_each(|slot| {
            let id = (fixture.ids[&slot], request_id(slot));
            fixture.read_through.catch_up(id, 0, &mut |_, _| Delivery::Taken);
        });
        let answer_all = |fixture: &mut Fixture| {
            let mut count = 0;
            loop {
                fixture.advance(0);
                assert!(fixture.jobs.len() <= super::reads::MAX_WATCH_READS);
                if fixture.jobs.is_empty() {
                    return count;
                }
                for job in std::mem::take(&mut fixture.jobs) {
                    let result = Ok(Some(fetched(&String::from_utf8_lossy(&job.key), None)));
                    let completion = Completion { fetch_id: job.fetch_id, result, may_cache: true };
                    fixture.read_through.complete(completion, fixture.now, |_, _| {});
                    count += 1;
                }
            }
        };
        assert_eq!(answer_all(&mut fixture), 3000);
        assert_eq!(fixture.take_events().len(), 3000);
        fixture.now += INTERVAL;
        fixture.read_through.invalidate(&invalidation, fixture.now);
        assert_eq!(answer_all(&mut fixture), 3000, "{invalidation:?}");
        assert_eq!(fixture.take_events().len(), 0, "events without a change");
    }
}

/// Reads for watchers neither evict entries nor make their own the most recently used.
#[test]
fn watching_is_no_use() {
    let mut fixture = Fixture::new(2, true);
    for key in ["b", "c"] {
        let lookup = fixture.read_through.get(key.as_bytes(), Access::NORMAL, request_id(9), 0);
        let Lookup::Fetch(job) = lookup else { panic!("no fetch") };
        fixture.complete(job, Ok(Some(fetched(key, None))));
    }
    fixture.watch(0, "a");
    fixture.advance(0);
    fixture.answer(Some("1"));
    let is_cached = |fixture: &mut Fixture, key: &str| fixture.read_through.remaining_ttl(key.as_bytes(), 0).is_some();
    assert!(is_cached(&mut fixture, "b") && is_cached(&mut fixture, "c") && !is_cached(&mut fixture, "a"));
    fixture.change("b");
    fixture.change("a");
    fixture.advance(INTERVAL);
    fixture.answer(Some("2"));
    assert!(is_cached(&mut fixture, "a"), "the cache has a free place");
    let lookup = fixture.read_through.get(b"d", Access::NORMAL, request_id(9), fixture.now);
    let Lookup::Fetch(job) = lookup else { panic!("no fetch") };
    fixture.complete(job, Ok(Some(fetched("d", None))));
    assert!(!is_cached(&mut fixture, "a") && is_cached(&mut fixture, "c"), "the watched key was never used");
}

/// Places are limited over all workers, and free again after the last watcher.
#[test]
fn limit_counts_all_watchers() {
    let mut fixture = Fixture::new(10, true);
    let other = fixture.limit.clone();
    (0..10).for_each(|slot| fixture.watch(slot, "a"));
    assert!(!other.reserve(991) && other.reserve(990) && !fixture.read_through.reserve_watchers(1));
    other.release(990);
    (0..10).for_each(|slot| fixture.unwatch(slot));
    assert!(other.reserve(1000));
    // The read in flight goes on without watchers.
    assert!(fixture.read_through.watches.is_empty());
    assert_eq!(fixture.read_through.watches.next_deadline(), None);
}
