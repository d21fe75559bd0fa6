//! Files that are read at start, and again on SIGHUP.
//!
//! The signals thread reads them, never an event loop. A file that cannot be used leaves what is in
//! force as it is.

use segment_redis_proxy::backend::RedisAccess;
use segment_redis_proxy::client_auth::{ClientPasswords, SharedPasswords};
use segment_redis_proxy::config::Config;
use segment_redis_proxy::secret::SecretSource;
use segment_redis_proxy::tls_server::TlsServer;
use std::sync::Arc;

/// Everything that SIGHUP reads again, except the logs.
#[derive(Clone)]
pub struct Reloadables {
    /// Source of the clients' passwords, and where the workers find them.
    client_passwords: Option<(SecretSource, Arc<SharedPasswords>)>,
    /// Password of Redis, and certificates of the connections to it.
    redis_access: Arc<RedisAccess>,
    /// Certificate, key and authorities for the TLS of clients.
    tls_server: Option<Arc<TlsServer>>,
}

impl Reloadables {
    /// Reads everything for the first time.
    ///
    /// # Errors
    ///
    /// The first file or value that cannot be used, with its remedy.
    pub fn load(config: &Config) -> Result<Reloadables, String> {
        let load = |source: &SecretSource| {
            let passwords = read_client_passwords(source)?;
            Ok::<_, String>((source.clone(), Arc::new(SharedPasswords::new(passwords))))
        };
        let tls_server = TlsServer::from_config(config).transpose()?.map(Arc::new);
        if let Some(tls) = tls_server.as_deref() {
            let plain = if tls.is_required() { "refused, except for /healthz and /readyz" } else { "served too" };
            log::info!("TLS for clients is on; plain connections are {plain}");
            warn_of_validity(tls);
        }
        Ok(Reloadables {
            client_passwords: config.client_password.as_ref().map(load).transpose()?,
            redis_access: Arc::new(RedisAccess::load(config.redis.clone())?),
            tls_server,
        })
    }

    /// Returns the passwords of clients, if they need one.
    pub fn client_passwords(&self) -> Option<Arc<SharedPasswords>> {
        self.client_passwords.as_ref().map(|(_, shared)| Arc::clone(shared))
    }

    /// Returns the access to Redis.
    pub fn redis_access(&self) -> Arc<RedisAccess> {
        Arc::clone(&self.redis_access)
    }

    /// Returns the TLS of clients, if it is configured.
    pub fn tls_server(&self) -> Option<Arc<TlsServer>> {
        self.tls_server.clone()
    }

    /// Reads all files again, and logs the results.
    pub fn reload(&self) {
        self.redis_access.reload();
        if let Some(tls) = &self.tls_server {
            reload_tls(tls);
        }
        if let Some((source @ SecretSource::File { variable, .. }, shared)) = &self.client_passwords {
            match read_client_passwords(source) {
                Ok(passwords) => {
                    log::info!("{variable} was read again: {}", describe(&passwords));
                    shared.replace(passwords);
                }
                Err(problem) => log::error!("{problem}; the old passwords stay in force, send SIGHUP again"),
            }
        }
    }
}

/// Loads certificate, key and authorities for the TLS of clients again.
fn reload_tls(tls: &TlsServer) {
    match tls.reload() {
        Ok(true) => log::info!("TLS certificate, key or client authorities changed: new connections use the new ones"),
        Ok(false) => log::info!("TLS certificate, key and client authorities are unchanged"),
        Err(error) => log::error!("{error}; until then the old TLS certificate and key stay in use"),
    }
    warn_of_validity(tls);
}

fn warn_of_validity(tls: &TlsServer) {
    if let Some(warning) = tls.validity_warning() {
        log::warn!("{warning}");
    }
}

/// Reads the passwords of clients. The error names the variable and the remedy.
pub fn read_client_passwords(source: &SecretSource) -> Result<ClientPasswords, String> {
    let text = source.read()?;
    ClientPasswords::parse(&text).map_err(|problem| match source {
        SecretSource::Value(_) => format!("CLIENT_PASSWORD {problem}"),
        SecretSource::File { variable, path } => format!("{variable}={path:?} {problem}"),
    })
}

/// Returns how many passwords there are, without showing any.
pub fn describe(passwords: &ClientPasswords) -> String {
    match passwords.with_user() {
        0 => format!("{} valid password(s)", passwords.len()),
        with_user => format!("{} valid password(s), {with_user} of them for one user (user:password)", passwords.len()),
    }
}
