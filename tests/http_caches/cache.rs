//! The HTTP caches that the tests put in front of the proxy. Each runs at its defaults, apart from
//! what no test can do without: its address, its backend, a folder for all that it writes, and
//! staying in the foreground.

use crate::common::{HttpClient, Proxy, Response, TEST_TIMEOUT, wait_for};
use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// One product in one role, and how to run it.
pub struct Kind {
    /// Name in the messages of a test that fails.
    pub name: &'static str,
    /// Response field that this product adds, and a part of its value.
    mark: (&'static str, &'static str),
    /// Writes the configuration into the folder and returns the command that reads it.
    command: fn(folder: &Path, port: u16, proxy: SocketAddr) -> Command,
    /// Signal that ends the command and all processes that it started.
    stop: &'static str,
    /// Requests name the whole URL, as those to a forward proxy do.
    pub has_absolute_targets: bool,
    /// Counts in whole seconds and serves a response through the second in which its lifetime ends.
    /// nginx compares `valid_sec < now`, both without their fractions.
    pub keeps_last_second: bool,
}

/// Every cache that the tests are run with.
pub const KINDS: [Kind; 4] = [
    Kind {
        name: "Varnish",
        mark: ("x-varnish", ""),
        command: varnish,
        stop: "TERM",
        has_absolute_targets: false,
        keeps_last_second: false,
    },
    Kind {
        name: "nginx",
        mark: ("server", "nginx"),
        command: nginx,
        stop: "TERM",
        has_absolute_targets: false,
        keeps_last_second: true,
    },
    Kind {
        name: "Squid, accelerator",
        mark: ("via", "squid"),
        command: squid_accelerator,
        // TERM has it wait half a minute for its clients. KILL leaves its shared memory behind.
        stop: "INT",
        has_absolute_targets: false,
        keeps_last_second: false,
    },
    Kind {
        name: "Squid, forward proxy",
        mark: ("via", "squid"),
        command: squid_forward_proxy,
        stop: "INT",
        has_absolute_targets: true,
        keeps_last_second: false,
    },
];

/// Returns a command with the directories of daemons in its PATH, which not every user has.
fn command(program: &str) -> Command {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(OsString::from(":/usr/sbin:/sbin"));
    let mut command = Command::new(program);
    command.env("PATH", path);
    command
}

/// Varnish compiles its built-in VCL with the C compiler that its package depends on. `-j none`: it
/// stays the user that started it.
fn varnish(folder: &Path, port: u16, proxy: SocketAddr) -> Command {
    let mut command = command("varnishd");
    command.args(["-F", "-j", "none", "-n"]).arg(folder.join("varnish"));
    command.args(["-a", &format!("127.0.0.1:{port}"), "-b", &proxy.to_string()]);
    command
}

fn nginx(folder: &Path, port: u16, proxy: SocketAddr) -> Command {
    let (path, log) = (folder.join("nginx.conf"), folder.join("error.log"));
    let names = ["client_body", "fastcgi", "uwsgi", "scgi", "proxy"];
    let temporary = names.map(|name| format!("{name}_temp_path {}/{name};", folder.display())).join("\n");
    let text = format!(
        "daemon off;
        pid {folder}/pid;
        error_log {log};
        events {{}}
        http {{
            access_log off;
            {temporary}
            proxy_cache_path {folder}/cache keys_zone=values:1m;
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    proxy_pass http://{proxy};
                    proxy_cache values;
                }}
            }}
        }}",
        folder = folder.display(),
        log = log.display(),
    );
    std::fs::write(&path, text).expect("the folder takes files");
    let mut command = command("nginx");
    // -e: it opens a log before it has read which one.
    command.arg("-p").arg(folder).arg("-e").arg(log).arg("-c").arg(path);
    command
}

fn squid_accelerator(folder: &Path, port: u16, proxy: SocketAddr) -> Command {
    let (host, backend) = (proxy.ip(), proxy.port());
    let role = format!(
        "http_port 127.0.0.1:{port} accel defaultsite=localhost
        cache_peer {host} parent {backend} 0 no-query originserver"
    );
    squid(folder, &role)
}

fn squid_forward_proxy(folder: &Path, port: u16, _: SocketAddr) -> Command {
    squid(folder, &format!("http_port 127.0.0.1:{port}"))
}

/// Squid started by root becomes another user. Nothing of it may stay outside the folder, or
/// outlive it: a pinger would.
fn squid(folder: &Path, role: &str) -> Command {
    let text = format!(
        "{role}
        http_access allow all
        visible_hostname localhost
        pinger_enable off
        netdb_filename none
        access_log none
        cache_log {folder}/cache.log
        pid_filename {folder}/pid\n",
        folder = folder.display(),
    );
    // A directive that begins with a space continues the line before.
    let text = text.lines().map(|line| format!("{}\n", line.trim_start())).collect::<String>();
    // Its shared memory has this name, for which Squid takes letters and digits alone. All that have
    // one name, of any user, would share that memory.
    let service: String = folder.to_string_lossy().chars().filter(char::is_ascii_alphanumeric).collect();
    let path = folder.join("squid.conf");
    std::fs::write(&path, text).expect("the folder takes files");
    let mut command = command("squid");
    command.args(["-N", "-n", &service]).arg("-f").arg(path).current_dir(folder);
    command
}

/// A running cache. It ends, and its folder is removed, when this is dropped.
pub struct HttpCache {
    pub kind: &'static Kind,
    child: Child,
    folder: PathBuf,
    address: SocketAddr,
    /// Prefix of each path in a request.
    origin: String,
}

impl HttpCache {
    /// Starts it in front of the proxy and waits until it passes a response on.
    pub fn start(kind: &'static Kind, proxy: &Proxy) -> HttpCache {
        // Another process may take the free port first. The next attempt has another one.
        for _ in 0..10 {
            let mut cache = HttpCache::launch(kind, proxy);
            if cache.is_ready() {
                return cache;
            }
        }
        panic!("{} does not start", kind.name);
    }

    fn launch(kind: &'static Kind, proxy: &Proxy) -> HttpCache {
        let folder = new_folder();
        let address = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
        let log = File::create(folder.join("output.log")).expect("the folder takes files");
        let child = (kind.command)(&folder, address.port(), proxy.address)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("scripts/test.sh installs it");
        let origin = if kind.has_absolute_targets { format!("http://{}", proxy.address) } else { String::new() };
        HttpCache { kind, child, folder, address, origin }
    }

    /// Waits until it answers. Returns true once it passes a response of the proxy on, and false if
    /// it has ended instead.
    fn is_ready(&mut self) -> bool {
        wait_for("the cache passes a response on", || {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                eprintln!("{} ended, {status}:\n{}", self.kind.name, self.log());
                return Some(false);
            }
            drop(TcpStream::connect(self.address).ok()?);
            let response = self.get("/healthz");
            let (field, part) = self.kind.mark;
            let is_marked = response.headers.get(field).is_some_and(|value| value.contains(part));
            (is_marked && response.status == 200).then_some(true)
        })
    }

    /// Sends one request on a connection of its own.
    pub fn get(&self, path: &str) -> Response {
        self.get_with(path, "")
    }

    /// Reads `path` with further field lines, each with its end.
    pub fn get_with(&self, path: &str, fields: &str) -> Response {
        let mut client = HttpClient::connect(self.address);
        client.send(format!("GET {}{path} HTTP/1.1\r\nHost: test\r\n{fields}\r\n", self.origin));
        client.read_response()
    }

    fn log(&self) -> String {
        let names = ["output.log", "error.log", "cache.log"];
        names.iter().filter_map(|name| std::fs::read_to_string(self.folder.join(name)).ok()).collect()
    }
}

impl Drop for HttpCache {
    fn drop(&mut self) {
        let kill = format!("kill -{} {}", self.kind.stop, self.child.id());
        // It may have ended by itself.
        let _ = Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status();
        let deadline = Instant::now() + TEST_TIMEOUT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the log of {}:\n{}", self.kind.name, self.log());
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Makes a folder that any user may write to. nginx and Squid, started by root, become another
/// user. That user may not be allowed to enter the folder of the build.
fn new_folder() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("segment-http-cache-{}-{number}", std::process::id()));
    std::fs::create_dir(&folder).expect("the name is new");
    std::fs::set_permissions(&folder, Permissions::from_mode(0o777)).expect("the folder is ours");
    folder
}
