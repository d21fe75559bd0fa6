//! Routing of jobs to the nodes of one worker, and the effects of a new map.
//!
//! All that concerns several nodes happens under one lock, which the event loop takes once a tick
//! with jobs. The state of tracking and the invalidations that tell the loop about it change under
//! the same lock, so they arrive in the order of the changes.

use super::QUEUE_LIMIT;
use super::node::{Node, QueuedJob};
use super::node_set::{NodeId, NodeSet};
use super::shared::PoolShared;
use super::slot_map::{Primary, Redirection, SlotMap};
use super::topology::Topology;
use crate::types::{Completion, Failure, Invalidation, Job};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// Most redirections of a job (cluster specification: a client should not follow them for ever).
const MAX_HOPS: u8 = 5;

/// Redirections of a job that are followed at once. Two nodes that disagree would use up the others
/// within a millisecond, so from then on the job waits for a new map.
const MAX_IMMEDIATE_HOPS: u8 = 2;

/// Nodes of one worker, and the jobs that no node can take yet.
pub(super) struct Nodes {
    pub(super) set: NodeSet,
    running: BTreeMap<NodeId, Arc<Node>>,
    /// Jobs for keys that no known node serves. They wait for the next map.
    parked: Vec<QueuedJob>,
    /// Thread that finds the nodes, `None` for one fixed node.
    topology: Option<Arc<Topology>>,
    closed: bool,
}

impl Nodes {
    pub(super) fn new() -> Nodes {
        Nodes {
            set: NodeSet::new("the nodes of Redis are not known yet".into()),
            running: BTreeMap::new(),
            parked: Vec::new(),
            topology: None,
            closed: false,
        }
    }

    /// Groups jobs by the node that serves their key; `None` for keys that no running node serves.
    fn group<T>(
        &self,
        jobs: impl IntoIterator<Item = T>,
        key_of: impl Fn(&T) -> &[u8],
    ) -> BTreeMap<Option<NodeId>, Vec<T>> {
        let mut groups: BTreeMap<Option<NodeId>, Vec<T>> = BTreeMap::new();
        for job in jobs {
            let id = self.set.route(key_of(&job)).filter(|id| self.running.contains_key(id));
            groups.entry(id).or_default().push(job);
        }
        groups
    }

    /// Adds accepted jobs to the queues of the nodes that serve their keys. Returns those that no
    /// node serves.
    fn distribute(&self, jobs: impl IntoIterator<Item = QueuedJob>) -> Vec<QueuedJob> {
        // Only the node that said so is asked for a key that moves.
        let jobs = jobs.into_iter().map(|queued| QueuedJob { is_asking: false, ..queued });
        let mut groups = self.group(jobs, |queued| &queued.job.key);
        let unserved = groups.remove(&None).unwrap_or_default();
        for (id, group) in groups {
            if let Some(node) = id.and_then(|id| self.running.get(&id)) {
                node.accept(group);
            }
        }
        unserved
    }

    /// Keeps a job until the next map, which is requested now.
    fn park(&mut self, queued: QueuedJob) {
        self.parked.push(queued);
        self.request_map();
    }

    fn request_map(&self) {
        if let Some(topology) = &self.topology {
            topology.request();
        }
    }

    /// Moves each job to the queue of its node. Those that exceed the limit of a queue stay in
    /// `jobs`.
    fn submit(&mut self, jobs: &mut Vec<Job>, expires_at: Instant) {
        if let Some(node) = self.set.only_node().and_then(|id| self.running.get(&id)) {
            return node.submit(jobs, expires_at);
        }
        for (id, mut group) in self.group(jobs.drain(..), |job| &job.key) {
            match id.and_then(|id| self.running.get(&id)) {
                Some(node) => node.submit(&mut group, expires_at),
                None => {
                    let accepted = group.len().min(QUEUE_LIMIT.saturating_sub(self.parked.len()));
                    group.drain(..accepted).for_each(|job| self.park(QueuedJob::new(job, expires_at)));
                }
            }
            jobs.extend(group);
        }
    }
}

impl PoolShared {
    /// Moves jobs to the queues of their nodes. Those that exceed a limit stay in `jobs`.
    pub(super) fn submit(&self, jobs: &mut Vec<Job>, expires_at: Instant) {
        let mut nodes = self.nodes();
        nodes.submit(jobs, expires_at);
        if !nodes.parked.is_empty() {
            self.publish_parked(nodes.parked.len());
        }
    }

    /// Returns whether values that are now requested from a node may be cached: of its keys, of
    /// keys that it is asked for.
    pub(super) fn may_cache(&self, id: NodeId) -> [bool; 2] {
        // Without tracking only keys that move are not cached. This spares each batch a lock.
        if !self.settings.tracking {
            return [true, false];
        }
        let nodes = self.nodes();
        [false, true].map(|asked| nodes.set.may_cache(id, asked))
    }

    /// Asks the topology thread for the present nodes. Called when a node shows that they may have
    /// changed.
    pub(super) fn request_map(&self) {
        self.nodes().request_map();
    }

    /// Passes jobs to the nodes that `from` has redirected them to.
    ///
    /// A target that is known needs no new map: the thread finds the change within its interval.
    /// While slots move in series, each map would invalidate the cache.
    pub(super) fn redirect(&self, from: &Primary, jobs: Vec<(QueuedJob, Redirection)>) {
        let (mut lost, mut excess) = (Vec::new(), Vec::new());
        let mut nodes = self.nodes();
        for (mut queued, redirection) in jobs {
            queued.hops += 1;
            let target = redirection.target.and_then(|address| nodes.set.node_at(&address));
            let node = target.and_then(|id| nodes.running.get(&id)).filter(|_| queued.hops <= MAX_IMMEDIATE_HOPS);
            queued.is_asking = redirection.is_ask && node.is_some();
            match node {
                _ if queued.hops > MAX_HOPS || nodes.closed => lost.push(queued),
                Some(node) => excess.extend(node.push_back(queued)),
                None if nodes.parked.len() >= QUEUE_LIMIT => excess.push(queued),
                None => {
                    nodes.parked.push(queued);
                    if let Some(topology) = &nodes.topology {
                        topology.request_from(from);
                    }
                }
            }
        }
        self.publish_parked(nodes.parked.len());
        drop(nodes);
        self.fail(lost, &Failure::NotReady("its nodes redirect to each other, or to one that is not known".into()));
        self.fail(excess, &Failure::QueueFull);
    }

    /// Routes jobs of a node that was closed.
    pub(super) fn reroute(&self, jobs: impl IntoIterator<Item = QueuedJob>) {
        let mut nodes = self.nodes();
        if !nodes.closed {
            for queued in nodes.distribute(jobs) {
                nodes.park(queued);
            }
            self.publish_parked(nodes.parked.len());
        }
    }

    /// Completes accepted jobs that cannot be read.
    fn fail(&self, jobs: impl IntoIterator<Item = QueuedJob>, failure: &Failure) {
        let completion = |queued: QueuedJob| Completion {
            fetch_id: queued.job.fetch_id,
            result: Err(failure.clone()),
            may_cache: true,
        };
        let completions: Vec<Completion> = jobs.into_iter().map(completion).collect();
        if !completions.is_empty() {
            self.deliver(completions);
        }
    }

    /// Names the thread that finds the nodes.
    pub(super) fn set_topology_thread(&self, topology: Arc<Topology>) {
        self.nodes().topology = Some(topology);
    }

    /// Starts the nodes of a map that are not known yet.
    ///
    /// # Errors
    ///
    /// A thread could not be started. No node was added.
    pub(super) fn prepare(self: &Arc<PoolShared>, map: &SlotMap) -> io::Result<()> {
        let added = self.nodes().set.prepare(map);
        let ids: Vec<NodeId> = added.iter().map(|(id, _)| *id).collect();
        // Without the lock: the event loop takes it, and must not wait for threads to start.
        let node = |(id, primary)| Arc::new(Node::new(id, primary, Arc::clone(self)));
        let added: Vec<Arc<Node>> = added.into_iter().map(node).collect();
        let started = added.iter().try_for_each(Node::start);
        let mut nodes = self.nodes();
        if started.is_ok() && !nodes.closed {
            nodes.running.extend(added.into_iter().map(|node| (node.id, node)));
            return Ok(());
        }
        nodes.set.forget(&ids);
        drop(nodes);
        self.close_nodes(added);
        started
    }

    /// Puts a map into force whose nodes were prepared. Nodes that it lacks are closed.
    pub(super) fn install(&self, map: &Arc<SlotMap>) {
        let mut nodes = self.nodes();
        if nodes.closed {
            return;
        }
        let installation = nodes.set.install(map);
        self.push_invalidations(installation.invalidations);
        self.publish_tracking(&nodes);
        self.publish_outage(None);
        self.count_topology_change();
        let removed = installation.removed.iter().filter_map(|id| nodes.running.remove(id)).collect();
        drop(nodes);
        self.close_nodes(removed);
        self.log_freshness();
    }

    /// Closes nodes that were removed, and routes their jobs again.
    fn close_nodes(&self, removed: Vec<Arc<Node>>) {
        for node in removed {
            let jobs = node.close();
            self.remove_node_status(node.id);
            self.reroute(jobs);
        }
    }

    /// Records that invalidations arrive from a node from now on, or the reason why not.
    pub(super) fn set_watched(&self, id: NodeId, watched: Result<(), String>) {
        self.change_tracking(|set| set.set_watched(id, watched));
    }

    /// Records that the map in force is current, or the reason why this is not known.
    pub(super) fn set_topology(&self, topology: Result<(), String>) {
        self.change_tracking(|set| set.set_topology(topology));
    }

    /// Changes what tracking depends on, tells the event loop, and publishes the state.
    fn change_tracking(&self, change: impl FnOnce(&mut NodeSet) -> Option<Invalidation>) {
        let mut nodes = self.nodes();
        let invalidation = change(&mut nodes.set);
        self.push_invalidations(invalidation.into_iter().collect());
        self.publish_tracking(&nodes);
        drop(nodes);
        self.log_freshness();
    }

    /// Publishes whether tracking covers all keys. Only with `REDIS_TRACKING`.
    fn publish_tracking(&self, nodes: &Nodes) {
        if self.settings.tracking && nodes.set.is_settled() {
            self.update_tracking(nodes.set.tracking_result());
        }
    }

    /// Routes the parked jobs again, after the topology thread has done what it could. Fails those
    /// that no node serves, with `failure`.
    pub(super) fn retry_parked(&self, failure: &Failure) {
        self.fail_expired_parked();
        let mut nodes = self.nodes();
        let parked = std::mem::take(&mut nodes.parked);
        let unserved = nodes.distribute(parked);
        self.publish_parked(0);
        drop(nodes);
        self.fail(unserved, failure);
    }

    /// Fails the parked jobs that have waited for longer than their first clients do.
    pub(super) fn fail_expired_parked(&self) {
        let (now, mut nodes) = (Instant::now(), self.nodes());
        let expired: Vec<QueuedJob> = nodes.parked.extract_if(.., |queued| queued.expires_at <= now).collect();
        self.publish_parked(nodes.parked.len());
        drop(nodes);
        self.fail(expired, &Failure::Timeout);
    }

    /// Ends all threads of all nodes after their present task.
    pub(super) fn close(&self) {
        let mut nodes = self.nodes();
        nodes.closed = true;
        (nodes.topology, nodes.parked) = (None, Vec::new());
        let running = std::mem::take(&mut nodes.running);
        drop(nodes);
        running.values().for_each(|node| _ = node.close());
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::Batch;
    use super::super::node::tests::queued;
    use super::super::tests::{job, pool_shared};
    use super::*;
    use crate::upstream::UpstreamAddress;
    use std::time::Duration;

    fn address(port: u16) -> UpstreamAddress {
        UpstreamAddress::Tcp("h".into(), port)
    }

    /// Returns a map in which the primary at `port` serves all slots, beside others without slots.
    fn map(port: u16, others: &[u16]) -> Arc<SlotMap> {
        let primary = |port| Primary { address: address(port), id: None };
        Arc::new(SlotMap::of_cluster([(0, 16_383, primary(port))], others.iter().map(|&port| primary(port))))
    }

    /// Adds the nodes of a map without their threads: jobs stay in their queues.
    fn prepare(pool: &Arc<PoolShared>, map: &SlotMap) {
        let mut nodes = pool.nodes();
        for (id, primary) in nodes.set.prepare(map) {
            nodes.running.insert(id, Arc::new(Node::new(id, primary, Arc::clone(pool))));
        }
    }

    /// Returns a pool with these nodes.
    fn pool(port: u16, others: &[u16]) -> Arc<PoolShared> {
        let pool = pool_shared(Arc::default());
        prepare(&pool, &map(port, others));
        pool.install(&map(port, others));
        pool
    }

    /// Returns fetch id, hops and `is_asking` of each job in the queue of a node.
    fn queue_of(pool: &PoolShared, port: u16) -> Vec<(usize, u8, bool)> {
        let nodes = pool.nodes();
        let node = nodes.set.node_at(&address(port)).and_then(|id| nodes.running.get(&id)).expect("a node");
        let state = node.state();
        state.queue.iter().map(|queued| (queued.job.fetch_id, queued.hops, queued.is_asking)).collect()
    }

    /// Returns the ids and failures of the completions so far.
    fn failed(pool: &PoolShared) -> Vec<(usize, Failure)> {
        let mut completions = Vec::new();
        pool.drain_inbox(&mut completions, &mut Vec::new(), usize::MAX);
        completions.into_iter().map(|done| (done.fetch_id, done.result.expect_err("a failure"))).collect()
    }

    fn redirect(pool: &PoolShared, queued: QueuedJob, is_ask: bool, port: u16) {
        let from = Primary { address: address(1), id: None };
        pool.redirect(&from, vec![(queued, Redirection { is_ask, target: Some(address(port)) })]);
    }

    /// A redirected job goes to the queue of a known node. One that is full takes none.
    #[test]
    fn redirected_job_goes_to_known_node() {
        let pool = pool(1, &[2]);
        pool.submit(&mut vec![job(0)], Instant::now());
        for (id, is_ask, port) in [(1, false, 1), (2, true, 2), (3, false, 2)] {
            redirect(&pool, queued(id), is_ask, port);
        }
        assert_eq!(queue_of(&pool, 1), [(0, 0, false), (1, 1, false)]);
        assert_eq!(queue_of(&pool, 2), [(2, 1, true), (3, 1, false)]);
    }

    /// A job for an unknown node, or of nodes that disagree, waits for the next map. After the last
    /// redirection it fails.
    #[test]
    fn redirections_are_bounded() {
        let pool = pool(1, &[2]);
        redirect(&pool, queued(1), true, 3);
        redirect(&pool, QueuedJob { hops: MAX_IMMEDIATE_HOPS, ..queued(2) }, true, 2);
        redirect(&pool, QueuedJob { hops: MAX_HOPS, ..queued(3) }, false, 2);
        assert!(queue_of(&pool, 1).is_empty() && queue_of(&pool, 2).is_empty());
        assert!(matches!(&failed(&pool)[..], [(3, Failure::NotReady(_))]));
        pool.retry_parked(&Failure::Unavailable);
        assert_eq!(queue_of(&pool, 1), [(1, 1, false), (2, MAX_IMMEDIATE_HOPS + 1, false)], "they are routed by slot");
        assert_eq!(failed(&pool), []);
    }

    /// Jobs wait for the first map. Without one they fail, and so do those that are too old.
    #[test]
    fn parked_jobs_complete() {
        let pool = pool_shared(Arc::default());
        let later = Instant::now() + Duration::from_secs(60);
        pool.submit(&mut vec![job(1)], later);
        pool.retry_parked(&Failure::Unavailable);
        assert_eq!(failed(&pool), [(1, Failure::Unavailable)]);
        pool.submit(&mut vec![job(2)], later);
        pool.submit(&mut vec![job(3)], Instant::now());
        prepare(&pool, &map(1, &[]));
        pool.install(&map(1, &[]));
        pool.retry_parked(&Failure::Unavailable);
        assert_eq!((queue_of(&pool, 1), failed(&pool)), (vec![(2, 0, false)], vec![(3, Failure::Timeout)]));
        let mut jobs = (0..QUEUE_LIMIT + 5).map(job).collect();
        pool.submit(&mut jobs, later);
        assert_eq!(jobs.len(), 6, "the queue holds one job already");
    }

    /// A new map takes the jobs of a removed node to the present one, and flushes.
    #[test]
    fn jobs_of_removed_node_are_routed_again() {
        let pool = pool(1, &[]);
        pool.submit(&mut vec![job(1), job(2)], Instant::now());
        let removed = pool.nodes().running.values().next().map(Arc::clone).expect("a node");
        prepare(&pool, &map(2, &[]));
        pool.install(&map(2, &[]));
        assert_eq!(queue_of(&pool, 2), [(1, 0, false), (2, 0, false)]);
        assert!(removed.is_closed());
        let mut batch = Batch::new(removed, vec![queued(3)]);
        assert!(batch.requeue(), "a job in a batch goes there too");
        assert_eq!(queue_of(&pool, 2).len(), 3);
        let mut invalidations = Vec::new();
        pool.drain_inbox(&mut Vec::new(), &mut invalidations, usize::MAX);
        assert_eq!(invalidations, [Invalidation::All]);
    }
}
