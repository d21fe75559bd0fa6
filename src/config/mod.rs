//! Configuration from environment variables, all checked at start. There is no other source.
//!
//! | file | contents |
//! |---|---|
//! | `variables.rs` | the table: name, default, type, bounds, meaning |
//! | `parse.rs` | values to numbers, durations, sizes and switches |
//! | `error.rs` | the error of a value, with its remedy |
//! | `redis.rs`, `redis_url.rs` | how to reach Redis: mode, URL, credentials, TLS |
//! | `unknown.rs` | warnings about variables that have no effect |
//! | `help.rs` | the text of `--help` |

mod error;
mod help;
mod parse;
mod redis;
mod redis_url;
#[cfg(test)]
mod tests;
mod unknown;
mod variables;

pub use error::{ConfigError, ConfigErrors};
pub use help::help;
pub use unknown::unknown_variables;
pub use variables::{Group, Kind, VARIABLES, Variable};

use self::redis::RedisMode;
use crate::log_format::LogFormat;
use crate::protocol::http::AllowedHosts;
use crate::secret::SecretSource;
use crate::upstream::Upstream;
use std::ffi::OsString;
use std::time::Duration;

/// Checked configuration.
#[derive(Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "a field for each variable or group of them, described in `VARIABLES`")]
pub struct Config {
    pub redis: Upstream,
    pub redis_connections: usize,
    pub redis_timeout: Duration,
    pub redis_tracking: bool,
    pub cache_ttl: Duration,
    pub cache_size: usize,
    pub cache_bytes: Option<usize>,
    pub max_value_bytes: usize,
    pub stale_if_error: Duration,
    pub proxy_host: String,
    pub proxy_port: Option<u16>,
    pub proxy_socket: Option<String>,
    pub proxy_socket_mode: u32,
    pub allowed_hosts: AllowedHosts,
    pub client_password: Option<SecretSource>,
    pub max_connections: usize,
    pub client_bytes: usize,
    pub client_timeout: Duration,
    pub client_idle_timeout: Duration,
    pub http_caching: bool,
    pub max_watchers: usize,
    pub watch_interval: Duration,
    pub share_port: bool,
    pub tls_cert: Option<String>,
    pub tls_key: Option<String>,
    pub tls_client_ca: Option<String>,
    pub tls_required: bool,
    pub shutdown_grace: Duration,
    pub admin: bool,
    pub admin_port: Option<u16>,
    pub admin_host: Option<String>,
    pub access_log: bool,
    pub log_file: Option<String>,
    pub log_format: LogFormat,
    pub log_filter: String,
    pub workers: usize,
}

/// Value of a variable as the dashboard shows it.
#[derive(Debug)]
pub struct ShownValue {
    /// Name of the variable.
    pub name: &'static str,
    /// Value in force. A secret that is set is `(set)`.
    pub value: String,
    /// Unit of a bare number; empty for none.
    pub unit: &'static str,
    /// True if the value differs from the default.
    pub is_changed: bool,
}

/// Returns the value of each variable, without secrets.
pub fn redacted_values(lookup: impl Fn(&str) -> Option<OsString>) -> Vec<ShownValue> {
    let mode = lookup("REDIS_MODE").and_then(|mode| RedisMode::parse(&mode.to_string_lossy()));
    let default_port = mode.unwrap_or_default().default_port();
    let shown = |variable: &Variable| {
        let value = match lookup(variable.name) {
            Some(value) if variable.kind == Kind::Secret && !value.is_empty() => "(set)".into(),
            Some(value) if variable.kind == Kind::RedisUrl && !value.is_empty() => {
                redis_url::parse(&value.to_string_lossy()).map_or("(set)".into(), |url| url.redacted(default_port))
            }
            Some(value) => value.to_string_lossy().into_owned(),
            None => variable.default.into(),
        };
        let value = if value.is_empty() && variable.kind == Kind::LogFilter { variable.default.into() } else { value };
        let unit = if value.ends_with(|c: char| c.is_ascii_digit()) { variable.kind.unit() } else { "" };
        let is_changed = !parse::is_equal(variable.kind, &value, variable.default);
        ShownValue { name: variable.name, unit, is_changed, value }
    };
    VARIABLES.iter().map(shown).collect()
}

/// Reader of the values. Collects the errors of all variables, so that an operator can correct them
/// together. The value of an invalid variable is arbitrary.
struct Reader<L> {
    lookup: L,
    errors: Vec<ConfigError>,
}

impl<L: Fn(&str) -> Option<OsString>> Reader<L> {
    /// Reads a variable as text, and `parse`s it according to its kind.
    fn value<T: Default>(&mut self, name: &'static str, parse: impl Fn(&str, Kind) -> Result<T, String>) -> T {
        let Some(variable) = Variable::find(name) else {
            self.errors.push(ConfigError::unknown(name));
            return T::default();
        };
        let error = match (self.lookup)(name).map(OsString::into_string) {
            None => parse(variable.default, variable.kind).map_err(|problem| (variable.default.to_owned(), problem)),
            Some(Ok(value)) => parse(&value, variable.kind).map_err(|problem| (value, problem)),
            Some(Err(bytes)) => Err((bytes.to_string_lossy().into_owned(), "is not valid UTF-8".to_owned())),
        };
        error.unwrap_or_else(|(value, problem)| {
            self.errors.push(ConfigError::invalid(variable, &value, &problem));
            T::default()
        })
    }

    /// Reads an integer or a size.
    fn number(&mut self, name: &'static str) -> u64 {
        self.value(name, |text, kind| match kind {
            Kind::Number(from, to) | Kind::Keys(from, to) => within(from, parse::integer(text)?, to),
            Kind::Bytes(from, to) => within(from, parse::size(text)?, to),
            _ => Err(NO_NUMBER.into()),
        })
    }

    fn duration(&mut self, name: &'static str) -> Duration {
        self.value(name, |text, kind| match kind {
            Kind::Seconds(from, to) => within(from, parse::duration(text, 1000)?, to),
            Kind::Milliseconds(from, to) => within(from, parse::duration(text, 1)?, to),
            _ => Err(NO_NUMBER.into()),
        })
    }

    fn switch(&mut self, name: &'static str) -> bool {
        self.value(name, |text, _| parse::switch(text))
    }

    fn host(&mut self, name: &'static str) -> String {
        self.value(name, |text, _| parse::host(text).map(|()| text.to_owned()))
    }

    /// Reads a host. Empty text counts as not set.
    fn optional_host(&mut self, name: &'static str) -> Option<String> {
        self.value(name, |text, _| match text {
            "" => Ok(None),
            _ => parse::host(text).map(|()| Some(text.to_owned())),
        })
    }

    /// Reads a port to listen on, `None` for `off`.
    fn port(&mut self, name: &'static str) -> Option<u16> {
        self.value(name, |text, _| parse::port(text))
    }

    /// Reads the path of a socket. Empty text counts as not set.
    fn socket_path(&mut self, name: &'static str) -> Option<String> {
        self.value(name, |text, _| match text {
            "" => Ok(None),
            _ => parse::socket_path(text).map(|()| Some(text.to_owned())),
        })
    }

    fn hosts(&mut self, name: &'static str) -> AllowedHosts {
        self.value(name, |text, _| AllowedHosts::parse(text).ok_or_else(|| "is not a list of host names".into()))
    }

    fn log_format(&mut self, name: &'static str) -> LogFormat {
        self.value(name, |text, _| LogFormat::parse(text).ok_or_else(|| "is not a log format".into()))
    }

    fn log_filter(&mut self, name: &'static str) -> String {
        self.value(name, |text, _| parse::log_filter(text).map(|()| text.to_owned()))
    }

    /// Reads a secret from a variable, or from the file that another variable names.
    fn secret(&mut self, name: &'static str, file_name: &'static str) -> Option<SecretSource> {
        match (self.text(name), self.text(file_name)) {
            (Some(value), Some(_)) => {
                self.errors.push(ConfigError::conflict(name, file_name));
                // Not `None`: a user beside it has a password.
                Some(SecretSource::Value(value))
            }
            (value, None) => value.map(SecretSource::Value),
            (None, Some(path)) => Some(SecretSource::File { variable: file_name, path: path.into() }),
        }
    }

    /// Reads text. Empty text counts as not set.
    fn text(&mut self, name: &'static str) -> Option<String> {
        self.value(name, |text, _| Ok(Some(text.to_owned()).filter(|text| !text.is_empty())))
    }
}

/// Problem of a variable that the table lists with another kind than `Config::read` reads.
const NO_NUMBER: &str = "is not a number in the table of variables";

/// Returns `value` if it is within bounds, inclusive.
fn within<T: PartialOrd>(from: T, value: T, to: T) -> Result<T, String> {
    if from <= value && value <= to { Ok(value) } else { Err("is out of range".into()) }
}

impl Config {
    /// Reads and checks all variables. `lookup` returns the value of a variable, as
    /// [`std::env::var_os`] does.
    ///
    /// # Errors
    ///
    /// The errors of all variables.
    pub fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Config, ConfigErrors> {
        let mut reader = Reader { lookup, errors: Vec::new() };
        let config = Config {
            redis: reader.upstream(),
            redis_connections: reader.number("REDIS_CONNECTIONS") as usize,
            redis_timeout: reader.duration("REDIS_TIMEOUT"),
            redis_tracking: reader.switch("REDIS_TRACKING"),
            cache_ttl: reader.duration("CACHE_TTL"),
            cache_size: reader.number("CACHE_SIZE") as usize,
            cache_bytes: Some(reader.number("CACHE_BYTES") as usize).filter(|&bytes| bytes > 0),
            max_value_bytes: reader.number("MAX_VALUE_BYTES") as usize,
            stale_if_error: reader.duration("STALE_IF_ERROR"),
            proxy_host: reader.host("PROXY_HOST"),
            proxy_port: reader.port("PROXY_PORT"),
            proxy_socket: reader.socket_path("PROXY_SOCKET"),
            proxy_socket_mode: reader.value("PROXY_SOCKET_MODE", |text, _| parse::file_mode(text)),
            allowed_hosts: reader.hosts("ALLOWED_HOSTS"),
            client_password: reader.secret("CLIENT_PASSWORD", "CLIENT_PASSWORD_FILE"),
            max_connections: reader.number("MAX_CONNECTIONS") as usize,
            client_bytes: reader.number("CLIENT_BYTES") as usize,
            client_timeout: reader.duration("CLIENT_TIMEOUT"),
            client_idle_timeout: reader.duration("CLIENT_IDLE_TIMEOUT"),
            http_caching: reader.switch("HTTP_CACHING"),
            max_watchers: reader.number("MAX_WATCHERS") as usize,
            watch_interval: reader.duration("WATCH_INTERVAL"),
            share_port: reader.switch("SHARE_PORT"),
            tls_cert: reader.text("TLS_CERT"),
            tls_key: reader.text("TLS_KEY"),
            tls_client_ca: reader.text("TLS_CLIENT_CA"),
            tls_required: reader.switch("TLS_REQUIRED"),
            shutdown_grace: reader.duration("SHUTDOWN_GRACE"),
            admin: reader.switch("ADMIN"),
            admin_port: reader.port("ADMIN_PORT"),
            admin_host: reader.optional_host("ADMIN_HOST"),
            access_log: reader.switch("ACCESS_LOG"),
            log_file: reader.text("LOG_FILE"),
            log_format: reader.log_format("LOG_FORMAT"),
            log_filter: reader.log_filter("RUST_LOG"),
            workers: reader.number("WORKERS") as usize,
        };
        // The value of an invalid variable is arbitrary.
        if reader.errors.is_empty() {
            reader.errors.extend(config.listener_conflict());
        }
        reader.errors.extend(config.tls_error());
        if reader.errors.is_empty() { Ok(config) } else { Err(ConfigErrors(reader.errors)) }
    }

    /// Returns the error of listeners that exclude each other, or of none at all.
    fn listener_conflict(&self) -> Option<ConfigError> {
        match (self.proxy_port, self.admin_port, &self.admin_host) {
            (None, ..) if self.proxy_socket.is_none() => Some(ConfigError::no_listener()),
            (_, Some(port), _) if !self.admin => Some(ConfigError::admin_port_without_admin(port)),
            // Several event loops share a port, so binding it twice would succeed.
            (Some(port), Some(admin), _) if port == admin && port != 0 => {
                Some(ConfigError::admin_port_is_proxy_port(port))
            }
            (_, None, Some(host)) => Some(ConfigError::admin_host_without_port(host)),
            _ => None,
        }
    }
}

impl Config {
    /// Returns the error of a combination of variables for TLS, if there is one.
    fn tls_error(&self) -> Option<ConfigError> {
        let (name, value, missing) = match (&self.tls_cert, &self.tls_key, &self.tls_client_ca) {
            (Some(path), ..) | (_, Some(path), _) | (.., Some(path)) if !cfg!(feature = "tls") => {
                return Some(ConfigError::built_without_tls(path));
            }
            (Some(path), None, _) => ("TLS_CERT", path, "TLS_KEY"),
            (None, Some(path), _) => ("TLS_KEY", path, "TLS_CERT"),
            (None, None, Some(path)) => ("TLS_CLIENT_CA", path, "TLS_CERT"),
            _ => return None,
        };
        Some(ConfigError::incomplete_tls(name, value, missing))
    }
}
