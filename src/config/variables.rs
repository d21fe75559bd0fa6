//! Table of the environment variables. `--help`, docs/configuration.md and the man page are
//! rendered from it.

use super::redis_url::MAX_DATABASE;
use crate::cache::MAX_CAPACITY;
use std::borrow::Cow;
use std::time::Duration;

/// Environment variable with its default, its allowed values and its meaning.
pub struct Variable {
    /// Name of the variable.
    pub name: &'static str,
    /// Value if the variable is not set; empty for none.
    pub default: &'static str,
    /// Type and bounds of the value.
    pub kind: Kind,
    /// Section of the documentation.
    pub group: Group,
    /// Meaning, as one phrase.
    pub description: &'static str,
}

/// Section of the documentation that a variable belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Connection to Redis.
    Redis,
    /// Cached values.
    Cache,
    /// Port and clients.
    Clients,
    /// Operation of the process.
    Operation,
}

impl Group {
    /// All groups, in the order of the documentation.
    pub const ALL: [Group; 4] = [Group::Redis, Group::Cache, Group::Clients, Group::Operation];

    /// Returns the heading.
    pub fn title(self) -> &'static str {
        match self {
            Group::Redis => "Redis",
            Group::Cache => "Cache",
            Group::Clients => "Port and clients",
            Group::Operation => "Operation",
        }
    }
}

/// Type of a value, with inclusive bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Host name or IP address, without a port.
    Host,
    /// URL of Redis, or nothing. Its password is never shown.
    RedisUrl,
    /// Kind of deployment of Redis.
    RedisMode,
    /// Host name or IP address, without a port, or nothing.
    OptionalHost,
    /// Host names separated by commas, or nothing.
    Hosts,
    /// Port to listen on, or `off`. 0 takes a free port.
    Port,
    /// Integer without a unit.
    Number(u64, u64),
    /// Number of keys, without a unit.
    Keys(u64, u64),
    /// Size in bytes, or with a unit.
    Bytes(u64, u64),
    /// Duration in seconds, or with a unit. May have decimals down to a millisecond.
    Seconds(Duration, Duration),
    /// Duration in milliseconds, or with a unit.
    Milliseconds(Duration, Duration),
    /// `on` or `off`, and other words for both.
    Switch,
    /// Text, or nothing.
    Text,
    /// Text that is never shown, or nothing.
    Secret,
    /// Path of a file, or nothing.
    Path,
    /// Absolute path of a Unix socket, or nothing.
    SocketPath,
    /// Permissions of a file, in octal.
    FileMode,
    /// Name of a log format.
    LogFormat,
    /// Filter of `env_logger`.
    LogFilter,
}

/// Words for on and off. Case is ignored.
pub const SWITCH_WORDS: [(&str, bool); 8] = [
    ("on", true),
    ("off", false),
    ("true", true),
    ("false", false),
    ("yes", true),
    ("no", false),
    ("1", true),
    ("0", false),
];

/// Suffixes of durations, with their milliseconds.
pub const DURATION_UNITS: [(&str, u64); 6] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Suffixes of sizes in lower case, with their bytes. Powers of 1024, as in redis.conf.
///
/// A single letter is ambiguous: `m` is a million bytes in redis.conf, and 1024 squared in nginx.
pub const SIZE_UNITS: [(&str, u64); 13] = [
    ("b", 1),
    ("kb", 1 << 10),
    ("kib", 1 << 10),
    ("ki", 1 << 10),
    ("mb", 1 << 20),
    ("mib", 1 << 20),
    ("mi", 1 << 20),
    ("gb", 1 << 30),
    ("gib", 1 << 30),
    ("gi", 1 << 30),
    ("tb", 1 << 40),
    ("tib", 1 << 40),
    ("ti", 1 << 40),
];

/// Ten years. The cache supports deadlines up to 34 years after the start.
const MAX_DURATION: Duration = Duration::from_secs(315_360_000);

/// One day, the longest time for one request and for the shutdown.
const MAX_REQUEST_TIMEOUT: Duration = Duration::from_secs(86_400);

/// Ten minutes, the longest wait for Redis. No client of a cache waits longer.
const MAX_REDIS_TIMEOUT: Duration = Duration::from_secs(600);

/// Refreshes of the topology are at least that far apart, so that they stay a small load.
const MIN_TOPOLOGY_INTERVAL: Duration = Duration::from_millis(100);

/// A minute. A failover that nothing else reveals is noticed that late.
const MAX_TOPOLOGY_INTERVAL: Duration = Duration::from_secs(60);

/// A shorter timeout would close clients that wait for a busy machine.
const MIN_CLIENT_TIMEOUT: Duration = Duration::from_millis(100);

/// Resolution of the event loop's clock.
const MILLISECOND: Duration = Duration::from_millis(1);

/// A minute. A watcher that may wait for longer is served as well by a request now and then.
const MAX_WATCH_INTERVAL: Duration = Duration::from_secs(60);

/// Longest string in Redis by default (`proto-max-bulk-len`).
const MAX_VALUE_BYTES: u64 = 512 * 1024 * 1024;

/// A petabyte. No machine has more memory.
const MAX_BYTES: u64 = 1_000_000_000_000_000;

/// Longest path of a Unix socket: `sun_path` in unix(7), without its NUL.
pub(super) const MAX_SOCKET_PATH_BYTES: usize = 107;

/// All variables, in the order of the documentation.
#[rustfmt::skip]
pub const VARIABLES: [Variable; 54] = [
    Variable { name: "REDIS_HOST", default: "redis", kind: Kind::Host, group: Group::Redis, description: "host of the Redis server" },
    Variable { name: "REDIS_PORT", default: "6379", kind: Kind::Number(1, 65_535), group: Group::Redis, description: "port of the Redis server" },
    Variable { name: "REDIS_URL", default: "", kind: Kind::RedisUrl, group: Group::Redis, description: "address of the Redis server instead of REDIS_HOST, REDIS_PORT and REDIS_DB; may hold user and password, and several hosts with REDIS_MODE=sentinel or cluster" },
    Variable { name: "REDIS_MODE", default: "single", kind: Kind::RedisMode, group: Group::Redis, description: "kind of deployment: one server, a primary that the sentinels in REDIS_URL name, or Redis Cluster" },
    Variable { name: "REDIS_MASTER", default: "", kind: Kind::Text, group: Group::Redis, description: "name under which the sentinels monitor the primary; REDIS_MODE=sentinel requires it" },
    Variable { name: "REDIS_USERNAME", default: "", kind: Kind::Text, group: Group::Redis, description: "ACL user to authenticate as; requires a password" },
    Variable { name: "REDIS_PASSWORD", default: "", kind: Kind::Secret, group: Group::Redis, description: "password to authenticate with" },
    Variable { name: "REDIS_PASSWORD_FILE", default: "", kind: Kind::Path, group: Group::Redis, description: "file with the password; read again on SIGHUP, and when Redis rejects the password" },
    Variable { name: "REDIS_SENTINEL_USERNAME", default: "", kind: Kind::Text, group: Group::Redis, description: "ACL user to authenticate as at the sentinels; requires a password" },
    Variable { name: "REDIS_SENTINEL_PASSWORD", default: "", kind: Kind::Secret, group: Group::Redis, description: "password to authenticate with at the sentinels" },
    Variable { name: "REDIS_SENTINEL_PASSWORD_FILE", default: "", kind: Kind::Path, group: Group::Redis, description: "file with the password of the sentinels" },
    Variable { name: "REDIS_TLS", default: "off", kind: Kind::Switch, group: Group::Redis, description: "connect with TLS, as a rediss:// URL does" },
    Variable { name: "REDIS_TLS_CA", default: "", kind: Kind::Path, group: Group::Redis, description: "PEM file with the authorities that certify Redis, instead of the built-in roots of Mozilla" },
    Variable { name: "REDIS_TLS_CERT", default: "", kind: Kind::Path, group: Group::Redis, description: "PEM file with the client certificate, if Redis requires one" },
    Variable { name: "REDIS_TLS_KEY", default: "", kind: Kind::Path, group: Group::Redis, description: "PEM file with the private key of REDIS_TLS_CERT" },
    Variable { name: "REDIS_TLS_NAME", default: "", kind: Kind::Text, group: Group::Redis, description: "name that the certificate of Redis must have, if it is not the host of the address" },
    Variable { name: "REDIS_DB", default: "0", kind: Kind::Number(0, MAX_DATABASE), group: Group::Redis, description: "number of the Redis database" },
    Variable { name: "REDIS_CONNECTIONS", default: "4", kind: Kind::Number(1, 64), group: Group::Redis, description: "fetcher threads of each worker for each node of Redis, with one connection each" },
    Variable { name: "REDIS_TIMEOUT", default: "1000", kind: Kind::Milliseconds(MILLISECOND, MAX_REDIS_TIMEOUT), group: Group::Redis, description: "timeout of connecting, of the handshake and of each round trip" },
    Variable { name: "REDIS_TOPOLOGY_INTERVAL", default: "1000", kind: Kind::Milliseconds(MIN_TOPOLOGY_INTERVAL, MAX_TOPOLOGY_INTERVAL), group: Group::Redis, description: "interval at which sentinels or nodes of the cluster are asked for changes; no effect with REDIS_MODE=single" },
    Variable { name: "REDIS_TRACKING", default: "off", kind: Kind::Switch, group: Group::Redis, description: "receive invalidations from Redis, so that changes are visible at once" },
    Variable { name: "CACHE_TTL", default: "15", kind: Kind::Seconds(MILLISECOND, MAX_DURATION), group: Group::Cache, description: "lifetime of a cache entry, counted from insertion; a hit does not renew it" },
    Variable { name: "CACHE_SIZE", default: "3", kind: Kind::Keys(1, MAX_CAPACITY as u64), group: Group::Cache, description: "capacity of each worker's cache, in keys; the default suits a demonstration only" },
    Variable { name: "CACHE_BYTES", default: "0", kind: Kind::Bytes(0, MAX_BYTES), group: Group::Cache, description: "capacity of each worker's cache, in bytes of keys and values; 0 for no limit" },
    Variable { name: "MAX_VALUE_BYTES", default: "8388608", kind: Kind::Bytes(1, MAX_VALUE_BYTES), group: Group::Cache, description: "longest value read from Redis; a longer one is refused unread" },
    Variable { name: "STALE_IF_ERROR", default: "0", kind: Kind::Seconds(Duration::ZERO, MAX_DURATION), group: Group::Cache, description: "time for which an expired entry may still be served while Redis is unavailable" },
    Variable { name: "PROXY_HOST", default: "segment", kind: Kind::Host, group: Group::Clients, description: "address to listen on" },
    Variable { name: "PROXY_PORT", default: "8080", kind: Kind::Port, group: Group::Clients, description: "port to listen on; 0 takes a free port and logs it; off requires PROXY_SOCKET" },
    Variable { name: "PROXY_SOCKET", default: "", kind: Kind::SocketPath, group: Group::Clients, description: "Unix socket to listen on, beside PROXY_PORT or instead of it" },
    Variable { name: "PROXY_SOCKET_MODE", default: "660", kind: Kind::FileMode, group: Group::Clients, description: "permissions of PROXY_SOCKET; a client needs write permission to connect" },
    Variable { name: "ALLOWED_HOSTS", default: "", kind: Kind::Hosts, group: Group::Clients, description: "host names accepted in HTTP requests (Host); empty accepts any" },
    Variable { name: "CLIENT_PASSWORD", default: "", kind: Kind::Secret, group: Group::Clients, description: "password that clients must send, or several: one in each line, or user:password; empty requires none" },
    Variable { name: "CLIENT_PASSWORD_FILE", default: "", kind: Kind::Path, group: Group::Clients, description: "file with these passwords instead; SIGHUP reads it again" },
    Variable { name: "MAX_CONNECTIONS", default: "10000", kind: Kind::Number(1, 1_000_000), group: Group::Clients, description: "connection limit of all workers together; further clients get an error and are closed" },
    Variable { name: "CLIENT_BYTES", default: "268435456", kind: Kind::Bytes(1, MAX_BYTES), group: Group::Clients, description: "limit for long values (over 16 KiB) that slow clients have not read yet, of all workers together" },
    Variable { name: "CLIENT_TIMEOUT", default: "10", kind: Kind::Seconds(MIN_CLIENT_TIMEOUT, MAX_REQUEST_TIMEOUT), group: Group::Clients, description: "time within which a client must send a whole request" },
    Variable { name: "CLIENT_IDLE_TIMEOUT", default: "60", kind: Kind::Seconds(MIN_CLIENT_TIMEOUT, MAX_DURATION), group: Group::Clients, description: "time after which a client that sends no request, or reads no reply, is closed" },
    Variable { name: "HTTP_CACHING", default: "on", kind: Kind::Switch, group: Group::Clients, description: "send entity tags over HTTP, by which clients and caches in front recognise a value that they have" },
    Variable { name: "MAX_WATCHERS", default: "10000", kind: Kind::Number(0, 1_000_000), group: Group::Clients, description: "limit on keys that event streams and long polls watch, of all workers together; 0 refuses them" },
    Variable { name: "WATCH_INTERVAL", default: "50", kind: Kind::Milliseconds(MILLISECOND, MAX_WATCH_INTERVAL), group: Group::Clients, description: "shortest time between two reads of a watched key, so that a burst of changes is one event" },
    Variable { name: "SHARE_PORT", default: "off", kind: Kind::Switch, group: Group::Clients, description: "let other proxies of the same user listen on the same port, for restarts without downtime" },
    Variable { name: "TLS_CERT", default: "", kind: Kind::Path, group: Group::Clients, description: "certificate chain for TLS with clients, a PEM file; SIGHUP reads it again" },
    Variable { name: "TLS_KEY", default: "", kind: Kind::Path, group: Group::Clients, description: "private key of TLS_CERT, a PEM file; SIGHUP reads it again" },
    Variable { name: "TLS_CLIENT_CA", default: "", kind: Kind::Path, group: Group::Clients, description: "authorities of client certificates, a PEM file; clients must have a certificate then" },
    Variable { name: "TLS_REQUIRED", default: "on", kind: Kind::Switch, group: Group::Clients, description: "with TLS_CERT, refuse plain connections, except for /healthz and /readyz" },
    Variable { name: "SHUTDOWN_GRACE", default: "10", kind: Kind::Seconds(Duration::ZERO, MAX_REQUEST_TIMEOUT), group: Group::Operation, description: "time to finish requests in flight after SIGTERM or SIGINT" },
    Variable { name: "ADMIN", default: "on", kind: Kind::Switch, group: Group::Operation, description: "serve the dashboard at /, /metrics and /stats" },
    Variable { name: "ADMIN_PORT", default: "off", kind: Kind::Port, group: Group::Operation, description: "separate port for the dashboard, /metrics and /stats; PROXY_PORT and PROXY_SOCKET then serve keys and health only" },
    Variable { name: "ADMIN_HOST", default: "", kind: Kind::OptionalHost, group: Group::Operation, description: "address of ADMIN_PORT; empty for that of PROXY_HOST" },
    Variable { name: "ACCESS_LOG", default: "off", kind: Kind::Switch, group: Group::Operation, description: "log each request to standard output or LOG_FILE" },
    Variable { name: "LOG_FILE", default: "", kind: Kind::Path, group: Group::Operation, description: "file to log to instead of standard error; SIGHUP reopens it" },
    Variable { name: "LOG_FORMAT", default: "text", kind: Kind::LogFormat, group: Group::Operation, description: "format of events and of the access log; json is one object for each line" },
    Variable { name: "RUST_LOG", default: "info", kind: Kind::LogFilter, group: Group::Operation, description: "log level" },
    Variable { name: "WORKERS", default: "1", kind: Kind::Number(1, 256), group: Group::Operation, description: "event loops on the same port, each with its own cache and Redis connections" },
];

impl Variable {
    /// Returns the variable with this name.
    pub fn find(name: &str) -> Option<&'static Variable> {
        VARIABLES.iter().find(|variable| variable.name == name)
    }
}

impl Kind {
    /// Returns the allowed values, with their unit.
    pub fn allowed(self) -> Cow<'static, str> {
        let seconds = |time: Duration| time.as_secs_f64();
        match self {
            Kind::Host => "a host name or an IP address, without a port".into(),
            Kind::RedisUrl => {
                "redis://, rediss://, valkey:// or valkeys:// with [user:password@]host[:port][,host[:port]...][/database], \
                 or unix:///path[?db=database]"
                    .into()
            }
            Kind::RedisMode => "single, sentinel or cluster".into(),
            Kind::OptionalHost => "a host name or an IP address, without a port, or nothing".into(),
            Kind::Port => "0 to 65535, or off".into(),
            Kind::Hosts => "host names separated by commas, without ports or wildcards".into(),
            Kind::Number(from, to) => format!("{from} to {to}").into(),
            Kind::Keys(from, to) => format!("{from} to {to} keys").into(),
            Kind::Bytes(from, to) => format!("{from} to {to} bytes, or with a unit such as 64kb, 256mb or 1gib").into(),
            Kind::Seconds(from, to) => {
                format!("{} to {} seconds, or with a unit such as 500ms, 60s, 15m or 2h", seconds(from), seconds(to))
                    .into()
            }
            Kind::Milliseconds(from, to) => {
                format!("{} to {} milliseconds, or with a unit such as 500ms or 2s", from.as_millis(), to.as_millis())
                    .into()
            }
            Kind::Switch => "on or off".into(),
            Kind::Text | Kind::Secret => "any text".into(),
            Kind::Path => "a path".into(),
            Kind::SocketPath => format!("an absolute path of at most {MAX_SOCKET_PATH_BYTES} bytes, or nothing").into(),
            Kind::FileMode => "600 to 777 in octal, with read and write permission for the owner".into(),
            Kind::LogFormat => "text or json".into(),
            Kind::LogFilter => "off, error, warn, info, debug or trace".into(),
        }
    }

    /// Returns the unit of a bare number; empty if there is none.
    pub fn unit(self) -> &'static str {
        match self {
            Kind::Keys(..) => "keys",
            Kind::Bytes(..) => "bytes",
            Kind::Seconds(..) => "s",
            Kind::Milliseconds(..) => "ms",
            _ => "",
        }
    }
}
