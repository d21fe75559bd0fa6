//! Encoder of response heads: the parts that all responses share.

use super::{HttpReplyFormat, Status, View};
use std::time::SystemTime;

/// Prerendered parts of response heads that depend on the time.
///
/// These are the value of the `Date` field (RFC 9110, section 6.6.1), and the response head for a
/// value up to its length. The worker renders them once a second, not once for each response.
#[derive(Clone, Debug)]
pub struct ResponseDate {
    pub(super) text: String,
    /// Response head for a value up to the number in `Content-Length`, indexed by [`View`].
    pub(super) before_length: [Vec<u8>; 2],
}

impl ResponseDate {
    /// Renders `time`.
    pub fn at(time: SystemTime) -> ResponseDate {
        let text = httpdate::fmt_http_date(time);
        let before_length = [View::Json, View::Raw].map(|view| {
            let mut head = Vec::new();
            begin_head(Status::Ok, content_type_of(view), &text, &mut head);
            head
        });
        ResponseDate { text, before_length }
    }
}

/// Field of `/key`, which is an event stream for clients that ask for one (RFC 9110, section
/// 12.5.5). Without it, a cache in front would answer them with a stored value.
pub(super) const VARY: &str = "Vary: Accept\r\n";

/// Returns the media type of a value, and a field behind it: [`VARY`], or for `/raw` the one that
/// announces ranges (RFC 9110, section 14.3).
pub(super) fn content_type_of(view: View) -> &'static str {
    match view {
        View::Json => "application/json\r\nVary: Accept",
        View::Raw => "application/octet-stream\r\nAccept-Ranges: bytes",
    }
}

/// Appends a head up to the `Date` field.
pub(super) fn begin_bare_head(status: Status, date: &str, out: &mut Vec<u8>) {
    for part in ["HTTP/1.1 ", status.line(), "\r\nDate: ", date, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// Appends a head up to the number in `Content-Length`.
pub(super) fn begin_head(status: Status, content_type: &str, date: &str, out: &mut Vec<u8>) {
    begin_bare_head(status, date, out);
    for part in ["Content-Type: ", content_type, "\r\nX-Content-Type-Options: nosniff\r\nContent-Length: "] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// Appends the number in `Content-Length` and ends the field line.
pub(super) fn write_length(length: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Appends `Connection` if the client needs it, and the empty line that ends the head (RFC 9112,
/// section 9.3).
pub(super) fn end_head(format: &HttpReplyFormat, out: &mut Vec<u8>) {
    let connection: &[u8] = match (format.keep_alive, format.version_1_0) {
        (true, false) => b"\r\n",
        (true, true) => b"Connection: keep-alive\r\n\r\n",
        (false, _) => b"Connection: close\r\n\r\n",
    };
    out.extend_from_slice(connection);
}
