//! Properties that hold for every input: the bodies of the fuzz targets.
//!
//! libFuzzer calls them from `fuzz_targets/`. `tests/model/fuzz_replay.rs` calls them with the
//! corpus and with mutations of it. A violated property panics.
//!
//! ```text
//!     choices       choices that an input makes, apart from the bytes of the connection
//!     http          request heads and bodies
//!     resp          commands of the Redis protocol
//!     cache         operations on the cache, compared with tests/model/reference.rs
//!     connection    a whole connection of either protocol: split, delayed, completed in any order
//!     driver        the worker's side of a connection, in the order that the input chooses
//!     tls           TLS of a client: records cut or changed anywhere, and input that is no TLS
//!     replies       parser of the bytes that a connection has sent
//! ```

mod cache;
mod choices;
mod connection;
mod driver;
mod http;
#[path = "../../tests/simulation/random.rs"]
#[allow(dead_code, reason = "only the simulation uses all of it")]
pub mod random;
#[path = "../../tests/model/reference.rs"]
pub mod reference;
mod replies;
mod resp;
#[cfg(feature = "tls")]
mod tls;

/// Function that panics if an input violates a property.
type Check = fn(&[u8]);

/// Targets by name. Each is a binary of the fuzz crate and a directory of the corpus.
pub const TARGETS: &[(&str, Check)] = &[
    ("http", http::check),
    ("resp", resp::check),
    ("cache", cache::check),
    ("connection", connection::check),
    #[cfg(feature = "tls")]
    ("tls", tls::check),
];

/// Runs the target with this name.
pub fn check(target: &str, input: &[u8]) {
    let found = TARGETS.iter().find(|(name, _)| *name == target);
    assert!(found.is_some(), "unknown target {target}");
    found.into_iter().for_each(|(_, check)| check(input));
}
