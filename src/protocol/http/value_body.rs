//! Encoder of the body of a response with a value.

use super::View;
use super::json::{self, Encoding};
use crate::protocol::SendBuffer;
use crate::value::{JsonForm, Payload};

/// Ends of a body in JSON, without and with `fromCache`.
const INTEGER_SUFFIXES: [&str; 2] = [",\"fromCache\":false}", ",\"fromCache\":true}"];
const TEXT_SUFFIXES: [&str; 2] = ["\",\"fromCache\":false}", "\",\"fromCache\":true}"];
const BINARY_SUFFIXES: [&str; 2] =
    ["\",\"encoding\":\"base64\",\"fromCache\":false}", "\",\"encoding\":\"base64\",\"fromCache\":true}"];

/// Body of a response with a value: the rendered value between fixed texts.
pub(in crate::protocol) struct ValueBody<'a> {
    prefix: &'static str,
    payload: Payload<'a>,
    encoding: Encoding,
    suffix: &'static str,
}

impl<'a> ValueBody<'a> {
    /// Creates the body of `payload` in the representation `view`.
    pub(super) fn new(payload: Payload<'a>, view: View, from_cache: bool) -> ValueBody<'a> {
        let (prefix, encoding, suffixes) = match (view, payload.form()) {
            (View::Raw, _) => ("", Encoding::Raw, ["", ""]),
            (View::Json, JsonForm::Integer) => ("{\"value\":", Encoding::Raw, INTEGER_SUFFIXES),
            (View::Json, JsonForm::Plain) => ("{\"value\":\"", Encoding::Raw, TEXT_SUFFIXES),
            (View::Json, JsonForm::Escaped) => ("{\"value\":\"", Encoding::Escaped, TEXT_SUFFIXES),
            (View::Json, JsonForm::Binary) => ("{\"value\":\"", Encoding::Base64, BINARY_SUFFIXES),
        };
        ValueBody { prefix, payload, encoding, suffix: suffixes[usize::from(from_cache)] }
    }

    /// Creates the end of an element of `/keys`: the body of `/key` without its first brace.
    pub(in crate::protocol) fn element(payload: Payload<'a>, from_cache: bool) -> ValueBody<'a> {
        let body = ValueBody::new(payload, View::Json, from_cache);
        ValueBody { prefix: &body.prefix[1..], ..body }
    }

    /// Returns the length in bytes.
    pub(in crate::protocol) fn len(&self) -> usize {
        let rendered = match (self.payload, self.encoding) {
            // A scan of a long value would stall the event loop, so the fetcher has counted its
            // bytes.
            (Payload::Shared(value), Encoding::Escaped) => value.escaped_bytes,
            (Payload::Shared(value), encoding) => json::rendered_len(&value.bytes, encoding),
            (Payload::Inline { bytes, .. }, encoding) => json::rendered_len(bytes, encoding),
        };
        self.prefix.len() + rendered + self.suffix.len()
    }

    /// Appends the body.
    #[inline(always)]
    pub(in crate::protocol) fn write(&self, out: &mut SendBuffer) {
        match self.payload {
            Payload::Inline { bytes, .. } => self.write_inline(bytes, out.tail()),
            Payload::Shared(value) => {
                out.tail().extend_from_slice(self.prefix.as_bytes());
                out.push_value(value, self.encoding);
                out.tail().extend_from_slice(self.suffix.as_bytes());
            }
        }
    }

    /// Appends the body, with these bytes of the value.
    #[inline(always)]
    pub(in crate::protocol) fn write_inline(&self, bytes: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(self.prefix.as_bytes());
        json::render(bytes, self.encoding, out);
        out.extend_from_slice(self.suffix.as_bytes());
    }
}
