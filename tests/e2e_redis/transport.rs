//! Tests of the ways to reach a real Redis: TLS, Unix socket, URL, and password from a file.

use crate::common::certificates::{Authority, Identity};
use crate::common::freshness::{start_tracking_proxy, wait_until_cached, wait_until_text, wait_until_tracking};
use crate::common::resp::RespClient;
use crate::common::{FREE_PORT, Proxy, Redis, start_fake_redis, start_scripted_redis, wait_for};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Redis with a TLS port beside the plain one, its authority, and a certificate for clients.
struct TlsRedis {
    redis: Redis,
    port: u16,
    authority: Authority,
    client: Identity,
}

impl TlsRedis {
    /// Starts a Redis whose certificate is valid for `names`.
    fn start(names: &str, arguments: &[&str]) -> TlsRedis {
        let authority = Authority::create();
        let server = authority.issue("server", names);
        let client = authority.issue("client", "DNS:client.test");
        let ca = authority.certificate();
        let files = ["--tls-cert-file", &server.certificate, "--tls-key-file", &server.key, "--tls-ca-cert-file", &ca];
        let redis = Redis::start_with(&[&["--tls-port", FREE_PORT][..], &files, arguments].concat());
        let port = redis.port_argument("--tls-port");
        TlsRedis { redis, port, authority, client }
    }

    /// Starts a proxy on the TLS port.
    fn start_proxy(&self, variables: &[(&str, &str)]) -> Proxy {
        let ca = self.authority.certificate();
        let tls = [("REDIS_TLS", "on"), ("REDIS_TLS_CA", ca.as_str())];
        Proxy::start_on_redis_port(self.port, &[&tls[..], variables].concat())
    }

    fn client_variables(&self) -> [(&'static str, &str); 2] {
        [("REDIS_TLS_CERT", &self.client.certificate), ("REDIS_TLS_KEY", &self.client.key)]
    }
}

/// A Redis that requires client certificates is read and tracked over TLS, with the name verified
/// although the connection goes to an address.
#[test]
fn mutual_tls_reads_and_tracks() {
    let server = TlsRedis::start("DNS:redis.test", &[]);
    server.redis.set("a", "1");
    let long = "x".repeat(300_000);
    server.redis.set("long", &long);
    let name = [("REDIS_TLS_NAME", "redis.test"), ("REDIS_TRACKING", "on"), ("CACHE_TTL", "600")];
    let proxy = server.start_proxy(&[&server.client_variables()[..], &name].concat());
    wait_until_tracking(&proxy, 1);
    let mut client = proxy.connect();
    wait_until_cached(&mut client, "/raw/a", "1");
    assert_eq!(client.get("/raw/long").text(), long);
    server.redis.set("a", "2");
    wait_until_text(&mut client, "/raw/a", "2");
    assert!(proxy.log().contains("database 0 with TLS"), "{}", proxy.log());
}

/// An address in the certificate is verified too. A URL selects TLS, user, password and database.
#[test]
fn url_selects_tls_user_and_database() {
    let server = TlsRedis::start("IP:127.0.0.1", &["--tls-auth-clients", "no"]);
    server.redis.run(&["ACL", "SETUSER", "app", "on", ">pass:word/", "~*", "+@all", "&*"]);
    let database = format!("redis://127.0.0.1:{}/3", server.redis.port);
    redis::cmd("SET").arg("a").arg("in 3").exec(&mut server.redis.connect_to(&database)).expect("SET works");
    let url = format!("rediss://app:pass:word%2F@127.0.0.1:{}/3", server.port);
    let ca = server.authority.certificate();
    let proxy = Proxy::start(&server.redis, &[("REDIS_URL", &url), ("REDIS_TLS_CA", &ca), ("RUST_LOG", "trace")]);
    assert_eq!(proxy.get("/raw/a").text(), "in 3");
    let shown = [proxy.log(), proxy.get("/").text(), proxy.get("/stats").text(), proxy.get("/readyz").text()];
    assert!(shown.iter().all(|text| !text.contains("pass:word") && !text.contains("pass%")), "{shown:?}");
    assert!(proxy.get("/stats").text().contains(&format!("rediss://127.0.0.1:{}/3", server.port)));
}

/// TLS 1.2 alone works. Both versions are offered.
#[test]
fn tls_1_2_server_is_read() {
    let server = TlsRedis::start("IP:127.0.0.1", &["--tls-auth-clients", "no", "--tls-protocols", "TLSv1.2"]);
    server.redis.set("a", "1");
    let proxy = server.start_proxy(&[("RUST_LOG", "debug")]);
    assert_eq!(proxy.get("/raw/a").text(), "1");
    proxy.wait_for_log("TLSv1_2");
}

/// A server that cannot be verified, or that does not accept the proxy, is never read. The log
/// names the cause and the variable to set.
#[test]
fn unverified_server_is_refused() {
    let server = TlsRedis::start("DNS:redis.test", &[]);
    server.redis.set("a", "secret");
    let other = Authority::create();
    let (other_ca, identity) = (other.certificate(), other.issue("client", "DNS:client.test"));
    let client = server.client_variables();
    let name = ("REDIS_TLS_NAME", "redis.test");
    let wrong_client = [("REDIS_TLS_CERT", identity.certificate.as_str()), ("REDIS_TLS_KEY", &identity.key)];
    for (variables, expected) in [
        (&[("REDIS_TLS_CA", other_ca.as_str()), name, client[0], client[1]][..], "set REDIS_TLS_CA to the certificate"),
        (&[client[0], client[1]], "or set REDIS_TLS_NAME to one"),
        (&[name], "set REDIS_TLS_CERT and REDIS_TLS_KEY"),
        (&[name, wrong_client[0], wrong_client[1]], "set REDIS_TLS_CERT and REDIS_TLS_KEY"),
    ] {
        let proxy = server.start_proxy(variables);
        proxy.wait_for_log(expected);
        assert_eq!(proxy.get("/raw/a").status, 503, "{variables:?}");
        assert!(RespClient::connect(proxy.address).call_text("GET a").starts_with("-LOADING "));
    }
    // The built-in roots do not include the authority of the test.
    let proxy = Proxy::start_on_redis_port(server.port, &[("REDIS_TLS", "on")]);
    proxy.wait_for_log("UnknownIssuer; set REDIS_TLS_CA to the certificate of the authority that issued it");
    // A plain port answers with something else than TLS, or not at all.
    let proxy = Proxy::start(&server.redis, &[("REDIS_TLS", "on"), ("REDIS_TIMEOUT", "300")]);
    proxy.wait_for_log("the server may not speak TLS at this port");
    assert_ne!(proxy.get("/raw/a").status, 200);
}

/// A server that accepts and stays silent ends in a timeout, in the handshake of TLS too.
#[test]
fn silent_tls_server_times_out() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = silent.local_addr().expect("an address").port();
    let proxy = Proxy::start_on_redis_port(port, &[("REDIS_TLS", "on"), ("REDIS_TIMEOUT", "200")]);
    proxy.wait_for_log("no reply to the TLS handshake within REDIS_TIMEOUT");
    assert_eq!(proxy.get("/raw/a").status, 504);
}

/// After an outage the connections resume their sessions: at most as many handshakes are full as
/// run at the same time.
#[test]
fn reconnecting_resumes_tls_sessions() {
    let server = TlsRedis::start("IP:127.0.0.1", &["--tls-auth-clients", "no"]);
    let variables = [("RUST_LOG", "debug"), ("REDIS_CONNECTIONS", "16"), ("WORKERS", "2"), ("CACHE_TTL", "0.001")];
    let proxy = server.start_proxy(&variables);
    let handshakes = |kind: &str| proxy.log().matches(&format!("TLS handshake with Redis: {kind}")).count();
    let connect_all = |more_than: usize| {
        let mut round = 0;
        wait_for("many fetchers are connected", || {
            round += 1;
            let mut clients: Vec<_> = (0..64).map(|_| proxy.connect()).collect();
            for (number, client) in clients.iter_mut().enumerate() {
                client.send(format!("GET /raw/{round}-{number} HTTP/1.1\r\nHost: test\r\n\r\n"));
            }
            clients.iter_mut().for_each(|client| _ = client.read_response());
            (handshakes("full") + handshakes("resumed") >= more_than).then_some(())
        });
    };
    connect_all(6);
    let full_before = handshakes("full");
    for round in 1..=5 {
        let all = handshakes("full") + handshakes("resumed");
        server.redis.run(&["CLIENT", "KILL", "TYPE", "normal"]);
        connect_all(all + 2 * round.min(2));
    }
    let (full, resumed) = (handshakes("full"), handshakes("resumed"));
    // Sessions are lost with a connection that ends before it has brought new tickets.
    assert!(full - full_before <= resumed, "{full_before} full handshakes before, {full} after, {resumed} resumed");
    assert!(resumed >= 10, "{resumed} resumed");
}

/// A reply that trickles in ends at the timeout, however steadily its bytes arrive.
#[test]
fn trickling_reply_ends_at_timeout() {
    let closed = Arc::new(AtomicUsize::new(0));
    let closed_by_proxy = Arc::clone(&closed);
    let (port, _) = start_fake_redis(move |stream| {
        let mut request = [0; 4096];
        let _ = stream.read(&mut request);
        // Answers the handshake: PING and twice CLIENT SETINFO.
        let _ = stream.write_all(b"+PONG\r\n+OK\r\n+OK\r\n");
        let _ = stream.read(&mut request);
        let _ = stream.write_all(b"$1000000\r\n");
        // A million bytes at this pace take hours.
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
        closed_by_proxy.fetch_add(1, Ordering::Relaxed);
    });
    let proxy = Proxy::start_on_redis_port(port, &[("REDIS_TIMEOUT", "300"), ("REDIS_CONNECTIONS", "1")]);
    assert_eq!(proxy.get("/raw/a").status, 504);
    wait_for("the connection is closed", || (closed.load(Ordering::Relaxed) > 0).then_some(()));
}

/// A real Redis is read and tracked over a Unix socket, with a user and a database.
#[test]
fn unix_socket_reads_and_tracks() {
    let directory = Authority::create();
    let path = directory.path("redis.sock");
    let redis = Redis::start_with(&["--unixsocket", &path, "--requirepass", "word"]);
    let mut admin = redis.connect_to(&format!("redis://:word@127.0.0.1:{}/2", redis.port));
    let mut set = |value: &str| redis::cmd("SET").arg("a").arg(value).exec(&mut admin).expect("SET works");
    set("1");
    let url = format!("unix://:word@{path}?db=2");
    let variables = [("REDIS_URL", url.as_str()), ("REDIS_TRACKING", "on"), ("CACHE_TTL", "600")];
    let proxy = Proxy::start(&redis, &variables);
    wait_until_tracking(&proxy, 1);
    let mut client = proxy.connect();
    wait_until_cached(&mut client, "/raw/a", "1");
    set("2");
    wait_until_text(&mut client, "/raw/a", "2");
    assert!(proxy.log().contains(&format!("connected to Redis at unix:{path}")), "{}", proxy.log());
}

/// Connecting to a Unix socket with a full backlog ends at the timeout. A missing one is refused.
#[test]
fn full_unix_backlog_times_out() {
    let directory = Authority::create();
    let path = directory.path("full.sock");
    let listener = UnixListener::bind(&path).expect("a free path");
    socket2::SockRef::from(&listener).listen(0).expect("the backlog can be lowered");
    let _queued: Vec<_> = std::iter::from_fn(|| {
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).expect("a socket");
        socket.set_nonblocking(true).expect("an option can be set");
        socket.connect(&socket2::SockAddr::unix(&path).expect("a path")).ok().map(|()| socket)
    })
    .collect();
    let url = format!("unix://{path}");
    let proxy = Proxy::start_on_redis_port(1, &[("REDIS_URL", &url), ("REDIS_TIMEOUT", "300")]);
    proxy.wait_for_log("no reply within REDIS_TIMEOUT");
    assert_eq!(proxy.get("/raw/a").status, 504);
    let url = format!("unix://{path}.missing");
    let proxy = Proxy::start_on_redis_port(1, &[("REDIS_URL", &url)]);
    proxy.wait_for_log("No such file or directory");
    assert_eq!(proxy.get("/raw/a").status, 503);
}

/// A password that changes in Redis and in its file is used without a restart, with and without
/// SIGHUP.
#[test]
fn rotated_password_file_needs_no_restart() {
    let directory = Authority::create();
    let path = directory.path("password");
    std::fs::write(&path, "topsecret-1\n").expect("a file");
    let redis = Redis::start_with(&["--requirepass", "topsecret-1"]);
    let connect = |password: &str| redis.connect_to(&format!("redis://:{password}@127.0.0.1:{}", redis.port));
    let run = |connection: &mut redis::Connection, words: &[&str]| {
        redis::cmd(words[0]).arg(&words[1..]).exec(connection).expect("the command works");
    };
    let proxy = Proxy::start(&redis, &[("REDIS_PASSWORD_FILE", &path), ("CACHE_TTL", "0.001")]);
    run(&mut connect("topsecret-1"), &["SET", "a", "1"]);
    assert_eq!(proxy.get("/raw/a").text(), "1");
    // Open connections stay authenticated, so Redis closes them.
    let mut admin = connect("topsecret-1");
    run(&mut admin, &["CONFIG", "SET", "requirepass", "topsecret-2"]);
    std::fs::write(&path, "topsecret-2").expect("a file");
    run(&mut admin, &["CLIENT", "KILL", "TYPE", "normal"]);
    wait_for("the new password is used", || (proxy.get("/raw/a").status == 200).then_some(()));
    proxy.wait_for_log("REDIS_PASSWORD_FILE has a new password");
    // An unreadable file keeps the old password.
    std::fs::remove_file(&path).expect("the file");
    proxy.signal("HUP");
    proxy.wait_for_log("the password read before stays in use");
    run(&mut connect("topsecret-2"), &["CLIENT", "KILL", "TYPE", "normal"]);
    wait_for("the old password is used", || (proxy.get("/raw/a").status == 200).then_some(()));
    let shown = [proxy.log(), proxy.get("/").text(), proxy.get("/stats").text()];
    assert!(shown.iter().all(|text| !text.contains("topsecret")), "{shown:?}");
}

/// A Redis that refuses `HELLO` is tracked over RESP2.
#[test]
fn tracking_falls_back_to_resp2() {
    let redis = Redis::start_with(&["--rename-command", "HELLO", ""]);
    let proxy = start_tracking_proxy(redis.port, &[]);
    let mut client = proxy.connect();
    for value in ["1", "2", "3"] {
        redis.set("a", value);
        wait_until_text(&mut client, "/raw/a", value);
        wait_until_cached(&mut client, "/raw/a", value);
    }
    proxy.wait_for_log("refuses HELLO 3: a primary that becomes a replica is not left");
}

/// An idle tracking connection survives the `timeout` of Redis, and asks for the role meanwhile.
#[test]
fn idle_tracking_survives_redis_timeout() {
    let redis = Redis::start_with(&["--timeout", "1"]);
    let proxy = start_tracking_proxy(redis.port, &[]);
    wait_for("the role was asked for several times", || (redis.count_calls("role") >= 4).then_some(()));
    assert_eq!(proxy.log().matches("at once (tracking active)").count(), 1, "{}", proxy.log());
}

/// Each round trip of a slow network has the timeout of its own, also those of a subscription.
#[test]
fn slow_round_trips_have_timeout_each() {
    let (port, _) = start_scripted_redis(|words| {
        std::thread::sleep(Duration::from_millis(100));
        Some(match words[0].as_str() {
            "PING" => "+PONG\r\n".into(),
            "INFO" => "$10\r\nrun_id:one\r\n".into(),
            "HELLO" => "%1\r\n$6\r\nserver\r\n$5\r\nredis\r\n".into(),
            "ROLE" => "*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n".into(),
            "SUBSCRIBE" => ">3\r\n$9\r\nsubscribe\r\n$20\r\n__redis__:invalidate\r\n:1\r\n".into(),
            _ => "+OK\r\n".into(),
        })
    });
    // The handshake has three commands in one round trip, and a subscription has six round trips.
    start_tracking_proxy(port, &[("REDIS_TIMEOUT", "550"), ("REDIS_CONNECTIONS", "1")]);
}

/// A stop and a continuation of the process interrupt its system calls, and end no connection.
#[test]
fn stopped_proxy_keeps_tracking() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    for _ in 0..3 {
        proxy.freeze();
        proxy.thaw();
        let roles = redis.count_calls("role");
        wait_for("the connection is checked again", || (redis.count_calls("role") >= roles + 2).then_some(()));
    }
    assert_eq!(proxy.log().matches("at once (tracking active)").count(), 1, "{}", proxy.log());
}

/// All threads that meet a changed password at the same time connect again at once.
#[test]
fn rotated_password_fails_no_worker() {
    let directory = Authority::create();
    let path = directory.path("password");
    std::fs::write(&path, "topsecret-1").expect("a file");
    let redis = Redis::start_with(&["--requirepass", "topsecret-1"]);
    let url = |password: &str| format!("redis://:{password}@127.0.0.1:{}", redis.port);
    let variables = [("REDIS_PASSWORD_FILE", path.as_str()), ("WORKERS", "8"), ("REDIS_TRACKING", "on")];
    let proxy = Proxy::start(&redis, &variables);
    wait_until_tracking(&proxy, 8);
    for round in 2..6 {
        let (old, new) = (format!("topsecret-{}", round - 1), format!("topsecret-{round}"));
        let mut admin = redis.connect_to(&url(&old));
        redis::cmd("CONFIG").arg(&["SET", "requirepass", &new]).exec(&mut admin).expect("CONFIG works");
        std::fs::write(&path, &new).expect("a file");
        for kind in ["normal", "pubsub"] {
            redis::cmd("CLIENT").arg(&["KILL", "TYPE", kind]).exec(&mut admin).expect("CLIENT KILL works");
        }
        wait_until_tracking(&proxy, 8 * round);
    }
    assert!(!proxy.log().contains("WRONGPASS"), "{}", proxy.log());
    // Without the file, each attempt of each thread reads it again. The log says so once.
    std::fs::remove_file(&path).expect("the file");
    let mut admin = redis.connect_to(&url("topsecret-5"));
    redis::cmd("CONFIG").arg(&["SET", "requirepass", "other"]).exec(&mut admin).expect("CONFIG works");
    for kind in ["normal", "pubsub"] {
        redis::cmd("CLIENT").arg(&["KILL", "TYPE", kind]).exec(&mut admin).expect("CLIENT KILL works");
    }
    wait_for("many attempts fail", || {
        let info: String = redis::cmd("INFO").arg("errorstats").query(&mut redis.connect_to(&url("other"))).ok()?;
        let line = info.lines().find_map(|line| line.strip_prefix("errorstat_WRONGPASS:count="))?.to_owned();
        (line.parse::<u64>().ok()? > 40).then_some(())
    });
    assert_eq!(proxy.log().matches("the password read before stays in use").count(), 1, "{}", proxy.log());
}

/// The check of a connection and an invalidation may cross. Neither is lost.
#[test]
fn pushes_between_replies_are_followed() {
    let (port, _) = {
        let (is_first, is_subscribed) = (Arc::new(AtomicBool::new(true)), AtomicBool::new(false));
        start_scripted_redis(move |words| {
            Some(match words[0].as_str() {
                "HELLO" => "%1\r\n$6\r\nserver\r\n$5\r\nredis\r\n".into(),
                "SUBSCRIBE" => {
                    is_subscribed.store(true, Ordering::Relaxed);
                    ">3\r\n$9\r\nsubscribe\r\n$20\r\n__redis__:invalidate\r\n:1\r\n".into()
                }
                "INFO" => "$10\r\nrun_id:one\r\n".into(),
                "PING" => "+PONG\r\n".into(),
                "ROLE" if !is_subscribed.load(Ordering::Relaxed) => "*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n".into(),
                // The invalidation arrives before the replies to ROLE and PING.
                "ROLE" => {
                    let invalidation = ">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nA\r\n";
                    format!("{invalidation}*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n")
                }
                "GETRANGE" if is_first.swap(false, Ordering::Relaxed) => "$3\r\nold\r\n".into(),
                "GETRANGE" => "$3\r\nnew\r\n".into(),
                "PTTL" => ":-1\r\n".into(),
                _ => "+OK\r\n".into(),
            })
        })
    };
    let proxy = start_tracking_proxy(port, &[]);
    let mut client = proxy.connect();
    assert_eq!(client.get("/raw/A").text(), "old");
    wait_until_text(&mut client, "/raw/A", "new");
    assert_eq!(proxy.log().matches("at once (tracking active)").count(), 1, "{}", proxy.log());
}
