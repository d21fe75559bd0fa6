//! How a hit and the cache's operations grow from a thousand to ten million entries, and what an entry costs in memory.
//! `cargo bench --bench cache` prints two Markdown tables, after a minute. Read the ratios between the rows: the
//! nanoseconds are this machine's, now.

#![allow(clippy::expect_used, reason = "a benchmark may stop at what it did not expect")]

use segment_redis_proxy::cache::{Cache, Limits};
use segment_redis_proxy::connection::Connection;
use segment_redis_proxy::dispatch::{Dispatcher, sync_metrics};
use segment_redis_proxy::metrics::{MetricsRegistry, Recorder};
use segment_redis_proxy::protocol::http::{HeadDecoder, Policy, ResponseDate};
use segment_redis_proxy::read_through::{Lookup, ReadThrough};
use segment_redis_proxy::types::{Completion, FetchedValue, JsonForm, Millis, Payload, Value};
use std::hint::black_box;
use std::io::Write;
use std::time::{Duration, Instant, SystemTime};

/// What the program uses.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const SIZES: [usize; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];
/// Operations for each figure, so that a thousand entries are measured as long as ten million.
const OPERATIONS: usize = 2_000_000;
const VALUE: [u8; 100] = [b'x'; 100];
/// What the server does at most for each tick.
const SWEEP: usize = segment_redis_proxy::server::SWEEP_PER_TICK;

/// A 16-byte key for each number.
fn key(number: usize) -> [u8; 16] {
    let mut key = [b'0'; 16];
    key[..8].copy_from_slice(&number.to_le_bytes());
    key
}

fn insert(cache: &mut Cache, number: usize, deadline: Millis) {
    cache.insert(&key(number), Payload::Inline { bytes: &VALUE, form: JsonForm::Plain }, deadline, Millis::MAX);
}

/// Full-period pseudo-random walk: the processor cannot guess the next entry.
fn scramble(state: &mut u64, below: usize) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    ((u128::from(*state) * below as u128) >> 64) as usize
}

fn full_cache(size: usize) -> Cache {
    let mut cache = Cache::new(Limits { entries: size, bytes: usize::MAX, stale: 0 });
    for number in 0..size {
        insert(&mut cache, number, 1_000_000 + number as Millis / 1000);
    }
    cache
}

/// Begins every request, and stands before 16 digits and [`ACCEPT_BACKOFF`].
const LINE: &[u8] = b"GET /key/";
const REST: &[u8] = b" HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n";

/// A key of 16 bytes that can stand in a target.
fn write_digits(number: usize, mut place: &mut [u8]) {
    write!(place, "{number:016x}").expect("there is room for them");
}

/// A proxy that holds so many keys, which have come in as misses.
fn full_proxy(size: usize) -> ReadThrough {
    let mut proxy = ReadThrough::new(Limits { entries: size, bytes: usize::MAX, stale: 0 }, 1_000_000, 1000);
    let nobody = Connection::new(0, 0).request_id(0);
    let mut key = [0; 16];
    for number in 0..size {
        write_digits(number, &mut key);
        if let Lookup::Fetch(job) = proxy.get(&key, true, nobody, 0) {
            let fetched = FetchedValue { value: Value::new(VALUE.to_vec()), ttl: None };
            proxy.complete(Completion { fetch_id: job.fetch_id, result: Ok(Some(fetched)) }, 0, |_, _| ());
        }
    }
    assert_eq!(proxy.cache().len(), size);
    proxy
}

/// Nanoseconds for a whole hit among so many keys: from the bytes of a request over HTTP to those of its response, all of it but
/// the socket.
fn whole_hit(size: usize) -> f64 {
    let mut proxy = full_proxy(size);
    let (mut jobs, mut heads, mut recorder) = (Vec::new(), HeadDecoder::new(), Recorder::default());
    let (policy, register, date) =
        (Policy::default(), MetricsRegistry::default(), ResponseDate::at(SystemTime::UNIX_EPOCH));
    let mut service = Dispatcher {
        read_through: &mut proxy,
        jobs: &mut jobs,
        head_decoder: &mut heads,
        policy: &policy,
        date: &date,
        recorder: &mut recorder,
        registry: &register,
        worker_index: 0,
        now: 0,
    };
    let (mut connection, mut lent) = (Connection::new(1, 0), Vec::with_capacity(4096));
    let mut request = [LINE, &[b'0'; 16], REST].concat();
    let mut random = 1;
    let (time, _) = measure(OPERATIONS, |_| {
        write_digits(scramble(&mut random, size), &mut request[LINE.len()..][..16]);
        connection.send_buffer().lend_tail(&mut lent);
        service.on_input(&mut connection, 0, &request);
        let length = black_box(connection.send_buffer().contiguous()).map_or(0, <[u8]>::len);
        connection.send_buffer().advance(length);
        connection.send_buffer().reclaim_tail(&mut lent);
    });
    sync_metrics(service.recorder, service.read_through, 0);
    assert_eq!(service.recorder.metrics.hits, OPERATIONS as u64);
    time
}

/// Nanoseconds for each operation, and the longest single one in microseconds.
fn measure(count: usize, mut operation: impl FnMut(usize)) -> (f64, f64) {
    let start = Instant::now();
    let mut longest = Duration::ZERO;
    let mut before = start;
    for number in 0..count {
        operation(number);
        if number % 16 == 15 {
            let now = Instant::now();
            longest = longest.max(now - before);
            before = now;
        }
    }
    (start.elapsed().as_nanos() as f64 / count as f64, longest.as_nanos() as f64 / 1000.0)
}

/// Resident memory of this process in bytes.
fn resident() -> f64 {
    let pages: f64 = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .expect("/proc/self/statm has the resident pages second");
    pages * 4096.0
}

/// What an entry adds to a process that had none. In a process of its own: memory that an allocator keeps from earlier
/// would be taken for nothing.
fn memory(entries: usize) {
    let before = resident();
    let cache = full_cache(entries);
    let each = (resident() - before) / entries as f64;
    println!("| {entries} | {each:.1} | {:.1} |", each - 116.0);
    drop(cache);
}

fn main() {
    if std::env::var_os("BENCH_MEMORY").is_some() {
        return memory(1_000_000);
    }
    println!("| entries | resident bytes for each | beside 16-byte key and 100-byte value |");
    println!("|---|---|---|");
    let this = std::env::current_exe().expect("a program knows its path");
    let status = std::process::Command::new(this).env("BENCH_MEMORY", "1").status();
    assert!(status.expect("it can be started again").success());
    println!();
    println!(
        "| entries | whole hit ns | get ns | get, missing ns | insert with eviction ns | expiry ns | growing insert ns | longest 16 growing inserts us | longest sweep of {SWEEP} us |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for size in SIZES {
        let hit = whole_hit(size);
        let mut cache = Cache::new(Limits { entries: size, bytes: usize::MAX, stale: 0 });
        let (growing, longest_growth) =
            measure(size, |number| insert(&mut cache, number, 1_000_000 + number as Millis / 1000));
        let mut random = 1;
        let (get, _) = measure(OPERATIONS, |_| {
            black_box(cache.get(&key(scramble(&mut random, size)), 0).is_some());
        });
        let (missing, _) = measure(OPERATIONS, |number| {
            black_box(cache.get(&key(number + size), 0).is_some());
        });
        let (evicting, _) = measure(OPERATIONS.max(size / 5), |number| insert(&mut cache, size + number, 2_000_000));
        let expired = cache.len();
        let start = Instant::now();
        let mut longest = Duration::ZERO;
        loop {
            let before = Instant::now();
            let more = cache.sweep(Millis::MAX, SWEEP);
            longest = longest.max(before.elapsed());
            if !more {
                break;
            }
        }
        let expiry = start.elapsed().as_nanos() as f64 / expired as f64;
        println!(
            "| {size} | {hit:.0} | {get:.0} | {missing:.0} | {evicting:.0} | {expiry:.0} | {growing:.0} | {longest_growth:.0} | {:.0} |",
            longest.as_nanos() as f64 / 1000.0
        );
    }
}
