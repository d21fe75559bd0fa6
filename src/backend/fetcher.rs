//! One helper thread: take a batch, read it, deliver.
//!
//! Any error on a connection drops it: replies that are still on their way die with it and can never be taken for the
//! answer to another key. A connection that turns out to be closed is replaced and what is left of the batch asked once
//! more, because reading twice does no harm; a time-out is not retried, its clients have waited long enough.

use super::batch::Batch;
use super::connect::{Connector, connect_failure, describe_error, read_failure, run_id};
use super::reader::{KeyReader, ReadOptions};
use super::{BackendConfig, ConnectOutcome, PROBE_INTERVAL, PoolShared, Task};
use crate::types::Failure;
use redis::RedisError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A connection that has brought a longer value is replaced: the crate's parser keeps its buffer as long as the longest
/// reply, for ever. Replacing costs a fraction of what such a reply costs.
const MAX_REUSE_VALUE_BYTES: usize = 1024 * 1024;

/// A connection that is counted as one as long as it lives, also when a panic ends it.
struct CountedConnection {
    link: KeyReader,
    /// Which Redis it leads to, where that is known and matters.
    server: Option<String>,
    /// Whether anything was read over it.
    has_served: bool,
    shared: Arc<PoolShared>,
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        self.shared.record_disconnect();
    }
}

/// One helper's connection. See the top of the file.
pub(super) struct Fetcher {
    shared: Arc<PoolShared>,
    connector: Connector,
    connection: Option<CountedConnection>,
    timeout: Duration,
    max_value_bytes: usize,
    /// Whether changes are heard of, so that it matters which Redis is read.
    tracking: bool,
    /// Whether it goes on trying to connect where nobody is connected and there is nothing to read.
    retries_idle: bool,
}

/// Why a batch was not read.
enum BatchError {
    Connecting(Failure),
    Reading(RedisError),
}

impl Fetcher {
    pub(super) fn new(settings: &BackendConfig, shared: Arc<PoolShared>, tries: bool) -> Fetcher {
        Fetcher {
            shared,
            connector: Connector::new(settings),
            connection: None,
            timeout: settings.timeout,
            max_value_bytes: settings.max_value_bytes,
            tracking: settings.tracking,
            retries_idle: tries,
        }
    }

    /// Connects without a job.
    pub(super) fn preconnect(&mut self) {
        // A failure is in the log, and what there is to do next tries again.
        self.connection = self.connect().ok();
    }

    /// Serves jobs until the pool closes.
    pub(super) fn run(&mut self) {
        loop {
            let blocked_until = match self.connection {
                Some(_) => None,
                None => self.connector.backoff().map(|(until, _)| until),
            };
            let watch = (self.retries_idle || self.connection.is_some()).then_some(PROBE_INTERVAL);
            let done = match self.shared.next_task(self.connection.is_some(), blocked_until, watch) {
                Task::Fetch(batch) => {
                    let mut batch = Batch::new(Arc::clone(&self.shared), batch);
                    catch_unwind(AssertUnwindSafe(|| self.serve(&mut batch)))
                }
                Task::Connect => catch_unwind(AssertUnwindSafe(|| self.preconnect())),
                Task::Probe => catch_unwind(AssertUnwindSafe(|| self.probe())),
                Task::Exit => return,
            };
            if done.is_err() {
                // Replies may be on their way that nobody has counted.
                self.connection = None;
            }
        }
    }

    /// Finds out whether Redis is there. A connection that has ended meanwhile is replaced.
    fn probe(&mut self) {
        let Some(mut connection) = self.connection.take() else { return self.preconnect() };
        self.record_request();
        let result = connection.link.ping();
        self.count_round_trips(&mut connection.link);
        match result {
            Ok(trouble) => {
                self.record_contact(trouble.as_deref());
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
            self.shared.probe_now();
        }
    }

    /// Redis is about to be asked something.
    fn record_request(&self) {
        self.shared.update_status(|redis| redis.on_request(Instant::now()));
    }

    fn count_round_trips(&self, link: &mut KeyReader) {
        let round_trips = link.take_round_trips();
        self.shared.update_status(|redis| redis.round_trips += round_trips);
    }

    /// Redis was connected to, or asked for something else than keys.
    fn record_contact(&self, trouble: Option<&str>) {
        self.shared.update_status(|redis| redis.on_contact(trouble, Instant::now()));
    }

    /// Tells the log that a connection is lost, if it has not just told that of another one. Gives back what is told.
    fn log_loss(&self, error: &RedisError) -> String {
        let text = format!("lost a connection to Redis at {}: {}", self.connector.target(), describe_error(error));
        match self.shared.should_log_loss() {
            None => log::debug!("{text}"),
            Some(0) => log::warn!("{text}"),
            Some(untold) => log::warn!("{text} ({untold} more lost since the last such line)"),
        }
        text
    }

    /// Completes every job of a batch: what was read before an error counts, the rest fails with it.
    fn serve(&mut self, batch: &mut Batch) {
        batch.fail_expired(Instant::now());
        if batch.pending_count() == 0 {
            return;
        }
        loop {
            // After an error there is no connection: only one that may have been closed while it was idle is worth another attempt.
            let was_idle = self.connection.is_some();
            let asked = Instant::now();
            let failure = match self.read(batch, was_idle) {
                Ok(()) => return,
                Err(BatchError::Connecting(_)) if batch.requeue() => return,
                Err(BatchError::Connecting(failure)) => failure,
                Err(BatchError::Reading(error)) if was_idle && error.is_connection_dropped() => {
                    log::debug!(
                        "Redis at {} closed an idle connection, reconnecting: {error}",
                        self.connector.target()
                    );
                    continue;
                }
                Err(BatchError::Reading(error)) => {
                    let text = self.log_loss(&error);
                    // Replies come in order: it is the first of those that are open.
                    if let Some((_, key)) = batch.pending().first() {
                        self.shared.update_status(|redis| redis.on_read_failed(&text, key, asked, Instant::now()));
                    }
                    read_failure(&error)
                }
            };
            batch.fail_pending(&failure);
            return;
        }
    }

    /// Reads what is open, on a new connection where there is none; after an error there is none. `was_idle` says whether there
    /// was one before.
    fn read(&mut self, batch: &mut Batch, was_idle: bool) -> Result<(), BatchError> {
        let mut connection = match self.connection.take() {
            // The name may have come to lead to another Redis, and changes of this one are not heard of any more.
            Some(connection) if !self.shared.tracking_mismatch(connection.server.as_deref()) => connection,
            _ => self.connect().map_err(BatchError::Connecting)?,
        };
        let policy = ReadOptions { max_value_bytes: self.max_value_bytes, with_ttl: self.shared.reads_ttl() };
        let keys = batch.pending_count() as u64;
        self.record_request();
        let result = connection.link.read(batch, policy);
        self.count_round_trips(&mut connection.link);
        self.shared.update_status(|redis| redis.batch_sizes.observe(keys, 1));
        match result {
            Ok(told) => {
                self.shared.update_status(|redis| redis.on_read(batch.not_ready(), Instant::now()));
                if let Some(told) = told {
                    self.shared.set_ttl_support(told);
                }
                if !std::mem::replace(&mut connection.has_served, true) {
                    self.connector.reset_backoff();
                }
                if connection.link.longest_value() <= MAX_REUSE_VALUE_BYTES {
                    self.connection = Some(connection);
                }
                Ok(())
            }
            Err(error) => {
                if !(connection.has_served || error.is_timeout() || (was_idle && error.is_connection_dropped())) {
                    // It was no better than none: what answers there is no Redis, and would be asked for every key. That one
                    // was closed while nobody used it says nothing of the next.
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
        let (tracking, mut server) = (self.tracking, None);
        let result = self.connector.connect(|wire| {
            if tracking {
                server = run_id(wire)?;
            }
            Ok(())
        });
        let news = self.shared.record_connect(result.is_ok());
        // It counts from here on, and must be dropped whatever comes.
        let result = result.map(|wire| CountedConnection {
            link: KeyReader::new(wire, self.timeout),
            server,
            has_served: false,
            shared: Arc::clone(&self.shared),
        });
        let target = self.connector.target();
        match &result {
            Ok(_) => self.record_contact(None),
            // Others are connected, and what they see counts.
            Err(_) if self.shared.state().connected > 0 => {}
            Err(error) => {
                self.record_contact(Some(&format!("cannot connect to Redis at {target}: {}", describe_error(error))))
            }
        }
        match (&result, news) {
            (Ok(_), None) => {}
            (Ok(_), Some(_)) => log::info!("connected to Redis at {target}"),
            (Err(error), None) => log::debug!("cannot connect to Redis at {target}: {}", describe_error(error)),
            (Err(error), Some(ConnectOutcome::Degraded)) => {
                log::warn!(
                    "cannot open another connection to Redis at {target}, reading over the open ones: {}",
                    describe_error(error)
                )
            }
            (Err(error), Some(_)) => log::error!("cannot connect to Redis at {target}: {}", describe_error(error)),
        }
        let counted = result.map_err(|error| connect_failure(&error))?;
        self.shared.set_read_run_id(counted.server.clone());
        Ok(counted)
    }
}
