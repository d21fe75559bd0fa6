//! Watch over the role of the server that a tracking connection leads to.
//!
//! After a failover by DNS, or `REPLICAOF`, the connections to the old primary stay open, and it
//! serves old values. So a primary that became a replica is left, and its name is looked up again.
//! The name may still lead there for a while. Then the replica is used, and the lookup repeated
//! each second, until it leads elsewhere.
//!
//! A server that was a replica from the start was chosen by the operator.

use super::access::RedisAccess;
use super::connect::Connector;
use super::stream::Endpoint;
use super::subscription::Role;
use redis::RedisResult;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};

/// What is known about the present server.
pub(super) struct RoleWatch {
    access: Arc<RedisAccess>,
    /// Endpoint that was the primary at the last check.
    primary: Option<Endpoint>,
    /// Result of a lookup in progress: true if the name leads elsewhere.
    lookup: Option<Receiver<bool>>,
    /// True once the log says that the role cannot be watched.
    logged_denial: bool,
}

impl RoleWatch {
    pub(super) fn new(access: Arc<RedisAccess>) -> RoleWatch {
        RoleWatch { access, primary: None, lookup: None, logged_denial: false }
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
            }
            Role::Replica if self.primary.take_if(|primary| primary == endpoint).is_some() => {
                self.access.record_demotion(endpoint);
                return Err(leave("the primary became a replica (failover or REPLICAOF)"));
            }
            Role::Replica if self.access.expects_primary() && self.leads_elsewhere(endpoint, connector) => {
                return Err(leave("the server is a replica, and the host of Redis resolves to another address now"));
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

    /// Returns true if the last lookup led elsewhere. Otherwise starts another one on a thread,
    /// because invalidations must not wait for it.
    fn leads_elsewhere(&mut self, endpoint: &Endpoint, connector: &Connector) -> bool {
        if let Some(result) = &self.lookup {
            match result.try_recv() {
                Err(TryRecvError::Empty) => return false,
                Ok(true) => {
                    self.lookup = None;
                    return true;
                }
                Ok(false) | Err(TryRecvError::Disconnected) => {}
            }
        }
        let (sender, result) = channel();
        let (endpoint, connector) = (endpoint.clone(), connector.clone());
        let look_up = move || {
            let leads_elsewhere = connector.resolve().is_ok_and(|all| !all.is_empty() && !all.contains(&endpoint));
            // Without a receiver the connection was lost.
            let _ = sender.send(leads_elsewhere);
        };
        // Without a thread the next check tries again.
        self.lookup = std::thread::Builder::new().name("redis-lookup".into()).spawn(look_up).ok().map(|_| result);
        false
    }
}

fn leave(reason: &str) -> redis::RedisError {
    io::Error::other(reason).into()
}
