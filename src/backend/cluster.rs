//! Finds the primaries of a Redis Cluster and their slots.
//!
//! One node is asked in each round, the same one as long as its view is good. Every node knows the
//! whole cluster, but a node may be cut off from the others: it then says that the cluster has
//! failed, or has an older epoch. Then further nodes are asked, known and configured ones in turn.
//! All known ones may have got other addresses.
//!
//! `cluster_current_epoch` does not grow with each change of the map, so maps are compared.

use super::BackendConfig;
use super::connect::{Connector, describe_error, info_field, is_command_denied, random_fraction};
use super::slot_map::{ClusterView, Primary, SLOTS, SlotMap};
use super::subscription::info_text;
use super::topology::FoundMap;
use super::wire::Wire;
use redis::RedisResult;
use std::io;
use std::time::{Duration, Instant};

/// Longest wait for one node. Another node may answer sooner.
const MAX_NODE_TIMEOUT: Duration = Duration::from_secs(1);

/// Most nodes that a round asks, and the time after which it asks no further ones. The next round
/// goes on with those. While a cluster has failed, no view is to be trusted, and each costs a
/// connection.
const MAX_ASKED: usize = 4;
const MAX_ROUND_TIME: Duration = Duration::from_secs(3);

/// Longest reply about the nodes. A cluster of 1,000 nodes and 16,384 ranges needs some MB.
const MAX_REPLY_BYTES: usize = 16 * 1024 * 1024;

/// Most primaries. Each has threads and connections. The cluster specification is for 1,000 nodes.
const MAX_PRIMARIES: usize = 1000;

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
    /// Nodes of the last view. Those that were asked longest ago come first.
    known: Vec<Primary>,
    /// Nodes of the configuration, in the same order.
    configured: Vec<Primary>,
    highest_epoch: u64,
}

impl ClusterSource {
    pub(super) fn new(settings: &BackendConfig) -> ClusterSource {
        let settings = BackendConfig { timeout: settings.timeout.min(MAX_NODE_TIMEOUT), ..settings.clone() };
        let configured =
            settings.access.addresses().iter().map(|address| Primary { address: address.clone(), id: None });
        let mut configured: Vec<Primary> = configured.collect();
        // Many proxies with the same configuration should not all ask the same node.
        let count = configured.len();
        configured.rotate_left((random_fraction() * count as f64) as usize % count.max(1));
        ClusterSource { settings, connection: None, known: Vec::new(), configured, highest_epoch: 0 }
    }

    /// Asks nodes until one has a view to trust, `informed` first. Otherwise returns the best view.
    ///
    /// # Errors
    ///
    /// The problem of the last node, if none has a view.
    pub(super) fn find(&mut self, informed: Option<Primary>) -> Result<FoundMap, String> {
        let (started_at, mut best, mut problem) = (Instant::now(), None, "no node is known".to_owned());
        for node in self.candidates(informed).into_iter().take(MAX_ASKED) {
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
            for asked in [&mut self.known, &mut self.configured] {
                if let Some(index) = asked.iter().position(|known| *known == node) {
                    asked[index..].rotate_left(1);
                }
            }
            if started_at.elapsed() > MAX_ROUND_TIME {
                break;
            }
        }
        best.map(|(trust, view)| self.accept(trust, view)).ok_or(problem)
    }

    /// Returns the nodes to ask, in this order: the informed one, the last one, then known and
    /// configured ones in turn. A configured address has no id. It may lead to another node than
    /// the known one there.
    fn candidates(&self, informed: Option<Primary>) -> Vec<Primary> {
        let last = self.connection.as_ref().map(|(node, _)| node.clone());
        let last = last.filter(|last| Some(last) != informed.as_ref());
        let mut candidates: Vec<Primary> = informed.into_iter().chain(last).collect();
        for index in 0..self.known.len().max(self.configured.len()) {
            let pair = [self.known.get(index), self.configured.get(index)].into_iter().flatten();
            candidates.extend(pair.filter(|node| !candidates.contains(node)).cloned().collect::<Vec<_>>());
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
    if view.map.primaries().len() > MAX_PRIMARIES {
        return Err(
            io::Error::other(format!("it names more than {MAX_PRIMARIES} primaries, which is not supported")).into()
        );
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
    ClusterSource::new(settings).find(None).map(|found| found.map)
}

#[cfg(test)]
mod tests {
    use super::super::tests::settings;
    use super::*;
    use crate::upstream::{Upstream, UpstreamAddress};

    /// Configured nodes are asked in turn with known ones, which may all be gone.
    #[test]
    fn configured_nodes_are_asked_in_turn() {
        let address = |port| UpstreamAddress::Tcp("h".into(), port);
        let upstream = Upstream { addresses: vec![address(1), address(2)], ..Upstream::single(address(1)) };
        let mut source = ClusterSource::new(&settings(upstream));
        let known = |port: u16| Primary { address: address(port), id: Some(port.to_string().into()) };
        source.known = (1..=9).map(known).collect();
        source.configured.sort();
        let ports = |source: &ClusterSource| {
            let candidates = source.candidates(Some(known(7))).into_iter().take(MAX_ASKED);
            candidates.map(|node| (node.address.to_string(), node.id.is_some())).collect::<Vec<_>>()
        };
        let node = |port: u16, is_known| (format!("h:{port}"), is_known);
        assert_eq!(ports(&source), [node(7, true), node(1, true), node(1, false), node(2, true)]);
    }

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
