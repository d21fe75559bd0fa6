//! Throttle for log lines of threads that read the clock themselves.

use crate::log_throttle::LogThrottle;
use crate::types::Millis;
use log::Level;
use std::time::Instant;

/// [`LogThrottle`] with its own clock: one line in 10 s about one kind of event.
#[derive(Debug)]
pub(super) struct TimedThrottle {
    throttle: LogThrottle,
    started_at: Instant,
}

impl Default for TimedThrottle {
    fn default() -> TimedThrottle {
        TimedThrottle { throttle: LogThrottle::default(), started_at: Instant::now() }
    }
}

impl TimedThrottle {
    /// Returns how many lines were suppressed since the last one, if a line may be logged now.
    pub(super) fn admit(&mut self) -> Option<u64> {
        self.throttle.admit(self.started_at.elapsed().as_millis() as Millis)
    }

    /// Returns `level` if a line may be logged now, otherwise [`Level::Debug`].
    pub(super) fn level(&mut self, level: Level) -> Level {
        self.admit().map_or(Level::Debug, |_| level)
    }
}
