//! Client of an event loop: its socket, and the turn in which the event loop serves it.
//!
//! A turn sends, decodes and reads until nothing is left to do or its budget is used up.
//!
//! Events are edge-triggered: `readable` and `writable` stay set from the edge until the kernel
//! reports "would block". A short read or write implies the same (epoll(7)), which saves a hit its
//! second `read`.
//!
//! The two system calls of a hit bypass the C library. There each of them is a cancellation point
//! of the thread, which costs four atomic operations (2 % of a hit).

#[cfg(test)]
mod tests;
mod tls;

use super::Scratch;
use super::listen::Endpoint;
use super::read_ahead::SEGMENT_BYTES;
use super::stream::ClientStream;
use super::timeouts::{Activity, ClientTimer, TimeoutAction, TimeoutConfig};
use crate::connection::{Connection, DecodeContext};
use crate::dispatch::Dispatcher;
use crate::metrics::TimeoutKind;
use crate::protocol::MAX_IOVECS;
use crate::types::Millis;
use std::io::{self, IoSlice};
use tls::Transport;
pub(super) use tls::{HandshakeStage, TlsContext};

/// Maximum number of bytes sent in one turn: a value of 64 KiB and some more (about 10 us). (With
/// 256 KiB, one reader of 64 MiB made the p99.9 of hits four times as long.)
const WRITE_BUDGET_BYTES: usize = 96 * 1024;

/// Bytes of input that are discarded while lingering: more than most clients have in flight. The
/// linger timeout may end it earlier.
const MAX_LINGER_BYTES: usize = 64 * 1024 * 1024;

/// State of the event loop that a turn uses.
pub(super) struct TurnContext<'a> {
    pub(super) dispatcher: Dispatcher<'a>,
    pub(super) scratch: &'a mut Scratch,
    /// Input that [`Client::read_ahead`] has read for this turn.
    pub(super) input: Option<&'a [u8]>,
    pub(super) timeouts: TimeoutConfig,
    /// Closes the client if it has no request in progress.
    pub(super) closes_idle: bool,
    /// TLS of new clients, `None` if it is not configured.
    pub(super) tls: Option<&'a mut TlsContext>,
}

/// Result of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TurnResult {
    /// The client waits for a socket event or a completion.
    Wait,
    /// The client needs another turn: no further edge comes for the work that is left.
    Requeue,
    /// The last reply is sent. Input is discarded for a while, so that the client can read the
    /// reply.
    Linger,
    /// The client is to be closed.
    Close,
}

/// Client of an event loop.
pub(super) struct Client {
    pub(super) connection: Connection,
    stream: ClientStream,
    /// Listener by which the client is connected.
    pub(super) endpoint: Endpoint,
    transport: Transport,
    readable: bool,
    writable: bool,
    /// The kernel reported that the client closed its end: reads continue until one returns
    /// nothing.
    peer_closing: bool,
    /// A read returned nothing: the client sends no more. It may still be reading.
    read_eof: bool,
    /// Reads that the client makes in its turns, with a larger buffer, until it is read ahead
    /// again.
    own_reads: u8,
    /// A read ahead failed: the client is closed in its turn.
    read_failed: bool,
    /// The client has an event stream, and its socket is set up for that.
    is_stream: bool,
    /// Decoding stopped at a limit, not because bytes were missing.
    decode_paused: bool,
    /// Bytes of input left to discard, `None` unless the client lingers.
    linger_bytes_left: Option<usize>,
    /// The client is above the connection limit, and is only to be refused.
    pub(super) rejected: bool,
    /// Deadline of the present activity.
    pub(super) timer_state: ClientTimer,
    /// Bytes sent in this turn.
    sent_this_turn: usize,
    /// The deadline passed: after the next turn [`ClientTimer::on_deadline`] decides.
    timeout_pending: bool,
    /// The client is in the ready queue.
    pub(super) in_ready_queue: bool,
    /// The client is in the queue of those with invalidations to send.
    pub(super) in_push_queue: bool,
    /// Position of the client's timer in the deadline heap.
    pub(super) timer: Option<u32>,
}

impl Client {
    pub(super) fn new(
        stream: ClientStream,
        endpoint: Endpoint,
        connection: Connection,
        rejected: bool,
        now: Millis,
    ) -> Client {
        let activity = if rejected { Activity::Rejected } else { Activity::Idle(0) };
        Client {
            connection,
            stream,
            endpoint,
            transport: Transport::Plain,
            readable: false,
            // A new socket is writable before its first edge.
            writable: true,
            peer_closing: false,
            read_eof: false,
            own_reads: 0,
            read_failed: false,
            is_stream: false,
            decode_paused: false,
            linger_bytes_left: None,
            rejected,
            timer_state: ClientTimer::new(activity, now),
            sent_this_turn: 0,
            timeout_pending: false,
            in_ready_queue: false,
            in_push_queue: false,
            timer: None,
        }
    }

    /// Stores the readiness that the kernel reported.
    pub(super) fn on_event(&mut self, event: &mio::event::Event) {
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.writable |= event.is_writable();
        self.peer_closing |= event.is_read_closed() || event.is_error();
    }

    /// Runs one turn. `slot` is the client's slot, to which later replies are addressed.
    pub(super) fn turn(&mut self, slot: usize, turn: &mut TurnContext<'_>) -> TurnResult {
        let result = self.run_turn(slot, turn);
        if result == TurnResult::Close {
            self.record_unfinished_handshake(turn);
        }
        result
    }

    fn run_turn(&mut self, slot: usize, turn: &mut TurnContext<'_>) -> TurnResult {
        let now = turn.dispatcher.now;
        if self.linger_bytes_left.is_some() {
            let is_timed_out = std::mem::take(&mut self.timeout_pending)
                && self.timer_state.on_deadline(turn.timeouts, now) == TimeoutAction::Close;
            return if is_timed_out { TurnResult::Close } else { self.discard_input(&mut turn.scratch.read) };
        }
        self.sent_this_turn = 0;
        self.connection.send_buffer().lend_tail(&mut turn.scratch.write);
        self.lend_ciphertext(turn.scratch);
        let result = self.drive(slot, turn).unwrap_or(TurnResult::Close);
        self.reclaim_ciphertext(turn.scratch);
        self.connection.send_buffer().reclaim_tail(&mut turn.scratch.write);
        let activity = self.activity();
        self.timer_state.update(activity, self.sent_this_turn, now);
        if result == TurnResult::Close || !std::mem::take(&mut self.timeout_pending) {
            return result;
        }
        let action = self.timer_state.on_deadline(turn.timeouts, now);
        let DecodeContext { policy, reply, .. } = &mut turn.dispatcher.context;
        if let Some(kind) = timeout_kind(action, activity).filter(|_| !policy.announce_close) {
            reply.recorder.metrics.timeouts[kind as usize] += 1;
        }
        match action {
            TimeoutAction::Keep => result,
            TimeoutAction::RespondTimeout => {
                let requests_before = self.connection.request_count();
                self.connection.time_out_request(reply);
                // An incomplete request counts if it was answered.
                reply.recorder.metrics.requests += self.connection.request_count().saturating_sub(requests_before);
                TurnResult::Requeue
            }
            TimeoutAction::Close => {
                self.close_tls();
                TurnResult::Close
            }
            TimeoutAction::Reset => {
                self.stream.discard_on_close();
                TurnResult::Close
            }
        }
    }

    /// Makes the next turn read and write, and apply the timeout after that. Input may have arrived
    /// without an event yet. The kernel reports a writable socket only once much of its buffer is
    /// free.
    pub(super) fn begin_timeout_check(&mut self) {
        (self.readable, self.writable, self.timeout_pending) = (true, true, true);
    }

    #[inline]
    fn activity(&mut self) -> Activity {
        if self.linger_bytes_left.is_some() {
            if self.rejected { Activity::RejectedLinger } else { Activity::Linger }
        } else if let Some(activity) = self.handshake_activity() {
            activity
        } else if !self.is_all_sent() {
            Activity::WritingReply
        } else if self.rejected {
            Activity::Rejected
        } else if let Some(until) = self.connection.watch_deadline() {
            Activity::Watching(until)
        } else if self.readable
            || self.decode_paused
            || !self.connection.is_flushed()
            || !self.connection.can_take_request()
        {
            Activity::Processing
        } else if let Some(request) = self.connection.partial_request() {
            Activity::ReadingRequest(request)
        } else if self.has_partial_record() {
            Activity::ReadingRequest(self.connection.request_count())
        } else {
            Activity::Idle(self.connection.request_count())
        }
    }

    fn drive(&mut self, slot: usize, turn: &mut TurnContext<'_>) -> io::Result<TurnResult> {
        // One read in each turn, or stored input instead: some hundred requests (0.1 ms). (With
        // two, and a thousand requests each, a hit beside a flooding client took ten times as long
        // as without.)
        let mut has_read = false;
        if self.read_failed {
            return Ok(TurnResult::Close);
        }
        loop {
            self.send(WRITE_BUDGET_BYTES.saturating_sub(self.sent_this_turn))?;
            if self.connection.has_watch() {
                if self.sent_this_turn >= WRITE_BUDGET_BYTES {
                    return Ok(if self.writable { TurnResult::Requeue } else { TurnResult::Wait });
                }
                // A client that sends no more may still read the reply to a poll. A poll then waits
                // for a read only, as any other request does. A stream ends with its input.
                let (has_ended, is_poll) = (self.read_eof || self.peer_closing, self.connection.has_poll());
                let closes = turn.closes_idle || (has_ended && is_poll);
                if !is_poll && !std::mem::replace(&mut self.is_stream, true) {
                    self.stream.limit_unsent();
                }
                if turn.dispatcher.serve_watch(&mut self.connection, slot, closes) {
                    continue;
                }
                if has_ended && !is_poll && self.is_all_sent() {
                    return Ok(TurnResult::Close);
                }
            }
            // Requests that arrived together with the end of a TLS client are still to be decoded.
            let is_last_reply = self.connection.is_closing() || (self.read_eof && !self.decode_paused);
            if self.connection.is_flushed() && is_last_reply && self.is_all_sent() {
                return Ok(self.finish());
            }
            if self.has_tls_failed() {
                return Ok(self.finish_failed());
            }
            if turn.closes_idle && matches!(self.activity(), Activity::Idle(_)) {
                // The client may have sent a request just now: it must read an end of stream, not
                // an error.
                return Ok(self.start_linger());
            }
            if self.sent_this_turn >= WRITE_BUDGET_BYTES || has_read {
                let has_more = (self.writable && !self.is_all_sent())
                    || (self.can_take_input() && (self.readable || self.decode_paused || self.has_unprocessed()));
                return Ok(if has_more { TurnResult::Requeue } else { TurnResult::Wait });
            }
            if !self.can_take_input() {
                return Ok(TurnResult::Wait);
            }
            if self.decode_paused {
                self.decode_paused = turn.dispatcher.resume_input(&mut self.connection, slot);
            } else if turn.input.is_some() || self.readable || self.has_unprocessed() {
                self.read(slot, turn)?;
            } else {
                return Ok(TurnResult::Wait);
            }
            has_read = true;
        }
    }

    /// Closes the client after its last reply, or lingers if input is unread, here or in the
    /// kernel. An immediate close would then make the client's kernel discard the reply (RFC 9112,
    /// section 9.6).
    fn finish(&mut self) -> TurnResult {
        if self.read_eof || !(self.readable || self.connection.needs_linger()) {
            self.close_tls();
            return TurnResult::Close;
        }
        self.start_linger()
    }

    /// Ends the output stream. The input is discarded from now on.
    fn start_linger(&mut self) -> TurnResult {
        self.close_tls();
        match self.stream.shutdown_write() {
            Ok(()) => {
                self.linger_bytes_left = Some(MAX_LINGER_BYTES);
                TurnResult::Linger
            }
            Err(_) => TurnResult::Close,
        }
    }

    /// Sends until the send buffer is empty, the socket is full, or `max_bytes` are sent.
    fn send(&mut self, max_bytes: usize) -> io::Result<()> {
        if self.is_tls() {
            return self.send_tls(max_bytes);
        }
        let mut sent = 0;
        while self.writable && sent < max_bytes {
            let (result, length) = match self.connection.send_buffer().contiguous() {
                Some([]) => break,
                Some(bytes) => {
                    let bytes = &bytes[..bytes.len().min(max_bytes - sent)];
                    (self.stream.send(bytes), bytes.len())
                }
                None => {
                    let mut slices = [IoSlice::new(&[]); MAX_IOVECS];
                    let count = self.connection.send_buffer().io_slices(&mut slices, max_bytes - sent);
                    let length = slices[..count].iter().map(|slice| slice.len()).sum();
                    // The send buffer is not empty, and its first chunk was rendered.
                    debug_assert!(length > 0);
                    (self.stream.send_vectored(&slices[..count]), length)
                }
            };
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => {
                    self.writable = taken == length;
                    self.connection.send_buffer().advance(taken);
                    sent += taken;
                    self.sent_this_turn += taken;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads once into the event loop's buffer, and decodes. The connection copies unused bytes
    /// only.
    fn read(&mut self, slot: usize, turn: &mut TurnContext<'_>) -> io::Result<()> {
        if !matches!(self.transport, Transport::Plain) {
            return self.read_tls(slot, turn);
        }
        if let Some(input) = turn.input.take() {
            self.decode_paused = turn.dispatcher.on_input(&mut self.connection, slot, input);
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut turn.scratch.read);
        let result = self.receive(&mut buffer);
        if let Ok(length @ 1..) = result {
            self.own_reads = if length >= SEGMENT_BYTES { 1 } else { self.own_reads.saturating_sub(1) };
            self.decode_paused = turn.dispatcher.on_input(&mut self.connection, slot, &buffer[..length]);
        }
        turn.scratch.read = buffer;
        result.map(|_| ())
    }

    /// Reads once before the turn, if the turn would certainly begin with that. Returns the length
    /// of the input that [`TurnContext::input`] must then have.
    pub(super) fn read_ahead(&mut self, buffer: &mut [u8]) -> usize {
        let begins_with_read = self.readable
            && self.own_reads == 0
            && !self.decode_paused
            && self.linger_bytes_left.is_none()
            && matches!(self.transport, Transport::Plain)
            && self.connection.send_buffer().is_empty()
            && !self.connection.has_unparsed()
            && self.connection.can_take_request();
        if !begins_with_read {
            return 0;
        }
        let result = self.receive(buffer);
        self.read_failed = result.is_err();
        let length = result.unwrap_or(0);
        if length == buffer.len() {
            // The rest of this pipeline, and the next one.
            self.own_reads = 2;
        }
        length
    }

    /// Reads once, and updates the readiness of the socket. Returns 0 if there was no input.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.stream.recv(buffer) {
            Ok(0) => {
                (self.readable, self.read_eof) = (false, true);
                Ok(0)
            }
            Ok(length) => {
                self.readable = length == buffer.len() || self.peer_closing;
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

    /// Reads and discards input. The client is closed at its end, and after [`MAX_LINGER_BYTES`].
    fn discard_input(&mut self, buffer: &mut [u8]) -> TurnResult {
        if self.readable {
            match (self.receive(buffer), &mut self.linger_bytes_left) {
                (Ok(length), Some(left)) if length < *left => *left -= length,
                _ => return TurnResult::Close,
            }
        }
        match (self.read_eof, self.readable) {
            (true, _) => TurnResult::Close,
            (_, true) => TurnResult::Requeue,
            _ => TurnResult::Wait,
        }
    }
}

/// Returns the kind of timeout to record for a client, if a timeout closes it.
fn timeout_kind(action: TimeoutAction, activity: Activity) -> Option<TimeoutKind> {
    match (action, activity) {
        (TimeoutAction::RespondTimeout, _) => Some(TimeoutKind::Request),
        (TimeoutAction::Reset, _) => Some(TimeoutKind::Reply),
        (TimeoutAction::Close, Activity::Idle(_)) => Some(TimeoutKind::Idle),
        (TimeoutAction::Close, Activity::Handshake) => Some(TimeoutKind::Request),
        _ => None,
    }
}
