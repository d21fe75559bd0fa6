//! Changes of the topology: slots that move with or without their keys, and failovers.

use crate::cluster::{Cluster, KEY_SLOTS, MAX_NODES, Mode, NodeState, slot_index};
use crate::random::Random;
use crate::versions::KEYS;
use crate::world::Moment;
use segment_redis_proxy::types::Millis;

/// Longest time until a node learns the owner of a slot.
const MAX_GOSSIP_MS: Millis = 60;

/// Fate of a primary that a replica replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Gone,
    Hung,
    /// It goes on answering, until it learns the change.
    Isolated,
}

fn keys_of(slot: usize) -> impl Iterator<Item = usize> {
    (0..KEYS).filter(move |&key| slot_index(key) == slot)
}

impl Cluster {
    fn is_running(&self, node: usize) -> bool {
        self.nodes[node].state == NodeState::Running
    }

    /// Returns a running node that may get a slot. Now and then it is a new one.
    pub fn random_target(&mut self, slot: usize, random: &mut Random) -> Option<usize> {
        if self.nodes.len() < MAX_NODES && random.percent(25) {
            return Some(self.add_node());
        }
        let node = random.below(self.nodes.len() as u64) as usize;
        self.can_get(node, slot).then_some(node)
    }

    /// Returns true if a running node may get a slot: it knows that another one is the owner.
    pub fn can_get(&self, node: usize, slot: usize) -> bool {
        let owner = self.owners[slot];
        node != owner && self.nodes[node].owners[slot] == owner && self.is_running(node)
    }

    /// Returns the node to which the keys of a slot are being moved.
    pub fn migration_of(&self, slot: usize) -> Option<usize> {
        self.nodes[self.owners[slot]].migrates_to[slot]
    }

    /// Returns true if both nodes of a migration run.
    pub fn can_migrate(&self, slot: usize) -> bool {
        self.is_running(self.owners[slot]) && self.migration_of(slot).is_none_or(|target| self.is_running(target))
    }

    /// Begins to move the keys of a slot to another node.
    pub fn begin_migration(&mut self, slot: usize, target: usize, moment: Moment) {
        let source = self.owners[slot];
        self.nodes[source].migrates_to[slot] = Some(target);
        self.nodes[target].imports[slot] = true;
        for key in keys_of(slot) {
            let version = self.nodes[source].contents[key];
            if version.is_some_and(|number| self.versions.keys[key][number].value.is_none()) {
                self.replace(target, key, version, moment);
                self.replace(source, key, None, moment);
            }
        }
    }

    /// Returns the keys of the slots of an owner.
    pub fn keys_of_owner(&self, owner: usize) -> impl Iterator<Item = usize> {
        (0..KEYS).filter(move |&key| self.owners[slot_index(key)] == owner)
    }

    /// Returns the keys of a slot that its owner has not moved yet.
    pub fn unmoved_keys(&self, slot: usize) -> Vec<usize> {
        keys_of(slot).filter(|&key| self.nodes[self.owners[slot]].contents[key].is_some()).collect()
    }

    /// Moves a key to another node with its present version.
    pub fn move_key(&mut self, key: usize, target: usize, moment: Moment) {
        let source = self.owners[slot_index(key)];
        let version = self.nodes[source].contents[key];
        self.replace(target, key, version, moment);
        self.replace(source, key, None, moment);
    }

    /// Makes another node the owner of a slot. All nodes learn it later.
    fn set_owner(&mut self, slot: usize, owner: usize, (now, moment): (Millis, Moment), random: &mut Random) {
        let former = std::mem::replace(&mut self.owners[slot], owner);
        self.nodes[former].lost_at[slot] = moment;
        self.nodes[owner].owners[slot] = owner;
        self.nodes[owner].imports[slot] = false;
        self.nodes[owner].migrates_to[slot] = None;
        for node in (0..self.nodes.len()).filter(|&node| node != owner) {
            let delay = if random.percent(30) { 0 } else { random.below(MAX_GOSSIP_MS) };
            self.news.push((now + delay, node, slot));
        }
        self.map = None;
    }

    /// Ends a migration after the last key was moved.
    pub fn end_migration(&mut self, slot: usize, target: usize, time: (Millis, Moment), random: &mut Random) {
        self.set_owner(slot, target, time, random);
    }

    /// Makes a node the owner of a slot without moving keys. It has other contents. Returns the
    /// keys that it has not got from the former owner.
    pub fn take_over(
        &mut self,
        slot: usize,
        winner: usize,
        (now, moment): (Millis, Moment),
        random: &mut Random,
    ) -> Vec<usize> {
        let lost: Vec<usize> = keys_of(slot).filter(|&key| self.holder_of(key) != winner).collect();
        for &key in &lost {
            if let Some(old) = self.current(key) {
                self.versions.keys[key][old].dropped = moment;
            }
            let is_missing = random.percent(50);
            let value = if is_missing { (None, Millis::MAX) } else { self.versions.random_value(key, now, random) };
            let number = self.versions.push(key, value, None, moment);
            self.replace(winner, key, Some(number), moment);
        }
        self.set_owner(slot, winner, (now, moment), random);
        lost
    }

    /// Returns true if a replica can replace a node: it owns slots, knows all that it has lost, and
    /// takes part in no migration.
    pub fn can_fail_over(&self, index: usize) -> bool {
        let node = &self.nodes[index];
        let knows_losses = (0..KEY_SLOTS).all(|slot| node.owners[slot] != index || self.owners[slot] == index);
        let migrates = (0..KEY_SLOTS).any(|slot| node.migrates_to[slot].is_some() || node.imports[slot]);
        let owns = self.owners.contains(&index) || self.bases.contains(&index);
        self.nodes.len() < MAX_NODES && owns && knows_losses && !migrates && node.state != NodeState::Gone
    }

    /// Replaces a primary by a replica at another address, which may lack the last write of each
    /// key. Returns the new node and the keys with a lost write.
    pub fn fail_over(
        &mut self,
        old: usize,
        fate: Fate,
        (now, moment): (Millis, Moment),
        random: &mut Random,
    ) -> (usize, Vec<usize>) {
        let (new, mut lost) = (self.add_node(), Vec::new());
        let loss_percent = random.one_of(&[0, 30, 80]);
        for key in self.keys_of_owner(old).collect::<Vec<_>>() {
            let Some(number) = self.nodes[old].contents[key] else { continue };
            let before = self.versions.keys[key][number].before.filter(|_| random.percent(loss_percent));
            let replicated = before.map(|before| self.versions.value_of(key, before));
            let version = match replicated.filter(|&(_, expires)| expires > now) {
                None => number,
                Some(value) => {
                    lost.push(key);
                    self.versions.keys[key][number].dropped = moment;
                    self.versions.push(key, value, before, moment)
                }
            };
            self.replace(new, key, Some(version), moment);
        }
        self.bases.iter_mut().filter(|base| **base == old).for_each(|base| *base = new);
        for slot in (0..KEY_SLOTS).filter(|&slot| self.owners[slot] == old).collect::<Vec<_>>() {
            self.set_owner(slot, new, (now, moment), random);
        }
        self.map = None;
        let delay = random.one_of(&[1, 10, 50, 200]);
        match fate {
            Fate::Gone => self.remove_node(old, moment),
            Fate::Hung => {
                self.nodes[old].state = NodeState::Hung { until: now + delay };
                self.delay_news(old, now + delay + random.below(3));
            }
            Fate::Isolated => self.delay_news(old, now + delay),
        }
        (new, lost)
    }

    /// Lets a node learn all changes at this time.
    fn delay_news(&mut self, node: usize, due: Millis) {
        self.news.iter_mut().filter(|news| news.1 == node).for_each(|news| news.0 = due);
    }

    fn remove_node(&mut self, node: usize, moment: Moment) {
        self.nodes[node].state = NodeState::Gone;
        (0..KEYS).for_each(|key| self.replace(node, key, None, moment));
    }

    /// Resumes hung nodes, and lets nodes learn the owners of slots. Returns the former primaries
    /// that are replicas now.
    pub fn run_news(&mut self, now: Millis, moment: Moment) -> Vec<usize> {
        let mut demoted = Vec::new();
        for node in &mut self.nodes {
            if matches!(node.state, NodeState::Hung { until } if until <= now) {
                node.state = NodeState::Running;
            }
        }
        let (due, later) = std::mem::take(&mut self.news).into_iter().partition(|&(due, ..)| due <= now);
        self.news = later;
        for (_, index, slot) in Vec::into_iter(due) {
            let owner = self.owners[slot];
            let node = &mut self.nodes[index];
            let has_lost = node.owners[slot] == index && owner != index;
            node.owners[slot] = owner;
            if has_lost {
                node.migrates_to[slot] = None;
                // The node deletes these keys without a message.
                keys_of(slot).for_each(|key| self.replace(index, key, None, moment));
                demoted.push(index);
            }
        }
        demoted.retain(|&node| self.mode == Mode::Sentinel && self.is_running(node));
        demoted.dedup();
        demoted.iter().for_each(|&node| self.remove_node(node, moment));
        demoted
    }
}
