//! Tests of the recorded reads and their invalidations, without connections.

use super::*;
use std::collections::{BTreeMap, BTreeSet};

fn client(slot: usize) -> ClientId {
    ClientId { slot, connection_id: slot as u64 }
}

fn start(limits: TrackingLimits, clients: usize) -> ClientTracking {
    let mut tracking = ClientTracking::new(limits);
    (0..clients).for_each(|slot| tracking.start(client(slot)));
    tracking
}

/// Passes on up to `budget` invalidations. Returns the slot and the key of each, `*` for all keys.
fn deliver(tracking: &mut ClientTracking, budget: usize) -> Vec<String> {
    let mut pushes = Vec::new();
    tracking.deliver(budget, |client, push| {
        let key = if let Push::Key(key) = push { String::from_utf8_lossy(key).into_owned() } else { "*".into() };
        pushes.push(format!("{} {key}", client.slot));
        PushResult::Queued
    });
    assert_eq!(tracking.validate(), Ok(()));
    pushes
}

/// An invalidation goes once to each client that has read the key, and to no other.
#[test]
fn invalidation_reaches_each_reader_once() {
    let mut tracking = start(TrackingLimits::DEFAULT, 3);
    for (slot, key) in [(0, "a"), (1, "a"), (1, "a"), (2, "b"), (7, "a")] {
        tracking.record(client(slot), key.as_bytes());
    }
    assert_eq!((tracking.client_count(), tracking.copy_count()), (3, 3));
    tracking.invalidate(b"a");
    assert!(tracking.has_due());
    assert_eq!(deliver(&mut tracking, 100), ["1 a", "0 a"]);
    tracking.invalidate(b"a");
    tracking.invalidate(b"unknown");
    assert!(!tracking.has_due());
    tracking.record(client(1), b"a");
    tracking.invalidate(b"a");
    tracking.invalidate(b"b");
    assert_eq!(deliver(&mut tracking, 100), ["1 a", "2 b"]);
    assert_eq!((tracking.copy_count(), tracking.push_count()), (0, 4));
}

/// A key of many clients is invalidated in steps. A client that reads it again meanwhile gets
/// the invalidation of the present change and of the next one.
#[test]
fn key_of_many_clients_is_invalidated_in_steps() {
    let mut tracking = start(TrackingLimits::DEFAULT, 100);
    (0..100).for_each(|slot| tracking.record(client(slot), b"a"));
    tracking.invalidate(b"a");
    assert_eq!(deliver(&mut tracking, 60).len(), 60);
    tracking.record(client(0), b"a");
    tracking.record(client(99), b"a");
    assert_eq!(deliver(&mut tracking, 60), (0..40).rev().map(|slot| format!("{slot} a")).collect::<Vec<_>>());
    assert!(!tracking.has_due());
    tracking.invalidate(b"a");
    assert_eq!(deliver(&mut tracking, 60), ["99 a", "0 a"]);
}

/// A client that leaves is sent nothing more, and a new one in its slot inherits nothing. The
/// copies are released in steps.
#[test]
fn leaving_client_forgets_its_keys() {
    let mut tracking = start(TrackingLimits::DEFAULT, 2);
    for key in 0..100_u8 {
        tracking.record(client(0), &[key]);
        tracking.record(client(1), &[key]);
    }
    tracking.invalidate(&[0]);
    tracking.stop(client(0));
    let successor = ClientId { slot: 0, connection_id: 99 };
    tracking.start(successor);
    tracking.stop(client(0));
    assert_eq!((tracking.client_count(), tracking.copy_count()), (2, 100));
    tracking.record(client(0), b"of a client that is gone");
    tracking.invalidate(&[1]);
    assert_eq!(deliver(&mut tracking, 6), ["1 \0", "1 \u{1}"], "of six steps, two end a key and two meet client 0");
    assert!(tracking.has_due());
    tracking.record(successor, b"a");
    deliver(&mut tracking, 1000);
    assert!(!tracking.has_due());
    assert_eq!((tracking.copies.len(), tracking.copy_count()), (99, 99));
}

/// At its limit a client loses all keys at once, the one that it reads included.
#[test]
fn client_at_limit_loses_all_keys() {
    let mut tracking = start(TrackingLimits { client_copies: 3, ..TrackingLimits::DEFAULT }, 2);
    tracking.record(client(1), b"a");
    for key in [b"a", b"b", b"c", b"c"] {
        tracking.record(client(0), key);
    }
    assert!(!tracking.has_due());
    tracking.record(client(0), b"d");
    assert_eq!(deliver(&mut tracking, 100), ["0 *"]);
    assert_eq!(tracking.copy_count(), 1);
    for key in [b"a", b"d"] {
        tracking.invalidate(key);
    }
    assert_eq!(deliver(&mut tracking, 100), ["1 a"]);
    tracking.record(client(0), b"d");
    tracking.invalidate(b"d");
    assert_eq!(deliver(&mut tracking, 100), ["0 d"]);
}

/// At the limit of all copies a client with many keys loses them, not one with few.
#[test]
fn total_limit_costs_a_large_client_its_keys() {
    let mut tracking = start(TrackingLimits { copies: 100, ..TrackingLimits::DEFAULT }, 3);
    for key in 0..90_u8 {
        tracking.record(client(1), &[key]);
    }
    for key in 0..10_u8 {
        tracking.record(client(2), &[key]);
    }
    tracking.record(client(0), b"a");
    assert_eq!(deliver(&mut tracking, 1000), ["1 *"]);
    assert_eq!(tracking.copy_count(), 11);
    tracking.invalidate(b"a");
    assert_eq!(deliver(&mut tracking, 1000), ["0 a"]);
    // The only client that reads.
    for key in 0..200_u8 {
        tracking.record(client(1), &[key, key]);
    }
    let pushes = deliver(&mut tracking, 1000);
    assert!(pushes.contains(&"1 *".to_owned()) && tracking.copy_count() <= 100, "{pushes:?}");
}

/// If any key may have changed, every client with keys is notified once, and no other.
#[test]
fn flush_invalidates_every_client_with_keys() {
    let mut tracking = start(TrackingLimits::DEFAULT, 20);
    (0..20).step_by(2).for_each(|slot| tracking.record(client(slot), b"a"));
    tracking.invalidate_all();
    let mut pushes = deliver(&mut tracking, 3);
    // Two more before the first is complete.
    tracking.record(client(19), b"b");
    tracking.invalidate_all();
    tracking.invalidate_all();
    pushes.extend(deliver(&mut tracking, 1000));
    pushes.sort();
    let mut expected: Vec<String> = (0..20).step_by(2).chain([19]).map(|slot| format!("{slot} *")).collect();
    expected.sort();
    assert_eq!(pushes, expected);
    assert_eq!((tracking.copy_count(), tracking.has_due()), (0, false));
}

/// Invalidations of a key with a long name take more of the budget: each client has its own copy.
#[test]
fn long_name_takes_more_budget() {
    let (mut tracking, key) = (start(TrackingLimits::DEFAULT, 100), vec![b'x'; 64 * 1024]);
    (0..100).for_each(|slot| tracking.record(client(slot), &key));
    tracking.invalidate(&key);
    assert_eq!(deliver(&mut tracking, 1024).len(), 4);
}

/// Changes of single keys do not delay an invalidation of everything, however many there are.
#[test]
fn due_keys_do_not_delay_flush() {
    let mut tracking = start(TrackingLimits::DEFAULT, 2);
    for key in 0..100_u8 {
        tracking.record(client(0), &[key]);
    }
    tracking.record(client(1), b"idle");
    (0..100_u8).for_each(|key| tracking.invalidate(&[key]));
    tracking.invalidate_all();
    assert_eq!(deliver(&mut tracking, 20), ["0 *", "1 *"]);
}

/// An invalidation of everything that is repeated before it is complete reaches the last client.
#[test]
fn repeated_flush_reaches_all_clients() {
    let mut tracking = start(TrackingLimits::DEFAULT, 20);
    (0..20).for_each(|slot| tracking.record(client(slot), b"a"));
    let mut reached = BTreeSet::new();
    for _ in 0..40 {
        tracking.invalidate_all();
        reached.extend(deliver(&mut tracking, 4));
        (0..4).for_each(|slot| tracking.record(client(slot), b"a"));
    }
    assert_eq!(reached.len(), 20, "{reached:?}");
}

/// Changes of keys that no client has invalidate nothing, also while too many names are due.
#[test]
fn change_of_unknown_key_never_flushes() {
    let mut tracking = start(TrackingLimits { due_bytes: DUE_KEY_BYTES + 1, ..TrackingLimits::DEFAULT }, 1);
    [b"a", b"b"].iter().for_each(|key| tracking.record(client(0), *key));
    [b"a", b"x", b"y"].iter().for_each(|key| tracking.invalidate(*key));
    assert_eq!(deliver(&mut tracking, 100), ["0 a"]);
    assert_eq!(tracking.copy_count(), 1);
}

/// With too many names to be passed on, everything is invalidated.
#[test]
fn too_many_due_names_invalidate_everything() {
    let limits = TrackingLimits { due_bytes: 4 * (DUE_KEY_BYTES + 1), ..TrackingLimits::DEFAULT };
    let mut tracking = start(limits, 1);
    for key in [b"a", b"b", b"c", b"d", b"e"] {
        tracking.record(client(0), key);
    }
    for key in [b"a", b"b", b"c", b"d", b"e"] {
        tracking.invalidate(key);
    }
    assert!(deliver(&mut tracking, 1000).contains(&"0 *".to_owned()));
    assert_eq!((tracking.copy_count(), tracking.due_bytes), (0, 0));
}

/// A client that reads too slowly gets an invalidation of everything, and no other until it reads
/// a key again. One that does not track any more gets none.
#[test]
fn push_result_decides_what_is_remembered() {
    let mut tracking = start(TrackingLimits::DEFAULT, 1);
    let push_all = |tracking: &mut ClientTracking, result| {
        [b"a", b"b"].iter().for_each(|key| tracking.record(client(0), *key));
        [b"a", b"b"].iter().for_each(|key| tracking.invalidate(*key));
        let mut count = 0;
        tracking.deliver(100, |_, _| {
            count += 1;
            result
        });
        assert_eq!(tracking.validate(), Ok(()));
        (count, tracking.copy_count(), tracking.client_count())
    };
    assert_eq!(push_all(&mut tracking, PushResult::Queued), (2, 0, 1));
    assert_eq!(push_all(&mut tracking, PushResult::QueuedEverything), (1, 0, 1));
    assert_eq!(push_all(&mut tracking, PushResult::NotTracking), (1, 0, 0));
    assert_eq!(push_all(&mut tracking, PushResult::Queued), (0, 0, 0));
}

/// Random reads, changes, flushes and disconnects, with small limits: a client never keeps a key
/// without the invalidation of its change being due.
#[test]
fn random_events_leave_no_stale_copy() {
    const CLIENTS: usize = 6;
    for seed in 1..200_u64 {
        let mut random = seed;
        let mut below = |limit: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % limit
        };
        let limits = TrackingLimits {
            client_copies: 1 + below(10) as usize,
            copies: 10 + below(20) as usize,
            due_bytes: DUE_KEY_BYTES * (1 + below(5) as usize),
        };
        let mut tracking = start(limits, CLIENTS);
        let mut ids: Vec<ClientId> = (0..CLIENTS).map(client).collect();
        // Keys that each client caches, and those that changed since it read them.
        let mut cached: BTreeMap<usize, BTreeMap<u8, bool>> = BTreeMap::new();
        for _ in 0..500 {
            let (slot, key) = (below(CLIENTS as u64) as usize, below(30) as u8);
            let change = |cached: &mut BTreeMap<usize, BTreeMap<u8, bool>>, changed: Option<u8>| {
                let keys = cached.values_mut().flat_map(|keys| keys.iter_mut());
                keys.filter(|(key, _)| changed.is_none_or(|changed| changed == **key)).for_each(|(_, old)| *old = true);
            };
            match below(20) {
                0..12 => {
                    tracking.record(ids[slot], &[key]);
                    cached.entry(slot).or_default().insert(key, false);
                }
                12..16 => {
                    tracking.invalidate(&[key]);
                    change(&mut cached, Some(key));
                }
                16 => {
                    tracking.invalidate_all();
                    change(&mut cached, None);
                }
                17 => {
                    tracking.stop(ids[slot]);
                    ids[slot].connection_id += 100;
                    tracking.start(ids[slot]);
                    cached.remove(&slot);
                }
                _ => {
                    let budget = below(8) as usize;
                    push(&mut tracking, budget, &mut cached);
                }
            }
            assert_eq!(tracking.validate(), Ok(()), "seed {seed}");
        }
        push(&mut tracking, 10_000, &mut cached);
        assert!(!tracking.has_due());
        let stale: BTreeSet<_> = cached.iter().filter(|(_, keys)| keys.values().any(|&is_old| is_old)).collect();
        assert!(stale.is_empty(), "seed {seed}: {stale:?}");
    }
}

/// Passes on invalidations to the caches of the clients.
fn push(tracking: &mut ClientTracking, budget: usize, cached: &mut BTreeMap<usize, BTreeMap<u8, bool>>) {
    tracking.deliver(budget, |client, push| {
        match push {
            Push::Key(key) => _ = cached.entry(client.slot).or_default().remove(&key[0]),
            Push::Everything => _ = cached.remove(&client.slot),
        }
        PushResult::Queued
    });
}
