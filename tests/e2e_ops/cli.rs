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

/// The build has compiled the options of `.cargo/config.toml` into the allocator, which knows all
/// of them. jemalloc reports an unknown option, and its configuration, on standard error.
#[test]
fn allocator_has_the_compiled_options() {
    let (code, _, statistics) = run(&["--version"], &[("_RJEM_MALLOC_CONF", "stats_print:true,stats_print_opts:ma")]);
    assert_eq!(code, Some(0));
    let configuration = include_str!("../../.cargo/config.toml");
    let options = configuration
        .lines()
        .find_map(|line| line.strip_prefix("JEMALLOC_SYS_WITH_MALLOC_CONF = "))
        .expect("options in .cargo/config.toml");
    let expected = format!("config.malloc_conf: \"background_thread:true,{}\"", options.trim_matches('"'));
    assert!(statistics.contains(&expected), "no {expected:?} in {statistics}");
    assert!(!statistics.contains("Invalid"), "{statistics}");
}

/// Each invalid variable is one line on standard error, after the warnings about misspelt names.
/// The exit code is 2.
#[test]
fn invalid_variables_exit_with_2() {
    let variables =
        [("CACHE_TTL", "soon"), ("WORKERS", "many\n"), ("REDIS_USERNAME", "app"), ("REDIS_PASSWRD", "secret")];
    let expected = [
        "REDIS_PASSWRD is not a known variable and has no effect; did you mean REDIS_PASSWORD?",
        "REDIS_USERNAME=\"app\" has no password; allowed: both or only a password; set REDIS_PASSWORD or \
         REDIS_PASSWORD_FILE too",
        "CACHE_TTL=\"soon\" is not a number; allowed: 0.001 to 315360000 seconds, or with a unit such as 500ms, 60s, 15m or \
         2h; for example CACHE_TTL=15",
        "WORKERS=\"many\\n\" is not a whole number; allowed: 1 to 256; for example WORKERS=1",
    ];
    let expected: String = expected.map(|line| format!("segment-redis-proxy: {line}\n")).concat();
    assert_eq!(run(&[], &variables), (Some(2), String::new(), expected));
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

/// The compose file has every variable with its default.
#[test]
fn compose_file_has_all_defaults() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docker-compose.yml");
    let compose = std::fs::read_to_string(path).expect("a file of the repository");
    for variable in segment_redis_proxy::config::VARIABLES {
        let (name, default) = (variable.name, variable.default);
        assert!(
            compose.contains(&format!("{name}: ${{{name}:-{default}}}")),
            "docker-compose.yml has no {name}={default}"
        );
    }
}

/// A misspelt variable and a reachable port are warnings at start. The start is one line.
#[test]
fn start_logs_settings_and_warnings() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("PROXY_HOST", "0.0.0.0"), ("CACHE_TLL", "1"), ("CACHE_BYTES", "1mb")]);
    let start = format!(
        "segment-redis-proxy {} listening on 0.0.0.0:{}, Redis at 127.0.0.1:{} database 0, 1 worker(s) with up to 100000 keys \
         and 1048576 bytes each, changes visible within CACHE_TTL=15 s",
        env!("CARGO_PKG_VERSION"),
        proxy.address.port(),
        redis.port
    );
    for expected in [
        "CACHE_TLL is not a known variable and has no effect; did you mean CACHE_TTL?",
        &start,
        "clients are not authenticated: each machine that reaches 0.0.0.0",
    ] {
        proxy.wait_for_log(expected);
    }
}
