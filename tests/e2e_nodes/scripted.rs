//! Tests with scripted nodes of a cluster: replies that real nodes give rarely or never.

use crate::common::admin::read_metric;
use crate::common::client::{Client, Reply, numbered_keys};
use crate::common::cluster::slot_of;
use crate::common::fake_node::{FakeNode, Range, redirection};
use crate::common::freshness::{is_hit, max_propagation, wait_until_tracking};
use crate::common::{Proxy, wait_for};
use crate::support::{
    INTERVAL, cache_all, check_outage, count_redirections, is_outage, max_delay, path_of, wait_until_outage,
    wait_until_served, wait_within,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Starts a proxy in front of scripted nodes, the first one as its only seed.
fn start_proxy(nodes: &[FakeNode], variables: &[(&str, &str)]) -> Proxy {
    let url = format!("redis://{}", nodes[0].address());
    let own = [("REDIS_MODE", "cluster"), ("REDIS_URL", url.as_str()), ("REDIS_CONNECTIONS", "1"), INTERVAL];
    Proxy::start_on_redis_port(0, &[&own, variables].concat())
}

/// Starts a proxy with active tracking.
fn start_tracking_proxy(nodes: &[FakeNode], variables: &[(&str, &str)]) -> Proxy {
    let proxy = start_proxy(nodes, &[&[("REDIS_TRACKING", "on"), ("CACHE_TTL", "600")], variables].concat());
    wait_until_tracking(&proxy, 1);
    proxy
}

/// Returns a key with the prefix `name` in the part of the slots that node `index` of `count` has.
fn key_of(index: u32, count: u32, name: &str) -> String {
    let is_there = |key: &String| u32::from(slot_of(key)) * count / 16_384 == index;
    (0..).map(|number| format!("{name}-{number}")).find(is_there).expect("an endless iterator")
}

/// Returns the number of commands that read keys.
fn count_reads(nodes: &[FakeNode]) -> usize {
    nodes.iter().map(|node| node.calls("GETRANGE").len() + node.calls("GET").len()).sum()
}

/// Keys of both nodes are served, and the invalidations of both are received.
#[test]
fn scripted_nodes_are_served() {
    let nodes = FakeNode::start_cluster(2);
    let keys = [key_of(0, 2, "a"), key_of(1, 2, "b")];
    nodes.iter().zip(&keys).for_each(|(node, key)| node.set(key, "1"));
    let proxy = start_tracking_proxy(&nodes, &[]);
    cache_all(&proxy, &keys, "1");
    for (node, key) in nodes.iter().zip(&keys) {
        node.set(key, "2");
        let set = Instant::now();
        node.invalidate(key);
        let mut client = proxy.connect();
        wait_within("the change", set, max_propagation(), || (client.get(&path_of(key)).text() == "2").then_some(()));
    }
    for node in &nodes {
        assert!(node.calls("READONLY").is_empty(), "a replica would serve old values");
        assert!(node.calls("SELECT").is_empty(), "nodes of a cluster refuse SELECT");
    }
}

/// A key moves between the two commands that read it. Both are read again at the new node, and the
/// connection to the old one is kept.
#[test]
fn key_moved_between_commands_is_read_again() {
    for kind in ["ASK", "MOVED"] {
        for redirected in ["PTTL", "GETRANGE"] {
            let nodes = FakeNode::start_cluster(2);
            let key = key_of(0, 2, "key");
            let proxy = start_proxy(&nodes, &[("CACHE_TTL", "600")]);
            assert_eq!(proxy.get(&path_of(&key)).status, 404);
            nodes[0].set(&key, "old");
            nodes[1].set(&key, "new");
            let (slot, address, moved) = (slot_of(&key), nodes[1].address(), key.clone());
            nodes[0].on_call(move |call| {
                let is_redirected = call.is_read() && call.key() == moved && call.name() == redirected;
                is_redirected.then(|| redirection(kind, slot, &address))
            });
            for mut client in Client::connect_mixed(proxy.address, 2) {
                assert_eq!(client.get(&key), Reply::Value("new".into()), "{kind} for {redirected}");
            }
            let response = proxy.get(&path_of(&key));
            assert_eq!(response.text(), "new");
            if kind == "ASK" {
                assert!(!is_hit(&response), "a value that came by ASK was cached");
                let reads = nodes[1].calls("GETRANGE");
                assert!(!reads.is_empty() && reads.iter().all(|call| call.is_asking), "{reads:?}");
                assert!(nodes[1].calls("PTTL").iter().all(|call| call.is_asking), "each command needs ASKING");
            }
            assert!(count_redirections(&proxy, &kind.to_lowercase()) >= 1.0);
            assert_eq!(read_metric(&proxy, "segment_redis_connections_lost_total"), 0.0);
            assert!(!proxy.log().contains("lost a connection to Redis"), "{}", proxy.log());
        }
    }
}

/// `TRYAGAIN` and `CLUSTERDOWN` are outages and never reach a client as they are. The value is
/// served once they end.
#[test]
fn temporary_errors_are_outages() {
    for error in [
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "CLUSTERDOWN The cluster is down",
        "CLUSTERDOWN Hash slot not served",
    ] {
        let nodes = FakeNode::start_cluster(2);
        let keys = [key_of(0, 2, "key"), key_of(1, 2, "other")];
        nodes.iter().zip(&keys).for_each(|(node, key)| node.set(key, "1"));
        let proxy = start_proxy(&nodes, &[("CACHE_TTL", "0.001")]);
        wait_until_served(&proxy, &keys[0], "1");
        let fails = Arc::new(AtomicBool::new(true));
        let failing = Arc::clone(&fails);
        nodes[0]
            .on_call(move |call| (call.is_read() && failing.load(Ordering::Relaxed)).then(|| format!("-{error}\r\n")));
        wait_until_outage(&proxy, &keys[0]);
        check_outage(&proxy, &keys[0]);
        wait_until_served(&proxy, &keys[1], "1");
        fails.store(false, Ordering::Relaxed);
        wait_until_served(&proxy, &keys[0], "1");
        assert!(!proxy.log().contains("please report"), "{}", proxy.log());
    }
}

/// With `STALE_IF_ERROR` an expired value is served while its node says `CLUSTERDOWN`.
#[test]
fn stale_value_bridges_clusterdown() {
    let nodes = FakeNode::start_cluster(2);
    let key = key_of(0, 2, "key");
    nodes[0].set(&key, "1");
    let proxy = start_proxy(&nodes, &[("CACHE_TTL", "0.001"), ("STALE_IF_ERROR", "600")]);
    wait_until_served(&proxy, &key, "1");
    nodes[0].on_call(|call| call.is_read().then(|| "-CLUSTERDOWN The cluster is down\r\n".into()));
    let reads = count_reads(&nodes);
    let mut clients = Client::connect_mixed(proxy.address, 2);
    wait_for("the node is asked", || {
        clients.iter_mut().for_each(|client| assert_eq!(client.get(&key), Reply::Value("1".into())));
        (count_reads(&nodes) > reads + 10).then_some(())
    });
}

/// Two nodes that redirect to each other end in the error of an outage, after few commands.
#[test]
fn redirection_loop_ends() {
    for kind in ["MOVED", "ASK"] {
        let nodes = FakeNode::start_cluster(2);
        let (key, other) = (key_of(0, 2, "key"), key_of(0, 2, "other"));
        nodes[0].set(&other, "1");
        let proxy = start_proxy(&nodes, &[("REDIS_TIMEOUT", "2000")]);
        wait_until_served(&proxy, &other, "1");
        for (node, target) in [(0, 1), (1, 0)] {
            let (slot, address, looping) = (slot_of(&key), nodes[target].address(), key.clone());
            nodes[node].on_call(move |call| {
                (call.is_read() && call.key() == looping).then(|| redirection(kind, slot, &address))
            });
        }
        nodes.iter().for_each(FakeNode::forget_calls);
        for mut client in Client::connect_mixed(proxy.address, 2) {
            let reply = client.get(&key);
            assert!(is_outage(&reply, client.is_http()), "{kind}: {reply:?}");
        }
        // Two requests with at most five redirections each.
        let reads = count_reads(&nodes);
        assert!((2..=14).contains(&reads), "{kind}: {reads} reads");
        wait_until_served(&proxy, &other, "1");
        nodes.iter().for_each(|node| node.on_call(|_| None));
        nodes[0].set(&key, "2");
        wait_until_served(&proxy, &key, "2");
    }
}

/// `MOVED` without a host means the host of the node that replies.
#[test]
fn redirection_without_host_is_followed() {
    for kind in ["MOVED", "ASK"] {
        let nodes = FakeNode::start_cluster(2);
        let key = key_of(0, 2, "key");
        nodes[1].set(&key, "1");
        let (slot, address, moved) = (slot_of(&key), format!(":{}", nodes[1].port), key.clone());
        nodes[0]
            .on_call(move |call| (call.is_read() && call.key() == moved).then(|| redirection(kind, slot, &address)));
        let proxy = start_proxy(&nodes, &[]);
        wait_until_served(&proxy, &key, "1");
    }
}

/// A redirection to a node that the slot map does not know yet is followed once the map knows it.
#[test]
fn unknown_target_waits_for_the_map() {
    let nodes = FakeNode::start_cluster(1);
    let joined = FakeNode::start('n');
    let key = key_of(0, 1, "key");
    nodes[0].set(&key, "old");
    joined.set(&key, "new");
    let proxy = start_proxy(&nodes, &[("CACHE_TTL", "0.001")]);
    wait_until_served(&proxy, &key, "old");
    let slot = slot_of(&key);
    let before = nodes[0].range(0, slot - 1);
    let ranges = [before, joined.range(slot, slot), nodes[0].range(slot + 1, 16_383)];
    joined.set_ranges(&ranges);
    nodes[0].set_ranges(&ranges);
    let (address, moved) = (joined.address(), key.clone());
    nodes[0].on_call(move |call| (call.is_read() && call.key() == moved).then(|| redirection("MOVED", slot, &address)));
    for mut client in Client::connect_mixed(proxy.address, 2) {
        wait_for("the new value", || {
            let reply = client.get(&key);
            // The old value is cached for a moment.
            assert!(reply == Reply::Value("new".into()) || reply == Reply::Value("old".into()), "{reply:?}");
            (reply == Reply::Value("new".into())).then_some(())
        });
    }
    wait_for("the map is known", || (read_metric(&proxy, "segment_redis_nodes") == 2.0).then_some(()));
}

/// A redirection to a port where no server listens is an outage, and does not last longer than
/// the redirection.
#[test]
fn redirection_to_dead_node_is_an_outage() {
    let nodes = FakeNode::start_cluster(2);
    let key = key_of(0, 2, "key");
    nodes[0].set(&key, "1");
    let proxy = start_proxy(&nodes, &[("REDIS_TIMEOUT", "2000"), ("CACHE_TTL", "0.001")]);
    wait_until_served(&proxy, &key, "1");
    let (slot, address) = (slot_of(&key), format!("127.0.0.1:{}", crate::common::stable_port()));
    for kind in ["MOVED", "ASK"] {
        let (address, moved) = (address.clone(), key.clone());
        nodes[0]
            .on_call(move |call| (call.is_read() && call.key() == moved).then(|| redirection(kind, slot, &address)));
        // The value is cached for a moment.
        wait_until_outage(&proxy, &key);
        nodes[0].on_call(|_| None);
        wait_until_served(&proxy, &key, "1");
    }
}

/// Hosts in the slot map: nil and the empty string are the host that was asked. The host of `?` is
/// unknown; its keys fail, and others are served.
#[test]
fn special_hosts_are_understood() {
    for (host, is_known) in [(None, true), (Some(""), true), (Some("?"), false)] {
        let nodes = FakeNode::start_cluster(2);
        let keys = [key_of(0, 2, "key"), key_of(1, 2, "key")];
        nodes.iter().zip(&keys).for_each(|(node, key)| node.set(key, "1"));
        let named: [Range; 2] = [nodes[0].range(0, 8191), nodes[1].range(8192, 16_383)];
        let mut ranges = named.clone();
        ranges[1].host = host.map(str::to_owned);
        nodes.iter().for_each(|node| node.set_ranges(&ranges));
        let proxy = start_proxy(&nodes, &[("REDIS_TIMEOUT", "1000"), ("CACHE_TTL", "0.001")]);
        wait_until_served(&proxy, &keys[0], "1");
        match is_known {
            true => wait_until_served(&proxy, &keys[1], "1"),
            false => check_outage(&proxy, &keys[1]),
        }
        nodes.iter().for_each(|node| node.set_ranges(&named));
        let changed = Instant::now();
        wait_within("the named host is used", changed, max_delay(), || {
            matches!(Client::connect_http(proxy.address).get(&keys[1]), Reply::Value(_)).then_some(())
        });
    }
}

/// An empty slot map at start is an outage until the cluster has slots. An empty one later, as of a
/// node that was reset, replaces no other one.
#[test]
fn empty_map_is_an_outage() {
    let nodes = FakeNode::start_cluster(2);
    let keys = [key_of(0, 2, "key"), key_of(1, 2, "key")];
    nodes.iter().zip(&keys).for_each(|(node, key)| node.set(key, "1"));
    let full = [nodes[0].range(0, 8191), nodes[1].range(8192, 16_383)];
    nodes.iter().for_each(|node| node.set_ranges(&[]));
    let proxy = start_proxy(&nodes, &[("REDIS_TIMEOUT", "1000"), ("CACHE_TTL", "0.001")]);
    keys.iter().for_each(|key| check_outage(&proxy, key));
    nodes.iter().for_each(|node| node.set_ranges(&full));
    keys.iter().for_each(|key| wait_until_served(&proxy, key, "1"));
    nodes.iter().for_each(|node| node.set_ranges(&[]));
    let polls = read_metric(&proxy, "segment_redis_topology_requests_total");
    wait_for("the empty map is seen", || {
        (read_metric(&proxy, "segment_redis_topology_requests_total") >= polls + 3.0).then_some(())
    });
    for (key, mut client) in keys.iter().zip(Client::connect_mixed(proxy.address, 2)) {
        assert_eq!(client.get(key), Reply::Value("1".into()));
    }
    // A part of the slots only.
    nodes.iter().for_each(|node| node.set_ranges(&full[..1]));
    wait_until_served(&proxy, &keys[0], "1");
    nodes.iter().for_each(|node| node.set_ranges(&full));
    keys.iter().for_each(|key| wait_until_served(&proxy, key, "1"));
}

/// Ten thousand redirections cause no storm of topology requests: they are at least 100 ms apart.
#[test]
fn redirections_cause_no_refresh_storm() {
    const KEYS: usize = 10_000;
    let nodes = FakeNode::start_cluster(2);
    let target = nodes[1].address();
    nodes[0].on_call(move |call| call.is_read().then(|| redirection("MOVED", slot_of(call.key()), &target)));
    let keys = numbered_keys("storm", KEYS);
    keys.iter().for_each(|key| nodes[1].set(key, "1"));
    let proxy = start_proxy(&nodes, &[("REDIS_TOPOLOGY_INTERVAL", "60000"), ("CACHE_TTL", "600")]);
    wait_until_served(&proxy, &keys[0], "1");
    let requests = read_metric(&proxy, "segment_redis_topology_requests_total");
    nodes.iter().for_each(FakeNode::forget_calls);
    let began = Instant::now();
    let mut client = Client::connect_resp(proxy.address);
    for batch in keys.chunks(100) {
        client.send_gets(batch);
        batch.iter().for_each(|key| assert_eq!(client.read_reply(), Reply::Value("1".into()), "{key}"));
    }
    let count = || read_metric(&proxy, "segment_redis_topology_requests_total") - requests;
    let moved = count_redirections(&proxy, "moved");
    println!("{moved} MOVED in {:?}: {} topology requests", began.elapsed(), count());
    assert!(moved > 1000.0, "{moved} redirections are too few to judge");
    // One may follow the first read, which waited for the first map.
    assert!(count() <= 1.0, "the target is known, so nothing is to be found");
    // No node knows this target.
    let target = format!("127.0.0.1:{}", crate::common::stable_port());
    nodes[0].on_call(move |call| call.is_read().then(|| redirection("MOVED", slot_of(call.key()), &target)));
    let began = Instant::now();
    for round in 0..3 {
        let unknown = numbered_keys(&format!("unknown-{round}"), 300);
        client.send_gets(&unknown);
        let replies: Vec<Reply> = unknown.iter().map(|_| client.read_reply()).collect();
        assert!(replies.iter().any(|reply| is_outage(reply, false)), "{:?}", replies[0]);
    }
    let limit = began.elapsed().as_millis() as usize / 100 + 2;
    let slots: Vec<usize> = nodes.iter().map(|node| node.calls("CLUSTER SLOTS").len()).collect();
    println!("{} topology requests in {:?}, {slots:?} at the nodes", count(), began.elapsed());
    assert!(count() as usize <= limit && slots.iter().all(|&count| count <= limit), "more than {limit} requests");
    assert!(count() >= 3.0, "redirections to an unknown node cause no request");
}

/// A node with another identity than the slot map says is refused. Its values are never served.
#[test]
fn other_identity_is_refused() {
    let nodes = FakeNode::start_cluster(2);
    let keys = [key_of(0, 2, "key"), key_of(1, 2, "key")];
    nodes.iter().zip(&keys).for_each(|(node, key)| node.set(key, "1"));
    // The map of the first node still has the former identity.
    nodes[1].set_id('f');
    let proxy = start_proxy(&nodes, &[("REDIS_TIMEOUT", "1000")]);
    wait_until_served(&proxy, &keys[0], "1");
    wait_until_outage(&proxy, &keys[1]);
    check_outage(&proxy, &keys[1]);
    assert!(nodes[1].calls("GETRANGE").is_empty() && nodes[1].calls("GET").is_empty(), "a foreign node was read");
    nodes[1].set_id('b');
    wait_until_served(&proxy, &keys[1], "1");
}

/// Managed services may lack `CLUSTER MYID`. Their nodes are used.
#[test]
fn missing_myid_is_tolerated() {
    let nodes = FakeNode::start_cluster(2);
    let key = key_of(1, 2, "key");
    nodes[1].set(&key, "1");
    for node in &nodes {
        node.on_call(|call| {
            let is_myid = call.name() == "CLUSTER" && call.words[1] == "MYID";
            is_myid.then(|| "-ERR unknown subcommand 'MYID'. Try CLUSTER HELP.\r\n".into())
        });
    }
    let proxy = start_tracking_proxy(&nodes, &[]);
    wait_until_served(&proxy, &key, "1");
}

/// A node that refuses tracking leaves `CACHE_TTL` as the bound for all, and is named.
#[test]
fn one_node_without_tracking_is_named() {
    let nodes = FakeNode::start_cluster(2);
    let keys = [key_of(0, 2, "key"), key_of(1, 2, "key")];
    nodes.iter().zip(&keys).for_each(|(node, key)| node.set(key, "1"));
    nodes[1].on_call(|call| {
        let is_tracking = call.name() == "CLIENT" && call.words[1] == "TRACKING";
        is_tracking.then(|| "-NOPERM this user has no permissions to run the 'client|tracking' command\r\n".into())
    });
    let proxy = start_proxy(&nodes, &[("REDIS_TRACKING", "on"), ("CACHE_TTL", "600")]);
    proxy.wait_for_log(&format!("(tracking inactive: {}: ", nodes[1].address()));
    assert_eq!(read_metric(&proxy, "segment_tracking_active"), 0.0);
    keys.iter().for_each(|key| wait_until_served(&proxy, key, "1"));
    nodes[1].on_call(|_| None);
    wait_until_tracking(&proxy, 1);
    cache_all(&proxy, &keys, "1");
}

/// A node that becomes a replica, or whose cluster fails, ends the guarantee within a few seconds,
/// though its tracking connection stays open.
#[test]
fn changed_role_or_state_ends_tracking() {
    let replica = "*5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:1\r\n$9\r\nconnected\r\n:1\r\n";
    for (name, reply) in [("ROLE", replica), ("CLUSTER", "$18\r\ncluster_state:fail\r\n")] {
        let nodes = FakeNode::start_cluster(2);
        let keys = [key_of(0, 2, "key"), key_of(1, 2, "key")];
        nodes.iter().zip(&keys).for_each(|(node, key)| node.set(key, "1"));
        let proxy = start_tracking_proxy(&nodes, &[]);
        cache_all(&proxy, &keys, "1");
        let changed = Instant::now();
        nodes[1].on_call(move |call| {
            let is_replaced = call.name() == name && (name == "ROLE" || call.words[1] == "INFO");
            is_replaced.then(|| reply.to_owned())
        });
        wait_within("tracking is lost", changed, Duration::from_secs(1) + max_delay(), || {
            proxy.log().contains(&format!("(tracking inactive: {}: ", nodes[1].address())).then_some(())
        });
        nodes[1].on_call(|_| None);
        wait_until_tracking(&proxy, 2);
        cache_all(&proxy, &keys, "1");
    }
}

/// A node that refuses `HELLO 3` is tracked in RESP2.
#[test]
fn refused_hello_falls_back_to_resp2() {
    let nodes = FakeNode::start_cluster(2);
    let keys = [key_of(0, 2, "key"), key_of(1, 2, "key")];
    nodes.iter().zip(&keys).for_each(|(node, key)| node.set(key, "1"));
    for node in &nodes {
        node.on_call(|call| (call.name() == "HELLO").then(|| "-NOPERM no permission for 'hello'\r\n".into()));
    }
    let proxy = start_tracking_proxy(&nodes, &[]);
    cache_all(&proxy, &keys, "1");
    nodes[1].set(&keys[1], "2");
    nodes[1].invalidate(&keys[1]);
    wait_for("the change", || (proxy.get(&path_of(&keys[1])).text() == "2").then_some(()));
}

/// A user without the permission for `CLUSTER SLOTS` cannot use a cluster. The log says so.
#[test]
fn denied_topology_is_named() {
    let nodes = FakeNode::start_cluster(1);
    nodes[0].on_call(|call| {
        let text = "-NOPERM this user has no permissions to run the 'cluster|slots' command\r\n";
        (call.name() == "CLUSTER").then(|| text.into())
    });
    let proxy = start_proxy(&nodes, &[("REDIS_TIMEOUT", "1000")]);
    proxy.wait_for_log("no permissions to run the 'cluster|slots' command; grant the ACL permissions");
    let response = proxy.get("/raw/a");
    assert!(matches!(response.status, 502..=504), "{response:?}");
}

/// A user without the permission for `ASKING` cannot read keys that move. The client gets the error
/// of Redis, and the log names the permission.
#[test]
fn denied_asking_is_named() {
    let nodes = FakeNode::start_cluster(2);
    let (key, other) = (key_of(0, 2, "key"), key_of(1, 2, "other"));
    nodes[1].set(&other, "1");
    let (slot, address) = (slot_of(&key), nodes[1].address());
    nodes[0].on_call(move |call| call.is_read().then(|| redirection("ASK", slot, &address)));
    nodes[1].on_call(|call| {
        let text = "-NOPERM this user has no permissions to run the 'asking' command\r\n";
        (call.name() == "ASKING").then(|| text.into())
    });
    let proxy = start_proxy(&nodes, &[]);
    wait_until_served(&proxy, &other, "1");
    let response = proxy.get(&path_of(&key));
    assert!(response.status == 502 && response.text().contains("NOPERM"), "{response:?}");
    proxy.wait_for_log("denies ASKING: keys that move between nodes cannot be read; grant +asking");
    wait_until_served(&proxy, &other, "1");
}

/// A server without a cluster is named, with the variable to change.
#[test]
fn server_without_cluster_is_named() {
    let redis = crate::common::Redis::start();
    let url = format!("redis://127.0.0.1:{}", redis.port);
    let proxy = Proxy::start_on_redis_port(0, &[("REDIS_MODE", "cluster"), ("REDIS_URL", &url), INTERVAL]);
    proxy.wait_for_log("REDIS_MODE");
    assert_ne!(proxy.get("/raw/a").status, 200);
}
