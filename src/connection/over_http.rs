//! A connection's requests over HTTP: heads, and the bodies between them.

use super::{Answer, Connection, Phase, Protocol, Step};
use crate::protocol::http::{self, Body, Command, Date, Head, Hosts, Refusal, View};
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
}

impl Between {
    /// With nothing left of any body.
    pub(super) const NOTHING: Between = Between { body: Body::Done, deferred: None };

    /// Whether a body has not come whole.
    pub(super) fn is_amid_body(&self) -> bool {
        self.body != Body::Done
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
        hosts: &Hosts,
        key_scratch: &'a mut Vec<u8>,
        date: &Date,
    ) -> Step<'a> {
        match &mut self.protocol {
            Protocol::Http(between) if between.is_amid_body() => return self.skip_body(input, key_scratch, date),
            _ => {}
        }
        match http::decode(input, hosts, key_scratch) {
            Decoded::Incomplete => Step::Stop,
            Decoded::Complete(head, consumed) => self.begin_http(head, consumed, date),
            Decoded::Invalid(refusal) => {
                self.end_http(refusal, is_head(input), date);
                Step::Passed(input.len())
            }
        }
    }

    fn skip_body<'a>(&mut self, input: &'a [u8], key_scratch: &'a mut Vec<u8>, date: &Date) -> Step<'a> {
        let Protocol::Http(Between { body, deferred }) = &mut self.protocol else { return Step::Stop };
        match body.skip(input) {
            Ok(consumed) if *body == Body::Done => match deferred.take() {
                Some(deferred) => {
                    if !deferred.shape.keep_alive {
                        self.phase = Phase::Last { unread: false };
                    }
                    *key_scratch = deferred.key;
                    Step::Get {
                        key: key_scratch,
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
                    Some(deferred) => self.end_http(fault.refusal(), deferred.shape.head_only, date),
                    // The request that the body belongs to has its reply; a second one would answer nobody.
                    None => self.phase = Phase::Last { unread: true },
                }
                Step::Passed(input.len())
            }
        }
    }

    /// Takes up a request.
    fn begin_http<'a>(&mut self, head: Head<'a>, consumed: usize, date: &Date) -> Step<'a> {
        let Head { command, shape, body, expects_answer } = head;
        let chunked = matches!(body, Body::Chunked(..));
        match command {
            // A client that waits for an answer before it sends the body gets it now.
            Command::Get(key) if chunked && !expects_answer => {
                let deferred = Some(Box::new(Deferred { key: key.to_vec(), shape }));
                self.protocol = Protocol::Http(Between { body, deferred });
                return Step::Passed(consumed);
            }
            _ if shape.keep_alive => self.protocol = Protocol::Http(Between { body, deferred: None }),
            _ => self.phase = Phase::Last { unread: body != Body::Done },
        }
        match command {
            Command::Get(key) => Step::Get { key, touch: true, answer: Answer::Alone(Shape::Http(shape)), consumed },
            Command::Options => {
                self.replies.answer(|out| http::encode_options(shape, date, out));
                Step::Passed(consumed)
            }
            Command::Refuse(refusal) => {
                self.refuse_http(refusal, shape, date);
                Step::Passed(consumed)
            }
        }
    }

    /// Refuses what cannot be read, for the last time.
    pub(super) fn end_http(&mut self, refusal: Refusal, head_only: bool, date: &Date) {
        self.phase = Phase::Last { unread: true };
        self.refuse_http(
            refusal,
            http::Shape { view: View::Json, head_only, version_1_0: false, keep_alive: false },
            date,
        );
    }

    fn refuse_http(&mut self, refusal: Refusal, shape: http::Shape, date: &Date) {
        self.replies.answer(|out| http::encode_refusal(refusal, shape, date, out));
    }
}

/// Whether the request that `input` begins with is one whose response has no body. What has been found malformed is so behind
/// that, so that it does not matter how much of it has come.
pub(super) fn is_head(input: &[u8]) -> bool {
    input.strip_prefix(b"\r\n").unwrap_or(input).starts_with(HEAD)
}

pub(super) const HEAD: &[u8] = b"HEAD ";
