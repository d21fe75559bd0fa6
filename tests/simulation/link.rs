//! Link between the proxy and the nodes: the reads in transit.
//!
//! Each read has its own delays, so reads complete in any order.

use crate::random::Random;
use crate::world::Moment;
use segment_redis_proxy::backend::NodeId;
use segment_redis_proxy::types::{FetchedValue, Job, Millis};

/// Most redirections of one job.
pub const MAX_HOPS: u32 = 5;

/// Job that the backend has accepted.
#[derive(Debug)]
pub struct Read {
    pub job: Job,
    pub key: usize,
    pub started_at: Moment,
    /// Time at which the job fails if it is still parked.
    pub expires_at: Millis,
    /// Node that is asked; `None` for a parked job.
    pub node: Option<NodeId>,
    /// True after `ASK`.
    pub is_asking: bool,
    pub hops: u32,
    pub may_cache: bool,
    /// Time of the next step.
    pub due: Millis,
    pub step: Step,
}

/// Step of a read, as in the backend. Anything may happen between two steps.
#[derive(Debug)]
pub enum Step {
    /// The job waits for a map that has a node for its key.
    Parked,
    /// The job is in the queue of a node. A fetcher takes it and sends the read.
    Send,
    /// Redis executes `GETRANGE`, or `GET` after an empty value.
    Value { by_get: bool },
    /// Redis executes `PTTL`. The version number of the value is known.
    Ttl { by_get: bool, version: usize },
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

/// Reads in transit.
pub struct Link {
    pub reads: Vec<Read>,
    /// Time that a fetcher waits for a reply.
    pub timeout: Millis,
    /// True if reads take time, fail, and meet writes.
    pub is_faulty: bool,
}

impl Link {
    /// Starts the read of a job.
    pub fn start_read(
        &mut self,
        job: Job,
        key: usize,
        node: Option<NodeId>,
        (now, started_at): (Millis, Moment),
        random: &mut Random,
    ) {
        let (step, due) = match node {
            Some(_) => (Step::Send, now + if random.percent(80) { 0 } else { self.read_delay(random) }),
            None => (Step::Parked, now + self.timeout),
        };
        let expires_at = now + self.timeout;
        let (is_asking, hops, may_cache) = (false, 0, false);
        self.reads.push(Read { job, key, started_at, expires_at, node, is_asking, hops, may_cache, due, step });
    }

    pub fn read_delay(&self, random: &mut Random) -> Millis {
        match random.below(10) {
            _ if !self.is_faulty => 0,
            0..4 => 0,
            4..8 => random.between(1, 10),
            8 => random.between(1, self.timeout),
            _ => random.between(1, 3 * self.timeout),
        }
    }

    /// Returns the last step of a read with its time: mostly `result`, sometimes a failure instead.
    pub fn last_step(&self, result: ReadResult, has_outage: bool, now: Millis, random: &mut Random) -> (Step, Millis) {
        let (result, delay) = match random.below(100) {
            _ if !self.is_faulty => (result, 0),
            _ if has_outage && random.percent(70) => (ReadResult::Unavailable, random.below(3)),
            _ if has_outage => (ReadResult::TimedOut, self.timeout),
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

    /// Returns the time of the next step of a read.
    pub fn next_event(&self) -> Option<Millis> {
        self.reads.iter().map(|read| read.due).min()
    }
}
