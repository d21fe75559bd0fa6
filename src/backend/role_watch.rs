//! Watch over the role of the server that a tracking connection leads to.
//!
//! After a failover by DNS, or `REPLICAOF`, the connections to the old primary stay open, and it
//! serves old values. So a primary that became a replica is left, and its name is looked up again.
//! The name may still lead there for a while. Then the replica is used, and the search repeated
//! each second, until it leads elsewhere. Behind a load balancer the address stays the same, so the
//! search also opens a new connection and asks for its role.
//!
//! A server that was a replica from the start was chosen by the operator.

use super::access::RedisAccess;
use super::connect::Connector;
use super::stream::Endpoint;
use super::subscription::{Role, TrackingProtocol, request_role};
use redis::RedisResult;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};

/// What is known about the present server.
pub(super) struct RoleWatch {
    access: Arc<RedisAccess>,
    /// Endpoint that was the primary at the last check.
    primary: Option<Endpoint>,
    /// Result of a search in progress: the reason to leave, or `None` to stay.
    search: Option<Receiver<Option<&'static str>>>,
    /// True once the log says that the role cannot be watched.
    logged_denial: bool,
}

impl RoleWatch {
    pub(super) fn new(access: Arc<RedisAccess>) -> RoleWatch {
        RoleWatch { access, primary: None, search: None, logged_denial: false }
    }

    /// Warns once if the protocol of a tracking connection cannot carry `ROLE`.
    pub(super) fn check_protocol(&mut self, protocol: TrackingProtocol, connector: &Connector) {
        if protocol == TrackingProtocol::Resp2 && !std::mem::replace(&mut self.logged_denial, true) {
            log::warn!(
                "Redis at {} refuses HELLO 3: a primary that becomes a replica is not left, and its values may be old; \
                 grant +hello to the user of the proxy, or allow HELLO in Redis",
                connector.target()
            );
        }
    }

    /// Takes the role of the server at `endpoint`, once a second.
    ///
    /// # Errors
    ///
    /// The server is to be left.
    pub(super) fn check(&mut self, role: Role, endpoint: &Endpoint, connector: &Connector) -> RedisResult<()> {
        match role {
            Role::Primary => {
                self.access.record_primary(endpoint);
                self.primary = Some(endpoint.clone());
                self.search = None;
            }
            Role::Replica if self.primary.take_if(|primary| primary == endpoint).is_some() => {
                self.access.record_demotion(endpoint);
                return Err(leave("the primary became a replica (failover or REPLICAOF)"));
            }
            Role::Replica if self.access.expects_primary() => {
                if let Some(reason) = self.search_primary(endpoint, connector) {
                    return Err(leave(reason));
                }
            }
            Role::Denied if !std::mem::replace(&mut self.logged_denial, true) => log::warn!(
                "Redis at {} denies ROLE: a primary that becomes a replica is not left, and its values may be old; grant \
                 +role to the user of the proxy",
                connector.target()
            ),
            Role::Replica | Role::Denied | Role::Other => {}
        }
        Ok(())
    }

    /// Returns the reason to leave if the last search found one. Otherwise starts another search on
    /// a thread, because invalidations must not wait for it.
    fn search_primary(&mut self, endpoint: &Endpoint, connector: &Connector) -> Option<&'static str> {
        if let Some(result) = &self.search {
            match result.try_recv() {
                Err(TryRecvError::Empty) => return None,
                Ok(Some(reason)) => {
                    self.search = None;
                    return Some(reason);
                }
                Ok(None) | Err(TryRecvError::Disconnected) => {}
            }
        }
        let (sender, result) = channel();
        let (endpoint, connector) = (endpoint.clone(), connector.clone());
        // Without a receiver the connection was lost.
        let search = move || _ = sender.send(reason_to_leave(&endpoint, &connector));
        // Without a thread the next check tries again.
        self.search = std::thread::Builder::new().name("redis-lookup".into()).spawn(search).ok().map(|_| result);
        None
    }
}

/// Returns the reason to leave the replica at `endpoint`, `None` if new connections lead there too.
/// Blocks.
fn reason_to_leave(endpoint: &Endpoint, connector: &Connector) -> Option<&'static str> {
    let endpoints = connector.resolve().ok().filter(|endpoints| !endpoints.is_empty())?;
    if !endpoints.contains(endpoint) {
        return Some("the server is a replica, and the host of Redis resolves to another address now");
    }
    let role = connector.open(endpoint.clone()).and_then(|mut wire| request_role(&mut wire));
    (role.ok()? == Role::Primary)
        .then_some("the server is a replica, and a new connection to its address leads to a primary")
}

fn leave(reason: &str) -> redis::RedisError {
    io::Error::other(reason).into()
}
