//! Whether Redis serves, from what it has answered: what readiness and the page tell.
//!
//! Reading keys is what counts. A Redis that can be connected to and answers `PING` may be one that answers no read, and one that
//! takes its time over some keys may be fine with all others.

use crate::figures::RedisFigures;
use std::time::{Duration, Instant};

/// Where keys could not be read so short a time ago, and have not been since, other answers prove nothing.
const UNREAD: Duration = Duration::from_secs(3);

impl RedisFigures {
    /// Redis is about to be asked something.
    pub(super) fn note_question(&mut self, now: Instant) {
        self.asked.get_or_insert(now);
    }

    /// Redis was connected to, or asked for something else than keys: nothing is the matter with it, or this is.
    pub(super) fn note_reached(&mut self, trouble: Option<&str>, now: Instant) {
        self.asked = None;
        let was_read = self.unread.is_none_or(|unread| now.saturating_duration_since(unread) >= UNREAD);
        if trouble.is_some() || was_read {
            self.set_away(trouble);
        }
    }

    /// Keys were read, or Redis has said why they cannot be.
    pub(super) fn note_read(&mut self, trouble: Option<&str>, now: Instant) {
        (self.asked, self.read, self.unread) = (None, Some(now), None);
        self.set_away(trouble);
    }

    /// Keys that were asked for at that time could not be read. Where others were since, it is those keys and not Redis.
    pub(super) fn note_unread(&mut self, trouble: &str, asked: Instant, now: Instant) {
        if self.read.is_none_or(|read| read < asked) {
            (self.asked, self.unread) = (None, Some(now));
            self.set_away(Some(trouble));
        }
    }

    fn set_away(&mut self, trouble: Option<&str>) {
        if self.away.as_deref() != trouble {
            self.away = trouble.map(str::to_owned);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answers_everything_but_reads_does_not_serve() {
        let (mut redis, begin) = (RedisFigures::default(), Instant::now());
        let at = |milliseconds| begin + Duration::from_millis(milliseconds);
        redis.note_question(at(0));
        redis.note_question(at(500));
        assert_eq!(redis.asked, Some(at(0)), "since the first that was not answered");
        redis.note_unread("no answer", at(0), at(1000));
        assert_eq!((redis.away.as_deref(), redis.asked), (Some("no answer"), None));
        redis.note_reached(None, at(1100));
        assert_eq!(redis.away.as_deref(), Some("no answer"), "a connection proves nothing");
        redis.note_reached(Some("cannot connect"), at(1200));
        assert_eq!(redis.away.as_deref(), Some("cannot connect"));
        redis.note_unread("no answer", at(1500), at(2500));
        redis.note_reached(None, at(5499));
        assert!(redis.away.is_some());
        redis.note_reached(None, at(5500));
        assert_eq!(redis.away, None, "nobody has read for a while, and it answers");

        redis.note_unread("no answer", at(6000), at(7000));
        redis.note_read(None, at(7001));
        assert_eq!(redis.away, None, "a read proves everything");
        redis.note_unread("no answer", at(6000), at(7002));
        assert_eq!(redis.away, None, "others were read meanwhile");
        redis.note_read(Some("BUSY"), at(7100));
        assert_eq!(redis.away.as_deref(), Some("BUSY"));
        redis.note_reached(None, at(7200));
        assert_eq!(redis.away, None);
    }
}
