//! A Redis, the way to it, and what may happen to either. What begins and ends a fault is here; `tests/e2e_redis/fault_matrix.rs` has the
//! table of them and what must hold.

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

/// How the proxy gets to Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Direct,
    /// Something else can be put in Redis' place.
    Relay,
    /// By a name, so that the lookup can go wrong.
    Dns,
}

/// See the top of the file.
pub struct Testbed {
    pub redis: Redis,
    relay: Option<Relay>,
    resolver: Option<Resolver>,
    /// At the same port of another address, for a name that moves there: a Redis that holds the same.
    second_redis: Option<(Redis, Relay)>,
    /// What stands in Redis' place must go.
    fault_ended: Arc<AtomicBool>,
    /// Takes connections that nobody answers.
    silent_listener: TcpListener,
}

impl Testbed {
    /// A Redis that holds all keys, with nothing the matter yet.
    pub fn start(way: Route) -> Testbed {
        // For what it saves to be put where it leaves nothing behind.
        let redis = Redis::start_with(&["--enable-protected-configs", "local"]);
        fill_redis(&redis);
        let mute = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let relay = (way == Route::Relay).then(|| Relay::start(redis.port));
        let names = (way == Route::Dns).then(|| Resolver::start("127.0.0.1"));
        let other = (way == Route::Dns).then(|| {
            let other = Redis::start();
            fill_redis(&other);
            let relay = Relay::start_at(("127.0.0.2", redis.port), other.port);
            (other, relay)
        });
        Testbed {
            redis,
            relay,
            resolver: names,
            second_redis: other,
            fault_ended: Arc::default(),
            silent_listener: mute,
        }
    }

    pub fn start_proxy(&self, variables: &[(&str, &str)]) -> Proxy {
        self.start_proxy_with(Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy")), variables)
    }

    /// One that a command of the caller's starts.
    pub fn start_proxy_with(&self, command: Command, variables: &[(&str, &str)]) -> Proxy {
        let port = self.relay.as_ref().map_or(self.redis.port, |relay| relay.port);
        let names = self.resolver.as_ref().map_or(Vec::new(), |names| names.env().to_vec());
        Proxy::start_command(command, port, &[&names, variables].concat())
    }

    fn relay(&self) -> &Relay {
        self.relay.as_ref().expect("there is a relay")
    }

    fn resolver(&self) -> &Resolver {
        self.resolver.as_ref().expect("there is a name")
    }

    /// Closes the proxy's connections, so that it needs new ones.
    fn close_connections(&self) {
        for kind in ["normal", "pubsub"] {
            self.redis.run(&["CLIENT", "KILL", "TYPE", kind]);
        }
    }

    /// Puts something else in Redis' place.
    fn replace_by(&self, port: u16) {
        self.relay().set_target(port);
        // At once, and not when Redis and the relay come to it: a key that is on its way then would get another error.
        self.relay().disconnect(&[Purpose::Fetching, Purpose::Tracking]);
        self.close_connections();
    }

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

    /// Redis starts anew and loads what it has saved, so slowly that it is not done before it is told to hurry. Values that
    /// are longer than the interval let it answer between any two keys.
    pub fn restart_loading(&mut self) {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let file = format!("{}-{}.rdb", std::process::id(), self.redis.port);
        let options = ["dir", folder.to_str().expect("a path that is text"), "dbfilename", &file];
        let mut admin = self.redis.connect();
        let run = |command: &mut redis::Cmd, admin: &mut redis::Connection| command.exec(admin).expect("it works");
        run(redis::cmd("CONFIG").arg("SET").arg(&options), &mut admin);
        let long = "x".repeat(1100);
        let filler: Vec<&str> =
            numbered_keys("filler", 3000).leak().iter().flat_map(|key| [key.as_str(), &long]).collect();
        run(redis::cmd("CONFIG").arg(&["SET", "rdbcompression", "no"]), &mut admin);
        run(redis::cmd("MSET").arg(&filler), &mut admin);
        run(&mut redis::cmd("SAVE"), &mut admin);
        self.redis.kill();
        let slowly = ["--key-load-delay", "10000", "--loading-process-events-interval-bytes", "1024"];
        self.redis.restart_with(&[&["--dir", options[1], "--dbfilename", &file][..], &slowly].concat());
        let _ = std::fs::remove_file(folder.join(file));
        assert!(ping_reply(&self.redis).starts_with("LOADING"), "it is not loading");
    }

    pub fn finish_loading(&mut self) {
        self.redis.run(&["CONFIG", "SET", "key-load-delay", "0"]);
        wait_for("everything is loaded", || (ping_reply(&self.redis) == "PONG").then_some(()));
    }

    /// Another password is asked for, of those who connect from now on.
    pub fn require_password(&mut self) {
        let mut admin = self.redis.connect();
        for command in [&["CONFIG", "SET", "requirepass", "word"][..], &["CLIENT", "KILL", "TYPE", "normal"]] {
            redis::cmd(command[0]).arg(&command[1..]).exec(&mut admin).expect("it works");
        }
    }

    pub fn drop_password(&mut self) {
        let mut admin = self.redis.connect_to(&format!("redis://:word@127.0.0.1:{}/", self.redis.port));
        redis::cmd("CONFIG").arg(&["SET", "requirepass", ""]).exec(&mut admin).expect("CONFIG works");
    }

    /// Redis becomes the replica of a master that never answers, and must not serve what it has.
    pub fn lose_primary(&mut self) {
        let port = self.silent_listener.local_addr().expect("an address").port().to_string();
        self.redis.run(&["CONFIG", "SET", "replica-serve-stale-data", "no"]);
        self.redis.run(&["REPLICAOF", "127.0.0.1", &port]);
        assert!(ping_reply(&self.redis).starts_with("MASTERDOWN"), "it has a master");
    }

    pub fn become_primary(&mut self) {
        self.redis.run(&["REPLICAOF", "NO", "ONE"]);
    }

    /// A script runs and does not end.
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

    /// What only a command that writes gets from the real one.
    pub fn reply_readonly(&mut self) {
        let over = Arc::clone(&self.fault_ended);
        let (port, _) = start_scripted_redis(move |words| match words[0].as_str() {
            _ if over.load(Ordering::Relaxed) => None,
            "PING" => Some("+PONG\r\n".into()),
            "CLIENT" => Some("+OK\r\n".into()),
            _ => Some("-READONLY You can't write against a read only replica.\r\n".into()),
        });
        self.replace_by(port);
    }

    /// What is no reply, where the replies to the first commands of a connection belong.
    pub fn reply_garbage_to_handshake(&mut self) {
        self.replace_by(start_canned_server("HTTP/1.1 400 Bad Request\r\n\r\n", true));
    }

    /// The same, once it is asked for keys.
    pub fn reply_garbage_to_reads(&mut self) {
        self.replace_by(start_canned_server("+OK\r\n+OK\r\n+PONG\r\n\0\x01?what\r\n$-7\r\n*1\r\n", true));
    }

    /// Half of a reply, then the end of the connection.
    pub fn close_mid_reply(&mut self) {
        self.replace_by(start_canned_server("+OK\r\n+OK\r\n+PONG\r\n$10\r\nhalf", false));
    }

    /// Half of a reply, and nothing more.
    pub fn stall_mid_reply(&mut self) {
        self.replace_by(start_canned_server("+OK\r\n+OK\r\n+PONG\r\n$10\r\nhalf", true));
    }

    /// Connections are taken, what they send is read, nothing comes.
    pub fn never_reply(&mut self) {
        self.replace_by(start_canned_server("", true));
    }

    /// The kernel takes connections, nobody else.
    pub fn never_accept(&mut self) {
        self.replace_by(self.silent_listener.local_addr().expect("an address").port());
    }

    pub fn fail_dns(&mut self) {
        self.resolver().set_result(0, "nowhere");
        self.close_connections();
    }

    pub fn slow_dns(&mut self) {
        self.delay_dns(4000);
    }

    pub fn delay_dns(&mut self, milliseconds: u32) {
        self.resolver().set_result(milliseconds, "127.0.0.1");
        self.close_connections();
    }

    pub fn restore_dns(&mut self) {
        self.resolver().set_result(0, "127.0.0.1");
    }

    /// The name leads to the other Redis.
    pub fn switch_dns(&mut self) {
        self.resolver().set_result(0, "127.0.0.2");
    }

    /// The name leads to somebody else at the same port, and the proxy needs new connections.
    pub fn switch_dns_to(&mut self, address: &str) {
        self.resolver().set_result(0, address);
        self.close_connections();
    }

    /// Whether the Redis that the name leads to is the one that was read, and the other one is not.
    pub fn reads_only_current_redis(&self) -> bool {
        let other = self.second_redis.as_ref().map_or(0, |(other, _)| other.count_reads());
        if self.resolver().resolves_to("127.0.0.2") { other > 0 } else { other == 0 && self.redis.count_reads() > 0 }
    }
}

/// Everything that is asked for, and nothing that is not there.
pub fn fill_redis(redis: &Redis) {
    let all: Vec<String> =
        [numbered_keys("during", 600), numbered_keys("late", 400), numbered_keys("after", 400), vec!["hot".into()]]
            .concat();
    let mut command = redis::cmd("MSET");
    all.iter().for_each(|key| _ = command.arg(key).arg(value_of(key)));
    command.exec(&mut redis.connect()).expect("MSET works");
}

/// What Redis says to `PING`.
fn ping_reply(redis: &Redis) -> String {
    let answer = redis::cmd("PING").query::<String>(&mut redis.connect());
    answer.unwrap_or_else(|error| format!("{} {error}", error.code().unwrap_or("no answer")))
}

/// A server that says this to everybody who connects, and then nothing: with the connection open, or closed.
fn start_canned_server(script: &'static str, open: bool) -> u16 {
    let serve = move |stream: &mut TcpStream| {
        // A client that is gone already reads nothing.
        let _ = stream.write_all(script.as_bytes());
        if !open {
            let _ = stream.shutdown(Shutdown::Write);
        }
        // What still comes is read, so that nothing is reset before the script has been read.
        let _ = std::io::copy(stream, &mut std::io::sink());
    };
    start_fake_redis(serve).0
}
