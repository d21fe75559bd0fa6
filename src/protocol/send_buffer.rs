//! What a connection has still to send.
//!
//! Short things are written into `tail`, one buffer that takes reply after reply. During a turn the loop lends its own
//! buffer as the tail, so that a hit allocates nothing; what the socket does not take is copied into a buffer of the
//! right size, and an idle connection owns none.
//!
//! A long value is queued as a reference. It goes to the socket straight from the cache's memory, or, where JSON needs
//! it escaped or in base64, through a window of [`RENDER_WINDOW_BYTES`] that is rendered when the socket has room for it. So
//! however many clients read 64 MiB at whatever pace, the proxy holds the value once and a window for each. A long reply
//! about several keys is rendered through such a window too.

use super::http::json::{self, Encoding};
use super::multi::MultiReply;
use super::pinned::PinnedValue;
use crate::value::Value;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

/// Slices handed to one `writev`: a head, a value, an end, for a few pipelined replies.
pub const MAX_IOVECS: usize = 8;

/// Source bytes rendered at a time. A multiple of 3, so that base64 needs padding only at the end. About what one
/// `write` moves; escaped it may grow sixfold.
const RENDER_WINDOW_BYTES: usize = 48 * 1024;

/// The queue. See the top of the file.
#[derive(Debug, Default)]
pub struct SendBuffer {
    /// Before the tail, in order.
    queue: VecDeque<Chunk>,
    /// Bytes in the queue, as far as known: a value or a reply that is not rendered counts with its own length.
    queued_bytes: usize,
    /// Lent by the loop during a turn; otherwise what the socket did not take, or what a completion has added.
    tail: Vec<u8>,
    /// Bytes of the tail that are sent.
    tail_sent: usize,
}

#[derive(Debug)]
enum Chunk {
    Bytes {
        bytes: Box<[u8]>,
        sent: usize,
    },
    /// Of the value, what is before `end`. `sent` counts from the value's beginning.
    Value {
        value: PinnedValue,
        encoding: Encoding,
        sent: usize,
        end: usize,
    },
    /// What is not rendered of a reply about several keys.
    Multi(Box<MultiReply>),
}

impl SendBuffer {
    /// The buffer to append short things to. What is written here leaves after all that came before.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.tail
    }

    /// Queues a long value without copying it.
    pub fn push_value(&mut self, value: &Arc<Value>, encoding: Encoding) {
        self.push_range(value, encoding, 0..value.bytes.len());
    }

    /// Queues a part of a long value, which must be within it, as it is and without copying it.
    pub fn push_raw_range(&mut self, value: &Arc<Value>, part: Range<usize>) {
        self.push_range(value, Encoding::Raw, part);
    }

    fn push_range(&mut self, value: &Arc<Value>, encoding: Encoding, part: Range<usize>) {
        self.seal_tail();
        if !part.is_empty() {
            self.queued_bytes += part.len();
            let (value, sent, end) = (PinnedValue::new(value), part.start, part.end);
            self.queue.push_back(Chunk::Value { value, encoding, sent, end });
        }
    }

    /// Queues the parts of a complete reply, to be rendered when it is their turn.
    pub fn push_multi(&mut self, mut multi: Box<MultiReply>) {
        if multi.memory_bytes() <= RENDER_WINDOW_BYTES {
            // Short: at once, without a turn of its own.
            return multi.render(usize::MAX, self);
        }
        self.seal_tail();
        self.queued_bytes += multi.memory_bytes();
        self.queue.push_back(Chunk::Multi(multi));
    }

    /// Puts all of `later` behind what is here.
    pub fn append(&mut self, mut later: SendBuffer) {
        if !later.queue.is_empty() {
            self.seal_tail();
            self.queued_bytes += later.queued_bytes;
            self.queue.append(&mut later.queue);
        }
        self.tail.extend_from_slice(&later.tail[later.tail_sent..]);
    }

    /// Makes the tail a chunk of its own, in a buffer of the right size; the tail keeps its room.
    fn seal_tail(&mut self) {
        if self.tail.len() > self.tail_sent {
            self.queued_bytes += self.tail.len() - self.tail_sent;
            self.queue.push_back(Chunk::Bytes { bytes: self.tail[self.tail_sent..].into(), sent: 0 });
        }
        self.tail.clear();
        self.tail_sent = 0;
    }

    /// Whether all is sent.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.tail.len() == self.tail_sent
    }

    /// Bytes that wait, counting with its own length what is not rendered. O(1): asked for with every request.
    pub fn unsent_bytes(&self) -> usize {
        self.queued_bytes + self.tail.len() - self.tail_sent
    }

    /// Lends the connection a buffer to write into. Only when it has none of its own.
    pub fn lend_tail(&mut self, buffer: &mut Vec<u8>) {
        if self.tail.capacity() == 0 {
            std::mem::swap(&mut self.tail, buffer);
        }
    }

    /// Takes the lent buffer back, emptied, and keeps what it held in one of the right size; frees one of its own that
    /// has become empty.
    pub fn reclaim_tail(&mut self, buffer: &mut Vec<u8>) {
        if buffer.capacity() != 0 {
            return self.trim_tail();
        }
        let rest = Vec::from(&self.tail[self.tail_sent..]);
        std::mem::swap(&mut self.tail, buffer);
        buffer.clear();
        self.tail = rest;
        self.tail_sent = 0;
    }

    /// Lets go of what is sent of a tail of its own. A connection whose socket never takes all that waits would otherwise
    /// keep all that it has ever sent.
    fn trim_tail(&mut self) {
        if self.tail.is_empty() {
            self.tail = Vec::new();
        } else if self.tail_sent >= self.tail.len() / 2 {
            // Half of it at least: what is moved is no more than what was sent since the last time.
            self.tail.drain(..self.tail_sent);
            self.tail_sent = 0;
        }
        // Also where most of it was sealed into a chunk.
        if self.tail.capacity() > 4 * self.tail.len() {
            self.tail.shrink_to(2 * self.tail.len());
        }
    }

    /// All that is to be sent, if it is short things alone.
    pub fn contiguous(&self) -> Option<&[u8]> {
        self.queue.is_empty().then(|| &self.tail[self.tail_sent..])
    }

    /// The next bytes to send, `most` of them at most, as slices for one `writev`. Empty when all is sent. Renders a window
    /// where a value needs it.
    pub fn io_slices<'a>(&'a mut self, slices: &mut [IoSlice<'a>; MAX_IOVECS], mut most: usize) -> usize {
        self.render_front();
        let mut count = 0;
        for chunk in self.queue.iter().take(MAX_IOVECS - 1) {
            let bytes = match chunk {
                Chunk::Bytes { bytes, sent } => &bytes[*sent..],
                Chunk::Value { value, encoding: Encoding::Raw, sent, end } => &value.bytes[*sent..*end],
                // Its turn to be rendered has not come; nothing behind it may go before it.
                Chunk::Value { .. } | Chunk::Multi(_) => return count,
            };
            slices[count] = IoSlice::new(&bytes[..bytes.len().min(most)]);
            count += 1;
            most = most.saturating_sub(bytes.len());
            if most == 0 {
                return count;
            }
        }
        if self.queue.len() == count && self.tail.len() > self.tail_sent {
            let rest = &self.tail[self.tail_sent..];
            slices[count] = IoSlice::new(&rest[..rest.len().min(most)]);
            count += 1;
        }
        count
    }

    /// Where the next thing to send needs rendering, puts its next window in front of it.
    fn render_front(&mut self) {
        match self.queue.front_mut() {
            Some(Chunk::Value { value, encoding, sent, end }) if *encoding != Encoding::Raw => {
                let window_end = (*sent + RENDER_WINDOW_BYTES).min(*end);
                let mut window = Vec::new();
                json::render(&value.bytes[*sent..window_end], *encoding, &mut window);
                self.queued_bytes = self.queued_bytes - (window_end - *sent) + window.len();
                *sent = window_end;
                if window_end == *end {
                    self.queue.pop_front();
                }
                self.queue.push_front(Chunk::Bytes { bytes: window.into(), sent: 0 });
            }
            Some(Chunk::Multi(multi)) => {
                let (held, mut window) = (multi.memory_bytes(), SendBuffer::default());
                multi.render(RENDER_WINDOW_BYTES, &mut window);
                window.seal_tail();
                self.queued_bytes = self.queued_bytes - held + multi.memory_bytes() + window.queued_bytes;
                if multi.is_rendered() {
                    self.queue.pop_front();
                }
                window.queue.into_iter().rev().for_each(|chunk| self.queue.push_front(chunk));
            }
            _ => {}
        }
    }

    /// Notes that the socket took the first `count` bytes of the slices.
    pub fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let Some(front) = self.queue.front_mut() else {
                self.tail_sent += count;
                break;
            };
            let (end, sent) = match front {
                Chunk::Bytes { bytes, sent } => (bytes.len(), sent),
                Chunk::Value { sent, end, .. } => (*end, sent),
                // It is not sent as it is.
                Chunk::Multi(_) => return,
            };
            let step = count.min(end - *sent);
            *sent += step;
            count -= step;
            self.queued_bytes -= step;
            if *sent == end {
                self.queue.pop_front();
            }
        }
        if self.queue.is_empty() && self.queue.capacity() > 0 {
            self.queue = VecDeque::new();
        }
        if self.tail_sent == self.tail.len() {
            self.tail.clear();
            self.tail_sent = 0;
        }
    }
}

#[cfg(test)]
impl SendBuffer {
    /// Sends everything in steps of `step` bytes, as a slow socket would. For the tests of all rooms.
    pub fn drain(&mut self, step: usize) -> Vec<u8> {
        let mut sent = Vec::new();
        while !self.is_empty() {
            let queued = self.queue.iter().map(|chunk| match chunk {
                Chunk::Bytes { bytes, sent } => bytes.len() - sent,
                Chunk::Value { sent, end, .. } => end - sent,
                Chunk::Multi(multi) => multi.memory_bytes(),
            });
            assert_eq!(self.queued_bytes, queued.sum(), "the count of what is queued is wrong");
            let mut slices = [IoSlice::new(&[]); MAX_IOVECS];
            let count = self.io_slices(&mut slices, step);
            let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
            assert!((1..=step).contains(&bytes.len()), "{} bytes to send, of at most {step}", bytes.len());
            self.advance(bytes.len());
            sent.extend(bytes);
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::prelude::*;

    #[test]
    fn a_socket_that_never_takes_all_leaves_no_more_than_waits() {
        let mut send_buffer = SendBuffer::default();
        let mut lent = Vec::with_capacity(100);
        for turn in 0..10_000 {
            send_buffer.lend_tail(&mut lent);
            let reply = if turn == 0 { 50_000 } else { 5000 };
            send_buffer.tail().extend(std::iter::repeat_n(b'x', reply));
            send_buffer.advance(5000);
            send_buffer.reclaim_tail(&mut lent);
            assert_eq!(send_buffer.unsent_bytes(), 45_000);
            assert!(send_buffer.tail.capacity() <= 4 * 45_000, "{} bytes are kept", send_buffer.tail.capacity());
        }
        // Nor does what stands behind a long value keep the room of what stands before it.
        send_buffer.push_value(&Arc::new(Value::new(vec![b'x'; 20_000])), Encoding::Raw);
        send_buffer.tail().extend_from_slice(b"\r\n");
        send_buffer.reclaim_tail(&mut lent);
        assert_eq!((send_buffer.unsent_bytes(), send_buffer.tail.capacity() < 100), (65_002, true));
    }

    #[test]
    fn everything_leaves_once_and_in_order_whatever_the_socket_takes() {
        let plain = Arc::new(Value::new(vec![b'p'; 100_000]));
        let quoted = Arc::new(Value::new(vec![b'"'; 100_000]));
        let binary = Arc::new(Value::new((0..100_001u32).map(|number| number as u8 | 0x80).collect()));
        let mut expected = b"one".to_vec();
        expected.extend_from_slice(&plain.bytes);
        expected.extend_from_slice(b"twoppppppppp");
        expected.extend(b"\\\"".repeat(100_000));
        expected.extend(BASE64_STANDARD.encode(&binary.bytes).into_bytes());
        expected.extend_from_slice(b"three");
        for step in [1, 7, 1000, 70_000, usize::MAX] {
            let mut send_buffer = SendBuffer::default();
            let mut lent = Vec::with_capacity(100);
            send_buffer.lend_tail(&mut lent);
            send_buffer.tail().extend_from_slice(b"one");
            send_buffer.push_value(&plain, Encoding::Raw);
            send_buffer.tail().extend_from_slice(b"two");
            send_buffer.push_raw_range(&plain, 99_990..99_999);
            send_buffer.push_raw_range(&plain, 7..7);
            send_buffer.push_value(&quoted, Encoding::Escaped);
            let mut later = SendBuffer::default();
            later.push_value(&binary, Encoding::Base64);
            later.tail().extend_from_slice(b"three");
            send_buffer.append(later);
            send_buffer.reclaim_tail(&mut lent);
            assert_eq!(lent.capacity(), 100);
            if step > 1 {
                assert_eq!(send_buffer.unsent_bytes(), 3 + 100_000 + 12 + 100_000 + 100_001 + 5);
            }
            assert_eq!(send_buffer.drain(step), expected, "in steps of {step}");
            send_buffer.lend_tail(&mut lent);
            send_buffer.reclaim_tail(&mut lent);
            assert_eq!(
                send_buffer.tail.capacity() + send_buffer.queue.capacity(),
                0,
                "an idle connection owns a buffer"
            );
            assert_eq!(lent.capacity(), 100);
        }
    }
}
