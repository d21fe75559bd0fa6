//! Memory budget that the replies of all workers share.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Limit on the bytes of one kind that replies hold, and the bytes charged to it.
///
/// A charge may take at most half of what the other charges leave, so a few large charges leave
/// memory for many small ones. A charge without any others is always within the budget.
#[derive(Debug)]
pub struct OutputBudget {
    limit: AtomicUsize,
    used: AtomicUsize,
}

impl OutputBudget {
    /// Creates a budget of `limit` bytes.
    pub const fn new(limit: usize) -> OutputBudget {
        OutputBudget { limit: AtomicUsize::new(limit), used: AtomicUsize::new(0) }
    }

    /// Replaces the limit. Existing charges stay.
    pub fn set_limit(&self, bytes: usize) {
        self.limit.store(bytes, Relaxed);
    }

    /// Returns true if a further charge of `bytes` is within the budget.
    pub fn allows(&self, bytes: usize) -> bool {
        self.has_space(bytes, self.used.load(Relaxed))
    }

    /// Changes one charge from `from` to `to` bytes. Returns false if it grew beyond the budget;
    /// the charge counts even so, until it is changed again.
    ///
    /// An unchanged charge does not touch the counter that all workers share.
    pub fn update_charge(&self, from: usize, to: usize) -> bool {
        if to == from {
            return true;
        }
        // The counter wraps, so this subtracts if the charge shrinks.
        let others = self.used.fetch_add(to.wrapping_sub(from), Relaxed) - from;
        to < from || self.has_space(to, others)
    }

    fn has_space(&self, bytes: usize, others: usize) -> bool {
        others == 0 || bytes <= self.limit.load(Relaxed).saturating_sub(others) / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A charge may take half of what the other charges leave.
    #[test]
    fn charge_takes_half_of_rest() {
        let budget = OutputBudget::new(1000);
        assert!(budget.update_charge(0, 200));
        assert!(budget.allows(400) && !budget.allows(401));
        assert!(budget.update_charge(0, 100) && budget.update_charge(100, 400));
        assert_eq!(budget.used.load(Relaxed), 600);
        assert!(budget.allows(200) && !budget.allows(201));
        budget.set_limit(700);
        assert!(budget.allows(50) && !budget.allows(51));
        budget.set_limit(100);
        assert!(budget.allows(0) && !budget.allows(1), "less than what is charged");
    }

    /// A charge without others is within the budget, however large it is.
    #[test]
    fn single_charge_is_unlimited() {
        let budget = OutputBudget::new(10);
        assert!(budget.allows(1_000_000));
        assert!(budget.update_charge(0, 11) && budget.update_charge(11, 1_000_000));
        assert!(!budget.allows(1), "the budget is exhausted");
    }

    /// A charge beyond the budget counts until it is released; a smaller one is always within it.
    #[test]
    fn refused_charge_counts_until_released() {
        let budget = OutputBudget::new(100);
        assert!(budget.update_charge(0, 60));
        assert!(!budget.update_charge(0, 21));
        assert_eq!(budget.used.load(Relaxed), 81);
        assert!(budget.update_charge(21, 20) && budget.update_charge(20, 20) && budget.update_charge(20, 0));
        assert!(budget.update_charge(60, 0));
        assert_eq!(budget.used.load(Relaxed), 0);
    }
}
