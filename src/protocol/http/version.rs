//! HTTP version of a request line (RFC 9112, section 2.3). `httparse` accepts only 1.0 and 1.1.

/// Returns the input from the version on, or nothing if it has not arrived.
pub fn version_of<'a>(request: &httparse::Request<'_, '_>, input: &'a [u8]) -> &'a [u8] {
    let after_target = request.path.map(|target| target.as_ptr() as usize - input.as_ptr() as usize + target.len() + 1);
    after_target.and_then(|at| input.get(at..)).unwrap_or_default()
}

/// Returns true for the versions 1.2 to 1.9. The decoder processes them as 1.1, the highest minor
/// version that it supports (RFC 9110, section 2.5).
pub fn is_later_minor(version: &[u8]) -> bool {
    version.starts_with(b"HTTP/1.") && matches!(version.get(VERSION_BYTES - 1), Some(b'2'..=b'9'))
}

/// Returns true if `text` starts with a valid version, supported or not. Returns `None` if the
/// answer depends on more bytes.
pub fn is_version(text: &[u8]) -> Option<bool> {
    let matches_pattern =
        |(&byte, pattern): (&u8, u8)| if pattern == b'1' { byte.is_ascii_digit() } else { byte == pattern };
    match text.iter().zip(*VERSION_PATTERN).all(matches_pattern) {
        true if text.len() < VERSION_BYTES => None,
        is_valid => Some(is_valid),
    }
}

/// Pattern of a version (`HTTP-version`): each `1` stands for any digit.
const VERSION_PATTERN: &[u8; VERSION_BYTES] = b"HTTP/1.1";
/// Length of any version.
pub const VERSION_BYTES: usize = 8;
