//! Check of one response: the history of Redis and of the fetches must allow it.

use crate::client::{Cause, Content, KeyReply, Kind, Part, Request, Response};
use crate::versions::{KEYS, Version, Versions};
use crate::world::Moment;
use segment_redis_proxy::types::{Millis, Outage, Source};

/// Configured bounds on the age of a reply.
pub struct AgeLimits {
    pub ttl: Millis,
    pub stale: Millis,
    pub wait_timeout: Millis,
}

/// Fetches of one version of a key.
#[derive(Clone, Copy, Default)]
struct Fetched {
    has_been: bool,
    /// Last fetch since which the version may be in the cache.
    cached_at: Option<(Millis, Moment)>,
}

/// Fetches of all keys.
#[derive(Default)]
pub struct Fetches {
    keys: [Vec<Fetched>; KEYS],
}

impl Fetches {
    /// Records that a fetch has arrived. After `ASK` the version must not be cached.
    pub fn record(&mut self, key: usize, number: usize, is_asking: bool, time: (Millis, Moment)) {
        let versions = &mut self.keys[key];
        versions.resize(versions.len().max(number + 1), Fetched::default());
        versions[number].has_been = true;
        if !is_asking {
            versions[number].cached_at = Some(time);
        }
    }

    /// Returns the fetches of a version, `None` without any.
    fn of(&self, key: usize, number: usize) -> Option<Fetched> {
        self.keys[key].get(number).copied().filter(|fetched| fetched.has_been)
    }
}

/// Events so far.
pub struct History<'a> {
    pub versions: &'a Versions,
    pub fetches: &'a Fetches,
    /// Time at which all entries last expired at once, because tracking was lost.
    pub tracking_lost_at: Millis,
}

impl Part {
    /// Returns the `Cache-Status` that the reply would have over HTTP.
    pub fn status(&self) -> String {
        match self.source {
            None | Some(Source::Cache { .. }) => "hit".into(),
            Some(Source::Stale { outage: Outage::TimedOut, .. }) => "fwd=stale; detail=redis-timed-out".into(),
            Some(Source::Stale { .. }) => "fwd=stale".into(),
            Some(Source::Redis { collapsed: true, .. }) => "fwd=miss; collapsed".into(),
            Some(Source::Redis { collapsed: false, .. }) => "fwd=miss".into(),
            Some(Source::Neither) => "detail=only-if-cached".into(),
        }
    }
}

/// Checks the response to a request.
pub fn check(
    request: &Request,
    response: &Response,
    history: &History<'_>,
    age_limits: &AgeLimits,
) -> Result<(), String> {
    if request.decoded_at.is_none() {
        return Err("a reply to a request that was not decoded".into());
    }
    if response.closes != request.is_last {
        return Err("announces wrongly whether the connection closes".into());
    }
    let parts = &request.parts;
    let failure = parts.iter().find(|part| part.has_failed);
    match &response.content {
        Content::Malformed => expect(request.is_last, "a well-formed request was refused as malformed"),
        Content::Fixed => expect(parts.is_empty(), "the reply has no values"),
        Content::Ttl(time) => {
            expect(*time == -2 || (1..=age_limits.ttl as i64).contains(time), "a lifetime longer than CACHE_TTL")
        }
        Content::Error { timed_out } => {
            let Some(cause) = failure.and_then(|part| part.cause) else {
                return Err("an error, although no key failed".into());
            };
            let fits = match timed_out {
                true => [Cause::Outage, Cause::WaitTimeout].contains(&cause),
                false => ![Cause::Fetched, Cause::WaitTimeout].contains(&cause),
            };
            expect(fits, "an error that contradicts the cause")
        }
        Content::NotCached => expect(matches!(request.kind, Kind::IfCached(_)), "Redis may be read"),
        Content::Elements(replies) => {
            expect(replies.len() == parts.len(), "a wrong number of elements")?;
            parts.iter().zip(replies).try_for_each(|(part, reply)| match reply {
                Some(reply) if !part.has_failed => check_part(part, reply, &part.status(), history, age_limits),
                Some(_) => Err("a value, although the key failed".into()),
                None => expect(part.has_failed, "an error, although the key did not fail"),
            })
        }
        Content::Keys(_) | Content::Count(_) if failure.is_some() => Err("values, although a key failed".into()),
        Content::Keys(replies) => {
            expect(replies.len() == parts.len(), "a wrong number of values")?;
            parts.iter().zip(replies).try_for_each(|(part, reply)| {
                let status = response.status.clone().unwrap_or_else(|| part.status());
                let is_reload = matches!(request.kind, Kind::Reload(_));
                expect(!is_reload || part.cause.is_some(), "a reload without a read")?;
                check_part(part, reply, &status, history, age_limits)
            })
        }
        Content::Count(count) => {
            let allows = |part: &&Part, reply| check_part(part, &reply, &part.status(), history, age_limits).is_ok();
            let min = parts.iter().filter(|part| !allows(part, KeyReply::Missing)).count();
            let max = parts.iter().filter(|part| allows(part, KeyReply::Present)).count();
            expect((min..=max).contains(count), "an impossible count")
        }
    }
}

/// Checks the reply for one key, with `status` as its source.
fn check_part(
    part: &Part,
    reply: &KeyReply,
    status: &str,
    history: &History<'_>,
    age_limits: &AgeLimits,
) -> Result<(), String> {
    let versions = &history.versions.keys[part.key];
    if let KeyReply::Value(text) = reply
        && !text.is_empty()
    {
        let Some((key, _)) = history.versions.identify(text) else { return Err("a value that never existed".into()) };
        expect(key == part.key, "the value of another key")?;
    }
    // Length and parts of a missing key are those of an empty value.
    let may_be_missing =
        [KeyReply::Part(String::new()), KeyReply::Length(0)].contains(reply) && status.starts_with("fwd=miss");
    if *reply == KeyReply::Missing || may_be_missing {
        let missing = check_missing(part, status, versions);
        if *reply == KeyReply::Missing || missing.is_ok() {
            return missing;
        }
    }
    // An empty value, a length or a part names no version, so any version that fits may be the one.
    let mut first_error = None;
    for (number, version) in versions.iter().enumerate().rev() {
        let fits = version.value.as_ref().is_some_and(|value| match reply {
            KeyReply::Missing => false,
            KeyReply::Present => true,
            KeyReply::Value(text) => value == text,
            KeyReply::Length(length) => value.len() == *length,
            KeyReply::Part(text) => value.contains(text),
        });
        let Some(fetched) = history.fetches.of(part.key, number).filter(|_| fits) else { continue };
        match check_version(part, fetched, version, status, history, age_limits) {
            Ok(()) => return Ok(()),
            Err(error) => _ = first_error.get_or_insert(error),
        }
    }
    Err(first_error.unwrap_or_else(|| "a value that never existed or was never fetched".into()))
}

/// Checks the reply that a key is missing.
fn check_missing(part: &Part, status: &str, versions: &[Version]) -> Result<(), String> {
    expect(status.starts_with("fwd=miss"), "a missing key was cached")?;
    let Some((_, decoded_at)) = part.decoded_at else { return Err("a reply for a key that was not decoded".into()) };
    // A collapsed request joined a read that Redis may have executed before.
    let since = if status.contains("collapsed") { part.floor.hit } else { part.floor.hit.max(decoded_at) };
    let was_missing = |version: &Version| {
        let was_held = version.from <= part.replied_at.1 && version.until > since;
        version.value.is_none() && was_held && part.floor.allows_owner_of(version)
    };
    expect(versions.iter().any(was_missing), "the key existed all the time")
}

/// Checks the reply with one version of the value.
fn check_version(
    part: &Part,
    fetched: Fetched,
    version: &Version,
    status: &str,
    history: &History<'_>,
    age_limits: &AgeLimits,
) -> Result<(), String> {
    let Some((decoded_at, decoded_moment)) = part.decoded_at else {
        return Err("a value for a key that was not decoded".into());
    };
    let (replied_at, replied_moment) = part.replied_at;
    let cached_at = fetched.cached_at.filter(|&(_, moment)| moment > part.floor.asked).map(|(time, _)| time);
    let cached_at = cached_at.ok_or("a cached value that must not be cached");
    expect(part.floor.allows_owner_of(version), "a value of a former owner")?;
    // After a write between the two commands of a read, the older value has the newer lifetime.
    let expires = version.expires.max(version.newer_expires);
    if status.starts_with("hit") {
        let is_late_hit = [Some(Cause::Outage), Some(Cause::WaitTimeout)].contains(&part.cause);
        expect(part.cause.is_none() || is_late_hit, "a hit after a wait")?;
        expect(replied_at < cached_at? + age_limits.ttl, "a hit older than CACHE_TTL")?;
        expect(replied_at < expires, "a hit that has expired in Redis")?;
        expect(version.until > part.floor.hit, "a hit that was invalidated")?;
        expect(!part.floor.is_change_missed(version), "a hit that has changed while tracking is active")
    } else if status.starts_with("fwd=stale") {
        let fits_cause = match part.cause {
            Some(Cause::WaitTimeout) => {
                replied_at >= decoded_at + age_limits.wait_timeout && status.contains("redis-timed-out")
            }
            cause => cause == Some(Cause::Outage),
        };
        expect(fits_cause, "a stale value without an outage")?;
        let cached_at = cached_at?;
        expect(replied_at < cached_at + age_limits.ttl + age_limits.stale, "a value that is stale for too long")?;
        // A value fetched in that very millisecond may have expired with the others or not.
        let has_expired_with_all = cached_at < history.tracking_lost_at && history.tracking_lost_at <= replied_at;
        expect(
            !has_expired_with_all || replied_at < history.tracking_lost_at + age_limits.stale,
            "a value that is stale for too long after the loss of tracking",
        )?;
        expect(replied_at < expires, "a stale value that has expired in Redis")?;
        expect(version.until > part.floor.stale, "a stale value that was invalidated")
    } else {
        expect(part.cause == Some(Cause::Fetched), "a miss without a fetch")?;
        let since = if status.contains("collapsed") { part.floor.hit } else { part.floor.hit.max(decoded_moment) };
        expect(version.until > since && version.from <= replied_moment, "a miss with an outdated value")
    }
}

fn expect(holds: bool, error: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(error.into()) }
}
