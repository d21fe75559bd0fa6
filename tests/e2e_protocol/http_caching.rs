//! Tests of conditional requests, ranges and cache directives: RFC 9110, sections 13 and 14; RFC
//! 9111, section 5.2.1.
//!
//! Each row of a table is sent twice: for a key that is not cached, and for one that is. The result
//! must be the same.

use crate::common::{HttpClient, Proxy, Redis, Response};
use Expected::{NotModified, Part, Status, Whole};
use std::ops::Range;

/// Value of the keys that rows request as `{key}`.
const VALUE: &str = "0123456789";

/// Expected result of a row.
#[derive(Clone, Debug)]
enum Expected {
    /// 200 with the whole value.
    Whole,
    /// 206 with these bytes.
    Part(Range<usize>),
    /// 304.
    NotModified,
    /// This status, without the value.
    Status(u16),
}

/// Request line without version, field lines, and the result. In the fields `{t}` is the entity tag
/// of the value, and `{o}` that of another one.
type Row = (&'static str, &'static str, Expected);

/// Entity tags, their comparison and lists of them (RFC 9110, sections 8.8.3, 5.6.1 and 13.1.2).
const IF_NONE_MATCH: [Row; 41] = [
    ("GET /raw/{key}", "If-None-Match: {t}", NotModified),
    ("GET /key/{key}", "If-None-Match: W/{t}", NotModified),
    ("HEAD /raw/{key}", "If-None-Match: {t}", NotModified),
    ("HEAD /key/{key}", "If-None-Match: W/{t}", NotModified),
    // The comparison is weak.
    ("GET /raw/{key}", "If-None-Match: W/{t}", NotModified),
    ("GET /key/{key}", "If-None-Match: {t}", NotModified),
    ("GET /raw/{key}", "if-none-match:{t}", NotModified),
    ("GET /raw/{key}", "IF-NONE-MATCH:\t {t} \t", NotModified),
    ("GET /raw/{key}", "If-None-Match: {o}", Whole),
    ("GET /key/{key}", "If-None-Match: W/{o}", Whole),
    ("HEAD /raw/{key}", "If-None-Match: {o}", Whole),
    ("GET /raw/{key}", "If-None-Match: *", NotModified),
    ("GET /key/{key}", "If-None-Match: *", NotModified),
    ("HEAD /key/{key}", "If-None-Match: *", NotModified),
    ("GET /raw/{key}", "If-None-Match: \"*\"", Whole),
    ("GET /raw/{key}", "If-None-Match:", Whole),
    ("GET /raw/{key}", "If-None-Match: \"\"", Whole),
    ("GET /raw/{key}", "If-None-Match: \"a\"", Whole),
    ("GET /raw/{key}", "If-None-Match: {o}, {t}", NotModified),
    ("GET /raw/{key}", "If-None-Match: {t}, {o}", NotModified),
    ("GET /raw/{key}", "If-None-Match: {o},W/{t}", NotModified),
    ("GET /raw/{key}", "If-None-Match: \"a\", \"b\", \"c\", W/\"d\", {t}", NotModified),
    ("GET /raw/{key}", "If-None-Match: \"a,b\", {t}", NotModified),
    ("GET /raw/{key}", "If-None-Match: \"a\\\", {t}", NotModified),
    ("GET /raw/{key}", "If-None-Match: ,, {t},,", NotModified),
    ("GET /raw/{key}", "If-None-Match: {o}\r\nIf-None-Match: {t}", NotModified),
    ("GET /raw/{key}", "If-None-Match: {t}\r\nIf-None-Match: {o}", NotModified),
    ("GET /raw/{key}", "If-None-Match: {o}\r\nIf-None-Match: *", NotModified),
    ("GET /raw/{key}", "If-None-Match: \"a\", \"b\"", Whole),
    // Malformed tags match nothing, and neither does what follows them.
    ("GET /raw/{key}", "If-None-Match: w/{t}", Whole),
    ("GET /raw/{key}", "If-None-Match: W/ {t}", Whole),
    ("GET /raw/{key}", "If-None-Match: a, {t}", Whole),
    ("GET /raw/{key}", "If-None-Match: \"a\" {t}", Whole),
    ("GET /raw/{key}", "If-None-Match: \"a", Whole),
    // A precondition replaces a 200 only (section 13.2.1).
    ("GET /raw/missing", "If-None-Match: *", Status(404)),
    ("GET /key/missing", "If-None-Match: {t}", Status(404)),
    ("GET /raw/list", "If-None-Match: *", Status(409)),
    ("GET /raw/{key}%zz", "If-None-Match: *", Status(400)),
    ("GET /nothing", "If-None-Match: *", Status(404)),
    ("DELETE /raw/{key}", "If-None-Match: {t}", Status(405)),
    ("OPTIONS /raw/{key}", "If-None-Match: *", Status(200)),
];

/// `If-Match` (section 13.1.1) by strong comparison, conditions on dates (sections 13.1.3 and
/// 13.1.4), and their order (section 13.2.2).
const IF_MATCH: [Row; 31] = [
    ("GET /raw/{key}", "If-Match: {t}", Whole),
    ("HEAD /raw/{key}", "If-Match: {t}", Whole),
    ("GET /raw/{key}", "If-Match: *", Whole),
    ("GET /key/{key}", "If-Match: *", Whole),
    ("GET /raw/{key}", "If-Match: {o}, {t}", Whole),
    ("GET /raw/{key}", "If-Match: {o}\r\nIf-Match: {t}", Whole),
    ("GET /raw/{key}", "If-Match: {o}", Status(412)),
    ("HEAD /raw/{key}", "If-Match: {o}", Status(412)),
    ("GET /raw/{key}", "If-Match: W/{t}", Status(412)),
    ("GET /key/{key}", "If-Match: {t}", Status(412)),
    ("GET /key/{key}", "If-Match: W/{t}", Status(412)),
    ("GET /raw/{key}", "If-Match: \"a\"", Status(412)),
    ("GET /raw/{key}", "If-Match: \"*\"", Status(412)),
    ("GET /raw/{key}", "If-Match:", Status(412)),
    ("GET /raw/{key}", "If-Match: a", Status(412)),
    ("GET /raw/missing", "If-Match: *", Status(404)),
    ("GET /raw/missing", "If-Match: {t}", Status(404)),
    ("GET /raw/list", "If-Match: {t}", Status(409)),
    ("GET /raw/{key}", "If-Match: {t}\r\nIf-None-Match: {t}", NotModified),
    ("GET /raw/{key}", "If-None-Match: {t}\r\nIf-Match: {t}", NotModified),
    ("GET /raw/{key}", "If-Match: {o}\r\nIf-None-Match: {t}", Status(412)),
    ("GET /raw/{key}", "If-None-Match: *\r\nIf-Match: {o}", Status(412)),
    ("GET /raw/{key}", "If-Match: *\r\nIf-None-Match: *", NotModified),
    ("GET /raw/{key}", "If-Match: {t}\r\nIf-None-Match: {o}", Whole),
    // No response has Last-Modified.
    ("GET /raw/{key}", "If-Modified-Since: Sun, 06 Nov 2094 08:49:37 GMT", Whole),
    ("GET /raw/{key}", "If-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT", Whole),
    ("GET /raw/{key}", "If-Modified-Since: nonsense", Whole),
    ("GET /raw/{key}", "If-None-Match: {o}\r\nIf-Modified-Since: Sun, 06 Nov 2094 08:49:37 GMT", Whole),
    ("GET /raw/{key}", "If-None-Match: {t}\r\nIf-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT", NotModified),
    ("GET /raw/{key}", "If-Match: {t}\r\nIf-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT", Whole),
    ("OPTIONS /raw/{key}", "If-Match: {o}", Status(200)),
];

/// Ranges of bytes (sections 14.1.2 and 14.2), and `If-Range` (section 13.1.5).
const RANGES: [Row; 59] = [
    ("GET /raw/{key}", "Range: bytes=0-0", Part(0..1)),
    ("GET /raw/{key}", "Range: bytes=0-9", Part(0..10)),
    ("GET /raw/{key}", "Range: bytes=2-5", Part(2..6)),
    ("GET /raw/{key}", "range:bytes=2-5", Part(2..6)),
    ("GET /raw/{key}", "Range: BYTES=2-5", Part(2..6)),
    ("GET /raw/{key}", "Range: bytes=9-9", Part(9..10)),
    ("GET /raw/{key}", "Range: bytes=5-", Part(5..10)),
    ("GET /raw/{key}", "Range: bytes=0-", Part(0..10)),
    ("GET /raw/{key}", "Range: bytes=5-10", Part(5..10)),
    ("GET /raw/{key}", "Range: bytes=5-99999999999999999999999999", Part(5..10)),
    ("GET /raw/{key}", "Range: bytes=-1", Part(9..10)),
    ("GET /raw/{key}", "Range: bytes=-3", Part(7..10)),
    ("GET /raw/{key}", "Range: bytes=-10", Part(0..10)),
    ("GET /raw/{key}", "Range: bytes=-11", Part(0..10)),
    ("GET /raw/{key}", "Range: bytes=-99999999999999999999999999", Part(0..10)),
    ("GET /raw/{key}", "Range: bytes=002-0005", Part(2..6)),
    ("GET /raw/{key}", "Range: bytes= 2-5", Part(2..6)),
    ("GET /raw/{key}", "Range: bytes=,2-5,", Part(2..6)),
    ("GET /raw/{key}", "Range: bytes=10-", Status(416)),
    ("GET /raw/{key}", "Range: bytes=10-10", Status(416)),
    ("GET /raw/{key}", "Range: bytes=99999999999999999999999999-", Status(416)),
    ("GET /raw/{key}", "Range: bytes=-0", Status(416)),
    ("GET /raw/empty", "Range: bytes=0-", Status(416)),
    ("GET /raw/empty", "Range: bytes=0-0", Status(416)),
    // `Content-Range` cannot name a part of an empty value.
    ("GET /raw/empty", "Range: bytes=-1", Whole),
    // Malformed ranges, other units and several ranges are ignored.
    ("GET /raw/{key}", "Range:", Whole),
    ("GET /raw/{key}", "Range: bytes", Whole),
    ("GET /raw/{key}", "Range: bytes=", Whole),
    ("GET /raw/{key}", "Range: bytes=-", Whole),
    ("GET /raw/{key}", "Range: bytes=5", Whole),
    ("GET /raw/{key}", "Range: bytes=5-2", Whole),
    ("GET /raw/{key}", "Range: bytes=2 - 5", Whole),
    ("GET /raw/{key}", "Range: bytes =2-5", Whole),
    ("GET /raw/{key}", "Range: bytes=+2-5", Whole),
    ("GET /raw/{key}", "Range: bytes=2-5-7", Whole),
    ("GET /raw/{key}", "Range: bytes=0x2-5", Whole),
    ("GET /raw/{key}", "Range: bytes=a-b", Whole),
    ("GET /raw/{key}", "Range: items=2-5", Whole),
    ("GET /raw/{key}", "Range: bytes=0-1,4-5", Whole),
    ("GET /raw/{key}", "Range: bytes=0-1, -1", Whole),
    ("GET /raw/{key}", "Range: bytes=2-5\r\nRange: bytes=2-5", Whole),
    // Ranges apply to GET, and here only to /raw.
    ("HEAD /raw/{key}", "Range: bytes=2-5", Whole),
    ("HEAD /raw/{key}", "Range: bytes=10-", Whole),
    ("GET /key/{key}", "Range: bytes=2-5", Whole),
    ("GET /key/{key}", "Range: bytes=10-", Whole),
    ("GET /raw/missing", "Range: bytes=2-5", Status(404)),
    ("GET /raw/list", "Range: bytes=2-5", Status(409)),
    ("GET /raw/{key}", "Range: bytes=2-5\r\nIf-Range: {t}", Part(2..6)),
    ("GET /raw/{key}", "If-Range: {t}\r\nRange: bytes=2-5", Part(2..6)),
    ("GET /raw/{key}", "Range: bytes=10-\r\nIf-Range: {t}", Status(416)),
    ("GET /raw/{key}", "Range: bytes=2-5\r\nIf-Range: {o}", Whole),
    ("GET /raw/{key}", "Range: bytes=10-\r\nIf-Range: {o}", Whole),
    ("GET /raw/{key}", "Range: bytes=2-5\r\nIf-Range: W/{t}", Whole),
    ("GET /raw/{key}", "Range: bytes=2-5\r\nIf-Range: Sun, 06 Nov 1994 08:49:37 GMT", Whole),
    ("GET /raw/{key}", "If-Range: {t}", Whole),
    // Preconditions come first.
    ("GET /raw/{key}", "Range: bytes=2-5\r\nIf-None-Match: {t}", NotModified),
    ("GET /raw/{key}", "Range: bytes=2-5\r\nIf-None-Match: {o}", Part(2..6)),
    ("GET /raw/{key}", "Range: bytes=2-5\r\nIf-Match: {t}", Part(2..6)),
    ("GET /raw/{key}", "Range: bytes=10-\r\nIf-Match: {o}", Status(412)),
];

/// Directives that have no effect on a public proxy (RFC 9111, sections 5.2.1 and 5.4).
const DIRECTIVES_WITHOUT_EFFECT: [&str; 13] = [
    "Cache-Control: no-cache",
    "Cache-Control: max-age=0",
    "Cache-Control: max-age=0, no-cache",
    "Cache-Control: no-store",
    "Cache-Control: min-fresh=100",
    "Cache-Control: max-stale",
    "Cache-Control: no-transform",
    "Cache-Control: private, x=\"only-if-cached\"",
    "Cache-Control: x=\"a, only-if-cached\"",
    "Cache-Control: x=\"\\\", only-if-cached\"",
    "Cache-Control: only-if-cached=1",
    "Cache-Control:",
    "Pragma: no-cache",
];

/// Spellings of a directive that are all recognised (RFC 9110, section 5.6.1).
const SPELLINGS: [&str; 8] = [
    "Cache-Control: {}",
    "cache-control:{}",
    "Cache-Control: no-store, {}",
    "Cache-Control: ,{} ,,",
    "Cache-Control: x=\"a, b\",\t{}",
    "Cache-Control: x=\"\\\"\", {}",
    "Cache-Control: max-age=0\r\nCache-Control: {}",
    "Cache-Control: {}\r\nCache-Control: no-store",
];

/// A proxy with some keys, one client, and the tags of two values.
struct Fixture {
    redis: Redis,
    _proxy: Proxy,
    client: HttpClient,
    tag: String,
    other_tag: String,
    /// Number of keys that were created.
    keys: usize,
}

impl Fixture {
    fn start(variables: &[(&str, &str)]) -> Fixture {
        let redis = Redis::start();
        redis.set("hot", VALUE);
        redis.set("other", "9876543210");
        redis.set("empty", "");
        redis.run(&["RPUSH", "list", "1"]);
        let proxy = Proxy::start(&redis, &[&[("CACHE_SIZE", "1000"), ("CACHE_TTL", "600")], variables].concat());
        let mut client = proxy.connect();
        let [tag, other_tag] = ["hot", "other"].map(|key| {
            client.send(format!("GET /raw/{key} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer word\r\n\r\n"));
            client.read_response().header("etag").to_owned()
        });
        Fixture { redis, _proxy: proxy, client, tag, other_tag, keys: 0 }
    }

    /// Creates a key that is not cached.
    fn new_key(&mut self) -> String {
        self.keys += 1;
        let key = format!("cold-{}", self.keys);
        self.redis.set(&key, VALUE);
        key
    }

    /// Sends a request line and fields, and returns the response.
    fn send(&mut self, line: &str, fields: &str) -> Response {
        self.client.send(format!("{line} HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n"));
        self.client.read_response_to(line.split(' ').next().unwrap_or_default())
    }

    /// Sends a row for a key that is cached, and for one that is not, and checks the responses.
    fn check(&mut self, (line, fields, expected): &Row) {
        let fields = fields.replace("{t}", &self.tag).replace("{o}", &self.other_tag);
        for key in ["hot".to_owned(), self.new_key()] {
            let response = self.send(&line.replace("{key}", &key), &fields);
            if let Err(error) = self.check_response(line, expected, &response) {
                panic!("{line} with {fields:?}, key {key}: {error}, {response:?}");
            }
        }
    }

    fn check_response(&self, line: &str, expected: &Expected, response: &Response) -> Result<(), &'static str> {
        let is_json = line.contains("/key/");
        let value = if line.ends_with("/empty") { "" } else { VALUE };
        let (status, text) = (response.status, response.text());
        let ensure = |is_met: bool, error| if is_met { Ok(()) } else { Err(error) };
        if let Expected::Status(expected) = expected {
            ensure(status == *expected, "another status")?;
            let range = response.header("content-range");
            ensure(range == if status == 416 { format!("bytes */{}", value.len()) } else { String::new() }, "a range")?;
            ensure(status == 200 || response.header("cache-control") == "no-store", "the response may be stored")?;
            return ensure(response.header("etag").is_empty(), "an entity tag");
        }
        let (has_tag, has_date) = (response.header("etag"), !response.header("date").is_empty());
        ensure(
            value.is_empty() || has_tag == if is_json { format!("W/{}", self.tag) } else { self.tag.clone() },
            "ETag",
        )?;
        ensure(has_date && response.header("cache-control").starts_with("max-age="), "Date or Cache-Control")?;
        ensure(status == 304 || (response.header("accept-ranges") == "bytes") != is_json, "Accept-Ranges")?;
        let (expected_status, body, range) = match expected {
            NotModified => {
                let described = ["content-type", "content-length", "content-range", "accept-ranges"];
                ensure(
                    described.iter().all(|name| response.header(name).is_empty()),
                    "a field that describes content",
                )?;
                (304, String::new(), String::new())
            }
            Part(part) => {
                let range = format!("bytes {}-{}/{}", part.start, part.end - 1, value.len());
                (206, value[part.clone()].to_owned(), range)
            }
            _ if line.starts_with("HEAD") => (200, String::new(), String::new()),
            _ if is_json => (200, format!("{{\"value\":\"{value}\""), String::new()),
            _ => (200, value.to_owned(), String::new()),
        };
        ensure(status == expected_status && response.header("content-range") == range, "another status or range")?;
        ensure(if is_json && status == 200 { text.starts_with(&body) } else { text == body }, "another body")
    }
}

fn check_rows(rows: &[Row]) {
    let mut fixture = Fixture::start(&[]);
    rows.iter().for_each(|row| fixture.check(row));
}

/// `If-None-Match` gives 304 for the same value, over `GET` and `HEAD`.
#[test]
fn if_none_match_follows_rfc_9110() {
    check_rows(&IF_NONE_MATCH);
}

/// `If-Match` gives 412 for another value.
#[test]
fn if_match_follows_rfc_9110() {
    check_rows(&IF_MATCH);
}

/// `Range` gives a part of the value, or 416.
#[test]
fn ranges_follow_rfc_9110() {
    check_rows(&RANGES);
}

/// A tag depends on the bytes of the value alone: not on the key, the proxy, its workers, and how
/// the value is stored.
#[test]
fn entity_tag_depends_on_value_alone() {
    let redis = Redis::start();
    let values: Vec<String> =
        [0, 1, 8, 100, 300, 1023, 1025, 16_384, 16_385, 300_000].map(|length| "\n".repeat(length)).into();
    let read_tags = |variables: &[(&str, &str)], prefix: &str| -> Vec<String> {
        let proxy = Proxy::start(&redis, variables);
        let read = |number: usize| {
            let key = format!("{prefix}-{number}");
            redis.set(&key, &values[number]);
            let tags = ["raw", "raw", "key"].map(|view| proxy.get(&format!("/{view}/{key}")).header("etag").to_owned());
            assert_eq!(tags[0], tags[1], "the tag differs between a miss and a hit");
            assert_eq!(tags[2], format!("W/{}", tags[0]));
            tags[0].clone()
        };
        (0..values.len()).map(read).collect()
    };
    let tags = read_tags(&[], "a");
    assert_eq!(tags, read_tags(&[("WORKERS", "3"), ("CACHE_SIZE", "300")], "b"));
    let mut distinct = tags.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), values.len(), "{tags:?}");
    // The tag of the empty value, which must not change between versions of the proxy.
    assert_eq!(tags[0], "\"2d06800538d394c2\"");
}

/// A long value is fetched in parts, which together are the value.
#[test]
fn long_value_is_fetched_in_parts() {
    let redis = Redis::start();
    let value: Vec<u8> = (0..1_000_000u32).map(|at| (at % 251) as u8).collect();
    redis.set("long", &value);
    let proxy = Proxy::start(&redis, &[]);
    let mut client = proxy.connect();
    let (mut parts, mut tag, mut reads) = (Vec::new(), String::new(), 0);
    while parts.len() < value.len() {
        let condition = if tag.is_empty() { String::new() } else { format!("If-Range: {tag}\r\n") };
        let (first, last) = (parts.len(), parts.len() + 123_455);
        client.send(format!("GET /raw/long HTTP/1.1\r\nHost: x\r\nRange: bytes={first}-{last}\r\n{condition}\r\n"));
        let response = client.read_response();
        assert_eq!(response.status, 206);
        if tag.is_empty() {
            reads = redis.count_reads();
        }
        tag = response.header("etag").to_owned();
        parts.extend(response.body);
    }
    assert!(parts == value, "the parts are not the value");
    assert_eq!(redis.count_reads(), reads, "later parts are hits");
}

/// Without entity tags only `*` matches a value, and ranges are served.
#[test]
fn http_caching_off_omits_entity_tags() {
    let mut fixture = Fixture::start(&[("HTTP_CACHING", "off")]);
    assert_eq!(fixture.tag, "");
    let tag = "\"2d06800538d394c2\"";
    for (line, fields, status) in [
        ("GET /raw/hot", String::new(), 200),
        ("GET /key/hot", String::new(), 200),
        ("GET /raw/empty", format!("If-None-Match: {tag}"), 200),
        ("GET /raw/hot", "If-None-Match: *".into(), 304),
        ("GET /raw/empty", format!("If-Match: {tag}"), 412),
        ("GET /raw/hot", "If-Match: *".into(), 200),
        ("GET /raw/hot", "Range: bytes=0-3".into(), 206),
        ("GET /raw/empty", format!("Range: bytes=0-3\r\nIf-Range: {tag}"), 200),
    ] {
        let response = fixture.send(line, &if fields.is_empty() { "A: b".to_owned() } else { fields.clone() });
        assert_eq!((response.status, response.header("etag")), (status, ""), "{line} {fields}");
        assert!(status == 412 || response.header("cache-control").starts_with("max-age="), "{response:?}");
    }
}

/// The value behind a tag changes: the next conditional request gets the new value and its tag.
#[test]
fn changed_value_is_not_304() {
    let mut fixture = Fixture::start(&[("CACHE_TTL", "0.2")]);
    let condition = format!("If-None-Match: {}", fixture.tag);
    assert_eq!(fixture.send("GET /raw/hot", &condition).status, 304);
    fixture.redis.set("hot", "changed");
    let changed = crate::common::wait_for("the new value", || {
        let response = fixture.send("GET /raw/hot", &condition);
        (response.status != 304).then_some(response)
    });
    assert_eq!((changed.status, changed.text().as_str()), (200, "changed"));
    assert_ne!(changed.header("etag"), fixture.tag);
}

/// `only-if-cached` gives a cached value, or 504 without a read of Redis.
#[test]
fn only_if_cached_never_reads_redis() {
    let mut fixture = Fixture::start(&[]);
    let reads = fixture.redis.count_reads();
    for spelling in SPELLINGS {
        for directive in ["only-if-cached", "Only-If-Cached"] {
            let fields = spelling.replace("{}", directive);
            for view in ["raw", "key"] {
                let hit = fixture.send(&format!("GET /{view}/hot"), &fields);
                assert_eq!((hit.status, hit.header("cache-status").contains("; hit")), (200, true), "{fields:?}");
                let uncached = fixture.send(&format!("GET /{view}/uncached"), &fields);
                assert_eq!(uncached.status, 504, "{fields:?}");
                assert_eq!(uncached.header("cache-status"), "segment-redis-proxy; detail=only-if-cached");
                assert_eq!(uncached.header("cache-control"), "no-store");
                assert!(uncached.text().contains("only-if-cached"), "{uncached:?}");
            }
        }
    }
    assert_eq!(fixture.send("HEAD /raw/uncached", "Cache-Control: only-if-cached").status, 504);
    let not_modified = format!("Cache-Control: only-if-cached\r\nIf-None-Match: {}", fixture.tag);
    assert_eq!(fixture.send("GET /raw/hot", &not_modified).status, 304);
    assert_eq!(fixture.redis.count_reads(), reads);
    // The same key is read without the directive, and then cached.
    assert_eq!(fixture.send("GET /raw/uncached", "A: b").status, 404);
    let key = fixture.new_key();
    assert_eq!(fixture.send(&format!("GET /raw/{key}"), "A: b").status, 200);
    assert_eq!(fixture.send(&format!("GET /raw/{key}"), "Cache-Control: only-if-cached").text(), VALUE);
}

/// Without a password no directive makes the proxy read Redis.
#[test]
fn public_clients_cannot_force_reads() {
    let mut fixture = Fixture::start(&[]);
    let reads = fixture.redis.count_reads();
    for fields in DIRECTIVES_WITHOUT_EFFECT {
        // Credentials mean nothing to a proxy without passwords.
        for fields in [fields.to_owned(), format!("{fields}\r\nAuthorization: Bearer word")] {
            let response = fixture.send("GET /raw/hot", &fields);
            assert_eq!((response.status, response.text().as_str()), (200, VALUE), "{fields:?}");
            assert!(response.header("cache-status").contains("; hit"), "{fields:?}");
        }
    }
    assert_eq!(fixture.redis.count_reads(), reads);
}

/// With a password `no-cache` reads Redis and replaces the entry. Other directives do not.
#[test]
fn no_cache_reloads_behind_password() {
    let mut fixture = Fixture::start(&[("CLIENT_PASSWORD", "word")]);
    let password = "Authorization: Bearer word";
    for (number, spelling) in SPELLINGS.iter().enumerate() {
        let value = format!("value {number}");
        fixture.redis.set("hot", &value);
        let fields = format!("{}\r\n{password}", spelling.replace("{}", "no-cache"));
        let response = fixture.send("GET /raw/hot", &fields);
        assert_eq!((response.status, response.text()), (200, value.clone()), "{fields:?}");
        assert!(response.header("cache-status").contains("; fwd=request; stored"), "{response:?}");
        assert!(response.header("cache-control").starts_with("private, max-age="), "{response:?}");
        let hit = fixture.send("GET /key/hot", password);
        assert!(hit.is_from_cache() && hit.text().contains(&value), "{hit:?}");
    }
    let reads = fixture.redis.count_reads();
    let is_other = |fields: &&str| fields.starts_with("Pragma") || !fields.contains("no-cache");
    for fields in DIRECTIVES_WITHOUT_EFFECT.into_iter().filter(is_other) {
        let response = fixture.send("GET /raw/hot", &format!("{fields}\r\n{password}"));
        assert!(response.header("cache-status").contains("; hit"), "{fields:?}");
    }
    // No response satisfies both, and nothing is read without the password.
    let both = fixture.send("GET /raw/hot", &format!("Cache-Control: no-cache, only-if-cached\r\n{password}"));
    assert_eq!(both.status, 504);
    assert_eq!(fixture.send("GET /raw/hot", "Cache-Control: no-cache").status, 401);
    assert_eq!(fixture.send("GET /raw/hot", "Cache-Control: no-cache\r\nAuthorization: Bearer x").status, 401);
    assert_eq!(fixture.redis.count_reads(), reads);
}

/// Forced reads of one key that arrive together share one read.
#[test]
fn reloads_are_collapsed() {
    let redis = Redis::start();
    redis.set("a", "value");
    let proxy = Proxy::start(&redis, &[("CLIENT_PASSWORD", "word")]);
    let request = "GET /raw/a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer word\r\nCache-Control: no-cache\r\n\r\n";
    let mut client = proxy.connect();
    client.send(request.repeat(100));
    let statuses: Vec<String> = (0..100).map(|_| client.read_response().header("cache-status").to_owned()).collect();
    assert!(statuses.iter().all(|status| status.contains("; fwd=request")), "{statuses:?}");
    assert!(statuses.iter().any(|status| status.contains("; collapsed")), "{statuses:?}");
    assert!(redis.count_reads() < 20, "{} reads", redis.count_reads());
}
