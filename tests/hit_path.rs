//! Tests of the cost of a hit on a keep-alive connection: two system calls, no allocation
//! (two-syscalls).
//!
//! strace counts the system calls of the real binary. A counting allocator counts the allocations
//! of a worker in this process.

#![allow(clippy::expect_used, reason = "a test may panic")]
#![allow(unsafe_code, reason = "a global allocator requires it; this one counts and calls the system's")]

mod common;

use common::resp::{RespClient, encode_command};
use common::{HttpClient, Proxy, Redis, TEST_TIMEOUT, strace};
use segment_redis_proxy::backend::RedisAccess;
use segment_redis_proxy::config::Config;
use segment_redis_proxy::read_through::WatcherLimit;
use segment_redis_proxy::server::{ConnectionLimiter, Endpoint, Listener, SharedState, Worker, bind};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::io::Read;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

thread_local! {
    /// True if the allocations of this thread are counted.
    static IS_COUNTED: Cell<bool> = const { Cell::new(false) };
}

/// Number of allocations of all counted threads.
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

/// Allocator that counts allocations and reallocations.
struct CountingAllocator;

fn count_allocation() {
    if IS_COUNTED.with(Cell::get) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes unchanged to the system's allocator, which fulfils the contract.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_allocation();
        // SAFETY: the caller fulfils the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer comes from `System`, through `alloc` or `realloc` of this type.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count_allocation();
        // SAFETY: as for `dealloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// A hit allocates nothing, over HTTP and in both versions of RESP.
#[test]
fn hit_allocates_nothing() {
    let redis = Redis::start();
    redis.set("a", "1");
    redis.set("text", "with \"quotes\"");
    let variables = HashMap::from([
        ("REDIS_HOST", "127.0.0.1".to_owned()),
        ("REDIS_PORT", redis.port.to_string()),
        ("CACHE_TTL", "600".to_owned()),
    ]);
    let config = Config::read(|name| variables.get(name).map(Into::into)).expect("a valid configuration");
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)), false).expect("a free port");
    let address = listener.local_addr().expect("a bound listener");
    let mut worker = Worker::new(
        vec![(Endpoint::Main, Listener::Tcp(listener))],
        &config,
        SharedState {
            connection_limit: ConnectionLimiter::from_config(&config).expect("enough open files"),
            watcher_limit: WatcherLimit::new(config.max_watchers),
            access: Arc::new(RedisAccess::load(config.redis.clone()).expect("no file is read")),
            registry: Arc::default(),
            client_passwords: None,
            tls: None,
        },
        Arc::default(),
    )
    .expect("a worker");
    let handle = worker.handle();
    let thread = std::thread::spawn(move || {
        IS_COUNTED.with(|is_counted| is_counted.set(true));
        worker.run().expect("no error of the poll");
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
    assert!(ALLOCATIONS.load(Ordering::Relaxed) > 0, "no allocation is counted");
    // A new `Date` is rendered once a second, which allocates. Only rounds within one second count.
    let (mut rounds, mut allocations, started) = (0, 0, Instant::now());
    while rounds < 10 {
        assert!(started.elapsed() < TEST_TIMEOUT, "no round within one second");
        let date = client.get("/raw/a").header("date").to_owned();
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for path in paths.iter().cycle().take(100) {
            assert!(client.get(path).header("cache-status").contains("hit"));
        }
        for (command, reply) in hits.iter().cycle().take(100) {
            resp.iter_mut().for_each(|client| assert_reply(client, command, reply));
        }
        let after = ALLOCATIONS.load(Ordering::Relaxed);
        if client.get("/raw/a").header("date") == date {
            (rounds, allocations) = (rounds + 1, allocations + after - before);
        }
    }
    assert_eq!(allocations, 0, "hits allocate");
    handle.stop(Duration::ZERO);
    thread.join().expect("no panic");
}

/// Sends a command and asserts its reply, with one write and one read.
fn assert_reply(client: &mut RespClient, command: &[u8], reply: &str) {
    client.send(command);
    let mut received = [0; 64];
    client.stream.read_exact(&mut received[..reply.len()]).expect("a reply");
    assert_eq!(&received[..reply.len()], reply.as_bytes());
}

/// A hit costs two system calls beside the poll.
#[test]
fn hit_costs_two_system_calls() {
    // Many more than the system calls of start and shutdown, which strace counts as well.
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
        assert_reply(&mut resp, &get, "$1\r\n1\r\n");
    }
    assert_eq!(proxy.stop("TERM"), Some(0));
    let calls = strace::read_counts(&summary);
    std::fs::remove_file(&summary).expect("a file of this test");
    let polls = calls.get("epoll_wait").copied().unwrap_or(0);
    assert!(polls > 0, "strace counted no poll: {calls:?}");
    let others: usize = calls.values().sum::<usize>() - polls;
    assert!(others >= HITS * 2, "strace did not count all calls: {calls:?}");
    assert!(others as f64 / HITS as f64 <= 2.1, "{others} system calls for {HITS} hits: {calls:?}");
}

/// A line about a thread that exited during a system call is not a row of the strace summary.
#[test]
fn detached_thread_is_not_counted() {
    let text = "19098 ???( <detached ...>\n    calls syscall\n--------- ----------------\n\
                \x20      58 futex\n    20014 recvfrom\n--------- ----------------\n    20072 total\n";
    let table = strace::parse_counts(text).expect("a table");
    assert_eq!((table.len(), table["futex"], table["recvfrom"]), (2, 58, 20014));
    assert!(strace::parse_counts(&text[..text.len() - 20]).is_none());
}
