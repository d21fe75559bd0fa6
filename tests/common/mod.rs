//! Helpers of the end-to-end tests: a redis-server for each test, the proxy binary, an HTTP client.
//!
//! No port is fixed. Tests poll for a condition instead of sleeping for a fixed time.

#![allow(
    dead_code,
    clippy::expect_used,
    clippy::panic,
    reason = "each test binary uses some helpers, and a test may panic"
)]

pub mod admin;
pub mod browser;
pub mod certificates;
pub mod client;
pub mod cluster;
pub mod daemon;
pub mod entries;
pub mod event_stream;
pub mod fake_node;
pub mod freshness;
pub mod program;
pub mod relay;
pub mod resolver;
pub mod resp;
pub mod rounds;
pub mod sentinel;
pub mod strace;
pub mod testbed;
pub mod transport;
pub mod unix;
pub mod versions;
pub mod watchers;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longest wait before a test fails. Generous, because only a failing test waits that long.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Calls `poll` every 5 ms until it returns a value. Panics after `TEST_TIMEOUT`.
pub fn wait_for<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("sh").arg("-c").arg(format!("kill -{name} {}", child.id())).status();
    assert!(status.expect("sh is installed").success(), "kill -{name} failed");
}

/// Returns true if no thread of a process runs or waits for a processor.
fn is_sleeping(child: &Child) -> bool {
    let mut threads = std::fs::read_dir(format!("/proc/{}/task", child.id())).expect("a running process");
    threads.all(|thread| {
        let stat = std::fs::read_to_string(thread.expect("a thread").path().join("stat"));
        // The thread may have ended.
        stat.is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, fields)| fields.starts_with(" S")))
    })
}

/// Waits until Redis and the proxy have processed all their input, without sending them any.
pub fn wait_until_idle(redis: &Redis, proxy: &Proxy) {
    wait_for("Redis and the proxy sleep", || {
        (0..10)
            .all(|_| {
                std::thread::sleep(Duration::from_millis(5));
                is_sleeping(&redis.child) && is_sleeping(&proxy.child)
            })
            .then_some(())
    });
}

/// Argument of a redis-server that stands for a free port.
pub const FREE_PORT: &str = "FREE_PORT";

/// Returns a port that is free now. Another process may take it.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port()
}

/// Returns a port that is free now, below those that the kernel gives to outgoing connections.
///
/// A server can restart there. On another port, a client that connects over and over to a dead
/// server may at last connect to itself.
pub fn stable_port() -> u16 {
    use std::hash::{BuildHasher, RandomState};
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let draw = || RandomState::new().hash_one(COUNT.fetch_add(1, Ordering::Relaxed)) % 20_000;
    let mut ports = std::iter::repeat_with(|| 12_000 + draw() as u16);
    ports.find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok()).expect("an endless iterator")
}

/// Returns the name of the file that a redis-server of this process may write.
fn dump_file(port: u16) -> String {
    format!("segment-redis-{}-{port}.rdb", std::process::id())
}

/// Running redis-server that belongs to one test. Killed when dropped.
pub struct Redis {
    child: Child,
    pub port: u16,
    arguments: Vec<String>,
}

impl Redis {
    pub fn start() -> Redis {
        Redis::start_with(&[])
    }

    /// Starts a redis-server with further arguments. [`FREE_PORT`] stands for a free port.
    pub fn start_with(arguments: &[&str]) -> Redis {
        // Another process may take a free port first. The next attempt uses other ports.
        for _ in 0..20 {
            let port = free_port();
            let resolve = |&argument: &&str| {
                if argument == FREE_PORT { free_port().to_string() } else { argument.to_owned() }
            };
            let arguments: Vec<String> = arguments.iter().map(resolve).collect();
            if let Some(child) = Redis::launch(port, &arguments) {
                return Redis { child, port, arguments };
            }
        }
        panic!("redis-server does not start");
    }

    /// Starts a redis-server on `port`, or returns `None` if it exits because a port is taken.
    pub fn try_start(port: u16, arguments: Vec<String>) -> Option<Redis> {
        let child = Redis::launch(port, &arguments)?;
        Some(Redis { child, port, arguments })
    }

    /// Returns the value of an argument that is a port.
    pub fn port_argument(&self, name: &str) -> u16 {
        let at = self.arguments.iter().position(|argument| argument == name).expect("the argument");
        self.arguments[at + 1].parse().expect("a port")
    }

    /// Starts a redis-server, or returns `None` if it exits because the port is taken.
    fn launch(port: u16, arguments: &[String]) -> Option<Child> {
        // Replication writes a file, which a later server in the same directory would load.
        let directory = std::env::temp_dir();
        let directory = ["--dir", directory.to_str().expect("a path in UTF-8"), "--dbfilename", &dump_file(port)];
        let mut child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(directory)
            .args(arguments)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        wait_for("redis-server replies", || {
            if child.try_wait().expect("a child can be waited for").is_some() {
                return Some(false);
            }
            let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
            stream.write_all(b"*2\r\n$4\r\nINFO\r\n$6\r\nserver\r\n*1\r\n$4\r\nQUIT\r\n").ok()?;
            // A process id identifies this server: another one may have taken the port while this
            // one has not exited yet. A server that requires a password reports no process id.
            let mut reply = Vec::new();
            stream.read_to_end(&mut reply).ok()?;
            let own = format!("\r\nprocess_id:{}\r\n", child.id());
            (reply.starts_with(b"-NOAUTH") || String::from_utf8_lossy(&reply).contains(&own)).then_some(true)
        })
        .then_some(child)
    }

    pub fn connect(&self) -> redis::Connection {
        self.connect_to(&format!("redis://127.0.0.1:{}/", self.port))
    }

    pub fn connect_to(&self, url: &str) -> redis::Connection {
        redis::Client::open(url).and_then(|client| client.get_connection()).expect("Redis accepts connections")
    }

    pub fn set(&self, key: impl redis::ToSingleRedisArg, value: impl redis::ToSingleRedisArg) {
        redis::cmd("SET").arg(key).arg(value).exec(&mut self.connect()).expect("SET works");
    }

    pub fn run(&self, command: &[&str]) {
        redis::cmd(command[0]).arg(&command[1..]).exec(&mut self.connect()).expect("the command works");
    }

    /// Returns the number of calls of a command.
    pub fn count_calls(&self, command: &str) -> u64 {
        let info: String = redis::cmd("INFO").arg("commandstats").query(&mut self.connect()).expect("INFO works");
        let line = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.map_or(0, |rest| rest.split(',').next().expect("a count").parse().expect("a number"))
    }

    /// Returns the number of reads of keys by the proxy. Each read includes one `PTTL`.
    pub fn count_reads(&self) -> u64 {
        self.count_calls("pttl")
    }

    /// Stops the process with `SIGSTOP`. Its sockets stay open.
    pub fn freeze(&self) {
        signal(&self.child, "STOP");
    }

    pub fn thaw(&self) {
        signal(&self.child, "CONT");
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("Redis can be killed");
        self.child.wait().expect("Redis can be waited for");
    }

    /// Starts a new server on the same port.
    pub fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// Starts a new server on the same port, with further arguments that later restarts do not use.
    pub fn restart_with(&mut self, arguments: &[&str]) {
        let arguments: Vec<String> =
            self.arguments.iter().cloned().chain(arguments.iter().map(|&argument| argument.to_owned())).collect();
        self.child = Redis::launch(self.port, &arguments).expect("the port is still free");
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(std::env::temp_dir().join(dump_file(self.port)));
    }
}

/// Running proxy that listens on a port of its own. Killed when dropped.
pub struct Proxy {
    child: Child,
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Starts a proxy in front of `redis`, with further environment variables.
    pub fn start(redis: &Redis, variables: &[(&str, &str)]) -> Proxy {
        Proxy::start_on_redis_port(redis.port, variables)
    }

    /// Starts a proxy in front of the server at `redis_port`.
    pub fn start_on_redis_port(redis_port: u16, variables: &[(&str, &str)]) -> Proxy {
        Proxy::start_command(Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy")), redis_port, variables)
    }

    /// Starts a proxy with a command that runs the binary, and collects its log.
    pub fn start_command(mut command: Command, redis_port: u16, variables: &[(&str, &str)]) -> Proxy {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        command.stderr(writer);
        let proxy = Proxy::start_with_log_pipe(command, redis_port, variables, &mut reader);
        let lines = Arc::clone(&proxy.log);
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                lines.lock().expect("no thread panicked with the log locked").push(line);
            }
        });
        proxy
    }

    /// Starts a proxy with a command, to listen on `port`. Collects no log.
    pub fn start_unlogged(mut command: Command, redis_port: u16, variables: &[(&str, &str)], port: u16) -> Proxy {
        let child = Proxy::spawn(&mut command, redis_port, variables);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let proxy = Proxy { child, address, log: Arc::default() };
        drop(proxy.connect());
        proxy
    }

    fn spawn(command: &mut Command, redis_port: u16, variables: &[(&str, &str)]) -> Child {
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("PROXY_HOST", "127.0.0.1")
            .env("PROXY_PORT", "0")
            .env("CACHE_SIZE", "100000")
            // Longer than the default of a second: a busy machine is not an outage of Redis.
            .env("REDIS_TIMEOUT", "20000");
        transport::configure(command, redis_port, variables);
        command.spawn().expect("the binary starts")
    }

    /// Starts a proxy with a command that logs to a pipe, and reads `log` only until the proxy
    /// listens.
    pub fn start_with_log_pipe(
        mut command: Command,
        redis_port: u16,
        variables: &[(&str, &str)],
        log: &mut PipeReader,
    ) -> Proxy {
        let child = Proxy::spawn(&mut command, redis_port, variables);
        // The command holds a copy of the writing end, which would keep the pipe open after the
        // proxy exits.
        drop(command);
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut proxy = Proxy { child, address, log: Arc::default() };
        let (mut line, mut is_listening) = (Vec::new(), false);
        while !is_listening {
            let mut byte = [0];
            assert!(log.read(&mut byte).expect("the log can be read") > 0, "the proxy exited: {}", proxy.log());
            if byte != *b"\n" {
                line.extend(byte);
                continue;
            }
            let text = String::from_utf8(std::mem::take(&mut line)).expect("the log is text");
            is_listening = text.contains(" listening on ");
            let address = text.split_once("listening on ").and_then(|(_, rest)| rest.split(',').next()?.parse().ok());
            proxy.log.lock().expect("no thread panicked with the log locked").push(text);
            proxy.address = address.unwrap_or(proxy.address);
        }
        proxy
    }

    /// Returns the log lines so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("no thread panicked with the log locked").join("\n")
    }

    /// Waits until the log contains `text`.
    pub fn wait_for_log(&self, text: &str) {
        wait_for(text, || self.log().contains(text).then_some(()));
    }

    /// Returns the address of `ADMIN_PORT`.
    pub fn admin_address(&self) -> SocketAddr {
        let log = self.log();
        let (_, rest) = log.split_once("admin port ").expect("a proxy with ADMIN_PORT");
        rest.split(',').next().and_then(|address| address.parse().ok()).expect("an address")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn connect(&self) -> HttpClient {
        HttpClient::connect(self.address)
    }

    /// Connects from 127.0.0.`host`: wrong passwords count for the address of the client.
    pub fn connect_from(&self, host: u8) -> HttpClient {
        HttpClient::new(connect_from(self.address, host))
    }

    /// Sends one request on a new connection.
    pub fn get(&self, path: &str) -> Response {
        self.connect().get(path)
    }

    /// Returns a field of `/proc/<pid>/status` in KiB, such as `VmRSS` or `VmHWM`.
    pub fn memory_kib(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the proxy runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse().ok()).expect("a figure")
    }

    /// Returns the number of open files and sockets.
    pub fn count_descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("the proxy runs").count()
    }

    /// Waits until the number of open files stays the same for 50 ms, and returns it.
    ///
    /// By then closed connections are released and the connections to Redis are open.
    pub fn wait_for_stable_descriptors(&self) -> usize {
        wait_for("the number of open files is stable", || {
            let count = self.count_descriptors();
            std::thread::sleep(Duration::from_millis(50));
            (count == self.count_descriptors()).then_some(count)
        })
    }

    /// Stops the process with `SIGSTOP`. Its sockets stay open.
    pub fn freeze(&self) {
        signal(&self.child, "STOP");
    }

    pub fn thaw(&self) {
        signal(&self.child, "CONT");
    }

    /// Returns the CPU time used so far, in clock ticks of 10 ms.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("the proxy runs");
        let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
        fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
    }

    /// Sends a signal, given by name without `SIG`.
    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Sends a signal, waits until the proxy exits and returns the exit code.
    pub fn stop(self, name: &str) -> Option<i32> {
        signal(&self.child, name);
        self.wait_for_exit()
    }

    /// Waits until the proxy exits and returns the exit code.
    pub fn wait_for_exit(mut self) -> Option<i32> {
        wait_for("the proxy exits", || self.child.try_wait().expect("a child can be waited for")).code()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("log of the proxy:\n{}", self.log());
        }
    }
}

/// HTTP response, with header names in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("a body that is text")
    }

    /// Returns the value of a header, or an empty string if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub fn is_from_cache(&self) -> bool {
        self.text().ends_with("\"fromCache\":true}")
    }
}

/// Connects to a server of this machine from 127.0.0.`host`.
pub fn connect_from(server: SocketAddr, host: u8) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, host], 0)).into()).expect("an address of this machine");
    socket.connect(&server.into()).expect("the server accepts connections");
    socket.into()
}

/// Minimal HTTP/1.1 client on one connection, which checks the form of each response.
pub struct HttpClient {
    stream: BufReader<TcpStream>,
}

impl HttpClient {
    pub fn connect(address: SocketAddr) -> HttpClient {
        HttpClient::new(wait_for("the proxy accepts connections", || TcpStream::connect(address).ok()))
    }

    fn new(stream: TcpStream) -> HttpClient {
        stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("a time-out can be set");
        stream.set_nodelay(true).expect("an option can be set");
        HttpClient { stream: BufReader::new(stream) }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.get_mut().write_all(bytes.as_ref()).expect("the proxy reads");
    }

    /// Sends a `GET` without reading the response.
    pub fn send_get(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"));
    }

    pub fn get(&mut self, path: &str) -> Response {
        self.send_get(path);
        self.read_response()
    }

    pub fn read_response(&mut self) -> Response {
        self.read_response_to("GET")
    }

    /// Reads the next response. A response to `HEAD` has no body.
    pub fn read_response_to(&mut self, method: &str) -> Response {
        self.try_read_response_to(method).expect("a whole response")
    }

    /// Reads the next response.
    ///
    /// # Errors
    ///
    /// The connection ended before the response did.
    pub fn try_read_response_to(&mut self, method: &str) -> std::io::Result<Response> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if self.stream.read_until(b'\n', &mut head)? == 0 {
                let text = format!("connection closed within a response head: {:?}", String::from_utf8_lossy(&head));
                return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, text));
            }
        }
        let head = String::from_utf8(head).expect("a head is text");
        let mut lines = head.trim_end().split("\r\n");
        let status: Option<u16> =
            lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok());
        let fields: HashMap<String, String> = lines
            .map(|line| line.split_once(": ").expect("a field has a value"))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let length = match (method, status) {
            ("HEAD", _) | (_, Some(304)) => 0,
            _ => fields.get("content-length").and_then(|length| length.parse().ok()).expect("a length"),
        };
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(Response { status: status.expect("a status line"), headers: fields, body })
    }

    /// Reads, and returns true if the proxy has closed its side and no bytes were left.
    pub fn reads_eof(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0))
    }

    /// Returns the connection. Its input must be read to the end of a response.
    pub fn into_stream(self) -> BufReader<TcpStream> {
        self.stream
    }

    pub fn stream(&mut self) -> &mut BufReader<TcpStream> {
        &mut self.stream
    }

    /// Returns true if bytes have arrived that the test has not read.
    pub fn has_input(&mut self) -> bool {
        if !self.stream.buffer().is_empty() {
            return true;
        }
        let stream = self.stream.get_mut();
        stream.set_nonblocking(true).expect("an option can be set");
        let result = stream.peek(&mut [0]);
        stream.set_nonblocking(false).expect("an option can be set");
        result.is_ok()
    }
}

/// Starts a server that closes each connection after `serve`. Returns its port and a connection
/// count.
pub fn start_fake_redis(serve: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let (count, serve) = (Arc::new(AtomicUsize::new(0)), Arc::new(serve));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            counted.fetch_add(1, Ordering::Relaxed);
            let (serve, mut stream) = (Arc::clone(&serve), stream.expect("a connection"));
            std::thread::spawn(move || serve(&mut stream));
        }
    });
    (port, count)
}

/// Starts a server that replies to each command with the result of `reply_to`.
///
/// `reply_to` receives the words of the command in upper case. `None` closes the connection.
pub fn start_scripted_redis(
    reply_to: impl Fn(&[String]) -> Option<String> + Send + Sync + 'static,
) -> (u16, Arc<AtomicUsize>) {
    start_fake_redis(move |stream| {
        let mut parser = redis::Parser::new();
        let mut from = stream.try_clone().expect("a descriptor");
        while let Ok(redis::Value::Array(words)) = parser.parse_value(&mut from) {
            let word = |word| {
                String::from_utf8_lossy(&redis::from_redis_value::<Vec<u8>>(word).unwrap_or_default()).to_uppercase()
            };
            let words: Vec<String> = words.into_iter().map(word).collect();
            match reply_to(&words) {
                Some(reply) if stream.write_all(reply.as_bytes()).is_ok() => {}
                _ => return,
            }
        }
    })
}
