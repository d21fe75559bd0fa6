//! Configuration from environment variables, all checked at start. There is no other source.
//!
//! | file | contents |
//! |---|---|
//! | `variables.rs` | the table: name, default, type, bounds, meaning |
//! | `parse.rs` | values to numbers, durations, sizes and switches |
//! | `error.rs` | the error of a value, with its remedy |
//! | `redis.rs`, `redis_url.rs` | how to reach Redis: URL, credentials, TLS |
//! | `unknown.rs` | warnings about variables that have no effect |
//! | `help.rs` | the text of `--help` |

mod error;
mod help;
mod parse;
mod redis;
mod redis_url;
mod unknown;
mod variables;

pub use error::{ConfigError, ConfigErrors};
pub use help::help;
pub use unknown::unknown_variables;
pub use variables::{Group, Kind, VARIABLES, Variable};

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
    let shown = |variable: &Variable| {
        let value = match lookup(variable.name) {
            Some(value) if variable.kind == Kind::Secret && !value.is_empty() => "(set)".into(),
            Some(value) if variable.kind == Kind::RedisUrl && !value.is_empty() => {
                redis_url::parse(&value.to_string_lossy()).map_or("(set)".into(), |url| url.redacted())
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
            (Some(_), Some(_)) => {
                self.errors.push(ConfigError::conflict(name, file_name));
                None
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::UpstreamAddress;

    fn read(variables: &[(&str, &str)]) -> Result<Config, String> {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        Config::read(find).map_err(|error| error.to_string())
    }

    /// The defaults are those of the compose file.
    #[test]
    fn defaults_match_compose_file() {
        let config = read(&[]).expect("the defaults are allowed");
        let address = UpstreamAddress::Tcp("redis".into(), 6379);
        assert_eq!(config.redis, Upstream { address, username: None, password: None, database: 0, tls: None });
        assert_eq!((config.proxy_host.as_str(), config.proxy_port), ("segment", Some(8080)));
        assert_eq!((config.cache_ttl, config.cache_size, config.workers), (Duration::from_secs(15), 3, 1));
        assert_eq!((config.redis_connections, config.redis_timeout), (4, Duration::from_secs(1)));
        assert_eq!((config.cache_bytes, config.max_value_bytes), (None, 8 * 1024 * 1024));
        assert_eq!((config.redis_tracking, config.stale_if_error), (false, Duration::ZERO));
        assert_eq!((config.allowed_hosts, config.max_connections), (AllowedHosts::default(), 10_000));
        let socket = (config.proxy_socket, config.proxy_socket_mode, config.admin_port, config.admin_host);
        assert_eq!(socket, (None, 0o660, None, None));
        assert_eq!(config.client_bytes, 256 * 1024 * 1024);
        let timeouts = (config.client_timeout, config.client_idle_timeout);
        assert_eq!(timeouts, (Duration::from_secs(10), Duration::from_secs(60)));
        let log = (config.log_filter.as_str(), config.log_file, config.log_format);
        assert_eq!(log, ("info", None, LogFormat::Text));
    }

    /// The error of an invalid value has the variable, the value, the problem and what is allowed.
    #[test]
    fn invalid_value_names_allowed_values() {
        for (name, value, problem) in [
            ("REDIS_HOST", "", "is empty"),
            ("REDIS_HOST", "a b", "is not a host"),
            ("REDIS_PORT", "0", "is out of range"),
            ("REDIS_PORT", "65536", "is out of range"),
            ("REDIS_PORT", "http", "is not a whole number"),
            ("REDIS_DB", "-1", "is not a whole number"),
            ("REDIS_CONNECTIONS", "0", "is out of range"),
            ("REDIS_TIMEOUT", "0", "is out of range"),
            ("REDIS_TIMEOUT", "11m", "is out of range"),
            ("REDIS_TIMEOUT", "1.5", "has decimals"),
            ("CACHE_TTL", "0", "is out of range"),
            ("CACHE_TTL", "-1", "is not a number"),
            ("CACHE_TTL", "nan", "is not a number"),
            ("CACHE_TTL", "1e3", "has an unknown unit"),
            ("CACHE_TTL", "1.", "is not a number"),
            ("CACHE_TTL", ".5", "is not a number"),
            ("CACHE_TTL", "0.0009", "is out of range"),
            ("CACHE_TTL", "99999999999999999999", "is out of range"),
            ("CACHE_SIZE", "0", "is out of range"),
            ("CACHE_SIZE", "+3", "is not a whole number"),
            ("CACHE_SIZE", "3\n", "is not a whole number"),
            ("CACHE_SIZE", "2000000001", "is out of range"),
            ("CACHE_BYTES", "1k", "has an unknown unit"),
            ("CACHE_BYTES", "1000000000000001", "is out of range"),
            ("MAX_VALUE_BYTES", "0", "is out of range"),
            ("MAX_VALUE_BYTES", "513mb", "is out of range"),
            ("REDIS_TRACKING", "", "is empty"),
            ("REDIS_TRACKING", "maybe", "is neither"),
            ("STALE_IF_ERROR", "-1", "is not a number"),
            ("STALE_IF_ERROR", "315360000.001", "is out of range"),
            ("PROXY_HOST", "", "is empty"),
            ("PROXY_PORT", "65536", "is out of range"),
            ("PROXY_PORT", "", "is empty"),
            ("PROXY_SOCKET", "run/proxy.sock", "is not an absolute path"),
            ("PROXY_SOCKET", "/run/", "is a directory"),
            ("PROXY_SOCKET_MODE", "rw", "is not an octal number"),
            ("PROXY_SOCKET_MODE", "440", "is out of range"),
            ("ADMIN_PORT", "none", "is not a whole number"),
            ("ADMIN_HOST", "a:80", "has a port"),
            ("ALLOWED_HOSTS", "a:80", "is not a list of host names"),
            ("ALLOWED_HOSTS", "a,,b", "is not a list of host names"),
            ("MAX_CONNECTIONS", "0", "is out of range"),
            ("MAX_CONNECTIONS", "1000001", "is out of range"),
            ("CLIENT_BYTES", "0", "is out of range"),
            ("CLIENT_TIMEOUT", "0", "is out of range"),
            ("CLIENT_TIMEOUT", "99ms", "is out of range"),
            ("CLIENT_TIMEOUT", "86400.001", "is out of range"),
            ("CLIENT_IDLE_TIMEOUT", "0", "is out of range"),
            ("SHARE_PORT", "2", "is neither"),
            ("SHUTDOWN_GRACE", "-1", "is not a number"),
            ("ADMIN", "", "is empty"),
            ("ACCESS_LOG", "enabled", "is neither"),
            ("LOG_FORMAT", "", "is not a log format"),
            ("LOG_FORMAT", "xml", "is not a log format"),
            ("RUST_LOG", "loud", "is not a log level"),
            ("WORKERS", "0", "is out of range"),
            ("WORKERS", "", "is empty"),
        ] {
            let text = read(&[(name, value)]).err().unwrap_or_else(|| panic!("{name}={value:?} was accepted"));
            let allowed = Variable::find(name).expect("a variable").kind.allowed();
            let expected = format!("{name}={value:?} {problem}; allowed: {allowed}; ");
            assert!(text.starts_with(&expected) && text.lines().count() == 1, "{text:?}, not {expected:?}");
        }
    }

    /// The error of a usual mistake says what to write instead.
    #[test]
    fn usual_mistakes_have_remedies() {
        for (name, value, remedy) in [
            ("REDIS_HOST", "cache.internal:6380", "write REDIS_HOST=cache.internal and REDIS_PORT=6380"),
            ("REDIS_HOST", "[::1]:6379", "write REDIS_HOST=::1 and REDIS_PORT=6379"),
            ("REDIS_HOST", "redis://:pw/with@slash@h:1", "set REDIS_URL to it, and leave REDIS_HOST unset"),
            ("REDIS_HOST", "http://:pw@h:1", "write REDIS_HOST=h and REDIS_PORT=1, and REDIS_PASSWORD"),
            ("REDIS_HOST", "user:pw@h:1", "write REDIS_HOST=h and REDIS_PORT=1, and REDIS_PASSWORD"),
            ("REDIS_HOST", ":pw@h", "write REDIS_HOST=h, and REDIS_PASSWORD"),
            ("REDIS_HOST", "h:1,password=pw,ssl=True", "write REDIS_HOST=h and REDIS_PORT=1"),
            ("REDIS_HOST", "user:p://pw@h", "write REDIS_HOST=h, and REDIS_PASSWORD"),
            ("REDIS_HOST", "h?password=pw", "write REDIS_HOST=h"),
            ("REDIS_HOST", "[::1]", "write REDIS_HOST=::1"),
            ("REDIS_PORT", "redis://:pw@h", "write the number alone, not a URL"),
            ("REDIS_HOST", "rediss://h", "set REDIS_URL to it, and leave REDIS_HOST unset"),
            ("REDIS_HOST", "unix:///run/redis.sock", "set REDIS_URL to it, and leave REDIS_HOST unset"),
            ("REDIS_URL", "h:pw", "for example REDIS_URL=rediss://user:password@redis.internal:6379/0"),
            ("PROXY_HOST", "0.0.0.0:80", "write PROXY_HOST=0.0.0.0 and PROXY_PORT=80"),
            (
                "REDIS_PORT",
                "tcp://10.0.0.11:6379",
                "Kubernetes sets this variable for a Service of that name: set enableServiceLinks: false in the pod, or \
                 set REDIS_PORT in its env",
            ),
            ("CACHE_SIZE", "256mb", "CACHE_SIZE counts keys: for a limit in bytes set CACHE_BYTES=256mb"),
            ("CACHE_SIZE", "10k", "write the number without a unit"),
            ("CACHE_BYTES", "256m", "the unit may be a power of 1000 or of 1024: write CACHE_BYTES=256mb for 1024"),
            ("RUST_LOG", "warning", "write RUST_LOG=warn"),
            ("CACHE_TTL", "soon", "for example CACHE_TTL=15"),
            ("ALLOWED_HOSTS", "a b", "unset ALLOWED_HOSTS if it is not needed"),
        ] {
            let text = read(&[(name, value)]).err().unwrap_or_else(|| panic!("{name}={value:?} was accepted"));
            assert!(text.ends_with(&format!("; {remedy}")), "{text:?}");
            assert!(!text.contains("pw"), "the password of a URL is shown: {text}");
        }
    }

    /// URL, credentials and TLS settings describe one server together.
    #[cfg(feature = "tls")]
    #[test]
    fn url_and_variables_describe_one_server() {
        use crate::upstream::UpstreamTls;
        let file = |path: &str| SecretSource::File { variable: "REDIS_PASSWORD_FILE", path: path.into() };
        let read = |variables: &[(&str, &str)]| read(variables).expect("allowed").redis;
        // A compose file sets variables to their defaults, and Kubernetes sets the port.
        let injected = [("REDIS_HOST", "redis"), ("REDIS_PORT", "tcp://10.0.0.1:6379"), ("REDIS_DB", "0")];
        let url = ("REDIS_URL", "rediss://app:word@h/2");
        let expected = Upstream {
            address: UpstreamAddress::Tcp("h".into(), 6379),
            username: Some("app".into()),
            password: Some(SecretSource::Value("word".into())),
            database: 2,
            tls: Some(UpstreamTls::default()),
        };
        assert_eq!(read(&[&injected[..], &[url]].concat()), expected);
        let upstream = read(&[
            ("REDIS_URL", "unix:///run/r"),
            ("REDIS_USERNAME", "app"),
            ("REDIS_PASSWORD_FILE", "/run/password"),
        ]);
        assert_eq!((upstream.username.as_deref(), upstream.password), (Some("app"), Some(file("/run/password"))));
        let tls = [
            ("REDIS_TLS", "on"),
            ("REDIS_TLS_CA", "ca"),
            ("REDIS_TLS_CERT", "cert"),
            ("REDIS_TLS_KEY", "key"),
            ("REDIS_TLS_NAME", "name"),
        ];
        let identity = Some(("cert".into(), "key".into()));
        let expected = UpstreamTls { ca: Some("ca".into()), identity, name: Some("name".into()) };
        assert_eq!(read(&tls).tls, Some(expected));
    }

    /// Variables that contradict each other are errors, which never show a password.
    #[test]
    fn contradictory_redis_variables_are_refused() {
        let url = ("REDIS_URL", "redis://app:pw@h");
        for (variables, expected) in [
            (&[url, ("REDIS_HOST", "other")][..], "REDIS_URL and REDIS_HOST are both set"),
            (&[url, ("REDIS_PORT", "6380")], "REDIS_URL and REDIS_PORT are both set"),
            (&[url, ("REDIS_DB", "1")], "REDIS_URL and REDIS_DB are both set"),
            (&[url, ("REDIS_USERNAME", "app")], "REDIS_URL and REDIS_USERNAME are both set"),
            (&[url, ("REDIS_PASSWORD", "pw2")], "REDIS_URL and REDIS_PASSWORD are both set"),
            (&[url, ("REDIS_PASSWORD_FILE", "f")], "REDIS_URL and REDIS_PASSWORD_FILE are both set"),
            (
                &[("REDIS_PASSWORD", "pw"), ("REDIS_PASSWORD_FILE", "f")],
                "REDIS_PASSWORD and REDIS_PASSWORD_FILE are both set",
            ),
            (&[("REDIS_URL", "redis://pw@h")], "REDIS_URL has a user without a password"),
            (&[("REDIS_USERNAME", "app")], "REDIS_USERNAME=\"app\" has no password"),
            (&[("REDIS_URL", "unix:///r"), ("REDIS_TLS", "on")], "REDIS_URL and REDIS_TLS are both set"),
            (&[("REDIS_TLS_CA", "ca")], "REDIS_TLS_CA is set without REDIS_TLS=on or a rediss:// URL"),
            (&[("REDIS_TLS", "on"), ("REDIS_TLS_CERT", "c")], "REDIS_TLS_CERT is set without REDIS_TLS_KEY"),
            (&[("REDIS_TLS", "on"), ("REDIS_TLS_KEY", "k")], "REDIS_TLS_KEY is set without REDIS_TLS_CERT"),
        ] {
            let text = read(variables).err().unwrap_or_else(|| panic!("{variables:?} was accepted"));
            assert!(text.contains(expected) && !text.contains("pw"), "{variables:?}: {text}");
        }
    }

    /// Listeners that exclude each other are errors with a remedy.
    #[test]
    fn conflicting_listeners_are_errors() {
        let socket = ("PROXY_SOCKET", "/run/a.sock");
        for (variables, error) in [
            (&[("PROXY_PORT", "off")][..], Some("set PROXY_SOCKET, or a PROXY_PORT such as 8080")),
            (&[("PROXY_PORT", "off"), socket][..], None),
            (&[("ADMIN", "off"), ("ADMIN_PORT", "9090")][..], Some("set ADMIN=on or ADMIN_PORT=off")),
            (&[("ADMIN_PORT", "8080")][..], Some("set another ADMIN_PORT")),
            (&[("ADMIN_PORT", "8080"), ("PROXY_PORT", "off"), socket][..], None),
            (&[("ADMIN_PORT", "0"), ("PROXY_PORT", "0")][..], None),
            (&[("ADMIN_HOST", "::1")][..], Some("set ADMIN_PORT too, or unset ADMIN_HOST")),
            (&[("ADMIN_HOST", "::1"), ("ADMIN_PORT", "9090")][..], None),
        ] {
            let text = read(variables).err();
            assert_eq!(text.is_some(), error.is_some(), "{variables:?}: {text:?}");
            assert!(text.unwrap_or_default().ends_with(error.unwrap_or_default()), "{variables:?}");
        }
    }

    /// The errors of all variables are reported together, one in each line.
    #[test]
    fn all_errors_are_reported() {
        let variables = [
            ("CACHE_TTL", "soon"),
            ("REDIS_PORT", "0"),
            ("REDIS_USERNAME", "app"),
            ("WORKERS", "many"),
            ("ADMIN", "on"),
        ];
        let text = read(&variables).err().expect("four errors");
        let names: Vec<&str> = text.lines().filter_map(|line| line.split('=').next()).collect();
        assert_eq!(names, ["REDIS_PORT", "REDIS_USERNAME", "CACHE_TTL", "WORKERS"]);
    }

    /// Certificate and key belong together. A build without TLS accepts neither.
    #[test]
    fn tls_files_belong_together() {
        let (certificate, key, ca) = (("TLS_CERT", "c"), ("TLS_KEY", "k"), ("TLS_CLIENT_CA", "a"));
        for (variables, problem) in [
            (&[certificate][..], "TLS_CERT=\"c\" has no TLS_KEY"),
            (&[key], "TLS_KEY=\"k\" has no TLS_CERT"),
            (&[ca], "TLS_CLIENT_CA=\"a\" has no TLS_CERT"),
            (&[ca, certificate], "TLS_CERT=\"c\" has no TLS_KEY"),
        ] {
            let problem = if cfg!(feature = "tls") { problem } else { "needs TLS, which this build does not have" };
            let text = read(variables).err().unwrap_or_else(|| panic!("{variables:?} was accepted"));
            assert!(text.contains(problem) && text.lines().count() == 1, "{text}");
        }
        assert_eq!(read(&[certificate, key, ca]).is_ok(), cfg!(feature = "tls"));
        let is_required = |variables| read(variables).is_ok_and(|config| config.tls_required);
        assert!(is_required(&[]) && !is_required(&[("TLS_REQUIRED", "off")]));
    }

    /// Durations, sizes and switches are understood in the forms that operators write.
    #[test]
    fn units_and_switch_words_are_understood() {
        let set = [
            ("CACHE_TTL", "1.25"),
            ("STALE_IF_ERROR", "15m"),
            ("REDIS_TIMEOUT", "2s"),
            ("CLIENT_TIMEOUT", "1500ms"),
            ("CACHE_BYTES", "256mb"),
            ("MAX_VALUE_BYTES", "1MiB"),
            ("REDIS_TRACKING", "true"),
            ("ACCESS_LOG", "Yes"),
            ("ADMIN", "0"),
        ];
        let config = read(&set).expect("allowed");
        assert_eq!((config.cache_ttl, config.stale_if_error), (Duration::from_millis(1250), Duration::from_secs(900)));
        let timeouts = (config.redis_timeout, config.client_timeout);
        assert_eq!(timeouts, (Duration::from_secs(2), Duration::from_millis(1500)));
        assert_eq!((config.cache_bytes, config.max_value_bytes), (Some(268_435_456), 1_048_576));
        assert_eq!((config.redis_tracking, config.access_log, config.admin), (true, true, false));
    }

    /// Values are shown, except the password.
    #[test]
    fn password_is_redacted() {
        let set = [
            ("REDIS_PASSWORD", "secret"),
            ("REDIS_URL", "rediss://secret:secret@h"),
            ("CACHE_TTL", "7"),
            ("STALE_IF_ERROR", "5m"),
            ("SHUTDOWN_GRACE", "10s"),
            ("RUST_LOG", "debug"),
        ];
        let values =
            redacted_values(|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()));
        let find = |name: &str| values.iter().find(|shown| shown.name == name);
        let value = |name: &str| find(name).map(|shown| shown.value.as_str());
        assert_eq!((value("CACHE_TTL"), value("RUST_LOG"), value("CACHE_SIZE")), (Some("7"), Some("debug"), Some("3")));
        assert_eq!((value("REDIS_PASSWORD"), value("REDIS_URL")), (Some("(set)"), Some("rediss://h:6379/0")));
        let note = |name: &str| find(name).map(|shown| (shown.unit, shown.is_changed));
        assert_eq!((note("CACHE_TTL"), note("CACHE_SIZE")), (Some(("s", true)), Some(("keys", false))));
        assert_eq!(note("STALE_IF_ERROR"), Some(("", true)), "the value has its own unit");
        assert_eq!(note("SHUTDOWN_GRACE"), Some(("", false)), "10s is the default of 10 seconds");
        assert!(!format!("{values:?}").contains("secret"));
    }

    /// `--help` names each variable.
    #[test]
    fn help_names_every_variable() {
        assert!(VARIABLES.iter().all(|variable| help().contains(variable.name)));
    }
}
