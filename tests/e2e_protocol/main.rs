//! End-to-end tests of both protocols: the real binary in front of a real Redis, over HTTP and RESP.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may stop at what it did not expect")]

mod clients;
#[path = "../common/mod.rs"]
mod common;
mod http;
mod http_semantics;
mod http_vectors;
mod inline;
mod introspection;
mod resp;
mod scenario;
mod smuggling;
