//! Invalidation streams of the nodes: connecting, messages in transit, cuts.
//!
//! Each stream delivers its messages in order, for as long as its connection lives. Streams of
//! different nodes have different delays.

use crate::random::Random;
use segment_redis_proxy::backend::NodeId;
use segment_redis_proxy::types::{Invalidation, Millis};
use std::collections::VecDeque;

/// Message of a stream.
#[derive(Debug)]
pub enum Message {
    /// The subscription is confirmed.
    Watched,
    Changed(Invalidation),
    /// The connection is found to be lost.
    Lost,
}

/// Bounds on the delays of one seed.
#[derive(Clone, Copy, Debug)]
pub struct Delays {
    /// Longest time until the tracker of a new node is connected.
    pub connect: Millis,
    /// Longest delay of a message.
    pub message: Millis,
    /// Longest time until a silent connection is found to be lost.
    pub silence: Millis,
}

impl Delays {
    /// Returns the longest time until a change, or the loss of its message, reaches the proxy.
    pub fn notice_ms(&self) -> Millis {
        2 * self.message + self.silence + 1
    }
}

/// Connection of the proxy that receives the changes of one node.
pub struct Tracker {
    pub id: NodeId,
    /// Number of the node.
    pub node: usize,
    pub is_connected: bool,
    /// Time of the next attempt to connect.
    pub connects_at: Option<Millis>,
    delays: Delays,
    stream: VecDeque<(Millis, Message)>,
}

impl Tracker {
    pub fn new(id: NodeId, node: usize, connects_at: Option<Millis>, delays: Delays, random: &mut Random) -> Tracker {
        let message = random.one_of(&[0, 1, 5, 40]).min(delays.message);
        let delays = Delays { message, ..delays };
        Tracker { id, node, is_connected: false, connects_at, delays, stream: VecDeque::new() }
    }

    fn push(&mut self, message: Message, at: Millis) {
        let last = self.stream.back().map_or(0, |&(last, _)| last);
        self.stream.push_back((at.max(last), message));
    }

    fn delay(&self, random: &mut Random) -> Millis {
        random.between(0, self.delays.message)
    }

    pub fn connect(&mut self, now: Millis, random: &mut Random) {
        self.connects_at = None;
        if !self.is_connected {
            self.is_connected = true;
            self.push(Message::Watched, now + self.delay(random));
        }
    }

    /// Sends a change if the stream is connected. Now and then it invalidates everything instead,
    /// as after an overflow of the inbox.
    pub fn send(&mut self, invalidation: Invalidation, now: Millis, random: &mut Random) {
        if self.is_connected {
            let invalidation = if random.percent(2) { Invalidation::All } else { invalidation };
            self.push(Message::Changed(invalidation), now + self.delay(random));
        }
    }

    /// Cuts the connection. Some of its messages in transit are lost, or all. The loss of a former
    /// connection still arrives. The proxy notices a silent loss late. Returns true if the
    /// connection lived.
    pub fn cut(&mut self, is_silent: bool, now: Millis, random: &mut Random) -> bool {
        if !std::mem::replace(&mut self.is_connected, false) {
            return false;
        }
        let former = self.stream.iter().rposition(|(_, message)| matches!(message, Message::Lost));
        let arriving = random.between(former.map_or(0, |last| last as u64 + 1), self.stream.len() as u64) as usize;
        self.stream.truncate(arriving);
        let delay = if is_silent { random.between(0, self.delays.silence) } else { self.delay(random) };
        self.push(Message::Lost, now + delay);
        true
    }

    /// Takes the next message that has arrived.
    pub fn take_message(&mut self, now: Millis) -> Option<Message> {
        let (at, _) = self.stream.front()?;
        if *at <= now { self.stream.pop_front().map(|(_, message)| message) } else { None }
    }

    /// Returns the time of the next message or attempt to connect.
    pub fn next_event(&self) -> Option<Millis> {
        self.stream.front().map(|&(at, _)| at).into_iter().chain(self.connects_at).min()
    }
}
