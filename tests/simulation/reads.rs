//! The backend of the proxy: reads jobs at the nodes, follows redirections, fills the inbox.

use crate::client::Cause;
use crate::cluster::{Answer, Mode, NodeState};
use crate::link::{MAX_HOPS, Read, ReadResult, Step};
use crate::tracker::Message;
use crate::turns::deliver_reply;
use crate::versions::{KEYS, NAMES};
use crate::world::World;
use segment_redis_proxy::backend::{NodeId, Reading};
use segment_redis_proxy::types::{Completion, Failure, Invalidation, Millis};

/// Completed job, which the event loop has not taken yet.
pub struct Arrival {
    read: Read,
    result: ReadResult,
}

impl World {
    /// Runs the events of Redis, the link and the backend that are due, and then drains the inbox.
    pub fn run_upstream(&mut self) -> Result<(), String> {
        self.run_expiry();
        // An event of its own, so that no version ends at the moment at which it started.
        self.moment += 1;
        for node in self.cluster.run_news(self.now, self.moment) {
            self.record(format_args!("node {node} is demoted and closes its connections"));
            self.cut_trackers_of(node, 0);
        }
        let reads_first = self.random.percent(50);
        let mut arrivals = Vec::new();
        if reads_first {
            arrivals = self.run_reads();
            self.drain_inbox(&mut arrivals)?;
        }
        self.run_trackers();
        self.run_topology();
        if !reads_first {
            arrivals = self.run_reads();
        }
        self.drain_inbox(&mut arrivals)
    }

    fn run_expiry(&mut self) {
        self.moment += 1;
        for (node, key) in self.cluster.expire(self.now, self.moment) {
            // Redis invalidates a key when it removes it, perhaps later. The proxy must not depend
            // on the invalidation.
            self.record(format_args!("k{key} expires at node {node}"));
            if self.random.percent(50) {
                self.send_change(node, key);
            }
        }
    }

    /// Connects the trackers that are due, and handles the messages that have arrived.
    fn run_trackers(&mut self) {
        for index in 0..self.trackers.len() {
            let tracker = &mut self.trackers[index];
            if tracker.connects_at.is_some_and(|at| at <= self.now) {
                let node = &self.cluster.nodes[tracker.node];
                if node.state == NodeState::Running && !node.has_outage {
                    tracker.connect(self.now, &mut self.random);
                } else {
                    let retries = self.cluster.mode != Mode::Single && self.random.percent(50);
                    tracker.connects_at = retries.then_some(self.now + 20);
                }
            }
            while let Some(message) = self.trackers[index].take_message(self.now) {
                self.on_message(index, message);
            }
        }
    }

    fn on_message(&mut self, index: usize, message: Message) {
        let id = self.trackers[index].id;
        let invalidation = match message {
            Message::Changed(invalidation) => Some(invalidation),
            Message::Watched => {
                self.record(format_args!("{id:?} is watched"));
                self.set.set_watched(id, Ok(()))
            }
            Message::Lost => {
                self.record(format_args!("{id:?} is not watched any more"));
                if self.cluster.mode != Mode::Single && self.random.percent(50) {
                    self.trackers[index].connects_at = Some(self.now + self.random.below(30));
                }
                let invalidation = self.set.set_watched(id, Err("lost".into()));
                let is_last = self.trackers.iter().all(|tracker| !tracker.is_connected);
                self.counts.node_losses += u64::from(invalidation == Some(Invalidation::TrackingLost) && !is_last);
                invalidation
            }
        };
        self.inbox.extend(invalidation);
    }

    /// Runs the steps of reads that are due. Returns the jobs that are completed.
    fn run_reads(&mut self) -> Vec<Arrival> {
        let (mut index, mut arrivals) = (0, Vec::new());
        while index < self.link.reads.len() {
            if self.link.reads[index].due > self.now {
                index += 1;
                continue;
            }
            let mut read = self.link.reads.swap_remove(index);
            let step = std::mem::replace(&mut read.step, Step::Parked);
            if let Step::Arrive(result) = step {
                arrivals.push(Arrival { read, result });
                continue;
            }
            (read.step, read.due) = self.next_step(&mut read, step);
            self.link.reads.push(read);
        }
        arrivals
    }

    pub fn node_of(&self, id: NodeId) -> Option<usize> {
        self.known_nodes.iter().find(|(known, _)| *known == id).map(|&(_, node)| node)
    }

    /// Executes the step of a read that is due. Returns the next one with its time.
    fn next_step(&mut self, read: &mut Read, step: Step) -> (Step, Millis) {
        let id = match (&step, read.node) {
            (Step::Parked | Step::Arrive(_), _) | (_, None) => {
                return (Step::Arrive(ReadResult::Unavailable), self.now);
            }
            (_, Some(id)) => id,
        };
        if let Step::Send = step {
            read.may_cache = self.set.may_cache(id, read.is_asking);
            return (Step::Value { by_get: false }, self.now + self.link.read_delay(&mut self.random));
        }
        let Some(node) = self.node_of(id) else { return (Step::Arrive(ReadResult::Unavailable), self.now) };
        let answer = self.cluster.answer(node, read.key, read.is_asking);
        match (answer, step) {
            (Answer::Gone, _) => {
                self.topology.wake(self.now);
                (Step::Arrive(ReadResult::Unavailable), self.now)
            }
            (Answer::Hung(until), _) if until > self.now + self.link.timeout => {
                (Step::Arrive(ReadResult::TimedOut), self.now + self.link.timeout)
            }
            (Answer::Hung(until), step) => (step, until),
            (Answer::Moved(target) | Answer::Ask(target), step) => {
                self.counts.moved_within_read += u64::from(matches!(step, Step::Ttl { .. }));
                self.redirect(read, target, matches!(answer, Answer::Ask(_)))
            }
            (Answer::Version(version), Step::Ttl { by_get, version: first }) => {
                self.end_read(read, node, (first, version), by_get)
            }
            (Answer::Version(version), step) => {
                let by_get = matches!(step, Step::Value { by_get: true });
                self.counts.former_owner_reads += u64::from(self.cluster.holder_of(read.key) != node);
                let due = self.link.next_command(self.now, &mut self.random);
                // A write between the two commands.
                if self.link.is_faulty && self.random.percent(10) {
                    self.write_key(read.key);
                }
                (Step::Ttl { by_get, version }, due)
            }
        }
    }

    /// Combines the value of one version with the ttl of another one.
    fn end_read(&mut self, read: &Read, node: usize, (first, second): (usize, usize), by_get: bool) -> (Step, Millis) {
        let versions = &self.cluster.versions;
        let value = &versions.keys[read.key][first].value;
        // `GETRANGE` returns an empty value for a missing key, `GET` does not.
        let bytes = value.as_ref().map(|value| value.clone().into_bytes());
        let bytes = if by_get { bytes } else { bytes.or(Some(Vec::new())) };
        let (version, fetched) = match Reading::of(bytes, versions.ttl(read.key, second, self.now), usize::MAX) {
            Reading::Empty(_) if !by_get => {
                self.counts.empty += 1;
                return (Step::Value { by_get: true }, self.now);
            }
            Reading::Empty(fetched) | Reading::Value(fetched) => (first, Some(fetched)),
            Reading::Missing if value.is_some() => (second, None),
            Reading::Missing | Reading::Truncated => (first, None),
        };
        if fetched.is_some() && first != second {
            self.counts.mixed_reads += 1;
            self.cluster.versions.extend_expiry(read.key, first, second);
        }
        let has_outage = self.cluster.nodes[node].has_outage;
        self.link.last_step(ReadResult::Read(version, fetched), has_outage, self.now, &mut self.random)
    }

    /// Hands a job to the node that another one named, or parks it.
    fn redirect(&mut self, read: &mut Read, target: usize, is_ask: bool) -> (Step, Millis) {
        self.record(format_args!("fetch {} is redirected to node {target}", read.job.fetch_id));
        read.hops += 1;
        self.counts.asked += u64::from(is_ask);
        self.counts.moved += u64::from(!is_ask);
        if read.hops > MAX_HOPS {
            return (Step::Arrive(ReadResult::Unavailable), self.now);
        }
        read.node = self.set.node_at(&self.cluster.address_of(target));
        read.is_asking = is_ask;
        if read.node.is_some() {
            if self.random.percent(50) {
                self.topology.wake(self.now);
            }
            return (Step::Send, self.now);
        }
        self.counts.parked += 1;
        self.topology.wake(self.now);
        (Step::Parked, read.expires_at.max(self.now))
    }

    /// Lets the event loop take what has arrived: invalidations before completions, but only a
    /// limited number of them before it takes the completions.
    fn drain_inbox(&mut self, arrivals: &mut Vec<Arrival>) -> Result<(), String> {
        let mut max = self.random.one_of(&[1, 2, usize::MAX]);
        loop {
            while max > 0
                && let Some(invalidation) = self.inbox.pop_front()
            {
                max -= 1;
                self.apply_invalidation(&invalidation);
            }
            for Arrival { read, result } in arrivals.drain(..) {
                self.complete_read(&read, result);
            }
            if self.inbox.is_empty() {
                break;
            }
            max = usize::MAX;
        }
        match self.set.is_tracked() == self.floors.is_tracked {
            true => Ok(()),
            false => Err("the loop and the nodes disagree about tracking".into()),
        }
    }

    fn complete_read(&mut self, read: &Read, result: ReadResult) {
        let (key, fetch_id) = (read.key, read.job.fetch_id);
        let result_name: &dyn std::fmt::Debug = match &result {
            ReadResult::Read(number, _) => &("version", number),
            failure => failure,
        };
        self.record(format_args!("fetch {fetch_id} of k{key} completes: {result_name:?}"));
        let (result, cause) = match result {
            ReadResult::Read(number, fetched) => {
                let from = self.cluster.versions.keys[key][number].from;
                self.floors.raise_to_fetched(key, (read.started_at, self.moment), from, read.is_asking);
                self.fetches.record(key, number, read.is_asking, (self.now, self.moment));
                self.counts.uncacheable += u64::from(fetched.is_some() && !read.may_cache);
                (Ok(fetched), Cause::Fetched)
            }
            ReadResult::Unavailable => (Err(Failure::Unavailable), Cause::Outage),
            ReadResult::TimedOut => (Err(Failure::Timeout), Cause::Outage),
            ReadResult::Error => (Err(Failure::Redis("ERR of some kind".into())), Cause::Failed),
        };
        self.complete_fetch(Completion { fetch_id, result, may_cache: read.may_cache }, cause);
    }

    pub fn complete_fetch(&mut self, completion: Completion, cause: Cause) {
        let World { read_through, clients, date, recorder, counts, .. } = self;
        let time = (self.now, self.moment);
        read_through.complete(completion, self.now, |request_id, reply| {
            deliver_reply(clients, request_id, reply, cause, (date, recorder), time, counts);
        });
    }

    fn apply_invalidation(&mut self, invalidation: &Invalidation) {
        self.record(format_args!("invalidation {invalidation:?} arrives"));
        self.counts.invalidations += 1;
        let keys = match invalidation {
            Invalidation::Key(name) => (0..KEYS).filter(|&key| NAMES[key].as_bytes() == name).collect(),
            _ => Vec::from_iter(0..KEYS),
        };
        keys.into_iter().for_each(|key| self.invalidated_at[key] = self.moment);
        match invalidation {
            Invalidation::Key(name) => {
                let key = (0..KEYS).find(|&key| NAMES[key].as_bytes() == name);
                self.floors.raise(key, self.moment);
                let arriving = |read: &&Read| Some(read.key) == key && matches!(read.step, Step::Arrive(_));
                self.counts.overtaken += self.link.reads.iter().filter(arriving).count() as u64;
            }
            Invalidation::All => self.floors.raise(None, self.moment),
            Invalidation::TrackingStarted => {
                self.floors.raise(None, self.moment);
                self.floors.is_tracked = true;
            }
            Invalidation::TrackingLost => {
                self.floors.raise_for_hits(self.moment);
                self.floors.is_tracked = false;
                self.tracking_lost_at = self.now;
            }
        }
        self.read_through.invalidate(invalidation, self.now);
    }
}
