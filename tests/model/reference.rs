//! Model of the cache, simple enough to be verified by reading, and a [`Pair`] of the model and the
//! real cache.
//!
//! A pair applies each operation to both, compares the results, and validates all links of the
//! cache. `tests/model/cache_model.rs` chooses random operations, `fuzz/checks/cache.rs` those of
//! the fuzzer.

use segment_redis_proxy::cache::{Cache, Limits};
use segment_redis_proxy::types::{MAX_UPCOMING_KEYS, Millis, UpcomingKeys};
use segment_redis_proxy::value::{JsonForm, Payload, PinCount, SHARED_VALUE_BYTES, Value};
use std::fmt::Debug;
use std::sync::Arc;

/// Value with its remaining lifetime and the time since it expired.
type Found = (Vec<u8>, Millis, Millis);

/// Entries in order of use, the most recently used last.
struct Model {
    limits: Limits,
    entries: Vec<Entry>,
    /// True if `expire_all` has left stale entries.
    has_expired_all: bool,
}

struct Entry {
    key: Vec<u8>,
    value: Vec<u8>,
    fresh_until: Millis,
    retained_until: Millis,
}

impl Model {
    fn position(&self, key: &[u8]) -> Option<usize> {
        self.entries.iter().position(|entry| entry.key == key)
    }

    fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.key.len() + entry.value.len()).sum()
    }

    /// Looks an entry up, without effect on the order of use. Removes it at the end of its grace.
    fn peek(&mut self, key: &[u8], now: Millis) -> Option<Found> {
        let position = self.position(key)?;
        let Entry { fresh_until, retained_until, .. } = self.entries[position];
        if retained_until <= now {
            self.entries.remove(position);
            return None;
        }
        if fresh_until <= now && now >= fresh_until + self.limits.stale {
            return None;
        }
        let value = self.entries[position].value.clone();
        Some((value, fresh_until.saturating_sub(now), now.saturating_sub(fresh_until)))
    }

    /// Looks an entry up, fresh or stale, and makes it the most recently used.
    fn get_allow_stale(&mut self, key: &[u8], now: Millis) -> Option<Found> {
        let found = self.peek(key, now)?;
        let entry = self.position(key).map(|position| self.entries.remove(position))?;
        self.entries.push(entry);
        Some(found)
    }

    /// Evicts the least recently used entries first, at most 64 for the limit of bytes, and returns
    /// true if the entry was stored. The sweep evicts the rest.
    fn insert(&mut self, key: &[u8], value: &[u8], deadline: Millis, redis_expiry: Millis) -> bool {
        self.remove(key);
        let Limits { entries, bytes, .. } = self.limits;
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
        let entry = self.entry_of(key, value, deadline, redis_expiry);
        self.entries.push(entry);
        true
    }

    /// Stores a value in the place of the entry that it replaces, or as the least recently used
    /// one. Returns false if it does not fit.
    fn insert_unused(&mut self, key: &[u8], value: &[u8], deadline: Millis, redis_expiry: Millis) -> bool {
        let position = self.position(key).unwrap_or(0);
        self.remove(key);
        let Limits { entries, bytes, .. } = self.limits;
        if self.entries.len() == entries || self.bytes().saturating_add(key.len() + value.len()) > bytes {
            return false;
        }
        let entry = self.entry_of(key, value, deadline, redis_expiry);
        self.entries.insert(position, entry);
        true
    }

    fn entry_of(&self, key: &[u8], value: &[u8], deadline: Millis, redis_expiry: Millis) -> Entry {
        // The grace is the longest of `stale`, its half, its quarter and so on (15 steps) that ends
        // before Redis lets the key expire, or zero.
        let (stale, left) = (self.limits.stale, redis_expiry - deadline);
        let grace = (0..15).map(|halvings| stale >> halvings).find(|&grace| grace <= left).unwrap_or(0);
        let retained_until = deadline + grace;
        Entry { key: key.into(), value: value.into(), fresh_until: deadline, retained_until }
    }

    /// Evicts up to `max_entries` entries, as long as there are more than `max_bytes`.
    fn evict(&mut self, max_entries: usize, max_bytes: usize) {
        for _ in 0..max_entries {
            if self.bytes() > max_bytes {
                self.entries.remove(0);
            }
        }
    }

    fn remove(&mut self, key: &[u8]) -> bool {
        self.position(key).map(|position| self.entries.remove(position)).is_some()
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.has_expired_all = false;
    }

    fn expire_all(&mut self, now: Millis) {
        if self.limits.stale == 0 || self.has_expired_all {
            return self.clear();
        }
        self.entries.iter_mut().for_each(|entry| entry.fresh_until = entry.fresh_until.min(now));
        self.has_expired_all = true;
    }

    /// Removes all entries at the end of their grace. Their order is not compared: a sweep of a
    /// pair has a budget for all of them.
    fn sweep(&mut self, now: Millis) {
        self.evict(self.entries.len(), self.limits.bytes);
        self.entries.retain(|entry| entry.retained_until > now);
    }
}

/// Operation on both. [`key_of`] and [`value_of`] turn the numbers into keys and values.
#[derive(Clone, Debug)]
pub enum Operation {
    Get(u8),
    Peek(u8),
    GetAllowStale(u8),
    /// Key, value, time to live, and the additional time that Redis keeps the key.
    Insert(u8, u16, Millis, Millis),
    /// The same, without a request for the key.
    InsertUnused(u8, u16, Millis, Millis),
    Remove(u8),
    Clear,
    ExpireAll,
    Sweep,
    Wait(Millis),
    /// First key and number of keys to look ahead for.
    LookAhead(u8, u8),
}

/// Keys of lookups, each at one of few addresses. The cache recognises a key by its address, and so
/// often has the hint of another key.
struct KeyBuffers(Vec<Vec<u8>>);

impl KeyBuffers {
    fn new() -> KeyBuffers {
        KeyBuffers((0..MAX_UPCOMING_KEYS).map(|_| Vec::with_capacity(MAX_KEY_BYTES)).collect())
    }

    /// Returns the key of a number, in the buffer that it shares with others.
    fn key_of(&mut self, number: u8) -> &[u8] {
        let buffer = &mut self.0[usize::from(number) % MAX_UPCOMING_KEYS];
        buffer.clear();
        buffer.extend_from_slice(&key_of(number));
        buffer
    }
}

/// Cache and model with the same contents, and the current time.
pub struct Pair {
    limits: Limits,
    cache: Cache,
    model: Model,
    now: Millis,
    keys: KeyBuffers,
}

impl Pair {
    /// Returns an empty pair.
    pub fn new(limits: Limits) -> Pair {
        let model = Model { limits, entries: Vec::new(), has_expired_all: false };
        Pair { limits, cache: Cache::new(limits), model, now: 0, keys: KeyBuffers::new() }
    }

    /// Applies an operation to both. Returns the difference as an error.
    pub fn apply(&mut self, operation: &Operation) -> Result<(), String> {
        let Pair { cache, model, now, keys, .. } = self;
        let now = *now;
        match *operation {
            Operation::Get(key) => {
                let found = cache.get(keys.key_of(key), now).map(|hit| (digest_of(hit.payload), hit.ttl));
                expect_equal(found, fresh(model.get_allow_stale(&key_of(key), now)))?;
            }
            Operation::Peek(key) => {
                let found = cache.peek(keys.key_of(key), now).map(|hit| (digest_of(hit.payload), hit.ttl));
                expect_equal(found, fresh(model.peek(&key_of(key), now)))?;
            }
            Operation::GetAllowStale(key) => {
                let found = cache.get_allow_stale(keys.key_of(key), now);
                let found = found.map(|entry| (digest_of(entry.payload), entry.ttl, entry.expired_for));
                let expected = model.get_allow_stale(&key_of(key), now);
                expect_equal(found, expected.map(|(value, left, ago)| (digest_of_value(&value), left, ago)))?;
            }
            Operation::Insert(key, value, ttl, extra) => {
                let (key, value, deadline) = (key_of(key), value_of(value), now + ttl);
                let stored = model.insert(&key, &value, deadline, deadline + extra);
                expect_equal(insert_until(cache, &key, value, deadline, deadline + extra), stored)?;
            }
            Operation::InsertUnused(key, value, ttl, extra) => {
                let (key, value, deadline) = (key_of(key), value_of(value), now + ttl);
                let stored = model.insert_unused(&key, &value, deadline, deadline + extra);
                let insert = |payload: Payload<'_>| cache.insert_unused(&key, payload, deadline, deadline + extra);
                expect_equal(with_payload(value, insert), stored)?;
            }
            Operation::Remove(key) => expect_equal(cache.remove(&key_of(key)), model.remove(&key_of(key)))?,
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
            Operation::LookAhead(first, count) => {
                let numbers = || (0..count.min(MAX_UPCOMING_KEYS as u8)).map(|offset| first.wrapping_add(offset));
                numbers().for_each(|number| _ = keys.key_of(number));
                let mut upcoming = UpcomingKeys::new();
                numbers().for_each(|number| upcoming.push(&keys.0[usize::from(number) % MAX_UPCOMING_KEYS]));
                cache.look_ahead(&upcoming);
            }
        }
        self.compare()
    }

    /// Checks what holds between any two operations.
    fn compare(&self) -> Result<(), String> {
        let Pair { limits, cache, model, .. } = self;
        expect_equal((cache.len(), cache.bytes()), (model.entries.len(), model.bytes()))?;
        if cache.bytes() > limits.bytes.saturating_add(MAX_ENTRY_BYTES) {
            return Err("the cache exceeds its limit of bytes by more than an entry".into());
        }
        expect_equal(cache.next_deadline(), model.entries.iter().map(|entry| entry.retained_until).min())?;
        cache.validate()
    }
}

fn expect_equal<T: PartialEq + Debug>(found: T, expected: T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("the cache has {found:?}, the model {expected:?}")) }
}

/// Returns the digest of a fresh entry with its remaining lifetime, or `None` for a stale one.
fn fresh(found: Option<Found>) -> Option<(Digest, Millis)> {
    found.filter(|&(_, left, _)| left > 0).map(|(value, left, _)| (digest_of_value(&value), left))
}

/// Returns the key of a number: empty for 0, longer than 255 bytes for some others.
fn key_of(number: u8) -> Vec<u8> {
    vec![number; usize::from(number) * if number.is_multiple_of(5) { 3 } else { 1 }]
}

/// Returns the value of a number. One in eight is long enough to be shared.
fn value_of(number: u16) -> Vec<u8> {
    let length = if number.is_multiple_of(8) { SHARED_VALUE_BYTES + 1 } else { usize::from(number % 100) };
    vec![number as u8; length]
}

/// Inserts an entry as the proxy does.
pub fn insert_until(cache: &mut Cache, key: &[u8], bytes: Vec<u8>, deadline: Millis, redis_expiry: Millis) -> bool {
    with_payload(bytes, |payload| cache.insert(key, payload, deadline, redis_expiry))
}

/// Passes a value to `insert` as the proxy does: long ones are shared, short ones copied.
fn with_payload<T>(bytes: Vec<u8>, insert: impl FnOnce(Payload<'_>) -> T) -> T {
    let form = form_of(&bytes);
    if bytes.len() > SHARED_VALUE_BYTES {
        // `Value::new` visits every byte, and the fuzzer would record each visit.
        let value = Arc::new(Value { escaped_bytes: bytes.len(), form, digest: 0, bytes, pins: PinCount::default() });
        insert(Payload::Shared(&value))
    } else {
        insert(Payload::Inline { bytes: &bytes, form })
    }
}

/// Returns the form of a value from its first bytes: a long value repeats one byte.
fn form_of(value: &[u8]) -> JsonForm {
    JsonForm::of(&value[..value.len().min(DIGEST_BYTES)])
}

/// Bytes of the longest key.
const MAX_KEY_BYTES: usize = 3 * 255;

/// Bytes of the longest entry, its key included.
const MAX_ENTRY_BYTES: usize = MAX_KEY_BYTES + SHARED_VALUE_BYTES + 1;

/// Bytes of a value that a digest holds.
const DIGEST_BYTES: usize = 100;

/// Length, first bytes and form of a value. Long values repeat one byte, so this identifies them.
type Digest = (usize, Vec<u8>, JsonForm);

fn digest(value: &[u8], form: JsonForm) -> Digest {
    (value.len(), value.iter().copied().take(DIGEST_BYTES).collect(), form)
}

fn digest_of(payload: Payload<'_>) -> Digest {
    let (bytes, form) = bytes_of(payload);
    digest(&bytes, form)
}

fn digest_of_value(value: &[u8]) -> Digest {
    digest(value, form_of(value))
}

/// Returns the bytes of a payload with their form.
pub fn bytes_of(payload: Payload<'_>) -> (Vec<u8>, JsonForm) {
    match payload {
        Payload::Inline { bytes, form } => (bytes.to_vec(), form),
        Payload::Shared(value) => (value.bytes.clone(), value.form),
    }
}
