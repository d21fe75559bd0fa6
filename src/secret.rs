//! Secrets, such as passwords: from a variable, or from a file that can be read again.
//!
//! A file makes rotation possible without a restart. It is read at start, on SIGHUP, and where a
//! caller finds that the secret is no longer valid. The event loop never reads one.

use crate::bounded_file;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Longest secret in a file. The file of a mistyped path may be of any length.
pub const MAX_SECRET_BYTES: usize = 64 * 1024;

/// Source of a secret.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// Value of a variable.
    Value(String),
    /// File that holds the secret.
    File {
        /// Variable that names the file, for errors.
        variable: &'static str,
        /// Path of the file.
        path: PathBuf,
    },
}

/// Secret that several threads use. Its file can be read again while they do.
pub struct Secret {
    source: SecretSource,
    text: Mutex<Arc<str>>,
}

/// Hides the secret.
impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretSource::Value(_) => f.write_str("Value(...)"),
            SecretSource::File { path, .. } => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl SecretSource {
    /// Reads the secret. Removes one line break from the end of a file. Blocks for a file.
    ///
    /// # Errors
    ///
    /// Variable, path, cause and remedy in one line, if the file cannot be read, is empty, is
    /// longer than [`MAX_SECRET_BYTES`], or is not UTF-8.
    pub fn read(&self) -> Result<String, String> {
        match self {
            SecretSource::Value(text) => Ok(text.clone()),
            SecretSource::File { variable, path } => {
                read_file(path).map_err(|problem| format!("{variable}={path:?} {problem}"))
            }
        }
    }
}

impl Secret {
    /// Reads the secret for the first time.
    ///
    /// # Errors
    ///
    /// As [`SecretSource::read`].
    pub fn load(source: SecretSource) -> Result<Secret, String> {
        let text = Mutex::new(source.read()?.into());
        Ok(Secret { source, text })
    }

    /// Returns the secret.
    pub fn text(&self) -> Arc<str> {
        Arc::clone(&self.text.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the secret again. Returns true if it has changed. After an error the old one stays.
    ///
    /// # Errors
    ///
    /// As [`SecretSource::read`].
    pub fn reload(&self) -> Result<bool, String> {
        let text = self.source.read()?;
        let mut current = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let is_changed = **current != *text;
        *current = text.into();
        Ok(is_changed)
    }
}

/// Reads a secret from a file. The error is a phrase that follows its name.
fn read_file(path: &Path) -> Result<String, String> {
    let bytes = bounded_file::read(path, MAX_SECRET_BYTES, "name a file that holds only the secret")?;
    let text = String::from_utf8(bytes).map_err(|_| "is not valid UTF-8; write the secret as UTF-8".to_owned())?;
    let text = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    if text.is_empty() { Err("is empty; write the secret into it".into()) } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the source for a new file with `bytes`.
    fn file(name: &str, bytes: &[u8]) -> SecretSource {
        let path = std::env::temp_dir().join(format!("segment-secret-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).expect("a file in the temporary directory");
        SecretSource::File { variable: "REDIS_PASSWORD_FILE", path }
    }

    /// One line break at the end is no part of the secret. All other bytes are.
    #[test]
    fn file_loses_one_line_break() {
        for (bytes, expected) in [("word", "word"), ("word\n", "word"), ("word\r\n", "word"), ("a b\n\n", "a b\n")] {
            assert_eq!(file("line-break", bytes.as_bytes()).read().as_deref(), Ok(expected), "{bytes:?}");
        }
        assert_eq!(SecretSource::Value("word\n".into()).read().as_deref(), Ok("word\n"));
    }

    /// An unusable file is an error that names the variable, and never the contents.
    #[test]
    fn unusable_file_is_named() {
        for (bytes, problem) in [
            (&b""[..], "is empty"),
            (b"\n", "is empty"),
            (b"topsecret\xff", "is not valid UTF-8"),
            (&[b'x'; MAX_SECRET_BYTES + 1], "is longer than 65536 bytes"),
        ] {
            let text = file("unusable", bytes).read().expect_err(problem);
            assert!(text.starts_with("REDIS_PASSWORD_FILE=") && text.contains(problem), "{text}");
            assert!(!text.contains("topsecret") && !text.contains("xx"), "{text}");
        }
        for (path, problem) in [("/nonexistent", "cannot be read"), ("/dev/null", "is not a regular file")] {
            let source = SecretSource::File { variable: "REDIS_PASSWORD_FILE", path: path.into() };
            let text = source.read().expect_err(problem);
            assert!(text.starts_with(&format!("REDIS_PASSWORD_FILE={path:?} {problem}")), "{text}");
        }
    }

    /// A changed file takes effect. An unreadable one leaves the secret as it was.
    #[test]
    fn reload_keeps_secret_after_error() {
        let source = file("reload", b"old\n");
        let SecretSource::File { path, .. } = source.clone() else { panic!("no file") };
        let secret = Secret::load(source).expect("a readable file");
        assert_eq!((secret.reload(), &*secret.text()), (Ok(false), "old"));
        std::fs::write(&path, "new").expect("a writable file");
        assert_eq!((secret.reload(), &*secret.text()), (Ok(true), "new"));
        std::fs::remove_file(&path).expect("the file");
        assert!(secret.reload().is_err());
        assert_eq!(&*secret.text(), "new");
    }
}
