//! Format of log lines: text, or one JSON object for each line (`LOG_FORMAT`).
//!
//! This module performs no I/O. The caller passes the time in.

use crate::protocol::http::json::escape;
use std::fmt::Display;
use std::time::{Duration, SystemTime};

/// Format of events and of the access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people, and access lines in the Common Log Format.
    #[default]
    Text,
    /// One JSON object for each line.
    Json,
}

impl LogFormat {
    /// Returns the format with this name, as `LOG_FORMAT` has it.
    pub fn parse(name: &str) -> Option<LogFormat> {
        match name {
            "text" => Some(LogFormat::Text),
            "json" => Some(LogFormat::Json),
            _ => None,
        }
    }
}

/// Returns a time as RFC 3339 has it, in UTC: `1994-11-06T08:49:37.000Z`.
pub fn rfc3339(time: SystemTime) -> String {
    let millis = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_millis();
    let [day, month, year, clock] = date_parts(&httpdate::fmt_http_date(time));
    let month = MONTHS.iter().position(|&name| name == month).map_or(0, |index| index + 1);
    format!("{year}-{month:02}-{day}T{clock}.{millis:03}Z")
}

/// Returns seconds since the Unix epoch as RFC 3339 has them, in UTC: `1994-11-06T08:49:37Z`.
pub fn rfc3339_seconds(unix_time: u64) -> String {
    rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(unix_time.min(END_OF_DATES))).replace(".000", "")
}

/// Returns a time as the Common Log Format has it: `06/Nov/1994:08:49:37 +0000`.
pub fn clf_date(time: SystemTime) -> String {
    let [day, month, year, clock] = date_parts(&httpdate::fmt_http_date(time));
    format!("{day}/{month}/{year}:{clock} +0000")
}

/// End of the year 9999, the last one with a date in HTTP.
const END_OF_DATES: u64 = 253_402_300_799;

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Splits an HTTP date, `Sun, 06 Nov 1994 08:49:37 GMT`, into day, month, year and clock.
fn date_parts(date: &str) -> [String; 4] {
    let mut parts = date.split(' ').skip(1);
    std::array::from_fn(|_| parts.next().unwrap_or_default().to_owned())
}

/// Appends `text` as a JSON string (RFC 8259).
pub fn push_json_string(line: &mut Vec<u8>, text: &str) {
    line.push(b'"');
    escape(text.as_bytes(), line);
    line.push(b'"');
}

/// Returns the line of an event as a JSON object, with its line feed. A message of several lines
/// becomes one line.
pub fn event_line(time: SystemTime, level: impl Display, target: &str, message: &str) -> Vec<u8> {
    let mut line = format!("{{\"time\":\"{}\",\"level\":\"{level}\",\"target\":", rfc3339(time)).into_bytes();
    push_json_string(&mut line, target);
    line.extend_from_slice(b",\"message\":");
    push_json_string(&mut line, message);
    line.extend_from_slice(b"}\n");
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both date formats show the same time; RFC 3339 has its milliseconds.
    #[test]
    fn dates_match_their_formats() {
        for (millis, rfc, clf) in [
            (0, "1970-01-01T00:00:00.000Z", "01/Jan/1970:00:00:00 +0000"),
            (784_111_777_007, "1994-11-06T08:49:37.007Z", "06/Nov/1994:08:49:37 +0000"),
            (951_782_400_999, "2000-02-29T00:00:00.999Z", "29/Feb/2000:00:00:00 +0000"),
            (4_102_444_799_500, "2099-12-31T23:59:59.500Z", "31/Dec/2099:23:59:59 +0000"),
        ] {
            let time = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
            assert_eq!((rfc3339(time).as_str(), clf_date(time).as_str()), (rfc, clf));
        }
        assert_eq!(rfc3339_seconds(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339_seconds(u64::MAX), "9999-12-31T23:59:59Z");
    }

    /// An event is one line, whatever its message contains.
    #[test]
    fn event_is_one_json_line() {
        let line = event_line(SystemTime::UNIX_EPOCH, log::Level::Warn, "a::b", "one \"two\"\nthree\\\u{1}\u{e9}");
        let expected = "{\"time\":\"1970-01-01T00:00:00.000Z\",\"level\":\"WARN\",\"target\":\"a::b\",\
                        \"message\":\"one \\\"two\\\"\\nthree\\\\\\u0001\u{e9}\"}\n";
        assert_eq!(String::from_utf8(line).expect("UTF-8"), expected);
    }

    /// Only the two names are formats.
    #[test]
    fn format_names_are_exact() {
        assert_eq!(
            (LogFormat::parse("text"), LogFormat::parse("json")),
            (Some(LogFormat::Text), Some(LogFormat::Json))
        );
        assert!(["", "JSON", "clf"].iter().all(|name| LogFormat::parse(name).is_none()));
    }
}
