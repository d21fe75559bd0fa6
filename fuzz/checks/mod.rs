//! What must hold for every input: the bodies of the fuzz targets. libFuzzer calls them from `fuzz_targets/`;
//! `tests/model/fuzz_replay.rs` calls them with the corpus that is kept, and with mutations of it. What does not hold is a panic.
//!
//! ```text
//!     choices       what an input chooses beside the wire's bytes
//!     http          request heads and bodies
//!     resp          commands of the Redis protocol
//!     cache         operations on the cache, against tests/model/reference.rs
//!     connection    a whole connection of either protocol: cut, delayed, completed in any order
//!     driver        what the server does for a connection, in the order that the input chooses
//!     replies       what a connection has sent, cut into replies
//! ```

mod cache;
mod choices;
mod connection;
mod driver;
mod http;
#[path = "../../tests/simulation/random.rs"]
#[allow(dead_code, reason = "the simulation uses all of it")]
pub mod random;
#[path = "../../tests/model/reference.rs"]
pub mod reference;
mod replies;
mod resp;

/// Panics when something does not hold for an input.
type Check = fn(&[u8]);

/// The targets by name: each a binary of the fuzz crate and a folder of the corpus.
pub const TARGETS: [(&str, Check); 4] =
    [("http", http::check), ("resp", resp::check), ("cache", cache::check), ("connection", connection::check)];

/// Runs the target of that name.
pub fn check(target: &str, input: &[u8]) {
    let found = TARGETS.iter().find(|(name, _)| *name == target);
    assert!(found.is_some(), "there is no target {target}");
    found.into_iter().for_each(|(_, check)| check(input));
}
