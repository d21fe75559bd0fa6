"""Runs the load against a proxy, samples /metrics meanwhile, and writes DIR/results.json.

    run_load.py PROXY_HOST:PORT REDIS_HOST:PORT SECONDS DIR

A failure under load is no error of this program: it is in the results, and report.py judges them.
SIGTERM ends all processes that it started.
"""

import json
import os
import signal
import subprocess
import sys
import time

import keyspace
import metrics
import resp
import verdict

HERE = os.path.dirname(os.path.abspath(__file__))
# Threads of wrk for each kind, with one connection each. All load together exceeds two processors.
THREADS = {"hot": 3, "cold": 3, "missing": 1, "large": 2, "expiring": 2, "fresh": 1}
# Number of keys and pipeline depth of each redis-benchmark. 500 keys stay in the cache; 5,000 do
# not.
BENCHMARKS = {"resp": (keyspace.BENCH_KEYS, 1), "resp-pipelined": (500, 16)}
# Seconds after which wrk counts a reply as late: a slow machine must not fail. wrk.lua reports
# requests without any reply.
WRK_TIMEOUT = 20
# The load runs at a lower priority than the proxy and this process, so that sampling still works.
NICE = ["nice", "-n", "10"]
# Consecutive refused readings after which the proxy counts as gone.
MAX_REFUSED = 3
# Seconds for descriptors to return to their number before the load, and for clients to print
# results.
SETTLE_TIMEOUT, EXIT_TIMEOUT = 20, 45


class Load:
    """Processes that send requests, and their output."""

    def __init__(self, proxy, redis, seconds, directory):
        self.directory, self.processes = directory, {}
        for kind, threads in THREADS.items():
            self.start(kind, ["wrk", "-t%d" % threads, "-c%d" % threads, "-d%ds" % seconds, "--timeout",
                              "%ds" % WRK_TIMEOUT, "-s", os.path.join(HERE, "wrk.lua"), "http://%s/" % proxy, kind,
                              str(keyspace.STALE_TOLERANCE_MS)])
        for kind, (keys, pipeline) in BENCHMARKS.items():
            self.start_python(kind, "redis_benchmark.py", proxy, seconds, keys, pipeline)
        self.start_python("resp-checked", "check_values.py", proxy, seconds)
        self.start_python("changing", "check_freshness.py", proxy, redis, seconds)
        self.start_python("writer", "write_expiring.py", redis, seconds)

    def start_python(self, kind, script, *arguments):
        """Starts a script of this directory."""
        self.start(kind, [sys.executable, os.path.join(HERE, script)] + [str(argument) for argument in arguments])

    def get_path(self, kind, extension):
        """Returns the path of a process' output file."""
        return os.path.join(self.directory, "%s.%s" % (kind, extension))

    def start(self, kind, command):
        """Starts one process."""
        with open(self.get_path(kind, "out"), "w") as out, open(self.get_path(kind, "err"), "w") as err:
            self.processes[kind] = subprocess.Popen(NICE + command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)

    def list_failed(self):
        """Returns the names of processes that exited with an error."""
        return [kind for kind, process in self.processes.items() if process.poll() not in (None, 0)]

    def is_running(self):
        """Returns true if any process still runs."""
        return any(process.poll() is None for process in self.processes.values())

    def interrupt(self):
        """Ends all processes early with a signal upon which they print results: SIGINT for wrk."""
        for kind, process in self.processes.items():
            process.send_signal(signal.SIGINT if kind in THREADS else signal.SIGTERM)

    def stop(self):
        """Ends all processes and waits for them."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def read_problems(self, kind):
        """Returns the lines that a process printed about problems."""
        with open(self.get_path(kind, "err"), errors="replace") as err:
            return [line.strip() for line in err if line.strip()]

    def read_results(self):
        """Returns figures, exit code and problems of each process."""
        result = {}
        for kind, process in self.processes.items():
            figures = {}
            with open(self.get_path(kind, "out"), errors="replace") as out:
                for line in out:
                    if line.startswith("RESULT "):
                        figures = json.loads(line[len("RESULT "):])
            result[kind] = dict(figures, code=process.returncode, problems=self.read_problems(kind))
        return result


class Sampler:
    """Readings of /metrics, one each second."""

    def __init__(self, reader):
        self.reader, self.samples, self.unreadable = reader, [], []
        self.page, self.read_at, self.refused = reader.read(), time.monotonic(), 0
        self.started_at = self.read_at

    def take_sample(self):
        """Reads /metrics and records a sample, or the failure to read."""
        try:
            page = self.reader.read()
            now = time.monotonic()
            sample = metrics.compute_sample(self.page, page, now - self.read_at)
        except metrics.Unreadable as error:
            self.unreadable.append(str(error))
            self.refused = self.refused + 1 if error.is_refused else 0
            return
        sample["at"] = now - self.started_at
        self.samples.append(sample)
        self.page, self.read_at, self.refused = page, now, 0


class Progress:
    """Progress output: a line every ten seconds, or one updated every second on a terminal."""

    def __init__(self):
        self.in_place, self.printed_at = sys.stderr.isatty(), time.monotonic()

    def print_sample(self, left, load, sampler):
        """Prints the last sample, if a line is due."""
        if not self.in_place and time.monotonic() - self.printed_at < 10 or not sampler.samples:
            return
        self.printed_at = time.monotonic()
        sample = sampler.samples[-1]
        errors = sum(len(load.read_problems(kind)) for kind in load.processes) + len(sampler.unreadable)
        ratio = sample["hit_ratio"]
        line = "%4d s left  %7.0f requests/s  %s hits  %6.1f MiB  %3d descriptors  %s" % (
            max(0, left), sample["requests_per_second"], "  -  " if ratio is None else "%5.1f %%" % (100 * ratio),
            sample["memory"] / 2 ** 20, sample["descriptors"], "%d problems" % errors if errors else "no errors")
        print(("\r%s\x1b[K" if self.in_place else "%s\n") % line, end="", file=sys.stderr, flush=True)

    def finish(self):
        """Ends the line that was updated."""
        if self.in_place:
            print(file=sys.stderr)


def watch_load(load, sampler, seconds):
    """Samples until the load ends. Returns the reason if it ended early, else None."""
    progress, ended_early = Progress(), None
    deadline = sampler.started_at + seconds
    next_sample = sampler.started_at
    while load.is_running() and time.monotonic() < deadline + EXIT_TIMEOUT:
        next_sample = max(next_sample + 1, time.monotonic())
        time.sleep(max(0, next_sample - time.monotonic()))
        # Samples after the first process has ended would not show the whole load.
        if time.monotonic() < deadline and not ended_early:
            sampler.take_sample()
            progress.print_sample(deadline - time.monotonic(), load, sampler)
            failed = load.list_failed()
            if sampler.refused >= MAX_REFUSED or failed:
                ended_early = "%s exited" % " and ".join(failed) if failed else "the proxy stopped listening"
                load.interrupt()
                deadline = min(deadline, time.monotonic())
    progress.finish()
    return ended_early


def await_descriptors(sampler, results):
    """Waits until no more descriptors are open than allowed, and records their final number.

    Records None if /metrics cannot be read.
    """
    results["descriptors_after"] = results["redis_connections_after"] = None
    deadline = time.monotonic() + SETTLE_TIMEOUT
    while time.monotonic() < deadline:
        try:
            page = sampler.reader.read()
            count, connections = count_descriptors(page)
        except metrics.Unreadable:
            return
        results["descriptors_after"], results["redis_connections_after"] = count, connections
        if count <= verdict.compute_descriptor_limit(results, connections):
            break
        time.sleep(0.25)


def count_descriptors(page):
    """Returns the number of open descriptors, and of connections to Redis among them."""
    return page.get_value("process_open_fds"), page.get_value("segment_redis_connections")


def await_stable_descriptors(reader):
    """Waits until the number of descriptors stops changing, and returns it.

    The proxy counts its descriptors once a second, but its connections at once.
    """
    deadline, last = time.monotonic() + SETTLE_TIMEOUT, None
    while True:
        found = count_descriptors(reader.read())
        if found == last or time.monotonic() > deadline:
            return found
        last = found
        time.sleep(1.5)


def main():
    """Runs the load and writes the results."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    proxy, redis, seconds, directory = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    try:
        reader = metrics.Reader(*resp.parse_address(proxy))
        before = await_stable_descriptors(reader)
        sampler = Sampler(reader)
    except metrics.Unreadable as error:
        sys.exit("scripts/load.sh: %s" % error)
    results = {"planned": seconds, "descriptors_before": before[0], "redis_connections_before": before[1],
               "workers": sampler.page.get_value("segment_workers")}
    load = Load(proxy, redis, seconds, directory)
    try:
        results["ended_early"] = watch_load(load, sampler, seconds)
        results["seconds"] = time.monotonic() - sampler.started_at
        is_hung = load.is_running()
    finally:
        load.stop()
    if is_hung and not results["ended_early"]:
        results["ended_early"] = "some processes of the load did not exit"
    await_descriptors(sampler, results)
    results.update(kinds=load.read_results(), samples=sampler.samples, unreadable=sampler.unreadable)
    with open(os.path.join(directory, "results.json"), "w") as file:
        json.dump(results, file)


main()
