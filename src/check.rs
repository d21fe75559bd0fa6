//! `segment-redis-proxy check`: tests the configuration without starting a proxy.
//!
//! Reports each step on standard output. The exit code is 0 if the proxy can work, 1 if an address,
//! a file or Redis cannot be used, and 2 if a variable is invalid.

use crate::reload::{describe, read_client_passwords};
use segment_redis_proxy::backend::{CheckStep, RedisAccess, Verdict, check_redis};
use segment_redis_proxy::config::{Config, VARIABLES};
use segment_redis_proxy::secret::SecretSource;
use segment_redis_proxy::server::{
    ConnectionLimiter, Endpoint, UnixSocketError, backend_config, check_port_free, check_unix_socket, exposure_warning,
};
use segment_redis_proxy::tls_server::TlsServer;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// Time to resolve `REDIS_HOST`. The resolver of the system gives up after some seconds for each
/// name server.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Connects and round trips of the check of Redis, rounded up, with two addresses.
const MAX_ROUND_TRIPS: u32 = 12;

/// Checks everything that a start needs, prints the results, and returns the exit code. `warnings`
/// concern variables that have no effect.
pub fn run(config: &Config, warnings: &[String]) -> ExitCode {
    let set = VARIABLES.iter().filter(|variable| std::env::var_os(variable.name).is_some()).count();
    let text = format!("{set} of {} variables set", VARIABLES.len());
    let mut steps = vec![CheckStep::new(Verdict::Ok, "configuration", text)];
    steps.extend(warnings.iter().map(|warning| CheckStep::new(Verdict::Warning, "configuration", warning)));
    if std::env::var_os("CACHE_SIZE").is_none() {
        let text = format!("not set: each worker caches {} keys, which suits a demonstration only", config.cache_size);
        steps.push(CheckStep::new(Verdict::Warning, "CACHE_SIZE", text));
    }
    steps.extend(config.client_password.as_ref().map(check_client_passwords));
    steps.extend(check_listeners(config));
    steps.push(check_file_limit(config));
    steps.extend(config.log_file.as_deref().map(check_log_file));
    steps.extend(TlsServer::from_config(config).map(check_tls));
    steps.extend(check_redis_in_time(config));
    report(&steps)
}

/// Checks Redis on a thread of its own, and gives up after a time that a working Redis never needs.
fn check_redis_in_time(config: &Config) -> Vec<CheckStep> {
    let access = match RedisAccess::load(config.redis.clone()) {
        Ok(access) => Arc::new(access),
        Err(problems) => {
            return problems.lines().map(|problem| CheckStep::new(Verdict::Failed, "Redis", problem)).collect();
        }
    };
    let (sender, result) = mpsc::channel();
    let settings = backend_config(config, access);
    let limit = RESOLVE_TIMEOUT + config.redis_timeout * MAX_ROUND_TRIPS;
    // Without a receiver the time is over.
    let check = move || _ = sender.send(check_redis(&settings));
    let gave_up = |text: String| vec![CheckStep::new(Verdict::Failed, "Redis", text)];
    match std::thread::Builder::new().name("check".into()).spawn(check) {
        Err(error) => gave_up(format!("cannot start a thread: {error}")),
        Ok(_) => result.recv_timeout(limit).unwrap_or_else(|error| match error {
            RecvTimeoutError::Disconnected => gave_up("the check panicked; please report the panic".into()),
            RecvTimeoutError::Timeout => gave_up(format!(
                "{}: no complete replies within {} s; the server or the network is too slow",
                config.redis.target(),
                limit.as_secs_f64()
            )),
        }),
    }
}

/// Prints the steps and the result.
fn report(steps: &[CheckStep]) -> ExitCode {
    let count = |verdict| steps.iter().filter(|step| step.verdict == verdict).count();
    let (failed, warnings) = (count(Verdict::Failed), count(Verdict::Warning));
    let mut text = String::new();
    for CheckStep { verdict, subject, text: result } in steps {
        let verdict = match verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Failed => "failed",
        };
        text.push_str(&format!("{verdict:<8} {subject}: {result}\n"));
    }
    text.push_str(&match failed {
        0 => format!("the proxy can work; {warnings} warning(s)\n"),
        _ => format!("the proxy cannot work; {failed} failed, {warnings} warning(s)\n"),
    });
    // A closed standard output is not an error: the exit code is the result.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Checks certificate, key and authorities for the TLS of clients.
fn check_tls(loaded: Result<TlsServer, String>) -> CheckStep {
    match loaded.map(|tls| tls.validity_warning()) {
        Ok(None) => CheckStep::new(Verdict::Ok, "TLS_CERT", "certificate and key can be used"),
        Ok(Some(warning)) => CheckStep::new(Verdict::Warning, "TLS_CERT", warning),
        Err(error) => CheckStep::new(Verdict::Failed, "TLS_CERT", error),
    }
}

/// Checks that all listening sockets can be created.
fn check_listeners(config: &Config) -> Vec<CheckStep> {
    let host = config.proxy_host.as_str();
    let mut steps = Vec::new();
    if let Some(port) = config.proxy_port {
        steps.extend(check_address(Endpoint::Main, ["PROXY_HOST", "PROXY_PORT"], host, port, config));
    }
    steps.extend(config.proxy_socket.as_deref().map(check_socket));
    if let Some(port) = config.admin_port {
        let (name, host) = config.admin_host.as_deref().map_or(("PROXY_HOST", host), |host| ("ADMIN_HOST", host));
        steps.extend(check_address(Endpoint::Admin, [name, "ADMIN_PORT"], host, port, config));
    }
    steps
}

/// Checks that the Unix socket can be created. Leaves no file.
fn check_socket(path: &str) -> CheckStep {
    let step = |verdict, text| CheckStep::new(verdict, "PROXY_SOCKET", text);
    match check_unix_socket(Path::new(path)) {
        Ok(()) => step(Verdict::Ok, format!("{path} can be created")),
        Err(UnixSocketError::InUse) => {
            step(Verdict::Warning, format!("{path} is in use: a proxy runs already, or another program has the socket"))
        }
        Err(error) => step(Verdict::Failed, format!("cannot listen on {path}: {error}")),
    }
}

/// Checks that an address resolves and can be bound. `names` are the variables that set it.
fn check_address(
    endpoint: Endpoint,
    [host_name, port_name]: [&'static str; 2],
    host: &str,
    port: u16,
    config: &Config,
) -> Vec<CheckStep> {
    let addresses: Vec<SocketAddr> = match (host, port).to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            let text = format!(
                "{host} does not resolve ({error}); set {host_name}=127.0.0.1 for a local run, or {host_name}=0.0.0.0 in a \
                 container"
            );
            return vec![CheckStep::new(Verdict::Failed, host_name, text)];
        }
    };
    let bound = addresses.iter().map(|&address| (address, check_port_free(address))).collect::<Vec<_>>();
    // As at a start, one address that works is enough.
    let Some((address, result)) = bound.iter().find(|(_, result)| result.is_ok()).or(bound.last()) else {
        return vec![CheckStep::new(Verdict::Failed, host_name, format!("{host} resolves to no address"))];
    };
    let mut steps = vec![match result {
        Ok(()) => CheckStep::new(Verdict::Ok, host_name, format!("{address} can be bound")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let text = format!("{address} is in use: a proxy runs already, or another program has the port");
            CheckStep::new(Verdict::Warning, port_name, text)
        }
        Err(error) => {
            let text = format!("cannot listen on {address}: {error}; check {host_name}={host} and {port_name}={port}");
            CheckStep::new(Verdict::Failed, host_name, text)
        }
    }];
    if steps[0].verdict != Verdict::Failed {
        let warning = exposure_warning(endpoint, *address, config);
        steps.extend(warning.map(|warning| CheckStep::new(Verdict::Warning, host_name, warning)));
    }
    steps
}

/// Checks that the passwords of clients can be read.
fn check_client_passwords(source: &SecretSource) -> CheckStep {
    match read_client_passwords(source) {
        Ok(passwords) => CheckStep::new(Verdict::Ok, "CLIENT_PASSWORD", describe(&passwords)),
        Err(problem) => CheckStep::new(Verdict::Failed, "CLIENT_PASSWORD", problem),
    }
}

/// Checks that the limit of open files allows `MAX_CONNECTIONS`.
fn check_file_limit(config: &Config) -> CheckStep {
    let subject = "MAX_CONNECTIONS";
    match ConnectionLimiter::from_config(config) {
        Err(error) => CheckStep::new(Verdict::Failed, subject, error.to_string()),
        Ok(limiter) if limiter.max_connections() < config.max_connections => {
            let text = format!(
                "lowered to {} by the limit of open files; raise it (ulimit -Hn, or LimitNOFILE= in systemd)",
                limiter.max_connections()
            );
            CheckStep::new(Verdict::Warning, subject, text)
        }
        Ok(limiter) => CheckStep::new(Verdict::Ok, subject, format!("{} clients", limiter.max_connections())),
    }
}

/// Checks that the log file can be written or created. Leaves no new file: its owner would be the
/// user of the check.
fn check_log_file(path: &str) -> CheckStep {
    let step = |verdict, text| CheckStep::new(verdict, "LOG_FILE", text);
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            return step(Verdict::Failed, format!("{path} is a directory; name a file in it"));
        }
        // Opening a pipe would wait for its reader.
        Ok(metadata) if !metadata.is_file() => {
            return step(Verdict::Ok, format!("{path} is no regular file and is not tried"));
        }
        Err(_) if std::fs::read_link(path).is_ok() => {
            return step(
                Verdict::Warning,
                format!("{path} is a link to a file that does not exist yet, and is not tried"),
            );
        }
        _ => {}
    }
    let created = match OpenOptions::new().append(true).create_new(true).open(path) {
        Ok(_) => Some(std::fs::remove_file(path)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => None,
        Err(error) => Some(Err(error)),
    };
    match created.unwrap_or_else(|| OpenOptions::new().append(true).open(path).map(drop)) {
        Ok(()) => step(Verdict::Ok, format!("{path} can be written")),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            step(Verdict::Failed, format!("the directory of {path} does not exist; create it"))
        }
        Err(error) => step(Verdict::Failed, format!("cannot open {path}: {error}; check its owner and permissions")),
    }
}
