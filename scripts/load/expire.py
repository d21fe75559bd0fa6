"""Sets keys that soon expire, again and again. Arguments: Redis' host:port, seconds.

PXAT rather than PX: so the value can carry the very moment at which Redis lets it expire.
"""

import heapq
import random
import sys
import time

import part
import resp
import values


def main():
    host, port = resp.address(sys.argv[1])
    this = part.Part(float(sys.argv[2]))
    client = resp.Client(host, port)
    due = [(0, values.expiring(number)) for number in range(values.EXPIRING_KEYS)]
    written = 0
    while this.left() > 0:
        now = time.time() * 1000
        if due[0][0] > now:
            time.sleep(min(0.02, (due[0][0] - now) / 1000))
            continue
        key = due[0][1]
        expiry = int(now) + random.randint(values.SHORTEST_LIFE, values.LONGEST_LIFE)
        client.call("SET", key, values.numbered(key, expiry), "PXAT", expiry)
        written += 1
        # Often before it expires, so that the next value follows at once, and often after, so that it is missed.
        heapq.heapreplace(due, (expiry + random.randint(-300, 300), key))
    this.result(requests=written)


main()
