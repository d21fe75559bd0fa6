//! Diagnosis of a cache that is too small for its requests to find anything in it.
//!
//! An entry that is evicted within the first tenth of its lifetime was hardly of use. If such
//! evictions outnumber the hits, the cache costs work and saves none. The diagnosis compares both
//! once in [`WINDOW`], and estimates how large the cache would have to be.

use super::ReadThrough;
use crate::types::Millis;

/// Time over which evictions and hits are compared. It starts with the first early eviction, so
/// that all of it has load.
const WINDOW: Millis = 10_000;

/// Evictions below which a window shows nothing: ten a second. A person who tries a demonstration
/// with three keys causes fewer.
const MIN_EARLY_EVICTIONS: u64 = 100;

/// Part of `CACHE_TTL` within which an eviction is early.
const EARLY_PART: Millis = 10;

/// Counts at the start of the present window, and the result of the last one.
#[derive(Debug, Default)]
pub(super) struct CapacityCheck {
    window_ends: Millis,
    hits: u64,
    early_evictions: u64,
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
    /// Compares evictions and hits if a window has ended. Called about once a second.
    pub fn check_capacity(&mut self, now: Millis) {
        let (hits, early_evictions) = (self.counters.hits, self.cache.early_evictions());
        let evicted = early_evictions - self.capacity.early_evictions;
        if evicted > 0 && now < self.capacity.window_ends {
            return;
        }
        if evicted > 0 {
            let is_too_small = evicted >= MIN_EARLY_EVICTIONS && evicted > hits - self.capacity.hits;
            self.capacity.suggestion = if is_too_small { self.suggest() } else { Suggestion::default() };
            self.capacity.suggested_until = now + WINDOW;
        } else if now >= self.capacity.suggested_until {
            self.capacity.suggestion = Suggestion::default();
        }
        self.cache.restart_key_estimate();
        self.capacity = CapacityCheck { window_ends: now + WINDOW, hits, early_evictions, ..self.capacity };
    }

    /// Returns the capacity for all keys that were inserted in the window, plus a quarter, and
    /// more than the present capacity.
    fn suggest(&self) -> Suggestion {
        let (entries, bytes, limits) = (self.cache.len(), self.cache.bytes(), self.cache.limits());
        let wanted = self.cache.estimate_keys().max(entries + 1);
        if self.cache.is_full() {
            return Suggestion { entries: round_up(wanted + wanted.div_ceil(4)), bytes: 0 };
        }
        let wanted_bytes = (bytes / entries.max(1)).saturating_mul(wanted).max(limits.bytes);
        Suggestion { entries: 0, bytes: round_up(wanted_bytes + wanted_bytes.div_ceil(4)) }
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
    use crate::types::{Completion, RequestId};
    use crate::value::{JsonForm, Payload, Value};

    const TTL: Millis = 15_000;

    /// Time before the first request.
    const IDLE: Millis = 7000;

    /// Requests `count` keys round robin, one each millisecond from `now` on, each with a value of
    /// 100 bytes. Returns the suggested keys and bytes after the window.
    fn suggested(limits: Limits, keys: usize, count: usize) -> (usize, usize) {
        let mut read_through = ReadThrough::new(limits, TTL, 1000);
        read_through.check_capacity(0);
        // Without an early eviction, the window starts anew.
        read_through.check_capacity(IDLE);
        for (now, key) in (0..count).map(|number| (IDLE + number as Millis, number % keys)) {
            let key = format!("key {key:6}");
            let request_id = RequestId { slot: 0, connection_id: 0, sequence: 0, part: 0 };
            if let Lookup::Fetch(job) = read_through.get(key.as_bytes(), true, request_id, now) {
                let fetched = FetchedValue { value: Value::new(vec![b'x'; 100]), ttl: None };
                let completion = Completion { fetch_id: job.fetch_id, result: Ok(Some(fetched)) };
                read_through.complete(completion, now, |_, _| ());
            }
        }
        read_through.check_capacity(IDLE + WINDOW - 1);
        let mut metrics = WorkerMetrics::default();
        read_through.export_metrics(&mut metrics);
        assert_eq!((metrics.suggested_entries, metrics.suggested_bytes), (0, 0), "the window has not ended");
        read_through.check_capacity(IDLE + WINDOW);
        read_through.export_metrics(&mut metrics);
        let suggested = (metrics.suggested_entries, metrics.suggested_bytes);
        // It holds for as long as a window, also if the load ends at once.
        read_through.check_capacity(IDLE + 2 * WINDOW - 1);
        read_through.export_metrics(&mut metrics);
        assert_eq!((metrics.suggested_entries, metrics.suggested_bytes), suggested);
        read_through.check_capacity(IDLE + 2 * WINDOW);
        read_through.export_metrics(&mut metrics);
        assert_eq!((metrics.suggested_entries, metrics.suggested_bytes), (0, 0), "the load has ended");
        suggested
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
                cache.early_evictions()
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
