"""redis-py against the proxy, in one version of the protocol. Arguments: port, version.

The keys are those that tests/e2e_protocol/clients.rs has put into Redis: key0 to key999, of which every tenth is missing; binary
ones; a list. Says "ok" at the end.
"""

import sys

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

port, version = int(sys.argv[1]), int(sys.argv[2])
options = dict(host="127.0.0.1", port=port, protocol=version, client_name="the-tests")
client = redis.Redis(**options)


def value(number):
    return None if number % 10 == 0 else b"value %d" % number


def refused(call, error, text):
    try:
        call()
    except error as what:
        assert text in str(what), what
    else:
        raise AssertionError(f"{text} was expected")


# Connecting, and what libraries say then.
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
refused(lambda: client.select(1), redis.ResponseError, "only database 0 is served")

# Single keys, from Redis and from memory.
for _ in range(2):
    for number in (1, 2, 10):
        assert client.get(f"key{number}") == value(number)
    assert client.strlen("key1") == 7 and client.strlen("key10") == 0
    assert client.getrange("key1", 0, 4) == b"value"
    assert client.exists("key1", "key2", "key10", "key1") == 3
    for key in (b"\0\xff\r\n", bytes(range(256))):
        assert client.get(key) == key[::-1], key
    assert client.get(b"long") == b"0123456789" * 100_000

# Many at a time: half of them in memory already, some missing, some twice.
numbers = [number % 250 for number in range(500)]
client.mget([f"key{number}" for number in range(100)])
for _ in range(2):
    assert client.mget([f"key{number}" for number in numbers]) == [value(number) for number in numbers]

# Pipelines, with errors among the replies.
pipeline = client.pipeline(transaction=False)
for number in range(1000):
    pipeline.get(f"key{number}")
assert pipeline.execute() == [value(number) for number in range(1000)]
for _ in range(250):
    pipeline.get("key1").get("list").mget("key2", "key10", "list").set("key1", "new")
replies = pipeline.execute(raise_on_error=False)
assert replies[0::4] == [value(1)] * 250
assert replies[2::4] == [[value(2), None, None]] * 250
assert all("WRONGTYPE" in str(reply) or "wrong kind" in str(reply) for reply in replies[1::4]), replies[1]
assert all("read-only" in str(reply) for reply in replies[3::4]), replies[3]

# What is not offered.
refused(lambda: client.set("key1", "new"), redis.ResponseError, "this proxy is read-only")
refused(lambda: client.get("list"), redis.ResponseError, "wrong kind of value")
refused(lambda: client.pipeline().get("key1").execute(), redis.ResponseError, "transactions are not supported")
assert client.get("key1") == value(1)

# The password of the Redis behind, and a user that it may know.
assert redis.Redis(**options, password="any").ping() is True
assert redis.Redis(**options, username="somebody", password="any").ping() is True

# Another connection when the present one has ended.
client = redis.Redis(**options, retry=Retry(NoBackoff(), 1), single_connection_client=True)
client.execute_command("QUIT")
assert client.get("key2") == value(2)
print("ok")
