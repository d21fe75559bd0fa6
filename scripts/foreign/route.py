"""Relay for a client library's test suite: sends string reads to the proxy, all else to Redis.

    route.py REDIS_PORT PROXY_PORT COUNTS_FILE

Listens on a free port of 127.0.0.1 and prints it. On SIGTERM it writes its counts to COUNTS_FILE as
JSON. Each client has one connection to Redis and one to the proxy. The relay forwards its commands
one at a time, so replies keep their order.
"""

import asyncio
import collections
import contextlib
import json
import signal
import sys

import resp

# Reads that the proxy answers as Redis does. Not TTL: its reply is about the proxy's copy.
READS = {b"GET", b"MGET", b"EXISTS", b"STRLEN", b"GETRANGE", b"SUBSTR"}

# Commands after which replies no longer match commands one by one, or reads have a side effect in
# Redis. All later commands of the connection go to Redis.
TAKE_OVER = {b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE", b"MONITOR", b"SYNC", b"PSYNC"}
CLIENT_TAKE_OVER = {b"TRACKING", b"REPLY", b"CACHING"}

# Commands about the connection, which go to the proxy too.
CLIENT_MIRRORED = {b"SETNAME", b"SETINFO", b"NO-EVICT", b"NO-TOUCH"}

# Commands that write nothing, in addition to those that Redis flags as `readonly`.
HARMLESS = {
    *(b"PING", b"ECHO", b"HELLO", b"AUTH", b"SELECT", b"CLIENT"),
    *(b"COMMAND", b"INFO", b"WATCH", b"UNWATCH", b"MULTI"),
}

# Limit for each loop of a fence: a few seconds.
MAX_POLLS = 20_000
# Attempts of a fence, in case another client deletes its key.
MAX_FENCES = 3
CHUNK_BYTES = 64 * 1024


class Upstream:
    """Connection with one reply for each command, in order."""

    def __init__(self, reader, writer):
        self.reader, self.writer, self.buffer = reader, writer, bytearray()

    @classmethod
    async def open(cls, port):
        """Connects to a port of 127.0.0.1."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, command):
        """Sends one command and returns its reply. Raises ConnectionError if the server closes."""
        self.writer.write(command)
        while (end := resp.find_frame_end(self.buffer)) is None:
            chunk = await self.reader.read(CHUNK_BYTES)
            if not chunk:
                raise ConnectionError("the server closed the connection")
            self.buffer += chunk
        reply = bytes(self.buffer[:end])
        del self.buffer[:end]
        return reply

    def close(self):
        """Closes the connection."""
        self.writer.close()


class Fence:
    """Barrier that waits until the proxy has the invalidation of every write that Redis confirmed.

    Invalidations are asynchronous. For one network hop, a GET after a SET may still return the old
    copy. A fence makes reads of own writes deterministic, without sleeping. It writes a key of its
    own, makes the proxy cache it, deletes it in Redis, and sends PTTL to the proxy until the copy
    is gone. Invalidations arrive in order, so those of all earlier writes have arrived by then.

    A copy that is gone for another reason proves as much. A flush or a lost subscription drops
    every copy with it, and older copies expire or are evicted before it. The key exists only while
    a client waits for its read, so suites do not see it in DBSIZE or KEYS.
    """

    def __init__(self, redis_port, proxy_port):
        self.ports = redis_port, proxy_port
        self.redis = self.proxy = None
        self.lock = asyncio.Lock()
        self.writes = self.passed = self.number = 0

    def record_write(self):
        """Records a write, before the client receives the reply to it."""
        self.writes += 1

    async def pass_through(self):
        """Runs fences. Returns true if reads from the proxy now see every recorded write."""
        async with self.lock:
            for _ in range(MAX_FENCES):
                writes = self.writes
                if writes == self.passed:
                    return True
                try:
                    if self.redis is None:
                        self.redis, self.proxy = [await Upstream.open(port) for port in self.ports]
                    if await self.run():
                        self.passed = writes
                        return True
                except ConnectionError:
                    # Suites kill connections, including this one.
                    self.close()
            return False

    async def run(self):
        """Runs one fence. Returns true if it was completed."""
        self.number += 1
        key = b"foreign:fence:%d" % self.number
        if await self.redis.send(resp.encode(b"SET", key, b"1")) != b"+OK\r\n":
            return False
        is_cached = await self.poll(key, True)
        await self.redis.send(resp.encode(b"DEL", key))
        return is_cached and await self.poll(key, False)

    async def poll(self, key, wanted):
        """Polls the proxy until it has a copy of the key (`wanted`), or has none."""
        for _ in range(MAX_POLLS):
            if wanted:
                await self.proxy.send(resp.encode(b"GET", key))
            if (await self.proxy.send(resp.encode(b"PTTL", key)) != b":-2\r\n") == wanted:
                return True
        return False

    def close(self):
        """Closes both connections."""
        for upstream in (self.redis, self.proxy):
            if upstream is not None:
                upstream.close()
        self.redis = self.proxy = None


class Client:
    """One connection of the suite, with its two upstream connections."""

    def __init__(self, relay, reader, writer):
        self.relay, self.reader, self.writer = relay, reader, writer
        self.commands = asyncio.Queue()
        self.replies = asyncio.Queue()
        self.redis = self.proxy = None
        self.is_raw = self.in_multi = False
        self.database, self.user = b"0", b"default"

    async def serve(self):
        """Serves the client until it or Redis closes."""
        self.redis = await Upstream.open(self.relay.redis_port)
        self.proxy = await Upstream.open(self.relay.proxy_port)
        tasks = [asyncio.create_task(self.read_commands()), asyncio.create_task(self.read_redis())]
        try:
            await self.run_commands()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def close(self):
        """Closes all three connections."""
        for end in (self.redis, self.proxy, self.writer):
            if end is not None:
                end.close()

    async def read_commands(self):
        """Reads commands of the client into the queue."""
        buffer = bytearray()
        with contextlib.suppress(ConnectionError):
            while chunk := await self.reader.read(CHUNK_BYTES):
                buffer += chunk
                while buffer and (end := resp.find_command_end(buffer)) is not None:
                    self.commands.put_nowait(bytes(buffer[:end]))
                    del buffer[:end]
        self.commands.put_nowait(None)
        # The client may close while a command blocks. Redis then closes the connection.
        if self.commands.qsize() == 1:
            self.redis.writer.write_eof()

    async def read_redis(self):
        """Passes replies to the command that waits for them, and push messages to the client."""
        buffer = bytearray()
        with contextlib.suppress(ConnectionError):
            while chunk := await self.redis.reader.read(CHUNK_BYTES):
                buffer += chunk
                if self.is_raw:
                    # Any message or reply may confirm a write.
                    self.relay.fence.record_write()
                    self.writer.write(bytes(buffer))
                    buffer.clear()
                    continue
                while buffer and (end := resp.find_frame_end(buffer)) is not None:
                    frame = bytes(buffer[:end])
                    del buffer[:end]
                    if frame[:1] == b">":
                        self.writer.write(frame)
                    else:
                        self.replies.put_nowait(frame)
        self.replies.put_nowait(None)
        self.commands.put_nowait(None)

    async def run_commands(self):
        """Runs the commands in the queue, one at a time."""
        while (command := await self.commands.get()) is not None:
            words = resp.parse_words(command)
            name = words[0].upper() if words else b""
            kind = words[1].upper() if len(words) > 1 else b""
            takes_over = name in TAKE_OVER or (name == b"CLIENT" and kind in CLIENT_TAKE_OVER)
            self.is_raw |= takes_over or command[:1] != b"*"
            if self.is_raw:
                self.relay.counts["to Redis"] += 1
                self.redis.writer.write(command)
                continue
            if name in READS and await self.may_use_proxy():
                self.relay.counts["to the proxy"] += 1
                self.relay.reads[name.decode()] += 1
                # The second read is a hit, unless the key is missing or its value is long.
                await self.send_to_proxy(command)
                reply = await self.send_to_proxy(command)
            else:
                self.relay.counts["to Redis"] += 1
                self.redis.writer.write(command)
                reply = await self.replies.get()
                if reply is None:
                    return
                if name not in self.relay.read_only:
                    self.relay.fence.record_write()
                await self.track_state(name, words, command, reply)
            self.writer.write(reply)
            await self.writer.drain()

    async def may_use_proxy(self):
        """Returns true if the proxy would answer a read as Redis does for this connection."""
        if self.in_multi or self.database != b"0" or self.user != b"default":
            return False
        if await self.relay.fence.pass_through():
            return True
        self.relay.counts["reads without a fence, to Redis"] += 1
        return False

    async def send_to_proxy(self, command):
        """Sends one command to the proxy and returns its reply."""
        try:
            return await self.proxy.send(command)
        except ConnectionError:
            self.relay.counts["connections closed by the proxy"] += 1
            raise

    async def track_state(self, name, words, command, reply):
        """Tracks the connection's state and mirrors it to the proxy."""
        is_error = reply[:1] in b"-!"
        if name in (b"EXEC", b"DISCARD"):
            self.in_multi = False
        if is_error:
            return
        if name == b"MULTI":
            self.in_multi = True
        elif name == b"SELECT":
            self.database = b"%d" % int(words[1])
        elif name == b"RESET":
            self.in_multi, self.database, self.user = False, b"0", b"default"
        elif name == b"AUTH":
            self.user = words[1] if len(words) > 2 else b"default"
        elif name == b"HELLO":
            for at, word in enumerate(words):
                if word.upper() == b"AUTH":
                    self.user = words[at + 1]
                    break
        is_mirrored = name in (b"HELLO", b"AUTH", b"RESET") or (
            name == b"CLIENT" and len(words) > 1 and words[1].upper() in CLIENT_MIRRORED
        )
        if is_mirrored and reply != b"+QUEUED\r\n":
            answer = await self.send_to_proxy(command)
            if answer[:1] in b"-!":
                self.relay.counts["commands refused by the proxy alone"] += 1
                print(f"route.py: {command!r}: {answer!r}", file=sys.stderr, flush=True)


class Relay:
    """Listener with the counts of all its connections."""

    def __init__(self, redis_port, proxy_port):
        self.redis_port, self.proxy_port = redis_port, proxy_port
        self.fence = Fence(redis_port, proxy_port)
        self.counts, self.reads = collections.Counter(), collections.Counter()
        self.read_only = set()
        # The event loop has weak references only, so a waiting task could be collected.
        self.tasks = set()

    async def load_commands(self):
        """Reads the commands that Redis flags as `readonly`."""
        redis = await Upstream.open(self.redis_port)
        names = await redis.send(resp.encode(b"COMMAND", b"LIST"))
        self.read_only = set(HARMLESS)
        for name in resp.list_strings(names):
            info = await redis.send(resp.encode(b"COMMAND", b"INFO", name))
            if b"readonly" in resp.list_strings(info):
                self.read_only.add(name.upper())
        redis.close()

    async def on_connection(self, reader, writer):
        """Serves one connection of the suite."""
        client, task = Client(self, reader, writer), asyncio.current_task()
        self.tasks.add(task)
        self.counts["connections"] += 1
        try:
            await client.serve()
        except ConnectionError:
            pass
        except Exception as error:
            self.counts["relay errors"] += 1
            print(f"route.py: {error!r}", file=sys.stderr, flush=True)
        finally:
            client.close()
            self.tasks.discard(task)

    def make_report(self):
        """Returns all counts."""
        return {**self.counts, "fences": self.fence.number, "reads": dict(self.reads)}


async def main(redis_port, proxy_port, counts_file):
    """Runs the relay until SIGTERM."""
    relay = Relay(int(redis_port), int(proxy_port))
    await relay.load_commands()
    server = await asyncio.start_server(relay.on_connection, "127.0.0.1", 0)
    is_stopped = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, is_stopped.set)
    print("listening on 127.0.0.1:%d" % server.sockets[0].getsockname()[1], flush=True)
    await is_stopped.wait()
    with open(counts_file, "w", encoding="ascii") as file:
        json.dump(relay.make_report(), file)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
