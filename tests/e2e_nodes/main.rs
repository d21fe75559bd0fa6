//! End-to-end tests of several Redis servers: Redis Cluster and Redis Sentinel.
//!
//! Tests that stop a server, or count what a server was asked, start servers of their own. Others
//! share a cluster and use keys and slots of their own.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may stop at what it did not expect")]

mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod faults;
mod fixtures;
mod migration;
mod scripted;
mod sentinel;
mod support;
mod watch;
