//! What is on its way between Redis and the proxy. Each read goes there and comes back on its own time, in whatever
//! order; changes come one after the other, as long as the connection that brings them lives.

use crate::random::Random;
use crate::world::Moment;
use segment_redis_proxy::types::{FetchedValue, Invalidation, Job, Millis};
use std::collections::VecDeque;

/// A job that a helper has taken.
pub struct Read {
    pub job: Job,
    pub key: usize,
    pub began: Moment,
    /// When the next step happens.
    pub due: Millis,
    pub step: Step,
}

/// Steps of a read as the backend does it. Anything can happen between any two of them.
#[derive(Debug)]
pub enum Step {
    /// Redis is asked for the value: by `GETRANGE`, or after an empty one by `GET`.
    Value { by_get: bool },
    /// Redis is asked how long the key has left. The value and its version are known.
    Ttl { by_get: bool, version: usize, value: Option<String> },
    /// The answer arrives.
    Arrive(Answer),
}

/// What comes back.
#[derive(Debug)]
pub enum Answer {
    /// Which version, and how it was read.
    Read(usize, Option<FetchedValue>),
    Unavailable,
    TimedOut,
    /// Redis answered with an error that says nothing about the key.
    Error,
}

/// Whether Redis tells of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    Off,
    Down,
    Up,
}

/// See the top of the file.
pub struct Link {
    pub reads: Vec<Read>,
    changes: VecDeque<(Millis, Invalidation)>,
    pub tracking: Tracking,
    /// Redis cannot be reached.
    pub outage: bool,
    /// Longest that a change takes.
    hop: Millis,
    /// Longest that a helper waits for an answer.
    timer: Millis,
}

impl Link {
    pub fn new(tracking: bool, timer: Millis, random: &mut Random) -> Link {
        let tracking = if tracking { Tracking::Down } else { Tracking::Off };
        let hop = random.one_of(&[0, 1, 5, 40]);
        Link { reads: Vec::new(), changes: VecDeque::new(), tracking, outage: false, hop, timer }
    }

    /// A helper takes a job.
    pub fn begin(&mut self, job: Job, key: usize, (now, began): (Millis, Moment), random: &mut Random) {
        let due = now + self.delay(random);
        self.reads.push(Read { job, key, began, due, step: Step::Value { by_get: false } });
    }

    fn delay(&self, random: &mut Random) -> Millis {
        match random.below(10) {
            0..4 => 0,
            4..8 => random.between(1, 10),
            8 => random.between(1, self.timer),
            _ => random.between(1, 3 * self.timer),
        }
    }

    /// Decides what becomes of a question that has arrived in Redis: its answer, unless the reply is lost.
    pub fn answer(&self, answer: Answer, now: Millis, random: &mut Random) -> (Step, Millis) {
        let (answer, delay) = match random.below(100) {
            _ if self.outage && random.percent(70) => (Answer::Unavailable, random.below(3)),
            _ if self.outage => (Answer::TimedOut, self.timer),
            0..2 => (Answer::TimedOut, self.timer),
            2..4 => (Answer::Unavailable, 0),
            4..6 => (Answer::Error, self.delay(random)),
            _ => (answer, self.delay(random)),
        };
        (Step::Arrive(answer), now + delay)
    }

    /// Decides when the next command of a read is executed: mostly at once, as both are sent together.
    pub fn next_command(&self, now: Millis, random: &mut Random) -> Millis {
        if random.percent(60) { now } else { now + self.delay(random) }
    }

    /// Redis tells of a change, if it does.
    pub fn tell(&mut self, change: Invalidation, now: Millis, random: &mut Random) {
        if self.tracking == Tracking::Up {
            // Now and then too much is to be told, and all is told to have changed.
            let change = if random.percent(2) { Invalidation::All } else { change };
            self.send(change, now + random.between(0, self.hop));
        }
    }

    fn send(&mut self, change: Invalidation, at: Millis) {
        let last = self.changes.back().map_or(0, |&(last, _)| last);
        self.changes.push_back((at.max(last), change));
    }

    /// The connection that tells of changes is cut. What was on its way is lost, or some of it.
    pub fn cut(&mut self, now: Millis, random: &mut Random) {
        if self.tracking == Tracking::Up {
            self.tracking = Tracking::Down;
            let arrives = random.between(0, self.changes.len() as u64) as usize;
            self.changes.truncate(arrives);
            self.send(Invalidation::TrackingLost, now + random.between(0, self.hop));
        }
    }

    /// It is there again: from now on Redis tells.
    pub fn join(&mut self, now: Millis, random: &mut Random) {
        if self.tracking == Tracking::Down && !self.outage {
            self.tracking = Tracking::Up;
            self.send(Invalidation::All, now + random.between(0, self.hop));
        }
    }

    /// The next change that has arrived.
    pub fn hear(&mut self, now: Millis) -> Option<Invalidation> {
        let (at, _) = self.changes.front()?;
        if *at <= now { self.changes.pop_front().map(|(_, change)| change) } else { None }
    }

    /// When the next thing arrives somewhere.
    pub fn next_arrival(&self) -> Option<Millis> {
        let reads = self.reads.iter().map(|read| read.due);
        reads.chain(self.changes.front().map(|&(at, _)| at)).min()
    }
}
