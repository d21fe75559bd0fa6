"use strict";
// Script of the dashboard: polls `stats` once a second and plots the last five minutes.
//
// Data of the proxy is written by textContent and attributes only, so that no name or reason can
// become markup.
(() => {
  const POLL_INTERVAL_MS = 1000;
  const REQUEST_TIMEOUT_MS = 5000;
  const WINDOW_MS = 300000; // Age of the oldest sample.
  // A rate covers at most this time. After a longer gap the plots start a new line.
  const MAX_RATE_INTERVAL_S = 10;
  // A ratio or percentile with fewer observations than this covers older samples too.
  const MIN_OBSERVATIONS = 50;
  const MAX_LOOKBACK_MS = 10000; // Age of the oldest of these samples.
  // Time between two redraws if the user prefers reduced motion.
  const REDUCED_MOTION_INTERVAL_MS = 5000;
  const MARGIN = { left: 46, right: 10, top: 18, bottom: 18 }; // Pixels for the labels.

  const byId = (id) => document.getElementById(id);
  const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
  let samples = []; // Oldest first. A failed request leaves a sample without `stats`.
  let latest = null; // Stats of the last successful request, the base of the next differences.
  let failure = null; // Reason of failed requests, and the time of the first.
  let paused = false;
  let isRequesting = false;
  let lastRequestAt = -POLL_INTERVAL_MS; // Start of the last request, on the monotonic clock.
  let timer = 0;
  let lastDrawnAt = 0;
  let pointer = null; // Pointer position in the plots, from 0 (left) to 1 (right).

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
  const counters = ({ uptime_seconds: uptime, redis, latency, keys, errors, requests }) =>
    [uptime, redis.round_trips, latency.hit.counts, latency.miss.counts, keys, errors, requests.http, requests.resp]
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
  function baseline(time, stats, before, countOf) {
    let base = before;
    for (let index = samples.length - 1; index >= 0 && countOf(stats) - countOf(base) < MIN_OBSERVATIONS; index--) {
      if (time - samples[index].time > MAX_LOOKBACK_MS + POLL_INTERVAL_MS / 2) break;
      base = samples[index].stats || base;
      if (samples[index].first) break;
    }
    return base;
  }

  function toSample(time, stats, before) {
    const { cache, redis, latency } = stats;
    if (!counters(stats).every(Number.isFinite)) throw new TypeError("a counter is not a number");
    const sample = { time, stats, entries: cache.entries, queued: redis.queued, inflight: redis.in_flight, errors: {} };
    sample.restart = before !== null && restarted(before, stats);
    const step = before === null ? 0 : stats.uptime_seconds - before.uptime_seconds;
    sample.first = sample.restart || step > MAX_RATE_INTERVAL_S || step <= 0;
    if (sample.first) return sample;
    const increase = (part) => sum(part(stats)) - sum(part(before));
    sample.http = increase((of) => of.requests.http) / step;
    sample.resp = increase((of) => of.requests.resp) / step;
    sample.requests = sample.http + sample.resp;
    sample.failed = increase((of) => [of.requests.http.failed, of.requests.resp.failed]) / step;
    sample.trips = increase((of) => [of.redis.round_trips]) / step;
    sample.hits = increase((of) => [of.keys.hits]) / step;
    sample.misses = increase((of) => [of.keys.misses]) / step;
    const lookups = ({ keys }) => keys.hits + keys.misses; // `misses` includes the collapsed ones.
    const base = baseline(time, stats, before, lookups);
    const keys = lookups(stats) - lookups(base);
    sample.ratio = keys > 0 ? (stats.keys.hits - base.keys.hits) / keys : null;
    const latencyQuantile = (kind, quantile) => {
      const base = baseline(time, stats, before, (of) => sum(of.latency[kind].counts));
      return percentile(latency.bounds, base.latency[kind], latency[kind], quantile);
    };
    [sample.hit50, sample.hit99] = [latencyQuantile("hit", 0.5), latencyQuantile("hit", 0.99)];
    sample.miss99 = latencyQuantile("miss", 0.99);
    for (const kind of Object.keys(stats.errors)) sample.errors[kind] = stats.errors[kind] - before.errors[kind];
    return sample;
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

  // --- Plots. `scale` receives all visible values.
  const PLOTS = [
    { title: "Requests", axis: "requests per second", format: rate,
      headline: (now) => [rate(now.requests), "requests/s"],
      series: [["requests", "all", "one"], ["failed", "failed", "bad dashed"]],
      scale: (values) => linear(Math.max(0, ...values), compact),
      note: (now) => `HTTP ${rate(now.http)}/s, Redis protocol ${rate(now.resp)}/s` },
    { title: "Hit ratio", axis: "share of keys found in the cache", format: percent,
      headline: (now) => [percent(now.ratio), "of keys"],
      series: [["ratio", "hits", "one"]], scale: ratios,
      note: (now) => `hits ${rate(now.hits)}/s, misses ${rate(now.misses)}/s` },
    { title: "Latency", axis: "response time, logarithmic", format: seconds,
      headline: (now) => [seconds(now.hit99), "99% of hits within"],
      series: [["hit50", "hits, median", "one"], ["hit99", "hits, 99%", "two"],
        ["miss99", "misses, 99%", "three dashed"]],
      scale: (values) => logarithmic(values, seconds) },
    { title: "Entries", axis: "keys in the cache", format: count,
      headline: (now) => [count(now.entries), "keys"], series: [["entries", "entries", "one"]],
      // A much larger capacity would flatten the line, so it is shown only in the note.
      reference: ({ cache }, values) => (Math.max(0, ...values) >= cache.capacity / 10 ? cache.capacity : null),
      scale: (values, reference) => linear(Math.max(0, ...values, reference || 0), compact, true),
      note: ({ stats: { cache } }) => `${percent(cache.entries / cache.capacity)} of ${count(cache.capacity)}; ` +
        `${bytes(cache.bytes)}${cache.capacity_bytes > 0 ? ` of ${bytes(cache.capacity_bytes)}` : ""}` },
    { title: "Redis", axis: "keys waiting for Redis", format: count, facts,
      headline: (now) => (now.stats.redis.answers ? ["Available", "", "good"] : ["Unavailable", "", "bad"]),
      series: [["inflight", "in flight", "one"], ["queued", "queued", "two dashed"]],
      band: "Redis unavailable", bands: (sample) => sample.stats && !sample.stats.redis.answers,
      scale: (values) => linear(Math.max(0, ...values), compact, true) },
  ];

  function facts(now) {
    const { redis } = now.stats;
    const errors = {};
    for (const sample of samples) {
      for (const kind in sample.errors) errors[kind] = (errors[kind] || 0) + sample.errors[kind];
    }
    const kinds = Object.keys(errors).filter((kind) => errors[kind] > 0)
      .map((kind) => `${count(errors[kind])} ${kind.replaceAll("_", " ")}`);
    return [...(redis.answers ? [] : [["Reason", redis.reason || "unknown", "bad"]]),
      ["Freshness", redis.freshness], ["Tracking", redis.tracking, redis.tracking === "lost" ? "bad" : ""],
      ["Connections", count(redis.connections)], ["Round trips", `${rate(now.trips)}/s`],
      ["Failed key reads", kinds.length ? `${kinds.join(", ")} (last 5 minutes)` : "none in the last 5 minutes"]];
  }

  // --- Elements of the page.
  function createHtml(name, className, ...children) {
    const element = document.createElement(name);
    element.className = className;
    element.append(...children);
    return element;
  }
  function createSvg(name, attributes, text = "") {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    element.textContent = text;
    return element;
  }
  // Writes only changes: a screen reader repeats a status each time it is written.
  function setText(element, text, className) {
    if (element.textContent !== text) element.textContent = text;
    if (className !== undefined && element.className !== className) element.className = className;
  }

  const resizeObserver = new ResizeObserver(() => drawPlots());

  function buildPlot(plot) {
    [plot.value, plot.unit] = [createHtml("span", ""), createHtml("small", "")];
    plot.headlineElement = createHtml("p", "now", plot.value, plot.unit);
    plot.noteElement = createHtml("p", "note");
    plot.legend = createHtml("ul", "legend", ...plot.series.map((series) => {
      series.value = createHtml("b", "", NO_VALUE);
      const [, name, style] = series;
      return createHtml("li", "", createHtml("i", `key ${style}`), createHtml("span", "", `${name} `), series.value);
    }));
    plot.list = createHtml("dl", "");
    plot.svg = createSvg("svg", { role: "img" });
    if (plot.bands) {
      plot.legend.append(createHtml("li", "", createHtml("i", "key band"), createHtml("span", "", plot.band)));
    }
    const details = plot.facts ? [plot.list] : plot.note ? [plot.noteElement] : [];
    byId("plots").append(createHtml("article", plot.facts ? "card wide" : "card",
      createHtml("div", "", createHtml("h3", "", plot.title), plot.headlineElement, ...details),
      createHtml("div", "plot", plot.legend, plot.svg)));
    plot.svg.addEventListener("pointermove", (event) => {
      const box = plot.svg.getBoundingClientRect();
      const width = box.width - MARGIN.left - MARGIN.right;
      pointer = Math.min(1, Math.max(0, (event.clientX - box.left - MARGIN.left) / width));
      drawPlots();
    });
    for (const end of ["pointerleave", "pointercancel"]) {
      plot.svg.addEventListener(end, () => { pointer = null; drawPlots(); });
    }
    resizeObserver.observe(plot.svg);
  }

  // --- Drawing. `now` is the newest sample, or null while requests fail.
  function linePath(key, x, y) {
    let path = "";
    let open = false;
    for (const sample of samples) {
      if (!isKnown(sample[key]) || sample.first) open = false;
      if (!isKnown(sample[key])) continue;
      // A path of one move is invisible. The short line shows a single sample as a dot.
      path += `${open ? "L" : "M"}${x(sample.time).toFixed(1)} ${y(sample[key]).toFixed(1)}${open ? "" : "h.1"}`;
      open = true;
    }
    return path;
  }

  // Returns the grid lines, and the labels of both axes.
  function axes(plot, scale, { left, right, top, bottom }, y) {
    const parts = [createSvg("text", { x: left, y: 10 }, plot.axis)];
    for (const tick of scale.ticks) {
      const style = tick === scale.ticks[0] ? "base" : "";
      parts.push(createSvg("line", { class: style, x1: left, x2: right, y1: y(tick), y2: y(tick) }),
        createSvg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, scale.format(tick)));
    }
    // On a narrow screen the second label would overlap the first.
    const labels = ["\u22125 min", right - left < 280 ? "" : "\u22124", "\u22123", "\u22122", "\u22121", "now"];
    labels.forEach((label, index) => {
      const anchor = { 0: "start", 5: "end" }[index] || "middle";
      const x = left + ((right - left) * index) / 5;
      parts.push(createSvg("text", { x, y: bottom + 14, "text-anchor": anchor }, label));
    });
    return parts;
  }

  function drawPlot(plot, now, end) {
    const { width, height } = plot.svg.getBoundingClientRect();
    if (width === 0) return;
    const box = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: height - MARGIN.bottom };
    const values = plot.series.flatMap(([key]) => samples.map((sample) => sample[key])).filter(isKnown);
    const reference = plot.reference && latest ? plot.reference(latest, values) : null;
    const scale = plot.scale(values, reference);
    const x = (time) => box.right - ((end - time) / WINDOW_MS) * (box.right - box.left);
    const y = (value) => box.bottom - Math.max(0, scale.position(value)) * (box.bottom - box.top);
    const verticalLine = (kind, at) => createSvg("line", { class: kind, x1: at, x2: at, y1: box.top, y2: box.bottom });
    const parts = [];
    if (plot.bands) for (const { time } of samples.filter(plot.bands)) {
      const from = Math.max(box.left, x(time - POLL_INTERVAL_MS * 1.1));
      const length = Math.max(0, x(time) - from);
      parts.push(createSvg("rect", { x: from, y: box.top, width: length, height: box.bottom - box.top }));
    }
    parts.push(...axes(plot, scale, box, y));
    if (reference !== null) parts.push(
      createSvg("line", { class: "reference", x1: box.left, x2: box.right, y1: y(reference), y2: y(reference) }),
      createSvg("text", { class: "label", x: box.right - 4, y: y(reference) + 12, "text-anchor": "end" }, "capacity"));
    for (const { time } of samples.filter((sample) => sample.restart)) parts.push(verticalLine("reference", x(time)),
      createSvg("text", { class: "label", x: Math.min(x(time) + 4, box.right - 40), y: box.top + 12 }, "restart"));
    for (const [key, , style] of plot.series) parts.push(createSvg("path", { class: style, d: linePath(key, x, y) }));
    if (pointer !== null) {
      const time = clock(end - (1 - pointer) * WINDOW_MS);
      parts.push(verticalLine("pointer", box.left + pointer * (box.right - box.left)),
        createSvg("text", { class: "time", x: box.right, y: 10, "text-anchor": "end" }, time));
    }
    plot.svg.replaceChildren(...parts);
    plot.svg.setAttribute("aria-label", `${plot.title}, ${plot.axis}, last 5 minutes. Now: ` +
      plot.series.map(([key, name]) => `${name} ${now ? plot.format(now[key]) : "unknown"}`).join(", "));
  }

  function drawHeadline(plot, now) {
    const [value, unit, style] = now ? plot.headline(now) : [NO_VALUE, ""];
    setText(plot.value, value);
    setText(plot.unit, unit);
    setText(plot.noteElement, (now && plot.note && plot.note(now)) || "\u00a0");
    plot.headlineElement.className = `now ${style || ""}`;
    const list = now && plot.facts ? plot.facts(now) : [];
    const names = list.map(([name]) => name);
    // Elements stay as long as the names do, so that an operator can select and copy the reason.
    if (String(plot.names) !== String(names)) {
      plot.list.replaceChildren(...names.flatMap((name) => [createHtml("dt", "", name), createHtml("dd", "")]));
    }
    plot.names = names;
    list.forEach(([, text, style], index) => setText(plot.list.children[2 * index + 1], text, style || ""));
  }

  function newestSample() {
    const last = samples[samples.length - 1];
    return last && last.stats ? last : null;
  }

  // Draws all plots. The legends show the values at the pointer, or the newest values.
  function drawPlots() {
    const end = samples.length ? samples[samples.length - 1].time : Date.now();
    const distance = (sample) => Math.abs(sample.time - (end - (1 - pointer) * WINDOW_MS));
    const nearest = () => samples.filter((sample) => distance(sample) < POLL_INTERVAL_MS * 2)
      .sort((one, other) => distance(one) - distance(other))[0];
    const shown = pointer === null ? newestSample() : nearest();
    for (const plot of PLOTS) {
      drawPlot(plot, newestSample(), end);
      for (const series of plot.series) setText(series.value, shown ? plot.format(shown[series[0]]) : NO_VALUE);
    }
    lastDrawnAt = Date.now();
  }

  const describeProxy = ({ version, uptime_seconds: uptime, workers, clients }) =>
    `${version} at ${location.host}, up ${duration(uptime)}, ` +
    `${count(workers)} ${workers === 1 ? "worker" : "workers"}, ` +
    `${count(clients.connected)} of ${count(clients.most)} client connections`;

  function render() {
    const now = newestSample();
    setText(byId("about"), now ? describeProxy(now.stats) : `at ${location.host}`);
    const redis = now ? now.stats.redis : { answers: true };
    let [text, style] = ["Live: updated every second.", "good"];
    if (paused) [text, style] = ["Paused: values are from the time of the pause.", ""];
    else if (failure) {
      text = `No data from the proxy since ${clock(failure.since)}: ${failure.reason}. Retrying every second.`;
      style = "bad";
    } else if (!now) [text, style] = ["Waiting for the first data.", ""];
    else if (!redis.answers) [text, style] = [`Redis unavailable: ${redis.reason || "reason unknown"}.`, "bad"];
    else if (!now.stats.ready) [text, style] = [`Not ready: ${now.stats.reason || "reason unknown"}.`, "bad"];
    setText(byId("state"), text, style);
    const prefix = failure ? "No data - " : redis.answers ? "" : "Redis unavailable - ";
    document.title = `${prefix}Segment Redis Proxy at ${location.host}`;
    for (const plot of PLOTS) drawHeadline(plot, now);
    if (!reducedMotion.matches || Date.now() - lastDrawnAt >= REDUCED_MOTION_INTERVAL_MS) drawPlots();
  }

  // --- Polling. One request at a time: the next is scheduled when the last has ended.
  async function fetchSample() {
    const options = { cache: "no-store", signal: AbortSignal.timeout(REQUEST_TIMEOUT_MS) };
    const response = await fetch("stats", options).catch((error) => {
      const timedOut = error.name === "TimeoutError";
      throw new Error(timedOut ? `no response within ${REQUEST_TIMEOUT_MS / 1000} seconds` : "cannot connect");
    });
    if (!response.ok) throw new Error(`response status ${response.status}`);
    try {
      return toSample(Date.now(), await response.json(), latest);
    } catch {
      throw new Error("truncated or invalid response");
    }
  }

  async function poll() {
    if (isRequesting || paused || document.hidden) return;
    isRequesting = true;
    lastRequestAt = performance.now();
    const sample = await fetchSample().catch((error) => {
      const time = Date.now();
      failure = { since: failure ? failure.since : time, reason: error.message };
      return { time };
    });
    isRequesting = false;
    schedulePoll();
    if (sample.stats) {
      failure = null;
      latest = sample.stats;
      if (!paused) {
        for (const name of ["figures", "configuration"]) fillTable(byId(name), Object.entries(latest[name]));
      }
    }
    // After the clock was set back, samples from the future are dropped too.
    samples = samples.filter(({ time }) => time > sample.time - WINDOW_MS && time <= sample.time);
    samples.push(sample);
    if (!paused) render();
  }

  function schedulePoll() {
    clearTimeout(timer);
    timer = setTimeout(poll, Math.max(0, lastRequestAt + POLL_INTERVAL_MS - performance.now()));
  }

  // Updates the values of a table, which the page has in the same order. A restarted proxy may have
  // other rows.
  function fillTable(table, rows) {
    if (table.children.length !== rows.length) {
      table.replaceChildren(...rows.map(([name]) => {
        const head = createHtml("th", "", name);
        head.scope = "row";
        return createHtml("tr", "", head, createHtml("td", ""));
      }));
    }
    rows.forEach(([, value], index) => setText(table.children[index].children[1], value));
  }

  PLOTS.forEach(buildPlot);
  for (const id of ["state", "live", "pause"]) byId(id).hidden = false;
  byId("pause").addEventListener("click", () => {
    paused = !paused;
    byId("pause").textContent = paused ? "Resume" : "Pause";
    render();
    schedulePoll();
  });
  document.addEventListener("visibilitychange", schedulePoll);
  render();
  schedulePoll();
})();
