//! End-to-end tests of HTTP and RESP, with the proxy binary in front of a real Redis.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod auth_http;
mod auth_resp;
mod client_tracking;
mod clients;
#[path = "../common/mod.rs"]
mod common;
mod http;
mod http_caching;
mod http_keys;
mod http_semantics;
mod http_vectors;
mod inline;
mod introspection;
mod resp;
mod scenario;
mod smuggling;
