//! Benchmark of the proxy's resident memory: at start, for each idle connection, for each entry.
//!
//! `cargo bench --bench memory` prints a Markdown table within a minute and a half; `-- idle`
//! prints only the rows with that in their name. If the limit of open files is too low it uses
//! fewer connections; the line below the table has their number.
//!
//! Memory is the resident set (`Rss`), without what the kernel keeps for a socket. Each row has its
//! own proxy, because pages that the allocator kept from earlier would count as free memory. Rows
//! with a difference wait until the allocator has returned its unused pages.

#![allow(clippy::expect_used, reason = "a failed expectation ends the benchmark")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::entries::{fill_redis, read_through_proxy};
use common::resp::encode_command;
use common::{Proxy, Redis, wait_for};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

/// Open connections in total.
const CONNECTIONS: usize = 9_000;

/// Connections that have sent a request before the first reading. The first ones load pages of the
/// program and its buffers, which are no cost of a connection.
const FIRST_CONNECTIONS: usize = 100;

/// Open files of this program and of the proxy that are no connections.
const OTHER_FILES: usize = 200;

const ENTRIES: usize = 1_000_000;

/// Time after which jemalloc has returned unused pages: `dirty_decay_ms` plus a margin.
const DECAY: Duration = Duration::from_millis(11_000);

/// Time to live of entries that must not expire.
const LONG: Duration = Duration::from_secs(3600);

/// Function that returns bytes, for a proxy in front of this Redis.
type Row = fn(&Redis) -> f64;

const ROWS: [(&str, Row); 4] = [
    ("at start", measure_start),
    ("idle HTTP connection", |redis| measure_connection(redis, b"GET /raw/hot HTTP/1.1\r\nHost: x\r\n\r\n")),
    ("idle RESP connection", |redis| measure_connection(redis, &encode_command(&["GET", "hot"]))),
    ("entry of 16 + 100 bytes", measure_entry),
];

/// Starts a proxy that neither evicts entries nor closes idle clients, and waits until it is ready.
fn start(redis: &Redis) -> Proxy {
    let size = ENTRIES.to_string();
    let proxy = Proxy::start(redis, &[("CACHE_TTL", "3600"), ("CLIENT_IDLE_TIMEOUT", "3600"), ("CACHE_SIZE", &size)]);
    wait_for("the proxy is ready", || (proxy.get("/readyz").status == 200).then_some(()));
    proxy.wait_for_stable_descriptors();
    proxy
}

/// Returns the resident bytes. `smaps_rollup` counts pages; `VmRSS` lacks what each CPU has not
/// added to it yet.
fn read_resident(proxy: &Proxy) -> f64 {
    let path = format!("/proc/{}/smaps_rollup", proxy.pid());
    let text = std::fs::read_to_string(path).expect("a running process");
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")?.strip_suffix("kB"));
    line.expect("a figure in KiB").trim().parse::<f64>().expect("a number") * 1024.0
}

/// Returns the resident bytes after the allocator has returned unused pages.
fn read_settled(proxy: &Proxy) -> f64 {
    std::thread::sleep(DECAY);
    read_resident(proxy)
}

/// Returns the memory of a proxy without connections and entries.
fn measure_start(redis: &Redis) -> f64 {
    read_resident(&start(redis))
}

/// Opens connections, each with one request and its response.
fn connect(proxy: &Proxy, count: usize, request: &[u8]) -> Vec<TcpStream> {
    let ask = |_| {
        let mut stream = wait_for("the proxy accepts a connection", || TcpStream::connect(proxy.address).ok());
        stream.write_all(request).expect("the proxy reads");
        assert!(stream.read(&mut [0; 1024]).expect("a response") > 0, "the proxy closed the connection");
        stream
    };
    (0..count).map(ask).collect()
}

/// Returns the memory of each idle connection beyond the first ones.
fn measure_connection(redis: &Redis, request: &[u8]) -> f64 {
    let proxy = start(redis);
    let first = connect(&proxy, FIRST_CONNECTIONS, request);
    let before = read_settled(&proxy);
    let others = connect(&proxy, connection_count() - FIRST_CONNECTIONS, request);
    let each = (read_settled(&proxy) - before) / others.len() as f64;
    assert!(proxy.count_descriptors() > first.len() + others.len(), "the proxy closed connections");
    each
}

/// Returns the number of connections. Each is an open file in this program and in the proxy, and
/// both have the same limit.
fn connection_count() -> usize {
    let limit = rlimit::increase_nofile_limit(rlimit::INFINITY).expect("limit of open files");
    CONNECTIONS.min((limit as usize).saturating_sub(OTHER_FILES)).max(2 * FIRST_CONNECTIONS)
}

/// Returns the memory of each of a million entries, with key and value.
fn measure_entry(redis: &Redis) -> f64 {
    // Before the proxy starts: Redis does not reply meanwhile.
    fill_redis(redis, ENTRIES, SystemTime::now() + LONG);
    let proxy = start(redis);
    // The first keys load everything that all entries share.
    let first = ENTRIES / 100;
    read_through_proxy(&proxy, first);
    let before = read_settled(&proxy);
    read_through_proxy(&proxy, ENTRIES);
    (read_settled(&proxy) - before) / (ENTRIES - first) as f64
}

fn main() {
    let redis = Redis::start();
    redis.set("hot", "value");
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    println!("| what | bytes |\n|---|---|");
    for (name, row) in ROWS.into_iter().filter(|(name, _)| name.contains(&filter)) {
        println!("| {name} | {:.0} |", row(&redis));
    }
    println!("\nConnections: {}, entries: {ENTRIES}.", connection_count());
}
