//! Floors: the versions of each key that are too old to be sent from now on.
//!
//! | floor | rises to | when |
//! |---|---|---|
//! | `hit`, `stale` | now | an invalidation has arrived |
//! | `hit`, `stale` | start of the version | a value has been fetched |
//! | `asked` | now | a value has been fetched after `ASK` |
//! | `owner` | change of the owner | the bound on topology changes has passed since |
//! | `change` | change of the key | the bound on invalidations has passed since |
//!
//! The first three follow the proxy. The others rise whether it has noticed or not.

use crate::versions::{KEYS, Version};
use crate::world::Moment;
use segment_redis_proxy::types::Millis;
use std::collections::VecDeque;

/// Floors of one key.
#[derive(Clone, Copy, Debug, Default)]
pub struct Floor {
    /// A version that no node had any more by this moment is too old for a reply.
    pub hit: Moment,
    /// The same for a stale reply.
    pub stale: Moment,
    /// A version that the owner had dropped by this moment is too old for any reply.
    pub owner: Moment,
    /// While tracking is active, a version that the owner had dropped by this moment is too old for
    /// a hit.
    pub change: Moment,
    /// Last fetch after `ASK`, which leaves nothing cached.
    pub asked: Moment,
    /// First and last change of the owner that the proxy need not know yet.
    disputed: Option<(Moment, Moment)>,
    /// True while tracking is active.
    pub is_tracked: bool,
}

impl Floor {
    /// Returns true if the cluster had a version late enough for any reply.
    pub fn allows_owner_of(&self, version: &Version) -> bool {
        version.dropped > self.owner
    }

    /// Returns true if a change of this version should have arrived. A version of the former owner
    /// is known to be outdated only after the bound on topology changes.
    pub fn is_change_missed(&self, version: &Version) -> bool {
        let is_of_former_owner = self
            .disputed
            .is_some_and(|(first, last)| version.until >= first && (version.from < last || version.dropped <= last));
        self.is_tracked && version.dropped <= self.change && !is_of_former_owner
    }
}

/// Change of the owner of a key.
struct OwnerChange {
    /// Time from which on the former owner's versions must not be sent.
    due: Millis,
    /// Time from which on they must not be hits while tracking is active, even if no poll of the
    /// topology was answered.
    tracked_due: Millis,
    key: usize,
    moment: Moment,
}

/// Floors of all keys.
pub struct Floors {
    keys: [Floor; KEYS],
    /// Longest time until a change, or the loss of tracking instead, reaches the proxy.
    notice_ms: Millis,
    /// Longest time until the proxy uses a new map, if its polls are answered.
    topology_ms: Millis,
    /// Longest time until the proxy uses a new map or loses tracking.
    unknown_ms: Millis,
    /// Changes of keys, with the times from which on the proxy must know them.
    changes: VecDeque<(Millis, usize, Moment)>,
    owner_changes: Vec<OwnerChange>,
    pub is_tracked: bool,
}

impl Floors {
    pub fn new(notice_ms: Millis, topology_ms: Millis, unknown_ms: Millis) -> Floors {
        Floors {
            keys: [Floor::default(); KEYS],
            notice_ms,
            topology_ms,
            unknown_ms,
            changes: VecDeque::new(),
            owner_changes: Vec::new(),
            is_tracked: false,
        }
    }

    /// Returns the floors of a key for a request that is decoded now.
    pub fn of(&mut self, key: usize, now: Millis) -> Floor {
        while let Some(&(due, key, moment)) = self.changes.front()
            && due <= now
        {
            self.changes.pop_front();
            self.keys[key].change = self.keys[key].change.max(moment);
        }
        let keys = &mut self.keys;
        self.owner_changes.retain(|change| {
            let floor = &mut keys[change.key];
            if change.due <= now {
                floor.owner = floor.owner.max(change.moment);
            }
            if change.tracked_due <= now {
                floor.change = floor.change.max(change.moment);
            }
            change.due > now
        });
        let is_disputed = |change: &&OwnerChange| change.key == key && change.tracked_due > now;
        let moments = || self.owner_changes.iter().filter(is_disputed).map(|change| change.moment);
        let disputed = moments().min().zip(moments().max());
        Floor { disputed, is_tracked: self.is_tracked, ..self.keys[key] }
    }

    /// Records that the owner of a key changed the key.
    pub fn add_change(&mut self, key: usize, now: Millis, moment: Moment) {
        self.changes.push_back((now + self.notice_ms, key, moment));
    }

    /// Records that a key has another owner, without messages about its contents.
    pub fn add_owner_change(&mut self, key: usize, now: Millis, moment: Moment) {
        let (due, tracked_due) = (now + self.topology_ms, now + self.unknown_ms);
        self.owner_changes.push(OwnerChange { due, tracked_due, key, moment });
    }

    /// Records that the proxy could not learn the map. It gets the full time again.
    pub fn postpone_owner_changes(&mut self, now: Millis) {
        for change in &mut self.owner_changes {
            change.due = change.due.max(now + self.topology_ms);
        }
    }

    /// Raises the floors of a key, or of all keys, because an invalidation has arrived.
    pub fn raise(&mut self, key: Option<usize>, moment: Moment) {
        let keys = key.map_or(0..KEYS, |key| key..key + 1);
        self.keys[keys].iter_mut().for_each(|floor| (floor.hit, floor.stale) = (moment, moment));
    }

    /// Raises the floors of all keys for replies that are not stale, because tracking was lost.
    pub fn raise_for_hits(&mut self, moment: Moment) {
        self.keys.iter_mut().for_each(|floor| floor.hit = moment);
    }

    /// Records that a version was fetched, after `ASK` or not. Later replies must not be older. An
    /// overtaken fetch proves nothing: a newer version may have arrived since.
    pub fn raise_to_fetched(&mut self, key: usize, (started_at, now): (Moment, Moment), from: Moment, is_asking: bool) {
        let floor = &mut self.keys[key];
        if floor.hit <= started_at {
            floor.hit = floor.hit.max(from);
            floor.stale = floor.stale.max(from);
            floor.asked = if is_asking { now } else { floor.asked };
        }
    }
}
