//! Redis as it is configured: one server, a primary that sentinels name, or a cluster; credentials
//! and TLS.

use crate::secret::SecretSource;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Port of Redis without another one in the configuration.
pub const DEFAULT_REDIS_PORT: u16 = 6379;

/// Port of a sentinel without another one in the configuration.
pub const DEFAULT_SENTINEL_PORT: u16 = 26379;

/// Interval at which sentinels or nodes are asked for the topology, without another one in the
/// configuration. A change shows that late at most, if nothing else reveals it.
pub const DEFAULT_TOPOLOGY_INTERVAL: Duration = Duration::from_secs(1);

/// Settings of the connections to Redis. All workers share them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Meaning of the addresses.
    pub mode: UpstreamMode,
    /// Redis itself, the sentinels, or nodes from which the others of a cluster are found. At least
    /// one; exactly one in single mode.
    pub addresses: Vec<UpstreamAddress>,
    /// Interval at which sentinels or nodes are asked for the topology.
    pub topology_interval: Duration,
    /// ACL user, for `AUTH`.
    pub username: Option<String>,
    /// Password, for `AUTH`.
    pub password: Option<SecretSource>,
    /// Database number, for `SELECT`.
    pub database: u32,
    /// TLS settings, `None` for connections without TLS.
    pub tls: Option<UpstreamTls>,
}

/// Kind of deployment of Redis (`REDIS_MODE`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamMode {
    /// One server.
    Single,
    /// A primary and its replicas. Sentinels name the primary.
    Sentinel(SentinelSettings),
    /// Redis Cluster: each primary serves a part of the keys.
    Cluster,
}

/// Settings of the connections to sentinels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentinelSettings {
    /// Name under which the sentinels monitor the primary.
    pub master: String,
    /// ACL user of the sentinels, for `AUTH`.
    pub username: Option<String>,
    /// Password of the sentinels, for `AUTH`.
    pub password: Option<SecretSource>,
}

/// Address of Redis.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UpstreamAddress {
    /// Host name or IP address, and TCP port.
    Tcp(String, u16),
    /// Path of a Unix socket.
    Unix(PathBuf),
}

/// TLS settings. The files are in PEM format.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Certificates of authorities that replace the built-in ones.
    pub ca: Option<PathBuf>,
    /// Certificate chain and private key of the proxy.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Name that the certificate of Redis must have, if it differs from the host.
    pub name: Option<String>,
}

impl Upstream {
    /// Returns the settings of one server without credentials and TLS.
    pub fn single(address: UpstreamAddress) -> Upstream {
        Upstream {
            mode: UpstreamMode::Single,
            addresses: vec![address],
            topology_interval: DEFAULT_TOPOLOGY_INTERVAL,
            username: None,
            password: None,
            database: 0,
            tls: None,
        }
    }

    /// Returns all addresses, for the log.
    pub fn target(&self) -> String {
        self.addresses.iter().map(UpstreamAddress::to_string).collect::<Vec<_>>().join(",")
    }
}

/// Mode, addresses, database and TLS, as the log names them.
impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (target, database) = (self.target(), self.database);
        match &self.mode {
            UpstreamMode::Single => write!(f, "Redis at {target} database {database}")?,
            UpstreamMode::Sentinel(SentinelSettings { master, .. }) => {
                write!(f, "Redis {master:?} of the sentinels {target} database {database}")?;
            }
            UpstreamMode::Cluster => write!(f, "Redis Cluster at {target}")?,
        }
        f.write_str(if self.tls.is_some() { " with TLS" } else { "" })
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UpstreamAddress::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            UpstreamAddress::Tcp(host, port) => write!(f, "{host}:{port}"),
            UpstreamAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
