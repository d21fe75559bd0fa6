//! How long a client may take for what it does at present. Bytes that trickle move no deadline; what a client does completely
//! begins a new one.
//!
//! Each client has one timer. It is moved only when a deadline comes to be earlier than it: a client that asks and asks would
//! move it with each request otherwise. When the timer goes off, the deadline may turn out to be later, and it is set anew.

use crate::types::Millis;

/// How long a client that was told to stop may go on sending before it is cut off.
pub(super) const LINGER_TIMEOUT: Millis = 2000;

/// Time for a client that is one too many to send its first line, and be refused. It usually comes with the connection.
const REJECT_TIMEOUT: Millis = 250;

/// How long it may go on sending when it has been told. Others wait to be told.
const REJECT_LINGER: Millis = 100;

/// What must leave for a client in each `CLIENT_IDLE_TIMEOUT`, in bytes. A client's kernel lets more through only when its buffer has
/// become empty by a half or so, and ours takes more only when it has got rid of what it sent at a time, 64 KiB: who takes some 128 KiB
/// in that time is sure to stay. Hence the longer of the two time-outs, as nginx has it.
const MIN_WRITE_PROGRESS: usize = 4096;

/// What a client is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    /// It asks nothing, behind so many requests.
    Idle(u64),
    /// Behind so many it has begun a request, and the rest is to come.
    ReadingRequest(u64),
    /// It waits for the proxy, which has more of it to take up, or for Redis. There are other bounds for that.
    Processing,
    /// It has replies to take.
    WritingReply,
    /// It is one too many.
    Rejected,
    /// It has been told so; what it still sends is thrown away.
    RejectedLinger,
    /// All is said; what it still sends is thrown away.
    Linger,
}

/// What the operator has set.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeoutConfig {
    /// `CLIENT_TIMEOUT`.
    pub(super) request: Millis,
    /// `CLIENT_IDLE_TIMEOUT`, for asking nothing. Less while the proxy stops.
    pub(super) idle: Millis,
    /// The same, for taking replies.
    pub(super) write: Millis,
    /// For closing when all is said: [`LINGER`], or less while the proxy stops.
    pub(super) linger: Millis,
}

/// What is to happen to a client whose time is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeoutAction {
    /// Nothing: it was not up, or is the proxy's.
    Keep,
    /// It is told that it was too slow, if it can be.
    RespondTimeout,
    Close,
    /// Close, and forget what it has not taken.
    Reset,
}

/// Time that a client has taken behind so many requests.
#[derive(Debug)]
struct TimeSpent {
    requests: u64,
    time: Millis,
}

impl TimeSpent {
    const NOTHING: TimeSpent = TimeSpent { requests: u64::MAX, time: 0 };

    fn after(&self, requests: u64) -> Millis {
        if self.requests == requests { self.time } else { 0 }
    }
}

/// One client's time. See the top of the file.
#[derive(Debug)]
pub(super) struct ClientTimer {
    standing: Activity,
    since: Millis,
    /// Bytes taken since then.
    written: usize,
    /// What it has used of its time to be idle and to ask.
    idled: TimeSpent,
    asked: TimeSpent,
    /// When the timer goes off, if there is one. It may be earlier than the deadline.
    pub(super) timer_at: Millis,
}

impl ClientTimer {
    pub(super) fn new(standing: Activity, now: Millis) -> ClientTimer {
        ClientTimer {
            standing,
            since: now,
            written: 0,
            idled: TimeSpent::NOTHING,
            asked: TimeSpent::NOTHING,
            timer_at: Millis::MAX,
        }
    }

    /// Takes note of what the client is at after a turn, in which it has taken that many bytes.
    pub(super) fn update(&mut self, standing: Activity, taken: usize, now: Millis) {
        match standing {
            // Looked at again and again, and never over by itself.
            Activity::Processing => self.enter(standing, now),
            _ if standing != self.standing => self.enter(standing, now),
            _ => self.written += taken,
        }
    }

    /// What it is at is something else. What it comes back to with no request done in between has used some of its time already:
    /// else a client could have any time for one request by sending much now and then, and any to be idle by asking nothing.
    fn enter(&mut self, standing: Activity, now: Millis) {
        let time = now - self.since;
        match self.standing {
            Activity::Idle(requests) => self.idled = TimeSpent { requests, time },
            Activity::ReadingRequest(requests) => self.asked = TimeSpent { requests, time },
            _ => {}
        }
        let used = match standing {
            Activity::Idle(requests) => self.idled.after(requests),
            Activity::ReadingRequest(requests) => self.asked.after(requests),
            _ => 0,
        };
        (self.standing, self.since, self.written) = (standing, now - used, 0);
    }

    /// When what the client is at must have come to an end.
    pub(super) fn deadline(&self, limits: TimeoutConfig) -> Millis {
        let time = match self.standing {
            Activity::Idle(_) => limits.idle,
            Activity::Processing | Activity::WritingReply => limits.write,
            Activity::ReadingRequest(_) => limits.request,
            Activity::Rejected => REJECT_TIMEOUT,
            Activity::RejectedLinger => REJECT_LINGER,
            Activity::Linger => limits.linger,
        };
        self.since.saturating_add(time)
    }

    /// What is to happen if its time is up, after a turn in which it could show what it is at.
    pub(super) fn on_deadline(&mut self, limits: TimeoutConfig, now: Millis) -> TimeoutAction {
        if self.deadline(limits) > now {
            return TimeoutAction::Keep;
        }
        match self.standing {
            Activity::Processing => TimeoutAction::Keep,
            Activity::ReadingRequest(_) => TimeoutAction::RespondTimeout,
            Activity::WritingReply if self.written >= MIN_WRITE_PROGRESS => {
                self.enter(Activity::WritingReply, now);
                TimeoutAction::Keep
            }
            Activity::WritingReply => TimeoutAction::Reset,
            Activity::Idle(_) | Activity::Rejected | Activity::RejectedLinger | Activity::Linger => {
                TimeoutAction::Close
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: TimeoutConfig = TimeoutConfig { request: 10, idle: 60, write: 60, linger: LINGER_TIMEOUT };

    #[test]
    fn only_what_is_done_completely_moves_the_deadline() {
        let mut timer = ClientTimer::new(Activity::Idle(0), 0);
        assert_eq!(timer.deadline(LIMITS), 60);
        for (standing, now, deadline) in [
            (Activity::Idle(7), 50, 110),
            (Activity::Idle(7), 51, 110),
            (Activity::ReadingRequest(7), 51, 61),
            (Activity::ReadingRequest(7), 55, 61),
            (Activity::ReadingRequest(7), 60, 61),
            // Its request has come whole, and the next has begun.
            (Activity::ReadingRequest(8), 60, 70),
            (Activity::Processing, 65, 125),
            (Activity::Processing, 100, 160),
            (Activity::WritingReply, 101, 161),
            (Activity::WritingReply, 110, 161),
            // It goes on with the same one, of whose time it has used 5.
            (Activity::ReadingRequest(8), 111, 116),
            (Activity::Processing, 112, 172),
            (Activity::ReadingRequest(8), 112, 116),
            // It was an empty one: it has been idle behind as many before, for 1.
            (Activity::Idle(7), 114, 173),
            (Activity::ReadingRequest(8), 115, 117),
            (Activity::Idle(7), 116, 174),
            (Activity::Idle(9), 117, 177),
            (Activity::ReadingRequest(9), 118, 128),
            (Activity::Linger, 119, 119 + LINGER_TIMEOUT),
            (Activity::Linger, 120, 119 + LINGER_TIMEOUT),
        ] {
            timer.update(standing, 1, now);
            assert_eq!(timer.deadline(LIMITS), deadline, "{standing:?} at {now}");
        }
    }

    #[test]
    fn who_takes_replies_must_take_enough_of_them() {
        let mut timer = ClientTimer::new(Activity::Idle(0), 0);
        // What was sent before it had to wait does not count.
        timer.update(Activity::WritingReply, 1_000_000, 5);
        timer.update(Activity::WritingReply, MIN_WRITE_PROGRESS - 1, 6);
        assert_eq!(
            (timer.on_deadline(LIMITS, 64), timer.on_deadline(LIMITS, 65)),
            (TimeoutAction::Keep, TimeoutAction::Reset)
        );
        timer.update(Activity::WritingReply, 1, 65);
        assert_eq!((timer.on_deadline(LIMITS, 65), timer.deadline(LIMITS)), (TimeoutAction::Keep, 125));
        assert_eq!(timer.on_deadline(LIMITS, 125), TimeoutAction::Reset, "what was taken counts twice");
    }
}
