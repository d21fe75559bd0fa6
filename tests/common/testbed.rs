//! Redis server and network path with faults that begin and end on command.
//!
//! `tests/e2e_redis/fault_matrix.rs` lists the faults and checks the proxy during each.

use super::client::{numbered_keys, value_of};
use super::relay::{Purpose, Relay};
use super::resolver::Resolver;
use super::{Proxy, Redis, start_fake_redis, start_scripted_redis, wait_for};
use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Path from the proxy to Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Direct,
    /// Through a relay, which can lead to another server.
    Relay,
    /// By a host name, so that the lookup can fail or take long.
    Dns,
}

/// Redis server, the path to it, and the faults of either.
pub struct Testbed {
    pub redis: Redis,
    relay: Option<Relay>,
    resolver: Option<Resolver>,
    /// Second Redis with the same keys, at the same port of another address. The name can move
    /// there.
    second_redis: Option<(Redis, Relay)>,
    /// True once the fault has ended and a substitute server must close its connections.
    fault_ended: Arc<AtomicBool>,
    /// Listener that never accepts its connections.
    silent_listener: TcpListener,
}

impl Testbed {
    /// Starts a Redis that holds all keys, without a fault.
    pub fn start(route: Route) -> Testbed {
        // Allows the test to change `dir`, so that a saved file goes to a temporary directory.
        let redis = Redis::start_with(&["--enable-protected-configs", "local"]);
        fill_redis(&redis);
        let silent_listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let relay = (route == Route::Relay).then(|| Relay::start(redis.port));
        let resolver = (route == Route::Dns).then(|| Resolver::start("127.0.0.1"));
        let second_redis = (route == Route::Dns).then(|| {
            let redis_2 = Redis::start();
            fill_redis(&redis_2);
            let relay = Relay::start_at(("127.0.0.2", redis.port), redis_2.port);
            (redis_2, relay)
        });
        Testbed { redis, relay, resolver, second_redis, fault_ended: Arc::default(), silent_listener }
    }

    pub fn start_proxy(&self, variables: &[(&str, &str)]) -> Proxy {
        self.start_proxy_with(Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy")), variables)
    }

    /// Starts a proxy with a command of the caller.
    pub fn start_proxy_with(&self, command: Command, variables: &[(&str, &str)]) -> Proxy {
        let port = self.relay.as_ref().map_or(self.redis.port, |relay| relay.port);
        let resolver_env = self.resolver.as_ref().map_or(Vec::new(), |resolver| resolver.env().to_vec());
        Proxy::start_command(command, port, &[&resolver_env, variables].concat())
    }

    fn relay(&self) -> &Relay {
        self.relay.as_ref().expect("a testbed with a relay")
    }

    fn resolver(&self) -> &Resolver {
        self.resolver.as_ref().expect("a testbed with a host name")
    }

    /// Closes the connections of the proxy, so that it has to reconnect.
    fn close_connections(&self) {
        for kind in ["normal", "pubsub"] {
            self.redis.run(&["CLIENT", "KILL", "TYPE", kind]);
        }
    }

    /// Replaces Redis by the server at `port`.
    fn replace_by(&self, port: u16) {
        self.relay().set_target(port);
        // Disconnects at once. If Redis and the relay closed them later, a key in flight would get
        // a different error.
        self.relay().disconnect(&[Purpose::Fetching, Purpose::Tracking]);
        self.close_connections();
    }

    /// Ends a fault of a substitute server: new connections lead to Redis.
    pub fn restore_redis(&mut self) {
        self.fault_ended.store(true, Ordering::Relaxed);
        self.relay().set_target(self.redis.port);
        self.relay().disconnect(&[Purpose::Fetching, Purpose::Tracking]);
    }

    pub fn freeze(&mut self) {
        self.redis.freeze();
    }

    pub fn thaw(&mut self) {
        self.redis.thaw();
    }

    pub fn kill(&mut self) {
        self.redis.kill();
    }

    pub fn restart(&mut self) {
        self.redis.restart();
        fill_redis(&self.redis);
    }

    /// Restarts Redis, which loads a saved file until `finish_loading`.
    ///
    /// Each key takes 10 ms to load. Values longer than the event interval make Redis process
    /// commands between any two keys.
    pub fn restart_loading(&mut self) {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let file = format!("{}-{}.rdb", std::process::id(), self.redis.port);
        let options = ["dir", folder.to_str().expect("a path that is text"), "dbfilename", &file];
        let mut admin = self.redis.connect();
        let run =
            |command: &mut redis::Cmd, admin: &mut redis::Connection| command.exec(admin).expect("the command works");
        run(redis::cmd("CONFIG").arg("SET").arg(&options), &mut admin);
        let long = "x".repeat(1100);
        let filler: Vec<&str> =
            numbered_keys("filler", 3000).leak().iter().flat_map(|key| [key.as_str(), &long]).collect();
        run(redis::cmd("CONFIG").arg(&["SET", "rdbcompression", "no"]), &mut admin);
        run(redis::cmd("MSET").arg(&filler), &mut admin);
        run(&mut redis::cmd("SAVE"), &mut admin);
        self.redis.kill();
        let slow_load = ["--key-load-delay", "10000", "--loading-process-events-interval-bytes", "1024"];
        self.redis.restart_with(&[&["--dir", options[1], "--dbfilename", &file][..], &slow_load].concat());
        let _ = std::fs::remove_file(folder.join(file));
        assert!(ping_reply(&self.redis).starts_with("LOADING"), "Redis is not loading");
    }

    pub fn finish_loading(&mut self) {
        self.redis.run(&["CONFIG", "SET", "key-load-delay", "0"]);
        wait_for("everything is loaded", || (ping_reply(&self.redis) == "PONG").then_some(()));
    }

    /// Makes Redis require a password that the proxy does not know, and closes its connections.
    pub fn require_password(&mut self) {
        let mut admin = self.redis.connect();
        for command in [&["CONFIG", "SET", "requirepass", "word"][..], &["CLIENT", "KILL", "TYPE", "normal"]] {
            redis::cmd(command[0]).arg(&command[1..]).exec(&mut admin).expect("the command works");
        }
    }

    pub fn drop_password(&mut self) {
        let mut admin = self.redis.connect_to(&format!("redis://:word@127.0.0.1:{}/", self.redis.port));
        redis::cmd("CONFIG").arg(&["SET", "requirepass", ""]).exec(&mut admin).expect("CONFIG works");
    }

    /// Makes Redis a replica of a primary that never replies, with stale reads disabled.
    pub fn lose_primary(&mut self) {
        let port = self.silent_listener.local_addr().expect("an address").port().to_string();
        self.redis.run(&["CONFIG", "SET", "replica-serve-stale-data", "no"]);
        self.redis.run(&["REPLICAOF", "127.0.0.1", &port]);
        assert!(ping_reply(&self.redis).starts_with("MASTERDOWN"), "Redis still has a primary");
    }

    pub fn become_primary(&mut self) {
        self.redis.run(&["REPLICAOF", "NO", "ONE"]);
    }

    /// Blocks Redis with a script that does not end.
    pub fn run_endless_script(&mut self) {
        self.redis.run(&["CONFIG", "SET", "busy-reply-threshold", "10"]);
        let mut connection = self.redis.connect();
        std::thread::spawn(move || redis::cmd("EVAL").arg("while true do end").arg(0).exec(&mut connection));
        wait_for("a script runs", || ping_reply(&self.redis).starts_with("BUSY").then_some(()));
    }

    pub fn kill_script(&mut self) {
        self.redis.run(&["SCRIPT", "KILL"]);
        wait_for("no script runs", || (ping_reply(&self.redis) == "PONG").then_some(()));
    }

    /// Replies `-READONLY` to all reads. The real Redis replies so only to writes.
    pub fn reply_readonly(&mut self) {
        let fault_ended = Arc::clone(&self.fault_ended);
        let (port, _) = start_scripted_redis(move |words| match words[0].as_str() {
            _ if fault_ended.load(Ordering::Relaxed) => None,
            "PING" => Some("+PONG\r\n".into()),
            "CLIENT" => Some("+OK\r\n".into()),
            _ => Some("-READONLY You can't write against a read only replica.\r\n".into()),
        });
        self.replace_by(port);
    }

    /// Sends bytes that are not RESP instead of replies to the first commands of a connection.
    pub fn reply_garbage_to_handshake(&mut self) {
        self.replace_by(start_canned_server("HTTP/1.1 400 Bad Request\r\n\r\n", true));
    }

    /// Sends bytes that are not RESP instead of replies to reads.
    pub fn reply_garbage_to_reads(&mut self) {
        self.replace_by(start_canned_server("+OK\r\n+OK\r\n+PONG\r\n\0\x01?what\r\n$-7\r\n*1\r\n", true));
    }

    /// Sends half of a reply, then closes the connection.
    pub fn close_mid_reply(&mut self) {
        self.replace_by(start_canned_server("+OK\r\n+OK\r\n+PONG\r\n$10\r\nhalf", false));
    }

    /// Sends half of a reply, then no more bytes.
    pub fn stall_mid_reply(&mut self) {
        self.replace_by(start_canned_server("+OK\r\n+OK\r\n+PONG\r\n$10\r\nhalf", true));
    }

    /// Accepts connections and reads, but never replies.
    pub fn never_reply(&mut self) {
        self.replace_by(start_canned_server("", true));
    }

    /// Leads connections to a listener that never accepts them. The kernel completes the handshake.
    pub fn never_accept(&mut self) {
        self.replace_by(self.silent_listener.local_addr().expect("an address").port());
    }

    pub fn fail_dns(&mut self) {
        self.resolver().set_result(0, "nowhere");
        self.close_connections();
    }

    /// Delays each lookup by 4 s.
    pub fn slow_dns(&mut self) {
        self.delay_dns(4000);
    }

    /// Delays each lookup and closes the connections of the proxy.
    pub fn delay_dns(&mut self, delay_ms: u32) {
        self.resolver().set_result(delay_ms, "127.0.0.1");
        self.close_connections();
    }

    pub fn restore_dns(&mut self) {
        self.resolver().set_result(0, "127.0.0.1");
    }

    /// Makes the name resolve to the second Redis.
    pub fn switch_dns(&mut self) {
        self.resolver().set_result(0, "127.0.0.2");
    }

    /// Makes the name resolve to `address` and closes the connections of the proxy.
    pub fn switch_dns_to(&mut self, address: &str) {
        self.resolver().set_result(0, address);
        self.close_connections();
    }

    /// Returns true if the proxy read from the Redis that the name resolves to, and from no other.
    ///
    /// After a switch the first Redis may have served earlier reads.
    pub fn reads_only_current_redis(&self) -> bool {
        let second_reads = self.second_redis.as_ref().map_or(0, |(redis, _)| redis.count_reads());
        if self.resolver().resolves_to("127.0.0.2") {
            second_reads > 0
        } else {
            second_reads == 0 && self.redis.count_reads() > 0
        }
    }
}

/// Writes all keys that the tests request.
pub fn fill_redis(redis: &Redis) {
    let all: Vec<String> =
        [numbered_keys("during", 600), numbered_keys("late", 400), numbered_keys("after", 400), vec!["hot".into()]]
            .concat();
    let mut command = redis::cmd("MSET");
    all.iter().for_each(|key| _ = command.arg(key).arg(value_of(key)));
    command.exec(&mut redis.connect()).expect("MSET works");
}

/// Returns the reply of Redis to `PING`, or the error code and text.
fn ping_reply(redis: &Redis) -> String {
    let reply = redis::cmd("PING").query::<String>(&mut redis.connect());
    reply.unwrap_or_else(|error| format!("{} {error}", error.code().unwrap_or("no reply")))
}

/// Starts a server that sends `script` on each connection. Then it stays silent if `open`, or
/// closes.
fn start_canned_server(script: &'static str, open: bool) -> u16 {
    let serve = move |stream: &mut TcpStream| {
        // Fails if the client has disconnected.
        let _ = stream.write_all(script.as_bytes());
        if !open {
            let _ = stream.shutdown(Shutdown::Write);
        }
        // Unread input would reset the connection before the client has read the script.
        let _ = std::io::copy(stream, &mut std::io::sink());
    };
    start_fake_redis(serve).0
}
