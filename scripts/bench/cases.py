"""What is measured: the cases, who takes part in each, and the keys that they ask for.

Keys are made in wrk.lua too and must stay the same there.
"""

import collections

HOT_KEYS, COLD_KEYS = 10_000, 100_000
# Bytes of a value, where a case says nothing else.
LENGTH = 100
KIB = 1024

# Names in tables, in the order in which they stand there.
NAMES = {"proxy": "the proxy", "floor": "floor", "nginx": "nginx `return 200`", "lua": "nginx lua_shared_dict",
         "webdis": "webdis", "redis": "Redis"}
HIT = ("proxy", "floor", "nginx", "lua", "webdis")

# What the caches are given: how many entries for the proxy, how much memory for nginx, which takes 256 bytes for each.
ROOMY, TIGHT, MIXED = (20_000, "16m"), (1_000, "256k"), (20_000, "5m")

# `kind` is that of wrk.lua, or "resp" for redis-benchmark; `asks` bounds the share of requests for which a cache asks Redis.
Case = collections.namedtuple("Case", "name title kind servers connections pipeline length room asks")
HITS, MISSES, SOME = (0, 0.01), (0.98, 1.01), (0.05, 0.95)

CASES = [
    Case("hit", "HTTP hit, 64 connections", "fixed", HIT, 64, 1, LENGTH, ROOMY, HITS),
    Case("hit-1", "HTTP hit, 1 connection", "fixed", HIT, 1, 1, LENGTH, ROOMY, HITS),
    Case("hit-1000", "HTTP hit, 1,000 connections", "fixed", HIT, 1000, 1, LENGTH, ROOMY, HITS),
    Case("hit-16", "HTTP hit, 64 connections, pipelined by 16", "fixed", HIT, 64, 16, LENGTH, ROOMY, HITS),
    Case("hit-1k", "HTTP hit, 64 connections, 1 KiB", "fixed", HIT, 64, 1, KIB, ROOMY, HITS),
    # nginx takes no text of more than 4 KiB in its configuration.
    Case("hit-64k", "HTTP hit, 64 connections, 64 KiB", "fixed", ("proxy", "floor", "lua", "webdis"), 64, 1, 64 * KIB, ROOMY, HITS),
    Case("miss", "HTTP miss, 64 connections", "cold", ("proxy", "lua", "webdis"), 64, 1, LENGTH, TIGHT, MISSES),
    Case("mixed", "HTTP, 90 % Zipf, 10 % new, 64 connections", "mixed", ("proxy", "lua", "webdis"), 64, 1, LENGTH, MIXED, SOME),
    Case("resp-1", "RESP GET hit, 64 connections", "resp", ("proxy", "floor", "redis"), 64, 1, LENGTH, ROOMY, HITS),
    Case("resp-16", "RESP GET hit, 64 connections, pipelined by 16", "resp", ("proxy", "floor", "redis"), 64, 16, LENGTH, ROOMY, HITS),
]


def hot(number):
    """redis-benchmark puts its random numbers as twelve digits."""
    return "hot:%012d" % number


def cold(number):
    return "cold:%d" % number


def key(case):
    """The one that a case asks for, or one of them."""
    if case.kind == "cold":
        return cold(0)
    return hot(0) if case.length == LENGTH else "long:%d" % case.length


def value(name, length):
    """Names its key; text that JSON takes as it is."""
    return (name + " " + "x" * length)[:length]


def everything():
    """Key and value of all that is in Redis."""
    for number in range(HOT_KEYS):
        yield hot(number), value(hot(number), LENGTH)
    for number in range(COLD_KEYS):
        yield cold(number), value(cold(number), LENGTH)
    for case in CASES:
        if case.length != LENGTH:
            yield key(case), value(key(case), case.length)
