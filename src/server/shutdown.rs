//! Coming to an end: nobody new is let in, what is under way is answered, whoever asks nothing is closed.
//!
//! HTTP clients are told with their next response that it is the last (`Connection: close`), so that none of them meets a closed
//! connection as long as it asks often enough. The Redis protocol has no word for that. So its clients, and those that ask nothing,
//! are closed a moment later, between two requests.

use super::{Millis, Worker};
use mio::Waker;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long connections that had begun are waited for: a few round trips around the earth, and less than the second after
/// which whoever was not let in tries again.
const ACCEPT_GRACE: Millis = 500;

/// How long those who asked nothing and were closed for it may go on sending what they had begun to send: as long.
const DRAIN_LINGER: Millis = ACCEPT_GRACE;

/// How long a client may ask nothing while the proxy stops, and how long those go on that cannot be told of it.
const DRAIN_IDLE_TIMEOUT: Millis = 1000;

/// Of a loop that was not told to end.
const NOT_STOPPING: u64 = u64::MAX;

/// Ends a loop from another thread.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    /// Milliseconds that it may take.
    grace: Arc<AtomicU64>,
    waker: Arc<Waker>,
}

impl WorkerHandle {
    pub(super) fn new(waker: Arc<Waker>) -> WorkerHandle {
        WorkerHandle { grace: Arc::new(AtomicU64::new(NOT_STOPPING)), waker }
    }

    /// Makes the loop answer what is under way and return, at once if there is no `grace`, and after it at the latest.
    pub fn stop(&self, grace: Duration) {
        self.grace.store(grace.as_millis() as u64, Ordering::Release);
        self.wake();
    }

    /// Makes the loop turn once.
    pub fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            log::error!("cannot wake an event loop, it may react late: {error}");
        }
    }

    fn grace(&self) -> Option<Millis> {
        Some(self.grace.load(Ordering::Acquire)).filter(|&grace| grace != NOT_STOPPING)
    }
}

/// What is left to do.
#[derive(Debug)]
pub(super) struct ShutdownState {
    /// Until when connections that have begun are accepted; `None` when that is over.
    accept_until: Option<Millis>,
    /// From when on nobody is waited for who might ask something.
    close_idle_at: Millis,
    /// When it must be over.
    deadline: Millis,
}

impl ShutdownState {
    /// When there is something to do. Not when accepting should be over and is held up: it has deadlines of its own.
    pub(super) fn next_deadline(&self, now: Millis) -> Millis {
        [self.accept_until, Some(self.close_idle_at)]
            .into_iter()
            .flatten()
            .filter(|&at| at > now)
            .fold(self.deadline, Millis::min)
    }
}

impl Worker {
    /// Whether the loop is to return.
    pub(super) fn is_shut_down(&self) -> bool {
        let Some(ShutdownState { accept_until: listen_until, deadline: ends, .. }) = &self.shutdown else {
            return false;
        };
        let over = self.clock.now >= *ends;
        if over && !self.clients.is_empty() {
            log::info!("SHUTDOWN_GRACE expired: closing {} open client connections", self.clients.len());
        }
        over || (listen_until.is_none() && self.clients.is_empty())
    }

    /// Begins to stop if it is told to, and accepts no more when it is time.
    pub(super) fn poll_shutdown(&mut self) {
        let now = self.clock.now;
        match &self.shutdown {
            None => {
                if let Some(grace) = self.handle.grace() {
                    self.begin_shutdown(grace);
                }
            }
            Some(ShutdownState { accept_until: listen_until, close_idle_at: hurry_at, .. }) => {
                let (listen_until, hurry_at) = (*listen_until, *hurry_at);
                if hurry_at <= now && !std::mem::replace(&mut self.policy.draining, true) {
                    self.timeouts.linger = DRAIN_LINGER;
                    self.rearm_timers();
                }
                if listen_until.is_some_and(|until| until <= now) {
                    self.drain_accept_queue();
                }
            }
        }
    }

    /// Accepts all that wait, and no more: at once, because whoever comes between the last of them and the end is lost where the
    /// kernel does not keep him away.
    fn drain_accept_queue(&mut self) {
        // Some may wait of whom the kernel has told in this tick, which is noted later, or not yet.
        self.acceptor.notify();
        loop {
            self.accept();
            // For whom there is no room, there will be none.
            if !self.acceptor.has_pending() || !self.connection_limit.can_accept() {
                break;
            }
            if self.acceptor.is_backing_off(self.clock.now) {
                return;
            }
        }
        self.acceptor.close();
        if let Some(ShutdownState { accept_until: listen_until, .. }) = &mut self.shutdown {
            *listen_until = None;
        }
    }

    fn begin_shutdown(&mut self, grace: Millis) {
        let now = self.clock.now;
        // Half of a short grace is for letting in, and half for answering.
        let listen = if self.acceptor.block_new_connections() { ACCEPT_GRACE.min(grace / 2) } else { 0 };
        self.shutdown = Some(ShutdownState {
            accept_until: Some(now + listen),
            close_idle_at: now + DRAIN_IDLE_TIMEOUT,
            deadline: now + grace,
        });
        self.policy.announce_close = true;
        self.timeouts.idle = self.timeouts.idle.min(DRAIN_IDLE_TIMEOUT);
        self.rearm_timers();
        if listen == 0 {
            self.drain_accept_queue();
        }
    }

    /// Deadlines have come to be earlier.
    fn rearm_timers(&mut self) {
        let slots: Vec<usize> = self.clients.iter().map(|(slot, _)| slot).collect();
        slots.into_iter().for_each(|slot| self.arm_timer(slot));
    }
}
