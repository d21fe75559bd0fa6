"""Writes DIR/report.md (and to standard output) and DIR/bench.svg. Arguments: DIR, and the directory that holds results.json and what
`cargo bench` has printed, if it was asked.
"""

import json
import os
import platform
import subprocess
import sys

import cases
import chart
import goals
from processors import ALLOWED
from tables import table, time_text

PACKAGES = ["nginx", "libnginx-mod-http-lua", "webdis", "redis-server", "wrk"]

HOW_TO_READ = """Absolute figures are noise on a shared machine. What holds are ratios of one run: the servers of a case have their rounds
in turn, ratios are taken within each round, and all figures are medians of the rounds, but for memory and growth, which are measured once. A server and all its threads have one
processor for themselves; the load and the Redis behind the caches have the others. CPU is the processor time of the server, user and
system, for each request, in microseconds. Keys of 6 to 16 bytes have values of 100 bytes unless the case says otherwise.

- A hit asks for one key again and again over HTTP, for one of 10,000 over RESP. A miss asks for 100,000 keys in turn, of which the cache
  holds 1,000. Mixed are nine of ten requests for one of 10,000 keys by Zipf (s = 0.99), one of ten for the next of 100,000, in
  a cache of 20,000. How often Redis was asked is counted, and a run in which that is not what the case says fails.
- The floor reads, answers with the proxy's own bytes and parses nothing: a server of one thread on mio can hardly cost less.
  nginx `return 200` has the answer in its configuration. nginx lua_shared_dict does the proxy's work: a cache in memory that reads
  through to Redis, written in Lua. webdis has no cache and always asks Redis.
- Busy is how much of its processor a server has used. One that is not busy has waited for the load: requests/s are the load's then.
- The times are those of wrk and redis-benchmark under full load; of requests pipelined by 16 over HTTP it is the time of all 16."""


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
    """How much of the mixed load the caches have answered themselves."""
    shares = ["%s %.1f %%" % (cases.NAMES[name], 100 * (1 - goals.median(rounds, lambda one: one["asks"])))
              for name, rounds in measured.get("mixed", {}).items() if name != "webdis"]
    return ["", "From memory, of the mixed load: %s." % ", ".join(shares)] if shares else []


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
    lines = ["# Benchmarks", "", "Written by `scripts/bench.sh` (--rounds %d --seconds %d) on %s" % (
        results["rounds"], results["seconds"], machine()), "", HOW_TO_READ, "", "## Goals", "",
        "Ratios are the proxy's figure divided by the other's.", ""]
    lines += table(["goal", "limit", "figure", "reached"], goal_rows(measured, inside), words=2)
    lines += ["", "## The proxy and its peers", "", "In the last two columns the proxy's figure is divided by that of the server of the row: "
              "of CPU less than 1 is better, of requests/s more.", ""]
    lines += table(["case", "server", "requests/s", "busy", "CPU us", "p50", "p99", "p99.9", "CPU, proxy's to this", "requests/s, proxy's to this"],
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
