//! Tests of servers that the proxy cannot use. The log names the cause and the remedy.

use crate::common::certificates::{Authority, Identity};
use crate::common::resp::RespClient;
use crate::common::{FREE_PORT, Proxy, Redis, start_fake_redis, wait_for};
use std::io::{Read, Write};

/// A Redis that expects TLS closes the connection, and the log says that TLS is a possible reason.
#[test]
fn redis_with_tls_is_named() {
    let authority = Authority::create();
    let Identity { certificate, key } = authority.issue("redis", "DNS:localhost");
    let files = ["--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &certificate];
    let redis = Redis::start_with(&[&["--tls-port", FREE_PORT][..], &files].concat());
    // Over plain TCP, whatever REDIS_TRANSPORT selects.
    let proxy = Proxy::start_on_redis_port(redis.port_argument("--tls-port"), &[("REDIS_TLS", "off")]);
    proxy.wait_for_log("the server closed the connection before its first reply");
    proxy.wait_for_log("it may expect TLS (REDIS_TLS=on)");
    assert_eq!(proxy.get("/key/a").status, 503);
}

/// A server of another protocol is named with the beginning of its reply.
#[test]
fn server_of_another_protocol_is_named() {
    for (reply, expected) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            "not a Redis server - Parse: the server speaks another protocol than Redis (its reply begins with \"HTTP/1.1 \
             400 Bad Request\\r\\n\\r\\n\"); check the address of Redis (REDIS_HOST and REDIS_PORT, or REDIS_URL)",
        ),
        (b"\x15\x03\x01\x00\x02\x02\x46", "the server expects TLS; set REDIS_TLS=on"),
    ] {
        let (port, _) = start_fake_redis(move |stream| {
            let mut request = [0; 512];
            // Reads the request, because closing with unread input would reset the connection.
            let _ = stream.read(&mut request);
            let _ = stream.write_all(reply);
            let _ = stream.read(&mut request);
        });
        let proxy = Proxy::start_on_redis_port(port, &[]);
        proxy.wait_for_log(expected);
        assert_eq!(proxy.get("/key/a").status, 502);
    }
}

/// A password for a Redis without one is refused, and the log says which of the two to change.
#[test]
fn superfluous_password_is_named() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_PASSWORD", "word")]);
    proxy.wait_for_log("Redis has no password: configure none here, or set requirepass in Redis");
}

/// A redirection to another node of a cluster becomes an error that explains itself. A client
/// library would follow `MOVED`, past the proxy.
#[test]
fn cluster_redirection_is_explained() {
    let directory = std::env::temp_dir();
    let nodes: Vec<Redis> = (0..2)
        .map(|number| {
            let state = directory.join(format!("segment-nodes-{}-{number}.conf", std::process::id()));
            let state = state.to_str().expect("a path in UTF-8").to_owned();
            let _ = std::fs::remove_file(&state);
            let node = ["--cluster-enabled", "yes", "--cluster-port", FREE_PORT, "--cluster-config-file", &state];
            Redis::start_with(&node)
        })
        .collect();
    let call = |node: usize, words: &[&str]| {
        let command = words.iter().skip(1).fold(redis::cmd(words[0]), |mut command, word| command.arg(word).to_owned());
        command.query::<redis::Value>(&mut nodes[node].connect())
    };
    let bus_port = |node: usize| match call(node, &["CONFIG", "GET", "cluster-port"]) {
        Ok(redis::Value::Array(pair)) => redis::from_redis_value::<String>(pair[1].clone()).expect("a port"),
        other => panic!("{other:?}"),
    };
    let (port, bus) = (nodes[1].port.to_string(), bus_port(1));
    call(0, &["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).expect("the nodes meet");
    call(0, &["CLUSTER", "ADDSLOTSRANGE", "0", "8191"]).expect("slots are free");
    call(1, &["CLUSTER", "ADDSLOTSRANGE", "8192", "16383"]).expect("slots are free");
    // Slot 15495 and slot 3300.
    wait_for("the cluster works", || call(1, &["SET", "a", "value"]).ok());
    wait_for("the cluster works", || call(0, &["SET", "b", "value"]).ok());
    let proxy = Proxy::start(&nodes[0], &[]);
    assert_eq!(proxy.get("/raw/b").text(), "value");
    let response = proxy.get("/raw/a");
    assert!(response.status == 502 && response.text().contains("Redis is a node of a cluster"), "{response:?}");
    let reply = RespClient::connect(proxy.address).call_text("GET a");
    assert!(reply.starts_with("-ERR Redis is a node of a cluster, and another node has this key"), "{reply}");
    proxy.wait_for_log("is a node of a cluster: keys of other nodes cannot be read; set REDIS_MODE=cluster");
    for number in 0..2 {
        let state = directory.join(format!("segment-nodes-{}-{number}.conf", std::process::id()));
        std::fs::remove_file(state).expect("the file of the cluster's state");
    }
}
