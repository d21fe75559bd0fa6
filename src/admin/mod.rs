//! What the proxy tells of itself: figures for Prometheus, for scripts and for people, and whether it is well. Plain functions
//! from figures to text.

mod dashboard;
mod health;
mod info;
mod prometheus;
mod stats;

pub use info::text as info;

use crate::metrics::{InstanceInfo, Snapshot};
use crate::protocol::http::{AdminEndpoint, AdminResponse, Status};

/// What is to be told of `topic`.
pub fn render(topic: AdminEndpoint, now: &Snapshot, settings: &InstanceInfo) -> AdminResponse {
    let (status, content_type, policy, body) = match topic {
        AdminEndpoint::Dashboard => {
            (Status::Ok, "text/html; charset=utf-8", dashboard::CONTENT_SECURITY_POLICY, dashboard::html(now, settings))
        }
        AdminEndpoint::Metrics => {
            (Status::Ok, "text/plain; version=0.0.4; charset=utf-8", "", prometheus::text(now, settings))
        }
        AdminEndpoint::Stats => (Status::Ok, "application/json", "", stats::json(now, settings)),
        AdminEndpoint::Healthz => (health::status(health::is_alive(now)), "application/json", "", health::healthz(now)),
        AdminEndpoint::Readyz => {
            (health::status(health::not_ready_reason(now).is_none()), "application/json", "", health::readyz(now))
        }
    };
    AdminResponse { status, content_type, policy, body }
}
