"""What the load asks for: the keys, and the values they have in Redis.

Every value names its key and can be computed from it, here and in wrk.lua, which must stay the same: so every client
can compare whole values without being told what is in Redis.
"""

# Before every key, so that a Redis that is also used otherwise keeps what it has.
PREFIX = "load:"
# Few enough to stay in the cache, beside everything else that passes through it.
HOT_KEYS = 32
# Ten times what CACHE_SIZE in load.sh holds.
COLD_KEYS = 20_000
# For redis-benchmark, and for the RESP checker too.
BENCH_KEYS = 5_000
LARGE_KEYS = 16
EXPIRING_KEYS = 64
# Few enough to be asked for so often that they stay in the cache.
CHANGING_KEYS = 16
# Keys that Redis never holds.
MISSING_KEYS = 1_000

SMALLEST_LARGE = 64 * 1024
LARGEST = 1024 * 1024

# Milliseconds for which an expiring key lives.
SHORTEST_LIFE = 50
LONGEST_LIFE = 2_000

# Milliseconds after its expiry at which a value may still be the answer to a request that was sent then. A request may
# join a read that is under way, and Redis may have answered that read just before the expiry; so the value is older by
# what a round trip takes, and on a machine whose processors are all busy that is many turns of the scheduler. A proxy
# that kept values for CACHE_TTL (3 s) in spite of their expiry would be late by up to six times as much.
STALE_TOLERANCE = 500


def checksum(name):
    """Of a name: every product stays exact in the floating point numbers of Lua."""
    result = 7
    for byte in name.encode():
        result = (result * 31 + byte) % 4294967291
    return result


def value(name, length=None):
    """The name, its checksum, and padding in which every eight bytes differ, so that no piece can stand for another."""
    seed = checksum(name)
    if length is None:
        length = 40 + seed % 1000
    parts = ["%s:%08x:" % (name, seed)]
    blocks = max(0, length - len(parts[0]) + 7) // 8
    parts.extend("%08x" % ((seed + block * 2654435761) % 4294967296) for block in range(blocks))
    text = "".join(parts)
    return text[:max(length, len(parts[0]))].encode()


def hot(number):
    return "%shot:%d" % (PREFIX, number)


def cold(number):
    return "%scold:%d" % (PREFIX, number)


def bench(number):
    """redis-benchmark puts its random numbers as twelve digits."""
    return "%sbench:%012d" % (PREFIX, number)


def large(number):
    return "%slarge:%d" % (PREFIX, number)


def expiring(number):
    return "%sexpiring:%d" % (PREFIX, number)


def changing(number):
    return "%schanging:%d" % (PREFIX, number)


def missing(number):
    return "%smissing:%d" % (PREFIX, number)


def large_length(number):
    return SMALLEST_LARGE + number * (LARGEST - SMALLEST_LARGE) // (LARGE_KEYS - 1)


def numbered(key, number):
    """The value of a key that has several in turn: of one that expires, with the moment at which it does, in milliseconds of
    the epoch."""
    return value("%s:%d" % (key, number))


def number_of(key, found):
    """The number that a value was made with; None if the key has never had it."""
    head = key.encode() + b":"
    digits = found[len(head):].split(b":", 1)[0]
    if not found.startswith(head) or not digits.isdigit():
        return None
    number = int(digits)
    return number if numbered(key, number) == found else None


def lateness(key, found, asked):
    """How many milliseconds after its expiry a value was still the answer to a request sent at `asked`; negative if it
    had not expired. None if the value is not one that this key ever had."""
    expiry = number_of(key, found)
    return None if expiry is None else asked - expiry


def everything():
    """Key and value of all that is in Redis before the load begins."""
    for number in range(HOT_KEYS):
        yield hot(number), value(hot(number))
    for number in range(COLD_KEYS):
        yield cold(number), value(cold(number))
    for number in range(BENCH_KEYS):
        yield bench(number), value(bench(number))
    for number in range(LARGE_KEYS):
        yield large(number), value(large(number), large_length(number))
