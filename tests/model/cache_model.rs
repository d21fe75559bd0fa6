//! The cache against a model so simple that it is right by inspection (`reference.rs`), and what of it the model does not show:
//! how much is done at once.

use crate::checks::reference::{Operation, Pair, bytes_of, insert_until};
use proptest::prelude::*;
use segment_redis_proxy::cache::{Cache, Limits};
use segment_redis_proxy::types::Millis;

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        24 => any::<u8>().prop_map(Operation::Get),
        4 => any::<u8>().prop_map(Operation::Peek),
        8 => any::<u8>().prop_map(Operation::Kept),
        24 => (any::<u8>(), any::<u16>(), 0u64..400, 0u64..300)
            .prop_map(|(key, value, ttl, longer)| Operation::Insert(key, value, ttl, longer)),
        4 => any::<u8>().prop_map(Operation::Remove),
        1 => Just(Operation::Clear),
        1 => Just(Operation::ExpireAll),
        4 => Just(Operation::Sweep),
        8 => (0u64..50).prop_map(Operation::Wait),
    ]
}
/// An empty cache with no bound but that of its entries.
fn cache_for(entries: usize) -> Cache {
    Cache::new(Limits { entries, bytes: usize::MAX, stale: 0 })
}

fn insert(cache: &mut Cache, key: &[u8], value: Vec<u8>, deadline: Millis) -> bool {
    insert_until(cache, key, value, deadline, Millis::MAX)
}
proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_operation_agrees_with_the_model(
        entries in 1usize..150,
        bytes in prop_oneof![Just(usize::MAX), 100usize..100_000],
        stale in prop_oneof![Just(0u64), 1u64..300],
        operations in prop::collection::vec(operation(), 1..400),
    ) {
        let mut pair = Pair::new(Limits { entries, bytes, stale });
        for operation in operations {
            pair.apply(&operation).map_err(TestCaseError::fail)?;
        }
    }
}

#[test]
fn an_entry_is_served_until_the_millisecond_before_its_deadline() {
    let mut cache = cache_for(3);
    insert(&mut cache, b"a", b"1".to_vec(), 100);
    assert_eq!(cache.get(b"a", 99).map(|hit| hit.ttl), Some(1));
    assert!(cache.get(b"a", 100).is_none(), "served at its deadline, before any sweep");
    assert_eq!(cache.len(), 0, "found expired and kept");
}

#[test]
fn a_hit_does_not_renew_the_deadline() {
    let mut cache = cache_for(3);
    insert(&mut cache, b"a", b"1".to_vec(), 100);
    for now in 0..100 {
        assert!(cache.get(b"a", now).is_some());
    }
    assert!(cache.get(b"a", 100).is_none());
}

/// Rule 3: whatever ends an entry takes its heap slot with it.
#[test]
fn a_million_insertions_into_a_small_cache_leave_one_heap_slot_for_each_entry() {
    let mut cache = cache_for(10);
    for number in 0..1_000_000u32 {
        insert(&mut cache, &(number % 1000).to_le_bytes(), vec![1], Millis::from(number) + 1_000_000);
    }
    assert_eq!(cache.len(), 10);
    assert_eq!(cache.validate(), Ok(()));
    cache.sweep(Millis::MAX, usize::MAX);
    assert!(cache.is_empty());
    assert_eq!(cache.validate(), Ok(()));
}

/// Rule 2: a sweep does no more than it was told, and the rest is not served meanwhile.
#[test]
fn a_sweep_keeps_to_its_budget() {
    let mut cache = cache_for(100_000);
    for number in 0..100_000u32 {
        insert(&mut cache, &number.to_le_bytes(), vec![1], 50);
    }
    assert!(!cache.sweep(49, 10), "nothing has expired, and there is more to do");
    assert!(cache.sweep(50, 1000), "the rest is forgotten");
    assert_eq!(cache.len(), 99_000);
    assert!((0..100_000u32).all(|number| cache.get(&number.to_le_bytes(), 50).is_none()));
    assert_eq!(cache.validate(), Ok(()));
}

/// Rule 4: the table grows bucket by bucket, and no entry is lost on the way.
#[test]
fn growth_keeps_every_entry_findable() {
    let mut cache = cache_for(300_000);
    for number in 0..300_000u32 {
        insert(&mut cache, &number.to_le_bytes(), number.to_string().into_bytes(), 1000);
        if number.is_power_of_two() {
            assert_eq!(cache.validate(), Ok(()));
        }
    }
    for number in 0..300_000u32 {
        let hit = cache.get(&number.to_le_bytes(), 0).expect("inserted before");
        assert_eq!(bytes_of(hit.payload).0, number.to_string().into_bytes());
    }
}

/// Rule 2: what held a million entries is given back when the last has expired, and the cache goes on.
#[test]
fn an_emptied_cache_starts_anew() {
    let mut cache = cache_for(100_000);
    for round in 0..3u32 {
        for number in 0..5000u32 {
            insert(&mut cache, &number.to_le_bytes(), round.to_string().into_bytes(), Millis::from(round) * 10 + 5);
        }
        assert_eq!(cache.validate(), Ok(()));
        let hit = cache.get(&7u32.to_le_bytes(), Millis::from(round) * 10).expect("inserted before");
        assert_eq!(bytes_of(hit.payload).0, round.to_string().into_bytes());
        while cache.sweep(Millis::from(round) * 10 + 5, 100) {}
        assert!(cache.is_empty());
        assert_eq!(cache.validate(), Ok(()));
    }
}

/// Room for a long value may mean a million short ones: no insertion evicts them all at once, and none is refused but
/// one that comes while that is still going on.
#[test]
fn room_for_a_long_value_is_made_in_small_steps() {
    let mut cache = Cache::new(Limits { entries: 100_000, bytes: 80_000, stale: 0 });
    for number in 0..10_000u32 {
        assert!(insert(&mut cache, &number.to_le_bytes(), b"1234".to_vec(), 1000));
    }
    assert_eq!((cache.len(), cache.bytes()), (10_000, 80_000));
    assert!(insert(&mut cache, b"long", vec![7; 60_000], 1000), "refused although there is room for it");
    assert!(cache.len() > 9_900, "one insertion has evicted {} entries", 10_001 - cache.len());
    assert!(!insert(&mut cache, b"longer", vec![7; 70_000], 1000), "over the limit, and yet further");
    assert!((0..1000).any(|_| !cache.sweep(0, 100)), "the rest is never evicted");
    assert_eq!(cache.validate(), Ok(()));
    assert!(cache.bytes() <= 80_000 && cache.get(b"long", 0).is_some());
    assert!(insert(&mut cache, b"longer", vec![7; 70_000], 1000));
    assert!(!insert(&mut cache, b"longest", vec![7; 80_000], 1000), "longer than the whole cache may be");
    assert!((0..1000).any(|_| !cache.sweep(0, 100)), "the rest is never evicted");
    assert!(cache.get(b"longest", 0).is_none() && cache.get(b"longer", 0).is_some());
}

/// A flush costs the loop nothing, and the sweep gives the memory back in small steps.
#[test]
fn a_cleared_cache_is_empty_at_once_and_freed_bit_by_bit() {
    let mut cache = cache_for(200_000);
    for round in 0..3 {
        for number in 0..100_000u32 {
            insert(&mut cache, &number.to_le_bytes(), b"value".to_vec(), 1000);
        }
        cache.clear();
        assert_eq!((cache.len(), cache.bytes(), cache.next_deadline()), (0, 0, None));
        assert_eq!(cache.validate(), Ok(()));
        insert(&mut cache, b"after", round.to_string().into_bytes(), 1000);
        assert!(cache.sweep(0, 10), "all of it was freed at once");
        assert_eq!(cache.get(b"after", 0).map(|hit| bytes_of(hit.payload).0), Some(round.to_string().into_bytes()));
    }
    while cache.sweep(0, 1000) {}
    assert_eq!(cache.len(), 1);
}
