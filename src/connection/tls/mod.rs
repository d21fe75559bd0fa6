//! TLS of one client without its socket: ciphertext in, plaintext out, and the reverse.
//!
//! [`TlsSession`] performs no I/O. The caller passes in what it read, sends the unsent ciphertext,
//! and reads no more while a limit is reached. rustls decrypts in the caller's buffer. Only the
//! ciphertext of an incomplete record is stored.
//!
//! Replies are encrypted in pieces of [`MAX_PIECE_BYTES`], and only once everything before is sent.
//! So a slow client holds one encrypted piece, and its long values stay references.

#[cfg(test)]
mod tests;

use crate::protocol::{MAX_IOVECS, SendBuffer};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic};
use rustls::{HandshakeKind, ServerConfig, SupportedCipherSuite};
use std::io::IoSlice;
use std::sync::Arc;

/// Certificate, key and rules of the TLS connections of clients.
pub type TlsConfig = ServerConfig;

/// Maximum number of bytes that a client sends before its handshake is complete. A usual client
/// sends 2 KiB, and some more with a chain of certificates.
pub const MAX_HANDSHAKE_BYTES: usize = 64 * 1024;

/// Maximum number of bytes that are encrypted before they are sent: two records of the longest
/// size. A client that does not read holds as many.
pub const MAX_PIECE_BYTES: usize = 32 * 1024;

/// Maximum number of ciphertext bytes stored for a client: a handshake message of the longest size
/// (64 KiB), and the records around it.
const MAX_STORED_BYTES: usize = 96 * 1024;

/// Longest plaintext of a record (RFC 8446, section 5.1).
const MAX_RECORD_BYTES: usize = 16 * 1024;

/// Records that the keys of TLS 1.2 are still good for when the connection is to be closed between
/// two requests. The longest value has half as many. (AES-GCM is good for 2^24 records.)
const KEY_RESERVE_RECORDS: u64 = 64 * 1024;

/// Bytes that a record adds to its plaintext, rounded up (29 with AES-GCM in TLS 1.2).
const RECORD_OVERHEAD_BYTES: usize = 64;

/// TLS state of one client.
pub struct TlsSession {
    session: UnbufferedServerConnection,
    /// Ciphertext of an incomplete record, or input that was not processed yet.
    incoming: Vec<u8>,
    /// `incoming` holds input that was not processed yet.
    has_unprocessed: bool,
    /// Bytes received before the handshake was complete.
    handshake_bytes: usize,
    /// A second ClientHello was asked for, and input arrived after that.
    has_retried: bool,
    /// Ciphertext to send. The worker lends a buffer during a turn.
    outgoing: Vec<u8>,
    /// Bytes of it that are sent already.
    outgoing_sent: usize,
    /// Records that were encrypted after the handshake.
    records_sent: u64,
    peer_closed: bool,
    end: SessionEnd,
}

/// End of a session, from the side of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SessionEnd {
    Open,
    /// `close_notify` is encrypted.
    Closed,
    /// After an error nothing is decrypted or encrypted.
    Failed,
}

impl TlsSession {
    /// Creates the session of a client that sent the first byte of a TLS record.
    ///
    /// # Errors
    ///
    /// The configuration cannot be used.
    pub fn new(config: Arc<TlsConfig>) -> Result<TlsSession, String> {
        Ok(TlsSession {
            session: UnbufferedServerConnection::new(config).map_err(|error| error.to_string())?,
            incoming: Vec::new(),
            has_unprocessed: false,
            handshake_bytes: 0,
            has_retried: false,
            outgoing: Vec::new(),
            outgoing_sent: 0,
            records_sent: 0,
            peer_closed: false,
            end: SessionEnd::Open,
        })
    }

    /// Returns true until the handshake is complete.
    pub fn is_handshaking(&self) -> bool {
        self.session.is_handshaking()
    }

    /// Returns true if the ClientHello was answered: the signature was paid, the rest of the
    /// handshake is cheap.
    pub fn is_answered(&self) -> bool {
        match self.session.handshake_kind() {
            Some(HandshakeKind::FullWithHelloRetryRequest) => self.has_retried,
            kind => kind.is_some(),
        }
    }

    /// Returns true if the client resumed an earlier session.
    pub fn is_resumed(&self) -> bool {
        self.session.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Returns true if the client announced its end by `close_notify`.
    pub fn is_peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// Returns true after an error. The connection is to be closed once the alert is sent.
    pub fn has_failed(&self) -> bool {
        self.end == SessionEnd::Failed
    }

    /// Returns true if the keys are good for few more records: the connection is to be closed
    /// between two requests. TLS 1.3 renews its keys.
    pub fn is_near_key_limit(&self) -> bool {
        let Some(SupportedCipherSuite::Tls12(suite)) = self.session.negotiated_cipher_suite() else { return false };
        self.records_sent.saturating_add(KEY_RESERVE_RECORDS) >= suite.common.confidentiality_limit
    }

    /// Stores input that [`TlsSession::process_stored`] processes later.
    pub fn store_input(&mut self, input: &[u8]) {
        self.handshake_bytes += input.len();
        self.incoming.extend_from_slice(input);
        self.has_unprocessed = true;
    }

    /// Returns true if stored input was not processed yet.
    pub fn has_unprocessed(&self) -> bool {
        self.has_unprocessed
    }

    /// Returns true if a record is incomplete.
    pub fn has_partial_record(&self) -> bool {
        !self.incoming.is_empty()
    }

    /// Processes the stored input. Works as [`TlsSession::on_input`].
    ///
    /// # Errors
    ///
    /// As [`TlsSession::on_input`].
    pub fn process_stored(&mut self, plaintext: &mut Vec<u8>) -> Result<(), String> {
        self.has_unprocessed = false;
        let mut incoming = std::mem::take(&mut self.incoming);
        let consumed = self.process(&mut incoming, plaintext)?;
        incoming.drain(..consumed);
        incoming.shrink_to_fit();
        self.store(incoming)
    }

    /// Processes ciphertext that was read, and appends its plaintext to `plaintext`. Decrypts in
    /// place. Queues handshake messages and alerts for sending.
    ///
    /// # Errors
    ///
    /// The reason why the session cannot continue. An alert for the client may be queued.
    pub fn on_input(&mut self, input: &mut [u8], plaintext: &mut Vec<u8>) -> Result<(), String> {
        if self.is_handshaking() {
            self.handshake_bytes += input.len();
            if self.handshake_bytes > MAX_HANDSHAKE_BYTES {
                self.end = SessionEnd::Failed;
                return Err(format!("the handshake is longer than {MAX_HANDSHAKE_BYTES} bytes"));
            }
        }
        if !self.incoming.is_empty() {
            self.incoming.extend_from_slice(input);
            return self.process_stored(plaintext);
        }
        let consumed = self.process(input, plaintext)?;
        self.store(input[consumed..].to_vec())
    }

    /// Stores the ciphertext of an incomplete record.
    fn store(&mut self, incoming: Vec<u8>) -> Result<(), String> {
        if incoming.len() > MAX_STORED_BYTES {
            self.end = SessionEnd::Failed;
            return Err(format!("a message is longer than {MAX_STORED_BYTES} bytes"));
        }
        self.incoming = incoming;
        Ok(())
    }

    /// Processes the records in `buffer`. Returns the number of bytes consumed.
    fn process(&mut self, buffer: &mut [u8], plaintext: &mut Vec<u8>) -> Result<usize, String> {
        if self.end == SessionEnd::Failed || self.peer_closed {
            return Ok(buffer.len());
        }
        self.has_retried |= self.session.handshake_kind() == Some(HandshakeKind::FullWithHelloRetryRequest);
        let mut consumed = 0;
        loop {
            let UnbufferedStatus { discard, state } = self.session.process_tls_records(&mut buffer[consumed..]);
            consumed += discard;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        consumed += record.discard;
                        plaintext.extend_from_slice(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, &mut self.outgoing)?,
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => {
                    // What follows is to be ignored (RFC 8446, section 6.1).
                    self.peer_closed = true;
                    return Ok(buffer.len());
                }
                // More input is needed. Early data is never accepted.
                Ok(_) => return Ok(consumed),
                Err(error) => {
                    self.end = SessionEnd::Failed;
                    self.queue_alert()?;
                    return Err(error.to_string());
                }
            }
        }
    }

    /// Queues the alert that describes an error to the client.
    fn queue_alert(&mut self) -> Result<(), String> {
        while self.session.wants_write() {
            // A queued message comes before any input.
            match self.session.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, &mut self.outgoing)?,
                _ => break,
            }
        }
        Ok(())
    }

    /// Encrypts up to `max_bytes` of the unsent bytes, at most `MAX_PIECE_BYTES`, and removes
    /// them from `send_buffer`. Returns their number.
    ///
    /// # Errors
    ///
    /// The reason why the session cannot continue. If its keys are used up, it has failed, and
    /// `close_notify` is queued.
    pub fn encrypt(&mut self, send_buffer: &mut SendBuffer, max_bytes: usize) -> Result<usize, String> {
        let max_bytes = max_bytes.min(MAX_PIECE_BYTES);
        let mut encrypted = 0;
        match send_buffer.contiguous() {
            Some(bytes) => {
                let bytes = &bytes[..bytes.len().min(max_bytes)];
                self.write(Output::Bytes(bytes))?;
                encrypted = bytes.len();
            }
            None => {
                let mut slices = [IoSlice::new(&[]); MAX_IOVECS];
                let count = send_buffer.io_slices(&mut slices, max_bytes);
                for slice in &slices[..count] {
                    self.write(Output::Bytes(slice))?;
                    encrypted += slice.len();
                }
            }
        }
        send_buffer.advance(encrypted);
        Ok(encrypted)
    }

    /// Ends the output by `close_notify`, unless the handshake is incomplete.
    pub fn close(&mut self) {
        if self.end == SessionEnd::Open && !self.is_handshaking() {
            // On failure the client sees an end without it, as after a crash.
            let _ = self.write(Output::CloseNotify);
            self.end = SessionEnd::Closed;
        }
    }

    fn write(&mut self, output: Output<'_>) -> Result<(), String> {
        if self.end != SessionEnd::Open {
            return Err("the session is closed".into());
        }
        loop {
            // Without complete records in it, the stored input stays as it is.
            let UnbufferedStatus { discard, state } = self.session.process_tls_records(&mut self.incoming);
            let is_written = match state {
                Ok(ConnectionState::WriteTraffic(traffic)) => {
                    if let Err(error) = append(traffic, output, &mut self.outgoing) {
                        self.end = SessionEnd::Failed;
                        self.queue_alert()?;
                        return Err(error);
                    }
                    self.records_sent += match output {
                        Output::Bytes(bytes) => bytes.len().div_ceil(MAX_RECORD_BYTES) as u64,
                        Output::CloseNotify => 1,
                    };
                    true
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut data, &mut self.outgoing)?;
                    false
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    false
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.peer_closed = true;
                    false
                }
                Ok(state) => return Err(format!("cannot send in the state {state:?}")),
                Err(error) => return Err(error.to_string()),
            };
            self.incoming.drain(..discard);
            if is_written {
                return Ok(());
            }
        }
    }

    /// Returns the ciphertext to send.
    pub fn unsent(&self) -> &[u8] {
        &self.outgoing[self.outgoing_sent..]
    }

    /// Removes the first `count` bytes, which the socket has accepted.
    pub fn advance(&mut self, count: usize) {
        self.outgoing_sent += count;
        if self.outgoing_sent == self.outgoing.len() {
            self.outgoing.clear();
            self.outgoing_sent = 0;
        }
    }

    /// Returns true if so much is unsent that no input is to be processed. Messages of the protocol
    /// are answered at once, and their answers must not pile up.
    pub fn is_output_full(&self) -> bool {
        self.unsent().len() > 2 * MAX_PIECE_BYTES
    }

    /// Lends `buffer` for the ciphertext of a turn, unless the session owns one.
    pub fn lend_output(&mut self, buffer: &mut Vec<u8>) {
        if self.outgoing.capacity() == 0 {
            std::mem::swap(&mut self.outgoing, buffer);
        }
    }

    /// Returns the lent buffer, emptied. Keeps unsent bytes in a buffer of the exact size.
    pub fn reclaim_output(&mut self, buffer: &mut Vec<u8>) {
        let rest = self.unsent().to_vec();
        let mut used = std::mem::replace(&mut self.outgoing, rest);
        self.outgoing_sent = 0;
        if buffer.capacity() == 0 {
            used.clear();
            *buffer = used;
        }
    }
}

/// Output to encrypt.
#[derive(Clone, Copy)]
enum Output<'a> {
    Bytes(&'a [u8]),
    CloseNotify,
}

/// Encrypts `output`, and appends it to `out`.
fn append(
    mut traffic: WriteTraffic<'_, ServerConnectionData>,
    output: Output<'_>,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let start = out.len();
    let plain_bytes = if let Output::Bytes(bytes) = output { bytes.len() } else { 0 };
    let mut space = plain_bytes + RECORD_OVERHEAD_BYTES * (plain_bytes / MAX_RECORD_BYTES + 1);
    loop {
        out.resize(start + space, 0);
        let result = match output {
            Output::Bytes(bytes) => traffic.encrypt(bytes, &mut out[start..]),
            Output::CloseNotify => traffic.queue_close_notify(&mut out[start..]),
        };
        match result {
            Ok(written) => {
                out.truncate(start + written);
                return Ok(());
            }
            Err(EncryptError::InsufficientSize(error)) if error.required_size > space => space = error.required_size,
            Err(error) => {
                out.truncate(start);
                return Err(match error {
                    EncryptError::EncryptExhausted => "the keys of TLS 1.2 are used up; use TLS 1.3".into(),
                    EncryptError::InsufficientSize(_) => error.to_string(),
                });
            }
        }
    }
}

/// Appends a message of the protocol to `out`.
fn encode(data: &mut EncodeTlsData<'_, ServerConnectionData>, out: &mut Vec<u8>) -> Result<(), String> {
    let start = out.len();
    let mut space = RECORD_OVERHEAD_BYTES;
    loop {
        out.resize(start + space, 0);
        match data.encode(&mut out[start..]) {
            Ok(written) => {
                out.truncate(start + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(error)) if error.required_size > space => space = error.required_size,
            Err(error) => {
                out.truncate(start);
                return Err(error.to_string());
            }
        }
    }
}
