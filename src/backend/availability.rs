//! Availability of Redis, derived from its replies. Readiness and the dashboard show it.
//!
//! Only reads of keys prove that Redis serves. A Redis that accepts connections and answers `PING`
//! may still fail every read. One failed read proves nothing either, because that key alone may be
//! long or slow. Two consecutive failed reads of different keys therefore mark Redis as
//! unavailable.

use crate::metrics::NodeStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time after a failed read in which only a successful read makes Redis available again.
const FAILED_READ_WINDOW: Duration = Duration::from_secs(3);

impl NodeStatus {
    /// Records that a request is about to be sent to Redis.
    pub(super) fn on_request(&mut self, now: Instant) {
        self.unanswered_since.get_or_insert(now);
    }

    /// Records the result of a connect or a `PING`: `reason` says why Redis cannot serve. Success
    /// does not outweigh a read that failed within [`FAILED_READ_WINDOW`].
    pub(super) fn on_contact(&mut self, reason: Option<&str>, now: Instant) {
        self.unanswered_since = None;
        let is_recent = |&(failed_at, _): &(Instant, _)| now.saturating_duration_since(failed_at) < FAILED_READ_WINDOW;
        if reason.is_some() || !(self.last_failed_read.as_ref().is_some_and(is_recent) && self.unavailable.is_some()) {
            self.set_unavailable(reason, now);
        }
    }

    /// Records that Redis replied to reads. `reason` is its error if it cannot serve now.
    pub(super) fn on_read(&mut self, reason: Option<&str>, now: Instant) {
        (self.unanswered_since, self.last_read, self.last_failed_read) = (None, Some(now), None);
        self.set_unavailable(reason, now);
    }

    /// Records that `key`, requested at `requested_at`, could not be read. If other keys were read
    /// since then, the fault lies with this key and not with Redis.
    pub(super) fn on_read_failed(&mut self, reason: &str, key: &Arc<[u8]>, requested_at: Instant, now: Instant) {
        if self.last_read.is_some_and(|read_at| read_at >= requested_at) {
            return;
        }
        self.unanswered_since = None;
        let previous = self.last_failed_read.replace((now, Arc::clone(key)));
        if previous.is_some_and(|(_, other)| other != *key) {
            self.set_unavailable(Some(reason), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a function from milliseconds since now to an instant.
    fn clock() -> impl Fn(u64) -> Instant {
        let start = Instant::now();
        move |milliseconds| start + Duration::from_millis(milliseconds)
    }

    /// Redis is unavailable if reads of two keys fail, even while it accepts connections.
    #[test]
    fn two_failed_keys_mark_redis_unavailable() {
        let (mut redis, at) = (NodeStatus::default(), clock());
        let [one, other] = ["one", "other"].map(|key| Arc::from(key.as_bytes()));
        redis.on_request(at(0));
        redis.on_request(at(500));
        assert_eq!(redis.unanswered_since, Some(at(0)), "the time of the first request without a reply");
        redis.on_read_failed("no reply", &one, at(0), at(1000));
        assert_eq!(
            (redis.unavailable.as_deref(), redis.unanswered_since),
            (None, None),
            "one failed key proves nothing"
        );
        redis.on_contact(None, at(1100));
        redis.on_read_failed("no reply", &other, at(1200), at(1300));
        assert_eq!(redis.unavailable.as_deref(), Some("no reply"));
        redis.on_contact(None, at(1400));
        assert_eq!(
            redis.unavailable.as_deref(),
            Some("no reply"),
            "a successful connect does not outweigh a recent failed read"
        );
        redis.on_contact(Some("cannot connect"), at(1500));
        assert_eq!(redis.unavailable.as_deref(), Some("cannot connect"));
        redis.on_read_failed("no reply", &one, at(2000), at(2500));
        redis.on_contact(None, at(5499));
        assert!(redis.unavailable.is_some());
        redis.on_contact(None, at(5500));
        assert_eq!(redis.unavailable, None, "the failed read is too old to outweigh a successful connect");
        redis.on_read_failed("no reply", &other, at(6000), at(7000));
        assert_eq!(redis.unavailable.as_deref(), Some("no reply"));
        redis.on_read(None, at(7001));
        assert_eq!(redis.unavailable, None, "a successful read makes Redis available");
        redis.on_read(Some("BUSY"), at(7100));
        assert_eq!(redis.unavailable.as_deref(), Some("BUSY"));
        redis.on_contact(None, at(7200));
        assert_eq!(redis.unavailable, None);
    }

    /// Redis stays available if only one key fails, or if others were read in the meantime.
    #[test]
    fn one_failed_key_keeps_redis_available() {
        let (mut redis, at) = (NodeStatus::default(), clock());
        let [one, other] = ["one", "other"].map(|key| Arc::from(key.as_bytes()));
        for round in 0..10 {
            redis.on_read_failed("no reply", &one, at(round * 1000), at(round * 1000 + 500));
            redis.on_contact(None, at(round * 1000 + 600));
            assert_eq!(redis.unavailable, None, "only one key failed");
        }
        redis.on_read(None, at(20_000));
        redis.on_read_failed("no reply", &one, at(19_000), at(20_001));
        redis.on_read_failed("no reply", &other, at(19_000), at(20_002));
        assert_eq!(redis.unavailable, None, "other keys were read after these were requested");
    }
}
