//! Files that are read at start, and again on SIGHUP.
//!
//! The signals thread reads them, never an event loop. A file that cannot be used leaves what is in
//! force as it is.

use segment_redis_proxy::backend::RedisAccess;
use segment_redis_proxy::client_auth::{ClientPasswords, SharedPasswords};
use segment_redis_proxy::config::Config;
use segment_redis_proxy::secret::SecretSource;
use std::sync::Arc;

/// Everything that SIGHUP reads again, except the logs.
#[derive(Clone)]
pub struct Reloadables {
    /// Source of the clients' passwords, and where the workers find them.
    client_passwords: Option<(SecretSource, Arc<SharedPasswords>)>,
    /// Password of Redis, and certificates of the connections to it.
    redis_access: Arc<RedisAccess>,
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
        Ok(Reloadables {
            client_passwords: config.client_password.as_ref().map(load).transpose()?,
            redis_access: Arc::new(RedisAccess::load(config.redis.clone())?),
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

    /// Reads all files again, and logs the results.
    pub fn reload(&self) {
        self.redis_access.reload();
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
