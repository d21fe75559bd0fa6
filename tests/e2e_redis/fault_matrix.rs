//! Table of faults of Redis or of its name, and the procedure that every fault goes through.
//!
//! Cached keys are served during the fault, and a miss gets its error in bounded time. Afterwards
//! the proxy recovers by itself: no reply answers another key, and no memory or descriptor is left
//! behind.
//!
//! Times are printed and not asserted, since a busy machine would exceed them (`cargo test --test
//! e2e_redis fault_matrix -- --nocapture`, measured by `cargo bench --bench faults`). Where an
//! error must come before the deadline, the deadline is one minute.

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

/// Action that starts or ends a fault.
type Action = fn(&mut Testbed);

/// Time at which a miss gets its error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ErrorTiming {
    Immediate,
    /// After REDIS_TIMEOUT, since Redis does not reply.
    AtDeadline,
}

/// Fault of Redis and the error that a miss gets meanwhile.
struct Fault {
    route: Route,
    begin: Action,
    end: Action,
    timing: ErrorTiming,
    /// Start of the error text over each protocol.
    http: &'static str,
    resp: &'static str,
    /// Text that the log must contain.
    log: &'static str,
}

/// Expands each row to a module with the tests `without_tracking`, `with_tracking` or both.
macro_rules! fault_tests {
    ($($name:ident [$($tracking:ident),+] $fault:expr;)+) => {
        $(mod $name {
            use super::*;
            $(#[test]
            fn $tracking() {
                run_fault(concat!(stringify!($name), ", ", stringify!($tracking)), &$fault, stringify!($tracking));
            })+
        })+
    };
}

const TIMED_OUT: (&str, &str) =
    ("504 {\"error\":\"Redis did not reply within REDIS_TIMEOUT", "LOADING Redis did not reply within REDIS_TIMEOUT");
const UNREACHABLE: (&str, &str) = ("503 {\"error\":\"Redis is unreachable", "LOADING Redis is unreachable");

/// Returns a fault in which misses fail at the deadline.
const fn timing_out(route: Route, begin: Action, end: Action, log: &'static str) -> Fault {
    Fault { route, begin, end, timing: ErrorTiming::AtDeadline, http: TIMED_OUT.0, resp: TIMED_OUT.1, log }
}

/// Returns a fault that leaves no connection to Redis.
const fn unreachable(route: Route, begin: Action, end: Action, log: &'static str) -> Fault {
    Fault { route, begin, end, timing: ErrorTiming::Immediate, http: UNREACHABLE.0, resp: UNREACHABLE.1, log }
}

/// Returns a fault in which Redis, or the server in its place, replies with an error.
const fn replying(route: Route, (begin, end): (Action, Action), http: &'static str, resp: &'static str) -> Fault {
    Fault { route, begin, end, timing: ErrorTiming::Immediate, http, resp, log: "" }
}

fault_tests! {
    frozen [without_tracking, with_tracking]
        timing_out(Route::Direct, Testbed::freeze, Testbed::thaw, "lost a connection to Redis");
    killed [without_tracking, with_tracking]
        unreachable(Route::Direct, Testbed::kill, Testbed::restart, "cannot connect to Redis");
    loading [without_tracking, with_tracking] replying(
        Route::Direct, (Testbed::restart_loading, Testbed::finish_loading),
        "503 {\"error\":\"Redis cannot serve reads now; retry in 1 s: LOADING", "LOADING Redis is loading");
    no_primary [without_tracking] replying(
        Route::Direct, (Testbed::lose_primary, Testbed::become_primary),
        "503 {\"error\":\"Redis cannot serve reads now; retry in 1 s: MASTERDOWN", "MASTERDOWN Link with MASTER");
    busy [without_tracking, with_tracking] replying(
        Route::Direct, (Testbed::run_endless_script, Testbed::kill_script),
        "503 {\"error\":\"Redis cannot serve reads now; retry in 1 s: BUSY", "BUSY Redis is busy");
    password_required [without_tracking, with_tracking] Fault { log: "set REDIS_PASSWORD", ..replying(
        Route::Direct, (Testbed::require_password, Testbed::drop_password),
        "502 {\"error\":\"Redis rejected the proxy's connection; the proxy's log has the remedy: NOAUTH",
        "ERR Redis rejected the proxy's connection") };
    readonly [without_tracking] replying(
        Route::Relay, (Testbed::reply_readonly, Testbed::restore_redis),
        "502 {\"error\":\"Redis replied with an error: READONLY", "READONLY You can't write");
    garbage [without_tracking] replying(
        Route::Relay, (Testbed::reply_garbage_to_reads, Testbed::restore_redis), "502 ", "ERR ");
    garbage_in_handshake [without_tracking, with_tracking] replying(
        Route::Relay, (Testbed::reply_garbage_to_handshake, Testbed::restore_redis),
        "502 {\"error\":\"Redis rejected the proxy's connection", "ERR Redis rejected the proxy's connection");
    closed_mid_reply [without_tracking]
        unreachable(Route::Relay, Testbed::close_mid_reply, Testbed::restore_redis, "lost a connection to Redis");
    stalled_mid_reply [without_tracking]
        timing_out(Route::Relay, Testbed::stall_mid_reply, Testbed::restore_redis, "lost a connection to Redis");
    never_replies [without_tracking, with_tracking]
        timing_out(Route::Relay, Testbed::never_reply, Testbed::restore_redis, "cannot connect to Redis");
    never_accepts [without_tracking]
        timing_out(Route::Relay, Testbed::never_accept, Testbed::restore_redis, "cannot connect to Redis");
    dns_failure [without_tracking]
        unreachable(Route::Dns, Testbed::fail_dns, Testbed::restore_dns, "for a local run use 127.0.0.1");
    slow_dns [without_tracking, with_tracking]
        timing_out(Route::Dns, Testbed::slow_dns, Testbed::restore_dns, "");
    dns_moved [without_tracking, with_tracking]
        unreachable(Route::Dns, Testbed::kill, Testbed::switch_dns, "cannot connect to Redis");
}

/// Runs the procedure for one fault.
fn run_fault(name: &str, fault: &Fault, tracking: &str) {
    let tracking = tracking == "with_tracking";
    // An error that should be immediate and waits for one minute instead fails the test.
    let timeout = if fault.timing == ErrorTiming::Immediate { 60_000 } else { 500 };
    let mut testbed = Testbed::start(fault.route);
    let text = timeout.to_string();
    let mut variables = vec![("CACHE_TTL", "600"), ("REDIS_TIMEOUT", &text)];
    if tracking {
        // Losing the tracking connection expires every entry. Stale entries are still served.
        variables.extend([("REDIS_TRACKING", "on"), ("STALE_IF_ERROR", "600")]);
    }
    let proxy = testbed.start_proxy(&variables);
    if tracking {
        wait_until_tracking(&proxy, 1);
    }
    let baseline = Baseline::measure(&testbed, &proxy, tracking);
    let mut normal_times = measure_hits_during(proxy.address, || std::thread::sleep(Duration::from_millis(300)));
    let mut longest = Duration::ZERO;
    let mut fault_times = measure_hits_during(proxy.address, || {
        (fault.begin)(&mut testbed);
        if tracking {
            wait_until_visible(&proxy, fault);
        }
        longest = check_misses_fail(&proxy, fault);
    });
    if !tracking {
        // The median is robust on a busy machine, and an event loop that waits for Redis would
        // exceed it.
        assert!(percentile(&mut fault_times, 0.5) < Duration::from_millis(250), "hits are delayed: {name}");
    }
    println!(
        "{name}: hits p99 {:?}, before {:?}; longest error {longest:?} with REDIS_TIMEOUT={timeout}",
        percentile(&mut fault_times, 0.99),
        percentile(&mut normal_times, 0.99)
    );
    end_fault(&proxy, &mut testbed, fault);
    assert_eq!(Client::connect_http(proxy.address).get("hot"), Reply::Value(value_of("hot")));
    assert!(fault.route != Route::Dns || testbed.reads_only_current_redis(), "the proxy reads another Redis");
    baseline.check_restored(&proxy);
    let log = wait_for("the fault is logged", || Some(proxy.log()).filter(|log| log.contains(fault.log)));
    assert!(!log.contains("panicked") && !log.contains("please report"), "{log}");
    // Once per fetcher, not once per key.
    assert!(log.matches("cannot connect to Redis").count() <= 4, "the log repeats itself: {log}");
}

/// Waits until a miss gets the error of the fault.
///
/// With tracking, hits also ask Redis once the invalidation stream is lost. They may meet Redis
/// between two states, such as down and loading, and that error holds until the next attempt.
fn wait_until_visible(proxy: &Proxy, fault: &Fault) {
    let mut client = Client::connect_http(proxy.address);
    wait_for("the fault is visible", || {
        matches!(client.get("nothing"), Reply::Error(text) if text.starts_with(fault.http)).then_some(())
    });
}

/// Checks that every miss gets the expected error, and returns the longest time that one took.
///
/// The first round meets open connections, the later ones meet none.
fn check_misses_fail(proxy: &Proxy, fault: &Fault) -> Duration {
    let mut longest = Duration::ZERO;
    let mut clients = Client::connect_mixed(proxy.address, 8);
    for round in numbered_keys("during", 600).chunks(200) {
        get_all(&mut clients, round, |key, answer, over_http, elapsed| {
            let prefix = if over_http { fault.http } else { fault.resp };
            assert!(matches!(&answer, Reply::Error(text) if text.starts_with(prefix)), "{key}: {answer:?}");
            longest = longest.max(elapsed);
        });
    }
    // Far more than an error takes, and far less than if keys, fetchers or attempts waited for each
    // other.
    assert!(
        longest < Duration::from_millis(2500) || fault.timing == ErrorTiming::Immediate,
        "the longest error took {longest:?}"
    );
    longest
}

/// Ends the fault while keys are requested, and checks that every key gets its own value.
///
/// Some replies to the first requests come after their deadline. The second requests include keys
/// that failed before.
fn end_fault(proxy: &Proxy, testbed: &mut Testbed, fault: &Fault) {
    let late = numbered_keys("late", 400);
    let mut clients = Client::connect_mixed(proxy.address, 8);
    let mut batches = clients.iter_mut().zip(late.chunks(50)).collect::<Vec<_>>();
    batches.iter_mut().for_each(|(client, batch)| client.send_gets(batch));
    (fault.end)(testbed);
    for (client, batch) in &mut batches {
        for key in *batch {
            let answer = client.read_reply();
            assert!(matches!(&answer, Reply::Error(_)) || answer == Reply::Value(value_of(key)), "{key}: {answer:?}");
        }
    }
    wait_until_all_served(proxy, &[numbered_keys("after", 400), late, numbered_keys("during", 600)].concat());
}

/// Requests the cached key over both protocols while `action` runs. Returns the time of each reply.
fn measure_hits_during(address: SocketAddr, action: impl FnOnce()) -> Vec<Duration> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let thread: JoinHandle<Vec<Duration>> = std::thread::spawn(move || {
        let (mut clients, mut times) = ([Client::connect_http(address), Client::connect_resp(address)], Vec::new());
        loop {
            for client in &mut clients {
                let sent = Instant::now();
                assert_eq!(client.get("hot"), Reply::Value(value_of("hot")));
                times.push(sent.elapsed());
            }
            if stopped.load(Ordering::Relaxed) {
                return times;
            }
            // Leaves CPU time to other threads.
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    action();
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Descriptors and memory of the proxy without requests.
struct Baseline {
    descriptors: usize,
    resident: u64,
}

impl Baseline {
    /// Measures once every fetcher has a connection, the key for hits is cached and as many clients
    /// as later have connected.
    fn measure(testbed: &Testbed, proxy: &Proxy, tracking: bool) -> Baseline {
        let connections = 4 + usize::from(tracking);
        let mut round = 0;
        wait_for("every fetcher has a connection", || {
            round += 1;
            get_all(
                &mut Client::connect_mixed(proxy.address, 8),
                &numbered_keys(&format!("warm-{round}"), 1000),
                |_, answer, _, _| {
                    assert!(matches!(answer, Reply::Error(_)), "{answer:?}");
                },
            );
            (count_redis_clients(&testbed.redis) > connections).then_some(())
        });
        assert_eq!(Client::connect_http(proxy.address).get("hot"), Reply::Value(value_of("hot")));
        Baseline { descriptors: count_idle_descriptors(proxy), resident: proxy.memory_kib("VmRSS") }
    }

    /// Checks that descriptors and memory return to the baseline, and that new clients are served.
    fn check_restored(&self, proxy: &Proxy) {
        wait_for("descriptors are closed", || (count_idle_descriptors(proxy) <= self.descriptors).then_some(()));
        let grown = proxy.memory_kib("VmRSS").saturating_sub(self.resident);
        println!("    {} descriptors before, {grown} KiB more afterwards", self.descriptors);
        assert!(grown < 8 * 1024, "{grown} KiB are not freed");
        let started = Instant::now();
        for mut client in Client::connect_mixed(proxy.address, 2) {
            assert_eq!(client.get("after-1"), Reply::Value(value_of("after-1")));
        }
        println!("    two new clients were answered after {:?}", started.elapsed());
    }
}

/// Returns the number of connections that Redis has, including the one that asks.
fn count_redis_clients(redis: &crate::common::Redis) -> usize {
    let info: String = redis::cmd("INFO").arg("clients").query(&mut redis.connect()).expect("INFO works");
    let count = info.lines().find_map(|line| line.strip_prefix("connected_clients:"));
    count.and_then(|count| count.parse().ok()).expect("a count")
}

/// Returns the number of open descriptors of the proxy once no client is connected.
fn count_idle_descriptors(proxy: &Proxy) -> usize {
    let mut client = RespClient::connect(proxy.address);
    wait_for("all clients are closed", || {
        client.call_text("INFO clients").contains("connected_clients:1\r\n").then_some(())
    });
    proxy.count_descriptors() - 1
}
