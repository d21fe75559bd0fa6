//! Tests with curl, redis-cli and redis-py over TLS.

use crate::certificates::{Certificates, to_text};
use crate::common::Redis;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// curl gets values over TLS 1.2 and 1.3, and keeps its connection.
#[test]
fn curl_keeps_its_connection() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    redis.set("a", "value");
    let proxy = certificates.start_proxy(redis.port, &[]);
    let url = format!("https://localhost:{}/raw/a", proxy.address.port());
    for version in ["1.2", "1.3"] {
        let arguments = ["--tlsv1.2", "--tls-max", version, "--resolve", "localhost:0:127.0.0.1", "-w"];
        let format = " %{http_code} %{http_version} %{num_connects}\n";
        let text = certificates.curl(&[&arguments[..], &[format, &url, &url, &url]].concat());
        assert_eq!(text, "value 200 1.1 1\nvalue 200 1.1 0\nvalue 200 1.1 0\n", "TLS {version}");
    }
    certificates.wait_for_metric(&proxy, "segment_tls_handshakes_total{result=\"failed\"} 0");
}

/// An `https` URL in the request line is served over TLS, and refused without.
#[test]
fn https_targets_need_tls() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    redis.set("a", "value");
    let proxy = certificates.start_proxy(redis.port, &[("TLS_REQUIRED", "off")]);
    let mut client = certificates.connect(proxy.address);
    for target in ["https://localhost/raw/a", "http://localhost/raw/a", "/raw/a"] {
        assert_eq!(client.get_text(target), "value", "{target}");
        // Clients with and without TLS take turns with one decoder.
        assert_eq!(proxy.get("https://localhost/raw/a").status, 421, "after {target}");
    }
}

/// redis-cli runs commands over TLS, one by one and as a pipeline.
#[test]
fn redis_cli_works() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    for number in 0..500 {
        redis.set(format!("key{number}"), format!("value {number}"));
    }
    let proxy = certificates.start_proxy(redis.port, &[]);
    let port = proxy.address.port().to_string();
    let run = |input: &str, arguments: &[&str]| {
        let mut child = Command::new("redis-cli")
            .args(["--tls", "--cacert", &certificates.path("ca.pem"), "-p", &port])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("redis-cli is installed");
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("redis-cli reads");
        to_text(&child.wait_with_output().expect("redis-cli ends"))
    };
    assert_eq!(run("", &["MGET", "key1", "none", "key2"]), "value 1\n\nvalue 2\n");
    assert_eq!(run("", &["-3", "GET", "key3"]), "value 3\n");
    let gets: String = (0..500).map(|number| format!("GET key{number}\n")).collect();
    let values: String = (0..500).map(|number| format!("value {number}\n")).collect();
    assert_eq!(run(&gets, &[]), values);
    let many = (0..50).map(|_| "*2\r\n$3\r\nGET\r\n$6\r\nkey100\r\n").collect::<String>().repeat(40);
    assert!(run(&many, &["--pipe"]).contains("errors: 0, replies: 2000"));
}

/// redis-py gets correct values and errors over TLS, in both versions of the protocol.
#[test]
fn redis_py_works() {
    let python = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("python").join("bin/python");
    assert!(python.exists(), "redis-py is missing: scripts/test.sh installs it into Cargo's target directory");
    let (certificates, redis) = (Certificates::make(), Redis::start());
    for number in (0..200).filter(|number| number % 10 != 0) {
        redis.set(format!("key{number}"), format!("value {number}"));
    }
    redis.set("long", "0123456789".repeat(100_000));
    let proxy = certificates.start_proxy(redis.port, &[("CACHE_TTL", "600")]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e_tls/clients.py");
    for version in ["2", "3"] {
        let (port, ca) = (proxy.address.port().to_string(), certificates.path("ca.pem"));
        let output = Command::new(&python).args([script, &port, version, &ca]).output().expect("python starts");
        assert_eq!(to_text(&output), "ok\n", "RESP{version}");
    }
}
