//! Recorder of one event loop: counts requests and writes access log lines while the worker serves.
//!
//! This type reads no clock, takes no lock and performs no I/O. With the access log off, a hit
//! costs a few additions.
//!
//! The event loop reads the clock when a tick begins and after every few turns of clients. All hits
//! of these turns share one latency, from the start of the tick to that reading.

use super::access_log::{AccessLog, LoggedRequest};
use super::{AuthFailure, Micros, Protocol, RequestOutcome, WorkerMetrics};
use crate::log_format::LogFormat;
use crate::protocol::ReplySummary;
use crate::types::Failure;
use std::time::SystemTime;

/// Start time of a pending request, and its text for the access log.
#[derive(Debug, Default)]
pub struct RequestInfo {
    started_at: Micros,
    /// `None` if the access log is off.
    logged: Option<Box<LoggedRequest>>,
}

/// Metrics and access log of one event loop.
#[derive(Debug, Default)]
pub struct Recorder {
    /// Metrics of the worker.
    pub metrics: WorkerMetrics,
    /// Start of the current tick.
    now: Micros,
    /// Hits of the current turns.
    hits: u64,
    access_log: Option<Box<AccessLog>>,
}

impl Recorder {
    /// Creates a recorder, with an access log if there is a format for it.
    pub fn new(access_log: Option<LogFormat>) -> Recorder {
        let access_log = access_log.map(|format| Box::new(AccessLog::new(format)));
        Recorder { access_log, ..Recorder::default() }
    }

    /// Returns true if each request is logged.
    pub fn access_log_enabled(&self) -> bool {
        self.access_log.is_some()
    }

    /// Sets the start of the tick. Requests received in this tick start now, and replies of this
    /// tick end now.
    pub fn set_now(&mut self, now: Micros) {
        self.now = now;
    }

    /// Sets the time that access log lines show, when a new second has begun. Comes after
    /// [`Recorder::set_now`].
    pub fn set_date(&mut self, time: SystemTime) {
        if let Some(access_log) = &mut self.access_log {
            access_log.set_date(time, self.now);
        }
    }

    /// Sets the current request, sent by `client`. Calls `write` for its text only if the access
    /// log is on.
    pub fn begin_request(&mut self, client: &str, write: impl FnOnce(&mut String)) {
        if let Some(access_log) = &mut self.access_log {
            access_log.set_request(client, write);
        }
    }

    /// Returns what a pending reply must keep of the current request.
    pub fn request_info(&self) -> RequestInfo {
        let logged = self.access_log.as_deref().map(|access_log| Box::new(access_log.current_request()));
        RequestInfo { started_at: self.now, logged }
    }

    /// Makes a request that was pending the current one again.
    pub fn resume_request(&mut self, info: &RequestInfo) {
        if let (Some(access_log), Some(logged)) = (&mut self.access_log, &info.logged) {
            access_log.restore_request(logged);
        }
    }

    /// Restarts the latency of a pending request, each time that a part of it arrived.
    pub fn restart_timer(&self, info: &mut RequestInfo) {
        info.started_at = self.now;
    }

    /// Records credentials of a client that were refused.
    pub fn record_auth_failure(&mut self, protocol: Protocol, failure: AuthFailure) {
        self.metrics.auth_failures[protocol as usize][failure as usize] += 1;
    }

    /// Records the immediate reply to the current request.
    pub fn record_reply(&mut self, protocol: Protocol, outcome: RequestOutcome, sent: ReplySummary) {
        self.count(protocol, outcome, sent);
        // A request for several keys that had no need to wait found all of them in the cache.
        self.hits += u64::from(matches!(outcome, RequestOutcome::Hit | RequestOutcome::Many));
        if let Some(access_log) = &mut self.access_log {
            access_log.push_untimed(outcome, sent, self.now);
        }
    }

    /// Records the reply to a request that was pending.
    pub fn record_deferred_reply(
        &mut self,
        info: &RequestInfo,
        protocol: Protocol,
        outcome: RequestOutcome,
        sent: ReplySummary,
    ) {
        if info.started_at == self.now {
            // The reply is ready in the tick of the request: it did not wait for Redis.
            self.resume_request(info);
            return self.record_reply(protocol, outcome, sent);
        }
        self.count(protocol, outcome, sent);
        let time = self.now.saturating_sub(info.started_at);
        self.metrics.miss_latency.observe(time, 1);
        if let (Some(access_log), Some(logged)) = (&mut self.access_log, &info.logged) {
            access_log.push(logged, outcome, (sent.status.code(), sent.bytes), self.now, time);
        }
    }

    /// Records the end of a request that waited for changes of keys. Its time is no latency.
    pub fn record_watched(&mut self, info: &RequestInfo, outcome: RequestOutcome, sent: ReplySummary) {
        self.count(Protocol::Http, outcome, sent);
        if let (Some(access_log), Some(logged)) = (&mut self.access_log, &info.logged) {
            let time = self.now.saturating_sub(info.started_at);
            access_log.push(logged, outcome, (sent.status.code(), sent.bytes), self.now, time);
        }
    }

    /// Records that a pending request gets no reply: its client disconnected or was closed.
    pub fn record_aborted(&mut self, info: &RequestInfo, protocol: Protocol) {
        self.metrics.requests_by_outcome[protocol as usize][RequestOutcome::Aborted as usize] += 1;
        if let (Some(access_log), Some(logged)) = (&mut self.access_log, &info.logged) {
            access_log.push_aborted(logged, self.now, self.now.saturating_sub(info.started_at));
        }
    }

    fn count(&mut self, protocol: Protocol, outcome: RequestOutcome, sent: ReplySummary) {
        self.metrics.requests_by_outcome[protocol as usize][outcome as usize] += 1;
        if protocol == Protocol::Http {
            self.metrics.responses[sent.status as usize] += 1;
        }
    }

    /// Counts a failed key read.
    pub fn record_failure(&mut self, failure: &Failure) {
        self.metrics.failures[failure.kind()] += 1;
    }

    /// Records the time of the current turns, which ended at `now`.
    pub fn end_turns(&mut self, now: Micros) {
        let time = now.saturating_sub(self.now);
        if self.hits > 0 {
            self.metrics.hit_latency.observe(time, std::mem::take(&mut self.hits));
        }
        if let Some(access_log) = &mut self.access_log {
            access_log.end_turns(time);
        }
    }

    /// Returns the complete access log lines, for the caller to take; `None` if there are none.
    pub fn access_log_lines(&mut self) -> Option<&mut Vec<u8>> {
        self.access_log.as_deref_mut().map(|access_log| &mut access_log.lines).filter(|lines| !lines.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::super::access_log::{MAX_LOGGED_BYTES, push_escaped};
    use super::*;
    use crate::protocol::http::Status;
    use std::time::Duration;

    const SENT: ReplySummary = ReplySummary { status: Status::Ok, bytes: 28 };

    fn take_lines(recorder: &mut Recorder) -> String {
        let lines = recorder.access_log_lines().map(std::mem::take).unwrap_or_default();
        String::from_utf8(lines).expect("ASCII")
    }

    /// Hits take as long as their turns. A request that waits takes until its reply.
    #[test]
    fn hit_and_miss_latencies_differ() {
        let mut recorder = Recorder::new(None);
        recorder.set_now(1000);
        recorder.record_reply(Protocol::Http, RequestOutcome::Hit, SENT);
        recorder.record_reply(Protocol::Http, RequestOutcome::Hit, SENT);
        recorder.record_reply(Protocol::Resp, RequestOutcome::Other, SENT);
        let info = recorder.request_info();
        recorder.end_turns(1015);
        assert!(recorder.access_log_lines().is_none());
        recorder.end_turns(1100);
        recorder.set_now(1300);
        recorder.record_deferred_reply(&info, Protocol::Resp, RequestOutcome::Miss, SENT);
        let metrics = &recorder.metrics;
        assert_eq!((metrics.hit_latency.sum(), metrics.hit_latency.counts().nth(1)), (30, Some(2)));
        assert_eq!((metrics.miss_latency.sum(), metrics.miss_latency.counts().sum::<u64>()), (300, 1));
        assert_eq!(metrics.requests_by_outcome[Protocol::Http as usize][RequestOutcome::Hit as usize], 2);
        assert_eq!(metrics.requests_by_outcome[Protocol::Resp as usize][RequestOutcome::Miss as usize], 1);
        assert_eq!((metrics.responses[Status::Ok as usize], metrics.responses.iter().sum()), (2, 2));
    }

    /// Each request has one line in the access log, and cannot forge another.
    #[test]
    fn request_has_one_escaped_line() {
        let mut recorder = Recorder::new(Some(LogFormat::Text));
        recorder.set_date(SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777));
        recorder.set_now(100);
        recorder.begin_request("127.0.0.1", |text| push_escaped(text, b"GET /key/a HTTP/1.1"));
        recorder.record_reply(Protocol::Http, RequestOutcome::Hit, SENT);
        recorder.begin_request("::1", |text| push_escaped(text, b"GET \"\\\r\n\x7f\xff RESP2"));
        let info = recorder.request_info();
        recorder.begin_request("::1", |text| push_escaped(text, &[b'x'; 600]));
        recorder.record_reply(
            Protocol::Http,
            RequestOutcome::Refused,
            ReplySummary { status: Status::BadRequest, bytes: 0 },
        );
        recorder.end_turns(107);
        recorder.set_now(400);
        recorder.record_deferred_reply(&info, Protocol::Resp, RequestOutcome::Miss, SENT);
        let long = "x".repeat(MAX_LOGGED_BYTES);
        let date = "[06/Nov/1994:08:49:37 +0000]";
        let expected = format!(
            "127.0.0.1 - - {date} \"GET /key/a HTTP/1.1\" 200 28 hit 7\n\
             ::1 - - {date} \"{long}...\" 400 - refused 7\n\
             ::1 - - {date} \"GET \\x22\\x5c\\x0d\\x0a\\x7f\\xff RESP2\" 200 28 miss 300\n"
        );
        assert_eq!(take_lines(&mut recorder), expected);
        assert_eq!(take_lines(&mut recorder), "");
        // The head was decoded before the body arrived.
        recorder.resume_request(&info);
        recorder.record_reply(Protocol::Http, RequestOutcome::Other, SENT);
        recorder.end_turns(400);
        assert!(take_lines(&mut recorder).starts_with("::1 - - [06/Nov/1994:08:49:37 +0000] \"GET \\x22"));
        recorder.record_aborted(&info, Protocol::Resp);
        assert!(take_lines(&mut recorder).ends_with(" RESP2\" 499 - aborted 300\n"));
        assert_eq!(recorder.metrics.requests_by_outcome[Protocol::Resp as usize][RequestOutcome::Aborted as usize], 1);
    }

    /// A line in JSON has the fields and escapes of the text, as one object, and milliseconds.
    #[test]
    fn json_line_has_all_fields() {
        let mut recorder = Recorder::new(Some(LogFormat::Json));
        recorder.set_now(400_000);
        recorder.set_date(SystemTime::UNIX_EPOCH + Duration::from_millis(784_111_777_300));
        recorder.begin_request("::1", |text| push_escaped(text, b"GET \"\\\r\n\xff RESP2"));
        let info = recorder.request_info();
        recorder.record_reply(Protocol::Http, RequestOutcome::Hit, SENT);
        recorder.end_turns(400_012);
        recorder.set_now(650_900);
        recorder.record_deferred_reply(&info, Protocol::Resp, RequestOutcome::Miss, SENT);
        // The clock of the event loop drifts from the one of the system.
        recorder.set_now(1_200_000);
        recorder.record_aborted(&info, Protocol::Resp);
        let line = |millis, status, bytes, outcome, duration| {
            format!(
                "{{\"time\":\"1994-11-06T08:49:37.{millis}Z\",\"client\":\"::1\",\"request\":\"GET \
                 \\\\x22\\\\x5c\\\\x0d\\\\x0a\\\\xff RESP2\",\"status\":{status},\"bytes\":{bytes},\"outcome\":\"{outcome}\",\
                 \"duration_us\":{duration}}}\n"
            )
        };
        let expected =
            [line(300, 200, 28, "hit", 12), line(550, 200, 28, "miss", 250_900), line(999, 499, 0, "aborted", 800_000)];
        assert_eq!(take_lines(&mut recorder), expected.concat());
    }
}
