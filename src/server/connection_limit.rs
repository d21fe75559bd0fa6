//! Connection limit: `MAX_CONNECTIONS`, or less if the system allows fewer open files.
//!
//! All event loops share one count. Above the limit each event loop accepts a few clients only to
//! refuse them, in the protocol that their first line shows.

use super::listen::Endpoint;
use crate::config::Config;
use rlimit::Resource;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Maximum number of clients that one event loop refuses at the same time. Each has 250 ms to send
/// its first line, and 100 ms to close after the refusal. Others wait in the kernel's queue, unless
/// a connection becomes free.
const MAX_REJECTING: usize = 256;

/// Maximum number of clients of `ADMIN_PORT`, of all event loops together: some monitors, probes
/// and people. They do not count against `MAX_CONNECTIONS`, so that they are served when it is
/// reached.
const MAX_ADMIN_CONNECTIONS: usize = 64;

/// Open files apart from clients and Redis: standard streams, signals, and files that system
/// libraries open briefly.
const OTHER_FILES: usize = 16;

/// Open files of each event loop: listener, epoll, eventfd, and one to spare.
const FILES_PER_WORKER: usize = 4;

/// Open files of each connection to Redis: the connection, and one to resolve a host name.
const FILES_PER_REDIS_CONNECTION: usize = 2;

/// Assumed limit of open files if the system does not report it: the usual one.
const DEFAULT_FILE_LIMIT: usize = 1024;

/// Connections of all event loops that count against the limit.
static OPEN_CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

/// Connections of all event loops that count against [`MAX_ADMIN_CONNECTIONS`].
static OPEN_ADMIN_CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

/// Connection limit of all event loops, and the refused clients of one. Each event loop has a
/// clone.
#[derive(Clone, Debug)]
pub struct ConnectionLimiter {
    /// Maximum number of clients of all event loops.
    max_connections: usize,
    /// Maximum number of clients that this event loop refuses at the same time.
    max_rejecting: usize,
    rejecting: usize,
    /// Clients of `ADMIN_PORT` that this event loop serves.
    admin: usize,
}

/// Error: the system allows too few open files for a single client.
#[derive(Debug, PartialEq, Eq)]
pub struct FileLimitTooLow {
    files: usize,
    needed: usize,
}

impl std::fmt::Display for FileLimitTooLow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let FileLimitTooLow { files, needed } = self;
        write!(
            f,
            "limit of open files too low: {files}, but one client connection needs {needed}; raise it (ulimit -n)"
        )
    }
}

impl ConnectionLimiter {
    /// Creates the limiter for a configuration. Raises the limit of open files as far as needed and
    /// possible. Lowers the connection limit if that is not enough.
    ///
    /// # Errors
    ///
    /// The limit of open files is too low for a single client.
    pub fn from_config(config: &Config) -> Result<ConnectionLimiter, FileLimitTooLow> {
        let wanted = ConnectionLimiter::for_file_limit(usize::MAX, config)?;
        let needed = reserved_files(config) + wanted.max_connections + wanted.max_rejecting * config.workers;
        let files = raise_file_limit(needed);
        let limiter = ConnectionLimiter::for_file_limit(files, config)?;
        if limiter.max_connections < wanted.max_connections {
            log::warn!(
                "MAX_CONNECTIONS={} needs {needed} open files, but the system allows {files}: connection limit lowered to \
                 {}; raise the limit of open files (ulimit -Hn, or LimitNOFILE= in systemd)",
                wanted.max_connections,
                limiter.max_connections
            );
        }
        Ok(limiter)
    }

    /// Returns the limits that fit in `files` open files.
    fn for_file_limit(files: usize, config: &Config) -> Result<ConnectionLimiter, FileLimitTooLow> {
        let reserved = reserved_files(config);
        let needed = reserved + 1 + config.workers;
        let available = files.saturating_sub(reserved);
        if files < needed {
            return Err(FileLimitTooLow { files, needed });
        }
        // At most an eighth of the files is for clients to refuse.
        let max_rejecting = (available / 8 / config.workers).clamp(1, MAX_REJECTING);
        let max_connections = config.max_connections.min(available - max_rejecting * config.workers);
        Ok(ConnectionLimiter { max_connections, max_rejecting, rejecting: 0, admin: 0 })
    }

    /// Returns the maximum number of clients of all event loops.
    pub fn max_connections(&self) -> usize {
        self.max_connections
    }

    /// Returns the number of clients of this event loop that do not count against the limit:
    /// refused ones, and those of `ADMIN_PORT`.
    pub(super) fn uncounted(&self) -> usize {
        self.rejecting + self.admin
    }

    /// Returns the count of open connections at an endpoint, and its maximum.
    fn count_of(&self, endpoint: Endpoint) -> (&'static AtomicUsize, usize) {
        match endpoint {
            Endpoint::Main => (&OPEN_CONNECTIONS, self.max_connections),
            Endpoint::Admin => (&OPEN_ADMIN_CONNECTIONS, MAX_ADMIN_CONNECTIONS),
        }
    }

    /// Returns true if a connection can be accepted, if only to refuse it.
    pub(super) fn can_accept(&self, endpoint: Endpoint) -> bool {
        let (open, most) = self.count_of(endpoint);
        self.rejecting < self.max_rejecting || open.load(Ordering::Relaxed) < most
    }

    /// Counts an accepted connection. Returns true if it is above the limit and must be refused.
    pub(super) fn acquire(&mut self, endpoint: Endpoint) -> bool {
        let (open, most) = self.count_of(endpoint);
        let rejected =
            open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < most).then_some(open + 1)).is_err();
        self.rejecting += usize::from(rejected);
        self.admin += usize::from(!rejected && endpoint == Endpoint::Admin);
        rejected
    }

    /// Releases a connection. `rejected` is the result of [`ConnectionLimiter::acquire`] for it.
    pub(super) fn release(&mut self, endpoint: Endpoint, rejected: bool) {
        if rejected {
            self.rejecting -= 1;
        } else {
            self.count_of(endpoint).0.fetch_sub(1, Ordering::Relaxed);
            self.admin -= usize::from(endpoint == Endpoint::Admin);
        }
    }
}

/// Returns the number of open files that are not for clients.
fn reserved_files(config: &Config) -> usize {
    // With one connection for tracking.
    let redis = (config.redis_connections + 1) * FILES_PER_REDIS_CONNECTION;
    // The first listener of a worker is in `FILES_PER_WORKER`.
    let listeners = usize::from(config.proxy_socket.is_some()) + usize::from(config.admin_port.is_some());
    let admin = if config.admin_port.is_some() { MAX_ADMIN_CONNECTIONS } else { 0 };
    OTHER_FILES + admin + config.workers * (FILES_PER_WORKER + listeners + redis)
}

/// Raises the limit of open files to `needed`, or as far as possible. Returns the limit in force.
fn raise_file_limit(needed: usize) -> usize {
    let needed = needed as u64;
    let raise = || -> io::Result<u64> {
        let (soft, hard) = Resource::NOFILE.get()?;
        if soft >= needed {
            return Ok(soft);
        }
        // Never above the hard limit, which root could raise: the operator has set it.
        let raised = needed.min(hard);
        Resource::NOFILE.set(raised, hard)?;
        Ok(raised)
    };
    match raise() {
        Ok(files) => usize::try_from(files).unwrap_or(usize::MAX),
        Err(error) => {
            log::warn!("cannot raise the limit of open files, the connection limit may be lower: {error}");
            Resource::NOFILE.get_soft().map_or(DEFAULT_FILE_LIMIT, |soft| usize::try_from(soft).unwrap_or(usize::MAX))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> Config {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        Config::read(find).expect("valid variables")
    }

    /// Few open files lower the connection limit. Too few for one client are an error.
    #[test]
    fn file_limit_lowers_connection_limit() {
        let defaults = config(&[]);
        let limits = |files| {
            ConnectionLimiter::for_file_limit(files, &defaults)
                .map(|limiter| (limiter.max_connections, limiter.max_rejecting))
        };
        assert_eq!(limits(20_000), Ok((10_000, 256)));
        assert_eq!(limits(64), Ok((30, 4)));
        assert_eq!(limits(32), Ok((1, 1)));
        assert_eq!(limits(31), Err(FileLimitTooLow { files: 31, needed: 32 }));
        let admin = config(&[("ADMIN_PORT", "9090")]);
        assert_eq!(reserved_files(&admin), reserved_files(&defaults) + MAX_ADMIN_CONNECTIONS + 1);
        let many = config(&[("WORKERS", "4"), ("MAX_CONNECTIONS", "50")]);
        let limiter = ConnectionLimiter::for_file_limit(1000, &many).expect("enough open files");
        assert_eq!((limiter.max_connections, limiter.max_rejecting), (50, 29));
        let many = config(&[("WORKERS", "4")]);
        let limiter = ConnectionLimiter::for_file_limit(200, &many).expect("enough open files");
        assert_eq!(limiter.max_connections + 4 * limiter.max_rejecting, 200 - reserved_files(&many));
    }
}
