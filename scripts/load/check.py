"""Asks the proxy over RESP, GET and MGET, also several at once, and compares every value. Arguments: host:port, seconds."""

import random
import sys
import time

import part
import resp
import values

# Seconds between rounds: a checker, not a flood; the flood is redis-benchmark's.
PAUSE = 0.002
# Latencies that are kept, as a sample of all.
KEPT = 50_000


class Checker:
    def __init__(self, this):
        self.this = this
        self.known = {}
        self.requests = self.values = self.failed = self.wrong = self.stale = self.living = 0
        self.latest = None
        self.latencies = []

    def expected(self, key):
        if key not in self.known:
            self.known[key] = values.value(key)
        return self.known[key]

    def key(self):
        """A key at random, and what is to be expected: a value, None, or that it expires."""
        kind = random.randrange(5)
        if kind == 0:
            return values.missing(random.randrange(values.MISSING_KEYS)), None
        if kind == 1:
            return values.expiring(random.randrange(values.EXPIRING_KEYS)), "expires"
        name, count = [(values.hot, values.HOT_KEYS), (values.cold, values.COLD_KEYS),
                       (values.bench, values.BENCH_KEYS)][kind - 2]
        key = name(random.randrange(count))
        return key, self.expected(key)

    def compare(self, key, expected, found, asked):
        self.values += 1
        if expected != "expires":
            if found != expected:
                self.wrong += 1
                self.this.complain("wrong", "%s is %r" % (key, found and found[:80]))
        elif found is not None:
            self.living += 1
            late = values.lateness(key, found, asked)
            if late is None:
                self.wrong += 1
                self.this.complain("wrong", "%s is %r" % (key, found[:80]))
                return
            self.latest = late if self.latest is None else max(self.latest, late)
            if late > values.STALE_TOLERANCE:
                self.stale += 1
                self.this.complain("stale", "%s was served %d ms after its expiry" % (key, late))

    def round(self, client):
        """One GET, several in one go, or an MGET."""
        kind = random.randrange(3)
        asked_for = [self.key() for _ in range(1 if kind == 0 else random.randint(2, 16))]
        keys = [key for key, _ in asked_for]
        commands = [["MGET"] + keys] if kind == 2 else [["GET", key] for key in keys]
        # Before it is sent: whatever holds up this process later makes nothing look late.
        asked, begun = time.time() * 1000, time.perf_counter()
        client.send(*commands)
        found = []
        for _ in commands:
            try:
                found.append(client.reply())
            except resp.RespError as error:
                found.append(error)
        self.note(time.perf_counter() - begun)
        self.requests += len(commands)
        errors = [reply for reply in found if isinstance(reply, resp.RespError)]
        if errors:
            self.failed += len(errors)
            self.this.complain("unexpected", str(errors[0]))
        if kind == 2 and not errors:
            found = found[0]
            if not isinstance(found, list) or len(found) != len(keys):
                raise ConnectionError("MGET of %d keys was answered with something else" % len(keys))
        if kind != 2 or not errors:
            for (key, expected), reply in zip(asked_for, found):
                if not isinstance(reply, resp.RespError):
                    self.compare(key, expected, reply, asked)

    def note(self, seconds):
        if len(self.latencies) < KEPT:
            self.latencies.append(seconds)
        else:
            self.latencies[random.randrange(KEPT)] = seconds


def main():
    host, port = resp.address(sys.argv[1])
    this = part.Part(float(sys.argv[2]))
    checker = Checker(this)
    began = time.monotonic()
    broken = this.ask_again(lambda: resp.Client(host, port), checker.round, PAUSE)
    ordered = sorted(checker.latencies)
    this.result(
        requests=checker.requests, seconds=time.monotonic() - began, checked=checker.values, living=checker.living,
        unexpected=checker.failed, socket=broken, wrong=checker.wrong, stale=checker.stale, latest=checker.latest,
        p50=part.percentile(ordered, 0.5), p99=part.percentile(ordered, 0.99))


main()
