//! Tests of the fixtures themselves, without the proxy: the servers do what the other tests expect
//! of them.

use crate::common::cluster::{Cluster, Setup, keys_in_one_slot, slot_of};
use crate::common::sentinel::{self, Sentinels};
use crate::common::wait_for;
use redis::Value;
use std::time::Instant;

/// The slots of keys are those that Redis computes.
#[test]
fn slots_are_those_of_redis() {
    let cluster = Cluster::shared();
    for key in ["", "a", "foo", "{tag}rest", "{}rest", "x{tag}", "x{{y}}z", "{a", "a}b{c}d{e}", "key-123"] {
        let slot: u16 = cluster.query(0, &["CLUSTER", "KEYSLOT", key]).expect("CLUSTER KEYSLOT works");
        assert_eq!(slot_of(key), slot, "{key}");
    }
    let keys = keys_in_one_slot("tag", 3);
    assert!(keys.iter().all(|key| slot_of(key) == slot_of("tag")), "{keys:?}");
    assert_eq!(cluster.owner_of(&keys[0]), cluster.owner_of("tag"));
    for index in 0..3 {
        assert!(cluster.keys_of(index, "owned", 5).iter().all(|key| cluster.owner_of(key) == index));
    }
}

/// A slot moves with its keys. On the way, each node redirects what the other one has.
#[test]
fn slot_moves_with_its_keys() {
    let cluster = Cluster::shared();
    let keys = keys_in_one_slot("moving", 20);
    let mut client = cluster.client();
    keys.iter().for_each(|key| client.set(key, "1"));
    let (slot, from) = (slot_of(&keys[0]), cluster.owner_of(&keys[0]));
    let to = (from + 1) % 3;
    cluster.begin_migration(slot, from, to);
    cluster.migrate(from, to, &keys[..1]);
    let code = |index: usize, key: &str| match cluster.query::<Value>(index, &["GET", key]) {
        Ok(value) => format!("{value:?}"),
        Err(error) => error.code().unwrap_or("no code").to_owned(),
    };
    assert_eq!((code(from, &keys[0]).as_str(), code(to, &keys[0]).as_str()), ("ASK", "MOVED"));
    assert_eq!(code(from, &keys[1]), "bulk-string('\"1\"')");
    assert_eq!(client.get(&keys[0]).as_deref(), Some("1"));
    client.set(&keys[0], "2");
    while cluster.migrate_keys(slot, from, to, 5) > 0 {}
    cluster.finish_migration(slot, to);
    assert_eq!((code(from, &keys[0]).as_str(), code(to, &keys[0])), ("MOVED", "bulk-string('\"2\"')".into()));
    assert_eq!(client.get(&keys[19]).as_deref(), Some("1"));
    cluster.wait_until_agreed();
    cluster.move_slot(slot, from, 7);
    assert_eq!((cluster.owner_of_slot(slot), client.get(&keys[0]).as_deref()), (from, Some("2")));
}

/// A forced takeover leaves the new node without keys, and the old one deletes its own.
#[test]
fn takeover_deletes_keys() {
    let cluster = Cluster::shared();
    cluster.set("taken", "1");
    let from = cluster.owner_of("taken");
    let to = (from + 1) % 3;
    cluster.force_takeover(slot_of("taken"), to);
    let missing = Some("nothing".to_owned());
    wait_for("the old node redirects", || {
        let reply = cluster.query::<Value>(from, &["GET", "taken"]);
        reply.is_err_and(|error| error.code() == Some("MOVED")).then_some(())
    });
    assert_eq!(cluster.client().get("taken").or(missing.clone()), missing);
    let count: u64 = cluster
        .query(from, &["CLUSTER", "COUNTKEYSINSLOT", &slot_of("taken").to_string()])
        .expect("CLUSTER COUNTKEYSINSLOT works");
    assert_eq!(count, 0);
}

/// A replica takes over on request, and when its primary is killed or stopped. Old primaries come
/// back as replicas.
#[test]
fn replicas_take_over() {
    let mut cluster = Cluster::start_with_replicas();
    let key = cluster.keys_of(1, "kept", 1).remove(0);
    cluster.set(&key, "1");
    cluster.wait_until_replicated(1);
    let (promoted, _) = cluster.failover(1);
    assert_eq!((promoted, cluster.client().get(&key).as_deref()), (4, Some("1")));
    cluster.wait_until_agreed();
    cluster.wait_for_replicas();
    cluster.set(&key, "2");
    cluster.wait_until_replicated(4);
    let began = Instant::now();
    cluster.kill(4);
    cluster.wait_for_promotion(1);
    println!("a killed primary was replaced after {:?}", began.elapsed());
    cluster.wait_until_agreed();
    cluster.restart(4);
    cluster.wait_until_agreed();
    cluster.wait_for_replicas();
    assert!(!cluster.is_primary(4));
    assert_eq!(cluster.client().get(&key).as_deref(), Some("2"));
    cluster.freeze(1);
    cluster.wait_for_promotion(4);
    cluster.thaw(1);
    cluster.wait_until_agreed();
    assert!(!cluster.is_primary(1) && cluster.is_primary(4));
}

/// A cluster with passwords and TLS among its nodes works, and tells clients of either kind their
/// ports.
#[test]
fn cluster_uses_passwords_and_tls() {
    let setup = Setup { password: Some("word"), tls_names: Some("DNS:redis.test"), replicas: 1, ..Setup::default() };
    let cluster = Cluster::start_with(setup);
    cluster.set("a", "1");
    let (slot, from) = (slot_of("a"), cluster.owner_of("a"));
    cluster.move_slot(slot, (from + 1) % 3, 10);
    assert_eq!(cluster.client().get("a").as_deref(), Some("1"));
    let output = std::process::Command::new("redis-cli")
        .args(["--tls", "--cacert", &cluster.authority().expect("an authority"), "--sni", "redis.test"])
        .args(["--no-auth-warning", "-a", "word", "-p", &cluster.nodes[0].tls_port.expect("a port").to_string()])
        .args(["CLUSTER", "SLOTS"])
        .output()
        .expect("redis-cli is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let ports = |tls: bool| {
        let port =
            |index: usize| if tls { cluster.nodes[index].tls_port.expect("a port") } else { cluster.port(index) };
        (0..3).filter(|&index| text.lines().any(|line| line == port(index).to_string())).count()
    };
    assert_eq!((ports(true), ports(false)), (3, 0), "{text} {}", String::from_utf8_lossy(&output.stderr));
}

/// A failover by sentinels promotes a replica before it is announced. The old primary stays a
/// primary for a while, and comes back as a replica.
#[test]
fn sentinels_fail_over() {
    let mut all = Sentinels::start();
    all.set(0, "a", "1");
    all.wait_until_replicated(0);
    let (promoted, seen) = all.failover();
    let was_primary = all.is_primary(0);
    all.wait_until_named(promoted);
    println!("announced {:?} after the promotion; old primary still primary at that: {was_primary}", seen.elapsed());
    assert_eq!(all.query::<String>(promoted, &["GET", "a"]).as_deref(), Ok("1"));
    all.wait_until_stable();
    assert!(!all.is_primary(0));
    let began = Instant::now();
    all.kill(promoted);
    let (next, _) = all.wait_for_promotion(promoted);
    println!("a killed primary was replaced after {:?}", began.elapsed());
    all.wait_until_named(next);
    all.restart(promoted);
    wait_for("the old primary is a replica", || (!all.is_primary(promoted)).then_some(()));
    all.kill_sentinel(0);
    all.freeze_sentinel(1);
    assert_eq!(all.primary(), next);
    all.thaw_sentinel(1);
    all.restart_sentinel(0);
    all.wait_until_stable();
}

/// Sentinels and servers with passwords and TLS work.
#[test]
fn sentinels_use_passwords_and_tls() {
    let setup = sentinel::Setup {
        replicas: 1,
        password: Some("word"),
        sentinel_password: Some("guard"),
        tls_names: Some("DNS:redis.test"),
        ..sentinel::Setup::default()
    };
    let all = Sentinels::start_with(setup);
    let (promoted, _) = all.failover();
    all.wait_until_named(promoted);
    assert_eq!(all.primary_port(), all.servers[1].port);
}
