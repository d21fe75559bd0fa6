//! What tools read of a server: `INFO`, judged by redis-cli.

#![allow(clippy::expect_used, reason = "a test may stop at what it did not expect")]

mod common;

use common::resp::Resp;
use common::{Proxy, Redis, until};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

#[test]
fn redis_cli_stat_shows_figures() {
    let redis = Redis::start();
    redis.set("a", "1");
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
    Resp::connect(proxy.address).text("GET a");
    until("the client has gone", || {
        let info = Resp::connect(proxy.address).text("INFO clients");
        info.contains("\r\nconnected_clients:1\r\n").then_some(())
    });
    let mut redis_cli = Command::new("redis-cli");
    redis_cli.args(["-p", &proxy.address.port().to_string(), "--stat", "-i", "0.001"]);
    let mut child = redis_cli.stdout(Stdio::piped()).spawn().expect("redis-cli is installed");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    // It prints for ever. The first lines may still count the client that asked before.
    let lines: Vec<String> = lines.take(40).map(|line| line.expect("text")).collect();
    child.kill().expect("it runs");
    child.wait().expect("a child can be waited for");
    assert!(lines.len() == 40 && lines[1].starts_with("keys       mem      clients blocked"), "{lines:#?}");
    for line in lines.iter().skip(2).filter(|line| !line.starts_with(['-', 'k'])) {
        // Keys, memory, clients, blocked clients, requests, new requests, connections, no child.
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [keys, memory, clients, blocked, requests, _, connections] = fields[..] else { panic!("{line}") };
        assert_eq!((keys, blocked), ("1", "0"), "{line}");
        assert!(["1", "2"].contains(&clients), "{line}");
        let mebibytes: f64 = memory.strip_suffix('M').and_then(|number| number.parse().ok()).expect("mebibytes");
        assert!(mebibytes > 1.0, "{line}");
        for count in [requests, connections] {
            assert!(count.parse::<u64>().expect("a count") > 2, "{line}");
        }
    }
}

/// `ADMIN=off` hides pages. `INFO` is not a page.
#[test]
fn info_memory_matches_kernel_without_admin() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("ADMIN", "off")]);
    let mut client = Resp::connect(proxy.address);
    let info = client.text("INFO memory cpu");
    let field = |name: &str| {
        let line = info.split("\r\n").find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.expect("a field").parse::<f64>().expect("a number")
    };
    let (used, peak) = (field("used_memory") / 1024.0, field("used_memory_peak") / 1024.0);
    assert!((1024.0..=proxy.memory("VmHWM") as f64).contains(&used), "{info}");
    assert!((used..=proxy.memory("VmHWM") as f64).contains(&peak), "{info}");
    assert!(field("used_cpu_user") >= 0.0 && field("used_cpu_sys") >= 0.0, "{info}");
}
