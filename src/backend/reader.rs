//! Reader of keys: packs the commands of a round trip and interprets their replies.
//!
//! Each key takes two plain commands, and all keys of a batch share one round trip:
//!
//! ```text
//!     GETRANGE key 0 n   PTTL key     ->  value  ttl
//! ```
//!
//! Redis returns at most `n` + 1 bytes of each value. For a longer value the reader asks for the
//! length and, if that is at most MAX_VALUE_BYTES, reads the value in a round trip of its own.
//!
//! The two commands are no transaction, because Redis over its `maxmemory` refuses to queue reads
//! but still executes them. A write can happen between the two commands. CACHE_TTL and tracking
//! then treat the old value like any value that changes after it was read; only its lifetime is
//! that of the newer value. In the reverse order a newer value could outlive its own expiration.
//!
//! A ttl of -2 means that the key is missing. An empty value with another ttl is ambiguous, because
//! the key may have been created between the two commands. `GET` resolves it, after a second check
//! of the length.
//!
//! If Redis denies one of these commands (by an ACL, or as another server with this protocol), the
//! reader falls back to `GET`, after a check of the length.

use super::batch::{Batch, BatchKey};
use super::connect::{is_command_denied, read_failure, single_line};
use super::key_command::KeyCommand;
use super::wire::Wire;
use crate::metrics::LatencyHistogram;
use crate::types::{Failure, FetchedValue, Millis};
use crate::value::Value;
use redis::{ErrorKind, RedisError, RedisResult, ServerError};
use std::time::Instant;

/// Longest value in the first round trip of a batch. With 128 keys it bounds the memory of a
/// fetcher to 8 MiB. A second round trip costs little compared with a longer value.
const FIRST_READ_BYTES: usize = 64 * 1024;

/// Longest value whose buffer is kept for the next reply. The crate's parser never shrinks it.
/// (Memory for a longer one costs less than such a reply.)
const MAX_KEPT_VALUE_BYTES: usize = 1024 * 1024;

/// Connection that reads keys, with a deadline for each round trip.
pub(super) struct KeyReader {
    wire: Wire,
    /// Longest value since the last [`KeyReader::shrink`], in bytes.
    longest_value: usize,
    /// Start of the present round trip, until its first reply arrives.
    sent_at: Option<Instant>,
    /// Round trips since [`KeyReader::take_round_trips`] was last called.
    round_trips: u64,
    /// Durations of those round trips that were answered.
    durations: LatencyHistogram,
}

/// Limits and commands of a read.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadOptions {
    /// Longest value that is read.
    pub(super) max_value_bytes: usize,
    /// True to ask for the ttl of each key.
    pub(super) with_ttl: bool,
}

/// Replies to the two commands for one key.
enum KeyReply {
    /// Value of the key, or its absence.
    Read(Reading),
    /// Redis could not read the key.
    Failed(ServerError),
    /// Redis denies one of the commands.
    Denied(ServerError),
}

/// Meaning of a value and of the ttl that was read after it.
#[derive(Debug, PartialEq, Eq)]
pub enum Reading {
    /// Redis has no such key.
    Missing,
    /// The value is longer than the limit.
    Truncated,
    /// The value is empty. After `GETRANGE` the key may also have been missing, and created since.
    Empty(FetchedValue),
    /// The complete value.
    Value(FetchedValue),
}

impl Reading {
    /// Interprets a value and its ttl.
    ///
    /// `bytes` is the reply to `GETRANGE key 0 limit` or `GET key`; `None` is a missing key. `ttl`
    /// is the reply to `PTTL`, in milliseconds. It is -1 for a key that does not expire, -2 for a
    /// missing key.
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

impl KeyReply {
    /// Classifies an error reply to one of the two commands.
    fn of_error(error: ServerError) -> KeyReply {
        match is_command_denied(&error.clone().into()) {
            true => KeyReply::Denied(error),
            false => KeyReply::Failed(error),
        }
    }

    /// Ends the job of a key that is not read in another way.
    fn complete(self, batch: &mut Batch, index: usize) {
        match self {
            KeyReply::Read(Reading::Missing) => batch.complete(index, Ok(None)),
            KeyReply::Read(Reading::Value(fetched) | Reading::Empty(fetched)) => {
                batch.complete(index, Ok(Some(fetched)));
            }
            KeyReply::Read(Reading::Truncated) => batch.complete(index, Err(Failure::TooLong)),
            KeyReply::Failed(error) | KeyReply::Denied(error) => batch.complete_error(index, error),
        }
    }
}

impl KeyReader {
    /// Wraps a connection.
    pub(super) fn new(mut wire: Wire) -> KeyReader {
        wire.set_longest_reply(usize::MAX);
        KeyReader { wire, longest_value: 0, sent_at: None, round_trips: 0, durations: LatencyHistogram::default() }
    }

    /// Frees the buffer of a long value. To be called between two round trips.
    pub(super) fn shrink(&mut self) {
        if std::mem::take(&mut self.longest_value) > MAX_KEPT_VALUE_BYTES {
            self.wire.shrink();
        }
    }

    /// Returns the number of round trips since the last call, and the durations of the answered
    /// ones.
    pub(super) fn take_round_trips(&mut self) -> (u64, LatencyHistogram) {
        (std::mem::take(&mut self.round_trips), std::mem::take(&mut self.durations))
    }

    /// Checks that Redis answers. Returns its error if it cannot serve now.
    pub(super) fn ping(&mut self) -> RedisResult<Option<String>> {
        self.send(&redis::cmd("PING").get_packed_command())?;
        match self.recv()? {
            redis::Value::ServerError(error) => match server_failure(error) {
                Failure::NotReady(text) => Ok(Some(text)),
                // Redis is available, but the user lacks the permission for `PING`.
                _ => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// Starts a round trip: sends the commands.
    fn send(&mut self, commands: &[u8]) -> RedisResult<()> {
        self.round_trips += 1;
        self.sent_at = Some(Instant::now());
        self.wire.send(commands)
    }

    /// Receives the next reply before the deadline of the round trip.
    fn recv(&mut self) -> RedisResult<redis::Value> {
        let reply = self.wire.receive()?;
        if let Some(sent_at) = self.sent_at.take() {
            self.durations.observe(sent_at.elapsed().as_micros() as u64, 1);
        }
        Ok(reply)
    }

    /// Reads all pending keys of a batch. After an error the connection is useless, but jobs that
    /// were completed before keep their results.
    ///
    /// Returns `Some(Ok)` if Redis replies to `PTTL`, and `Some(Err)` with its error if it denies
    /// the two commands but not `GET`. Returns `None` if this batch shows neither.
    pub(super) fn read(&mut self, batch: &mut Batch, options: ReadOptions) -> RedisResult<Option<Result<(), String>>> {
        let pending = batch.pending();
        if pending.is_empty() {
            return Ok(None);
        }
        if !options.with_ttl {
            self.read_with_get(&pending, batch, options)?;
            return Ok(None);
        }
        let limit = FIRST_READ_BYTES.min(options.max_value_bytes);
        let (mut long, mut empty, mut denied, mut ttl_support) = (Vec::new(), Vec::new(), Vec::new(), None);
        self.send(&pack_values_and_ttls(&pending, Some(limit)))?;
        for key in pending {
            let reply = self.recv_value_and_ttl(&key, limit)?;
            if let KeyReply::Read(_) = &reply {
                ttl_support = ttl_support.or(Some(Ok(())));
            }
            match reply {
                KeyReply::Denied(error) => {
                    denied.push(key);
                    ttl_support = Some(Err(single_line(&error.into())));
                }
                KeyReply::Read(Reading::Truncated) => long.push(key),
                KeyReply::Read(Reading::Empty(_)) => empty.push(key),
                reply => reply.complete(batch, key.index),
            }
        }
        // Only waiters of keys that take another round trip must wait for it.
        batch.deliver();
        // If `GET` fails too, the denial concerns these keys and says nothing about others.
        if !denied.is_empty() && !self.read_with_get(&denied, batch, options)? {
            ttl_support = None;
        }
        self.read_empty(&empty, batch, options)?;
        self.read_long_values(&long, batch, options)?;
        Ok(ttl_support)
    }

    /// Reads keys with `GET`. Returns true if any key could be read. If Redis denies `STRLEN`, a
    /// value that is too long arrives completely before it fails.
    fn read_with_get(&mut self, keys: &[BatchKey], batch: &mut Batch, options: ReadOptions) -> RedisResult<bool> {
        let fitting = self.drop_too_long(keys, batch, options)?;
        let mut any_read = false;
        if !fitting.is_empty() {
            self.send(&pack_commands("GET", &fitting))?;
        }
        for key in fitting {
            let reply = self.recv_get(&key, options.max_value_bytes)?;
            any_read |= matches!(&reply, KeyReply::Read(Reading::Value(_) | Reading::Missing));
            reply.complete(batch, key.index);
        }
        Ok(any_read)
    }

    /// Reads values longer than [`FIRST_READ_BYTES`], one in each round trip. Fails those that are
    /// longer than the maximum.
    fn read_long_values(&mut self, keys: &[BatchKey], batch: &mut Batch, options: ReadOptions) -> RedisResult<()> {
        let limit = options.max_value_bytes;
        if limit <= FIRST_READ_BYTES {
            keys.iter().for_each(|key| batch.complete(key.index, Err(Failure::TooLong)));
            return Ok(());
        }
        for key in self.drop_too_long(keys, batch, options)? {
            batch.deliver();
            let single = [key];
            self.send(&pack_values_and_ttls(&single, Some(limit)))?;
            match self.recv_value_and_ttl(&single[0], limit)? {
                KeyReply::Read(Reading::Empty(_)) => self.read_empty(&single, batch, options)?,
                reply => reply.complete(batch, single[0].index),
            }
        }
        Ok(())
    }

    /// Reads keys with `GET`, which distinguishes an empty value from a missing key, after a second
    /// check of the length. A value that has outgrown the maximum since then ends the connection.
    fn read_empty(&mut self, keys: &[BatchKey], batch: &mut Batch, options: ReadOptions) -> RedisResult<()> {
        if keys.is_empty() {
            return Ok(());
        }
        batch.deliver();
        let keys = self.drop_too_long(keys, batch, options)?;
        self.wire.set_longest_reply(options.max_value_bytes);
        if !keys.is_empty() {
            self.send(&pack_values_and_ttls(&keys, None))?;
        }
        for key in keys {
            self.recv_value_and_ttl(&key, options.max_value_bytes)?.complete(batch, key.index);
        }
        self.wire.set_longest_reply(usize::MAX);
        Ok(())
    }

    /// Asks for the lengths of values, and fails the keys with values that are too long. Returns
    /// the others, including keys for which Redis denies `STRLEN`.
    fn drop_too_long(
        &mut self,
        keys: &[BatchKey],
        batch: &mut Batch,
        options: ReadOptions,
    ) -> RedisResult<Vec<BatchKey>> {
        let mut fitting = Vec::with_capacity(keys.len());
        if !keys.is_empty() {
            self.send(&pack_commands("STRLEN", keys))?;
        }
        for key in keys {
            match self.recv_for(key)? {
                redis::Value::Int(length) if length > options.max_value_bytes as i64 => {
                    batch.complete(key.index, Err(Failure::TooLong));
                }
                redis::Value::Int(_) => fitting.push(key.clone()),
                redis::Value::ServerError(error) if is_command_denied(&error.clone().into()) => {
                    fitting.push(key.clone());
                }
                redis::Value::ServerError(error) => batch.complete_error(key.index, error),
                _ => return Err(desync_error("STRLEN")),
            }
        }
        Ok(fitting)
    }

    /// Receives both replies for one key, also if the first is an error.
    fn recv_value_and_ttl(&mut self, key: &BatchKey, limit: usize) -> RedisResult<KeyReply> {
        let value = match self.recv_for(key)? {
            redis::Value::BulkString(bytes) => {
                self.longest_value = self.longest_value.max(bytes.len());
                Ok(Some(bytes))
            }
            redis::Value::Nil => Ok(None),
            redis::Value::ServerError(error) => Err(error),
            _ => return Err(desync_error("GETRANGE")),
        };
        let ttl = match self.recv_for(key)? {
            redis::Value::Int(ttl) => Ok(ttl),
            redis::Value::ServerError(error) => Err(error),
            _ => return Err(desync_error("PTTL")),
        };
        Ok(match (value, ttl) {
            (Ok(bytes), Ok(ttl)) => KeyReply::Read(Reading::of(bytes, ttl, limit)),
            (Err(error), _) | (_, Err(error)) => KeyReply::of_error(error),
        })
    }

    /// Receives a reply to `GET`.
    fn recv_get(&mut self, key: &BatchKey, limit: usize) -> RedisResult<KeyReply> {
        Ok(match self.recv_for(key)? {
            redis::Value::BulkString(bytes) => {
                self.longest_value = self.longest_value.max(bytes.len());
                KeyReply::Read(match bytes.len() > limit {
                    true => Reading::Truncated,
                    false => Reading::Value(FetchedValue { value: Value::new(bytes), ttl: None }),
                })
            }
            redis::Value::Nil => KeyReply::Read(Reading::Missing),
            redis::Value::ServerError(error) => KeyReply::Failed(error),
            _ => return Err(desync_error("GET")),
        })
    }

    /// Receives the reply to a command for `key`. A denied `ASKING` before it is the reply.
    fn recv_for(&mut self, key: &BatchKey) -> RedisResult<redis::Value> {
        if !key.is_asking {
            return self.recv();
        }
        let (asked, reply) = (self.recv()?, self.recv()?);
        Ok(if let redis::Value::ServerError(_) = asked { asked } else { reply })
    }
}

/// Packs one command for each key.
fn pack_commands(name: &str, keys: &[BatchKey]) -> Vec<u8> {
    pack(keys, &[KeyCommand::new(name, &[])])
}

/// Packs the two commands for each key. The first is `GETRANGE` for one byte more than `limit`, or
/// `GET` without a limit.
fn pack_values_and_ttls(keys: &[BatchKey], limit: Option<usize>) -> Vec<u8> {
    let read = match limit {
        Some(limit) => KeyCommand::new("GETRANGE", &["0", &limit.to_string()]),
        None => KeyCommand::new("GET", &[]),
    };
    pack(keys, &[read, KeyCommand::new("PTTL", &[])])
}

/// Packs `commands` for each key. `ASKING` counts for the next command only.
fn pack(keys: &[BatchKey], commands: &[KeyCommand]) -> Vec<u8> {
    let max_bytes = |key: &BatchKey| commands.iter().map(|command| command.max_bytes(key.key.len())).sum::<usize>();
    let mut packed = Vec::with_capacity(keys.iter().map(max_bytes).sum());
    for key in keys {
        for command in commands {
            if key.is_asking {
                redis::cmd("ASKING").write_packed_command(&mut packed);
            }
            command.push(&key.key, &mut packed);
        }
    }
    packed
}

/// Returns the failure that waiters of a key get for an error reply.
fn server_failure(error: ServerError) -> Failure {
    read_failure(&error.into())
}

/// Returns the error for a reply type that `command` cannot have. Requests and replies are out of
/// step.
pub(super) fn desync_error(command: &'static str) -> RedisError {
    RedisError::from((ErrorKind::UnexpectedReturnType, "unexpected type of reply from Redis", command.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A denied command is not the same as an error of a key or a temporary error.
    #[test]
    fn command_denial_is_distinguished_from_failure() {
        let error = |text: &str| match redis::parse_redis_value(format!("-{text}\r\n").as_bytes()) {
            Ok(redis::Value::ServerError(error)) => error,
            other => panic!("{other:?} is not an error"),
        };
        for (text, is_denied, failure) in [
            ("NOPERM no way", true, Failure::Redis("NOPERM no way".into())),
            ("ERR unknown command 'PTTL'", true, Failure::Redis("ERR unknown command 'PTTL'".into())),
            ("ERR something else", false, Failure::Redis("ERR something else".into())),
            ("WRONGTYPE of value", false, Failure::WrongType),
            ("LOADING its data", false, Failure::NotReady("LOADING its data".into())),
            ("MASTERDOWN", false, Failure::NotReady("MASTERDOWN".into())),
            ("BUSY with a script", false, Failure::NotReady("BUSY with a script".into())),
        ] {
            let error = error(text);
            assert_eq!(is_command_denied(&error.clone().into()), is_denied, "{text}");
            assert_eq!(server_failure(error), failure);
        }
    }

    /// The value and its ttl decide whether a key is missing, empty, too long or complete.
    #[test]
    fn readings_follow_value_and_ttl() {
        let read = |bytes: &[u8], ttl| Reading::of(Some(bytes.to_vec()), ttl, 3);
        let fetched = |bytes: &[u8], ttl| FetchedValue { value: Value::new(bytes.to_vec()), ttl };
        assert_eq!(read(b"abc", -1), Reading::Value(fetched(b"abc", None)));
        assert_eq!(read(b"abc", 0), Reading::Value(fetched(b"abc", Some(0))));
        assert_eq!(read(b"abcd", 5), Reading::Truncated);
        assert_eq!(read(b"", 5), Reading::Empty(fetched(b"", Some(5))));
        // The key was deleted between the two commands.
        assert_eq!((read(b"abc", -2), read(b"abcd", -2)), (Reading::Missing, Reading::Missing));
        assert_eq!(read(b"", -2), Reading::Missing);
        // `GET` found no key, and the key was created before `PTTL`.
        assert_eq!(Reading::of(None, -1, 3), Reading::Missing);
    }
}
