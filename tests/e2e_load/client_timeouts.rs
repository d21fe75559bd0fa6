//! Tests of `CLIENT_TIMEOUT` and `CLIENT_IDLE_TIMEOUT`: clients that trickle, stall, read slowly,
//! stay idle or wait for Redis.

use crate::common::resp::{RespClient, encode_words};
use crate::common::{HttpClient, Proxy, Redis, wait_for};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const HEAD: &[u8] = b"GET /raw/a HTTP/1.1\r\nHost: test\r\nX: ";

/// Starts Redis and a proxy that has cached the key `a`.
fn start_with_cached_key(variables: &[(&str, &str)]) -> (Redis, Proxy) {
    let redis = Redis::start();
    redis.set("a", "value");
    let proxy = Proxy::start(&redis, &[&[("CACHE_TTL", "600")], variables].concat());
    assert_eq!(proxy.get("/raw/a").text(), "value");
    (redis, proxy)
}

/// Writes one byte. Returns true if the proxy still accepts input.
fn trickle(stream: &mut TcpStream, byte: u8) -> bool {
    stream.write_all(&[byte]).is_ok()
}

/// Returns `count`, or a quarter of the open file limit if that is less. Other tests run at the
/// same time.
fn clamp_to_file_limit(count: usize) -> usize {
    let limit = rlimit::getrlimit(rlimit::Resource::NOFILE).expect("a limit").0;
    count.min(limit as usize / 4)
}

/// Reads until the proxy closes the connection and returns the text.
fn read_to_close(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(crate::common::TEST_TIMEOUT)).expect("a timeout can be set");
    let mut text = Vec::new();
    // Unread input turns the close into a reset. `text` has the bytes received before it.
    let _ = stream.read_to_end(&mut text);
    String::from_utf8(text).expect("text")
}

/// Slowloris clients get 408 at a fixed deadline, however many bytes they send. Hits are served
/// meanwhile.
#[test]
fn trickling_clients_get_408_at_deadline() {
    let (_redis, proxy) = start_with_cached_key(&[("CLIENT_TIMEOUT", "3")]);
    let descriptors = proxy.wait_for_stable_descriptors();
    let count = clamp_to_file_limit(5000);
    let started = Instant::now();
    let mut slow: Vec<TcpStream> = (0..count)
        .map(|_| {
            let mut stream = wait_for("the proxy accepts the client", || TcpStream::connect(proxy.address).ok());
            stream.write_all(&HEAD[..1 + count % 30]).expect("the proxy reads");
            stream
        })
        .collect();
    let connected = started.elapsed();
    let (mut client, mut rounds) = (proxy.connect(), 0);
    // Every client trickles until the proxy has closed all of them.
    while slow.iter_mut().fold(false, |any_open, stream| trickle(stream, b'x') | any_open) {
        assert_eq!(client.get("/raw/a").text(), "value");
        assert!(started.elapsed() < crate::common::TEST_TIMEOUT, "trickled bytes move the deadline");
        std::thread::sleep(Duration::from_millis(100));
        rounds += 1;
    }
    let elapsed = started.elapsed();
    println!("{count} connected in {connected:?}, the last of them was closed after {elapsed:?}, {rounds} bytes each");
    assert!(elapsed >= Duration::from_secs(3), "closed before the deadline");
    let timed_out =
        slow.iter_mut().map(read_to_close).filter(|text| text.starts_with("HTTP/1.1 408 Request Timeout\r\n")).count();
    assert_eq!(timed_out, count, "not all clients got 408");
    drop(slow);
    drop(client);
    wait_for("all clients are closed", || (proxy.count_descriptors() <= descriptors).then_some(()));
    assert_eq!(proxy.get("/raw/a").text(), "value");
}

/// A request that stays incomplete ends at the deadline, in either protocol and in any part.
#[test]
fn partial_request_ends_at_deadline() {
    let (_redis, proxy) = start_with_cached_key(&[("CLIENT_TIMEOUT", "1")]);
    let head = "GET /raw/a HTTP/1.1\r\nHost: test\r\n";
    let (hit, refused) = ("HTTP/1.1 200 OK", "HTTP/1.1 405 Method Not Allowed");
    for (partial, byte, answers) in [
        ("G".to_owned(), b'E', &["408 Request Timeout"][..]),
        ("\r\nG".to_owned(), b'E', &["408 Request Timeout"]),
        (format!("{head}\r\n{head}"), b'x', &[hit, "408 Request Timeout"]),
        (format!("{head}Content-Length: 1000\r\n\r\n"), b'x', &[hit]),
        (format!("{}Content-Length: 1000\r\n\r\n", head.replace("GET", "POST")), b'x', &[refused]),
        (format!("{head}Transfer-Encoding: chunked\r\n\r\nfff\r\n"), b'x', &["408 Request Timeout"]),
        ("*2\r\n$3\r\nGET\r\n$1000\r\n".to_owned(), b'x', &[]),
        ("*1\r\n$4\r\nPING\r\n*3\r\n$4\r\nMGET\r\n$1\r\na\r\n$900\r\n".to_owned(), b'x', &["+PONG"]),
        ("*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1000\r\n".to_owned(), b'x', &[]),
        ("*1\r\n$4\r\nPING\r\n*".to_owned(), b'1', &["+PONG"]),
    ] {
        let mut stream = TcpStream::connect(proxy.address).expect("the proxy takes connections");
        stream.write_all(partial.as_bytes()).expect("the proxy reads");
        let started = Instant::now();
        let mut closing = stream.try_clone().expect("a stream can be cloned");
        let reading = std::thread::spawn(move || read_to_close(&mut closing));
        let mut bytes = 0;
        while !reading.is_finished() {
            trickle(&mut stream, byte);
            std::thread::sleep(Duration::from_millis(50));
            bytes += 1;
            assert!(started.elapsed() < crate::common::TEST_TIMEOUT && bytes < 900, "{partial:?} is not closed");
        }
        let text = reading.join().expect("no panic");
        let found = answers.iter().filter(|answer| text.contains(**answer)).count();
        let replies = text.matches("HTTP/1.1 ").count() + text.matches("+PONG").count() + text.matches('-').count();
        assert!(found == answers.len(), "{partial:?} got {text:?}");
        assert!(
            replies >= answers.len() && text.matches("HTTP/1.1 ").count() <= answers.len(),
            "{partial:?} got {text:?}"
        );
    }
}

/// A command that arrives in bursts ends at the deadline.
///
/// The bursts are so large that the proxy needs further turns, or waits for Redis in between. This
/// time does not restart the deadline.
#[test]
fn bursts_keep_request_deadline() {
    let (redis, proxy) = start_with_cached_key(&[("CLIENT_TIMEOUT", "1"), ("REDIS_TIMEOUT", "60000")]);
    // The first thousand keys of each burst wait for the frozen Redis. It replies well before the
    // next burst.
    let mut number = 0;
    let mut missing_keys = || {
        redis.thaw();
        std::thread::sleep(Duration::from_millis(200));
        redis.freeze();
        number += 1500;
        (0..1500).map(|at| format!("$8\r\n{:08}\r\n", number + at)).collect()
    };
    let bursts: [(&str, &mut dyn FnMut() -> String); 4] = [
        ("*3\r\n$3\r\nSET\r\n$1\r\na\r\n$500000000\r\n", &mut || "x".repeat(200_000)),
        ("*65000\r\n$4\r\nMGET\r\n", &mut || "$1\r\na\r\n".repeat(2000)),
        ("*65000\r\n$4\r\nMGET\r\n", &mut missing_keys),
        ("POST /raw/a HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n", &mut || {
            format!("1f4\r\n{}\r\n", "x".repeat(500))
        }),
    ];
    for (prefix, burst) in bursts {
        let mut stream = TcpStream::connect(proxy.address).expect("the proxy takes connections");
        stream.write_all(prefix.as_bytes()).expect("the proxy reads");
        let mut reading = stream.try_clone().expect("a stream can be cloned");
        let reading = std::thread::spawn(move || read_to_close(&mut reading));
        let started = Instant::now();
        while !reading.is_finished() {
            let _ = stream.write_all(burst().as_bytes());
            assert!(started.elapsed() < Duration::from_secs(8), "{prefix:?} is not closed while bursts arrive");
            std::thread::sleep(Duration::from_millis(50));
        }
        redis.thaw();
        println!("{prefix:?} was closed after {:?}", started.elapsed());
        assert!(started.elapsed() >= Duration::from_secs(1), "{prefix:?} was closed before the deadline");
        let _ = reading.join().expect("no panic");
    }
}

/// A suspended proxy closes no client that sent its request in time.
///
/// The event loop reads the input of its clients before it applies a timeout.
#[test]
fn suspended_proxy_closes_no_client() {
    // Several times the number of events that one poll returns. Half of the clients are in the
    // middle of a request.
    let connect_clients = |proxy: &Proxy| -> Vec<HttpClient> {
        let mut clients: Vec<HttpClient> = (0..clamp_to_file_limit(4000)).map(|_| proxy.connect()).collect();
        clients.iter_mut().for_each(|client| assert_eq!(client.get("/raw/a").text(), "value"));
        clients.iter_mut().step_by(2).for_each(|client| client.send(HEAD));
        clients
    };
    // A busy machine may need longer than a second for that. A rehearsal says how long.
    let (redis, rehearsal) = start_with_cached_key(&[]);
    let started = Instant::now();
    drop(connect_clients(&rehearsal));
    let timeout = 1 + 3 * started.elapsed().as_secs();
    drop((redis, rehearsal));
    let seconds = timeout.to_string();
    let (_redis, proxy) = start_with_cached_key(&[("CLIENT_TIMEOUT", &seconds), ("CLIENT_IDLE_TIMEOUT", &seconds)]);
    let mut clients = connect_clients(&proxy);
    let request = [HEAD, b"\r\n\r\n"].concat();
    proxy.freeze();
    // The client with the earliest deadline sends last, so its event is reported last.
    for (number, client) in clients.iter_mut().enumerate().rev() {
        client.send(if number % 2 == 0 { b"\r\n\r\n" } else { request.as_slice() });
    }
    std::thread::sleep(Duration::from_secs(timeout + 2));
    proxy.thaw();
    for client in &mut clients {
        assert_eq!(client.read_response().text(), "value");
    }
}

/// A client without requests is closed at `CLIENT_IDLE_TIMEOUT`, a client with requests is not.
#[test]
fn idle_clients_close_active_clients_stay() {
    let (_redis, proxy) = start_with_cached_key(&[("CLIENT_IDLE_TIMEOUT", "3"), ("CLIENT_TIMEOUT", "2")]);
    let descriptors = proxy.wait_for_stable_descriptors();
    let mut silent = proxy.connect();
    let mut silent_after_one = proxy.connect();
    assert_eq!(silent_after_one.get("/raw/a").text(), "value");
    let mut silent_resp = RespClient::connect(proxy.address);
    assert_eq!(silent_resp.call_text("PING"), "+PONG\r\n");
    // Neither the CRLF that old HTTP clients send after a request nor an empty command is a
    // request.
    let mut with_empty_line = proxy.connect();
    assert_eq!(with_empty_line.get("/raw/a").text(), "value");
    with_empty_line.send("\r\n");
    let mut with_empty_commands = RespClient::connect(proxy.address);
    let (mut busy, mut busy_resp) = (proxy.connect(), RespClient::connect(proxy.address));
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(5) {
        assert_eq!(busy.get("/raw/a").text(), "value");
        assert_eq!(busy_resp.call_text("PING"), "+PONG\r\n");
        // The proxy may have closed the connection already.
        let _ = with_empty_commands.stream.write_all(b"*0\r\n\r\n");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(silent.reads_eof() && silent_after_one.reads_eof(), "an idle client received bytes");
    assert!(with_empty_line.reads_eof(), "an empty line counted as a request");
    assert_eq!(with_empty_commands.read_to_close(), "");
    assert_eq!(silent_resp.read_to_close(), "");
    drop((busy, busy_resp));
    wait_for("all clients are closed", || (proxy.count_descriptors() <= descriptors).then_some(()));
}

/// A client that reads nothing is closed, a slow reader is not, and neither costs memory.
#[test]
fn stalled_reader_closes_slow_reader_stays() {
    const LENGTH: usize = 8 * 1024 * 1024;
    let (redis, proxy) = start_with_cached_key(&[("CLIENT_IDLE_TIMEOUT", "6"), ("REDIS_TIMEOUT", "60000")]);
    redis.run(&["SETRANGE", "long", &(LENGTH - 1).to_string(), "x"]);
    assert_eq!(proxy.get("/raw/long").body.len(), LENGTH);
    let (descriptors, memory) = (proxy.wait_for_stable_descriptors(), proxy.memory_kib("VmRSS"));
    let start_reader = |window: Option<usize>| {
        let mut client = proxy.connect();
        if let Some(bytes) = window {
            let socket = socket2::SockRef::from(client.stream().get_ref());
            socket.set_recv_buffer_size(bytes).expect("an option can be set");
        }
        client.send_get("/raw/long");
        client
    };
    // A small window keeps little of the reply in transit. One client has the default window.
    let mut stalled: Vec<HttpClient> = (0..50).map(|number| start_reader((number > 0).then_some(64 * 1024))).collect();
    let mut slow = [start_reader(Some(64 * 1024)), start_reader(None)];
    // Each slow client reads at most 40 KiB/s.
    let (mut received, mut buffer, started) = ([0; 2], vec![0; 4 * 1024], Instant::now());
    while started.elapsed() < Duration::from_secs(20) {
        for (client, received) in slow.iter_mut().zip(&mut received) {
            *received += client.stream().get_mut().read(&mut buffer).expect("a slow reader stays connected");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("read {received:?} bytes in {:?}, of {LENGTH}", started.elapsed());
    // The two slow clients stay, and connections to Redis come and go. The loop below checks that
    // every stalled client is closed.
    wait_for("stalled readers are closed", || (proxy.count_descriptors() <= descriptors + 2 + 4).then_some(()));
    for client in &mut stalled {
        let mut all = Vec::new();
        // The proxy reset them, so the kernel discarded the unread part.
        assert!(client.stream().read_to_end(&mut all).is_err() && all.len() < LENGTH);
    }
    for (mut client, mut received) in slow.into_iter().zip(received) {
        let mut last = 0;
        while received < LENGTH || last != b'x' {
            let length = client.stream().read(&mut buffer).expect("the remaining bytes arrive");
            assert!(length > 0, "cut off after {received} bytes");
            (received, last) = (received + length, buffer[length - 1]);
        }
    }
    assert!(proxy.memory_kib("VmRSS") < memory + 8 * 1024, "{memory} KiB before, {} after", proxy.memory_kib("VmRSS"));
}

/// A client that waits for Redis is neither idle nor slow.
#[test]
fn client_waiting_for_redis_stays_open() {
    let timeouts = [("CLIENT_TIMEOUT", "0.5"), ("CLIENT_IDLE_TIMEOUT", "0.5"), ("REDIS_TIMEOUT", "60000")];
    let (redis, proxy) = start_with_cached_key(&timeouts);
    redis.freeze();
    let (mut http, mut resp) = (proxy.connect(), RespClient::connect(proxy.address));
    http.send_get("/raw/none");
    resp.send(encode_words("GET other"));
    // The second request of this client is incomplete. The client still gets the reply to the
    // first.
    let mut partial = proxy.connect();
    partial.send([b"GET /raw/late HTTP/1.1\r\nHost: test\r\n\r\n".as_slice(), HEAD].concat());
    std::thread::sleep(Duration::from_secs(3));
    redis.thaw();
    assert_eq!(http.read_response().status, 404);
    assert_eq!(resp.read_replies(), b"$-1\r\n");
    assert_eq!(partial.read_response().status, 404);
    assert_eq!(partial.read_response().status, 408);
}
