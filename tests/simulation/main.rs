//! Deterministic simulation: the whole proxy but its sockets, threads and clock, under everything that clients, Redis,
//! the network between them and time can do to it, from a seed.
//!
//! ```text
//!     random.rs     the seed's numbers
//!     redis.rs      a model Redis that remembers everything it ever held
//!     link.rs       what is on its way between Redis and the proxy: reads, replies, changes, cuts
//!     client.rs     clients: requests in pieces, pipelines, resets
//!     http.rs       what they say in the one protocol, and what replies in it tell
//!     resp.rs       and in the other
//!     check.rs      whether each reply is one that may be
//!     world.rs      puts them around the real proxy and connections, and lets things happen
//! ```
//!
//! After every step: each reply belongs to its request, in order; each value was Redis' value at a moment that the
//! promise in force allows; bounds hold; nobody waits beyond its time.
//!
//! `SIM_SEEDS=100000 cargo test --test simulation` runs more of them, from `SIM_FIRST` on; `SIM_SEED=123 cargo test --test
//! simulation -- --nocapture` runs one and tells what happens.

mod check;
mod client;
mod http;
mod link;
mod random;
mod redis;
mod resp;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;
use world::World;

/// Some 20 seconds on a slow machine with two processors.
const DEFAULT_SEEDS: u64 = 15_000;

/// Things that happen for each seed.
const STEPS: usize = 400;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// Runs one seed; says what went wrong.
fn run(seed: u64, tell: bool) -> Result<World, String> {
    let mut world = World::new(seed, tell);
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

#[test]
fn whatever_happens_the_promises_are_kept() {
    if let Some(seed) = number("SIM_SEED") {
        let world = run(seed, true).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        return println!("seed {seed}: {:?}", world.seen);
    }
    let (first, seeds) = (number("SIM_FIRST").unwrap_or(1), number("SIM_SEEDS").unwrap_or(DEFAULT_SEEDS));
    let (next, failed, began) = (AtomicU64::new(first), AtomicBool::new(false), Instant::now());
    let seen = std::thread::scope(|scope| {
        let worker = || {
            let mut sums = world::Seen::default();
            while !failed.load(Ordering::Relaxed) {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= first + seeds {
                    break;
                }
                match run(seed, false) {
                    Ok(world) => sums.add(&world.seen),
                    Err(what) => {
                        failed.store(true, Ordering::Relaxed);
                        panic!(
                            "seed {seed}: {what}\nreplay it with: SIM_SEED={seed} cargo test --test simulation -- --nocapture"
                        );
                    }
                }
            }
            sums
        };
        let workers: Vec<_> = (0..2).map(|_| scope.spawn(worker)).collect();
        let mut sums = world::Seen::default();
        workers.into_iter().for_each(|worker| sums.add(&worker.join().unwrap_or_else(|_| panic!("a seed failed"))));
        sums
    });
    println!("{seeds} seeds in {:?}: {seen:?}", began.elapsed());
    // A simulation in which nothing happens finds nothing.
    if seeds >= 1000 {
        seen.assert_everything_was_seen();
    }
}

#[test]
fn a_seed_replays_exactly() {
    let outcome = |seed| match run(seed, false) {
        Ok(world) => format!("{:?} {:x}", world.seen, world.trace),
        Err(what) => what,
    };
    (1..20).for_each(|seed| assert_eq!(outcome(seed), outcome(seed), "seed {seed}"));
    assert_ne!(outcome(1), outcome(2));
}
