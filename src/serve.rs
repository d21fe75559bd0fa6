//! What comes in from one client: decoded, looked up, answered or noted. No socket, no clock: the server feeds it what it
//! reads, the simulation what it makes up.

use crate::connection::{Connection, Step};
use crate::protocol::http::Date;
use crate::proxy::{Decision, Proxy};
use crate::request::{Figures, Job, Millis};

/// What requests are served with.
pub struct Service<'a> {
    /// Cache and flights.
    pub proxy: &'a mut Proxy,
    /// Takes the fetches that have to be begun.
    pub jobs: &'a mut Vec<Job>,
    /// Room for a key that has to be unescaped.
    pub key: &'a mut Vec<u8>,
    /// The `Date` of replies.
    pub date: &'a Date,
    /// The loop's figures. Requests are counted here; what the proxy knows is added when a client asks.
    pub figures: &'a mut Figures,
    /// The time.
    pub now: Millis,
}

impl Service<'_> {
    /// Takes what has just been read from the client in `slot`. Keeps only what cannot be used yet. Says whether that is
    /// because too much is open, rather than because bytes are missing: then [`Service::resume`] goes on.
    pub fn take_in(&mut self, connection: &mut Connection, slot: usize, input: &[u8]) -> bool {
        if connection.has_unparsed() {
            let mut all = connection.take_unparsed();
            all.extend_from_slice(input);
            return self.consume_owned(connection, slot, all);
        }
        let (consumed, held_up) = self.consume(connection, slot, input);
        connection.keep(input[consumed..].to_vec());
        held_up
    }

    /// Goes on with what was kept.
    pub fn resume(&mut self, connection: &mut Connection, slot: usize) -> bool {
        let input = connection.take_unparsed();
        self.consume_owned(connection, slot, input)
    }

    fn consume_owned(&mut self, connection: &mut Connection, slot: usize, mut input: Vec<u8>) -> bool {
        let (consumed, held_up) = self.consume(connection, slot, &input);
        input.drain(..consumed);
        input.shrink_to_fit();
        connection.keep(input);
        held_up
    }

    /// Takes requests from the beginning of `input` until there are no more or too many. Says how many bytes that took,
    /// and whether there were too many.
    fn consume(&mut self, connection: &mut Connection, slot: usize, input: &[u8]) -> (usize, bool) {
        let (mut at, before) = (0, connection.requests());
        loop {
            match connection.decode(&input[at..], self.key, self.date) {
                Step::Stop => break,
                Step::Passed(consumed) => at += consumed,
                Step::Get { key, touch, answer, consumed } => {
                    at += consumed;
                    match self.proxy.get(key, touch, connection.waiter(slot), self.now) {
                        Decision::Reply(reply) => connection.reply_now(answer, &reply, self.date),
                        Decision::Wait => connection.wait(answer),
                        Decision::Fetch(job) => {
                            self.jobs.push(job);
                            connection.wait(answer);
                        }
                    }
                }
                Step::Remaining { key, shape, consumed } => {
                    at += consumed;
                    connection.reply_remaining(shape, self.proxy.remaining(key, self.now));
                }
                Step::Figures { shape, consumed } => {
                    at += consumed;
                    self.figures.uptime = self.now;
                    self.proxy.tell(self.figures);
                    connection.reply_figures(shape, self.figures);
                }
            }
        }
        self.figures.requests += connection.requests() - before;
        (at, at < input.len() && !connection.takes_requests() && !connection.has_ended())
    }
}
