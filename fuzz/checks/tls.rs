//! Fuzz check of the TLS of one client: handshakes and records cut anywhere, changed anywhere, and
//! input that is no TLS.
//!
//! Plaintext must be what the client sent, and nothing after an error. Random numbers of the
//! handshake differ in each run, so an input is repeatable up to them.

use super::choices::Choices;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
use segment_redis_proxy::connection::TlsSession;
use std::io::{Read, Write};
use std::sync::{Arc, OnceLock};

const CERTIFICATE: &[u8] = include_bytes!("../../tests/data/tls/certificate.pem");
const KEY: &[u8] = include_bytes!("../../tests/data/tls/key.pem");

/// Maximum number of bytes that wait for sending: the flight of a handshake, some alerts.
const MAX_UNSENT_BYTES: usize = 8 * 1024;

/// Versions that the client offers.
const VERSIONS: [&[&rustls::SupportedProtocolVersion]; 2] = [&[&rustls::version::TLS12], &[&rustls::version::TLS13]];

/// Checks one input. The choices select what the other bytes are.
pub fn check(input: &[u8]) {
    let (mut choices, wire) = Choices::split(input);
    let mode = choices.bytes[3];
    let mut pair = Pair::new(usize::from(mode / 8 % 2));
    match mode % 8 {
        // The bytes of an unknown client.
        0..=4 => _ = pair.send(&mut choices, wire),
        // The same after a handshake.
        5 => {
            pair.shake_hands(&mut choices, false);
            let received = pair.send(&mut choices, wire);
            assert!(received.is_empty(), "{} bytes of plaintext without a key", received.len());
        }
        // Plaintext of a client, with a changed byte or without.
        6 => {
            pair.shake_hands(&mut choices, false);
            let changes = mode >= 128;
            for part in wire.chunks(1 + usize::from(choices.bytes[2]) * 100) {
                pair.client.writer().write_all(part).expect("memory");
            }
            let mut ciphertext = pair.take_from_client();
            if changes && !ciphertext.is_empty() {
                let at = choices.random.below(ciphertext.len() as u64) as usize;
                ciphertext[at] ^= 1 << choices.random.below(8);
            }
            let received = pair.send(&mut choices, &ciphertext);
            assert!(wire.starts_with(&received), "other plaintext than was sent");
            assert!(changes || received == wire, "{} bytes of {}", received.len(), wire.len());
        }
        // A handshake with a changed byte in its first flight.
        _ => pair.shake_hands(&mut choices, true),
    }
    // The end is announced once, and never after an error.
    let (has_failed, unsent) = (pair.session.has_failed(), pair.session.unsent().len());
    pair.session.close();
    pair.session.close();
    assert!(!has_failed || pair.session.unsent().len() == unsent);
}

/// Session with a client in memory.
struct Pair {
    client: ClientConnection,
    session: TlsSession,
}

impl Pair {
    fn new(version: usize) -> Pair {
        static CONFIGS: OnceLock<(Arc<ServerConfig>, [Arc<ClientConfig>; 2])> = OnceLock::new();
        let (server, clients) = CONFIGS.get_or_init(|| (server_config(), VERSIONS.map(client_config)));
        let name = ServerName::try_from("localhost").expect("a name");
        let mut client = ClientConnection::new(Arc::clone(&clients[version]), name).expect("a client");
        client.set_buffer_limit(None);
        Pair { client, session: TlsSession::new(Arc::clone(server)).expect("a session") }
    }

    fn take_from_client(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut bytes).expect("memory");
        }
        bytes
    }

    /// Passes bytes to the session in pieces, and returns the plaintext.
    fn send(&mut self, choices: &mut Choices, bytes: &[u8]) -> Vec<u8> {
        let mut plaintext = Vec::new();
        choices.for_each_piece(bytes, |piece| {
            let (before, had_failed) = (plaintext.len(), self.session.has_failed());
            let result = self.session.on_input(&mut piece.to_vec(), &mut plaintext);
            assert_eq!(result.is_err(), self.session.has_failed() && !had_failed, "{result:?}");
            assert!(!had_failed || plaintext.len() == before, "plaintext after an error");
            assert!(self.session.unsent().len() <= MAX_UNSENT_BYTES, "{} bytes unsent", self.session.unsent().len());
            true
        });
        assert!(plaintext.len() <= bytes.len(), "more plaintext than ciphertext");
        plaintext
    }

    /// Completes a handshake, unless a byte of the client's first flight is changed.
    fn shake_hands(&mut self, choices: &mut Choices, changes: bool) {
        for round in 0..5 {
            let mut flight = self.take_from_client();
            if changes && round == 0 {
                let at = choices.random.below(flight.len() as u64) as usize;
                flight[at] ^= 1 << choices.random.below(8);
            }
            self.send(choices, &flight);
            while !self.session.unsent().is_empty() {
                let taken = self.client.read_tls(&mut self.session.unsent()).expect("memory");
                self.session.advance(taken);
                if self.client.process_new_packets().is_err() {
                    assert!(changes, "the client refuses the handshake");
                    return;
                }
                assert_eq!(self.client.reader().read(&mut [0]).ok(), None, "plaintext within the handshake");
            }
        }
        assert!(changes || !self.session.is_handshaking(), "the handshake is not complete");
    }
}

fn server_config() -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE).expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(KEY).expect("a key");
    let mut config = builder.with_single_cert(vec![certificate], key).expect("a matching key");
    config.ticketer = ring::Ticketer::new().expect("random numbers");
    Arc::new(config)
}

fn client_config(versions: &[&'static rustls::SupportedProtocolVersion]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CERTIFICATE).expect("a certificate")).expect("a certificate");
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_protocol_versions(versions).expect("a version");
    Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
}
