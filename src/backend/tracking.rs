//! The thread that hears of changes: server-assisted invalidation (`CLIENT TRACKING`).
//!
//! One connection in broadcasting mode hears of every write, and nothing depends on the helpers' connections: they may
//! come and go. In the other mode Redis remembers for each connection what it has read, in a table that overflows, and
//! forgets it without a word when the connection closes; docs/BENCHMARKS.md has what each mode costs.
//!
//! The connection tells itself: it redirects its own messages to itself and subscribes to them, which RESP2 needs, and
//! which puts it under Redis' limit for subscribers that read too slowly. Only what happens after the subscription is
//! heard of, and nothing any more once the connection is lost: the loop is told of both, in order.

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

/// Where invalidations are published for a RESP2 connection.
const CHANNEL: &str = "__redis__:invalidate";

/// After so long without a message Redis is asked whether it is still there: a network can fail without a word.
const PING_AFTER_SILENCE: Duration = Duration::from_secs(1);

/// A connection that is lost sooner was no good: the next attempt waits.
const MIN_STABLE_TIME: Duration = Duration::from_millis(250);

/// Where Redis refuses, it will do so until somebody changes its configuration.
const DENIED_RETRY_DELAY: Duration = Duration::from_secs(30);

/// A connection that has brought a longer message is replaced: the crate's parser keeps a buffer as
/// long as the longest one.
const KEPT_MESSAGE_BYTES: usize = 1024 * 1024;

/// Longest message that is received: twice what Redis' own limit for subscribers lets through. A
/// longer one ends the connection, and with it everything cached expires.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Shortest time between two such replacements. Each costs Redis a connection, and long messages may
/// come one after another.
const REPLACEMENT_WAIT: Duration = Duration::from_secs(10);

/// See the top of the file.
pub(super) struct Tracker {
    shared: Arc<PoolShared>,
    connector: Connector,
    timeout: Duration,
    /// When a connection may be replaced again.
    replace_from: Instant,
    /// Thread that connects a successor, or has.
    connecting: Option<JoinHandle<()>>,
}

/// Message of a tracking connection.
enum Message {
    /// Keys that have changed, or a flush.
    Changes(Vec<Invalidation>),
    /// The answer to `PING`.
    Pong,
}

/// Replacement of a tracking connection.
enum Succession {
    /// Not under way.
    Idle,
    /// A thread connects meanwhile: it may take long, and changes must not wait for it.
    Connecting(Receiver<RedisResult<Wire>>),
    /// The successor receives changes. It takes over once a `PING` that was sent afterwards is answered.
    Ready(Wire),
}

impl Tracker {
    pub(super) fn new(settings: &BackendConfig, shared: Arc<PoolShared>) -> Tracker {
        let (connector, replace_from) = (Connector::new(settings), Instant::now());
        Tracker { shared, connector, timeout: settings.timeout, replace_from, connecting: None }
    }

    /// Connects and listens, again and again, until the pool closes.
    pub(super) fn run(&mut self) {
        while self.shared.sleep_until(self.connector.backoff().map(|(until, _)| until)) {
            let (result, server) = self.connect();
            match result {
                Ok(wire) => self.follow(wire, server.as_deref()),
                Err(error) => {
                    if is_command_denied(&error) {
                        self.connector.back_off_for(read_failure(&error), DENIED_RETRY_DELAY);
                    }
                    self.shared.set_tracking(Err(describe_error(&error)));
                }
            }
            // Unless that is why the connection was given up: what helpers told of before may be gone like the connection.
            if check_same_server(&self.shared, server.as_deref()).is_ok() {
                self.shared.set_read_run_id(None);
            }
        }
    }

    /// Opens a connection that receives changes from here on. Returns also which Redis it leads to.
    fn connect(&mut self) -> (RedisResult<Wire>, Option<String>) {
        let (shared, mut server) = (Arc::clone(&self.shared), None);
        let result = self.connector.connect(|wire| {
            server = run_id(wire)?;
            check_same_server(&shared, server.as_deref())?;
            subscribe(wire)
        });
        (result, server)
    }

    /// Passes on what a connection tells, as long as it lives and leads to the Redis that helpers read from.
    fn follow(&mut self, mut wire: Wire, server: Option<&str>) {
        let began = Instant::now();
        // What was cached before was not watched. What is asked for from now on will be, and read from this Redis.
        self.shared.set_tracking_run_id(server.map(str::to_owned));
        self.shared.push_invalidations(vec![Invalidation::All]);
        self.shared.set_tracking(Ok(()));
        let heard = catch_unwind(AssertUnwindSafe(|| {
            while let Some(successor) = self.receive_invalidations(&mut wire, server)? {
                wire = successor;
            }
            Ok(())
        }));
        self.shared.push_invalidations(vec![Invalidation::TrackingLost]);
        self.shared.set_tracking_run_id(None);
        let why = match heard {
            Ok(Ok(())) => return,
            Ok(Err(error)) => describe_error(&error),
            Err(_) => "the tracking thread panicked; please report the panic logged before this line".to_owned(),
        };
        self.shared.set_tracking(Err(why));
        if began.elapsed() < MIN_STABLE_TIME {
            self.connector.back_off(Failure::Unavailable);
        } else {
            self.connector.reset_backoff();
        }
    }

    /// Returns when the pool closes, or with the connection that takes over.
    ///
    /// A successor receives changes before it takes over. A `PING` that is sent then is answered
    /// behind all changes that the successor may have missed.
    fn receive_invalidations(&mut self, wire: &mut Wire, server: Option<&str>) -> RedisResult<Option<Wire>> {
        let (mut is_asked, mut is_bloated, mut succession) = (false, false, Succession::Idle);
        wire.set_read_timeout(PING_AFTER_SILENCE)?;
        wire.set_longest_reply(MAX_MESSAGE_BYTES);
        while !self.shared.is_closed() {
            check_same_server(&self.shared, server)?;
            if is_bloated && !is_asked {
                succession = self.advance(succession, wire, server);
                if let Succession::Ready(_) = succession {
                    is_asked = true;
                    self.ask(wire)?;
                }
            }
            match wire.receive().and_then(message) {
                Ok(Message::Changes(changes)) => {
                    is_bloated |= changes.iter().map(Invalidation::bytes).sum::<usize>() > KEPT_MESSAGE_BYTES;
                    self.shared.push_invalidations(changes);
                }
                Ok(Message::Pong) => {
                    if let Succession::Ready(successor) = succession {
                        return Ok(Some(successor));
                    }
                    is_asked = false;
                    wire.set_read_timeout(PING_AFTER_SILENCE)?;
                }
                Err(error) if error.is_timeout() && !is_asked => {
                    is_asked = true;
                    self.ask(wire)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Begins to connect a successor, or takes the one that has connected. Where Redis allows none the
    /// present connection goes on, with its buffer, and so does one to a Redis that does not tell
    /// which it is: the successor might lead to another one.
    fn advance(&mut self, succession: Succession, wire: &Wire, server: Option<&str>) -> Succession {
        match succession {
            Succession::Idle if self.replace_from <= Instant::now() && self.has_no_successor_thread() => {
                self.replace_from = Instant::now() + REPLACEMENT_WAIT;
                let Some(server) = server else { return Succession::Idle };
                match self.connect_successor(wire, server.to_owned()) {
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

    /// Returns true if the last thread that connected a successor has ended: one at a time.
    fn has_no_successor_thread(&self) -> bool {
        self.connecting.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Starts a thread that connects to where the present connection leads, and to the same Redis.
    fn connect_successor(&mut self, wire: &Wire, server: String) -> std::io::Result<Receiver<RedisResult<Wire>>> {
        let (connector, peer) = (self.connector.clone(), wire.peer()?);
        let (sender, result) = channel();
        let thread = std::thread::Builder::new().name("redis-successor".into()).spawn(move || {
            let successor = connector.open(peer).and_then(|mut wire| {
                if run_id(&mut wire)?.as_ref() != Some(&server) {
                    return Err(std::io::Error::other("its address leads to another Redis server now").into());
                }
                subscribe(&mut wire).map(|()| wire)
            });
            // Without a receiver the present connection is lost, and the successor of no use.
            let _ = sender.send(successor);
        })?;
        self.connecting = Some(thread);
        Ok(result)
    }

    /// Asks whether Redis is still there. The answer may take REDIS_TIMEOUT.
    fn ask(&self, wire: &mut Wire) -> RedisResult<()> {
        wire.set_read_timeout(self.timeout)?;
        wire.send(&redis::cmd("PING").get_packed_command())
    }
}

/// Whether helpers read from this Redis, as far as is known.
fn check_same_server(shared: &PoolShared, server: Option<&str>) -> RedisResult<()> {
    if shared.reading_mismatch(server) {
        return Err(
            std::io::Error::other("fetchers read from another Redis server than the tracking connection").into()
        );
    }
    Ok(())
}

/// Makes a connection hear of changes. Not while Redis loads its data or has lost its master: it could be heard, but
/// not read, and what is cached may have to be served until then.
fn subscribe(wire: &mut Wire) -> RedisResult<()> {
    check_serving(wire.ask(&redis::cmd("PING")))?;
    let Value::Int(id) = wire.ask(redis::cmd("CLIENT").arg("ID"))? else { return Err(desync_error("CLIENT ID")) };
    wire.ask(redis::cmd("CLIENT").arg("TRACKING").arg("ON").arg("REDIRECT").arg(id).arg("BCAST"))?;
    wire.ask(redis::cmd("SUBSCRIBE").arg(CHANNEL)).map(|_| ())
}

/// Returns an error if an answer to `PING` means that Redis does not serve reads.
fn check_serving(answer: RedisResult<Value>) -> RedisResult<()> {
    match answer.and_then(Value::extract_error) {
        Err(error) if is_outage(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Interprets what Redis sends: a message about changes, or the answer to `PING`. An error can only
/// be the latter. What is neither may mean anything.
fn message(value: Value) -> RedisResult<Message> {
    let Value::Array(parts) = value else { return check_serving(Ok(value)).map(|()| Message::Pong) };
    let mut parts = parts.into_iter();
    match (parts.next(), parts.next(), parts.next()) {
        (Some(Value::BulkString(kind)), _, None) if kind == b"pong" => Ok(Message::Pong),
        (Some(Value::BulkString(kind)), _, Some(payload)) if kind == b"message" => {
            Ok(Message::Changes(parse_invalidations(payload)))
        }
        _ => Ok(Message::Changes(unreadable())),
    }
}

/// Returns the changes in a payload: keys, or nothing at all for a flush.
fn parse_invalidations(payload: Value) -> Vec<Invalidation> {
    match payload {
        Value::Nil => vec![Invalidation::All],
        Value::Array(keys) => {
            let key = |key| if let Value::BulkString(name) = key { Invalidation::Key(name) } else { Invalidation::All };
            keys.into_iter().map(key).collect()
        }
        _ => unreadable(),
    }
}

/// Takes a message that cannot be read for a change of everything.
fn unreadable() -> Vec<Invalidation> {
    log::warn!("unreadable invalidation message from Redis: cache flushed");
    vec![Invalidation::All]
}
