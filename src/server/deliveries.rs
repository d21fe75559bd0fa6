//! Steps of a tick that bring clients what they wait for: completions, invalidations, timeouts and
//! events.

use super::{Backend, SWEEP_PER_TICK, Worker};
use crate::dispatch::MAX_STEPS_PER_TURN;
use crate::types::{Completion, Failure};

/// Maximum number of client timers run in one tick: more than connections are accepted in one. Most
/// fire early and are armed again.
const TIMERS_PER_TICK: usize = 256;

/// Maximum number of invalidations applied in one tick (some 100 us of work).
const INVALIDATIONS_PER_TICK: usize = 1024;

/// Maximum number of events delivered to watchers in one tick, and of reads begun for them. Each
/// event takes a turn of its client too (about 10 us).
const WATCH_EVENTS_PER_TICK: usize = 16;

/// Steps of invalidations in one tick: each encodes one for a client, or ends a key (below 0.5 us).
const PUSH_STEPS_PER_TICK: usize = 1024;

/// Steps added for each ready client. It reads as many keys in its turn at most, and each read
/// costs two steps later. So invalidations never fall behind the reads.
const PUSH_STEPS_PER_TURN: usize = 2 * MAX_STEPS_PER_TURN;

/// Maximum number of clients that get a turn in one tick only to be sent invalidations. Each takes
/// a system call (about 10 us). So a key that thousands of clients hold delays others by less than
/// a millisecond at a time.
const PUSHED_CLIENTS_PER_TICK: usize = 64;

impl Worker {
    /// Applies invalidations before completions: then values that are invalid already are not
    /// stored. Returns the number of completions.
    pub(super) fn drain_inbox(&mut self) -> usize {
        let Backend { pool, completions, invalidations, inbox_backlogged, .. } = &mut self.backend;
        *inbox_backlogged = pool.drain_inbox(completions, invalidations, INVALIDATIONS_PER_TICK);
        let completed = completions.len();
        for invalidation in invalidations.drain(..) {
            self.read_through.invalidate(&invalidation, self.clock.now);
        }
        for completion in completions.drain(..) {
            self.read_through.complete(completion, self.clock.now, |id, reply| self.clients.deliver_reply(id, reply));
        }
        completed
    }

    /// Sends invalidations to clients that cache values, a bounded number of them.
    pub(super) fn deliver_pushes(&mut self) {
        let budget = PUSH_STEPS_PER_TICK + PUSH_STEPS_PER_TURN * self.clients.ready_queue.len();
        self.read_through.deliver_pushes(budget, |client, push| self.clients.push_invalidation(client, push));
        self.clients.enqueue_pushed(PUSHED_CLIENTS_PER_TICK);
    }

    pub(super) fn submit_jobs(&mut self) {
        self.backend.pool.submit(&mut self.backend.jobs);
        // The pool leaves the jobs that it refuses.
        for job in self.backend.jobs.drain(..) {
            let refused = Completion { fetch_id: job.fetch_id, result: Err(Failure::QueueFull), may_cache: true };
            self.read_through.complete(refused, self.clock.now, |id, reply| self.clients.deliver_reply(id, reply));
        }
    }

    pub(super) fn run_timers(&mut self, completed: usize) {
        let now = self.clock.now;
        let budget = SWEEP_PER_TICK + completed + self.clients.ready_queue.len();
        self.timers_backlogged = self.read_through.tick(now, budget, |id, reply| self.clients.deliver_reply(id, reply));
        let jobs = &mut self.backend.jobs;
        self.timers_backlogged |= self
            .read_through
            .run_watches(now, WATCH_EVENTS_PER_TICK, jobs, &mut |id, event| self.clients.deliver_event(id, event, now));
        for _ in 0..TIMERS_PER_TICK {
            if !self.clients.run_due_timer(now) {
                return;
            }
        }
    }
}
