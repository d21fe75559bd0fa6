//! Clients of one event loop: slab, ready queue, and one timer for each client.

use super::client::{Client, HandshakeStage, TurnResult};
use super::timeouts::TimeoutConfig;
use super::{ACCESS_LOG_FLUSH_BYTES, RESERVED_CLIENTS};
use crate::cache::DeadlineHeap;
use crate::connection::ReplyContext;
use crate::log_writer::LogWriter;
use crate::metrics::{Micros, Recorder};
use crate::protocol::http::ResponseDate;
use crate::types::{ClientId, DeferredReply, Delivery, Millis, Push, PushResult, RequestId, WatchEvent};
use slab::Slab;
use std::collections::VecDeque;
use std::time::SystemTime;

/// Connected clients by slot. A slot is reused after its client was removed.
pub(super) struct Clients {
    slab: Slab<Client>,
    /// Slots of the clients that get a turn, in order.
    pub(super) ready_queue: VecDeque<usize>,
    /// Slots of the clients that get a turn for their ClientHello, in order. A client is in one
    /// queue at most.
    pub(super) handshake_queue: VecDeque<usize>,
    /// Slots of the clients that get a turn for the rest of their handshake, in order.
    pub(super) answered_queue: VecDeque<usize>,
    /// Slots of the clients with invalidations to send that wait for a place in the ready queue.
    push_queue: VecDeque<usize>,
    timers: DeadlineHeap,
    /// Timeouts in force. After a change, [`Clients::rearm_timers`] must follow.
    pub(super) timeouts: TimeoutConfig,
    /// `Date` of all replies.
    date: ResponseDate,
    /// Metrics of this event loop.
    pub(super) recorder: Recorder,
    /// Writer of the access log, if it is on.
    access_log: Option<LogWriter>,
}

impl Clients {
    /// Reserves memory for `expected` clients, or for [`RESERVED_CLIENTS`] if that is less.
    pub(super) fn new(expected: usize, timeouts: TimeoutConfig) -> Clients {
        Clients {
            slab: Slab::with_capacity(expected.min(RESERVED_CLIENTS)),
            ready_queue: VecDeque::new(),
            handshake_queue: VecDeque::new(),
            answered_queue: VecDeque::new(),
            push_queue: VecDeque::new(),
            timers: DeadlineHeap::new(),
            timeouts,
            date: ResponseDate::at(SystemTime::UNIX_EPOCH),
            recorder: Recorder::default(),
            access_log: None,
        }
    }

    /// Turns on the access log.
    pub(super) fn log_requests(&mut self, log_writer: LogWriter) {
        (self.recorder, self.access_log) = (Recorder::new(Some(log_writer.format())), Some(log_writer));
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    /// Returns the slot that the next inserted client gets.
    pub(super) fn vacant_slot(&self) -> usize {
        self.slab.vacant_key()
    }

    /// Adds a client and arms its timer.
    pub(super) fn insert(&mut self, client: Client) {
        let slot = self.slab.insert(client);
        self.arm_timer(slot);
    }

    /// Removes a client, and records its unanswered requests as aborted.
    pub(super) fn remove(&mut self, slot: usize) -> Client {
        self.disarm_timer(slot);
        let mut client = self.slab.remove(slot);
        client.connection.abort(&mut self.recorder);
        client
    }

    /// Records the unanswered requests of all clients as aborted.
    pub(super) fn abort_all(&mut self) {
        self.slab.iter_mut().for_each(|(_, client)| client.connection.abort(&mut self.recorder));
    }

    /// Sets the `Date` of replies and of access log lines.
    pub(super) fn set_date(&mut self, time: SystemTime) {
        self.recorder.set_date(time);
        self.date = ResponseDate::at(time);
    }

    /// Stores the readiness that the kernel reported, and queues the client.
    pub(super) fn on_event(&mut self, slot: usize, event: &mio::event::Event) {
        if let Some(client) = self.slab.get_mut(slot) {
            client.on_event(event);
            self.enqueue(slot);
        }
    }

    /// Delivers a reply, unless its connection is gone, and queues the client. A reply that the
    /// connection discards queues it too: decoding may wait for a lower number of pending keys.
    pub(super) fn deliver_reply(&mut self, request_id: RequestId, reply: &DeferredReply<'_>) {
        if let Some(client) = self.slab.get_mut(request_id.slot)
            && client.connection.id == request_id.connection_id
        {
            let mut context = ReplyContext { date: &self.date, recorder: &mut self.recorder };
            client.connection.reply_later(request_id, reply, &mut context);
            self.enqueue(request_id.slot);
            self.flush_access_log(ACCESS_LOG_FLUSH_BYTES);
        }
    }

    /// Delivers an event to a client that watches a key, and queues the client.
    pub(super) fn deliver_event(&mut self, request_id: RequestId, event: &WatchEvent<'_>, now: Millis) -> Delivery {
        let Some(client) = self.slab.get_mut(request_id.slot) else { return Delivery::Ended };
        let mut context = ReplyContext { date: &self.date, recorder: &mut self.recorder };
        let delivery = client.connection.deliver_event(request_id, event, now, &mut context);
        self.enqueue(request_id.slot);
        self.flush_access_log(ACCESS_LOG_FLUSH_BYTES);
        delivery
    }

    /// Returns the id and the address of each key that is watched for a client.
    pub(super) fn watchers(&self, slot: usize) -> Vec<(usize, RequestId)> {
        self.slab.get(slot).map(|client| client.connection.watchers(slot)).unwrap_or_default()
    }

    /// Queues all clients that wait for changes of keys.
    pub(super) fn enqueue_watching(&mut self) {
        let watching = self.slab.iter().filter(|(_, client)| client.connection.has_watch());
        let slots: Vec<usize> = watching.map(|(slot, _)| slot).collect();
        slots.into_iter().for_each(|slot| self.enqueue(slot));
    }

    /// Gives an invalidation to a client that caches values. It leaves in the next turn of the
    /// client, which [`Clients::enqueue_pushed`] brings if nothing else does.
    pub(super) fn push_invalidation(&mut self, id: ClientId, push: Push<'_>) -> PushResult {
        let client = self.slab.get_mut(id.slot).filter(|client| client.connection.id == id.connection_id);
        let Some(client) = client else { return PushResult::NotTracking };
        let result = client.connection.push_invalidation(push);
        if !client.in_ready_queue && !std::mem::replace(&mut client.in_push_queue, true) {
            self.push_queue.push_back(id.slot);
        }
        result
    }

    /// Queues up to `max` clients with invalidations to send.
    pub(super) fn enqueue_pushed(&mut self, max: usize) {
        for _ in 0..max {
            let Some(slot) = self.push_queue.pop_front() else { return };
            if let Some(client) = self.slab.get_mut(slot) {
                client.in_push_queue = false;
                self.enqueue(slot);
            }
        }
    }

    /// Returns the client at `index` of the ready queue.
    pub(super) fn ready_client(&mut self, index: usize) -> Option<&mut Client> {
        self.slab.get_mut(*self.ready_queue.get(index)?)
    }

    /// Queues a client for a turn, unless it is queued already.
    fn enqueue(&mut self, slot: usize) {
        if let Some(client) = self.slab.get_mut(slot)
            && !std::mem::replace(&mut client.in_ready_queue, true)
        {
            let queue = match client.handshake_stage() {
                None => &mut self.ready_queue,
                Some(HandshakeStage::Hello) => &mut self.handshake_queue,
                Some(HandshakeStage::Answered) => &mut self.answered_queue,
            };
            queue.push_back(slot);
        }
    }

    /// Returns the number of clients at the head of the handshake queue that are only to be closed,
    /// at most `max`.
    pub(super) fn count_left_handshakes(&self, max: usize) -> usize {
        let has_left = |&slot: &usize| self.slab.get(slot).is_none_or(Client::has_left_handshake);
        self.handshake_queue.iter().take(max).take_while(|slot| has_left(slot)).count()
    }

    /// Returns true if a client waits for a turn.
    pub(super) fn has_queued(&self) -> bool {
        !(self.ready_queue.is_empty()
            && self.handshake_queue.is_empty()
            && self.answered_queue.is_empty()
            && self.push_queue.is_empty())
    }

    /// Starts the turn of the client in `slot`. Returns it with the state that the turn needs.
    pub(super) fn begin_turn(&mut self, slot: usize) -> Option<(&mut Client, ReplyContext<'_>)> {
        let client = self.slab.get_mut(slot)?;
        client.in_ready_queue = false;
        Some((client, ReplyContext { date: &self.date, recorder: &mut self.recorder }))
    }

    /// Ends a turn: queues a client that needs another, and arms its timer if its deadline is
    /// earlier now.
    pub(super) fn end_turn(&mut self, slot: usize, result: TurnResult) {
        if matches!(result, TurnResult::Requeue | TurnResult::Linger) {
            self.enqueue(slot);
        }
        self.arm_timer(slot);
    }

    /// Records the time up to `micros` for the replies since the last call. With an access log,
    /// this is called after each turn, so that each line has its own time.
    pub(super) fn end_turns(&mut self, micros: Micros) {
        self.recorder.end_turns(micros);
        self.flush_access_log(ACCESS_LOG_FLUSH_BYTES);
    }

    /// Passes the access log lines to the log writer if they exceed `max_bytes`.
    pub(super) fn flush_access_log(&mut self, max_bytes: usize) {
        let Some(log_writer) = &self.access_log else { return };
        if let Some(lines) = self.recorder.access_log_lines().filter(|lines| lines.len() > max_bytes) {
            log_writer.write_access_lines(lines);
            lines.clear();
            lines.shrink_to(2 * ACCESS_LOG_FLUSH_BYTES);
        }
    }

    /// Returns the time of the next timer.
    pub(super) fn next_timer(&self) -> Option<Millis> {
        self.timers.first().map(|(deadline, _)| deadline)
    }

    /// Runs one timer that is due. Returns false if there is none.
    pub(super) fn run_due_timer(&mut self, now: Millis) -> bool {
        let Some((_, slot)) = self.timers.first().filter(|&(deadline, _)| deadline <= now) else { return false };
        let slot = slot as usize;
        self.disarm_timer(slot);
        if let Some(client) = self.slab.get_mut(slot) {
            client.timer_state.timer_at = Millis::MAX;
            if client.timer_state.deadline(self.timeouts) > now {
                self.arm_timer(slot);
            } else {
                client.begin_timeout_check();
                self.enqueue(slot);
            }
        }
        true
    }

    /// Moves all timers to deadlines that have become earlier.
    pub(super) fn rearm_timers(&mut self) {
        let slots: Vec<usize> = self.slab.iter().map(|(slot, _)| slot).collect();
        slots.into_iter().for_each(|slot| self.arm_timer(slot));
    }

    /// Sets the timer of a client to its deadline, unless it fires earlier.
    fn arm_timer(&mut self, slot: usize) {
        let Some(client) = self.slab.get(slot) else { return };
        let deadline = client.timer_state.deadline(self.timeouts);
        if client.timer_state.timer_at <= deadline {
            return;
        }
        self.disarm_timer(slot);
        self.slab[slot].timer_state.timer_at = deadline;
        let clients = &mut self.slab;
        self.timers.push(deadline, slot as u32, |id, position| clients[id as usize].timer = Some(position));
    }

    fn disarm_timer(&mut self, slot: usize) {
        let clients = &mut self.slab;
        if let Some(position) = clients.get_mut(slot).and_then(|client| client.timer.take()) {
            self.timers.remove(position, |id, position| clients[id as usize].timer = Some(position));
        }
    }
}
