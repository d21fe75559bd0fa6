//! Scheduler of client turns: each ready client gets one bounded turn in a tick, in queue order.

use super::client::{TurnContext, TurnResult};
use super::listen::Endpoint;
use super::{WRITE_BYTES, Worker};
use crate::connection::DecodeContext;
use crate::dispatch::Dispatcher;

/// Turns between two clock reads, which measure the latency of hits. (A clock read costs 1 % of a
/// turn, and four turns of hits take about 20 us.)
const TURNS_PER_CLOCK_READ: usize = 4;

impl Worker {
    /// Runs one turn of each client in the ready queue. A client that is requeued waits for the
    /// next tick.
    pub(super) fn run_ready_clients(&mut self) {
        self.record_connected_clients();
        for turns_left in (0..self.clients.ready_queue.len()).rev() {
            let Some(slot) = self.clients.ready_queue.pop_front() else { return };
            let Some(result) = self.run_turn(slot) else { continue };
            // `end_tick` reads the clock for the last turns.
            if self.clients.recorder.access_log_enabled()
                || (turns_left > 0 && turns_left.is_multiple_of(TURNS_PER_CLOCK_READ))
            {
                self.clients.end_turns(self.clock.micros());
            }
            if result == TurnResult::Close {
                self.close_client(slot);
            } else {
                self.clients.end_turn(slot, result);
            }
        }
    }

    /// Runs one turn of the client in `slot`, if it still exists.
    fn run_turn(&mut self, slot: usize) -> Option<TurnResult> {
        let timeouts = self.clients.timeouts;
        let (client, reply) = self.clients.begin_turn(slot)?;
        let policy = match client.endpoint {
            Endpoint::Main => &self.policy,
            Endpoint::Admin => &self.admin_policy,
        };
        let dispatcher = Dispatcher {
            read_through: &mut self.read_through,
            jobs: &mut self.backend.jobs,
            context: DecodeContext { policy, head_decoder: &mut self.head_decoder, auth: &mut self.client_auth, reply },
            registry: &self.registry,
            worker_slot: &self.worker_slot,
            now: self.clock.now,
        };
        let closes_idle = self.shutdown.closes_idle();
        let result =
            client.turn(slot, &mut TurnContext { dispatcher, scratch: &mut self.scratch, timeouts, closes_idle });
        self.scratch.write.shrink_to(WRITE_BYTES);
        Some(result)
    }
}
