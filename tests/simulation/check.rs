//! Whether a response is one that its request may have, by what has happened.

use crate::client::{Cause, Content, Part, Request, Response, Told};
use crate::redis::{KEYS, Redis, Version};
use segment_redis_proxy::types::{Millis, Outage, Source};

/// How old a reply may be.
pub struct Rules {
    pub ttl: Millis,
    pub stale: Millis,
    pub timer: Millis,
}

/// What has happened.
pub struct History<'a> {
    pub redis: &'a Redis,
    /// When a fetch last brought each version of each key.
    pub brought: &'a [Vec<Option<Millis>>; KEYS],
    /// When all entries last expired at once.
    pub unwatched: Millis,
}

impl Part {
    /// What `Cache-Status` would say of it.
    pub fn status(&self) -> String {
        match self.source {
            None | Some(Source::Cache { .. }) => "hit".into(),
            Some(Source::Stale { outage: Outage::TimedOut, .. }) => "fwd=stale; detail=redis-timed-out".into(),
            Some(Source::Stale { .. }) => "fwd=stale".into(),
            Some(Source::Redis { collapsed: true, .. }) => "fwd=miss; collapsed".into(),
            Some(Source::Redis { collapsed: false, .. }) => "fwd=miss".into(),
        }
    }
}

/// Whether a response is one that its request may have.
pub fn check(request: &Request, response: &Response, history: &History<'_>, policy: &Rules) -> Result<(), String> {
    if request.asked.is_none() {
        return Err("replied to a request that was not taken up".into());
    }
    if response.closes != request.last {
        return Err("says wrongly whether more may follow".into());
    }
    let parts = &request.parts;
    let failure = parts.iter().find(|part| part.failed);
    match &response.content {
        Content::Violation => expect(request.last, "a request was taken for garbage"),
        Content::Other => expect(parts.is_empty(), "no word of the keys"),
        Content::Remaining(time) => {
            expect(*time == -2 || (1..=policy.ttl as i64).contains(time), "longer than CACHE_TTL")
        }
        Content::Error { timed_out } => {
            let Some(cause) = failure.and_then(|part| part.cause) else { return Err("an error out of nothing".into()) };
            let fits = match timed_out {
                true => [Cause::Outage, Cause::Overdue].contains(&cause),
                false => ![Cause::Answered, Cause::Overdue].contains(&cause),
            };
            expect(fits, "an error of another kind")
        }
        Content::Keys(_) | Content::Count(_) if failure.is_some() => Err("values although a key failed".into()),
        Content::Keys(told) => {
            expect(told.len() == parts.len(), "a reply about other keys")?;
            parts.iter().zip(told).try_for_each(|(part, told)| {
                let status = response.status.clone().unwrap_or_else(|| part.status());
                check_part(part, told, &status, history, policy)
            })
        }
        Content::Count(count) => {
            let may_be = |part: &&Part, told| check_part(part, &told, &part.status(), history, policy).is_ok();
            let least = parts.iter().filter(|part| !may_be(part, Told::Absent)).count();
            let most = parts.iter().filter(|part| may_be(part, Told::Present)).count();
            expect((least..=most).contains(count), "a count that cannot be")
        }
    }
}

/// Whether `told` may be the answer to one key, where `status` says it comes from.
fn check_part(part: &Part, told: &Told, status: &str, history: &History<'_>, policy: &Rules) -> Result<(), String> {
    let versions = &history.redis.keys[part.key];
    if let Told::Value(text) = told
        && !text.is_empty()
    {
        let Some((found, _)) = history.redis.identify(text) else { return Err("a value that never was".into()) };
        expect(found == part.key, "another key's value")?;
    }
    // Length and parts of a missing key are those of an empty value.
    let may_be_absent = [Told::Part(String::new()), Told::Length(0)].contains(told) && status.starts_with("fwd=miss");
    if *told == Told::Absent || may_be_absent {
        let absent = check_absent(part, status, versions);
        if *told == Told::Absent || absent.is_ok() {
            return absent;
        }
    }
    // An empty value, a length or a part names no version: any that fits may be the one.
    let mut last = Err("a value that never was".into());
    for (number, version) in versions.iter().enumerate().rev() {
        let fits = version.value.as_ref().is_some_and(|value| match told {
            Told::Absent => false,
            Told::Present => true,
            Told::Value(text) => value == text,
            Told::Length(length) => value.len() == *length,
            Told::Part(text) => value.contains(text),
        });
        if fits {
            last = check_version(part, number, version, status, history, policy);
            if last.is_ok() {
                break;
            }
        }
    }
    last
}

fn check_absent(part: &Part, status: &str, versions: &[Version]) -> Result<(), String> {
    expect(status.starts_with("fwd=miss"), "the absence of a key was cached")?;
    let Some((_, asked)) = part.asked else { return Err("an answer for a key that was not asked for".into()) };
    // Who comes in between asks after the read has begun, perhaps after it was carried out.
    let since = if status.contains("collapsed") { part.floor } else { part.floor.max(asked) };
    let absent =
        |version: &Version| version.value.is_none() && version.from <= part.answered.1 && version.until > since;
    expect(versions.iter().any(absent), "the key was there all the time")
}

fn check_version(
    part: &Part,
    number: usize,
    version: &Version,
    status: &str,
    history: &History<'_>,
    policy: &Rules,
) -> Result<(), String> {
    let Some((asked, asked_moment)) = part.asked else { return Err("a value for a key that was not asked for".into()) };
    let (answered, answered_moment) = part.answered;
    // When a fetch last brought it: from then on it may be in the cache.
    let Some(brought) = history.brought[part.key].get(number).copied().flatten() else {
        return Err("a value that nobody has fetched".into());
    };
    // A write between the two commands of a read: the value before it, with the lifetime after it.
    let expires = version.expires.max(version.lent);
    if status.starts_with("hit") {
        let at_last = [Some(Cause::Outage), Some(Cause::Overdue)].contains(&part.cause);
        expect(part.cause.is_none() || at_last, "a hit that had to wait")?;
        expect(answered < brought + policy.ttl, "a hit that is older than CACHE_TTL")?;
        expect(answered < expires, "a hit that Redis has let expire")?;
        expect(version.until > part.floor, "a hit of what was known to have changed")
    } else if status.starts_with("fwd=stale") {
        let by_cause = match part.cause {
            Some(Cause::Overdue) => answered >= asked + policy.timer && status.contains("redis-timed-out"),
            cause => cause == Some(Cause::Outage),
        };
        expect(by_cause, "an expired value although Redis is there")?;
        expect(answered < brought + policy.ttl + policy.stale, "a value that expired too long ago")?;
        // One that came at the same time may be of before or after.
        let outdated = brought < history.unwatched && history.unwatched <= answered;
        expect(
            !outdated || answered < history.unwatched + policy.stale,
            "a value that expired with all others too long ago",
        )?;
        expect(answered < expires, "an expired value that Redis itself has let expire")?;
        expect(version.until > part.hard_floor, "an expired value of what was known to have changed")
    } else {
        expect(part.cause == Some(Cause::Answered), "a value without a fetch")?;
        let since = if status.contains("collapsed") { part.floor } else { part.floor.max(asked_moment) };
        expect(version.until > since && version.from <= answered_moment, "an old value as the answer to a new question")
    }
}

fn expect(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}
