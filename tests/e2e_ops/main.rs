//! End-to-end tests of what operators use: metrics, health, logs, the dashboard, packaging, files
//! for deployment and the command line.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod accessibility;
mod admin_endpoints;
mod admin_port;
mod check;
mod cli;
mod client_auth;
#[path = "../common/mod.rs"]
mod common;
mod dashboard;
mod deploy;
mod documents;
mod health;
mod json_logs;
mod logs;
mod packaging;
mod unix_socket;
mod watch_box;
