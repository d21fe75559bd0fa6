"""Test of the client-side cache of redis-py, in front of the proxy.

    client_cache.py PROXY_PORT REDIS_PORT

Prints "ok" at the end.
"""

import sys
import time

import redis
from redis.cache import CacheConfig

proxy_port, redis_port = int(sys.argv[1]), int(sys.argv[2])
writer = redis.Redis(host="127.0.0.1", port=redis_port)
client = redis.Redis(host="127.0.0.1", port=proxy_port, protocol=3, cache_config=CacheConfig())
cache = client.get_cache()


def wait_until(read, value):
    """Reads until the value is seen, for at most 10 s."""
    end = time.monotonic() + 10
    while (found := read()) != value:
        assert time.monotonic() < end, (found, value)


def count_requests():
    """Returns the number of commands that the proxy has executed, this one included."""
    return redis.Redis(host="127.0.0.1", port=proxy_port).info("stats")["total_commands_processed"]


reads = {
    "GET": lambda: client.get("a"),
    "MGET": lambda: client.mget("a", "b"),
    "STRLEN": lambda: client.strlen("a"),
    "GETRANGE": lambda: client.getrange("a", 0, 3),
}
for number in range(20):
    text = b"x" * number + b"%d" % number
    writer.set("a", text)
    for name, value in [("GET", text), ("MGET", [text, None]), ("STRLEN", len(text)), ("GETRANGE", text[:4])]:
        wait_until(reads[name], value)
assert cache.size == 4, cache.size

# Cached values need no request.
client.get("a")
before = count_requests()
for _ in range(100):
    assert client.get("a") == text
assert count_requests() - before < 50

# A key that is created, deleted, and flushed.
assert client.exists("new") == 0
writer.set("new", "1")
wait_until(lambda: client.exists("new"), 1)
writer.delete("new")
wait_until(lambda: client.exists("new"), 0)
writer.set("new", "2")
wait_until(lambda: client.get("new"), b"2")
writer.flushall()
wait_until(lambda: client.get("new"), None)
wait_until(lambda: client.get("a"), None)
print("ok")
