//! Redis on its bad days: frozen, killed, restarted, refusing. Hits go on, misses get a clear error in bounded time, and
//! everything recovers by itself.

#![allow(clippy::expect_used, reason = "a test may stop at what it did not expect")]

mod common;

use common::{Http, Proxy, Redis, Response, fake_redis, until};
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Asks until Redis is reachable again; every other answer until then must be one of `statuses`.
fn recovered(proxy: &Proxy, path: &str, statuses: &[u16]) -> Response {
    until("the proxy recovers", || {
        let response = proxy.get(path);
        assert!(response.status == 200 || statuses.contains(&response.status), "{response:?}");
        (response.status == 200).then_some(response)
    })
}

/// Rules 1 and 8: the loop does not wait with the helpers, and a reply that comes late answers nobody.
#[test]
fn a_frozen_redis_costs_misses_a_504_and_hits_nothing() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "300"), ("CACHE_TTL", "60")]);
    for (key, value) in [("hot", "in memory"), ("a", "A"), ("b", "B")] {
        redis.set(key, value);
    }
    assert_eq!(proxy.get("/raw/hot").text(), "in memory");
    redis.freeze();
    let mut waiting = proxy.connect();
    waiting.ask("/raw/a");
    let started = Instant::now();
    let mut client = proxy.connect();
    for _ in 0..100 {
        let hit = client.get("/raw/hot");
        assert_eq!((hit.text().as_str(), hit.field("cache-status").contains("hit")), ("in memory", true));
    }
    assert!(!waiting.has_input() || started.elapsed() > Duration::from_millis(250), "answered before its time");
    let late = waiting.response();
    assert_eq!(late.status, 504, "{late:?}");
    assert!(late.text().contains("REDIS_TIMEOUT"), "{late:?}");
    redis.thaw();
    // Redis now sends the reply for "a" to a connection that is no longer there.
    assert_eq!(recovered(&proxy, "/raw/b", &[504]).text(), "B");
    assert_eq!(recovered(&proxy, "/raw/a", &[504]).text(), "A");
    assert_eq!(client.get("/raw/hot").text(), "in memory");
}

#[test]
fn a_redis_that_is_gone_costs_misses_a_503_until_it_is_back() {
    let mut redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "60")]);
    redis.set("hot", "in memory");
    assert_eq!(proxy.get("/raw/hot").text(), "in memory");
    redis.kill();
    for _ in 0..20 {
        let miss = proxy.get("/raw/cold");
        assert_eq!((miss.status, miss.field("retry-after")), (503, "1"), "{miss:?}");
        assert!(miss.text().contains("Redis cannot be reached"), "{miss:?}");
        assert_eq!(proxy.get("/raw/hot").text(), "in memory");
    }
    redis.restart();
    redis.set("cold", "back");
    assert_eq!(recovered(&proxy, "/raw/cold", &[503]).text(), "back");
    let log = proxy.log();
    assert_eq!(log.matches("cannot connect to Redis").count(), 1, "the log repeats itself: {log}");
    assert_eq!(log.matches("] connected to Redis").count(), 2, "{log}");
}

/// What Redis closes while nobody asks is replaced before anybody notices.
#[test]
fn connections_closed_while_idle_are_replaced_unseen() {
    let mut redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_CONNECTIONS", "1")]);
    redis.set("a", 1);
    assert_eq!(proxy.get("/raw/a").status, 200);
    redis.kill();
    redis.restart();
    redis.set("b", 2);
    assert_eq!(proxy.get("/raw/b").text(), "2", "a client saw the restart");
    redis.run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    redis.set("c", 3);
    assert_eq!(proxy.get("/raw/c").text(), "3", "a client saw the closed connection");
}

/// A helper that cannot connect leaves the jobs to those that can.
#[test]
fn one_connection_is_enough_where_redis_allows_no_more() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "0.001"), ("REDIS_CONNECTIONS", "4")]);
    redis.set("a", 1);
    until("a helper has connected", || (proxy.get("/raw/a").status == 200).then_some(()));
    let mut admin = redis.connect();
    // The proxy's and this one are there; no further ones are let in.
    let info: String = redis::cmd("INFO").arg("clients").query(&mut admin).expect("INFO works");
    let clients = info.lines().find_map(|line| line.strip_prefix("connected_clients:")).expect("a count");
    redis::cmd("CONFIG").arg("SET").arg("maxclients").arg(clients).exec(&mut admin).expect("CONFIG works");
    let proxy = {
        drop(proxy);
        Proxy::start(&redis, &[("CACHE_TTL", "0.001"), ("REDIS_CONNECTIONS", "4")])
    };
    until("a helper has connected", || (proxy.get("/raw/a").status == 200).then_some(()));
    let mut clients: Vec<Http> = (0..8).map(|_| proxy.connect()).collect();
    let mut failed = 0;
    for round in 0..200 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.ask(&format!("/raw/missing{}", round * 8 + number));
        }
        failed += clients.iter_mut().map(Http::response).filter(|response| response.status != 404).count();
    }
    // Each of the others may fail what it holds when it is refused; then it stands back.
    assert!(failed < 100, "{failed} of 1600 were failed by helpers without a connection");
}

#[test]
fn authentication_and_database_are_used_and_their_errors_told() {
    let redis = Redis::start_with(&["--requirepass", "secret"]);
    let url = |rest: &str| format!("redis://{rest}127.0.0.1:{}/3", redis.port);
    let mut admin = redis.connect_to(&url(":secret@"));
    redis::cmd("SET").arg("a").arg("in 3").exec(&mut admin).expect("SET works");
    redis::cmd("ACL")
        .arg(&["SETUSER", "reader", "on", ">word", "~*", "+get", "+select"])
        .exec(&mut admin)
        .expect("ACL");
    for variables in [&[("REDIS_PASSWORD", "secret")][..], &[("REDIS_USERNAME", "reader"), ("REDIS_PASSWORD", "word")]]
    {
        let proxy = Proxy::start(&redis, &[variables, &[("REDIS_DB", "3")]].concat());
        assert_eq!(proxy.get("/raw/a").text(), "in 3");
        let proxy = Proxy::start(&redis, variables);
        assert_eq!(proxy.get("/raw/a").status, 404);
    }
    for (variables, hint) in [
        (&[][..], "NOAUTH"),
        (&[("REDIS_PASSWORD", "wrong")], "REDIS_PASSWORD"),
        (&[("REDIS_PASSWORD", "secret"), ("REDIS_DB", "99")], "REDIS_DB"),
    ] {
        let proxy = Proxy::start(&redis, variables);
        let refused = proxy.get("/raw/a");
        assert_eq!(refused.status, 502, "{variables:?}: {refused:?}");
        assert!(proxy.log().contains(hint) || refused.text().contains(hint), "{variables:?}: {}", proxy.log());
        assert!(!proxy.log().contains("secret") && !refused.text().contains("secret"), "the password is shown");
    }
}

#[test]
fn a_name_that_leads_nowhere_is_told_with_what_to_set() {
    let proxy = Proxy::start_before(6379, &[("REDIS_HOST", "no-such-name.invalid")]);
    let response = proxy.get("/key/a");
    assert!([503, 504].contains(&response.status), "{response:?}");
    until("the log tells", || proxy.log().contains("REDIS_HOST=127.0.0.1").then_some(()));
}

/// What the real one cannot be made to show: replies that are no replies, or stop half way.
#[test]
fn nonsense_from_redis_is_a_502_and_ends_the_connection() {
    // Every connection gets the next script, however many commands it sends; the last one for all that follow.
    let next = AtomicUsize::new(0);
    let (port, _) = fake_redis(move |stream| {
        let replies = [
            "?what\r\n",
            ":5\r\n",
            "+OK\r\n+QUEUED\r\n+QUEUED\r\n*1\r\n$1\r\nv\r\n",
            // A transaction that does not end: what follows would be taken for a part of it.
            "+OK\r\n+QUEUED\r\n+QUEUED\r\n-ERR not now\r\n+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n$1\r\nv\r\n:-1\r\n",
            "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n$10\r\nhalf",
        ];
        let reply = replies.get(next.fetch_add(1, Ordering::Relaxed));
        let script = reply.map_or(String::new(), |reply| format!("+OK\r\n+OK\r\n{reply}"));
        stream.write_all(script.as_bytes()).expect("the proxy reads");
        stream.shutdown(std::net::Shutdown::Write).expect("it can be closed");
        // What the proxy still sends is read, so that nothing is reset before it has read the script.
        let _ = std::io::copy(stream, &mut std::io::sink());
    });
    let proxy = Proxy::start_before(port, &[("REDIS_CONNECTIONS", "1")]);
    let statuses: Vec<u16> = (0..6).map(|number| proxy.get(&format!("/raw/{number}")).status).collect();
    assert_eq!(statuses, [502, 502, 502, 502, 503, 503]);
}

/// A Redis that refuses is not tried again for every request.
#[test]
fn reconnecting_backs_off() {
    let (port, attempts) = fake_redis(|_| ());
    let proxy = Proxy::start_before(port, &[]);
    let mut client = proxy.connect();
    for number in 0..300 {
        assert_eq!(client.get(&format!("/raw/{number}")).status, 503);
    }
    let attempts = attempts.load(Ordering::Relaxed);
    assert!((1..100).contains(&attempts), "{attempts} attempts for 300 requests");
}

/// A batch has one deadline: replies that each come in time but together too late end the connection.
#[test]
fn a_round_trip_is_bounded_as_a_whole() {
    let taken = Arc::new(AtomicUsize::new(0));
    let replies = Arc::clone(&taken);
    let (port, _) = fake_redis(move |stream| {
        // The handshake, two commands, is answered at once; then each key takes a third of the time there is.
        stream.write_all(b"+OK\r\n+OK\r\n").expect("the proxy reads");
        let mut received = [0; 8];
        while !received.windows(3).any(|word| word == b"GET") {
            stream.read_exact(&mut received[..1]).expect("the proxy asks");
            received.rotate_left(1);
        }
        std::thread::sleep(Duration::from_millis(200));
        while stream.write_all(b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n$1\r\nv\r\n:-1\r\n").is_ok() {
            replies.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let proxy = Proxy::start_before(port, &[("REDIS_TIMEOUT", "600"), ("REDIS_CONNECTIONS", "1")]);
    let mut client = proxy.connect();
    client.send((0..100).map(|number| format!("GET /raw/{number} HTTP/1.1\r\nHost: x\r\n\r\n")).collect::<String>());
    let statuses: Vec<u16> = (0..100).map(|_| client.response().status).collect();
    assert_eq!(statuses[99], 504, "{statuses:?}");
    until("the connection is given up", || proxy.log().contains("lost a connection").then_some(()));
    let taken = taken.load(Ordering::Relaxed);
    assert!(taken < 20, "{taken} replies were waited for");
}

/// Rule 7: a full queue is told at once, and every waiting client is answered once.
#[test]
fn a_full_queue_answers_at_once() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "60000")]);
    assert_eq!(proxy.get("/raw/a").status, 404);
    redis.freeze();
    let per_client = segment_redis_proxy::connection::MAX_OPEN_REPLIES;
    let capacity = segment_redis_proxy::backend::QUEUE_LIMIT + 4 * segment_redis_proxy::backend::MAX_BATCH;
    let mut clients: Vec<Http> = (0..capacity / per_client + 10).map(|_| proxy.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        let all: String =
            (0..per_client).map(|request| format!("GET /raw/{number}-{request} HTTP/1.1\r\nHost: x\r\n\r\n")).collect();
        client.send(all);
    }
    let refused = until("somebody is refused", || clients.iter_mut().position(Http::has_input));
    let response = clients[refused].response();
    assert_eq!((response.status, response.field("retry-after")), (503, "1"), "{response:?}");
    assert!(response.text().contains("too many keys"), "{response:?}");
    redis.thaw();
    let mut statuses = std::collections::BTreeMap::from([(503, 1)]);
    for (number, client) in clients.iter_mut().enumerate() {
        for _ in 0..per_client - usize::from(number == refused) {
            *statuses.entry(client.response().status).or_insert(0) += 1;
        }
        assert!(!client.has_input());
    }
    assert_eq!(statuses.keys().copied().collect::<Vec<_>>(), [404, 503], "{statuses:?}");
    assert!(statuses[&404] >= segment_redis_proxy::backend::QUEUE_LIMIT, "{statuses:?}");
}

/// The crate keeps a buffer as long as the longest reply of a connection; so such a connection is replaced.
#[test]
fn a_connection_that_has_brought_a_long_value_is_replaced() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_CONNECTIONS", "1"), ("CACHE_TTL", "0.001")]);
    redis.set("short", "v");
    redis.run(&["SETRANGE", "long", "1999999", "x"]);
    let addresses = || {
        let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut redis.connect()).expect("CLIENT LIST works");
        let lines = list.lines().filter(|line| line.contains("cmd=exec"));
        lines.filter_map(|line| line.split(' ').nth(1).map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(proxy.get("/raw/short").status, 200);
    let first = addresses();
    assert_eq!(first.len(), 1, "{first:?}");
    assert_eq!(proxy.get("/raw/short").status, 200);
    assert_eq!(addresses(), first, "a connection was replaced for nothing");
    assert_eq!(proxy.get("/raw/long").body.len(), 2_000_000);
    assert_eq!(proxy.get("/raw/short").status, 200);
    assert!(!addresses().iter().any(|address| first.contains(address)));
}
