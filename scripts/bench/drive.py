"""Runs the cases, and leaves what was seen in DIR/results.json. Arguments: DIR, rounds, seconds, then the names of cases.

Of each case the servers have their rounds in turn, and each round another one begins, so that what happens to the machine
meanwhile happens to all of them. That something went wrong ends it with 1 and a sentence. SIGTERM ends everything that was started.
"""

import json
import os
import signal
import sys

import asking
import cases
import goals
import peers
import processors
import resp

# Seconds of load before the rounds; of the mixed one until what is popular is there.
WARMING, WARMING_MIXED = 1, 3


def begin(case, directory, backing):
    """Yields the servers of a case, in its order: the floor answers as the proxy does."""
    proxy = None
    for name in case.servers:
        if name == "proxy":
            server = proxy = peers.proxy(directory, case, backing)
        elif name == "floor":
            server = peers.floor(directory, proxys_answer(proxy, case) * case.pipeline)
        elif name == "nginx":
            server = peers.nginx_return(directory, case)
        elif name == "lua":
            server = peers.nginx_lua(directory, case, backing)
        elif name == "webdis":
            server = peers.webdis(directory, backing)
        else:
            server = peers.redis(directory)
        yield server


def proxys_answer(proxy, case):
    """The bytes of a hit. Over RESP they are as many for each key."""
    if case.kind == "resp":
        value = cases.value(cases.key(case), case.length)
        return ("$%d\r\n%s\r\n" % (len(value), value)).encode()
    asking.check(proxy, case)
    return b"".join(asking.answer(proxy, cases.key(case)))


def warm(server, case):
    """Has everything in its place before it is measured. Returns what the load has seen meanwhile."""
    if case.kind == "resp":
        if server.name != "floor":
            fill(server)
        return asking.by_redis_benchmark(server, case, asking.FIRST * case.pipeline)
    # The floor's answer to one request is that to all of a batch.
    if server.name != "floor":
        asking.check(server, case)
    return asking.by_wrk(server, case, WARMING_MIXED if case.kind == "mixed" else WARMING, 0)


def fill(server):
    """Has every hot key where it is to be, and checks it."""
    client = resp.Client("127.0.0.1", server.port)
    if server.name == "redis":
        seed(client)
    names = [cases.hot(number) for number in range(cases.HOT_KEYS)]
    for name, value in zip(names, asking.all_of(client, [("GET", name) for name in names])):
        if value != cases.value(name, cases.LENGTH).encode():
            raise peers.Failed("%s answers %r about %s" % (server.name, value, name))
    client.close()


def once(server, case, seconds, rate, asked, redis):
    """One server's part of a round. `rate` is how many requests it is good for in a second, `asked` how many it has had."""
    before, read = processors.seconds(server.process.pid), asking.reads(redis)
    if case.kind == "resp":
        figures = asking.by_redis_benchmark(server, case, int(rate * seconds))
    else:
        figures = asking.by_wrk(server, case, seconds, asked)
    figures["cpu"] = processors.seconds(server.process.pid) - before
    if server.process.poll() is not None:
        raise peers.Failed("%s has ended" % server.name)
    if server.name in ("proxy", "lua", "webdis"):
        read = asking.reads(redis) - read
        figures["asks"] = read / figures["requests"]
        least, most = cases.MISSES if server.name == "webdis" else case.asks
        if not least * figures["requests"] <= read <= most * figures["requests"] + case.connections * case.pipeline:
            raise peers.Failed("%s had %d requests and asked Redis %d times" % (server.name, figures["requests"], read))
    return figures


def measure(case, rounds, seconds, directory, backing, redis):
    """Of each server its rounds."""
    servers, rates, asked, result = [], {}, {}, {}
    # wrk does not count what it has not had answered in the end.
    uncounted = case.connections * case.pipeline
    try:
        for server in begin(case, directory, backing):
            servers.append(server)
        for server in servers:
            figures = warm(server, case)
            rates[server], asked[server], result[server.name] = goals.rate(figures), figures["requests"] + uncounted, []
        for number in range(rounds):
            first = number % len(servers)
            for server in servers[first:] + servers[:first]:
                figures = once(server, case, seconds, rates[server], asked[server], redis)
                asked[server] += figures["requests"] + uncounted
                result[server.name].append(figures)
        return result
    finally:
        peers.stop(servers)


def seed(client):
    if set(asking.all_of(client, [("SET", name, value) for name, value in cases.everything()])) != {b"OK"}:
        raise peers.Failed("Redis does not take what is written to it")


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory, rounds, seconds, names = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    started, results = [], {"rounds": rounds, "seconds": seconds, "cases": {}}
    chosen = [case for case in cases.CASES if case.name in names]
    try:
        backing = peers.redis(directory, "backing", processors.LOAD)
        started.append(backing)
        redis = resp.Client("127.0.0.1", backing.port)
        seed(redis)
        for number, case in enumerate(chosen):
            print("%d of %d: %s" % (number + 1, len(chosen), case.title), file=sys.stderr)
            try:
                results["cases"][case.name] = measure(case, rounds, seconds, directory, backing, redis)
            except (peers.Failed, OSError, resp.RespError) as error:
                sys.exit("scripts/bench.sh: %s: %s" % (case.name, error))
    except (peers.Failed, OSError, resp.RespError) as error:
        sys.exit("scripts/bench.sh: %s" % error)
    finally:
        peers.stop(started)
    with open(os.path.join(directory, "results.json"), "w") as file:
        json.dump(results, file)


main()
