//! Tests of three proxies behind the real HAProxy, nginx and twemproxy, with the files of
//! `deploy/scale`.
//!
//! Each key lives in one proxy. A proxy that dies takes only its own keys with it, and costs no
//! error over HTTP.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod balancer;
#[path = "../common/mod.rs"]
mod common;

use balancer::{Balancer, HAPROXY, Kind, NGINX, TWEMPROXY};
use common::client::{Client, Reply, numbered_keys, value_of};
use common::freshness::start_tracking_proxy;
use common::program::Program;
use common::resp::{RespClient, encode_command};
use common::{HttpClient, Proxy, Redis, wait_for};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

const PROXIES: usize = 3;
/// Number of keys of a test. No multiple of three: in turn, each proxy gets other keys each time.
const KEYS: usize = 500;
/// Clients that read at the same time, and the requests of all of them between two steps of a test.
const CLIENTS: usize = 8;
const REQUESTS_PER_STEP: usize = 2000;

/// Three proxies behind one balancer. Fields are dropped in this order.
struct Group {
    balancer: Balancer,
    proxies: Vec<Proxy>,
    redis: Redis,
    keys: Vec<String>,
}

impl Group {
    /// Starts everything, with [`KEYS`] keys in Redis.
    fn start(kind: &'static Kind, changes: &[(&str, &str)]) -> Group {
        let redis = Redis::start();
        let keys = numbered_keys("key", KEYS);
        let pairs: Vec<String> = keys.iter().flat_map(|key| [key.clone(), value_of(key)]).collect();
        redis::cmd("MSET").arg(pairs).exec(&mut redis.connect()).expect("MSET works");
        let proxies: Vec<Proxy> = (0..PROXIES).map(|_| start_proxy(&redis, 0)).collect();
        let balancer = Balancer::start(kind, &proxies, changes);
        Group { balancer, proxies, redis, keys }
    }

    fn connect(&self) -> Client {
        if self.balancer.kind.is_http {
            Client::connect_http(self.balancer.address)
        } else {
            Client::connect_resp(self.balancer.address)
        }
    }

    /// Reads each key once through the balancer.
    fn read_all(&self) {
        let mut client = self.connect();
        for key in &self.keys {
            assert_eq!(client.get(key), Reply::Value(value_of(key)), "{}", self.balancer.kind.name);
        }
    }

    /// Asserts that each key is in exactly one proxy, and that no share is far from a third.
    fn assert_split(&self) {
        let cached: Vec<_> = self.proxies.iter().map(|proxy| list_cached(proxy, &self.keys)).collect();
        let counts: Vec<usize> = cached.iter().map(HashSet::len).collect();
        let distinct = cached.iter().flatten().collect::<HashSet<_>>().len();
        assert_eq!((counts.iter().sum(), distinct), (KEYS, KEYS), "{}: {counts:?}", self.balancer.kind.name);
        let is_fair = |count: &usize| (KEYS / 5..KEYS / 2).contains(count);
        assert!(counts.iter().all(is_fair), "{}: {counts:?}", self.balancer.kind.name);
    }
}

/// Starts a proxy on a port, 0 for a free one.
fn start_proxy(redis: &Redis, port: u16) -> Proxy {
    Proxy::start(redis, &[("PROXY_PORT", &port.to_string()), ("CACHE_TTL", "600")])
}

/// Returns the keys that a proxy holds. Redis is not asked: `TTL` looks at the cache.
fn list_cached<'a>(proxy: &Proxy, keys: &'a [String]) -> HashSet<&'a str> {
    let commands: Vec<u8> = keys.iter().flat_map(|key| encode_command(&["TTL", key])).collect();
    let replies = RespClient::connect(proxy.address).call(commands);
    let replies = String::from_utf8(replies).expect("numbers");
    assert_eq!(replies.lines().count(), keys.len());
    keys.iter().zip(replies.lines()).filter(|(_, reply)| *reply != ":-2").map(|(key, _)| key.as_str()).collect()
}

/// Clients that read the keys over and over, and what they see.
struct Load<'a> {
    kind: &'static Kind,
    address: SocketAddr,
    keys: &'a [String],
    requests: AtomicUsize,
    is_stopped: AtomicBool,
    errors: Mutex<Vec<String>>,
    /// Keys that were read from Redis.
    missed: Mutex<HashSet<&'a str>>,
}

impl<'a> Load<'a> {
    /// Runs clients of a balancer during `steps`. Returns the errors, and the keys that were read
    /// from Redis (over HTTP).
    fn run(balancer: &Balancer, keys: &'a [String], steps: impl FnOnce(&Self)) -> (Vec<String>, HashSet<&'a str>) {
        let load = Load {
            kind: balancer.kind,
            address: balancer.address,
            keys,
            requests: AtomicUsize::new(0),
            is_stopped: AtomicBool::new(false),
            errors: Mutex::default(),
            missed: Mutex::default(),
        };
        thread::scope(|scope| {
            let load = &load;
            let clients: Vec<_> =
                (0..CLIENTS).map(|number| scope.spawn(move || load.run_client(number * 61))).collect();
            // Also if a step panics: the clients would never end.
            let guard = StopOnDrop(&load.is_stopped);
            steps(load);
            drop(guard);
            clients.into_iter().for_each(|client| client.join().expect("a client does not panic"));
        });
        (load.errors.into_inner().expect("no panic"), load.missed.into_inner().expect("no panic"))
    }

    /// Waits until the clients have sent many more requests.
    fn run_step(&self) {
        let end = self.requests.load(Ordering::Relaxed) + REQUESTS_PER_STEP;
        wait_for("the clients send requests", || (self.requests.load(Ordering::Relaxed) >= end).then_some(()));
    }

    fn run_client(&self, start: usize) {
        let order = (0..self.keys.len()).map(|number| &self.keys[(start + 7 * number) % self.keys.len()]);
        let mut http = None;
        let mut resp = (!self.kind.is_http).then(|| Client::connect_resp(self.address));
        for key in order.cycle().take_while(|_| !self.is_stopped.load(Ordering::Relaxed)) {
            let result = match &mut resp {
                Some(client) => check_value(key, client.get(key)),
                None => self.get_over_http(&mut http, key),
            };
            self.requests.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = result {
                self.errors.lock().expect("no panic").push(error);
            }
        }
    }

    /// Reads a key on a connection that is kept until the balancer announces its end.
    fn get_over_http(&self, connection: &mut Option<HttpClient>, key: &'a str) -> Result<(), String> {
        let response = connection.get_or_insert_with(|| HttpClient::connect(self.address)).get(&format!("/raw/{key}"));
        if response.header("connection") == "close" {
            *connection = None;
        }
        if response.header("cache-status").contains("fwd=miss") {
            self.missed.lock().expect("no panic").insert(key);
        }
        if response.status == 200 && response.text() == value_of(key) { Ok(()) } else { Err(format!("{response:?}")) }
    }
}

/// Sets a flag when dropped.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Returns the error of a reply. Panics if the value is that of another key.
fn check_value(key: &str, reply: Reply) -> Result<(), String> {
    match reply {
        Reply::Value(value) => {
            assert_eq!(value, value_of(key));
            Ok(())
        }
        Reply::Error(error) => Err(error),
    }
}

/// With the shipped files each key is read from Redis once, and is in one proxy.
#[test]
fn hashing_caches_each_key_once() {
    for kind in [&HAPROXY, &NGINX, &TWEMPROXY] {
        let group = Group::start(kind, &[]);
        for _ in 0..3 {
            group.read_all();
        }
        group.assert_split();
        assert_eq!(group.redis.count_reads(), KEYS as u64, "{}", kind.name);
    }
}

/// Without hashing each proxy reads the keys for itself: the test above notices.
#[test]
fn round_robin_caches_keys_repeatedly() {
    let group = Group::start(&HAPROXY, &[("balance hash path,field(3,/,0),url_dec", "balance roundrobin")]);
    for _ in 0..3 {
        group.read_all();
    }
    assert!(group.redis.count_reads() > KEYS as u64 * 3 / 2, "{}", group.redis.count_reads());
}

/// Both paths, both methods and all spellings of a key go to one proxy.
#[test]
fn spellings_of_key_share_proxy() {
    for kind in [&HAPROXY, &NGINX] {
        let group = Group::start(kind, &[]);
        let mut client = HttpClient::connect(group.balancer.address);
        for number in 0..20 {
            let key = format!("user/{number} +%/\u{e9}");
            group.redis.set(&key, "value");
            let before = group.redis.count_reads();
            let escaped = format!("{number}%20+%25/%C3%A9");
            for target in [
                format!("/key/user/{escaped}"),
                format!("/raw/user/{escaped}"),
                format!("/raw/user%2F{escaped}"),
                format!("/key/%75ser%2f{number}%20%2B%25/%c3%a9"),
                format!("/raw/user/{escaped}?a=/b+c"),
                format!("http://test/raw/user/{escaped}"),
            ] {
                let response = client.get(&target);
                assert_eq!(response.status, 200, "{}: {target}: {response:?}", kind.name);
                client.send(format!("HEAD {target} HTTP/1.1\r\nHost: test\r\n\r\n"));
                assert_eq!(client.read_response_to("HEAD").status, 200, "{}: {target}", kind.name);
            }
            assert_eq!(group.redis.count_reads() - before, 1, "{}: {key}", kind.name);
        }
        // A proxy's own pages are no business of the balancer, and not spread over the proxies.
        for path in ["/metrics", "/stats", "/", "/keyring"] {
            let mut client = HttpClient::connect(group.balancer.address);
            client.send_get(path);
            let mut head = String::new();
            std::io::BufRead::read_line(client.stream(), &mut head).expect("a response");
            assert!(head.starts_with("HTTP/1.1 404 "), "{}: {path}: {head}", kind.name);
        }
    }
}

/// A stream through a balancer outlives the timeout of other requests, and so does a long poll.
#[test]
fn silent_requests_outlive_timeouts() {
    for (kind, timeout) in [(&HAPROXY, "timeout server 5s"), (&NGINX, "proxy_read_timeout 5s")] {
        let redis = Redis::start();
        let proxies: Vec<Proxy> = (0..PROXIES).map(|_| start_tracking_proxy(redis.port, &[])).collect();
        let balancer = Balancer::start(kind, &proxies, &[(timeout, &timeout.replace("5s", "1s"))]);
        redis.set("key1", "value");
        let stream = Program::curl(balancer.address, "/key/flag");
        assert_eq!(stream.next_with("data: "), "{\"value\":null}");
        let mut client = HttpClient::connect(balancer.address);
        let tag = client.get("/raw/key1").header("etag").to_owned();
        client.send(format!("GET /raw/key1 HTTP/1.1\r\nHost: x\r\nIf-None-Match: {tag}\r\nPrefer: wait=3\r\n\r\n"));
        assert_eq!(client.read_response().status, 304, "{}", kind.name);
        redis.set("flag", "on");
        assert_eq!(stream.next_with("data: "), "{\"value\":\"on\",\"fromCache\":false}", "{}", kind.name);
    }
}

/// A proxy that is killed under load costs no HTTP error, and only its own keys are read again.
#[test]
fn killed_proxy_costs_no_http_error() {
    for kind in [&HAPROXY, &NGINX] {
        let Group { balancer, mut proxies, redis, keys } = {
            let group = Group::start(kind, &[]);
            group.read_all();
            group.assert_split();
            group
        };
        let lost = list_cached(&proxies[0], &keys);
        let (errors, missed) = Load::run(&balancer, &keys, |load| {
            load.run_step();
            drop(proxies.remove(0));
            load.run_step();
        });
        assert!(errors.is_empty(), "{}: {errors:#?}", kind.name);
        assert_eq!(missed, lost, "{}: the keys of the other proxies are hits", kind.name);
        drop((balancer, proxies, redis));
    }
}

/// Requests that a stuck proxy does not answer are repeated by HAProxy.
#[test]
fn frozen_proxy_costs_no_http_error() {
    let group = Group::start(&HAPROXY, &[]);
    let (errors, _) = Load::run(&group.balancer, &group.keys, |load| {
        load.run_step();
        group.proxies[0].freeze();
        load.run_step();
        group.proxies[0].thaw();
        load.run_step();
    });
    assert!(errors.is_empty(), "{errors:#?}");
}

/// A proxy that returns, and then another that shuts down, cost no error behind HAProxy.
#[test]
fn restarted_proxies_cost_no_http_error() {
    let Group { balancer, mut proxies, redis, keys } = Group::start(&HAPROXY, &[]);
    let (errors, _) = Load::run(&balancer, &keys, |load| {
        load.run_step();
        let port = proxies[0].address.port();
        drop(proxies.remove(0));
        balancer.wait_for_log("Server ready/proxy1 is DOWN", 0);
        proxies.push(start_proxy(&redis, port));
        balancer.wait_for_log("Server ready/proxy1 is UP", 0);
        load.run_step();
        assert_eq!(proxies.remove(0).stop("TERM"), Some(0));
        load.run_step();
    });
    assert!(errors.is_empty(), "{errors:#?}");
}

/// When a proxy dies behind twemproxy, clients see errors until it is ejected. The other proxies
/// keep their keys.
#[test]
fn twemproxy_ejects_killed_proxy() {
    let Group { balancer, mut proxies, redis, keys } = {
        let group = Group::start(&TWEMPROXY, &[]);
        group.read_all();
        group.assert_split();
        group
    };
    let lost = list_cached(&proxies[0], &keys);
    let kept: Vec<HashSet<&str>> = proxies[1..].iter().map(|proxy| list_cached(proxy, &keys)).collect();
    let reads = redis.count_reads();
    let (errors, _) = Load::run(&balancer, &keys, |load| {
        load.run_step();
        drop(proxies.remove(0));
        load.run_step();
    });
    // Such as "ERR Connection reset by peer": none is the reply of a proxy, or another value.
    assert!(errors.iter().all(|error| error.starts_with("ERR ")), "{errors:?}");
    let mut client = Client::connect_resp(balancer.address);
    for key in &keys {
        wait_for("the key is served", || check_value(key, client.get(key)).ok());
    }
    assert_eq!(redis.count_reads() - reads, lost.len() as u64);
    for (proxy, kept) in proxies.iter().zip(kept) {
        assert!(list_cached(proxy, &keys).is_superset(&kept));
    }
}

/// While Redis is away no proxy is ready. HAProxy then serves what they hold, from the proxies that
/// hold it.
#[test]
fn values_survive_outage_behind_haproxy() {
    let mut group = Group::start(&HAPROXY, &[]);
    group.read_all();
    group.assert_split();
    group.redis.kill();
    group.balancer.wait_for_log("backend ready has no server available", 0);
    group.read_all();
    let mut client = HttpClient::connect(group.balancer.address);
    assert_eq!(client.get("/raw/missing").status, 503);
    assert!(client.get("/raw/missing").text().contains("Redis"), "the error is that of a proxy");
    group.redis.restart();
    group.redis.set("missing", "no longer");
    group.balancer.wait_for_log("Server ready/proxy1 is UP", 0);
    wait_for("HAProxy reads from Redis", || (client.get("/raw/missing").text() == "no longer").then_some(()));
}

/// After an outage of Redis all proxies return at the same time, and each with its keys: no key is
/// read again or cached twice.
#[test]
fn keys_stay_after_outage_behind_haproxy() {
    let group = Group::start(&HAPROXY, &[]);
    group.read_all();
    group.assert_split();
    let reads = group.redis.count_reads();
    group.redis.freeze();
    group.balancer.wait_for_log("backend ready has no server available", 0);
    group.read_all();
    group.redis.thaw();
    for number in 1..=PROXIES {
        group.balancer.wait_for_log(&format!("Server ready/proxy{number} is UP"), 0);
    }
    group.read_all();
    group.assert_split();
    assert_eq!(group.redis.count_reads(), reads, "all keys are hits");
}
