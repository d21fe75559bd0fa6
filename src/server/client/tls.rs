//! TLS of a client: detects it by the first byte, and passes ciphertext between the socket and
//! [`TlsSession`].

use super::{Client, TurnContext, TurnResult};
use crate::client_auth::ClientAddress;
use crate::connection::TlsSession;
use crate::log_throttle::LogThrottle;
use crate::metrics::TlsHandshakeResult;
use crate::server::Scratch;
use crate::server::timeouts::Activity;
use crate::tls_server::TlsServer;
use crate::types::Millis;
use std::io;
use std::sync::Arc;

/// First byte of a TLS handshake (RFC 8446, section 5.1). No request of HTTP or RESP starts with
/// it.
const TLS_HANDSHAKE_BYTE: u8 = 0x16;

/// Maximum number of bytes read in a turn until the handshake is complete. They may have to wait
/// for a turn of the handshake, so the rest stays in the kernel.
const HANDSHAKE_READ_BYTES: usize = 16 * 1024;

/// Capacity that the buffers for TLS clients keep between turns: one read, or two records.
const TLS_BUFFER_BYTES: usize = 64 * 1024;

/// Transport of a client's bytes.
pub(super) enum Transport {
    Plain,
    /// The first byte decides.
    Detecting,
    Tls(Box<TlsSession>),
}

/// Stage of a handshake that waits for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum HandshakeStage {
    /// The ClientHello is not answered: this turn may cost a signature.
    Hello,
    /// The signature was paid: the turn reads the rest of the handshake.
    Answered,
}

/// TLS as the clients of one event loop use it.
pub(in crate::server) struct TlsContext {
    server: Arc<TlsServer>,
    failures: LogThrottle,
}

impl TlsContext {
    pub(in crate::server) fn new(server: Arc<TlsServer>) -> TlsContext {
        TlsContext { server, failures: LogThrottle::default() }
    }

    /// Logs why a client's TLS ended, at most once in 10 s at the level of `RUST_LOG=info`.
    fn log_failure(&mut self, peer: ClientAddress, reason: &str, now: Millis) {
        log::debug!("TLS with the client {peer} failed: {reason}");
        if let Some(suppressed) = self.failures.admit(now) {
            let hint = TlsServer::hint(reason);
            log::info!(
                "TLS with the client {peer} failed: {reason}{hint} ({suppressed} more since the last such line)"
            );
        }
    }
}

impl Client {
    /// Waits for the first byte: it decides between TLS and a plain connection.
    pub(in crate::server) fn detect_tls(&mut self, tls: &TlsContext) {
        self.transport = Transport::Detecting;
        if tls.server.is_required() {
            self.connection.require_tls();
        }
    }

    pub(in crate::server) fn is_tls(&self) -> bool {
        matches!(self.transport, Transport::Tls(_))
    }

    /// Returns true if the client is to be closed between two requests, because its keys are nearly
    /// used up.
    pub(in crate::server) fn is_near_key_limit(&self) -> bool {
        self.tls().is_some_and(TlsSession::is_near_key_limit)
    }

    fn tls(&self) -> Option<&TlsSession> {
        if let Transport::Tls(tls) = &self.transport { Some(tls) } else { None }
    }

    /// Returns the session of a TLS client until its handshake is complete or has failed.
    fn handshaking(&self) -> Option<&TlsSession> {
        self.tls().filter(|tls| tls.is_handshaking() && !tls.has_failed())
    }

    pub(in crate::server) fn is_handshaking(&self) -> bool {
        self.handshaking().is_some()
    }

    /// Returns the stage of a handshake that waits for its turn, `None` without one. A client that
    /// is only to be closed waits for none.
    pub(in crate::server) fn handshake_stage(&self) -> Option<HandshakeStage> {
        match self.handshaking()?.is_answered() {
            true => Some(HandshakeStage::Answered),
            false if self.peer_closing => None,
            false => Some(HandshakeStage::Hello),
        }
    }

    /// Returns true if the client closed its end before its ClientHello was answered. It cannot
    /// complete the handshake.
    pub(in crate::server) fn has_left_handshake(&self) -> bool {
        self.peer_closing && self.is_handshaking() && self.handshake_stage().is_none()
    }

    /// Returns the activity of a client until its handshake is complete. The time in the queue of
    /// handshakes is not the client's.
    pub(super) fn handshake_activity(&self) -> Option<Activity> {
        match self.has_unprocessed() {
            true => Some(Activity::Processing),
            false => self.handshaking().map(|_| Activity::Handshake),
        }
    }

    pub(super) fn has_tls_failed(&self) -> bool {
        self.tls().is_some_and(TlsSession::has_failed)
    }

    pub(super) fn has_unprocessed(&self) -> bool {
        self.tls().is_some_and(TlsSession::has_unprocessed)
    }

    pub(super) fn has_partial_record(&self) -> bool {
        self.tls().is_some_and(TlsSession::has_partial_record)
    }

    /// Returns true if no reply and no ciphertext is unsent.
    pub(super) fn is_all_sent(&mut self) -> bool {
        self.tls().is_none_or(|tls| tls.unsent().is_empty()) && self.connection.send_buffer().is_empty()
    }

    /// Returns true if more input can be processed.
    pub(super) fn can_take_input(&self) -> bool {
        self.connection.can_take_request() && self.tls().is_none_or(|tls| !tls.is_output_full())
    }

    pub(super) fn lend_ciphertext(&mut self, scratch: &mut Scratch) {
        if let Transport::Tls(tls) = &mut self.transport {
            tls.lend_output(&mut scratch.ciphertext);
        }
    }

    pub(super) fn reclaim_ciphertext(&mut self, scratch: &mut Scratch) {
        if let Transport::Tls(tls) = &mut self.transport {
            tls.reclaim_output(&mut scratch.ciphertext);
            scratch.ciphertext.shrink_to(TLS_BUFFER_BYTES);
        }
    }

    /// Encrypts and sends replies, until all are sent, the socket is full, or about `max_bytes` are
    /// sent. A piece is encrypted only once the one before is sent.
    pub(super) fn send_tls(&mut self, max_bytes: usize) -> io::Result<()> {
        let Transport::Tls(tls) = &mut self.transport else { return Ok(()) };
        let mut sent = 0;
        while self.writable && sent < max_bytes {
            if tls.unsent().is_empty() {
                if self.connection.send_buffer().is_empty() || tls.has_failed() {
                    break;
                }
                if let Err(reason) = tls.encrypt(self.connection.send_buffer(), max_bytes - sent) {
                    if !tls.has_failed() {
                        return Err(io::Error::other(reason));
                    }
                    // No throttle: each line takes 2^24 records of one connection.
                    log::info!("TLS with the client {} ended within a reply: {reason}", self.connection.peer());
                }
            }
            let length = tls.unsent().len();
            match self.stream.send(tls.unsent()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => {
                    self.writable = taken == length;
                    tls.advance(taken);
                    sent += taken;
                    self.sent_this_turn += taken;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads once, or takes the stored input of a handshake, and decodes the plaintext. Fails if
    /// the client left before its ClientHello was answered: nothing is signed for it.
    pub(super) fn read_tls(&mut self, slot: usize, turn: &mut TurnContext<'_>) -> io::Result<()> {
        if self.has_left_handshake() {
            self.read_eof = true;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if self.has_unprocessed() {
            self.process_ciphertext(slot, turn, &mut []);
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut turn.scratch.read);
        let is_open = self.is_tls() && !self.is_handshaking();
        let limit = if is_open { buffer.len() } else { HANDSHAKE_READ_BYTES.min(buffer.len()) };
        let result = self.receive(&mut buffer[..limit]);
        if let Ok(length @ 1..) = result {
            let input = &mut buffer[..length];
            match self.transport {
                Transport::Tls(_) => self.process_ciphertext(slot, turn, input),
                _ => self.detect(slot, turn, input),
            }
        }
        turn.scratch.read = buffer;
        result.map(|_| ())
    }

    /// Decides by the first bytes of a client. The bytes of a handshake wait for a turn in the
    /// queue of handshakes.
    fn detect(&mut self, slot: usize, turn: &mut TurnContext<'_>, input: &[u8]) {
        self.transport = Transport::Plain;
        let Some(tls) = turn.tls.as_mut().filter(|_| input.first() == Some(&TLS_HANDSHAKE_BYTE)) else {
            self.decode_paused = turn.dispatcher.on_input(&mut self.connection, slot, input);
            return;
        };
        if self.rejected {
            return self.connection.reject_tls();
        }
        match TlsSession::new(tls.server.config()) {
            Ok(mut session) => {
                session.store_input(input);
                self.transport = Transport::Tls(Box::new(session));
                self.connection.begin_tls();
            }
            Err(reason) => {
                tls.log_failure(self.connection.peer(), &reason, turn.dispatcher.now);
                self.connection.reject_tls();
            }
        }
    }

    /// Decrypts `input`, or the stored input if there is any, and decodes the plaintext.
    fn process_ciphertext(&mut self, slot: usize, turn: &mut TurnContext<'_>, input: &mut [u8]) {
        let Transport::Tls(tls) = &mut self.transport else { return };
        let mut plaintext = std::mem::take(&mut turn.scratch.plaintext);
        let was_handshaking = tls.is_handshaking();
        let result = match input {
            [] => tls.process_stored(&mut plaintext),
            input => tls.on_input(input, &mut plaintext),
        };
        if tls.is_peer_closed() {
            (self.readable, self.read_eof) = (false, true);
        }
        let (is_handshaking, is_resumed) = (tls.is_handshaking(), tls.is_resumed());
        let handshakes = &mut turn.dispatcher.context.reply.recorder.metrics.tls_handshakes;
        match result {
            Ok(()) => {
                if was_handshaking && !is_handshaking {
                    let result = if is_resumed { TlsHandshakeResult::Resumed } else { TlsHandshakeResult::Full };
                    handshakes[result as usize] += 1;
                }
                if !plaintext.is_empty() {
                    self.decode_paused = turn.dispatcher.on_input(&mut self.connection, slot, &plaintext);
                }
            }
            Err(reason) => {
                if was_handshaking {
                    handshakes[TlsHandshakeResult::Failed as usize] += 1;
                }
                if let Some(tls) = &mut turn.tls {
                    tls.log_failure(self.connection.peer(), &reason, turn.dispatcher.now);
                }
            }
        }
        plaintext.clear();
        plaintext.shrink_to(TLS_BUFFER_BYTES);
        turn.scratch.plaintext = plaintext;
    }

    /// Counts a handshake that did not end before the client is closed.
    pub(super) fn record_unfinished_handshake(&self, turn: &mut TurnContext<'_>) {
        if self.is_handshaking() {
            turn.dispatcher.context.reply.recorder.metrics.tls_handshakes[TlsHandshakeResult::Failed as usize] += 1;
            if let Some(tls) = &mut turn.tls {
                let reason = if self.read_eof { "the client closed the connection" } else { "the client was too slow" };
                tls.log_failure(
                    self.connection.peer(),
                    &format!("{reason} before the handshake was complete"),
                    turn.dispatcher.now,
                );
            }
        }
    }

    /// Announces the end of the output to a TLS client. If the socket is full, the client sees an
    /// end without announcement.
    pub(super) fn close_tls(&mut self) {
        if let Transport::Tls(tls) = &mut self.transport {
            tls.close();
            if !tls.unsent().is_empty() {
                let _ = self.stream.send(tls.unsent());
            }
        }
    }

    /// Closes a client after an error of its TLS, once the alert is sent.
    pub(super) fn finish_failed(&mut self) -> TurnResult {
        match self.tls().is_none_or(|tls| tls.unsent().is_empty()) {
            true if self.read_eof => TurnResult::Close,
            true => self.start_linger(),
            false if self.writable => TurnResult::Requeue,
            false => TurnResult::Wait,
        }
    }
}
