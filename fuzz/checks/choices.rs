//! Choices of an input: its first four bytes decide how the other bytes are split, the order of
//! events, and the replies of Redis.
//!
//! The choices have a fixed position and length, so that mutations of the other bytes do not change
//! them. They may be letters, so that seeds can be written by hand.

use super::random::Random;

/// Length of the choices.
const CHOICE_BYTES: usize = 4;

/// Byte that stands for [`FILL_BYTES`] bytes, so that short inputs reach the limits. It occurs in
/// no text.
const FILL: u8 = 0xff;
const FILL_BYTES: usize = 1024;

/// Number of pieces that may be as short as a byte. An incomplete message is decoded again for each
/// piece, which takes long for a long input.
const SHORT_PIECES: usize = 200;
const LONG_PIECE: usize = 1000;

/// Choices of one input, with the random numbers that they seed.
pub struct Choices {
    pub bytes: [u8; CHOICE_BYTES],
    pub random: Random,
    pieces: usize,
}

impl Choices {
    /// Splits an input into the choices and the bytes behind them.
    pub fn split(input: &[u8]) -> (Choices, &[u8]) {
        let (chosen, wire) = input.split_at(input.len().min(CHOICE_BYTES));
        let mut bytes = [0; CHOICE_BYTES];
        bytes[..chosen.len()].copy_from_slice(chosen);
        (Choices { bytes, random: Random::new(u64::from(u32::from_le_bytes(bytes))), pieces: 0 }, wire)
    }

    /// Returns a random size from 0 to `max`, from the range that `style` selects.
    pub fn size(&mut self, style: u8, max: usize) -> usize {
        let max = max as u64;
        let size = match style % 6 {
            0 => max,
            1 => 1,
            2 => self.random.between(1, 8),
            3 => self.random.between(1, 64),
            4 => self.random.between(1, 2000),
            // Two pieces, split anywhere.
            _ if self.pieces == 0 => self.random.between(0, max),
            _ => max,
        };
        size.min(max) as usize
    }

    /// Returns the length of the next piece, at least 1 unless no bytes are left.
    pub fn next_piece(&mut self, left: usize) -> usize {
        let size = self.size(self.bytes[0], left);
        self.pieces += 1;
        if self.pieces > SHORT_PIECES { size.max(LONG_PIECE).min(left) } else { size.max(1).min(left) }
    }

    /// Calls `take` with one piece of `whole` after another, until it returns false.
    pub fn for_each_piece(&mut self, whole: &[u8], mut take: impl FnMut(&[u8]) -> bool) {
        let mut at = 0;
        while at < whole.len() {
            let end = at + self.next_piece(whole.len() - at);
            if !take(&whole[at..end]) {
                break;
            }
            at = end;
        }
    }
}

/// Repeats the input and expands each [`FILL`], up to `max` bytes.
pub fn expand(wire: &[u8], times: usize, max: usize) -> Vec<u8> {
    let mut all = Vec::new();
    for _ in 0..times {
        for &byte in wire {
            let count = if byte == FILL { FILL_BYTES } else { 1 };
            all.extend(std::iter::repeat_n(if byte == FILL { b'x' } else { byte }, count));
            if all.len() >= max {
                all.truncate(max);
                return all;
            }
        }
    }
    all
}
