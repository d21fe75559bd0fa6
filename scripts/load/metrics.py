"""Reads the proxy's /metrics: Prometheus' text format, and what happened between two readings of it."""

import http.client
import math
import re

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)",?')
ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


class Unreadable(Exception):
    """The page could not be had, or is not what it must be. `gone` says that nobody listens there any more."""

    def __init__(self, text, gone=False):
        super().__init__(text)
        self.gone = gone


def parse_line(line):
    """Name, labels and value of one series."""
    name = NAME.match(line)
    if not name:
        raise Unreadable("no metric: %r" % line[:100])
    rest, labels = line[name.end():], []
    if rest.startswith("{"):
        place = 1
        while not rest.startswith("}", place):
            label = LABEL.match(rest, place)
            if not label:
                raise Unreadable("no label: %r" % line[:100])
            labels.append((label.group(1), re.sub(r'\\[\\"n]', lambda found: ESCAPES[found.group()], label.group(2))))
            place = label.end()
        rest = rest[place + 1:]
    # A time may stand behind the value.
    words = rest.split()
    if not 1 <= len(words) <= 2:
        raise Unreadable("no value: %r" % line[:100])
    try:
        return name.group(), tuple(sorted(labels)), float(words[0])
    except ValueError:
        raise Unreadable("no number: %r" % line[:100]) from None


class Page:
    """One reading."""

    def __init__(self, text):
        if not text.endswith("\n"):
            raise Unreadable("the page does not end with a line feed: it is cut off")
        self.series = {}
        for line in text.split("\n"):
            if not line.strip() or line.startswith("#"):
                continue
            name, labels, value = parse_line(line)
            of_name = self.series.setdefault(name, {})
            if labels in of_name:
                raise Unreadable("twice: %s %s" % (name, labels))
            of_name[labels] = value

    def value(self, name):
        """Of a metric: the sum over its labels."""
        if name not in self.series:
            raise Unreadable("%s is missing" % name)
        return sum(self.series[name].values())

    def buckets(self, name):
        """Bounds and cumulative counts of a histogram, in ascending order."""
        result = sorted((float(dict(labels)["le"]), count) for labels, count in self.series[name + "_bucket"].items()) \
            if name + "_bucket" in self.series else []
        counts = [count for _, count in result]
        if not result or result[-1][0] != math.inf or counts != sorted(counts) or counts[-1] != self.value(name + "_count"):
            raise Unreadable("%s is no histogram" % name)
        return result


def quantile(share, before, after):
    """Of what a histogram counted between two readings, interpolated within the bucket; None if that is nothing."""
    counts = [(bound, now - then) for (bound, now), (_, then) in zip(after, before)]
    wanted = share * counts[-1][1]
    if counts[-1][1] <= 0:
        return None
    lower, below = 0.0, 0
    for bound, count in counts:
        if count >= wanted and count > below:
            # Nobody knows how far above the last bound.
            return lower if bound == math.inf else lower + (bound - lower) * (wanted - below) / (count - below)
        if bound != math.inf:
            lower = bound
        below = count
    return lower


class Reader:
    """Asks for the page over one connection, so that asking changes nothing in the number of descriptors."""

    # Seconds for one answer: far more than a busy machine takes.
    PATIENCE = 20

    def __init__(self, host, port):
        self.connection = http.client.HTTPConnection(host, port, timeout=self.PATIENCE)

    def read(self):
        try:
            self.connection.request("GET", "/metrics")
            answer = self.connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            gone = isinstance(error, ConnectionRefusedError)
            raise Unreadable("/metrics: %s" % (str(error) or type(error).__name__), gone) from None
        if answer.status != 200:
            raise Unreadable("/metrics answers %d" % answer.status)
        return Page(body.decode())


def difference(before, after, seconds):
    """What a reading says, and what happened since the one before it."""
    def counted(name):
        return after.value(name) - before.value(name)

    sample = {
        "requests_per_second": counted("segment_requests_total") / seconds,
        "memory": after.value("process_resident_memory_bytes"),
        "descriptors": after.value("process_open_fds"),
        "entries": after.value("segment_cache_entries"),
        "queue": after.value("segment_queue_length"),
        "evictions_per_second": counted("segment_evictions_total") / seconds,
    }
    hits = counted("segment_hits_total")
    # Those that were being read already are among the misses.
    keys = hits + counted("segment_misses_total")
    sample["hit_ratio"] = hits / keys if keys > 0 else None
    for name, share, histogram in [("hit_p50", 0.5, "segment_hit_seconds"), ("hit_p99", 0.99, "segment_hit_seconds"),
                                   ("miss_p99", 0.99, "segment_miss_seconds")]:
        sample[name] = quantile(share, before.buckets(histogram), after.buckets(histogram))
    return sample
