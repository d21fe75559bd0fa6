//! What the program takes of the system's memory: at start, for each connection that does nothing, for each entry.
//! `cargo bench --bench memory` prints a Markdown table, after a minute and a half; `-- idle` only the rows with that in
//! their name. Where fewer files may be open than it has connections, it makes fewer; how many it made stands below.
//!
//! Memory is what is resident of the process (`Rss`); what the kernel keeps for a socket is not in it. Each row has a proxy
//! of its own, because an allocator keeps pages from earlier that would be taken for nothing, and is looked at once
//! what goes back by itself has gone.

#![allow(clippy::expect_used, reason = "a benchmark may stop at what it did not expect")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::entries::{read, seed};
use common::resp::command;
use common::{Proxy, Redis, until};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

/// Connections that are open once all are counted.
const CONNECTIONS: usize = 9_000;

/// Connections that are open, and have asked, before any is counted: what the first of them bring into memory, of the program and
/// of its buffers, is no matter of connections.
const BEFORE: usize = 100;

/// Open files that this program and the proxy have for other things.
const OTHER_FILES: usize = 200;

const ENTRIES: usize = 1_000_000;

/// How long jemalloc takes to give back what nobody uses (`dirty_decay_ms`), and some more.
const DECAY: Duration = Duration::from_millis(11_000);

/// An hour, for what is to stay.
const LONG: Duration = Duration::from_secs(3600);

/// What is measured: bytes, of a proxy in front of this Redis.
type Row = fn(&Redis) -> f64;

const ROWS: [(&str, Row); 4] = [
    ("at start", at_start),
    ("an idle HTTP connection", |redis| connection(redis, b"GET /raw/hot HTTP/1.1\r\nHost: x\r\n\r\n")),
    ("an idle RESP connection", |redis| connection(redis, &command(&["GET", "hot"]))),
    ("an entry of 16 + 100 bytes", entry),
];

/// One that drops nothing and nobody meanwhile, once it is ready to serve.
fn start(redis: &Redis) -> Proxy {
    let size = ENTRIES.to_string();
    let proxy = Proxy::start(redis, &[("CACHE_TTL", "3600"), ("CLIENT_IDLE_TIMEOUT", "3600"), ("CACHE_SIZE", &size)]);
    until("it is connected to Redis", || (proxy.get("/readyz").status == 200).then_some(()));
    proxy.settled_descriptors();
    proxy
}

/// Resident bytes. Page by page, because `VmRSS` is off by what each processor has not added to it yet.
fn resident(proxy: &Proxy) -> f64 {
    let path = format!("/proc/{}/smaps_rollup", proxy.id());
    let text = std::fs::read_to_string(path).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")?.strip_suffix("kB"));
    line.expect("a figure in KiB").trim().parse::<f64>().expect("a number") * 1024.0
}

/// The same, when what is not used any more has gone back.
fn settled(proxy: &Proxy) -> f64 {
    std::thread::sleep(DECAY);
    resident(proxy)
}

fn at_start(redis: &Redis) -> f64 {
    resident(&start(redis))
}

/// Connects, asks once each and is answered.
fn connect(proxy: &Proxy, count: usize, request: &[u8]) -> Vec<TcpStream> {
    let ask = |_| {
        let mut stream = until("it is accepted", || TcpStream::connect(proxy.address).ok());
        stream.write_all(request).expect("the proxy reads");
        assert!(stream.read(&mut [0; 1024]).expect("an answer comes") > 0, "the connection has ended");
        stream
    };
    (0..count).map(ask).collect()
}

/// What a connection adds beside as many that do nothing either.
fn connection(redis: &Redis, request: &[u8]) -> f64 {
    let proxy = start(redis);
    let first = connect(&proxy, BEFORE, request);
    let before = settled(&proxy);
    let others = connect(&proxy, connections() - BEFORE, request);
    let each = (settled(&proxy) - before) / others.len() as f64;
    assert!(proxy.descriptors() > first.len() + others.len(), "some were closed");
    each
}

/// How many there can be: each is an open file of this program and of the proxy.
fn connections() -> usize {
    let limit = rlimit::increase_nofile_limit(rlimit::INFINITY).expect("a limit");
    CONNECTIONS.min((limit as usize).saturating_sub(OTHER_FILES)).max(2 * BEFORE)
}

/// What each of a million adds, its key and value included.
fn entry(redis: &Redis) -> f64 {
    // Before there is a proxy: Redis answers nobody meanwhile.
    seed(redis, ENTRIES, SystemTime::now() + LONG);
    let proxy = start(redis);
    // All that is touched by the first keys is there before the others.
    let first = ENTRIES / 100;
    read(&proxy, first);
    let before = settled(&proxy);
    read(&proxy, ENTRIES);
    (settled(&proxy) - before) / (ENTRIES - first) as f64
}

fn main() {
    let redis = Redis::start();
    redis.set("hot", "value");
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    println!("| what | bytes |\n|---|---|");
    for (name, row) in ROWS.into_iter().filter(|(name, _)| name.contains(&wanted)) {
        println!("| {name} | {:.0} |", row(&redis));
    }
    println!("\nConnections: {}, entries: {ENTRIES}.", connections());
}
