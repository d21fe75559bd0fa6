//! Backend: reads keys from Redis and receives its invalidations. The only module that uses
//! `redis`.
//!
//! The event loop submits each job to the bounded queue of the node that serves its key. Each node
//! has fetcher threads, each with one blocking connection, and a tracking thread that receives
//! invalidations. All put their results into the `Inbox` of the worker, which wakes the loop.
//!
//! | what | files |
//! |---|---|
//! | one node | `node`, `task`, `fetcher`, `batch`, `reader`, `key_command`, `tracking`, `subscription`, `role_watch`, `availability` |
//! | all nodes of a worker | `nodes`, `node_set`, `shared`, `inbox`, `freshness` |
//! | finding the nodes | `topology`, `cluster`, `sentinel`, `slot_map` |
//! | connections | `access`, `connect`, `handshake`, `identity`, `stream`, `tls`, `wire` |
//!
//! A fetcher takes all queued jobs, up to [`MAX_BATCH`], and reads them in one round trip; long
//! values take more. So batches grow under load, and an idle proxy adds no delay. Each accepted job
//! completes exactly once, also if the fetcher panics (job-completes-once). Locks are held only to
//! move jobs and inbox items, never during I/O (loop-never-blocks).

mod access;
mod availability;
mod batch;
mod check;
mod cluster;
mod connect;
mod fetcher;
mod freshness;
mod handshake;
mod identity;
mod inbox;
mod key_command;
mod node;
mod node_set;
mod nodes;
mod reader;
mod role_watch;
mod sentinel;
mod shared;
mod slot_map;
mod stream;
mod subscription;
mod task;
mod timed_throttle;
#[cfg(not(feature = "tls"))]
#[path = "tls/absent.rs"]
mod tls;
#[cfg(feature = "tls")]
mod tls;
mod topology;
mod tracking;
mod wire;

use crate::metrics::{BATCH_SIZE_BUCKETS, WorkerSlot};
use crate::types::{Completion, Invalidation, Job};
pub use access::RedisAccess;
pub use check::{CheckStep, Verdict, check_redis};
use freshness::Freshness;
pub use node_set::{Installation, NodeId, NodeSet};
pub use reader::Reading;
use shared::PoolShared;
pub use slot_map::{Primary, SLOTS, SlotMap, slot_of};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most queued jobs of a node: one for each of 10,000 client connections. Further jobs fail at
/// once, because they would wait longer than their clients do. Each node has a queue of its own, so
/// that a hung one leaves no less to the others.
pub const QUEUE_LIMIT: usize = 10_000;

/// Most keys read in one round trip. Beyond about a hundred, a larger batch saves little and leaves
/// other fetchers idle.
pub const MAX_BATCH: usize = 128;

// The histogram of batch sizes ends with the largest batch.
const _: () = assert!(BATCH_SIZE_BUCKETS[BATCH_SIZE_BUCKETS.len() - 1] == MAX_BATCH as u64);

/// Invalidations added to the inbox under one lock (some 10 us).
const INVALIDATIONS_PER_LOCK: usize = 1024;

/// Interval of probes while no keys are read, so that readiness and metrics stay current.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Delay until `PTTL` is tried again after Redis denied it. An operator may have granted the
/// permission.
const TTL_RETRY_DELAY: Duration = Duration::from_secs(30);

/// Access to Redis, and limits.
#[derive(Clone)]
pub struct BackendConfig {
    /// Address, credentials and TLS settings.
    pub access: Arc<RedisAccess>,
    /// Number of fetcher threads, each with one connection.
    pub connections: usize,
    /// Bounds connecting, the handshake and each round trip.
    pub timeout: Duration,
    /// Lifetime of a cache entry, stated in the freshness guarantee.
    pub cache_ttl: Duration,
    /// True to receive invalidations (`CLIENT TRACKING`).
    pub tracking: bool,
    /// Longest value that is read, in bytes.
    pub max_value_bytes: usize,
}

/// Handle of the event loop to its fetchers. Dropping it ends each fetcher after its present task.
pub struct Pool {
    shared: Arc<PoolShared>,
}

impl BackendConfig {
    /// Returns the freshness before anything is known.
    fn freshness(&self) -> Freshness {
        Freshness { cache_ttl: self.cache_ttl, ..Freshness::default() }
    }
}

impl Pool {
    /// Starts the fetchers and, with tracking, the tracking thread. They publish the status of
    /// Redis in `worker_slot`. They call `wake` when the loop must drain its inbox; `wake` must not
    /// block.
    pub fn start(
        settings: &BackendConfig,
        worker_slot: Arc<WorkerSlot>,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Pool> {
        let pool = Pool { shared: Arc::new(PoolShared::new(settings, worker_slot, wake)) };
        if !settings.tracking {
            settings.freshness().log();
        }
        match settings.access.topology() {
            Some(topology) => topology.register(&pool.shared)?,
            None => {
                let primary = Primary { address: settings.access.addresses()[0].clone(), id: None };
                let map = Arc::new(SlotMap::of_one(primary));
                pool.shared.prepare(&map)?;
                pool.shared.install(&map);
            }
        }
        Ok(pool)
    }

    /// Moves jobs from `jobs` to the queues of their nodes. Jobs that exceed [`QUEUE_LIMIT`] stay
    /// in `jobs`.
    pub fn submit(&self, jobs: &mut Vec<Job>) {
        if !jobs.is_empty() {
            self.shared.submit(jobs, Instant::now() + self.shared.settings.timeout);
        }
    }

    /// Moves all completions into `completions`, and up to `max` invalidations into
    /// `invalidations`. Returns true if some remain. The loop must then call again without waiting
    /// for a wakeup.
    pub fn drain_inbox(
        &self,
        completions: &mut Vec<Completion>,
        invalidations: &mut Vec<Invalidation>,
        max: usize,
    ) -> bool {
        self.shared.drain_inbox(completions, invalidations, max)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Failure;
    use crate::upstream::{Upstream, UpstreamAddress};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Returns settings of a Redis that no test connects to.
    pub(super) fn settings(upstream: Upstream) -> BackendConfig {
        BackendConfig {
            access: Arc::new(RedisAccess::load(upstream).expect("no file is read")),
            connections: 1,
            timeout: Duration::from_secs(1),
            cache_ttl: Duration::ZERO,
            tracking: false,
            max_value_bytes: 1,
        }
    }

    /// Returns the shared state of a pool without nodes.
    pub(super) fn pool_shared(wakeups: Arc<AtomicUsize>) -> Arc<PoolShared> {
        let wake = move || {
            wakeups.fetch_add(1, Ordering::Relaxed);
        };
        let settings = settings(Upstream::single(UpstreamAddress::Tcp("h".into(), 1)));
        Arc::new(PoolShared::new(&settings, Arc::default(), wake))
    }

    pub(super) fn job(fetch_id: usize) -> Job {
        Job { fetch_id, key: b"k"[..].into() }
    }

    fn completion(fetch_id: usize) -> Completion {
        Completion { fetch_id, result: Err(Failure::Timeout), may_cache: true }
    }

    /// Several deliveries between two drains wake the loop once.
    #[test]
    fn deliveries_before_drain_wake_once() {
        let wakeups = Arc::new(AtomicUsize::new(0));
        let pool = Pool { shared: pool_shared(Arc::clone(&wakeups)) };
        let mut taken = Vec::new();
        for round in 1..=3 {
            pool.shared.deliver(vec![completion(1), completion(2)]);
            pool.shared.deliver(vec![completion(3)]);
            assert_eq!(wakeups.load(Ordering::Relaxed), round);
            assert!(!pool.drain_inbox(&mut taken, &mut Vec::new(), 1));
            assert_eq!(taken.len(), round * 3);
        }
    }
}
