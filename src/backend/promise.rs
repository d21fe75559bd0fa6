//! How fresh what the cache serves is, as things stand, and telling it whenever that changes.

use crate::figures::{RedisFigures, Tracking};
use std::fmt;
use std::time::Duration;

/// What holds of the two sources of freshness. Each says why not where an operator would expect it to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Promise {
    /// Redis tells of changes. Without it CACHE_TTL is what bounds an entry's age.
    pub(super) tracking: Held,
    /// Redis tells how long a key has left.
    pub(super) expiry: Held,
    /// Lifetime of an entry, which bounds its age where nothing else does.
    pub(super) cache_ttl: Duration,
}

impl Default for Promise {
    /// At the start. That Redis tells how long keys have left is what everybody expects: no news until it refuses.
    fn default() -> Promise {
        Promise { tracking: Held::Unasked, expiry: Held::Yes, cache_ttl: Duration::ZERO }
    }
}

/// Whether a part of the promise holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// It was not asked for, or is not known yet.
    Unasked,
    /// It holds.
    Yes,
    /// It was asked for and does not hold.
    No {
        /// What stands in the way.
        why: String,
    },
}

/// What taking note has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// It was known.
    Nothing,
    /// There is another reason for the same "no".
    Reason,
    News,
}

impl Held {
    /// Takes note.
    pub(super) fn note(&mut self, holds: Result<(), String>) -> Noted {
        let now = match holds {
            Ok(()) => Held::Yes,
            Err(why) => Held::No { why },
        };
        let noted = match (&*self, &now) {
            (before, now) if before == now => Noted::Nothing,
            (Held::No { .. }, Held::No { .. }) => Noted::Reason,
            _ => Noted::News,
        };
        *self = now;
        noted
    }
}

impl Promise {
    /// Shows it to others.
    pub(super) fn show(&self, redis: &mut RedisFigures) {
        redis.promise = self.to_string();
        redis.broken = [&self.tracking, &self.expiry].iter().filter(|held| matches!(held, Held::No { .. })).count();
        redis.tracking = match self.tracking {
            // Where it was asked for, it was lost to begin with.
            Held::Unasked => redis.tracking,
            Held::Yes => Tracking::On,
            Held::No { .. } => Tracking::Lost,
        };
    }

    /// Puts it into the log.
    pub(super) fn tell(&self) {
        let kept = ![&self.tracking, &self.expiry].iter().any(|held| matches!(held, Held::No { .. }));
        log::log!(if kept { log::Level::Info } else { log::Level::Warn }, "freshness: {self}");
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ttl = self.cache_ttl.as_secs_f64();
        match &self.tracking {
            Held::Yes => f.write_str("changes visible at once (tracking active)")?,
            Held::Unasked => write!(f, "changes visible within CACHE_TTL={ttl} s")?,
            Held::No { why } => write!(f, "changes visible within CACHE_TTL={ttl} s (tracking inactive: {why})")?,
        }
        match &self.expiry {
            Held::Yes | Held::Unasked => f.write_str("; Redis expirations honoured"),
            Held::No { why } => {
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
        let mut held = Held::Unasked;
        assert_eq!(held.note(Err("one reason".into())), Noted::News);
        assert_eq!(held.note(Err("one reason".into())), Noted::Nothing);
        assert_eq!(held.note(Err("another reason".into())), Noted::Reason);
        assert_eq!(held.note(Ok(())), Noted::News);
        assert_eq!(held.note(Ok(())), Noted::Nothing);
    }

    #[test]
    fn the_promise_says_what_holds_and_why_not() {
        let no = |why: &str| Held::No { why: why.into() };
        for (tracking, expiry, parts) in [
            (Held::Unasked, Held::Yes, ["within CACHE_TTL=0.5 s;", "expirations honoured"]),
            (Held::Yes, Held::Unasked, ["at once (tracking active);", "expirations honoured"]),
            (no("gone"), Held::Yes, ["within CACHE_TTL=0.5 s (tracking inactive: gone);", "expirations honoured"]),
            (
                Held::Yes,
                no("NOPERM"),
                ["at once", "expirations not honoured, keys may outlive them by up to CACHE_TTL=0.5 s (NOPERM)"],
            ),
        ] {
            let text = Promise { tracking, expiry, cache_ttl: Duration::from_millis(500) }.to_string();
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
    }
}
