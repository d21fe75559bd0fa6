//! Scheduler of client turns: each ready client gets one bounded turn in a tick, in queue order.

use super::Worker;
use super::client::{TurnContext, TurnResult};
use super::listen::Endpoint;
use super::scratch::WRITE_BYTES;
use crate::connection::DecodeContext;
use crate::dispatch::Dispatcher;
use std::ops::Range;

/// Turns between two clock reads, which measure the latency of hits. (A clock read costs 1 % of a
/// turn, and four turns of hits take about 20 us.)
const TURNS_PER_CLOCK_READ: usize = 4;

/// Turns of other clients that take about as long as one turn of a TLS handshake. After as many
/// turns, another handshake gets one in the same tick. (A handshake takes 0.5 ms of processor time
/// with a P-256 key, and 2 ms with RSA.)
const TURNS_PER_HANDSHAKE: usize = 64;

/// Maximum number of clients closed in a tick that left before their turn in the handshake queue.
/// (Closing one takes some microseconds, so these take about as long as one handshake.)
const LEFT_HANDSHAKES_PER_TICK: usize = 128;

impl Worker {
    /// Runs one turn of each client in the ready queue, then those of some TLS handshakes. A client
    /// that is requeued waits for the next tick. Answered handshakes have their own share, because
    /// their signature is paid. Beside busy clients, signatures take at most half of the time.
    pub(super) fn run_ready_clients(&mut self) {
        self.record_connected_clients();
        let turns = self.clients.ready_queue.len();
        let share = 1 + turns / TURNS_PER_HANDSHAKE;
        let left = self.clients.count_left_handshakes(LEFT_HANDSHAKES_PER_TICK);
        let hellos = (share + left).min(self.clients.handshake_queue.len());
        let handshakes = hellos + share.min(self.clients.answered_queue.len());
        for turns_left in (0..turns + handshakes).rev() {
            let is_ready_turn = turns_left >= handshakes;
            let input = if is_ready_turn { self.next_input(turns_left + 1 - handshakes) } else { None };
            let queue = match turns_left {
                _ if is_ready_turn => &mut self.clients.ready_queue,
                left if left >= hellos => &mut self.clients.answered_queue,
                _ => &mut self.clients.handshake_queue,
            };
            let Some(slot) = queue.pop_front() else { continue };
            self.run_client(slot, input, turns_left);
        }
    }

    /// Runs one turn of the client in `slot`, and closes or queues it. `input` was read ahead.
    fn run_client(&mut self, slot: usize, input: Option<Range<usize>>, turns_left: usize) {
        let Some(result) = self.run_turn(slot, input) else { return };
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

    /// Runs one turn of the client in `slot`, if it still exists.
    fn run_turn(&mut self, slot: usize, input: Option<Range<usize>>) -> Option<TurnResult> {
        let timeouts = self.clients.timeouts;
        let (client, reply) = self.clients.begin_turn(slot)?;
        let policy = match client.endpoint {
            Endpoint::Main => &self.policy,
            Endpoint::Admin => &self.admin_policy,
        };
        self.head_decoder.is_secure = client.is_tls();
        let dispatcher = Dispatcher {
            read_through: &mut self.read_through,
            jobs: &mut self.backend.jobs,
            context: DecodeContext {
                policy,
                head_decoder: &mut self.head_decoder,
                auth: &mut self.client_auth,
                offers_tracking: self.offers_tracking,
                reply,
            },
            registry: &self.registry,
            worker_slot: &self.worker_slot,
            now: self.clock.now,
        };
        let closes_idle = self.shutdown.closes_idle() || client.is_near_key_limit();
        let (scratch, tls) = (&mut self.scratch, self.tls.as_mut());
        let input = input.map(|range| self.read_ahead.input(range));
        let result = client.turn(slot, &mut TurnContext { dispatcher, scratch, input, timeouts, closes_idle, tls });
        self.scratch.write.shrink_to(WRITE_BYTES);
        Some(result)
    }
}
