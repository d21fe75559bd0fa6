//! A connection's requests over HTTP: heads, and the bodies between them.

use super::{Answer, Connection, Phase, Protocol, Step};
use crate::figures::{Ending, Ledger, Note, Protocol as Wire, escape_into};
use crate::protocol::http::{self, Body, Command, Date, Head, Heads, Refusal, Rules};
use crate::protocol::{Decoded, Shape};

/// What an HTTP connection is at between heads.
#[derive(Debug)]
pub(super) struct Between {
    /// What is left of the last request's body.
    pub(super) body: Body,
    /// The last request, where it is taken up only when its body has come whole.
    deferred: Option<Box<Deferred>>,
}

/// A request for a key with a chunked body. Whether it is well-formed is known only at its end, and what is not is refused.
#[derive(Debug)]
struct Deferred {
    key: Vec<u8>,
    shape: http::Shape,
    note: Note,
}

impl Between {
    /// With nothing left of any body.
    pub(super) const NOTHING: Between = Between { body: Body::Done, deferred: None };

    /// Whether a body has not come whole.
    pub(super) fn is_amid_body(&self) -> bool {
        self.body != Body::Done
    }

    /// What is remembered of the request whose body is coming, where it has no reply.
    pub(super) fn note(&self) -> Option<&Note> {
        self.deferred.as_ref().map(|deferred| &deferred.note)
    }

    /// Whether the request whose body is coming, and which has no reply, is one whose response has no body.
    pub(super) fn awaits_head(&self) -> bool {
        self.deferred.as_ref().is_some_and(|deferred| deferred.shape.head_only)
    }

    /// Whether that body belongs to a request that has its reply.
    pub(super) fn is_answered(&self) -> bool {
        self.is_amid_body() && self.deferred.is_none()
    }
}

impl Connection {
    /// The next step at the beginning of `input`, which is not empty.
    pub(super) fn decode_http<'a>(
        &mut self,
        input: &'a [u8],
        rules: &Rules,
        heads: &'a mut Heads,
        date: &Date,
        ledger: &mut Ledger,
    ) -> Step<'a> {
        match &mut self.protocol {
            Protocol::Http(between) if between.is_amid_body() => {
                return self.skip_body(input, heads, date, ledger);
            }
            _ => {}
        }
        match http::decode(input, rules, heads) {
            Decoded::Incomplete => Step::Stop,
            Decoded::Complete(mut head, consumed) => {
                ledger.asked(&self.address, |text| escape_into(text, head.line));
                let told_to_go =
                    rules.stopping && head.shape.keep_alive && !has_sent_more(&head, input.len() - consumed);
                head.shape.keep_alive &= !told_to_go;
                let step = self.begin_http(head, consumed, date, ledger);
                if told_to_go && let Phase::Last { unread } = &mut self.phase {
                    // It does not know yet, and may be sending its next request.
                    *unread = true;
                }
                step
            }
            Decoded::Invalid(refusal) => {
                ledger.asked(&self.address, |text| describe_malformed(text, input));
                self.end_http(refusal, is_head(input), date, ledger);
                Step::Passed(input.len())
            }
        }
    }

    fn skip_body<'a>(&mut self, input: &'a [u8], heads: &'a mut Heads, date: &Date, ledger: &mut Ledger) -> Step<'a> {
        let Protocol::Http(Between { body, deferred }) = &mut self.protocol else { return Step::Stop };
        match body.skip(input) {
            Ok(consumed) if *body == Body::Done => match deferred.take() {
                Some(deferred) => {
                    ledger.go_on(&deferred.note);
                    if !deferred.shape.keep_alive {
                        // Whether it knows that was said with the head.
                        self.phase = Phase::Last { unread: true };
                    }
                    heads.key = deferred.key;
                    Step::Get {
                        key: &heads.key,
                        touch: true,
                        answer: Answer::Alone(Shape::Http(deferred.shape)),
                        consumed,
                    }
                }
                None => Step::Passed(consumed),
            },
            Ok(consumed) => Step::Passed(consumed),
            Err(fault) => {
                match deferred.take() {
                    Some(deferred) => {
                        ledger.go_on(&deferred.note);
                        self.end_http(fault.refusal(), deferred.shape.head_only, date, ledger);
                    }
                    // The request that the body belongs to has its reply; a second one would answer nobody.
                    None => self.phase = Phase::Last { unread: true },
                }
                Step::Passed(input.len())
            }
        }
    }

    /// Takes up a request.
    fn begin_http<'a>(&mut self, head: Head<'a>, consumed: usize, date: &Date, ledger: &mut Ledger) -> Step<'a> {
        let Head { command, shape, body, expects_answer, .. } = head;
        let chunked = matches!(body, Body::Chunked(..));
        match command {
            // A client that waits for an answer before it sends the body gets it now.
            Command::Get(key) if chunked && !expects_answer => {
                let deferred = Some(Box::new(Deferred { key: key.to_vec(), shape, note: ledger.note() }));
                self.protocol = Protocol::Http(Between { body, deferred });
                return Step::Passed(consumed);
            }
            _ if shape.keep_alive => {
                if let Protocol::Http(between) = &mut self.protocol {
                    between.body = body;
                }
            }
            _ => self.phase = Phase::Last { unread: body != Body::Done },
        }
        match command {
            Command::Get(key) => Step::Get { key, touch: true, answer: Answer::Alone(Shape::Http(shape)), consumed },
            Command::About(topic) => Step::About { topic, shape, consumed },
            Command::Options => {
                let sent = self.replies.answer(|out| http::encode_options(shape, date, out));
                ledger.answered(Wire::Http, Ending::Other, sent);
                Step::Passed(consumed)
            }
            Command::Refuse(refusal) => {
                self.refuse_http(refusal, shape, date, ledger);
                Step::Passed(consumed)
            }
        }
    }

    /// Refuses what cannot be read, for the last time.
    pub(super) fn end_http(&mut self, refusal: Refusal, head_only: bool, date: &Date, ledger: &mut Ledger) {
        self.phase = Phase::Last { unread: true };
        let shape = http::Shape { head_only, keep_alive: false, ..http::Shape::default() };
        self.refuse_http(refusal, shape, date, ledger);
    }

    fn refuse_http(&mut self, refusal: Refusal, shape: http::Shape, date: &Date, ledger: &mut Ledger) {
        let sent = self.replies.answer(|out| http::encode_refusal(refusal, shape, date, out));
        ledger.answered(Wire::Http, Ending::Refused, sent);
    }
}

/// Whether a client has sent more than a request and its body, of which `rest` bytes may be: whoever has gets to hear with a later
/// response that it is the last. Of a chunked body nobody knows yet where it ends.
fn has_sent_more(head: &Head<'_>, rest: usize) -> bool {
    match head.body {
        Body::Done => rest > 0,
        Body::Length(length) => rest as u64 > length,
        Body::Chunked(..) => false,
    }
}

/// Appends what the access log has of what does not parse: its first word. Behind that there may be a password, of a URL or of a
/// command (`AUTH password`) of somebody who takes this for another protocol.
pub(super) fn describe_malformed(text: &mut String, input: &[u8]) {
    let word = input.trim_ascii_start().split(|byte| !byte.is_ascii_alphabetic()).next().unwrap_or_default();
    escape_into(text, &word[..word.len().min(MAX_WORD_BYTES)]);
    text.push_str(" ...");
}

/// Whether the request that `input` begins with is one whose response has no body. What has been found malformed is so behind
/// that, so that it does not matter how much of it has come.
pub(super) fn is_head(input: &[u8]) -> bool {
    input.strip_prefix(b"\r\n").unwrap_or(input).starts_with(HEAD)
}

pub(super) const HEAD: &[u8] = b"HEAD ";

/// Longest first word of what does not parse that is logged, in bytes. Methods are shorter.
const MAX_WORD_BYTES: usize = 16;
