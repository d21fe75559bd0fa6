//! Benchmark of hit latency while other clients misbehave: slow senders, a flood, slow readers,
//! more clients than MAX_CONNECTIONS.
//!
//! `cargo bench --bench misbehaving_clients` prints a Markdown table within two minutes; `-- flood`
//! prints only the rows with that in their name. It needs `ulimit -n 20000`. Compare the ratios
//! only, on a machine without other load.
//!
//! The proxy runs on the first CPU; Redis and all clients share the second. A flood keeps both
//! busy. A hit then waits for the flood's turn in the event loop, and for the second CPU.

#![allow(clippy::expect_used, reason = "a failed expectation ends the benchmark")]

#[path = "../tests/common/mod.rs"]
mod common;
mod harness;

use common::client::Client;
use common::{Proxy, Redis, wait_for};
use harness::{COLUMNS, ROUND, ROUNDS, Rounds, pinned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Keep-alive connections for hits: two for each protocol.
const CONNECTIONS: usize = 4;

/// Clients that send one byte a second.
const SLOW_SENDERS: usize = 5000;

/// Clients that read a long value at 32 KiB/s.
const SLOW_READERS: usize = 200;

/// MAX_CONNECTIONS in the row that exceeds it, and the connections that stay open there.
const FEW_CONNECTIONS: &str = "40";
const EXCESS_CONNECTIONS: usize = 60;

/// Load by misbehaving clients, which runs until the flag is set.
type Misbehaviour = fn(SocketAddr, &AtomicBool);

const MISBEHAVIOURS: [(&str, Misbehaviour); 6] = [
    ("none", |_, _| ()),
    ("5,000 clients send a byte a second", send_slowly),
    ("one client floods hits over HTTP", |address, stop| {
        flood(address, stop, b"GET /raw/hot HTTP/1.1\r\nHost: x\r\n\r\n")
    }),
    ("one client floods hits over RESP", |address, stop| flood(address, stop, b"*2\r\n$3\r\nGET\r\n$3\r\nhot\r\n")),
    ("200 clients read 8 MiB at 32 KiB/s", read_slowly),
    ("clients beyond MAX_CONNECTIONS", connect_in_excess),
];

fn connect(address: SocketAddr) -> TcpStream {
    wait_for("the proxy accepts a connection", || TcpStream::connect(address).ok())
}

/// Sends a byte a second over each of many connections.
fn send_slowly(address: SocketAddr, stop: &AtomicBool) {
    let mut streams: Vec<TcpStream> = (0..SLOW_SENDERS).map(|_| connect(address)).collect();
    for number in (0..SLOW_SENDERS).cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // The proxy closed the connection at CLIENT_TIMEOUT.
        if streams[number].write_all(b"G").is_err() {
            streams[number] = connect(address);
        }
        std::thread::sleep(Duration::from_secs(1) / SLOW_SENDERS as u32);
    }
}

/// Sends pipelined requests as fast as the proxy reads them.
fn flood(address: SocketAddr, stop: &AtomicBool, request: &[u8]) {
    let (mut stream, requests) = (connect(address), request.repeat(1000));
    let mut reader = stream.try_clone().expect("clone of a stream");
    let reading = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&requests).expect("the proxy reads");
    }
    stream.shutdown(std::net::Shutdown::Both).expect("shutdown of a connected stream");
    // The connection may end with a reset.
    let _ = reading.join().expect("no panic");
}

/// Reads a long value slowly over each of many connections.
fn read_slowly(address: SocketAddr, stop: &AtomicBool) {
    let mut streams: Vec<TcpStream> = (0..SLOW_READERS).map(|_| connect(address)).collect();
    for stream in &mut streams {
        socket2::SockRef::from(&*stream).set_recv_buffer_size(32 * 1024).expect("socket option");
        stream.write_all(b"GET /raw/long HTTP/1.1\r\nHost: x\r\n\r\n").expect("the proxy reads");
    }
    let mut buffer = vec![0; 32 * 1024];
    for number in (0..SLOW_READERS).cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        assert!(streams[number].read(&mut buffer).expect("the proxy keeps a client that reads") > 0);
        std::thread::sleep(Duration::from_secs(1) / SLOW_READERS as u32);
    }
}

/// Takes all remaining connections, and keeps connecting.
fn connect_in_excess(address: SocketAddr, stop: &AtomicBool) {
    let mut streams: Vec<TcpStream> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let mut stream = connect(address);
        stream.write_all(b"GET /raw/hot HTTP/1.1\r\nHost: x\r\n\r\n").expect("the proxy reads");
        stream.read_exact(&mut [0; 12]).expect("a response");
        streams.push(stream);
        if streams.len() > EXCESS_CONNECTIONS {
            streams.pop();
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Requests the cached key for one round, one request at a time, and returns the latencies.
fn measure_hits(clients: &mut [Client]) -> Vec<Duration> {
    let (mut times, end) = (Vec::with_capacity(1 << 18), Instant::now() + ROUND);
    for number in (0..CONNECTIONS).cycle() {
        let sent_at = Instant::now();
        if sent_at > end {
            break;
        }
        clients[number].get("hot");
        times.push(sent_at.elapsed());
    }
    times
}

/// Measures one row: baseline and disturbed rounds in turn.
fn measure(name: &str, misbehave: Misbehaviour) {
    let redis = Redis::start();
    redis.set("hot", "value");
    redis.run(&["SETRANGE", "long", "8388607", "x"]);
    // A low limit, so that the clients reach it at once.
    let max_connections = if name.contains("MAX_CONNECTIONS") { FEW_CONNECTIONS } else { "10000" };
    let command = pinned(0, env!("CARGO_BIN_EXE_segment-redis-proxy"));
    let variables = [("CACHE_TTL", "3600"), ("CLIENT_TIMEOUT", "3"), ("MAX_CONNECTIONS", max_connections)];
    let proxy = Proxy::start_command(command, redis.port, &variables);
    let mut clients = Client::connect_mixed(proxy.address, CONNECTIONS);
    clients.iter_mut().for_each(|client| _ = client.get("hot"));
    let mut rounds = Rounds::default();
    for _ in 0..ROUNDS {
        let baseline = measure_hits(&mut clients);
        let stop = Arc::new(AtomicBool::new(false));
        let (thread_stop, address) = (Arc::clone(&stop), proxy.address);
        let thread = std::thread::spawn(move || misbehave(address, &thread_stop));
        // Time until all clients are connected.
        std::thread::sleep(Duration::from_millis(500));
        let disturbed = measure_hits(&mut clients);
        stop.store(true, Ordering::Relaxed);
        thread.join().expect("no panic");
        rounds.push(baseline, disturbed);
    }
    println!("| {name} | {} |", rounds.format_columns());
    assert!(!proxy.log().contains("panicked"), "{}", proxy.log());
}

fn main() {
    harness::run(&format!("| other clients | {COLUMNS} |"), MISBEHAVIOURS, measure);
}
