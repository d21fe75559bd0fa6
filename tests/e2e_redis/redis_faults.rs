//! Tests of the connections to Redis: how the proxy keeps, replaces and abandons them.
//! `fault_matrix.rs` has the errors that clients get while Redis is unavailable.

use crate::common::admin::read_metric;
use crate::common::resolver::Resolver;
use crate::common::{HttpClient, Proxy, Redis, start_fake_redis, wait_for};
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Connections that Redis closes while idle are replaced without an error for any client.
#[test]
fn idle_disconnects_cause_no_errors() {
    let mut redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_CONNECTIONS", "1")]);
    // This holds for a connection without any request, too.
    wait_for("the proxy is connected", || proxy.log().contains("] connected to Redis").then_some(()));
    redis.kill();
    redis.restart();
    redis.set("a", 1);
    assert_eq!(proxy.get("/raw/a").status, 200, "a client saw the first restart");
    redis.kill();
    redis.restart();
    redis.set("b", 2);
    assert_eq!(proxy.get("/raw/b").text(), "2", "a client saw the restart");
    redis.run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    redis.set("c", 3);
    assert_eq!(proxy.get("/raw/c").text(), "3", "a client saw the closed connection");
}

/// A fetcher that cannot connect leaves its jobs to the connected ones.
#[test]
fn one_allowed_connection_serves_all_keys() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "0.001"), ("REDIS_CONNECTIONS", "4")]);
    redis.set("a", 1);
    wait_for("a fetcher is connected", || (proxy.get("/raw/a").status == 200).then_some(()));
    let mut admin = redis.connect();
    // The connections of the proxy and of this test exist. Redis accepts no further ones.
    let info: String = redis::cmd("INFO").arg("clients").query(&mut admin).expect("INFO works");
    let clients = info.lines().find_map(|line| line.strip_prefix("connected_clients:")).expect("a count");
    redis::cmd("CONFIG").arg("SET").arg("maxclients").arg(clients).exec(&mut admin).expect("CONFIG works");
    let proxy = {
        drop(proxy);
        Proxy::start(&redis, &[("CACHE_TTL", "0.001"), ("REDIS_CONNECTIONS", "4")])
    };
    wait_for("a fetcher is connected", || (proxy.get("/raw/a").status == 200).then_some(()));
    let mut clients: Vec<HttpClient> = (0..8).map(|_| proxy.connect()).collect();
    let mut failed = 0;
    for round in 0..200 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.send_get(&format!("/raw/missing{}", round * 8 + number));
        }
        failed += clients.iter_mut().map(HttpClient::read_response).filter(|response| response.status != 404).count();
    }
    // Fetchers without a connection take no jobs while another fetcher has one.
    assert_eq!(failed, 0, "of 1600 requests failed in fetchers without a connection");
}

/// A connection is lost and cannot be replaced: its keys are read over another connection.
#[test]
fn lost_connection_requeues_its_keys() {
    let redis = Redis::start();
    redis.set("a", 1);
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "0.001"), ("REDIS_CONNECTIONS", "2"), ("REDIS_TIMEOUT", "60000")]);
    let mut admin = redis.connect();
    // Returns the ids of all connections except the one of this test.
    let mut ids = || {
        let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut admin).expect("CLIENT LIST works");
        let others = list.lines().filter(|line| !line.contains("cmd=client|list"));
        others.map(|line| line.split(' ').next().expect("an id").replace("id=", "")).collect::<Vec<_>>()
    };
    let mut clients: Vec<HttpClient> = (0..2).map(|_| proxy.connect()).collect();
    let ids = wait_for("both fetchers are connected", || {
        // While one fetcher waits, the other one is needed.
        redis.freeze();
        clients[0].send_get("/raw/b");
        std::thread::sleep(Duration::from_millis(20));
        clients[1].send_get("/raw/c");
        std::thread::sleep(Duration::from_millis(20));
        redis.thaw();
        clients.iter_mut().for_each(|client| assert_eq!(client.read_response().status, 404));
        // The proxy's own count, since Redis counts a connection that is still authenticating.
        (read_metric(&proxy, "segment_redis_connections") == 2.0).then(&mut ids)
    });
    redis::cmd("CLIENT").arg("KILL").arg("ID").arg(&ids[0]).exec(&mut admin).expect("CLIENT KILL works");
    // One connection of the proxy and the one of this test.
    redis::cmd("CONFIG").arg("SET").arg("maxclients").arg(2).exec(&mut admin).expect("CONFIG works");
    wait_for("the disconnected fetcher has tried to connect", || {
        (0..50).for_each(|_| assert_eq!(clients[0].get("/raw/a").text(), "1"));
        proxy.log().contains("cannot open another connection to Redis").then_some(())
    });
    assert!(!proxy.log().contains("cannot connect"), "{}", proxy.log());
}

/// The proxy authenticates and selects its database, and reports errors of either without the
/// password.
#[test]
fn auth_and_database_errors_are_reported() {
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
        (&[("REDIS_PASSWORD", "wrong")], "check the user and the password"),
        (&[("REDIS_PASSWORD", "secret"), ("REDIS_DB", "99")], "REDIS_DB"),
    ] {
        let proxy = Proxy::start(&redis, variables);
        let refused = proxy.get("/raw/a");
        assert_eq!(refused.status, 502, "{variables:?}: {refused:?}");
        wait_for("the hint is visible", || (proxy.log().contains(hint) || refused.text().contains(hint)).then_some(()));
        assert!(!proxy.log().contains("secret") && !refused.text().contains("secret"), "the password is shown");
    }
}

/// A lookup slower than `REDIS_TIMEOUT` still ends in a connection.
///
/// A dead name server makes every lookup slow.
#[test]
fn slow_dns_lookup_still_connects() {
    let redis = Redis::start();
    redis.set("a", 1);
    let resolver = Resolver::start("127.0.0.1");
    resolver.set_result(1000, "127.0.0.1");
    let proxy = Proxy::start(&redis, &[&resolver.env()[..], &[("REDIS_TIMEOUT", "300")]].concat());
    wait_for("the proxy is connected", || (proxy.get("/raw/a").text() == "1").then_some(()));
}

/// If the first of several addresses is dead, each fetcher waits for it once, not for every
/// connection.
#[test]
fn last_good_address_is_tried_first() {
    let redis = Redis::start();
    redis.set("a", 1);
    // On the same port of another local address: this server accepts connections and never replies.
    let dead = std::net::TcpListener::bind(("127.0.0.2", redis.port)).expect("the port is free at that address");
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&attempts);
    std::thread::spawn(move || {
        let mut streams = Vec::new();
        for stream in dead.incoming() {
            counted.fetch_add(1, Ordering::Relaxed);
            streams.push(stream);
        }
    });
    let resolver = Resolver::start("127.0.0.2,127.0.0.1");
    let variables = [("REDIS_TIMEOUT", "300"), ("REDIS_CONNECTIONS", "1"), ("CACHE_TTL", "0.001")];
    let proxy = Proxy::start(&redis, &[&resolver.env()[..], &variables].concat());
    wait_for("the proxy is connected", || (proxy.get("/raw/a").text() == "1").then_some(()));
    assert_eq!(attempts.load(Ordering::Relaxed), 1);
    for _ in 0..5 {
        redis.run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        wait_for("the proxy is connected again", || (proxy.get("/raw/a").text() == "1").then_some(()));
    }
    assert_eq!(attempts.load(Ordering::Relaxed), 1, "the dead address was tried again");
}

/// Replies that are malformed or incomplete fail the request and close the connection.
///
/// A real Redis cannot be made to send them.
#[test]
fn malformed_reply_fails_and_disconnects() {
    // Each connection sends the next script, whatever commands it gets. Connections after the last
    // script are closed at once.
    let next = AtomicUsize::new(0);
    let (port, connections) = start_fake_redis(move |stream| {
        let replies = [
            "?what\r\n",
            ":5\r\n",
            // A TTL that is not a number, and a number instead of a value.
            "$1\r\nv\r\n+OK\r\n",
            "*1\r\n$1\r\nv\r\n:-1\r\n",
            "$10\r\nhalf",
        ];
        let reply = replies.get(next.fetch_add(1, Ordering::Relaxed));
        let script = reply.map_or(String::new(), |reply| format!("+OK\r\n+OK\r\n+PONG\r\n{reply}"));
        stream.write_all(script.as_bytes()).expect("the proxy reads");
        stream.shutdown(std::net::Shutdown::Write).expect("the socket can be closed");
        // Reads the remaining input, so that no reset discards the script before the proxy has read
        // it.
        let _ = std::io::copy(stream, &mut std::io::sink());
    });
    let proxy = Proxy::start_on_redis_port(port, &[("REDIS_CONNECTIONS", "1")]);
    let statuses = [1, 2, 3, 4, 5, 6].map(|number| {
        // After each script the next connection attempt backs off.
        wait_for("the next connection exists", || {
            let status = proxy.get("/raw/a").status;
            (connections.load(Ordering::Relaxed) >= number).then_some(status)
        })
    });
    assert_eq!(statuses, [502, 502, 502, 502, 503, 503]);
    let log = proxy.log();
    assert!(log.lines().all(|line| line.starts_with('[')), "an entry takes several lines: {log}");
}

/// A Redis that closes connections is not contacted again for every request.
#[test]
fn refused_connection_backs_off() {
    let (port, attempts) = start_fake_redis(|_| ());
    let proxy = Proxy::start_on_redis_port(port, &[]);
    let mut client = proxy.connect();
    for number in 0..300 {
        assert_eq!(client.get(&format!("/raw/{number}")).status, 503);
    }
    let attempts = attempts.load(Ordering::Relaxed);
    assert!((1..100).contains(&attempts), "{attempts} attempts for 300 requests");
}

/// A server that sends garbage is contacted no more often than one that refuses, and logged as
/// rarely.
#[test]
fn garbage_reply_backs_off() {
    let (port, attempts) = start_fake_redis(|stream| {
        stream.write_all(b"+OK\r\n+OK\r\n+PONG\r\n?what\r\n").expect("the proxy reads");
        let _ = std::io::copy(stream, &mut std::io::sink());
    });
    let proxy = Proxy::start_on_redis_port(port, &[]);
    let mut client = proxy.connect();
    for number in 0..300 {
        assert_eq!(client.get(&format!("/raw/{number}")).status, 502);
    }
    let attempts = attempts.load(Ordering::Relaxed);
    assert!((1..100).contains(&attempts), "{attempts} attempts for 300 requests");
    assert!(proxy.log().matches("lost a connection").count() < 100, "the log repeats itself");
}

/// A batch has one deadline: replies that are each in time and together too late end the
/// connection.
#[test]
fn slow_batch_ends_at_deadline() {
    let replies = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&replies);
    let (port, _) = start_fake_redis(move |stream| {
        // The handshake of three commands is answered at once. Then each key takes a third of the
        // timeout.
        stream.write_all(b"+OK\r\n+OK\r\n+PONG\r\n").expect("the proxy reads");
        let mut received = [0; 8];
        while !received.windows(3).any(|word| word == b"GET") {
            stream.read_exact(&mut received[..1]).expect("the proxy sends commands");
            received.rotate_left(1);
        }
        std::thread::sleep(Duration::from_millis(200));
        while stream.write_all(b"$1\r\nv\r\n:-1\r\n").is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let proxy = Proxy::start_on_redis_port(port, &[("REDIS_TIMEOUT", "600"), ("REDIS_CONNECTIONS", "1")]);
    let mut client = proxy.connect();
    client.send((0..100).map(|number| format!("GET /raw/{number} HTTP/1.1\r\nHost: x\r\n\r\n")).collect::<String>());
    let statuses: Vec<u16> = (0..100).map(|_| client.read_response().status).collect();
    assert_eq!(statuses[99], 504, "{statuses:?}");
    wait_for("the connection is closed", || proxy.log().contains("lost a connection").then_some(()));
    let replies = replies.load(Ordering::Relaxed);
    assert!(replies < 20, "the fetcher waited for {replies} replies");
}

/// A full queue fails at once, and every waiting client gets one reply (job-completes-once).
#[test]
fn full_queue_fails_at_once() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "60000")]);
    assert_eq!(proxy.get("/raw/a").status, 404);
    redis.freeze();
    let per_client = segment_redis_proxy::connection::MAX_PENDING_REPLIES;
    let capacity = segment_redis_proxy::backend::QUEUE_LIMIT + 4 * segment_redis_proxy::backend::MAX_BATCH;
    let mut clients: Vec<HttpClient> = (0..capacity / per_client + 10).map(|_| proxy.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        let requests: String =
            (0..per_client).map(|request| format!("GET /raw/{number}-{request} HTTP/1.1\r\nHost: x\r\n\r\n")).collect();
        client.send(requests);
    }
    let refused = wait_for("a request is refused", || clients.iter_mut().position(HttpClient::has_input));
    let response = clients[refused].read_response();
    assert_eq!((response.status, response.header("retry-after")), (503, "1"), "{response:?}");
    assert!(response.text().contains("too many keys"), "{response:?}");
    redis.thaw();
    let mut statuses = std::collections::BTreeMap::from([(503, 1)]);
    for (number, client) in clients.iter_mut().enumerate() {
        for _ in 0..per_client - usize::from(number == refused) {
            *statuses.entry(client.read_response().status).or_insert(0) += 1;
        }
        assert!(!client.has_input());
    }
    assert_eq!(statuses.keys().copied().collect::<Vec<_>>(), [404, 503], "{statuses:?}");
    assert!(statuses[&404] >= segment_redis_proxy::backend::QUEUE_LIMIT, "{statuses:?}");
}

/// A connection stays in use after a long value. Only the buffer of the value is freed.
#[test]
fn connection_is_kept_after_long_value() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_CONNECTIONS", "1"), ("CACHE_TTL", "0.001")]);
    redis.set("short", "v");
    redis.run(&["SETRANGE", "long", "1999999", "x"]);
    let addresses = || {
        let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut redis.connect()).expect("CLIENT LIST works");
        let lines = list.lines().filter(|line| line.contains("cmd=pttl"));
        lines.filter_map(|line| line.split(' ').nth(1).map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(proxy.get("/raw/short").status, 200);
    let first = addresses();
    assert_eq!(first.len(), 1, "{first:?}");
    assert_eq!(proxy.get("/raw/short").status, 200);
    assert_eq!(addresses(), first, "a connection was replaced without need");
    assert_eq!(proxy.get("/raw/long").body.len(), 2_000_000);
    assert_eq!(proxy.get("/raw/short").status, 200);
    assert_eq!(addresses(), first, "a long value cost a connection");
}
