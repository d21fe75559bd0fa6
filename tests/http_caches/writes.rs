//! Test of caches in front of the proxy while a writer changes a value all the time.
//!
//! Lasts 5 s, or as many seconds as `HTTP_CACHES_SECONDS` says.

use crate::common::HttpClient;
use crate::{Chain, with_each_cache};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Lifetime of a value in the proxy, which caches in front share.
const TTL: Duration = Duration::from_secs(2);

/// Time that a read of Redis may take: the lifetime begins when the value arrives.
const READ_TIME: Duration = Duration::from_secs(1);

/// Versions of the value: at each index the time at which it was replaced.
type Replaced = Mutex<Vec<Instant>>;

/// Writes versions with pauses of 10 to 290 ms.
fn write(chain: &Chain, replaced: &Replaced, has_ended: &AtomicBool) {
    let mut connection = chain.redis.connect();
    for version in 1.. {
        if has_ended.load(Ordering::Relaxed) {
            return;
        }
        let text = format!("version {version}");
        redis::cmd("SET").arg("a").arg(text).exec(&mut connection).expect("Redis accepts writes");
        replaced.lock().expect("no poisoned lock").push(Instant::now());
        thread::sleep(Duration::from_millis(10 + version * 37 % 280));
    }
}

/// Ends the writer when dropped, also if a check fails.
struct EndWrites<'a>(&'a AtomicBool);

impl Drop for EndWrites<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Returns the version that a body names.
fn version_in(text: &str) -> Option<usize> {
    let (_, rest) = text.split_once("version ")?;
    let digits = rest.find(|char: char| !char.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().ok()
}

/// Client that reads through a cache, with and without conditions.
struct Reader<'a> {
    chain: &'a Chain,
    client: HttpClient,
    /// Entity tag and version of the last response.
    known: Option<(String, usize)>,
    versions: usize,
    not_modified: usize,
}

impl Reader<'_> {
    /// Reads once, and checks the age of the value.
    fn read(&mut self, number: usize, replaced: &Replaced) {
        let path = ["/raw/a", "/key/a"][number % 2];
        let known = self.known.clone().filter(|_| !number.is_multiple_of(5));
        let condition = known.as_ref().map(|(tag, _)| format!("If-None-Match: {tag}\r\n")).unwrap_or_default();
        let directive = if number.is_multiple_of(7) { "Cache-Control: no-cache\r\n" } else { "" };
        let began = Instant::now();
        let Chain { cache, .. } = self.chain;
        cache.send_on(&mut self.client, path, &(condition + directive));
        let response = self.client.read_response();
        if response.header("connection") == "close" {
            self.client = cache.connect();
        }
        let version = match (response.status, known) {
            (304, Some((_, version))) => {
                self.not_modified += 1;
                version
            }
            (200, _) => {
                let text = response.text();
                version_in(&text).unwrap_or_else(|| panic!("no version in {text}"))
            }
            _ => panic!("{}: {response:?}", cache.kind.name),
        };
        let promise = TTL + READ_TIME + Duration::from_secs(u64::from(cache.kind.keeps_last_second));
        if let Some(&replaced_at) = replaced.lock().expect("no poisoned lock").get(version) {
            let age = began.saturating_duration_since(replaced_at);
            assert!(age <= promise, "{} serves version {version}, replaced {age:?} ago: {response:?}", cache.kind.name);
        }
        self.versions += usize::from(self.known.as_ref().is_none_or(|&(_, last)| last != version));
        let tag = response.header("etag").to_owned();
        self.known = (!tag.is_empty()).then_some((tag, version));
    }
}

/// No cache serves a value, or confirms one with 304, that was replaced longer ago than promised.
#[test]
fn replaced_values_leave_caches() {
    let seconds = std::env::var("HTTP_CACHES_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(5);
    with_each_cache(&[("CACHE_TTL", "2")], |chain| {
        let (replaced, has_ended) = (Replaced::default(), AtomicBool::new(false));
        chain.redis.set("a", "version 0");
        thread::scope(|scope| {
            scope.spawn(|| write(chain, &replaced, &has_ended));
            let client = chain.cache.connect();
            let mut reader = Reader { chain, client, known: None, versions: 0, not_modified: 0 };
            let end = Instant::now() + Duration::from_secs(seconds);
            let mut reads = 0;
            let end_of_writes = EndWrites(&has_ended);
            while Instant::now() < end {
                reader.read(reads, &replaced);
                reads += 1;
                thread::sleep(Duration::from_millis(1));
            }
            drop(end_of_writes);
            let Reader { versions, not_modified, .. } = reader;
            eprintln!("{}: {reads} reads, {versions} versions, {not_modified} times 304", chain.cache.kind.name);
            assert!(versions > 1 && not_modified > 0, "{}: {versions} versions, {not_modified}", chain.cache.kind.name);
        });
    });
}
