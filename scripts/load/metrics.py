"""Reads the proxy's /metrics (Prometheus' text format) and computes figures from two readings."""

import http.client
import math
import re

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)",?')
ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


class Unreadable(Exception):
    """Failure to read or parse the page. `is_refused` is true if no process listens on the port."""

    def __init__(self, text, is_refused=False):
        super().__init__(text)
        self.is_refused = is_refused


def parse_line(line):
    """Returns name, labels and value of one series."""
    name = NAME.match(line)
    if not name:
        raise Unreadable("no metric: %r" % line[:100])
    rest, labels = line[name.end():], []
    if rest.startswith("{"):
        at = 1
        while not rest.startswith("}", at):
            label = LABEL.match(rest, at)
            if not label:
                raise Unreadable("no label: %r" % line[:100])
            labels.append((label.group(1), re.sub(r'\\[\\"n]', lambda found: ESCAPES[found.group()], label.group(2))))
            at = label.end()
        rest = rest[at + 1:]
    # A timestamp may follow the value.
    words = rest.split()
    if not 1 <= len(words) <= 2:
        raise Unreadable("no value: %r" % line[:100])
    try:
        return name.group(), tuple(sorted(labels)), float(words[0])
    except ValueError:
        raise Unreadable("no number: %r" % line[:100]) from None


class Page:
    """One reading of all metrics."""

    def __init__(self, text):
        if not text.endswith("\n"):
            raise Unreadable("the page is cut off: it does not end with a line feed")
        self.series = {}
        for line in text.split("\n"):
            if not line.strip() or line.startswith("#"):
                continue
            name, labels, value = parse_line(line)
            of_name = self.series.setdefault(name, {})
            if labels in of_name:
                raise Unreadable("duplicate series: %s %s" % (name, labels))
            of_name[labels] = value

    def get_value(self, name):
        """Returns the sum of a metric over its labels."""
        if name not in self.series:
            raise Unreadable("%s is missing" % name)
        return sum(self.series[name].values())

    def get_buckets(self, name):
        """Returns bounds and cumulative counts of a histogram, in ascending order."""
        result = sorted((float(dict(labels)["le"]), count) for labels, count in self.series[name + "_bucket"].items()) \
            if name + "_bucket" in self.series else []
        counts = [count for _, count in result]
        is_complete = bool(result) and result[-1][0] == math.inf and counts[-1] == self.get_value(name + "_count")
        if not is_complete or counts != sorted(counts):
            raise Unreadable("%s is no histogram" % name)
        return result


def compute_quantile(share, before, after):
    """Returns a quantile of what a histogram counted between two readings, or None without counts.

    Interpolates within the bucket.
    """
    counts = [(bound, now - then) for (bound, now), (_, then) in zip(after, before)]
    wanted = share * counts[-1][1]
    if counts[-1][1] <= 0:
        return None
    lower, below = 0.0, 0
    for bound, count in counts:
        if count >= wanted and count > below:
            # The last bucket has no upper bound to interpolate to.
            return lower if bound == math.inf else lower + (bound - lower) * (wanted - below) / (count - below)
        if bound != math.inf:
            lower = bound
        below = count
    return lower


class Reader:
    """Client that reads the page over one connection, which keeps the descriptor count stable."""

    # Seconds for one response: far longer than a busy machine takes.
    TIMEOUT_SECONDS = 20

    def __init__(self, host, port):
        self.connection = http.client.HTTPConnection(host, port, timeout=self.TIMEOUT_SECONDS)

    def read(self):
        """Returns the page as it is now."""
        try:
            self.connection.request("GET", "/metrics")
            response = self.connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            is_refused = isinstance(error, ConnectionRefusedError)
            raise Unreadable("/metrics: %s" % (str(error) or type(error).__name__), is_refused) from None
        if response.status != 200:
            raise Unreadable("/metrics answered with status %d" % response.status)
        return Page(body.decode())


def compute_sample(before, after, seconds):
    """Returns the gauges of the second reading, and rates since the first."""
    def count(name):
        return after.get_value(name) - before.get_value(name)

    sample = {
        "requests_per_second": count("segment_requests_total") / seconds,
        "memory": after.get_value("process_resident_memory_bytes"),
        "descriptors": after.get_value("process_open_fds"),
        "entries": after.get_value("segment_cache_entries"),
        "queue": after.get_value("segment_queue_length"),
        "evictions_per_second": count("segment_evictions_total") / seconds,
    }
    hits = count("segment_hits_total")
    # Requests that joined a fetch in flight are among the misses.
    keys = hits + count("segment_misses_total")
    sample["hit_ratio"] = hits / keys if keys > 0 else None
    for name, share, histogram in [("hit_p50", 0.5, "segment_hit_seconds"), ("hit_p99", 0.99, "segment_hit_seconds"),
                                   ("miss_p99", 0.99, "segment_miss_seconds")]:
        sample[name] = compute_quantile(share, before.get_buckets(histogram), after.get_buckets(histogram))
    return sample
