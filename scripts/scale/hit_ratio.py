#!/usr/bin/env python3
"""Simulates the hit ratio of 1 to 100 proxies, with hashing of keys and without.

    scripts/scale/hit_ratio.py [--requests N] [--keys N] [--entries N]

    --requests   requests that are counted, after as many to fill the caches (default 1,000,000)
    --keys       different keys (default 100,000)
    --entries    entries of each cache (default 1,000)

Prints the tables of docs/sizing.md. Each cache is LRU and entries do not expire. With hashing each
key belongs to one proxy, by a ring of 160 points for each. Without, requests go to all proxies in
turn. The same arguments give the same output. The defaults take a minute (42 s measured).

One table is about expiry instead. It is computed, for caches that hold all keys: a key that a proxy
gets r requests a second for has a hit ratio of r x CACHE_TTL / (1 + r x CACHE_TTL), because each
miss is followed by the hits of CACHE_TTL seconds.

Workloads:

- Zipf with s = 0.9 and with s = 1.1.
- A mix as in traces of caches. 90 % are Zipf (s = 0.9) with a popularity that drifts: in each
  hundredth of the run, a hundredth of the keys change places with others. 10 % are scans of 1,000
  keys in a row.
"""

import argparse
import bisect
import collections
import hashlib
import os
import random
import sys

import zipf

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "load"))
from markdown import format_table  # noqa: E402

COUNTS = (1, 2, 3, 5, 10, 30, 100)
POINTS = 160
# Parts of a run. The mix changes in each, and misses after a restart are compared in each.
STEPS = 100
SCAN_SHARE, SCAN_LENGTH = 0.1, 1000
# Columns of the table about expiry: the default CACHE_TTL, in seconds, and requests a second.
TTL, RATES = 15, (10000, 100000)


def make_zipf(keys, exponent, requests):
    """Returns the keys of all requests."""
    return zipf.Zipf(keys, exponent, 1).draw(requests)


def make_mix(keys, requests):
    """Returns the keys of all requests of the mix."""
    source, choose = zipf.Zipf(keys, 0.9, 1), random.Random(2)
    key_of_rank = list(range(keys))
    result = []
    while len(result) < requests:
        for _ in range(keys // STEPS):
            first, second = choose.randrange(keys), choose.randrange(keys)
            key_of_rank[first], key_of_rank[second] = key_of_rank[second], key_of_rank[first]
        block = requests // STEPS
        scans = max(1, round(block * SCAN_SHARE / SCAN_LENGTH))
        single = (block - scans * SCAN_LENGTH) // scans
        for _ in range(scans):
            result += [key_of_rank[rank] for rank in source.draw(single)]
            start = choose.randrange(keys)
            result += [(start + offset) % keys for offset in range(SCAN_LENGTH)]
    return result[:requests]


def hash_of(text):
    """Returns a hash that is the same in each run."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class Ring:
    """Consistent hashing of key numbers to proxies."""

    def __init__(self, proxies, keys):
        points = sorted((hash_of("proxy%d/%d" % (proxy, point)), proxy) for proxy in proxies for point in range(POINTS))
        places = [place for place, _ in points]
        self.owner = [points[bisect.bisect(places, hash_of("key%d" % key)) % len(points)][1] for key in range(keys)]


class Proxies:
    """LRU caches of several proxies."""

    def __init__(self, count, entries):
        self.caches, self.entries = [collections.OrderedDict() for _ in range(count)], entries
        self.misses = 0

    def get(self, proxy, key):
        """Looks a key up, and caches it."""
        cache = self.caches[proxy]
        if key in cache:
            cache.move_to_end(key)
            return
        self.misses += 1
        if len(cache) >= self.entries:
            cache.popitem(last=False)
        cache[key] = None

    def run(self, requests, owner, first=0):
        """Sends requests by a ring, or to all proxies in turn. Returns the misses."""
        before, count = self.misses, len(self.caches)
        if owner is None:
            for number, key in enumerate(requests, first):
                self.get(number % count, key)
        else:
            for key in requests:
                self.get(owner[key], key)
        return self.misses - before

    def count_entries(self):
        """Returns the entries of all caches, and the distinct keys among them."""
        return sum(map(len, self.caches)), len(set().union(*self.caches))


def simulate(count, entries, requests, owner):
    """Returns the hit ratio of the second half of the requests, and both counts of entries."""
    proxies, half = Proxies(count, entries), len(requests) // 2
    proxies.run(requests[:half], owner)
    misses = proxies.run(requests[half:], owner, half)
    return 1 - misses / (len(requests) - half), *proxies.count_entries()


def simulate_both(name, arguments, requests, rings):
    """Returns the results of `simulate` for each number of proxies: in turn, and hashed."""
    results = {}
    for count in COUNTS:
        hashed = simulate(count, arguments.entries, requests, rings[count].owner)
        in_turn = hashed if count == 1 else simulate(count, arguments.entries, requests, None)
        results[count] = in_turn, hashed
        print("%s: %d proxies" % (name, count), file=sys.stderr, flush=True)
    return results


def print_hit_ratios(workloads):
    """Prints the hit ratios of all workloads."""
    print("### Hit ratio\n")
    head = ["proxies"]
    for name in workloads:
        head += [name + ", in turn", "hashed"]
    rows = [[str(count)] + ["%.1f %%" % (100 * result[0]) for results in workloads.values() for result in results[count]]
            for count in COUNTS]
    print("\n".join(format_table(head, rows, words=0)) + "\n")


def print_memory(name, results):
    """Prints memory and reads of Redis of one workload."""
    print("### Memory and reads of Redis, %s\n" % name)
    head = ["proxies", "entries, in turn", "hashed", "different keys, in turn", "hashed",
            "reads of Redis in 1,000 requests, in turn", "hashed"]
    rows = []
    for count in COUNTS:
        in_turn, hashed = results[count]
        rows.append([str(count), *(f"{result[place]:,}" for place in (1, 2) for result in (in_turn, hashed)),
                     *("%.0f" % (1000 * (1 - result[0])) for result in (in_turn, hashed))])
    print("\n".join(format_table(head, rows, words=0)) + "\n")


def compute_ttl_hit_ratio(keys, exponent, rate):
    """Returns the hit ratio of one cache that holds all keys, for requests a second."""
    weights = [(number + 1) ** -exponent for number in range(keys)]
    scale = rate * TTL / sum(weights)
    return sum(weight * weight * scale / (1 + weight * scale) for weight in weights) / sum(weights)


def print_ttl(name, keys, exponent):
    """Prints the hit ratios with expiry. With hashing, all requests for a key meet one cache."""
    rows = []
    for count in COUNTS:
        cells = [compute_ttl_hit_ratio(keys, exponent, rate / share) for rate in RATES for share in (count, 1)]
        rows.append([str(count)] + ["%.1f %%" % (100 * cell) for cell in cells])
    head = ["proxies"]
    for rate in RATES:
        head += [f"{rate:,} requests/s, in turn", "hashed"]
    print("### Hit ratio with CACHE_TTL=%d, %s\n" % (TTL, name))
    print("\n".join(format_table(head, rows, words=0)) + "\n")


def measure_restart(count, arguments, requests, owner):
    """Empties one cache half way. Returns its extra misses and the requests until it is as before.

    It is as before once a hundredth of the run has at most 2 % more misses than without a restart.
    """
    half, step = len(requests) // 2, len(requests) // 2 // STEPS
    usual, restarted = Proxies(count, arguments.entries), Proxies(count, arguments.entries)
    for proxies in (usual, restarted):
        proxies.run(requests[:half], owner)
    restarted.caches[0].clear()
    extra, recovered = 0, None
    for start in range(half, half + step * STEPS, step):
        block = requests[start:start + step]
        expected, misses = usual.run(block, owner, start), restarted.run(block, owner, start)
        extra += misses - expected
        if recovered is None and misses <= 1.02 * expected:
            recovered = start + step - half
    return extra, recovered


def print_restarts(name, requests, arguments, rings):
    """Prints what a restart of one proxy costs."""
    rows = []
    for count in COUNTS:
        cells = [str(count)]
        for owner in (None, rings[count].owner):
            extra, recovered = measure_restart(count, arguments, requests, owner)
            cells += [f"{extra:,}", f"{recovered:,}" if recovered else "more"]
        rows.append(cells)
        print("restart: %d proxies" % count, file=sys.stderr, flush=True)
    print("### Restart of one proxy, %s\n" % name)
    head = ["proxies", "extra reads of Redis, in turn", "requests until it is over", "extra reads, hashed",
            "requests until it is over"]
    print("\n".join(format_table(head, rows, words=0)))


def main():
    """Prints all tables."""
    parser = argparse.ArgumentParser(usage="scripts/scale/hit_ratio.py [--requests N] [--keys N] [--entries N]")
    parser.add_argument("--requests", type=int, default=1000000)
    parser.add_argument("--keys", type=int, default=100000)
    parser.add_argument("--entries", type=int, default=1000)
    arguments = parser.parse_args()
    rings = {count: Ring(range(count), arguments.keys) for count in COUNTS}
    total, first = 2 * arguments.requests, "Zipf 0.9"
    steady = make_zipf(arguments.keys, 0.9, total)
    workloads = {first: steady, "Zipf 1.1": make_zipf(arguments.keys, 1.1, total), "mix": make_mix(arguments.keys, total)}
    results = {name: simulate_both(name, arguments, requests, rings) for name, requests in workloads.items()}
    print_hit_ratios(results)
    print_ttl(first, arguments.keys, 0.9)
    print_memory(first, results[first])
    print_restarts(first, steady, arguments, rings)


main()
