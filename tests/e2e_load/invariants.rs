//! The design's rules that need the whole program to be seen: each test fails when its rule is broken.

use crate::common::{HttpClient, Proxy, Redis, wait_for};
use std::collections::HashMap;
use std::io::Read;
use std::time::Duration;

/// Rule 5: a completion for a client that is gone does not answer the one that has its place now.
#[test]
fn a_late_completion_does_not_answer_a_new_client_in_the_same_place() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "60000"), ("REDIS_CONNECTIONS", "1")]);
    redis.set("first", "for the first");
    redis.set("second", "for the second");
    assert_eq!(proxy.get("/raw/other").status, 404);
    redis.freeze();
    let mut first = proxy.connect();
    first.send_get("/raw/first");
    // The first client's request has been taken when a later one's of another client is answered.
    assert_eq!(proxy.get("/nothing").status, 404);
    // A reset, not a polite end: whoever closes politely gets its answer, so that its place is kept for it.
    let with_first = proxy.wait_for_stable_descriptors();
    let socket = socket2::SockRef::from(first.stream().get_ref());
    socket.set_linger(Some(Duration::ZERO)).expect("an option can be set");
    drop(first);
    wait_for("the first is gone", || (proxy.count_descriptors() < with_first).then_some(()));
    // The next client gets its place.
    let mut second = proxy.connect();
    second.send_get("/raw/second");
    assert_eq!(proxy.get("/nothing").status, 404);
    redis.thaw();
    assert_eq!(second.read_response().text(), "for the second");
    let stored = second.get("/raw/first");
    assert_eq!(stored.text(), "for the first");
    assert!(stored.header("cache-status").contains("hit"), "the value that came late was thrown away");
}

/// Rule 6: hits behind a slow miss wait for it; nothing is sent out of order.
#[test]
fn replies_leave_in_request_order_with_a_slow_miss_first() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "60000")]);
    redis.set("slow", "slow");
    redis.set("fast", "fast");
    assert_eq!(proxy.get("/raw/fast").text(), "fast");
    redis.freeze();
    let mut client = proxy.connect();
    for path in ["/raw/slow", "/raw/fast", "/nothing", "/raw/slow", "/raw/fast"] {
        client.send_get(path);
    }
    for _ in 0..20 {
        assert_eq!(proxy.get("/raw/fast").text(), "fast");
    }
    assert!(!client.has_input(), "something overtook the miss");
    redis.thaw();
    for (status, text) in [(200, "slow"), (200, "fast"), (404, ""), (200, "slow"), (200, "fast")] {
        let response = client.read_response();
        assert_eq!(response.status, status);
        assert!(status == 404 || response.text() == text, "{response:?}");
    }
}

/// Rule 6, the bound: a client with too many open replies is not read, and goes on by itself.
#[test]
fn a_client_at_the_bound_of_open_replies_goes_on_by_itself() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "60000"), ("REDIS_CONNECTIONS", "1")]);
    assert_eq!(proxy.get("/raw/other").status, 404);
    redis.freeze();
    let count = segment_redis_proxy::connection::MAX_PENDING_REPLIES * 5 + 3;
    let mut client = proxy.connect();
    client.send((0..count).map(|number| format!("GET /raw/n{number} HTTP/1.1\r\nHost: x\r\n\r\n")).collect::<String>());
    assert_eq!(proxy.get("/nothing").status, 404);
    redis.thaw();
    for _ in 0..count {
        assert_eq!(client.read_response().status, 404);
    }
}

/// A fetch is shared by all who ask for its key while it is under way.
#[test]
fn a_thousand_concurrent_misses_of_one_key_are_one_get() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "60000")]);
    redis.set("wanted", "by all");
    redis.freeze();
    let mut clients: Vec<HttpClient> = (0..1000).map(|_| proxy.connect()).collect();
    clients.iter_mut().for_each(|client| client.send_get("/raw/wanted"));
    assert_eq!(proxy.get("/nothing").status, 404);
    redis.thaw();
    let mut statuses: HashMap<String, usize> = HashMap::new();
    for client in &mut clients {
        let response = client.read_response();
        assert_eq!(response.text(), "by all");
        *statuses.entry(response.header("cache-status").to_owned()).or_default() += 1;
    }
    assert_eq!(redis.count_reads(), 1);
    assert_eq!(statuses.get("segment-redis-proxy; fwd=miss; stored; ttl=15"), Some(&1), "{statuses:?}");
    assert_eq!(statuses.get("segment-redis-proxy; fwd=miss; collapsed; stored; ttl=15"), Some(&999), "{statuses:?}");
}

/// Rule 2: with nobody asking, the loop wakes by itself for what expires, and the memory goes back.
#[test]
fn an_idle_proxy_gives_back_the_memory_of_what_expired() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "3"), ("CACHE_SIZE", "10000")]);
    let value = vec![b'x'; 15_000];
    let mut pairs = redis::cmd("MSET");
    (0..4000).for_each(|number| {
        pairs.arg(format!("k{number}")).arg(&value);
    });
    pairs.exec(&mut redis.connect()).expect("MSET works");
    let empty = proxy.memory_kib("VmRSS");
    let mut client = proxy.connect();
    for number in 0..4000 {
        assert_eq!(client.get(&format!("/raw/k{number}")).body.len(), value.len());
    }
    // The earliest may have expired by now on a slow machine; the peak tells what was held.
    assert!(proxy.memory_kib("VmHWM") > empty + 40_000, "the values were not held");
    wait_for("the memory goes back", || (proxy.memory_kib("VmRSS") < empty + 20_000).then_some(()));
    let ticks = proxy.cpu_ticks();
    std::thread::sleep(Duration::from_millis(500));
    assert!(proxy.cpu_ticks() - ticks < 25, "an idle proxy is busy");
}

/// Rules 11 and 12: what idle clients cost, and what one costs that asks and never reads.
#[test]
fn clients_that_do_nothing_or_never_read_cost_little() {
    let redis = Redis::start();
    redis.set("a", "x".repeat(10_000));
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
    assert_eq!(proxy.get("/raw/a").status, 200);
    let before = proxy.memory_kib("VmRSS");
    let mut idle: Vec<HttpClient> = (0..700).map(|_| proxy.connect()).collect();
    for client in &mut idle {
        assert_eq!(client.get("/raw/a").status, 200);
        // A miss behind a hit, and a hit behind a miss: both went through buffers of the client's own.
        client.send_get("/raw/missing");
        client.send_get("/raw/a");
        assert_eq!(client.read_response().status, 404);
        assert_eq!(client.read_response().body.len(), 10_000);
    }
    let kib = wait_for("idle clients cost little", || {
        let grown = proxy.memory_kib("VmRSS").saturating_sub(before);
        (grown < 1400).then_some(grown)
    });
    println!("700 idle clients: {kib} KiB");
    let before = proxy.memory_kib("VmRSS");
    let mut stream = proxy.connect().stream().get_ref().try_clone().expect("a stream can be cloned");
    // Sends requests until nobody takes them any more: the proxy has stopped reading.
    let request = b"GET /raw/a HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    stream.set_write_timeout(Some(Duration::from_millis(500))).expect("a time-out can be set");
    let mut sent = 0;
    while let Ok(length) = std::io::Write::write(&mut stream, &request) {
        sent += length;
        assert!(sent < 200_000_000, "the proxy reads on and on");
        assert_eq!(proxy.get("/raw/a").status, 200);
    }
    let grown = proxy.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 4096, "a client that never reads cost {grown} KiB");
    // When it reads after all, it gets what it asked for.
    let mut head = [0; 15];
    stream.read_exact(&mut head).expect("the answers are there");
    assert_eq!(&head, b"HTTP/1.1 200 OK");
}

/// A long value is held once, whoever reads it at whatever pace and in whatever form.
#[test]
fn slow_readers_of_64_mib_share_one_copy() {
    const LENGTH: usize = 64 * 1024 * 1024;
    let redis = Redis::start();
    let text: Vec<u8> = (0..LENGTH).map(|number| b"abcdefgh\"\n"[number % 10]).collect();
    let binary: Vec<u8> = (0..LENGTH).map(|number| (number * 7) as u8 | 0x80).collect();
    let variables =
        [("CACHE_TTL", "600"), ("REDIS_TIMEOUT", "60000"), ("REDIS_CONNECTIONS", "1"), ("MAX_VALUE_BYTES", "67108864")];
    let proxy = Proxy::start(&redis, &variables);
    let mut readers = Vec::new();
    for (key, value) in [("text", &text), ("binary", &binary)] {
        redis.set(key, value);
        assert!(proxy.get(&format!("/raw/{key}")).body == *value, "another value came");
    }
    let before = proxy.memory_kib("VmRSS");
    for key in ["text", "binary"] {
        for view in ["raw", "key"] {
            for _ in 0..5 {
                let mut client = proxy.connect();
                client.send_get(&format!("/{view}/{key}"));
                readers.push((key, view, client));
            }
        }
    }
    // All are answered up to what their sockets take; hits are not held up.
    wait_for("all have begun", || readers.iter_mut().all(|(_, _, client)| client.has_input()).then_some(()));
    let mut others = proxy.connect();
    for _ in 0..100 {
        assert_eq!(others.get("/raw/none").status, 404);
    }
    let json_text = format!("{{\"value\":\"{}\",\"fromCache\":true}}", "abcdefgh\\\"\\n".repeat(LENGTH / 10 + 1));
    for (key, view, client) in &mut readers {
        let response = client.read_response();
        match (*key, *view) {
            ("text", "raw") => assert!(response.body == text, "another text"),
            ("binary", "raw") => assert!(response.body == binary, "other bytes"),
            ("text", _) => {
                let end = b"\",\"fromCache\":true}";
                let inside = response.body.len() - end.len();
                assert!(response.body.ends_with(end), "another end");
                assert!(json_text.as_bytes()[..inside] == response.body[..inside], "other JSON");
            }
            _ => {
                let end = b"\",\"encoding\":\"base64\",\"fromCache\":true}";
                let expected = LENGTH.div_ceil(3) * 4 + "{\"value\":\"".len() + end.len();
                assert_eq!(response.body.len(), expected);
                assert!(response.body.ends_with(end), "another end");
            }
        }
    }
    let peak = proxy.memory_kib("VmHWM").max(before);
    let grown = proxy.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 32 * 1024, "twenty readers of values that were in memory made it grow by {grown} KiB");
    assert!(peak < 700 * 1024, "two values of 64 MiB took {peak} KiB at the peak");
}

/// Each worker is a whole proxy, and the kernel spreads connections over them.
#[test]
fn workers_share_a_port_and_have_a_cache_each() {
    let redis = Redis::start();
    redis.set("a", 1);
    let proxy = Proxy::start(&redis, &[("WORKERS", "3")]);
    wait_for("every worker has read the key once", || {
        assert_eq!(proxy.get("/raw/a").text(), "1");
        (redis.count_reads() == 3).then_some(())
    });
    for _ in 0..100 {
        assert!(proxy.get("/key/a").is_from_cache());
    }
    assert_eq!(proxy.stop("TERM"), Some(0));
}

/// A client that is refused while it uploads gets to read why, and cannot stay for ever.
#[test]
fn a_refusal_reaches_a_client_that_goes_on_sending() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    let mut client = proxy.connect();
    client.send("POST /key/a HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n");
    client.send(vec![b'x'; 1_000_000]);
    assert_eq!(client.read_response().status, 405);
    assert!(client.reads_eof());
    // So slowly that it is the time that ends it, not the number of bytes.
    wait_for("the proxy cuts it off", || {
        std::io::Write::write_all(client.stream().get_mut(), b"x").is_err().then_some(())
    });
    // What was to end one client does not end the next in its place.
    let mut client = proxy.connect();
    client.send("nonsense\r\n\r\n");
    assert_eq!(client.read_response().status, 400);
    assert!(client.reads_eof());
    drop(client);
    let mut next = proxy.connect();
    assert_eq!(next.get("/nothing").status, 404);
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(next.get("/nothing").status, 404);
}

/// A reply that is still on its way survives what its client sends after its last request.
#[test]
fn a_stray_byte_after_the_last_request_does_not_cut_the_reply() {
    let redis = Redis::start();
    let value = vec![b'x'; 20_000_000];
    redis.set("big", &value);
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "60000"), ("MAX_VALUE_BYTES", "20000000")]);
    for _ in 0..3 {
        let mut client = proxy.connect();
        client.send("GET /raw/big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        wait_for("the reply begins", || client.has_input().then_some(()));
        client.send("\r\n");
        assert!(client.read_response().body == value);
    }
}

/// Rule 11: many replies that wait behind a slow one hold their values once.
#[test]
fn replies_that_wait_for_one_fetch_share_its_value() {
    let redis = Redis::start();
    redis.set("control", vec![1u8; 16 * 1024]);
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "60000")]);
    assert_eq!(proxy.get("/raw/other").status, 404);
    redis.freeze();
    let before = proxy.memory_kib("VmRSS");
    let open = segment_redis_proxy::connection::MAX_PENDING_REPLIES;
    let mut clients: Vec<HttpClient> = (0..40).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        client.send("GET /key/control HTTP/1.1\r\nHost: x\r\n\r\n".repeat(open));
    }
    assert_eq!(proxy.get("/nothing").status, 404);
    redis.thaw();
    for client in &mut clients {
        wait_for("its replies begin", || client.has_input().then_some(()));
    }
    let grown = proxy.memory_kib("VmHWM").saturating_sub(before);
    assert!(grown < 64 * 1024, "{} replies of 96 KiB took {grown} KiB", 40 * open);
    for client in &mut clients {
        (0..open).for_each(|_| assert_eq!(client.read_response().body.len(), 16 * 1024 * 6 + 30));
    }
}
