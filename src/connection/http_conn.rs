//! HTTP side of a connection: decodes request heads, and skips the bodies between them.

use super::{Connection, DecodeContext, DecodeStep, Phase, ProtocolState, ReplyContext};
use crate::metrics::{RequestInfo, RequestOutcome, push_escaped};
use crate::protocol::http::{self, Body, CacheDirectives, Head, HttpOperation, HttpRefusal, KeyList};
use crate::protocol::{Decoded, MultiReply, ReplyFormat, SendBuffer};
use crate::types::{Access, UpcomingKeys};

pub(super) const HEAD_PREFIX: &[u8] = b"HEAD ";

/// Longest first word of malformed input that is logged. Methods are shorter.
const MAX_LOGGED_METHOD_BYTES: usize = 16;

/// HTTP state between two request heads.
#[derive(Debug)]
pub(super) struct HttpState {
    /// Rest of the last request's body.
    pub(super) body: Body,
    /// Last request, if it runs only after its body.
    deferred: Option<Box<DeferredRead>>,
    /// Keys of the last request that are not looked up, never empty.
    listed_keys: Option<Box<KeyList>>,
}

/// Request for keys with a chunked body. It runs once the body is complete, because a malformed
/// body makes the whole request malformed.
#[derive(Debug)]
struct DeferredRead {
    keys: DeferredKeys,
    format: http::HttpReplyFormat,
    request_info: RequestInfo,
}

/// Keys of a deferred request.
#[derive(Debug)]
enum DeferredKeys {
    One(Vec<u8>),
    Listed(Box<KeyList>),
}

impl HttpState {
    /// State without a body to skip.
    pub(super) const BETWEEN_REQUESTS: HttpState = HttpState { body: Body::Done, deferred: None, listed_keys: None };

    /// Returns true if the body of the last request is incomplete.
    pub(super) fn in_body(&self) -> bool {
        self.body != Body::Done
    }

    /// Returns true if a part of the last request is still to be processed: its body or its keys.
    pub(super) fn in_request(&self) -> bool {
        self.in_body() || self.has_listed_keys()
    }

    /// Returns true if keys of the last request are not looked up.
    pub(super) fn has_listed_keys(&self) -> bool {
        self.listed_keys.is_some()
    }

    /// Removes the next key that is not looked up, and returns it.
    pub(super) fn take_listed_key(&mut self) -> Option<&[u8]> {
        self.listed_keys.as_mut()?.take_next()
    }

    /// Drops the list of keys after its last one.
    pub(super) fn drop_empty_list(&mut self) {
        self.listed_keys.take_if(|list| list.is_empty());
    }

    /// Adds the next keys that are not looked up.
    pub(super) fn find_listed_keys<'a>(&'a self, keys: &mut UpcomingKeys<'a>) {
        if let Some(list) = &self.listed_keys {
            list.find_upcoming_keys(keys);
        }
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
        let DecodeContext { policy, head_decoder, auth, reply, .. } = context;
        // Heads are passed by reference: moves of all their fields cost a twentieth of a hit.
        match &mut http::decode(input, policy, head_decoder) {
            Decoded::Incomplete => DecodeStep::Blocked,
            Decoded::Complete(head, consumed) => {
                let consumed = *consumed;
                reply.recorder.begin_request(&self.address, |text| push_escaped(text, head.request_line));
                if auth.is_required() {
                    self.authorize(head, auth, reply.recorder);
                }
                head.format.access = access_of(head);
                let announces_close = policy.announce_close
                    && head.format.keep_alive
                    && !has_pipelined_input(head, input.len() - consumed);
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
                self.refuse_and_close(*refusal, is_head(input), reply);
                DecodeStep::Consumed(input.len())
            }
        }
    }

    fn skip_body<'a>(&mut self, input: &'a [u8], context: &'a mut DecodeContext<'_>) -> DecodeStep<'a> {
        let DecodeContext { head_decoder, reply, .. } = context;
        let ProtocolState::Http(HttpState { body, deferred, .. }) = &mut self.protocol else {
            return DecodeStep::Blocked;
        };
        match body.skip(input) {
            Ok(consumed) if *body == Body::Done => match deferred.take() {
                Some(deferred) => {
                    reply.recorder.resume_request(&deferred.request_info);
                    if !deferred.format.keep_alive {
                        // A client that did not ask for the close may be sending its next request.
                        self.phase = Phase::Closing { unread: true };
                    }
                    let DeferredRead { keys, format, .. } = *deferred;
                    match keys {
                        DeferredKeys::Listed(keys) => {
                            self.start_listed_keys(keys, format, reply);
                            DecodeStep::Consumed(consumed)
                        }
                        DeferredKeys::One(key) => {
                            head_decoder.key_scratch = key;
                            let (key, access) = (&head_decoder.key_scratch[..], format.access);
                            DecodeStep::Get { key, access, format: ReplyFormat::Http(format), consumed }
                        }
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
        head: &mut Head<'a>,
        consumed: usize,
        context: &mut ReplyContext<'_>,
    ) -> DecodeStep<'a> {
        let Head { operation, body, expects_continue, .. } = *head;
        let mut format = std::mem::take(&mut head.format);
        // A client that expects 100-continue sends the body after a response: it gets the final one
        // now.
        let is_deferred = matches!(body, Body::Chunked(..)) && !expects_continue;
        match operation {
            HttpOperation::Get(key) if is_deferred => {
                // It runs once its body is complete, and does not wait again after that.
                format.drop_preferences();
                self.defer_read(DeferredKeys::One(key.to_vec()), format, body, context);
            }
            HttpOperation::Get(key) if self.push_watch(key, body, &mut format, context) => {}
            HttpOperation::Watch(query) => self.push_watch_query(query, body, format, context),
            HttpOperation::Get(key) => {
                self.begin_body(body, format.keep_alive);
                return DecodeStep::Get { key, access: format.access, format: ReplyFormat::Http(format), consumed };
            }
            HttpOperation::GetMany(query) => self.start_query(query, format, (body, is_deferred), context),
            HttpOperation::Admin(endpoint) => {
                self.begin_body(body, format.keep_alive);
                return DecodeStep::Admin { endpoint, format, consumed };
            }
            HttpOperation::Options => {
                self.begin_body(body, format.keep_alive);
                let encode = |date: &http::ResponseDate, out: &mut SendBuffer| http::encode_options(&format, date, out);
                self.replies.push_http(RequestOutcome::Other, context, encode);
            }
            HttpOperation::Refuse(refusal) => {
                self.begin_body(body, format.keep_alive);
                self.refuse_http(refusal, format, context);
            }
        }
        DecodeStep::Consumed(consumed)
    }

    /// Begins to skip the body of a request. Takes no further request if the connection closes.
    pub(super) fn begin_body(&mut self, body: Body, keep_alive: bool) {
        match &mut self.protocol {
            ProtocolState::Http(state) if keep_alive => state.body = body,
            _ => self.phase = Phase::Closing { unread: body != Body::Done },
        }
    }

    /// Stores a request until its body is complete.
    fn defer_read(
        &mut self,
        keys: DeferredKeys,
        format: http::HttpReplyFormat,
        body: Body,
        context: &mut ReplyContext<'_>,
    ) {
        let deferred = Some(Box::new(DeferredRead { keys, format, request_info: context.recorder.request_info() }));
        self.protocol = ProtocolState::Http(HttpState { body, deferred, listed_keys: None });
    }

    /// Starts, refuses or defers a request for the keys that a query names.
    fn start_query(
        &mut self,
        query: &[u8],
        format: http::HttpReplyFormat,
        (body, is_deferred): (Body, bool),
        context: &mut ReplyContext<'_>,
    ) {
        match KeyList::parse(query) {
            Ok(keys) if is_deferred => self.defer_read(DeferredKeys::Listed(Box::new(keys)), format, body, context),
            Ok(keys) => {
                self.begin_body(body, format.keep_alive);
                self.start_listed_keys(Box::new(keys), format, context);
            }
            Err(refusal) => {
                self.begin_body(body, format.keep_alive);
                self.refuse_http(refusal, format, context);
            }
        }
    }

    /// Starts a request for several keys.
    fn start_listed_keys(&mut self, keys: Box<KeyList>, format: http::HttpReplyFormat, context: &mut ReplyContext<'_>) {
        self.replies.push_multi(MultiReply::new_json(format, keys.len() as u32), context.recorder);
        if let ProtocolState::Http(state) = &mut self.protocol {
            state.listed_keys = Some(keys);
        }
    }

    /// Refuses a request, and closes the connection after the response.
    pub(super) fn refuse_and_close(&mut self, refusal: HttpRefusal, head_only: bool, context: &mut ReplyContext<'_>) {
        self.phase = Phase::Closing { unread: true };
        let format = http::HttpReplyFormat { head_only, keep_alive: false, ..http::HttpReplyFormat::default() };
        self.refuse_http(refusal, format, context);
    }

    pub(super) fn refuse_http(
        &mut self,
        refusal: HttpRefusal,
        format: http::HttpReplyFormat,
        context: &mut ReplyContext<'_>,
    ) {
        self.replies
            .push_http(RequestOutcome::Refused, context, |date, out| http::encode_refusal(refusal, &format, date, out));
    }
}

/// Returns the use of the cache that a request allows (RFC 9111, section 5.2.1). `no-cache` has an
/// effect only behind a password: otherwise any client could make the proxy read Redis.
fn access_of(head: &Head<'_>) -> Access {
    let CacheDirectives { no_cache, only_if_cached } = head.cache_directives;
    let reloads = no_cache && head.format.is_private;
    Access { uses_cache: !reloads, reads_redis: !only_if_cached, ..Access::NORMAL }
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
