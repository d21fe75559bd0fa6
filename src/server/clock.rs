//! What time it is, for the loop.

use crate::metrics::Micros;
use crate::protocol::http::ResponseDate;
use crate::types::Millis;
use std::time::{Instant, SystemTime};

/// The loop's time: monotonic, taken once for each tick, and the `ResponseDate` that goes with it.
pub(super) struct Clock {
    started: Instant,
    pub(super) now: Millis,
    /// The same in microseconds: for how long things took, nothing is decided by it.
    pub(super) micros: Micros,
    pub(super) date: ResponseDate,
    date_until: Millis,
}

impl Clock {
    pub(super) fn new() -> Clock {
        Clock { started: Instant::now(), now: 0, micros: 0, date: ResponseDate::at(SystemTime::now()), date_until: 0 }
    }

    /// Looks at the time beside the tick's.
    pub(super) fn micros(&self) -> Micros {
        self.started.elapsed().as_micros() as Micros
    }

    /// Looks at the time. Says whether it is another second.
    pub(super) fn tick(&mut self) -> bool {
        self.micros = self.micros();
        self.now = self.micros / 1000;
        let next_second = self.now >= self.date_until;
        if next_second {
            let time = SystemTime::now();
            let into_second = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_millis();
            self.date = ResponseDate::at(time);
            self.date_until = self.now + Millis::from(1000 - into_second);
        }
        next_second
    }
}
