// Page of the dashboard: polls `stats` once a second, shows its problems and tables, and plots the
// last five minutes or the last hour.
//
// Data of the proxy is written by textContent and attributes only, so that no name or reason can
// become markup.

const REQUEST_TIMEOUT_MS = 5000;
// Time between two redraws if the user prefers reduced motion.
const REDUCED_MOTION_INTERVAL_MS = 5000;
const KEYBOARD_STEP = 1 / 60; // Share of a plot that an arrow key moves the pointer.
const MARGIN = { left: 46, right: 10, top: 18, bottom: 18 }; // Pixels for the labels.

const byId = (id) => document.getElementById(id);
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
const [live] = RANGES; // Has the newest sample.
let range = live; // The one that is shown.
let failure = null; // Reason of failed requests, and the time of the first.
let paused = false;
let isRequesting = false;
let lastRequestAt = -POLL_INTERVAL_MS; // Start of the last request, on the monotonic clock.
let timer = 0;
let lastDrawnAt = 0;
let pointer = null; // Pointer position in the plots, from 0 (left) to 1 (right).

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
  { title: "Evictions", axis: "entries evicted per second", format: rate,
    headline: (now) => [rate(now.evicted), "evictions/s"],
    series: [["evicted", "all", "one"], ["early", "within a tenth of CACHE_TTL", "two dashed"]],
    scale: (values) => linear(Math.max(0, ...values), compact),
    note: ({ stats: { cache } }) => `${count(cache.evicted)} since start` },
  { title: "Memory", axis: "MiB", format: bytes,
    headline: (now) => [bytes(now.memory), "resident"],
    series: [["memory", "resident", "one"], ["cached", "cached keys and values", "two dashed"]],
    scale: mebibytes },
  { title: "Redis round trip", axis: "time to the first reply, logarithmic", format: seconds,
    headline: (now) => [seconds(now.trip99), "99% within"],
    series: [["trip50", "median", "one"], ["trip99", "99%", "two"]],
    scale: (values) => logarithmic(values, seconds) },
  { title: "Redis", axis: "keys waiting for Redis", format: count, facts,
    headline: (now) => (now.stats.redis.answers ? ["Available", "", "good"] : ["Unavailable", "", "bad"]),
    series: [["inflight", "in flight", "one"], ["queued", "queued", "two dashed"]],
    band: "Redis unavailable", bands: (sample) => sample.outage,
    scale: (values) => linear(Math.max(0, ...values), compact, true) },
];

function facts(now) {
  const { redis } = now.stats;
  const errors = {};
  for (const sample of range.samples) {
    for (const kind in sample.errors) errors[kind] = (errors[kind] || 0) + sample.errors[kind];
  }
  const kinds = Object.keys(errors).filter((kind) => errors[kind] > 0)
    .map((kind) => `${count(errors[kind])} ${kind.replaceAll("_", " ")}`);
  return [...(redis.answers ? [] : [["Reason", redis.reason || "unknown", "bad"]]),
    ["Freshness", redis.freshness], ["Tracking", redis.tracking, redis.tracking === "lost" ? "bad" : ""],
    ["Connections", count(redis.connections)], ["Round trips", `${rate(now.trips)}/s`],
    ["Failed key reads", kinds.length ? `${kinds.join(", ")} (${range.title.toLowerCase()})` : "none"]];
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
  plot.svg = createSvg("svg", { role: "img", tabindex: 0 });
  if (plot.bands) {
    plot.legend.append(createHtml("li", "", createHtml("i", "key band"), createHtml("span", "", plot.band)));
  }
  const details = plot.facts ? [plot.list] : plot.note ? [plot.noteElement] : [];
  byId("plots").append(createHtml("article", plot.facts ? "card wide" : "card",
    createHtml("div", "", createHtml("h3", "", plot.title), plot.headlineElement, ...details),
    createHtml("div", "plot", plot.legend, plot.svg)));
  const movePointer = (to) => {
    pointer = to === null ? null : Math.min(1, Math.max(0, to));
    drawPlots();
  };
  plot.svg.addEventListener("pointermove", (event) => {
    const box = plot.svg.getBoundingClientRect();
    movePointer((event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right));
  });
  for (const end of ["pointerleave", "pointercancel", "blur"]) plot.svg.addEventListener(end, () => movePointer(null));
  plot.svg.addEventListener("keydown", (event) => {
    const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!direction && event.key !== "Escape") return;
    event.preventDefault();
    movePointer(direction ? (pointer ?? 1) + direction * KEYBOARD_STEP : null);
  });
  resizeObserver.observe(plot.svg);
}

// --- Drawing. `now` is the newest sample, or null while requests fail.
function linePath(key, x, y) {
  let path = "";
  let open = false;
  for (const sample of range.samples) {
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
  for (let index = 0; index <= 5; index++) {
    // On a narrow screen the second label would overlap the first.
    if (index === 1 && right - left < 280) continue;
    const minutes = `\u2212${((5 - index) * range.windowMs) / 300000}`;
    const label = { 0: `${minutes} min`, 5: "now" }[index] || minutes;
    const anchor = { 0: "start", 5: "end" }[index] || "middle";
    const x = left + ((right - left) * index) / 5;
    parts.push(createSvg("text", { x, y: bottom + 14, "text-anchor": anchor }, label));
  }
  return parts;
}

// `shown` is the sample whose values the text alternative has.
function drawPlot(plot, shown, end) {
  const { samples, windowMs } = range;
  const { width, height } = plot.svg.getBoundingClientRect();
  if (width === 0) return;
  const box = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: height - MARGIN.bottom };
  const values = plot.series.flatMap(([key]) => samples.map((sample) => sample[key])).filter(isKnown);
  const reference = plot.reference && live.latest ? plot.reference(live.latest, values) : null;
  const scale = plot.scale(values, reference);
  const x = (time) => box.right - ((end - time) / windowMs) * (box.right - box.left);
  const y = (value) => box.bottom - Math.max(0, scale.position(value)) * (box.bottom - box.top);
  const verticalLine = (kind, at) => createSvg("line", { class: kind, x1: at, x2: at, y1: box.top, y2: box.bottom });
  const parts = [];
  if (plot.bands) for (const { time } of samples.filter(plot.bands)) {
    const from = Math.max(box.left, x(time - range.intervalMs * 1.1));
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
  const time = pointer === null ? "Now" : clock(end - (1 - pointer) * windowMs);
  if (pointer !== null) {
    parts.push(verticalLine("pointer", box.left + pointer * (box.right - box.left)),
      createSvg("text", { class: "time", x: box.right, y: 10, "text-anchor": "end" }, time));
  }
  plot.svg.replaceChildren(...parts);
  plot.svg.setAttribute("aria-label", `${plot.title}, ${plot.axis}, ${range.title.toLowerCase()}. ${time}: ` +
    plot.series.map(([key, name]) => `${name} ${shown ? plot.format(shown[key]) : "unknown"}`).join(", "));
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
  const last = live.samples.at(-1);
  return last && !last.failed ? last : null;
}

// Draws all plots. The legends show the values at the pointer, or the newest values.
function drawPlots() {
  const end = live.samples.at(-1)?.time ?? Date.now();
  const distance = (sample) => Math.abs(sample.time - (end - (1 - pointer) * range.windowMs));
  const nearest = () => range.samples.filter((sample) => distance(sample) < range.intervalMs * 2)
    .sort((one, other) => distance(one) - distance(other))[0];
  const shown = pointer === null ? newestSample() : nearest();
  for (const plot of PLOTS) {
    drawPlot(plot, shown, end);
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
  const problems = now ? now.stats.problems : [];
  let [text, style] = ["Live: updated every second.", "good"];
  if (paused) [text, style] = ["Paused: values are from the time of the pause.", ""];
  else if (failure) {
    text = `No data from the proxy since ${clock(failure.since)}: ${failure.reason}. Retrying every second.`;
    style = "bad";
  } else if (!now) [text, style] = ["Waiting for the first data.", ""];
  else if (problems.length) {
    text += ` ${problems.length === 1 ? "One problem" : `${problems.length} problems`} found.`;
    style = problems[0].severity === "critical" ? "bad" : "warning";
  }
  setText(byId("state"), text, style);
  // Old data proves no health.
  byId("healthy").hidden = paused || failure !== null || byId("problems").children.length > 0;
  const prefix = failure ? "No data - " : problems.length ? `${problems[0].title} - ` : "";
  document.title = `${prefix}Segment Redis Proxy at ${location.host}`;
  for (const plot of PLOTS) drawHeadline(plot, now);
  if (!reducedMotion.matches || Date.now() - lastDrawnAt >= REDUCED_MOTION_INTERVAL_MS) drawPlots();
}

// --- Problems and tables, which the page has as HTML from the start.
function fillProblems(problems) {
  const items = problems.map(({ severity, title, text, since }) => {
    const label = severity === "critical" ? "Critical" : "Warning";
    const item = createHtml("li", severity, createHtml("strong", "", `${label}: ${title}`));
    if (since) {
      const time = createHtml("time", "", `since ${since.replace("T", " ").replace("Z", " UTC")}`);
      time.dateTime = since;
      item.append(" ", time);
    }
    item.append(createHtml("p", "", text));
    return item;
  });
  // Writes only changes: a screen reader repeats what is written.
  const texts = (elements) => [...elements].map((element) => element.textContent).join("\n");
  const list = byId("problems");
  if (texts(list.children) !== texts(items)) list.replaceChildren(...items);
}

// The first cell of a row is its head. A restarted proxy may have other rows.
function fillTable(body, rows) {
  const fits = rows.length === body.rows.length && rows.every((row, at) => row.length === body.rows[at].cells.length);
  if (!fits) {
    body.replaceChildren(...rows.map(([name, ...values]) => {
      const head = createHtml("th", "", name);
      head.scope = "row";
      return createHtml("tr", "", head, ...values.map((value) => createHtml("td", "", value)));
    }));
  }
  rows.forEach((row, at) => row.forEach((text, column) => setText(body.rows[at].cells[column], text)));
}

// --- Polling. One request at a time: the next is scheduled when the last has ended.
async function fetchStats() {
  const options = { cache: "no-store", signal: AbortSignal.timeout(REQUEST_TIMEOUT_MS) };
  // Without user and password, which the address of the page may have: fetch refuses such a URL, and
  // the browser sends them anyway.
  const url = Object.assign(new URL("stats", document.baseURI), { username: "", password: "" });
  const response = await fetch(url, options).catch((error) => {
    const timedOut = error.name === "TimeoutError";
    throw new Error(timedOut ? `no response within ${REQUEST_TIMEOUT_MS / 1000} seconds` : "cannot connect");
  });
  if (!response.ok) throw new Error(`response status ${response.status}`);
  const stats = await response.json().catch(() => null);
  const isValid = () => counters(stats).every(Number.isFinite) && Array.isArray(stats.problems) && stats.tables;
  try {
    if (isValid()) return stats;
  } catch {
    // A part is missing, perhaps because another version of the proxy was started.
  }
  throw new Error("truncated or invalid response; reload the page");
}

async function poll() {
  if (isRequesting || paused || document.hidden) return;
  isRequesting = true;
  lastRequestAt = performance.now();
  const stats = await fetchStats().catch((error) => {
    failure = { since: failure ? failure.since : Date.now(), reason: error.message };
    return null;
  });
  isRequesting = false;
  schedulePoll();
  if (stats) failure = null;
  for (const range of RANGES) record(range, Date.now(), stats);
  if (paused) return;
  if (stats) {
    fillProblems(stats.problems);
    for (const id in stats.tables) if (byId(id)) fillTable(byId(id), stats.tables[id]);
  }
  render();
}

function schedulePoll() {
  clearTimeout(timer);
  timer = setTimeout(poll, Math.max(0, lastRequestAt + POLL_INTERVAL_MS - performance.now()));
}

// --- Controls.
function setPressed(button, pressed) {
  button.setAttribute("aria-pressed", String(pressed));
}

function showRange(shown) {
  range = shown;
  for (const { button } of RANGES) setPressed(button, button === shown.button);
  setText(byId("live-title"), shown.title);
  render();
  drawPlots();
}

PLOTS.forEach(buildPlot);
for (const shown of RANGES) {
  shown.button = createHtml("button", "", shown.label);
  shown.button.type = "button";
  shown.button.addEventListener("click", () => {
    history.replaceState(null, "", location.pathname + shown.hash);
    showRange(shown);
  });
  byId("ranges").append(shown.button);
}
byId("pause").addEventListener("click", () => {
  paused = !paused;
  setPressed(byId("pause"), paused);
  render();
  schedulePoll();
});
document.addEventListener("visibilitychange", schedulePoll);
for (const id of ["state", "live", "controls"]) byId(id).hidden = false;
showRange(RANGES.find(({ hash }) => hash === location.hash) || live);
schedulePoll();
