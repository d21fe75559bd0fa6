//! Histograms with fixed bounds: an observation costs a few comparisons and no allocation.

/// Bounds of times, in microseconds: 1, 2, 5 from ten microseconds to ten seconds. A hit takes some ten, a miss some hundred, and
/// what takes longer than ten seconds is broken.
pub const LATENCY_BUCKETS_US: [u64; 19] = [
    10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
    2_000_000, 5_000_000, 10_000_000,
];

/// Bounds of batches, in keys: up to the most that one round trip has.
pub const BATCH_SIZE_BUCKETS: [u64; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// How often something was at most so large. `N` bounds, and what is above the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<const N: usize> {
    bounds: &'static [u64; N],
    counts: [u64; N],
    overflow: u64,
    sum: u64,
}

/// Of times, in microseconds.
pub type LatencyHistogram = Histogram<{ LATENCY_BUCKETS_US.len() }>;

/// Of batches, in keys.
pub type BatchSizeHistogram = Histogram<{ BATCH_SIZE_BUCKETS.len() }>;

impl Default for LatencyHistogram {
    fn default() -> LatencyHistogram {
        Histogram::new(&LATENCY_BUCKETS_US)
    }
}

impl Default for BatchSizeHistogram {
    fn default() -> BatchSizeHistogram {
        Histogram::new(&BATCH_SIZE_BUCKETS)
    }
}

impl<const N: usize> Histogram<N> {
    fn new(bounds: &'static [u64; N]) -> Histogram<N> {
        Histogram { bounds, counts: [0; N], overflow: 0, sum: 0 }
    }

    /// Notes that `value` was seen so many times.
    pub fn observe(&mut self, value: u64, times: u64) {
        // The small ones are the usual ones.
        match self.bounds.iter().position(|&bound| value <= bound) {
            Some(place) => self.counts[place] += times,
            None => self.overflow += times,
        }
        self.sum += value * times;
    }

    /// Adds what another one has seen.
    pub fn merge(&mut self, other: &Histogram<N>) {
        self.counts.iter_mut().zip(other.counts).for_each(|(sum, count)| *sum += count);
        self.overflow += other.overflow;
        self.sum += other.sum;
    }

    /// The bounds, each the largest value that counts there.
    pub fn bounds(&self) -> &[u64] {
        self.bounds
    }

    /// How often each was met and the one before was not; last, what is above all.
    pub fn counts(&self) -> impl Iterator<Item = u64> {
        self.counts.into_iter().chain([self.overflow])
    }

    /// All that was seen, added up.
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_counts_under_the_first_bound_that_it_does_not_exceed() {
        let mut times = LatencyHistogram::default();
        for (value, count) in [(0, 1), (10, 1), (11, 5), (10_000_000, 1), (10_000_001, 2)] {
            times.observe(value, count);
        }
        let mut other = LatencyHistogram::default();
        other.observe(20, 1);
        times.merge(&other);
        let counts: Vec<u64> = times.counts().collect();
        assert_eq!((counts.len(), counts[0], counts[1], counts[18], counts[19]), (20, 2, 6, 1, 2));
        assert_eq!(counts.iter().sum::<u64>(), 11);
        assert_eq!(times.sum(), 10 + 55 + 30_000_002 + 20);
        assert!(times.bounds().is_sorted() && BatchSizeHistogram::default().bounds().is_sorted());
    }
}
