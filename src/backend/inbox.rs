//! Inbox of the event loop: completed jobs, and invalidations from Redis.
//!
//! The number of accepted jobs bounds the completions. Invalidations arrive as fast as other
//! clients write to Redis, and the loop takes a bounded number in each tick. If too many are
//! pending, one [`Invalidation::All`] replaces them.
//!
//! One wakeup is enough until the loop has drained the inbox. While items remain, the loop returns
//! by itself. After it took the last one, the next item wakes it.

use crate::types::{Completion, Invalidation, MAX_KEY_BYTES};
use std::collections::VecDeque;

/// Most pending invalidations. The fastest Redis produces as many in 0.1 s. The tracking thread
/// also holds one message, which Redis' own limit for subscribers bounds.
pub(super) const MAX_PENDING_INVALIDATIONS: usize = 65_536;

/// Most bytes of the keys of pending invalidations, 128 for each. Usual keys are shorter. With
/// longer keys fewer invalidations may be pending.
const MAX_PENDING_INVALIDATION_BYTES: usize = MAX_PENDING_INVALIDATIONS * 128;

/// Completions and invalidations not taken by the event loop yet. Performs no I/O and no wakeup.
#[derive(Default)]
pub(super) struct Inbox {
    completions: Vec<Completion>,
    invalidations: VecDeque<Invalidation>,
    /// Sum of the keys of `invalidations`, in bytes.
    invalidation_bytes: usize,
    /// True if invalidations were dropped since the loop last took all of them.
    overflowed: bool,
    /// Last start or loss of tracking since the loop last took everything: true for a start.
    pending_tracking: Option<bool>,
    /// True if the loop was woken, or knows of more items, and will drain the inbox.
    wakeup_sent: bool,
}

impl Inbox {
    /// Adds completions. Returns true if the loop must be woken.
    pub(super) fn push_completions(&mut self, completions: Vec<Completion>) -> bool {
        self.completions.extend(completions);
        !std::mem::replace(&mut self.wakeup_sent, true)
    }

    /// Adds an invalidation. Keeps the order, because the last one decides whether tracking is
    /// lost. Returns true if the inbox overflows, once until the loop has drained it.
    pub(super) fn push_invalidation(&mut self, invalidation: Invalidation) -> bool {
        match &invalidation {
            // Longer keys are never cached.
            Invalidation::Key(key) if key.len() > MAX_KEY_BYTES => return false,
            Invalidation::Key(_) => self.invalidation_bytes += invalidation.bytes(),
            Invalidation::All => {
                self.replace_by_all();
                return false;
            }
            Invalidation::TrackingStarted => {
                self.clear_invalidations();
                self.pending_tracking = Some(true);
            }
            // Earlier invalidations stay pending. Their entries must be removed, not only expire.
            Invalidation::TrackingLost => self.pending_tracking = Some(false),
        }
        self.invalidations.push_back(invalidation);
        if self.invalidations.len() <= MAX_PENDING_INVALIDATIONS
            && self.invalidation_bytes <= MAX_PENDING_INVALIDATION_BYTES
        {
            return false;
        }
        self.replace_by_all();
        !std::mem::replace(&mut self.overflowed, true)
    }

    /// Returns true if the loop must be woken for pending invalidations.
    pub(super) fn needs_wakeup(&mut self) -> bool {
        !self.invalidations.is_empty() && !std::mem::replace(&mut self.wakeup_sent, true)
    }

    /// Moves all completions and up to `max` invalidations out. Returns true if some remain.
    pub(super) fn drain(
        &mut self,
        completions: &mut Vec<Completion>,
        invalidations: &mut Vec<Invalidation>,
        max: usize,
    ) -> bool {
        completions.append(&mut self.completions);
        let count = self.invalidations.len().min(max);
        for invalidation in self.invalidations.drain(..count) {
            self.invalidation_bytes -= invalidation.bytes();
            invalidations.push(invalidation);
        }
        self.wakeup_sent = !self.invalidations.is_empty();
        if !self.wakeup_sent {
            (self.overflowed, self.pending_tracking) = (false, None);
            // Frees the memory that a burst has allocated.
            self.invalidations.shrink_to(max);
        }
        self.wakeup_sent
    }

    /// Replaces the pending invalidations by one of all keys. A start or a loss of tracking among
    /// them stays.
    fn replace_by_all(&mut self) {
        self.clear_invalidations();
        match self.pending_tracking {
            Some(true) => self.invalidations.push_back(Invalidation::TrackingStarted),
            Some(false) => self.invalidations.extend([Invalidation::All, Invalidation::TrackingLost]),
            None => self.invalidations.push_back(Invalidation::All),
        }
    }

    /// Drops the pending invalidations. One of all keys makes them redundant.
    fn clear_invalidations(&mut self) {
        self.invalidation_bytes = 0;
        self.invalidations.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Invalidation {
        Invalidation::Key(name.into())
    }

    /// Takes up to `max` invalidations. Returns them, and true if some remain.
    fn drain(inbox: &mut Inbox, max: usize) -> (Vec<Invalidation>, bool) {
        let mut invalidations = Vec::new();
        let more = inbox.drain(&mut Vec::new(), &mut invalidations, max);
        (invalidations, more)
    }

    /// Returns the invalidations that are pending after `invalidations` were added to an empty
    /// inbox.
    fn pending_after(invalidations: impl IntoIterator<Item = Invalidation>) -> Vec<Invalidation> {
        let mut inbox = Inbox::default();
        invalidations.into_iter().for_each(|invalidation| _ = inbox.push_invalidation(invalidation));
        drain(&mut inbox, usize::MAX).0
    }

    /// `Invalidation::All` replaces what is pending before it. No other invalidation does.
    #[test]
    fn invalidation_of_all_replaces_pending() {
        assert_eq!(pending_after([key("a"), key("b")]), [key("a"), key("b")]);
        let all = [key("a"), Invalidation::TrackingLost, key("b")];
        assert_eq!(pending_after(all.clone()), all);
        use Invalidation::{All, TrackingLost, TrackingStarted};
        assert_eq!(pending_after([key("a"), All, key("b"), TrackingLost]), [All, key("b"), TrackingLost]);
        // A start or a loss of tracking is never dropped, and the last one counts.
        assert_eq!(pending_after([TrackingLost, key("a"), All]), [All, TrackingLost]);
        assert_eq!(pending_after([TrackingLost, key("a"), TrackingStarted, key("b"), All]), [TrackingStarted]);
        assert_eq!(pending_after([TrackingStarted, TrackingLost, All, key("b")]), [All, TrackingLost, key("b")]);
    }

    /// One invalidation above the limit of number or bytes turns all pending ones into one of all
    /// keys.
    #[test]
    fn overflow_invalidates_all() {
        let many = (0..MAX_PENDING_INVALIDATIONS).map(|number| key(&number.to_string()));
        assert_eq!(pending_after(many.clone()).len(), MAX_PENDING_INVALIDATIONS);
        assert_eq!(
            pending_after(many.clone().chain([key("one more"), key("after")])),
            [Invalidation::All, key("after")]
        );
        let lost = [Invalidation::All, Invalidation::TrackingLost];
        assert_eq!(
            pending_after(many.chain([Invalidation::TrackingLost])),
            lost,
            "the overflow dropped the loss of tracking"
        );
        let long = "x".repeat(MAX_KEY_BYTES);
        let count = MAX_PENDING_INVALIDATION_BYTES / MAX_KEY_BYTES;
        assert_eq!(pending_after((0..count).map(|_| key(&long))).len(), count);
        assert_eq!(pending_after((0..count + 1).map(|_| key(&long))), [Invalidation::All]);
        assert_eq!(pending_after([key(&format!("{long}x"))]), []);
    }

    /// The loop returns by itself for items that remain. After it took all, the next one wakes it.
    #[test]
    fn wakeup_follows_only_complete_drain() {
        let mut inbox = Inbox::default();
        assert!(!inbox.needs_wakeup(), "woken without an item");
        (0..5).for_each(|number| _ = inbox.push_invalidation(key(&number.to_string())));
        assert!(inbox.needs_wakeup() && !inbox.needs_wakeup());
        assert_eq!(drain(&mut inbox, 2), (vec![key("0"), key("1")], true));
        inbox.push_invalidation(key("5"));
        assert!(!inbox.needs_wakeup(), "the loop knows that items remain");
        assert!(!inbox.push_completions(Vec::new()));
        assert_eq!(drain(&mut inbox, 3), (vec![key("2"), key("3"), key("4")], true));
        assert_eq!(drain(&mut inbox, 3), (vec![key("5")], false));
        inbox.push_invalidation(key("6"));
        assert!(inbox.needs_wakeup(), "the loop sleeps and is not woken");
        assert_eq!(drain(&mut inbox, 3), (vec![key("6")], false));
        assert!(inbox.push_completions(Vec::new()));
    }

    /// An overflow is reported once until the loop has drained the inbox.
    #[test]
    fn overflow_is_reported_once_until_drained() {
        let mut inbox = Inbox::default();
        let flood = |inbox: &mut Inbox| {
            (0..3 * MAX_PENDING_INVALIDATIONS).filter(|_| inbox.push_invalidation(key("k"))).count()
        };
        assert_eq!((flood(&mut inbox), flood(&mut inbox)), (1, 0));
        while drain(&mut inbox, 1000).1 {}
        assert_eq!((inbox.invalidation_bytes, flood(&mut inbox)), (0, 1));
    }
}
