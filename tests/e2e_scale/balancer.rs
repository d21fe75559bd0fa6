//! Balancers in front of several proxies, each with its file of `deploy/scale`.
//!
//! Only the addresses in a file are replaced.

use crate::common::daemon::{self, command, create_dir, stop};
use crate::common::resp::RespClient;
use crate::common::{HttpClient, Proxy, wait_for};
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// One product with its file.
pub struct Kind {
    /// Name in assertion messages.
    pub name: &'static str,
    pub is_http: bool,
    file: &'static str,
    /// Part of the file with the address to listen on, and the same with `ADDRESS` for it.
    listen: (&'static str, &'static str),
    /// Writes what the file needs beside it, and returns the command that reads it.
    command: fn(dir: &Path, file: &Path) -> Command,
    /// Returns true if the balancer at this address responds.
    is_ready: fn(SocketAddr) -> bool,
}

pub const HAPROXY: Kind = Kind {
    name: "HAProxy",
    is_http: true,
    file: "haproxy.cfg",
    listen: ("bind :8081\n", "bind ADDRESS\n"),
    command: haproxy,
    is_ready: |address| HttpClient::connect(address).get("/readyz").status == 200,
};

pub const NGINX: Kind = Kind {
    name: "nginx",
    is_http: true,
    file: "nginx.conf",
    listen: ("listen 8081;\n", "listen ADDRESS;\n"),
    command: nginx,
    is_ready: |address| HttpClient::connect(address).get("/").header("server").contains("nginx"),
};

pub const TWEMPROXY: Kind = Kind {
    name: "twemproxy",
    is_http: false,
    file: "nutcracker.yml",
    listen: ("listen: 0.0.0.0:22121\n", "listen: ADDRESS\n"),
    command: twemproxy,
    is_ready: |address| {
        let mut client = RespClient::connect(address);
        client.send("*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nQUIT\r\n");
        client.read_to_close().starts_with("+PONG\r\n")
    },
};

fn haproxy(_: &Path, file: &Path) -> Command {
    let mut command = command("haproxy");
    command.args(["-db", "-f"]).arg(file);
    command
}

/// The file belongs into the http context of another one.
fn nginx(dir: &Path, file: &Path) -> Command {
    daemon::nginx(dir, &format!("include {};", file.display()))
}

fn twemproxy(dir: &Path, file: &Path) -> Command {
    let mut command = command("nutcracker");
    let statistics = free_address().port().to_string();
    command.args(["-a", "127.0.0.1", "-s", &statistics]).arg("-c").arg(file);
    command.arg("-o").arg(dir.join("error.log")).arg("-p").arg(dir.join("pid"));
    command
}

/// Returns an address that is free now. Another process may take it.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port")
}

/// Returns a text with all of `old` replaced. The text must contain it.
fn replace(text: &str, old: &str, new: &str) -> String {
    assert!(text.contains(old), "no {old:?} in {text}");
    text.replace(old, new)
}

/// Running balancer. Stopped, and its directory removed, when dropped.
pub struct Balancer {
    pub kind: &'static Kind,
    pub address: SocketAddr,
    child: Child,
    dir: PathBuf,
}

impl Balancer {
    /// Starts a balancer with its file, after `changes` from one text to another, and waits until
    /// it responds.
    pub fn start(kind: &'static Kind, proxies: &[Proxy], changes: &[(&str, &str)]) -> Balancer {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/scale").join(kind.file);
        let mut text = std::fs::read_to_string(path).expect("a file of the repository");
        for (old, new) in changes {
            text = replace(&text, old, new);
        }
        for (number, proxy) in (1..).zip(proxies) {
            text = replace(&text, &format!("proxy{number}:8080"), &proxy.address.to_string());
        }
        // Another process may take the free port first. Each attempt has another port.
        for _ in 0..10 {
            let mut balancer = Balancer::launch(kind, &text);
            if balancer.wait_until_ready() {
                return balancer;
            }
        }
        panic!("{} does not start", kind.name);
    }

    fn launch(kind: &'static Kind, text: &str) -> Balancer {
        let (dir, address) = (create_dir(), free_address());
        let file = dir.join(kind.file);
        let (old, new) = kind.listen;
        let text = replace(text, old, &new.replace("ADDRESS", &address.to_string()));
        std::fs::write(&file, text).expect("a writable directory");
        let log = File::create(dir.join("output.log")).expect("a writable directory");
        let child = (kind.command)(&dir, &file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("scripts/test.sh installs it");
        Balancer { kind, address, child, dir }
    }

    /// Waits until the balancer responds. Returns false if it has exited instead.
    fn wait_until_ready(&mut self) -> bool {
        wait_for("the balancer responds", || {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                eprintln!("{} exited, {status}:\n{}", self.kind.name, self.log());
                return Some(false);
            }
            drop(TcpStream::connect(self.address).ok()?);
            (self.kind.is_ready)(self.address).then_some(true)
        })
    }

    pub fn log(&self) -> String {
        let read = |name| std::fs::read_to_string(self.dir.join(name)).ok();
        ["output.log", "error.log"].into_iter().filter_map(read).collect()
    }

    /// Waits until the log contains `text` more than `count` times.
    pub fn wait_for_log(&self, text: &str, count: usize) {
        wait_for(text, || (self.log().matches(text).count() > count).then_some(()));
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        stop(&mut self.child, "TERM");
        if std::thread::panicking() {
            eprintln!("the log of {}:\n{}", self.kind.name, self.log());
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
