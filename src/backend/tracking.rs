//! Tracking thread: receives invalidations from Redis (server-assisted caching, `CLIENT TRACKING`).
//!
//! One connection in broadcasting mode receives the key of every write. So the fetchers'
//! connections may close at any time. In the default mode Redis remembers the keys that each
//! connection has read. That table can overflow, and Redis drops it silently when the connection
//! closes. docs/benchmarks.md has the cost of each mode.
//!
//! Only writes after the subscription are reported, and none once the connection is lost. The event
//! loop receives the start and the loss of the subscription in order with the invalidations.
//!
//! Each second the connection is checked: a network can fail silently, and a primary can become a
//! replica (`RoleWatch`).

use super::connect::{Connector, is_command_denied, read_failure, run_id};
use super::node::Node;
use super::role_watch::{RoleWatch, check_attached};
use super::stream::Endpoint;
use super::subscription::{
    Awaited, Message, Role, TrackingProtocol, check_commands, parse_message, request_cluster_state, request_role,
    subscribe,
};
use super::wire::Wire;
use crate::types::{Failure, Invalidation};
use redis::RedisResult;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Interval of the checks of a connection.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

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
    node: Arc<Node>,
    connector: Connector,
    /// Earliest time of the next replacement.
    replace_from: Instant,
    /// Last thread that connected a successor, running or finished.
    connecting: Option<JoinHandle<()>>,
    role_watch: RoleWatch,
}

/// Connection that receives invalidations.
struct TrackingConnection {
    wire: Wire,
    protocol: TrackingProtocol,
    /// True if the server is a node of a cluster.
    is_cluster: bool,
    awaited: Awaited,
    /// Time of the next check or, while a reply is awaited, the time at which it is late.
    deadline: Instant,
}

impl TrackingConnection {
    /// Subscribes a connection. Its first check is due at once.
    fn subscribe(mut wire: Wire, is_cluster: bool) -> RedisResult<TrackingConnection> {
        let protocol = subscribe(&mut wire)?;
        wire.set_longest_reply(MAX_MESSAGE_BYTES);
        Ok(TrackingConnection { wire, protocol, is_cluster, awaited: Awaited::Nothing, deadline: Instant::now() })
    }

    /// Sends a check, which Redis must answer within the timeout of a round trip.
    fn send_check(&mut self) -> RedisResult<()> {
        let (commands, awaited) = check_commands(self.protocol, self.is_cluster);
        (self.awaited, self.deadline) = (awaited, Instant::now() + self.wire.timeout());
        self.wire.send(&commands)
    }

    /// Receives a message. Returns `None` if a check is due. A late reply is an error.
    fn receive(&mut self) -> RedisResult<Option<Message>> {
        self.wire.set_deadline(self.deadline);
        let message = match self.wire.receive() {
            Err(error) if error.is_timeout() && self.awaited == Awaited::Nothing => return Ok(None),
            result => parse_message(result?, self.protocol, self.awaited)?,
        };
        self.awaited = match message {
            Message::Role(_) if self.is_cluster => Awaited::ClusterInfo,
            Message::Role(_) | Message::ClusterState(_) => Awaited::Pong,
            Message::Pong => Awaited::Nothing,
            Message::Invalidations(_) | Message::Ignored => self.awaited,
        };
        if self.awaited != Awaited::Nothing {
            // A reply that follows many invalidations is not late while they arrive.
            self.deadline = Instant::now() + self.wire.timeout();
        } else if message == Message::Pong {
            self.deadline = Instant::now() + CHECK_INTERVAL;
        }
        Ok(Some(message))
    }
}

/// Progress of replacing a tracking connection.
enum Succession {
    /// No replacement is in progress.
    Idle,
    /// A thread connects the successor. That may take long, and invalidations must not wait for it.
    Connecting(Receiver<RedisResult<TrackingConnection>>),
    /// The successor receives invalidations. It takes over after the reply to a `PING` sent from
    /// now on.
    Ready(Box<TrackingConnection>),
}

impl Tracker {
    pub(super) fn new(node: Arc<Node>) -> Tracker {
        let settings = &node.pool.settings;
        let (connector, replace_from) = (Connector::new(settings, &node.primary), Instant::now());
        let role_watch = RoleWatch::new(Arc::clone(&settings.access));
        Tracker { node, connector, replace_from, connecting: None, role_watch }
    }

    /// Connects and receives invalidations, until the node closes.
    pub(super) fn run(&mut self) {
        while self.node.sleep_until(self.connector.backoff().map(|(until, _)| until)) {
            let (result, server_id) = self.connect();
            match result {
                Ok(connection) => self.follow(connection, server_id.as_deref()),
                Err(error) => {
                    if is_command_denied(&error) {
                        self.connector.back_off_for(read_failure(&error), DENIED_RETRY_DELAY);
                    }
                    self.set_watched(Err(self.connector.describe(&error)));
                }
            }
            // The server that fetchers read from may be gone like this connection, so it counts as
            // unknown. It stays known if the connection ended because it led to another server.
            if check_same_server(&self.node, server_id.as_deref()).is_ok() {
                self.node.set_read_run_id(None);
            }
        }
    }

    /// Opens a connection that receives invalidations from now on. Also returns the run id of its
    /// server.
    fn connect(&mut self) -> (RedisResult<TrackingConnection>, Option<String>) {
        let Tracker { node, connector, role_watch, .. } = self;
        let is_cluster = node.pool.settings.access.is_cluster();
        let mut server_id = None;
        let result = connector.connect(|mut wire| {
            server_id = run_id(&mut wire)?;
            // A load balancer may have led the fetchers to another server a moment ago. Their
            // connections may stay open for ever, so they look for the present server again.
            check_same_server(node, server_id.as_deref()).inspect_err(|_| node.leave_server())?;
            let role = request_role(&mut wire)?;
            // A failover may have closed the connection over which it would have been noticed.
            role_watch.check_demotion(role, wire.endpoint()).inspect_err(|_| node.leave_server())?;
            check_attached(role)?;
            if is_cluster {
                request_cluster_state(&mut wire)?.map_err(io::Error::other)?;
            }
            Ok((TrackingConnection::subscribe(wire, is_cluster)?, role))
        });
        let result = result.and_then(|(connection, role)| self.check_role(role, &connection).map(|()| connection));
        (result, server_id)
    }

    /// Records that invalidations arrive from now on, or the reason why not. Everything cached is
    /// flushed once invalidations of all keys arrive, and expires once some do not.
    fn set_watched(&self, watched: Result<(), String>) {
        let is_lost = watched.is_err();
        self.node.pool.set_watched(self.node.id, watched);
        if is_lost {
            self.node.pool.request_map();
        }
    }

    /// Passes invalidations to the event loop, while the connection lives and leads to the server
    /// that fetchers read from.
    fn follow(&mut self, mut connection: TrackingConnection, server_id: Option<&str>) {
        let started_at = Instant::now();
        // Entries cached before now are not tracked, so all are flushed. Keys read from now on are
        // tracked, and fetchers read them from this server.
        self.node.set_tracking_run_id(server_id.map(str::to_owned));
        self.set_watched(Ok(()));
        self.role_watch.check_protocol(connection.protocol, &self.connector);
        let result = catch_unwind(AssertUnwindSafe(|| {
            while let Some(successor) = self.receive_invalidations(&mut connection, server_id)? {
                connection = successor;
            }
            Ok(())
        }));
        let reason = match result {
            // The node has closed.
            Ok(Ok(())) => return,
            Ok(Err(error)) => self.connector.describe(&error),
            Err(_) => "the tracking thread panicked; please report the panic logged before this line".to_owned(),
        };
        self.set_watched(Err(reason));
        self.node.set_tracking_run_id(None);
        if started_at.elapsed() < MIN_STABLE_TIME {
            self.connector.back_off(Failure::Unavailable);
        } else {
            self.connector.reset_backoff();
        }
    }

    /// Receives invalidations. Returns the successor that takes over, or `None` when the node
    /// closes.
    ///
    /// The successor subscribes before this connection sends `PING`. The reply arrives after all
    /// invalidations that the successor may have missed, so the handover loses none.
    fn receive_invalidations(
        &mut self,
        connection: &mut TrackingConnection,
        server_id: Option<&str>,
    ) -> RedisResult<Option<TrackingConnection>> {
        let (mut is_bloated, mut succession) = (false, Succession::Idle);
        while !self.node.is_closed() {
            check_same_server(&self.node, server_id)?;
            if is_bloated && connection.awaited == Awaited::Nothing {
                succession = self.advance(succession, connection.wire.endpoint(), server_id);
                if let Succession::Ready(_) = succession {
                    connection.send_check()?;
                }
            }
            match connection.receive()? {
                Some(Message::Invalidations(invalidations)) => {
                    let key_bytes: usize = invalidations.iter().map(Invalidation::bytes).sum();
                    is_bloated |= key_bytes > MAX_REUSE_MESSAGE_BYTES;
                    self.node.pool.push_invalidations(invalidations);
                }
                Some(Message::Pong) => {
                    if let Succession::Ready(successor) = succession {
                        return Ok(Some(*successor));
                    }
                }
                Some(Message::Role(role)) => self.check_role(role, connection)?,
                // The node may have lost its slots to another one, whose writes it does not see.
                Some(Message::ClusterState(Err(reason))) => {
                    self.node.leave_server();
                    return Err(io::Error::other(reason).into());
                }
                Some(Message::Ignored | Message::ClusterState(Ok(()))) => {}
                None => connection.send_check()?,
            }
        }
        Ok(None)
    }

    /// Leaves a server that is no longer the primary. The fetchers leave it too.
    fn check_role(&mut self, role: Role, connection: &TrackingConnection) -> RedisResult<()> {
        let result = self.role_watch.check(role, connection.wire.endpoint(), &self.connector);
        result.inspect_err(|_| self.node.leave_server())
    }

    /// Starts to connect a successor, or takes one that has connected.
    ///
    /// If Redis rejects the successor, the present connection stays, with its large buffer. It also
    /// stays if the server reports no run id, because the successor might lead to another server.
    fn advance(&mut self, succession: Succession, endpoint: &Endpoint, server_id: Option<&str>) -> Succession {
        match succession {
            Succession::Idle if self.replace_from <= Instant::now() && self.has_no_successor_thread() => {
                self.replace_from = Instant::now() + MIN_REPLACEMENT_INTERVAL;
                let Some(server_id) = server_id else { return Succession::Idle };
                match self.connect_successor(endpoint.clone(), server_id.to_owned()) {
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
                Ok(Ok(successor)) => Succession::Ready(Box::new(successor)),
                Ok(Err(error)) => {
                    log::debug!(
                        "cannot replace the tracking connection to Redis, keeping the old one: {}",
                        self.connector.describe(&error)
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
    fn connect_successor(
        &mut self,
        endpoint: Endpoint,
        server_id: String,
    ) -> io::Result<Receiver<RedisResult<TrackingConnection>>> {
        let (connector, is_cluster) = (self.connector.clone(), self.node.pool.settings.access.is_cluster());
        let (sender, result) = channel();
        let thread = std::thread::Builder::new().name("redis-successor".into()).spawn(move || {
            let successor = connector.open(endpoint).and_then(|mut wire| {
                if run_id(&mut wire)?.as_ref() != Some(&server_id) {
                    return Err(io::Error::other("its address leads to another Redis server now").into());
                }
                TrackingConnection::subscribe(wire, is_cluster)
            });
            // Without a receiver the present connection is lost, and the successor is not needed.
            let _ = sender.send(successor);
        })?;
        self.connecting = Some(thread);
        Ok(result)
    }
}

/// Returns an error if fetchers are known to read from another server than `server_id`.
fn check_same_server(node: &Node, server_id: Option<&str>) -> RedisResult<()> {
    if node.reading_mismatch(server_id) {
        return Err(io::Error::other("fetchers read from another Redis server than the tracking connection").into());
    }
    Ok(())
}
