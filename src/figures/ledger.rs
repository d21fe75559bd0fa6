//! One loop's books. What it does while it serves is written here as it happens; nothing here asks for the time, locks or
//! does I/O, and with the access log off a hit costs a few additions.
//!
//! The loop looks at the clock at the beginning of a tick, and after every few turns of clients. What was answered in these turns
//! has taken as long as from the one to the other: so all their hits share one look at the clock.
//!
//! With the access log on, each request leaves a line in the Common Log Format, and behind it what became of it and the
//! microseconds it took. What clients send is escaped, so that no request can forge a line.

use super::{Ending, Figures, Micros, Protocol};
use crate::protocol::Sent;
use crate::request::Failure;
use std::fmt::Write;

/// Bytes that a line of the access log has of a request, or few more. A target may have 8 KiB, a key 64, and a client may have 128
/// requests waiting.
const LOGGED_BYTES: usize = 256;

/// What stands in the access log for the status of a request whose client was gone. It is nginx' word for that, and programs that read
/// logs know it.
const ABORTED: &str = "499";

/// What is remembered of a request that waits for its answer.
#[derive(Debug, Default)]
pub struct Note {
    began: Micros,
    /// Who asked, and what, as it stands in the log; only for the access log.
    asked: Option<Box<(Box<str>, Box<str>)>>,
}

/// The access log of one loop.
#[derive(Debug, Default)]
struct Access {
    /// The time as a line has it.
    date: String,
    /// Who has sent the request that was decoded last, and what it asks for.
    client: String,
    request: String,
    /// Lines of these turns, without the time that they took.
    open: Vec<u8>,
    lines: Vec<u8>,
}

/// See the top of the file.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The figures.
    pub figures: Figures,
    /// When the loop last looked at the clock.
    now: Micros,
    /// Requests that were answered from memory in these turns.
    hits: u64,
    access: Option<Box<Access>>,
}

impl Ledger {
    /// Empty books, with an access log or without.
    pub fn new(logs_requests: bool) -> Ledger {
        Ledger { access: logs_requests.then(Box::default), ..Ledger::default() }
    }

    /// Whether each request is logged.
    pub fn logs_requests(&self) -> bool {
        self.access.is_some()
    }

    /// The loop has looked at the clock: requests that it takes up now begin then, answers that it has now end then.
    pub fn tick(&mut self, now: Micros) {
        self.now = now;
    }

    /// The time as lines of the access log have it.
    pub fn set_date(&mut self, date: impl FnOnce() -> String) {
        if let Some(access) = &mut self.access {
            access.date = date();
        }
    }

    /// A request has come from `client`. `write` writes what it asks for, if somebody wants to know.
    pub fn asked(&mut self, client: &str, write: impl FnOnce(&mut String)) {
        if let Some(access) = self.access.as_deref_mut() {
            access.client.clear();
            access.client.push_str(client);
            access.request.clear();
            write(&mut access.request);
        }
    }

    /// The request that has come last waits.
    pub fn note(&self) -> Note {
        let asked = |access: &Access| Box::new((access.client.as_str().into(), access.request.as_str().into()));
        Note { began: self.now, asked: self.access.as_deref().map(asked) }
    }

    /// A request that waited, and has no answer yet, is the last to have come again.
    pub fn go_on(&mut self, note: &Note) {
        if let Some((client, request)) = note.asked.as_deref() {
            self.asked(client, |text| text.push_str(request));
        }
    }

    /// The rest of a request that waits has come.
    pub fn begin_again(&self, note: &mut Note) {
        note.began = self.now;
    }

    /// The request that has come last is answered at once.
    pub fn answered(&mut self, protocol: Protocol, ending: Ending, sent: Sent) {
        self.count(protocol, ending, sent);
        // What is about several keys and had not to wait was in memory, too.
        self.hits += u64::from(matches!(ending, Ending::Hit | Ending::Many));
        if let Some(Access { date, client, request, open, .. }) = self.access.as_deref_mut() {
            begin_line(open, (client, request), date, ending, (sent.status.code(), sent.bytes));
            open.push(b'\n');
        }
    }

    /// A request is answered that was noted.
    pub fn answered_later(&mut self, note: &Note, protocol: Protocol, ending: Ending, sent: Sent) {
        if note.began == self.now {
            // It had not to wait.
            self.go_on(note);
            return self.answered(protocol, ending, sent);
        }
        self.count(protocol, ending, sent);
        let time = self.now.saturating_sub(note.began);
        self.figures.miss_times.observe(time, 1);
        if let (Some(Access { date, lines, .. }), Some(asked)) = (self.access.as_deref_mut(), note.asked.as_deref()) {
            begin_line(lines, (&asked.0, &asked.1), date, ending, (sent.status.code(), sent.bytes));
            end_line(lines, time);
        }
    }

    /// The client of a request that was noted is gone.
    pub fn aborted(&mut self, note: &Note, protocol: Protocol) {
        self.figures.answers[protocol as usize][Ending::Aborted as usize] += 1;
        if let (Some(Access { date, lines, .. }), Some(asked)) = (self.access.as_deref_mut(), note.asked.as_deref()) {
            begin_line(lines, (&asked.0, &asked.1), date, Ending::Aborted, (ABORTED, 0));
            end_line(lines, self.now.saturating_sub(note.began));
        }
    }

    fn count(&mut self, protocol: Protocol, ending: Ending, sent: Sent) {
        self.figures.answers[protocol as usize][ending as usize] += 1;
        if protocol == Protocol::Http {
            self.figures.responses[sent.status as usize] += 1;
        }
    }

    /// A key could not be read.
    pub fn failed(&mut self, failure: &Failure) {
        self.figures.failures[failure.kind()] += 1;
    }

    /// Turns have ended, and the loop has looked at the clock.
    pub fn settle(&mut self, now: Micros) {
        let time = now.saturating_sub(self.now);
        if self.hits > 0 {
            self.figures.hit_times.observe(time, std::mem::take(&mut self.hits));
        }
        if let Some(Access { open, lines, .. }) = self.access.as_deref_mut() {
            for line in open.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
                lines.extend_from_slice(line);
                end_line(lines, time);
            }
            open.clear();
        }
    }

    /// Lines of the access log that nobody has taken yet. Empty where there is none.
    pub fn lines(&mut self) -> Option<&mut Vec<u8>> {
        self.access.as_deref_mut().map(|access| &mut access.lines).filter(|lines| !lines.is_empty())
    }
}

/// All of a line but how long it took.
fn begin_line(
    line: &mut Vec<u8>,
    (client, request): (&str, &str),
    date: &str,
    ending: Ending,
    (code, bytes): (&str, usize),
) {
    for part in [client, " - - [", date, "] \"", request, "\" ", code, " "] {
        line.extend_from_slice(part.as_bytes());
    }
    line.extend_from_slice(if bytes == 0 { "-".into() } else { bytes.to_string() }.as_bytes());
    line.push(b' ');
    line.extend_from_slice(ending.name().as_bytes());
}

/// How long it took, in microseconds.
fn end_line(line: &mut Vec<u8>, time: Micros) {
    line.extend_from_slice(format!(" {time}\n").as_bytes());
}

/// Appends what a client has sent: printable ASCII as it is, quotes, backslashes and all else as `\xhh`; of a long one the
/// beginning.
pub fn escape_into(text: &mut String, sent: &[u8]) {
    let end = text.len() + LOGGED_BYTES;
    for &byte in sent {
        if text.len() >= end {
            return text.push_str("...");
        }
        match byte {
            b'"' | b'\\' | 0..=0x1f | 0x7f.. => {
                // Writing into a String cannot fail.
                let _ = write!(text, "\\x{byte:02x}");
            }
            _ => text.push(char::from(byte)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::Status;

    const SENT: Sent = Sent { status: Status::Ok, bytes: 28 };

    fn taken(ledger: &mut Ledger) -> String {
        let lines = ledger.lines().map(std::mem::take).unwrap_or_default();
        String::from_utf8(lines).expect("ASCII")
    }

    #[test]
    fn hits_of_a_turn_take_as_long_as_the_turn_and_what_waits_until_it_has_its_answer() {
        let mut ledger = Ledger::new(false);
        ledger.tick(1000);
        ledger.answered(Protocol::Http, Ending::Hit, SENT);
        ledger.answered(Protocol::Http, Ending::Hit, SENT);
        ledger.answered(Protocol::Resp, Ending::Other, SENT);
        let note = ledger.note();
        ledger.settle(1015);
        assert!(ledger.lines().is_none());
        ledger.settle(1100);
        ledger.tick(1300);
        ledger.answered_later(&note, Protocol::Resp, Ending::Miss, SENT);
        let figures = &ledger.figures;
        assert_eq!((figures.hit_times.sum(), figures.hit_times.counts().nth(1)), (30, Some(2)));
        assert_eq!((figures.miss_times.sum(), figures.miss_times.counts().sum::<u64>()), (300, 1));
        assert_eq!(figures.answers[Protocol::Http as usize][Ending::Hit as usize], 2);
        assert_eq!(figures.answers[Protocol::Resp as usize][Ending::Miss as usize], 1);
        assert_eq!((figures.responses[Status::Ok as usize], figures.responses.iter().sum()), (2, 2));
    }

    #[test]
    fn of_a_long_request_the_beginning_is_kept_however_it_is_escaped() {
        for (byte, length) in [(b'x', 255), (b'x', 256), (b'x', 257), (0xff, 60_000)] {
            let mut text = "get ".to_owned();
            escape_into(&mut text, &vec![byte; length]);
            assert!(
                text.len() <= 4 + LOGGED_BYTES + 4 + "...".len() && text.ends_with("...") == (length > 256),
                "{length}"
            );
        }
    }

    #[test]
    fn each_request_leaves_a_line_that_it_cannot_forge() {
        let mut ledger = Ledger::new(true);
        ledger.set_date(|| "06/Nov/1994:08:49:37 +0000".into());
        ledger.tick(100);
        ledger.asked("127.0.0.1", |text| escape_into(text, b"GET /key/a HTTP/1.1"));
        ledger.answered(Protocol::Http, Ending::Hit, SENT);
        ledger.asked("::1", |text| escape_into(text, b"GET \"\\\r\n\x7f\xff RESP2"));
        let note = ledger.note();
        ledger.asked("::1", |text| escape_into(text, &[b'x'; 600]));
        ledger.answered(Protocol::Http, Ending::Refused, Sent { status: Status::BadRequest, bytes: 0 });
        ledger.settle(107);
        ledger.tick(400);
        ledger.answered_later(&note, Protocol::Resp, Ending::Miss, SENT);
        let long = "x".repeat(LOGGED_BYTES);
        let date = "[06/Nov/1994:08:49:37 +0000]";
        let expected = format!(
            "127.0.0.1 - - {date} \"GET /key/a HTTP/1.1\" 200 28 hit 7\n\
             ::1 - - {date} \"{long}...\" 400 - refused 7\n\
             ::1 - - {date} \"GET \\x22\\x5c\\x0d\\x0a\\x7f\\xff RESP2\" 200 28 miss 300\n"
        );
        assert_eq!(taken(&mut ledger), expected);
        assert_eq!(taken(&mut ledger), "");
        // A request whose body had to come first.
        ledger.go_on(&note);
        ledger.answered(Protocol::Http, Ending::Other, SENT);
        ledger.settle(400);
        assert!(taken(&mut ledger).starts_with("::1 - - [06/Nov/1994:08:49:37 +0000] \"GET \\x22"));
        ledger.aborted(&note, Protocol::Resp);
        assert!(taken(&mut ledger).ends_with(" RESP2\" 499 - aborted 300\n"));
        assert_eq!(ledger.figures.answers[Protocol::Resp as usize][Ending::Aborted as usize], 1);
    }
}
