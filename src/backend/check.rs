//! Check of Redis for `segment-redis-proxy check`: connects as a fetcher does, reads a key and, if
//! configured, subscribes to invalidations.

use super::BackendConfig;
use super::connect::{
    CLUSTER_WARNING, Connector, describe_error, info, info_field, is_cluster_redirection, is_command_denied,
    read_failure,
};
use super::subscription::{Role, TrackingProtocol, request_role, subscribe};
use super::wire::Wire;
use redis::{RedisError, RedisResult};
use std::time::Instant;

/// Key that the check reads. It need not exist.
const CHECKED_KEY: &str = "segment-redis-proxy:check";

/// Result of one step of a check.
#[derive(Debug, PartialEq, Eq)]
pub struct CheckStep {
    /// Gravity of the result.
    pub verdict: Verdict,
    /// Object of the step, such as a variable.
    pub subject: String,
    /// Result, with a remedy if it is a problem.
    pub text: String,
}

/// Gravity of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No problem.
    Ok,
    /// The proxy works, but not as well as it could.
    Warning,
    /// The proxy cannot work.
    Failed,
}

impl CheckStep {
    /// Creates a result.
    pub fn new(verdict: Verdict, subject: &str, text: impl Into<String>) -> CheckStep {
        CheckStep { verdict, subject: subject.into(), text: text.into() }
    }
}

/// Checks that Redis can be reached and read with these settings. Stops at the first step that
/// fails. Each round trip may take the timeout of the settings. The caller bounds the whole.
pub fn check_redis(settings: &BackendConfig) -> Vec<CheckStep> {
    let mut connector = Connector::new(settings);
    let target = connector.target().to_owned();
    let failed = |error: &RedisError| {
        vec![CheckStep::new(Verdict::Failed, "Redis", format!("{target}: {}", describe_error(error)))]
    };
    let mut wire = match connector.connect(Ok) {
        Ok(wire) => wire,
        Err(error) => return failed(&error),
    };
    let mut steps = match check_server(&mut wire, &target) {
        Ok(steps) => steps,
        Err(error) => return failed(&error),
    };
    match check_read(&mut wire) {
        Ok(read) => steps.extend(read),
        Err(error) => {
            steps.push(CheckStep::new(Verdict::Failed, "read", describe_error(&error)));
            return steps;
        }
    }
    if settings.tracking {
        steps.extend(check_role(&mut wire));
        steps.push(match subscribe(&mut wire) {
            Ok(TrackingProtocol::Resp3) => {
                CheckStep::new(Verdict::Ok, "tracking", "works, changes are visible at once")
            }
            Ok(TrackingProtocol::Resp2) => CheckStep::new(
                Verdict::Warning,
                "tracking",
                "works over RESP2, changes are visible at once; a primary that becomes a replica is not left, because \
                 Redis refuses HELLO 3",
            ),
            Err(error) => CheckStep::new(
                Verdict::Warning,
                "tracking",
                format!("inactive, changes are visible within CACHE_TTL: {}", describe_error(&error)),
            ),
        });
    }
    steps
}

/// Identifies the server and measures a round trip.
fn check_server(wire: &mut Wire, target: &str) -> RedisResult<Vec<CheckStep>> {
    let asked_at = Instant::now();
    let server = info(wire, "server")?;
    let micros = asked_at.elapsed().as_micros();
    let (replication, cluster) = (info(wire, "replication")?, info(wire, "cluster")?);
    let product = server.as_deref().map(describe_product);
    let role = match replication.as_deref().and_then(|text| info_field(text, "role")).as_deref() {
        Some("master") => ", primary",
        Some("slave") => ", replica",
        _ => "",
    };
    let server = match product {
        Some(product) => format!("{product}{role}"),
        None => "does not identify itself (INFO is denied)".into(),
    };
    let mut steps = vec![CheckStep::new(Verdict::Ok, "Redis", format!("{target}: {server}, INFO took {micros} us"))];
    if cluster.is_some_and(|text| info_field(&text, "cluster_enabled").as_deref() == Some("1")) {
        steps.push(CheckStep::new(Verdict::Warning, "cluster", format!("Redis {CLUSTER_WARNING}")));
    }
    Ok(steps)
}

/// Returns name and version of the server from the text of `INFO server`. Valkey also reports the
/// version of Redis that it is compatible with.
fn describe_product(text: &str) -> String {
    match (info_field(text, "valkey_version"), info_field(text, "redis_version")) {
        (Some(version), _) => format!("Valkey {version}"),
        (None, Some(version)) => format!("Redis {version}"),
        (None, None) => "Redis of unknown version".into(),
    }
}

/// Warns if the role of the server cannot be watched.
fn check_role(wire: &mut Wire) -> Option<CheckStep> {
    (request_role(wire).ok()? == Role::Denied).then(|| {
        let text =
            "Redis denies ROLE: a primary that becomes a replica is not left; grant +role to the user of the proxy";
        CheckStep::new(Verdict::Warning, "role", text)
    })
}

/// Reads a key as a fetcher does, with its remaining lifetime.
fn check_read(wire: &mut Wire) -> RedisResult<Vec<CheckStep>> {
    let value = wire.request(redis::cmd("GETRANGE").arg(CHECKED_KEY).arg(0).arg(0));
    let ttl = wire.request(redis::cmd("PTTL").arg(CHECKED_KEY));
    let result = match value {
        Err(error) if is_command_denied(&error) => wire.request(redis::cmd("GET").arg(CHECKED_KEY)),
        result => result,
    };
    let mut steps = Vec::new();
    match result {
        Ok(_) => steps.push(CheckStep::new(Verdict::Ok, "read", "works")),
        // An ACL may allow the keys of an application only.
        Err(error) if is_key_denied(&error) => {
            let text = format!("the user may not read the key {CHECKED_KEY}; only keys that its ACL names can be read");
            steps.push(CheckStep::new(Verdict::Warning, "read", text));
            return Ok(steps);
        }
        Err(error) => {
            let failure = read_failure(&error);
            let text = if is_cluster_redirection(&failure) { failure.to_string() } else { describe_error(&error) };
            steps.push(CheckStep::new(Verdict::Failed, "read", text));
            return Ok(steps);
        }
    }
    if let Err(error) = ttl {
        let text = format!(
            "not read, keys may outlive their expiration in Redis by up to CACHE_TTL: {}",
            describe_error(&error)
        );
        steps.push(CheckStep::new(Verdict::Warning, "expirations", text));
    }
    Ok(steps)
}

/// Returns true if the ACL allows the command but not the key.
fn is_key_denied(error: &RedisError) -> bool {
    // The text may begin with the name of the user. Redis 6 and 7 end it in different ways.
    let names_key = |text: &str| text.contains("permissions to access") && !text.contains("channel");
    error.code() == Some("NOPERM") && error.detail().is_some_and(names_key)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Valkey is named with its own version, not with that of the compatible Redis.
    #[test]
    fn product_has_its_own_version() {
        for (text, expected) in [
            ("redis_version:7.0.15\r\nredis_mode:standalone\r\n", "Redis 7.0.15"),
            ("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.2\r\n", "Valkey 9.1.2"),
            ("uptime_in_seconds:1\r\n", "Redis of unknown version"),
        ] {
            assert_eq!(describe_product(text), expected);
        }
    }
}
