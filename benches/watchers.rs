//! Benchmark of one key with thousands of watchers: time from the write to the events, CPU time of
//! an event beside that of a minimal server, and the latency of other clients' hits.
//!
//! `cargo bench --bench watchers` prints Markdown tables within five minutes. It needs `ulimit -n
//! 20000`. Compare the ratios only, on a machine without other load.
//!
//! The proxy and the minimal server run on the first CPU, Redis and all clients on the second. The
//! minimal server uses `mio` and writes the same bytes to each client, one `write` each. It
//! renders nothing, and knows no slow client.

#![allow(clippy::expect_used, clippy::panic, reason = "a failed expectation ends the benchmark")]

#[path = "../tests/common/mod.rs"]
mod common;
mod harness;

use common::client::{Client, percentile};
use common::freshness::{env_number, wait_until_tracking};
use common::{Proxy, Redis, wait_for};
use harness::{COLUMNS, ROUND, ROUNDS, Rounds, pinned};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Watchers of one key, unless `WATCHERS` says otherwise.
const WATCHERS: u64 = 5000;

/// Changes of the key in all rounds together, unless `WATCH_CHANGES` says otherwise.
const CHANGES: u64 = 1000;

/// Pause after each change, longer than `WATCH_INTERVAL`.
const PAUSE: Duration = Duration::from_millis(60);

/// Kind of request that waits for changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stream,
    Poll,
}

/// Client that waits for changes.
struct Watcher {
    stream: TcpStream,
    /// Bytes received and not consumed.
    received: Vec<u8>,
    /// Text of the last value received.
    last: Vec<u8>,
}

/// Many watchers of one key on one thread.
struct Watchers {
    poll: Poll,
    events: Events,
    clients: Vec<Watcher>,
    kind: Kind,
}

const STREAM_REQUEST: &[u8] = b"GET /key/hot HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n";

fn poll_request(tag: &str) -> String {
    format!("GET /key/hot HTTP/1.1\r\nHost: x\r\nIf-None-Match: {tag}\r\nPrefer: wait=300\r\n\r\n")
}

/// Returns the text between two others.
fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(start)?;
    rest.split_once(end).map(|(part, _)| part)
}

impl Watchers {
    fn connect(address: SocketAddr, count: usize, kind: Kind) -> Watchers {
        let poll = Poll::new().expect("an epoll instance");
        let request = match kind {
            Kind::Stream => STREAM_REQUEST.to_vec(),
            Kind::Poll => poll_request("\"none\"").into_bytes(),
        };
        let clients = (0..count).map(|slot| {
            let mut stream = wait_for("a connection", || std::net::TcpStream::connect(address).ok());
            stream.write_all(&request).expect("the server reads");
            stream.set_nonblocking(true).expect("an option can be set");
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(slot), Interest::READABLE).expect("a registration");
            Watcher { stream, received: Vec::new(), last: Vec::new() }
        });
        let clients = clients.collect();
        Watchers { poll, events: Events::with_capacity(1024), clients, kind }
    }

    /// Reads until all clients have this value. Returns the time of each since `start`.
    fn wait_for_all(&mut self, value: &str, start: Instant) -> Vec<Duration> {
        let mut times = Vec::with_capacity(self.clients.len());
        let deadline = Instant::now() + common::TEST_TIMEOUT;
        while times.len() < self.clients.len() {
            assert!(Instant::now() < deadline, "{} of {} watchers have {value}", times.len(), self.clients.len());
            self.poll.poll(&mut self.events, Some(Duration::from_secs(1))).expect("events");
            for event in &self.events {
                let client = &mut self.clients[event.token().0];
                client.read();
                if client.take_messages(self.kind) && client.last == value.as_bytes() {
                    times.push(start.elapsed());
                }
            }
        }
        times
    }
}

impl Watcher {
    fn read(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => panic!("the server closed a watcher"),
                Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Consumes complete messages. Returns true if there was one with a value. A poll sends its
    /// next request.
    fn take_messages(&mut self, kind: Kind) -> bool {
        let text = String::from_utf8_lossy(&self.received).into_owned();
        let end = if kind == Kind::Stream { "}\n\n" } else { "}" };
        if !text.ends_with(end) {
            return false;
        }
        self.received.clear();
        let last = text.rsplit_once("{\"value\":\"").and_then(|(_, rest)| rest.split_once('"'));
        let Some((value, _)) = last else { return false };
        self.last = value.as_bytes().to_vec();
        if kind == Kind::Poll {
            let tag = between(&text, "ETag: ", "\r\n").expect("a tag");
            self.stream.write_all(poll_request(tag).as_bytes()).expect("the server reads");
        }
        true
    }
}

/// Returns the CPU time of all threads of a process.
fn cpu_time(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a running process");
    let nanos = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

/// Minimal server of event streams: sends each line of its standard input to all clients.
fn serve_minimal() -> ! {
    let mut listener = TcpListener::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    println!("{}", listener.local_addr().expect("an address").port());
    let mut poll = Poll::new().expect("an epoll instance");
    let (mut events, mut clients) = (Events::with_capacity(1024), Vec::<TcpStream>::new());
    let (listener_token, waker_token) = (Token(usize::MAX), Token(usize::MAX - 1));
    poll.registry().register(&mut listener, listener_token, Interest::READABLE).expect("a registration");
    let waker = mio::Waker::new(poll.registry(), waker_token).expect("a waker");
    let (sender, values) = std::sync::mpsc::channel::<String>();
    std::thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            sender.send(line).expect("a receiver");
            waker.wake().expect("a wakeup");
        }
        std::process::exit(0);
    });
    let mut buffer = vec![0; 64 * 1024];
    loop {
        poll.poll(&mut events, None).expect("events");
        for event in &events {
            match event.token() {
                token if token == listener_token => {
                    while let Ok((mut stream, _)) = listener.accept() {
                        stream.set_nodelay(true).expect("an option can be set");
                        let interest = Interest::READABLE | Interest::WRITABLE;
                        poll.registry().register(&mut stream, Token(clients.len()), interest).expect("a registration");
                        clients.push(stream);
                    }
                }
                token if token == waker_token => {
                    for value in values.try_iter() {
                        let event = event_text(&value);
                        clients.iter_mut().for_each(|client| client.write_all(&event).expect("a client that reads"));
                    }
                }
                Token(slot) => {
                    if event.is_readable() && clients[slot].read(&mut buffer).is_ok_and(|length| length > 0) {
                        let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
                        clients[slot].write_all(head).expect("a client that reads");
                    }
                }
            }
        }
    }
}

/// Returns an event as long as that of the proxy.
fn event_text(value: &str) -> Vec<u8> {
    let data = format!("{{\"value\":\"{value}\",\"fromCache\":false}}");
    format!("event: put\nid: W/\"0123456789abcdef\"\ndata: {data}\n\n").into_bytes()
}

/// Running minimal server.
struct Minimal {
    child: Child,
    address: SocketAddr,
}

impl Minimal {
    fn start() -> Minimal {
        let this = std::env::current_exe().expect("path of this executable");
        let mut command = pinned(0, this.to_str().expect("path in UTF-8"));
        command.env("MINIMAL_SERVER", "1").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the minimal server starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("its output");
        BufReader::new(stdout).read_line(&mut line).expect("its port");
        let port: u16 = line.trim().parse().expect("a port");
        Minimal { child, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    fn send(&mut self, value: &str) {
        let stdin = self.child.stdin.as_mut().expect("its input");
        writeln!(stdin, "{value}").expect("it reads");
    }
}

impl Drop for Minimal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Figures of the changes of one server.
#[derive(Default)]
struct Figures {
    /// CPU time for each event, by round.
    cpu: Vec<Duration>,
    first: Vec<Duration>,
    median: Vec<Duration>,
    last: Vec<Duration>,
}

impl Figures {
    /// Makes the changes of one round with `change`, and waits for the events of each.
    fn measure(
        &mut self,
        watchers: &mut Watchers,
        pid: u32,
        changes: std::ops::Range<u64>,
        mut change: impl FnMut(&str),
    ) {
        let (before, count) = (cpu_time(pid), changes.end - changes.start);
        for number in changes {
            let (value, start) = (format!("value {number}"), Instant::now());
            change(&value);
            let times = watchers.wait_for_all(&value, start);
            self.first.push(times[0]);
            self.median.push(times[times.len() / 2]);
            self.last.push(times[times.len() - 1]);
            std::thread::sleep(PAUSE.saturating_sub(start.elapsed()));
        }
        self.cpu.push((cpu_time(pid) - before) / (count as u32 * watchers.clients.len() as u32));
    }

    /// Formats the row of a server.
    fn format_row(&mut self, name: &str, reads: f64) -> String {
        let micros = |time: Duration| time.as_nanos() as f64 / 1000.0;
        let millis = |times: &mut Vec<Duration>| format!("{:.1}", micros(percentile(times, 0.5)) / 1000.0);
        let cpu = micros(percentile(&mut self.cpu.clone(), 0.5));
        let times = [&mut self.first, &mut self.median, &mut self.last].map(millis).join(" / ");
        format!("| {name} | {cpu:.2} | {times} | {reads:.3} |")
    }
}

fn start_proxy(redis: &Redis) -> Proxy {
    let command = pinned(0, env!("CARGO_BIN_EXE_segment-redis-proxy"));
    let variables = [("CACHE_TTL", "3600"), ("REDIS_TRACKING", "on"), ("MAX_CONNECTIONS", "20000")];
    let proxy = Proxy::start_command(command, redis.port, &variables);
    wait_until_tracking(&proxy, 1);
    proxy
}

/// Measures events of the proxy and of the minimal server, in alternating rounds.
fn measure_events(count: usize, changes: u64) {
    let redis = Redis::start();
    redis.set("hot", "value");
    let proxy = start_proxy(&redis);
    let mut minimal = Minimal::start();
    let minimal_pid = minimal.child.id();
    let mut own = Watchers::connect(proxy.address, count, Kind::Stream);
    own.wait_for_all("value", Instant::now());
    let mut other = Watchers::connect(minimal.address, count, Kind::Stream);
    minimal.send("value");
    other.wait_for_all("value", Instant::now());
    let (mut figures, mut minimal_figures) = (Figures::default(), Figures::default());
    let (reads, round) = (redis.count_reads(), changes / ROUNDS as u64);
    for number in 0..ROUNDS as u64 {
        let changes = number * round..(number + 1) * round;
        figures.measure(&mut own, proxy.pid(), changes.clone(), |value| redis.set("hot", value));
        minimal_figures.measure(&mut other, minimal_pid, changes, |value| minimal.send(value));
    }
    let reads = (redis.count_reads() - reads) as f64 / (round * ROUNDS as u64) as f64;
    println!("{}", figures.format_row("the proxy, event streams", reads));
    println!("{}", minimal_figures.format_row("minimal server", 0.0));
    let mut ratios: Vec<f64> = figures
        .cpu
        .iter()
        .zip(&minimal_figures.cpu)
        .map(|(own, other)| own.as_secs_f64() / other.as_secs_f64())
        .collect();
    ratios.sort_by(f64::total_cmp);
    let shown: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
    println!("\nCPU of an event to that of the minimal server, by round: {}.\n", shown.join(", "));
}

/// Measures long polls.
fn measure_polls(count: usize, changes: u64) {
    let redis = Redis::start();
    redis.set("hot", "value");
    let proxy = start_proxy(&redis);
    let mut watchers = Watchers::connect(proxy.address, count, Kind::Poll);
    watchers.wait_for_all("value", Instant::now());
    let (mut figures, reads) = (Figures::default(), redis.count_reads());
    figures.measure(&mut watchers, proxy.pid(), 0..changes, |value| redis.set("hot", value));
    let reads = (redis.count_reads() - reads) as f64 / changes as f64;
    println!("{}\n", figures.format_row("the proxy, long polls", reads));
}

/// Requests another key for one round and returns the latencies.
fn measure_hits(clients: &mut [Client]) -> Vec<Duration> {
    let (mut times, end) = (Vec::with_capacity(1 << 18), Instant::now() + ROUND);
    for number in (0..clients.len()).cycle() {
        let sent_at = Instant::now();
        if sent_at > end {
            break;
        }
        clients[number].get("other");
        times.push(sent_at.elapsed());
    }
    times
}

/// Measures hits of other clients, without changes and during ten changes a second.
fn measure_others(count: usize) {
    let redis = Redis::start();
    redis.run(&["MSET", "hot", "value", "other", "value"]);
    let proxy = start_proxy(&redis);
    let mut watchers = Watchers::connect(proxy.address, count, Kind::Stream);
    watchers.wait_for_all("value", Instant::now());
    let stop = Arc::new(AtomicBool::new(false));
    let is_changing = Arc::new(AtomicBool::new(false));
    let (thread_stop, thread_changing) = (Arc::clone(&stop), Arc::clone(&is_changing));
    let thread = std::thread::spawn(move || {
        for number in 0.. {
            if thread_stop.load(Ordering::Relaxed) {
                return;
            }
            if thread_changing.load(Ordering::Relaxed) {
                let value = format!("value {number}");
                redis.set("hot", &value);
                watchers.wait_for_all(&value, Instant::now());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let mut clients = Client::connect_mixed(proxy.address, 4);
    clients.iter_mut().for_each(|client| _ = client.get("other"));
    let mut rounds = Rounds::default();
    for _ in 0..ROUNDS {
        let baseline = measure_hits(&mut clients);
        is_changing.store(true, Ordering::Relaxed);
        let disturbed = measure_hits(&mut clients);
        is_changing.store(false, Ordering::Relaxed);
        // The last change has reached all watchers.
        std::thread::sleep(Duration::from_millis(300));
        rounds.push(baseline, disturbed);
    }
    stop.store(true, Ordering::Relaxed);
    thread.join().expect("no panic");
    println!("| hits during changes | {COLUMNS} |\n|{}", "---|".repeat(6));
    println!("| {count} watchers | {} |", rounds.format_columns());
}

fn main() {
    if std::env::var_os("MINIMAL_SERVER").is_some() {
        serve_minimal();
    }
    let (count, changes) = (env_number("WATCHERS", WATCHERS) as usize, env_number("WATCH_CHANGES", CHANGES));
    let title = "| server | CPU of an event, us | SET to first / median / last event, ms | reads for each change |";
    harness::run(title, [("events", 0), ("others", 1)], |_, row| match row {
        0 => {
            measure_events(count, changes);
            println!("{title}\n|---|---|---|---|");
            measure_polls(count, changes / 5);
        }
        _ => measure_others(count),
    });
}
