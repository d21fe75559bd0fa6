//! The binary as it is started and ended: arguments, variables, exit codes.

use crate::common::{Proxy, Redis};
use std::process::{Command, Output};

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

#[test]
fn help_and_version_are_there() {
    let (code, help, _) = run(&["--help"], &[]);
    assert_eq!(code, Some(0));
    for variable in segment_redis_proxy::config::VARIABLES {
        assert!(help.contains(variable.name) && help.contains(variable.description), "{} is missing", variable.name);
    }
    let version = concat!("segment-redis-proxy ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(run(&["--version"], &[]), (Some(0), version.to_owned(), String::new()));
    assert_eq!(run(&["--port", "1"], &[]).0, Some(2));
}

#[test]
fn a_wrong_value_is_one_line_and_exit_code_2() {
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

#[test]
fn a_port_that_is_taken_is_exit_code_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let (code, _, text) = run(&[], &[("PROXY_HOST", "127.0.0.1"), ("PROXY_PORT", &port)]);
    assert_eq!(code, Some(1));
    assert!(text.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{text}");
    // Several loops share a port with each other, and with nobody else unless they are told to.
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("WORKERS", "2")]);
    let port = proxy.address.port().to_string();
    let (code, _, text) = run(&[], &[("PROXY_HOST", "127.0.0.1"), ("PROXY_PORT", &port), ("WORKERS", "2")]);
    assert_eq!(code, Some(1));
    assert!(text.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{text}");
}

#[test]
fn both_signals_end_it_with_exit_code_0() {
    let redis = Redis::start();
    for signal in ["TERM", "INT"] {
        let proxy = Proxy::start(&redis, &[("WORKERS", "2")]);
        assert_eq!(proxy.get("/key/a").status, 404);
        assert_eq!(proxy.stop(signal), Some(0), "SIG{signal}");
    }
}

/// What is written of the variables in other places is what the program has.
#[test]
fn readme_and_compose_file_know_every_variable_and_its_default() {
    let file = |name: &str| std::fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).expect("a file");
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
