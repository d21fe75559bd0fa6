//! The listening socket: bound so that several loops can share a port, and accepting in a way that survives running out
//! of descriptors neither deaf nor spinning.

use crate::request::Millis;
use mio::net::{TcpListener, TcpStream};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Connections that the kernel keeps for the loop to accept. It cuts this to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Silence after which the kernel asks whether a client is still there, and how often it does then, nine times. Redis' own
/// `tcp-keepalive` is 300 s.
const KEEPALIVE: Duration = Duration::from_secs(300);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// How long accepting rests when the system has no descriptors or memory for another connection and none of ours
/// ends meanwhile.
const REST: Millis = 100;

/// How long the log is silent after it has told of such a failure: clients that come and go at the limit would fill it.
const SILENCE: Millis = 10_000;

/// Binds a listening socket. With `share_port` other loops may bind the same address; the kernel spreads connections.
pub fn bind(address: SocketAddr, share_port: bool) -> io::Result<std::net::TcpListener> {
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
    // Every connection accepted here inherits it (socket(7), tcp(7)): a client whose machine is gone without a word is noticed,
    // however long CLIENT_IDLE_TIMEOUT is.
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_INTERVAL))?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What came of trying to accept.
pub(super) enum Accepted {
    /// A connection.
    Stream(TcpStream),
    /// Nothing that matters: a connection that was gone again.
    Nothing,
    /// No more for now.
    Stop,
}

/// The listener, and whether there is a point in trying.
pub(super) struct Acceptor {
    pub(super) listener: TcpListener,
    /// Edge-triggered: once told, connections wait until the kernel says there are none left.
    waiting: bool,
    /// After a failure for want of resources: when to try again.
    resting_until: Option<Millis>,
    /// When such a failure may be logged again.
    silent_until: Millis,
}

impl Acceptor {
    pub(super) fn new(listener: std::net::TcpListener) -> Acceptor {
        Acceptor { listener: TcpListener::from_std(listener), waiting: false, resting_until: None, silent_until: 0 }
    }

    /// The kernel says that connections wait.
    pub(super) fn notify(&mut self) {
        self.waiting = true;
    }

    /// A connection has ended: there may be a descriptor for another.
    pub(super) fn resume(&mut self, now: Millis) {
        if let Some(until) = &mut self.resting_until {
            *until = now;
        }
    }

    /// Whether to try now; if not, when.
    pub(super) fn due(&self) -> Option<Millis> {
        self.waiting.then(|| self.resting_until.unwrap_or(0))
    }

    pub(super) fn accept(&mut self, now: Millis) -> Accepted {
        if self.due().is_none_or(|due| due > now) {
            return Accepted::Stop;
        }
        match self.listener.accept() {
            Ok((stream, _)) => {
                self.resting_until = None;
                Accepted::Stream(stream)
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => {
                    self.waiting = false;
                    Accepted::Stop
                }
                io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset => {
                    Accepted::Nothing
                }
                _ => {
                    // Out of descriptors or memory. The connection stays in the kernel's queue, and no new edge will
                    // tell of it: `waiting` stays true, and the deadline brings the loop back.
                    self.resting_until = Some(now + REST);
                    if now >= self.silent_until {
                        self.silent_until = now + SILENCE;
                        log::error!("cannot accept connections: {error}; raise the limit of open files (ulimit -n)");
                    }
                    Accepted::Stop
                }
            },
        }
    }
}
