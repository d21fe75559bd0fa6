//! Ends of a connection: rejection above the connection limit or without TLS, a timeout, an abort,
//! the last request.

use super::http_conn::{HEAD_PREFIX, HttpState, is_head, log_malformed};
use super::resp_conn::log_first_command;
use super::{Connection, DecodeContext, DecodeStep, Phase, ProtocolState, Rejection, ReplyContext};
use crate::metrics::{Protocol, Recorder, RequestOutcome, push_escaped};
use crate::protocol::http::{self, AdminEndpoint, HttpOperation, HttpRefusal, Status};
use crate::protocol::{Decoded, resp};

/// Response to an HTTP client above the connection limit.
const TOO_MANY_CONNECTIONS: HttpRefusal = HttpRefusal {
    status: Status::ServiceUnavailable,
    message: "connection limit reached (MAX_CONNECTIONS); retry later",
};

/// Response to an HTTP client without TLS where TLS is required.
const TLS_REQUIRED: HttpRefusal = HttpRefusal {
    status: Status::BadRequest,
    message: "this port requires TLS; use https://, or set TLS_REQUIRED=off to allow plain connections",
};

/// Alert to a TLS client above the connection limit: `internal_error`, fatal, in a record of its
/// own (RFC 8446, section 6). A handshake would cost more than the refusal of a plain client.
const TLS_ALERT: [u8; 7] = [0x15, 3, 1, 0, 2, 2, 80];

/// Response to an HTTP client that does not complete its request in time.
const REQUEST_TIMED_OUT: HttpRefusal =
    HttpRefusal { status: Status::RequestTimeout, message: "the request was not complete within CLIENT_TIMEOUT" };

impl Connection {
    /// Creates a connection above the connection limit. Its first line shows the protocol; then it
    /// is refused.
    pub fn rejected() -> Connection {
        let protocol = ProtocolState::Rejecting { rejection: Rejection::ConnectionLimit, health_only: false };
        Connection { protocol, ..Connection::new(0, 0) }
    }

    /// Refuses requests until [`Connection::begin_tls`] is called. Called for a new connection. One
    /// above the connection limit stays refused for that reason.
    pub fn require_tls(&mut self) {
        let rejection = match self.protocol {
            ProtocolState::Rejecting { rejection, .. } => rejection,
            _ => Rejection::TlsRequired,
        };
        self.protocol = ProtocolState::Rejecting { rejection, health_only: true };
    }

    /// Accepts requests: what follows arrived over TLS.
    pub fn begin_tls(&mut self) {
        if matches!(self.protocol, ProtocolState::Rejecting { rejection: Rejection::TlsRequired, .. }) {
            self.protocol = ProtocolState::Detecting;
        }
    }

    /// Refuses a client that starts a TLS handshake above the connection limit.
    pub fn reject_tls(&mut self) {
        self.phase = Phase::Closing { unread: true };
        self.send_buffer().tail().extend_from_slice(&TLS_ALERT);
    }

    /// Refuses the first request of a rejected connection. Answers an admin request, so that a
    /// monitor sees the reached limit instead of a proxy that seems to be down. Without a required
    /// TLS only the health endpoints are answered, which reveal no secret (`health_only`).
    pub(super) fn reject<'a>(
        &mut self,
        rejection: Rejection,
        health_only: bool,
        input: &[u8],
        context: &mut DecodeContext<'_>,
    ) -> DecodeStep<'a> {
        let DecodeContext { policy, head_decoder, auth, reply, .. } = context;
        let Some(is_resp) = resp::is_resp(input) else { return DecodeStep::Blocked };
        let may_be_admin = http::may_be_admin_request(input);
        match http::decode(input, policy, head_decoder) {
            Decoded::Incomplete if may_be_admin => return DecodeStep::Blocked,
            Decoded::Complete(mut head, consumed) => {
                reply.recorder.begin_request(&self.address, |text| push_escaped(text, head.request_line));
                // Health needs no password, and all else is refused. So a password that was sent
                // without TLS is not checked, and throttles no TLS client of the same address.
                if auth.is_required() && !health_only {
                    self.authorize(&mut head, auth, reply.recorder);
                }
                if let HttpOperation::Admin(endpoint) = head.operation
                    && (!health_only || matches!(endpoint, AdminEndpoint::Healthz | AdminEndpoint::Readyz))
                {
                    self.phase = Phase::Closing { unread: true };
                    let format = http::HttpReplyFormat { keep_alive: false, ..head.format };
                    return DecodeStep::Admin { endpoint, format, consumed };
                }
            }
            Decoded::Incomplete | Decoded::Invalid(_) => {
                let log = if is_resp { log_first_command } else { log_malformed };
                reply.recorder.begin_request(&self.address, |text| log(text, input));
            }
        }
        if is_resp {
            self.phase = Phase::Closing { unread: true };
            let encode = match rejection {
                Rejection::ConnectionLimit => resp::encode_too_many_clients,
                Rejection::TlsRequired => resp::encode_tls_required,
            };
            self.replies.push_resp(RequestOutcome::Refused, reply, encode);
        } else if HEAD_PREFIX.starts_with(input) && input != HEAD_PREFIX {
            // A response to HEAD has no body, so the rest of the method must arrive first.
            return DecodeStep::Blocked;
        } else {
            let refusal = match rejection {
                Rejection::ConnectionLimit => TOO_MANY_CONNECTIONS,
                Rejection::TlsRequired => TLS_REQUIRED,
            };
            self.refuse_and_close(refusal, is_head(input), reply);
        }
        DecodeStep::Consumed(input.len())
    }

    /// Returns true if every reply to a complete request was sent.
    pub fn is_flushed(&self) -> bool {
        self.replies.is_flushed()
    }

    /// Returns the number of requests before the incomplete one, if a part of one has arrived. It
    /// stays the same from the first byte of a request to its last. Stored input counts as
    /// incomplete, even if it holds whole requests that a limit keeps from being decoded.
    pub fn partial_request(&self) -> Option<u64> {
        // An empty line does not start a request: an old client may send one behind its last
        // request.
        let is_empty_line = || matches!(self.protocol, ProtocolState::Http(_)) && b"\r\n".starts_with(&self.unparsed);
        // Runs for each hit. Without stored bytes nothing is compared. `memcmp` of an empty slice
        // loads a vector from a dangling address (100 ns on a Zen 5).
        (self.in_request() || (self.has_unparsed() && !is_empty_line())).then_some(self.requests_before)
    }

    /// Returns true if a part of a request was consumed, and its rest was not.
    pub(super) fn in_request(&self) -> bool {
        match &self.protocol {
            ProtocolState::Detecting | ProtocolState::Rejecting { .. } => false,
            ProtocolState::Http(state) => state.in_request(),
            ProtocolState::Resp(session) => session.in_command(),
        }
    }

    /// Records the unanswered requests as aborted: the client is gone, or the proxy closes it.
    pub fn abort(&mut self, recorder: &mut Recorder) {
        self.replies.abort(recorder);
    }

    /// Closes the connection because the client did not complete its request in time. An HTTP
    /// client gets a response, if its request has none yet. A RESP client gets no reply, as with
    /// Redis.
    pub fn time_out_request(&mut self, context: &mut ReplyContext<'_>) {
        let recorder = &mut *context.recorder;
        if matches!(self.protocol, ProtocolState::Detecting) {
            // An incomplete first line may be of either protocol.
            self.protocol = ProtocolState::Http(HttpState::BETWEEN_REQUESTS);
        }
        match &self.protocol {
            ProtocolState::Http(state) if !state.body_is_leftover() => {
                let head_only = state.deferred_is_head() || is_head(&self.unparsed);
                match state.request_info() {
                    Some(info) => recorder.resume_request(info),
                    None => recorder.begin_request(&self.address, |text| log_malformed(text, &self.unparsed)),
                }
                self.refuse_and_close(REQUEST_TIMED_OUT, head_only, context);
            }
            _ => {
                self.phase = Phase::Closing { unread: true };
                if let Some(info) = self.replies.discard_open_multi() {
                    recorder.record_aborted(&info, Protocol::Resp);
                }
            }
        }
        self.unparsed = Vec::new();
    }

    /// Returns true if no further request is taken.
    pub fn is_closing(&self) -> bool {
        self.phase != Phase::Open
    }

    /// Returns true if the client may still be sending. Then closing has to linger.
    pub fn needs_linger(&self) -> bool {
        matches!(self.phase, Phase::Closing { unread: true })
    }
}
