//! A client of the Redis protocol that sees exactly what comes.

use super::{PATIENCE, until};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

/// What marks the end of the replies that are waited for.
const MARK: &[u8] = b"$13\r\nthat was all.\r\n";
const ASK_FOR_MARK: &[u8] = b"*2\r\n$4\r\nECHO\r\n$13\r\nthat was all.\r\n";

/// A command's bytes.
pub fn command<T: AsRef<[u8]>>(words: &[T]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n", word.as_ref().len()).bytes());
        bytes.extend_from_slice(word.as_ref());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// The words of a text with single spaces between them.
pub fn words(text: &str) -> Vec<u8> {
    command(&text.split(' ').collect::<Vec<_>>())
}

/// See the top of the file.
pub struct Resp {
    pub stream: TcpStream,
}

impl Resp {
    pub fn connect(address: impl Into<SocketAddr>) -> Resp {
        let address = address.into();
        let stream = until("somebody takes connections", || TcpStream::connect(address).ok());
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
        stream.set_nodelay(true).expect("an option can be set");
        Resp { stream }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("it is read");
    }

    /// All replies to what is sent, byte for byte.
    pub fn ask(&mut self, bytes: impl AsRef<[u8]>) -> Vec<u8> {
        self.send(bytes);
        self.rest()
    }

    /// All replies that are still to come.
    pub fn rest(&mut self) -> Vec<u8> {
        self.send(ASK_FOR_MARK);
        let (mut received, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
        while !received.ends_with(MARK) {
            let length = self.stream.read(&mut buffer).expect("a reply comes");
            assert!(length > 0, "the connection ended after {:?}", String::from_utf8_lossy(&received));
            received.extend_from_slice(&buffer[..length]);
        }
        received.truncate(received.len() - MARK.len());
        received
    }

    /// As text.
    pub fn text(&mut self, words_of_command: &str) -> String {
        String::from_utf8_lossy(&self.ask(words(words_of_command))).into_owned()
    }

    /// All that comes until the connection is closed from the other side.
    pub fn until_closed(&mut self) -> String {
        let mut received = Vec::new();
        // A reset ends it too; what came before counts.
        let _ = self.stream.read_to_end(&mut received);
        String::from_utf8_lossy(&received).into_owned()
    }

    /// No more will be sent.
    pub fn end(&mut self) {
        self.stream.shutdown(Shutdown::Write).expect("it is connected");
    }
}
