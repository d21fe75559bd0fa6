"""Servers of consecutive cases, each started and filled for the first case that needs it.

Filling ten million keys takes longer than a case. Cases with the same keys therefore share their
servers.
"""

import cases
import cpu
import fill
import load_generator
import servers

# Bytes of memory that a server is allowed for a key of 16 bytes and its value of 100, with its
# tables while they grow (the proxy 180, Redis 200).
BYTES_PER_KEY = 250


def count_needed_bytes(case):
    """Returns the memory that the servers of a case take for their keys."""
    return case.keys * BYTES_PER_KEY * len({"redis", *servers.choose_names(case)})


def read_available_bytes():
    """Returns the memory that the kernel can give without swapping."""
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":") for line in file)
    return int(fields["MemAvailable"].split()[0]) * 1024


def fetch_hit(proxy, case):
    """Returns the bytes of the proxy's reply to a hit.

    Over RESP the replies for all keys have the same length.
    """
    if case.kind == "resp":
        value = cases.make_value(cases.choose_key(case), case.length)
        return ("$%d\r\n%s\r\n" % (len(value), value)).encode()
    load_generator.check_response(proxy, case)
    return b"".join(load_generator.fetch_response(proxy, cases.choose_key(case)))


class Fleet:
    """Running servers of one group of cases.

    `backing` is the Redis behind the caches. Where the proxy caches all keys, that is the peer
    itself: it serves nothing while the proxy is measured, and a third copy of the keys would only
    take memory.
    """

    def __init__(self, directory, backing):
        self.directory, self.backing = directory, backing
        self.started, self.bytes_at_start = {}, {}

    def provide(self, case):
        """Returns the servers of a case, in its order."""
        if cases.is_cached_fully(case):
            self.backing = self.provide_server("redis", case)
        # The floor sends the replies of one case only.
        if "floor" in self.started:
            servers.stop([self.started.pop("floor")])
        return [self.provide_server(name, case) for name in servers.choose_names(case)]

    def provide_server(self, name, case):
        """Returns a server with all keys of the case, which it starts if there is none yet."""
        if name not in self.started:
            server = self.started[name] = self.start(name, case)
            self.bytes_at_start[name] = cpu.read_resident_bytes(server.process.pid)
            if case.keys and name != "floor":
                self.fill(server, case)
        return self.started[name]

    def start(self, name, case):
        """Starts a server. The floor sends the reply of the proxy, which runs already."""
        if name in ("proxy", "base"):
            return servers.start_proxy(self.directory, case, self.backing, name)
        if name == "floor":
            return servers.start_floor(self.directory, fetch_hit(self.started["proxy"], case) * case.pipeline)
        if name == "nginx":
            return servers.start_nginx_return(self.directory, case)
        if name == "lua":
            return servers.start_nginx_lua(self.directory, case, self.backing)
        if name == "webdis":
            return servers.start_webdis(self.directory, self.backing)
        return servers.start_redis(self.directory, name, binary=servers.find_optional().get(name, "redis-server"))

    def fill(self, server, case):
        """Writes all keys to a Redis or Valkey, and reads them from any server."""
        if server.name in ("redis", "valkey"):
            fill.write_keys(server, case.keys)
        fill.read_keys(server, case.keys)

    def measure_memory(self):
        """Returns the resident bytes of each server, at its start and now."""
        return {name: {"at_start": self.bytes_at_start[name], "now": cpu.read_resident_bytes(server.process.pid)}
                for name, server in self.started.items() if name != "floor"}

    def stop(self):
        """Stops all servers."""
        servers.stop(self.started.values())
