//! Reads keys: packs the commands of a round trip and interprets their replies.
//!
//! Each key takes two plain commands, all keys of a batch share one round trip:
//!
//! ```text
//!     GETRANGE key 0 n   PTTL key     ->  value  ttl
//! ```
//!
//! No value brings in more than `n` + 1 bytes. A longer one is asked for its length and, where that is allowed, read alone.
//!
//! Plain commands, and not a transaction: Redis refuses to queue reads while it is over `maxmemory`, and answers them
//! otherwise. A write can fall between the two commands. The value that was read has been changed then, and CACHE_TTL and
//! tracking treat it like any value that changes after it was read. All that it gets is the lifetime of the newer value. In
//! the reverse order a newer value could outlive its own expiry.
//!
//! A ttl of -2 means that the key is missing, or has just gone. Beside any other ttl an empty value is ambiguous, because the
//! key may have been created between the two commands. `GET` tells, after another look at the length.
//!
//! Where Redis refuses any of these commands with an error (an ACL, another server that speaks its protocol) but not `GET`,
//! `GET` it is, after a look at the length.

use super::batch::{Batch, BatchKey, FetchResult};
use super::connect::{is_command_denied, read_failure, single_line};
use super::wire::Wire;
use crate::types::{Failure, FetchedValue, Millis};
use crate::value::Value;
use redis::{ErrorKind, RedisError, RedisResult, ServerError};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest value of a batch's first round trip. With 128 keys it bounds what a helper holds to 8 MiB; a second round
/// trip costs little beside a value that is longer.
const FIRST_READ_BYTES: usize = 64 * 1024;

/// Bytes that the two commands for a key take beside the key itself, which stands in both; a few more than needed.
const TX_OVERHEAD_BYTES: usize = 96;

/// A connection, and how long its replies may be waited for.
pub(super) struct KeyReader {
    wire: Wire,
    /// Of each round trip.
    timeout: Duration,
    /// When the present one has taken too long.
    deadline: Instant,
    /// The socket's time-out as it was last set.
    socket_timeout: Duration,
    /// Bytes of the longest value so far.
    longest_value: usize,
    /// Round trips so far that were not counted elsewhere.
    round_trips: u64,
}

/// What to read of a value, and with what.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadOptions {
    /// Longer values are refused.
    pub(super) max_value_bytes: usize,
    /// Whether to ask for the time that keys have left.
    pub(super) with_ttl: bool,
}

/// Replies to the two commands for one key.
enum TxReply {
    /// The key's value, or its absence.
    Read(Reading),
    /// Redis could not read the key.
    Failed(Failure),
    /// Redis refuses one of the commands, and says why.
    Refused(ServerError),
}

/// Meaning of a value and of the ttl that was asked for after it.
#[derive(Debug, PartialEq, Eq)]
pub enum Reading {
    /// There is no such key.
    Missing,
    /// The value is longer than what was asked for.
    Truncated,
    /// The value is empty. After `GETRANGE` the key may also have been missing, and created since.
    Empty(FetchedValue),
    /// The value.
    Value(FetchedValue),
}

impl Reading {
    /// Interprets a value and its ttl. `bytes` is the reply to `GETRANGE key 0 limit`, or to `GET key`, where it is `None` for a
    /// missing key. `ttl` is the reply to `PTTL`, in milliseconds: -1 for a key that does not expire, -2 for a missing key.
    pub fn of(bytes: Option<Vec<u8>>, ttl: i64, limit: usize) -> Reading {
        let Some(bytes) = bytes.filter(|_| ttl != -2) else { return Reading::Missing };
        if bytes.len() > limit {
            return Reading::Truncated;
        }
        let is_empty = bytes.is_empty();
        let fetched = FetchedValue { value: Value::new(bytes), ttl: Millis::try_from(ttl).ok() };
        if is_empty { Reading::Empty(fetched) } else { Reading::Value(fetched) }
    }
}

impl TxReply {
    /// Classifies an error that Redis answered one of the two commands with.
    fn of_error(error: ServerError) -> TxReply {
        match is_command_denied(&error.clone().into()) {
            true => TxReply::Refused(error),
            false => TxReply::Failed(failure_in(error)),
        }
    }

    /// Returns the outcome for the clients of a key that is not asked for in any other way.
    fn outcome(self) -> FetchResult {
        match self {
            TxReply::Read(Reading::Missing) => Ok(None),
            TxReply::Read(Reading::Value(fetched) | Reading::Empty(fetched)) => Ok(Some(fetched)),
            TxReply::Read(Reading::Truncated) => Err(Failure::TooLong),
            TxReply::Failed(failure) => Err(failure),
            TxReply::Refused(error) => Err(failure_in(error)),
        }
    }
}

impl KeyReader {
    /// The connection's time-outs must be `timeout`.
    pub(super) fn new(mut wire: Wire, timeout: Duration) -> KeyReader {
        wire.set_longest_reply(usize::MAX);
        KeyReader { wire, timeout, deadline: Instant::now(), socket_timeout: timeout, longest_value: 0, round_trips: 0 }
    }

    /// Bytes of the longest value so far.
    pub(super) fn longest_value(&self) -> usize {
        self.longest_value
    }

    /// How many round trips there have been since this was last asked.
    pub(super) fn take_round_trips(&mut self) -> u64 {
        std::mem::take(&mut self.round_trips)
    }

    /// Asks whether Redis is there, and what is the matter where it cannot serve.
    pub(super) fn ping(&mut self) -> RedisResult<Option<String>> {
        self.send(&redis::cmd("PING").get_packed_command())?;
        match self.recv()? {
            redis::Value::ServerError(error) => match failure_in(error) {
                Failure::NotReady(text) => Ok(Some(text)),
                // It is there, and the user may not ask.
                _ => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// Begins a round trip.
    fn send(&mut self, commands: &[u8]) -> RedisResult<()> {
        self.round_trips += 1;
        self.deadline = Instant::now() + self.timeout;
        self.wire.send(commands)
    }

    /// The next reply, if it comes before the round trip's deadline.
    ///
    /// The crate's own pipelines would wait for each of the replies anew after a time-out; so replies are read one by
    /// one, and the socket's time-out follows the time that is left. What the crate does not let us bound is a single
    /// reply that comes in small pieces: it may go on as long as each piece comes in time. Clients do not wait for it:
    /// the loop has its own deadline for them.
    fn recv(&mut self) -> RedisResult<redis::Value> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
        }
        if self.socket_timeout.abs_diff(left) > self.timeout / 16 {
            self.wire.set_read_timeout(left)?;
            self.socket_timeout = left;
        }
        self.wire.receive()
    }

    /// A short reply that comes together with the one before it, without another look at the clock: it may take as long as the
    /// one before it might have. The next [`KeyReader::reply`] is bounded again.
    fn recv_next(&mut self) -> RedisResult<redis::Value> {
        self.wire.receive()
    }

    /// Reads all open keys of a batch. Says whether Redis tells how long keys have left, or why it refuses that but not
    /// `GET`, if this batch shows it. After an error the connection is of no use any more; what was completed before it
    /// counts.
    pub(super) fn read(&mut self, batch: &mut Batch, policy: ReadOptions) -> RedisResult<Option<Result<(), String>>> {
        let open = batch.pending();
        if open.is_empty() {
            return Ok(None);
        }
        if !policy.with_ttl {
            self.read_with_get(&open, batch, policy)?;
            return Ok(None);
        }
        let limit = FIRST_READ_BYTES.min(policy.max_value_bytes);
        let (mut long, mut empty, mut refused, mut told) = (Vec::new(), Vec::new(), Vec::new(), None);
        self.send(&values_and_ttls(&open, Some(limit)))?;
        for (place, key) in open {
            let reading = match self.value_and_ttl(limit)? {
                TxReply::Read(reading) => reading,
                TxReply::Failed(failure) => {
                    batch.complete(place, Err(failure));
                    continue;
                }
                TxReply::Refused(error) => {
                    refused.push((place, key));
                    told = Some(Err(single_line(&error.into())));
                    continue;
                }
            };
            told = told.or(Some(Ok(())));
            match reading {
                Reading::Missing => batch.complete(place, Ok(None)),
                Reading::Value(fetched) => batch.complete(place, Ok(Some(fetched))),
                Reading::Truncated => long.push((place, key)),
                Reading::Empty(_) => empty.push((place, key)),
            }
        }
        // Nobody waits for longer values or for second questions but those who asked for them.
        batch.deliver();
        // A key that cannot be read at all says nothing about others.
        if !refused.is_empty() && !self.read_with_get(&refused, batch, policy)? {
            told = None;
        }
        self.read_empty(&empty, batch, policy)?;
        self.read_long_values(&long, batch, policy)?;
        Ok(told)
    }

    /// Reads by `GET`. Says whether any key could be read so. Where Redis refuses `STRLEN`, a value that is
    /// too long arrives whole before it is refused.
    fn read_with_get(&mut self, keys: &[BatchKey], batch: &mut Batch, policy: ReadOptions) -> RedisResult<bool> {
        let fitting = self.drop_too_long(keys, batch, policy)?;
        let mut readable = false;
        if !fitting.is_empty() {
            self.send(&commands("GET", &fitting))?;
        }
        for (place, _) in fitting {
            let outcome = self.recv_get(policy.max_value_bytes)?;
            readable |= outcome.is_ok();
            batch.complete(place, outcome);
        }
        Ok(readable)
    }

    /// Reads values that are longer than [`FIRST_READ_BYTES`], one by one, those that are not too long.
    fn read_long_values(&mut self, keys: &[BatchKey], batch: &mut Batch, policy: ReadOptions) -> RedisResult<()> {
        let limit = policy.max_value_bytes;
        if limit <= FIRST_READ_BYTES {
            keys.iter().for_each(|&(place, _)| batch.complete(place, Err(Failure::TooLong)));
            return Ok(());
        }
        for (place, key) in self.drop_too_long(keys, batch, policy)? {
            batch.deliver();
            let asked = [(place, key)];
            self.send(&values_and_ttls(&asked, Some(limit)))?;
            match self.value_and_ttl(limit)? {
                TxReply::Read(Reading::Empty(_)) => self.read_empty(&asked, batch, policy)?,
                answer => batch.complete(place, answer.outcome()),
            }
        }
        Ok(())
    }

    /// Reads keys by `GET`, which tells an empty value from a missing key, after another look at the
    /// length. A value that was written since and is too long ends the connection.
    fn read_empty(&mut self, keys: &[BatchKey], batch: &mut Batch, policy: ReadOptions) -> RedisResult<()> {
        if keys.is_empty() {
            return Ok(());
        }
        batch.deliver();
        let keys = self.drop_too_long(keys, batch, policy)?;
        self.wire.set_longest_reply(policy.max_value_bytes);
        if !keys.is_empty() {
            self.send(&values_and_ttls(&keys, None))?;
        }
        for (place, _) in keys {
            let answer = self.value_and_ttl(policy.max_value_bytes)?;
            batch.complete(place, answer.outcome());
        }
        self.wire.set_longest_reply(usize::MAX);
        Ok(())
    }

    /// Those keys whose values are not too long, as far as Redis tells.
    fn drop_too_long(
        &mut self,
        keys: &[BatchKey],
        batch: &mut Batch,
        policy: ReadOptions,
    ) -> RedisResult<Vec<BatchKey>> {
        let mut fitting = Vec::with_capacity(keys.len());
        if !keys.is_empty() {
            self.send(&commands("STRLEN", keys))?;
        }
        for &(place, ref key) in keys {
            match self.recv()? {
                redis::Value::Int(length) if length > policy.max_value_bytes as i64 => {
                    batch.complete(place, Err(Failure::TooLong));
                }
                redis::Value::Int(_) => fitting.push((place, Arc::clone(key))),
                redis::Value::ServerError(error) if is_command_denied(&error.clone().into()) => {
                    fitting.push((place, Arc::clone(key)));
                }
                redis::Value::ServerError(error) => batch.complete(place, Err(failure_in(error))),
                _ => return Err(desync_error("STRLEN")),
            }
        }
        Ok(fitting)
    }

    /// Takes the replies to one key's two commands, so that those of the next key follow.
    fn value_and_ttl(&mut self, limit: usize) -> RedisResult<TxReply> {
        let value = match self.recv()? {
            redis::Value::BulkString(bytes) => {
                self.longest_value = self.longest_value.max(bytes.len());
                Ok(Some(bytes))
            }
            redis::Value::Nil => Ok(None),
            redis::Value::ServerError(error) => Err(error),
            _ => return Err(desync_error("GETRANGE")),
        };
        let ttl = match self.recv_next()? {
            redis::Value::Int(ttl) => Ok(ttl),
            redis::Value::ServerError(error) => Err(error),
            _ => return Err(desync_error("PTTL")),
        };
        Ok(match (value, ttl) {
            (Ok(bytes), Ok(ttl)) => TxReply::Read(Reading::of(bytes, ttl, limit)),
            (Err(error), _) | (_, Err(error)) => TxReply::of_error(error),
        })
    }

    /// A reply to `GET`.
    fn recv_get(&mut self, limit: usize) -> RedisResult<FetchResult> {
        Ok(match self.recv()? {
            redis::Value::BulkString(bytes) => {
                self.longest_value = self.longest_value.max(bytes.len());
                if bytes.len() > limit {
                    Err(Failure::TooLong)
                } else {
                    Ok(Some(FetchedValue { value: Value::new(bytes), ttl: None }))
                }
            }
            redis::Value::Nil => Ok(None),
            redis::Value::ServerError(error) => Err(failure_in(error)),
            _ => return Err(desync_error("GET")),
        })
    }
}

/// One command for each key, packed.
fn commands(name: &str, keys: &[BatchKey]) -> Vec<u8> {
    let mut packed = Vec::new();
    for (_, key) in keys {
        redis::cmd(name).arg(&**key).write_packed_command(&mut packed);
    }
    packed
}

/// Packs the two commands for each key. The first brings up to one byte more than `limit`; without a limit it is `GET`.
fn values_and_ttls(keys: &[BatchKey], limit: Option<usize>) -> Vec<u8> {
    let bytes: usize = keys.iter().map(|(_, key)| 2 * key.len() + TX_OVERHEAD_BYTES).sum();
    let mut packed = Vec::with_capacity(bytes);
    for (_, key) in keys {
        match limit {
            Some(limit) => redis::cmd("GETRANGE").arg(&**key).arg(0).arg(limit).write_packed_command(&mut packed),
            None => redis::cmd("GET").arg(&**key).write_packed_command(&mut packed),
        }
        redis::cmd("PTTL").arg(&**key).write_packed_command(&mut packed);
    }
    packed
}

/// What an error that Redis answers with is to those who wait for the key.
fn failure_in(error: ServerError) -> Failure {
    read_failure(&error.into())
}

/// A reply that the command cannot have: requests and replies have come apart.
pub(super) fn desync_error(command: &'static str) -> RedisError {
    RedisError::from((ErrorKind::UnexpectedReturnType, "unexpected type of reply from Redis", command.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_refuses_to_anybody_is_told_from_what_it_refuses_now() {
        let error = |text: &str| match redis::parse_redis_value(format!("-{text}\r\n").as_bytes()) {
            Ok(redis::Value::ServerError(error)) => error,
            other => panic!("{other:?} is no error"),
        };
        for (text, refusal, failure) in [
            ("NOPERM no way", true, Failure::Redis("NOPERM no way".into())),
            ("ERR unknown command 'PTTL'", true, Failure::Redis("ERR unknown command 'PTTL'".into())),
            ("ERR something else", false, Failure::Redis("ERR something else".into())),
            ("WRONGTYPE of value", false, Failure::WrongType),
            ("LOADING its data", false, Failure::NotReady("LOADING its data".into())),
            ("MASTERDOWN", false, Failure::NotReady("MASTERDOWN".into())),
            ("BUSY with a script", false, Failure::NotReady("BUSY with a script".into())),
        ] {
            let error = error(text);
            assert_eq!(is_command_denied(&error.clone().into()), refusal, "{text}");
            assert_eq!(failure_in(error), failure);
        }
    }

    #[test]
    fn readings_follow_value_and_ttl() {
        let read = |bytes: &[u8], ttl| Reading::of(Some(bytes.to_vec()), ttl, 3);
        let fetched = |bytes: &[u8], remaining| FetchedValue { value: Value::new(bytes.to_vec()), ttl: remaining };
        assert_eq!(read(b"abc", -1), Reading::Value(fetched(b"abc", None)));
        assert_eq!(read(b"abc", 0), Reading::Value(fetched(b"abc", Some(0))));
        assert_eq!(read(b"abcd", 5), Reading::Truncated);
        assert_eq!(read(b"", 5), Reading::Empty(fetched(b"", Some(5))));
        // The key went between the two commands.
        assert_eq!((read(b"abc", -2), read(b"abcd", -2)), (Reading::Missing, Reading::Missing));
        assert_eq!(read(b"", -2), Reading::Missing);
        // `GET` found none, and the key was created since.
        assert_eq!(Reading::of(None, -1, 3), Reading::Missing);
    }
}
