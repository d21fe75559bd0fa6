//! Health endpoints: `/healthz` for liveness, `/readyz` for readiness.
//!
//! An orchestrator restarts a proxy that is not alive, and sends no requests to one that is not
//! ready. An outage of Redis makes the proxy not ready, but leaves it alive: a restart would only
//! lose the cache.

use super::json::{object, quote, quote_or_null};
use crate::metrics::Snapshot;
use crate::protocol::http::Status;

/// Returns the status code of a health check.
pub fn status(ok: bool) -> Status {
    if ok { Status::Ok } else { Status::ServiceUnavailable }
}

/// Returns true if no event loop is stuck.
pub fn is_alive(now: &Snapshot) -> bool {
    now.stuck_workers == 0
}

/// Returns the reason why the proxy is not ready, or `None` if it is.
pub fn not_ready_reason(now: &Snapshot) -> Option<&str> {
    match &now.redis.unavailable {
        _ if !is_alive(now) => Some("an event loop is stuck; restart the proxy"),
        _ if now.stopping => Some("the proxy is shutting down"),
        outage => outage.as_deref(),
    }
}

/// Renders `/healthz`.
pub fn healthz(now: &Snapshot) -> String {
    let status = if is_alive(now) { "ok" } else { "stuck" };
    let members =
        [("status", quote(status)), ("workers", now.workers.to_string()), ("stuck", now.stuck_workers.to_string())];
    object(members) + "\n"
}

/// Renders `/readyz`.
pub fn readyz(now: &Snapshot) -> String {
    let reason = not_ready_reason(now);
    let members = [
        ("ready", reason.is_none().to_string()),
        ("reason", quote_or_null(reason)),
        ("freshness", quote(&now.redis.freshness)),
    ];
    object(members) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::RedisSummary;

    /// An outage of Redis and the shutdown make the proxy not ready. Only a stuck loop makes it not
    /// alive.
    #[test]
    fn readiness_and_liveness_differ() {
        let freshness = "visible \"at once\"".to_owned();
        let mut now =
            Snapshot { workers: 2, redis: RedisSummary { freshness, ..Default::default() }, ..Snapshot::default() };
        let freshness = r#""freshness":"visible \"at once\"""#;
        assert_eq!(healthz(&now), "{\"status\":\"ok\",\"workers\":2,\"stuck\":0}\n");
        assert_eq!(readyz(&now), format!("{{\"ready\":true,\"reason\":null,{freshness}}}\n"));
        now.redis.unavailable = Some("cannot connect".into());
        assert!(is_alive(&now));
        assert_eq!(readyz(&now), format!("{{\"ready\":false,\"reason\":\"cannot connect\",{freshness}}}\n"));
        now.stopping = true;
        assert_eq!(not_ready_reason(&now), Some("the proxy is shutting down"));
        now.stuck_workers = 1;
        assert_eq!(healthz(&now), "{\"status\":\"stuck\",\"workers\":2,\"stuck\":1}\n");
        assert_eq!(not_ready_reason(&now), Some("an event loop is stuck; restart the proxy"));
        assert_eq!((status(false), status(true)), (Status::ServiceUnavailable, Status::Ok));
    }
}
