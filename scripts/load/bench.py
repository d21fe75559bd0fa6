"""Runs redis-benchmark for a time: it only knows numbers of requests. Arguments: host:port, seconds, number of keys,
commands sent at once.

It takes any reply for right, except errors; check.py is who compares values.
"""

import csv
import io
import subprocess
import sys
import time

import part
import resp
import values

# Seconds that a run is to take, judged by the one before: short enough to end in time, long enough to be mostly load.
RUN = 2
# Seconds beyond its time after which the last run is taken for hung.
PATIENCE = 30
FIRST, FEWEST, MOST = 2_000, 200, 1_000_000
CLIENTS = 4


def once(this, host, port, count, keys, pipeline):
    """Returns redis-benchmark's own figures, or None when it failed."""
    command = ["redis-benchmark", "-h", host, "-p", str(port), "-c", str(CLIENTS), "-n", str(count), "-r", str(keys),
               "-P", str(pipeline), "--csv", "GET", values.PREFIX + "bench:__rand_int__"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               universal_newlines=True)
    try:
        while True:
            try:
                output, _ = process.communicate(timeout=1)
                break
            except subprocess.TimeoutExpired:
                if this.told:
                    return None
                if time.monotonic() > this.ends + PATIENCE:
                    this.complain("unexpected", "redis-benchmark does not end: it waits for a reply")
                    return None
    finally:
        process.kill()
        process.wait()
    rows = list(csv.DictReader(io.StringIO(output[output.find('"test"'):])))
    if process.returncode != 0 or len(rows) != 1:
        # Standard error, where its reason is, comes together with the head of the table.
        said = [line for line in output.splitlines() if line.strip() and not line.startswith('"')]
        this.complain("unexpected", "redis-benchmark ended with %d: %s" % (process.returncode, said[-1] if said else output[:100]))
        return None
    return rows[0]


def main():
    host, port = resp.address(sys.argv[1])
    this = part.Part(float(sys.argv[2]))
    keys, pipeline = int(sys.argv[3]), int(sys.argv[4])
    began = time.monotonic()
    requests = failed = 0
    p50, p99 = [], []
    count = FIRST
    while this.left() > 0.5 or not requests + failed:
        row = once(this, host, port, count, keys, pipeline)
        if row is None and this.told:
            break
        if row is None:
            failed += 1
            time.sleep(0.2)
            continue
        requests += count
        p50.append(float(row["p50_latency_ms"]) / 1000)
        p99.append(float(row["p99_latency_ms"]) / 1000)
        count = int(min(MOST, max(FEWEST, float(row["rps"]) * min(RUN, max(0.5, this.left())))))
    this.result(requests=requests, seconds=time.monotonic() - began, unexpected=failed,
                p50=part.percentile(sorted(p50), 0.5), p99=part.percentile(sorted(p99), 0.5))


main()
