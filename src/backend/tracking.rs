//! Tracking thread: receives invalidations from Redis (server-assisted caching, `CLIENT TRACKING`).
//!
//! One connection in broadcasting mode receives the key of every write. So the fetchers'
//! connections may close at any time. In the default mode Redis remembers the keys that each
//! connection has read. That table can overflow, and Redis drops it silently when the connection
//! closes. docs/benchmarks.md has the cost of each mode.
//!
//! RESP2 requires a subscription for the messages. The connection redirects its own messages to
//! itself and subscribes to them, so Redis' limit for slow subscribers applies to it. Only writes
//! after the subscription are reported, and none once the connection is lost. The event loop
//! receives the start and the loss of the subscription in order with the invalidations.

use super::connect::{Connector, describe_error, is_command_denied, is_outage, read_failure, run_id};
use super::reader::desync_error;
use super::wire::Wire;
use super::{BackendConfig, PoolShared};
use crate::types::{Failure, Invalidation};
use redis::{RedisResult, Value};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Channel on which a RESP2 connection receives invalidations.
const CHANNEL: &str = "__redis__:invalidate";

/// Time without a message after which the connection sends `PING`, because a network can fail
/// silently.
const PING_AFTER_SILENCE: Duration = Duration::from_secs(1);

/// Lifetime from which a connection counts as stable. One that is lost sooner causes a backoff.
const MIN_STABLE_TIME: Duration = Duration::from_millis(250);

/// Delay after Redis denied a command, because the denial lasts until an operator changes its
/// configuration.
const DENIED_RETRY_DELAY: Duration = Duration::from_secs(30);

/// Most key bytes in a message after which a connection is kept. The crate's parser never shrinks
/// its buffer, so a connection that received a longer message is replaced.
const MAX_REUSE_MESSAGE_BYTES: usize = 1024 * 1024;

/// Longest message that is received: twice Redis' own limit for subscribers. A longer one ends the
/// connection, and everything cached expires.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Shortest time between two replacements of a connection. Each costs Redis a connection, and long
/// messages may arrive in series.
const MIN_REPLACEMENT_INTERVAL: Duration = Duration::from_secs(10);

/// State of the tracking thread.
pub(super) struct Tracker {
    shared: Arc<PoolShared>,
    connector: Connector,
    timeout: Duration,
    /// Earliest time of the next replacement.
    replace_from: Instant,
    /// Last thread that connected a successor, running or finished.
    connecting: Option<JoinHandle<()>>,
}

/// Message on a tracking connection.
enum Message {
    Invalidations(Vec<Invalidation>),
    /// Reply to `PING`.
    Pong,
}

/// Progress of replacing a tracking connection.
enum Succession {
    /// No replacement is in progress.
    Idle,
    /// A thread connects the successor. That may take long, and invalidations must not wait for it.
    Connecting(Receiver<RedisResult<Wire>>),
    /// The successor receives invalidations. It takes over after the reply to a `PING` sent from
    /// now on.
    Ready(Wire),
}

impl Tracker {
    pub(super) fn new(settings: &BackendConfig, shared: Arc<PoolShared>) -> Tracker {
        let (connector, replace_from) = (Connector::new(settings), Instant::now());
        Tracker { shared, connector, timeout: settings.timeout, replace_from, connecting: None }
    }

    /// Connects and receives invalidations, until the pool closes.
    pub(super) fn run(&mut self) {
        while self.shared.sleep_until(self.connector.backoff().map(|(until, _)| until)) {
            let (result, server_id) = self.connect();
            match result {
                Ok(wire) => self.follow(wire, server_id.as_deref()),
                Err(error) => {
                    if is_command_denied(&error) {
                        self.connector.back_off_for(read_failure(&error), DENIED_RETRY_DELAY);
                    }
                    self.shared.set_tracking(Err(describe_error(&error)));
                }
            }
            // The server that fetchers read from may be gone like this connection, so it counts as
            // unknown. It stays known if the connection ended because it led to another server.
            if check_same_server(&self.shared, server_id.as_deref()).is_ok() {
                self.shared.set_read_run_id(None);
            }
        }
    }

    /// Opens a connection that receives invalidations from now on. Also returns the run id of its
    /// server.
    fn connect(&mut self) -> (RedisResult<Wire>, Option<String>) {
        let (shared, mut server_id) = (Arc::clone(&self.shared), None);
        let result = self.connector.connect(|wire| {
            server_id = run_id(wire)?;
            check_same_server(&shared, server_id.as_deref())?;
            subscribe(wire)
        });
        (result, server_id)
    }

    /// Passes invalidations to the event loop, while the connection lives and leads to the server
    /// that fetchers read from.
    fn follow(&mut self, mut wire: Wire, server_id: Option<&str>) {
        let started_at = Instant::now();
        // Entries cached before now are not tracked, so all are flushed. Keys read from now on are
        // tracked, and fetchers read them from this server.
        self.shared.set_tracking_run_id(server_id.map(str::to_owned));
        self.shared.push_invalidations(vec![Invalidation::All]);
        self.shared.set_tracking(Ok(()));
        let result = catch_unwind(AssertUnwindSafe(|| {
            while let Some(successor) = self.receive_invalidations(&mut wire, server_id)? {
                wire = successor;
            }
            Ok(())
        }));
        self.shared.push_invalidations(vec![Invalidation::TrackingLost]);
        self.shared.set_tracking_run_id(None);
        let reason = match result {
            Ok(Ok(())) => return,
            Ok(Err(error)) => describe_error(&error),
            Err(_) => "the tracking thread panicked; please report the panic logged before this line".to_owned(),
        };
        self.shared.set_tracking(Err(reason));
        if started_at.elapsed() < MIN_STABLE_TIME {
            self.connector.back_off(Failure::Unavailable);
        } else {
            self.connector.reset_backoff();
        }
    }

    /// Receives invalidations. Returns the successor that takes over, or `None` when the pool
    /// closes.
    ///
    /// The successor subscribes before this connection sends `PING`. The reply arrives after all
    /// invalidations that the successor may have missed, so the handover loses none.
    fn receive_invalidations(&mut self, wire: &mut Wire, server_id: Option<&str>) -> RedisResult<Option<Wire>> {
        let (mut awaits_pong, mut is_bloated, mut succession) = (false, false, Succession::Idle);
        wire.set_read_timeout(PING_AFTER_SILENCE)?;
        wire.set_longest_reply(MAX_MESSAGE_BYTES);
        while !self.shared.is_closed() {
            check_same_server(&self.shared, server_id)?;
            if is_bloated && !awaits_pong {
                succession = self.advance(succession, wire, server_id);
                if let Succession::Ready(_) = succession {
                    awaits_pong = true;
                    self.send_ping(wire)?;
                }
            }
            match wire.receive().and_then(parse_message) {
                Ok(Message::Invalidations(invalidations)) => {
                    let key_bytes: usize = invalidations.iter().map(Invalidation::bytes).sum();
                    is_bloated |= key_bytes > MAX_REUSE_MESSAGE_BYTES;
                    self.shared.push_invalidations(invalidations);
                }
                Ok(Message::Pong) => {
                    if let Succession::Ready(successor) = succession {
                        return Ok(Some(successor));
                    }
                    awaits_pong = false;
                    wire.set_read_timeout(PING_AFTER_SILENCE)?;
                }
                Err(error) if error.is_timeout() && !awaits_pong => {
                    awaits_pong = true;
                    self.send_ping(wire)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Starts to connect a successor, or takes one that has connected.
    ///
    /// If Redis rejects the successor, the present connection stays, with its large buffer. It also
    /// stays if the server reports no run id, because the successor might lead to another server.
    fn advance(&mut self, succession: Succession, wire: &Wire, server_id: Option<&str>) -> Succession {
        match succession {
            Succession::Idle if self.replace_from <= Instant::now() && self.has_no_successor_thread() => {
                self.replace_from = Instant::now() + MIN_REPLACEMENT_INTERVAL;
                let Some(server_id) = server_id else { return Succession::Idle };
                match self.connect_successor(wire, server_id.to_owned()) {
                    Ok(result) => Succession::Connecting(result),
                    Err(error) => {
                        log::debug!(
                            "cannot start a thread to replace the tracking connection to Redis, keeping the old one: {error}"
                        );
                        Succession::Idle
                    }
                }
            }
            Succession::Connecting(result) => match result.try_recv() {
                Ok(Ok(successor)) => Succession::Ready(successor),
                Ok(Err(error)) => {
                    log::debug!(
                        "cannot replace the tracking connection to Redis, keeping the old one: {}",
                        describe_error(&error)
                    );
                    Succession::Idle
                }
                Err(TryRecvError::Empty) => Succession::Connecting(result),
                Err(TryRecvError::Disconnected) => Succession::Idle,
            },
            other => other,
        }
    }

    /// Returns true if the last thread that connected a successor has ended. Only one runs at a
    /// time.
    fn has_no_successor_thread(&self) -> bool {
        self.connecting.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Starts a thread that connects to the address of the present connection, and checks that it
    /// leads to the same server.
    fn connect_successor(&mut self, wire: &Wire, server_id: String) -> std::io::Result<Receiver<RedisResult<Wire>>> {
        let (connector, peer) = (self.connector.clone(), wire.peer()?);
        let (sender, result) = channel();
        let thread = std::thread::Builder::new().name("redis-successor".into()).spawn(move || {
            let successor = connector.open(peer).and_then(|mut wire| {
                if run_id(&mut wire)?.as_ref() != Some(&server_id) {
                    return Err(std::io::Error::other("its address leads to another Redis server now").into());
                }
                subscribe(&mut wire).map(|()| wire)
            });
            // Without a receiver the present connection is lost, and the successor is not needed.
            let _ = sender.send(successor);
        })?;
        self.connecting = Some(thread);
        Ok(result)
    }

    /// Sends `PING`. The reply may take REDIS_TIMEOUT.
    fn send_ping(&self, wire: &mut Wire) -> RedisResult<()> {
        wire.set_read_timeout(self.timeout)?;
        wire.send(&redis::cmd("PING").get_packed_command())
    }
}

/// Returns an error if fetchers are known to read from another server than `server_id`.
fn check_same_server(shared: &PoolShared, server_id: Option<&str>) -> RedisResult<()> {
    if shared.reading_mismatch(server_id) {
        return Err(
            std::io::Error::other("fetchers read from another Redis server than the tracking connection").into()
        );
    }
    Ok(())
}

/// Subscribes a connection to invalidations. Fails while Redis loads its data or has lost its
/// master. A subscription would then flush the cache while Redis serves no reads, and stale values
/// may be needed.
pub(super) fn subscribe(wire: &mut Wire) -> RedisResult<()> {
    check_serving(wire.request(&redis::cmd("PING")))?;
    let Value::Int(id) = wire.request(redis::cmd("CLIENT").arg("ID"))? else { return Err(desync_error("CLIENT ID")) };
    wire.request(redis::cmd("CLIENT").arg("TRACKING").arg("ON").arg("REDIRECT").arg(id).arg("BCAST"))?;
    wire.request(redis::cmd("SUBSCRIBE").arg(CHANNEL)).map(|_| ())
}

/// Returns an error if a reply to `PING` means that Redis does not serve reads.
fn check_serving(reply: RedisResult<Value>) -> RedisResult<()> {
    match reply.and_then(Value::extract_error) {
        Err(error) if is_outage(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Parses an invalidation message or the reply to `PING`. An error can only be the reply to `PING`.
/// Any other message invalidates everything.
fn parse_message(value: Value) -> RedisResult<Message> {
    let Value::Array(parts) = value else { return check_serving(Ok(value)).map(|()| Message::Pong) };
    let mut parts = parts.into_iter();
    match (parts.next(), parts.next(), parts.next()) {
        (Some(Value::BulkString(kind)), _, None) if kind == b"pong" => Ok(Message::Pong),
        (Some(Value::BulkString(kind)), _, Some(payload)) if kind == b"message" => {
            Ok(Message::Invalidations(parse_invalidations(payload)))
        }
        _ => Ok(Message::Invalidations(invalidate_unreadable())),
    }
}

/// Returns the invalidations in a payload, which is a list of keys, or nil for a flush.
fn parse_invalidations(payload: Value) -> Vec<Invalidation> {
    match payload {
        Value::Nil => vec![Invalidation::All],
        Value::Array(keys) => {
            let key = |key| if let Value::BulkString(name) = key { Invalidation::Key(name) } else { Invalidation::All };
            keys.into_iter().map(key).collect()
        }
        _ => invalidate_unreadable(),
    }
}

/// Returns an invalidation of everything, for a message that cannot be parsed.
fn invalidate_unreadable() -> Vec<Invalidation> {
    log::warn!("unreadable invalidation message from Redis: cache flushed");
    vec![Invalidation::All]
}
