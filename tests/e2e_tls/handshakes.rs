//! Tests of handshakes: versions, protocols, resumption, client certificates, slow clients, floods.

use crate::certificates::{Certificates, TlsClient};
use crate::common::{Proxy, Redis, TEST_TIMEOUT, wait_for};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

/// TLS 1.2 and 1.3 are served. Older versions and weak ciphers are refused by an alert.
#[test]
fn old_versions_are_refused() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    let proxy = certificates.start_proxy(redis.port, &[]);
    for (option, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let text = certificates.s_client(&proxy, "Q\n", &[option]);
        assert!(text.contains(&format!("New, {version}, Cipher is")) && text.contains("Verification: OK"), "{text}");
    }
    for option in ["-tls1", "-tls1_1"] {
        let text = certificates.s_client(&proxy, "Q\n", &[option, "-cipher", "ALL:@SECLEVEL=0"]);
        assert!(text.contains("alert ") && text.contains("Cipher is (NONE)"), "{option}: {text}");
    }
    // Without forward secrecy, with CBC, or without encryption.
    for cipher in ["AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-AES256-SHA", "eNULL"] {
        let text = certificates.s_client(&proxy, "Q\n", &["-tls1_2", "-cipher", &format!("{cipher}:@SECLEVEL=0")]);
        assert!(text.contains("alert handshake failure"), "{cipher}: {text}");
    }
    certificates.wait_for_metric(&proxy, "segment_tls_handshakes_total{result=\"failed\"} 6");
}

/// `http/1.1` is negotiated. A client that offers only others is refused, one without ALPN is not.
#[test]
fn other_protocols_are_refused() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    let proxy = certificates.start_proxy(redis.port, &[]);
    for (offer, expected) in [
        (&["-alpn", "h2,http/1.1"][..], "ALPN protocol: http/1.1"),
        (&[], "No ALPN negotiated"),
        (&["-alpn", "h2"], "alert no application protocol"),
    ] {
        let text = certificates.s_client(&proxy, "Q\n", offer);
        assert!(text.contains(expected), "{offer:?}: {text}");
    }
}

/// A client resumes its session on a new connection, with any worker.
#[test]
fn sessions_are_resumed() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    let proxy = certificates.start_proxy(redis.port, &[("WORKERS", "2")]);
    for (number, version) in ["-tls1_2", "-tls1_3"].into_iter().enumerate() {
        let session = certificates.path(&format!("session{number}"));
        let request = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let first = certificates.s_client(&proxy, request, &[version, "-ign_eof", "-sess_out", &session]);
        assert!(first.contains("New, ") && first.contains("\"status\":\"ok\""), "{first}");
        for _ in 0..4 {
            let second = certificates.s_client(&proxy, request, &[version, "-ign_eof", "-sess_in", &session]);
            assert!(second.contains("Reused, ") && second.contains("\"status\":\"ok\""), "{second}");
        }
    }
    certificates.wait_for_metric(&proxy, "segment_tls_handshakes_total{result=\"resumed\"} 8");
}

/// A client that asks for a renegotiation in TLS 1.2 does not get one.
#[test]
fn renegotiation_is_refused() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    let proxy = certificates.start_proxy(redis.port, &[]);
    let text = certificates.s_client(&proxy, "R\n", &["-tls1_2"]);
    assert!(text.contains("RENEGOTIATING") && text.contains("no renegotiation"), "{text}");
}

/// With `TLS_CLIENT_CA` only clients with a certificate of that authority are served.
#[test]
fn client_certificates_are_required() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    redis.set("a", "value");
    certificates.make_authority("other-ca");
    certificates.issue("client", "ca");
    certificates.issue("stranger", "other-ca");
    let proxy = certificates.start_proxy(redis.port, &[("TLS_CLIENT_CA", &certificates.path("ca.pem"))]);
    let url = format!("https://localhost:{}/raw/a", proxy.address.port());
    let path = |name: &str| certificates.path(name);
    for version in ["1.2", "1.3"] {
        let curl = |arguments: &[&str]| certificates.curl(&[&["--tls-max", version, &url], arguments].concat());
        let known = curl(&["--cert", &path("client.pem"), "--key", &path("client-key.pem")]);
        assert_eq!(known, "value", "TLS {version}");
        let without = curl(&[]);
        assert!(without.starts_with("curl: (") && !without.contains("value"), "TLS {version}: {without}");
        let stranger = curl(&["--cert", &path("stranger.pem"), "--key", &path("stranger-key.pem")]);
        assert!(stranger.starts_with("curl: (") && !stranger.contains("value"), "TLS {version}: {stranger}");
    }
    // The other two lines about failures are suppressed or follow later.
    let expected = "TLS with the client 127.0.0.1 failed: peer sent no certificates; TLS_CLIENT_CA requires";
    wait_for(expected, || proxy.log().contains(expected).then_some(()));
    assert_eq!(proxy.get("/healthz").status, 200);
    // A client with a certificate can resume its session.
    let (chain, key) = (vec![certificates.read("client.pem")], certificates.read_key("client-key.pem"));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificates.read("ca.pem")).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.expect("versions").with_root_certificates(roots);
    let config = Arc::new(builder.with_client_auth_cert(chain, key).expect("a matching key"));
    for kind in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
        let mut client = TlsClient::connect(proxy.address, Arc::clone(&config));
        assert_eq!(client.get_text("/raw/a"), "value");
        assert_eq!(client.stream.conn.handshake_kind(), Some(kind));
    }
}

/// The log says why a client gave up, and what to do.
#[test]
fn untrusted_certificate_is_logged() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    certificates.make_authority("other-ca");
    let proxy = certificates.start_proxy(redis.port, &[]);
    let url = format!("https://localhost:{}/healthz", proxy.address.port());
    let text = certificates.curl(&["--cacert", &certificates.path("other-ca.pem"), &url]);
    assert!(text.starts_with("curl: (60)"), "{text}");
    let expected =
        "TLS with the client 127.0.0.1 failed: received fatal alert: UnknownCA; give the client the authority";
    wait_for(expected, || proxy.log().contains(expected).then_some(()));
    assert!(proxy.log().contains("TLS for clients is on; plain connections are refused"), "{}", proxy.log());
    certificates.wait_for_metric(&proxy, "segment_tls_handshakes_total{result=\"failed\"} 1");
}

/// Returns the first flight of a client.
fn client_hello(certificates: &Certificates) -> Vec<u8> {
    let name = ServerName::try_from("localhost").expect("a name");
    let mut client = ClientConnection::new(certificates.client_config(), name).expect("a client");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("memory");
    hello
}

/// A client that trickles its handshake is closed at the deadline of a silent one. So is one that
/// does not reply.
#[test]
fn trickled_handshake_times_out() {
    let (certificates, redis) = (Certificates::make(), Redis::start());
    let proxy = certificates.start_proxy(redis.port, &[("CLIENT_TIMEOUT", "300ms"), ("CLIENT_IDLE_TIMEOUT", "1h")]);
    let hello = client_hello(&certificates);
    let connect = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(proxy.address).expect("the proxy accepts connections");
        stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("a time-out can be set");
        stream.write_all(bytes).expect("the proxy reads");
        stream
    };
    let (mut silent, mut trickling, mut stalled) = (connect(&hello[..1]), connect(&hello[..1]), connect(&hello));
    // At its speed the handshake would take four times as long as the time-out.
    let trickle = std::thread::spawn(move || {
        let mut sent = 1;
        for byte in &hello[1..] {
            std::thread::sleep(Duration::from_millis(1200) / hello.len() as u32);
            if trickling.write_all(&[*byte]).is_err() {
                break;
            }
            sent += 1;
        }
        sent < hello.len() || matches!(trickling.read(&mut [0]), Ok(0) | Err(_))
    });
    assert_eq!(silent.read(&mut [0; 100]).expect("an end"), 0);
    assert!(stalled.read_to_end(&mut Vec::new()).expect("an end") > 100, "no reply to a whole flight");
    assert!(trickle.join().expect("no panic"), "a trickled handshake was completed");
    certificates.wait_for_metric(&proxy, "segment_tls_handshakes_total{result=\"failed\"} 3");
    certificates.wait_for_metric(&proxy, "segment_client_timeouts_total{kind=\"request\"} 3");
}

/// Hits of other clients do not wait for a flood of handshakes. Two hits that arrive within the
/// flood are answered before most of it.
#[test]
fn hits_overtake_flood_of_handshakes() {
    const HANDSHAKES: usize = 300;
    /// A busy machine may stop this test between a hit and the count.
    const ROUNDS: usize = 5;
    let (certificates, redis) = (Certificates::make(), Redis::start());
    redis.set("a", "value");
    let proxy = certificates.start_proxy(redis.port, &[("TLS_REQUIRED", "off")]);
    let hello = client_hello(&certificates);
    let mut plain = proxy.connect();
    let mut secure = certificates.connect(proxy.address);
    assert_eq!((plain.get("/raw/a").text(), secure.get_text("/raw/a")), ("value".into(), "value".into()));
    let is_answered = |stream: &TcpStream| stream.peek(&mut [0]).is_ok();
    let mut answered_before_hits = || {
        let connect = |_| TcpStream::connect(proxy.address).expect("the proxy accepts connections");
        let mut flood: Vec<TcpStream> = (0..HANDSHAKES).map(connect).collect();
        certificates.wait_for_metric(&proxy, &format!("segment_connections {}", HANDSHAKES + 3));
        proxy.freeze();
        for stream in &mut flood {
            stream.write_all(&hello).expect("space in the socket buffer");
            stream.set_nonblocking(true).expect("an option can be set");
        }
        proxy.thaw();
        while !flood.iter().any(is_answered) {}
        assert_eq!(plain.get("/raw/a").text(), "value");
        assert_eq!(secure.get_text("/raw/a"), "value");
        let count_answered = || flood.iter().filter(|stream| is_answered(stream)).count();
        let answered = count_answered();
        wait_for("all handshakes are answered", || (count_answered() == HANDSHAKES).then_some(()));
        answered
    };
    let answered: Vec<usize> = (0..ROUNDS).map(|_| answered_before_hits()).collect();
    assert!(answered.iter().any(|&answered| answered < HANDSHAKES / 2), "{answered:?} of {HANDSHAKES} came first");
}

/// Connects clients that send nothing yet, and waits until the proxy has accepted them beside
/// `others`.
fn connect_flood(certificates: &Certificates, proxy: &Proxy, count: usize, others: usize) -> Vec<TcpStream> {
    let connect = |_| TcpStream::connect(proxy.address).expect("the proxy accepts connections");
    let flood = (0..count).map(connect).collect();
    // The client that reads the metrics counts as well.
    certificates.wait_for_metric(proxy, &format!("segment_connections {}", count + others + 1));
    flood
}

/// Returns true if the proxy sent something before the end.
fn reads_answer(mut stream: TcpStream) -> bool {
    stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("a time-out can be set");
    let mut received = Vec::new();
    let result = stream.read_to_end(&mut received);
    assert!(!matches!(&result, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock), "the client stays open");
    !received.is_empty()
}

/// Clients that close their end behind a ClientHello are closed, and nothing is signed for them. So
/// are those that leave while they wait for their turn.
#[test]
fn gone_clients_cost_no_signature() {
    const CLIENTS: usize = 300;
    /// A busy machine may stop this test between two ends.
    const ROUNDS: usize = 5;
    let (certificates, redis) = (Certificates::make(), Redis::start());
    let proxy = certificates.start_proxy(redis.port, &[]);
    let hello = client_hello(&certificates);
    let leave = |stream: &TcpStream| stream.shutdown(std::net::Shutdown::Write).expect("an open socket");
    let count_answers = |leaves_before_turn: bool| {
        let mut flood = connect_flood(&certificates, &proxy, CLIENTS, 0);
        proxy.freeze();
        for stream in &mut flood {
            stream.write_all(&hello).expect("space in the socket buffer");
            if leaves_before_turn {
                leave(stream);
            }
        }
        proxy.thaw();
        if !leaves_before_turn {
            while flood[0].peek(&mut [0]).is_err() {}
            flood.iter().for_each(leave);
        }
        let answers = flood.into_iter().map(reads_answer).filter(|&is_answered| is_answered).count();
        certificates.wait_for_metric(&proxy, "segment_connections 1");
        answers
    };
    // The proxy may run for a moment after the signal that stops it.
    let answers = count_answers(true);
    assert!(answers < CLIENTS / 10, "{answers} of {CLIENTS} clients that were gone got a signature");
    let answers: Vec<usize> = (0..ROUNDS).map(|_| count_answers(false)).collect();
    assert!(answers.iter().any(|&answers| answers < CLIENTS / 2), "{answers:?} of {CLIENTS} got a signature");
}

/// A client that got its signature completes its handshake before a flood of new ones.
#[test]
fn answered_handshake_overtakes_flood() {
    const HANDSHAKES: usize = 300;
    /// A busy machine may stop this test between the response and the count.
    const ROUNDS: usize = 5;
    let (certificates, redis) = (Certificates::make(), Redis::start());
    redis.set("a", "value");
    let proxy = certificates.start_proxy(redis.port, &[]);
    let hello = client_hello(&certificates);
    let answered_before_response = || {
        let mut client = certificates.connect(proxy.address);
        let (connection, socket) = (&mut client.stream.conn, &mut client.stream.sock);
        while connection.is_handshaking() {
            while connection.wants_write() {
                connection.write_tls(socket).expect("the proxy reads");
            }
            connection.read_tls(socket).expect("the flight of the proxy");
            connection.process_new_packets().expect("a valid flight");
        }
        let mut flood = connect_flood(&certificates, &proxy, HANDSHAKES, 1);
        proxy.freeze();
        for stream in &mut flood {
            stream.write_all(&hello).expect("space in the socket buffer");
            stream.set_nonblocking(true).expect("an option can be set");
        }
        proxy.thaw();
        let is_answered = |stream: &TcpStream| stream.peek(&mut [0]).is_ok();
        while !flood.iter().any(is_answered) {}
        assert_eq!(client.get_text("/raw/a"), "value");
        flood.iter().filter(|stream| is_answered(stream)).count()
    };
    let answered: Vec<usize> = (0..ROUNDS).map(|_| answered_before_response()).collect();
    assert!(answered.iter().any(|&answered| answered < HANDSHAKES / 2), "{answered:?} of {HANDSHAKES} came first");
}
