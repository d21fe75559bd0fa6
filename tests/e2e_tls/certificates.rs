//! Authority and certificates for one test, and a TLS client that trusts them.

use crate::common::certificates::Authority;
use crate::common::{Proxy, TEST_TIMEOUT, wait_for};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

/// Authority (`ca.pem`) with certificates in one directory.
pub struct Certificates {
    authority: Authority,
}

impl Certificates {
    /// Makes an authority, a certificate `server.pem` for localhost, and their keys.
    pub fn make() -> Certificates {
        let certificates = Certificates { authority: Authority::create() };
        certificates.issue("server", "ca");
        certificates
    }

    pub fn path(&self, name: &str) -> String {
        self.authority.path(name)
    }

    /// Makes another authority with this name.
    pub fn make_authority(&self, name: &str) {
        self.authority.identity(name).self_sign(name);
    }

    /// Makes a certificate for localhost with this name, of an authority.
    pub fn issue(&self, name: &str, authority: &str) {
        let authority = self.authority.identity(authority);
        self.authority.identity(name).issue(name, "DNS:localhost,IP:127.0.0.1", &authority);
    }

    /// Returns the variables of a proxy that uses the certificate `server.pem`, and `others`.
    pub fn variables<'a>(&self, others: &[(&'a str, &str)]) -> Vec<(&'a str, String)> {
        let files = [("TLS_CERT", self.path("server.pem")), ("TLS_KEY", self.path("server-key.pem"))];
        files.into_iter().chain(others.iter().map(|&(name, value)| (name, value.to_owned()))).collect()
    }

    /// Starts a proxy that uses the certificate `server.pem`.
    pub fn start_proxy(&self, redis_port: u16, others: &[(&str, &str)]) -> Proxy {
        let variables = self.variables(others);
        let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Proxy::start_on_redis_port(redis_port, &variables)
    }

    /// Returns the configuration of a client that trusts the authority, without a certificate.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(self.path("ca.pem")).expect("a certificate");
        roots.add(ca).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        Arc::new(builder.expect("versions").with_root_certificates(roots).with_no_client_auth())
    }

    /// Connects a client that trusts the authority.
    pub fn connect(&self, address: SocketAddr) -> TlsClient {
        TlsClient::connect(address, self.client_config())
    }

    /// Returns the certificate in a file.
    pub fn read(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path(name)).expect("a certificate")
    }

    /// Returns the key in a file.
    pub fn read_key(&self, name: &str) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_file(self.path(name)).expect("a key")
    }

    /// Runs curl with this authority. Returns what it prints, body and errors.
    pub fn curl(&self, arguments: &[&str]) -> String {
        let output = Command::new("curl").args(["-sS", "--cacert", &self.path("ca.pem")]).args(arguments).output();
        to_text(&output.expect("curl is installed"))
    }

    /// Waits until the metric of a proxy has this value.
    pub fn wait_for_metric(&self, proxy: &Proxy, sample: &str) {
        let url = format!("https://127.0.0.1:{}/metrics", proxy.address.port());
        wait_for(sample, || self.curl(&[&url]).lines().any(|line| line == sample).then_some(()));
    }

    /// Runs `openssl s_client` with `input`. Returns what it prints.
    pub fn s_client(&self, proxy: &Proxy, input: &str, arguments: &[&str]) -> String {
        let mut child = Command::new("openssl")
            .args(["s_client", "-connect", &proxy.address.to_string(), "-CAfile", &self.path("ca.pem")])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("openssl is installed");
        // A refused client may have ended already.
        let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
        to_text(&child.wait_with_output().expect("openssl ends"))
    }
}

/// Returns standard output and standard error.
pub fn to_text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// TLS client on one connection.
pub struct TlsClient {
    pub stream: StreamOwned<ClientConnection, TcpStream>,
}

impl TlsClient {
    pub fn connect(address: SocketAddr, config: Arc<ClientConfig>) -> TlsClient {
        let stream = wait_for("the proxy accepts connections", || TcpStream::connect(address).ok());
        stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("a time-out can be set");
        stream.set_nodelay(true).expect("an option can be set");
        let name = ServerName::try_from("localhost").expect("a name");
        let connection = ClientConnection::new(config, name).expect("a client");
        TlsClient { stream: StreamOwned::new(connection, stream) }
    }

    /// Requests a path, and returns the head and the body.
    pub fn get(&mut self, path: &str) -> std::io::Result<(String, Vec<u8>)> {
        self.stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes())?;
        self.read_response()
    }

    pub fn read_response(&mut self) -> std::io::Result<(String, Vec<u8>)> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("a length");
        let mut body = vec![0; length.parse().expect("a number")];
        self.stream.read_exact(&mut body)?;
        Ok((head, body))
    }

    /// Returns the body of the response for a path.
    pub fn get_text(&mut self, path: &str) -> String {
        let (_, body) = self.get(path).expect("a response");
        String::from_utf8(body).expect("a body that is text")
    }

    /// Returns true if the proxy announces the end, before it closes the connection.
    pub fn reads_announced_end(&mut self) -> bool {
        matches!(self.stream.read(&mut [0; 100]), Ok(0))
    }
}
