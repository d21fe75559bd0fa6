//! Topology thread: finds the nodes of Redis, and puts each new map into force in all workers.
//!
//! One thread of the process asks at an interval, and sooner when a node shows that something has
//! changed. `cluster.rs` asks the nodes of a cluster, `sentinel.rs` asks sentinels. Both run on a
//! thread of their own (`redis-finder`), because the network may hang. Workers whose nodes are
//! fixed have no such threads.
//!
//! The nodes of a new map start first, while the old map is in force. Their trackers get some time
//! to connect, so that tracking need not stop. Then the map is installed, and everything cached is
//! invalidated once.

use super::BackendConfig;
use super::cluster::ClusterSource;
use super::sentinel::SentinelSource;
use super::shared::PoolShared;
use super::slot_map::{Primary, SlotMap};
use super::timed_throttle::TimedThrottle;
use crate::types::Failure;
use log::Level;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Shortest time between two rounds. Thousands of redirections cause ten rounds a second at most.
const MIN_ROUND_INTERVAL: Duration = Duration::from_millis(100);

/// Longest random addition to it, so that many proxies do not ask at the same time.
const MAX_JITTER: Duration = Duration::from_millis(20);

/// Time without an answer to trust after which the map in force may be outdated, and tracking
/// counts as lost.
pub(super) const MAX_SILENCE: Duration = Duration::from_secs(5);

/// Time that the trackers of new nodes get to connect before a map is installed without them.
const WATCH_GRACE: Duration = Duration::from_millis(250);

/// Interval of the checks whether they have connected.
const WATCH_POLL: Duration = Duration::from_millis(5);

/// Interval at which jobs and the silence are looked after while a round is in progress. The lookup
/// of a name may take as long as it likes.
const SETTLE_INTERVAL: Duration = Duration::from_millis(250);

/// Longest time between two rounds after one without an answer to trust.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Result of a round.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Finding {
    /// Map to put into force. `None` keeps the present one.
    pub(super) map: Option<SlotMap>,
    /// Reason why the present map may be outdated.
    pub(super) problem: Option<String>,
    /// True if the nodes say that they serve no keys at all.
    pub(super) is_down: bool,
}

impl Finding {
    /// Returns the result of a round without any answer.
    pub(super) fn failed(problem: String) -> Finding {
        Finding { problem: Some(problem), ..Finding::default() }
    }
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
        pool.publish_outage(Some("the nodes of Redis are not known yet"));
        let mut state = self.state();
        state.pools.push(Arc::downgrade(pool));
        state.is_requested = state.is_running;
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

    /// Begins a round, which answers all requests so far. Returns the workers, and the node to ask
    /// first. Without workers the thread ends, and the next registration starts another.
    fn begin_round(&self) -> (Vec<Arc<PoolShared>>, Option<Primary>) {
        let mut state = self.state();
        state.pools.retain(|pool| pool.strong_count() > 0);
        state.is_running = !state.pools.is_empty();
        state.is_requested = false;
        (state.pools.iter().filter_map(Weak::upgrade).collect(), state.informed.take())
    }

    /// Waits until the next round is due: `interval` after `last`, or sooner on request.
    fn wait(&self, last: Instant, interval: Duration) {
        let jitter = MAX_JITTER.mul_f64(super::connect::random_fraction());
        let mut state = self.state();
        loop {
            let delay = if state.is_requested { interval.min(MIN_ROUND_INTERVAL + jitter) } else { interval };
            let left = (last + delay).saturating_duration_since(Instant::now());
            if left.is_zero() {
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
    fn find(&mut self, informed: Option<Primary>) -> Finding {
        match self {
            Source::Cluster(cluster) => cluster.find(informed),
            Source::Sentinels(sentinels) => sentinels.find(),
        }
    }

    /// Runs a round for each request, until the topology thread ends.
    fn run(mut self, requests: &Receiver<Option<Primary>>, findings: &Sender<Finding>) {
        for informed in requests {
            let finding = catch_unwind(AssertUnwindSafe(|| self.find(informed)));
            let finding = finding.unwrap_or_else(|_| {
                Finding::failed("the search panicked; please report the panic logged before this line".into())
            });
            if findings.send(finding).is_err() {
                return;
            }
        }
    }
}

/// Thread that asks, as the topology thread sees it. It may wait for the network, which jobs must
/// not do.
struct Finder {
    requests: Sender<Option<Primary>>,
    findings: Receiver<Finding>,
}

impl Finder {
    fn start(source: Source) -> io::Result<Finder> {
        let ((requests, received), (sender, findings)) = (channel(), channel());
        std::thread::Builder::new().name("redis-finder".into()).spawn(move || source.run(&received, &sender))?;
        Ok(Finder { requests, findings })
    }
}

/// State of the thread.
struct TopologyThread {
    topology: Arc<Topology>,
    interval: Duration,
    is_cluster: bool,
    finder: Finder,
    /// Map that was installed last.
    map: Option<Arc<SlotMap>>,
    /// Begin of the first round since the last answer to trust. `None` after such an answer.
    silent_since: Option<Instant>,
    /// True while there is a problem.
    has_problem: bool,
    /// Throttle for the log lines about problems. Each round may meet another one.
    problem_log: TimedThrottle,
    /// Throttle for the log lines about moved slots. While a cluster is resharded, each round finds
    /// some.
    moved_log: TimedThrottle,
}

impl TopologyThread {
    fn new(topology: Arc<Topology>, settings: &BackendConfig) -> io::Result<TopologyThread> {
        let source = match settings.access.sentinel() {
            Some(sentinel) => {
                Source::Sentinels(SentinelSource::start(settings, &sentinel.master, Arc::clone(&topology))?)
            }
            None => Source::Cluster(Box::new(ClusterSource::new(settings))),
        };
        Ok(TopologyThread {
            topology,
            interval: settings.access.topology_interval(),
            is_cluster: settings.access.is_cluster(),
            finder: Finder::start(source)?,
            map: None,
            silent_since: None,
            has_problem: false,
            problem_log: TimedThrottle::default(),
            moved_log: TimedThrottle::default(),
        })
    }

    /// Runs rounds until no worker is left.
    fn run(mut self) {
        loop {
            let started_at = Instant::now();
            let (pools, informed) = self.topology.begin_round();
            if pools.is_empty() {
                return;
            }
            pools.iter().for_each(|pool| pool.count_topology_request());
            self.silent_since.get_or_insert(started_at);
            let finding = self.await_finding(informed, &pools);
            self.apply(finding, &pools);
            drop(pools);
            let interval = if self.has_problem { self.interval.min(MAX_RETRY_INTERVAL) } else { self.interval };
            self.topology.wait(started_at, interval);
        }
    }

    /// Lets the finder run a round, and looks after jobs and the silence meanwhile.
    fn await_finding(&self, informed: Option<Primary>, pools: &[Arc<PoolShared>]) -> Finding {
        if self.finder.requests.send(informed).is_err() {
            return Finding::failed("the thread that asks has ended; please report this".into());
        }
        loop {
            match self.finder.findings.recv_timeout(SETTLE_INTERVAL) {
                Ok(finding) => return finding,
                Err(RecvTimeoutError::Disconnected) => {
                    return Finding::failed("the thread that asks has ended; please report this".into());
                }
                Err(RecvTimeoutError::Timeout) => {
                    for pool in pools {
                        pool.fail_expired_parked();
                        if self.is_silent() {
                            pool.set_topology(Err("no answer about the nodes of Redis for 5 s".into()));
                        }
                    }
                }
            }
        }
    }

    /// Returns true if the map in force may be outdated, because no answer was to be trusted.
    fn is_silent(&self) -> bool {
        self.silent_since.is_some_and(|since| since.elapsed() >= MAX_SILENCE)
    }

    /// Installs a new map, and settles the jobs that have waited for it.
    fn apply(&mut self, finding: Finding, pools: &[Arc<PoolShared>]) {
        let installed = finding.map.map_or(Ok(()), |map| self.install(map, pools));
        let problem = installed.clone().err().or(finding.problem);
        if problem.is_none() {
            self.silent_since = None;
        }
        self.log_problem(problem.as_deref());
        let failure = match &problem {
            None => Failure::NotReady("no primary of Redis Cluster serves this key".into()),
            Some(_) => Failure::Unavailable,
        };
        let outage = problem.as_deref().filter(|_| finding.is_down || self.map.is_none());
        let topology = match &problem {
            // A map that was found but not installed is known to be outdated.
            Some(problem) if installed.is_err() || self.is_silent() || self.map.is_none() => Err(problem.clone()),
            _ => Ok(()),
        };
        for pool in pools {
            pool.publish_outage(outage);
            pool.set_topology(topology.clone());
            pool.retry_parked(&failure);
        }
    }

    /// Logs a problem, at most once in 10 s, and its end.
    fn log_problem(&mut self, problem: Option<&str>) {
        let had_problem = std::mem::replace(&mut self.has_problem, problem.is_some());
        if let Some(problem) = problem {
            log::log!(self.problem_log.level(Level::Error), "cannot find the nodes of Redis: {problem}");
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
            log::log!(
                self.moved_log.level(Level::Info),
                "Redis Cluster has moved {} slots between its nodes: cache flushed",
                map.moved_slots(previous)
            );
        } else {
            log_primaries(self.is_cluster, map, previous.is_some_and(|previous| !previous.has_same_owners(map)));
        }
    }
}

/// Logs the primaries of a map.
fn log_primaries(is_cluster: bool, map: &SlotMap, is_flushed: bool) {
    let addresses = map.primaries().iter().map(|primary| primary.address.to_string()).collect::<Vec<_>>().join(", ");
    let effect = if is_flushed { ": cache flushed" } else { "" };
    match (is_cluster, map.unserved_slots()) {
        (false, _) => log::info!("the sentinels name {addresses} as the primary{effect}"),
        (true, 0) => log::info!("Redis Cluster has the primaries {addresses}{effect}"),
        (true, slots) => log::warn!(
            "Redis Cluster has the primaries {addresses}, and no primary for {slots} of its slots: their keys cannot be \
             read, and no key at all with cluster-require-full-coverage, until the cluster is repaired (redis-cli \
             --cluster check)"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::pool_shared;
    use super::*;

    /// Returns a thread whose finder answers nothing, and a pool without nodes.
    fn thread() -> (TopologyThread, Vec<Arc<PoolShared>>) {
        let (requests, findings) = (channel().0, channel().1);
        let thread = TopologyThread {
            topology: Arc::default(),
            interval: Duration::from_secs(1),
            is_cluster: true,
            finder: Finder { requests, findings },
            map: None,
            silent_since: Some(Instant::now()),
            has_problem: false,
            problem_log: TimedThrottle::default(),
            moved_log: TimedThrottle::default(),
        };
        (thread, vec![pool_shared(Arc::default())])
    }

    /// Before the first map nothing can be read. A problem later changes nothing at once, unless
    /// the nodes say that they serve no keys, or the silence lasts.
    #[test]
    fn problems_show_when_they_matter() {
        let (mut thread, pools) = thread();
        let state = || (pools[0].outage(), pools[0].nodes().set.tracking_result());
        let failed = || Finding::failed("gone".into());
        thread.apply(failed(), &pools);
        assert_eq!(state(), (Some("gone".into()), Err("gone".into())));
        // As if installed before.
        thread.map = Some(Arc::new(SlotMap::of_cluster([], [])));
        thread.apply(failed(), &pools);
        assert_eq!(state(), (None, Err("no node is known yet".into())), "only a pool without nodes");
        thread.apply(Finding { is_down: true, ..failed() }, &pools);
        assert_eq!(pools[0].outage(), Some("gone".into()));
        thread.silent_since = Instant::now().checked_sub(MAX_SILENCE);
        thread.apply(failed(), &pools);
        assert_eq!(state(), (None, Err("gone".into())));
        thread.apply(Finding::default(), &pools);
        assert_eq!((thread.silent_since, state()), (None, (None, Err("no node is known yet".into()))));
    }

    /// Requests cause a round sooner than the interval, but not sooner than the shortest one.
    #[test]
    fn requests_shorten_the_wait() {
        let topology = Topology::default();
        let last = Instant::now();
        topology.request();
        topology.wait(last, Duration::from_secs(3600));
        assert!(last.elapsed() >= MIN_ROUND_INTERVAL);
        topology.begin_round();
        assert!(!topology.state().is_requested, "the round answers the request");
        // The interval may be as short.
        let last = Instant::now();
        topology.wait(last, MIN_ROUND_INTERVAL);
        assert!(last.elapsed() >= MIN_ROUND_INTERVAL);
    }
}
