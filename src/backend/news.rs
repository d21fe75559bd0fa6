//! What the backend has for the loop: completed jobs, and changes in Redis.
//!
//! Completions are bounded by the jobs that were accepted. Changes come as fast as others write to Redis, and the loop
//! may be busy: when too many wait they are replaced by the one that stands for all of them.

use crate::request::{Change, Completion, MAX_KEY_BYTES};
use std::collections::VecDeque;

/// Most changes that wait for the loop: a tenth of a second's worth of what the fastest Redis can be written.
const MAX_CHANGES: usize = 65_536;

/// Most bytes of their keys. Usual keys are short of 128 bytes; with longer ones fewer changes may wait.
const MAX_CHANGE_BYTES: usize = MAX_CHANGES * 128;

/// See the top of the file.
#[derive(Default)]
pub(super) struct News {
    pub(super) completions: Vec<Completion>,
    changes: VecDeque<Change>,
    key_bytes: usize,
}

impl News {
    pub(super) fn is_empty(&self) -> bool {
        self.completions.is_empty() && self.changes.is_empty()
    }

    /// Adds a change. Their order is kept: what is true after all of them is what was true after the last.
    pub(super) fn add(&mut self, change: Change) {
        match &change {
            // No such key is ever cached.
            Change::Key(key) if key.len() > MAX_KEY_BYTES => return,
            Change::Key(key) => self.key_bytes += key.len(),
            Change::All | Change::Unwatched => self.clear_changes(),
        }
        self.changes.push_back(change);
        if self.changes.len() > MAX_CHANGES || self.key_bytes > MAX_CHANGE_BYTES {
            log::warn!("more changes in Redis than can be followed: everything cached is dropped");
            self.clear_changes();
            self.changes.push_back(Change::All);
        }
    }

    /// Takes all changes out.
    pub(super) fn take_changes(&mut self) -> VecDeque<Change> {
        self.key_bytes = 0;
        std::mem::take(&mut self.changes)
    }

    /// Drops what a change that concerns every key makes needless. One that stood for more than the next does remains.
    fn clear_changes(&mut self) {
        self.key_bytes = 0;
        self.changes.retain(|change| matches!(change, Change::All));
        self.changes.truncate(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Change {
        Change::Key(name.into())
    }

    fn after(changes: impl IntoIterator<Item = Change>) -> Vec<Change> {
        let mut news = News::default();
        changes.into_iter().for_each(|change| news.add(change));
        news.take_changes().into()
    }

    #[test]
    fn a_change_of_everything_makes_those_before_it_needless() {
        assert_eq!(after([key("a"), key("b")]), [key("a"), key("b")]);
        assert_eq!(after([key("a"), Change::Unwatched, key("b")]), [Change::Unwatched, key("b")]);
        assert_eq!(after([key("a"), Change::All, key("b"), Change::Unwatched]), [Change::All, Change::Unwatched]);
        assert_eq!(after([Change::Unwatched, key("a"), Change::All]), [Change::All]);
        assert_eq!(after([Change::All, Change::Unwatched, Change::All]), [Change::All, Change::All]);
    }

    #[test]
    fn too_many_changes_become_one_that_stands_for_all() {
        let many = (0..MAX_CHANGES).map(|number| key(&number.to_string()));
        assert_eq!(after(many.clone()).len(), MAX_CHANGES);
        assert_eq!(after(many.chain([key("one more"), key("after")])), [Change::All, key("after")]);
        let long = "x".repeat(MAX_KEY_BYTES);
        let count = MAX_CHANGE_BYTES / MAX_KEY_BYTES;
        assert_eq!(after((0..count).map(|_| key(&long))).len(), count);
        assert_eq!(after((0..count + 1).map(|_| key(&long))), [Change::All]);
        assert_eq!(after([key(&format!("{long}x"))]), []);
    }
}
