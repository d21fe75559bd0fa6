//! End-to-end tests of requests that wait for changes of keys: event streams and long polls.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may stop at what it did not expect")]

mod bounds;
mod clients;
#[path = "../common/mod.rs"]
mod common;
mod document;
mod fronts;
mod polls;
mod recipe;
mod recovery;
mod streams;
