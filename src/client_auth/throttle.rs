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

/// Longest time until a bucket is full. Trusted connections take tokens from an empty
/// one, each once. So after a password was removed, many of them delay new connections no longer
/// than this.
const MAX_REFILL_TIME: Millis = 60_000;

/// Number of token buckets. Addresses with the same hash share one, so the table stays small (24
/// KiB), and an attacker with many addresses gets no more than 1,024 times these attempts.
const SLOTS: usize = 1024;

/// Table of token buckets: direct-mapped, with a random hash that no client can predict.
#[derive(Debug)]
pub(super) struct AddressThrottle {
    hasher: RandomState,
    slots: Vec<Slot>,
}

/// Token bucket of all addresses with the same slot.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Time at which the bucket is full. Each wrong password moves it.
    full_at: Millis,
    /// Hash of the address that sent the last wrong password.
    failing: u64,
    /// Hash of the address that sent the last right password.
    succeeding: u64,
}

impl AddressThrottle {
    pub(super) fn new() -> AddressThrottle {
        AddressThrottle { hasher: RandomState::new(), slots: vec![Slot::default(); SLOTS] }
    }

    /// Returns true if a password of this address may be checked. An empty bucket does not stop an
    /// address that sent a right password, unless the wrong ones come from there too.
    pub(super) fn has_token(&self, address: ClientAddress, now: Millis) -> bool {
        let hash = self.hash(address);
        let slot = &self.slots[slot_of(hash)];
        let is_empty = slot.full_at.saturating_sub(now) > (BURST - 1) * REFILL_INTERVAL;
        !is_empty || (slot.succeeding == hash && slot.failing != hash)
    }

    /// Takes a token, because a password was wrong.
    pub(super) fn on_failure(&mut self, address: ClientAddress, now: Millis) {
        let hash = self.hash(address);
        let slot = &mut self.slots[slot_of(hash)];
        slot.full_at = (slot.full_at.max(now) + REFILL_INTERVAL).min(now + MAX_REFILL_TIME);
        slot.failing = hash;
    }

    /// Remembers that a password was right. Gives back no token: else an attacker behind the
    /// address of a busy client would get one for each success.
    pub(super) fn on_success(&mut self, address: ClientAddress) {
        let hash = self.hash(address);
        self.slots[slot_of(hash)].succeeding = hash;
    }

    /// Returns the hash of an address. A host has a whole /64 of IPv6, so that counts as one
    /// address.
    fn hash(&self, address: ClientAddress) -> u64 {
        let key = match address.0.map(|address| address.to_canonical()) {
            None => (0_u8, 0),
            Some(IpAddr::V4(address)) => (4, u64::from(address.to_bits())),
            Some(IpAddr::V6(address)) => (6, (address.to_bits() >> 64) as u64),
        };
        self.hasher.hash_one(key)
    }
}

fn slot_of(hash: u64) -> usize {
    hash as usize % SLOTS
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
        assert!(!throttle.has_token(one, 100_001));
    }

    /// The addresses of a /64 are one, and so are both forms of an IPv4 address.
    #[test]
    fn addresses_of_one_host_share_bucket() {
        let throttle = AddressThrottle::new();
        let slot = |text: &str| slot_of(throttle.hash(address(text)));
        assert_eq!(slot("2001:db8::1"), slot("2001:db8::ffff:ffff:ffff:ffff"));
        assert_eq!(slot("192.0.2.1"), slot("::ffff:192.0.2.1"));
        let slots: std::collections::BTreeSet<usize> = (0..200).map(|last| slot(&format!("192.0.2.{last}"))).collect();
        assert!(slots.len() > 150, "{} slots of 200 addresses", slots.len());
    }

    /// Addresses with one slot share its tokens. Yet a client with the right password neither is
    /// stopped by the guesses of another address, nor gives it tokens.
    #[test]
    fn right_password_keeps_addresses_apart() {
        let mut throttle = AddressThrottle::new();
        let attacker = address("192.0.2.1");
        let slot = slot_of(throttle.hash(attacker));
        let mut others = (0..).map(|bits: u32| ClientAddress(Some(IpAddr::from(bits.to_be_bytes()))));
        let mut next = || others.find(|&other| slot_of(throttle.hash(other)) == slot).expect("an address");
        let (client, accomplice) = (next(), next());
        throttle.on_success(client);
        for _ in 0..BURST {
            assert!(throttle.has_token(attacker, 0));
            throttle.on_failure(attacker, 0);
        }
        assert!(!throttle.has_token(attacker, 0) && !throttle.has_token(accomplice, 0));
        assert!(throttle.has_token(client, 0));
        throttle.on_success(client);
        assert!(!throttle.has_token(attacker, 0) && throttle.has_token(client, 0));
        // The wrong passwords of the client's own address do stop it.
        throttle.on_failure(client, 0);
        assert!(!throttle.has_token(client, 0));
    }
}
