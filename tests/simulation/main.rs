//! Deterministic simulation of the proxy without sockets, threads and clock, from a seed.
//!
//! Clients, Redis, the network between them and time do everything that they may do to it. Redis
//! is one server, a primary that sentinels name, or a cluster. The cache, the connections and the
//! set of nodes of the backend are the real ones.
//!
//! ```text
//!     random.rs     random numbers from the seed
//!     versions.rs   every version of every key
//!     cluster.rs    nodes: what each of them has, and what it replies
//!     moves.rs      slots that move with or without their keys, and failovers
//!     tracker.rs    stream of invalidations from each node
//!     link.rs       reads and replies in transit
//!     reads.rs      backend of the proxy: reads, redirections, its inbox
//!     topology.rs   backend of the proxy: learns maps and installs them
//!     client.rs     clients: requests in pieces, pipelines, resets
//!     http.rs       requests and responses of HTTP clients
//!     resp.rs       commands and replies of RESP clients
//!     local_cache.rs  values that RESP clients cache themselves (`CLIENT TRACKING`)
//!     turns.rs      turns of the clients on the real connections
//!     watchers.rs   event streams and long polls
//!     events.rs     random events
//!     floors.rs     versions that are too old to be sent
//!     check.rs      check of each reply
//!     counts.rs     numbers of events
//!     world.rs      all of them, step by step
//! ```
//!
//! After every step, each reply belongs to its request, in order. Each value is one that Redis held
//! at a moment that the freshness in force allows. A former owner's value is sent only until the
//! bound on topology changes, and never a cached one after `ASK`. A client that caches values
//! itself holds none that was invalidated. Bounds hold, every job completes once, and no client
//! waits longer than its timeout. Watchers never go back to an older version, and end with the last
//! one.
//!
//! `SIM_SEEDS=100000 cargo test --test simulation` runs more seeds, `SIM_FIRST` sets the first one.
//! `SIM_SEED=123 cargo test --test simulation -- --nocapture` runs one seed and prints its events.

mod check;
mod client;
mod cluster;
mod counts;
mod events;
mod floors;
mod http;
mod link;
mod local_cache;
mod moves;
mod random;
mod reads;
mod resp;
mod topology;
mod tracker;
mod turns;
mod versions;
mod watchers;
mod world;

use counts::EventCounts;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;
use world::World;

/// Default number of seeds, which take about 20 s on a slow machine with two processors.
const DEFAULT_SEEDS: u64 = 15_000;

/// Random steps for each seed.
const STEPS: usize = 400;

/// Number of seeds from which on every event is expected to occur.
const MIN_SEEDS_FOR_EVENTS: u64 = 1000;

fn env_number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// Runs one seed. Returns the first violation, or the text of a panic, as an error.
fn run(seed: u64, is_verbose: bool) -> Result<World, String> {
    let mut world = World::new(seed, is_verbose);
    let result = catch_unwind(AssertUnwindSafe(|| {
        for _ in 0..STEPS {
            world.step()?;
        }
        world.settle()
    }));
    match result {
        Ok(result) => result.map(|()| world),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            Err(text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.into())).unwrap_or_default())
        }
    }
}

/// Every seed keeps the guarantees of freshness, order and bounds.
#[test]
fn every_seed_keeps_all_guarantees() {
    if let Some(seed) = env_number("SIM_SEED") {
        let world = run(seed, true).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        return println!("seed {seed}: {:?}", world.counts);
    }
    let (first, seeds) = (env_number("SIM_FIRST").unwrap_or(1), env_number("SIM_SEEDS").unwrap_or(DEFAULT_SEEDS));
    let (next, has_failed, start) = (AtomicU64::new(first), AtomicBool::new(false), Instant::now());
    let counts = std::thread::scope(|scope| {
        let run_seeds = || {
            let mut sums = EventCounts::default();
            while !has_failed.load(Ordering::Relaxed) {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= first + seeds {
                    break;
                }
                match run(seed, false) {
                    Ok(world) => sums.add(&world.counts),
                    Err(violation) => {
                        has_failed.store(true, Ordering::Relaxed);
                        panic!(
                            "seed {seed}: {violation}\n\
                             replay it with: SIM_SEED={seed} cargo test --test simulation -- --nocapture"
                        );
                    }
                }
            }
            sums
        };
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(run_seeds)).collect();
        let mut sums = EventCounts::default();
        threads.into_iter().for_each(|thread| sums.add(&thread.join().unwrap_or_else(|_| panic!("a seed failed"))));
        sums
    });
    println!("{seeds} seeds in {:?}: {counts:?}", start.elapsed());
    // Without events the simulation would find nothing.
    if seeds >= MIN_SEEDS_FOR_EVENTS {
        counts.assert_all_occurred();
    }
}

/// Two runs of one seed have the same events.
#[test]
fn seed_replays_exactly() {
    let outcome = |seed| match run(seed, false) {
        Ok(world) => format!("{:?} {:x}", world.counts, world.event_hash),
        Err(violation) => violation,
    };
    (1..20).for_each(|seed| assert_eq!(outcome(seed), outcome(seed), "seed {seed}"));
    assert_ne!(outcome(1), outcome(2));
}
