//! End-to-end tests that measure memory, descriptors, CPU or time of the proxy, or open thousands
//! of connections.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may stop at what it did not expect")]

mod client_timeouts;
#[path = "../common/mod.rs"]
mod common;
mod connection_limit;
mod invariants;
mod resp_limits;
mod shutdown;
