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
mod connection_limit;
mod listen;
mod scheduler;
mod shutdown;
mod timeouts;
mod watchdog;

pub use connection_limit::{ConnectionLimiter, FileLimitTooLow};
pub use listen::{bind, check_port_free, check_port_handover};
pub use shutdown::WorkerHandle;
pub use watchdog::{WATCHDOG_INTERVAL, Watchdog};

use crate::backend::{BackendConfig, Pool};
use crate::cache::{DeadlineHeap, Limits};
use crate::config::Config;
use crate::connection::Connection;
use crate::dispatch::sync_metrics;
use crate::log_writer::LogWriter;
use crate::metrics::{MetricsRegistry, Recorder};
use crate::protocol::http::{HeadDecoder, Policy, ResponseDate};
use crate::read_through::ReadThrough;
use crate::types::{Completion, Failure, Invalidation, Job, Millis, Reply, RequestId};
use client::Client;
use clock::Clock;
use listen::{AcceptResult, Acceptor};
use mio::{Events, Interest, Poll, Token, Waker};
use shutdown::ShutdownState;
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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
const INVALIDATIONS_PER_TICK: usize = 1024;

/// The buffer that all reads go to: one usual socket buffer's worth.
const READ_BYTES: usize = 64 * 1024;

/// The buffer lent to each turn. It grows when a turn's replies need more, and is cut back to this.
const WRITE_BYTES: usize = 64 * 1024;

/// Bytes of the access log that are handed over in the midst of a tick.
const ACCESS_LOG_FLUSH_BYTES: usize = 64 * 1024;

/// The number of the next connection, of all loops: Redis clients are told theirs (`CLIENT ID`), and it is unique.
static NEXT_CONNECTION_ID: AtomicU64 = AtomicU64::new(1);

/// Buffers of the loop, shared by all clients, one at a time.
struct Scratch {
    read: Vec<u8>,
    write: Vec<u8>,
}

/// The loop's books, and where the lines of the access log go.
struct Telemetry {
    recorder: Recorder,
    access_log: Option<LogWriter>,
}

impl Telemetry {
    /// Hands the lines of the access log over, if they are more than so many bytes.
    fn flush_access_log(&mut self, most: usize) {
        if let Some(log_writer) = &self.access_log {
            flush_access_log(&mut self.recorder, log_writer, most);
        }
    }
}

fn flush_access_log(recorder: &mut Recorder, log_writer: &LogWriter, most: usize) {
    if let Some(lines) = recorder.access_log_lines().filter(|lines| lines.len() > most) {
        log_writer.write_access_lines(lines);
        lines.clear();
        lines.shrink_to(2 * ACCESS_LOG_FLUSH_BYTES);
    }
}

/// One complete proxy: loop, clients, cache, pool.
pub struct Worker {
    poll: Poll,
    handle: WorkerHandle,
    shutdown: Option<ShutdownState>,
    acceptor: Acceptor,
    connection_limit: ConnectionLimiter,
    clients: Slab<Client>,
    /// Clients that get a turn, in order.
    ready_queue: VecDeque<usize>,
    /// One for each client: until when it is to have done what it is at.
    timers: DeadlineHeap,
    timeouts: timeouts::TimeoutConfig,
    policy: Policy,
    read_through: ReadThrough,
    pool: Pool,
    /// Fetches begun in this tick.
    jobs: Vec<Job>,
    completions: Vec<Completion>,
    /// How many completions this tick has had, most of which were stored.
    completed_this_tick: usize,
    invalidations: Vec<Invalidation>,
    scratch: Scratch,
    /// What request heads are decoded with.
    head_decoder: HeadDecoder,
    telemetry: Telemetry,
    /// What loops show each other, and this one's number among them.
    registry: Arc<MetricsRegistry>,
    worker_index: usize,
    clock: Clock,
    /// More is due than one tick may do.
    timers_backlogged: bool,
    /// More changes wait than one tick may follow: nobody wakes the loop for them.
    inbox_backlogged: bool,
}

impl Worker {
    /// A proxy on a listening socket that does not block, with room for so many clients, the one of that number in the
    /// register. Its helper threads start at once.
    pub fn new(
        listener: std::net::TcpListener,
        config: &Config,
        connection_limiter: ConnectionLimiter,
        register: Arc<MetricsRegistry>,
        number: usize,
    ) -> io::Result<Worker> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let mut acceptor = Acceptor::new(listener, config.share_port);
        acceptor.register(poll.registry(), LISTENER)?;
        let settings = BackendConfig {
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
        let worker_slot = register.slots().get(number).map(Arc::clone).unwrap_or_default();
        let wake = Arc::clone(&waker);
        let pool = Pool::start(&settings, worker_slot, move || {
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
        let timer = config.redis_timeout.as_millis() as Millis;
        Ok(Worker {
            poll,
            handle: WorkerHandle::new(waker),
            shutdown: None,
            acceptor,
            clients: Slab::with_capacity(
                connection_limiter.max_connections().div_ceil(config.workers).min(RESERVED_CLIENTS),
            ),
            connection_limit: connection_limiter,
            ready_queue: VecDeque::new(),
            timers: DeadlineHeap::new(),
            timeouts: timeouts::TimeoutConfig {
                request: config.client_timeout.as_millis() as Millis,
                idle: config.client_idle_timeout.as_millis() as Millis,
                write: config.client_idle_timeout.as_millis() as Millis,
                linger: timeouts::LINGER_TIMEOUT,
            },
            policy: Policy { allowed_hosts: config.allowed_hosts.clone(), admin: config.admin, ..Policy::default() },
            read_through: ReadThrough::new(limits, ttl, timer),
            pool,
            jobs: Vec::new(),
            completions: Vec::new(),
            completed_this_tick: 0,
            invalidations: Vec::new(),
            scratch: Scratch { read: vec![0; READ_BYTES], write: Vec::with_capacity(WRITE_BYTES) },
            head_decoder: HeadDecoder::new(),
            telemetry: Telemetry { recorder: Recorder::default(), access_log: None },
            registry: register,
            worker_index: number,
            clock: Clock::new(),
            timers_backlogged: false,
            inbox_backlogged: false,
        })
    }

    /// Has each request logged.
    pub fn log_requests(&mut self, log_writer: LogWriter) {
        self.telemetry = Telemetry { recorder: Recorder::new(true), access_log: Some(log_writer) };
    }

    /// A handle that ends the loop.
    pub fn handle(&self) -> WorkerHandle {
        self.handle.clone()
    }

    /// Runs until stopped. An error means that the kernel refuses to poll: nothing can go on.
    pub fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_PER_TICK);
        while !self.is_shut_down() {
            match self.poll.poll(&mut events, self.poll_timeout()) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            self.begin_tick();
            self.dispatch_events(&events);
            self.accept();
            self.drain_backend();
            self.run_timers();
            self.run_ready_clients();
            self.submit_jobs();
            self.end_tick();
        }
        // Those whom the grace was too short for.
        self.clients.iter_mut().for_each(|(_, client)| client.connection.abort(&mut self.telemetry.recorder));
        self.telemetry.flush_access_log(0);
        Ok(())
    }

    fn begin_tick(&mut self) {
        if self.clock.tick() {
            self.telemetry.recorder.set_date(|| self.clock.date.clf());
        }
        self.telemetry.recorder.set_now(self.clock.micros);
        self.poll_shutdown();
    }

    fn end_tick(&mut self) {
        // What the last turns have answered, or what was answered outside of them.
        let now = self.clock.micros();
        self.telemetry.recorder.end_turns(now);
        self.telemetry.recorder.metrics.tick_duration.observe(now - self.clock.micros, 1);
        self.telemetry.flush_access_log(0);
        // Whoever calls wants to see that the loop turns, and how it does.
        if let Some(worker_slot) = self.registry.slots().get(self.worker_index)
            && !worker_slot.has_responded()
        {
            self.telemetry.recorder.metrics.connected_clients = self.clients.len() - self.connection_limit.rejecting();
            sync_metrics(&mut self.telemetry.recorder, &self.read_through, self.clock.now);
            worker_slot.publish(&self.telemetry.recorder.metrics);
        }
    }

    /// How long the next poll may sleep; `None` for as long as nothing happens.
    fn poll_timeout(&self) -> Option<Duration> {
        if !self.ready_queue.is_empty() || self.timers_backlogged || self.inbox_backlogged {
            return Some(Duration::ZERO);
        }
        let accept = self.acceptor.next_attempt().filter(|_| self.connection_limit.can_accept());
        let timer = self.timers.first().map(|(deadline, _)| deadline);
        let stop = self.shutdown.as_ref().map(|stopping| stopping.next_deadline(self.clock.now));
        // Asked in each tick: a chain of iterators over the four took as long as the rest of this.
        let or_never = |deadline: Option<Millis>| deadline.unwrap_or(Millis::MAX);
        let next =
            or_never(accept).min(or_never(timer)).min(or_never(stop)).min(or_never(self.read_through.next_deadline()));
        (next != Millis::MAX).then(|| Duration::from_millis(next.saturating_sub(self.clock.now)))
    }

    fn dispatch_events(&mut self, events: &Events) {
        for event in events {
            match event.token() {
                LISTENER => self.acceptor.notify(),
                // News and the stop flag are looked at in every tick.
                WAKER => {}
                Token(slot) => {
                    if let Some(client) = self.clients.get_mut(slot) {
                        client.on_event(event);
                        enqueue(&mut self.ready_queue, client, slot);
                    }
                }
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_TICK {
            if !self.connection_limit.can_accept() {
                return;
            }
            match self.acceptor.accept(self.clock.now) {
                AcceptResult::Stream(stream, address) => self.add_client(stream, address.ip()),
                AcceptResult::Retry => {}
                AcceptResult::Stop => return,
            }
        }
    }

    fn add_client(&mut self, stream: mio::net::TcpStream, address: IpAddr) {
        // Replies are written whole: waiting to fill a segment would only delay them.
        if let Err(error) = stream.set_nodelay(true) {
            log::debug!("client connection closed before its first request: {error}");
            return;
        }
        let turned_away = self.connection_limit.acquire();
        let metrics = &mut self.telemetry.recorder.metrics;
        let mut connection = if turned_away {
            metrics.rejected += 1;
            Connection::rejected()
        } else {
            metrics.accepted += 1;
            let generation = NEXT_CONNECTION_ID.fetch_add(1, Ordering::Relaxed);
            Connection::new(generation, self.registry.settings.database)
        };
        if self.telemetry.recorder.access_log_enabled() {
            connection.set_address(address.to_canonical().to_string());
        }
        let slot = self.clients.insert(Client::new(stream, connection, turned_away, self.clock.now));
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(self.clients[slot].stream(), Token(slot), interest) {
            log::error!("cannot register a client connection with epoll, closing it: {error}");
            self.close_client(slot);
            return;
        }
        self.arm_timer(slot);
    }

    /// Changes first: what comes back at the same time and is known to be old need not be stored.
    fn drain_backend(&mut self) {
        self.inbox_backlogged =
            self.pool.drain_inbox(&mut self.completions, &mut self.invalidations, INVALIDATIONS_PER_TICK);
        self.completed_this_tick = self.completions.len();
        if self.completions.is_empty() && self.invalidations.is_empty() {
            return;
        }
        for change in self.invalidations.drain(..) {
            self.read_through.invalidate(&change, self.clock.now);
        }
        for completion in self.completions.drain(..) {
            self.read_through.complete(completion, self.clock.now, |request_id, reply| {
                deliver_reply(
                    &mut self.clients,
                    &mut self.ready_queue,
                    (request_id, reply),
                    &self.clock.date,
                    &mut self.telemetry,
                );
            });
        }
    }

    fn close_client(&mut self, slot: usize) {
        self.disarm_timer(slot);
        // Dropping the stream closes it, and the kernel forgets to watch it.
        let mut client = self.clients.remove(slot);
        client.connection.abort(&mut self.telemetry.recorder);
        self.connection_limit.release(client.rejected);
        self.acceptor.resume(self.clock.now);
    }

    fn submit_jobs(&mut self) {
        self.pool.submit(&mut self.jobs);
        for job in self.jobs.drain(..) {
            let refused = Completion { fetch_id: job.fetch_id, result: Err(Failure::QueueFull) };
            self.read_through.complete(refused, self.clock.now, |request_id, reply| {
                deliver_reply(
                    &mut self.clients,
                    &mut self.ready_queue,
                    (request_id, reply),
                    &self.clock.date,
                    &mut self.telemetry,
                );
            });
        }
    }

    fn run_timers(&mut self) {
        let now = self.clock.now;
        let budget = SWEEP_PER_TICK + self.completed_this_tick + self.ready_queue.len();
        self.timers_backlogged = self.read_through.tick(now, budget, |request_id, reply| {
            deliver_reply(
                &mut self.clients,
                &mut self.ready_queue,
                (request_id, reply),
                &self.clock.date,
                &mut self.telemetry,
            );
        });
        for _ in 0..TIMERS_PER_TICK {
            match self.timers.first() {
                Some((deadline, slot)) if deadline <= now => self.on_timer(slot as usize),
                _ => return,
            }
        }
    }
}

/// Gives a client a turn, once.
fn enqueue(queue: &mut VecDeque<usize>, client: &mut Client, slot: usize) {
    if !std::mem::replace(&mut client.in_ready_queue, true) {
        queue.push_back(slot);
    }
}

/// Hands a reply to the connection that waits for it, if it is still that one, and gives it a turn. Also where the reply is of
/// no use any more: what the connection has asked for since may have waited for that.
fn deliver_reply(
    clients: &mut Slab<Client>,
    queue: &mut VecDeque<usize>,
    (waiter, reply): (RequestId, &Reply<'_>),
    date: &ResponseDate,
    books: &mut Telemetry,
) {
    if let Some(client) = clients.get_mut(waiter.slot)
        && client.connection.id == waiter.connection_id
    {
        client.connection.reply_later(waiter, reply, date, &mut books.recorder);
        enqueue(queue, client, waiter.slot);
        books.flush_access_log(ACCESS_LOG_FLUSH_BYTES);
    }
}
