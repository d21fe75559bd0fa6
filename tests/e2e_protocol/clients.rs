//! Client libraries against the real binary, as people use them: redis-py, and the `redis` crate. In both versions of the
//! protocol: connecting, pipelines, several keys at a time, bytes, errors, reconnecting.

use crate::common::{Proxy, Redis, wait_for};
use redis::{Commands, ProtocolVersion, RedisResult, ServerErrorKind};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

fn value(number: usize) -> Option<String> {
    (!number.is_multiple_of(10)).then(|| format!("value {number}"))
}

/// What tests/e2e_protocol/clients.py expects too.
fn filled() -> Redis {
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

#[test]
fn redis_py_works() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python/bin/python");
    assert!(python.exists(), "redis-py is not there: scripts/test.sh installs it into target/python");
    let redis = filled();
    for version in ["2", "3"] {
        let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e_protocol/clients.py");
        let port = proxy.address.port().to_string();
        let output = Command::new(&python).args([script, &port, version]).output().expect("python starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "RESP{version}: {error}");
    }
}

fn client(proxy: &Proxy, version: ProtocolVersion, options: &str) -> redis::Client {
    let version = if version == ProtocolVersion::RESP3 { "3" } else { "2" };
    let url = format!("redis://{options}{}/0?protocol=resp{version}", proxy.address);
    redis::Client::open(url).expect("a good address")
}

#[test]
fn the_redis_crate_works() {
    let redis = filled();
    for version in [ProtocolVersion::RESP2, ProtocolVersion::RESP3] {
        let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
        let mut connection = client(&proxy, version, "").get_connection().expect("it connects");
        for number in [1, 2, 10, 1, 10] {
            assert_eq!(connection.get(format!("key{number}")), Ok(value(number)));
        }
        let bytes: Vec<u8> = (0..=255).collect();
        let backwards: Vec<u8> = bytes.iter().rev().copied().collect();
        assert_eq!(connection.get(&bytes), Ok(backwards));
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
        let wrong: RedisResult<String> = connection.get("list");
        assert_eq!(wrong.expect_err("a list").code(), Some("WRONGTYPE"));
        assert_eq!(connection.get("key1"), Ok(value(1)), "the connection goes on");

        let port = proxy.address.port().to_string();
        assert_eq!(proxy.stop("TERM"), Some(0));
        let lost: RedisResult<String> = connection.get("key1");
        assert!(lost.expect_err("it is gone").is_connection_dropped());
        let proxy = Proxy::start(&redis, &[("PROXY_PORT", &port)]);
        let mut connection = client(&proxy, version, "default:any@").get_connection().expect("it connects again");
        assert_eq!(connection.get("key2"), Ok(value(2)));
    }
}

#[test]
fn libraries_take_the_error_for_one_to_try_again_after() {
    let mut redis = filled();
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "300")]);
    let mut connection = client(&proxy, ProtocolVersion::RESP3, "").get_connection().expect("it connects");
    assert_eq!(connection.get("key1"), Ok(value(1)));
    redis.kill();
    let error = RedisResult::<String>::expect_err(connection.get("key2"), "Redis is away");
    assert_eq!(error.kind(), redis::ErrorKind::Server(ServerErrorKind::BusyLoading), "{error}");
    assert_eq!(connection.get("key1"), Ok(value(1)), "what is cached is served");
    redis.restart();
    redis.set("key2", "value 2");
    let found = wait_for("Redis is found again", || {
        std::thread::sleep(Duration::from_millis(20));
        RedisResult::<Option<String>>::ok(connection.get("key2"))
    });
    assert_eq!(found, value(2));
}
