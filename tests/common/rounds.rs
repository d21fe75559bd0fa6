//! Rounds of changes with a disturbance in each, and a check of all watchers after each.

use super::freshness::env_number;
use super::watchers::{Report, Version, Watchers};
use super::{TEST_TIMEOUT, wait_for};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Number of changes, unless `WATCH_CHANGES` is set.
const DEFAULT_CHANGES: u64 = 240;

/// Changes of a round in a test with the default number.
const CHANGES_PER_ROUND: u64 = 60;

/// Largest number of rounds of most tests (a minute).
pub const MAX_ROUNDS: u64 = 25;

/// Time over which the changes of a round are spread.
const ROUND_TIME: Duration = Duration::from_millis(600);

/// Number of changes without a pause. So some of them arrive while their key is being read.
const BURST: usize = 20;

/// Watchers of keys, and the writer of their versions.
pub struct Rounds {
    pub watchers: Watchers,
    keys: Vec<String>,
    /// Last version that was written.
    version: u64,
    /// Rounds so far.
    rounds: u64,
    started: Instant,
    /// Longest time from the end of a round until all watchers had the final values.
    slowest: Duration,
}

/// Returns the number of rounds, and of changes in each. With at most `max_rounds` they have more
/// changes.
pub fn size(max_rounds: u64) -> (u64, u64) {
    let changes = env_number("WATCH_CHANGES", DEFAULT_CHANGES);
    let rounds = (changes / CHANGES_PER_ROUND).clamp(1, max_rounds);
    (rounds, changes.div_ceil(rounds))
}

/// Returns names of keys for these rounds.
pub fn names() -> Vec<String> {
    (0..6).map(|number| format!("k{number}")).collect()
}

impl Rounds {
    /// Starts watchers of keys at a proxy. With `is_ordered` they may see no version before an
    /// older one.
    pub fn start(address: SocketAddr, keys: &[String], is_ordered: bool) -> Rounds {
        Rounds {
            watchers: Watchers::start(address, keys, is_ordered),
            keys: keys.to_vec(),
            version: 0,
            rounds: 0,
            started: Instant::now(),
            slowest: Duration::ZERO,
        }
    }

    /// Writes `changes` versions with `set`, with a disturbance among them. Then checks that all
    /// watchers have the values that `get` returns.
    pub fn run(
        &mut self,
        changes: u64,
        set: impl FnMut(&str, u64) -> bool + Send,
        disturb: impl FnOnce(&Watchers),
        mut get: impl FnMut(&str) -> Version,
    ) {
        let (first, written) = (self.version + 1, AtomicU64::new(0));
        let Rounds { watchers, keys, rounds, .. } = self;
        // The disturbance comes after, among or before the changes.
        let before = changes * ((*rounds * 2 + 4) % 5) / 4;
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| write(keys, first, changes, &written, set));
            wait_for("the changes before it", || (written.load(Ordering::Relaxed) >= before).then_some(()));
            disturb(watchers);
            writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        (self.version, self.rounds) = (self.version + changes, self.rounds + 1);
        let versions: Vec<Version> = self.keys.iter().map(|key| get(key)).collect();
        let ended = Instant::now();
        self.watchers.wait_until_seen(&versions);
        self.slowest = self.slowest.max(ended.elapsed());
    }

    /// Ends the watchers, and prints the figures.
    pub fn finish(self, name: &str) -> Report {
        let report = self.watchers.stop();
        println!(
            "{name}: {} changes, {} disturbances, 0 lost, slowest check {:?}, {:?}: {report:?}",
            self.version,
            self.rounds,
            self.slowest,
            self.started.elapsed()
        );
        report
    }
}

/// Writes versions of the keys in turn, and repeats a write that fails. The first key is written
/// only once, so that no later write makes up for a lost change.
fn write(keys: &[String], first: u64, changes: u64, written: &AtomicU64, mut set: impl FnMut(&str, u64) -> bool) {
    let pause = ROUND_TIME * BURST as u32 / u32::try_from(changes).expect("a small number");
    for number in 0..changes as usize {
        let key = if number < keys.len() { number } else { 1 + number % (keys.len() - 1) };
        let deadline = Instant::now() + TEST_TIMEOUT;
        while !set(&keys[key], first + number as u64) {
            assert!(Instant::now() < deadline, "{} cannot be written", keys[key]);
            std::thread::sleep(Duration::from_millis(2));
        }
        written.fetch_add(1, Ordering::Relaxed);
        if number % BURST == BURST - 1 {
            std::thread::sleep(pause);
        }
    }
}

/// Writer and reader of keys at one server, which connect again after an error.
pub struct Access {
    port: u16,
    connection: Option<redis::Connection>,
}

impl Access {
    /// Creates access to the server at a port.
    pub fn new(port: u16) -> Access {
        Access { port, connection: None }
    }

    /// Runs a command. Returns `None` after an error.
    fn run<T: redis::FromRedisValue>(&mut self, command: &redis::Cmd) -> Option<T> {
        if self.connection.is_none() {
            let client = redis::Client::open(format!("redis://127.0.0.1:{}/", self.port)).expect("a URL");
            self.connection = client.get_connection().ok();
        }
        let reply = command.query(self.connection.as_mut()?).ok();
        if reply.is_none() {
            self.connection = None;
        }
        reply
    }

    /// Writes a version. Returns false after an error.
    pub fn set(&mut self, key: &str, version: u64) -> bool {
        self.run::<()>(redis::cmd("SET").arg(key).arg(version)).is_some()
    }

    /// Returns the version of a key.
    pub fn get(&mut self, key: &str) -> Version {
        wait_for("Redis replies", || self.run(redis::cmd("GET").arg(key)))
    }
}
