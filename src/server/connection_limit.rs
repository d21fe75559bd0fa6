//! How many clients there is room for: in the operator's eyes (`MAX_CONNECTIONS`), and in the system's, which bounds open files.
//!
//! All loops count together. Beyond the last place each loop has a few more, for those who are only told that there is none:
//! their first line says in which protocol.

use crate::config::Config;
use rlimit::Resource;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Clients of one loop, at most, that are being told that there is no place for them. Each stays for a quarter of a second at most,
/// less if it asks at once; more wait in the kernel's queue until then, unless a place becomes free.
const MAX_REJECTING: usize = 256;

/// Open files beside clients and Redis: standard streams, signals, and what the system's libraries open for a moment.
const OTHER_FILES: usize = 16;

/// Open files of each loop: listener, epoll, eventfd, and one to spare.
const FILES_PER_LOOP: usize = 4;

/// Open files of each connection to Redis: while a name is resolved, one more than the connection.
const FILES_PER_REDIS_CONNECTION: usize = 2;

/// Open files that are allowed where the system does not tell: the usual limit.
const DEFAULT_FILE_LIMIT: usize = 1024;

/// Clients that have a place, of all loops.
static OPEN_CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

/// See the top of the file. Each loop has one of its own.
#[derive(Clone, Debug)]
pub struct ConnectionLimiter {
    /// Clients that all loops together may have.
    max_connections: usize,
    /// Clients that this loop may be turning away.
    max_rejecting: usize,
    rejecting: usize,
}

/// The system allows so few open files that there is no place for any client.
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
    /// Makes room for what the configuration allows: raises the limit of open files if need be, as far as the system lets
    /// it, and allows fewer clients if that is not far enough.
    pub fn from_config(config: &Config) -> Result<ConnectionLimiter, FileLimitTooLow> {
        let wanted = ConnectionLimiter::for_file_limit(usize::MAX, config)?;
        let needed = reserved_files(config) + wanted.max_connections + wanted.max_rejecting * config.workers;
        let files = raise_file_limit(needed);
        let connection_limiter = ConnectionLimiter::for_file_limit(files, config)?;
        if connection_limiter.max_connections < wanted.max_connections {
            log::warn!(
                "MAX_CONNECTIONS={} needs {needed} open files, but the system allows {files}: connection limit lowered to \
                 {}; raise the limit of open files (ulimit -Hn, or LimitNOFILE= in systemd)",
                wanted.max_connections,
                connection_limiter.max_connections
            );
        }
        Ok(connection_limiter)
    }

    /// What there is room for in so many open files.
    fn for_file_limit(files: usize, config: &Config) -> Result<ConnectionLimiter, FileLimitTooLow> {
        let other = reserved_files(config);
        let needed = other + 1 + config.workers;
        let rest = files.saturating_sub(other);
        if files < needed {
            return Err(FileLimitTooLow { files, needed });
        }
        // With few files most of them are for clients that are served.
        let most_turned_away = (rest / 8 / config.workers).clamp(1, MAX_REJECTING);
        let most = config.max_connections.min(rest - most_turned_away * config.workers);
        Ok(ConnectionLimiter { max_connections: most, max_rejecting: most_turned_away, rejecting: 0 })
    }

    /// Clients that all loops together may have.
    pub fn max_connections(&self) -> usize {
        self.max_connections
    }

    /// Clients of this loop that are being turned away.
    pub(super) fn rejecting(&self) -> usize {
        self.rejecting
    }

    /// Whether a connection can be accepted, be it to turn it away.
    pub(super) fn can_accept(&self) -> bool {
        self.rejecting < self.max_rejecting || OPEN_CONNECTIONS.load(Ordering::Relaxed) < self.max_connections
    }

    /// Takes a place. Says whether it is one of those that are there to be turned away.
    pub(super) fn acquire(&mut self) -> bool {
        let taken = OPEN_CONNECTIONS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            (taken < self.max_connections).then_some(taken + 1)
        });
        self.rejecting += usize::from(taken.is_err());
        taken.is_err()
    }

    /// Gives a place back.
    pub(super) fn release(&mut self, turned_away: bool) {
        if turned_away {
            self.rejecting -= 1;
        } else {
            OPEN_CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn reserved_files(config: &Config) -> usize {
    // One more connection for tracking.
    let redis = (config.redis_connections + 1) * FILES_PER_REDIS_CONNECTION;
    OTHER_FILES + config.workers * (FILES_PER_LOOP + redis)
}

/// Raises the limit of open files to what is needed, or as far as it goes. Says what it is then.
fn raise_file_limit(needed: usize) -> usize {
    let needed = needed as u64;
    let raise = || -> io::Result<u64> {
        let (soft, hard) = Resource::NOFILE.get()?;
        if soft >= needed {
            return Ok(soft);
        }
        // Root could go beyond the hard limit; but somebody has set it.
        let most = needed.min(hard);
        Resource::NOFILE.set(most, hard)?;
        Ok(most)
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
        Config::read(find).expect("allowed")
    }

    #[test]
    fn few_files_mean_few_clients_and_none_is_an_error() {
        let defaults = config(&[]);
        let connection_limiter = |files| {
            ConnectionLimiter::for_file_limit(files, &defaults)
                .map(|connection_limiter| (connection_limiter.max_connections, connection_limiter.max_rejecting))
        };
        assert_eq!(connection_limiter(20_000), Ok((10_000, 256)));
        assert_eq!(connection_limiter(64), Ok((30, 4)));
        assert_eq!(connection_limiter(32), Ok((1, 1)));
        assert_eq!(connection_limiter(31), Err(FileLimitTooLow { files: 31, needed: 32 }));
        let many = config(&[("WORKERS", "4"), ("MAX_CONNECTIONS", "50")]);
        let connection_limiter = ConnectionLimiter::for_file_limit(1000, &many).expect("room");
        assert_eq!((connection_limiter.max_connections, connection_limiter.max_rejecting), (50, 29));
        let many = config(&[("WORKERS", "4")]);
        let connection_limiter = ConnectionLimiter::for_file_limit(200, &many).expect("room");
        assert_eq!(
            connection_limiter.max_connections + 4 * connection_limiter.max_rejecting,
            200 - reserved_files(&many)
        );
    }
}
