//! Redis on its bad days. One table of faults; each goes through the same procedure: what is in memory goes on being
//! served, a miss gets its error in bounded time, and when the fault is over everything recovers by itself, without a reply
//! that answers another key and without anything left over.
//!
//! Times are printed, not judged: a noisy machine would fail them (`cargo test --test e2e_redis fault_matrix -- --nocapture`;
//! `cargo bench --bench faults` measures). Where an error must come before the deadline, the deadline is a minute away.

use crate::common::client::{Client, Reply, get_all, numbered_keys, percentile, value_of, wait_until_all_served};
use crate::common::freshness::wait_until_tracking;
use crate::common::resp::RespClient;
use crate::common::testbed::{Route, Testbed};
use crate::common::{Proxy, wait_for};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What begins or ends a fault.
type Step = fn(&mut Testbed);

/// When a miss is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    AtOnce,
    /// Redis says nothing: after REDIS_TIMEOUT.
    AtDeadline,
}

/// What happens to Redis, and what a miss gets meanwhile.
struct Fault {
    way: Route,
    begin: Step,
    end: Step,
    told: Told,
    /// How the error begins, over each protocol.
    http: &'static str,
    resp: &'static str,
    /// What the log must say of it.
    log: &'static str,
}

/// A module for each row: with `without_tracking`, `with_tracking`, or both.
macro_rules! bad_days {
    ($($name:ident [$($tracking:ident),+] $fault:expr;)+) => {
        $(mod $name {
            use super::*;
            $(#[test]
            fn $tracking() {
                bad_day(concat!(stringify!($name), ", ", stringify!($tracking)), &$fault, stringify!($tracking));
            })+
        })+
    };
}

const TIMED_OUT: (&str, &str) =
    ("504 {\"error\":\"Redis did not reply within REDIS_TIMEOUT", "LOADING Redis did not reply within REDIS_TIMEOUT");
const UNREACHABLE: (&str, &str) = ("503 {\"error\":\"Redis is unreachable", "LOADING Redis is unreachable");

/// A fault that makes misses wait for the deadline.
const fn silent(way: Route, begin: Step, end: Step, log: &'static str) -> Fault {
    Fault { way, begin, end, told: Told::AtDeadline, http: TIMED_OUT.0, resp: TIMED_OUT.1, log }
}

/// A fault that leaves no connection to Redis.
const fn away(way: Route, begin: Step, end: Step, log: &'static str) -> Fault {
    Fault { way, begin, end, told: Told::AtOnce, http: UNREACHABLE.0, resp: UNREACHABLE.1, log }
}

/// A fault that Redis, or what is in its place, has something to say about.
const fn telling(way: Route, (begin, end): (Step, Step), http: &'static str, resp: &'static str) -> Fault {
    Fault { way, begin, end, told: Told::AtOnce, http, resp, log: "" }
}

bad_days! {
    frozen [without_tracking, with_tracking]
        silent(Route::Direct, Testbed::freeze, Testbed::thaw, "lost a connection to Redis");
    killed [without_tracking, with_tracking]
        away(Route::Direct, Testbed::kill, Testbed::restart, "cannot connect to Redis");
    loading [without_tracking, with_tracking] telling(
        Route::Direct, (Testbed::restart_loading, Testbed::finish_loading),
        "503 {\"error\":\"Redis cannot serve reads now; retry in 1 s: LOADING", "LOADING Redis is loading");
    no_master [without_tracking] telling(
        Route::Direct, (Testbed::lose_primary, Testbed::become_primary),
        "503 {\"error\":\"Redis cannot serve reads now; retry in 1 s: MASTERDOWN", "MASTERDOWN Link with MASTER");
    busy [without_tracking, with_tracking] telling(
        Route::Direct, (Testbed::run_endless_script, Testbed::kill_script),
        "503 {\"error\":\"Redis cannot serve reads now; retry in 1 s: BUSY", "BUSY Redis is busy");
    no_password [without_tracking, with_tracking] Fault { log: "set REDIS_PASSWORD", ..telling(
        Route::Direct, (Testbed::require_password, Testbed::drop_password),
        "502 {\"error\":\"Redis rejected the proxy's connection; the proxy's log has the remedy: NOAUTH",
        "ERR Redis rejected the proxy's connection") };
    readonly [without_tracking] telling(
        Route::Relay, (Testbed::reply_readonly, Testbed::restore_redis),
        "502 {\"error\":\"Redis replied with an error: READONLY", "READONLY You can't write");
    garbage [without_tracking] telling(
        Route::Relay, (Testbed::reply_garbage_to_reads, Testbed::restore_redis), "502 ", "ERR ");
    garbage_at_once [without_tracking, with_tracking] telling(
        Route::Relay, (Testbed::reply_garbage_to_handshake, Testbed::restore_redis),
        "502 {\"error\":\"Redis rejected the proxy's connection", "ERR Redis rejected the proxy's connection");
    broken_off [without_tracking]
        away(Route::Relay, Testbed::close_mid_reply, Testbed::restore_redis, "lost a connection to Redis");
    stopped_half_way [without_tracking]
        silent(Route::Relay, Testbed::stall_mid_reply, Testbed::restore_redis, "lost a connection to Redis");
    mute [without_tracking, with_tracking]
        silent(Route::Relay, Testbed::never_reply, Testbed::restore_redis, "cannot connect to Redis");
    not_accepted [without_tracking]
        silent(Route::Relay, Testbed::never_accept, Testbed::restore_redis, "cannot connect to Redis");
    no_such_name [without_tracking]
        away(Route::Dns, Testbed::fail_dns, Testbed::restore_dns, "REDIS_HOST=127.0.0.1");
    slow_name [without_tracking, with_tracking]
        silent(Route::Dns, Testbed::slow_dns, Testbed::restore_dns, "");
    moved [without_tracking, with_tracking]
        away(Route::Dns, Testbed::kill, Testbed::switch_dns, "cannot connect to Redis");
}

/// The procedure.
fn bad_day(name: &str, fault: &Fault, tracking: &str) {
    let tracking = tracking == "with_tracking";
    // Where an error is told at once a minute is as good as never: whoever waits for it fails the test.
    let timeout = if fault.told == Told::AtOnce { 60_000 } else { 500 };
    let mut scene = Testbed::start(fault.way);
    let text = timeout.to_string();
    let mut variables = vec![("CACHE_TTL", "600"), ("REDIS_TIMEOUT", &text)];
    if tracking {
        // What was cached expires with the connection that tells of changes. It goes on being served all the same.
        variables.extend([("REDIS_TRACKING", "on"), ("STALE_IF_ERROR", "600")]);
    }
    let proxy = scene.start_proxy(&variables);
    if tracking {
        wait_until_tracking(&proxy, 1);
    }
    let before = Rest::of(&scene, &proxy, tracking);
    let mut undisturbed = hits_while(proxy.address, || std::thread::sleep(Duration::from_millis(300)));
    let mut latest = Duration::ZERO;
    let mut disturbed = hits_while(proxy.address, || {
        (fault.begin)(&mut scene);
        if tracking {
            has_begun(&proxy, fault);
        }
        latest = misses_fail(&proxy, fault);
    });
    if !tracking {
        // Half of them, which a noisy machine leaves alone, and which the loop would not if it waited for Redis.
        assert!(percentile(&mut disturbed, 0.5) < Duration::from_millis(250), "hits wait: {name}");
    }
    println!(
        "{name}: hits p99 {:?}, before {:?}; longest error {latest:?} with REDIS_TIMEOUT={timeout}",
        percentile(&mut disturbed, 0.99),
        percentile(&mut undisturbed, 0.99)
    );
    end(&proxy, &mut scene, fault);
    assert_eq!(Client::connect_http(proxy.address).get("hot"), Reply::Value(value_of("hot")));
    assert!(fault.way != Route::Dns || scene.reads_only_current_redis(), "another Redis is read");
    before.returns(&proxy);
    let log = proxy.log();
    assert!(log.contains(fault.log) && !log.contains("panicked") && !log.contains("please report"), "{log}");
    // Once for each helper that has heard of it, not once for each of hundreds of keys.
    assert!(log.matches("cannot connect to Redis").count() <= 4, "the log repeats itself: {log}");
}

/// With tracking, hits reach for Redis too once nobody tells of changes. They may have met it between two states, such as
/// gone and loading, and what they were told holds until the next attempt.
fn has_begun(proxy: &Proxy, fault: &Fault) {
    let mut client = Client::connect_http(proxy.address);
    wait_for("the fault has begun", || {
        matches!(client.get("nothing"), Reply::Error(text) if text.starts_with(fault.http)).then_some(())
    });
}

/// Rounds of different keys: those that meet connections which are there, and those that meet none any more. Says how
/// long the last of them waited.
fn misses_fail(proxy: &Proxy, fault: &Fault) -> Duration {
    let mut latest = Duration::ZERO;
    let mut clients = Client::connect_mixed(proxy.address, 8);
    for round in numbered_keys("during", 600).chunks(200) {
        get_all(&mut clients, round, |key, answer, over_http, elapsed| {
            let begins = if over_http { fault.http } else { fault.resp };
            assert!(matches!(&answer, Reply::Error(text) if text.starts_with(begins)), "{key}: {answer:?}");
            latest = latest.max(elapsed);
        });
    }
    // Far more than it takes, and far less than if keys, helpers or attempts waited for each other.
    assert!(latest < Duration::from_millis(2500) || fault.told == Told::AtOnce, "an error after {latest:?}");
    latest
}

/// The fault ends while keys are asked for: their replies are late, some too late. Then all keys are asked for, those too
/// that were given up before. Nobody gets another key's value.
fn end(proxy: &Proxy, scene: &mut Testbed, fault: &Fault) {
    let late = numbered_keys("late", 400);
    let mut clients = Client::connect_mixed(proxy.address, 8);
    let mut shares = clients.iter_mut().zip(late.chunks(50)).collect::<Vec<_>>();
    shares.iter_mut().for_each(|(client, share)| client.send_gets(share));
    (fault.end)(scene);
    for (client, share) in &mut shares {
        for key in *share {
            let answer = client.read_reply();
            assert!(matches!(&answer, Reply::Error(_)) || answer == Reply::Value(value_of(key)), "{key}: {answer:?}");
        }
    }
    wait_until_all_served(proxy, &[numbered_keys("after", 400), late, numbered_keys("during", 600)].concat());
}

/// Asks for the key that is cached, over both protocols, as long as `doing` takes. Says how long each answer took.
fn hits_while(address: SocketAddr, doing: impl FnOnce()) -> Vec<Duration> {
    let over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&over);
    let thread: JoinHandle<Vec<Duration>> = std::thread::spawn(move || {
        let (mut clients, mut times) = ([Client::connect_http(address), Client::connect_resp(address)], Vec::new());
        loop {
            for client in &mut clients {
                let asked = Instant::now();
                assert_eq!(client.get("hot"), Reply::Value(value_of("hot")));
                times.push(asked.elapsed());
            }
            if told.load(Ordering::Relaxed) {
                return times;
            }
            // Others need the processor, too.
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    doing();
    over.store(true, Ordering::Relaxed);
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// What the proxy has and holds while nobody asks.
struct Rest {
    descriptors: usize,
    resident: u64,
}

impl Rest {
    /// Once every helper has a connection, the key that is to be hit is cached and as many clients as later have been there.
    fn of(scene: &Testbed, proxy: &Proxy, tracking: bool) -> Rest {
        let connections = 4 + usize::from(tracking);
        let mut round = 0;
        wait_for("every helper has a connection", || {
            round += 1;
            get_all(
                &mut Client::connect_mixed(proxy.address, 8),
                &numbered_keys(&format!("warm-{round}"), 1000),
                |_, answer, _, _| {
                    assert!(matches!(answer, Reply::Error(_)), "{answer:?}");
                },
            );
            (clients_of(&scene.redis) > connections).then_some(())
        });
        assert_eq!(Client::connect_http(proxy.address).get("hot"), Reply::Value(value_of("hot")));
        Rest { descriptors: descriptors(proxy), resident: proxy.memory_kib("VmRSS") }
    }

    /// Nothing of the fault is left over, and a client that comes now is answered.
    fn returns(&self, proxy: &Proxy) {
        wait_for("descriptors are given back", || (descriptors(proxy) <= self.descriptors).then_some(()));
        let grown = proxy.memory_kib("VmRSS").saturating_sub(self.resident);
        println!("    {} descriptors before, {grown} KiB more afterwards", self.descriptors);
        assert!(grown < 8 * 1024, "{grown} KiB are not given back");
        let asked = Instant::now();
        for mut client in Client::connect_mixed(proxy.address, 2) {
            assert_eq!(client.get("after-1"), Reply::Value(value_of("after-1")));
        }
        println!("    two fresh clients answered after {:?}", asked.elapsed());
    }
}

/// How many connections Redis has, the one that asks among them.
fn clients_of(redis: &crate::common::Redis) -> usize {
    let info: String = redis::cmd("INFO").arg("clients").query(&mut redis.connect()).expect("INFO works");
    let count = info.lines().find_map(|line| line.strip_prefix("connected_clients:"));
    count.and_then(|count| count.parse().ok()).expect("a count")
}

/// Open files and sockets of the proxy once no client is connected.
fn descriptors(proxy: &Proxy) -> usize {
    let mut client = RespClient::connect(proxy.address);
    wait_for("all clients are gone", || {
        client.call_text("INFO clients").contains("connected_clients:1\r\n").then_some(())
    });
    proxy.count_descriptors() - 1
}
