"""Checks for, writes or removes the keys of the soak test in Redis.

    seed.py HOST:PORT check     exits with 2 if Redis already holds such keys
    seed.py HOST:PORT write     writes all of them
    seed.py HOST:PORT remove    removes all of them
"""

import sys

import keyspace
import resp

# Commands in flight: few enough that neither side blocks on full buffers.
MAX_IN_FLIGHT = 100


def run_commands(client, commands):
    """Sends all commands and yields their replies."""
    pending = 0
    for command in commands:
        client.send(command)
        pending += 1
        if pending == MAX_IN_FLIGHT:
            for _ in range(pending):
                yield client.read_reply()
            pending = 0
    for _ in range(pending):
        yield client.read_reply()


def list_keys():
    """Yields every key that any process of the load may have written."""
    for kind, count in [("hot", keyspace.HOT_KEYS), ("cold", keyspace.COLD_KEYS), ("bench", keyspace.BENCH_KEYS),
                        ("large", keyspace.LARGE_KEYS), ("expiring", keyspace.EXPIRING_KEYS),
                        ("changing", keyspace.CHANGING_KEYS)]:
        for number in range(count):
            yield keyspace.make_key(kind, number)


def main():
    """Runs the action that the arguments name."""
    address, action = sys.argv[1:3]
    try:
        client = resp.Client(*resp.parse_address(address))
        if action == "check":
            taken = sum(run_commands(client, (["EXISTS", key] for key in list_keys())))
            if taken:
                print("scripts/load.sh: Redis at %s holds %d keys (%s...) that the load would overwrite and remove; "
                      "remove them if they are not needed" % (address, taken, keyspace.PREFIX), file=sys.stderr)
                sys.exit(2)
            return
        commands = (["SET", key, value] for key, value in keyspace.list_entries())
        for _ in run_commands(client, commands if action == "write" else (["DEL", key] for key in list_keys())):
            pass
    except (OSError, resp.RespError) as error:
        print("scripts/load.sh: Redis at %s: %s" % (address, error), file=sys.stderr)
        sys.exit(2 if action == "check" else 1)


main()
