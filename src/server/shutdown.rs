//! Shutdown of an event loop: stops accepting, answers open requests, closes idle clients.
//!
//! The next response to each HTTP client says `Connection: close`, so a client that sends requests
//! regularly never meets a closed connection. A client without a request for a second is closed.
//! RESP has no such message: a second later its clients are closed between two commands.

use super::acceptor::Acceptor;
use super::{Millis, Worker};
use mio::Waker;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Time to accept connections with a handshake that began before the shutdown: a few round trips
/// around the earth. Less than the second after which a client repeats a dropped SYN.
const ACCEPT_GRACE: Millis = 500;

/// Linger time of all clients in [`ShutdownPhase::ClosingIdle`].
const DRAIN_LINGER: Millis = ACCEPT_GRACE;

/// Idle timeout during a shutdown, and time until clients without a request in progress are closed.
const DRAIN_IDLE_TIMEOUT: Millis = 1000;

/// Value of [`WorkerHandle::grace`] before a shutdown was requested.
const NOT_STOPPING: u64 = u64::MAX;

/// Handle by which other threads wake or stop an event loop.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    /// Maximum duration of the shutdown in milliseconds, or [`NOT_STOPPING`].
    grace: Arc<AtomicU64>,
    waker: Arc<Waker>,
}

impl WorkerHandle {
    pub(super) fn new(waker: Arc<Waker>) -> WorkerHandle {
        WorkerHandle { grace: Arc::new(AtomicU64::new(NOT_STOPPING)), waker }
    }

    /// Requests a shutdown: the event loop answers open requests and returns within `grace`.
    pub fn stop(&self, grace: Duration) {
        self.grace.store(grace.as_millis() as u64, Ordering::Release);
        self.wake();
    }

    /// Makes the event loop run one tick.
    pub fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            log::error!("cannot wake an event loop, it may react late: {error}");
        }
    }

    fn requested_grace(&self) -> Option<Millis> {
        Some(self.grace.load(Ordering::Acquire)).filter(|&grace| grace != NOT_STOPPING)
    }
}

/// Phase of the shutdown of one event loop.
#[derive(Clone, Copy, Debug)]
pub(super) enum ShutdownPhase {
    /// No shutdown was requested.
    Running,
    /// HTTP clients learn of the shutdown by their next response.
    Announcing(Schedule),
    /// Clients are closed as soon as they have no request in progress.
    ClosingIdle(Schedule),
}

/// Deadlines of a shutdown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    /// End of accepting; `None` once the listening sockets are closed.
    accept_until: Option<Millis>,
    /// Start of [`ShutdownPhase::ClosingIdle`].
    close_idle_at: Millis,
    /// Time at which the event loop returns even with open clients.
    deadline: Millis,
}

impl ShutdownPhase {
    /// Returns true if a client without a request in progress is to be closed.
    pub(super) fn closes_idle(&self) -> bool {
        matches!(self, ShutdownPhase::ClosingIdle(_))
    }

    /// Returns the time of the next transition. Skips an end of accepting that has passed: then
    /// accepting backs off, and the acceptor has a deadline of its own.
    pub(super) fn next_deadline(&self, now: Millis) -> Option<Millis> {
        let (ShutdownPhase::Announcing(schedule) | ShutdownPhase::ClosingIdle(schedule)) = self else { return None };
        let transitions = [schedule.accept_until, Some(schedule.close_idle_at)].into_iter().flatten();
        Some(transitions.filter(|&at| at > now).fold(schedule.deadline, Millis::min))
    }

    fn schedule(&mut self) -> Option<&mut Schedule> {
        match self {
            ShutdownPhase::Running => None,
            ShutdownPhase::Announcing(schedule) | ShutdownPhase::ClosingIdle(schedule) => Some(schedule),
        }
    }
}

impl Worker {
    /// Returns true if the event loop is to return.
    pub(super) fn is_shut_down(&mut self) -> bool {
        let now = self.clock.now;
        let Some(&mut Schedule { accept_until, deadline, .. }) = self.shutdown.schedule() else { return false };
        if now >= deadline && self.clients.len() > 0 {
            log::info!("SHUTDOWN_GRACE expired: closing {} open client connections", self.clients.len());
        }
        now >= deadline || (accept_until.is_none() && self.clients.len() == 0)
    }

    /// Advances the phase of the shutdown. Called once in each tick.
    pub(super) fn poll_shutdown(&mut self) {
        let now = self.clock.now;
        match self.shutdown {
            ShutdownPhase::Running => {
                if let Some(grace) = self.handle.requested_grace() {
                    self.begin_shutdown(grace);
                }
                return;
            }
            ShutdownPhase::Announcing(schedule) if schedule.close_idle_at <= now => {
                self.shutdown = ShutdownPhase::ClosingIdle(schedule);
                self.clients.timeouts.linger = DRAIN_LINGER;
                self.clients.rearm_timers();
            }
            ShutdownPhase::Announcing(_) | ShutdownPhase::ClosingIdle(_) => {}
        }
        if self.shutdown.schedule().and_then(|schedule| schedule.accept_until).is_some_and(|until| until <= now) {
            self.drain_accept_queue();
        }
    }

    fn begin_shutdown(&mut self, grace: Millis) {
        let now = self.clock.now;
        // Half of a short grace is for accepting, half for answering.
        let mut is_shared = false;
        for acceptor in &mut self.acceptors {
            is_shared |= acceptor.block_new_connections();
        }
        let accept_grace = if is_shared { ACCEPT_GRACE.min(grace / 2) } else { 0 };
        self.shutdown = ShutdownPhase::Announcing(Schedule {
            accept_until: Some(now + accept_grace),
            close_idle_at: now + DRAIN_IDLE_TIMEOUT,
            deadline: now + grace,
        });
        (self.policy.announce_close, self.admin_policy.announce_close) = (true, true);
        // Their clients reconnect to another proxy, or to the next one of this port.
        self.policy.retry_spread = grace;
        self.clients.enqueue_watching();
        self.clients.timeouts.idle = self.clients.timeouts.idle.min(DRAIN_IDLE_TIMEOUT);
        self.clients.rearm_timers();
        if accept_grace == 0 {
            self.drain_accept_queue();
        }
    }

    /// Accepts all pending connections, and closes the listening sockets in the same tick. The
    /// kernel resets a connection that arrives in between, unless the filter dropped its SYN. The
    /// file of a Unix socket is gone by now, so none arrives there.
    fn drain_accept_queue(&mut self) {
        // An event of this tick may not be dispatched yet.
        self.acceptors.iter_mut().for_each(Acceptor::notify);
        loop {
            self.accept();
            let mut pending = self.acceptors.iter().filter(|one| one.can_accept(&self.connection_limit)).peekable();
            if pending.peek().is_none() {
                break;
            }
            if pending.all(|one| one.is_backing_off(self.clock.now)) {
                return;
            }
        }
        self.acceptors.iter_mut().for_each(Acceptor::close);
        if let Some(schedule) = self.shutdown.schedule() {
            schedule.accept_until = None;
        }
    }
}
