"""The Redis protocol, as much of it as seeding and checking need."""

import socket


class RespError(Exception):
    """An error that the server answered with."""


class Client:
    """One connection. Raises OSError when it breaks, RespError for an answer that is an error."""

    # Seconds for one reply: much longer than any that a busy machine takes, so that only a hung server is told.
    PATIENCE = 30

    def __init__(self, host, port):
        self.socket = socket.create_connection((host, port), timeout=self.PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def close(self):
        self.file.close()
        self.socket.close()

    def send(self, *commands):
        """Commands are lists of bytes, text or numbers."""
        parts = []
        for command in commands:
            parts.append(b"*%d\r\n" % len(command))
            for argument in command:
                data = argument if isinstance(argument, bytes) else str(argument).encode()
                parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
        self.socket.sendall(b"".join(parts))

    def call(self, *command):
        self.send(command)
        return self.reply()

    def reply(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the connection was closed")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            raise RespError(rest.decode(errors="replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return self.bulk(int(rest))
        if kind == b"*":
            return None if rest == b"-1" else [self.reply() for _ in range(int(rest))]
        raise ConnectionError("not the Redis protocol: %r" % line[:80])

    def bulk(self, length):
        if length < 0:
            return None
        data = self.file.read(length + 2)
        if len(data) != length + 2 or not data.endswith(b"\r\n"):
            raise ConnectionError("a reply was cut off")
        return data[:-2]


def address(text):
    """host:port, taken apart."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
