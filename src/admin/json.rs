//! Writer for the small JSON documents of `/stats`, `/healthz` and `/readyz`.
//!
//! Each function returns JSON text (RFC 8259), so that calls nest.

use crate::protocol::http::json::escape;
use std::fmt::Display;

/// Returns `text` as a JSON string.
pub fn quote(text: &str) -> String {
    let mut quoted = vec![b'"'];
    escape(text.as_bytes(), &mut quoted);
    quoted.push(b'"');
    // Cannot fail: escaping replaces ASCII bytes by ASCII, and copies all other bytes.
    String::from_utf8(quoted).unwrap_or_default()
}

/// Returns `text` as a JSON string, or `null` if there is none.
pub fn quote_or_null(text: Option<&str>) -> String {
    text.map_or_else(|| "null".to_owned(), quote)
}

/// Returns a JSON object. The names are written unescaped, the values must be JSON.
pub fn object<'a>(members: impl IntoIterator<Item = (&'a str, impl Display)>) -> String {
    let members: Vec<String> = members.into_iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", members.join(","))
}

/// Returns a JSON array. The elements must be JSON.
pub fn array(elements: impl IntoIterator<Item = impl Display>) -> String {
    let elements: Vec<String> = elements.into_iter().map(|element| element.to_string()).collect();
    format!("[{}]", elements.join(","))
}
