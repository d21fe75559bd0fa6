//! What an input says beside the wire's bytes: its first four bytes choose how those are cut, in which order things
//! happen, and what Redis says. They stand in front and never change their number, so that whatever a mutation does to
//! the wire leaves the choices as they were; and they may be letters, so that a seed can be written by hand.

use super::random::Random;

/// Bytes of the choices at the beginning of an input.
const CHOICE_BYTES: usize = 4;

/// Stands for [`FILL_BYTES`] bytes where limits are beyond what a fuzzer makes up. No text has it.
const FILL: u8 = 0xff;
const FILL_BYTES: usize = 1024;

/// Pieces that may be as short as a byte. A long input that never becomes a whole message is looked at anew for each.
const SHORT_PIECES: usize = 200;
const LONG_PIECE: usize = 1000;

/// See the top of the file.
pub struct Choices {
    pub bytes: [u8; CHOICE_BYTES],
    pub random: Random,
    pieces: usize,
}

impl Choices {
    /// The choices, and the bytes behind them.
    pub fn split(input: &[u8]) -> (Choices, &[u8]) {
        let (chosen, wire) = input.split_at(input.len().min(CHOICE_BYTES));
        let mut bytes = [0; CHOICE_BYTES];
        bytes[..chosen.len()].copy_from_slice(chosen);
        (Choices { bytes, random: Random::new(u64::from(u32::from_le_bytes(bytes))), pieces: 0 }, wire)
    }

    /// From 0 to `most`, by chance, within the size that `style` chooses.
    pub fn size(&mut self, style: u8, most: usize) -> usize {
        let most = most as u64;
        let size = match style % 6 {
            0 => most,
            1 => 1,
            2 => self.random.between(1, 8),
            3 => self.random.between(1, 64),
            4 => self.random.between(1, 2000),
            // Somewhere, and then the rest.
            _ if self.pieces == 0 => self.random.between(0, most),
            _ => most,
        };
        size.min(most) as usize
    }

    /// The length of the next piece of what is left. Some of it, if there is any.
    pub fn piece(&mut self, left: usize) -> usize {
        let size = self.size(self.bytes[0], left);
        self.pieces += 1;
        if self.pieces > SHORT_PIECES { size.max(LONG_PIECE).min(left) } else { size.max(1).min(left) }
    }

    /// Calls `take` with one piece of `whole` after the other, as long as it says that it takes more.
    pub fn cut(&mut self, whole: &[u8], mut take: impl FnMut(&[u8]) -> bool) {
        let mut at = 0;
        while at < whole.len() {
            let end = at + self.piece(whole.len() - at);
            if !take(&whole[at..end]) {
                break;
            }
            at = end;
        }
    }
}

/// The wire with what each [`FILL`] stands for, so many times, and no longer than `most` bytes.
pub fn expand(wire: &[u8], times: usize, most: usize) -> Vec<u8> {
    let mut all = Vec::new();
    for _ in 0..times {
        for &byte in wire {
            let count = if byte == FILL { FILL_BYTES } else { 1 };
            all.extend(std::iter::repeat_n(if byte == FILL { b'x' } else { byte }, count));
            if all.len() >= most {
                all.truncate(most);
                return all;
            }
        }
    }
    all
}
