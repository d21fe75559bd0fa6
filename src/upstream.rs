//! Redis as it is configured: address, credentials, TLS.

use crate::secret::SecretSource;
use std::fmt;
use std::path::PathBuf;

/// Port of Redis without another one in the configuration.
pub const DEFAULT_REDIS_PORT: u16 = 6379;

/// Settings of the connections to Redis. All workers share them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Address of Redis.
    pub address: UpstreamAddress,
    /// ACL user, for `AUTH`.
    pub username: Option<String>,
    /// Password, for `AUTH`.
    pub password: Option<SecretSource>,
    /// Database number, for `SELECT`.
    pub database: u32,
    /// TLS settings, `None` for connections without TLS.
    pub tls: Option<UpstreamTls>,
}

/// Address of Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
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

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UpstreamAddress::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            UpstreamAddress::Tcp(host, port) => write!(f, "{host}:{port}"),
            UpstreamAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
