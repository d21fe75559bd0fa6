//! Reads the variables that say how to reach Redis, and checks that they agree.

use super::Reader;
use super::error::{ConfigError, is_service_link};
use super::redis_url::{self, RedisUrl};
use super::variables::Variable;
use crate::secret::SecretSource;
use crate::upstream::{
    DEFAULT_REDIS_PORT, DEFAULT_SENTINEL_PORT, SentinelSettings, Upstream, UpstreamAddress, UpstreamMode, UpstreamTls,
};
use std::ffi::OsString;

/// Variables that `REDIS_URL` replaces.
const REPLACED_BY_URL: [&str; 3] = ["REDIS_HOST", "REDIS_PORT", "REDIS_DB"];

/// Variables that have no effect without TLS. A value shows that TLS is expected.
const TLS_ONLY: [&str; 4] = ["REDIS_TLS_CA", "REDIS_TLS_CERT", "REDIS_TLS_KEY", "REDIS_TLS_NAME"];

/// Value of `REDIS_MODE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum RedisMode {
    /// One server.
    #[default]
    Single,
    /// A primary that sentinels name.
    Sentinel,
    /// Redis Cluster.
    Cluster,
}

impl RedisMode {
    /// Returns the mode with this name, as `REDIS_MODE` has it.
    pub(super) fn parse(name: &str) -> Option<RedisMode> {
        [RedisMode::Single, RedisMode::Sentinel, RedisMode::Cluster].into_iter().find(|mode| mode.name() == name)
    }

    /// Returns the port of a host in `REDIS_URL` without one.
    pub(super) fn default_port(self) -> u16 {
        if self == RedisMode::Sentinel { DEFAULT_SENTINEL_PORT } else { DEFAULT_REDIS_PORT }
    }

    fn name(self) -> &'static str {
        match self {
            RedisMode::Single => "single",
            RedisMode::Sentinel => "sentinel",
            RedisMode::Cluster => "cluster",
        }
    }
}

impl<L: Fn(&str) -> Option<OsString>> Reader<L> {
    /// Reads mode, addresses, credentials and TLS settings of Redis.
    pub(super) fn upstream(&mut self) -> Upstream {
        let mode = self.redis_mode("REDIS_MODE");
        let url = self.url("REDIS_URL");
        let password = self.secret("REDIS_PASSWORD", "REDIS_PASSWORD_FILE");
        let username = self.text("REDIS_USERNAME");
        let sentinel = self.sentinel(mode);
        let tls = self.redis_tls(url.as_ref());
        if let Some(url) = &url {
            self.refuse_beside_url(url, username.is_some(), password.as_ref());
        }
        let (addresses, database) = self.addresses(url.as_ref(), mode);
        let topology_interval = self.duration("REDIS_TOPOLOGY_INTERVAL");
        let (url_username, url_password) = url.map_or((None, None), |url| (url.username, url.password));
        let is_url_username = url_username.is_some();
        let (username, password) = (url_username.or(username), url_password.map(SecretSource::Value).or(password));
        match (&username, &password) {
            (Some(_), None) if is_url_username => self.errors.push(ConfigError::url_without_password()),
            (Some(username), None) => {
                let error = ConfigError::username_without_password("REDIS_USERNAME", username, "REDIS_PASSWORD");
                self.errors.push(error);
            }
            _ => {}
        }
        let mode = match mode.unwrap_or_default() {
            RedisMode::Single => UpstreamMode::Single,
            RedisMode::Sentinel => UpstreamMode::Sentinel(sentinel),
            RedisMode::Cluster => UpstreamMode::Cluster,
        };
        Upstream { mode, addresses, topology_interval, username, password, database, tls }
    }

    /// Reads the mode, `None` if the value is invalid: other variables are not judged by it then.
    fn redis_mode(&mut self, name: &'static str) -> Option<RedisMode> {
        self.value(name, |text, _| RedisMode::parse(text).map(Some).ok_or_else(|| "is not a mode".into()))
    }

    /// Reads a URL. Empty text counts as not set.
    fn url(&mut self, name: &'static str) -> Option<RedisUrl> {
        self.value(name, |text, _| if text.is_empty() { Ok(None) } else { redis_url::parse(text).map(Some) })
    }

    /// Reads the settings of sentinels. Adds errors if `mode` needs others.
    fn sentinel(&mut self, mode: Option<RedisMode>) -> SentinelSettings {
        let master = self.text("REDIS_MASTER");
        let username = self.text("REDIS_SENTINEL_USERNAME");
        let password = self.secret("REDIS_SENTINEL_PASSWORD", "REDIS_SENTINEL_PASSWORD_FILE");
        match mode {
            None => {}
            Some(RedisMode::Sentinel) => {
                if self.is_unset("REDIS_MASTER") {
                    self.errors.push(ConfigError::sentinel_without_master());
                }
                if let (Some(username), None) = (&username, &password) {
                    let (name, password_name) = ("REDIS_SENTINEL_USERNAME", "REDIS_SENTINEL_PASSWORD");
                    self.errors.push(ConfigError::username_without_password(name, username, password_name));
                }
            }
            Some(RedisMode::Single | RedisMode::Cluster) => {
                let password_name = match &password {
                    Some(SecretSource::File { variable, .. }) => variable,
                    _ => "REDIS_SENTINEL_PASSWORD",
                };
                let set = [
                    ("REDIS_MASTER", master.is_some()),
                    ("REDIS_SENTINEL_USERNAME", username.is_some()),
                    (password_name, password.is_some()),
                ];
                let useless = set.into_iter().filter(|(_, is_set)| *is_set);
                self.errors.extend(useless.map(|(name, _)| ConfigError::needs(name, "REDIS_MODE=sentinel")));
            }
        }
        SentinelSettings { master: master.unwrap_or_default(), username, password }
    }

    /// Returns true if a variable is not set, or empty.
    fn is_unset(&self, name: &str) -> bool {
        (self.lookup)(name).is_none_or(|value| value.is_empty())
    }

    /// Reads addresses and database. Adds errors if `mode` does not allow them.
    fn addresses(&mut self, url: Option<&RedisUrl>, mode: Option<RedisMode>) -> (Vec<UpstreamAddress>, u32) {
        let (addresses, database, database_name) = match (url, mode) {
            (Some(url), _) => (url.resolve(mode.unwrap_or_default().default_port()), url.database, "REDIS_URL"),
            (None, Some(RedisMode::Sentinel)) => {
                // An invalid URL has its error already.
                if self.is_unset("REDIS_URL") {
                    self.errors.push(ConfigError::sentinel_without_url());
                }
                return (Vec::new(), 0);
            }
            (None, _) => {
                let address = UpstreamAddress::Tcp(self.host("REDIS_HOST"), self.number("REDIS_PORT") as u16);
                (vec![address], self.number("REDIS_DB") as u32, "REDIS_DB")
            }
        };
        match (mode, url) {
            (Some(RedisMode::Single), Some(url)) if url.addresses.len() > 1 => {
                self.errors.push(ConfigError::several_hosts_in_single_mode());
            }
            (Some(mode @ (RedisMode::Sentinel | RedisMode::Cluster)), Some(url)) if url.is_unix_socket() => {
                self.errors.push(ConfigError::unix_socket_in_mode(mode.name()));
            }
            _ => {}
        }
        if mode == Some(RedisMode::Cluster) && database != 0 {
            self.errors.push(ConfigError::database_in_cluster(database_name, database));
        }
        (addresses, database)
    }

    /// Adds errors for variables that contradict `REDIS_URL`.
    ///
    /// Compose files and images set variables to their defaults, and Kubernetes sets `REDIS_PORT`
    /// for a Service `redis`. Neither is the choice of an operator.
    fn refuse_beside_url(&mut self, url: &RedisUrl, has_username: bool, password: Option<&SecretSource>) {
        let mut conflicts = Vec::new();
        for name in REPLACED_BY_URL {
            let default = Variable::find(name).map_or("", |variable| variable.default);
            let value = (self.lookup)(name).unwrap_or_default().to_string_lossy().into_owned();
            if !value.is_empty() && value != default && !is_service_link(&value) {
                conflicts.push(name);
            }
        }
        if has_username && url.username.is_some() {
            conflicts.push("REDIS_USERNAME");
        }
        if let (Some(password), Some(_)) = (password, &url.password) {
            let is_file = matches!(password, SecretSource::File { .. });
            conflicts.push(if is_file { "REDIS_PASSWORD_FILE" } else { "REDIS_PASSWORD" });
        }
        self.errors.extend(conflicts.into_iter().map(|name| ConfigError::conflict("REDIS_URL", name)));
    }

    /// Reads the TLS settings, `None` without TLS.
    fn redis_tls(&mut self, url: Option<&RedisUrl>) -> Option<UpstreamTls> {
        let is_on = self.switch("REDIS_TLS");
        let [ca, certificate, key, name] = TLS_ONLY.map(|name| self.text(name));
        let by_url = url.is_some_and(|url| url.tls);
        let set = TLS_ONLY.into_iter().zip([&ca, &certificate, &key, &name]).find(|(_, value)| value.is_some());
        match (is_on || by_url, set) {
            (false, None) => return None,
            (false, Some((name, _))) => {
                self.errors.push(ConfigError::needs(name, "REDIS_TLS=on or a rediss:// URL"));
                return None;
            }
            _ => {}
        }
        if !cfg!(feature = "tls") {
            self.errors.push(ConfigError::no_tls(if is_on { "REDIS_TLS" } else { "REDIS_URL" }));
        }
        if url.is_some_and(RedisUrl::is_unix_socket) {
            self.errors.push(ConfigError::conflict("REDIS_URL", "REDIS_TLS"));
        }
        match (&certificate, &key) {
            (Some(_), None) => self.errors.push(ConfigError::needs("REDIS_TLS_CERT", "REDIS_TLS_KEY")),
            (None, Some(_)) => self.errors.push(ConfigError::needs("REDIS_TLS_KEY", "REDIS_TLS_CERT")),
            _ => {}
        }
        let identity = certificate.zip(key).map(|(certificate, key)| (certificate.into(), key.into()));
        Some(UpstreamTls { ca: ca.map(Into::into), identity, name })
    }
}
