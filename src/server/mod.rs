//! The event loop: poll, listener, streams, timers, the clock. The only place that knows `mio`.
//!
//! A tick, in this order:
//!
//! ```text
//!     poll             sleep until a socket, news or a deadline
//!     note             what the kernel told, on each client; nothing is closed or reused yet
//!     accept           new clients, a bounded number
//!     news             changes in Redis end what they concern, a bounded number; completions are stored, their waiters'
//!                      replies encoded
//!     due              late waiters, expired entries, timers; a bounded number of each. Before the turns: who is late gets
//!                      his, and one look at the clock behind them ends the tick
//!     turns            every client with something to do gets one: send, decode, look up, read
//!     submit           the turns' fetches, all under one lock; refused ones are answered
//! ```
//!
//! Whoever has more to do than one turn allows goes to the end of the queue and the next poll does not sleep.

mod client;
mod clock;
mod listen;
mod patience;
mod places;
mod stopping;
mod turns;
mod watch;

pub use listen::{bind, check_handing_over, check_nobody_listens};
pub use places::{NoPlace, Places};
pub use stopping::Stopper;
pub use watch::{EVERY as LOOK_EVERY, Watch};

use crate::backend::{Pool, Settings};
use crate::cache::{Deadlines, Limits};
use crate::config::Config;
use crate::connection::Connection;
use crate::figures::{Ledger, Register};
use crate::journal::Journal;
use crate::protocol::http::{Date, Heads, Rules};
use crate::proxy::Proxy;
use crate::request::{Change, Completion, Failure, Job, Millis, Reply, Waiter};
use crate::serve::update_figures;
use client::Client;
use clock::Clock;
use listen::{Accepted, Acceptor};
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use stopping::Stopping;

const LISTENER: Token = Token(usize::MAX - 1);
const WAKER: Token = Token(usize::MAX - 2);

/// Events taken from the kernel at a time.
const EVENTS_PER_TICK: usize = 1024;

/// Connections accepted in one tick, so that a storm of them does not hold up those who are there.
const ACCEPTS_PER_TICK: usize = 64;

/// Entries removed in one tick that are kept no longer or too much for `CACHE_BYTES`, and as many late flights answered: some ten
/// microseconds of work. To it come as many as the tick stores, so that removing keeps up with storing, and one for each turn that it
/// gives, a part of a turn's work, so that it comes to an end beside many clients too. With 256, hits noticed when many expired.
pub const SWEEP_PER_TICK: usize = 32;

/// Timers looked at in one tick: more than clients are accepted in one. Most go off too early and are only set again.
const TIMERS_PER_TICK: usize = 256;

/// Clients that a loop reserves room for, if so many may come. What is not used of it is address space and no memory, because nobody
/// has touched it; but a slab that doubles leaves its old memory behind, which the allocator gives back only some time.
const RESERVED_CLIENTS: usize = 64 * 1024;

/// Changes in Redis that are followed in one tick: some hundred microseconds of work.
const CHANGES_PER_TICK: usize = 1024;

/// The buffer that all reads go to: one usual socket buffer's worth.
const READ_BYTES: usize = 64 * 1024;

/// The buffer lent to each turn. It grows when a turn's replies need more, and is cut back to this.
const WRITE_BYTES: usize = 64 * 1024;

/// Bytes of the access log that are handed over in the midst of a tick.
const LOG_BYTES: usize = 64 * 1024;

/// The number of the next connection, of all loops: Redis clients are told theirs (`CLIENT ID`), and it is unique.
static GENERATIONS: AtomicU64 = AtomicU64::new(1);

/// Buffers of the loop, shared by all clients, one at a time.
struct Scratch {
    read: Vec<u8>,
    write: Vec<u8>,
}

/// The loop's books, and where the lines of the access log go.
struct Books {
    ledger: Ledger,
    access_log: Option<Journal>,
}

impl Books {
    /// Hands the lines of the access log over, if they are more than so many bytes.
    fn hand_lines_over(&mut self, most: usize) {
        if let Some(journal) = &self.access_log {
            hand_lines_over(&mut self.ledger, journal, most);
        }
    }
}

fn hand_lines_over(ledger: &mut Ledger, journal: &Journal, most: usize) {
    if let Some(lines) = ledger.lines().filter(|lines| lines.len() > most) {
        journal.add_requests(lines);
        lines.clear();
        lines.shrink_to(2 * LOG_BYTES);
    }
}

/// One complete proxy: loop, clients, cache, pool.
pub struct Server {
    poll: Poll,
    stopper: Stopper,
    stopping: Option<Stopping>,
    acceptor: Acceptor,
    places: Places,
    clients: Slab<Client>,
    /// Clients that get a turn, in order.
    queue: VecDeque<usize>,
    /// One for each client: until when it is to have done what it is at.
    timers: Deadlines,
    patience: patience::Limits,
    rules: Rules,
    proxy: Proxy,
    pool: Pool,
    /// Fetches begun in this tick.
    jobs: Vec<Job>,
    completions: Vec<Completion>,
    /// How many completions this tick has had, most of which were stored.
    stored: usize,
    changes: Vec<Change>,
    scratch: Scratch,
    /// What request heads are decoded with.
    heads: Heads,
    books: Books,
    /// What loops show each other, and this one's number among them.
    register: Arc<Register>,
    number: usize,
    clock: Clock,
    /// More is due than one tick may do.
    more_due: bool,
    /// More changes wait than one tick may follow: nobody wakes the loop for them.
    more_news: bool,
}

impl Server {
    /// A proxy on a listening socket that does not block, with room for so many clients, the one of that number in the
    /// register. Its helper threads start at once.
    pub fn new(
        listener: std::net::TcpListener,
        config: &Config,
        places: Places,
        register: Arc<Register>,
        number: usize,
    ) -> io::Result<Server> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let mut acceptor = Acceptor::new(listener, config.share_port);
        acceptor.register(poll.registry(), LISTENER)?;
        let settings = Settings {
            host: config.redis_host.clone(),
            port: config.redis_port,
            username: config.redis_username.clone(),
            password: config.redis_password.clone(),
            database: i64::from(config.redis_db),
            connections: config.redis_connections,
            timeout: config.redis_timeout,
            cache_ttl: config.cache_ttl,
            tracking: config.redis_tracking,
            max_value_bytes: config.max_value_bytes,
        };
        let seat = register.seats().get(number).map(Arc::clone).unwrap_or_default();
        let wake = Arc::clone(&waker);
        let pool = Pool::start(&settings, seat, move || {
            // Should the eventfd's counter ever be full, mio resets it.
            if let Err(error) = wake.wake() {
                log::error!("cannot wake the event loop, replies from Redis may be late: {error}");
            }
        })?;
        let limits = Limits {
            entries: config.cache_size,
            bytes: config.cache_bytes.unwrap_or(usize::MAX),
            stale: config.stale_if_error.as_millis() as Millis,
        };
        let ttl = config.cache_ttl.as_millis() as Millis;
        let patience = config.redis_timeout.as_millis() as Millis;
        Ok(Server {
            poll,
            stopper: Stopper::new(waker),
            stopping: None,
            acceptor,
            clients: Slab::with_capacity(places.most().div_ceil(config.workers).min(RESERVED_CLIENTS)),
            places,
            queue: VecDeque::new(),
            timers: Deadlines::new(),
            patience: patience::Limits {
                client: config.client_timeout.as_millis() as Millis,
                idle: config.client_idle_timeout.as_millis() as Millis,
                taking: config.client_idle_timeout.as_millis() as Millis,
                leaving: patience::LINGER,
            },
            rules: Rules { hosts: config.allowed_hosts.clone(), admin: config.admin, ..Rules::default() },
            proxy: Proxy::new(limits, ttl, patience),
            pool,
            jobs: Vec::new(),
            completions: Vec::new(),
            stored: 0,
            changes: Vec::new(),
            scratch: Scratch { read: vec![0; READ_BYTES], write: Vec::with_capacity(WRITE_BYTES) },
            heads: Heads::new(),
            books: Books { ledger: Ledger::default(), access_log: None },
            register,
            number,
            clock: Clock::new(),
            more_due: false,
            more_news: false,
        })
    }

    /// Has each request logged.
    pub fn log_requests(&mut self, journal: Journal) {
        self.books = Books { ledger: Ledger::new(true), access_log: Some(journal) };
    }

    /// A handle that ends the loop.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Runs until stopped. An error means that the kernel refuses to poll: nothing can go on.
    pub fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_PER_TICK);
        while !self.is_over() {
            match self.poll.poll(&mut events, self.sleep()) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            self.begin_tick();
            self.note(&events);
            self.accept();
            self.take_news();
            self.do_what_is_due();
            self.give_turns();
            self.submit_jobs();
            self.end_tick();
        }
        // Those whom the grace was too short for.
        self.clients.iter_mut().for_each(|(_, client)| client.connection.abort(&mut self.books.ledger));
        self.books.hand_lines_over(0);
        Ok(())
    }

    fn begin_tick(&mut self) {
        if self.clock.tick() {
            self.books.ledger.set_date(|| self.clock.date.in_log());
        }
        self.books.ledger.tick(self.clock.micros);
        self.stop_if_told();
    }

    fn end_tick(&mut self) {
        // What the last turns have answered, or what was answered outside of them.
        let now = self.clock.micros();
        self.books.ledger.settle(now);
        self.books.ledger.figures.tick_times.observe(now - self.clock.micros, 1);
        self.books.hand_lines_over(0);
        // Whoever calls wants to see that the loop turns, and how it does.
        if let Some(seat) = self.register.seats().get(self.number)
            && !seat.has_answered()
        {
            self.books.ledger.figures.clients = self.clients.len() - self.places.turned_away();
            update_figures(&mut self.books.ledger, &self.proxy, self.clock.now);
            seat.show(&self.books.ledger.figures);
        }
    }

    /// How long the next poll may sleep; `None` for as long as nothing happens.
    fn sleep(&self) -> Option<Duration> {
        if !self.queue.is_empty() || self.more_due || self.more_news {
            return Some(Duration::ZERO);
        }
        let accept = self.acceptor.due().filter(|_| self.places.has_room());
        let timer = self.timers.first().map(|(deadline, _)| deadline);
        let stop = self.stopping.as_ref().map(|stopping| stopping.next_deadline(self.clock.now));
        // Asked in each tick: a chain of iterators over the four took as long as the rest of this.
        let or_never = |deadline: Option<Millis>| deadline.unwrap_or(Millis::MAX);
        let next = or_never(accept).min(or_never(timer)).min(or_never(stop)).min(or_never(self.proxy.next_deadline()));
        (next != Millis::MAX).then(|| Duration::from_millis(next.saturating_sub(self.clock.now)))
    }

    fn note(&mut self, events: &Events) {
        for event in events {
            match event.token() {
                LISTENER => self.acceptor.notify(),
                // News and the stop flag are looked at in every tick.
                WAKER => {}
                Token(slot) => {
                    if let Some(client) = self.clients.get_mut(slot) {
                        client.note(event);
                        enqueue(&mut self.queue, client, slot);
                    }
                }
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_TICK {
            if !self.places.has_room() {
                return;
            }
            match self.acceptor.accept(self.clock.now) {
                Accepted::Stream(stream, address) => self.welcome(stream, address.ip()),
                Accepted::Nothing => {}
                Accepted::Stop => return,
            }
        }
    }

    fn welcome(&mut self, stream: mio::net::TcpStream, address: IpAddr) {
        // Replies are written whole: waiting to fill a segment would only delay them.
        if let Err(error) = stream.set_nodelay(true) {
            log::debug!("client connection closed before its first request: {error}");
            return;
        }
        let turned_away = self.places.take();
        let figures = &mut self.books.ledger.figures;
        let mut connection = if turned_away {
            figures.rejected += 1;
            Connection::one_too_many()
        } else {
            figures.connections += 1;
            let generation = GENERATIONS.fetch_add(1, Ordering::Relaxed);
            Connection::new(generation, self.register.settings.database)
        };
        if self.books.ledger.logs_requests() {
            connection.set_address(address.to_canonical().to_string());
        }
        let slot = self.clients.insert(Client::new(stream, connection, turned_away, self.clock.now));
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(self.clients[slot].stream(), Token(slot), interest) {
            log::error!("cannot register a client connection with epoll, closing it: {error}");
            self.close(slot);
            return;
        }
        self.set_timer(slot);
    }

    /// Changes first: what comes back at the same time and is known to be old need not be stored.
    fn take_news(&mut self) {
        self.more_news = self.pool.take_news(&mut self.completions, &mut self.changes, CHANGES_PER_TICK);
        self.stored = self.completions.len();
        if self.completions.is_empty() && self.changes.is_empty() {
            return;
        }
        for change in self.changes.drain(..) {
            self.proxy.change(&change, self.clock.now);
        }
        for completion in self.completions.drain(..) {
            self.proxy.complete(completion, self.clock.now, |waiter, reply| {
                answer(&mut self.clients, &mut self.queue, (waiter, reply), &self.clock.date, &mut self.books);
            });
        }
    }

    fn close(&mut self, slot: usize) {
        self.stop_timer(slot);
        // Dropping the stream closes it, and the kernel forgets to watch it.
        let mut client = self.clients.remove(slot);
        client.connection.abort(&mut self.books.ledger);
        self.places.leave(client.turned_away);
        self.acceptor.resume(self.clock.now);
    }

    fn submit_jobs(&mut self) {
        self.pool.submit(&mut self.jobs);
        for job in self.jobs.drain(..) {
            let refused = Completion { flight: job.flight, result: Err(Failure::QueueFull) };
            self.proxy.complete(refused, self.clock.now, |waiter, reply| {
                answer(&mut self.clients, &mut self.queue, (waiter, reply), &self.clock.date, &mut self.books);
            });
        }
    }

    fn do_what_is_due(&mut self) {
        let now = self.clock.now;
        let budget = SWEEP_PER_TICK + self.stored + self.queue.len();
        self.more_due = self.proxy.tick(now, budget, |waiter, reply| {
            answer(&mut self.clients, &mut self.queue, (waiter, reply), &self.clock.date, &mut self.books);
        });
        for _ in 0..TIMERS_PER_TICK {
            match self.timers.first() {
                Some((deadline, slot)) if deadline <= now => self.time_out(slot as usize),
                _ => return,
            }
        }
    }
}

/// Gives a client a turn, once.
fn enqueue(queue: &mut VecDeque<usize>, client: &mut Client, slot: usize) {
    if !std::mem::replace(&mut client.queued, true) {
        queue.push_back(slot);
    }
}

/// Hands a reply to the connection that waits for it, if it is still that one, and gives it a turn. Also where the reply is of
/// no use any more: what the connection has asked for since may have waited for that.
fn answer(
    clients: &mut Slab<Client>,
    queue: &mut VecDeque<usize>,
    (waiter, reply): (Waiter, &Reply<'_>),
    date: &Date,
    books: &mut Books,
) {
    if let Some(client) = clients.get_mut(waiter.slot)
        && client.connection.generation == waiter.generation
    {
        client.connection.reply_later(waiter, reply, date, &mut books.ledger);
        enqueue(queue, client, waiter.slot);
        books.hand_lines_over(LOG_BYTES);
    }
}
