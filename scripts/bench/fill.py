"""Writes the keys of the cases to a Redis, and reads all of them from a server.

Ten million keys take seconds here: a script writes them within Redis, and replies are compared as
whole blocks of bytes.
"""

import cases
import resp
from servers import Failed

# Keys that one call of the script writes. Redis serves nothing else meanwhile, for about 10 ms.
KEYS_PER_CALL = 10_000
# Arguments: format of a key, the first number, the last number, the length of a value.
SCRIPT = """
local length = tonumber(ARGV[4])
local padding = ' ' .. string.rep('x', length)
for number = tonumber(ARGV[2]), tonumber(ARGV[3]) do
    local key = string.format(ARGV[1], number)
    redis.call('SET', key, string.sub(key .. padding, 1, length))
end
return 'OK'
"""

# Keys in one MGET. Every number of keys is a multiple of it. The digits of a key are those of its
# batch, then DIGITS that repeat in every batch.
BATCH, DIGITS = 1000, 3
# MGETs in flight, so that a proxy decodes one while it waits for Redis to answer another.
IN_FLIGHT = 4


def write_keys(client, key_format, count):
    """Writes keys with the numbers below `count`."""
    for start in range(0, count, KEYS_PER_CALL):
        last = min(start + KEYS_PER_CALL, count) - 1
        if client.call("EVAL", SCRIPT, 0, key_format, start, last, cases.LENGTH) != b"OK":
            raise Failed("Redis did not write %s keys" % key_format)


def write_backing_keys(client):
    """Writes the keys of all cases that share the Redis behind the caches."""
    write_keys(client, "hot:%012d", cases.HALF_CACHED_KEYS)
    write_keys(client, "cold:%d", cases.COLD_KEYS)
    for case in cases.CASES:
        if case.length != cases.LENGTH:
            key = cases.choose_key(case)
            client.call("SET", key, cases.make_value(key, case.length))


def make_batch_marker(number):
    """Returns the bytes that all keys of a batch share, and those of no other batch contain."""
    return cases.make_hot_key(number * BATCH).encode()[:-DIGITS]


def read_keys(server, count):
    """Reads all hot keys in order and compares their values.

    A cache holds the keys afterwards. Redis and Valkey have moved all keys to their larger hash
    table afterwards, because each read moves a part.
    """
    keys = [cases.make_hot_key(number) for number in range(BATCH)]
    values = [cases.make_value(key, cases.LENGTH) for key in keys]
    request = ("*%d\r\n$4\r\nMGET\r\n" % (1 + BATCH) +
               "".join("$%d\r\n%s\r\n" % (len(key), key) for key in keys)).encode()
    head = b"*%d\r\n" % BATCH
    reply = "".join("$%d\r\n%s\r\n" % (len(value), value) for value in values).encode()
    first, batches = make_batch_marker(0), count // BATCH
    client = resp.Client("127.0.0.1", server.port)
    for number in range(batches + IN_FLIGHT):
        if number < batches:
            client.socket.sendall(request.replace(first, make_batch_marker(number)))
        done = number - IN_FLIGHT
        if done >= 0:
            line = client.file.readline()
            expected = reply.replace(first, make_batch_marker(done))
            if line != head or client.file.read(len(expected)) != expected:
                raise Failed("%s answers %r..., or other values, for the keys from %s" % (
                    server.name, line[:100], cases.make_hot_key(done * BATCH)))
    client.close()
