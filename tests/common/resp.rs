//! RESP client that returns the exact bytes of the replies.

use super::{TEST_TIMEOUT, wait_for};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

/// Reply to `ECHO_MARK`, which ends the replies to a request.
const MARK: &[u8] = b"$13\r\nthat was all.\r\n";
const ECHO_MARK: &[u8] = b"*2\r\n$4\r\nECHO\r\n$13\r\nthat was all.\r\n";

/// Encodes a command as an array of bulk strings.
pub fn encode_command<T: AsRef<[u8]>>(words: &[T]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n", word.as_ref().len()).bytes());
        bytes.extend_from_slice(word.as_ref());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Encodes a command given as words separated by single spaces.
pub fn encode_words(text: &str) -> Vec<u8> {
    encode_command(&text.split(' ').collect::<Vec<_>>())
}

/// Connection that speaks RESP.
pub struct RespClient {
    pub stream: TcpStream,
}

impl RespClient {
    pub fn connect(address: impl Into<SocketAddr>) -> RespClient {
        let address = address.into();
        RespClient::new(wait_for("the server accepts connections", || TcpStream::connect(address).ok()))
    }

    pub fn new(stream: TcpStream) -> RespClient {
        stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("a time-out can be set");
        stream.set_nodelay(true).expect("an option can be set");
        RespClient { stream }
    }

    /// Sends bytes without waiting for replies.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the server reads");
    }

    /// Sends bytes and returns all replies to them, byte for byte.
    pub fn call(&mut self, bytes: impl AsRef<[u8]>) -> Vec<u8> {
        self.send(bytes);
        self.read_replies()
    }

    /// Returns all outstanding replies.
    ///
    /// Sends an `ECHO` and reads up to the reply to it.
    pub fn read_replies(&mut self) -> Vec<u8> {
        self.send(ECHO_MARK);
        let (mut received, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
        while !received.ends_with(MARK) {
            let length = self.stream.read(&mut buffer).expect("a reply comes");
            assert!(length > 0, "the connection ended after {:?}", String::from_utf8_lossy(&received));
            received.extend_from_slice(&buffer[..length]);
        }
        received.truncate(received.len() - MARK.len());
        received
    }

    /// Sends a command given as words and returns the reply as text.
    pub fn call_text(&mut self, words_of_command: &str) -> String {
        String::from_utf8_lossy(&self.call(encode_words(words_of_command))).into_owned()
    }

    /// Returns the bytes of the next reply or push message.
    pub fn read_message(&mut self) -> String {
        let mut message = Vec::new();
        self.read_element(&mut message);
        String::from_utf8_lossy(&message).into_owned()
    }

    /// Appends the next element with all elements in it.
    fn read_element(&mut self, message: &mut Vec<u8>) {
        let start = message.len();
        while !message[start..].ends_with(b"\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).expect("a message comes");
            message.push(byte[0]);
        }
        let line = String::from_utf8_lossy(&message[start + 1..message.len() - 2]).into_owned();
        let count = || line.parse::<i64>().expect("a number");
        match message[start] {
            b'$' | b'=' if count() >= 0 => {
                let mut rest = vec![0; count() as usize + 2];
                self.stream.read_exact(&mut rest).expect("a whole string");
                message.extend_from_slice(&rest);
            }
            b'*' | b'~' | b'>' => (0..count()).for_each(|_| self.read_element(message)),
            b'%' => (0..2 * count()).for_each(|_| self.read_element(message)),
            _ => {}
        }
    }

    /// Sends a command given as words and returns the next message.
    pub fn ask(&mut self, words_of_command: &str) -> String {
        self.send(encode_words(words_of_command));
        self.read_message()
    }

    /// Returns all bytes received until the server closes the connection.
    pub fn read_to_close(&mut self) -> String {
        let mut received = Vec::new();
        // A reset also ends the connection. Bytes received before it count.
        let _ = self.stream.read_to_end(&mut received);
        String::from_utf8_lossy(&received).into_owned()
    }

    /// Closes the sending side.
    pub fn shutdown_write(&mut self) {
        self.stream.shutdown(Shutdown::Write).expect("it is connected");
    }
}
