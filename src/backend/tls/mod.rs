//! TLS to Redis: one client configuration for all connections, so that they share its sessions.
//!
//! The certificate of Redis is always verified, by the name in the configuration or by the host
//! that sentinels and nodes name, although the connection goes to an address that was looked up
//! before. There is no switch against that.

use super::stream::{DeadlineSocket, Stream, time_left};
use crate::tls_files::PemFile;
use crate::upstream::{UpstreamAddress, UpstreamTls};
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, ClientConnection, HandshakeKind, RootCertStore};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

/// Most handshakes of this process at the same time. When all workers reconnect after an outage,
/// the first handshakes bring session tickets, and the others resume at half the cost. (A full
/// handshake takes 2 ms of Redis' only thread.)
const MAX_HANDSHAKES: usize = 8;

/// Text of a timeout in the handshake.
const NO_HANDSHAKE: &str =
    "no reply to the TLS handshake within REDIS_TIMEOUT; the server may not speak TLS at this port";

/// Client side of TLS to Redis.
pub struct TlsConnector {
    settings: UpstreamTls,
    config: Mutex<Arc<ClientConfig>>,
    /// Number of handshakes in progress.
    handshakes: Mutex<usize>,
    handshake_done: Condvar,
}

/// Place among the handshakes in progress, until it is dropped.
struct HandshakePermit<'a>(&'a TlsConnector);

impl Drop for HandshakePermit<'_> {
    fn drop(&mut self) {
        *self.0.handshakes.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.handshake_done.notify_one();
    }
}

impl TlsConnector {
    /// Reads the files of the settings. Blocks.
    ///
    /// # Errors
    ///
    /// Variable, path, problem and remedy in one line.
    pub(super) fn load(settings: &UpstreamTls, addresses: &[UpstreamAddress]) -> Result<TlsConnector, String> {
        addresses.iter().try_for_each(|address| server_name(settings, address).map(|_| ()))?;
        let config = Mutex::new(Arc::new(client_config(settings)?));
        let (handshakes, handshake_done) = (Mutex::new(0), Condvar::new());
        Ok(TlsConnector { settings: settings.clone(), config, handshakes, handshake_done })
    }

    /// Reads the files again, for new connections. Their first handshakes are full ones. After an
    /// error the old configuration stays. Blocks.
    pub(super) fn reload(&self) -> Result<(), String> {
        let config = Arc::new(client_config(&self.settings)?);
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// Performs the handshake with the server at `address` before `deadline`.
    pub(super) fn connect(
        &self,
        socket: DeadlineSocket,
        address: &UpstreamAddress,
        deadline: Instant,
    ) -> io::Result<Stream> {
        let name = server_name(&self.settings, address).map_err(io::Error::other)?;
        let permit = self.begin_handshake(deadline)?;
        let config = Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner));
        let mut client = ClientConnection::new(config, name).map_err(io::Error::other)?;
        let mut socket = socket;
        while client.is_handshaking() {
            client.complete_io(&mut socket).map_err(describe_handshake)?;
        }
        drop(permit);
        log::debug!(
            "TLS handshake with Redis: {}, {:?}",
            if client.handshake_kind() == Some(HandshakeKind::Resumed) { "resumed" } else { "full" },
            client.protocol_version()
        );
        Ok(Stream::Tls(Box::new(rustls::StreamOwned::new(client, socket))))
    }

    /// Waits until less than [`MAX_HANDSHAKES`] are in progress.
    fn begin_handshake(&self, deadline: Instant) -> io::Result<HandshakePermit<'_>> {
        let mut count = self.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        while *count >= MAX_HANDSHAKES {
            let waited = self.handshake_done.wait_timeout(count, time_left(deadline)?);
            count = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *count += 1;
        Ok(HandshakePermit(self))
    }
}

/// Returns the name that the certificate of the server at `address` must have. It is also sent as
/// SNI, unless it is an address.
fn server_name(settings: &UpstreamTls, address: &UpstreamAddress) -> Result<ServerName<'static>, String> {
    let host = match (&settings.name, address) {
        (Some(name), _) => name,
        (None, UpstreamAddress::Tcp(host, _)) => host,
        (None, UpstreamAddress::Unix(_)) => {
            return Err("REDIS_TLS=on needs a host name, but REDIS_URL names a Unix socket; set REDIS_TLS=off".into());
        }
    };
    ServerName::try_from(host.clone()).map_err(|_| match &settings.name {
        Some(name) => format!("REDIS_TLS_NAME={name:?} is no host name and no IP address; write one"),
        None => format!("{host:?} cannot be the name of a certificate; set REDIS_TLS_NAME"),
    })
}

/// Reads the files, and returns the configuration of new connections: TLS 1.2 and 1.3, with
/// sessions that are resumed.
fn client_config(settings: &UpstreamTls) -> Result<ClientConfig, String> {
    let pem = |variable, path: &PathBuf| PemFile { variable, path: path.clone() };
    let roots = match &settings.ca {
        Some(path) => pem("REDIS_TLS_CA", path).read_authorities()?,
        None => RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() },
    };
    // Not the provider of the process, which another crate might set.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .map_err(|error| format!("REDIS_TLS=on cannot be used: {error}; please report this"))?
        .with_root_certificates(roots);
    let Some((certificate, key)) = &settings.identity else { return Ok(builder.with_no_client_auth()) };
    let chain = pem("REDIS_TLS_CERT", certificate).read_certificates()?;
    let key_file = pem("REDIS_TLS_KEY", key);
    builder.with_client_auth_cert(chain, key_file.read_private_key()?).map_err(|error| {
        format!("{key_file} cannot be used with REDIS_TLS_CERT: {error}; name the key of that certificate")
    })
}

/// Describes an error of a handshake. A Redis without TLS waits for the rest of a command.
fn describe_handshake(error: io::Error) -> io::Error {
    if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) {
        return io::Error::new(io::ErrorKind::TimedOut, NO_HANDSHAKE);
    }
    explain(error)
}

/// Returns the error of a TLS stream with its usual cause and remedy. The text of rustls for a peer
/// that closes is a link to its manual.
pub(super) fn explain(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return io::Error::new(error.kind(), "the server closed the TLS connection");
    }
    let Some(cause) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else { return error };
    io::Error::new(error.kind(), explanation(cause))
}

fn explanation(error: &rustls::Error) -> String {
    let remedy = match error {
        rustls::Error::InvalidCertificate(problem) => match problem {
            CertificateError::UnknownIssuer => "set REDIS_TLS_CA to the certificate of the authority that issued it",
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "connect by a name of the certificate, or set REDIS_TLS_NAME to one"
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => "renew the certificate of Redis, and check the clocks",
            // A certificate made by `openssl req -x509` alone is its own authority.
            other if format!("{other:?}").contains("CaUsedAsEndEntity") => {
                "it is the certificate of an authority: let the authority issue one for Redis (basicConstraints=CA:FALSE)"
            }
            _ => "replace the certificate of Redis",
        },
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::HandshakeFailure
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::DecryptError,
        ) => {
            "Redis may require a client certificate: set REDIS_TLS_CERT and REDIS_TLS_KEY, issued by an authority that it accepts"
        }
        rustls::Error::InvalidMessage(_) => {
            "the server may not speak TLS at this port: check the port, or use it without TLS (redis://, REDIS_TLS=off)"
        }
        _ => return format!("TLS: {error}"),
    };
    format!("TLS: {error}; {remedy}")
}
