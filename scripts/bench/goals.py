"""Performance goals of the proxy, and the figures that they are compared with.

A figure is a ratio of one run, a number of bytes or a time that has an absolute limit. It is None
if it was not measured.
"""

import re
import statistics

import cases


def compute_median(rounds, figure):
    """Returns the median of a figure over all rounds."""
    return statistics.median(figure(one) for one in rounds)


def compute_cpu_us(one):
    """Returns the CPU time for each key in a round, in microseconds. All but MGET read one key."""
    return one["cpu"] / one["keys"] * 1e6


def compute_busy(one):
    """Returns the share of its processor that a server used in a round."""
    return one["cpu"] / one["seconds"]


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


def list_hit_cases(keys):
    """Returns the names of the cases that hit this number of random keys, or one key if None."""
    return [case.name for case in cases.CASES if case.keys == keys and case.redis_share == cases.HITS]


def compute_worst_before(measured, names):
    """Returns the highest ratio of CPU to the earlier build in these cases, or None."""
    ratios = [compute_ratio(measured, name, "base", compute_cpu_us) for name in names]
    return max((ratio for ratio in ratios if ratio is not None), default=None)


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
    ("GET, 10,000 keys, CPU relative to Redis", "most", 0.90,
     lambda peers, benches: compute_ratio(peers, "resp-1", "redis", compute_cpu_us)),
    ("GET by 16, 10,000 keys, CPU relative to Redis", "most", 0.80,
     lambda peers, benches: compute_ratio(peers, "resp-16", "redis", compute_cpu_us)),
    ("MGET of 100, 10,000 keys, CPU relative to Redis", "most", 0.80,
     lambda peers, benches: compute_ratio(peers, "mget-100", "redis", compute_cpu_us)),
    ("GET, 2 million keys, CPU relative to Redis", "most", 0.90,
     lambda peers, benches: compute_ratio(peers, "2m-1", "redis", compute_cpu_us)),
    ("GET by 4, 2 million keys, CPU relative to Redis", "most", 0.75,
     lambda peers, benches: compute_ratio(peers, "2m-4", "redis", compute_cpu_us)),
    ("GET by 16, 2 million keys, CPU relative to Redis", "most", 0.45,
     lambda peers, benches: compute_ratio(peers, "2m-16", "redis", compute_cpu_us)),
    ("MGET of 100, 2 million keys, CPU relative to Redis", "most", 0.45,
     lambda peers, benches: compute_ratio(peers, "2m-mget-100", "redis", compute_cpu_us)),
    ("GET by 16, 10 million keys, CPU relative to Redis", "most", 0.45,
     lambda peers, benches: compute_ratio(peers, "10m-16", "redis", compute_cpu_us)),
    ("HTTP, 2 million keys, CPU relative to the proxy before", "most", 0.93,
     lambda peers, benches: compute_ratio(peers, "2m-http", "base", compute_cpu_us)),
    ("HTTP by 16, 2 million keys, CPU relative to the proxy before", "most", 0.65,
     lambda peers, benches: compute_ratio(peers, "2m-http-16", "base", compute_cpu_us)),
    ("1,000 keys, worst case, CPU relative to the proxy before", "most", 1.01,
     lambda peers, benches: compute_worst_before(peers, list_hit_cases(1_000))),
    ("10,000 keys, worst case, CPU relative to the proxy before", "most", 1.01,
     lambda peers, benches: compute_worst_before(peers, list_hit_cases(10_000))),
    ("HTTP hit of one key, worst case, CPU relative to the proxy before", "most", 1.01,
     lambda peers, benches: compute_worst_before(peers, list_hit_cases(None))),
    ("HTTP miss, requests/s relative to webdis", "least", 1.5,
     lambda peers, benches: compute_ratio(peers, "miss", "webdis", compute_rate)),
    ("HTTP miss, CPU relative to webdis", "most", 0.55,
     lambda peers, benches: compute_ratio(peers, "miss", "webdis", compute_cpu_us)),
    ("overhead of an entry in bytes, among a million of 16 + 100 bytes (Redis: 85)", "most", 64,
     lambda peers, benches: find_cell(benches["cache"], "overhead", "1000000")),
    ("idle connection, bytes", "most", 512,
     lambda peers, benches: find_cell(benches["memory"], "bytes", "idle HTTP connection")),
    ("hit in process, batch of 16: 10 million entries relative to 10 thousand", "most", 4,
     lambda peers, benches: compute_growth(benches["cache"], "get in batches of 16 ns", "10000", "10000000")),
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
