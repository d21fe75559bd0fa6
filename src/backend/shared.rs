//! State that all nodes of one worker share: its inbox, the freshness in force, and its nodes.

use super::freshness::{Freshness, FreshnessUpdate};
use super::inbox::{Inbox, MAX_PENDING_INVALIDATIONS};
use super::node_set::NodeId;
use super::nodes::Nodes;
use super::timed_throttle::TimedThrottle;
use super::{BackendConfig, INVALIDATIONS_PER_LOCK, TTL_RETRY_DELAY};
use crate::metrics::{NodeStatus, TrackingState, WorkerSlot};
use crate::types::{Completion, Invalidation};
use crate::upstream::UpstreamAddress;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// State shared by the event loop of a worker, its nodes and the topology thread.
///
/// Locks are taken in this order: `logged_freshness`, `nodes`, the state of the topology thread,
/// the state of a node, `inbox`, `freshness`, the status in the slot. Each but the first is held
/// only to move data.
pub(super) struct PoolShared {
    pub(super) settings: BackendConfig,
    nodes: Mutex<Nodes>,
    inbox: Mutex<Inbox>,
    /// True if the inbox may have items. Changed only under the lock of `inbox`.
    inbox_ready: AtomicBool,
    freshness: Mutex<FreshnessState>,
    /// The freshness that the log shows. Held while a line is logged, so that the last line is the
    /// present state. The event loop never takes it.
    logged_freshness: Mutex<Freshness>,
    /// Throttle for the log line about redirections to other nodes of a cluster.
    redirection_log: Mutex<TimedThrottle>,
    /// Slot of the worker, where the status of Redis is published.
    slot: Arc<WorkerSlot>,
    wake: Box<dyn Fn() + Send + Sync>,
}

struct FreshnessState {
    present: Freshness,
    /// End of the time in which keys are read without `PTTL`.
    skip_ttl_until: Option<Instant>,
}

/// Locks `mutex`, also after a panic of another thread: each change is a single move.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PoolShared {
    pub(super) fn new(
        settings: &BackendConfig,
        worker_slot: Arc<WorkerSlot>,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> PoolShared {
        let present = settings.freshness();
        let shared = PoolShared {
            settings: settings.clone(),
            nodes: Mutex::new(Nodes::new()),
            inbox: Mutex::default(),
            inbox_ready: AtomicBool::new(false),
            freshness: Mutex::new(FreshnessState { present: present.clone(), skip_ttl_until: None }),
            logged_freshness: Mutex::new(present.clone()),
            redirection_log: Mutex::default(),
            slot: worker_slot,
            wake: Box::new(wake),
        };
        let mut redis = shared.slot.redis();
        redis.freshness = present.to_string();
        let tracking = if settings.tracking { TrackingState::Lost } else { TrackingState::Off };
        redis.set_tracking(tracking, Instant::now());
        drop(redis);
        shared
    }

    /// Locks the nodes.
    pub(super) fn nodes(&self) -> MutexGuard<'_, Nodes> {
        lock(&self.nodes)
    }

    /// Changes the published status of a node.
    pub(super) fn update_node_status(&self, id: NodeId, change: impl FnOnce(&mut NodeStatus)) {
        // A removed node has threads until their present task ends.
        if let Some(node) = self.slot.redis().node(id.number()) {
            change(node);
        }
    }

    /// Publishes a new node, which is not available yet.
    pub(super) fn add_node_status(&self, id: NodeId, address: &UpstreamAddress) {
        let mut status = NodeStatus { address: address.to_string(), ..NodeStatus::default() };
        status.set_unavailable(Some("not connected to Redis yet"), Instant::now());
        self.slot.redis().add_node(id.number(), status);
    }

    /// Removes the published status of a node.
    pub(super) fn remove_node_status(&self, id: NodeId) {
        self.slot.redis().remove_node(id.number());
    }

    /// Publishes why no key can be read, whatever single nodes say; `None` if some can.
    pub(super) fn publish_outage(&self, reason: Option<&str>) {
        let mut redis = self.slot.redis();
        let since = redis.total_outage.as_ref().map_or_else(Instant::now, |(_, since)| *since);
        redis.total_outage = reason.map(|reason| (reason.to_owned(), since));
    }

    /// Returns the published reason why no key can be read.
    #[cfg(test)]
    pub(super) fn outage(&self) -> Option<String> {
        self.slot.redis().outage().map(|(reason, _)| reason.to_owned())
    }

    /// Publishes the number of jobs that wait for a node.
    pub(super) fn publish_parked(&self, parked: usize) {
        self.slot.redis().parked = parked;
    }

    /// Counts a search for the nodes.
    pub(super) fn count_topology_request(&self) {
        self.slot.redis().topology_requests += 1;
    }

    /// Counts a change of the map.
    pub(super) fn count_topology_change(&self) {
        self.slot.redis().topology_changes += 1;
    }

    /// Returns true if a redirection to another cluster node may be logged now.
    pub(super) fn should_log_redirection(&self) -> bool {
        lock(&self.redirection_log).admit().is_some()
    }

    /// Returns true if fetchers send `PTTL` with each read.
    pub(super) fn reads_ttl(&self) -> bool {
        lock(&self.freshness).skip_ttl_until.is_none_or(|until| until <= Instant::now())
    }

    /// Records that Redis replies to `PTTL`, or the reason why it denies it.
    pub(super) fn set_ttl_support(&self, result: Result<(), String>) {
        let skip_until = result.is_err().then(|| Instant::now() + TTL_RETRY_DELAY);
        let mut freshness = lock(&self.freshness);
        freshness.skip_ttl_until = skip_until;
        let update = freshness.present.expiry.update(result);
        self.publish_freshness(&freshness.present, update);
        drop(freshness);
        // Each batch calls this, and nearly all change nothing.
        if update != FreshnessUpdate::Unchanged {
            self.log_freshness();
        }
    }

    /// Records whether tracking covers all keys, as `nodes` say, or the reason why not. The caller
    /// logs the change when it holds no lock.
    pub(super) fn update_tracking(&self, result: Result<(), String>) {
        let mut freshness = lock(&self.freshness);
        let update = freshness.present.tracking.update(result);
        self.publish_freshness(&freshness.present, update);
    }

    fn publish_freshness(&self, present: &Freshness, update: FreshnessUpdate) {
        if update != FreshnessUpdate::Unchanged {
            present.publish(&mut self.slot.redis(), Instant::now());
        }
    }

    /// Logs the freshness if the log shows another one. Must be called without a lock, because the
    /// event loop takes the same locks and must not wait for the log.
    pub(super) fn log_freshness(&self) {
        let mut logged = lock(&self.logged_freshness);
        let present = lock(&self.freshness).present.clone();
        if logged.differs_from(&present) {
            present.log();
        }
        *logged = present;
    }

    pub(super) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        lock(&self.inbox)
    }

    /// Moves all completions and up to `max` invalidations out of the inbox, as
    /// [`super::Pool::drain_inbox`] does.
    pub(super) fn drain_inbox(
        &self,
        completions: &mut Vec<Completion>,
        invalidations: &mut Vec<Invalidation>,
        max: usize,
    ) -> bool {
        // In most ticks the inbox is empty, and this check avoids the lock.
        if !self.inbox_ready.load(Ordering::Acquire) {
            return false;
        }
        let mut inbox = self.inbox();
        let more = inbox.drain(completions, invalidations, max);
        self.inbox_ready.store(more, Ordering::Relaxed);
        more
    }

    /// Passes completions to the event loop.
    pub(super) fn deliver(&self, completions: Vec<Completion>) {
        let mut inbox = self.inbox();
        let needs_wakeup = inbox.push_completions(completions);
        self.notify_loop(inbox, needs_wakeup);
    }

    /// Makes added items visible to the loop. Releases the inbox and wakes the loop if it must.
    fn notify_loop(&self, inbox: MutexGuard<'_, Inbox>, needs_wakeup: bool) {
        self.inbox_ready.store(true, Ordering::Release);
        drop(inbox);
        if needs_wakeup {
            (self.wake)();
        }
    }

    /// Adds invalidations to the inbox. More than fit become one [`Invalidation::All`].
    pub(super) fn push_invalidations(&self, mut invalidations: Vec<Invalidation>) {
        let mut overflowed = invalidations.len() > MAX_PENDING_INVALIDATIONS;
        if overflowed {
            invalidations = vec![Invalidation::All];
        }
        let mut invalidations = invalidations.into_iter();
        while invalidations.len() > 0 {
            let mut inbox = self.inbox();
            // The loop may wait for this lock, so each hold is short and logs nothing.
            invalidations
                .by_ref()
                .take(INVALIDATIONS_PER_LOCK)
                .for_each(|invalidation| overflowed |= inbox.push_invalidation(invalidation));
            let needs_wakeup = inbox.needs_wakeup();
            self.notify_loop(inbox, needs_wakeup);
        }
        if overflowed {
            log::warn!("invalidation backlog overflow: cache flushed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::freshness::Guarantee;
    use super::super::tests::pool_shared;
    use super::*;

    /// After Redis denied `PTTL`, keys are read without it until the retry delay has passed.
    #[test]
    fn denied_ttl_is_retried_after_delay() {
        let shared = pool_shared(Arc::default());
        assert!(shared.reads_ttl());
        shared.set_ttl_support(Err("NOPERM".into()));
        assert!(!shared.reads_ttl());
        assert!(matches!(lock(&shared.freshness).present.expiry, Guarantee::Inactive { .. }));
        let until = lock(&shared.freshness).skip_ttl_until.replace(Instant::now()).expect("no time of the next try");
        assert!(until > Instant::now() + TTL_RETRY_DELAY / 2);
        assert!(shared.reads_ttl());
        shared.set_ttl_support(Ok(()));
        assert!(shared.reads_ttl());
        assert_eq!(lock(&shared.freshness).present.expiry, Guarantee::Active);
    }
}
