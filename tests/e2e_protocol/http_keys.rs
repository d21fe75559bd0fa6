//! Tests of `/keys`: several keys in one HTTP request.

use crate::common::admin::read_metric;
use crate::common::{HttpClient, Proxy, Redis, Response, wait_for};

fn start(variables: &[(&str, &str)]) -> (Redis, Proxy) {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[&[("CACHE_SIZE", "10000"), ("CACHE_TTL", "600")], variables].concat());
    (redis, proxy)
}

/// Sends a request with this target, and returns the response.
fn get(client: &mut HttpClient, target: &str) -> Response {
    client.send_get(target);
    client.read_response()
}

/// Returns the body of a response with these elements.
fn body_of<T: AsRef<str>>(elements: &[T]) -> String {
    let elements: Vec<&str> = elements.iter().map(AsRef::as_ref).collect();
    format!("{{\"values\":[{}]}}", elements.join(","))
}

/// Returns the element of a key with a value that is plain text.
fn element(key: &str, value: &str, from_cache: bool) -> String {
    format!("{{\"key\":\"{key}\",\"value\":\"{value}\",\"fromCache\":{from_cache}}}")
}

/// Elements are in the order of the request, each with a value, null or an error.
#[test]
fn elements_follow_request_order() {
    let (redis, proxy) = start(&[]);
    redis.run(&["MSET", "a", "text", "n", "-12", "q", "say \"hi\"\n", "", "empty key", "key=x&y", "odd"]);
    redis.set("bytes", b"\xff\x01".as_slice());
    redis.set(b"\xff\"".as_slice(), "binary key");
    redis.set("\"\\", "escaped key");
    redis.run(&["RPUSH", "list", "1"]);
    let wrong_type = "{\"key\":\"list\",\"error\":\"the key does not hold a string; the proxy reads only strings\"}";
    let mut client = proxy.connect();
    for from_cache in [false, true] {
        let target =
            "/keys?key=n&key=none&key=a&key=q&key=bytes&key=%ff%22&key=%22%5C&key=&key=list&key=key%3Dx%26y&_=1";
        let response = get(&mut client, target);
        let expected = [
            format!("{{\"key\":\"n\",\"value\":-12,\"fromCache\":{from_cache}}}"),
            "{\"key\":\"none\",\"value\":null}".into(),
            element("a", "text", from_cache),
            element("q", "say \\\"hi\\\"\\n", from_cache),
            format!("{{\"key\":\"bytes\",\"value\":\"/wE=\",\"encoding\":\"base64\",\"fromCache\":{from_cache}}}"),
            format!(
                "{{\"key\":\"/yI=\",\"keyEncoding\":\"base64\",\"value\":\"binary key\",\"fromCache\":{from_cache}}}"
            ),
            element("\\\"\\\\", "escaped key", from_cache),
            element("", "empty key", from_cache),
            wrong_type.into(),
            element("key=x&y", "odd", from_cache),
        ];
        assert_eq!((response.status, response.text()), (200, body_of(&expected)));
        assert_eq!(response.header("content-type"), "application/json");
        assert_eq!(response.header("cache-control"), "no-store");
        let status = response.header("cache-status").to_owned();
        assert!(status.starts_with("segment-redis-proxy; fwd=miss"), "{status}: two keys are never cached");
    }
    let hit = get(&mut client, "/keys?key=a&key=a&key=n");
    assert!(hit.header("cache-status").starts_with("segment-redis-proxy; hit; ttl="), "{hit:?}");
    let twice = element("a", "text", true);
    assert_eq!(hit.text(), body_of(&[&twice, &twice, "{\"key\":\"n\",\"value\":-12,\"fromCache\":true}"]));
    // A key that is requested twice is read once.
    redis.set("b", "new");
    let reads = redis.count_reads();
    let twice = element("b", "new", false);
    assert_eq!(get(&mut client, "/keys?key=b&key=b").text(), body_of(&[&twice, &twice]));
    assert_eq!(redis.count_reads(), reads + 1);
}

/// As many keys as a target holds are read, more than may be pending at once, and in a few round
/// trips.
#[test]
fn target_full_of_keys_is_answered() {
    let (redis, proxy) = start(&[("REDIS_CONNECTIONS", "1")]);
    let digits: Vec<char> = ('a'..='z').chain('A'..='Z').collect();
    let keys: Vec<String> = (0..1168).map(|number| format!("{}{}", digits[number / 52], digits[number % 52])).collect();
    keys.iter().for_each(|key| redis.set(key, format!("value of {key}")));
    let target = format!("/keys?key={}", keys.join("&key="));
    assert!(target.len() > 8150 && target.len() <= 8192, "{} bytes", target.len());
    let mut client = proxy.connect();
    for from_cache in [false, true] {
        let elements: Vec<String> =
            keys.iter().map(|key| element(key, &format!("value of {key}"), from_cache)).collect();
        let response = get(&mut client, &target);
        assert!(response.text() == body_of(&elements), "another body: {}", &response.text()[..200]);
    }
    assert_eq!(redis.count_reads(), 1168);
    let batches = read_metric(&proxy, "segment_redis_batch_keys_count");
    assert!(batches <= 40.0, "{batches} round trips for 1168 keys");
    assert_eq!(get(&mut client, &format!("{target}&key=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")).status, 414);
    // The last request of a connection stays open until its last key. Its latency is that of the
    // first keys, although the last ones are hits.
    let flushed = Proxy::start(&redis, &[("CACHE_SIZE", "10000")]);
    let mut client = flushed.connect();
    keys[1100..].iter().for_each(|key| _ = get(&mut client, &format!("/raw/{key}")));
    let misses = || read_metric(&flushed, "segment_miss_seconds_count");
    let before = misses();
    client.send(format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    assert_eq!(client.read_response().text().matches("\"value of ").count(), 1168);
    assert!(client.reads_eof());
    assert_eq!(misses() - before, 1.0, "the request counts as a hit");
    // The shortest key, as often as the target holds it.
    let empty = format!("/keys?key={}", "&key=".repeat(1635));
    assert_eq!(get(&mut proxy.connect(), &empty).text().matches("\"value\":null").count(), 1636);
}

/// Long values keep their exact bytes, whichever way they are encoded and stored.
#[test]
fn long_values_are_complete() {
    let (redis, proxy) = start(&[("CACHE_BYTES", "100mb")]);
    let (mut elements, mut target) = (Vec::new(), "/keys?".to_owned());
    for length in [1000, 1025, 16_384, 16_385, 100_000, 1_000_000] {
        for (name, byte, json) in [("plain", "x", "x"), ("quotes", "\"", "\\\""), ("controls", "\u{1}", "\\u0001")] {
            let key = format!("{name}-{length}");
            redis.set(&key, byte.repeat(length));
            elements.push((key.clone(), json.repeat(length)));
            target += &format!("key={key}&");
        }
    }
    let mut client = proxy.connect();
    for from_cache in [false, true] {
        let expected: Vec<String> = elements.iter().map(|(key, value)| element(key, value, from_cache)).collect();
        let response = get(&mut client, &target);
        assert!(response.text() == body_of(&expected), "another body, from the cache: {from_cache}");
        // The connection serves the next request, so the length was right.
        assert_eq!(get(&mut client, "/raw/none").status, 404);
    }
    // Controls in the first place need more than the first segment of the reply.
    let reversed = "/keys?key=controls-16384&key=plain-1000";
    let expected = [&elements[8], &elements[0]].map(|(key, value)| element(key, value, true));
    assert!(get(&mut client, reversed).text() == body_of(&expected), "another body");
}

/// The request works with each way to end it, and between pipelined requests.
#[test]
fn request_has_every_http_form() {
    let (redis, proxy) = start(&[]);
    redis.run(&["MSET", "a", "A", "b", "B"]);
    let body = |from_cache| body_of(&[element("a", "A", from_cache), element("b", "B", from_cache)]);
    let head = "GET /keys?key=a&key=b HTTP/1.1\r\nHost: x\r\n";
    // The last request of a connection, and one of HTTP/1.0.
    for (text, from_cache) in [
        (format!("{head}Connection: close\r\n\r\n"), false),
        ("GET /keys?key=a&key=b HTTP/1.0\r\n\r\n".to_owned(), true),
        (format!("{head}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"), true),
        (format!("{head}Expect: 100-continue\r\nContent-Length: 3\r\n\r\n"), true),
        ("GET http://x/keys?key=a&key=b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(), true),
    ] {
        let mut client = proxy.connect();
        client.send(&text);
        let response = client.read_response();
        assert_eq!((response.status, response.text()), (200, body(from_cache)), "{text}");
        assert_eq!(response.header("connection"), "close");
        assert!(client.reads_eof(), "{text}");
    }
    let mut client = proxy.connect();
    client.send(format!(
        "GET /raw/c HTTP/1.1\r\nHost: x\r\n\r\n{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
         {head}Content-Length: 1\r\n\r\nx{head}\r\nHEAD /keys?key=a&key=none HTTP/1.1\r\nHost: x\r\n\r\n\
         OPTIONS /keys HTTP/1.1\r\nHost: x\r\n\r\nGET /raw/a HTTP/1.1\r\nHost: x\r\n\r\n"
    ));
    assert_eq!(client.read_response().status, 404);
    for _ in 0..3 {
        assert_eq!(client.read_response().text(), body(true));
    }
    let head_only = client.read_response_to("HEAD");
    let length = body_of(&[&element("a", "A", true), "{\"key\":\"none\",\"value\":null}"]).len().to_string();
    assert_eq!((head_only.status, head_only.header("content-length")), (200, length.as_str()));
    assert_eq!(client.read_response().header("allow"), "GET, HEAD, OPTIONS");
    assert_eq!(client.read_response().text(), "A");
}

/// Requests without a key, with a malformed one, or with another method are refused.
#[test]
fn invalid_requests_are_refused() {
    let (redis, proxy) = start(&[("ADMIN_PORT", "0")]);
    let mut client = proxy.connect();
    for (line, status) in [
        ("GET /keys", 400),
        ("GET /keys?", 400),
        ("GET /keys?a", 400),
        ("GET /keys?keys=a", 400),
        ("GET /keys?key", 400),
        ("GET /keys?key=a&key=%", 400),
        ("GET /keys?key=%zz", 400),
        ("HEAD /keys", 400),
        ("POST /keys?key=a", 405),
        ("GET /keys/?key=a", 404),
        ("GET /keys/a", 404),
        ("GET /Keys?key=a", 404),
    ] {
        client.send(format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n"));
        let method = line.split(' ').next().unwrap_or_default();
        assert_eq!(client.read_response_to(method).status, status, "{line}");
    }
    // Parameters that are no key are not looked at.
    assert_eq!(get(&mut client, "/keys?key=a&x=%zz").status, 200);
    assert_eq!(redis.count_reads(), 1);
    let mut admin = HttpClient::connect(proxy.admin_address());
    assert_eq!(get(&mut admin, "/keys?key=a").status, 404);
}

/// Without the password nothing is looked up. With it `no-cache` reads each key again.
#[test]
fn keys_need_password() {
    let (redis, proxy) = start(&[("CLIENT_PASSWORD", "word")]);
    redis.run(&["MSET", "a", "A", "b", "B"]);
    let mut client = proxy.connect();
    assert_eq!(get(&mut client, "/keys?key=a&key=b").status, 401);
    assert_eq!(redis.count_reads(), 0);
    let request = "GET /keys?key=a&key=b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer word\r\n";
    for (fields, from_cache) in [("", false), ("", true), ("Cache-Control: no-cache\r\n", false), ("", true)] {
        client.send(format!("{request}{fields}\r\n"));
        let expected = body_of(&[element("a", "A", from_cache), element("b", "B", from_cache)]);
        assert_eq!(client.read_response().text(), expected, "{fields}");
    }
    assert_eq!(redis.count_reads(), 4);
}

/// Preconditions and directives apply to the whole request, or to each key.
#[test]
fn conditions_and_directives_apply() {
    let (redis, proxy) = start(&[]);
    redis.run(&["MSET", "a", "A", "b", "B"]);
    let mut client = proxy.connect();
    let mut send = |fields: &str| {
        client.send(format!("GET /keys?key=a&key=b HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n"));
        client.read_response()
    };
    let uncached = send("Cache-Control: only-if-cached");
    assert_eq!((uncached.status, redis.count_reads()), (200, 0));
    assert_eq!(uncached.text().matches("\"error\":\"the key is not cached").count(), 2, "{uncached:?}");
    assert_eq!(send("If-None-Match: *").status, 304);
    assert_eq!(send("If-None-Match: \"a\"").status, 200);
    assert_eq!(send("If-Match: \"a\"").status, 412);
    assert_eq!(send("Range: bytes=0-1").status, 200);
    assert!(send("Cache-Control: only-if-cached").text().contains("\"value\":\"B\",\"fromCache\":true"));
}

/// A value without memory for a reference (`CLIENT_BYTES`) fails alone, and is counted. `HEAD`
/// needs no memory.
#[test]
fn value_without_memory_fails_alone() {
    let (redis, proxy) = start(&[("CLIENT_BYTES", "30000")]);
    redis.set("p", "p".repeat(20_000));
    redis.set("q", "q".repeat(20_000));
    let mut client = proxy.connect();
    let both = body_of(&[element("p", &"p".repeat(20_000), false), element("q", &"q".repeat(20_000), false)]);
    client.send("HEAD /keys?key=p&key=q HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.read_response_to("HEAD").header("content-length"), both.len().to_string());
    let text = get(&mut client, "/keys?key=p&key=q").text();
    assert_eq!((text.matches("\"value\"").count(), text.matches("CLIENT_BYTES").count()), (1, 2), "{text}");
    assert_eq!(read_metric(&proxy, "segment_requests_total{protocol=\"http\",outcome=\"failed\"}"), 1.0);
    assert_eq!(read_metric(&proxy, "segment_errors_total{kind=\"too_much_held\"}"), 1.0);
}

/// During an outage each key has its error, and values in memory are served. The request counts as
/// failed.
#[test]
fn outage_fails_keys_alone() {
    let (mut redis, proxy) = start(&[("REDIS_TIMEOUT", "300ms")]);
    redis.run(&["MSET", "a", "A", "b", "B"]);
    let mut client = proxy.connect();
    assert_eq!(get(&mut client, "/keys?key=a").status, 200);
    redis.kill();
    wait_for("Redis is unreachable", || (client.get("/raw/b").status == 503).then_some(()));
    let response = get(&mut client, "/keys?key=a&key=b");
    assert_eq!(response.status, 200);
    let text = response.text();
    assert!(text.contains(&element("a", "A", true)) && text.contains("{\"key\":\"b\",\"error\":\"Redis is"), "{text}");
    let failed = read_metric(&proxy, "segment_requests_total{protocol=\"http\",outcome=\"failed\"}");
    let errors = read_metric(&proxy, "segment_errors_total{kind=\"unavailable\"}");
    assert!(failed >= 2.0 && errors >= failed, "{failed} failed requests, {errors} errors");
    assert_eq!(read_metric(&proxy, "segment_requests_total{protocol=\"http\",outcome=\"many\"}"), 1.0);
}
