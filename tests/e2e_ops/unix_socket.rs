//! Tests of `PROXY_SOCKET`: clients, the file, shutdown and restart.

use crate::common::resp::encode_words;
use crate::common::unix::{SocketDirectory, UnixClient};
use crate::common::{Proxy, Redis, wait_for};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Returns the standard output of a program that must succeed.
fn output_of(program: &str, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = Command::new(program).args(arguments).output().expect("it is installed");
    assert!(status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).expect("text")
}

/// Runs the binary with `PROXY_SOCKET`, to the end. Returns the exit code and all output.
fn run(argument: Option<&str>, path: &str, variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"))
        .args(argument)
        .env_clear()
        .envs([("PROXY_PORT", "off"), ("PROXY_SOCKET", path), ("REDIS_HOST", "127.0.0.1")])
        .envs(variables.iter().copied())
        .output()
        .expect("the binary runs");
    (status.code(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

/// curl and redis-cli read keys through the socket of two workers, without any port.
#[test]
fn curl_and_redis_cli_use_socket() {
    let (redis, directory) = (Redis::start(), SocketDirectory::new("clients"));
    redis.set("a", "1");
    redis.set("long", "x".repeat(3_000_000));
    let (path, log) = (directory.path_of("proxy.sock"), directory.path_of("log"));
    let variables = [("PROXY_PORT", "off"), ("PROXY_SOCKET", path.as_str()), ("WORKERS", "2"), ("ACCESS_LOG", "on")];
    let mut command = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"));
    command.stdout(fs::File::create(&log).expect("a file"));
    let proxy = Proxy::start_command(command, redis.port, &variables);
    let metadata = fs::symlink_metadata(&path).expect("a file");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    for _ in 0..5 {
        assert_eq!(output_of("curl", &["-sS", "--unix-socket", &path, "http://localhost/raw/a"]), "1");
        assert_eq!(output_of("redis-cli", &["-s", &path, "MGET", "a", "a"]), "1\n1\n");
        let long = output_of("curl", &["-sS", "--unix-socket", &path, "http://localhost/raw/long"]);
        assert_eq!(long.len(), 3_000_000);
    }
    let info = output_of("redis-cli", &["-s", &path, "INFO", "server"]);
    assert!(info.contains("tcp_port:0"), "{info}");
    let events = proxy.log();
    assert_eq!(proxy.stop("TERM"), Some(0));
    let start = format!("listening on the Unix socket {path}, Redis at ");
    assert!(events.contains(&start) && !events.contains("not authenticated"), "{events}");
    let log = fs::read_to_string(&log).expect("a log");
    assert!(log.lines().any(|line| line.starts_with("unix ") && line.contains("/raw/a")), "{log}");
    assert_eq!(directory.names(), ["log"], "the file is left");
}

/// The permissions are those of `PROXY_SOCKET_MODE`, whatever the umask is.
#[test]
fn socket_mode_ignores_umask() {
    let (redis, directory) = (Redis::start(), SocketDirectory::new("mode"));
    let path = directory.path_of("proxy.sock");
    for (umask, mode) in [("077", 0o666), ("000", 0o600)] {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("umask {umask}; exec \"$0\""), env!("CARGO_BIN_EXE_segment-redis-proxy")]);
        let mode_text = format!("{mode:o}");
        let variables = [("PROXY_SOCKET", path.as_str()), ("PROXY_SOCKET_MODE", &mode_text)];
        let proxy = Proxy::start_command(command, redis.port, &variables);
        assert_eq!(fs::symlink_metadata(&path).expect("a file").permissions().mode() & 0o777, mode);
        assert_eq!(proxy.stop("TERM"), Some(0));
    }
}

/// A socket that a killed proxy left is replaced by a start, and left alone by `check`.
#[test]
fn stale_socket_is_replaced() {
    let (redis, directory) = (Redis::start(), SocketDirectory::new("stale"));
    let path = directory.path_of("proxy.sock");
    let first = Proxy::start(&redis, &[("PROXY_SOCKET", &path)]);
    drop(first);
    assert_eq!(directory.names(), ["proxy.sock"], "SIGKILL leaves the file");
    let (code, output) = run(Some("check"), &path, &[("REDIS_PORT", &redis.port.to_string())]);
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains(&format!("ok       PROXY_SOCKET: {path} can be created")), "{output}");
    assert_eq!(directory.names(), ["proxy.sock"], "the check removes it");
    let second = Proxy::start(&redis, &[("PROXY_SOCKET", &path)]);
    assert_eq!(UnixClient::connect(&path).get("/healthz").0, 200);
    assert_eq!(second.stop("TERM"), Some(0));
    assert_eq!(directory.names(), [""; 0]);
}

/// The proxy replaces neither a socket in use nor anything else, and says what to do. `check`
/// reports the same.
#[test]
fn occupied_path_is_refused() {
    let (redis, directory) = (Redis::start(), SocketDirectory::new("occupied"));
    let [live, datagram, file, link, folder] =
        ["live", "datagram", "file", "link", "folder"].map(|name| directory.path_of(name));
    let listener = UnixListener::bind(&live).expect("a free path");
    let _datagram = UnixDatagram::bind(&datagram).expect("a free path");
    fs::write(&file, "text").expect("a file");
    std::os::unix::fs::symlink(&live, &link).expect("a link");
    fs::create_dir(&folder).expect("a directory");
    let missing = directory.path_of("none/proxy.sock");
    let before = directory.names();
    let port = redis.port.to_string();
    let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/troubleshooting.md")).expect("a file");
    for (path, checked, text) in [
        (&live, 0, "another process listens there"),
        (&datagram, 1, "a socket of another type is there"),
        (&file, 1, "a file is there, which the proxy does not replace"),
        (&link, 1, "a symbolic link is there"),
        (&folder, 1, "a directory is there"),
        (&missing, 1, "its directory does not exist; create it"),
    ] {
        let (code, output) = run(None, path, &[]);
        assert_eq!(code, Some(1), "{output}");
        assert!(output.contains(&format!("cannot listen on PROXY_SOCKET={path}: {text}")), "{output}");
        let (code, output) = run(Some("check"), path, &[("REDIS_PORT", &port)]);
        assert_eq!(code, Some(checked), "{output}");
        let text = if checked == 0 { "is in use: a proxy runs already" } else { text };
        assert!(output.contains(text), "{output}");
        let words = text.trim_start_matches("a symbolic link").trim_start_matches("a directory");
        assert!(document.contains(words), "docs/troubleshooting.md does not quote {words:?}");
    }
    assert_eq!(directory.names(), before);
    assert!(UnixStream::connect(&live).is_ok());
    drop(listener);
    let free = directory.path_of("free");
    let (code, output) = run(Some("check"), &free, &[("REDIS_PORT", &port)]);
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains(&format!("ok       PROXY_SOCKET: {free} can be created")), "{output}");
    assert_eq!(directory.names(), before, "the check leaves a file");
}

/// Clients in the accept queue at the signal are answered, later ones get an error at once.
#[test]
fn shutdown_drains_and_removes_socket() {
    let (redis, directory) = (Redis::start(), SocketDirectory::new("drain"));
    redis.set("a", "value");
    let path = directory.path_of("proxy.sock");
    let proxy = Proxy::start(&redis, &[("PROXY_SOCKET", &path), ("WORKERS", "2"), ("CACHE_TTL", "600")]);
    assert_eq!(UnixClient::connect(&path).get("/raw/a").1, "value");
    proxy.freeze();
    let mut clients: Vec<UnixClient> = (0..300).map(|_| UnixClient::connect(&path)).collect();
    clients.iter_mut().for_each(|client| client.send("GET /raw/a HTTP/1.1\r\nHost: x\r\n\r\n"));
    proxy.signal("TERM");
    proxy.thaw();
    for client in &mut clients {
        assert_eq!(client.read_response().expect("a response").1, "value");
        assert_eq!(client.read_to_close(), "");
    }
    let error = wait_for("the socket is gone", || UnixStream::connect(&path).err());
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    assert_eq!(proxy.wait_for_exit(), Some(0));
    assert_eq!(directory.names(), [""; 0]);
}

/// With `SHARE_PORT` a new proxy takes the socket over: no client meets an error, and the earlier
/// proxy leaves the new file alone.
#[test]
fn restart_with_share_port_loses_nothing() {
    let (redis, directory) = (Redis::start(), SocketDirectory::new("restart"));
    redis.set("a", "value");
    let path = directory.path_of("proxy.sock");
    let start = || Proxy::start(&redis, &[("PROXY_SOCKET", &path), ("SHARE_PORT", "on"), ("WORKERS", "2")]);
    let mut proxy = start();
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let client = {
        let (path, stop, answered) = (path.clone(), Arc::clone(&stop), Arc::clone(&answered));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let mut client = UnixClient::new(UnixStream::connect(&path).expect("a proxy listens"));
                client.send("GET /raw/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
                assert_eq!(client.read_response().expect("a response").1, "value");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let inode = || fs::symlink_metadata(&path).expect("the file is there").ino();
    for _ in 0..3 {
        let before = (inode(), answered.load(Ordering::Relaxed));
        let old = std::mem::replace(&mut proxy, start());
        assert!(proxy.log().contains("took PROXY_SOCKET="), "{}", proxy.log());
        assert_eq!(old.stop("TERM"), Some(0));
        assert_ne!(inode(), before.0);
        wait_for("further clients are answered", || {
            (answered.load(Ordering::Relaxed) > before.1 + 1000 || client.is_finished()).then_some(())
        });
    }
    stop.store(true, Ordering::Relaxed);
    client.join().expect("no client met an error");
    assert_eq!(proxy.stop("TERM"), Some(0));
    assert_eq!(directory.names(), [""; 0]);
}

/// The connection limit counts clients of the socket, and an idle one is closed in time.
#[test]
fn limits_apply_to_socket_clients() {
    let (redis, directory) = (Redis::start(), SocketDirectory::new("limits"));
    redis.set("a", "1");
    let path = directory.path_of("proxy.sock");
    let variables = [("PROXY_SOCKET", path.as_str()), ("MAX_CONNECTIONS", "1"), ("CLIENT_IDLE_TIMEOUT", "1")];
    let proxy = Proxy::start(&redis, &variables);
    let mut client = UnixClient::connect(&path);
    assert_eq!(client.get("/raw/a").0, 200);
    let mut excess = UnixClient::connect(&path);
    excess.send(encode_words("GET a"));
    assert_eq!(excess.read_to_close(), "-ERR max number of clients reached\r\n");
    assert_eq!(client.read_to_close(), "", "an idle client");
    wait_for("the place is free", || (proxy.get("/raw/a").status == 200).then_some(()));
}
