"""Writes the report of a soak test and exits with its verdict.

    report.py DIR LOGS [EVENT...]

Reads LOGS/results.json, and LOGS/proxy.log unless the proxy was started elsewhere. Each EVENT is a
sentence about a failure that load.sh observed. Writes DIR/report.md, also to standard output, and
DIR/load.svg.
"""

import json
import math
import os
import statistics
import sys

import keyspace
import plot
import verdict
from markdown import format_table, format_time

MIB = 2 ** 20


def format_requests(results):
    """Returns the table of all kinds of load."""
    rows = []
    for kind, figures in results["kinds"].items():
        if kind == "writer" or "requests" not in figures:
            continue
        errors = sum(figures.get(field, 0) for field in ["unexpected", "timeout", "unanswered"] + list(verdict.BROKEN))
        unchecked = "wrong" not in figures
        cached = "%.1f %%" % (100 * figures["cached"] / figures["replies"]) if figures.get("replies") else "-"
        rows.append([
            verdict.NAMES[kind], "{:,}".format(figures["requests"]),
            "{:,.0f}".format(figures["requests"] / figures["seconds"]),
            cached, str(errors), "not checked" if unchecked else str(figures["wrong"]),
            str(figures["stale"]) if kind in verdict.CHECKED_FOR_STALE else "-",
            format_time(figures["p50"]), format_time(figures["p99"])])
    head = ["load", "requests", "per second", "from the cache", "errors", "wrong values", "stale values", "p50", "p99"]
    return format_table(head, rows)


def format_samples(results):
    """Returns the table of what /metrics showed."""
    rows = []
    for name, field, text in [
        ("requests per second", "requests_per_second", lambda value: "{:,.0f}".format(value)),
        ("hit ratio", "hit_ratio", lambda value: "%.1f %%" % (100 * value)),
        ("memory", "memory", lambda value: "%.1f MiB" % (value / MIB)),
        ("descriptors", "descriptors", lambda value: "%d" % value),
        ("entries", "entries", lambda value: "{:,.0f}".format(value)),
        ("evictions per second", "evictions_per_second", lambda value: "{:,.0f}".format(value)),
        ("keys waiting for Redis", "queue", lambda value: "%d" % value),
        ("p50 of hits", "hit_p50", format_time), ("p99 of hits", "hit_p99", format_time),
        ("p99 of misses", "miss_p99", format_time),
    ]:
        known = [sample[field] for sample in results["samples"] if sample[field] is not None]
        if known:
            rows.append([name] + [text(pick(known)) for pick in (min, statistics.median, max)])
    return format_table(["/metrics, once a second", "minimum", "median", "maximum"], rows)


def format_lateness(results):
    """Returns a sentence about the values of expiring keys."""
    late = [figures["max_late_ms"] for figures in results["kinds"].values() if figures.get("max_late_ms") is not None]
    served = sum(figures.get("expiring_values", 0) for figures in results["kinds"].values())
    if not late:
        return "No value of an expiring key was served."
    if max(late) <= 0:
        return "Expiring keys: {:,} values were served, none to a request sent after the expiry.".format(served)
    return "Expiring keys: {:,} values were served, the latest to a request sent {} ms after the expiry " \
        "(tolerance: {} ms).".format(served, math.ceil(max(late)), keyspace.STALE_TOLERANCE_MS)


def main():
    """Writes the report and exits with 1 if the run failed."""
    directory, logs, events = sys.argv[1], sys.argv[2], sys.argv[3:]
    with open(os.path.join(logs, "results.json")) as file:
        results = json.load(file)
    log = ""
    if os.path.exists(os.path.join(logs, "proxy.log")):
        with open(os.path.join(logs, "proxy.log"), errors="replace") as file:
            log = file.read()
    failures = verdict.list_failures(results, log, events)
    after = results["descriptors_after"]
    lines = ["# Soak test of %.0f seconds: %s" % (
        min(results["seconds"], results["planned"]), "failed" if failures else "passed"), ""]
    lines += ["- " + failure for failure in failures] + ([""] if failures else [])
    lines += format_requests(results) + [""]
    lines += ["HTTP times are those of wrk, corrected for requests that it could not send while it waited. All times",
              "include waiting for a processor beside the rest of the load. redis-benchmark compares no values; the",
              "RESP rows marked as compared do.", ""]
    lines += [format_lateness(results), ""]
    lines += format_samples(results) + [""]
    lines += ["Open descriptors: %d before the load, %s after it." % (
        results["descriptors_before"], "unknown" if after is None else "%d" % after)]
    text = "\n".join(lines) + "\n"
    with open(os.path.join(directory, "report.md"), "w") as file:
        file.write(text)
    with open(os.path.join(directory, "load.svg"), "w") as file:
        file.write(plot.draw_svg(results["samples"]))
    print(text, end="")
    for failure in failures:
        print("FAILED: " + failure, file=sys.stderr)
    sys.exit(1 if failures else 0)


main()
