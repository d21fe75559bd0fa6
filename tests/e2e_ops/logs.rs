//! What the logs hold, and that nobody waits for them.

use crate::common::resp::RespClient;
use crate::common::{HttpClient, Proxy, Redis, wait_for};
use std::process::{Command, Stdio};

/// A port that nobody has at this moment.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port()
}

/// A proxy whose access log goes to a file of the test's own, together with its events.
fn logging(redis: &Redis, name: &str, variables: &[(&str, &str)]) -> (Proxy, std::path::PathBuf) {
    let path = std::env::temp_dir().join(format!("segment-logs-{}-{name}", std::process::id()));
    let text = path.to_str().expect("a plain path");
    // The port is told in the log: it is in the file, and nobody can read it elsewhere.
    let port = free_port();
    let port_text = port.to_string();
    let variables =
        [&[("LOG_FILE", text), ("ACCESS_LOG", "on"), ("PROXY_PORT", port_text.as_str())], variables].concat();
    let command = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"));
    (Proxy::start_unlogged(command, redis.port, &variables, port), path)
}

fn read(path: &std::path::Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The lines of the access log, once there are so many.
fn access_lines(path: &std::path::Path, count: usize) -> Vec<String> {
    wait_for("all lines are written", || {
        let text = read(path);
        let lines: Vec<String> =
            text.lines().filter(|line| line.starts_with("127.0.0.1 ")).map(str::to_owned).collect();
        (lines.len() >= count).then_some(lines)
    })
}

#[test]
fn each_request_is_a_line_in_the_common_log_format_with_its_outcome_and_time() {
    let redis = Redis::start();
    redis.set("a", "value");
    let (proxy, path) = logging(&redis, "format", &[]);
    let mut client = proxy.connect();
    client.get("/raw/a");
    client.get("/key/a");
    client.get("/key/none?x=\"%0a");
    client.send("HEAD /raw/a HTTP/1.1\r\nHost: x\r\n\r\n");
    client.read_response_to("HEAD");
    client.send("POST /key/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    client.read_response();
    client.send("GET /raw/b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send("0\r\n\r\n");
    client.read_response();
    client.send("nonsense\x01\"\r\n\r\n");
    client.read_response();
    let mut resp = RespClient::connect(proxy.address);
    for command in
        ["GET a", "GET none", "MGET a none", "AUTH secret", "GETRANGE a 1 2", "SET a b", "HELLO 3", "STRLEN a"]
    {
        // Behind each there is an ECHO, of which the reply says that all has come.
        resp.call_text(command);
    }
    let all = access_lines(&path, 7 + 2 * 8);
    let lines: Vec<&String> = all.iter().filter(|line| !line.contains("\"echo RESP")).collect();
    let expected = [
        "\"GET /raw/a HTTP/1.1\" 200 5 miss",
        "\"GET /key/a HTTP/1.1\" 200 34 hit",
        "\"GET /key/none?x=\\x22%0a HTTP/1.1\" 404 25 missing",
        "\"HEAD /raw/a HTTP/1.1\" 200 - hit",
        "\"POST /key/a HTTP/1.1\" 405 71 refused",
        "\"GET /raw/b HTTP/1.1\" 404 25 missing",
        "\"nonsense ...\" 400 49 refused",
        "\"get a RESP2\" 200 11 hit",
        "\"get none RESP2\" 404 5 missing",
        "\"mget (2) RESP2\" 200 20 many",
        "\"auth RESP2\" 200 5 other",
        "\"getrange a RESP2\" 200 8 hit",
        "\"ERR unknown command 'SET': this proxy is read-only; COMMAND DOCS lists the supported commands\" 400 96 refused",
    ];
    for (line, expected) in lines.iter().zip(expected) {
        let (before, rest) = line.split_once(" [").expect("a date begins");
        let (date, rest) = rest.split_once("] ").expect("a date ends");
        let (rest, micros) = rest.rsplit_once(' ').expect("a time");
        assert_eq!((before, rest), ("127.0.0.1 - -", expected), "{line}");
        assert!(micros.parse::<u64>().is_ok_and(|micros| micros < 60_000_000), "{line}");
        // 23/Nov/2026:15:15:39 +0000
        let shape: String = date
            .chars()
            .map(|c| {
                if c.is_ascii_digit() {
                    '9'
                } else if c.is_alphabetic() {
                    'a'
                } else {
                    c
                }
            })
            .collect();
        assert_eq!(shape, "99/aaa/9999:99:99:99 +9999", "{line}");
    }
    assert!(
        lines[13].contains("\"hello RESP2\" 200 ") && lines[14].contains("\"strlen a RESP3\" 200 4 hit "),
        "{lines:?}"
    );
    assert!(!read(&path).contains("secret"));
    // Events are in the same file, a line each.
    let events = read(&path);
    assert!(events.contains(" INFO ") && events.contains("listening on 127.0.0.1:"), "{events}");
    assert_eq!(proxy.stop("TERM"), Some(0));
    assert!(read(&path).ends_with("shutdown complete\n"), "the last lines are missing: {}", read(&path));
    std::fs::remove_file(&path).expect("it is ours");
}

/// Whatever somebody takes this port for: what may be a password is in no log.
#[test]
fn what_does_not_parse_is_not_told() {
    let redis = Redis::start();
    let (proxy, path) = logging(&redis, "secrets", &[]);
    let attempts = [
        "AUTH topsecret HTTP/1.1\r\n\r\n",
        "AUTH topsecret\r\nQUIT\r\n",
        "AUTH \"topsecret\r\n",
        "HELLO 3 AUTH default topsecret\r\nQUIT\r\n",
        "*2\r\n$4\r\nAUTH\r\n+topsecret\r\n",
        "*3\r\n$4\r\nAUTH\r\n$4\r\nuser\r\n$9\r\ntopsecretX",
        "*2\r\n$9\r\ntopsecret\r\n$1\r\nx\r\n*X",
        "GET http://user:topsecret@host/raw/a HTTP/1.1\r\nHost: x\r\n\r\n",
    ];
    for (number, attempt) in attempts.iter().enumerate() {
        let mut client = proxy.connect();
        client.send(attempt);
        let mut all = Vec::new();
        let _ = std::io::Read::read_to_end(client.stream(), &mut all);
        assert!(!all.is_empty() || number == 5, "{attempt}");
    }
    // Some of them hold a whole command before the last one, or before what does not parse.
    let text = access_lines(&path, attempts.len() + 3).join("\n");
    assert!(text.contains("\"AUTH ...\" 400 ") && text.contains("\"GET ...\" 400 "), "{text}");
    assert!(!read(&path).contains("user") && !read(&path).replace("'topsecret'", "").contains("topsecret"), "{text}");
    std::fs::remove_file(&path).expect("it is ours");
}

/// A disk that is full.
#[test]
fn what_cannot_be_written_is_counted_once_and_told_once() {
    let redis = Redis::start();
    let (proxy, errors) = full_disk(&redis);
    let (mut client, mut requests) = (proxy.connect(), 0);
    let dropped = wait_for("lines are lost", || {
        requests += 1;
        let text = client.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix("segment_log_lines_dropped_total "));
        line.and_then(|count| count.parse::<u64>().ok()).filter(|&count| count >= 30)
    });
    // Beside the requests there are a few events.
    assert!(dropped < requests + 20, "{dropped} of {requests}");
    assert_eq!(proxy.stop("TERM"), Some(0));
    let told = std::io::read_to_string(errors).expect("text");
    assert_eq!(told.matches("cannot write to the log").count(), 1, "{told}");
}

/// A proxy whose log file takes nothing, and what it says on standard error.
fn full_disk(redis: &Redis) -> (Proxy, std::io::PipeReader) {
    let (errors, writer) = std::io::pipe().expect("a pipe");
    let port = free_port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"));
    command.stderr(writer);
    let variables = [("LOG_FILE", "/dev/full"), ("ACCESS_LOG", "on"), ("PROXY_PORT", &port.to_string())];
    (Proxy::start_unlogged(command, redis.port, &variables, port), errors)
}

#[test]
fn without_it_requests_leave_no_line() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    (0..100).for_each(|_| assert_eq!(proxy.get("/key/none").status, 404));
    let before = proxy.log().lines().count();
    (0..100).for_each(|_| assert_eq!(proxy.get("/key/none").status, 404));
    assert!(before < 6 && proxy.log().lines().count() == before, "{}", proxy.log());
}

#[test]
fn a_log_that_cannot_be_opened_is_told_at_start_and_one_that_is_gone_later_goes_on() {
    let redis = Redis::start();
    let mut command = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"));
    let output = command.env_clear().env("LOG_FILE", "/no/such/folder/log").output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), text.lines().count()), (Some(2), 1), "{text}");
    assert!(text.starts_with("segment-redis-proxy: cannot open LOG_FILE=\"/no/such/folder/log\": "), "{text}");

    // A folder of its own, which goes away with the log in it: opening it anew fails, and the old file is kept.
    let (proxy, path) = logging(&redis, "gone", &[]);
    let moved = path.with_extension("1");
    std::fs::rename(&path, &moved).expect("another name");
    std::fs::create_dir(&path).expect("something else of that name");
    proxy.signal("HUP");
    wait_for("it says so", || {
        read(&moved).contains("cannot reopen LOG_FILE, still writing to the old file").then_some(())
    });
    proxy.get("/key/none");
    assert_eq!(access_lines(&moved, 1).len(), 1);
    std::fs::remove_dir(&path).expect("it is ours");
    proxy.signal("HUP");
    wait_for("it is opened anew", || path.is_file().then_some(()));
    proxy.get("/key/none");
    assert_eq!((access_lines(&path, 1).len(), access_lines(&moved, 1).len()), (1, 1));
    assert_eq!(proxy.stop("TERM"), Some(0));
    [path, moved].iter().for_each(|path| std::fs::remove_file(path).expect("it is ours"));
}

/// SIGHUP is for the log alone. Where there is no file, it does nothing: a terminal that is closed ends nobody.
#[test]
fn sighup_without_a_file_changes_nothing() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    proxy.signal("HUP");
    wait_for("it has come", || proxy.log().contains("signal 1: ").then_some(()));
    assert_eq!(proxy.get("/key/none").status, 404);
}

/// Whoever reads the access log stops reading: requests are answered all the same, and the lines are counted that are lost.
#[test]
fn nobody_waits_for_a_log_that_nobody_reads() {
    const REQUESTS: usize = 40_000;
    let redis = Redis::start();
    let (unread, output) = std::io::pipe().expect("a pipe");
    let mut command = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"));
    command.stdout(Stdio::from(output));
    let proxy = Proxy::start_command(command, redis.port, &[("ACCESS_LOG", "on")]);
    let mut client = proxy.connect();
    // Each makes a line of half a kilobyte: more than twice what the queue holds.
    let request = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(600));
    for _ in 0..REQUESTS / 100 {
        client.send(request.repeat(100));
        (0..100).for_each(|_| assert_eq!(client.read_response().status, 404));
    }
    let dropped = wait_for("lines are missing", || {
        let text = client.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix("segment_log_lines_dropped_total "));
        line.and_then(|count| count.parse::<usize>().ok()).filter(|&count| count > 0)
    });
    assert!(dropped < REQUESTS, "{dropped}");
    assert!(proxy.memory_kib("VmRSS") < 64 * 1024, "{} KiB", proxy.memory_kib("VmRSS"));
    // Events have a way of their own.
    proxy.signal("HUP");
    wait_for("events go on", || proxy.log().contains("signal 1: ").then_some(()));
    assert_eq!(proxy.stop("TERM"), Some(0));
    drop(unread);
}

/// The connection is what a client sees of it; the log must not make it another one.
#[test]
fn pipelined_and_refused_requests_have_lines_too() {
    let redis = Redis::start();
    redis.set("a", "value");
    redis.set("b", "value");
    let (proxy, path) = logging(&redis, "pipelined", &[("MAX_CONNECTIONS", "1")]);
    let mut client = wait_for("there is a place", || {
        let mut client = proxy.connect();
        (client.get("/raw/a").status == 200).then_some(client)
    });
    client.send("GET /raw/b HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50));
    (0..50).for_each(|_| assert_eq!(client.read_response().status, 200));
    let mut crowded = HttpClient::connect(proxy.address);
    assert_eq!(crowded.get("/raw/crowd").status, 503);
    let lines = wait_for("all lines are written", || {
        let lines = access_lines(&path, 1);
        lines.iter().any(|line| line.contains("\"GET /raw/crowd HTTP/1.1\" 503 ")).then_some(lines)
    });
    // All of them come before the value does.
    let of =
        |ending: &str| lines.iter().filter(|line| line.contains(&format!("/raw/b HTTP/1.1\" 200 5 {ending} "))).count();
    assert_eq!((of("miss"), of("collapsed") + of("hit")), (1, 49));
    std::fs::remove_file(&path).expect("it is ours");
}
