//! Certificates and private keys from PEM files.
//!
//! They are read at start and on SIGHUP, never by an event loop. An error names the variable, the
//! path, the problem and the remedy in one line. It never shows the contents of a file.

use crate::bounded_file;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::path::PathBuf;

/// Longest PEM file: several times the bundle of all public authorities. The file of a mistyped
/// path may be of any length.
pub const MAX_PEM_BYTES: usize = 1024 * 1024;

/// PEM file that a variable names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PemFile {
    /// Variable that names the file, for errors.
    pub variable: &'static str,
    /// Path of the file.
    pub path: PathBuf,
}

/// Shows the file as operators set it, `TLS_CERT="/etc/tls/tls.crt"`.
impl fmt::Display for PemFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={:?}", self.variable, self.path)
    }
}

impl PemFile {
    /// Reads a certificate chain, the certificate of the server or client first. Blocks.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is longer than [`MAX_PEM_BYTES`], is no PEM, or holds no
    /// certificate.
    pub fn read_certificates(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        self.read().and_then(|pem| certificates(&pem)).map_err(|problem| format!("{self} {problem}"))
    }

    /// Reads the private key. Blocks.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is longer than [`MAX_PEM_BYTES`], is no PEM, holds no private key,
    /// or holds an encrypted one.
    pub fn read_private_key(&self) -> Result<PrivateKeyDer<'static>, String> {
        self.read().and_then(|pem| private_key(&pem)).map_err(|problem| format!("{self} {problem}"))
    }

    /// Reads the certificates of the authorities that peers are verified with. Blocks.
    ///
    /// # Errors
    ///
    /// As [`PemFile::read_certificates`], and if a certificate cannot be parsed.
    pub fn read_authorities(&self) -> Result<RootCertStore, String> {
        self.to_authorities(&self.read_certificates()?)
    }

    /// Returns a store of authorities with the certificates of this file.
    ///
    /// # Errors
    ///
    /// A certificate cannot be parsed.
    pub fn to_authorities(&self, certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, String> {
        let mut store = RootCertStore::empty();
        for (index, certificate) in certificates.iter().enumerate() {
            store.add(certificate.clone()).map_err(|error| {
                format!("{self} holds an invalid certificate (number {}): {error}; export it again", index + 1)
            })?;
        }
        Ok(store)
    }

    /// Reads the file. The error is a phrase that follows its name.
    fn read(&self) -> Result<Vec<u8>, String> {
        bounded_file::read(&self.path, MAX_PEM_BYTES, "name a PEM file")
    }
}

/// Returns the certificates in a PEM file, in their order.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|_| damaged(pem))?;
    if !certificates.is_empty() {
        return Ok(certificates);
    }
    Err(match () {
        () if contains(pem, "PRIVATE KEY-----") => {
            "holds a private key and no certificate; name the file with the certificate".into()
        }
        () => not_pem(pem).unwrap_or_else(|| "holds no certificate (BEGIN CERTIFICATE); name the PEM file".into()),
    })
}

/// Returns the first private key in a PEM file.
fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    if contains(pem, "BEGIN ENCRYPTED PRIVATE KEY") || contains(pem, "Proc-Type: 4,ENCRYPTED") {
        return Err("holds an encrypted private key; decrypt it (openssl pkey -in FILE -out NEW)".into());
    }
    match PrivateKeyDer::pem_slice_iter(pem).next() {
        Some(Ok(key)) => Ok(key),
        Some(Err(_)) => Err(damaged(pem)),
        None if contains(pem, "BEGIN CERTIFICATE") => {
            Err("holds a certificate and no private key; name the file with the key".into())
        }
        None => {
            Err(not_pem(pem).unwrap_or_else(|| "holds no private key (BEGIN PRIVATE KEY); name the PEM file".into()))
        }
    }
}

/// Describes a file without any PEM section.
fn not_pem(pem: &[u8]) -> Option<String> {
    match pem {
        [] => Some("is empty; write the PEM text into it".into()),
        // A sequence with a length of two bytes, as every certificate and key of a usual size.
        [0x30, 0x82, ..] => Some("is DER, not PEM; convert it (openssl x509 or pkey -inform DER)".into()),
        _ if !contains(pem, "-----BEGIN ") => Some("is not PEM (no line with BEGIN); name the PEM file".into()),
        _ => None,
    }
}

/// Describes a file with a section that cannot be decoded.
fn damaged(pem: &[u8]) -> String {
    not_pem(pem).unwrap_or_else(|| "is damaged PEM; copy it again, whole and with its line breaks".into())
}

fn contains(pem: &[u8], text: &str) -> bool {
    pem.windows(text.len()).any(|window| window == text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a new file with `bytes`.
    fn file(name: &str, bytes: &[u8]) -> PemFile {
        let path = std::env::temp_dir().join(format!("segment-pem-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).expect("a file in the temporary directory");
        PemFile { variable: "TLS_CERT", path }
    }

    /// A chain keeps its order. Text around the sections is ignored.
    #[test]
    fn chain_is_read_in_order() {
        let pem = "text\n-----BEGIN CERTIFICATE-----\nAQI=\n-----END CERTIFICATE-----\n\
                   -----BEGIN PRIVATE KEY-----\nBQ==\n-----END PRIVATE KEY-----\n\
                   -----BEGIN CERTIFICATE-----\r\nAwQ=\r\n-----END CERTIFICATE-----\r\n";
        let file = file("chain", pem.as_bytes());
        let chain = file.read_certificates().expect("two certificates");
        assert_eq!(chain.iter().map(|der| der.to_vec()).collect::<Vec<_>>(), [[1, 2], [3, 4]]);
        assert_eq!(file.read_private_key().expect("a key").secret_der(), [5]);
        let error = file.read_authorities().expect_err("not certificates");
        assert!(error.contains("holds an invalid certificate (number 1)"), "{error}");
    }

    /// An unusable file is an error with the variable, the path, the problem and the remedy.
    #[test]
    fn unusable_file_is_named() {
        let section = |name: &str, text: &str| format!("-----BEGIN {name}-----\n{text}\n-----END {name}-----\n");
        let key = section("PRIVATE KEY", "c2VjcmV0");
        for (bytes, certificate_problem, key_problem) in [
            (String::new(), "is empty", "is empty"),
            ("hello".into(), "is not PEM", "is not PEM"),
            (key.clone(), "holds a private key and no certificate", ""),
            (section("CERTIFICATE", "AQI="), "", "holds a certificate and no private key"),
            (section("ENCRYPTED PRIVATE KEY", "c2VjcmV0"), "holds a private key and no", "holds an encrypted"),
            (key.replace("\n-----END", ""), "is damaged PEM", "is damaged PEM"),
            (section("CERTIFICATE", "*"), "is damaged PEM", "is damaged PEM"),
            (section("PUBLIC KEY", "AQI="), "holds no certificate", "holds no private key"),
            ("0\u{2}x".into(), "is not PEM", "is not PEM"),
            ("x".repeat(MAX_PEM_BYTES + 1), "is longer than 1048576 bytes", "is longer than"),
        ] {
            let file = file("unusable", bytes.as_bytes());
            let (certificates, key) = (file.read_certificates(), file.read_private_key());
            for (problem, error) in [(certificate_problem, certificates.err()), (key_problem, key.err())] {
                let Some(error) = error else {
                    assert_eq!(problem, "", "{bytes:?} was accepted");
                    continue;
                };
                assert!(!problem.is_empty() && error.starts_with(&format!("{file} {problem}")), "{error}");
                assert!(error.contains("; ") && !error.contains("c2Vj") && !error.contains('\n'), "{error}");
            }
        }
        let der = file("der", &[0x30, 0x82, 3, 4]).read_certificates().expect_err("no PEM");
        assert!(der.contains("is DER, not PEM"), "{der}");
        for (path, problem) in [("/nonexistent", "cannot be read"), ("/dev/null", "is not a regular file")] {
            let error = PemFile { variable: "TLS_KEY", path: path.into() }.read_private_key().expect_err(problem);
            assert!(error.starts_with(&format!("TLS_KEY={path:?} {problem}")), "{error}");
        }
    }
}
