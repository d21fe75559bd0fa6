"""Puts a load on one server for a while, and says how it went: requests, the seconds they took, and percentiles of how long each
took, in seconds. Anything that goes wrong raises Failed."""

import json
import os
import re
import socket
import subprocess

import cases
import processors
from peers import HERE, Failed

# Seconds for an answer; beyond it a load that does not end is hung.
LATE = 10
# redis-benchmark only knows numbers of requests: so many at first, and never less.
FIRST, FEWEST = 20_000, 2_000
# Commands in flight when everything is read or written once.
AT_ONCE = 200


def run(command, seconds):
    try:
        done = subprocess.run(processors.pinned(processors.LOAD, command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, universal_newlines=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise Failed("%s does not end" % command[0]) from None
    if done.returncode != 0:
        raise Failed("%s ended with %d: %s" % (command[0], done.returncode, done.stdout[-300:]))
    return done.stdout


def by_wrk(server, case, seconds, asked):
    """`asked` is how many requests this server has had: keys that are to be new go on from there."""
    ready = {"fixed": [cases.key(case), case.pipeline], "cold": [cases.COLD_KEYS, asked],
             "mixed": [cases.HOT_KEYS, cases.COLD_KEYS, asked // 10]}[case.kind]
    output = run(["wrk", "-t1", "-c%d" % case.connections, "-d%ds" % seconds, "--timeout", "%ds" % LATE,
                  "-s", os.path.join(HERE, "wrk.lua"), "http://127.0.0.1:%d/" % server.port, str(case.connections), case.kind,
                  server.path] + list(map(str, ready)), seconds + 6 * LATE)
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise Failed("wrk has no result: %s" % output[-300:])
    figures = json.loads(lines[0][len("RESULT "):])
    for what in ("socket_errors", "bad_statuses"):
        if figures.pop(what):
            raise Failed("wrk has seen %s: %s" % (what.replace("_", " "), output[-300:]))
    # It takes the time of each batch; another wrk might keep its books otherwise than wrk.lua thinks.
    if abs(figures.pop("timed") * case.pipeline - figures["requests"]) > case.connections * case.pipeline:
        raise Failed("wrk's times are not those of its requests: %s" % output[-300:])
    return figures


def by_redis_benchmark(server, case, count):
    count = max(FEWEST, count)
    output = run(["redis-benchmark", "-h", "127.0.0.1", "-p", str(server.port), "-c", str(case.connections), "-n", str(count),
                  "-r", str(cases.HOT_KEYS), "-P", str(case.pipeline), "GET", "hot:__rand_int__"], 60 + count / 1000)
    rows = [(float(share) / 100, float(time) / 1000)
            for share, time in re.findall(r"^\s*([\d.]+)% <= ([\d.]+) milliseconds \(cumulative", output, re.MULTILINE)]
    rate = re.search(r"throughput summary: ([\d.]+) requests per second", output)
    if not rows or not rate:
        raise Failed("redis-benchmark has no result: %s" % output[-300:])

    def percentile(share):
        return next(time for reached, time in rows if reached >= share or reached == rows[-1][0])

    return {"requests": count, "seconds": count / float(rate.group(1)), "p50": percentile(0.5), "p99": percentile(0.99),
            "p999": percentile(0.999)}


def answer(server, name):
    """Head and body of what a server answers about a key."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=LATE) as client:
        client.sendall(("GET %s%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % (server.path, name, server.port)).encode())
        with client.makefile("rb") as file:
            head = [file.readline()]
            while head[-1].strip():
                head.append(file.readline())
            length = re.search(rb"\ncontent-length: *(\d+)", b"".join(head), re.IGNORECASE)
            if head[0].split()[1:2] != [b"200"] or not length:
                raise Failed("%s answers %r" % (server.name, b"".join(head)))
            return b"".join(head), file.read(int(length.group(1)))


def check(server, case):
    """That it answers what it must. Afterwards it is in its cache, if it has one."""
    name = cases.key(case)
    value = cases.value(name, case.length)
    for from_cache in ("false", "true"):
        _, body = answer(server, name)
        wanted = '{"GET":"%s"}' % value if server.name == "webdis" else '{"value":"%s","fromCache":%s}' % (value, from_cache)
        always = wanted.replace(":false}", ":true}")
        if body.decode(errors="replace") not in (wanted, always):
            raise Failed("%s answers %r about %s" % (server.name, body[:200], name))


def all_of(client, commands):
    """Has every one of the commands answered; yields the replies."""
    for start in range(0, len(commands), AT_ONCE):
        batch = commands[start:start + AT_ONCE]
        client.send(*batch)
        for _ in batch:
            yield client.reply()


def reads(client):
    """How many values Redis has been asked for so far. The proxy asks by GETRANGE, the others by GET."""
    return sum(int(calls) for calls in re.findall(r"cmdstat_(?:get|getrange):calls=(\d+)", client.call("INFO", "commandstats").decode()))
