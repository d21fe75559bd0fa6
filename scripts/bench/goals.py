"""Performance goals of the proxy, and the figures that they are compared with.

A figure is a ratio of one run, a number of bytes or a time that has an absolute limit. It is None
if it was not measured.
"""

import re
import statistics


def compute_median(rounds, figure):
    """Returns the median of a figure over all rounds."""
    return statistics.median(figure(one) for one in rounds)


def compute_cpu_us(one):
    """Returns the CPU time for each request in a round, in microseconds."""
    return one["cpu"] / one["requests"] * 1e6


def compute_rate(one):
    """Returns the requests per second in a round."""
    return one["requests"] / one["seconds"]


def compute_ratio(measured, case, peer, figure):
    """Returns the proxy's figure divided by the peer's: the median of the ratios of all rounds."""
    servers = measured.get(case, {})
    if "proxy" not in servers or peer not in servers:
        return None
    pairs = [(figure(proxy), figure(other)) for proxy, other in zip(servers["proxy"], servers[peer])]
    return statistics.median(proxy / other for proxy, other in pairs) if all(other for _, other in pairs) else None


def parse_tables(text):
    """Returns the tables of a Markdown page as lists of rows of cells, the head first."""
    result, in_table = [], False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.lstrip().startswith("|"):
            in_table = False
        elif not in_table:
            result.append([cells])
            in_table = True
        elif not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            result[-1].append(cells)
    return result


def find_cell(text, column, row):
    """Returns the number in the row named `row`, in the first column with `column` in its head.

    Returns None if there is none.
    """
    for head, *rows in parse_tables(text):
        indices = [index for index, name in enumerate(head) if index and column in name]
        for cells in rows:
            if indices and cells[0].replace(",", "") == row and len(cells) > indices[0]:
                number = re.search(r"\d+(\.\d+)?", cells[indices[0]].replace(",", ""))
                return float(number.group()) if number else None
    return None


def compute_growth(text, column, small, large):
    """Returns the figure of the row `large` divided by that of the row `small`."""
    before, after = find_cell(text, column, small), find_cell(text, column, large)
    return after / before if before and after is not None else None


# Benchmarks of `cargo bench`, with their headings in the report. goals and benches/*.rs share the
# names of rows and columns.
CARGO_BENCHES = {"cache": "Cache, in process", "memory": "Memory", "faults": "Hits during faults"}

# Goals: title, "most" or "least", limit, and a function that returns the figure. `peers` holds the
# rounds of all servers by case, `benches` the output of `cargo bench` by name.
GOALS = [
    ("HTTP hit, CPU relative to the floor", "most", 1.10,
     lambda peers, benches: compute_ratio(peers, "hit", "floor", compute_cpu_us)),
    ("HTTP hit, CPU relative to nginx `return 200`", "most", 0.95,
     lambda peers, benches: compute_ratio(peers, "hit", "nginx", compute_cpu_us)),
    ("HTTP hit, CPU relative to nginx lua_shared_dict", "most", 0.80,
     lambda peers, benches: compute_ratio(peers, "hit", "lua", compute_cpu_us)),
    ("HTTP hit pipelined by 16, CPU relative to the floor", "most", 2.0,
     lambda peers, benches: compute_ratio(peers, "hit-16", "floor", compute_cpu_us)),
    ("HTTP hit pipelined by 16, requests/s relative to nginx `return 200`", "least", 8,
     lambda peers, benches: compute_ratio(peers, "hit-16", "nginx", compute_rate)),
    ("RESP GET hit, CPU relative to Redis", "most", 0.90,
     lambda peers, benches: compute_ratio(peers, "resp-1", "redis", compute_cpu_us)),
    ("RESP GET hit pipelined by 16, CPU relative to Redis", "most", 0.80,
     lambda peers, benches: compute_ratio(peers, "resp-16", "redis", compute_cpu_us)),
    ("HTTP miss, requests/s relative to webdis", "least", 1.5,
     lambda peers, benches: compute_ratio(peers, "miss", "webdis", compute_rate)),
    ("overhead of an entry in bytes, among a million of 16 + 100 bytes (Redis: 85)", "most", 64,
     lambda peers, benches: find_cell(benches["cache"], "overhead", "1000000")),
    ("idle connection, bytes", "most", 512,
     lambda peers, benches: find_cell(benches["memory"], "bytes", "idle HTTP connection")),
    ("full hit in process: 10 million entries relative to 10 thousand", "most", 3,
     lambda peers, benches: compute_growth(benches["cache"], "full hit ns", "10000", "10000000")),
    ("the cache's `get` alone: 10 million entries relative to 10 thousand", "most", 3,
     lambda peers, benches: compute_growth(benches["cache"], "get ns", "10000", "10000000")),
    ("p99.9 of hits while a million entries expire, relative to the baseline", "most", 1.5,
     lambda peers, benches: find_cell(benches["faults"], "p99.9 ratio", "a million entries expire")),
    ("p99.9 of hits while ten million entries expire, relative to the baseline", "most", 1.5,
     lambda peers, benches: find_cell(benches["faults"], "p99.9 ratio", "ten million entries expire")),
    ("longest sweep among ten million entries, us", "most", 2000,
     lambda peers, benches: find_cell(benches["cache"], "longest sweep", "10000000")),
    ("p99.9 of hits while Redis hangs, relative to the baseline", "most", 1.5,
     lambda peers, benches: find_cell(benches["faults"], "p99.9 ratio", "Redis frozen")),
]


def is_reached(kind, limit, figure):
    """Returns true if a figure meets a goal."""
    return figure <= limit if kind == "most" else figure >= limit
