"""Keys that the soak test requests, and the values that they have in Redis.

Each value contains its key and can be computed from it. Every client can therefore compare whole
values without knowing what Redis holds. wrk.lua makes the same keys and values; keep both in step.
"""

# Prefix of every key, so that the load cannot overwrite other keys of the same Redis.
PREFIX = "load:"
# Few enough to stay in the cache beside everything else that passes through it.
HOT_KEYS = 32
# Ten times CACHE_SIZE in load.sh.
COLD_KEYS = 20_000
# Requested by redis-benchmark and by check_values.py.
BENCH_KEYS = 5_000
LARGE_KEYS = 16
EXPIRING_KEYS = 64
# Few enough to be read so often that they stay in the cache.
CHANGING_KEYS = 16
# Keys that Redis never holds.
MISSING_KEYS = 1_000

MIN_LARGE_BYTES = 64 * 1024
MAX_LARGE_BYTES = 1024 * 1024

# Time to live of an expiring key, in milliseconds.
MIN_TTL_MS = 50
MAX_TTL_MS = 2_000

# Milliseconds after its expiry at which a value may still answer a request sent at that time. The
# request may join a fetch that Redis answered just before the expiry. The value is then late by one
# round trip, which spans many scheduler turns while all processors are busy. A proxy that kept
# values for CACHE_TTL (3 s) regardless of their expiry would exceed this up to sixfold.
STALE_TOLERANCE_MS = 500


def compute_checksum(name):
    """Returns the checksum of a name. Every product is exact in Lua's floating point numbers."""
    result = 7
    for byte in name.encode():
        result = (result * 31 + byte) % 4294967291
    return result


def make_value(name, length=None):
    """Returns the name, its checksum and padding.

    Every eight bytes of the padding differ, so a misplaced piece of a value is detected.
    """
    seed = compute_checksum(name)
    if length is None:
        length = 40 + seed % 1000
    parts = ["%s:%08x:" % (name, seed)]
    blocks = max(0, length - len(parts[0]) + 7) // 8
    parts.extend("%08x" % ((seed + block * 2654435761) % 4294967296) for block in range(blocks))
    text = "".join(parts)
    return text[:max(length, len(parts[0]))].encode()


def make_key(kind, number):
    """Returns a key of one kind: hot, cold, bench, large, expiring, changing or missing."""
    # redis-benchmark writes its random numbers with twelve digits.
    return ("%s%s:%012d" if kind == "bench" else "%s%s:%d") % (PREFIX, kind, number)


def compute_large_length(number):
    """Returns the length of a large value; lengths are spread evenly between the two bounds."""
    return MIN_LARGE_BYTES + number * (MAX_LARGE_BYTES - MIN_LARGE_BYTES) // (LARGE_KEYS - 1)


def make_numbered_value(key, number):
    """Returns one of the successive values of a key.

    For an expiring key the number is the time of its expiry, in milliseconds since the epoch.
    """
    return make_value("%s:%d" % (key, number))


def parse_number(key, found):
    """Returns the number in a value, or None if the key never had this value."""
    head = key.encode() + b":"
    digits = found[len(head):].split(b":", 1)[0]
    if not found.startswith(head) or not digits.isdigit():
        return None
    number = int(digits)
    return number if make_numbered_value(key, number) == found else None


def compute_lateness_ms(key, found, sent_ms):
    """Returns the time from a value's expiry to the request that it answered, sent at `sent_ms`.

    Negative if the value had not expired; None if the key never had this value.
    """
    expiry_ms = parse_number(key, found)
    return None if expiry_ms is None else sent_ms - expiry_ms


def list_entries():
    """Yields key and value of everything that Redis holds before the load starts."""
    for kind, count in [("hot", HOT_KEYS), ("cold", COLD_KEYS), ("bench", BENCH_KEYS)]:
        for number in range(count):
            key = make_key(kind, number)
            yield key, make_value(key)
    for number in range(LARGE_KEYS):
        key = make_key("large", number)
        yield key, make_value(key, compute_large_length(number))
