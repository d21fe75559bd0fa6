//! A connection's commands over the Redis protocol.

use super::{Connection, DecodeStep, Phase, ProtocolState, ReplyMode};
use crate::metrics::{Recorder, RequestOutcome, push_escaped};
use crate::protocol::resp::{self, AfterReply, Arguments, CommandSpec, DecodeEvent, RespOperation, Session};
use crate::protocol::{Decoded, MultiReply, ReplyFormat};

impl Connection {
    /// The next step at the beginning of `input`, which is not empty.
    pub(super) fn decode_resp<'a>(&mut self, input: &'a [u8], recorder: &mut Recorder) -> DecodeStep<'a> {
        let Connection { protocol: ProtocolState::Resp(session), replies, phase, address, .. } = self else {
            return DecodeStep::Blocked;
        };
        let (event, consumed) = match session.decode(input) {
            Decoded::Incomplete => return DecodeStep::Blocked,
            Decoded::Complete(event, consumed) => (event, consumed),
            Decoded::Invalid(violation) => {
                *phase = Phase::Closing { unread: true };
                replies.discard_open_multi();
                // Not what it has sent: there may be a password in it.
                recorder.begin_request(address, |text| push_escaped(text, violation.to_string().as_bytes()));
                replies.push_resp(RequestOutcome::Refused, recorder, |out| resp::encode_protocol_error(violation, out));
                return DecodeStep::Consumed(input.len());
            }
        };
        match event {
            DecodeEvent::Skipped => {}
            DecodeEvent::MultiStart(known, keys) => {
                recorder.begin_request(address, |text| {
                    log_command(text, known, Some(format!("({keys})").as_bytes()), session)
                });
                replies.push_multi(MultiReply::new(known, keys, session.version()), recorder.request_info());
            }
            DecodeEvent::Key(_) if replies.open_multi().is_none_or(MultiReply::has_failed) => {
                replies.update_open_multi(recorder, MultiReply::skip_key);
            }
            DecodeEvent::Key(key) => {
                return DecodeStep::Get { key, touch: session.updates_recency(), mode: ReplyMode::Part, consumed };
            }
            DecodeEvent::Refuse(refusal) => {
                replies.discard_open_multi();
                recorder.begin_request(address, |text| push_escaped(text, refusal.to_string().as_bytes()));
                replies.push_resp(RequestOutcome::Refused, recorder, |out| resp::encode_refusal(&refusal, out));
            }
            DecodeEvent::Command(known, arguments) => {
                // Keys, and nothing else: there are passwords among other arguments.
                let key = || { arguments }.next().filter(|_| known.has_key());
                recorder.begin_request(address, |text| log_command(text, known, key(), session));
                return self.run_command(known, arguments, consumed, consumed < input.len(), recorder);
            }
        }
        DecodeStep::Consumed(consumed)
    }

    /// Takes up a command. `unread` says whether there are bytes behind it.
    fn run_command<'a>(
        &mut self,
        known: &'static CommandSpec,
        arguments: Arguments<'a>,
        consumed: usize,
        unread: bool,
        recorder: &mut Recorder,
    ) -> DecodeStep<'a> {
        let Connection { protocol: ProtocolState::Resp(session), replies, phase, .. } = self else {
            return DecodeStep::Blocked;
        };
        match session.operation_of(known, arguments) {
            RespOperation::Get(key, shape) => {
                let mode = ReplyMode::Single(ReplyFormat::Resp(shape));
                return DecodeStep::Get { key, touch: session.updates_recency(), mode, consumed };
            }
            RespOperation::Ttl(key, shape) => return DecodeStep::Ttl { key, format: shape, consumed },
            RespOperation::Info(shape) => return DecodeStep::Info { format: shape, consumed },
            RespOperation::Refuse(refusal) => {
                replies.push_resp(RequestOutcome::Refused, recorder, |out| resp::encode_refusal(&refusal, out));
            }
            RespOperation::Local => {
                let answer = |out: &mut crate::protocol::SendBuffer| session.run_local(known, arguments, out.tail());
                if replies.push_resp(RequestOutcome::Other, recorder, answer) == AfterReply::Close {
                    *phase = Phase::Closing { unread };
                }
            }
        }
        DecodeStep::Consumed(consumed)
    }
}

/// A command as the access log has it: its name, its key if it has one, and the protocol.
fn log_command(text: &mut String, known: &CommandSpec, key: Option<&[u8]>, session: &Session) {
    text.push_str(known.text);
    if let Some(key) = key {
        text.push(' ');
        push_escaped(text, key);
    }
    text.push(' ');
    text.push_str(session.version().name());
}
