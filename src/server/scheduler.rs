//! The turns of a tick, and the timers of those who get them.

use super::client::{Client, TurnContext, TurnResult};
use super::{ACCESS_LOG_FLUSH_BYTES, Telemetry, WRITE_BYTES, Worker, enqueue, flush_access_log, timeouts};
use crate::cache::DeadlineHeap;
use crate::dispatch::Dispatcher;
use crate::types::Millis;
use slab::Slab;

/// Turns that share one look at the clock, to find out how long what they have answered took. A look costs a hundredth of a turn;
/// four turns of hits take some twenty microseconds, and what else is done in them counts as theirs.
const TURNS_PER_CLOCK_READ: usize = 4;

impl Worker {
    /// Gives everybody in the queue a turn; who comes to be in it meanwhile waits for the next tick.
    pub(super) fn run_ready_clients(&mut self) {
        self.telemetry.recorder.metrics.connected_clients = self.clients.len() - self.connection_limit.rejecting();
        let mut left = self.ready_queue.len();
        while let Some(slot) = self.run_until_close(&mut left) {
            self.close_client(slot);
        }
    }

    /// Gives `left` turns, or so many of them that a client comes to its end. Says which one. What a turn works with is put
    /// together once.
    fn run_until_close(&mut self, left: &mut usize) -> Option<usize> {
        let Telemetry { recorder, access_log } = &mut self.telemetry;
        let service = Dispatcher {
            read_through: &mut self.read_through,
            jobs: &mut self.jobs,
            head_decoder: &mut self.head_decoder,
            policy: &self.policy,
            date: &self.clock.date,
            recorder,
            registry: &self.registry,
            worker_index: self.worker_index,
            now: self.clock.now,
        };
        let mut turn = TurnContext { service, scratch: &mut self.scratch, limits: self.timeouts };
        while *left > 0 {
            let slot = self.ready_queue.pop_front()?;
            *left -= 1;
            let Some(client) = self.clients.get_mut(slot) else { continue };
            client.in_ready_queue = false;
            let next = client.turn(slot, &mut turn);
            turn.scratch.write.shrink_to(WRITE_BYTES);
            // That of the last ones is at the end of the tick.
            if (*left > 0 && (*left).is_multiple_of(TURNS_PER_CLOCK_READ)) || access_log.is_some() {
                turn.service.recorder.end_turns(self.clock.micros());
            }
            if let Some(log_writer) = access_log {
                flush_access_log(turn.service.recorder, log_writer, ACCESS_LOG_FLUSH_BYTES);
            }
            match next {
                TurnResult::Close => return Some(slot),
                TurnResult::Requeue | TurnResult::Linger => enqueue(&mut self.ready_queue, client, slot),
                TurnResult::Wait => {}
            }
            if client.needs_earlier_timer(self.timeouts) {
                arm_timer(&mut self.clients, &mut self.timers, self.timeouts, slot);
            }
        }
        None
    }

    /// Sets a client's timer, unless it goes off in time already.
    pub(super) fn arm_timer(&mut self, slot: usize) {
        if self.clients.get(slot).is_some_and(|client| client.needs_earlier_timer(self.timeouts)) {
            arm_timer(&mut self.clients, &mut self.timers, self.timeouts, slot);
        }
    }

    pub(super) fn disarm_timer(&mut self, slot: usize) {
        disarm_timer(&mut self.clients, &mut self.timers, slot);
    }

    /// A client's timer has gone off.
    pub(super) fn on_timer(&mut self, slot: usize) {
        self.disarm_timer(slot);
        let Some(client) = self.clients.get_mut(slot) else { return };
        client.timer_state.timer_at = Millis::MAX;
        if client.timer_state.deadline(self.timeouts) > self.clock.now {
            self.arm_timer(slot);
        } else {
            client.begin_timeout_check();
            // Its timer is set again behind its turn.
            enqueue(&mut self.ready_queue, client, slot);
        }
    }
}

/// Has a client's timer go off at its deadline.
fn arm_timer(clients: &mut Slab<Client>, timers: &mut DeadlineHeap, limits: timeouts::TimeoutConfig, slot: usize) {
    disarm_timer(clients, timers, slot);
    let Some(client) = clients.get_mut(slot) else { return };
    let deadline = client.timer_state.deadline(limits);
    client.timer_state.timer_at = deadline;
    timers.push(deadline, slot as u32, |id, position| clients[id as usize].timer = Some(position));
}

fn disarm_timer(clients: &mut Slab<Client>, timers: &mut DeadlineHeap, slot: usize) {
    if let Some(position) = clients.get_mut(slot).and_then(|client| client.timer.take()) {
        timers.remove(position, |id, position| clients[id as usize].timer = Some(position));
    }
}
