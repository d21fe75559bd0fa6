//! One loop's books. What it does while it serves is written here as it happens; nothing here asks for the time, locks or
//! does I/O, and with the access log off a hit costs a few additions.
//!
//! The loop looks at the clock at the beginning of a tick, and after every few turns of clients. What was answered in these turns
//! has taken as long as from the one to the other: so all their hits share one look at the clock.
//!
//! With the access log on, each request leaves a line in the Common Log Format, and behind it what became of it and the
//! microseconds it took. What clients send is escaped, so that no request can forge a line.

use super::{Micros, Protocol, RequestOutcome, WorkerMetrics};
use crate::protocol::ReplySummary;
use crate::types::Failure;
use std::fmt::Write;

/// Bytes that a line of the access log has of a request, or few more. A target may have 8 KiB, a key 64, and a client may have 128
/// requests waiting.
const MAX_LOGGED_BYTES: usize = 256;

/// What stands in the access log for the status of a request whose client was gone. It is nginx' word for that, and programs that read
/// logs know it.
const STATUS_CLIENT_CLOSED: &str = "499";

/// What is remembered of a request that waits for its answer.
#[derive(Debug, Default)]
pub struct RequestInfo {
    started_at: Micros,
    /// Who asked, and what, as it stands in the log; only for the access log.
    begin_request: Option<Box<(Box<str>, Box<str>)>>,
}

/// The access log of one loop.
#[derive(Debug, Default)]
struct AccessLog {
    /// The time as a line has it.
    date: String,
    /// Who has sent the request that was decoded last, and what it asks for.
    client: String,
    request: String,
    /// Lines of these turns, without the time that they took.
    open: Vec<u8>,
    access_log_lines: Vec<u8>,
}

/// See the top of the file.
#[derive(Debug, Default)]
pub struct Recorder {
    /// The figures.
    pub metrics: WorkerMetrics,
    /// When the loop last looked at the clock.
    now: Micros,
    /// Requests that were answered from memory in these turns.
    hits: u64,
    access: Option<Box<AccessLog>>,
}

impl Recorder {
    /// Empty books, with an access log or without.
    pub fn new(logs_requests: bool) -> Recorder {
        Recorder { access: logs_requests.then(Box::default), ..Recorder::default() }
    }

    /// Whether each request is logged.
    pub fn access_log_enabled(&self) -> bool {
        self.access.is_some()
    }

    /// The loop has looked at the clock: requests that it takes up now begin then, answers that it has now end then.
    pub fn set_now(&mut self, now: Micros) {
        self.now = now;
    }

    /// The time as lines of the access log have it.
    pub fn set_date(&mut self, date: impl FnOnce() -> String) {
        if let Some(access) = &mut self.access {
            access.date = date();
        }
    }

    /// A request has come from `client`. `write` writes what it asks for, if somebody wants to know.
    pub fn begin_request(&mut self, client: &str, write: impl FnOnce(&mut String)) {
        if let Some(access) = self.access.as_deref_mut() {
            access.client.clear();
            access.client.push_str(client);
            access.request.clear();
            write(&mut access.request);
        }
    }

    /// The request that has come last waits.
    pub fn request_info(&self) -> RequestInfo {
        let asked = |access: &AccessLog| Box::new((access.client.as_str().into(), access.request.as_str().into()));
        RequestInfo { started_at: self.now, begin_request: self.access.as_deref().map(asked) }
    }

    /// A request that waited, and has no answer yet, is the last to have come again.
    pub fn resume_request(&mut self, note: &RequestInfo) {
        if let Some((client, request)) = note.begin_request.as_deref() {
            self.begin_request(client, |text| text.push_str(request));
        }
    }

    /// The rest of a request that waits has come.
    pub fn restart_timer(&self, note: &mut RequestInfo) {
        note.started_at = self.now;
    }

    /// The request that has come last is answered at once.
    pub fn record_reply(&mut self, protocol: Protocol, ending: RequestOutcome, sent: ReplySummary) {
        self.count(protocol, ending, sent);
        // What is about several keys and had not to wait was in memory, too.
        self.hits += u64::from(matches!(ending, RequestOutcome::Hit | RequestOutcome::Many));
        if let Some(AccessLog { date, client, request, open, .. }) = self.access.as_deref_mut() {
            begin_line(open, (client, request), date, ending, (sent.status.code(), sent.bytes));
            open.push(b'\n');
        }
    }

    /// A request is answered that was noted.
    pub fn record_deferred_reply(
        &mut self,
        note: &RequestInfo,
        protocol: Protocol,
        ending: RequestOutcome,
        sent: ReplySummary,
    ) {
        if note.started_at == self.now {
            // It had not to wait.
            self.resume_request(note);
            return self.record_reply(protocol, ending, sent);
        }
        self.count(protocol, ending, sent);
        let time = self.now.saturating_sub(note.started_at);
        self.metrics.miss_latency.observe(time, 1);
        if let (Some(AccessLog { date, access_log_lines: lines, .. }), Some(asked)) =
            (self.access.as_deref_mut(), note.begin_request.as_deref())
        {
            begin_line(lines, (&asked.0, &asked.1), date, ending, (sent.status.code(), sent.bytes));
            end_line(lines, time);
        }
    }

    /// The client of a request that was noted is gone.
    pub fn record_aborted(&mut self, note: &RequestInfo, protocol: Protocol) {
        self.metrics.requests_by_outcome[protocol as usize][RequestOutcome::Aborted as usize] += 1;
        if let (Some(AccessLog { date, access_log_lines: lines, .. }), Some(asked)) =
            (self.access.as_deref_mut(), note.begin_request.as_deref())
        {
            begin_line(lines, (&asked.0, &asked.1), date, RequestOutcome::Aborted, (STATUS_CLIENT_CLOSED, 0));
            end_line(lines, self.now.saturating_sub(note.started_at));
        }
    }

    fn count(&mut self, protocol: Protocol, ending: RequestOutcome, sent: ReplySummary) {
        self.metrics.requests_by_outcome[protocol as usize][ending as usize] += 1;
        if protocol == Protocol::Http {
            self.metrics.responses[sent.status as usize] += 1;
        }
    }

    /// A key could not be read.
    pub fn record_failure(&mut self, failure: &Failure) {
        self.metrics.failures[failure.kind()] += 1;
    }

    /// Turns have ended, and the loop has looked at the clock.
    pub fn end_turns(&mut self, now: Micros) {
        let time = now.saturating_sub(self.now);
        if self.hits > 0 {
            self.metrics.hit_latency.observe(time, std::mem::take(&mut self.hits));
        }
        if let Some(AccessLog { open, access_log_lines: lines, .. }) = self.access.as_deref_mut() {
            for line in open.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
                lines.extend_from_slice(line);
                end_line(lines, time);
            }
            open.clear();
        }
    }

    /// Lines of the access log that nobody has taken yet. Empty where there is none.
    pub fn access_log_lines(&mut self) -> Option<&mut Vec<u8>> {
        self.access.as_deref_mut().map(|access| &mut access.access_log_lines).filter(|lines| !lines.is_empty())
    }
}

/// All of a line but how long it took.
fn begin_line(
    line: &mut Vec<u8>,
    (client, request): (&str, &str),
    date: &str,
    ending: RequestOutcome,
    (code, bytes): (&str, usize),
) {
    for part in [client, " - - [", date, "] \"", request, "\" ", code, " "] {
        line.extend_from_slice(part.as_bytes());
    }
    line.extend_from_slice(if bytes == 0 { "-".into() } else { bytes.to_string() }.as_bytes());
    line.push(b' ');
    line.extend_from_slice(ending.name().as_bytes());
}

/// How long it took, in microseconds.
fn end_line(line: &mut Vec<u8>, time: Micros) {
    line.extend_from_slice(format!(" {time}\n").as_bytes());
}

/// Appends what a client has sent: printable ASCII as it is, quotes, backslashes and all else as `\xhh`; of a long one the
/// beginning.
pub fn push_escaped(text: &mut String, sent: &[u8]) {
    let end = text.len() + MAX_LOGGED_BYTES;
    for &byte in sent {
        if text.len() >= end {
            return text.push_str("...");
        }
        match byte {
            b'"' | b'\\' | 0..=0x1f | 0x7f.. => {
                // Writing into a String cannot fail.
                let _ = write!(text, "\\x{byte:02x}");
            }
            _ => text.push(char::from(byte)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::Status;

    const SENT: ReplySummary = ReplySummary { status: Status::Ok, bytes: 28 };

    fn taken(recorder: &mut Recorder) -> String {
        let lines = recorder.access_log_lines().map(std::mem::take).unwrap_or_default();
        String::from_utf8(lines).expect("ASCII")
    }

    #[test]
    fn hits_of_a_turn_take_as_long_as_the_turn_and_what_waits_until_it_has_its_answer() {
        let mut recorder = Recorder::new(false);
        recorder.set_now(1000);
        recorder.record_reply(Protocol::Http, RequestOutcome::Hit, SENT);
        recorder.record_reply(Protocol::Http, RequestOutcome::Hit, SENT);
        recorder.record_reply(Protocol::Resp, RequestOutcome::Other, SENT);
        let note = recorder.request_info();
        recorder.end_turns(1015);
        assert!(recorder.access_log_lines().is_none());
        recorder.end_turns(1100);
        recorder.set_now(1300);
        recorder.record_deferred_reply(&note, Protocol::Resp, RequestOutcome::Miss, SENT);
        let metrics = &recorder.metrics;
        assert_eq!((metrics.hit_latency.sum(), metrics.hit_latency.counts().nth(1)), (30, Some(2)));
        assert_eq!((metrics.miss_latency.sum(), metrics.miss_latency.counts().sum::<u64>()), (300, 1));
        assert_eq!(metrics.requests_by_outcome[Protocol::Http as usize][RequestOutcome::Hit as usize], 2);
        assert_eq!(metrics.requests_by_outcome[Protocol::Resp as usize][RequestOutcome::Miss as usize], 1);
        assert_eq!((metrics.responses[Status::Ok as usize], metrics.responses.iter().sum()), (2, 2));
    }

    #[test]
    fn of_a_long_request_the_beginning_is_kept_however_it_is_escaped() {
        for (byte, length) in [(b'x', 255), (b'x', 256), (b'x', 257), (0xff, 60_000)] {
            let mut text = "get ".to_owned();
            push_escaped(&mut text, &vec![byte; length]);
            assert!(
                text.len() <= 4 + MAX_LOGGED_BYTES + 4 + "...".len() && text.ends_with("...") == (length > 256),
                "{length}"
            );
        }
    }

    #[test]
    fn each_request_leaves_a_line_that_it_cannot_forge() {
        let mut recorder = Recorder::new(true);
        recorder.set_date(|| "06/Nov/1994:08:49:37 +0000".into());
        recorder.set_now(100);
        recorder.begin_request("127.0.0.1", |text| push_escaped(text, b"GET /key/a HTTP/1.1"));
        recorder.record_reply(Protocol::Http, RequestOutcome::Hit, SENT);
        recorder.begin_request("::1", |text| push_escaped(text, b"GET \"\\\r\n\x7f\xff RESP2"));
        let note = recorder.request_info();
        recorder.begin_request("::1", |text| push_escaped(text, &[b'x'; 600]));
        recorder.record_reply(
            Protocol::Http,
            RequestOutcome::Refused,
            ReplySummary { status: Status::BadRequest, bytes: 0 },
        );
        recorder.end_turns(107);
        recorder.set_now(400);
        recorder.record_deferred_reply(&note, Protocol::Resp, RequestOutcome::Miss, SENT);
        let long = "x".repeat(MAX_LOGGED_BYTES);
        let date = "[06/Nov/1994:08:49:37 +0000]";
        let expected = format!(
            "127.0.0.1 - - {date} \"GET /key/a HTTP/1.1\" 200 28 hit 7\n\
             ::1 - - {date} \"{long}...\" 400 - refused 7\n\
             ::1 - - {date} \"GET \\x22\\x5c\\x0d\\x0a\\x7f\\xff RESP2\" 200 28 miss 300\n"
        );
        assert_eq!(taken(&mut recorder), expected);
        assert_eq!(taken(&mut recorder), "");
        // A request whose body had to come first.
        recorder.resume_request(&note);
        recorder.record_reply(Protocol::Http, RequestOutcome::Other, SENT);
        recorder.end_turns(400);
        assert!(taken(&mut recorder).starts_with("::1 - - [06/Nov/1994:08:49:37 +0000] \"GET \\x22"));
        recorder.record_aborted(&note, Protocol::Resp);
        assert!(taken(&mut recorder).ends_with(" RESP2\" 499 - aborted 300\n"));
        assert_eq!(recorder.metrics.requests_by_outcome[Protocol::Resp as usize][RequestOutcome::Aborted as usize], 1);
    }
}
