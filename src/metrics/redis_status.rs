//! State of Redis as the fetchers and trackers of one worker see it, and the sum of all workers.
//!
//! A worker reads from one or several nodes: Redis itself, the primary that sentinels name, or the
//! primaries of a cluster. Fetchers and trackers write under the lock of the worker's slot.

use super::{BatchSizeHistogram, LatencyHistogram};
use std::sync::Arc;
use std::time::Instant;

/// State of the invalidation stream from Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrackingState {
    /// Not configured.
    #[default]
    Off,
    /// Invalidations arrive.
    On,
    /// Configured, but there is no stream.
    Lost,
}

/// Counters and gauges of the fetchers of one node. Counters start at 0 with the worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeCounters {
    /// Open connections of fetchers.
    pub connections: usize,
    /// Attempts to connect: succeeded, failed.
    pub connect_attempts: [u64; 2],
    /// Connections closed so far.
    pub disconnects: u64,
    /// Keys in the queue, waiting for a fetcher.
    pub queued: usize,
    /// Keys that the node redirected to another one: for good (`MOVED`), for one read (`ASK`).
    pub redirections: [u64; 2],
    /// Round trips. A pipeline of commands counts once.
    pub round_trips: u64,
    /// Time from sending commands to their first reply. A failed round trip has none.
    pub round_trip_durations: LatencyHistogram,
    /// Keys read in one batch.
    pub batch_sizes: BatchSizeHistogram,
}

impl NodeCounters {
    /// Counts round trips, and the durations of those that were answered.
    pub fn add_round_trips(&mut self, round_trips: u64, durations: &LatencyHistogram) {
        self.round_trips += round_trips;
        self.round_trip_durations.merge(durations);
    }

    /// Adds those of another node.
    pub fn add(&mut self, other: &NodeCounters) {
        let sum = |to: &mut [u64; 2], from: [u64; 2]| to.iter_mut().zip(from).for_each(|(sum, count)| *sum += count);
        self.connections += other.connections;
        sum(&mut self.connect_attempts, other.connect_attempts);
        self.disconnects += other.disconnects;
        self.queued += other.queued;
        sum(&mut self.redirections, other.redirections);
        self.round_trips += other.round_trips;
        self.round_trip_durations.merge(&other.round_trip_durations);
        self.batch_sizes.merge(&other.batch_sizes);
    }
}

/// State of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// Host and port, or path.
    pub address: String,
    /// Counters and gauges.
    pub counters: NodeCounters,
    /// Reason why the node is unavailable; `None` if it is available.
    pub unavailable: Option<String>,
    /// Time since which the node is unavailable without a break.
    pub unavailable_since: Option<Instant>,
    /// Time of the oldest unanswered request, if the node has answered nothing since.
    pub unanswered_since: Option<Instant>,
    /// Time of the last successful read.
    pub last_read: Option<Instant>,
    /// Time and key of the last failed read; `None` once another key was read.
    pub last_failed_read: Option<(Instant, Arc<[u8]>)>,
}

impl NodeStatus {
    /// Sets why the node is unavailable; `None` if it is available. Another reason does not restart
    /// the time of the outage.
    pub fn set_unavailable(&mut self, reason: Option<&str>, now: Instant) {
        if self.unavailable.as_deref() != reason {
            self.unavailable = reason.map(str::to_owned);
        }
        self.unavailable_since = reason.map(|_| self.unavailable_since.unwrap_or(now));
    }
}

/// State of Redis as one worker sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisStatus {
    /// Nodes, with their numbers.
    nodes: Vec<(u64, NodeStatus)>,
    /// Counters of nodes that were removed.
    former: NodeCounters,
    /// Reason why no key can be read, whatever single nodes say, and the time since which.
    pub total_outage: Option<(String, Instant)>,
    /// Keys that wait until the node that serves them is known.
    pub parked: usize,
    /// Searches for the nodes. The workers share them.
    pub topology_requests: u64,
    /// Changes of the nodes or of their shares of the keys.
    pub topology_changes: u64,
    /// The freshness guarantee in force, as text.
    pub freshness: String,
    /// Configured parts of the freshness guarantee that do not hold.
    pub unmet_guarantees: usize,
    /// State of the invalidation stream.
    pub tracking: TrackingState,
    /// Time since which there is no invalidation stream, if one is configured.
    pub tracking_lost_since: Option<Instant>,
}

impl RedisStatus {
    /// Adds a node with a new number.
    pub fn add_node(&mut self, number: u64, status: NodeStatus) {
        self.nodes.push((number, status));
    }

    /// Returns the state of the node with this number, `None` if it was removed.
    pub fn node(&mut self, number: u64) -> Option<&mut NodeStatus> {
        self.nodes.iter_mut().find(|(known, _)| *known == number).map(|(_, node)| node)
    }

    /// Returns the states of all nodes.
    pub fn nodes(&mut self) -> impl Iterator<Item = &mut NodeStatus> {
        self.nodes.iter_mut().map(|(_, node)| node)
    }

    /// Removes a node. Its counters remain, but not its gauges: its connections are about to close.
    pub fn remove_node(&mut self, number: u64) {
        self.nodes.retain(|(known, node)| {
            if *known == number {
                self.former.add(&NodeCounters { connections: 0, queued: 0, ..node.counters.clone() });
            }
            *known != number
        });
    }

    /// Returns why this worker can read no key, and since when. One available node is enough for
    /// some keys.
    pub fn outage(&self) -> Option<(&str, Instant)> {
        let of_nodes = || {
            let outages = self.nodes.iter().map(|(_, node)| node.unavailable.as_deref().zip(node.unavailable_since));
            let outages = outages.collect::<Option<Vec<_>>>()?;
            // The outage began with that of the last node.
            outages.into_iter().max_by_key(|(_, since)| *since)
        };
        self.total_outage.as_ref().map(|(reason, since)| (reason.as_str(), *since)).or_else(of_nodes)
    }

    /// Sets the state of the invalidation stream.
    pub fn set_tracking(&mut self, tracking: TrackingState, now: Instant) {
        self.tracking = tracking;
        let is_lost = tracking == TrackingState::Lost;
        self.tracking_lost_since = is_lost.then(|| self.tracking_lost_since.unwrap_or(now));
    }
}

/// Node as all workers together see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRow {
    /// Host and port, or path.
    pub address: String,
    /// Open connections of fetchers.
    pub connections: usize,
    /// Keys in the queues.
    pub queued: usize,
    /// Reason why the node is unavailable to some worker; `None` if it is available to all.
    pub unavailable: Option<String>,
    /// Time since which it is unavailable.
    pub unavailable_since: Option<Instant>,
}

/// State of Redis for all workers together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisSummary {
    /// Sums over all nodes and workers.
    pub counters: NodeCounters,
    /// Nodes, in the order of their addresses.
    pub nodes: Vec<NodeRow>,
    /// Reason why some worker can read no key; `None` if each can read some.
    pub unavailable: Option<String>,
    /// Time since which some worker can read no key.
    pub unavailable_since: Option<Instant>,
    /// The weakest freshness guarantee in force, as text.
    pub freshness: String,
    /// Parts of it that do not hold.
    pub unmet_guarantees: usize,
    /// State of the invalidation stream: lost if it is lost for some worker.
    pub tracking: TrackingState,
    /// Time since which it is lost.
    pub tracking_lost_since: Option<Instant>,
    /// Searches for the nodes.
    pub topology_requests: u64,
    /// Changes of the nodes or of their shares of the keys, as the worker with the most has seen
    /// them.
    pub topology_changes: u64,
}

impl RedisSummary {
    /// Adds the status of one worker.
    pub fn add(&mut self, worker: &RedisStatus) {
        self.counters.add(&worker.former);
        self.counters.queued += worker.parked;
        for (_, node) in &worker.nodes {
            self.counters.add(&node.counters);
            self.add_node(node);
        }
        if let Some((reason, since)) = worker.outage() {
            self.unavailable.get_or_insert_with(|| reason.to_owned());
            self.unavailable_since = super::earlier(self.unavailable_since, Some(since));
        }
        self.topology_requests = self.topology_requests.max(worker.topology_requests);
        self.topology_changes = self.topology_changes.max(worker.topology_changes);
        self.tracking_lost_since = super::earlier(self.tracking_lost_since, worker.tracking_lost_since);
        if self.freshness.is_empty() || worker.unmet_guarantees > self.unmet_guarantees {
            self.freshness.clone_from(&worker.freshness);
            self.unmet_guarantees = worker.unmet_guarantees;
        }
        if self.tracking != TrackingState::Lost {
            self.tracking = worker.tracking;
        }
    }

    fn add_node(&mut self, node: &NodeStatus) {
        let index = self.nodes.binary_search_by(|row| row.address.cmp(&node.address)).unwrap_or_else(|index| {
            self.nodes.insert(index, NodeRow { address: node.address.clone(), ..NodeRow::default() });
            index
        });
        let row = &mut self.nodes[index];
        row.connections += node.counters.connections;
        row.queued += node.counters.queued;
        if row.unavailable.is_none() {
            row.unavailable.clone_from(&node.unavailable);
        }
        row.unavailable_since = super::earlier(row.unavailable_since, node.unavailable_since);
    }

    /// Returns the nodes that are unavailable to some worker.
    pub fn unavailable_nodes(&self) -> impl Iterator<Item = &NodeRow> {
        self.nodes.iter().filter(|node| node.unavailable.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Returns a status with these nodes.
    fn status_of(numbers: &[u64]) -> RedisStatus {
        let mut redis = RedisStatus::default();
        numbers.iter().for_each(|&number| redis.add_node(number, NodeStatus::default()));
        redis
    }

    fn node(redis: &mut RedisStatus, number: u64) -> &mut NodeStatus {
        redis.node(number).expect("a known node")
    }

    /// An outage and a lost stream begin once, until they end. The sum has the earliest begin.
    #[test]
    fn outage_keeps_begin_until_end() {
        let (mut redis, start) = (status_of(&[0]), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        node(&mut redis, 0).set_unavailable(Some("slow"), at(1));
        node(&mut redis, 0).set_unavailable(Some("gone"), at(2));
        redis.set_tracking(TrackingState::Lost, at(3));
        redis.set_tracking(TrackingState::Lost, at(4));
        let mut sum = RedisSummary { unavailable_since: Some(at(9)), ..RedisSummary::default() };
        sum.add(&redis);
        assert_eq!((sum.unavailable_since, sum.tracking_lost_since), (Some(at(1)), Some(at(3))));
        node(&mut redis, 0).set_unavailable(None, at(5));
        redis.set_tracking(TrackingState::On, at(5));
        assert_eq!((redis.outage(), redis.tracking_lost_since), (None, None));
        node(&mut redis, 0).set_unavailable(Some("gone"), at(6));
        redis.set_tracking(TrackingState::Lost, at(7));
        assert_eq!((redis.outage(), redis.tracking_lost_since), (Some(("gone", at(6))), Some(at(7))));
    }

    /// The sum of two states of Redis has the weaker guarantee, and the first reason of an outage.
    #[test]
    fn redis_status_sum_keeps_worse_state() {
        let status = |tracking, freshness: &str| RedisStatus {
            tracking,
            freshness: freshness.into(),
            unmet_guarantees: usize::from(tracking == TrackingState::Lost),
            ..Default::default()
        };
        let mut sum = RedisSummary::default();
        for other in [
            status(TrackingState::On, "at once"),
            status(TrackingState::Lost, "later"),
            status(TrackingState::On, "at once"),
        ] {
            sum.add(&other);
        }
        assert_eq!((sum.tracking, sum.freshness.as_str()), (TrackingState::Lost, "later"));
        for (reason, connections) in [("gone", 1), ("slow", 2)] {
            let mut other = status(TrackingState::On, "at once");
            other.add_node(0, NodeStatus::default());
            node(&mut other, 0).set_unavailable(Some(reason), Instant::now());
            node(&mut other, 0).counters.connections = connections;
            sum.add(&other);
        }
        assert_eq!((sum.unavailable.as_deref(), sum.counters.connections), (Some("gone"), 3));
    }

    /// A worker is without Redis only if all its nodes are unavailable, from the last one on.
    #[test]
    fn one_available_node_is_no_outage() {
        let (mut redis, start) = (RedisStatus::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        redis.total_outage = Some(("no map".into(), at(0)));
        assert_eq!(redis.outage(), Some(("no map", at(0))));
        for (number, address) in [(1, "b:1"), (2, "a:1")] {
            let counters = NodeCounters { connections: 2, disconnects: 5, ..NodeCounters::default() };
            redis.add_node(number, NodeStatus { address: address.into(), counters, ..NodeStatus::default() });
        }
        assert_eq!(redis.outage(), Some(("no map", at(0))));
        redis.total_outage = None;
        assert_eq!(redis.outage(), None);
        node(&mut redis, 1).set_unavailable(Some("hung"), at(1));
        assert_eq!(redis.outage(), None);
        let mut sum = RedisSummary::default();
        [&redis, &redis].into_iter().for_each(|worker| sum.add(worker));
        assert_eq!(sum.unavailable, None);
        let rows: Vec<_> = sum.nodes.iter().map(|node| (node.address.as_str(), node.connections)).collect();
        assert_eq!(rows, [("a:1", 4), ("b:1", 4)]);
        let unavailable: Vec<_> = sum.unavailable_nodes().map(|node| node.unavailable.as_deref()).collect();
        assert_eq!(unavailable, [Some("hung")]);
        node(&mut redis, 2).set_unavailable(Some("gone"), at(2));
        assert_eq!(redis.outage(), Some(("gone", at(2))));
        redis.remove_node(2);
        assert_eq!(redis.outage(), Some(("hung", at(1))));
        let mut sum = RedisSummary::default();
        sum.add(&redis);
        assert_eq!((sum.counters.connections, sum.counters.disconnects), (2, 10), "counters outlive their node");
    }
}
