//! Tests of the dashboard at `/`: the response itself, and the page in a headless Chromium.

use crate::common::admin::{read_metric, wait_until_ready};
use crate::common::browser::Browser;
use crate::common::{Proxy, Redis, wait_for};
use base64::prelude::*;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// Returns the text between the tags with this name. The page must have exactly one pair.
fn tag_content<'a>(page: &'a str, tag: &str) -> &'a str {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    assert_eq!((page.matches(&open).count(), page.matches(&close).count()), (1, 1), "{tag}");
    page.split_once(&open).and_then(|(_, rest)| rest.split_once(&close)).expect("a pair").0
}

/// Returns the source expression of a text in a Content Security Policy.
fn csp_hash(text: &str) -> String {
    let mut child =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sha256sum is installed");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads its input");
    let output = String::from_utf8(child.wait_with_output().expect("it exits").stdout).expect("text");
    let bytes = (0..32).map(|at| u8::from_str_radix(&output[2 * at..2 * at + 2], 16).expect("digits"));
    format!("'sha256-{}'", BASE64_STANDARD.encode(bytes.collect::<Vec<u8>>()))
}

/// The page is one file, and its Content Security Policy allows exactly its style and script.
#[test]
fn page_is_one_file_with_policy() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("CACHE_SIZE", "4321")]);
    let response = proxy.get("/");
    let (policy, page) = (response.header("content-security-policy").to_owned(), response.text());
    let (style, script) = (csp_hash(tag_content(&page, "style")), csp_hash(tag_content(&page, "script")));
    let expected = format!(
        "default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'"
    );
    assert_eq!(policy, expected, "put these into src/admin/dashboard.rs");
    for forbidden in ["<!--", " style=", " onclick=", " onload=", "<img", "<iframe", "@import", "url(", "innerHTML"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    let without_namespace = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!without_namespace.contains("://"), "the page has an external URL");
    // Without JavaScript the page has tables.
    for row in [
        "<tr><th scope=\"row\">Hit ratio</th><td>-</td></tr>",
        "<tr><th scope=\"row\">CACHE_SIZE</th><td>4321 keys</td><td>changed</td></tr>",
        "<tr><th scope=\"row\">CACHE_TTL</th><td>15 s</td><td></td></tr>",
        "<tr><th scope=\"row\">REDIS_PASSWORD</th><td></td><td></td></tr>",
    ] {
        assert!(page.contains(row), "{row}");
    }
    assert_eq!(response.header("content-type"), "text/html; charset=utf-8");
}

/// The browser shows live plots. It shows that Redis is unavailable, why and since when.
#[test]
fn browser_shows_live_state() {
    let mut redis = Redis::start();
    redis.set("a", "value");
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "300")]);
    wait_for("the proxy is ready", || (proxy.get("/readyz").status == 200).then_some(()));
    let mut client = proxy.connect();
    let traffic =
        |client: &mut crate::common::HttpClient| (0..500).for_each(|_| assert_eq!(client.get("/raw/a").status, 200));
    traffic(&mut client);
    let (browser, url) = (Browser::new("live"), format!("http://{}/", proxy.address));
    let page = browser.dump_page(&url);
    assert!(page.contains("class=\"good\">Live: updated every second.</p>"), "{page}");
    assert_eq!(page.matches("<svg role=\"img\"").count(), 8, "{page}");
    // Each plot has a text for screen readers.
    for label in [
        "aria-label=\"Requests, requests per second",
        "aria-label=\"Hit ratio",
        "aria-label=\"Latency",
        "aria-label=\"Entries",
        "aria-label=\"Evictions",
        "aria-label=\"Memory",
        "aria-label=\"Redis round trip, time to the first reply, logarithmic, last 5 minutes. Now: median ",
    ] {
        assert!(page.contains(label), "no {label} in {page}");
    }
    let (_, live) = page.split_once("id=\"live\"").expect("a section");
    let (live, _) = live.split_once("</section>").expect("its end");
    assert!(["NaN", "undefined", ">null", "Infinity"].iter().all(|text| !live.contains(text)), "{live}");
    redis.kill();
    wait_for("the proxy is not ready", || (proxy.get("/readyz").status == 503).then_some(()));
    let banner = "<strong>Critical: Redis unavailable</strong> <time datetime=\"20";
    let page = proxy.get("/").text();
    assert!(page.contains(banner) && page.contains("cannot connect to Redis at 127.0.0.1:"), "{page}");
    // The script leaves a banner that is still true as it is.
    let page = browser.dump_page(&url);
    assert!(page.contains(banner) && page.contains("cannot connect to Redis at 127.0.0.1:"), "{page}");
    assert!(page.contains("class=\"bad\">Live: updated every second. One problem found.</p>"), "{page}");
    assert!(page.contains("<title>Redis unavailable - ") && page.contains("<p id=\"healthy\" hidden"), "{page}");
}

/// Waits until another client has requested the page and, once, its data.
fn wait_for_visit(proxy: &Proxy) {
    let others = || read_metric(proxy, "segment_requests_total{protocol=\"http\",outcome=\"other\"}");
    let before = others();
    let mut readings = 0.0;
    wait_for("the browser requests data", || {
        readings += 1.0;
        // Each reading counts the earlier readings as well.
        (others() >= before + readings + 2.0).then_some(())
    });
}

/// A page that is open shows an outage of Redis that begins.
#[test]
fn open_page_shows_new_outage() {
    let mut redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    let (browser, url) = (Browser::new("outage"), format!("http://{}/", proxy.address));
    // On a busy machine the browser may end before the outage begins.
    wait_for("the open page shows the outage", || {
        wait_until_ready(&proxy);
        let page = std::thread::scope(|scope| {
            scope.spawn(|| {
                wait_for_visit(&proxy);
                redis.kill();
                // A failed read shows the outage earlier than the next probe would.
                while proxy.get("/readyz").status == 200 {
                    proxy.get("/raw/none");
                }
            });
            browser.dump_page(&url)
        });
        redis.restart();
        // The class shows that the script has written the element.
        page.contains("<li class=\"critical\"><strong class=\"\">Critical: Redis unavailable</strong>").then_some(())
    });
}

/// A page that is open shows that the proxy is gone, and claims no health any more.
#[test]
fn open_page_shows_lost_proxy() {
    let redis = Redis::start();
    let browser = Browser::new("lost");
    // On a busy machine the browser may end before the proxy does.
    wait_for("the open page shows that the proxy is gone", || {
        let proxy = Proxy::start(&redis, &[]);
        let url = format!("http://{}/", proxy.address);
        let (page, _) = std::thread::scope(|scope| {
            scope.spawn(move || {
                wait_for_visit(&proxy);
                drop(proxy);
            });
            browser.visit(&url, &["--dump-dom"])
        });
        let is_shown = page.contains("class=\"bad\">No data from the proxy since");
        (is_shown && page.contains("<p id=\"healthy\" hidden=\"\">No problem found.</p>")).then_some(())
    });
}

/// Returns the cells of each row of a table.
fn table_rows<'a>(page: &'a str, id: &str) -> Vec<Vec<&'a str>> {
    let (_, rows) = page.split_once(&format!("<tbody id=\"{id}\">")).expect("a table");
    let (rows, _) = rows.split_once("</tbody>").expect("its end");
    let cells = |row: &'a str| {
        let cells = row.split(['<', '\n']).filter(|part| part.starts_with("th") || part.starts_with("td"));
        cells.map(|cell| cell.split_once('>').expect("a tag").1).collect()
    };
    rows.split_inclusive("</tr>").filter(|row| row.contains("<tr")).map(cells).collect()
}

/// Each worker has a row with its own figures, and requests of the page itself are no traffic.
#[test]
fn workers_have_rows_without_polls() {
    let redis = Redis::start();
    redis.set("a", "value");
    let proxy = Proxy::start(&redis, &[("WORKERS", "2"), ("CACHE_TTL", "600")]);
    wait_until_ready(&proxy);
    (0..40).for_each(|_| assert_eq!(proxy.get("/raw/a").text(), "value"));
    let page = Browser::new("workers").dump_page(&format!("http://{}/#hour", proxy.address));
    let rows = table_rows(&page, "per-worker");
    let sum = |column: usize| rows.iter().map(|row| row[column].parse::<u64>().expect("a number")).sum::<u64>();
    // Each worker that was asked has fetched the key once.
    assert_eq!((rows.len(), rows[0][0], rows[1][0]), (2, "0", "1"));
    assert_eq!((sum(2), sum(3) + sum(5)), (40, 40), "{rows:?}");
    assert!(rows.iter().all(|row| row[7..] == ["running", "available"]), "{rows:?}");
    assert!(page.contains("<h3 class=\"\">Requests</h3><p class=\"now \"><span class=\"\">0</span>"), "{page}");
    assert!(table_value(&page, "HTTP requests") > 40, "{page}");
    // The address has chosen the longer history.
    assert!(
        page.contains("aria-pressed=\"true\">1 hour</button>") && page.contains(">\u{2212}60 min</text>"),
        "{page}"
    );
}

/// Returns the number in the table row with this name.
fn table_value(page: &str, name: &str) -> u64 {
    let (_, rest) = page.split_once(&format!(">{name}</th><td>")).expect("a row");
    let digits: String = rest.chars().take_while(|&char| char != '<').filter(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

/// Returns the hit ratio on the page, in percent, if there is one.
fn shown_ratio(page: &str) -> Option<f64> {
    let (_, rest) = page.split_once("<h3 class=\"\">Hit ratio</h3><p class=\"now \"><span class=\"\">")?;
    rest.split_once('%')?.0.parse().ok()
}

/// An open page follows the traffic: half hits, half collapsed requests for a missing key.
#[test]
fn open_page_follows_traffic() {
    // Few, so that a sample in the middle of a round moves the ratio by little.
    const CLIENTS: usize = 4;
    let redis = Redis::start();
    redis.set("a", "value");
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| proxy.connect()).collect();
    assert_eq!(clients[0].get("/raw/a").text(), "value");
    let stop = AtomicBool::new(false);
    let page = std::thread::scope(|scope| {
        scope.spawn(|| {
            wait_for_visit(&proxy);
            while !stop.load(Ordering::Relaxed) {
                clients.iter_mut().for_each(|client| client.send_get("/raw/none"));
                clients.iter_mut().for_each(|client| client.send_get("/raw/a"));
                for status in [404, 200] {
                    clients.iter_mut().for_each(|client| assert_eq!(client.read_response().status, status));
                }
            }
        });
        let browser = Browser::new("watched");
        // On a busy machine the browser may end before the traffic starts.
        let page = wait_for("the page shows a ratio", || {
            let page = browser.dump_page(&format!("http://{}/", proxy.address));
            shown_ratio(&page).is_some().then_some(page)
        });
        stop.store(true, Ordering::Relaxed);
        page
    });
    assert!(
        table_value(&page, "Hits") > 0 && table_value(&page, "Collapsed misses") > 0,
        "the table was not updated: {page}"
    );
    let ratio = shown_ratio(&page).expect("a ratio");
    assert!((45.0..55.0).contains(&ratio), "{ratio} %");
}

/// The page renders in a light and a dark scheme, and at the width of a phone.
#[test]
fn page_renders_in_every_layout() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    let (browser, url) = (Browser::new("layouts"), format!("http://{}/", proxy.address));
    let path = |name: &str| browser.profile().join(format!("{name}.png"));
    let [dark, light] = ["0", "1"].map(|scheme| browser.screenshot(&url, scheme, "1400,900", &path(scheme)));
    let phone = browser.screenshot(&url, "1", "360,800", &path("phone"));
    for picture in [&dark, &light, &phone] {
        // A blank page has about 5 KB.
        assert!(picture.starts_with(b"\x89PNG") && picture.len() > 15_000, "{} bytes", picture.len());
    }
    assert_ne!(dark, light);
    // Width and height follow the name of the first chunk.
    assert_eq!(phone[16..24], [360u32.to_be_bytes(), 800u32.to_be_bytes()].concat());
}

/// With `CLIENT_PASSWORD` the script of the page gets its figures, after the login of the browser.
#[test]
fn page_works_after_login() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("CLIENT_PASSWORD", "word")]);
    let page = Browser::new("login").dump_page(&format!("http://me:word@{}/", proxy.address));
    assert!(page.contains("class=\"good\">Live: updated every second.</p>"), "{page}");
    assert!(!page.contains("me:word"), "{page}");
}
