//! Blocking stream to Redis over TCP or a Unix socket, plain or TLS, with an absolute deadline.
//!
//! Each read and write waits until the deadline at most, however small the pieces are that arrive.
//! The timeouts of the kernel count from each system call, so they are set again as time passes.

#[cfg(feature = "tls")]
use super::tls;
use super::tls::TlsConnector;
use crate::upstream::UpstreamAddress;
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The timeout of a socket is set again if it differs from the time left by more than this part.
/// (Setting it for each round trip would cost a system call.)
const TIMEOUT_TOLERANCE: u32 = 16;

/// Shortest timeout. The kernel counts microseconds, and takes zero as no limit.
const MIN_TIMEOUT: Duration = Duration::from_micros(1);

/// Address to connect to, after the lookup of its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Stream of plaintext.
pub(super) enum Stream {
    Plain(DeadlineSocket),
    #[cfg(feature = "tls")]
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, DeadlineSocket>>),
}

/// Socket whose reads and writes end at a deadline.
pub(super) struct DeadlineSocket {
    socket: Socket,
    deadline: Instant,
    /// Timeouts of the kernel for one read and one write.
    read_timeout: Duration,
    write_timeout: Duration,
}

impl DeadlineSocket {
    /// Connects before `deadline`.
    ///
    /// A Unix socket has no connect timeout: with a full backlog, connecting waits for as long as a
    /// write may take (unix(7)).
    fn connect(endpoint: &Endpoint, deadline: Instant) -> io::Result<DeadlineSocket> {
        let left = time_left(deadline)?;
        let socket = match endpoint {
            Endpoint::Tcp(address) => {
                let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
                socket.connect_timeout(&SockAddr::from(*address), left)?;
                socket.set_tcp_nodelay(true)?;
                socket.set_write_timeout(Some(left))?;
                socket
            }
            Endpoint::Unix(path) => {
                let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
                socket.set_write_timeout(Some(left))?;
                socket.connect(&SockAddr::unix(path)?)?;
                socket
            }
        };
        socket.set_read_timeout(Some(left))?;
        Ok(DeadlineSocket { socket, deadline, read_timeout: left, write_timeout: left })
    }
}

/// Returns the time until `deadline`, at least [`MIN_TIMEOUT`].
///
/// # Errors
///
/// `TimedOut` if less is left.
pub(super) fn time_left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left < MIN_TIMEOUT { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Repeats a call that a stop and a continuation of the process interrupted (signal(7)).
fn uninterrupted(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Returns true if a socket with `timeout` would wait for clearly more or less than `left`.
fn is_inexact(timeout: Duration, left: Duration) -> bool {
    timeout.abs_diff(left) > left / TIMEOUT_TOLERANCE
}

impl Read for DeadlineSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        uninterrupted(|| {
            let left = time_left(self.deadline)?;
            if is_inexact(self.read_timeout, left) {
                self.socket.set_read_timeout(Some(left))?;
                self.read_timeout = left;
            }
            self.socket.read(buffer)
        })
    }
}

impl Write for DeadlineSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        uninterrupted(|| {
            let left = time_left(self.deadline)?;
            if is_inexact(self.write_timeout, left) {
                self.socket.set_write_timeout(Some(left))?;
                self.write_timeout = left;
            }
            self.socket.write(bytes)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream {
    /// Connects before `deadline`, with TLS to the given address if `tls` is set.
    pub(super) fn connect(
        endpoint: &Endpoint,
        tls: Option<(&TlsConnector, &UpstreamAddress)>,
        deadline: Instant,
    ) -> io::Result<Stream> {
        let socket = DeadlineSocket::connect(endpoint, deadline)?;
        match tls {
            None => Ok(Stream::Plain(socket)),
            Some((tls, address)) => tls.connect(socket, address, deadline),
        }
    }

    /// Sets the end of all reads and writes from now on.
    pub(super) fn set_deadline(&mut self, deadline: Instant) {
        match self {
            Stream::Plain(socket) => socket.deadline = deadline,
            #[cfg(feature = "tls")]
            Stream::Tls(stream) => stream.sock.deadline = deadline,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.read(buffer),
            #[cfg(feature = "tls")]
            Stream::Tls(stream) => stream.read(buffer).map_err(tls::explain),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.write(bytes),
            #[cfg(feature = "tls")]
            Stream::Tls(stream) => stream.write(bytes).map_err(tls::explain),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => socket.flush(),
            #[cfg(feature = "tls")]
            Stream::Tls(stream) => stream.flush().map_err(tls::explain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A deadline that is nearly reached has no timeout of zero, which would wait for ever.
    #[test]
    fn last_nanoseconds_are_no_timeout() {
        for nanoseconds in 0..2000 {
            let left = time_left(Instant::now() + Duration::from_nanos(nanoseconds));
            assert!(left.is_err() || left.is_ok_and(|left| left >= MIN_TIMEOUT), "{nanoseconds}");
        }
        assert!(time_left(Instant::now() + Duration::from_secs(1)).is_ok());
    }
}
