//! Connector to Redis with exponential backoff and jitter, and the meaning of Redis' errors.
//!
//! The backoff doubles with each failure, up to [`MAX_BACKOFF`]. Jitter spreads the attempts of
//! many proxies, so that they do not overload a Redis that restarts.

use super::access::{RedisAccess, ServerKind};
use super::identity::Identity;
use super::slot_map::Primary;
use super::stream::Endpoint;
use super::subscription::info_text;
use super::wire::Wire;
use super::{BackendConfig, handshake};
use crate::types::Failure;
use crate::upstream::UpstreamAddress;
use redis::{ErrorKind, RedisError, RedisResult};
use std::hash::{BuildHasher, RandomState};
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Backoff after the first failure.
const MIN_BACKOFF: Duration = Duration::from_millis(20);

/// Longest backoff. HTTP clients get it as `Retry-After`, because the proxy has tried Redis again
/// by then.
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// Opens connections to one server and keeps the time of the next attempt.
#[derive(Clone)]
pub(super) struct Connector {
    access: Arc<RedisAccess>,
    timeout: Duration,
    address: UpstreamAddress,
    kind: ServerKind,
    identity: Identity,
    /// True if sentinels or nodes name the server.
    is_found: bool,
    target: String,
    /// Endpoint of the last successful attempt.
    last_good: Option<Endpoint>,
    /// Backoff after the next failure.
    next_backoff: Duration,
    /// Cause of the last failure, and the time of the next attempt.
    backoff_state: Option<(Failure, Instant)>,
}

impl Connector {
    /// Creates the connector to a node. A connection to another server than this one is an error.
    pub(super) fn new(settings: &BackendConfig, node: &Primary) -> Connector {
        let identity = Identity::expected(&settings.access, node);
        // A configured node of a cluster has no id.
        let is_found = settings.access.sentinel().is_some() || node.id.is_some();
        Connector { is_found, ..Connector::to(settings, &node.address, ServerKind::Redis, identity) }
    }

    /// Creates the connector to a sentinel.
    pub(super) fn to_sentinel(settings: &BackendConfig, address: &UpstreamAddress) -> Connector {
        Connector::to(settings, address, ServerKind::Sentinel, Identity::Any)
    }

    fn to(settings: &BackendConfig, address: &UpstreamAddress, kind: ServerKind, identity: Identity) -> Connector {
        Connector {
            access: Arc::clone(&settings.access),
            timeout: settings.timeout,
            address: address.clone(),
            kind,
            identity,
            is_found: false,
            target: address.to_string(),
            last_good: None,
            next_backoff: MIN_BACKOFF,
            backoff_state: None,
        }
    }

    /// Returns the time of the next attempt, and the failure for requests that arrive before.
    pub(super) fn backoff(&self) -> Option<(Instant, Failure)> {
        self.backoff_state.as_ref().map(|(failure, until)| (*until, failure.clone()))
    }

    /// Returns the text of an error, with a remedy for this kind of server.
    pub(super) fn describe(&self, error: &RedisError) -> String {
        let remedy = match self.kind {
            ServerKind::Sentinel => SENTINEL_REMEDY,
            ServerKind::Redis if self.is_found => FOUND_REMEDY,
            ServerKind::Redis => CONFIGURED_REMEDY,
        };
        describe_error(error).replace(CONFIGURED_REMEDY, remedy)
    }

    /// Returns the address, for the log.
    pub(super) fn target(&self) -> &str {
        &self.target
    }

    /// Connects, authenticates, selects the database and calls `prepare`. Backs off if any of them
    /// fails.
    ///
    /// If Redis rejects the password, the file of the password is read again. With another one in
    /// it the attempt is repeated at once: the password was changed in Redis and in the file.
    pub(super) fn connect<T>(&mut self, prepare: impl FnOnce(Wire) -> RedisResult<T>) -> RedisResult<T> {
        self.backoff_state = None;
        let password = self.access.password(self.kind);
        let attempt = match self.attempt() {
            Err(error) if error.kind() == ErrorKind::AuthenticationFailed => {
                self.access.reload_passwords();
                // Another thread may have read the new password before this one.
                if self.access.password(self.kind) == password { Err(error) } else { self.attempt() }
            }
            result => result,
        };
        attempt.and_then(prepare).inspect_err(|error| self.back_off(connect_failure(error)))
    }

    /// Delays the next attempt by the current backoff, and doubles the backoff.
    pub(super) fn back_off(&mut self, failure: Failure) {
        // The delay is random, between half of the backoff and all of it.
        let jittered = self.next_backoff / 2 + (self.next_backoff / 2).mul_f64(random_fraction());
        self.next_backoff = (self.next_backoff * 2).min(MAX_BACKOFF);
        self.back_off_for(failure, jittered);
    }

    /// Delays the next attempt by `delay`.
    pub(super) fn back_off_for(&mut self, failure: Failure, delay: Duration) {
        self.backoff_state = Some((failure, Instant::now() + delay));
    }

    /// Resets the backoff to its minimum. Called once a connection has proved to work.
    pub(super) fn reset_backoff(&mut self) {
        self.next_backoff = MIN_BACKOFF;
    }

    /// Resolves the host and tries each address.
    ///
    /// The lookup does not count as part of the connect timeout. With a dead first name server a
    /// lookup takes longer than that, and no attempt would succeed.
    fn attempt(&mut self) -> RedisResult<Wire> {
        let mut failure = std::io::Error::other("the host of Redis resolves to no address").into();
        for endpoint in self.resolve()? {
            match self.open(endpoint.clone()) {
                Err(error) if is_client_rejected(&error) => failure = error,
                Err(error) if error.is_io_error() => {
                    // A rejection by Redis says more than an address without a server.
                    failure = if is_client_rejected(&failure) { failure } else { error };
                }
                result => {
                    if result.is_ok() {
                        self.last_good = Some(endpoint);
                    }
                    return result;
                }
            }
        }
        Err(failure)
    }

    /// Returns the endpoints to try. The last good one comes first, because each dead one costs a
    /// whole timeout, and one that is no longer the primary comes last. Blocks for the lookup.
    pub(super) fn resolve(&self) -> RedisResult<Vec<Endpoint>> {
        let mut endpoints: Vec<Endpoint> = match &self.address {
            UpstreamAddress::Tcp(host, port) => (host.as_str(), *port).to_socket_addrs()?.map(Endpoint::Tcp).collect(),
            UpstreamAddress::Unix(path) => vec![Endpoint::Unix(path.clone())],
        };
        let demoted = self.access.demoted();
        endpoints
            .sort_by_key(|endpoint| (demoted.as_ref() == Some(endpoint), self.last_good.as_ref() != Some(endpoint)));
        Ok(endpoints)
    }

    /// Connects to `endpoint`, authenticates, selects the database, and checks that it is the
    /// expected server.
    pub(super) fn open(&self, endpoint: Endpoint) -> RedisResult<Wire> {
        let tls = self.access.tls().map(|tls| (tls, &self.address));
        let mut wire = Wire::connect(endpoint, tls, self.timeout)?;
        handshake::log_in(&self.access.login(self.kind), &mut wire)?;
        self.identity.check(&mut wire)?;
        Ok(wire)
    }
}

/// Returns true if Redis denies a command in general: the user lacks the permission, or the command
/// does not exist.
pub(super) fn is_command_denied(error: &RedisError) -> bool {
    let unknown = |text: &str| text.to_ascii_lowercase().starts_with("unknown ");
    error.code() == Some("NOPERM") || error.detail().is_some_and(unknown)
}

/// Returns the failure that waiters of a key get for `error`.
pub(super) fn read_failure(error: &RedisError) -> Failure {
    if error.is_timeout() {
        Failure::Timeout
    } else if let Some(code) = error.code() {
        let text = format!("{code} {}", detail_of(error)).trim_end().to_owned();
        match code {
            "WRONGTYPE" => Failure::WrongType,
            "MOVED" | "ASK" => Failure::Redis(format!("{CLUSTER_REDIRECTION} ({text})")),
            // Redis loads its data, has lost its master, or runs a script. It recovers by itself.
            "LOADING" | "MASTERDOWN" | "BUSY" => Failure::NotReady(text),
            // A cluster lacks a primary, or keys are moving. Both pass.
            "CLUSTERDOWN" | "TRYAGAIN" => Failure::NotReady(text),
            _ if is_full(error) => Failure::NotReady(text),
            _ => Failure::Redis(text),
        }
    } else if error.is_io_error() {
        Failure::Unavailable
    } else {
        Failure::Redis(single_line(error))
    }
}

/// Error for a key that a cluster node redirects to another node. Clients must not receive the
/// redirection itself: their libraries would connect to the node, past the proxy.
const CLUSTER_REDIRECTION: &str =
    "ERR Redis is a node of a cluster, and another node has this key; set REDIS_MODE=cluster in the proxy";

/// Warning about a cluster node, after its address.
pub(super) const CLUSTER_WARNING: &str =
    "is a node of a cluster: keys of other nodes cannot be read; set REDIS_MODE=cluster";

/// Returns true if a cluster node redirected the proxy to another node.
pub(super) fn is_cluster_redirection(failure: &Failure) -> bool {
    matches!(failure, Failure::Redis(text) if text.starts_with(CLUSTER_REDIRECTION))
}

/// Returns true if an error reply to `PING` means that Redis does not serve reads. A Redis that
/// refuses writes (MISCONF, NOREPLICAS), or that refuses `PING`, serves them.
pub(super) fn is_outage(error: &RedisError) -> bool {
    error.code().is_none_or(|code| code == "NOAUTH") || matches!(read_failure(error), Failure::NotReady(_))
}

/// Returns true if Redis has reached its `maxclients`.
fn is_full(error: &RedisError) -> bool {
    error.detail().is_some_and(|text| text.starts_with("max number of clients"))
}

/// Returns true if Redis rejects the connection of this client. A Redis at another address may
/// accept it.
fn is_client_rejected(error: &RedisError) -> bool {
    is_full(error) || error.code() == Some(PROTECTED)
}

/// Error code of a Redis in protected mode: it has no password, and the client is remote.
const PROTECTED: &str = "DENIED";

/// Returns the text after an error's code, without quoted arguments. The text of protected mode is
/// a page of advice, cut to its first sentence.
fn detail_of(error: &RedisError) -> &str {
    let detail = without_arguments(error.detail().unwrap_or_default());
    match error.code() {
        Some(PROTECTED) => detail.split_inclusive(". ").next().unwrap_or_default().trim_end(),
        _ => detail,
    }
}

/// Returns an error text up to the arguments that Redis quotes. They may contain a password or a
/// client's key.
pub(super) fn without_arguments(text: &str) -> &str {
    text.split(", with args beginning with").next().unwrap_or_default()
}

/// Returns the error's text in one line, without quoted arguments and control characters. The crate
/// describes malformed replies in several lines.
pub(super) fn single_line(error: &RedisError) -> String {
    if error.code() == Some(PROTECTED) {
        return format!("{PROTECTED} {}", detail_of(error));
    }
    let text = error.to_string().replace(char::is_control, " ");
    without_arguments(&text).split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the failure that waiters get for a failed connect. [`Failure::Redis`] becomes
/// [`Failure::Refused`], because without a connection no key can be read.
pub(super) fn connect_failure(error: &RedisError) -> Failure {
    match read_failure(error) {
        Failure::Redis(text) => Failure::Refused(text),
        failure => failure,
    }
}

/// Returns the run id of the Redis server at the other end, or `None` if the server does not report
/// one. A restarted server has a new run id, and so has another server behind the same name.
pub(super) fn run_id(wire: &mut Wire) -> RedisResult<Option<String>> {
    Ok(info(wire, "server")?.and_then(|text| info_field(&text, "run_id")))
}

/// Returns a section of `INFO`, `None` if Redis denies the command.
pub(super) fn info(wire: &mut Wire, section: &str) -> RedisResult<Option<String>> {
    match wire.request(redis::cmd("INFO").arg(section)) {
        Ok(reply) => Ok(Some(info_text(reply).unwrap_or_default())),
        Err(error) if is_command_denied(&error) => Ok(None),
        // Any other error may be temporary. Keys must not be read over a connection to an unknown
        // server while another server sends the invalidations.
        Err(error) => Err(error),
    }
}

/// Returns a field of `INFO` without control characters, which could disturb a terminal.
pub(super) fn info_field(text: &str, name: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(value.chars().filter(|c| !c.is_control()).collect())
}

/// Remedy if no server listens at a configured address.
const CONFIGURED_REMEDY: &str = "check that Redis listens there (REDIS_HOST and REDIS_PORT, or REDIS_URL)";

/// Remedy if none listens at an address that sentinels or nodes name.
const FOUND_REMEDY: &str = "check that node, and the address that it announces";

/// Remedy if no sentinel listens there.
const SENTINEL_REMEDY: &str = "check that the sentinel runs, and its address in REDIS_URL";

/// Returns the error's text, with a remedy for errors that have a usual cause.
pub(super) fn describe_error(error: &RedisError) -> String {
    let text = single_line(error);
    if error.is_timeout() {
        // The system's text is "Resource temporarily unavailable".
        let is_own = text.contains("REDIS_TIMEOUT");
        return if is_own { text } else { "no reply within REDIS_TIMEOUT".into() };
    }
    if text.contains("failed to lookup address") {
        return format!("{text}; check that the host of Redis resolves here; for a local run use 127.0.0.1");
    }
    let remedy = match error.code() {
        _ if text.contains("Connection refused") => CONFIGURED_REMEDY,
        Some("NOAUTH") => "set REDIS_PASSWORD or REDIS_PASSWORD_FILE",
        Some("CLUSTERDOWN") => "repair the cluster (redis-cli --cluster check)",
        Some(PROTECTED) => "set a password in Redis and here, or disable protected-mode in Redis",
        _ if is_full(error) => "raise maxclients in Redis, or lower REDIS_CONNECTIONS or WORKERS",
        _ if text.contains("permission") => "grant the ACL permissions listed in docs/consistency.md",
        _ if text.contains("without any password") => {
            "Redis has no password: configure none here, or set requirepass in Redis"
        }
        _ if text.contains("cluster support disabled") => {
            "set REDIS_MODE=single, or name a node of a cluster (REDIS_URL, or REDIS_HOST and REDIS_PORT)"
        }
        _ if text.contains("the server expects TLS") => "set REDIS_TLS=on, or a rediss:// URL",
        _ if error.kind() == ErrorKind::Parse => "check the address of Redis (REDIS_HOST and REDIS_PORT, or REDIS_URL)",
        _ if text.contains("rejected AUTH") => "check the user and the password of Redis",
        _ if text.contains("rejected SELECT") => "check the database number (REDIS_DB, or REDIS_URL)",
        _ => return text,
    };
    format!("{text}; {remedy}")
}

/// Returns a random number from 0 to 1. The random hash keys of the standard library are good
/// enough for jitter.
pub(super) fn random_fraction() -> f64 {
    f64::from((RandomState::new().hash_one(0u8) >> 32) as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Upstream;

    /// Errors that stop reads are outages. Errors that refuse writes or `PING` are not.
    #[test]
    fn ping_error_that_stops_reads_is_outage() {
        for (reply, expected) in [
            ("NOAUTH Authentication required.", true),
            ("LOADING Redis is loading the dataset in memory", true),
            ("MASTERDOWN Link with MASTER is down", true),
            ("BUSY Redis is busy running a script", true),
            ("ERR max number of clients reached", true),
            ("MISCONF Redis is configured to save RDB snapshots", false),
            ("NOREPLICAS Not enough good replicas to write.", false),
            ("READONLY You can't write against a read only replica.", false),
            ("OOM command not allowed", false),
            ("NOPERM this user has no permissions to run the 'ping' command", false),
            ("ERR unknown command 'PING'", false),
        ] {
            match redis::parse_redis_value(format!("-{reply}\r\n").as_bytes()) {
                Ok(redis::Value::ServerError(error)) => assert_eq!(is_outage(&error.into()), expected, "{reply}"),
                other => panic!("{other:?} is not an error"),
            }
        }
        assert!(is_outage(&std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()));
    }

    /// The backoff doubles with each failed attempt up to its maximum, and has jitter.
    #[test]
    fn failed_attempts_double_backoff() {
        // The listener is closed again, so connections to its port are refused.
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("no free port");
        let address = UpstreamAddress::Tcp("127.0.0.1".into(), free.port());
        let settings = super::super::tests::settings(Upstream::single(address.clone()));
        let mut connector = Connector::new(&settings, &Primary { address, id: None });
        assert!(connector.backoff().is_none());
        let mut jitters = Vec::new();
        for expected in [20, 40, 80, 160, 320, 640].into_iter().chain([1000; 10]) {
            let before = Instant::now();
            let Err(error) = connector.connect(Ok) else { panic!("a connect to a closed port succeeded") };
            let failure = read_failure(&error);
            let (until, reported) = connector.backoff().expect("a failed attempt delays the next");
            assert_eq!((&failure, reported), (&Failure::Unavailable, Failure::Unavailable));
            assert!(until - before >= Duration::from_millis(expected / 2), "the next attempt comes too early");
            assert!(until <= Instant::now() + Duration::from_millis(expected), "the next attempt comes too late");
            jitters.push((until - before).as_millis());
        }
        // Only the longest delays, because the duration of the attempts themselves is small beside
        // them.
        let longest = &mut jitters[6..];
        longest.sort_unstable();
        assert!(longest[9] - longest[0] > 20, "no jitter: {longest:?} milliseconds");
    }
}
