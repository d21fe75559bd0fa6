//! Buffers of one event loop.

/// Size of the buffer for all reads: one usual socket buffer.
const READ_BYTES: usize = 64 * 1024;

/// Size of the buffer lent to each turn. Larger replies grow it, and the turn's end shrinks it.
pub(super) const WRITE_BYTES: usize = 64 * 1024;

/// Buffers that the clients of one event loop use in turn.
pub(super) struct Scratch {
    pub(super) read: Vec<u8>,
    pub(super) write: Vec<u8>,
    /// Plaintext and ciphertext of TLS clients. Empty without such clients.
    pub(super) plaintext: Vec<u8>,
    pub(super) ciphertext: Vec<u8>,
}

impl Scratch {
    pub(super) fn new() -> Scratch {
        let write = Vec::with_capacity(WRITE_BYTES);
        Scratch { read: vec![0; READ_BYTES], write, plaintext: Vec::new(), ciphertext: Vec::new() }
    }
}
