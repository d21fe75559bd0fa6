"""Writers and readers of the failover test, on threads."""

import http.client
import random
import threading
import time

import redis
import redis.cluster
import redis.sentinel

import resp
import servers

# Seconds for one reply of any client. Long enough for the timeouts of the proxy.
TIMEOUT = 5
# Seconds between two writes of a writer, between two reads, and between two reads of a probe.
WRITE_PAUSE, READ_PAUSE, PROBE_PAUSE = 0.002, 0.002, 0.02
# Errors of a reader that are kept. More would say the same.
MAX_ERRORS = 50_000


def make_peer(cluster):
    """Returns the client of redis-py, at its defaults except for the timeouts."""
    timeouts = {"socket_timeout": 1, "socket_connect_timeout": 1}
    if isinstance(cluster, servers.Cluster):
        nodes = [redis.cluster.ClusterNode("127.0.0.1", server.port) for server in cluster.servers]
        return redis.cluster.RedisCluster(startup_nodes=nodes, **timeouts)
    hosts = [("127.0.0.1", sentinel.port) for sentinel in cluster.sentinels]
    return redis.sentinel.Sentinel(hosts, sentinel_kwargs=timeouts, **timeouts).master_for(servers.MASTER)


class Worker(threading.Thread):
    """Thread that calls `run_round` until it is stopped."""

    def __init__(self, name, pause):
        super().__init__(name=name, daemon=True)
        self.pause, self.is_stopped, self.failure = pause, False, None

    def run(self):
        """Runs rounds. An unexpected error ends the thread and is kept."""
        try:
            while not self.is_stopped:
                self.run_round()
                time.sleep(self.pause)
        except Exception as error:  # pylint: disable=broad-except
            self.failure = "%s: %r" % (self.name, error)

    def run_round(self):
        """Does one unit of work."""
        raise NotImplementedError


class Writer(Worker):
    """The only writer of some keys of one shard, or of a slot that moves. Pauses on demand.

    Writes to the primary that the test knows and follows redirections. Repeats nothing: after a
    failed write the next version follows.
    """

    def __init__(self, name, shard, keys, versions):
        super().__init__(name, WRITE_PAUSE)
        self.shard, self.keys, self.versions = shard, keys, versions
        self.clients, self.moved_to = {}, None
        self.at, self.written, self.failed = 0, 0, 0
        self.may_write, self.is_idle = threading.Event(), threading.Event()
        self.may_write.set()

    def pause_writes(self):
        """Returns once no write is in progress. None begins until `resume_writes`."""
        self.may_write.clear()
        self.is_idle.clear()
        servers.wait_for("%s pauses" % self.name, lambda: self.is_idle.is_set() or not self.is_alive())

    def resume_writes(self):
        """Lets the writer go on."""
        self.may_write.set()

    def run_round(self):
        """Writes the next version of the next key."""
        if not self.may_write.is_set():
            self.is_idle.set()
            self.may_write.wait(0.1)
            return
        key = self.keys[self.at % len(self.keys)]
        self.at += 1
        version = self.versions.take_version(key)
        try:
            self.write(key, version)
        except (resp.RespError, OSError):
            # The version may have been written or not.
            self.failed += 1
            self.moved_to = None
            time.sleep(0.05)
            return
        self.versions.record_acknowledged(key, version, time.monotonic())
        self.written += 1

    def write(self, key, version):
        """Writes one version, with at most five redirections."""
        port, is_asking = self.moved_to or self.shard.primary.port, False
        for _ in range(6):
            try:
                client = self.clients.get(port) or resp.Client("127.0.0.1", port)
                self.clients[port] = client
                client.socket.settimeout(TIMEOUT)
                if is_asking:
                    client.call("ASKING")
                client.call("SET", key, version)
                return
            except OSError:
                self.clients.pop(port, None)
                raise
            except resp.RespError as error:
                kind, *rest = str(error).split(" ")
                if kind not in ("MOVED", "ASK"):
                    raise
                port, is_asking = int(rest[1].rpartition(":")[2]), kind == "ASK"
                self.moved_to = self.moved_to if is_asking else port
        raise resp.RespError("too many redirections")


class HttpReader:
    """Connection to the proxy over HTTP."""

    kind = "HTTP"

    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)

    def get(self, key):
        """Returns a value. Raises RespError for an error response."""
        self.connection.request("GET", "/raw/" + key)
        response = self.connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise resp.RespError("%d %s" % (response.status, body.decode(errors="replace")))
        return body

    def close(self):
        """Closes the connection."""
        self.connection.close()


class RespReader:
    """Connection to the proxy over RESP."""

    kind = "RESP"

    def __init__(self, port):
        self.client = resp.Client("127.0.0.1", port)
        self.client.socket.settimeout(TIMEOUT)

    def get(self, key):
        """Returns a value. Raises RespError for an error reply."""
        value = self.client.call("GET", key)
        if value is None:
            raise resp.RespError("nil")
        return value

    def close(self):
        """Closes the connection."""
        self.client.close()


class PeerReader:
    """Client of redis-py."""

    kind = "redis-py"

    def __init__(self, cluster):
        self.client = make_peer(cluster)

    def get(self, key):
        """Returns a value. Raises RespError for any error."""
        try:
            value = self.client.get(key)
        except redis.RedisError as error:
            raise resp.RespError("%s: %s" % (type(error).__name__, error)) from error
        if value is None:
            raise resp.RespError("nil")
        return value

    def close(self):
        """Closes the connections."""
        self.client.close()


class Reader(Worker):
    """Reads random keys, and judges their values if `versions` is given."""

    def __init__(self, name, connect, keys, versions, pause=READ_PAUSE):
        super().__init__(name, pause)
        self.connect, self.keys, self.versions = connect, keys, versions
        self.client, self.kind = None, None
        self.replies, self.failed, self.longest = 0, 0, 0
        # Times of the request and of the reply, key and text of each error. Time of the request,
        # key and text of each value that was never written.
        self.errors, self.wrong = [], []
        # Age of each value that was older than the newest acknowledged version, if over 50 ms.
        self.ages = []
        # Times of the request and of the reply of each success, if kept.
        self.successes = None

    def run_round(self):
        """Reads one key."""
        key, requested = random.choice(self.keys), time.monotonic()
        try:
            self.client = self.client or self.connect()
            self.kind = self.client.kind
            value = self.client.get(key)
        except resp.RespError as error:
            self.record_error(requested, key, str(error))
            return
        except (OSError, http.client.HTTPException, redis.RedisError) as error:
            self.record_error(requested, key, "connection: %r" % error)
            if self.client:
                self.client.close()
            self.client = None
            return
        finally:
            self.replies += 1
        now = time.monotonic()
        self.longest = max(self.longest, now - requested)
        if self.successes is not None:
            self.successes.append((requested, now))
        if self.versions:
            age = self.versions.observe(key, int(value) if value.isdigit() else -1, requested)
            if age is None:
                self.wrong.append((requested, key, "%r was never written" % value[:40]))
            elif age > 0.05:
                self.ages.append((requested, age))

    def record_error(self, requested, key, text):
        """Records an error, and gives the processor to others."""
        self.failed += 1
        if len(self.errors) < MAX_ERRORS:
            self.errors.append((requested, time.monotonic(), key, text))
        time.sleep(0.01)


class Probe(Reader):
    """Reader that keeps the times of all successes, to measure the time without service."""

    def __init__(self, name, connect, keys, versions):
        super().__init__(name, connect, keys, versions, PROBE_PAUSE)
        self.successes = []

    def measure_gap(self, start, end):
        """Returns two times: the longest one without a success between `start` and `end`, and the
        one from the first error to the first success after the last one, or None.
        """
        # A copy, because the thread appends.
        replies = sorted(now for _, now in list(self.successes) if start <= now <= end)
        bounds = [start] + replies + [end]
        gap = max(after - before for before, after in zip(bounds, bounds[1:]))
        errors = [requested for requested, _, _, _ in list(self.errors) if start <= requested <= end]
        if not errors:
            return gap, None
        after = next((now for now in replies if now > errors[-1]), end)
        return gap, after - errors[0]


class Watch(Worker):
    """Asks one server directly, to find the times when the server, or the machine, was too slow."""

    # Seconds for a reply above which the server stalled. Clients give up after a second.
    STALL = 0.25

    def __init__(self, server):
        super().__init__("watch-" + server.name, 0.05)
        self.server, self.client = server, None
        # Beginning and end of each stall.
        self.stalls = []

    def run_round(self):
        """Sends one PING. A server that is down does not stall."""
        began = time.monotonic()
        try:
            self.client = self.client or resp.Client("127.0.0.1", self.server.port)
            self.client.call("PING")
        except (resp.RespError, OSError):
            if self.client:
                self.client.close()
            self.client = None
        now = time.monotonic()
        if now - began > self.STALL:
            self.stalls.append((began, now))
