//! Access to Redis that all connections of the process share: address, credentials, TLS. Password
//! and certificates can be read again while connections are in use.

use super::stream::Endpoint;
use super::tls::TlsConnector;
use crate::secret::Secret;
use crate::upstream::{Upstream, UpstreamAddress};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Address, credentials and TLS settings, read from their files.
pub struct RedisAccess {
    settings: Upstream,
    password: Option<Secret>,
    tls: Option<TlsConnector>,
    /// What the tracking threads know about the role of the server.
    roles: Mutex<KnownRoles>,
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
        let tls = settings.tls.as_ref().map(|tls| TlsConnector::load(tls, &settings.address)).transpose();
        match (password, tls) {
            (Ok(password), Ok(tls)) => Ok(RedisAccess { password, tls, settings, roles: Mutex::default() }),
            (password, tls) => {
                let problems = [password.err(), tls.err()];
                Err(problems.into_iter().flatten().collect::<Vec<_>>().join("\n"))
            }
        }
    }

    /// Returns the address.
    pub fn address(&self) -> &UpstreamAddress {
        &self.settings.address
    }

    /// Returns the database number.
    pub(super) fn database(&self) -> u32 {
        self.settings.database
    }

    /// Returns the ACL user.
    pub(super) fn username(&self) -> Option<&str> {
        self.settings.username.as_deref()
    }

    /// Returns the password.
    pub(super) fn password(&self) -> Option<Arc<str>> {
        self.password.as_ref().map(Secret::text)
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

    /// Reads the password again. Returns true if it has changed. Logs an error, and keeps the old
    /// password then. Blocks.
    pub(super) fn reload_password(&self) -> bool {
        match self.password.as_ref().map_or(Ok(false), Secret::reload) {
            Ok(false) => false,
            Ok(true) => {
                log::info!("REDIS_PASSWORD_FILE has a new password, which new connections to Redis use");
                true
            }
            Err(problem) => {
                log::error!("{problem}; the password read before stays in use");
                false
            }
        }
    }

    /// Reads the password and the files of TLS again, for new connections. Logs errors, and keeps
    /// what was read before then. Blocks.
    pub fn reload(&self) {
        self.reload_password();
        if let Some(Err(problem)) = self.tls.as_ref().map(TlsConnector::reload) {
            log::error!("{problem}; new connections to Redis use the certificates read before");
        }
    }
}
