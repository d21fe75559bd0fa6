//! A model Redis: a few keys, and everything that each of them ever held.

use crate::random::Random;
use crate::world::Moment;
use segment_redis_proxy::types::Millis;

/// Keys there are.
pub const KEYS: usize = 6;

/// What a key held for a while.
#[derive(Clone, Debug)]
pub struct Version {
    /// `None`: there was no such key.
    pub value: Option<String>,
    /// The moment that brought it, and the one that ended it: see [`crate::world::Moment`].
    pub from: Moment,
    pub until: Moment,
    /// When Redis will let it expire.
    pub expires: Millis,
    /// The latest expiry of a newer version that a read has taken for this one's; 0 for none.
    pub lent: Millis,
}

/// See the top of the file.
pub struct Redis {
    pub keys: [Vec<Version>; KEYS],
}

impl Redis {
    pub fn new() -> Redis {
        let nothing = Version { value: None, from: 0, until: Moment::MAX, expires: Millis::MAX, lent: 0 };
        Redis { keys: std::array::from_fn(|_| vec![nothing.clone()]) }
    }

    /// What `key` holds at present.
    pub fn current(&self, key: usize) -> (usize, &Version) {
        let versions = &self.keys[key];
        (versions.len() - 1, &versions[versions.len() - 1])
    }

    fn replace(&mut self, key: usize, value: Option<String>, expires: Millis, moment: Moment) {
        let versions = &mut self.keys[key];
        if let Some(last) = versions.last_mut() {
            last.until = moment;
        }
        versions.push(Version { value, from: moment, until: Moment::MAX, expires, lent: 0 });
    }

    /// Writes something that was never there before, perhaps with a time to live.
    pub fn write(&mut self, key: usize, now: Millis, moment: Moment, random: &mut Random) {
        let expires = if random.percent(40) { now + random.between(1, 400) } else { Millis::MAX };
        let filler = random.one_of(&[0, 0, 0, 30, 30, 200, 1500, 20_000]);
        let name = format!("k{key}v{}.", self.keys[key].len());
        let value = if random.percent(15) { String::new() } else { name + &"x".repeat(filler) };
        self.replace(key, Some(value), expires, moment);
    }

    pub fn delete(&mut self, key: usize, moment: Moment) {
        self.replace(key, None, Millis::MAX, moment);
    }

    /// Lets keys expire whose time has come. Says which.
    pub fn expire(&mut self, now: Millis, moment: Moment) -> Vec<usize> {
        let due: Vec<usize> = (0..KEYS).filter(|&key| self.current(key).1.expires <= now).collect();
        due.iter().for_each(|&key| self.delete(key, moment));
        due
    }

    /// When the next key expires.
    pub fn next_expiry(&self) -> Option<Millis> {
        (0..KEYS).map(|key| self.current(key).1.expires).filter(|&expires| expires != Millis::MAX).min()
    }

    /// Replies to `PTTL`.
    pub fn ttl(&self, key: usize, now: Millis) -> i64 {
        match self.current(key).1 {
            Version { value: None, .. } => -2,
            Version { expires: Millis::MAX, .. } => -1,
            version => (version.expires - now) as i64,
        }
    }

    /// Which version of which key a value is.
    pub fn identify(&self, value: &str) -> Option<(usize, usize)> {
        let (key, version) = value.strip_prefix('k')?.split_once('.')?.0.split_once('v')?;
        let (key, version): (usize, usize) = (key.parse().ok()?, version.parse().ok()?);
        let whole = self.keys.get(key)?.get(version)?.value.as_deref() == Some(value);
        whole.then_some((key, version))
    }
}
