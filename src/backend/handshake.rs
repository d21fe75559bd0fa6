//! First exchange on a new connection to Redis: authentication, the database, and whether Redis
//! accepts the client at all.
//!
//! Redis accepts every connection, says why it does not want it, and closes it: too many clients,
//! protected mode. The crate's handshake ignores that reply where it asks for nothing that it needs,
//! and reports only that the connection was closed. All commands are sent together, in an order in
//! which the first reply is always one that counts.

use super::BackendConfig;
use super::connect::{read_failure, without_arguments};
use super::reader::desync_error;
use super::wire::Wire;
use crate::types::Failure;
use redis::{ErrorKind, RedisError, RedisResult, ServerError, ServerErrorKind, Value};

/// Identity to take on a new connection.
#[derive(Clone)]
pub(super) struct Identity {
    username: Option<String>,
    password: Option<String>,
    database: i64,
}

/// Commands of the handshake, by the consequence of an error reply.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HandshakeStep {
    /// `AUTH`. Required.
    Authenticate,
    /// `SELECT`. Required.
    Select,
    /// `PING`. Keys tell what is the matter, unless Redis wants a password or closes the connection.
    Probe,
    /// `CLIENT SETINFO`, which a Redis before 7.2 does not know. No consequence.
    Introduce,
}

impl Identity {
    pub(super) fn new(settings: &BackendConfig) -> Identity {
        let BackendConfig { username, password, database, .. } = settings;
        Identity { username: username.clone(), password: password.clone(), database: *database }
    }

    /// Authenticates, selects the database and asks whether Redis answers. A Redis before version 6
    /// knows no users.
    pub(super) fn log_in(&self, wire: &mut Wire) -> RedisResult<()> {
        match self.exchange(wire, self.username.as_deref()) {
            Err(error) if self.username.is_some() && knows_no_users(&error) => self.exchange(wire, None),
            result => result,
        }
    }

    fn exchange(&self, wire: &mut Wire, username: Option<&str>) -> RedisResult<()> {
        let (steps, packed) = self.commands(username);
        if let Err(error) = wire.send(&packed) {
            // Redis may have said why before it closed the connection.
            return Err(match wire.receive() {
                Ok(Value::ServerError(reason)) => refusal_of(steps[0], reason),
                _ => error,
            });
        }
        let mut errors: Vec<(HandshakeStep, ServerError)> = Vec::new();
        for step in steps {
            match (step, wire.receive()) {
                (HandshakeStep::Introduce, Ok(_)) => {}
                (_, Ok(Value::ServerError(error))) => errors.push((step, error)),
                (HandshakeStep::Authenticate | HandshakeStep::Select, Ok(Value::Okay))
                | (HandshakeStep::Probe, Ok(_)) => {}
                (HandshakeStep::Authenticate | HandshakeStep::Select, Ok(_)) => {
                    return Err(desync_error("AUTH and SELECT"));
                }
                (_, Err(closed)) => {
                    // A Redis that closes has said why. One that falls silent has not, but for what is required.
                    let says_why = |(step, _): &(HandshakeStep, _)| !closed.is_timeout() || is_required(*step);
                    let first = errors.into_iter().next().filter(says_why);
                    return Err(first.map_or(closed, |(step, reason)| refusal_of(step, reason)));
                }
            }
        }
        match errors.into_iter().find(|(step, error)| is_required(*step) || error.code() == "NOAUTH") {
            Some((step, error)) => Err(refusal_of(step, error)),
            None => Ok(()),
        }
    }

    /// Packs the commands.
    fn commands(&self, username: Option<&str>) -> (Vec<HandshakeStep>, Vec<u8>) {
        let (mut steps, mut packed) = (Vec::new(), Vec::new());
        let mut add = |step, command: &redis::Cmd| {
            steps.push(step);
            command.write_packed_command(&mut packed);
        };
        if let Some(password) = &self.password {
            add(HandshakeStep::Authenticate, redis::cmd("AUTH").arg(username).arg(password));
        }
        if self.database != 0 {
            add(HandshakeStep::Select, redis::cmd("SELECT").arg(self.database));
        }
        add(HandshakeStep::Probe, &redis::cmd("PING"));
        for (name, value) in [("LIB-NAME", env!("CARGO_PKG_NAME")), ("LIB-VER", env!("CARGO_PKG_VERSION"))] {
            add(HandshakeStep::Introduce, redis::cmd("CLIENT").arg("SETINFO").arg(name).arg(value));
        }
        (steps, packed)
    }
}

/// Returns true if a connection is of no use where Redis answers a step with an error.
fn is_required(step: HandshakeStep) -> bool {
    matches!(step, HandshakeStep::Authenticate | HandshakeStep::Select)
}

/// Returns the error to report for an error reply: with the command that it refuses, unless its code
/// says more, and without the arguments that Redis quotes, because a password is one of them.
fn refusal_of(step: HandshakeStep, reply: ServerError) -> RedisError {
    let text = without_arguments(reply.details().unwrap_or_default());
    let error = RedisError::from(reply.clone());
    let says_more = matches!(error.code(), Some("DENIED" | "NOAUTH" | "NOPERM"))
        || matches!(read_failure(&error), Failure::NotReady(_));
    match step {
        _ if says_more => error,
        HandshakeStep::Authenticate => {
            (ErrorKind::AuthenticationFailed, "Redis rejected AUTH", format!("{} {text}", reply.code())).into()
        }
        HandshakeStep::Select => {
            (ServerErrorKind::ResponseError.into(), "Redis rejected SELECT", text.to_owned()).into()
        }
        HandshakeStep::Probe | HandshakeStep::Introduce => error,
    }
}

/// Returns true if Redis takes a password alone.
fn knows_no_users(error: &RedisError) -> bool {
    error.detail().is_some_and(|text| text.contains("wrong number of arguments for 'auth'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: &str) -> ServerError {
        match redis::parse_redis_value(format!("-{text}\r\n").as_bytes()) {
            Ok(Value::ServerError(error)) => error,
            other => panic!("{other:?} is no error"),
        }
    }

    #[test]
    fn refusals_name_command_without_arguments() {
        let quoted = "ERR unknown command 'AUTH', with args beginning with: 'user' 'topsecret' ";
        let error = refusal_of(HandshakeStep::Authenticate, reply(quoted));
        assert!(!error.to_string().contains("topsecret") && !error.to_string().contains("user"), "{error}");
        assert!(
            error.to_string().contains("rejected AUTH") && error.to_string().contains("unknown command"),
            "{error}"
        );
        assert_eq!(error.kind(), ErrorKind::AuthenticationFailed);
        let error = refusal_of(HandshakeStep::Select, reply("ERR DB index is out of range"));
        assert!(error.to_string().contains("rejected SELECT"), "{error}");
        assert_eq!(read_failure(&error), Failure::Redis("ERR DB index is out of range".into()));
        for text in ["NOAUTH Authentication required.", "NOPERM this user has no permissions"] {
            assert_eq!(refusal_of(HandshakeStep::Select, reply(text)).code(), text.split(' ').next(), "{text}");
        }
        // These are about the connection, whatever is asked first.
        for text in ["ERR max number of clients reached", "DENIED protected mode", "LOADING", "BUSY"] {
            let error = refusal_of(HandshakeStep::Authenticate, reply(text));
            assert_eq!(error.code(), text.split(' ').next(), "{error}");
        }
    }
}
