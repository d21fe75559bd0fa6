//! Event loop of one worker: accepts clients, serves their turns, runs timers. Only this module
//! uses `mio`.
//!
//! A tick runs these steps in order:
//!
//! ```text
//! poll        sleep until a socket event, a wakeup by the backend, or a deadline
//! readiness   store the reported readiness in each client; nothing is closed or reused yet
//! accept      a bounded number of connections
//! inbox       a bounded number of invalidations, then all completions: store values, encode replies
//! pushes      a bounded number of invalidations to clients that cache values
//! timers      a bounded number of late fetches, expired entries and client timers; before the turns,
//!             so that a client at its deadline gets one more
//! turns       each ready client: send, decode, look up, read
//! submit      the fetches of these turns, under one lock; refused ones are answered
//! ```
//!
//! A client that uses up its turn budget is requeued at the tail, and the next poll does not sleep.

mod acceptor;
mod client;
mod clients;
mod clock;
mod connection_limit;
mod deliveries;
mod listen;
mod read_ahead;
mod scheduler;
mod scratch;
mod shutdown;
mod stream;
mod timeouts;
mod unix_socket;
mod watchdog;

pub use connection_limit::{ConnectionLimiter, FileLimitTooLow};
pub use listen::{Endpoint, Listener, bind, check_port_free, check_port_handover, exposure_warning};
pub use shutdown::WorkerHandle;
pub use unix_socket::{SocketFile, UnixSocketError, bind_unix, check_unix_socket};
pub use watchdog::{WATCHDOG_INTERVAL, Watchdog};

use crate::backend::{BackendConfig, Pool, RedisAccess};
use crate::cache::Limits;
use crate::client_auth::{Carrier, ClientAddress, ClientAuth, SharedPasswords};
use crate::config::Config;
use crate::connection::Connection;
use crate::dispatch::sync_metrics;
use crate::log_writer::LogWriter;
use crate::metrics::{MetricsRegistry, WorkerSlot};
use crate::protocol::http::{HeadDecoder, Policy, Resources};
use crate::read_through::{ReadThrough, WatchSettings, WatcherLimit};
use crate::tls_server::TlsServer;
use crate::types::{Completion, Invalidation, Job, Millis};
use acceptor::{AcceptResult, Acceptor};
use client::{Client, TlsContext};
use clients::Clients;
use clock::Clock;
use mio::{Events, Interest, Poll, Token, Waker};
use read_ahead::ReadAhead;
use scratch::Scratch;
use shutdown::ShutdownPhase;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use stream::ClientStream;
use timeouts::TimeoutConfig;

const WAKER: Token = Token(usize::MAX - 1);

/// Maximum number of listening sockets of an event loop: `PROXY_PORT`, `PROXY_SOCKET` and
/// `ADMIN_PORT`.
const MAX_LISTENERS: usize = 3;

/// Token of the first listening socket. The tokens of clients are their slots, which are lower.
const FIRST_LISTENER: usize = usize::MAX - 1 - MAX_LISTENERS;

/// Maximum number of events taken from the kernel in one tick.
const EVENTS_PER_TICK: usize = 1024;

/// Maximum number of connections accepted in one tick, so that a burst of them does not delay
/// connected clients.
const ACCEPTS_PER_TICK: usize = 64;

/// Maximum number of entries removed in one tick, and of fetches whose late waiters are answered
/// (about 10 us of work). Entries are removed when they expired or exceed `CACHE_BYTES`.
///
/// Each completion of the tick adds one, so that removal keeps up with insertion. Each ready client
/// adds one, a fraction of its turn, so that removal also ends beside many clients. (256 delayed
/// hits noticeably when many entries expired at once.)
pub const SWEEP_PER_TICK: usize = 32;

/// Maximum number of clients that an event loop reserves memory for. The unused part is address
/// space only. A slab that grows by doubling would leave its old memory to the allocator, which
/// returns it late.
const RESERVED_CLIENTS: usize = 64 * 1024;

/// Time over which the clients of ended streams spread their reconnections. During a shutdown it is
/// `SHUTDOWN_GRACE`.
const RETRY_SPREAD: Millis = 2000;

/// Size of the access log beyond which its lines are passed on before the tick ends.
const ACCESS_LOG_FLUSH_BYTES: usize = 64 * 1024;

/// Id of the next connection of any event loop. Unique, because `CLIENT ID` shows it.
static NEXT_CONNECTION_ID: AtomicU64 = AtomicU64::new(1);

/// Link to the fetchers: jobs go out, completions and invalidations come in.
struct Backend {
    pool: Pool,
    /// Fetches started in this tick.
    jobs: Vec<Job>,
    completions: Vec<Completion>,
    invalidations: Vec<Invalidation>,
    /// The inbox holds more invalidations than one tick applies. They cause no further wakeup.
    inbox_backlogged: bool,
}

/// One event loop with its clients, its cache and its fetchers.
pub struct Worker {
    poll: Poll,
    handle: WorkerHandle,
    shutdown: ShutdownPhase,
    /// Acceptors of the listening sockets, at most [`MAX_LISTENERS`].
    acceptors: Vec<Acceptor>,
    connection_limit: ConnectionLimiter,
    clients: Clients,
    policy: Policy,
    /// Policy for clients of `ADMIN_PORT`.
    admin_policy: Policy,
    client_auth: ClientAuth,
    read_through: ReadThrough,
    backend: Backend,
    scratch: Scratch,
    read_ahead: ReadAhead,
    /// TLS of the clients, if it is configured.
    tls: Option<TlsContext>,
    head_decoder: HeadDecoder,
    /// Metrics of all workers, and the slot of this one.
    registry: Arc<MetricsRegistry>,
    worker_slot: Arc<WorkerSlot>,
    clock: Clock,
    /// More entries or waiters are due than one tick handles.
    timers_backlogged: bool,
    /// Clients may turn on `CLIENT TRACKING` (`REDIS_TRACKING=on`).
    offers_tracking: bool,
}

/// State that all workers share.
#[derive(Clone)]
pub struct SharedState {
    /// Limit of client connections.
    pub connection_limit: ConnectionLimiter,
    /// Limit on watchers.
    pub watcher_limit: WatcherLimit,
    /// Address, credentials and TLS settings of Redis.
    pub access: Arc<RedisAccess>,
    /// Metrics of all workers.
    pub registry: Arc<MetricsRegistry>,
    /// Passwords of clients, if they need one.
    pub client_passwords: Option<Arc<SharedPasswords>>,
    /// TLS of clients, if it is configured.
    pub tls: Option<Arc<TlsServer>>,
}

impl Worker {
    /// Creates a worker on non-blocking listening sockets, and starts its fetchers. `worker_slot`
    /// is the slot of the registry for its metrics.
    ///
    /// # Errors
    ///
    /// The system provides no epoll instance, no eventfd or no threads.
    pub fn new(
        listeners: Vec<(Endpoint, Listener)>,
        config: &Config,
        shared: SharedState,
        worker_slot: Arc<WorkerSlot>,
    ) -> io::Result<Worker> {
        let SharedState { connection_limit, watcher_limit, access, registry, client_passwords, tls } = shared;
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let mut acceptors = Vec::with_capacity(MAX_LISTENERS);
        for (endpoint, listener) in listeners.into_iter().take(MAX_LISTENERS) {
            let mut acceptor = Acceptor::new(endpoint, listener, config.share_port);
            acceptor.register(poll.registry(), Token(FIRST_LISTENER + acceptors.len()))?;
            acceptors.push(acceptor);
        }
        let wake = Arc::clone(&waker);
        let pool = Pool::start(&backend_config(config, access), Arc::clone(&worker_slot), move || {
            // A full eventfd counter is no error here: mio resets it.
            if let Err(error) = wake.wake() {
                log::error!("cannot wake the event loop, replies from Redis may be late: {error}");
            }
        })?;
        let millis = |duration: Duration| duration.as_millis() as Millis;
        let limits = Limits {
            entries: config.cache_size,
            bytes: config.cache_bytes.unwrap_or(usize::MAX),
            stale: millis(config.stale_if_error),
        };
        let timeouts = TimeoutConfig {
            request: millis(config.client_timeout),
            idle: millis(config.client_idle_timeout),
            write: millis(config.client_idle_timeout),
            linger: timeouts::LINGER_TIMEOUT,
        };
        Ok(Worker {
            poll,
            handle: WorkerHandle::new(waker),
            shutdown: ShutdownPhase::Running,
            acceptors,
            clients: Clients::new(connection_limit.max_connections().div_ceil(config.workers), timeouts),
            connection_limit,
            policy: policy(config, main_resources(config)),
            admin_policy: policy(config, Resources::Admin),
            client_auth: client_passwords.map(ClientAuth::required).unwrap_or_default(),
            read_through: ReadThrough::new(limits, millis(config.cache_ttl), millis(config.redis_timeout))
                .with_watch_settings(WatchSettings { interval: millis(config.watch_interval), limit: watcher_limit }),
            backend: Backend {
                pool,
                jobs: Vec::new(),
                completions: Vec::new(),
                invalidations: Vec::new(),
                inbox_backlogged: false,
            },
            scratch: Scratch::new(),
            read_ahead: ReadAhead::new(),
            tls: tls.map(TlsContext::new),
            head_decoder: HeadDecoder::new(),
            registry,
            worker_slot,
            clock: Clock::new(),
            timers_backlogged: false,
            offers_tracking: config.redis_tracking,
        })
    }

    /// Turns on the access log.
    pub fn log_requests(&mut self, log_writer: LogWriter) {
        self.clients.log_requests(log_writer);
    }

    /// Returns a handle that wakes or stops the event loop.
    pub fn handle(&self) -> WorkerHandle {
        self.handle.clone()
    }

    /// Runs until a shutdown is complete.
    ///
    /// # Errors
    ///
    /// The kernel refuses to poll, so the event loop cannot continue.
    pub fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_PER_TICK);
        while !self.is_shut_down() {
            match self.poll.poll(&mut events, self.poll_timeout()) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            self.begin_tick();
            self.note_readiness(&events);
            self.accept();
            let completed = self.drain_inbox();
            self.deliver_pushes();
            self.run_timers(completed);
            self.run_ready_clients();
            self.submit_jobs();
            self.end_tick();
        }
        // These clients are still open because the grace expired.
        self.clients.abort_all();
        self.clients.flush_access_log(0);
        Ok(())
    }

    fn begin_tick(&mut self) {
        let time = self.clock.tick();
        self.clients.recorder.set_now(self.clock.micros);
        self.client_auth.begin_tick(self.clock.now);
        if let Some(time) = time {
            self.clients.set_date(time);
        }
        self.poll_shutdown();
    }

    fn end_tick(&mut self) {
        // Covers the last turns, and replies delivered outside of turns.
        let now = self.clock.micros();
        self.clients.recorder.end_turns(now);
        self.clients.recorder.metrics.tick_duration.observe(now - self.clock.micros, 1);
        self.clients.flush_access_log(0);
        self.log_auth_failures();
        if !self.worker_slot.has_responded() {
            self.read_through.check_capacity(self.clock.now);
            self.record_connected_clients();
            sync_metrics(&mut self.clients.recorder, &self.read_through, self.clock.now);
            self.worker_slot.publish(&self.clients.recorder.metrics);
        }
    }

    /// Logs failed authentications, once in 10 s. Shows nothing that the client sent.
    fn log_auth_failures(&mut self) {
        let Some(report) = self.client_auth.take_report() else { return };
        let protocol = match report.carrier {
            Carrier::Http => "HTTP",
            Carrier::Resp => "RESP",
        };
        log::warn!(
            "client authentication failed: {} sent no valid password over {protocol} ({} failures before it since the \
             last such line); set a password of CLIENT_PASSWORD in that client, or keep it away from the port",
            report.address,
            report.earlier
        );
    }

    fn record_connected_clients(&mut self) {
        let connected = self.clients.len() - self.connection_limit.uncounted();
        self.clients.recorder.metrics.connected_clients = connected;
    }

    /// Returns how long the next poll may sleep, `None` without a limit.
    fn poll_timeout(&self) -> Option<Duration> {
        let is_backlogged = self.timers_backlogged || self.backend.inbox_backlogged || self.read_through.has_pushes();
        if self.clients.has_queued() || is_backlogged {
            return Some(Duration::ZERO);
        }
        // Not an iterator over the deadlines: that doubles the time of this function, which runs in
        // each tick.
        let or_never = |deadline: Option<Millis>| deadline.unwrap_or(Millis::MAX);
        let mut next = or_never(self.clients.next_timer())
            .min(or_never(self.shutdown.next_deadline(self.clock.now)))
            .min(or_never(self.read_through.next_deadline()));
        for acceptor in &self.acceptors {
            if acceptor.can_accept(&self.connection_limit) {
                next = next.min(or_never(acceptor.next_attempt()));
            }
        }
        (next != Millis::MAX).then(|| Duration::from_millis(next.saturating_sub(self.clock.now)))
    }

    fn note_readiness(&mut self, events: &Events) {
        for event in events {
            match event.token() {
                Token(slot) if slot < FIRST_LISTENER => self.clients.on_event(slot, event),
                // Each tick drains the inbox and polls the shutdown request.
                WAKER => {}
                Token(listener) => {
                    if let Some(acceptor) = self.acceptors.get_mut(listener - FIRST_LISTENER) {
                        acceptor.notify();
                    }
                }
            }
        }
    }

    /// Accepts pending connections, one of each listener in turn, so that many at one listener do
    /// not delay those at another.
    fn accept(&mut self) {
        let mut left = ACCEPTS_PER_TICK;
        let mut has_accepted = true;
        while has_accepted {
            has_accepted = false;
            for index in 0..self.acceptors.len() {
                let acceptor = &mut self.acceptors[index];
                if left == 0 || !acceptor.can_accept(&self.connection_limit) {
                    continue;
                }
                let endpoint = acceptor.endpoint;
                match acceptor.accept(self.clock.now) {
                    AcceptResult::Stream(stream, address) => self.add_client(endpoint, stream, address),
                    AcceptResult::Retry => {}
                    AcceptResult::Stop => continue,
                }
                left -= 1;
                has_accepted = true;
            }
        }
    }

    /// Adds a client. `address` is `None` for a Unix socket.
    fn add_client(&mut self, endpoint: Endpoint, mut stream: ClientStream, address: Option<IpAddr>) {
        if let Err(error) = stream.disable_delay() {
            log::debug!("client connection closed before its first request: {error}");
            return;
        }
        let rejected = self.connection_limit.acquire(endpoint);
        let metrics = &mut self.clients.recorder.metrics;
        let mut connection = if rejected {
            metrics.rejected += 1;
            Connection::rejected()
        } else {
            metrics.accepted += 1;
            let id = NEXT_CONNECTION_ID.fetch_add(1, Ordering::Relaxed);
            Connection::new(id, self.registry.settings.database)
        };
        connection.set_peer(ClientAddress(address));
        if self.clients.recorder.access_log_enabled() {
            connection.set_address(address.map_or("unix".into(), |address| address.to_canonical().to_string()));
        }
        let (token, interest) = (Token(self.clients.vacant_slot()), Interest::READABLE | Interest::WRITABLE);
        if let Err(error) = self.poll.registry().register(&mut stream, token, interest) {
            log::error!("cannot register a client connection with epoll, closing it: {error}");
            self.connection_limit.release(endpoint, rejected);
            return;
        }
        let mut client = Client::new(stream, endpoint, connection, rejected, self.clock.now);
        // A Unix socket needs no TLS: the kernel carries its bytes.
        if let Some(tls) = &self.tls
            && address.is_some()
        {
            client.detect_tls(tls);
        }
        self.clients.insert(client);
    }

    fn close_client(&mut self, slot: usize) {
        // Dropping the stream closes it, and the kernel removes it from epoll.
        self.read_through.unwatch(self.clients.watchers(slot));
        let client = self.clients.remove(slot);
        self.read_through.set_client_tracking(client.connection.client_id(slot), false);
        self.connection_limit.release(client.endpoint, client.rejected);
        self.acceptors.iter_mut().for_each(|acceptor| acceptor.resume(self.clock.now));
    }
}

/// Returns what `PROXY_PORT` and `PROXY_SOCKET` serve.
fn main_resources(config: &Config) -> Resources {
    if config.admin && config.admin_port.is_none() { Resources::All } else { Resources::Keys }
}

fn policy(config: &Config, resources: Resources) -> Policy {
    Policy {
        allowed_hosts: config.allowed_hosts.clone(),
        resources,
        announce_close: false,
        omits_entity_tags: !config.http_caching,
        retry_spread: RETRY_SPREAD,
    }
}

/// Returns the settings of the fetchers.
pub fn backend_config(config: &Config, access: Arc<RedisAccess>) -> BackendConfig {
    BackendConfig {
        access,
        connections: config.redis_connections,
        timeout: config.redis_timeout,
        cache_ttl: config.cache_ttl,
        tracking: config.redis_tracking,
        max_value_bytes: config.max_value_bytes,
    }
}
