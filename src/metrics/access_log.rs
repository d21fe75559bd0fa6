//! Access log of one event loop: one line for each request, in the Common Log Format or as JSON.
//!
//! Two fields follow those of the Common Log Format: the outcome, and the time in microseconds.
//! Bytes that a client sent are escaped, so that no request can forge a line. This module renders
//! lines and performs no I/O.

use super::{Micros, RequestOutcome};
use crate::log_format::{LogFormat, clf_date, push_json_string, rfc3339};
use crate::protocol::ReplySummary;
use std::fmt::Write;
use std::time::SystemTime;

/// Most bytes of a request in a line, plus at most one escape sequence and an ellipsis.
///
/// A target may have 8 KiB and a key 64 KiB, and a client may have 128 pending replies.
pub(super) const MAX_LOGGED_BYTES: usize = 256;

/// Status of a request if the client disconnected before the reply. nginx logs the same code, and
/// log analysers know it.
const STATUS_CLIENT_CLOSED: &str = "499";

/// Client and request of a pending request, as the line has them.
#[derive(Debug)]
pub(super) struct LoggedRequest {
    client: Box<str>,
    request: Box<str>,
}

/// Lines of one event loop, and the request that was decoded last.
#[derive(Debug, Default)]
pub(super) struct AccessLog {
    format: LogFormat,
    date: LineDate,
    client: String,
    request: String,
    /// Lines of the current turns. Their time is not known yet.
    untimed: Vec<u8>,
    /// Complete lines.
    pub(super) lines: Vec<u8>,
}

/// Time that the lines of the current second show.
#[derive(Debug, Default)]
struct LineDate {
    /// Date in the format of a line. JSON adds the milliseconds.
    text: String,
    /// Microseconds into the second at time 0 of the event loop.
    offset: i64,
}

impl AccessLog {
    /// Creates an access log without lines.
    pub(super) fn new(format: LogFormat) -> AccessLog {
        AccessLog { format, ..AccessLog::default() }
    }

    /// Sets the time that lines show: `time` is that of the system at the time `now` of the event
    /// loop.
    pub(super) fn set_date(&mut self, time: SystemTime, now: Micros) {
        let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.date.offset = i64::from(since_epoch.subsec_micros()) - now as i64;
        self.date.text = match self.format {
            LogFormat::Text => clf_date(time),
            LogFormat::Json => {
                let mut text = rfc3339(time);
                text.truncate(text.len() - ".000Z".len());
                text
            }
        };
    }

    /// Sets the current request. `write` appends its text.
    pub(super) fn set_request(&mut self, client: &str, write: impl FnOnce(&mut String)) {
        self.client.clear();
        self.client.push_str(client);
        self.request.clear();
        write(&mut self.request);
    }

    /// Returns a copy of the current request, for its line later.
    pub(super) fn current_request(&self) -> LoggedRequest {
        LoggedRequest { client: self.client.as_str().into(), request: self.request.as_str().into() }
    }

    /// Makes `logged` the current request again.
    pub(super) fn restore_request(&mut self, logged: &LoggedRequest) {
        self.set_request(&logged.client, |text| text.push_str(&logged.request));
    }

    /// Adds the line of the current request. [`AccessLog::end_turns`] adds the time.
    pub(super) fn push_untimed(&mut self, outcome: RequestOutcome, sent: ReplySummary, now: Micros) {
        let (request, fields) = ((&*self.client, &*self.request), (sent.status.code(), sent.bytes));
        match self.format {
            LogFormat::Text => push_fields(&mut self.untimed, request, &self.date.text, outcome, fields),
            LogFormat::Json => push_json_fields(&mut self.untimed, request, &self.date, now, outcome, fields),
        }
        self.untimed.push(b'\n');
    }

    /// Adds the line of a request that was pending for `time` and ended at `now`. `fields` are the
    /// status and the bytes sent.
    pub(super) fn push(
        &mut self,
        logged: &LoggedRequest,
        outcome: RequestOutcome,
        fields: (&str, usize),
        now: Micros,
        time: Micros,
    ) {
        let request = (&*logged.client, &*logged.request);
        match self.format {
            LogFormat::Text => push_fields(&mut self.lines, request, &self.date.text, outcome, fields),
            LogFormat::Json => push_json_fields(&mut self.lines, request, &self.date, now, outcome, fields),
        }
        push_time(&mut self.lines, self.format, time);
    }

    /// Adds the line of a pending request after its client disconnected.
    pub(super) fn push_aborted(&mut self, logged: &LoggedRequest, now: Micros, time: Micros) {
        self.push(logged, RequestOutcome::Aborted, (STATUS_CLIENT_CLOSED, 0), now, time);
    }

    /// Completes the lines of the current turns with `time`.
    pub(super) fn end_turns(&mut self, time: Micros) {
        for line in self.untimed.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            self.lines.extend_from_slice(line);
            push_time(&mut self.lines, self.format, time);
        }
        self.untimed.clear();
    }
}

/// Appends all fields of a line in the Common Log Format except the duration.
fn push_fields(
    line: &mut Vec<u8>,
    (client, request): (&str, &str),
    date: &str,
    outcome: RequestOutcome,
    (code, bytes): (&str, usize),
) {
    for part in [client, " - - [", date, "] \"", request, "\" ", code, " "] {
        line.extend_from_slice(part.as_bytes());
    }
    line.extend_from_slice(if bytes == 0 { "-".into() } else { bytes.to_string() }.as_bytes());
    line.push(b' ');
    line.extend_from_slice(outcome.name().as_bytes());
}

/// Appends all fields of a JSON object except the duration.
fn push_json_fields(
    line: &mut Vec<u8>,
    (client, request): (&str, &str),
    date: &LineDate,
    now: Micros,
    outcome: RequestOutcome,
    (code, bytes): (&str, usize),
) {
    // The date is set once a second, and the two clocks drift apart in between.
    let millis = ((now as i64 + date.offset) / 1000).clamp(0, 999);
    line.extend_from_slice(format!("{{\"time\":\"{}.{millis:03}Z\",\"client\":", date.text).as_bytes());
    push_json_string(line, client);
    line.extend_from_slice(b",\"request\":");
    push_json_string(line, request);
    let outcome = outcome.name();
    let rest = format!(",\"status\":{code},\"bytes\":{bytes},\"outcome\":\"{outcome}\",\"duration_us\":");
    line.extend_from_slice(rest.as_bytes());
}

/// Appends the duration and the end of the line.
fn push_time(line: &mut Vec<u8>, format: LogFormat, time: Micros) {
    let text = match format {
        LogFormat::Text => format!(" {time}\n"),
        LogFormat::Json => format!("{time}}}\n"),
    };
    line.extend_from_slice(text.as_bytes());
}

/// Appends bytes of a client, escaped and cut after `MAX_LOGGED_BYTES`.
///
/// Printable ASCII is copied. Quotes, backslashes and all other bytes become `\xhh`.
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

    /// A long request is cut at the same length however it is escaped.
    #[test]
    fn long_request_is_cut() {
        for (byte, length) in [(b'x', 255), (b'x', 256), (b'x', 257), (0xff, 60_000)] {
            let mut text = "get ".to_owned();
            push_escaped(&mut text, &vec![byte; length]);
            assert!(
                text.len() <= 4 + MAX_LOGGED_BYTES + 4 + "...".len() && text.ends_with("...") == (length > 256),
                "{length}"
            );
        }
    }
}
