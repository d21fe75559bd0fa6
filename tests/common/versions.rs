//! Keys with versions: a writer that increments them, and readers that judge what they get.
//!
//! The value of a key is its version, a number that only grows. The writer records when each
//! version was acknowledged. A reply is stale if it is older than a version that was acknowledged
//! longer before the request than a bound.

use super::client::{Client, Reply};
use super::cluster::ClusterClient;
use super::{Proxy, wait_for};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Versions of one key.
#[derive(Default)]
struct History {
    /// Acknowledged versions and their times, the oldest first.
    acknowledged: Vec<(Instant, u64)>,
    /// Newest version that may have been written.
    sent: u64,
}

/// Keys and the history of their versions.
pub struct Versions {
    keys: Vec<(String, Mutex<History>)>,
}

/// Reply that a reader did not expect.
#[derive(Clone, Debug)]
pub struct Finding {
    pub key: String,
    pub text: String,
    pub at: Instant,
    pub is_http: bool,
}

/// Replies that the readers got.
#[derive(Debug, Default)]
pub struct Report {
    pub replies: u64,
    /// Values older than the bound allows, or that were never written.
    pub stale: Vec<Finding>,
    /// Replies without a value.
    pub errors: Vec<Finding>,
    /// Longest times between a request and its reply, for each reader.
    pub longest: Duration,
}

impl Versions {
    /// Creates histories of keys without a version.
    pub fn new(keys: &[String]) -> Arc<Versions> {
        Arc::new(Versions { keys: keys.iter().map(|key| (key.clone(), Mutex::default())).collect() })
    }

    /// Writes the next version of a key with `write`, and records it.
    ///
    /// # Errors
    ///
    /// The write failed. Readers may find that version nevertheless.
    pub fn write<E>(&self, at: usize, write: impl FnOnce(&str, u64) -> Result<(), E>) -> Result<(), E> {
        let (key, history) = &self.keys[at];
        let version = {
            let mut history = history.lock().expect("no panic");
            history.sent += 1;
            history.sent
        };
        write(key, version)?;
        history.lock().expect("no panic").acknowledged.push((Instant::now(), version));
        Ok(())
    }

    /// Writes the next version of all keys, and repeats each write until it succeeds.
    pub fn write_all(&self, client: &mut ClusterClient) {
        for at in 0..self.keys.len() {
            let result: Result<(), ()> = self.write(at, |key, version| {
                client.set(key, version);
                Ok(())
            });
            result.expect("it was repeated until it succeeded");
        }
    }

    /// Returns the newest acknowledged version of a key.
    pub fn newest(&self, at: usize) -> u64 {
        self.keys[at].1.lock().expect("no panic").acknowledged.last().map_or(0, |(_, version)| *version)
    }

    /// Returns the range of versions that a reply to a request may have. The second bound is known
    /// only after the reply.
    fn oldest_allowed(&self, at: usize, requested: Instant, bound: Duration) -> u64 {
        let history = self.keys[at].1.lock().expect("no panic");
        let is_due = |&&(time, _): &&(Instant, u64)| time + bound <= requested;
        history.acknowledged.iter().rev().find(is_due).map_or(0, |(_, version)| *version)
    }

    fn newest_sent(&self, at: usize) -> u64 {
        self.keys[at].1.lock().expect("no panic").sent
    }
}

/// Writer on a thread of its own. Every key gets a new version in turn.
pub struct Writer {
    stop: Arc<AtomicBool>,
    /// Number of acknowledged writes.
    written: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Starts a writer that pauses between two writes. A write that fails is repeated with the next
    /// version.
    pub fn start(versions: &Arc<Versions>, mut client: ClusterClient, pause: Duration) -> Writer {
        let (versions, stop) = (Arc::clone(versions), Arc::new(AtomicBool::new(false)));
        let (stopped, written) = (Arc::clone(&stop), Arc::new(AtomicU64::new(0)));
        let counter = Arc::clone(&written);
        let thread = std::thread::spawn(move || {
            let set = |client: &mut ClusterClient, key: &str, version: u64| {
                client.call(key, redis::cmd("SET").arg(key).arg(version)).map(|_| ())
            };
            for at in (0..versions.keys.len()).cycle() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let result = versions.write(at, |key, version| set(&mut client, key, version));
                counter.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
                std::thread::sleep(pause);
            }
        });
        Writer { stop, written, thread }
    }

    /// Waits for this number of further acknowledged writes.
    pub fn wait_for_writes(&self, count: u64) {
        let before = self.written.load(Ordering::Relaxed);
        wait_for("the writer writes", || (self.written.load(Ordering::Relaxed) >= before + count).then_some(()));
    }

    /// Ends the writer. Returns the number of acknowledged writes.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        self.written.load(Ordering::Relaxed)
    }
}

/// Readers of all keys at the proxy, half of them over HTTP and half over RESP.
pub struct Readers {
    stop: Arc<AtomicBool>,
    replies: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Report>>,
}

impl Readers {
    /// Starts readers. Replies may be `bound` older than the request.
    pub fn start(proxy: &Proxy, versions: &Arc<Versions>, count: usize, bound: Duration) -> Readers {
        let (stop, replies) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let start = |number: usize| {
            let (address, versions) = (proxy.address, Arc::clone(versions));
            let (stop, replies) = (Arc::clone(&stop), Arc::clone(&replies));
            std::thread::spawn(move || read(address, number, &versions, bound, &stop, &replies))
        };
        let threads = (0..count).map(start).collect();
        Readers { stop, replies, threads }
    }

    /// Waits for this number of further replies.
    pub fn wait_for_replies(&self, count: u64) {
        let before = self.replies.load(Ordering::Relaxed);
        wait_for("the readers read", || (self.replies.load(Ordering::Relaxed) >= before + count).then_some(()));
    }

    /// Ends the readers and returns what they got.
    pub fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Report::default();
        for thread in self.threads {
            let one = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            all.replies += one.replies;
            all.stale.extend(one.stale);
            all.errors.extend(one.errors);
            all.longest = all.longest.max(one.longest);
        }
        all
    }
}

fn read(
    address: SocketAddr,
    number: usize,
    versions: &Versions,
    bound: Duration,
    stop: &AtomicBool,
    replies: &AtomicU64,
) -> Report {
    let mut client = match number % 2 {
        0 => Client::connect_http(address),
        _ => Client::connect_resp(address),
    };
    let mut report = Report::default();
    // Readers begin at different keys.
    for at in (0..versions.keys.len()).cycle().skip(number) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = &versions.keys[at].0;
        let requested = Instant::now();
        let reply = client.get(key);
        let elapsed = requested.elapsed();
        report.replies += 1;
        report.longest = report.longest.max(elapsed);
        replies.fetch_add(1, Ordering::Relaxed);
        let finding = |text: String| Finding { key: key.clone(), text, at: requested, is_http: client.is_http() };
        match reply {
            Reply::Error(text) => {
                report.errors.push(finding(text));
                // Thousands of further errors would say the same.
                std::thread::sleep(Duration::from_millis(2));
            }
            Reply::Value(text) => {
                let (oldest, newest) = (versions.oldest_allowed(at, requested, bound), versions.newest_sent(at));
                let version = text.parse::<u64>().unwrap_or(u64::MAX);
                if !(oldest..=newest).contains(&version) {
                    report.stale.push(finding(format!("{text}, not {oldest} to {newest}")));
                }
            }
        }
    }
    report
}

impl Report {
    /// Checks that no reply was stale, and that there were enough of them to judge.
    pub fn check_fresh(&self) {
        assert!(self.replies > 100, "{} replies are too few to judge", self.replies);
        let some: Vec<&Finding> = self.stale.iter().take(5).collect();
        assert!(some.is_empty(), "{} of {} replies were stale, such as {some:#?}", self.stale.len(), self.replies);
    }

    /// Checks that each request got a value.
    pub fn check_no_errors(&self) {
        let some: Vec<&Finding> = self.errors.iter().take(5).collect();
        assert!(some.is_empty(), "{} of {} requests failed, such as {some:#?}", self.errors.len(), self.replies);
    }

    /// Checks that each error is the one of an outage, and that no redirection reached a client.
    pub fn check_errors_are_outages(&self) {
        let is_outage = |finding: &&Finding| match finding.is_http {
            true => finding.text.starts_with("503 ") || finding.text.starts_with("504 "),
            false => finding.text.starts_with("LOADING "),
        };
        let other: Vec<&Finding> = self.errors.iter().filter(|finding| !is_outage(finding)).take(5).collect();
        assert!(other.is_empty(), "errors that are no outages: {other:#?}");
    }
}
