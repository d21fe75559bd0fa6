//! Tests of client-side caching (`CLIENT TRACKING`): many clients of one invalidation stream,
//! its loss, overtaken reads, and the bound.

use crate::common::admin::read_metric;
use crate::common::freshness::{start_tracking_proxy, wait_until_tracking};
use crate::common::relay::{Purpose, Relay};
use crate::common::resp::{RespClient, encode_command};
use crate::common::{Proxy, Redis, wait_for};
use std::sync::atomic::{AtomicBool, Ordering};

/// Invalidation of everything.
const EVERYTHING: &str = ">2\r\n$10\r\ninvalidate\r\n_\r\n";

/// Returns the invalidation of a key.
fn invalidation_of(key: &str) -> String {
    format!(">2\r\n$10\r\ninvalidate\r\n*1\r\n${}\r\n{key}\r\n", key.len())
}

/// Connects a client that tracks.
fn connect(proxy: &Proxy) -> RespClient {
    let mut client = RespClient::connect(proxy.address);
    assert!(client.ask("HELLO 3").starts_with('%'));
    assert_eq!(client.ask("CLIENT TRACKING ON"), "+OK\r\n");
    client
}

/// One change of a key reaches all clients that have read it. Redis sends it once to each worker.
#[test]
fn one_stream_feeds_many_clients() {
    const CLIENTS: usize = 600;
    let redis = Redis::start();
    redis.set("a", "1");
    let proxy = start_tracking_proxy(redis.port, &[("WORKERS", "2"), ("MAX_CONNECTIONS", "1000")]);
    wait_until_tracking(&proxy, 1);
    let mut clients: Vec<RespClient> = (0..CLIENTS).map(|_| connect(&proxy)).collect();
    for round in 1..4 {
        for client in &mut clients {
            assert_eq!(client.ask("GET a"), format!("$1\r\n{round}\r\n"));
        }
        let keys = |count| (read_metric(&proxy, "segment_client_tracking_keys") == count as f64).then_some(());
        wait_for("all reads are counted", || keys(CLIENTS));
        redis.set("a", round + 1);
        for client in &mut clients {
            assert_eq!(client.read_message(), invalidation_of("a"));
        }
        wait_for("nothing is remembered", || keys(0));
    }
    assert_eq!(read_metric(&proxy, "segment_client_tracking_clients"), CLIENTS as f64);
    assert_eq!(read_metric(&proxy, "segment_client_tracking_pushes_total"), 3.0 * CLIENTS as f64);
    clients.iter_mut().for_each(|client| assert_eq!(client.ask("GET a"), "$1\r\n4\r\n"));
    drop(clients);
    wait_for("clients that have left are forgotten", || {
        let left = |name| read_metric(&proxy, name) == 0.0;
        (left("segment_client_tracking_clients") && left("segment_client_tracking_keys")).then_some(())
    });
}

/// If the invalidations of Redis are lost, clients forget everything, and then each value at once.
#[test]
fn lost_tracking_invalidates_everything() {
    let redis = Redis::start();
    redis.set("a", "1");
    let proxy = start_tracking_proxy(redis.port, &[]);
    let [mut reader, mut idle] = [connect(&proxy), connect(&proxy)];
    for round in 1..4 {
        assert_eq!(reader.ask("GET a"), "$1\r\n1\r\n");
        redis.run(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        assert_eq!(reader.read_message(), EVERYTHING);
        wait_until_tracking(&proxy, 1 + round);
        // What it has read meanwhile, if anything, is invalidated already.
        assert_eq!(reader.ask("PING"), "+PONG\r\n");
    }
    assert_eq!(reader.ask("MGET a b"), "*2\r\n$1\r\n1\r\n_\r\n");
    redis.run(&["ACL", "SETUSER", "default", "-client|tracking"]);
    redis.run(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    assert_eq!(reader.read_message(), EVERYTHING);
    proxy.wait_for_log("tracking inactive");
    for _ in 0..3 {
        assert_eq!(reader.ask("GET a"), "$1\r\n1\r\n");
        assert_eq!(reader.read_message(), invalidation_of("a"));
    }
    assert_eq!(reader.ask("MGET a b"), "*2\r\n$1\r\n1\r\n_\r\n");
    let mut pushes = [reader.read_message(), reader.read_message()];
    pushes.sort();
    assert_eq!(pushes, [invalidation_of("a"), invalidation_of("b")]);
    // A client may begin to track meanwhile.
    assert_eq!(connect(&proxy).ask("EXISTS a"), ":1\r\n");
    assert_eq!(idle.ask("PING"), "+PONG\r\n", "a client without values got an invalidation");
}

/// A value that a change overtook on its way is invalidated behind its reply.
#[test]
fn overtaken_read_is_invalidated() {
    let redis = Redis::start();
    let relay = Relay::start(redis.port);
    redis.set("a", "old");
    let proxy = start_tracking_proxy(relay.port, &[]);
    let [mut witness, mut reader] = [connect(&proxy), connect(&proxy)];
    assert_eq!(witness.ask("GET a"), "$3\r\nold\r\n");
    // The entry goes, so that the next read is a miss.
    redis.run(&["SET", "a", "old"]);
    assert_eq!(witness.read_message(), invalidation_of("a"));
    assert_eq!(witness.ask("TTL a"), ":-2\r\n");
    relay.hold_replies(Purpose::Fetching);
    reader.send(encode_command(&["GET", "a"]));
    reader.send(encode_command(&["MGET", "a", "b"]));
    relay.wait_until_held();
    redis.set("a", "new");
    assert_eq!(witness.read_message(), invalidation_of("a"));
    relay.release();
    assert_eq!(reader.read_message(), "$3\r\nold\r\n");
    assert_eq!(reader.read_message(), invalidation_of("a"));
    assert!(reader.read_message().starts_with("*2\r\n$3\r\nold\r\n"));
    assert_eq!(reader.read_message(), invalidation_of("a"));
    assert_eq!(reader.ask("GET a"), "$3\r\nnew\r\n");
    redis.set("a", "newer");
    assert_eq!(reader.read_message(), invalidation_of("a"));
}

/// A client that reads more keys than are remembered for it loses all of them at once.
#[test]
fn too_many_keys_invalidate_everything() {
    let redis = Redis::start();
    redis.set("a", "1");
    let proxy = start_tracking_proxy(redis.port, &[("CACHE_SIZE", "1000")]);
    let mut other = connect(&proxy);
    assert_eq!(other.ask("GET a"), "$1\r\n1\r\n");
    let mut client = connect(&proxy);
    let keys: Vec<String> = (0..65_536).map(|number| format!("key{number}")).collect();
    let words: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
    client.send(encode_command(&words));
    assert!(client.read_message().starts_with("*65536\r\n_\r\n"));
    redis.set("key7", "1");
    assert_eq!(client.read_message(), invalidation_of("key7"));
    assert_eq!(client.ask("GET key7"), "$1\r\n1\r\n");
    assert_eq!(client.ask("GET a"), "$1\r\n1\r\n");
    assert_eq!(client.read_message(), EVERYTHING);
    redis.set("key8", "1");
    redis.set("a", "2");
    assert_eq!(other.read_message(), invalidation_of("a"), "another client lost its keys");
    assert_eq!(client.ask("GET key8"), "$1\r\n1\r\n");
    redis.set("key8", "2");
    assert_eq!(client.read_message(), invalidation_of("key8"));
}

/// Clients that read at full speed while their keys change do not make invalidations fall behind.
/// Otherwise the number of keys to be invalidated would grow with each read.
#[test]
fn invalidations_keep_up_with_reads() {
    const READERS: usize = 8;
    const KEYS: usize = 1000;
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[("CACHE_SIZE", "10000")]);
    let keys: Vec<String> = (0..KEYS).map(|number| format!("key{number}")).collect();
    let words: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
    let (request, is_over) = (encode_command(&words), AtomicBool::new(false));
    let set = |value: u32| keys.iter().flat_map(move |key| encode_command(&["SET", key, &value.to_string()]));
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            let mut reader = connect(&proxy);
            let (request, is_over) = (&request, &is_over);
            scope.spawn(move || {
                reader.send(request.repeat(4));
                while !is_over.load(Ordering::Relaxed) {
                    if reader.read_message().starts_with('*') {
                        reader.send(request);
                    }
                }
            });
        }
        let mut writer = RespClient::connect(([127, 0, 0, 1], redis.port));
        let most = (0..150).map(|round| {
            writer.send(set(round).collect::<Vec<u8>>());
            (0..KEYS).for_each(|_| assert_eq!(writer.read_message(), "+OK\r\n"));
            read_metric(&proxy, "segment_client_tracking_keys") as usize
        });
        let most = most.max().unwrap_or_default();
        is_over.store(true, Ordering::Relaxed);
        assert!(most <= 4 * READERS * KEYS, "{most} keys to be invalidated");
    });
}
