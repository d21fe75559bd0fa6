//! Freshness guarantee in force: how soon a change in Redis becomes visible. Logged and published
//! whenever it changes (promise-visible).

use crate::metrics::{RedisStatus, TrackingState};
use std::fmt;
use std::time::{Duration, Instant};

/// State of the two guarantees that the freshness of the cache depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Freshness {
    /// Invalidations from Redis are received. Without them CACHE_TTL bounds the age of an entry.
    pub(super) tracking: Guarantee,
    /// Redis replies to `PTTL`, so no entry outlives its key's expiration in Redis.
    pub(super) expiry: Guarantee,
    /// Maximum lifetime of an entry.
    pub(super) cache_ttl: Duration,
}

impl Default for Freshness {
    /// Returns the state at start. `expiry` starts as active, because Redis normally allows `PTTL`.
    /// So only a denial is logged.
    fn default() -> Freshness {
        Freshness { tracking: Guarantee::NotRequested, expiry: Guarantee::Active, cache_ttl: Duration::ZERO }
    }
}

/// State of one guarantee.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Guarantee {
    /// Not configured, or not known yet.
    NotRequested,
    Active,
    /// Configured but not in force.
    Inactive {
        reason: String,
    },
}

/// Effect of an update on the state of a guarantee.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FreshnessUpdate {
    Unchanged,
    /// Still inactive, but for another reason.
    ReasonChanged,
    Changed,
}

impl Guarantee {
    /// Sets the state to active, or to inactive with a reason.
    pub(super) fn update(&mut self, result: Result<(), String>) -> FreshnessUpdate {
        let next = match result {
            Ok(()) => Guarantee::Active,
            Err(reason) => Guarantee::Inactive { reason },
        };
        let update = match (&*self, &next) {
            (previous, next) if previous == next => FreshnessUpdate::Unchanged,
            (Guarantee::Inactive { .. }, Guarantee::Inactive { .. }) => FreshnessUpdate::ReasonChanged,
            _ => FreshnessUpdate::Changed,
        };
        *self = next;
        update
    }

    fn is_unmet(&self) -> bool {
        matches!(self, Guarantee::Inactive { .. })
    }
}

impl Freshness {
    /// Copies the state to `redis`, for the metrics and `/readyz`.
    pub(super) fn publish(&self, redis: &mut RedisStatus, now: Instant) {
        redis.freshness = self.to_string();
        redis.unmet_guarantees = [&self.tracking, &self.expiry].iter().filter(|guarantee| guarantee.is_unmet()).count();
        let tracking = match self.tracking {
            // Pool::start has set the state: lost if tracking is configured, otherwise off.
            Guarantee::NotRequested => redis.tracking,
            Guarantee::Active => TrackingState::On,
            Guarantee::Inactive { .. } => TrackingState::Lost,
        };
        redis.set_tracking(tracking, now);
    }

    /// Returns true if another guarantee is in force than in `other`, whatever the reasons are.
    pub(super) fn differs_from(&self, other: &Freshness) -> bool {
        let kind = std::mem::discriminant::<Guarantee>;
        (kind(&self.tracking), kind(&self.expiry)) != (kind(&other.tracking), kind(&other.expiry))
    }

    /// Logs the state, as a warning if a guarantee is not met.
    pub(super) fn log(&self) {
        let is_unmet = self.tracking.is_unmet() || self.expiry.is_unmet();
        log::log!(if is_unmet { log::Level::Warn } else { log::Level::Info }, "freshness: {self}");
    }
}

impl fmt::Display for Freshness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ttl = self.cache_ttl.as_secs_f64();
        match &self.tracking {
            Guarantee::Active => f.write_str("changes visible at once (tracking active)")?,
            Guarantee::NotRequested => write!(f, "changes visible within CACHE_TTL={ttl} s")?,
            Guarantee::Inactive { reason } => {
                write!(f, "changes visible within CACHE_TTL={ttl} s (tracking inactive: {reason})")?
            }
        }
        match &self.expiry {
            Guarantee::Active | Guarantee::NotRequested => f.write_str("; Redis expirations honoured"),
            Guarantee::Inactive { reason } => write!(
                f,
                "; Redis expirations not honoured, keys may outlive them by up to CACHE_TTL={ttl} s ({reason})"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An update reports whether the state has changed, only its reason, or nothing.
    #[test]
    fn update_reports_state_and_reason_changes() {
        let mut guarantee = Guarantee::NotRequested;
        assert_eq!(guarantee.update(Err("one reason".into())), FreshnessUpdate::Changed);
        assert_eq!(guarantee.update(Err("one reason".into())), FreshnessUpdate::Unchanged);
        assert_eq!(guarantee.update(Err("another reason".into())), FreshnessUpdate::ReasonChanged);
        assert_eq!(guarantee.update(Ok(())), FreshnessUpdate::Changed);
        assert_eq!(guarantee.update(Ok(())), FreshnessUpdate::Unchanged);
    }

    /// The text names each guarantee, and the reason for each that is inactive.
    #[test]
    fn text_names_guarantees_and_reasons() {
        let inactive = |reason: &str| Guarantee::Inactive { reason: reason.into() };
        for (tracking, expiry, parts) in [
            (Guarantee::NotRequested, Guarantee::Active, ["within CACHE_TTL=0.5 s;", "expirations honoured"]),
            (Guarantee::Active, Guarantee::NotRequested, ["at once (tracking active);", "expirations honoured"]),
            (
                inactive("gone"),
                Guarantee::Active,
                ["within CACHE_TTL=0.5 s (tracking inactive: gone);", "expirations honoured"],
            ),
            (
                Guarantee::Active,
                inactive("NOPERM"),
                ["at once", "expirations not honoured, keys may outlive them by up to CACHE_TTL=0.5 s (NOPERM)"],
            ),
        ] {
            let text = Freshness { tracking, expiry, cache_ttl: Duration::from_millis(500) }.to_string();
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
    }
}
