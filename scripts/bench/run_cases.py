"""Runs the benchmark cases and writes DIR/results.json.

    run_cases.py DIR ROUNDS SECONDS CASE...

The servers of a case have their rounds in turn, and each round starts with another server.
Disturbances of the machine therefore affect all of them alike. A problem ends the run with exit
code 1 and a message. SIGTERM ends everything that was started.
"""

import json
import os
import signal
import sys

import cases
import cpu
import goals
import load_generator
import resp
import servers

# Seconds of load before the rounds. The mixed case needs longer until the popular keys are cached.
WARM_UP, WARM_UP_MIXED = 1, 3


def start_servers(case, directory, backing):
    """Yields the servers of a case, in its order. The floor sends the proxy's reply."""
    proxy = None
    for name in case.servers:
        if name == "proxy":
            server = proxy = servers.start_proxy(directory, case, backing)
        elif name == "floor":
            server = servers.start_floor(directory, fetch_hit(proxy, case) * case.pipeline)
        elif name == "nginx":
            server = servers.start_nginx_return(directory, case)
        elif name == "lua":
            server = servers.start_nginx_lua(directory, case, backing)
        elif name == "webdis":
            server = servers.start_webdis(directory, backing)
        else:
            server = servers.start_redis(directory)
        yield server


def fetch_hit(proxy, case):
    """Returns the bytes of the proxy's reply to a hit.

    Over RESP the replies for all keys have the same length.
    """
    if case.kind == "resp":
        value = cases.make_value(cases.choose_key(case), case.length)
        return ("$%d\r\n%s\r\n" % (len(value), value)).encode()
    load_generator.check_response(proxy, case)
    return b"".join(load_generator.fetch_response(proxy, cases.choose_key(case)))


def warm_up(server, case):
    """Fills the caches, checks values, and returns the figures of a first load."""
    if case.kind == "resp":
        if server.name != "floor":
            read_hot_keys(server)
        return load_generator.run_redis_benchmark(server, case, load_generator.FIRST_REQUESTS * case.pipeline)
    # The floor answers a single request with the replies of a whole batch.
    if server.name != "floor":
        load_generator.check_response(server, case)
    return load_generator.run_wrk(server, case, WARM_UP_MIXED if case.kind == "mixed" else WARM_UP, 0)


def read_hot_keys(server):
    """Reads every hot key and checks its value. Writes all keys first if the server is Redis."""
    client = resp.Client("127.0.0.1", server.port)
    if server.name == "redis":
        seed(client)
    keys = [cases.make_hot_key(number) for number in range(cases.HOT_KEYS)]
    for key, value in zip(keys, load_generator.run_commands(client, [("GET", key) for key in keys])):
        if value != cases.make_value(key, cases.LENGTH).encode():
            raise servers.Failed("%s answers %r for %s" % (server.name, value, key))
    client.close()


def run_round(server, case, seconds, rate, requests_before, redis):
    """Returns the figures of one server in one round.

    `rate` is its number of requests per second so far, `requests_before` their sum.
    """
    cpu_before, reads_before = cpu.read_seconds(server.process.pid), load_generator.count_redis_reads(redis)
    if case.kind == "resp":
        figures = load_generator.run_redis_benchmark(server, case, int(rate * seconds))
    else:
        figures = load_generator.run_wrk(server, case, seconds, requests_before)
    figures["cpu"] = cpu.read_seconds(server.process.pid) - cpu_before
    if server.process.poll() is not None:
        raise servers.Failed("%s exited during the round" % server.name)
    if server.name in ("proxy", "lua", "webdis"):
        reads, requests = load_generator.count_redis_reads(redis) - reads_before, figures["requests"]
        figures["redis_share"] = reads / requests
        least, most = cases.MISSES if server.name == "webdis" else case.redis_share
        if not least * requests <= reads <= most * requests + case.connections * case.pipeline:
            raise servers.Failed("%s read from Redis %d times for %d requests" % (server.name, reads, requests))
    return figures


def measure(case, rounds, seconds, directory, backing, redis):
    """Returns the figures of all rounds, by server."""
    started, rates, requests, result = [], {}, {}, {}
    # wrk does not count requests that are pending when it ends.
    uncounted = case.connections * case.pipeline
    try:
        for server in start_servers(case, directory, backing):
            started.append(server)
        for server in started:
            figures = warm_up(server, case)
            rates[server], requests[server] = goals.compute_rate(figures), figures["requests"] + uncounted
            result[server.name] = []
        for number in range(rounds):
            first = number % len(started)
            for server in started[first:] + started[:first]:
                figures = run_round(server, case, seconds, rates[server], requests[server], redis)
                requests[server] += figures["requests"] + uncounted
                result[server.name].append(figures)
        return result
    finally:
        servers.stop(started)


def seed(client):
    """Writes all keys to a Redis."""
    commands = [("SET", key, value) for key, value in cases.list_entries()]
    if set(load_generator.run_commands(client, commands)) != {b"OK"}:
        raise servers.Failed("Redis refused a SET")


def main():
    """Runs the chosen cases and writes the results."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory, rounds, seconds, names = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    started, results = [], {"rounds": rounds, "seconds": seconds, "cases": {}}
    chosen = [case for case in cases.CASES if case.name in names]
    try:
        backing = servers.start_redis(directory, "backing", cpu.LOAD)
        started.append(backing)
        redis = resp.Client("127.0.0.1", backing.port)
        seed(redis)
        for number, case in enumerate(chosen):
            print("%d of %d: %s" % (number + 1, len(chosen), case.title), file=sys.stderr)
            try:
                results["cases"][case.name] = measure(case, rounds, seconds, directory, backing, redis)
            except (servers.Failed, OSError, resp.RespError) as error:
                sys.exit("scripts/bench.sh: %s: %s" % (case.name, error))
    except (servers.Failed, OSError, resp.RespError) as error:
        sys.exit("scripts/bench.sh: %s" % error)
    finally:
        servers.stop(started)
    with open(os.path.join(directory, "results.json"), "w") as file:
        json.dump(results, file)


main()
