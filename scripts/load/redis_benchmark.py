"""Runs redis-benchmark for a given time, although its own limit is a number of requests.

    redis_benchmark.py HOST:PORT SECONDS KEYS PIPELINE

Accepts every reply that is not an error; check_values.py compares values.
"""

import csv
import io
import subprocess
import sys
import time

import keyspace
import load_process
import resp

# Target duration of one run in seconds, estimated from the run before: short enough to end in time,
# long enough to consist mostly of load.
RUN_SECONDS = 2
# Seconds beyond the deadline after which the last run counts as hung.
HANG_TIMEOUT = 30
FIRST_REQUESTS, MIN_REQUESTS, MAX_REQUESTS = 2_000, 200, 1_000_000
CLIENTS = 4


def run_once(process, host, port, count, keys, pipeline):
    """Returns the figures that redis-benchmark prints, or None if it failed."""
    command = ["redis-benchmark", "-h", host, "-p", str(port), "-c", str(CLIENTS), "-n", str(count), "-r", str(keys),
               "-P", str(pipeline), "--csv", "GET", keyspace.PREFIX + "bench:__rand_int__"]
    benchmark = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                 universal_newlines=True)
    try:
        while True:
            try:
                output, _ = benchmark.communicate(timeout=1)
                break
            except subprocess.TimeoutExpired:
                if process.is_stopped:
                    return None
                if time.monotonic() > process.deadline + HANG_TIMEOUT:
                    process.log_problem("unexpected", "redis-benchmark hangs: it still waits for a reply")
                    return None
    finally:
        benchmark.kill()
        benchmark.wait()
    rows = list(csv.DictReader(io.StringIO(output[output.find('"test"'):])))
    if benchmark.returncode != 0 or len(rows) != 1:
        # Standard error, which has the reason, is mixed with the head of the table.
        lines = [line for line in output.splitlines() if line.strip() and not line.startswith('"')]
        process.log_problem("unexpected", "redis-benchmark exited with %d: %s" % (
            benchmark.returncode, lines[-1] if lines else output[:100]))
        return None
    return rows[0]


def main():
    """Runs redis-benchmark again and again until the time is up."""
    host, port = resp.parse_address(sys.argv[1])
    process = load_process.LoadProcess(float(sys.argv[2]))
    keys, pipeline = int(sys.argv[3]), int(sys.argv[4])
    started_at = time.monotonic()
    requests = failed = 0
    p50, p99 = [], []
    count = FIRST_REQUESTS
    while process.get_seconds_left() > 0.5 or not requests + failed:
        row = run_once(process, host, port, count, keys, pipeline)
        if row is None and process.is_stopped:
            break
        if row is None:
            failed += 1
            time.sleep(0.2)
            continue
        requests += count
        p50.append(float(row["p50_latency_ms"]) / 1000)
        p99.append(float(row["p99_latency_ms"]) / 1000)
        seconds = min(RUN_SECONDS, max(0.5, process.get_seconds_left()))
        count = int(min(MAX_REQUESTS, max(MIN_REQUESTS, float(row["rps"]) * seconds)))
    process.print_result(requests=requests, seconds=time.monotonic() - started_at, unexpected=failed,
                         p50=load_process.compute_percentile(sorted(p50), 0.5),
                         p99=load_process.compute_percentile(sorted(p99), 0.5))


main()
