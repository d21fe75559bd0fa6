//! A read-through cache in front of one Redis: one event loop, one job. It answers `GET` for a key out of memory, over HTTP and
//! over the Redis protocol, and reads through to Redis when it cannot.
//!
//! ```text
//! socket -> server -> connection decodes -> proxy decides -+-> hit:  connection encodes -> server -> socket
//!                                                          +-> miss: backend reads Redis, wakes the loop;
//!                                                                    proxy stores and answers all who wait
//! ```
//!
//! The rooms, from the inside out: [`types`] has the words all others share. [`cache`] and [`inflight`] keep state,
//! [`read_through`] decides. [`protocol`] turns bytes into requests and replies into bytes, [`connection`] does so for one
//! client, [`dispatch`] brings the two together. [`backend`] alone knows Redis, [`server`] alone knows sockets and the clock.
//! Which room may import which is tested (`tests/model/layering.rs`); ARCHITECTURE.md says why.

pub mod admin;
pub mod backend;
pub mod cache;
pub mod config;
pub mod connection;
pub mod dispatch;
pub mod inflight;
pub mod log_throttle;
pub mod log_writer;
pub mod metrics;
pub mod protocol;
pub mod read_through;
pub mod server;
pub mod types;
