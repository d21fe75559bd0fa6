//! Socket of a client: TCP, or a Unix socket.

use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token, event};
use rustix::net::{RecvFlags, SendFlags};
use socket2::SockRef;
use std::io::{self, IoSlice, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Output of an event stream that the kernel takes before it has sent the rest. Without a limit a
/// client that stops reading gets up to 4 MiB of old events when it continues (`tcp_wmem`). (With
/// 16 KiB, a value of 30 MB took ten times as long.)
const MAX_NOT_SENT_BYTES: u32 = 128 * 1024;

/// Non-blocking socket of a client.
pub(super) enum ClientStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl ClientStream {
    /// Reads into `buffer` by a direct system call.
    pub(super) fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(self, buffer, RecvFlags::empty())?.0)
    }

    /// Writes as much as the socket accepts by a direct system call.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(self, bytes, SendFlags::NOSIGNAL)?)
    }

    /// Writes as much of several slices as the socket accepts.
    pub(super) fn send_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            ClientStream::Tcp(stream) => stream.write_vectored(slices),
            ClientStream::Unix(stream) => stream.write_vectored(slices),
        }
    }

    /// Ends the output. The client reads an end of stream behind the last byte.
    pub(super) fn shutdown_write(&self) -> io::Result<()> {
        SockRef::from(self).shutdown(Shutdown::Write)
    }

    /// Makes the close discard unsent output. Output to a Unix socket is in the client's buffer
    /// already.
    pub(super) fn discard_on_close(&self) {
        if let ClientStream::Tcp(stream) = self {
            // On failure the kernel keeps sending, until it gives up by itself.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// Limits the output that the kernel holds before it sends it. A Unix socket holds little.
    pub(super) fn limit_unsent(&self) {
        if let ClientStream::Tcp(stream) = self {
            // On failure the client gets more events that are outdated.
            let _ = SockRef::from(stream).set_tcp_notsent_lowat(MAX_NOT_SENT_BYTES);
        }
    }

    /// Prepares an accepted socket for replies that are written whole: Nagle's algorithm would only
    /// delay them.
    pub(super) fn disable_delay(&self) -> io::Result<()> {
        match self {
            ClientStream::Tcp(stream) => stream.set_nodelay(true),
            ClientStream::Unix(_) => Ok(()),
        }
    }
}

impl AsFd for ClientStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            ClientStream::Tcp(stream) => stream.as_fd(),
            ClientStream::Unix(stream) => stream.as_fd(),
        }
    }
}

impl event::Source for ClientStream {
    fn register(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        match self {
            ClientStream::Tcp(stream) => stream.register(registry, token, interest),
            ClientStream::Unix(stream) => stream.register(registry, token, interest),
        }
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        match self {
            ClientStream::Tcp(stream) => stream.reregister(registry, token, interest),
            ClientStream::Unix(stream) => stream.reregister(registry, token, interest),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            ClientStream::Tcp(stream) => stream.deregister(registry),
            ClientStream::Unix(stream) => stream.deregister(registry),
        }
    }
}
