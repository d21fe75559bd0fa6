"""Writes the report of a benchmark.

    report.py DIR LOGS

Reads LOGS/results.json, and the output of `cargo bench` in LOGS if there is any. Writes
DIR/report.md, also to standard output, and DIR/bench.svg.
"""

import json
import os
import platform
import re
import subprocess
import sys
import textwrap

import cases
import chart
import goals
import large
import servers
from cpu import ALLOWED
from markdown import format_table, format_time

PACKAGES = ["nginx", "libnginx-mod-http-lua", "webdis", "redis-server", "wrk"]

# Markdown at 100 columns: scripts/style.py checks the published copy.
HOW_TO_READ = """\
Absolute figures are noise on a shared machine; only ratios within one run hold. The servers of a
case run their rounds alternately, and ratios are taken within each round. All figures are medians
of the rounds, except memory and growth, which are measured once. A server with all its threads has
one processor of its own. The load and the Redis behind the caches have the others. CPU is the
processor time of the server, user and system, for each key, in microseconds; all but MGET read one
key. Keys of 6 to 16 bytes have values of 100 bytes unless the case says otherwise.

- Hit: the load requests one key again and again.
- Random keys: each request is for a random one of the keys that the case names. Every server has
  answered all of them once before, with the right values. Where the proxy holds all keys, Redis is
  both the peer and the Redis behind the proxy, as no request reaches it during the proxy's rounds.
- Half missing: the proxy holds 50,000 of 100,000 keys. Redis answers the same GETs, without misses.
- Miss: the load requests 100,000 keys in turn, and the cache holds 1,000.
- Mixed: nine of ten requests are for one of 10,000 keys by Zipf (s = 0.99). One of ten is for the
  next of 100,000. The cache holds 20,000.
- The requests to Redis are counted. A run fails if their number does not fit the case.
- The floor reads, answers with the proxy's own bytes and parses nothing. A server of one thread on
  mio can hardly cost less.
- nginx `return 200` has the response in its configuration. nginx lua_shared_dict does the proxy's
  work in Lua: a cache in memory that reads through to Redis. webdis has no cache and always asks
  Redis. Redis and Valkey run without persistence and with one thread.
- Busy is the share of its processor that a server used. A server that is not busy waited for the
  load, and requests/s are those of the load.
- Times are those of wrk and redis-benchmark under full load. Of requests pipelined by 16 over HTTP,
  it is the time of all 16."""


def run(*command):
    """Returns the output of a command, or an empty string if it fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def describe_machine():
    """Returns processor, kernel, versions of the peers and commit of the proxy."""
    model = "unknown processor"
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    versions = [(package, run("dpkg-query", "-W", "-f", "${Version}", package)) for package in PACKAGES]
    valkey = servers.find_optional().get("valkey")
    found = re.search(r"v=(\S+)", run(valkey, "--version")) if valkey else None
    versions.append(("valkey-server", found.group(1) if found else "not installed"))
    commit = run("git", "describe", "--always", "--dirty", "--exclude", "*")
    return "%s, %d processors, Linux %s; %s%s." % (
        model, len(ALLOWED), platform.release(),
        ", ".join("%s %s" % (package, version or "?") for package, version in versions),
        "; proxy at commit " + commit if commit else "")


def make_goal_rows(measured, benches):
    """Returns the rows of the table of goals."""
    rows = []
    for title, kind, limit, find in goals.GOALS:
        figure = find(measured, benches)
        text, is_reached = "not measured", "-"
        if figure is not None:
            text = ("%.3f" if limit < 1 else "%.2f" if limit < 10 else "%.3g") % figure
            is_reached = "yes" if goals.is_reached(kind, limit, figure) else "no"
        rows.append([title, "at %s %g" % (kind, limit), text, is_reached])
    return rows


def make_peer_rows(measured):
    """Returns the rows of the table of servers."""
    rows = []
    for case in cases.CASES:
        # The table of large caches has the other cases.
        if case.keys and "floor" not in case.servers:
            continue
        for name, rounds in measured.get(case.name, {}).items():
            ratios = [goals.compute_ratio(measured, case.name, name, figure)
                      for figure in (goals.compute_cpu_us, goals.compute_rate)]
            # The title stands in the first row of a case only.
            rows.append([cases.describe(case) if name == case.servers[0] else "", cases.NAMES[name],
                         "{:,.0f}".format(goals.compute_median(rounds, goals.compute_rate)),
                         "%.0f %%" % (100 * goals.compute_median(rounds, goals.compute_busy)),
                         "%.2f" % goals.compute_median(rounds, goals.compute_cpu_us)]
                        + [format_time(goals.compute_median(rounds, lambda one: one[field]))
                           for field in ("p50", "p99", "p999")]
                        + ["" if name == "proxy" else "-" if ratio is None else "%.2f" % ratio for ratio in ratios])
    return rows


def format_hit_ratios(measured):
    """Returns a sentence about the share of the mixed load that each cache answered itself."""
    ratios = []
    for name, rounds in measured.get("mixed", {}).items():
        if "redis_share" in rounds[0] and name != "webdis":
            ratio = 1 - goals.compute_median(rounds, lambda one: one["redis_share"])
            ratios.append("%s %.1f %%" % (cases.NAMES[name], 100 * ratio))
    text = "Answered from memory in the mixed load: %s." % ", ".join(ratios)
    return [""] + textwrap.wrap(text, 100, break_on_hyphens=False) if ratios else []


def main():
    """Writes the report."""
    directory, logs = sys.argv[1:]
    with open(os.path.join(logs, "results.json")) as file:
        results = json.load(file)
    measured, benches = results["cases"], dict.fromkeys(goals.CARGO_BENCHES, "")
    for name in goals.CARGO_BENCHES:
        path = os.path.join(logs, name + ".md")
        if os.path.exists(path):
            with open(path) as file:
                benches[name] = file.read().strip()
    source = "Written by `scripts/bench.sh` (--rounds %d --seconds %d) on %s" % (
        results["rounds"], results["seconds"], describe_machine())
    lines = ["# Report of scripts/bench.sh", ""]
    lines += textwrap.wrap(source, 100, break_long_words=False, break_on_hyphens=False)
    lines += ["", HOW_TO_READ, "", "## Goals", "",
              "Ratios are the proxy's figure divided by that of the other server.", ""]
    lines += format_table(["goal", "limit", "figure", "reached"], make_goal_rows(measured, benches), words=2)
    lines += ["", "## The proxy and its peers", "",
              "Ratios are the proxy's figure divided by that of the server in the row. Below 1 is better for CPU,",
              "above 1 for requests/s.", ""]
    head = ["case", "server", "requests/s", "busy", "CPU us", "p50", "p99", "p99.9", "CPU ratio", "requests/s ratio"]
    lines += format_table(head, make_peer_rows(measured), words=2)
    lines += format_hit_ratios(measured) + large.format_sections(results) + ["", "![CPU time for each key](bench.svg)"]
    for name, heading in goals.CARGO_BENCHES.items():
        if benches[name]:
            lines += ["", "## " + heading, "", "By `cargo bench --bench %s`." % name, "", benches[name]]
    text = "\n".join(lines) + "\n"
    with open(os.path.join(directory, "report.md"), "w") as file:
        file.write(text)
    with open(os.path.join(directory, "bench.svg"), "w") as file:
        file.write(chart.draw_svg(measured))
    print(text, end="")


main()
