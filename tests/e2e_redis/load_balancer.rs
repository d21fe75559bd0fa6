//! Test of a real HAProxy between the proxy and Redis: it ends TLS, and closes idle connections.

use crate::common::certificates::Authority;
use crate::common::freshness::{wait_until_cached, wait_until_text, wait_until_tracking};
use crate::common::{Proxy, Redis, wait_for};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command};

/// Idle time after which HAProxy closes a connection. A busy machine may delay the checks of the
/// tracking connection, one a second, by less than the difference.
const IDLE_TIMEOUT: &str = "3s";

/// Running HAProxy that accepts TLS. Killed when dropped.
struct Balancer {
    child: Child,
    authority: Authority,
    port: u16,
}

impl Balancer {
    /// Starts a HAProxy in front of the Redis at `redis_port`.
    fn start(redis_port: u16) -> Balancer {
        let authority = Authority::create();
        let identity = authority.issue("balancer", "IP:127.0.0.1");
        let both = [&identity.certificate, &identity.key].map(|path| std::fs::read_to_string(path).expect("a file"));
        let certificate = authority.path("both.pem");
        std::fs::write(&certificate, both.concat()).expect("a file");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let configuration = format!(
            "global\n  maxconn 100\n\
             defaults\n  mode tcp\n  retries 0\n  timeout connect 5s\n  timeout client {IDLE_TIMEOUT}\n  \
             timeout server {IDLE_TIMEOUT}\n\
             listen redis\n  bind 127.0.0.1:{port} ssl crt {certificate}\n  server one 127.0.0.1:{redis_port}\n"
        );
        std::fs::write(authority.path("haproxy.cfg"), configuration).expect("a file");
        Balancer { child: Balancer::launch(&authority, port), authority, port }
    }

    fn launch(authority: &Authority, port: u16) -> Child {
        let child = Command::new("haproxy")
            .args(["-db", "-q", "-f", &authority.path("haproxy.cfg")])
            .spawn()
            .expect("haproxy is installed");
        wait_for("haproxy listens", || TcpStream::connect(("127.0.0.1", port)).ok());
        child
    }

    fn kill(&mut self) {
        self.child.kill().expect("haproxy can be killed");
        self.child.wait().expect("haproxy can be waited for");
    }

    fn restart(&mut self) {
        self.child = Balancer::launch(&self.authority, self.port);
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Through HAProxy, reads and tracking survive its idle timeout and its restart. The log tells a
/// load balancer without Redis from a dead one.
#[test]
fn haproxy_in_between_is_survived() {
    let mut redis = Redis::start();
    redis.set("a", "1");
    let mut balancer = Balancer::start(redis.port);
    let (url, ca) = (format!("rediss://127.0.0.1:{}", balancer.port), balancer.authority.certificate());
    let variables =
        [("REDIS_URL", url.as_str()), ("REDIS_TLS_CA", &ca), ("REDIS_TRACKING", "on"), ("CACHE_TTL", "600")];
    let proxy = Proxy::start(&redis, &variables);
    wait_until_tracking(&proxy, 1);
    let mut client = proxy.connect();
    wait_until_cached(&mut client, "/raw/a", "1");
    // Each check asks for the role. The fetchers are idle meanwhile.
    wait_for("more time than the idle timeout", || (redis.count_calls("role") >= 6).then_some(()));
    assert_eq!(proxy.log().matches("at once (tracking active)").count(), 1, "{}", proxy.log());
    for number in 0..20 {
        assert_eq!(client.get(&format!("/raw/missing{number}")).status, 404, "{}", proxy.log());
    }
    redis.set("a", "2");
    wait_until_text(&mut client, "/raw/a", "2");

    balancer.kill();
    wait_for("the loss is logged", || proxy.log().contains("the server closed the TLS connection").then_some(()));
    assert_eq!(client.get("/raw/missing").status, 503);
    redis.set("a", "3");
    balancer.restart();
    wait_until_tracking(&proxy, 2);
    wait_until_text(&mut client, "/raw/a", "3");
    wait_until_cached(&mut client, "/raw/a", "3");
    redis.set("a", "4");
    wait_until_text(&mut client, "/raw/a", "4");

    redis.kill();
    wait_for("the cause is logged", || proxy.log().contains("or a load balancer that finds no Redis").then_some(()));
}
