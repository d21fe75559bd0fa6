//! A connection's requests over HTTP: heads, and the bodies between them.

use super::{Connection, DecodeContext, DecodeStep, Phase, ProtocolState, ReplyContext, ReplyMode};
use crate::metrics::{Protocol as Wire, RequestInfo, RequestOutcome, push_escaped};
use crate::protocol::http::{self, Body, Head, HttpOperation, HttpRefusal};
use crate::protocol::{Decoded, ReplyFormat};

/// What an HTTP connection is at between heads.
#[derive(Debug)]
pub(super) struct HttpState {
    /// What is left of the last request's body.
    pub(super) body: Body,
    /// The last request, where it is taken up only when its body has come whole.
    deferred: Option<Box<DeferredGet>>,
}

/// A request for a key with a chunked body. Whether it is well-formed is known only at its end, and what is not is refused.
#[derive(Debug)]
struct DeferredGet {
    key: Vec<u8>,
    format: http::HttpReplyFormat,
    request_info: RequestInfo,
}

impl HttpState {
    /// With nothing left of any body.
    pub(super) const BETWEEN_REQUESTS: HttpState = HttpState { body: Body::Done, deferred: None };

    /// Whether a body has not come whole.
    pub(super) fn in_body(&self) -> bool {
        self.body != Body::Done
    }

    /// What is remembered of the request whose body is coming, where it has no reply.
    pub(super) fn request_info(&self) -> Option<&RequestInfo> {
        self.deferred.as_ref().map(|deferred| &deferred.request_info)
    }

    /// Whether the request whose body is coming, and which has no reply, is one whose response has no body.
    pub(super) fn deferred_is_head(&self) -> bool {
        self.deferred.as_ref().is_some_and(|deferred| deferred.format.head_only)
    }

    /// Whether that body belongs to a request that has its reply.
    pub(super) fn body_is_leftover(&self) -> bool {
        self.in_body() && self.deferred.is_none()
    }
}

impl Connection {
    /// The next step at the beginning of `input`, which is not empty.
    pub(super) fn decode_http<'a>(&mut self, input: &'a [u8], context: &'a mut DecodeContext<'_>) -> DecodeStep<'a> {
        match &mut self.protocol {
            ProtocolState::Http(between) if between.in_body() => {
                return self.skip_body(input, context);
            }
            _ => {}
        }
        let DecodeContext { policy, head_decoder, reply } = context;
        match http::decode(input, policy, head_decoder) {
            Decoded::Incomplete => DecodeStep::Blocked,
            Decoded::Complete(mut head, consumed) => {
                reply.recorder.begin_request(&self.address, |text| push_escaped(text, head.request_line));
                let told_to_go = policy.announce_close
                    && head.format.keep_alive
                    && !has_pipelined_input(&head, input.len() - consumed);
                head.format.keep_alive &= !told_to_go;
                let step = self.start_http_request(head, consumed, reply);
                if told_to_go && let Phase::Closing { unread } = &mut self.phase {
                    // It does not know yet, and may be sending its next request.
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
                        // Whether it knows that was said with the head.
                        self.phase = Phase::Closing { unread: true };
                    }
                    head_decoder.key_scratch = deferred.key;
                    DecodeStep::Get {
                        key: &head_decoder.key_scratch,
                        touch: true,
                        mode: ReplyMode::Single(ReplyFormat::Http(deferred.format)),
                        consumed,
                    }
                }
                None => DecodeStep::Consumed(consumed),
            },
            Ok(consumed) => DecodeStep::Consumed(consumed),
            Err(fault) => {
                match deferred.take() {
                    Some(deferred) => {
                        reply.recorder.resume_request(&deferred.request_info);
                        self.refuse_and_close(fault.refusal(), deferred.format.head_only, reply);
                    }
                    // The request that the body belongs to has its reply; a second one would answer nobody.
                    None => self.phase = Phase::Closing { unread: true },
                }
                DecodeStep::Consumed(input.len())
            }
        }
    }

    /// Takes up a request.
    fn start_http_request<'a>(
        &mut self,
        head: Head<'a>,
        consumed: usize,
        context: &mut ReplyContext<'_>,
    ) -> DecodeStep<'a> {
        let Head { operation: command, format: shape, body, expects_continue: expects_answer, .. } = head;
        let chunked = matches!(body, Body::Chunked(..));
        match command {
            // A client that waits for an answer before it sends the body gets it now.
            HttpOperation::Get(key) if chunked && !expects_answer => {
                let deferred = Some(Box::new(DeferredGet {
                    key: key.to_vec(),
                    format: shape,
                    request_info: context.recorder.request_info(),
                }));
                self.protocol = ProtocolState::Http(HttpState { body, deferred });
                return DecodeStep::Consumed(consumed);
            }
            _ if shape.keep_alive => {
                if let ProtocolState::Http(between) = &mut self.protocol {
                    between.body = body;
                }
            }
            _ => self.phase = Phase::Closing { unread: body != Body::Done },
        }
        match command {
            HttpOperation::Get(key) => {
                DecodeStep::Get { key, touch: true, mode: ReplyMode::Single(ReplyFormat::Http(shape)), consumed }
            }
            HttpOperation::Admin(topic) => DecodeStep::Admin { endpoint: topic, format: shape, consumed },
            HttpOperation::Options => {
                let sent = self.replies.push(|out| http::encode_options(shape, context.date, out));
                context.recorder.record_reply(Wire::Http, RequestOutcome::Other, sent);
                DecodeStep::Consumed(consumed)
            }
            HttpOperation::Refuse(refusal) => {
                self.refuse_http(refusal, shape, context);
                DecodeStep::Consumed(consumed)
            }
        }
    }

    /// Refuses what cannot be read, for the last time.
    pub(super) fn refuse_and_close(&mut self, refusal: HttpRefusal, head_only: bool, context: &mut ReplyContext<'_>) {
        self.phase = Phase::Closing { unread: true };
        let shape = http::HttpReplyFormat { head_only, keep_alive: false, ..http::HttpReplyFormat::default() };
        self.refuse_http(refusal, shape, context);
    }

    fn refuse_http(&mut self, refusal: HttpRefusal, shape: http::HttpReplyFormat, context: &mut ReplyContext<'_>) {
        let sent = self.replies.push(|out| http::encode_refusal(refusal, shape, context.date, out));
        context.recorder.record_reply(Wire::Http, RequestOutcome::Refused, sent);
    }
}

/// Whether a client has sent more than a request and its body, of which `rest` bytes may be: whoever has gets to hear with a later
/// response that it is the last. Of a chunked body nobody knows yet where it ends.
fn has_pipelined_input(head: &Head<'_>, rest: usize) -> bool {
    match head.body {
        Body::Done => rest > 0,
        Body::Length(length) => rest as u64 > length,
        Body::Chunked(..) => false,
    }
}

/// Appends what the access log has of what does not parse: its first word. Behind that there may be a password, of a URL or of a
/// command (`AUTH password`) of somebody who takes this for another protocol.
pub(super) fn log_malformed(text: &mut String, input: &[u8]) {
    let word = input.trim_ascii_start().split(|byte| !byte.is_ascii_alphabetic()).next().unwrap_or_default();
    push_escaped(text, &word[..word.len().min(MAX_LOGGED_METHOD_BYTES)]);
    text.push_str(" ...");
}

/// Whether the request that `input` begins with is one whose response has no body. What has been found malformed is so behind
/// that, so that it does not matter how much of it has come.
pub(super) fn is_head(input: &[u8]) -> bool {
    input.strip_prefix(b"\r\n").unwrap_or(input).starts_with(HEAD_PREFIX)
}

pub(super) const HEAD_PREFIX: &[u8] = b"HEAD ";

/// Longest first word of what does not parse that is logged, in bytes. Methods are shorter.
const MAX_LOGGED_METHOD_BYTES: usize = 16;
