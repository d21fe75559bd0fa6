//! Parser of the `Authorization` field: Basic (RFC 7617) and Bearer (RFC 6750).

use crate::client_auth::{Credentials, DEFAULT_USER};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt;

/// Maximum length of a decoded `user:password`, twice the longest valid one. Others are malformed.
pub const MAX_DECODED_BYTES: usize = 1024;

/// `Authorization` of a request (RFC 9110, section 11.6.2).
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Authorization<'a> {
    /// The request has no such field.
    #[default]
    Absent,
    /// Value of the only field.
    Field(&'a [u8]),
    /// The request has several fields. Programs may take either, so none counts.
    Repeated,
}

/// Hides the credentials.
impl fmt::Debug for Authorization<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Authorization::Absent => "Absent",
            Authorization::Field(_) => "Field(...)",
            Authorization::Repeated => "Repeated",
        })
    }
}

impl<'a> Authorization<'a> {
    /// Adds a field of the request.
    pub(super) fn push(&mut self, value: &'a [u8]) {
        *self = match self {
            Authorization::Absent => Authorization::Field(value),
            _ => Authorization::Repeated,
        };
    }

    /// Returns the credentials, decoded into `buffer` if necessary. `None` if there are none, or if
    /// they are malformed.
    pub fn credentials<'b>(self, buffer: &'b mut [u8; MAX_DECODED_BYTES]) -> Option<Credentials<'b>>
    where
        'a: 'b,
    {
        let Authorization::Field(value) = self else { return None };
        let (scheme, rest) = value.split_at(value.iter().position(|&byte| byte == b' ')?);
        let token = rest.trim_ascii();
        // White space or a comma would begin another parameter, or another field that a program in
        // front has joined to this one.
        if token.is_empty() || token.iter().any(|byte| matches!(byte, b' ' | b'\t' | b',')) {
            return None;
        }
        if scheme.eq_ignore_ascii_case(b"bearer") {
            return Some(Credentials { user: DEFAULT_USER, password: token });
        }
        if !scheme.eq_ignore_ascii_case(b"basic") {
            return None;
        }
        let length = STANDARD.decode_slice(token, buffer).ok()?;
        let decoded: &'b [u8] = &buffer[..length];
        let colon = decoded.iter().position(|&byte| byte == b':')?;
        let user = if colon == 0 { DEFAULT_USER } else { &decoded[..colon] };
        Some(Credentials { user, password: &decoded[colon + 1..] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials_of(value: &[u8]) -> Option<(String, String)> {
        let mut buffer = [0; MAX_DECODED_BYTES];
        let sent = Authorization::Field(value).credentials(&mut buffer)?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Some((text(sent.user), text(sent.password)))
    }

    /// Both schemes are understood in any case. Anything else is malformed.
    #[test]
    fn field_yields_user_and_password() {
        for (value, expected) in [
            (&b"Bearer word"[..], Some(("default", "word"))),
            (b"bEARER  w:o/rd== ", Some(("default", "w:o/rd=="))),
            (b"Basic YXBwOnNlY3JldA==", Some(("app", "secret"))),
            (b"BASIC   YXBwOnNlY3JldA==", Some(("app", "secret"))),
            (b"Basic OndvcmQ=", Some(("default", "word"))),
            (b"Basic YXBwOg==", Some(("app", ""))),
            (b"Basic YTpiOmM=", Some(("a", "b:c"))),
            (b"", None),
            (b"Bearer", None),
            (b"Bearer ", None),
            (b"Bearerword", None),
            (b"word", None),
            (b"Bearer a b", None),
            (b"Bearer a,Bearer b", None),
            (b"Bearer a, Basic b", None),
            (b"Bearer\tword", None),
            (b"Basic YXBw", None),
            (b"Basic YXBwOnNlY3JldA", None),
            (b"Basic YXBwOnNlY3JldA===", None),
            (b"Basic !!!!", None),
            (b"Basic app:secret", None),
            (b"Digest username=\"app\"", None),
            (b"Negotiate YXBwOnNlY3JldA==", None),
        ] {
            let expected = expected.map(|(user, password)| (user.to_owned(), password.to_owned()));
            assert_eq!(credentials_of(value), expected, "{}", value.escape_ascii());
        }
        for length in 0..20_000 {
            if length % 97 == 0 {
                // The longest head fits no buffer, and must not need one.
                credentials_of(&[b"Basic ", &vec![b'Y'; length][..]].concat());
            }
        }
    }

    /// A repeated field yields no credentials, even if both are equal.
    #[test]
    fn repeated_field_yields_nothing() {
        let mut authorization = Authorization::default();
        authorization.push(b"Bearer word");
        assert!(authorization.credentials(&mut [0; MAX_DECODED_BYTES]).is_some());
        authorization.push(b"Bearer word");
        assert_eq!(authorization, Authorization::Repeated);
        assert!(authorization.credentials(&mut [0; MAX_DECODED_BYTES]).is_none());
        authorization.push(b"Bearer word");
        assert_eq!(authorization, Authorization::Repeated);
    }
}
