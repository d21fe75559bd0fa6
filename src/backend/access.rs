//! Access to Redis that all connections of the process share: addresses, credentials, TLS.
//! Passwords and certificates can be read again while connections are in use.

use super::stream::Endpoint;
use super::tls::TlsConnector;
use super::topology::Topology;
use crate::secret::Secret;
use crate::upstream::{SentinelSettings, Upstream, UpstreamAddress, UpstreamMode};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Addresses, credentials and TLS settings, read from their files.
pub struct RedisAccess {
    settings: Upstream,
    password: Option<Secret>,
    sentinel_password: Option<Secret>,
    tls: Option<TlsConnector>,
    /// Problem of a password's file that was logged last.
    password_problem: Mutex<Option<String>>,
    /// Thread that finds the nodes, `None` for one fixed node.
    topology: Option<Arc<Topology>>,
    /// Roles of the servers, as the tracking threads saw them.
    roles: Mutex<KnownRoles>,
}

/// Kind of server, which decides about the credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServerKind {
    Redis,
    Sentinel,
}

/// Credentials and settings with which the proxy introduces itself to a server.
pub(super) struct Login<'a> {
    /// ACL user, for `AUTH`.
    pub(super) username: Option<&'a str>,
    /// Password, for `AUTH`.
    pub(super) password: Option<Arc<str>>,
    /// Database number, for `SELECT`.
    pub(super) database: u32,
    /// True to send name and version of the proxy. Sentinels refuse them.
    pub(super) has_client_info: bool,
    /// True if the connection uses TLS.
    pub(super) has_tls: bool,
}

/// Knowledge about the roles of servers at the address.
#[derive(Default)]
struct KnownRoles {
    /// A primary was reached at the address, so a replica there is one by mistake.
    expects_primary: bool,
    /// Endpoint that was a primary and became a replica.
    demoted: Option<Endpoint>,
}

impl RedisAccess {
    /// Reads the files of the settings. Blocks.
    ///
    /// # Errors
    ///
    /// One line for each file that cannot be used: variable, path, problem and remedy.
    pub fn load(settings: Upstream) -> Result<RedisAccess, String> {
        let password = settings.password.clone().map(Secret::load).transpose();
        let sentinel_password = match &settings.mode {
            UpstreamMode::Sentinel(sentinel) => sentinel.password.clone().map(Secret::load).transpose(),
            UpstreamMode::Single | UpstreamMode::Cluster => Ok(None),
        };
        let tls = settings.tls.as_ref().map(|tls| TlsConnector::load(tls, &settings.addresses)).transpose();
        let topology = (settings.mode != UpstreamMode::Single).then(Arc::default);
        match (password, sentinel_password, tls) {
            (Ok(password), Ok(sentinel_password), Ok(tls)) => Ok(RedisAccess {
                settings,
                password,
                sentinel_password,
                tls,
                password_problem: Mutex::default(),
                topology,
                roles: Mutex::default(),
            }),
            (password, sentinel_password, tls) => {
                let problems = [password.err(), sentinel_password.err(), tls.err()];
                Err(problems.into_iter().flatten().collect::<Vec<_>>().join("\n"))
            }
        }
    }

    /// Returns the configured addresses: Redis, the sentinels, or the first nodes of a cluster.
    pub(super) fn addresses(&self) -> &[UpstreamAddress] {
        &self.settings.addresses
    }

    /// Returns the thread that finds the nodes, `None` for one fixed node.
    pub(super) fn topology(&self) -> Option<&Arc<Topology>> {
        self.topology.as_ref()
    }

    /// Returns the interval at which the nodes are looked for.
    pub(super) fn topology_interval(&self) -> Duration {
        self.settings.topology_interval
    }

    /// Returns true in cluster mode.
    pub(super) fn is_cluster(&self) -> bool {
        self.settings.mode == UpstreamMode::Cluster
    }

    /// Returns the settings of sentinel mode.
    pub(super) fn sentinel(&self) -> Option<&SentinelSettings> {
        match &self.settings.mode {
            UpstreamMode::Sentinel(sentinel) => Some(sentinel),
            UpstreamMode::Single | UpstreamMode::Cluster => None,
        }
    }

    /// Returns the password for a kind of server.
    pub(super) fn password(&self, kind: ServerKind) -> Option<Arc<str>> {
        let password = match kind {
            ServerKind::Redis => &self.password,
            ServerKind::Sentinel => &self.sentinel_password,
        };
        password.as_ref().map(Secret::text)
    }

    /// Returns the credentials for a kind of server.
    pub(super) fn login(&self, kind: ServerKind) -> Login<'_> {
        let (username, database) = match kind {
            ServerKind::Redis => (self.settings.username.as_deref(), self.settings.database),
            ServerKind::Sentinel => (self.sentinel().and_then(|sentinel| sentinel.username.as_deref()), 0),
        };
        let (has_client_info, has_tls) = (kind == ServerKind::Redis, self.tls.is_some());
        Login { username, password: self.password(kind), database, has_client_info, has_tls }
    }

    /// Returns the TLS settings, `None` for connections without TLS.
    pub(super) fn tls(&self) -> Option<&TlsConnector> {
        self.tls.as_ref()
    }

    fn roles(&self) -> MutexGuard<'_, KnownRoles> {
        self.roles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the server at `endpoint` is a primary.
    pub(super) fn record_primary(&self, endpoint: &Endpoint) {
        let mut roles = self.roles();
        roles.expects_primary = true;
        roles.demoted.take_if(|demoted| demoted == endpoint);
    }

    /// Records that the primary at `endpoint` became a replica.
    pub(super) fn record_demotion(&self, endpoint: &Endpoint) {
        self.roles().demoted = Some(endpoint.clone());
    }

    /// Returns true if a primary was reached at the address before.
    pub(super) fn expects_primary(&self) -> bool {
        self.roles().expects_primary
    }

    /// Returns the endpoint that was a primary and became a replica.
    pub(super) fn demoted(&self) -> Option<Endpoint> {
        self.roles().demoted.clone()
    }

    /// Reads the passwords again. Logs a change, and a new problem: after one the old password
    /// stays. Blocks.
    pub(super) fn reload_passwords(&self) {
        let of = |password: &Option<Secret>| password.as_ref().map_or(Ok(false), Secret::reload);
        let results = [
            ("REDIS_PASSWORD_FILE", of(&self.password)),
            ("REDIS_SENTINEL_PASSWORD_FILE", of(&self.sentinel_password)),
        ];
        let problems: Vec<String> = results.iter().filter_map(|(_, result)| result.as_ref().err().cloned()).collect();
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        // Each attempt to connect of each thread may come here while the file is missing.
        let is_known = std::mem::replace(&mut *self.password_problem(), problem.clone()) == problem;
        for (variable, result) in results {
            if result == Ok(true) {
                log::info!("{variable} has a new password, which new connections to Redis use");
            }
        }
        if let Some(problem) = problem.filter(|_| !is_known) {
            log::error!("{problem}; the password read before stays in use");
        }
    }

    fn password_problem(&self) -> MutexGuard<'_, Option<String>> {
        self.password_problem.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the passwords and the files of TLS again, for new connections. Logs the results. After
    /// an error, what was read before stays. Blocks.
    pub fn reload(&self) {
        *self.password_problem() = None;
        self.reload_passwords();
        match self.tls.as_ref().map(TlsConnector::reload) {
            Some(Ok(())) => log::info!("REDIS_TLS was read again: new connections to Redis use the present files"),
            Some(Err(problem)) => log::error!("{problem}; new connections to Redis use the certificates read before"),
            None => {}
        }
    }
}
