//! Valid passwords of clients, as salted hashes.

use super::{Carrier, Credentials, DEFAULT_USER};
use hmac_sha256::Hash;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use subtle::{Choice, ConstantTimeEq};

/// Maximum number of passwords. Each request of an HTTP client compares with all of them.
pub const MAX_PASSWORDS: usize = 64;

/// Maximum length of a line, a user and a password. Longer credentials are wrong without hashing,
/// so that no client makes the proxy hash more.
pub const MAX_LINE_BYTES: usize = 512;

/// SHA-256 of the salt, the user and the password.
type Digest = [u8; 32];

/// Valid passwords. Holds only their hashes, with a salt that is new in each process.
///
/// A hash of random passwords needs no costly function: it never leaves the process.
pub struct ClientPasswords {
    salt: [u8; 16],
    /// Hashes of the passwords without a user.
    for_any_user: Vec<Digest>,
    /// Hashes of the passwords with a user.
    for_one_user: Vec<Digest>,
}

/// Shows only how many passwords there are.
impl fmt::Debug for ClientPasswords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientPasswords({}, {})", self.for_any_user.len(), self.for_one_user.len())
    }
}

impl ClientPasswords {
    /// Parses one password from each line: `password`, or `user:password`. The first colon
    /// separates. Empty lines are ignored.
    ///
    /// # Errors
    ///
    /// A phrase that follows the name of the variable: the problem and its remedy, without any part
    /// of a password.
    pub fn parse(text: &str) -> Result<ClientPasswords, String> {
        let random = RandomState::new();
        let mut salt = [0; 16];
        salt[..8].copy_from_slice(&random.hash_one(0_u8).to_ne_bytes());
        salt[8..].copy_from_slice(&random.hash_one(1_u8).to_ne_bytes());
        let mut passwords = ClientPasswords { salt, for_any_user: Vec::new(), for_one_user: Vec::new() };
        for (number, line) in (1..).zip(text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line))) {
            match line.split_once(':') {
                _ if line.is_empty() => continue,
                _ if line.len() > MAX_LINE_BYTES => {
                    return Err(format!(
                        "line {number} is longer than {MAX_LINE_BYTES} bytes; choose a shorter password"
                    ));
                }
                Some(("", _) | (_, "")) => {
                    return Err(format!(
                        "line {number} has no user before its first colon, or no password after it; write user:password, \
                         or default:password for a password with a colon"
                    ));
                }
                Some((user, password)) => {
                    let digest = passwords.digest(Some(user.as_bytes()), password.as_bytes());
                    passwords.for_one_user.push(digest);
                }
                None => {
                    let digest = passwords.digest(None, line.as_bytes());
                    passwords.for_any_user.push(digest);
                }
            }
        }
        match passwords.len() {
            0 => Err("has no password; write one into each line".into()),
            count if count > MAX_PASSWORDS => {
                Err(format!("has {count} passwords; remove old ones, the limit is {MAX_PASSWORDS}"))
            }
            _ => Ok(passwords),
        }
    }

    /// Returns the number of passwords.
    pub fn len(&self) -> usize {
        self.for_any_user.len() + self.for_one_user.len()
    }

    /// Returns true if there are no passwords.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of passwords that belong to one user.
    pub fn with_user(&self) -> usize {
        self.for_one_user.len()
    }

    /// Returns true if the credentials are valid. Always compares with all passwords, so that the
    /// time does not depend on which one is right, or how much of it.
    pub(super) fn contains(&self, carrier: Carrier, sent: Credentials<'_>) -> bool {
        let Credentials { user, password } = sent;
        if user.len().max(password.len()) > MAX_LINE_BYTES {
            return false;
        }
        let mut found = Choice::from(0);
        let mut compare = |hashes: &[Digest], user: Option<&[u8]>| {
            if !hashes.is_empty() {
                let digest = self.digest(user, password);
                hashes.iter().for_each(|hash| found |= hash[..].ct_eq(&digest[..]));
            }
        };
        compare(&self.for_one_user, Some(user));
        if carrier == Carrier::Http || user == DEFAULT_USER {
            compare(&self.for_any_user, None);
        }
        found.into()
    }

    fn digest(&self, user: Option<&[u8]>, password: &[u8]) -> Digest {
        let mut hash = Hash::new();
        hash.update(self.salt);
        // The length separates the user from the password. No user has the length 0xffff.
        hash.update(user.map_or(u16::MAX, |user| user.len() as u16).to_le_bytes());
        hash.update(user.unwrap_or_default());
        hash.update(password);
        hash.finalize()
    }
}

/// Passwords in force, which another thread may replace.
#[derive(Debug)]
pub struct SharedPasswords {
    current: Mutex<Arc<ClientPasswords>>,
    /// Number of replacements. Workers look at it in each tick, and take the lock only after one.
    version: AtomicU64,
}

impl SharedPasswords {
    /// Creates the store with its first passwords.
    pub fn new(passwords: ClientPasswords) -> SharedPasswords {
        SharedPasswords { current: Mutex::new(Arc::new(passwords)), version: AtomicU64::new(0) }
    }

    /// Replaces the passwords. Workers take over the new ones with their next tick.
    pub fn replace(&self, passwords: ClientPasswords) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(passwords);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Returns the number of replacements so far.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Returns the passwords, and a version that is not newer than they are.
    pub(super) fn current(&self) -> (Arc<ClientPasswords>, u64) {
        let version = self.version();
        (Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner)), version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A password without a user is valid for any user over HTTP, and for `default` over RESP. One
    /// with a user is valid for that user only.
    #[test]
    fn user_decides_valid_password() {
        let passwords = ClientPasswords::parse("word\n\napp:secret\r\ndefault:pa:ss\n").expect("passwords");
        assert_eq!((passwords.len(), passwords.with_user()), (3, 2));
        for (user, password, over_http, over_resp) in [
            ("default", "word", true, true),
            ("anyone", "word", true, false),
            ("app", "word", true, false),
            ("app", "secret", true, true),
            ("default", "secret", false, false),
            ("App", "secret", false, false),
            ("default", "app:secret", false, false),
            ("default", "pa:ss", true, true),
            ("default", "default:pa:ss", false, false),
            ("default", "", false, false),
            ("", "word", true, false),
            ("default", "wor", false, false),
            ("default", "word\n", false, false),
            ("ap", "psecret", false, false),
        ] {
            let sent = Credentials { user: user.as_bytes(), password: password.as_bytes() };
            let found = (passwords.contains(Carrier::Http, sent), passwords.contains(Carrier::Resp, sent));
            assert_eq!(found, (over_http, over_resp), "{user} {password}");
        }
    }

    /// Unusable text is an error that shows no part of a password.
    #[test]
    fn unusable_text_is_an_error() {
        let long = "topsecret".repeat(60);
        let many = "topsecret\n".repeat(MAX_PASSWORDS + 1);
        for (text, problem) in [
            ("", "has no password"),
            ("\n\r\n\n", "has no password"),
            ("a\n:topsecret", "line 2 has no user before its first colon"),
            ("topsecret:", "line 1 has no user before its first colon, or no password after it"),
            (&long, "line 1 is longer than 512 bytes"),
            (&many, "has 65 passwords"),
        ] {
            let error = ClientPasswords::parse(text).expect_err(problem);
            assert!(error.starts_with(problem) && !error.contains("topsecret"), "{error}");
        }
        assert!(ClientPasswords::parse(&"x\n".repeat(MAX_PASSWORDS)).is_ok());
        assert!(ClientPasswords::parse(&"x".repeat(MAX_LINE_BYTES)).is_ok());
    }

    /// Neither passwords nor users are kept as text, and no two processes have the same hashes.
    #[test]
    fn only_salted_hashes_are_kept() {
        let [one, other] = [0, 1].map(|_| ClientPasswords::parse("topsecret\nuser:topsecret").expect("passwords"));
        assert_eq!(format!("{one:?}"), "ClientPasswords(1, 1)");
        assert_ne!(one.for_any_user, other.for_any_user);
        assert_ne!(one.for_any_user, one.for_one_user);
    }
}
