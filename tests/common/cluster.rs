//! Redis Cluster of real nodes on this machine.
//!
//! Nodes have an index: first the primaries, then the replicas. Failovers change roles, not
//! indices. All methods that wait have `TEST_TIMEOUT` as their limit.

use super::certificates::Authority;
use super::freshness::wait_until_tracking;
use super::{Proxy, Redis, TEST_TIMEOUT, stable_port, wait_for};
use redis::{FromRedisValue, RedisResult, ToRedisArgs, Value};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// Number of hash slots of a cluster.
pub const SLOTS: u16 = 16_384;

/// Returns the slot of a key: a CRC of its hash tag, or of the whole key.
pub fn slot_of(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let hashed = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    let shift = |crc: u16| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
    let crc = hashed.bytes().fold(0, |crc: u16, byte| (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| shift(crc)));
    crc % SLOTS
}

/// Returns `count` keys with the prefix `name` that are all in one slot, without hash tags.
pub fn keys_in_one_slot(name: &str, count: usize) -> Vec<String> {
    let key = |number: usize| format!("{name}-{number}");
    let slot = slot_of(&key(0));
    (0..).map(key).filter(|key| slot_of(key) == slot).take(count).collect()
}

/// Settings of a cluster.
#[derive(Clone)]
pub struct Setup {
    pub primaries: usize,
    /// Replicas of each primary.
    pub replicas: usize,
    /// `cluster-node-timeout`.
    pub node_timeout_ms: u32,
    /// Password of all nodes.
    pub password: Option<&'static str>,
    /// Names in the certificates of the nodes, such as `DNS:redis.test`. With it all nodes have a
    /// TLS port beside the plain one, and use TLS among each other.
    pub tls_names: Option<&'static str>,
    /// Further arguments of each redis-server.
    pub arguments: Vec<&'static str>,
}

impl Default for Setup {
    /// Returns the settings of three primaries without replicas.
    fn default() -> Setup {
        Setup {
            primaries: 3,
            replicas: 0,
            node_timeout_ms: 1500,
            password: None,
            tls_names: None,
            arguments: Vec::new(),
        }
    }
}

/// Node of a cluster.
pub struct Node {
    pub redis: Redis,
    /// Identity in the cluster, 40 hexadecimal digits.
    pub id: String,
    /// Port for clients with TLS.
    pub tls_port: Option<u16>,
    bus_port: u16,
    directory: PathBuf,
    /// False while the process is killed or stopped.
    is_running: bool,
}

/// Slots of a range and the ports of the nodes that serve it, the primary first.
pub type SlotRange = (u16, u16, Vec<u16>);

/// Running cluster. Its processes are killed, and its files removed, when it is dropped.
pub struct Cluster {
    pub nodes: Vec<Node>,
    setup: Setup,
    authority: Option<Authority>,
}

impl Cluster {
    /// Starts three primaries without replicas.
    pub fn start() -> Cluster {
        Cluster::start_with(Setup::default())
    }

    /// Starts three primaries with one replica each.
    pub fn start_with_replicas() -> Cluster {
        Cluster::start_with(Setup { replicas: 1, ..Setup::default() })
    }

    /// Returns a cluster of three primaries that tests share while they run at the same time.
    ///
    /// Such tests use keys and slots of their own, and stop no node.
    pub fn shared() -> Arc<Cluster> {
        static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        // A test that failed while it started the cluster leaves nothing behind.
        let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        shared.upgrade().unwrap_or_else(|| {
            let cluster = Arc::new(Cluster::start());
            *shared = Arc::downgrade(&cluster);
            cluster
        })
    }

    /// Starts a cluster and waits until it serves all slots and its replicas are connected.
    pub fn start_with(setup: Setup) -> Cluster {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let authority = setup.tls_names.map(|names| {
            let authority = Authority::create();
            authority.issue("node", names);
            authority
        });
        let mut cluster = Cluster { nodes: Vec::new(), setup, authority };
        for index in 0..cluster.setup.primaries * (1 + cluster.setup.replicas) {
            let name = format!("segment-cluster-{}-{number}-{index}", std::process::id());
            let node = cluster.start_node(std::env::temp_dir().join(name));
            cluster.nodes.push(node);
        }
        cluster.form();
        cluster
    }

    /// Starts a node that knows no other.
    fn start_node(&self, directory: PathBuf) -> Node {
        std::fs::create_dir_all(&directory).expect("a directory for temporary files");
        // Another process may take a free port first.
        for _ in 0..20 {
            let (port, bus_port) = (stable_port(), stable_port());
            let tls_port = self.authority.as_ref().map(|_| stable_port());
            let Some(redis) = Redis::try_start(port, self.arguments(&directory, bus_port, tls_port)) else { continue };
            let url = url_of(port, self.setup.password);
            let id = redis::cmd("CLUSTER").arg("MYID").query(&mut redis.connect_to(&url)).expect("CLUSTER MYID works");
            return Node { redis, id, tls_port, bus_port, directory, is_running: true };
        }
        panic!("a node of the cluster does not start");
    }

    /// Returns the arguments of a node.
    fn arguments(&self, directory: &Path, bus_port: u16, tls_port: Option<u16>) -> Vec<String> {
        let timeout = self.setup.node_timeout_ms.to_string();
        let (directory, bus_port) = (directory.to_str().expect("a path in UTF-8"), bus_port.to_string());
        let mut arguments: Vec<&str> =
            vec!["--cluster-enabled", "yes", "--cluster-port", &bus_port, "--dir", directory];
        arguments.extend(["--cluster-node-timeout", &timeout, "--cluster-announce-ip", "127.0.0.1"]);
        // A replica may always take over, follows its own primary only, and is there quickly.
        arguments.extend(["--cluster-replica-validity-factor", "0", "--cluster-allow-replica-migration", "no"]);
        arguments.extend(["--repl-diskless-sync-delay", "0"]);
        if let Some(password) = self.setup.password {
            arguments.extend(["--requirepass", password, "--masterauth", password]);
        }
        let (tls_port, files) = (tls_port.map(|port| port.to_string()), self.tls_files());
        if let (Some(port), Some([certificate, key, authority])) = (&tls_port, &files) {
            arguments.extend(["--tls-port", port, "--tls-cert-file", certificate, "--tls-key-file", key]);
            arguments.extend(["--tls-ca-cert-file", authority, "--tls-auth-clients", "no"]);
            arguments.extend(["--tls-cluster", "yes", "--tls-replication", "yes"]);
        }
        arguments.extend(&self.setup.arguments);
        arguments.into_iter().map(str::to_owned).collect()
    }

    /// Returns the paths of the certificate of the nodes, of its key, and of the authority.
    fn tls_files(&self) -> Option<[String; 3]> {
        let authority = self.authority.as_ref()?;
        let identity = authority.identity("node");
        Some([identity.certificate, identity.key, authority.certificate()])
    }

    /// Makes a cluster of the nodes.
    fn form(&self) {
        let primaries = self.setup.primaries;
        for index in 0..self.nodes.len() {
            self.run(index, &["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
        }
        let bounds: Vec<usize> = (0..=primaries).map(|index| usize::from(SLOTS) * index / primaries).collect();
        for (index, bounds) in bounds.windows(2).enumerate() {
            self.run(index, &["CLUSTER", "ADDSLOTSRANGE", &bounds[0].to_string(), &(bounds[1] - 1).to_string()]);
        }
        let (port, bus_port) = (self.peer_port(0).to_string(), self.nodes[0].bus_port.to_string());
        for index in 1..self.nodes.len() {
            self.run(index, &["CLUSTER", "MEET", "127.0.0.1", &port, &bus_port]);
        }
        wait_for("all nodes know each other", || {
            let knows_all = |index| {
                let known: String = self.query(index, &["CLUSTER", "NODES"]).expect("CLUSTER NODES works");
                known.lines().filter(|line| !line.contains("handshake")).count() == self.nodes.len()
            };
            (0..self.nodes.len()).all(knows_all).then_some(())
        });
        for replica in primaries..self.nodes.len() {
            self.run(replica, &["CLUSTER", "REPLICATE", &self.nodes[replica % primaries].id]);
        }
        self.wait_until_agreed();
        self.wait_for_replicas();
    }

    /// Returns the port of a node for other nodes and for `MIGRATE`.
    fn peer_port(&self, index: usize) -> u16 {
        self.nodes[index].tls_port.unwrap_or(self.nodes[index].redis.port)
    }

    /// Returns the port of a node for plain clients.
    pub fn port(&self, index: usize) -> u16 {
        self.nodes[index].redis.port
    }

    /// Returns the index of the node with a plain port.
    pub fn index_of(&self, port: u16) -> usize {
        self.nodes.iter().position(|node| node.redis.port == port).expect("a port of the cluster")
    }

    /// Connects to a node, over its plain port.
    pub fn connect(&self, index: usize) -> redis::Connection {
        let redis = &self.nodes[index].redis;
        redis.connect_to(&url_of(redis.port, self.setup.password))
    }

    /// Runs a command on a node. Follows no redirection.
    pub fn query<T: FromRedisValue>(&self, index: usize, command: &[&str]) -> RedisResult<T> {
        redis::cmd(command[0]).arg(&command[1..]).query(&mut self.connect(index))
    }

    /// Runs a command on a node, which must succeed.
    pub fn run(&self, index: usize, command: &[&str]) {
        self.query::<Value>(index, command).unwrap_or_else(|error| panic!("{command:?} at node {index}: {error}"));
    }

    /// Returns the number of calls of a command that a node has counted.
    pub fn count_calls(&self, index: usize, command: &str) -> u64 {
        let info: String = self.query(index, &["INFO", "commandstats"]).expect("INFO works");
        let line = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.map_or(0, |rest| rest.split(',').next().expect("a count").parse().expect("a number"))
    }

    /// Returns a client that finds the node of each key, from the nodes that run.
    pub fn client(&self) -> ClusterClient {
        let ports = self.running().map(|index| self.port(index)).collect();
        ClusterClient { ports, password: self.setup.password, connections: HashMap::new(), owners: HashMap::new() }
    }

    /// Writes a key, and repeats that until it succeeds.
    pub fn set(&self, key: &str, value: impl ToRedisArgs) {
        self.client().set(key, value);
    }

    /// Returns the slot map of a node, in order of the slots.
    pub fn slot_map(&self, index: usize) -> Vec<SlotRange> {
        let reply: Vec<Vec<Value>> = self.query(index, &["CLUSTER", "SLOTS"]).expect("CLUSTER SLOTS works");
        let number = |value: &Value| u16::from_redis_value_ref(value).expect("a number");
        let port_of = |node: &Value| match node {
            Value::Array(parts) => number(&parts[1]),
            other => panic!("{other:?} is no node"),
        };
        let range = |parts: Vec<Value>| {
            let mut ports: Vec<u16> = parts[2..].iter().map(port_of).collect();
            ports[1..].sort_unstable();
            (number(&parts[0]), number(&parts[1]), ports)
        };
        let mut map: Vec<SlotRange> = reply.into_iter().map(range).collect();
        map.sort_unstable();
        map
    }

    /// Returns the indices of the nodes that run.
    fn running(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|&index| self.nodes[index].is_running)
    }

    /// Returns the index of the primary that serves a slot, as the first running node knows it.
    pub fn owner_of_slot(&self, slot: u16) -> usize {
        let map = self.slot_map(self.running().next().expect("a running node"));
        let range = map.iter().find(|(first, last, _)| (*first..=*last).contains(&slot)).expect("all slots are served");
        self.index_of(range.2[0])
    }

    /// Returns the index of the primary that serves a key.
    pub fn owner_of(&self, key: &str) -> usize {
        self.owner_of_slot(slot_of(key))
    }

    /// Returns `count` keys with the prefix `name` that a primary serves.
    pub fn keys_of(&self, index: usize, name: &str, count: usize) -> Vec<String> {
        let map = self.slot_map(index);
        let port = self.port(index);
        let is_owned = |key: &String| {
            let slot = slot_of(key);
            map.iter().any(|(first, last, ports)| (*first..=*last).contains(&slot) && ports[0] == port)
        };
        (0..).map(|number| format!("{name}-{number}")).filter(is_owned).take(count).collect()
    }

    /// Returns the index of a running replica of a primary.
    pub fn replica_of(&self, primary: usize) -> usize {
        let id = &self.nodes[primary].id;
        let known: String =
            self.query(self.running().next().expect("a running node"), &["CLUSTER", "NODES"]).expect("CLUSTER NODES");
        let replicas: Vec<&str> = known
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .filter(|words| words[3] == id)
            .map(|words| words[0])
            .collect();
        let is_replica = |index: &usize| replicas.contains(&self.nodes[*index].id.as_str());
        self.running().find(is_replica).expect("a running replica")
    }

    /// Returns true if a node has the role of a primary.
    pub fn is_primary(&self, index: usize) -> bool {
        let role: Vec<Value> = self.query(index, &["ROLE"]).expect("ROLE works");
        role[0] == Value::BulkString(b"master".to_vec())
    }

    /// Waits until all running nodes report a working cluster and the same slot map.
    pub fn wait_until_agreed(&self) {
        let is_ok = |index| {
            let info: String = self.query(index, &["CLUSTER", "INFO"]).expect("CLUSTER INFO works");
            info.contains("cluster_state:ok") && info.contains(&format!("cluster_slots_ok:{SLOTS}\r"))
        };
        wait_for("all nodes agree on the slots", || {
            let maps: Vec<_> = self.running().map(|index| self.slot_map(index)).collect();
            (maps.windows(2).all(|pair| pair[0] == pair[1]) && self.running().all(is_ok)).then_some(())
        });
    }

    /// Waits until all running replicas receive the writes of their primaries, and all nodes
    /// report them.
    pub fn wait_for_replicas(&self) {
        let is_attached = |index| {
            let info: String = self.query(index, &["INFO", "replication"]).expect("INFO works");
            info.contains("role:master") || info.contains("master_link_status:up")
        };
        let replicas = self.running().count() - self.setup.primaries;
        wait_for("the replicas are connected", || {
            let reported = |index| {
                let ports: BTreeMap<u16, ()> = self
                    .slot_map(index)
                    .into_iter()
                    .flat_map(|range| range.2[1..].to_vec())
                    .map(|port| (port, ()))
                    .collect();
                ports.len() == replicas
            };
            (self.running().all(is_attached) && self.running().all(reported)).then_some(())
        });
    }

    /// Waits until all replicas of a primary have received all its writes so far.
    pub fn wait_until_replicated(&self, primary: usize) {
        let offset = |index, field: &str| {
            let info: String = self.query(index, &["INFO", "replication"]).expect("INFO works");
            let offset = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
            offset.and_then(|offset| offset.parse::<u64>().ok())
        };
        let written = offset(primary, "master_repl_offset").expect("an offset");
        let replica = self.replica_of(primary);
        wait_for("the replica is up to date", || {
            offset(replica, "slave_repl_offset").filter(|&offset| offset >= written).map(|_| ())
        });
    }

    /// Marks a slot as migrating, on the node that takes it and on the one that gives it.
    pub fn begin_migration(&self, slot: u16, from: usize, to: usize) {
        let slot = slot.to_string();
        self.run(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.nodes[from].id]);
        self.run(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.nodes[to].id]);
    }

    /// Moves at most `count` keys of a slot. Returns the number of keys that were there.
    pub fn migrate_keys(&self, slot: u16, from: usize, to: usize, count: usize) -> usize {
        let keys: Vec<String> = self
            .query(from, &["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), &count.to_string()])
            .expect("CLUSTER GETKEYSINSLOT works");
        self.migrate(from, to, &keys);
        keys.len()
    }

    /// Moves some keys. The slot is migrating.
    pub fn migrate<T: AsRef<str>>(&self, from: usize, to: usize, keys: &[T]) {
        if keys.is_empty() {
            return;
        }
        let mut command = redis::cmd("MIGRATE");
        command.arg("127.0.0.1").arg(self.peer_port(to)).arg("").arg(0).arg(5000);
        if let Some(password) = self.setup.password {
            command.arg("AUTH").arg(password);
        }
        command.arg("KEYS");
        keys.iter().for_each(|key| _ = command.arg(key.as_ref()));
        command.exec(&mut self.connect(from)).expect("MIGRATE works");
    }

    /// Assigns a slot without keys left at the old node, on all running nodes.
    pub fn finish_migration(&self, slot: u16, to: usize) {
        let (slot, id) = (slot.to_string(), &self.nodes[to].id);
        // The new node first: it then owns the slot by a newer epoch.
        let others = self.running().filter(|&index| index != to && self.is_primary(index));
        for index in std::iter::once(to).chain(others) {
            self.run(index, &["CLUSTER", "SETSLOT", &slot, "NODE", id]);
        }
    }

    /// Moves a slot with all its keys, `batch` keys at once.
    pub fn move_slot(&self, slot: u16, to: usize, batch: usize) {
        let from = self.owner_of_slot(slot);
        self.begin_migration(slot, from, to);
        while self.migrate_keys(slot, from, to, batch) > 0 {}
        self.finish_migration(slot, to);
    }

    /// Gives a slot to a node that has none of its keys. The old node deletes them when it learns
    /// of that, without any message to its clients.
    pub fn force_takeover(&self, slot: u16, to: usize) {
        let from = self.owner_of_slot(slot);
        let slot = slot.to_string();
        // Only a node that imports the slot claims it with a newer epoch.
        self.run(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.nodes[from].id]);
        self.run(to, &["CLUSTER", "SETSLOT", &slot, "NODE", &self.nodes[to].id]);
    }

    /// Promotes the replica of a primary without losing a write (`CLUSTER FAILOVER`). Returns the
    /// new primary and the time when it was seen to be one.
    pub fn failover(&self, primary: usize) -> (usize, Instant) {
        let replica = self.replica_of(primary);
        self.run(replica, &["CLUSTER", "FAILOVER"]);
        (replica, self.wait_for_promotion(replica))
    }

    /// Waits until a node is a primary with slots. Returns the time when that was seen.
    pub fn wait_for_promotion(&self, index: usize) -> Instant {
        let port = self.port(index);
        wait_for("the replica is promoted", || {
            let serves = || self.slot_map(index).iter().any(|range| range.2[0] == port);
            (self.is_primary(index) && serves()).then(Instant::now)
        })
    }

    /// Kills a node.
    pub fn kill(&mut self, index: usize) {
        self.nodes[index].redis.kill();
        self.nodes[index].is_running = false;
    }

    /// Starts a killed node again, with its identity.
    pub fn restart(&mut self, index: usize) {
        self.nodes[index].redis.restart();
        self.nodes[index].is_running = true;
    }

    /// Stops a node with `SIGSTOP`. Its sockets stay open.
    pub fn freeze(&mut self, index: usize) {
        self.nodes[index].redis.freeze();
        self.nodes[index].is_running = false;
    }

    pub fn thaw(&mut self, index: usize) {
        self.nodes[index].redis.thaw();
        self.nodes[index].is_running = true;
    }

    /// Returns a URL with some nodes as seeds, in this order.
    pub fn url_of(&self, seeds: &[usize]) -> String {
        let hosts: Vec<String> = seeds.iter().map(|&seed| format!("127.0.0.1:{}", self.peer_port(seed))).collect();
        let scheme = if self.authority.is_some() { "rediss" } else { "redis" };
        let password = self.setup.password.map_or(String::new(), |password| format!(":{password}@"));
        format!("{scheme}://{password}{}", hosts.join(","))
    }

    /// Returns a URL with all nodes as seeds.
    pub fn url(&self) -> String {
        self.url_of(&(0..self.nodes.len()).collect::<Vec<_>>())
    }

    /// Returns the path of the authority's certificate, if the cluster uses TLS.
    pub fn authority(&self) -> Option<String> {
        self.authority.as_ref().map(Authority::certificate)
    }

    /// Starts a proxy in cluster mode in front of the cluster. `variables` may replace its own.
    pub fn start_proxy(&self, variables: &[(&str, &str)]) -> Proxy {
        let (url, authority) = (self.url(), self.authority());
        let mut own = vec![("REDIS_MODE", "cluster"), ("REDIS_URL", url.as_str())];
        own.extend(authority.as_ref().map(|path| ("REDIS_TLS_CA", path.as_str())));
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

impl Drop for Cluster {
    fn drop(&mut self) {
        let directories: Vec<PathBuf> = self.nodes.iter().map(|node| node.directory.clone()).collect();
        // Kills the processes, which would write to the directories.
        self.nodes.clear();
        directories.iter().for_each(|directory| _ = std::fs::remove_dir_all(directory));
    }
}

/// Returns the URL of a plain port.
fn url_of(port: u16, password: Option<&str>) -> String {
    let password = password.map_or(String::new(), |password| format!(":{password}@"));
    format!("redis://{password}127.0.0.1:{port}/")
}

/// Client that finds the node of each key and follows redirections, with a connection for each
/// node. It does not depend on the [`Cluster`] any more, so a thread can own it.
pub struct ClusterClient {
    ports: Vec<u16>,
    password: Option<&'static str>,
    connections: HashMap<u16, redis::Connection>,
    /// Last known ports of slots.
    owners: HashMap<u16, u16>,
}

impl ClusterClient {
    /// Runs a command that concerns `key`, and follows redirections.
    ///
    /// # Errors
    ///
    /// The node cannot be reached, or replies with another error. The next call asks any node.
    pub fn call(&mut self, key: &str, command: &redis::Cmd) -> RedisResult<Value> {
        let slot = slot_of(key);
        let any = self.ports[usize::from(slot) % self.ports.len()];
        let mut port = self.owners.get(&slot).copied().unwrap_or(any);
        let mut is_asking = false;
        for _ in 0..16 {
            let error = match self.call_node(port, command, is_asking) {
                Ok(value) => {
                    if !is_asking {
                        self.owners.insert(slot, port);
                    }
                    return Ok(value);
                }
                Err(error) => error,
            };
            is_asking = error.code() == Some("ASK");
            match error.redirect_node().and_then(|(address, _)| address.rsplit_once(':')?.1.parse().ok()) {
                Some(target) => port = target,
                None => {
                    self.owners.remove(&slot);
                    // The next call begins elsewhere, because this node may be down.
                    self.ports.rotate_left(1);
                    return Err(error);
                }
            }
        }
        Err((redis::ErrorKind::Io, "too many redirections").into())
    }

    fn call_node(&mut self, port: u16, command: &redis::Cmd, is_asking: bool) -> RedisResult<Value> {
        if !self.connections.contains_key(&port) {
            let client = redis::Client::open(url_of(port, self.password))?;
            let connection = client.get_connection_with_timeout(Duration::from_secs(5))?;
            connection.set_read_timeout(Some(Duration::from_secs(5)))?;
            self.connections.insert(port, connection);
        }
        let connection = self.connections.get_mut(&port).expect("a connection that was just made");
        let result = match is_asking {
            true => redis::cmd("ASKING").exec(connection).and_then(|()| command.query(connection)),
            false => command.query(connection),
        };
        // A connection with an unread reply cannot be used.
        if result.as_ref().is_err_and(|error| error.code().is_none()) {
            self.connections.remove(&port);
        }
        result
    }

    /// Runs a command until it succeeds.
    pub fn call_until_done(&mut self, key: &str, command: &redis::Cmd) -> Value {
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            match self.call(key, command) {
                Ok(value) => return value,
                Err(error) => assert!(Instant::now() < deadline, "{key}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Writes a key, and repeats that until it succeeds.
    pub fn set(&mut self, key: &str, value: impl ToRedisArgs) {
        self.call_until_done(key, redis::cmd("SET").arg(key).arg(value));
    }

    /// Returns the value of a key.
    pub fn get(&mut self, key: &str) -> Option<String> {
        let value = self.call_until_done(key, redis::cmd("GET").arg(key));
        redis::from_redis_value(value).expect("a value that is text")
    }
}
