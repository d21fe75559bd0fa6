"""Test of the proxy with redis-py over TLS, in one version of the protocol.

    clients.py PORT VERSION CA

tests/e2e_tls/clients.rs has written the keys to Redis: key0 to key199 without every tenth, and a
long value. Prints "ok" at the end.
"""

import sys

import redis

port, version, ca = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
options = dict(host="127.0.0.1", port=port, protocol=version, ssl=True, ssl_ca_certs=ca)
client = redis.Redis(**options)


def get_value(number):
    """Returns the value of a numbered key, or None for a missing key."""
    return None if number % 10 == 0 else b"value %d" % number


expected = [get_value(number) for number in range(200)]
keys = [f"key{number}" for number in range(200)]
for _ in range(2):
    assert client.mget(keys) == expected
    assert [client.get(key) for key in keys] == expected
    pipeline = client.pipeline(transaction=False)
    for key in keys * 20:
        pipeline.get(key)
    assert pipeline.execute() == expected * 20
    assert client.get("long") == b"0123456789" * 100_000
try:
    client.set("key1", "new")
except redis.ResponseError as error:
    assert "read-only" in str(error), error
else:
    raise AssertionError("SET was accepted")
try:
    redis.Redis(host="127.0.0.1", port=port, ssl=True).ping()
except redis.ConnectionError as error:
    assert "CERTIFICATE_VERIFY_FAILED" in str(error), error
else:
    raise AssertionError("an unknown authority was accepted")
print("ok")
