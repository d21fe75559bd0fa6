//! Certificates for tests, made by `openssl`.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Certificate authority in a directory of its own. The files are removed when it is dropped.
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
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("segment-ca-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory for temporary files");
        let authority = Authority { directory };
        // Two authorities with the same name would be taken for one with a wrong signature.
        let subject = format!("/CN=test authority {number}");
        authority.openssl(
            &["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"],
            |command| {
                command.args(["-days", "2", "-subj", &subject]).args(["-keyout", &authority.path("ca.key")]);
                command.args(["-out", &authority.certificate()]);
            },
        );
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
        let identity =
            Identity { certificate: self.path(&format!("{file}.pem")), key: self.path(&format!("{file}.key")) };
        let (request, extensions) = (self.path(&format!("{file}.csr")), self.path(&format!("{file}.ext")));
        std::fs::write(&extensions, format!("subjectAltName={names}\nbasicConstraints=CA:FALSE\n")).expect("a file");
        self.openssl(&["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"], |command| {
            command.args(["-subj", "/CN=test", "-keyout", &identity.key, "-out", &request]);
        });
        self.openssl(&["x509", "-req", "-days", "2", "-CAcreateserial"], |command| {
            command.args(["-in", &request, "-CA", &self.certificate(), "-CAkey", &self.path("ca.key")]);
            command.args(["-extfile", &extensions, "-out", &identity.certificate]);
        });
        identity
    }

    /// Returns the path of a file in the directory.
    pub fn path(&self, name: &str) -> String {
        self.directory.join(name).to_str().expect("a path in UTF-8").to_owned()
    }

    fn openssl(&self, arguments: &[&str], add: impl FnOnce(&mut Command)) {
        let mut command = Command::new("openssl");
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        add(&mut command);
        assert!(command.status().expect("openssl is installed").success(), "{command:?} failed");
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
