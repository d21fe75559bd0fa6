"""Changes keys in Redis, reads them through the proxy, and judges whether what it gets may still be served. Arguments: the proxy's
host:port, Redis' host:port, seconds.

What may be served after a change is what README promises: the value before it, for CACHE_TTL, with tracking for a moment. The proxy
says in /stats what it is set to. Only this process changes these keys, so it knows for sure when each value was replaced.
"""

import http.client
import json
import random
import sys
import time

import part
import resp
import values

# Seconds between two readings: with so few keys each is asked for often enough to stay in the cache.
PAUSE = 0.001
# Seconds between two changes, of whatever key: each lives long enough that one that is kept for ever is found out.
BETWEEN_CHANGES = 0.25
# Latencies that are kept.
KEPT = 50_000


def allowed(proxy):
    """Milliseconds for which the proxy may serve what has been replaced, beside what a busy machine takes."""
    connection = http.client.HTTPConnection(*resp.address(proxy), timeout=resp.Client.PATIENCE)
    connection.request("GET", "/stats")
    configuration = json.loads(connection.getresponse().read())["configuration"]
    connection.close()
    return 0 if configuration["REDIS_TRACKING"] == "on" else 1000 * float(configuration["CACHE_TTL"])


class Changer:
    def __init__(self, this, redis, most):
        self.this, self.redis, self.most = this, redis, most
        # The number of the first values. Those of earlier runs, which the proxy may still hold, are less.
        self.first = int(time.time() * 1000)
        # Of each key: when each of its values was replaced, by all that Redis has said. The last one is not.
        self.replaced = {values.changing(number): [] for number in range(values.CHANGING_KEYS)}
        self.changed = self.requests = self.wrong = self.stale = self.failed = 0
        self.latencies = []
        for key in self.replaced:
            self.write(key, self.first)
        # When those of earlier runs were.
        self.began = self.due = time.monotonic()

    def write(self, key, number):
        try:
            self.redis.call("SET", key, values.numbered(key, number))
        except OSError as error:
            # Without it nothing can be judged. It is not the proxy's connection that has broken.
            sys.exit("Redis: %s" % error)

    def change(self):
        key = random.choice(list(self.replaced))
        self.write(key, self.first + len(self.replaced[key]) + 1)
        self.replaced[key].append(time.monotonic())
        self.changed += 1

    def round(self, client):
        """One reading, behind a change where one is due."""
        if time.monotonic() >= self.due:
            self.change()
            self.due = time.monotonic() + BETWEEN_CHANGES
        self.read(client)

    def read(self, client):
        key = random.choice(list(self.replaced))
        asked = time.monotonic()
        try:
            found = client.call("GET", key)
        except resp.RespError as error:
            self.failed += 1
            self.this.complain("unexpected", str(error))
            return
        finally:
            self.requests += 1
        if len(self.latencies) < KEPT:
            self.latencies.append(time.monotonic() - asked)
        number = values.number_of(key, found) if found is not None else None
        replaced = self.replaced[key]
        if number is None or number > self.first + len(replaced):
            self.wrong += 1
            self.this.complain("wrong", "%s is %r" % (key, found and found[:80]))
            return
        if number == self.first + len(replaced):
            return
        late = 1000 * (asked - (replaced[number - self.first] if number >= self.first else self.began))
        if late > self.most + values.STALE_TOLERANCE:
            self.stale += 1
            self.this.complain("stale", "%s was served as it had been %.0f ms before" % (key, late))


def main():
    proxy, redis = sys.argv[1], resp.Client(*resp.address(sys.argv[2]))
    this = part.Part(float(sys.argv[3]))
    changer = Changer(this, redis, allowed(proxy))
    began = time.monotonic()
    broken = this.ask_again(lambda: resp.Client(*resp.address(proxy)), changer.round, PAUSE)
    ordered = sorted(changer.latencies)
    this.result(requests=changer.requests, seconds=time.monotonic() - began, changed=changer.changed, wrong=changer.wrong,
                stale=changer.stale, unexpected=changer.failed, socket=broken, p50=part.percentile(ordered, 0.5),
                p99=part.percentile(ordered, 0.99))


main()
