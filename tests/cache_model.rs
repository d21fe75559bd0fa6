//! The cache against a model so simple that it is right by inspection: random operations, every answer compared, every
//! link checked after each.

use proptest::prelude::*;
use segment_redis_proxy::cache::Cache;
use segment_redis_proxy::request::{Form, Millis, Payload, SHARED_VALUE_BYTES, Value};
use std::sync::Arc;

/// Keys and values in order of use, the most recent last.
struct Model {
    capacity: usize,
    entries: Vec<(Vec<u8>, Vec<u8>, Millis)>,
}

impl Model {
    fn place(&self, key: &[u8]) -> Option<usize> {
        self.entries.iter().position(|entry| entry.0 == key)
    }

    fn get(&mut self, key: &[u8], now: Millis) -> Option<(Vec<u8>, Millis)> {
        let entry = self.entries.remove(self.place(key)?);
        if entry.2 <= now {
            return None;
        }
        self.entries.push(entry.clone());
        Some((entry.1, entry.2 - now))
    }

    fn insert(&mut self, key: &[u8], value: &[u8], deadline: Millis) {
        if let Some(place) = self.place(key) {
            self.entries.remove(place);
        } else if self.entries.len() == self.capacity {
            self.entries.remove(0);
        }
        self.entries.push((key.to_vec(), value.to_vec(), deadline));
    }

    fn remove(&mut self, key: &[u8]) -> bool {
        self.place(key).map(|place| self.entries.remove(place)).is_some()
    }

    /// Removes all that have expired. Which of several goes first is left open: sweeps have a budget for all.
    fn sweep(&mut self, now: Millis) {
        self.entries.retain(|entry| entry.2 > now);
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Get(u8),
    Insert(u8, u16, Millis),
    Remove(u8),
    Sweep,
    Wait(Millis),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => any::<u8>().prop_map(Operation::Get),
        6 => (any::<u8>(), any::<u16>(), 0u64..400).prop_map(|(key, value, ttl)| Operation::Insert(key, value, ttl)),
        1 => any::<u8>().prop_map(Operation::Remove),
        1 => Just(Operation::Sweep),
        2 => (0u64..50).prop_map(Operation::Wait),
    ]
}

/// Long keys for some numbers, an empty one for 0: lengths on both sides of a byte.
fn key_of(number: u8) -> Vec<u8> {
    vec![number; usize::from(number) * if number.is_multiple_of(5) { 3 } else { 1 }]
}

/// One value in eight is long enough to be shared.
fn value_of(number: u16) -> Vec<u8> {
    let length = if number.is_multiple_of(8) { SHARED_VALUE_BYTES + 1 } else { usize::from(number % 100) };
    vec![number as u8; length]
}

fn insert(cache: &mut Cache, key: &[u8], value: Vec<u8>, deadline: Millis) {
    if value.len() > SHARED_VALUE_BYTES {
        cache.insert(key, Payload::Shared(&Arc::new(Value::new(value))), deadline);
    } else {
        cache.insert(key, Payload::Inline { bytes: &value, form: Form::of(&value) }, deadline);
    }
}

fn bytes_of(payload: Payload<'_>) -> (Vec<u8>, Form) {
    match payload {
        Payload::Inline { bytes, form } => (bytes.to_vec(), form),
        Payload::Shared(value) => (value.bytes.clone(), value.form),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_operation_agrees_with_the_model(
        capacity in 1usize..150,
        operations in prop::collection::vec(operation(), 1..400),
    ) {
        let mut cache = Cache::new(capacity);
        let mut model = Model { capacity, entries: Vec::new() };
        let mut now = 0;
        for operation in operations {
            match operation {
                Operation::Get(key) => {
                    let found = cache.get(&key_of(key), now).map(|hit| (bytes_of(hit.payload), hit.remaining));
                    let expected = model.get(&key_of(key), now)
                        .map(|(value, remaining)| { let form = Form::of(&value); ((value, form), remaining) });
                    prop_assert_eq!(found, expected);
                }
                Operation::Insert(key, value, ttl) => {
                    insert(&mut cache, &key_of(key), value_of(value), now + ttl);
                    model.insert(&key_of(key), &value_of(value), now + ttl);
                }
                Operation::Remove(key) => prop_assert_eq!(cache.remove(&key_of(key)), model.remove(&key_of(key))),
                Operation::Sweep => {
                    cache.sweep(now, usize::MAX);
                    model.sweep(now);
                }
                Operation::Wait(time) => now += time,
            }
            prop_assert_eq!(cache.len(), model.entries.len());
            prop_assert_eq!(cache.next_deadline(), model.entries.iter().map(|entry| entry.2).min());
            if let Err(what) = cache.validate() {
                return Err(TestCaseError::fail(what));
            }
        }
    }
}

#[test]
fn an_entry_is_served_until_the_millisecond_before_its_deadline() {
    let mut cache = Cache::new(3);
    insert(&mut cache, b"a", b"1".to_vec(), 100);
    assert_eq!(cache.get(b"a", 99).map(|hit| hit.remaining), Some(1));
    assert!(cache.get(b"a", 100).is_none(), "served at its deadline, before any sweep");
    assert_eq!(cache.len(), 0, "found expired and kept");
}

#[test]
fn a_hit_does_not_renew_the_deadline() {
    let mut cache = Cache::new(3);
    insert(&mut cache, b"a", b"1".to_vec(), 100);
    for now in 0..100 {
        assert!(cache.get(b"a", now).is_some());
    }
    assert!(cache.get(b"a", 100).is_none());
}

/// Rule 3: whatever ends an entry takes its heap slot with it.
#[test]
fn a_million_insertions_into_a_small_cache_leave_one_heap_slot_for_each_entry() {
    let mut cache = Cache::new(10);
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
    let mut cache = Cache::new(100_000);
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
    let mut cache = Cache::new(300_000);
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
    let mut cache = Cache::new(100_000);
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
