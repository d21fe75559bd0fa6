//! What each promise of freshness is worth: how old a value may be, with a real Redis and the real binary.

use crate::common::freshness::{
    env_number, is_hit, max_propagation, start_tracking_proxy, wait_until_cached, wait_until_text,
};
use crate::common::relay::{Purpose, Relay};
use crate::common::{HttpClient, Proxy, Redis, wait_for};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[test]
fn an_entry_does_not_outlive_its_key_in_redis() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "15")]);
    let mut client = proxy.connect();
    redis.run(&["SET", "forever", "v"]);
    assert_eq!(client.get("/raw/forever").header("cache-status"), "segment-redis-proxy; fwd=miss; stored; ttl=15");
    redis.run(&["SET", "long", "v", "EX", "1000"]);
    assert_eq!(client.get("/raw/long").header("cache-status"), "segment-redis-proxy; fwd=miss; stored; ttl=15");
    // Again where the machine was too busy to read it twice within its time.
    let hits = (0..10).map(|_| hits_until_it_is_gone(&redis, &mut client)).find(|&hits| hits > 0);
    assert!(hits.is_some(), "it was not cached at all");
    assert!(is_hit(&client.get("/raw/forever")), "everything is gone");
}

/// Sets a key for 300 ms and reads it until it is gone. Says how often the cache answered, and makes sure that it did
/// so only in time.
fn hits_until_it_is_gone(redis: &Redis, client: &mut HttpClient) -> usize {
    redis.run(&["SET", "short", "v", "PX", "300"]);
    // From here on it cannot last longer than 300 ms.
    let set = Instant::now();
    let mut hits = 0;
    loop {
        let asked = Instant::now();
        let response = client.get("/raw/short");
        if response.status == 404 {
            return hits;
        }
        let status = response.header("cache-status");
        assert!(status.ends_with("; ttl=0") || status == "segment-redis-proxy; fwd=miss", "{status}");
        if is_hit(&response) {
            // Both sides count whole milliseconds.
            assert!(asked - set < Duration::from_millis(301), "a hit {:?} after it was set", asked - set);
            hits += 1;
        }
    }
}

#[test]
fn an_empty_value_and_a_missing_key_are_told_apart() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    redis.set("empty", "");
    assert_eq!((proxy.get("/raw/empty").status, proxy.get("/raw/missing").status), (200, 404));
    assert!(is_hit(&proxy.get("/raw/empty")));
}

#[test]
fn every_way_of_changing_a_key_reaches_the_cache() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    let mut client = proxy.connect();
    let changes: [(&[&str], &str); 9] = [
        (&["SET", "a", "2"], "2"),
        (&["APPEND", "a", "1"], "11"),
        (&["INCR", "a"], "2"),
        // Redis tells of several keys at once, in order of their names.
        (&["MSET", "A", "1", "a", "3", "z", "1"], "3"),
        (&["EVAL", "redis.call('SET', KEYS[1], '4')", "1", "a"], "4"),
        (&["RENAME", "b", "a"], "b"),
        (&["DEL", "a"], "{\"error\":\"key not found\"}"),
        (&["FLUSHALL"], "{\"error\":\"key not found\"}"),
        (&["FLUSHDB", "ASYNC"], "{\"error\":\"key not found\"}"),
    ];
    for (command, after) in changes {
        redis.run(&["MSET", "a", "1", "b", "b"]);
        wait_until_text(&mut client, "/raw/a", "1");
        wait_until_cached(&mut client, "/raw/a", "1");
        redis.run(command);
        wait_until_text(&mut client, "/raw/a", after);
    }
    // A key that expires: Redis tells when it removes it, the proxy does not wait for that.
    redis.run(&["SET", "a", "1"]);
    wait_until_cached(&mut client, "/raw/a", "1");
    redis.run(&["PEXPIRE", "a", "100"]);
    wait_until_text(&mut client, "/raw/a", "{\"error\":\"key not found\"}");
}

/// What Redis does not tell, or tells too much of: databases are swapped without a word, and their numbers not told apart.
#[test]
fn databases_are_not_told_apart_and_swapping_them_is_not_told() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[("CACHE_TTL", "1")]);
    let mut client = proxy.connect();
    let mut other = redis.connect_to(&format!("redis://127.0.0.1:{}/1", redis.port));
    redis.set("a", "in 0");
    wait_for("a change in another database drops the entry too", || {
        wait_until_cached(&mut client, "/raw/a", "in 0");
        redis::cmd("SET").arg("a").arg("in 1").exec(&mut other).expect("SET works");
        // Until it is heard of, or until the entry expires, which is not what is looked for.
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
    // CACHE_TTL bounds it.
    wait_until_text(&mut client, "/raw/a", "in 1");
}

/// The forced race: a value is read, changed, and the change is heard of before the value has arrived. Naively stored it
/// would stay for ever.
#[test]
fn a_value_that_its_change_has_overtaken_is_not_kept() {
    let redis = Redis::start();
    let relay = Relay::start(redis.port);
    let proxy = start_tracking_proxy(relay.port, &[("REDIS_TIMEOUT", "20000"), ("REDIS_CONNECTIONS", "2")]);
    let (mut early, mut late) = (proxy.connect(), proxy.connect());
    let mut writer = redis.connect();
    let mut write = |value: String| redis::cmd("SET").arg("raced").arg(value).exec(&mut writer).expect("SET works");
    for round in 0..60 {
        write(format!("old {round}"));
        // The connections of both helpers are known by what they have read.
        (0..4).for_each(|number| assert_eq!(early.get(&format!("/raw/none{number}")).status, 404));
        redis.set("marker", round);
        wait_until_cached(&mut late, "/raw/marker", &round.to_string());
        relay.hold_replies(Purpose::Fetching);
        early.send_get("/raw/raced");
        relay.wait_until_held();
        write(format!("new {round}"));
        // Changes are heard of in order: when this one has taken the marker away, so has the other.
        redis.set("marker", "gone");
        let mut probes = Vec::new();
        wait_for("the change is heard of", || {
            let mut probe = proxy.connect();
            probe.send_get("/raw/marker");
            (0..2).for_each(|_| assert_eq!(late.get("/nothing").status, 404));
            let waits = !probe.has_input();
            probes.push(probe);
            waits.then_some(())
        });
        late.send_get("/raw/raced");
        relay.release();
        assert_eq!(early.read_response().text(), format!("old {round}"));
        assert_eq!(late.read_response().text(), format!("new {round}"), "answered by what the change has overtaken");
        assert_eq!(late.get("/raw/raced").text(), format!("new {round}"), "what the change has overtaken was stored");
    }
}

/// More changes at once than one tick follows: what is left over is followed without anybody asking, and what comes
/// meanwhile is not forgotten either.
#[test]
fn a_burst_of_changes_leaves_nothing_stale() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    let mut client = proxy.connect();
    let many = |prefix: &str, count: usize| {
        let mut command = redis::cmd("MSET");
        (0..count).for_each(|number| _ = command.arg(format!("{prefix}{number}")).arg("v"));
        command
    };
    let (most, more) = (many("a", 50_000), many("b", 6000));
    let mut connection = redis.connect();
    for round in 0..6 {
        redis.set("target", format!("old {round}"));
        wait_until_cached(&mut client, "/raw/target", &format!("old {round}"));
        most.exec(&mut connection).expect("MSET works");
        std::thread::sleep(Duration::from_millis(round * 2));
        more.clone().arg("target").arg(format!("new {round}")).exec(&mut connection).expect("MSET works");
        // Nobody asks for anything: no socket wakes the loop.
        std::thread::sleep(max_propagation());
        assert_eq!(client.get("/raw/target").text(), format!("new {round}"));
    }
    assert!(
        !proxy.log().contains("tracking inactive") && !proxy.log().contains("invalidation backlog overflow"),
        "{}",
        proxy.log()
    );
}

/// One writer, many readers, and now and then everything that the proxy has to Redis is cut: once a write is
/// acknowledged and a hop has passed, nobody gets what was before.
fn no_stale_reads(cuts: bool) {
    const KEYS: usize = 20;
    let (seconds, hop) = (env_number("FRESHNESS_SECONDS", 5), max_propagation());
    let redis = Redis::start();
    for key in 0..KEYS {
        redis.set(format!("k{key}"), 0);
    }
    let proxy = start_tracking_proxy(redis.port, &[]);
    // The value of each key that was acknowledged at least a hop ago.
    let settled: Arc<Vec<AtomicU64>> = Arc::new((0..KEYS).map(|_| AtomicU64::new(0)).collect());
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..8)
        .map(|number| {
            let (settled, stop, mut client) = (Arc::clone(&settled), Arc::clone(&stop), proxy.connect());
            std::thread::spawn(move || {
                let (mut reads, mut hits, mut stale) = (0u64, 0u64, 0u64);
                for key in (number..).step_by(7) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = key % KEYS;
                    let least = settled[key].load(Ordering::Acquire);
                    let response = client.get(&format!("/raw/k{key}"));
                    // Cut off while it was read: no answer is no stale one.
                    if response.status == 200 {
                        let value: u64 = response.text().parse().expect("a number");
                        reads += 1;
                        hits += u64::from(is_hit(&response));
                        stale += u64::from(value < least);
                    }
                }
                (reads, hits, stale)
            })
        })
        .collect();
    let mut writer = redis.connect();
    let mut client = proxy.connect();
    let (began, mut last_cut, mut value) = (Instant::now(), Instant::now(), 0u64);
    let mut delays = Vec::new();
    let mut acknowledged = std::collections::VecDeque::new();
    while began.elapsed() < Duration::from_secs(seconds) {
        value += 1;
        let key = value as usize % KEYS;
        redis::cmd("SET").arg(format!("k{key}")).arg(value).exec(&mut writer).expect("SET works");
        let set = Instant::now();
        acknowledged.push_back((set, key, value));
        while let Some(&(time, key, value)) = acknowledged.front()
            && time.elapsed() >= hop
        {
            settled[key].store(value, Ordering::Release);
            acknowledged.pop_front();
        }
        // How soon a reader sees it, for some.
        if value % 16 == 0 {
            wait_for("the write is seen", || {
                (client.get(&format!("/raw/k{key}")).text() == value.to_string()).then_some(())
            });
            delays.push(set.elapsed());
        }
        if cuts && last_cut.elapsed() >= Duration::from_secs(1) {
            last_cut = Instant::now();
            redis.run(&["CLIENT", "KILL", "TYPE", "pubsub"]);
            redis.run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
            writer = redis.connect();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    stop.store(true, Ordering::Relaxed);
    let sums = readers.into_iter().map(|reader| reader.join().expect("no panic"));
    let (reads, hits, stale) = sums.fold((0, 0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2));
    delays.sort_unstable();
    println!(
        "{seconds} s{}: {reads} reads, {hits} hits, {stale} stale; {value} writes, seen after {:?} (median), {:?} (longest)",
        if cuts { ", all connections cut each second" } else { "" },
        delays[delays.len() / 2],
        delays[delays.len() - 1]
    );
    assert_eq!(stale, 0, "of {reads} reads");
    assert!(hits > reads / 4, "{hits} hits in {reads} reads: nothing was cached that could be stale");
}

#[test]
fn with_tracking_no_read_is_stale() {
    no_stale_reads(false);
}

#[test]
fn with_tracking_no_read_is_stale_although_connections_are_cut() {
    no_stale_reads(true);
}
