//! Small files that a variable names, such as those of passwords and certificates.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Reads a file of at most `max_bytes`. Blocks.
///
/// # Errors
///
/// The file cannot be read, is not a regular file, or is longer. The error is a phrase that follows
/// the name of the file. `remedy` says what to name instead.
pub fn read(path: &Path, max_bytes: usize, remedy: &str) -> Result<Vec<u8>, String> {
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}; check the path and its permissions");
    // Opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(format!("is not a regular file; {remedy}"));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(max_bytes as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > max_bytes {
        return Err(format!("is longer than {max_bytes} bytes; {remedy}"));
    }
    Ok(bytes)
}
