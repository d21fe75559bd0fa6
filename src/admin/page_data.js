"use strict";
// Data of the dashboard: formats, samples from `/stats`, and scales. It touches no element of the page.
// `page.js` follows it in the same script.

const POLL_INTERVAL_MS = 1000;
// A rate covers at most this many intervals. After a longer gap the plots start a new line.
const MAX_RATE_INTERVALS = 10;
// A ratio or percentile with fewer observations than this covers older samples too.
const MIN_OBSERVATIONS = 50;
const MAX_LOOKBACK_MS = 10000; // Age of the oldest of these samples.
const MAX_KEPT_STATS = 12; // Newest samples that keep their stats for this.
const MEBIBYTE = 1024 ** 2;

// Histories, which bound the memory of the page. `samples` are oldest first, and a failed request
// leaves one with `failed`. `latest` is the base of the next differences. `hash` is the fragment of the
// address, so that a history can be bookmarked.
const RANGES = [
  { label: "5 minutes", title: "Last 5 minutes", hash: "", windowMs: 300000, intervalMs: 1000 },
  { label: "1 hour", title: "Last hour", hash: "#hour", windowMs: 3600000, intervalMs: 15000 },
].map((range) => ({ ...range, samples: [], latest: null }));

// --- Formatting. Numbers are in English like the page, whatever the language of the browser.
const NO_VALUE = "\u2013";
const fullNumber = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compactNumber = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });
const isKnown = (value) => value !== null && value !== undefined;
const ifKnown = (format) => (value) => (isKnown(value) ? format(value) : NO_VALUE);
const count = ifKnown((value) => fullNumber.format(value));
const rate = ifKnown((value) => (value > 0 && value < 10 ? value.toFixed(1) : fullNumber.format(value)));
const compact = ifKnown((value) => compactNumber.format(value));
// Rounded down, so that 100% means no miss at all.
const percent = ifKnown((value) => (value === 1 ? "100%" : `${(Math.floor(value * 1000) / 10).toFixed(1)}%`));
const threeDigits = (value) => String(Number(value.toPrecision(3)));
const seconds = ifKnown((value) => {
  if (value === Infinity) return "above the scale";
  if (value < 0.001) return `${threeDigits(value * 1e6)} \u00b5s`;
  return value < 1 ? `${threeDigits(value * 1000)} ms` : `${threeDigits(value)} s`;
});
const bytes = ifKnown((value) => {
  const power = Math.min(4, Math.floor(Math.log2(Math.max(1, value)) / 10));
  return `${threeDigits(value / 1024 ** power)} ${["bytes", "KiB", "MiB", "GiB", "TiB"][power]}`;
});
const clock = (time) => new Date(time).toLocaleTimeString("en-GB");
function duration(value) {
  const [days, hours] = [Math.floor(value / 86400), Math.floor(value / 3600) % 24];
  const minutes = Math.floor(value / 60) % 60;
  if (days > 0) return `${count(days)} d ${hours} h`;
  return hours > 0 ? `${hours} h ${minutes} min` : minutes > 0 ? `${minutes} min` : `${Math.floor(value)} s`;
}

// --- Samples: computed from the difference of two stats.
const sum = (numbers) => Object.values(numbers).reduce((total, number) => total + number, 0);

// Returns all values that never shrink while the proxy runs. A smaller one means a restart.
const counters = ({ uptime_seconds: uptime, redis, latency, keys, errors, requests, cache, traffic }) =>
  [uptime, redis.round_trips, latency.hit.counts, latency.miss.counts, latency.round_trip.counts, keys, errors,
    requests.http, requests.resp, traffic, cache.evicted, cache.evicted_early]
    .flatMap((part) => (typeof part === "number" ? part : Object.values(part)));

function restarted(before, now) {
  const [previous, current] = [counters(before), counters(now)];
  return previous.length !== current.length || previous.some((value, index) => current[index] < value);
}

// Returns the quantile of the observations between two stats, interpolated within its bucket.
function percentile(bounds, before, now, quantile) {
  const counts = now.counts.map((value, index) => value - before.counts[index]);
  let remaining = quantile * sum(counts);
  if (remaining === 0) return null;
  for (const [index, upper] of bounds.entries()) {
    const lower = index > 0 ? bounds[index - 1] : 0;
    if (counts[index] > 0 && remaining <= counts[index]) {
      return lower + ((upper - lower) * remaining) / counts[index];
    }
    remaining -= counts[index];
  }
  return Infinity;
}

// Returns the older stats to compare with. With more traffic a figure covers less time.
function baseline({ samples }, time, stats, before, countOf) {
  let base = before;
  for (let index = samples.length - 1; index >= 0 && countOf(stats) - countOf(base) < MIN_OBSERVATIONS; index--) {
    if (time - samples[index].time > MAX_LOOKBACK_MS + POLL_INTERVAL_MS / 2) break;
    base = samples[index].stats || base;
    if (samples[index].first) break;
  }
  return base;
}

function toSample(range, time, stats) {
  const { cache, redis, latency } = stats;
  const before = range.latest;
  const sample = { time, stats, entries: cache.entries, queued: redis.queued, inflight: redis.in_flight, errors: {},
    outage: !redis.answers, memory: stats.process.resident_bytes, cached: cache.bytes };
  sample.restart = before !== null && restarted(before, stats);
  const step = before === null ? 0 : stats.uptime_seconds - before.uptime_seconds;
  sample.first = sample.restart || step > (MAX_RATE_INTERVALS * range.intervalMs) / 1000 || step <= 0;
  if (sample.first) return sample;
  const increase = (part) => sum(part(stats)) - sum(part(before));
  // `traffic` is without the requests of this page, of monitors and of health checks.
  sample.http = increase((of) => [of.traffic.http]) / step;
  sample.resp = increase((of) => [of.traffic.resp]) / step;
  sample.requests = sample.http + sample.resp;
  sample.failed = increase((of) => [of.requests.http.failed, of.requests.resp.failed]) / step;
  sample.trips = increase((of) => [of.redis.round_trips]) / step;
  sample.evicted = increase((of) => [of.cache.evicted]) / step;
  sample.early = increase((of) => [of.cache.evicted_early]) / step;
  sample.hits = increase((of) => [of.keys.hits]) / step;
  sample.misses = increase((of) => [of.keys.misses]) / step;
  const lookups = ({ keys }) => keys.hits + keys.misses; // `misses` includes the collapsed ones.
  const base = baseline(range, time, stats, before, lookups);
  const keys = lookups(stats) - lookups(base);
  sample.ratio = keys > 0 ? (stats.keys.hits - base.keys.hits) / keys : null;
  const latencyQuantile = (kind, quantile) => {
    const base = baseline(range, time, stats, before, (of) => sum(of.latency[kind].counts));
    return percentile(latency.bounds, base.latency[kind], latency[kind], quantile);
  };
  [sample.hit50, sample.hit99] = [latencyQuantile("hit", 0.5), latencyQuantile("hit", 0.99)];
  sample.miss99 = latencyQuantile("miss", 0.99);
  [sample.trip50, sample.trip99] = [latencyQuantile("round_trip", 0.5), latencyQuantile("round_trip", 0.99)];
  for (const kind of Object.keys(stats.errors)) sample.errors[kind] = stats.errors[kind] - before.errors[kind];
  return sample;
}

// Adds a sample to a history, unless its newest is younger than its interval. `stats` is null after
// a failed request.
function record(range, time, stats) {
  const age = time - (range.samples.at(-1)?.time ?? 0);
  if (age >= 0 && age < range.intervalMs - POLL_INTERVAL_MS / 2) return;
  const sample = stats ? toSample(range, time, stats) : { time, failed: true };
  if (stats) range.latest = stats;
  // After the clock was set back, samples from the future are dropped too.
  range.samples = range.samples.filter((old) => old.time > time - range.windowMs && old.time <= time);
  for (const old of range.samples.slice(0, -MAX_KEPT_STATS)) old.stats = null;
  range.samples.push(sample);
}

// --- Scales: map a value to a position from bottom (0) to top (1), and choose the grid lines.
function linear(max, format, whole) {
  const minStep = Math.max(max, whole ? 1 : 0.4) / 4;
  const power = 10 ** Math.floor(Math.log10(minStep));
  const step = Math.max(whole ? 1 : 0, power * [1, 2, 5, 10].find((factor) => power * factor >= minStep * 0.999));
  const steps = Math.max(1, Math.ceil((max / step) * 0.999));
  const ticks = Array.from({ length: steps + 1 }, (_, index) => index * step);
  return { position: (value) => value / (steps * step), ticks, format };
}
function mebibytes(values) {
  const { position, ticks } = linear(Math.max(0, ...values) / MEBIBYTE, compact);
  const format = (tick) => compact(tick / MEBIBYTE);
  return { position: (value) => position(value / MEBIBYTE), ticks: ticks.map((tick) => tick * MEBIBYTE), format };
}

function ratios() {
  return { position: (value) => value, ticks: [0, 0.25, 0.5, 0.75, 1], format: (value) => `${value * 100}%` };
}

function logarithmic(values, format) {
  const finite = values.filter((value) => value > 0 && value < Infinity);
  const low = finite.length ? Math.floor(Math.log10(Math.min(...finite)) + 1e-9) : -5;
  const high = Math.max(low + 2, finite.length ? Math.ceil(Math.log10(Math.max(...finite)) - 1e-9) : -2);
  const ticks = Array.from({ length: high - low + 1 }, (_, index) => 10 ** (low + index));
  return { position: (value) => Math.min(1, (Math.log10(value) - low) / (high - low)), ticks, format };
}
