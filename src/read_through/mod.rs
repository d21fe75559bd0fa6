//! Read-through logic: a request becomes a hit, a wait or a fetch; a completion becomes a cache
//! entry and replies.
//!
//! The logic performs no I/O and reads no clock. A [`RequestId`] identifies a client, times are
//! arguments, and jobs are return values. So unit tests, the simulation and the fuzz targets drive
//! it step by step.

mod capacity;
mod client_tracking;
#[cfg(test)]
mod tests;
mod watches;

use crate::cache::{Cache, Limits};
use crate::inflight::{FinishedFetch, Inflight, Join, Waiters};
use crate::metrics::WorkerMetrics;
use crate::types::{
    Access, ClientId, Completion, DeferredReply, Failure, FetchedValue, Invalidation, Job, KeyResult, KeyState, Millis,
    Push, PushResult, Reply, RequestId, Source, UpcomingKeys,
};
use crate::value::{Payload, SHARED_VALUE_BYTES, Value};
use capacity::{CapacityCheck, Suggestion};
use client_tracking::{ClientTracking, TrackingLimits};
use std::sync::Arc;
pub use watches::{Deliver, WatchSettings, WatcherLimit};
use watches::{Freshness, ReadResult, WatchCounters, Watches};

/// Maximum length of a fetched value that is copied for each waiter. Waiters share a longer one: a
/// client may have a hundred replies queued behind a slow one, and escaping may need six bytes for
/// one.
const MAX_COPIED_BYTES: usize = 1024;

/// Result of a lookup.
#[derive(Debug)]
pub enum Lookup<'a> {
    /// Hit, or no permission to read Redis: the reply.
    Reply(Reply<'a>),
    /// Hit for a client that may cache the value, although no invalidation of it would follow. The
    /// caller must send the invalidation right behind the reply.
    UnreportedReply(Reply<'a>),
    /// Miss: the request joined a fetch in flight.
    Wait,
    /// Miss: the request started a fetch. The caller must submit this job. If the backend does not
    /// accept it, the caller must pass its failure to [`ReadThrough::complete`].
    Fetch(Job),
}

/// Fetched value on its way to the cache and the waiters. Only one that they may share takes an
/// allocation for the counts of references.
enum FinishedValue {
    Copied(Value),
    Shared(Arc<Value>),
}

impl FinishedValue {
    fn new(value: Value, is_watched: bool) -> FinishedValue {
        match value.bytes.len() {
            0..=MAX_COPIED_BYTES if !is_watched => FinishedValue::Copied(value),
            _ => FinishedValue::Shared(Arc::new(value)),
        }
    }

    /// Returns a payload to copy for a value of at most `max_copied` bytes, otherwise to share.
    /// `max_copied` is at least [`MAX_COPIED_BYTES`].
    fn payload(&self, max_copied: usize) -> Payload<'_> {
        match self {
            FinishedValue::Shared(value) if value.bytes.len() > max_copied => Payload::Shared(value),
            FinishedValue::Shared(value) => Payload::Inline { bytes: &value.bytes, form: value.form },
            FinishedValue::Copied(value) => Payload::Inline { bytes: &value.bytes, form: value.form },
        }
    }

    /// Returns the result for watchers. They share the value of a watched key.
    fn into_read_result(self) -> Option<ReadResult> {
        match self {
            FinishedValue::Shared(value) => Some(ReadResult::Value(value)),
            FinishedValue::Copied(_) => None,
        }
    }
}

/// Cache and fetches in flight of one worker.
#[derive(Debug)]
pub struct ReadThrough {
    cache: Cache,
    inflight: Inflight,
    watches: Watches,
    ttl: Millis,
    wait_timeout: Millis,
    /// True while the tracking connection receives every change in Redis.
    tracked: bool,
    /// Clients that cache values, and the keys that they have read.
    client_tracking: ClientTracking,
    counters: Counters,
    capacity: CapacityCheck,
}

/// Events since the start, under their names in [`WorkerMetrics`].
#[derive(Debug, Default)]
struct Counters {
    hits: u64,
    misses: u64,
    collapsed: u64,
    invalidated: u64,
    flushes: u64,
}

impl ReadThrough {
    /// Creates an empty cache with these limits. Entries are fresh for `ttl` at most, and requests
    /// wait for Redis for `wait_timeout` at most.
    pub fn new(limits: Limits, ttl: Millis, wait_timeout: Millis) -> ReadThrough {
        ReadThrough {
            cache: Cache::new(limits),
            inflight: Inflight::new(),
            watches: Watches::new(WatchSettings::default()),
            ttl,
            wait_timeout,
            tracked: false,
            client_tracking: ClientTracking::new(TrackingLimits::DEFAULT),
            counters: Counters::default(),
            capacity: CapacityCheck::default(),
        }
    }

    /// Replaces the default settings of watching. No key may be watched yet.
    pub fn with_watch_settings(mut self, settings: WatchSettings) -> ReadThrough {
        self.watches = Watches::new(settings);
        self
    }

    /// Returns the cache, for tests and benchmarks.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Returns true if [`ReadThrough::look_ahead`] saves time.
    pub fn benefits_from_look_ahead(&self) -> bool {
        self.cache.benefits_from_look_ahead()
    }

    /// Loads the memory that requests for these keys will read. Changes no result.
    pub fn look_ahead(&mut self, keys: &UpcomingKeys<'_>) {
        self.cache.look_ahead(keys);
    }

    /// Looks up a key, as far as `access` permits. A miss joins or starts a fetch, and `request_id`
    /// gets its reply.
    pub fn get(&mut self, key: &[u8], access: Access, request_id: RequestId, now: Millis) -> Lookup<'_> {
        let found = match access {
            Access { uses_cache: false, .. } => None,
            Access { updates_recency: true, .. } => self.cache.get(key, now),
            _ => self.cache.peek(key, now),
        };
        if let Some(hit) = found {
            self.counters.hits += 1;
            let (result, source) = (KeyResult::Value(hit.payload), Source::Cache { ttl: hit.ttl });
            let reply = Reply { result, source, tracked: self.tracked };
            if access.client_caches {
                if !self.tracked {
                    return Lookup::UnreportedReply(reply);
                }
                self.client_tracking.record(request_id.client_id(), key);
            }
            return Lookup::Reply(reply);
        }
        if !access.reads_redis {
            let (result, source) = (KeyResult::NotCached, Source::Neither);
            return Lookup::Reply(Reply { result, source, tracked: self.tracked });
        }
        self.counters.misses += 1;
        match self.inflight.join_or_start(key, access, request_id, now, now + self.wait_timeout) {
            Join::Joined => {
                self.counters.collapsed += 1;
                Lookup::Wait
            }
            Join::Started(fetch_id, key) => Lookup::Fetch(Job { fetch_id, key }),
        }
    }

    /// Records that a client that caches values has read a key without a lookup. Returns false if
    /// no invalidation of it would follow, so that the caller must send one behind the reply.
    pub fn record_read(&mut self, client: ClientId, key: &[u8]) -> bool {
        if self.tracked {
            self.client_tracking.record(client, key);
        }
        self.tracked
    }

    /// Begins or ends to record what a client reads ([`Access::client_caches`]). At the end, and
    /// when the client is gone, everything recorded is forgotten.
    pub fn set_client_tracking(&mut self, client: ClientId, is_on: bool) {
        if is_on { self.client_tracking.start(client) } else { self.client_tracking.stop(client) }
    }

    /// Passes on up to `budget` invalidations to clients that cache values.
    pub fn deliver_pushes(&mut self, budget: usize, push: impl FnMut(ClientId, Push<'_>) -> PushResult) {
        self.client_tracking.deliver(budget, push);
    }

    /// Returns true if [`ReadThrough::deliver_pushes`] has work to do.
    pub fn has_pushes(&self) -> bool {
        self.client_tracking.has_due()
    }

    /// Returns the time until the cache entry of `key` expires. Does not read Redis and does not
    /// change the LRU order.
    pub fn remaining_ttl(&mut self, key: &[u8], now: Millis) -> Option<Millis> {
        self.cache.peek(key, now).map(|hit| hit.ttl)
    }

    /// Applies the result of a job: caches a value and passes a reply for each waiter to `deliver`.
    /// Caching does not depend on whether the waiters are still connected.
    pub fn complete(
        &mut self,
        completion: Completion,
        now: Millis,
        mut deliver: impl FnMut(RequestId, &DeferredReply<'_>),
    ) {
        let Some(finished) = self.inflight.finish(completion.fetch_id) else {
            log::error!("a fetch completed twice: second result dropped; please report this");
            return;
        };
        let waiters = &finished.waiters;
        let watch_id = self.watches.find_read(&finished.key, completion.fetch_id);
        let is_reported = self.tracked && completion.may_cache && !finished.is_detached;
        let expiry = now + self.ttl;
        let (read, stored, fresh_until) = match completion.result {
            Ok(Some(FetchedValue { value, ttl })) => {
                let value = FinishedValue::new(value, watch_id.is_some());
                // Counted from before Redis was asked: the lifetime went on while its reply
                // travelled.
                let redis_expiry = ttl.map_or(Millis::MAX, |ttl| finished.started_at + ttl);
                let is_unused = watch_id.is_some() && waiters.is_empty();
                let stored = match completion.may_cache {
                    true => self.store(&finished, &value, (redis_expiry, is_unused), now),
                    false => None,
                };
                if !completion.may_cache {
                    // A cached older value is outdated, and no invalidation may say so.
                    self.remove_missing(&finished);
                }
                let result = KeyResult::Value(value.payload(MAX_COPIED_BYTES));
                self.reply_fetched(&finished, result, stored, is_reported, &mut deliver);
                (value.into_read_result(), stored, redis_expiry.min(expiry))
            }
            Ok(None) => {
                self.remove_missing(&finished);
                self.reply_fetched(&finished, KeyResult::Missing, None, is_reported, &mut deliver);
                (Some(ReadResult::Missing), None, expiry)
            }
            Err(failure) => {
                if failure.invalidates_entry() {
                    self.remove_missing(&finished);
                    // `MGET` and `EXISTS` answer such a key, and clients may cache that.
                    let result = KeyResult::Failed(&failure);
                    self.reply_fetched(&finished, result, None, is_reported, &mut deliver);
                } else {
                    self.fail_or_serve_stale(&finished.key, waiters, &failure, now, &mut deliver);
                }
                (Some(ReadResult::Failed(failure)), None, expiry)
            }
        };
        if let (Some(id), Some(read)) = (watch_id, read) {
            let freshness = Freshness { fresh_until, stored, tracked: self.tracked };
            self.watches.on_read(id, read, freshness, now);
        }
    }

    /// Caches a fetched value, unless its fetch is detached or the value has expired since. Returns
    /// the time until the new entry expires. `is_unused` means that no request asked for it.
    fn store(
        &mut self,
        finished: &FinishedFetch,
        value: &FinishedValue,
        (redis_expiry, is_unused): (Millis, bool),
        now: Millis,
    ) -> Option<Millis> {
        if finished.is_detached {
            return None;
        }
        let deadline = redis_expiry.min(now + self.ttl);
        if deadline <= now {
            self.remove_missing(finished);
            return None;
        }
        self.cache.set_early_deadline(capacity::early_deadline(self.ttl, now));
        let (key, payload) = (&finished.key, value.payload(SHARED_VALUE_BYTES));
        let stored = match is_unused {
            true => self.cache.insert_unused(key, payload, deadline, redis_expiry),
            false => self.cache.insert(key, payload, deadline, redis_expiry),
        };
        stored.then_some(deadline - now)
    }

    /// Removes the entry of a key for which Redis has nothing to cache, so that it is not served
    /// stale during an outage. A detached fetch removes nothing: the entry may be newer than its
    /// result.
    fn remove_missing(&mut self, finished: &FinishedFetch) {
        if !finished.is_detached {
            self.cache.remove(&finished.key);
        }
    }

    /// Replies to waiters with a failure. During an outage replies with the cached value instead,
    /// fresh or expired, if there is one.
    fn fail_or_serve_stale(
        &mut self,
        key: &[u8],
        waiters: &Waiters,
        failure: &Failure,
        now: Millis,
        deliver: &mut impl FnMut(RequestId, &DeferredReply<'_>),
    ) {
        let found = failure.outage().and_then(|outage| Some((outage, self.cache.get_allow_stale(key, now)?)));
        let Some((outage, cached)) = found else {
            let (result, source) = (KeyResult::Failed(failure), Source::Redis { collapsed: false, stored: None });
            return reply_all(waiters, Reply { result, source, tracked: self.tracked }, None, deliver);
        };
        let source = match cached.ttl {
            0 => Source::Stale { expired_for: cached.expired_for, outage },
            // A later fetch has cached a fresh value, or the request wanted a newer one.
            ttl => Source::Cache { ttl },
        };
        // No invalidation follows an older value.
        let reply = Reply { result: KeyResult::Value(cached.payload), source, tracked: self.tracked };
        reply_all(waiters, reply, Some(key), deliver);
    }

    /// Replies to all waiters with the result of their fetch. `is_reported` is true if the next
    /// change of the key will arrive as an invalidation.
    fn reply_fetched(
        &mut self,
        finished: &FinishedFetch,
        result: KeyResult<'_>,
        stored: Option<Millis>,
        is_reported: bool,
        deliver: &mut impl FnMut(RequestId, &DeferredReply<'_>),
    ) {
        let FinishedFetch { key, waiters, .. } = finished;
        if is_reported {
            for waiter in waiters.iter().filter(|waiter| waiter.client_caches) {
                self.client_tracking.record(waiter.request_id.client_id(), key);
            }
        }
        let source = Source::Redis { collapsed: false, stored };
        let reply = Reply { result, source, tracked: self.tracked };
        reply_all(waiters, reply, (!is_reported).then_some(key), deliver);
    }

    /// Applies an invalidation: removes the entries that it covers and detaches their fetches.
    /// Later requests get a newer value.
    pub fn invalidate(&mut self, invalidation: &Invalidation, now: Millis) {
        match invalidation {
            Invalidation::Key(key) => {
                self.counters.invalidated += u64::from(self.cache.remove(key));
                self.inflight.detach(key);
                self.watches.on_change(key, now);
                self.client_tracking.invalidate(key);
            }
            Invalidation::All => self.flush(),
            Invalidation::TrackingStarted => {
                self.flush();
                self.tracked = true;
            }
            // Cached entries relied on invalidations. Later ones rely on their TTL alone.
            Invalidation::TrackingLost => {
                self.counters.flushes += 1;
                self.cache.expire_all(now);
                self.inflight.detach_all();
                self.watches.on_change_of_all();
                self.client_tracking.invalidate_all();
                self.tracked = false;
            }
        }
    }

    /// Drops everything cached, and detaches all fetches.
    fn flush(&mut self) {
        self.counters.flushes += 1;
        self.counters.invalidated += self.cache.len() as u64;
        self.cache.clear();
        self.inflight.detach_all();
        self.client_tracking.invalidate_all();
        self.watches.on_change_of_all();
    }

    /// Reserves places for `count` watchers. Returns false if `MAX_WATCHERS` does not allow it.
    pub fn reserve_watchers(&self, count: usize) -> bool {
        self.watches.reserve(count)
    }

    /// Returns true while the cache receives invalidations from Redis.
    pub fn is_tracked(&self) -> bool {
        self.tracked
    }

    /// Adds a watcher of `key`, for which a place was reserved. `has` is the state that its client
    /// has already. Returns the id by which the watcher is removed. The caller continues with
    /// [`ReadThrough::catch_up`], which delivers the present state.
    pub fn watch(&mut self, key: &[u8], request_id: RequestId, has: Option<KeyState>) -> usize {
        self.watches.watch(key, request_id, has)
    }

    /// Removes watchers, each with the id of its key.
    pub fn unwatch(&mut self, watchers: impl IntoIterator<Item = (usize, RequestId)>) {
        watchers.into_iter().for_each(|(id, request_id)| self.watches.unwatch(id, request_id));
    }

    /// Delivers the present state of a watched key to a watcher that lacks it, now or after a read.
    /// Does not change the LRU order.
    pub fn catch_up(&mut self, watcher: (usize, RequestId), now: Millis, deliver: &mut Deliver<'_>) {
        self.watches.catch_up(watcher, &mut self.cache, (self.tracked, now), deliver);
    }

    /// Delivers events to up to `budget` watchers, and begins up to `budget` reads of watched keys,
    /// with their jobs. Returns true if more may be due.
    pub fn run_watches(&mut self, now: Millis, budget: usize, jobs: &mut Vec<Job>, deliver: &mut Deliver<'_>) -> bool {
        if self.watches.is_empty() {
            return false;
        }
        let has_more_events = self.watches.deliver_events(budget, deliver);
        self.watches.begin_reads(now, budget, &mut self.inflight, jobs) || has_more_events
    }

    /// Replies to timed-out waiters of up to `budget` fetches, and removes up to `budget` expired
    /// entries. Returns true if more may be due.
    pub fn tick(&mut self, now: Millis, budget: usize, mut deliver: impl FnMut(RequestId, &DeferredReply<'_>)) -> bool {
        let mut timed_out = 0;
        while timed_out < budget
            && let Some((key, waiters)) = self.inflight.take_timed_out(now)
        {
            self.fail_or_serve_stale(&key, &waiters, &Failure::Timeout, now, &mut deliver);
            timed_out += 1;
        }
        let more_expired = self.cache.sweep(now, budget);
        timed_out == budget || more_expired
    }

    /// Writes counters and gauges into the metrics of the worker.
    pub fn export_metrics(&self, metrics: &mut WorkerMetrics) {
        let Counters { hits, misses, collapsed, invalidated, flushes } = self.counters;
        let WatchCounters { watchers, events, merged } = self.watches.counters();
        (metrics.watchers, metrics.watched_keys) = (watchers, self.watches.len());
        (metrics.watch_events, metrics.watch_changes_merged) = (events, merged);
        let (entries, expired, evicted) = (self.cache.len(), self.cache.expired(), self.cache.evicted());
        (metrics.bytes, metrics.inflight_keys) = (self.cache.bytes(), self.inflight.count());
        (metrics.hits, metrics.misses, metrics.collapsed) = (hits, misses, collapsed);
        (metrics.entries, metrics.expired, metrics.evicted) = (entries, expired, evicted);
        (metrics.invalidated, metrics.flushes) = (invalidated, flushes);
        let Suggestion { entries, bytes } = self.capacity.suggestion();
        (metrics.suggested_entries, metrics.suggested_bytes) = (entries, bytes);
        let losses = self.cache.capacity_losses();
        metrics.early_evictions = losses.by_entries + losses.by_bytes;
        metrics.tracking_clients = self.client_tracking.client_count();
        metrics.tracked_keys = self.client_tracking.copy_count();
        metrics.tracking_pushes = self.client_tracking.push_count();
    }

    /// Checks the cache and the fetches in flight. Walks all of both.
    #[cfg(any(test, debug_assertions, feature = "validate"))]
    pub fn validate(&self) -> Result<(), String> {
        self.cache.validate()?;
        self.watches.validate()?;
        self.client_tracking.validate()?;
        self.inflight.validate()
    }

    /// Returns the time at which [`ReadThrough::tick`] or [`ReadThrough::run_watches`] is due next.
    pub fn next_deadline(&self) -> Option<Millis> {
        let own = match (self.cache.next_deadline(), self.inflight.next_deadline()) {
            (Some(expiry), Some(timeout)) => Some(expiry.min(timeout)),
            (expiry, timeout) => expiry.or(timeout),
        };
        match self.watches.next_deadline() {
            Some(watch) => Some(own.map_or(watch, |own| own.min(watch))),
            None => own,
        }
    }
}

/// Replies to waiters. A reply from Redis tells each of them if it had joined the fetch.
/// `unreported_key` is the key if no invalidation of this result would follow.
fn reply_all(
    waiters: &Waiters,
    reply: Reply<'_>,
    unreported_key: Option<&[u8]>,
    deliver: &mut impl FnMut(RequestId, &DeferredReply<'_>),
) {
    for waiter in waiters.iter() {
        let source = match reply.source {
            Source::Redis { stored, .. } => Source::Redis { collapsed: waiter.collapsed, stored },
            source => source,
        };
        let unreported_key = unreported_key.filter(|_| waiter.client_caches);
        deliver(waiter.request_id, &DeferredReply { reply: Reply { source, ..reply }, unreported_key });
    }
}
