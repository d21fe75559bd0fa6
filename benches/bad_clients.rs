//! What hits notice of clients that misbehave: how long they take undisturbed and beside thousands that trickle, one that
//! floods, readers that are slow, a crowd that finds no place. `cargo bench --bench bad_clients` prints a Markdown table, after
//! two minutes; `-- flood` only the rows with that in their name. It needs `ulimit -n 20000`. As for `bad_days`: read the ratios, on
//! a machine that does nothing else.
//!
//! The proxy has the first processor for itself; Redis, good and bad clients share the second. A flood keeps both busy: what
//! a hit waits for is the flood's turn of the loop, and its share of the second processor.

#![allow(clippy::expect_used, reason = "a benchmark may stop at what it did not expect")]

#[path = "../tests/common/mod.rs"]
mod common;
mod disturbed;

use common::asking::Client;
use common::{Proxy, Redis, until};
use disturbed::{COLUMNS, ROUND, ROUNDS, Rounds, pinned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Kept-alive connections for hits: two for each protocol.
const CONNECTIONS: usize = 4;

/// Clients that trickle a byte a second.
const TRICKLERS: usize = 5000;

/// Clients that read a long value at 32 KiB a second.
const SLOW_READERS: usize = 200;

/// Places, where there is a crowd that finds none; and how many of the crowd hold on to what they have.
const PLACES: &str = "40";
const CROWD: usize = 60;

/// Goes on until it is told that the round is over.
type Mischief = fn(SocketAddr, &AtomicBool);

const MISCHIEF: [(&str, Mischief); 6] = [
    ("none", |_, _| ()),
    ("5,000 clients trickle a byte a second", trickle),
    ("one floods hits over HTTP", |address, over| flood(address, over, b"GET /raw/hot HTTP/1.1\r\nHost: x\r\n\r\n")),
    ("one floods hits over RESP", |address, over| flood(address, over, b"*2\r\n$3\r\nGET\r\n$3\r\nhot\r\n")),
    ("200 read 8 MiB at 32 KiB a second", read_slowly),
    ("a crowd that finds no place", crowd),
];

fn connect(address: SocketAddr) -> TcpStream {
    until("it is accepted", || TcpStream::connect(address).ok())
}

fn trickle(address: SocketAddr, over: &AtomicBool) {
    let mut streams: Vec<TcpStream> = (0..TRICKLERS).map(|_| connect(address)).collect();
    for number in (0..TRICKLERS).cycle() {
        if over.load(Ordering::Relaxed) {
            return;
        }
        // Whoever was closed begins anew.
        if streams[number].write_all(b"G").is_err() {
            streams[number] = connect(address);
        }
        std::thread::sleep(Duration::from_secs(1) / TRICKLERS as u32);
    }
}

fn flood(address: SocketAddr, over: &AtomicBool, request: &[u8]) {
    let (mut stream, requests) = (connect(address), request.repeat(1000));
    let mut reader = stream.try_clone().expect("a stream can be cloned");
    let reading = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    while !over.load(Ordering::Relaxed) {
        stream.write_all(&requests).expect("the proxy reads");
    }
    stream.shutdown(std::net::Shutdown::Both).expect("it is connected");
    // It has ended by a reset or not.
    let _ = reading.join().expect("no panic");
}

fn read_slowly(address: SocketAddr, over: &AtomicBool) {
    let mut streams: Vec<TcpStream> = (0..SLOW_READERS).map(|_| connect(address)).collect();
    for stream in &mut streams {
        socket2::SockRef::from(&*stream).set_recv_buffer_size(32 * 1024).expect("an option can be set");
        stream.write_all(b"GET /raw/long HTTP/1.1\r\nHost: x\r\n\r\n").expect("the proxy reads");
    }
    let mut buffer = vec![0; 32 * 1024];
    for number in (0..SLOW_READERS).cycle() {
        if over.load(Ordering::Relaxed) {
            return;
        }
        assert!(streams[number].read(&mut buffer).expect("who reads is not closed") > 0);
        std::thread::sleep(Duration::from_secs(1) / SLOW_READERS as u32);
    }
}

/// Takes all places that are left, and goes on connecting.
fn crowd(address: SocketAddr, over: &AtomicBool) {
    let mut held: Vec<TcpStream> = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let mut one = connect(address);
        one.write_all(b"GET /raw/hot HTTP/1.1\r\nHost: x\r\n\r\n").expect("the proxy reads");
        one.read_exact(&mut [0; 12]).expect("an answer");
        held.push(one);
        if held.len() > CROWD {
            held.pop();
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Asks for the key that is in memory, one after the other, without a break.
fn hits(clients: &mut [Client]) -> Vec<Duration> {
    let (mut times, end) = (Vec::with_capacity(1 << 18), Instant::now() + ROUND);
    for number in (0..CONNECTIONS).cycle() {
        let asked = Instant::now();
        if asked > end {
            break;
        }
        clients[number].get("hot");
        times.push(asked.elapsed());
    }
    times
}

/// One row: rounds undisturbed and disturbed, by turns.
fn measure(name: &str, mischief: Mischief) {
    let redis = Redis::start();
    redis.set("hot", "value");
    redis.run(&["SETRANGE", "long", "8388607", "x"]);
    // A crowd that finds no place has to take all of them first.
    let most = if name.contains("crowd") { PLACES } else { "10000" };
    let command = pinned(0, env!("CARGO_BIN_EXE_segment-redis-proxy"));
    let variables = [("CACHE_TTL", "3600"), ("CLIENT_TIMEOUT", "3"), ("MAX_CONNECTIONS", most)];
    let proxy = Proxy::start_with(command, redis.port, &variables);
    let mut clients = Client::some(proxy.address, CONNECTIONS);
    clients.iter_mut().for_each(|client| _ = client.get("hot"));
    let mut rounds = Rounds::default();
    for _ in 0..ROUNDS {
        let undisturbed = hits(&mut clients);
        let over = Arc::new(AtomicBool::new(false));
        let (told, address) = (Arc::clone(&over), proxy.address);
        let worker = std::thread::spawn(move || mischief(address, &told));
        // It begins in earnest.
        std::thread::sleep(Duration::from_millis(500));
        let meanwhile = hits(&mut clients);
        over.store(true, Ordering::Relaxed);
        worker.join().expect("no panic");
        rounds.add(undisturbed, meanwhile);
    }
    println!("| {name} | {} |", rounds.columns());
    assert!(!proxy.log().contains("panicked"), "{}", proxy.log());
}

fn main() {
    disturbed::run(&format!("| beside | {COLUMNS} |"), MISCHIEF, measure);
}
