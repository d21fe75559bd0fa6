//! Losses for lack of capacity, and a sample of recent insertions with the number of different keys
//! and the average size. Both are for the diagnosis of a small cache.
//!
//! The number of keys is an estimate by HyperLogLog (Flajolet, Fusy, Gandouet and Meunier, 2007),
//! with its correction for few keys. The standard error is 3 %, whatever the number of keys, and an
//! insertion costs a few instructions.

use super::{Cache, Limits};
use crate::types::Millis;

/// Bits of a hash that select a register.
const INDEX_BITS: u32 = 10;

/// Number of registers. The estimate takes one byte for each.
const REGISTERS: usize = 1 << INDEX_BITS;

/// Bias correction for this number of registers.
const ALPHA: f64 = 0.7213 / (1.0 + 1.079 / REGISTERS as f64);

/// Losses for lack of capacity since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapacityLosses {
    /// Early evictions because of [`Limits::entries`].
    pub by_entries: u64,
    /// Early evictions because of [`Limits::bytes`].
    pub by_bytes: u64,
    /// Values that were not stored because of [`Limits::bytes`].
    pub not_stored: u64,
}

/// Insertions since the last restart, also those of entries that were not stored.
#[derive(Debug)]
pub struct InsertionSample {
    keys: KeyEstimate,
    count: u64,
    bytes: u64,
}

impl InsertionSample {
    /// Creates an empty sample.
    pub(super) fn new() -> InsertionSample {
        InsertionSample { keys: KeyEstimate::new(), count: 0, bytes: 0 }
    }

    /// Adds an entry with the hash of its key and the size of key and value.
    pub(super) fn add(&mut self, hash: u32, bytes: usize) {
        self.keys.add(hash);
        self.count += 1;
        self.bytes += bytes as u64;
    }

    /// Removes all entries.
    pub(super) fn clear(&mut self) {
        self.keys.clear();
        (self.count, self.bytes) = (0, 0);
    }

    /// Returns the number of insertions.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns about how many different keys there are.
    pub fn keys(&self) -> usize {
        self.keys.count()
    }

    /// Returns the average size of an entry in bytes, rounded up.
    pub fn average_bytes(&self) -> usize {
        self.bytes.div_ceil(self.count.max(1)) as usize
    }
}

/// Set of hashes that knows only its approximate size.
#[derive(Debug)]
struct KeyEstimate {
    /// For each register the longest run of zero bits among its hashes, plus one; 0 without any.
    registers: Box<[u8]>,
}

impl KeyEstimate {
    /// Creates an empty set.
    fn new() -> KeyEstimate {
        KeyEstimate { registers: vec![0; REGISTERS].into_boxed_slice() }
    }

    /// Adds the hash of a key.
    fn add(&mut self, hash: u32) {
        let rank = ((hash << INDEX_BITS).leading_zeros().min(32 - INDEX_BITS) + 1) as u8;
        let register = &mut self.registers[(hash >> (32 - INDEX_BITS)) as usize];
        *register = rank.max(*register);
    }

    /// Removes all hashes.
    fn clear(&mut self) {
        self.registers.fill(0);
    }

    /// Returns the approximate number of different hashes.
    fn count(&self) -> usize {
        let total = REGISTERS as f64;
        let sum: f64 = self.registers.iter().map(|&rank| 2f64.powi(-i32::from(rank))).sum();
        let raw = ALPHA * total * total / sum;
        let empty = self.registers.iter().filter(|&&rank| rank == 0).count();
        let estimate = match raw <= 2.5 * total && empty > 0 {
            // With few keys, the number of empty registers is more exact.
            true => total * (total / empty as f64).ln(),
            false => raw,
        };
        estimate.round() as usize
    }
}

impl Cache {
    /// Makes evictions early from now on if their entries are still fresh at `deadline`. Without a
    /// call none is.
    pub fn set_early_deadline(&mut self, deadline: Millis) {
        self.early_deadline = deadline;
    }

    /// Returns what was lost for lack of capacity since the start.
    pub fn capacity_losses(&self) -> CapacityLosses {
        self.capacity_losses
    }

    /// Returns the sample of insertions since its last restart. Includes entries that were not
    /// stored.
    pub fn insertions(&self) -> &InsertionSample {
        &self.insertions
    }

    /// Restarts the sample of insertions.
    pub fn restart_insertion_sample(&mut self) {
        self.insertions.clear();
    }

    /// Returns the limits.
    pub fn limits(&self) -> Limits {
        self.limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

    /// The average size covers all insertions, also repeated ones.
    #[test]
    fn average_size_is_rounded_up() {
        let mut sample = InsertionSample::new();
        assert_eq!((sample.keys(), sample.average_bytes()), (0, 0));
        [(1 << 31, 10), (1 << 31, 11), (1, 20)].into_iter().for_each(|(hash, bytes)| sample.add(hash, bytes));
        assert_eq!((sample.keys(), sample.average_bytes()), (2, 14));
        sample.clear();
        assert_eq!((sample.keys(), sample.average_bytes()), (0, 0));
    }

    /// The estimate is within five standard errors of the number of different keys.
    ///
    /// The keys of the hasher are fixed: with random ones, two pairs of ten keys share a register
    /// in one run of a thousand.
    #[test]
    fn estimate_is_near_true_count() {
        let (mut estimate, hasher) = (KeyEstimate::new(), BuildHasherDefault::<DefaultHasher>::default());
        assert_eq!(estimate.count(), 0);
        for expected in [1, 10, 100, 2000, 50_000, 1_000_000] {
            for repeat in 0..2 {
                (0..expected).for_each(|key: u64| estimate.add((hasher.hash_one(key) >> 32) as u32));
                let error = estimate.count().abs_diff(expected as usize) as f64 / expected as f64;
                assert!(error < 0.16, "{} instead of {expected}, round {repeat}", estimate.count());
            }
            estimate.clear();
        }
    }
}
