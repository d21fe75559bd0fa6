//! Read-ahead: reads the input of several clients before their turns, so that their lookups wait
//! for memory together.
//!
//! A client that sends one request at a time gives the cache no batch to look ahead for. Under load
//! several such clients are ready in the same tick, and together they do.

use super::Worker;
use crate::types::{MAX_UPCOMING_KEYS, UpcomingKeys};
use std::collections::VecDeque;
use std::ops::Range;

/// Bytes read ahead of one client: some requests. A client that fills them reads in its turns,
/// until a pipeline is shorter. So only the first of its long pipelines is cut.
pub(super) const SEGMENT_BYTES: usize = 4 * 1024;

/// Input that was read ahead, for the next clients of the ready queue in its order.
pub(super) struct ReadAhead {
    /// One segment for each client. Allocated with the first use.
    buffer: Vec<u8>,
    /// Range in the buffer for each client, `None` if the client reads in its turn.
    inputs: VecDeque<Option<Range<usize>>>,
}

impl ReadAhead {
    pub(super) fn new() -> ReadAhead {
        ReadAhead { buffer: Vec::new(), inputs: VecDeque::new() }
    }

    /// Returns the input in a range that [`Worker::next_input`] has returned.
    pub(super) fn input(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }
}

impl Worker {
    /// Returns the input that was read ahead for the first client of the ready queue, if any.
    /// Reads ahead for the next ones if that saves time. `turns` of this queue are left in the
    /// tick.
    pub(super) fn next_input(&mut self, turns: usize) -> Option<Range<usize>> {
        // A client that is about to be closed for idleness must not have read a request.
        if self.read_ahead.inputs.is_empty()
            && turns > 1
            && self.read_through.benefits_from_look_ahead()
            && !self.shutdown.closes_idle()
        {
            self.read_next_clients(turns);
        }
        self.read_ahead.inputs.pop_front()?
    }

    /// Reads the next clients of the ready queue, until the list of keys is full.
    fn read_next_clients(&mut self, turns: usize) {
        let Worker { clients, read_ahead, read_through, head_decoder, client_auth, .. } = self;
        read_ahead.buffer.resize(MAX_UPCOMING_KEYS * SEGMENT_BYTES, 0);
        let mut keys = UpcomingKeys::new();
        for (index, segment) in read_ahead.buffer.chunks_exact_mut(SEGMENT_BYTES).take(turns).enumerate() {
            let Some(client) = clients.ready_client(index) else { break };
            let length = client.read_ahead(segment);
            let segment: &[u8] = segment;
            let start = index * SEGMENT_BYTES;
            read_ahead.inputs.push_back((length > 0).then_some(start..start + length));
            client.connection.find_upcoming_keys(&segment[..length], head_decoder, client_auth, &mut keys);
            if keys.is_full() {
                break;
            }
        }
        read_through.look_ahead(&keys);
    }
}
