//! Renders the state of the proxy: pure functions from a [`Snapshot`] to the text of an admin
//! endpoint.
//!
//! | file | renders | read by |
//! |---|---|---|
//! | `dashboard.rs`, `page.*` | `/`: an HTML page with problems, plots and tables | people |
//! | `prometheus.rs` | `/metrics`: the text format of Prometheus | Prometheus |
//! | `stats.rs` | `/stats`: all metrics as one JSON object | scripts, and the script of the page |
//! | `health.rs` | `/healthz`, `/readyz`: status code and JSON | orchestrators, load balancers |
//! | `info.rs` | the reply to the Redis command `INFO` | Redis clients and monitors |
//!
//! `json.rs` is the JSON writer that `stats.rs` and `health.rs` share. `diagnosis.rs` finds the
//! problems and `tables.rs` renders the cells that both `dashboard.rs` and `stats.rs` show.

mod dashboard;
mod diagnosis;
mod health;
mod info;
mod json;
mod prometheus;
mod stats;
mod tables;

pub use info::text as info;

use crate::metrics::{InstanceInfo, Snapshot};
use crate::protocol::http::{AdminEndpoint, AdminResponse, Status};

/// Renders the response of `endpoint`.
pub fn render(endpoint: AdminEndpoint, now: &Snapshot, settings: &InstanceInfo) -> AdminResponse {
    let (status, content_type, policy, body) = match endpoint {
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
    AdminResponse { status, content_type, content_security_policy: policy, body }
}
