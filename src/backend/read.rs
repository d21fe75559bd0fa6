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

use super::connect::{failure_of, in_one_line, is_refusal};
use super::desk::{Desk, Outcome, Placed};
use super::wire::Wire;
use crate::request::{Failure, Fetched, Millis, Value};
use redis::{ErrorKind, RedisError, RedisResult, ServerError};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest value of a batch's first round trip. With 128 keys it bounds what a helper holds to 8 MiB; a second round
/// trip costs little beside a value that is longer.
const SHORT_BYTES: usize = 64 * 1024;

/// Bytes that the two commands for a key take beside the key itself, which stands in both; a few more than needed.
const FRAMES_BYTES: usize = 96;

/// A connection, and how long its replies may be waited for.
pub(super) struct Link {
    wire: Wire,
    /// Of each round trip.
    timeout: Duration,
    /// When the present one has taken too long.
    deadline: Instant,
    /// The socket's time-out as it was last set.
    patience: Duration,
    /// Bytes of the longest value so far.
    longest: usize,
    /// Round trips so far that were not counted elsewhere.
    round_trips: u64,
}

/// What to read of a value, and with what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Longer values are refused.
    pub(super) max_value_bytes: usize,
    /// Whether to ask for the time that keys have left.
    pub(super) with_expiry: bool,
}

/// Replies to the two commands for one key.
enum Answer {
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
    Longer,
    /// The value is empty. After `GETRANGE` the key may also have been missing, and created since.
    Empty(Fetched),
    /// The value.
    Value(Fetched),
}

impl Reading {
    /// Interprets a value and its ttl. `bytes` is the reply to `GETRANGE key 0 limit`, or to `GET key`, where it is `None` for a
    /// missing key. `ttl` is the reply to `PTTL`, in milliseconds: -1 for a key that does not expire, -2 for a missing key.
    pub fn of(bytes: Option<Vec<u8>>, ttl: i64, limit: usize) -> Reading {
        let Some(bytes) = bytes.filter(|_| ttl != -2) else { return Reading::Missing };
        if bytes.len() > limit {
            return Reading::Longer;
        }
        let is_empty = bytes.is_empty();
        let fetched = Fetched { value: Value::new(bytes), remaining: Millis::try_from(ttl).ok() };
        if is_empty { Reading::Empty(fetched) } else { Reading::Value(fetched) }
    }
}

impl Answer {
    /// Classifies an error that Redis answered one of the two commands with.
    fn of_error(error: ServerError) -> Answer {
        match is_refusal(&error.clone().into()) {
            true => Answer::Refused(error),
            false => Answer::Failed(failure_in(error)),
        }
    }

    /// Returns the outcome for the clients of a key that is not asked for in any other way.
    fn outcome(self) -> Outcome {
        match self {
            Answer::Read(Reading::Missing) => Ok(None),
            Answer::Read(Reading::Value(fetched) | Reading::Empty(fetched)) => Ok(Some(fetched)),
            Answer::Read(Reading::Longer) => Err(Failure::TooLong),
            Answer::Failed(failure) => Err(failure),
            Answer::Refused(error) => Err(failure_in(error)),
        }
    }
}

impl Link {
    /// The connection's time-outs must be `timeout`.
    pub(super) fn new(mut wire: Wire, timeout: Duration) -> Link {
        wire.set_longest_reply(usize::MAX);
        Link { wire, timeout, deadline: Instant::now(), patience: timeout, longest: 0, round_trips: 0 }
    }

    /// Bytes of the longest value so far.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// How many round trips there have been since this was last asked.
    pub(super) fn take_round_trips(&mut self) -> u64 {
        std::mem::take(&mut self.round_trips)
    }

    /// Asks whether Redis is there, and what is the matter where it cannot serve.
    pub(super) fn ping(&mut self) -> RedisResult<Option<String>> {
        self.ask(&redis::cmd("PING").get_packed_command())?;
        match self.reply()? {
            redis::Value::ServerError(error) => match failure_in(error) {
                Failure::NotReady(text) => Ok(Some(text)),
                // It is there, and the user may not ask.
                _ => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// Begins a round trip.
    fn ask(&mut self, commands: &[u8]) -> RedisResult<()> {
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
    fn reply(&mut self) -> RedisResult<redis::Value> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
        }
        if self.patience.abs_diff(left) > self.timeout / 16 {
            self.wire.set_read_timeout(left)?;
            self.patience = left;
        }
        self.wire.receive()
    }

    /// A short reply that comes together with the one before it, without another look at the clock: it may take as long as the
    /// one before it might have. The next [`Link::reply`] is bounded again.
    fn reply_that_follows(&mut self) -> RedisResult<redis::Value> {
        self.wire.receive()
    }

    /// Reads all open keys of a batch. Says whether Redis tells how long keys have left, or why it refuses that but not
    /// `GET`, if this batch shows it. After an error the connection is of no use any more; what was completed before it
    /// counts.
    pub(super) fn read(&mut self, desk: &mut Desk, rules: Rules) -> RedisResult<Option<Result<(), String>>> {
        let open = desk.open();
        if open.is_empty() {
            return Ok(None);
        }
        if !rules.with_expiry {
            self.read_plainly(&open, desk, rules)?;
            return Ok(None);
        }
        let limit = SHORT_BYTES.min(rules.max_value_bytes);
        let (mut long, mut empty, mut refused, mut told) = (Vec::new(), Vec::new(), Vec::new(), None);
        self.ask(&values_and_ttls(&open, Some(limit)))?;
        for (place, key) in open {
            let reading = match self.value_and_ttl(limit)? {
                Answer::Read(reading) => reading,
                Answer::Failed(failure) => {
                    desk.complete(place, Err(failure));
                    continue;
                }
                Answer::Refused(error) => {
                    refused.push((place, key));
                    told = Some(Err(in_one_line(&error.into())));
                    continue;
                }
            };
            told = told.or(Some(Ok(())));
            match reading {
                Reading::Missing => desk.complete(place, Ok(None)),
                Reading::Value(fetched) => desk.complete(place, Ok(Some(fetched))),
                Reading::Longer => long.push((place, key)),
                Reading::Empty(_) => empty.push((place, key)),
            }
        }
        // Nobody waits for longer values or for second questions but those who asked for them.
        desk.deliver();
        // A key that cannot be read at all says nothing about others.
        if !refused.is_empty() && !self.read_plainly(&refused, desk, rules)? {
            told = None;
        }
        self.read_empty(&empty, desk, rules)?;
        self.read_long(&long, desk, rules)?;
        Ok(told)
    }

    /// Reads by `GET`. Says whether any key could be read so. Where Redis refuses `STRLEN`, a value that is
    /// too long arrives whole before it is refused.
    fn read_plainly(&mut self, keys: &[Placed], desk: &mut Desk, rules: Rules) -> RedisResult<bool> {
        let fitting = self.fitting(keys, desk, rules)?;
        let mut readable = false;
        if !fitting.is_empty() {
            self.ask(&commands("GET", &fitting))?;
        }
        for (place, _) in fitting {
            let outcome = self.plain_reply(rules.max_value_bytes)?;
            readable |= outcome.is_ok();
            desk.complete(place, outcome);
        }
        Ok(readable)
    }

    /// Reads values that are longer than [`SHORT_BYTES`], one by one, those that are not too long.
    fn read_long(&mut self, keys: &[Placed], desk: &mut Desk, rules: Rules) -> RedisResult<()> {
        let limit = rules.max_value_bytes;
        if limit <= SHORT_BYTES {
            keys.iter().for_each(|&(place, _)| desk.complete(place, Err(Failure::TooLong)));
            return Ok(());
        }
        for (place, key) in self.fitting(keys, desk, rules)? {
            desk.deliver();
            let asked = [(place, key)];
            self.ask(&values_and_ttls(&asked, Some(limit)))?;
            match self.value_and_ttl(limit)? {
                Answer::Read(Reading::Empty(_)) => self.read_empty(&asked, desk, rules)?,
                answer => desk.complete(place, answer.outcome()),
            }
        }
        Ok(())
    }

    /// Reads keys by `GET`, which tells an empty value from a missing key, after another look at the
    /// length. A value that was written since and is too long ends the connection.
    fn read_empty(&mut self, keys: &[Placed], desk: &mut Desk, rules: Rules) -> RedisResult<()> {
        if keys.is_empty() {
            return Ok(());
        }
        desk.deliver();
        let keys = self.fitting(keys, desk, rules)?;
        self.wire.set_longest_reply(rules.max_value_bytes);
        if !keys.is_empty() {
            self.ask(&values_and_ttls(&keys, None))?;
        }
        for (place, _) in keys {
            let answer = self.value_and_ttl(rules.max_value_bytes)?;
            desk.complete(place, answer.outcome());
        }
        self.wire.set_longest_reply(usize::MAX);
        Ok(())
    }

    /// Those keys whose values are not too long, as far as Redis tells.
    fn fitting(&mut self, keys: &[Placed], desk: &mut Desk, rules: Rules) -> RedisResult<Vec<Placed>> {
        let mut fitting = Vec::with_capacity(keys.len());
        if !keys.is_empty() {
            self.ask(&commands("STRLEN", keys))?;
        }
        for &(place, ref key) in keys {
            match self.reply()? {
                redis::Value::Int(length) if length > rules.max_value_bytes as i64 => {
                    desk.complete(place, Err(Failure::TooLong));
                }
                redis::Value::Int(_) => fitting.push((place, Arc::clone(key))),
                redis::Value::ServerError(error) if is_refusal(&error.clone().into()) => {
                    fitting.push((place, Arc::clone(key)));
                }
                redis::Value::ServerError(error) => desk.complete(place, Err(failure_in(error))),
                _ => return Err(out_of_step("STRLEN")),
            }
        }
        Ok(fitting)
    }

    /// Takes the replies to one key's two commands, so that those of the next key follow.
    fn value_and_ttl(&mut self, limit: usize) -> RedisResult<Answer> {
        let value = match self.reply()? {
            redis::Value::BulkString(bytes) => {
                self.longest = self.longest.max(bytes.len());
                Ok(Some(bytes))
            }
            redis::Value::Nil => Ok(None),
            redis::Value::ServerError(error) => Err(error),
            _ => return Err(out_of_step("GETRANGE")),
        };
        let ttl = match self.reply_that_follows()? {
            redis::Value::Int(ttl) => Ok(ttl),
            redis::Value::ServerError(error) => Err(error),
            _ => return Err(out_of_step("PTTL")),
        };
        Ok(match (value, ttl) {
            (Ok(bytes), Ok(ttl)) => Answer::Read(Reading::of(bytes, ttl, limit)),
            (Err(error), _) | (_, Err(error)) => Answer::of_error(error),
        })
    }

    /// A reply to `GET`.
    fn plain_reply(&mut self, limit: usize) -> RedisResult<Outcome> {
        Ok(match self.reply()? {
            redis::Value::BulkString(bytes) => {
                self.longest = self.longest.max(bytes.len());
                if bytes.len() > limit {
                    Err(Failure::TooLong)
                } else {
                    Ok(Some(Fetched { value: Value::new(bytes), remaining: None }))
                }
            }
            redis::Value::Nil => Ok(None),
            redis::Value::ServerError(error) => Err(failure_in(error)),
            _ => return Err(out_of_step("GET")),
        })
    }
}

/// One command for each key, packed.
fn commands(name: &str, keys: &[Placed]) -> Vec<u8> {
    let mut packed = Vec::new();
    for (_, key) in keys {
        redis::cmd(name).arg(&**key).write_packed_command(&mut packed);
    }
    packed
}

/// Packs the two commands for each key. The first brings up to one byte more than `limit`; without a limit it is `GET`.
fn values_and_ttls(keys: &[Placed], limit: Option<usize>) -> Vec<u8> {
    let bytes: usize = keys.iter().map(|(_, key)| 2 * key.len() + FRAMES_BYTES).sum();
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
    failure_of(&error.into())
}

/// A reply that the command cannot have: requests and replies have come apart.
pub(super) fn out_of_step(command: &'static str) -> RedisError {
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
            assert_eq!(is_refusal(&error.clone().into()), refusal, "{text}");
            assert_eq!(failure_in(error), failure);
        }
    }

    #[test]
    fn readings_follow_value_and_ttl() {
        let read = |bytes: &[u8], ttl| Reading::of(Some(bytes.to_vec()), ttl, 3);
        let fetched = |bytes: &[u8], remaining| Fetched { value: Value::new(bytes.to_vec()), remaining };
        assert_eq!(read(b"abc", -1), Reading::Value(fetched(b"abc", None)));
        assert_eq!(read(b"abc", 0), Reading::Value(fetched(b"abc", Some(0))));
        assert_eq!(read(b"abcd", 5), Reading::Longer);
        assert_eq!(read(b"", 5), Reading::Empty(fetched(b"", Some(5))));
        // The key went between the two commands.
        assert_eq!((read(b"abc", -2), read(b"abcd", -2)), (Reading::Missing, Reading::Missing));
        assert_eq!(read(b"", -2), Reading::Missing);
        // `GET` found none, and the key was created since.
        assert_eq!(Reading::of(None, -1, 3), Reading::Missing);
    }
}
