//! HTTP/1.1 and 1.0 (RFC 9110, RFC 9112): decodes request heads, encodes responses, skips bodies.
//!
//! This module performs no I/O.

mod authorization;
mod body;
mod caching;
mod conditions;
mod decode;
mod encode;
mod entity_tag;
pub mod event_stream;
mod fields;
mod head;
mod header_cache;
mod host;
pub mod json;
mod key_list;
mod push_fields;
mod range;
mod target;
mod value_body;
mod version;

pub use authorization::{Authorization, MAX_DECODED_BYTES};
pub use body::{Body, BodyError};
pub use caching::CacheDirectives;
pub use decode::{Head, HeadDecoder, HttpOperation, MAX_HEAD_BYTES, MAX_HEADERS, MAX_TARGET_BYTES, decode};
pub use encode::{
    AdminResponse, encode_admin, encode_options, encode_refusal, encode_reply, encode_unchanged, status_of,
};
pub(super) use encode::{KEYS_MEMORY_FULL, KEYS_TOO_LONG, NOT_CACHED, encode_keys_head};
pub use head::ResponseDate;
pub use host::AllowedHosts;
pub use key_list::KeyList;
pub use push_fields::PushFields;
pub use target::{may_be_admin_request, percent_decode};
pub(super) use value_body::ValueBody;

use crate::types::{Access, Millis};
use crate::value::{SHARED_VALUE_BYTES, Value};
use conditions::{Conditions, Representation, Selection};
use entity_tag::EntityTag;

/// Representation of a value that a client asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// `/key/{key}`: JSON.
    #[default]
    Json,
    /// `/raw/{key}`: the exact bytes.
    Raw,
}

/// Resource about the proxy itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminEndpoint {
    /// `/`: status page for people.
    Dashboard,
    /// `/metrics`: metrics for Prometheus.
    Metrics,
    /// `/stats`: metrics as JSON, for the dashboard and for scripts.
    Stats,
    /// `/healthz`: liveness.
    Healthz,
    /// `/readyz`: readiness.
    Readyz,
}

/// Resources that a listener serves, besides the health endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resources {
    /// Keys: the dashboard and metrics are off, or have a port of their own.
    #[default]
    Keys,
    /// Keys, the dashboard and metrics.
    All,
    /// The dashboard and metrics: the listener of `ADMIN_PORT`.
    Admin,
}

/// Rules of this server that the standards leave open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Hosts that requests may be addressed to.
    pub allowed_hosts: AllowedHosts,
    /// Resources that this listener serves.
    pub resources: Resources,
    /// True if each client's next response announces that it is the last.
    pub announce_close: bool,
    /// True if values have no entity tags.
    pub omits_entity_tags: bool,
    /// Time over which the clients of ended streams spread their reconnections.
    pub retry_spread: Millis,
}

/// Properties of a request that the encoding of its response depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpReplyFormat {
    /// Representation of the value.
    pub view: View,
    /// True for `HEAD`: the response has no body (RFC 9110, section 9.3.2).
    pub head_only: bool,
    /// True for HTTP/1.0, where a response must announce a persistent connection (RFC 9112, section
    /// 9.3).
    pub version_1_0: bool,
    /// True if the connection stays open after the response.
    pub keep_alive: bool,
    /// Conditions that may replace a 200. `None` for most requests.
    pub conditions: Option<Box<Conditions>>,
    /// Use of the cache that the request allows.
    pub access: Access,
    /// True if the client had to authenticate: no shared cache may store a value.
    pub is_private: bool,
    /// True if the response has no entity tag.
    pub omits_entity_tag: bool,
}

impl HttpReplyFormat {
    /// Returns the entity tag of a value. Calls `digest`, which may scan the value, only if it has
    /// one.
    fn tag_of(&self, digest: impl FnOnce() -> u64) -> Option<EntityTag> {
        (!self.omits_entity_tag).then(|| EntityTag::new(digest(), self.view))
    }

    /// Returns the response to this request, if there is a value of `length` bytes with this tag.
    fn select_value(&self, tag: Option<EntityTag>, length: usize) -> Selection {
        self.select(|| Representation::of_value(tag, length, self.view, self.head_only))
    }

    /// Returns the response to this request, if it is 200 without conditions.
    fn select(&self, representation: impl FnOnce() -> Representation) -> Selection {
        self.conditions.as_ref().map_or(Selection::Whole, |conditions| conditions.select(representation()))
    }

    /// Returns the preferences of the request about changes of its key.
    pub fn push_fields(&self) -> PushFields {
        self.conditions.as_ref().map_or(PushFields::default(), |conditions| conditions.push)
    }

    /// Makes the request a plain one: no event stream and no long poll.
    pub fn drop_preferences(&mut self) {
        if let Some(conditions) = &mut self.conditions {
            conditions.push = PushFields::default();
        }
    }

    /// Returns the seconds that a long poll may wait, `None` for any other request.
    pub fn wait_seconds(&self) -> Option<u16> {
        self.conditions.as_ref()?.wait_seconds().filter(|_| self.access.reads_redis)
    }

    /// Returns true if the client has the value with this digest and length already (RFC 9110,
    /// section 13.1.2).
    pub fn is_not_modified(&self, digest: u64, length: usize) -> bool {
        self.select_value(self.tag_of(|| digest), length) == Selection::NotModified
    }

    /// Returns the bytes that the format holds beside itself.
    pub fn held_bytes(&self) -> usize {
        self.conditions.as_ref().map_or(0, |conditions| conditions.held_bytes())
    }

    /// Returns true if the response holds a shared value until it is sent.
    pub fn pins(&self, value: &Value) -> bool {
        !self.head_only
            && match self.select_value(self.tag_of(|| value.digest), value.bytes.len()) {
                Selection::Whole => true,
                Selection::Part(part) => part.len() > SHARED_VALUE_BYTES,
                _ => false,
            }
    }
}

/// Error response that depends on the request alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpRefusal {
    /// Status code.
    pub status: Status,
    /// Cause and remedy, for the client.
    pub message: &'static str,
}

/// Returns a refusal with status 400.
const fn bad_request(message: &'static str) -> HttpRefusal {
    HttpRefusal { status: Status::BadRequest, message }
}

/// Status code that this server sends (RFC 9110, section 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "names are those of the standard")]
pub enum Status {
    Ok,
    PartialContent,
    NotModified,
    BadRequest,
    Unauthorized,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    Conflict,
    PreconditionFailed,
    ContentTooLarge,
    UriTooLong,
    RangeNotSatisfiable,
    ExpectationFailed,
    MisdirectedRequest,
    TooManyRequests,
    HeaderFieldsTooLarge,
    InternalServerError,
    NotImplemented,
    BadGateway,
    ServiceUnavailable,
    GatewayTimeout,
    VersionNotSupported,
}

impl Status {
    /// All status codes, each at the index of its discriminant.
    pub const ALL: [Status; 23] = [
        Status::Ok,
        Status::PartialContent,
        Status::NotModified,
        Status::BadRequest,
        Status::Unauthorized,
        Status::NotFound,
        Status::MethodNotAllowed,
        Status::RequestTimeout,
        Status::Conflict,
        Status::PreconditionFailed,
        Status::ContentTooLarge,
        Status::UriTooLong,
        Status::RangeNotSatisfiable,
        Status::ExpectationFailed,
        Status::MisdirectedRequest,
        Status::TooManyRequests,
        Status::HeaderFieldsTooLarge,
        Status::InternalServerError,
        Status::NotImplemented,
        Status::BadGateway,
        Status::ServiceUnavailable,
        Status::GatewayTimeout,
        Status::VersionNotSupported,
    ];

    /// Returns the three digits of the code.
    pub fn code(self) -> &'static str {
        &self.line()[..3]
    }

    /// Returns the code and the reason phrase of the status line (RFC 9112, section 4).
    pub fn line(self) -> &'static str {
        match self {
            Status::Ok => "200 OK",
            Status::PartialContent => "206 Partial Content",
            Status::NotModified => "304 Not Modified",
            Status::BadRequest => "400 Bad Request",
            Status::Unauthorized => "401 Unauthorized",
            Status::NotFound => "404 Not Found",
            Status::MethodNotAllowed => "405 Method Not Allowed",
            Status::RequestTimeout => "408 Request Timeout",
            Status::Conflict => "409 Conflict",
            Status::PreconditionFailed => "412 Precondition Failed",
            Status::ContentTooLarge => "413 Content Too Large",
            Status::UriTooLong => "414 URI Too Long",
            Status::RangeNotSatisfiable => "416 Range Not Satisfiable",
            Status::ExpectationFailed => "417 Expectation Failed",
            Status::MisdirectedRequest => "421 Misdirected Request",
            Status::TooManyRequests => "429 Too Many Requests",
            Status::HeaderFieldsTooLarge => "431 Request Header Fields Too Large",
            Status::InternalServerError => "500 Internal Server Error",
            Status::NotImplemented => "501 Not Implemented",
            Status::BadGateway => "502 Bad Gateway",
            Status::ServiceUnavailable => "503 Service Unavailable",
            Status::GatewayTimeout => "504 Gateway Timeout",
            Status::VersionNotSupported => "505 HTTP Version Not Supported",
        }
    }
}
