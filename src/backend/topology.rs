//! Topology thread: finds the nodes of Redis, and puts each new map into force in all workers.
//!
//! One thread of the process asks at an interval, and sooner when a node shows that something has
//! changed. `cluster.rs` asks the nodes of a cluster, `sentinel.rs` asks sentinels. Workers whose
//! nodes are fixed have no such thread.
//!
//! The nodes of a new map start first, while the old map is in force. Their trackers get some time
//! to connect, so that tracking need not stop. Then the map is installed, and everything cached is
//! invalidated once.

use super::BackendConfig;
use super::cluster::ClusterSource;
use super::sentinel::SentinelSource;
use super::shared::PoolShared;
use super::slot_map::{Primary, SlotMap};
use crate::log_throttle::LogThrottle;
use crate::types::{Failure, Millis};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Shortest time between two rounds. Thousands of redirections cause ten rounds a second at most.
const MIN_ROUND_INTERVAL: Duration = Duration::from_millis(100);

/// Longest random addition to it, so that many proxies do not ask at the same time.
const MAX_JITTER: Duration = Duration::from_millis(20);

/// Time without an answer after which the map in force may be outdated, and tracking counts as
/// lost.
const MAX_SILENCE: Duration = Duration::from_secs(5);

/// Time that the trackers of new nodes get to connect before a map is installed without them.
const WATCH_GRACE: Duration = Duration::from_millis(250);

/// Interval of the checks whether they have connected.
const WATCH_POLL: Duration = Duration::from_millis(5);

/// Nodes as a source has found them.
pub(super) struct FoundMap {
    pub(super) map: SlotMap,
    /// Time of the answer.
    pub(super) confirmed_at: Instant,
}

/// Handle of the workers to the topology thread.
#[derive(Default)]
pub(super) struct Topology {
    state: Mutex<TopologyState>,
    requested: Condvar,
}

#[derive(Default)]
struct TopologyState {
    pools: Vec<Weak<PoolShared>>,
    is_running: bool,
    is_requested: bool,
    /// Node that named an unknown one. It knows more than others.
    informed: Option<Primary>,
}

impl Topology {
    fn state(&self) -> MutexGuard<'_, TopologyState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the nodes of a worker. The first one starts the thread.
    ///
    /// # Errors
    ///
    /// The thread cannot be started.
    pub(super) fn register(self: &Arc<Topology>, pool: &Arc<PoolShared>) -> io::Result<()> {
        pool.set_topology_thread(Arc::clone(self));
        pool.publish_no_nodes(Some("the nodes of Redis are not known yet"));
        let mut state = self.state();
        state.pools.push(Arc::downgrade(pool));
        state.is_requested = true;
        if !state.is_running {
            let thread = TopologyThread::new(Arc::clone(self), &pool.settings)?;
            std::thread::Builder::new().name("redis-topology".into()).spawn(move || thread.run())?;
            state.is_running = true;
        }
        drop(state);
        self.requested.notify_one();
        Ok(())
    }

    /// Makes the thread look for the nodes now, unless it did so a moment ago.
    pub(super) fn request(&self) {
        let was_requested = std::mem::replace(&mut self.state().is_requested, true);
        if !was_requested {
            self.requested.notify_one();
        }
    }

    /// Does the same, after the node `informed` has named an unknown one: it is asked first.
    pub(super) fn request_from(&self, informed: &Primary) {
        self.state().informed = Some(informed.clone());
        self.request();
    }

    /// Returns the workers. Without any the thread ends, and the next registration starts another.
    fn pools(&self) -> Vec<Arc<PoolShared>> {
        let mut state = self.state();
        state.pools.retain(|pool| pool.strong_count() > 0);
        state.is_running = !state.pools.is_empty();
        state.pools.iter().filter_map(Weak::upgrade).collect()
    }

    /// Waits until the next round is due: `interval` after `last`, or sooner on request.
    fn wait(&self, last: Instant, interval: Duration) {
        let jitter = MAX_JITTER.mul_f64(super::connect::random_fraction());
        let mut state = self.state();
        loop {
            let delay = if state.is_requested { interval.min(MIN_ROUND_INTERVAL + jitter) } else { interval };
            let left = (last + delay).saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.is_requested = false;
                return;
            }
            state = self.requested.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Origin of the map.
enum Source {
    Cluster(Box<ClusterSource>),
    Sentinels(SentinelSource),
}

impl Source {
    fn find(&mut self, informed: Option<Primary>) -> Result<FoundMap, String> {
        match self {
            Source::Cluster(cluster) => cluster.find(informed),
            Source::Sentinels(sentinels) => sentinels.find(),
        }
    }
}

/// State of the thread.
struct TopologyThread {
    topology: Arc<Topology>,
    interval: Duration,
    source: Source,
    /// Map that was found last.
    map: Option<Arc<SlotMap>>,
    /// Time of the last answer.
    confirmed_at: Option<Instant>,
    /// True while there is a problem.
    has_problem: bool,
    /// Throttle for the log lines about problems. Each round may meet another one.
    problem_log: LogThrottle,
    /// Throttle for the log lines about moved slots. While a cluster is resharded, each round finds
    /// some.
    moved_log: LogThrottle,
    started_at: Instant,
}

impl TopologyThread {
    fn new(topology: Arc<Topology>, settings: &BackendConfig) -> io::Result<TopologyThread> {
        let source = match settings.access.sentinel() {
            Some(sentinel) => {
                Source::Sentinels(SentinelSource::start(settings, &sentinel.master, Arc::clone(&topology))?)
            }
            None => Source::Cluster(Box::new(ClusterSource::new(settings))),
        };
        let interval = settings.access.topology_interval();
        Ok(TopologyThread {
            topology,
            interval,
            source,
            map: None,
            confirmed_at: None,
            has_problem: false,
            problem_log: LogThrottle::default(),
            moved_log: LogThrottle::default(),
            started_at: Instant::now(),
        })
    }

    /// Runs rounds until no worker is left.
    fn run(mut self) {
        loop {
            let started_at = Instant::now();
            let pools = self.topology.pools();
            if pools.is_empty() {
                return;
            }
            pools.iter().for_each(|pool| pool.count_topology_request());
            let round = catch_unwind(AssertUnwindSafe(|| {
                let informed = self.topology.state().informed.take();
                let found = self.source.find(informed);
                self.apply(found, &pools);
            }));
            if round.is_err() {
                log::error!("the search for the nodes of Redis panicked, it goes on; please report the panic above");
            }
            drop(pools);
            self.topology.wait(started_at, self.interval);
        }
    }

    /// Installs a new map, and settles the jobs that have waited for it.
    fn apply(&mut self, found: Result<FoundMap, String>, pools: &[Arc<PoolShared>]) {
        let problem = match found {
            Ok(found) => {
                self.confirmed_at = Some(found.confirmed_at);
                self.install(found.map, pools).err()
            }
            Err(problem) => Some(problem),
        };
        self.log_problem(problem.as_deref());
        // An answer is older than the interval while the next one is awaited.
        let is_current = self.confirmed_at.is_some_and(|at| at.elapsed() < MAX_SILENCE.max(2 * self.interval));
        let failure = match &problem {
            None => Failure::NotReady("no primary of Redis Cluster serves this key".into()),
            Some(_) => Failure::Unavailable,
        };
        let topology = problem.filter(|_| !is_current || self.map.is_none());
        for pool in pools {
            pool.set_topology(topology.clone().map_or(Ok(()), Err));
            pool.retry_parked(&failure);
        }
    }

    /// Logs a problem, at most once in 10 s, and its end.
    fn log_problem(&mut self, problem: Option<&str>) {
        let had_problem = std::mem::replace(&mut self.has_problem, problem.is_some());
        if let Some(problem) = problem {
            let is_admitted = self.problem_log.admit(self.started_at.elapsed().as_millis() as Millis).is_some();
            log::log!(
                if is_admitted { log::Level::Error } else { log::Level::Debug },
                "cannot find the nodes of Redis: {problem}"
            );
        } else if had_problem {
            log::info!("the nodes of Redis are found again");
        }
    }

    /// Puts a map into force in each worker that has another one.
    ///
    /// # Errors
    ///
    /// Threads cannot be started. The old map stays in force.
    fn install(&mut self, map: SlotMap, pools: &[Arc<PoolShared>]) -> Result<(), String> {
        let map = match &self.map {
            Some(present) if **present == map => Arc::clone(present),
            _ => Arc::new(map),
        };
        let is_outdated = |pool: &&Arc<PoolShared>| !pool.nodes().set.is_installed(&map);
        let outdated: Vec<&Arc<PoolShared>> = pools.iter().filter(is_outdated).collect();
        for pool in &outdated {
            pool.prepare(&map).map_err(|error| {
                format!("cannot start threads for a new node: {error}; raise the limit of processes (ulimit -u)")
            })?;
        }
        let is_unwatched = |pool: &&Arc<PoolShared>| {
            let nodes = pool.nodes();
            nodes.set.is_tracked() && !nodes.set.is_watched(&map)
        };
        let prepared_at = Instant::now();
        while outdated.iter().any(is_unwatched) && prepared_at.elapsed() < WATCH_GRACE {
            std::thread::sleep(WATCH_POLL);
        }
        outdated.iter().for_each(|pool| pool.install(&map));
        let previous = self.map.replace(Arc::clone(&map));
        if previous.as_ref().is_none_or(|previous| **previous != *map) {
            self.log_map(previous.as_deref(), &map);
        }
        Ok(())
    }

    /// Logs a new map: its primaries, or only the number of slots that moved between them.
    fn log_map(&mut self, previous: Option<&SlotMap>, map: &SlotMap) {
        let kept = |previous: &&SlotMap| {
            previous.primaries() == map.primaries() && previous.unserved_slots() == map.unserved_slots()
        };
        if let Some(previous) = previous.filter(kept) {
            let is_admitted = self.moved_log.admit(self.started_at.elapsed().as_millis() as Millis).is_some();
            log::log!(
                if is_admitted { log::Level::Info } else { log::Level::Debug },
                "Redis Cluster has moved {} slots between its nodes: cache flushed",
                map.moved_slots(previous)
            );
        } else {
            log_primaries(&self.source, map);
        }
    }
}

/// Logs the primaries of a map.
fn log_primaries(source: &Source, map: &SlotMap) {
    let addresses = map.primaries().iter().map(|primary| primary.address.to_string()).collect::<Vec<_>>().join(", ");
    match (source, map.unserved_slots()) {
        (Source::Sentinels(_), _) => log::info!("the sentinels name {addresses} as the primary"),
        (Source::Cluster(_), 0) => log::info!("Redis Cluster has the primaries {addresses}"),
        (Source::Cluster(_), slots) => log::warn!(
            "Redis Cluster has the primaries {addresses}, and {slots} slots without one: their keys cannot be read until \
             the cluster is repaired (redis-cli --cluster check)"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests cause a round sooner than the interval, but not sooner than the shortest one.
    #[test]
    fn requests_shorten_the_wait() {
        let topology = Topology::default();
        let last = Instant::now();
        topology.request();
        topology.wait(last, Duration::from_secs(3600));
        assert!(last.elapsed() >= MIN_ROUND_INTERVAL);
        assert!(!topology.state().is_requested, "the round answers the request");
        // The interval may be as short.
        let last = Instant::now();
        topology.wait(last, MIN_ROUND_INTERVAL);
        assert!(last.elapsed() >= MIN_ROUND_INTERVAL);
    }
}
