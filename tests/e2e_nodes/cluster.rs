//! Tests of Redis Cluster without faults: routing, invalidations, seeds, passwords, TLS, and
//! failovers on request.

use crate::common::admin::read_metric;
use crate::common::client::{Client, Reply, numbered_keys, value_of, wait_until_all_served};
use crate::common::cluster::{Cluster, Setup, slot_of};
use crate::common::freshness::{is_hit, max_propagation, wait_until_cached};
use crate::common::resp::{RespClient, encode_command};
use crate::common::versions::{Readers, Versions, Writer};
use crate::common::{Proxy, stable_port, wait_for};
use crate::support::{
    INTERVAL, cache_all, count_redirections, max_delay, path_of, set_all, wait_until_all_track, wait_until_served,
    wait_within,
};
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

/// Returns `count` keys of each of the three primaries, with their values written.
fn fill(cluster: &Cluster, name: &str, count: usize) -> Vec<String> {
    let keys: Vec<String> = (0..3).flat_map(|index| cluster.keys_of(index, name, count)).collect();
    let mut client = cluster.client();
    keys.iter().for_each(|key| client.set(key, value_of(key)));
    keys
}

/// Keys of all nodes are served over both protocols, each by its own node, long values too.
#[test]
fn keys_of_all_nodes_are_served() {
    let cluster = Cluster::shared();
    let keys = fill(&cluster, "served", 50);
    let long = "x".repeat(300_000);
    let long_keys: Vec<String> = (0..3).map(|index| cluster.keys_of(index, "long", 1).remove(0)).collect();
    set_all(&mut cluster.client(), &long_keys, &long);
    let proxy = cluster.start_proxy(&[INTERVAL]);
    wait_until_all_served(&proxy, &keys);
    for key in &long_keys {
        assert_eq!(proxy.get(&path_of(key)).text(), long, "{key}");
    }
    assert!(is_hit(&proxy.get(&path_of(&keys[0]))));
    for index in 0..3 {
        let missing = &cluster.keys_of(index, "missing", 1)[0];
        assert_eq!(proxy.get(&path_of(missing)).status, 404);
        assert_eq!(RespClient::connect(proxy.address).call_text(&format!("GET {missing}")), "$-1\r\n");
    }
    assert_eq!(read_metric(&proxy, "segment_redis_nodes"), 3.0);
    assert_eq!(read_metric(&proxy, "segment_redis_nodes_unavailable"), 0.0);
    assert_eq!((count_redirections(&proxy, "moved"), count_redirections(&proxy, "ask")), (0.0, 0.0));
}

/// `MGET` and `EXISTS` of keys in several slots give one reply, in the order of the keys.
#[test]
fn multi_key_commands_span_slots() {
    let cluster = Cluster::shared();
    let mut keys = fill(&cluster, "multi", 20);
    keys.insert(7, "not there".into());
    keys.push(keys[3].clone());
    let value = |key: &String| match key.as_str() {
        "not there" => "$-1\r\n".to_owned(),
        key => format!("${}\r\n{}\r\n", value_of(key).len(), value_of(key)),
    };
    let expected = format!("*{}\r\n{}", keys.len(), keys.iter().map(value).collect::<String>());
    let proxy = cluster.start_proxy(&[]);
    let mut client = RespClient::connect(proxy.address);
    let command = |name: &str| {
        let words: Vec<&str> = std::iter::once(name).chain(keys.iter().map(String::as_str)).collect();
        encode_command(&words)
    };
    // From the nodes, then from the cache.
    for _ in 0..2 {
        assert_eq!(String::from_utf8_lossy(&client.call(command("MGET"))), expected);
    }
    assert_eq!(String::from_utf8_lossy(&client.call(command("EXISTS"))), format!(":{}\r\n", keys.len() - 1));
}

/// The slot of a key with a hash tag is that of the tag, over both protocols.
#[test]
fn hash_tags_select_the_node() {
    let cluster = Cluster::shared();
    let keys: Vec<String> =
        ["{tag-1}a", "b{tag-1}", "{tag-1}{tag-2}", "{}c", "{{tag-1}}", "d}e{f", "{"].map(str::to_owned).to_vec();
    let mut client = cluster.client();
    keys.iter().for_each(|key| client.set(key, value_of(key)));
    let proxy = cluster.start_proxy(&[]);
    for key in &keys {
        assert_eq!(Client::connect_resp(proxy.address).get(key), Reply::Value(value_of(key)));
        assert_eq!(Client::connect_http(proxy.address).get(key), Reply::Value(value_of(key)));
    }
    assert_eq!(count_redirections(&proxy, "moved"), 0.0, "a slot was computed wrongly");
}

/// Every worker receives the invalidations of every node.
#[test]
fn every_node_invalidates_every_worker() {
    let cluster = Cluster::shared();
    let proxy = cluster.start_tracking_proxy(&[INTERVAL, ("WORKERS", "2")]);
    wait_until_all_track(&proxy);
    assert_eq!(read_metric(&proxy, "segment_redis_nodes"), 3.0);
    let keys: Vec<String> = (0..3).map(|index| cluster.keys_of(index, "tracked", 1).remove(0)).collect();
    // The kernel spreads connections over the workers.
    let mut clients: Vec<_> = (0..16).map(|_| proxy.connect()).collect();
    for round in 0..5 {
        for key in &keys {
            let value = format!("{key} {round}");
            cluster.set(key, &value);
            let set = Instant::now();
            for client in &mut clients {
                wait_within("the change is seen", set, max_propagation(), || {
                    (client.get(&path_of(key)).text() == value).then_some(())
                });
            }
            clients.iter_mut().for_each(|client| wait_until_cached(client, &path_of(key), &value));
        }
    }
    assert!(!proxy.log().contains("tracking inactive"), "{}", proxy.log());
}

/// A seed that is dead, and one that never replies, are skipped.
#[test]
fn unusable_seeds_are_skipped() {
    let cluster = Cluster::shared();
    let keys = fill(&cluster, "seeded", 5);
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent = silent.local_addr().expect("an address").port();
    let url = format!("redis://127.0.0.1:{},127.0.0.1:{silent},127.0.0.1:{}", stable_port(), cluster.port(1));
    let proxy = cluster.start_proxy(&[INTERVAL, ("REDIS_URL", &url), ("REDIS_TIMEOUT", "500")]);
    wait_until_all_served(&proxy, &keys);
    let proxy = cluster.start_tracking_proxy(&[INTERVAL, ("REDIS_URL", &url), ("REDIS_TIMEOUT", "500")]);
    wait_until_all_served(&proxy, &keys);
}

/// Nodes that report no address of their own are found at the host that was asked (MOVED names
/// only a port then).
#[test]
fn nodes_without_address_are_found() {
    let arguments = vec!["--cluster-preferred-endpoint-type", "unknown-endpoint"];
    let cluster = Cluster::start_with(Setup { arguments, ..Setup::default() });
    let keys = fill(&cluster, "nil", 5);
    let proxy = cluster.start_tracking_proxy(&[INTERVAL, ("REDIS_URL", &cluster.url_of(&[1]))]);
    wait_until_all_served(&proxy, &keys);
    let slot = slot_of(&keys[0]);
    cluster.move_slot(slot, 2, 10);
    wait_until_served(&proxy, &keys[0], &value_of(&keys[0]));
}

/// The topology is asked for in each interval.
#[test]
fn topology_is_polled() {
    let cluster = Cluster::shared();
    let proxy = cluster.start_proxy(&[("REDIS_TOPOLOGY_INTERVAL", "100")]);
    let began = Instant::now();
    wait_for("ten polls", || (read_metric(&proxy, "segment_redis_topology_requests_total") >= 10.0).then_some(()));
    assert!(began.elapsed() > Duration::from_millis(600), "the polls came after {:?}", began.elapsed());
}

/// Fetchers, trackers and the topology use the password. A wrong one is named and not shown.
#[test]
fn passwords_are_used() {
    let cluster = Cluster::start_with(Setup { password: Some("word"), ..Setup::default() });
    let keys = fill(&cluster, "locked", 5);
    let proxy = cluster.start_tracking_proxy(&[INTERVAL]);
    wait_until_all_served(&proxy, &keys);
    let moved = &keys[0];
    cluster.move_slot(slot_of(moved), 1, 10);
    wait_until_served(&proxy, moved, &value_of(moved));
    let wrong = cluster.url().replace(":word@", ":secret@");
    let proxy = cluster.start_proxy(&[INTERVAL, ("REDIS_URL", &wrong)]);
    proxy.wait_for_log("check the user and the password");
    let response = proxy.get(&path_of(&keys[1]));
    assert!(matches!(response.status, 502 | 503), "{response:?}");
    assert!(!proxy.log().contains("secret") && !response.text().contains("secret"), "the password is shown");
}

/// Starts a cluster with TLS, reads all its nodes and follows a moved slot.
fn check_tls(names: &'static str, arguments: &[&'static str], variables: &[(&str, &str)], host: &str) {
    let arguments = arguments.to_vec();
    let cluster = Cluster::start_with(Setup { tls_names: Some(names), arguments, ..Setup::default() });
    let keys = fill(&cluster, "secured", 5);
    let url = cluster.url_of(&[0]).replace("127.0.0.1", host);
    let base = [INTERVAL, ("REDIS_URL", url.as_str())];
    let proxy = cluster.start_tracking_proxy(&[&base[..], variables].concat());
    wait_until_all_served(&proxy, &keys);
    cluster.move_slot(slot_of(&keys[0]), 2, 10);
    wait_until_served(&proxy, &keys[0], &value_of(&keys[0]));
    cluster.set(&keys[6], "changed");
    let set = Instant::now();
    let mut client = proxy.connect();
    wait_within("the change is seen", set, max_propagation(), || {
        (client.get(&path_of(&keys[6])).text() == "changed").then_some(())
    });
}

/// The addresses in `CLUSTER SLOTS` are verified as they are, or by `REDIS_TLS_NAME`.
#[test]
fn tls_verifies_addresses_or_the_name() {
    check_tls("IP:127.0.0.1", &[], &[], "127.0.0.1");
    check_tls("DNS:redis.test", &[], &[("REDIS_TLS_NAME", "redis.test")], "127.0.0.1");
}

/// Names that nodes announce are verified.
#[test]
fn tls_verifies_announced_names() {
    let arguments = ["--cluster-announce-hostname", "localhost", "--cluster-preferred-endpoint-type", "hostname"];
    check_tls("DNS:localhost", &arguments, &[], "localhost");
}

/// Nodes with a certificate for another name are refused, and the log names the remedy.
#[test]
fn tls_refuses_another_name() {
    let cluster = Cluster::start_with(Setup { tls_names: Some("DNS:redis.test"), ..Setup::default() });
    cluster.set("a", "1");
    let proxy = cluster.start_proxy(&[INTERVAL]);
    proxy.wait_for_log("or set REDIS_TLS_NAME to one");
    assert_eq!(proxy.get("/raw/a").status, 503);
}

/// A database other than 0 and a Unix socket are refused at start.
#[test]
fn database_and_unix_socket_are_refused() {
    for url in ["redis://127.0.0.1:1/3", "unix:///tmp/redis.sock"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"));
        command.arg("check").env_clear().envs([("REDIS_MODE", "cluster"), ("REDIS_URL", url), ("CACHE_SIZE", "100")]);
        let output = command.output().expect("the binary runs");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.code() == Some(2) && text.contains("cluster"), "{url}: {:?} {text}", output.status);
    }
}

/// A failover on request leaves no value stale for longer than the interval allows, under writes.
/// After it, changes are visible at once again.
#[test]
fn failover_leaves_nothing_stale() {
    let cluster = Cluster::start_with_replicas();
    let proxy = cluster.start_tracking_proxy(&[INTERVAL]);
    let keys: Vec<String> = (0..3).flat_map(|index| cluster.keys_of(index, "failover", 4)).collect();
    let versions = Versions::new(&keys);
    versions.write_all(&mut cluster.client());
    let readers = Readers::start(&proxy, &versions, 4, max_delay());
    let writer = Writer::start(&versions, cluster.client(), Duration::from_millis(2));
    readers.wait_for_replies(200);
    let changes = read_metric(&proxy, "segment_redis_topology_changes_total");
    let mut primary = 1;
    // There and back.
    for _ in 0..2 {
        (primary, _) = cluster.failover(primary);
        writer.wait_for_writes(50);
        readers.wait_for_replies(500);
        cluster.wait_until_agreed();
        cluster.wait_for_replicas();
    }
    // From now on the promised delay is over.
    std::thread::sleep(max_delay());
    let report = readers.stop();
    println!("{} replies, {} errors, the longest after {:?}", report.replies, report.errors.len(), report.longest);
    report.check_fresh();
    report.check_errors_are_outages();
    wait_until_all_track(&proxy);
    let readers = Readers::start(&proxy, &versions, 4, max_propagation());
    readers.wait_for_replies(500);
    writer.wait_for_writes(50);
    let report = readers.stop();
    writer.stop();
    report.check_fresh();
    report.check_no_errors();
    assert!(read_metric(&proxy, "segment_redis_topology_changes_total") >= changes + 2.0);
    check_hits(&proxy, &keys);
}

/// Checks that keys become hits again.
fn check_hits(proxy: &Proxy, keys: &[String]) {
    let mut client = proxy.connect();
    for key in keys {
        wait_for("a hit", || is_hit(&client.get(&path_of(key))).then_some(()));
    }
}

/// Without tracking, a failover drops the entries, because the new primary may have other values.
#[test]
fn failover_flushes_without_tracking() {
    let cluster = Cluster::start_with_replicas();
    let proxy = cluster.start_proxy(&[INTERVAL, ("CACHE_TTL", "600")]);
    let keys = cluster.keys_of(1, "untracked", 3);
    set_all(&mut cluster.client(), &keys, "1");
    cluster.wait_until_replicated(1);
    cache_all(&proxy, &keys, "1");
    let (_, promoted) = cluster.failover(1);
    // Nothing reads the keys until the change: a read in between could be cached for CACHE_TTL.
    set_all(&mut cluster.client(), &keys, "2");
    let mut client = proxy.connect();
    for key in &keys {
        wait_within("the entry is dropped", promoted, max_delay(), || {
            (client.get(&path_of(key)).text() == "2").then_some(())
        });
    }
}

/// Many keys of all nodes, requested at once by many clients, each get their own value.
#[test]
fn batches_are_split_by_node() {
    let cluster = Cluster::shared();
    let keys = numbered_keys("batch", 2000);
    let mut client = cluster.client();
    keys.iter().for_each(|key| client.set(key, value_of(key)));
    for connections in ["1", "4"] {
        let proxy = cluster.start_proxy(&[("REDIS_CONNECTIONS", connections), ("CACHE_TTL", "0.001")]);
        (0..3).for_each(|_| wait_until_all_served(&proxy, &keys));
        assert_eq!(count_redirections(&proxy, "moved"), 0.0);
    }
}
