//! Finds the primaries of a Redis Cluster and their slots.
//!
//! One node is asked in each round, the same one as long as its view is good. Every node knows the
//! whole cluster, but a node may be cut off from the others: it then says that the cluster has
//! failed, or has an older epoch. Then further nodes are asked, and in the end the configured ones.
//!
//! `cluster_current_epoch` does not grow with each change of the map, so maps are compared.

use super::BackendConfig;
use super::connect::{Connector, describe_error, info_field, is_command_denied};
use super::slot_map::{ClusterView, Primary, SLOTS, SlotMap};
use super::subscription::info_text;
use super::topology::FoundMap;
use super::wire::Wire;
use redis::RedisResult;
use std::io;
use std::time::{Duration, Instant};

/// Longest wait for one node. Another node may answer sooner.
const MAX_NODE_TIMEOUT: Duration = Duration::from_secs(1);

/// Time after which a round asks no further nodes. The next round goes on with those.
const MAX_ROUND_TIME: Duration = Duration::from_secs(3);

/// Longest reply about the nodes. A cluster of 1,000 nodes and 16,384 ranges needs some MB.
const MAX_REPLY_BYTES: usize = 16 * 1024 * 1024;

/// Trust in the view of a node. Views compare by their trust.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Trust {
    /// True if the node sees a working cluster.
    is_ok: bool,
    /// Present epoch of the cluster as the node sees it.
    epoch: u64,
}

/// Source of the map of a cluster.
pub(super) struct ClusterSource {
    settings: BackendConfig,
    /// Node that was asked last, with its connection.
    connection: Option<(Primary, Wire)>,
    /// Nodes of the last view that were asked longest ago come first.
    known: Vec<Primary>,
    highest_epoch: u64,
}

impl ClusterSource {
    pub(super) fn new(settings: &BackendConfig) -> ClusterSource {
        let settings = BackendConfig { timeout: settings.timeout.min(MAX_NODE_TIMEOUT), ..settings.clone() };
        ClusterSource { settings, connection: None, known: Vec::new(), highest_epoch: 0 }
    }

    /// Asks nodes until one has a view to trust. Otherwise returns the best view.
    ///
    /// # Errors
    ///
    /// The problem of the last node, if none has a view.
    pub(super) fn find(&mut self) -> Result<FoundMap, String> {
        let (started_at, mut best, mut problem) = (Instant::now(), None, "no node is known".to_owned());
        for node in self.candidates() {
            match self.ask(&node) {
                Ok((trust, view)) if trust.is_ok && trust.epoch >= self.highest_epoch => {
                    return Ok(self.accept(trust, view));
                }
                Ok((trust, view)) => {
                    if best.as_ref().is_none_or(|(known, _)| trust > *known) {
                        best = Some((trust, view));
                    }
                }
                Err(error) => problem = format!("{}: {}", node.address, describe_error(&error)),
            }
            self.connection = None;
            self.known.retain(|known| *known != node);
            self.known.push(node);
            if started_at.elapsed() > MAX_ROUND_TIME {
                break;
            }
        }
        best.map(|(trust, view)| self.accept(trust, view)).ok_or(problem)
    }

    /// Returns the nodes to ask, in this order: the last one, the other known ones, the configured
    /// ones.
    fn candidates(&self) -> Vec<Primary> {
        let last = self.connection.iter().map(|(node, _)| node.clone());
        let configured =
            self.settings.access.addresses().iter().map(|address| Primary { address: address.clone(), id: None });
        let mut candidates: Vec<Primary> = Vec::new();
        for node in last.chain(self.known.iter().cloned()).chain(configured) {
            // A configured address has no id. If the node has one, another node may be meant.
            if !candidates.contains(&node) {
                candidates.push(node);
            }
        }
        candidates
    }

    /// Asks one node, over the open connection if it is that of the node.
    fn ask(&mut self, node: &Primary) -> RedisResult<(Trust, ClusterView)> {
        let mut wire = match self.connection.take() {
            Some((connected, wire)) if connected == *node => wire,
            _ => {
                let mut wire = Connector::new(&self.settings, node).connect(Ok)?;
                wire.set_longest_reply(MAX_REPLY_BYTES);
                wire
            }
        };
        let view = request_view(&mut wire, node)?;
        self.connection = Some((node.clone(), wire));
        Ok(view)
    }

    fn accept(&mut self, trust: Trust, view: ClusterView) -> FoundMap {
        self.highest_epoch = trust.epoch;
        self.known.retain(|known| view.nodes.contains(known));
        let added: Vec<Primary> = view.nodes.into_iter().filter(|node| !self.known.contains(node)).collect();
        self.known.extend(added);
        FoundMap { map: view.map, confirmed_at: Instant::now() }
    }
}

/// Asks for the state of the cluster and its nodes, in one round trip.
fn request_view(wire: &mut Wire, node: &Primary) -> RedisResult<(Trust, ClusterView)> {
    let mut packed = Vec::new();
    for question in ["INFO", "SLOTS", "NODES"] {
        redis::cmd("CLUSTER").arg(question).write_packed_command(&mut packed);
    }
    wire.send(&packed)?;
    let [info, slots, nodes] = [wire.receive()?, wire.receive()?, wire.receive()?];
    let trust = match info.extract_error() {
        Ok(info) => trust_of(&info_text(info).unwrap_or_default()),
        // Some services deny it.
        Err(error) if is_command_denied(&error) => Trust { is_ok: true, epoch: 0 },
        Err(error) => return Err(error),
    };
    let slots = slots.extract_error()?;
    let nodes = nodes.extract_error().ok().and_then(info_text).unwrap_or_default();
    let view = ClusterView::parse(&slots, &nodes, &node.address)
        .ok_or_else(|| io::Error::other("the reply to CLUSTER SLOTS has an unknown form"))?;
    if view.map.unserved_slots() == usize::from(SLOTS) {
        return Err(io::Error::other("the node knows no primary with slots; it may have been reset").into());
    }
    Ok((trust, view))
}

fn trust_of(info: &str) -> Trust {
    let field = |name| info_field(info, name);
    let epoch = field("cluster_current_epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    Trust { is_ok: field("cluster_state").is_none_or(|state| state == "ok"), epoch }
}

/// Asks the configured nodes once for the map, for a check of the configuration.
pub(super) fn find_once(settings: &BackendConfig) -> Result<SlotMap, String> {
    ClusterSource::new(settings).find().map(|found| found.map)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A view of a working cluster is trusted more than a newer one of a failed cluster.
    #[test]
    fn working_cluster_is_trusted_more() {
        let info = |state, epoch| format!("cluster_state:{state}\r\ncluster_current_epoch:{epoch}\r\n");
        let views = [info("fail", 9), info("ok", 3), info("ok", 4), "other:1\r\n".into()].map(|info| trust_of(&info));
        let trust = |is_ok, epoch| Trust { is_ok, epoch };
        assert_eq!(views, [trust(false, 9), trust(true, 3), trust(true, 4), trust(true, 0)]);
        assert!(views[0] < views[3] && views[3] < views[1] && views[1] < views[2]);
    }
}
