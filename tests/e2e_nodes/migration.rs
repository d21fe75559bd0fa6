//! Tests of slots that move between the nodes of a cluster, with their keys or without.

use crate::common::admin::read_metric;
use crate::common::client::{Client, Reply};
use crate::common::cluster::{Cluster, keys_in_one_slot, slot_of};
use crate::common::freshness::{env_number, is_hit, max_propagation};
use crate::common::versions::{Readers, Versions, Writer};
use crate::common::wait_for;
use crate::support::{
    INTERVAL, cache_all, count_redirections, max_delay, path_of, set_all, wait_until_all_track, wait_within,
};
use std::time::{Duration, Instant};

/// Slots that move back and forth under writes give no old version and no error.
#[test]
fn moving_slots_stay_fresh() {
    let cluster = Cluster::shared();
    let proxy = cluster.start_tracking_proxy(&[INTERVAL]);
    let groups: Vec<Vec<String>> = (0..3).map(|number| keys_in_one_slot(&format!("moved{number}"), 8)).collect();
    let versions = Versions::new(&groups.concat());
    versions.write_all(&mut cluster.client());
    // Source and target are tracked throughout, so a write is visible at once.
    let readers = Readers::start(&proxy, &versions, 4, max_propagation());
    let writer = Writer::start(&versions, cluster.client(), Duration::from_millis(2));
    let (began, mut moves) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(env_number("FRESHNESS_SECONDS", 5)) || moves < 3 {
        for keys in &groups {
            let slot = slot_of(&keys[0]);
            let (from, to) = (cluster.owner_of_slot(slot), (cluster.owner_of_slot(slot) + 1) % 3);
            cluster.begin_migration(slot, from, to);
            // Key by key, with reads and writes in between.
            while cluster.migrate_keys(slot, from, to, 1) > 0 {
                writer.wait_for_writes(4);
                readers.wait_for_replies(4);
            }
            cluster.finish_migration(slot, to);
            writer.wait_for_writes(10);
            readers.wait_for_replies(20);
            moves += 1;
        }
    }
    let written = writer.stop();
    let report = readers.stop();
    let (moved, asked) = (count_redirections(&proxy, "moved"), count_redirections(&proxy, "ask"));
    println!(
        "{moves} moves, {written} writes, {} replies, the longest after {:?}; {moved} MOVED, {asked} ASK",
        report.replies, report.longest
    );
    report.check_fresh();
    report.check_no_errors();
    assert!(asked > 0.0 && read_metric(&proxy, "segment_redis_topology_changes_total") >= 1.0);
}

/// A key that has moved while its slot has not is served and never a hit, until the slot moves.
#[test]
fn half_moved_key_is_not_cached() {
    let cluster = Cluster::shared();
    let proxy = cluster.start_tracking_proxy(&[INTERVAL]);
    let keys = keys_in_one_slot("half", 4);
    let (slot, from) = (slot_of(&keys[0]), cluster.owner_of(&keys[0]));
    let to = (from + 1) % 3;
    let mut client = cluster.client();
    set_all(&mut client, &keys[..3], "0");
    cache_all(&proxy, &keys[..3], "0");
    cluster.begin_migration(slot, from, to);
    cluster.migrate(from, to, &keys[..1]);
    let mut reader = proxy.connect();
    let mut resp = Client::connect_resp(proxy.address);
    // The move itself is an invalidation.
    wait_for("the entry is dropped", || (!is_hit(&reader.get(&path_of(&keys[0])))).then_some(()));
    for round in 0..30 {
        let value = round.to_string();
        client.set(&keys[0], &value);
        client.set(&keys[1], &value);
        for _ in 0..3 {
            let response = reader.get(&path_of(&keys[0]));
            assert_eq!((response.text(), is_hit(&response)), (value.clone(), false), "{response:?}");
            assert_eq!(resp.get(&keys[0]), Reply::Value(value.clone()));
        }
        let set = Instant::now();
        wait_within("a key that has not moved", set, max_propagation(), || {
            (reader.get(&path_of(&keys[1])).text() == value).then_some(())
        });
        // A key that exists on neither node: the old one answers ASK.
        assert_eq!(reader.get(&path_of(&keys[3])).status, 404);
    }
    assert!(count_redirections(&proxy, "ask") > 0.0);
    while cluster.migrate_keys(slot, from, to, 10) > 0 {}
    cluster.finish_migration(slot, to);
    cache_all(&proxy, &keys[..2], "29");
    client.set(&keys[0], "moved");
    let set = Instant::now();
    wait_within("a change at the new node", set, max_propagation(), || {
        (reader.get(&path_of(&keys[0])).text() == "moved").then_some(())
    });
}

/// Takes a slot away from its node without moving its keys, and checks that their entries are
/// dropped in time. The old node deletes them without any message.
fn check_takeover(name: &str, variables: &[(&str, &str)]) {
    // Not shared: two nodes that change their slots at the same moment may claim the same epoch,
    // and one of them then loses its claim.
    let cluster = Cluster::start();
    let keys = keys_in_one_slot(name, 3);
    let slot = slot_of(&keys[0]);
    set_all(&mut cluster.client(), &keys, "old");
    let proxy = cluster.start_proxy(&[&[INTERVAL, ("CACHE_TTL", "600")], variables].concat());
    if !variables.is_empty() {
        wait_until_all_track(&proxy);
    }
    cache_all(&proxy, &keys, "old");
    let began = Instant::now();
    cluster.force_takeover(slot, (cluster.owner_of_slot(slot) + 1) % 3);
    let mut client = proxy.connect();
    for key in &keys {
        wait_within("the entry is dropped", began, max_delay(), || {
            (client.get(&path_of(key)).status == 404).then_some(())
        });
    }
    set_all(&mut cluster.client(), &keys, "new");
    cache_all(&proxy, &keys, "new");
}

/// With tracking, a forced takeover drops the entries of the slot.
#[test]
fn forced_takeover_drops_entries() {
    check_takeover("taken", &[("REDIS_TRACKING", "on")]);
}

/// Without tracking, a forced takeover drops the entries of the slot too, long before `CACHE_TTL`.
#[test]
fn forced_takeover_drops_untracked_entries() {
    check_takeover("untracked", &[]);
}

/// The keys of a moved slot are served without redirections once the topology is known.
#[test]
fn moved_slot_is_learnt() {
    // Not shared, because other tests change the topology too.
    let cluster = Cluster::start();
    let keys = keys_in_one_slot("learnt", 50);
    let slot = slot_of(&keys[0]);
    set_all(&mut cluster.client(), &keys, "1");
    let proxy = cluster.start_proxy(&[INTERVAL]);
    let mut client = proxy.connect();
    assert_eq!(client.get(&path_of(&keys[0])).text(), "1");
    let changes = read_metric(&proxy, "segment_redis_topology_changes_total");
    cluster.move_slot(slot, (cluster.owner_of_slot(slot) + 1) % 3, 100);
    // One redirection may tell of the move; polling does otherwise.
    assert_eq!(client.get(&path_of(&keys[1])).text(), "1");
    wait_for("the change is noticed", || {
        (read_metric(&proxy, "segment_redis_topology_changes_total") > changes).then_some(())
    });
    let moved = count_redirections(&proxy, "moved");
    for key in &keys[2..] {
        assert_eq!(client.get(&path_of(key)).text(), "1");
    }
    assert_eq!(count_redirections(&proxy, "moved"), moved, "the proxy goes on asking the old node");
}
