//! Acceptors of an event loop: one for each of its listening sockets.
//!
//! Without free file descriptors, accepting backs off and retries.

use super::connection_limit::ConnectionLimiter;
use super::listen::{Endpoint, Listener, drop_syn_filter};
use super::stream::ClientStream;
use crate::log_throttle::LogThrottle;
use crate::types::Millis;
use mio::net::{TcpListener, UnixListener};
use mio::{Interest, Registry, Token};
use socket2::SockRef;
use std::io;
use std::net::IpAddr;

/// Pause of accepting when the system has no descriptor or memory for another connection. It ends
/// early when a client is closed.
const ACCEPT_BACKOFF: Millis = 100;

/// Result of [`Acceptor::accept`].
pub(super) enum AcceptResult {
    /// A connection, and the address of a client that uses TCP.
    Stream(ClientStream, Option<IpAddr>),
    /// The connection was gone already; others may be pending.
    Retry,
    /// No connection is pending, or accepting backs off.
    Stop,
}

/// Listening socket that is registered for events.
enum RegisteredListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Listening socket with its readiness and its backoff.
pub(super) struct Acceptor {
    /// Listener that the clients came from.
    pub(super) endpoint: Endpoint,
    /// `None` once the socket is closed.
    listener: Option<RegisteredListener>,
    /// Other proxies may listen at the port, and continue when this one stops (`SHARE_PORT`).
    is_shared: bool,
    /// Connections may be pending: set by the edge, cleared when the kernel reports "would block".
    pending: bool,
    /// Time of the next attempt after a failure for lack of resources.
    backoff_until: Option<Millis>,
    /// Throttle for the log lines about such failures: at the limit each new client causes one.
    error_log: LogThrottle,
}

impl Acceptor {
    pub(super) fn new(endpoint: Endpoint, listener: Listener, share_port: bool) -> Acceptor {
        let (listener, is_shared) = match listener {
            Listener::Tcp(listener) => (RegisteredListener::Tcp(TcpListener::from_std(listener)), share_port),
            // A new proxy has a socket of its own at the same path.
            Listener::Unix(listener) => (RegisteredListener::Unix(UnixListener::from_std(listener)), false),
        };
        Acceptor {
            endpoint,
            listener: Some(listener),
            is_shared,
            pending: false,
            backoff_until: None,
            error_log: LogThrottle::default(),
        }
    }

    /// Registers the socket for events.
    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match &mut self.listener {
            Some(RegisteredListener::Tcp(listener)) => registry.register(listener, token, Interest::READABLE),
            Some(RegisteredListener::Unix(listener)) => registry.register(listener, token, Interest::READABLE),
            None => Ok(()),
        }
    }

    /// Marks connections as pending, because of an event. The socket may be closed since.
    pub(super) fn notify(&mut self) {
        self.pending = self.listener.is_some();
    }

    /// Drops new connections if the port is shared. Handshakes in progress complete. Returns true
    /// if the port is shared: otherwise new clients are better refused at once.
    pub(super) fn block_new_connections(&mut self) -> bool {
        let Some(RegisteredListener::Tcp(listener)) = &self.listener else { return false };
        // Some kernels (6.18 for one) require CAP_NET_ADMIN. `check_port_handover` warned at start.
        if self.is_shared
            && let Err(error) = SockRef::from(listener).attach_filter(&drop_syn_filter())
        {
            log::debug!("cannot block new client connections during shutdown, the kernel may reset some: {error}");
        }
        self.is_shared
    }

    /// Closes the socket. The kernel removes it from epoll.
    pub(super) fn close(&mut self) {
        (self.listener, self.pending) = (None, false);
    }

    /// Returns true if accepting backs off for lack of descriptors or memory.
    pub(super) fn is_backing_off(&self, now: Millis) -> bool {
        self.backoff_until.is_some_and(|until| until > now)
    }

    /// Returns true if connections may be pending that the limit admits, if only to refuse them.
    pub(super) fn can_accept(&self, limit: &ConnectionLimiter) -> bool {
        self.pending && limit.can_accept(self.endpoint)
    }

    /// Ends a backoff: a client was closed, so a descriptor may be free.
    pub(super) fn resume(&mut self, now: Millis) {
        if let Some(until) = &mut self.backoff_until {
            *until = now;
        }
    }

    /// Returns the time of the next attempt, `None` if no connection is pending.
    pub(super) fn next_attempt(&self) -> Option<Millis> {
        self.pending.then(|| self.backoff_until.unwrap_or(0))
    }

    /// Accepts a connection.
    pub(super) fn accept(&mut self, now: Millis) -> AcceptResult {
        if self.next_attempt().is_none_or(|due| due > now) {
            return AcceptResult::Stop;
        }
        let accepted = match &self.listener {
            Some(RegisteredListener::Tcp(listener)) => {
                listener.accept().map(|(stream, address)| (ClientStream::Tcp(stream), Some(address.ip())))
            }
            Some(RegisteredListener::Unix(listener)) => {
                listener.accept().map(|(stream, _)| (ClientStream::Unix(stream), None))
            }
            None => return AcceptResult::Stop,
        };
        match accepted {
            Ok((stream, address)) => {
                self.backoff_until = None;
                AcceptResult::Stream(stream, address)
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => {
                    self.pending = false;
                    AcceptResult::Stop
                }
                io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset => {
                    AcceptResult::Retry
                }
                _ => {
                    // No descriptor or memory is left. The connection stays in the kernel's queue
                    // without a new edge: `pending` stays set, and `next_attempt` wakes the event
                    // loop.
                    self.backoff_until = Some(now + ACCEPT_BACKOFF);
                    if self.error_log.admit(now).is_some() {
                        log::error!(
                            "cannot accept client connections, they wait in the kernel: {error}; raise the limit of \
                             open files (ulimit -n)"
                        );
                    }
                    AcceptResult::Stop
                }
            },
        }
    }
}
