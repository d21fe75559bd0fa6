"""Tables of the cases with random keys: costs for each key, and memory, by number of keys."""

import textwrap

import cases
import goals
from markdown import format_table

# Servers that the proxy is compared with. Those that were not measured have no columns.
PEERS = ("redis", "valkey", "base")

INTRODUCTION = """\
64 connections read random keys. The proxy holds all of them, or half of them in the case with
misses. "By 16" means pipelined by 16. CPU is in microseconds for each key, and an MGET of 100
counts as 100 keys. Ratios are the proxy's figure divided by that of the other server. Busy has the
order of the CPU columns."""

# Number of keys from which their memory is far more than that of buffers and connections.
MANY_KEYS = 1_000_000

MEMORY_INTRODUCTION = """\
Resident memory in MB, with keys of 16 and values of 100 bytes. The proxy also holds their expiry
and their order of use. Redis and Valkey are also the store."""


def list_peers(measured):
    """Returns the peers that took part in any case with random keys."""
    return [name for name in PEERS
            if any(name in measured.get(case.name, {}) for case in cases.CASES if case.keys)]


def wrap_item(text):
    """Returns the lines of a list item."""
    return textwrap.wrap("- " + text, 100, subsequent_indent="  ", break_on_hyphens=False)


def find_p99(one):
    """Returns the 99th percentile of a round."""
    return one["p99"]


def make_row(case, measured, peers):
    """Returns the row of one case."""
    by_name, names = measured[case.name], ["proxy"] + peers
    row = [case.title, "{:,}".format(case.keys)]
    row += ["%.2f" % goals.compute_median(by_name[name], goals.compute_cpu_us) if name in by_name else "-"
            for name in names]
    for figure in (goals.compute_cpu_us, goals.compute_rate, find_p99):
        for peer in peers:
            ratio = goals.compute_ratio(measured, case.name, peer, figure)
            row.append("-" if ratio is None else "%.2f" % ratio)
    busy = ["%.0f" % (100 * goals.compute_median(by_name[name], goals.compute_busy)) for name in names
            if name in by_name]
    return row + [" / ".join(busy) + " %"]


def format_costs(measured):
    """Returns the lines of the table of costs."""
    peers = list_peers(measured)
    head = ["case", "keys"] + ["CPU us, " + cases.NAMES[name] for name in ["proxy"] + peers]
    head += [figure + cases.NAMES[name] for figure in ("CPU to ", "keys/s to ", "p99 to ") for name in peers]
    rows = [make_row(case, measured, peers) for case in cases.CASES if case.keys and case.name in measured]
    return format_table(head + ["busy"], rows) if rows else []


def list_backing_costs(case, measured):
    """Returns the CPU time of the Redis behind each cache in a case, as text."""
    return ["%s %.2f" % (cases.NAMES[name],
                         goals.compute_median(rounds, lambda one: one["backing_cpu"] / one["keys"] * 1e6))
            for name, rounds in measured.get(case.name, {}).items() if "redis_share" in rounds[0]]


def format_backing_costs(measured):
    """Returns the lines about the CPU time of the Redis behind the caches, in cases with misses."""
    lines = []
    for case in cases.CASES:
        costs = list_backing_costs(case, measured) if case.redis_share != cases.HITS else []
        if costs:
            lines += wrap_item("%s: %s." % (cases.describe(case), ", ".join(costs)))
    head = ["", "CPU of the Redis behind the caches, in microseconds for each key requested:", ""]
    return head + lines if lines else []


def format_memory(memory):
    """Returns the lines of the table of memory."""
    rows = []
    for keys, by_name in ((int(keys), by_name) for keys, by_name in memory.items()):
        for name in [name for name in cases.NAMES if name in by_name]:
            at_start, now = by_name[name]["at_start"], by_name[name]["now"]
            per_key = "%.0f" % ((now - at_start) / keys) if keys >= MANY_KEYS else "-"
            rows.append(["{:,}".format(keys), cases.NAMES[name], "%.1f" % (at_start / 1e6), "%.1f" % (now / 1e6), per_key])
    head = ["keys", "server", "at start", "with all keys", "bytes for each key"]
    return format_table(head, rows, words=2) if rows else []


def format_skipped(skipped):
    """Returns the lines about cases that the machine could not run."""
    titles = {case.name: cases.describe(case) for case in cases.CASES}
    return [line for name, reason in skipped.items()
            for line in wrap_item("Not measured: %s (%s)." % (titles[name], reason))]


def format_sections(results):
    """Returns the lines of both sections, or none if no such case was chosen."""
    costs, memory, skipped = (format_costs(results["cases"]), format_memory(results["memory"]),
                              format_skipped(results["skipped"]))
    lines = ["", "## Large caches", "", INTRODUCTION] if costs or skipped else []
    for part in (skipped, costs):
        lines += [""] + part if part else []
    lines += format_backing_costs(results["cases"])
    return lines + (["", "## Memory beside Redis", "", MEMORY_INTRODUCTION, ""] + memory if memory else [])
