//! Versions of HTTP in a request line (RFC 9112, section 2.3). `httparse` knows 1.0 and 1.1 alone.

/// Returns what stands behind method and target.
pub fn version_of<'a>(request: &httparse::Request<'_, '_>, input: &'a [u8]) -> &'a [u8] {
    let behind_target =
        request.path.map(|target| target.as_ptr() as usize - input.as_ptr() as usize + target.len() + 1);
    behind_target.and_then(|at| input.get(at..)).unwrap_or_default()
}

/// Returns true for the versions 1.2 to 1.9. They are read as the highest one that is known, 1.1 (RFC 9110, section 2.5).
pub fn is_later_minor(version: &[u8]) -> bool {
    version.starts_with(b"HTTP/1.") && matches!(version.get(VERSION_BYTES - 1), Some(b'2'..=b'9'))
}

/// Returns true for any version (RFC 9112, section 2.3), and nothing where more bytes decide.
pub fn is_version(text: &[u8]) -> Option<bool> {
    let may_be = |(&byte, pattern): (&u8, u8)| if pattern == b'1' { byte.is_ascii_digit() } else { byte == pattern };
    match text.iter().zip(*VERSION).all(may_be) {
        true if text.len() < VERSION_BYTES => None,
        holds => Some(holds),
    }
}

/// A version.
const VERSION: &[u8; VERSION_BYTES] = b"HTTP/1.1";
pub const VERSION_BYTES: usize = 8;
