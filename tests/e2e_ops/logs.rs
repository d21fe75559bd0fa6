//! Tests of the event log and the access log: their contents, and that no request waits for them.

use crate::common::resp::{self, RespClient};
use crate::common::{HttpClient, Proxy, Redis, wait_for};
use std::process::{Command, Stdio};

/// Returns a port that is free at present.
fn find_free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port()
}

/// Starts a proxy that writes events and access lines to a new file, and returns that file's path.
pub fn start_with_log_file(redis: &Redis, name: &str, variables: &[(&str, &str)]) -> (Proxy, std::path::PathBuf) {
    let path = std::env::temp_dir().join(format!("segment-logs-{}-{name}", std::process::id()));
    let text = path.to_str().expect("a path in UTF-8");
    // A free port would be reported in the log file only, so the test chooses one.
    let port = find_free_port();
    let port_text = port.to_string();
    let variables =
        [&[("LOG_FILE", text), ("ACCESS_LOG", "on"), ("PROXY_PORT", port_text.as_str())], variables].concat();
    let command = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"));
    (Proxy::start_unlogged(command, redis.port, &variables, port), path)
}

pub fn read_log(path: &std::path::Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Waits for at least `count` access lines and returns all of them.
fn wait_for_access_lines(path: &std::path::Path, count: usize) -> Vec<String> {
    wait_for("all access lines are written", || {
        let text = read_log(path);
        let lines: Vec<String> =
            text.lines().filter(|line| line.starts_with("127.0.0.1 ")).map(str::to_owned).collect();
        (lines.len() >= count).then_some(lines)
    })
}

/// Each request is one line in the Common Log Format, with outcome and time.
#[test]
fn request_is_common_log_line() {
    let redis = Redis::start();
    redis.set("a", "value");
    let (proxy, path) = start_with_log_file(&redis, "format", &[]);
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
        // `call_text` adds an ECHO to each command: its reply marks the end.
        resp.call_text(command);
    }
    let all = wait_for_access_lines(&path, 7 + 2 * 8);
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
        "\"set RESP2\" 400 96 refused",
    ];
    for (line, expected) in lines.iter().zip(expected) {
        let (before, rest) = line.split_once(" [").expect("the start of a date");
        let (date, rest) = rest.split_once("] ").expect("the end of a date");
        let (rest, micros) = rest.rsplit_once(' ').expect("a time");
        assert_eq!((before, rest), ("127.0.0.1 - -", expected), "{line}");
        assert!(micros.parse::<u64>().is_ok_and(|micros| micros < 60_000_000), "{line}");
        // 23/Nov/2026:15:15:39 +0000
        let pattern: String = date
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
        assert_eq!(pattern, "99/aaa/9999:99:99:99 +9999", "{line}");
    }
    assert!(
        lines[13].contains("\"hello RESP2\" 200 ") && lines[14].contains("\"strlen a RESP3\" 200 4 hit "),
        "{lines:?}"
    );
    assert!(!read_log(&path).contains("secret"));
    // The same file has a line for each event.
    let events = read_log(&path);
    assert!(events.contains(" INFO ") && events.contains("listening on 127.0.0.1:"), "{events}");
    assert_eq!(proxy.stop("TERM"), Some(0));
    assert!(read_log(&path).ends_with("shutdown complete\n"), "the last event is missing: {}", read_log(&path));
    std::fs::remove_file(&path).expect("a file of this test");
}

/// Input that does not parse may hold a password and is not logged.
#[test]
fn malformed_input_is_not_logged() {
    let redis = Redis::start();
    let (proxy, path) = start_with_log_file(&redis, "secrets", &[]);
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
        let mut response = Vec::new();
        let _ = std::io::Read::read_to_end(client.stream(), &mut response);
        assert!(!response.is_empty() || number == 5, "{attempt}");
    }
    // Three attempts have another command, which has its own line.
    let text = wait_for_access_lines(&path, attempts.len() + 3).join("\n");
    assert!(text.contains("\"AUTH ...\" 400 ") && text.contains("\"GET ...\" 400 "), "{text}");
    assert!(
        !read_log(&path).contains("user") && !read_log(&path).replace("\"topsecret RESP2\"", "").contains("topsecret"),
        "{text}"
    );
    std::fs::remove_file(&path).expect("a file of this test");
}

/// A refused command is logged by its name, however it is refused. Its arguments may hold a
/// password.
#[test]
fn refused_command_is_logged_by_name() {
    let redis = Redis::start();
    let (proxy, path) = start_with_log_file(&redis, "refused", &[]);
    let long_key = "topsecret".repeat(10_000);
    let mut resp = RespClient::connect(proxy.address);
    let long_name = "Long".repeat(30);
    let hostile = "a\" 200 5 hit 1\n127.0.0.1 \\\u{e9}";
    let many = vec!["topsecret"; 65];
    let commands: [(Vec<&str>, &str); 10] = [
        (vec!["SET", "a", "topsecret"], "set"),
        (vec!["FlushAll"], "flushall"),
        (vec!["GET"], "get"),
        (vec!["STRLEN", "topsecret", "topsecret"], "strlen"),
        (vec!["GET", &long_key], "get"),
        (vec!["MGET", "a", &long_key, "topsecret"], "mget"),
        (vec!["AUTH"], "auth"),
        ([&["PING"], many.as_slice()].concat(), "ping"),
        (vec![&long_name, "topsecret"], &long_name[..64]),
        (vec![hostile], "a\\x22 200 5 hit 1\\x0a127.0.0.1 \\x5c\\xc3\\xa9"),
    ];
    for (words, name) in &commands {
        let reply = resp.call(resp::encode_command(words));
        assert!(reply.starts_with(b"-ERR "), "{name}: {}", reply.escape_ascii());
    }
    resp.call_text("HELLO 3");
    resp.call_text("SET a topsecret");
    let mut inline = RespClient::connect(proxy.address);
    assert!(inline.call("SELECT 0 topsecret\r\n").starts_with(b"-ERR wrong number"));
    let lines = wait_for_access_lines(&path, 2 * (commands.len() + 2) + 2);
    let refused = lines.iter().filter(|line| line.contains(" 400 ") && line.contains(" refused "));
    let logged: Vec<_> = refused.map(|line| line.split('"').nth(1).expect("a request").to_owned()).collect();
    let mut expected: Vec<_> = commands.iter().map(|(_, name)| format!("{} RESP2", name.to_lowercase())).collect();
    expected.extend(["set RESP3".to_owned(), "select RESP2".to_owned()]);
    assert_eq!(logged, expected);
    assert!(!read_log(&path).contains("topsecret"), "{lines:?}");
    std::fs::remove_file(&path).expect("a file of this test");
}

/// On a full disk lost lines are counted once each, and the error is reported once.
#[test]
fn full_disk_is_reported_once() {
    let redis = Redis::start();
    let (proxy, errors) = start_on_full_disk(&redis);
    let (mut client, mut requests) = (proxy.connect(), 0);
    let dropped = wait_for("30 lines are dropped", || {
        requests += 1;
        let text = client.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix("segment_log_lines_dropped_total "));
        line.and_then(|count| count.parse::<u64>().ok()).filter(|&count| count >= 30)
    });
    // Some of the dropped lines are events.
    assert!(dropped < requests + 20, "{dropped} lines dropped for {requests} requests");
    assert_eq!(proxy.stop("TERM"), Some(0));
    let stderr = std::io::read_to_string(errors).expect("text");
    assert_eq!(stderr.matches("cannot write to the log").count(), 1, "{stderr}");
}

/// Starts a proxy that cannot write its log file, and returns its standard error.
fn start_on_full_disk(redis: &Redis) -> (Proxy, std::io::PipeReader) {
    let (errors, writer) = std::io::pipe().expect("a pipe");
    let port = find_free_port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"));
    command.stderr(writer);
    let variables = [("LOG_FILE", "/dev/full"), ("ACCESS_LOG", "on"), ("PROXY_PORT", &port.to_string())];
    (Proxy::start_unlogged(command, redis.port, &variables, port), errors)
}

/// Without ACCESS_LOG, requests add no line to the log.
#[test]
fn access_log_off_has_no_lines() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    (0..100).for_each(|_| assert_eq!(proxy.get("/key/none").status, 404));
    let before = proxy.log().lines().count();
    (0..100).for_each(|_| assert_eq!(proxy.get("/key/none").status, 404));
    assert!(before < 6 && proxy.log().lines().count() == before, "{}", proxy.log());
}

/// A log file that cannot be opened is an error at start. If it cannot be reopened, the old one
/// stays.
#[test]
fn unopenable_log_file_is_reported() {
    let redis = Redis::start();
    let mut command = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"));
    let output = command.env_clear().env("LOG_FILE", "/no/such/folder/log").output().expect("the binary runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), text.lines().count()), (Some(2), 1), "{text}");
    assert!(text.starts_with("segment-redis-proxy: cannot open LOG_FILE=\"/no/such/folder/log\": "), "{text}");

    // A directory takes the place of the log file, so that it cannot be reopened.
    let (proxy, path) = start_with_log_file(&redis, "gone", &[]);
    let moved = path.with_extension("1");
    std::fs::rename(&path, &moved).expect("a renamed file");
    std::fs::create_dir(&path).expect("a new directory");
    proxy.signal("HUP");
    wait_for("the failure is logged", || {
        read_log(&moved).contains("cannot reopen LOG_FILE, still writing to the old file").then_some(())
    });
    proxy.get("/key/none");
    assert_eq!(wait_for_access_lines(&moved, 1).len(), 1);
    std::fs::remove_dir(&path).expect("a directory of this test");
    proxy.signal("HUP");
    wait_for("the log file is reopened", || path.is_file().then_some(()));
    proxy.get("/key/none");
    assert_eq!((wait_for_access_lines(&path, 1).len(), wait_for_access_lines(&moved, 1).len()), (1, 1));
    assert_eq!(proxy.stop("TERM"), Some(0));
    [path, moved].iter().for_each(|path| std::fs::remove_file(path).expect("a file of this test"));
}

/// SIGHUP without a log file has no effect, so a closed terminal does not stop the proxy.
#[test]
fn sighup_without_log_file_is_ignored() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    proxy.signal("HUP");
    wait_for("the signal is logged", || proxy.log().contains("signal 1: ").then_some(()));
    assert_eq!(proxy.get("/key/none").status, 404);
}

/// If no process reads the access log, requests are answered, and lost lines are counted.
#[test]
fn unread_access_log_blocks_nothing() {
    const REQUESTS: usize = 40_000;
    let redis = Redis::start();
    let (unread, output) = std::io::pipe().expect("a pipe");
    let mut command = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"));
    command.stdout(Stdio::from(output));
    let proxy = Proxy::start_command(command, redis.port, &[("ACCESS_LOG", "on")]);
    let mut client = proxy.connect();
    // Each request is a line of half a kilobyte. Together they are more than twice the queue.
    let request = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(600));
    for _ in 0..REQUESTS / 100 {
        client.send(request.repeat(100));
        (0..100).for_each(|_| assert_eq!(client.read_response().status, 404));
    }
    let dropped = wait_for("lines are dropped", || {
        let text = client.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix("segment_log_lines_dropped_total "));
        line.and_then(|count| count.parse::<usize>().ok()).filter(|&count| count > 0)
    });
    assert!(dropped < REQUESTS, "{dropped}");
    assert!(proxy.memory_kib("VmRSS") < 64 * 1024, "{} KiB", proxy.memory_kib("VmRSS"));
    // Events go to standard error, which the test reads.
    proxy.signal("HUP");
    wait_for("an event is logged", || proxy.log().contains("signal 1: ").then_some(()));
    assert_eq!(proxy.stop("TERM"), Some(0));
    drop(unread);
}

/// Pipelined requests and rejected clients have their access lines.
#[test]
fn pipelined_and_rejected_requests_are_logged() {
    let redis = Redis::start();
    redis.set("a", "value");
    redis.set("b", "value");
    let (proxy, path) = start_with_log_file(&redis, "pipelined", &[("MAX_CONNECTIONS", "1")]);
    let mut client = wait_for("the client is within the limit", || {
        let mut client = proxy.connect();
        (client.get("/raw/a").status == 200).then_some(client)
    });
    client.send("GET /raw/b HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50));
    (0..50).for_each(|_| assert_eq!(client.read_response().status, 200));
    let mut excess = HttpClient::connect(proxy.address);
    assert_eq!(excess.get("/raw/excess").status, 503);
    for (input, reply) in [("PING\r\n", "-ERR max"), ("*2\r\n$3\r\nSET\r\n$9\r\ntopsecret\r\n", "-ERR max")] {
        let mut excess = RespClient::connect(proxy.address);
        excess.send(input);
        assert!(excess.read_to_close().starts_with(reply), "{input}");
    }
    let lines = wait_for("all access lines are written", || {
        let lines = wait_for_access_lines(&path, 1);
        let is_logged = |request: &str| lines.iter().any(|line| line.contains(request));
        ["\"GET /raw/excess HTTP/1.1\" 503 ", "\"ping RESP2\" ", "\"set RESP2\" "]
            .into_iter()
            .all(is_logged)
            .then_some(lines)
    });
    assert!(!read_log(&path).contains("topsecret"), "{lines:?}");
    // The first request fetches the value. Most of the others arrive before it.
    let count_lines =
        |ending: &str| lines.iter().filter(|line| line.contains(&format!("/raw/b HTTP/1.1\" 200 5 {ending} "))).count();
    assert_eq!((count_lines("miss"), count_lines("collapsed") + count_lines("hit")), (1, 49));
    std::fs::remove_file(&path).expect("a file of this test");
}
