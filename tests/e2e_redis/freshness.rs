//! Tests of the freshness guarantees: how old a value may be, with a real Redis and the real
//! binary.

use crate::common::freshness::{
    env_number, is_hit, max_propagation, start_tracking_proxy, wait_until_cached, wait_until_text,
};
use crate::common::relay::{Purpose, Relay};
use crate::common::resp::RespClient;
use crate::common::{HttpClient, Proxy, Redis, wait_for, wait_until_idle};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// An entry never outlives its key in Redis.
#[test]
fn entry_expires_with_redis_key() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "15")]);
    let mut client = proxy.connect();
    redis.run(&["SET", "forever", "v"]);
    assert_eq!(client.get("/raw/forever").header("cache-status"), "segment-redis-proxy; fwd=miss; stored; ttl=15");
    redis.run(&["SET", "long", "v", "EX", "1000"]);
    assert_eq!(client.get("/raw/long").header("cache-status"), "segment-redis-proxy; fwd=miss; stored; ttl=15");
    // A busy machine may not read the key twice within its lifetime, so there are ten attempts.
    let hits = (0..10).map(|_| count_hits_until_expiry(&redis, &mut client)).find(|&hits| hits > 0);
    assert!(hits.is_some(), "the key was never cached");
    assert!(is_hit(&client.get("/raw/forever")), "an entry without expiry was dropped");
}

/// Sets a key for 300 ms and reads it until it is gone. Returns the number of hits, and checks that
/// none came too late.
fn count_hits_until_expiry(redis: &Redis, client: &mut HttpClient) -> usize {
    redis.run(&["SET", "short", "v", "PX", "300"]);
    // From here on the key lives at most 300 ms.
    let set = Instant::now();
    let mut hits = 0;
    loop {
        let sent = Instant::now();
        let response = client.get("/raw/short");
        if response.status == 404 {
            return hits;
        }
        let status = response.header("cache-status");
        assert!(status.ends_with("; ttl=0") || status == "segment-redis-proxy; fwd=miss", "{status}");
        if is_hit(&response) {
            // Both sides count whole milliseconds.
            assert!(sent - set < Duration::from_millis(301), "a hit {:?} after the key was set", sent - set);
            hits += 1;
        }
    }
}

/// An empty value is cached and returned with 200, a missing key with 404.
#[test]
fn empty_value_differs_from_missing_key() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    redis.set("empty", "");
    assert_eq!((proxy.get("/raw/empty").status, proxy.get("/raw/missing").status), (200, 404));
    assert!(is_hit(&proxy.get("/raw/empty")));
}

/// With tracking, each kind of write to a key invalidates its entry.
#[test]
fn every_change_invalidates_entry() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    let mut client = proxy.connect();
    let changes: [(&[&str], &str); 9] = [
        (&["SET", "a", "2"], "2"),
        (&["APPEND", "a", "1"], "11"),
        (&["INCR", "a"], "2"),
        // Redis sends the invalidations of several keys at once, in order of their names.
        (&["MSET", "A", "1", "a", "3", "z", "1"], "3"),
        (&["EVAL", "redis.call('SET', KEYS[1], '4')", "1", "a"], "4"),
        (&["RENAME", "b", "a"], "b"),
        (&["DEL", "a"], "{\"error\":\"key not found\"}"),
        (&["FLUSHALL"], "{\"error\":\"key not found\"}"),
        (&["FLUSHDB", "ASYNC"], "{\"error\":\"key not found\"}"),
    ];
    for (command, value) in changes {
        redis.run(&["MSET", "a", "1", "b", "b"]);
        wait_until_text(&mut client, "/raw/a", "1");
        wait_until_cached(&mut client, "/raw/a", "1");
        redis.run(command);
        wait_until_text(&mut client, "/raw/a", value);
    }
    // Redis sends the invalidation of an expired key when it removes it. The proxy does not wait
    // for that.
    redis.run(&["SET", "a", "1"]);
    wait_until_cached(&mut client, "/raw/a", "1");
    redis.run(&["PEXPIRE", "a", "100"]);
    wait_until_text(&mut client, "/raw/a", "{\"error\":\"key not found\"}");
}

/// Writes in another database invalidate the entry, `SWAPDB` does not.
///
/// Redis sends invalidations without a database number, and none at all for `SWAPDB`.
#[test]
fn other_databases_invalidate_swapdb_does_not() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[("CACHE_TTL", "1")]);
    let mut client = proxy.connect();
    let mut other = redis.connect_to(&format!("redis://127.0.0.1:{}/1", redis.port));
    redis.set("a", "in 0");
    wait_for("a write in another database drops the entry", || {
        wait_until_cached(&mut client, "/raw/a", "in 0");
        redis::cmd("SET").arg("a").arg("in 1").exec(&mut other).expect("SET works");
        // Until the invalidation arrives, or the entry expires, which is not the event under test.
        let deadline = Instant::now() + Duration::from_millis(300);
        while Instant::now() < deadline {
            let response = client.get("/raw/a");
            assert_eq!(response.text(), "in 0", "another database's value");
            if !is_hit(&response) {
                return Some(());
            }
        }
        None
    });
    wait_until_cached(&mut client, "/raw/a", "in 0");
    redis.run(&["SWAPDB", "0", "1"]);
    // `CACHE_TTL` bounds the age of the value.
    wait_until_text(&mut client, "/raw/a", "in 1");
}

/// A fetch that an invalidation overtook answers its waiters and is not cached (invalidation-wins).
///
/// The relay delays the value until the invalidation has arrived. Cached, the old value would stay
/// forever.
#[test]
fn overtaken_fetch_is_not_cached() {
    const ROUNDS: usize = 60;
    let redis = Redis::start();
    // Each is invalidated once. As invalidations arrive in order, all earlier ones have arrived
    // then.
    for round in 0..ROUNDS {
        redis.set(format!("fence{round}"), "0");
        redis.set(format!("marker{round}"), "0");
    }
    let relay = Relay::start(redis.port);
    let proxy = start_tracking_proxy(relay.port, &[("REDIS_TIMEOUT", "20000"), ("REDIS_CONNECTIONS", "2")]);
    let (mut early, mut late) = (proxy.connect(), proxy.connect());
    let mut writer = redis.connect();
    let mut write = |value: String| redis::cmd("SET").arg("raced").arg(value).exec(&mut writer).expect("SET works");
    let mut resp = RespClient::connect(proxy.address);
    // PTTL reads nothing from Redis.
    let mut invalidate = |key: &str| {
        redis.set(key, "gone");
        wait_for("the invalidation arrives", || (resp.call_text(&format!("PTTL {key}")) == ":-2\r\n").then_some(()));
    };
    for round in 0..ROUNDS {
        let (fence, marker) = (format!("fence{round}"), format!("marker{round}"));
        wait_until_cached(&mut late, &format!("/raw/{fence}"), "0");
        wait_until_cached(&mut late, &format!("/raw/{marker}"), "0");
        write(format!("old {round}"));
        invalidate(&fence);
        // The relay knows the connections of both fetchers by their reads.
        (0..4).for_each(|number| assert_eq!(early.get(&format!("/raw/none{number}")).status, 404));
        relay.hold_replies(Purpose::Fetching);
        early.send_get("/raw/raced");
        relay.wait_until_held();
        write(format!("new {round}"));
        invalidate(&marker);
        late.send_get("/raw/raced");
        relay.release();
        assert_eq!(early.read_response().text(), format!("old {round}"));
        assert_eq!(late.read_response().text(), format!("new {round}"), "a later request got the overtaken value");
        assert_eq!(late.get("/raw/raced").text(), format!("new {round}"), "the overtaken value was cached");
    }
}

/// A burst of more invalidations than one tick processes leaves nothing stale.
///
/// The event loop processes the remainder without further requests, and misses none that arrive
/// meanwhile.
#[test]
fn invalidation_burst_leaves_nothing_stale() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[("REDIS_TIMEOUT", "60000")]);
    let mut client = proxy.connect();
    let mset = |prefix: &str, count: usize| {
        let mut command = redis::cmd("MSET");
        (0..count).for_each(|number| _ = command.arg(format!("{prefix}{number}")).arg("v"));
        command
    };
    let (large_burst, small_burst) = (mset("a", 50_000), mset("b", 6000));
    let mut connection = redis.connect();
    for round in 0..6 {
        redis.set("target", format!("old {round}"));
        wait_until_cached(&mut client, "/raw/target", &format!("old {round}"));
        large_burst.exec(&mut connection).expect("MSET works");
        std::thread::sleep(Duration::from_millis(round * 2));
        small_burst.clone().arg("target").arg(format!("new {round}")).exec(&mut connection).expect("MSET works");
        // No client sends a request, so no socket wakes the event loop.
        std::thread::sleep(max_propagation());
        wait_until_idle(&redis, &proxy);
        assert_eq!(client.get("/raw/target").text(), format!("new {round}"));
    }
    assert!(
        !proxy.log().contains("tracking inactive") && !proxy.log().contains("invalidation backlog overflow"),
        "{}",
        proxy.log()
    );
}

/// Checks that no reader gets a value older than an acknowledged write plus the propagation time.
///
/// One client writes and eight read. With `cut_connections`, every connection of the proxy to Redis
/// is closed once a second.
fn check_no_stale_reads(cut_connections: bool) {
    const KEYS: usize = 20;
    let (seconds, propagation) = (env_number("FRESHNESS_SECONDS", 5), max_propagation());
    let redis = Redis::start();
    for key in 0..KEYS {
        redis.set(format!("k{key}"), 0);
    }
    let proxy = start_tracking_proxy(redis.port, &[]);
    // Newest value of each key whose write was acknowledged at least the propagation time ago.
    let visible: Arc<Vec<AtomicU64>> = Arc::new((0..KEYS).map(|_| AtomicU64::new(0)).collect());
    let (stop, responses) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let readers: Vec<_> = (0..8)
        .map(|number| {
            let (visible, stop, mut client) = (Arc::clone(&visible), Arc::clone(&stop), proxy.connect());
            let responses = Arc::clone(&responses);
            std::thread::spawn(move || {
                let (mut reads, mut hits, mut stale) = (0u64, 0u64, 0u64);
                for key in (number..).step_by(7) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = key % KEYS;
                    let min_value = visible[key].load(Ordering::Acquire);
                    let response = client.get(&format!("/raw/k{key}"));
                    responses.fetch_add(1, Ordering::Relaxed);
                    // A read over a closed connection fails. It has no value that could be stale.
                    if response.status == 200 {
                        let value: u64 = response.text().parse().expect("a number");
                        reads += 1;
                        hits += u64::from(is_hit(&response));
                        stale += u64::from(value < min_value);
                    }
                }
                (reads, hits, stale)
            })
        })
        .collect();
    let mut writer = redis.connect();
    let mut client = proxy.connect();
    let (started, mut last_cut, mut value) = (Instant::now(), Instant::now(), 0u64);
    let mut delays = Vec::new();
    let mut acknowledged = std::collections::VecDeque::new();
    while started.elapsed() < Duration::from_secs(seconds) {
        value += 1;
        let key = value as usize % KEYS;
        redis::cmd("SET").arg(format!("k{key}")).arg(value).exec(&mut writer).expect("SET works");
        let set = Instant::now();
        acknowledged.push_back((set, key, value));
        while let Some(&(time, key, value)) = acknowledged.front()
            && time.elapsed() >= propagation
        {
            visible[key].store(value, Ordering::Release);
            acknowledged.pop_front();
        }
        // Measures for some writes how soon a reader sees them.
        if value % 16 == 0 {
            wait_for("the write is seen", || {
                (client.get(&format!("/raw/k{key}")).text() == value.to_string()).then_some(())
            });
            delays.push(set.elapsed());
        }
        if cut_connections && last_cut.elapsed() >= Duration::from_secs(1) {
            last_cut = Instant::now();
            redis.run(&["CLIENT", "KILL", "TYPE", "pubsub"]);
            redis.run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
            writer = redis.connect();
        }
        // Values are read several times between two writes of their key, also on a busy machine.
        let before = responses.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(1));
        wait_for("the readers read", || (responses.load(Ordering::Relaxed) >= before + 16).then_some(()));
    }
    stop.store(true, Ordering::Relaxed);
    let sums = readers.into_iter().map(|reader| reader.join().expect("no panic"));
    let (reads, hits, stale) = sums.fold((0, 0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2));
    delays.sort_unstable();
    println!(
        "{seconds} s{}: {reads} reads, {hits} hits, {stale} stale; {value} writes, seen after {:?} (median), {:?} (longest)",
        if cut_connections { ", connections closed each second" } else { "" },
        delays[delays.len() / 2],
        delays[delays.len() - 1]
    );
    assert_eq!(stale, 0, "of {reads} reads");
    assert!(hits > reads / 4, "{hits} hits in {reads} reads: too few cached values to judge");
}

/// With tracking, no read is stale.
#[test]
fn tracking_allows_no_stale_read() {
    check_no_stale_reads(false);
}

/// With tracking, no read is stale although every connection to Redis is closed once a second.
#[test]
fn reconnecting_tracking_allows_no_stale_read() {
    check_no_stale_reads(true);
}
