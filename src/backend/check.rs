//! Check of Redis for `segment-redis-proxy check`: connects as a fetcher does, reads a key and, if
//! configured, subscribes to invalidations.

use super::BackendConfig;
use super::cluster::find_once;
use super::connect::{
    CLUSTER_WARNING, Connector, describe_error, info, info_field, is_cluster_redirection, is_command_denied,
    read_failure,
};
use super::sentinel::{SentinelAnswer, ask_each};
use super::slot_map::{Primary, SlotMap, text_of};
use super::subscription::{Role, TrackingProtocol, request_role, subscribe};
use super::wire::Wire;
use redis::{RedisError, RedisResult};
use std::time::{Duration, Instant};

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
    let Found { mut steps, node, key } = match find_node(settings) {
        Ok(found) => found,
        Err(steps) => return steps,
    };
    steps.extend(check_node(settings, &node, &key));
    steps
}

/// Node to check, a key that it serves, and what was found on the way.
struct Found {
    steps: Vec<CheckStep>,
    node: Primary,
    key: String,
}

/// Finds the node to check: the configured one, the primary that sentinels name, or a primary of a
/// cluster.
///
/// # Errors
///
/// The steps, if there is no such node.
fn find_node(settings: &BackendConfig) -> Result<Found, Vec<CheckStep>> {
    let access = &settings.access;
    if let Some(sentinel) = access.sentinel() {
        return check_sentinels(settings, &ask_each(settings, &sentinel.master));
    }
    if access.is_cluster() {
        return check_primaries(settings);
    }
    let node = Primary { address: access.addresses()[0].clone(), id: None };
    Ok(Found { steps: Vec::new(), node, key: CHECKED_KEY.into() })
}

/// Finds the primaries of a cluster, and connects to each. The first one that accepts is checked
/// further. A lost one is a warning, as long as another serves its keys.
fn check_primaries(settings: &BackendConfig) -> Result<Found, Vec<CheckStep>> {
    let (map, warnings) =
        find_once(settings).map_err(|problem| vec![CheckStep::new(Verdict::Failed, "cluster", problem)])?;
    let addresses = map.primaries().iter().map(|primary| primary.address.to_string()).collect::<Vec<_>>().join(", ");
    let mut steps = vec![CheckStep::new(Verdict::Ok, "cluster", format!("has the primaries {addresses}"))];
    if map.unserved_slots() > 0 {
        let text = format!(
            "no primary for {} of its slots: their keys cannot be read, and no key at all with \
             cluster-require-full-coverage; repair the cluster (redis-cli --cluster check)",
            map.unserved_slots()
        );
        steps.push(CheckStep::new(Verdict::Warning, "cluster", text));
    }
    steps.extend(warnings.into_iter().map(|text| CheckStep::new(Verdict::Warning, "cluster", text)));
    let mut found = None;
    for (index, primary) in map.primaries().iter().enumerate() {
        let key = key_of(&map, index);
        let mut connector = Connector::new(settings, primary);
        match connector.connect(Ok) {
            Ok(mut wire) => match (&found, key) {
                (None, Some(key)) => found = Some((primary.clone(), key)),
                _ => steps.extend(check_other_primary(settings, &mut wire, primary)),
            },
            Err(error) => {
                let verdict = if error.is_io_error() { Verdict::Warning } else { Verdict::Failed };
                let text = format!("{}: {}; its keys cannot be read", primary.address, connector.describe(&error));
                steps.push(CheckStep::new(verdict, "Redis", text));
            }
        }
    }
    match found {
        Some((node, key)) => Ok(Found { steps, node, key }),
        None => {
            steps.push(CheckStep::new(Verdict::Failed, "cluster", "no primary can be read"));
            Err(steps)
        }
    }
}

/// Returns a key that a primary of the map serves, `None` if it serves none.
fn key_of(map: &SlotMap, index: usize) -> Option<String> {
    // Enough for a primary with a hundredth of the slots.
    (0..2000).map(|number| format!("{CHECKED_KEY}-{number}")).find(|key| map.owner_of(key.as_bytes()) == Some(index))
}

/// Checks what may differ between the primaries of a cluster: the permissions of the user.
fn check_other_primary(settings: &BackendConfig, wire: &mut Wire, primary: &Primary) -> Vec<CheckStep> {
    let mut steps = vec![CheckStep::new(Verdict::Ok, "Redis", format!("{}: another primary", primary.address))];
    if let Some(Err(error)) = settings.tracking.then(|| subscribe(wire)) {
        let text = format!("{}: inactive for all keys: {}", primary.address, describe_error(&error));
        steps.push(CheckStep::new(Verdict::Warning, "tracking", text));
    }
    steps
}

/// Reports the answer of each sentinel. One is enough.
fn check_sentinels(settings: &BackendConfig, answers: &[SentinelAnswer]) -> Result<Found, Vec<CheckStep>> {
    let named = answers.iter().find_map(|(_, answer)| answer.as_ref().ok());
    let step = |(sentinel, answer): &SentinelAnswer| match answer {
        Ok(report) => CheckStep::new(Verdict::Ok, "sentinel", format!("{sentinel}: the primary is {}", report.address)),
        Err(problem) => {
            let verdict = if named.is_some() { Verdict::Warning } else { Verdict::Failed };
            CheckStep::new(verdict, "sentinel", format!("{sentinel}: {problem}"))
        }
    };
    let mut steps: Vec<CheckStep> = answers.iter().map(step).collect();
    match named {
        Some(report) => {
            steps.extend(report.down_after.and_then(|limit| check_timeout(settings, "down-after-milliseconds", limit)));
            let node = Primary { address: report.address.clone(), id: None };
            Ok(Found { steps, node, key: CHECKED_KEY.into() })
        }
        None => Err(steps),
    }
}

fn check_node(settings: &BackendConfig, node: &Primary, key: &str) -> Vec<CheckStep> {
    let mut connector = Connector::new(settings, node);
    let target = connector.target().to_owned();
    let failed = |error: &RedisError| {
        vec![CheckStep::new(Verdict::Failed, "Redis", format!("{target}: {}", describe_error(error)))]
    };
    let mut wire = match connector.connect(Ok) {
        Ok(wire) => wire,
        Err(error) => return failed(&error),
    };
    let mut steps = match check_server(&mut wire, &target, settings.access.is_cluster()) {
        Ok(steps) => steps,
        Err(error) => return failed(&error),
    };
    if settings.access.is_cluster() {
        steps.extend(check_asking(&mut wire));
        steps.extend(node_timeout(&mut wire).and_then(|limit| check_timeout(settings, "cluster-node-timeout", limit)));
    }
    match check_read(&mut wire, key) {
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
fn check_server(wire: &mut Wire, target: &str, is_cluster: bool) -> RedisResult<Vec<CheckStep>> {
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
    if !is_cluster && cluster.is_some_and(|text| info_field(&text, "cluster_enabled").as_deref() == Some("1")) {
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

/// Returns `cluster-node-timeout` of a node, `None` if it denies `CONFIG`.
fn node_timeout(wire: &mut Wire) -> Option<Duration> {
    let reply = wire.request(redis::cmd("CONFIG").arg("GET").arg("cluster-node-timeout")).ok()?;
    let redis::Value::Array(parts) = reply else { return None };
    text_of(parts.get(1)?)?.parse().ok().map(Duration::from_millis)
}

/// Warns if a read may wait for longer than a failover takes. A primary that hangs and goes on
/// later would answer it with an old value.
fn check_timeout(settings: &BackendConfig, name: &str, limit: Duration) -> Option<CheckStep> {
    (settings.timeout >= limit).then(|| {
        let text = format!(
            "{} ms are not less than {name} of Redis, {} ms: a primary that hung during a failover may answer with an old \
             value; lower REDIS_TIMEOUT",
            settings.timeout.as_millis(),
            limit.as_millis()
        );
        CheckStep::new(Verdict::Warning, "REDIS_TIMEOUT", text)
    })
}

/// Warns if keys that move between nodes cannot be read.
fn check_asking(wire: &mut Wire) -> Option<CheckStep> {
    let error = wire.request(&redis::cmd("ASKING")).err().filter(is_command_denied)?;
    let text = format!("keys that move between nodes cannot be read: {}; grant +asking", describe_error(&error));
    Some(CheckStep::new(Verdict::Warning, "asking", text))
}

/// Reads a key as a fetcher does, with its remaining lifetime.
fn check_read(wire: &mut Wire, key: &str) -> RedisResult<Vec<CheckStep>> {
    let value = wire.request(redis::cmd("GETRANGE").arg(key).arg(0).arg(0));
    let ttl = wire.request(redis::cmd("PTTL").arg(key));
    let result = match value {
        Err(error) if is_command_denied(&error) => wire.request(redis::cmd("GET").arg(key)),
        result => result,
    };
    let mut steps = Vec::new();
    match result {
        Ok(_) => steps.push(CheckStep::new(Verdict::Ok, "read", "works")),
        // An ACL may allow the keys of an application only.
        Err(error) if is_key_denied(&error) => {
            let text = format!("the user may not read the key {key}; only keys that its ACL names can be read");
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
