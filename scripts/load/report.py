"""Writes DIR/report.md (and to standard output) and DIR/load.svg from DIR/results.json; the exit code is the verdict.

Arguments: DIR, the directory that holds results.json and the proxy's log (proxy.log; there is none of a proxy that was
started by others), then a sentence for each thing that load.sh saw go wrong.
"""

import json
import math
import os
import statistics
import sys

import plot
import values
import verdict
from tables import table, time_text

MIB = 2 ** 20


def requests(results):
    rows = []
    for kind, figures in results["kinds"].items():
        if kind == "writer" or "requests" not in figures:
            continue
        errors = sum(figures.get(field, 0) for field in ["unexpected", "timeout", "unanswered"] + list(verdict.BROKEN))
        unchecked = "wrong" not in figures
        cached = "%.1f %%" % (100 * figures["cached"] / figures["answers"]) if figures.get("answers") else "-"
        rows.append([
            verdict.NAMES[kind], "{:,}".format(figures["requests"]), "{:,.0f}".format(figures["requests"] / figures["seconds"]),
            cached, str(errors), "not checked" if unchecked else str(figures["wrong"]),
            str(figures["stale"]) if kind in verdict.DATED else "-",
            time_text(figures["p50"]), time_text(figures["p99"])])
    return table(["load", "requests", "per second", "from memory", "errors", "wrong values", "stale", "p50", "p99"], rows)


def samples(results):
    rows = []
    for name, field, text in [
        ("requests per second", "requests_per_second", lambda value: "{:,.0f}".format(value)),
        ("hit ratio", "hit_ratio", lambda value: "%.1f %%" % (100 * value)),
        ("memory", "memory", lambda value: "%.1f MiB" % (value / MIB)),
        ("descriptors", "descriptors", lambda value: "%d" % value),
        ("entries", "entries", lambda value: "{:,.0f}".format(value)),
        ("evictions per second", "evictions_per_second", lambda value: "{:,.0f}".format(value)),
        ("keys waiting for Redis", "queue", lambda value: "%d" % value),
        ("p50 of hits", "hit_p50", time_text), ("p99 of hits", "hit_p99", time_text), ("p99 of misses", "miss_p99", time_text),
    ]:
        known = [sample[field] for sample in results["samples"] if sample[field] is not None]
        if known:
            rows.append([name] + [text(pick(known)) for pick in (min, statistics.median, max)])
    return table(["each second, by /metrics", "least", "median", "most"], rows)


def lateness(results):
    latest = [figures["latest"] for figures in results["kinds"].values() if figures.get("latest") is not None]
    living = sum(figures.get("living", 0) for figures in results["kinds"].values())
    if not latest:
        return "No value of an expiring key was served."
    if max(latest) <= 0:
        return "Of {:,} values of expiring keys none was served to a request sent after the expiry.".format(living)
    return "Of {:,} values of expiring keys the latest was served to a request sent {} ms after the expiry; {} are tolerated.".format(
        living, math.ceil(max(latest)), values.STALE_TOLERANCE)


def main():
    directory, logs, events = sys.argv[1], sys.argv[2], sys.argv[3:]
    with open(os.path.join(logs, "results.json")) as file:
        results = json.load(file)
    log = ""
    if os.path.exists(os.path.join(logs, "proxy.log")):
        with open(os.path.join(logs, "proxy.log"), errors="replace") as file:
            log = file.read()
    found = verdict.reasons(results, log, events)
    after = results["descriptors_after"]
    lines = ["# Load of %.0f seconds: %s" % (min(results["seconds"], results["planned"]), "failed" if found else "passed"), ""]
    lines += ["- " + reason for reason in found] + ([""] if found else [])
    lines += requests(results) + [""]
    lines += ["Times of HTTP are wrk's own, corrected for what it did not send while it waited; all of them include waiting for a",
              "processor beside all this load. redis-benchmark cannot compare values: for RESP the lines below it do.", ""]
    lines += [lateness(results), ""]
    lines += samples(results) + [""]
    lines += ["%d descriptors before the load, %s after it." % (
        results["descriptors_before"], "an unknown number" if after is None else "%d" % after)]
    text = "\n".join(lines) + "\n"
    with open(os.path.join(directory, "report.md"), "w") as file:
        file.write(text)
    with open(os.path.join(directory, "load.svg"), "w") as file:
        file.write(plot.svg(results["samples"]))
    print(text, end="")
    for reason in found:
        print("FAILED: " + reason, file=sys.stderr)
    sys.exit(1 if found else 0)


main()
