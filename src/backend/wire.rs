//! A connection to Redis: commands go out as bytes, replies and messages come in one by one, parsed
//! by the crate.
//!
//! The crate's own connection counts a reply as outstanding after each time-out and skips the next
//! one. A tracking connection times out in every silent second, and would lose a message each time.

use redis::{Cmd, Parser, RedisResult, Value};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Bytes that the parser may have read ahead of a reply, and the frame around it.
const READ_AHEAD_BYTES: usize = 64 * 1024;

/// Not thread-safe, and of no use after an error other than a time-out between two replies.
pub(super) struct Wire {
    stream: TcpStream,
    parser: Parser,
    /// Longest reply that is received; a longer one ends the connection.
    longest_reply: usize,
}

/// Stream that yields at most `left` bytes, the bound of one reply.
struct Bounded<'a> {
    stream: &'a mut TcpStream,
    left: usize,
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::other("the reply from Redis is longer than requested"));
        }
        let most = buffer.len().min(self.left);
        let length = self.stream.read(&mut buffer[..most])?;
        self.left -= length;
        Ok(length)
    }
}

impl Wire {
    /// Connects within `timeout`, which also bounds each later read and write.
    pub(super) fn connect(address: SocketAddr, timeout: Duration) -> RedisResult<Wire> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        // All that a handshake brings is short.
        Ok(Wire { stream, parser: Parser::new(), longest_reply: READ_AHEAD_BYTES })
    }

    /// Returns the address at the other end.
    pub(super) fn peer(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    /// Bounds each later read. `timeout` must not be zero.
    pub(super) fn set_read_timeout(&self, timeout: Duration) -> RedisResult<()> {
        Ok(self.stream.set_read_timeout(Some(timeout))?)
    }

    /// Bounds the payload of each later reply, in bytes.
    pub(super) fn set_longest_reply(&mut self, bytes: usize) {
        self.longest_reply = bytes;
    }

    /// Sends packed commands.
    pub(super) fn send(&mut self, commands: &[u8]) -> RedisResult<()> {
        Ok(self.stream.write_all(commands)?)
    }

    /// Receives the next reply or message. An error reply is a [`Value::ServerError`]. After a
    /// time-out the rest of a reply may be as long as a whole one.
    pub(super) fn receive(&mut self) -> RedisResult<Value> {
        let left = self.longest_reply.saturating_add(READ_AHEAD_BYTES);
        self.parser.parse_value(Bounded { stream: &mut self.stream, left })
    }

    /// Sends one command and receives its reply. An error reply is an error.
    pub(super) fn ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        self.send(&command.get_packed_command())?;
        self.receive()?.extract_error()
    }
}
