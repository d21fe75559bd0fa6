//! Watchers of several Redis servers: no final value is lost in a failover or while slots move.
//!
//! A write that Redis lost in a failover is no lost change, so the new primary has the final
//! values. `WATCH_CHANGES` sets the number of changes of each test.

use crate::common::admin::read_metric;
use crate::common::cluster::{Cluster, ClusterClient, keys_in_one_slot, slot_of};
use crate::common::rounds::{Access, MAX_ROUNDS, Rounds, names, size};
use crate::common::sentinel::{Sentinels, Setup};
use crate::common::watchers::Version;
use crate::support::{INTERVAL, count_redirections};
use std::sync::atomic::{AtomicU16, Ordering};

/// Returns settings with one replica, so that the promoted server is known.
fn one_replica() -> Setup {
    Setup { replicas: 1, ..Setup::default() }
}

/// Returns a writer to the server at a port that may change.
fn writer_to(port: &AtomicU16) -> impl FnMut(&str, u64) -> bool + Send + '_ {
    let mut access: Option<(u16, Access)> = None;
    move |key, version| {
        let port = port.load(Ordering::Relaxed);
        if access.as_ref().is_none_or(|(old, _)| *old != port) {
            access = Some((port, Access::new(port)));
        }
        access.as_mut().is_some_and(|(_, access)| access.set(key, version))
    }
}

/// A failover on request in sentinel mode. The old primary goes on taking writes, which are lost:
/// then watchers get the older versions of the new primary.
#[test]
fn sentinel_failover_loses_no_change() {
    let all = Sentinels::start_with(one_replica());
    let proxy = all.start_tracking_proxy(&[INTERVAL]);
    let mut rounds = Rounds::start(proxy.address, &names(), false);
    let (old, port) = (AtomicU16::new(all.servers[0].port), AtomicU16::new(all.servers[0].port));
    let get = |key: &str| Access::new(port.load(Ordering::Relaxed)).get(key);
    let changes = size(3).1;
    rounds.run(changes, writer_to(&old), |_| (), get);
    let promote = || {
        let (promoted, _) = all.failover();
        all.wait_until_named(promoted);
        port.store(all.servers[promoted].port, Ordering::Relaxed);
    };
    rounds.run(changes, writer_to(&old), |_| promote(), get);
    println!("last versions of {changes} in each round: {:?}", names().iter().map(|key| get(key)).collect::<Vec<_>>());
    rounds.run(changes, writer_to(&port), |_| (), get);
    let report = rounds.finish("sentinel failover");
    assert_eq!(report.reconnections, 0, "{report:?}");
}

/// The primary is killed in sentinel mode, and comes back as a replica.
#[test]
fn killed_primary_loses_no_change() {
    let mut all = Sentinels::start_with(one_replica());
    let proxy = all.start_tracking_proxy(&[INTERVAL]);
    let mut rounds = Rounds::start(proxy.address, &names(), false);
    let port = AtomicU16::new(all.servers[0].port);
    let get = |key: &str| Access::new(port.load(Ordering::Relaxed)).get(key);
    let changes = size(3).1;
    rounds.run(changes, writer_to(&port), |_| (), get);
    let promote = |all: &mut Sentinels| {
        all.kill(0);
        let (promoted, _) = all.wait_for_promotion(0);
        port.store(all.servers[promoted].port, Ordering::Relaxed);
    };
    rounds.run(changes, writer_to(&port), |_| promote(&mut all), get);
    rounds.run(changes, writer_to(&port), |_| all.restart(0), get);
    let report = rounds.finish("killed primary of sentinels");
    assert_eq!(report.reconnections, 0, "{report:?}");
}

/// Returns two keys of each primary.
fn keys_of_all(cluster: &Cluster) -> Vec<String> {
    (0..3).flat_map(|index| cluster.keys_of(index, "watched", 2)).collect()
}

/// Returns a function that writes to a cluster, once.
fn writer_of(cluster: &Cluster) -> impl FnMut(&str, u64) -> bool + Send + use<> {
    let mut client = cluster.client();
    move |key, version| client.call(key, redis::cmd("SET").arg(key).arg(version)).is_ok()
}

fn version_of(client: &mut ClusterClient, key: &str) -> Version {
    client.get(key).map(|version| version.parse().expect("a number"))
}

/// Failovers on request in cluster mode lose no write, so no watcher sees an older value either.
#[test]
fn cluster_failover_loses_no_change() {
    let cluster = Cluster::start_with_replicas();
    let proxy = cluster.start_tracking_proxy(&[INTERVAL]);
    let keys = keys_of_all(&cluster);
    let mut rounds = Rounds::start(proxy.address, &keys, true);
    let (mut client, (count, changes)) = (cluster.client(), size(6));
    for round in 0..count as usize {
        // Each primary in turn: a second failover of one may fail until all nodes know of the
        // first.
        let primary = cluster.owner_of(&keys[round * 2 % keys.len()]);
        let fail_over = || {
            cluster.failover(primary);
            cluster.wait_until_agreed();
            cluster.wait_for_replicas();
        };
        rounds.run(changes, writer_of(&cluster), |_| fail_over(), |key| version_of(&mut client, key));
    }
    let report = rounds.finish("cluster failover");
    assert_eq!(report.reconnections, 0, "{report:?}");
}

/// A primary of a cluster is killed. Its replica takes over, and it comes back.
#[test]
fn killed_cluster_primary_loses_no_change() {
    let mut cluster = Cluster::start_with_replicas();
    let proxy = cluster.start_tracking_proxy(&[INTERVAL]);
    let mut rounds = Rounds::start(proxy.address, &keys_of_all(&cluster), false);
    let mut client = cluster.client();
    let (changes, replica) = (size(3).1, cluster.replica_of(1));
    rounds.run(changes, writer_of(&cluster), |_| (), |key| version_of(&mut client, key));
    let writer = writer_of(&cluster);
    let promote = |cluster: &mut Cluster| {
        cluster.kill(1);
        cluster.wait_for_promotion(replica);
    };
    rounds.run(changes, writer, |_| promote(&mut cluster), |key| version_of(&mut client, key));
    let writer = writer_of(&cluster);
    rounds.run(changes, writer, |_| cluster.restart(1), |key| version_of(&mut client, key));
    let report = rounds.finish("killed primary of a cluster");
    assert_eq!(report.reconnections, 0, "{report:?}");
}

/// A slot moves between nodes, key by key, while its keys are watched and written.
#[test]
fn moving_slot_loses_no_change() {
    let cluster = Cluster::shared();
    let proxy = cluster.start_tracking_proxy(&[INTERVAL]);
    let keys = keys_in_one_slot("followed", 6);
    let slot = slot_of(&keys[0]);
    let mut rounds = Rounds::start(proxy.address, &keys, true);
    let (mut client, (count, changes)) = (cluster.client(), size(MAX_ROUNDS));
    for _ in 0..count {
        let to = (cluster.owner_of_slot(slot) + 1) % 3;
        let move_slot = || cluster.move_slot(slot, to, 1);
        rounds.run(changes, writer_of(&cluster), |_| move_slot(), |key| version_of(&mut client, key));
    }
    let report = rounds.finish("moving slot");
    assert_eq!((report.reconnections, report.failed_polls), (0, 0), "{report:?}");
    assert!(read_metric(&proxy, "segment_redis_topology_changes_total") >= 1.0);
    println!("{} MOVED, {} ASK", count_redirections(&proxy, "moved"), count_redirections(&proxy, "ask"));
}
