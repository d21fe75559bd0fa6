//! First exchange on a new connection to Redis: authentication, the database, and whether Redis accepts the client at all.
//!
//! Redis accepts every connection, says why it does not want it, and closes it: too many clients, protected mode. The crate's
//! handshake ignores that reply where it asks for nothing that it needs, and reports only that the connection was closed.
//! All commands are sent together, in an order in which the first reply is always one that counts.

use super::Settings;
use super::wire::Wire;
use redis::{RedisError, RedisResult, ServerError, Value};

/// Identity to take on a new connection.
pub(super) struct Identity {
    username: Option<String>,
    password: Option<String>,
    database: i64,
}

/// What an error reply to a command of the handshake means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// The connection is of no use.
    Required,
    /// Keys tell what is the matter, unless Redis wants a password or closes the connection.
    Probe,
    /// Nothing: a Redis before 7.2 does not know the command.
    Optional,
}

impl Identity {
    pub(super) fn new(settings: &Settings) -> Identity {
        let Settings { username, password, database, .. } = settings;
        Identity { username: username.clone(), password: password.clone(), database: *database }
    }

    /// Authenticates, selects the database and asks whether Redis answers. A Redis before version 6 knows no users.
    pub(super) fn log_in(&self, wire: &mut Wire) -> RedisResult<()> {
        match self.exchange(wire, self.username.as_deref()) {
            Err(error) if self.username.is_some() && knows_no_users(&error) => self.exchange(wire, None),
            result => result,
        }
    }

    fn exchange(&self, wire: &mut Wire, username: Option<&str>) -> RedisResult<()> {
        let (commands, packed) = self.commands(username);
        if let Err(error) = wire.send(&packed) {
            // Redis may have said why before it closed the connection.
            return Err(match wire.receive() {
                Ok(Value::ServerError(reason)) => reason.into(),
                _ => error,
            });
        }
        let mut errors: Vec<(Need, ServerError)> = Vec::new();
        for need in commands {
            match wire.receive() {
                Ok(Value::ServerError(error)) if need != Need::Optional => errors.push((need, error)),
                Ok(_) => {}
                Err(closed) => return Err(errors.into_iter().next().map_or(closed, |(_, reason)| reason.into())),
            }
        }
        match errors.into_iter().find(|(need, error)| *need == Need::Required || error.code() == "NOAUTH") {
            Some((_, error)) => Err(error.into()),
            None => Ok(()),
        }
    }

    /// Packs the commands, and says what an error to each of them means.
    fn commands(&self, username: Option<&str>) -> (Vec<Need>, Vec<u8>) {
        let (mut needs, mut packed) = (Vec::new(), Vec::new());
        let mut add = |need, command: &redis::Cmd| {
            needs.push(need);
            command.write_packed_command(&mut packed);
        };
        if let Some(password) = &self.password {
            add(Need::Required, redis::cmd("AUTH").arg(username).arg(password));
        }
        if self.database != 0 {
            add(Need::Required, redis::cmd("SELECT").arg(self.database));
        }
        add(Need::Probe, &redis::cmd("PING"));
        for (name, value) in [("LIB-NAME", env!("CARGO_PKG_NAME")), ("LIB-VER", env!("CARGO_PKG_VERSION"))] {
            add(Need::Optional, redis::cmd("CLIENT").arg("SETINFO").arg(name).arg(value));
        }
        (needs, packed)
    }
}

/// Returns true if Redis takes a password alone.
fn knows_no_users(error: &RedisError) -> bool {
    error.detail().is_some_and(|text| text.contains("wrong number of arguments for 'auth'"))
}
