//! Helpers that read the metrics, the readiness and the health check of a proxy.

use super::{Proxy, Response, wait_for};
use std::process::Command;

/// Returns the value of a sample in the Prometheus text format.
pub fn parse_sample(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
}

/// Returns the value of a sample of `/metrics`.
pub fn read_metric(proxy: &Proxy, name: &str) -> f64 {
    parse_sample(&proxy.get("/metrics").text(), name)
}

/// Returns the status code and the body of `/readyz`.
pub fn get_readiness(proxy: &Proxy) -> (u16, String) {
    let Response { status, body, .. } = proxy.get("/readyz");
    (status, String::from_utf8(body).expect("JSON"))
}

/// Waits until the proxy is ready and returns the body of `/readyz`.
pub fn wait_until_ready(proxy: &Proxy) -> String {
    wait_for("/readyz answers 200", || Some(get_readiness(proxy)).filter(|(status, _)| *status == 200)).1
}

/// Waits until the proxy is not ready for a reason that contains `reason`.
pub fn wait_until_not_ready(proxy: &Proxy, reason: &str) {
    wait_for(reason, || Some(get_readiness(proxy)).filter(|(status, text)| *status == 503 && text.contains(reason)));
    assert_eq!(proxy.get("/healthz").status, 200, "/healthz fails while /readyz does");
}

/// Runs `segment-redis-proxy healthcheck` and returns its exit code and output.
///
/// `variables` are those of a running proxy.
pub fn run_healthcheck(variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"));
    let output =
        command.arg("healthcheck").env_clear().envs(variables.iter().copied()).output().expect("the binary runs");
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}
