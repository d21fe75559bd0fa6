//! Diagnosis of a cache that is too small for its requests to find anything in it.
//!
//! An entry that is evicted within the first tenth of its lifetime was hardly of use, and a value
//! that did not fit was of none. If such losses outnumber the hits, the cache costs work and saves
//! none. The diagnosis compares both once in [`WINDOW`], and estimates how large the cache would
//! have to be. The limit that caused most losses is the one to raise.

use super::ReadThrough;
use crate::cache::{CapacityLosses, MAX_CAPACITY};
use crate::types::Millis;

/// Time over which losses and hits are compared. It starts with the first loss, so that all of it
/// has load.
const WINDOW: Millis = 10_000;

/// Losses below which a window shows nothing: ten a second. Trying a demonstration with three keys
/// by hand causes fewer.
const MIN_LOSSES: u64 = 100;

/// Lifetime of entries below which more capacity rarely brings hits: a second.
const MIN_DIAGNOSED_TTL: Millis = 1000;

/// Part of `CACHE_TTL` within which an eviction is early.
const EARLY_PART: Millis = 10;

/// Largest number of bytes that is suggested: the maximum of `CACHE_BYTES`.
const MAX_SUGGESTED_BYTES: usize = 1_000_000_000_000_000;

/// Counts at the start of the present window, and the result of the last one.
#[derive(Debug, Default)]
pub(super) struct CapacityCheck {
    window_ends: Millis,
    hits: u64,
    losses: CapacityLosses,
    suggestion: Suggestion,
    /// Time until which the suggestion holds, unless another window ends before.
    suggested_until: Millis,
}

/// Capacity that a cache should have at least. 0 if the present one is no problem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Suggestion {
    /// Keys, for `CACHE_SIZE`.
    pub(super) entries: usize,
    /// Bytes of keys and values, for `CACHE_BYTES`.
    pub(super) bytes: usize,
}

impl CapacityCheck {
    /// Returns the result of the last window.
    pub(super) fn suggestion(&self) -> Suggestion {
        self.suggestion
    }
}

/// Returns the time until which an entry must still be fresh for its eviction to be early.
pub(super) fn early_deadline(ttl: Millis, now: Millis) -> Millis {
    now + ttl - ttl / EARLY_PART
}

impl ReadThrough {
    /// Compares losses and hits if a window has ended. Called about once a second.
    pub fn check_capacity(&mut self, now: Millis) {
        let (hits, losses) = (self.counters.hits, self.cache.capacity_losses());
        let before = self.capacity.losses;
        let by_entries = losses.by_entries - before.by_entries;
        let by_bytes = losses.by_bytes - before.by_bytes + losses.not_stored - before.not_stored;
        let lost = by_entries + by_bytes;
        if lost > 0 && now < self.capacity.window_ends {
            return;
        }
        if lost > 0 {
            // With a shorter lifetime entries expire before they are requested again, whatever the
            // capacity.
            let is_too_small = lost >= MIN_LOSSES && lost > hits - self.capacity.hits && self.ttl >= MIN_DIAGNOSED_TTL;
            self.capacity.suggestion = match (is_too_small, by_entries >= by_bytes) {
                (false, _) => Suggestion::default(),
                (true, true) => Suggestion { entries: self.suggest_entries(), bytes: 0 },
                (true, false) => Suggestion { entries: 0, bytes: self.suggest_bytes() },
            };
            self.capacity.suggested_until = now + WINDOW;
        } else if now >= self.capacity.suggested_until {
            self.capacity.suggestion = Suggestion::default();
        }
        self.cache.restart_insertion_sample();
        self.capacity = CapacityCheck { window_ends: now + WINDOW, hits, losses, ..self.capacity };
    }

    /// Returns about how many keys are alive at the same time: all different ones of the window, or
    /// the insertions within the lifetime of an entry if those are fewer.
    fn live_keys(&self) -> usize {
        let insertions = self.cache.insertions();
        let within_ttl = (u128::from(insertions.count()) * u128::from(self.ttl.min(WINDOW))).div_ceil(WINDOW.into());
        insertions.keys().min(usize::try_from(within_ttl).unwrap_or(usize::MAX))
    }

    /// Returns a capacity for the live keys, plus a quarter. At least a quarter more than the
    /// present capacity.
    fn suggest_entries(&self) -> usize {
        let wanted = self.live_keys().max(self.cache.limits().entries);
        round_up(wanted + wanted.div_ceil(4)).min(MAX_CAPACITY)
    }

    /// Returns the same in bytes.
    fn suggest_bytes(&self) -> usize {
        let average_bytes = self.cache.insertions().average_bytes();
        let wanted = self.live_keys().saturating_mul(average_bytes).max(self.cache.limits().bytes);
        let wanted = wanted.min(MAX_SUGGESTED_BYTES);
        round_up(wanted + wanted.div_ceil(4)).min(MAX_SUGGESTED_BYTES)
    }
}

/// Rounds up to two digits followed by zeros.
fn round_up(number: usize) -> usize {
    let mut unit = 1;
    while number / unit > 99 {
        unit *= 10;
    }
    number.div_ceil(unit) * unit
}

#[cfg(test)]
mod tests {
    use super::super::{Cache, FetchedValue, Lookup};
    use super::*;
    use crate::cache::Limits;
    use crate::metrics::WorkerMetrics;
    use crate::types::{Access, Completion, Invalidation, RequestId};
    use crate::value::{JsonForm, Payload, Value};

    const TTL: Millis = 15_000;

    /// Time before the first request.
    const IDLE: Millis = 7000;

    /// Requests `count` keys round robin, one each millisecond from [`IDLE`] on. Values have
    /// 100 bytes.
    fn read(read_through: &mut ReadThrough, keys: usize, count: usize) {
        for (now, key) in (0..count).map(|number| (IDLE + number as Millis, number % keys)) {
            let key = format!("key {key:6}");
            let request_id = RequestId { slot: 0, connection_id: 0, sequence: 0, part: 0 };
            if let Lookup::Fetch(job) = read_through.get(key.as_bytes(), Access::NORMAL, request_id, now) {
                let fetched = FetchedValue { value: Value::new(vec![b'x'; 100]), ttl: None };
                let completion = Completion { fetch_id: job.fetch_id, result: Ok(Some(fetched)), may_cache: true };
                read_through.complete(completion, now, |_, _| ());
            }
        }
    }

    /// Returns the suggested keys and bytes.
    fn suggestion(read_through: &ReadThrough) -> (usize, usize) {
        let mut metrics = WorkerMetrics::default();
        read_through.export_metrics(&mut metrics);
        (metrics.suggested_entries, metrics.suggested_bytes)
    }

    /// Returns the suggested keys and bytes after a window of reads.
    fn suggested(limits: Limits, keys: usize, count: usize) -> (usize, usize) {
        let mut read_through = ReadThrough::new(limits, TTL, 1000);
        read_through.check_capacity(0);
        // Without a loss, the window starts again.
        read_through.check_capacity(IDLE);
        read(&mut read_through, keys, count);
        read_through.check_capacity(IDLE + WINDOW - 1);
        assert_eq!(suggestion(&read_through), (0, 0), "the window has not ended");
        read_through.check_capacity(IDLE + WINDOW);
        let result = suggestion(&read_through);
        // It holds for as long as a window, also if the load ends at once.
        read_through.check_capacity(IDLE + 2 * WINDOW - 1);
        assert_eq!(suggestion(&read_through), result);
        read_through.check_capacity(IDLE + 2 * WINDOW);
        assert_eq!(suggestion(&read_through), (0, 0), "the load has ended");
        result
    }

    const NO_LIMIT: Limits = Limits { entries: 1_000_000, bytes: usize::MAX, stale: 0 };

    /// A cache with fewer keys than are requested gets a capacity for all of them.
    #[test]
    fn small_cache_gets_suggestion() {
        let (entries, bytes) = suggested(Limits { entries: 3, ..NO_LIMIT }, 2000, 9000);
        assert!((2100..3000).contains(&entries) && bytes == 0, "{entries} keys, {bytes} bytes");
        // A key of 10 bytes and a value of 100.
        let (entries, bytes) = suggested(Limits { bytes: 1100, ..NO_LIMIT }, 2000, 9000);
        assert!(entries == 0 && (230_000..330_000).contains(&bytes), "{entries} keys, {bytes} bytes");
    }

    /// The limit that caused the losses is suggested, also if the cache is empty by the time of the
    /// check. Without a limit of bytes none is suggested.
    #[test]
    fn emptied_cache_names_cause_of_losses() {
        for bytes in [usize::MAX, 1_000_000] {
            let mut read_through = ReadThrough::new(Limits { entries: 3, bytes, stale: 0 }, TTL, 1000);
            read_through.check_capacity(0);
            read(&mut read_through, 2000, 9000);
            read_through.invalidate(&Invalidation::All, IDLE + 9000);
            read_through.check_capacity(IDLE + WINDOW);
            let (entries, bytes) = suggestion(&read_through);
            assert!((2100..3000).contains(&entries) && bytes == 0, "{entries} keys, {bytes} bytes");
        }
    }

    /// Values that do not fit at all are losses too.
    #[test]
    fn values_beyond_all_bytes_are_losses() {
        let (entries, bytes) = suggested(Limits { bytes: 50, ..NO_LIMIT }, 2000, 9000);
        assert!(entries == 0 && (230_000..330_000).contains(&bytes), "{entries} keys, {bytes} bytes");
    }

    /// Keys that return within the lifetime are all alive. Of keys that are read once, those of one
    /// lifetime are. The bounds allow for five standard errors of the estimate.
    #[test]
    fn short_lifetime_needs_live_keys() {
        for (ttl, keys, expected) in [(2000, 1000, 1050..1500), (2000, 9000, 2050..2850), (999, 1000, 0..1)] {
            let mut read_through = ReadThrough::new(Limits { entries: 3, ..NO_LIMIT }, ttl, 1000);
            read_through.check_capacity(0);
            read(&mut read_through, keys, 9000);
            read_through.check_capacity(IDLE + WINDOW);
            let (entries, _) = suggestion(&read_through);
            assert!(expected.contains(&entries), "{entries} keys for {keys} and a lifetime of {ttl} ms");
        }
    }

    /// The largest limits cause no overflow.
    #[test]
    fn largest_limits_are_kept() {
        let limits = Limits { entries: MAX_CAPACITY, bytes: usize::MAX, stale: 0 };
        let read_through = ReadThrough::new(limits, Millis::MAX / 4, 1000);
        assert_eq!((read_through.suggest_entries(), read_through.suggest_bytes()), (MAX_CAPACITY, MAX_SUGGESTED_BYTES));
    }

    /// A cache that serves hits, or that only a person uses, gets no suggestion.
    #[test]
    fn useful_cache_gets_no_suggestion() {
        assert_eq!(suggested(NO_LIMIT, 2000, 9000), (0, 0));
        assert_eq!(suggested(Limits { entries: 3, ..NO_LIMIT }, 3, 9000), (0, 0));
        assert_eq!(suggested(Limits { entries: 3, ..NO_LIMIT }, 12, 90), (0, 0), "fewer than ten evictions a second");
    }

    /// An entry that is evicted after the first tenth of its lifetime is no early eviction.
    #[test]
    fn late_eviction_is_not_early() {
        for (age, expected) in [(0, 1), (TTL / 10, 1), (TTL / 10 + 1, 0)] {
            let mut cache = Cache::new(Limits { entries: 1, ..NO_LIMIT });
            let mut insert = |key: &[u8], now| {
                cache.set_early_deadline(early_deadline(TTL, now));
                let value = Payload::Inline { bytes: b"1", form: JsonForm::Integer };
                cache.insert(key, value, now + TTL, Millis::MAX);
                cache.capacity_losses().by_entries
            };
            insert(b"a", 0);
            assert_eq!(insert(b"b", age), expected, "{age} ms");
        }
    }

    /// A suggestion is a number that an operator would choose.
    #[test]
    fn suggestion_is_round() {
        assert_eq!([0, 7, 99, 101, 2467, 1_000_001].map(round_up), [0, 7, 99, 110, 2500, 1_100_000]);
    }
}
