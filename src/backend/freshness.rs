//! How fresh what the cache serves is, as things stand, and telling it whenever that changes.

use crate::metrics::{RedisStatus, TrackingState};
use std::fmt;
use std::time::Duration;

/// What holds of the two sources of freshness. Each says why not where an operator would expect it to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Freshness {
    /// Redis tells of changes. Without it CACHE_TTL is what bounds an entry's age.
    pub(super) tracking: Guarantee,
    /// Redis tells how long a key has left.
    pub(super) expiry: Guarantee,
    /// Lifetime of an entry, which bounds its age where nothing else does.
    pub(super) cache_ttl: Duration,
}

impl Default for Freshness {
    /// At the start. That Redis tells how long keys have left is what everybody expects: no news until it refuses.
    fn default() -> Freshness {
        Freshness { tracking: Guarantee::NotRequested, expiry: Guarantee::Active, cache_ttl: Duration::ZERO }
    }
}

/// Whether a part of the promise holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Guarantee {
    /// It was not asked for, or is not known yet.
    NotRequested,
    /// It holds.
    Active,
    /// It was asked for and does not hold.
    Inactive {
        /// What stands in the way.
        reason: String,
    },
}

/// What taking note has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FreshnessUpdate {
    /// It was known.
    Unchanged,
    /// There is another reason for the same "no".
    ReasonChanged,
    Changed,
}

impl Guarantee {
    /// Takes note.
    pub(super) fn update(&mut self, holds: Result<(), String>) -> FreshnessUpdate {
        let now = match holds {
            Ok(()) => Guarantee::Active,
            Err(why) => Guarantee::Inactive { reason: why },
        };
        let update = match (&*self, &now) {
            (before, now) if before == now => FreshnessUpdate::Unchanged,
            (Guarantee::Inactive { .. }, Guarantee::Inactive { .. }) => FreshnessUpdate::ReasonChanged,
            _ => FreshnessUpdate::Changed,
        };
        *self = now;
        update
    }
}

impl Freshness {
    /// Shows it to others.
    pub(super) fn publish(&self, redis: &mut RedisStatus) {
        redis.freshness = self.to_string();
        redis.unmet_guarantees =
            [&self.tracking, &self.expiry].iter().filter(|held| matches!(held, Guarantee::Inactive { .. })).count();
        redis.tracking = match self.tracking {
            // Where it was asked for, it was lost to begin with.
            Guarantee::NotRequested => redis.tracking,
            Guarantee::Active => TrackingState::On,
            Guarantee::Inactive { .. } => TrackingState::Lost,
        };
    }

    /// Puts it into the log.
    pub(super) fn log(&self) {
        let kept = ![&self.tracking, &self.expiry].iter().any(|held| matches!(held, Guarantee::Inactive { .. }));
        log::log!(if kept { log::Level::Info } else { log::Level::Warn }, "freshness: {self}");
    }
}

impl fmt::Display for Freshness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ttl = self.cache_ttl.as_secs_f64();
        match &self.tracking {
            Guarantee::Active => f.write_str("changes visible at once (tracking active)")?,
            Guarantee::NotRequested => write!(f, "changes visible within CACHE_TTL={ttl} s")?,
            Guarantee::Inactive { reason: why } => {
                write!(f, "changes visible within CACHE_TTL={ttl} s (tracking inactive: {why})")?
            }
        }
        match &self.expiry {
            Guarantee::Active | Guarantee::NotRequested => f.write_str("; Redis expirations honoured"),
            Guarantee::Inactive { reason: why } => {
                write!(f, "; Redis expirations not honoured, keys may outlive them by up to CACHE_TTL={ttl} s ({why})")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changes_is_news() {
        let mut held = Guarantee::NotRequested;
        assert_eq!(held.update(Err("one reason".into())), FreshnessUpdate::Changed);
        assert_eq!(held.update(Err("one reason".into())), FreshnessUpdate::Unchanged);
        assert_eq!(held.update(Err("another reason".into())), FreshnessUpdate::ReasonChanged);
        assert_eq!(held.update(Ok(())), FreshnessUpdate::Changed);
        assert_eq!(held.update(Ok(())), FreshnessUpdate::Unchanged);
    }

    #[test]
    fn the_promise_says_what_holds_and_why_not() {
        let no = |why: &str| Guarantee::Inactive { reason: why.into() };
        for (tracking, expiry, parts) in [
            (Guarantee::NotRequested, Guarantee::Active, ["within CACHE_TTL=0.5 s;", "expirations honoured"]),
            (Guarantee::Active, Guarantee::NotRequested, ["at once (tracking active);", "expirations honoured"]),
            (
                no("gone"),
                Guarantee::Active,
                ["within CACHE_TTL=0.5 s (tracking inactive: gone);", "expirations honoured"],
            ),
            (
                Guarantee::Active,
                no("NOPERM"),
                ["at once", "expirations not honoured, keys may outlive them by up to CACHE_TTL=0.5 s (NOPERM)"],
            ),
        ] {
            let text = Freshness { tracking, expiry, cache_ttl: Duration::from_millis(500) }.to_string();
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
    }
}
