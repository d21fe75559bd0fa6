//! Stand-in for the TLS of clients in a build without the feature `tls`. No value of these types
//! exists.

use crate::protocol::SendBuffer;
use std::sync::Arc;

/// Configuration that does not exist.
pub enum TlsConfig {}

/// Session that does not exist.
pub enum TlsSession {}

#[allow(missing_docs, reason = "as in mod.rs")]
impl TlsSession {
    pub fn new(config: Arc<TlsConfig>) -> Result<TlsSession, String> {
        match *config {}
    }

    pub fn is_handshaking(&self) -> bool {
        match *self {}
    }

    pub fn is_answered(&self) -> bool {
        match *self {}
    }

    pub fn is_resumed(&self) -> bool {
        match *self {}
    }

    pub fn is_peer_closed(&self) -> bool {
        match *self {}
    }

    pub fn has_failed(&self) -> bool {
        match *self {}
    }

    pub fn is_near_key_limit(&self) -> bool {
        match *self {}
    }

    pub fn store_input(&mut self, _: &[u8]) {
        match *self {}
    }

    pub fn has_unprocessed(&self) -> bool {
        match *self {}
    }

    pub fn has_partial_record(&self) -> bool {
        match *self {}
    }

    pub fn process_stored(&mut self, _: &mut Vec<u8>) -> Result<(), String> {
        match *self {}
    }

    pub fn on_input(&mut self, _: &mut [u8], _: &mut Vec<u8>) -> Result<(), String> {
        match *self {}
    }

    pub fn encrypt(&mut self, _: &mut SendBuffer, _: usize) -> Result<usize, String> {
        match *self {}
    }

    pub fn close(&mut self) {
        match *self {}
    }

    pub fn unsent(&self) -> &[u8] {
        match *self {}
    }

    pub fn advance(&mut self, _: usize) {
        match *self {}
    }

    pub fn is_output_full(&self) -> bool {
        match *self {}
    }

    pub fn lend_output(&mut self, _: &mut Vec<u8>) {
        match *self {}
    }

    pub fn reclaim_output(&mut self, _: &mut Vec<u8>) {
        match *self {}
    }
}
