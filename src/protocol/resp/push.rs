//! Push messages of RESP3: invalidations for a client that caches values.

use super::writer::{RespVersion, RespWriter};
use crate::types::Push;

/// Maximum of bytes of the invalidations that wait for one reply for several keys: some hundred
/// keys. With more, everything is invalidated instead, which takes some bytes.
const MAX_WAITING_BYTES: usize = 64 * 1024;

/// Appends an invalidation, as Redis encodes it.
pub fn encode_push(push: Push<'_>, out: &mut Vec<u8>) {
    let mut out = RespWriter::new(out, RespVersion::Resp3);
    out.push(2);
    out.bulk(b"invalidate");
    match push {
        Push::Key(key) => {
            out.array(1);
            out.bulk(key);
        }
        Push::Everything => out.null(),
    }
}

/// Invalidations that wait until a reply is complete, because it may hold older values.
#[derive(Debug, Default)]
pub struct WaitingPushes {
    bytes: Vec<u8>,
    has_everything: bool,
}

impl WaitingPushes {
    /// Adds an invalidation, unless everything is invalidated already.
    pub fn add(&mut self, push: Push<'_>) {
        if self.has_everything {
            return;
        }
        encode_push(push, &mut self.bytes);
        self.has_everything = push == Push::Everything;
        if self.bytes.len() > MAX_WAITING_BYTES {
            self.bytes = Vec::new();
            self.add(Push::Everything);
        }
    }

    /// Returns the encoded invalidations.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invalidations that wait are bounded: beyond the bound they become one of everything.
    #[test]
    fn waiting_pushes_are_bounded() {
        let mut pushes = WaitingPushes::default();
        pushes.add(Push::Key(b"a"));
        assert_eq!(pushes.bytes(), b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\na\r\n");
        let key = [b'x'; 1000];
        while !pushes.has_everything {
            pushes.add(Push::Key(&key));
            assert!(pushes.bytes().len() <= MAX_WAITING_BYTES);
        }
        assert_eq!(pushes.bytes(), b">2\r\n$10\r\ninvalidate\r\n_\r\n");
        pushes.add(Push::Key(&key));
        assert_eq!(pushes.bytes().len(), 24);
    }
}
