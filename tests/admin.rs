//! What the proxy tells of itself: figures, health, readiness.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may stop at what it did not expect")]

mod common;

use common::resp::Resp;
use common::{Proxy, Redis, Response, until};
use std::io::Write;
use std::process::{Command, Stdio};

/// The value of a sample in Prometheus' text format.
fn sample(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
}

fn metric(proxy: &Proxy, name: &str) -> f64 {
    sample(&proxy.get("/metrics").text(), name)
}

/// What a program says of a text: its exit code, and all that it prints.
fn judged(program: &str, arguments: &[&str], text: &str) -> (Option<i32>, String) {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} is installed: {error}"));
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn metrics_tell_what_has_happened_and_promtool_has_nothing_to_say() {
    let redis = Redis::start();
    (0..3).for_each(|number| redis.set(format!("k{number}"), "value"));
    redis.run(&["RPUSH", "list", "a"]);
    let proxy = Proxy::start(&redis, &[("CACHE_SIZE", "2"), ("MAX_CONNECTIONS", "50")]);
    let mut client = proxy.connect();
    let statuses = ["/key/k0", "/raw/k0", "/key/k1", "/key/k2", "/key/none", "/key/list", "/nothing", "/healthz"]
        .map(|path| client.get(path).status);
    assert_eq!(statuses, [200, 200, 200, 200, 404, 409, 404, 200]);
    let mut resp = Resp::connect(proxy.address);
    for (words, reply) in [
        ("GET k2", "$5\r\nvalue\r\n"),
        ("MGET k2 none", "*2\r\n$5\r\nvalue\r\n$-1\r\n"),
        ("MGET k2 k2", "*2\r\n$5\r\nvalue\r\n$5\r\nvalue\r\n"),
        // Of another type, and there all the same.
        ("EXISTS list", ":1\r\n"),
        ("HELLO 9", "-NOPROTO"),
        ("SET a b", "-ERR"),
    ] {
        assert!(resp.text(words).starts_with(reply), "{words}");
    }
    // A helper counts what it has read when it has been delivered.
    let text = until("all reads are counted", || {
        let text = client.get("/metrics").text();
        (sample(&text, "segment_redis_batch_keys_count") >= 7.0).then_some(text)
    });
    for (name, value) in [
        ("segment_requests_total{protocol=\"http\",outcome=\"hit\"}", 1.0),
        ("segment_requests_total{protocol=\"http\",outcome=\"miss\"}", 3.0),
        ("segment_requests_total{protocol=\"http\",outcome=\"missing\"}", 1.0),
        ("segment_requests_total{protocol=\"http\",outcome=\"failed\"}", 1.0),
        ("segment_requests_total{protocol=\"http\",outcome=\"refused\"}", 1.0),
        ("segment_requests_total{protocol=\"resp\",outcome=\"hit\"}", 1.0),
        ("segment_requests_total{protocol=\"resp\",outcome=\"many\"}", 3.0),
        ("segment_requests_total{protocol=\"resp\",outcome=\"refused\"}", 2.0),
        ("segment_http_responses_total{code=\"404\"}", 2.0),
        ("segment_http_responses_total{code=\"409\"}", 1.0),
        ("segment_errors_total{kind=\"wrong_type\"}", 1.0),
        ("segment_hits_total", 5.0),
        ("segment_misses_total", 7.0),
        ("segment_evictions_total", 1.0),
        ("segment_cache_entries", 2.0),
        ("segment_cache_bytes", 14.0),
        ("segment_cache_capacity_entries", 2.0),
        ("segment_inflight_keys", 0.0),
        ("segment_queue_length", 0.0),
        ("segment_connections_limit", 50.0),
        ("segment_hit_seconds_count", 3.0),
        ("segment_hit_seconds_bucket{le=\"+Inf\"}", 3.0),
        ("segment_miss_seconds_count", 7.0),
        ("segment_redis_batch_keys_count", 7.0),
        ("segment_redis_batch_keys_sum", 7.0),
        ("segment_redis_up", 1.0),
        ("segment_redis_connects_total{result=\"failed\"}", 0.0),
        ("segment_tracking_active", 0.0),
        ("segment_workers", 1.0),
        (concat!("segment_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0),
        ("segment_log_lines_dropped_total", 0.0),
    ] {
        assert_eq!(sample(&text, name), value, "{name}");
    }
    for name in [
        "segment_redis_round_trips_total",
        "segment_tick_seconds_count",
        "segment_hit_seconds_sum",
        "segment_connections",
    ] {
        assert!(sample(&text, name) > 0.0, "{name}");
    }
    assert!(sample(&text, "segment_miss_seconds_sum") > sample(&text, "segment_hit_seconds_sum"));
    assert_eq!(judged("promtool", &["check", "metrics"], &text), (Some(0), String::new()));
    until("somebody has looked at the process", || {
        (metric(&proxy, "process_resident_memory_bytes") > 1e6).then_some(())
    });
    assert!(metric(&proxy, "process_open_fds") > 5.0 && metric(&proxy, "process_start_time_seconds") > 1.7e9);
}

#[test]
fn clients_that_take_too_long_are_counted_by_what_they_were_too_slow_for() {
    let redis = Redis::start();
    redis.run(&["SETRANGE", "long", "8000000", "x"]);
    let proxy = Proxy::start(&redis, &[("CLIENT_TIMEOUT", "0.2"), ("CLIENT_IDLE_TIMEOUT", "1")]);
    let mut begun = proxy.connect();
    begun.send("GET /raw/a");
    assert_eq!(begun.response().status, 408);
    let mut idle = proxy.connect();
    let mut asleep = proxy.connect();
    asleep.ask("/raw/long");
    assert!(idle.is_closed());
    until("who takes nothing is reset", || {
        (metric(&proxy, "segment_client_timeouts_total{kind=\"reply\"}") == 1.0).then_some(())
    });
    let kinds = ["request", "idle"].map(|kind| format!("segment_client_timeouts_total{{kind=\"{kind}\"}}"));
    assert_eq!(kinds.map(|name| metric(&proxy, &name)), [1.0, 1.0]);
}

#[test]
fn figures_of_all_workers_are_added() {
    let redis = Redis::start();
    redis.set("a", "value");
    let proxy = Proxy::start(&redis, &[("WORKERS", "3"), ("CACHE_SIZE", "10"), ("CACHE_TTL", "600")]);
    // New connections are spread by the kernel.
    (0..60).for_each(|_| assert_eq!(proxy.get("/raw/a").text(), "value"));
    // One of them is asked; the others do nothing more by themselves.
    let mut client = proxy.connect();
    until("every worker has shown what it did", || {
        let text = client.get("/metrics").text();
        let asked = sample(&text, "segment_hits_total") + sample(&text, "segment_misses_total");
        assert!(asked <= 60.0, "{asked} were asked for");
        let all = asked == 60.0 && sample(&text, "segment_cache_entries") == sample(&text, "segment_misses_total");
        (all && sample(&text, "segment_redis_connections") >= 3.0).then_some(())
    });
    assert_eq!((metric(&proxy, "segment_workers"), metric(&proxy, "segment_cache_capacity_entries")), (3.0, 30.0));
    assert_eq!((metric(&proxy, "segment_workers_stuck"), proxy.get("/healthz").status), (0.0, 200));
}

/// Whether it is ready, and what it says.
fn readiness(proxy: &Proxy) -> (u16, String) {
    let Response { status, body, .. } = proxy.get("/readyz");
    (status, String::from_utf8(body).expect("JSON"))
}

fn until_ready(proxy: &Proxy) -> String {
    until("it is ready", || Some(readiness(proxy)).filter(|(status, _)| *status == 200)).1
}

fn until_not_ready(proxy: &Proxy, reason: &str) {
    until(reason, || Some(readiness(proxy)).filter(|(status, text)| *status == 503 && text.contains(reason)));
    assert_eq!(proxy.get("/healthz").status, 200, "it is alive all the same");
}

/// Nobody asks for a key: it finds out by itself.
#[test]
fn it_is_ready_as_long_as_redis_answers_and_says_why_not() {
    let mut redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "300")]);
    assert!(until_ready(&proxy).contains("\"reason\":null,\"freshness\":\"a change in Redis is seen after CACHE_TTL;"));
    redis.kill();
    until_not_ready(&proxy, &format!("cannot connect to Redis at 127.0.0.1:{}", redis.port));
    redis.restart();
    until_ready(&proxy);
    redis.freeze();
    until_not_ready(&proxy, &format!("Redis at 127.0.0.1:{}", redis.port));
    redis.thaw();
    until_ready(&proxy);
    redis.run(&["CONFIG", "SET", "requirepass", "secret"]);
    redis.kill();
    redis.restart_with(&["--requirepass", "secret"]);
    until_not_ready(&proxy, "NOAUTH");
    assert_eq!((metric(&proxy, "segment_redis_up"), metric(&proxy, "segment_redis_connections")), (0.0, 0.0));
    assert!(metric(&proxy, "segment_redis_connects_total{result=\"failed\"}") > 0.0);
}

/// What the other helpers hold is as dead as what the one has found dead that has looked.
#[test]
fn connections_that_nobody_uses_do_not_make_it_ready() {
    let mut redis = Redis::start();
    redis.set("long", "x".repeat(200_000));
    let proxy = Proxy::start(&redis, &[("CACHE_SIZE", "1")]);
    until_ready(&proxy);
    until("several helpers are connected", || {
        let mut clients: Vec<_> = (0..40).map(|_| proxy.connect()).collect();
        clients.iter_mut().enumerate().for_each(|(number, client)| client.ask(&format!("/raw/none{number}")));
        clients.iter_mut().for_each(|client| assert_eq!(client.response().status, 404));
        (metric(&proxy, "segment_redis_connections") >= 3.0).then_some(())
    });
    redis.kill();
    until_not_ready(&proxy, "cannot connect to Redis");
    redis.restart();
    until_ready(&proxy);
}

#[test]
fn readiness_tells_the_promise_in_force() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_TRACKING", "on"), ("ALLOWED_HOSTS", "example.org")]);
    let promise =
        "\"freshness\":\"a change in Redis is seen at once (tracking); a key that Redis lets expire is gone with it\"";
    until("tracking is in force", || until_ready(&proxy).contains(promise).then_some(()));
    // Whoever looks after a server asks by its address; everybody else has to know its name.
    assert_eq!(proxy.get("/metrics").status, 421);
    let mut client = proxy.connect();
    client.send("GET /metrics HTTP/1.1\r\nHost: example.org\r\n\r\n");
    let text = client.response().text();
    assert_eq!(sample(&text, "segment_tracking_active"), 1.0);
    assert_eq!(sample(&text, "segment_tracking_epochs_total"), 1.0);
}

#[test]
fn stats_are_json_and_nothing_tells_a_secret() {
    let redis = Redis::start_with(&["--requirepass", "tell-nobody"]);
    let proxy = Proxy::start(&redis, &[("REDIS_PASSWORD", "tell-nobody"), ("CACHE_TTL", "7")]);
    until_ready(&proxy);
    let stats = proxy.get("/stats");
    assert_eq!((stats.field("content-type"), stats.field("cache-control")), ("application/json", "no-store"));
    let check = "import json, sys\n\
        stats = json.load(sys.stdin)\n\
        assert stats['redis']['answers'] is True and stats['redis']['reason'] is None\n\
        assert len(stats['latency']['hit']['counts']) == len(stats['latency']['bounds']) + 1\n\
        assert stats['configuration']['CACHE_TTL'] == '7' and stats['configuration']['REDIS_PASSWORD'] == '(set)'\n";
    assert_eq!(judged("python3", &["-c", check], &stats.text()), (Some(0), String::new()));
    for path in ["/", "/stats", "/metrics", "/readyz"] {
        assert!(!proxy.get(path).text().contains("tell-nobody"), "{path}");
    }
}

#[test]
fn figures_can_be_turned_off_and_health_stays() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("ADMIN", "off")]);
    until_ready(&proxy);
    let mut client = proxy.connect();
    for path in ["/", "/metrics", "/stats"] {
        assert_eq!(client.get(path).status, 404, "{path}");
    }
    assert_eq!(client.get("/healthz").text(), "{\"status\":\"ok\",\"workers\":1,\"stuck\":0}\n");
    let on = Proxy::start(&redis, &[]);
    let mut client = on.connect();
    for path in ["/", "/metrics", "/stats", "/healthz"] {
        let all = client.get(path);
        client.send(format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        let head = client.response_to("HEAD");
        assert_eq!((head.status, head.field("content-type")), (200, all.field("content-type")), "{path}");
        assert_eq!(all.field("cache-control"), "no-store", "{path}");
    }
    client.send("OPTIONS /metrics HTTP/1.1\r\nHost: x\r\n\r\nPOST /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!((client.response().field("allow"), client.response().status), ("GET, HEAD, OPTIONS", 405));
}

/// A proxy that is full serves those who are there, and whoever looks after it is to see that, not to restart it.
#[test]
fn who_asks_for_the_proxy_itself_needs_no_place() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("MAX_CONNECTIONS", "1")]);
    until_ready(&proxy);
    let mut client = until("there is a place", || {
        let mut client = proxy.connect();
        (client.get("/key/none").status == 404).then_some(client)
    });
    for path in ["/healthz", "/readyz", "/metrics", "/stats", "/"] {
        let mut crowded = proxy.connect();
        // In two pieces: what it asks for is not known at once.
        crowded.send("GET /");
        crowded.send(format!("{} HTTP/1.1\r\nHost: x\r\n\r\n", &path[1..]));
        let response = crowded.response();
        assert_eq!((response.status, response.field("connection")), (200, "close"), "{path}");
        assert!(crowded.is_closed());
    }
    assert_eq!((proxy.get("/nothing").status, proxy.get("/key/a").status), (503, 503));
    let (port, text) = (proxy.address.port().to_string(), client.get("/metrics").text());
    assert!(sample(&text, "segment_connections_rejected_total") >= 7.0);
    assert_eq!(health_check(&[("PROXY_HOST", "127.0.0.1"), ("PROXY_PORT", &port)]).0, Some(0));
}

/// `segment-redis-proxy healthcheck` with the variables of one that runs.
fn health_check(variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_segment-redis-proxy"));
    let output = command.arg("healthcheck").env_clear().envs(variables.iter().copied()).output().expect("it runs");
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn the_health_check_asks_the_one_that_runs() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("PROXY_HOST", "0.0.0.0"), ("ALLOWED_HOSTS", "example.org")]);
    let port = proxy.address.port().to_string();
    let there = [("PROXY_HOST", "0.0.0.0"), ("PROXY_PORT", port.as_str())];
    assert_eq!(health_check(&there), (Some(0), "{\"status\":\"ok\",\"workers\":1,\"stuck\":0}\n".into()));
    proxy.freeze();
    let (code, text) = health_check(&there);
    assert_eq!(code, Some(1));
    assert!(text.contains(&format!("127.0.0.1:{port} does not answer within 2 s")), "{text}");
    proxy.thaw();
    assert_eq!(health_check(&there).0, Some(0));
    assert_eq!(proxy.end("TERM"), Some(0));
    let (code, text) = health_check(&there);
    assert!(code == Some(1) && text.contains("refused"), "{text}");
    assert_eq!(health_check(&[("PROXY_HOST", "127.0.0.1"), ("PROXY_PORT", "0")]).0, Some(1));
    assert_eq!(health_check(&[("PROXY_PORT", "many")]).0, Some(2));
}
