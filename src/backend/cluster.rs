//! Finds the primaries of a Redis Cluster and their slots.
//!
//! One node is asked in each round, the same one as long as its view is good. Every node knows the
//! whole cluster, but a node may be cut off from the others: it then says that the cluster has
//! failed, or has an older epoch. Then further nodes are asked, known and configured ones in turn.
//! All known ones may have got other addresses.
//!
//! `cluster_current_epoch` does not grow with each change of the map, so maps are compared.

use super::BackendConfig;
use super::connect::{Connector, info_field, is_command_denied, random_fraction};
use super::slot_map::{ClusterView, Primary, SLOTS, SlotMap};
use super::subscription::info_text;
use super::topology::{Finding, MAX_SILENCE};
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

/// Shortest time between two rounds that ask further nodes although one has answered, with a view
/// that is not to be trusted. Each costs Redis connections.
const ASK_OTHERS_INTERVAL: Duration = Duration::from_secs(1);

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
    /// Nodes of the last view in force. Those that were asked longest ago come first.
    known: Vec<Primary>,
    /// Nodes of the configuration, in the same order.
    configured: Vec<Primary>,
    highest_epoch: u64,
    /// Time since which no view was to be trusted.
    doubtful_since: Option<Instant>,
    /// Earliest time at which a round asks more than one node although that one has answered.
    ask_others_from: Instant,
    /// Commands whose denial was logged.
    logged_denials: Vec<&'static str>,
}

/// Answer of one node.
struct Answer {
    trust: Trust,
    view: ClusterView,
    /// Commands that the node denies.
    denied: Vec<&'static str>,
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
        ClusterSource {
            settings,
            connection: None,
            known: Vec::new(),
            configured,
            highest_epoch: 0,
            doubtful_since: None,
            ask_others_from: Instant::now(),
            logged_denials: Vec::new(),
        }
    }

    /// Asks nodes until one has a view to trust, `informed` first. A view that is not to be trusted
    /// is used only if there is no other for [`MAX_SILENCE`].
    pub(super) fn find(&mut self, informed: Option<Primary>) -> Finding {
        let (started_at, mut best, mut problem) = (Instant::now(), None, "no node is known".to_owned());
        for node in self.candidates(informed).into_iter().take(MAX_ASKED) {
            if started_at.elapsed() > MAX_ROUND_TIME || best.is_some() && started_at < self.ask_others_from {
                break;
            }
            let mut connector = Connector::new(&self.settings, &node);
            match self.ask(&mut connector, &node) {
                Ok(answer) => {
                    self.log_denials(&node, &answer.denied);
                    let Some(doubt) = self.doubt_of(&node, &answer) else {
                        self.doubtful_since = None;
                        return Finding { map: Some(self.accept(answer)), ..Finding::default() };
                    };
                    let doubt = format!("{}: {doubt}", node.address);
                    if best.as_ref().is_none_or(|(known, _): &(Answer, String)| answer.trust > known.trust) {
                        best = Some((answer, doubt));
                    }
                }
                Err(error) => {
                    self.connection = None;
                    problem = format!("{}: {}", node.address, connector.describe(&error));
                }
            }
            for asked in [&mut self.known, &mut self.configured] {
                if let Some(index) = asked.iter().position(|known| *known == node) {
                    asked[index..].rotate_left(1);
                }
            }
        }
        let is_long = self.doubtful_since.get_or_insert(started_at).elapsed() >= MAX_SILENCE;
        let Some((answer, doubt)) = best else { return Finding::failed(problem) };
        if started_at >= self.ask_others_from {
            self.ask_others_from = Instant::now() + ASK_OTHERS_INTERVAL;
        }
        let is_down = !answer.trust.is_ok;
        let map = (is_long || self.known.is_empty()).then(|| self.accept(answer));
        Finding { map, problem: Some(doubt), is_down }
    }

    /// Returns the reason why a view is not to be trusted.
    fn doubt_of(&self, node: &Primary, answer: &Answer) -> Option<&'static str> {
        let is_known = |other: &Primary| self.known.iter().any(|known| known.id == other.id);
        match answer.trust {
            Trust { is_ok: false, .. } => Some("the cluster does not work as the node sees it (cluster_state:fail)"),
            Trust { epoch, .. } if epoch < self.highest_epoch => Some("the node has an older view of the cluster"),
            // A configured address may have been given to another cluster.
            _ if node.id.is_none() && !self.known.is_empty() && !answer.view.nodes.iter().any(is_known) => {
                Some("the node belongs to another cluster; check the configured addresses")
            }
            _ => None,
        }
    }

    /// Warns once of each command that nodes deny.
    fn log_denials(&mut self, node: &Primary, denied: &[&'static str]) {
        for command in denied {
            if !self.logged_denials.contains(command) {
                self.logged_denials.push(command);
                log::warn!("Redis at {} denies CLUSTER {command}: {}", node.address, risk_of_denied(command));
            }
        }
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
    fn ask(&mut self, connector: &mut Connector, node: &Primary) -> RedisResult<Answer> {
        let mut wire = match self.connection.take() {
            Some((connected, wire)) if connected == *node => wire,
            _ => {
                let mut wire = connector.connect(Ok)?;
                wire.set_longest_reply(MAX_REPLY_BYTES);
                wire
            }
        };
        let answer = request_view(&mut wire, node)?;
        self.connection = Some((node.clone(), wire));
        Ok(answer)
    }

    /// Takes a view as the present one. Returns its map.
    fn accept(&mut self, Answer { trust, view, .. }: Answer) -> SlotMap {
        self.highest_epoch = trust.epoch;
        self.known.retain(|known| view.nodes.contains(known));
        let added: Vec<Primary> = view.nodes.into_iter().filter(|node| !self.known.contains(node)).collect();
        self.known.extend(added);
        view.map
    }
}

/// Questions to a node, beside `SLOTS`, that services may deny.
const OPTIONAL_QUESTIONS: [&str; 3] = ["INFO", "NODES", "MYID"];

/// Returns what happens if a node denies one of them, and the remedy.
fn risk_of_denied(command: &str) -> &'static str {
    match command {
        "INFO" => {
            "a node that is cut off from its cluster is not noticed; grant +cluster|info to the user of the proxy"
        }
        "NODES" => {
            "keys that move to a primary without slots cannot be read; grant +cluster|nodes to the user of the proxy"
        }
        _ => {
            "another node that gets the address of a lost one is not noticed; grant +cluster|myid to the user of the proxy"
        }
    }
}

/// Asks for the state of the cluster and its nodes, in one round trip.
fn request_view(wire: &mut Wire, node: &Primary) -> RedisResult<Answer> {
    let mut packed = Vec::new();
    for question in ["SLOTS"].iter().chain(&OPTIONAL_QUESTIONS) {
        redis::cmd("CLUSTER").arg(question).write_packed_command(&mut packed);
    }
    wire.send(&packed)?;
    let slots = wire.receive()?;
    let (mut denied, mut texts) = (Vec::new(), OPTIONAL_QUESTIONS.map(|_| String::new()));
    for (question, text) in OPTIONAL_QUESTIONS.into_iter().zip(&mut texts) {
        match wire.receive()?.extract_error() {
            Ok(reply) => *text = info_text(reply).unwrap_or_default(),
            Err(error) if is_command_denied(&error) => denied.push(question),
            Err(error) => return Err(error),
        }
    }
    let [state, nodes, _] = texts;
    let slots = slots.extract_error()?;
    let view = ClusterView::parse(&slots, &nodes, &node.address)
        .ok_or_else(|| io::Error::other("the reply to CLUSTER SLOTS has an unknown form"))?;
    if view.map.unserved_slots() == usize::from(SLOTS) {
        return Err(io::Error::other("the node knows no primary with slots; it may have been reset").into());
    }
    if view.map.primaries().len() > MAX_PRIMARIES {
        let text = format!("it names more than {MAX_PRIMARIES} primaries, which is not supported");
        return Err(io::Error::other(text).into());
    }
    Ok(Answer { trust: trust_of(&state), view, denied })
}

fn trust_of(info: &str) -> Trust {
    let field = |name| info_field(info, name);
    let epoch = field("cluster_current_epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    Trust { is_ok: field("cluster_state").is_none_or(|state| state == "ok"), epoch }
}

/// Asks the configured nodes for the map, for a check of the configuration. Also returns warnings.
pub(super) fn find_once(settings: &BackendConfig) -> Result<(SlotMap, Vec<String>), String> {
    let mut source = ClusterSource::new(settings);
    let mut finding = source.find(None);
    // A round asks few of them.
    for _ in 0..source.configured.len() / MAX_ASKED {
        if finding.map.is_none() {
            finding = source.find(None);
        }
    }
    let denials = source
        .logged_denials
        .iter()
        .map(|command| format!("Redis denies CLUSTER {command}: {}", risk_of_denied(command)));
    let warnings = finding.problem.iter().cloned().chain(denials).collect();
    finding.map.map(|map| (map, warnings)).ok_or(finding.problem.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::tests::settings;
    use super::*;
    use crate::upstream::{Upstream, UpstreamAddress};

    /// A view is used only if nothing speaks against it: a failed cluster, an older epoch, or nodes
    /// of another cluster at a configured address.
    #[test]
    fn doubtful_views_are_not_trusted() {
        let address = |port| UpstreamAddress::Tcp("h".into(), port);
        let node = |port: u16, id: Option<&str>| Primary { address: address(port), id: id.map(Into::into) };
        let mut source = ClusterSource::new(&settings(Upstream::single(address(1))));
        let answer = |id: &str, is_ok, epoch| {
            let nodes = vec![node(1, Some(id))];
            let map = SlotMap::of_cluster([(0, 16_383, nodes[0].clone())], []);
            Answer { trust: Trust { is_ok, epoch }, view: ClusterView { map, nodes }, denied: Vec::new() }
        };
        let seed = node(1, None);
        assert_eq!(source.doubt_of(&seed, &answer("a", true, 5)), None);
        source.accept(answer("a", true, 5));
        let doubts = |asked: &Primary, answer: &Answer| source.doubt_of(asked, answer).unwrap_or_default();
        assert_eq!(doubts(&seed, &answer("a", true, 5)), "");
        assert!(doubts(&seed, &answer("a", false, 6)).contains("cluster_state:fail"));
        assert!(doubts(&seed, &answer("a", true, 4)).contains("older view"));
        assert!(doubts(&seed, &answer("b", true, 9)).contains("another cluster"));
        // The id of a known node is checked when it is connected to.
        assert_eq!(doubts(&node(1, Some("a")), &answer("b", true, 9)), "");
    }

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
