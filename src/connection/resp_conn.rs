//! RESP side of a connection: decodes commands, and replies to those that need no key.

use super::authentication::verify_resp;
use super::{Connection, DecodeContext, DecodeStep, Phase, ProtocolState, ReplyContext};
use crate::client_auth::ClientAuth;
use crate::metrics::{Protocol, RequestOutcome, push_escaped};
use crate::protocol::resp::{
    self, AfterReply, Arguments, CommandSpec, DecodeEvent, ProtocolError, RespOperation, Session,
};
use crate::protocol::{Decoded, MultiReply, ReplyFormat, SendBuffer};

impl Connection {
    /// Decodes the next step of a RESP connection. `input` is not empty.
    pub(super) fn decode_resp<'a>(&mut self, input: &'a [u8], context: &mut DecodeContext<'_>) -> DecodeStep<'a> {
        let DecodeContext { auth, reply: context, .. } = context;
        let Connection { protocol: ProtocolState::Resp(session), replies, address, .. } = self else {
            return DecodeStep::Blocked;
        };
        let (event, consumed) = match session.decode(input) {
            Decoded::Incomplete => return DecodeStep::Blocked,
            Decoded::Complete(event, consumed) => (event, consumed),
            Decoded::Invalid(error) => {
                self.refuse_input(error, context);
                return DecodeStep::Consumed(input.len());
            }
        };
        match event {
            DecodeEvent::Skipped => {}
            DecodeEvent::Key(_) => debug_assert!(false, "`decode_keys` takes all keys"),
            DecodeEvent::MultiStart(spec, keys) => {
                session.begin_command(Some(spec));
                context.recorder.begin_request(address, |text| {
                    log_command(text, spec, Some(format!("({keys})").as_bytes()), session)
                });
                replies.push_multi(MultiReply::new(spec, keys, session.version()), context.recorder);
            }
            DecodeEvent::Refuse(refusal) => {
                session.begin_command(None);
                replies.discard_open_multi();
                context.recorder.begin_request(address, |text| log_refused(text, refusal.command(), session));
                replies.push_resp(RequestOutcome::Refused, context, |out| resp::encode_refusal(&refusal, out));
            }
            DecodeEvent::Command(spec, arguments) => {
                session.begin_command(Some(spec));
                // Only keys are logged: other arguments may be passwords.
                let key = || { arguments }.next().filter(|_| spec.has_key());
                context.recorder.begin_request(address, |text| log_command(text, spec, key(), session));
                let unread = consumed < input.len();
                return self.run_command(spec, arguments, (consumed, unread), auth, context);
            }
        }
        DecodeStep::Consumed(consumed)
    }

    /// Replies to malformed input with the error, and closes the connection.
    pub(super) fn refuse_input(&mut self, error: ProtocolError, context: &mut ReplyContext<'_>) {
        self.phase = Phase::Closing { unread: true };
        self.replies.discard_open_multi();
        // Logs the error instead of the input, which may contain a password.
        context.recorder.begin_request(&self.address, |text| push_escaped(text, error.to_string().as_bytes()));
        self.replies.push_resp(RequestOutcome::Refused, context, |out| resp::encode_protocol_error(error, out));
    }

    /// Refuses the first command with the error that `encode` appends, and closes the connection.
    pub(super) fn refuse_resp<'a>(
        &mut self,
        input: &[u8],
        context: &mut ReplyContext<'_>,
        encode: impl FnOnce(&mut SendBuffer),
    ) -> DecodeStep<'a> {
        self.phase = Phase::Closing { unread: true };
        context.recorder.begin_request(&self.address, |text| log_first_command(text, input));
        self.replies.push_resp(RequestOutcome::Refused, context, encode);
        DecodeStep::Consumed(input.len())
    }

    /// Runs a command of `consumed` bytes, or returns the step that completes it. `unread` is true
    /// if more input follows.
    fn run_command<'a>(
        &mut self,
        spec: &'static CommandSpec,
        arguments: Arguments<'a>,
        (consumed, unread): (usize, bool),
        auth: &mut ClientAuth,
        context: &mut ReplyContext<'_>,
    ) -> DecodeStep<'a> {
        let Connection { protocol: ProtocolState::Resp(session), replies, phase, peer, .. } = self else {
            return DecodeStep::Blocked;
        };
        match session.operation_of(spec, arguments) {
            RespOperation::Get(key, format) => {
                let format = ReplyFormat::Resp(format);
                return DecodeStep::Get { key, access: session.access(), format, consumed };
            }
            RespOperation::Ttl(key, format) => {
                return DecodeStep::Ttl { key, access: session.access(), format, consumed };
            }
            RespOperation::Info(format) => return DecodeStep::Info { format, consumed },
            RespOperation::Refuse(refusal) => {
                replies.push_resp(RequestOutcome::Refused, context, |out| resp::encode_refusal(&refusal, out));
            }
            RespOperation::Local => {
                // The first failure ends a command, so a command has one at most.
                let (mut failure, was_tracking) = (None, session.is_tracking());
                let mut verify = |user: &[u8], password: &[u8]| verify_resp(auth, peer, user, password, &mut failure);
                let run = |out: &mut SendBuffer| session.run_local(spec, arguments, &mut verify, out.tail());
                let after = replies.push_resp(RequestOutcome::Other, context, run);
                if let Some(failure) = failure {
                    context.recorder.record_auth_failure(Protocol::Resp, failure);
                }
                let is_on = session.is_tracking();
                if after == AfterReply::Close {
                    *phase = Phase::Closing { unread };
                }
                if is_on && !was_tracking {
                    replies.start_pushes();
                }
                if is_on != was_tracking {
                    return DecodeStep::Tracking { is_on, consumed };
                }
            }
        }
        DecodeStep::Consumed(consumed)
    }
}

/// Appends the name of the first command in `input` for the access log, like [`log_refused`]. Hides
/// an incomplete or malformed one.
pub(super) fn log_first_command(text: &mut String, input: &[u8]) {
    match resp::parse_command_name(input) {
        Some(name) => log_refused(text, name, &Session::new(0, 0, false)),
        None => text.push_str("..."),
    }
}

/// Appends a refused command for the access log: its name and the RESP version. Its arguments may
/// hold a password.
fn log_refused(text: &mut String, name: &[u8], session: &Session) {
    push_escaped(text, &name.to_ascii_lowercase());
    text.push(' ');
    text.push_str(session.version().name());
}

/// Appends a command for the access log: its name, its key if it has one, and the RESP version.
fn log_command(text: &mut String, spec: &CommandSpec, key: Option<&[u8]>, session: &Session) {
    text.push_str(spec.text);
    if let Some(key) = key {
        text.push(' ');
        push_escaped(text, key);
    }
    text.push(' ');
    text.push_str(session.version().name());
}
