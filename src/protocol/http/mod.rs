//! HTTP/1.1 and 1.0 (RFC 9110, RFC 9112): request heads in, responses out, bodies skipped.

mod body;
mod caching;
mod decode;
mod encode;
mod fields;
mod header_cache;
mod host;
pub mod json;
mod target;
mod version;

pub use body::{Body, BodyError};
pub use decode::{Head, HeadDecoder, HttpOperation, MAX_HEAD_BYTES, MAX_HEADERS, MAX_TARGET_BYTES, decode};
pub use encode::{
    AdminResponse, ResponseDate, encode_document, encode_options, encode_refusal, encode_reply, status_of,
};
pub use host::AllowedHosts;
pub use target::may_be_admin_request;

/// Which of its two representations of a value a client asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// `/key/{key}`: JSON.
    #[default]
    Json,
    /// `/raw/{key}`: the bytes.
    Raw,
}

/// What there is to know of the proxy itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminEndpoint {
    /// `/`: how it does, for people.
    Dashboard,
    /// `/metrics`: figures, for Prometheus.
    Metrics,
    /// `/stats`: figures, for the page and for scripts.
    Stats,
    /// `/healthz`: whether it runs.
    Healthz,
    /// `/readyz`: whether it can serve.
    Readyz,
}

/// How clients are dealt with, beside what the standards say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The hosts that requests may be for.
    pub allowed_hosts: AllowedHosts,
    /// Whether figures are shown, and not only health.
    pub admin: bool,
    /// Whether clients are to be told that a response is the last.
    pub announce_close: bool,
}

/// What of a request its response depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HttpReplyFormat {
    /// JSON or bytes.
    pub view: View,
    /// `HEAD_PREFIX`: everything but the body.
    pub head_only: bool,
    /// HTTP/1.0, where staying open has to be said.
    pub version_1_0: bool,
    /// Whether more requests may follow on the connection.
    pub keep_alive: bool,
    /// The status instead of 200, where a precondition of the request is not met (RFC 9110, section 13).
    pub unmet: Option<Status>,
}

/// A response that depends on nothing but the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpRefusal {
    /// The status code.
    pub status: Status,
    /// What is wrong and what would be right.
    pub message: &'static str,
}

const fn bad_request(message: &'static str) -> HttpRefusal {
    HttpRefusal { status: Status::BadRequest, message }
}

/// The status codes in use (RFC 9110, section 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the standard's")]
pub enum Status {
    Ok,
    NotModified,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    Conflict,
    PreconditionFailed,
    ContentTooLarge,
    UriTooLong,
    ExpectationFailed,
    MisdirectedRequest,
    HeaderFieldsTooLarge,
    InternalServerError,
    NotImplemented,
    BadGateway,
    ServiceUnavailable,
    GatewayTimeout,
    VersionNotSupported,
}

impl Status {
    /// All of them, each at the place of its number.
    pub const ALL: [Status; 19] = [
        Status::Ok,
        Status::NotModified,
        Status::BadRequest,
        Status::NotFound,
        Status::MethodNotAllowed,
        Status::RequestTimeout,
        Status::Conflict,
        Status::PreconditionFailed,
        Status::ContentTooLarge,
        Status::UriTooLong,
        Status::ExpectationFailed,
        Status::MisdirectedRequest,
        Status::HeaderFieldsTooLarge,
        Status::InternalServerError,
        Status::NotImplemented,
        Status::BadGateway,
        Status::ServiceUnavailable,
        Status::GatewayTimeout,
        Status::VersionNotSupported,
    ];

    /// The code.
    pub fn code(self) -> &'static str {
        &self.line()[..3]
    }

    /// Code and reason phrase, as they stand in the status line.
    pub fn line(self) -> &'static str {
        match self {
            Status::Ok => "200 OK",
            Status::NotModified => "304 Not Modified",
            Status::BadRequest => "400 Bad Request",
            Status::NotFound => "404 Not Found",
            Status::MethodNotAllowed => "405 Method Not Allowed",
            Status::RequestTimeout => "408 Request Timeout",
            Status::Conflict => "409 Conflict",
            Status::PreconditionFailed => "412 Precondition Failed",
            Status::ContentTooLarge => "413 Content Too Large",
            Status::UriTooLong => "414 URI Too Long",
            Status::ExpectationFailed => "417 Expectation Failed",
            Status::MisdirectedRequest => "421 Misdirected Request",
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
