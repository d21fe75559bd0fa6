//! Watch over the role of the server that a tracking connection leads to.
//!
//! After a failover by DNS, or `REPLICAOF`, the connections to the old primary stay open, and it
//! serves old values. So a primary that became a replica is left, and its name is looked up again.
//! The name, or a load balancer, may still lead there for a while. Then the replica is used, and
//! new connections are tried on a thread until one leads to a primary.
//!
//! A server that was a replica from the start was chosen by the operator. No replica counts as
//! tracked while it has lost its primary, because no invalidation reaches it.
//!
//! A node that sentinels or a cluster name must be a primary. If it is not, it is left, and the
//! topology thread finds the present one.

use super::access::RedisAccess;
use super::connect::Connector;
use super::stream::Endpoint;
use super::subscription::{Role, TrackingProtocol, request_role};
use redis::RedisResult;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

/// Delay between the first two searches for a primary.
const MIN_SEARCH_DELAY: Duration = Duration::from_secs(1);

/// Longest delay between two searches. A demotion may be permanent, and each search opens
/// connections.
const MAX_SEARCH_DELAY: Duration = Duration::from_secs(10);

/// State of the watch over the present server.
pub(super) struct RoleWatch {
    access: Arc<RedisAccess>,
    /// True if sentinels or a cluster name the server.
    is_found: bool,
    /// Endpoint that was the primary at the last check.
    primary: Option<Endpoint>,
    /// Search in progress, and the endpoint of the replica that it shall replace.
    search: Option<(Endpoint, Receiver<bool>)>,
    /// Time of the next search, and the delay to the one after it.
    next_search: (Instant, Duration),
    /// True once the log says that the role cannot be watched.
    logged_denial: bool,
}

impl RoleWatch {
    pub(super) fn new(access: Arc<RedisAccess>) -> RoleWatch {
        let next_search = (Instant::now(), MIN_SEARCH_DELAY);
        let is_found = access.topology().is_some();
        RoleWatch { access, is_found, primary: None, search: None, next_search, logged_denial: false }
    }

    /// Warns once if the protocol of a tracking connection cannot carry `ROLE`.
    pub(super) fn check_protocol(&mut self, protocol: TrackingProtocol, connector: &Connector) {
        if protocol == TrackingProtocol::Resp2 && !std::mem::replace(&mut self.logged_denial, true) {
            log::warn!(
                "Redis at {} refuses HELLO 3: {}; grant +hello to the user of the proxy, or allow HELLO in Redis",
                connector.target(),
                self.unwatched_risk()
            );
        }
    }

    /// Returns what happens if the role of the server cannot be watched.
    fn unwatched_risk(&self) -> &'static str {
        match self.is_found {
            true => "a primary that becomes a replica is left only when sentinels or nodes name another one",
            false => "a primary that becomes a replica is not left, and its values may be old",
        }
    }

    /// Notices that the primary at `endpoint` became a replica. From now on its address is tried
    /// last.
    ///
    /// # Errors
    ///
    /// The server is to be left. It is not reported again.
    pub(super) fn check_demotion(&mut self, role: Role, endpoint: &Endpoint) -> RedisResult<()> {
        let is_replica = matches!(role, Role::Replica | Role::DetachedReplica);
        if is_replica && self.is_found {
            return Err(leave("the server is a replica (failover)"));
        }
        if is_replica && self.primary.take_if(|primary| primary == endpoint).is_some() {
            self.access.record_demotion(endpoint);
            return Err(leave("the primary became a replica (failover or REPLICAOF)"));
        }
        Ok(())
    }

    /// Takes the role of the server at `endpoint`, once a second.
    ///
    /// # Errors
    ///
    /// The server is to be left.
    pub(super) fn check(&mut self, role: Role, endpoint: &Endpoint, connector: &Connector) -> RedisResult<()> {
        self.check_demotion(role, endpoint)?;
        match role {
            Role::Primary if self.is_found => {}
            Role::Primary => {
                self.access.record_primary(endpoint);
                self.primary = Some(endpoint.clone());
                (self.search, self.next_search) = (None, (Instant::now(), MIN_SEARCH_DELAY));
            }
            Role::Replica if self.access.expects_primary() && self.finds_primary(endpoint, connector) => {
                return Err(leave("the server is a replica, and a new connection leads to a primary"));
            }
            Role::DetachedReplica => return check_attached(role),
            Role::Denied if !std::mem::replace(&mut self.logged_denial, true) => log::warn!(
                "Redis at {} denies ROLE: {}; grant +role to the user of the proxy",
                connector.target(),
                self.unwatched_risk()
            ),
            Role::Replica | Role::Denied | Role::Other => {}
        }
        Ok(())
    }

    /// Returns true if the last search found a primary. Otherwise starts another one when it is
    /// due, on a thread, because invalidations must not wait for it.
    fn finds_primary(&mut self, endpoint: &Endpoint, connector: &Connector) -> bool {
        if let Some((of, result)) = &self.search {
            match result.try_recv() {
                Err(TryRecvError::Empty) => return false,
                result => {
                    let is_found = of == endpoint && result == Ok(true);
                    self.search = None;
                    if is_found {
                        return true;
                    }
                }
            }
        }
        let (due, delay) = self.next_search;
        if due <= Instant::now() {
            self.next_search = (Instant::now() + delay, (delay * 2).min(MAX_SEARCH_DELAY));
            let (sender, result) = channel();
            let (replica, connector) = (endpoint.clone(), connector.clone());
            // Without a receiver the connection was lost.
            let search = move || _ = sender.send(leads_to_primary(&replica, &connector));
            // Without a thread a later check tries again.
            let thread = std::thread::Builder::new().name("redis-lookup".into()).spawn(search);
            self.search = thread.ok().map(|_| (endpoint.clone(), result));
        }
        false
    }
}

/// Returns true if a new connection leads to a primary: to another address of the name, or to that
/// of `replica` behind a load balancer. Blocks.
fn leads_to_primary(replica: &Endpoint, connector: &Connector) -> bool {
    let mut endpoints = connector.resolve().unwrap_or_default();
    endpoints.sort_by_key(|endpoint| endpoint == replica);
    let is_primary =
        |endpoint| connector.open(endpoint).and_then(|mut wire| request_role(&mut wire)) == Ok(Role::Primary);
    endpoints.into_iter().any(is_primary)
}

/// Returns an error for a replica that has lost its primary.
pub(super) fn check_attached(role: Role) -> RedisResult<()> {
    match role {
        Role::DetachedReplica => {
            Err(leave("the server is a replica without a connection to its primary, so no changes reach it"))
        }
        _ => Ok(()),
    }
}

fn leave(reason: &str) -> redis::RedisError {
    io::Error::other(reason).into()
}
