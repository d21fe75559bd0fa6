//! What all connections of one event loop share while they decode requests and encode replies.

use crate::metrics::Recorder;
use crate::protocol::http::{HeadDecoder, Policy, ResponseDate};

/// Date and metrics, which each reply needs.
pub struct ReplyContext<'a> {
    /// Value of the `Date` field.
    pub date: &'a ResponseDate,
    /// Metrics and access log of the event loop.
    pub recorder: &'a mut Recorder,
}

/// Everything needed to decode a request and to answer it.
pub struct DecodeContext<'a> {
    /// HTTP requests that are accepted.
    pub policy: &'a Policy,
    /// Decoder of request heads, with its cache of header fields.
    pub head_decoder: &'a mut HeadDecoder,
    /// Date and metrics of the replies.
    pub reply: ReplyContext<'a>,
}
