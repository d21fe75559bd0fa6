//! Tests of `MAX_CONNECTIONS` and of the open file limit: excess clients are rejected without busy
//! looping, and freed slots are reused.

use crate::common::resp::{RespClient, encode_words};
use crate::common::{HttpClient, Proxy, Redis, wait_for};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

/// Returns a command that runs the binary from a shell that sets `limits` first.
fn command_with_limits(limits: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{limits}; exec \"$0\""), env!("CARGO_BIN_EXE_segment-redis-proxy")]);
    command
}

/// Returns the soft limit of open files of the running proxy.
fn read_file_limit(proxy: &Proxy) -> u64 {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", proxy.pid())).expect("the proxy runs");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a limit");
    line.split_whitespace().next().and_then(|soft| soft.parse().ok()).expect("a number")
}

/// Sends a request on a new connection. Returns true if it is served, and checks the rejection
/// otherwise.
fn is_served(proxy: &Proxy) -> bool {
    let mut client = proxy.connect();
    let response = client.get("/raw/a");
    if response.status == 200 {
        return true;
    }
    assert_eq!((response.status, response.header("retry-after"), response.header("connection")), (503, "1", "close"));
    assert!(response.text().contains("MAX_CONNECTIONS") && client.reads_eof(), "{response:?}");
    false
}

/// A client over `MAX_CONNECTIONS` gets an error in its own protocol and is closed.
#[test]
fn rejects_excess_clients_per_protocol() {
    let redis = Redis::start();
    redis.set("a", 1);
    // The limit applies to all workers together.
    let variables = [("MAX_CONNECTIONS", "10"), ("WORKERS", "3"), ("CACHE_TTL", "600"), ("CLIENT_TIMEOUT", "60")];
    let proxy = Proxy::start(&redis, &variables);
    let mut clients: Vec<HttpClient> = (0..10).map(|_| proxy.connect()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.get("/raw/a").text(), "1"));
    let descriptors = proxy.wait_for_stable_descriptors();
    for _ in 0..20 {
        assert!(!is_served(&proxy));
        let mut resp = RespClient::connect(proxy.address);
        resp.send(encode_words("PING"));
        assert_eq!(resp.read_to_close(), "-ERR max number of clients reached\r\n");
    }
    let mut head = proxy.connect();
    head.send("HEAD /raw/a HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(head.read_response_to("HEAD").status, 503);
    assert!(head.reads_eof());
    // A silent client is rejected as well.
    assert!(proxy.connect().reads_eof());
    wait_for("rejected clients are closed", || (proxy.count_descriptors() <= descriptors).then_some(()));
    // Accepted clients are unaffected, and each one that leaves frees a slot.
    clients.iter_mut().for_each(|client| assert_eq!(client.get("/raw/a").text(), "1"));
    for _ in 0..5 {
        clients.pop();
        wait_for("a slot is free", || is_served(&proxy).then_some(()));
    }
    let mut resp = RespClient::connect(proxy.address);
    let info =
        wait_for("a RESP client gets a slot", || Some(resp.call_text("INFO")).filter(|text| !text.starts_with('-')));
    assert!(info.contains("maxclients:10\r\n"), "{info}");
}

/// Rejected clients that stay open occupy no free slot. They delay further rejections only briefly.
#[test]
fn rejected_clients_leave_free_slots_usable() {
    let redis = Redis::start();
    redis.set("a", 1);
    let proxy = Proxy::start(&redis, &[("MAX_CONNECTIONS", "20"), ("CACHE_TTL", "600")]);
    let baseline = proxy.wait_for_stable_descriptors();
    let mut clients: Vec<HttpClient> = (0..20).map(|_| proxy.connect()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.get("/raw/a").text(), "1"));
    let mut served_while_rejecting = 0;
    for round in 0..10 {
        // As many clients as the proxy rejects at a time. More of them would wait for slots of
        // their own.
        let mut rejected: Vec<HttpClient> = (0..256).map(|_| proxy.connect()).collect();
        if round % 2 == 0 {
            rejected.iter_mut().for_each(|client| client.send("G"));
            rejected
                .iter_mut()
                .for_each(|client| wait_for("the client is rejected", || client.has_input().then_some(())));
        }
        // A client that is not accepted yet would take a slot once one is free.
        let mut all_accepted =
            || proxy.count_descriptors() >= baseline + 20 + rejected.len() || rejected[0].has_input();
        wait_for("all clients are accepted", || all_accepted().then_some(()));
        // All slots become free at once, while all slots for rejected clients are in use.
        drop(std::mem::take(&mut clients));
        wait_for("a slot is free", || is_served(&proxy).then_some(()));
        // Silent clients stay open for a while, unless this machine stood still meanwhile.
        served_while_rejecting += usize::from(round % 2 > 0 && rejected.iter_mut().all(|client| !client.has_input()));
        let get_slot = || {
            let mut client = proxy.connect();
            (client.get("/raw/a").status == 200).then_some(client)
        };
        clients = (0..20).map(|_| wait_for("a slot is free", get_slot)).collect();
        drop(rejected);
    }
    assert!(served_while_rejecting > 0, "rejected clients blocked free slots");
}

/// A silent crowd occupies the slots for rejected clients, and no more.
#[test]
fn silent_excess_clients_are_rejected() {
    let redis = Redis::start();
    redis.set("a", 1);
    let proxy = Proxy::start(&redis, &[("MAX_CONNECTIONS", "10"), ("CACHE_TTL", "600")]);
    let mut client = proxy.connect();
    assert_eq!(client.get("/raw/a").text(), "1");
    let descriptors = proxy.wait_for_stable_descriptors();
    let crowd: Vec<TcpStream> =
        (0..600).map(|_| TcpStream::connect(proxy.address).expect("the proxy listens")).collect();
    let ticks = proxy.cpu_ticks();
    wait_for("the crowd is accepted and rejected", || {
        assert_eq!(client.get("/raw/a").text(), "1");
        std::thread::sleep(Duration::from_millis(20));
        // Nine accepted clients, 256 rejected ones, and perhaps connections to Redis.
        assert!(proxy.count_descriptors() < descriptors + 9 + 256 + 20, "more clients were accepted than slots exist");
        // Nine of the 600 clients have a slot and may stay.
        let gone = crowd.iter().filter(|stream| {
            stream.set_nonblocking(true).expect("an option can be set");
            matches!(stream.peek(&mut [0]), Ok(0))
        });
        (gone.count() == 600 - 9).then_some(())
    });
    println!("CPU time for a crowd of 600: {} ms", (proxy.cpu_ticks() - ticks) * 10);
    drop(crowd);
    wait_for("all clients are closed", || (proxy.count_descriptors() <= descriptors).then_some(()));
    assert!(is_served(&proxy));
}

/// A low limit of open files is raised, or the proxy refuses to start if no client fits.
#[test]
fn low_file_limit_raised_or_refused() {
    let redis = Redis::start();
    redis.set("a", 1);
    // The proxy raises the limit as far as `MAX_CONNECTIONS` needs.
    let proxy = Proxy::start_command(command_with_limits("ulimit -Sn 100"), redis.port, &[("MAX_CONNECTIONS", "300")]);
    assert!((300..1000).contains(&read_file_limit(&proxy)), "{}", read_file_limit(&proxy));
    let mut clients: Vec<HttpClient> = (0..250).map(|_| proxy.connect()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.get("/raw/a").text(), "1"));
    drop(clients);
    // A sufficient limit stays unchanged.
    let proxy = Proxy::start_command(command_with_limits("ulimit -Sn 900"), redis.port, &[("MAX_CONNECTIONS", "300")]);
    assert_eq!(read_file_limit(&proxy), 900);
    // The limit leaves no descriptor for a client.
    let mut command = command_with_limits("ulimit -n 24");
    command.env("PROXY_HOST", "127.0.0.1").env("PROXY_PORT", "0").env("REDIS_HOST", "127.0.0.1");
    let output = command.output().expect("the binary starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("limit of open files too low: 24") && text.contains("ulimit -n"), "{text}");
}

/// With 64 descriptors, 30 of 200 clients are served and the others are rejected.
///
/// The event loop does not spin, and accepting resumes once clients have left.
#[test]
fn low_file_limit_rejects_excess_clients() {
    let redis = Redis::start();
    redis.set("a", 1);
    let proxy =
        Proxy::start_command(command_with_limits("prlimit --pid $$ --nofile=64"), redis.port, &[("CACHE_TTL", "600")]);
    assert_eq!(proxy.get("/raw/a").text(), "1");
    wait_for("the lower limit is logged", || proxy.log().contains("connection limit lowered to 30").then_some(()));
    let mut clients: Vec<HttpClient> = (0..200).map(|_| proxy.connect()).collect();
    clients.iter_mut().for_each(|client| client.send_get("/raw/a"));
    let mut served = Vec::new();
    for mut client in clients {
        match client.read_response().status {
            200 => served.push(client),
            status => assert!(status == 503 && client.reads_eof()),
        }
    }
    assert_eq!(served.len(), 30);
    assert!(!is_served(&proxy));
    // All slots are taken and a crowd waits in the accept queue: the event loop has little to do.
    let crowd: Vec<TcpStream> =
        (0..170).map(|_| TcpStream::connect(proxy.address).expect("the proxy listens")).collect();
    let ticks = proxy.cpu_ticks();
    std::thread::sleep(Duration::from_secs(2));
    let ticks = proxy.cpu_ticks() - ticks;
    println!("CPU with 200 clients and 64 files: {} %", ticks as f64 / 2.0);
    // 5 % would be 10 ticks. Other tests run at the same time, so the limit is higher.
    assert!(ticks < 30, "{ticks} ticks of 10 ms in 2 s: the event loop spins");
    served.iter_mut().for_each(|client| assert_eq!(client.get("/raw/a").text(), "1"));
    drop((served, crowd));
    wait_for("accepting resumes", || is_served(&proxy).then_some(()));
    assert!(!proxy.log().contains("cannot accept"), "{}", proxy.log());
}

/// Without descriptors the proxy neither spins nor forgets waiting clients (edge-triggered).
///
/// The limit is lowered at run time, below what the proxy found at its start.
#[test]
fn descriptor_exhaustion_recovers_without_spinning() {
    let redis = Redis::start();
    redis.set("a", 1);
    let proxy = Proxy::start(&redis, &[("REDIS_CONNECTIONS", "1"), ("CACHE_TTL", "600")]);
    assert_eq!(proxy.get("/raw/a").text(), "1");
    let low_limit = proxy.wait_for_stable_descriptors() + 20;
    let pid = proxy.pid().to_string();
    let status = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={low_limit}")]).status();
    assert!(status.expect("prlimit is installed").success());
    let mut clients: Vec<HttpClient> = (0..100).map(|_| proxy.connect()).collect();
    clients.iter_mut().for_each(|client| client.send_get("/raw/a"));
    wait_for("the failed accept is logged", || proxy.log().contains("cannot accept").then_some(()));
    let ticks = proxy.cpu_ticks();
    std::thread::sleep(Duration::from_millis(500));
    assert!(proxy.cpu_ticks() - ticks < 25, "the event loop spins while accept fails");
    // Each client that leaves frees a descriptor for the next.
    for (number, mut client) in clients.into_iter().enumerate() {
        assert_eq!(client.read_response().text(), "1", "client {number}");
    }
    assert_eq!(proxy.get("/raw/a").text(), "1");
    let log = proxy.log();
    assert!(log.matches("cannot accept").count() < 10, "the log repeats itself: {log}");
}

/// An idle connection takes at most 512 bytes in user space (idle-owns-nothing).
#[test]
fn idle_client_takes_512_bytes() {
    let redis = Redis::start();
    redis.set("a", 1);
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
    // Half of the open file limit of this test, since other tests run at the same time.
    let limit = rlimit::getrlimit(rlimit::Resource::NOFILE).expect("a limit").0;
    let count = (limit as usize / 2 - 500).min(9_900);
    assert!(count >= 500, "the open file limit is too low for this test; set ulimit -n 20000");
    let warm: Vec<HttpClient> = (0..50).map(|_| proxy.connect()).collect();
    assert_eq!(proxy.get("/raw/a").text(), "1");
    drop(warm);
    proxy.wait_for_stable_descriptors();
    let before = proxy.memory_kib("VmRSS");
    let mut clients: Vec<TcpStream> = Vec::new();
    for number in 0..count {
        let mut stream = wait_for("the proxy accepts the client", || TcpStream::connect(proxy.address).ok());
        // Half of the clients speak RESP, and each of them has sent one request.
        let request: &[u8] = match number % 2 {
            0 => b"GET /raw/a HTTP/1.1\r\nHost: test\r\n\r\n",
            _ => b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n",
        };
        std::io::Write::write_all(&mut stream, request).expect("the proxy reads");
        clients.push(stream);
    }
    for stream in &mut clients {
        std::io::Read::read_exact(stream, &mut [0; 4]).expect("a reply arrives");
    }
    // The allocator returns unused memory to the kernel after some seconds.
    let each = wait_for("idle clients take at most 512 bytes each", || {
        let each = proxy.memory_kib("VmRSS").saturating_sub(before) * 1024 / count as u64;
        (each <= 512).then_some(each)
    });
    println!("{count} idle clients take {each} bytes each");
    drop(clients);
}
