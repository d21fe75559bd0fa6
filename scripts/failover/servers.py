"""Redis servers of the failover test: a cluster with replicas, or a primary with sentinels.

Both have shards. A shard is a primary and its replicas, whatever their present roles are. Sentinels
have one.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import time

import resp

SLOTS = 16384
NODE_TIMEOUT_MS = 1500
DOWN_AFTER_MS = 1000
MASTER = "mymaster"
# Seconds after which a state that is waited for counts as never reached.
TIMEOUT = 60


class NotReached(Exception):
    """A state that did not come within TIMEOUT."""


def wait_for(what, poll, timeout=TIMEOUT):
    """Calls `poll` until it returns a true value, and returns that. Errors count as false."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            value = poll()
        except (OSError, resp.RespError):
            value = None
        if value:
            return value
        if time.monotonic() > deadline:
            raise NotReached(what)
        time.sleep(0.01)


def find_port():
    """Returns a free port below those of outgoing connections: a server can restart there."""
    while True:
        port = random.randrange(12000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def slot_of(key):
    """Returns the slot of a key without a hash tag."""
    crc = 0
    for byte in key.encode():
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc % SLOTS


class Server:
    """One process in a directory of its own."""

    def __init__(self, name, directory, make_arguments):
        self.name, self.directory = name, os.path.join(directory, name)
        os.makedirs(self.directory)
        self.make_arguments, self.process, self.port = make_arguments, None, None

    def start(self):
        """Starts the server on free ports. Another process may take one first: it tries again."""
        for _ in range(20):
            self.port = find_port()
            self.arguments = self.make_arguments(self)
            if self.launch():
                return self
        raise NotReached("%s starts" % self.name)

    def launch(self):
        """Starts the process at its port. Returns False if it exits."""
        with open(os.path.join(self.directory, "log"), "a") as log:
            self.process = subprocess.Popen(["redis-server"] + self.arguments, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, cwd=self.directory)
        # The server that answers must be the one that was started.
        own = b"\r\nprocess_id:%d\r\n" % self.process.pid

        def is_decided():
            return self.process.poll() is not None or own in self.call("INFO", "server")

        wait_for("%s replies" % self.name, is_decided)
        return self.process.poll() is None

    def call(self, *command):
        """Runs one command on a connection of its own."""
        client = resp.Client("127.0.0.1", self.port)
        try:
            return client.call(*command)
        finally:
            client.close()

    def get_info(self, section):
        """Returns the fields of a section of INFO."""
        lines = self.call("INFO", section).decode().split("\r\n")
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def is_primary(self):
        """Returns True if the server has that role."""
        return self.call("ROLE")[0] == b"master"

    def is_running(self):
        """Returns True unless the process has ended."""
        return self.process is not None and self.process.poll() is None

    def kill(self):
        """Ends the process with SIGKILL."""
        if self.is_running():
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def restart(self):
        """Starts the process again, without data and with the identity that it had."""
        if not self.launch():
            raise NotReached("%s restarts on port %d" % (self.name, self.port))


class Shard:
    """A primary and its replicas."""

    def __init__(self, number, servers):
        self.number, self.servers = number, servers
        self.primary = servers[0]

    def get_replicas(self):
        """Returns the running servers that are not the primary."""
        return [server for server in self.servers if server is not self.primary and server.is_running()]

    def has_replicas(self):
        """Returns True if all servers run, and all but the primary receive its writes."""
        replicas = self.get_replicas()
        return len(replicas) == len(self.servers) - 1 and all(
            server.get_info("replication").get("master_link_status") == "up" for server in replicas)

    def wait_for_promotion(self):
        """Waits until another server is the primary. Returns the time when that was seen."""
        def find():
            return next((server for server in self.get_replicas() if server.is_primary()), None)

        self.primary = wait_for("a replica of shard %d is promoted" % self.number, find)
        return time.monotonic()


class Servers:
    """Parts that a cluster and sentinels share."""

    def __init__(self, directory):
        self.directory = os.path.join(directory, "servers-%d" % os.getpid())
        shutil.rmtree(self.directory, ignore_errors=True)
        self.servers, self.shards, self.sentinels = [], [], []

    def stop(self):
        """Kills all processes and removes their files, except the logs."""
        for server in self.servers + self.sentinels:
            server.kill()
            log = os.path.join(server.directory, "log")
            if os.path.exists(log):
                shutil.move(log, os.path.join(os.path.dirname(self.directory), "%s.log" % server.name))
        shutil.rmtree(self.directory, ignore_errors=True)


class Cluster(Servers):
    """Three primaries with one replica each. A node that is lost does not stop the others."""

    PRIMARIES = 3

    def start(self):
        """Starts all nodes, makes a cluster of them, and waits until it works."""
        for number in range(2 * self.PRIMARIES):
            self.servers.append(Server("node-%d" % number, self.directory, self.make_arguments).start())
        for number in range(self.PRIMARIES):
            self.shards.append(Shard(number, self.servers[number::self.PRIMARIES]))
        for number, server in enumerate(self.servers):
            server.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for shard in self.shards:
            first, last = (SLOTS * bound // self.PRIMARIES for bound in (shard.number, shard.number + 1))
            shard.primary.call("CLUSTER", "ADDSLOTSRANGE", first, last - 1)
        for server in self.servers[1:]:
            server.call("CLUSTER", "MEET", "127.0.0.1", self.servers[0].port, self.servers[0].bus_port)
        for server in self.servers:
            wait_for("the nodes know each other", lambda: self.count_known(server) == len(self.servers))
        for server in self.servers[self.PRIMARIES:]:
            shard = next(shard for shard in self.shards if server in shard.servers)
            server.call("CLUSTER", "REPLICATE", shard.primary.call("CLUSTER", "MYID"))
        self.wait_until_stable()

    @staticmethod
    def make_arguments(server):
        """Returns the arguments of a node."""
        server.bus_port = find_port()
        return ["--port", str(server.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                "--dir", server.directory, "--cluster-enabled", "yes", "--cluster-port", str(server.bus_port),
                "--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--cluster-announce-ip", "127.0.0.1",
                "--cluster-require-full-coverage", "no", "--cluster-allow-replica-migration", "no",
                "--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0"]

    @staticmethod
    def count_known(server):
        """Returns the number of nodes that a node has met."""
        lines = server.call("CLUSTER", "NODES").decode().strip().split("\n")
        return sum("handshake" not in line for line in lines)

    @staticmethod
    def read_map(server):
        """Returns the slot map of a node: ranges with the port of their primary."""
        return sorted((entry[0], entry[1], entry[2][1]) for entry in server.call("CLUSTER", "SLOTS"))

    def wait_until_stable(self):
        """Waits until all nodes agree on the slots and all replicas are attached."""
        def is_stable():
            maps = [self.read_map(server) for server in self.servers]
            states = [b"cluster_state:ok" in server.call("CLUSTER", "INFO") for server in self.servers]
            return all(one == maps[0] for one in maps) and all(states) and all(
                shard.has_replicas() for shard in self.shards)

        wait_for("the cluster is stable", is_stable)

    def get_owner(self, slot):
        """Returns the shard that has a slot, as its first running node knows it."""
        server = next(server for server in self.servers if server.is_running())
        port = next(port for first, last, port in self.read_map(server) if first <= slot <= last)
        return next(shard for shard in self.shards if port in [server.port for server in shard.servers])

    def fail_over(self, shard):
        """Promotes a replica without losing a write. Returns the time when that was seen."""
        shard.get_replicas()[0].call("CLUSTER", "FAILOVER")
        return shard.wait_for_promotion()

    def move_slot(self, slot, pause):
        """Moves a slot to the next shard key by key, with pauses. Returns both numbers."""
        source = self.get_owner(slot)
        target = self.shards[(source.number + 1) % len(self.shards)]
        ids = [shard.primary.call("CLUSTER", "MYID") for shard in (source, target)]
        target.primary.call("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        source.primary.call("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        while keys := source.primary.call("CLUSTER", "GETKEYSINSLOT", slot, 1):
            source.primary.call("MIGRATE", "127.0.0.1", target.primary.port, "", 0, 5000, "KEYS", *keys)
            time.sleep(pause)
        # The new node first: it then has the slot by a newer epoch.
        others = [shard for shard in self.shards if shard is not target]
        for shard in [target] + others:
            shard.primary.call("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
        return source.number, target.number

    def read_key(self, key):
        """Returns the value of a key at the primary that has it."""
        return self.get_owner(slot_of(key)).primary.call("GET", key)

    def make_proxy_environment(self):
        """Returns the variables that lead a proxy here."""
        seeds = ",".join("127.0.0.1:%d" % server.port for server in self.servers)
        return {"REDIS_MODE": "cluster", "REDIS_URL": "redis://" + seeds}


class Sentinels(Servers):
    """A primary with two replicas, and three sentinels."""

    REPLICAS, SENTINELS = 2, 3

    def start(self):
        """Starts all servers and sentinels, and waits until a failover would work."""
        for number in range(1 + self.REPLICAS):
            self.servers.append(Server("server-%d" % number, self.directory, self.make_arguments).start())
        self.shards.append(Shard(0, self.servers))
        for number in range(self.SENTINELS):
            self.sentinels.append(Server("sentinel-%d" % number, self.directory, self.make_sentinel).start())
        self.wait_until_stable()

    def make_arguments(self, server):
        """Returns the arguments of a server. The first one is the primary."""
        arguments = ["--port", str(server.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                     "--dir", server.directory, "--repl-diskless-sync-delay", "0"]
        return arguments + (["--replicaof", "127.0.0.1", str(self.servers[0].port)] if self.servers else [])

    def make_sentinel(self, server):
        """Writes the configuration of a sentinel, and returns its arguments."""
        lines = ["port %d" % server.port, "bind 127.0.0.1", "dir %s" % server.directory,
                 "sentinel monitor %s 127.0.0.1 %d 2" % (MASTER, self.servers[0].port),
                 "sentinel down-after-milliseconds %s %d" % (MASTER, DOWN_AFTER_MS),
                 "sentinel failover-timeout %s 5000" % MASTER, "sentinel parallel-syncs %s 2" % MASTER]
        path = os.path.join(server.directory, "sentinel.conf")
        with open(path, "w") as file:
            file.write("\n".join(lines) + "\n")
        return [path, "--sentinel"]

    def wait_until_stable(self):
        """Waits until all sentinels name the primary and each other, and replicas are attached."""
        def is_stable():
            for sentinel in self.sentinels:
                fields = sentinel.call("SENTINEL", "MASTER", MASTER)
                state = dict(zip(fields[::2], fields[1::2]))
                if (state[b"port"], state[b"flags"]) != (b"%d" % self.shards[0].primary.port, b"master"):
                    return False
                if (state[b"num-slaves"], state[b"num-other-sentinels"]) != (
                        b"%d" % self.REPLICAS, b"%d" % (self.SENTINELS - 1)):
                    return False
            return self.shards[0].has_replicas()

        wait_for("the sentinels agree", is_stable)

    def get_owner(self, _slot):
        """Returns the only shard."""
        return self.shards[0]

    def fail_over(self, shard):
        """Promotes a replica. Returns the time when that was seen, before sentinels announce it."""
        # Refused for a short time after another failover.
        wait_for("a failover begins", lambda: self.sentinels[0].call("SENTINEL", "FAILOVER", MASTER))
        return shard.wait_for_promotion()

    def read_key(self, key):
        """Returns the value of a key at the primary."""
        return self.shards[0].primary.call("GET", key)

    def make_proxy_environment(self):
        """Returns the variables that lead a proxy here."""
        hosts = ",".join("127.0.0.1:%d" % sentinel.port for sentinel in self.sentinels)
        return {"REDIS_MODE": "sentinel", "REDIS_URL": "redis://" + hosts, "REDIS_MASTER": MASTER}
