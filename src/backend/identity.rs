//! Identity of the server at the other end of a new connection. Addresses are reused, and the last
//! primary may not know yet that it is one no longer.

use super::access::RedisAccess;
use super::connect::is_command_denied;
use super::slot_map::Primary;
use super::subscription::{Role, request_role};
use super::wire::Wire;
use redis::{RedisResult, Value};
use std::io;
use std::sync::Arc;

/// Property that the server must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// None. The operator has chosen the address.
    Any,
    /// It is a primary (`ROLE`).
    Primary,
    /// It has this id in its cluster (`CLUSTER MYID`).
    ClusterNode(Arc<str>),
}

impl Identity {
    /// Returns what is known of a node: of a cluster its id, and that sentinels name primaries
    /// only.
    pub(super) fn expected(access: &RedisAccess, node: &Primary) -> Identity {
        match &node.id {
            Some(id) => Identity::ClusterNode(Arc::clone(id)),
            None if access.sentinel().is_some() => Identity::Primary,
            None => Identity::Any,
        }
    }

    /// Checks the server. One that denies the question is accepted: some services do.
    ///
    /// # Errors
    ///
    /// The server is another one than expected.
    pub(super) fn check(&self, wire: &mut Wire) -> RedisResult<()> {
        match self {
            Identity::Any => Ok(()),
            Identity::Primary => match request_role(wire)? {
                Role::Replica | Role::DetachedReplica => {
                    Err(mismatch("the server is a replica, but the sentinels name it as the primary".into()))
                }
                Role::Primary | Role::Denied | Role::Other => Ok(()),
            },
            Identity::ClusterNode(expected) => match wire.request(redis::cmd("CLUSTER").arg("MYID")) {
                Ok(Value::BulkString(id)) if *id != *expected.as_bytes() => {
                    let id = id.escape_ascii();
                    Err(mismatch(format!("another node of a cluster has this address now: {id} instead of {expected}")))
                }
                Ok(_) => Ok(()),
                Err(error) if is_command_denied(&error) => Ok(()),
                Err(error) => Err(error),
            },
        }
    }
}

fn mismatch(text: String) -> redis::RedisError {
    io::Error::other(text).into()
}
