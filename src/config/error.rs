//! Errors of the configuration. Each is one line: variable, value, problem, allowed values, remedy.

use super::parse;
use super::variables::{Kind, Variable};
use std::fmt;

/// Invalid value of a variable. The message is one line.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError(String);

/// Errors of all variables. The message has a line for each.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<&str> = self.0.iter().map(|error| error.0.as_str()).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

impl std::error::Error for ConfigErrors {}

impl ConfigError {
    /// Creates the error for a value. `problem` is a phrase that follows the value.
    pub(super) fn invalid(variable: &Variable, value: &str, problem: &str) -> ConfigError {
        let (name, allowed) = (variable.name, variable.kind.allowed());
        let shown = match variable.kind {
            Kind::Secret | Kind::RedisUrl => String::new(),
            // Debug format, so that control characters in the value cannot break the line.
            Kind::Host | Kind::OptionalHost | Kind::Number(..) | Kind::Port => {
                format!("={:?}", without_credentials(value))
            }
            _ => format!("={value:?}"),
        };
        ConfigError(format!("{name}{shown} {problem}; allowed: {allowed}; {}", remedy(variable, value)))
    }

    /// Creates the error for a variable that the table does not have.
    pub(super) fn unknown(name: &str) -> ConfigError {
        ConfigError(format!("{name} is not in the table of variables; please report this"))
    }

    /// Creates the error for two variables that exclude each other.
    pub(super) fn conflict(first: &str, second: &str) -> ConfigError {
        ConfigError(format!("{first} and {second} are both set; allowed: one of them; unset {second} or {first}"))
    }

    /// Creates the error for a variable that has no effect without `needed`.
    pub(super) fn needs(name: &str, needed: &str) -> ConfigError {
        ConfigError(format!("{name} is set without {needed}; allowed: both or none; set {needed} too, or unset {name}"))
    }

    /// Creates the error for a variable that asks for TLS in a build without it.
    pub(super) fn no_tls(name: &str) -> ConfigError {
        ConfigError(format!(
            "{name} asks for TLS, which this build does not have; allowed: no TLS; use a build with the cargo feature `tls`"
        ))
    }

    /// Creates the error for TLS files in a build without TLS.
    pub(super) fn built_without_tls(path: &str) -> ConfigError {
        ConfigError(format!(
            "TLS_CERT, TLS_KEY or TLS_CLIENT_CA={path:?} needs TLS, which this build does not have; allowed: not set; unset \
             it, or build with the feature tls"
        ))
    }

    /// Creates the error for a TLS file without another one that it needs.
    pub(super) fn incomplete_tls(name: &str, path: &str, missing: &str) -> ConfigError {
        ConfigError(format!(
            "{name}={path:?} has no {missing}; allowed: TLS_CERT and TLS_KEY, both or neither; set {missing} too"
        ))
    }

    /// Creates the error for a URL with a user and no password. The user may be a password.
    pub(super) fn url_without_password() -> ConfigError {
        ConfigError(
            "REDIS_URL has a user without a password; allowed: both, or only a password; write redis://:password@host for \
             the latter, or set REDIS_PASSWORD_FILE too"
                .into(),
        )
    }

    /// Creates the error for a user without a password. `name` is the variable of the user, and
    /// `password_name` that of the password.
    pub(super) fn username_without_password(name: &str, username: &str, password_name: &str) -> ConfigError {
        let username = without_credentials(username);
        ConfigError(format!(
            "{name}={username:?} has no password; allowed: both or only a password; set {password_name} or \
             {password_name}_FILE too"
        ))
    }

    /// Creates the error for sentinels without the name of the primary.
    pub(super) fn sentinel_without_master() -> ConfigError {
        ConfigError(
            "REDIS_MASTER is not set, but REDIS_MODE=sentinel needs it; allowed: the name under which the sentinels \
             monitor the primary; for example REDIS_MASTER=mymaster"
                .into(),
        )
    }

    /// Creates the error for sentinels without their addresses.
    pub(super) fn sentinel_without_url() -> ConfigError {
        ConfigError(
            "REDIS_URL is not set, but REDIS_MODE=sentinel needs it; allowed: the hosts of the sentinels, which \
             REDIS_HOST and REDIS_PORT cannot name; for example REDIS_URL=redis://sentinel-1,sentinel-2,sentinel-3"
                .into(),
        )
    }

    /// Creates the error for several hosts without a mode that has several.
    pub(super) fn several_hosts_in_single_mode() -> ConfigError {
        ConfigError(
            "REDIS_URL has several hosts, but REDIS_MODE=single has one; allowed: one host; set REDIS_MODE=sentinel or \
             REDIS_MODE=cluster, or name one host"
                .into(),
        )
    }

    /// Creates the error for a Unix socket where servers are found by host and port.
    pub(super) fn unix_socket_in_mode(mode: &str) -> ConfigError {
        ConfigError(format!(
            "REDIS_URL names a Unix socket, but REDIS_MODE={mode} needs hosts; allowed: \
             redis://host[:port][,host[:port]...]; name hosts, or set REDIS_MODE=single"
        ))
    }

    /// Creates the error for a database of a cluster other than 0. `name` is its variable.
    pub(super) fn database_in_cluster(name: &str, database: u32) -> ConfigError {
        ConfigError(format!(
            "{name} names database {database}, but REDIS_MODE=cluster has only database 0; allowed: 0; remove the number \
             from {name}, or set REDIS_MODE=single"
        ))
    }

    /// Creates the error for `PROXY_PORT=off` without `PROXY_SOCKET`.
    pub(super) fn no_listener() -> ConfigError {
        ConfigError(
            "PROXY_PORT=\"off\" without PROXY_SOCKET leaves clients no way to connect; set PROXY_SOCKET, or a PROXY_PORT \
             such as 8080"
                .into(),
        )
    }

    /// Creates the error for an `ADMIN_PORT` with `ADMIN=off`.
    pub(super) fn admin_port_without_admin(port: u16) -> ConfigError {
        ConfigError(format!(
            "ADMIN_PORT={port} contradicts ADMIN=off, which turns off what this port serves; set ADMIN=on or ADMIN_PORT=off"
        ))
    }

    /// Creates the error for an `ADMIN_PORT` that clients use already.
    pub(super) fn admin_port_is_proxy_port(port: u16) -> ConfigError {
        ConfigError(format!("ADMIN_PORT={port} is also the PROXY_PORT; set another ADMIN_PORT"))
    }

    /// Creates the error for an `ADMIN_HOST` without `ADMIN_PORT`.
    pub(super) fn admin_host_without_port(host: &str) -> ConfigError {
        ConfigError(format!("ADMIN_HOST={host:?} has no ADMIN_PORT; set ADMIN_PORT too, or unset ADMIN_HOST"))
    }

    /// Creates the error for a host that does not resolve. `name` is its variable.
    pub fn unresolvable_host(name: &str, value: &str, why: &str) -> ConfigError {
        ConfigError(format!(
            "{name}={value:?} does not resolve ({why}); set {name}=127.0.0.1 for a local run, or {name}=0.0.0.0 in a \
             container"
        ))
    }
}

/// Returns what to write instead of an invalid value.
fn remedy(variable: &Variable, value: &str) -> String {
    let name = variable.name;
    let specific = match variable.kind {
        _ if is_service_link(value) => Some(format!(
            "Kubernetes sets this variable for a Service of that name: set enableServiceLinks: false in the pod, or set \
             {name} in its env"
        )),
        Kind::Host if name == "REDIS_HOST" && is_host_list(value) => {
            Some("name several hosts in REDIS_URL, with REDIS_MODE=sentinel or REDIS_MODE=cluster".into())
        }
        Kind::Host | Kind::OptionalHost => host_remedy(name, value),
        Kind::Secret => Some(format!("set a {name} in UTF-8")),
        Kind::RedisUrl => Some(format!("for example {name}=rediss://user:password@redis.internal:6379/0")),
        Kind::Number(..) | Kind::Port if value.contains("://") => Some("write the number alone, not a URL".into()),
        Kind::Keys(..) if ends_with_letter(value) && parse::size(value).is_ok() => {
            Some(format!("{name} counts keys: for a limit in bytes set CACHE_BYTES={value}"))
        }
        Kind::Number(..) | Kind::Keys(..) if ends_with_letter(value) => Some("write the number without a unit".into()),
        Kind::Bytes(..) => {
            let with_unit = format!("{value}b");
            (ends_with_letter(value) && parse::size(&with_unit).is_ok())
                .then(|| format!("the unit may be a power of 1000 or of 1024: write {name}={with_unit} for 1024"))
        }
        Kind::LogFilter => parse::foreign_log_level(value).map(|level| format!("write {name}={level}")),
        _ => None,
    };
    specific.unwrap_or_else(|| match variable.default {
        "" => format!("unset {name} if it is not needed"),
        default => format!("for example {name}={default}"),
    })
}

/// Returns true for the value that Kubernetes and Docker links give to `NAME_PORT`.
pub(super) fn is_service_link(value: &str) -> bool {
    ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
}

fn ends_with_letter(value: &str) -> bool {
    value.ends_with(|c: char| c.is_ascii_alphabetic())
}

/// Returns true for several hosts, with or without ports.
fn is_host_list(value: &str) -> bool {
    let is_host = |text: &str| parse::host(parse::host_and_port(text).map_or(text, |(host, _)| host)).is_ok();
    value.contains(',') && value.split(',').all(is_host)
}

/// Schemes of URLs that `REDIS_URL` accepts.
const REDIS_SCHEMES: [&str; 5] = ["redis", "rediss", "valkey", "valkeys", "unix"];

/// Returns how to write a URL, or a host with a port, as two variables.
fn host_remedy(name: &str, value: &str) -> Option<String> {
    let port_name = name.replace("HOST", "PORT");
    let rest = match value.split_once("://") {
        None => value,
        Some((scheme, _)) if name == "REDIS_HOST" && REDIS_SCHEMES.contains(&scheme) => {
            return Some("set REDIS_URL to it, and leave REDIS_HOST unset".into());
        }
        Some((_, rest)) => rest,
    };
    // A password may contain a slash or a question mark, so the credentials go first. But the text
    // before a parameter may be an authority already.
    let before = rest.split(['/', '?', '#', ',', ';']).next().unwrap_or_default();
    let is_authority = parse::host(parse::host_and_port(before).map_or(before, |(host, _)| host)).is_ok();
    let (credentials, authority) = match rest.rsplit_once('@') {
        Some((credentials, rest)) if !is_authority => {
            (credentials, rest.split(['/', '?', '#']).next().unwrap_or_default())
        }
        _ => ("", before),
    };
    let (host, port) = parse::host_and_port(authority).unwrap_or((authority, ""));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    // The password is not repeated here, because the message may reach a log.
    let password = if credentials.is_empty() { "" } else { ", and REDIS_PASSWORD" };
    let port = if port.is_empty() { String::new() } else { format!(" and {port_name}={port}") };
    (parse::host(host).is_ok() && host != value).then(|| format!("write {name}={host}{port}{password}"))
}

/// Returns a value without user, password and parameters. Shows only the scheme of a URL, and
/// nothing of another value that may hold credentials: the remedy names the host.
fn without_credentials(value: &str) -> String {
    let is_scheme = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase());
    match value.split_once("://").map(|(scheme, _)| scheme).filter(is_scheme) {
        Some(scheme) if !is_service_link(value) => format!("{scheme}://..."),
        None if value.contains(|c| "@?#,;=".contains(c)) => "...".to_owned(),
        _ => value.to_owned(),
    }
}
