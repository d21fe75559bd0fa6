//! One client's socket, and its turn at the loop: send, decode, read, until there is nothing left to do or it has had
//! its share.
//!
//! Events are edge-triggered: `readable` and `writable` hold from the edge until the kernel has said "no more". A read
//! or write that is shorter than it could have been says so too (epoll(7)), which spares a hit its second `read`.

use super::Scratch;
use crate::connection::Connection;
use crate::protocol::WRITE_SLICES;
use crate::serve::Service;
use mio::net::TcpStream;
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;

/// Reads of one turn, or goings on with what was read. Each takes up to the loop's buffer of 64 KiB, and about a thousand
/// requests of it.
const READS_PER_TURN: usize = 2;

/// Bytes sent in one turn, after which others go first: what a fast reader of a long value takes in a millisecond.
const SENT_PER_TURN: usize = 1024 * 1024;

/// Bytes that are read and thrown away from a client that is told to stop and goes on sending.
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// What a turn works with beside the client itself.
pub(super) struct Turn<'a> {
    pub(super) service: Service<'a>,
    pub(super) scratch: &'a mut Scratch,
}

/// What is to happen after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing, until the socket or a completion wakes it.
    Wait,
    /// Another turn, after the others had theirs: no further edge will come for what is left.
    Again,
    /// All is said; what the client still sends is thrown away for a while, so that it gets to read the last reply.
    Linger,
    /// It is over.
    Close,
}

/// One client. See the top of the file.
pub(super) struct Client {
    pub(super) connection: Connection,
    stream: TcpStream,
    readable: bool,
    writable: bool,
    /// The kernel has told that the client's end is closed: reads must go on until they return nothing.
    end_in_sight: bool,
    /// The client sends no more. It may still be reading.
    end_read: bool,
    /// Decoding stopped because too much was open, or enough was done, not because bytes were missing.
    held_up: bool,
    /// Bytes that may still be thrown away.
    lingering: Option<usize>,
    /// Whether it is in the queue of those who get a turn.
    pub(super) queued: bool,
    /// Where its deadline is among the timers.
    pub(super) timer: Option<u32>,
}

impl Client {
    pub(super) fn new(stream: TcpStream, connection: Connection) -> Client {
        Client {
            connection,
            stream,
            readable: false,
            // A new socket can be written to; its first edge says so too, later.
            writable: true,
            end_in_sight: false,
            end_read: false,
            held_up: false,
            lingering: None,
            queued: false,
            timer: None,
        }
    }

    pub(super) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Takes note of what the kernel told.
    pub(super) fn note(&mut self, event: &mio::event::Event) {
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.writable |= event.is_writable();
        self.end_in_sight |= event.is_read_closed() || event.is_error();
    }

    /// One turn. `slot` is the client's place, for those who answer it later.
    pub(super) fn turn(&mut self, slot: usize, turn: &mut Turn<'_>) -> Next {
        if self.lingering.is_some() {
            return self.throw_away(&mut turn.scratch.read);
        }
        self.connection.outgoing().lend(&mut turn.scratch.write);
        let next = self.work(slot, turn).unwrap_or(Next::Close);
        self.connection.outgoing().take_back(&mut turn.scratch.write);
        next
    }

    fn work(&mut self, slot: usize, turn: &mut Turn<'_>) -> io::Result<Next> {
        let (mut reads, mut sent) = (0, 0);
        loop {
            sent += self.send(SENT_PER_TURN.saturating_sub(sent))?;
            if self.connection.is_settled() && (self.connection.has_ended() || self.end_read) {
                return Ok(self.end());
            }
            if sent >= SENT_PER_TURN || reads == READS_PER_TURN {
                let more = (self.writable && !self.connection.outgoing().is_empty())
                    || (self.connection.takes_requests() && (self.readable || self.held_up));
                return Ok(if more { Next::Again } else { Next::Wait });
            }
            if !self.connection.takes_requests() {
                return Ok(Next::Wait);
            }
            if self.held_up {
                self.held_up = turn.service.resume(&mut self.connection, slot);
            } else if self.readable {
                self.read(slot, turn)?;
            } else {
                return Ok(Next::Wait);
            }
            reads += 1;
        }
    }

    /// Everything is sent that will be. With bytes unread, here or in the kernel, closing at once would make the client's
    /// kernel throw away what it has not read yet (RFC 9112, section 9.6).
    fn end(&mut self) -> Next {
        if self.end_read || !(self.readable || self.connection.leaves_unread()) {
            return Next::Close;
        }
        match self.stream.shutdown(Shutdown::Write) {
            Ok(()) => {
                self.lingering = Some(LINGER_BYTES);
                Next::Linger
            }
            Err(_) => Next::Close,
        }
    }

    /// Sends until all is sent, the socket is full, or `most` bytes are over. Says how many bytes went.
    fn send(&mut self, most: usize) -> io::Result<usize> {
        let mut sent = 0;
        while self.writable && sent < most {
            let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
            let count = self.connection.outgoing().slices(&mut slices);
            let length: usize = slices[..count].iter().map(|slice| slice.len()).sum();
            let result = match count {
                0 => break,
                1 => self.stream.write(&slices[0]),
                _ => self.stream.write_vectored(&slices[..count]),
            };
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => {
                    self.writable = taken == length;
                    self.connection.outgoing().advance(taken);
                    sent += taken;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }

    /// Reads once into the loop's buffer; keeps only what could not be used.
    fn read(&mut self, slot: usize, turn: &mut Turn<'_>) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut turn.scratch.read);
        let result = self.receive(&mut buffer);
        if let Ok(length @ 1..) = result {
            self.held_up = turn.service.take_in(&mut self.connection, slot, &buffer[..length]);
        }
        turn.scratch.read = buffer;
        result.map(|_| ())
    }

    /// One read, and what its outcome says about the socket.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.stream.read(buffer) {
            Ok(0) => {
                (self.readable, self.end_read) = (false, true);
                Ok(0)
            }
            Ok(length) => {
                self.readable = length == buffer.len() || self.end_in_sight;
                Ok(length)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(0)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Reads what nobody wants, until the client closes, or has had its bytes.
    fn throw_away(&mut self, buffer: &mut [u8]) -> Next {
        for _ in 0..READS_PER_TURN {
            if !self.readable {
                return if self.end_read { Next::Close } else { Next::Wait };
            }
            match (self.receive(buffer), &mut self.lingering) {
                (Ok(length), Some(left)) if length < *left => *left -= length,
                _ => return Next::Close,
            }
        }
        if self.end_read { Next::Close } else { Next::Again }
    }
}
