//! Benchmark of hit latency during faults of Redis and heavy work of the proxy.
//!
//! Rounds with and without the fault alternate, over keep-alive connections, one request at a time.
//! During faults of Redis the benchmark also requests keys that are not cached, each once.
//!
//! `cargo bench --bench faults` prints a Markdown table within eight minutes; `-- killed` prints
//! only the rows with that in their name. Compare the ratios only, on a machine without other load.
//! The time slice of another process exceeds every latency here (`chrt -f 1` before the command
//! avoids that).
//!
//! The proxy runs on the first CPU, with all its threads. The load, Redis and its replacement run
//! on the second.

#![allow(clippy::expect_used, reason = "a failed expectation ends the benchmark")]

#[path = "../tests/common/mod.rs"]
mod common;
mod harness;

use common::admin::read_metric;
use common::client::{Client, Reply, numbered_keys, value_of, wait_until_all_served};
use common::resp::{RespClient, encode_command};
use common::testbed::{Route, Testbed, fill_redis};
use common::{HttpClient, Proxy, entries};
use harness::{COLUMNS, ROUND, ROUNDS, Rounds, pinned};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant, SystemTime};

const TIMEOUT: Duration = Duration::from_millis(200);
/// Interval between requests for keys that are not cached.
const MISS_INTERVAL: Duration = Duration::from_millis(2);
/// Keep-alive connections for hits, and as many for misses.
const CONNECTIONS: usize = 4;
/// Address of the server that replies with garbage, on Redis' port.
const GARBAGE: &str = "127.0.0.3";

/// Time to cache a million entries and to run a baseline round.
const FILL_TIME: Duration = Duration::from_secs(21);
/// Maximum time in which a million entries expire.
const EXPIRY_TIME: Duration = Duration::from_secs(4);
/// Hits between two checks that entries are left.
const HITS_PER_CHECK: usize = 32;
/// The proxy's counter of expired entries.
const EXPIRED: &str = "segment_expirations_total";

/// Length of the long value, and bytes of it that are read between two hits: a usual buffer size,
/// which yields almost 1 GB/s.
const LONG_BYTES: usize = 64 * 1024 * 1024;
const READ_BYTES: usize = 64 * 1024;

/// Fault with its start and end. The thread that measures hits does all of it: hits would wait for
/// another thread.
trait Fault {
    /// Returns the number of pairs of rounds.
    fn rounds(&self) -> usize {
        ROUNDS
    }

    /// Returns the maximum length of a round with the fault.
    fn round(&self) -> Duration {
        ROUND
    }

    /// Returns additional environment variables of the proxy.
    fn variables(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Prepares a pair of rounds; the baseline comes first.
    fn prepare(&mut self, _testbed: &Testbed, _proxy: &Proxy) {}

    /// Starts the fault.
    fn begin(&mut self, testbed: &mut Testbed, proxy: &Proxy);

    /// Called before each hit with its number. Returns false to end the round.
    fn before_hit(&mut self, _number: usize) -> bool {
        true
    }

    /// Ends the fault.
    fn end(&mut self, testbed: &mut Testbed, proxy: &Proxy);

    /// Returns the time of the slowest error reply to a key that is not cached, or zero.
    fn slowest_error(&self) -> Duration {
        Duration::ZERO
    }
}

/// Fault of Redis, with requests for keys that are not cached.
struct RedisFault {
    steps: (Step, Step),
    misses: Misses,
}

type Step = fn(&mut Testbed);

/// Returns all faults with their names. The first has the same misses without any fault.
fn all_faults() -> Vec<(&'static str, Box<dyn Fault>)> {
    let fault =
        |begin, end| -> Box<dyn Fault> { Box::new(RedisFault { steps: (begin, end), misses: Misses::default() }) };
    vec![
        ("none, same misses", fault(|_| (), |_| ())),
        ("Redis frozen", fault(Testbed::freeze, Testbed::thaw)),
        ("Redis killed", fault(Testbed::kill, Testbed::restart)),
        ("garbage replies", fault(|testbed| testbed.switch_dns_to(GARBAGE), Testbed::restore_dns)),
        ("name resolution takes 1 s", fault(|testbed| testbed.delay_dns(1000), Testbed::restore_dns)),
        ("a million entries expire", Box::new(Expiry::new(1))),
        ("ten million entries expire", Box::new(Expiry::new(10))),
        ("a 64 MiB value is served", Box::new(LongValue { reader: None, unread: 0, buffer: vec![0; READ_BYTES] })),
    ]
}

impl Fault for RedisFault {
    fn begin(&mut self, testbed: &mut Testbed, proxy: &Proxy) {
        (self.steps.0)(testbed);
        self.misses.begin(proxy);
    }

    fn before_hit(&mut self, number: usize) -> bool {
        if Instant::now() > self.misses.due {
            self.misses.send();
        }
        self.misses.take_response(number);
        true
    }

    fn end(&mut self, testbed: &mut Testbed, _proxy: &Proxy) {
        self.misses.take_all_responses();
        (self.steps.1)(testbed);
    }

    fn slowest_error(&self) -> Duration {
        self.misses.slowest_error
    }
}

/// Requests for keys that are not cached, each key once.
struct Misses {
    /// Clients, each with the times of its pending requests.
    clients: Vec<(HttpClient, VecDeque<Instant>)>,
    due: Instant,
    next: usize,
    slowest_error: Duration,
}

impl Default for Misses {
    fn default() -> Misses {
        Misses { clients: Vec::new(), due: Instant::now(), next: 0, slowest_error: Duration::ZERO }
    }
}

impl Misses {
    fn begin(&mut self, proxy: &Proxy) {
        if self.clients.is_empty() {
            self.clients = (0..CONNECTIONS).map(|_| (proxy.connect(), VecDeque::new())).collect();
        }
        self.due = Instant::now();
    }

    fn send(&mut self) {
        self.due += MISS_INTERVAL;
        self.next += 1;
        let (client, pending) = &mut self.clients[self.next % CONNECTIONS];
        client.send_get(&format!("/raw/miss-{}", self.next));
        pending.push_back(Instant::now());
    }

    /// Takes the next response of one client, if it has arrived.
    fn take_response(&mut self, number: usize) {
        let (client, pending) = &mut self.clients[number % CONNECTIONS];
        if pending.is_empty() || !client.has_input() {
            return;
        }
        let status = client.read_response().status;
        let sent_at = pending.pop_front().expect("a pending request");
        if status != 404 {
            self.slowest_error = self.slowest_error.max(sent_at.elapsed());
        }
    }

    /// Takes all responses, from the clients in turn: waiting for one must not add to the latency
    /// of another.
    fn take_all_responses(&mut self) {
        for number in 0.. {
            if self.clients.iter().all(|(_, pending)| pending.is_empty()) {
                break;
            }
            self.take_response(number);
        }
    }
}

/// Millions of entries that expire at the same time.
///
/// Redis holds none of them by then, so it causes no load. The round ends when the entries are
/// gone, after some tenths of a second for each million: later hits would dilute the percentiles.
struct Expiry {
    millions: u32,
    at: SystemTime,
    /// Value of the counter before the round.
    expired: f64,
    /// Client that reads the number of entries.
    client: Option<RespClient>,
}

impl Expiry {
    fn new(millions: u32) -> Expiry {
        Expiry { millions, at: SystemTime::UNIX_EPOCH, expired: 0.0, client: None }
    }

    fn entries(&self) -> usize {
        self.millions as usize * 1_000_000
    }
}

impl Fault for Expiry {
    /// One pair for more than a million entries: to cache ten million takes over two minutes, and
    /// a round has as many hits as all rounds with a million.
    fn rounds(&self) -> usize {
        if self.millions == 1 { ROUNDS } else { 1 }
    }

    fn round(&self) -> Duration {
        EXPIRY_TIME * self.millions
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        // Capacity for the other keys, and timeouts for a Redis that is busy while the keys are
        // written and flushed, and for clients that wait meanwhile.
        vec![
            ("CACHE_SIZE", (self.entries() + 10_000).to_string()),
            ("REDIS_TIMEOUT", "60000".into()),
            ("CLIENT_IDLE_TIMEOUT", "600".into()),
        ]
    }

    fn prepare(&mut self, testbed: &Testbed, proxy: &Proxy) {
        self.at = SystemTime::now() + FILL_TIME * self.millions;
        entries::fill_redis(&testbed.redis, self.entries(), self.at);
        entries::read_through_proxy(proxy, self.entries());
        testbed.redis.run(&["FLUSHALL", "SYNC"]);
        fill_redis(&testbed.redis);
        self.expired = read_metric(proxy, EXPIRED);
        self.client = Some(RespClient::connect(proxy.address));
        let left = self.at.duration_since(SystemTime::now()).unwrap_or_default();
        assert!(left > ROUND, "this machine is too slow: the entries expire during the baseline round");
        std::thread::sleep(left - ROUND - Duration::from_millis(100));
    }

    fn begin(&mut self, _testbed: &mut Testbed, _proxy: &Proxy) {
        std::thread::sleep(self.at.duration_since(SystemTime::now()).expect("entries that have not expired yet"));
    }

    fn before_hit(&mut self, number: usize) -> bool {
        if !number.is_multiple_of(HITS_PER_CHECK) {
            return true;
        }
        let client = self.client.as_mut().expect("a connected client");
        let left = client.call_text("DBSIZE").trim().trim_start_matches(':').parse::<usize>().expect("a number");
        left > self.entries() / 100
    }

    fn end(&mut self, _testbed: &mut Testbed, proxy: &Proxy) {
        let expired = read_metric(proxy, EXPIRED) - self.expired;
        // The last check leaves at most one in a hundred.
        assert!(expired > self.entries() as f64 * 0.99, "only {expired} entries expired in this round");
    }
}

/// Client that reads a long value again and again, as fast as it arrives.
struct LongValue {
    reader: Option<RespClient>,
    /// Bytes of the reply that have not been read.
    unread: usize,
    buffer: Vec<u8>,
}

impl Fault for LongValue {
    fn variables(&self) -> Vec<(&'static str, String)> {
        vec![("MAX_VALUE_BYTES", LONG_BYTES.to_string()), ("REDIS_TIMEOUT", "10000".into())]
    }

    fn prepare(&mut self, testbed: &Testbed, proxy: &Proxy) {
        if self.reader.is_none() {
            testbed.redis.run(&["SETRANGE", "long", &(LONG_BYTES - 1).to_string(), "x"]);
            assert_eq!(proxy.get("/raw/long").body.len(), LONG_BYTES);
            self.reader = Some(RespClient::connect(proxy.address));
        }
    }

    fn begin(&mut self, _testbed: &mut Testbed, _proxy: &Proxy) {
        self.reader().stream.set_nonblocking(true).expect("socket option");
    }

    fn before_hit(&mut self, _number: usize) -> bool {
        if self.unread == 0 {
            self.reader().send(encode_command(&["GET", "long"]));
            self.unread = format!("${LONG_BYTES}\r\n\r\n").len() + LONG_BYTES;
        }
        self.read();
        true
    }

    fn end(&mut self, _testbed: &mut Testbed, _proxy: &Proxy) {
        self.reader().stream.set_nonblocking(false).expect("socket option");
        while self.unread > 0 {
            self.read();
        }
    }
}

impl LongValue {
    fn reader(&mut self) -> &mut RespClient {
        self.reader.as_mut().expect("a connected client")
    }

    /// Reads the bytes that have arrived, up to the size of the buffer.
    fn read(&mut self) {
        let stream = &mut self.reader.as_mut().expect("a connected client").stream;
        let length = self.buffer.len().min(self.unread);
        match stream.read(&mut self.buffer[..length]) {
            Ok(length) => {
                assert!(length > 0, "the proxy closed the connection");
                self.unread -= length;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
    }
}

/// Starts a server that replies with garbage to every client.
fn serve_garbage(port: u16) {
    let listener = TcpListener::bind((GARBAGE, port)).expect("a free port");
    std::thread::spawn(move || {
        let mut last = VecDeque::new();
        for mut stream in listener.incoming().map_while(Result::ok) {
            // The client may have closed the connection.
            let _ = stream.write_all(b"+OK\r\n+OK\r\n+PONG\r\n?what\r\n");
            last.push_back(stream);
            // Closes old connections only, so that the client has time to read.
            if last.len() > 64 {
                last.pop_front();
            }
        }
    });
}

/// Requests the cached key until the round ends or `before_hit` returns false, and returns the
/// latencies.
fn measure_hits(clients: &mut [Client], round: Duration, mut before_hit: impl FnMut(usize) -> bool) -> Vec<Duration> {
    let (mut times, end) = (Vec::with_capacity(1 << 20), Instant::now() + round);
    for number in 0.. {
        if Instant::now() > end || !before_hit(number) {
            break;
        }
        let sent_at = Instant::now();
        let reply = clients[number % CONNECTIONS].get("hot");
        times.push(sent_at.elapsed());
        assert_eq!(reply, Reply::Value(value_of("hot")));
    }
    times
}

/// Measures one row: baseline and disturbed rounds in turn.
fn measure(name: &str, mut fault: Box<dyn Fault>) {
    let mut testbed = Testbed::start(Route::Dns);
    serve_garbage(testbed.redis.port);
    let (timeout, own) = (TIMEOUT.as_millis().to_string(), fault.variables());
    let mut variables = vec![("CACHE_TTL", "600"), ("REDIS_TIMEOUT", &timeout)];
    variables.extend(own.iter().map(|(name, value)| (*name, value.as_str())));
    let proxy = testbed.start_proxy_with(pinned(0, env!("CARGO_BIN_EXE_segment-redis-proxy")), &variables);
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| Client::connect_http(proxy.address)).collect();
    let mut rounds = Rounds::default();
    for number in 0..fault.rounds() {
        wait_until_all_served(&proxy, &[numbered_keys("after", 100 * (number % 2)), vec!["hot".into()]].concat());
        fault.prepare(&testbed, &proxy);
        let baseline = measure_hits(&mut clients, ROUND, |_| true);
        fault.begin(&mut testbed, &proxy);
        let disturbed = measure_hits(&mut clients, fault.round(), |number| fault.before_hit(number));
        fault.end(&mut testbed, &proxy);
        rounds.push(baseline, disturbed);
    }
    let late = match fault.slowest_error() {
        Duration::ZERO => "-".into(),
        slowest => format!("{:.1}", (slowest.as_secs_f64() - TIMEOUT.as_secs_f64()) * 1000.0),
    };
    println!("| {name} | {} | {late} |", rounds.format_columns());
    assert!(!proxy.log().contains("panicked"), "{}", proxy.log());
}

fn main() {
    harness::run(&format!("| fault | {COLUMNS} | slowest error after REDIS_TIMEOUT, ms |"), all_faults(), measure);
}
