"""Benchmark cases: the servers that take part in each, and the keys that they read.

wrk.lua makes the same keys; keep both in step.
"""

import collections

HOT_KEYS, COLD_KEYS = 10_000, 100_000
# Default length of a value in bytes.
LENGTH = 100
KIB = 1024

# Names of the servers in tables, in table order.
NAMES = {"proxy": "the proxy", "floor": "floor", "nginx": "nginx `return 200`", "lua": "nginx lua_shared_dict",
         "webdis": "webdis", "redis": "Redis"}
HIT = ("proxy", "floor", "nginx", "lua", "webdis")
CACHING = ("proxy", "lua", "webdis")
RESP = ("proxy", "floor", "redis")

# Capacity of the caches: entries of the proxy, memory of nginx, which uses 256 bytes for each
# entry.
LARGE_CACHE, SMALL_CACHE, MIXED_CACHE = (20_000, "16m"), (1_000, "256k"), (20_000, "5m")

# `kind` is a kind of request in wrk.lua, or "resp" for redis-benchmark. `redis_share` bounds the
# share of requests for which a cache reads from Redis.
Case = collections.namedtuple("Case", "name title kind servers connections pipeline length capacity redis_share")
HITS, MISSES, MIXED = (0, 0.01), (0.98, 1.01), (0.05, 0.95)

# bench.sh reads the names from lines that begin with `    Case("`.
CASES = [
    Case("hit", "HTTP hit, 64 connections", "fixed", HIT, 64, 1, LENGTH, LARGE_CACHE, HITS),
    Case("hit-1", "HTTP hit, 1 connection", "fixed", HIT, 1, 1, LENGTH, LARGE_CACHE, HITS),
    Case("hit-1000", "HTTP hit, 1,000 connections", "fixed", HIT, 1000, 1, LENGTH, LARGE_CACHE, HITS),
    Case("hit-16", "HTTP hit, 64 connections, pipelined by 16", "fixed", HIT, 64, 16, LENGTH, LARGE_CACHE, HITS),
    Case("hit-1k", "HTTP hit, 64 connections, 1 KiB", "fixed", HIT, 64, 1, KIB, LARGE_CACHE, HITS),
    # Without nginx `return 200`: its configuration accepts no string longer than 4 KiB.
    Case("hit-64k", "HTTP hit, 64 connections, 64 KiB", "fixed", ("proxy", "floor", "lua", "webdis"), 64, 1, 64 * KIB,
         LARGE_CACHE, HITS),
    Case("miss", "HTTP miss, 64 connections", "cold", CACHING, 64, 1, LENGTH, SMALL_CACHE, MISSES),
    Case("mixed", "HTTP, 90 % Zipf, 10 % new, 64 connections", "mixed", CACHING, 64, 1, LENGTH, MIXED_CACHE, MIXED),
    Case("resp-1", "RESP GET hit, 64 connections", "resp", RESP, 64, 1, LENGTH, LARGE_CACHE, HITS),
    Case("resp-16", "RESP GET hit, 64 connections, pipelined by 16", "resp", RESP, 64, 16, LENGTH, LARGE_CACHE, HITS),
]


def make_hot_key(number):
    """Returns a hot key, with twelve digits as redis-benchmark writes its random numbers."""
    return "hot:%012d" % number


def make_cold_key(number):
    """Returns a cold key."""
    return "cold:%d" % number


def choose_key(case):
    """Returns the key that a case requests, or one of them."""
    if case.kind == "cold":
        return make_cold_key(0)
    return make_hot_key(0) if case.length == LENGTH else "long:%d" % case.length


def make_value(name, length):
    """Returns a value that contains its key and needs no escaping in JSON."""
    return (name + " " + "x" * length)[:length]


def list_entries():
    """Yields key and value of everything that Redis holds."""
    for number in range(HOT_KEYS):
        yield make_hot_key(number), make_value(make_hot_key(number), LENGTH)
    for number in range(COLD_KEYS):
        yield make_cold_key(number), make_value(make_cold_key(number), LENGTH)
    for case in CASES:
        if case.length != LENGTH:
            yield choose_key(case), make_value(choose_key(case), case.length)
