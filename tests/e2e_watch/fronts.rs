//! Servers in front of the proxy, each with its lines of docs/feature-flags.md. Only the addresses
//! and directories in them are replaced.

use crate::common::daemon::{self, command, create_dir, stop};
use crate::common::{HttpClient, Proxy, wait_for};
use crate::document::{PROXY, block, replace};
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// One product.
pub struct Kind {
    /// Name in assertion messages, and language of its block.
    pub name: &'static str,
    /// Part of the block with the address to listen on, and the same with `ADDRESS` for it. `None`
    /// if the address is an argument of the command.
    listen: Option<(&'static str, &'static str)>,
    /// Writes the configuration into the directory and returns the command that reads it.
    command: fn(dir: &Path, lines: &str, address: SocketAddr) -> Command,
    /// Response field that the product adds, if any.
    mark: Option<&'static str>,
}

pub const NGINX: Kind =
    Kind { name: "nginx", listen: Some(("listen 8081;", "listen ADDRESS;")), command: nginx, mark: Some("server") };
pub const HAPROXY: Kind =
    Kind { name: "haproxy", listen: Some(("bind :8081\n", "bind ADDRESS\n")), command: haproxy, mark: None };
pub const VARNISH: Kind = Kind { name: "vcl", listen: None, command: varnish, mark: Some("x-varnish") };

fn nginx(dir: &Path, lines: &str, _: SocketAddr) -> Command {
    daemon::nginx(dir, &format!("proxy_cache_path {}/cache keys_zone=values:1m;\n{lines}", dir.display()))
}

fn haproxy(dir: &Path, lines: &str, _: SocketAddr) -> Command {
    let path = dir.join("haproxy.cfg");
    // Its default of connections follows from the limit on open files.
    std::fs::write(&path, format!("global\n    fd-hard-limit 5000\n{lines}")).expect("a writable directory");
    let mut command = command("haproxy");
    command.args(["-db", "-f"]).arg(path);
    command
}

fn varnish(dir: &Path, lines: &str, address: SocketAddr) -> Command {
    let path = dir.join("default.vcl");
    std::fs::write(&path, lines).expect("a writable directory");
    let mut command = command("varnishd");
    command.args(["-F", "-j", "none", "-n"]).arg(dir.join("varnish"));
    command.args(["-a", &address.to_string(), "-f"]).arg(path);
    command
}

/// Returns the block of a product, with the addresses and the directory of a test.
fn configuration(kind: &Kind, proxy: &Proxy, address: SocketAddr, dir: &Path, changes: &[(&str, &str)]) -> String {
    let mut lines = block(kind.name).to_owned();
    for (old, new) in changes {
        lines = replace(&lines, old, new);
    }
    let Some((old, new)) = kind.listen else {
        return replace(&lines, ".port = \"8080\"", &format!(".port = \"{}\"", proxy.address.port()));
    };
    lines = replace(&lines, old, &new.replace("ADDRESS", &address.to_string()));
    replace(&lines, PROXY, &proxy.address.to_string()).replace("/var/www/html", &dir.display().to_string())
}

/// Running server. Stopped, and its directory removed, when dropped.
pub struct Front {
    kind: &'static Kind,
    pub address: SocketAddr,
    child: Child,
    pub dir: PathBuf,
}

impl Front {
    /// Starts a server with its block, after `changes` from one text to another, and waits until it
    /// forwards a response.
    pub fn start(kind: &'static Kind, proxy: &Proxy, changes: &[(&str, &str)]) -> Front {
        // Another process may take the free port first. Each attempt has another port.
        for _ in 0..10 {
            let mut front = Front::launch(kind, proxy, changes);
            if front.wait_until_ready() {
                return front;
            }
        }
        panic!("{} does not start", kind.name);
    }

    fn launch(kind: &'static Kind, proxy: &Proxy, changes: &[(&str, &str)]) -> Front {
        let dir = create_dir();
        let address = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
        let lines = configuration(kind, proxy, address, &dir, changes);
        let log = File::create(dir.join("output.log")).expect("a writable directory");
        let child = (kind.command)(&dir, &lines, address)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("scripts/test.sh installs it");
        Front { kind, address, child, dir }
    }

    /// Waits until the server forwards a response. Returns false if it has exited instead.
    fn wait_until_ready(&mut self) -> bool {
        wait_for("the server forwards a response", || {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                eprintln!("{} exited, {status}:\n{}", self.kind.name, self.log());
                return Some(false);
            }
            drop(TcpStream::connect(self.address).ok()?);
            let response = HttpClient::connect(self.address).get("/key/flag:ready");
            let is_marked = self.kind.mark.is_none_or(|field| response.headers.contains_key(field));
            (is_marked && response.status == 404).then_some(true)
        })
    }

    pub fn connect(&self) -> HttpClient {
        HttpClient::connect(self.address)
    }

    pub fn log(&self) -> String {
        let names = ["output.log", "error.log"];
        names.iter().filter_map(|name| std::fs::read_to_string(self.dir.join(name)).ok()).collect()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        stop(&mut self.child, "TERM");
        if std::thread::panicking() {
            eprintln!("the log of {}:\n{}", self.kind.name, self.log());
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
