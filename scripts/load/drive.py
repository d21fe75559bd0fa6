"""Runs the load against a proxy, watches /metrics meanwhile, and leaves what was seen in DIR/results.json.

Arguments: the proxy's host:port, Redis' host:port, seconds, DIR. That something went wrong is no error here: it is in
the results, for report.py to judge. SIGTERM ends everything that was started.
"""

import json
import os
import signal
import subprocess
import sys
import time

import metrics
import resp
import values
import verdict

HERE = os.path.dirname(os.path.abspath(__file__))
# Threads, each with one connection, of each kind of load by wrk. Together with the rest more than two processors take.
THREADS = {"hot": 3, "cold": 3, "missing": 1, "large": 2, "expiring": 2, "fresh": 1}
# Of redis-benchmark: keys and commands sent at once. A few keys stay in the cache; 5,000 do not all.
BENCHES = {"resp": (values.BENCH_KEYS, 1), "resp-pipelined": (500, 16)}
# Seconds after which wrk calls an answer late: slow machines are no failure. One that never comes wrk.lua tells of.
LATE = 20
# The load is nicer than the proxy and this process: it takes what they leave, so that looking on works.
NICE = ["nice", "-n", "10"]
# Readings in a row without anybody listening after which the proxy is taken for gone.
GONE = 3
# Seconds for descriptors to come back to what they were when the load is over, and for clients to print their results.
SETTLING, ENDING = 20, 45


class Load:
    """The processes that ask, and what they leave."""

    def __init__(self, proxy, redis, seconds, directory):
        self.directory, self.processes = directory, {}
        for kind, threads in THREADS.items():
            self.start(kind, ["wrk", "-t%d" % threads, "-c%d" % threads, "-d%ds" % seconds, "--timeout", "%ds" % LATE,
                              "-s", os.path.join(HERE, "wrk.lua"), "http://%s/" % proxy, kind, str(values.STALE_TOLERANCE)])
        for kind, (keys, pipeline) in BENCHES.items():
            self.python(kind, "bench.py", proxy, seconds, keys, pipeline)
        self.python("resp-checked", "check.py", proxy, seconds)
        self.python("changing", "change.py", proxy, redis, seconds)
        self.python("writer", "expire.py", redis, seconds)

    def python(self, kind, script, *arguments):
        self.start(kind, [sys.executable, os.path.join(HERE, script)] + [str(argument) for argument in arguments])

    def path(self, kind, what):
        return os.path.join(self.directory, "%s.%s" % (kind, what))

    def start(self, kind, command):
        with open(self.path(kind, "out"), "w") as out, open(self.path(kind, "err"), "w") as err:
            self.processes[kind] = subprocess.Popen(NICE + command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)

    def failed(self):
        """Names of those that have ended with an error."""
        return [kind for kind, process in self.processes.items() if process.poll() not in (None, 0)]

    def running(self):
        return any(process.poll() is None for process in self.processes.values())

    def end_early(self):
        """So that they still say what they have seen: wrk does so at SIGINT."""
        for kind, process in self.processes.items():
            process.send_signal(signal.SIGINT if kind in THREADS else signal.SIGTERM)

    def stop(self):
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def complaints(self, kind):
        with open(self.path(kind, "err"), errors="replace") as err:
            return [line.strip() for line in err if line.strip()]

    def results(self):
        """Of each kind: its figures, how it ended, and what it complained of."""
        result = {}
        for kind, process in self.processes.items():
            figures = {}
            with open(self.path(kind, "out"), errors="replace") as out:
                for line in out:
                    if line.startswith("RESULT "):
                        figures = json.loads(line[len("RESULT "):])
            result[kind] = dict(figures, code=process.returncode, complaints=self.complaints(kind))
        return result


class Watch:
    """Readings of /metrics, one each second."""

    def __init__(self, reader):
        self.reader, self.samples, self.unreadable = reader, [], []
        self.page, self.at, self.refused = reader.read(), time.monotonic(), 0
        self.began = self.at

    def look(self):
        try:
            page = self.reader.read()
            now = time.monotonic()
            sample = metrics.difference(self.page, page, now - self.at)
        except metrics.Unreadable as error:
            self.unreadable.append(str(error))
            self.refused = self.refused + 1 if error.gone else 0
            return
        sample["at"] = now - self.began
        self.samples.append(sample)
        self.page, self.at, self.refused = page, now, 0


class Progress:
    """A line every ten seconds, or on a terminal one that changes every second."""

    def __init__(self):
        self.in_place, self.last = sys.stderr.isatty(), time.monotonic()

    def tell(self, left, load, watch):
        if not self.in_place and time.monotonic() - self.last < 10 or not watch.samples:
            return
        self.last = time.monotonic()
        sample = watch.samples[-1]
        errors = sum(len(load.complaints(kind)) for kind in load.processes) + len(watch.unreadable)
        ratio = sample["hit_ratio"]
        line = "%4d s left  %7.0f requests/s  %s hits  %6.1f MiB  %3d descriptors  %s" % (
            max(0, left), sample["requests_per_second"], "  -  " if ratio is None else "%5.1f %%" % (100 * ratio),
            sample["memory"] / 2 ** 20, sample["descriptors"], "%d complaints" % errors if errors else "no errors")
        print(("\r%s\x1b[K" if self.in_place else "%s\n") % line, end="", file=sys.stderr, flush=True)

    def finish(self):
        if self.in_place:
            print(file=sys.stderr)


def drive(load, watch, seconds):
    """Looks on until the load is over. Returns why it ended before its time, if it did."""
    progress, early = Progress(), None
    ends = watch.began + seconds
    following = watch.began
    while load.running() and time.monotonic() < ends + ENDING:
        following = max(following + 1, time.monotonic())
        time.sleep(max(0, following - time.monotonic()))
        # What follows the end of the first of them is not what was to be looked at.
        if time.monotonic() < ends and not early:
            watch.look()
            progress.tell(ends - time.monotonic(), load, watch)
            failed = load.failed()
            if watch.refused >= GONE or failed:
                early = "%s ended" % " and ".join(failed) if failed else "the proxy does not listen any more"
                load.end_early()
                ends = min(ends, time.monotonic())
    progress.finish()
    return early


def settle(watch, results):
    """Waits until no more descriptors are open than may be. Notes how many are in the end; None if nobody tells."""
    results["descriptors_after"] = results["redis_connections_after"] = None
    ends = time.monotonic() + SETTLING
    while time.monotonic() < ends:
        try:
            page = watch.reader.read()
            count, connections = descriptors(page)
        except metrics.Unreadable:
            return
        results["descriptors_after"], results["redis_connections_after"] = count, connections
        if count <= verdict.descriptors_limit(results, connections):
            break
        time.sleep(0.25)


def descriptors(page):
    """How many are open, and how many of them are connections to Redis."""
    return page.value("process_open_fds"), page.value("segment_redis_connections")


def settle_before(reader):
    """Waits until nothing is opened any more. The proxy counts its descriptors once a second, its connections at once."""
    ends, last = time.monotonic() + SETTLING, None
    while True:
        found = descriptors(reader.read())
        if found == last or time.monotonic() > ends:
            return found
        last = found
        time.sleep(1.5)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    proxy, redis, seconds, directory = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    try:
        reader = metrics.Reader(*resp.address(proxy))
        before = settle_before(reader)
        watch = Watch(reader)
    except metrics.Unreadable as error:
        sys.exit("scripts/load.sh: %s" % error)
    results = {"planned": seconds, "descriptors_before": before[0], "redis_connections_before": before[1],
               "workers": watch.page.value("segment_workers")}
    load = Load(proxy, redis, seconds, directory)
    try:
        results["early"] = drive(load, watch, seconds)
        results["seconds"] = time.monotonic() - watch.began
        hung = load.running()
    finally:
        load.stop()
    if hung and not results["early"]:
        results["early"] = "some of the load did not end"
    settle(watch, results)
    results.update(kinds=load.results(), samples=watch.samples, unreadable=watch.unreadable)
    with open(os.path.join(directory, "results.json"), "w") as file:
        json.dump(results, file)


main()
