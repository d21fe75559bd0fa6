//! A connection to Redis: commands go out as bytes, replies and messages come in one by one, parsed by the crate.
//!
//! The crate's own connection counts a reply as outstanding after each time-out and skips the next one. A tracking connection
//! times out in every silent second, and would lose a message each time.

use redis::{Cmd, Parser, RedisResult, Value};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Not thread-safe, and of no use after an error other than a time-out between two replies.
pub(super) struct Wire {
    stream: TcpStream,
    parser: Parser,
}

impl Wire {
    /// Connects within `timeout`, which also bounds each later read and write.
    pub(super) fn connect(address: SocketAddr, timeout: Duration) -> RedisResult<Wire> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Wire { stream, parser: Parser::new() })
    }

    /// Bounds each later read. `timeout` must not be zero.
    pub(super) fn set_read_timeout(&self, timeout: Duration) -> RedisResult<()> {
        Ok(self.stream.set_read_timeout(Some(timeout))?)
    }

    /// Sends packed commands.
    pub(super) fn send(&mut self, commands: &[u8]) -> RedisResult<()> {
        Ok(self.stream.write_all(commands)?)
    }

    /// Receives the next reply or message. An error reply is a [`Value::ServerError`].
    pub(super) fn receive(&mut self) -> RedisResult<Value> {
        self.parser.parse_value(&mut self.stream)
    }

    /// Sends one command and receives its reply. An error reply is an error.
    pub(super) fn ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        self.send(&command.get_packed_command())?;
        self.receive()?.extract_error()
    }
}
