//! What the tests of what the proxy tells of itself share.

use super::{Proxy, Response, wait_for};
use std::process::Command;

/// The value of a sample in Prometheus' text format.
pub fn parse_sample(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
}

pub fn read_metric(proxy: &Proxy, name: &str) -> f64 {
    parse_sample(&proxy.get("/metrics").text(), name)
}

/// Whether it is ready, and what it says.
pub fn get_readiness(proxy: &Proxy) -> (u16, String) {
    let Response { status, body, .. } = proxy.get("/readyz");
    (status, String::from_utf8(body).expect("JSON"))
}

pub fn wait_until_ready(proxy: &Proxy) -> String {
    wait_for("it is ready", || Some(get_readiness(proxy)).filter(|(status, _)| *status == 200)).1
}

pub fn wait_until_not_ready(proxy: &Proxy, reason: &str) {
    wait_for(reason, || Some(get_readiness(proxy)).filter(|(status, text)| *status == 503 && text.contains(reason)));
    assert_eq!(proxy.get("/healthz").status, 200, "it is alive all the same");
}

/// `segment-redis-proxy healthcheck` with the variables of one that runs.
pub fn run_healthcheck(variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"));
    let output = command.arg("healthcheck").env_clear().envs(variables.iter().copied()).output().expect("it runs");
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}
