//! The listening socket: bound so that several loops can share a port, and accepting in a way that survives running out
//! of descriptors neither deaf nor spinning.

use crate::log_throttle::LogThrottle;
use crate::types::Millis;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, TcpKeepalive, Type};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Connections that the kernel keeps for the loop to accept. It cuts this to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Silence after which the kernel asks whether a client is still there, and how often it does then, nine times. Redis' own
/// `tcp-keepalive` is 300 s.
const TCP_KEEPALIVE_TIME: Duration = Duration::from_secs(300);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// How long accepting rests when the system has no descriptors or memory for another connection and none of ours
/// ends meanwhile.
const ACCEPT_BACKOFF: Millis = 100;

/// Binds a listening socket. With `share_port` other loops may bind the same address; the kernel spreads connections.
pub fn bind(address: SocketAddr, share_port: bool) -> io::Result<std::net::TcpListener> {
    let socket = bind_socket(address, share_port)?;
    // Every connection accepted here inherits it (socket(7), tcp(7)): a client whose machine is gone without a word is noticed,
    // however long CLIENT_IDLE_TIMEOUT is.
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE_TIME).with_interval(KEEPALIVE_INTERVAL))?;
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Fails where somebody listens at the address: who shares a port with his own loops only does not notice when he binds it.
pub fn check_port_free(address: SocketAddr) -> io::Result<()> {
    bind_socket(address, false).map(drop)
}

fn bind_socket(address: SocketAddr, share_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for connections of the last run to be forgotten.
    socket.set_reuse_address(true)?;
    if share_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // "::" means every address, IPv4 too, whatever the system's default.
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Says in the log what is in the way of closing a socket without losing a connection, where others are to go on at its port. Tried
/// at start, when there is time to mend it.
pub fn check_port_handover(listener: &std::net::TcpListener) {
    let socket = SockRef::from(listener);
    let tried = socket.attach_filter(&drop_syn_filter()).and_then(|()| socket.detach_filter());
    let migrates = std::fs::read_to_string(TCP_MIGRATE_REQ).is_ok_and(|text| text.trim() == "1");
    if let (Err(error), false) = (tried, migrates) {
        log::warn!(
            "SHARE_PORT=on: on shutdown the kernel may reset new client connections not accepted yet ({error}); set the \
             sysctl net.ipv4.tcp_migrate_req=1, or grant CAP_NET_ADMIN to the process"
        );
    }
}

/// Where the kernel tells whether it hands connections that wait at a socket over to others at the same port (`tcp_migrate_req`,
/// ip-sysctl.rst, Linux 5.14).
const TCP_MIGRATE_REQ: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

/// For connections to a port that others listen on too: a program of the kernel's packet filter (filter.rst, classic BPF) that
/// drops what asks for a new connection (SYN) and lets all else through. What it sees begins with the TCP header.
///
/// The kernel gives each new connection to one of the sockets at once, and whoever closes his takes those along that nobody
/// has accepted yet. So first no more are let in, then all that are there are accepted, then it is closed. Whoever is not let in
/// asks again a second later (RFC 6298, section 2), and finds the others.
fn drop_syn_filter() -> [SockFilter; 4] {
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_IF_ANY_BIT: u16 = 0x45;
    const RETURN: u16 = 0x06;
    const FLAGS_AT: u32 = 13;
    const SYN: u32 = 0x02;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_AT),
        SockFilter::new(JUMP_IF_ANY_BIT, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}

/// What came of trying to accept.
pub(super) enum AcceptResult {
    /// A connection, and from where.
    Stream(TcpStream, SocketAddr),
    /// Nothing that matters: a connection that was gone again.
    Retry,
    /// No more for now.
    Stop,
}

/// The listener, and whether there is a point in trying.
pub(super) struct Acceptor {
    /// `None` when no more are accepted.
    listener: Option<TcpListener>,
    /// Whether other proxies may listen at the port, and go on when this one stops (`SHARE_PORT`).
    is_shared: bool,
    /// Edge-triggered: once told, connections wait until the kernel says there are none left.
    pending: bool,
    /// After a failure for want of resources: when to try again.
    backoff_until: Option<Millis>,
    /// Throttle for the log lines about such failures: at the limit each client that connects logs one.
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

    /// Has the kernel tell of connections.
    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match &mut self.listener {
            Some(listener) => registry.register(listener, token, Interest::READABLE),
            None => Ok(()),
        }
    }

    /// The kernel says that connections wait.
    pub(super) fn notify(&mut self) {
        self.pending = true;
    }

    /// Lets no new connections begin where others may listen on the port. Those that have begun come to be accepted. Says whether it
    /// has come to that: where nobody else listens, who comes now had better be refused at once.
    pub(super) fn block_new_connections(&mut self) -> bool {
        let Some(listener) = &self.listener else { return false };
        // Some kernels (6.18 is one) want CAP_NET_ADMIN for that. What it means to do without has been said at start.
        if self.is_shared
            && let Err(error) = SockRef::from(listener).attach_filter(&drop_syn_filter())
        {
            log::debug!("cannot block new client connections during shutdown, the kernel may reset some: {error}");
        }
        self.is_shared
    }

    /// Closes the socket: others may have the port.
    pub(super) fn close(&mut self) {
        // The kernel forgets to watch it.
        (self.listener, self.pending) = (None, false);
    }

    /// Whether accepting rests for want of descriptors or memory.
    pub(super) fn is_backing_off(&self, now: Millis) -> bool {
        self.backoff_until.is_some_and(|until| until > now)
    }

    /// Whether connections may wait to be accepted.
    pub(super) fn has_pending(&self) -> bool {
        self.pending
    }

    /// A connection has ended: there may be a descriptor for another.
    pub(super) fn resume(&mut self, now: Millis) {
        if let Some(until) = &mut self.backoff_until {
            *until = now;
        }
    }

    /// Whether to try now; if not, when.
    pub(super) fn next_attempt(&self) -> Option<Millis> {
        self.pending.then(|| self.backoff_until.unwrap_or(0))
    }

    pub(super) fn accept(&mut self, now: Millis) -> AcceptResult {
        if self.next_attempt().is_none_or(|due| due > now) {
            return AcceptResult::Stop;
        }
        let Some(listener) = &self.listener else { return AcceptResult::Stop };
        match listener.accept() {
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
                    // Out of descriptors or memory. The connection stays in the kernel's queue, and no new edge will
                    // tell of it: `waiting` stays true, and the deadline brings the loop back.
                    self.backoff_until = Some(now + ACCEPT_BACKOFF);
                    if self.error_log.admit(now).is_some() {
                        log::error!(
                            "cannot accept client connections, they wait in the kernel: {error}; raise the limit of open files (ulimit -n)"
                        );
                    }
                    AcceptResult::Stop
                }
            },
        }
    }
}
