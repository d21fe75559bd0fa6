//! What the backend has for the loop: completed jobs, and changes in Redis.
//!
//! Completions are bounded by the jobs that were accepted. Changes come as fast as others write to Redis, and the loop
//! takes a bounded number at a time: when too many wait they are replaced by the one that stands for all of them.
//!
//! The loop is woken for news that it does not know of. As long as it has been told that there is more it comes by
//! itself, and must not be woken; once it has taken all it must.

use crate::types::{Completion, Invalidation, MAX_KEY_BYTES};
use std::collections::VecDeque;

/// Most changes that wait for the loop: a tenth of a second's worth of what the fastest Redis can be written. (What the
/// listening thread holds beside them is one message of Redis, which Redis' own limit for subscribers bounds.)
pub(super) const MAX_PENDING_INVALIDATIONS: usize = 65_536;

/// Most bytes of their keys. Usual keys are short of 128 bytes; with longer ones fewer changes may wait.
const MAX_PENDING_INVALIDATION_BYTES: usize = MAX_PENDING_INVALIDATIONS * 128;

/// See the top of the file.
#[derive(Default)]
pub(super) struct Inbox {
    completions: Vec<Completion>,
    invalidations: VecDeque<Invalidation>,
    /// Bytes of their keys.
    invalidation_bytes: usize,
    /// Changes were dropped for want of room since the loop last took all of them.
    overflowed: bool,
    /// True if the tracking connection was lost, by the changes that were added last.
    tracking_lost: bool,
    /// The loop knows that there is something, and will come for it.
    wakeup_sent: bool,
}

impl Inbox {
    /// Adds completions. Says whether the loop must be woken.
    pub(super) fn push_completions(&mut self, completions: Vec<Completion>) -> bool {
        self.completions.extend(completions);
        !std::mem::replace(&mut self.wakeup_sent, true)
    }

    /// Adds a change. Their order is kept: what is true after all of them is what was true after the last. Says whether
    /// it was one too many, for the first time in a while.
    pub(super) fn push_invalidation(&mut self, change: Invalidation) -> bool {
        match &change {
            // No such key is ever cached.
            Invalidation::Key(key) if key.len() > MAX_KEY_BYTES => return false,
            Invalidation::Key(_) => self.invalidation_bytes += change.bytes(),
            Invalidation::All => {
                self.tracking_lost = false;
                self.clear_invalidations();
            }
            // What has changed before is known to have: it must go, not only expire with the rest.
            Invalidation::TrackingLost => self.tracking_lost = true,
        }
        self.invalidations.push_back(change);
        if self.invalidations.len() <= MAX_PENDING_INVALIDATIONS
            && self.invalidation_bytes <= MAX_PENDING_INVALIDATION_BYTES
        {
            return false;
        }
        self.clear_invalidations();
        self.invalidations.push_back(Invalidation::All);
        if self.tracking_lost {
            self.invalidations.push_back(Invalidation::TrackingLost);
        }
        !std::mem::replace(&mut self.overflowed, true)
    }

    /// Whether the loop must be woken for changes that were added.
    pub(super) fn needs_wakeup(&mut self) -> bool {
        !self.invalidations.is_empty() && !std::mem::replace(&mut self.wakeup_sent, true)
    }

    /// Moves all completions and up to `most` changes out. Says whether there is more to take.
    pub(super) fn drain(
        &mut self,
        completions: &mut Vec<Completion>,
        changes: &mut Vec<Invalidation>,
        most: usize,
    ) -> bool {
        completions.append(&mut self.completions);
        let count = self.invalidations.len().min(most);
        for change in self.invalidations.drain(..count) {
            self.invalidation_bytes -= change.bytes();
            changes.push(change);
        }
        self.wakeup_sent = !self.invalidations.is_empty();
        if !self.wakeup_sent {
            self.overflowed = false;
            // What a burst has taken is given back.
            self.invalidations.shrink_to(most);
        }
        self.wakeup_sent
    }

    /// Drops what a change of everything makes needless.
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

    fn taken(news: &mut Inbox, most: usize) -> (Vec<Invalidation>, bool) {
        let mut changes = Vec::new();
        let more = news.drain(&mut Vec::new(), &mut changes, most);
        (changes, more)
    }

    fn after(changes: impl IntoIterator<Item = Invalidation>) -> Vec<Invalidation> {
        let mut news = Inbox::default();
        changes.into_iter().for_each(|change| _ = news.push_invalidation(change));
        taken(&mut news, usize::MAX).0
    }

    #[test]
    fn a_change_of_everything_makes_those_before_it_needless_and_no_other_does() {
        assert_eq!(after([key("a"), key("b")]), [key("a"), key("b")]);
        let all = [key("a"), Invalidation::TrackingLost, key("b")];
        assert_eq!(after(all.clone()), all);
        assert_eq!(
            after([key("a"), Invalidation::All, key("b"), Invalidation::TrackingLost]),
            [Invalidation::All, key("b"), Invalidation::TrackingLost]
        );
        assert_eq!(after([Invalidation::TrackingLost, key("a"), Invalidation::All]), [Invalidation::All]);
    }

    #[test]
    fn too_many_changes_become_one_that_stands_for_all() {
        let many = (0..MAX_PENDING_INVALIDATIONS).map(|number| key(&number.to_string()));
        assert_eq!(after(many.clone()).len(), MAX_PENDING_INVALIDATIONS);
        assert_eq!(after(many.clone().chain([key("one more"), key("after")])), [Invalidation::All, key("after")]);
        let lost = [Invalidation::All, Invalidation::TrackingLost];
        assert_eq!(after(many.chain([Invalidation::TrackingLost])), lost, "the loss is lost");
        let long = "x".repeat(MAX_KEY_BYTES);
        let count = MAX_PENDING_INVALIDATION_BYTES / MAX_KEY_BYTES;
        assert_eq!(after((0..count).map(|_| key(&long))).len(), count);
        assert_eq!(after((0..count + 1).map(|_| key(&long))), [Invalidation::All]);
        assert_eq!(after([key(&format!("{long}x"))]), []);
    }

    /// Changes that are left over come with the loop's next tick; others must wake it.
    #[test]
    fn the_loop_is_woken_unless_it_knows_that_there_is_more() {
        let mut news = Inbox::default();
        assert!(!news.needs_wakeup(), "woken for nothing");
        (0..5).for_each(|number| _ = news.push_invalidation(key(&number.to_string())));
        assert!(news.needs_wakeup() && !news.needs_wakeup());
        assert_eq!(taken(&mut news, 2), (vec![key("0"), key("1")], true));
        news.push_invalidation(key("5"));
        assert!(!news.needs_wakeup(), "it will come by itself");
        assert!(!news.push_completions(Vec::new()));
        assert_eq!(taken(&mut news, 3), (vec![key("2"), key("3"), key("4")], true));
        assert_eq!(taken(&mut news, 3), (vec![key("5")], false));
        news.push_invalidation(key("6"));
        assert!(news.needs_wakeup(), "it sleeps and nobody wakes it");
        assert_eq!(taken(&mut news, 3), (vec![key("6")], false));
        assert!(news.push_completions(Vec::new()));
    }

    #[test]
    fn an_overflow_is_told_once_until_all_is_taken() {
        let mut news = Inbox::default();
        let flood =
            |news: &mut Inbox| (0..3 * MAX_PENDING_INVALIDATIONS).filter(|_| news.push_invalidation(key("k"))).count();
        assert_eq!((flood(&mut news), flood(&mut news)), (1, 0));
        while taken(&mut news, 1000).1 {}
        assert_eq!((news.invalidation_bytes, flood(&mut news)), (0, 1));
    }
}
