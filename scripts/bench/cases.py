"""Benchmark cases: the servers that take part in each, and the keys that they read.

wrk.lua makes the same keys; keep both in step.
"""

import collections

HOT_KEYS, COLD_KEYS = 10_000, 100_000
# Keys of the case in which half of the requests miss.
HALF_CACHED_KEYS = 100_000
# Default length of a value in bytes.
LENGTH = 100
KIB = 1024

# Names of the servers in tables, in table order.
NAMES = {"proxy": "the proxy", "base": "the proxy before", "floor": "floor", "nginx": "nginx `return 200`",
         "lua": "nginx lua_shared_dict", "webdis": "webdis", "redis": "Redis", "valkey": "Valkey"}
# `base` and `valkey` take part only if scripts/bench.sh has their binaries.
HIT = ("proxy", "base", "floor", "nginx", "lua", "webdis")
# Without nginx `return 200`: its configuration accepts no string longer than 4 KiB.
HIT_LONG = ("proxy", "base", "floor", "lua", "webdis")
CACHING = ("proxy", "base", "lua", "webdis")
HTTP = ("proxy", "base")
RESP = ("proxy", "base", "redis", "valkey")
RESP_FLOOR = ("proxy", "base", "floor", "redis", "valkey")

# Capacity of the caches: entries of the proxy, memory of nginx, which uses 256 bytes for each
# entry.
LARGE_CACHE, SMALL_CACHE, MIXED_CACHE = (20_000, "16m"), (1_000, "256k"), (20_000, "5m")

# `kind` is a kind of request in wrk.lua, or "resp" for redis-benchmark. `redis_share` bounds the
# share of keys for which a cache reads from Redis. `keys` is the number of keys that random
# requests are for, and None in the other cases. `batch` is the number of keys in a request.
Case = collections.namedtuple("Case", "name title kind servers connections pipeline length capacity redis_share "
                              "keys batch", defaults=(None, 1))
HITS, HALF, MISSES, MIXED = (0, 0.01), (0.45, 0.55), (0.98, 1.01), (0.05, 0.95)


def make_random(name, title, keys, pipeline=1, batch=1, servers=RESP, cached=1.0):
    """Returns a case that requests random keys, a share of which the proxy can cache.

    Consecutive cases with the same number of keys and the same share use the same servers.
    """
    kind = "random" if title.startswith("HTTP") else "resp"
    return Case(name, title, kind, servers, 64, pipeline, LENGTH, (int(keys * cached), None),
                HITS if cached == 1 else HALF, keys, batch)


# bench.sh reads the names from lines that begin with `    Case("` or `    make_random("`.
CASES = [
    Case("hit", "HTTP hit, 64 connections", "fixed", HIT, 64, 1, LENGTH, LARGE_CACHE, HITS),
    Case("hit-1", "HTTP hit, 1 connection", "fixed", HIT, 1, 1, LENGTH, LARGE_CACHE, HITS),
    Case("hit-1000", "HTTP hit, 1,000 connections", "fixed", HIT, 1000, 1, LENGTH, LARGE_CACHE, HITS),
    Case("hit-16", "HTTP hit, 64 connections, pipelined by 16", "fixed", HIT, 64, 16, LENGTH, LARGE_CACHE, HITS),
    Case("hit-1k", "HTTP hit, 64 connections, 1 KiB", "fixed", HIT, 64, 1, KIB, LARGE_CACHE, HITS),
    Case("hit-64k", "HTTP hit, 64 connections, 64 KiB", "fixed", HIT_LONG, 64, 1, 64 * KIB, LARGE_CACHE, HITS),
    Case("miss", "HTTP miss, 64 connections", "cold", CACHING, 64, 1, LENGTH, SMALL_CACHE, MISSES),
    Case("mixed", "HTTP, 90 % Zipf, 10 % new, 64 connections", "mixed", CACHING, 64, 1, LENGTH, MIXED_CACHE, MIXED),
    make_random("half-16", "GET by 16, half missing", HALF_CACHED_KEYS, 16, cached=0.5),
    make_random("1k-16", "GET by 16", 1_000, 16),
    make_random("1k-mget-100", "MGET of 100", 1_000, batch=100),
    make_random("resp-1", "GET", HOT_KEYS, servers=RESP_FLOOR),
    make_random("resp-4", "GET by 4", HOT_KEYS, 4),
    make_random("resp-16", "GET by 16", HOT_KEYS, 16, servers=RESP_FLOOR),
    make_random("resp-64", "GET by 64", HOT_KEYS, 64),
    make_random("mget-10", "MGET of 10", HOT_KEYS, batch=10),
    make_random("mget-100", "MGET of 100", HOT_KEYS, batch=100),
    make_random("http", "HTTP", HOT_KEYS, servers=HTTP),
    make_random("http-16", "HTTP by 16", HOT_KEYS, 16, servers=HTTP),
    make_random("2m-1", "GET", 2_000_000),
    make_random("2m-4", "GET by 4", 2_000_000, 4),
    make_random("2m-16", "GET by 16", 2_000_000, 16),
    make_random("2m-64", "GET by 64", 2_000_000, 64),
    make_random("2m-mget-10", "MGET of 10", 2_000_000, batch=10),
    make_random("2m-mget-100", "MGET of 100", 2_000_000, batch=100),
    make_random("2m-http", "HTTP", 2_000_000, servers=HTTP),
    make_random("2m-http-16", "HTTP by 16", 2_000_000, 16, servers=HTTP),
    make_random("10m-16", "GET by 16", 10_000_000, 16),
    make_random("10m-mget-100", "MGET of 100", 10_000_000, batch=100),
    make_random("10m-http", "HTTP", 10_000_000, servers=HTTP),
    make_random("10m-http-16", "HTTP by 16", 10_000_000, 16, servers=HTTP),
]


def describe(case):
    """Returns the title of a case, with the number of its keys."""
    if not case.keys:
        return case.title
    count = "%d million" % (case.keys // 10**6) if case.keys >= 10**6 else "{:,}".format(case.keys)
    return "%s, %s keys" % (case.title, count)


def find_group(case):
    """Returns what cases with the same servers have in common."""
    return (case.keys, case.capacity) if case.keys else case.name


def is_cached_fully(case):
    """Returns true if a case requests random keys, and the proxy has all of them in memory."""
    return case.keys is not None and case.redis_share == HITS


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
