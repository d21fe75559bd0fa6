//! Fetcher thread: takes a batch of jobs, reads the keys from Redis, and delivers the results.
//!
//! Any error closes the connection (poisoned-connections-close). Late replies are lost with it and
//! can never answer another key. If Redis closed an idle connection, the fetcher reconnects and
//! repeats the pending part of the batch, because reads are idempotent. A timeout is not retried,
//! because the clients have waited long enough.

use super::PROBE_INTERVAL;
use super::batch::Batch;
use super::connect::{CLUSTER_WARNING, Connector, connect_failure, read_failure, run_id};
use super::node::Node;
use super::reader::{KeyReader, ReadOptions};
use super::task::{ConnectOutcome, Task};
use crate::types::Failure;
use redis::RedisError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

/// Connection that is counted in the pool's state until it is dropped, also by a panic.
struct CountedConnection {
    reader: KeyReader,
    /// Generation of the node when the connection was opened.
    generation: u64,
    /// Run id of the Redis server. Known only with tracking, and if the server reports one.
    run_id: Option<String>,
    /// True once keys were read over this connection.
    has_served: bool,
    node: Arc<Node>,
}

impl CountedConnection {
    /// Returns true if the connection must be replaced before keys are read over it.
    fn is_outdated(&self) -> bool {
        self.node.is_outdated(self.generation, self.run_id.as_deref())
    }
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        self.node.record_disconnect();
    }
}

/// State of one fetcher thread, with at most one connection.
pub(super) struct Fetcher {
    node: Arc<Node>,
    connector: Connector,
    connection: Option<CountedConnection>,
    max_value_bytes: usize,
    /// True with REDIS_TRACKING. Reads and invalidations must then come from the same server.
    tracking: bool,
    /// True if this fetcher keeps trying to connect while no fetcher is connected and no job waits.
    retries_idle: bool,
}

/// Reason why a batch was not read.
enum BatchError {
    Connecting(Failure),
    Reading(RedisError),
}

impl Fetcher {
    pub(super) fn new(node: Arc<Node>, retries_idle: bool) -> Fetcher {
        let settings = &node.pool.settings;
        Fetcher {
            connector: Connector::new(settings, &node.primary),
            connection: None,
            max_value_bytes: settings.max_value_bytes,
            tracking: settings.tracking,
            retries_idle,
            node,
        }
    }

    /// Connects before there is a job.
    pub(super) fn preconnect(&mut self) {
        // A failure is logged, and the next task tries again.
        self.connection = self.connect().ok();
    }

    /// Runs tasks until the node closes.
    pub(super) fn run(&mut self) {
        loop {
            let blocked_until = match self.connection {
                Some(_) => None,
                None => self.connector.backoff().map(|(until, _)| until),
            };
            let probe_interval = (self.retries_idle || self.connection.is_some()).then_some(PROBE_INTERVAL);
            let result = match self.node.next_task(self.connection.is_some(), blocked_until, probe_interval) {
                Task::Fetch(batch) => {
                    let mut batch = Batch::new(Arc::clone(&self.node), batch);
                    catch_unwind(AssertUnwindSafe(|| self.serve(&mut batch)))
                }
                Task::Connect => catch_unwind(AssertUnwindSafe(|| self.preconnect())),
                Task::Probe => catch_unwind(AssertUnwindSafe(|| self.probe())),
                Task::Exit => return,
            };
            if result.is_err() {
                // After a panic the number of outstanding replies is unknown.
                self.connection = None;
            }
        }
    }

    /// Checks that Redis answers, and replaces a connection that was lost while idle. Also replaces
    /// one to a server that was left: until a fetcher has found the present server, tracking waits.
    fn probe(&mut self) {
        let connection = self.connection.take().filter(|connection| !connection.is_outdated());
        let Some(mut connection) = connection else { return self.preconnect() };
        self.record_request();
        let result = connection.reader.ping();
        self.count_round_trips(&mut connection.reader);
        match result {
            Ok(reason) => {
                self.record_contact(reason.as_deref());
                self.connection = Some(connection);
                return;
            }
            Err(error) if error.is_connection_dropped() => drop(connection),
            Err(error) => {
                drop(connection);
                let text = self.log_loss(&error);
                self.record_contact(Some(&text));
            }
        }
        self.preconnect();
        if self.connection.is_none() {
            self.node.probe_now();
        }
    }

    /// Records that a request is about to be sent to Redis.
    fn record_request(&self) {
        self.node.update_status(|node| node.on_request(Instant::now()));
    }

    fn count_round_trips(&self, reader: &mut KeyReader) {
        let (round_trips, durations) = reader.take_round_trips();
        self.node.update_status(|node| node.counters.add_round_trips(round_trips, &durations));
    }

    /// Records the result of a connect or a `PING`: `reason` says why Redis cannot serve.
    fn record_contact(&self, reason: Option<&str>) {
        self.node.update_status(|node| node.on_contact(reason, Instant::now()));
    }

    /// Logs the loss of a connection, as a warning at most once in 10 s. Returns the text.
    fn log_loss(&self, error: &RedisError) -> String {
        let text =
            format!("lost a connection to Redis at {}: {}", self.connector.target(), self.connector.describe(error));
        match self.node.should_log_loss() {
            None => log::debug!("{text}"),
            Some(0) => log::warn!("{text}"),
            Some(suppressed) => log::warn!("{text} ({suppressed} more lost since the last such line)"),
        }
        text
    }

    /// Reads a batch. Keys that were read before an error keep their results, the others fail with
    /// it.
    fn serve(&mut self, batch: &mut Batch) {
        batch.fail_expired(Instant::now());
        if batch.pending_count() == 0 {
            return;
        }
        loop {
            // Only a connection that existed before may have been closed while idle. An error drops
            // it, so the second attempt is the last.
            let was_idle = self.connection.is_some();
            let requested_at = Instant::now();
            let failure = match self.read(batch, was_idle) {
                Ok(()) => return,
                Err(BatchError::Connecting(_)) if batch.requeue() => return,
                Err(BatchError::Connecting(failure)) => {
                    // Another node may serve its keys by now.
                    self.node.pool.request_map();
                    failure
                }
                Err(BatchError::Reading(error)) if was_idle && error.is_connection_dropped() => {
                    log::debug!(
                        "Redis at {} closed an idle connection, reconnecting: {error}",
                        self.connector.target()
                    );
                    continue;
                }
                Err(BatchError::Reading(error)) => {
                    let text = self.log_loss(&error);
                    // Replies come in order, so the read of the first pending key failed.
                    if let Some(first) = batch.pending().first() {
                        self.node
                            .update_status(|node| node.on_read_failed(&text, &first.key, requested_at, Instant::now()));
                    }
                    self.node.pool.request_map();
                    read_failure(&error)
                }
            };
            // Another node serves the keys of one that was closed meanwhile.
            if !(self.node.is_closed() && batch.requeue()) {
                batch.fail_pending(&failure);
            }
            return;
        }
    }

    /// Reads the pending keys of a batch, and connects first if there is no connection. An error
    /// drops the connection. `was_idle` is true if the connection existed before.
    fn read(&mut self, batch: &mut Batch, was_idle: bool) -> Result<(), BatchError> {
        let mut connection = match self.connection.take() {
            // The host of Redis may lead to another server now. The old one sends no invalidations
            // any more.
            Some(connection) if !connection.is_outdated() => connection,
            _ => self.connect().map_err(BatchError::Connecting)?,
        };
        // If a load balancer leads to another server than the one that sends the invalidations, no
        // invalidation of these values comes.
        let is_outdated = connection.is_outdated();
        batch.set_may_cache(self.node.pool.may_cache(self.node.id).map(|may_cache| may_cache && !is_outdated));
        let options = ReadOptions { max_value_bytes: self.max_value_bytes, with_ttl: self.node.pool.reads_ttl() };
        let keys = batch.pending_count() as u64;
        self.record_request();
        let result = connection.reader.read(batch, options);
        let (round_trips, durations) = connection.reader.take_round_trips();
        self.node.update_status(|node| {
            node.counters.add_round_trips(round_trips, &durations);
            node.counters.batch_sizes.observe(keys, 1);
            if result.is_ok() {
                node.on_read(batch.not_ready(), Instant::now());
            }
        });
        match result {
            Ok(ttl_support) => {
                if batch.is_misdirected() && self.node.pool.should_log_redirection() {
                    log::warn!("Redis at {} {CLUSTER_WARNING}", self.connector.target());
                }
                if batch.denies_asking() && self.node.pool.should_log_redirection() {
                    log::warn!(
                        "Redis at {} denies ASKING: keys that move between nodes cannot be read; grant +asking to the user \
                         of the proxy",
                        self.connector.target()
                    );
                }
                if let Some(result) = ttl_support {
                    self.node.pool.set_ttl_support(result);
                }
                if !std::mem::replace(&mut connection.has_served, true) {
                    self.connector.reset_backoff();
                }
                connection.reader.shrink();
                self.connection = Some(connection);
                Ok(())
            }
            Err(error) => {
                if !(connection.has_served || error.is_timeout() || (was_idle && error.is_connection_dropped())) {
                    // A new connection failed at its first read, so the server may be no Redis.
                    // Without a backoff each key would connect again. A close while idle says
                    // nothing about the next connection.
                    self.connector.back_off(read_failure(&error));
                }
                Err(BatchError::Reading(error))
            }
        }
    }

    fn connect(&mut self) -> Result<CountedConnection, Failure> {
        if let Some((until, failure)) = self.connector.backoff()
            && Instant::now() < until
        {
            return Err(failure);
        }
        let (tracking, mut server_id, generation) = (self.tracking, None, self.node.generation());
        let result = self.connector.connect(|mut wire| {
            if tracking {
                server_id = run_id(&mut wire)?;
            }
            Ok(wire)
        });
        let outcome = self.node.record_connect(result.is_ok());
        // The connection is counted from here on. Dropping it ends the count.
        let result = result.map(|wire| CountedConnection {
            reader: KeyReader::new(wire),
            generation,
            run_id: server_id,
            has_served: false,
            node: Arc::clone(&self.node),
        });
        let target = self.connector.target();
        match &result {
            Ok(_) => self.record_contact(None),
            // The fetchers that are connected decide whether Redis is available.
            Err(_) if self.node.state().connected > 0 => {}
            Err(error) => self.record_contact(Some(&format!(
                "cannot connect to Redis at {target}: {}",
                self.connector.describe(error)
            ))),
        }
        match (&result, outcome) {
            (Ok(_), None) => {}
            (Ok(_), Some(_)) => log::info!("connected to Redis at {target}"),
            (Err(error), None) => {
                log::debug!("cannot connect to Redis at {target}: {}", self.connector.describe(error))
            }
            (Err(error), Some(ConnectOutcome::Degraded)) => {
                log::warn!(
                    "cannot open another connection to Redis at {target}, reading over the open ones: {}",
                    self.connector.describe(error)
                )
            }
            (Err(error), Some(_)) => {
                log::error!("cannot connect to Redis at {target}: {}", self.connector.describe(error))
            }
        }
        let counted = result.map_err(|error| {
            self.node.pool.request_map();
            connect_failure(&error)
        })?;
        self.node.set_read_run_id(counted.run_id.clone());
        Ok(counted)
    }
}
