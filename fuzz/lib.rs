//! Library of the fuzz targets: the proxy's modules without sockets, threads and Redis, and the
//! checks of them.
//!
//! The modules are compiled from the proxy's own files. Linking the proxy's crate would triple the
//! build time, because of its other dependencies. A new module that one of these imports needs a
//! line here.

extern crate self as segment_redis_proxy;

#[path = "../src/admin/mod.rs"]
pub mod admin;
#[path = "../src/cache/mod.rs"]
pub mod cache;
#[path = "../src/client_auth/mod.rs"]
pub mod client_auth;
#[path = "../src/connection/mod.rs"]
pub mod connection;
#[path = "../src/dispatch.rs"]
pub mod dispatch;
#[path = "../src/inflight.rs"]
pub mod inflight;
#[path = "../src/log_format.rs"]
pub mod log_format;
#[path = "../src/log_throttle.rs"]
pub mod log_throttle;
#[path = "../src/metrics/mod.rs"]
pub mod metrics;
#[path = "../src/protocol/mod.rs"]
pub mod protocol;
#[path = "../src/read_through/mod.rs"]
pub mod read_through;
#[path = "../src/types/mod.rs"]
pub mod types;
#[path = "../src/value.rs"]
pub mod value;

pub mod checks;
