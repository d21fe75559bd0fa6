//! Handshake on a new connection to Redis: authenticates, selects the database, and checks that
//! Redis accepts the client.
//!
//! Redis accepts every TCP connection. To reject a client (too many clients, protected mode) it
//! sends an error and closes. The crate's handshake ignores that error if it needs no reply, and
//! reports only the close. This handshake sends all commands together, the optional ones last, so
//! that an error in the first reply is never ignored.

use super::access::Login;
use super::connect::{read_failure, single_line, without_arguments};
use super::reader::desync_error;
use super::wire::Wire;
use crate::types::Failure;
use redis::{ErrorKind, RedisError, RedisResult, ServerError, ServerErrorKind, Value};

/// Commands of the handshake. They differ in the consequence of an error reply.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HandshakeStep {
    /// `AUTH`. Required.
    Authenticate,
    /// `SELECT`. Required.
    Select,
    /// `PING`. Fails the handshake only if Redis requires a password or closes the connection.
    /// Other errors show when keys are read.
    Probe,
    /// `CLIENT SETINFO`. Errors are ignored, because Redis before 7.2 does not know it.
    SetClientInfo,
}

/// Authenticates, selects the database and checks that Redis answers. Retries without the user name
/// if Redis is older than version 6, which has no users.
pub(super) fn log_in(login: &Login<'_>, wire: &mut Wire) -> RedisResult<()> {
    match exchange(login, login.username, wire) {
        Err(error) if login.username.is_some() && lacks_users(&error) => exchange(login, None, wire),
        result => result,
    }
}

fn exchange(login: &Login<'_>, username: Option<&str>, wire: &mut Wire) -> RedisResult<()> {
    let (steps, packed) = commands(login, username);
    if let Err(error) = wire.send(&packed) {
        // Redis may have sent the reason before it closed the connection.
        return Err(match wire.receive_first() {
            Ok(Value::ServerError(reason)) => handshake_error(steps[0], reason),
            Err(reason) if !reason.is_connection_dropped() => reason,
            _ => closed_early(login, error),
        });
    }
    let mut errors: Vec<(HandshakeStep, ServerError)> = Vec::new();
    for (index, step) in steps.into_iter().enumerate() {
        let reply =
            if index == 0 { wire.receive_first().map_err(|error| closed_early(login, error)) } else { wire.receive() };
        match (step, reply) {
            (HandshakeStep::SetClientInfo, Ok(_)) => {}
            (_, Ok(Value::ServerError(error))) => errors.push((step, error)),
            (HandshakeStep::Authenticate | HandshakeStep::Select, Ok(Value::Okay)) | (HandshakeStep::Probe, Ok(_)) => {}
            (HandshakeStep::Authenticate | HandshakeStep::Select, Ok(_)) => {
                return Err(desync_error("AUTH and SELECT"));
            }
            (_, Err(closed)) => {
                // If Redis closes, the first error is the reason. After a timeout, only an error of
                // a required step is.
                let is_reason = |(step, _): &(HandshakeStep, _)| !closed.is_timeout() || is_required(*step);
                let first = errors.into_iter().next().filter(is_reason);
                return Err(first.map_or(closed, |(step, reason)| handshake_error(step, reason)));
            }
        }
    }
    match errors.into_iter().find(|(step, error)| is_required(*step) || error.code() == "NOAUTH") {
        Some((step, error)) => Err(handshake_error(step, error)),
        None => Ok(()),
    }
}

/// Returns the steps, and their commands packed.
fn commands(login: &Login<'_>, username: Option<&str>) -> (Vec<HandshakeStep>, Vec<u8>) {
    let (mut steps, mut packed) = (Vec::new(), Vec::new());
    let mut add = |step, command: &redis::Cmd| {
        steps.push(step);
        command.write_packed_command(&mut packed);
    };
    if let Some(password) = &login.password {
        add(HandshakeStep::Authenticate, redis::cmd("AUTH").arg(username).arg(&**password));
    }
    if login.database != 0 {
        add(HandshakeStep::Select, redis::cmd("SELECT").arg(login.database));
    }
    add(HandshakeStep::Probe, &redis::cmd("PING"));
    let client_info = [("LIB-NAME", env!("CARGO_PKG_NAME")), ("LIB-VER", env!("CARGO_PKG_VERSION"))];
    for (name, value) in client_info.into_iter().filter(|_| login.has_client_info) {
        add(HandshakeStep::SetClientInfo, redis::cmd("CLIENT").arg("SETINFO").arg(name).arg(value));
    }
    (steps, packed)
}

/// Adds the usual reason to the error of a connection that was closed before its first reply.
///
/// A Redis that expects TLS resets a connection without it. A load balancer without a server
/// accepts a connection, and closes it.
fn closed_early(login: &Login<'_>, error: RedisError) -> RedisError {
    if !error.is_connection_dropped() {
        return error;
    }
    let cause = match login.has_tls {
        false => "it may expect TLS (REDIS_TLS=on), or may be no Redis",
        true => "it may be no Redis, or a load balancer that finds no Redis",
    };
    let text = format!("the server closed the connection before its first reply ({}); {cause}", single_line(&error));
    std::io::Error::new(std::io::ErrorKind::ConnectionReset, text).into()
}

/// Returns true if an error reply to `step` makes the connection useless.
fn is_required(step: HandshakeStep) -> bool {
    matches!(step, HandshakeStep::Authenticate | HandshakeStep::Select)
}

/// Returns the error to report for an error reply. It names the refused command, unless the code of
/// the reply says more. It omits the arguments that Redis quotes, because one of them is the
/// password.
fn handshake_error(step: HandshakeStep, reply: ServerError) -> RedisError {
    let text = without_arguments(reply.details().unwrap_or_default());
    let error = RedisError::from(reply.clone());
    let is_code_specific = matches!(error.code(), Some("DENIED" | "NOAUTH" | "NOPERM"))
        || matches!(read_failure(&error), Failure::NotReady(_));
    match step {
        _ if is_code_specific => error,
        HandshakeStep::Authenticate => {
            (ErrorKind::AuthenticationFailed, "Redis rejected AUTH", format!("{} {text}", reply.code())).into()
        }
        HandshakeStep::Select => {
            (ServerErrorKind::ResponseError.into(), "Redis rejected SELECT", text.to_owned()).into()
        }
        HandshakeStep::Probe | HandshakeStep::SetClientInfo => error,
    }
}

/// Returns true if Redis accepts only a password, without a user name.
fn lacks_users(error: &RedisError) -> bool {
    error.detail().is_some_and(|text| text.contains("wrong number of arguments for 'auth'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: &str) -> ServerError {
        match redis::parse_redis_value(format!("-{text}\r\n").as_bytes()) {
            Ok(Value::ServerError(error)) => error,
            other => panic!("{other:?} is not an error"),
        }
    }

    /// The error names the refused command, and neither the user nor the password.
    #[test]
    fn errors_name_command_without_arguments() {
        let quoted = "ERR unknown command 'AUTH', with args beginning with: 'user' 'topsecret' ";
        let error = handshake_error(HandshakeStep::Authenticate, reply(quoted));
        assert!(!error.to_string().contains("topsecret") && !error.to_string().contains("user"), "{error}");
        assert!(
            error.to_string().contains("rejected AUTH") && error.to_string().contains("unknown command"),
            "{error}"
        );
        assert_eq!(error.kind(), ErrorKind::AuthenticationFailed);
        let error = handshake_error(HandshakeStep::Select, reply("ERR DB index is out of range"));
        assert!(error.to_string().contains("rejected SELECT"), "{error}");
        assert_eq!(read_failure(&error), Failure::Redis("ERR DB index is out of range".into()));
        for text in ["NOAUTH Authentication required.", "NOPERM this user has no permissions"] {
            assert_eq!(handshake_error(HandshakeStep::Select, reply(text)).code(), text.split(' ').next(), "{text}");
        }
        // These errors concern the connection, whatever the first command is.
        for text in ["ERR max number of clients reached", "DENIED protected mode", "LOADING", "BUSY"] {
            let error = handshake_error(HandshakeStep::Authenticate, reply(text));
            assert_eq!(error.code(), text.split(' ').next(), "{error}");
        }
    }
}
