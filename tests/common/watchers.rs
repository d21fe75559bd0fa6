//! Watchers that reconnect as a browser does (HTML, section 9.2.3), and what they see of keys with
//! version numbers as values.

use super::event_stream::{Event, EventStream};
use super::{HttpClient, TEST_TIMEOUT, wait_for};
use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest time until a watcher reconnects. Servers ask for a second and more.
///
/// Longer than an invalidation or a short `CACHE_TTL` takes, so that another worker or proxy has
/// nothing older than the watcher.
const MAX_RETRY: Duration = Duration::from_millis(400);

/// Time between two polls of a key without a value, for which no poll waits.
const POLL_PAUSE: Duration = Duration::from_millis(20);

/// Number of streams that watch all keys.
const WATCH_STREAMS: usize = 3;

/// Version of a key, `None` if it has no value.
pub type Version = Option<u64>;

/// Request that a watcher repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Stream of one key (`/key`).
    Key(usize),
    /// Stream of all keys (`/watch`).
    Watch,
    /// Long polls of one key.
    Poll(usize),
}

/// State of one key that a watcher has.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    version: Option<Version>,
    newest: u64,
    /// Connection on which the version arrived.
    connection: u64,
}

struct Watcher {
    kind: Kind,
    /// State of each key, by index.
    seen: Mutex<Vec<Seen>>,
    /// Present connection.
    socket: Mutex<Option<TcpStream>>,
}

impl Watcher {
    fn new(kind: Kind, keys: usize) -> Watcher {
        Watcher { kind, seen: Mutex::new(vec![Seen::default(); keys]), socket: Mutex::default() }
    }

    fn watches(&self, key: usize) -> bool {
        matches!(self.kind, Kind::Watch) || self.kind == Kind::Key(key) || self.kind == Kind::Poll(key)
    }
}

/// Counts of all watchers.
#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU64,
    events: AtomicU64,
    announced_ends: AtomicU64,
    other_ends: AtomicU64,
    failed_polls: AtomicU64,
}

struct Shared {
    address: SocketAddr,
    keys: Vec<String>,
    watchers: Vec<Watcher>,
    /// A lower version after a higher one is an error.
    is_ordered: bool,
    stop: AtomicBool,
    counts: Counts,
    /// Observations that no watcher may make.
    findings: Mutex<Vec<String>>,
}

/// Running watchers, each on a thread of its own.
pub struct Watchers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// Counts at the end.
#[derive(Debug)]
pub struct Report {
    pub watchers: usize,
    /// Versions that the watchers received.
    pub events: u64,
    pub reconnections: u64,
    /// Streams that ended after a further `retry:`.
    pub announced_ends: u64,
    /// Streams that ended otherwise.
    pub other_ends: u64,
    /// Polls with the error of an outage.
    pub failed_polls: u64,
}

impl Watchers {
    /// Starts a stream and a poll for each key, and some streams for all keys. With `is_ordered` no
    /// watcher may see a lower version after a higher one.
    pub fn start(address: SocketAddr, keys: &[String], is_ordered: bool) -> Watchers {
        let kinds = (0..keys.len()).flat_map(|key| [Kind::Key(key), Kind::Poll(key)]);
        let kinds = kinds.chain([Kind::Watch; WATCH_STREAMS]);
        let shared = Arc::new(Shared {
            address,
            keys: keys.to_vec(),
            watchers: kinds.map(|kind| Watcher::new(kind, keys.len())).collect(),
            is_ordered,
            stop: AtomicBool::new(false),
            counts: Counts::default(),
            findings: Mutex::default(),
        });
        let start = |index: usize| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.run(&shared.watchers[index]))
        };
        let threads = (0..shared.watchers.len()).map(start).collect();
        Watchers { shared, threads }
    }

    /// Closes the connections of all watchers.
    pub fn disconnect(&self) {
        for watcher in &self.shared.watchers {
            if let Some(socket) = watcher.socket.lock().expect("no panic").as_ref() {
                // Fails if the connection is closed already.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }

    /// Waits until each watcher has these versions of the keys. Panics if one of them is lost.
    pub fn wait_until_seen(&self, versions: &[Version]) {
        let mut missing = Vec::new();
        let is_seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("all watchers have the final values", || {
                missing = self.find_missing(versions);
                missing.is_empty().then_some(())
            });
        }));
        assert!(is_seen.is_ok(), "{} final values are lost: {missing:#?}", missing.len());
        self.check_findings();
    }

    /// Returns a description of each watcher that lacks one of these versions.
    fn find_missing(&self, versions: &[Version]) -> Vec<String> {
        let mut missing = Vec::new();
        for watcher in &self.shared.watchers {
            let seen = watcher.seen.lock().expect("no panic");
            for (key, (seen, version)) in seen.iter().zip(versions).enumerate() {
                if watcher.watches(key) && seen.version != Some(*version) {
                    missing.push(format!("{:?}: {seen:?} of key {key}, not {version:?}", watcher.kind));
                }
            }
        }
        missing
    }

    fn check_findings(&self) {
        let findings = self.shared.findings.lock().expect("no panic");
        assert!(findings.is_empty(), "{} findings: {:#?}", findings.len(), &findings[..findings.len().min(10)]);
    }

    /// Ends the watchers, and returns their counts.
    pub fn stop(mut self) -> Report {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.disconnect();
        for thread in self.threads.drain(..) {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        self.check_findings();
        let counts = &self.shared.counts;
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let watchers = self.shared.watchers.len();
        Report {
            watchers,
            events: count(&counts.events),
            reconnections: count(&counts.connections) - watchers as u64,
            announced_ends: count(&counts.announced_ends),
            other_ends: count(&counts.other_ends),
            failed_polls: count(&counts.failed_polls),
        }
    }
}

impl Drop for Watchers {
    /// Ends the threads of a test that failed.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.disconnect();
    }
}

impl Shared {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn run(&self, watcher: &Watcher) {
        // The id of the last event, or the tag of the last response.
        let mut last = String::new();
        while !self.is_stopped() {
            let result = match watcher.kind {
                Kind::Poll(key) => self.poll(watcher, key, &mut last).map(|()| MAX_RETRY),
                Kind::Key(_) | Kind::Watch => self.follow(watcher, &mut last),
            };
            if !self.is_stopped() {
                std::thread::sleep(result.unwrap_or(MAX_RETRY).min(MAX_RETRY));
            }
        }
    }

    /// Connects a watcher. Returns its connection with the number of it.
    fn connect(&self, watcher: &Watcher) -> io::Result<(TcpStream, u64)> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(TEST_TIMEOUT))?;
        *watcher.socket.lock().expect("no panic") = Some(stream.try_clone()?);
        if self.is_stopped() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok((stream, self.counts.connections.fetch_add(1, Ordering::Relaxed)))
    }

    /// Requests a stream and reads it to its end. Returns the time after which to reconnect.
    fn follow(&self, watcher: &Watcher, last_id: &mut String) -> io::Result<Duration> {
        let (stream, connection) = self.connect(watcher)?;
        let target = match watcher.kind {
            Kind::Key(key) | Kind::Poll(key) => format!("/key/{}", self.keys[key]),
            Kind::Watch => format!("/watch?key={}", self.keys.join("&key=")),
        };
        let fields = if last_id.is_empty() { String::new() } else { format!("Last-Event-ID: {last_id}\r\n") };
        let mut stream = EventStream::try_request(stream, &target, &fields)?;
        if !stream.head.starts_with("HTTP/1.1 200 OK\r\n") {
            // A browser reconnects after an error of the network, and never after another status.
            self.add_finding(watcher, &format!("stream refused: {}", stream.head));
        }
        while let Some(Event { id, data, .. }) = stream.next_event() {
            let key = match watcher.kind {
                Kind::Key(key) | Kind::Poll(key) => key,
                Kind::Watch => self.key_in(&data),
            };
            self.record(watcher, key, version_in(&data), connection);
            *last_id = id;
        }
        if !self.is_stopped() {
            let Counts { announced_ends, other_ends, .. } = &self.counts;
            let count = if stream.retries.len() > 1 { announced_ends } else { other_ends };
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(stream.retries.last().map_or(MAX_RETRY, |&retry| Duration::from_millis(retry)))
    }

    /// Polls a key until the connection ends.
    fn poll(&self, watcher: &Watcher, key: usize, tag: &mut String) -> io::Result<()> {
        let (stream, connection) = self.connect(watcher)?;
        let mut client = HttpClient::new(stream);
        while !self.is_stopped() {
            let condition =
                if tag.is_empty() { String::new() } else { format!("If-None-Match: {tag}\r\nPrefer: wait=30\r\n") };
            let request = format!("GET /key/{} HTTP/1.1\r\nHost: x\r\n{condition}\r\n", self.keys[key]);
            client.stream().get_mut().write_all(request.as_bytes())?;
            let response = client.try_read_response_to("GET")?;
            match response.status {
                200 => {
                    // A first response on a connection may repeat what the watcher has.
                    let connection = if tag.is_empty() { u64::MAX } else { connection };
                    self.record(watcher, key, version_in(&response.text()), connection);
                    response.header("etag").clone_into(tag);
                }
                304 => {}
                404 => {
                    let is_new = watcher.seen.lock().expect("no panic")[key].version != Some(None);
                    if is_new {
                        self.record(watcher, key, None, connection);
                    }
                    tag.clear();
                    std::thread::sleep(POLL_PAUSE);
                }
                502..=504 => {
                    self.counts.failed_polls.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(POLL_PAUSE);
                }
                _ => self.add_finding(watcher, &format!("poll refused: {response:?}")),
            }
            if response.header("connection") == "close" {
                break;
            }
        }
        Ok(())
    }

    /// Returns the index of the key that an event names.
    fn key_in(&self, data: &str) -> usize {
        let name = data.strip_prefix("{\"key\":\"").and_then(|rest| rest.split('"').next());
        self.keys.iter().position(|key| Some(key.as_str()) == name).unwrap_or_else(|| panic!("{data} names no key"))
    }

    /// Records a version that a watcher received.
    fn record(&self, watcher: &Watcher, key: usize, version: Version, connection: u64) {
        self.counts.events.fetch_add(1, Ordering::Relaxed);
        let mut all = watcher.seen.lock().expect("no panic");
        let seen = &mut all[key];
        let before = *seen;
        let newest = version.unwrap_or(0).max(seen.newest);
        *seen = Seen { version: Some(version), newest, connection };
        drop(all);
        if self.is_ordered && version.is_some_and(|version| version < before.newest) {
            self.add_finding(watcher, &format!("{version:?} after {before:?} of key {key}, connection {connection}"));
        }
        if before.version == Some(version) && before.connection == connection && connection != u64::MAX {
            self.add_finding(watcher, &format!("{version:?} of key {key} repeated on connection {connection}"));
        }
    }

    fn add_finding(&self, watcher: &Watcher, text: &str) {
        self.findings.lock().expect("no panic").push(format!("{:?}: {text}", watcher.kind));
    }
}

/// Returns the version in the body of `/key` or in the data of an event.
fn version_in(data: &str) -> Version {
    let value = data.split_once("\"value\":").and_then(|(_, rest)| rest.split([',', '}']).next());
    match value {
        Some("null") => None,
        Some(number) => Some(number.parse().unwrap_or_else(|_| panic!("{data} has no version"))),
        None => panic!("{data} has no value"),
    }
}
