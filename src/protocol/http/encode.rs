//! Encoder of responses. Each response has a known length, so that the connection can stay open.

#[cfg(test)]
mod tests;

use super::caching::{CacheControl, NO_STORE, write_cache_fields};
use super::conditions::{Representation, Selection};
use super::entity_tag::EntityTag;
use super::head::{ResponseDate, VARY, begin_bare_head, begin_head, content_type_of, end_head, write_length};
use super::json;
use super::value_body::ValueBody;
use super::{HttpRefusal, HttpReplyFormat, Status, View};
use crate::protocol::{ReplySummary, SendBuffer};
use crate::types::{Failure, KeyResult, Reply, Source};
use crate::value::{Payload, SHARED_VALUE_BYTES};

/// `Retry-After` of a 503 (RFC 9110, section 10.2.3): Redis is unavailable or the queue is full.
/// Reconnecting also starts within a second. A 429 ends within one, too.
const RETRY_AFTER: &str = "Retry-After: 1\r\n";

/// Challenges of a 401 (RFC 9110, section 11.6.1): Basic for browsers and tools (RFC 7617), Bearer
/// for programs (RFC 6750). One field for each, because some clients read only the first of a list.
const CHALLENGES: &str =
    "WWW-Authenticate: Basic realm=\"segment\", charset=\"UTF-8\"\r\nWWW-Authenticate: Bearer realm=\"segment\"\r\n";

/// Message of a 412.
const IF_MATCH_FAILED: &str =
    "If-Match failed: the value has another entity tag; only /raw has strong ones, which If-Match needs";

/// Message of a 412 for several keys, or for a page about the proxy.
const UNTAGGED_IF_MATCH_FAILED: &str = "If-Match failed: this resource has no entity tag; omit the field";

/// Message of a 504 to a request for cached values only (RFC 9111, section 5.2.1.7).
pub const NOT_CACHED: &str = "the key is not cached, and Cache-Control: only-if-cached does not permit to read it";

/// Refusal of a request for several keys with too many long values.
pub const KEYS_TOO_LONG: HttpRefusal = HttpRefusal {
    status: Status::BadGateway,
    message: "the response would be longer than 64 MiB; request fewer keys at once",
};

/// Refusal of a request for several keys without memory for its response.
pub const KEYS_MEMORY_FULL: HttpRefusal = HttpRefusal {
    status: Status::ServiceUnavailable,
    message: "the memory limit for responses with several keys is reached; retry in 1 s, or request fewer keys at once",
};

/// Message of a 416.
const RANGE_NOT_SATISFIABLE: &str = "the range begins after the end of the value; Content-Range has its length";

/// Media type of a document that is always JSON.
const JSON_TYPE: &str = "application/json";

/// `Allow` field (RFC 9110, section 10.2.1): methods that each resource supports.
const ALLOW: &str = "Allow: GET, HEAD, OPTIONS\r\n";

/// Response of an admin endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminResponse {
    /// Status code.
    pub status: Status,
    /// Media type of the body.
    pub content_type: &'static str,
    /// `Content-Security-Policy` of a page; empty for any other document.
    pub content_security_policy: &'static str,
    /// Body text.
    pub body: String,
}

/// Appends the response to a request for a key.
pub fn encode_reply(
    reply: &Reply<'_>,
    format: &HttpReplyFormat,
    date: &ResponseDate,
    out: &mut SendBuffer,
) -> ReplySummary {
    let status = status_of(reply.result);
    match reply.result {
        KeyResult::Value(payload) => encode_value(payload, reply, format, date, out),
        KeyResult::Missing => encode_error(status, "key not found", Some(reply.source), "", format, date, out),
        KeyResult::NotCached => encode_error(status, NOT_CACHED, Some(reply.source), "", format, date, out),
        KeyResult::Failed(failure) => {
            let extra_fields = if status == Status::ServiceUnavailable { RETRY_AFTER } else { "" };
            encode_error(status, &failure.to_string(), Some(reply.source), extra_fields, format, date, out)
        }
    }
}

/// Appends the response to a request for a key that has a value.
fn encode_value(
    payload: Payload<'_>,
    reply: &Reply<'_>,
    format: &HttpReplyFormat,
    date: &ResponseDate,
    out: &mut SendBuffer,
) -> ReplySummary {
    let tag = format.tag_of(|| payload.digest());
    let value_bytes = payload.bytes().len();
    let error = |status, message, extra_fields: &str, out: &mut SendBuffer| {
        encode_error(status, message, Some(reply.source), extra_fields, format, date, out)
    };
    match format.select_value(tag, value_bytes) {
        Selection::Whole => {
            let body = ValueBody::new(payload, format.view, !matches!(reply.source, Source::Redis { .. }));
            let bytes = body.len();
            let head = out.tail();
            head.extend_from_slice(&date.before_length[format.view as usize]);
            write_length(bytes, head);
            end_value_head(tag, reply, format, head);
            if format.head_only {
                return ReplySummary { status: Status::Ok, bytes: 0 };
            }
            body.write(out);
            ReplySummary { status: Status::Ok, bytes }
        }
        Selection::Part(part) => {
            let (status, head) = (Status::PartialContent, out.tail());
            begin_head(status, content_type_of(format.view), &date.text, head);
            write_length(part.len(), head);
            let last = part.end - 1;
            head.extend_from_slice(format!("Content-Range: bytes {}-{last}/{value_bytes}\r\n", part.start).as_bytes());
            end_value_head(tag, reply, format, head);
            let bytes = part.len();
            match payload {
                Payload::Shared(value) if bytes > SHARED_VALUE_BYTES => out.push_raw_range(value, part),
                _ => out.tail().extend_from_slice(&payload.bytes()[part]),
            }
            ReplySummary { status, bytes }
        }
        Selection::NotModified => encode_not_modified(tag, reply, format, date, out),
        Selection::PreconditionFailed => error(Status::PreconditionFailed, IF_MATCH_FAILED, "", out),
        Selection::RangeNotSatisfiable => {
            let content_range = format!("Content-Range: bytes */{value_bytes}\r\n");
            error(Status::RangeNotSatisfiable, RANGE_NOT_SATISFIABLE, &content_range, out)
        }
    }
}

/// Appends the response to a request whose client has the value already.
fn encode_not_modified(
    tag: Option<EntityTag>,
    reply: &Reply<'_>,
    format: &HttpReplyFormat,
    date: &ResponseDate,
    out: &mut SendBuffer,
) -> ReplySummary {
    let status = Status::NotModified;
    begin_bare_head(status, &date.text, out.tail());
    if format.view == View::Json {
        out.tail().extend_from_slice(VARY.as_bytes());
    }
    end_value_head(tag, reply, format, out.tail());
    ReplySummary { status, bytes: 0 }
}

/// Appends the 304 of a long poll that ends without a change of the value with this digest.
pub fn encode_unchanged(
    digest: u64,
    tracked: bool,
    format: &HttpReplyFormat,
    date: &ResponseDate,
    out: &mut SendBuffer,
) -> ReplySummary {
    // No entry of the cache stands behind it, so no lifetime is left.
    let reply = Reply { result: KeyResult::Missing, source: Source::Cache { ttl: 0 }, tracked };
    encode_not_modified(format.tag_of(|| digest), &reply, format, date, out)
}

/// Appends the fields that 200, 206 and 304 share (RFC 9110, section 15.4.5), and ends the head.
fn end_value_head(tag: Option<EntityTag>, reply: &Reply<'_>, format: &HttpReplyFormat, head: &mut Vec<u8>) {
    if let Some(tag) = tag {
        tag.write_field(head);
    }
    write_cache_fields(reply.source, CacheControl::for_value(reply), format, head);
    if let Some(seconds) = format.wait_seconds() {
        head.extend_from_slice(format!("Preference-Applied: wait={seconds}\r\n").as_bytes());
    }
    end_head(format, head);
}

/// Returns the status of a response about a key.
pub fn status_of(result: KeyResult<'_>) -> Status {
    let failure = match result {
        KeyResult::Value(_) => return Status::Ok,
        KeyResult::Missing => return Status::NotFound,
        KeyResult::NotCached => return Status::GatewayTimeout,
        KeyResult::Failed(failure) => failure,
    };
    match failure {
        Failure::QueueFull | Failure::OutputMemoryFull => Status::ServiceUnavailable,
        Failure::Unavailable | Failure::NotReady(_) => Status::ServiceUnavailable,
        Failure::Timeout => Status::GatewayTimeout,
        Failure::Refused(_) | Failure::TooLong | Failure::Redis(_) => Status::BadGateway,
        Failure::WrongType => Status::Conflict,
        Failure::Internal => Status::InternalServerError,
    }
}

/// Appends the error response to a refused request.
pub fn encode_refusal(
    refusal: HttpRefusal,
    format: &HttpReplyFormat,
    date: &ResponseDate,
    out: &mut SendBuffer,
) -> ReplySummary {
    let extra_fields = match refusal.status {
        Status::MethodNotAllowed => ALLOW,
        Status::ServiceUnavailable | Status::TooManyRequests => RETRY_AFTER,
        Status::Unauthorized => CHALLENGES,
        _ => "",
    };
    encode_error(refusal.status, refusal.message, None, extra_fields, format, date, out)
}

/// Appends the response of an admin endpoint. No cache may store it because it describes the
/// current state.
pub fn encode_admin(
    response: &AdminResponse,
    format: &HttpReplyFormat,
    date: &ResponseDate,
    out: &mut SendBuffer,
) -> ReplySummary {
    let AdminResponse { status, content_type, content_security_policy: policy, body } = response;
    if *status == Status::Ok
        && let Some(sent) = encode_unmet(format, date, out)
    {
        return sent;
    }
    let out = out.tail();
    begin_head(*status, content_type, &date.text, out);
    write_length(body.len(), out);
    out.extend_from_slice(NO_STORE);
    if !policy.is_empty() {
        for part in ["Content-Security-Policy: ", policy, "\r\nReferrer-Policy: no-referrer\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    end_head(format, out);
    if format.head_only {
        return ReplySummary { status: *status, bytes: 0 };
    }
    out.extend_from_slice(body.as_bytes());
    ReplySummary { status: *status, bytes: body.len() }
}

/// Appends the head of the response to a request for several keys, with a body of `bytes`. Returns
/// what was sent, and true if the body follows.
pub fn encode_keys_head(
    bytes: usize,
    origin: Source,
    format: &HttpReplyFormat,
    date: &ResponseDate,
    out: &mut SendBuffer,
) -> (ReplySummary, bool) {
    if let Some(sent) = encode_unmet(format, date, out) {
        return (sent, false);
    }
    let (status, out) = (Status::Ok, out.tail());
    begin_head(status, JSON_TYPE, &date.text, out);
    write_length(bytes, out);
    write_cache_fields(origin, CacheControl::NoStore, format, out);
    end_head(format, out);
    let sent = ReplySummary { status, bytes: if format.head_only { 0 } else { bytes } };
    (sent, !format.head_only)
}

/// Appends the response to a request for a resource without an entity tag, if a precondition is not
/// met.
fn encode_unmet(format: &HttpReplyFormat, date: &ResponseDate, out: &mut SendBuffer) -> Option<ReplySummary> {
    match format.select(|| Representation::UNTAGGED) {
        Selection::NotModified => {
            let (status, head) = (Status::NotModified, out.tail());
            begin_bare_head(status, &date.text, head);
            head.extend_from_slice(NO_STORE);
            end_head(format, head);
            Some(ReplySummary { status, bytes: 0 })
        }
        Selection::PreconditionFailed => {
            Some(encode_error(Status::PreconditionFailed, UNTAGGED_IF_MATCH_FAILED, None, "", format, date, out))
        }
        Selection::Whole | Selection::Part(_) | Selection::RangeNotSatisfiable => None,
    }
}

/// Appends the response to `OPTIONS` (RFC 9110, section 9.3.7). It has no CORS fields, because
/// scripts of other origins must not read values.
pub fn encode_options(format: &HttpReplyFormat, date: &ResponseDate, out: &mut SendBuffer) -> ReplySummary {
    let out = out.tail();
    begin_bare_head(Status::Ok, &date.text, out);
    out.extend_from_slice(ALLOW.as_bytes());
    out.extend_from_slice(b"Content-Length: 0\r\n");
    end_head(format, out);
    ReplySummary { status: Status::Ok, bytes: 0 }
}

/// Appends an error response with a JSON body. `source` is set for a request for a key.
fn encode_error(
    status: Status,
    message: &str,
    source: Option<Source>,
    extra_fields: &str,
    format: &HttpReplyFormat,
    date: &ResponseDate,
    out: &mut SendBuffer,
) -> ReplySummary {
    let length = "{".len() + json::error_len(message);
    let out = out.tail();
    begin_head(status, JSON_TYPE, &date.text, out);
    write_length(length, out);
    match source {
        Some(source) => write_cache_fields(source, CacheControl::NoStore, format, out),
        None => out.extend_from_slice(NO_STORE),
    }
    out.extend_from_slice(extra_fields.as_bytes());
    end_head(format, out);
    if format.head_only {
        return ReplySummary { status, bytes: 0 };
    }
    out.push(b'{');
    json::write_error(message, out);
    ReplySummary { status, bytes: length }
}
