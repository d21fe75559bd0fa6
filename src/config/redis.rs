//! Reads the variables that say how to reach Redis, and checks that they agree.

use super::Reader;
use super::error::{ConfigError, is_service_link};
use super::redis_url::{self, RedisUrl};
use super::variables::Variable;
use crate::secret::SecretSource;
use crate::upstream::{Upstream, UpstreamAddress, UpstreamTls};
use std::ffi::OsString;

/// Variables that `REDIS_URL` replaces.
const REPLACED_BY_URL: [&str; 3] = ["REDIS_HOST", "REDIS_PORT", "REDIS_DB"];

/// Variables that have no effect without TLS. A value shows that TLS is expected.
const TLS_ONLY: [&str; 4] = ["REDIS_TLS_CA", "REDIS_TLS_CERT", "REDIS_TLS_KEY", "REDIS_TLS_NAME"];

impl<L: Fn(&str) -> Option<OsString>> Reader<L> {
    /// Reads address, credentials and TLS settings of Redis.
    pub(super) fn upstream(&mut self) -> Upstream {
        let url = self.url("REDIS_URL");
        let password = self.secret("REDIS_PASSWORD", "REDIS_PASSWORD_FILE");
        let username = self.text("REDIS_USERNAME");
        let tls = self.redis_tls(url.as_ref());
        let (address, database, username, password) = match url {
            Some(url) => {
                self.refuse_beside_url(&url, username.is_some(), password.as_ref());
                if url.username.is_some() && url.password.is_none() && password.is_none() {
                    self.errors.push(ConfigError::url_without_password());
                    return Upstream { database: url.database, tls, password, ..Upstream::single(url.address) };
                }
                (
                    url.address,
                    url.database,
                    url.username.or(username),
                    url.password.map(SecretSource::Value).or(password),
                )
            }
            None => {
                let address = UpstreamAddress::Tcp(self.host("REDIS_HOST"), self.number("REDIS_PORT") as u16);
                (address, self.number("REDIS_DB") as u32, username, password)
            }
        };
        if let (Some(username), None) = (&username, &password) {
            self.errors.push(ConfigError::username_without_password(username));
        }
        Upstream { username, password, database, tls, ..Upstream::single(address) }
    }

    /// Reads a URL. Empty text counts as not set.
    fn url(&mut self, name: &'static str) -> Option<RedisUrl> {
        self.value(name, |text, _| if text.is_empty() { Ok(None) } else { redis_url::parse(text).map(Some) })
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
        if url.is_some_and(|url| matches!(url.address, UpstreamAddress::Unix(_))) {
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
