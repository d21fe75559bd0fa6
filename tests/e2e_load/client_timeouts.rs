//! Clients that take their time: who trickles, who reads slowly or not at all, who does nothing, and who only waits for Redis.

use crate::common::resp::{RespClient, encode_words};
use crate::common::{HttpClient, Proxy, Redis, wait_for};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const HEAD: &[u8] = b"GET /raw/a HTTP/1.1\r\nHost: test\r\nX: ";

fn start(variables: &[(&str, &str)]) -> (Redis, Proxy) {
    let redis = Redis::start();
    redis.set("a", "value");
    let proxy = Proxy::start(&redis, &[&[("CACHE_TTL", "600")], variables].concat());
    assert_eq!(proxy.get("/raw/a").text(), "value");
    (redis, proxy)
}

/// Writes a byte; whether the other side still takes it.
fn trickle(stream: &mut TcpStream, byte: u8) -> bool {
    stream.write_all(&[byte]).is_ok()
}

/// So many clients, or as many as the limit of open files of this test allows, beside other tests.
fn many(count: usize) -> usize {
    let limit = rlimit::getrlimit(rlimit::Resource::NOFILE).expect("a limit").0;
    count.min(limit as usize / 4)
}

/// All that has come and will come, once the proxy has closed.
fn rest(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(crate::common::TEST_TIMEOUT)).expect("a time-out can be set");
    let mut text = Vec::new();
    // A byte that the proxy has not read makes its end a reset; what came before has been read then.
    let _ = stream.read_to_end(&mut text);
    String::from_utf8(text).expect("text")
}

/// Slowloris: thousands that send a byte now and then. They are closed at a time that no byte moves, and hold up nobody.
#[test]
fn who_trickles_is_told_and_closed_at_a_fixed_time() {
    let (_redis, proxy) = start(&[("CLIENT_TIMEOUT", "3")]);
    let descriptors = proxy.wait_for_stable_descriptors();
    let count = many(5000);
    let begun = Instant::now();
    let mut slow: Vec<TcpStream> = (0..count)
        .map(|_| {
            let mut stream = wait_for("it is accepted", || TcpStream::connect(proxy.address).ok());
            stream.write_all(&HEAD[..1 + count % 30]).expect("the proxy reads");
            stream
        })
        .collect();
    let connected = begun.elapsed();
    let (mut client, mut rounds) = (proxy.connect(), 0);
    // All are trickling, until nobody is left to trickle to.
    while slow.iter_mut().fold(false, |some, stream| trickle(stream, b'x') | some) {
        assert_eq!(client.get("/raw/a").text(), "value");
        assert!(begun.elapsed() < crate::common::TEST_TIMEOUT, "bytes that trickle move the deadline");
        std::thread::sleep(Duration::from_millis(100));
        rounds += 1;
    }
    let elapsed = begun.elapsed();
    println!("{count} connected in {connected:?}, the last of them was closed after {elapsed:?}, {rounds} bytes each");
    assert!(elapsed >= Duration::from_secs(3), "closed before its time");
    let told = slow.iter_mut().map(rest).filter(|text| text.starts_with("HTTP/1.1 408 Request Timeout\r\n")).count();
    assert_eq!(told, count, "not all were told");
    drop(slow);
    drop(client);
    wait_for("nobody is left", || (proxy.count_descriptors() <= descriptors).then_some(()));
    assert_eq!(proxy.get("/raw/a").text(), "value");
}

/// Whatever it is that does not come whole.
#[test]
fn every_part_of_a_request_has_to_come_in_time() {
    let (_redis, proxy) = start(&[("CLIENT_TIMEOUT", "1")]);
    let head = "GET /raw/a HTTP/1.1\r\nHost: test\r\n";
    let (hit, refused) = ("HTTP/1.1 200 OK", "HTTP/1.1 405 Method Not Allowed");
    for (begun, byte, answers) in [
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
        stream.write_all(begun.as_bytes()).expect("the proxy reads");
        let started = Instant::now();
        let mut closing = stream.try_clone().expect("a stream can be cloned");
        let reading = std::thread::spawn(move || rest(&mut closing));
        let mut bytes = 0;
        while !reading.is_finished() {
            trickle(&mut stream, byte);
            std::thread::sleep(Duration::from_millis(50));
            bytes += 1;
            assert!(started.elapsed() < crate::common::TEST_TIMEOUT && bytes < 900, "{begun:?} is waited for");
        }
        let text = reading.join().expect("no panic");
        let found = answers.iter().filter(|answer| text.contains(**answer)).count();
        let replies = text.matches("HTTP/1.1 ").count() + text.matches("+PONG").count() + text.matches('-').count();
        assert!(found == answers.len(), "{begun:?} got {text:?}");
        assert!(
            replies >= answers.len() && text.matches("HTTP/1.1 ").count() <= answers.len(),
            "{begun:?} got {text:?}"
        );
    }
}

/// A command that comes in bursts, so large that the proxy has to go on with them in further turns, or to wait for Redis in
/// between: what this takes begins no new time for the client.
#[test]
fn bursts_do_not_move_the_deadline_either() {
    let (redis, proxy) = start(&[("CLIENT_TIMEOUT", "1"), ("REDIS_TIMEOUT", "60000")]);
    // Redis takes its time for the first thousand of each burst, and is done with them long before the next.
    let mut number = 0;
    let mut missing = || {
        redis.thaw();
        std::thread::sleep(Duration::from_millis(200));
        redis.freeze();
        number += 1500;
        (0..1500).map(|at| format!("$8\r\n{:08}\r\n", number + at)).collect()
    };
    let bursts: [(&str, &mut dyn FnMut() -> String); 4] = [
        ("*3\r\n$3\r\nSET\r\n$1\r\na\r\n$500000000\r\n", &mut || "x".repeat(200_000)),
        ("*65000\r\n$4\r\nMGET\r\n", &mut || "$1\r\na\r\n".repeat(2000)),
        ("*65000\r\n$4\r\nMGET\r\n", &mut missing),
        ("POST /raw/a HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n", &mut || {
            format!("1f4\r\n{}\r\n", "x".repeat(500))
        }),
    ];
    for (begin, burst) in bursts {
        let mut stream = TcpStream::connect(proxy.address).expect("the proxy takes connections");
        stream.write_all(begin.as_bytes()).expect("the proxy reads");
        let mut reading = stream.try_clone().expect("a stream can be cloned");
        let reading = std::thread::spawn(move || rest(&mut reading));
        let begun = Instant::now();
        while !reading.is_finished() {
            let _ = stream.write_all(burst().as_bytes());
            assert!(begun.elapsed() < Duration::from_secs(8), "{begin:?} is waited for as long as it bursts");
            std::thread::sleep(Duration::from_millis(50));
        }
        redis.thaw();
        println!("{begin:?} was closed after {:?}", begun.elapsed());
        assert!(begun.elapsed() >= Duration::from_secs(1), "{begin:?} was not given its time");
        let _ = reading.join().expect("no panic");
    }
}

/// A loop that could not go on for a while has not seen what its clients did meanwhile: it looks before it judges.
#[test]
fn the_proxys_own_pause_is_not_its_clients_fault() {
    let (_redis, proxy) = start(&[("CLIENT_TIMEOUT", "1"), ("CLIENT_IDLE_TIMEOUT", "1")]);
    // Several times as many as the loop is told of at a time.
    let mut clients: Vec<HttpClient> = (0..many(4000)).map(|_| proxy.connect()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.get("/raw/a").text(), "value"));
    // Half of them are in the middle of a request.
    let request = [HEAD, b"\r\n\r\n"].concat();
    clients.iter_mut().step_by(2).for_each(|client| client.send(HEAD));
    proxy.freeze();
    // Whose time is up first is heard of last.
    for (number, client) in clients.iter_mut().enumerate().rev() {
        client.send(if number % 2 == 0 { b"\r\n\r\n" } else { request.as_slice() });
    }
    std::thread::sleep(Duration::from_secs(3));
    proxy.thaw();
    for client in &mut clients {
        assert_eq!(client.read_response().text(), "value");
    }
}

#[test]
fn who_asks_nothing_is_closed_and_who_asks_stays() {
    let (_redis, proxy) = start(&[("CLIENT_IDLE_TIMEOUT", "3"), ("CLIENT_TIMEOUT", "2")]);
    let descriptors = proxy.wait_for_stable_descriptors();
    let mut silent = proxy.connect();
    let mut silent_after_one = proxy.connect();
    assert_eq!(silent_after_one.get("/raw/a").text(), "value");
    let mut silent_resp = RespClient::connect(proxy.address);
    assert_eq!(silent_resp.call_text("PING"), "+PONG\r\n");
    // An old client's line behind its last request, and commands that are none.
    let mut with_empty_line = proxy.connect();
    assert_eq!(with_empty_line.get("/raw/a").text(), "value");
    with_empty_line.send("\r\n");
    let mut with_empty_commands = RespClient::connect(proxy.address);
    let (mut busy, mut busy_resp) = (proxy.connect(), RespClient::connect(proxy.address));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        assert_eq!(busy.get("/raw/a").text(), "value");
        assert_eq!(busy_resp.call_text("PING"), "+PONG\r\n");
        // It may have been closed already.
        let _ = with_empty_commands.stream.write_all(b"*0\r\n\r\n");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(silent.reads_eof() && silent_after_one.reads_eof(), "something was said to who asked nothing");
    assert!(with_empty_line.reads_eof(), "an empty line was taken for the beginning of a request");
    assert_eq!(with_empty_commands.read_to_close(), "");
    assert_eq!(silent_resp.read_to_close(), "");
    drop((busy, busy_resp));
    wait_for("nobody is left", || (proxy.count_descriptors() <= descriptors).then_some(()));
}

/// A client that reads nothing goes, one that reads slowly but reads stays, and neither takes memory.
#[test]
fn who_takes_nothing_is_closed_and_who_takes_little_is_not() {
    const LENGTH: usize = 8 * 1024 * 1024;
    let (redis, proxy) = start(&[("CLIENT_IDLE_TIMEOUT", "6")]);
    redis.run(&["SETRANGE", "long", &(LENGTH - 1).to_string(), "x"]);
    assert_eq!(proxy.get("/raw/long").body.len(), LENGTH);
    let (descriptors, memory) = (proxy.wait_for_stable_descriptors(), proxy.memory_kib("VmRSS"));
    let begin = |window: Option<usize>| {
        let mut client = proxy.connect();
        if let Some(bytes) = window {
            let socket = socket2::SockRef::from(client.stream().get_ref());
            socket.set_recv_buffer_size(bytes).expect("an option can be set");
        }
        client.send_get("/raw/long");
        client
    };
    // A small window, so that little of the reply is on its way; and the one that any client has.
    let mut asleep: Vec<HttpClient> = (0..50).map(|number| begin((number > 0).then_some(64 * 1024))).collect();
    let mut slow = [begin(Some(64 * 1024)), begin(None)];
    // At most 40 KiB a second.
    let (mut taken, mut buffer, begun) = ([0; 2], vec![0; 4 * 1024], Instant::now());
    while begun.elapsed() < Duration::from_secs(20) {
        for (client, taken) in slow.iter_mut().zip(&mut taken) {
            *taken += client.stream().get_mut().read(&mut buffer).expect("who takes little is not closed");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("taken {taken:?} bytes in {:?}, of {LENGTH}", begun.elapsed());
    // Two are slow, and connections to Redis come and go; that each of the others is closed is seen below.
    wait_for("who takes nothing is closed", || (proxy.count_descriptors() <= descriptors + 2 + 4).then_some(()));
    for client in &mut asleep {
        let mut all = Vec::new();
        // They have been reset: what they did not take, the kernel has forgotten.
        assert!(client.stream().read_to_end(&mut all).is_err() && all.len() < LENGTH);
    }
    for (mut client, mut taken) in slow.into_iter().zip(taken) {
        let mut last = 0;
        while taken < LENGTH || last != b'x' {
            let length = client.stream().read(&mut buffer).expect("the rest comes");
            assert!(length > 0, "cut off after {taken} bytes");
            (taken, last) = (taken + length, buffer[length - 1]);
        }
    }
    assert!(proxy.memory_kib("VmRSS") < memory + 8 * 1024, "{memory} KiB before, {} after", proxy.memory_kib("VmRSS"));
}

/// Waiting for Redis is the proxy's time, not the client's.
#[test]
fn who_waits_for_redis_is_neither_idle_nor_slow() {
    let timeouts = [("CLIENT_TIMEOUT", "0.5"), ("CLIENT_IDLE_TIMEOUT", "0.5"), ("REDIS_TIMEOUT", "60000")];
    let (redis, proxy) = start(&timeouts);
    redis.freeze();
    let (mut http, mut resp) = (proxy.connect(), RespClient::connect(proxy.address));
    http.send_get("/raw/none");
    resp.send(encode_words("GET other"));
    // A request behind the one that waits is not whole; the reply to the first is worth waiting for.
    let mut begun = proxy.connect();
    begun.send([b"GET /raw/late HTTP/1.1\r\nHost: test\r\n\r\n".as_slice(), HEAD].concat());
    std::thread::sleep(Duration::from_secs(3));
    redis.thaw();
    assert_eq!(http.read_response().status, 404);
    assert_eq!(resp.read_replies(), b"$-1\r\n");
    assert_eq!(begun.read_response().status, 404);
    assert_eq!(begun.read_response().status, 408);
}
