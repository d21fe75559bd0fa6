//! Tests of the section of the dashboard that watches a key, in a headless Chromium.

use crate::common::admin::read_metric;
use crate::common::browser::{Browser, Page};
use crate::common::freshness::start_tracking_proxy;
use crate::common::{HttpClient, Proxy, Redis, stable_port, wait_for};

/// Codes of keys in the Windows layout, which browsers use.
const TAB: (&str, u32, &str) = ("Tab", 9, "");
const ENTER: (&str, u32, &str) = ("Enter", 13, "\r");

fn press(page: &mut Page<'_>, (key, code, text): (&str, u32, &str)) {
    page.press(key, code, text);
}

/// Replaces the key in the input, and presses Enter there.
fn watch(page: &mut Page<'_>, key: &str) {
    page.run("document.getElementById(\"watch-key\").select() ?? document.getElementById(\"watch-key\").focus()");
    page.insert_text(key);
    press(page, ENTER);
}

/// Returns event and value in the rows of the list, without their time.
fn events(page: &mut Page<'_>) -> String {
    page.run(
        "[...document.querySelectorAll(\"#watch-events tr\")].map((row) => \
              [...row.cells].slice(1).map((cell) => cell.textContent).join(\"=\")).join(\"|\")",
    )
}

fn url(proxy: &Proxy) -> String {
    format!("http://{}/", proxy.address)
}

/// The page shows the present value of a key and each change, by keyboard alone. Without a request
/// it opens no stream.
#[test]
fn page_watches_key() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[]);
    redis.set("flag", "off");
    let browser = Browser::new("watch");
    let mut page = browser.open(&url(&proxy));
    page.wait_for_text("state", "Live: updated every second.");
    assert_eq!(read_metric(&proxy, "segment_watchers"), 0.0);
    assert_eq!(page.text_of("watch-state"), "No key is watched.");
    // From the range buttons and Pause to the input, and on to the button.
    page.run("document.getElementById(\"pause\").focus()");
    wait_for("the input has the focus", || {
        press(&mut page, TAB);
        (page.run("document.activeElement.id") == "watch-key").then_some(())
    });
    page.insert_text("flag");
    press(&mut page, TAB);
    assert_eq!(page.run("document.activeElement.textContent"), "Watch");
    press(&mut page, ENTER);
    page.wait_for_text("watch-value", "off");
    assert!(page.wait_for_text("watch-state", "Watching flag since ").ends_with('.'));
    for value in ["on", "", "<b>&\"'"] {
        redis.set("flag", value);
        page.wait_for_text("watch-value", if value.is_empty() { "(empty)" } else { value });
    }
    redis.run(&["DEL", "flag"]);
    page.wait_for_text("watch-value", "(no such key)");
    assert_eq!(events(&mut page), "gone=(no such key)|put=<b>&\"'|put=(empty)|put=on|put=off");
    // The figures of the page show the watcher.
    page.wait_until("[...document.querySelectorAll(\"#figures tr\")].some((row) => row.textContent === \"Watchers1\")");
    press(&mut page, TAB);
    assert_eq!(page.run("document.activeElement.id"), "watch-stop");
    press(&mut page, ENTER);
    page.wait_for_text("watch-state", "Stopped.");
    assert_eq!(page.run("document.activeElement.id"), "watch-key");
    wait_for("the stream ends", || (read_metric(&proxy, "segment_watchers") == 0.0).then_some(()));
}

/// Long and binary values are shortened, any key can be watched, and the list has ten events.
#[test]
fn values_are_shortened() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[("WATCH_INTERVAL", "1")]);
    redis.set("..", "x".repeat(1_000_000));
    redis.set("a b/c?d&e=%f+g\"", &[0xff_u8, 0][..]);
    let browser = Browser::new("shortened");
    let mut page = browser.open(&url(&proxy));
    watch(&mut page, "..");
    let value = page.wait_for_text("watch-value", "(1,000,000 characters)");
    assert_eq!(value, format!("{}\u{2026} (1,000,000 characters)", "x".repeat(400)));
    assert_eq!(events(&mut page), format!("put={}\u{2026} (1,000,000 characters)", "x".repeat(60)));
    watch(&mut page, "a b/c?d&e=%f+g\"");
    page.wait_for_text("watch-value", "(binary, as base64) /wA=");
    redis.run(&["DEL", "a b/c?d&e=%f+g\""]);
    redis.run(&["RPUSH", "a b/c?d&e=%f+g\"", "1"]);
    page.wait_for_text("watch-value", "the key does not hold a string");
    watch(&mut page, "number");
    for number in 0..20 {
        redis.set("number", number.to_string());
        page.wait_for_text("watch-value", &number.to_string());
    }
    assert!(events(&mut page).starts_with("put=19|put=18|"), "{}", events(&mut page));
    assert_eq!(events(&mut page).split('|').count(), 10);
    assert_eq!(read_metric(&proxy, "segment_watchers"), 1.0);
}

/// The page says why a stream was refused, and when one is lost and found again.
#[test]
fn page_explains_refusal_and_loss() {
    let redis = Redis::start();
    let port = stable_port().to_string();
    let variables = [("MAX_WATCHERS", "1"), ("PROXY_PORT", &*port)];
    let proxy = start_tracking_proxy(redis.port, &variables);
    redis.set("a", "1");
    let browser = Browser::new("refused");
    let (mut first, other_browser) = (browser.open(&url(&proxy)), Browser::new("refused-too"));
    watch(&mut first, "a");
    first.wait_for_text("watch-value", "1");
    let mut second = other_browser.open(&url(&proxy));
    watch(&mut second, "a");
    let text = second.wait_for_text("watch-state", "refused");
    assert!(text.starts_with("Not watching a. The proxy refused the stream: too many watchers: "), "{text}");
    assert_eq!(second.run("document.getElementById(\"watch-stop\").disabled"), "true");
    drop(second);
    assert_eq!(proxy.stop("TERM"), Some(0));
    first.wait_for_text("watch-state", "reconnecting to watch a.");
    redis.set("a", "2");
    let _proxy = start_tracking_proxy(redis.port, &variables);
    first.wait_for_text("watch-value", "2");
    first.wait_for_text("watch-state", "Watching a since ");
    assert_eq!(events(&mut first), "put=2|put=1");
}

/// The password of the page, which the browser has, is good for the stream.
#[test]
fn watch_works_after_login() {
    let redis = Redis::start();
    let proxy = start_tracking_proxy(redis.port, &[("CLIENT_PASSWORD", "word")]);
    redis.set("a", "1");
    let browser = Browser::new("watch-login");
    let mut page = browser.open(&format!("http://me:word@{}/", proxy.address));
    watch(&mut page, "a");
    page.wait_for_text("watch-value", "1");
}

/// A page on a port without keys has no such section, and neither has one that may watch no key.
#[test]
fn page_without_keys_has_no_box() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, &[("ADMIN_PORT", "0")]);
    let off = Proxy::start(&redis, &[("MAX_WATCHERS", "0")]);
    for address in [proxy.admin_address(), off.address] {
        let page = HttpClient::connect(address).get("/").text();
        assert!(!page.contains("<section id=\"watch\""), "{page}");
        let browser = Browser::new("no-watch");
        assert!(browser.dump_page(&format!("http://{address}/")).contains("Live: updated every second."));
    }
}
