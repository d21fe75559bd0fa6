"""Writes keys with a short time to live to Redis, again and again.

    write_expiring.py REDIS_HOST:PORT SECONDS

Uses PXAT rather than PX, so that the value can contain the exact time of its expiry.
"""

import heapq
import random
import sys
import time

import keyspace
import load_process
import resp


def main():
    """Writes keys until the time is up."""
    host, port = resp.parse_address(sys.argv[1])
    process = load_process.LoadProcess(float(sys.argv[2]))
    client = resp.Client(host, port)
    due = [(0, keyspace.make_key("expiring", number)) for number in range(keyspace.EXPIRING_KEYS)]
    written = 0
    while process.get_seconds_left() > 0:
        now_ms = time.time() * 1000
        if due[0][0] > now_ms:
            time.sleep(min(0.02, (due[0][0] - now_ms) / 1000))
            continue
        key = due[0][1]
        expiry_ms = int(now_ms) + random.randint(keyspace.MIN_TTL_MS, keyspace.MAX_TTL_MS)
        client.call("SET", key, keyspace.make_numbered_value(key, expiry_ms), "PXAT", expiry_ms)
        written += 1
        # The next write comes before the expiry, so that one value replaces another, or after it,
        # so that the key is missing in between.
        heapq.heapreplace(due, (expiry_ms + random.randint(-300, 300), key))
    process.print_result(requests=written)


main()
