//! Keys of the simulation, and every version that each of them ever had.

use crate::random::Random;
use crate::world::Moment;
use segment_redis_proxy::types::Millis;

/// Number of keys.
pub const KEYS: usize = 6;

/// Names of the keys. The last two have hash tags, and share the hash slots of the first two.
pub const NAMES: [&str; KEYS] = ["k0", "k1", "k2", "k3", "k4{k0}", "k5{k1}"];

/// State of a key between two changes.
#[derive(Clone, Debug)]
pub struct Version {
    /// `None` if the key was missing.
    pub value: Option<String>,
    /// Moment of the change that started this version.
    pub from: Moment,
    /// Moment at which the owner of the key had another version.
    pub dropped: Moment,
    /// Moment at which no node replied with this version any more. Later than `dropped` if a node
    /// did not know yet that it had lost the key.
    pub until: Moment,
    /// Time at which Redis expires the key.
    pub expires: Millis,
    /// Latest expiry of a newer version that a read combined with this value; 0 for none.
    pub newer_expires: Millis,
    /// Version before this one at the same node.
    pub before: Option<usize>,
}

/// History of all keys.
pub struct Versions {
    pub keys: [Vec<Version>; KEYS],
}

impl Versions {
    /// Creates the history of keys that have always been missing, as version 0.
    pub fn new() -> Versions {
        let missing = Version {
            value: None,
            from: 0,
            dropped: Moment::MAX,
            until: Moment::MAX,
            expires: Millis::MAX,
            newer_expires: 0,
            before: None,
        };
        Versions { keys: std::array::from_fn(|_| vec![missing.clone()]) }
    }

    /// Adds a version that starts now, and returns its number.
    pub fn push(
        &mut self,
        key: usize,
        (value, expires): (Option<String>, Millis),
        before: Option<usize>,
        from: Moment,
    ) -> usize {
        let (dropped, until) = (Moment::MAX, Moment::MAX);
        self.keys[key].push(Version { value, from, dropped, until, expires, newer_expires: 0, before });
        self.keys[key].len() - 1
    }

    /// Returns a value with its expiry, for the next version of a key. Only empty values occur more
    /// than once.
    pub fn random_value(&self, key: usize, now: Millis, random: &mut Random) -> (Option<String>, Millis) {
        let expires = if random.percent(40) { now + random.between(1, 400) } else { Millis::MAX };
        let padding = random.one_of(&[0, 0, 0, 30, 30, 200, 1500, 20_000]);
        let name = format!("k{key}v{}.", self.keys[key].len());
        let value = if random.percent(15) { String::new() } else { name + &"x".repeat(padding) };
        (Some(value), expires)
    }

    /// Returns the value and the expiry of a version, for another version with the same value.
    pub fn value_of(&self, key: usize, number: usize) -> (Option<String>, Millis) {
        let Version { value, expires, .. } = &self.keys[key][number];
        (value.clone(), *expires)
    }

    /// Returns the reply to `PTTL` for a version.
    pub fn ttl(&self, key: usize, number: usize, now: Millis) -> i64 {
        match self.keys[key][number] {
            Version { value: None, .. } => -2,
            Version { expires: Millis::MAX, .. } => -1,
            Version { expires, .. } => (expires - now) as i64,
        }
    }

    /// Records that a read combined an older value with the lifetime of a newer version. The proxy
    /// may serve the value for as long as the newer version.
    pub fn extend_expiry(&mut self, key: usize, number: usize, newer: usize) {
        let versions = &mut self.keys[key];
        versions[number].newer_expires = versions[number].newer_expires.max(versions[newer].expires);
    }

    /// Returns the key and the version number that a value names.
    pub fn identify(&self, value: &str) -> Option<(usize, usize)> {
        let (key, version) = value.strip_prefix('k')?.split_once('.')?.0.split_once('v')?;
        let (key, version): (usize, usize) = (key.parse().ok()?, version.parse().ok()?);
        let is_whole = self.keys.get(key)?.get(version)?.value.as_deref() == Some(value);
        is_whole.then_some((key, version))
    }
}
