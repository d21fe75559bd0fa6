//! Client authentication of one worker: checks credentials, and slows down wrong ones.
//!
//! This module performs no I/O and reads no clock. `passwords` holds the valid passwords as salted
//! hashes, `throttle` limits the wrong ones of each address.

mod passwords;
mod throttle;

pub use passwords::{ClientPasswords, MAX_LINE_BYTES, MAX_PASSWORDS, SharedPasswords};

use crate::log_throttle::LogThrottle;
use crate::types::Millis;
use core::net::IpAddr;
use std::fmt;
use std::sync::Arc;
use throttle::AddressThrottle;

/// User of a client that names none, as in Redis.
pub const DEFAULT_USER: &[u8] = b"default";

/// Credentials that a client sent.
#[derive(Clone, Copy)]
pub struct Credentials<'a> {
    /// User, [`DEFAULT_USER`] if the client named none.
    pub user: &'a [u8],
    /// Password.
    pub password: &'a [u8],
}

/// Protocol by which credentials arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// HTTP. A password without a user is valid with any user name, because tools demand one.
    Http,
    /// The Redis protocol. A password without a user belongs to [`DEFAULT_USER`].
    Resp,
}

/// Result of checking credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The credentials are valid.
    Accepted,
    /// They are not.
    Wrong,
    /// The address sent too many wrong ones, so these were not checked.
    Throttled,
}

/// Address of a client. A Unix socket has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientAddress(pub Option<IpAddr>);

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => write!(f, "{}", address.to_canonical()),
            None => f.write_str("a Unix socket"),
        }
    }
}

/// Client of one connection, as authentication sees it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peer {
    /// Address that wrong credentials count for.
    pub address: ClientAddress,
    /// The last credentials of the connection were valid, so its next ones are checked although the
    /// address sent too many wrong ones. A client that knows no password never gets this.
    is_trusted: bool,
}

impl Peer {
    /// Creates the state of a new connection.
    pub fn new(address: ClientAddress) -> Peer {
        Peer { address, is_trusted: false }
    }
}

/// Failed attempts that are due to be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureReport {
    /// Client of the last attempt.
    pub address: ClientAddress,
    /// Protocol of the last attempt.
    pub carrier: Carrier,
    /// Failed attempts since the last report, without this one.
    pub earlier: u64,
}

/// Authentication state of one worker.
#[derive(Debug, Default)]
pub struct ClientAuth {
    /// `None` if clients need no password.
    required: Option<Box<RequiredAuth>>,
}

/// Authentication state of a worker that requires a password.
#[derive(Debug)]
struct RequiredAuth {
    shared: Arc<SharedPasswords>,
    /// Copy of the passwords in force, with their version.
    current: Arc<ClientPasswords>,
    version: u64,
    throttle: AddressThrottle,
    log_throttle: LogThrottle,
    report: Option<FailureReport>,
    now: Millis,
}

impl ClientAuth {
    /// Creates the state of a worker that requires one of these passwords.
    pub fn required(shared: Arc<SharedPasswords>) -> ClientAuth {
        let (current, version) = shared.current();
        let required = RequiredAuth {
            shared,
            current,
            version,
            throttle: AddressThrottle::new(),
            log_throttle: LogThrottle::default(),
            report: None,
            now: 0,
        };
        ClientAuth { required: Some(Box::new(required)) }
    }

    /// Returns true if clients need a password.
    #[inline]
    pub fn is_required(&self) -> bool {
        self.required.is_some()
    }

    /// Starts a tick: sets the time, and takes over passwords that were replaced since the last
    /// one.
    pub fn begin_tick(&mut self, now: Millis) {
        if let Some(required) = &mut self.required {
            required.now = now;
            if required.shared.version() != required.version {
                (required.current, required.version) = required.shared.current();
            }
        }
    }

    /// Checks the credentials of a client, `None` if they are malformed. Without required
    /// passwords any are valid.
    pub fn verify(&mut self, peer: &mut Peer, carrier: Carrier, sent: Option<Credentials<'_>>) -> Verdict {
        let Some(required) = &mut self.required else { return Verdict::Accepted };
        let (address, now) = (peer.address, required.now);
        let verdict = if !peer.is_trusted && !required.throttle.has_token(address, now) {
            Verdict::Throttled
        } else if sent.is_some_and(|sent| required.current.contains(carrier, sent)) {
            if !peer.is_trusted {
                peer.is_trusted = true;
                required.throttle.on_success(address);
            }
            return Verdict::Accepted;
        } else {
            peer.is_trusted = false;
            required.throttle.on_failure(address, now);
            Verdict::Wrong
        };
        if let Some(earlier) = required.log_throttle.admit(now) {
            required.report = Some(FailureReport { address, carrier, earlier });
        }
        verdict
    }

    /// Takes the failed attempts that are due to be logged.
    pub fn take_report(&mut self) -> Option<FailureReport> {
        self.required.as_mut()?.report.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> ClientAddress {
        ClientAddress(Some(text.parse().expect("an address")))
    }

    fn client_auth(lines: &str) -> (ClientAuth, Arc<SharedPasswords>) {
        let shared = Arc::new(SharedPasswords::new(ClientPasswords::parse(lines).expect("passwords")));
        (ClientAuth::required(Arc::clone(&shared)), shared)
    }

    /// Sends a password on a new connection.
    fn verify(auth: &mut ClientAuth, from: ClientAddress, password: &str) -> Verdict {
        verify_again(auth, &mut Peer::new(from), password)
    }

    /// Sends a password on a connection that exists.
    fn verify_again(auth: &mut ClientAuth, peer: &mut Peer, password: &str) -> Verdict {
        let sent = Credentials { user: DEFAULT_USER, password: password.as_bytes() };
        auth.verify(peer, Carrier::Resp, Some(sent))
    }

    /// After 20 wrong passwords an address is refused unchecked, also with a right one. A right one
    /// gives back no attempt.
    #[test]
    fn wrong_passwords_throttle_their_address() {
        let (mut auth, _) = client_auth("word");
        let (one, other) = (address("192.0.2.1"), ClientAddress(None));
        auth.begin_tick(1000);
        for _ in 0..20 {
            assert_eq!(verify(&mut auth, one, "guess"), Verdict::Wrong);
        }
        assert_eq!([verify(&mut auth, one, "guess"), verify(&mut auth, one, "word")], [Verdict::Throttled; 2]);
        assert_eq!(verify(&mut auth, other, "word"), Verdict::Accepted);
        auth.begin_tick(1200);
        assert_eq!(
            [verify(&mut auth, one, "word"), verify(&mut auth, one, "guess")],
            [Verdict::Accepted, Verdict::Wrong]
        );
        assert_eq!(verify(&mut auth, one, "guess"), Verdict::Throttled);
    }

    /// A connection whose last password was right goes on while others guess at its address. Its
    /// first wrong password is checked too, and ends this.
    #[test]
    fn trusted_connection_is_not_throttled() {
        let (mut auth, _) = client_auth("word");
        let from = address("192.0.2.1");
        let mut peer = Peer::new(from);
        assert_eq!(verify_again(&mut auth, &mut peer, "word"), Verdict::Accepted);
        (0..100).for_each(|_| _ = verify(&mut auth, from, "guess"));
        for _ in 0..100 {
            assert_eq!(verify(&mut auth, from, "guess"), Verdict::Throttled);
            assert_eq!(verify_again(&mut auth, &mut peer, "word"), Verdict::Accepted);
        }
        assert_eq!(verify_again(&mut auth, &mut peer, "guess"), Verdict::Wrong);
        assert_eq!(verify_again(&mut auth, &mut peer, "word"), Verdict::Throttled);
        // It took a token like any other, so the next one comes later.
        auth.begin_tick(399);
        assert_eq!(verify(&mut auth, from, "word"), Verdict::Throttled);
        auth.begin_tick(400);
        assert_eq!(verify(&mut auth, from, "word"), Verdict::Accepted);
    }

    /// An attacker gets 20 guesses and 5 in a second, however often clients of the same address
    /// succeed: on new connections, on old ones, or on those that a load balancer shares.
    #[test]
    fn successes_give_attacker_no_guesses() {
        let (mut auth, _) = client_auth("word");
        let from = address("192.0.2.1");
        let (mut kept, mut shared) = (Peer::new(from), [Peer::new(from); 50]);
        let mut checked = 0;
        for now in 0..60_000 {
            auth.begin_tick(now);
            verify(&mut auth, from, "word");
            verify_again(&mut auth, &mut kept, "word");
            let peer = &mut shared[now as usize % 50];
            verify_again(&mut auth, peer, "word");
            // Bursts, with pauses in which the clients are trusted again.
            if now % 10_000 < 5000 {
                checked += usize::from(verify_again(&mut auth, peer, "guess") == Verdict::Wrong);
                checked += usize::from(verify(&mut auth, from, "guess") == Verdict::Wrong);
            }
        }
        assert!((300..=20 + 50 + 300).contains(&checked), "{checked} guesses in a minute");
    }

    /// Replaced passwords take effect with the next tick.
    #[test]
    fn replaced_passwords_apply_next_tick() {
        let (mut auth, shared) = client_auth("old");
        let from = ClientAddress::default();
        shared.replace(ClientPasswords::parse("old\nnew").expect("passwords"));
        assert_eq!(verify(&mut auth, from, "new"), Verdict::Wrong);
        auth.begin_tick(0);
        assert_eq!([verify(&mut auth, from, "new"), verify(&mut auth, from, "old")], [Verdict::Accepted; 2]);
        shared.replace(ClientPasswords::parse("new").expect("passwords"));
        auth.begin_tick(0);
        assert_eq!(
            [verify(&mut auth, from, "new"), verify(&mut auth, from, "old")],
            [Verdict::Accepted, Verdict::Wrong]
        );
    }

    /// Failures are reported once in 10 s, with the number of those between.
    #[test]
    fn failures_are_reported_at_intervals() {
        let (mut auth, _) = client_auth("word");
        let from = address("::ffff:192.0.2.1");
        assert_eq!(auth.take_report(), None);
        for _ in 0..25 {
            verify(&mut auth, from, "guess");
        }
        let report = FailureReport { address: from, carrier: Carrier::Resp, earlier: 0 };
        assert_eq!([auth.take_report(), auth.take_report()], [Some(report), None]);
        auth.begin_tick(10_000);
        verify(&mut auth, from, "guess");
        assert_eq!(auth.take_report(), Some(FailureReport { earlier: 24, ..report }));
        assert_eq!(
            (from.to_string().as_str(), ClientAddress(None).to_string().as_str()),
            ("192.0.2.1", "a Unix socket")
        );
    }

    /// Without required passwords any credentials are valid, and nothing is reported.
    #[test]
    fn optional_auth_accepts_anything() {
        let mut auth = ClientAuth::default();
        assert_eq!(auth.verify(&mut Peer::default(), Carrier::Http, None), Verdict::Accepted);
        assert_eq!((auth.is_required(), auth.take_report()), (false, None));
    }
}
