"""Decides if a run passed. No reason to fail depends on the speed of the machine."""

import statistics

# Bytes for each worker by which memory may grow from the second fifth of the run to the last. A
# proxy under all of this load takes that much once: 9 MB of long values in the cache, as many in
# replies and in the fetchers, and pages that the allocator returns late. A fast machine reaches
# that state within seconds, a slow one perhaps after the second fifth, which is no failure. A leak
# shows once three fifths of the run exceed the limit (5 bytes a request in ten minutes at 15,000
# requests/s).
MEMORY_TOLERANCE = 24 * 2 ** 20
# Words that the proxy's log must not contain.
BAD_WORDS = ("panicked", "please report")

NAMES = {
    "hot": "HTTP, hot keys", "cold": "HTTP, cold keys", "missing": "HTTP, missing keys",
    "large": "HTTP, 64 KiB to 1 MiB", "expiring": "HTTP, expiring keys",
    "resp": "RESP, GET", "resp-pipelined": "RESP, GET, pipelined by 16",
    "fresh": "HTTP, one connection per request", "changing": "RESP, changing keys, compared",
    "resp-checked": "RESP, GET and MGET, compared", "writer": "the writer of expiring keys",
}
# Phases in which a connection can break. `lost` means closed before the reply, which wrk does not
# count.
BROKEN = {"lost": "before the reply", "connect": "while connecting", "read": "while reading", "write": "while writing",
          "socket": "in total"}
# Kinds that read expiring values.
EXPIRING = ("expiring", "resp-checked")
# Kinds that detect stale values.
CHECKED_FOR_STALE = EXPIRING + ("changing",)


def compute_descriptor_limit(results, connections):
    """Returns the maximum of descriptors that may be open after the load.

    These are the descriptors from before it, plus one for each connection to Redis opened since.
    `connections` is the number of connections to Redis now.
    """
    return results["descriptors_before"] - results["redis_connections_before"] + connections


def select_memory(samples, seconds, fifth):
    """Returns the memory readings in one fifth of the run; the first is fifth 0."""
    return [sample["memory"] for sample in samples if fifth <= sample["at"] * 5 / seconds < fifth + 1]


def format_example(figures, *fields):
    """Returns a client's first message about one of these errors, in brackets, or nothing."""
    for line in figures["problems"]:
        field, _, text = line.partition(": ")
        if field in fields:
            return " (%s)" % text
    return ""


def judge_kind(kind, figures):
    """Yields the failures of one kind of load."""
    name = NAMES[kind]
    if figures["code"] != 0 or "requests" not in figures:
        yield "%s: the client exited with %s%s%s" % (
            name, figures["code"], "" if "requests" in figures else " and left no result",
            ": " + figures["problems"][-1] if figures["problems"] else "")
    if figures.get("requests") == 0:
        yield "%s: no requests" % name
    elif kind in EXPIRING and figures.get("expiring_values") == 0:
        yield "%s: no value of an expiring key was served, so none was checked" % name
    for field, what in [("unexpected", "unexpected replies"), ("wrong", "wrong values"),
                        ("stale", "stale values"), ("timeout", "replies that came too late"),
                        ("unanswered", "requests without a reply")]:
        if figures.get(field):
            yield "%s: %d %s%s" % (name, figures[field], what, format_example(figures, field))
    broken = {field: figures[field] for field in BROKEN if figures.get(field)}
    if broken:
        yield "%s: connections broke: %s%s" % (
            name, ", ".join("%d %s" % (count, BROKEN[field]) for field, count in broken.items()),
            format_example(figures, *broken))


def judge_memory(results):
    """Yields a failure if memory grew beyond the tolerance."""
    samples, seconds = results["samples"], min(results["seconds"], results["planned"])
    early, late = select_memory(samples, seconds, 1), select_memory(samples, seconds, 4)
    if not early or not late:
        yield "too few readings of /metrics to judge memory"
        return
    before, after = statistics.median(early), statistics.median(late)
    if after > before + MEMORY_TOLERANCE * results["workers"]:
        yield "memory grew from %.1f to %.1f MiB (medians of the second and the last fifth)" % (
            before / 2 ** 20, after / 2 ** 20)


def judge_descriptors(results):
    """Yields a failure if descriptors stayed open after the load."""
    after = results["descriptors_after"]
    limit = compute_descriptor_limit(results, results["redis_connections_after"] or 0)
    if after is None:
        yield "/metrics could not be read after the load"
    elif after > limit:
        yield "%d descriptors are open after the load, at most %d are allowed: %d were open before it, and there are " \
            "%d connections to Redis instead of %d" % (
                after, limit, results["descriptors_before"], results["redis_connections_after"],
                results["redis_connections_before"])


def judge_log(text):
    """Yields the lines of the proxy's log that contain a bad word."""
    for line in text.splitlines():
        if any(word in line for word in BAD_WORDS):
            yield "the proxy's log: %s" % line.strip()[:300]


def list_failures(results, log, events):
    """Returns the reasons to fail; none if the run passed.

    `events` is what load.sh observed of the processes that it started.
    """
    found = list(events)
    if results["ended_early"]:
        found.append("the run ended after %.0f of %d s: %s" % (
            results["seconds"], results["planned"], results["ended_early"]))
    for kind, figures in results["kinds"].items():
        found.extend(judge_kind(kind, figures))
    if results["unreadable"]:
        found.append("%d readings of /metrics failed: %s" % (len(results["unreadable"]), results["unreadable"][0]))
    found.extend(judge_memory(results))
    found.extend(judge_descriptors(results))
    found.extend(judge_log(log))
    return found
