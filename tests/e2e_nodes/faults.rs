//! Tests of a real cluster with nodes that are killed, stopped, cut off or replaced by another.

use crate::common::admin::read_metric;
use crate::common::client::{Client, Reply, percentile, value_of, wait_until_all_served};
use crate::common::cluster::{Cluster, Setup, slot_of};
use crate::common::freshness::{is_hit, max_propagation, wait_until_tracking};
use crate::common::versions::{Readers, Versions, Writer};
use crate::common::{Proxy, Redis, stable_port, wait_for};
use crate::support::{
    INTERVAL, cache_all, check_outage, is_outage, max_delay, path_of, set_all, wait_until_all_track, wait_until_outage,
    wait_until_served,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Argument with which the other nodes go on serving after one is lost.
const PARTIAL_COVERAGE: [&str; 2] = ["--cluster-require-full-coverage", "no"];

/// Starts a cluster whose nodes serve while another one is lost.
fn start_cluster(replicas: usize) -> Cluster {
    Cluster::start_with(Setup { replicas, arguments: PARTIAL_COVERAGE.to_vec(), ..Setup::default() })
}

/// Reader of keys that are never cached. All replies must be values.
struct MissReader {
    stop: Arc<AtomicBool>,
    /// Number of replies.
    replies: Arc<AtomicU64>,
    thread: JoinHandle<Vec<Duration>>,
}

impl MissReader {
    /// Starts to read keys that have their values, for the first time. A key is read once.
    fn start(proxy: &Proxy, keys: Vec<String>) -> MissReader {
        let (stop, replies) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counter, address) = (Arc::clone(&stop), Arc::clone(&replies), proxy.address);
        let thread = std::thread::spawn(move || {
            let mut clients = Client::connect_mixed(address, 2);
            let mut times = Vec::new();
            for (at, key) in keys.iter().enumerate() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let sent = Instant::now();
                assert_eq!(clients[at % 2].get(key), Reply::Value(value_of(key)));
                times.push(sent.elapsed());
                counter.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
            times
        });
        MissReader { stop, replies, thread }
    }

    /// Waits for enough replies to judge and ends the reader. Returns the median and the 99th
    /// percentile.
    fn stop(self) -> (Duration, Duration) {
        let is_done = || self.thread.is_finished() || self.replies.load(Ordering::Relaxed) >= 100;
        wait_for("a hundred misses", || is_done().then_some(()));
        self.stop.store(true, Ordering::Relaxed);
        let mut times = self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(times.len() >= 100, "{} reads are too few to judge", times.len());
        (percentile(&mut times, 0.5), percentile(&mut times, 0.99))
    }
}

/// Returns keys of the first and the third primary, with their values written.
fn fill_others(cluster: &Cluster, name: &str, count: usize) -> Vec<String> {
    let keys: Vec<String> = cluster
        .keys_of(0, name, count)
        .into_iter()
        .zip(cluster.keys_of(2, name, count))
        .flat_map(<[_; 2]>::from)
        .collect();
    let mut client = cluster.client();
    keys.iter().for_each(|key| client.set(key, value_of(key)));
    keys
}

/// Checks times that must not depend on a lost node. A read that waited for it would exceed the
/// median; the rest depends on the machine.
fn check_unaffected((median, p99): (Duration, Duration)) {
    println!("misses at other nodes: median {median:?}, p99 {p99:?}");
    assert!(median < Duration::from_millis(250), "the median is {median:?}");
}

/// Loses the second primary by `lose`, and checks that others are served meanwhile, that its own
/// keys fail as outages, and that only new values are seen once its replica is promoted.
fn check_lost_primary(variables: &[(&str, &str)], lose: fn(&mut Cluster), recover: fn(&mut Cluster)) {
    let mut cluster = start_cluster(1);
    let proxy = cluster.start_tracking_proxy(&[&[INTERVAL], variables].concat());
    let versions = Versions::new(&cluster.keys_of(1, "lost", 10));
    let others = fill_others(&cluster, "other", 3000);
    versions.write_all(&mut cluster.client());
    cluster.wait_until_replicated(1);
    let readers = Readers::start(&proxy, &versions, 4, max_delay());
    let before = MissReader::start(&proxy, others[..200].to_vec());
    readers.wait_for_replies(200);
    check_unaffected(before.stop());
    let during = MissReader::start(&proxy, others[200..].to_vec());
    lose(&mut cluster);
    let lost = Instant::now();
    cluster.wait_for_promotion(4);
    println!("promoted after {:?}", lost.elapsed());
    // A new client, which does not wait for the lost node.
    let mut client = cluster.client();
    versions.write_all(&mut client);
    let written = Instant::now();
    // At once: reads that wait at a stopped primary are answered with old values then.
    recover(&mut cluster);
    check_unaffected(during.stop());
    let writer = Writer::start(&versions, client, Duration::from_millis(2));
    wait_for("the promised delay is over", || (written.elapsed() > max_delay()).then_some(()));
    readers.wait_for_replies(500);
    writer.wait_for_writes(50);
    let report = readers.stop();
    println!("{} replies, {} errors, the longest after {:?}", report.replies, report.errors.len(), report.longest);
    report.check_fresh();
    report.check_errors_are_outages();
    let late: Vec<_> = report.errors.iter().filter(|error| error.at > written + max_delay()).take(3).collect();
    assert!(late.is_empty(), "errors long after the promotion: {late:#?}");
    if variables.iter().any(|(name, _)| *name == "STALE_IF_ERROR") {
        // Reads that fail at the lost node in the moment of the flush find no stale value.
        assert!(report.errors.len() <= 20, "{} of {} requests failed", report.errors.len(), report.replies);
    } else {
        assert!(!report.errors.is_empty(), "the lost node still served");
    }
    wait_until_all_track(&proxy);
    let readers = Readers::start(&proxy, &versions, 4, max_propagation());
    readers.wait_for_replies(500);
    let report = readers.stop();
    writer.stop();
    report.check_fresh();
    report.check_no_errors();
}

/// A killed primary: its keys fail until the replica is promoted, then they are new. Others do not
/// notice.
#[test]
fn killed_primary_is_replaced() {
    check_lost_primary(&[], |cluster| cluster.kill(1), |cluster| cluster.restart(1));
}

/// A killed primary with `STALE_IF_ERROR`: hardly any request fails.
#[test]
fn stale_values_bridge_a_failover() {
    let variables = [("STALE_IF_ERROR", "600")];
    check_lost_primary(&variables, |cluster| cluster.kill(1), |cluster| cluster.restart(1));
}

/// A primary that is stopped and continued: what it answers then is old, and never cached.
///
/// Holds because `REDIS_TIMEOUT` is shorter than the timeout of the nodes.
#[test]
fn continued_primary_gives_nothing_old() {
    let variables = [("REDIS_TIMEOUT", "1000")];
    check_lost_primary(&variables, |cluster| cluster.freeze(1), |cluster| cluster.thaw(1));
}

/// A hung node stalls only its own keys, however many of them are requested.
#[test]
fn hung_node_stalls_only_its_keys() {
    // The other nodes do not take it for dead.
    let arguments = PARTIAL_COVERAGE.to_vec();
    let mut cluster = Cluster::start_with(Setup { node_timeout_ms: 15_000, arguments, ..Setup::default() });
    let others = fill_others(&cluster, "other", 1000);
    let hung = cluster.keys_of(1, "hung", 200);
    let mut client = cluster.client();
    hung.iter().for_each(|key| client.set(key, value_of(key)));
    let proxy = cluster.start_proxy(&[INTERVAL, ("REDIS_TIMEOUT", "2000"), ("CACHE_TTL", "0.001")]);
    wait_until_all_served(&proxy, &hung[..10]);
    cluster.freeze(1);
    let mut clients = Client::connect_mixed(proxy.address, 8);
    let requested = Instant::now();
    clients.iter_mut().for_each(|client| client.send_gets(&hung));
    let reader = MissReader::start(&proxy, others);
    for client in &mut clients {
        for key in &hung {
            let reply = client.read_reply();
            assert!(is_outage(&reply, client.is_http()), "{key}: {reply:?}");
        }
    }
    println!("the requests of the hung node failed after {:?}", requested.elapsed());
    check_unaffected(reader.stop());
    cluster.thaw(1);
    wait_until_all_served(&proxy, &hung);
}

/// The invalidations of one node are cut: everything is flushed, since any guarantee needs all
/// nodes. Loss and return are counted and logged.
#[test]
fn cut_tracker_of_one_node_flushes_all() {
    let cluster = Cluster::start();
    let proxy = cluster.start_tracking_proxy(&[INTERVAL]);
    let keys: Vec<String> = (0..3).map(|index| cluster.keys_of(index, "cut", 1).remove(0)).collect();
    set_all(&mut cluster.client(), &keys, "old");
    for index in 0..3 {
        cache_all(&proxy, &keys, "old");
        let epochs = read_metric(&proxy, "segment_tracking_epochs_total");
        cluster.run(index, &["CLIENT", "KILL", "TYPE", "pubsub"]);
        proxy.wait_for_log(&format!("(tracking inactive: 127.0.0.1:{}: ", cluster.port(index)));
        wait_until_tracking(&proxy, index + 2);
        let mut client = proxy.connect();
        for key in &keys {
            assert!(!is_hit(&client.get(&path_of(key))), "{key} survived");
        }
        wait_for("both are counted", || {
            (read_metric(&proxy, "segment_tracking_epochs_total") >= epochs + 2.0).then_some(())
        });
    }
    let log = proxy.log();
    assert_eq!(log.matches("(tracking inactive: ").count(), 3, "{log}");
}

/// A write that no invalidation reports, because the tracker of its node was just cut, is seen.
#[test]
fn write_during_tracking_loss_is_seen() {
    let cluster = Cluster::start();
    let proxy = cluster.start_tracking_proxy(&[INTERVAL]);
    let mut client = proxy.connect();
    for round in 1..6 {
        let index = round % 3;
        let key = cluster.keys_of(index, "unreported", 1).remove(0);
        cluster.set(&key, "old");
        cache_all(&proxy, std::slice::from_ref(&key), "old");
        cluster.run(index, &["CLIENT", "KILL", "TYPE", "pubsub"]);
        cluster.set(&key, "new");
        wait_for("the write is seen", || (client.get(&path_of(&key)).text() == "new").then_some(()));
        wait_until_tracking(&proxy, 1 + round);
    }
}

/// A cluster that lost slots serves nothing by default (`CLUSTERDOWN`). Clients get the error of an
/// outage, also for what was cached, and everything is served when the node is back.
#[test]
fn lost_slots_are_an_outage() {
    let mut cluster = Cluster::start();
    let proxy = cluster.start_tracking_proxy(&[INTERVAL]);
    let keys: Vec<String> = (0..3).map(|index| cluster.keys_of(index, "down", 1).remove(0)).collect();
    keys.iter().for_each(|key| cluster.set(key, value_of(key)));
    wait_until_all_served(&proxy, &keys);
    cluster.kill(1);
    wait_for("the cluster is down", || {
        let reply = cluster.query::<redis::Value>(0, &["GET", &keys[0]]);
        reply.is_err_and(|error| error.code() == Some("CLUSTERDOWN")).then_some(())
    });
    keys.iter().for_each(|key| wait_until_outage(&proxy, key));
    keys.iter().for_each(|key| check_outage(&proxy, key));
    assert!(read_metric(&proxy, "segment_redis_nodes_unavailable") >= 1.0);
    cluster.restart(1);
    wait_until_all_served(&proxy, &[keys[0].clone(), keys[2].clone()]);
    // The node saved nothing.
    cluster.set(&keys[1], value_of(&keys[1]));
    wait_until_all_served(&proxy, &keys);
    wait_until_all_track(&proxy);
    wait_for("all nodes are available", || {
        (read_metric(&proxy, "segment_redis_nodes_unavailable") == 0.0).then_some(())
    });
}

/// A proxy starts while a node is down, and serves the keys of the others.
#[test]
fn proxy_starts_with_a_node_down() {
    let mut cluster = start_cluster(0);
    let others = fill_others(&cluster, "up", 20);
    let lost = cluster.keys_of(1, "down", 1).remove(0);
    cluster.kill(1);
    let proxy = cluster.start_proxy(&[INTERVAL]);
    wait_until_all_served(&proxy, &others);
    check_outage(&proxy, &lost);
    cluster.restart(1);
    cluster.set(&lost, "back");
    wait_until_served(&proxy, &lost, "back");
}

/// All nodes restart. The proxy needs no restart.
#[test]
fn cluster_restart_is_survived() {
    let mut cluster = Cluster::start();
    let proxy = cluster.start_tracking_proxy(&[INTERVAL]);
    let keys: Vec<String> = (0..3).map(|index| cluster.keys_of(index, "restarted", 1).remove(0)).collect();
    set_all(&mut cluster.client(), &keys, "old");
    cache_all(&proxy, &keys, "old");
    (0..3).for_each(|index| cluster.kill(index));
    keys.iter().for_each(|key| wait_until_outage(&proxy, key));
    (0..3).for_each(|index| cluster.restart(index));
    cluster.wait_until_agreed();
    set_all(&mut cluster.client(), &keys, "new");
    keys.iter().for_each(|key| wait_until_served(&proxy, key, "new"));
    wait_until_all_track(&proxy);
    cache_all(&proxy, &keys, "new");
}

/// A node of another cluster at the address of a dead one is refused: its identity differs from the
/// one in the slot map.
#[test]
fn reused_address_is_refused() {
    let mut cluster = start_cluster(0);
    let key = cluster.keys_of(1, "reused", 1).remove(0);
    cluster.set(&key, "own");
    let others = fill_others(&cluster, "other", 5);
    let seeds = cluster.url_of(&[0, 2]);
    let proxy = cluster.start_tracking_proxy(&[INTERVAL, ("REDIS_URL", &seeds)]);
    cache_all(&proxy, std::slice::from_ref(&key), "own");
    cluster.kill(1);
    let directory = std::env::temp_dir().join(format!("segment-foreign-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory for temporary files");
    let (bus_port, path) = (stable_port().to_string(), directory.to_str().expect("a path in UTF-8"));
    let arguments = ["--cluster-enabled", "yes", "--cluster-port", &bus_port, "--dir", path];
    let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let foreign = Redis::try_start(cluster.port(1), arguments).expect("the port is still free");
    // It serves all slots, by an epoch that is newer than any of the cluster.
    foreign.run(&["CLUSTER", "SET-CONFIG-EPOCH", "1000"]);
    foreign.run(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    wait_for("the other cluster works", || {
        redis::cmd("SET").arg(&key).arg("foreign").exec(&mut foreign.connect()).ok()
    });
    // Some topology intervals and more connections than the backoff needs.
    let began = Instant::now();
    let mut clients = Client::connect_mixed(proxy.address, 2);
    while began.elapsed() < max_delay() + Duration::from_secs(1) {
        for client in &mut clients {
            let reply = client.get(&key);
            assert_ne!(reply, Reply::Value("foreign".into()), "a value of another cluster");
            assert!(reply == Reply::Value("own".into()) || is_outage(&reply, client.is_http()), "{reply:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    check_outage(&proxy, &key);
    wait_until_all_served(&proxy, &others);
    drop(foreign);
    let _ = std::fs::remove_dir_all(&directory);
    cluster.restart(1);
    cluster.set(&key, "own again");
    wait_until_served(&proxy, &key, "own again");
    assert_eq!(cluster.owner_of_slot(slot_of(&key)), 1);
}
