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

/// One helper's connection. See the top of the file.
pub(super) struct Helper {
    shared: Arc<Shared>,
    connector: Connector,
    connection: Option<Connection>,
    timeout: Duration,
}

impl Helper {
    pub(super) fn new(settings: &Settings, shared: Arc<Shared>) -> Helper {
        Helper { shared, connector: Connector::new(settings), connection: None, timeout: settings.timeout }
    }

    /// Connects before anybody asks.
    pub(super) fn connect_ahead(&mut self) {
        // A failure is in the log, and the first job tries again.
        let _ = self.connect();
    }

    /// Serves jobs until the pool closes.
    pub(super) fn run(&mut self) {
        loop {
            let blocked_until = match self.connection {
                Some(_) => None,
                None => self.connector.blocked().map(|(until, _)| until),
            };
            let Some(batch) = self.shared.take_batch(blocked_until) else { return };
            let completions = complete_all(&batch, |batch| self.fetch(batch));
            self.shared.deliver(completions);
        }
    }

    /// Reads all keys of a batch.
    fn fetch(&mut self, batch: &[Queued]) -> Vec<Fetched> {
        let started = Instant::now();
        let (asked, late): (Vec<_>, Vec<_>) = batch.iter().partition(|queued| queued.expires > started);
        if asked.is_empty() {
            return batch.iter().map(|_| Err(Failure::Timeout)).collect();
        }
        let mut fetched = match self.read_or_retry(&asked) {
            Ok(fetched) => fetched,
            Err(failure) => asked.iter().map(|_| Err(failure.clone())).collect(),
        }
        .into_iter();
        if late.is_empty() {
            return fetched.collect();
        }
        let late = |queued: &Queued| queued.expires <= started;
        batch
            .iter()
            .map(
                |queued| {
                    if late(queued) { Err(Failure::Timeout) } else { fetched.next().unwrap_or(Err(Failure::Internal)) }
                },
            )
            .collect()
    }

    fn read_or_retry(&mut self, batch: &[&Queued]) -> Result<Vec<Fetched>, Failure> {
        let fresh = self.connection.is_none();
        if fresh {
            self.connect()?;
        }
        match self.read(batch) {
            Ok(fetched) => Ok(fetched),
            Err(error) if error.is_connection_dropped() && !fresh => {
                self.connect()?;
                self.read(batch).map_err(|error| failure_of(&error))
            }
            Err(error) => Err(failure_of(&error)),
        }
    }

    /// One round trip on the connection that there is; on an error there is none afterwards.
    fn read(&mut self, batch: &[&Queued]) -> RedisResult<Vec<Fetched>> {
        let Some(connection) = &mut self.connection else {
            return Err(std::io::Error::from(std::io::ErrorKind::NotConnected).into());
        };
        let result = round_trip(connection, batch, self.timeout);
        match &result {
            Ok((_, longest)) if *longest <= KEPT_REPLY_BYTES => {}
            Ok(_) => self.disconnect(),
            Err(error) => {
                log::warn!("lost a connection to Redis at {}: {error}", self.connector.target());
                self.disconnect();
            }
        }
        result.map(|(fetched, _)| fetched)
    }

    fn connect(&mut self) -> Result<(), Failure> {
        if let Some((until, failure)) = self.connector.blocked()
            && Instant::now() < until
        {
            return Err(failure);
        }
        let result = self.connector.connect();
        let mut state = self.shared.state();
        let reachable = result.is_ok();
        let news = state.reachable.replace(reachable) != Some(reachable);
        state.connected += usize::from(reachable);
        drop(state);
        match result {
            Ok(connection) => {
                if news {
                    log::info!("connected to Redis at {}", self.connector.target());
                }
                self.connection = Some(connection);
                Ok(())
            }
            Err((failure, text)) => {
                let level = if news { log::Level::Error } else { log::Level::Debug };
                log::log!(level, "cannot connect to Redis at {}: {text}", self.connector.target());
                Err(failure)
            }
        }
    }

    fn disconnect(&mut self) {
        if self.connection.take().is_some() {
            let mut state = self.shared.state();
            state.connected -= 1;
            if state.connected == 0 {
                self.shared.all_lost.notify_all();
            }
        }
    }
}

/// Completes every job of the batch exactly once, whatever `fetch` does: also when it panics, or does not say something
/// about each job.
fn complete_all(batch: &[Queued], fetch: impl FnOnce(&[Queued]) -> Vec<Fetched>) -> Vec<Completion> {
    let fetched = catch_unwind(AssertUnwindSafe(|| fetch(batch))).unwrap_or_default();
    if fetched.len() != batch.len() {
        log::error!("a helper broke over {} keys; please report this", batch.len());
    }
    let results = fetched.into_iter().chain(std::iter::repeat_with(|| Err(Failure::Internal)));
    batch.iter().zip(results).map(|(queued, result)| Completion { flight: queued.job.flight, result }).collect()
}

/// Asks for all keys and reads all replies, within `timeout` altogether. Says how long the longest reply was.
///
/// The crate's own pipelines would wait for each of the replies anew after a time-out; so replies are read one by one,
/// and the socket's time-out follows the time that is left.
fn round_trip(connection: &mut Connection, batch: &[&Queued], timeout: Duration) -> RedisResult<(Vec<Fetched>, usize)> {
    let mut commands = Vec::new();
    for queued in batch {
        redis::cmd("GET").arg(&*queued.job.key).write_packed_command(&mut commands);
    }
    let deadline = Instant::now() + timeout;
    connection.send_packed_command(&commands)?;
    let (mut left_at_last_change, mut longest) = (timeout, 0);
    let mut fetched = Vec::with_capacity(batch.len());
    for _ in batch {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
        }
        if left_at_last_change - left > timeout / 16 {
            connection.set_read_timeout(Some(left))?;
            left_at_last_change = left;
        }
        let reply = interpret(connection.recv_response()?)?;
        if let Ok(Some(value)) = &reply {
            longest = longest.max(value.bytes.len());
        }
        fetched.push(reply);
    }
    if left_at_last_change != timeout {
        connection.set_read_timeout(Some(timeout))?;
    }
    Ok((fetched, longest))
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
        let completions = complete_all(&batch(3), |_| panic!("on purpose"));
        assert_eq!(flights(&completions), [0, 1, 2]);
        assert!(completions.iter().all(|completion| completion.result == Err(Failure::Internal)));
        let completions = complete_all(&batch(3), |_| vec![Ok(None)]);
        assert_eq!(flights(&completions), [0, 1, 2]);
        assert_eq!(completions[0].result, Ok(None));
        assert_eq!(completions[2].result, Err(Failure::Internal));
        let completions = complete_all(&batch(2), |_| vec![Ok(None), Ok(None), Ok(None)]);
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
