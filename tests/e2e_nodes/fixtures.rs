//! Tests of the fixtures themselves, without the proxy: the servers do what the other tests expect
//! of them.

use crate::common::cluster::{Cluster, Setup, keys_in_one_slot, slot_of};
use crate::common::fake_node::{FakeNode, redirection, shortest_gap};
use crate::common::resp::{RespClient, encode_words};
use crate::common::sentinel::{self, Sentinels};
use crate::common::versions::{Versions, Writer};
use crate::common::wait_for;
use redis::Value;
use std::time::{Duration, Instant};

/// The slots of keys are those that Redis computes.
#[test]
fn slots_are_those_of_redis() {
    let cluster = Cluster::shared();
    for key in ["", "a", "foo", "{tag}rest", "{}rest", "x{tag}", "x{{y}}z", "{a", "a}b{c}d{e}", "key-123"] {
        let slot: u16 = cluster.query(0, &["CLUSTER", "KEYSLOT", key]).expect("CLUSTER KEYSLOT works");
        assert_eq!(slot_of(key), slot, "{key}");
    }
    let keys = keys_in_one_slot("same", 3);
    assert!(keys.iter().all(|key| slot_of(key) == slot_of("same-0")), "{keys:?}");
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

/// A writer and readers of a migrating slot agree about its versions, without the proxy in between.
#[test]
fn writer_follows_migration() {
    let cluster = Cluster::shared();
    let keys = keys_in_one_slot("written", 10);
    let versions = Versions::new(&keys);
    versions.write_all(&mut cluster.client());
    let writer = Writer::start(&versions, cluster.client(), Duration::from_millis(1));
    let slot = slot_of(&keys[0]);
    for _ in 0..3 {
        let (from, to) = (cluster.owner_of_slot(slot), (cluster.owner_of_slot(slot) + 1) % 3);
        cluster.begin_migration(slot, from, to);
        while cluster.migrate_keys(slot, from, to, 2) > 0 {
            writer.wait_for_writes(10);
        }
        cluster.finish_migration(slot, to);
        writer.wait_for_writes(10);
    }
    let written = writer.stop();
    let mut client = cluster.client();
    for (at, key) in keys.iter().enumerate() {
        assert_eq!(client.get(key).expect("a version"), versions.newest(at).to_string(), "{key}");
    }
    assert!(written > 100, "{written} writes");
}

/// A scripted node is a node of a cluster in both protocols, except where its script differs.
#[test]
fn fake_node_speaks_both_protocols() {
    let nodes = FakeNode::start_cluster(2);
    let node = &nodes[0];
    node.set("a", "value");
    for url in [format!("redis://{}/", node.address()), format!("redis://{}/?protocol=resp3", node.address())] {
        let client = redis::Client::open(url).expect("a URL");
        let mut connection = client.get_connection().expect("the node accepts connections");
        let mut query = |words: &[&str]| redis::cmd(words[0]).arg(&words[1..]).query::<Value>(&mut connection);
        assert_eq!(query(&["GETRANGE", "a", "0", "2"]), Ok(Value::BulkString(b"val".to_vec())));
        assert_eq!(query(&["GET", "none"]), Ok(Value::Nil));
        assert_eq!((query(&["PTTL", "a"]), query(&["PTTL", "none"])), (Ok(Value::Int(-1)), Ok(Value::Int(-2))));
        assert_eq!(query(&["STRLEN", "a"]), Ok(Value::Int(5)));
        let Ok(Value::Array(ranges)) = query(&["CLUSTER", "SLOTS"]) else { panic!("no ranges") };
        let Value::Array(second) = &ranges[1] else { panic!("no range") };
        assert_eq!((ranges.len(), &second[0], &second[1]), (2, &Value::Int(8192), &Value::Int(16_383)));
        let id = query(&["CLUSTER", "MYID"]).map(|id| redis::from_redis_value::<String>(id).expect("text"));
        assert_eq!(id, Ok(node.id()));
        let info = query(&["CLUSTER", "INFO"]).map(|info| redis::from_redis_value::<String>(info).expect("text"));
        assert!(info.is_ok_and(|info| info.starts_with("cluster_state:ok\r\n")));
        node.on_call(|call| call.is_asking.then(|| redirection("MOVED", 1, ":7000")));
        query(&["ASKING"]).expect("ASKING works");
        assert_eq!(query(&["GET", "a"]).expect_err("a redirection").redirect_node(), Some((":7000", 1)));
        assert_eq!(query(&["GET", "a"]), Ok(Value::BulkString(b"value".to_vec())));
    }
    assert_eq!((node.calls("CLUSTER SLOTS").len(), node.calls("GET").len()), (2, 6));
    assert!(shortest_gap(&node.calls("GET")) < Duration::from_secs(60));
}

/// A scripted node sends invalidations to subscribers of either protocol.
#[test]
fn fake_node_invalidates() {
    let node = FakeNode::start('a');
    for (handshake, invalidation) in [
        ("HELLO 3", ">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\na\r\n"),
        ("PING", "*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n*1\r\n$1\r\na\r\n"),
    ] {
        let mut client = RespClient::connect(([127, 0, 0, 1], node.port));
        for command in [handshake, "CLIENT TRACKING ON BCAST", "SUBSCRIBE __redis__:invalidate"] {
            client.send(encode_words(command));
        }
        wait_for("the node tracks", || (node.count_trackers() == 1).then_some(()));
        node.invalidate("a");
        node.close_trackers();
        let received = client.read_to_close();
        assert!(received.ends_with(invalidation), "{received}");
        wait_for("the connection is gone", || (node.count_trackers() == 0).then_some(()));
    }
}
