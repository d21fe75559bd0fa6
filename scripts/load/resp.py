"""Blocking client of the Redis protocol, reduced to what seeding and checking need."""

import socket


class RespError(Exception):
    """Error reply of the server."""


def encode_command(*arguments):
    """Returns the bytes of a command of bytes, strings or numbers."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        data = argument if isinstance(argument, bytes) else str(argument).encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(parts)


class Client:
    """One connection. Raises OSError when it breaks, and RespError for an error reply."""

    # Seconds for one reply: far longer than a busy machine takes, so that only a hung server
    # exceeds it.
    TIMEOUT_SECONDS = 30

    def __init__(self, host, port):
        self.socket = socket.create_connection((host, port), timeout=self.TIMEOUT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def close(self):
        """Closes the connection."""
        self.file.close()
        self.socket.close()

    def send(self, *commands):
        """Sends commands, each a list of bytes, strings or numbers, in one write."""
        self.socket.sendall(b"".join(encode_command(*command) for command in commands))

    def call(self, *command):
        """Sends one command and returns its reply."""
        self.send(command)
        return self.read_reply()

    def read_reply(self):
        """Returns the next reply."""
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            raise RespError(rest.decode(errors="replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return self.read_bulk(int(rest))
        if kind == b"*":
            return None if rest == b"-1" else [self.read_reply() for _ in range(int(rest))]
        raise ConnectionError("not the Redis protocol: %r" % line[:80])

    def read_bulk(self, length):
        """Returns the bytes of a bulk string, or None for a null."""
        if length < 0:
            return None
        data = self.file.read(length + 2)
        if len(data) != length + 2 or not data.endswith(b"\r\n"):
            raise ConnectionError("the connection closed within a reply")
        return data[:-2]


def parse_address(text):
    """Returns host and port of host:port."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
