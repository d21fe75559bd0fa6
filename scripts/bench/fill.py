"""Writes the keys of the cases to a Redis, and reads all of them from a server.

Ten million keys take seconds here: they are sent in batches of a thousand, and each batch is a copy
of the first in which the leading digits are replaced.
"""

import cases
from resp import Client, encode_command
from servers import Failed

# Keys in one command. Every number of hot keys is a multiple of it. The digits of a key are those
# of its batch, then DIGITS that repeat in every batch.
BATCH, DIGITS = 1000, 3
# Commands in flight, so that a proxy decodes one while it waits for Redis to answer another.
IN_FLIGHT = 4

KEYS = [cases.make_hot_key(number) for number in range(BATCH)]
VALUES = [cases.make_value(key, cases.LENGTH) for key in KEYS]
# Commands for the first batch. The reply to MGET has the format of a command.
WRITE = encode_command("MSET", *[argument for pair in zip(KEYS, VALUES) for argument in pair])
READ, VALUES_REPLY = encode_command("MGET", *KEYS), encode_command(*VALUES)


def make_marker(number):
    """Returns the bytes that the keys of a batch begin with."""
    return cases.make_hot_key(number * BATCH).encode()[:-DIGITS]


def run_batches(server, count, request, reply):
    """Sends the request of each batch, and fails unless the reply is that of the same batch."""
    client, batches, first = Client("127.0.0.1", server.port), count // BATCH, make_marker(0)
    for number in range(batches + IN_FLIGHT):
        if number < batches:
            client.socket.sendall(request.replace(first, make_marker(number)))
        if number >= IN_FLIGHT:
            expected = reply.replace(first, make_marker(number - IN_FLIGHT))
            # An error reply is one short line.
            line = client.file.readline()
            if not expected.startswith(line) or line + client.file.read(len(expected) - len(line)) != expected:
                raise Failed("%s answers %r or wrong values for the keys from %s" % (
                    server.name, line[:100], cases.make_hot_key((number - IN_FLIGHT) * BATCH)))
    client.close()


def write_keys(server, count):
    """Writes hot keys with the numbers below `count` to a Redis or Valkey."""
    run_batches(server, count, WRITE, b"+OK\r\n")


def read_keys(server, count):
    """Reads the same keys in order and compares their values.

    A cache holds the keys afterwards. Redis and Valkey have moved all keys to their larger hash
    table afterwards, because each read moves a part.
    """
    run_batches(server, count, READ, VALUES_REPLY)


def write_backing_keys(server):
    """Writes the keys of all cases that share the Redis behind the caches."""
    write_keys(server, cases.HALF_CACHED_KEYS)
    client = Client("127.0.0.1", server.port)
    lengths = {cases.make_cold_key(number): cases.LENGTH for number in range(cases.COLD_KEYS)}
    lengths.update({cases.choose_key(case): case.length for case in cases.CASES if case.length != cases.LENGTH})
    client.call("MSET", *[text for key, length in lengths.items() for text in (key, cases.make_value(key, length))])
    client.close()
