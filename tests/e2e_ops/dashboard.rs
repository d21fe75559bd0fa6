//! The page at `/`, as a program sees it and as a browser does (Debian's chromium, without a window).

use crate::common::admin::read_metric;
use crate::common::{Proxy, Redis, wait_for};
use base64::prelude::*;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// What stands between a page's tags of this name, of which there must be one pair.
fn inside<'a>(page: &'a str, tag: &str) -> &'a str {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    assert_eq!((page.matches(&open).count(), page.matches(&close).count()), (1, 1), "{tag}");
    page.split_once(&open).and_then(|(_, rest)| rest.split_once(&close)).expect("a pair").0
}

/// As it stands in a Content Security Policy.
fn hash(text: &str) -> String {
    let mut child =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Debian has it");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    let output = String::from_utf8(child.wait_with_output().expect("it ends").stdout).expect("text");
    let bytes = (0..32).map(|at| u8::from_str_radix(&output[2 * at..2 * at + 2], 16).expect("digits"));
    format!("'sha256-{}'", BASE64_STANDARD.encode(bytes.collect::<Vec<u8>>()))
}

/// What a browser is allowed is what is there, and nothing on the page asks for more.
#[test]
fn the_page_is_one_file_and_its_policy_knows_it() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("CACHE_SIZE", "4321")]);
    let response = proxy.get("/");
    let (policy, page) = (response.header("content-security-policy").to_owned(), response.text());
    let (style, script) = (hash(inside(&page, "style")), hash(inside(&page, "script")));
    let expected = format!(
        "default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'"
    );
    assert_eq!(policy, expected, "put these into src/admin/page.rs");
    for forbidden in ["<!--", " style=", " onclick=", " onload=", "<img", "<iframe", "@import", "url(", "innerHTML"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    let outside = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!outside.contains("://"), "it names something outside");
    // Without the script there are tables.
    for row in [
        "<tr><th scope=\"row\">Hit ratio</th><td>-</td></tr>",
        "<tr><th scope=\"row\">CACHE_SIZE</th><td>4321</td></tr>",
        "<tr><th scope=\"row\">CACHE_TTL</th><td>15</td></tr>",
        "<tr><th scope=\"row\">REDIS_PASSWORD</th><td></td></tr>",
    ] {
        assert!(page.contains(row), "{row}");
    }
    assert_eq!(response.header("content-type"), "text/html; charset=utf-8");
}

/// A browser without a window, and with a profile of its own.
struct Browser {
    profile: PathBuf,
}

impl Browser {
    fn new(name: &str) -> Browser {
        let profile = std::env::temp_dir().join(format!("segment-page-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&profile).expect("a folder");
        Browser { profile }
    }

    /// Runs it for ten seconds of the page's time. What it prints, and what its console says.
    fn visit(&self, url: &str, arguments: &[&str]) -> (String, String) {
        // A busy machine may keep it from ending; it is asked once more then.
        wait_for("the browser ends", || {
            let output = Command::new("timeout")
                .args(["60", "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"])
                .args(["--hide-scrollbars", "--virtual-time-budget=10000"])
                .arg(format!("--user-data-dir={}", self.profile.display()))
                .args(arguments)
                .arg(url)
                .output()
                .expect("chromium is installed");
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            output.status.success().then(|| (text(&output.stdout), text(&output.stderr)))
        })
    }

    /// The page as it is after ten seconds. Nothing may be the matter on the console.
    fn page(&self, url: &str) -> String {
        let (page, errors) = self.visit(url, &["--dump-dom"]);
        let console: Vec<&str> = errors.lines().filter(|line| line.contains("CONSOLE")).collect();
        assert_eq!(console, [""; 0]);
        page
    }

    /// A picture of it, in a PNG file.
    fn picture(&self, url: &str, scheme: &str, size: &str, path: &Path) -> Vec<u8> {
        let size = format!("--window-size={size}");
        let scheme = format!("--blink-settings=preferredColorScheme={scheme}");
        self.visit(url, &[&size, &scheme, &format!("--screenshot={}", path.display())]);
        std::fs::read(path).expect("a picture")
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

#[test]
fn a_browser_shows_what_happens() {
    let mut redis = Redis::start();
    redis.set("a", "value");
    let proxy = Proxy::start(&redis, &[("REDIS_TIMEOUT", "300")]);
    wait_for("it is ready", || (proxy.get("/readyz").status == 200).then_some(()));
    let mut client = proxy.connect();
    let traffic =
        |client: &mut crate::common::HttpClient| (0..500).for_each(|_| assert_eq!(client.get("/raw/a").status, 200));
    traffic(&mut client);
    let (browser, url) = (Browser::new("live"), format!("http://{}/", proxy.address));
    let page = browser.page(&url);
    assert!(page.contains("class=\"good\">Live: updated every second.</p>"), "{page}");
    assert_eq!(page.matches("<svg role=\"img\"").count(), 5, "{page}");
    // What a plot says for those who do not see it.
    for label in [
        "aria-label=\"Requests, requests per second",
        "aria-label=\"Hit ratio",
        "aria-label=\"Latency",
        "aria-label=\"Entries",
    ] {
        assert!(page.contains(label), "no {label} in {page}");
    }
    let (_, live) = page.split_once("id=\"live\"").expect("a section");
    let (live, _) = live.split_once("</section>").expect("its end");
    assert!(["NaN", "undefined", ">null", "Infinity"].iter().all(|text| !live.contains(text)), "{live}");
    redis.kill();
    wait_for("it is not ready", || (proxy.get("/readyz").status == 503).then_some(()));
    let page = browser.page(&url);
    assert!(page.contains("class=\"bad\">Redis unavailable: cannot connect to Redis"), "{page}");
    assert!(page.contains("<title>Redis unavailable - "), "{page}");
}

/// The number in the table's row of that name.
fn figure(page: &str, name: &str) -> u64 {
    let (_, rest) = page.split_once(&format!(">{name}</th><td>")).expect("a row");
    let digits: String = rest.chars().take_while(|&char| char != '<').filter(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

/// The hit ratio that it shows, in percent, if it shows one.
fn ratio(page: &str) -> Option<f64> {
    let (_, rest) = page.split_once("<h3 class=\"\">Hit ratio</h3><p class=\"now \"><span class=\"\">")?;
    rest.split_once('%')?.0.parse().ok()
}

/// Half of what is asked for is there, the other half is not, and of that many ask at once.
#[test]
fn what_it_shows_goes_on_while_it_is_looked_at() {
    const CLIENTS: usize = 20;
    let redis = Redis::start();
    redis.set("a", "value");
    let proxy = Proxy::start(&redis, &[("CACHE_TTL", "600")]);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| proxy.connect()).collect();
    assert_eq!(clients[0].get("/raw/a").text(), "value");
    let over = AtomicBool::new(false);
    let page = std::thread::scope(|scope| {
        scope.spawn(|| {
            // Not before the page is there, and has asked for figures once.
            let mut looks = 0.0;
            wait_for("a browser looks", || {
                looks += 1.0;
                let others = read_metric(&proxy, "segment_requests_total{protocol=\"http\",outcome=\"other\"}");
                (others >= looks + 1.0).then_some(())
            });
            while !over.load(Ordering::Relaxed) {
                clients.iter_mut().for_each(|client| client.send_get("/raw/none"));
                clients.iter_mut().for_each(|client| client.send_get("/raw/a"));
                for status in [404, 200] {
                    clients.iter_mut().for_each(|client| assert_eq!(client.read_response().status, status));
                }
            }
        });
        let browser = Browser::new("watched");
        // A machine that is too busy may let it end before there is traffic.
        let page = wait_for("it shows a ratio", || {
            let page = browser.page(&format!("http://{}/", proxy.address));
            ratio(&page).is_some().then_some(page)
        });
        over.store(true, Ordering::Relaxed);
        page
    });
    assert!(
        figure(&page, "Hits") > 0 && figure(&page, "Collapsed misses") > 0,
        "the table is that of the beginning: {page}"
    );
    let ratio = ratio(&page).expect("a ratio");
    assert!((45.0..55.0).contains(&ratio), "{ratio} %");
}

#[test]
fn it_is_drawn_light_and_dark_and_on_a_phone() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[]);
    let (browser, url) = (Browser::new("drawn"), format!("http://{}/", proxy.address));
    let path = |name: &str| browser.profile.join(format!("{name}.png"));
    let [dark, light] = ["0", "1"].map(|scheme| browser.picture(&url, scheme, "1400,900", &path(scheme)));
    let phone = browser.picture(&url, "1", "360,800", &path("phone"));
    for picture in [&dark, &light, &phone] {
        // An empty page is some 5 KB.
        assert!(picture.starts_with(b"\x89PNG") && picture.len() > 15_000, "{} bytes", picture.len());
    }
    assert_ne!(dark, light);
    // Width and height stand behind the first chunk's name.
    assert_eq!(phone[16..24], [360u32.to_be_bytes(), 800u32.to_be_bytes()].concat());
}
