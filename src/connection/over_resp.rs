//! A connection's commands over the Redis protocol.

use super::{Answer, Connection, Phase, Protocol, Step};
use crate::protocol::resp::{self, After, Event, Gather, Meaning};
use crate::protocol::{Decoded, Shape};

impl Connection {
    /// The next step at the beginning of `input`, which is not empty.
    pub(super) fn decode_resp<'a>(&mut self, input: &'a [u8]) -> Step<'a> {
        let Connection { protocol: Protocol::Resp(session), replies, phase, .. } = self else { return Step::Stop };
        let (event, consumed) = match session.decode(input) {
            Decoded::Incomplete => return Step::Stop,
            Decoded::Complete(event, consumed) => (event, consumed),
            Decoded::Invalid(violation) => {
                *phase = Phase::Last { unread: true };
                replies.abandon();
                replies.answer(|out| resp::encode_violation(violation, out));
                return Step::Passed(input.len());
            }
        };
        match event {
            Event::Nothing => {}
            Event::Many(known, keys) => replies.begin(Gather::new(known, keys, session.version())),
            Event::Key(_) if replies.gathering().is_none_or(Gather::has_failed) => replies.gather(Gather::pass),
            Event::Key(key) => return Step::Get { key, touch: session.touches(), answer: Answer::Part, consumed },
            Event::Refuse(refusal) => {
                replies.abandon();
                replies.answer(|out| resp::encode_refusal(&refusal, out));
            }
            Event::Command(known, arguments) => match session.interpret(known, arguments) {
                Meaning::Get(key, shape) => {
                    let answer = Answer::Alone(Shape::Resp(shape));
                    return Step::Get { key, touch: session.touches(), answer, consumed };
                }
                Meaning::Remaining(key, shape) => return Step::Remaining { key, shape, consumed },
                Meaning::Figures(shape) => return Step::Figures { shape, consumed },
                Meaning::Refuse(refusal) => replies.answer(|out| resp::encode_refusal(&refusal, out)),
                Meaning::Own => {
                    if replies.answer(|out| session.answer(known, arguments, out.tail())) == After::Close {
                        *phase = Phase::Last { unread: consumed < input.len() };
                    }
                }
            },
        }
        Step::Passed(consumed)
    }
}
