//! Timeouts of clients: a deadline for what a client is doing. This module reads no clock.
//!
//! Trickling bytes move no deadline. Only a completed step starts a new one.
//!
//! Each client has one timer. It moves only to an earlier time: otherwise a busy client would move
//! it with each request. A timer that fires before the deadline is armed again.

use crate::types::Millis;

/// Time for which input is discarded after the last reply. Then the client is closed.
pub(super) const LINGER_TIMEOUT: Millis = 2000;

/// Time for a client above the connection limit to send its first line, and be refused. The line
/// usually arrives with the connection.
const REJECT_TIMEOUT: Millis = 250;

/// Linger time of a refused client. It is short, because other clients wait to be refused.
const REJECT_LINGER: Millis = 100;

/// Bytes that a client with unsent replies must accept in each `CLIENT_IDLE_TIMEOUT`.
///
/// Progress comes in steps. The client's kernel accepts more only once about half of its buffer is
/// read. The kernel of the proxy accepts more only once it has sent 64 KiB. So a client that reads
/// 128 KiB in that time is sure to stay. This is why the longer timeout applies here, as in nginx.
const MIN_WRITE_PROGRESS: usize = 4096;

/// Activity of a client, which determines its timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    /// No request is in progress, after that many requests.
    Idle(u64),
    /// The TLS handshake is incomplete.
    Handshake,
    /// A request is incomplete, after that many requests.
    ReadingRequest(u64),
    /// The client waits for the proxy or for Redis. Other limits bound that time.
    Processing,
    /// The client waits for changes of keys, until the proxy sends something at this time.
    Watching(Millis),
    /// Replies are unsent.
    WritingReply,
    /// The client is above the connection limit, and not yet refused.
    Rejected,
    /// The client was refused, and its input is discarded.
    RejectedLinger,
    /// The last reply was sent, and input is discarded.
    Linger,
}

/// Timeouts in force.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeoutConfig {
    /// `CLIENT_TIMEOUT`.
    pub(super) request: Millis,
    /// `CLIENT_IDLE_TIMEOUT`, between two requests. Shorter during a shutdown.
    pub(super) idle: Millis,
    /// `CLIENT_IDLE_TIMEOUT`, without progress in accepting replies.
    pub(super) write: Millis,
    /// [`LINGER_TIMEOUT`]. Shorter during a shutdown.
    pub(super) linger: Millis,
}

/// Action at the deadline of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeoutAction {
    /// Keep the client: its deadline moved, or the proxy causes the delay.
    Keep,
    /// Answer the incomplete request if the protocol allows it, and close the client.
    RespondTimeout,
    Close,
    /// Close the client, and discard its unsent replies.
    Reset,
}

/// Time that a client spent in an activity after a number of requests.
#[derive(Debug)]
struct TimeSpent {
    requests: u64,
    time: Millis,
}

impl TimeSpent {
    const NONE: TimeSpent = TimeSpent { requests: u64::MAX, time: 0 };

    fn after(&self, requests: u64) -> Millis {
        if self.requests == requests { self.time } else { 0 }
    }
}

/// Activity of one client, with its deadline and its timer.
#[derive(Debug)]
pub(super) struct ClientTimer {
    activity: Activity,
    started_at: Millis,
    /// Bytes sent since then.
    sent_bytes: usize,
    /// Time last spent idle.
    idle_spent: TimeSpent,
    /// Time last spent on sending a request.
    request_spent: TimeSpent,
    /// Time at which the timer fires, `Millis::MAX` without one. It may be before the deadline.
    pub(super) timer_at: Millis,
}

impl ClientTimer {
    pub(super) fn new(activity: Activity, now: Millis) -> ClientTimer {
        ClientTimer {
            activity,
            started_at: now,
            sent_bytes: 0,
            idle_spent: TimeSpent::NONE,
            request_spent: TimeSpent::NONE,
            timer_at: Millis::MAX,
        }
    }

    /// Updates the activity after a turn in which `sent` bytes were sent.
    pub(super) fn update(&mut self, activity: Activity, sent: usize, now: Millis) {
        match activity {
            // Each turn restarts it: the proxy takes this time, not the client.
            Activity::Processing => self.enter(activity, now),
            _ if activity != self.activity => self.enter(activity, now),
            _ => self.sent_bytes += sent,
        }
    }

    /// Enters an activity. A client that returns to one with no request completed in between has
    /// less time left. Otherwise it could prolong one request by sending much now and then. It
    /// could prolong its idle time by input without a request.
    fn enter(&mut self, activity: Activity, now: Millis) {
        let time = now - self.started_at;
        match self.activity {
            Activity::Idle(requests) => self.idle_spent = TimeSpent { requests, time },
            Activity::ReadingRequest(requests) => self.request_spent = TimeSpent { requests, time },
            _ => {}
        }
        let spent = match activity {
            Activity::Idle(requests) => self.idle_spent.after(requests),
            Activity::ReadingRequest(requests) => self.request_spent.after(requests),
            _ => 0,
        };
        (self.activity, self.started_at, self.sent_bytes) = (activity, now - spent, 0);
    }

    /// Returns the time by which the activity must end.
    pub(super) fn deadline(&self, timeouts: TimeoutConfig) -> Millis {
        let timeout = match self.activity {
            Activity::Watching(until) => return until,
            Activity::Idle(_) => timeouts.idle,
            Activity::Processing | Activity::WritingReply => timeouts.write,
            Activity::Handshake | Activity::ReadingRequest(_) => timeouts.request,
            Activity::Rejected => REJECT_TIMEOUT,
            Activity::RejectedLinger => REJECT_LINGER,
            Activity::Linger => timeouts.linger,
        };
        self.started_at.saturating_add(timeout)
    }

    /// Returns what to do with the client if its deadline passed. Called after a turn that read and
    /// wrote, and before the turn of a lingering client.
    pub(super) fn on_deadline(&mut self, timeouts: TimeoutConfig, now: Millis) -> TimeoutAction {
        if self.deadline(timeouts) > now {
            return TimeoutAction::Keep;
        }
        match self.activity {
            Activity::Processing | Activity::Watching(_) => TimeoutAction::Keep,
            Activity::ReadingRequest(_) => TimeoutAction::RespondTimeout,
            Activity::WritingReply if self.sent_bytes >= MIN_WRITE_PROGRESS => {
                self.enter(Activity::WritingReply, now);
                TimeoutAction::Keep
            }
            Activity::WritingReply => TimeoutAction::Reset,
            Activity::Idle(_)
            | Activity::Handshake
            | Activity::Rejected
            | Activity::RejectedLinger
            | Activity::Linger => TimeoutAction::Close,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: TimeoutConfig = TimeoutConfig { request: 10, idle: 60, write: 60, linger: LINGER_TIMEOUT };

    /// Only a completed step moves the deadline.
    #[test]
    fn deadline_moves_with_completed_steps() {
        let mut timer = ClientTimer::new(Activity::Idle(0), 0);
        assert_eq!(timer.deadline(TIMEOUTS), 60);
        for (activity, now, deadline) in [
            (Activity::Idle(7), 50, 110),
            (Activity::Idle(7), 51, 110),
            (Activity::ReadingRequest(7), 51, 61),
            (Activity::ReadingRequest(7), 55, 61),
            (Activity::ReadingRequest(7), 60, 61),
            // The request is complete, and the next one has started.
            (Activity::ReadingRequest(8), 60, 70),
            (Activity::Processing, 65, 125),
            (Activity::Processing, 100, 160),
            (Activity::WritingReply, 101, 161),
            (Activity::WritingReply, 110, 161),
            // The client continues the same request, on which it spent 5 ms.
            (Activity::ReadingRequest(8), 111, 116),
            (Activity::Processing, 112, 172),
            (Activity::ReadingRequest(8), 112, 116),
            // The input was an empty line: the client was idle after as many requests before, for 1
            // ms.
            (Activity::Idle(7), 114, 173),
            (Activity::ReadingRequest(8), 115, 117),
            (Activity::Idle(7), 116, 174),
            (Activity::Idle(9), 117, 177),
            (Activity::ReadingRequest(9), 118, 128),
            (Activity::Linger, 119, 119 + LINGER_TIMEOUT),
            (Activity::Linger, 120, 119 + LINGER_TIMEOUT),
        ] {
            timer.update(activity, 1, now);
            assert_eq!(timer.deadline(TIMEOUTS), deadline, "{activity:?} at {now}");
        }
    }

    /// A handshake has one deadline, however often the client sends or reads a part of it.
    #[test]
    fn handshake_has_one_deadline() {
        let mut timer = ClientTimer::new(Activity::Idle(0), 0);
        for now in [5, 9, 14] {
            timer.update(Activity::Handshake, 1_000_000, now);
            assert_eq!((timer.deadline(TIMEOUTS), timer.on_deadline(TIMEOUTS, 14)), (15, TimeoutAction::Keep));
        }
        assert_eq!(timer.on_deadline(TIMEOUTS, 15), TimeoutAction::Close);
        // After it the client is as idle as a new one.
        timer.update(Activity::Idle(0), 0, 15);
        assert_eq!(timer.deadline(TIMEOUTS), 70);
    }

    /// A client that accepts too few bytes of its replies is reset.
    #[test]
    fn slow_reader_is_reset() {
        let mut timer = ClientTimer::new(Activity::Idle(0), 0);
        // Bytes sent before the client fell behind do not count.
        timer.update(Activity::WritingReply, 1_000_000, 5);
        timer.update(Activity::WritingReply, MIN_WRITE_PROGRESS - 1, 6);
        assert_eq!(
            (timer.on_deadline(TIMEOUTS, 64), timer.on_deadline(TIMEOUTS, 65)),
            (TimeoutAction::Keep, TimeoutAction::Reset)
        );
        timer.update(Activity::WritingReply, 1, 65);
        assert_eq!((timer.on_deadline(TIMEOUTS, 65), timer.deadline(TIMEOUTS)), (TimeoutAction::Keep, 125));
        assert_eq!(timer.on_deadline(TIMEOUTS, 125), TimeoutAction::Reset, "bytes count for two periods");
    }
}
