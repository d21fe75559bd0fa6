//! Client of a Unix socket, and a directory for one.

use super::{TEST_TIMEOUT, wait_for};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Empty directory with a short path, removed when dropped.
pub struct SocketDirectory(pub PathBuf);

impl SocketDirectory {
    pub fn new(name: &str) -> SocketDirectory {
        let path = std::env::temp_dir().join(format!("segment-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).expect("a directory can be created");
        SocketDirectory(path)
    }

    /// Returns the path of a file in the directory.
    pub fn path_of(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a path in UTF-8").to_owned()
    }

    /// Returns the names in the directory.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).expect("a directory");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Drop for SocketDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Client that is connected to a Unix socket.
pub struct UnixClient {
    pub stream: BufReader<UnixStream>,
}

impl UnixClient {
    pub fn connect(path: impl AsRef<Path>) -> UnixClient {
        let stream = wait_for("the proxy accepts connections", || UnixStream::connect(path.as_ref()).ok());
        UnixClient::new(stream)
    }

    pub fn new(stream: UnixStream) -> UnixClient {
        stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("a time-out can be set");
        UnixClient { stream: BufReader::new(stream) }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.get_mut().write_all(bytes.as_ref()).expect("the proxy reads");
    }

    /// Sends a `GET`, and returns the status and the body of the response.
    pub fn get(&mut self, path: &str) -> (u16, String) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"));
        self.read_response().expect("a response")
    }

    /// Returns the status and the body of the next response.
    pub fn read_response(&mut self) -> std::io::Result<(u16, String)> {
        let (mut status, mut length, mut line) = (0, 0, String::new());
        while line != "\r\n" {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
                status = rest[..3].parse().expect("a status");
            } else if let Some(rest) = line.strip_prefix("Content-Length: ") {
                length = rest.trim().parse().expect("a length");
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((status, String::from_utf8(body).expect("a body that is text")))
    }

    /// Returns all bytes up to the end of the stream.
    pub fn read_to_close(&mut self) -> String {
        let mut text = String::new();
        self.stream.read_to_string(&mut text).expect("the proxy closes the connection");
        text
    }
}
