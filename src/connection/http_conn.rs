//! HTTP side of a connection: decodes request heads, and skips the bodies between them.

use super::{Connection, DecodeContext, DecodeStep, Phase, ProtocolState, ReplyContext};
use crate::metrics::{RequestInfo, RequestOutcome, push_escaped};
use crate::protocol::http::{self, Body, Head, HttpOperation, HttpRefusal};
use crate::protocol::{Decoded, ReplyFormat};

pub(super) const HEAD_PREFIX: &[u8] = b"HEAD ";

/// Longest first word of malformed input that is logged. Methods are shorter.
const MAX_LOGGED_METHOD_BYTES: usize = 16;

/// HTTP state between two request heads.
#[derive(Debug)]
pub(super) struct HttpState {
    /// Rest of the last request's body.
    pub(super) body: Body,
    /// Last request, if it runs only after its body.
    deferred: Option<Box<DeferredGet>>,
}

/// Request for a key with a chunked body. It runs once the body is complete, because a malformed
/// body makes the whole request malformed.
#[derive(Debug)]
struct DeferredGet {
    key: Vec<u8>,
    format: http::HttpReplyFormat,
    request_info: RequestInfo,
}

impl HttpState {
    /// State without a body to skip.
    pub(super) const BETWEEN_REQUESTS: HttpState = HttpState { body: Body::Done, deferred: None };

    /// Returns true if the body of the last request is incomplete.
    pub(super) fn in_body(&self) -> bool {
        self.body != Body::Done
    }

    /// Returns the info of the deferred request for the access log.
    pub(super) fn request_info(&self) -> Option<&RequestInfo> {
        self.deferred.as_ref().map(|deferred| &deferred.request_info)
    }

    /// Returns true if the deferred request is a HEAD request.
    pub(super) fn deferred_is_head(&self) -> bool {
        self.deferred.as_ref().is_some_and(|deferred| deferred.format.head_only)
    }

    /// Returns true if the incomplete body belongs to a request that was answered already.
    pub(super) fn body_is_leftover(&self) -> bool {
        self.in_body() && self.deferred.is_none()
    }
}

impl Connection {
    /// Decodes the next step of an HTTP connection. `input` is not empty.
    pub(super) fn decode_http<'a>(&mut self, input: &'a [u8], context: &'a mut DecodeContext<'_>) -> DecodeStep<'a> {
        if matches!(&self.protocol, ProtocolState::Http(state) if state.in_body()) {
            return self.skip_body(input, context);
        }
        let DecodeContext { policy, head_decoder, auth, reply } = context;
        match http::decode(input, policy, head_decoder) {
            Decoded::Incomplete => DecodeStep::Blocked,
            Decoded::Complete(mut head, consumed) => {
                reply.recorder.begin_request(&self.address, |text| push_escaped(text, head.request_line));
                if auth.is_required() {
                    self.authorize(&mut head, auth, reply.recorder);
                }
                let announces_close = policy.announce_close
                    && head.format.keep_alive
                    && !has_pipelined_input(&head, input.len() - consumed);
                head.format.keep_alive &= !announces_close;
                let step = self.start_http_request(head, consumed, reply);
                if announces_close && let Phase::Closing { unread } = &mut self.phase {
                    // The client may send its next request before it reads this response.
                    *unread = true;
                }
                step
            }
            Decoded::Invalid(refusal) => {
                reply.recorder.begin_request(&self.address, |text| log_malformed(text, input));
                self.refuse_and_close(refusal, is_head(input), reply);
                DecodeStep::Consumed(input.len())
            }
        }
    }

    fn skip_body<'a>(&mut self, input: &'a [u8], context: &'a mut DecodeContext<'_>) -> DecodeStep<'a> {
        let DecodeContext { head_decoder, reply, .. } = context;
        let ProtocolState::Http(HttpState { body, deferred }) = &mut self.protocol else { return DecodeStep::Blocked };
        match body.skip(input) {
            Ok(consumed) if *body == Body::Done => match deferred.take() {
                Some(deferred) => {
                    reply.recorder.resume_request(&deferred.request_info);
                    if !deferred.format.keep_alive {
                        // A client that did not ask for the close may be sending its next request.
                        self.phase = Phase::Closing { unread: true };
                    }
                    head_decoder.key_scratch = deferred.key;
                    DecodeStep::Get {
                        key: &head_decoder.key_scratch,
                        touch: true,
                        format: ReplyFormat::Http(deferred.format),
                        consumed,
                    }
                }
                None => DecodeStep::Consumed(consumed),
            },
            Ok(consumed) => DecodeStep::Consumed(consumed),
            Err(error) => {
                match deferred.take() {
                    Some(deferred) => {
                        reply.recorder.resume_request(&deferred.request_info);
                        self.refuse_and_close(error.refusal(), deferred.format.head_only, reply);
                    }
                    // The request was answered already: a second response would answer none.
                    None => self.phase = Phase::Closing { unread: true },
                }
                DecodeStep::Consumed(input.len())
            }
        }
    }

    /// Starts a request with a well-formed head.
    fn start_http_request<'a>(
        &mut self,
        head: Head<'a>,
        consumed: usize,
        context: &mut ReplyContext<'_>,
    ) -> DecodeStep<'a> {
        let Head { operation, format, body, expects_continue, .. } = head;
        let is_chunked = matches!(body, Body::Chunked(..));
        match operation {
            // A client that expects 100-continue sends the body after a response: it gets the final
            // one now.
            HttpOperation::Get(key) if is_chunked && !expects_continue => {
                let request_info = context.recorder.request_info();
                let deferred = Some(Box::new(DeferredGet { key: key.to_vec(), format, request_info }));
                self.protocol = ProtocolState::Http(HttpState { body, deferred });
                return DecodeStep::Consumed(consumed);
            }
            _ if format.keep_alive => {
                if let ProtocolState::Http(state) = &mut self.protocol {
                    state.body = body;
                }
            }
            _ => self.phase = Phase::Closing { unread: body != Body::Done },
        }
        match operation {
            HttpOperation::Get(key) => {
                return DecodeStep::Get { key, touch: true, format: ReplyFormat::Http(format), consumed };
            }
            HttpOperation::Admin(endpoint) => return DecodeStep::Admin { endpoint, format, consumed },
            HttpOperation::Options => self
                .replies
                .push_http(RequestOutcome::Other, context, |date, out| http::encode_options(format, date, out)),
            HttpOperation::Refuse(refusal) => self.refuse_http(refusal, format, context),
        }
        DecodeStep::Consumed(consumed)
    }

    /// Refuses a request, and closes the connection after the response.
    pub(super) fn refuse_and_close(&mut self, refusal: HttpRefusal, head_only: bool, context: &mut ReplyContext<'_>) {
        self.phase = Phase::Closing { unread: true };
        let format = http::HttpReplyFormat { head_only, keep_alive: false, ..http::HttpReplyFormat::default() };
        self.refuse_http(refusal, format, context);
    }

    fn refuse_http(&mut self, refusal: HttpRefusal, format: http::HttpReplyFormat, context: &mut ReplyContext<'_>) {
        self.replies
            .push_http(RequestOutcome::Refused, context, |date, out| http::encode_refusal(refusal, format, date, out));
    }
}

/// Returns true if the `rest` bytes behind a head hold more than its body. Then a later response
/// announces the close. The end of a chunked body is not known yet.
fn has_pipelined_input(head: &Head<'_>, rest: usize) -> bool {
    match head.body {
        Body::Done => rest > 0,
        Body::Length(length) => rest as u64 > length,
        Body::Chunked(..) => false,
    }
}

/// Appends the first word of malformed input for the access log. The rest may be a password: in a
/// URL, or in a command (`AUTH password`) of a client that speaks another protocol.
pub(super) fn log_malformed(text: &mut String, input: &[u8]) {
    let word = input.trim_ascii_start().split(|byte| !byte.is_ascii_alphabetic()).next().unwrap_or_default();
    push_escaped(text, &word[..word.len().min(MAX_LOGGED_METHOD_BYTES)]);
    text.push_str(" ...");
}

/// Returns true if `input` starts with a HEAD request: its response has no body. In malformed
/// input, errors are found only behind the method.
pub(super) fn is_head(input: &[u8]) -> bool {
    input.strip_prefix(b"\r\n").unwrap_or(input).starts_with(HEAD_PREFIX)
}
