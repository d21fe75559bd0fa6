//! Tests of the command line: arguments, environment variables, signals, exit codes.

use crate::common::{Proxy, Redis};
use std::process::{Command, Output};

/// Runs the binary to its end. Returns its exit code, standard output and standard error.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

/// `--help` lists every variable, `--version` prints the version, other arguments are refused.
#[test]
fn help_and_version_are_printed() {
    let (code, help, _) = run(&["--help"], &[]);
    assert_eq!(code, Some(0));
    for variable in segment_redis_proxy::config::VARIABLES {
        assert!(help.contains(variable.name) && help.contains(variable.description), "{} is missing", variable.name);
    }
    let version = concat!("segment-redis-proxy ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(run(&["--version"], &[]), (Some(0), version.to_owned(), String::new()));
    assert_eq!(run(&["--port", "1"], &[]).0, Some(2));
}

/// An invalid variable is one line on standard error and exit code 2.
#[test]
fn invalid_variable_exits_with_2() {
    for (name, value, line) in [
        ("CACHE_TTL", "soon", "CACHE_TTL=\"soon\" is invalid; allowed: 0.001 to 315360000, decimals allowed"),
        ("CACHE_SIZE", "0", "CACHE_SIZE=\"0\" is invalid; allowed: 1 to 2000000000"),
        ("WORKERS", "many\n", "WORKERS=\"many\\n\" is invalid; allowed: 1 to 256"),
        ("PROXY_PORT", "99999", "PROXY_PORT=\"99999\" is invalid; allowed: 0 to 65535"),
    ] {
        let expected = format!("segment-redis-proxy: {line}\n");
        assert_eq!(run(&[], &[(name, value)]), (Some(2), String::new(), expected));
    }
    let (code, _, text) = run(&[], &[("PROXY_HOST", "no-such-name.invalid")]);
    assert_eq!((code, text.lines().count()), (Some(2), 1), "{text}");
    assert!(text.contains("PROXY_HOST=\"no-such-name.invalid\" does not resolve"), "{text}");
    assert!(text.contains("set PROXY_HOST=127.0.0.1"), "{text}");
}

/// A port in use is exit code 1, also if the process that listens there is a proxy.
#[test]
fn used_port_exits_with_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("a bound listener").port().to_string();
    let (code, _, text) = run(&[], &[("PROXY_HOST", "127.0.0.1"), ("PROXY_PORT", &port)]);
    assert_eq!(code, Some(1));
    assert!(text.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{text}");
    // The workers of one process share a port. Another process may share it with SHARE_PORT only.
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("WORKERS", "2")]);
    let port = proxy.address.port().to_string();
    let (code, _, text) = run(&[], &[("PROXY_HOST", "127.0.0.1"), ("PROXY_PORT", &port), ("WORKERS", "2")]);
    assert_eq!(code, Some(1));
    assert!(text.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{text}");
}

/// SIGTERM and SIGINT end the process with exit code 0.
#[test]
fn both_signals_exit_with_0() {
    let redis = Redis::start();
    for signal in ["TERM", "INT"] {
        let proxy = Proxy::start(&redis, &[("WORKERS", "2")]);
        assert_eq!(proxy.get("/key/a").status, 404);
        assert_eq!(proxy.stop(signal), Some(0), "SIG{signal}");
    }
}

/// README and compose file have every variable with its default.
#[test]
fn documented_defaults_match_program() {
    let file = |name: &str| {
        std::fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).expect("a file of the repository")
    };
    let (readme, compose) = (file("README.md"), file("docker-compose.yml"));
    for variable in segment_redis_proxy::config::VARIABLES {
        let (name, default) = (variable.name, variable.default);
        let row = format!("| {name} | {default} |").replace("|  |", "| |");
        assert!(readme.contains(&row), "README.md has no {row:?}");
        assert!(
            compose.contains(&format!("{name}: ${{{name}:-{default}}}")),
            "docker-compose.yml has no {name}={default}"
        );
    }
}
