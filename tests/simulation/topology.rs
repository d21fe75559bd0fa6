//! The topology thread: learns maps, prepares their nodes and installs them.

use crate::cluster::{Cluster, Mode, NodeState};
use crate::link::Step;
use crate::random::Random;
use crate::tracker::Tracker;
use crate::versions::NAMES;
use crate::world::World;
use segment_redis_proxy::backend::{Installation, NodeSet, SlotMap};
use segment_redis_proxy::types::Millis;
use std::sync::Arc;

/// Shortest time between two polls.
const MIN_POLL_GAP: Millis = 2;

/// State of the topology thread.
pub struct Topology {
    /// Time between two polls at most.
    pub interval: Millis,
    /// Longest time that a new map waits for the trackers of its nodes.
    pub grace: Millis,
    /// Time without an answer after which the topology counts as unknown.
    unknown_after: Millis,
    next_poll: Millis,
    last_poll: Millis,
    last_answer: Millis,
    /// Map that waits for its trackers, and the time at which the wait ends.
    pending: Option<(Arc<SlotMap>, Millis)>,
    is_unknown: bool,
    /// True if the proxy reaches no sentinel or no node for its polls.
    pub has_outage: bool,
}

impl Topology {
    pub fn new(mode: Mode, now: Millis, random: &mut Random) -> Topology {
        let interval = random.one_of(&[5, 30, 100, 300]);
        let first_poll = if mode == Mode::Single || random.percent(50) { now } else { now + random.below(20) };
        Topology {
            interval,
            grace: random.one_of(&[0, 3, 20, 100, 200]),
            unknown_after: interval * random.between(1, 4),
            next_poll: first_poll,
            last_poll: now,
            last_answer: now,
            pending: None,
            is_unknown: false,
            has_outage: false,
        }
    }

    /// Returns the longest time from a change of the topology to the installation of its map, and a
    /// millisecond more. The next poll comes after the interval, and after the installation of the
    /// map that the last one found.
    pub fn bound_ms(&self) -> Millis {
        self.interval.max(self.grace) + self.grace + 1
    }

    /// Returns the same if no poll may be answered: then the loss of tracking replaces the map.
    pub fn unknown_bound_ms(&self) -> Millis {
        self.unknown_after + self.bound_ms()
    }

    /// Polls as soon as the gap between two polls allows it.
    pub fn wake(&mut self, now: Millis) {
        if self.next_poll != Millis::MAX {
            self.next_poll = self.next_poll.min(now.max(self.last_poll + MIN_POLL_GAP));
        }
    }

    /// Returns true if a key would have this owner in the map that was learned last.
    pub fn shows_owner(&self, set: &NodeSet, cluster: &Cluster, key: usize, owner: usize) -> bool {
        let name = NAMES[key].as_bytes();
        let address = cluster.address_of(owner);
        match &self.pending {
            Some((map, _)) => map.owner_of(name).is_some_and(|index| map.primaries()[index].address == address),
            None => set.route(name).is_some_and(|id| set.node_at(&address) == Some(id)),
        }
    }

    pub fn next_event(&self) -> Option<Millis> {
        let poll = Some(self.next_poll).filter(|&at| at != Millis::MAX && self.pending.is_none());
        poll.into_iter().chain(self.pending.as_ref().map(|&(_, deadline)| deadline)).min()
    }
}

/// Returns true if a poll is answered.
fn answers_polls(cluster: &Cluster) -> bool {
    cluster.mode != Mode::Cluster
        || cluster.nodes.iter().any(|node| node.state == NodeState::Running && !node.has_outage)
}

impl World {
    /// Polls, and installs the pending map, if this is due.
    pub fn run_topology(&mut self) {
        // The thread polls again once the map that it has found is installed.
        if self.topology.next_poll <= self.now && self.topology.pending.is_none() {
            self.topology.last_poll = self.now;
            self.topology.next_poll = match self.cluster.mode {
                Mode::Single => Millis::MAX,
                _ => self.now + self.topology.interval,
            };
            if self.topology.has_outage || !answers_polls(&self.cluster) {
                self.miss_poll();
            } else {
                self.learn_map();
            }
        }
        let pending = self
            .topology
            .pending
            .take_if(|(map, deadline)| !self.set.is_tracked() || self.set.is_watched(map) || *deadline <= self.now);
        if let Some((map, _)) = pending {
            self.install(&map);
        }
    }

    fn miss_poll(&mut self) {
        self.floors.postpone_owner_changes(self.now);
        let silence = self.now - self.topology.last_answer;
        if silence >= self.topology.unknown_after && !self.topology.is_unknown {
            self.record(format_args!("the topology is unknown"));
            self.topology.is_unknown = true;
            let invalidation = self.set.set_topology(Err("no node answers".into()));
            self.counts.topology_losses += u64::from(invalidation.is_some());
            self.inbox.extend(invalidation);
        }
    }

    fn learn_map(&mut self) {
        self.topology.last_answer = self.now;
        let map = self.cluster.map();
        if !self.set.is_installed(&map) {
            self.prepare(&map);
            self.topology.pending = Some((map, self.now + self.topology.grace));
        } else if std::mem::take(&mut self.topology.is_unknown) {
            self.record(format_args!("the topology is known again"));
            let invalidation = self.set.set_topology(Ok(()));
            self.inbox.extend(invalidation);
        }
        self.route_parked();
    }

    fn prepare(&mut self, map: &SlotMap) {
        for (id, primary) in self.set.prepare(map) {
            let Some(node) = self.cluster.node_of(&primary) else { continue };
            self.record(format_args!("node {node} is prepared as {id:?}"));
            self.known_nodes.push((id, node));
            if self.has_tracking {
                let delay = self.random.between(0, self.delays.connect);
                // Without tracking at first, as in seeds with one node, another event starts it.
                let is_prompt = self.cluster.mode != Mode::Single && self.random.percent(80);
                let connects_at = is_prompt.then_some(self.now + delay);
                self.trackers.push(Tracker::new(id, node, connects_at, self.delays, &mut self.random));
            }
        }
    }

    fn install(&mut self, map: &Arc<SlotMap>) {
        let is_first = self.set.serving_count() == 0;
        let Installation { removed, invalidations } = self.set.install(map);
        self.record(format_args!("a map is installed: {removed:?} removed, {invalidations:?}"));
        self.topology.is_unknown = false;
        self.counts.map_changes += u64::from(!is_first);
        self.inbox.extend(invalidations);
        self.trackers.retain(|tracker| !removed.contains(&tracker.id));
        for read in &mut self.link.reads {
            if matches!(read.step, Step::Send) && read.node.is_some_and(|id| removed.contains(&id)) {
                self.counts.rerouted += 1;
                read.node = self.set.route(NAMES[read.key].as_bytes());
                (read.is_asking, read.due) = (false, self.now);
                if read.node.is_none() {
                    (read.step, read.due) = (Step::Parked, read.expires_at.max(self.now));
                }
            }
        }
        self.route_parked();
    }

    /// Routes all parked jobs again.
    fn route_parked(&mut self) {
        for read in self.link.reads.iter_mut().filter(|read| matches!(read.step, Step::Parked)) {
            if let Some(node) = self.set.route(NAMES[read.key].as_bytes()) {
                (read.node, read.is_asking, read.step, read.due) = (Some(node), false, Step::Send, self.now);
            }
        }
    }
}
