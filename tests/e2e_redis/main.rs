//! End-to-end tests of the connections to Redis: faults, tracking, freshness and large values.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may stop at what it did not expect")]

mod client_tracking;
#[path = "../common/mod.rs"]
mod common;
mod failover;
mod fault_matrix;
mod freshness;
mod load_balancer;
mod redis_faults;
mod redis_states;
mod tracking_loss;
mod transport;
mod value_limits;
mod wrong_server;
