//! Tests of invariants that only the whole program shows. Each test fails if its invariant is
//! broken.

use crate::common::resp::{RespClient, encode_command};
use crate::common::{HttpClient, Proxy, Redis, wait_for};
use std::collections::HashMap;
use std::io::Read;
use std::time::Duration;

/// A completion for a closed client does not answer the next client in its slot
/// (stale-ids-dropped).
#[test]
fn late_completion_skips_reused_slot() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "60000"), ("REDIS_CONNECTIONS", "1")]);
    redis.set("first", "for the first");
    redis.set("second", "for the second");
    assert_eq!(proxy.get("/raw/other").status, 404);
    redis.freeze();
    let mut first = proxy.connect();
    first.send_get("/raw/first");
    // The proxy has read the first request once it answers a later one of another client.
    assert_eq!(proxy.get("/nothing").status, 404);
    // A reset, not a FIN: a client that sends FIN still gets its reply, and keeps its slot until
    // then.
    let with_first = proxy.wait_for_stable_descriptors();
    let socket = socket2::SockRef::from(first.stream().get_ref());
    socket.set_linger(Some(Duration::ZERO)).expect("an option can be set");
    drop(first);
    wait_for("the first client is closed", || (proxy.count_descriptors() < with_first).then_some(()));
    // The next client gets the freed slot.
    let mut second = proxy.connect();
    second.send_get("/raw/second");
    assert_eq!(proxy.get("/nothing").status, 404);
    redis.thaw();
    assert_eq!(second.read_response().text(), "for the second");
    let stored = second.get("/raw/first");
    assert_eq!(stored.text(), "for the first");
    assert!(stored.header("cache-status").contains("hit"), "the late value was not cached");
}

/// Hits behind a slow miss wait for it, and no reply leaves out of order (replies-in-order).
#[test]
fn slow_miss_keeps_reply_order() {
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
    assert!(!client.has_input(), "a reply overtook the miss");
    redis.thaw();
    for (status, text) in [(200, "slow"), (200, "fast"), (404, ""), (200, "slow"), (200, "fast")] {
        let response = client.read_response();
        assert_eq!(response.status, status);
        assert!(status == 404 || response.text() == text, "{response:?}");
    }
}

/// A client with too many pending replies is paused, and resumes without further events.
#[test]
fn client_at_reply_limit_resumes() {
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

/// All requests for a key share the fetch that is in flight.
#[test]
fn concurrent_misses_share_one_fetch() {
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

/// The event loop of an idle proxy wakes itself for expired entries and frees them
/// (no-expired-hit).
#[test]
fn idle_proxy_frees_expired_memory() {
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
    // On a slow machine the earliest entries may have expired. The peak shows that all were held.
    assert!(proxy.memory_kib("VmHWM") > empty + 40_000, "the values were not held");
    wait_for("memory returns to the kernel", || (proxy.memory_kib("VmRSS") < empty + 20_000).then_some(()));
    let ticks = proxy.cpu_ticks();
    std::thread::sleep(Duration::from_millis(500));
    assert!(proxy.cpu_ticks() - ticks < 25, "an idle proxy uses CPU time");
}

/// Idle clients, and a client that never reads, cost little (idle-owns-nothing,
/// everything-bounded).
#[test]
fn idle_and_stalled_clients_cost_little() {
    let redis = Redis::start();
    redis.set("a", "x".repeat(10_000));
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
    assert_eq!(proxy.get("/raw/a").status, 200);
    let before = proxy.memory_kib("VmRSS");
    let mut idle: Vec<HttpClient> = (0..700).map(|_| proxy.connect()).collect();
    for client in &mut idle {
        assert_eq!(client.get("/raw/a").status, 200);
        // A miss behind a hit and a hit behind a miss: both use buffers that the client owns.
        client.send_get("/raw/missing");
        client.send_get("/raw/a");
        assert_eq!(client.read_response().status, 404);
        assert_eq!(client.read_response().body.len(), 10_000);
    }
    let kib = wait_for("idle clients take little memory", || {
        let grown = proxy.memory_kib("VmRSS").saturating_sub(before);
        (grown < 1400).then_some(grown)
    });
    println!("700 idle clients: {kib} KiB");
    let before = proxy.memory_kib("VmRSS");
    let mut stream = proxy.connect().stream().get_ref().try_clone().expect("a stream can be cloned");
    // Sends requests until the proxy stops reading.
    let request = b"GET /raw/a HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    stream.set_write_timeout(Some(Duration::from_millis(500))).expect("a timeout can be set");
    let mut sent = 0;
    while let Ok(length) = std::io::Write::write(&mut stream, &request) {
        sent += length;
        assert!(sent < 200_000_000, "the proxy never stops reading");
        assert_eq!(proxy.get("/raw/a").status, 200);
    }
    let grown = proxy.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 4096, "a client that never reads took {grown} KiB");
    // Once the client reads, it receives its replies.
    let mut head = [0; 15];
    stream.read_exact(&mut head).expect("replies arrive");
    assert_eq!(&head, b"HTTP/1.1 200 OK");
}

/// Slow readers share one copy of a long value, at any pace and in any form.
#[test]
fn slow_readers_share_one_copy() {
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
        assert!(proxy.get(&format!("/raw/{key}")).body == *value, "wrong value");
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
    // Each reply has started, as far as the socket buffers allow. Hits are not delayed.
    wait_for("every reply has started", || readers.iter_mut().all(|(_, _, client)| client.has_input()).then_some(()));
    let mut other_client = proxy.connect();
    for _ in 0..100 {
        assert_eq!(other_client.get("/raw/none").status, 404);
    }
    let json_text = format!("{{\"value\":\"{}\",\"fromCache\":true}}", "abcdefgh\\\"\\n".repeat(LENGTH / 10 + 1));
    for (key, view, client) in &mut readers {
        let response = client.read_response();
        match (*key, *view) {
            ("text", "raw") => assert!(response.body == text, "wrong text"),
            ("binary", "raw") => assert!(response.body == binary, "wrong bytes"),
            ("text", _) => {
                let end = b"\",\"fromCache\":true}";
                let inside = response.body.len() - end.len();
                assert!(response.body.ends_with(end), "wrong end");
                assert!(json_text.as_bytes()[..inside] == response.body[..inside], "wrong JSON");
            }
            _ => {
                let end = b"\",\"encoding\":\"base64\",\"fromCache\":true}";
                let expected = LENGTH.div_ceil(3) * 4 + "{\"value\":\"".len() + end.len();
                assert_eq!(response.body.len(), expected);
                assert!(response.body.ends_with(end), "wrong end");
            }
        }
    }
    let peak = proxy.memory_kib("VmHWM").max(before);
    let grown = proxy.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 32 * 1024, "twenty readers of cached values took {grown} KiB");
    assert!(peak < 700 * 1024, "two values of 64 MiB took {peak} KiB at the peak");
}

/// Workers share the port, and each has a cache of its own.
#[test]
fn workers_share_port_not_cache() {
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

/// A client that is refused during an upload can read the response, and is closed in bounded time.
#[test]
fn refused_upload_receives_response() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    let mut client = proxy.connect();
    client.send("POST /key/a HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n");
    client.send(vec![b'x'; 1_000_000]);
    assert_eq!(client.read_response().status, 405);
    assert!(client.reads_eof());
    // The client sends so slowly that the linger timeout closes it, not the limit of bytes.
    wait_for("the proxy closes the upload", || {
        std::io::Write::write_all(client.stream().get_mut(), b"x").is_err().then_some(())
    });
    // The timer that closed one client does not close the next client in its slot.
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

/// Input after the last request does not cut off the reply in transit.
#[test]
fn stray_crlf_after_request_keeps_reply() {
    let redis = Redis::start();
    let value = vec![b'x'; 20_000_000];
    redis.set("big", &value);
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "60000"), ("MAX_VALUE_BYTES", "20000000")]);
    for _ in 0..3 {
        let mut client = proxy.connect();
        client.send("GET /raw/big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        wait_for("the reply starts", || client.has_input().then_some(()));
        client.send("\r\n");
        assert!(client.read_response().body == value);
    }
}

/// Many replies that wait for one fetch hold its value once (everything-bounded).
#[test]
fn pending_replies_share_fetched_value() {
    let redis = Redis::start();
    redis.set("control", vec![1u8; 16 * 1024]);
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "60000")]);
    assert_eq!(proxy.get("/raw/other").status, 404);
    redis.freeze();
    let before = proxy.memory_kib("VmRSS");
    let replies_per_client = segment_redis_proxy::connection::MAX_PENDING_REPLIES;
    let mut clients: Vec<HttpClient> = (0..40).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        client.send("GET /key/control HTTP/1.1\r\nHost: x\r\n\r\n".repeat(replies_per_client));
    }
    assert_eq!(proxy.get("/nothing").status, 404);
    redis.thaw();
    for client in &mut clients {
        wait_for("replies arrive", || client.has_input().then_some(()));
    }
    let grown = proxy.memory_kib("VmHWM").saturating_sub(before);
    assert!(grown < 64 * 1024, "{} replies of 96 KiB took {grown} KiB", 40 * replies_per_client);
    for client in &mut clients {
        (0..replies_per_client).for_each(|_| assert_eq!(client.read_response().body.len(), 16 * 1024 * 6 + 30));
    }
}

/// Clients that are ready in the same tick are read together, and each gets its own replies:
/// whole and cut requests, pipelines beyond what is read ahead, and clients that leave.
#[test]
fn clients_read_together_get_own_replies() {
    const KEYS: usize = 400;
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("CACHE_SIZE", "1000")]);
    let get = |key: usize| encode_command(&["GET", &format!("key:{}", key % KEYS)]);
    let bulk = |key: usize| format!("$9\r\nvalue-{:03}\r\n", key % KEYS);
    (0..KEYS).for_each(|key| redis.set(format!("key:{key}"), format!("value-{key:03}")));
    let path = |key: usize| format!("/raw/key:{}", key % KEYS);
    // Each pair of a request, with the position where its second part begins, and its reply.
    let requests = |first: usize| -> Vec<(Vec<u8>, usize, String)> {
        let pipeline = |count: usize| (0..count).flat_map(|number| get(first + number)).collect::<Vec<u8>>();
        let replies = |count: usize| (0..count).map(|number| bulk(first + number)).collect::<String>();
        let mget: Vec<String> = (0..40).map(|number| format!("key:{}", (first + number) % KEYS)).collect();
        let mget = encode_command(&[&["MGET".to_string()], &mget[..]].concat());
        vec![
            (get(first), usize::MAX, bulk(first)),
            (pipeline(3), usize::MAX, replies(3)),
            (pipeline(3), get(first).len() + 10, replies(3)),
            // Longer than what is read ahead of one client.
            (pipeline(300), usize::MAX, replies(300)),
            (mget.clone(), usize::MAX, format!("*40\r\n{}", replies(40))),
            (mget.clone(), mget.len() / 2, format!("*40\r\n{}", replies(40))),
        ]
    };
    for round in 0..4 {
        let mut resp: Vec<(RespClient, Vec<u8>, String)> = Vec::new();
        let mut http: Vec<(HttpClient, usize)> = Vec::new();
        let mut leaving: Vec<HttpClient> = Vec::new();
        for client in 0..8 {
            let first = round * 97 + client * 13;
            for _ in requests(first) {
                resp.push((RespClient::connect(proxy.address), Vec::new(), String::new()));
            }
            http.push((proxy.connect(), first));
            leaving.push(proxy.connect());
        }
        // The header fields of these requests are known afterwards, and each connection was used.
        for (client, key) in &mut http {
            assert_eq!(client.get(&path(*key)).status, 200);
        }
        proxy.freeze();
        for (index, (client, rest, expected)) in resp.iter_mut().enumerate() {
            let kinds = requests(round * 97 + index / 6 * 13);
            let (request, cut, reply) = &kinds[index % 6];
            let (now, later) = request.split_at((*cut).min(request.len()));
            client.send(now);
            (*rest, *expected) = (later.to_vec(), reply.clone());
        }
        for (client, key) in &mut http {
            client.send_get(&path(*key));
        }
        for mut client in leaving.drain(..) {
            client.send_get(&path(1));
            let socket = socket2::SockRef::from(client.stream().get_ref());
            socket.set_linger(Some(Duration::ZERO)).expect("an option can be set");
        }
        proxy.thaw();
        for (client, key) in &mut http {
            assert_eq!(client.read_response().text(), format!("value-{:03}", *key % KEYS));
        }
        for (client, rest, expected) in &mut resp {
            client.send(&rest);
            assert_eq!(String::from_utf8_lossy(&client.read_replies()), *expected, "round {round}");
        }
    }
}
