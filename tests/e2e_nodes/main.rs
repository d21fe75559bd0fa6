//! End-to-end tests of several Redis servers: Redis Cluster and Redis Sentinel.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may stop at what it did not expect")]

#[path = "../common/mod.rs"]
mod common;
mod fixtures;
