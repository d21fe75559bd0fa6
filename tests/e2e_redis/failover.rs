//! Tests of failovers: a primary becomes a replica, while its name or a load balancer leads to it
//! or to another server.

use crate::common::freshness::{start_tracking_proxy, wait_until_cached, wait_until_text, wait_until_tracking};
use crate::common::relay::Relay;
use crate::common::resolver::Resolver;
use crate::common::{Proxy, Redis, wait_for};
use std::net::TcpListener;

/// Reason why a demoted primary is left.
const DEMOTED: &str = "the primary became a replica (failover or REPLICAOF)";

/// Two primaries at the same port, and a proxy that reaches them by name: `old` at 127.0.0.1 and,
/// through a relay, `new` at 127.0.0.2. The value of the key `a` is the name of the server.
struct Failover {
    proxy: Proxy,
    old: Redis,
    new: Redis,
    resolver: Resolver,
    _relay: Relay,
}

impl Failover {
    /// Starts the servers and the proxy. The name leads to `addresses`.
    fn start(addresses: &str) -> Failover {
        let (old, new) = (Redis::start(), Redis::start());
        let relay = Relay::start_at(("127.0.0.2", old.port), new.port);
        old.set("a", "old");
        new.set("a", "new");
        let resolver = Resolver::start(addresses);
        let proxy = start_tracking_proxy(old.port, &resolver.env());
        Failover { proxy, old, new, resolver, _relay: relay }
    }
}

/// Primary that accepts connections and never replies. Its replicas keep their values and
/// connections.
struct SilentPrimary(TcpListener);

impl SilentPrimary {
    fn start() -> SilentPrimary {
        SilentPrimary(TcpListener::bind("127.0.0.1:0").expect("a free port"))
    }

    fn port(&self) -> String {
        self.0.local_addr().expect("an address").port().to_string()
    }
}

/// A primary that becomes a replica is left, by the tracking connection and by the fetchers. While
/// its name leads there it is read, but not tracked, because it has no primary of its own.
#[test]
fn demoted_primary_is_left() {
    let Failover { old, resolver, proxy, .. } = &Failover::start("127.0.0.1");
    let mut client = proxy.connect();
    wait_until_cached(&mut client, "/raw/a", "old");
    let silent = SilentPrimary::start();
    old.run(&["REPLICAOF", "127.0.0.1", &silent.port()]);
    proxy.wait_for_log(DEMOTED);
    wait_for("tracking waits", || {
        let reason = "a replica without a connection to its primary, so no changes reach it";
        proxy.get("/readyz").text().contains(reason).then_some(())
    });
    assert_eq!(client.get("/raw/a").text(), "old", "the name still leads to the replica");
    resolver.set_result(0, "127.0.0.2");
    wait_until_tracking(proxy, 2);
    wait_until_text(&mut client, "/raw/a", "new");
}

/// A primary that became a replica of another one is used, and tracked, while its name leads there
/// or to another replica. It is left once a new connection leads to a primary.
#[test]
fn replica_is_kept_until_primary_is_found() {
    let third = Redis::start();
    let Failover { old, new, resolver, proxy, .. } = &Failover::start("127.0.0.1");
    let mut client = proxy.connect();
    let become_replica = |redis: &Redis| {
        redis.run(&["REPLICAOF", "127.0.0.1", &third.port.to_string()]);
        wait_for("the replica is connected", || {
            let info: String = redis::cmd("INFO").arg("replication").query(&mut redis.connect()).ok()?;
            info.contains("master_link_status:up").then_some(())
        });
    };
    become_replica(new);
    become_replica(old);
    proxy.wait_for_log(DEMOTED);
    wait_until_tracking(proxy, 2);
    resolver.set_result(0, "127.0.0.2");
    wait_for("the name was tried", || (new.count_calls("role") >= 1).then_some(()));
    third.set("a", "1");
    wait_until_cached(&mut client, "/raw/a", "1");
    let active = proxy.log().matches("at once (tracking active)").count();
    wait_for("the name was tried again", || (new.count_calls("role") >= 2).then_some(()));
    assert_eq!(proxy.log().matches("at once (tracking active)").count(), active, "{}", proxy.log());
    new.run(&["REPLICAOF", "NO", "ONE"]);
    new.set("a", "2");
    proxy.wait_for_log("the server is a replica, and a new connection leads to a primary");
    wait_until_text(&mut client, "/raw/a", "2");
}

/// A demoted primary that serves nothing any more is left for the other address of its name.
#[test]
fn demoted_address_without_reads_is_left() {
    let Failover { old, proxy, .. } = &Failover::start("127.0.0.1,127.0.0.2");
    old.run(&["DEL", "a"]);
    let mut client = proxy.connect();
    assert_eq!(client.get("/raw/a").status, 404);
    let silent = SilentPrimary::start();
    old.run(&["CONFIG", "SET", "replica-serve-stale-data", "no"]);
    old.run(&["REPLICAOF", "127.0.0.1", &silent.port()]);
    wait_until_text(&mut client, "/raw/a", "new");
    wait_until_tracking(proxy, 2);
}

/// A primary behind a load balancer is left once new connections lead to another primary. The
/// address stays the same, and the old connections stay open.
#[test]
fn demoted_primary_behind_balancer_is_left() {
    let (old, new) = (Redis::start(), Redis::start());
    let balancer = Relay::start(old.port);
    old.set("a", "old");
    new.set("a", "new");
    let proxy = start_tracking_proxy(balancer.port, &[]);
    let mut client = proxy.connect();
    wait_until_cached(&mut client, "/raw/a", "old");
    let silent = SilentPrimary::start();
    old.run(&["REPLICAOF", "127.0.0.1", &silent.port()]);
    proxy.wait_for_log(DEMOTED);
    assert_eq!(client.get("/raw/a").text(), "old", "the balancer still leads to the replica");
    balancer.set_target(new.port);
    wait_until_text(&mut client, "/raw/a", "new");
    wait_until_tracking(&proxy, 2);
    new.set("a", "newer");
    wait_until_text(&mut client, "/raw/a", "newer");
}

/// A name with two addresses leads to the other one once the primary at the first became a replica.
#[test]
fn demoted_address_is_tried_last() {
    let Failover { old, new, proxy, .. } = &Failover::start("127.0.0.1,127.0.0.2");
    let mut client = proxy.connect();
    wait_until_text(&mut client, "/raw/a", "old");
    old.run(&["REPLICAOF", "127.0.0.1", &new.port.to_string()]);
    wait_until_text(&mut client, "/raw/a", "new");
    wait_until_tracking(proxy, 2);
    wait_for("the tracking connection leads there too", || (new.count_calls("role") >= 2).then_some(()));
}

/// A demotion that closes the connections, as one by Sentinel does, leads to the other address of
/// the name too.
#[test]
fn demotion_may_close_connections() {
    let Failover { old, proxy, .. } = &Failover::start("127.0.0.1,127.0.0.2");
    let mut client = proxy.connect();
    wait_until_cached(&mut client, "/raw/a", "old");
    let silent = SilentPrimary::start();
    let mut demotion = redis::pipe();
    demotion.atomic().cmd("REPLICAOF").arg("127.0.0.1").arg(silent.port());
    demotion.cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub");
    let _: redis::Value = demotion.query(&mut old.connect()).expect("a demotion");
    wait_until_text(&mut client, "/raw/a", "new");
    wait_until_tracking(proxy, 2);
}

/// A replica that was configured as such is kept.
#[test]
fn configured_replica_is_kept() {
    let (primary, replica) = (Redis::start(), Redis::start());
    replica.run(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
    primary.set("a", "1");
    let proxy = start_tracking_proxy(replica.port, &[]);
    let mut client = proxy.connect();
    wait_until_cached(&mut client, "/raw/a", "1");
    wait_for("the role was asked for several times", || (replica.count_calls("role") >= 3).then_some(()));
    primary.set("a", "2");
    wait_until_text(&mut client, "/raw/a", "2");
    assert_eq!(proxy.log().matches("at once (tracking active)").count(), 1, "{}", proxy.log());
}
