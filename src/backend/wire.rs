//! Connection to Redis that sends packed commands and receives one reply or message at a time. The
//! crate only parses.
//!
//! The crate's own connection counts a reply as outstanding after each timeout, and skips the next
//! one. A tracking connection times out in every second without a message, and would lose a message
//! each time. It also bounds each read, not a whole reply, and resolves and verifies one name.

use super::stream::{Endpoint, Stream};
use super::tls::TlsConnector;
use crate::upstream::UpstreamAddress;
use redis::{Cmd, ErrorKind, Parser, RedisError, RedisResult, Value};
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

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
    stream: Stream,
    endpoint: Endpoint,
    /// Time for each round trip.
    timeout: Duration,
    parser: Parser,
    /// First bytes from Redis, until the parser takes them.
    preview: Vec<u8>,
    /// Longest reply in bytes. A longer one ends the connection.
    longest_reply: usize,
}

/// Reader of at most `left` bytes of a stream, the bound of one reply.
struct BoundedReader<'a> {
    stream: &'a mut Stream,
    preview: &'a mut Vec<u8>,
    left: usize,
}

impl Read for BoundedReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.preview.is_empty() {
            let length = self.preview.len().min(buffer.len());
            buffer[..length].copy_from_slice(&self.preview[..length]);
            self.preview.drain(..length);
            return Ok(length);
        }
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
        Some(&TLS_ALERT) => "the server expects TLS".to_owned(),
        _ => format!(
            "the server speaks another protocol than Redis (its reply begins with \"{}\")",
            start.escape_ascii()
        ),
    };
    (ErrorKind::Parse, "not a Redis server", text).into()
}

impl Wire {
    /// Connects within `timeout`, which also bounds each later round trip. With TLS, the
    /// certificate must be that of the given address.
    pub(super) fn connect(
        endpoint: Endpoint,
        tls: Option<(&TlsConnector, &UpstreamAddress)>,
        timeout: Duration,
    ) -> RedisResult<Wire> {
        let stream = Stream::connect(&endpoint, tls, Instant::now() + timeout)?;
        // All replies of the handshake are short.
        let longest_reply = READ_AHEAD_BYTES;
        Ok(Wire { stream, endpoint, timeout, parser: Parser::new(), preview: Vec::new(), longest_reply })
    }

    /// Returns the address of Redis.
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Returns the time for each round trip.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Sets the time at which all reads end, until it is set again or the next round trip begins.
    pub(super) fn set_deadline(&mut self, deadline: Instant) {
        self.stream.set_deadline(deadline);
    }

    /// Bounds the payload of each later reply, in bytes.
    pub(super) fn set_longest_reply(&mut self, bytes: usize) {
        self.longest_reply = bytes;
    }

    /// Frees the buffer of a long reply, which the crate's parser never shrinks. To be called only
    /// while no reply is outstanding, because the buffer may hold the beginning of the next one.
    pub(super) fn shrink(&mut self) {
        self.parser = Parser::new();
    }

    /// Begins a round trip: sends packed commands. Their replies must arrive within the timeout.
    pub(super) fn send(&mut self, commands: &[u8]) -> RedisResult<()> {
        self.set_deadline(Instant::now() + self.timeout);
        self.stream.write_all(commands)?;
        // A TLS stream reports an error of its last write only here.
        Ok(self.stream.flush()?)
    }

    /// Receives the next reply or message. An error reply is a [`Value::ServerError`]. After a
    /// timeout the rest of a reply may be as long as a whole one.
    pub(super) fn receive(&mut self) -> RedisResult<Value> {
        let Wire { stream, parser, preview, longest_reply, .. } = self;
        let left = longest_reply.saturating_add(READ_AHEAD_BYTES);
        parser.parse_value(BoundedReader { stream, preview, left })
    }

    /// Receives the first reply on a connection, and checks that the server speaks the Redis
    /// protocol. The crate's parser would name only the position of the first wrong byte.
    pub(super) fn receive_first(&mut self) -> RedisResult<Value> {
        let mut start = [0; PREVIEW_BYTES];
        let length = self.stream.read(&mut start)?;
        match start[..length].first() {
            Some(first) if !REPLY_TYPES.contains(first) => Err(no_redis_error(&start[..length])),
            _ => {
                self.preview = start[..length].to_vec();
                self.receive()
            }
        }
    }

    /// Sends one command and receives its reply. An error reply becomes an `Err`.
    pub(super) fn request(&mut self, command: &Cmd) -> RedisResult<Value> {
        self.send(&command.get_packed_command())?;
        self.receive()?.extract_error()
    }
}
