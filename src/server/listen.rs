//! Listening socket of an event loop: binding, accepting, and the handover of its port on shutdown.
//!
//! Several event loops and proxies can share a port. Without free file descriptors, accepting backs
//! off and retries.

use super::stream::ClientStream;
use crate::log_throttle::LogThrottle;
use crate::types::Millis;
use mio::net::TcpListener;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, TcpKeepalive, Type};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Maximum number of connections that wait in the kernel to be accepted. The kernel lowers it to
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Silence after which the kernel probes a client, as `tcp-keepalive` of Redis.
const TCP_KEEPALIVE_TIME: Duration = Duration::from_secs(300);

/// Interval of the probes. The kernel closes the connection after nine without a response.
const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// Pause of accepting when the system has no descriptor or memory for another connection. It ends
/// early when a client is closed.
const ACCEPT_BACKOFF: Millis = 100;

/// Setting of the kernel (ip-sysctl.rst, Linux 5.14). With "1" it moves the pending connections of
/// a closed socket to others at the port.
const TCP_MIGRATE_REQ: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

/// Binds a listening socket. With `share_port` other event loops may bind the same address, and the
/// kernel spreads connections over them.
///
/// # Errors
///
/// The address is in use or not available, or the system refuses a socket option.
pub fn bind(address: SocketAddr, share_port: bool) -> io::Result<std::net::TcpListener> {
    let socket = bind_socket(address, share_port)?;
    // Accepted connections inherit it (socket(7), tcp(7)). It detects a client that vanished,
    // however long CLIENT_IDLE_TIMEOUT is.
    socket
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE_TIME).with_interval(TCP_KEEPALIVE_INTERVAL))?;
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Checks that no other process listens at the address. With several event loops [`bind`] shares
/// the port, and would not fail.
///
/// # Errors
///
/// The address is in use or not available.
pub fn check_port_free(address: SocketAddr) -> io::Result<()> {
    bind_socket(address, false).map(drop)
}

/// Returns the warning about an address that other machines may reach.
pub fn exposure_warning(address: SocketAddr) -> String {
    format!(
        "clients are not authenticated: each machine that reaches {address} can read all keys; restrict access to the port \
         (firewall, network policy), or set PROXY_HOST=127.0.0.1"
    )
}

fn bind_socket(address: SocketAddr, share_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of the last run in TIME_WAIT must not delay a restart.
    socket.set_reuse_address(true)?;
    if share_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // "::" includes IPv4 addresses, whatever the default of the system.
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Logs a warning if closing the socket may lose a connection while others listen at its port.
/// Called at start, when the operator can still fix it.
pub fn check_port_handover(listener: &std::net::TcpListener) {
    let socket = SockRef::from(listener);
    let filter_result = socket.attach_filter(&drop_syn_filter()).and_then(|()| socket.detach_filter());
    let migrates = std::fs::read_to_string(TCP_MIGRATE_REQ).is_ok_and(|text| text.trim() == "1");
    if let (Err(error), false) = (filter_result, migrates) {
        log::warn!(
            "SHARE_PORT=on: on shutdown the kernel may reset new client connections not accepted yet ({error}); set the \
             sysctl net.ipv4.tcp_migrate_req=1, or grant CAP_NET_ADMIN to the process"
        );
    }
}

/// Returns a packet filter (filter.rst, classic BPF) that drops new connections (SYN) and passes
/// all other segments. Its input starts with the TCP header.
///
/// The kernel assigns each new connection to one of the sockets that share a port. Closing a socket
/// resets those that were not accepted. So the proxy first drops SYNs, then accepts all pending
/// connections, then closes the socket. A client repeats a dropped SYN after a second (RFC 6298,
/// section 2), and reaches another socket.
fn drop_syn_filter() -> [SockFilter; 4] {
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_IF_ANY_BIT: u16 = 0x45;
    const RETURN: u16 = 0x06;
    const FLAGS_OFFSET: u32 = 13;
    const SYN: u32 = 0x02;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_OFFSET),
        SockFilter::new(JUMP_IF_ANY_BIT, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}

/// Result of [`Acceptor::accept`].
pub(super) enum AcceptResult {
    /// A connection, and the address of the client.
    Stream(ClientStream, SocketAddr),
    /// The connection was gone already; others may be pending.
    Retry,
    /// No connection is pending, or accepting backs off.
    Stop,
}

/// Listening socket with its readiness and its backoff.
pub(super) struct Acceptor {
    /// `None` once the socket is closed.
    listener: Option<TcpListener>,
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
    pub(super) fn new(listener: std::net::TcpListener, is_shared: bool) -> Acceptor {
        Acceptor {
            listener: Some(TcpListener::from_std(listener)),
            is_shared,
            pending: false,
            backoff_until: None,
            error_log: LogThrottle::default(),
        }
    }

    /// Registers the socket for events.
    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match &mut self.listener {
            Some(listener) => registry.register(listener, token, Interest::READABLE),
            None => Ok(()),
        }
    }

    /// Marks connections as pending, because of an event.
    pub(super) fn notify(&mut self) {
        self.pending = true;
    }

    /// Drops new connections if the port is shared. Handshakes in progress complete. Returns true
    /// if the port is shared: otherwise new clients are better refused at once.
    pub(super) fn block_new_connections(&mut self) -> bool {
        let Some(listener) = &self.listener else { return false };
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

    /// Returns true if connections may be pending.
    pub(super) fn has_pending(&self) -> bool {
        self.pending
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
        let Some(listener) = &self.listener else { return AcceptResult::Stop };
        match listener.accept() {
            Ok((stream, address)) => {
                self.backoff_until = None;
                AcceptResult::Stream(ClientStream::Tcp(stream), address)
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
