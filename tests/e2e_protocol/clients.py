"""Test of the proxy with redis-py, in one version of the protocol.

    clients.py PORT VERSION

tests/e2e_protocol/clients.rs has written the keys to Redis: key0 to key999 without every tenth, two
binary keys, a long value and a list. Prints "ok" at the end.
"""

import sys

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

port, version = int(sys.argv[1]), int(sys.argv[2])
options = dict(host="127.0.0.1", port=port, protocol=version, client_name="the-tests")
client = redis.Redis(**options)


def get_value(number):
    """Returns the value of a numbered key, or None for a missing key."""
    return None if number % 10 == 0 else b"value %d" % number


def assert_refused(call, error, text):
    """Fails unless a call raises this error with this text."""
    try:
        call()
    except error as raised:
        assert text in str(raised), raised
    else:
        raise AssertionError(f"no error with the text: {text}")


# Commands that libraries send when they connect.
assert client.ping() is True
assert client.client_getname() in ("the-tests", b"the-tests")
assert client.client_id() > 0
assert client.echo("text") == b"text"
assert client.info("server")["server_name"] == "segment-redis-proxy"
info = client.info()
assert (info["arch_bits"], info["cluster_enabled"], info["loading"]) == (64, 0, 0), info
assert info["redis_version"].startswith("7.") and info["used_memory"] > 2**20, info
assert info["blocked_clients"] == 0 and info["total_commands_processed"] > 0, info
assert set(client.info("cluster")) == {"cluster_enabled"}
assert client.command_getkeys("MGET", "a", "b") in (["a", "b"], [b"a", b"b"])
assert {"get", b"get"} & set(client.command_list())
assert client.config_get("maxmemory") == {}
assert "get" in client.command()
assert client.select(0)
assert_refused(lambda: client.select(1), redis.ResponseError, "serves only database 0")

# Single keys: first from Redis, then from the cache.
for _ in range(2):
    for number in (1, 2, 10):
        assert client.get(f"key{number}") == get_value(number)
    assert client.strlen("key1") == 7 and client.strlen("key10") == 0
    assert client.getrange("key1", 0, 4) == b"value"
    assert client.exists("key1", "key2", "key10", "key1") == 3
    for key in (b"\0\xff\r\n", bytes(range(256))):
        assert client.get(key) == key[::-1], key
    assert client.get(b"long") == b"0123456789" * 100_000

# Many keys in one MGET: some cached already, some missing, each twice.
numbers = [number % 250 for number in range(500)]
client.mget([f"key{number}" for number in range(100)])
for _ in range(2):
    assert client.mget([f"key{number}" for number in numbers]) == [get_value(number) for number in numbers]

# Pipelines, with errors among the replies.
pipeline = client.pipeline(transaction=False)
for number in range(1000):
    pipeline.get(f"key{number}")
assert pipeline.execute() == [get_value(number) for number in range(1000)]
for _ in range(250):
    pipeline.get("key1").get("list").mget("key2", "key10", "list").set("key1", "new")
replies = pipeline.execute(raise_on_error=False)
assert replies[0::4] == [get_value(1)] * 250
assert replies[2::4] == [[get_value(2), None, None]] * 250
assert all("WRONGTYPE" in str(reply) or "wrong kind" in str(reply) for reply in replies[1::4]), replies[1]
assert all("read-only" in str(reply) for reply in replies[3::4]), replies[3]

# Commands that the proxy refuses.
assert_refused(lambda: client.set("key1", "new"), redis.ResponseError, "this proxy is read-only")
assert_refused(lambda: client.get("list"), redis.ResponseError, "wrong kind of value")
assert_refused(lambda: client.pipeline().get("key1").execute(), redis.ResponseError, "transactions are not supported")
assert client.get("key1") == get_value(1)

# Any password and any user: the proxy does not authenticate clients.
assert redis.Redis(**options, password="any").ping() is True
assert redis.Redis(**options, username="somebody", password="any").ping() is True

# Reconnect after the connection has closed.
client = redis.Redis(**options, retry=Retry(NoBackoff(), 1), single_connection_client=True)
client.execute_command("QUIT")
assert client.get("key2") == get_value(2)
print("ok")
