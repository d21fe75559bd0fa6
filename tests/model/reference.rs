//! A cache so simple that it is right by inspection, and the real one beside it: each operation is done to both, each answer
//! compared, every link checked after each. `tests/model/cache_model.rs` chooses the operations at random, the fuzzer by what
//! they reach.

use segment_redis_proxy::cache::{Cache, Limits};
use segment_redis_proxy::types::Millis;
use segment_redis_proxy::value::{JsonForm, Payload, PinCount, SHARED_VALUE_BYTES, Value};
use std::fmt::Debug;
use std::sync::Arc;

/// Value, time left, time since it expired.
type Found = (Vec<u8>, Millis, Millis);

/// Keys and values in order of use, the most recent last.
struct Model {
    limits: Limits,
    entries: Vec<Entry>,
    /// Whether entries may be left that have all expired at once.
    outdated: bool,
}

struct Entry {
    key: Vec<u8>,
    value: Vec<u8>,
    fresh_until: Millis,
    kept_until: Millis,
}

impl Model {
    fn place(&self, key: &[u8]) -> Option<usize> {
        self.entries.iter().position(|entry| entry.key == key)
    }

    fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.key.len() + entry.value.len()).sum()
    }

    /// Leaves the entry where it is, unless its time is over.
    fn peek(&mut self, key: &[u8], now: Millis) -> Option<Found> {
        let place = self.place(key)?;
        let Entry { fresh_until, kept_until, .. } = self.entries[place];
        if kept_until <= now {
            self.entries.remove(place);
            return None;
        }
        if fresh_until <= now && now >= fresh_until + self.limits.stale {
            return None;
        }
        let value = self.entries[place].value.clone();
        Some((value, fresh_until.saturating_sub(now), now.saturating_sub(fresh_until)))
    }

    fn kept(&mut self, key: &[u8], now: Millis) -> Option<Found> {
        let found = self.peek(key, now)?;
        let entry = self.place(key).map(|place| self.entries.remove(place))?;
        self.entries.push(entry);
        Some(found)
    }

    /// Evicts a first-in-line at a time, 64 at most for the bytes; what is too much then, the sweep evicts.
    fn insert(&mut self, key: &[u8], value: &[u8], deadline: Millis, ends: Millis) -> bool {
        self.remove(key);
        let Limits { entries, bytes, stale } = self.limits;
        let size = key.len() + value.len();
        if size > bytes {
            return false;
        }
        if self.entries.len() == entries {
            self.entries.remove(0);
        }
        self.evict(64, bytes - size);
        if self.bytes() > bytes {
            return false;
        }
        // All of the time, or half of it, a quarter, ... 15 steps down to nothing.
        let grace = (0..15).map(|halvings| stale >> halvings).find(|&grace| grace <= ends - deadline).unwrap_or(0);
        let kept_until = deadline + grace;
        self.entries.push(Entry { key: key.into(), value: value.into(), fresh_until: deadline, kept_until });
        true
    }

    fn evict(&mut self, most: usize, bytes: usize) {
        for _ in 0..most {
            if self.bytes() > bytes {
                self.entries.remove(0);
            }
        }
    }

    fn remove(&mut self, key: &[u8]) -> bool {
        self.place(key).map(|place| self.entries.remove(place)).is_some()
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.outdated = false;
    }

    fn expire_all(&mut self, now: Millis) {
        if self.limits.stale == 0 || self.outdated {
            return self.clear();
        }
        self.entries.iter_mut().for_each(|entry| entry.fresh_until = entry.fresh_until.min(now));
        self.outdated = true;
    }

    /// Removes all that need not be kept. Which of several goes first is left open: sweeps have a budget for all.
    fn sweep(&mut self, now: Millis) {
        self.evict(self.entries.len(), self.limits.bytes);
        self.entries.retain(|entry| entry.kept_until > now);
    }
}

/// What is done to both. Keys and values are numbers here: see [`key_of`] and [`value_of`].
#[derive(Clone, Debug)]
pub enum Operation {
    Get(u8),
    Peek(u8),
    Kept(u8),
    /// Key, value, time to live, and how much longer Redis keeps it.
    Insert(u8, u16, Millis, Millis),
    Remove(u8),
    Clear,
    ExpireAll,
    Sweep,
    Wait(Millis),
}
/// Both, and the time.
pub struct Pair {
    limits: Limits,
    cache: Cache,
    model: Model,
    now: Millis,
}

impl Pair {
    /// Both empty.
    pub fn new(limits: Limits) -> Pair {
        let model = Model { limits, entries: Vec::new(), outdated: false };
        Pair { limits, cache: Cache::new(limits), model, now: 0 }
    }

    /// Does it to both; says in what they differ.
    pub fn apply(&mut self, operation: &Operation) -> Result<(), String> {
        let Pair { cache, model, now, .. } = self;
        let now = *now;
        match *operation {
            Operation::Get(key) => {
                let found = cache.get(&key_of(key), now).map(|hit| (digest_of(hit.payload), hit.ttl));
                agree(found, fresh(model.kept(&key_of(key), now)))?;
            }
            Operation::Peek(key) => {
                let found = cache.peek(&key_of(key), now).map(|hit| (digest_of(hit.payload), hit.ttl));
                agree(found, fresh(model.peek(&key_of(key), now)))?;
            }
            Operation::Kept(key) => {
                let found = cache.get_allow_stale(&key_of(key), now);
                let found = found.map(|kept| (digest_of(kept.payload), kept.ttl, kept.expired_for));
                let kept = model.kept(&key_of(key), now);
                agree(found, kept.map(|(value, left, ago)| (expected(&value), left, ago)))?;
            }
            Operation::Insert(key, value, ttl, longer) => {
                let (key, value, deadline, ends) = (key_of(key), value_of(value), now + ttl, now + ttl + longer);
                let stored = model.insert(&key, &value, deadline, ends);
                agree(insert_until(cache, &key, value, deadline, ends), stored)?;
            }
            Operation::Remove(key) => agree(cache.remove(&key_of(key)), model.remove(&key_of(key)))?,
            Operation::Clear => {
                cache.clear();
                model.clear();
            }
            Operation::ExpireAll => {
                cache.expire_all(now);
                model.expire_all(now);
            }
            Operation::Sweep => {
                cache.sweep(now, usize::MAX / 1024);
                model.sweep(now);
            }
            Operation::Wait(time) => self.now += time,
        }
        self.compare()
    }

    /// What must hold between any two operations.
    fn compare(&self) -> Result<(), String> {
        let Pair { limits, cache, model, .. } = self;
        agree((cache.len(), cache.bytes()), (model.entries.len(), model.bytes()))?;
        if cache.bytes() > limits.bytes.saturating_add(LONGEST) {
            return Err("far beyond the limit of bytes".into());
        }
        agree(cache.next_deadline(), model.entries.iter().map(|entry| entry.kept_until).min())?;
        cache.validate()
    }
}

fn agree<T: PartialEq + Debug>(found: T, expected: T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("the cache has {found:?}, the model {expected:?}")) }
}

/// What is found of an entry that has not expired.
fn fresh(found: Option<Found>) -> Option<(Digest, Millis)> {
    found.filter(|&(_, left, _)| left > 0).map(|(value, left, _)| (expected(&value), left))
}

/// Long keys for some numbers, an empty one for 0: lengths on both sides of a byte.
fn key_of(number: u8) -> Vec<u8> {
    vec![number; usize::from(number) * if number.is_multiple_of(5) { 3 } else { 1 }]
}

/// One value in eight is long enough to be shared.
fn value_of(number: u16) -> Vec<u8> {
    let length = if number.is_multiple_of(8) { SHARED_VALUE_BYTES + 1 } else { usize::from(number % 100) };
    vec![number as u8; length]
}
/// Stores as the proxy does: long values shared, short ones copied.
pub fn insert_until(cache: &mut Cache, key: &[u8], bytes: Vec<u8>, deadline: Millis, ends: Millis) -> bool {
    let form = form_of(&bytes);
    if bytes.len() > SHARED_VALUE_BYTES {
        // `Value::new` would look at every byte, of which the fuzzer takes note.
        let value = Arc::new(Value { escaped_bytes: bytes.len(), form, bytes, pins: PinCount::default() });
        cache.insert(key, Payload::Shared(&value), deadline, ends)
    } else {
        cache.insert(key, Payload::Inline { bytes: &bytes, form }, deadline, ends)
    }
}

/// Values are one byte repeated, or short: the beginning has the form of the whole.
fn form_of(value: &[u8]) -> JsonForm {
    JsonForm::of(&value[..value.len().min(DIGEST_BYTES)])
}

/// Key and value of the longest entry.
const LONGEST: usize = 3 * 255 + SHARED_VALUE_BYTES + 1;

/// Bytes of a value that are compared.
const DIGEST_BYTES: usize = 100;

type Digest = (usize, Vec<u8>, JsonForm);

/// A value for comparison: short ones whole, of long ones, which are of one byte repeated, their length.
fn digest(value: &[u8], form: JsonForm) -> Digest {
    (value.len(), value.iter().copied().take(DIGEST_BYTES).collect(), form)
}

fn digest_of(payload: Payload<'_>) -> Digest {
    let (bytes, form) = bytes_of(payload);
    digest(&bytes, form)
}

fn expected(value: &[u8]) -> Digest {
    digest(value, form_of(value))
}

pub fn bytes_of(payload: Payload<'_>) -> (Vec<u8>, JsonForm) {
    match payload {
        Payload::Inline { bytes, form } => (bytes.to_vec(), form),
        Payload::Shared(value) => (value.bytes.clone(), value.form),
    }
}
