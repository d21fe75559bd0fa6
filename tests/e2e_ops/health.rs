//! Whether the proxy says that it is well when it is, and when it is not why.

use crate::common::admin::{get_readiness, read_metric, run_healthcheck, wait_until_not_ready, wait_until_ready};
use crate::common::relay::{Purpose, Relay};
use crate::common::testbed::{Route, Testbed};
use crate::common::{Proxy, Redis, wait_for};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Nobody asks for a key: it finds out by itself.
#[test]
fn it_is_ready_as_long_as_redis_answers_and_says_why_not() {
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

/// What the other helpers hold is as dead as what the one has found dead that has looked.
#[test]
fn connections_that_nobody_uses_do_not_make_it_ready() {
    let mut redis = Redis::start();
    redis.set("long", "x".repeat(200_000));
    let proxy = Proxy::start(&redis, &[("CACHE_SIZE", "1")]);
    wait_until_ready(&proxy);
    wait_for("several helpers are connected", || {
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

/// Clients that wait as long as Redis takes shall not have others think that all is well.
#[test]
fn a_redis_that_takes_its_time_is_away_before_its_time_is_over() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "600000")]);
    wait_until_ready(&proxy);
    redis.freeze();
    wait_until_not_ready(&proxy, "no reply from Redis for 3 s");
    redis.thaw();
    wait_until_ready(&proxy);
}

/// What lets itself be connected to and answers `PING` need not be a Redis that serves.
#[test]
fn where_every_read_is_in_vain_connections_prove_nothing() {
    let redis = Redis::start();
    let relay = Relay::start(redis.port);
    let proxy = Proxy::start_on_redis_port(relay.port, &[("REDIS_TIMEOUT", "100")]);
    wait_until_ready(&proxy);
    let mut client = proxy.connect();
    assert_eq!(client.get("/key/a").status, 404);
    relay.hold_replies(Purpose::Fetching);
    // One key alone may be the reason.
    for _ in 0..3 {
        assert_eq!((client.get("/key/a").status, get_readiness(&proxy).0), (504, 200));
    }
    let mut other = 0;
    wait_for("several cannot be read", || {
        other += 1;
        assert_eq!(client.get(&format!("/key/other{other}")).status, 504);
        (get_readiness(&proxy).0 == 503).then_some(())
    });
    let mut looks: Vec<bool> = Vec::new();
    for number in 0..20 {
        assert_eq!(client.get(&format!("/key/{number}")).status, 504);
        looks.push(get_readiness(&proxy).0 == 200);
    }
    assert!(!looks.contains(&true), "ready, while nothing can be read: {looks:?}");
    assert!(
        read_metric(&proxy, "segment_redis_connects_total{result=\"ok\"}") > 10.0,
        "it was connected to again and again"
    );
    let told = proxy.log().matches("lost a connection").count();
    assert!(told < 5, "the log repeats itself: {told} times");
    relay.release();
    wait_for("a read succeeds", || (client.get("/key/a").status == 404).then_some(()));
    wait_until_ready(&proxy);
}

/// It answers, and what it answers is that it cannot serve.
#[test]
fn a_redis_that_refuses_every_read_is_not_ready() {
    let mut scene = Testbed::start(Route::Direct);
    let proxy = scene.start_proxy(&[]);
    wait_until_ready(&proxy);
    scene.run_endless_script();
    let mut client = proxy.connect();
    // As long as keys are read, nobody asks anything else.
    wait_for("it says why", || {
        assert_eq!(client.get("/key/none").status, 503);
        let (status, text) = get_readiness(&proxy);
        (status == 503 && text.contains("BUSY")).then_some(())
    });
    scene.kill_script();
    wait_until_ready(&proxy);
}

// ---- Loops ----

/// Holds one thread of a proxy up, at its next look for events.
struct Held(Child);

impl Held {
    fn hold(proxy: &Proxy, thread: &str) -> Held {
        let threads = std::fs::read_dir(format!("/proc/{}/task", proxy.pid())).expect("it runs");
        let is_it = |path: &std::path::PathBuf| {
            std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim_end() == thread)
        };
        let folder = threads.map(|entry| entry.expect("an entry").path()).find(is_it).expect("a thread of that name");
        let id = folder.file_name().and_then(|name| name.to_str()).expect("a number").to_owned();
        let mut strace = Command::new("strace")
            .args(["-e", "trace=epoll_wait", "-e", "inject=epoll_wait:delay_enter=3600000000", "-p", &id])
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace is installed");
        let mut told = BufReader::new(strace.stderr.take().expect("a pipe"));
        let mut line = String::new();
        told.read_line(&mut line).expect("text");
        assert!(line.contains("attached"), "{line}");
        std::thread::spawn(move || std::io::copy(&mut told, &mut std::io::sink()));
        Held(strace)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // It is ours.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `/healthz` says, if it comes to the loop that turns: the kernel gives connections to one or the other.
fn health(proxy: &Proxy) -> Option<String> {
    let mut stream = TcpStream::connect(proxy.address).expect("somebody listens");
    stream.set_read_timeout(Some(Duration::from_millis(200))).expect("an option can be set");
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("it is open");
    let mut text = String::new();
    stream.read_to_string(&mut text).is_ok().then_some(text)
}

#[test]
fn a_loop_that_does_not_turn_is_told_and_does_not_keep_the_rest_from_ending() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("WORKERS", "2"), ("SHUTDOWN_GRACE", "0.2")]);
    wait_until_ready(&proxy);
    let held = Held::hold(&proxy, "loop-1");
    let text = wait_for("it says so", || health(&proxy).filter(|text| !text.contains("\"status\":\"ok\"")));
    assert!(
        text.starts_with("HTTP/1.1 503 ") && text.ends_with("{\"status\":\"stuck\",\"workers\":2,\"stuck\":1}\n"),
        "{text}"
    );
    assert!(proxy.log().contains("event loop 1 is stuck (no tick for 5 s)"), "{}", proxy.log());
    proxy.signal("TERM");
    wait_for("it gives up", || proxy.log().contains("event loops {1} are stuck").then_some(()));
    // The kernel takes a thread from strace only when that lets go.
    drop(held);
    assert_eq!(proxy.wait_for_exit(), Some(1));
}

// ---- segment-redis-proxy healthcheck ----

#[test]
fn the_health_check_asks_the_one_that_runs() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("PROXY_HOST", "0.0.0.0"), ("ALLOWED_HOSTS", "example.org")]);
    let port = proxy.address.port().to_string();
    let there = [("PROXY_HOST", "0.0.0.0"), ("PROXY_PORT", port.as_str())];
    assert_eq!(run_healthcheck(&there), (Some(0), "{\"status\":\"ok\",\"workers\":1,\"stuck\":0}\n".into()));
    proxy.freeze();
    let (code, text) = run_healthcheck(&there);
    assert_eq!(code, Some(1));
    assert!(text.contains(&format!("no response from the proxy at 127.0.0.1:{port} within 2 s")), "{text}");
    proxy.thaw();
    assert_eq!(run_healthcheck(&there).0, Some(0));
    assert_eq!(proxy.stop("TERM"), Some(0));
    let (code, text) = run_healthcheck(&there);
    assert!(code == Some(1) && text.contains("refused"), "{text}");
    assert_eq!(run_healthcheck(&[("PROXY_HOST", "127.0.0.1"), ("PROXY_PORT", "0")]).0, Some(1));
    assert_eq!(run_healthcheck(&[("PROXY_PORT", "many")]).0, Some(2));
}
