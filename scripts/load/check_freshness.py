"""Changes keys in Redis, reads them through the proxy, and reports values served for too long.

    check_freshness.py PROXY_HOST:PORT REDIS_HOST:PORT SECONDS

docs/consistency.md states the bound: after a change the proxy may serve the old value for
CACHE_TTL, or with tracking until the invalidation arrives. This process reads the configuration
from /stats. No other process changes these keys, so it knows when each value was replaced.
"""

import http.client
import json
import random
import sys
import time

import keyspace
import load_process
import resp

# Seconds between two reads. With this few keys each is read often enough to stay in the cache.
READ_INTERVAL = 0.001
# Seconds between two changes of any key. Each value lives long enough for a copy that is never
# invalidated to be noticed.
CHANGE_INTERVAL = 0.25
MAX_LATENCIES = 50_000


def read_max_stale_ms(proxy):
    """Returns the time for which the proxy may serve a replaced value."""
    connection = http.client.HTTPConnection(*resp.parse_address(proxy), timeout=resp.Client.TIMEOUT_SECONDS)
    connection.request("GET", "/stats")
    configuration = json.loads(connection.getresponse().read())["configuration"]
    connection.close()
    return 0 if configuration["REDIS_TRACKING"] == "on" else 1000 * float(configuration["CACHE_TTL"])


class FreshnessChecker:
    """Writer and reader of the changing keys, with the history of their values."""

    def __init__(self, process, redis, max_stale_ms):
        self.process, self.redis, self.max_stale_ms = process, redis, max_stale_ms
        # Number of the first values. The numbers of earlier runs are lower; the proxy may still
        # hold their values.
        self.first = int(time.time() * 1000)
        # For each key the times when Redis confirmed that each value was replaced; the current
        # value has none.
        self.replaced = {keyspace.make_key("changing", number): [] for number in range(keyspace.CHANGING_KEYS)}
        self.changed = self.requests = self.wrong = self.stale = self.failed = 0
        self.latencies = []
        for key in self.replaced:
            self.write(key, self.first)
        # The values of earlier runs were replaced by now.
        self.started_at = self.next_change = time.monotonic()

    def write(self, key, number):
        """Writes one value to Redis, or ends the process if that fails."""
        try:
            self.redis.call("SET", key, keyspace.make_numbered_value(key, number))
        except OSError as error:
            # Nothing can be checked without Redis, and the proxy is not at fault.
            sys.exit("Redis: %s" % error)

    def change_key(self):
        """Replaces the value of a random key."""
        key = random.choice(list(self.replaced))
        self.write(key, self.first + len(self.replaced[key]) + 1)
        self.replaced[key].append(time.monotonic())
        self.changed += 1

    def run_round(self, client):
        """Changes a key if a change is due, then reads one."""
        if time.monotonic() >= self.next_change:
            self.change_key()
            self.next_change = time.monotonic() + CHANGE_INTERVAL
        self.read_key(client)

    def read_key(self, client):
        """Reads a random key through the proxy and checks the value."""
        key = random.choice(list(self.replaced))
        sent_at = time.monotonic()
        try:
            found = client.call("GET", key)
        except resp.RespError as error:
            self.failed += 1
            self.process.log_problem("unexpected", str(error))
            return
        finally:
            self.requests += 1
        if len(self.latencies) < MAX_LATENCIES:
            self.latencies.append(time.monotonic() - sent_at)
        number = keyspace.parse_number(key, found) if found is not None else None
        replaced = self.replaced[key]
        if number is None or number > self.first + len(replaced):
            self.wrong += 1
            self.process.log_problem("wrong", "%s is %r" % (key, found and found[:80]))
            return
        if number == self.first + len(replaced):
            return
        replaced_at = replaced[number - self.first] if number >= self.first else self.started_at
        late_ms = 1000 * (sent_at - replaced_at)
        if late_ms > self.max_stale_ms + keyspace.STALE_TOLERANCE_MS:
            self.stale += 1
            self.process.log_problem("stale", "%s: the value was replaced %.0f ms before the request" % (key, late_ms))


def main():
    """Changes and reads keys until the time is up."""
    proxy, redis = sys.argv[1], resp.Client(*resp.parse_address(sys.argv[2]))
    process = load_process.LoadProcess(float(sys.argv[3]))
    checker = FreshnessChecker(process, redis, read_max_stale_ms(proxy))
    started_at = time.monotonic()
    broken = process.run_rounds(lambda: resp.Client(*resp.parse_address(proxy)), checker.run_round, READ_INTERVAL)
    ordered = sorted(checker.latencies)
    process.print_result(
        requests=checker.requests, seconds=time.monotonic() - started_at, changed=checker.changed, wrong=checker.wrong,
        stale=checker.stale, unexpected=checker.failed, socket=broken,
        p50=load_process.compute_percentile(ordered, 0.5), p99=load_process.compute_percentile(ordered, 0.99))


main()
