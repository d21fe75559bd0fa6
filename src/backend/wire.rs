//! Connection to Redis that sends packed commands and receives one reply or message at a time. The
//! crate only parses.
//!
//! The crate's own connection counts a reply as outstanding after each timeout, and skips the next
//! one. A tracking connection times out in every second without a message, and would lose a message
//! each time.

use redis::{Cmd, ErrorKind, Parser, RedisError, RedisResult, Value};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Allowance for bytes that the parser has read ahead, and for the frame of a reply.
const READ_AHEAD_BYTES: usize = 64 * 1024;

/// First bytes of replies (RESP2 and RESP3).
const REPLY_TYPES: &[u8] = b"+-:$*_,#!=(%~>|";

/// First byte of a TLS record that reports an error (RFC 8446, section 5.1: alert).
const TLS_ALERT: u8 = 0x15;

/// Bytes of a foreign reply that the log shows. The status line of an HTTP server fits.
const PREVIEW_BYTES: usize = 32;

/// Blocking connection to Redis. Unusable after any error except a timeout between two replies.
pub(super) struct Wire {
    stream: TcpStream,
    parser: Parser,
    /// Longest reply in bytes. A longer one ends the connection.
    longest_reply: usize,
}

/// Reader of at most `left` bytes of a stream, the bound of one reply.
struct BoundedReader<'a> {
    stream: &'a mut TcpStream,
    left: usize,
}

impl Read for BoundedReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::other("the reply from Redis is longer than requested"));
        }
        let max = buffer.len().min(self.left);
        let length = self.stream.read(&mut buffer[..max])?;
        self.left -= length;
        Ok(length)
    }
}

/// Returns the error for a server that answers with `start` instead of a reply.
fn no_redis_error(start: &[u8]) -> RedisError {
    let text = match start.first() {
        Some(&TLS_ALERT) => "the server expects TLS, which the proxy does not support".to_owned(),
        _ => format!(
            "the server speaks another protocol than Redis (its reply begins with \"{}\")",
            start.escape_ascii()
        ),
    };
    (ErrorKind::Parse, "not a Redis server", text).into()
}

impl Wire {
    /// Connects within `timeout`, which also bounds each later read and write.
    pub(super) fn connect(address: SocketAddr, timeout: Duration) -> RedisResult<Wire> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        // All replies of the handshake are short.
        Ok(Wire { stream, parser: Parser::new(), longest_reply: READ_AHEAD_BYTES })
    }

    /// Returns the address of Redis.
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
    /// timeout the rest of a reply may be as long as a whole one.
    pub(super) fn receive(&mut self) -> RedisResult<Value> {
        let left = self.longest_reply.saturating_add(READ_AHEAD_BYTES);
        self.parser.parse_value(BoundedReader { stream: &mut self.stream, left })
    }

    /// Receives the first reply on a connection, and checks that the server speaks the Redis
    /// protocol. The crate's parser would name only the position of the first wrong byte.
    pub(super) fn receive_first(&mut self) -> RedisResult<Value> {
        let mut start = [0; PREVIEW_BYTES];
        let length = self.stream.peek(&mut start)?;
        match start[..length].first() {
            Some(first) if !REPLY_TYPES.contains(first) => Err(no_redis_error(&start[..length])),
            _ => self.receive(),
        }
    }

    /// Sends one command and receives its reply. An error reply becomes an `Err`.
    pub(super) fn request(&mut self, command: &Cmd) -> RedisResult<Value> {
        self.send(&command.get_packed_command())?;
        self.receive()?.extract_error()
    }
}
