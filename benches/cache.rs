//! Benchmark of a full hit and of the cache's operations, from a thousand to ten million entries,
//! and of an entry's memory.
//!
//! `cargo bench --bench cache` prints two Markdown tables within a minute. Compare the ratios
//! between the rows: absolute times depend on the machine and its other load.

#![allow(clippy::expect_used, reason = "a failed expectation ends the benchmark")]

use segment_redis_proxy::cache::{Cache, Limits};
use segment_redis_proxy::client_auth::ClientAuth;
use segment_redis_proxy::connection::{Connection, DecodeContext, ReplyContext};
use segment_redis_proxy::dispatch::{Dispatcher, sync_metrics};
use segment_redis_proxy::metrics::{MetricsRegistry, Recorder, WorkerSlot};
use segment_redis_proxy::protocol::http::{HeadDecoder, Policy, ResponseDate};
use segment_redis_proxy::read_through::{Lookup, ReadThrough};
use segment_redis_proxy::types::{Access, Completion, FetchedValue, MAX_UPCOMING_KEYS, Millis, UpcomingKeys};
use segment_redis_proxy::value::{JsonForm, Payload, Value};
use std::hint::black_box;
use std::io::Write;
use std::time::{Duration, Instant, SystemTime};

/// Allocator of the program.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const SIZES: [usize; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];
/// Operations for each figure, so that a thousand entries are measured as long as ten million.
const OPERATIONS: usize = 2_000_000;
const VALUE: [u8; 100] = [b'x'; 100];
/// Maximum of entries that a worker sweeps in one tick.
const SWEEP: usize = segment_redis_proxy::server::SWEEP_PER_TICK;

/// Returns the 16-byte key with a number.
fn key(number: usize) -> [u8; 16] {
    let mut key = [b'0'; 16];
    key[..8].copy_from_slice(&number.to_le_bytes());
    key
}

fn insert(cache: &mut Cache, number: usize, deadline: Millis) {
    cache.insert(&key(number), Payload::Inline { bytes: &VALUE, form: JsonForm::Plain }, deadline, Millis::MAX);
}

/// Returns the next number of a full-period pseudo-random sequence, so that the CPU cannot predict
/// the next entry.
fn next_random(state: &mut u64, below: usize) -> usize {
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

/// Bytes of a request before and after the 16 digits of its key.
const BEFORE_KEY: &[u8] = b"GET /key/";
const AFTER_KEY: &[u8] = b" HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n";

/// Writes a key of 16 hexadecimal digits, which needs no escaping in a target.
fn write_digits(number: usize, mut out: &mut [u8]) {
    write!(out, "{number:016x}").expect("space for 16 bytes");
}

/// Returns a read-through cache with this many entries, each stored by a miss.
fn full_read_through(size: usize) -> ReadThrough {
    let mut read_through = ReadThrough::new(Limits { entries: size, bytes: usize::MAX, stale: 0 }, 1_000_000, 1000);
    let request_id = Connection::new(0, 0).request_id(0);
    let mut key = [0; 16];
    for number in 0..size {
        write_digits(number, &mut key);
        if let Lookup::Fetch(job) = read_through.get(&key, Access::NORMAL, request_id, 0) {
            let fetched = FetchedValue { value: Value::new(VALUE.to_vec()), ttl: None };
            read_through.complete(
                Completion { fetch_id: job.fetch_id, result: Ok(Some(fetched)), may_cache: true },
                0,
                |_, _| (),
            );
        }
    }
    assert_eq!(read_through.cache().len(), size);
    read_through
}

/// Returns the nanoseconds of a full HTTP hit among this many entries: from request bytes to
/// response bytes, without the socket.
fn measure_full_hit(size: usize) -> f64 {
    let mut read_through = full_read_through(size);
    let (mut jobs, mut head_decoder, mut recorder) = (Vec::new(), HeadDecoder::new(), Recorder::default());
    let (policy, registry, date) =
        (Policy::default(), MetricsRegistry::default(), ResponseDate::at(SystemTime::UNIX_EPOCH));
    let mut dispatcher = Dispatcher {
        read_through: &mut read_through,
        jobs: &mut jobs,
        context: DecodeContext {
            policy: &policy,
            head_decoder: &mut head_decoder,
            auth: &mut ClientAuth::default(),
            offers_tracking: false,
            reply: ReplyContext { date: &date, recorder: &mut recorder },
        },
        registry: &registry,
        worker_slot: &WorkerSlot::default(),
        now: 0,
    };
    let (mut connection, mut write_scratch) = (Connection::new(1, 0), Vec::with_capacity(4096));
    let mut request = [BEFORE_KEY, &[b'0'; 16], AFTER_KEY].concat();
    let mut random = 1;
    let (time, _) = measure(OPERATIONS, |_| {
        write_digits(next_random(&mut random, size), &mut request[BEFORE_KEY.len()..][..16]);
        connection.send_buffer().lend_tail(&mut write_scratch);
        dispatcher.on_input(&mut connection, 0, &request);
        let length = black_box(connection.send_buffer().contiguous()).map_or(0, <[u8]>::len);
        connection.send_buffer().advance(length);
        connection.send_buffer().reclaim_tail(&mut write_scratch);
    });
    sync_metrics(dispatcher.context.reply.recorder, dispatcher.read_through, 0);
    assert_eq!(dispatcher.context.reply.recorder.metrics.hits, OPERATIONS as u64);
    time
}

/// Returns the nanoseconds of one `get` in a batch of keys that the cache looked ahead for.
fn measure_batched_get(cache: &mut Cache, size: usize) -> f64 {
    let mut random = 1;
    let (time, _) = measure(OPERATIONS / MAX_UPCOMING_KEYS, |_| {
        let keys: [_; MAX_UPCOMING_KEYS] = std::array::from_fn(|_| key(next_random(&mut random, size)));
        let mut upcoming = UpcomingKeys::new();
        keys.iter().for_each(|key| upcoming.push(key));
        cache.look_ahead(&upcoming);
        for key in &keys {
            black_box(cache.get(key, 0).is_some());
        }
    });
    time / MAX_UPCOMING_KEYS as f64
}

/// Returns the nanoseconds of each operation, and the microseconds of the longest group of 16.
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

/// Returns the resident memory of this process in bytes.
fn read_resident() -> f64 {
    let pages: f64 = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .expect("resident pages in the second field of /proc/self/statm");
    pages * 4096.0
}

/// Prints the memory of each entry. Runs in a new process: pages that the allocator kept from
/// earlier would count as free memory.
fn print_memory(entries: usize) {
    let before = read_resident();
    let cache = full_cache(entries);
    let each = (read_resident() - before) / entries as f64;
    println!("| {entries} | {each:.1} | {:.1} |", each - 116.0);
    drop(cache);
}

fn main() {
    if std::env::var_os("BENCH_MEMORY").is_some() {
        return print_memory(1_000_000);
    }
    println!("| entries | resident bytes per entry | overhead beside 16-byte key and 100-byte value |");
    println!("|---|---|---|");
    let this = std::env::current_exe().expect("path of this executable");
    let status = std::process::Command::new(this).env("BENCH_MEMORY", "1").status();
    assert!(status.expect("restart for a fresh heap").success());
    println!();
    println!(
        "| entries | full hit ns | get ns | get in batches of {MAX_UPCOMING_KEYS} ns | get, missing ns | insert with eviction ns | expiry ns | growing insert ns | longest 16 growing inserts us | longest sweep of {SWEEP} us |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for size in SIZES {
        let hit = measure_full_hit(size);
        let mut cache = Cache::new(Limits { entries: size, bytes: usize::MAX, stale: 0 });
        let (growing, longest_growth) =
            measure(size, |number| insert(&mut cache, number, 1_000_000 + number as Millis / 1000));
        let mut random = 1;
        let (get, _) = measure(OPERATIONS, |_| {
            black_box(cache.get(&key(next_random(&mut random, size)), 0).is_some());
        });
        let batched = measure_batched_get(&mut cache, size);
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
            "| {size} | {hit:.0} | {get:.0} | {batched:.0} | {missing:.0} | {evicting:.0} | {expiry:.0} | {growing:.0} | {longest_growth:.0} | {:.0} |",
            longest.as_nanos() as f64 / 1000.0
        );
    }
}
