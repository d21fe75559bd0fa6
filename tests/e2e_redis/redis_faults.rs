//! How connections to Redis are kept, replaced and given up. What clients see of a Redis that is away is in `fault_matrix.rs`.

use crate::common::admin::read_metric;
use crate::common::resolver::Resolver;
use crate::common::{HttpClient, Proxy, Redis, start_fake_redis, wait_for};
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What Redis closes while nobody asks is replaced before anybody notices.
#[test]
fn connections_closed_while_idle_are_replaced_unseen() {
    let mut redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_CONNECTIONS", "1")]);
    // Before it was ever used, too.
    wait_for("it has connected", || proxy.log().contains("] connected to Redis").then_some(()));
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

/// A helper that cannot connect leaves the jobs to those that can.
#[test]
fn one_connection_is_enough_where_redis_allows_no_more() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "0.001"), ("REDIS_CONNECTIONS", "4")]);
    redis.set("a", 1);
    wait_for("a helper has connected", || (proxy.get("/raw/a").status == 200).then_some(()));
    let mut admin = redis.connect();
    // The proxy's and this one are there; no further ones are let in.
    let info: String = redis::cmd("INFO").arg("clients").query(&mut admin).expect("INFO works");
    let clients = info.lines().find_map(|line| line.strip_prefix("connected_clients:")).expect("a count");
    redis::cmd("CONFIG").arg("SET").arg("maxclients").arg(clients).exec(&mut admin).expect("CONFIG works");
    let proxy = {
        drop(proxy);
        Proxy::start(&redis, &[("CACHE_TTL", "0.001"), ("REDIS_CONNECTIONS", "4")])
    };
    wait_for("a helper has connected", || (proxy.get("/raw/a").status == 200).then_some(()));
    let mut clients: Vec<HttpClient> = (0..8).map(|_| proxy.connect()).collect();
    let mut failed = 0;
    for round in 0..200 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.send_get(&format!("/raw/missing{}", round * 8 + number));
        }
        failed += clients.iter_mut().map(HttpClient::read_response).filter(|response| response.status != 404).count();
    }
    // Helpers without a connection take nothing as long as one has one.
    assert_eq!(failed, 0, "of 1600 were failed by helpers without a connection");
}

/// A connection is lost that cannot be replaced: the keys that were to be read over it are read over another.
#[test]
fn what_one_helper_cannot_read_another_does() {
    let redis = Redis::start();
    redis.set("a", 1);
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "0.001"), ("REDIS_CONNECTIONS", "2"), ("REDIS_TIMEOUT", "60000")]);
    let mut admin = redis.connect();
    // All connections but the one that asks for them.
    let mut ids = || {
        let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut admin).expect("CLIENT LIST works");
        let others = list.lines().filter(|line| !line.contains("cmd=client|list"));
        others.map(|line| line.split(' ').next().expect("an id").replace("id=", "")).collect::<Vec<_>>()
    };
    let mut clients: Vec<HttpClient> = (0..2).map(|_| proxy.connect()).collect();
    let ids = wait_for("both helpers are connected", || {
        // With one of them held up, the other one is needed.
        redis.freeze();
        clients[0].send_get("/raw/b");
        std::thread::sleep(Duration::from_millis(20));
        clients[1].send_get("/raw/c");
        std::thread::sleep(Duration::from_millis(20));
        redis.thaw();
        clients.iter_mut().for_each(|client| assert_eq!(client.read_response().status, 404));
        // By the proxy's own count: Redis counts one that is still logging in.
        (read_metric(&proxy, "segment_redis_connections") == 2.0).then(&mut ids)
    });
    redis::cmd("CLIENT").arg("KILL").arg("ID").arg(&ids[0]).exec(&mut admin).expect("CLIENT KILL works");
    // One of the proxy's, and this one.
    redis::cmd("CONFIG").arg("SET").arg("maxclients").arg(2).exec(&mut admin).expect("CONFIG works");
    wait_for("the one without a connection has tried", || {
        (0..50).for_each(|_| assert_eq!(clients[0].get("/raw/a").text(), "1"));
        proxy.log().contains("cannot open another connection to Redis").then_some(())
    });
    assert!(!proxy.log().contains("cannot connect"), "{}", proxy.log());
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
        wait_for("the hint is told", || (proxy.log().contains(hint) || refused.text().contains(hint)).then_some(()));
        assert!(!proxy.log().contains("secret") && !refused.text().contains("secret"), "the password is shown");
    }
}

/// A dead name server makes every lookup slow. That is no reason never to connect.
#[test]
fn a_lookup_may_take_longer_than_redis_timeout() {
    let redis = Redis::start();
    redis.set("a", 1);
    let names = Resolver::start("127.0.0.1");
    names.set_result(1000, "127.0.0.1");
    let proxy = Proxy::start(&redis, &[&names.env()[..], &[("REDIS_TIMEOUT", "300")]].concat());
    wait_for("it has connected", || (proxy.get("/raw/a").text() == "1").then_some(()));
}

/// A name with several addresses of which one is dead, and the first: that is waited for once by each helper, not each time.
#[test]
fn an_address_that_answered_is_tried_first() {
    let redis = Redis::start();
    redis.set("a", 1);
    // On the same port of another address of this machine: it takes connections, and never answers.
    let dead = std::net::TcpListener::bind(("127.0.0.2", redis.port)).expect("it is free there");
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&attempts);
    std::thread::spawn(move || {
        let mut taken = Vec::new();
        for stream in dead.incoming() {
            counted.fetch_add(1, Ordering::Relaxed);
            taken.push(stream);
        }
    });
    let names = Resolver::start("127.0.0.2,127.0.0.1");
    let variables = [("REDIS_TIMEOUT", "300"), ("REDIS_CONNECTIONS", "1"), ("CACHE_TTL", "0.001")];
    let proxy = Proxy::start(&redis, &[&names.env()[..], &variables].concat());
    wait_for("it has connected", || (proxy.get("/raw/a").text() == "1").then_some(()));
    assert_eq!(attempts.load(Ordering::Relaxed), 1);
    for _ in 0..5 {
        redis.run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        wait_for("it has connected again", || (proxy.get("/raw/a").text() == "1").then_some(()));
    }
    assert_eq!(attempts.load(Ordering::Relaxed), 1, "the dead one is tried again and again");
}

/// What the real one cannot be made to show: replies that are no replies, or stop half way.
#[test]
fn nonsense_from_redis_is_a_502_and_ends_the_connection() {
    // Every connection gets the next script, however many commands it sends; the last one for all that follow.
    let next = AtomicUsize::new(0);
    let (port, connections) = start_fake_redis(move |stream| {
        let replies = [
            "?what\r\n",
            ":5\r\n",
            // A ttl that is no number, and no bytes where the value belongs.
            "$1\r\nv\r\n+OK\r\n",
            "*1\r\n$1\r\nv\r\n:-1\r\n",
            "$10\r\nhalf",
        ];
        let reply = replies.get(next.fetch_add(1, Ordering::Relaxed));
        let script = reply.map_or(String::new(), |reply| format!("+OK\r\n+OK\r\n+PONG\r\n{reply}"));
        stream.write_all(script.as_bytes()).expect("the proxy reads");
        stream.shutdown(std::net::Shutdown::Write).expect("it can be closed");
        // What the proxy still sends is read, so that nothing is reset before it has read the script.
        let _ = std::io::copy(stream, &mut std::io::sink());
    });
    let proxy = Proxy::start_on_redis_port(port, &[("REDIS_CONNECTIONS", "1")]);
    let statuses = [1, 2, 3, 4, 5, 6].map(|number| {
        // After each of them the next connection waits a while.
        wait_for("there is a next connection", || {
            let status = proxy.get("/raw/a").status;
            (connections.load(Ordering::Relaxed) >= number).then_some(status)
        })
    });
    assert_eq!(statuses, [502, 502, 502, 502, 503, 503]);
    let log = proxy.log();
    assert!(log.lines().all(|line| line.starts_with('[')), "an entry takes several lines: {log}");
}

/// A Redis that refuses is not tried again for every request.
#[test]
fn reconnecting_backs_off() {
    let (port, attempts) = start_fake_redis(|_| ());
    let proxy = Proxy::start_on_redis_port(port, &[]);
    let mut client = proxy.connect();
    for number in 0..300 {
        assert_eq!(client.get(&format!("/raw/{number}")).status, 503);
    }
    let attempts = attempts.load(Ordering::Relaxed);
    assert!((1..100).contains(&attempts), "{attempts} attempts for 300 requests");
}

/// What takes connections and answers nonsense is no better than what takes none, and the log tells of it as seldom.
#[test]
fn reconnecting_to_nonsense_backs_off() {
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

/// A batch has one deadline: replies that each come in time but together too late end the connection.
#[test]
fn a_round_trip_is_bounded_as_a_whole() {
    let taken = Arc::new(AtomicUsize::new(0));
    let replies = Arc::clone(&taken);
    let (port, _) = start_fake_redis(move |stream| {
        // The handshake, three commands, is answered at once; then each key takes a third of the time there is.
        stream.write_all(b"+OK\r\n+OK\r\n+PONG\r\n").expect("the proxy reads");
        let mut received = [0; 8];
        while !received.windows(3).any(|word| word == b"GET") {
            stream.read_exact(&mut received[..1]).expect("the proxy asks");
            received.rotate_left(1);
        }
        std::thread::sleep(Duration::from_millis(200));
        while stream.write_all(b"$1\r\nv\r\n:-1\r\n").is_ok() {
            replies.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let proxy = Proxy::start_on_redis_port(port, &[("REDIS_TIMEOUT", "600"), ("REDIS_CONNECTIONS", "1")]);
    let mut client = proxy.connect();
    client.send((0..100).map(|number| format!("GET /raw/{number} HTTP/1.1\r\nHost: x\r\n\r\n")).collect::<String>());
    let statuses: Vec<u16> = (0..100).map(|_| client.read_response().status).collect();
    assert_eq!(statuses[99], 504, "{statuses:?}");
    wait_for("the connection is given up", || proxy.log().contains("lost a connection").then_some(()));
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
    let per_client = segment_redis_proxy::connection::MAX_PENDING_REPLIES;
    let capacity = segment_redis_proxy::backend::QUEUE_LIMIT + 4 * segment_redis_proxy::backend::MAX_BATCH;
    let mut clients: Vec<HttpClient> = (0..capacity / per_client + 10).map(|_| proxy.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        let all: String =
            (0..per_client).map(|request| format!("GET /raw/{number}-{request} HTTP/1.1\r\nHost: x\r\n\r\n")).collect();
        client.send(all);
    }
    let refused = wait_for("somebody is refused", || clients.iter_mut().position(HttpClient::has_input));
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

/// The crate keeps a buffer as long as the longest reply of a connection; so such a connection is replaced.
#[test]
fn a_connection_that_has_brought_a_long_value_is_replaced() {
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
    assert_eq!(addresses(), first, "a connection was replaced for nothing");
    assert_eq!(proxy.get("/raw/long").body.len(), 2_000_000);
    assert_eq!(proxy.get("/raw/short").status, 200);
    assert!(!addresses().iter().any(|address| first.contains(address)));
}
