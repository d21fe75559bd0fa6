"""Judges a failover run and writes its report."""

import collections
import http.client
import sys

import markdown

# Texts with which a client gets the error of an outage.
OUTAGES = ("503 ", "504 ", "LOADING ")
# Texts of the same for a server that did not reply in time.
TIMEOUTS = ("504 ", "LOADING Redis did not reply within")
# Share of timeouts, in all replies, that a busy machine may have at any time.
MAX_TIMEOUTS = 0.001
# Class of errors while a server did not reply to the test itself either: the machine was too slow.
STALLED = "a server stalled"
# Classes of errors that fail the run: the servers that have the keys were there.
UNEXPECTED = ("another shard's event", "slot moving", "no event")


def read_metrics(port):
    """Returns the lines of /metrics about the servers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().split("\n")
    connection.close()
    names = ("segment_redis_nodes", "segment_redis_redirections", "segment_redis_topology", "segment_tracking",
             "segment_redis_connections_lost", "segment_hits_total")
    return [line for line in lines if line.startswith(names)]


def classify(run, requested, failed_at, key):
    """Returns what happened to the servers of a key while a request for it failed."""
    shard = run.find_shard(key)
    for event in run.events:
        if failed_at < event["started_at"] or event["done_at"] + run.bound < requested:
            continue
        is_own = event["moving"] if shard == "moving" else shard in event["shards"]
        if is_own and event["kind"] != "move":
            return "own primary killed" if event["kind"] == "kill" else "own failover"
        if run.is_stalled(requested, failed_at):
            return STALLED
        return "slot moving" if shard == "moving" and event["kind"] == "move" else "another shard's event"
    return STALLED if run.is_stalled(requested, failed_at) else "no event"


def count_errors(run, readers):
    """Returns the times of errors by class and by the beginning of their texts."""
    found = collections.defaultdict(list)
    for reader in readers:
        for requested, failed_at, key, text in reader.errors:
            found[classify(run, requested, failed_at, key), text.split(":")[0][:60]].append(requested - run.started_at)
    return {kind: sorted(times) for kind, times in found.items()}


def find_reasons(run, findings, errors):
    """Returns the reasons why the run failed."""
    reasons = list(run.problems)
    for requested, key, text in [(requested, key, text) for key, requested, text in findings][:5]:
        reasons.append("stale: %s: %s (%s)" % (key, text, classify(run, requested, requested, key)))
    if len(findings) > 5:
        reasons.append("stale: %d values in all" % len(findings))
    wrong = [one for reader in run.readers for one in reader.wrong]
    reasons += ["wrong: %s: %s" % (key, text) for _, key, text in wrong[:5]]
    replies = sum(reader.replies for reader in run.readers)
    for (kind, text), times in sorted(errors.items()):
        if text.startswith(TIMEOUTS) and len(times) <= MAX_TIMEOUTS * replies:
            continue
        when = "%d times %r, first %.1f s after the start (%s)" % (len(times), text, times[0], kind)
        if not text.startswith(OUTAGES):
            reasons.append("error that is no outage: %s" % when)
        elif kind in UNEXPECTED:
            reasons.append("unexpected error: %s" % when)
    if not any(event["kind"] == "kill" for event in run.events):
        reasons.append("no primary was killed: the run was too short")
    if run.proxy and replies < 10 * run.seconds:
        reasons.append("too few replies to judge")
    return reasons


def format_gap(event, name):
    """Returns the two cells about the time without service."""
    gap, errors = event.get(name, (None, None))
    return [markdown.format_time(gap), markdown.format_time(errors)]


def list_events(run):
    """Returns the table of events."""
    rows = []
    for event in run.events:
        done = markdown.format_time(event["done_at"] - event["started_at"])
        shards = " to ".join(map(str, event["shards"]))
        rows.append(["%d s" % event["at"], event["kind"], shards, done, str(event["lost"]),
                     *format_gap(event, "proxy"), *format_gap(event, "redis-py")])
    head = ["at", "event", "shard", "promoted, moved", "lost writes", "proxy: gap", "errors", "redis-py: gap", "errors"]
    return markdown.format_table(head, rows, words=3)


def compute_median_gap(run, name):
    """Returns the median gap after kill -9, or None."""
    gaps = sorted(event[name][0] for event in run.events if event["kind"] == "kill" and name in event)
    return gaps[len(gaps) // 2] if gaps else None


def list_ages(run):
    """Returns the oldest value of each class of requests."""
    oldest = collections.defaultdict(float)
    for reader in run.readers:
        for requested, age in reader.ages:
            during = next((event["kind"] for event in run.events
                           if event["started_at"] <= requested <= event["done_at"] + run.bound), "no event")
            oldest[during] = max(oldest[during], age)
    rows = [[kind, markdown.format_time(age)] for kind, age in sorted(oldest.items())]
    return markdown.format_table(["during", "oldest value"], rows or [["any time", "under 50 ms"]])


def write(run, metrics, path):
    """Writes the report and prints it. Returns the exit code."""
    findings = run.versions.list_findings()
    errors = count_errors(run, run.readers)
    reasons = find_reasons(run, findings, errors)
    written = sum(writer.written for writer in run.writers.values())
    failed_writes = sum(writer.failed for writer in run.writers.values())
    replies = sum(reader.replies for reader in run.readers)
    kinds = collections.Counter(event["kind"] for event in run.events)
    lines = ["# Failover test: %s" % run.mode, "",
             "%d s, %s; %d writes (%d failed), %d requests at the proxy%s. Bound: %s." % (
                 run.seconds, ", ".join("%d %s" % (count, kind) for kind, count in kinds.items()), written,
                 failed_writes, replies, "" if run.proxy else " (none was started)",
                 markdown.format_time(run.bound)), "",
             "**%s**" % ("Failed" if reasons else "Passed"), ""]
    lines += ["- %s" % reason for reason in reasons] + ([""] if reasons else [])
    lines += ["## Events", "",
              "A gap is the longest time without any value for the keys of the shard. `errors` is the",
              "time from the first error to the first value after the last one.", ""]
    lines += list_events(run) + [""]
    medians = [(name, compute_median_gap(run, name)) for name in ("proxy", "redis-py")]
    lines += ["Median gap after kill -9: %s." % ", ".join(
        "%s %s" % (name, markdown.format_time(gap)) for name, gap in medians), ""]
    stalls = [end - began for watch in run.watches for began, end in watch.stalls]
    lines += ["Stalls of servers, as the test itself saw them: %d, the longest %s." % (
        len(stalls), markdown.format_time(max(stalls, default=None))), ""]
    lines += ["Acknowledged writes that were lost by kill -9: %d." % sum(event["lost"] for event in run.events), ""]
    for name, readers in (("the proxy", run.readers), ("redis-py", run.peers.values())):
        counts = errors if name == "the proxy" else count_errors(run, readers)
        rows = [[kind, "`%s`" % text, str(len(times))] for (kind, text), times in sorted(counts.items())]
        lines += ["## Errors of %s" % name, ""]
        lines += markdown.format_table(["during", "text", "number"], rows, words=2) if rows else ["None."]
        lines.append("")
    if run.proxy:
        lines += ["## Oldest values", "",
                  "Age: time between the acknowledgement of a newer version and the request.", ""]
        lines += list_ages(run) + ["", "## Metrics at the end", "", "```text", *metrics, "```", ""]
    text = "\n".join(lines)
    with open(path, "w") as file:
        file.write(text)
    print(text)
    for reason in reasons:
        print("scripts/failover.sh: %s" % reason, file=sys.stderr)
    return 1 if reasons else 0
