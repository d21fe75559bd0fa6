//! Tests with the client libraries redis-py and the `redis` crate, over RESP2 and RESP3.
//!
//! They cover connection setup, pipelines, multiple keys, binary values, errors and reconnects.

use crate::common::{Proxy, Redis, wait_for};
use redis::{Commands, ProtocolVersion, RedisResult, ServerErrorKind};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Returns the value of a numbered key, or `None` for a missing key.
fn value(number: usize) -> Option<String> {
    (!number.is_multiple_of(10)).then(|| format!("value {number}"))
}

/// Starts a Redis with the keys that tests/e2e_protocol/clients.py expects, too.
fn start_redis() -> Redis {
    let redis = Redis::start();
    let mut connection = redis.connect();
    for number in 0..1000 {
        if let Some(value) = value(number) {
            () = connection.set(format!("key{number}"), value).expect("SET works");
        }
    }
    for key in [b"\0\xff\r\n".to_vec(), (0..=255).collect()] {
        let value: Vec<u8> = key.iter().rev().copied().collect();
        () = connection.set(key, value).expect("SET works");
    }
    () = connection.set("long", "0123456789".repeat(100_000)).expect("SET works");
    () = connection.rpush("list", "x").expect("RPUSH works");
    redis
}

/// redis-py gets correct values and errors from the proxy.
#[test]
fn redis_py_works() {
    let python = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("python").join("bin/python");
    assert!(python.exists(), "redis-py is missing: scripts/test.sh installs it into Cargo's target directory");
    let redis = start_redis();
    for version in ["2", "3"] {
        let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e_protocol/clients.py");
        let port = proxy.address.port().to_string();
        let output = Command::new(&python).args([script, &port, version]).output().expect("python starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "RESP{version}: {error}");
    }
}

fn open_client(proxy: &Proxy, version: ProtocolVersion, options: &str) -> redis::Client {
    let version = if version == ProtocolVersion::RESP3 { "3" } else { "2" };
    let url = format!("redis://{options}{}/0?protocol=resp{version}", proxy.address);
    redis::Client::open(url).expect("a good address")
}

/// The `redis` crate gets correct values and errors, and reconnects after a restart.
#[test]
fn redis_crate_works() {
    let redis = start_redis();
    for version in [ProtocolVersion::RESP2, ProtocolVersion::RESP3] {
        let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
        let mut connection = open_client(&proxy, version, "").get_connection().expect("it connects");
        for number in [1, 2, 10, 1, 10] {
            assert_eq!(connection.get(format!("key{number}")), Ok(value(number)));
        }
        let bytes: Vec<u8> = (0..=255).collect();
        let reversed: Vec<u8> = bytes.iter().rev().copied().collect();
        assert_eq!(connection.get(&bytes), Ok(reversed));
        assert_eq!(connection.exists(&["key1", "key10", "list", "key1"][..]), Ok(3));
        assert_eq!(connection.getrange("long", 999_998, -1), Ok("89".to_owned()));

        let keys = |numbers: &[usize]| numbers.iter().map(|number| format!("key{number}")).collect::<Vec<_>>();
        let numbers: Vec<usize> = (0..500).map(|number| number % 250).collect();
        let _: Vec<Option<String>> = connection.mget(keys(&(0..100).collect::<Vec<_>>())).expect("MGET works");
        for _ in 0..2 {
            let expected: Vec<_> = numbers.iter().map(|&number| value(number)).collect();
            assert_eq!(connection.mget(keys(&numbers)), Ok(expected));
        }

        let mut pipeline = redis::pipe();
        (0..1000).for_each(|number| _ = pipeline.get(format!("key{number}")));
        assert_eq!(pipeline.query(&mut connection), Ok((0..1000).map(value).collect::<Vec<_>>()));

        let refused: RedisResult<()> = connection.set("key1", "new");
        assert!(refused.expect_err("read-only").to_string().contains("this proxy is read-only"));
        let wrong_type: RedisResult<String> = connection.get("list");
        assert_eq!(wrong_type.expect_err("a list").code(), Some("WRONGTYPE"));
        assert_eq!(connection.get("key1"), Ok(value(1)), "the connection stays usable");

        let port = proxy.address.port().to_string();
        assert_eq!(proxy.stop("TERM"), Some(0));
        let lost: RedisResult<String> = connection.get("key1");
        assert!(lost.expect_err("the proxy exited").is_connection_dropped());
        let proxy = Proxy::start(&redis, &[("PROXY_PORT", &port)]);
        let mut connection = open_client(&proxy, version, "default:any@").get_connection().expect("it reconnects");
        assert_eq!(connection.get("key2"), Ok(value(2)));
    }
}

/// The error for an unreachable Redis is of a kind that client libraries retry.
#[test]
fn unreachable_redis_error_is_retryable() {
    let mut redis = start_redis();
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "300")]);
    let mut connection = open_client(&proxy, ProtocolVersion::RESP3, "").get_connection().expect("it connects");
    assert_eq!(connection.get("key1"), Ok(value(1)));
    redis.kill();
    let error = RedisResult::<String>::expect_err(connection.get("key2"), "Redis is unreachable");
    assert_eq!(error.kind(), redis::ErrorKind::Server(ServerErrorKind::BusyLoading), "{error}");
    assert_eq!(connection.get("key1"), Ok(value(1)), "a cached value is served");
    redis.restart();
    redis.set("key2", "value 2");
    let found = wait_for("the proxy reconnects to Redis", || {
        std::thread::sleep(Duration::from_millis(20));
        RedisResult::<Option<String>>::ok(connection.get("key2"))
    });
    assert_eq!(found, value(2));
}
