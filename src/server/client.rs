//! One client's socket, and its turn at the loop: send, decode, read, until there is nothing left to do or it has had
//! its share.
//!
//! Events are edge-triggered: `readable` and `writable` hold from the edge until the kernel has said "no more". A read
//! or write that is shorter than it could have been says so too (epoll(7)), which spares a hit its second `read`.
//!
//! The two system calls of a hit are made without the C library, for which each of them is a point at which a thread can be
//! cancelled: four atomic operations for nothing, 2 % of a hit.

use super::Scratch;
use super::patience::{Limits, Patience, Standing, Verdict};
use crate::connection::Connection;
use crate::figures::TimedOut;
use crate::protocol::WRITE_SLICES;
use crate::request::Millis;
use crate::serve::Service;
use mio::net::TcpStream;
use rustix::net::{RecvFlags, SendFlags};
use socket2::SockRef;
use std::io::{self, IoSlice, Write};
use std::net::Shutdown;
use std::time::Duration;

/// Bytes sent in one turn, after which others go first: a value of 64 KiB and what goes with it, some ten microseconds. When it was
/// 256 KiB, and one write could move more, a reader of 64 MiB made the p99.9 of hits four times as long.
const SENT_PER_TURN: usize = 96 * 1024;

/// Bytes that are read and thrown away from a client that is told to stop and goes on sending: more than most have under way,
/// as long as there is time.
const LINGER_BYTES: usize = 64 * 1024 * 1024;

/// What a turn works with beside the client itself.
pub(super) struct Turn<'a> {
    pub(super) service: Service<'a>,
    pub(super) scratch: &'a mut Scratch,
    /// How long clients may take.
    pub(super) limits: Limits,
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
    /// It is here only to be told that it cannot be.
    pub(super) turned_away: bool,
    /// How long it may take.
    pub(super) patience: Patience,
    /// Bytes sent in this turn.
    sent: usize,
    /// Whether its time is up, and this turn decides.
    on_trial: bool,
    /// Whether it is in the queue of those who get a turn.
    pub(super) queued: bool,
    /// Where its deadline is among the timers.
    pub(super) timer: Option<u32>,
}

impl Client {
    pub(super) fn new(stream: TcpStream, connection: Connection, turned_away: bool, now: Millis) -> Client {
        let standing = if turned_away { Standing::TurnedAway } else { Standing::Idle(0) };
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
            turned_away,
            patience: Patience::new(standing, now),
            sent: 0,
            on_trial: false,
            queued: false,
            timer: None,
        }
    }

    /// Whether its timer would go off too late, or not at all.
    pub(super) fn wants_timer(&self, limits: Limits) -> bool {
        self.patience.armed > self.patience.deadline(limits)
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
            let judged = std::mem::take(&mut self.on_trial)
                && self.patience.judge(turn.limits, turn.service.now) == Verdict::Close;
            return if judged { Next::Close } else { self.throw_away(&mut turn.scratch.read) };
        }
        self.sent = 0;
        self.connection.outgoing().lend(&mut turn.scratch.write);
        let next = self.work(slot, turn).unwrap_or(Next::Close);
        self.connection.outgoing().take_back(&mut turn.scratch.write);
        let (now, standing) = (turn.service.now, self.standing());
        self.patience.note(standing, self.sent, now);
        if next == Next::Close || !std::mem::take(&mut self.on_trial) {
            return next;
        }
        let verdict = self.patience.judge(turn.limits, now);
        if let Some(timed_out) = timed_out(verdict, standing).filter(|_| !turn.service.rules.stopping) {
            turn.service.ledger.figures.timed_out[timed_out as usize] += 1;
        }
        match verdict {
            Verdict::Stay => next,
            Verdict::GiveUp => {
                let before = self.connection.requests();
                self.connection.give_up(turn.service.date, turn.service.ledger);
                // One that has not come whole, and has its answer.
                turn.service.ledger.figures.requests += self.connection.requests().saturating_sub(before);
                Next::Again
            }
            Verdict::Close => Next::Close,
            Verdict::Reset => {
                // If that fails, the kernel will give up some time.
                let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
                Next::Close
            }
        }
    }

    /// Its time is up. What it does in its next turn decides: something may have come that the loop has not been told of, and that
    /// the kernel has some room, it tells only once there is a lot of it.
    pub(super) fn put_on_trial(&mut self) {
        (self.readable, self.writable, self.on_trial) = (true, true, true);
    }

    /// What it is at now.
    fn standing(&mut self) -> Standing {
        if self.lingering.is_some() {
            if self.turned_away { Standing::SentAway } else { Standing::Leaving }
        } else if !self.connection.outgoing().is_empty() {
            Standing::Taking
        } else if self.turned_away {
            Standing::TurnedAway
        } else if self.readable || self.held_up || !self.connection.is_settled() || !self.connection.takes_requests() {
            Standing::Served
        } else if let Some(request) = self.connection.begun_request() {
            Standing::Asking(request)
        } else {
            Standing::Idle(self.connection.requests())
        }
    }

    fn work(&mut self, slot: usize, turn: &mut Turn<'_>) -> io::Result<Next> {
        // One read in each turn, or going on with what was read: some hundred requests, a tenth of a millisecond. With two of
        // a thousand, others waited ten times as long for a hit beside a client that floods as without.
        let mut has_read = false;
        loop {
            self.send(SENT_PER_TURN.saturating_sub(self.sent))?;
            let sent = self.sent;
            if self.connection.is_settled() && (self.connection.has_ended() || self.end_read) {
                return Ok(self.end());
            }
            if turn.service.rules.hurrying && matches!(self.standing(), Standing::Idle(_)) {
                // It may have sent something by now: it shall see the end, and not an error.
                return Ok(self.say_goodbye());
            }
            if sent >= SENT_PER_TURN || has_read {
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
            has_read = true;
        }
    }

    /// Everything is sent that will be. With bytes unread, here or in the kernel, closing at once would make the client's
    /// kernel throw away what it has not read yet (RFC 9112, section 9.6).
    fn end(&mut self) -> Next {
        if self.end_read || !(self.readable || self.connection.leaves_unread()) {
            return Next::Close;
        }
        self.say_goodbye()
    }

    /// Tells the client that nothing more comes, and throws away what it still sends.
    fn say_goodbye(&mut self) -> Next {
        match self.stream.shutdown(Shutdown::Write) {
            Ok(()) => {
                self.lingering = Some(LINGER_BYTES);
                Next::Linger
            }
            Err(_) => Next::Close,
        }
    }

    /// Sends until all is sent, the socket is full, or `most` bytes are over.
    fn send(&mut self, most: usize) -> io::Result<()> {
        let mut sent = 0;
        while self.writable && sent < most {
            let (result, length) = match self.connection.outgoing().short() {
                Some([]) => break,
                Some(bytes) => {
                    let bytes = &bytes[..bytes.len().min(most - sent)];
                    (write(&self.stream, bytes), bytes.len())
                }
                None => {
                    let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
                    let count = self.connection.outgoing().slices(&mut slices, most - sent);
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
                    self.connection.outgoing().advance(taken);
                    sent += taken;
                    self.sent += taken;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
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
        match read(&self.stream, buffer) {
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
        if self.readable {
            match (self.receive(buffer), &mut self.lingering) {
                (Ok(length), Some(left)) if length < *left => *left -= length,
                _ => return Next::Close,
            }
        }
        match (self.end_read, self.readable) {
            (true, _) => Next::Close,
            (_, true) => Next::Again,
            _ => Next::Wait,
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
fn timed_out(verdict: Verdict, standing: Standing) -> Option<TimedOut> {
    match (verdict, standing) {
        (Verdict::GiveUp, _) => Some(TimedOut::Request),
        (Verdict::Reset, _) => Some(TimedOut::Reply),
        (Verdict::Close, Standing::Idle(_)) => Some(TimedOut::Idle),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache;
    use crate::figures::{Ledger, Register};
    use crate::protocol::http::{Date, Heads, Rules};
    use crate::proxy::{Decision, Proxy};
    use crate::request::{Completion, Fetched, Value, Waiter};
    use crate::serve::STEPS_AT_ONCE;
    use std::time::SystemTime;

    const LIMITS: Limits = Limits { client: 10, idle: 1_000_000, taking: 1_000_000, leaving: 1_000_000 };

    /// A client all of whose bytes have come, and what its turns need.
    struct Scene {
        client: Client,
        peer: std::net::TcpStream,
        proxy: Proxy,
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
            let mut proxy = Proxy::new(cache::Limits { entries: 1, bytes: usize::MAX, stale: 0 }, 1_000_000, 1000);
            // The key "a" is cached.
            let nobody = Waiter { slot: 0, generation: 0, sequence: 0, part: 0 };
            let Decision::Fetch(job) = proxy.get(b"a", true, nobody, 0) else { panic!("it is in memory") };
            let fetched = Fetched { value: Value::new(vec![b'x']), remaining: None };
            proxy.complete(Completion { flight: job.flight, result: Ok(Some(fetched)) }, 0, |_, _| ());
            Scene { client, peer, proxy, scratch: Scratch { read: vec![0; 64 * 1024], write: Vec::new() } }
        }

        fn turn(&mut self, now: Millis) -> Next {
            let (mut jobs, mut heads, mut ledger) = (Vec::new(), Heads::new(), Ledger::default());
            let (rules, register, date) = (Rules::default(), Register::default(), Date::at(SystemTime::UNIX_EPOCH));
            let (proxy, jobs, heads, ledger) = (&mut self.proxy, &mut jobs, &mut heads, &mut ledger);
            let (rules, register, date) = (&rules, &register, &date);
            let service = Service { proxy, jobs, heads, rules, date, ledger, register, number: 0, now };
            self.client.turn(0, &mut Turn { service, scratch: &mut self.scratch, limits: LIMITS })
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
            let before = scene.client.connection.requests();
            let next = scene.turn(0);
            let done = scene.client.connection.requests() - before;
            assert!(done <= STEPS_AT_ONCE as u64, "{done} requests in one turn");
            assert!(turns > 0 || next == Next::Again, "{next:?} with more to read");
            turns += 1;
            match next {
                Next::Again => {}
                Next::Wait if scene.client.connection.requests() == PINGS => break,
                // The rest is on its way, and the kernel would tell.
                Next::Wait => scene.client.readable = true,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(scene.client.standing(), Standing::Idle(PINGS));
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
                now += LIMITS.client;
                scene.client.put_on_trial();
                turns += 1;
                assert!(turns < 100, "it comes to no end");
                if scene.client.connection.has_ended() {
                    break true;
                }
                if next == Next::Wait && turns > 20 {
                    break false;
                }
            };
            assert_eq!(given_up, !whole, "{:?} after {turns} turns", &bytes[..20]);
            drop(scene.peer);
        }
    }
}
