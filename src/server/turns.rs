//! The turns of a tick, and the timers of those who get them.

use super::client::{Client, Next, Turn};
use super::{Books, LOG_BYTES, Server, WRITE_BYTES, enqueue, hand_lines_over, patience};
use crate::cache::Deadlines;
use crate::request::Millis;
use crate::serve::Service;
use slab::Slab;

/// Turns that share one look at the clock, to find out how long what they have answered took. A look costs a hundredth of a turn;
/// four turns of hits take some twenty microseconds, and what else is done in them counts as theirs.
const TURNS_FOR_LOOK: usize = 4;

impl Server {
    /// Gives everybody in the queue a turn; who comes to be in it meanwhile waits for the next tick.
    pub(super) fn give_turns(&mut self) {
        self.books.ledger.figures.clients = self.clients.len() - self.places.turned_away();
        let mut left = self.queue.len();
        while let Some(slot) = self.give_turns_until_one_ends(&mut left) {
            self.close(slot);
        }
    }

    /// Gives `left` turns, or so many of them that a client comes to its end. Says which one. What a turn works with is put
    /// together once.
    fn give_turns_until_one_ends(&mut self, left: &mut usize) -> Option<usize> {
        let Books { ledger, access_log } = &mut self.books;
        let service = Service {
            proxy: &mut self.proxy,
            jobs: &mut self.jobs,
            heads: &mut self.heads,
            rules: &self.rules,
            date: &self.clock.date,
            ledger,
            register: &self.register,
            number: self.number,
            now: self.clock.now,
        };
        let mut turn = Turn { service, scratch: &mut self.scratch, limits: self.patience };
        while *left > 0 {
            let slot = self.queue.pop_front()?;
            *left -= 1;
            let Some(client) = self.clients.get_mut(slot) else { continue };
            client.queued = false;
            let next = client.turn(slot, &mut turn);
            turn.scratch.write.shrink_to(WRITE_BYTES);
            // That of the last ones is at the end of the tick.
            if (*left > 0 && (*left).is_multiple_of(TURNS_FOR_LOOK)) || access_log.is_some() {
                turn.service.ledger.settle(self.clock.micros());
            }
            if let Some(journal) = access_log {
                hand_lines_over(turn.service.ledger, journal, LOG_BYTES);
            }
            match next {
                Next::Close => return Some(slot),
                Next::Again | Next::Linger => enqueue(&mut self.queue, client, slot),
                Next::Wait => {}
            }
            if client.wants_timer(self.patience) {
                set_timer(&mut self.clients, &mut self.timers, self.patience, slot);
            }
        }
        None
    }

    /// Sets a client's timer, unless it goes off in time already.
    pub(super) fn set_timer(&mut self, slot: usize) {
        if self.clients.get(slot).is_some_and(|client| client.wants_timer(self.patience)) {
            set_timer(&mut self.clients, &mut self.timers, self.patience, slot);
        }
    }

    pub(super) fn stop_timer(&mut self, slot: usize) {
        stop_timer(&mut self.clients, &mut self.timers, slot);
    }

    /// A client's timer has gone off.
    pub(super) fn time_out(&mut self, slot: usize) {
        self.stop_timer(slot);
        let Some(client) = self.clients.get_mut(slot) else { return };
        client.patience.armed = Millis::MAX;
        if client.patience.deadline(self.patience) > self.clock.now {
            self.set_timer(slot);
        } else {
            client.put_on_trial();
            // Its timer is set again behind its turn.
            enqueue(&mut self.queue, client, slot);
        }
    }
}

/// Has a client's timer go off at its deadline.
fn set_timer(clients: &mut Slab<Client>, timers: &mut Deadlines, limits: patience::Limits, slot: usize) {
    stop_timer(clients, timers, slot);
    let Some(client) = clients.get_mut(slot) else { return };
    let deadline = client.patience.deadline(limits);
    client.patience.armed = deadline;
    timers.push(deadline, slot as u32, |id, position| clients[id as usize].timer = Some(position));
}

fn stop_timer(clients: &mut Slab<Client>, timers: &mut Deadlines, slot: usize) {
    if let Some(position) = clients.get_mut(slot).and_then(|client| client.timer.take()) {
        timers.remove(position, |id, position| clients[id as usize].timer = Some(position));
    }
}
