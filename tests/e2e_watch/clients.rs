//! Real clients of event streams: curl, a browser, Python, and servers in front of the proxy.

use crate::common::admin::parse_sample;
use crate::common::browser::Browser;
use crate::common::event_stream::put;
use crate::common::freshness::start_tracking_proxy;
use crate::common::program::Program;
use crate::common::{HttpClient, Proxy, Redis, stable_port, wait_for, wait_until_idle};
use crate::fronts::{Front, HAPROXY, Kind, NGINX, VARNISH};
use std::process::Command;

/// Key that the configurations of the document pass on.
const PATH: &str = "/key/flag:a";
const KEY: &str = "flag:a";

/// Returns the data of the next event. No heartbeat may come before it, because that would push
/// buffered events out.
fn next_data(client: &Program) -> String {
    loop {
        let line = client.next_line();
        assert_ne!(line, ":", "an event was held back until the heartbeat");
        if let Some(data) = line.strip_prefix("data: ") {
            return data.to_owned();
        }
    }
}

/// Reads the present value, changes and the end of a key with a client. Each change follows the
/// event before it, so none can push another out.
fn check_events(redis: &Redis, client: &Program, first: &str) {
    assert!(next_data(client).starts_with(&format!("{{\"value\":\"{first}\",")));
    for value in ["on", "off"] {
        redis.set(KEY, value);
        assert_eq!(next_data(client), put(value));
    }
    redis.run(&["DEL", KEY]);
    assert_eq!(next_data(client), "{\"value\":null}");
    redis.set(KEY, first);
    assert_eq!(next_data(client), put(first));
}

/// `curl -N` prints each event as it arrives.
#[test]
fn curl_prints_each_event() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    redis.set(KEY, "x");
    check_events(&redis, &Program::curl(proxy.address, PATH), "x");
}

/// The standard library of Python reads a stream line by line.
#[test]
fn python_reads_stream() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    for script in [
        "import http.client, sys\n\
         connection = http.client.HTTPConnection(sys.argv[1])\n\
         connection.request('GET', sys.argv[2], headers={'Accept': 'text/event-stream'})\n\
         for line in connection.getresponse(): print(line.decode().strip(), flush=True)",
        "import sys, urllib.request\n\
         request = urllib.request.Request('http://' + ''.join(sys.argv[1:]), headers={'Accept': 'text/event-stream'})\n\
         for line in urllib.request.urlopen(request): print(line.decode().strip(), flush=True)",
    ] {
        redis.set(KEY, "x");
        let mut command = Command::new("python3");
        command.args(["-c", script, &proxy.address.to_string(), PATH]);
        check_events(&redis, &Program::start(command), "x");
    }
}

/// A browser gets the present value and each change. After a restart of the proxy it reconnects
/// with its last id, and gets only what has changed.
#[test]
fn browser_reconnects_with_last_id() {
    let redis = Redis::start();
    let port = stable_port().to_string();
    // Clients spread their reconnections over SHUTDOWN_GRACE.
    let start = || start_tracking_proxy(redis.port, &[("PROXY_PORT", &port), ("SHUTDOWN_GRACE", "1")]);
    let proxy = start();
    redis.set(KEY, "1");
    let browser = Browser::new("event-source");
    let mut page = browser.open(&format!("http://{}/healthz", proxy.address));
    page.run(
        "window.seen = [], window.opened = 0, window.source = new EventSource(\"/key/flag:a\"),
         source.onopen = () => opened++,
         [\"put\", \"gone\"].forEach((name) => source.addEventListener(name, (event) =>
             seen.push(name + \" \" + JSON.parse(event.data).value)))",
    );
    let mut wait_for_events = |count: usize, opened: usize| {
        page.wait_until(&format!("seen.length >= {count} && opened >= {opened}"));
        page.run("seen.join()")
    };
    assert_eq!(wait_for_events(1, 1), "put 1");
    redis.run(&["DEL", KEY]);
    assert_eq!(wait_for_events(2, 1), "put 1,gone null");
    redis.set(KEY, "2");
    assert_eq!(wait_for_events(3, 1), "put 1,gone null,put 2");
    assert_eq!(proxy.stop("TERM"), Some(0));
    let proxy = start();
    // The value is the one that the browser has.
    wait_for_events(3, 2);
    wait_until_idle(&redis, &proxy);
    redis.set(KEY, "3");
    assert_eq!(wait_for_events(4, 2), "put 1,gone null,put 2,put 3");
    assert_eq!(proxy.stop("TERM"), Some(0));
    redis.set(KEY, "4");
    let _proxy = start();
    assert_eq!(wait_for_events(5, 3), "put 1,gone null,put 2,put 3,put 4");
}

/// Servers in front pass each event on at once.
#[test]
fn fronts_do_not_buffer() {
    for kind in [&NGINX, &HAPROXY, &VARNISH] {
        let redis = Redis::start();
        let proxy = start_tracking_proxy(redis.port, &[]);
        redis.set(KEY, "x");
        let front = Front::start(kind, &proxy, &[]);
        // A cached value arrives together with the head. Varnish without `pipe` holds it back.
        assert_eq!(proxy.get(PATH).status, 200);
        check_events(&redis, &Program::curl(front.address, PATH), "x");
        // A client that leaves is noticed behind the front too.
        wait_for("the stream ends", || {
            // HAProxy notices it when it writes.
            redis.run(&["APPEND", KEY, "x"]);
            (sample(&proxy, "segment_watchers") == 0.0).then_some(())
        });
    }
}

fn sample(proxy: &Proxy, name: &str) -> f64 {
    parse_sample(&proxy.get("/metrics").text(), name)
}

/// Reads a value through a front. The second part is true if the proxy received no request.
fn read(client: &mut HttpClient, proxy: &Proxy) -> (String, bool) {
    let requests = || {
        let metrics = proxy.get("/metrics").text();
        let total = |outcome| format!("segment_requests_total{{protocol=\"http\",outcome=\"{outcome}\"}}");
        ["hit", "miss", "collapsed"].map(|outcome| parse_sample(&metrics, &total(outcome))).iter().sum::<f64>()
    };
    let before = requests();
    let response = client.get(PATH);
    assert_eq!((response.status, response.header("content-type")), (200, "application/json"));
    (response.text(), requests() == before)
}

/// A shared cache keeps values, and gives no stored value to a client of a stream.
#[test]
fn caches_tell_streams_from_values() {
    let cached: [(&Kind, &[(&str, &str)]); 2] =
        [(&VARNISH, &[]), (&NGINX, &[("proxy_pass", "proxy_cache values;\n        proxy_pass")])];
    for (kind, changes) in cached {
        let redis = Redis::start();
        let proxy = Proxy::start(&redis, &[("CACHE_TTL", "2")]);
        redis.set(KEY, "x");
        let front = Front::start(kind, &proxy, changes);
        let mut client = front.connect();
        let mut wait_until_stored = |value: &str| {
            wait_for(&format!("{} keeps {value}", kind.name), || {
                let (text, is_stored) = read(&mut client, &proxy);
                (text.contains(value) && is_stored).then_some(())
            })
        };
        wait_until_stored("\"x\"");
        let stream = Program::curl(front.address, PATH);
        assert!(stream.next_with("data: ").starts_with("{\"value\":\"x\","));
        redis.set(KEY, "y");
        assert_eq!(stream.next_with("data: "), put("y"));
        // Values are still stored while a stream is open, and after it.
        wait_until_stored("\"y\"");
        drop(stream);
        redis.set(KEY, "z");
        wait_until_stored("\"z\"");
    }
}
