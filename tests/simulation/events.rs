//! Random events: writes, cuts, outages, and changes of the topology.

use crate::client::{Client, random_key};
use crate::cluster::{KEY_SLOTS, Mode, NodeState};
use crate::moves::Fate;
use crate::random::Random;
use crate::versions::{KEYS, NAMES};
use crate::world::{CLIENTS, World};
use segment_redis_proxy::types::{Invalidation, Millis};

/// Weights of the events in `change_topology`, in its order. The first three occur in clusters
/// only.
const TOPOLOGY_WEIGHTS: [u64; 8] = [40, 7, 7, 7, 6, 16, 3, 5];

/// Returns the weights of one seed. In each seed some events are frequent, and others never occur.
pub fn random_topology_weights(mode: Mode, random: &mut Random) -> Vec<u64> {
    let mut weights: Vec<u64> = TOPOLOGY_WEIGHTS.iter().map(|weight| weight * random.one_of(&[0, 1, 1, 4])).collect();
    if mode != Mode::Cluster {
        weights[..3].fill(0);
    }
    // Streams start again, and polls succeed again.
    (weights[5], weights[7]) = (TOPOLOGY_WEIGHTS[5], TOPOLOGY_WEIGHTS[7]);
    weights
}

fn invalidation_of(key: usize) -> Invalidation {
    Invalidation::Key(NAMES[key].as_bytes().to_vec())
}

impl World {
    /// Produces one random event, or lets time pass.
    pub fn produce_event(&mut self) -> Result<(), String> {
        if self.cluster.mode != Mode::Single && self.random.percent(self.topology_event_percent) {
            self.change_topology();
            // Changes that belong together come at once.
            while self.random.percent(40) {
                self.change_topology();
            }
            return Ok(());
        }
        if let Some((_, slot)) = self.planned_undo.take_if(|(due, _)| *due <= self.now) {
            self.undo_change(slot);
        }
        let client = self.random.below(CLIENTS as u64) as usize;
        if self.cluster.mode != Mode::Single && self.random.percent(30) {
            self.clients[client].send_requests(&mut self.random);
        }
        let key = random_key(self.favourite, &mut self.random);
        match self.random.below(100) {
            0..25 => self.clients[client].send_requests(&mut self.random),
            25..30 => self.reset_client(client),
            30..45 => self.write_key(key),
            45..47 => self.flush_node(),
            47..49 => self.cut_tracker(),
            49..55 => self.start_trackers(),
            55 => self.start_outage(),
            56..62 => self.end_outages(),
            62..64 => self.send_change(self.cluster.holder_of(key), key),
            _ => {
                let time = match self.random.below(4) {
                    0 => 0,
                    1 => self.random.below(5),
                    2 => self.random.below(60),
                    // Exactly until the next event.
                    _ => self.next_event_time().map_or(0, |time| time.saturating_sub(self.now)),
                };
                self.advance_to(self.now + time)?;
            }
        }
        Ok(())
    }

    /// Lets a client write a key, mostly at the node that holds it.
    pub fn write_key(&mut self, key: usize) {
        let former = self.cluster.former_owner_of(key).filter(|_| self.random.percent(20));
        let node = former.unwrap_or_else(|| self.cluster.holder_of(key));
        if self.cluster.nodes[node].state != NodeState::Running {
            return;
        }
        self.record(format_args!("k{key} changes at node {node}"));
        let value = match self.random.percent(20) {
            true => (None, Millis::MAX),
            false => self.cluster.versions.random_value(key, self.now, &mut self.random),
        };
        self.change_key(node, key, value);
        self.send_change(node, key);
    }

    fn change_key(&mut self, node: usize, key: usize, value: (Option<String>, Millis)) {
        if self.cluster.holder_of(key) == node {
            self.floors.add_change(key, self.now, self.moment);
        }
        self.cluster.put(node, key, value, self.moment);
    }

    /// Lets a node report a change of a key.
    pub fn send_change(&mut self, node: usize, key: usize) {
        self.send_invalidation(node, &invalidation_of(key));
    }

    fn send_invalidation(&mut self, node: usize, invalidation: &Invalidation) {
        for tracker in self.trackers.iter_mut().filter(|tracker| tracker.node == node) {
            tracker.send(invalidation.clone(), self.now, &mut self.random);
        }
    }

    /// Deletes all keys of one node.
    fn flush_node(&mut self) {
        let node = self.random.below(self.cluster.nodes.len() as u64) as usize;
        if self.cluster.nodes[node].state != NodeState::Running {
            return;
        }
        self.record(format_args!("flush of node {node}"));
        for key in 0..KEYS {
            if self.cluster.nodes[node].contents[key].is_some() {
                self.change_key(node, key, (None, Millis::MAX));
            }
        }
        self.send_invalidation(node, &Invalidation::All);
    }

    fn cut_tracker(&mut self) {
        if !self.trackers.is_empty() {
            // Often that of a new node.
            let newest = Some(self.trackers.len() - 1).filter(|_| self.random.percent(30));
            let index = newest.unwrap_or_else(|| self.random.below(self.trackers.len() as u64) as usize);
            let node = self.trackers[index].node;
            self.record(format_args!("cut of the tracker of node {node}"));
            let is_silent = self.random.percent(30);
            let was_connected = self.trackers[index].cut(is_silent, self.now, &mut self.random);
            self.counts.cuts += u64::from(was_connected);
        }
    }

    pub fn cut_trackers_of(&mut self, node: usize, silent_percent: u64) {
        for tracker in self.trackers.iter_mut().filter(|tracker| tracker.node == node) {
            let is_silent = self.random.percent(silent_percent);
            self.counts.cuts += u64::from(tracker.cut(is_silent, self.now, &mut self.random));
        }
    }

    /// Lets all trackers that are not connected try to connect, or one of them.
    fn start_trackers(&mut self) {
        self.record(format_args!("start of tracking"));
        let single = (self.random.percent(30)).then(|| self.random.below(self.trackers.len().max(1) as u64) as usize);
        let now = self.now;
        for (index, tracker) in self.trackers.iter_mut().enumerate() {
            if !tracker.is_connected && single.is_none_or(|single| single == index) {
                tracker.connects_at = Some(now);
            }
        }
    }

    fn start_outage(&mut self) {
        let node = self.random.below(self.cluster.nodes.len() as u64) as usize;
        self.record(format_args!("outage of node {node}"));
        self.cluster.nodes[node].has_outage = true;
        self.cut_trackers_of(node, 20);
        self.topology.wake(self.now);
    }

    pub fn end_outages(&mut self) {
        self.cluster.nodes.iter_mut().for_each(|node| node.has_outage = false);
    }

    /// Replaces a client by a new one, as after a reset of its connection.
    fn reset_client(&mut self, slot: usize) {
        self.record(format_args!("client {slot} is reset"));
        self.counts.resets += 1;
        self.replace_client(slot);
    }

    pub fn replace_client(&mut self, slot: usize) {
        self.last_connection_id += 1;
        let gone = self.clients[slot].connection.client_id(slot);
        self.read_through.set_client_tracking(gone, false);
        let (id, random) = (self.last_connection_id, &mut self.random);
        self.clients[slot] = Client::new(id, self.needs_password, self.has_tracking, self.favourite, random);
    }

    fn change_topology(&mut self) {
        if self.random.percent(60) {
            self.last_slot = self.random.below(KEY_SLOTS as u64) as usize;
        }
        let slot = self.last_slot;
        match self.random.weighted(&self.topology_weights) {
            0 => self.migrate(),
            1 => self.take_over(slot),
            2 => self.undo_change(slot),
            3 => self.fail_over(self.cluster.owners[slot]),
            4 => self.cut_tracker(),
            5 => self.start_trackers(),
            6 => {
                self.record(format_args!("polls of the topology fail"));
                self.topology.has_outage = true;
            }
            _ => {
                self.record(format_args!("polls of the topology succeed"));
                self.topology.has_outage = false;
            }
        }
    }

    /// Returns a node that may get a slot. It is not the owner in the last map that the proxy has
    /// learned: two changes between two polls that cancel each other show nowhere.
    fn random_target(&mut self, slot: usize) -> Option<usize> {
        let target = self.cluster.random_target(slot, &mut self.random)?;
        // A slot has the number of its first key.
        (!self.topology.shows_owner(&self.set, &self.cluster, slot, target)).then_some(target)
    }

    /// Begins, continues or ends the migration of a slot.
    fn migrate(&mut self) {
        let slots: Vec<usize> = (0..KEY_SLOTS).filter(|&slot| self.cluster.migration_of(slot).is_some()).collect();
        let slot = match slots.is_empty() || self.random.percent(20) {
            true => self.random.below(KEY_SLOTS as u64) as usize,
            false => self.random.one_of(&slots),
        };
        if !self.cluster.can_migrate(slot) {
            return;
        }
        let Some(target) = self.cluster.migration_of(slot) else {
            if let Some(target) = self.random_target(slot) {
                self.record(format_args!("slot {slot} begins to move to node {target}"));
                self.cluster.begin_migration(slot, target, self.moment);
            }
            return;
        };
        let keys = self.cluster.unmoved_keys(slot);
        let ends = keys.is_empty() || self.random.percent(30);
        let moved = if ends { keys } else { vec![self.random.one_of(&keys)] };
        let source = self.cluster.owners[slot];
        for key in moved {
            self.record(format_args!("k{key} moves from node {source} to node {target}"));
            self.cluster.move_key(key, target, self.moment);
            self.send_change(target, key);
            self.send_change(source, key);
        }
        if ends {
            self.record(format_args!("slot {slot} has moved to node {target}"));
            self.counts.migrations += 1;
            self.cluster.end_migration(slot, target, (self.now, self.moment), &mut self.random);
        }
    }

    fn take_over(&mut self, slot: usize) {
        let migrates_to = self.cluster.migration_of(slot);
        let Some(winner) = migrates_to.or_else(|| self.random_target(slot)) else { return };
        if self.cluster.nodes[winner].state == NodeState::Running {
            self.take_slot_over(slot, winner);
        }
    }

    fn take_slot_over(&mut self, slot: usize, winner: usize) {
        // Often undone soon, perhaps between two polls or while a map waits for its trackers.
        if self.random.percent(40) {
            let delay = self.random.below(self.topology.interval + self.topology.grace);
            self.planned_undo = Some((self.now + delay, slot));
        }
        self.record(format_args!("node {winner} takes slot {slot} over"));
        self.counts.takeovers += 1;
        for key in self.cluster.take_over(slot, winner, (self.now, self.moment), &mut self.random) {
            self.floors.add_owner_change(key, self.now, self.moment);
        }
    }

    /// Lets the owner of a slot in the installed map take it over again. The proxy has learned that
    /// it was not the owner in between.
    fn undo_change(&mut self, slot: usize) {
        let name = NAMES[slot].as_bytes();
        let Some(owner) = self.set.route(name).and_then(|id| self.node_of(id)) else { return };
        let is_shown = self.topology.shows_owner(&self.set, &self.cluster, slot, owner);
        let is_owner = self.cluster.owners[slot] == owner;
        let is_running = self.cluster.nodes[owner].state == NodeState::Running;
        if !is_shown && !is_owner && is_running && self.cluster.migration_of(slot).is_none() {
            self.take_slot_over(slot, owner);
        }
    }

    fn fail_over(&mut self, old: usize) {
        if !self.cluster.can_fail_over(old) {
            return;
        }
        let fate = self.random.one_of(&[Fate::Gone, Fate::Hung, Fate::Isolated, Fate::Isolated]);
        self.record(format_args!("failover of node {old}: {fate:?}"));
        let keys: Vec<usize> = self.cluster.keys_of_owner(old).collect();
        let (_, lost) = self.cluster.fail_over(old, fate, (self.now, self.moment), &mut self.random);
        keys.into_iter().for_each(|key| self.floors.add_owner_change(key, self.now, self.moment));
        self.counts.failovers += 1;
        self.counts.lost_writes += lost.len() as u64;
        match fate {
            // The kernel of a stopped process keeps its connections.
            Fate::Hung => (),
            Fate::Gone => self.cut_trackers_of(old, 30),
            Fate::Isolated if self.random.percent(50) => self.cut_trackers_of(old, 50),
            Fate::Isolated => (),
        }
        if self.random.percent(30) {
            self.topology.wake(self.now);
        }
    }
}
