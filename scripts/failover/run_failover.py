"""Runs the failover test and writes DIR/report.md.

    run_failover.py cluster|sentinel SECONDS EVERY BOUND_MS BINARY DIR

BINARY is that of the proxy, or "-" for none. Exits with 1 if a check failed, with 2 if the servers
or the proxy did not start. SIGTERM ends all processes that it started.
"""

import itertools
import os
import signal
import subprocess
import sys
import time

import report
import servers
import traffic
import versions

# Keys of each shard, and of the slot that moves.
KEYS = 10
# Seconds of traffic before the first event.
WARM_UP = 5
# Seconds between a promotion and the restart of the killed server.
RESTART_DELAY = 3
# Seconds after each key of a moving slot.
MOVE_PAUSE = 0.1
# Shorter than the timeout of the nodes: what a stopped primary replies later is not read.
REDIS_TIMEOUT_MS = 1000
EVENTS = {"cluster": ["failover", "move", "kill"], "sentinel": ["failover", "kill"]}


class Proxy:
    """Process of the proxy."""

    def __init__(self, binary, cluster, directory):
        self.log, self.port = os.path.join(directory, "proxy.log"), None
        environment = {
            "WORKERS": os.environ.get("WORKERS", "1"), "PROXY_HOST": "127.0.0.1", "PROXY_PORT": "0",
            "REDIS_TRACKING": "on", "CACHE_TTL": "600", "CACHE_SIZE": "10000", "REDIS_CONNECTIONS": "4",
            "REDIS_TIMEOUT": str(REDIS_TIMEOUT_MS), **cluster.make_proxy_environment()}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen([binary], env=environment, stdin=subprocess.DEVNULL, stderr=log)
        servers.wait_for("the proxy starts", lambda: self.find_port() or self.process.poll() is not None)
        if self.process.poll() is not None:
            raise servers.NotReached("the proxy starts; see %s" % self.log)
        self.wait_until_tracking()

    def read_log(self):
        """Returns the log so far."""
        with open(self.log, errors="replace") as log:
            return log.read()

    def find_port(self):
        """Finds the port in the log."""
        _, _, rest = self.read_log().partition("listening on ")
        self.port = int(rest.split(",")[0].rpartition(":")[2]) if "," in rest else None
        return self.port

    def wait_until_tracking(self):
        """Waits until invalidations of all primaries are received."""
        servers.wait_for("tracking is active", lambda: "(tracking active)" in self.read_log())

    def stop(self):
        """Ends the process. Returns the reason if it did not run until now, or failed to stop."""
        code = self.process.poll()
        if code is not None:
            return "the proxy exited during the test, with code %d" % code
        self.process.terminate()
        try:
            code = self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()
            return "the proxy did not exit on SIGTERM"
        return "the proxy exited with code %d on SIGTERM" % code if code else None

    def kill(self):
        """Ends the process at once."""
        self.process.kill()
        self.process.wait()


class Run:
    """One run: servers, traffic and events."""

    def __init__(self, mode, seconds, bound, binary, directory):
        self.mode, self.seconds, self.bound = mode, seconds, bound
        self.binary, self.logs = binary, os.path.join(directory, "logs")
        self.cluster = (servers.Cluster if mode == "cluster" else servers.Sentinels)(self.logs)
        self.proxy, self.events, self.problems = None, [], []

    def start(self):
        """Starts servers, proxy and traffic. All keys have a version by then."""
        self.cluster.start()
        self.keys = {shard.number: [] for shard in self.cluster.shards}
        self.moving = self.choose_moving_keys() if self.mode == "cluster" else []
        self.choose_keys()
        every = [key for keys in self.keys.values() for key in keys] + self.moving
        self.versions = versions.Versions(every, self.bound)
        self.writers = {number: traffic.Writer("writer-%d" % number, self.cluster.shards[number], keys, self.versions)
                        for number, keys in self.keys.items()}
        if self.moving:
            self.writers["moving"] = traffic.Writer("writer-moving", self.cluster.shards[0], self.moving, self.versions)
        for writer in self.writers.values():
            writer.start()
        servers.wait_for("all keys are written", self.is_written)
        if self.binary != "-":
            self.proxy = Proxy(self.binary, self.cluster, self.logs)
        self.start_readers(every)

    def choose_moving_keys(self):
        """Returns keys in one slot."""
        self.moving_slot = servers.slot_of("moving-0")
        names = ("moving-%d" % number for number in itertools.count())
        return list(itertools.islice((name for name in names if servers.slot_of(name) == self.moving_slot), KEYS))

    def choose_keys(self):
        """Chooses keys of each shard, none of them in the moving slot."""
        for number in itertools.count():
            name = "failover-%d" % number
            slot = servers.slot_of(name)
            if self.moving and slot == self.moving_slot:
                continue
            # The slots of a new cluster are in equal parts.
            shard = slot * len(self.keys) // servers.SLOTS
            if len(self.keys[shard]) < KEYS:
                self.keys[shard].append(name)
            if all(len(keys) == KEYS for keys in self.keys.values()):
                return

    def is_written(self):
        """Returns True if each writer has written each of its keys."""
        return all(writer.written >= len(writer.keys) for writer in self.writers.values())

    def start_readers(self, keys):
        """Starts readers of all keys at the proxy, and probes of each shard by both clients."""
        self.readers, self.probes, self.peers = [], {}, {}
        self.watches = [traffic.Watch(server) for server in self.cluster.servers]
        for number in self.keys:
            self.peers[number] = traffic.Probe("redis-py-%d" % number, lambda: traffic.PeerReader(self.cluster),
                                               self.keys[number], None)
            if self.proxy:
                self.probes[number] = traffic.Probe("probe-%d" % number, lambda: traffic.RespReader(self.proxy.port),
                                                    self.keys[number], self.versions)
        if self.proxy:
            for number in range(4):
                kind = traffic.HttpReader if number % 2 == 0 else traffic.RespReader
                self.readers.append(traffic.Reader("reader-%d" % number, lambda kind=kind: kind(self.proxy.port), keys,
                                                   self.versions))
        self.readers += self.probes.values()
        for worker in self.readers + list(self.peers.values()) + self.watches:
            worker.start()

    def run_events(self, every):
        """Runs events until the time is up, and waits after each until all servers are in order."""
        self.started_at = time.monotonic()
        deadline, due = self.started_at + self.seconds, self.started_at + WARM_UP
        kinds, shards = itertools.cycle(EVENTS[self.mode]), itertools.cycle(self.cluster.shards)
        # The last event must end within the run.
        while due + every <= deadline:
            time.sleep(max(0, due - time.monotonic()))
            kind = next(kinds)
            event = {"kind": kind, "shards": [], "moving": False, "lost": 0, "started_at": time.monotonic(),
                     "at": time.monotonic() - self.started_at}
            {"failover": self.fail_over, "move": self.move, "kill": self.kill}[kind](event, next(shards))
            self.cluster.wait_until_stable()
            event["stable_at"] = time.monotonic()
            self.events.append(event)
            print("%4d s: %s of shard %s, promoted or moved after %.2f s, in order after %.1f s" % (
                event["at"], kind, "/".join(map(str, event["shards"])), event["done_at"] - event["started_at"],
                event["stable_at"] - event["started_at"]), file=sys.stderr, flush=True)
            self.check_workers()
            due = max(due + every, event["stable_at"] + 2 * self.bound)
        time.sleep(max(0, deadline - time.monotonic()))
        for event, after in zip(self.events, self.events[1:] + [None]):
            end = after["started_at"] if after else time.monotonic()
            self.measure_gaps(event, min(end, event["stable_at"] + self.bound))

    def get_writers(self, shard):
        """Returns the writers with keys on a shard, and True if the moving slot is there."""
        has_moving = bool(self.moving) and self.cluster.get_owner(self.moving_slot) is shard
        return [self.writers[shard.number]] + ([self.writers["moving"]] if has_moving else []), has_moving

    def fail_over(self, event, shard):
        """Promotes a replica on request."""
        writers, event["moving"] = self.get_writers(shard)
        event["shards"] = [shard.number]
        # Sentinels do not stop the old primary, which would lose what is written to it. In a
        # cluster it waits for its replica.
        if self.mode == "sentinel":
            for writer in writers:
                writer.pause_writes()
            self.wait_for_replication(shard)
        event["done_at"] = self.cluster.fail_over(shard)
        for writer in writers:
            writer.resume_writes()

    @staticmethod
    def wait_for_replication(shard):
        """Waits until all replicas have received all writes."""
        offset = int(shard.primary.get_info("replication")["master_repl_offset"])
        servers.wait_for("the replicas are up to date", lambda: all(
            int(server.get_info("replication")["slave_repl_offset"]) >= offset for server in shard.get_replicas()))

    def move(self, event, _shard):
        """Moves the slot under writes."""
        event["moving"] = True
        event["shards"] = list(self.cluster.move_slot(self.moving_slot, MOVE_PAUSE))
        event["done_at"] = time.monotonic()

    def kill(self, event, shard):
        """Kills a primary, finds what was lost, and restarts it as a replica."""
        writers, event["moving"] = self.get_writers(shard)
        event["shards"] = [shard.number]
        killed = shard.primary
        killed.kill()
        for writer in writers:
            writer.pause_writes()
        event["done_at"] = shard.wait_for_promotion()
        for writer in writers:
            for key in writer.keys:
                held, = servers.wait_for("a value is held", lambda key=key: (shard.primary.call("GET", key),))
                event["lost"] += self.versions.record_held(key, int(held or 0), event["done_at"])
            writer.resume_writes()
        time.sleep(RESTART_DELAY)
        killed.restart()

    def list_workers(self):
        """Returns all threads."""
        return [*self.writers.values(), *self.readers, *self.peers.values(), *self.watches]

    def check_workers(self):
        """Ends the run if a thread or the proxy has ended."""
        failures = [worker.failure for worker in self.list_workers() if worker.failure]
        if failures:
            raise servers.NotReached("; ".join(failures))
        if self.proxy and self.proxy.process.poll() is not None:
            raise servers.NotReached("the proxy runs until the end")

    def measure_gaps(self, event, end):
        """Records the time without service for the keys of the shard of an event."""
        if event["kind"] == "move":
            return
        number = event["shards"][0]
        for name, probes in (("proxy", self.probes), ("redis-py", self.peers)):
            if number in probes:
                event[name] = probes[number].measure_gap(event["started_at"], end)

    def stop_traffic(self):
        """Ends all threads."""
        for worker in self.list_workers():
            worker.is_stopped = True
        for worker in self.list_workers():
            worker.join(traffic.TIMEOUT + 5)
        self.problems += [worker.failure for worker in self.list_workers() if worker.failure]

    def is_stalled(self, requested, failed_at):
        """Returns True if any server was too slow for a request, or had been just before."""
        return any(began <= failed_at and requested <= end + REDIS_TIMEOUT_MS / 1000
                   for watch in self.watches for began, end in watch.stalls)

    def find_shard(self, key):
        """Returns the number of the shard of a key, or "moving"."""
        return next((number for number, keys in self.keys.items() if key in keys), "moving")


def main():
    """Runs the test. Returns the exit code."""
    # The script that started this program decides when it ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    mode, seconds, every, bound, binary, directory = sys.argv[1:]
    run = Run(mode, int(seconds), int(bound) / 1000, binary, directory)
    is_started = False
    try:
        run.start()
        is_started = True
        run.run_events(int(every))
        run.stop_traffic()
        metrics = report.read_metrics(run.proxy.port) if run.proxy else []
        if run.proxy:
            run.problems += filter(None, [run.proxy.stop()])
    except (servers.NotReached, OSError) as error:
        print("scripts/failover.sh: %s: this did not happen; the logs are in %s" % (error, run.logs), file=sys.stderr)
        return 1 if is_started else 2
    finally:
        if run.proxy and run.proxy.process.poll() is None:
            run.proxy.kill()
        run.cluster.stop()
    return report.write(run, metrics, os.path.join(directory, "report.md"))


sys.exit(main())
