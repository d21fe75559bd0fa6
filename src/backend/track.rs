//! The thread that hears of changes: server-assisted invalidation (`CLIENT TRACKING`).
//!
//! One connection in broadcasting mode hears of every write, and nothing depends on the helpers' connections: they may
//! come and go. In the other mode Redis remembers for each connection what it has read, in a table that overflows, and
//! forgets it without a word when the connection closes; ARCHITECTURE.md has what each mode costs.
//!
//! The connection tells itself: it redirects its own messages to itself and subscribes to them, which RESP2 needs, and
//! which puts it under Redis' limit for subscribers that read too slowly. Only what happens after the subscription is
//! heard of, and nothing any more once the connection is lost: the loop is told of both, in order.

use super::connect::{Connector, explain, failure_of, is_outage, is_refusal, run_id};
use super::{Settings, Shared};
use crate::request::{Change, Failure};
use redis::{Connection, Msg, PubSub, RedisResult};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where invalidations are published for a RESP2 connection.
const CHANNEL: &str = "__redis__:invalidate";

/// After so long without a message Redis is asked whether it is still there: a network can fail without a word.
const KEEPALIVE: Duration = Duration::from_secs(1);

/// A connection that is lost sooner was no good: the next attempt waits.
const SETTLED_AFTER: Duration = Duration::from_millis(250);

/// Where Redis refuses, it will do so until somebody changes its configuration.
const REFUSED_WAIT: Duration = Duration::from_secs(30);

/// See the top of the file.
pub(super) struct Tracker {
    shared: Arc<Shared>,
    connector: Connector,
    timeout: Duration,
}

impl Tracker {
    pub(super) fn new(settings: &Settings, shared: Arc<Shared>) -> Tracker {
        Tracker { shared, connector: Connector::new(settings), timeout: settings.timeout }
    }

    /// Connects and listens, again and again, until the pool closes.
    pub(super) fn run(&mut self) {
        while self.shared.pause_until(self.connector.blocked().map(|(until, _)| until)) {
            let (shared, mut server) = (Arc::clone(&self.shared), None);
            let result = self.connector.connect(|connection| {
                server = run_id(connection)?;
                is_read_from(&shared, server.as_deref())?;
                subscribe(connection)
            });
            match result {
                Ok(connection) => self.watch(connection, server.as_deref()),
                Err(error) => {
                    if is_refusal(&error) {
                        self.connector.stand_back_for(failure_of(&error), REFUSED_WAIT);
                    }
                    self.shared.note_tracking(Err(explain(&error)));
                }
            }
            // Unless that is why the connection was given up: what helpers told of before may be gone like the connection.
            if is_read_from(&self.shared, server.as_deref()).is_ok() {
                self.shared.note_server(None);
            }
        }
    }

    /// Passes on what a connection tells, as long as it lives and leads to the Redis that helpers read from.
    fn watch(&mut self, mut connection: Connection, server: Option<&str>) {
        let began = Instant::now();
        // What was cached before was not watched. What is asked for from now on will be, and read from this Redis.
        self.shared.note_tracked(server.map(str::to_owned));
        self.shared.hear(vec![Change::All]);
        self.shared.note_tracking(Ok(()));
        let mut messages = connection.as_pubsub();
        let heard = catch_unwind(AssertUnwindSafe(|| self.listen(&mut messages, server)));
        self.shared.hear(vec![Change::Unwatched]);
        self.shared.note_tracked(None);
        let why = match heard {
            Ok(Ok(())) => return,
            Ok(Err(error)) => explain(&error),
            Err(_) => "listening broke; please report what stands above".to_owned(),
        };
        self.shared.note_tracking(Err(why));
        // Leaving the subscription waits for an answer that may never come. An error changes nothing: it ends here.
        let _ = messages.set_read_timeout(Some(Duration::from_millis(1)));
        if began.elapsed() < SETTLED_AFTER {
            self.connector.stand_back(Failure::Unavailable);
        } else {
            self.connector.settled();
        }
    }

    /// Returns when the pool closes.
    fn listen(&self, messages: &mut PubSub<'_>, server: Option<&str>) -> RedisResult<()> {
        messages.set_read_timeout(Some(KEEPALIVE))?;
        while !self.shared.is_closed() {
            is_read_from(&self.shared, server)?;
            match messages.get_message() {
                Ok(message) => self.shared.hear(changes(&message)),
                Err(error) if error.is_timeout() => {
                    // Messages that come before the answer are kept, and are the next.
                    messages.set_read_timeout(Some(self.timeout))?;
                    ready(messages.ping())?;
                    messages.set_read_timeout(Some(KEEPALIVE))?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Whether helpers read from this Redis, as far as is known.
fn is_read_from(shared: &Shared, server: Option<&str>) -> RedisResult<()> {
    if shared.reads_from_another_than(server) {
        return Err(std::io::Error::other("keys are read from another Redis than the one that tells").into());
    }
    Ok(())
}

/// Makes a connection hear of changes. Not while Redis loads its data or has lost its master: it could be heard, but
/// not read, and what is cached may have to be served until then.
fn subscribe(connection: &mut Connection) -> RedisResult<()> {
    ready(redis::cmd("PING").query(connection))?;
    let id: i64 = redis::cmd("CLIENT").arg("ID").query(connection)?;
    redis::cmd("CLIENT").arg("TRACKING").arg("ON").arg("REDIRECT").arg(id).arg("BCAST").exec(connection)?;
    redis::cmd("SUBSCRIBE").arg(CHANNEL).exec(connection)
}

/// Whether Redis serves reads, by its answer to `PING`.
fn ready(answer: RedisResult<redis::Value>) -> RedisResult<()> {
    match answer.and_then(redis::Value::extract_error) {
        Err(error) if is_outage(&error) => Err(error),
        _ => Ok(()),
    }
}

/// What a message tells: keys, or nothing at all for a flush. What cannot be read may mean anything.
fn changes(message: &Msg) -> Vec<Change> {
    match message.get_payload::<Option<Vec<Vec<u8>>>>() {
        Ok(Some(keys)) => keys.into_iter().map(Change::Key).collect(),
        Ok(None) => vec![Change::All],
        Err(error) => {
            log::warn!("a message of Redis about changes cannot be read, all is taken to have changed: {error}");
            vec![Change::All]
        }
    }
}
