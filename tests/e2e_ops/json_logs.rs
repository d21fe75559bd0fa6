//! Tests of `LOG_FORMAT=json`: each line is a JSON object, whatever clients send.

use crate::common::resp::{self, RespClient};
use crate::common::{Redis, wait_for};
use crate::logs::{read_log, start_with_log_file};
use std::process::{Command, Stdio};

/// Python program that parses the lines of its input with a strict JSON parser. It checks fields
/// and types, and prints each line with tabs between the fields that a test can predict.
const PARSER: &str = r#"
import json, re, sys
for line in sys.stdin.buffer.read().decode("utf-8", "strict").split("\n")[:-1]:
    entry = json.loads(line, parse_constant=lambda name: sys.exit("not JSON: " + name))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["time"]), line
    if "request" in entry:
        assert list(entry) == ["time", "client", "request", "status", "bytes", "outcome", "duration_us"], line
        assert entry["client"] == "127.0.0.1" and all(type(entry[name]) is int for name in ("status", "bytes", "duration_us")), line
        assert 0 <= entry["duration_us"] < 60_000_000 and entry["request"].isprintable() and entry["request"].isascii(), line
        print("request", entry["request"], entry["status"], entry["bytes"], entry["outcome"], sep="\t")
    else:
        assert list(entry) == ["time", "level", "target", "message"], line
        print("event", entry["level"], entry["target"], json.dumps(entry["message"]), sep="\t")
"#;

/// Returns one line for each line of a log in JSON, with the fields that do not vary.
fn parse(log: &str) -> Vec<String> {
    let mut python = Command::new("python3")
        .args(["-c", PARSER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3 is installed");
    let mut input = python.stdin.take().expect("a pipe");
    let log = log.to_owned();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut input, log.as_bytes()));
    let output = python.wait_with_output().expect("it exits");
    // A parser that found an error reads no further, so that its input may break.
    let _ = writer.join().expect("no panic");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Requests with hostile bytes, refused and malformed ones, and events are JSON objects.
#[test]
fn hostile_requests_log_valid_json() {
    let redis = Redis::start();
    let every_byte: Vec<u8> = (0..=255).collect();
    redis.set(&every_byte, "value");
    let variables = [("LOG_FORMAT", "json"), ("RUST_LOG", "debug")];
    let (proxy, path) = start_with_log_file(&redis, "json", &variables);
    let mut client = proxy.connect();
    let targets = ["/key/a?\"\\u0022},{\"x\":\"", "/key/%00%22%5c%0a", "/raw/\\", "/key/{\"time\":\"0\"}"];
    for target in targets {
        client.get(target);
    }
    client.send("no\x01\x02\"\\nsense \"}\r\n\r\n");
    client.read_response();
    let mut resp = RespClient::connect(proxy.address);
    resp.call(resp::encode_command(&[b"GET", every_byte.as_slice()]));
    resp.call(resp::encode_command(&[b"GET", b"\xff\xfe\xed\xa0\x80\"\\\r\n\x1b[0m".as_slice()]));
    resp.call(resp::encode_command(&[b"GET", [b'\\'; 1000].as_slice()]));
    resp.call(resp::encode_command(&[b"a\"},\n\\u0000".as_slice(), b"topsecret"]));
    proxy.signal("HUP");
    // Each of the four commands is followed by an ECHO.
    let expected_lines = targets.len() + 1 + 2 * 4;
    wait_for("all lines are written", || {
        let log = read_log(&path);
        (log.matches("\"request\":").count() >= expected_lines && log.contains("signal 1: ")).then_some(())
    });
    assert_eq!(proxy.stop("TERM"), Some(0));
    let entries = parse(&read_log(&path));
    let requests: Vec<&str> = entries
        .iter()
        .filter_map(|entry| entry.strip_prefix("request\t"))
        .filter(|entry| !entry.starts_with("echo "))
        .collect();
    let escape = |bytes: &[u8]| -> String {
        let escape_byte = |&byte: &u8| match byte {
            b'"' | b'\\' | 0..=0x1f | 0x7f.. => format!("\\x{byte:02x}"),
            _ => char::from(byte).to_string(),
        };
        bytes.iter().map(escape_byte).collect()
    };
    // The request is cut after 256 bytes.
    let start_of_every_byte = escape(&every_byte[..32 * 2 + 28]);
    let expected = [
        format!("GET {} HTTP/1.1\t", escape(targets[0].as_bytes())),
        format!("GET {} HTTP/1.1\t404\t25\tmissing", escape(targets[1].as_bytes())),
        format!("GET {} HTTP/1.1\t404\t25\tmissing", escape(targets[2].as_bytes())),
        format!("GET {} HTTP/1.1\t", escape(targets[3].as_bytes())),
        "no ...\t400\t".to_owned(),
        format!("get {start_of_every_byte}"),
        format!("get {} RESP2\t404\t5\tmissing", escape(b"\xff\xfe\xed\xa0\x80\"\\\r\n\x1b[0m")),
        format!("get {}... RESP2\t404\t5\tmissing", "\\x5c".repeat(64)),
        format!("{} RESP2\t400\t", escape(b"a\"},\n\\u0000")),
    ];
    assert_eq!(requests.len(), expected.len(), "{requests:#?}");
    for (request, expected) in requests.iter().zip(expected) {
        assert!(request.starts_with(&expected), "{request} instead of {expected}");
    }
    let events: Vec<&str> = entries.iter().filter_map(|entry| entry.strip_prefix("event\t")).collect();
    let is_logged = |message: &str| {
        events.iter().any(|event| event.starts_with("INFO\tsegment_redis_proxy") && event.contains(message))
    };
    for message in ["listening on 127.0.0.1:", "received signal 1: reopening the log", "shutdown complete"] {
        assert!(is_logged(message), "no {message}: {events:#?}");
    }
    assert!(!read_log(&path).contains("topsecret"));
    std::fs::remove_file(&path).expect("a file of this test");
}

/// Runs the program until it ends with an error. Returns its exit code and standard error.
fn run_to_error(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"));
    let output = command.args(arguments).env_clear().envs(variables.iter().copied()).output().expect("the binary runs");
    (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8"))
}

/// An error that ends the proxy is a JSON object. Errors in arguments stay text.
#[test]
fn exit_error_is_valid_json() {
    let busy = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = busy.local_addr().expect("a bound port").port().to_string();
    for (variables, code, text) in [
        (&[("LOG_FORMAT", "json"), ("CACHE_TTL", "\"never\"\n")][..], 2, "CACHE_TTL"),
        (&[("LOG_FORMAT", "json"), ("LOG_FILE", "/no/such/\"folder\"/log")], 2, "cannot open LOG_FILE="),
        (&[("LOG_FORMAT", "json"), ("PROXY_HOST", "127.0.0.1"), ("PROXY_PORT", &port)], 1, "cannot listen on "),
    ] {
        let (exit_code, stderr) = run_to_error(&[], variables);
        let entries = parse(&stderr);
        assert_eq!(exit_code, Some(code), "{stderr}");
        let last = entries.last().expect("an entry");
        assert!(last.starts_with("event\tERROR\tsegment_redis_proxy\t") && last.contains(text), "{last}");
    }
    let (code, stderr) = run_to_error(&["--nonsense"], &[("LOG_FORMAT", "json")]);
    assert!(code == Some(2) && stderr.starts_with("segment-redis-proxy: "), "{stderr}");
    let (code, stderr) = run_to_error(&[], &[("LOG_FORMAT", "xml")]);
    assert!(
        code == Some(2) && stderr.starts_with("segment-redis-proxy: ") && stderr.contains("LOG_FORMAT"),
        "{stderr}"
    );
}

/// A target that takes no lines is reported in the format of the log.
#[test]
fn full_disk_reports_valid_json() {
    let redis = Redis::start();
    let (errors, writer) = std::io::pipe().expect("a pipe");
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"));
    command.stderr(writer);
    let port_text = port.to_string();
    let variables = [("LOG_FILE", "/dev/full"), ("LOG_FORMAT", "json"), ("PROXY_PORT", port_text.as_str())];
    let proxy = crate::common::Proxy::start_unlogged(command, redis.port, &variables, port);
    assert_eq!(proxy.stop("TERM"), Some(0));
    let entries = parse(&std::io::read_to_string(errors).expect("UTF-8"));
    assert!(entries.len() == 1 && entries[0].contains("ERROR\tsegment_redis_proxy::log_writer\t"), "{entries:#?}");
}
