//! End-to-end tests of TLS between clients and the proxy: real clients, certificates made by
//! openssl.

#![cfg(feature = "tls")]
#![allow(clippy::expect_used, clippy::panic, reason = "a test may stop at what it did not expect")]

mod certificates;
mod clients;
#[path = "../common/mod.rs"]
mod common;
mod files;
mod handshakes;
mod lifecycle;
mod plain;
mod recipe;
