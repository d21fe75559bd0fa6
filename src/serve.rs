//! What comes in from one client: decoded, looked up, answered or noted. No socket, no clock: the server feeds it what it
//! reads, the simulation what it makes up.

use crate::connection::{Answer, Connection, MAX_UNSENT_BYTES, Step};
use crate::protocol::http::Date;
use crate::proxy::{Decision, Proxy};
use crate::request::{Figures, Job, Millis, Outcome, Payload, Reply};

/// Keys that are looked up for a client before others have their turn: some hundred microseconds of work. One read may
/// bring ten thousand.
pub const LOOKUPS_AT_ONCE: usize = 1024;

/// Bytes that are copied meanwhile into a reply about several keys, beyond which others have their turn too.
const GATHERED_AT_ONCE: usize = MAX_UNSENT_BYTES;

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
    /// because too much is open or was done, rather than because bytes are missing: then [`Service::resume`] goes on.
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

    /// Takes requests from the beginning of `input` until there are no more or were enough. Says how many bytes that took,
    /// and whether there are more.
    fn consume(&mut self, connection: &mut Connection, slot: usize, input: &[u8]) -> (usize, bool) {
        let (mut at, before) = (0, connection.requests());
        let (mut lookups, mut gathered) = (0, 0);
        let enough = loop {
            if lookups == LOOKUPS_AT_ONCE || gathered > GATHERED_AT_ONCE {
                break true;
            }
            match connection.decode(&input[at..], self.key, self.date) {
                Step::Stop => break !connection.takes_requests(),
                Step::Passed(consumed) => at += consumed,
                Step::Get { key, touch, answer, consumed } => {
                    at += consumed;
                    lookups += 1;
                    match self.proxy.get(key, touch, connection.waiter(slot), self.now) {
                        Decision::Reply(reply) => {
                            gathered += gathered_by(answer, &reply);
                            connection.reply_now(answer, &reply, self.date);
                        }
                        Decision::Wait => connection.wait(answer),
                        Decision::Fetch(job) => {
                            self.jobs.push(job);
                            connection.wait(answer);
                        }
                    }
                }
                Step::Remaining { key, shape, consumed } => {
                    at += consumed;
                    lookups += 1;
                    connection.reply_remaining(shape, self.proxy.remaining(key, self.now));
                }
                Step::Figures { shape, consumed } => {
                    at += consumed;
                    self.figures.uptime = self.now;
                    self.proxy.tell(self.figures);
                    connection.reply_figures(shape, self.figures);
                }
            }
        };
        self.figures.requests += connection.requests() - before;
        (at, at < input.len() && enough && !connection.has_ended())
    }
}

/// Bytes that are copied into a reply about several keys. Other replies are bounded by what may be unsent.
fn gathered_by(answer: Answer, reply: &Reply<'_>) -> usize {
    match (answer, reply.outcome) {
        (Answer::Part, Outcome::Value(Payload::Inline { bytes, .. })) => bytes.len(),
        _ => 0,
    }
}
