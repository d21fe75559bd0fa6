//! Tests of the cache against its model (`reference.rs`), and of the work that one operation does,
//! which the model does not show.

use crate::checks::reference::{Operation, Pair, bytes_of, insert_until};
use proptest::prelude::*;
use segment_redis_proxy::cache::{Cache, Limits};
use segment_redis_proxy::types::Millis;

/// Returns a strategy for random operations. The weights favour lookups and insertions.
fn any_operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        24 => any::<u8>().prop_map(Operation::Get),
        4 => any::<u8>().prop_map(Operation::Peek),
        8 => any::<u8>().prop_map(Operation::GetAllowStale),
        24 => (any::<u8>(), any::<u16>(), 0u64..400, 0u64..300)
            .prop_map(|(key, value, ttl, extra)| Operation::Insert(key, value, ttl, extra)),
        8 => (any::<u8>(), any::<u16>(), 0u64..400, 0u64..300)
            .prop_map(|(key, value, ttl, extra)| Operation::InsertUnused(key, value, ttl, extra)),
        4 => any::<u8>().prop_map(Operation::Remove),
        1 => Just(Operation::Clear),
        1 => Just(Operation::ExpireAll),
        4 => Just(Operation::Sweep),
        8 => (0u64..50).prop_map(Operation::Wait),
        12 => (any::<u8>(), 0u8..=16).prop_map(|(first, count)| Operation::LookAhead(first, count)),
    ]
}

/// Returns an empty cache with a limit of entries only.
fn cache_with(entries: usize) -> Cache {
    Cache::new(Limits { entries, bytes: usize::MAX, stale: 0 })
}

/// Inserts an entry that Redis never lets expire.
fn insert(cache: &mut Cache, key: &[u8], value: Vec<u8>, deadline: Millis) -> bool {
    insert_until(cache, key, value, deadline, Millis::MAX)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Cache and model agree after every random operation.
    #[test]
    fn cache_agrees_with_model(
        entries in 1usize..150,
        bytes in prop_oneof![Just(usize::MAX), 100usize..100_000],
        stale in prop_oneof![Just(0u64), 1u64..300],
        operations in prop::collection::vec(any_operation(), 1..400),
    ) {
        let mut pair = Pair::new(Limits { entries, bytes, stale });
        for operation in operations {
            pair.apply(&operation).map_err(TestCaseError::fail)?;
        }
    }
}

/// An entry is a hit until the millisecond before its deadline, swept or not (no-expired-hit).
#[test]
fn entry_at_deadline_is_no_hit() {
    let mut cache = cache_with(3);
    insert(&mut cache, b"a", b"1".to_vec(), 100);
    assert_eq!(cache.get(b"a", 99).map(|hit| hit.ttl), Some(1));
    assert!(cache.get(b"a", 100).is_none(), "a hit at the deadline, before any sweep");
    assert_eq!(cache.len(), 0, "the lookup left the expired entry");
}

/// A hit does not extend the lifetime of an entry.
#[test]
fn hit_does_not_extend_deadline() {
    let mut cache = cache_with(3);
    insert(&mut cache, b"a", b"1".to_vec(), 100);
    for now in 0..100 {
        assert!(cache.get(b"a", now).is_some());
    }
    assert!(cache.get(b"a", 100).is_none());
}

/// A million insertions into a small cache leave one heap slot for each entry (one-heap-slot).
#[test]
fn evicted_entries_release_heap_slots() {
    let mut cache = cache_with(10);
    for number in 0..1_000_000u32 {
        insert(&mut cache, &(number % 1000).to_le_bytes(), vec![1], Millis::from(number) + 1_000_000);
    }
    assert_eq!(cache.len(), 10);
    assert_eq!(cache.validate(), Ok(()));
    cache.sweep(Millis::MAX, usize::MAX);
    assert!(cache.is_empty());
    assert_eq!(cache.validate(), Ok(()));
}

/// A sweep removes no more entries than its budget, and the others are no hits (no-expired-hit).
#[test]
fn sweep_stays_within_budget() {
    let mut cache = cache_with(100_000);
    for number in 0..100_000u32 {
        insert(&mut cache, &number.to_le_bytes(), vec![1], 50);
    }
    assert!(!cache.sweep(49, 10), "reports more work, although nothing has expired");
    assert!(cache.sweep(50, 1000), "reports no more work, although entries are left");
    assert_eq!(cache.len(), 99_000);
    assert!((0..100_000u32).all(|number| cache.get(&number.to_le_bytes(), 50).is_none()));
    assert_eq!(cache.validate(), Ok(()));
}

/// The table grows by one bucket at a time and loses no entry (constant-time).
#[test]
fn growing_table_keeps_every_entry() {
    let mut cache = cache_with(300_000);
    for number in 0..300_000u32 {
        insert(&mut cache, &number.to_le_bytes(), number.to_string().into_bytes(), 1000);
        if number.is_power_of_two() {
            assert_eq!(cache.validate(), Ok(()));
        }
    }
    for number in 0..300_000u32 {
        let hit = cache.get(&number.to_le_bytes(), 0).expect("an entry inserted before");
        assert_eq!(bytes_of(hit.payload).0, number.to_string().into_bytes());
    }
}

/// A cache is empty, valid and usable again after all its entries have expired.
#[test]
fn emptied_cache_is_usable_again() {
    let mut cache = cache_with(100_000);
    for round in 0..3u32 {
        for number in 0..5000u32 {
            insert(&mut cache, &number.to_le_bytes(), round.to_string().into_bytes(), Millis::from(round) * 10 + 5);
        }
        assert_eq!(cache.validate(), Ok(()));
        let hit = cache.get(&7u32.to_le_bytes(), Millis::from(round) * 10).expect("an entry inserted before");
        assert_eq!(bytes_of(hit.payload).0, round.to_string().into_bytes());
        while cache.sweep(Millis::from(round) * 10 + 5, 100) {}
        assert!(cache.is_empty());
        assert_eq!(cache.validate(), Ok(()));
    }
}

/// A long value evicts many short ones in bounded steps.
///
/// An insertion during these evictions may be refused; no other one is.
#[test]
fn long_value_evicts_in_bounded_steps() {
    let mut cache = Cache::new(Limits { entries: 100_000, bytes: 80_000, stale: 0 });
    for number in 0..10_000u32 {
        assert!(insert(&mut cache, &number.to_le_bytes(), b"1234".to_vec(), 1000));
    }
    assert_eq!((cache.len(), cache.bytes()), (10_000, 80_000));
    assert!(insert(&mut cache, b"long", vec![7; 60_000], 1000), "refused, although it fits");
    assert!(cache.len() > 9_900, "one insertion evicted {} entries", 10_001 - cache.len());
    assert!(!insert(&mut cache, b"longer", vec![7; 70_000], 1000), "accepted during the evictions for another value");
    assert!((0..1000).any(|_| !cache.sweep(0, 100)), "the sweep does not reach the limit of bytes");
    assert_eq!(cache.validate(), Ok(()));
    assert!(cache.bytes() <= 80_000 && cache.get(b"long", 0).is_some());
    assert!(insert(&mut cache, b"longer", vec![7; 70_000], 1000));
    assert!(
        !insert(&mut cache, b"longest", vec![7; 80_000], 1000),
        "accepted, although it exceeds the limit of the whole cache"
    );
    assert!((0..1000).any(|_| !cache.sweep(0, 100)), "the sweep does not reach the limit of bytes");
    assert!(cache.get(b"longest", 0).is_none() && cache.get(b"longer", 0).is_some());
}

/// `clear` empties the cache at once, and sweeps free its memory in bounded steps.
#[test]
fn cleared_cache_is_freed_in_steps() {
    let mut cache = cache_with(200_000);
    for round in 0..3 {
        for number in 0..100_000u32 {
            insert(&mut cache, &number.to_le_bytes(), b"value".to_vec(), 1000);
        }
        cache.clear();
        assert_eq!((cache.len(), cache.bytes(), cache.next_deadline()), (0, 0, None));
        assert_eq!(cache.validate(), Ok(()));
        insert(&mut cache, b"after", round.to_string().into_bytes(), 1000);
        assert!(cache.sweep(0, 10), "one sweep freed all memory");
        assert_eq!(cache.get(b"after", 0).map(|hit| bytes_of(hit.payload).0), Some(round.to_string().into_bytes()));
    }
    while cache.sweep(0, 1000) {}
    assert_eq!(cache.len(), 1);
}
