"""Closed-loop load over HTTP or RESP from one process, which checks every value.

    load.py PROTOCOL PORT JSON

The JSON object has `seed`, `connections`, and either `requests` or `seconds`. Keys come from `keys`
and `exponent` (Zipf), with a share `hot` for one further key, or from `sweep`: each key once, in
order. Prints one JSON object.

A broken connection counts as an error, and so does every reply that is not the value of the key.
The client then connects again.
"""

import collections
import json
import random
import re
import select
import socket
import sys
import time

import zipf
from load_process import compute_percentile

LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
HOT = "hot"
# Keys that are drawn at once.
BLOCK = 10000
# Seconds after which a request without a reply counts as an error.
REPLY_TIMEOUT = 30
# Distinct error texts that are kept.
MAX_TEXTS = 8


def value_of(key):
    """Returns the value of a key. It contains the key, so that a mix-up shows."""
    return ("the value of %s " % key).ljust(100, ".").encode()


class Broken(Exception):
    """The connection ended before the reply."""


class Client:
    """One connection with at most one request in flight."""

    def __init__(self, protocol, port):
        self.is_http, self.port = protocol == "http", port
        self.socket, self.received, self.key, self.sent_at = None, b"", None, 0.0
        # The server announced that it closes the connection.
        self.is_closing = False

    def connect(self):
        """Opens the connection."""
        self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=REPLY_TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received, self.is_closing = b"", False

    def send(self, key):
        """Sends a request."""
        self.key, self.sent_at = key, time.monotonic()
        if self.is_http:
            self.socket.sendall(b"GET /raw/%s HTTP/1.1\r\nHost: load\r\n\r\n" % key.encode())
        else:
            self.socket.sendall(b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(key), key.encode()))

    def read(self):
        """Reads. Returns an error text or None, and true for a miss; None without a whole reply."""
        data = self.socket.recv(65536)
        if not data:
            raise Broken("closed before the reply")
        self.received += data
        return self.parse_http() if self.is_http else self.parse_resp()

    def parse_http(self):
        """Returns the reply in the received bytes, or None if it is not complete."""
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = self.received[:end]
        length = LENGTH.search(head)
        size = end + 4 + (int(length[1]) if length else 0)
        if len(self.received) < size:
            return None
        body, self.received = self.received[end + 4:size], self.received[size:]
        self.is_closing = b"\r\nconnection: close" in head.lower()
        if not head.startswith(b"HTTP/1.1 200 "):
            return "status %s" % head[9:12].decode(), False
        return (None if body == value_of(self.key) else "wrong value"), b"fwd=miss" in head

    def parse_resp(self):
        """Returns the reply in the received bytes, or None if it is not complete."""
        end = self.received.find(b"\r\n")
        if end < 0:
            return None
        line = self.received[:end]
        if not line.startswith(b"$") or line == b"$-1":
            self.received = self.received[end + 2:]
            return line.decode(errors="replace"), False
        size = end + 4 + int(line[1:])
        if len(self.received) < size:
            return None
        body, self.received = self.received[end + 2:size - 2], self.received[size:]
        return (None if body == value_of(self.key) else "wrong value"), False


class Keys:
    """Sequence of keys to request. Ends with None."""

    def __init__(self, plan):
        self.plan, self.left, self.block = plan, plan.get("requests"), []
        self.random = random.Random(plan["seed"] + 1)
        if "sweep" in plan:
            self.block = ["key-%d" % number for number in reversed(range(plan["sweep"]))]
            self.left = plan["sweep"]
        else:
            self.zipf = zipf.Zipf(plan["keys"], plan["exponent"], plan["seed"])
        self.deadline = time.monotonic() + plan["seconds"] if "seconds" in plan else None

    def take(self):
        """Returns the next key, or None at the end."""
        if self.left == 0 or (self.deadline and time.monotonic() > self.deadline):
            return None
        if self.left:
            self.left -= 1
        if not self.block:
            hot = self.plan.get("hot", 0)
            self.block = [HOT if hot and self.random.random() < hot else "key-%d" % number
                          for number in self.zipf.draw(BLOCK)]
        return self.block.pop()


class Load:
    """All clients of one process, and what they have seen."""

    def __init__(self, protocol, port, plan):
        self.keys = Keys(plan)
        self.clients = [Client(protocol, port) for _ in range(plan["connections"])]
        self.poll, self.by_descriptor = select.epoll(), {}
        self.times, self.missed = [], set()
        self.errors, self.texts = [], collections.Counter()

    def record_error(self, text):
        """Counts an error, with its time."""
        self.errors.append(time.monotonic())
        if text in self.texts or len(self.texts) < MAX_TEXTS:
            self.texts[text] += 1

    def start_request(self, client):
        """Sends the next request, on a new connection if necessary. Returns false at the end."""
        key = self.keys.take()
        if key is None:
            return False
        while True:
            try:
                if client.socket is None:
                    client.connect()
                    self.by_descriptor[client.socket.fileno()] = client
                    self.poll.register(client.socket, select.EPOLLIN)
                client.send(key)
                return True
            except OSError as error:
                self.record_error("connecting or sending: %s" % error)
                self.close(client)
                time.sleep(0.01)

    def close(self, client):
        """Closes a broken connection."""
        if client.socket is not None:
            self.by_descriptor.pop(client.socket.fileno(), None)
            client.socket.close()
            client.socket = None

    def take_reply(self, client):
        """Reads from a client. Returns true if its request has ended."""
        try:
            reply = client.read()
        except (OSError, Broken) as error:
            self.record_error(str(error))
            self.close(client)
            return True
        if reply is None:
            return False
        text, is_miss = reply
        if text:
            self.record_error(text)
        else:
            self.times.append(time.monotonic() - client.sent_at)
        if is_miss:
            self.missed.add(client.key)
        if client.is_closing:
            self.close(client)
        return True

    def run(self):
        """Runs until the keys end. Returns the results."""
        started_at = time.monotonic()
        busy = sum(self.start_request(client) for client in self.clients)
        while busy:
            events = self.poll.poll(REPLY_TIMEOUT)
            if not events:
                for client in self.clients:
                    if client.socket is not None:
                        self.record_error("no reply for %d s" % REPLY_TIMEOUT)
                break
            for descriptor, _ in events:
                client = self.by_descriptor[descriptor]
                if self.take_reply(client) and not self.start_request(client):
                    busy -= 1
        seconds = time.monotonic() - started_at
        for client in self.clients:
            self.close(client)
        times = sorted(self.times)
        return {"requests": len(times) + len(self.errors), "seconds": seconds, "missed": sorted(self.missed),
                "errors": self.errors, "texts": dict(self.texts), "p50": compute_percentile(times, 0.5),
                "p99": compute_percentile(times, 0.99), "longest": compute_percentile(times, 1)}


def main():
    """Runs the load that the arguments describe."""
    print(json.dumps(Load(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])).run()))


if __name__ == "__main__":
    main()
