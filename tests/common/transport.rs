//! Transport between proxy and Redis in the tests of the connections to Redis.
//!
//! `REDIS_TRANSPORT` selects it: `tcp` (default), `tls` or `unix`. The tests are the same in all
//! three. For the other two a front accepts the proxy's connections and forwards them to the TCP
//! port of the test, whatever serves there: Redis, a relay, or a scripted server.

use super::certificates::Authority;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// Name in the certificate of the front.
const NAME: &str = "redis.test";

/// Returns the value of `REDIS_TRANSPORT`.
fn selected() -> &'static str {
    static SELECTED: OnceLock<String> = OnceLock::new();
    SELECTED.get_or_init(|| std::env::var("REDIS_TRANSPORT").unwrap_or_else(|_| "tcp".into()))
}

/// Returns true if proxy and Redis communicate over plain TCP. Some texts of the log depend on it.
pub fn is_tcp() -> bool {
    selected() == "tcp"
}

/// Sets the environment variables that lead a proxy to the server at `port`, and `others`.
///
/// Over TLS the front has the same port for all addresses of this machine, and connects to the
/// address that the proxy connected to. A test that names a host, or the transport, gets its own.
pub fn configure(command: &mut Command, port: u16, others: &[(&str, &str)]) {
    let find = |name: &str| others.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
    let transport = match selected() {
        _ if find("REDIS_URL").is_some() => vec![],
        "tls" if find("REDIS_TLS").is_none() => vec![
            ("REDIS_HOST", "127.0.0.1".into()),
            ("REDIS_PORT", start_tls_front(port).to_string()),
            ("REDIS_TLS", "on".into()),
            ("REDIS_TLS_CA", Authority::shared().certificate()),
            ("REDIS_TLS_NAME", NAME.into()),
        ],
        "unix" if find("REDIS_HOST").is_none() && find("REDIS_TLS").is_none() => {
            let database = find("REDIS_DB").unwrap_or("0");
            command.envs(others.iter().copied());
            command.env("REDIS_URL", format!("unix://{}?db={database}", start_unix_front(port)));
            command.env_remove("REDIS_DB");
            return;
        }
        _ => vec![("REDIS_HOST", "127.0.0.1".into()), ("REDIS_PORT", port.to_string())],
    };
    command.envs(transport).envs(others.iter().copied());
}

/// Starts a front with TLS. Returns its port.
fn start_tls_front(port: u16) -> u16 {
    static CONFIG: OnceLock<Arc<ServerConfig>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let identity = Authority::shared().issue("front", &format!("DNS:{NAME}"));
        let chain = CertificateDer::pem_file_iter(identity.certificate).expect("a file").map(|one| one.expect("PEM"));
        let key = PrivateKeyDer::from_pem_file(identity.key).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.expect("versions").with_no_client_auth();
        Arc::new(builder.with_single_cert(chain.collect(), key).expect("a key that matches"))
    });
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a free port");
    let front_port = listener.local_addr().expect("an address").port();
    let config = Arc::clone(config);
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let address = SocketAddr::new(client.local_addr().expect("an address").ip(), port);
            let config = Arc::clone(&config);
            std::thread::spawn(move || {
                let mut tls = ServerConnection::new(config).expect("a valid configuration");
                let mut stream = &client;
                // A server that sends at once, and closes, must not end the handshake.
                while tls.is_handshaking() {
                    if tls.complete_io(&mut stream).is_err() {
                        return;
                    }
                }
                match TcpStream::connect_timeout(&address, Duration::from_secs(60)) {
                    Ok(server) => forward_tls(client, server, tls),
                    // A closed port resets a client too.
                    Err(_) => drop(SockRef::from(&client).set_linger(Some(Duration::ZERO))),
                }
            });
        }
    });
    front_port
}

/// Decrypts what the client sends, and encrypts what the server sends.
fn forward_tls(client: TcpStream, server: TcpStream, tls: ServerConnection) {
    let tls = Arc::new(Mutex::new(tls));
    let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
    server.set_nodelay(true).expect("an option can be set");
    client.set_nodelay(true).expect("an option can be set");
    let (writer_tls, mut to_client, mut from_server) = (Arc::clone(&tls), clone(&client), clone(&server));
    let (mut from_client, mut to_server) = (client, server);
    let mut answers = clone(&from_client);
    std::thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(length @ 1..) = from_server.read(&mut buffer) {
            let mut tls = writer_tls.lock().expect("no panic");
            tls.writer().write_all(&buffer[..length]).expect("space for a record");
            if flush(&mut tls, &mut to_client).is_err() {
                break;
            }
        }
        let mut tls = writer_tls.lock().expect("no panic");
        tls.send_close_notify();
        let _ = flush(&mut tls, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Write);
    });
    let (mut buffer, mut length) = ([0; 16 * 1024], 0);
    // The handshake may have read the first commands already.
    'client: loop {
        let mut records = &buffer[..length];
        loop {
            let mut tls = tls.lock().expect("no panic");
            if !records.is_empty() {
                tls.read_tls(&mut records).expect("memory cannot fail");
            }
            let result = tls.process_new_packets();
            let mut plaintext = Vec::new();
            // "Would block" at the end of the present plaintext.
            let _ = tls.reader().read_to_end(&mut plaintext);
            let is_sent = flush(&mut tls, &mut answers).is_ok();
            drop(tls);
            if result.is_err() || !is_sent || to_server.write_all(&plaintext).is_err() {
                break 'client;
            }
            if records.is_empty() {
                break;
            }
        }
        match from_client.read(&mut buffer) {
            Ok(read @ 1..) => length = read,
            _ => break,
        }
    }
    let _ = to_server.shutdown(Shutdown::Both);
}

/// Sends the records that are ready.
fn flush(tls: &mut ServerConnection, client: &mut TcpStream) -> std::io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(client)?;
    }
    Ok(())
}

/// Starts a front with a Unix socket. Returns its path.
fn start_unix_front(port: u16) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let path = Authority::shared().path(&format!("{}.sock", COUNT.fetch_add(1, Ordering::Relaxed)));
    let listener = UnixListener::bind(&path).expect("a path that is free");
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { continue };
            server.set_nodelay(true).expect("an option can be set");
            forward_plain(client, server);
        }
    });
    path
}

fn forward_plain(client: UnixStream, server: TcpStream) {
    let (mut from_client, mut to_client) = (client.try_clone().expect("a descriptor"), client);
    let (mut from_server, mut to_server) = (server.try_clone().expect("a descriptor"), server);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Both);
    });
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Write);
    });
}
