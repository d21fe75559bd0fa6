"""Measures three proxies behind HAProxy, nginx and twemproxy. Writes DIR/report.md and prints it.

    run_scale.py BINARY DIR SCALE

SCALE shortens all loads: 1 for figures, less to see that everything works. Exits with 1 if a rule
is broken, after a line for each reason on standard error.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time

import load
import resp
import services
from markdown import format_table, format_time

HERE = os.path.dirname(os.path.abspath(__file__))
PROXIES = 3
# Entries of one cache, and three times as many keys.
CACHE = 2000
KEYS = PROXIES * CACHE
EXPONENT = 0.9
CONNECTIONS = 32
# Processor time that the balancer and the proxies must each use for their ratio, in seconds, and
# bounds for the number of loads. A load of 40,000 requests takes 0.2 to 0.5 s of it.
MIN_PROCESSOR_SECONDS, MIN_PROCESSOR_LOADS, MAX_PROCESSOR_LOADS = 1.5, 5, 20
# Balancer, hash-balance-factor, and share of requests for one key. Ratios are those to the case of
# the same balancer without either.
HOT_CASES = [("HAProxy", 0, 0.0), ("HAProxy", 0, 0.5), ("HAProxy", 200, 0.5), ("HAProxy", 150, 0.5),
             ("HAProxy", 125, 0.5), ("HAProxy", 200, 0.0), ("twemproxy", 0, 0.0), ("twemproxy", 0, 0.5)]
ROUNDS = 5
# Share of a processor for each proxy in the measurement of a hot key.
PROCESSOR_SHARE = 0.01
HASH = "balance hash path,field(3,/,0),url_dec"
FACTOR = "#hash-balance-factor 200"
# Share of keys that one of three proxies may hold: a third, plus what rings are uneven.
MIN_SHARE, MAX_SHARE = 0.23, 0.44


class Run:
    """What all measurements share: the binary, the directory, the length, and broken rules."""

    def __init__(self, binary, directory, scale):
        self.binary, self.directory, self.scale = binary, directory, scale
        self.redis, self.failures, self.lines = None, [], []

    def check(self, is_true, text):
        """Records a broken rule."""
        if not is_true:
            self.failures.append(text)

    def print(self, *lines):
        """Adds lines to the report, and an empty one."""
        self.lines += [*lines, ""]

    def say(self, text):
        """Prints progress."""
        print("== " + text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def proxies(run, entries):
    """Starts three empty proxies and stops them at the end."""
    started = []
    try:
        for number in range(1, PROXIES + 1):
            started.append(start_proxy(run, number, services.choose_port(), entries))
        yield started
    finally:
        for proxy in started:
            proxy.stop()


def start_proxy(run, number, port, entries):
    """Starts one proxy on a port."""
    return services.Proxy(run.binary, number, run.redis.port, port, run.directory, {"CACHE_SIZE": str(entries)})


@contextlib.contextmanager
def running(service):
    """Stops a service at the end."""
    try:
        yield service
    finally:
        service.stop()


def start_load(run, protocol, port, **plan):
    """Starts a load in the background."""
    plan = dict({"seed": 1, "connections": CONNECTIONS, "keys": KEYS, "exponent": EXPONENT}, **plan)
    command = [sys.executable, os.path.join(HERE, "load.py"), protocol, str(port), json.dumps(plan)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=services.end_with_parent)


def finish_load(process):
    """Waits for a load and returns its results."""
    output, _ = process.communicate()
    if process.returncode != 0:
        raise services.Failed("the load exited with code %d" % process.returncode)
    return json.loads(output)


def run_load(run, protocol, port, **plan):
    """Runs a load to its end."""
    return finish_load(start_load(run, protocol, port, **plan))


def start_balancer(name, ports, directory, changes=()):
    """Starts a balancer. Returns it with its protocol."""
    if name == "HAProxy":
        return services.start_haproxy(ports, directory, changes), "http"
    if name == "nginx":
        return services.start_nginx(ports, directory), "http"
    return services.start_nutcracker(ports, directory, changes), "resp"


def sum_counters(started, name):
    """Returns the sum of a counter over all proxies."""
    return sum(proxy.read_counters()[name] for proxy in started)


def get_ports(started):
    """Returns the ports of proxies."""
    return [proxy.port for proxy in started]


def check_errors(run, name, results):
    """Records errors of a load as a broken rule."""
    run.check(not results["errors"], "%s: %d errors: %s" % (name, len(results["errors"]), results["texts"]))


# ---- Hit ratio ----


def measure_hit_ratio(run, balancer, changes):
    """Returns hit ratio, entries in all caches and distinct keys among them, after a warm-up.

    The fourth figure is that of `measure_processor`.
    """
    with proxies(run, CACHE) as started:
        service, protocol = start_balancer(balancer, get_ports(started), run.directory, changes)
        with running(service):
            fill(run, protocol, service.port)
            check_errors(run, balancer, run_load(run, protocol, service.port, requests=int(60000 * run.scale)))
            hits = sum_counters(started, "segment_hits_total")
            results = run_load(run, protocol, service.port, requests=int(40000 * run.scale), seed=2)
            check_errors(run, balancer, results)
            hits = sum_counters(started, "segment_hits_total") - hits
            keys = ["key-%d" % number for number in range(KEYS)]
            cached = [proxy.list_cached(keys) for proxy in started]
            processor = measure_processor(run, balancer, protocol, service, started)
    return hits / results["requests"], sum(map(len, cached)), len(set().union(*cached)), processor


def measure_processor(run, balancer, protocol, service, started):
    """Returns the processor time of the balancer, divided by that of all proxies, as text.

    Repeats a load until both have used enough, and adds the range of single loads. Returns "-" if
    they have not.
    """
    used, ratios = [0.0, 0.0], []
    for number in range(MAX_PROCESSOR_LOADS):
        before = [each.read_processor_seconds() for each in [service, *started]]
        plan = {"requests": int(40000 * run.scale), "seed": 3 + number}
        check_errors(run, balancer, run_load(run, protocol, service.port, **plan))
        after = [each.read_processor_seconds() for each in [service, *started]]
        spent = [new - old for new, old in zip(after, before)]
        spent = [spent[0], sum(spent[1:])]
        used = [old + new for old, new in zip(used, spent)]
        if spent[1] > 0:
            ratios.append(spent[0] / spent[1])
        if min(used) >= MIN_PROCESSOR_SECONDS * run.scale and len(ratios) >= MIN_PROCESSOR_LOADS:
            return "%.1f (%.1f to %.1f)" % (used[0] / used[1], min(ratios), max(ratios))
    return "-"


def report_hit_ratio(run):
    """Compares hashing with an even distribution of requests."""
    rows = []
    for balancer, name, changes in (("HAProxy", "`balance roundrobin`", [(HASH, "balance roundrobin")]),
                                    ("HAProxy", "hash of the key", []),
                                    ("HAProxy", "... with `hash-balance-factor 200`",
                                     [(FACTOR, "hash-balance-factor 200")]),
                                    ("twemproxy", "`distribution: random`",
                                     [("distribution: ketama", "distribution: random")]),
                                    ("twemproxy", "hash of the key (ketama)", [])):
        run.say("hit ratio: %s, %s" % (balancer, name))
        ratio, entries, distinct, processor = measure_hit_ratio(run, balancer, changes)
        rows.append((balancer, name, ratio, entries, distinct, processor))
        if not changes:
            first = next(row[2] for row in rows if row[0] == balancer)
            run.check(ratio > first, "%s: hashing does not raise the hit ratio" % balancer)
            run.check(entries == distinct, "%s: %d keys are cached twice" % (balancer, entries - distinct))
    run.print("## Hit ratio", "",
              "%s keys by Zipf (s = %g), three proxies with CACHE_SIZE=%d." % (f"{KEYS:,}", EXPONENT, CACHE), "",
              *format_table(["balancer", "distribution", "hit ratio", "entries in all caches", "distinct keys",
                             "processor time of the balancer to that of the proxies"],
                            [(balancer, name, "%.1f %%" % (100 * ratio), f"{entries:,}", f"{distinct:,}",
                              processor)
                             for balancer, name, ratio, entries, distinct, processor in rows], words=2))


# ---- Death of a proxy ----


def fill(run, protocol, port):
    """Reads every key, so that all are cached."""
    check_errors(run, protocol, run_load(run, protocol, port, sweep=KEYS))


def measure_death(run, balancer, seconds, end):
    """Ends the first proxy under load, after three seconds of load. `end` receives the proxy.

    Returns the load's results, the keys that each proxy held, and the time of the end.
    """
    keys = ["key-%d" % number for number in range(KEYS)]
    with proxies(run, 2 * KEYS) as started:
        service, protocol = start_balancer(balancer, get_ports(started), run.directory)
        with running(service):
            fill(run, protocol, service.port)
            held = [proxy.list_cached(keys) for proxy in started]
            misses = [proxy.read_counters()["segment_misses_total"] for proxy in started]
            process = start_load(run, protocol, service.port, seconds=seconds)
            time.sleep(3)
            ended_at = time.monotonic()
            end(started[0])
            results = finish_load(process)
            again = [proxy.read_counters()["segment_misses_total"] for proxy in started[1:]]
            results["misses"] = sum(again) - sum(misses[1:])
    return results, held, ended_at


def report_death(run):
    """Ends a proxy under load, by SIGKILL and by SIGTERM."""
    rows = []
    seconds = max(8, 26 * run.scale)
    cases = [("HAProxy", "SIGKILL", 8), ("HAProxy", "SIGTERM", 8), ("nginx", "SIGKILL", 8),
             ("twemproxy", "SIGKILL", seconds)]
    for balancer, how, seconds in cases:
        run.say("a proxy ends: %s, %s" % (balancer, how))
        end = services.Service.kill if how == "SIGKILL" else services.Service.stop
        results, held, ended_at = measure_death(run, balancer, seconds, end)
        share = len(held[0]) / KEYS
        run.check(sum(map(len, held)) == KEYS, "%s: %d keys are cached twice" % (balancer, sum(map(len, held)) - KEYS))
        run.check(MIN_SHARE < share < MAX_SHARE, "%s: one proxy holds %.0f %% of the keys" % (balancer, 100 * share))
        # A key may be read by both of the others: for a retry first, then by the smaller ring.
        run.check(results["misses"] <= 1.5 * len(held[0]), "%s: keys of the other proxies were lost" % balancer)
        run.check(set(results["missed"]) <= held[0], "%s: keys of the other proxies were lost" % balancer)
        if balancer != "twemproxy":
            check_errors(run, "%s, %s" % (balancer, how), results)
        bursts = {}
        for at in results["errors"]:
            bursts[int(at - ended_at)] = bursts.get(int(at - ended_at), 0) + 1
        text = ", ".join("%d after %d s" % (count, second) for second, count in sorted(bursts.items()))
        rows.append((balancer, how, f"{results['requests']:,}", text or "0", "%.1f %%" % (100 * share),
                     f"{int(results['misses']):,}", format_time(results["p99"]), format_time(results["longest"])))
        for text, count in results["texts"].items():
            run.say("%d times: %s" % (count, text))
    run.print("## One of three proxies ends under load", "",
              "All %s keys are cached before. Lost keys: the share that was in this proxy only. Read again:" % f"{KEYS:,}",
              "misses of the other two proxies during the load.", "",
              *format_table(["balancer", "signal", "requests", "errors", "lost keys", "read again", "p99", "longest"],
                            rows, words=2))


# ---- Hot key ----


def measure_hot_key(run, balancer, factor, hot):
    """Returns the results of a load, with requests in a second and the share of each proxy.

    Adds how much of its processor limit each proxy used: below 1, it was not the limit.
    """
    limit = services.ProcessorLimit(PROCESSOR_SHARE)
    changes = [(FACTOR, "hash-balance-factor %d" % factor)] if factor else []
    try:
        with proxies(run, 2 * KEYS) as started:
            service, protocol = start_balancer(balancer, get_ports(started), run.directory, changes)
            with running(service):
                fill(run, protocol, service.port)
                is_limited = all([limit.add(proxy.process.pid) for proxy in started])
                plan = {"hot": hot, "connections": 2 * CONNECTIONS}
                check_errors(run, balancer, run_load(run, protocol, service.port, seconds=1, **plan))
                before = [proxy.read_counters() for proxy in started]
                used = [proxy.read_processor_seconds() for proxy in started]
                results = run_load(run, protocol, service.port, seconds=max(1, 4 * run.scale), **plan)
                check_errors(run, balancer, results)
                used = [proxy.read_processor_seconds() - old for proxy, old in zip(started, used)]
                after = [proxy.read_counters() for proxy in started]
                counts = [new["segment_hits_total"] - old["segment_hits_total"] for new, old in zip(after, before)]
                results["shares"] = sorted((count / sum(counts) for count in counts), reverse=True)
                results["entries"] = sum(counters["segment_cache_entries"] for counters in after)
                results["is_limited"] = is_limited
                # In the order of the shares.
                used = [used[place] for place in sorted(range(PROXIES), key=lambda place: -counts[place])]
                results["used"] = [seconds / (results["seconds"] * PROCESSOR_SHARE) for seconds in used]
                results["rate"] = results["requests"] / results["seconds"]
    finally:
        limit.remove()
    return results


def report_hot_key(run):
    """Sends half of all requests to one key, with and without bounded load."""
    rounds, is_limited = [], True
    for number in range(ROUNDS):
        results = {}
        for case in HOT_CASES:
            balancer, factor, hot = case
            run.say("hot key, round %d: %s, factor %d, %.0f %% of requests" % (number + 1, balancer, factor, 100 * hot))
            results[case] = measure_hot_key(run, balancer, factor, hot)
            is_limited = is_limited and results[case]["is_limited"]
        rounds.append(results)
    rows = []
    for balancer, factor, hot in HOT_CASES:
        # Ratios within a round, because the speed of a shared machine changes.
        median = lambda get: statistics.median(get(results[balancer, factor, hot], results[balancer, 0, 0.0])
                                               for results in rounds)
        shares = [median(lambda result, _, place=place: result["shares"][place]) for place in range(PROXIES)]
        used = [median(lambda result, _, place=place: result["used"][place]) for place in range(PROXIES)]
        rows.append((balancer, str(factor) if factor else "off", "%.0f %%" % (100 * hot),
                     ", ".join("%.0f" % (100 * share) for share in shares) + " %",
                     ", ".join("%.0f" % (100 * share) for share in used) + " %" if is_limited else "-",
                     "%.2f" % median(lambda result, base: result["rate"] / base["rate"]),
                     "%.2f" % median(lambda result, base: result["p99"] / base["p99"]),
                     "%.2f" % median(lambda result, _: result["entries"] / KEYS)))
    limit = ("Each proxy has %g %% of a processor, so that it is the slowest part." % (100 * PROCESSOR_SHARE)
             if is_limited else "The proxies are not limited (no control groups), so the balancer is the slowest part.")
    run.print("## A hot key", "", "%d connections; all values are in memory. Ratios are those to the first row of the"
              % (2 * CONNECTIONS), "same balancer, medians of %d rounds. %s" % (ROUNDS, limit), "",
              *format_table(["balancer", "`hash-balance-factor`", "requests for one key", "load of the three proxies",
                             "processor limit used", "requests/s", "p99", "copies of a key"], rows))


def seed(run):
    """Writes all keys to Redis."""
    client = resp.Client("127.0.0.1", run.redis.port)
    for key in [load.HOT] + ["key-%d" % number for number in range(KEYS)]:
        client.call("SET", key, load.value_of(key))
    client.close()


def main():
    """Runs all measurements."""
    binary, directory, scale = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2]), float(sys.argv[3])
    run = Run(binary, directory, scale)
    try:
        with running(services.start_redis(directory)) as run.redis:
            seed(run)
            report_hit_ratio(run)
            report_death(run)
            report_hot_key(run)
    except services.Failed as error:
        run.check(False, str(error))
    report = "\n".join(["# Three proxies behind a balancer", "", *run.lines]).rstrip() + "\n"
    with open(os.path.join(directory, "report.md"), "w") as file:
        file.write(report)
    print(report, end="")
    for failure in run.failures:
        print("scripts/scale.sh: %s" % failure, file=sys.stderr)
    sys.exit(bool(run.failures))


main()
