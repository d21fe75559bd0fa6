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
    /// Problem of the password's file that was logged last.
    password_problem: Mutex<Option<String>>,
    /// Roles of the servers, as the tracking threads saw them.
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
        let tls = settings.tls.as_ref().map(|tls| TlsConnector::load(tls, &settings.addresses[0])).transpose();
        match (password, tls) {
            (Ok(password), Ok(tls)) => {
                Ok(RedisAccess { password, tls, settings, password_problem: Mutex::default(), roles: Mutex::default() })
            }
            (password, tls) => {
                let problems = [password.err(), tls.err()];
                Err(problems.into_iter().flatten().collect::<Vec<_>>().join("\n"))
            }
        }
    }

    /// Returns the address.
    pub fn address(&self) -> &UpstreamAddress {
        &self.settings.addresses[0]
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

    /// Reads the password again. Logs a change, and a new problem: after one the old password
    /// stays. Blocks.
    pub(super) fn reload_password(&self) {
        let result = self.password.as_ref().map_or(Ok(false), Secret::reload);
        // Each attempt to connect of each thread may come here while the file is missing.
        let problem = result.as_ref().err().cloned();
        let is_known = std::mem::replace(&mut *self.password_problem(), problem.clone()) == problem;
        match result {
            Ok(true) => log::info!("REDIS_PASSWORD_FILE has a new password, which new connections to Redis use"),
            Err(problem) if !is_known => log::error!("{problem}; the password read before stays in use"),
            _ => {}
        }
    }

    fn password_problem(&self) -> MutexGuard<'_, Option<String>> {
        self.password_problem.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the password and the files of TLS again, for new connections. Logs the results. After
    /// an error, what was read before stays. Blocks.
    pub fn reload(&self) {
        *self.password_problem() = None;
        self.reload_password();
        match self.tls.as_ref().map(TlsConnector::reload) {
            Some(Ok(())) => log::info!("REDIS_TLS was read again: new connections to Redis use the present files"),
            Some(Err(problem)) => log::error!("{problem}; new connections to Redis use the certificates read before"),
            None => {}
        }
    }
}
