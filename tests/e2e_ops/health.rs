//! Tests of `/readyz`, `/healthz` and `segment-redis-proxy healthcheck` while Redis or an event
//! loop fails.

use crate::common::admin::{get_readiness, read_metric, run_healthcheck, wait_until_not_ready, wait_until_ready};
use crate::common::relay::{Purpose, Relay};
use crate::common::testbed::{Route, Testbed};
use crate::common::{Proxy, Redis, wait_for};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Readiness follows Redis without any traffic, and reports the reason of a failure.
#[test]
fn readiness_follows_redis_without_traffic() {
    let mut redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "300")]);
    assert!(
        wait_until_ready(&proxy).contains("\"reason\":null,\"freshness\":\"changes visible within CACHE_TTL=15 s;")
    );
    redis.kill();
    wait_until_not_ready(&proxy, &format!("cannot connect to Redis at 127.0.0.1:{}", redis.port));
    redis.restart();
    wait_until_ready(&proxy);
    redis.freeze();
    wait_until_not_ready(&proxy, &format!("Redis at 127.0.0.1:{}", redis.port));
    redis.thaw();
    wait_until_ready(&proxy);
    redis.run(&["CONFIG", "SET", "requirepass", "secret"]);
    redis.kill();
    redis.restart_with(&["--requirepass", "secret"]);
    wait_until_not_ready(&proxy, "NOAUTH");
    assert_eq!((read_metric(&proxy, "segment_redis_up"), read_metric(&proxy, "segment_redis_connections")), (0.0, 0.0));
    assert!(read_metric(&proxy, "segment_redis_connects_total{result=\"failed\"}") > 0.0);
}

/// Unused connections of other fetchers do not make the proxy ready after Redis is killed.
#[test]
fn unused_connections_prove_nothing() {
    let mut redis = Redis::start();
    redis.set("long", "x".repeat(200_000));
    let proxy = Proxy::start(&redis, &[("CACHE_SIZE", "1"), ("REDIS_TIMEOUT", "1000")]);
    wait_until_ready(&proxy);
    wait_for("several fetchers are connected", || {
        let mut clients: Vec<_> = (0..40).map(|_| proxy.connect()).collect();
        clients.iter_mut().enumerate().for_each(|(number, client)| client.send_get(&format!("/raw/none{number}")));
        clients.iter_mut().for_each(|client| assert_eq!(client.read_response().status, 404));
        (read_metric(&proxy, "segment_redis_connections") >= 3.0).then_some(())
    });
    redis.kill();
    wait_until_not_ready(&proxy, "cannot connect to Redis");
    redis.restart();
    wait_until_ready(&proxy);
}

/// A silent Redis is unavailable after 3 s, long before REDIS_TIMEOUT.
#[test]
fn silent_redis_is_unavailable_early() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "600000")]);
    wait_until_ready(&proxy);
    redis.freeze();
    wait_until_not_ready(&proxy, "no reply from Redis for 3 s");
    redis.thaw();
    wait_until_ready(&proxy);
}

/// Two consecutive failed reads of different keys make the proxy not ready, even if PING works.
#[test]
fn failed_reads_outweigh_connections() {
    let redis = Redis::start();
    let relay = Relay::start(redis.port);
    let proxy = Proxy::start_on_redis_port(relay.port, &[("REDIS_TIMEOUT", "100")]);
    wait_until_ready(&proxy);
    let mut client = proxy.connect();
    wait_for("a read is in time", || (client.get("/key/a").status == 404).then_some(()));
    relay.hold_replies(Purpose::Fetching);
    // The reason may be this one key.
    for _ in 0..3 {
        assert_eq!((client.get("/key/a").status, get_readiness(&proxy).0), (504, 200));
    }
    let mut other = 0;
    wait_for("failed reads make the proxy not ready", || {
        other += 1;
        assert_eq!(client.get(&format!("/key/other{other}")).status, 504);
        (get_readiness(&proxy).0 == 503).then_some(())
    });
    let mut readiness: Vec<bool> = Vec::new();
    for number in 0..20 {
        assert_eq!(client.get(&format!("/key/{number}")).status, 504);
        readiness.push(get_readiness(&proxy).0 == 200);
    }
    assert!(!readiness.contains(&true), "ready, although every read fails: {readiness:?}");
    assert!(
        read_metric(&proxy, "segment_redis_connects_total{result=\"ok\"}") > 10.0,
        "the fetchers did not reconnect"
    );
    let logged = proxy.log().matches("lost a connection").count();
    assert!(logged < 5, "{logged} log lines for lost connections");
    relay.release();
    wait_for("a read succeeds", || (client.get("/key/a").status == 404).then_some(()));
    wait_until_ready(&proxy);
}

/// A Redis that replies to every read with an error (BUSY) makes the proxy not ready.
#[test]
fn refused_reads_make_not_ready() {
    let mut testbed = Testbed::start(Route::Direct);
    let proxy = testbed.start_proxy(&[]);
    wait_until_ready(&proxy);
    testbed.run_endless_script();
    let mut client = proxy.connect();
    // While clients read keys, no fetcher sends a probe.
    wait_for("the reason is BUSY", || {
        assert_eq!(client.get("/key/none").status, 503);
        let (status, text) = get_readiness(&proxy);
        (status == 503 && text.contains("BUSY")).then_some(())
    });
    testbed.kill_script();
    wait_until_ready(&proxy);
}

// ---- Loops ----

/// Blocks one thread of a proxy in its next `epoll_wait`, until dropped.
struct BlockedThread(Child);

impl BlockedThread {
    fn block(proxy: &Proxy, name: &str) -> BlockedThread {
        // A worker other than the one that reported readiness may still be starting.
        let id = wait_for("the thread runs", || find_thread(proxy, name));
        let mut strace = Command::new("strace")
            .args(["-e", "trace=epoll_wait", "-e", "inject=epoll_wait:delay_enter=3600000000", "-p", &id])
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace is installed");
        let mut output = BufReader::new(strace.stderr.take().expect("a pipe"));
        let mut line = String::new();
        output.read_line(&mut line).expect("text");
        assert!(line.contains("attached"), "{line}");
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        BlockedThread(strace)
    }
}

/// Returns the id of the thread with this name, if it exists.
fn find_thread(proxy: &Proxy, name: &str) -> Option<String> {
    let threads = std::fs::read_dir(format!("/proc/{}/task", proxy.pid())).expect("a running proxy");
    let has_name = |path: &PathBuf| {
        std::fs::read_to_string(path.join("comm")).is_ok_and(|thread_name| thread_name.trim_end() == name)
    };
    let path = threads.filter_map(|entry| Some(entry.ok()?.path())).find(has_name)?;
    path.file_name().and_then(|id| id.to_str()).map(str::to_owned)
}

impl Drop for BlockedThread {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the response of `/healthz`, or `None` if the kernel gave the connection to the blocked
/// worker.
fn try_get_health(proxy: &Proxy) -> Option<String> {
    let mut stream = TcpStream::connect(proxy.address).expect("an open port");
    stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a socket option");
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("an open connection");
    let mut text = String::new();
    stream.read_to_string(&mut text).is_ok().then_some(text)
}

/// A loop that does not tick is reported as stuck, and does not prevent the process from exiting.
#[test]
fn stuck_loop_is_reported_and_abandoned() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("WORKERS", "2"), ("SHUTDOWN_GRACE", "0.2")]);
    wait_until_ready(&proxy);
    let blocked = BlockedThread::block(&proxy, "loop-1");
    let text =
        wait_for("the loop is stuck", || try_get_health(&proxy).filter(|text| !text.contains("\"status\":\"ok\"")));
    assert!(
        text.starts_with("HTTP/1.1 503 ") && text.ends_with("{\"status\":\"stuck\",\"workers\":2,\"stuck\":1}\n"),
        "{text}"
    );
    wait_for("the stuck loop is logged", || {
        proxy.log().contains("event loop 1 is stuck (no tick for 5 s)").then_some(())
    });
    proxy.signal("TERM");
    wait_for("main gives the loop up", || proxy.log().contains("event loops {1} are stuck").then_some(()));
    // The process cannot exit before strace detaches from the thread.
    drop(blocked);
    assert_eq!(proxy.wait_for_exit(), Some(1));
}

// ---- segment-redis-proxy healthcheck ----

/// `healthcheck` reports the running proxy, and fails for a frozen, stopped or misconfigured one.
#[test]
fn healthcheck_reports_running_proxy() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("PROXY_HOST", "0.0.0.0"), ("ALLOWED_HOSTS", "example.org")]);
    let port = proxy.address.port().to_string();
    let variables = [("PROXY_HOST", "0.0.0.0"), ("PROXY_PORT", port.as_str())];
    assert_eq!(run_healthcheck(&variables), (Some(0), "{\"status\":\"ok\",\"workers\":1,\"stuck\":0}\n".into()));
    proxy.freeze();
    let (code, text) = run_healthcheck(&variables);
    assert_eq!(code, Some(1));
    assert!(text.contains(&format!("no response from the proxy at 127.0.0.1:{port} within 2 s")), "{text}");
    proxy.thaw();
    assert_eq!(run_healthcheck(&variables).0, Some(0));
    assert_eq!(proxy.stop("TERM"), Some(0));
    let (code, text) = run_healthcheck(&variables);
    assert!(code == Some(1) && text.contains("refused"), "{text}");
    assert_eq!(run_healthcheck(&[("PROXY_HOST", "127.0.0.1"), ("PROXY_PORT", "0")]).0, Some(1));
    assert_eq!(run_healthcheck(&[("PROXY_PORT", "many")]).0, Some(2));
}
