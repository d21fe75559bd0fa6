//! Whether Redis serves, from what it has answered: what readiness and the page tell.
//!
//! Reading keys is what counts. A Redis that can be connected to and answers `PING` may be one that answers no read. But it may also be
//! fine with all keys but one, that is long or takes a while: so it takes two different ones, with none read in between.

use crate::metrics::RedisStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where keys could not be read so short a time ago, and have not been since, other answers prove nothing.
const FAILED_READ_WINDOW: Duration = Duration::from_secs(3);

impl RedisStatus {
    /// Redis is about to be asked something.
    pub(super) fn on_request(&mut self, now: Instant) {
        self.unanswered_since.get_or_insert(now);
    }

    /// Redis was connected to, or asked for something else than keys: nothing is the matter with it, or this is.
    pub(super) fn on_contact(&mut self, trouble: Option<&str>, now: Instant) {
        self.unanswered_since = None;
        let is_recent = |&(unread, _): &(Instant, _)| now.saturating_duration_since(unread) < FAILED_READ_WINDOW;
        if trouble.is_some() || !(self.last_failed_read.as_ref().is_some_and(is_recent) && self.unavailable.is_some()) {
            self.set_unavailable(trouble);
        }
    }

    /// Keys were read, or Redis has said why they cannot be.
    pub(super) fn on_read(&mut self, trouble: Option<&str>, now: Instant) {
        (self.unanswered_since, self.last_read, self.last_failed_read) = (None, Some(now), None);
        self.set_unavailable(trouble);
    }

    /// A key that was asked for at that time could not be read. Where others were since, it is that key and not Redis.
    pub(super) fn on_read_failed(&mut self, trouble: &str, key: &Arc<[u8]>, asked: Instant, now: Instant) {
        if self.last_read.is_some_and(|read| read >= asked) {
            return;
        }
        self.unanswered_since = None;
        let before = self.last_failed_read.replace((now, Arc::clone(key)));
        if before.is_some_and(|(_, other)| other != *key) {
            self.set_unavailable(Some(trouble));
        }
    }

    fn set_unavailable(&mut self, trouble: Option<&str>) {
        if self.unavailable.as_deref() != trouble {
            self.unavailable = trouble.map(str::to_owned);
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
        let (mut redis, at) = (RedisStatus::default(), clock());
        let [one, other] = ["one", "other"].map(|key| Arc::from(key.as_bytes()));
        redis.on_request(at(0));
        redis.on_request(at(500));
        assert_eq!(redis.unanswered_since, Some(at(0)), "since the first that was not answered");
        redis.on_read_failed("no answer", &one, at(0), at(1000));
        assert_eq!((redis.unavailable.as_deref(), redis.unanswered_since), (None, None), "it may be that key");
        redis.on_contact(None, at(1100));
        redis.on_read_failed("no answer", &other, at(1200), at(1300));
        assert_eq!(redis.unavailable.as_deref(), Some("no answer"));
        redis.on_contact(None, at(1400));
        assert_eq!(redis.unavailable.as_deref(), Some("no answer"), "a connection proves nothing");
        redis.on_contact(Some("cannot connect"), at(1500));
        assert_eq!(redis.unavailable.as_deref(), Some("cannot connect"));
        redis.on_read_failed("no answer", &one, at(2000), at(2500));
        redis.on_contact(None, at(5499));
        assert!(redis.unavailable.is_some());
        redis.on_contact(None, at(5500));
        assert_eq!(redis.unavailable, None, "nobody has read for a while, and it answers");
        redis.on_read_failed("no answer", &other, at(6000), at(7000));
        assert_eq!(redis.unavailable.as_deref(), Some("no answer"));
        redis.on_read(None, at(7001));
        assert_eq!(redis.unavailable, None, "a read proves everything");
        redis.on_read(Some("BUSY"), at(7100));
        assert_eq!(redis.unavailable.as_deref(), Some("BUSY"));
        redis.on_contact(None, at(7200));
        assert_eq!(redis.unavailable, None);
    }

    #[test]
    fn one_key_that_cannot_be_read_is_not_redis() {
        let (mut redis, at) = (RedisStatus::default(), clock());
        let [one, other] = ["one", "other"].map(|key| Arc::from(key.as_bytes()));
        for round in 0..10 {
            redis.on_read_failed("no answer", &one, at(round * 1000), at(round * 1000 + 500));
            redis.on_contact(None, at(round * 1000 + 600));
            assert_eq!(redis.unavailable, None, "nobody asks for anything else");
        }
        redis.on_read(None, at(20_000));
        redis.on_read_failed("no answer", &one, at(19_000), at(20_001));
        redis.on_read_failed("no answer", &other, at(19_000), at(20_002));
        assert_eq!(redis.unavailable, None, "others were read meanwhile");
    }
}
