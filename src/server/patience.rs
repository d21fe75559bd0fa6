//! How long a client may take for what it does at present. Bytes that trickle move no deadline; what a client does completely
//! begins a new one.
//!
//! Each client has one timer. It is moved only when a deadline comes to be earlier than it: a client that asks and asks would
//! move it with each request otherwise. When the timer goes off, the deadline may turn out to be later, and it is set anew.

use crate::request::Millis;

/// How long a client that was told to stop may go on sending before it is cut off.
pub(super) const LINGER: Millis = 2000;

/// Time for a client that is one too many to send its first line, and be refused. It usually comes with the connection.
const TURNED_AWAY: Millis = 250;

/// How long it may go on sending when it has been told. Others wait to be told.
const TURNED_AWAY_LINGER: Millis = 100;

/// What must leave for a client in each `CLIENT_IDLE_TIMEOUT`, in bytes. A client's kernel lets more through only when its buffer has
/// become empty by a half or so, and ours takes more only when it has got rid of what it sent at a time, 64 KiB: who takes some 128 KiB
/// in that time is sure to stay. Hence the longer of the two time-outs, as nginx has it.
const LEAST_TAKEN_BYTES: usize = 4096;

/// What a client is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It asks nothing, behind so many requests.
    Idle(u64),
    /// Behind so many it has begun a request, and the rest is to come.
    Asking(u64),
    /// It waits for the proxy, which has more of it to take up, or for Redis. There are other bounds for that.
    Served,
    /// It has replies to take.
    Taking,
    /// It is one too many.
    TurnedAway,
    /// It has been told so; what it still sends is thrown away.
    SentAway,
    /// All is said; what it still sends is thrown away.
    Leaving,
}

/// What the operator has set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// `CLIENT_TIMEOUT`.
    pub(super) client: Millis,
    /// `CLIENT_IDLE_TIMEOUT`, for asking nothing. Less while the proxy stops.
    pub(super) idle: Millis,
    /// The same, for taking replies.
    pub(super) taking: Millis,
    /// For closing when all is said: [`LINGER`], or less while the proxy stops.
    pub(super) leaving: Millis,
}

/// What is to happen to a client whose time is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing: it was not up, or is the proxy's.
    Stay,
    /// It is told that it was too slow, if it can be.
    GiveUp,
    Close,
    /// Close, and forget what it has not taken.
    Reset,
}

/// Time that a client has taken behind so many requests.
#[derive(Debug)]
struct Used {
    requests: u64,
    time: Millis,
}

impl Used {
    const NOTHING: Used = Used { requests: u64::MAX, time: 0 };

    fn behind(&self, requests: u64) -> Millis {
        if self.requests == requests { self.time } else { 0 }
    }
}

/// One client's time. See the top of the file.
#[derive(Debug)]
pub(super) struct Patience {
    standing: Standing,
    since: Millis,
    /// Bytes taken since then.
    taken: usize,
    /// What it has used of its time to be idle and to ask.
    idled: Used,
    asked: Used,
    /// When the timer goes off, if there is one. It may be earlier than the deadline.
    pub(super) armed: Millis,
}

impl Patience {
    pub(super) fn new(standing: Standing, now: Millis) -> Patience {
        Patience { standing, since: now, taken: 0, idled: Used::NOTHING, asked: Used::NOTHING, armed: Millis::MAX }
    }

    /// Takes note of what the client is at after a turn, in which it has taken that many bytes.
    pub(super) fn note(&mut self, standing: Standing, taken: usize, now: Millis) {
        match standing {
            // Looked at again and again, and never over by itself.
            Standing::Served => self.begin(standing, now),
            _ if standing != self.standing => self.begin(standing, now),
            _ => self.taken += taken,
        }
    }

    /// What it is at is something else. What it comes back to with no request done in between has used some of its time already:
    /// else a client could have any time for one request by sending much now and then, and any to be idle by asking nothing.
    fn begin(&mut self, standing: Standing, now: Millis) {
        let time = now - self.since;
        match self.standing {
            Standing::Idle(requests) => self.idled = Used { requests, time },
            Standing::Asking(requests) => self.asked = Used { requests, time },
            _ => {}
        }
        let used = match standing {
            Standing::Idle(requests) => self.idled.behind(requests),
            Standing::Asking(requests) => self.asked.behind(requests),
            _ => 0,
        };
        (self.standing, self.since, self.taken) = (standing, now - used, 0);
    }

    /// When what the client is at must have come to an end.
    pub(super) fn deadline(&self, limits: Limits) -> Millis {
        let time = match self.standing {
            Standing::Idle(_) => limits.idle,
            Standing::Served | Standing::Taking => limits.taking,
            Standing::Asking(_) => limits.client,
            Standing::TurnedAway => TURNED_AWAY,
            Standing::SentAway => TURNED_AWAY_LINGER,
            Standing::Leaving => limits.leaving,
        };
        self.since.saturating_add(time)
    }

    /// What is to happen if its time is up, after a turn in which it could show what it is at.
    pub(super) fn judge(&mut self, limits: Limits, now: Millis) -> Verdict {
        if self.deadline(limits) > now {
            return Verdict::Stay;
        }
        match self.standing {
            Standing::Served => Verdict::Stay,
            Standing::Asking(_) => Verdict::GiveUp,
            Standing::Taking if self.taken >= LEAST_TAKEN_BYTES => {
                self.begin(Standing::Taking, now);
                Verdict::Stay
            }
            Standing::Taking => Verdict::Reset,
            Standing::Idle(_) | Standing::TurnedAway | Standing::SentAway | Standing::Leaving => Verdict::Close,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { client: 10, idle: 60, taking: 60, leaving: LINGER };

    #[test]
    fn only_what_is_done_completely_moves_the_deadline() {
        let mut patience = Patience::new(Standing::Idle(0), 0);
        assert_eq!(patience.deadline(LIMITS), 60);
        for (standing, now, deadline) in [
            (Standing::Idle(7), 50, 110),
            (Standing::Idle(7), 51, 110),
            (Standing::Asking(7), 51, 61),
            (Standing::Asking(7), 55, 61),
            (Standing::Asking(7), 60, 61),
            // Its request has come whole, and the next has begun.
            (Standing::Asking(8), 60, 70),
            (Standing::Served, 65, 125),
            (Standing::Served, 100, 160),
            (Standing::Taking, 101, 161),
            (Standing::Taking, 110, 161),
            // It goes on with the same one, of whose time it has used 5.
            (Standing::Asking(8), 111, 116),
            (Standing::Served, 112, 172),
            (Standing::Asking(8), 112, 116),
            // It was an empty one: it has been idle behind as many before, for 1.
            (Standing::Idle(7), 114, 173),
            (Standing::Asking(8), 115, 117),
            (Standing::Idle(7), 116, 174),
            (Standing::Idle(9), 117, 177),
            (Standing::Asking(9), 118, 128),
            (Standing::Leaving, 119, 119 + LINGER),
            (Standing::Leaving, 120, 119 + LINGER),
        ] {
            patience.note(standing, 1, now);
            assert_eq!(patience.deadline(LIMITS), deadline, "{standing:?} at {now}");
        }
    }

    #[test]
    fn who_takes_replies_must_take_enough_of_them() {
        let mut patience = Patience::new(Standing::Idle(0), 0);
        // What was sent before it had to wait does not count.
        patience.note(Standing::Taking, 1_000_000, 5);
        patience.note(Standing::Taking, LEAST_TAKEN_BYTES - 1, 6);
        assert_eq!((patience.judge(LIMITS, 64), patience.judge(LIMITS, 65)), (Verdict::Stay, Verdict::Reset));
        patience.note(Standing::Taking, 1, 65);
        assert_eq!((patience.judge(LIMITS, 65), patience.deadline(LIMITS)), (Verdict::Stay, 125));
        assert_eq!(patience.judge(LIMITS, 125), Verdict::Reset, "what was taken counts twice");
    }
}
