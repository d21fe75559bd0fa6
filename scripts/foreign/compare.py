"""Compares the outcomes of a suite on plain Redis with those through the proxy.

    compare.py EXPECTED COUNTS LEAST_READS PROXY_PORT NAME PLAIN ROUTED [NAME PLAIN ROUTED]...

Prints tables in Markdown. Exits with 1 and a line for each reason if a test passes on plain Redis
only and is not in EXPECTED, or if the proxy received too few reads to prove anything.
"""

import collections
import fnmatch
import json
import re
import sys
import urllib.request

OUTCOMES = ("passed", "failed", "error", "skipped")

# Counters of the relay that must be 0, with the meaning of any other number.
FAILURES = {
    "relay errors": "the relay has a bug",
    "commands refused by the proxy alone": "the proxy refuses HELLO, AUTH, RESET or CLIENT where Redis accepts it",
    "connections closed by the proxy": "the proxy closed connections that Redis left open",
}


def read_outcomes(path):
    """Returns the outcome of each test, or nothing if the suite did not finish."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return {}
    return {name: outcome for outcome, name in (line.split("\t", 1) for line in lines)}


def read_expected(path):
    """Returns the patterns of tests that may differ, with their reasons."""
    with open(path, encoding="utf-8") as file:
        lines = [line.split("#", 1) for line in file if line.strip() and not line.startswith("#")]
    return {pattern.strip(): reason.strip() for pattern, reason in lines}


def read_request_counts(port):
    """Returns the proxy's counters of RESP requests, by outcome."""
    # Without the HTTP proxy that the environment may set.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
        text = response.read().decode()
    line = r'^segment_requests_total\{protocol="resp",outcome="(\w+)"\} (\d+)$'
    return {outcome: int(count) for outcome, count in re.findall(line, text, re.MULTILINE)}


def print_table(head, rows):
    """Prints a table in Markdown."""
    print(f"\n| {' | '.join(head)} |\n|---{'|---:' * (len(head) - 1)}|")
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row)} |")


def main(expected_path, counts_path, least_reads, proxy_port, *runs):
    """Compares all runs, prints the tables and returns the exit code."""
    reasons, expected = [], read_expected(expected_path)
    with open(counts_path, encoding="ascii") as file:
        counts = json.load(file)
    rows, differing = [], []
    for name, plain_path, routed_path in zip(runs[::3], runs[1::3], runs[2::3]):
        paths = {"plain Redis": plain_path, "through the proxy": routed_path}
        sides = {side: read_outcomes(path) for side, path in paths.items()}
        for side, outcomes in sides.items():
            count = collections.Counter(outcomes.values())
            rows.append([f"{name}, {side}", *(count[outcome] for outcome in OUTCOMES)])
            if not count["passed"]:
                reasons.append(f"{name}, {side}: the suite did not run")
        plain, routed = sides.values()
        for test in sorted(plain.keys() | routed.keys()):
            before, after = plain.get(test, "missing"), routed.get(test, "missing")
            if before == after:
                continue
            matching = (expected[pattern] for pattern in expected if fnmatch.fnmatchcase(test, pattern))
            reason = next(matching, "")
            differing.append([test, name, before, after, reason])
            if before == "passed" and not reason:
                reasons.append(f"{name}: {test} passes on plain Redis; through the proxy: {after}")

    print_table(["", *OUTCOMES], rows)
    if differing:
        head = ["tests that differ", "run", "plain Redis", "through the proxy", "expected, because"]
        print_table(head, differing)
    counted = read_request_counts(proxy_port)
    reads, routed_reads = counts.pop("reads"), counts.get("to the proxy", 0)
    rows = [[f"{name}, to the proxy", count] for name, count in sorted(reads.items())]
    rows += sorted(counts.items())
    rows += [[f"counted by the proxy as `{outcome}`", count] for outcome, count in counted.items()]
    print_table(["commands of the suite", ""], rows)

    if routed_reads < int(least_reads):
        reasons.append(f"{routed_reads} reads were routed; fewer than {least_reads} prove nothing")
    # The relay sends each read twice. The outcome of requests without a key is `other`.
    if sum(counted.values()) - counted.get("other", 0) < 2 * routed_reads:
        reasons.append("the proxy counted fewer reads than were routed to it")
    if not counted.get("hit"):
        reasons.append("the proxy counted no hits")
    reasons += [f"{name}: {counts[name]}; {why}" for name, why in FAILURES.items() if counts.get(name)]
    print()
    for reason in reasons:
        print(f"scripts/foreign.sh: {reason}", file=sys.stderr)
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
