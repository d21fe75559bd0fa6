//! How a connection comes to its end, and what it waits for until then.

use super::http_conn::{HEAD_PREFIX, HttpState, is_head, log_malformed};
use super::{Connection, DecodeContext, DecodeStep, Phase, ProtocolState, ReplyContext};
use crate::metrics::{Protocol as Wire, Recorder, RequestOutcome, push_escaped};
use crate::protocol::http::{self, HttpOperation, HttpRefusal, Status};
use crate::protocol::{Decoded, resp};

/// What a client is told that is one too many, over HTTP.
const TOO_MANY_CONNECTIONS: HttpRefusal = HttpRefusal {
    status: Status::ServiceUnavailable,
    message: "connection limit reached (MAX_CONNECTIONS); retry later",
};

/// What a client is told whose request does not come whole.
const REQUEST_TIMED_OUT: HttpRefusal =
    HttpRefusal { status: Status::RequestTimeout, message: "the request was not complete within CLIENT_TIMEOUT" };

impl Connection {
    /// Returns a connection that is one too many. Its first line says what it speaks, and then it is refused.
    pub fn rejected() -> Connection {
        Connection { protocol: ProtocolState::Rejecting, ..Connection::new(0, 0) }
    }

    /// Tells the client to go; but whoever asks for the proxy itself is answered: that there are too many clients is what they are
    /// to see, not that the proxy is ill.
    pub(super) fn reject<'a>(&mut self, input: &[u8], context: &mut DecodeContext<'_>) -> DecodeStep<'a> {
        let DecodeContext { policy, head_decoder, reply } = context;
        let Some(is_resp) = resp::is_resp(input) else { return DecodeStep::Blocked };
        let may_be_answered = http::may_be_admin_request(input);
        match http::decode(input, policy, head_decoder) {
            Decoded::Incomplete if may_be_answered => return DecodeStep::Blocked,
            Decoded::Complete(head, consumed) => {
                reply.recorder.begin_request(&self.address, |text| push_escaped(text, head.request_line));
                if let HttpOperation::Admin(topic) = head.operation {
                    self.phase = Phase::Closing { unread: true };
                    let shape = http::HttpReplyFormat { keep_alive: false, ..head.format };
                    return DecodeStep::Admin { endpoint: topic, format: shape, consumed };
                }
            }
            Decoded::Incomplete | Decoded::Invalid(_) => {
                reply.recorder.begin_request(&self.address, |text| log_malformed(text, input));
            }
        }
        if is_resp {
            self.phase = Phase::Closing { unread: true };
            self.replies.push_resp(RequestOutcome::Refused, reply.recorder, resp::encode_too_many_clients);
        } else if HEAD_PREFIX.starts_with(input) && input != HEAD_PREFIX {
            // It may become a request whose response has no body.
            return DecodeStep::Blocked;
        } else {
            self.refuse_and_close(TOO_MANY_CONNECTIONS, is_head(input), reply);
        }
        DecodeStep::Consumed(input.len())
    }

    /// Whether every reply that is due has been sent. A request that has not come whole has none.
    pub fn is_flushed(&self) -> bool {
        self.replies.is_settled()
    }

    /// Whether a request has begun to come and is not whole: the number of those before it, the same from its first byte to its
    /// last. What has been read, and not been taken because too much is open, may be one too; its number is not known yet.
    pub fn partial_request(&self) -> Option<u64> {
        // An empty line before a request is not its beginning: an old client may send one behind its last.
        let empty_line = || matches!(self.protocol, ProtocolState::Http(_)) && b"\r\n".starts_with(&self.unparsed);
        // Asked with every hit. Where there are no bytes none are compared: a Zen 5 takes a hundred nanoseconds over the vector loads
        // by which `memcmp` finds nothing at an address where nothing is.
        (self.in_request() || (self.has_unparsed() && !empty_line())).then_some(self.requests_before)
    }

    /// Whether what was taken last is a part of a request, of which there is more to come.
    pub(super) fn in_request(&self) -> bool {
        match &self.protocol {
            ProtocolState::Detecting | ProtocolState::Rejecting => false,
            ProtocolState::Http(between) => between.in_body(),
            ProtocolState::Resp(session) => session.in_command(),
        }
    }

    /// Its client is gone, or is cut off: what waits for an answer gets none.
    pub fn abort(&mut self, recorder: &mut Recorder) {
        self.replies.abort(recorder);
    }

    /// Ends it because its client has not sent the rest of a request. Over HTTP the client is told, if it was one that
    /// would be answered; Redis closes such connections without a word.
    pub fn time_out_request(&mut self, context: &mut ReplyContext<'_>) {
        let recorder = &mut *context.recorder;
        if matches!(self.protocol, ProtocolState::Detecting) {
            // A first line that has no end yet may be one of either protocol.
            self.protocol = ProtocolState::Http(HttpState::BETWEEN_REQUESTS);
        }
        match &self.protocol {
            ProtocolState::Http(between) if !between.body_is_leftover() => {
                let head_only = between.deferred_is_head() || is_head(&self.unparsed);
                match between.request_info() {
                    Some(note) => recorder.resume_request(note),
                    None => recorder.begin_request(&self.address, |text| log_malformed(text, &self.unparsed)),
                }
                self.refuse_and_close(REQUEST_TIMED_OUT, head_only, context);
            }
            _ => {
                self.phase = Phase::Closing { unread: true };
                if let Some(note) = self.replies.discard_open_multi() {
                    recorder.record_aborted(&note, Wire::Resp);
                }
            }
        }
        self.unparsed = Vec::new();
    }

    /// Whether no further request will be taken, whatever comes.
    pub fn is_closing(&self) -> bool {
        self.phase != Phase::Open
    }

    /// Whether the client may still be sending what nobody will read, so that closing has to wait for it.
    pub fn needs_linger(&self) -> bool {
        matches!(self.phase, Phase::Closing { unread: true })
    }
}
