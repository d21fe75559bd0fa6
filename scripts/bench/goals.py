"""What the proxy is to reach, and the figures that say whether it does. Each is a ratio of one run, or bytes; None where it was not
measured."""

import re
import statistics


def median(rounds, figure):
    return statistics.median(figure(one) for one in rounds)


def cpu(one):
    """Microseconds of processor time for each request."""
    return one["cpu"] / one["requests"] * 1e6


def rate(one):
    return one["requests"] / one["seconds"]


def ratio(measured, case, peer, figure):
    """The proxy's to the peer's: taken in each round, and of those the median."""
    of = measured.get(case, {})
    if "proxy" not in of or peer not in of:
        return None
    pairs = [(figure(proxy), figure(other)) for proxy, other in zip(of["proxy"], of[peer])]
    return statistics.median(proxy / other for proxy, other in pairs) if all(other for _, other in pairs) else None


def tables(text):
    """The tables of a page of Markdown: each is a list of rows, each row a list of cells, the first one the head."""
    result, inside = [], False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.lstrip().startswith("|"):
            inside = False
        elif not inside:
            result.append([cells])
            inside = True
        elif not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            result[-1].append(cells)
    return result


def cell(text, column, row):
    """The number below the head that holds `column`, in the row that begins with `row`; None if there is none."""
    for head, *rows in tables(text):
        places = [place for place, name in enumerate(head) if place and column in name]
        for cells in rows:
            if places and cells[0].replace(",", "") == row and len(cells) > places[0]:
                number = re.search(r"\d+(\.\d+)?", cells[places[0]].replace(",", ""))
                return float(number.group()) if number else None
    return None


def growth(text, column, small, large):
    before, after = cell(text, column, small), cell(text, column, large)
    return after / before if before and after is not None else None


# What `cargo bench` measures inside the proxy, and the headings of it in the report.
INSIDE = {"cache": "The cache, in process", "memory": "Memory", "bad_days": "Hits during faults"}

# Of each goal: what it is, whether the figure is to be at least or at most the number, and where it comes from: `of` is what was
# measured of the peers, `inside` what `cargo bench` has printed, by its name.
GOALS = [
    ("HTTP hit, CPU to the floor's", "most", 1.10, lambda of, inside: ratio(of, "hit", "floor", cpu)),
    ("HTTP hit, CPU to nginx' (`return 200`)", "most", 0.95, lambda of, inside: ratio(of, "hit", "nginx", cpu)),
    ("HTTP hit, CPU to nginx' (lua_shared_dict)", "most", 0.80, lambda of, inside: ratio(of, "hit", "lua", cpu)),
    ("HTTP hit pipelined by 16, CPU to the floor's", "most", 2.0, lambda of, inside: ratio(of, "hit-16", "floor", cpu)),
    ("HTTP hit pipelined by 16, requests/s to nginx' (`return 200`)", "least", 8, lambda of, inside: ratio(of, "hit-16", "nginx", rate)),
    ("RESP GET hit, CPU to Redis'", "most", 0.90, lambda of, inside: ratio(of, "resp-1", "redis", cpu)),
    ("RESP GET hit pipelined by 16, CPU to Redis'", "most", 0.80, lambda of, inside: ratio(of, "resp-16", "redis", cpu)),
    ("HTTP miss, requests/s to webdis'", "least", 1.5, lambda of, inside: ratio(of, "miss", "webdis", rate)),
    ("memory beside key and value, a million entries of 16 + 100 bytes (Redis: 85)", "most", 64,
     lambda of, inside: cell(inside["cache"], "beside", "1000000")),
    ("an idle connection, bytes", "most", 512, lambda of, inside: cell(inside["memory"], "bytes", "an idle HTTP connection")),
    ("hit among 10 million entries to hit among 10 thousand, in process, all but the socket", "most", 3,
     lambda of, inside: growth(inside["cache"], "whole hit ns", "10000", "10000000")),
    ("the same of the cache's `get` alone", "most", 3, lambda of, inside: growth(inside["cache"], "get ns", "10000", "10000000")),
    ("p99.9 of hits while a million entries expire, to undisturbed", "most", 1.5,
     lambda of, inside: cell(inside["bad_days"], "p99.9 ratio", "a million entries expire")),
    ("p99.9 of hits while Redis hangs, to undisturbed", "most", 1.5,
     lambda of, inside: cell(inside["bad_days"], "p99.9 ratio", "Redis frozen")),
]


def reached(kind, limit, figure):
    return figure <= limit if kind == "most" else figure >= limit
