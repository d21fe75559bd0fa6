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

/// Longest time until a bucket is full. Trusted connections take tokens from an empty one, each
/// once. So after a password was removed, many of them delay new connections no longer than this.
const MAX_REFILL_TIME: Millis = 60_000;

/// Number of sets, each in 72 bytes, so a table has 288 KiB. With wrong passwords from 4,000
/// addresses, 2 % of the sets have no bucket left for a new one.
const SETS: usize = 4096;

/// Buckets of a set: their hashes and times are one line of the processor's cache.
const WAYS: usize = 4;

/// Table of token buckets: set-associative, with a random hash that no client can predict.
///
/// An address without a bucket takes over the fullest one of its set, with the tokens that are
/// left. So an attacker with any number of addresses gets the tokens of 16,384 buckets at most.
#[derive(Debug)]
pub(super) struct AddressThrottle {
    hasher: RandomState,
    sets: Vec<Set>,
}

/// Buckets of all addresses with the same set.
#[derive(Clone, Copy, Debug, Default)]
struct Set {
    buckets: [Bucket; WAYS],
    /// Hash of the last address without a bucket that sent a right password.
    succeeding: u64,
}

/// Token bucket of one address.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// Hash of the address; 0 before the first.
    hash: u64,
    /// Time at which the bucket is full. Each wrong password moves it.
    full_at: Millis,
}

impl AddressThrottle {
    pub(super) fn new() -> AddressThrottle {
        AddressThrottle { hasher: RandomState::new(), sets: vec![Set::default(); SETS] }
    }

    /// Returns true if a password of this address may be checked. An address that sent a right
    /// password, and no wrong one since, needs no token of a bucket that it would take over.
    pub(super) fn has_token(&self, address: ClientAddress, now: Millis) -> bool {
        let hash = self.hash(address);
        let set = &self.sets[set_of(hash)];
        let bucket = set.buckets[set.bucket_for(hash)];
        let is_empty = bucket.full_at.saturating_sub(now) > (BURST - 1) * REFILL_INTERVAL;
        !is_empty || (bucket.hash != hash && set.succeeding == hash)
    }

    /// Takes a token, because a password was wrong.
    pub(super) fn on_failure(&mut self, address: ClientAddress, now: Millis) {
        let hash = self.hash(address);
        let set = &mut self.sets[set_of(hash)];
        let bucket = &mut set.buckets[set.bucket_for(hash)];
        bucket.hash = hash;
        bucket.full_at = (bucket.full_at.max(now) + REFILL_INTERVAL).min(now + MAX_REFILL_TIME);
        if set.succeeding == hash {
            set.succeeding = 0;
        }
    }

    /// Remembers that a password was right. Gives back no token: else an attacker behind the
    /// address of a busy client would get one for each success.
    pub(super) fn on_success(&mut self, address: ClientAddress) {
        let hash = self.hash(address);
        let set = &mut self.sets[set_of(hash)];
        if set.buckets[set.bucket_for(hash)].hash != hash {
            set.succeeding = hash;
        }
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

impl Set {
    /// Returns the index of the bucket of an address, or of the fullest one, which it takes over.
    fn bucket_for(&self, hash: u64) -> usize {
        let mut fullest = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            if bucket.hash == hash {
                return index;
            }
            if bucket.full_at < self.buckets[fullest].full_at {
                fullest = index;
            }
        }
        fullest
    }
}

fn set_of(hash: u64) -> usize {
    hash as usize % SETS
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn address(text: &str) -> ClientAddress {
        ClientAddress(Some(text.parse().expect("an address")))
    }

    /// Returns the address of a number.
    fn numbered(bits: u32) -> ClientAddress {
        ClientAddress(Some(IpAddr::from(bits.to_be_bytes())))
    }

    /// Sends a wrong password. Returns true if it was checked.
    fn guess(throttle: &mut AddressThrottle, from: ClientAddress, now: Millis) -> bool {
        let is_checked = throttle.has_token(from, now);
        if is_checked {
            throttle.on_failure(from, now);
        }
        is_checked
    }

    /// Returns addresses with the same set.
    fn addresses_of_one_set(throttle: &AddressThrottle) -> impl Iterator<Item = ClientAddress> + use<> {
        let hasher = AddressThrottle { hasher: throttle.hasher.clone(), sets: Vec::new() };
        (0..).map(numbered).filter(move |&address| set_of(hasher.hash(address)) == 7)
    }

    /// A bucket holds 20 tokens and gets 5 in a second.
    #[test]
    fn bucket_refills_with_time() {
        let (mut throttle, one) = (AddressThrottle::new(), address("192.0.2.1"));
        let mut attempts_at = |now| (0..).take_while(|_: &u32| guess(&mut throttle, one, now)).count();
        let found = [0, 0, 199, 200, 1200, 1399, 100_000, 100_001].map(&mut attempts_at);
        assert_eq!(found, [20, 0, 0, 1, 5, 0, 20, 0]);
        throttle.on_success(one);
        assert!(!throttle.has_token(one, 100_001));
    }

    /// Trusted connections overdraw a bucket, by a minute at most.
    #[test]
    fn overdrawn_bucket_recovers_in_minute() {
        let (mut throttle, one) = (AddressThrottle::new(), address("192.0.2.1"));
        (0..100_000).for_each(|_| throttle.on_failure(one, 0));
        let first = (0..).find(|&now| throttle.has_token(one, now));
        assert_eq!(first, Some(MAX_REFILL_TIME - (BURST - 1) * REFILL_INTERVAL));
    }

    /// The addresses of a /64 are one, and so are both forms of an IPv4 address.
    #[test]
    fn addresses_of_one_host_share_bucket() {
        let throttle = AddressThrottle::new();
        let hash = |text: &str| throttle.hash(address(text));
        assert_eq!(hash("2001:db8::1"), hash("2001:db8::ffff:ffff:ffff:ffff"));
        assert_ne!(hash("2001:db8::1"), hash("2001:db8:0:1::1"));
        assert_eq!(hash("192.0.2.1"), hash("::ffff:192.0.2.1"));
        let sets: BTreeSet<usize> = (0..200).map(|last| set_of(hash(&format!("192.0.2.{last}")))).collect();
        assert!(sets.len() > 150, "{} sets of 200 addresses", sets.len());
    }

    /// Up to four addresses with wrong passwords in a set have buckets of their own, beside others
    /// with right ones.
    #[test]
    fn addresses_of_set_match_model() {
        let mut throttle = AddressThrottle::new();
        let addresses: Vec<ClientAddress> = addresses_of_one_set(&throttle).take(8).collect();
        let mut model: BTreeMap<usize, Millis> = BTreeMap::new();
        let (mut random, mut now, mut checked) = (1_u64, 0, 0);
        for _ in 0..100_000 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            now += (random >> 33) % 60;
            let index = (random >> 60) as usize % addresses.len();
            let from = addresses[index];
            let expected = model.get(&index).is_none_or(|&full_at| full_at.saturating_sub(now) <= 19 * 200);
            assert_eq!(throttle.has_token(from, now), expected, "address {index} at {now}");
            if expected && index < WAYS {
                throttle.on_failure(from, now);
                model.entry(index).and_modify(|full_at| *full_at = (*full_at).max(now) + 200).or_insert(now + 200);
                checked += 1;
            } else if index >= WAYS {
                throttle.on_success(from);
            }
        }
        assert!((WAYS as u64 * 20..WAYS as u64 * (20 + now / 200)).contains(&checked), "{checked} in {now} ms");
    }

    /// A crowd of addresses in one set gets the tokens of its buckets and no more, however the
    /// addresses take turns. An address that sent a right password goes on meanwhile, and its own
    /// first wrong one ends that.
    #[test]
    fn crowd_gets_tokens_of_set() {
        let mut throttle = AddressThrottle::new();
        let mut addresses = addresses_of_one_set(&throttle);
        let client = addresses.next().expect("an address");
        let crowd: Vec<ClientAddress> = addresses.take(40).collect();
        throttle.on_success(client);
        let mut checked = 0;
        for now in 0..10_000 {
            for at in 0..3 {
                let from = crowd[(now as usize * 7 + at * 13) % crowd.len()];
                checked += usize::from(guess(&mut throttle, from, now));
            }
            assert!(throttle.has_token(client, now), "at {now}");
        }
        // 20 at once and 5 in a second, for each of four buckets.
        let limit = WAYS * (20 + 49);
        assert!((limit * 9 / 10..=limit).contains(&checked), "{checked} of {limit}");
        throttle.on_failure(client, 10_000);
        assert!(!throttle.has_token(client, 10_000));
    }

    /// While 4,000 addresses send wrong passwords as fast as they can, nearly all addresses that
    /// were never seen are admitted.
    #[test]
    fn new_addresses_pass_beside_many() {
        let mut throttle = AddressThrottle::new();
        for now in 0..100 {
            (0..4000).for_each(|attacker| _ = guess(&mut throttle, numbered(0x7f00_0000 + attacker), now));
        }
        let admitted = (0..2000).filter(|&new| throttle.has_token(numbered(0x0a00_0000 + new), 100)).count();
        assert!(admitted > 1900, "{admitted} of 2,000");
    }
}
