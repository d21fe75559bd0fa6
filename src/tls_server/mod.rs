//! TLS for clients: certificate, key and authorities, loaded at start and again on SIGHUP.
//!
//! Loading reads files, so no event loop does it. An event loop only takes the present
//! configuration for each new connection. Connections keep the one that they began with.

use crate::config::Config;
use crate::connection::TlsConfig;
use crate::metrics::TlsStatus;
use crate::tls_files::PemFile;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, Error, RootCertStore, ServerConfig};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Protocols offered to clients that negotiate one (RFC 7301). A client that offers only others is
/// refused by an alert. Clients of RESP offer none.
const ALPN_PROTOCOLS: [&[u8]; 1] = [b"http/1.1"];

/// Tickets sent after a handshake of TLS 1.3. A resumed session gets a new one.
const TICKETS_PER_HANDSHAKE: usize = 1;

/// A time after the end of any certificate: the year 9999.
const FAR_FUTURE: Duration = Duration::from_secs(253_402_300_799);

/// Files of the TLS configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsServerFiles {
    /// Certificate chain (`TLS_CERT`).
    pub certificates: PemFile,
    /// Private key (`TLS_KEY`).
    pub key: PemFile,
    /// Authorities of client certificates, which are required then (`TLS_CLIENT_CA`).
    pub client_ca: Option<PemFile>,
}

/// TLS for clients. Shared by all workers.
pub struct TlsServer {
    files: TlsServerFiles,
    is_required: bool,
    current: Mutex<Loaded>,
    status: Arc<TlsStatus>,
}

/// Configuration with the contents that it was made of.
struct Loaded {
    contents: Contents,
    config: Arc<TlsConfig>,
}

/// Contents of the files.
#[derive(PartialEq)]
struct Contents {
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    client_ca: Option<Vec<CertificateDer<'static>>>,
}

impl TlsServer {
    /// Loads the files that the variables name. Blocks. Returns `None` if they name none.
    pub fn from_config(config: &Config) -> Option<Result<TlsServer, String>> {
        let file = |variable, path: &Option<String>| Some(PemFile { variable, path: path.as_ref()?.into() });
        let files = TlsServerFiles {
            certificates: file("TLS_CERT", &config.tls_cert)?,
            key: file("TLS_KEY", &config.tls_key)?,
            client_ca: file("TLS_CLIENT_CA", &config.tls_client_ca),
        };
        Some(TlsServer::load(files, config.tls_required))
    }

    /// Loads the files for the first time. Blocks. Plain connections are refused if `is_required`.
    ///
    /// # Errors
    ///
    /// The variable, the path, the problem and the remedy in one line.
    pub fn load(files: TlsServerFiles, is_required: bool) -> Result<TlsServer, String> {
        let contents = Contents::read(&files)?;
        let config = Arc::new(contents.to_config(&files)?);
        let status = Arc::new(TlsStatus::default());
        status.record_load(contents.not_after());
        Ok(TlsServer { files, is_required, current: Mutex::new(Loaded { contents, config }), status })
    }

    /// Loads the files again. Blocks. Returns true if they have changed: new connections use them.
    /// Sessions that began before are not resumed then. After an error all stays as it is.
    ///
    /// # Errors
    ///
    /// As [`TlsServer::load`].
    pub fn reload(&self) -> Result<bool, String> {
        let loaded = Contents::read(&self.files).and_then(|contents| {
            if self.current.lock().unwrap_or_else(PoisonError::into_inner).contents == contents {
                return Ok(None);
            }
            let config = Arc::new(contents.to_config(&self.files)?);
            Ok(Some(Loaded { contents, config }))
        });
        let Some(loaded) = loaded.inspect_err(|_| self.status.record_failure())? else { return Ok(false) };
        self.status.record_load(loaded.contents.not_after());
        // The lock is held to replace the configuration only.
        let old = std::mem::replace(&mut *self.current.lock().unwrap_or_else(PoisonError::into_inner), loaded);
        drop(old);
        Ok(true)
    }

    /// Returns the configuration for a new connection.
    pub fn config(&self) -> Arc<TlsConfig> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner).config)
    }

    /// Returns true if plain connections are refused.
    pub fn is_required(&self) -> bool {
        self.is_required
    }

    /// Returns the figures of the certificate.
    pub fn status(&self) -> Arc<TlsStatus> {
        Arc::clone(&self.status)
    }

    /// Returns a warning if the certificate is not valid now.
    pub fn validity_warning(&self) -> Option<String> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let file = &self.files.certificates;
        match current.contents.validity_error(UnixTime::now()) {
            Some(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
                Some(format!("{file} has expired, clients refuse it; write a new certificate, and send SIGHUP"))
            }
            Some(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
                Some(format!("{file} is not valid yet, clients refuse it; check the clock and the certificate"))
            }
            _ => None,
        }
    }

    /// Returns what to do about the reason of a failed handshake, or nothing.
    pub fn hint(reason: &str) -> &'static str {
        let hints = [
            ("UnknownCA", "; give the client the authority of TLS_CERT"),
            ("BadCertificate", "; check that the client trusts TLS_CERT"),
            ("CertificateUnknown", "; check that the client trusts TLS_CERT"),
            ("CertificateExpired", "; write a new TLS_CERT, and send SIGHUP"),
            ("sent no certificates", "; TLS_CLIENT_CA requires a certificate of the client"),
            ("UnknownIssuer", "; the certificate of the client is not from TLS_CLIENT_CA"),
        ];
        hints.into_iter().find(|(part, _)| reason.contains(part)).map_or("", |(_, hint)| hint)
    }
}

impl Contents {
    fn read(files: &TlsServerFiles) -> Result<Contents, String> {
        Ok(Contents {
            certificates: files.certificates.read_certificates()?,
            key: files.key.read_private_key()?,
            client_ca: files.client_ca.as_ref().map(PemFile::read_certificates).transpose()?,
        })
    }

    /// Creates the configuration of new connections.
    fn to_config(&self, files: &TlsServerFiles) -> Result<ServerConfig, String> {
        let provider = Arc::new(ring::default_provider());
        let unusable = |error: Error| format!("TLS cannot be configured: {error}; please report this");
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let builder = match (&self.client_ca, &files.client_ca) {
            (Some(certificates), Some(file)) => {
                let roots = Arc::new(file.to_authorities(certificates)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| format!("{file} cannot be used: {error}"))?)
            }
            _ => builder.with_no_client_auth(),
        };
        let (certificates, key) = (self.certificates.clone(), self.key.clone_key());
        let mut config = builder.with_single_cert(certificates, key).map_err(|error| match error {
            Error::InconsistentKeys(_) => {
                format!("{} does not match {}; name the key of this certificate", files.key, files.certificates)
            }
            Error::InvalidCertificate(error) => {
                format!("{} holds an invalid certificate: {error}; export it again", files.certificates)
            }
            error => format!("{} cannot be used: {error}; use a key for RSA, ECDSA or Ed25519", files.key),
        })?;
        config.alpn_protocols = ALPN_PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        // Clients keep the sessions, so that workers share none.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = ring::Ticketer::new().map_err(unusable)?;
        config.send_tls13_tickets = TICKETS_PER_HANDSHAKE;
        Ok(config)
    }

    /// Returns the problem of the certificate at a time. Without authorities there always is one,
    /// but the validity is checked first.
    fn validity_error(&self, time: UnixTime) -> Option<CertificateError> {
        let certificate = ParsedCertificate::try_from(self.certificates.first()?).ok()?;
        let CryptoProvider { signature_verification_algorithms, .. } = ring::default_provider();
        let result = verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &RootCertStore::empty(),
            &[],
            time,
            signature_verification_algorithms.all,
        );
        if let Err(Error::InvalidCertificate(error)) = result { Some(error) } else { None }
    }

    /// Returns the end of the certificate's validity in seconds since the Unix epoch.
    fn not_after(&self) -> Option<u64> {
        match self.validity_error(UnixTime::since_unix_epoch(FAR_FUTURE)) {
            Some(CertificateError::ExpiredContext { not_after, .. }) => Some(not_after.as_secs()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    /// Returns the path of a test file.
    fn data(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls").join(name)
    }

    fn files(certificate: PathBuf) -> TlsServerFiles {
        TlsServerFiles {
            certificates: PemFile { variable: "TLS_CERT", path: certificate },
            key: PemFile { variable: "TLS_KEY", path: data("key.pem") },
            client_ca: None,
        }
    }

    /// The validity is that of the certificate: from 2026 to 2126.
    #[test]
    fn validity_is_read_from_certificate() {
        let contents = Contents::read(&files(data("certificate.pem"))).expect("files");
        let not_after = contents.not_after().expect("a certificate");
        assert_eq!(not_after, 4_949_514_868);
        let error = |time| contents.validity_error(UnixTime::since_unix_epoch(Duration::from_secs(time)));
        assert!(matches!(error(not_after + 1), Some(CertificateError::ExpiredContext { .. })));
        assert!(matches!(error(not_after - 1), Some(CertificateError::UnknownIssuer)));
        assert!(matches!(error(1_000_000_000), Some(CertificateError::NotValidYetContext { .. })));
    }

    /// Unchanged files keep the configuration, and with it the keys of the tickets. Unusable ones
    /// keep it too, and are counted.
    #[test]
    fn reload_keeps_configuration_unless_changed() {
        let path = std::env::temp_dir().join(format!("segment-tls-server-{}", std::process::id()));
        let certificate = std::fs::read(data("certificate.pem")).expect("a file");
        std::fs::write(&path, &certificate).expect("a file in the temporary directory");
        let server = TlsServer::load(files(path.clone()), true).expect("files");
        let before = server.config();
        assert_eq!((server.reload(), server.validity_warning()), (Ok(false), None));
        std::fs::write(&path, "text").expect("a writable file");
        let error = server.reload().expect_err("no certificate");
        assert!(error.starts_with("TLS_CERT=") && error.contains("is not PEM"), "{error}");
        assert!(Arc::ptr_eq(&before, &server.config()));
        std::fs::write(&path, [&certificate[..], &certificate].concat()).expect("a writable file");
        assert_eq!((server.reload(), server.status().loads()), (Ok(true), [2, 1]));
        assert!(!Arc::ptr_eq(&before, &server.config()));
        std::fs::remove_file(path).expect("the file");
    }
}
