//! Request fields about changes of a key: `Accept` and `Last-Event-ID` of an event stream (HTML,
//! section 9.2), and `Prefer: wait` of a long poll (RFC 7240).

use super::event_stream::EventId;

/// Media type of an event stream.
const EVENT_STREAM: &[u8] = b"text/event-stream";

/// Longest time that a long poll waits, in seconds: proxies in front mostly close a connection that
/// is silent for longer.
pub const MAX_WAIT_SECONDS: u64 = 300;

/// Preferences of a request about changes of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PushFields {
    /// The client asks for an event stream by name. `*/*` does not.
    pub accepts_events: bool,
    /// Last event that the client has received, if it is one of this proxy.
    pub last_event: Option<EventId>,
    /// Seconds that the client is willing to wait, at most [`MAX_WAIT_SECONDS`].
    pub wait: Option<u16>,
}

impl PushFields {
    /// Adds a line of `Prefer`. The first `wait` counts (RFC 7240, section 2).
    pub fn add_prefer(&mut self, line: &[u8]) {
        for preference in line.split(|&byte| byte == b',') {
            let token = preference.split(|&byte| byte == b';').next().unwrap_or_default();
            let mut halves = token.splitn(2, |&byte| byte == b'=').map(<[u8]>::trim_ascii);
            if halves.next().is_some_and(|name| name.eq_ignore_ascii_case(b"wait")) && self.wait.is_none() {
                self.wait = halves.next().and_then(parse_seconds);
            }
        }
    }
}

/// Returns true if a line of `Accept` (RFC 9110, section 12.5.1) names the media type of event
/// streams, and does not exclude it.
pub fn accepts_event_stream(line: &[u8]) -> bool {
    line.split(|&byte| byte == b',').any(|range| {
        let mut parts = range.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
        let is_named = parts.next().is_some_and(|media_type| media_type.eq_ignore_ascii_case(EVENT_STREAM));
        is_named && !parts.any(is_zero_quality)
    })
}

/// Returns true if a parameter is a quality of 0 (RFC 9110, section 12.4.2).
fn is_zero_quality(parameter: &[u8]) -> bool {
    let Some((name, quality)) = parameter.split_first_chunk::<2>() else { return false };
    name.eq_ignore_ascii_case(b"q=") && quality.iter().all(|byte| matches!(byte, b'0' | b'.'))
}

/// Parses a number of seconds, which may be quoted. Returns at most [`MAX_WAIT_SECONDS`].
fn parse_seconds(value: &[u8]) -> Option<u16> {
    let digits = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |sum: u64, &digit: &u8| (sum * 10 + u64::from(digit - b'0')).min(MAX_WAIT_SECONDS);
    u16::try_from(digits.iter().fold(0, add)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only the exact media type with a quality above 0 asks for an event stream.
    #[test]
    fn event_stream_needs_named_type() {
        for line in [
            "text/event-stream",
            "Text/Event-Stream;q=0.1",
            "a/b, text/event-stream ; charset=utf-8",
            "text/event-stream;q=1",
        ] {
            assert!(accepts_event_stream(line.as_bytes()), "{line}");
        }
        for line in [
            "",
            "*/*",
            "text/*",
            "text/event-stream;q=0",
            "text/event-stream; Q=0.000",
            "text/event-streams",
            "application/json",
        ] {
            assert!(!accepts_event_stream(line.as_bytes()), "{line}");
        }
    }

    /// The first valid `wait` counts, up to the limit. Others are no preference.
    #[test]
    fn wait_is_first_and_bounded() {
        for (lines, wait) in [
            (&["wait=30"][..], Some(30)),
            (&["respond-async, WAIT = 5 ; x=y"], Some(5)),
            (&["wait=\"7\""], Some(7)),
            (&["wait=8", "wait=9"], Some(8)),
            (&["wait=301"], Some(300)),
            (&["wait=99999999999999999999999"], Some(300)),
            (&["wait=0"], Some(0)),
            (&["wait"], None),
            (&["wait="], None),
            (&["wait=-1"], None),
            (&["wait=1s"], None),
            (&["waits=1"], None),
        ] {
            let mut fields = PushFields::default();
            lines.iter().for_each(|line| fields.add_prefer(line.as_bytes()));
            assert_eq!(fields.wait, wait, "{lines:?}");
        }
    }
}
