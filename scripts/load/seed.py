"""Looks whether Redis holds keys that the load would write ("check": exit code 2 if so, they are somebody's), writes all of them
("write"), or removes them ("remove"). Arguments: host:port, then which.
"""

import sys

import resp
import values

# Commands in flight: few enough that neither side waits for the other with full buffers.
AT_ONCE = 100


def run(client, commands):
    """Yields the replies."""
    waiting = 0
    for command in commands:
        client.send(command)
        waiting += 1
        if waiting == AT_ONCE:
            for _ in range(waiting):
                yield client.reply()
            waiting = 0
    for _ in range(waiting):
        yield client.reply()


def keys():
    """All that the load may have left, by whatever part of it."""
    for count, name in [(values.HOT_KEYS, values.hot), (values.COLD_KEYS, values.cold),
                        (values.BENCH_KEYS, values.bench), (values.LARGE_KEYS, values.large),
                        (values.EXPIRING_KEYS, values.expiring), (values.CHANGING_KEYS, values.changing)]:
        for number in range(count):
            yield name(number)


def main():
    where, what = sys.argv[1:3]
    try:
        client = resp.Client(*resp.address(where))
        if what == "check":
            taken = sum(run(client, (["EXISTS", key] for key in keys())))
            if taken:
                print("scripts/load.sh: Redis at %s holds %d of the keys that the load would write, and remove in the end (%s...); if "
                      "nobody needs them, remove them" % (where, taken, values.PREFIX), file=sys.stderr)
                sys.exit(2)
            return
        commands = (["SET", key, value] for key, value in values.everything())
        for _ in run(client, commands if what == "write" else (["DEL", key] for key in keys())):
            pass
    except (OSError, resp.RespError) as error:
        print("scripts/load.sh: Redis at %s: %s" % (where, error), file=sys.stderr)
        sys.exit(2 if what == "check" else 1)


main()
