//! Queue of the bytes that one client has not received.
//!
//! Short replies are appended to `tail`. During a turn the worker lends its own buffer as the tail,
//! so a hit allocates nothing. Bytes that the socket does not accept are copied into a buffer of
//! the exact size. An idle connection owns no buffer.
//!
//! A long value is queued by reference, and the socket reads it from the cache's memory. If JSON
//! needs it escaped or in base64, it passes through a window of [`RENDER_WINDOW_BYTES`], rendered
//! when the socket accepts more. However many clients read 64 MiB, and however slowly, the proxy
//! holds the value once and one window for each. A long reply for several keys passes through such
//! a window, too.

use super::http::json::{self, Encoding};
use super::multi::MultiReply;
use super::pinned::PinnedValue;
use crate::value::Value;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

/// Maximum number of slices for one `writev`: header, value and end of a few pipelined replies.
pub const MAX_IOVECS: usize = 8;

/// Source bytes rendered at a time, about as many as one `write` moves.
///
/// A multiple of 3, so base64 needs padding only at the end. Escaping may render six times as many
/// bytes.
const RENDER_WINDOW_BYTES: usize = 48 * 1024;

/// Buffer of bytes not yet written to one client.
#[derive(Debug, Default)]
pub struct SendBuffer {
    /// Chunks that leave before the tail, in order.
    queue: VecDeque<Chunk>,
    /// Bytes in the queue. A value or reply that is not rendered counts with its own length.
    queued_bytes: usize,
    /// Buffer that the worker lends during a turn. Between turns, holds the bytes that the socket
    /// did not accept or that a completion appended.
    tail: Vec<u8>,
    /// Bytes of the tail that are sent already.
    tail_sent: usize,
}

/// Element of the queue.
#[derive(Debug)]
enum Chunk {
    Bytes {
        bytes: Box<[u8]>,
        sent: usize,
    },
    /// Bytes `sent..end` of a value that are neither sent nor rendered.
    Value {
        value: PinnedValue,
        encoding: Encoding,
        sent: usize,
        end: usize,
    },
    /// Rest of a reply for several keys that is not rendered.
    Multi(Box<MultiReply>),
}

impl SendBuffer {
    /// Creates a buffer for short replies of about this many bytes together.
    pub fn with_capacity(bytes: usize) -> SendBuffer {
        SendBuffer { tail: Vec::with_capacity(bytes), ..SendBuffer::default() }
    }

    /// Allocates a tail of this capacity, unless the connection has one already.
    pub fn reserve_tail(&mut self, bytes: usize) {
        if self.tail.capacity() == 0 {
            self.tail = Vec::with_capacity(bytes);
        }
    }

    /// Returns the buffer for short replies. Its bytes leave after everything queued before.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.tail
    }

    /// Queues a long value without copying it.
    pub fn push_value(&mut self, value: &Arc<Value>, encoding: Encoding) {
        self.push_range(value, encoding, 0..value.bytes.len());
    }

    /// Queues a range of a long value, unencoded and without copying it.
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

    /// Queues the parts of a complete reply for several keys. A short one is rendered at once.
    pub fn push_multi(&mut self, mut multi: Box<MultiReply>) {
        if multi.memory_bytes() <= RENDER_WINDOW_BYTES {
            return multi.render(usize::MAX, self);
        }
        self.seal_tail();
        self.queued_bytes += multi.memory_bytes();
        self.queue.push_back(Chunk::Multi(multi));
    }

    /// Appends everything that `later` has not sent.
    pub fn append(&mut self, mut later: SendBuffer) {
        if !later.queue.is_empty() {
            self.seal_tail();
            self.queued_bytes += later.queued_bytes;
            self.queue.append(&mut later.queue);
        }
        self.tail.extend_from_slice(&later.tail[later.tail_sent..]);
    }

    /// Moves the bytes of the tail into a chunk of the exact size. The tail keeps its capacity.
    fn seal_tail(&mut self) {
        if self.tail.len() > self.tail_sent {
            self.queued_bytes += self.tail.len() - self.tail_sent;
            self.queue.push_back(Chunk::Bytes { bytes: self.tail[self.tail_sent..].into(), sent: 0 });
        }
        self.tail.clear();
        self.tail_sent = 0;
    }

    /// Returns true if all bytes are sent.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.tail.len() == self.tail_sent
    }

    /// Returns the number of unsent bytes. Data that is not rendered counts with its own length.
    ///
    /// Takes O(1) time, because every request calls it.
    pub fn unsent_bytes(&self) -> usize {
        self.queued_bytes + self.tail.len() - self.tail_sent
    }

    /// Lends `buffer` as the tail, unless the connection owns a tail.
    pub fn lend_tail(&mut self, buffer: &mut Vec<u8>) {
        if self.tail.capacity() == 0 {
            std::mem::swap(&mut self.tail, buffer);
        }
    }

    /// Returns the lent tail to `buffer`, emptied, and keeps its unsent bytes in a buffer of the
    /// exact size.
    ///
    /// If the connection owns its tail, trims it instead.
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

    /// Frees the sent bytes of a tail that the connection owns.
    ///
    /// Otherwise a connection that never sends everything would keep all bytes that it ever sent.
    fn trim_tail(&mut self) {
        if self.tail.is_empty() {
            self.tail = Vec::new();
        } else if self.tail_sent >= self.tail.len() / 2 {
            // At least half is sent, so a move copies no more bytes than were sent since the last
            // one.
            self.tail.drain(..self.tail_sent);
            self.tail_sent = 0;
        }
        // The capacity may also be left over from bytes that `seal_tail` moved into a chunk.
        if self.tail.capacity() > 4 * self.tail.len() {
            self.tail.shrink_to(2 * self.tail.len());
        }
    }

    /// Returns all unsent bytes if they are contiguous, that is, if the queue is empty.
    pub fn contiguous(&self) -> Option<&[u8]> {
        self.queue.is_empty().then(|| &self.tail[self.tail_sent..])
    }

    /// Fills `slices` with up to `max_bytes` of the next bytes, for one `writev`. Returns the
    /// number of slices.
    ///
    /// Renders the next window if the first chunk needs it. Returns 0 if all bytes are sent.
    pub fn io_slices<'a>(&'a mut self, slices: &mut [IoSlice<'a>; MAX_IOVECS], mut max_bytes: usize) -> usize {
        self.render_front();
        let mut count = 0;
        for chunk in self.queue.iter().take(MAX_IOVECS - 1) {
            let bytes = match chunk {
                Chunk::Bytes { bytes, sent } => &bytes[*sent..],
                Chunk::Value { value, encoding: Encoding::Raw, sent, end } => &value.bytes[*sent..*end],
                // Rendered once it is the first chunk. Later chunks must not overtake it.
                Chunk::Value { .. } | Chunk::Multi(_) => return count,
            };
            slices[count] = IoSlice::new(&bytes[..bytes.len().min(max_bytes)]);
            count += 1;
            max_bytes = max_bytes.saturating_sub(bytes.len());
            if max_bytes == 0 {
                return count;
            }
        }
        if self.queue.len() == count && self.tail.len() > self.tail_sent {
            let rest = &self.tail[self.tail_sent..];
            slices[count] = IoSlice::new(&rest[..rest.len().min(max_bytes)]);
            count += 1;
        }
        count
    }

    /// Renders the next window of the first chunk, if it needs that, and queues it in front.
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
                let (queued, mut window) = (multi.memory_bytes(), SendBuffer::default());
                multi.render(RENDER_WINDOW_BYTES, &mut window);
                window.seal_tail();
                self.queued_bytes = self.queued_bytes - queued + multi.memory_bytes() + window.queued_bytes;
                if multi.is_rendered() {
                    self.queue.pop_front();
                }
                window.queue.into_iter().rev().for_each(|chunk| self.queue.push_front(chunk));
            }
            _ => {}
        }
    }

    /// Removes the first `count` bytes, which the socket has accepted.
    #[inline]
    pub fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let Some(front) = self.queue.front_mut() else {
                self.tail_sent += count;
                break;
            };
            let (end, sent) = match front {
                Chunk::Bytes { bytes, sent } => (bytes.len(), sent),
                Chunk::Value { sent, end, .. } => (*end, sent),
                // Never in the slices, so none of its bytes were sent.
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
    /// Sends everything in steps of at most `step` bytes, as a slow socket would, and returns it.
    pub fn drain(&mut self, step: usize) -> Vec<u8> {
        let mut sent = Vec::new();
        while !self.is_empty() {
            let queued = self.queue.iter().map(|chunk| match chunk {
                Chunk::Bytes { bytes, sent } => bytes.len() - sent,
                Chunk::Value { sent, end, .. } => end - sent,
                Chunk::Multi(multi) => multi.memory_bytes(),
            });
            assert_eq!(self.queued_bytes, queued.sum(), "queued_bytes is wrong");
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

    /// A client that never reads everything does not make the tail grow beyond its unsent bytes.
    #[test]
    fn tail_is_trimmed_behind_slow_client() {
        let mut send_buffer = SendBuffer::default();
        let mut lent = Vec::with_capacity(100);
        for turn in 0..10_000 {
            send_buffer.lend_tail(&mut lent);
            let reply = if turn == 0 { 50_000 } else { 5000 };
            send_buffer.tail().extend(std::iter::repeat_n(b'x', reply));
            send_buffer.advance(5000);
            send_buffer.reclaim_tail(&mut lent);
            assert_eq!(send_buffer.unsent_bytes(), 45_000);
            assert!(send_buffer.tail.capacity() <= 4 * 45_000, "the tail holds {} bytes", send_buffer.tail.capacity());
        }
        // Bytes after a long value do not keep the capacity of the bytes before it.
        send_buffer.push_value(&Arc::new(Value::new(vec![b'x'; 20_000])), Encoding::Raw);
        send_buffer.tail().extend_from_slice(b"\r\n");
        send_buffer.reclaim_tail(&mut lent);
        assert_eq!((send_buffer.unsent_bytes(), send_buffer.tail.capacity() < 100), (65_002, true));
    }

    /// Every byte leaves once and in order, however many bytes the socket accepts at a time.
    #[test]
    fn bytes_leave_once_and_in_order() {
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
