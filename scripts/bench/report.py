"""Writes DIR/report.md (and to standard output) and DIR/bench.svg. Arguments: DIR, and the directory that holds results.json and what
`cargo bench` has printed, if it was asked.
"""

import json
import os
import platform
import subprocess
import sys
import textwrap

import cases
import chart
import goals
from processors import ALLOWED
from tables import table, time_text

PACKAGES = ["nginx", "libnginx-mod-http-lua", "webdis", "redis-server", "wrk"]

HOW_TO_READ = """\
Absolute figures are noise on a shared machine; only ratios within one run hold. The servers of a
case run their rounds alternately, and ratios are taken within each round. All figures are medians
of the rounds, except memory and growth, which are measured once. A server with all its threads has
one processor of its own. The load and the Redis behind the caches have the others. CPU is the
processor time of the server, user and system, for each request, in microseconds. Keys of 6 to 16
bytes have values of 100 bytes unless the case says otherwise.

- Hit: the load requests one key again and again over HTTP, one of 10,000 over RESP.
- Miss: the load requests 100,000 keys in turn, and the cache holds 1,000.
- Mixed: nine of ten requests are for one of 10,000 keys by Zipf (s = 0.99). One of ten is for the
  next of 100,000. The cache holds 20,000.
- The requests to Redis are counted. A run fails if their number does not fit the case.
- The floor reads, answers with the proxy's own bytes and parses nothing. A server of one thread on
  mio can hardly cost less.
- nginx `return 200` has the response in its configuration. nginx lua_shared_dict does the proxy's
  work in Lua: a cache in memory that reads through to Redis. webdis has no cache and always asks
  Redis.
- Busy is the share of its processor that a server used. A server that is not busy waited for the
  load, and requests/s are those of the load.
- Times are those of wrk and redis-benchmark under full load. Of requests pipelined by 16 over HTTP,
  it is the time of all 16."""


def command(*arguments):
    """What it prints, or nothing."""
    try:
        done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine():
    model = "a processor that does not tell its name"
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    versions = [(package, command("dpkg-query", "-W", "-f", "${Version}", package)) for package in PACKAGES]
    commit = command("git", "describe", "--always", "--dirty", "--exclude", "*")
    return "%s, %d processors, Linux %s; %s; the proxy%s." % (
        model, len(ALLOWED), platform.release(), ", ".join("%s %s" % (package, version or "?") for package, version in versions),
        " as of commit " + commit if commit else "")


def goal_rows(measured, inside):
    rows = []
    for what, kind, limit, find in goals.GOALS:
        figure = find(measured, inside)
        rows.append([what, "at %s %g" % (kind, limit), "-" if figure is None else ("%.3f" if limit < 1 else "%.2f" if limit < 10 else "%.3g") % figure,
                     "-" if figure is None else "yes" if goals.reached(kind, limit, figure) else "no"])
    return rows


def peer_rows(measured):
    rows = []
    for case in cases.CASES:
        for name, rounds in measured.get(case.name, {}).items():
            ratios = [goals.ratio(measured, case.name, name, figure) for figure in (goals.cpu, goals.rate)]
            # Said once; the rows below it are of the same case.
            rows.append([case.title if name == case.servers[0] else "", cases.NAMES[name], "{:,.0f}".format(goals.median(rounds, goals.rate)),
                         "%.0f %%" % (100 * goals.median(rounds, lambda one: one["cpu"] / one["seconds"])),
                         "%.2f" % goals.median(rounds, goals.cpu)]
                        + [time_text(goals.median(rounds, lambda one: one[field])) for field in ("p50", "p99", "p999")]
                        + ["" if name == "proxy" else "-" if ratio is None else "%.2f" % ratio for ratio in ratios])
    return rows


def mixed(measured):
    """Returns the share of the mixed load that each cache answered itself."""
    shares = ["%s %.1f %%" % (cases.NAMES[name], 100 * (1 - goals.median(rounds, lambda one: one["asks"])))
              for name, rounds in measured.get("mixed", {}).items() if name != "webdis"]
    return ["", "Answered from memory in the mixed load: %s." % ", ".join(shares)] if shares else []


def main():
    directory, logs = sys.argv[1:]
    with open(os.path.join(logs, "results.json")) as file:
        results = json.load(file)
    measured, inside = results["cases"], dict.fromkeys(goals.INSIDE, "")
    for name in goals.INSIDE:
        path = os.path.join(logs, name + ".md")
        if os.path.exists(path):
            with open(path) as file:
                inside[name] = file.read().strip()
    written = "Written by `scripts/bench.sh` (--rounds %d --seconds %d) on %s" % (results["rounds"], results["seconds"], machine())
    lines = ["# Benchmarks", "", "What does a request cost, beside other servers and inside the proxy?", ""]
    lines += textwrap.wrap(written, 100, break_long_words=False, break_on_hyphens=False)
    lines += ["", HOW_TO_READ, "", "## Goals", "", "Ratios are the proxy's figure divided by that of the other server.", ""]
    lines += table(["goal", "limit", "figure", "reached"], goal_rows(measured, inside), words=2)
    lines += ["", "## The proxy and its peers", "", "Ratios are the proxy's figure divided by that of the server in the row. Below 1 is better for CPU,",
              "above 1 for requests/s.", ""]
    lines += table(["case", "server", "requests/s", "busy", "CPU us", "p50", "p99", "p99.9", "CPU ratio", "requests/s ratio"],
                   peer_rows(measured), words=2)
    lines += mixed(measured) + ["", "![Processor time for each request](bench.svg)"]
    for name, heading in goals.INSIDE.items():
        if inside[name]:
            lines += ["", "## " + heading, "", "By `cargo bench --bench %s`." % name, "", inside[name]]
    text = "\n".join(lines) + "\n"
    with open(os.path.join(directory, "report.md"), "w") as file:
        file.write(text)
    with open(os.path.join(directory, "bench.svg"), "w") as file:
        file.write(chart.svg(measured))
    print(text, end="")


main()
