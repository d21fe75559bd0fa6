//! One helper thread: take a batch, one round trip, deliver.
//!
//! Any error on a connection drops it: replies that are still on their way die with it and can never be taken for the
//! answer to another key. A connection that turns out to be closed is replaced and the batch asked once more, because
//! reading twice does no harm; a time-out is not retried, its clients have waited long enough.

use super::connect::{Connector, failure_of};
use super::{Queued, Settings, Shared};
use crate::request::{Completion, Failure, Value};
use redis::{Connection, RedisError, RedisResult};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A connection that has brought a longer reply is replaced: the crate's parser keeps its buffer as long as the
/// longest reply, for ever. Replacing costs a fraction of what such a reply costs.
const KEPT_REPLY_BYTES: usize = 8 * 1024 * 1024;

/// What became of one key.
type Fetched = Result<Option<Value>, Failure>;

/// A connection that is counted as one as long as it lives, also when a panic ends it.
struct Counted {
    connection: Connection,
    shared: Arc<Shared>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.shared.note_lost();
    }
}

/// One helper's connection. See the top of the file.
pub(super) struct Helper {
    shared: Arc<Shared>,
    connector: Connector,
    connection: Option<Counted>,
    timeout: Duration,
}

impl Helper {
    pub(super) fn new(settings: &Settings, shared: Arc<Shared>) -> Helper {
        Helper { shared, connector: Connector::new(settings), connection: None, timeout: settings.timeout }
    }

    /// Connects before anybody asks.
    pub(super) fn connect_ahead(&mut self) {
        // A failure is in the log, and the first job tries again.
        self.connection = self.connect().ok();
    }

    /// Serves jobs until the pool closes.
    pub(super) fn run(&mut self) {
        loop {
            let blocked_until = match self.connection {
                Some(_) => None,
                None => self.connector.blocked().map(|(until, _)| until),
            };
            let Some(batch) = self.shared.take_batch(blocked_until) else { return };
            let (completions, whole) = complete_all(&batch, |batch| self.fetch(batch));
            if !whole {
                // Replies may be on their way that nobody has counted.
                self.connection = None;
            }
            self.shared.deliver(completions);
        }
    }

    /// Reads all keys of a batch but those that have waited for a helper as long as their first client waits.
    fn fetch(&mut self, batch: &[Queued]) -> Vec<Fetched> {
        let now = Instant::now();
        let asked: Vec<&Queued> = batch.iter().filter(|queued| queued.expires > now).collect();
        let mut fetched = self.read_or_retry(&asked).into_iter();
        let next = |queued: &Queued| if queued.expires > now { fetched.next() } else { Some(Err(Failure::Timeout)) };
        batch.iter().map_while(next).collect()
    }

    /// Says something about every key: what was read before an error counts, the rest fails with it.
    fn read_or_retry(&mut self, batch: &[&Queued]) -> Vec<Fetched> {
        let mut fetched = Vec::with_capacity(batch.len());
        // Only a connection that may have been closed while it was idle is worth a second attempt.
        let mut may_retry = self.connection.is_some();
        while fetched.len() < batch.len() {
            let failure = match self.read(&batch[fetched.len()..], &mut fetched) {
                Ok(()) => break,
                Err(Broken::Connecting(failure)) => failure,
                Err(Broken::Reading(error)) if may_retry && error.is_connection_dropped() => {
                    may_retry = false;
                    continue;
                }
                Err(Broken::Reading(error)) => failure_of(&error),
            };
            fetched.resize_with(batch.len(), || Err(failure.clone()));
        }
        fetched
    }

    /// One round trip, on a new connection where there is none; after an error there is none.
    fn read(&mut self, batch: &[&Queued], fetched: &mut Vec<Fetched>) -> Result<(), Broken> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().map_err(Broken::Connecting)?,
        };
        let before = fetched.len();
        let result = round_trip(&mut connection.connection, batch, self.timeout, fetched);
        let longest = fetched[before..].iter().map(length).max().unwrap_or(0);
        match &result {
            Ok(()) if longest <= KEPT_REPLY_BYTES => {
                self.connection = Some(connection);
                return Ok(());
            }
            Ok(()) => {}
            Err(error) => log::warn!("lost a connection to Redis at {}: {error}", self.connector.target()),
        }
        result.map_err(Broken::Reading)
    }

    fn connect(&mut self) -> Result<Counted, Failure> {
        if let Some((until, failure)) = self.connector.blocked()
            && Instant::now() < until
        {
            return Err(failure);
        }
        let result = self.connector.connect();
        let news = self.shared.note_attempt(result.is_ok());
        let target = self.connector.target();
        match &result {
            Ok(_) if news => log::info!("connected to Redis at {target}"),
            Ok(_) => {}
            Err((_, text)) if news => log::error!("cannot connect to Redis at {target}: {text}"),
            Err((_, text)) => log::debug!("cannot connect to Redis at {target}: {text}"),
        }
        let shared = Arc::clone(&self.shared);
        result.map(|connection| Counted { connection, shared }).map_err(|(failure, _)| failure)
    }
}

/// Why a round trip came to nothing.
enum Broken {
    Connecting(Failure),
    Reading(RedisError),
}

/// Bytes of a reply.
fn length(fetched: &Fetched) -> usize {
    fetched.as_ref().ok().and_then(Option::as_ref).map_or(0, |value| value.bytes.len())
}

/// Completes every job of the batch exactly once, whatever `fetch` does: also when it panics, or does not say something
/// about each job. Then the second part is false.
fn complete_all(batch: &[Queued], fetch: impl FnOnce(&[Queued]) -> Vec<Fetched>) -> (Vec<Completion>, bool) {
    let fetched = catch_unwind(AssertUnwindSafe(|| fetch(batch))).unwrap_or_default();
    let whole = fetched.len() == batch.len();
    if !whole {
        log::error!("a helper broke over {} keys; please report this", batch.len());
    }
    let results = fetched.into_iter().chain(std::iter::repeat_with(|| Err(Failure::Internal)));
    let complete = |(queued, result): (&Queued, _)| Completion { flight: queued.job.flight, result };
    (batch.iter().zip(results).map(complete).collect(), whole)
}

/// Asks for all keys and adds the replies to `fetched`. After `timeout` no further reply is waited for.
///
/// The crate's own pipelines would wait for each of the replies anew after a time-out; so replies are read one by one,
/// and the socket's time-out follows the time that is left. What the crate does not let us bound is a single reply that
/// comes in small pieces: it may go on as long as each piece comes in time. Clients do not wait for it: the loop has its
/// own deadline for them.
fn round_trip(
    connection: &mut Connection,
    batch: &[&Queued],
    timeout: Duration,
    fetched: &mut Vec<Fetched>,
) -> RedisResult<()> {
    let mut commands = Vec::new();
    for queued in batch {
        redis::cmd("GET").arg(&*queued.job.key).write_packed_command(&mut commands);
    }
    let deadline = Instant::now() + timeout;
    connection.send_packed_command(&commands)?;
    let mut left_at_last_change = timeout;
    for _ in batch {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
        }
        if left_at_last_change - left > timeout / 16 {
            connection.set_read_timeout(Some(left))?;
            left_at_last_change = left;
        }
        fetched.push(interpret(connection.recv_response()?)?);
    }
    if left_at_last_change != timeout {
        connection.set_read_timeout(Some(timeout))?;
    }
    Ok(())
}

/// A reply to `GET`. What cannot be one means that requests and replies have come apart.
fn interpret(reply: redis::Value) -> RedisResult<Fetched> {
    match reply {
        redis::Value::BulkString(bytes) => Ok(Ok(Some(Value::new(bytes)))),
        redis::Value::Nil => Ok(Ok(None)),
        redis::Value::ServerError(error) if error.code() == "WRONGTYPE" => Ok(Err(Failure::WrongType)),
        redis::Value::ServerError(error) => {
            Ok(Err(Failure::Redis(format!("{} {}", error.code(), error.details().unwrap_or_default()))))
        }
        _ => Err(RedisError::from((
            redis::ErrorKind::UnexpectedReturnType,
            "the reply to GET is of no type it can have",
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Job;

    fn batch(count: usize) -> Vec<Queued> {
        let queued = |flight| Queued { job: Job { flight, key: b"k"[..].into() }, expires: Instant::now() };
        (0..count).map(queued).collect()
    }

    fn flights(completions: &[Completion]) -> Vec<usize> {
        completions.iter().map(|completion| completion.flight).collect()
    }

    #[test]
    fn every_job_is_completed_once_even_when_the_helper_panics() {
        let (completions, whole) = complete_all(&batch(3), |_| panic!("on purpose"));
        assert!(!whole, "a connection is kept of which nobody knows what is still to come");
        assert_eq!(flights(&completions), [0, 1, 2]);
        assert!(completions.iter().all(|completion| completion.result == Err(Failure::Internal)));
        let (completions, whole) = complete_all(&batch(3), |_| vec![Ok(None)]);
        assert!(!whole);
        assert_eq!(flights(&completions), [0, 1, 2]);
        assert_eq!(completions[0].result, Ok(None));
        assert_eq!(completions[2].result, Err(Failure::Internal));
        let (completions, _) = complete_all(&batch(2), |_| vec![Ok(None), Ok(None), Ok(None)]);
        assert_eq!(flights(&completions), [0, 1]);
    }

    #[test]
    fn a_reply_that_get_cannot_have_ends_the_connection() {
        assert!(interpret(redis::Value::Int(1)).is_err());
        assert!(interpret(redis::Value::Okay).is_err());
        assert_eq!(interpret(redis::Value::Nil).ok(), Some(Ok(None)));
        let empty = interpret(redis::Value::BulkString(Vec::new())).ok();
        assert_eq!(empty, Some(Ok(Some(Value::new(Vec::new())))));
    }
}
