//! Configuration from environment variables, all checked at start. There is no other source.

use crate::protocol::http::AllowedHosts;
use std::fmt;
use std::time::Duration;

/// Environment variable, as `--help` shows it.
pub struct Variable {
    /// Name of the variable.
    pub name: &'static str,
    /// Value if the variable is not set; empty for none.
    pub default: &'static str,
    /// Allowed values.
    pub allowed: &'static str,
    /// Meaning.
    pub description: &'static str,
}

/// All variables, in the order of `--help` and README.
#[rustfmt::skip]
pub const VARIABLES: [Variable; 26] = [
    Variable { name: "REDIS_HOST", default: "redis", allowed: "a host name or an IP address", description: "host of the Redis server" },
    Variable { name: "REDIS_PORT", default: "6379", allowed: "1 to 65535", description: "port of the Redis server" },
    Variable { name: "REDIS_USERNAME", default: "", allowed: "a name; requires REDIS_PASSWORD", description: "ACL user to authenticate as" },
    Variable { name: "REDIS_PASSWORD", default: "", allowed: "any text", description: "password to authenticate with" },
    Variable { name: "REDIS_DB", default: "0", allowed: "0 to 2147483647", description: "number of the Redis database" },
    Variable { name: "REDIS_CONNECTIONS", default: "4", allowed: "1 to 64", description: "fetchers of each worker, with one Redis connection each" },
    Variable { name: "REDIS_TIMEOUT", default: "1000", allowed: "1 to 600000", description: "timeout in milliseconds for connecting, the handshake and each round trip" },
    Variable { name: "REDIS_TRACKING", default: "off", allowed: "on or off", description: "receive invalidations from Redis, so that changes are visible at once" },
    Variable { name: "CACHE_TTL", default: "15", allowed: "0.001 to 315360000, decimals allowed", description: "lifetime of a cache entry in seconds, counted from insertion" },
    Variable { name: "CACHE_SIZE", default: "3", allowed: "1 to 2000000000", description: "capacity of each worker's cache, in keys" },
    Variable { name: "CACHE_BYTES", default: "0", allowed: "0 to 1000000000000000", description: "capacity of each worker's cache, in bytes of keys and values; 0 for no limit" },
    Variable { name: "MAX_VALUE_BYTES", default: "8388608", allowed: "1 to 536870912", description: "longest value read from Redis, in bytes" },
    Variable { name: "STALE_IF_ERROR", default: "0", allowed: "0 to 315360000, decimals allowed", description: "seconds an expired entry may still be served while Redis is unavailable" },
    Variable { name: "PROXY_HOST", default: "segment", allowed: "a host name or an IP address", description: "address to listen on" },
    Variable { name: "PROXY_PORT", default: "8080", allowed: "0 to 65535", description: "port to listen on; 0 takes a free port and logs it" },
    Variable { name: "ALLOWED_HOSTS", default: "", allowed: "host names separated by commas, without ports or wildcards", description: "host names accepted in HTTP requests (Host); empty accepts any" },
    Variable { name: "MAX_CONNECTIONS", default: "10000", allowed: "1 to 1000000", description: "connection limit of all workers together; further clients get an error and are closed" },
    Variable { name: "CLIENT_BYTES", default: "268435456", allowed: "1 to 1000000000000000", description: "limit in bytes for long values that slow clients have not read yet, of all workers together" },
    Variable { name: "CLIENT_TIMEOUT", default: "10", allowed: "0.1 to 86400, decimals allowed", description: "seconds within which a client must send a whole request" },
    Variable { name: "CLIENT_IDLE_TIMEOUT", default: "60", allowed: "0.1 to 315360000, decimals allowed", description: "seconds after which a client that sends no request, or reads no reply, is closed" },
    Variable { name: "SHARE_PORT", default: "off", allowed: "on or off", description: "let other proxies listen on the same port, for restarts without downtime" },
    Variable { name: "SHUTDOWN_GRACE", default: "10", allowed: "0 to 86400, decimals allowed", description: "seconds to finish requests in flight after SIGTERM or SIGINT" },
    Variable { name: "ADMIN", default: "on", allowed: "on or off", description: "serve the dashboard at /, /metrics and /stats" },
    Variable { name: "ACCESS_LOG", default: "off", allowed: "on or off", description: "log each request to standard output or LOG_FILE" },
    Variable { name: "LOG_FILE", default: "", allowed: "a path", description: "file to log to; SIGHUP reopens it" },
    Variable { name: "WORKERS", default: "1", allowed: "1 to 256", description: "event loops, each with its own cache and Redis connections" },
];

/// The variable that is never shown.
const SECRET: &str = "REDIS_PASSWORD";

/// Ten years. The cache supports deadlines up to 34 years after the start.
const MAX_DURATION: Duration = Duration::from_secs(315_360_000);

/// One day, the longest time for one request and for the shutdown.
const MAX_REQUEST_TIMEOUT: Duration = Duration::from_secs(86_400);

/// A shorter timeout would close clients that wait for a busy machine.
const MIN_CLIENT_TIMEOUT: Duration = Duration::from_millis(100);

/// Longest string in Redis by default (`proto-max-bulk-len`).
const MAX_VALUE_BYTES: u64 = 512 * 1024 * 1024;

/// Checked configuration.
#[derive(Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "one field for each variable, described in `VARIABLES`")]
pub struct Config {
    pub redis_host: String,
    pub redis_port: u16,
    pub redis_username: Option<String>,
    pub redis_password: Option<String>,
    pub redis_db: u32,
    pub redis_connections: usize,
    pub redis_timeout: Duration,
    pub redis_tracking: bool,
    pub cache_ttl: Duration,
    pub cache_size: usize,
    pub cache_bytes: Option<usize>,
    pub max_value_bytes: usize,
    pub stale_if_error: Duration,
    pub proxy_host: String,
    pub proxy_port: u16,
    pub allowed_hosts: AllowedHosts,
    pub max_connections: usize,
    pub client_bytes: usize,
    pub client_timeout: Duration,
    pub client_idle_timeout: Duration,
    pub share_port: bool,
    pub shutdown_grace: Duration,
    pub admin: bool,
    pub access_log: bool,
    pub log_file: Option<String>,
    pub workers: usize,
}

/// Invalid value of a variable. The message is one line with variable, value and allowed values.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

impl ConfigError {
    fn new(name: &str, value: &str, allowed: &str) -> ConfigError {
        // Debug format, so that control characters in the value cannot break the line.
        ConfigError(format!("{name}={value:?} is invalid; allowed: {allowed}"))
    }

    /// Creates the error for a `PROXY_HOST` that does not resolve.
    pub fn unresolvable_proxy_host(value: &str, why: &str) -> ConfigError {
        ConfigError(format!(
            "PROXY_HOST={value:?} does not resolve ({why}); set PROXY_HOST=127.0.0.1 for a local run, or PROXY_HOST=0.0.0.0 \
             in a container"
        ))
    }
}

/// Returns the name and value of each variable. A secret that is set is shown as `(set)`.
pub fn redacted_values(lookup: impl Fn(&str) -> Option<std::ffi::OsString>) -> Vec<(&'static str, String)> {
    let value = |name: &str, default: &str| match lookup(name) {
        Some(value) if name == SECRET && !value.is_empty() => "(set)".into(),
        Some(value) => value.to_string_lossy().into_owned(),
        None => default.into(),
    };
    let all = VARIABLES.iter().map(|variable| (variable.name, variable.default)).chain([("RUST_LOG", "info")]);
    all.map(|(name, default)| (name, value(name, default))).collect()
}

impl Config {
    /// Reads and checks all variables. `lookup` returns the value of a variable, as
    /// [`std::env::var_os`] does.
    pub fn read(lookup: impl Fn(&str) -> Option<std::ffi::OsString>) -> Result<Config, ConfigError> {
        let text = |name: &str| -> Result<(String, &'static Variable), ConfigError> {
            let variable = VARIABLES.iter().find(|variable| variable.name == name);
            let variable = variable.ok_or_else(|| ConfigError(format!("{name} is not a known variable")))?;
            match lookup(name).map(std::ffi::OsString::into_string) {
                None => Ok((variable.default.to_owned(), variable)),
                Some(Ok(value)) => Ok((value, variable)),
                Some(Err(_)) => Err(ConfigError(format!("{name} is not valid UTF-8; allowed: {}", variable.allowed))),
            }
        };
        let integer = |name, from: u64, to: u64| -> Result<u64, ConfigError> {
            let (value, variable) = text(name)?;
            parse_integer(&value)
                .filter(|number| (from..=to).contains(number))
                .ok_or_else(|| ConfigError::new(name, &value, variable.allowed))
        };
        let host = |name| -> Result<String, ConfigError> {
            let (value, variable) = text(name)?;
            let is_valid =
                !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/');
            if is_valid { Ok(value) } else { Err(ConfigError::new(name, &value, variable.allowed)) }
        };
        let seconds = |name, from: Duration, to: Duration| -> Result<Duration, ConfigError> {
            let (value, variable) = text(name)?;
            parse_seconds(&value)
                .filter(|time| (from..=to).contains(time))
                .ok_or_else(|| ConfigError::new(name, &value, variable.allowed))
        };
        let on_off = |name| -> Result<bool, ConfigError> {
            let (value, variable) = text(name)?;
            match value.as_str() {
                "on" => Ok(true),
                "off" => Ok(false),
                _ => Err(ConfigError::new(name, &value, variable.allowed)),
            }
        };
        let hosts = |name| -> Result<AllowedHosts, ConfigError> {
            let (value, variable) = text(name)?;
            AllowedHosts::parse(&value).ok_or_else(|| ConfigError::new(name, &value, variable.allowed))
        };
        let optional = |name| text(name).map(|(value, _)| Some(value).filter(|value| !value.is_empty()));

        let config = Config {
            redis_host: host("REDIS_HOST")?,
            redis_port: integer("REDIS_PORT", 1, 65_535)? as u16,
            redis_username: optional("REDIS_USERNAME")?,
            redis_password: optional("REDIS_PASSWORD")?,
            redis_db: integer("REDIS_DB", 0, 2_147_483_647)? as u32,
            redis_connections: integer("REDIS_CONNECTIONS", 1, 64)? as usize,
            redis_timeout: Duration::from_millis(integer("REDIS_TIMEOUT", 1, 600_000)?),
            redis_tracking: on_off("REDIS_TRACKING")?,
            cache_ttl: seconds("CACHE_TTL", Duration::from_millis(1), MAX_DURATION)?,
            cache_size: integer("CACHE_SIZE", 1, crate::cache::MAX_CAPACITY as u64)? as usize,
            cache_bytes: Some(integer("CACHE_BYTES", 0, 1_000_000_000_000_000)? as usize).filter(|&bytes| bytes > 0),
            max_value_bytes: integer("MAX_VALUE_BYTES", 1, MAX_VALUE_BYTES)? as usize,
            stale_if_error: seconds("STALE_IF_ERROR", Duration::ZERO, MAX_DURATION)?,
            proxy_host: host("PROXY_HOST")?,
            proxy_port: integer("PROXY_PORT", 0, 65_535)? as u16,
            allowed_hosts: hosts("ALLOWED_HOSTS")?,
            max_connections: integer("MAX_CONNECTIONS", 1, 1_000_000)? as usize,
            client_bytes: integer("CLIENT_BYTES", 1, 1_000_000_000_000_000)? as usize,
            client_timeout: seconds("CLIENT_TIMEOUT", MIN_CLIENT_TIMEOUT, MAX_REQUEST_TIMEOUT)?,
            client_idle_timeout: seconds("CLIENT_IDLE_TIMEOUT", MIN_CLIENT_TIMEOUT, MAX_DURATION)?,
            share_port: on_off("SHARE_PORT")?,
            shutdown_grace: seconds("SHUTDOWN_GRACE", Duration::ZERO, MAX_REQUEST_TIMEOUT)?,
            admin: on_off("ADMIN")?,
            access_log: on_off("ACCESS_LOG")?,
            log_file: optional("LOG_FILE")?,
            workers: integer("WORKERS", 1, 256)? as usize,
        };
        match &config.redis_username {
            Some(username) if config.redis_password.is_none() => {
                Err(ConfigError::new("REDIS_USERNAME", username, "a name; requires REDIS_PASSWORD"))
            }
            _ => Ok(config),
        }
    }
}

/// Parses digits. Signs, spaces and underscores are invalid.
fn parse_integer(text: &str) -> Option<u64> {
    let is_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_digits.then(|| text.parse().ok())?
}

/// Parses seconds with optional decimals. Digits below a millisecond are cut.
fn parse_seconds(text: &str) -> Option<Duration> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let seconds = parse_integer(whole)?;
    parse_integer(decimals)?;
    let milliseconds: String = decimals.chars().chain("000".chars()).take(3).collect();
    seconds.checked_mul(1000)?.checked_add(parse_integer(&milliseconds)?).map(Duration::from_millis)
}

/// Returns the text of `--help`.
pub fn help() -> String {
    use fmt::Write;
    let mut text = format!(
        "segment-redis-proxy {}: a read-through cache in front of one Redis\n\n\
         Usage: segment-redis-proxy [healthcheck | --help | --version]\n\n\
         Serves GET /key/{{key}} (JSON) and GET /raw/{{key}} (bytes) over HTTP, and GET, MGET and other read commands over RESP\n\
         on the same port. Hits come from memory, misses from Redis.\n\n\
         `healthcheck` probes the proxy that runs with the same variables. It exits with 0 if the proxy is healthy.\n\n\
         Environment variables, with defaults and allowed values:\n\n",
        env!("CARGO_PKG_VERSION")
    );
    for Variable { name, default, allowed, description } in VARIABLES {
        // Writing into a String cannot fail.
        let _ = writeln!(text, "  {name:<20} {default:<8} {description}\n  {:<29} ({allowed})", "");
    }
    text.push_str("  RUST_LOG             info     log level (error, warn, info, debug)\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Config, String> {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        Config::read(find).map_err(|error| error.to_string())
    }

    /// The defaults are those of the compose file.
    #[test]
    fn defaults_match_compose_file() {
        let config = read(&[]).expect("the defaults are allowed");
        assert_eq!((config.redis_host.as_str(), config.redis_port), ("redis", 6379));
        assert_eq!((config.proxy_host.as_str(), config.proxy_port), ("segment", 8080));
        assert_eq!((config.cache_ttl, config.cache_size, config.workers), (Duration::from_secs(15), 3, 1));
        assert_eq!((config.redis_connections, config.redis_timeout), (4, Duration::from_secs(1)));
        assert_eq!((config.cache_bytes, config.max_value_bytes), (None, 8 * 1024 * 1024));
        assert_eq!((config.redis_tracking, config.stale_if_error), (false, Duration::ZERO));
        assert_eq!((config.allowed_hosts, config.max_connections), (AllowedHosts::default(), 10_000));
        assert_eq!(config.client_bytes, 256 * 1024 * 1024);
        let timeouts = (config.client_timeout, config.client_idle_timeout);
        assert_eq!(timeouts, (Duration::from_secs(10), Duration::from_secs(60)));
        assert_eq!((config.redis_username, config.redis_password, config.redis_db), (None, None, 0));
    }

    /// The error for an invalid value names the variable, the value and the allowed values.
    #[test]
    fn invalid_value_names_allowed_values() {
        for (name, value) in [
            ("REDIS_HOST", ""),
            ("REDIS_HOST", "a b"),
            ("REDIS_PORT", "0"),
            ("REDIS_PORT", "65536"),
            ("REDIS_PORT", "http"),
            ("REDIS_USERNAME", "somebody"),
            ("REDIS_DB", "-1"),
            ("REDIS_CONNECTIONS", "0"),
            ("REDIS_TIMEOUT", "0"),
            ("REDIS_TIMEOUT", "1s"),
            ("CACHE_TTL", "0"),
            ("CACHE_TTL", "-1"),
            ("CACHE_TTL", "nan"),
            ("CACHE_TTL", "1e3"),
            ("CACHE_TTL", "1."),
            ("CACHE_TTL", ".5"),
            ("CACHE_TTL", "0.0009"),
            ("CACHE_TTL", "99999999999999999999"),
            ("CACHE_SIZE", "0"),
            ("CACHE_SIZE", "+3"),
            ("CACHE_SIZE", "3\n"),
            ("CACHE_SIZE", "2000000001"),
            ("CACHE_BYTES", "1k"),
            ("CACHE_BYTES", "1000000000000001"),
            ("MAX_VALUE_BYTES", "0"),
            ("MAX_VALUE_BYTES", "536870913"),
            ("REDIS_TRACKING", ""),
            ("REDIS_TRACKING", "ON"),
            ("REDIS_TRACKING", "yes"),
            ("STALE_IF_ERROR", "-1"),
            ("STALE_IF_ERROR", "315360000.001"),
            ("PROXY_HOST", ""),
            ("PROXY_PORT", "65536"),
            ("ALLOWED_HOSTS", "a:80"),
            ("ALLOWED_HOSTS", "a,,b"),
            ("MAX_CONNECTIONS", "0"),
            ("MAX_CONNECTIONS", "1000001"),
            ("CLIENT_BYTES", "0"),
            ("CLIENT_TIMEOUT", "0"),
            ("CLIENT_TIMEOUT", "0.0999"),
            ("CLIENT_TIMEOUT", "86400.001"),
            ("CLIENT_IDLE_TIMEOUT", "0"),
            ("SHARE_PORT", "yes"),
            ("SHUTDOWN_GRACE", "-1"),
            ("ADMIN", ""),
            ("ACCESS_LOG", "1"),
            ("WORKERS", "0"),
            ("WORKERS", ""),
        ] {
            let text = read(&[(name, value)]).err().unwrap_or_else(|| panic!("{name}={value:?} was accepted"));
            let allowed = VARIABLES.iter().find(|variable| variable.name == name).expect("a variable").allowed;
            assert_eq!(text, format!("{name}={value:?} is invalid; allowed: {allowed}"));
        }
    }

    /// Durations in seconds accept decimals down to a millisecond.
    #[test]
    fn seconds_accept_decimals() {
        for (text, milliseconds) in [("15", 15_000), ("0.5", 500), ("1.25", 1250), ("0.001", 1), ("2.9999", 2999)] {
            let config = read(&[("CACHE_TTL", text)]).expect("allowed");
            assert_eq!(config.cache_ttl, Duration::from_millis(milliseconds), "{text}");
        }
        let config =
            read(&[("STALE_IF_ERROR", "0.25"), ("CACHE_BYTES", "1"), ("REDIS_TRACKING", "on")]).expect("allowed");
        assert_eq!((config.stale_if_error, config.cache_bytes), (Duration::from_millis(250), Some(1)));
        assert!(config.redis_tracking);
    }

    /// Values are shown, except the password.
    #[test]
    fn password_is_redacted() {
        let set = [("REDIS_PASSWORD", "secret"), ("CACHE_TTL", "7"), ("RUST_LOG", "debug")];
        let values =
            redacted_values(|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()));
        let value = |name: &str| values.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str());
        assert_eq!((value("CACHE_TTL"), value("RUST_LOG"), value("CACHE_SIZE")), (Some("7"), Some("debug"), Some("3")));
        assert_eq!(value("REDIS_PASSWORD"), Some("(set)"));
        assert!(!format!("{values:?}").contains("secret"));
    }

    /// `--help` names each variable.
    #[test]
    fn help_names_every_variable() {
        assert!(VARIABLES.iter().all(|variable| help().contains(variable.name)));
    }
}
