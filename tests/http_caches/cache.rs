//! HTTP caches in front of the proxy.
//!
//! Each runs at its defaults, except for what a test needs: its address, its backend, a directory
//! for all its files, and running in the foreground.

use crate::common::daemon::{self, command, create_dir, stop};
use crate::common::{HttpClient, Proxy, Response, wait_for};
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// One product in one role, with its command.
pub struct Kind {
    /// Name in assertion messages.
    pub name: &'static str,
    /// Response field that this product adds, and a part of its value.
    mark: (&'static str, &'static str),
    /// Writes the configuration into the directory and returns the command that reads it.
    command: fn(dir: &Path, port: u16, proxy: SocketAddr) -> Command,
    /// Signal that ends the command and all processes that it started.
    stop_signal: &'static str,
    /// True if requests have the whole URL as their target, as for a forward proxy.
    pub has_absolute_targets: bool,
    /// True if the cache counts whole seconds and serves a response until the end of the second in
    /// which its lifetime ends. nginx compares `valid_sec < now`, both without their fractions.
    pub keeps_last_second: bool,
}

/// All caches of the tests.
pub const KINDS: [Kind; 5] = [
    Kind {
        name: "Varnish",
        mark: ("x-varnish", ""),
        command: varnish,
        stop_signal: "TERM",
        has_absolute_targets: false,
        keeps_last_second: false,
    },
    Kind {
        name: "nginx",
        mark: ("server", "nginx"),
        command: nginx,
        stop_signal: "TERM",
        has_absolute_targets: false,
        keeps_last_second: true,
    },
    Kind {
        name: "nginx, revalidating",
        mark: ("server", "nginx"),
        command: revalidating_nginx,
        stop_signal: "TERM",
        has_absolute_targets: false,
        keeps_last_second: true,
    },
    Kind {
        name: "Squid, accelerator",
        mark: ("via", "squid"),
        command: squid_accelerator,
        // On TERM it waits half a minute for its clients. KILL leaves its shared memory behind.
        stop_signal: "INT",
        has_absolute_targets: false,
        keeps_last_second: false,
    },
    Kind {
        name: "Squid, forward proxy",
        mark: ("via", "squid"),
        command: squid_forward_proxy,
        stop_signal: "INT",
        has_absolute_targets: true,
        keeps_last_second: false,
    },
];

/// Returns the command of Varnish. It compiles its built-in VCL with the C compiler that its
/// package depends on. With `-j none` it stays the user that started it.
fn varnish(dir: &Path, port: u16, proxy: SocketAddr) -> Command {
    let mut command = command("varnishd");
    command.args(["-F", "-j", "none", "-n"]).arg(dir.join("varnish"));
    command.args(["-a", &format!("127.0.0.1:{port}"), "-b", &proxy.to_string()]);
    command
}

fn nginx(dir: &Path, port: u16, proxy: SocketAddr) -> Command {
    nginx_with(dir, port, proxy, "")
}

/// Returns the command of nginx with conditional requests for expired responses, which are off by
/// default.
fn revalidating_nginx(dir: &Path, port: u16, proxy: SocketAddr) -> Command {
    nginx_with(dir, port, proxy, "proxy_cache_revalidate on;")
}

fn nginx_with(dir: &Path, port: u16, proxy: SocketAddr, directives: &str) -> Command {
    let lines = format!(
        "proxy_cache_path {dir}/cache keys_zone=values:1m;
        server {{
            listen 127.0.0.1:{port};
            location / {{
                proxy_pass http://{proxy};
                proxy_cache values;
                {directives}
            }}
        }}",
        dir = dir.display(),
    );
    daemon::nginx(dir, &lines)
}

fn squid_accelerator(dir: &Path, port: u16, proxy: SocketAddr) -> Command {
    let (host, backend) = (proxy.ip(), proxy.port());
    let role = format!(
        "http_port 127.0.0.1:{port} accel defaultsite=localhost
        cache_peer {host} parent {backend} 0 no-query originserver"
    );
    squid(dir, &role)
}

fn squid_forward_proxy(dir: &Path, port: u16, _: SocketAddr) -> Command {
    squid(dir, &format!("http_port 127.0.0.1:{port}"))
}

/// Returns the command of Squid, which becomes another user if started by root. All its files must
/// be in the directory, and no process may outlive it, as a pinger would.
fn squid(dir: &Path, role: &str) -> Command {
    let text = format!(
        "{role}
        http_access allow all
        visible_hostname localhost
        pinger_enable off
        netdb_filename none
        access_log none
        cache_log {dir}/cache.log
        pid_filename {dir}/pid\n",
        dir = dir.display(),
    );
    // A directive that begins with a space continues the line before.
    let text = text.lines().map(|line| format!("{}\n", line.trim_start())).collect::<String>();
    // Name of its shared memory, of letters and digits only. All instances with the same name share
    // that memory, even those of other users.
    let service: String = dir.to_string_lossy().chars().filter(char::is_ascii_alphanumeric).collect();
    let path = dir.join("squid.conf");
    std::fs::write(&path, text).expect("a writable directory");
    let mut command = command("squid");
    command.args(["-N", "-n", &service]).arg("-f").arg(path).current_dir(dir);
    command
}

/// Running cache. Stopped, and its directory removed, when dropped.
pub struct HttpCache {
    pub kind: &'static Kind,
    child: Child,
    dir: PathBuf,
    address: SocketAddr,
    /// Prefix of each path in a request.
    origin: String,
}

impl HttpCache {
    /// Starts a cache in front of the proxy and waits until it forwards a response.
    pub fn start(kind: &'static Kind, proxy: &Proxy) -> HttpCache {
        // Another process may take the free port first. Each attempt has another port.
        for _ in 0..10 {
            let mut cache = HttpCache::launch(kind, proxy);
            if cache.wait_until_ready() {
                return cache;
            }
        }
        panic!("{} does not start", kind.name);
    }

    fn launch(kind: &'static Kind, proxy: &Proxy) -> HttpCache {
        let dir = create_dir();
        let address = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
        let log = File::create(dir.join("output.log")).expect("a writable directory");
        let child = (kind.command)(&dir, address.port(), proxy.address)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("scripts/test.sh installs it");
        let origin = if kind.has_absolute_targets { format!("http://{}", proxy.address) } else { String::new() };
        HttpCache { kind, child, dir, address, origin }
    }

    /// Waits until the cache forwards a response of the proxy. Returns false if it has exited
    /// instead.
    fn wait_until_ready(&mut self) -> bool {
        wait_for("the cache forwards a response", || {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                eprintln!("{} exited, {status}:\n{}", self.kind.name, self.log());
                return Some(false);
            }
            drop(TcpStream::connect(self.address).ok()?);
            // Another process may have the port, until this one fails to bind it.
            let mut client = self.send_get("/healthz", "");
            let mut start = [0; 4];
            let length = client.stream().get_ref().peek(&mut start).ok()?;
            if length == 0 || !b"HTTP".starts_with(&start[..length]) {
                return None;
            }
            let response = client.read_response();
            let (field, part) = self.kind.mark;
            let is_marked = response.headers.get(field).is_some_and(|value| value.contains(part));
            (is_marked && response.status == 200).then_some(true)
        })
    }

    /// Connects a client that sends several requests.
    pub fn connect(&self) -> HttpClient {
        HttpClient::connect(self.address)
    }

    /// Sends a request on a connection of this cache, with further field lines.
    pub fn send_on(&self, client: &mut HttpClient, path: &str, fields: &str) {
        client.send(format!("GET {}{path} HTTP/1.1\r\nHost: test\r\n{fields}\r\n", self.origin));
    }

    /// Sends one request on a new connection.
    pub fn get(&self, path: &str) -> Response {
        self.get_with(path, "")
    }

    /// Sends one request with further field lines, each with its line end.
    pub fn get_with(&self, path: &str, fields: &str) -> Response {
        self.send_get(path, fields).read_response()
    }

    fn send_get(&self, path: &str, fields: &str) -> HttpClient {
        let mut client = self.connect();
        self.send_on(&mut client, path, fields);
        client
    }

    fn log(&self) -> String {
        let names = ["output.log", "error.log", "cache.log"];
        names.iter().filter_map(|name| std::fs::read_to_string(self.dir.join(name)).ok()).collect()
    }
}

impl Drop for HttpCache {
    fn drop(&mut self) {
        stop(&mut self.child, self.kind.stop_signal);
        if std::thread::panicking() {
            eprintln!("the log of {}:\n{}", self.kind.name, self.log());
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
