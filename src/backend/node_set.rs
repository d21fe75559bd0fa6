//! Nodes of one worker: which of them serves a key, and whether tracking covers all keys.
//!
//! Tracking is active only while every serving node is watched, and the topology is known. Then an
//! invalidation arrives for each change. Each change of these facts returns the invalidations that
//! the event loop must get, in this order.
//!
//! This type performs no I/O and reads no clock. The simulation drives it.

use super::slot_map::{Primary, SlotMap};
use crate::types::Invalidation;
use crate::upstream::UpstreamAddress;
use std::sync::Arc;

/// Number of a node in its set, never reused. A node that is removed and found again gets another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u64);

impl NodeId {
    /// Returns the number.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// Nodes that serve keys, and nodes that are about to.
#[derive(Debug)]
pub struct NodeSet {
    nodes: Vec<KnownNode>,
    last_id: u64,
    /// Map in force, and the node of each of its primaries.
    serving: Option<(Arc<SlotMap>, Vec<NodeId>)>,
    /// Reason why the topology is not known to be current.
    topology: Result<(), String>,
    /// True while all changes of all keys arrive as invalidations.
    is_tracked: bool,
    /// True once it was so.
    was_tracked: bool,
}

#[derive(Debug)]
struct KnownNode {
    id: NodeId,
    primary: Primary,
    /// Reason why no invalidations arrive from the node.
    watched: Result<(), String>,
    /// True until its tracker has connected or failed for the first time.
    is_new: bool,
}

/// Effect of a new map.
#[derive(Debug, PartialEq, Eq)]
pub struct Installation {
    /// Nodes that serve no keys any more. Their jobs must be routed again.
    pub removed: Vec<NodeId>,
    /// Invalidations for the event loop.
    pub invalidations: Vec<Invalidation>,
}

impl NodeSet {
    /// Creates a set without nodes. `topology` is the reason why it has none yet.
    pub fn new(topology: String) -> NodeSet {
        NodeSet {
            nodes: Vec::new(),
            last_id: 0,
            serving: None,
            topology: Err(topology),
            is_tracked: false,
            was_tracked: false,
        }
    }

    /// Adds the primaries of a map that are not known yet. They serve no keys before the map is
    /// installed, except those that other nodes redirect. Returns the new nodes.
    pub fn prepare(&mut self, map: &SlotMap) -> Vec<(NodeId, Primary)> {
        let mut added = Vec::new();
        for primary in map.primaries() {
            if self.find(primary).is_none() {
                self.last_id += 1;
                let id = NodeId(self.last_id);
                let watched = Err("not connected yet".to_owned());
                self.nodes.push(KnownNode { id, primary: primary.clone(), watched, is_new: true });
                added.push((id, primary.clone()));
            }
        }
        added
    }

    /// Removes nodes that [`NodeSet::prepare`] has added, because they could not be started.
    pub fn forget(&mut self, ids: &[NodeId]) {
        self.nodes.retain(|node| !ids.contains(&node.id));
    }

    fn find(&self, primary: &Primary) -> Option<&KnownNode> {
        self.nodes.iter().find(|node| node.primary == *primary)
    }

    /// Returns true if all primaries of a map are watched.
    pub fn is_watched(&self, map: &SlotMap) -> bool {
        map.primaries().iter().all(|primary| self.find(primary).is_some_and(|node| node.watched.is_ok()))
    }

    /// Returns true if `map` is in force.
    pub fn is_installed(&self, map: &SlotMap) -> bool {
        self.serving.as_ref().is_some_and(|(installed, _)| **installed == *map)
    }

    /// Puts a map into force. Its primaries must have been prepared. What is cached may come from
    /// nodes that lost their keys without a message, so everything is invalidated if slots moved.
    #[must_use = "the event loop needs the invalidations, and removed nodes must be closed"]
    pub fn install(&mut self, map: &Arc<SlotMap>) -> Installation {
        // One that was not prepared has no node, and its keys wait.
        let id_of = |primary| self.find(primary).map_or(NodeId(0), |node| node.id);
        let ids = map.primaries().iter().map(id_of).collect();
        let previous = self.serving.replace((Arc::clone(map), ids));
        let is_moved = previous.is_some_and(|(previous, _)| !previous.has_same_owners(map));
        self.topology = Ok(());
        let (kept, gone) = std::mem::take(&mut self.nodes).into_iter().partition(|node| self.is_serving(node.id));
        self.nodes = kept;
        let removed = Vec::into_iter(gone).map(|node: KnownNode| node.id).collect();
        let invalidations = match self.update_tracking() {
            Some(Invalidation::TrackingStarted) => vec![Invalidation::TrackingStarted],
            // Before the first map nothing was cached. A primary without slots changes no key.
            lost if !is_moved => lost.into_iter().collect(),
            lost => [Invalidation::All].into_iter().chain(lost).collect(),
        };
        Installation { removed, invalidations }
    }

    fn is_serving(&self, id: NodeId) -> bool {
        self.serving.as_ref().is_some_and(|(_, ids)| ids.contains(&id))
    }

    /// Records that invalidations arrive from a node from now on, or the reason why not.
    #[must_use = "the event loop needs the invalidation"]
    pub fn set_watched(&mut self, id: NodeId, watched: Result<(), String>) -> Option<Invalidation> {
        let node = self.nodes.iter_mut().find(|node| node.id == id)?;
        (node.watched, node.is_new) = (watched, false);
        self.update_tracking()
    }

    /// Records that the map in force is current, or the reason why this is not known.
    #[must_use = "the event loop needs the invalidation"]
    pub fn set_topology(&mut self, topology: Result<(), String>) -> Option<Invalidation> {
        self.topology = topology;
        self.update_tracking()
    }

    fn update_tracking(&mut self) -> Option<Invalidation> {
        let is_covered = self.tracking_result().is_ok();
        self.was_tracked |= is_covered;
        match (std::mem::replace(&mut self.is_tracked, is_covered), is_covered) {
            (false, true) => Some(Invalidation::TrackingStarted),
            (true, false) => Some(Invalidation::TrackingLost),
            _ => None,
        }
    }

    /// Returns the reason why not all changes arrive as invalidations. With several nodes it names
    /// the node.
    pub fn tracking_result(&self) -> Result<(), String> {
        self.topology.clone()?;
        let (map, ids) = self.serving.as_ref().ok_or("no node is known yet")?;
        let serving = self.nodes.iter().filter(|node| ids.contains(&node.id));
        let unwatched = serving.filter_map(|node| Some((node, node.watched.as_ref().err()?)));
        // A failure says more than an attempt that goes on.
        match unwatched.min_by_key(|(node, _)| node.is_new) {
            None => Ok(()),
            Some((_, reason)) if map.primaries().len() == 1 => Err(reason.clone()),
            Some((node, reason)) => Err(format!("{}: {reason}", node.primary.address)),
        }
    }

    /// Returns false as long as the first trackers connect. That is no loss of tracking.
    pub fn is_settled(&self) -> bool {
        let has_failed = |node: &KnownNode| !node.is_new && node.watched.is_err() && self.is_serving(node.id);
        self.was_tracked || self.serving.is_some() && self.topology.is_err() || self.nodes.iter().any(has_failed)
    }

    /// Returns true while all changes of all keys arrive as invalidations.
    pub fn is_tracked(&self) -> bool {
        self.is_tracked
    }

    /// Returns true if a value that is now requested from a node may be cached.
    ///
    /// While tracking is active, all serving nodes are watched. A node that does not serve yet
    /// answers for keys that another one redirects, and the loss of its tracker would change
    /// nothing. `asked` is true after `ASK`: the key is moving, and the node that it moves to may
    /// still give it back.
    pub fn may_cache(&self, id: NodeId, asked: bool) -> bool {
        !asked && (!self.is_tracked || self.is_serving(id))
    }

    /// Returns the node that serves a key; `None` if none does.
    pub fn route(&self, key: &[u8]) -> Option<NodeId> {
        let (map, ids) = self.serving.as_ref()?;
        ids.get(map.owner_of(key)?).copied()
    }

    /// Returns the node that serves all keys, if one does without slots.
    pub fn only_node(&self) -> Option<NodeId> {
        let (map, ids) = self.serving.as_ref()?;
        ids.first().copied().filter(|_| !map.has_slots())
    }

    /// Returns the node at an address, which may not serve keys yet.
    pub fn node_at(&self, address: &UpstreamAddress) -> Option<NodeId> {
        self.nodes.iter().find(|node| node.primary.address == *address).map(|node| node.id)
    }

    /// Returns the number of nodes that serve keys.
    pub fn serving_count(&self) -> usize {
        self.serving.as_ref().map_or(0, |(_, ids)| ids.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn primary(port: u16) -> Primary {
        Primary { address: UpstreamAddress::Tcp("h".into(), port), id: None }
    }

    /// Returns a map of primaries at these ports, with equal shares of the slots.
    fn map(ports: &[u16]) -> Arc<SlotMap> {
        let share = 16_384 / ports.len() as u16;
        let range = |(index, &port): (usize, &u16)| {
            let first = index as u16 * share;
            (first, if index + 1 == ports.len() { 16_383 } else { first + share - 1 }, primary(port))
        };
        Arc::new(SlotMap::of_cluster(ports.iter().enumerate().map(range), []))
    }

    fn lost() -> Result<(), String> {
        Err("gone".into())
    }

    /// Returns a set with an installed map, and the ids of its nodes.
    fn installed(ports: &[u16]) -> (NodeSet, Vec<NodeId>) {
        let mut set = NodeSet::new("no map yet".into());
        let ids = set.prepare(&map(ports)).into_iter().map(|(id, _)| id).collect();
        assert_eq!(set.install(&map(ports)), Installation { removed: vec![], invalidations: vec![] });
        (set, ids)
    }

    /// Tracking starts with the last node that is watched, and ends with the first that is not.
    #[test]
    fn tracking_needs_every_node() {
        let (mut set, ids) = installed(&[1, 2, 3]);
        assert_eq!(set.tracking_result(), Err("h:1: not connected yet".into()));
        assert_eq!([ids[0], ids[2]].map(|id| set.set_watched(id, Ok(()))), [None, None]);
        assert_eq!(set.tracking_result(), Err("h:2: not connected yet".into()));
        assert!(!set.is_settled());
        assert!(set.set_watched(ids[1], lost()).is_none() && set.is_settled());
        assert_eq!(set.set_watched(ids[1], Ok(())), Some(Invalidation::TrackingStarted));
        assert!(set.is_tracked());
        assert_eq!(set.set_watched(ids[0], lost()), Some(Invalidation::TrackingLost));
        assert_eq!(set.set_watched(ids[2], lost()), None, "tracking is lost once");
        assert_eq!([ids[0], ids[2]].map(|id| set.set_watched(id, Ok(()))), [None, Some(Invalidation::TrackingStarted)]);
        assert_eq!(set.set_topology(lost()), Some(Invalidation::TrackingLost));
        assert_eq!(set.tracking_result(), lost());
        assert_eq!(set.set_topology(Ok(())), Some(Invalidation::TrackingStarted));
    }

    /// A new map invalidates everything. Tracking goes on if its nodes are watched already.
    #[test]
    fn new_map_flushes() {
        let (mut set, ids) = installed(&[1, 2]);
        assert!(ids.iter().all(|&id| set.set_watched(id, Ok(())).is_none() || set.is_tracked()));
        let next = map(&[1, 3]);
        let added = set.prepare(&next);
        assert_eq!((added.len(), set.prepare(&next).len()), (1, 0));
        assert!(!set.is_watched(&next) && !set.is_installed(&next));
        assert_eq!(set.set_watched(added[0].0, Ok(())), None, "a node that serves no keys yet");
        assert!(set.is_watched(&next));
        let flush = |removed| Installation { removed, invalidations: vec![Invalidation::All] };
        assert_eq!(set.install(&next), flush(vec![ids[1]]));
        assert!(set.is_tracked() && set.is_installed(&next));
        // The node that is found again is not the one from before.
        let back = set.prepare(&map(&[1, 2]));
        assert!(back[0].0 > added[0].0);
        assert_eq!(
            set.install(&map(&[1, 2])).invalidations,
            [Invalidation::All, Invalidation::TrackingLost],
            "the new node is not watched"
        );
        assert_eq!(set.set_watched(ids[1], Ok(())), None, "a node that was removed");
        assert_eq!(set.set_watched(back[0].0, Ok(())), Some(Invalidation::TrackingStarted));
        let _ = set.set_topology(lost());
        set.prepare(&next);
        let _ = set.set_watched(set.node_at(&primary(3).address).expect("a node"), Ok(()));
        assert_eq!(set.install(&next).invalidations, [Invalidation::TrackingStarted], "it flushes too");
    }

    /// A redirected value is cached only if its changes arrive, and never after `ASK`.
    #[test]
    fn moving_keys_are_not_cached() {
        let (mut set, ids) = installed(&[1, 2]);
        assert!(set.may_cache(ids[0], false) && !set.may_cache(ids[0], true));
        ids.iter().for_each(|&id| _ = set.set_watched(id, Ok(())));
        assert!(set.may_cache(ids[0], false) && !set.may_cache(ids[0], true));
        let new = set.prepare(&map(&[1, 3]))[0].0;
        assert_eq!(set.set_watched(new, Ok(())), None);
        assert!(!set.may_cache(new, false), "a loss of its tracker would flush nothing");
        let _ = set.set_watched(new, lost());
        let _ = set.set_watched(ids[0], lost());
        assert!(set.may_cache(new, false), "without tracking the lifetime bounds the age");
    }

    /// Keys go to the node of their slot. A node that serves none is found by its address only.
    #[test]
    fn keys_go_to_their_node() {
        let mut set = NodeSet::new("no map yet".into());
        assert_eq!((set.route(b"foo"), set.serving_count()), (None, 0));
        assert_eq!(set.set_topology(Ok(())), None, "no node is watched");
        let ids: Vec<_> = set.prepare(&map(&[1, 2])).into_iter().map(|(id, _)| id).collect();
        assert_eq!((set.route(b"foo"), set.node_at(&primary(2).address)), (None, Some(ids[1])));
        assert_eq!(set.install(&map(&[1, 2])).removed, []);
        // Slots 12182 and 5061.
        assert_eq!((set.route(b"foo"), set.route(b"bar")), (Some(ids[1]), Some(ids[0])));
        assert_eq!((set.serving_count(), set.node_at(&primary(3).address)), (2, None));
    }
}
