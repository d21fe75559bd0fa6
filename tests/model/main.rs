//! Tests in this process: the cache against its model, replayed fuzz inputs, and which module imports which.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test may stop at what it did not expect, and a check says so by a panic"
)]

mod cache_model;
#[path = "../../fuzz/checks/mod.rs"]
mod checks;
mod fuzz_replay;
mod layering;
