//! Limit on the watchers of all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Limit on the watchers of all workers (`MAX_WATCHERS`). Clones share the count.
#[derive(Clone, Debug)]
pub struct WatcherLimit {
    max: usize,
    count: Arc<AtomicUsize>,
}

impl WatcherLimit {
    /// Creates the limit for a process.
    pub fn new(max: usize) -> WatcherLimit {
        WatcherLimit { max, count: Arc::default() }
    }

    /// Reserves `count` places. Returns false if fewer are left.
    pub(super) fn reserve(&self, count: usize) -> bool {
        let reserved = |taken: usize| taken.checked_add(count).filter(|&taken| taken <= self.max);
        self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, reserved).is_ok()
    }

    /// Releases `count` places.
    pub(super) fn release(&self, count: usize) {
        self.count.fetch_sub(count, Ordering::Relaxed);
    }
}
