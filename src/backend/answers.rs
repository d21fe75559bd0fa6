//! Whether Redis serves, from what it has answered: what readiness and the page tell.
//!
//! Reading keys is what counts. A Redis that can be connected to and answers `PING` may be one that answers no read. But it may also be
//! fine with all keys but one, that is long or takes a while: so it takes two different ones, with none read in between.

use crate::figures::RedisFigures;
use std::sync::Arc;
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
        let is_recent = |&(unread, _): &(Instant, _)| now.saturating_duration_since(unread) < UNREAD;
        if trouble.is_some() || !(self.unread.as_ref().is_some_and(is_recent) && self.away.is_some()) {
            self.set_away(trouble);
        }
    }

    /// Keys were read, or Redis has said why they cannot be.
    pub(super) fn note_read(&mut self, trouble: Option<&str>, now: Instant) {
        (self.asked, self.read, self.unread) = (None, Some(now), None);
        self.set_away(trouble);
    }

    /// A key that was asked for at that time could not be read. Where others were since, it is that key and not Redis.
    pub(super) fn note_unread(&mut self, trouble: &str, key: &Arc<[u8]>, asked: Instant, now: Instant) {
        if self.read.is_some_and(|read| read >= asked) {
            return;
        }
        self.asked = None;
        let before = self.unread.replace((now, Arc::clone(key)));
        if before.is_some_and(|(_, other)| other != *key) {
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

    /// So many milliseconds after the beginning, which is now.
    fn clock() -> impl Fn(u64) -> Instant {
        let begin = Instant::now();
        move |milliseconds| begin + Duration::from_millis(milliseconds)
    }

    #[test]
    fn who_answers_everything_but_reads_does_not_serve() {
        let (mut redis, at) = (RedisFigures::default(), clock());
        let [one, other] = ["one", "other"].map(|key| Arc::from(key.as_bytes()));
        redis.note_question(at(0));
        redis.note_question(at(500));
        assert_eq!(redis.asked, Some(at(0)), "since the first that was not answered");
        redis.note_unread("no answer", &one, at(0), at(1000));
        assert_eq!((redis.away.as_deref(), redis.asked), (None, None), "it may be that key");
        redis.note_reached(None, at(1100));
        redis.note_unread("no answer", &other, at(1200), at(1300));
        assert_eq!(redis.away.as_deref(), Some("no answer"));
        redis.note_reached(None, at(1400));
        assert_eq!(redis.away.as_deref(), Some("no answer"), "a connection proves nothing");
        redis.note_reached(Some("cannot connect"), at(1500));
        assert_eq!(redis.away.as_deref(), Some("cannot connect"));
        redis.note_unread("no answer", &one, at(2000), at(2500));
        redis.note_reached(None, at(5499));
        assert!(redis.away.is_some());
        redis.note_reached(None, at(5500));
        assert_eq!(redis.away, None, "nobody has read for a while, and it answers");
        redis.note_unread("no answer", &other, at(6000), at(7000));
        assert_eq!(redis.away.as_deref(), Some("no answer"));
        redis.note_read(None, at(7001));
        assert_eq!(redis.away, None, "a read proves everything");
        redis.note_read(Some("BUSY"), at(7100));
        assert_eq!(redis.away.as_deref(), Some("BUSY"));
        redis.note_reached(None, at(7200));
        assert_eq!(redis.away, None);
    }

    #[test]
    fn one_key_that_cannot_be_read_is_not_redis() {
        let (mut redis, at) = (RedisFigures::default(), clock());
        let [one, other] = ["one", "other"].map(|key| Arc::from(key.as_bytes()));
        for round in 0..10 {
            redis.note_unread("no answer", &one, at(round * 1000), at(round * 1000 + 500));
            redis.note_reached(None, at(round * 1000 + 600));
            assert_eq!(redis.away, None, "nobody asks for anything else");
        }
        redis.note_read(None, at(20_000));
        redis.note_unread("no answer", &one, at(19_000), at(20_001));
        redis.note_unread("no answer", &other, at(19_000), at(20_002));
        assert_eq!(redis.away, None, "others were read meanwhile");
    }
}
