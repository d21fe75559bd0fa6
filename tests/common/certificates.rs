//! Certificates for tests, made by `openssl`.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Certificate authority (`ca.pem`) in a directory of its own. The files are removed when it is
/// dropped.
pub struct Authority {
    directory: PathBuf,
}

/// Paths of a certificate and of its private key.
#[derive(Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn create() -> Authority {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        // Two authorities with the same name would be taken for one with a wrong signature.
        let name = format!("segment-ca-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let authority = Authority { directory: std::env::temp_dir().join(&name) };
        std::fs::create_dir_all(&authority.directory).expect("a directory for temporary files");
        authority.identity("ca").self_sign(&name);
        authority
    }

    /// Returns the authority that all tests of this process share.
    pub fn shared() -> &'static Authority {
        static SHARED: OnceLock<Authority> = OnceLock::new();
        SHARED.get_or_init(Authority::create)
    }

    /// Returns the path of the authority's certificate.
    pub fn certificate(&self) -> String {
        self.path("ca.pem")
    }

    /// Issues a certificate for `names`, such as `DNS:redis.test,IP:127.0.0.1`.
    pub fn issue(&self, file: &str, names: &str) -> Identity {
        let identity = self.identity(file);
        identity.issue("test", names, &self.identity("ca"));
        identity
    }

    /// Returns the paths of a certificate in the directory and of its key.
    pub fn identity(&self, file: &str) -> Identity {
        Identity { certificate: self.path(&format!("{file}.pem")), key: self.path(&format!("{file}-key.pem")) }
    }

    /// Returns the path of a file in the directory.
    pub fn path(&self, name: &str) -> String {
        self.directory.join(name).to_str().expect("a path in UTF-8").to_owned()
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Arguments of `openssl req` for a new key without a password.
const NEW_KEY: [&str; 6] = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

impl Identity {
    /// Makes the key and the certificate of an authority.
    pub fn self_sign(&self, name: &str) {
        openssl(&[
            &NEW_KEY,
            &["-x509", "-days", "2", "-subj", &format!("/CN={name}"), "-addext", "basicConstraints=critical,CA:TRUE"],
            &["-keyout", &self.key, "-out", &self.certificate],
        ]);
    }

    /// Makes the key, and the certificate of an authority for `names`.
    pub fn issue(&self, subject: &str, names: &str, authority: &Identity) {
        let (request, extensions) = (format!("{}.csr", self.certificate), format!("{}.ext", self.certificate));
        std::fs::write(&extensions, format!("subjectAltName={names}\nbasicConstraints=CA:FALSE\n")).expect("a file");
        openssl(&[&NEW_KEY, &["-subj", &format!("/CN={subject}"), "-keyout", &self.key, "-out", &request]]);
        openssl(&[
            &["x509", "-req", "-days", "2", "-CAcreateserial", "-in", &request, "-CA", &authority.certificate],
            &["-CAkey", &authority.key, "-extfile", &extensions, "-out", &self.certificate],
        ]);
    }
}

/// Runs openssl, which must succeed.
pub fn openssl(arguments: &[&[&str]]) {
    let output = Command::new("openssl").args(arguments.concat()).output().expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
