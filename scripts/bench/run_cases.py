"""Runs the benchmark cases and writes DIR/results.json.

    run_cases.py DIR ROUNDS SECONDS CASE...

The servers of a case have their rounds in turn, and each round starts with another server.
Disturbances of the machine therefore affect all of them alike. A problem ends the run with exit
code 1 and a message. SIGTERM ends everything that was started.
"""

import itertools
import json
import os
import signal
import sys

import cases
import cpu
import fill
import goals
import load_generator
import resp
import servers
from fleet import Fleet, count_needed_bytes, read_available_bytes

# Seconds of load before the rounds. The mixed case needs longer until the popular keys are cached.
WARM_UP, WARM_UP_MIXED = 1, 3
# The same in requests and keys for redis-benchmark, which takes no duration.
FIRST_REQUESTS, FIRST_KEYS = 20_000, 600_000
# Servers that read from the Redis behind them.
CACHES = ("proxy", "base", "lua", "webdis")
MIB = 1024 * 1024


def warm_up(server, case):
    """Fills the caches, checks values, and returns the figures of a first load."""
    if case.kind == "resp":
        count = min(FIRST_REQUESTS * case.pipeline, FIRST_KEYS // case.batch)
        return load_generator.run_redis_benchmark(server, case, count)
    # The floor answers a single request with the replies of a whole batch.
    if server.name != "floor":
        load_generator.check_response(server, case)
    return load_generator.run_wrk(server, case, WARM_UP_MIXED if case.kind == "mixed" else WARM_UP, 0)


def run_load(server, case, seconds, rate, requests_before):
    """Runs the load of one round and returns its figures.

    `rate` is the server's number of requests per second so far, `requests_before` their sum.
    """
    if case.kind == "resp":
        return load_generator.run_redis_benchmark(server, case, int(rate * seconds))
    return load_generator.run_wrk(server, case, seconds, requests_before)


def run_round(server, case, seconds, rate, requests_before, backing):
    """Returns the figures of one server in one round, with the CPU time of the Redis behind it."""
    client = resp.Client("127.0.0.1", backing.port)
    processes = [server.process.pid, backing.process.pid]
    before, reads_before = [cpu.read_seconds(pid) for pid in processes], load_generator.count_redis_reads(client)
    figures = run_load(server, case, seconds, rate, requests_before)
    figures["cpu"], figures["backing_cpu"] = [cpu.read_seconds(pid) - start for pid, start in zip(processes, before)]
    figures["keys"] = figures["requests"] * case.batch
    if server.process.poll() is not None:
        raise servers.Failed("%s exited during the round" % server.name)
    if server.name in CACHES:
        reads = load_generator.count_redis_reads(client) - reads_before
        figures["redis_share"] = reads / figures["keys"]
        least, most = cases.MISSES if server.name == "webdis" else case.redis_share
        # Keys whose requests are under way when the load ends.
        pending = case.connections * case.pipeline * case.batch
        if not least * figures["keys"] <= reads <= most * figures["keys"] + pending:
            raise servers.Failed("%s read from Redis %d times for %d keys" % (server.name, reads, figures["keys"]))
    client.close()
    return figures


def measure(case, rounds, seconds, fleet):
    """Returns the figures of all rounds, by server."""
    started, rates, requests, result = fleet.provide(case), {}, {}, {}
    # wrk does not count requests that are pending when it ends.
    uncounted = case.connections * case.pipeline
    for server in started:
        figures = warm_up(server, case)
        rates[server], requests[server] = goals.compute_rate(figures), figures["requests"] + uncounted
        result[server.name] = []
    for number in range(rounds):
        first = number % len(started)
        for server in started[first:] + started[:first]:
            figures = run_round(server, case, seconds, rates[server], requests[server], fleet.backing)
            requests[server] += figures["requests"] + uncounted
            result[server.name].append(figures)
    return result


def explain_skip(group):
    """Returns the reason why the machine cannot run a group of cases, or None."""
    needed, available = max(map(count_needed_bytes, group)), read_available_bytes()
    if needed <= available:
        return None
    return "%d MiB of memory needed, %d MiB available" % (needed // MIB, available // MIB)


def run_group(group, rounds, seconds, directory, backing, results):
    """Runs cases that share their servers, and adds their figures to the results."""
    reason = explain_skip(group) if group[0].keys else None
    if reason:
        for case in group:
            print("skipped: %s: %s" % (cases.describe(case), reason), file=sys.stderr)
            results["skipped"][case.name] = reason
        return
    fleet = Fleet(directory, backing)
    try:
        for case in group:
            print(cases.describe(case), file=sys.stderr)
            try:
                results["cases"][case.name] = measure(case, rounds, seconds, fleet)
            except (servers.Failed, OSError, resp.RespError) as error:
                sys.exit("scripts/bench.sh: %s: %s" % (case.name, error))
        if cases.is_cached_fully(group[0]):
            results["memory"][str(group[0].keys)] = fleet.measure_memory()
    finally:
        fleet.stop()


def main():
    """Runs the chosen cases and writes the results."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory, rounds, seconds, names = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    started, results = [], {"rounds": rounds, "seconds": seconds, "cases": {}, "memory": {}, "skipped": {}}
    chosen = [case for case in cases.CASES if case.name in names]
    try:
        backing = servers.start_redis(directory, "backing", cpu.LOAD)
        started.append(backing)
        fill.write_backing_keys(backing)
        for _, group in itertools.groupby(chosen, cases.find_group):
            run_group(list(group), rounds, seconds, directory, backing, results)
    except (servers.Failed, OSError, resp.RespError) as error:
        sys.exit("scripts/bench.sh: %s" % error)
    finally:
        servers.stop(started)
    with open(os.path.join(directory, "results.json"), "w") as file:
        json.dump(results, file)


main()
