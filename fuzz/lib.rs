//! The proxy's rooms that work without sockets, threads and Redis, compiled from the same files, and what is checked of them.
//!
//! The crate itself would bring its other dependencies along, and three times the time to build. Who adds a room that one of
//! these imports adds a line here.

extern crate self as segment_redis_proxy;

#[path = "../src/admin/mod.rs"]
pub mod admin;
#[path = "../src/cache/mod.rs"]
pub mod cache;
#[path = "../src/connection/mod.rs"]
pub mod connection;
#[path = "../src/dispatch.rs"]
pub mod dispatch;
#[path = "../src/inflight.rs"]
pub mod inflight;
#[path = "../src/metrics/mod.rs"]
pub mod metrics;
#[path = "../src/protocol/mod.rs"]
pub mod protocol;
#[path = "../src/read_through.rs"]
pub mod read_through;
#[path = "../src/types.rs"]
pub mod types;

pub mod checks;
