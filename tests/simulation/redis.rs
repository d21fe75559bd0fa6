//! Model of Redis: a few keys, with every version that each of them ever had.

use crate::random::Random;
use crate::world::Moment;
use segment_redis_proxy::types::Millis;

/// Number of keys.
pub const KEYS: usize = 6;

/// State of a key between two changes.
#[derive(Clone, Debug)]
pub struct Version {
    /// `None` if the key was missing.
    pub value: Option<String>,
    /// Moments of the changes that started and ended this version.
    pub from: Moment,
    pub until: Moment,
    /// Time at which Redis expires the key.
    pub expires: Millis,
    /// Latest expiry of a newer version that a read combined with this value; 0 for none.
    pub newer_expires: Millis,
}

/// Redis with the history of all keys.
pub struct Redis {
    pub keys: [Vec<Version>; KEYS],
}

impl Redis {
    pub fn new() -> Redis {
        let missing = Version { value: None, from: 0, until: Moment::MAX, expires: Millis::MAX, newer_expires: 0 };
        Redis { keys: std::array::from_fn(|_| vec![missing.clone()]) }
    }

    /// Returns the current version of a key, with its number.
    pub fn current(&self, key: usize) -> (usize, &Version) {
        let versions = &self.keys[key];
        (versions.len() - 1, &versions[versions.len() - 1])
    }

    fn replace(&mut self, key: usize, value: Option<String>, expires: Millis, moment: Moment) {
        let versions = &mut self.keys[key];
        if let Some(last) = versions.last_mut() {
            last.until = moment;
        }
        versions.push(Version { value, from: moment, until: Moment::MAX, expires, newer_expires: 0 });
    }

    /// Writes a value with a time to live or without. Only empty values occur more than once.
    pub fn write(&mut self, key: usize, now: Millis, moment: Moment, random: &mut Random) {
        let expires = if random.percent(40) { now + random.between(1, 400) } else { Millis::MAX };
        let padding = random.one_of(&[0, 0, 0, 30, 30, 200, 1500, 20_000]);
        let name = format!("k{key}v{}.", self.keys[key].len());
        let value = if random.percent(15) { String::new() } else { name + &"x".repeat(padding) };
        self.replace(key, Some(value), expires, moment);
    }

    pub fn delete(&mut self, key: usize, moment: Moment) {
        self.replace(key, None, Millis::MAX, moment);
    }

    /// Deletes the keys that have expired and returns them.
    pub fn expire(&mut self, now: Millis, moment: Moment) -> Vec<usize> {
        let expired: Vec<usize> = (0..KEYS).filter(|&key| self.current(key).1.expires <= now).collect();
        expired.iter().for_each(|&key| self.delete(key, moment));
        expired
    }

    /// Returns the time of the next expiry.
    pub fn next_expiry(&self) -> Option<Millis> {
        (0..KEYS).map(|key| self.current(key).1.expires).filter(|&expires| expires != Millis::MAX).min()
    }

    /// Returns the reply to `PTTL`.
    pub fn ttl(&self, key: usize, now: Millis) -> i64 {
        match self.current(key).1 {
            Version { value: None, .. } => -2,
            Version { expires: Millis::MAX, .. } => -1,
            version => (version.expires - now) as i64,
        }
    }

    /// Returns the key and the version number that a value names.
    pub fn identify(&self, value: &str) -> Option<(usize, usize)> {
        let (key, version) = value.strip_prefix('k')?.split_once('.')?.0.split_once('v')?;
        let (key, version): (usize, usize) = (key.parse().ok()?, version.parse().ok()?);
        let is_whole = self.keys.get(key)?.get(version)?.value.as_deref() == Some(value);
        is_whole.then_some((key, version))
    }
}
