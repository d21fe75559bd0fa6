//! State of the event loop that connections borrow to decode requests and encode replies.

use crate::client_auth::ClientAuth;
use crate::metrics::Recorder;
use crate::protocol::http::{HeadDecoder, Policy, ResponseDate};

/// Date and metrics for replies.
pub struct ReplyContext<'a> {
    /// Value of the `Date` field.
    pub date: &'a ResponseDate,
    /// Metrics and access log of the event loop.
    pub recorder: &'a mut Recorder,
}

/// Everything needed to decode a request and to reply to it.
pub struct DecodeContext<'a> {
    /// Rules for accepting HTTP requests.
    pub policy: &'a Policy,
    /// Decoder of request heads, with its cache of header fields.
    pub head_decoder: &'a mut HeadDecoder,
    /// Passwords of clients.
    pub auth: &'a mut ClientAuth,
    /// RESP clients may turn on `CLIENT TRACKING` (`REDIS_TRACKING=on`).
    pub offers_tracking: bool,
    /// Date and metrics for the replies.
    pub reply: ReplyContext<'a>,
}
