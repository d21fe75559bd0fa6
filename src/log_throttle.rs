//! Limit on repeated log lines: one in 10 s for each kind of event.

use crate::types::Millis;

/// Shortest time between two lines about the same kind of event.
const MIN_LOG_INTERVAL: Millis = 10_000;

/// Throttle for the log lines about one kind of event. Counts the lines that it suppresses.
///
/// The caller passes the time in, in milliseconds since any fixed instant.
#[derive(Debug, Default)]
pub struct LogThrottle {
    next_line_at: Millis,
    suppressed: u64,
}

impl LogThrottle {
    /// Returns how many lines were suppressed since the last one, if a line may be logged at `now`.
    /// Otherwise returns `None` and counts the line as suppressed.
    pub fn admit(&mut self, now: Millis) -> Option<u64> {
        if now < self.next_line_at {
            self.suppressed += 1;
            return None;
        }
        self.next_line_at = now + MIN_LOG_INTERVAL;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first line of an event is logged, then one in 10 s with the number of those between.
    #[test]
    fn lines_within_interval_are_counted() {
        let mut throttle = LogThrottle::default();
        let admitted = [0, 1, 9_999, 10_000, 10_001, 50_000, 50_001].map(|now| throttle.admit(now));
        assert_eq!(admitted, [Some(0), None, None, Some(2), None, Some(1), None]);
    }
}
