
// --- Watch a key: an event stream that is opened on request. The page lacks this section on a port
// without keys.
const MAX_SHOWN_EVENTS = 10;
const MAX_EVENT_CHARACTERS = 60; // Of a value in the list of events.
const MAX_VALUE_CHARACTERS = 400; // Of the present value.

let watched = null; // The stream of the key that is watched, with its events.

// Returns the begin of a text, and its length if that is not all.
function shorten(text, most) {
  if (text.length <= most) return text;
  // Half of a character outside the basic plane would be shown as an error.
  const begin = text.slice(0, most).replace(/[\ud800-\udbff]$/, "");
  return `${begin}\u2026 (${count(text.length)} characters)`;
}

// Returns the text for the data of an event, which is the body of a response for the key.
function describeValue({ value, encoding, error }, most) {
  if (error) return shorten(error, most);
  if (value === null) return "(no such key)";
  if (value === "") return "(empty)";
  return `${encoding ? `(binary, as ${encoding}) ` : ""}${shorten(String(value), most)}`;
}

// Returns the address of the stream. `key/..` would lead to the page, and so the key is in a query.
function streamUrl(key) {
  const url = new URL(`watch?key=${encodeURIComponent(key)}`, document.baseURI);
  return Object.assign(url, { username: "", password: "" });
}

function drawWatched() {
  watched.frame = 0;
  setText(byId("watch-value"), watched.value);
  fillTable(byId("watch-events"), watched.events);
}

// Keeps an event. It is drawn with the next frame, so that a burst of events is drawn once.
function onWatchEvent(stream, { type, data }) {
  if (stream !== watched) return;
  const fields = JSON.parse(data);
  stream.value = describeValue(fields, MAX_VALUE_CHARACTERS);
  stream.events.unshift([clock(Date.now()), type, describeValue(fields, MAX_EVENT_CHARACTERS)]);
  stream.events.length = Math.min(stream.events.length, MAX_SHOWN_EVENTS);
  byId("watch-result").hidden = false;
  stream.frame ||= requestAnimationFrame(drawWatched);
}

// Returns the reason why the proxy refuses a stream, which `EventSource` does not tell.
async function refusalReason(url) {
  const options = { headers: { Accept: "text/event-stream" }, cache: "no-store",
    signal: AbortSignal.timeout(REQUEST_TIMEOUT_MS) };
  const response = await fetch(url, options).catch(() => null);
  if (!response) return "cannot connect";
  if (response.ok) {
    response.body.cancel();
    return "it would accept one now";
  }
  const { error } = await response.json().catch(() => ({}));
  return error || `response status ${response.status}`;
}

async function onWatchError(stream, key, url) {
  if (stream !== watched) return;
  if (stream.source.readyState !== EventSource.CLOSED) {
    setText(byId("watch-state"), `Connection lost at ${clock(Date.now())}: reconnecting to watch ${key}.`, "notice bad");
    return;
  }
  const reason = await refusalReason(url);
  if (stream !== watched) return;
  stopWatch(`Not watching ${key}. The proxy refused the stream: ${reason}. Press Watch to try again.`, "notice bad");
}

function startWatch(key) {
  stopWatch(`Connecting to watch ${shorten(key, MAX_EVENT_CHARACTERS)}.`);
  const [url, name] = [streamUrl(key), shorten(key, MAX_EVENT_CHARACTERS)];
  const stream = { source: new EventSource(url), events: [], value: "", frame: 0 };
  watched = stream;
  byId("watch-stop").disabled = false;
  byId("watch-result").hidden = true;
  for (const type of ["put", "gone"]) stream.source.addEventListener(type, (event) => onWatchEvent(stream, event));
  stream.source.addEventListener("open", () => {
    if (stream === watched) setText(byId("watch-state"), `Watching ${name} since ${clock(Date.now())}.`, "notice good");
  });
  stream.source.addEventListener("error", () => onWatchError(stream, name, url));
}

// The last value and the last events stay on the page.
function stopWatch(text, style = "notice") {
  if (watched) {
    watched.source.close();
    if (watched.frame) {
      cancelAnimationFrame(watched.frame);
      drawWatched();
    }
  }
  watched = null;
  byId("watch-stop").disabled = true;
  setText(byId("watch-state"), text, style);
}

if (byId("watch")) {
  byId("watch").hidden = false;
  byId("watch-form").addEventListener("submit", (event) => {
    event.preventDefault();
    startWatch(byId("watch-key").value);
  });
  byId("watch-stop").addEventListener("click", () => {
    stopWatch("Stopped.");
    // A disabled button would lose the focus to the begin of the page.
    byId("watch-key").focus();
  });
}
