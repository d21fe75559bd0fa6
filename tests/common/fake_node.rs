//! Scripted node of a Redis Cluster, for what a real one cannot be made to reply.
//!
//! Without a script it is a primary in RESP2 and RESP3 that serves the keys it was given, whatever
//! their slots are. A script replaces the reply to any command.

use std::collections::HashMap;
use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Command that a node received.
#[derive(Clone, Debug)]
pub struct Call {
    /// Words of the command. Its name, and that of a subcommand, are in upper case.
    pub words: Vec<String>,
    /// True if `ASKING` came right before it on its connection.
    pub is_asking: bool,
    pub at: Instant,
}

impl Call {
    pub fn name(&self) -> &str {
        &self.words[0]
    }

    /// Returns true if the command reads a key.
    pub fn is_read(&self) -> bool {
        matches!(self.name(), "GET" | "GETRANGE" | "PTTL" | "STRLEN")
    }

    /// Returns the key of a command that reads one.
    pub fn key(&self) -> &str {
        &self.words[1]
    }

    fn subcommand(&self) -> &str {
        self.words.get(1).map_or("", String::as_str)
    }
}

/// Range of slots as `CLUSTER SLOTS` reports it. A host that is `None` is sent as nil.
#[derive(Clone, Debug)]
pub struct Range {
    pub first: u16,
    pub last: u16,
    pub host: Option<String>,
    pub port: u16,
    pub id: String,
}

/// Function that returns the reply to a command, or `None` for the usual one.
type Script = Arc<dyn Fn(&Call) -> Option<String> + Send + Sync>;

struct State {
    id: String,
    ranges: Vec<Range>,
    epoch: u64,
    values: HashMap<String, String>,
    script: Option<Script>,
    calls: Vec<Call>,
    /// Number of connections so far.
    connections: usize,
    /// Connections that receive invalidations, and true for those in RESP3.
    trackers: Vec<(Arc<Mutex<TcpStream>>, bool)>,
}

/// Running node. Its threads end with the test process.
pub struct FakeNode {
    pub port: u16,
    state: Arc<Mutex<State>>,
}

/// State of one connection.
struct Session {
    stream: Arc<Mutex<TcpStream>>,
    number: usize,
    is_resp3: bool,
    is_asking: bool,
    is_tracking: bool,
    is_subscribed: bool,
}

/// Returns the reply that sends a client to another node.
pub fn redirection(kind: &str, slot: u16, address: &str) -> String {
    format!("-{kind} {slot} {address}\r\n")
}

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

impl FakeNode {
    /// Starts a node without slots and keys.
    pub fn start(id: char) -> FakeNode {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(Mutex::new(State {
            id: id.to_string().repeat(40),
            ranges: Vec::new(),
            epoch: 1,
            values: HashMap::new(),
            script: None,
            calls: Vec::new(),
            connections: 0,
            trackers: Vec::new(),
        }));
        let node = FakeNode { port, state: Arc::clone(&state) };
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&state);
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        node
    }

    /// Starts `count` nodes that share the slots in equal parts and report that.
    pub fn start_cluster(count: u16) -> Vec<FakeNode> {
        let nodes: Vec<FakeNode> = ('a'..).take(usize::from(count)).map(FakeNode::start).collect();
        let bound = |number: u16| (u32::from(super::cluster::SLOTS) * u32::from(number) / u32::from(count)) as u16;
        let ranges: Vec<Range> =
            (0..).zip(&nodes).map(|(number, node)| node.range(bound(number), bound(number + 1) - 1)).collect();
        nodes.iter().for_each(|node| node.set_ranges(&ranges));
        nodes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn id(&self) -> String {
        self.state().id.clone()
    }

    /// Changes the identity that the node reports.
    pub fn set_id(&self, id: char) {
        self.state().id = id.to_string().repeat(40);
    }

    /// Returns a range of slots that this node serves.
    pub fn range(&self, first: u16, last: u16) -> Range {
        Range { first, last, host: Some("127.0.0.1".into()), port: self.port, id: self.id() }
    }

    /// Sets the slot map that the node reports, with a higher epoch.
    pub fn set_ranges(&self, ranges: &[Range]) {
        let mut state = self.state();
        state.ranges = ranges.to_vec();
        state.epoch += 1;
    }

    /// Sets the value of a key, without an invalidation.
    pub fn set(&self, key: &str, value: &str) {
        self.state().values.insert(key.into(), value.into());
    }

    /// Replaces the script. `None` from it stands for the usual reply.
    pub fn on_call(&self, script: impl Fn(&Call) -> Option<String> + Send + Sync + 'static) {
        self.state().script = Some(Arc::new(script));
    }

    /// Returns the commands with this name so far. The name may include a subcommand.
    pub fn calls(&self, name: &str) -> Vec<Call> {
        let (name, subcommand) = name.split_once(' ').unwrap_or((name, ""));
        let matches = |call: &&Call| call.name() == name && (subcommand.is_empty() || call.subcommand() == subcommand);
        self.state().calls.iter().filter(matches).cloned().collect()
    }

    /// Forgets the commands so far.
    pub fn forget_calls(&self) {
        self.state().calls.clear();
    }

    /// Returns the number of connections that receive invalidations.
    pub fn count_trackers(&self) -> usize {
        self.state().trackers.len()
    }

    /// Sends the invalidation of a key on all connections with tracking.
    pub fn invalidate(&self, key: &str) {
        let keys = format!("*1\r\n{}", bulk(key));
        for (stream, is_resp3) in &self.state().trackers {
            let message = match is_resp3 {
                true => format!(">2\r\n{}{keys}", bulk("invalidate")),
                false => format!("*3\r\n{}{}{keys}", bulk("message"), bulk("__redis__:invalidate")),
            };
            // Fails if the client has closed the connection.
            let _ = stream.lock().expect("no panic").write_all(message.as_bytes());
        }
    }

    /// Closes all connections with tracking.
    pub fn close_trackers(&self) {
        for (stream, _) in &self.state().trackers {
            let _ = stream.lock().expect("no panic").shutdown(Shutdown::Both);
        }
    }
}

/// Answers the commands of one connection.
fn serve(stream: TcpStream, state: &Mutex<State>) {
    stream.set_nodelay(true).expect("an option can be set");
    let mut from = stream.try_clone().expect("a descriptor");
    let number = {
        let mut state = state.lock().expect("no panic");
        state.connections += 1;
        state.connections
    };
    let stream = Arc::new(Mutex::new(stream));
    let mut session = Session {
        stream: Arc::clone(&stream),
        number,
        is_resp3: false,
        is_asking: false,
        is_tracking: false,
        is_subscribed: false,
    };
    let mut parser = redis::Parser::new();
    while let Ok(redis::Value::Array(words)) = parser.parse_value(&mut from) {
        let call = read_call(words, &mut session);
        let script = {
            let mut state = state.lock().expect("no panic");
            state.calls.push(call.clone());
            state.script.clone()
        };
        let scripted = script.and_then(|script| script(&call));
        let reply = scripted.unwrap_or_else(|| session.reply_to(&call, &mut state.lock().expect("no panic")));
        if stream.lock().expect("no panic").write_all(reply.as_bytes()).is_err() {
            break;
        }
    }
    state.lock().expect("no panic").trackers.retain(|(other, _)| !Arc::ptr_eq(other, &stream));
}

fn read_call(words: Vec<redis::Value>, session: &mut Session) -> Call {
    let text =
        |word| String::from_utf8_lossy(&redis::from_redis_value::<Vec<u8>>(word).unwrap_or_default()).into_owned();
    let mut words: Vec<String> = words.into_iter().map(text).collect();
    words[0].make_ascii_uppercase();
    if words.len() > 1 && matches!(words[0].as_str(), "CLUSTER" | "CLIENT") {
        words[1].make_ascii_uppercase();
    }
    let is_asking = std::mem::replace(&mut session.is_asking, words[0] == "ASKING");
    Call { words, is_asking, at: Instant::now() }
}

impl Session {
    /// Returns the usual reply to a command.
    fn reply_to(&mut self, call: &Call, state: &mut State) -> String {
        let word = |at: usize| call.words.get(at).map_or("", String::as_str);
        let value = || state.values.get(word(1));
        match (call.name(), call.subcommand()) {
            ("HELLO", version) => {
                self.is_resp3 = version == "3";
                self.hello(state)
            }
            ("PING", _) if self.is_subscribed && !self.is_resp3 => format!("*2\r\n{}{}", bulk("pong"), bulk("")),
            ("PING", _) => "+PONG\r\n".into(),
            ("SELECT", database) if database != "0" => "-ERR SELECT is not allowed in cluster mode\r\n".into(),
            ("CLIENT", "ID") => format!(":{}\r\n", self.number),
            ("CLIENT", "TRACKING") => {
                self.is_tracking = word(2).eq_ignore_ascii_case("ON");
                self.note_tracker(state);
                "+OK\r\n".into()
            }
            ("SUBSCRIBE", channel) => {
                self.is_subscribed = true;
                self.note_tracker(state);
                let kind = if self.is_resp3 { '>' } else { '*' };
                format!("{kind}3\r\n{}{}:1\r\n", bulk("subscribe"), bulk(channel))
            }
            ("ROLE", _) => format!("*3\r\n{}:0\r\n*0\r\n", bulk("master")),
            ("INFO", _) => {
                let lines = ["redis_version:7.0.15", "redis_mode:cluster", "role:master", "cluster_enabled:1"];
                self.text(&format!("{}\r\nrun_id:{}\r\n", lines.join("\r\n"), state.id))
            }
            ("CLUSTER", "MYID") => bulk(&state.id),
            ("CLUSTER", "INFO") => self.cluster_info(state),
            ("CLUSTER", "SLOTS") => self.cluster_slots(state),
            ("ASKING" | "AUTH" | "SELECT" | "CLIENT" | "READONLY", _) => "+OK\r\n".into(),
            ("GETRANGE", _) => {
                let last: usize = word(3).parse().expect("an offset");
                let value = value().map_or("", String::as_str);
                bulk(&value[..value.len().min(last + 1)])
            }
            ("STRLEN", _) => format!(":{}\r\n", value().map_or(0, String::len)),
            ("PTTL", _) => format!(":{}\r\n", if value().is_some() { -1 } else { -2 }),
            ("GET", _) => value().map_or_else(|| if self.is_resp3 { "_\r\n" } else { "$-1\r\n" }.into(), |it| bulk(it)),
            (name, _) => format!("-ERR unknown command '{name}'\r\n"),
        }
    }

    /// Records a connection that receives invalidations.
    fn note_tracker(&self, state: &mut State) {
        let is_new = || !state.trackers.iter().any(|(stream, _)| Arc::ptr_eq(stream, &self.stream));
        if self.is_tracking && (self.is_resp3 || self.is_subscribed) && is_new() {
            state.trackers.push((Arc::clone(&self.stream), self.is_resp3));
        }
    }

    /// Returns a text of several lines.
    fn text(&self, text: &str) -> String {
        if self.is_resp3 { format!("={}\r\ntxt:{text}\r\n", text.len() + 4) } else { bulk(text) }
    }

    fn hello(&self, state: &State) -> String {
        let (kind, count) = if self.is_resp3 { ('%', 6) } else { ('*', 12) };
        let proto = if self.is_resp3 { 3 } else { 2 };
        let words = |words: &[&str]| words.iter().map(|word| bulk(word)).collect::<String>();
        let head = words(&["server", "redis", "version", "7.0.15", "proto"]);
        let tail = words(&["mode", "cluster", "role", "master"]);
        format!("{kind}{count}\r\n{head}:{proto}\r\n{}:{}\r\n{tail}", bulk("id"), state.connections)
    }

    fn cluster_info(&self, state: &State) -> String {
        let slots: u32 = state.ranges.iter().map(|range| u32::from(range.last - range.first) + 1).sum();
        let epoch = state.epoch;
        self.text(&format!(
            "cluster_state:ok\r\ncluster_slots_assigned:{slots}\r\ncluster_slots_ok:{slots}\r\ncluster_slots_pfail:0\r\n\
             cluster_slots_fail:0\r\ncluster_known_nodes:{nodes}\r\ncluster_size:{nodes}\r\n\
             cluster_current_epoch:{epoch}\r\ncluster_my_epoch:{epoch}\r\n",
            nodes = state.ranges.len(),
        ))
    }

    fn cluster_slots(&self, state: &State) -> String {
        let nil = if self.is_resp3 { "_\r\n" } else { "$-1\r\n" };
        let render = |range: &Range| {
            let host = range.host.as_ref().map_or(nil.to_owned(), |host| bulk(host));
            let node = format!("*4\r\n{host}:{}\r\n{}*0\r\n", range.port, bulk(&range.id));
            format!("*3\r\n:{}\r\n:{}\r\n{node}", range.first, range.last)
        };
        format!("*{}\r\n{}", state.ranges.len(), state.ranges.iter().map(render).collect::<String>())
    }
}

/// Returns the shortest time between two calls, which are in order.
pub fn shortest_gap(calls: &[Call]) -> Duration {
    calls.windows(2).map(|pair| pair[1].at - pair[0].at).min().unwrap_or(Duration::MAX)
}
