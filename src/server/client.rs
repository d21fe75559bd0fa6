//! One client's socket, and its turn at the loop: send, decode, read, until there is nothing left to do or it has had
//! its share.
//!
//! Events are edge-triggered: `readable` and `writable` hold from the edge until the kernel has said "no more". A read
//! or write that is shorter than it could have been says so too (epoll(7)), which spares a hit its second `read`.
//!
//! The two system calls of a hit are made without the C library, for which each of them is a point at which a thread can be
//! cancelled: four atomic operations for nothing, 2 % of a hit.

use super::Scratch;
use super::timeouts::{Activity, ClientTimer, TimeoutAction, TimeoutConfig};
use crate::connection::Connection;
use crate::dispatch::Dispatcher;
use crate::metrics::TimeoutKind;
use crate::protocol::MAX_IOVECS;
use crate::types::Millis;
use mio::net::TcpStream;
use rustix::net::{RecvFlags, SendFlags};
use socket2::SockRef;
use std::io::{self, IoSlice, Write};
use std::net::Shutdown;
use std::time::Duration;

/// Bytes sent in one turn, after which others go first: a value of 64 KiB and what goes with it, some ten microseconds. When it was
/// 256 KiB, and one write could move more, a reader of 64 MiB made the p99.9 of hits four times as long.
const WRITE_BUDGET: usize = 96 * 1024;

/// Bytes that are read and thrown away from a client that is told to stop and goes on sending: more than most have under way,
/// as long as there is time.
const LINGER_BYTES: usize = 64 * 1024 * 1024;

/// What a turn works with beside the client itself.
pub(super) struct TurnContext<'a> {
    pub(super) dispatcher: Dispatcher<'a>,
    pub(super) scratch: &'a mut Scratch,
    pub(super) timeouts: TimeoutConfig,
    /// Closes the client if it has no request in progress.
    pub(super) closes_idle: bool,
}

/// What is to happen after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TurnResult {
    /// Nothing, until the socket or a completion wakes it.
    Wait,
    /// Another turn, after the others had theirs: no further edge will come for what is left.
    Requeue,
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
    peer_closing: bool,
    /// The client sends no more. It may still be reading.
    read_eof: bool,
    /// Decoding stopped because too much was open, or enough was done, not because bytes were missing.
    decode_paused: bool,
    /// Bytes that may still be thrown away.
    lingering: Option<usize>,
    /// It is here only to be told that it cannot be.
    pub(super) rejected: bool,
    /// How long it may take.
    pub(super) timer_state: ClientTimer,
    /// Bytes sent in this turn.
    sent_this_turn: usize,
    /// Whether its time is up, and this turn decides.
    timeout_pending: bool,
    /// Whether it is in the queue of those who get a turn.
    pub(super) in_ready_queue: bool,
    /// Where its deadline is among the timers.
    pub(super) timer: Option<u32>,
}

impl Client {
    pub(super) fn new(stream: TcpStream, connection: Connection, turned_away: bool, now: Millis) -> Client {
        let standing = if turned_away { Activity::Rejected } else { Activity::Idle(0) };
        Client {
            connection,
            stream,
            readable: false,
            // A new socket can be written to; its first edge says so too, later.
            writable: true,
            peer_closing: false,
            read_eof: false,
            decode_paused: false,
            lingering: None,
            rejected: turned_away,
            timer_state: ClientTimer::new(standing, now),
            sent_this_turn: 0,
            timeout_pending: false,
            in_ready_queue: false,
            timer: None,
        }
    }

    /// Takes note of what the kernel told.
    pub(super) fn on_event(&mut self, event: &mio::event::Event) {
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.writable |= event.is_writable();
        self.peer_closing |= event.is_read_closed() || event.is_error();
    }

    /// One turn. `slot` is the client's place, for those who answer it later.
    pub(super) fn turn(&mut self, slot: usize, turn: &mut TurnContext<'_>) -> TurnResult {
        if self.lingering.is_some() {
            let judged = std::mem::take(&mut self.timeout_pending)
                && self.timer_state.on_deadline(turn.timeouts, turn.dispatcher.now) == TimeoutAction::Close;
            return if judged { TurnResult::Close } else { self.discard_input(&mut turn.scratch.read) };
        }
        self.sent_this_turn = 0;
        self.connection.send_buffer().lend_tail(&mut turn.scratch.write);
        let next = self.drive(slot, turn).unwrap_or(TurnResult::Close);
        self.connection.send_buffer().reclaim_tail(&mut turn.scratch.write);
        let (now, standing) = (turn.dispatcher.now, self.activity());
        self.timer_state.update(standing, self.sent_this_turn, now);
        if next == TurnResult::Close || !std::mem::take(&mut self.timeout_pending) {
            return next;
        }
        let verdict = self.timer_state.on_deadline(turn.timeouts, now);
        if let Some(timed_out) =
            timeout_kind(verdict, standing).filter(|_| !turn.dispatcher.context.policy.announce_close)
        {
            turn.dispatcher.context.reply.recorder.metrics.timeouts[timed_out as usize] += 1;
        }
        match verdict {
            TimeoutAction::Keep => next,
            TimeoutAction::RespondTimeout => {
                let before = self.connection.request_count();
                self.connection.time_out_request(&mut turn.dispatcher.context.reply);
                // One that has not come whole, and has its answer.
                turn.dispatcher.context.reply.recorder.metrics.requests +=
                    self.connection.request_count().saturating_sub(before);
                TurnResult::Requeue
            }
            TimeoutAction::Close => TurnResult::Close,
            TimeoutAction::Reset => {
                // If that fails, the kernel will give up some time.
                let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
                TurnResult::Close
            }
        }
    }

    /// Its time is up. What it does in its next turn decides: something may have come that the loop has not been told of, and that
    /// the kernel has some room, it tells only once there is a lot of it.
    pub(super) fn begin_timeout_check(&mut self) {
        (self.readable, self.writable, self.timeout_pending) = (true, true, true);
    }

    /// What it is at now.
    fn activity(&mut self) -> Activity {
        if self.lingering.is_some() {
            if self.rejected { Activity::RejectedLinger } else { Activity::Linger }
        } else if !self.connection.send_buffer().is_empty() {
            Activity::WritingReply
        } else if self.rejected {
            Activity::Rejected
        } else if self.readable
            || self.decode_paused
            || !self.connection.is_flushed()
            || !self.connection.can_take_request()
        {
            Activity::Processing
        } else if let Some(request) = self.connection.partial_request() {
            Activity::ReadingRequest(request)
        } else {
            Activity::Idle(self.connection.request_count())
        }
    }

    fn drive(&mut self, slot: usize, turn: &mut TurnContext<'_>) -> io::Result<TurnResult> {
        // One read in each turn, or going on with what was read: some hundred requests, a tenth of a millisecond. With two of
        // a thousand, others waited ten times as long for a hit beside a client that floods as without.
        let mut has_read = false;
        loop {
            self.send(WRITE_BUDGET.saturating_sub(self.sent_this_turn))?;
            let sent = self.sent_this_turn;
            if self.connection.is_flushed() && (self.connection.is_closing() || self.read_eof) {
                return Ok(self.finish());
            }
            if turn.closes_idle && matches!(self.activity(), Activity::Idle(_)) {
                // It may have sent something by now: it shall see the end, and not an error.
                return Ok(self.start_linger());
            }
            if sent >= WRITE_BUDGET || has_read {
                let more = (self.writable && !self.connection.send_buffer().is_empty())
                    || (self.connection.can_take_request() && (self.readable || self.decode_paused));
                return Ok(if more { TurnResult::Requeue } else { TurnResult::Wait });
            }
            if !self.connection.can_take_request() {
                return Ok(TurnResult::Wait);
            }
            if self.decode_paused {
                self.decode_paused = turn.dispatcher.resume_input(&mut self.connection, slot);
            } else if self.readable {
                self.read(slot, turn)?;
            } else {
                return Ok(TurnResult::Wait);
            }
            has_read = true;
        }
    }

    /// Everything is sent that will be. With bytes unread, here or in the kernel, closing at once would make the client's
    /// kernel throw away what it has not read yet (RFC 9112, section 9.6).
    fn finish(&mut self) -> TurnResult {
        if self.read_eof || !(self.readable || self.connection.needs_linger()) {
            return TurnResult::Close;
        }
        self.start_linger()
    }

    /// Tells the client that nothing more comes, and throws away what it still sends.
    fn start_linger(&mut self) -> TurnResult {
        match self.stream.shutdown(Shutdown::Write) {
            Ok(()) => {
                self.lingering = Some(LINGER_BYTES);
                TurnResult::Linger
            }
            Err(_) => TurnResult::Close,
        }
    }

    /// Sends until all is sent, the socket is full, or `most` bytes are over.
    fn send(&mut self, most: usize) -> io::Result<()> {
        let mut sent = 0;
        while self.writable && sent < most {
            let (result, length) = match self.connection.send_buffer().contiguous() {
                Some([]) => break,
                Some(bytes) => {
                    let bytes = &bytes[..bytes.len().min(most - sent)];
                    (write(&self.stream, bytes), bytes.len())
                }
                None => {
                    let mut slices = [IoSlice::new(&[]); MAX_IOVECS];
                    let count = self.connection.send_buffer().io_slices(&mut slices, most - sent);
                    let length = slices[..count].iter().map(|slice| slice.len()).sum();
                    // The queue is not empty, nothing in it is, and the first is rendered.
                    debug_assert!(length > 0);
                    (self.stream.write_vectored(&slices[..count]), length)
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

    /// Reads once into the loop's buffer; keeps only what could not be used.
    fn read(&mut self, slot: usize, turn: &mut TurnContext<'_>) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut turn.scratch.read);
        let result = self.receive(&mut buffer);
        if let Ok(length @ 1..) = result {
            self.decode_paused = turn.dispatcher.on_input(&mut self.connection, slot, &buffer[..length]);
        }
        turn.scratch.read = buffer;
        result.map(|_| ())
    }

    /// One read, and what its outcome says about the socket.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match read(&self.stream, buffer) {
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

    /// Reads what nobody wants, until the client closes, or has had its bytes.
    fn discard_input(&mut self, buffer: &mut [u8]) -> TurnResult {
        if self.readable {
            match (self.receive(buffer), &mut self.lingering) {
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

/// Reads what has come, as much as there is room for.
fn read(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::net::recv(stream, buffer, RecvFlags::empty())?.0)
}

/// Writes as much as the socket takes.
fn write(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(stream, bytes, SendFlags::NOSIGNAL)?)
}

/// What a client was too slow for, if that is why it is closed.
fn timeout_kind(verdict: TimeoutAction, standing: Activity) -> Option<TimeoutKind> {
    match (verdict, standing) {
        (TimeoutAction::RespondTimeout, _) => Some(TimeoutKind::Request),
        (TimeoutAction::Reset, _) => Some(TimeoutKind::Reply),
        (TimeoutAction::Close, Activity::Idle(_)) => Some(TimeoutKind::Idle),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache;
    use crate::connection::{DecodeContext, ReplyContext};
    use crate::dispatch::MAX_STEPS_PER_TURN;
    use crate::metrics::{MetricsRegistry, Recorder, WorkerSlot};
    use crate::protocol::http::{HeadDecoder, Policy, ResponseDate};
    use crate::read_through::{Lookup, ReadThrough};
    use crate::types::{Completion, FetchedValue, RequestId};
    use crate::value::Value;
    use std::time::SystemTime;

    const TIMEOUTS: TimeoutConfig = TimeoutConfig { request: 10, idle: 1_000_000, write: 1_000_000, linger: 1_000_000 };

    /// A client all of whose bytes have come, and what its turns need.
    struct Scene {
        client: Client,
        peer: std::net::TcpStream,
        read_through: ReadThrough,
        scratch: Scratch,
    }

    impl Scene {
        fn new(bytes: &[u8]) -> Scene {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            SockRef::from(&listener).set_recv_buffer_size(1 << 20).expect("an option can be set");
            let mut peer =
                std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("it listens");
            let (stream, _) = listener.accept().expect("a connection");
            peer.write_all(bytes).expect("the kernel takes it");
            // All of it, or as much as this system's window lets through before somebody reads: more than a turn's worth.
            let (mut seen, begun) = (vec![0; bytes.len()], std::time::Instant::now());
            while stream.peek(&mut seen).expect("it is connected") < bytes.len() && begun.elapsed().as_millis() < 300 {}
            stream.set_nonblocking(true).expect("an option can be set");
            let mut client = Client::new(TcpStream::from_std(stream), Connection::new(1, 0), false, 0);
            client.readable = true;
            let mut read_through =
                ReadThrough::new(cache::Limits { entries: 1, bytes: usize::MAX, stale: 0 }, 1_000_000, 1000);
            // The key "a" is cached.
            let nobody = RequestId { slot: 0, connection_id: 0, sequence: 0, part: 0 };
            let Lookup::Fetch(job) = read_through.get(b"a", true, nobody, 0) else { panic!("it is in memory") };
            let fetched = FetchedValue { value: Value::new(vec![b'x']), ttl: None };
            read_through.complete(Completion { fetch_id: job.fetch_id, result: Ok(Some(fetched)) }, 0, |_, _| ());
            Scene { client, peer, read_through, scratch: Scratch { read: vec![0; 64 * 1024], write: Vec::new() } }
        }

        fn turn(&mut self, now: Millis) -> TurnResult {
            let date = ResponseDate::at(SystemTime::UNIX_EPOCH);
            let reply = ReplyContext { date: &date, recorder: &mut Recorder::default() };
            let dispatcher = Dispatcher {
                read_through: &mut self.read_through,
                jobs: &mut Vec::new(),
                context: DecodeContext { policy: &Policy::default(), head_decoder: &mut HeadDecoder::new(), reply },
                registry: &MetricsRegistry::default(),
                worker_slot: &WorkerSlot::default(),
                now,
            };
            let (scratch, timeouts) = (&mut self.scratch, TIMEOUTS);
            self.client.turn(0, &mut TurnContext { dispatcher, scratch, timeouts, closes_idle: false })
        }
    }

    /// One client must not keep the loop from the others, however much it has sent: it goes to the end of the queue, and comes
    /// to its end all the same.
    #[test]
    fn a_turn_is_bounded_and_leads_to_another() {
        const PINGS: u64 = 20_000;
        let mut scene = Scene::new(&b"*1\r\n$4\r\nPING\r\n".repeat(PINGS as usize));
        let mut turns = 0;
        loop {
            let before = scene.client.connection.request_count();
            let next = scene.turn(0);
            let done = scene.client.connection.request_count() - before;
            assert!(done <= MAX_STEPS_PER_TURN as u64, "{done} requests in one turn");
            assert!(turns > 0 || next == TurnResult::Requeue, "{next:?} with more to read");
            turns += 1;
            match next {
                TurnResult::Requeue => {}
                TurnResult::Wait if scene.client.connection.request_count() == PINGS => break,
                // The rest is on its way, and the kernel would tell.
                TurnResult::Wait => scene.client.readable = true,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(scene.client.activity(), Activity::Idle(PINGS));
    }

    /// What has come and waits for further turns is the proxy's time. Only what has not come is the client's.
    #[test]
    fn who_has_sent_all_is_not_given_up() {
        let keys = "$1\r\na\r\n".repeat(5000);
        let command = |count: usize| format!("*{count}\r\n$6\r\nEXISTS\r\n{keys}");
        let chunked = "GET /raw/a HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n";
        let body = format!("3e8\r\n{}\r\n", "x".repeat(1000)).repeat(180);
        for (bytes, whole) in [
            (command(5001), true),
            (command(5002), false),
            (format!("{chunked}{body}0\r\n\r\n"), true),
            (format!("{chunked}{body}"), false),
        ] {
            let mut scene = Scene::new(bytes.as_bytes());
            let (mut now, mut turns) = (0, 0);
            // Each turn comes when all of its time is over, and the first has to show that something has come at all.
            let given_up = loop {
                let next = scene.turn(now);
                now += TIMEOUTS.request;
                scene.client.begin_timeout_check();
                turns += 1;
                assert!(turns < 100, "it comes to no end");
                if scene.client.connection.is_closing() {
                    break true;
                }
                if next == TurnResult::Wait && turns > 20 {
                    break false;
                }
            };
            assert_eq!(given_up, !whole, "{:?} after {turns} turns", &bytes[..20]);
            drop(scene.peer);
        }
    }
}
