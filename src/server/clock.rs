//! Clock of one event loop: monotonic time, read once in each tick.

use crate::metrics::Micros;
use crate::types::Millis;
use std::time::{Instant, SystemTime};

/// Time since the event loop started.
pub(super) struct Clock {
    started: Instant,
    pub(super) now: Millis,
    /// Start of the tick in microseconds. For metrics only: no decision depends on it.
    pub(super) micros: Micros,
    next_second: Millis,
}

impl Clock {
    pub(super) fn new() -> Clock {
        Clock { started: Instant::now(), now: 0, micros: 0, next_second: 0 }
    }

    /// Reads the clock within a tick. For metrics only.
    pub(super) fn micros(&self) -> Micros {
        self.started.elapsed().as_micros() as Micros
    }

    /// Starts a tick. Returns the wall clock time if a new second has begun.
    pub(super) fn tick(&mut self) -> Option<SystemTime> {
        self.micros = self.micros();
        self.now = self.micros / 1000;
        if self.now < self.next_second {
            return None;
        }
        let time = SystemTime::now();
        let into_second = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_millis();
        self.next_second = self.now + Millis::from(1000 - into_second);
        Some(time)
    }
}
