//! What comes in from one client: decoded, looked up, answered or noted. No socket, no clock: the server feeds it what it
//! reads, the simulation what it makes up.

use crate::admin;
use crate::connection::{Answer, Connection, MAX_UNSENT_BYTES, Step};
use crate::figures::{Ledger, Register};
use crate::protocol::http::{Date, Heads, Rules};
use crate::protocol::resp;
use crate::proxy::{Decision, Proxy};
use crate::request::{Job, Millis, Outcome, Payload, Reply};

/// Requests, or keys of one, that are dealt with before other clients have their turn: a hundred microseconds of work or two.
/// One read may bring ten thousand.
pub const STEPS_AT_ONCE: usize = 512;

/// What telling the figures costs beside other requests: about twenty microseconds, and more where those of several loops are
/// added up.
const FIGURES_STEPS: usize = 80;
const FIGURES_STEPS_PER_LOOP: usize = 2;

/// Bytes that are copied meanwhile into a reply about several keys, beyond which others have their turn too.
const GATHERED_AT_ONCE: usize = MAX_UNSENT_BYTES;

/// What requests are served with.
pub struct Service<'a> {
    /// Cache and flights.
    pub proxy: &'a mut Proxy,
    /// Takes the fetches that have to be begun.
    pub jobs: &'a mut Vec<Job>,
    /// What request heads are decoded with.
    pub heads: &'a mut Heads,
    /// What HTTP requests are taken.
    pub rules: &'a Rules,
    /// The `Date` of replies.
    pub date: &'a Date,
    /// The loop's books. Requests are counted here; what the proxy knows is added when a client asks.
    pub ledger: &'a mut Ledger,
    /// The figures of all loops, and this loop's number among them.
    pub register: &'a Register,
    /// See above.
    pub number: usize,
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
        let (mut steps, mut gathered) = (0, 0);
        let enough = loop {
            if steps >= STEPS_AT_ONCE || gathered > GATHERED_AT_ONCE {
                break true;
            }
            steps += 1;
            match connection.decode(&input[at..], self.rules, self.heads, self.date, self.ledger) {
                Step::Stop => break !connection.takes_requests(),
                Step::Passed(consumed) => at += consumed,
                Step::Get { key, touch, answer, consumed } => {
                    at += consumed;
                    match self.proxy.get(key, touch, connection.waiter(slot), self.now) {
                        Decision::Reply(reply) => {
                            gathered += gathered_by(answer, &reply);
                            connection.reply_now(answer, &reply, self.date, self.ledger);
                        }
                        Decision::Wait => connection.wait(answer, self.ledger),
                        Decision::Fetch(job) => {
                            self.jobs.push(job);
                            connection.wait(answer, self.ledger);
                        }
                    }
                }
                Step::Remaining { key, shape, consumed } => {
                    at += consumed;
                    connection.reply_remaining(shape, self.proxy.remaining(key, self.now), self.ledger);
                }
                Step::Figures { shape, consumed } => {
                    at += consumed;
                    steps += FIGURES_STEPS;
                    update_figures(self.ledger, self.proxy, self.now);
                    let figures = &self.ledger.figures;
                    match shape.form {
                        resp::Form::Info(sections) => {
                            let Register { settings, .. } = self.register;
                            let text = admin::info(figures, &self.register.process(), settings, sections);
                            connection.reply_text(shape, &text, self.ledger);
                        }
                        _ => connection.reply_number(shape, figures.entries, self.ledger),
                    }
                }
                Step::About { topic, shape, consumed } => {
                    at += consumed;
                    steps += FIGURES_STEPS + FIGURES_STEPS_PER_LOOP * self.register.seats().len();
                    update_figures(self.ledger, self.proxy, self.now);
                    // What others see of this loop is as old as its last tick.
                    if let Some(seat) = self.register.seats().get(self.number) {
                        seat.show(&self.ledger.figures);
                    }
                    let document = admin::document(topic, &self.register.snapshot(), &self.register.settings);
                    connection.reply_document(shape, &document, self.date, self.ledger);
                }
            }
        };
        self.ledger.figures.requests += connection.requests() - before;
        (at, at < input.len() && enough && !connection.has_ended())
    }
}

/// Brings a loop's figures up to date with what its proxy knows. Whoever shows them does so before.
pub fn update_figures(ledger: &mut Ledger, proxy: &Proxy, now: Millis) {
    ledger.figures.uptime = now;
    proxy.tell(&mut ledger.figures);
}

/// Bytes that are copied into a reply about several keys. Other replies are bounded by what may be unsent.
fn gathered_by(answer: Answer, reply: &Reply<'_>) -> usize {
    match (answer, reply.outcome) {
        (Answer::Part, Outcome::Value(Payload::Inline { bytes, .. })) => bytes.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Limits;
    use crate::figures::{Ending, Protocol};
    use crate::request::{Completion, Fetched, Value};
    use std::time::SystemTime;

    /// One client must not keep the loop from the others: it gets a part of what it wants, and is told to come again.
    #[test]
    fn what_is_done_at_once_is_bounded_by_keys_and_by_bytes() {
        let limits = Limits { entries: 10, bytes: usize::MAX, stale: 0 };
        let (mut proxy, mut jobs) = (Proxy::new(limits, 1000, 1000), Vec::new());
        let (mut ledger, mut heads, date) = (Ledger::default(), Heads::new(), Date::at(SystemTime::UNIX_EPOCH));
        let (rules, register) = (Rules::default(), Register::default());
        let mut connection = Connection::new(1, 0);
        let mut serve = |connection: &mut Connection, input: Option<&[u8]>| {
            let (proxy, jobs, heads, ledger) = (&mut proxy, &mut jobs, &mut heads, &mut ledger);
            let (rules, register, date) = (&rules, &register, &date);
            let mut service = Service { proxy, jobs, heads, rules, date, ledger, register, number: 0, now: 0 };
            let held_up = match input {
                Some(input) => service.take_in(connection, 0, input),
                None => service.resume(connection, 0),
            };
            for job in std::mem::take(service.jobs) {
                let bytes = vec![b'x'; if &*job.key == b"b" { 16 * 1024 } else { 1 }];
                let fetched = Fetched { value: Value::new(bytes), remaining: None };
                let completion = Completion { flight: job.flight, result: Ok(Some(fetched)) };
                service.proxy.complete(completion, 0, |waiter, reply| {
                    assert!(connection.reply_later(waiter, reply, date, service.ledger));
                });
            }
            held_up
        };
        let key_frames = |key: &str, count: usize| format!("$1\r\n{key}\r\n").repeat(count);
        for (key, keys, at_once) in [("a", 5000, STEPS_AT_ONCE), ("b", 100, GATHERED_AT_ONCE / (16 * 1024) + 1)] {
            // The first time it is fetched.
            serve(&mut connection, Some(format!("*2\r\n$3\r\nGET\r\n{}", key_frames(key, 1)).as_bytes()));
            connection.outgoing().drain(usize::MAX);
            let mget = format!("*{}\r\n$4\r\nMGET\r\n{}", keys + 1, key_frames(key, keys));
            let mut held_up = serve(&mut connection, Some(mget.as_bytes()));
            let mut rounds = 1;
            while held_up {
                assert!(connection.takes_requests() && connection.has_unparsed());
                held_up = serve(&mut connection, None);
                rounds += 1;
            }
            assert_eq!(rounds, (keys + 1).div_ceil(at_once), "{key}");
            assert!(connection.outgoing().unsent() > keys && !connection.has_unparsed());
            connection.outgoing().drain(usize::MAX);
        }
        assert_eq!((ledger.figures.requests, connection.requests()), (4, 4));
        let many = ledger.figures.answers[Protocol::Resp as usize][Ending::Many as usize];
        assert_eq!((many, ledger.figures.answers.as_flattened().iter().sum::<u64>()), (2, 4));
    }
}
