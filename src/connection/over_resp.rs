//! A connection's commands over the Redis protocol.

use super::{Answer, Connection, Phase, Protocol, Step};
use crate::figures::{Ending, Ledger, escape_into};
use crate::protocol::resp::{self, After, Arguments, Event, Gather, Known, Meaning, Session};
use crate::protocol::{Decoded, Shape};

impl Connection {
    /// The next step at the beginning of `input`, which is not empty.
    pub(super) fn decode_resp<'a>(&mut self, input: &'a [u8], ledger: &mut Ledger) -> Step<'a> {
        let Connection { protocol: Protocol::Resp(session), replies, phase, address, .. } = self else {
            return Step::Stop;
        };
        let (event, consumed) = match session.decode(input) {
            Decoded::Incomplete => return Step::Stop,
            Decoded::Complete(event, consumed) => (event, consumed),
            Decoded::Invalid(violation) => {
                *phase = Phase::Last { unread: true };
                replies.abandon();
                // Not what it has sent: there may be a password in it.
                ledger.asked(address, |text| escape_into(text, violation.to_string().as_bytes()));
                replies.answer_resp(Ending::Refused, ledger, |out| resp::encode_violation(violation, out));
                return Step::Passed(input.len());
            }
        };
        match event {
            Event::Nothing => {}
            Event::Many(known, keys) => {
                ledger.asked(address, |text| describe(text, known, Some(format!("({keys})").as_bytes()), session));
                replies.begin(Gather::new(known, keys, session.version()), ledger.note());
            }
            Event::Key(_) if replies.gathering().is_none_or(Gather::has_failed) => {
                replies.gather(ledger, Gather::pass);
            }
            Event::Key(key) => return Step::Get { key, touch: session.touches(), answer: Answer::Part, consumed },
            Event::Refuse(refusal) => {
                replies.abandon();
                ledger.asked(address, |text| escape_into(text, refusal.to_string().as_bytes()));
                replies.answer_resp(Ending::Refused, ledger, |out| resp::encode_refusal(&refusal, out));
            }
            Event::Command(known, arguments) => {
                // Keys, and nothing else: there are passwords among other arguments.
                let key = || { arguments }.next().filter(|_| known.takes_a_key());
                ledger.asked(address, |text| describe(text, known, key(), session));
                return self.take_up(known, arguments, consumed, consumed < input.len(), ledger);
            }
        }
        Step::Passed(consumed)
    }

    /// Takes up a command. `unread` says whether there are bytes behind it.
    fn take_up<'a>(
        &mut self,
        known: &'static Known,
        arguments: Arguments<'a>,
        consumed: usize,
        unread: bool,
        ledger: &mut Ledger,
    ) -> Step<'a> {
        let Connection { protocol: Protocol::Resp(session), replies, phase, .. } = self else { return Step::Stop };
        match session.interpret(known, arguments) {
            Meaning::Get(key, shape) => {
                let answer = Answer::Alone(Shape::Resp(shape));
                return Step::Get { key, touch: session.touches(), answer, consumed };
            }
            Meaning::Remaining(key, shape) => return Step::Remaining { key, shape, consumed },
            Meaning::Figures(shape) => return Step::Figures { shape, consumed },
            Meaning::Refuse(refusal) => {
                replies.answer_resp(Ending::Refused, ledger, |out| resp::encode_refusal(&refusal, out));
            }
            Meaning::Own => {
                let answer = |out: &mut crate::protocol::Outgoing| session.answer(known, arguments, out.tail());
                if replies.answer_resp(Ending::Other, ledger, answer) == After::Close {
                    *phase = Phase::Last { unread };
                }
            }
        }
        Step::Passed(consumed)
    }
}

/// A command as the access log has it: its name, its key if it has one, and the protocol.
fn describe(text: &mut String, known: &Known, key: Option<&[u8]>, session: &Session) {
    text.push_str(known.text);
    if let Some(key) = key {
        text.push(' ');
        escape_into(text, key);
    }
    text.push(' ');
    text.push_str(session.version().name());
}
