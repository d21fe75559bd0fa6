//! The replies of one connection, in the order of their requests.
//!
//! Every request gets the next sequence number. A reply that is there at once, with none before it missing, goes
//! straight to the outgoing bytes and leaves no trace: that is the hit. Otherwise the request takes a slot, and the
//! slots leave in order as they are filled, whatever order the fetches finish in. A request about several keys has one slot,
//! in which its parts come together.

use super::{ending_of, wire_of};
use crate::figures::{Ending, Ledger, Note, Protocol as Wire};
use crate::protocol::http::{Date, Status};
use crate::protocol::resp::Gather;
use crate::protocol::{Outgoing, Sent, Shape, encode_reply};
use crate::request::{Failure, Outcome, Reply, Waiter};
use std::collections::VecDeque;

/// See the top of the file.
#[derive(Debug, Default)]
pub(super) struct Replies {
    /// Sequence number of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    /// Bytes in the slots.
    held_bytes: usize,
    pub(super) outgoing: Outgoing,
}

/// A request whose reply cannot leave yet.
#[derive(Debug)]
enum Slot {
    Waiting(Shape, Note),
    Gathering(Box<Gather>, Note),
    Ready(Outgoing),
}

impl Replies {
    /// The sequence number that the next request will have.
    pub(super) fn next_sequence(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    /// Requests whose replies are not complete.
    pub(super) fn open(&self) -> usize {
        self.slots.len()
    }

    /// Bytes that wait to be sent, or for others to be sent before them.
    pub(super) fn unsent(&self) -> usize {
        self.outgoing.unsent() + self.held_bytes
    }

    /// Whether all is sent that ever will be, unless another request comes or the last one goes on.
    pub(super) fn is_settled(&self) -> bool {
        self.outgoing.is_empty() && self.slots.len() == usize::from(self.gathering().is_some())
    }

    /// Puts the reply to the next request where it belongs: out, or behind those that wait.
    pub(super) fn answer<T>(&mut self, encode: impl FnOnce(&mut Outgoing) -> T) -> T {
        if self.slots.is_empty() {
            self.first += 1;
            return encode(&mut self.outgoing);
        }
        let mut outgoing = Outgoing::default();
        let result = encode(&mut outgoing);
        self.held_bytes += outgoing.unsent();
        self.slots.push_back(Slot::Ready(outgoing));
        result
    }

    /// Replies over the Redis protocol to a request that asks for no key.
    pub(super) fn answer_resp<T>(
        &mut self,
        ending: Ending,
        ledger: &mut Ledger,
        encode: impl FnOnce(&mut Outgoing) -> T,
    ) -> T {
        let (result, bytes, is_error) = self.answer(|out| {
            let at = out.tail().len();
            let (result, bytes) = counted(out, encode);
            (result, bytes, out.tail().get(at) == Some(&b'-'))
        });
        let ending = if is_error { Ending::Refused } else { ending };
        let status = if ending == Ending::Refused { Status::BadRequest } else { Status::Ok };
        ledger.answered(Wire::Resp, ending, Sent { status, bytes });
        result
    }

    /// Notes that the next request will be replied to later.
    pub(super) fn wait(&mut self, shape: Shape, note: Note) {
        self.slots.push_back(Slot::Waiting(shape, note));
    }

    /// Notes that the next request is one whose reply is put together.
    pub(super) fn begin(&mut self, gather: Gather, note: Note) {
        self.slots.push_back(Slot::Gathering(Box::new(gather), note));
    }

    /// The last request's reply, as long as keys for it are to come.
    pub(super) fn gathering(&self) -> Option<&Gather> {
        match self.slots.back() {
            Some(Slot::Gathering(gather, _)) if gather.is_open() => Some(gather),
            _ => None,
        }
    }

    /// Does something to the reply that is put together last, while keys for it are to come.
    pub(super) fn gather(&mut self, ledger: &mut Ledger, change: impl FnOnce(&mut Gather)) {
        if self.gathering().is_some() {
            self.change_gather(self.slots.len() - 1, ledger, None, |gather| {
                change(gather);
                true
            });
        }
    }

    /// Forgets the request whose keys were still to come. Gives back what was noted of it.
    pub(super) fn abandon(&mut self) -> Option<Note> {
        self.held_bytes -= self.gathering()?.held();
        let slot = self.slots.pop_back();
        self.forget_slots();
        match slot {
            Some(Slot::Gathering(_, note)) => Some(note),
            _ => None,
        }
    }

    /// Replies to an earlier request, or to a part of it, if it is there and was not replied to before. Says whether it
    /// was.
    pub(super) fn reply_later(&mut self, waiter: Waiter, reply: &Reply<'_>, date: &Date, ledger: &mut Ledger) -> bool {
        let Some(place) = waiter.sequence.checked_sub(self.first) else { return false };
        let place = place as usize;
        match self.slots.get_mut(place) {
            Some(Slot::Waiting(shape, note)) => {
                let (shape, note) = (*shape, std::mem::take(note));
                let sent = self.finish(place, |out| encode_reply(reply, shape, date, out));
                if let Some(failure) = failure_in(reply) {
                    ledger.failed(failure);
                }
                let ending = ending_of(reply, sent, ledger);
                ledger.answered_later(&note, wire_of(shape), ending, sent);
                true
            }
            Some(Slot::Gathering(..)) => {
                self.change_gather(place, ledger, failure_in(reply), |gather| gather.fill(waiter.part, reply))
            }
            Some(Slot::Ready(_)) | None => false,
        }
    }

    /// The client is gone: nobody takes the replies that are missing.
    pub(super) fn abort(&mut self, ledger: &mut Ledger) {
        for slot in self.slots.drain(..) {
            match slot {
                Slot::Waiting(shape, note) => ledger.aborted(&note, wire_of(shape)),
                Slot::Gathering(_, note) => ledger.aborted(&note, Wire::Resp),
                Slot::Ready(_) => {}
            }
        }
    }

    /// Does something to the reply that is put together at `place`, and lets it leave if it is complete then. `failure` is why there is
    /// no value, if there is none.
    fn change_gather(
        &mut self,
        place: usize,
        ledger: &mut Ledger,
        failure: Option<&Failure>,
        change: impl FnOnce(&mut Gather) -> bool,
    ) -> bool {
        let Some(Slot::Gathering(gather, note)) = self.slots.get_mut(place) else { return false };
        self.held_bytes -= gather.held();
        let (was_open, had_failed) = (gather.is_open(), gather.has_failed());
        let changed = change(gather);
        // Not every failure of a key is one of the reply: another type is no value to some commands.
        if gather.has_failed() && !had_failed {
            ledger.failed(failure.unwrap_or(&Failure::TooMuchHeld));
        }
        if was_open {
            // Its client takes the time that it takes to say which keys.
            ledger.begin_again(note);
        }
        if !gather.is_complete() {
            self.held_bytes += gather.held();
            return changed;
        }
        if let Slot::Gathering(gather, note) =
            std::mem::replace(&mut self.slots[place], Slot::Ready(Outgoing::default()))
        {
            let (ending, status) = match gather.has_failed() {
                true => (Ending::Failed, Status::ServiceUnavailable),
                false => (Ending::Many, Status::Ok),
            };
            let ((), bytes) = self.finish(place, |out| counted(out, |out| gather.encode(out)));
            ledger.answered_later(&note, Wire::Resp, ending, Sent { status, bytes });
        }
        changed
    }

    /// The reply at `place` is there: it goes out, with those behind it that have waited for nothing else, or is kept.
    fn finish<T>(&mut self, place: usize, encode: impl FnOnce(&mut Outgoing) -> T) -> T {
        if place == 0 {
            let result = encode(&mut self.outgoing);
            self.slots.pop_front();
            self.first += 1;
            self.release_ready();
            return result;
        }
        let mut outgoing = Outgoing::default();
        let result = encode(&mut outgoing);
        self.held_bytes += outgoing.unsent();
        self.slots[place] = Slot::Ready(outgoing);
        result
    }

    /// Sends off all replies that have none missing before them.
    fn release_ready(&mut self) {
        while let Some(Slot::Ready(outgoing)) = self.slots.front_mut() {
            self.held_bytes -= outgoing.unsent();
            self.outgoing.append(std::mem::take(outgoing));
            self.slots.pop_front();
            self.first += 1;
        }
        self.forget_slots();
    }

    /// An idle connection owns no buffer.
    fn forget_slots(&mut self) {
        if self.slots.is_empty() {
            self.slots = VecDeque::new();
        }
    }
}

/// Why there is no value in it.
fn failure_in<'a>(reply: &Reply<'a>) -> Option<&'a Failure> {
    match reply.outcome {
        Outcome::Failed(failure) => Some(failure),
        Outcome::Missing | Outcome::Value(_) => None,
    }
}

/// Encodes, and says how many bytes that has made.
fn counted<T>(out: &mut Outgoing, encode: impl FnOnce(&mut Outgoing) -> T) -> (T, usize) {
    let before = out.unsent();
    let result = encode(out);
    (result, out.unsent() - before)
}

#[cfg(test)]
mod tests {
    use crate::connection::{Connection, MAX_OPEN_KEYS};
    use crate::figures::Ledger;
    use crate::protocol::http::Date;
    use crate::request::{Failure, Form, Outcome, Payload, Reply, Source, Value, Waiter};
    use std::sync::Arc;
    use std::time::SystemTime;

    /// A client of the Redis protocol, whose keys wait, but for those that begin with "hit".
    struct Client {
        connection: Connection,
        asked: Vec<(Waiter, String)>,
    }

    fn date() -> Date {
        Date::at(SystemTime::UNIX_EPOCH)
    }

    fn reply(outcome: Outcome<'_>) -> Reply<'_> {
        Reply { outcome, source: Source::Redis { collapsed: false, stored: None }, tracked: false }
    }

    fn short(text: &str) -> Outcome<'_> {
        Outcome::Value(Payload::Inline { bytes: text.as_bytes(), form: Form::Plain })
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
            self.receive_with(text, &mut Ledger::default());
        }

        fn receive_with(&mut self, text: &str, ledger: &mut Ledger) {
            self.asked.extend(self.connection.receive(text.as_bytes(), ledger));
        }

        /// Completes the `number`th key that was asked for.
        fn complete(&mut self, number: usize, outcome: Outcome<'_>) -> bool {
            self.connection.reply_later(self.asked[number].0, &reply(outcome), &date(), &mut Ledger::default())
        }

        fn sent(&mut self) -> String {
            String::from_utf8(self.connection.outgoing().drain(usize::MAX)).expect("text")
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
        assert!(client.complete(3, short("C")) && client.complete(2, Outcome::Missing));
        assert!(client.complete(0, short("A")) && client.sent().is_empty(), "it left before it was whole");
        assert!(!client.complete(0, short("twice")) && !client.connection.is_settled());
        assert!(client.complete(1, short("")));
        let mget = "*5\r\n$4\r\nhit1\r\n$1\r\nA\r\n$4\r\nhit2\r\n$0\r\n\r\n$-1\r\n";
        assert_eq!(client.sent(), format!("{mget}+PONG\r\n$1\r\nC\r\n*1\r\n$4\r\nhit3\r\n"));
        assert!(client.connection.is_settled());
        client.receive(&command(&["EXISTS", "hit", "d", "hit", "e"]));
        assert!(client.complete(4, Outcome::Failed(&Failure::WrongType)) && client.complete(5, Outcome::Missing));
        assert_eq!(client.sent(), ":3\r\n");
    }

    #[test]
    fn a_key_that_cannot_be_read_makes_the_whole_reply_an_error() {
        let mut client = Client::new();
        client.receive(&(command(&["MGET", "a", "b", "hit"]) + &command(&["PING"])));
        assert!(client.complete(0, short("A")) && client.complete(1, Outcome::Failed(&Failure::Unavailable)));
        let error = client.sent();
        assert!(error.starts_with("-LOADING Redis is unreachable") && error.ends_with("\r\n+PONG\r\n"), "{error}");
        // The rest of a command is read, and not looked up.
        client.receive("*4\r\n$4\r\nMGET\r\n$1\r\na\r\n");
        client.complete(2, Outcome::Failed(&Failure::TooLong));
        client.receive("$1\r\nb\r\n");
        assert!(client.sent().is_empty());
        client.receive(&("$1\r\nc\r\n".to_owned() + &command(&["PING"])));
        assert_eq!(client.asked.len(), 3);
        let error = client.sent();
        assert!(error.contains("MAX_VALUE_BYTES") && error.ends_with("\r\n+PONG\r\n"), "{error}");
        // Another type is no value, as in Redis.
        client.receive(&command(&["MGET", "a"]));
        client.complete(3, Outcome::Failed(&Failure::WrongType));
        assert_eq!(client.sent(), "*1\r\n$-1\r\n");
    }

    #[test]
    fn a_command_that_breaks_off_is_answered_once() {
        let mut client = Client::new();
        client.receive("*4\r\n$4\r\nMGET\r\n$1\r\na\r\n$3\r\nhit\r\n");
        assert!(client.connection.is_settled(), "nothing is due before it is whole");
        client.receive("fooz\r\n");
        assert_eq!(client.sent(), "-ERR Protocol error: expected '$', got 'f'\r\n");
        assert!(client.connection.has_ended() && client.connection.is_settled() && client.connection.leaves_unread());
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
        let keys: Vec<String> = (0..MAX_OPEN_KEYS + 500).map(|number| number.to_string()).collect();
        let words: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
        client.receive(&(command(&words) + &command(&["QUIT"])));
        assert_eq!(client.asked.len(), MAX_OPEN_KEYS);
        assert!(!client.connection.takes_requests() && client.connection.has_unparsed());
        for number in 0..MAX_OPEN_KEYS + 500 {
            let text = client.asked[number].1.clone();
            assert!(client.complete(number, short(&text)));
            client.receive("");
            assert!(client.asked.len() - number <= MAX_OPEN_KEYS + 1);
        }
        let values: String = keys.iter().map(|key| format!("${}\r\n{key}\r\n", key.len())).collect();
        assert_eq!(client.sent(), format!("*{}\r\n{values}+OK\r\n", keys.len()));
        assert!(client.connection.has_ended() && !client.connection.leaves_unread());
    }

    /// Its client takes the time that it takes to say which keys; the rest is the proxy's.
    #[test]
    fn a_command_takes_from_its_end_to_its_last_key() {
        let (mut client, mut ledger) = (Client::new(), Ledger::default());
        ledger.tick(1000);
        client.receive_with("*3\r\n$4\r\nMGET\r\n$1\r\na\r\n", &mut ledger);
        ledger.tick(5000);
        client.receive_with("$1\r\nb\r\n", &mut ledger);
        for (number, now) in [(1, 5200), (0, 5300)] {
            ledger.tick(now);
            client.connection.reply_later(client.asked[number].0, &reply(Outcome::Missing), &date(), &mut ledger);
        }
        assert_eq!((ledger.figures.miss_times.sum(), ledger.figures.miss_times.counts().sum::<u64>()), (300, 1));
    }

    /// Or one client could fill the queue to Redis with commands that it breaks off.
    #[test]
    fn keys_that_nobody_needs_any_more_count_as_long_as_they_are_read() {
        let mut client = Client::new();
        let keys: Vec<String> = (0..MAX_OPEN_KEYS - 1).map(|number| number.to_string()).collect();
        let words: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
        let mget = command(&words).replacen("*1024\r\n", "*1025\r\n", 1);
        client.receive(&(mget + "$70000\r\n" + &"x".repeat(70_000) + "\r\n"));
        assert!(client.sent().starts_with("-ERR argument too long") && client.connection.is_settled());
        client.receive(&(command(&["GET", "a"]) + &command(&["GET", "b"])));
        assert_eq!(client.asked.len(), MAX_OPEN_KEYS);
        assert!(!client.complete(0, short("of no use")));
        client.receive("");
        assert_eq!(client.asked.len(), MAX_OPEN_KEYS + 1);
    }

    #[test]
    fn what_a_reply_may_hold_is_bounded_but_one_value_always_fits() {
        let value = Arc::new(Value::new(vec![b'x'; 40 * 1024 * 1024]));
        let long = || Outcome::Value(Payload::Shared(&value));
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
        client.complete(5, Outcome::Value(Payload::Shared(&longest)));
        // What one that is not complete holds counts as unsent.
        assert!(client.complete(3, long()) && !client.connection.takes_requests());
        client.complete(4, Outcome::Missing);
        assert!(client.sent().ends_with("x\r\n"), "the longest was not sent");
        assert!(client.connection.takes_requests() && client.connection.is_settled());
        assert_eq!(Arc::strong_count(&value), 1);
    }
}
