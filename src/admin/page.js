"use strict";
// Asks for `stats` once a second and plots what came of the last five minutes. Whatever the proxy sends is shown by
// textContent and attributes only, so that no name or reason can become markup.
(() => {
  const PERIOD = 1000; // Milliseconds from one request to the next.
  const PATIENCE = 5000; // Milliseconds after which a request has failed.
  const SPAN = 300000; // Milliseconds that are kept and shown.
  const LONGEST_STEP = 10; // Seconds between two samples that one rate may stand for; beyond, nobody was looking.
  const ENOUGH = 50; // What must have been counted for a ratio or a percentile; with less, samples further back are taken...
  const FARTHEST = 10000; // ...up to this many milliseconds.
  const CALM_PERIOD = 5000; // Milliseconds between two drawings for those who want less motion.
  const MARGIN = { left: 46, right: 10, top: 18, bottom: 18 }; // Pixels around a plot, for the labels.

  const byId = (id) => document.getElementById(id);
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let samples = []; // Oldest first. A sample without `stats` is a request that failed.
  let latest = null; // The last stats that came, to take differences to.
  let failure = null; // What is the matter with the proxy, and since when.
  let paused = false;
  let asking = false; // Whether a request is under way.
  let asked = -PERIOD; // When the last one began, on a clock that nobody sets.
  let timer = 0;
  let drawn = 0; // When the plots were drawn last.
  let pointer = null; // Where in the plots the pointer is, from 0 (left) to 1.

  // --- Figures as text. The page is in English whatever the browser's language, and so are its numbers.
  const NOTHING = "\u2013";
  const inFull = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const inShort = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });
  const known = (value) => value !== null && value !== undefined;
  const some = (format) => (value) => (known(value) ? format(value) : NOTHING);
  const count = some((value) => inFull.format(value));
  const rate = some((value) => (value > 0 && value < 10 ? value.toFixed(1) : inFull.format(value)));
  const short = some((value) => inShort.format(value));
  // Rounded down: 100% says that there was no miss at all.
  const percent = some((value) => (value === 1 ? "100%" : `${(Math.floor(value * 1000) / 10).toFixed(1)}%`));
  const three = (value) => String(Number(value.toPrecision(3)));
  const seconds = some((value) => {
    if (value === Infinity) return "above the scale";
    if (value < 0.001) return `${three(value * 1e6)} \u00b5s`;
    return value < 1 ? `${three(value * 1000)} ms` : `${three(value)} s`;
  });
  const bytes = some((value) => {
    const power = Math.min(4, Math.floor(Math.log2(Math.max(1, value)) / 10));
    return `${three(value / 1024 ** power)} ${["bytes", "KiB", "MiB", "GiB", "TiB"][power]}`;
  });
  const clock = (time) => new Date(time).toLocaleTimeString("en-GB");
  function duration(value) {
    const [days, hours, minutes] = [Math.floor(value / 86400), Math.floor(value / 3600) % 24, Math.floor(value / 60) % 60];
    if (days > 0) return `${count(days)} d ${hours} h`;
    return hours > 0 ? `${hours} h ${minutes} min` : minutes > 0 ? `${minutes} min` : `${Math.floor(value)} s`;
  }

  // --- From stats to samples.
  const sum = (numbers) => Object.values(numbers).reduce((total, number) => total + number, 0);

  // Everything that only grows while the proxy runs. If any of it shrinks, another process answers.
  const counters = (stats) => [stats.uptime_seconds, stats.redis.round_trips, stats.latency.hit.counts, stats.latency.miss.counts,
    stats.keys, stats.errors, stats.requests.http, stats.requests.resp].flatMap((part) => (typeof part === "number" ? part : Object.values(part)));

  function restarted(before, now) {
    const [old, young] = [counters(before), counters(now)];
    return old.length !== young.length || old.some((value, index) => young[index] < value);
  }

  // The value that `share` of what was counted between two samples is below, interpolated within its bucket.
  function percentile(bounds, before, now, share) {
    const counts = now.counts.map((value, index) => value - before.counts[index]);
    let rest = share * sum(counts);
    if (rest === 0) return null;
    for (const [index, upper] of bounds.entries()) {
      const lower = index > 0 ? bounds[index - 1] : 0;
      if (counts[index] > 0 && rest <= counts[index]) return lower + ((upper - lower) * rest) / counts[index];
      rest -= counts[index];
    }
    return Infinity;
  }

  // The stats to take a difference to, so that little traffic gives a steady figure and much traffic one of its second.
  function earlier(time, stats, before, counted) {
    let base = before;
    for (let index = samples.length - 1; index >= 0 && counted(stats) - counted(base) < ENOUGH; index--) {
      if (time - samples[index].time > FARTHEST + PERIOD / 2) break;
      base = samples[index].stats || base;
      if (samples[index].first) break;
    }
    return base;
  }

  function measure(time, stats, before) {
    const { cache, redis, latency } = stats;
    if (!counters(stats).every(Number.isFinite)) throw new TypeError("a counter is not a number");
    const sample = { time, stats, entries: cache.entries, queued: redis.queued, flight: redis.in_flight, errors: {} };
    sample.restart = before !== null && restarted(before, stats);
    const step = before === null ? 0 : stats.uptime_seconds - before.uptime_seconds;
    sample.first = sample.restart || step > LONGEST_STEP || step <= 0;
    if (sample.first) return sample;
    const grown = (part) => sum(part(stats)) - sum(part(before));
    sample.http = grown((of) => of.requests.http) / step;
    sample.resp = grown((of) => of.requests.resp) / step;
    sample.requests = sample.http + sample.resp;
    sample.failed = grown((of) => [of.requests.http.failed, of.requests.resp.failed]) / step;
    sample.trips = grown((of) => [of.redis.round_trips]) / step;
    sample.hits = grown((of) => [of.keys.hits]) / step;
    sample.misses = grown((of) => [of.keys.misses]) / step;
    const looked = ({ keys }) => keys.hits + keys.misses; // The collapsed are among the misses.
    const old = earlier(time, stats, before, looked);
    const asked = looked(stats) - looked(old);
    sample.ratio = asked > 0 ? (stats.keys.hits - old.keys.hits) / asked : null;
    const within = (kind, share) =>
      percentile(latency.bounds, earlier(time, stats, before, (of) => sum(of.latency[kind].counts)).latency[kind], latency[kind], share);
    [sample.hit50, sample.hit99, sample.miss99] = [within("hit", 0.5), within("hit", 0.99), within("miss", 0.99)];
    for (const kind of Object.keys(stats.errors)) sample.errors[kind] = stats.errors[kind] - before.errors[kind];
    return sample;
  }

  // --- Scales: where a value is between the bottom (0) and the top (1) of a plot, and which values get a line.
  function linear(most, format, whole) {
    const rough = Math.max(most, whole ? 1 : 0.4) / 4;
    const ten = 10 ** Math.floor(Math.log10(rough));
    const step = Math.max(whole ? 1 : 0, ten * [1, 2, 5, 10].find((factor) => ten * factor >= rough * 0.999));
    const lines = Math.max(1, Math.ceil((most / step) * 0.999));
    const ticks = Array.from({ length: lines + 1 }, (_, index) => index * step);
    return { place: (value) => value / (lines * step), ticks, format };
  }
  const ratios = () => ({ place: (value) => value, ticks: [0, 0.25, 0.5, 0.75, 1], format: (value) => `${value * 100}%` });

  function logarithmic(values, format) {
    const real = values.filter((value) => value > 0 && value < Infinity);
    const low = real.length ? Math.floor(Math.log10(Math.min(...real)) + 1e-9) : -5;
    const high = Math.max(low + 2, real.length ? Math.ceil(Math.log10(Math.max(...real)) - 1e-9) : -2);
    const ticks = Array.from({ length: high - low + 1 }, (_, index) => 10 ** (low + index));
    return { place: (value) => Math.min(1, (Math.log10(value) - low) / (high - low)), ticks, format };
  }

  // --- The plots. `scale` gets all values that are shown.
  const PLOTS = [
    { title: "Requests", axis: "requests per second", big: (now) => [rate(now.requests), "requests/s"], format: rate,
      series: [["requests", "all", "one"], ["failed", "failed", "bad dashed"]],
      scale: (values) => linear(Math.max(0, ...values), short),
      note: (now) => `HTTP ${rate(now.http)}/s, Redis protocol ${rate(now.resp)}/s` },
    { title: "Hit ratio", axis: "share of keys found in the cache", big: (now) => [percent(now.ratio), "of keys"], format: percent,
      series: [["ratio", "hits", "one"]], scale: ratios,
      note: (now) => `hits ${rate(now.hits)}/s, misses ${rate(now.misses)}/s` },
    { title: "Latency", axis: "response time, logarithmic", big: (now) => [seconds(now.hit99), "99% of hits within"], format: seconds,
      series: [["hit50", "hits, median", "one"], ["hit99", "hits, 99%", "two"], ["miss99", "misses, 99%", "three dashed"]],
      scale: (values) => logarithmic(values, seconds) },
    { title: "Entries", axis: "keys in the cache", big: (now) => [count(now.entries), "keys"], format: count, series: [["entries", "entries", "one"]],
      // A capacity that is far away would press the line to the ground: then it is only told.
      reference: ({ cache }, values) => (Math.max(0, ...values) >= cache.capacity / 10 ? cache.capacity : null),
      scale: (values, reference) => linear(Math.max(0, ...values, reference || 0), short, true),
      note: ({ stats: { cache } }) => `${percent(cache.entries / cache.capacity)} of ${count(cache.capacity)}; ` +
        `${bytes(cache.bytes)}${cache.capacity_bytes > 0 ? ` of ${bytes(cache.capacity_bytes)}` : ""}` },
    { title: "Redis", axis: "keys waiting for Redis", format: count, facts,
      big: (now) => (now.stats.redis.answers ? ["Available", "", "good"] : ["Unavailable", "", "bad"]),
      series: [["flight", "in flight", "one"], ["queued", "queued", "two dashed"]],
      band: "Redis unavailable", bands: (sample) => sample.stats && !sample.stats.redis.answers,
      scale: (values) => linear(Math.max(0, ...values), short, true) },
  ];

  function facts(now) {
    const { redis } = now.stats;
    const errors = {};
    for (const sample of samples) for (const kind in sample.errors) errors[kind] = (errors[kind] || 0) + sample.errors[kind];
    const kinds = Object.keys(errors).filter((kind) => errors[kind] > 0).map((kind) => `${count(errors[kind])} ${kind.replaceAll("_", " ")}`);
    return [...(redis.answers ? [] : [["Reason", redis.reason || "unknown", "bad"]]),
      ["Freshness", redis.freshness], ["Tracking", redis.tracking, redis.tracking === "lost" ? "bad" : ""],
      ["Connections", count(redis.connections)], ["Round trips", `${rate(now.trips)}/s`],
      ["Failed key reads", kinds.length ? `${kinds.join(", ")} (last 5 minutes)` : "none in the last 5 minutes"]];
  }

  // --- Elements.
  function make(name, className, ...children) {
    const element = document.createElement(name);
    element.className = className;
    element.append(...children);
    return element;
  }
  function shape(name, attributes, text = "") {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    element.textContent = text;
    return element;
  }
  // Leaves what has not changed alone: a screen reader reads a status again whenever it is written.
  function write(element, text, className) {
    if (element.textContent !== text) element.textContent = text;
    if (className !== undefined && element.className !== className) element.className = className;
  }

  const resized = new ResizeObserver(() => draw());

  function build(plot) {
    plot.now = make("p", "now", plot.value = make("span", ""), plot.unit = make("small", ""));
    plot.remark = make("p", "note");
    plot.legend = make("ul", "legend", ...plot.series.map((series) => {
      series.value = make("b", "", NOTHING);
      return make("li", "", make("i", `key ${series[2]}`), make("span", "", `${series[1]} `), series.value);
    }));
    plot.list = make("dl", "");
    plot.svg = shape("svg", { role: "img" });
    if (plot.bands) plot.legend.append(make("li", "", make("i", "key band"), make("span", "", plot.band)));
    const under = plot.facts ? [plot.list] : plot.note ? [plot.remark] : [];
    byId("plots").append(make("article", plot.facts ? "card wide" : "card",
      make("div", "", make("h3", "", plot.title), plot.now, ...under), make("div", "plot", plot.legend, plot.svg)));
    plot.svg.addEventListener("pointermove", (event) => {
      const box = plot.svg.getBoundingClientRect();
      pointer = Math.min(1, Math.max(0, (event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right)));
      draw();
    });
    for (const end of ["pointerleave", "pointercancel"]) plot.svg.addEventListener(end, () => { pointer = null; draw(); });
    resized.observe(plot.svg);
  }

  // --- Drawing. `now` is the newest sample, or null while the proxy does not answer.
  function line(key, x, y) {
    let path = "";
    let open = false;
    for (const sample of samples) {
      if (!known(sample[key]) || sample.first) open = false;
      if (!known(sample[key])) continue;
      // A move without a line is invisible: the tiny line makes a lone sample a dot.
      path += `${open ? "L" : "M"}${x(sample.time).toFixed(1)} ${y(sample[key]).toFixed(1)}${open ? "" : "h.1"}`;
      open = true;
    }
    return path;
  }

  // The lines and labels of both axes.
  function axes(plot, scale, { left, right, top, bottom }, y) {
    const parts = [shape("text", { x: left, y: 10 }, plot.axis)];
    for (const tick of scale.ticks) {
      parts.push(shape("line", { class: tick === scale.ticks[0] ? "base" : "", x1: left, x2: right, y1: y(tick), y2: y(tick) }),
        shape("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, scale.format(tick)));
    }
    // On a phone the second label would run into the first.
    ["\u22125 min", right - left < 280 ? "" : "\u22124", "\u22123", "\u22122", "\u22121", "now"].forEach((label, index) => parts.push(
      shape("text", { x: left + ((right - left) * index) / 5, y: bottom + 14, "text-anchor": { 0: "start", 5: "end" }[index] || "middle" }, label)));
    return parts;
  }

  function drawPlot(plot, now, end) {
    const { width, height } = plot.svg.getBoundingClientRect();
    if (width === 0) return;
    const box = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: height - MARGIN.bottom };
    const values = plot.series.flatMap(([key]) => samples.map((sample) => sample[key])).filter(known);
    const reference = plot.reference && latest ? plot.reference(latest, values) : null;
    const scale = plot.scale(values, reference);
    const x = (time) => box.right - ((end - time) / SPAN) * (box.right - box.left);
    const y = (value) => box.bottom - Math.max(0, scale.place(value)) * (box.bottom - box.top);
    const upright = (kind, at) => shape("line", { class: kind, x1: at, x2: at, y1: box.top, y2: box.bottom });
    const parts = [];
    if (plot.bands) for (const { time } of samples.filter(plot.bands)) {
      const from = Math.max(box.left, x(time - PERIOD * 1.1));
      parts.push(shape("rect", { x: from, y: box.top, width: Math.max(0, x(time) - from), height: box.bottom - box.top }));
    }
    parts.push(...axes(plot, scale, box, y));
    if (reference !== null) parts.push(
      shape("line", { class: "reference", x1: box.left, x2: box.right, y1: y(reference), y2: y(reference) }),
      shape("text", { class: "label", x: box.right - 4, y: y(reference) + 12, "text-anchor": "end" }, "capacity"));
    for (const { time } of samples.filter((sample) => sample.restart)) parts.push(upright("reference", x(time)),
      shape("text", { class: "label", x: Math.min(x(time) + 4, box.right - 40), y: box.top + 12 }, "restart"));
    for (const [key, , style] of plot.series) parts.push(shape("path", { class: style, d: line(key, x, y) }));
    if (pointer !== null) parts.push(upright("pointer", box.left + pointer * (box.right - box.left)),
      shape("text", { class: "time", x: box.right, y: 10, "text-anchor": "end" }, clock(end - (1 - pointer) * SPAN)));
    plot.svg.replaceChildren(...parts);
    plot.svg.setAttribute("aria-label", `${plot.title}, ${plot.axis}, last 5 minutes. Now: ` +
      plot.series.map(([key, name]) => `${name} ${now ? plot.format(now[key]) : "unknown"}`).join(", "));
  }

  function drawNow(plot, now) {
    const [value, unit, style] = now ? plot.big(now) : [NOTHING, ""];
    write(plot.value, value);
    write(plot.unit, unit);
    write(plot.remark, (now && plot.note && plot.note(now)) || "\u00a0");
    plot.now.className = `now ${style || ""}`;
    const list = now && plot.facts ? plot.facts(now) : [];
    const names = list.map(([name]) => name);
    // Built anew only when it must be: an operator wants to select the reason and copy it.
    if (String(plot.names) !== String(names)) plot.list.replaceChildren(...names.flatMap((name) => [make("dt", "", name), make("dd", "")]));
    plot.names = names;
    list.forEach(([, text, look], index) => write(plot.list.children[2 * index + 1], text, look || ""));
  }

  const newest = () => (samples.length && samples[samples.length - 1].stats ? samples[samples.length - 1] : null);

  // The plots, and beside them the values at the pointer, or the newest.
  function draw() {
    const end = samples.length ? samples[samples.length - 1].time : Date.now();
    const far = (sample) => Math.abs(sample.time - (end - (1 - pointer) * SPAN));
    const nearest = () => samples.filter((sample) => far(sample) < PERIOD * 2).sort((one, other) => far(one) - far(other))[0];
    const shown = pointer === null ? newest() : nearest();
    for (const plot of PLOTS) {
      drawPlot(plot, newest(), end);
      for (const series of plot.series) write(series.value, shown ? plot.format(shown[series[0]]) : NOTHING);
    }
    drawn = Date.now();
  }

  const about = ({ version, uptime_seconds: uptime, workers, clients }) =>
    `${version} at ${location.host}, up ${duration(uptime)}, ${count(workers)} ${workers === 1 ? "worker" : "workers"}, ` +
    `${count(clients.connected)} of ${count(clients.most)} client connections`;

  function show() {
    const now = newest();
    write(byId("about"), now ? about(now.stats) : `at ${location.host}`);
    const redis = now ? now.stats.redis : { answers: true };
    let [text, style] = ["Live: updated every second.", "good"];
    if (paused) [text, style] = ["Paused: values are from the time of the pause.", ""];
    else if (failure) [text, style] = [`No data from the proxy since ${clock(failure.since)}: ${failure.reason}. Retrying every second.`, "bad"];
    else if (!now) [text, style] = ["Waiting for the first data.", ""];
    else if (!redis.answers) [text, style] = [`Redis unavailable: ${redis.reason || "reason unknown"}.`, "bad"];
    else if (!now.stats.ready) [text, style] = [`Not ready: ${now.stats.reason || "reason unknown"}.`, "bad"];
    write(byId("state"), text, style);
    document.title = `${failure ? "No data - " : redis.answers ? "" : "Redis unavailable - "}Segment Redis Proxy at ${location.host}`;
    for (const plot of PLOTS) drawNow(plot, now);
    if (!calm.matches || Date.now() - drawn >= CALM_PERIOD) draw();
  }

  // --- Asking. One request at a time: the next is set up when the one before has ended.
  async function request() {
    const answer = await fetch("stats", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) }).catch((error) => {
      throw new Error(error.name === "TimeoutError" ? `no response within ${PATIENCE / 1000} seconds` : "cannot connect");
    });
    if (!answer.ok) throw new Error(`response status ${answer.status}`);
    try {
      return measure(Date.now(), await answer.json(), latest);
    } catch {
      throw new Error("truncated or invalid response");
    }
  }

  async function ask() {
    if (asking || paused || document.hidden) return;
    asking = true;
    asked = performance.now();
    const sample = await request().catch((error) => {
      const time = Date.now();
      failure = { since: failure ? failure.since : time, reason: error.message };
      return { time };
    });
    asking = false;
    soon();
    if (sample.stats) {
      failure = null;
      latest = sample.stats;
      if (!paused) for (const name of ["figures", "configuration"]) fill(byId(name), Object.entries(latest[name]));
    }
    // A clock that was set back leaves samples of the future: they go too.
    samples = samples.filter(({ time }) => time > sample.time - SPAN && time <= sample.time);
    samples.push(sample);
    if (!paused) show();
  }

  function soon() {
    clearTimeout(timer);
    timer = setTimeout(ask, Math.max(0, asked + PERIOD - performance.now()));
  }

  // The tables that the page came with are kept up to date. A restart may bring other rows.
  function fill(table, rows) {
    const cells = [...table.children];
    if (cells.length !== rows.length || cells.some((row, index) => row.children[0].textContent !== rows[index][0])) {
      table.replaceChildren(...rows.map(([name]) => {
        const head = make("th", "", name);
        head.scope = "row";
        return make("tr", "", head, make("td", ""));
      }));
    }
    rows.forEach(([, value], index) => write(table.children[index].children[1], value));
  }

  PLOTS.forEach(build);
  for (const id of ["state", "live", "pause"]) byId(id).hidden = false;
  byId("pause").addEventListener("click", () => {
    paused = !paused;
    byId("pause").textContent = paused ? "Resume" : "Pause";
    show();
    soon();
  });
  document.addEventListener("visibilitychange", soon);
  show();
  soon();
})();
