//! Link between Redis and the proxy: the reads and invalidations in transit.
//!
//! Each read has its own delays, so reads complete in any order. Invalidations arrive in order, for
//! as long as the tracking connection lives.

use crate::random::Random;
use crate::world::Moment;
use segment_redis_proxy::types::{FetchedValue, Invalidation, Job, Millis};
use std::collections::VecDeque;

/// Job that a fetcher has taken.
pub struct Read {
    pub job: Job,
    pub key: usize,
    pub started_at: Moment,
    /// Time of the next step.
    pub due: Millis,
    pub step: Step,
}

/// Step of a read, as in the backend. Anything may happen between two steps.
#[derive(Debug)]
pub enum Step {
    /// Redis executes `GETRANGE`, or `GET` after an empty value.
    Value { by_get: bool },
    /// Redis executes `PTTL`. The value and its version number are known.
    Ttl { by_get: bool, version: usize, value: Option<String> },
    /// The result reaches the proxy.
    Arrive(ReadResult),
}

/// Result of a read.
#[derive(Debug)]
pub enum ReadResult {
    /// Version number, and the value as the backend would return it.
    Read(usize, Option<FetchedValue>),
    Unavailable,
    TimedOut,
    /// Redis replied with an error that does not depend on the key.
    Error,
}

/// State of the invalidation stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    Off,
    Down,
    Up,
}

/// Reads and invalidations in transit.
pub struct Link {
    pub reads: Vec<Read>,
    invalidations: VecDeque<(Millis, Invalidation)>,
    pub tracking: Tracking,
    /// True if Redis cannot be reached.
    pub has_outage: bool,
    /// Longest delay of an invalidation.
    max_delay: Millis,
    /// Time that a fetcher waits for a reply.
    timeout: Millis,
}

impl Link {
    pub fn new(tracking: bool, timeout: Millis, random: &mut Random) -> Link {
        let tracking = if tracking { Tracking::Down } else { Tracking::Off };
        let max_delay = random.one_of(&[0, 1, 5, 40]);
        Link { reads: Vec::new(), invalidations: VecDeque::new(), tracking, has_outage: false, max_delay, timeout }
    }

    /// Starts the read of a job.
    pub fn start_read(&mut self, job: Job, key: usize, (now, started_at): (Millis, Moment), random: &mut Random) {
        let due = now + self.read_delay(random);
        self.reads.push(Read { job, key, started_at, due, step: Step::Value { by_get: false } });
    }

    fn read_delay(&self, random: &mut Random) -> Millis {
        match random.below(10) {
            0..4 => 0,
            4..8 => random.between(1, 10),
            8 => random.between(1, self.timeout),
            _ => random.between(1, 3 * self.timeout),
        }
    }

    /// Returns the last step of a read with its time: mostly `result`, sometimes a failure instead.
    pub fn last_step(&self, result: ReadResult, now: Millis, random: &mut Random) -> (Step, Millis) {
        let (result, delay) = match random.below(100) {
            _ if self.has_outage && random.percent(70) => (ReadResult::Unavailable, random.below(3)),
            _ if self.has_outage => (ReadResult::TimedOut, self.timeout),
            0..2 => (ReadResult::TimedOut, self.timeout),
            2..4 => (ReadResult::Unavailable, 0),
            4..6 => (ReadResult::Error, self.read_delay(random)),
            _ => (result, self.read_delay(random)),
        };
        (Step::Arrive(result), now + delay)
    }

    /// Returns the time at which Redis executes the second command of a read. Both are sent
    /// together, so mostly now.
    pub fn next_command(&self, now: Millis, random: &mut Random) -> Millis {
        if random.percent(60) { now } else { now + self.read_delay(random) }
    }

    /// Sends an invalidation if tracking is active. Now and then it invalidates everything instead,
    /// as after an overflow of the inbox.
    pub fn invalidate(&mut self, invalidation: Invalidation, now: Millis, random: &mut Random) {
        if self.tracking == Tracking::Up {
            let invalidation = if random.percent(2) { Invalidation::All } else { invalidation };
            self.push(invalidation, now + random.between(0, self.max_delay));
        }
    }

    fn push(&mut self, invalidation: Invalidation, at: Millis) {
        let last = self.invalidations.back().map_or(0, |&(last, _)| last);
        self.invalidations.push_back((at.max(last), invalidation));
    }

    /// Cuts the tracking connection. Some of the invalidations in transit are lost, or all.
    pub fn cut_tracking(&mut self, now: Millis, random: &mut Random) {
        if self.tracking == Tracking::Up {
            self.tracking = Tracking::Down;
            let arriving = random.between(0, self.invalidations.len() as u64) as usize;
            self.invalidations.truncate(arriving);
            self.push(Invalidation::TrackingLost, now + random.between(0, self.max_delay));
        }
    }

    /// Starts tracking again, unless there is an outage.
    pub fn start_tracking(&mut self, now: Millis, random: &mut Random) {
        if self.tracking == Tracking::Down && !self.has_outage {
            self.tracking = Tracking::Up;
            self.push(Invalidation::TrackingStarted, now + random.between(0, self.max_delay));
        }
    }

    /// Takes the next invalidation that has arrived.
    pub fn take_invalidation(&mut self, now: Millis) -> Option<Invalidation> {
        let (at, _) = self.invalidations.front()?;
        if *at <= now { self.invalidations.pop_front().map(|(_, invalidation)| invalidation) } else { None }
    }

    /// Returns the time of the next step of a read, or of the next invalidation.
    pub fn next_arrival(&self) -> Option<Millis> {
        let reads = self.reads.iter().map(|read| read.due);
        reads.chain(self.invalidations.front().map(|&(at, _)| at)).min()
    }
}
