//! Limit on the wrong passwords of each client address.

use super::ClientAddress;
use crate::types::Millis;
use core::net::IpAddr;
use std::hash::{BuildHasher, RandomState};

/// Wrong passwords of an address that are checked at once: those of a few clients with an old
/// password.
const BURST: u64 = 20;

/// Time until another one is checked: 5 in a second, so 432,000 guesses a day.
const REFILL_INTERVAL: Millis = 200;

/// Number of token buckets. Addresses with the same hash share one, so the table stays small (8
/// KiB), and an attacker with many addresses gets no more than 1,024 times these attempts.
const SLOTS: usize = 1024;

/// Table of token buckets: direct-mapped, with a random hash that no client can predict.
#[derive(Debug)]
pub(super) struct AddressThrottle {
    hasher: RandomState,
    /// Time at which each bucket is full. Each wrong password moves it.
    full_at: Vec<Millis>,
}

impl AddressThrottle {
    pub(super) fn new() -> AddressThrottle {
        AddressThrottle { hasher: RandomState::new(), full_at: vec![0; SLOTS] }
    }

    /// Returns true if a password of this address may be checked.
    pub(super) fn has_token(&self, address: ClientAddress, now: Millis) -> bool {
        let missing = self.full_at[self.slot(address)].saturating_sub(now);
        missing <= (BURST - 1) * REFILL_INTERVAL
    }

    /// Takes a token, because a password was wrong.
    pub(super) fn on_failure(&mut self, address: ClientAddress, now: Millis) {
        let slot = self.slot(address);
        self.full_at[slot] = self.full_at[slot].max(now) + REFILL_INTERVAL;
    }

    /// Fills the bucket, because a password was right. So an address that many clients share, such
    /// as that of a load balancer, is not throttled for long.
    pub(super) fn on_success(&mut self, address: ClientAddress) {
        let slot = self.slot(address);
        self.full_at[slot] = 0;
    }

    /// Returns the slot of an address. A host has a whole /64 of IPv6, so that counts as one
    /// address.
    fn slot(&self, address: ClientAddress) -> usize {
        let key = match address.0.map(|address| address.to_canonical()) {
            None => (0_u8, 0),
            Some(IpAddr::V4(address)) => (4, u64::from(address.to_bits())),
            Some(IpAddr::V6(address)) => (6, (address.to_bits() >> 64) as u64),
        };
        self.hasher.hash_one(key) as usize % SLOTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> ClientAddress {
        ClientAddress(Some(text.parse().expect("an address")))
    }

    /// A bucket holds 20 tokens and gets 5 in a second.
    #[test]
    fn bucket_refills_with_time() {
        let (mut throttle, one) = (AddressThrottle::new(), address("192.0.2.1"));
        let mut attempts_at = |now| {
            let mut count = 0;
            while throttle.has_token(one, now) {
                throttle.on_failure(one, now);
                count += 1;
            }
            count
        };
        let found = [0, 0, 199, 200, 1200, 1399, 100_000, 100_001].map(&mut attempts_at);
        assert_eq!(found, [20, 0, 0, 1, 5, 0, 20, 0]);
        throttle.on_success(one);
        assert!(throttle.has_token(one, 100_001));
    }

    /// The addresses of a /64 are one, and so are both forms of an IPv4 address.
    #[test]
    fn addresses_of_one_host_share_bucket() {
        let throttle = AddressThrottle::new();
        let slot = |text: &str| throttle.slot(address(text));
        assert_eq!(slot("2001:db8::1"), slot("2001:db8::ffff:ffff:ffff:ffff"));
        assert_eq!(slot("192.0.2.1"), slot("::ffff:192.0.2.1"));
        let slots: std::collections::BTreeSet<usize> = (0..200).map(|last| slot(&format!("192.0.2.{last}"))).collect();
        assert!(slots.len() > 150, "{} slots of 200 addresses", slots.len());
    }
}
