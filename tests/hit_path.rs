//! Rule 13: what a hit on a kept-alive connection costs. System calls are counted by strace on the real binary,
//! allocations by a counting allocator under a real loop in this process.

#![allow(clippy::expect_used, reason = "a test may stop at what it did not expect")]
#![allow(unsafe_code, reason = "an allocator can only be written so; it does nothing but count and pass on")]

mod common;

use common::resp::{RespClient, encode_command};
use common::{HttpClient, Proxy, Redis, strace};
use segment_redis_proxy::config::Config;
use segment_redis_proxy::server::{ConnectionLimiter, Worker, bind};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::io::Read;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

thread_local! {
    /// Whether this thread's allocations count.
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

fn count() {
    if COUNTED.with(Cell::get) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System`, by `alloc` or `realloc` above and below.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as for `dealloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_hit_allocates_nothing() {
    let redis = Redis::start();
    redis.set("a", "1");
    redis.set("text", "with \"quotes\"");
    let variables = HashMap::from([
        ("REDIS_HOST", "127.0.0.1".to_owned()),
        ("REDIS_PORT", redis.port.to_string()),
        ("CACHE_TTL", "600".to_owned()),
    ]);
    let config = Config::read(|name| variables.get(name).map(Into::into)).expect("allowed");
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)), false).expect("a free port");
    let address = listener.local_addr().expect("bound");
    let mut server = Worker::new(
        listener,
        &config,
        ConnectionLimiter::from_config(&config).expect("room"),
        Arc::default(),
        Arc::default(),
    )
    .expect("a server");
    let stopper = server.handle();
    let serving = std::thread::spawn(move || {
        COUNTED.with(|counted| counted.set(true));
        server.run().expect("it polls");
    });
    let mut client = HttpClient::connect(address);
    let paths = ["/key/a", "/raw/a", "/key/text", "/key/%61?query"];
    for path in paths.iter().cycle().take(100) {
        assert_eq!(client.get(path).status, 200);
    }
    let mut resp = [RespClient::connect(address), RespClient::connect(address)];
    assert!(resp[1].call_text("HELLO 3").starts_with('%'));
    let hits = [
        (encode_command(&["GET", "a"]), "$1\r\n1\r\n"),
        (encode_command(&["STRLEN", "text"]), ":13\r\n"),
        (encode_command(&["GETRANGE", "text", "0", "3"]), "$4\r\nwith\r\n"),
    ];
    let misses = ALLOCATIONS.load(Ordering::Relaxed);
    assert!(misses > 0, "nothing is counted");
    // A new second renders a new Date. That is one allocation a second, not one for each hit.
    let fewest = (0..5).map(|_| {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for path in paths.iter().cycle().take(1000) {
            assert!(client.get(path).header("cache-status").contains("hit"));
        }
        for (command, reply) in hits.iter().cycle().take(1000) {
            resp.iter_mut().for_each(|client| expect(client, command, reply));
        }
        ALLOCATIONS.load(Ordering::Relaxed) - before
    });
    assert_eq!(fewest.min(), Some(0), "hits allocate");
    stopper.stop(Duration::ZERO);
    serving.join().expect("no panic");
}

/// Sends a command and reads its reply, each at once.
fn expect(client: &mut RespClient, command: &[u8], reply: &str) {
    client.send(command);
    let mut received = [0; 64];
    client.stream.read_exact(&mut received[..reply.len()]).expect("a reply");
    assert_eq!(&received[..reply.len()], reply.as_bytes());
}

#[test]
fn a_hit_costs_two_system_calls_beside_the_poll() {
    // Many, beside the calls of starting and ending, which are counted too.
    const HITS: usize = 20_000;
    let redis = Redis::start();
    redis.set("a", "1");
    let summary = std::env::temp_dir().join(format!("segment-redis-proxy-strace-{}", redis.port));
    let [strace, arguments @ ..] = strace::wrap_command(env!("CARGO_BIN_EXE_segment-redis-proxy"), &summary);
    let mut strace = Command::new(strace);
    strace.args(arguments);
    let proxy = Proxy::start_command(strace, redis.port, &[("CACHE_TTL", "600")]);
    let mut client = proxy.connect();
    let (mut resp, get) = (RespClient::connect(proxy.address), encode_command(&["GET", "a"]));
    for _ in 0..HITS / 2 {
        assert_eq!(client.get("/key/a").status, 200);
        expect(&mut resp, &get, "$1\r\n1\r\n");
    }
    assert_eq!(proxy.stop("TERM"), Some(0));
    let calls = strace::read_counts(&summary);
    std::fs::remove_file(&summary).expect("it can be removed");
    let polls = calls.get("epoll_wait").copied().unwrap_or(0);
    assert!(polls > 0, "strace has seen nothing: {calls:?}");
    let others: usize = calls.values().sum::<usize>() - polls;
    assert!(others >= HITS * 2, "strace has not seen all: {calls:?}");
    assert!(others as f64 / HITS as f64 <= 2.1, "{others} system calls for {HITS} hits: {calls:?}");
}

#[test]
fn a_thread_that_strace_left_in_the_middle_of_something_is_no_system_call() {
    let text = "19098 ???( <detached ...>\n    calls syscall\n--------- ----------------\n\
                \x20      58 futex\n    20014 recvfrom\n--------- ----------------\n    20072 total\n";
    let table = strace::parse_counts(text).expect("a table");
    assert_eq!((table.len(), table["futex"], table["recvfrom"]), (2, 58, 20014));
    assert!(strace::parse_counts(&text[..text.len() - 20]).is_none());
}
