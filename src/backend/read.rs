//! How keys are read: the commands of a round trip, and what their replies mean.
//!
//! Each key is a transaction of its own, all of a batch in one round trip:
//!
//! ```text
//!     MULTI   GETRANGE key 0 n   PTTL key   EXEC     ->  OK  QUEUED  QUEUED  [value, ttl]
//! ```
//!
//! So value and ttl are of the same moment; a ttl of -2 tells a missing key from an empty one; and no value brings in
//! more than `n` + 1 bytes. A longer one is asked for its length and, where that is allowed, read alone. One transaction
//! for the whole batch would cost Redis a tenth less (ARCHITECTURE.md), but one key that the user may not read would
//! abort it for all, and its reply could only be waited for whole.
//!
//! Where Redis refuses any of these commands with an error (an ACL, another server that speaks its protocol) but not `GET`,
//! `GET` it is, after a look at the length.

use super::connect::{failure_of, is_refusal};
use super::desk::{Desk, Outcome, Placed};
use crate::request::{Failure, Fetched, Millis, Value};
use redis::{Connection, ErrorKind, RedisError, RedisResult, ServerError};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest value of a batch's first round trip. With 128 keys it bounds what a helper holds to 8 MiB; a second round
/// trip costs little beside a value that is longer.
const SHORT_BYTES: usize = 64 * 1024;

/// What a key's transaction takes beside the key itself, which stands in it twice, or a little more.
const FRAMES_BYTES: usize = 144;

/// A connection, and how long its replies may be waited for.
pub(super) struct Link {
    connection: Connection,
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

/// What a transaction brought.
enum Answer {
    /// This is it.
    Known(Outcome),
    /// The value is longer than what was asked for.
    Longer,
    /// Redis refuses one of the commands, and says why.
    Refused(ServerError),
}

impl Link {
    /// The connection's time-outs must be `timeout`.
    pub(super) fn new(connection: Connection, timeout: Duration) -> Link {
        Link { connection, timeout, deadline: Instant::now(), patience: timeout, longest: 0, round_trips: 0 }
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
        self.connection.send_packed_command(commands)
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
            self.connection.set_read_timeout(Some(left))?;
            self.patience = left;
        }
        self.connection.recv_response()
    }

    /// A short reply that comes together with the one before it, without another look at the clock: it may take as long as the
    /// one before it might have. The next [`Link::reply`] is bounded again.
    fn reply_that_follows(&mut self) -> RedisResult<redis::Value> {
        self.connection.recv_response()
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
        let (mut long, mut refused, mut told) = (Vec::new(), Vec::new(), None);
        self.ask(&transactions(&open, limit))?;
        for (place, key) in open {
            match self.transaction(limit)? {
                Answer::Known(outcome) => {
                    told = told.or(outcome.is_ok().then_some(Ok(())));
                    desk.complete(place, outcome);
                }
                Answer::Longer => long.push((place, key)),
                Answer::Refused(error) => {
                    refused.push((place, key));
                    told = Some(Err(error.to_string()));
                }
            }
        }
        // Nobody waits for longer values or for second questions but those who asked for them.
        desk.deliver();
        // A key that cannot be read at all says nothing about others.
        if !refused.is_empty() && !self.read_plainly(&refused, desk, rules)? {
            told = None;
        }
        self.read_long(&long, desk, rules)?;
        Ok(told)
    }

    /// Reads by `GET`. Says whether any key could be read so.
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
            self.ask(&transactions(&[(place, key)], limit))?;
            let outcome = match self.transaction(limit)? {
                Answer::Known(outcome) => outcome,
                Answer::Longer => Err(Failure::TooLong),
                Answer::Refused(error) => Err(failure_in(error)),
            };
            desk.complete(place, outcome);
        }
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

    /// The replies to one key's transaction. All four are taken, so that those of the next key follow.
    fn transaction(&mut self, limit: usize) -> RedisResult<Answer> {
        let mut refused = None;
        let begun = match self.reply()? {
            redis::Value::Okay => true,
            redis::Value::ServerError(error) => {
                refused = Some(error);
                false
            }
            _ => return Err(out_of_step("MULTI")),
        };
        for command in ["GETRANGE", "PTTL"] {
            match self.reply_that_follows()? {
                redis::Value::SimpleString(text) if text == "QUEUED" && begun => {}
                redis::Value::ServerError(error) => refused = refused.or(Some(error)),
                // Without the transaction they are carried out at once. Their replies are not of the same moment.
                redis::Value::BulkString(bytes) if !begun => self.longest = self.longest.max(bytes.len()),
                redis::Value::Int(_) if !begun => {}
                _ => return Err(out_of_step(command)),
            }
        }
        let result = self.reply()?;
        match (result, refused) {
            (redis::Value::Array(parts), None) => self.contents(parts, limit),
            (redis::Value::ServerError(error), refused) => {
                // A transaction that has begun and does not end takes all that follows for a part of it.
                if begun && error.code() != "EXECABORT" {
                    return Err(error.into());
                }
                let error = refused.unwrap_or_else(|| cause_of_abort(error));
                Ok(match is_refusal(&error.clone().into()) {
                    true => Answer::Refused(error),
                    false => Answer::Known(Err(failure_in(error))),
                })
            }
            _ => Err(out_of_step("EXEC")),
        }
    }

    /// Value and ttl of one key.
    fn contents(&mut self, parts: Vec<redis::Value>, limit: usize) -> RedisResult<Answer> {
        let mut parts = parts.into_iter();
        match (parts.next(), parts.next(), parts.next()) {
            (Some(redis::Value::BulkString(bytes)), Some(redis::Value::Int(ttl)), None) => {
                self.longest = self.longest.max(bytes.len());
                Ok(match ttl {
                    _ if bytes.len() > limit => Answer::Longer,
                    -2 => Answer::Known(Ok(None)),
                    // Negative for a key that does not expire.
                    ttl => {
                        let remaining = Millis::try_from(ttl).ok();
                        Answer::Known(Ok(Some(Fetched { value: Value::new(bytes), remaining })))
                    }
                })
            }
            (Some(redis::Value::ServerError(error)), Some(_), None) => Ok(Answer::Known(Err(failure_in(error)))),
            _ => Err(out_of_step("GETRANGE and PTTL")),
        }
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

/// A transaction for each key, that brings up to one byte more than `limit`, packed.
fn transactions(keys: &[Placed], limit: usize) -> Vec<u8> {
    let [begin, end] = ["MULTI", "EXEC"].map(|name| redis::cmd(name).get_packed_command());
    let bytes: usize = keys.iter().map(|(_, key)| 2 * key.len() + FRAMES_BYTES).sum();
    let mut packed = Vec::with_capacity(bytes);
    for (_, key) in keys {
        packed.extend_from_slice(&begin);
        redis::cmd("GETRANGE").arg(&**key).arg(0).arg(limit).write_packed_command(&mut packed);
        redis::cmd("PTTL").arg(&**key).write_packed_command(&mut packed);
        packed.extend_from_slice(&end);
    }
    packed
}

/// Why a transaction was aborted at its end, where the error tells: "EXECABORT Transaction discarded because of: NOPERM".
fn cause_of_abort(error: ServerError) -> ServerError {
    let cause =
        error.details().and_then(|text| text.split_once("because of: ")).map(|(_, cause)| format!("-{cause}\r\n"));
    match cause.map(|line| redis::parse_redis_value(line.as_bytes())) {
        Some(Ok(redis::Value::ServerError(cause))) => cause,
        _ => error,
    }
}

/// What an error that Redis answers with is to those who wait for the key.
fn failure_in(error: ServerError) -> Failure {
    failure_of(&error.into())
}

/// A reply that the command cannot have: requests and replies have come apart.
fn out_of_step(command: &'static str) -> RedisError {
    RedisError::from((ErrorKind::UnexpectedReturnType, "Redis' reply is of no type it can have", command.to_owned()))
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
            ("EXECABORT Transaction discarded because of: NOPERM no", true, Failure::Redis("NOPERM no".into())),
            ("EXECABORT discarded because of: LOADING it", false, Failure::NotReady("LOADING it".into())),
            ("EXECABORT for no reason", false, Failure::Redis("EXECABORT for no reason".into())),
        ] {
            let error = cause_of_abort(error(text));
            assert_eq!(is_refusal(&error.clone().into()), refusal, "{text}");
            assert_eq!(failure_in(error), failure);
        }
    }
}
