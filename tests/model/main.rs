//! Tests without the binary: the cache against its model, replayed fuzz inputs, the layout of
//! `src`, and the scripts.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may panic, and a fuzz check reports by a panic")]

mod cache_model;
#[path = "../../fuzz/checks/mod.rs"]
mod checks;
mod fuzz_replay;
mod generated;
mod layering;
mod push_order;
mod scripts;
