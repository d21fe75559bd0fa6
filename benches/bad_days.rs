//! What hits notice of Redis' bad days: how long they take undisturbed and while something is the matter, by turns, on
//! kept-alive connections, one request at a time. Meanwhile keys that are not in memory are asked for, all different.
//! `cargo bench --bench bad_days` prints a Markdown table, after two minutes; `-- killed` only the rows with that in their
//! name. Read the ratios, on a machine that does nothing else: time slices of others are longer than all that is measured
//! here (`chrt -f 1` before the command keeps them away).
//!
//! The proxy has the first processor for itself, all threads of it; load, Redis and what is put in its place the second.

#![allow(clippy::expect_used, reason = "a benchmark may stop at what it did not expect")]

#[path = "../tests/common/mod.rs"]
mod common;
mod disturbed;

use common::asking::{Answer, Client, keys, until_all_are_there, value_of};
use common::scene::{Scene, Way};
use common::{Http, Proxy};
use disturbed::{COLUMNS, ROUND, ROUNDS, Rounds, pinned};
use std::collections::VecDeque;
use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_millis(200);
/// How often a key is asked for that is not in memory.
const MISS_EVERY: Duration = Duration::from_millis(2);
/// Kept-alive connections for hits, and as many for misses.
const CONNECTIONS: usize = 4;
/// Where garbage is answered, at Redis' port.
const GARBAGE: &str = "127.0.0.3";

type Step = fn(&mut Scene);

/// What happens, and how it ends. The first one is for comparison: the same misses, and nothing the matter.
const FAULTS: [(&str, (Step, Step)); 5] = [
    ("none, but the same misses", (|_| (), |_| ())),
    ("Redis frozen", (Scene::freeze, Scene::thaw)),
    ("Redis killed", (Scene::kill, Scene::restart)),
    ("garbage", (|scene| scene.lead_to(GARBAGE), Scene::look_up_at_once)),
    ("name takes 1 s to resolve", (|scene| scene.look_up_within(1000), Scene::look_up_at_once)),
];

/// What a round has measured.
#[derive(Default)]
struct Round {
    hits: Vec<Duration>,
    /// Of the misses that got an error.
    slowest_error: Duration,
}

/// Clients that stay, and a number for the next miss.
struct Load {
    hits: Vec<Client>,
    misses: Vec<(Http, VecDeque<Instant>)>,
    next: usize,
}

impl Load {
    fn on(proxy: &Proxy) -> Load {
        Load {
            hits: (0..CONNECTIONS).map(|_| Client::http(proxy.address)).collect(),
            misses: (0..CONNECTIONS).map(|_| (proxy.connect(), VecDeque::new())).collect(),
            next: 0,
        }
    }

    /// Asks for the key that is in memory, without a break, and for others if there are to be misses. One thread does
    /// both: another one would be what hits wait for.
    fn round(&mut self, with_misses: bool) -> Round {
        let mut round = Round { hits: Vec::with_capacity(1 << 18), slowest_error: Duration::ZERO };
        let (end, mut due) = (Instant::now() + ROUND, Instant::now());
        for number in 0.. {
            let asked = Instant::now();
            if asked > end {
                break;
            }
            if with_misses && asked > due {
                due += MISS_EVERY;
                self.miss();
            }
            self.take(number, &mut round);
            let asked = Instant::now();
            let answer = self.hits[number % CONNECTIONS].get("hot");
            round.hits.push(asked.elapsed());
            assert_eq!(answer, Answer::Value(value_of("hot")));
        }
        // By turns: whoever is waited for must not make the others look late.
        for number in 0.. {
            if self.misses.iter().all(|(_, waiting)| waiting.is_empty()) {
                break;
            }
            self.take(number, &mut round);
        }
        round
    }

    fn miss(&mut self) {
        self.next += 1;
        let (client, waiting) = &mut self.misses[self.next % CONNECTIONS];
        client.ask(&format!("/raw/miss-{}", self.next));
        waiting.push_back(Instant::now());
    }

    /// Takes the next response to a miss, if there is one.
    fn take(&mut self, number: usize, round: &mut Round) {
        let (client, waiting) = &mut self.misses[number % CONNECTIONS];
        if waiting.is_empty() || !client.has_input() {
            return;
        }
        let status = client.response().status;
        let asked = waiting.pop_front().expect("it was asked for");
        if status != 404 {
            round.slowest_error = round.slowest_error.max(asked.elapsed());
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

/// One row: rounds undisturbed and disturbed, by turns; medians of what they measured.
fn measure(name: &str, (begin, end): (Step, Step)) {
    let mut scene = Scene::with(Way::Name);
    tell_garbage(scene.redis.port);
    let timeout = TIMEOUT.as_millis().to_string();
    let command = pinned(0, env!("CARGO_BIN_EXE_segment-redis-proxy"));
    let proxy = scene.proxy_by(command, &[("CACHE_TTL", "600"), ("REDIS_TIMEOUT", &timeout)]);
    let mut load = Load::on(&proxy);
    let mut rounds = Rounds::default();
    let mut slowest = Duration::ZERO;
    for number in 0..ROUNDS {
        until_all_are_there(&proxy, &[keys("after", 100 * (number % 2)), vec!["hot".into()]].concat());
        let undisturbed = load.round(false);
        begin(&mut scene);
        let disturbed = load.round(true);
        end(&mut scene);
        slowest = slowest.max(disturbed.slowest_error);
        rounds.add(undisturbed.hits, disturbed.hits);
    }
    let late = match slowest {
        Duration::ZERO => "-".into(),
        slowest => format!("{:.1}", (slowest.as_secs_f64() - TIMEOUT.as_secs_f64()) * 1000.0),
    };
    println!("| {name} | {} | {late} |", rounds.columns());
    assert!(!proxy.log().contains("panicked"), "{}", proxy.log());
}

fn main() {
    disturbed::run(&format!("| fault | {COLUMNS} | slowest error after REDIS_TIMEOUT, ms |"), FAULTS, measure);
}
