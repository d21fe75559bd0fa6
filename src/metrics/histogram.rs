//! Histograms with fixed bucket bounds. An observation costs a few comparisons and no allocation.

/// Bucket bounds of durations in microseconds: 1, 2, 5 steps from 10 us to 10 s.
///
/// A hit takes tens of microseconds, a miss hundreds. A request above 10 s indicates a fault.
pub const LATENCY_BUCKETS_US: [u64; 19] = [
    10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
    2_000_000, 5_000_000, 10_000_000,
];

/// Bucket bounds of batch sizes in keys, up to the largest batch of one round trip.
pub const BATCH_SIZE_BUCKETS: [u64; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// Counts of observed values in `N` buckets and one overflow bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<const N: usize> {
    bounds: &'static [u64; N],
    counts: [u64; N],
    overflow: u64,
    sum: u64,
}

/// Histogram of durations in microseconds.
pub type LatencyHistogram = Histogram<{ LATENCY_BUCKETS_US.len() }>;

/// Histogram of batch sizes in keys.
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

    /// Counts `value` as observed `times` times.
    pub fn observe(&mut self, value: u64, times: u64) {
        // A linear search: most values fall into the first buckets.
        match self.bounds.iter().position(|&bound| value <= bound) {
            Some(bucket) => self.counts[bucket] += times,
            None => self.overflow += times,
        }
        self.sum += value * times;
    }

    /// Adds the observations of another histogram.
    pub fn merge(&mut self, other: &Histogram<N>) {
        self.counts.iter_mut().zip(other.counts).for_each(|(sum, count)| *sum += count);
        self.overflow += other.overflow;
        self.sum += other.sum;
    }

    /// Returns the inclusive upper bound of each bucket, without the overflow bucket.
    pub fn bounds(&self) -> &[u64] {
        self.bounds
    }

    /// Returns the count of each bucket, not cumulative. The overflow bucket comes last.
    pub fn counts(&self) -> impl Iterator<Item = u64> {
        self.counts.into_iter().chain([self.overflow])
    }

    /// Returns the sum of all observed values.
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value counts in the first bucket with a bound not below it.
    #[test]
    fn value_counts_in_first_fitting_bucket() {
        let mut latencies = LatencyHistogram::default();
        for (value, count) in [(0, 1), (10, 1), (11, 5), (10_000_000, 1), (10_000_001, 2)] {
            latencies.observe(value, count);
        }
        let mut other = LatencyHistogram::default();
        other.observe(20, 1);
        latencies.merge(&other);
        let counts: Vec<u64> = latencies.counts().collect();
        assert_eq!((counts.len(), counts[0], counts[1], counts[18], counts[19]), (20, 2, 6, 1, 2));
        assert_eq!(counts.iter().sum::<u64>(), 11);
        assert_eq!(latencies.sum(), 10 + 55 + 30_000_002 + 20);
        assert!(latencies.bounds().is_sorted() && BatchSizeHistogram::default().bounds().is_sorted());
    }
}
