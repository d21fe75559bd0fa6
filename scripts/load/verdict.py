"""Whether a run passed. Nothing here depends on how fast the machine is."""

import statistics

# Bytes, for each worker, by which memory may have grown between the second fifth of the time and the last. It is what a
# proxy takes that has met all of this load but nothing before: 9 MB of long values in the cache, as many on their way in
# replies and in the helpers that read them, and what the allocator gives back late. On a fast machine that is there after
# some seconds, on a slow one perhaps only after the second fifth, and that is no failure. A leak is seen when it has come
# to this much in three fifths of the time: 5 bytes a request in ten minutes of 15,000 requests a second.
MEMORY_TOLERANCE = 24 * 2 ** 20
# What the proxy's log must not hold.
BAD_WORDS = ("panicked", "please report")

NAMES = {
    "hot": "HTTP, hot keys", "cold": "HTTP, cold keys", "missing": "HTTP, missing keys", "large": "HTTP, 64 KiB to 1 MiB",
    "expiring": "HTTP, expiring keys", "resp": "RESP, GET", "resp-pipelined": "RESP, GET, 16 at once",
    "fresh": "HTTP, a connection each", "changing": "RESP, changing keys, compared",
    "resp-checked": "RESP, GET and MGET, compared", "writer": "the writer of expiring keys",
}
# Ways in which a connection breaks. `lost` is one that was closed before the answer: wrk itself does not count it.
BROKEN = {"lost": "before the answer", "connect": "when connecting", "read": "when reading", "write": "when writing",
          "socket": "in all"}
# Kinds that meet values which expire.
EXPIRING = ("expiring", "resp-checked")
# Kinds whose values may be out of date.
DATED = EXPIRING + ("changing",)


def descriptors_limit(results, connections):
    """How many may be open after the load: as many as before it, but for connections to Redis, which come with it. There are
    `connections` by then."""
    return results["descriptors_before"] - results["redis_connections_before"] + connections


def fifth(samples, seconds, number):
    """Memory in one fifth of the time, the first being 0."""
    return [sample["memory"] for sample in samples if number <= sample["at"] * 5 / seconds < number + 1]


def example(figures, *fields):
    """What a client said about one of these errors, in brackets, if it said anything."""
    for line in figures["complaints"]:
        field, _, text = line.partition(": ")
        if field in fields:
            return " (%s)" % text
    return ""


def of_kind(kind, figures):
    """What is wrong with one kind of load."""
    name = NAMES[kind]
    if figures["code"] != 0 or "requests" not in figures:
        yield "%s: the client ended with %s%s%s" % (
            name, figures["code"], "" if "requests" in figures else " and left no result",
            ": " + figures["complaints"][-1] if figures["complaints"] else "")
    if figures.get("requests") == 0:
        yield "%s: no requests" % name
    elif kind in EXPIRING and figures.get("living") == 0:
        yield "%s: no value that expires was ever served, so that none was checked" % name
    for field, what in [("unexpected", "unexpected answers"), ("wrong", "wrong values"),
                        ("stale", "values served after their time"), ("timeout", "answers that came too late"),
                        ("unanswered", "requests that were never answered")]:
        if figures.get(field):
            yield "%s: %d %s%s" % (name, figures[field], what, example(figures, field))
    broken = {field: figures[field] for field in BROKEN if figures.get(field)}
    if broken:
        yield "%s: connections broke: %s%s" % (
            name, ", ".join("%d %s" % (count, BROKEN[field]) for field, count in broken.items()), example(figures, *broken))


def of_memory(results):
    samples, seconds = results["samples"], min(results["seconds"], results["planned"])
    early, late = fifth(samples, seconds, 1), fifth(samples, seconds, 4)
    if not early or not late:
        yield "too few readings of /metrics to judge memory"
        return
    before, after = statistics.median(early), statistics.median(late)
    if after > before + MEMORY_TOLERANCE * results["workers"]:
        yield "memory grew from %.1f to %.1f MiB (medians of the second and the last fifth)" % (before / 2 ** 20, after / 2 ** 20)


def of_descriptors(results):
    after, limit = results["descriptors_after"], descriptors_limit(results, results["redis_connections_after"] or 0)
    if after is None:
        yield "/metrics could not be read after the load"
    elif after > limit:
        yield "%d descriptors are open after the load, and %d would be right: %d were open before it, and there are %d connections to " \
            "Redis instead of %d" % (after, limit, results["descriptors_before"], results["redis_connections_after"],
                                     results["redis_connections_before"])


def of_log(text):
    for line in text.splitlines():
        if any(word in line for word in BAD_WORDS):
            yield "the proxy's log: %s" % line.strip()[:300]


def reasons(results, log, events):
    """Why the run failed; none when it passed. `events` is what load.sh saw of the processes it started."""
    found = list(events)
    if results["early"]:
        found.append("it was ended after %.0f of %d s: %s" % (results["seconds"], results["planned"], results["early"]))
    for kind, figures in results["kinds"].items():
        found.extend(of_kind(kind, figures))
    if results["unreadable"]:
        found.append("%d readings of /metrics failed: %s" % (len(results["unreadable"]), results["unreadable"][0]))
    found.extend(of_memory(results))
    found.extend(of_descriptors(results))
    found.extend(of_log(log))
    return found
