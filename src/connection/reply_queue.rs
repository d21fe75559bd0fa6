//! The replies of one connection, in the order of their requests.
//!
//! Every request gets the next sequence number. A reply that is there at once, with none before it missing, goes
//! straight to the outgoing bytes and leaves no trace: that is the hit. Otherwise the request takes a slot, and the
//! slots leave in order as they are filled, whatever order the fetches finish in. A request about several keys has one slot,
//! in which its parts come together.

use super::{outcome_of, protocol_of};
use crate::metrics::{Protocol as Wire, Recorder, RequestInfo, RequestOutcome};
use crate::protocol::http::{ResponseDate, Status};
use crate::protocol::{MultiReply, ReplyFormat, ReplySummary, SendBuffer, encode_reply};
use crate::types::{Failure, KeyResult, Reply, RequestId};
use std::collections::VecDeque;

/// See the top of the file.
#[derive(Debug, Default)]
pub(super) struct ReplyQueue {
    /// Sequence number of the first slot.
    first_sequence: u64,
    slots: VecDeque<ReplySlot>,
    /// Bytes in the slots.
    queued_bytes: usize,
    pub(super) send_buffer: SendBuffer,
}

/// A request whose reply cannot leave yet.
#[derive(Debug)]
enum ReplySlot {
    Pending(ReplyFormat, RequestInfo),
    Multi(Box<MultiReply>, RequestInfo),
    Ready(SendBuffer),
}

impl ReplyQueue {
    /// The sequence number that the next request will have.
    pub(super) fn next_sequence(&self) -> u64 {
        self.first_sequence + self.slots.len() as u64
    }

    /// Requests whose replies are not complete.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Bytes that wait to be sent, or for others to be sent before them.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.send_buffer.unsent_bytes() + self.queued_bytes
    }

    /// Whether all is sent that ever will be, unless another request comes or the last one goes on.
    pub(super) fn is_settled(&self) -> bool {
        self.send_buffer.is_empty() && self.slots.len() == usize::from(self.open_multi().is_some())
    }

    /// Puts the reply to the next request where it belongs: out, or behind those that wait.
    pub(super) fn push<T>(&mut self, encode: impl FnOnce(&mut SendBuffer) -> T) -> T {
        if self.slots.is_empty() {
            self.first_sequence += 1;
            return encode(&mut self.send_buffer);
        }
        let mut send_buffer = SendBuffer::default();
        let result = encode(&mut send_buffer);
        self.queued_bytes += send_buffer.unsent_bytes();
        self.slots.push_back(ReplySlot::Ready(send_buffer));
        result
    }

    /// Replies over the Redis protocol to a request that asks for no key.
    pub(super) fn push_resp<T>(
        &mut self,
        ending: RequestOutcome,
        recorder: &mut Recorder,
        encode: impl FnOnce(&mut SendBuffer) -> T,
    ) -> T {
        let (result, bytes, is_error) = self.push(|out| {
            let at = out.tail().len();
            let (result, bytes) = measured(out, encode);
            (result, bytes, out.tail().get(at) == Some(&b'-'))
        });
        let ending = if is_error { RequestOutcome::Refused } else { ending };
        let status = if ending == RequestOutcome::Refused { Status::BadRequest } else { Status::Ok };
        recorder.record_reply(Wire::Resp, ending, ReplySummary { status, bytes });
        result
    }

    /// Notes that the next request will be replied to later.
    pub(super) fn push_pending(&mut self, shape: ReplyFormat, note: RequestInfo) {
        self.slots.push_back(ReplySlot::Pending(shape, note));
    }

    /// Notes that the next request is one whose reply is put together.
    pub(super) fn push_multi(&mut self, multi: MultiReply, note: RequestInfo) {
        self.slots.push_back(ReplySlot::Multi(Box::new(multi), note));
    }

    /// The last request's reply, as long as keys for it are to come.
    pub(super) fn open_multi(&self) -> Option<&MultiReply> {
        match self.slots.back() {
            Some(ReplySlot::Multi(multi, _)) if multi.expects_keys() => Some(multi),
            _ => None,
        }
    }

    /// Does something to the reply that is put together last, while keys for it are to come.
    pub(super) fn update_open_multi(&mut self, recorder: &mut Recorder, change: impl FnOnce(&mut MultiReply)) {
        if self.open_multi().is_some() {
            self.update_multi(self.slots.len() - 1, recorder, None, |multi| {
                change(multi);
                true
            });
        }
    }

    /// Forgets the request whose keys were still to come. Gives back what was noted of it.
    pub(super) fn discard_open_multi(&mut self) -> Option<RequestInfo> {
        self.queued_bytes -= self.open_multi()?.memory_bytes();
        let slot = self.slots.pop_back();
        self.free_if_empty();
        match slot {
            Some(ReplySlot::Multi(_, note)) => Some(note),
            _ => None,
        }
    }

    /// Replies to an earlier request, or to a part of it, if it is there and was not replied to before. Says whether it
    /// was.
    pub(super) fn reply_later(
        &mut self,
        waiter: RequestId,
        reply: &Reply<'_>,
        date: &ResponseDate,
        recorder: &mut Recorder,
    ) -> bool {
        let Some(place) = waiter.sequence.checked_sub(self.first_sequence) else { return false };
        let place = place as usize;
        match self.slots.get_mut(place) {
            Some(ReplySlot::Pending(shape, note)) => {
                let (shape, note) = (*shape, std::mem::take(note));
                let sent = self.fill_slot(place, |out| encode_reply(reply, shape, date, out));
                if let Some(failure) = failure_of(reply) {
                    recorder.record_failure(failure);
                }
                let ending = outcome_of(reply, sent, recorder);
                recorder.record_deferred_reply(&note, protocol_of(shape), ending, sent);
                true
            }
            Some(ReplySlot::Multi(..)) => {
                self.update_multi(place, recorder, failure_of(reply), |multi| multi.complete_part(waiter.part, reply))
            }
            Some(ReplySlot::Ready(_)) | None => false,
        }
    }

    /// The client is gone: nobody takes the replies that are missing.
    pub(super) fn abort(&mut self, recorder: &mut Recorder) {
        for slot in self.slots.drain(..) {
            match slot {
                ReplySlot::Pending(shape, note) => recorder.record_aborted(&note, protocol_of(shape)),
                ReplySlot::Multi(_, note) => recorder.record_aborted(&note, Wire::Resp),
                ReplySlot::Ready(_) => {}
            }
        }
    }

    /// Does something to the reply that is put together at `place`, and lets it leave if it is complete then. `failure` is why there is
    /// no value, if there is none.
    fn update_multi(
        &mut self,
        place: usize,
        recorder: &mut Recorder,
        failure: Option<&Failure>,
        change: impl FnOnce(&mut MultiReply) -> bool,
    ) -> bool {
        let Some(ReplySlot::Multi(multi, note)) = self.slots.get_mut(place) else { return false };
        self.queued_bytes -= multi.memory_bytes();
        let (was_open, had_failed) = (multi.expects_keys(), multi.has_failed());
        let changed = change(multi);
        // Not every failure of a key is one of the reply: another type is no value to some commands.
        if multi.has_failed() && !had_failed {
            recorder.record_failure(failure.unwrap_or(&Failure::OutputMemoryFull));
        }
        if was_open {
            // Its client takes the time that it takes to say which keys.
            recorder.restart_timer(note);
        }
        if !multi.is_complete() {
            self.queued_bytes += multi.memory_bytes();
            return changed;
        }
        if let ReplySlot::Multi(multi, note) =
            std::mem::replace(&mut self.slots[place], ReplySlot::Ready(SendBuffer::default()))
        {
            let (ending, status) = match multi.has_failed() {
                true => (RequestOutcome::Failed, Status::ServiceUnavailable),
                false => (RequestOutcome::Many, Status::Ok),
            };
            let ((), bytes) = self.fill_slot(place, |out| measured(out, |out| multi.encode(out)));
            recorder.record_deferred_reply(&note, Wire::Resp, ending, ReplySummary { status, bytes });
        }
        changed
    }

    /// The reply at `place` is there: it goes out, with those behind it that have waited for nothing else, or is kept.
    fn fill_slot<T>(&mut self, place: usize, encode: impl FnOnce(&mut SendBuffer) -> T) -> T {
        if place == 0 {
            let result = encode(&mut self.send_buffer);
            self.slots.pop_front();
            self.first_sequence += 1;
            self.flush_ready();
            return result;
        }
        let mut send_buffer = SendBuffer::default();
        let result = encode(&mut send_buffer);
        self.queued_bytes += send_buffer.unsent_bytes();
        self.slots[place] = ReplySlot::Ready(send_buffer);
        result
    }

    /// Sends off all replies that have none missing before them.
    fn flush_ready(&mut self) {
        while let Some(ReplySlot::Ready(send_buffer)) = self.slots.front_mut() {
            self.queued_bytes -= send_buffer.unsent_bytes();
            self.send_buffer.append(std::mem::take(send_buffer));
            self.slots.pop_front();
            self.first_sequence += 1;
        }
        self.free_if_empty();
    }

    /// An idle connection owns no buffer.
    fn free_if_empty(&mut self) {
        if self.slots.is_empty() {
            self.slots = VecDeque::new();
        }
    }
}

/// Why there is no value in it.
fn failure_of<'a>(reply: &Reply<'a>) -> Option<&'a Failure> {
    match reply.outcome {
        KeyResult::Failed(failure) => Some(failure),
        KeyResult::Missing | KeyResult::Value(_) => None,
    }
}

/// Encodes, and says how many bytes that has made.
fn measured<T>(out: &mut SendBuffer, encode: impl FnOnce(&mut SendBuffer) -> T) -> (T, usize) {
    let before = out.unsent_bytes();
    let result = encode(out);
    (result, out.unsent_bytes() - before)
}

#[cfg(test)]
mod tests {
    use crate::connection::{Connection, MAX_PENDING_KEYS};
    use crate::metrics::Recorder;
    use crate::protocol::http::ResponseDate;
    use crate::types::{Failure, JsonForm, KeyResult, Payload, Reply, RequestId, Source, Value};
    use std::sync::Arc;
    use std::time::SystemTime;

    /// A client of the Redis protocol, whose keys wait, but for those that begin with "hit".
    struct Client {
        connection: Connection,
        asked: Vec<(RequestId, String)>,
    }

    fn date() -> ResponseDate {
        ResponseDate::at(SystemTime::UNIX_EPOCH)
    }

    fn reply(outcome: KeyResult<'_>) -> Reply<'_> {
        Reply { outcome, source: Source::Redis { collapsed: false, stored: None }, tracked: false }
    }

    fn short(text: &str) -> KeyResult<'_> {
        KeyResult::Value(Payload::Inline { bytes: text.as_bytes(), form: JsonForm::Plain })
    }

    fn command(words: &[&str]) -> String {
        let words: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
        format!("*{}\r\n{words}", words.matches('$').count())
    }

    impl Client {
        fn new() -> Client {
            Client { connection: Connection::new(1, 0), asked: Vec::new() }
        }

        fn receive(&mut self, text: &str) {
            self.receive_with(text, &mut Recorder::default());
        }

        fn receive_with(&mut self, text: &str, recorder: &mut Recorder) {
            self.asked.extend(self.connection.receive(text.as_bytes(), recorder));
        }

        /// Completes the `number`th key that was asked for.
        fn complete(&mut self, number: usize, outcome: KeyResult<'_>) -> bool {
            self.connection.reply_later(self.asked[number].0, &reply(outcome), &date(), &mut Recorder::default())
        }

        fn sent(&mut self) -> String {
            String::from_utf8(self.connection.send_buffer().drain(usize::MAX)).expect("text")
        }
    }

    #[test]
    fn a_reply_out_of_several_keys_leaves_whole_and_in_its_turn() {
        let mut client = Client::new();
        client.receive(&command(&["MGET", "hit1", "a", "hit2", "a", "b"]));
        client.receive(&(command(&["PING"]) + &command(&["GET", "c"]) + &command(&["MGET", "hit3"])));
        let asked: Vec<_> =
            client.asked.iter().map(|(waiter, key)| (waiter.sequence, waiter.part, key.as_str())).collect();
        assert_eq!(asked, [(0, 1, "a"), (0, 3, "a"), (0, 4, "b"), (2, 0, "c")]);
        assert!(client.complete(3, short("C")) && client.complete(2, KeyResult::Missing));
        assert!(client.complete(0, short("A")) && client.sent().is_empty(), "it left before it was whole");
        assert!(!client.complete(0, short("twice")) && !client.connection.is_flushed());
        assert!(client.complete(1, short("")));
        let mget = "*5\r\n$4\r\nhit1\r\n$1\r\nA\r\n$4\r\nhit2\r\n$0\r\n\r\n$-1\r\n";
        assert_eq!(client.sent(), format!("{mget}+PONG\r\n$1\r\nC\r\n*1\r\n$4\r\nhit3\r\n"));
        assert!(client.connection.is_flushed());
        client.receive(&command(&["EXISTS", "hit", "d", "hit", "e"]));
        assert!(client.complete(4, KeyResult::Failed(&Failure::WrongType)) && client.complete(5, KeyResult::Missing));
        assert_eq!(client.sent(), ":3\r\n");
    }

    #[test]
    fn a_key_that_cannot_be_read_makes_the_whole_reply_an_error() {
        let mut client = Client::new();
        client.receive(&(command(&["MGET", "a", "b", "hit"]) + &command(&["PING"])));
        assert!(client.complete(0, short("A")) && client.complete(1, KeyResult::Failed(&Failure::Unavailable)));
        let error = client.sent();
        assert!(error.starts_with("-LOADING Redis is unreachable") && error.ends_with("\r\n+PONG\r\n"), "{error}");
        // The rest of a command is read, and not looked up.
        client.receive("*4\r\n$4\r\nMGET\r\n$1\r\na\r\n");
        client.complete(2, KeyResult::Failed(&Failure::TooLong));
        client.receive("$1\r\nb\r\n");
        assert!(client.sent().is_empty());
        client.receive(&("$1\r\nc\r\n".to_owned() + &command(&["PING"])));
        assert_eq!(client.asked.len(), 3);
        let error = client.sent();
        assert!(error.contains("MAX_VALUE_BYTES") && error.ends_with("\r\n+PONG\r\n"), "{error}");
        // Another type is no value, as in Redis.
        client.receive(&command(&["MGET", "a"]));
        client.complete(3, KeyResult::Failed(&Failure::WrongType));
        assert_eq!(client.sent(), "*1\r\n$-1\r\n");
    }

    #[test]
    fn a_command_that_breaks_off_is_answered_once() {
        let mut client = Client::new();
        client.receive("*4\r\n$4\r\nMGET\r\n$1\r\na\r\n$3\r\nhit\r\n");
        assert!(client.connection.is_flushed(), "nothing is due before it is whole");
        client.receive("fooz\r\n");
        assert_eq!(client.sent(), "-ERR Protocol error: expected '$', got 'f'\r\n");
        assert!(client.connection.is_closing() && client.connection.is_flushed() && client.connection.needs_linger());
        assert!(!client.complete(0, short("late")));
        assert!(client.sent().is_empty());

        let mut client = Client::new();
        client.receive(&(command(&["GET", "a"]) + "*2\r\n$4\r\nMGET\r\n" + "$70000\r\n"));
        client.receive(&("x".repeat(70_000) + "\r\n" + &command(&["PING"])));
        assert!(client.sent().is_empty());
        client.complete(0, short("A"));
        let sent = client.sent();
        assert!(sent.starts_with("$1\r\nA\r\n-ERR argument too long") && sent.ends_with("\r\n+PONG\r\n"), "{sent}");
    }

    #[test]
    fn keys_of_one_command_are_read_a_bounded_number_at_a_time() {
        let mut client = Client::new();
        let keys: Vec<String> = (0..MAX_PENDING_KEYS + 500).map(|number| number.to_string()).collect();
        let words: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
        client.receive(&(command(&words) + &command(&["QUIT"])));
        assert_eq!(client.asked.len(), MAX_PENDING_KEYS);
        assert!(!client.connection.can_take_request() && client.connection.has_unparsed());
        for number in 0..MAX_PENDING_KEYS + 500 {
            let text = client.asked[number].1.clone();
            assert!(client.complete(number, short(&text)));
            client.receive("");
            assert!(client.asked.len() - number <= MAX_PENDING_KEYS + 1);
        }
        let values: String = keys.iter().map(|key| format!("${}\r\n{key}\r\n", key.len())).collect();
        assert_eq!(client.sent(), format!("*{}\r\n{values}+OK\r\n", keys.len()));
        assert!(client.connection.is_closing() && !client.connection.needs_linger());
    }

    /// Its client takes the time that it takes to say which keys; the rest is the proxy's.
    #[test]
    fn a_command_takes_from_its_end_to_its_last_key() {
        let (mut client, mut recorder) = (Client::new(), Recorder::default());
        recorder.set_now(1000);
        client.receive_with("*3\r\n$4\r\nMGET\r\n$1\r\na\r\n", &mut recorder);
        recorder.set_now(5000);
        client.receive_with("$1\r\nb\r\n", &mut recorder);
        for (number, now) in [(1, 5200), (0, 5300)] {
            recorder.set_now(now);
            client.connection.reply_later(client.asked[number].0, &reply(KeyResult::Missing), &date(), &mut recorder);
        }
        assert_eq!(
            (recorder.metrics.miss_latency.sum(), recorder.metrics.miss_latency.counts().sum::<u64>()),
            (300, 1)
        );
    }

    /// Or one client could fill the queue to Redis with commands that it breaks off.
    #[test]
    fn keys_that_nobody_needs_any_more_count_as_long_as_they_are_read() {
        let mut client = Client::new();
        let keys: Vec<String> = (0..MAX_PENDING_KEYS - 1).map(|number| number.to_string()).collect();
        let words: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
        let mget = command(&words).replacen("*1024\r\n", "*1025\r\n", 1);
        client.receive(&(mget + "$70000\r\n" + &"x".repeat(70_000) + "\r\n"));
        assert!(client.sent().starts_with("-ERR argument too long") && client.connection.is_flushed());
        client.receive(&(command(&["GET", "a"]) + &command(&["GET", "b"])));
        assert_eq!(client.asked.len(), MAX_PENDING_KEYS);
        assert!(!client.complete(0, short("of no use")));
        client.receive("");
        assert_eq!(client.asked.len(), MAX_PENDING_KEYS + 1);
    }

    #[test]
    fn what_a_reply_may_hold_is_bounded_but_one_value_always_fits() {
        let value = Arc::new(Value::new(vec![b'x'; 40 * 1024 * 1024]));
        let long = || KeyResult::Value(Payload::Shared(&value));
        let mut client = Client::new();
        client
            .receive(&(command(&["MGET", "a", "b"]) + &command(&["MGET", "c", "hit"]) + &command(&["MGET", "d", "e"])));
        assert!(client.complete(0, long()) && client.complete(1, long()));
        assert_eq!(Arc::strong_count(&value), 1, "a reply that failed holds values");
        assert!(client.sent().starts_with("-ERR the reply would be longer than 67108864 bytes"));
        assert!(client.complete(2, long()));
        assert_eq!(client.sent().len(), "*2\r\n$41943040\r\n\r\n$3\r\nhit\r\n".len() + value.bytes.len());
        let longest = Arc::new(Value::new(vec![b'x'; 65 * 1024 * 1024]));
        client.receive(&command(&["MGET", "alone"]));
        client.complete(5, KeyResult::Value(Payload::Shared(&longest)));
        // What one that is not complete holds counts as unsent.
        assert!(client.complete(3, long()) && !client.connection.can_take_request());
        client.complete(4, KeyResult::Missing);
        assert!(client.sent().ends_with("x\r\n"), "the longest was not sent");
        assert!(client.connection.can_take_request() && client.connection.is_flushed());
        assert_eq!(Arc::strong_count(&value), 1);
    }
}
