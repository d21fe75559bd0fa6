//! Tests of the admin endpoints: `/metrics`, `/stats`, `/readyz`, `/healthz` and `/`.

use crate::common::admin::{parse_sample, read_metric, run_healthcheck, wait_until_ready};
use crate::common::resp::RespClient;
use crate::common::{Proxy, Redis, wait_for};
use std::io::Write;
use std::process::{Command, Stdio};

/// Returns the number at the end of a line.
fn parse_last_number(line: &str) -> f64 {
    line.rsplit([' ', ':']).next().and_then(|number| number.parse().ok()).expect("a number")
}

/// Runs a program with a text as its input. Returns its exit code and all output.
fn run_with_input(program: &str, arguments: &[&str], text: &str) -> (Option<i32>, String) {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} is installed: {error}"));
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads its input");
    let output = child.wait_with_output().expect("it exits");
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// `/metrics` counts every request, reply and read, and promtool accepts its format.
#[test]
fn metrics_count_requests_and_reads() {
    let redis = Redis::start();
    (0..3).for_each(|number| redis.set(format!("k{number}"), "value"));
    redis.run(&["RPUSH", "list", "a"]);
    let proxy = Proxy::start(&redis, &[("CACHE_SIZE", "2"), ("MAX_CONNECTIONS", "50")]);
    let mut client = proxy.connect();
    let statuses = ["/key/k0", "/raw/k0", "/key/k1", "/key/k2", "/key/none", "/key/list", "/nothing", "/healthz"]
        .map(|path| client.get(path).status);
    assert_eq!(statuses, [200, 200, 200, 200, 404, 409, 404, 200]);
    let mut resp = RespClient::connect(proxy.address);
    for (words, reply) in [
        ("GET k2", "$5\r\nvalue\r\n"),
        ("MGET k2 none", "*2\r\n$5\r\nvalue\r\n$-1\r\n"),
        ("MGET k2 k2", "*2\r\n$5\r\nvalue\r\n$5\r\nvalue\r\n"),
        // `EXISTS` counts keys of any type.
        ("EXISTS list", ":1\r\n"),
        ("HELLO 9", "-NOPROTO"),
        ("SET a b", "-ERR"),
    ] {
        assert!(resp.call_text(words).starts_with(reply), "{words}");
    }
    // A fetcher counts a batch after its values are delivered.
    let text = wait_for("all reads are counted", || {
        let text = client.get("/metrics").text();
        (parse_sample(&text, "segment_redis_batch_keys_count") >= 7.0).then_some(text)
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
        assert_eq!(parse_sample(&text, name), value, "{name}");
    }
    for name in [
        "segment_redis_round_trips_total",
        "segment_redis_round_trip_seconds_count",
        "segment_redis_round_trip_seconds_sum",
        "segment_tick_seconds_count",
        "segment_hit_seconds_sum",
        "segment_miss_seconds_sum",
        "segment_connections",
    ] {
        assert!(parse_sample(&text, name) > 0.0, "{name}");
    }
    assert_eq!(run_with_input("promtool", &["check", "metrics"], &text), (Some(0), String::new()));
    wait_for("the watchdog reads the process statistics", || {
        (read_metric(&proxy, "process_resident_memory_bytes") > 1e6).then_some(())
    });
    assert!(read_metric(&proxy, "process_open_fds") > 5.0 && read_metric(&proxy, "process_start_time_seconds") > 1.7e9);
}

/// Clients that exceed a timeout are counted by its kind, and requests once they are answered.
#[test]
fn client_timeouts_are_counted_by_kind() {
    let redis = Redis::start();
    redis.run(&["SETRANGE", "long", "8000000", "x"]);
    // Redis may take long for this value.
    let variables = [("CLIENT_TIMEOUT", "0.2"), ("CLIENT_IDLE_TIMEOUT", "1"), ("REDIS_TIMEOUT", "60000")];
    let proxy = Proxy::start(&redis, &variables);
    let mut partial = proxy.connect();
    partial.send("GET /raw/a");
    assert_eq!(partial.read_response().status, 408);
    let mut idle = proxy.connect();
    let mut unread = proxy.connect();
    unread.send_get("/raw/long");
    assert!(idle.reads_eof());
    wait_for("a client that does not read is reset", || {
        (read_metric(&proxy, "segment_client_timeouts_total{kind=\"reply\"}") == 1.0).then_some(())
    });
    let kinds = ["request", "idle"].map(|kind| format!("segment_client_timeouts_total{{kind=\"{kind}\"}}"));
    assert_eq!(kinds.map(|name| read_metric(&proxy, &name)), [1.0, 1.0]);
    // The request for these metrics is counted once it is answered, so it is not among them.
    let text = proxy.get("/metrics").text();
    let answered: f64 =
        text.lines().filter(|line| line.starts_with("segment_requests_total{")).map(parse_last_number).sum();
    let commands = RespClient::connect(proxy.address).call_text("INFO stats");
    let processed: f64 =
        commands.lines().filter(|line| line.starts_with("total_commands_processed:")).map(parse_last_number).sum();
    assert_eq!(answered, processed - 1.0, "{commands} {text}");
}

/// Metrics are the sum over all workers.
#[test]
fn metrics_sum_all_workers() {
    let redis = Redis::start();
    redis.set("a", "value");
    let proxy = Proxy::start(&redis, &[("WORKERS", "3"), ("CACHE_SIZE", "10"), ("CACHE_TTL", "600")]);
    // The kernel spreads new connections over the workers.
    (0..60).for_each(|_| assert_eq!(proxy.get("/raw/a").text(), "value"));
    // One worker serves this connection; the others publish their metrics when pinged.
    let mut client = proxy.connect();
    wait_for("every worker has published its metrics", || {
        let text = client.get("/metrics").text();
        let lookups = parse_sample(&text, "segment_hits_total") + parse_sample(&text, "segment_misses_total");
        assert!(lookups <= 60.0, "{lookups} lookups for 60 requests");
        let is_complete = lookups == 60.0
            && parse_sample(&text, "segment_cache_entries") == parse_sample(&text, "segment_misses_total");
        (is_complete && parse_sample(&text, "segment_redis_connections") >= 3.0).then_some(())
    });
    assert_eq!(
        (read_metric(&proxy, "segment_workers"), read_metric(&proxy, "segment_cache_capacity_entries")),
        (3.0, 30.0)
    );
    assert_eq!((read_metric(&proxy, "segment_workers_stuck"), proxy.get("/healthz").status), (0.0, 200));
}

/// `/readyz` shows the freshness in force; health checks need no allowed host, metrics do.
#[test]
fn readyz_shows_freshness() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_TRACKING", "on"), ("ALLOWED_HOSTS", "example.org")]);
    let freshness = "\"freshness\":\"changes visible at once (tracking active); Redis expirations honoured\"";
    wait_for("tracking is active", || wait_until_ready(&proxy).contains(freshness).then_some(()));
    // An orchestrator addresses the proxy by IP address. Other requests must name an allowed host.
    assert_eq!(proxy.get("/metrics").status, 421);
    let mut client = proxy.connect();
    client.send("GET /metrics HTTP/1.1\r\nHost: example.org\r\n\r\n");
    let text = client.read_response().text();
    assert_eq!(parse_sample(&text, "segment_tracking_active"), 1.0);
    assert_eq!(parse_sample(&text, "segment_tracking_epochs_total"), 1.0);
}

/// `/stats` is JSON, and no admin endpoint contains the password.
#[test]
fn stats_are_json_without_secrets() {
    let redis = Redis::start_with(&["--requirepass", "topsecret"]);
    let proxy = Proxy::start(&redis, &[("REDIS_PASSWORD", "topsecret"), ("CACHE_TTL", "7")]);
    wait_until_ready(&proxy);
    let stats = proxy.get("/stats");
    assert_eq!((stats.header("content-type"), stats.header("cache-control")), ("application/json", "no-store"));
    let check = "import json, sys\n\
        stats = json.load(sys.stdin)\n\
        assert stats['redis']['answers'] is True and stats['redis']['reason'] is None\n\
        assert len(stats['latency']['hit']['counts']) == len(stats['latency']['bounds']) + 1\n\
        assert stats['configuration']['CACHE_TTL'] == '7' and stats['configuration']['REDIS_PASSWORD'] == '(set)'\n";
    assert_eq!(run_with_input("python3", &["-c", check], &stats.text()), (Some(0), String::new()));
    for path in ["/", "/stats", "/metrics", "/readyz"] {
        assert!(!proxy.get(path).text().contains("topsecret"), "{path}");
    }
}

/// `ADMIN=off` removes `/`, `/metrics` and `/stats`, and keeps the health endpoints.
#[test]
fn admin_off_keeps_health_endpoints() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("ADMIN", "off")]);
    wait_until_ready(&proxy);
    let mut client = proxy.connect();
    for path in ["/", "/metrics", "/stats"] {
        assert_eq!(client.get(path).status, 404, "{path}");
    }
    assert_eq!(client.get("/healthz").text(), "{\"status\":\"ok\",\"workers\":1,\"stuck\":0}\n");
    let on = Proxy::start(&redis, &[]);
    let mut client = on.connect();
    for path in ["/", "/metrics", "/stats", "/healthz"] {
        let full = client.get(path);
        client.send(format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        let head = client.read_response_to("HEAD");
        assert_eq!((head.status, head.header("content-type")), (200, full.header("content-type")), "{path}");
        assert_eq!(full.header("cache-control"), "no-store", "{path}");
    }
    client.send("OPTIONS /metrics HTTP/1.1\r\nHost: x\r\n\r\nPOST /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!((client.read_response().header("allow"), client.read_response().status), ("GET, HEAD, OPTIONS", 405));
}

/// A request is counted as aborted if its client disconnects before the reply.
#[test]
fn requests_of_gone_clients_are_counted() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "60000"), ("CLIENT_TIMEOUT", "0.2")]);
    wait_until_ready(&proxy);
    // The proxy closes it at CLIENT_TIMEOUT, in the middle of a command.
    let mut unfinished = RespClient::connect(proxy.address);
    unfinished.send("*3\r\n$4\r\nMGET\r\n$1\r\na\r\n");
    assert_eq!(unfinished.read_to_close(), "");
    redis.freeze();
    for _ in 0..5 {
        let (mut client, mut resp) = (proxy.connect(), RespClient::connect(proxy.address));
        client.send("GET /key/a HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2));
        resp.send("*3\r\n$4\r\nMGET\r\n$1\r\na\r\n$1\r\nb\r\n");
        for stream in [client.stream().get_ref(), &resp.stream] {
            socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO)).expect("a socket option");
        }
    }
    let aborted = |protocol: &str| format!("segment_requests_total{{protocol=\"{protocol}\",outcome=\"aborted\"}}");
    wait_for("all requests are counted", || {
        let text = proxy.get("/metrics").text();
        ([parse_sample(&text, &aborted("http")), parse_sample(&text, &aborted("resp"))] == [10.0, 6.0]).then_some(())
    });
}

/// Admin endpoints respond at the connection limit too, so that no orchestrator restarts a full
/// proxy.
#[test]
fn admin_endpoints_ignore_connection_limit() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("MAX_CONNECTIONS", "1")]);
    wait_until_ready(&proxy);
    let mut client = wait_for("the client is within the limit", || {
        let mut client = proxy.connect();
        (client.get("/key/none").status == 404).then_some(client)
    });
    for path in ["/healthz", "/readyz", "/metrics", "/stats", "/"] {
        let mut excess = proxy.connect();
        // In two pieces, so that the proxy has to wait for the path.
        excess.send("GET /");
        excess.send(format!("{} HTTP/1.1\r\nHost: x\r\n\r\n", &path[1..]));
        let response = excess.read_response();
        assert_eq!((response.status, response.header("connection")), (200, "close"), "{path}");
        assert!(excess.reads_eof());
    }
    assert_eq!((proxy.get("/nothing").status, proxy.get("/key/a").status), (503, 503));
    let (port, text) = (proxy.address.port().to_string(), client.get("/metrics").text());
    assert!(parse_sample(&text, "segment_connections_rejected_total") >= 7.0);
    assert_eq!(run_healthcheck(&[("PROXY_HOST", "127.0.0.1"), ("PROXY_PORT", &port)]).0, Some(0));
}

/// A cache of 3 keys, with 2,000 requested, logs a warning with a better value, once, and
/// shows it in the metrics.
#[test]
fn small_cache_logs_better_size() {
    let redis = Redis::start();
    let pairs: Vec<String> = (0..2000).flat_map(|number| [format!("key-{number}"), "value".into()]).collect();
    redis.run(&["MSET"].into_iter().chain(pairs.iter().map(String::as_str)).collect::<Vec<_>>());
    let proxy = Proxy::start(&redis, &[("CACHE_SIZE", "3")]);
    let mut client = RespClient::connect(proxy.address);
    let mut round = 0;
    let (warning, metrics) = wait_for("log and metrics show the small cache", || {
        for number in (0..2000).step_by(20) {
            let key = (round + number) % 2000;
            assert_eq!(client.call_text(&format!("GET key-{key}")), "$5\r\nvalue\r\n");
        }
        round += 1;
        let warning = proxy.log().lines().find(|line| line.contains("the cache is too small")).map(str::to_owned)?;
        let metrics = proxy.get("/metrics").text();
        (parse_sample(&metrics, "segment_cache_too_small") == 1.0).then_some((warning, metrics))
    });
    assert!(warning.contains(" WARN ") && warning.contains("set CACHE_SIZE="), "{warning}");
    let size = warning.split("CACHE_SIZE=").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    assert!(size.is_some_and(|size| (1500..4000).contains(&size)), "{warning}");
    assert!(parse_sample(&metrics, "segment_cache_suggested_entries") >= 100.0, "{metrics}");
    assert!(parse_sample(&metrics, "segment_early_evictions_total") >= 100.0, "{metrics}");
    assert_eq!(proxy.log().matches("the cache is too small").count(), 1);
}
