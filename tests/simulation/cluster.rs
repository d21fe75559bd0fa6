//! Model of the nodes of Redis: one server, a primary that sentinels name, or a cluster.
//!
//! A node replies by its own view of the slots. A former owner that does not know yet that it has
//! lost a slot goes on answering with its own contents.

use crate::random::Random;
use crate::versions::{KEYS, NAMES, Versions};
use crate::world::Moment;
use segment_redis_proxy::backend::{Primary, SlotMap, slot_of};
use segment_redis_proxy::types::Millis;
use segment_redis_proxy::upstream::UpstreamAddress;
use std::sync::Arc;

/// Number of hash slots that have keys.
pub const KEY_SLOTS: usize = 4;

/// Most nodes of one seed, with those that failovers add.
pub const MAX_NODES: usize = 12;

/// Returns the index of the hash slot of a key.
pub fn slot_index(key: usize) -> usize {
    key % KEY_SLOTS
}

/// Kind of deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Single,
    /// One primary, which is replaced by another one at another address.
    Sentinel,
    Cluster,
}

/// State of the process of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    Running,
    /// The process is stopped. Then it replies to what it has received.
    Hung {
        until: Millis,
    },
    Gone,
}

/// One server.
#[derive(Clone)]
pub struct Node {
    pub port: u16,
    pub state: NodeState,
    /// True if the proxy cannot reach the node.
    pub has_outage: bool,
    /// Version of each key. `None` if the node has no reply of its own for the key.
    pub contents: [Option<usize>; KEYS],
    /// Owner of each slot, as far as the node knows.
    pub owners: [usize; KEY_SLOTS],
    /// Node to which the node moves the keys of a slot.
    pub migrates_to: [Option<usize>; KEY_SLOTS],
    /// True for a slot with keys that are being moved to the node.
    pub imports: [bool; KEY_SLOTS],
    /// Moment at which the node lost the slot.
    pub lost_at: [Moment; KEY_SLOTS],
}

impl Node {
    fn new(port: u16, owners: [usize; KEY_SLOTS]) -> Node {
        Node {
            port,
            state: NodeState::Running,
            has_outage: false,
            contents: [None; KEYS],
            owners,
            migrates_to: [None; KEY_SLOTS],
            imports: [false; KEY_SLOTS],
            lost_at: [0; KEY_SLOTS],
        }
    }
}

/// Reply of a node to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Number of the version, which may be that of a missing key.
    Version(usize),
    /// Redirections, with the number of the other node.
    Moved(usize),
    Ask(usize),
    /// No reply, because the process has ended.
    Gone,
    /// No reply before this time.
    Hung(Millis),
}

/// All nodes, with those of the past.
pub struct Cluster {
    pub mode: Mode,
    pub versions: Versions,
    pub nodes: Vec<Node>,
    /// Owner of each slot.
    pub owners: [usize; KEY_SLOTS],
    /// Node that owns other slots too, for each node at the start. Empty if none does.
    pub bases: Vec<usize>,
    /// Times at which a node learns the owner of a slot.
    pub news: Vec<(Millis, usize, usize)>,
    /// Present map, once it was needed.
    pub map: Option<Arc<SlotMap>>,
}

impl Cluster {
    pub fn new(mode: Mode, random: &mut Random) -> Cluster {
        let count = if mode == Mode::Cluster { random.between(1, 4) as usize } else { 1 };
        let owners = std::array::from_fn(|_| random.below(count as u64) as usize);
        let mut nodes: Vec<Node> = (0..count).map(|index| Node::new(index as u16 + 1, owners)).collect();
        for key in 0..KEYS {
            nodes[owners[slot_index(key)]].contents[key] = Some(0);
        }
        let bases = if random.percent(50) { (0..count).collect() } else { Vec::new() };
        Cluster { mode, versions: Versions::new(), nodes, owners, bases, news: Vec::new(), map: None }
    }

    /// Adds a node without slots and returns its number.
    pub fn add_node(&mut self) -> usize {
        self.nodes.push(Node::new(self.nodes.len() as u16 + 1, self.owners));
        self.nodes.len() - 1
    }

    pub fn address_of(&self, node: usize) -> UpstreamAddress {
        UpstreamAddress::Tcp("h".into(), self.nodes[node].port)
    }

    fn primary(&self, node: usize) -> Primary {
        let id = (self.mode == Mode::Cluster).then(|| self.nodes[node].port.to_string().into());
        Primary { address: self.address_of(node), id }
    }

    /// Returns the node of a primary in a map.
    pub fn node_of(&self, primary: &Primary) -> Option<usize> {
        (0..self.nodes.len()).find(|&node| self.address_of(node) == primary.address)
    }

    /// Returns the present map.
    pub fn map(&mut self) -> Arc<SlotMap> {
        if let Some(map) = &self.map {
            return Arc::clone(map);
        }
        let map = Arc::new(match self.mode {
            Mode::Single | Mode::Sentinel => SlotMap::of_one(self.primary(self.owners[0])),
            Mode::Cluster => {
                let key_slots = (0..KEY_SLOTS).map(|index| (slot_of(NAMES[index].as_bytes()), self.owners[index]));
                let bases = self.bases.iter().enumerate().map(|(slot, &node)| (slot as u16, node));
                SlotMap::of_cluster(bases.chain(key_slots).map(|(slot, node)| (slot, slot, self.primary(node))), [])
            }
        });
        self.map = Some(Arc::clone(&map));
        map
    }

    /// Returns the node that holds the present version of a key: the owner of its slot, or the node
    /// that the key was moved to.
    pub fn holder_of(&self, key: usize) -> usize {
        let slot = slot_index(key);
        let owner = self.owners[slot];
        match self.nodes[owner].migrates_to[slot] {
            Some(target) if self.nodes[owner].contents[key].is_none() => target,
            _ => owner,
        }
    }

    /// Returns the present version of a key.
    pub fn current(&self, key: usize) -> Option<usize> {
        self.nodes[self.holder_of(key)].contents[key]
    }

    /// Returns a node that answers for a key, although it has lost the slot.
    pub fn former_owner_of(&self, key: usize) -> Option<usize> {
        let slot = slot_index(key);
        (0..self.nodes.len()).find(|&node| {
            self.owners[slot] != node
                && self.nodes[node].owners[slot] == node
                && self.nodes[node].contents[key].is_some()
                && self.nodes[node].state == NodeState::Running
        })
    }

    /// Returns the reply of a node to a command for a key, after `ASKING` or not.
    pub fn answer(&self, index: usize, key: usize, is_asking: bool) -> Answer {
        let (node, slot) = (&self.nodes[index], slot_index(key));
        match node.state {
            NodeState::Gone => return Answer::Gone,
            NodeState::Hung { until } => return Answer::Hung(until),
            NodeState::Running => (),
        }
        let believes_to_own = node.owners[slot] == index;
        match (node.contents[key], node.migrates_to[slot]) {
            (Some(number), _) if believes_to_own || (is_asking && node.imports[slot]) => Answer::Version(number),
            (None, Some(target)) if believes_to_own => Answer::Ask(target),
            _ => Answer::Moved(node.owners[slot]),
        }
    }

    /// Gives a key another version at a node. The old one ends when no node has it any more.
    pub fn replace(&mut self, node: usize, key: usize, version: Option<usize>, moment: Moment) {
        let old = std::mem::replace(&mut self.nodes[node].contents[key], version);
        if let Some(old) = old.filter(|_| self.nodes.iter().all(|node| node.contents[key] != old)) {
            self.versions.keys[key][old].until = moment;
        }
    }

    /// Changes a key at a node: a value with its expiry, or none.
    pub fn put(&mut self, node: usize, key: usize, value: (Option<String>, Millis), moment: Moment) {
        let slot = slot_index(key);
        let is_deleted = value.0.is_none();
        let old = self.nodes[node].contents[key];
        let target = self.nodes[node].migrates_to[slot];
        if self.holder_of(key) != node {
            // A former owner. What is written to it was lost from the start.
            if is_deleted && target.is_some() {
                return self.replace(node, key, None, moment);
            }
            let number = self.versions.push(key, value, old, moment);
            self.versions.keys[key][number].dropped = self.nodes[node].lost_at[slot];
            return self.replace(node, key, Some(number), moment);
        }
        if let Some(old) = old {
            self.versions.keys[key][old].dropped = moment;
        }
        let number = self.versions.push(key, value, old, moment);
        match target {
            // The node that the slot moves to replies for keys that are missing here.
            Some(target) if is_deleted => {
                self.replace(target, key, Some(number), moment);
                self.replace(node, key, None, moment);
            }
            _ => self.replace(node, key, Some(number), moment),
        }
    }

    /// Deletes the keys that have expired. Returns them with their nodes.
    pub fn expire(&mut self, now: Millis, moment: Moment) -> Vec<(usize, usize)> {
        let mut expired = Vec::new();
        for key in 0..KEYS {
            for node in 0..self.nodes.len() {
                let expires = self.expiry(node, key);
                if expires.is_some_and(|expires| expires <= now) {
                    self.put(node, key, (None, Millis::MAX), moment);
                    expired.push((node, key));
                }
            }
        }
        expired
    }

    fn expiry(&self, node: usize, key: usize) -> Option<Millis> {
        let number = self.nodes[node].contents[key]?;
        Some(self.versions.keys[key][number].expires).filter(|&expires| expires != Millis::MAX)
    }

    /// Returns the time of the next expiry, of the next news, or of the end of a hung state.
    pub fn next_event(&self) -> Option<Millis> {
        let expiries = (0..self.nodes.len()).flat_map(|node| (0..KEYS).filter_map(move |key| self.expiry(node, key)));
        let hung = self.nodes.iter().filter_map(|node| match node.state {
            NodeState::Hung { until } => Some(until),
            _ => None,
        });
        expiries.chain(hung).chain(self.news.iter().map(|&(due, ..)| due)).min()
    }
}

/// The names of the keys have the slots that the model assumes.
#[test]
fn keys_share_slots_as_modelled() {
    let slots = NAMES.map(|name| slot_of(name.as_bytes()));
    for (key, slot) in slots.iter().enumerate() {
        assert_eq!(slots.iter().position(|other| other == slot), Some(slot_index(key)));
        assert!(usize::from(*slot) > MAX_NODES, "a slot of the bases");
    }
}
