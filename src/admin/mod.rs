//! What the proxy tells of itself: figures for Prometheus, for scripts and for people, and whether it is well. Plain functions
//! from figures to text.

mod health;
mod info;
mod metrics;
mod page;
mod stats;

pub use info::text as info;

use crate::figures::{Settings, Snapshot};
use crate::protocol::http::{Document, Status, Topic};

/// What is to be told of `topic`.
pub fn document(topic: Topic, now: &Snapshot, settings: &Settings) -> Document {
    let (status, content_type, policy, body) = match topic {
        Topic::Page => (Status::Ok, "text/html; charset=utf-8", page::POLICY, page::html(now, settings)),
        Topic::Metrics => (Status::Ok, "text/plain; version=0.0.4; charset=utf-8", "", metrics::text(now, settings)),
        Topic::Stats => (Status::Ok, "application/json", "", stats::json(now, settings)),
        Topic::Alive => (health::status(health::is_alive(now)), "application/json", "", health::alive(now)),
        Topic::Ready => (health::status(health::trouble(now).is_none()), "application/json", "", health::ready(now)),
    };
    Document { status, content_type, policy, body }
}
