//! Getting a connection to Redis, and not trying too often: after a failure the next attempt waits, twice as long each
//! time, and not all proxies the same, so that a Redis that comes back is not run over.

use super::BackendConfig;
use super::handshake::Identity;
use super::wire::Wire;
use crate::types::Failure;
use redis::{RedisError, RedisResult};
use std::hash::{BuildHasher, RandomState};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Wait after the first failure.
const MIN_BACKOFF: Duration = Duration::from_millis(20);

/// Longest wait. What `Retry-AfterReply` tells clients: so much later Redis will have been tried again.
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// Opens connections, and says when the next attempt may be made.
#[derive(Clone)]
pub(super) struct Connector {
    host: String,
    port: u16,
    identity: Identity,
    timeout: Duration,
    target: String,
    /// Where the last attempt that succeeded led.
    last_good_address: Option<SocketAddr>,
    /// How long to wait after the next failure.
    next_backoff: Duration,
    /// What the last attempt failed for, and when to try again.
    backoff_state: Option<(Failure, Instant)>,
}

impl Connector {
    pub(super) fn new(settings: &BackendConfig) -> Connector {
        Connector {
            host: settings.host.clone(),
            port: settings.port,
            identity: Identity::new(settings),
            timeout: settings.timeout,
            target: format!("{}:{}", settings.host, settings.port),
            last_good_address: None,
            next_backoff: MIN_BACKOFF,
            backoff_state: None,
        }
    }

    /// Until when no attempt may be made, and what to tell those who ask meanwhile.
    pub(super) fn backoff(&self) -> Option<(Instant, Failure)> {
        self.backoff_state.as_ref().map(|(failure, until)| (*until, failure.clone()))
    }

    /// Host and port, for the log.
    pub(super) fn target(&self) -> &str {
        &self.target
    }

    /// Connects, authenticates, selects the database, and does what `prepare` does. A failure sets the time of the next
    /// attempt.
    pub(super) fn connect(&mut self, prepare: impl FnOnce(&mut Wire) -> RedisResult<()>) -> RedisResult<Wire> {
        self.backoff_state = None;
        let attempt = self.attempt().and_then(|mut wire| prepare(&mut wire).map(|()| wire));
        attempt.inspect_err(|error| self.back_off(connect_failure(error)))
    }

    /// Makes the next attempt wait, longer each time.
    pub(super) fn back_off(&mut self, failure: Failure) {
        // Between half of the wait and all of it.
        let jittered = self.next_backoff / 2 + (self.next_backoff / 2).mul_f64(random_fraction());
        self.next_backoff = (self.next_backoff * 2).min(MAX_BACKOFF);
        self.back_off_for(failure, jittered);
    }

    /// Makes the next attempt wait for `wait`.
    pub(super) fn back_off_for(&mut self, failure: Failure, wait: Duration) {
        self.backoff_state = Some((failure, Instant::now() + wait));
    }

    /// Takes note that a connection has proved good: the next failure is the first again.
    pub(super) fn reset_backoff(&mut self) {
        self.next_backoff = MIN_BACKOFF;
    }

    /// The name is looked up here, and not by the crate, which would count that as a part of connecting: where it takes
    /// longer than the time-out, because the first of two name servers is dead, no attempt would ever succeed.
    fn attempt(&mut self) -> RedisResult<Wire> {
        let mut addresses: Vec<SocketAddr> = (self.host.as_str(), self.port).to_socket_addrs()?.collect();
        // The one that was there comes first: each that is dead costs the whole time-out.
        addresses.sort_by_key(|&address| self.last_good_address != Some(address));
        let mut failure = std::io::Error::other("REDIS_HOST resolves to no address").into();
        for address in addresses {
            match self.open(address) {
                Err(error) if is_unwelcome(&error) => failure = error,
                Err(error) if error.is_io_error() => {
                    // What a Redis has said goes before what none has.
                    failure = if is_unwelcome(&failure) { failure } else { error };
                }
                result => {
                    if result.is_ok() {
                        self.last_good_address = Some(address);
                    }
                    return result;
                }
            }
        }
        Err(failure)
    }

    /// Connects to an address, authenticates and selects the database.
    pub(super) fn open(&self, address: SocketAddr) -> RedisResult<Wire> {
        let mut wire = Wire::connect(address, self.timeout)?;
        self.identity.log_in(&mut wire)?;
        Ok(wire)
    }
}

/// Whether Redis refuses a command as such: the user may not use it, or there is none.
pub(super) fn is_command_denied(error: &RedisError) -> bool {
    let unknown = |text: &str| text.to_ascii_lowercase().starts_with("unknown ");
    error.code() == Some("NOPERM") || error.detail().is_some_and(unknown)
}

/// What an error is to those who wait for a key.
pub(super) fn read_failure(error: &RedisError) -> Failure {
    if error.is_timeout() {
        Failure::Timeout
    } else if let Some(code) = error.code() {
        let text = format!("{code} {}", detail_of(error)).trim_end().to_owned();
        match code {
            "WRONGTYPE" => Failure::WrongType,
            // It loads its data, has lost its master, runs a script: it will serve by itself, later.
            "LOADING" | "MASTERDOWN" | "BUSY" => Failure::NotReady(text),
            _ if is_full(error) => Failure::NotReady(text),
            _ => Failure::Redis(text),
        }
    } else if error.is_io_error() {
        Failure::Unavailable
    } else {
        Failure::Redis(single_line(error))
    }
}

/// Returns true if an answer to `PING` means that Redis does not serve reads. A Redis that refuses
/// writes (MISCONF, NOREPLICAS), or that refuses this command, serves them.
pub(super) fn is_outage(error: &RedisError) -> bool {
    error.code().is_none_or(|code| code == "NOAUTH") || matches!(read_failure(error), Failure::NotReady(_))
}

/// Returns true if Redis has as many clients as its `maxclients` allows.
fn is_full(error: &RedisError) -> bool {
    error.detail().is_some_and(|text| text.starts_with("max number of clients"))
}

/// Returns true if a Redis accepts no connection of this client. Another address may lead to one that does.
fn is_unwelcome(error: &RedisError) -> bool {
    is_full(error) || error.code() == Some(PROTECTED)
}

/// Code of the error of a Redis in protected mode: it has no password, and the client is on another machine.
const PROTECTED: &str = "DENIED";

/// Returns the text behind an error's code, without arguments. Of protected mode's, a page of advice,
/// the first sentence.
fn detail_of(error: &RedisError) -> &str {
    let detail = without_arguments(error.detail().unwrap_or_default());
    match error.code() {
        Some(PROTECTED) => detail.split_inclusive(". ").next().unwrap_or_default().trim_end(),
        _ => detail,
    }
}

/// Returns an error text up to the arguments that Redis quotes: a password or a client's key may be
/// among them.
pub(super) fn without_arguments(text: &str) -> &str {
    text.split(", with args beginning with").next().unwrap_or_default()
}

/// Returns the error's text, without arguments and control characters. The crate describes replies
/// that are none in several lines.
pub(super) fn single_line(error: &RedisError) -> String {
    if error.code() == Some(PROTECTED) {
        return format!("{PROTECTED} {}", detail_of(error));
    }
    let text = error.to_string().replace(char::is_control, " ");
    without_arguments(&text).split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a failed attempt to connect is to those who wait: whatever Redis says to it, there is no Redis for them.
pub(super) fn connect_failure(error: &RedisError) -> Failure {
    match read_failure(error) {
        Failure::Redis(text) => Failure::Refused(text),
        failure => failure,
    }
}

/// Which Redis a connection leads to, if it tells: one that has started anew, or another one behind the same name, has
/// another id.
pub(super) fn run_id(wire: &mut Wire) -> RedisResult<Option<String>> {
    match wire.ask(redis::cmd("INFO").arg("server")) {
        // A path in it need not be UTF-8.
        Ok(redis::Value::BulkString(text)) => {
            let text = String::from_utf8_lossy(&text);
            Ok(text.lines().find_map(|line| line.strip_prefix("run_id:")).map(str::to_owned))
        }
        Ok(_) => Ok(None),
        Err(error) if is_command_denied(&error) => Ok(None),
        // It would tell later: a connection that leads to nobody knows whom might be read while another one tells of changes.
        Err(error) => Err(error),
    }
}

/// The error's text, and what to do about the ones that have a usual cause.
pub(super) fn describe_error(error: &RedisError) -> String {
    let text = single_line(error);
    if error.is_timeout() {
        // The system's word for it is that a resource is temporarily unavailable.
        return "no reply within REDIS_TIMEOUT".into();
    }
    if text.contains("failed to lookup address") {
        return format!("{text}; check that REDIS_HOST resolves here, or set REDIS_HOST=127.0.0.1 for a local run");
    }
    let remedy = match error.code() {
        Some("NOAUTH") => "set REDIS_PASSWORD",
        Some(PROTECTED) => "set a password in Redis and in REDIS_PASSWORD, or disable protected-mode in Redis",
        _ if is_full(error) => "raise maxclients in Redis, or lower REDIS_CONNECTIONS or WORKERS",
        _ if text.contains("permission") => "grant the ACL permissions listed in README",
        _ if text.contains("rejected AUTH") => "check REDIS_USERNAME and REDIS_PASSWORD",
        _ if text.contains("rejected SELECT") => "check REDIS_DB",
        _ => return text,
    };
    format!("{text}; {remedy}")
}

/// From 0 to 1. Jitter needs no better randomness than what keys the standard library's hash maps.
fn random_fraction() -> f64 {
    f64::from((RandomState::new().hash_one(0u8) >> 32) as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outages_are_told_from_refused_writes() {
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
                other => panic!("{other:?} is no error"),
            }
        }
        assert!(is_outage(&std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()));
    }

    #[test]
    fn attempts_that_fail_come_ever_more_seldom_and_not_all_proxies_at_once() {
        // A port that was free a moment ago: nobody listens there.
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
        let settings = BackendConfig {
            host: "127.0.0.1".into(),
            port: free.port(),
            username: None,
            password: None,
            database: 0,
            connections: 1,
            timeout: Duration::from_secs(1),
            cache_ttl: Duration::ZERO,
            tracking: false,
            max_value_bytes: 1,
        };
        let mut connector = Connector::new(&settings);
        assert!(connector.backoff().is_none());
        let mut jitters = Vec::new();
        for expected in [20, 40, 80, 160, 320, 640].into_iter().chain([1000; 10]) {
            let before = Instant::now();
            let Err(error) = connector.connect(|_| Ok(())) else { panic!("somebody listens there") };
            let failure = read_failure(&error);
            let (until, told) = connector.backoff().expect("a failed attempt blocks the next");
            assert_eq!((&failure, told), (&Failure::Unavailable, Failure::Unavailable));
            assert!(until - before >= Duration::from_millis(expected / 2), "the next attempt comes too early");
            assert!(until <= Instant::now() + Duration::from_millis(expected), "the next attempt comes too late");
            jitters.push((until - before).as_millis());
        }
        // The longest waits only: beside them it matters little how long the attempts themselves took.
        let longest = &mut jitters[6..];
        longest.sort_unstable();
        assert!(longest[9] - longest[0] > 20, "no jitter: {longest:?} milliseconds");
    }
}
