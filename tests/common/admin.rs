//! What the tests of what the proxy tells of itself share.

use super::{Proxy, Response, until};
use std::process::Command;

/// The value of a sample in Prometheus' text format.
pub fn sample(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
}

pub fn metric(proxy: &Proxy, name: &str) -> f64 {
    sample(&proxy.get("/metrics").text(), name)
}

/// Whether it is ready, and what it says.
pub fn readiness(proxy: &Proxy) -> (u16, String) {
    let Response { status, body, .. } = proxy.get("/readyz");
    (status, String::from_utf8(body).expect("JSON"))
}

pub fn until_ready(proxy: &Proxy) -> String {
    until("it is ready", || Some(readiness(proxy)).filter(|(status, _)| *status == 200)).1
}

pub fn until_not_ready(proxy: &Proxy, reason: &str) {
    until(reason, || Some(readiness(proxy)).filter(|(status, text)| *status == 503 && text.contains(reason)));
    assert_eq!(proxy.get("/healthz").status, 200, "it is alive all the same");
}

/// `segment-redis-proxy healthcheck` with the variables of one that runs.
pub fn health_check(variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"));
    let output = command.arg("healthcheck").env_clear().envs(variables.iter().copied()).output().expect("it runs");
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}
