"""Writes all keys of the load into Redis, or removes them. Arguments: host:port, then "write" or "remove"."""

import sys

import resp
import values

# Commands in flight: few enough that neither side waits for the other with full buffers.
AT_ONCE = 100


def run(client, commands):
    waiting = 0
    for command in commands:
        client.send(command)
        waiting += 1
        if waiting == AT_ONCE:
            for _ in range(waiting):
                client.reply()
            waiting = 0
    for _ in range(waiting):
        client.reply()


def keys():
    """All that the load may have left, by whatever part of it."""
    for count, name in [(values.HOT_KEYS, values.hot), (values.COLD_KEYS, values.cold),
                        (values.BENCH_KEYS, values.bench), (values.LARGE_KEYS, values.large),
                        (values.EXPIRING_KEYS, values.expiring)]:
        for number in range(count):
            yield name(number)


def main():
    try:
        client = resp.Client(*resp.address(sys.argv[1]))
        if sys.argv[2] == "write":
            run(client, (["SET", key, value] for key, value in values.everything()))
        else:
            run(client, (["DEL", key] for key in keys()))
    except (OSError, resp.RespError) as error:
        sys.exit("scripts/load.sh: Redis at %s: %s" % (sys.argv[1], error))


main()
