"""Sends GET and MGET to the proxy over RESP, partly pipelined, and compares every value.

    check_values.py HOST:PORT SECONDS
"""

import random
import sys
import time

import keyspace
import load_process
import resp

# Seconds between rounds. This process checks; redis-benchmark supplies the load.
PAUSE = 0.002
# Size of the sample of latencies.
MAX_LATENCIES = 50_000


class ValueChecker:
    """Client that compares each reply with the value that Redis holds."""

    def __init__(self, process):
        self.process = process
        self.known = {}
        self.requests = self.values = self.failed = self.wrong = self.stale = self.expiring_values = 0
        self.max_late_ms = None
        self.latencies = []

    def get_expected(self, key):
        """Returns the value of a key that never changes."""
        if key not in self.known:
            self.known[key] = keyspace.make_value(key)
        return self.known[key]

    def choose_key(self):
        """Returns a random key and what to expect: its value, None, or "expires"."""
        kind = random.randrange(5)
        if kind == 0:
            return keyspace.make_key("missing", random.randrange(keyspace.MISSING_KEYS)), None
        if kind == 1:
            return keyspace.make_key("expiring", random.randrange(keyspace.EXPIRING_KEYS)), "expires"
        name, count = [("hot", keyspace.HOT_KEYS), ("cold", keyspace.COLD_KEYS),
                       ("bench", keyspace.BENCH_KEYS)][kind - 2]
        key = keyspace.make_key(name, random.randrange(count))
        return key, self.get_expected(key)

    def compare(self, key, expected, found, sent_ms):
        """Checks one value."""
        self.values += 1
        if expected != "expires":
            if found != expected:
                self.wrong += 1
                self.process.log_problem("wrong", "%s is %r" % (key, found and found[:80]))
        elif found is not None:
            self.expiring_values += 1
            late_ms = keyspace.compute_lateness_ms(key, found, sent_ms)
            if late_ms is None:
                self.wrong += 1
                self.process.log_problem("wrong", "%s is %r" % (key, found[:80]))
                return
            self.max_late_ms = late_ms if self.max_late_ms is None else max(self.max_late_ms, late_ms)
            if late_ms > keyspace.STALE_TOLERANCE_MS:
                self.stale += 1
                self.process.log_problem("stale", "%s was served %d ms after its expiry" % (key, late_ms))

    def run_round(self, client):
        """Sends one GET, a pipeline of GETs, or one MGET, and checks the replies."""
        kind = random.randrange(3)
        chosen = [self.choose_key() for _ in range(1 if kind == 0 else random.randint(2, 16))]
        keys = [key for key, _ in chosen]
        commands = [["MGET"] + keys] if kind == 2 else [["GET", key] for key in keys]
        # Read before sending, so that a later delay of this process makes no value look stale.
        sent_ms, started_at = time.time() * 1000, time.perf_counter()
        client.send(*commands)
        found = []
        for _ in commands:
            try:
                found.append(client.read_reply())
            except resp.RespError as error:
                found.append(error)
        self.record_latency(time.perf_counter() - started_at)
        self.requests += len(commands)
        errors = [reply for reply in found if isinstance(reply, resp.RespError)]
        if errors:
            self.failed += len(errors)
            self.process.log_problem("unexpected", str(errors[0]))
        if kind == 2 and not errors:
            found = found[0]
            if not isinstance(found, list) or len(found) != len(keys):
                raise ConnectionError("the reply to MGET of %d keys is no array of that length" % len(keys))
        if kind != 2 or not errors:
            for (key, expected), reply in zip(chosen, found):
                if not isinstance(reply, resp.RespError):
                    self.compare(key, expected, reply, sent_ms)

    def record_latency(self, seconds):
        """Adds a latency to the sample, in place of a random one if the sample is full."""
        if len(self.latencies) < MAX_LATENCIES:
            self.latencies.append(seconds)
        else:
            self.latencies[random.randrange(MAX_LATENCIES)] = seconds


def main():
    """Runs rounds until the time is up."""
    host, port = resp.parse_address(sys.argv[1])
    process = load_process.LoadProcess(float(sys.argv[2]))
    checker = ValueChecker(process)
    started_at = time.monotonic()
    broken = process.run_rounds(lambda: resp.Client(host, port), checker.run_round, PAUSE)
    ordered = sorted(checker.latencies)
    process.print_result(
        requests=checker.requests, seconds=time.monotonic() - started_at, checked=checker.values,
        expiring_values=checker.expiring_values, unexpected=checker.failed, socket=broken, wrong=checker.wrong,
        stale=checker.stale, max_late_ms=checker.max_late_ms,
        p50=load_process.compute_percentile(ordered, 0.5), p99=load_process.compute_percentile(ordered, 0.99))


main()
