//! Tests of TLS sessions in memory, against the client of rustls.

use super::*;
use crate::protocol::http::json::Encoding;
use crate::value::Value;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    AlertDescription, CipherSuiteCommon, ClientConfig, ClientConnection, Error, RootCertStore,
    SupportedProtocolVersion, Tls12CipherSuite, version,
};
use std::io::{Read, Write};

const CERTIFICATE: &[u8] = include_bytes!("../../../tests/data/tls/certificate.pem");
const KEY: &[u8] = include_bytes!("../../../tests/data/tls/key.pem");
const REQUEST: &[u8] = b"GET /raw/a HTTP/1.1\r\nHost: x\r\n\r\n";
const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS12, &version::TLS13];

fn server_config() -> Arc<TlsConfig> {
    server_config_with(ring::default_provider())
}

fn server_config_with(provider: rustls::crypto::CryptoProvider) -> Arc<TlsConfig> {
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE).expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(KEY).expect("a key");
    let builder = ServerConfig::builder_with_provider(Arc::new(provider));
    let builder = builder.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
    let mut config = builder.with_single_cert(vec![certificate], key).expect("a matching key");
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ticketer = ring::Ticketer::new().expect("random numbers");
    Arc::new(config)
}

fn client_config(version: &'static SupportedProtocolVersion, protocol: Option<&[u8]>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CERTIFICATE).expect("a certificate")).expect("a certificate");
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_protocol_versions(&[version]).expect("a version");
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocol.map(<[u8]>::to_vec).into_iter().collect();
    Arc::new(config)
}

/// Session with a client in memory.
struct Pair {
    client: ClientConnection,
    server: TlsSession,
    /// Plaintext that the session has received.
    received: Vec<u8>,
}

impl Pair {
    fn new(client: Arc<ClientConfig>, server: &Arc<TlsConfig>) -> Pair {
        let name = ServerName::try_from("localhost").expect("a name");
        let client = ClientConnection::new(client, name).expect("a client");
        Pair { client, server: TlsSession::new(Arc::clone(server)).expect("a session"), received: Vec::new() }
    }

    /// Returns a pair after its handshake.
    fn connected(version: &'static SupportedProtocolVersion) -> Pair {
        let mut pair = Pair::new(client_config(version, None), &server_config());
        pair.exchange(usize::MAX);
        assert!(!pair.server.is_handshaking() && !pair.client.is_handshaking());
        pair
    }

    /// Returns the ciphertext that the client has to send.
    fn take_from_client(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut bytes).expect("memory");
        }
        bytes
    }

    /// Passes the ciphertext of the session to the client, and returns the plaintext.
    fn pass_to_client(&mut self) -> Vec<u8> {
        let mut plaintext = Vec::new();
        while !self.server.unsent().is_empty() {
            let taken = self.client.read_tls(&mut self.server.unsent()).expect("memory");
            self.server.advance(taken);
            self.client.process_new_packets().expect("valid records");
            let mut buffer = [0; 64 * 1024];
            while let Ok(length @ 1..) = self.client.reader().read(&mut buffer) {
                plaintext.extend_from_slice(&buffer[..length]);
            }
        }
        plaintext
    }

    fn receive(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.server.on_input(&mut bytes.to_vec(), &mut self.received)
    }

    /// Passes bytes until both sides are silent, `step` bytes at a time to the session.
    fn exchange(&mut self, step: usize) {
        loop {
            let bytes = self.take_from_client();
            if bytes.is_empty() && self.server.unsent().is_empty() {
                return;
            }
            bytes.chunks(step).for_each(|part| self.receive(part).expect("valid records"));
            self.pass_to_client();
        }
    }

    /// Returns the ciphertext of `plaintext`.
    fn encrypt_by_client(&mut self, plaintext: &[u8]) -> Vec<u8> {
        self.client.writer().write_all(plaintext).expect("memory");
        self.take_from_client()
    }
}

/// A handshake and its first request succeed, wherever the bytes are cut.
#[test]
fn handshake_succeeds_at_every_cut() {
    let server = server_config();
    for version in VERSIONS {
        let mut cut = 1;
        let mut longest = 0;
        while cut <= longest.max(1) {
            let mut pair = Pair::new(client_config(version, Some(b"http/1.1")), &server);
            while pair.client.is_handshaking() || pair.server.is_handshaking() {
                let flight = pair.take_from_client();
                longest = longest.max(flight.len());
                let (before, after) = flight.split_at(cut.min(flight.len()));
                pair.receive(before).expect("a part of a flight");
                pair.receive(after).expect("the rest of a flight");
                pair.pass_to_client();
            }
            let request = pair.encrypt_by_client(REQUEST);
            pair.receive(&request).expect("a record");
            assert_eq!(pair.received, REQUEST, "{version:?}, cut at {cut}");
            assert_eq!(pair.client.alpn_protocol(), Some(&b"http/1.1"[..]));
            cut += 1;
        }
        assert!(longest > 100, "only {longest} bytes in a flight");
        let mut trickled = Pair::new(client_config(version, None), &server);
        trickled.exchange(1);
        assert!(!trickled.server.is_handshaking());
    }
}

/// Stored input of a handshake is processed later, as if it arrived then.
#[test]
fn stored_input_is_processed_later() {
    let mut pair = Pair::new(client_config(&version::TLS13, None), &server_config());
    let hello = pair.take_from_client();
    pair.server.store_input(&hello);
    assert!(pair.server.has_unprocessed() && pair.server.unsent().is_empty());
    pair.server.process_stored(&mut pair.received).expect("a hello");
    assert!(!pair.server.has_unprocessed() && !pair.server.has_partial_record());
    pair.pass_to_client();
    pair.exchange(usize::MAX);
    assert!(!pair.server.is_handshaking());
}

/// Records are decrypted wherever they are cut. Only an incomplete one is stored.
#[test]
fn records_are_decrypted_at_every_cut() {
    for version in VERSIONS {
        let mut pair = Pair::connected(version);
        let length = pair.encrypt_by_client(REQUEST).len();
        let mut pair = Pair::connected(version);
        for cut in 0..=2 * length {
            // Two records.
            let bytes = [pair.encrypt_by_client(REQUEST), pair.encrypt_by_client(REQUEST)].concat();
            pair.received.clear();
            pair.receive(&bytes[..cut]).expect("a part");
            assert_eq!(pair.server.has_partial_record(), cut % length != 0);
            pair.receive(&bytes[cut..]).expect("the rest");
            assert_eq!(pair.received, [REQUEST, REQUEST].concat(), "{version:?}, cut at {cut}");
            assert_eq!(pair.server.incoming.capacity(), 0);
        }
    }
}

/// A changed byte in a record ends the session with an alert, and no plaintext. The type and the
/// version in its header carry no information after the handshake.
#[test]
fn changed_record_ends_session() {
    for version in VERSIONS {
        let mut at = 3;
        loop {
            let mut pair = Pair::connected(version);
            let mut bytes = pair.encrypt_by_client(b"PING\r\n");
            if at == bytes.len() {
                break;
            }
            bytes[at] ^= 1;
            // With a longer length the record is incomplete. An end within it changes nothing.
            if pair.receive(&bytes).is_err() {
                assert!(pair.server.has_failed() && !pair.server.unsent().is_empty());
            }
            assert!(pair.received.is_empty(), "{version:?}: a record with a changed byte {at} was accepted");
            at += 1;
        }
    }
}

/// Input that is no TLS ends the session: at its start, and after the handshake.
#[test]
fn input_without_tls_ends_session() {
    for garbage in [&b"\x16\x03\x01\x00\x05hello"[..], b"\x16garbage in any case", REQUEST, b"*1\r\n$4\r\nPING\r\n"] {
        let fresh = Pair::new(client_config(&version::TLS13, None), &server_config());
        for mut pair in [fresh, Pair::connected(&version::TLS12), Pair::connected(&version::TLS13)] {
            let reason = pair.receive(garbage).expect_err("garbage was accepted");
            assert!(pair.server.has_failed() && pair.received.is_empty(), "{reason}");
            // What follows is ignored, and nothing more is sent.
            assert_eq!(pair.receive(REQUEST), Ok(()));
            assert!(pair.received.is_empty());
            pair.server.close();
            let mut replies = SendBuffer::default();
            replies.tail().extend_from_slice(b"reply");
            assert!(pair.server.encrypt(&mut replies, 100).is_err());
        }
    }
}

/// The bytes before the end of a handshake are bounded.
#[test]
fn handshake_input_is_bounded() {
    let mut pair = Pair::new(client_config(&version::TLS13, None), &server_config());
    // Fragments of a message with a length of 60,000 bytes.
    let mut record = [&[0x16, 3, 1, 0x10, 0][..], &[0; 4096]].concat();
    record[5..9].copy_from_slice(&[1, 0, 0xea, 0x60]);
    let mut sent = 0;
    let reason = loop {
        match pair.receive(&record) {
            Ok(()) => record[5..9].fill(0),
            Err(reason) => break reason,
        }
        sent += record.len();
        assert!(sent <= MAX_HANDSHAKE_BYTES, "the input of a handshake is not bounded");
        assert!(pair.server.incoming.len() <= MAX_HANDSHAKE_BYTES);
    };
    assert!(pair.server.has_failed() && sent > 0, "{reason}");
}

/// A long reply is encrypted in pieces. No more than a piece is held, also for a client that takes
/// a few bytes at a time.
#[test]
fn long_reply_is_encrypted_in_pieces() {
    let value = Arc::new(Value::new((0..1_000_000u32).map(|number| number as u8).collect()));
    for (version, step) in VERSIONS.into_iter().zip([1000, usize::MAX]) {
        let (mut pair, mut replies) = (Pair::connected(version), SendBuffer::default());
        replies.tail().extend_from_slice(b"head");
        replies.push_value(&value, Encoding::Raw);
        replies.tail().extend_from_slice(b"end");
        let (mut received, mut lent) = (Vec::new(), Vec::new());
        while !replies.is_empty() || !pair.server.unsent().is_empty() {
            pair.server.lend_output(&mut lent);
            if pair.server.unsent().is_empty() {
                assert!(pair.server.encrypt(&mut replies, 96 * 1024).expect("an open session") <= MAX_PIECE_BYTES);
            }
            assert!(pair.server.unsent().len() <= MAX_PIECE_BYTES + MAX_IOVECS * RECORD_OVERHEAD_BYTES);
            let part = pair.server.unsent()[..step.min(pair.server.unsent().len())].to_vec();
            pair.server.advance(part.len());
            pair.server.reclaim_output(&mut lent);
            let mut part = &part[..];
            while !part.is_empty() {
                pair.client.read_tls(&mut part).expect("memory");
                pair.client.process_new_packets().expect("valid records");
                let mut buffer = [0; 64 * 1024];
                while let Ok(length @ 1..) = pair.client.reader().read(&mut buffer) {
                    received.extend_from_slice(&buffer[..length]);
                }
            }
        }
        assert_eq!(received, [b"head", &value.bytes[..], b"end"].concat());
        assert_eq!(
            pair.server.outgoing.capacity() + pair.server.incoming.capacity(),
            0,
            "an idle session owns a buffer"
        );
    }
}

/// `close_notify` is sent at the end. That of the client ends its input, and what follows is
/// ignored.
#[test]
fn close_is_announced_on_both_sides() {
    for version in VERSIONS {
        let mut pair = Pair::connected(version);
        pair.client.send_close_notify();
        let end = [pair.take_from_client(), b"more".to_vec()].concat();
        pair.receive(&end).expect("an end");
        assert!(pair.server.is_peer_closed() && !pair.server.has_partial_record());
        assert_eq!((pair.receive(b"more"), pair.received.len()), (Ok(()), 0));
        // The client may still be reading.
        let mut replies = SendBuffer::default();
        replies.tail().extend_from_slice(b"reply");
        assert_eq!(pair.server.encrypt(&mut replies, 100), Ok(5));
        assert_eq!(pair.pass_to_client(), b"reply");
        pair.server.close();
        pair.server.close();
        pair.pass_to_client();
        let state = pair.client.process_new_packets().expect("valid records");
        assert!(state.peer_has_closed());
    }
}

/// Requests for new keys are answered. Without reading, a client cannot make the answers pile up.
#[test]
fn key_updates_are_bounded() {
    let mut pair = Pair::connected(&version::TLS13);
    for _ in 0..100 {
        pair.client.refresh_traffic_keys().expect("TLS 1.3");
        let bytes = pair.encrypt_by_client(REQUEST);
        pair.receive(&bytes).expect("a key update and a request");
        pair.pass_to_client();
    }
    assert_eq!(pair.received, REQUEST.repeat(100));
    for _ in 0..1000 {
        pair.client.refresh_traffic_keys().expect("TLS 1.3");
        let bytes = pair.encrypt_by_client(b"x");
        pair.receive(&bytes).expect("a key update and a byte");
        assert!(pair.server.unsent().len() < 1000 && !pair.server.is_output_full(), "answers pile up");
    }
}

/// A client that offers only another protocol gets the alert `no_application_protocol`.
#[test]
fn other_protocol_is_refused() {
    let mut pair = Pair::new(client_config(&version::TLS13, Some(b"h2")), &server_config());
    let hello = pair.take_from_client();
    pair.receive(&hello).expect_err("h2 was accepted");
    pair.client.read_tls(&mut pair.server.unsent()).expect("memory");
    let error = pair.client.process_new_packets().expect_err("no alert");
    assert_eq!(error, Error::AlertReceived(AlertDescription::NoApplicationProtocol));
}

/// A client that comes back resumes its session.
#[test]
fn session_is_resumed() {
    let server = server_config();
    for version in VERSIONS {
        let (client, mut is_resumed) = (client_config(version, None), Vec::new());
        for _ in 0..3 {
            let mut pair = Pair::new(Arc::clone(&client), &server);
            pair.exchange(usize::MAX);
            is_resumed.push(pair.server.is_resumed());
        }
        assert_eq!(is_resumed, [false, true, true], "{version:?}");
    }
}

/// Before the keys of TLS 1.2 are used up, the session asks for its close. If it continues, it ends
/// by an announcement, and a reply is cut off.
#[test]
fn used_up_keys_end_session() {
    const RECORDS_BEFORE_RESERVE: u64 = 10;
    let mut provider = ring::default_provider();
    provider.cipher_suites.retain(|suite| suite.tls13().is_none());
    for suite in &mut provider.cipher_suites {
        let SupportedCipherSuite::Tls12(tls12) = *suite else { continue };
        // One record of the handshake is encrypted too.
        let confidentiality_limit = KEY_RESERVE_RECORDS + RECORDS_BEFORE_RESERVE + 1;
        let common = CipherSuiteCommon { confidentiality_limit, ..tls12.common };
        let limited = Tls12CipherSuite {
            common,
            prf_provider: tls12.prf_provider,
            kx: tls12.kx,
            sign: tls12.sign,
            aead_alg: tls12.aead_alg,
        };
        *suite = SupportedCipherSuite::Tls12(Box::leak(Box::new(limited)));
    }
    let mut pair = Pair::new(client_config(&version::TLS12, None), &server_config_with(provider));
    pair.exchange(usize::MAX);
    let mut send_buffer = SendBuffer::default();
    let mut near_limit_after = None;
    for sent in 0.. {
        if pair.server.is_near_key_limit() {
            near_limit_after.get_or_insert(sent);
        }
        send_buffer.tail().extend_from_slice(b"x");
        if let Err(reason) = pair.server.encrypt(&mut send_buffer, 1) {
            assert!(reason.contains("are used up; use TLS 1.3") && pair.server.has_failed(), "{reason}");
            assert_eq!(sent, KEY_RESERVE_RECORDS + RECORDS_BEFORE_RESERVE);
            break;
        }
        assert_eq!(pair.pass_to_client(), b"x");
    }
    assert_eq!(near_limit_after, Some(RECORDS_BEFORE_RESERVE + 1));
    pair.client.read_tls(&mut pair.server.unsent()).expect("memory");
    assert!(pair.client.process_new_packets().expect("an alert").peer_has_closed());
    // TLS 1.3 renews its keys, so that a session has no end.
    assert!(!Pair::connected(&version::TLS13).server.is_near_key_limit());
}
