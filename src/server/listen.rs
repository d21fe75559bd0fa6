//! Listening sockets: binding a port, and the handover of a port on shutdown.
//!
//! Several event loops and proxies can share a port.

use crate::config::Config;
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, TcpKeepalive, Type};
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::time::Duration;

/// Listener by which a client is connected, as far as it decides what the client is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `PROXY_PORT` and `PROXY_SOCKET`.
    Main,
    /// `ADMIN_PORT`.
    Admin,
}

/// Non-blocking listening socket.
#[derive(Debug)]
pub enum Listener {
    /// Socket at a port. Other event loops have sockets of their own at the same port.
    Tcp(std::net::TcpListener),
    /// Unix socket. All event loops have copies of one.
    Unix(UnixListener),
}

impl Listener {
    /// Returns a copy that accepts from the same queue.
    ///
    /// # Errors
    ///
    /// The system has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Listener> {
        match self {
            Listener::Tcp(listener) => listener.try_clone().map(Listener::Tcp),
            Listener::Unix(listener) => listener.try_clone().map(Listener::Unix),
        }
    }
}

/// Maximum number of connections that wait in the kernel to be accepted. The kernel lowers it to
/// `net.core.somaxconn`.
pub(super) const BACKLOG: i32 = 4096;

/// Silence after which the kernel probes a client, as `tcp-keepalive` of Redis.
const TCP_KEEPALIVE_TIME: Duration = Duration::from_secs(300);

/// Interval of the probes. The kernel closes the connection after nine without a response.
const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

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

/// Returns the warning about an address that other machines may reach, `None` if clients are
/// authenticated and their connections encrypted.
pub fn exposure_warning(endpoint: Endpoint, address: SocketAddr, config: &Config) -> Option<String> {
    let is_encrypted = config.tls_cert.is_some() && config.tls_required;
    let is_authenticated = config.client_password.is_some() || (is_encrypted && config.tls_client_ca.is_some());
    if address.ip().is_loopback() || (is_authenticated && is_encrypted) {
        return None;
    }
    let (sent, readable, host) = match endpoint {
        Endpoint::Main => ("passwords and values", "all keys", "PROXY_HOST"),
        Endpoint::Admin => ("passwords and metrics", "metrics and the configuration, but no keys", "ADMIN_HOST"),
    };
    let remedy = format!("restrict access to the port (firewall, network policy), or set {host}=127.0.0.1");
    Some(if is_authenticated {
        format!(
            "{sent} travel in plain text: each machine on the way to {address} can read them; set TLS_CERT and TLS_KEY, \
             {remedy}"
        )
    } else {
        format!(
            "clients are not authenticated: each machine that reaches {address} can read {readable}; set \
             CLIENT_PASSWORD, {remedy}"
        )
    })
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
pub(super) fn drop_syn_filter() -> [SockFilter; 4] {
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
