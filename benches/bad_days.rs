//! What hits notice of bad days, of Redis or of the proxy: how long they take undisturbed and while something is the matter, by
//! turns, on kept-alive connections, one request at a time. Where it is Redis, keys that are not in memory are asked for
//! meanwhile, all different. `cargo bench --bench bad_days` prints a Markdown table, after three minutes; `-- killed` only the rows
//! with that in their name. Read the ratios, on a machine that does nothing else: time slices of others are longer than all
//! that is measured here (`chrt -f 1` before the command keeps them away).
//!
//! The proxy has the first processor for itself, all threads of it; load, Redis and what is put in its place the second.

#![allow(clippy::expect_used, reason = "a benchmark may stop at what it did not expect")]

#[path = "../tests/common/mod.rs"]
mod common;
mod disturbed;

use common::admin::metric;
use common::asking::{Answer, Client, keys, until_all_are_there, value_of};
use common::resp::{Resp, command};
use common::scene::{Scene, Way, fill};
use common::{Http, Proxy, entries};
use disturbed::{COLUMNS, ROUND, ROUNDS, Rounds, pinned};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant, SystemTime};

const TIMEOUT: Duration = Duration::from_millis(200);
/// How often a key is asked for that is not in memory.
const MISS_EVERY: Duration = Duration::from_millis(2);
/// Kept-alive connections for hits, and as many for misses.
const CONNECTIONS: usize = 4;
/// Where garbage is answered, at Redis' port.
const GARBAGE: &str = "127.0.0.3";

/// How many entries expire at once, and how long it may take until they are in memory and an undisturbed round is over.
const ENTRIES: usize = 1_000_000;
const FILLED_WITHIN: Duration = Duration::from_secs(11);
/// After how many hits it is looked whether they are gone.
const LOOK_EVERY: usize = 32;
/// The proxy's count of entries that have expired.
const EXPIRED: &str = "segment_expirations_total";

/// A long value's length, and how much of it is read between two hits: what a client's buffer usually takes, and almost a
/// gigabyte in a second.
const LONG_BYTES: usize = 64 * 1024 * 1024;
const READ_BYTES: usize = 64 * 1024;

/// What is the matter on such a day. All of it is done by the thread that asks for hits: another one would be what they wait
/// for.
trait Day {
    /// Variables of the proxy, beside those of all days.
    fn variables(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Makes ready for a pair of rounds: undisturbed first.
    fn prepare(&mut self, _scene: &Scene, _proxy: &Proxy) {}

    /// It begins.
    fn begin(&mut self, scene: &mut Scene, proxy: &Proxy);

    /// What else is done before the next hit, the `number`th. Says whether it still goes on.
    fn beside(&mut self, _number: usize) -> bool {
        true
    }

    /// It ends.
    fn end(&mut self, scene: &mut Scene, proxy: &Proxy);

    /// How long the slowest error took, where keys were asked for that are not in memory and got one.
    fn slowest_error(&self) -> Duration {
        Duration::ZERO
    }
}

/// Something is the matter with Redis: what happens, how it ends, and keys that are asked for meanwhile.
struct Fault {
    steps: (Step, Step),
    misses: Misses,
}

type Step = fn(&mut Scene);

/// All days. The first one is for comparison: the same misses, and nothing the matter.
fn days() -> Vec<(&'static str, Box<dyn Day>)> {
    let fault = |begin, end| -> Box<dyn Day> { Box::new(Fault { steps: (begin, end), misses: Misses::default() }) };
    vec![
        ("none, but the same misses", fault(|_| (), |_| ())),
        ("Redis frozen", fault(Scene::freeze, Scene::thaw)),
        ("Redis killed", fault(Scene::kill, Scene::restart)),
        ("garbage", fault(|scene| scene.lead_to(GARBAGE), Scene::look_up_at_once)),
        ("name takes 1 s to resolve", fault(|scene| scene.look_up_within(1000), Scene::look_up_at_once)),
        ("a million entries expire", Box::new(Expiry { at: SystemTime::UNIX_EPOCH, expired: 0.0, asker: None })),
        ("a 64 MiB value is served", Box::new(LongValue { reader: None, unread: 0, buffer: vec![0; READ_BYTES] })),
    ]
}

impl Day for Fault {
    fn begin(&mut self, scene: &mut Scene, proxy: &Proxy) {
        (self.steps.0)(scene);
        self.misses.begin(proxy);
    }

    fn beside(&mut self, number: usize) -> bool {
        if Instant::now() > self.misses.due {
            self.misses.ask();
        }
        self.misses.take(number);
        true
    }

    fn end(&mut self, scene: &mut Scene, _proxy: &Proxy) {
        self.misses.take_all();
        (self.steps.1)(scene);
    }

    fn slowest_error(&self) -> Duration {
        self.misses.slowest_error
    }
}

/// Keys that are not in memory, each asked for once.
struct Misses {
    /// And when they were asked what they have not answered.
    clients: Vec<(Http, VecDeque<Instant>)>,
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

    fn ask(&mut self) {
        self.due += MISS_EVERY;
        self.next += 1;
        let (client, waiting) = &mut self.clients[self.next % CONNECTIONS];
        client.ask(&format!("/raw/miss-{}", self.next));
        waiting.push_back(Instant::now());
    }

    /// Takes the next response of one client, if there is one.
    fn take(&mut self, number: usize) {
        let (client, waiting) = &mut self.clients[number % CONNECTIONS];
        if waiting.is_empty() || !client.has_input() {
            return;
        }
        let status = client.response().status;
        let asked = waiting.pop_front().expect("it was asked for");
        if status != 404 {
            self.slowest_error = self.slowest_error.max(asked.elapsed());
        }
    }

    /// By turns: whoever is waited for must not make the others look late.
    fn take_all(&mut self) {
        for number in 0.. {
            if self.clients.iter().all(|(_, waiting)| waiting.is_empty()) {
                break;
            }
            self.take(number);
        }
    }
}

/// A million entries have the same deadline. Redis keeps none of them until then, so that it has nothing to do. The round is
/// over when they are gone, after some tenths of a second: hits behind that would only hide what it was like.
struct Expiry {
    at: SystemTime,
    /// Entries that had expired before.
    expired: f64,
    /// Asks how many are left.
    asker: Option<Resp>,
}

impl Day for Expiry {
    fn variables(&self) -> Vec<(&'static str, String)> {
        // Room for what is asked for beside them; and Redis is busy for longer than usual when it gets and loses them.
        vec![("CACHE_SIZE", (ENTRIES + 10_000).to_string()), ("REDIS_TIMEOUT", "10000".into())]
    }

    fn prepare(&mut self, scene: &Scene, proxy: &Proxy) {
        self.at = SystemTime::now() + FILLED_WITHIN;
        entries::seed(&scene.redis, ENTRIES, self.at);
        entries::read(proxy, ENTRIES);
        scene.redis.run(&["FLUSHALL", "SYNC"]);
        fill(&scene.redis);
        self.expired = metric(proxy, EXPIRED);
        self.asker = Some(Resp::connect(proxy.address));
        let rest = self.at.duration_since(SystemTime::now()).unwrap_or_default();
        assert!(rest > ROUND, "this machine is too slow: they expire before the undisturbed round is over");
        std::thread::sleep(rest - ROUND - Duration::from_millis(100));
    }

    fn begin(&mut self, _scene: &mut Scene, _proxy: &Proxy) {
        std::thread::sleep(self.at.duration_since(SystemTime::now()).expect("they have not expired yet"));
    }

    fn beside(&mut self, number: usize) -> bool {
        if !number.is_multiple_of(LOOK_EVERY) {
            return true;
        }
        let asker = self.asker.as_mut().expect("it is connected");
        let left = asker.text("DBSIZE").trim().trim_start_matches(':').parse::<usize>().expect("a number");
        left > ENTRIES / 100
    }

    fn end(&mut self, _scene: &mut Scene, proxy: &Proxy) {
        let expired = metric(proxy, EXPIRED) - self.expired;
        // All but those that the last look left.
        assert!(expired > ENTRIES as f64 * 0.99, "only {expired} entries have expired in this round");
    }
}

/// Somebody reads a long value over and over, as fast as it comes.
struct LongValue {
    reader: Option<Resp>,
    /// Bytes of the reply that are to come.
    unread: usize,
    buffer: Vec<u8>,
}

impl Day for LongValue {
    fn variables(&self) -> Vec<(&'static str, String)> {
        vec![("MAX_VALUE_BYTES", LONG_BYTES.to_string()), ("REDIS_TIMEOUT", "10000".into())]
    }

    fn prepare(&mut self, scene: &Scene, proxy: &Proxy) {
        if self.reader.is_none() {
            scene.redis.run(&["SETRANGE", "long", &(LONG_BYTES - 1).to_string(), "x"]);
            assert_eq!(proxy.get("/raw/long").body.len(), LONG_BYTES);
            self.reader = Some(Resp::connect(proxy.address));
        }
    }

    fn begin(&mut self, _scene: &mut Scene, _proxy: &Proxy) {
        self.reader().stream.set_nonblocking(true).expect("an option can be set");
    }

    fn beside(&mut self, _number: usize) -> bool {
        if self.unread == 0 {
            self.reader().send(command(&["GET", "long"]));
            self.unread = format!("${LONG_BYTES}\r\n\r\n").len() + LONG_BYTES;
        }
        self.read();
        true
    }

    fn end(&mut self, _scene: &mut Scene, _proxy: &Proxy) {
        self.reader().stream.set_nonblocking(false).expect("an option can be set");
        while self.unread > 0 {
            self.read();
        }
    }
}

impl LongValue {
    fn reader(&mut self) -> &mut Resp {
        self.reader.as_mut().expect("it is connected")
    }

    /// Reads what has come, up to a bound.
    fn read(&mut self) {
        let stream = &mut self.reader.as_mut().expect("it is connected").stream;
        let most = self.buffer.len().min(self.unread);
        match stream.read(&mut self.buffer[..most]) {
            Ok(length) => {
                assert!(length > 0, "the connection has ended");
                self.unread -= length;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
    }
}

/// Tells nonsense to everybody who connects, and forgets him.
fn tell_garbage(port: u16) {
    let listener = TcpListener::bind((GARBAGE, port)).expect("a free port");
    std::thread::spawn(move || {
        let mut last = VecDeque::new();
        for mut stream in listener.incoming().map_while(Result::ok) {
            // A client that is gone already reads nothing.
            let _ = stream.write_all(b"+OK\r\n+OK\r\n+PONG\r\n?what\r\n");
            last.push_back(stream);
            // Closed once the client has had the time to read it.
            if last.len() > 64 {
                last.pop_front();
            }
        }
    });
}

/// Asks for the key that is in memory, without a break, as long as `beside` says and a round takes.
fn round(clients: &mut [Client], mut beside: impl FnMut(usize) -> bool) -> Vec<Duration> {
    let (mut times, end) = (Vec::with_capacity(1 << 18), Instant::now() + ROUND);
    for number in 0.. {
        if Instant::now() > end || !beside(number) {
            break;
        }
        let asked = Instant::now();
        let answer = clients[number % CONNECTIONS].get("hot");
        times.push(asked.elapsed());
        assert_eq!(answer, Answer::Value(value_of("hot")));
    }
    times
}

/// One row: rounds undisturbed and disturbed, by turns; medians of what they measured.
fn measure(name: &str, mut day: Box<dyn Day>) {
    let mut scene = Scene::with(Way::Name);
    tell_garbage(scene.redis.port);
    let (timeout, own) = (TIMEOUT.as_millis().to_string(), day.variables());
    let mut variables = vec![("CACHE_TTL", "600"), ("REDIS_TIMEOUT", &timeout)];
    variables.extend(own.iter().map(|(name, value)| (*name, value.as_str())));
    let proxy = scene.proxy_by(pinned(0, env!("CARGO_BIN_EXE_segment-redis-proxy")), &variables);
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| Client::http(proxy.address)).collect();
    let mut rounds = Rounds::default();
    for number in 0..ROUNDS {
        until_all_are_there(&proxy, &[keys("after", 100 * (number % 2)), vec!["hot".into()]].concat());
        day.prepare(&scene, &proxy);
        let undisturbed = round(&mut clients, |_| true);
        day.begin(&mut scene, &proxy);
        let disturbed = round(&mut clients, |number| day.beside(number));
        day.end(&mut scene, &proxy);
        rounds.add(undisturbed, disturbed);
    }
    let late = match day.slowest_error() {
        Duration::ZERO => "-".into(),
        slowest => format!("{:.1}", (slowest.as_secs_f64() - TIMEOUT.as_secs_f64()) * 1000.0),
    };
    println!("| {name} | {} | {late} |", rounds.columns());
    assert!(!proxy.log().contains("panicked"), "{}", proxy.log());
}

fn main() {
    disturbed::run(&format!("| fault | {COLUMNS} | slowest error after REDIS_TIMEOUT, ms |"), days(), measure);
}
