//! Subscription to invalidations, and the messages that then arrive on its connection.
//!
//! In RESP3 the messages are pushes (`CLIENT TRACKING ON BCAST`). The connection also subscribes to
//! their channel: Redis then never closes it as idle, and applies its limit for slow subscribers.
//! It may still ask for the role of the server. Some services support only this form.
//!
//! A connection to a Redis that refuses `HELLO 3` stays in RESP2. It redirects its messages to
//! itself and receives them as those of the channel. It can then send `PING` only.

use super::connect::{info_field, is_command_denied, is_outage};
use super::reader::desync_error;
use super::wire::Wire;
use crate::types::Invalidation;
use redis::{PushKind, RedisResult, Value};

/// Channel of the invalidations.
const CHANNEL: &str = "__redis__:invalidate";

/// Protocol version of a tracking connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TrackingProtocol {
    Resp2,
    Resp3,
}

/// Request on a tracking connection that has no reply yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    Nothing,
    /// The reply to `ROLE`. In a cluster that to `CLUSTER INFO` follows, then that to `PING`.
    Role,
    /// The reply to `CLUSTER INFO`. That to `PING` follows.
    ClusterInfo,
    /// The reply to `PING`.
    Pong,
}

/// Message on a tracking connection.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    Invalidations(Vec<Invalidation>),
    /// Reply to `PING`.
    Pong,
    Role(Role),
    /// Reply to `CLUSTER INFO`, or the reason why the cluster does not work as the node sees it.
    ClusterState(Result<(), String>),
    /// Push that does not concern the cache.
    Ignored,
}

/// Role of the server, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Primary,
    /// Replica that receives the writes of its primary.
    Replica,
    /// Replica without a connection to its primary. No invalidation reaches it.
    DetachedReplica,
    /// Redis denies `ROLE`.
    Denied,
    /// Another role, or an unknown form of the reply.
    Other,
}

/// Subscribes a connection to invalidations. Fails while Redis loads its data or has lost its
/// master. A subscription would then flush the cache while Redis serves no reads, and stale values
/// may be needed.
pub(super) fn subscribe(wire: &mut Wire) -> RedisResult<TrackingProtocol> {
    check_serving(wire.request(&redis::cmd("PING")))?;
    wire.send(&redis::cmd("HELLO").arg(3).get_packed_command())?;
    match wire.receive()? {
        Value::Map(_) => subscribe_resp3(wire).map(|()| TrackingProtocol::Resp3),
        _ => subscribe_resp2(wire).map(|()| TrackingProtocol::Resp2),
    }
}

fn subscribe_resp2(wire: &mut Wire) -> RedisResult<()> {
    let Value::Int(id) = wire.request(redis::cmd("CLIENT").arg("ID"))? else { return Err(desync_error("CLIENT ID")) };
    wire.request(redis::cmd("CLIENT").arg("TRACKING").arg("ON").arg("REDIRECT").arg(id).arg("BCAST"))?;
    wire.request(redis::cmd("SUBSCRIBE").arg(CHANNEL)).map(|_| ())
}

fn subscribe_resp3(wire: &mut Wire) -> RedisResult<()> {
    wire.request(redis::cmd("CLIENT").arg("TRACKING").arg("ON").arg("BCAST"))?;
    wire.send(&redis::cmd("SUBSCRIBE").arg(CHANNEL).get_packed_command())?;
    loop {
        match wire.receive()? {
            Value::Push { kind: PushKind::Subscribe, .. } => return Ok(()),
            // The caller invalidates everything after this.
            Value::Push { .. } => {}
            Value::ServerError(error) => {
                let error = error.into();
                // The invalidations arrive without the subscription too.
                return if is_command_denied(&error) { Ok(()) } else { Err(error) };
            }
            _ => return Err(desync_error("SUBSCRIBE")),
        }
    }
}

/// Returns an error if a reply to `PING` means that Redis does not serve reads.
fn check_serving(reply: RedisResult<Value>) -> RedisResult<()> {
    match reply.and_then(Value::extract_error) {
        Err(error) if is_outage(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Returns the commands that check the connection, packed, and the first reply to await.
///
/// `ROLE` comes first: unlike `PING`, it is answered by a replica that does not serve.
pub(super) fn check_commands(protocol: TrackingProtocol, is_cluster: bool) -> (Vec<u8>, Awaited) {
    let (mut packed, mut awaited) = (Vec::new(), Awaited::Pong);
    if protocol == TrackingProtocol::Resp3 {
        redis::cmd("ROLE").write_packed_command(&mut packed);
        awaited = Awaited::Role;
        if is_cluster {
            redis::cmd("CLUSTER").arg("INFO").write_packed_command(&mut packed);
        }
    }
    redis::cmd("PING").write_packed_command(&mut packed);
    (packed, awaited)
}

/// Parses a message. What is neither an invalidation nor an awaited reply invalidates everything.
pub(super) fn parse_message(value: Value, protocol: TrackingProtocol, awaited: Awaited) -> RedisResult<Message> {
    match (value, protocol, awaited) {
        (Value::Push { kind: PushKind::Invalidate, data }, ..) => {
            Ok(Message::Invalidations(parse_invalidations(data.into_iter().next().unwrap_or(Value::Okay))))
        }
        // A client of Redis published something on the channel.
        (Value::Push { kind: PushKind::Message | PushKind::Subscribe, .. }, ..) => Ok(Message::Ignored),
        (Value::Push { .. }, ..) => Ok(Message::Invalidations(invalidate_unreadable())),
        (Value::Array(parts), TrackingProtocol::Resp2, _) => Ok(parse_published(parts)),
        (value, TrackingProtocol::Resp3, Awaited::Role) => Ok(Message::Role(parse_role(value))),
        (value, TrackingProtocol::Resp3, Awaited::ClusterInfo) => Ok(Message::ClusterState(parse_cluster_state(value))),
        (value, _, Awaited::Pong) => check_serving(Ok(value)).map(|()| Message::Pong),
        _ => Ok(Message::Invalidations(invalidate_unreadable())),
    }
}

/// Parses an array in RESP2: a published message, or the reply to `PING` of a subscriber.
fn parse_published(parts: Vec<Value>) -> Message {
    let mut parts = parts.into_iter();
    match (parts.next(), parts.next(), parts.next()) {
        (Some(Value::BulkString(kind)), _, None) if kind == b"pong" => Message::Pong,
        (Some(Value::BulkString(kind)), _, Some(payload)) if kind == b"message" => {
            Message::Invalidations(parse_invalidations(payload))
        }
        _ => Message::Invalidations(invalidate_unreadable()),
    }
}

/// Asks a server for its role. An error reply is a role too.
pub(super) fn request_role(wire: &mut Wire) -> RedisResult<Role> {
    wire.send(&redis::cmd("ROLE").get_packed_command())?;
    wire.receive().map(parse_role)
}

/// Asks a node for the state of its cluster. A denial is a working cluster.
pub(super) fn request_cluster_state(wire: &mut Wire) -> RedisResult<Result<(), String>> {
    wire.send(&redis::cmd("CLUSTER").arg("INFO").get_packed_command())?;
    wire.receive().map(parse_cluster_state)
}

/// Parses a reply to `CLUSTER INFO`. In RESP3 the text is verbatim.
fn parse_cluster_state(value: Value) -> Result<(), String> {
    match info_text(value).as_deref().and_then(|text| info_field(text, "cluster_state")).as_deref() {
        Some("ok") | None => Ok(()),
        Some(state) => Err(format!("the cluster does not work as the node sees it (cluster_state:{state})")),
    }
}

/// Returns the text of a reply to `INFO` or `CLUSTER INFO`, which need not be UTF-8.
pub(super) fn info_text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(text) => Some(String::from_utf8_lossy(&text).into_owned()),
        Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}

/// Parses a reply to `ROLE`.
fn parse_role(value: Value) -> Role {
    match value {
        // A replica: its role, the host and the port of its primary, the state of the link.
        Value::Array(parts) => match (parts.first(), parts.get(3)) {
            (Some(Value::BulkString(role)), _) if role == b"master" => Role::Primary,
            (Some(Value::BulkString(role)), Some(Value::BulkString(link))) if role == b"slave" => {
                if link == b"connected" { Role::Replica } else { Role::DetachedReplica }
            }
            _ => Role::Other,
        },
        Value::ServerError(error) if is_command_denied(&error.clone().into()) => Role::Denied,
        _ => Role::Other,
    }
}

/// Returns the invalidations in a payload, which is a list of keys, or nil for a flush.
fn parse_invalidations(payload: Value) -> Vec<Invalidation> {
    match payload {
        Value::Nil => vec![Invalidation::All],
        Value::Array(keys) => {
            let key = |key| if let Value::BulkString(name) = key { Invalidation::Key(name) } else { Invalidation::All };
            keys.into_iter().map(key).collect()
        }
        _ => invalidate_unreadable(),
    }
}

/// Returns an invalidation of everything, for a message that cannot be parsed.
fn invalidate_unreadable() -> Vec<Invalidation> {
    log::warn!("unreadable invalidation message from Redis: cache flushed");
    vec![Invalidation::All]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8], protocol: TrackingProtocol, awaited: Awaited) -> RedisResult<Message> {
        parse_message(redis::parse_redis_value(bytes).expect("a value"), protocol, awaited)
    }

    /// Invalidations are read in both protocols. Other messages flush, unless they are awaited.
    #[test]
    fn messages_are_told_apart() {
        let keys =
            |keys: &[&[u8]]| Message::Invalidations(keys.iter().map(|key| Invalidation::Key(key.to_vec())).collect());
        let all = || Message::Invalidations(vec![Invalidation::All]);
        let role = |role| Message::Role(role);
        use {Awaited::*, TrackingProtocol::*};
        for (bytes, protocol, awaited, expected) in [
            (&b">2\r\n$10\r\ninvalidate\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n"[..], Resp3, Pong, keys(&[b"a", b"b"])),
            (b">2\r\n+invalidate\r\n_\r\n", Resp3, Nothing, all()),
            (b">2\r\n$10\r\ninvalidate\r\n:1\r\n", Resp3, Nothing, all()),
            (b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n", Resp3, Nothing, Message::Ignored),
            (b">2\r\n$5\r\nother\r\n$1\r\nx\r\n", Resp3, Nothing, all()),
            (b"+PONG\r\n", Resp3, Pong, Message::Pong),
            (b"+PONG\r\n", Resp3, Nothing, all()),
            (b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n", Resp3, Awaited::Role, role(super::Role::Primary)),
            (
                b"*5\r\n$5\r\nslave\r\n$1\r\nh\r\n:1\r\n$9\r\nconnected\r\n:0\r\n",
                Resp3,
                Awaited::Role,
                role(super::Role::Replica),
            ),
            (
                b"*5\r\n$5\r\nslave\r\n$1\r\nh\r\n:1\r\n$10\r\nconnecting\r\n:0\r\n",
                Resp3,
                Awaited::Role,
                role(super::Role::DetachedReplica),
            ),
            (b">2\r\n$5\r\nother\r\n$1\r\nx\r\n", Resp3, Awaited::Role, all()),
            (b">2\r\n$5\r\nother\r\n$1\r\nx\r\n", Resp3, Pong, all()),
            (b"-NOPERM no\r\n", Resp3, Awaited::Role, role(super::Role::Denied)),
            (b"-ERR what\r\n", Resp3, Awaited::Role, role(super::Role::Other)),
            (b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n*1\r\n$1\r\na\r\n", Resp2, Nothing, keys(&[b"a"])),
            (b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n*-1\r\n", Resp2, Nothing, all()),
            (b"*2\r\n$4\r\npong\r\n$0\r\n\r\n", Resp2, Pong, Message::Pong),
            (b"*1\r\n$4\r\nwhat\r\n", Resp2, Pong, all()),
        ] {
            let parsed = parse(bytes, protocol, awaited).expect("no error");
            assert_eq!(parsed, expected, "{} {protocol:?} {awaited:?}", bytes.escape_ascii());
        }
        assert!(parse(b"-LOADING\r\n", Resp3, Pong).is_err() && parse(b"-MASTERDOWN\r\n", Resp2, Pong).is_err());
        assert_eq!(parse(b"-MISCONF\r\n", Resp2, Pong).ok(), Some(Message::Pong));
    }
}
