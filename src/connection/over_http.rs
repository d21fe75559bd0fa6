//! A connection's requests over HTTP: heads, and the bodies between them.

use super::{Answer, Connection, Phase, Protocol, Step};
use crate::protocol::http::{self, Body, Command, Date, Head, Refusal, View};
use crate::protocol::{Decoded, Shape};

impl Connection {
    /// The next step at the beginning of `input`, which is not empty.
    pub(super) fn decode_http<'a>(&mut self, input: &'a [u8], key_scratch: &'a mut Vec<u8>, date: &Date) -> Step<'a> {
        if let Protocol::Http(body) = &mut self.protocol
            && *body != Body::Done
        {
            return match body.skip(input) {
                Ok(consumed) => Step::Passed(consumed),
                Err(http::Endless) => {
                    // The request that the body belongs to has its reply; a second one would answer nobody.
                    self.phase = Phase::Last { unread: true };
                    Step::Passed(input.len())
                }
            };
        }
        match http::decode(input, key_scratch) {
            Decoded::Incomplete => Step::Stop,
            Decoded::Complete(head, consumed) => self.begin_http(head, consumed, date),
            Decoded::Invalid(refusal) => {
                self.phase = Phase::Last { unread: true };
                let shape = http::Shape { view: View::Json, head_only: false, version_1_0: false, keep_alive: false };
                self.refuse_http(refusal, shape, date);
                Step::Passed(input.len())
            }
        }
    }

    /// Takes up a request.
    fn begin_http<'a>(&mut self, head: Head<'a>, consumed: usize, date: &Date) -> Step<'a> {
        if head.shape.keep_alive {
            self.protocol = Protocol::Http(head.body);
        } else {
            self.phase = Phase::Last { unread: head.body != Body::Done };
        }
        match head.command {
            Command::Get(key) => {
                Step::Get { key, touch: true, answer: Answer::Alone(Shape::Http(head.shape)), consumed }
            }
            Command::Refuse(refusal) => {
                self.refuse_http(refusal, head.shape, date);
                Step::Passed(consumed)
            }
        }
    }

    fn refuse_http(&mut self, refusal: Refusal, shape: http::Shape, date: &Date) {
        self.replies.answer(|out| http::encode_refusal(refusal, shape, date, out));
    }
}
