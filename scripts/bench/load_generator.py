"""Runs wrk or redis-benchmark against one server and returns requests, duration and percentiles.

Durations and percentiles are in seconds. Every problem raises Failed.
"""

import json
import os
import re
import socket
import subprocess

import cases
import cpu
from servers import HERE, Failed

# Seconds for one reply, beyond which a load that does not end counts as hung.
REPLY_TIMEOUT = 10
# Requests of redis-benchmark, below which its figures mean nothing.
MIN_REQUESTS = 2_000


def run(command, timeout):
    """Runs a command on the CPUs of the load and returns its output."""
    try:
        done = subprocess.run(cpu.pin(cpu.LOAD, command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, universal_newlines=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Failed("%s did not exit within %d s" % (command[0], timeout)) from None
    if done.returncode != 0:
        raise Failed("%s exited with %d: %s" % (command[0], done.returncode, done.stdout[-300:]))
    return done.stdout


def run_wrk(server, case, seconds, requests_before):
    """Runs wrk. New cold keys continue at `requests_before`, the number of earlier requests."""
    arguments = {"fixed": [cases.choose_key(case), case.pipeline], "random": [case.keys, case.pipeline],
                 "cold": [cases.COLD_KEYS, requests_before],
                 "mixed": [cases.HOT_KEYS, cases.COLD_KEYS, requests_before // 10]}[case.kind]
    output = run(["wrk", "-t1", "-c%d" % case.connections, "-d%ds" % seconds, "--timeout", "%ds" % REPLY_TIMEOUT,
                  "-s", os.path.join(HERE, "wrk.lua"), "http://127.0.0.1:%d/" % server.port, str(case.connections),
                  case.kind, server.path] + list(map(str, arguments)), seconds + 6 * REPLY_TIMEOUT)
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise Failed("wrk printed no result: %s" % output[-300:])
    figures = json.loads(lines[0][len("RESULT "):])
    for counter in ("socket_errors", "bad_statuses"):
        if figures.pop(counter):
            raise Failed("wrk reported %s: %s" % (counter.replace("_", " "), output[-300:]))
    # wrk.lua relies on how wrk corrects its latencies, and another version may do it differently.
    # wrk times one batch of pipelined requests as one.
    if abs(figures.pop("timed") * case.pipeline - figures["requests"]) > case.connections * case.pipeline:
        raise Failed("the number of wrk's latencies does not match its requests: %s" % output[-300:])
    return figures


def run_redis_benchmark(server, case, count):
    """Runs redis-benchmark with a number of requests."""
    count = max(MIN_REQUESTS, count)
    output = run(["redis-benchmark", "-h", "127.0.0.1", "-p", str(server.port), "-c", str(case.connections),
                  "-n", str(count), "-r", str(case.keys), "-P", str(case.pipeline),
                  "GET" if case.batch == 1 else "MGET"] + ["hot:__rand_int__"] * case.batch, 60 + count / 1000)
    rows = [(float(share) / 100, float(time) / 1000)
            for share, time in re.findall(r"^\s*([\d.]+)% <= ([\d.]+) milliseconds \(cumulative", output, re.MULTILINE)]
    rate = re.search(r"throughput summary: ([\d.]+) requests per second", output)
    if not rows or not rate:
        raise Failed("redis-benchmark printed no result: %s" % output[-300:])

    def find_percentile(share):
        return next(time for reached, time in rows if reached >= share or reached == rows[-1][0])

    return {"requests": count, "seconds": count / float(rate.group(1)), "p50": find_percentile(0.5),
            "p99": find_percentile(0.99), "p999": find_percentile(0.999)}


def fetch_response(server, key):
    """Returns head and body of a server's HTTP response for a key."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=REPLY_TIMEOUT) as client:
        request = "GET %s%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % (server.path, key, server.port)
        client.sendall(request.encode())
        with client.makefile("rb") as file:
            head = [file.readline()]
            while head[-1].strip():
                head.append(file.readline())
            length = re.search(rb"\ncontent-length: *(\d+)", b"".join(head), re.IGNORECASE)
            if head[0].split()[1:2] != [b"200"] or not length:
                raise Failed("%s answers %r" % (server.name, b"".join(head)))
            return b"".join(head), file.read(int(length.group(1)))


def check_response(server, case):
    """Fails unless a server returns the right value, twice. A cache holds the key afterwards."""
    key = cases.choose_key(case)
    value = cases.make_value(key, case.length)
    for from_cache in ("false", "true"):
        _, body = fetch_response(server, key)
        if server.name == "webdis":
            expected = '{"GET":"%s"}' % value
        else:
            expected = '{"value":"%s","fromCache":%s}' % (value, from_cache)
        # The first response may be a hit too.
        expected_hit = expected.replace(":false}", ":true}")
        if body.decode(errors="replace") not in (expected, expected_hit):
            raise Failed("%s answers %r for %s" % (server.name, body[:200], key))


def count_redis_reads(client):
    """Returns the number of values that Redis has served.

    The proxy reads with GETRANGE, the other caches with GET.
    """
    statistics = client.call("INFO", "commandstats").decode()
    return sum(int(calls) for calls in re.findall(r"cmdstat_(?:get|getrange):calls=(\d+)", statistics))
