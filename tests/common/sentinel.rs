//! Redis Sentinel: a primary, its replicas, and three sentinels on this machine.
//!
//! Servers have an index; failovers change roles, not indices. Sentinels have an index of their
//! own.

use super::certificates::Authority;
use super::freshness::wait_until_tracking;
use super::{Proxy, Redis, TEST_TIMEOUT, signal, stable_port, wait_for};
use redis::{FromRedisValue, RedisResult, Value};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Name of the monitored primary.
pub const MASTER: &str = "mymaster";

/// Settings of servers and sentinels.
#[derive(Clone)]
pub struct Setup {
    pub replicas: usize,
    pub sentinels: usize,
    /// `down-after-milliseconds`.
    pub down_after_ms: u32,
    /// Password of primary and replicas, which the sentinels know.
    pub password: Option<&'static str>,
    /// Password of the sentinels.
    pub sentinel_password: Option<&'static str>,
    /// Names in the certificates of all servers, such as `DNS:redis.test`. With it all have a TLS
    /// port, and use TLS among each other.
    pub tls_names: Option<&'static str>,
}

impl Default for Setup {
    /// Returns the settings of a primary, two replicas and three sentinels.
    fn default() -> Setup {
        Setup {
            replicas: 2,
            sentinels: 3,
            down_after_ms: 1000,
            password: None,
            sentinel_password: None,
            tls_names: None,
        }
    }
}

/// Sentinel process.
pub struct Sentinel {
    child: Child,
    pub port: u16,
    pub tls_port: Option<u16>,
    file: PathBuf,
    is_running: bool,
}

/// Running servers and sentinels. All are killed when it is dropped.
pub struct Sentinels {
    /// The first primary, then its replicas.
    pub servers: Vec<Redis>,
    pub sentinels: Vec<Sentinel>,
    /// Servers that are neither killed nor stopped.
    is_running: Vec<bool>,
    setup: Setup,
    directory: PathBuf,
    authority: Option<Authority>,
}

impl Sentinels {
    /// Starts a primary, two replicas and three sentinels.
    pub fn start() -> Sentinels {
        Sentinels::start_with(Setup::default())
    }

    /// Starts servers and sentinels, and waits until a failover would work.
    pub fn start_with(setup: Setup) -> Sentinels {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("segment-sentinel-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).expect("a directory for temporary files");
        let authority = setup.tls_names.map(|names| {
            let authority = Authority::create();
            authority.issue("server", names);
            authority
        });
        let (servers, sentinels) = (Vec::new(), Vec::new());
        let mut all = Sentinels { servers, sentinels, is_running: Vec::new(), setup, directory, authority };
        for index in 0..=all.setup.replicas {
            let server = all.start_server(index);
            all.servers.push(server);
            all.is_running.push(true);
        }
        all.wait_for_replicas(0);
        for index in 0..all.setup.sentinels {
            let sentinel = all.start_sentinel(index);
            all.sentinels.push(sentinel);
        }
        all.wait_until_stable();
        all
    }

    fn start_server(&self, index: usize) -> Redis {
        let mut arguments: Vec<String> = ["--repl-diskless-sync-delay", "0", "--replica-priority", "100"]
            .iter()
            .map(|&argument| argument.to_owned())
            .collect();
        if let Some(password) = self.setup.password {
            arguments.extend(["--requirepass", password, "--masterauth", password].map(str::to_owned));
        }
        if index > 0 {
            arguments.extend(["--replicaof".to_owned(), "127.0.0.1".to_owned(), self.peer_port(0).to_string()]);
        }
        // Another process may take a free port first.
        for _ in 0..20 {
            let mut arguments = arguments.clone();
            for (name, value) in self.tls_options(stable_port()) {
                arguments.extend([format!("--{name}"), value]);
            }
            if let Some(redis) = Redis::try_start(stable_port(), arguments) {
                return redis;
            }
        }
        panic!("redis-server does not start");
    }

    /// Returns the options of a server or a sentinel with TLS at `port`.
    fn tls_options(&self, port: u16) -> Vec<(&'static str, String)> {
        let Some(authority) = &self.authority else { return Vec::new() };
        let identity = authority.identity("server");
        vec![
            ("tls-port", port.to_string()),
            ("tls-cert-file", identity.certificate),
            ("tls-key-file", identity.key),
            ("tls-ca-cert-file", authority.certificate()),
            ("tls-auth-clients", "no".into()),
            ("tls-replication", "yes".into()),
        ]
    }

    fn start_sentinel(&self, index: usize) -> Sentinel {
        let quorum = self.setup.sentinels / 2 + 1;
        for _ in 0..20 {
            let (port, tls_port) = (stable_port(), self.authority.as_ref().map(|_| stable_port()));
            let mut lines = vec![
                format!("port {port}"),
                "bind 127.0.0.1".to_owned(),
                format!("dir {}", self.directory.display()),
                format!("sentinel monitor {MASTER} 127.0.0.1 {} {quorum}", self.peer_port(0)),
                format!("sentinel down-after-milliseconds {MASTER} {}", self.setup.down_after_ms),
                format!("sentinel failover-timeout {MASTER} 5000"),
                format!("sentinel parallel-syncs {MASTER} 2"),
            ];
            lines.extend(self.setup.password.map(|password| format!("sentinel auth-pass {MASTER} {password}")));
            if let Some(password) = self.setup.sentinel_password {
                lines.extend([format!("requirepass {password}"), format!("sentinel sentinel-pass {password}")]);
            }
            let tls_options = tls_port.map_or(Vec::new(), |port| self.tls_options(port));
            lines.extend(tls_options.into_iter().map(|(name, value)| format!("{name} {value}")));
            let file = self.directory.join(format!("sentinel-{index}.conf"));
            std::fs::write(&file, lines.join("\n") + "\n").expect("a file can be written");
            if let Some(child) = launch_sentinel(port, &file, self.setup.sentinel_password) {
                return Sentinel { child, port, tls_port, file, is_running: true };
            }
        }
        panic!("a sentinel does not start");
    }

    /// Returns the port of a server for replicas and sentinels.
    fn peer_port(&self, index: usize) -> u16 {
        match &self.authority {
            Some(_) => self.servers[index].port_argument("--tls-port"),
            None => self.servers[index].port,
        }
    }

    /// Connects to a server, over its plain port. Sentinels close connections at a promotion.
    pub fn connect(&self, index: usize) -> RedisResult<redis::Connection> {
        let password = self.setup.password.map_or(String::new(), |password| format!(":{password}@"));
        redis::Client::open(format!("redis://{password}127.0.0.1:{}/", self.servers[index].port))?.get_connection()
    }

    /// Runs a command on a server. Repeats it if the connection was closed.
    pub fn query<T: FromRedisValue>(&self, index: usize, command: &[&str]) -> RedisResult<T> {
        wait_for("a server replies", || {
            let reply = self
                .connect(index)
                .and_then(|mut connection| redis::cmd(command[0]).arg(&command[1..]).query(&mut connection));
            Some(reply).filter(|reply| !reply.as_ref().is_err_and(|error| error.is_connection_dropped()))
        })
    }

    /// Writes a key at a server.
    pub fn set(&self, index: usize, key: &str, value: &str) {
        self.query::<()>(index, &["SET", key, value]).expect("SET works");
    }

    /// Runs a command on a sentinel.
    pub fn query_sentinel<T: FromRedisValue>(&self, index: usize, command: &[&str]) -> RedisResult<T> {
        let password = self.setup.sentinel_password.map_or(String::new(), |password| format!(":{password}@"));
        let client = redis::Client::open(format!("redis://{password}127.0.0.1:{}/", self.sentinels[index].port))?;
        redis::cmd(command[0]).arg(&command[1..]).query(&mut client.get_connection()?)
    }

    /// Returns the indices of the sentinels that run.
    fn running_sentinels(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.sentinels.len()).filter(|&index| self.sentinels[index].is_running)
    }

    /// Returns the index of the primary that a sentinel names.
    fn primary_of_sentinel(&self, sentinel: usize) -> usize {
        let address: Vec<String> = self
            .query_sentinel(sentinel, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER])
            .expect("SENTINEL GET-MASTER-ADDR-BY-NAME works");
        let port: u16 = address[1].parse().expect("a port");
        (0..self.servers.len()).find(|&index| self.peer_port(index) == port).expect("a server of the test")
    }

    /// Returns the index of the primary that the sentinels name.
    pub fn primary(&self) -> usize {
        self.primary_of_sentinel(self.running_sentinels().next().expect("a running sentinel"))
    }

    /// Returns the plain port of the primary that the sentinels name.
    pub fn primary_port(&self) -> u16 {
        self.servers[self.primary()].port
    }

    /// Returns true if a server has the role of a primary.
    pub fn is_primary(&self, index: usize) -> bool {
        let role: Vec<Value> = self.query(index, &["ROLE"]).expect("ROLE works");
        role[0] == Value::BulkString(b"master".to_vec())
    }

    /// Returns the index of a replica that runs.
    pub fn replica(&self) -> usize {
        let primary = self.primary();
        (0..self.servers.len()).find(|&index| index != primary && self.is_running[index]).expect("a running replica")
    }

    /// Waits until all running replicas of `primary` receive its writes.
    fn wait_for_replicas(&self, primary: usize) {
        wait_for("the replicas are connected", || {
            let is_attached = |index: usize| {
                let info: String = self.query(index, &["INFO", "replication"]).expect("INFO works");
                info.contains("master_link_status:up")
                    && info.contains(&format!("master_port:{}\r", self.peer_port(primary)))
            };
            let mut replicas = (0..self.servers.len()).filter(|&index| index != primary && self.is_running[index]);
            replicas.all(is_attached).then_some(())
        });
    }

    /// Waits until all running replicas have received all writes of a primary so far.
    pub fn wait_until_replicated(&self, primary: usize) {
        let replicas = (0..self.servers.len()).filter(|&index| index != primary && self.is_running[index]).count();
        let mut connection = self.connect(primary).expect("the primary accepts connections");
        // WAIT concerns the writes of its own connection.
        redis::cmd("SET").arg("replicated").arg(1).exec(&mut connection).expect("SET works");
        let reached: usize = redis::cmd("WAIT")
            .arg(replicas)
            .arg(TEST_TIMEOUT.as_millis() as u64)
            .query(&mut connection)
            .expect("WAIT works");
        assert!(reached >= replicas, "{reached} of {replicas} replicas are up to date");
    }

    /// Waits until all running sentinels name the same primary, know all replicas and each other,
    /// and the replicas are connected.
    pub fn wait_until_stable(&self) {
        let field = |sentinel: usize, name: &str| {
            let fields: Vec<String> =
                self.query_sentinel(sentinel, &["SENTINEL", "MASTER", MASTER]).expect("SENTINEL MASTER works");
            let at = fields.iter().position(|field| field == name).expect("a field of SENTINEL MASTER");
            fields[at + 1].clone()
        };
        let (others, replicas) = ((self.setup.sentinels - 1).to_string(), self.setup.replicas.to_string());
        let is_complete = |sentinel: usize| {
            field(sentinel, "num-other-sentinels") == others
                && field(sentinel, "num-slaves") == replicas
                && field(sentinel, "flags") == "master"
        };
        wait_for("the sentinels agree", || {
            let mut named: Vec<usize> = self.running_sentinels().map(|index| self.primary_of_sentinel(index)).collect();
            named.dedup();
            (named.len() == 1 && self.running_sentinels().all(is_complete)).then_some(())
        });
        self.wait_for_replicas(self.primary());
    }

    /// Starts a failover (`SENTINEL FAILOVER`), which does not wait for the old primary to stop.
    pub fn begin_failover(&self) {
        let sentinel = self.running_sentinels().next().expect("a running sentinel");
        // Refused for a short time after another failover.
        wait_for("a failover begins", || self.query_sentinel::<()>(sentinel, &["SENTINEL", "FAILOVER", MASTER]).ok());
    }

    /// Promotes a replica. Returns its index and the time when it was seen to be a primary, which
    /// is before the sentinels announce it.
    pub fn failover(&self) -> (usize, Instant) {
        let old = self.primary();
        self.begin_failover();
        self.wait_for_promotion(old)
    }

    /// Waits until another server than `old` is a primary. Returns its index and the time.
    pub fn wait_for_promotion(&self, old: usize) -> (usize, Instant) {
        wait_for("a replica is promoted", || {
            let mut others = (0..self.servers.len()).filter(|&index| index != old && self.is_running[index]);
            others.find(|&index| self.is_primary(index)).map(|index| (index, Instant::now()))
        })
    }

    /// Waits until all running sentinels name a server as the primary.
    pub fn wait_until_named(&self, primary: usize) {
        wait_for("the sentinels name the new primary", || {
            self.running_sentinels().all(|sentinel| self.primary_of_sentinel(sentinel) == primary).then_some(())
        });
    }

    /// Kills a server.
    pub fn kill(&mut self, index: usize) {
        self.servers[index].kill();
        self.is_running[index] = false;
    }

    /// Starts a killed server again, as it was started first.
    pub fn restart(&mut self, index: usize) {
        self.servers[index].restart();
        self.is_running[index] = true;
    }

    /// Stops a server with `SIGSTOP`. Its sockets stay open.
    pub fn freeze(&mut self, index: usize) {
        self.servers[index].freeze();
        self.is_running[index] = false;
    }

    pub fn thaw(&mut self, index: usize) {
        self.servers[index].thaw();
        self.is_running[index] = true;
    }

    /// Kills a sentinel.
    pub fn kill_sentinel(&mut self, index: usize) {
        let sentinel = &mut self.sentinels[index];
        sentinel.child.kill().expect("a sentinel can be killed");
        sentinel.child.wait().expect("a sentinel can be waited for");
        sentinel.is_running = false;
    }

    /// Starts a killed sentinel again, with what it knew.
    pub fn restart_sentinel(&mut self, index: usize) {
        let password = self.setup.sentinel_password;
        let sentinel = &mut self.sentinels[index];
        sentinel.child = launch_sentinel(sentinel.port, &sentinel.file, password).expect("the port is still free");
        sentinel.is_running = true;
    }

    /// Stops a sentinel with `SIGSTOP`. Its sockets stay open.
    pub fn freeze_sentinel(&mut self, index: usize) {
        signal(&self.sentinels[index].child, "STOP");
        self.sentinels[index].is_running = false;
    }

    pub fn thaw_sentinel(&mut self, index: usize) {
        signal(&self.sentinels[index].child, "CONT");
        self.sentinels[index].is_running = true;
    }

    /// Returns a URL with the sentinels as hosts, and the password of the servers.
    pub fn url(&self) -> String {
        self.url_of(&self.sentinels.iter().map(|one| one.tls_port.unwrap_or(one.port)).collect::<Vec<_>>())
    }

    /// Returns a URL with sentinels at these ports.
    pub fn url_of(&self, ports: &[u16]) -> String {
        let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let scheme = if self.authority.is_some() { "rediss" } else { "redis" };
        let password = self.setup.password.map_or(String::new(), |password| format!(":{password}@"));
        format!("{scheme}://{password}{}", hosts.join(","))
    }

    /// Starts a proxy in sentinel mode. `variables` may replace its own.
    pub fn start_proxy(&self, variables: &[(&str, &str)]) -> Proxy {
        let (url, authority) = (self.url(), self.authority.as_ref().map(Authority::certificate));
        let mut own = vec![("REDIS_MODE", "sentinel"), ("REDIS_URL", url.as_str()), ("REDIS_MASTER", MASTER)];
        own.extend(authority.as_ref().map(|path| ("REDIS_TLS_CA", path.as_str())));
        own.extend(self.setup.sentinel_password.map(|password| ("REDIS_SENTINEL_PASSWORD", password)));
        Proxy::start_on_redis_port(0, &[&own, variables].concat())
    }

    /// Starts a proxy with tracking, and waits until tracking is active.
    pub fn start_tracking_proxy(&self, variables: &[(&str, &str)]) -> Proxy {
        let tracking = [("REDIS_TRACKING", "on"), ("CACHE_TTL", "600")];
        let proxy = self.start_proxy(&[&tracking, variables].concat());
        wait_until_tracking(&proxy, 1);
        proxy
    }
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        for sentinel in &mut self.sentinels {
            let _ = sentinel.child.kill();
            let _ = sentinel.child.wait();
        }
        self.servers.clear();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Starts a sentinel, or returns `None` if it exits because its port is taken.
fn launch_sentinel(port: u16, file: &Path, password: Option<&str>) -> Option<Child> {
    let mut child = Command::new("redis-server")
        .arg(file)
        .arg("--sentinel")
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is installed");
    let password = password.map_or(String::new(), |password| format!(":{password}@"));
    let client = redis::Client::open(format!("redis://{password}127.0.0.1:{port}/")).expect("a URL");
    let own = format!("\r\nprocess_id:{}\r\n", child.id());
    wait_for("a sentinel replies", || {
        if child.try_wait().expect("a child can be waited for").is_some() {
            return Some(false);
        }
        let mut connection = client.get_connection_with_timeout(Duration::from_secs(1)).ok()?;
        let info: String = redis::cmd("INFO").arg("server").query(&mut connection).ok()?;
        info.contains(&own).then_some(true)
    })
    .then_some(child)
}
